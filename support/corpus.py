"""Find a corpus and read it: CoLA, a folder with a file a split, or one file, which is split."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from support import PROJECT
from support.errors import UserError
from support.files import read_bytes
from support.sentences import ANY, COLA_LAYOUT, Columns, Row, number_labels, read_sentences

COLA_DIR = PROJECT / "cola_public"
COLA_SHA256 = {
    "in_domain_train": "f320a10f92d3bce6b29152fde322a362eac39238e50d8de0c8815457fdf4fc12",
    "in_domain_dev": "77176f6a03faa5a1c4f23c69971fc1bff565931112fb65af47b2d6e24b7f42f7",
    "out_of_domain_dev": "201b9c57b2a20f1282242eec0ed8995729e3be19c29a46c047b3727338836c05",
}
SPLITS = TRAIN, DEV, OUT_OF_DOMAIN = tuple(COLA_SHA256)
NAMES = {  # of a split's file: CoLA's own, then GLUE's and Hugging Face's
    TRAIN: (TRAIN, "train"),
    DEV: (DEV, "dev", "validation", "valid"),
    OUT_OF_DOMAIN: (OUT_OF_DOMAIN, "test"),
}
SUFFIXES = (".tsv", ".csv", ".jsonl", ".json")
MARKS = " .?!"  # what may stand at a sentence's end
DEV_SHARE = 5  # of so many sentences of one file one is for in_domain_dev


class Corpus(NamedTuple):
    """A labelled corpus, of which out_of_domain_dev may be missing."""

    rows: dict[str, list[Row]]  # by split
    files: dict[str, Path]  # by split
    facts: dict[str, Any]  # what metrics.json says of it
    understood: list[str]  # what each file was understood to be


def read_corpus(data_dir: Path, columns: Columns = ANY, fetch: bool = True) -> Corpus:
    """Read a corpus in a folder or a file; CoLA in the project's own folder is checked.

    ``fetch`` says whether CoLA is downloaded where it is not there.
    """
    files = find_files(data_dir)
    if fetch and data_dir.resolve() == COLA_DIR and not all(map(Path.exists, files.values())):
        from support.archive import fetch_cola

        fetch_cola(COLA_DIR, COLA_SHA256)
    contents = {split: read_bytes(path) for split, path in files.items()}
    sha256 = {split: hashlib.sha256(content).hexdigest() for split, content in contents.items()}
    if data_dir.resolve() == COLA_DIR:
        for split, path in files.items():
            if sha256[split] != COLA_SHA256[split]:
                raise UserError(f"{path}: not the published file; delete it and run again")
    tables = {s: read_sentences(contents[s], str(path), columns) for s, path in files.items()}
    understood = []
    if OUT_OF_DOMAIN in tables and not tables[OUT_OF_DOMAIN].label_column:
        understood.append(f"{files.pop(OUT_OF_DOMAIN)}: no labels; it is left out")
        del tables[OUT_OF_DOMAIN], sha256[OUT_OF_DOMAIN]
    classes, rows = number_labels(list(tables.values()), columns.positive)
    corpus = dict(zip(tables, rows, strict=True))
    place = data_dir.resolve()
    inside = place.is_relative_to(PROJECT)
    for split, table in tables.items():
        if table.layout != COLA_LAYOUT or files[split].stem != split:  # not as the published
            understood.append(table.understood(classes))
    facts = {
        "name": place.relative_to(PROJECT).as_posix() if inside else place.name,
        "folder": str(data_dir),
        "files": sha256,
        "classes": list(classes),
    }
    if any(columns):
        facts["columns"] = columns._asdict()
    if DEV not in corpus:
        corpus |= split_in_two(corpus[TRAIN])
        corpus = {split: corpus[split] for split in SPLITS if split in corpus}
        files[DEV], sha256[DEV] = files[TRAIN], sha256[TRAIN]
        facts["split"] = f"1 sentence of {DEV_SHARE} for {DEV}, by the SHA-256 of its text"
    counts = f"{len(corpus[TRAIN]):,} sentences for {TRAIN}, {len(corpus[DEV]):,} for {DEV}"
    if "split" in facts:
        understood.append(f"{files[TRAIN]}: split by a fixed rule, {counts}")
    if any(len({row.label for row in corpus[split]}) < 2 for split in (TRAIN, DEV)):
        raise UserError(f"{files[TRAIN]}: {counts}; both classes must be in either; give more")
    return Corpus(corpus, files, facts, understood)


def find_files(data_dir: Path) -> dict[str, Path]:
    """Return a corpus' files by split, one file as that of training."""
    if data_dir.exists() and not data_dir.is_dir():
        return {TRAIN: data_dir}
    folder = data_dir / "raw" if (data_dir / "raw").is_dir() else data_dir
    if data_dir.resolve() == COLA_DIR:
        return {split: COLA_DIR / "raw" / f"{split}.tsv" for split in SPLITS}
    if not folder.is_dir():
        raise UserError(f"{data_dir}: no such file or folder; --data_dir names a corpus")
    try:
        there = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    files = {}
    for split, names in NAMES.items():
        found = [path for path in there if path.name.lower().partition(".")[0] in names]
        found = [p for p in found if Path(p.name.lower().removesuffix(".gz")).suffix in SUFFIXES]
        if len(found) > 1:
            shown = " and ".join(sorted(path.name for path in found))
            raise UserError(f"{folder}: which one is {split}, {shown}? Leave one there")
        if found:
            files[split] = found[0]
    if TRAIN not in files:
        raise UserError(
            f"{data_dir}: no training sentences there; give --data_dir a labelled file, or a "
            f"folder with raw/{TRAIN}.tsv or train{{{','.join(SUFFIXES)}}}"
        )
    return files


def split_in_two(rows: list[Row]) -> dict[str, list[Row]]:
    """Split rows by their text alone, so that sentences that are equal are on one side."""
    parts: dict[str, list[Row]] = {TRAIN: [], DEV: []}
    for row in rows:
        digest = hashlib.sha256(bare(row.sentence).encode()).digest()
        parts[TRAIN if digest[0] % DEV_SHARE else DEV].append(row)
    return parts


def bare(sentence: str) -> str:
    """Return what sentences share that differ in case, spacing and the mark at the end alone."""
    return " ".join(sentence.lower().split()).rstrip(MARKS)
