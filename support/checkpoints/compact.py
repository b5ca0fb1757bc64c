"""Store matrices in one byte or half a byte a number, for a student that ships.

A group of neighbours in a row shares a scale: number = scale * integer, and the largest of the
group is 7 or 127. It is rounding to nearest, without calibration, as GGUF's Q4_0 and Q8_0.
"""

import torch
from torch import Tensor

SCALE = ".scale"  # (rows, groups), beside each matrix that is stored so
EMBEDDING, GROUP = "embedding.weight", 64


def compact(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a student's tensors with the embedding in 4 bits and other matrices in 8."""
    stored = {}
    for name, tensor in tensors.items():
        bits = 4 if name == EMBEDDING else 8
        if tensor.ndim != 2 or tensor.shape[1] % GROUP:
            stored[name] = tensor
            continue
        groups = tensor.unflatten(1, (-1, GROUP if bits == 4 else tensor.shape[1]))
        most = 2 ** (bits - 1) - 1
        scale = (groups.abs().amax(dim=2) / most).half()
        whole = groups / scale.float().clamp(min=1e-7).unsqueeze(2)
        whole = whole.round().clamp(-most, most).flatten(1).to(torch.int8)
        if bits == 4:  # two of them, from 1 to 15, in a byte
            whole = (whole + 8).to(torch.uint8)
            whole = whole[:, ::2] | whole[:, 1::2] << 4
        stored |= {name: whole, name + SCALE: scale}
    return stored


def expand(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what `compact` stored, in fp32; what was not made compact stays as it is.

    Raises ValueError where a matrix and its scales do not fit.
    """
    expanded = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    for name, whole in expanded.items():
        if (scale := tensors.get(name + SCALE)) is None:
            continue
        if whole.ndim != 2 or scale.ndim != 2 or len(whole) != len(scale) or not scale.numel():
            raise ValueError(f"{name}: {tuple(whole.shape)} with scales of {tuple(scale.shape)}")
        if whole.dtype == torch.uint8:
            numbers = torch.empty(len(whole), 2 * whole.shape[1])
            numbers[:, ::2], numbers[:, 1::2] = whole & 15, whole >> 4
            numbers -= 8
        else:
            numbers = whole.float()
        if numbers.shape[1] % scale.shape[1]:
            raise ValueError(f"{name}: {scale.shape[1]} scales for {numbers.shape[1]} numbers")
        numbers.unflatten(1, (scale.shape[1], -1)).mul_(scale.float().unsqueeze(2))
        expanded[name] = numbers
    return expanded
