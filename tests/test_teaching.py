"""What a student is taught on: held-out sentences, edits, sentences of a base, hints."""

import gzip
import itertools
import json
import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import NANO, classifier
from filelock import FileLock
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from torch import nn
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

import support.teaching.answers
import support.teaching.edits
import support.teaching.written
from data_utils import load_corpus, pack, tokenize
from support.bases import find_base, load_language_model, load_tokenizer, token_ids
from support.corpus import DEV, SPLITS, TRAIN, read_split
from support.devices import CPU, Device, choose_device
from support.errors import UserError
from support.files import read_tensors
from support.fingerprints import corpus_fingerprint, fingerprint
from support.teaching import HELD_OUT, hold_out, read_hints, transfer_sentences, written_sentences
from support.teaching.continuations import Wanted, continuations, shared_prompt_attention
from support.teaching.edits import bare, most_variations, variations, words_and_marks
from support.teaching.written import ROWS, examples_of, sentence_tokens, sentences_of_file

WIDTH = 16


@pytest.fixture(scope="module")
def base():
    return find_base("nano")


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return classifier(NANO).requires_grad_(False).eval()


def corpus_of(*sentences) -> dict:
    """Return three splits of the same sentences, all of them acceptable."""
    labels = [1] * len(sentences)
    return {n: tokenize(load_tokenizer(NANO), sentences, labels, 512, n) for n in SPLITS}


# ---------------------------------------------------------------------------------------------
# Sentences held out


def test_held_out_sentences_are_the_same_for_all_and_left_out_of_training(nano_corpus):
    whole = nano_corpus[TRAIN]
    corpus = hold_out(nano_corpus, 300)
    held_out, rest = corpus[HELD_OUT], corpus[TRAIN]
    assert len(held_out) == 300
    assert held_out.sentences == hold_out(nano_corpus, 300)[HELD_OUT].sentences
    rows = [list(zip(x.sentences, x.labels.tolist(), strict=True)) for x in (held_out, rest, whole)]
    assert sorted(rows[0] + rows[1]) == sorted(rows[2])
    assert 0.4 < held_out.labels.float().mean() < 0.6
    tokenizer = load_tokenizer(NANO)
    for split in (held_out, rest):
        expected = tokenize(tokenizer, split.sentences, split.labels.tolist(), 512, "here")
        assert torch.equal(split.input_ids, expected.input_ids)
        assert torch.equal(split.cu_seqlens, expected.cu_seqlens)


def copies_held_out(corpus: dict) -> list[str]:
    """The training sentences that are held-out ones, whatever their case, spacing and mark."""
    held_out = {bare(sentence) for sentence in corpus[HELD_OUT].sentences}
    return [sentence for sentence in corpus[TRAIN].sentences if bare(sentence) in held_out]


def test_no_copy_of_a_held_out_sentence_stays_among_the_training_sentences():
    sentences = [f"Cat {n} sat." for n in range(20)]
    copies = [f"cat  {n} SAT !" for n in range(20)]
    labels = [0, 1] * 20
    train = tokenize(load_tokenizer(NANO), sentences + copies, labels, 512, "here")
    corpus = hold_out({TRAIN: train}, 6)
    assert len(corpus[HELD_OUT]) == 6
    assert copies_held_out(corpus) == []
    others = {bare(sentence) for sentence in corpus[HELD_OUT].sentences}
    kept = [s for s in sentences + copies if bare(s) not in others]
    assert corpus[TRAIN].sentences == kept
    assert len(kept) >= 28
    with pytest.raises(UserError, match="--held_out 39: the corpus has 40; hold out fewer"):
        hold_out({TRAIN: train}, 39)


def test_five_copies_of_held_out_sentences_are_left_out_of_cola(cola, tokenizer):
    corpus = hold_out(load_corpus(cola, tokenizer, 1024), 1000)
    assert copies_held_out(corpus) == []
    assert (len(corpus[HELD_OUT]), len(corpus[TRAIN])) == (1000, 8551 - 1000 - 5)


def test_none_held_out_is_the_corpus(nano_corpus):
    assert hold_out(nano_corpus, 0) is nano_corpus


@pytest.mark.parametrize(
    ("size", "why"), [(4000, "has 4000; hold out fewer"), (1, "hold out more")]
)
def test_what_no_bias_can_be_fitted_on_is_refused(nano_corpus, size, why):
    with pytest.raises(UserError, match=f"--held_out {size}: .*{why}"):
        hold_out(nano_corpus, size)


