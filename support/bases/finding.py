"""Find a base by its name: on the hub, in a folder, in a GGUF file, or in the project."""

import re
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from support.bases.loading import check_folder
from support.bases.tokens import NANO, check_vocabulary, load_tokenizer
from support.errors import UserError
from support.files import read_json

HUB_VARIANTS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
VARIANTS = (*HUB_VARIANTS, "smollm2", "nano")
OWNER = "openai-community/"  # of GPT-2 on the hub


class Base(NamedTuple):
    """A pretrained model on disk, looked at but not loaded."""

    name: str  # as the user gave it
    folder: Path  # in Hugging Face format
    tokenizer: Tokenizer
    max_length: int  # of a sentence, in tokens
    kind: str  # where it is from: "package", "file", "folder" or "hub"


def find_base(name: str, weights: bool = True) -> Base:
    """Find a base by name or folder; ``weights`` says whether more than the tokenizer is needed."""
    folder = base_folder(name, weights)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, folder)
    return Base(name, folder, tokenizer, longest_sentence(folder / "config.json"), origin_of(name))


def longest_sentence(path: Path) -> int:
    """Return a model's number of positions, or its sliding window where that is shorter.

    Packed attention has no window: it is right for sentences that do not reach beyond one.
    """
    config = read_json(path)
    default = 1024 if config.get("model_type") == "gpt2" else None  # GPT2Config's own
    positions = config.get("max_position_embeddings", config.get("n_positions", default))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    limits = [positions] if window is None else [positions, window]
    if not all(type(limit) is int and limit > 0 for limit in limits):
        raise UserError(f"{path}: max_position_embeddings or n_positions = {positions!r}")
    return min(limits)


def variant_name(name: str) -> str:
    """Return a base's name as it stands in file names; a folder's or file's own name for others."""
    return name if name in VARIANTS else Path(name).resolve().name


def origin_of(name: str) -> str:
    """Return where a base of this name is from; a folder stands before the hub's of its name."""
    if name in ("nano", "smollm2"):
        return "package"
    if Path(name).suffix == ".gguf":
        return "file"
    return "folder" if Path(name).is_dir() else "hub"


def base_folder(name: str, weights: bool = True) -> Path:
    """Return a base's folder in Hugging Face format; fetched or converted on first use."""
    kind = origin_of(name)
    if name == "nano" or kind == "folder":
        return check_folder(NANO if name == "nano" else Path(name), weights)
    if name == "smollm2" or kind == "file":
        from support.bases.gguf import converted, find_smollm2

        return converted(find_smollm2() if name == "smollm2" else Path(name))
    if name.startswith((".", "/")):  # no name on the hub does
        raise UserError(f"base model {name}: no such folder; give it with --gpt_variant")
    name = name.removeprefix(OWNER)
    if name not in HUB_VARIANTS and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"base model {name}: neither one of {', '.join(VARIANTS)}, nor OWNER/NAME on the hub, "
            "nor a folder or .gguf file here; give it with --gpt_variant"
        )
    from support.bases.hub import from_hub

    return from_hub(name, weights)
