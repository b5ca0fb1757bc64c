"""The one training loop, and evaluation.

A batch may be cut to any memory, or dealt to any number of processes, because a loss here is a
share: what a piece of a batch adds to the mean over the whole batch. So the losses of the pieces
add up to the loss of the whole, and their gradients to its gradient.
"""

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data_utils import (
    DEV,
    OUT_OF_DOMAIN,
    TRAIN,
    UNLABELLED,
    Batch,
    Split,
    by_length,
    by_prefix,
    corpus_fingerprint,
    pack,
    shuffled,
    within_budget,
)
from support.devices import Device
from support.errors import UserError
from support.files import write_csv
from support.processes import any_process, rank_and_processes, sum_over_processes
from support.reporting.metrics import measure, one_class_note
from support.runs.resumption import Interruption, Progress, TrainState, diverged, interruptible

MAX_TOKENS = 2048  # of one forward pass; a larger batch is split and its gradients accumulate
SAVE_EVERY = 300  # seconds between saves inside a long epoch
READ_EVERY = {"cuda": 16}  # steps between looks at the losses on a GPU; 1 elsewhere


# ---------------------------------------------------------------------------------------------
# What is trained, on what, and how


class Counts(NamedTuple):
    """How many sentences, labelled ones and tokens a whole batch has: what a mean divides by."""

    sentences: int
    labelled: int
    tokens: int

    @classmethod
    def of(cls, labels: Tensor, tokens: int = 0) -> "Counts":
        """The counts of ``labels (sentences,)``."""
        return cls(len(labels), int((labels != UNLABELLED).sum()), tokens)


# A function of logits (sentences, 2), of what has these sentences' labels and teacher_logits, and
# of the counts of the whole batch: what these sentences add to the batch's mean.
Loss = Callable[[Tensor, Batch | Split, Counts], Tensor]


def cross_entropy(logits: Tensor, examples: Batch | Split, counts: Counts) -> Tensor:
    """Cross-entropy (nats), the mean over the labelled sentences."""
    summed = F.cross_entropy(logits, examples.labels, ignore_index=UNLABELLED, reduction="sum")
    return summed / max(counts.labelled, 1)


class Recipe(NamedTuple):
    """The hyperparameters of the loop, by the names of their options."""

    sr_no: int
    batch_size: int
    lr: float
    epochs: int
    patience: int
    monitor: str  # "accuracy", "mcc" or "none": the last epoch is kept, whatever it scores
    max_steps: int | None
    lr_schedule: str = "constant"  # or "linear": falling to zero at the end of the last epoch

    def lr_at(self, step: int, sentences: int) -> float:
        """The learning rate of a step, counted from 0, of training on so many sentences."""
        if self.lr_schedule == "constant":
            return self.lr
        steps = self.epochs * math.ceil(sentences / self.batch_size)
        return self.lr * (1 - step / min(steps, self.max_steps or steps))

    @classmethod
    def of(cls, args: Namespace) -> "Recipe":
        """Those of a command line."""
        return cls(*(getattr(args, name) for name in cls._fields))


