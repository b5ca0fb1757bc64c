"""The evening: its blocks run in the order of the page, and print what the page shows.

The Python blocks go to one interactive session, as a reader pastes them; the others to a shell.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import PROJECT

PAGE = PROJECT / "docs/evening.md"
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.M | re.S)
END = "<end of block>"


class Desk:
    """An interactive Python and a shell in a folder that looks like the project's."""

    def __init__(self, folder: Path):
        """Open the session; what is written into the folder does not reach the project."""
        for path in PROJECT.iterdir():
            if path.name not in ("evening", ".git"):
                (folder / path.name).symlink_to(path)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.where = {"cwd": folder, "env": {**os.environ, "PATH": path}, "text": True}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.errors = (folder / "errors.txt").open("w+")
        self.python = subprocess.Popen(
            [sys.executable, "-i", "-q"], **pipes, stderr=self.errors, **self.where
        )

    def run(self, language: str, code: str) -> str:
        """Run a block; return what it prints."""
        if language == "sh":
            done = subprocess.run(["bash", "-ec", code], capture_output=True, **self.where)
            assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
            return done.stdout
        self.python.stdin.write(f"{code}\n\nprint({END!r}, flush=True)\n")
        self.python.stdin.flush()
        lines = list(iter(self.python.stdout.readline, f"{END}\n"))
        self.errors.seek(0)
        assert "Traceback" not in (said := self.errors.read()), f"{code}\n{said}"
        return "".join(lines)

    def close(self) -> None:
        """End the session."""
        self.python.stdin.close()
        self.python.wait()
