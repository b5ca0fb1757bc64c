"""Reading, fetching, tokenising and packing."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import archive_of, serve_bytes
from hypothesis import given
from hypothesis import strategies as st

from data_utils import Split, load_corpus, pack, shuffled, tokenize, within_budget
from support.archive import fetch_cola
from support.corpus import COLA_SHA256, SPLITS, read_corpus
from support.errors import UserError
from support.sentences import read_sentences

# ---------------------------------------------------------------------------------------------
# Reading


def test_real_corpus_is_the_published_one(cola, tokenizer):
    assert read_corpus(cola).facts["files"] == COLA_SHA256
    corpus = load_corpus(cola, tokenizer, 1024)
    assert [len(corpus[split]) for split in SPLITS] == [8551, 527, 516]
    if tokenizer.get_vocab_size() == 50257:
        assert len(corpus["in_domain_train"].input_ids) == 80125
    assert corpus["in_domain_dev"].labels.sum() == 365


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (
            'a\t1\t\tHe said "no\ngj04\t0\t*\tÉtude\u2028\x85 x',
            [("a", "acceptable", 'He said "no'), ("gj04", "unacceptable", "Étude\u2028\x85 x")],
        ),
        ("a\t1\t\tF\bne.\r\n", [("a", "acceptable", "F\bne.")]),  # a backspace, as CoLA itself has
        ("\ufeffa\t1\t\tFine.\n", [("a", "acceptable", "Fine.")]),  # a BOM is no part of the source
    ],
)
def test_quotes_unicode_and_a_missing_last_newline_are_read_as_they_are(content, rows):
    found = read_sentences(content.encode(), "a file").rows
    assert [(row.source, row.label, row.sentence) for row in found] == rows


# ---------------------------------------------------------------------------------------------
# Fetching, from a server on the loopback address


CONTENT = {split: f"a\t1\t\tIn {split}.\na\t0\t*\tIn.\n".encode() for split in SPLITS}
SHA256 = {split: hashlib.sha256(content).hexdigest() for split, content in CONTENT.items()}
WHOLE = archive_of(CONTENT)
LARGE = b"a" * 200_000
OF_LARGE = {**SHA256, "in_domain_dev": hashlib.sha256(LARGE).hexdigest()}


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder, but for a lock."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {n: path.read_bytes() for n, path in files.items() if not n.endswith("raw/.lock")}


@pytest.mark.parametrize(
    ("content", "sha256", "word"),
    [
        (WHOLE, SHA256, "not CoLA's archive"),
        (archive_of({}, readme=b"nothing else"), SHA256, "not CoLA's archive"),
        (archive_of({**CONTENT, "in_domain_dev": b"other"}), SHA256, "wrong checksum"),
        (archive_of({**CONTENT, "in_domain_dev": LARGE}), OF_LARGE, "wrong checksum"),
    ],
    ids=["half of it", "no corpus", "another file", "more than the limit"],
)
def test_a_bad_download_leaves_nothing_behind(tmp_path, monkeypatch, content, sha256, word):
    monkeypatch.setattr("support.archive.LIMIT", 100_000)
    with serve_bytes(content, cut=content == WHOLE) as (url, _):
        monkeypatch.setattr("support.archive.URL", url)
        with pytest.raises(UserError, match=word) as caught:
            fetch_cola(tmp_path / "cola", sha256)
    assert "--data_dir" in str(caught.value)
    assert not files_in(tmp_path)


def test_the_projects_folder_is_fetched_where_it_lacks_a_file_and_always_checked(
    tmp_path, monkeypatch
):
    """Nothing is written but the three files, whatever else the archive has."""
    folder = tmp_path / "cola"
    monkeypatch.setattr("support.corpus.COLA_DIR", folder)
    monkeypatch.setattr("support.corpus.COLA_SHA256", SHA256)
    held = {"README.md": b"Put CoLA here.", "raw/more.tsv": b"mine"}
    (folder / "raw").mkdir(parents=True)
    for name, content in held.items():
        (folder / name).write_bytes(content)
    expected = held | {f"raw/{split}.tsv": content for split, content in CONTENT.items()}
    dev = folder / "raw" / "in_domain_dev.tsv"
    hostile = dict.fromkeys(("../outside.txt", "../cola/a.txt", "cola_public/raw/more.tsv"), b"x")
    with serve_bytes(archive_of(CONTENT, **hostile)) as (url, asked):
        monkeypatch.setattr("support.archive.URL", url)
        for times in (1, 2):
            dev.unlink(missing_ok=True)
            assert read_corpus(folder).facts == read_corpus(folder).facts
            assert files_in(tmp_path) == {f"cola/{name}": data for name, data in expected.items()}
            assert len(asked) == times
    dev.write_bytes(b"changed")
    with pytest.raises(UserError, match=r"in_domain_dev\.tsv: not the published file"):
        read_corpus(folder)
    dev.unlink()
    with pytest.raises(UserError, match=r"in_domain_dev\.tsv: no such file"):
        read_corpus(folder, fetch=False)


def test_a_place_that_cannot_be_written_is_told_and_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written.*download http.*--data_dir"):
        fetch_cola(tmp_path / "file", SHA256)


def test_another_folder_is_never_fetched(tmp_path):
    with pytest.raises(UserError, match="elsewhere: no such file or folder"):
        read_corpus(tmp_path / "elsewhere")
    assert not files_in(tmp_path)


# ---------------------------------------------------------------------------------------------
# Tokenising and packing


def test_a_sentence_longer_than_the_model_is_refused_with_its_line(tokenizer):
    with pytest.raises(UserError, match=r"here\.tsv, line 2: .* the model takes 1 to 20"):
        tokenize(tokenizer, ["Short.", "long " * 30], [1, 1], 20, "here.tsv")


def split_of(lengths: list[int]) -> Split:
    """Tokens 0, 1, 2 ... in sentences of these lengths; labels 0, 1, 0, 1 ..."""
    return Split(
        sentences=[str(length) for length in lengths],
        input_ids=torch.arange(sum(lengths)),
        cu_seqlens=torch.tensor(np.cumsum([0, *lengths])),
        labels=torch.arange(len(lengths)) % 2,
    )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.randoms())
def test_packing_keeps_every_token_of_every_sentence_in_order(lengths, random):
    split = split_of(lengths)
    indices = np.array(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    batch = pack(split, indices)
    assert sorted(batch.indices.tolist()) == sorted(indices.tolist())
    for place, index in enumerate(batch.indices.tolist()):
        start, end = batch.cu_seqlens[place : place + 2].tolist()
        first, last = split.cu_seqlens[index : index + 2].tolist()
        assert batch.input_ids[start:end].tolist() == list(range(first, last))
        assert batch.position_ids[start:end].tolist() == list(range(last - first))
        assert batch.labels[place] == split.labels[index]
    assert [length for length, count in batch.blocks for _ in range(count)] == sorted(
        (lengths[i] for i in indices), reverse=True
    )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 40))
def test_pieces_stay_within_the_budget_and_lose_nothing(lengths, max_tokens):
    split = split_of(lengths)
    order = np.arange(len(lengths))[::-1]
    pieces = list(within_budget(split, order, max_tokens))
    assert np.concatenate(pieces).tolist() == order.tolist()
    for piece in pieces:
        assert len(piece) == 1 or split.seqlens[piece].sum() <= max_tokens


def test_the_order_depends_on_sr_no_and_epoch_alone():
    assert shuffled(100, 1, 2).tolist() == shuffled(100, 1, 2).tolist()
    assert shuffled(100, 1, 2).tolist() != shuffled(100, 1, 3).tolist()
    assert shuffled(100, 1, 2).tolist() != shuffled(100, 2, 2).tolist()
    assert sorted(shuffled(100, 1, 2)) == list(range(100))


def test_chosen_sentences_keep_the_teachers_answers():
    split = replace(
        split_of([3, 1, 2]),
        teacher_logits=torch.arange(6.0).view(3, 2),
        hints=torch.arange(6.0).unsqueeze(1),
    )
    part = split.chosen(np.array([2, 0]))
    assert part.teacher_logits.tolist() == [[4, 5], [0, 1]]
    assert part.hints.flatten().tolist() == [4, 5, 0, 1, 2]
    assert part.input_ids.tolist() == [4, 5, 0, 1, 2]
    assert split.chosen(np.arange(1, 3)).teacher_logits.tolist() == [[2, 3], [4, 5]]
    assert [len(chunk) for chunk in split.chunks(3)] == [1, 2]
