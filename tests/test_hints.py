"""Hints at every token: their loss."""

import os
import signal
from argparse import Namespace
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NANO, classifier
from torch import nn

import support.teaching.answers
from data_utils import UNLABELLED, shuffled
from distil import HintLoss, distillation
from student import DistilRNN
from support.corpus import DEV, TRAIN
from support.devices import CPU
from support.files import write_csv
from support.reporting.metrics import read_history
from support.teaching.answers import read_hints
from train_utils import Counts, Training, accumulate_gradients, lesson_fingerprint, train

WIDTH = 16
OPTIONS = Namespace(sr_no=1, batch_size=32, lr=1e-3, lr_schedule="constant")


@pytest.fixture(scope="module")
def corpus(nano_corpus) -> dict:
    """The beginnings of nano's."""
    return {name: split.chosen(np.arange(300)) for name, split in nano_corpus.items()}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return classifier(NANO).requires_grad_(False).eval()


@pytest.fixture
def small_chunks(monkeypatch):
    """Several files of a few sentences."""
    monkeypatch.setattr(support.teaching.answers, "CHUNK", 2500)


@pytest.fixture
def hinted(corpus, teacher, small_chunks, tmp_path) -> Training:
    logits, states = read_hints(corpus[TRAIN], teacher, "a teacher", CPU, WIDTH, tmp_path)
    train = replace(corpus[TRAIN], teacher_logits=logits, hints=states)
    torch.manual_seed(0)
    model = DistilRNN(train.input_ids.unique(), width=24)
    loss, hints = distillation(2.0, 0.5), HintLoss(24, WIDTH, 3.0)
    return Training(model, {**corpus, TRAIN: train}, loss, OPTIONS, CPU, hints)


def test_the_hint_loss_and_its_gradients_are_those_of_each_sentence_alone(hinted):
    """Written out: every sentence through `nn.RNN` by itself, the mean over all their tokens."""
    split, indices = hinted.corpus[TRAIN], np.array([5, 0, 9, 2])
    model, projection, missed, logits = hinted.model, hinted.hint_loss.projection, [], []
    for i in indices:
        start, stop = split.cu_seqlens[i], split.cu_seqlens[i + 1]
        states, last = model.rnn(model.embedding(model.rows(split.input_ids[start:stop])))
        target = split.hints[torch.arange(start, stop)]
        missed.append(states @ projection.weight.T + projection.bias - target)
        logits.append(model.linear(last))
    labels = split.labels[indices]
    said = SimpleNamespace(labels=labels, teacher_logits=split.teacher_logits[indices])
    plain = distillation(2.0, 0.5)(
        torch.cat(logits), said, Counts(len(labels), int((labels != UNLABELLED).sum()), 0)
    )
    of_hints = 3.0 * torch.cat(missed).square().mean()
    expected = plain + of_hints
    names = hinted.parameters()
    gradients = torch.autograd.grad(expected, list(names.values()))
    found, _ = accumulate_gradients(hinted, indices)
    assert found[0].item() == pytest.approx(plain.item(), rel=1e-5)  # as on a dev set
    assert found[2].item() == pytest.approx(of_hints.item(), rel=1e-5)
    assert {"projection.weight", "projection.bias", "rnn.weight_hh_l0"} < names.keys()
    for (name, parameter), gradient in zip(names.items(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_pieces_of_a_batch_add_up_to_its_hint_loss(hinted, monkeypatch):
    indices = np.arange(60)
    found = []
    for tokens in (2048, 50):
        monkeypatch.setattr("data_utils.MAX_TOKENS", tokens)
        result, _ = accumulate_gradients(hinted, indices)
        found.append([result, *(p.grad for p in hinted.parameters().values())])
        for parameter in hinted.parameters().values():
            parameter.grad = None
    torch.testing.assert_close(*found)


def test_a_history_has_the_loss_of_hints_also_of_a_run_that_was_interrupted(
    hinted, tmp_path, capsys
):
    """It is the mean over the epoch's sentences of what enters each step's loss."""
    wanted = vars(OPTIONS) | {"epochs": 2, "patience": 3, "monitor": "mcc", "max_steps": None}

    def new_training(loss) -> Training:
        model, hints = deepcopy((hinted.model, hinted.hint_loss))
        return hinted._replace(model=model, hint_loss=hints, loss=loss, options=Namespace(**wanted))

    steps = []

    def interrupting(*examples):
        steps.append(1)
        if len(steps) == 14:  # in the second epoch of ten steps
            os.kill(os.getpid(), signal.SIGTERM)
        return hinted.loss(*examples)

    dev = hinted.corpus[DEV]
    taught = replace(dev, teacher_logits=torch.zeros(len(dev), 2))
    hinted = hinted._replace(corpus={**hinted.corpus, DEV: taught})
    whole = train(new_training(hinted.loss), tmp_path / "whole").history
    with pytest.raises(KeyboardInterrupt):
        train(new_training(interrupting), tmp_path / "cut")
    found = train(new_training(hinted.loss), tmp_path / "cut").history
    assert [row["hint_loss"] for row in found] == [row["hint_loss"] for row in whole]
    assert whole[1]["hint_loss"] < whole[0]["hint_loss"]
    assert f"hint loss {whole[1]['hint_loss']:.4f}" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "cut" / "history.csv")
    assert list(table)[-1] == "hint_loss"
    assert table["hint_loss"].tolist() == [row["hint_loss"] for row in whole]
    assert len(read_history(tmp_path / "cut", 1)) == 2
    wanted["lr"], losses = 1e-30, []  # so small that the weights stay
    row = train(new_training(hinted.loss), tmp_path / "still").history[0]
    for start in range(0, 300, 32):
        indices = shuffled(300, 1, 0)[start : start + 32]
        result, counts = accumulate_gradients(new_training(hinted.loss), indices)
        losses.append(result[2].item() * counts.sentences / 300)
    assert row["hint_loss"] == pytest.approx(sum(losses), rel=1e-5)


def test_a_history_that_an_earlier_version_began_is_gone_on_with(tmp_path):
    """Its first epochs have no such column."""
    write_csv(tmp_path / "history.csv", [{"epoch": 1}, {"epoch": 2, "hint_loss": 0.5}])
    assert (tmp_path / "history.csv").read_text() == "epoch,hint_loss\n1,\n2,0.5\n"


def test_training_goes_on_with_no_other_hints(hinted, corpus, teacher, tmp_path):
    """Its teacher is another, whose logits and sentences may be the same."""
    train = hinted.corpus[TRAIN]
    assert lesson_fingerprint(train) != lesson_fingerprint(replace(train, hints=None))
    _, states = read_hints(corpus[TRAIN], teacher, "another teacher", CPU, WIDTH, tmp_path)
    other = replace(train, hints=states)
    assert lesson_fingerprint(other) != lesson_fingerprint(train)
