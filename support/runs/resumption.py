"""Make a training resumable: it can be killed at any moment and goes on as if nothing had happened.

Batches and dropout depend on (sr_no, epoch, step) alone, and everything else that the next step
needs is in one file, `state.safetensors`, which is replaced whole.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from support.errors import UserError
from support.files import copy_tensors, read_tensors, write_csv, write_tensors
from support.runs.steps import StepLog

SAVE_EVERY = 300  # seconds between saves inside a long epoch


@dataclass
class Progress:
    """Where a run stands; with weights and Adam's moments, all that the next step depends on."""

    epoch: int = 0  # finished epochs
    steps: int = 0  # optimiser steps in all
    sentences: int = 0  # of the epoch under way, so far
    labelled: int = 0
    loss: float = 0.0  # the sum over these sentences
    correct: int = 0
    hint_loss: float = 0.0  # as `loss`: the weighted loss of hints, where there are some
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""  # why training ended: "epochs", "patience" or "max_steps"
    corpus: str = ""  # the fingerprint of what it trains on

    def means(self) -> dict[str, float]:
        """Return the means of the epoch's steps so far, and the MCC of the epoch before."""
        means = {
            "sentences/s": round(self.sentences / max(self.seconds, 1e-9), 1),
            "loss": self.loss / max(self.sentences, 1),
        }
        if self.hint_loss:
            means["hint_loss"] = self.hint_loss / self.sentences
        if self.history:
            means["val_mcc"] = self.history[-1]["val_mcc"]
        return means | {"accuracy": self.correct / max(self.labelled, 1)}

    def finish_epoch(self, row: dict, monitor: str) -> None:
        """Add an epoch's row to the history, choose the best epoch, and start the next one.

        Of equal epochs the first is the best; where ``monitor`` is "none" the last one is.
        """
        self.history.append(row)
        self.epoch = self.best_epoch = row["epoch"]
        if monitor != "none":
            watched = [past[f"val_{monitor}"] for past in self.history]
            self.best_epoch = watched.index(max(watched)) + 1
        self.sentences = self.labelled = self.correct = 0
        self.loss = self.hint_loss = self.seconds = 0.0

    def summary(self) -> dict:
        """Return what metrics.json says of the training."""
        return {
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "steps": self.steps,
            "seconds": round(sum(row["seconds"] for row in self.history), 3),
            "stopped": self.stopped,
        }


class SavedState:
    """What a training goes on from, in memory and in its folder's `state.safetensors`.

    The file has, for each trained parameter, weight.<name>, best.<name> (the best epoch's weight)
    and what Adam keeps: step.<name>, exp_avg.<name> and exp_avg_sq.<name>.
    """

    def __init__(
        self,
        folder: Path,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        corpus: str,
        tensorboard: bool = False,
    ):
        """Go on from the file, or start where there is none; ``corpus`` is a fingerprint."""
        self.path, self.parameters = folder / "state.safetensors", parameters
        self.best = {name: p.detach().clone() for name, p in parameters.items()}
        self.tensors: dict[str, Tensor] = {}
        for name, p in parameters.items():
            # As Adam makes them in its first step, but now, so that a file can be read into them.
            optimizer.state[p] = optimizer.state[p] or {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            entries = {"weight": p, "best": self.best[name], **optimizer.state[p]}
            self.tensors |= {f"{kind}.{name}": tensor for kind, tensor in entries.items()}
        self.progress, self.saved_at = Progress(corpus=corpus), time.monotonic()
        if self.path.exists():
            self.load(corpus)
        self.log = StepLog(folder, self.progress.steps, tensorboard)

    def load(self, corpus: str) -> None:
        """Restore everything from the file."""
        try:
            tensors, metadata = read_tensors(self.path)
            progress = Progress(**json.loads(metadata["progress"]))
            check_progress(progress)
        except (UserError, KeyError, TypeError, ValueError, RecursionError):
            raise UserError(
                f"{self.path}: not a state written by this project; delete it to start anew"
            ) from None
        if progress.corpus != corpus:
            raise UserError(
                f"{self.path}: saved while training on other sentences or hints; delete it"
            )
        copy_tensors(self.path, tensors, self.tensors)
        self.progress = progress

    def save(self) -> None:
        """Replace the file, and the tables; not where a weight is not finite."""
        progress = self.progress
        if not all(p.isfinite().all() for p in self.parameters.values()):
            raise diverged(f"the weights are not finite after step {progress.steps}")
        # Last the state: tables that a kill leaves ahead of it are cut when the run goes on.
        self.log.save()
        if progress.history:
            write_csv(self.path.with_name("history.csv"), progress.history)
        write_tensors(self.path, self.tensors, {"progress": json.dumps(asdict(progress))})
        self.saved_at = time.monotonic()

    def is_old(self) -> bool:
        """Return whether the last save was long ago."""
        return time.monotonic() - self.saved_at > SAVE_EVERY

    def keep_best(self) -> None:
        """Remember the weights as those of the best epoch."""
        copy_tensors(self.path, self.parameters, self.best)

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the model."""
        copy_tensors(self.path, self.best, self.parameters)


def check_progress(progress: Progress) -> None:
    """Raise KeyError, TypeError or ValueError for what no run can go on from."""
    for name, initial in asdict(Progress()).items():
        value = getattr(progress, name)
        if type(value) is not type(initial) or (isinstance(value, int) and value < 0):
            raise ValueError(f"{name} = {value!r}")
    for row in progress.history:
        sum(row[name] for name in ("val_accuracy", "val_mcc", "seconds"))  # if they are numbers


def check_finite(name: str, value: float, when: str) -> None:
    """Refuse a training that has left the finite numbers."""
    if not math.isfinite(value):
        raise diverged(f"{name} is {value} {when}")


def diverged(what: str) -> UserError:
    """Return the error for training that has left the finite numbers."""
    return UserError(
        f"{what}; lower --lr and add --overwrite (what was saved before is kept until then)"
    )
