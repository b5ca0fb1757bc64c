"""Which sentences is a student taught on? Some are held out, some are edits, some a base writes."""

import gzip
import itertools
import json
import os
import signal
import threading
import time
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import NANO
from filelock import FileLock
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM

import support.teaching.written
from data_utils import HELD_OUT, hold_out, tokenize
from support.bases import find_base, load_language_model, token_ids
from support.corpus import DEV, OUT_OF_DOMAIN, SPLITS, TRAIN, bare
from support.devices import CPU, choose_device
from support.errors import UserError
from support.teaching import edited_sentences
from support.teaching.continuations import continuations
from support.teaching.edits import with_mistakes
from support.teaching.written import (
    EVERYDAY,
    by_label,
    everyday_sentences,
    examples_of,
    sentence_tokens,
    sentences_of_file,
    written_sentences,
)

BASE = find_base("nano")


def corpus_of(*sentences) -> dict:
    """Return three splits of the same sentences, all of them acceptable."""
    labels = [1] * len(sentences)
    return {n: tokenize(BASE.tokenizer, sentences, labels, 512, n) for n in SPLITS}


def bare_sentences(*splits) -> set[str]:
    """What these splits have, whatever case, spacing and final mark."""
    return {bare(sentence) for split in splits for sentence in split.sentences}


# ---------------------------------------------------------------------------------------------
# Sentences held out


def test_held_out_sentences_are_the_same_for_all_and_left_out_of_training(nano_corpus):
    assert hold_out(nano_corpus, 0) is nano_corpus
    corpus = hold_out(nano_corpus, 300)
    held_out, rest = corpus[HELD_OUT], corpus[TRAIN]
    assert len(held_out) == 300
    assert held_out.sentences == hold_out(nano_corpus, 300)[HELD_OUT].sentences
    splits = held_out, rest, nano_corpus[TRAIN]
    rows = [list(zip(x.sentences, x.labels.tolist(), strict=True)) for x in splits]
    assert sorted(rows[0] + rows[1]) == sorted(rows[2])
    assert 0.4 < held_out.labels.float().mean() < 0.6


def test_no_copy_of_a_held_out_sentence_stays_among_the_training_sentences():
    sentences = [f"Cat {n} sat." for n in range(20)] + [f"cat  {n} SAT !" for n in range(20)]
    train = tokenize(BASE.tokenizer, sentences, [0, 1] * 20, 512, "here")
    corpus = hold_out({TRAIN: train}, 6)
    taken = bare_sentences(corpus[HELD_OUT])
    assert len(corpus[HELD_OUT]) == 6
    assert corpus[TRAIN].sentences == [s for s in sentences if bare(s) not in taken]
    assert len(corpus[TRAIN]) >= 28


def test_held_out_sentences_are_no_prompts(nano_corpus, tmp_path, monkeypatch):
    corpus, watched = hold_out(nano_corpus, 3000), Mock(wraps=continuations)
    monkeypatch.setattr(support.teaching.written, "continuations", watched)
    written_sentences(BASE, "a base", corpus, 300, CPU, tmp_path)
    ids = [row for call in watched.call_args_list for row in call.args[1]]
    prompts = BASE.tokenizer.decode_batch(ids)
    examples = {
        sentence for kind in examples_of(BASE, by_label(corpus[TRAIN])) for sentence in kind
    }
    assert examples <= set(corpus[TRAIN].sentences)
    assert len(prompts) >= 8
    assert all(any(prompt.startswith(example) for example in examples) for prompt in prompts)
    shown = "\n".join(prompts)
    assert not any(sentence in shown for sentence in set(corpus[HELD_OUT].sentences) - examples)


# ---------------------------------------------------------------------------------------------
# Edits


def edits_of(corpus, size: int, max_length: int = 512, sr_no: int = 1) -> list[str]:
    return edited_sentences(corpus, BASE.tokenizer, max_length, size, sr_no)


