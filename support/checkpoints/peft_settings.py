"""Read the settings of PEFT's adapters, and refuse by name what would change the numbers."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import regex

from lora import config_in
from support.errors import UserError
from support.files import read_json

# What every version of PEFT writes, and what makes an adapter one of a classifier.
REQUIRED = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "modules_to_save", "peft_type",
    "task_type",
}  # fmt: skip


def read_settings(path: Path) -> tuple[dict, str]:
    """Return the fields of `LoraConfig` in an adapter_config.json, and the base that it names.

    A setting of PEFT's that is not supported here is refused by its name, since ignoring it would
    give other numbers.
    """
    entries = read_json(path)
    for key, is_valid in VALID.items():
        if key in entries and not is_valid(entries[key]):
            raise UserError(f"{path}: not a LoRA configuration ({key} = {entries[key]!r})")
    try:
        settings = asdict(config_in(entries))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if missing := sorted(REQUIRED - entries.keys()):
        raise UserError(f"{path}: {missing[0]} is missing; not an adapter_config.json of PEFT's")
    if entries["task_type"] != "SEQ_CLS":
        raise UserError(f"{path}: task_type = {entries['task_type']!r} is not supported here")
    return settings, str(entries.get("base_model_name_or_path") or "")


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a regular expression matches whole.

    It may come from a downloaded file and take forever, so each name is given a tenth of a second.
    """
    try:
        return [name for name in names if regex.fullmatch(pattern, name, timeout=0.1)]
    except TimeoutError:
        raise UserError(f"LoRA: target_modules, {pattern!r}, takes too long to match") from None


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
    "bias": lambda value: value in ("none", "lora_only", "all"),
    "modules_to_save": lambda value: value is None or are_names(value),
}