@dataclass
class Training:
    """All that the loop works on."""

    model: nn.Module  # on the device
    corpus: dict[str, Split]
    loss: Loss
    recipe: Recipe
    device: Device

    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def fingerprint(self) -> str:
        """Of what it trains on: a saved state goes on with that alone."""
        return corpus_fingerprint({TRAIN: self.corpus[TRAIN]})

    def judge(self, batch: Batch, counts: Counts) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (sentences, 2) of a piece of a batch, its share of the whole batch's loss, and of
        what training makes small, which may be more than the loss.
        """
        with self.device.autocast():
            logits = self.model(batch).float()
        loss = self.loss(logits, batch, counts)
        return logits, loss, loss


# ---------------------------------------------------------------------------------------------
# Evaluation


@torch.no_grad()
def predict_logits(
    model: nn.Module, split: Split, device: Device, description: str | None = None
) -> Tensor:
    """Logits (sentences, 2) of a whole split, fp32 on the CPU, in the split's own order.

    Of several processes each judges its part, and all get the whole. A progress bar shows under
    ``description``.
    """
    logits = torch.zeros(len(split), 2, device=device.torch)
    for batch in pieces_of(model.eval(), split, device, description):
        with device.autocast():
            logits[batch.indices] = model(batch).float()
    sum_over_processes(logits)
    return logits.cpu()


def pieces_of(
    model: nn.Module, split: Split, device: Device, description: str | None
) -> Iterator[Batch]:
    """This process' share of a split in batches that a model reads fast, on the device."""
    rank, processes = rank_and_processes()
    order = by_prefix(split) if model.shares_prefixes else by_length(split)
    pieces = list(within_budget(split, order, MAX_TOKENS))[rank::processes]
    total = sum(len(piece) for piece in pieces)
    hidden = None if description else True
    with tqdm(desc=description, total=total, unit=" sentences", disable=hidden) as bar:
        for piece in pieces:
            yield pack(split, piece).to(device.torch)
            bar.update(len(piece))


def evaluate(training: Training) -> tuple[dict[str, dict], list[dict]]:
    """Judge both dev sets: what `measure` says of each, and the rows of predictions.csv."""
    results, rows = {}, []
    for name in (DEV, OUT_OF_DOMAIN):
        split = training.corpus[name]
        logits = predict_logits(training.model, split, training.device)
        results[name] = measure(logits, split.labels)
        answers = zip(split.labels.tolist(), logits.tolist(), strict=True)
        rows += [
            {"split": name, "line": line, "label": label, "logit_0": pair[0], "logit_1": pair[1]}
            for line, (label, pair) in enumerate(answers, start=1)
        ]
    return results, rows


