"""Tell which process this is, of one or of several that torchrun started, and what all know.

Only the main process prints and writes. Several processes train one model: each takes its share of
every batch, and the sum of their gradients is that of one process.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING

from support.errors import UserError

if TYPE_CHECKING:  # PyTorch is imported where it is used: run.py asks is_main() without it
    from torch import Tensor


class PeerLost(UserError):
    """Another process has ended, and has said why."""


def several() -> bool:
    """Return whether torchrun started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Return whether this is the process that prints and writes."""
    return not several() or os.environ.get("RANK", "0") == "0"


def is_first_of_machine() -> bool:
    """Return whether this is the process that speaks for its machine, when all meet an error."""
    return not several() or os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, if it did; all but the main one fall silent.

    Raises:
        PeerLost: another process has ended.
    """
    if not several():
        yield
        return
    import torch.distributed as dist

    # Its functions' defaults hold the group that exists when it is imported, as an optimizer does:
    # that group would outlive its end below, and Gloo's threads now and then abort the exit.
    import torch.distributed.nn  # noqa: F401

    # Gloo for tensors on the CPU, NCCL for those on GPUs. Others may wait for the main process for
    # as long as a teacher's pass takes.
    dist.init_process_group(timeout=timedelta(days=7))
    try:
        if is_main():
            yield
        else:
            with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
                yield
    except RuntimeError as error:
        lost = "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error)
        if lost or isinstance(error, dist.DistNetworkError):
            raise PeerLost from None
        raise
    finally:
        dist.destroy_process_group()


def rank_and_processes() -> tuple[int, int]:
    """Return this process' number and how many there are; (0, 1) where there is no group."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(*tensors: "Tensor") -> None:
    """Replace each tensor, in place, by its sum over all processes, in one exchange."""
    if rank_and_processes()[1] == 1:
        return
    import torch

    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def any_process(value: bool) -> bool:
    """Return whether ``value`` is true in any process. All must ask: each waits for the others."""
    if rank_and_processes()[1] == 1:
        return value
    import torch

    total = torch.tensor([float(value)])
    sum_over_processes(total)
    return bool(total)


def barrier() -> None:
    """Wait until every process is here: so that none reads before the main one has written all."""
    any_process(False)


@contextmanager
def together() -> Iterator[None]:
    """Have all processes leave the block, or none: one's user error is raised in every process.

    What is inside must not wait for other processes.
    """
    message = None
    try:
        yield
    except UserError as error:
        message = str(error)
    processes = rank_and_processes()[1]
    messages = [message] * processes
    if processes > 1:
        import torch.distributed as dist

        dist.all_gather_object(messages, message)
    if first := next(filter(None, messages), None):
        raise UserError(first)


# ---------------------------------------------------------------------------------------------
# Being asked to stop


class Interruption:
    """Whether the user has asked this process to stop, so that no step is cut in two."""

    requested = False
    by_keyboard = False

    def note(self, number: int, frame: object) -> None:
        """Handle a signal. A second SIGINT interrupts at once, without saving.

        SIGTERM never does: torchrun sends one right after the first SIGINT.
        """
        if number == signal.SIGINT and self.by_keyboard:
            raise KeyboardInterrupt
        self.requested = True
        self.by_keyboard = self.by_keyboard or number == signal.SIGINT


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Have SIGINT and SIGTERM noted, to be looked at between two steps."""
    interruption = Interruption()
    previous = {n: signal.signal(n, interruption.note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
