"""Read the settings of PEFT's adapters, and refuse by name what would change the numbers."""

import math
import re
from pathlib import Path

import regex

from support.errors import UserError
from support.files import read_json

SETTINGS = {  # of PEFT's LoraConfig, those that change the numbers
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


def read_settings(path: Path) -> tuple[dict, str]:
    """Return the ``SETTINGS`` of an adapter_config.json, and the base model that it names.

    A setting of PEFT's that is not supported here is refused by its name, since ignoring it would
    give other numbers.
    """
    entries = read_json(path)
    for key, value in entries.items():
        unset = value is None or value is False or value in ("", [], {})
        known = key in SETTINGS or key in HARMLESS or unset
        if not (value in ALLOWED[key] if key in ALLOWED else known):
            raise UserError(f"{path}: {key} = {value!r} is not supported here")
    # Older versions of PEFT do not write use_rslora.
    missing = sorted((SETTINGS | {"peft_type", "task_type"}) - entries.keys() - {"use_rslora"})
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing; not an adapter_config.json of PEFT's")
    settings = {"use_rslora": False, **{key: entries[key] for key in SETTINGS & entries.keys()}}
    for key, is_valid in VALID.items():
        if not is_valid(settings[key]):
            raise UserError(f"{path}: not a LoRA configuration ({key} = {settings[key]!r})")
    return settings, str(entries.get("base_model_name_or_path") or "")


def are_names(value: object) -> bool:
    """Return whether a JSON value is a list of strings."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_number(value: object, low: float, high: float) -> bool:
    """Return whether a JSON value is a number in [low, high]; true is an int to isinstance."""
    return type(value) in (int, float) and low <= value <= high


def is_pattern(value: object) -> bool:
    """Return whether a JSON value is a regular expression that does not exhaust the machine."""
    if not isinstance(value, str) or len(value) > 1000:
        return False
    if math.prod(max(int(count), 1) for count in re.findall(r"\d+(?=[,}])", value)) > 1000:
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
