"""Reading, fetching, tokenising and packing."""

import hashlib
import io
import zipfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import serve_bytes
from hypothesis import given
from hypothesis import strategies as st

from data_utils import Split, load_corpus, pack, shuffled, tokenize, within_budget
from support.archive import fetch_cola
from support.corpus import COLA_SHA256, SPLITS, find_corpus, parse_sentences, read_rows, read_split
from support.errors import UserError


@pytest.fixture
def written(tmp_path):
    def write(content: bytes) -> Path:
        path = tmp_path / "some.tsv"
        path.write_bytes(content)
        return path

    return write


# ---------------------------------------------------------------------------------------------
# Reading


def test_real_corpus_has_the_published_counts(cola, tokenizer):
    corpus = load_corpus(cola, tokenizer, 1024)
    assert [len(corpus[split]) for split in SPLITS] == [8551, 527, 516]
    if tokenizer.get_vocab_size() == 50257:
        assert len(corpus["in_domain_train"].input_ids) == 80125
    assert corpus["in_domain_dev"].labels.sum() == 365


def test_quotes_unicode_and_a_missing_last_newline_are_read_as_they_are(written):
    path = written('a\t1\t\tHe said "no\ngj04\t0\t*\tÉtude\u2028\x85 x'.encode())
    assert read_split(path) == (['He said "no', "Étude\u2028\x85 x"], [1, 0])


def test_a_backspace_as_in_colas_own_training_sentences_is_read_as_it_is(written):
    assert read_split(written(b"a\t1\t\tF\bne.\r\n")) == (["F\bne."], [1])


def test_a_byte_order_mark_is_no_part_of_the_first_source(written):
    assert read_rows(written(b"\xef\xbb\xbfa\t1\t\tFine.\n"))[0].source == "a"


def test_commas_where_tabs_belong_are_named(written):
    with pytest.raises(UserError, match=r"line 1: 1 tab-.*commas stand between them"):
        read_split(written(b"a,1,,Fine.\n"))


@pytest.mark.parametrize(
    ("line", "labels"),
    [(b"a\t1\t\tIt.", [1]), (b"It.", None), (b"a\tb\tc\td", "tab"), (b"a\t1\tIt.", "tab")],
)
def test_a_text_in_colas_layout_is_known_by_its_first_line(line, labels):
    if labels == "tab":
        with pytest.raises(UserError, match="here, line 1: a tab in the sentence"):
            parse_sentences(line, "here")
    else:
        assert parse_sentences(b"\n" + line + b"\n\n", "here") == (["It."], labels, [2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\t1\t\tFine.\na\t1\tFine.\n", ["line 2", "3 tab-separated columns"]),
        (b"a\t1\t\tFine.\tx\n", ["line 1", "5 tab-separated columns"]),
        (b"a\t1\t\tFine.\n\n", ["line 2", "1 tab-separated columns"]),
        (b"a\t2\t\tFine.\n", ["line 1", "'2'", "0 or 1"]),
        (b"a\t1\t\t \n", ["line 1", "the sentence is empty"]),
        (b"a\t1\t\tFine.\na\t1\t\tF\xffne.\n", ["line 2", "byte 7 is not UTF-8"]),
        (b"", ["the file is empty"]),
        (b"a\t1\t\tFine.\na\t1\t\tF\0ne.\n", ["line 2", "a control character", r"'\x00'"]),
        (b"a\t1\t\tF\x1b[1mne.\n", ["line 1", "a control character", r"'\x1b'"]),
        (b"a\t1\t\tFi\rne.\n", ["line 1", "a control character", r"'\r'"]),
    ],
)
def test_a_broken_file_is_refused_with_file_and_line(written, content, words):
    with pytest.raises(UserError) as caught:
        read_split(written(content))
    for word in ["some.tsv", *words]:
        assert word in str(caught.value)


# ---------------------------------------------------------------------------------------------
# Fetching, from a server on the loopback address


@pytest.fixture
def serve():
    """Serve bytes under a URL; ``cut`` sends half of them."""
    with ExitStack() as servers:
        yield lambda content, cut=False: servers.enter_context(serve_bytes(content, cut))[0]


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FILES = {f"cola_public/raw/{split}.tsv": f"a\t1\t\tIn {split}.\n".encode() for split in SPLITS}
SHA256 = {
    split: hashlib.sha256(FILES[f"cola_public/raw/{split}.tsv"]).hexdigest() for split in SPLITS
}


def damaged(archive: bytes) -> bytes:
    """The archive with its first member's compressed bytes overwritten."""
    start = archive.index(b".tsv") + 4
    return archive[:start] + b"\xff" * 8 + archive[start + 8 :]


