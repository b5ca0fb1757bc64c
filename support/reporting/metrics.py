"""How good is a model, in numbers, in words, in `metrics.json` and in `history.csv`?"""

import csv
import math
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from support.errors import UserError
from support.files import read_bytes, read_json


def matthews_corrcoef(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation of two 0/1 arrays (Matthews 1975), CoLA's official metric.

    0 where either side has one class only, as scikit-learn has it.
    """
    tp = int(((predictions == 1) & (labels == 1)).sum())
    tn = int(((predictions == 0) & (labels == 0)).sum())
    fp = int(((predictions == 1) & (labels == 0)).sum())
    fn = int(((predictions == 0) & (labels == 1)).sum())
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def measure(logits: Tensor, labels: Tensor) -> dict[str, float | int]:
    """Loss (cross-entropy, nats), accuracy and MCC of logits (sentences, 2), and the counts."""
    predictions = logits.argmax(dim=1)
    correct = int((predictions == labels).sum())
    return {
        "sentences": len(labels),
        "acceptable": int((labels == 1).sum()),
        "predicted_acceptable": int((predictions == 1).sum()),
        "correct": correct,
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "accuracy": correct / len(labels),
        "mcc": matthews_corrcoef(labels.numpy(), predictions.numpy()),
    }


def describe(metrics: dict) -> str:
    """One line: accuracy, never without MCC and the majority baseline, and a one-class warning."""
    line = (
        f"accuracy {metrics['accuracy']:.2%} ({metrics['correct']} of {metrics['sentences']}), "
        f"MCC {metrics['mcc']:.3f}; majority baseline {majority(metrics):.2%}"
    )
    return line + one_class_note(metrics)


def majority(metrics: dict) -> float:
    """The accuracy of giving every sentence the more frequent label."""
    n, acceptable = metrics["sentences"], metrics["acceptable"]
    return max(acceptable, n - acceptable) / n


def summary(metrics: dict) -> str:
    """Accuracy and MCC in a few words, and whether they are of one answer to everything."""
    one_class = " (one class only)" if one_class_note(metrics) else ""
    return f"{metrics['accuracy']:.2%}, MCC {metrics['mcc']:.3f}{one_class}"


def one_class_note(metrics: dict) -> str:
    """A remark for a model that answers one class only; else nothing."""
    if metrics["predicted_acceptable"] not in (0, metrics["sentences"]):
        return ""
    answer = "acceptable" if metrics["predicted_acceptable"] else "unacceptable"
    return f'  <- answers "{answer}" to everything'


# ---------------------------------------------------------------------------------------------
# metrics.json

CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_mcc")
TEXT, COUNT, FRACTION = "text", "a count", "a number from -1 to 1"
SECONDS = "a number of seconds"
DEV_SET = {
    "sentences": COUNT, "acceptable": COUNT, "predicted_acceptable": COUNT, "correct": COUNT,
    "accuracy": FRACTION, "mcc": FRACTION,
}  # fmt: skip
SPLIT = {"sentences": COUNT}
CONTENT = {
    "mode": TEXT, "variant": TEXT, "sr_no": COUNT, "command": TEXT, "arguments": {},
    "parameters": {"total": COUNT, "trainable": COUNT}, "identity": {},
    "training": {"best_epoch": COUNT, "epochs": COUNT, "seconds": SECONDS},
    "data": {
        "name": TEXT, "folder": TEXT, "sha256": TEXT,
        "in_domain_train": SPLIT, "in_domain_dev": SPLIT, "out_of_domain_dev": SPLIT,
    },
    "base": {"name": TEXT}, "hardware": {}, "versions": {},
    "in_domain_dev": DEV_SET, "out_of_domain_dev": DEV_SET,
}  # fmt: skip


def read_metrics(folder: Path) -> dict:
    """Read a finished run's metrics.json, sure to hold what `CONTENT` says."""
    path = folder / "metrics.json"
    metrics = read_json(path)
    if fault := first_fault(metrics, CONTENT):
        raise UserError(f"{path}: broken ({fault}); run it again with --overwrite")
    return metrics


def first_fault(value: object, kind: str | dict, name: str = "") -> str:
    """What is wrong with a JSON value, or nothing."""
    is_number = type(value) in (int, float)
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return f"{name} is no object"
        faults = (
            first_fault(value.get(key), kind[key], f"{name}.{key}".strip(".")) for key in kind
        )
        return next(filter(None, faults), "")
    right = {
        TEXT: isinstance(value, str) and "\0" not in value,
        COUNT: type(value) is int and (value > 0 or not name.endswith("sentences")) and value >= 0,
        FRACTION: is_number and -1 <= value <= 1,
        SECONDS: is_number and 0 <= value < math.inf,
    }
    return "" if right[kind] else f"{name} is not {kind}: {value!r:.40}"


def show_run(folder: Path) -> None:
    """Print a finished run's results."""
    metrics = read_metrics(folder)
    training = metrics["training"]
    print(f"{folder}: kept epoch {training['best_epoch']} of {training['epochs']}")
    for name in ("in_domain_dev", "out_of_domain_dev"):
        print(f"  {name:<18} {describe(metrics[name])}")


# ---------------------------------------------------------------------------------------------
# history.csv


def read_history(folder: Path, best_epoch: int) -> dict[str, list[float]]:
    """The curves of a finished run, by column, a value an epoch; the epoch kept is among them."""
    path = folder / "history.csv"
    try:
        rows = list(csv.DictReader(read_bytes(path).decode().splitlines()))
        curves = {name: [float(row[name]) for row in rows] for name in ("epoch", *CURVES)}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: broken ({error!r}); run it again with --overwrite") from None
    if curves["epoch"] != list(range(1, len(rows) + 1)) or not 1 <= best_epoch <= len(rows):
        raise UserError(f"{path}: epochs are missing; run it again with --overwrite")
    return curves
