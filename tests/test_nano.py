"""nano/: the corpus is what its seed gives, the splits do not leak, and the folder loads."""

import csv
import subprocess
import sys

import pandas as pd
import pytest
import torch
import transformers
from conftest import NANO

from support.corpus import DEV, OUT_OF_DOMAIN, SPLITS, TRAIN


@pytest.fixture(scope="module")
def lines() -> pd.DataFrame:
    """The committed lines of every split, cut at the tabs: CoLA's four columns."""
    as_it_is = {"header": None, "quoting": csv.QUOTE_NONE, "dtype": str, "keep_default_na": False}
    files = {split: NANO / "corpus" / "raw" / f"{split}.tsv" for split in SPLITS}
    tables = {split: pd.read_csv(file, sep="\t", **as_it_is) for split, file in files.items()}
    table = pd.concat(tables, names=["split"]).reset_index(level="split")
    return table.set_axis(["split", "source", "label", "mark", "sentence"], axis="columns")


def test_rebuilding_the_corpus_gives_the_committed_bytes(tmp_path):
    command = [sys.executable, NANO / "make_nano.py", "--corpus_only", "--out", tmp_path]
    subprocess.run(command, check=True)
    for split in SPLITS:
        committed = NANO / "corpus" / "raw" / f"{split}.tsv"
        assert (tmp_path / f"{split}.tsv").read_bytes() == committed.read_bytes()


def test_every_line_is_a_sentence_with_its_label_and_none_occurs_twice(lines):
    assert set(zip(lines["label"], lines["mark"], strict=True)) == {("1", ""), ("0", "*")}
    assert lines["source"].ne("").all()
    assert lines["sentence"].str.fullmatch("[A-Z].*[.?]").all()
    assert lines["sentence"].str.split().str.len().between(4, 14).all()
    assert lines["sentence"].is_unique


def test_dev_sets_have_a_thousand_sentences_and_labels_are_balanced(lines):
    assert lines["split"].value_counts()[[DEV, OUT_OF_DOMAIN]].min() >= 1000
    assert lines["label"].eq("1").groupby(lines["split"]).mean().between(0.49, 0.51).all()


def test_phenomena_of_the_two_domains_are_disjoint(lines):
    phenomena = lines.groupby(["split", "label"])["source"].agg(set)
    for split in SPLITS:  # each phenomenon has sentences of both labels
        assert phenomena[split, "0"] == phenomena[split, "1"]
        assert len(phenomena[split, "0"]) > 3
    assert phenomena[TRAIN, "0"] == phenomena[DEV, "0"]
    assert phenomena[DEV, "0"].isdisjoint(phenomena[OUT_OF_DOMAIN, "0"])


def test_no_dev_sentence_and_no_unacceptable_one_was_pretrained_on(lines, monkeypatch):
    """The sentences that nano was pretrained on are made again from the seed."""
    monkeypatch.syspath_prepend(NANO)
    from make_nano import labelled_corpus, pretraining_sentences

    pretraining = pretraining_sentences(labelled_corpus())
    assert len(set(pretraining)) == len(pretraining)
    unseen = lines[lines["label"].eq("0") | lines["split"].ne(TRAIN)]
    assert not unseen["sentence"].isin(pretraining).any()


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
