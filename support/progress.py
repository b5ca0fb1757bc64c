"""Show how far long work is: tqdm's bar on a terminal, elsewhere a line now and then."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVERY = 30  # seconds between two lines
LINE = "{desc} {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class Lines:
    """A file that tqdm may write to: each bar that it draws becomes a line of standard error."""

    def write(self, text: str) -> None:
        """Print what is not blank; blanks are what tqdm clears a bar with."""
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)


def progress_bar(*iterable: Iterable, **options: Any) -> tqdm:
    """Return a bar of tqdm, which takes the options; nothing is left of it when it is closed.

    Where standard error is no terminal, it is a line every 30 s, and none for shorter work.
    """
    if sys.stderr.isatty():
        return tqdm(*iterable, bar_format="{bar} " + LINE, leave=False, **options)
    now_and_then = {"delay": EVERY, "mininterval": EVERY, "miniters": 1}
    return tqdm(*iterable, bar_format=LINE, leave=False, file=Lines(), **now_and_then, **options)
