"""How does a saved LoRA adapter, ours or PEFT's, become a model again?"""

from pathlib import Path
from typing import NamedTuple

from lora import LoraConfig, add_lora, lora_tensors
from model import Classifier
from support.bases.loading import Base, base_folder, find_base, load_backbone
from support.checkpoints.peft_files import CONFIG, PREFIX, WEIGHTS, read_adapter
from support.errors import UserError
from support.files import copy_tensors
from support.fingerprints import backbone_fingerprint, tensors_fingerprint
from support.runs.folder import check_finished


class Adapter(NamedTuple):
    """A saved LoRA classifier in memory."""

    model: Classifier
    config: LoraConfig
    base: Base
    base_name: str  # as the adapter names it
    base_print: str  # fingerprint of the base weights
    fingerprint: str  # of base and adapter together


def load_adapter(folder: Path, variant: str | None = None) -> Adapter:
    """Load a saved LoRA classifier, unmerged, as it was when it was saved.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        variant: the base model; None takes the one that the adapter names.
    """
    check_finished(folder)
    settings, base_name, tensors, trained_on = read_adapter(folder)
    config = LoraConfig(**settings)
    if not (variant or base_name):
        raise UserError(f"{folder / CONFIG} names no base model; give it with --gpt_variant")
    base = find_base(variant or base_name)
    model = Classifier(load_backbone(base.folder))
    base_print = backbone_fingerprint(model.backbone)
    if trained_on is None:  # PEFT's own files carry no fingerprint
        trained_on = base_print
        if variant and base_name and variant != base_name:
            trained_on = backbone_fingerprint(load_backbone(base_folder(base_name)))
    if trained_on != base_print:
        raise UserError(
            f"{folder} was trained on another base ({base_name}, {trained_on[:12]}) than "
            f"{base.name} ({base_print[:12]}); give its own with --gpt_variant"
        )
    add_lora(model, config)
    copy_tensors(folder / WEIGHTS, tensors, lora_tensors(model))
    named = {PREFIX + name: tensor for name, tensor in tensors.items()}
    whole = tensors_fingerprint(named, base_print + repr(config.scaling))
    return Adapter(model, config, base, base_name, base_print, whole)
