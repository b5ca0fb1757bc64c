"""Read and write LoRA adapters in PEFT's format, and tell which base each was trained on."""

from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from support.bases import Base, base_fingerprint, find_base
from support.checkpoints import peft_files
from support.checkpoints.peft_files import CONFIG, PREFIX, WEIGHTS
from support.errors import UserError
from support.fingerprints import tensors_fingerprint
from support.runs.folder import check_finished

write_adapter = peft_files.write_adapter


class SavedAdapter(NamedTuple):
    """An adapter as it was saved."""

    settings: dict
    base_name: str
    tensors: dict[str, Tensor]
    base_fingerprint: str | None


def read_adapter(folder: Path) -> SavedAdapter:
    check_finished(folder)
    return SavedAdapter(*peft_files.read_adapter(folder))


def adapter_fingerprint(tensors, base_fingerprint, scaling) -> str:
    named = {PREFIX + name: tensor for name, tensor in tensors.items()}
    return tensors_fingerprint(named, base_fingerprint + repr(scaling))


def find_own_base(saved: SavedAdapter, folder: Path, variant: str | None) -> tuple[Base, str]:
    if not (variant or saved.base_name):
        raise UserError(f"{folder / CONFIG} names no base model; give it with --gpt_variant")
    base = find_base(variant or saved.base_name)
    prints, trained_on = base_fingerprint(base.folder), saved.base_fingerprint
    if trained_on is None:  # PEFT's own files carry no fingerprint
        trained_on = prints.now
        if variant and saved.base_name and variant != saved.base_name:
            trained_on = base_fingerprint(find_base(saved.base_name).folder).now
    if trained_on not in prints:
        raise UserError(
            f"{folder} was trained on another base ({saved.base_name}, {trained_on[:12]}) than "
            f"{base.name} ({prints.now[:12]}); give its own with --gpt_variant"
        )
    return base, trained_on


def teacher_fingerprint(folder: Path, options: Namespace) -> str:
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
    trained_on = saved.base_fingerprint
    if trained_on is None:
        _, trained_on = find_own_base(saved, folder, options.gpt_variant)
    s = saved.settings
    scaling = s["lora_alpha"] / (s["r"] ** 0.5 if s["use_rslora"] else s["r"])
    return adapter_fingerprint(saved.tensors, trained_on, scaling)
