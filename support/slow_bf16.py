"""Tell whether this processor multiplies bf16 by emulation, more slowly than fp32."""

import sys
import time
from functools import cache

import torch

from support.processes import is_first_of_machine


@cache
def note_slow_bf16() -> None:
    """Say so, once, where this processor multiplies bf16 more slowly than fp32, by emulation."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, times = torch.ones(512, 512, dtype=dtype), []
        for _ in range(4):  # the first has a kernel to build
            began = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    factor = seconds[torch.bfloat16] / seconds[torch.float32]
    if factor > 1 and is_first_of_machine():
        note = f"this processor takes {factor:.1f} times as long for a product in bf16 as in fp32"
        print(f"note: --precision bf16: {note}; --precision fp32 is faster", file=sys.stderr)
