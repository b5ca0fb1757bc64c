"""Read matrices that are stored in one byte or half a byte a number, as a student's that ships.

A group of neighbours in a row shares a scale: number = scale * integer. Two integers of 4 bits
stand in a byte (uint8), as 1 to 15 for -7 to 7; those of 8 bits have one of their own (int8).
"""

import torch
from torch import Tensor

SCALE = ".scale"  # (rows, groups), beside each matrix that is stored so


def expand(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in fp32, with no scales; what was stored without one stays as it is.

    Raises ValueError where a matrix and its scales do not fit.
    """
    expanded = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    if lost := {name.removesuffix(SCALE) for name in tensors} - expanded.keys():
        raise ValueError(f"{lost.pop()}: a scale and no matrix")
    for name, whole in expanded.items():
        scale = tensors.get(name + SCALE)
        if (scale is not None) != (whole.dtype in (torch.int8, torch.uint8)):
            raise ValueError(f"{name}: {whole.dtype} with{'out' * (scale is None)} a scale")
        if scale is None:
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