def test_edits_are_new_seeded_and_of_the_training_words(nano_corpus):
    train, made = nano_corpus[TRAIN].sentences, edits_of(nano_corpus, 3000)
    assert len(set(made) - set(train)) == 3000
    assert made == edits_of(nano_corpus, 3000)
    assert made != edits_of(nano_corpus, 3000, sr_no=2)

    def words(sentences):
        return {word.lower() for s in sentences for word in s.rstrip(".?! ").split()}

    assert words(made) <= words(train)
    assert all(sentence[0] == sentence[0].upper() for sentence in made)


def test_no_capital_gives_an_edit_away():
    """A word counts that stands mid-sentence elsewhere, be it with the mark at the end."""
    made = edits_of(corpus_of("Cats see dogs.", "Dogs see cats."), 10)
    assert all(word.islower() for sentence in made for word in sentence.split()[1:])


@pytest.mark.parametrize(
    ("sentences", "there_are"), [(["Go.", "Dogs see cats."], 20), (["Go."], 1), (["..."], 0)]
)
def test_more_edits_than_there_are_is_an_error_with_their_number(sentences, there_are):
    corpus, size = corpus_of(*sentences), there_are + 1
    assert len(edits_of(corpus, there_are)) == there_are
    message = f"--transfer_size {size}: the training sentences have no more than {there_are} var"
    with pytest.raises(UserError, match=message):
        edits_of(corpus, size)


def test_an_edit_that_is_too_long_for_the_model_is_left_out():
    corpus = corpus_of("The teacher sleeps.", "A cat here sees her.")
    longest = int(corpus[TRAIN].seqlens.max())

    def fits(sentence: str) -> bool:
        return len(BASE.tokenizer.encode(sentence).ids) <= longest

    fitting = list(filter(fits, edits_of(corpus, 30)))
    made = edits_of(corpus, 30, longest)
    assert len(fitting) < 30
    assert made[: len(fitting)] == fitting
    assert all(map(fits, made))


def test_mistakes_are_of_four_kinds_and_each_sentence_has_one_that_is_new():
    sentences = ["She has eaten some books.", "The boys fed the dogs.", "A book fell on a dog."]
    known = {bare("The boys fed dogs the.")}
    made: list[str] = []
    for _ in range(60):  # what has been made is known the next time
        made += with_mistakes(sentences, known | {bare(sentence) for sentence in made})
    found = {bare(sentence) for sentence in made}
    assert len(found) == len(made)
    assert not found & (known | {bare(sentence) for sentence in sentences})
    assert {
        "She have eaten some books.", "She has ate some books.",  # a word for another
        "She has eaten some book.", "A books fell on a dog.",  # another form of it
        "Boys fed the dogs.", "The fed the dogs.",  # a word less
        "Boys the fed the dogs.", "A book fell a on dog.",  # neighbours exchanged
    } <= {*made}  # fmt: skip
    assert with_mistakes(sentences, known) == made[:3]
    for sentence, wrong in zip(sentences, made[:3], strict=True):
        assert len({*sentence.split()} & {*wrong.split()}) >= 3


# ---------------------------------------------------------------------------------------------
# Sentences that a base writes


def test_half_of_everyday_sentences_are_after_a_page_and_stand_there_with_a_mistake_too(
    nano_corpus, written, tmp_path
):
    source = BASE, "a base", nano_corpus
    made = everyday_sentences(*source, 203, CPU, tmp_path)
    assert made[:103] == written[0][:103]
    plain, wrong = made[103:153], made[153:]
    assert plain == written_sentences(*source, 50, CPU, tmp_path, everyday=True)
    assert not set(plain) & set(written[0])
    known = bare_sentences(*nano_corpus.values())
    assert wrong == with_mistakes(plain, known)
    assert not set(map(bare, wrong)) & (known | set(map(bare, plain)))
    page = {bare(line) for line in EVERYDAY.read_text().splitlines()}
    assert not page & {bare(sentence) for sentence in plain}
    assert everyday_sentences(*source, 203, CPU, tmp_path) == made


