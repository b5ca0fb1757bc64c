"""Distillation: the loss, the thresholds, the transfer set, the student's folder and start."""

import json
import math
from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import scipy.special
import scipy.stats
import torch
from conftest import NANO, classifier
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler
from torch import nn

from data_utils import HELD_OUT, UNLABELLED, hold_out, pack, tokenize
from distil import (
    choose_threshold,
    distillation,
    linear_discriminant,
    start_embedding,
    with_transfer_set,
)
from predict import load_model
from student import CELLS, DistilRNN
from support.bases import find_base, load_tokenizer
from support.checkpoints.export import save_onnx
from support.checkpoints.students import decision_of, read_decision, save_student
from support.corpus import DEV, TRAIN
from support.decisions import SOFTMAX, Decision, margins_of
from support.devices import CPU
from support.errors import UserError
from support.fingerprints import corpus_fingerprint
from support.options import RULES
from train_utils import Counts, predict_logits

# ---------------------------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("kd_alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("unlabelled", [0.4, 1.0])
def test_the_loss_is_hintons_written_with_scipy(temperature, kd_alpha, unlabelled):
    """The KD term counts every sentence, cross-entropy the labelled ones, of which none need be.

    The pieces of a batch add up to its loss, however the labels fall.
    """
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 40, 2))
    labels = rng.integers(0, 2, 40)
    labels[rng.random(40) < unlabelled] = UNLABELLED
    (labelled,) = np.nonzero(labels != UNLABELLED)
    p, q = (scipy.special.softmax(x / temperature, axis=1) for x in (teacher, student))
    kd = np.mean(scipy.stats.entropy(p, q, axis=1))  # KL divergence in nats
    chosen = scipy.special.log_softmax(student, axis=1)[labelled, labels[labelled]]
    ce = -chosen.mean() if len(labelled) else 0
    expected = kd_alpha * temperature**2 * kd + (1 - kd_alpha) * ce
    loss, counts = distillation(temperature, kd_alpha), Counts(40, len(labelled), 0)
    logits, labels, teacher_logits = (torch.tensor(x) for x in (student, labels, teacher))
    for size in (40, 3):
        found = 0.0
        for rows in torch.arange(40).split(size):
            examples = SimpleNamespace(labels=labels[rows], teacher_logits=teacher_logits[rows])
            found += loss(logits[rows], examples, counts).item()
        assert found == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------------------------------------
# The thresholds


@pytest.mark.parametrize("rule", RULES)
def test_thresholds_and_probabilities_are_those_of_a_linear_discriminant(nano_corpus, rule):
    """The student stays as it is; the held-out sentences alone are looked at."""
    corpus = hold_out(nano_corpus, 400)
    torch.manual_seed(0)
    student = DistilRNN(corpus[TRAIN].input_ids.unique(), 16)
    with torch.no_grad():
        student.linear.bias += torch.tensor([2.0, -1.0])
        student.linear.weight *= -1  # or its margins of the acceptable are below the others
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    held_out = corpus[HELD_OUT]
    margins = margins_of(predict_logits(student, held_out, CPU)).reshape(-1, 1)
    labels = held_out.labels.numpy()
    assert (margins < 0).all()
    decision = choose_threshold(student, held_out, rule, CPU)
    assert all(torch.equal(t, before[name]) for name, t in student.state_dict().items())
    p = decision.p_acceptable(margins[:, 0])
    classes = [margins[labels == label, 0] for label in (0, 1)]
    pooled = sum(len(part) * part.var() for part in classes) / (len(margins) - 2)
    below, above = (
        len(part) * scipy.stats.norm(part.mean(), pooled**0.5).pdf(margins[:, 0])
        for part in classes
    )
    np.testing.assert_allclose(p, above / (below + above), rtol=1e-9)  # Bayes' rule
    theirs = LinearDiscriminantAnalysis().fit(margins, labels)  # some versions divide by n
    np.testing.assert_allclose(p, theirs.predict_proba(margins)[:, 1], rtol=2 / len(margins))
    expected = {"balanced": labels.mean(), "accuracy": 0.5}[rule]
    assert decision.p_acceptable(decision.threshold) == pytest.approx(expected, abs=1e-9)
    assert expected != 0.5 or rule == "accuracy"
    assert decision.answers(margins[:, 0]).tolist() == (p > expected).astype(int).tolist()


