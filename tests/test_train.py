"""The loop, metrics, files replaced whole, resuming, and whose a run's folder is."""

import json
import math
import os
import signal
import threading
import time
import warnings
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from conftest import NANO, classifier
from hypothesis import given
from hypothesis import strategies as st

import data_utils
import run
from data_utils import Split
from distil import distillation, teacher_fingerprint
from predict import load_model
from student import DistilRNN
from support import processes
from support.checkpoints.export import write_files
from support.devices import CPU
from support.errors import UserError, explain
from support.files import read_json, read_tensors, write_bytes, write_json, write_tensors
from support.reporting import describe, measure
from support.reporting.finished import find_runs
from support.reporting.metrics import matthews_corrcoef
from support.runs import Progress, SavedState, check_finished, claim
from train_utils import (
    Training,
    accumulate_gradients,
    cross_entropy,
    learning_rate,
    predict_logits,
    train,
)

OPTIONS = {
    "sr_no": 1, "batch_size": 32, "lr": 1e-3, "epochs": 2, "patience": 3, "monitor": "accuracy",
    "max_steps": None, "lr_schedule": "constant",
}  # fmt: skip


@pytest.fixture(scope="module")
def small(nano_corpus) -> dict[str, Split]:
    """150 training and 60 dev sentences of nano's corpus."""
    sizes = {"in_domain_train": 150, "in_domain_dev": 60, "out_of_domain_dev": 60}
    return {name: nano_corpus[name].chosen(np.arange(n)) for name, n in sizes.items()}


def new_student(corpus, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(1)
    student = DistilRNN(corpus["in_domain_train"].input_ids.unique(), width=32)
    if dropout:
        student.linear = torch.nn.Sequential(torch.nn.Dropout(dropout), student.linear)
    return student


def training_of(corpus, model=None, loss=cross_entropy, **changes) -> Training:
    """A training of a new student by ``OPTIONS``, with changes."""
    model = model or new_student(corpus)
    return Training(model, corpus, loss, Namespace(**OPTIONS | changes), CPU)


# ---------------------------------------------------------------------------------------------
# Metrics


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=50))
def test_mcc_is_scikit_learns(pairs):
    labels, predictions = np.array(pairs).T
    with warnings.catch_warnings(action="ignore"):  # it says so where there is one class only
        expected = sklearn.metrics.matthews_corrcoef(labels, predictions)
    assert matthews_corrcoef(labels, predictions) == pytest.approx(expected, abs=1e-12)


def test_metrics_are_scikit_learns():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 2), torch.randint(0, 2, (200,))
    found, predictions = measure(logits, labels), logits.argmax(1)
    assert found["accuracy"] == sklearn.metrics.accuracy_score(labels, predictions)
    loss = sklearn.metrics.log_loss(labels, logits.double().softmax(1).numpy())
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["correct"] == int((labels == predictions).sum())


