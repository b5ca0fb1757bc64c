"""The loop, metrics, files replaced whole, resuming, and whose a run's folder is."""

import math
import os
import signal
import warnings
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from conftest import NANO, TRAINING, classifier
from hypothesis import given
from hypothesis import strategies as st

import data_utils
import run
from data_utils import Split
from distil import distillation
from student import DistilRNN
from support import processes
from support.checkpoints.export import write_files
from support.corpus import DEV, SPLITS, TRAIN
from support.devices import CPU
from support.errors import UserError
from support.files import read_json, read_tensors, write_bytes, write_json, write_tensors
from support.reporting import measure
from support.runs import check_finished, claim
from train_utils import (
    Training,
    accumulate_gradients,
    cross_entropy,
    learning_rate,
    predict_logits,
    train,
)

OPTIONS = {**TRAINING, "batch_size": 32, "epochs": 2}
LONG = {"epochs": 3, "lr": 1e-2, "dropout": 0.3}  # which depends on the step alone


@pytest.fixture(scope="module")
def small(nano_corpus) -> dict[str, Split]:
    """150 training sentences of nano's corpus, five steps an epoch, and 60 of each dev set."""
    sizes = zip(SPLITS, (150, 60, 60), strict=True)
    return {name: nano_corpus[name].chosen(np.arange(n)) for name, n in sizes}


def training_of(corpus, model=None, loss=cross_entropy, dropout=0.0, **changes) -> Training:
    """A training by ``OPTIONS``, with changes, of a new student unless a model is given."""
    torch.manual_seed(1)
    model = model or DistilRNN(corpus[TRAIN].input_ids.unique(), 32, dropout)
    return Training(model, corpus, loss, Namespace(**OPTIONS | changes), CPU)


