"""Tell whether a folder has all that a base needs."""

from pathlib import Path

from support.bases.tokens import TOKENIZER
from support.errors import UserError
from support.files import read_json


def check_folder(folder: Path, weights: bool) -> Path:
    """Return a folder that has all that a base needs."""
    read_json(folder / "config.json")
    names = {path.name for path in folder.iterdir()}
    for file in ("vocab.json", "merges.txt"):
        if not {file, TOKENIZER, "tokenizer.model"} & names:
            raise UserError(f"{folder / file}: no such file; the folder lacks its tokenizer")
    if weights and not {"model.safetensors", "model.safetensors.index.json"} & names:
        raise UserError(
            f"{folder / 'model.safetensors'}: no such file; only safetensors are read: save the "
            "model with save_pretrained(..., safe_serialization=True)"
        )
    return folder
