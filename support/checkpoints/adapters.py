"""Read and write LoRA adapters in PEFT's format, and tell which base each was trained on."""

from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lora import CONFIG, PREFIX, WEIGHTS, LoraConfig
from support.bases import Base, base_fingerprint, find_base
from support.errors import UserError
from support.files import read_tensors, write_json, write_tensors
from support.fingerprints import tensors_fingerprint
from support.runs import check_finished

BASE, EARLIER = "base_sha256", "base_fingerprint"  # in the metadata; the second by another rule


class SavedAdapter(NamedTuple):
    """An adapter as it stands in its folder."""

    settings: dict  # the fields of `LoraConfig`
    base_name: str  # as the adapter names its base; may be empty
    tensors: dict[str, Tensor]  # by the names of the model's parameters
    base_fingerprint: str | None  # None in PEFT's own files


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
    """Read an adapter, ours or PEFT's, of a finished run."""
    from support.checkpoints.peft_settings import read_settings

    check_finished(folder)
    settings, base_name = read_settings(folder / CONFIG)
    path = folder / WEIGHTS
    named, metadata = read_tensors(path)
    if EARLIER in metadata:
        raise UserError(
            f"{path}: an earlier version of this project wrote it, and told its base by another "
            "rule; train it again, or use it with that version"
        )
    if PREFIX + "score.weight" not in named:
        raise UserError(
            f"{path}: no score.weight, the classifier's head; train it with "
            'modules_to_save=["score"]'
        )
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    return SavedAdapter(settings, base_name, tensors, metadata.get(BASE))


# ---------------------------------------------------------------------------------------------
# Fingerprints: whose base, whose teacher


def adapter_fingerprint(tensors: dict[str, Tensor], base_fingerprint: str, settings: dict) -> str:
    """Return the fingerprint of base and adapter together."""
    named = {PREFIX + name: tensor for name, tensor in tensors.items()}
    return tensors_fingerprint(named, base_fingerprint, repr(LoraConfig(**settings).scaling))


def find_own_base(saved: SavedAdapter, folder: Path, variant: str | None) -> tuple[Base, str]:
    """Return the base for an adapter, and the fingerprint of the one that it was trained on.

    ``variant`` names a base; None takes the one that the adapter names. Another base is refused.
    """
    if not (variant or saved.base_name):
        raise UserError(f"{folder / CONFIG} names no base model; give it with --gpt_variant")
    base = find_base(variant or saved.base_name)
    here, trained_on = base_fingerprint(base.folder), saved.base_fingerprint
    if trained_on is None:  # then its name is all that PEFT's own files tell of it
        named = saved.base_name or base.name
        trained_on = here if named == base.name else base_fingerprint(find_base(named).folder)
    if trained_on != here:
        raise UserError(
            f"{folder} was trained on another base ({saved.base_name}, {trained_on[:12]}) than "
            f"{base.name} ({here[:12]}); give its own with --gpt_variant"
        )
    return base, trained_on


def teacher_fingerprint(folder: Path, options: Namespace) -> str:
    """Return the fingerprint of a run's teacher, without loading its base where its files tell."""
    if not (folder / CONFIG).exists():
        check_finished(folder)
        advice = "--teacher wants the folder of a LoRA run"
        if not options.teacher:
            advice = (
                f"run: python run.py --mode LoRA --gpt_variant {options.gpt_variant} "
                f"--sr_no {options.sr_no} --out_dir {options.out_dir}, or name one with --teacher"
            )
        raise UserError(f"{folder}: no teacher there; {advice}")
    saved = read_adapter(folder)
    trained_on = saved.base_fingerprint or find_own_base(saved, folder, options.gpt_variant)[1]
    return adapter_fingerprint(saved.tensors, trained_on, saved.settings)
