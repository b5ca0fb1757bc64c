"""The one training loop, and evaluation.

A batch may be cut to any memory, or dealt to any number of processes, because a loss here is a
share: what a piece of a batch adds to the mean over the whole batch. So the losses of the pieces
add up to the loss of the whole, and their gradients to its gradient.
"""

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data_utils import UNLABELLED, Batch, Split, most_tokens, pack, shuffled, within_budget
from support.corpus import DEV, TRAIN
from support.decisions import SOFTMAX, Decision
from support.devices import Device
from support.fingerprints import corpus_fingerprint, fingerprint
from support.processes import (
    Interruption,
    any_process,
    interruptible,
    rank_and_processes,
    sum_over_processes,
)
from support.progress import progress_bar
from support.reporting import describe_epoch, dev_sets_of, measure, one_class_note
from support.runs import Progress, SavedState, check_finite

READ_EVERY = {"cuda": 16}  # steps between looks at the losses on a GPU; 1 elsewhere

# ---------------------------------------------------------------------------------------------
# Losses


class Counts(NamedTuple):
    """How many sentences, labelled ones and tokens a whole batch has: what a mean divides by."""

    sentences: int
    labelled: int
    tokens: int

    @classmethod
    def of(cls, split: Split, indices: np.ndarray | slice = slice(None)) -> "Counts":
        """Count the sentences ``indices`` of a split."""
        labels = split.labels[indices]
        return cls(
            len(labels), int((labels != UNLABELLED).sum()), int(split.seqlens[indices].sum())
        )


# Takes logits (sentences, 2), the batch or split with their labels and teacher_logits, and the
# counts of the whole batch. Returns what these sentences add to the mean over the whole batch.
Loss = Callable[[Tensor, Batch | Split, Counts], Tensor]


def cross_entropy(logits: Tensor, examples: Batch | Split, counts: Counts) -> Tensor:
    """Return what these sentences add to the batch's mean cross-entropy (nats).

    The mean is over the labelled sentences of the batch.
    """
    summed = F.cross_entropy(logits, examples.labels, ignore_index=UNLABELLED, reduction="sum")
    return summed / max(counts.labelled, 1)


# ---------------------------------------------------------------------------------------------
# The loop


class Training(NamedTuple):
    """What the loop works on."""

    model: nn.Module  # on the device
    corpus: dict[str, Split]
    loss: Loss
    options: Namespace
    device: Device
    hint_loss: nn.Module | None = None  # a second loss, of hidden states: distil.HintLoss

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains, by name: of the model, and of the hints' loss its projection."""
        modules = (self.model, *([self.hint_loss] if self.hint_loss else []))
        return {n: p for m in modules for n, p in m.named_parameters() if p.requires_grad}


def train(training: Training, folder: Path) -> Progress:
    """Train with Adam what requires a gradient, and leave the best epoch's weights in the model.

    ``options.monitor`` on in_domain_dev chooses it. The state is saved in ``folder``; a training
    that was interrupted there is resumed. SIGINT and SIGTERM raise KeyboardInterrupt between two
    steps, when the state has been saved.
    """
    options, split, parameters = training.options, training.corpus[TRAIN], training.parameters()
    optimizer = torch.optim.Adam(parameters.values(), lr=options.lr, fused=True)
    # Where the folder has a state, this reads it into the parameters and the optimizer.
    lesson, steps = lesson_fingerprint(split), steps_in_all(options, len(split))
    state = SavedState(folder, parameters, optimizer, lesson, options.tensorboard)
    progress = state.progress
    if progress.steps and not progress.stopped:
        print(f"resuming after step {progress.steps}, in epoch {progress.epoch + 1}")
    bar = progress_bar("step", steps, progress.steps)
    with bar, interruptible() as interruption:
        while not progress.stopped:
            train_epoch(training, optimizer, state, interruption, bar)
            row, note = evaluate_epoch(training, progress)
            progress.finish_epoch(row, options.monitor)
            state.log.show("epoch", progress.steps, row)
            if progress.best_epoch == progress.epoch:
                state.keep_best()
            progress.stopped = reason_to_stop(options, progress)
            state.save()
            if options.monitor != "none" and progress.best_epoch == progress.epoch:
                note += "  best so far"
            bar.clear()  # where a terminal shows it, the epoch's line takes its place
            print(describe_epoch(row, options.epochs) + note, flush=True)
            if any_process(interruption.requested):
                raise KeyboardInterrupt
    state.restore_best()
    return progress


