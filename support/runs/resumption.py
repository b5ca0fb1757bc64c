"""Make a training resumable: it can be killed at any moment and goes on as if nothing had happened.

Batches and dropout depend on (sr_no, epoch, step) alone, and everything else that the next step
needs is in one file, `state.safetensors`, which is replaced whole.
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
from tqdm import tqdm

from support.errors import UserError
from support.files import copy_tensors, read_tensors, write_csv, write_tensors
from support.processes import any_process

SAVE_EVERY = 300  # seconds between saves inside a long epoch
READ_EVERY = {"cuda": 16}  # steps between looks at the losses on a GPU; 1 elsewhere


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

    def add(
        self, loss: float, correct: float, hint_loss: float, sentences: int, labelled: int
    ) -> None:
        """Count a finished step: its batch's mean losses, and its sentences."""
        if not math.isfinite(loss + hint_loss):
            raise diverged(f"the loss is {loss + hint_loss} at step {self.steps + 1}")
        self.loss += loss * sentences
        self.hint_loss += hint_loss * sentences
        self.correct += int(correct)
        self.sentences += sentences
        self.labelled += labelled
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Return losses and accuracy over the epoch under way, of the steps so far."""
        means = {
            "loss": self.loss / max(self.sentences, 1),
            "accuracy": self.correct / max(self.labelled, 1),
        }
        hints = {"hint_loss": self.hint_loss / max(self.sentences, 1)} if self.hint_loss else {}
        return means | hints

    def summary(self) -> dict:
        """Return what metrics.json says of the training."""
        return {
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "steps": self.steps,
            "seconds": round(sum(row["seconds"] for row in self.history), 3),
            "stopped": self.stopped,
        }

    def finish_epoch(self, row: dict, monitor: str) -> None:
        """Add an epoch's row to the history, choose the best epoch, and start the next one.

        Of equal epochs the first is the best; where ``monitor`` is "none" the last one is.
        """
        if not math.isfinite(row["val_loss"]):
            where = f"the loss on in_domain_dev is {row['val_loss']} after epoch {row['epoch']}"
            raise diverged(where)
        self.history.append(row)
        self.epoch = self.best_epoch = row["epoch"]
        if monitor != "none":
            watched = [past[f"val_{monitor}"] for past in self.history]
            self.best_epoch = watched.index(max(watched)) + 1
        self.sentences = self.labelled = self.correct = 0
        self.loss = self.hint_loss = self.seconds = 0.0


def diverged(what: str) -> UserError:
    """Return the error for training that has left the finite numbers."""
    return UserError(
        f"{what}; lower --lr and add --overwrite (what was saved before is kept until then)"
    )


class Session:
    """A training under way in a folder: its progress, and the file that it goes on from.

    The file has, for each trained parameter, weight.<name>, best.<name> (the best epoch's weight)
    and what Adam keeps: step.<name>, exp_avg.<name> and exp_avg_sq.<name>.
    """

    def __init__(
        self, folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ):
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
        self.progress = self.load()
        self.unread: list[tuple[Tensor, int, int]] = []  # results that a GPU still computes
        self.saved_at = self.began = time.monotonic()
        self.interruption = Interruption()

    @property
    def steps(self) -> int:
        """Return how many steps were taken."""
        return self.progress.steps + len(self.unread)

    # Inside an epoch

    @contextmanager
    def epoch(self, epochs: int, sentences: int) -> Iterator[tqdm]:
        """Show the epoch under way in a progress bar, and count its time."""
        self.began = time.monotonic()
        with tqdm(
            desc=f"epoch {self.progress.epoch + 1}/{epochs}",
            initial=self.progress.sentences,
            total=sentences,
            unit=" sentences",
            disable=None,
            leave=False,
        ) as bar:
            yield bar
            self.read_results(bar)

    def stepped(self, result: Tensor, sentences: int, labelled: int, bar: tqdm) -> None:
        """Note a step's results (3,), as `Progress.add` has them; save now and then, and at a stop.

        A GPU is waited for once in `READ_EVERY` steps, not at every one.
        """
        self.unread.append((result, sentences, labelled))
        stop = self.stop_requested()
        if stop or len(self.unread) == READ_EVERY.get(result.device.type, 1):
            self.read_results(bar)
            if stop or time.monotonic() - self.saved_at > SAVE_EVERY:
                self.save()
        if stop:
            raise KeyboardInterrupt

    def read_results(self, bar: tqdm) -> None:
        """Count the steps whose results nobody has read yet."""
        results = [(*result.tolist(), *counts) for result, *counts in self.unread]
        now = time.monotonic()
        self.progress.seconds += now - self.began
        self.began, self.unread = now, []
        for result in results:
            self.progress.add(*result)
        bar.set_postfix(self.progress.means(), refresh=False)
        bar.update(self.progress.sentences - bar.n)

    # Between epochs

    def finish_epoch(self, row: dict, monitor: str) -> None:
        """Note an epoch's row of the history; remember the weights if they are the best so far."""
        self.progress.finish_epoch(row, monitor)
        if self.progress.best_epoch == self.progress.epoch:
            copy_tensors(self.path, self.parameters, self.best)

    def stop_requested(self) -> bool:
        """Return whether the user has asked any process to stop."""
        return any_process(self.interruption.requested)

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the model."""
        copy_tensors(self.path, self.best, self.parameters)

    # The file

    def save(self) -> None:
        """Replace the file, and the history; not where a weight is not finite."""
        if not all(p.isfinite().all() for p in self.parameters.values()):
            raise diverged(f"the weights are not finite after step {self.progress.steps}")
        if self.progress.history:
            write_csv(self.path.with_name("history.csv"), self.progress.history)
        metadata = {"progress": json.dumps(asdict(self.progress))}
        write_tensors(self.path, self.tensors, metadata)
        self.saved_at = time.monotonic()

    def load(self) -> Progress:
        """Restore everything from the file; return a new run's progress where there is none."""
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


@contextmanager
def resumable(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, corpus: str
) -> Iterator[Session]:
    """Train in a folder from where its state stands; ``corpus`` is the data's fingerprint.

    SIGINT and SIGTERM are noted, and raise KeyboardInterrupt between two steps, the state saved.
    """
    session = Session(folder, parameters, optimizer)
    progress = session.progress
    if progress.corpus not in ("", corpus):
        raise UserError(
            f"{session.path}: saved while training on other sentences or hints; delete it"
        )
    progress.corpus = corpus
    if progress.steps:
        print(f"resuming after step {progress.steps}, in epoch {progress.epoch + 1}")
    with interruptible() as session.interruption:
        yield session


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
