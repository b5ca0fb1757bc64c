"""Where does a base model come from, and how is it loaded?"""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import nn

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from model import packed_attention
from support.errors import UserError
from support.files import read_json
from support.tokens import TOKENIZER, check_vocabulary, load_tokenizer

PROJECT = Path(__file__).resolve().parent.parent
HUB_VARIANTS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
VARIANTS = (*HUB_VARIANTS, "nano")
TOKENIZER_FILES = ("config.json", "vocab.json", "merges.txt", "tokenizer_config.json")
HUB_TIMEOUT = 5  # seconds until an unreachable hub is reported


class Base(NamedTuple):
    """A pretrained model on disk, found and looked at but not loaded."""

    name: str  # as the user gave it
    folder: Path
    tokenizer: Tokenizer
    max_length: int  # of a sentence, in tokens: the model's number of positions


def find_base(name: str, weights: bool = True) -> Base:
    """Find a base by name or folder; ``weights`` says whether more than the tokenizer is needed."""
    folder = base_folder(name, weights)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, folder)
    max_length = read_json(folder / "config.json").get("n_positions", 1024)  # GPT2Config's default
    if type(max_length) is not int or max_length < 1:
        raise UserError(f"{folder / 'config.json'}: n_positions = {max_length!r}")
    return Base(name, folder, tokenizer, max_length)


def variant_name(name: str) -> str:
    """A base as it stands in file names: its name, or a folder's own name."""
    return name if name in VARIANTS else Path(name).resolve().name


def base_folder(name: str, weights: bool = True) -> Path:
    """A base's folder in Hugging Face format, fetched from the hub on first use."""
    name = name.removeprefix("openai-community/")  # where the hub keeps them
    if name in HUB_VARIANTS:
        return from_hub(name, (*TOKENIZER_FILES, *(("model.safetensors",) if weights else ())))
    folder = PROJECT / "nano" if name == "nano" else Path(name)
    if not folder.is_dir():
        raise UserError(
            f"base model {name}: neither one of {', '.join(VARIANTS)} nor a folder; give it "
            "with --gpt_variant"
        )
    config = folder / "config.json"
    model_type = read_json(config).get("model_type")
    if model_type != "gpt2":
        raise UserError(f"{config}: model_type is {model_type!r}; this project takes 'gpt2'")
    if not (folder / TOKENIZER).exists():
        for file in ("vocab.json", "merges.txt"):
            if not (folder / file).exists():
                raise UserError(f"{folder / file}: no such file; the folder lacks its tokenizer")
    files = ("model.safetensors", "model.safetensors.index.json")
    if weights and not any((folder / file).exists() for file in files):
        raise UserError(
            f"{folder / 'model.safetensors'}: no such file; only safetensors are read: save the "
            "model with save_pretrained(..., safe_serialization=True)"
        )
    return folder


def from_hub(repo: str, files: tuple[str, ...]) -> Path:
    """Fetch the files that the local cache lacks; asks the hub nothing when it lacks none."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, OfflineModeIsEnabled

    download = functools.partial(huggingface_hub.hf_hub_download, repo)
    try:
        try:
            paths = [download(name, local_files_only=True) for name in files]
        except EntryNotFoundError:
            # Asked once and briefly, since hf_hub_download tries an unreachable hub for a minute.
            probe = huggingface_hub.hf_hub_url(repo, files[0])
            huggingface_hub.get_hf_file_metadata(probe, timeout=HUB_TIMEOUT)
            paths = [download(name) for name in files]
    except (HTTPError, EntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"--gpt_variant {repo}: not in the local cache, and the Hugging Face hub did not give "
            f"it ({first_line(error)}); pass a local folder in Hugging Face format, or use "
            "--gpt_variant nano, which ships with the project"
        ) from None
    return Path(paths[0]).parent


# ---------------------------------------------------------------------------------------------
# Loading. Importing transformers takes seconds, which a student need not wait for.


def load_backbone(folder: Path) -> nn.Module:
    """A base's blocks for packed batches: `model.packed_attention` in the place of their own."""
    from transformers.modeling_utils import AttentionInterface
    from transformers.models.gpt2.modeling_gpt2 import GPT2Model

    AttentionInterface.register("packed", packed_attention)
    return load_pretrained(GPT2Model, folder, attn_implementation="packed")


def load_language_model(folder: Path) -> nn.Module:
    """A base with its own head and attention, for generation."""
    from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

    return load_pretrained(GPT2LMHeadModel, folder)


def load_pretrained(architecture: type, folder: Path, **settings) -> nn.Module:
    """Load a folder's weights in fp32, with the model's own dropout off, in evaluation mode."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    remedy = "copy or download the folder again"
    try:
        model, info = architecture.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            output_attentions=False,  # which packed attention has none of
            **settings,
        )
        config = model.config
        if min(config.n_layer, config.n_head) < 1 or not config.initializer_range >= 0:
            raise ValueError("config.json: n_layer, n_head or initializer_range is out of range")
    except (
        # What transformers raises for files that are broken or contradict each other.
        OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError,
        AttributeError, SafetensorError, StrictDataclassError,
    ) as error:  # fmt: skip
        raise UserError(f"{folder}: cannot be loaded ({first_line(error)}); {remedy}") from None
    if info["missing_keys"]:
        some = sorted(info["missing_keys"])[0]
        raise UserError(
            f"{folder}: {len(info['missing_keys'])} tensors are missing, {some} first; {remedy}"
        )
    return model.eval()


def first_line(error: Exception) -> str:
    """What a library's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