def train_epoch(
    training: Training,
    optimizer: torch.optim.Optimizer,
    state: SavedState,
    interruption: Interruption,
    bar: tqdm,
) -> None:
    """Take the steps that are left of an epoch; save now and then, and where a stop is asked for.

    A GPU is waited for once in `READ_EVERY` steps, not at every one.
    """
    options, split, progress = training.options, training.corpus[TRAIN], state.progress
    training.model.train()
    results, began = [], time.monotonic()
    for indices in batches_left(options, progress, len(split)):
        step = progress.steps + len(results)
        seed_dropout(options.sr_no, step)
        result, counts = accumulate_gradients(training, indices)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, step, len(split))
        optimizer.step()
        optimizer.zero_grad()
        results.append((result, counts))
        stop = any_process(interruption.requested)
        if stop or len(results) == READ_EVERY.get(training.device.torch.type, 1):
            began = add_to_progress(training, results, state, began, bar)
            if stop or state.is_old():
                state.save()
        if stop:
            raise KeyboardInterrupt
    add_to_progress(training, results, state, began, bar)


def add_to_progress(
    training: Training, results: list[tuple], state: SavedState, began: float, bar: tqdm
) -> float:
    """Add the results of steps, which are then cleared, and the time; return the time now."""
    options, sentences, progress = training.options, len(training.corpus[TRAIN]), state.progress
    taken = [(result.tolist(), counts) for result, counts in results]  # which waits for a GPU
    now = time.monotonic()
    for (loss, correct, hint_loss), counts in taken:
        row = {"learning_rate": learning_rate(options, progress.steps, sentences)}
        row["train_loss"] = loss
        if training.hint_loss:
            row["hint_loss"] = hint_loss
        row["seconds"] = round((now - began) / len(taken), 4)
        progress.steps += 1
        check_finite("the loss", loss + hint_loss, f"at step {progress.steps}")
        progress.loss += loss * counts.sentences
        progress.hint_loss += hint_loss * counts.sentences
        progress.correct += int(correct)
        progress.sentences += counts.sentences
        progress.labelled += counts.labelled
        state.log.add_step(progress.steps, row)
    results.clear()
    progress.seconds += now - began
    bar.set_postfix(progress.means(), run=state.path.parent.name, refresh=False)
    bar.update(len(taken))
    return now


def lesson_fingerprint(split: Split) -> str:
    """Return the fingerprint of what is trained on: sentences, labels and, where given, hints."""
    corpus = corpus_fingerprint({TRAIN: split})
    return corpus if split.hints is None else fingerprint(corpus, split.hints)


def batches_left(options: Namespace, progress: Progress, sentences: int) -> Iterator[np.ndarray]:
    """Yield the sentences of each step that the epoch has still to take."""
    order = shuffled(sentences, options.sr_no, progress.epoch)
    starts = range(progress.sentences, sentences, options.batch_size)
    if options.max_steps:
        starts = starts[: options.max_steps - progress.steps]
    for start in starts:
        yield order[start : start + options.batch_size]


def steps_in_all(options: Namespace, sentences: int) -> int:
    """Return how many steps a run takes, unless patience ends it."""
    steps = options.epochs * math.ceil(sentences / options.batch_size)
    return min(steps, options.max_steps or steps)


def learning_rate(options: Namespace, step: int, sentences: int) -> float:
    """Return the rate of a step, counted from 0; "linear" reaches 0 after the last step."""
    if options.lr_schedule == "constant":
        return options.lr
    return options.lr * (1 - step / steps_in_all(options, sentences))


def seed_dropout(sr_no: int, step: int) -> None:
    """Make a step's dropout a function of ``sr_no``, the step and the process alone."""
    seeds = np.random.SeedSequence([sr_no, step, rank_and_processes()[0]])
    torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))