def test_a_sentence_that_a_base_writes_after_both_stands_there_once(monkeypatch, tmp_path):
    after_corpus = [f"The {n} of them came." for n in range(40)]
    after_page = [*after_corpus[3:5], *(f"We saw the {n} dogs." for n in range(40))]

    def wrote(base, key, corpus, size, device, folder, everyday=False):
        return (after_page if everyday else after_corpus)[:size]

    monkeypatch.setattr("support.teaching.written.written_sentences", wrote)
    made = everyday_sentences(BASE, "a base", {}, 30, CPU, tmp_path)
    assert len(made) == len(set(map(bare, made))) == 30
    assert set(after_page[:7]) <= set(made)


def the_file(folder):
    """The one file that writing leaves, beside its lock."""
    (path,) = folder.glob("nano_*.json")
    return path


@pytest.fixture(scope="module")
def written(nano_corpus, tmp_path_factory):
    """What the base writes, and the file that it is in; no test may change it."""
    folder = tmp_path_factory.mktemp("written")
    return written_sentences(BASE, "a base", nano_corpus, 200, CPU, folder), the_file(folder)


def test_written_sentences_are_new_whole_and_the_same_again(nano_corpus, written, tmp_path):
    made, path = written
    assert written_sentences(BASE, "a base", nano_corpus, 200, CPU, tmp_path) == made
    assert the_file(tmp_path).name == path.name
    assert len({bare(s) for s in made} - bare_sentences(*nano_corpus.values())) == 200
    for sentence in made:
        assert sentence[0].isupper()
        assert sentence[-1] in ".?!"
        assert 3 <= len(sentence.split()) <= 20


@pytest.mark.parametrize("name", [HELD_OUT, DEV, OUT_OF_DOMAIN])
def test_no_sentence_of_another_split_is_written_or_made_by_an_edit(
    nano_corpus, written, tmp_path, name
):
    """Nor one in another case, spacing or mark: there are some that would be."""
    written_before, edited_before = written[0], edits_of(nano_corpus, 100)
    taken = written_before[:20] + edited_before[:20]
    others = [sentence.upper().rstrip(".?!") + " !" for sentence in taken]
    corpus = nano_corpus | {name: tokenize(BASE.tokenizer, others, [0, 1] * 20, 512, "here")}
    made = written_sentences(BASE, "a base", corpus, 100, CPU, tmp_path)
    assert made[:50] == [s for s in written_before if s not in taken][:50]
    made += edits_of(corpus, 100)
    assert not {bare(sentence) for sentence in made} & bare_sentences(corpus[name])


def test_another_base_corpus_or_precision_has_a_file_of_its_own(nano_corpus, tmp_path, monkeypatch):
    dtypes = []

    def watched(*arguments):
        dtypes.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return continuations(*arguments)

    monkeypatch.setattr(support.teaching.written, "continuations", watched)
    monkeypatch.setattr(support.teaching.written, "ROWS", 4)  # bf16 may be emulated
    dev, train, bf16 = nano_corpus[DEV], nano_corpus[TRAIN], choose_device("cpu", "bf16")
    fewer = nano_corpus | {DEV: dev.chosen(np.arange(len(dev) - 1))}
    relabelled = nano_corpus | {TRAIN: replace(train, labels=1 - train.labels)}
    made = [
        written_sentences(BASE, key, corpus, 20, device, tmp_path)
        for key, corpus, device in (
            ("a base", nano_corpus, CPU),
            ("another base", nano_corpus, CPU),
            ("a base", fewer, CPU),
            ("a base", relabelled, CPU),
            ("a base", nano_corpus, bf16),
        )
    ]
    assert len(list(tmp_path.glob("*.json"))) == len(made)
    assert made[0] == made[1] == made[2] != made[3]
    assert set(dtypes) == {None, torch.bfloat16}


