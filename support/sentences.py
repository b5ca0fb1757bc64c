"""Read sentences, and labels where there are some, from files as people have them.

A text has a sentence a line. A table has a heading, and columns between tabs, commas or semicolons;
or it is JSON lines, an object a line. CoLA's layout has four columns between tabs and no heading.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

from support.errors import UserError, first_line

TEXT_COLUMNS, LABEL_COLUMNS = ("sentence", "text"), ("label",)
COLA_LAYOUT = "in CoLA's layout"
COLA_CLASSES = ("unacceptable", "acceptable")  # of labels 0 and 1
KNOWN = (("0", "1"), COLA_CLASSES, ("negative", "positive"), ("no", "yes"), ("false", "true"))
MISSING = ("", "na", "nan", "null")  # what stands for a label that is not there
BOM = b"\xef\xbb\xbf"  # what some editors put before a UTF-8 text
GZIP = b"\x1f\x8b"
LONGEST = 40  # characters of a class' name
ONE_COLUMN = "\x1f"  # a separator that no text has
# What no text has: of ASCII, and of JSON's escapes. Three of CoLA's training sentences hold a
# backspace, which stays.
CONTROL = re.compile(r"[\x00-\x07\x0b-\x1f\x7f\ud800-\udfff]")
JSON_LIKE = re.compile(r"\s*(\{|\[\s*(\{|$))")
NAME = re.compile(r"\s*([\w-]+( [\w-]+)?)?\s*")  # what the heading of a column looks like


class Columns(NamedTuple):
    """Which columns of a table are meant, and which class counts as 1; None is found by name."""

    text: str | None = None
    label: str | None = None
    positive: str | None = None


ANY = Columns()


class Row(NamedTuple):
    """A sentence of a file."""

    sentence: str
    label: str | int | None  # as it is written, then 0 or 1; None where it is missing
    line: int
    source: str = ""  # CoLA's first column


class Table(NamedTuple):
    """The sentences of a file."""

    name: str
    rows: list[Row]
    layout: str = ""  # in words; nothing for a text
    label_column: str = ""  # nothing where there are no labels
    blank: int = 0  # lines that were passed over

    def understood(self, classes: Sequence[str] = ()) -> str:
        """Return what the file was understood to be, with its classes where they matter."""
        names = [f"{name!r} ({number})" for number, name in enumerate(classes)]
        names = ["0", "1"] if tuple(classes) == KNOWN[0] else names
        labels = f", labels {' and '.join(names)} in {self.label_column}"
        layout = self.layout or "of a text, one a line"
        read = f"{self.name}: {len(self.rows):,} sentences {layout}"
        return read + (labels if classes else "")


def read_sentences(content: bytes, name: str, columns: Columns = ANY) -> Table:
    """Read the sentences of a file with this content; errors tell its ``name`` and the line."""
    csv.field_size_limit(2**31 - 1)  # a long line is refused by its tokens
    lines = read_lines(content, name)
    text = text_of(lines, name)
    first = lines[text.rows[0].line - 1]
    if JSON_LIKE.match(first):
        records = [(row.line, parse_object(row.sentence, name, row.line)) for row in text.rows]
        return table_of(records, name, columns)
    cells = first.split("\t")
    is_cola = len(cells) == 4 and cells[1] in ("0", "1") and not re.search(r"\w", cells[2])
    if is_cola and not (columns.text or columns.label):
        rows = [parse_row(lines[row.line - 1], name, row.line) for row in text.rows]
        return Table(name, rows, COLA_LAYOUT, "its second column", text.blank)
    wanted = {plain(one) for one in ([columns.text] if columns.text else TEXT_COLUMNS)}
    for separator in ("\t", ",", ";", ONE_COLUMN):
        heading = next(csv.reader([first], delimiter=separator))
        is_sentence = heading[-1].rstrip().endswith((".", "?", "!"))
        if (columns.text or not is_sentence) and wanted & set(map(plain, heading)):
            return table_of(records_of(lines, separator, name), name, columns)
    if columns.text or columns.label:
        at = f"{name}, line {text.rows[0].line}"
        raise UserError(f"{at}: no heading with {' or '.join(wanted)}; --text_column names one")
    check_is_text(text)
    return text


def read_lines(content: bytes, name: str) -> list[str]:
    """Return the lines of a UTF-8 text, which may be compressed by gzip."""
    if content.startswith(GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{name}: broken ({first_line(error)})") from None
    lines = []
    # str.splitlines would also break at U+2028 and others.
    raw_lines = content.removeprefix(BOM).removesuffix(b"\n").split(b"\n")
    for number, raw in enumerate(raw_lines, start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            at = f"{name}, line {number}: byte {error.start + 1}"
            raise UserError(f"{at} is not UTF-8; save it as a text in UTF-8") from None
        check_characters(line, f"{name}, line {number}")
        lines.append(line)
    return lines


def check_characters(text: str, where: str) -> None:
    """Refuse what no text has."""
    if control := CONTROL.search(text):
        raise UserError(f"{where}: a control character, {control.group()!r}; is this text?")


def text_of(lines: list[str], name: str) -> Table:
    """Return the lines of a text that are not blank."""
    rows = [Row(line.strip(), None, n) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{name}: no sentences; give a text, one a line, or a table with a heading")
    return Table(name, rows, blank=len(lines) - len(rows))


def check_is_text(text: Table) -> None:
    """Refuse a text that is more likely a table without a heading, or with one of other names."""
    for row in text.rows:
        if "\t" in row.sentence:
            raise UserError(
                f"{text.name}, line {row.line}: a tab in the sentence; CoLA's layout has 4 "
                "columns, and a table has a heading, with sentence or text above the sentences"
            )
    for separator in (",", ";"):
        rows = list(csv.reader((row.sentence for row in text.rows), delimiter=separator))
        width = len(rows[0])
        if len(rows) == 1 or width == 1 or any(len(row) != width for row in rows):
            continue
        cells = [{cell.strip().lower() for cell in column} for column in zip(*rows, strict=True)]
        labelled = any(column <= {*pair} for column, pair in product(cells, KNOWN))
        if labelled or all(map(NAME.fullmatch, rows[0])):
            raise UserError(
                f"{text.name}, line {text.rows[0].line}: a table, by its {width} columns between "
                f"{separator!r} in every line; --text_column names that of the sentences in its "
                "heading; if it is a text, write the word sentence as a line above it"
            )


# ---------------------------------------------------------------------------------------------
# Tables


def parse_row(line: str, name: str, number: int) -> Row:
    """Return a line of a file in CoLA's layout."""
    match columns := line.split("\t"):
        case [source, "0" | "1" as label, _, sentence] if sentence.strip():
            return Row(sentence, COLA_CLASSES[int(label)], number, source)
        case [_, "0" | "1", _, _]:
            fault = "no sentence"
        case [_, label, _, _]:
            fault = f"the label {label!r}"
        case _:
            fault = f"{len(columns)} columns"
    wanted = "4 between tabs: source, label 0 or 1, author's mark, sentence"
    raise UserError(f"{name}, line {number}: {fault}; CoLA's layout has {wanted}")


