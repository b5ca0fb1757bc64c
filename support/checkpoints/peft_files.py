"""What does PEFT write for an adapter, and which of its settings are understood here?"""

import math
from pathlib import Path

import regex
from torch import Tensor

from support.errors import UserError
from support.files import read_json, read_tensors, write_json, write_tensors

PREFIX = "base_model.model."  # before every tensor's name
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SETTINGS = {  # of PEFT's LoraConfig, those that decide the numbers
    "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "bias", "modules_to_save",
    "fan_in_fan_out",
}  # fmt: skip
ALLOWED = {
    "peft_type": ("LORA",),
    "task_type": ("SEQ_CLS",),
    "bias": ("none", "lora_only"),
    "init_lora_weights": (True, False, "gaussian"),  # others change the base weights too
    "revision": (None, "main"),  # of the base, whose newest files are taken here
}
HARMLESS = {  # they steer training or serving, not what a trained adapter computes
    "auto_mapping", "base_model_name_or_path", "inference_mode", "layers_pattern",
    "megatron_core", "peft_version", "qalora_group_size", "runtime_config",
}  # fmt: skip


def write_adapter(
    folder: Path, settings: dict, tensors: dict[str, Tensor], base: str, fingerprint: str
) -> None:
    """Write an adapter as PEFT does.

    Args:
        folder: where to.
        settings: the ``SETTINGS``.
        tensors: by the names of the model's parameters.
        base: the base model as the user named it.
        fingerprint: of the base weights, for the file's metadata, which PEFT ignores.
    """
    kind = {"peft_type": "LORA", "task_type": "SEQ_CLS"}
    origin = {"base_model_name_or_path": base, "inference_mode": True}
    write_json(folder / CONFIG, {**kind, **origin, **settings})
    named = {PREFIX + name: tensor for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS, named, {"base_fingerprint": fingerprint})


def read_adapter(folder: Path) -> tuple[dict, str, dict[str, Tensor], str | None]:
    """Read an adapter, ours or PEFT's: what `write_adapter` was given.

    The fingerprint is None in PEFT's own files.
    """
    settings, base = read_settings(folder / CONFIG)
    path = folder / WEIGHTS
    named, metadata = read_tensors(path)
    if PREFIX + "score.weight" not in named:
        raise UserError(
            f"{path}: no score.weight, the classifier's head; train it with "
            'modules_to_save=["score"]'
        )
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    return settings, base, tensors, metadata.get("base_fingerprint")


def read_settings(path: Path) -> tuple[dict, str]:
    """The ``SETTINGS`` of an adapter_config.json, and the base model that it names.

    A setting of PEFT's that is not supported here is refused by its name, since ignoring it would
    give other numbers.
    """
    found = read_json(path)
    for key, value in found.items():
        unset = value is None or value is False or value in ("", [], {})
        known = key in SETTINGS or key in HARMLESS or unset
        if not (value in ALLOWED[key] if key in ALLOWED else known):
            raise UserError(f"{path}: {key} = {value!r} is not supported here")
    # Older versions of PEFT do not write use_rslora.
    missing = sorted((SETTINGS | {"peft_type", "task_type"}) - found.keys() - {"use_rslora"})
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing; not an adapter_config.json of PEFT's")
    settings = {"use_rslora": False, **{key: found[key] for key in SETTINGS & found.keys()}}
    for key, is_valid in VALID.items():
        if not is_valid(settings[key]):
            raise UserError(f"{path}: not a LoRA configuration ({key} = {settings[key]!r})")
    return settings, str(found.get("base_model_name_or_path") or "")


def are_names(value: object) -> bool:
    """Whether a JSON value is a list of strings."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_number(value: object, low: float, high: float) -> bool:
    """Whether a JSON value is a number within bounds; JSON's true is an int to isinstance."""
    return type(value) in (int, float) and low <= value <= high


def is_pattern(value: object) -> bool:
    """Whether a JSON value is a regular expression that is not made to exhaust the machine."""
    if not isinstance(value, str) or len(value) > 1000:
        return False
    if math.prod(max(int(count), 1) for count in regex.findall(r"\d+(?=[,}])", value)) > 1000:
        return False  # counted repeats within each other are written out when they are compiled
    try:
        return bool(regex.compile(value))
    except (regex.error, RecursionError):
        return False


LARGEST = math.sqrt(float.fromhex("0x1.fffffep+127"))  # whose square fp32 still holds
VALID = {
    "r": lambda value: type(value) is int and value >= 1,
    "lora_alpha": lambda value: is_number(value, -LARGEST, LARGEST),
    "lora_dropout": lambda value: is_number(value, 0, 1),
    "use_rslora": lambda value: type(value) is bool,
    "target_modules": lambda value: are_names(value) or is_pattern(value),
    "modules_to_save": lambda value: value is None or are_names(value),
}
