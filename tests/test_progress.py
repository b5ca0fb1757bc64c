"""Where long work says that it is: lines on standard error, steps.csv, TensorBoard's events."""

import importlib.util
import io
import os
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NANO, TRAINING, classifier
from torch import nn

import data_utils
import support.teaching.answers
from bench import kills
from data_utils import Split
from student import DistilRNN
from support.corpus import SPLITS, TRAIN
from support.devices import CPU
from support.files import write_json
from support.options import parse
from support.progress import progress_bar
from support.runs import claim, resumption
from support.teaching import teacher_answers
from train_utils import (
    READ_EVERY,
    Loss,
    Training,
    cross_entropy,
    learning_rate,
    predict_logits,
    train,
)

OPTIONS = {
    "sr_no": 1, "batch_size": 32, "lr": 1e-3, "epochs": 2, "patience": 3, "monitor": "accuracy",
    "max_steps": None, "lr_schedule": "linear", "tensorboard": False, "data": TRAINING["data"],
}  # fmt: skip
INSTALLED = importlib.util.find_spec("tensorboard") is not None


class Clock:
    """The time by which tqdm draws; it stands still but for ``tick``."""

    now = 0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: int) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr("tqdm.std.time", clock := Clock())
    return clock


@pytest.fixture(scope="module")
def small(nano_corpus) -> dict[str, Split]:
    """150 training sentences of nano's corpus, five steps an epoch, and 60 of each dev set."""
    sizes = zip(SPLITS, (150, 60, 60), strict=True)
    return {name: nano_corpus[name].chosen(np.arange(n)) for name, n in sizes}


class Hints(nn.Module):
    """A loss of hints that is another number at every step."""

    def forward(self, outputs, batch, counts):
        return outputs.logits.square().sum() / counts.sentences + 1


def training_of(corpus, loss=cross_entropy, hints=None, **changes) -> Training:
    """A training by ``OPTIONS``, with changes, of a new student."""
    torch.manual_seed(1)
    model = DistilRNN(corpus[TRAIN].input_ids.unique(), 8)
    return Training(model, corpus, loss, Namespace(**OPTIONS | changes), CPU, hints)


def stopping(after: int | None, clock: Clock | None = None) -> Loss:
    """Cross-entropy, whose call numbered ``after`` has the run stopped; each takes 20 s."""
    calls = count(1)

    def loss(*examples):
        if clock:
            clock.tick(20)
        if next(calls) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy(*examples)

    return loss


def dying(moment: int, call: Callable) -> Callable:
    """A function that works, until it is called for the time numbered ``moment``, from 0."""
    calls = count()

    def calling(*arguments):
        if next(calls) == moment:
            raise KeyboardInterrupt
        return call(*arguments)

    return calling


# ---------------------------------------------------------------------------------------------
# Lines on standard error


@pytest.mark.parametrize("way", ["counted", "iterated"])
@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        (29, ""),
        (100, "work 40/110, 01:10 left\nwork 70/110, 00:40 left\nwork 100/110, 00:10 left\n"),
    ],
)
def test_in_a_pipe_work_is_a_line_every_30_seconds_and_nothing_more(
    clock, capsys, way, steps, lines
):
    """A step takes a second; 10 were done before."""
    if way == "counted":
        with progress_bar("work", 110, 10) as bar:
            for _ in range(steps):
                clock.tick(1)
                bar.update()
            bar.clear()
    else:
        for _ in progress_bar("work", 110, 10, iterable=range(steps)):
            clock.tick(1)
    assert capsys.readouterr() == ("", lines)


