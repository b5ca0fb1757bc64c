"""nano/: the corpus is what its seed gives, the splits do not leak, and the folder loads."""

import csv
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import NANO

from support.corpus import DEV, OUT_OF_DOMAIN, SPLITS, TRAIN


@pytest.fixture(scope="module")
def pretraining() -> list[str]:
    """The sentences that nano was pretrained on, made again from the seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(NANO)
        from make_nano import labelled_corpus, pretraining_sentences

    return pretraining_sentences(labelled_corpus())


@pytest.fixture(scope="module")
def splits() -> dict[str, list[list[str]]]:
    """The committed lines of each split, cut at the tabs."""
    rows = {}
    for split in SPLITS:
        with open(NANO / "corpus" / "raw" / f"{split}.tsv", encoding="utf-8", newline="") as file:
            rows[split] = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return rows


@pytest.fixture(scope="module")
def sentences(splits) -> dict[str, set[str]]:
    return {split: {row[3] for row in rows} for split, rows in splits.items()}


def test_rebuilding_the_corpus_gives_the_committed_bytes(tmp_path):
    command = [sys.executable, NANO / "make_nano.py", "--corpus_only", "--out", tmp_path]
    subprocess.run(command, check=True)
    for split in SPLITS:
        committed = NANO / "corpus" / "raw" / f"{split}.tsv"
        assert (tmp_path / f"{split}.tsv").read_bytes() == committed.read_bytes()


@pytest.mark.parametrize("split", SPLITS)
def test_every_line_has_colas_four_columns(splits, split):
    for row in splits[split]:
        assert len(row) == 4
        code, label, mark, sentence = row
        assert code
        assert (label, mark) in {("1", ""), ("0", "*")}
        assert sentence[0].isupper()
        assert sentence[-1] in ".?"
        assert 4 <= len(sentence.split()) <= 14


def test_dev_sets_have_a_thousand_sentences_and_labels_are_balanced(splits):
    assert min(len(splits[DEV]), len(splits[OUT_OF_DOMAIN])) >= 1000
    for rows in splits.values():
        assert 0.49 < sum(row[1] == "1" for row in rows) / len(rows) < 0.51


def test_no_sentence_occurs_twice(splits, sentences):
    assert len(set.union(*sentences.values())) == sum(map(len, splits.values()))


def test_phenomena_of_the_two_domains_are_disjoint(splits):
    codes = {
        split: {label: {row[0] for row in rows if row[1] == label} for label in "01"}
        for split, rows in splits.items()
    }
    for split in SPLITS:  # each phenomenon has sentences of both labels
        assert codes[split]["0"] == codes[split]["1"]
        assert len(codes[split]["0"]) > 3
    assert codes[TRAIN] == codes[DEV]
    assert codes[DEV]["0"].isdisjoint(codes[OUT_OF_DOMAIN]["0"])


def test_no_dev_sentence_and_no_unacceptable_one_was_pretrained_on(pretraining, splits, sentences):
    assert len(set(pretraining)) == len(pretraining)
    unacceptable = {row[3] for rows in splits.values() for row in rows if row[1] == "0"}
    assert (sentences[DEV] | sentences[OUT_OF_DOMAIN] | unacceptable).isdisjoint(pretraining)


def test_the_folder_stays_small():
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) < 10_000_000


def test_the_folder_loads_and_prefers_grammatical_sentences():
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO)
    model = transformers.GPT2LMHeadModel.from_pretrained(NANO).eval()
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id

    def loss(sentence: str) -> float:
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
        assert tokenizer.decode(ids[0]) == sentence
        with torch.no_grad():
            return float(model(ids, labels=ids).loss)

    assert loss("The girls near Tom are happy.") < loss("The girls near Tom is happy.")