def parse_object(line: str, name: str, number: int) -> dict[str, Any]:
    """Return a line of JSON lines."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"{name}, line {number}: not a JSON object; JSON lines have one a line, which pandas "
            "writes with lines=True"
        )
    return value


def records_of(
    lines: list[str], separator: str, name: str, quoting: int = csv.QUOTE_MINIMAL
) -> list[tuple[int, dict[str, str]]]:
    """Return a table's rows below its heading, each with the line where it ends.

    Between commas and semicolons quotes are CSV's. Between tabs many files have quotes that are
    part of a sentence: there they are CSV's only where the whole table is right with that.
    """
    above = next(number for number, line in enumerate(lines) if line.strip())  # blank lines
    rows = (f"{line}\n" for line in lines[above:])
    reader = csv.DictReader(
        rows, delimiter=separator, quoting=quoting, strict=True, skipinitialspace=True
    )
    records, line = [], above + 1  # the last one that was right
    loose = separator in ("\t", ONE_COLUMN)  # with quotes that may be a sentence's own
    try:
        names = [plain(one) for one in reader.fieldnames or () if one.strip()]
        if len(set(names)) < len(names):
            raise UserError(f"{name}, line {line}: two columns of one name; rename one")
        for record in reader:
            if None in record or None in record.values():
                raise csv.Error("not as many columns as the heading has")
            if loose and any("\n" in cell for cell in record.values()):
                where = f"{name}, line {line + 1}"
                raise UserError(f"{where}: quotes over several lines; save it with commas")
            line = above + reader.line_num
            records.append((line, record))
    except csv.Error as error:
        if loose and quoting == csv.QUOTE_MINIMAL:
            return records_of(lines, separator, name, csv.QUOTE_NONE)
        raise UserError(
            f"{name}, after line {line}: {error}; quotes stand around a whole field, and belong "
            f"around one that has a {separator!r}"
        ) from None
    return records


def table_of(records: list[tuple[int, dict[str, Any]]], name: str, columns: Columns) -> Table:
    """Return the sentences in a table's text column, with what stands in its label column."""
    if not records:
        raise UserError(f"{name}: a heading and no sentences")
    records = [(line, {plain(key): cell for key, cell in row.items()}) for line, row in records]
    names = list(dict.fromkeys(key for _, row in records for key in row))
    text = column_of(names, name, "--text_column", columns.text, TEXT_COLUMNS)
    label = column_of(names, name, "--label_column", columns.label, LABEL_COLUMNS)
    if not text:
        raise UserError(f"{name}: no column named sentence or text; give it with --text_column")
    rows = []
    for line, row in records:
        sentence, given = row.get(text), row.get(label)
        if not isinstance(sentence, str) or not sentence.strip():
            raise UserError(f"{name}, line {line}: no sentence in column {text!r}; fill it in")
        if isinstance(given, bool):
            given = str(given).lower()
        given = None if given is None else " ".join(str(given).split())
        given = {"0.0": "0", "1.0": "1"}.get(given, given)  # as pandas writes them beside a gap
        check_characters(f"{sentence} {given}", f"{name}, line {line}")
        # A quoted sentence may go over several lines.
        rows.append(Row(" ".join(sentence.split("\n")).strip(), given, line))
    hidden = all(row.label == "-1" for row in rows)  # as in the test files of GLUE
    label_column = "" if not label or hidden else repr(label)
    return Table(name, rows, f"in column {text!r}", label_column)