def test_a_model_that_answers_one_class_only_is_called_that():
    metrics = measure(torch.tensor([[0.0, 1.0]] * 3), torch.tensor([1, 1, 0]))
    assert 'answers "acceptable" to everything' in describe(metrics)
    assert "majority baseline 66.67%" in describe(metrics)
    assert "MCC 0.000" in describe(metrics)
    mixed = measure(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
    assert "everything" not in describe(mixed)


# ---------------------------------------------------------------------------------------------
# The step


@pytest.mark.parametrize("loss", [cross_entropy, distillation(2.0, 0.5)], ids=["ce", "kd"])
def test_a_batch_cut_in_pieces_has_the_gradients_of_the_whole(small, loss, monkeypatch):
    split = small["in_domain_train"]
    taught = {"in_domain_train": replace(split, teacher_logits=torch.randn(len(split), 2))}
    training = training_of(taught, classifier(NANO), loss)
    results, gradients = [], []
    for max_tokens in (10**6, 50):
        monkeypatch.setattr(data_utils, "MAX_TOKENS", max_tokens)
        training.model.zero_grad()
        result, counts = accumulate_gradients(training, np.arange(64))
        assert counts == (64, 64, split.seqlens[:64].sum())
        results.append(result.tolist())
        gradients.append([p.grad.clone() for p in training.model.parameters()])
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[0][1] == results[1][1]
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(small, tmp_path):
    calls = []

    def loss(logits, examples, counts):
        calls.append(1)
        return cross_entropy(logits, examples, counts) * (math.nan if len(calls) == 8 else 1.0)

    with pytest.raises(UserError, match="the loss is nan at step 7; lower --lr"):
        train(training_of(small, loss=loss), tmp_path)
    kept, metadata = read_tensors(tmp_path / "state.safetensors")
    assert json.loads(metadata["progress"])["steps"] == 5
    assert all(tensor.isfinite().all() for tensor in kept.values())


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        (1e37, "loss on in_domain_dev is (inf|nan) after epoch 1"),
        (1e39, "(is nan|not finite) after"),
    ],
)
def test_a_last_step_that_ruins_the_weights_is_not_taken_for_an_epoch(small, tmp_path, lr, words):
    """No training step follows whose loss could say so."""
    with pytest.raises(UserError, match=words):
        train(training_of(small, lr=lr, max_steps=1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_epoch_that_answers_one_class_only_is_called_that(small, tmp_path, capsys):
    def loss(logits, examples, counts):
        return -logits[:, 1].sum() / counts.sentences  # "acceptable", whatever the sentence

    train(training_of(small, loss=loss, epochs=1, lr=0.1), tmp_path)
    assert 'MCC 0.000  <- answers "acceptable" to everything' in capsys.readouterr().out


def test_training_stops_when_patience_runs_out_and_keeps_the_best_epoch(small, tmp_path):
    training = training_of(small, epochs=30, patience=2, lr=1e-2)
    progress = train(training, tmp_path)
    assert progress.stopped == "patience"
    assert progress.epoch == progress.best_epoch + 2
    watched = [row["val_accuracy"] for row in progress.history]
    assert watched.index(max(watched)) == progress.best_epoch - 1
    dev = small["in_domain_dev"]
    kept = measure(predict_logits(training.model, dev, CPU), dev.labels)
    assert kept["accuracy"] == max(watched)


def test_watching_nothing_keeps_the_last_epoch_whatever_it_scores(small, tmp_path, capsys):
    training = training_of(small, epochs=4, patience=1, lr=1e-2, monitor="none")
    progress = train(training, tmp_path)
    assert (progress.stopped, progress.best_epoch) == ("epochs", 4)
    scores = [row["val_accuracy"] for row in progress.history]
    assert max(scores) > scores[-1]  # another epoch would have been taken by its score
    dev = small["in_domain_dev"]
    assert measure(predict_logits(training.model, dev, CPU), dev.labels)["accuracy"] == scores[-1]
    assert "best" not in capsys.readouterr().out


def test_max_steps_stops_in_the_middle_of_an_epoch(small, tmp_path):
    progress = train(training_of(small, max_steps=7), tmp_path)
    assert (progress.steps, progress.epoch, progress.stopped) == (7, 2, "max_steps")


# ---------------------------------------------------------------------------------------------
# Resuming


def final(training, progress):
    timed = ("seconds", "sentences_per_second")
    rows = [{k: v for k, v in row.items() if k not in timed} for row in progress.history]
    return {name: tensor.clone() for name, tensor in training.model.state_dict().items()}, rows


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [1, 5, 8])
def test_an_interrupted_run_ends_bit_for_bit_as_the_one_that_was_not(
    small, tmp_path, after, number
):
    """The signal falls in step ``after``; with dropout, which depends on the step alone."""

    def new_training(loss=cross_entropy):
        return training_of(small, new_student(small, dropout=0.3), loss, epochs=3)

    whole = new_training()
    weights, rows = final(whole, train(whole, tmp_path / "whole"))
    calls = []

    def interrupting(*examples):
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), number)
        return cross_entropy(*examples)

    with pytest.raises(KeyboardInterrupt):
        train(new_training(interrupting), tmp_path / "cut")
    assert len(calls) <= after + 1  # the epoch's evaluation, after its last step
    again = new_training()
    found, found_rows = final(again, train(again, tmp_path / "cut"))
    assert found_rows == rows
    for name, tensor in found.items():
        assert torch.equal(tensor, weights[name]), name


