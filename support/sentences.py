"""Read sentences: one a line, or a file in CoLA's layout."""

from support.corpus import parse_row, read_lines
from support.errors import UserError


def parse_sentences(content: bytes, source: str) -> tuple[list[str], list[int] | None, list[int]]:
    """Return the sentences of a text, one a line, and the numbers of their lines: some are blank.

    A text whose first line is in CoLA's layout has labels too, else None.
    """
    lines = enumerate(read_lines(content, source), start=1)
    filled = {number: line for number, line in lines if line.strip()}
    if not filled:
        raise UserError(f"{source}: no sentences; give them as arguments, in a file or piped in")
    numbers, columns = list(filled), next(iter(filled.values())).split("\t")
    if len(columns) == 4 and columns[1] in ("0", "1"):
        rows = [parse_row(line, f"{source}, line {number}") for number, line in filled.items()]
        return [row.sentence for row in rows], [row.label for row in rows], numbers
    for number, line in filled.items():
        if "\t" in line:
            where = f"{source}, line {number}"
            raise UserError(
                f"{where}: a tab in the sentence; a file in CoLA's layout has 4 columns"
            )
    return list(filled.values()), None, numbers