def column_of(
    names: list[str], file: str, option: str, wanted: str | None, usual: tuple[str, ...]
) -> str:
    """Return the column that an option names, or the first usual one; nothing without either."""
    options = (plain(wanted),) if wanted else usual
    found = next((one for one in options if one in names), "")
    if wanted and not found:
        shown = ", ".join(map(repr, names[:8]))
        raise UserError(f"{file}: no column {option} {wanted!r}; its columns are {shown}")
    return found


def plain(name: str) -> str:
    """Return a column's name without what does not tell it from others."""
    return name.strip().casefold()


# ---------------------------------------------------------------------------------------------
# Labels


def are_classes(names: Sequence[Any]) -> bool:
    """Return whether these are the names of two classes."""
    fit = (isinstance(n, str) and n.strip() and len(n) <= LONGEST for n in names)
    return all(fit) and not CONTROL.search("".join(names)) and len(names) == len({*names}) == 2


def number_labels(
    tables: list[Table], positive: str | None = None, known: Iterable[tuple[str, str]] = KNOWN
) -> tuple[tuple[str, str], list[list[Row]]]:
    """Return the two classes of labelled files, and each file's rows with labels 0 and 1.

    ``positive`` names the class that counts as 1; else it is told by the ``known`` pairs.
    """
    spelled: dict[str, str] = {}  # the classes as they are first written
    for table in tables:
        if not table.label_column:
            raise UserError(f"{table.name}: no labels; name their column with --label_column")
        for row in table.rows:
            if row.label is None or row.label.casefold() in MISSING:
                raise UserError(
                    f"{table.name}, line {row.line}: no label in {table.label_column}; fill it in "
                    "or remove the line"
                )
            spelled.setdefault(row.label.casefold(), row.label)
            if len(spelled) > 2:
                names = ", ".join(map(repr, spelled.values()))
                at = f"{table.name}, line {row.line}"
                raise UserError(f"{at}: a third class ({names}); a corpus has two")
    found = ", ".join(map(repr, spelled.values()))
    where = f"{', '.join(table.name for table in tables)}: the labels"
    if positive is not None:
        pairs = [(next((c for c in spelled if c != positive.casefold()), "other"), positive)]
        if positive.casefold() not in spelled:
            raise UserError(f"{where} are {found}; --positive {positive} is none of them")
    else:
        pairs = [pair for pair in known if spelled.keys() <= {name.casefold() for name in pair}]
        if not pairs:
            raise UserError(f"{where} are {found}; say which one counts as 1 with --positive")
    keys = [name.casefold() for name in pairs[0]]
    classes = tuple(spelled.get(key, name) for key, name in zip(keys, pairs[0], strict=True))
    if not are_classes(classes):
        raise UserError(f"{where} are {found}; a class has a name of at most {LONGEST} characters")
    rows = [
        [row._replace(label=keys.index(row.label.casefold())) for row in table.rows]
        for table in tables
    ]
    return classes, rows
