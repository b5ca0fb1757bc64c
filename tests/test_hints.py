"""Hints at every token: their loss."""

from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import NANO, classifier
from torch import nn

import support.teaching.answers
from data_utils import UNLABELLED
from distil import HintLoss, distillation
from model import DistilRNN
from support.corpus import TRAIN
from support.devices import CPU
from support.teaching.answers import read_hints
from train_utils import Counts, Training, accumulate_gradients, lesson_fingerprint

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
    train = replace(corpus[TRAIN], teacher_logits=logits, teacher_states=states)
    torch.manual_seed(0)
    model = DistilRNN(train.input_ids.unique(), width=24)
    loss, hints = distillation(2.0, 0.5), HintLoss(24, WIDTH, 3.0)
    return Training(model, {**corpus, TRAIN: train}, loss, OPTIONS, CPU, hints)


def test_the_hint_loss_and_its_gradients_are_those_of_each_sentence_alone(hinted):
    """Written out: every sentence through `nn.RNN` by itself, the mean over all their tokens."""
    split, indices = hinted.corpus[TRAIN], np.array([5, 0, 9, 2])
    model, projection, missed, logits = hinted.model, hinted.hints.projection, [], []
    for i in indices:
        start, stop = split.cu_seqlens[i], split.cu_seqlens[i + 1]
        states, last = model.rnn(model.embedding(model.rows(split.input_ids[start:stop])))
        target = split.teacher_states[torch.arange(start, stop)]
        missed.append(states @ projection.weight.T + projection.bias - target)
        logits.append(model.linear(last))
    labels = split.labels[indices]
    said = SimpleNamespace(labels=labels, teacher_logits=split.teacher_logits[indices])
    plain = distillation(2.0, 0.5)(
        torch.cat(logits), said, Counts(len(labels), int((labels != UNLABELLED).sum()), 0)
    )
    expected = plain + 3.0 * torch.cat(missed).square().mean()
    names = hinted.parameters()
    gradients = torch.autograd.grad(expected, list(names.values()))
    found, _ = accumulate_gradients(hinted, indices)
    assert found[0].item() == pytest.approx(plain.item(), rel=1e-5)  # as on a dev set
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


def test_training_goes_on_with_no_other_hints(hinted, corpus, teacher, tmp_path):
    """Its teacher is another, whose logits and sentences may be the same."""
    train = hinted.corpus[TRAIN]
    assert lesson_fingerprint(train) != lesson_fingerprint(replace(train, teacher_states=None))
    _, states = read_hints(corpus[TRAIN], teacher, "another teacher", CPU, WIDTH, tmp_path)
    other = replace(train, teacher_states=states)
    assert lesson_fingerprint(other) != lesson_fingerprint(train)
