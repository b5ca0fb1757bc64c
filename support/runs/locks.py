"""How is a folder held against every other command?

A lock dies with its process. Of several processes the main one holds it, and all of them stop where
it is refused.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from support.errors import UserError
from support.processes import any_process, is_main


@contextmanager
def hold(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file; its folder is made. While another command holds it, wait or refuse."""
    lock, refusal, folder = filelock.FileLock(path), None, path.parent
    busy, seconds = f"{folder}: another command is at work here", 0.0
    try:
        while True:
            taken = False
            if is_main():
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    lock.acquire(timeout=seconds)
                except filelock.Timeout:
                    taken = True
                except OSError as error:
                    refusal = no_folder(folder, error)
            if not (any_process(taken) and wait):
                break
            if is_main() and not seconds:
                print(f"{busy}; waiting for it", file=sys.stderr)
            seconds = 1.0  # short, since the other processes wait meanwhile
        refusal = UserError(f"{busy}; wait for it") if taken else refusal
        stop_where_refused(refusal, folder)
        yield
        any_process(False)  # nobody reads before the main process has written all
    finally:
        lock.release()


def stop_where_refused(refusal: UserError | None, folder: Path) -> None:
    """Raise in every process what the main one found."""
    if any_process(bool(refusal)):
        raise refusal or UserError(f"{folder}: refused by the main process")


def no_folder(folder: Path, error: OSError) -> UserError:
    """The error for a folder in which nothing can be written."""
    return UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out_dir")
