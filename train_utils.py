"""The one training loop, evaluation, metrics, and what a run keeps on disk.

A run can be killed at any moment and goes on as if nothing had happened: batches and dropout
depend on (sr_no, epoch, step) alone, and everything else that the next step needs is in one file,
`state.safetensors`, which is replaced whole. `metrics.json` is written last and marks a finished
run.

Several processes started by torchrun train one model: each takes every n-th sentence of a batch
and computes its part of the batch's mean loss; the sum of their gradients is that of one process.
"""

import ctypes
import json
import math
import os
import platform
import shutil
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from data_utils import (
    DEV,
    OUT_OF_DOMAIN,
    PROJECT,
    TRAIN,
    UNLABELLED,
    Batch,
    Split,
    UserError,
    by_prefix,
    corpus_fingerprint,
    pack,
    read_bytes,
    shuffled,
    within_budget,
)
from model import GPT2Classifier, variant_name

MAX_TOKENS = 2048  # of one forward pass; a larger batch is split and its gradients accumulate
SAVE_EVERY = 300  # seconds between saves inside a long epoch
READ_EVERY = {"cuda": 16}  # steps between looks at the losses on a GPU; 1 elsewhere


# ---------------------------------------------------------------------------------------------
# One process, or several as torchrun starts them


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, if it did; all but the main one fall silent."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group()  # Gloo for tensors on the CPU, NCCL for those on GPUs
    try:
        if is_main():
            yield
        else:
            with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
                yield
    finally:
        dist.destroy_process_group()


def rank_and_processes() -> tuple[int, int]:
    """This process' number and how many there are; (0, 1) where there is one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank_and_processes()[0] == 0


def sum_over_processes(*tensors: Tensor) -> None:
    """Replace each tensor, in place, by its sum over all processes, in one exchange."""
    if dist.is_initialized():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def any_process(value: bool) -> bool:
    """Whether ``value`` is true in any process. Every process must ask: all wait for each other."""
    total = torch.tensor([float(value)])
    sum_over_processes(total)
    return bool(total)


# ---------------------------------------------------------------------------------------------
# Files, replaced whole or not at all


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: beside it, fsync, rename. A crash leaves the old or the new one.

    Of several processes only the main one writes.
    """
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:  # writing and fsync do not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def write_files(folder: Path, save: Callable[[Path], object]) -> None:
    """Have ``save`` write files somewhere, and put each into ``folder``, whole or not at all.

    For libraries that write by themselves. What a crash leaves is cleared by the next call.
    """
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(partial)
    for path in sorted(partial.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, folder / path.name)
    partial.rmdir()


