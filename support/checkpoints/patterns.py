"""Match regular expressions that may come from a downloaded file: in little time and memory."""

import math
import re
from collections.abc import Iterable

import regex


def check_pattern(pattern: str) -> None:
    """Raise ValueError for no regular expression, and for one that exhausts the machine."""
    # Counted repeats within each other are written out when they are compiled.
    repeats = math.prod(max(int(n), 1) for n in re.findall(r"\d+(?=[,}])", pattern[:1000]))
    if len(pattern) > 1000 or repeats > 1000:
        raise ValueError(f"target_modules = {pattern[:60]!r}...; the pattern is too large")
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise ValueError(f"target_modules = {pattern!r}: {error}") from None


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a regular expression matches whole.

    Raises ValueError where one of them takes longer than a tenth of a second.
    """
    try:
        return [name for name in names if regex.fullmatch(pattern, name, timeout=0.1)]
    except TimeoutError:
        raise ValueError(f"target_modules = {pattern!r} takes too long to match") from None