def test_writing_that_is_interrupted_goes_on_to_the_same_file(nano_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(support.teaching.written, "ROWS", 16)
    written_sentences(BASE, "a base", nano_corpus, 400, CPU, tmp_path / "whole")
    assert json.loads(the_file(tmp_path / "whole").read_text())["batches"] > 3
    calls = itertools.count(1)

    def interrupted(*arguments):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return continuations(*arguments)

    monkeypatch.setattr(support.teaching.written, "continuations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written_sentences(BASE, "a base", nano_corpus, 400, CPU, tmp_path / "cut")
    assert json.loads(the_file(tmp_path / "cut").read_text())["batches"] == 3
    written_sentences(BASE, "a base", nano_corpus, 400, CPU, tmp_path / "cut")
    assert the_file(tmp_path / "cut").read_bytes() == the_file(tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("content", ["", "[]", '{"batches": 1, "sentences": ["A b c.", 1]}'])
def test_a_broken_file_is_written_anew(nano_corpus, written, tmp_path, content):
    made, path = written
    (tmp_path / path.name).write_text(content)
    assert written_sentences(BASE, "a base", nano_corpus, 10, CPU, tmp_path) == made[:10]


def test_a_second_command_waits_for_the_first_and_takes_what_it_wrote(
    nano_corpus, written, tmp_path, capfd, monkeypatch
):
    made, path = written
    held = threading.Event()

    def hold():
        with FileLock(tmp_path / path.with_suffix(".lock").name):
            held.set()
            time.sleep(1.5)
            (tmp_path / path.name).write_bytes(path.read_bytes())

    threading.Thread(target=hold).start()
    held.wait()
    monkeypatch.setattr(support.teaching.written, "write", None)  # nothing is left to write
    assert written_sentences(BASE, "a base", nano_corpus, 200, CPU, tmp_path) == made
    assert capfd.readouterr().err.endswith("another command is at work here; waiting for it\n")


def test_a_base_that_writes_nothing_new_is_an_error_that_says_so(
    nano_corpus, tmp_path, monkeypatch
):
    again = itertools.repeat(["The same sentence."])
    monkeypatch.setattr(support.teaching.written, "written_batches", lambda *_: again)
    message = "--transfer_size: nano was to write 5 new sentences and has no more than 1"
    with pytest.raises(UserError, match=message):
        written_sentences(BASE, "a base", nano_corpus, 5, CPU, tmp_path)
    assert json.loads(the_file(tmp_path).read_text())["batches"] == 26


def test_a_corpus_without_examples_to_write_after_is_refused(nano_corpus, tmp_path):
    three = {**nano_corpus, TRAIN: nano_corpus[TRAIN].chosen(np.arange(3))}
    counts = "here are [0-3] and [0-3]; take edits"
    with pytest.raises(UserError, match=counts):
        written_sentences(BASE, "a base", three, 5, CPU, tmp_path)
    few = BASE._replace(max_length=support.teaching.written.MOST_TOKENS + 12)
    for everyday in (False, True):
        with pytest.raises(UserError, match="at most 3 tokens"):  # fewer than a prompt needs
            written_sentences(few, "a base", nano_corpus, 5, CPU, tmp_path, everyday=everyday)
    with pytest.raises(UserError, match=counts):  # before a single everyday sentence
        everyday_sentences(BASE, "a base", three, 8, CPU, tmp_path)
    assert not list(tmp_path.iterdir())


MINE = b"A dog ran.\n\nthe cat sat\nA dog ran.\nBirds sing.\nFish swim.\n"


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.txt", MINE, {"A dog ran.": 1, "Birds sing.": 5}),
        ("a.txt.gz", gzip.compress(MINE, mtime=0), {"A dog ran.": 1, "Birds sing.": 5}),
        ("a.txt", MINE[:23], "a.txt: 1 new sentences; --transfer_size asks for 2"),
        ("a.gz", gzip.compress(MINE, mtime=0)[:-9], "a.gz: broken"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", b"\n", "no sentences"),
    ],
)
def test_the_first_new_sentences_of_a_file_are_taken_with_their_lines(
    tmp_path, name, content, found
):
    corpus, path = corpus_of("The cat sat."), tmp_path / name
    path.write_bytes(content)
    if isinstance(found, dict):
        assert sentences_of_file(path, corpus, 2) == (list(found), list(found.values()))
    else:
        with pytest.raises(UserError, match=found):
            sentences_of_file(path, corpus, 2)


def test_a_sentence_ends_with_its_line_or_mark_or_the_text():
    """With its line where the tokenizer knows several tokens with a line's end, as GPT-2's does."""
    lines = Tokenizer(BPE({"a": 0, ".": 1, "Ċ": 2, "ĊĊ": 3}, [("Ċ", "Ċ")]))
    lines.decoder = ByteLevel()
    lines.add_special_tokens(["<|endoftext|>"])
    separator, ends = sentence_tokens(lines)
    assert (separator, ends.nonzero().flatten().tolist()) == ("\n", [2, 3, 4])
    separator, ends = sentence_tokens(BASE.tokenizer)
    assert separator == " "
    ends = ends.nonzero().flatten()
    pieces = [BASE.tokenizer.decode([token], skip_special_tokens=False) for token in ends]
    assert {".", "?", "!", "<|endoftext|>"} <= set(pieces)
    assert all(piece[-1] in ".?!>" for piece in pieces)


# ---------------------------------------------------------------------------------------------
# Continuations


@pytest.fixture(scope="module")
def model():
    return load_language_model(NANO)


@pytest.mark.parametrize("heads", [None, 1, 2])
def test_continuations_are_what_the_model_gives_each_alone(model, heads):
    """With one choice a token, every row is the greedy continuation that `generate` finds."""
    vocabulary = BASE.tokenizer.get_vocab_size()
    if heads:  # of keys and values, under four of queries: Llama's grouped-query attention
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=heads, initializer_range=0.3,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
    prompts = token_ids(BASE.tokenizer, ["The dogs sleep. A cat", "The", "Cats see dogs. They"])
    ends, expected = torch.arange(vocabulary) % 7 == 0, []
    for ids in prompts:
        greedy = model.generate(
            torch.tensor([ids]), max_new_tokens=32, do_sample=False, pad_token_id=0,
            eos_token_id=ends.nonzero().flatten().tolist(),
        )[0, len(ids) :].tolist()  # fmt: skip
        expected += [greedy] * 20
    found = continuations(model, prompts, 20, 1, 32, ends, torch.Generator())
    assert found == [text for text in expected if text[-1] % 7 == 0]
    assert len(found) >= 40
    assert max(map(len, found)) > 3


def test_no_token_is_drawn_that_the_tokenizer_lacks(model):
    """A base may have more rows than its tokenizer has tokens, for speed."""
    known = torch.ones(500, dtype=torch.bool)  # of the model's 1,000
    (ids,) = token_ids(BASE.tokenizer, ["The dogs"])
    found = continuations(model, [ids] * 5, 64, 1000, 1, known, torch.Generator())
    assert len(found) == 320
    assert max(token for text in found for token in text) < 500


def test_tokens_are_drawn_as_often_as_the_model_gives_them(model):
    """Among the likeliest, in proportion; the first token of every row is looked at."""
    (ids,) = token_ids(BASE.tokenizer, ["The dogs"])
    logits, likeliest = model(torch.tensor([ids])).logits[0, -1].topk(10)
    anything = torch.ones(model.config.vocab_size, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    found = continuations(model, [ids] * 50, 64, 10, 32, anything, generator)
    drawn = torch.tensor(found).squeeze(1)
    counts = [(drawn == token).sum().item() for token in likeliest]
    assert sum(counts) == len(drawn) == 50 * 64
    expected = logits.detach().double().softmax(0).numpy() * len(drawn)
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3
