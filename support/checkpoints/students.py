"""Read and write students, and tell what a checkpoint's folder holds."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from support import PROJECT
from support.bases import Base, save_tokenizer
from support.checkpoints.adapters import CONFIG as ADAPTER_CONFIG
from support.decisions import SOFTMAX, Decision
from support.errors import UserError
from support.files import read_json, read_tensors, write_json, write_tensors
from support.options import RULES
from support.reporting import read_metrics
from support.runs import check_finished
from support.runs.folder import METRICS

STUDENT = "distil_rnn"  # the model_type in a student's config.json
SCALE = ".scale"  # after a matrix's name: that of its scales (rows, groups), if it has some
MODELS = PROJECT / "results" / "models"
SHIPPED = {"student": "distil_smollm2_22915", "smollm2": "LoRA_smollm2_22915"}
SHOWN = 4  # checkpoints below a folder that is none


def save_student(model: nn.Module, base: Base, folder: Path, decision: Decision = SOFTMAX) -> None:
    """Write a student with its base's tokenizer: the folder is complete by itself."""
    save_tokenizer(base.tokenizer, base.folder, folder)
    config = {"model_type": STUDENT, "cell": model.cell, "n_positions": base.max_length}
    rule = {"threshold": decision.rule} if decision.thresholds else {}
    write_json(folder / "config.json", config | rule | decision.entries())
    write_tensors(folder / "model.safetensors", model.state_dict(), {})


def read_student(folder: Path) -> tuple[dict[str, Tensor], str, int]:
    """Read a student's tensors, whose sizes agree with each other, its cell and its layers."""
    path = folder / "model.safetensors"
    try:
        tensors = expand(read_tensors(path)[0])
    except ValueError as error:
        raise UserError(f"{path}: its scales do not fit ({error}); restore it") from None
    cell = read_json(folder / "config.json").get("cell", "rnn")  # once, there was no other
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"{path}: numbers that are not finite; restore it, or train it again")
    # What the file has bounds what is allocated for it, also for a file that lies.
    sizes = ("vocabulary", "rnn.weight_hh_l0", "embedding.weight")
    match [tuple(tensors[name].shape) for name in sizes if name in tensors]:
        case [(rows,), (gates, width), embedding] if rows * width and gates % width == 0:
            vocabulary = tensors["vocabulary"]
            rising = vocabulary.dtype == torch.long and bool(vocabulary.diff().gt(0).all())
            whole = rising and embedding == (rows + 1, width)
        case _:
            whole = False
    if not whole:
        raise UserError(f"{path}: not the weights of a student; train it again with --overwrite")
    alike = (t.shape == (gates, width) for n, t in tensors.items() if "weight_hh_l" in n)
    return tensors, cell, sum(alike)


def expand(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in fp32, with no scales; what was stored without one stays as it is.

    A matrix with a scale is in one byte a number (int8), or in half a byte (uint8): 1 to 15 for -7
    to 7. A group of neighbours in a row shares a scale: number = scale * integer. Raises ValueError
    where the two do not fit.
    """
    expanded = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    if lost := {name.removesuffix(SCALE) for name in tensors} - expanded.keys():
        raise ValueError(f"{lost.pop()}: a scale and no matrix")
    for name, whole in expanded.items():
        scale = tensors.get(name + SCALE)
        if (scale is not None) != (whole.dtype in (torch.int8, torch.uint8)):
            raise ValueError(f"{name}: {whole.dtype} with{'out' * (scale is None)} a scale")
        if scale is None:
            continue
        if whole.ndim != 2 or scale.ndim != 2 or len(whole) != len(scale) or not scale.numel():
            raise ValueError(f"{name}: {tuple(whole.shape)} with scales of {tuple(scale.shape)}")
        if whole.dtype == torch.uint8:
            whole = torch.stack([whole & 15, whole >> 4], dim=2).flatten(1).to(torch.int8) - 8
        numbers = whole.float()
        if numbers.shape[1] % scale.shape[1]:
            raise ValueError(f"{name}: {scale.shape[1]} scales for {numbers.shape[1]} numbers")
        numbers.unflatten(1, (scale.shape[1], -1)).mul_(scale.float().unsqueeze(2))
        expanded[name] = numbers
    return expanded


def read_max_length(folder: Path) -> int:
    """Return the most tokens of a sentence that a student takes."""
    path = folder / "config.json"
    max_length = read_json(path).get("n_positions")
    if type(max_length) is not int:
        raise UserError(f"{path}: n_positions = {max_length!r}")
    return max_length


def read_decision(folder: Path) -> Decision:
    """Return where a student decides."""
    config = read_json(path := folder / "config.json")
    try:
        return decision_of(config, config.get("threshold"))
    except ValueError as error:
        raise UserError(f"{path}: {error}; restore it, or train it again") from None


def decision_of(entries: dict[str, Any], rule: Any) -> Decision:
    """Return the decision of a JSON object's entries, as `Decision.entries` gives them, or none.

    Raises ValueError, with what is wrong, for any but finite numbers, and for an unknown rule.
    """
    if entries.get("thresholds") is None:
        return SOFTMAX
    if rule not in RULES:
        raise ValueError(f"threshold is {rule!r:.40}, not {' or '.join(RULES)}")
    for part, names in (("thresholds", RULES), ("calibration", ("slope", "intercept"))):
        for name in names:
            value = entries[part].get(name) if isinstance(entries.get(part), dict) else None
            if type(value) not in (int, float) or not abs(value) < 1e30:
                raise ValueError(f"{part}.{name} is not a number: {value!r:.40}")
    calibration = entries["calibration"]
    if calibration["slope"] <= 0:
        raise ValueError("calibration.slope is not above 0")
    thresholds = {name: entries["thresholds"][name] for name in RULES}
    return Decision(rule, thresholds, calibration["slope"], calibration["intercept"])


def checkpoint_folder(path: Path) -> Path:
    """Return a checkpoint's folder: the path, or that of a model that ships by its name."""
    shipped = str(path) in SHIPPED and not path.exists()
    return MODELS / SHIPPED[str(path)] if shipped else path


def read_metrics_if_any(folder: Path) -> dict[str, Any]:
    """Return what a run's metrics.json says; an adapter of PEFT's own has none."""
    return read_metrics(folder) if (folder / METRICS).exists() else {"data": {}}


def kind_of(folder: Path) -> str:
    """Return what a checkpoint's folder holds, of a finished run: "adapter" or "student"."""
    check_finished(folder)
    if (folder / ADAPTER_CONFIG).exists():
        return "adapter"
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such checkpoint folder; --mode LoRA, rnn or distil make one, and "
            f"{' and '.join(SHIPPED)} are names of those that ship"
        )
    path = folder / "config.json"
    if path.exists() and read_json(path).get("model_type") == STUDENT:
        return "student"
    marks = [*folder.glob("*/metrics.json"), *folder.glob("checkpoints/*/metrics.json")]
    names = sorted(str(mark.parent) for mark in marks)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    below = f"; below it are {', '.join(names[:SHOWN])}{more}" if names else ""
    raise UserError(
        f"{folder}: neither a LoRA adapter ({ADAPTER_CONFIG}) nor a student (config.json with "
        f"model_type {STUDENT}){below}"
    )