def test_on_a_terminal_it_is_a_bar_that_is_gone_when_the_work_is_done(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar("work", 4) as bar:
        clock.tick(1)
        bar.update()
    drawn = sys.stderr.getvalue()
    assert "work 1/4, 00:03 left" in drawn
    assert "\n" not in drawn
    assert re.search(r"\r *\r$", drawn)


@pytest.mark.parametrize(("options", "total"), [({}, 10), ({"max_steps": 8}, 8)])
def test_a_run_tells_its_step_of_all_steps_also_when_it_goes_on(
    small, clock, tmp_path, capsys, options, total
):
    """A batch takes 20 s, as a dev set does; the run is stopped in its fourth step and goes on."""
    told = []
    for loss in (stopping(4, clock), stopping(None, clock)):
        with suppress(KeyboardInterrupt):
            train(training_of(small, loss, patience=1, **options), tmp_path)
        printed = capsys.readouterr()
        told.append(printed.err.splitlines())
        assert re.fullmatch(r"(resuming.*\n)?(epoch .*\n)*", printed.out)
    numbers = r"sentences/s=[\d.e+]+, loss=[\d.]+, (val_mcc=-?[\d.e-]+, )?accuracy=[\d.]+"
    pattern = rf"step (\d+)/{total}, \d\d:\d\d left, {numbers}, run={tmp_path.name}"
    steps = [[int(re.fullmatch(pattern, line)[1]) for line in lines] for lines in told]
    assert steps == [[2, 4], [6, *range(8, total + 1, 2)]]
    assert ["val_mcc" in lines[-1] for lines in told] == [False, True]


def test_judging_and_asking_a_teacher_count_every_sentence_once(
    small, clock, tmp_path, monkeypatch, capsys
):
    """A batch takes 40 s. What is saved of a teacher's answers is not read again."""
    pack = data_utils.pack
    monkeypatch.setattr(data_utils, "pack", lambda *a: clock.tick(40) or pack(*a))
    monkeypatch.setattr(data_utils, "MAX_TOKENS", 100)
    monkeypatch.setattr(support.teaching.answers, "CHUNK", 300)
    split, teacher = small[TRAIN].chosen(np.arange(80)), classifier(NANO)
    with progress_bar("judging", len(split)) as bar:
        predict_logits(teacher, split, CPU, bar)
    teacher_answers(split, teacher, "one", CPU, 8, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    for what in ("judging", "teacher reads sentence"):
        found = [int(line.split()[-3].split("/")[0]) for line in lines if line.startswith(what)]
        assert len(found) > 5
        assert found == sorted(set(found))
        assert found[-1] == 80
    teacher_answers(split, teacher, "one", CPU, 8, tmp_path)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------------------------
# steps.csv


@pytest.mark.parametrize("looks", [1, 3])
def test_a_row_a_step_says_what_the_step_was(small, tmp_path, monkeypatch, looks):
    """Also where losses are looked at now and then, as on a GPU."""
    monkeypatch.setitem(READ_EVERY, "cpu", looks)
    training = training_of(small, hints=Hints())
    progress = train(training, tmp_path)
    table = pd.read_csv(tmp_path / "steps.csv")
    assert list(table) == ["step", "learning_rate", "train_loss", "hint_loss", "seconds"]
    assert table["step"].tolist() == [*range(1, 11)]
    rates = [learning_rate(training.options, step, 150) for step in range(10)]
    assert table["learning_rate"].tolist() == rates
    sizes = [32, 32, 32, 32, 22]
    for number, row in enumerate(progress.history):
        of_epoch = table[5 * number : 5 * number + 5]
        for name in ("train_loss", "hint_loss"):
            assert row[name] == pytest.approx(np.average(of_epoch[name], weights=sizes))
    train(training_of(small), tmp_path / "without")
    assert "hint_loss" not in pd.read_csv(tmp_path / "without" / "steps.csv")


def test_a_kill_at_any_write_leaves_the_rows_of_the_run_left_alone(small, tmp_path, monkeypatch):
    """Each step is saved. At the last moment nothing is left to be killed."""
    monkeypatch.setattr(resumption, "SAVE_EVERY", -1)
    few = {"batch_size": 64, "max_steps": 4}  # three steps in the first epoch
    train(training_of(small, **few), tmp_path / "alone")
    expected = kills.content(tmp_path / "alone" / "steps.csv")
    assert [row[0] for row in expected] == ["1", "2", "3", "4"]
    assert {len(row) for row in expected} == {3}  # without the seconds
    for moment in range(20):
        folder, survived = tmp_path / str(moment), False
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", dying(moment, os.replace))
            train(training_of(small, **few), folder)
            survived = True
        if survived:
            break
        train(training_of(small, **few), folder)
        assert kills.content(folder / "steps.csv") == expected
    assert survived
    assert moment > 10


def test_a_run_whose_steps_are_lost_goes_on_with_those_that_follow(small, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(training_of(small, stopping(7)), tmp_path)  # the sixth evaluated an epoch
    (tmp_path / "steps.csv").unlink()
    train(training_of(small), tmp_path)
    assert pd.read_csv(tmp_path / "steps.csv")["step"].tolist() == [7, 8, 9, 10]


def test_another_run_finds_no_steps_and_no_events(tmp_path):
    write_json(tmp_path / "metrics.json", {"identity": {"lr": 1}})
    (tmp_path / "steps.csv").touch()
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events").touch()
    with claim(tmp_path, {"identity": {"lr": 2}, "command": ""}, overwrite=True) as run:
        assert not run.finished
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "unfinished.json"}


# ---------------------------------------------------------------------------------------------
# TensorBoard


@pytest.mark.skipif(INSTALLED, reason="tensorboard is installed")
def test_without_the_package_the_option_is_refused_in_a_line(capsys):
    for mode in ("LoRA", "rnn", "distil", "all"):
        with pytest.raises(SystemExit, match="2"):
            parse(["--mode", mode, "--gpt_variant", "nano", "--tensorboard"])
        error = capsys.readouterr().err
        assert "--tensorboard: that package is not installed; pip install tensorboard" in error
        assert error.count("\n") == 1


@pytest.mark.skipif(not INSTALLED, reason="tensorboard is not installed")
def test_tensorboard_shows_each_step_once_also_after_a_kill(small, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"hints": Hints(), "tensorboard": True}
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(resumption, "SAVE_EVERY", -1)
        patch.setattr(resumption, "write_tensors", dying(6, resumption.write_tensors))
        train(training_of(small, **changes), tmp_path)
    assert len(pd.read_csv(tmp_path / "steps.csv")) == 6  # of which five are in the state
    train(training_of(small, **changes), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    table, history = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("steps", "history"))
    for group, rows, steps in (("step", table, [*range(1, 11)]), ("epoch", history, [5, 10])):
        for name in set(rows) - {"step"}:
            shown = events.Scalars(f"{group}/{name}")
            assert [event.step for event in shown] == steps
            assert [event.value for event in shown] == pytest.approx(rows[name].tolist())
