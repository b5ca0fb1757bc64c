"""Hints at every token, and the sentences that a base model writes."""

import json
import os
import signal
import threading
import time
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import NANO, classifier
from filelock import FileLock
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import AutoModelForSequenceClassification

import support.teaching.answers
import support.teaching.written
from data_utils import UNLABELLED, load_corpus, pack
from distil import HintLoss, distillation
from model import DistilRNN
from support.bases import find_base, load_language_model, token_ids
from support.corpus import DEV, TRAIN, read_split
from support.devices import CPU, Device, choose_device
from support.errors import UserError
from support.teaching import HELD_OUT, hold_out
from support.teaching.answers import read_hints
from support.teaching.edits import bare, transfer_sentences
from support.teaching.written import continuations, sentence_ends, written_sentences
from train_utils import Counts, Training, accumulate_gradients, lesson_fingerprint

WIDTH = 16
OPTIONS = Namespace(sr_no=1, batch_size=32, lr=1e-3, lr_schedule="constant")


@pytest.fixture(scope="module")
def base():
    return find_base("nano")


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


# ---------------------------------------------------------------------------------------------
# The teacher's states


@pytest.fixture(scope="module")
def hidden_states(corpus) -> np.ndarray:
    """Hugging Face's final hidden states of the training sentences, each read alone."""
    model = AutoModelForSequenceClassification.from_pretrained(NANO, num_labels=2).eval()
    split, rows = corpus[TRAIN], []
    for start, stop in zip(split.cu_seqlens[:-1], split.cu_seqlens[1:], strict=True):
        with torch.no_grad():
            found = model.transformer(split.input_ids[None, start:stop]).last_hidden_state
        rows.append(found[0].numpy())
    return np.concatenate(rows)


def test_hints_are_the_principal_components_of_standardised_states(
    corpus, teacher, hidden_states, small_chunks, tmp_path
):
    """As scikit-learn finds them, up to their signs; logits are those without hints."""
    split = corpus[TRAIN]
    logits, found = read_hints(split, teacher, "its print", CPU, WIDTH, tmp_path)
    hints = found[torch.arange(len(split.input_ids))].numpy()
    end = split.cu_seqlens[split.cu_seqlens <= 2500][-1]
    assert end < len(hidden_states)
    first = hidden_states[:end]
    scaler = StandardScaler().fit(first)
    components, scaled = PCA(WIDTH).fit(scaler.transform(first)), scaler.transform(hidden_states)
    expected = components.transform(scaled) * (WIDTH / scaled.shape[1]) ** 0.5
    signs = np.sign((hints * expected).sum(axis=0))
    assert hints.std() > 0.1
    np.testing.assert_allclose(hints * signs, expected, atol=5e-3)  # stored in half precision
    share = components.explained_variance_ratio_.sum()
    assert np.square(hints[: len(first)]).mean() == pytest.approx(share, rel=0.01)
    alone = torch.cat([teacher(pack(split, np.array([i]))) for i in range(20)])
    torch.testing.assert_close(logits[:20], alone, atol=1e-5, rtol=1e-4)


def test_states_are_computed_once_and_again_where_teacher_or_file_changed(
    corpus, teacher, small_chunks, tmp_path, monkeypatch
):
    passes, read_part = [], support.teaching.answers.read_part
    monkeypatch.setattr(
        support.teaching.answers, "read_part", lambda *a: passes.append(1) or read_part(*a)
    )

    def ask(teacher_print: str, device: Device = CPU) -> int:
        passes.clear()
        read_hints(corpus[TRAIN], teacher, teacher_print, device, WIDTH, tmp_path)
        return len(passes)

    def content() -> dict:
        return {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}

    assert ask("one") == 2
    before = content()
    assert len(before) == 3  # and the components
    assert ask("one") == 0
    for kind in ("teacher", "basis"):
        path = max(tmp_path.glob(f"{kind}_*.safetensors"))
        path.write_bytes(path.read_bytes()[:100])
        assert ask("one") == 1
        assert content() == before
    assert ask("another") == 2
    assert ask("one", choose_device("cpu", "bf16")) == 2
    assert len(content()) == 9


def test_training_goes_on_with_no_other_hints(hinted, corpus, teacher, tmp_path):
    """Of another teacher, whose logits and sentences may be the same."""
    train = hinted.corpus[TRAIN]
    assert lesson_fingerprint(train) != lesson_fingerprint(replace(train, teacher_states=None))
    _, states = read_hints(corpus[TRAIN], teacher, "another print", CPU, WIDTH, tmp_path)
    other = replace(train, teacher_states=states)
    assert lesson_fingerprint(other) != lesson_fingerprint(train)


# ---------------------------------------------------------------------------------------------
# The loss


@pytest.fixture
def hinted(corpus, teacher, small_chunks, tmp_path) -> Training:
    logits, states = read_hints(corpus[TRAIN], teacher, "its print", CPU, WIDTH, tmp_path)
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