@pytest.mark.parametrize("margins", [[1.0, 2, 3, 4], [1.0, 1, 1, 1], [1.0, 1, 1, 1.001]])
def test_where_margins_tell_nothing_p_is_the_share_of_acceptable_ones(margins):
    labels, margins = np.array([1, 1, 1, 0]), np.array(margins)
    decision = linear_discriminant(margins, labels, "accuracy")
    assert decision.p_acceptable(margins) == pytest.approx([0.75] * 4, abs=1e-3)
    assert decision.answers(np.array([-500.0, 0, 500])).tolist() == [1, 1, 1]
    assert decision.thresholds["balanced"] == (margins[:3].mean() + margins[3]) / 2


def test_margins_that_divide_the_classes_without_any_spread_have_a_finite_calibration():
    decision = linear_discriminant(np.array([1.0, 1, 0, 0]), np.array([1, 1, 0, 0]), "balanced")
    assert decision.threshold == 0.5
    assert decision.p_acceptable(np.array([0, 0.5, 1])).tolist() == [0, 0.5, 1]
    assert decision_of(json.loads(json.dumps(decision.entries())), "balanced") == decision


def test_without_held_out_sentences_a_student_decides_by_softmax(nano_corpus):
    decision = choose_threshold(None, None, "balanced", CPU)
    logits = predict_logits(classifier(NANO), nano_corpus[DEV].chosen(np.arange(100)), CPU)
    margins = margins_of(logits)
    assert decision.answers(margins).tolist() == logits.argmax(dim=1).tolist()
    expected = scipy.special.softmax(logits.double().numpy(), axis=1)[:, 1]
    np.testing.assert_allclose(decision.p_acceptable(margins), expected, rtol=1e-9)
    assert decision.entries() == {}


# ---------------------------------------------------------------------------------------------
# What it is taught


def test_the_transfer_set_stands_behind_the_training_sentences_unlabelled(nano_corpus):
    known = nano_corpus[TRAIN]
    options = Namespace(transfer_size=30, transfer_source="edits", transfer_file=None, sr_no=3)
    both = with_transfer_set(options, find_base("nano"), "its fingerprint", nano_corpus, CPU)[TRAIN]
    assert both.sentences[: len(known)] == known.sentences
    again = both.chosen(np.arange(len(known)))
    assert corpus_fingerprint({TRAIN: again}) == corpus_fingerprint({TRAIN: known})
    assert both.labels[len(known) :].tolist() == [UNLABELLED] * 30


def test_a_sentence_too_long_is_reported_at_its_line_of_the_users_file(nano_corpus, tmp_path):
    """Blank lines, sentences of the corpus and repeated ones are counted."""
    base, path = find_base("nano")._replace(max_length=40), tmp_path / "mine.txt"
    known, long = nano_corpus[TRAIN].sentences[0], "Birds " + "sing " * 60
    lines = ["\ufeffA dog ran.", "", known, "A dog ran.\r", " ", long, "Fish swim."]
    path.write_text("\n".join(lines))
    options = Namespace(transfer_size=3, transfer_source="written", transfer_file=path)
    message = r"mine.txt, line 6: \d+ tokens, where the model takes 1 to 40"
    with pytest.raises(UserError, match=message):
        with_transfer_set(options, base, "its fingerprint", nano_corpus, CPU)


# ---------------------------------------------------------------------------------------------
# The student's folder


def load_checkpoint(folder):
    return *load_model(folder, Namespace(given=set())), read_decision(folder)


