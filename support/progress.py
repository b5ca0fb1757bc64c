"""Show how far long work is: tqdm's bar on a terminal, elsewhere a line now and then."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

EVERY = 30  # seconds between two lines
LINE = "{desc} {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class Lines:
    """A file that tqdm may write to: each bar that it draws becomes a line of standard error."""

    def write(self, text: str) -> None:
        """Print what is not blank; blanks are what tqdm clears a bar with."""
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)


def progress_bar(
    description: str, total: int, done: int = 0, iterable: Iterable | None = None
) -> tqdm:
    """Return a bar that counts from ``done`` to ``total``; it is gone when it is closed.

    Where standard error is no terminal, it is a line every 30 s, and none for shorter work.
    """
    options = {"desc": description, "total": total, "initial": done, "leave": False}
    if sys.stderr.isatty():
        return tqdm(iterable, bar_format="{bar} " + LINE, **options)
    options |= {"delay": EVERY, "mininterval": EVERY, "miniters": 1}
    return tqdm(iterable, bar_format=LINE, file=Lines(), **options)
