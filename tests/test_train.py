"""The loop, metrics, files replaced whole, and resuming."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
from conftest import NANO
from hypothesis import given
from hypothesis import strategies as st

import run
import train_utils
from data_utils import PROJECT, Split, UserError
from distil import distillation
from model import DistilRNN, load_classifier
from train_utils import (
    Compute,
    Progress,
    Recipe,
    accumulate_gradients,
    cross_entropy,
    describe,
    is_finished,
    locked,
    matthews_corrcoef,
    measure,
    read_json,
    read_tensors,
    train,
    write_bytes,
    write_json,
)

CPU = Compute(torch.device("cpu"), "fp32")
RECIPE = Recipe(
    sr_no=1, batch_size=32, lr=1e-3, epochs=2, patience=3, monitor="accuracy", max_steps=None
)


@pytest.fixture(scope="module")
def small(nano_corpus):
    """150 training and 60 dev sentences of nano's corpus."""

    def head(split: Split, n: int) -> Split:
        end = split.cu_seqlens[n]
        return Split(
            split.sentences[:n], split.input_ids[:end], split.cu_seqlens[: n + 1], split.labels[:n]
        )

    sizes = {"in_domain_train": 150, "in_domain_dev": 60, "out_of_domain_dev": 60}
    return {name: head(nano_corpus[name], n) for name, n in sizes.items()}