# ---------------------------------------------------------------------------------------------
# Metrics


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=50))
def test_metrics_are_scikit_learns(pairs):
    labels, answers = torch.tensor(pairs).T
    torch.manual_seed(0)
    logits = 1.5 * F.one_hot(answers, 2) + torch.rand(len(labels), 2)
    found, p = measure(logits, labels), logits.double().softmax(1).numpy()
    with warnings.catch_warnings(action="ignore"):  # it says so where there is one class only
        mcc = sklearn.metrics.matthews_corrcoef(labels, answers)
    assert found["mcc"] == pytest.approx(mcc, abs=1e-12)
    assert found["accuracy"] == sklearn.metrics.accuracy_score(labels, answers)
    assert found["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, p, labels=[0, 1]))
    assert found["correct"] == (labels == answers).sum()


# ---------------------------------------------------------------------------------------------
# The step


@pytest.mark.parametrize("loss", [cross_entropy, distillation(2.0, 0.5)], ids=["ce", "kd"])
def test_a_batch_cut_in_pieces_has_the_gradients_of_the_whole(small, loss, monkeypatch):
    split = small[TRAIN]
    taught = {TRAIN: replace(split, teacher_logits=torch.randn(len(split), 2))}
    training = training_of(taught, classifier(NANO), loss)
    results, gradients = [], []
    for max_tokens in (10**6, 50):
        monkeypatch.setattr(data_utils, "MAX_TOKENS", max_tokens)
        training.model.zero_grad()
        result, counts = accumulate_gradients(training, np.arange(64))
        assert counts == (64, 64, split.seqlens[:64].sum())
        results.append(result)
        gradients.append([p.grad.clone() for p in training.model.parameters()])
    torch.testing.assert_close(*results, atol=0, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_falling_learning_rate_ends_at_nothing_and_a_constant_one_is_itself():
    constant, falling = Namespace(**OPTIONS), Namespace(**OPTIONS | {"lr_schedule": "linear"})
    rates = [learning_rate(falling, step, 300) for step in range(2 * 10)]  # 2 epochs of 10 steps
    assert rates == pytest.approx([1e-3 * (1 - step / 20) for step in range(20)])
    assert {learning_rate(constant, step, 300) for step in range(20)} == {1e-3}
    falling.max_steps = 4
    assert learning_rate(falling, 3, 300) == pytest.approx(0.25e-3)


@pytest.mark.parametrize(
    ("spoilt", "words"), [("loss", "loss is nan at"), ("gradient", "weights are not finite after")]
)
def test_numbers_that_are_not_finite_end_training_and_are_not_saved(small, tmp_path, spoilt, words):
    calls = []

    def loss(logits, examples, counts):
        calls.append(1)
        whole = cross_entropy(logits, examples, counts)
        if len(calls) != 8:  # the sixth evaluated the first epoch
            return whole
        if spoilt == "loss":
            return whole * math.nan
        os.kill(os.getpid(), signal.SIGINT)  # after which the state would be saved
        return whole + (0 * logits).sqrt().sum()  # it adds 0, with a gradient of nan

    with pytest.raises((UserError, KeyboardInterrupt), match=f"{words} step 7; lower --lr"):
        train(training_of(small, loss=loss), tmp_path)
    kept, metadata = read_tensors(tmp_path / "state.safetensors")
    assert '"steps": 5' in metadata["progress"]
    assert all(tensor.isfinite().all() for tensor in kept.values())


@pytest.mark.parametrize("lr", [1e37, 1e39])
def test_a_last_step_that_ruins_the_weights_is_not_taken_for_an_epoch(small, tmp_path, lr):
    """No training step follows whose loss could say so."""
    with pytest.raises(UserError, match=r"loss on in_domain_dev is (inf|nan) after epoch 1"):
        train(training_of(small, lr=lr, max_steps=1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_epoch_that_answers_one_class_only_is_called_that(small, tmp_path, capsys):
    def loss(logits, examples, counts):
        return -logits[:, 1].sum() / counts.sentences  # "acceptable", whatever the sentence

    train(training_of(small, loss=loss, lr=0.1), tmp_path)
    assert 'MCC 0.000  <- answers "acceptable" to everything' in capsys.readouterr().out
    train(training_of(small, lr=1e-2), tmp_path / "usual")
    assert "everything" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stopped", "options"),
    [
        ("patience", {"epochs": 30, "patience": 2}),
        ("epochs", {"epochs": 4, "patience": 1, "monitor": "none"}),
        ("max_steps", {"max_steps": 7}),
    ],
)
def test_training_ends_as_it_is_asked_to_and_keeps_the_epoch_that_is_best(
    small, tmp_path, capsys, stopped, options
):
    """The first of the best accuracy; where nothing is watched, the last, whatever it scores."""
    training = training_of(small, lr=1e-2, **options)
    progress = train(training, tmp_path)
    watched = [row["val_accuracy"] for row in progress.history]
    best = watched.index(max(watched)) + 1
    if stopped == "epochs":
        assert best < 4  # by its score an earlier one would be taken
        best = 4
    epochs = {"patience": best + 2, "epochs": 4, "max_steps": 2}[stopped]
    reached = progress.stopped, progress.epoch, progress.best_epoch, progress.steps
    assert reached == (stopped, epochs, best, options.get("max_steps", 5 * epochs))
    assert ("best so far" in capsys.readouterr().out) == (stopped != "epochs")
    kept = measure(predict_logits(training.model, small[DEV], CPU), small[DEV].labels)
    assert kept["accuracy"] == watched[best - 1]


# ---------------------------------------------------------------------------------------------
# Resuming


def ended(training, folder) -> tuple[dict, list]:
    """What a training leaves: the model's weights, and its history but for the time."""
    progress, timed = train(training, folder), ("seconds", "sentences_per_second")
    rows = [{k: v for k, v in row.items() if k not in timed} for row in progress.history]
    return training.model.state_dict(), rows


@pytest.fixture(scope="module")
def uninterrupted(small, tmp_path_factory):
    """What three epochs leave; the first or the second is the best one."""
    weights, rows = ended(training_of(small, **LONG), tmp_path_factory.mktemp("whole"))
    watched = [row["val_accuracy"] for row in rows]
    assert max(watched) > watched[2]
    return weights, rows


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [1, 5, 8, 14])
def test_an_interrupted_run_ends_bit_for_bit_as_the_one_that_was_not(
    small, uninterrupted, tmp_path, after, number
):
    """The signal falls in the loss numbered ``after``, the last one in the third epoch."""
    calls = []

    def interrupting(*examples):
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), number)
        return cross_entropy(*examples)

    with pytest.raises(KeyboardInterrupt):
        train(training_of(small, loss=interrupting, **LONG), tmp_path)
    assert len(calls) <= after + 1  # the epoch's evaluation, after its last step
    found = ended(training_of(small, **LONG), tmp_path)
    torch.testing.assert_close(found, uninterrupted, atol=0, rtol=0)


