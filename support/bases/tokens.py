"""Turn sentences into token ids, without transformers where a tokenizer is one file.

Hugging Face's fast tokenizers are the library `tokenizers` behind the file tokenizer.json; a
student needs no more. A base without that file has it made by transformers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from support import PROJECT
from support.bases.pretrained import read_pretrained
from support.errors import UserError, first_line
from support.files import read_bytes, read_json, write_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
NANO = PROJECT / "nano"


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a folder's tokenizer, as transformers' AutoTokenizer does."""
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    # By these transformers adds special tokens that tokenizer.json may not know of.
    adds_more = settings.get("add_bos_token") or settings.get("add_eos_token")
    try:
        if (folder / TOKENIZER).exists() and not adds_more:
            tokenizer = Tokenizer.from_str(read_bytes(folder / TOKENIZER).decode())
        else:
            tokenizer = load_auto_tokenizer(folder).backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("a")  # some of its settings are looked at in use only
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as error:  # the library raises bare Exceptions, and its panics are none
        raise unreadable(folder, error) from None
    return tokenizer


def load_auto_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a folder's tokenizer as transformers has it, which knows its special tokens' meaning."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        return read_pretrained(AutoTokenizer, folder)
    except Exception as error:
        raise unreadable(folder, error) from None


def unreadable(folder: Path, error: BaseException) -> UserError:
    """Return the error for a tokenizer that a library cannot read."""
    return UserError(f"{folder}: the tokenizer cannot be read ({first_line(error)})")


def check_vocabulary(tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse a tokenizer with tokens beyond those of the model in ``folder``."""
    size = read_json(folder / "config.json").get("vocab_size")
    last = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
    if isinstance(size, int) and last >= size:
        raise UserError(
            f"{folder}: the tokenizer's token {last} is beyond the model's {size}; they belong to "
            "two models: copy or download the folder again"
        )


def save_tokenizer(tokenizer: Tokenizer, source: Path, folder: Path) -> None:
    """Write a tokenizer, with its settings for transformers where ``source`` has them."""
    write_bytes(folder / TOKENIZER, tokenizer.to_str().encode())
    if (source / SETTINGS).exists():
        write_bytes(folder / SETTINGS, read_bytes(source / SETTINGS))


def token_ids(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """Return each sentence's tokens, with the special ones that the tokenizer adds, if any."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(sentences))]
