"""Which errors can the user mend, and what is the one line that says so?"""

import errno


class UserError(Exception):
    """What the user can mend: one line that says what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}


def explain(error: Exception) -> str | None:
    """One line for an error that the user can mend; None for one that is the program's own."""
    text = str(error)
    if isinstance(error, UserError):
        return " ".join(text.split("\n"))
    # PyTorch has an error of its own for a GPU's memory, and a RuntimeError for the CPU's.
    in_pytorch = isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )
    if isinstance(error, MemoryError) or in_pytorch:
        return "out of memory; lower --batch_size, or choose a smaller --gpt_variant or student"
    if isinstance(error, OSError) and error.errno in MACHINE:
        return f"{error.filename or 'output'}: {error.strerror}; what was saved before is whole"
    return None