# ---------------------------------------------------------------------------------------------
# Sentences that a base model writes


def the_file(folder):
    """The one file that writing leaves, beside its lock."""
    (path,) = folder.glob("nano_*.json")
    return path


def test_written_sentences_are_new_whole_and_the_same_again(base, nano_corpus, tmp_path):
    made = written_sentences(base, "its print", nano_corpus, 200, CPU, tmp_path / "one")
    assert made == written_sentences(base, "its print", nano_corpus, 200, CPU, tmp_path / "other")
    taken = {bare(sentence) for split in nano_corpus.values() for sentence in split.sentences}
    assert len({bare(sentence) for sentence in made} - taken) == 200
    for sentence in made:
        assert sentence[0].isupper()
        assert sentence[-1] in ".?!"
        assert 3 <= len(sentence.split()) <= 20


def test_another_corpus_has_its_own_file_and_none_of_its_sentences(base, nano_corpus, tmp_path):
    """A dev sentence of tomorrow's corpus may be among those written for today's."""
    made = written_sentences(base, "its print", nano_corpus, 200, CPU, tmp_path)
    dev = nano_corpus[DEV]
    other = replace(dev, sentences=[made[0].upper(), *dev.sentences[1:]])
    again = written_sentences(base, "its print", {**nano_corpus, DEV: other}, 200, CPU, tmp_path)
    assert bare(made[0]) not in {bare(sentence) for sentence in again}
    assert len(list(tmp_path.glob("*.json"))) == 2
    train = nano_corpus[TRAIN]
    relabelled = {**nano_corpus, TRAIN: replace(train, labels=1 - train.labels)}
    assert written_sentences(base, "its print", relabelled, 200, CPU, tmp_path) != made
    assert written_sentences(base, "its print", nano_corpus, 200, CPU, tmp_path) == made