def test_a_state_saved_on_other_sentences_is_refused(small, tmp_path):
    train(training_of(small, max_steps=2), tmp_path)
    other = {**small, TRAIN: small[TRAIN].chosen(np.arange(100))}
    with pytest.raises(UserError, match=r"state.safetensors: saved while training on other"):
        train(training_of(other, training_of(small).model), tmp_path)
    assert train(training_of(small, max_steps=2), tmp_path).steps == 2


# ---------------------------------------------------------------------------------------------
# Files


def by_a_library(path: Path, content: bytes) -> None:
    write_files(path.parent, lambda folder: (folder / path.name).write_bytes(content))


@pytest.mark.parametrize("write", [write_bytes, by_a_library])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, write):
    path = tmp_path / "some.bin"
    write(path, b"old")
    words = r"cannot be written \(No space left on device\); what was saved before is whole"
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(UserError, match=words):
            write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["file/some.json", "file/deep/some.json", "folder", "n" * 250])
def test_a_place_where_nothing_can_be_written_is_refused_by_name(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{name}: cannot be written"):
        write_bytes(tmp_path / name, b"")
    with pytest.raises(UserError, match="file/folder: cannot be written"):
        write_files(tmp_path / "file" / "folder", lambda folder: None)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


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
DONE = {METRICS, "predictions.csv", WEIGHTS}
REFUSED = None


def description(**identity) -> dict:
    """What a run says of itself beforehand; its identity is a learning rate, unless told others."""
    return {"identity": {"base": "a" * 64, "lr": 0.1, **identity}, "command": "python run.py"}


def asked(folder, overwrite=False, **identity) -> set[str]:
    """Train a run, unless it is finished; return the files that it finds where it begins."""
    with claim(folder, description(**identity), overwrite) as run:
        found = set(files(folder))
        assert run.finished == (MARK not in found)
        if not run.finished:
            assert read_json(folder / MARK) == run.description
            (folder / STATE).write_text(f"state of {identity}")
            (folder / WEIGHTS).write_text(f"weights of {identity}")
            run.finish({}, {}, {}, [{"split": "in_domain_dev"}])
    return found


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize(
    ("left", "this", "this_anew", "other"),
    [
        (set(), {MARK}, {MARK}, {MARK}),
        ({MARK}, {MARK}, {MARK}, {MARK}),  # its options were refused, say
        ({MARK, STATE}, {MARK, STATE}, {MARK, STATE}, REFUSED),
        ({MARK, STATE, *DONE}, {MARK, STATE, *DONE}, {MARK, STATE, *DONE}, REFUSED),
        ({MARK, *DONE}, {MARK}, {MARK}, REFUSED),
        ({STATE, *DONE}, DONE, {MARK}, REFUSED),
        (DONE, DONE, {MARK}, REFUSED),
    ],
    ids=["nothing", "begun", "saved", "as it ends", "as it clears", "later", "finished"],
)
def test_what_each_command_finds_in_a_folder(tmp_path, left, this, this_anew, other):
    """That of the run which is there, or of another, each without and with ``--overwrite``."""
    found = [(0.1, False, this), (0.1, True, this_anew), (0.2, False, other), (0.2, True, {MARK})]
    for number, (lr, overwrite, expected) in enumerate(found):
        folder = tmp_path / str(number)
        for name in left:
            write_json(folder / name, description(lr=0.1))
        if expected is REFUSED:
            with pytest.raises(UserError, match="holds another run"):
                asked(folder, overwrite, lr=lr)
            assert files(folder).keys() == left
        else:
            assert asked(folder, overwrite, lr=lr) == expected
            assert files(folder).keys() == DONE
            check_finished(folder)
            assert read_json(folder / METRICS)["identity"]["lr"] == lr


RNN = {"mode": "rnn", "sr_no": 1, "lr": 0.001}


@pytest.mark.parametrize("left", [DONE, {MARK, STATE}], ids=["finished", "interrupted"])
@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ({}, {"lr": 0.2}, r"\(lr is 0.1 there, 0.2 here\)\. Add --overwrite .*--sr_no.*--out"),
        ({}, {"base": "b" * 64}, r"\(base is a{12} there, b{12} here\)"),
        (RNN, {**RNN, "student_width": 256}, "student_width is 768 there, 256 here"),
        ({"epochs": 2}, {"epochs": 3}, "epochs is 2 there, 3 here.*--overwrite"),
        ({}, {"version": 2}, ": an earlier version of this project wrote this run.*--overwrite"),
    ],
)
def test_another_identity_is_refused_and_says_what_differs(tmp_path, left, there, here, words):
    for name in left:
        write_json(tmp_path / name, description(**there))
    before = files(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        asked(tmp_path, **here)
    more = "epochs" in here and left == DONE
    assert ("A finished run is not extended" in str(caught.value)) == more
    assert files(tmp_path) == before


def test_an_option_that_came_later_has_its_published_value(tmp_path):
    asked(tmp_path, **RNN)
    assert asked(tmp_path, **RNN, lr_schedule="constant", student_width=768, held_out=0) == DONE


@pytest.mark.parametrize(
    "left", [{WEIGHTS}, {"adapter_config.json"}, {STATE}, {METRICS}, {MARK, STATE, WEIGHTS}]
)
def test_a_folder_without_an_identity_is_refused_and_overwritten(tmp_path, left):
    for name in left:
        (tmp_path / name).write_bytes(b"whose?")
    with pytest.raises(UserError, match="not a run of this project; add --overwrite to replace it"):
        asked(tmp_path)
    assert files(tmp_path) == dict.fromkeys(left, b"whose?")
    assert asked(tmp_path, overwrite=True) == {MARK}


def test_an_error_before_anything_is_saved_leaves_no_mark(tmp_path):
    def trained(saved: bool):
        with claim(tmp_path, description(), False):
            if saved:
                (tmp_path / STATE).touch()
            raise UserError("refused")

    for saved in (False, True):
        with pytest.raises(UserError, match="refused"):
            trained(saved)
        assert files(tmp_path).keys() == ({MARK, STATE} if saved else set())


def test_a_kill_at_any_change_of_the_folder_leaves_one_whole_run_or_none(tmp_path, monkeypatch):
    changes_left = []

    def dying(change):
        def changing(*arguments, **settings):
            if not changes_left:
                raise KeyboardInterrupt
            changes_left.pop()
            return change(*arguments, **settings)

        return changing

    for moment in range(40):
        folder, survived = tmp_path / str(moment), False
        asked(folder, lr=0.1)
        changes_left[:] = range(moment)
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(Path, "unlink", dying(Path.unlink))
            asked(folder, overwrite=True, lr=0.2)
            survived = True
        if MARK not in files(folder):
            lr = read_json(folder / METRICS)["identity"]["lr"]
            assert files(folder).keys() - {STATE, f"{MARK}.partial"} == DONE
            assert (folder / WEIGHTS).read_text() == f"weights of {dict(lr=lr)}"
        assert MARK in asked(folder, overwrite=True, lr=0.2)
        assert files(folder).keys() == DONE
    assert survived  # a command makes fewer changes than these


# ---------------------------------------------------------------------------------------------
# Errors

MEMORY = "out of memory; choose a smaller --gpt_variant, --student_width"


@pytest.mark.parametrize(
    ("failing", "words"),
    [
        (lambda *_: torch.empty(2**58), MEMORY),  # 2**60 bytes
        (MemoryError(), MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MEMORY),
        (OSError(28, "No space left on device", "x.json"), "x.json: No space left on device"),
        (PermissionError(13, "Permission denied", "x.json"), "x.json: Permission denied"),
        (UserError("one\nline"), "one line"),
        (KeyError("a bug"), None),
        (RuntimeError("a bug"), None),
        (OSError("a bug"), None),
        (FileNotFoundError(2, "No such file or directory", "a bug"), None),
        (NotADirectoryError(20, "Not a directory", "a bug"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_that_the_user_can_mend_is_one_line_and_a_bug_is_not_hidden(
    failing, words, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr("data_utils.tokenize_corpus", Mock(side_effect=failing))
    command = ["--mode", "rnn", "--gpt_variant", "nano", "--out_dir", str(tmp_path)]
    if words:
        assert run.main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"run.py: error: {words}")
        assert error.count("\n") == 1
    else:
        with pytest.raises(type(failing)) as caught:
            run.main(command)
        assert caught.value is failing


# ---------------------------------------------------------------------------------------------
# Several processes


@pytest.mark.parametrize("size", [{}, {"WORLD_SIZE": "1"}])
def test_a_rank_means_nothing_where_no_number_of_processes_is_given(monkeypatch, size):
    """As another launcher than torchrun may leave it."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {"RANK": "1", "LOCAL_RANK": "1", **size})
        found = processes.is_main(), processes.is_first_of_machine()
    assert found == (True, True)