def new_state(folder, value: float) -> SavedState:
    """A state after one step of Adam, or of what the folder has."""
    parameter = torch.nn.Parameter(torch.full((3,), value))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    parameter.grad = torch.full((3,), value)
    optimizer.step()
    return SavedState(folder, {"w": parameter}, optimizer, "a corpus")


def test_the_state_keeps_weights_moments_best_weights_and_progress(tmp_path):
    saved = new_state(tmp_path, 1.0)
    assert saved.progress == Progress(corpus="a corpus")  # there is no file yet
    row = dict(epoch=1, val_loss=0.1 + 0.2, val_accuracy=1 / 3, val_mcc=0.0, seconds=1.0)
    saved.progress.finish_epoch(row, "none")
    saved.keep_best()
    saved.parameters["w"].data += 1
    saved.progress.steps = 5
    saved.save()
    loaded = new_state(tmp_path, 7.0)
    assert loaded.progress == saved.progress  # to the last bit
    assert (saved.progress.steps, saved.progress.best_epoch) == (5, 1)
    kinds = ("weight", "best", "step", "exp_avg", "exp_avg_sq")
    assert set(saved.tensors) == {f"{kind}.w" for kind in kinds}
    for name, tensor in saved.tensors.items():
        assert torch.equal(tensor, loaded.tensors[name]), name
    assert not torch.equal(loaded.best["w"], loaded.parameters["w"])
    loaded.restore_best()
    assert torch.equal(loaded.best["w"], loaded.parameters["w"])


def test_weights_that_are_not_finite_do_not_replace_the_saved_ones(tmp_path):
    state = new_state(tmp_path, 1.0)
    state.progress.steps = 1
    state.save()
    state.parameters["w"].data[1] = math.nan
    state.progress.steps = 2
    with pytest.raises(UserError, match="weights are not finite after step 2"):
        state.save()
    kept = new_state(tmp_path, 2.0)
    assert kept.progress.steps == 1
    assert kept.parameters["w"].isfinite().all()


def test_a_state_saved_on_other_sentences_is_refused(small, tmp_path):
    train(training_of(small, max_steps=2), tmp_path)
    other = {**small, "in_domain_train": small["in_domain_train"].chosen(np.arange(100))}
    with pytest.raises(UserError, match=r"state.safetensors: saved while training on other"):
        train(training_of(other, new_student(small)), tmp_path)
    assert train(training_of(small, max_steps=2), tmp_path).steps == 2


def test_a_falling_learning_rate_ends_at_nothing_and_a_constant_one_is_itself():
    constant, falling = Namespace(**OPTIONS), Namespace(**OPTIONS | {"lr_schedule": "linear"})
    rates = [learning_rate(falling, step, 300) for step in range(2 * 10)]  # 2 epochs of 10 steps
    assert rates == pytest.approx([1e-3 * (1 - step / 20) for step in range(20)])
    assert {learning_rate(constant, step, 300) for step in range(20)} == {1e-3}
    falling.max_steps = 4
    assert learning_rate(falling, 3, 300) == pytest.approx(0.25e-3)


