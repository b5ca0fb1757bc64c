"""How good is a model, in numbers and in words, and what do a run's own files say of it?"""

from collections.abc import Container, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from support.corpus import DEV, OUT_OF_DOMAIN, SPLITS
from support.decisions import SOFTMAX, Decision, margins_of
from support.errors import UserError, first_line
from support.files import read_bytes, read_json
from support.sentences import COLA_CLASSES, are_classes

if TYPE_CHECKING:
    import pandas as pd

DEV_SETS = (DEV, OUT_OF_DOMAIN)
HISTORY = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_mcc"]
COUNTS = ("sentences", "acceptable", "predicted_acceptable", "correct")


def dev_sets_of(splits: Container[str]) -> list[str]:
    """Return which dev sets a corpus has, or the results of a run on it: the second is optional."""
    return [split for split in DEV_SETS if split in splits]


def classes_of(metrics: dict) -> tuple[str, ...]:
    """Return the names of label 0 and label 1: CoLA's where a run has none."""
    return tuple(metrics["data"].get("classes") or COLA_CLASSES)


def matthews_corrcoef(labels: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return the Matthews correlation of 0/1 arrays (..., sentences) along their last axis.

    CoLA's official metric (Matthews 1975). 0 where either side has one class only, as scikit-learn
    has it.
    """
    n, true, given = labels.shape[-1], labels.sum(axis=-1), answers.sum(axis=-1)
    squared = 1.0 * true * (n - true) * given * (n - given)  # in integers it could overflow
    covariance = n * (labels * answers).sum(axis=-1) - true * given
    return covariance / np.sqrt(np.where(squared, squared, np.inf))


def measure(logits: Tensor, labels: Tensor, decision: Decision = SOFTMAX) -> dict[str, float | int]:
    """Return loss (cross-entropy, nats), accuracy, MCC and counts of logits (sentences, 2).

    The loss is of the logits; all else is of the answers that ``decision`` makes of them.
    """
    answers = decision.answers(margins_of(logits))
    correct = int((answers == labels.numpy()).sum())
    return {
        "sentences": len(labels),
        "acceptable": int((labels == 1).sum()),
        "predicted_acceptable": int(answers.sum()),
        "correct": correct,
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "accuracy": correct / len(labels),
        "mcc": float(matthews_corrcoef(labels.numpy(), answers)),
    }


def majority(sentences: int, acceptable: int) -> float:
    """Return the accuracy of giving every sentence the more frequent label."""
    return max(acceptable, sentences - acceptable) / sentences


def describe(metrics: dict, classes: Sequence[str] = COLA_CLASSES) -> str:
    """Return accuracy, MCC and the majority baseline in a line, with `one_class_note`."""
    baseline = majority(metrics["sentences"], metrics["acceptable"])
    return (
        f"accuracy {metrics['accuracy']:.2%} ({metrics['correct']} of {metrics['sentences']}), MCC "
        f"{metrics['mcc']:.3f}; majority baseline {baseline:.2%}{one_class_note(metrics, classes)}"
    )


def describe_epoch(row: dict, epochs: int) -> str:
    """Return a row of history.csv in a line."""
    hints = f"hint loss {row['hint_loss']:.4f} " if "hint_loss" in row else ""
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.4f} {hints}"
        f"accuracy {row['train_accuracy']:.2%}  |  {row['seconds']:.1f} s  |  "
        f"{DEV} loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.2%} "
        f"MCC {row['val_mcc']:.3f}"
    )


def summary(metrics: dict) -> str:
    """Return accuracy and MCC in a few words."""
    remark = one_class_remark([one_class(metrics)])
    return f"{metrics['accuracy']:.2%}, MCC {metrics['mcc']:.3f}{remark}"


def cut(name: str) -> str:
    """Return a name cut in its middle to what a table has room for."""
    return name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"


def one_class(metrics: dict) -> bool:
    """Return whether a model answers one class only."""
    return metrics["predicted_acceptable"] in (0, metrics["sentences"])


def one_class_remark(runs: list[bool]) -> str:
    """Return what stands beside figures of runs, of which those that are true answer one class."""
    if not any(runs):
        return ""
    return (
        f" (one class only: {sum(runs)} of {len(runs)})" if len(runs) > 1 else " (one class only)"
    )


def one_class_note(metrics: dict, classes: Sequence[str] = COLA_CLASSES) -> str:
    """Return a remark for a model that answers one class only; else nothing."""
    if not one_class(metrics):
        return ""
    return f'  <- answers "{classes[metrics["predicted_acceptable"] > 0]}" to everything'


# ---------------------------------------------------------------------------------------------
# A run's own files

CHECKS = {
    "text": lambda value: isinstance(value, str) and "\0" not in value,
    "an object": lambda value: isinstance(value, dict),
    "a count": lambda value: type(value) is int and 0 <= value < 2**63,
    "a positive count": lambda value: type(value) is int and 0 < value < 2**63,
    "a number of seconds": lambda value: type(value) in (int, float) and 0 <= value < 2**63,
    "a number from -1 to 1": lambda value: type(value) in (int, float) and -1 <= value <= 1,
    "two names": lambda value: isinstance(value, list) and are_classes(value),
}
CONTENT = {  # names in metrics.json by what they are; those with ? may be missing
    "text": "mode variant command base.name data.name data.folder data.sha256 adapter?"
    " data.columns.text? data.columns.label? data.columns.positive?",
    "an object": "arguments identity teacher? data.files? data.columns?",
    "a count": "sr_no parameters.total parameters.trainable training.epochs training.best_epoch "
    "training.steps arguments.held_out? arguments.transfer_size? "
    "data.in_domain_train.tokens? "
    + " ".join(f"{split}.{name}" for split in DEV_SETS for name in COUNTS[1:]),
    "a positive count": " ".join(f"data.{split}.sentences" for split in SPLITS)
    + " in_domain_dev.sentences out_of_domain_dev.sentences",
    "a number of seconds": "training.seconds",
    "a number from -1 to 1": " ".join(f"{split}.accuracy {split}.mcc" for split in DEV_SETS),
    "two names": "data.classes?",
}


def read_metrics(folder: Path) -> dict:
    """Read a finished run's metrics.json; what `CONTENT` names is there, and possible.

    out_of_domain_dev is there as data and as results, or as neither.
    """
    path = folder / "metrics.json"
    metrics = read_json(path)
    data = metrics["data"] if isinstance(metrics.get("data"), dict) else {}
    one_dev_set = OUT_OF_DOMAIN not in metrics and OUT_OF_DOMAIN not in data
    for kind, names in CONTENT.items():
        for name in names.split():
            if one_dev_set and OUT_OF_DOMAIN in name:
                continue
            value: Any = metrics
            for key in name.rstrip("?").split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if not (CHECKS[kind](value) or (value is None and name.endswith("?"))):
                raise broken(path, f"{name.rstrip('?')} is not {kind}: {value!r:.40}")
    return metrics


def read_history(folder: Path, best_epoch: int) -> "pd.DataFrame":
    """Read history.csv: a row an epoch, from the first; ``best_epoch`` is among them."""
    table = read_table(path := folder / "history.csv", HISTORY, [])
    n = len(table)
    if table["epoch"].tolist() != [*range(1, n + 1)] or not 1 <= best_epoch <= n:
        raise broken(path, "epochs are missing")
    return table


def read_table(path: Path, numbers: list[str], texts: list[str]) -> "pd.DataFrame":
    """Read columns of a CSV file, finite numbers and texts."""
    import pandas as pd

    columns = [*numbers, *texts]
    try:
        content = BytesIO(read_bytes(path))
        table = pd.read_csv(content, usecols=columns, dtype=str, keep_default_na=False)
        table[numbers] = table[numbers].astype(float)  # every digit counts
        if not np.isfinite(table[numbers].to_numpy()).all():
            raise ValueError("a number is missing or not finite")
    except ValueError as error:  # as are all of pandas' own
        raise broken(path, first_line(error)) from None
    return table


def broken(path: Path, fault: str) -> UserError:
    """Return the error for a file that a run has not written so."""
    return UserError(f"{path}: broken ({fault}); run it again with --overwrite")


def show_run(folder: Path) -> None:
    """Print a finished run's results."""
    metrics = read_metrics(folder)
    training = metrics["training"]
    print(f"{folder}: kept epoch {training['best_epoch']} of {training['epochs']}")
    for name in dev_sets_of(metrics):
        print(f"  {name:<18} {describe(metrics[name], classes_of(metrics))}")
