"""What makes a run resumable?

Batches and dropout depend on (sr_no, epoch, step) alone, and everything else that the next step
needs is in one file, `state.safetensors`, which is replaced whole: a run can be killed at any
moment and goes on as if nothing had happened.
"""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from support.errors import UserError
from support.files import copy_tensors, read_tensors, write_tensors


@dataclass
class Progress:
    """Where a run stands; with weights and Adam's moments, all that the next step depends on."""

    epoch: int = 0  # finished epochs
    steps: int = 0  # optimiser steps in all
    sentences: int = 0  # of the epoch under way, so far
    labelled: int = 0
    loss: float = 0.0  # the sum over these sentences
    correct: int = 0
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""  # why training ended: "epochs", "patience" or "max_steps"
    corpus: str = ""  # the fingerprint of what it trains on

    def add(self, loss: float, correct: float, sentences: int, labelled: int) -> None:
        """Count a finished step: its batch's mean loss, and its sentences."""
        if not math.isfinite(loss):
            raise diverged(f"the loss is {loss} at step {self.steps + 1}")
        self.loss += loss * sentences
        self.correct += int(correct)
        self.sentences += sentences
        self.labelled += labelled
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Loss and accuracy over the epoch under way, of the steps so far."""
        return {
            "loss": self.loss / max(self.sentences, 1),
            "accuracy": self.correct / max(self.labelled, 1),
        }

    def summary(self) -> dict:
        """What metrics.json says of the training."""
        return {
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "steps": self.steps,
            "seconds": round(sum(row["seconds"] for row in self.history), 3),
            "stopped": self.stopped,
        }

    def start_epoch(self) -> None:
        """Set the sums of the epoch under way to zero."""
        self.sentences = self.labelled = self.correct = 0
        self.loss = self.seconds = 0.0


def diverged(what: str) -> UserError:
    """The error for training that has left the finite numbers."""
    return UserError(
        f"{what}; lower --lr and add --overwrite (what was saved before is kept until then)"
    )


class TrainState:
    """All tensors that a run goes on from, and the file that keeps them, with `Progress`.

    They are, for each trained parameter, weight.<name>, best.<name> (the best epoch's weight) and
    what Adam keeps: step.<name>, exp_avg.<name> and exp_avg_sq.<name>.
    """

    def __init__(
        self, path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ):
        self.path, self.parameters = path, parameters
        self.best = {name: p.detach().clone() for name, p in parameters.items()}
        self.tensors: dict[str, Tensor] = {}
        for name, p in parameters.items():
            # As Adam makes them in its first step, but now, so that a file can be read into them.
            optimizer.state[p] = optimizer.state[p] or {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            kept = {"weight": p, "best": self.best[name], **optimizer.state[p]}
            self.tensors |= {f"{kind}.{name}": tensor for kind, tensor in kept.items()}
        self.saved_at = time.monotonic()

    def keep_best(self) -> None:
        """Remember the weights as they are now."""
        copy_tensors(self.path, self.parameters, self.best)

    def restore_best(self) -> None:
        """Put the remembered weights back into the model."""
        copy_tensors(self.path, self.best, self.parameters)

    def save(self, progress: Progress) -> None:
        """Replace the file, unless a weight is not finite."""
        if not all(p.isfinite().all() for p in self.parameters.values()):
            raise diverged(f"the weights are not finite after step {progress.steps}")
        write_tensors(self.path, self.tensors, {"progress": json.dumps(asdict(progress))})
        self.saved_at = time.monotonic()

    def load(self) -> Progress:
        """Restore everything from the file; a new run's progress where there is none."""
        if not self.path.exists():
            return Progress()
        try:
            tensors, metadata = read_tensors(self.path)
            progress = Progress(**json.loads(metadata["progress"]))
            check_progress(progress)
        except (UserError, KeyError, TypeError, ValueError, RecursionError):
            raise UserError(
                f"{self.path}: not a state written by this project; delete it to start anew"
            ) from None
        copy_tensors(self.path, tensors, self.tensors)
        return progress


def check_progress(progress: Progress) -> None:
    """Raise KeyError, TypeError or ValueError for what no run can go on from."""
    for name, initial in asdict(Progress()).items():
        value = getattr(progress, name)
        if type(value) is not type(initial) or (isinstance(value, int) and value < 0):
            raise ValueError(f"{name} = {value!r}")
    for row in progress.history:
        sum(row[name] for name in ("val_accuracy", "val_mcc", "seconds"))  # if they are numbers


class Interruption:
    """Whether the user has asked this process to stop, so that no step is cut in two."""

    requested = False
    by_keyboard = False

    def note(self, number: int, frame: object) -> None:
        """Handle a signal. A second SIGINT interrupts at once, without saving.

        SIGTERM never does: torchrun sends one right after the first SIGINT.
        """
        if number == signal.SIGINT and self.by_keyboard:
            raise KeyboardInterrupt
        self.requested = True
        self.by_keyboard = self.by_keyboard or number == signal.SIGINT


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Have SIGINT and SIGTERM noted, to be looked at between two steps."""
    interruption = Interruption()
    previous = {n: signal.signal(n, interruption.note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