# ---------------------------------------------------------------------------------------------
# Files


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "some.json"
    write_json(path, {"old": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = r"some\.json: cannot be written \(No space left on device\); what was saved before is"
    with pytest.raises(UserError, match=words):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file/some.json", "file/deep/some.json", "folder", "n" * 250])
def test_a_place_where_nothing_can_be_written_is_refused_by_name(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{name}: cannot be written"):
        write_bytes(tmp_path / name, b"")
    with pytest.raises(UserError, match="file/folder: cannot be written"):
        write_files(tmp_path / "file" / "folder", lambda folder: None)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "some.bin"
    contents = [bytes([n]) * 500_000 for n in (1, 2)]
    write_bytes(path, contents[0])
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            content = path.read_bytes()
            seen.add((len(content), len(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        for content in contents:
            write_bytes(path, content)
    stop.set()
    reader.join()
    assert seen == {(500_000, 1)}


def test_files_that_a_library_writes_are_moved_in_whole(tmp_path):
    def fails(folder):
        (folder / "a.txt").write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        write_files(tmp_path, fails)
    assert (tmp_path / "a.txt").read_text() == "old"
    write_files(tmp_path, lambda folder: (folder / "b.txt").write_text("new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    written = set()
    for _ in range(20):
        write_tensors(tmp_path / "some", {"w": torch.ones(2)}, {"base": "of nano"})
        written.add((tmp_path / "some").read_bytes())
    assert len(written) == 1


# ---------------------------------------------------------------------------------------------
# A run's folder

MARK, METRICS, STATE = "unfinished.json", "metrics.json", "state.safetensors"
WEIGHTS = "model.safetensors"


def description(**identity) -> dict:
    """What a run says of itself beforehand; its identity is a learning rate, unless told others."""
    command = f"python run.py --lr {identity.get('lr')}"
    return {"identity": {"base": "a" * 64, **identity}, "command": command}


def asked(folder, overwrite=False, finish=True, unknown=None, **identity) -> bool:
    """Whether this run is found finished; else it is trained, and finished where ``finish``."""
    with claim(folder, description(**identity), overwrite, unknown) as run:
        if not run.finished:
            assert (folder / MARK).exists()
            (folder / STATE).write_text(f"state of {identity}")
            (folder / WEIGHTS).write_text(f"weights of {identity}")
            if finish:
                run.finish({}, {}, {}, [{"split": "in_domain_dev"}])
        return run.finished


def files(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


DONE = {METRICS, "predictions.csv", WEIGHTS}


def test_a_finished_run_is_found_finished_and_holds_no_state(tmp_path):
    assert not asked(tmp_path, lr=0.1)
    for _ in range(2):
        assert files(tmp_path) == DONE
        check_finished(tmp_path)
        assert asked(tmp_path, lr=0.1)
    assert read_json(tmp_path / METRICS)["identity"] == {"lr": 0.1, "base": "a" * 64}


def test_a_finished_run_is_shown_without_what_is_unknown_and_no_other_is(tmp_path, capsys):
    error = {"teacher": UserError("no teacher there")}
    with pytest.raises(UserError, match="no teacher there"):
        asked(tmp_path, lr=0.1, teacher=None, unknown=error)
    asked(tmp_path, lr=0.1, teacher="b" * 64)
    for changes in ({"overwrite": True}, {"lr": 0.2}):
        with pytest.raises(UserError, match="no teacher there"):
            asked(tmp_path, **{"lr": 0.1, "teacher": None, "unknown": error} | changes)
    assert asked(tmp_path, lr=0.1, teacher=None, unknown=error)
    assert capsys.readouterr().err == "note: no teacher there; the run is finished, and is shown\n"


RNN = {"mode": "rnn", "sr_no": 1, "lr": 0.001}


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        (
            {"lr": 0.1},
            {"lr": 0.2},
            r"\(lr is 0.1 there, 0.2 here\)\. Add --overwrite .*--sr_no.*--out",
        ),
        ({"base": "a" * 64}, {"base": "b" * 64}, r"\(base is a{12} there, b{12} here\)"),
        (RNN, {**RNN, "student_width": 256}, "student_width is 768 there, 256 here"),
        ({}, {"version": 2}, ": an earlier version of this project wrote this run.*--overwrite"),
    ],
)
def test_another_identity_is_refused_and_says_what_differs(tmp_path, finish, there, here, words):
    asked(tmp_path, finish=finish, **there)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(UserError, match=words):
        asked(tmp_path, **here)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_an_option_that_came_later_has_its_published_value(tmp_path):
    asked(tmp_path, **RNN)
    assert asked(tmp_path, **RNN, lr_schedule="constant", student_width=768, held_out=0)


def test_more_epochs_for_a_finished_run_are_refused_with_the_ways_out(tmp_path):
    asked(tmp_path, mode="rnn", epochs=2)
    words = "epochs is 2 there, 3 here.*A finished run is not extended.*--overwrite"
    with pytest.raises(UserError, match=words):
        asked(tmp_path, mode="rnn", epochs=3)


def test_a_run_that_had_saved_nothing_makes_way_for_another(tmp_path):
    """As one whose options were refused after it had begun."""
    with claim(tmp_path, description(lr=0.1), overwrite=False) as run:
        assert not run.finished
    assert files(tmp_path) == {MARK}
    assert not asked(tmp_path, lr=0.2)
    assert files(tmp_path) == DONE


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *product((MARK, METRICS), (b"cut", b'{"old": "metrics"}', b'{"identity": []}')),
        (WEIGHTS, b"of somebody"),
        ("adapter_config.json", b"of somebody"),
        (STATE, b"of somebody"),
    ],
)
def test_a_folder_without_an_identity_is_refused_and_overwritten(tmp_path, name, content):
    (tmp_path / WEIGHTS).write_text("whose?")
    (tmp_path / name).write_bytes(content)
    before = files(tmp_path)
    with pytest.raises(UserError, match="not a run of this project; add --overwrite to replace it"):
        asked(tmp_path, lr=0.1)
    assert files(tmp_path) == before
    assert not asked(tmp_path, overwrite=True, lr=0.1)
    assert files(tmp_path) == DONE


@pytest.mark.parametrize("lr", [0.1, 0.2])
def test_overwrite_clears_a_finished_run_before_the_first_step(tmp_path, lr):
    asked(tmp_path, lr=0.1)
    with claim(tmp_path, description(lr=lr), overwrite=True) as run:
        assert not run.finished
        assert files(tmp_path) == {MARK}


def test_overwrite_goes_on_with_this_run_where_it_was_interrupted_and_clears_any_other(tmp_path):
    def state_found(lr: float, overwrite: bool) -> str | None:
        with claim(tmp_path, description(lr=lr), overwrite) as run:
            assert not run.finished
            state = tmp_path / STATE
            found = state.read_text() if state.exists() else None
            state.write_text(str(lr))
        return found

    asks = ((0.1, True), (0.1, False), (0.1, True), (0.2, True), (0.2, True))
    assert [state_found(*ask) for ask in asks] == [None, "0.1", "0.1", None, "0.2"]
    (tmp_path / MARK).write_bytes(b"cut")
    assert state_found(0.2, overwrite=True) is None


def test_a_kill_while_a_run_is_finished_is_gone_on_from(tmp_path):
    asked(tmp_path, finish=False, lr=0.1)
    mark, state = ((tmp_path / name).read_bytes() for name in (MARK, STATE))
    asked(tmp_path, lr=0.1)
    (tmp_path / STATE).write_bytes(state)  # killed between the removal of the mark and of the state
    assert asked(tmp_path, lr=0.1)
    assert files(tmp_path) == DONE
    (tmp_path / STATE).write_bytes(state)  # killed between metrics.json and the mark's removal
    (tmp_path / MARK).write_bytes(mark)
    with pytest.raises(UserError, match="not finished"):
        check_finished(tmp_path)
    before = files(tmp_path)
    with claim(tmp_path, json.loads(mark), overwrite=False) as run:
        assert not run.finished
        assert files(tmp_path) == before >= {STATE, WEIGHTS}
    assert not asked(tmp_path, lr=0.1)
    assert files(tmp_path) == DONE


def test_a_kill_at_any_change_of_the_folder_leaves_one_whole_run_or_none(tmp_path, monkeypatch):
    moment, done = 0, False
    while not done:
        folder, changes_left = tmp_path / str(moment), list(range(moment))
        asked(folder, lr=0.1)

        def dying(change, changes_left=changes_left):
            def changing(*arguments, **settings):
                if not changes_left:
                    raise KeyboardInterrupt
                changes_left.pop()
                return change(*arguments, **settings)

            return changing

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(Path, "unlink", dying(Path.unlink))
            done = not asked(folder, overwrite=True, lr=0.2)
        if MARK not in files(folder):
            lr = read_json(folder / METRICS)["identity"]["lr"]
            assert files(folder) - {STATE, f"{MARK}.partial"} == DONE
            assert (folder / WEIGHTS).read_text() == f"weights of {dict(lr=lr)}"
        assert not asked(folder, overwrite=True, lr=0.2)
        assert files(folder) == DONE
        moment += 1
    assert moment > len(DONE)


def test_an_unfinished_run_is_no_model_and_says_what_finishes_it(tmp_path):
    folder = tmp_path / "checkpoints" / "LoRA_nano_7"
    asked(folder, finish=False, lr=0.1)
    options = dict(teacher=folder, checkpoint=folder, gpt_variant="nano", sr_no=7, given=set())
    args = Namespace(**options, out_dir=tmp_path)
    words = r"not finished; finish it with: python run\.py --lr 0\.1$"
    asked_as_a_teacher = (
        (lambda _: load_model(folder, args)),
        (lambda _: teacher_fingerprint(folder, args)),
    )
    for read in (check_finished, *asked_as_a_teacher):
        with pytest.raises(UserError, match=words):
            read(folder)
    (folder / METRICS).write_text("{}")  # the mark alone counts
    with pytest.raises(UserError, match="no finished run with sr_no 7"):
        find_runs(tmp_path, [7])


def test_a_second_command_on_the_same_folder_is_refused(tmp_path):
    with claim(tmp_path, description(lr=0.1), overwrite=False):
        for overwrite in (False, True):
            with pytest.raises(UserError, match="another command is at work"):
                asked(tmp_path, overwrite, lr=0.1)
        assert files(tmp_path) == {MARK}
    assert not asked(tmp_path, lr=0.1)  # free again


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*; choose another --out_dir"):
        asked(tmp_path / "file" / "run", lr=0.1)


# ---------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "choose a smaller --gpt_variant"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "choose a smaller --gpt_variant",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "choose a smaller --gpt_variant",
        ),
        (OSError(28, "No space left on device", "x.json"), "x.json: No space left on device"),
        (PermissionError(13, "Permission denied", "x.json"), "x.json: Permission denied"),
        (UserError("one\nline"), "one line"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_that_the_user_can_mend_is_one_line(error, words):
    line = explain(error)
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a bug"),
        RuntimeError("a bug"),
        OSError("a bug"),
        FileNotFoundError(2, "No such file or directory", "a bug"),
        NotADirectoryError(20, "Not a directory", "a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_is_not_hidden(error, monkeypatch, tmp_path):
    assert explain(error) is None

    def fails(*arguments):
        raise error

    monkeypatch.setattr("data_utils.load_corpus", fails)
    with pytest.raises(type(error)) as caught:
        run.main(["--mode", "rnn", "--gpt_variant", "nano", "--out_dir", str(tmp_path)])
    assert caught.value is error


def test_out_of_memory_names_what_helps(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("data_utils.load_corpus", lambda *_: torch.empty(2**58))  # 2**60 bytes
    assert run.main(["--mode", "rnn", "--gpt_variant", "nano", "--out_dir", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(
        "run.py: error: out of memory; choose a smaller --gpt_variant, --student"
    )
    assert "--batch_size" not in line  # a batch is cut to data_utils.MAX_TOKENS


# ---------------------------------------------------------------------------------------------
# Several processes


@pytest.mark.parametrize(
    ("environment", "main", "first_of_machine"),
    [
        ({}, True, True),
        ({"RANK": "1"}, True, True),  # a variable of somebody else's
        ({"RANK": "1", "LOCAL_RANK": "1"}, True, True),
        ({"WORLD_SIZE": "1", "RANK": "1", "LOCAL_RANK": "1"}, True, True),
        ({"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, True, True),
        ({"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}, False, False),
        ({"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}, False, True),
    ],
)
def test_a_process_is_one_of_several_where_torchrun_says_how_many(
    environment, main, first_of_machine, monkeypatch
):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (processes.is_main(), processes.is_first_of_machine()) == (main, first_of_machine)