def fetch(folder: Path, url: str, sha256: dict[str, str] = SHA256) -> None:
    """Fetch the archive from a URL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.archive.URL", url)
        fetch_cola(folder, sha256)


def left_behind(folder: Path) -> set[str]:
    """The files in a folder, but for a lock."""
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {name for name in files if not name.endswith("raw/.lock")}


def test_the_corpus_is_fetched_and_nothing_but_the_named_files_is_written(serve, tmp_path):
    hostile = {"../outside.txt": b"x", "/tmp/outside.txt": b"x", "cola_public/raw/more.tsv": b"x"}
    fetch(tmp_path / "here" / "cola", serve(zipped({**FILES, **hostile})))
    assert left_behind(tmp_path) == {f"here/cola/raw/{split}.tsv" for split in SPLITS}
    assert (
        tmp_path / "here/cola/raw/in_domain_dev.tsv"
    ).read_text() == "a\t1\t\tIn in_domain_dev.\n"


def test_the_real_corpus_passes_its_own_checksums(serve, cola, tmp_path):
    files = {f"cola_public/raw/{s}.tsv": (cola / "raw" / f"{s}.tsv").read_bytes() for s in SPLITS}
    fetch(tmp_path / "cola", serve(zipped(files)), COLA_SHA256)
    for split, sha256 in COLA_SHA256.items():
        content = (tmp_path / "cola" / "raw" / f"{split}.tsv").read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256


@pytest.mark.parametrize(
    ("content", "cut", "word"),
    [
        (zipped(FILES), True, "not CoLA's archive"),
        (zipped({**FILES, "cola_public/raw/in_domain_dev.tsv": b"other"}), False, "wrong checksum"),
        (zipped({"readme": b"nothing else"}), False, "not CoLA's archive"),
        (b"<html>not found</html>", False, "not CoLA's archive"),
        (damaged(zipped(FILES)), False, "not CoLA's archive"),
        (zipped({**FILES, "cola_public/raw/in_domain_dev.tsv": b"0" * (1 << 27)}), False, "wrong"),
    ],
)
def test_a_bad_download_leaves_nothing_behind(serve, tmp_path, content, cut, word):
    with pytest.raises(UserError, match=word) as caught:
        fetch(tmp_path / "cola", serve(content, cut))
    assert "--data_dir" in str(caught.value)
    assert not left_behind(tmp_path)


def test_an_unreachable_site_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(tmp_path / "cola", "http://127.0.0.1:1/cola.zip")
    assert not left_behind(tmp_path)


def test_no_more_than_the_limit_is_unpacked(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("support.archive.LIMIT", 100_000)
    large = b"a" * 200_000
    content = zipped({**FILES, "cola_public/raw/in_domain_dev.tsv": large})
    sha256 = {**SHA256, "in_domain_dev": hashlib.sha256(large).hexdigest()}
    with pytest.raises(UserError, match="checksum"):
        fetch(tmp_path / "cola", serve(content), sha256)
    assert not left_behind(tmp_path)


def raw_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "raw").glob("*.tsv")}


@pytest.fixture
def project(serve, tmp_path, monkeypatch) -> Path:
    """The project's own folder of CoLA, not there yet, and the site that it is fetched from."""
    folder = tmp_path / "cola_public"
    monkeypatch.setattr("support.archive.URL", serve(zipped(FILES)))
    monkeypatch.setattr("support.corpus.COLA_DIR", folder)
    monkeypatch.setattr("support.corpus.COLA_SHA256", SHA256)
    return folder


def test_what_the_projects_folder_lacks_is_fetched_and_what_it_holds_stays(project):
    expected = {Path(name).name: content for name, content in FILES.items()}
    (project / "raw").mkdir(parents=True)
    (project / "README.md").write_text("Put CoLA here.")
    (project / "raw" / "more.tsv").write_bytes(b"mine")
    assert find_corpus(project) == project / "raw"
    assert raw_files(project) == {**expected, "more.tsv": b"mine"}
    (project / "raw" / "in_domain_dev.tsv").unlink()
    find_corpus(project)
    assert raw_files(project) == {**expected, "more.tsv": b"mine"}
    assert (project / "README.md").read_text() == "Put CoLA here."


def test_a_complete_corpus_is_not_fetched_again_and_a_changed_one_is_refused(project, monkeypatch):
    find_corpus(project)
    monkeypatch.setattr("support.archive.fetch_cola", None)
    find_corpus(project)
    (project / "raw" / "in_domain_dev.tsv").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"in_domain_dev\.tsv: not the published file"):
        find_corpus(project)


def test_another_folder_is_never_fetched(project, tmp_path):
    with pytest.raises(UserError, match="elsewhere: no such folder"):
        find_corpus(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match="elsewhere: it has no folder raw/ with in_domain_train"):
        find_corpus(tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("file", "given", "words"),
    [
        ("raw/in_domain_train.tsv", "raw", "this is the folder raw/ itself; give the one that"),
        ("original/raw/in_domain_train.tsv", "", "this is GLUE's layout; .* beside it: .*original"),
    ],
)
def test_a_folder_beside_the_right_one_names_it(tmp_path, file, given, words):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=words):
        find_corpus(tmp_path / given)


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
