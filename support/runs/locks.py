"""Hold a folder against every other command. A lock dies with its process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from support.errors import UserError
from support.files import no_folder
from support.processes import barrier, is_main, together


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file; its folder is made. While another command holds it, wait or refuse.

    Of several processes the main one holds it, and all of them stop where it is refused.
    """
    lock = filelock.FileLock(path)
    try:
        with together():
            if is_main():
                acquire(lock, path.parent, wait)
        yield
        barrier()  # nobody reads before the main process has written all
    finally:
        lock.release()


def acquire(lock: filelock.FileLock, folder: Path, wait: bool) -> None:
    """Take a lock."""
    busy = f"{folder}: another command is at work here"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if not wait:
                raise UserError(f"{busy}; wait for it") from None
            print(f"{busy}; waiting for it", file=sys.stderr)
            lock.acquire()
    except OSError as error:  # TimeoutError is one, and so is filelock's
        raise no_folder(folder, error) from None
