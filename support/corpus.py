"""Read a corpus in CoLA's layout: where is it, and what stands in its files?"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from support import PROJECT
from support.errors import UserError
from support.files import read_bytes

COLA_DIR = PROJECT / "cola_public"
COLA_SHA256 = {
    "in_domain_train": "f320a10f92d3bce6b29152fde322a362eac39238e50d8de0c8815457fdf4fc12",
    "in_domain_dev": "77176f6a03faa5a1c4f23c69971fc1bff565931112fb65af47b2d6e24b7f42f7",
    "out_of_domain_dev": "201b9c57b2a20f1282242eec0ed8995729e3be19c29a46c047b3727338836c05",
}
SPLITS = TRAIN, DEV, OUT_OF_DOMAIN = tuple(COLA_SHA256)
MARKS = " .?!"  # what may stand at a sentence's end
BOM = b"\xef\xbb\xbf"  # what some editors put before a UTF-8 text
# What no text has, of ASCII. Three of CoLA's training sentences hold a backspace, which stays.
CONTROL = re.compile(r"[\x00-\x07\x0b-\x1f\x7f]")


class Row(NamedTuple):
    """A line of a file in CoLA's layout."""

    source: str
    label: int
    mark: str  # the author's own
    sentence: str


def find_corpus(data_dir: Path) -> Path:
    """Return the folder with the three files; the project's own one is fetched and checked."""
    raw = data_dir / "raw"
    paths = {split: raw / f"{split}.tsv" for split in SPLITS}
    if data_dir.resolve() == COLA_DIR:
        if not all(path.exists() for path in paths.values()):
            from support.archive import fetch_cola

            fetch_cola(COLA_DIR, COLA_SHA256)
        for split, found in file_fingerprints(data_dir).items():
            if found != COLA_SHA256[split]:
                raise UserError(f"{paths[split]}: not the published file; delete it and run again")
    elif not raw.is_dir():
        raise UserError(f"--data_dir {data_dir}: {missing(data_dir)}")
    return raw


def file_fingerprints(data_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of each of a corpus' files, by split."""
    paths = {split: data_dir / "raw" / f"{split}.tsv" for split in SPLITS}
    return {split: hashlib.sha256(read_bytes(path)).hexdigest() for split, path in paths.items()}


def missing(folder: Path) -> str:
    """Return why a folder has no corpus, and which one has."""
    if not folder.is_dir():
        return f"no such folder; it must hold {', '.join(f'raw/{split}.tsv' for split in SPLITS)}"
    if (folder / f"{TRAIN}.tsv").exists():
        return f"this is the folder raw/ itself; give the one that holds it: {folder.parent}"
    if (folder / "original" / "raw" / f"{TRAIN}.tsv").exists():
        return f"this is GLUE's layout; CoLA's own is beside it: {folder / 'original'}"
    return f"it has no folder raw/ with {', '.join(f'{split}.tsv' for split in SPLITS)}"


def read_lines(content: bytes, source: str) -> list[str]:
    """Return the lines of a UTF-8 text; ``source`` says in an error where they are from."""
    lines = []
    # str.splitlines would also break at U+2028 and others.
    raw_lines = content.removeprefix(BOM).removesuffix(b"\n").split(b"\n")
    for number, raw in enumerate(raw_lines, start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            at = f"{source}, line {number}: byte {error.start + 1}"
            raise UserError(f"{at} is not UTF-8; convert it") from None
        if control := CONTROL.search(line):
            what = f"a control character, {control.group()!r}; is this text?"
            raise UserError(f"{source}, line {number}: {what}")
        lines.append(line)
    return lines


def read_rows(path: Path) -> list[Row]:
    """Read a file in CoLA's layout.

    It has four tab-separated columns (source, label, the author's own mark, sentence), no header,
    no quoting, UTF-8, with or without a newline at the end.
    """
    content = read_bytes(path)
    if not content:
        raise UserError(f"{path}: the file is empty; CoLA's format has one sentence a line")
    lines = read_lines(content, str(path))
    return [parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def parse_row(line: str, where: str) -> Row:
    """Return a line's columns; ``where`` says in an error which line it is."""
    columns = line.split("\t")
    if len(columns) != 4:
        commas = "; commas stand between them: save it with tabs" if line.count(",") >= 3 else ""
        raise UserError(
            f"{where}: {len(columns)} tab-separated columns where CoLA has 4 "
            f"(source, label, author's mark, sentence){commas if len(columns) == 1 else ''}"
        )
    source, label, mark, sentence = columns
    if label not in ("0", "1"):
        raise UserError(f"{where}: the label is {label!r}; it must be 0 or 1")
    if not sentence.strip():
        raise UserError(f"{where}: the sentence is empty; remove the line")
    return Row(source, int(label), mark, sentence)


def read_split(path: Path) -> tuple[list[str], list[int]]:
    """Read the sentences of a file in CoLA's layout, and their labels."""
    rows = read_rows(path)
    return [row.sentence for row in rows], [row.label for row in rows]


def bare(sentence: str) -> str:
    """Return what sentences share that differ in case, spacing and the mark at the end alone."""
    return " ".join(sentence.lower().split()).rstrip(MARKS)
