"""Measurements. Nothing here is a test; bench/README.md tells what each module shows."""

from support.setup import setup

setup()


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Return a table, the headings first."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])
