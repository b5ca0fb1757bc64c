"""Tell the errors that a user can mend from the program's own, and put each in one line."""

import errno


class UserError(Exception):
    """One line for what the user can mend: what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """Return what a library's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def replaced(what: object) -> UserError:
    """Return the error for what a run names by its fingerprint, and found to be another later."""
    return UserError(f"{what}: replaced by another while this command ran; give the command again")


MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
NO_PATH = {errno.ENAMETOOLONG, errno.ELOOP}


def explain(error: Exception) -> str | None:
    """Return one line for an error that the user can mend; None for one of the program's own."""
    text = str(error)
    if isinstance(error, UserError):
        return " ".join(text.split("\n"))
    # PyTorch has an error of its own for a GPU's memory, and a RuntimeError for the CPU's.
    in_pytorch = isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )
    if isinstance(error, MemoryError) or in_pytorch:
        # A smaller batch would not help: it is cut to data_utils.most_tokens in any case.
        return (
            "out of memory; choose a smaller --gpt_variant, --student_width or --transfer_size, "
            "or close other programs"
        )
    if isinstance(error, OSError) and error.errno in MACHINE:
        return f"{error.filename or 'output'}: {error.strerror}; what was saved before is whole"
    if isinstance(error, OSError) and error.errno in NO_PATH:
        return f"{error.filename}: {error.strerror}; give another path"
    return None
