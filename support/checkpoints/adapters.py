"""Read and write LoRA adapters in PEFT's format, and tell which base each was trained on."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora import CONFIG, PREFIX, WEIGHTS, LoraConfig, config_in
from support.bases import Base, base_fingerprint, find_base, load_backbone
from support.errors import UserError
from support.files import read_json, read_tensors, write_json, write_tensors
from support.fingerprints import tensors_fingerprint

BASE = "base_sha256"  # in the metadata
# What every version of PEFT writes, and what makes an adapter one of a classifier.
REQUIRED = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "modules_to_save", "peft_type",
    "task_type",
}  # fmt: skip
LARGEST = torch.finfo(torch.float32).max ** 0.5  # whose square fp32 still holds


class SavedAdapter(NamedTuple):
    """An adapter as it stands in its folder."""

    config: LoraConfig
    base_name: str  # as the adapter names its base; may be empty
    tensors: dict[str, Tensor]  # by the names of the model's parameters
    base_fingerprint: str | None  # None in PEFT's own files

    def fingerprint(self, base_fingerprint: str) -> str:
        """Return the fingerprint of base and adapter together."""
        named = {PREFIX + name: tensor for name, tensor in self.tensors.items()}
        return tensors_fingerprint(named, base_fingerprint, repr(self.config.scaling))


def write_adapter(
    folder: Path, settings: dict, tensors: dict[str, Tensor], base_name: str, fingerprint: str
) -> None:
    """Write an adapter as PEFT does, with its base's fingerprint in metadata that PEFT ignores."""
    kind = {"peft_type": "LORA", "task_type": "SEQ_CLS"}
    origin = {"base_model_name_or_path": base_name, "inference_mode": True}
    write_json(folder / CONFIG, {**kind, **origin, **settings})
    named = {PREFIX + name: tensor for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS, named, {BASE: fingerprint})


def read_adapter(folder: Path) -> SavedAdapter:
    """Read an adapter, ours or PEFT's."""
    config, base_name = read_config(folder / CONFIG)
    path = folder / WEIGHTS
    named, metadata = read_tensors(path)
    if "base_fingerprint" in metadata:
        raise UserError(f"{path}: an earlier version of this project wrote it; train it again")
    if PREFIX + "score.weight" not in named:
        raise UserError(
            f"{path}: no score.weight, the classifier's head; train it with "
            'modules_to_save=["score"]'
        )
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    return SavedAdapter(config, base_name, tensors, metadata.get(BASE))


def read_config(path: Path) -> tuple[LoraConfig, str]:
    """Return the configuration in an adapter_config.json, and the base that it names.

    A setting of PEFT's that is not supported here is refused by its name, since ignoring it would
    give other numbers. So is what no machine could compute.
    """
    entries = read_json(path)
    if missing := sorted(REQUIRED - entries.keys()):
        raise UserError(f"{path}: {missing[0]} is missing; not an adapter_config.json of PEFT's")
    if entries["task_type"] != "SEQ_CLS":
        raise UserError(f"{path}: task_type = {entries['task_type']!r} is not supported here")
    try:
        for key in ("r", "lora_alpha", "lora_dropout"):
            if isinstance(entries[key], int | float) and not abs(entries[key]) <= LARGEST:
                raise ValueError(f"{key} = {entries[key]!r}; it is too large for fp32")
        if isinstance(entries["target_modules"], str):
            from support.checkpoints.patterns import check_pattern

            check_pattern(entries["target_modules"])
        config = config_in(entries)
        if config.r < 1:
            raise ValueError(f"r = {config.r}; it is 1 or more")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return config, str(entries.get("base_model_name_or_path") or "")


def find_own_base(saved: SavedAdapter, folder: Path, variant: str | None) -> tuple[Base, str]:
    """Return the base for an adapter, and the fingerprint of the one that it was trained on.

    ``variant`` names a base; None takes the one that the adapter names. A name is all that PEFT's
    own files tell of theirs: it is loaded to be known.
    """
    if not (variant or saved.base_name):
        raise UserError(f"{folder / CONFIG} names no base model; give it with --gpt_variant")
    base, trained_on = find_base(variant or saved.base_name), saved.base_fingerprint
    if trained_on is None:
        own = find_base(saved.base_name) if saved.base_name else base
        trained_on = base_fingerprint(load_backbone(own.folder))
    return base, trained_on