def test_what_is_written_under_bf16_has_a_file_of_its_own(base, nano_corpus, tmp_path, monkeypatch):
    dtypes, continued = [], support.teaching.written.continued

    def watched(model, *arguments):
        dtypes.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return continued(model, *arguments)

    monkeypatch.setattr(support.teaching.written, "continued", watched)
    made = written_sentences(base, "its print", nano_corpus, 200, CPU, tmp_path)
    rounded = written_sentences(
        base, "its print", nano_corpus, 200, choose_device("cpu", "bf16"), tmp_path
    )
    assert made == written_sentences(base, "its print", nano_corpus, 200, CPU, tmp_path)
    assert len(rounded) == 200
    assert set(dtypes) == {None, torch.bfloat16}
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_writing_that_is_interrupted_goes_on_to_the_same_file(
    base, nano_corpus, tmp_path, monkeypatch
):
    written_sentences(base, "its print", nano_corpus, 2000, CPU, tmp_path / "whole")
    continued, calls = support.teaching.written.continued, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return continued(*arguments)

    monkeypatch.setattr(support.teaching.written, "continued", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written_sentences(base, "its print", nano_corpus, 2000, CPU, tmp_path / "cut")
    assert json.loads(the_file(tmp_path / "cut").read_text())["batches"] == 3
    written_sentences(base, "its print", nano_corpus, 2000, CPU, tmp_path / "cut")
    assert the_file(tmp_path / "cut").read_bytes() == the_file(tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("content", ["", "[]", '{"batches": 1, "sentences": ["A b c.", 1]}'])
def test_a_broken_file_is_written_anew(base, nano_corpus, tmp_path, content):
    made = written_sentences(base, "its print", nano_corpus, 10, CPU, tmp_path)
    the_file(tmp_path).write_text(content)
    assert written_sentences(base, "its print", nano_corpus, 10, CPU, tmp_path) == made


def test_a_second_command_waits_for_the_first_and_takes_what_it_wrote(
    base, nano_corpus, tmp_path, capfd
):
    made = written_sentences(base, "its print", nano_corpus, 200, CPU, tmp_path)
    path = the_file(tmp_path)
    content = path.read_bytes()
    path.unlink()
    lock = FileLock(path.with_suffix(".lock"), thread_local=False)

    def finish():
        time.sleep(1.5)
        path.write_bytes(content)
        lock.release()

    lock.acquire()
    first = threading.Thread(target=finish)
    first.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support.teaching.written, "write", None)  # nothing is left to write
        assert written_sentences(base, "its print", nano_corpus, 200, CPU, tmp_path) == made
    first.join()
    said = capfd.readouterr().err
    assert said == f"{tmp_path}: another command is at work here; waiting for it\n"


def test_a_base_that_writes_nothing_new_is_an_error_that_says_so(
    base, nano_corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(support.teaching.written, "continued", lambda *_: ["The same sentence."])
    monkeypatch.setattr(support.teaching.written, "FRUITLESS", 3)
    message = "--transfer_size: nano was to write 5 new sentences and has no more than 1"
    with pytest.raises(UserError, match=message):
        written_sentences(base, "its print", nano_corpus, 5, CPU, tmp_path)


def test_a_corpus_without_examples_to_write_after_is_refused(base, nano_corpus, tmp_path):
    three = {**nano_corpus, TRAIN: nano_corpus[TRAIN].chosen(np.arange(3))}
    with pytest.raises(UserError, match=r"and this corpus has [012]; take edits"):
        written_sentences(base, "its print", three, 5, CPU, tmp_path)
    few = base._replace(max_length=support.teaching.written.MOST_TOKENS + 12)
    with pytest.raises(UserError, match="at most 3 tokens"):  # fewer positions than a prompt needs
        written_sentences(few, "its print", nano_corpus, 5, CPU, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_special_token_ends_what_is_written(base, tokenizer):
    for found, text in ((base.tokenizer, "."), (tokenizer, "\n")):
        _, ends = sentence_ends(found)
        assert found.token_to_id("<|endoftext|>") in ends
        assert found.encode(text).ids[0] in ends


def test_continuations_are_drawn_from_what_the_model_gives_each_alone(base):
    """With one choice a token, every row is the greedy continuation that `generate` finds."""
    model = load_language_model(NANO)
    _, ends = sentence_ends(base.tokenizer)
    prompts = token_ids(base.tokenizer, ["The dogs sleep. A cat", "The", "Cats see dogs. They"])
    expected = []
    for ids in prompts:
        greedy = model.generate(
            torch.tensor([ids]), max_new_tokens=30, do_sample=False, pad_token_id=0
        )[0, len(ids) :].tolist()
        stop = next(place for place, token in enumerate(greedy) if token in ends.tolist())
        expected += [greedy[: stop + 1]] * support.teaching.written.ROWS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support.teaching.written, "TOP_K", 1)
        found = continuations(model, prompts, ends, torch.Generator())
    assert found == expected


def test_tokens_are_drawn_as_often_as_the_model_gives_them(base, monkeypatch):
    """Among the likeliest, in proportion; the first token of every row is looked at."""
    monkeypatch.setattr(support.teaching.written, "TOP_K", 10)
    model = load_language_model(NANO)
    (ids,) = token_ids(base.tokenizer, ["The dogs"])
    logits, likeliest = model(torch.tensor([ids])).logits[0, -1].topk(10)
    everything = torch.arange(model.config.vocab_size)  # any token ends a row
    found = continuations(model, [ids] * 50, everything, torch.Generator().manual_seed(0))
    drawn = torch.tensor(found).squeeze(1)
    counts = [(drawn == token).sum().item() for token in likeliest]
    assert sum(counts) == len(drawn) == 50 * support.teaching.written.ROWS
    expected = logits.detach().double().softmax(0).numpy() * len(drawn)
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


def test_no_sentence_of_a_dev_set_is_in_a_transfer_set_of_the_real_corpus(cola, tokenizer):
    """Whatever its case, spacing and mark at the end."""
    corpus = load_corpus(cola, tokenizer, 1024)
    taken = {bare(s) for split in (DEV, "out_of_domain_dev") for s in corpus[split].sentences}
    edits = transfer_sentences(corpus, tokenizer, 1024, 20_000, 22915)
    made = [bare(sentence) for sentence in edits]
    assert len(made) == 20_000
    assert not set(made) & taken
    assert not set(edits) & set(corpus[TRAIN].sentences)
    assert bare("  The  Dogs sleep .") == bare("the dogs sleep!")


def test_edits_of_a_dev_sentence_in_other_clothes_are_left_out(base, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "in_domain_train.tsv").write_text("a\t1\t\tCats see dogs.\n")
    (raw / "in_domain_dev.tsv").write_text("a\t0\t\tdogs  see cats !\n")
    (raw / "out_of_domain_dev.tsv").write_text("a\t0\t\tSee cats dogs\n")
    corpus = load_corpus(tmp_path, base.tokenizer, 512)
    assert read_split(raw / "in_domain_dev.tsv")[0] == ["dogs  see cats !"]
    made = transfer_sentences(corpus, base.tokenizer, 512, 10, 1)
    assert not {bare(sentence) for sentence in made} & {"dogs see cats", "see cats dogs"}


def test_held_out_sentences_are_no_prompts_and_are_not_written(base, nano_corpus, tmp_path):
    """Nor are they edited, or written again by chance."""
    corpus = hold_out(nano_corpus, 400)
    held_out = set(corpus[HELD_OUT].sentences)
    examples = support.teaching.written.examples_of(corpus[TRAIN], base.max_length)
    assert not held_out & {sentence for kind in examples for sentence in kind}
    made = written_sentences(base, "its fingerprint", corpus, 200, CPU, tmp_path)
    made += transfer_sentences(corpus, base.tokenizer, 512, 400, 1, made)
    assert not {bare(sentence) for sentence in made} & {bare(sentence) for sentence in held_out}
    written_sentences(base, "its fingerprint", nano_corpus, 200, CPU, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2  # another corpus, another file
