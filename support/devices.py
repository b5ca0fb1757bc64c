"""Choose on what, and how precisely, it is computed."""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from support.errors import UserError, first_line
from support.processes import is_first_of_machine, rank_and_processes, together

AMPERE = (8, 0)  # the first compute capability with bf16 in hardware


class Device(NamedTuple):
    """Hold a device of PyTorch's, and the precision of the matrix products on it."""

    torch: torch.device
    precision: str  # "fp32" or "bf16"

    def autocast(self) -> torch.autocast:
        """Return a context of bf16 matrix products, or of none; weights are fp32 in either case."""
        bf16 = self.precision == "bf16"
        return torch.autocast(self.torch.type, dtype=torch.bfloat16, enabled=bf16)

    def place(self, model: nn.Module) -> nn.Module:
        """Return a model on the device, the frozen weights of linear layers as they are multiplied.

        Autocast would cast them at every call, in more time than some products take.
        """
        for module in model.modules() if self.precision == "bf16" else ():
            if type(module).__name__ in ("Linear", "Conv1D") and not module.weight.requires_grad:
                module.weight = nn.Parameter(module.weight.bfloat16(), requires_grad=False)
        return model.to(self.torch)

    def description(self) -> dict[str, str | int]:
        """Return the machine in words."""
        if self.torch.type == "cuda":
            name = torch.cuda.get_device_name(self.torch)
        else:
            lines = cpuinfo().splitlines()
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
            name = names[0] if names else platform.processor() or platform.machine()
        return {
            "device": self.torch.type,
            "name": name,
            "threads": torch.get_num_threads(),
            "processes": rank_and_processes()[1],
            "precision": self.precision,
        }


CPU = Device(torch.device("cpu"), "fp32")


def cpuinfo() -> str:
    """Return what Linux says of the processor; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def choose_device(name: str = "auto", precision: str | None = None) -> Device:
    """Resolve "auto" and a missing precision; of several processes each has a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and rank_and_processes()[1] > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    with together():
        try:
            torch.zeros(1, device=name).item()  # a device may exist, as "meta", and not compute
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = f"not usable here ({first_line(error)}); use cpu"
            raise UserError(f"--device {name}: {reason}") from None
    device = torch.device(name)
    if (device.type, precision) == ("cpu", "bf16"):
        note_slow_bf16()
    precision = precision or ("bf16" if has_bf16(device) else "fp32")
    torch.backends.cudnn.allow_tf32 = precision == "bf16"  # or its RNN would round like half
    return Device(device, precision)


@cache
def note_slow_bf16() -> None:
    """Say, once, where the processor has no bf16, which is then emulated.

    Linux names it in the features of x86 (AVX512-BF16, AMX) and of Arm.
    """
    if cpuinfo() and "bf16" not in cpuinfo() and is_first_of_machine():
        note = "this processor has no bf16: a product takes longer than in fp32"
        print(f"note: --precision bf16: {note}; --precision fp32 is faster", file=sys.stderr)


def has_bf16(device: torch.device) -> bool:
    """Return whether it is a GPU that multiplies bf16 in hardware, not by emulation."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one; without glibc, do nothing.

    By default it hands large blocks back to the kernel, which gives them out again page by page,
    zeroed, at every step.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block, however large, is the kernel's own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