def write_json(path: Path, value: dict) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write CSV atomically; floats with every digit, so that reading gives the same bits back."""
    write_bytes(path, pd.DataFrame(rows).to_csv(index=False).encode())


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        UserError: naming the file, where it is missing or broken.
    """
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON ({error}); delete it or restore it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; delete it or restore it")
    return value


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write safetensors atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors writes several entries of metadata in no fixed order. What a run leaves behind
    # has one, and the same bytes each time; its state, which is deleted at the end, has two.
    write_bytes(path, safetensors.torch.save(tensors, metadata or {"format": "pt"}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read safetensors and their metadata.

    Raises:
        UserError: naming the file, where it is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            # Copied, since the file may be replaced while a mapped tensor still points into it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: truncated or not a safetensors file ({error}); restore it or train again "
            "with --overwrite"
        ) from None


def check_tensors(path: Path, source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Compare the tensors of a file with those of a model, by name and shape.

    Raises:
        UserError: naming ``path`` and the tensor, where they do not agree.
    """
    for name in sorted(source.keys() | target.keys()):
        if name not in source:
            raise UserError(f"{path}: tensor {name} is missing; the file belongs to another model")
        if name not in target:
            raise UserError(f"{path}: tensor {name} has no place in this model")
        if source[name].shape != target[name].shape:
            raise UserError(
                f"{path}: tensor {name} is {tuple(source[name].shape)} where the model has "
                f"{tuple(target[name].shape)}; the file belongs to another model"
            )


def copy_tensors(path: Path, source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copy ``source`` into ``target`` in place; raises as `check_tensors` does."""
    check_tensors(path, source, target)
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


# ---------------------------------------------------------------------------------------------
# The run's folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder against a second command; the lock dies with its process.

    Of several processes the main one holds it, and all of them stop where it cannot.

    Raises:
        UserError: where another process holds it, or the folder cannot be written.
    """
    lock, refusal = filelock.FileLock(folder / ".lock", timeout=0), ""
    try:
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except filelock.Timeout:
        refusal = "another command is at work here; wait for it"
    except OSError as error:
        refusal = f"cannot be written ({error.strerror}); choose another --out_dir"
    if any_process(bool(refusal)):
        raise UserError(f"{folder}: {refusal}")
    try:
        yield
    finally:
        lock.release()


def is_finished(folder: Path, identity: dict, overwrite: bool) -> bool:
    """Whether the folder holds this very run, finished.

    ``--overwrite`` clears a finished run, another run and a broken one; this very run, interrupted,
    it leaves to be gone on with.

    Raises:
        UserError: where it holds another run, finished or not; the line says what differs.
    """
    metrics, state = folder / "metrics.json", folder / "state.safetensors"
    finished, other = metrics.exists(), None
    try:
        if finished:
            check_identity(folder, read_json(metrics).get("identity"), identity)
        elif state.exists():
            check_identity(folder, read_state(state)[2], identity)
    except UserError as error:
        other = error
    if other and not overwrite:
        raise other
    clear = any_process(overwrite and (finished or bool(other)))  # every process has looked
    if is_main():
        if clear:
            metrics.unlink(missing_ok=True)  # first, since it is what marks the rest as good
        if clear or finished:
            state.unlink(missing_ok=True)
    any_process(False)  # nobody looks again before that is done
    return finished and not clear


def check_identity(folder: Path, found: object, identity: dict) -> None:
    """Compare the identity of the run on disk with the one asked for.

    Raises:
        UserError: saying what differs.
    """
    if not isinstance(found, dict):
        raise UserError(f"{folder}: not a run of this project; add --overwrite to replace it")
    differing = [
        f"{key} is {_short(found.get(key))} there, {_short(identity.get(key))} here"
        for key in sorted(found.keys() | identity.keys())
        if found.get(key) != identity.get(key)
    ]
    if differing:
        raise UserError(
            f"{folder} holds another run ({'; '.join(differing)}); add --overwrite to replace it, "
            "or choose another --sr_no or --out_dir"
        )


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def run_folder(args: Namespace, mode: str) -> Path:
    """Where a run lives: ``<out_dir>/checkpoints/<mode>_<variant>_<sr_no>``."""
    return args.out_dir / "checkpoints" / f"{mode}_{variant_name(args.gpt_variant)}_{args.sr_no}"


# ---------------------------------------------------------------------------------------------
# Metrics


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
    n = metrics["sentences"]
    majority = max(metrics["acceptable"], n - metrics["acceptable"]) / n
    line = (
        f"accuracy {metrics['accuracy']:.2%} ({metrics['correct']} of {n}), "
        f"MCC {metrics['mcc']:.3f}; majority baseline {majority:.2%}"
    )
    return line + one_class_note(metrics)


def one_class_note(metrics: dict) -> str:
    """A remark for a model that answers one class only; else nothing."""
    if metrics["predicted_acceptable"] not in (0, metrics["sentences"]):
        return ""
    answer = "acceptable" if metrics["predicted_acceptable"] else "unacceptable"
    return f'  <- answers "{answer}" to everything'


@torch.no_grad()
def predict_logits(
    model: nn.Module, split: Split, compute: "Compute", description: str | None = None
) -> Tensor:
    """Logits (sentences, 2) of a whole split, fp32 on the CPU, in the split's own order.

    Sentences that are alike share a forward pass: beginnings serve GPT-2, which computes each once,
    lengths the RNN, which steps through time. Of several processes each judges its part, and all
    get the whole. A progress bar shows under ``description``.
    """
    model.eval()
    rank, processes = rank_and_processes()
    shares_prefixes = isinstance(model, GPT2Classifier)
    order = by_prefix(split) if shares_prefixes else np.argsort(-split.seqlens, kind="stable")
    pieces = list(within_budget(split, order, MAX_TOKENS))[rank::processes]
    logits = torch.zeros(len(split), 2, device=compute.device)
    total = sum(len(piece) for piece in pieces)
    hidden = None if description else True
    with tqdm(desc=description, total=total, unit=" sentences", disable=hidden) as bar:
        for piece in pieces:
            batch = pack(split, piece).to(compute.device)
            with compute.autocast():
                logits[batch.indices] = model(batch).float()
            bar.update(len(piece))
    sum_over_processes(logits)
    return logits.cpu()


# ---------------------------------------------------------------------------------------------
# Training


class Compute(NamedTuple):
    """Where and in what precision the arithmetic is done."""

    device: torch.device
    precision: str

    def autocast(self) -> torch.autocast:
        """bf16 matrix products under ``--precision bf16``; fp32 weights in either case."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )


def choose_compute(device: str, precision: str | None) -> Compute:
    """Resolve ``--device`` and ``--precision``; of several processes each has a GPU of its own.

    Raises:
        UserError: for a device that this machine or this PyTorch lacks.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and dist.is_initialized():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    reason = ""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    if any_process(bool(reason)):
        reason = reason or "another process has none of its own"
        raise UserError(f"--device {device}: not usable here ({reason}); use cpu")
    if precision is None:
        on_gpu = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        precision = "bf16" if on_gpu else "fp32"
    return Compute(torch.device(device), precision)


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one; without glibc, do nothing.

    By default it hands large blocks back to the kernel, which gives them out again page by page,
    zeroed, at every step.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its greatest value
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


class Totals(NamedTuple):
    """How many sentences, and how many labelled ones, a mean is taken over."""

    sentences: int
    labelled: int

    @classmethod
    def of(cls, labels: Tensor) -> "Totals":
        """The totals of ``labels (sentences,)``."""
        return cls(len(labels), int((labels != UNLABELLED).sum()))


# A loss is a function of logits (sentences, 2), of what has these sentences' labels and
# teacher_logits, and of the totals of the whole batch. It returns what these sentences add to the
# batch's mean: a sum over them, divided by the batch's totals. So the losses of a batch's pieces
# add up to the loss of the whole, and their gradients to its gradient.
Loss = Callable[[Tensor, Batch | Split, Totals], Tensor]


def cross_entropy(logits: Tensor, examples: Batch | Split, totals: Totals) -> Tensor:
    """Cross-entropy (nats), the mean over the labelled sentences."""
    summed = F.cross_entropy(logits, examples.labels, ignore_index=UNLABELLED, reduction="sum")
    return summed / max(totals.labelled, 1)


class Step(NamedTuple):
    """What one optimiser step saw; left on the device until somebody reads it."""

    loss: Tensor  # () the mean over its batch
    correct: Tensor  # () how many of the labelled sentences
    totals: Totals


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

    def add(self, steps: list[Step], seconds: float) -> None:
        """Count finished steps, reading all of them from the device at once.

        Raises:
            UserError: at the first whose loss is not finite.
        """
        self.seconds += seconds
        results = torch.stack([torch.stack([step.loss, step.correct]) for step in steps])
        for (loss, correct), step in zip(results.tolist(), steps, strict=True):
            if not math.isfinite(loss):
                raise diverged(f"the loss is {loss} at step {self.steps + 1}")
            self.loss += loss * step.totals.sentences
            self.correct += int(correct)
            self.sentences += step.totals.sentences
            self.labelled += step.totals.labelled
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


class Recipe(NamedTuple):
    """The hyperparameters of the loop."""

    sr_no: int
    batch_size: int
    lr: float
    epochs: int
    patience: int
    monitor: str  # "accuracy" or "mcc"
    max_steps: int | None


def train(
    model: nn.Module,
    corpus: dict[str, Split],
    loss_of: Loss,
    recipe: Recipe,
    compute: Compute,
    folder: Path,
    identity: dict,
) -> Progress:
    """Train what requires a gradient with Adam, and leave the best epoch's weights in ``model``.

    Early stopping watches ``recipe.monitor`` on in_domain_dev; of equals the first epoch is kept.
    Goes on from ``folder/state.safetensors`` where there is one, and keeps it up to date.

    Raises:
        UserError: when the loss is not finite; the state saved last is kept.
        KeyboardInterrupt: after SIGINT or SIGTERM, with the state saved.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(parameters.values(), lr=recipe.lr, fused=True)
    state = TrainState(folder / "state.safetensors", parameters, optimizer, identity)
    progress = state.load() or Progress()
    if progress.steps:
        print(f"resuming after step {progress.steps}, in epoch {progress.epoch + 1}")
    with interruptible() as interrupted:
        while not progress.stopped:
            train_epoch(
                model, corpus[TRAIN], loss_of, recipe, compute, progress, state, interrupted
            )
            line = finish_epoch(model, corpus[DEV], loss_of, recipe, compute, progress)
            if progress.best_epoch == progress.epoch:
                state.keep_best()
                line += "  best so far"
            write_csv(folder / "history.csv", progress.history)
            state.save(progress)
            print(line, flush=True)  # last, since it fails where nobody reads it
            if any_process(bool(interrupted)):
                raise KeyboardInterrupt
    state.restore_best()
    return progress


def train_epoch(
    model: nn.Module,
    split: Split,
    loss_of: Loss,
    recipe: Recipe,
    compute: Compute,
    progress: Progress,
    state: "TrainState",
    interrupted: list[int],
) -> None:
    """Take the steps of an epoch that are still to take, at most up to ``recipe.max_steps``.

    A GPU is waited for once in `READ_EVERY` steps, not at every one.
    """
    model.train()
    size, rank = recipe.batch_size, rank_and_processes()[0]
    order = shuffled(len(split), recipe.sr_no, progress.epoch)
    starts = range(progress.sentences, len(split), size)
    if recipe.max_steps:
        starts = starts[: recipe.max_steps - progress.steps]
    unread: list[Step] = []
    began = time.perf_counter()
    with tqdm(
        desc=f"epoch {progress.epoch + 1}/{recipe.epochs}",
        initial=progress.sentences,
        total=len(split),
        unit=" sentences",
        disable=None,
        leave=False,
    ) as bar:
        for start in starts:
            step = progress.steps + len(unread)
            torch.manual_seed(step_seed(recipe.sr_no, step, rank))  # dropout's
            indices = order[start : start + size]
            unread.append(accumulate_gradients(model, split, indices, loss_of, compute))
            state.optimizer.step()
            state.optimizer.zero_grad()
            stop = any_process(bool(interrupted))
            if stop or start == starts[-1] or len(unread) == READ_EVERY.get(compute.device.type, 1):
                progress.add(unread, time.perf_counter() - began)
                bar.set_postfix(progress.means(), refresh=False)
                bar.update(progress.sentences - bar.n)
                unread, began = [], time.perf_counter()
                if stop or time.monotonic() - state.saved_at > SAVE_EVERY:
                    state.save(progress)
            if stop:
                raise KeyboardInterrupt


def accumulate_gradients(
    model: nn.Module, split: Split, indices: np.ndarray, loss_of: Loss, compute: Compute
) -> Step:
    """Add the gradients of the mean loss over the sentences ``indices`` to the parameters'.

    Of several processes each takes its share of the sentences, which may be none, and all get the
    gradients and the `Step` of the whole.
    """
    rank, processes = rank_and_processes()
    totals = Totals.of(split.labels[torch.from_numpy(indices)])
    result = torch.zeros(2, device=compute.device)  # loss, correct
    for piece in within_budget(split, indices[rank::processes], MAX_TOKENS):
        batch = pack(split, piece).to(compute.device)
        with compute.autocast():
            logits = model(batch).float()
        share = loss_of(logits, batch, totals)
        share.backward()
        correct = (logits.argmax(dim=1) == batch.labels).sum()
        result += torch.stack([share.detach(), correct])
    if processes > 1:
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sum_over_processes(result, *(parameter.grad for parameter in trained))
    return Step(*result, totals)


def finish_epoch(
    model: nn.Module,
    dev: Split,
    loss_of: Loss,
    recipe: Recipe,
    compute: Compute,
    progress: Progress,
) -> str:
    """Evaluate on in_domain_dev, add the epoch's row to the history, decide whether to stop.

    ``val_loss`` is the training objective on in_domain_dev, comparable with ``train_loss``.

    Returns:
        The epoch in one line.

    Raises:
        UserError: when ``val_loss`` is not finite.
    """
    logits = predict_logits(model, dev, compute)
    metrics = measure(logits, dev.labels)
    progress.epoch += 1
    row = {
        "epoch": progress.epoch,
        "train_loss": progress.means()["loss"],
        "train_accuracy": progress.means()["accuracy"],
        "val_loss": loss_of(logits, dev, Totals.of(dev.labels)).item(),
        "val_accuracy": metrics["accuracy"],
        "val_mcc": metrics["mcc"],
        "seconds": round(progress.seconds, 3),
        "sentences_per_second": round(progress.sentences / max(progress.seconds, 1e-9), 1),
    }
    if not math.isfinite(row["val_loss"]):
        raise diverged(f"the loss on in_domain_dev is {row['val_loss']} after epoch {row['epoch']}")
    progress.history.append(row)
    watched = [past[f"val_{recipe.monitor}"] for past in progress.history]
    progress.best_epoch = watched.index(max(watched)) + 1
    if progress.steps == recipe.max_steps:
        progress.stopped = "max_steps"
    elif progress.epoch - progress.best_epoch >= recipe.patience:
        progress.stopped = "patience"
    elif progress.epoch == recipe.epochs:
        progress.stopped = "epochs"
    progress.start_epoch()
    return (
        f"epoch {row['epoch']}/{recipe.epochs}  train loss {row['train_loss']:.4f} "
        f"accuracy {row['train_accuracy']:.2%}  |  in_domain_dev loss {row['val_loss']:.4f} "
        f"accuracy {row['val_accuracy']:.2%} MCC {row['val_mcc']:.3f}{one_class_note(metrics)}  |  "
        f"{row['seconds']:.1f} s"
    )


class TrainState:
    """All tensors that a run goes on from, and the file that keeps them, with `Progress`.

    They are, for each trained parameter, weight.<name>, best.<name> (the best epoch's weight) and
    what Adam keeps: step.<name>, exp_avg.<name> and exp_avg_sq.<name>.
    """

    def __init__(
        self,
        path: Path,
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        identity: dict,
    ):
        self.path, self.parameters, self.optimizer = path, parameters, optimizer
        self.identity = identity
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
        """Replace the file.

        Raises:
            UserError: where a weight is not finite; the file stays as it was.
        """
        if not all(p.isfinite().all() for p in self.parameters.values()):
            raise diverged(f"the weights are not finite after step {progress.steps}")
        metadata = {"progress": asdict(progress), "identity": self.identity}
        write_tensors(self.path, self.tensors, {k: json.dumps(v) for k, v in metadata.items()})
        self.saved_at = time.monotonic()

    def load(self) -> Progress | None:
        """Restore everything from the file; None where there is none."""
        if not self.path.exists():
            return None
        tensors, progress, _ = read_state(self.path)
        copy_tensors(self.path, tensors, self.tensors)
        return progress


def read_state(path: Path) -> tuple[dict[str, Tensor], Progress, object]:
    """Read a `TrainState` file: its tensors, the progress, and the identity for `check_identity`.

    Raises:
        UserError: naming the file, where it is not one.
    """
    tensors, metadata = read_tensors(path)
    try:
        progress = Progress(**json.loads(metadata["progress"]))
        check_progress(progress)
        return tensors, progress, json.loads(metadata["identity"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(
            f"{path}: not a state written by this project; add --overwrite to start anew"
        ) from None


def check_progress(progress: Progress) -> None:
    """Raise KeyError, TypeError or ValueError for what no run can go on from."""
    for name, initial in asdict(Progress()).items():
        value = getattr(progress, name)
        if type(value) is not type(initial) or (isinstance(value, int) and value < 0):
            raise ValueError(f"{name} = {value!r}")
    for row in progress.history:
        sum(row[name] for name in ("val_accuracy", "val_mcc", "seconds"))  # if they are numbers


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that a step is never cut in two.

    A second SIGINT interrupts at once, without saving. SIGTERM never does: torchrun sends one right
    after the first SIGINT.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def step_seed(sr_no: int, step: int, rank: int) -> int:
    """A seed for one step's dropout, a function of ``sr_no``, the step and the process alone."""
    return int(np.random.SeedSequence([sr_no, step, rank]).generate_state(1, np.uint64)[0])


# ---------------------------------------------------------------------------------------------
# A run, from its options to its results on disk


def run_training(
    args: Namespace,
    mode: str,
    corpus: dict[str, Split],
    sources: dict[str, dict],
    options: dict,
    prepare: Callable[[Path, Compute], tuple[nn.Module, Loss]],
    save: Callable[[nn.Module, Path], None],
) -> Path:
    """Train, or go on, or show what is finished; what is the same in every mode.

    Args:
        args: the command line.
        mode: "LoRA", "distil" or "rnn".
        corpus: the three splits.
        sources: what else the run starts from, by name, each with its "fingerprint".
        options: the mode's own options that change the result.
        prepare: gives the new model and its loss; called only when there is training to do.
        save: writes the model kept into the run's folder.

    Returns:
        The run's folder.
    """
    folder = run_folder(args, mode)
    recipe = Recipe(*(getattr(args, name) for name in Recipe._fields))
    compute = choose_compute(args.device, args.precision)
    arguments = {**recipe._asdict(), **options}
    data = {"sha256": corpus_fingerprint(corpus), **{k: s.counts() for k, s in corpus.items()}}
    identity = {
        "mode": mode,
        "data": data["sha256"],
        "precision": compute.precision,
        **{name: source["fingerprint"] for name, source in sources.items()},
        **arguments,
    }
    with locked(folder):
        if not is_finished(folder, identity, args.overwrite):
            keep_freed_memory()
            model, loss_of = prepare(folder, compute)
            model.to(compute.device)
            progress = train(model, corpus, loss_of, recipe, compute, folder, identity)
            if is_main():
                save(model, folder)
            results, predictions = {}, []
            for name in (DEV, OUT_OF_DOMAIN):
                logits = predict_logits(model, corpus[name], compute)
                results[name] = measure(logits, corpus[name].labels)
                predictions += prediction_rows(name, logits, corpus[name].labels)
            write_csv(folder / "predictions.csv", predictions)
            metrics = {
                "mode": mode,
                "variant": variant_name(args.gpt_variant),
                "sr_no": args.sr_no,
                "command": args.command,
                "arguments": {name: v for name, v in arguments.items() if name != "sr_no"},
                "identity": identity,
                "data": {"name": corpus_name(args.data_dir), "folder": str(args.data_dir), **data},
                "teacher": None,
                **sources,
                "parameters": count_parameters(model),
                "hardware": hardware(compute),
                "versions": versions(),
                "training": progress.summary(),
                **results,
            }
            write_json(folder / "metrics.json", metrics)  # last: it marks a finished run
            if is_main():
                (folder / "state.safetensors").unlink(missing_ok=True)
        any_process(False)  # nobody reads before all is written
        show_run(folder)
    return folder


def prediction_rows(name: str, logits: Tensor, labels: Tensor) -> list[dict]:
    """The rows of predictions.csv for one split: each sentence's line, label and logits."""
    lines = enumerate(zip(labels.tolist(), logits.tolist(), strict=True), start=1)
    return [
        {"split": name, "line": line, "label": label, "logit_0": pair[0], "logit_1": pair[1]}
        for line, (label, pair) in lines
    ]


def show_run(folder: Path) -> None:
    """Print a finished run's results."""
    path = folder / "metrics.json"
    metrics = read_json(path)
    try:
        training = metrics["training"]
        lines = [f"{folder}: kept epoch {training['best_epoch']} of {training['epochs']}"]
        lines += [f"  {name:<18} {describe(metrics[name])}" for name in (DEV, OUT_OF_DOMAIN)]
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path}: broken ({error!r}); run it again with --overwrite") from None
    print("\n".join(lines))


def count_parameters(model: nn.Module) -> dict[str, int]:
    """How many parameters the model has, and how many of them train."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, t in sizes if t)}


def hardware(compute: Compute) -> dict[str, str | int]:
    """The machine in words."""
    if compute.device.type == "cuda":
        name = torch.cuda.get_device_name(compute.device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else platform.processor() or platform.machine()
    return {
        "device": compute.device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "processes": rank_and_processes()[1],
        "precision": compute.precision,
    }


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def corpus_name(data_dir: Path) -> str:
    """A corpus in words: its path within the project, or else its folder's own name."""
    folder = data_dir.resolve()
    inside = folder.is_relative_to(PROJECT)
    return folder.relative_to(PROJECT).as_posix() if inside else folder.name