def count_parameters(model: nn.Module) -> dict[str, int]:
    """How many parameters the model has, and how many of them train."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, t in sizes if t)}


# ---------------------------------------------------------------------------------------------
# The loop


def train(training: Training, folder: Path) -> Progress:
    """Train what requires a gradient with Adam, and leave the best epoch's weights in the model.

    Early stopping watches ``recipe.monitor`` on in_domain_dev; of equals the first epoch is kept.
    Goes on from ``folder/state.safetensors`` where there is one, and keeps it up to date. SIGINT
    and SIGTERM raise KeyboardInterrupt with the state saved.
    """
    recipe, parameters = training.recipe, training.parameters()
    optimizer = torch.optim.Adam(parameters.values(), lr=recipe.lr, fused=True)
    state = TrainState(folder / "state.safetensors", parameters, optimizer)
    progress, corpus = state.load(), training.fingerprint()
    if progress.corpus not in ("", corpus):
        raise UserError(
            f"{state.path}: saved while training on other sentences or hints; delete it"
        )
    progress.corpus = corpus
    if progress.steps:
        print(f"resuming after step {progress.steps}, in epoch {progress.epoch + 1}")
    with interruptible() as interruption:
        while not progress.stopped:
            train_epoch(training, optimizer, progress, state, interruption)
            line = finish_epoch(training, progress)
            if progress.best_epoch == progress.epoch:
                state.keep_best()
                line += "  best so far" if recipe.monitor != "none" else ""
            write_csv(folder / "history.csv", progress.history)
            state.save(progress)
            print(line, flush=True)  # last, since it fails where nobody reads it
            if any_process(interruption.requested):
                raise KeyboardInterrupt
    state.restore_best()
    return progress


def train_epoch(
    training: Training,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    state: TrainState,
    interruption: Interruption,
) -> None:
    """Take the steps of an epoch that are still to take, at most up to ``recipe.max_steps``.

    A GPU is waited for once in `READ_EVERY` steps, not at every one.
    """
    recipe, split = training.recipe, training.corpus[TRAIN]
    training.model.train()
    rank, _ = rank_and_processes()
    order = shuffled(len(split), recipe.sr_no, progress.epoch)
    starts = range(progress.sentences, len(split), recipe.batch_size)
    if recipe.max_steps:
        starts = starts[: recipe.max_steps - progress.steps]
    read_every = READ_EVERY.get(training.device.torch.type, 1)
    unread: list[tuple[Tensor, Counts]] = []  # what steps returned, until somebody looks
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
            indices = order[start : start + recipe.batch_size]
            unread.append(accumulate_gradients(training, indices))
            optimizer.param_groups[0]["lr"] = recipe.lr_at(step, len(split))
            optimizer.step()
            optimizer.zero_grad()
            stop = any_process(interruption.requested)
            if stop or start == starts[-1] or len(unread) == read_every:
                progress.seconds += time.perf_counter() - began
                results = torch.stack([result for result, _ in unread]).tolist()
                for (loss, correct), (_, counts) in zip(results, unread, strict=True):
                    progress.add(loss, correct, counts.sentences, counts.labelled)
                bar.set_postfix(progress.means(), refresh=False)
                bar.update(progress.sentences - bar.n)
                unread, began = [], time.perf_counter()
                if stop or time.monotonic() - state.saved_at > SAVE_EVERY:
                    state.save(progress)
            if stop:
                raise KeyboardInterrupt


def accumulate_gradients(training: Training, indices: np.ndarray) -> tuple[Tensor, Counts]:
    """Add the gradients of the mean loss over the training sentences ``indices``.

    Of several processes each takes its share of the sentences, which may be none, and all get the
    gradients and the results of the whole.

    Returns:
        (2,) the mean loss, and how many labelled sentences were judged right, on the device; and
        the counts of the batch.
    """
    split, device = training.corpus[TRAIN], training.device.torch
    rank, processes = rank_and_processes()
    labels = split.labels[torch.from_numpy(indices)]
    counts = Counts.of(labels, int(split.seqlens[indices].sum()))
    result = torch.zeros(2, device=device)
    for piece in within_budget(split, indices[rank::processes], MAX_TOKENS):
        batch = pack(split, piece).to(device)
        logits, loss, objective = training.judge(batch, counts)
        objective.backward()
        correct = (logits.argmax(dim=1) == batch.labels).sum()
        result += torch.stack([loss.detach(), correct])
    if processes > 1:
        trained = training.parameters().values()
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sum_over_processes(result, *(parameter.grad for parameter in trained))
    return result, counts


def finish_epoch(training: Training, progress: Progress) -> str:
    """Evaluate on in_domain_dev, add the epoch's row to the history, decide whether to stop.

    ``val_loss`` is ``training.loss`` on in_domain_dev, comparable with ``train_loss``.

    Returns:
        The epoch in one line.
    """
    recipe, dev = training.recipe, training.corpus[DEV]
    logits = predict_logits(training.model, dev, training.device)
    metrics = measure(logits, dev.labels)
    progress.epoch += 1
    row = {
        "epoch": progress.epoch,
        "train_loss": progress.means()["loss"],
        "train_accuracy": progress.means()["accuracy"],
        "val_loss": training.loss(logits, dev, Counts.of(dev.labels)).item(),
        "val_accuracy": metrics["accuracy"],
        "val_mcc": metrics["mcc"],
        "seconds": round(progress.seconds, 3),
        "sentences_per_second": round(progress.sentences / max(progress.seconds, 1e-9), 1),
    }
    if not math.isfinite(row["val_loss"]):
        raise diverged(f"the loss on in_domain_dev is {row['val_loss']} after epoch {row['epoch']}")
    progress.history.append(row)
    progress.best_epoch = progress.epoch
    if recipe.monitor != "none":
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


def step_seed(sr_no: int, step: int, rank: int) -> int:
    """A seed for one step's dropout, a function of ``sr_no``, the step and the process alone."""
    return int(np.random.SeedSequence([sr_no, step, rank]).generate_state(1, np.uint64)[0])
