"""What a teacher answers, once: logits, and hints at every token; the loss of hints."""

from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NANO, TRAINING, classifier
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import AutoModelForSequenceClassification

import support.teaching.answers
from data_utils import pack, shuffled
from distil import HintLoss, distillation
from student import DistilRNN
from support.corpus import DEV, TRAIN
from support.devices import CPU, choose_device
from support.teaching import teacher_answers
from train_utils import (
    Counts,
    Training,
    accumulate_gradients,
    lesson_fingerprint,
    predict_logits,
    train,
)

WIDTH = 16
OPTIONS = Namespace(**TRAINING | {"batch_size": 32, "epochs": 2})


@pytest.fixture(scope="module")
def corpus(nano_corpus) -> dict:
    """The beginnings of nano's."""
    return {name: split.chosen(np.arange(300)) for name, split in nano_corpus.items()}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return classifier(NANO).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def taught(corpus, teacher, tmp_path_factory):
    """The training sentences with hints, which were saved in several files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support.teaching.answers, "CHUNK", 2500)
        folder = tmp_path_factory.mktemp("transfer")
        return teacher_answers(corpus[TRAIN], teacher, "a teacher", CPU, WIDTH, folder)


# ---------------------------------------------------------------------------------------------
# A teacher's answers


def test_hints_are_the_principal_components_of_standardised_states(taught, teacher):
    """As scikit-learn finds them in Hugging Face's states, each sentence read alone, but for signs.

    The components are those of the first file's states.
    """
    model = AutoModelForSequenceClassification.from_pretrained(NANO, num_labels=2).eval()
    ids, ends = taught.input_ids, taught.cu_seqlens[1:]
    with torch.no_grad():
        states = [model.transformer(part[None]).last_hidden_state[0] for part in
                  ids.tensor_split(ends[:-1])]  # fmt: skip
    states, first = torch.cat(states).numpy(), int(ends[ends <= 2500][-1])
    assert first < len(states)
    scaler = StandardScaler().fit(states[:first])
    scaled = scaler.transform(states)
    components = PCA(WIDTH).fit(scaled[:first])
    expected = components.transform(scaled) * (WIDTH / scaled.shape[1]) ** 0.5
    assert taught.hints.dtype == torch.float16
    hints = taught.hints.float().numpy()
    signs = np.sign((hints * expected).sum(axis=0))
    assert hints.std() > 0.1
    np.testing.assert_allclose(hints * signs, expected, atol=5e-3)
    share = components.explained_variance_ratio_.sum()
    assert np.square(hints[:first]).mean() == pytest.approx(share, rel=0.01)


def test_logits_are_those_of_each_sentence_alone(corpus, taught, teacher, tmp_path):
    """With hints and without, where they are the same bits as `predict_logits` gives."""
    alone = torch.cat([teacher(pack(taught, np.array([i]))) for i in range(20)])
    torch.testing.assert_close(taught.teacher_logits[:20], alone, atol=1e-5, rtol=1e-4)
    plain = teacher_answers(corpus[TRAIN], teacher, "a teacher", CPU, 0, tmp_path)
    assert torch.equal(plain.teacher_logits, predict_logits(teacher, corpus[TRAIN], CPU))
    assert plain.hints is None
    assert corpus[TRAIN].teacher_logits is None  # the split is as it was


@pytest.mark.parametrize(("width", "files"), [(WIDTH, 2), (0, 1)])
def test_answers_are_computed_once_and_again_where_teacher_sentences_or_file_changed(
    corpus, teacher, tmp_path, monkeypatch, width, files
):
    split = corpus[TRAIN].chosen(np.arange(40))  # few, since bf16 may be emulated
    passes, read = [], support.teaching.answers.read
    monkeypatch.setattr(support.teaching.answers, "CHUNK", 350)
    monkeypatch.setattr(support.teaching.answers, "read", lambda *a: passes.append(1) or read(*a))

    def ask(number, key="one", device=CPU, split=split, width=width):
        """Return the answers, after as many passes over a file's sentences as are expected."""
        passes.clear()
        found = teacher_answers(split, teacher, key, device, width, tmp_path)
        assert len(passes) == number
        return found

    first = ask(files)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    again = ask(0)
    assert torch.equal(again.teacher_logits, first.teacher_logits)
    assert not width or torch.equal(again.hints, first.hints)
    for path, content in before.items():
        path.write_bytes(content[:100])
        ask(1)
        assert path.read_bytes() == content
    assert len(before) == files == len(list(tmp_path.glob("*.safetensors")))
    ask(files, "another")
    ask(files, device=choose_device("cpu", "bf16"))
    ask(files, split=replace(split, labels=1 - split.labels))
    ask(2, width=8)


