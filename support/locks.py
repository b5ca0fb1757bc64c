"""How is a folder held against every other command?

A lock dies with its process. Of several processes the main one holds it, and all of them stop where
it is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from support.errors import UserError
from support.processes import any_process, is_main


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a lock file; its folder is made."""
    lock, refusal, folder = filelock.FileLock(path, timeout=0), None, path.parent
    try:
        if is_main():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock.acquire()
            except filelock.Timeout:
                refusal = UserError(f"{folder}: another command is at work here; wait for it")
            except OSError as error:
                refusal = no_folder(folder, error)
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