@pytest.fixture(scope="module")
def written_before(base, nano_corpus, tmp_path_factory) -> list[str]:
    """What the base writes for a corpus with sentences held out."""
    folder = tmp_path_factory.mktemp("before")
    return written_sentences(base, "a base", hold_out(nano_corpus, 400), 200, CPU, folder)


def test_no_held_out_sentence_is_written_or_made_by_an_edit(
    base, nano_corpus, written_before, tmp_path
):
    """Nor one in another case, spacing or mark: held out are some that would be."""
    corpus = hold_out(nano_corpus, 400)
    edits_before = transfer_sentences(corpus, base.tokenizer, 512, 100, 1)
    chosen = [s.upper().rstrip(".?!") + " !" for s in (*written_before[:20], *edits_before[:20])]
    corpus[HELD_OUT] = tokenize(base.tokenizer, chosen, [0, 1] * 20, 512, "here")
    held_out = {bare(sentence) for sentence in chosen}
    written = written_sentences(base, "a base", corpus, 200, CPU, tmp_path)
    assert not {bare(sentence) for sentence in written} & held_out
    edits = transfer_sentences(corpus, base.tokenizer, 512, 100, 1)
    assert not {bare(sentence) for sentence in edits} & held_out
    assert written[:50] == [s for s in written_before if bare(s) not in held_out][:50]


def test_held_out_sentences_are_no_prompts(base, nano_corpus, tmp_path, monkeypatch):
    corpus, prompts = hold_out(nano_corpus, 3000), []

    def watched(model, ids, *rest):
        prompts.extend(base.tokenizer.decode_batch(ids))
        return continuations(model, ids, *rest)

    monkeypatch.setattr(support.teaching.written, "continuations", watched)
    written_sentences(base, "a base", corpus, 600, CPU, tmp_path)
    assert len(prompts) >= 16
    examples = {sentence for kind in examples_of(corpus[TRAIN], 512) for sentence in kind}
    assert not examples & set(corpus[HELD_OUT].sentences)
    assert all(any(prompt.startswith(example) for example in examples) for prompt in prompts)
    shown = "\n".join(prompts)
    assert not any(sentence in shown for sentence in set(corpus[HELD_OUT].sentences) - examples)


# ---------------------------------------------------------------------------------------------
# Edits


def first(size: int, sentences, sr_no: int) -> list[str]:
    """The first ``size`` variations."""
    found = variations(words_and_marks(sentences), set(sentences), sr_no)
    return list(itertools.islice(found, size))


def test_edits_are_new_seeded_and_of_the_training_words(nano_corpus):
    train = nano_corpus[TRAIN].sentences
    made = first(3000, train, 1)
    assert len(made) == len(set(made)) == 3000
    assert not set(made) & set(train)
    assert made == first(3000, train, 1)
    assert made != first(3000, train, 2)

    def words(sentences):
        return {word.lower() for s in sentences for word in s.rstrip(".?! ").split()}

    assert words(made) <= words(train)
    assert all(sentence[0] == sentence[0].upper() for sentence in made)


def test_no_capital_gives_an_edit_away():
    """A word counts that stands mid-sentence elsewhere, be it with the mark at the end."""
    made = first(100, ["Cats see dogs.", "Dogs see cats."], 1)
    assert len(made) > 10
    assert all(word.islower() for sentence in made for word in sentence.split()[1:])


def test_written_sentences_come_first_and_are_edited_too(base, nano_corpus):
    corpus = {**nano_corpus, TRAIN: nano_corpus[TRAIN].chosen(np.arange(2))}
    written = ["Zebras yawn.", "Zebras yodel."]
    made = transfer_sentences(corpus, base.tokenizer, 512, 40, 1, written)
    assert made[:2] == written
    assert len(set(made)) == 40
    assert any("yawn" in sentence or "yodel" in sentence for sentence in made[2:])