# ---------------------------------------------------------------------------------------------
# The loss of hints


@pytest.fixture
def hinted(corpus, taught) -> Training:
    torch.manual_seed(0)
    model = DistilRNN(taught.input_ids.unique(), width=24)
    dev = replace(corpus[DEV], teacher_logits=torch.zeros(len(corpus[DEV]), 2))
    loss, hints = distillation(2.0, 0.5), HintLoss(24, WIDTH, 3.0)
    return Training(model, {**corpus, TRAIN: taught, DEV: dev}, loss, OPTIONS, CPU, hints)


@pytest.mark.parametrize("max_tokens", [2048, 10], ids=["whole", "in pieces"])
def test_the_hint_loss_and_its_gradients_are_those_of_each_sentence_alone(
    hinted, max_tokens, monkeypatch
):
    """Written out: every sentence through `nn.RNN` by itself, the mean over all their tokens."""
    monkeypatch.setattr("data_utils.MAX_TOKENS", max_tokens)
    split, indices = hinted.corpus[TRAIN], np.array([5, 0, 9, 2])
    model, projection, missed, logits = hinted.model, hinted.hint_loss.projection, [], []
    for i in indices:
        start, stop = split.cu_seqlens[i], split.cu_seqlens[i + 1]
        states, last = model.rnn(model.embedding(model.rows(split.input_ids[start:stop])))
        target = split.hints[start:stop].float()
        missed.append(states @ projection.weight.T + projection.bias - target)
        logits.append(model.linear(last))
    examples = SimpleNamespace(
        labels=split.labels[indices], teacher_logits=split.teacher_logits[indices]
    )
    plain = distillation(2.0, 0.5)(torch.cat(logits), examples, Counts(4, 4, 0))
    of_hints = 3.0 * torch.cat(missed).square().mean()
    names = hinted.parameters()
    gradients = torch.autograd.grad(plain + of_hints, list(names.values()))
    found, _ = accumulate_gradients(hinted, indices)
    assert found[0].item() == pytest.approx(plain.item(), rel=1e-5)  # as on a dev set
    assert found[2].item() == pytest.approx(of_hints.item(), rel=1e-5)
    assert {"projection.weight", "projection.bias", "rnn.weight_hh_l0"} < names.keys()
    for (name, parameter), gradient in zip(names.items(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_a_history_has_the_loss_of_hints(hinted, tmp_path, capsys):
    """It is the mean over the epoch's sentences of what enters each step's loss."""
    still = Namespace(**vars(OPTIONS) | {"lr": 1e-30})  # so small that the weights stay
    row, losses = train(hinted._replace(options=still), tmp_path / "still").history[0], []
    for start in range(0, 300, 32):
        indices = shuffled(300, 1, 0)[start : start + 32]
        result, counts = accumulate_gradients(hinted, indices)
        losses.append(result[2].item() * counts.sentences / 300)
        hinted.model.zero_grad()
    assert row["hint_loss"] == pytest.approx(sum(losses), rel=1e-5)
    found = train(hinted, tmp_path).history
    assert found[1]["hint_loss"] < found[0]["hint_loss"] < row["hint_loss"]
    assert f"hint loss {found[1]['hint_loss']:.4f}" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "history.csv")
    assert list(table)[-1] == "hint_loss"
    assert table["hint_loss"].tolist() == [row["hint_loss"] for row in found]


def test_training_goes_on_with_no_other_hints(taught):
    """Another teacher's logits and sentences may be the same."""
    others = (None, taught.hints.roll(1, dims=0))
    fingerprints = {lesson_fingerprint(replace(taught, hints=hints)) for hints in others}
    assert len(fingerprints | {lesson_fingerprint(taught)}) == 3
