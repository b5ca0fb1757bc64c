"""Hold a folder against every other command.

A lock dies with its process. Of several processes the main one holds it, and all of them stop where
it is refused.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from support.errors import UserError
from support.files import no_folder
from support.processes import any_process, barrier, is_main, together


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file; its folder is made. While another command holds it, wait or refuse."""
    lock, folder = filelock.FileLock(path), path.parent
    busy = f"{folder}: another command is at work here"
    with together():
        free = not is_main() or acquired(lock, folder, 0)
        if not free and not wait:
            raise UserError(f"{busy}; wait for it")
    try:
        if is_main() and not free:
            print(f"{busy}; waiting for it", file=sys.stderr)
        while any_process(not free):  # in short turns, since the other processes wait meanwhile
            free = not is_main() or acquired(lock, folder, 1)
        yield
        barrier()  # nobody reads before the main process has written all
    finally:
        lock.release()


def acquired(lock: filelock.FileLock, folder: Path, seconds: float) -> bool:
    """Return whether the lock could be had within so many seconds."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return False
    except OSError as error:
        raise no_folder(folder, error) from None
    return True