@pytest.mark.parametrize("size", [60, 10**9])
@pytest.mark.parametrize("sentences", [["Go.", "Dogs see cats."], ["Go."], ["..."]])
def test_more_edits_than_there_are_is_an_error_with_a_number(sentences, size):
    """Where few are missing it is how many there are; else it is found without a draw."""
    there_are = len(first(1000, sentences, 1))
    most = most_variations(words_and_marks(sentences))
    assert there_are <= most
    bound = there_are if size <= most else most
    corpus = corpus_of(*sentences)
    message = f"--transfer_size {size}: the training sentences have no more than {bound} variations"
    with pytest.raises(UserError, match=message):
        transfer_sentences(corpus, load_tokenizer(NANO), 512, size, 1)


def test_far_too_many_edits_are_refused_at_once(nano_corpus, base, monkeypatch):
    def drawn(*_):
        raise AssertionError("no edit should be drawn")
        yield

    monkeypatch.setattr(support.teaching.edits, "variations", drawn)
    corpus = {name: split.chosen(np.arange(50)) for name, split in nano_corpus.items()}
    with pytest.raises(UserError, match=r"--transfer_size 1000000: .*; ask for fewer"):
        transfer_sentences(corpus, base.tokenizer, 512, 1_000_000, 1)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_no_edit_that_can_be_had_is_refused(nano_corpus, size):
    for start in range(0, 40, size):
        sentences = nano_corpus[TRAIN].sentences[start : start + size]
        there_are = sum(1 for _ in variations(words_and_marks(sentences), set(), 1))
        assert there_are <= most_variations(words_and_marks(sentences))


def test_a_variation_that_is_too_long_for_the_model_is_left_out():
    tokenizer, sentences = load_tokenizer(NANO), ["The teacher sleeps.", "A cat here sees her."]
    longest = max(map(len, token_ids(tokenizer, sentences)))
    made = {}
    for max_length in (longest, 512):
        corpus = corpus_of(*sentences)
        some = transfer_sentences(corpus, tokenizer, max_length, 30, 1)
        made[max_length] = dict(zip(some, map(len, token_ids(tokenizer, some)), strict=True))
    assert len(made[longest]) == len(made[512]) == 30
    assert max(made[512].values()) > longest  # there is something to leave out
    assert max(made[longest].values()) == longest
    fitting = [sentence for sentence, n in made[512].items() if n <= longest]
    assert list(made[longest])[: len(fitting)] == fitting


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


# ---------------------------------------------------------------------------------------------
# Sentences that a base writes


def the_file(folder):
    """The one file that writing leaves, beside its lock."""
    (path,) = folder.glob("nano_*.json")
    return path


def test_written_sentences_are_new_whole_and_the_same_again(base, nano_corpus, tmp_path):
    made = written_sentences(base, "a base", nano_corpus, 200, CPU, tmp_path / "one")
    assert made == written_sentences(base, "a base", nano_corpus, 200, CPU, tmp_path / "other")
    taken = {bare(sentence) for split in nano_corpus.values() for sentence in split.sentences}
    assert len({bare(sentence) for sentence in made} - taken) == 200
    for sentence in made:
        assert sentence[0].isupper()
        assert sentence[-1] in ".?!"
        assert 3 <= len(sentence.split()) <= 20


def test_the_name_of_a_file_tells_base_corpus_and_kind_of_device(base, nano_corpus, tmp_path):
    """Spelt out, since files that are there already are to be found."""
    written_sentences(base, "a base", nano_corpus, 10, CPU, tmp_path)
    how = "('cpu', 'fp32', 3, 150, 8, 64, range(3, 21), 32)"
    parts = ["a base", base.tokenizer.to_str(), corpus_fingerprint(nano_corpus), how]
    sentences = [sentence for split in SPLITS for sentence in nano_corpus[split].sentences]
    assert the_file(tmp_path).name == f"nano_{fingerprint(*parts, *sentences)[:12]}.json"


def test_another_corpus_has_its_own_file_and_none_of_its_sentences(base, nano_corpus, tmp_path):
    """A dev sentence of tomorrow's corpus may be among those written for today's."""
    made = written_sentences(base, "a base", nano_corpus, 200, CPU, tmp_path)
    dev = nano_corpus[DEV]
    other = replace(dev, sentences=[made[0].upper(), *dev.sentences[1:]])
    again = written_sentences(base, "a base", {**nano_corpus, DEV: other}, 200, CPU, tmp_path)
    assert bare(made[0]) not in {bare(sentence) for sentence in again}
    assert len(list(tmp_path.glob("*.json"))) == 2
    train = nano_corpus[TRAIN]
    relabelled = {**nano_corpus, TRAIN: replace(train, labels=1 - train.labels)}
    assert written_sentences(base, "a base", relabelled, 200, CPU, tmp_path) != made
    assert written_sentences(base, "a base", nano_corpus, 200, CPU, tmp_path) == made


