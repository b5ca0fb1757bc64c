"""The evening: its blocks run in the order of the page, and print what the page shows.

Its Python blocks go to one interactive session, as a reader pastes them; its commands to a shell.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from docs.draw import main as draw
from support import PROJECT

PAGE = PROJECT / "docs/evening.md"
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.M | re.S)
END = "<end of block>"
# The steps that train. Processors round differently, and training makes that grow: with kernels for
# AVX2, with those for no such instructions, and on two threads, figures were off by up to 0.003.
# Those of all other steps are the same everywhere.
TRAINED, TOLERANCE = {"3", "5", "6", "7", "8"}, 0.02


class Desk:
    """An interactive Python and a shell, in a folder that looks like the project's."""

    def __init__(self, folder: Path):
        """Open the session; what it writes does not reach the project."""
        for path in PROJECT.iterdir():
            if path.name not in (".git", "runs"):
                (folder / path.name).symlink_to(path)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.where = {"cwd": folder, "env": {**os.environ, "PATH": path}, "text": True}
        self.errors = (folder / "errors.txt").open("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.python = subprocess.Popen([sys.executable, "-i", "-q"], **pipes, **self.where)

    def run(self, language: str, code: str) -> str:
        """Run a block; return what it prints."""
        if language == "sh":
            done = subprocess.run(["bash", "-ec", code], capture_output=True, **self.where)
            assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
            return done.stdout
        self.python.stdin.write(f"{code}\n\nprint({END!r}, flush=True)\n")
        self.python.stdin.flush()
        printed = "".join(takewhile(lambda line: line != f"{END}\n", self.python.stdout))
        self.errors.seek(0)
        assert "Error" not in (said := self.errors.read()), f"{code}\n{said}"
        return printed

    def close(self) -> None:
        """End the session."""
        self.python.stdin.close()
        self.python.wait()


def blocks() -> Iterator[tuple[str, str, str]]:
    """Yield the page's blocks: the number of the step, the language and the content."""
    for step in re.split(r"^## ", PAGE.read_text(), flags=re.M)[1:]:
        for language, content in BLOCK.findall(step):
            yield step.partition(".")[0], language, content


def split_figures(text: str) -> tuple[str, list[float]]:
    """Split a text into what must be the same, and figures that may be off, as shares of 1."""
    figures = re.findall(r"(\d+\.\d+)(%?)", text)
    words = re.sub(r"\d+\.\d+|(?<=\()\d+(?= of )", "#", text)
    return words, [float(number) / (100 if percent else 1) for number, percent in figures]


def test_every_block_of_the_evening_prints_what_the_page_shows(tmp_path):
    desk, printed, shown = Desk(tmp_path), "", 0
    try:
        for step, language, content in blocks():
            if language != "text":
                assert not printed, f"step {step}: the page does not show {printed}"
                printed = desk.run(language, content)
            elif step in TRAINED:
                (words, figures), (expected, near) = split_figures(printed), split_figures(content)
                assert words == expected
                assert figures == pytest.approx(near, abs=TOLERANCE), printed
                printed, shown = "", shown + 1
            else:
                assert printed == content
                printed, shown = "", shown + 1
    finally:
        desk.close()
    assert shown >= 10


def test_the_pictures_of_the_evening_are_those_that_the_script_draws(tmp_path):
    draw(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == set(re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text()))
    assert all((PAGE.parent / name).stat().st_size < 150_000 for name in drawn)