@pytest.fixture(
    params=[("rnn", 1), ("gru", 1), ("gru", 2), ("lstm", 1), ("lstm", 2), ("relu", 2)], ids=str
)
def any_student(request, nano_corpus, monkeypatch) -> DistilRNN:
    """A student of each cell, and of one that is added as "How to extend it" says."""
    monkeypatch.setitem(CELLS, "relu", partial(nn.RNN, nonlinearity="relu"))
    torch.manual_seed(0)
    cell, layers = request.param
    return DistilRNN(nano_corpus[TRAIN].input_ids.unique(), 64, cell=cell, layers=layers).eval()


@pytest.fixture
def folder(tmp_path):
    """A student's, which decides by thresholds."""
    save_student(DistilRNN(torch.arange(5), 8), find_base("nano"), tmp_path, DECISION)
    return tmp_path


DECISION = Decision("balanced", {"balanced": 1.5, "accuracy": -0.25}, 0.5, 0.125)


@pytest.mark.parametrize("decision", [SOFTMAX, DECISION], ids=["softmax", "thresholds"])
def test_a_student_comes_back_with_its_tokenizer_its_logits_and_where_it_decides(
    any_student, nano_corpus, tmp_path, decision
):
    save_student(any_student, find_base("nano"), tmp_path, decision)
    found, tokenizer, positions, saved = load_checkpoint(tmp_path)
    assert positions == 512
    split = nano_corpus[DEV]
    again = tokenize(tokenizer, split.sentences, split.labels.tolist(), positions, "dev")
    assert torch.equal(again.input_ids, split.input_ids)
    assert torch.equal(predict_logits(found, again, CPU), predict_logits(any_student, split, CPU))
    assert saved == decision
    assert ("threshold" in (tmp_path / "config.json").read_text()) == (decision != SOFTMAX)


def weights(**sizes) -> bytes:
    """A file of zeros of these sizes, with a vocabulary of five tokens."""
    tensors = {name.replace("__", "."): torch.zeros(size) for name, size in sizes.items()}
    return safetensors.torch.save({"vocabulary": torch.arange(5), **tensors})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "neither a LoRA adapter"),
        ("config.json", b"{", "broken JSON"),
        ("config.json", {"model_type": "bert"}, "neither a LoRA adapter"),
        ("config.json", {"cell": "tree"}, "'tree'; it is rnn"),
        ("config.json", {"cell": []}, "cell = ..; it is rnn"),
        ("config.json", {"threshold": ["balanced"]}, "not balanced or accuracy; restore it"),
        ("config.json", {"thresholds": {"balanced": 0.5}}, "accuracy is not a number: None"),
        ("config.json", {"thresholds": {"balanced": True}}, "balanced is not a number: True"),
        ("config.json", {"calibration": {"slope": 1, "intercept": math.inf}}, "not a number: inf"),
        ("config.json", {"calibration": {"slope": 0, "intercept": 0}}, "slope is not above 0"),
        ("config.json", {"calibration": 3}, "slope is not a number: None"),
        ("model.safetensors", b"broken", "truncated or not a safetensors file"),
        ("model.safetensors", None, "no such file"),
        ("model.safetensors", safetensors.torch.save({}), "not the weights of a student"),
        ("model.safetensors", weights(linear__weight=(2, 10**6)), "not the weights of a student"),
        (
            "model.safetensors",
            weights(embedding__weight=(6, 2), rnn__weight_hh_l0=(2, 2)),
            "tensor .* is missing",
        ),
    ],
)
def test_a_broken_student_is_refused(folder, name, content, words):
    path = folder / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_bytes()) | content).encode()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_checkpoint(folder)