def test_what_is_written_under_bf16_has_a_file_of_its_own(base, nano_corpus, tmp_path, monkeypatch):
    dtypes = []

    def watched(*arguments):
        dtypes.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return continuations(*arguments)

    monkeypatch.setattr(support.teaching.written, "continuations", watched)
    monkeypatch.setattr(support.teaching.written, "ROWS", 4)  # bf16 may be emulated
    made = written_sentences(base, "a base", nano_corpus, 20, CPU, tmp_path)
    bf16 = choose_device("cpu", "bf16")
    rounded = written_sentences(base, "a base", nano_corpus, 20, bf16, tmp_path)
    assert made == written_sentences(base, "a base", nano_corpus, 20, CPU, tmp_path)
    assert len(rounded) == 20
    assert set(dtypes) == {None, torch.bfloat16}
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_writing_that_is_interrupted_goes_on_to_the_same_file(
    base, nano_corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(support.teaching.written, "ROWS", 16)
    written_sentences(base, "a base", nano_corpus, 400, CPU, tmp_path / "whole")
    assert json.loads(the_file(tmp_path / "whole").read_text())["batches"] > 3
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return continuations(*arguments)

    monkeypatch.setattr(support.teaching.written, "continuations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written_sentences(base, "a base", nano_corpus, 400, CPU, tmp_path / "cut")
    assert json.loads(the_file(tmp_path / "cut").read_text())["batches"] == 3
    written_sentences(base, "a base", nano_corpus, 400, CPU, tmp_path / "cut")
    assert the_file(tmp_path / "cut").read_bytes() == the_file(tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("content", ["", "[]", '{"batches": 1, "sentences": ["A b c.", 1]}'])
def test_a_broken_file_is_written_anew(base, nano_corpus, tmp_path, content):
    made = written_sentences(base, "a base", nano_corpus, 10, CPU, tmp_path)
    the_file(tmp_path).write_text(content)
    assert written_sentences(base, "a base", nano_corpus, 10, CPU, tmp_path) == made


def test_a_second_command_waits_for_the_first_and_takes_what_it_wrote(
    base, nano_corpus, tmp_path, capfd
):
    made = written_sentences(base, "a base", nano_corpus, 200, CPU, tmp_path)
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
        assert written_sentences(base, "a base", nano_corpus, 200, CPU, tmp_path) == made
    first.join()
    message = f"{tmp_path}: another command is at work here; waiting for it\n"
    assert capfd.readouterr().err == message


def test_a_base_that_writes_nothing_new_is_an_error_that_says_so(
    base, nano_corpus, tmp_path, monkeypatch
):
    again = itertools.repeat(["The same sentence."])
    monkeypatch.setattr(support.teaching.written, "written_batches", lambda *_: again)
    message = "--transfer_size: nano was to write 5 new sentences and has no more than 1"
    with pytest.raises(UserError, match=message):
        written_sentences(base, "a base", nano_corpus, 5, CPU, tmp_path)
    assert json.loads(the_file(tmp_path).read_text())["batches"] == 26


def test_a_corpus_without_examples_to_write_after_is_refused(base, nano_corpus, tmp_path):
    three = {**nano_corpus, TRAIN: nano_corpus[TRAIN].chosen(np.arange(3))}
    counts = "this corpus has [0-3] unacceptable and [0-3] acceptable ones; take edits"
    with pytest.raises(UserError, match=counts):
        written_sentences(base, "a base", three, 5, CPU, tmp_path)
    few = base._replace(max_length=support.teaching.written.MOST_TOKENS + 12)
    with pytest.raises(UserError, match="at most 3 tokens"):  # fewer positions than a prompt needs
        written_sentences(few, "a base", nano_corpus, 5, CPU, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mine.txt", "mine.txt.gz"])
def test_sentences_of_a_file_take_the_place_of_written_ones(tmp_path, name):
    corpus, path = corpus_of("The cat sat."), tmp_path / name
    content = b"A dog ran.\n\nthe cat sat\nA dog ran.\nBirds sing.\nFish swim.\n"
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert sentences_of_file(path, corpus, 2) == {"A dog ran.": 1, "Birds sing.": 5}
    with pytest.raises(UserError, match=f"{name}: 3 new sentences; --transfer_size asks for 4"):
        sentences_of_file(path, corpus, 4)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.gz", b"plain", "a.gz: broken"),
        ("a.gz", gzip.compress(b"A dog ran.", mtime=0)[:-9], "a.gz: broken"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", b"\n", "no sentences"),
    ],
)
def test_a_file_without_sentences_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        sentences_of_file(tmp_path / name, corpus_of("The cat sat."), 1)


def test_a_sentence_ends_with_its_line_or_mark_or_the_text(base):
    """With its line where the tokenizer knows several tokens with a line's end, as GPT-2's does."""
    lines = Tokenizer(BPE({"a": 0, ".": 1, "Ċ": 2, "ĊĊ": 3}, [("Ċ", "Ċ")]))
    lines.decoder = ByteLevel()
    lines.add_special_tokens(["<|endoftext|>"])
    separator, wanted = sentence_tokens(lines, CPU)
    assert (separator, wanted.ends.nonzero().flatten().tolist()) == ("\n", [2, 3, 4])
    separator, wanted = sentence_tokens(base.tokenizer, CPU)
    assert separator == " "
    ends = wanted.ends.nonzero().flatten()
    pieces = [base.tokenizer.decode([token], skip_special_tokens=False) for token in ends]
    assert {".", "?", "!", "<|endoftext|>"} <= set(pieces)
    assert all(piece[-1] in ".?!>" for piece in pieces)


def anything(vocabulary: int, ends: torch.Tensor) -> Wanted:
    """Any continuation up to one of the tokens ``ends``."""
    flags = torch.zeros(vocabulary, dtype=torch.bool)
    flags[ends] = True
    return Wanted(flags, torch.ones_like(flags), torch.zeros_like(flags), 0, 32)


def writer() -> nn.Module:
    return load_language_model(NANO, shared_prompt_attention)


@pytest.mark.parametrize("heads", [None, 1, 2])
def test_continuations_are_what_the_model_gives_each_alone(base, heads, tmp_path):
    """With one choice a token, every row is the greedy continuation that `generate` finds."""
    folder = NANO
    if heads:  # of keys and values, under four of queries: Llama's grouped-query attention
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=base.tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=96,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=heads,
            initializer_range=0.3, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        folder = tmp_path
        LlamaForCausalLM(config).save_pretrained(folder)
    model = load_language_model(folder)
    prompts = token_ids(base.tokenizer, ["The dogs sleep. A cat", "The", "Cats see dogs. They"])
    ends, expected = torch.arange(0, base.tokenizer.get_vocab_size(), 7), []
    for ids in prompts:
        greedy = model.generate(
            torch.tensor([ids]), max_new_tokens=32, do_sample=False, pad_token_id=0,
            eos_token_id=ends.tolist(),
        )[0, len(ids) :].tolist()  # fmt: skip
        expected += [greedy] * 20
    model = load_language_model(folder, shared_prompt_attention)
    wanted = anything(model.config.vocab_size, ends)
    found = continuations(model, prompts, 20, 1, wanted, torch.Generator())
    assert found == [text for text in expected if text[-1] % 7 == 0]
    assert len(found) >= 40
    assert max(map(len, found)) > 3


def test_rows_that_end_do_not_change_the_others(base):
    """What is sampled after a row was given up is likely where the whole text is read at once."""
    model, plain = writer(), load_language_model(NANO)
    _, wanted = sentence_tokens(base.tokenizer, CPU)
    prompts = token_ids(base.tokenizer, ["The dogs sleep.", "A cat sees her. The"])
    found = continuations(model, prompts, 200, 2, wanted, torch.Generator().manual_seed(1))
    assert len(found) > 100
    starts = {tuple(ids) for ids in prompts}
    for text in found:
        fits = []
        for ids in starts:
            logits = plain(torch.tensor([[*ids, *text]])).logits[0, len(ids) - 1 : -1]
            fits.append((logits.topk(2).indices == torch.tensor(text).unsqueeze(1)).any(1).all())
        assert any(fits)  # each token is one of the two likeliest after one of the prompts


@pytest.mark.parametrize(
    ("prompt", "few", "good"),
    [
        ("The dogs", 20, lambda line: line[0].isupper()),
        ("The dogs sleep.", 4, lambda line: len(line.split()) <= 7),  # some are not counted
    ],
)
def test_a_row_that_cannot_be_a_sentence_is_given_up(base, prompt, few, good):
    """There are such where all are kept."""
    _, wanted = sentence_tokens(base.tokenizer, CPU)
    (ids,) = token_ids(base.tokenizer, [prompt])

    def found(wanted: Wanted) -> set[bool]:
        generator = torch.Generator().manual_seed(0)
        texts = continuations(writer(), [ids], 200, 150, wanted, generator)
        lines = [base.tokenizer.decode(text).strip() for text in texts]
        return {good(line) for line in lines if line}

    assert False in found(anything(len(wanted.ends), wanted.ends.nonzero().flatten()))
    assert False not in found(wanted._replace(most_words=few))


def test_tokens_are_drawn_as_often_as_the_model_gives_them(base):
    """Among the likeliest, in proportion; the first token of every row is looked at."""
    model = load_language_model(NANO)
    (ids,) = token_ids(base.tokenizer, ["The dogs"])
    logits, likeliest = model(torch.tensor([ids])).logits[0, -1].topk(10)
    wanted = anything(model.config.vocab_size, torch.arange(model.config.vocab_size))
    generator = torch.Generator().manual_seed(0)
    found = continuations(writer(), [ids] * 50, ROWS, 10, wanted, generator)
    drawn = torch.tensor(found).squeeze(1)
    counts = [(drawn == token).sum().item() for token in likeliest]
    assert sum(counts) == len(drawn) == 50 * ROWS
    expected = logits.detach().double().softmax(0).numpy() * len(drawn)
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


# ---------------------------------------------------------------------------------------------
# Hints


@pytest.fixture(scope="module")
def split(nano_corpus):
    """The beginning of nano's training sentences."""
    return nano_corpus[TRAIN].chosen(np.arange(300))


@pytest.fixture
def small_chunks(monkeypatch):
    """Several files of a few sentences."""
    monkeypatch.setattr(support.teaching.answers, "CHUNK", 2500)


@pytest.fixture(scope="module")
def hidden_states(split) -> np.ndarray:
    """Hugging Face's final hidden states of the training sentences, each read alone."""
    model = AutoModelForSequenceClassification.from_pretrained(NANO, num_labels=2).eval()
    rows = []
    for start, stop in zip(split.cu_seqlens[:-1], split.cu_seqlens[1:], strict=True):
        with torch.no_grad():
            states = model.transformer(split.input_ids[None, start:stop]).last_hidden_state
        rows.append(states[0].numpy())
    return np.concatenate(rows)


def test_hints_are_the_principal_components_of_standardised_states(
    split, teacher, hidden_states, small_chunks, tmp_path
):
    """As scikit-learn finds them, up to their signs; logits are those without hints."""
    logits, states = read_hints(split, teacher, "a teacher", CPU, WIDTH, tmp_path)
    hints = states[torch.arange(len(split.input_ids))].numpy()
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
    split, teacher, tmp_path, monkeypatch
):
    split = split.chosen(np.arange(40))  # few, since bf16 may be emulated
    monkeypatch.setattr(support.teaching.answers, "CHUNK", 350)
    passes, read_part = [], support.teaching.answers.read_part
    monkeypatch.setattr(
        support.teaching.answers, "read_part", lambda *a: passes.append(1) or read_part(*a)
    )

    def ask(key: str, device: Device = CPU) -> int:
        passes.clear()
        read_hints(split, teacher, key, device, WIDTH, tmp_path)
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


def test_the_names_of_hints_tell_teacher_sentences_precision_and_width(
    split, teacher, small_chunks, tmp_path
):
    """Spelt out as they always were, so that files written by an older version are found."""
    read_hints(split, teacher, "a teacher", CPU, WIDTH, tmp_path)
    first, *_ = parts = list(split.chunks(2500))
    key = fingerprint("a teacher", corpus_fingerprint({"": first}), "fp32", str(WIDTH))
    basis, _ = read_tensors(tmp_path / f"basis_{key[:16]}.safetensors")
    for part in parts:
        tensors = basis["mean"], basis["directions"]
        part_key = fingerprint(key, *tensors, corpus_fingerprint({"": part}))
        assert (tmp_path / f"teacher_{part_key[:16]}.safetensors").exists()