def accumulate_gradients(training: Training, indices: np.ndarray) -> tuple[Tensor, Counts]:
    """Add the gradients of the mean loss over the training sentences ``indices``.

    Of several processes each takes its share of the sentences, which may be none, and all get the
    gradients and results of the whole, and the counts. The results (3,) are the mean loss, the
    correct answers, and the weighted loss of hints, 0 where there are none.
    """
    model, split, device = training.model, training.corpus[TRAIN], training.device
    rank, processes = rank_and_processes()
    counts = Counts.of(split, indices)
    result = torch.zeros(3, device=device.torch)
    for piece in within_budget(split, indices[rank::processes], most_tokens(device.torch)):
        batch = pack(split, piece).to(device.torch)
        with device.autocast():
            if training.hint_loss:
                outputs = model.outputs(batch)
                logits, hint_loss = outputs.logits, training.hint_loss(outputs, batch, counts)
            else:
                logits, hint_loss = model(batch), result.new_zeros(())
        logits = logits.float()
        loss = training.loss(logits, batch, counts)
        (loss + hint_loss).backward()
        correct = (logits.argmax(dim=1) == batch.labels).sum()
        result += torch.stack([loss.detach(), correct, hint_loss.detach()])
    if processes > 1:
        trained = training.parameters().values()
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sum_over_processes(result, *(parameter.grad for parameter in trained))
    return result, counts


def evaluate_epoch(training: Training, progress: Progress) -> tuple[dict, str]:
    """Evaluate on in_domain_dev; return the epoch's row of history.csv, and a remark if any.

    ``val_loss`` is ``training.loss`` on in_domain_dev, comparable with ``train_loss``; the loss of
    hints, where there is one, is neither's part.
    """
    dev, epoch = training.corpus[DEV], progress.epoch + 1
    logits = predict_logits(training.model, dev, training.device)
    metrics, means = measure(logits, dev.labels), progress.means()
    val_loss = training.loss(logits, dev, Counts.of(dev)).item()
    check_finite(f"the loss on {DEV}", val_loss, f"after epoch {epoch}")
    row = {
        "epoch": epoch,
        "train_loss": means["loss"],
        "train_accuracy": means["accuracy"],
        "val_loss": val_loss,
        "val_accuracy": metrics["accuracy"],
        "val_mcc": metrics["mcc"],
        "seconds": round(progress.seconds, 3),
        "sentences_per_second": means["sentences/s"],
    }
    if training.hint_loss:
        row["hint_loss"] = means.get("hint_loss", 0.0)
    return row, one_class_note(metrics, training.options.data["classes"])


def reason_to_stop(options: Namespace, progress: Progress) -> str:
    """Return why training ends with the epoch that is finished; nothing where it goes on."""
    if progress.steps == options.max_steps:
        return "max_steps"
    if progress.epoch - progress.best_epoch >= options.patience:
        return "patience"
    return "epochs" if progress.epoch == options.epochs else ""


# ---------------------------------------------------------------------------------------------
# Evaluation


@torch.no_grad()
def predict_logits(
    model: nn.Module, split: Split, device: Device, bar: tqdm | None = None
) -> Tensor:
    """Return the logits (sentences, 2) of a whole split, fp32 on the CPU, in the split's order.

    Of several processes each judges its part, and all get the whole. A progress bar counts it.
    """
    logits = torch.zeros(len(split), 2, device=device.torch)
    model.eval()
    for batch in split.batches(device.torch):
        with device.autocast():
            logits[batch.indices] = model(batch).float()
        if bar is not None:
            bar.update(len(batch.labels))
    sum_over_processes(logits)
    return logits.cpu()


def evaluate(
    model: nn.Module, corpus: dict[str, Split], device: Device, decision: Decision = SOFTMAX
) -> tuple[dict[str, dict], list[dict]]:
    """Judge the dev sets; return what `measure` says of each, and the rows of predictions.csv."""
    results, rows = {}, []
    for name in dev_sets_of(corpus):
        split = corpus[name]
        logits = predict_logits(model, split, device)
        results[name] = measure(logits, split.labels, decision)
        answers = zip(split.labels.tolist(), logits.tolist(), strict=True)
        rows += [
            {"split": name, "line": line, "label": label, "logit_0": pair[0], "logit_1": pair[1]}
            for line, (label, pair) in enumerate(answers, start=1)
        ]
    return results, rows


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Return how many parameters the model has, and how many of them train."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"total": sum(n for n, _ in sizes), "trainable": sum(n for n, t in sizes if t)}