@pytest.mark.parametrize("decision", [SOFTMAX, DECISION], ids=["softmax", "thresholds"])
def test_the_exported_student_gives_the_same_for_any_batch_and_length(
    any_student, nano_corpus, tmp_path, decision
):
    tokenizer = load_tokenizer(NANO)
    save_onnx(any_student, tokenizer, tmp_path, tmp_path, decision)
    session = onnxruntime.InferenceSession(
        tmp_path / "student.onnx", providers=["CPUExecutionProvider"]
    )
    split = nano_corpus["out_of_domain_dev"]
    expected = predict_logits(any_student, split, CPU).numpy()
    rng = np.random.default_rng(0)
    for size in (1, 2, 100, len(split)):
        chosen = rng.choice(len(split), size, replace=False)
        lengths = split.seqlens[chosen]
        padded = (size, lengths.max() + 3)
        ids = rng.integers(0, tokenizer.get_vocab_size(), padded)  # with anything
        for row, index in enumerate(chosen):
            start, end = split.cu_seqlens[index : index + 2].tolist()
            ids[row, : end - start] = split.input_ids[start:end]
        logits, p = session.run(["logits", "p_acceptable"], {"input_ids": ids, "lengths": lengths})
        np.testing.assert_allclose(logits, expected[chosen], atol=1e-5)
        margins = expected[chosen, 1] - expected[chosen, 0]
        np.testing.assert_allclose(p, decision.p_acceptable(margins), atol=1e-5)
    facts = session.get_modelmeta().custom_metadata_map
    assert float(facts["threshold"]) == decision.threshold
    thresholds = decision.thresholds or {}
    for rule in RULES:
        assert facts.get(f"threshold_{rule}") == (str(thresholds[rule]) if thresholds else None)


# ---------------------------------------------------------------------------------------------
# The student's start


@pytest.mark.parametrize("width", [16, 6])
def test_an_embedding_starts_from_the_components_of_its_teachers(width):
    """Distances between tokens are those of the teacher's standardised rows, or nearly."""
    torch.manual_seed(0)
    teacher = classifier(NANO)
    taught = teacher.backbone.wte.weight
    taught.data[:, 8:] = 1.0  # eight dimensions that say something
    taught.data[:, 0] *= 100
    student = DistilRNN(torch.arange(5, 45), width)
    random = student.embedding.weight.detach().clone()
    start_embedding(student, teacher, "teacher")
    rows = student.embedding.weight.detach()
    assert torch.equal(rows[-1], random[-1])  # of the unknown tokens
    scaled = StandardScaler().fit_transform(taught[5:45].detach().numpy())
    kept = PCA(width).fit_transform(scaled)
    share = min(width, taught.shape[1]) / taught.shape[1]
    expected = share**0.5 * torch.tensor(kept)
    torch.testing.assert_close(
        torch.cdist(rows[:-1], rows[:-1]), torch.cdist(expected, expected), atol=1e-3, rtol=1e-3
    )


def test_a_mapped_embedding_trains_a_map_alone_and_is_folded_into_plain_rows(nano_corpus):
    torch.manual_seed(0)
    student, plain = (DistilRNN(torch.arange(5, 45), 24, cell="gru") for _ in range(2))
    start_embedding(student, teacher := classifier(NANO), "mapped")
    (fixed, linear), batch = student.embedding, pack(nano_corpus[DEV], np.arange(20))
    rows = fixed.weight.clone()
    assert rows.shape == (41, teacher.score.in_features)
    assert not rows[-1].any()
    optimizer = torch.optim.Adam((p for p in student.parameters() if p.requires_grad), lr=0.01)
    for _ in range(3):
        torch.nn.functional.cross_entropy(student(batch), batch.labels).backward()
        optimizer.step(), optimizer.zero_grad()
    assert torch.equal(fixed.weight, rows)
    expected = student(batch)
    student.fold_embedding()
    assert student.embedding.weight.shape == (41, 24)
    torch.testing.assert_close(student(batch), expected)
    assert not student.embedding.weight[-1].any()
    assert linear.bias is None
    plain.load_state_dict(student.state_dict())
    torch.testing.assert_close(plain(batch), expected)
    before = plain.embedding
    plain.fold_embedding()
    assert plain.embedding is before
