"""How is a recurrence computed, and its gradient, in few passes over the sentences?

PyTorch's own on the CPU fills and adds a gradient of a whole batch once a time step, and multiplies
by the weights' gradient as often; here each is done once, in one product.
"""

from itertools import pairwise

import torch
from torch import Tensor


class Recurrence(torch.autograd.Function):
    """h_t = tanh(W x_t + U h_{t-1} + b), h_{-1} = 0 (Elman 1990), on sentences laid out by time.

    With g_t = dL/dh_t, by the chain rule backwards in time:

        dz_t = (g_t + U^T dz_{t+1}) (1 - h_t^2)
        dL/dx_t = W^T dz_t    dL/db = sum dz_t
        dL/dW = sum dz_t x_t^T    dL/dU = sum dz_t h_{t-1}^T
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x: Tensor, W: Tensor, U: Tensor, bias: Tensor, sizes: list[int]) -> Tensor:
        """The states (tokens, width) of inputs x (tokens, in), laid out as in a PackedSequence.

        Of each time step stand first the longest sentences; ``sizes`` are how many reach it.
        """
        if torch.is_autocast_enabled("cpu"):  # by itself it would round U at every time step
            x, W, U = (matrix.to(torch.get_autocast_dtype("cpu")) for matrix in (x, W, U))
        states = torch.addmm(bias, x, W.T).to(bias.dtype)
        steps = states.split(sizes)
        steps[0].tanh_()
        for before, now in pairwise(steps):
            now.copy_(torch.addmm(now, before[: len(now)], U.T)).tanh_()
        ctx.save_for_backward(x, W, U, states)
        ctx.sizes = sizes
        return states

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        """g (tokens, width)."""
        x, W, U, states = ctx.saved_tensors
        slopes = 1 - states.square()
        dz = g * slopes
        steps = list(zip(dz.split(ctx.sizes), slopes.split(ctx.sizes), strict=True))
        for (after, _), (now, slope) in pairwise(reversed(steps)):
            some = len(after)
            now[:some].addcmul_(after @ U, slope[:some])
        before = [h[:size] for h, size in zip(states.split(ctx.sizes), ctx.sizes[1:], strict=False)]
        dU = dz[ctx.sizes[0] :].T @ torch.cat(before) if before else torch.zeros_like(U)
        return dz @ W, dz.T @ x, dU, dz.sum(dim=0), None