def new_student(corpus, dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(1)
    student = DistilRNN(corpus["in_domain_train"].input_ids.unique(), width=32)
    if dropout:
        student.linear = torch.nn.Sequential(torch.nn.Dropout(dropout), student.linear)
    return student


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


def test_a_device_that_another_process_lacks_is_refused_in_all(monkeypatch):
    monkeypatch.setattr(train_utils, "any_process", lambda value: True)
    with pytest.raises(UserError, match=r"--device cpu: .*another process has none"):
        train_utils.choose_compute("cpu", None)


@pytest.mark.parametrize("loss_of", [cross_entropy, distillation(2.0, 0.5)], ids=["ce", "kd"])
def test_a_batch_cut_in_pieces_has_the_gradients_of_the_whole(small, loss_of, monkeypatch):
    split = copy.copy(small["in_domain_train"])
    split.teacher_logits = torch.randn(len(split), 2)
    model = load_classifier(NANO)
    steps, gradients = [], []
    for max_tokens in (10**6, 50):
        monkeypatch.setattr(train_utils, "MAX_TOKENS", max_tokens)
        model.zero_grad()
        steps.append(accumulate_gradients(model, split, np.arange(64), loss_of, CPU))
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert steps[0].loss.item() == pytest.approx(steps[1].loss.item(), rel=1e-5)
    assert steps[0].correct == steps[1].correct
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(small, tmp_path):
    calls = []

    def loss_of(logits, examples, totals):
        calls.append(1)
        return cross_entropy(logits, examples, totals) * (math.nan if len(calls) == 8 else 1.0)

    with pytest.raises(UserError, match="the loss is nan at step 7; lower --lr"):
        train(new_student(small), small, loss_of, RECIPE, CPU, tmp_path, {})
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
    recipe = RECIPE._replace(lr=lr, max_steps=1)
    with pytest.raises(UserError, match=words):
        train(new_student(small), small, cross_entropy, recipe, CPU, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_do_not_replace_the_saved_ones(tmp_path):
    parameter, path = torch.nn.Parameter(torch.ones(3)), tmp_path / "state.safetensors"
    state = train_utils.TrainState(path, {"w": parameter}, torch.optim.Adam([parameter]), {})
    state.save(Progress(steps=1))
    parameter.data[1] = math.nan
    with pytest.raises(UserError, match="weights are not finite after step 2"):
        state.save(Progress(steps=2))
    tensors, progress, _ = train_utils.read_state(path)
    assert progress.steps == 1
    assert tensors["weight.w"].isfinite().all()


def test_an_epoch_that_answers_one_class_only_is_called_that(small, tmp_path, capsys):
    def loss_of(logits, examples, totals):
        return -logits[:, 1].sum() / totals.sentences  # "acceptable", whatever the sentence

    recipe = RECIPE._replace(epochs=1, lr=0.1)
    train(new_student(small), small, loss_of, recipe, CPU, tmp_path, {})
    assert 'MCC 0.000  <- answers "acceptable" to everything  |' in capsys.readouterr().out


def test_training_stops_when_patience_runs_out_and_keeps_the_best_epoch(small, tmp_path):
    recipe = RECIPE._replace(epochs=30, patience=2, lr=1e-2)
    model = new_student(small)
    progress = train(model, small, cross_entropy, recipe, CPU, tmp_path, {})
    assert progress.stopped == "patience"
    assert progress.epoch == progress.best_epoch + 2
    watched = [row["val_accuracy"] for row in progress.history]
    assert watched.index(max(watched)) == progress.best_epoch - 1
    dev = small["in_domain_dev"]
    kept = measure(train_utils.predict_logits(model, dev, CPU), dev.labels)
    assert kept["accuracy"] == max(watched)


def test_max_steps_stops_in_the_middle_of_an_epoch(small, tmp_path):
    recipe = RECIPE._replace(max_steps=7)
    progress = train(new_student(small), small, cross_entropy, recipe, CPU, tmp_path, {})
    assert (progress.steps, progress.epoch, progress.stopped) == (7, 2, "max_steps")


# ---------------------------------------------------------------------------------------------
# Resuming


def final(model, progress):
    timed = ("seconds", "sentences_per_second")
    rows = [{k: v for k, v in row.items() if k not in timed} for row in progress.history]
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, rows


@pytest.mark.parametrize("after", [1, 5, 8])
def test_an_interrupted_run_ends_bit_for_bit_as_the_one_that_was_not(small, tmp_path, after):
    """SIGINT in the middle of step ``after``; with dropout, which depends on the step alone."""
    recipe = RECIPE._replace(epochs=3)
    whole = new_student(small, dropout=0.3)
    weights, rows = final(
        whole, train(whole, small, cross_entropy, recipe, CPU, tmp_path / "whole", {})
    )
    calls = []

    def interrupting(*examples):
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy(*examples)

    args = (recipe, CPU, tmp_path / "cut", {})
    with pytest.raises(KeyboardInterrupt):
        train(new_student(small, dropout=0.3), small, interrupting, *args)
    again = new_student(small, dropout=0.3)
    progress = train(again, small, cross_entropy, *args)
    assert final(again, progress)[1] == rows
    for name, tensor in final(again, progress)[0].items():
        assert torch.equal(tensor, weights[name]), name


def test_progress_survives_json_bit_for_bit():
    progress = Progress(loss=0.1 + 0.2, history=[{"train_loss": 1 / 3}], stopped="patience")
    assert Progress(**json.loads(json.dumps(vars(progress)))) == progress


# ---------------------------------------------------------------------------------------------
# Files and folders


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "some.json"
    write_json(path, {"old": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*some\.json"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


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


def test_another_identity_is_refused_and_says_what_differs(tmp_path):
    write_json(tmp_path / "metrics.json", {"identity": {"lr": 0.1, "base": "a" * 64}})
    assert is_finished(tmp_path, {"lr": 0.1, "base": "a" * 64}, overwrite=False)
    with pytest.raises(UserError, match=r"lr is 0.1 there, 0.2 here.*--overwrite.*--sr_no.*--out"):
        is_finished(tmp_path, {"lr": 0.2, "base": "a" * 64}, overwrite=False)
    assert not is_finished(tmp_path, {"lr": 0.2}, overwrite=True)
    assert not (tmp_path / "metrics.json").exists()


def test_overwrite_goes_on_with_this_run_where_it_was_interrupted_and_clears_any_other(tmp_path):
    state, parameter = tmp_path / "state.safetensors", torch.nn.Parameter(torch.ones(3))

    def interrupted(lr: float) -> None:
        optimizer = torch.optim.Adam([parameter])
        train_utils.TrainState(state, {"w": parameter}, optimizer, {"lr": lr}).save(Progress())

    interrupted(0.1)
    assert not is_finished(tmp_path, {"lr": 0.1}, overwrite=True)
    assert state.exists()
    assert not is_finished(tmp_path, {"lr": 0.2}, overwrite=True)
    assert not state.exists()
    state.write_bytes(b"cut")
    assert not is_finished(tmp_path, {"lr": 0.1}, overwrite=True)
    assert not state.exists()
    interrupted(0.1)  # and killed between writing metrics.json and deleting the state
    write_json(tmp_path / "metrics.json", {"identity": {"lr": 0.1}})
    assert is_finished(tmp_path, {"lr": 0.1}, overwrite=False)
    assert not state.exists()


def test_files_that_a_library_writes_are_moved_in_whole(tmp_path):
    def fails(folder):
        (folder / "a.txt").write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        train_utils.write_files(tmp_path, fails)
    assert (tmp_path / "a.txt").read_text() == "old"
    train_utils.write_files(tmp_path, lambda folder: (folder / "b.txt").write_text("new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_a_second_command_on_the_same_folder_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another command is at work"):
        locked(tmp_path).__enter__()
    with locked(tmp_path):  # free again
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "lower --batch_size"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "lower --batch_size",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "lower --batch_size",
        ),
        (OSError(28, "No space left on device", "x.json"), "x.json: No space left on device"),
        (UserError("one\nline"), "one line"),
        (KeyError("a bug"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_that_the_user_can_mend_is_one_line_and_a_bug_is_not_hidden(error, words):
    line = run.explain(error)
    assert (words is None and line is None) or (words in line and "\n" not in line)


def test_out_of_memory_in_a_real_process_names_the_option():
    code = (
        "import resource, run, torch, distil, report\n"
        "used = 4096 * int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)\n"
        "distil.load_corpus = lambda *_: torch.empty(2**40)\n"
        "raise SystemExit(run.main(['--mode', 'rnn', '--gpt_variant', 'nano']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.endswith("lower --batch_size, or choose a smaller --gpt_variant\n")


def test_the_state_keeps_weights_moments_best_weights_and_progress(tmp_path):
    def new_state(value: float) -> train_utils.TrainState:
        parameter = torch.nn.Parameter(torch.full((3,), value))
        optimizer = torch.optim.Adam([parameter], lr=0.1)
        parameter.grad = torch.full((3,), value)
        optimizer.step()
        return train_utils.TrainState(
            tmp_path / "state.safetensors", {"w": parameter}, optimizer, {"lr": 0.1}
        )

    saved, loaded = new_state(1.0), new_state(7.0)
    saved.keep_best()
    saved.parameters["w"].data += 1
    saved.save(Progress(steps=5, best_epoch=1))
    assert loaded.load() == Progress(steps=5, best_epoch=1)
    assert torch.equal(loaded.parameters["w"], saved.parameters["w"])
    assert torch.equal(loaded.best["w"], saved.best["w"])
    moments = [state.optimizer.state[state.parameters["w"]] for state in (saved, loaded)]
    for key, tensor in moments[0].items():
        assert torch.equal(tensor, moments[1][key]), key


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    written = set()
    for _ in range(20):
        train_utils.write_tensors(tmp_path / "some", {"w": torch.ones(2)}, {"base": "of nano"})
        written.add((tmp_path / "some").read_bytes())
    assert len(written) == 1
