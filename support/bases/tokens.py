"""How does a sentence become token ids, without transformers where its tokenizer is one file?

Hugging Face's fast tokenizers are the library `tokenizers` behind the file tokenizer.json; a
student needs no more. A base without that file has it made by transformers.
"""

from pathlib import Path

from tokenizers import Tokenizer

from support.errors import UserError, first_line
from support.files import read_bytes, read_json, write_bytes

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a folder's tokenizer, as transformers' AutoTokenizer does."""
    try:
        if (folder / TOKENIZER).exists() and not asks_for_more(folder):
            tokenizer = Tokenizer.from_str(read_bytes(folder / TOKENIZER).decode())
        else:
            from transformers.models.auto.tokenization_auto import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            tokenizer = tokenizer.backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("a")  # some of its settings are looked at in use only
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as error:  # the library raises bare Exceptions, and its panics are none
        raise UserError(f"{folder}: the tokenizer cannot be read ({first_line(error)})") from None
    return tokenizer


def asks_for_more(folder: Path) -> bool:
    """Whether transformers adds special tokens that tokenizer.json may not know of."""
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    return bool(settings.get("add_bos_token") or settings.get("add_eos_token"))


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
    write_bytes(folder / TOKENIZER, tokenizer.to_str(pretty=True).encode())
    if (source / SETTINGS).exists():
        write_bytes(folder / SETTINGS, read_bytes(source / SETTINGS))


def token_ids(tokenizer, sentences):
    """Return each sentence's tokens."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(sentences))]
