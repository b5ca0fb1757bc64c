"""Layers that compute what PyTorch's and Hugging Face's do, in fewer passes over their tensors.

Reading and writing memory is what such layers cost.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

# PyTorch's x86 builds leave these two functions to oneMKL, which settles on a kernel in the first
# call. Where several threads make that call together, one of them may run a coarse kernel in it,
# its results 1e-4 off (https://github.com/pytorch/pytorch/issues/188792). One element is one
# thread's. tanh is the RNN's and the GELU's of Hugging Face, exp the KL divergence's.
torch.tanh(torch.zeros(1))
torch.exp(torch.zeros(1))


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which x is to be multiplied: autocast's, where it is on, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


# ---------------------------------------------------------------------------------------------
# Norms and activations


@torch.no_grad()
def in_few_passes(backbone: nn.Module) -> None:
    """Put faster layers in the place of a loaded decoder's, in place; names and weights stay."""
    for name, module in list(backbone.named_modules()):
        kind, weight = type(module).__name__, getattr(module, "weight", None)
        if kind == "NewGELUActivation":
            backbone.set_submodule(name, nn.GELU("tanh"))
        elif kind.endswith("RMSNorm") and weight is not None and weight.ndim == 1:
            norm = RMSNorm(weight, getattr(module, "variance_epsilon", 1e-6))
            x = torch.linspace(-1e-3, 1e-3, len(weight))  # so small that eps counts
            if torch.allclose(norm(x), module(x), rtol=1e-5, atol=1e-6):  # some add 1 to the weight
                backbone.set_submodule(name, norm)


class RMSNorm(nn.Module):
    """y = w x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, weight: nn.Parameter, eps: float):
        """Make a norm of a weight (width,)."""
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return Normalised.apply(x, self.weight, self.eps)


class Normalised(torch.autograd.Function):
    """Compute `RMSNorm` and its gradient.

    With r = 1 / sqrt(mean(x^2) + eps), n = r x and g = dL/dy:

    dL/dx = r (w g - n mean(w g n))    dL/dw = sum g n
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (..., width) and weight (width,)."""
        x = x.float()
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        r = squares.div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        n = x * r
        ctx.save_for_backward(n, r, weight)
        return (n * weight).to(product_dtype(x))

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """g (..., width)."""
        n, r, weight = ctx.saved_tensors
        dweight = (g * n).flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        wg = g * weight
        return wg.addcmul_(n, (wg * n).mean(dim=-1, keepdim=True), value=-1).mul_(r), dweight, None


# ---------------------------------------------------------------------------------------------
# The recurrence


def recurrent_states(rnn: nn.RNN, x: Tensor, sizes: Tensor) -> Tensor:
    """Return the states (tokens, width) of inputs x (tokens, in), laid out by time step.

    ``sizes (steps,)``, on the CPU, are how many sentences reach each step.
    """
    if x.is_cuda:
        return library_states(rnn, x, sizes)  # cuDNN's is faster there
    W, U, *biases = rnn.parameters()
    return Recurrence.apply(x, W, U, sum(biases), sizes.tolist())


def library_states(rnn: nn.RNN, x: Tensor, sizes: Tensor) -> Tensor:
    """Return `recurrent_states` as PyTorch computes them, in fp32.

    Autocast would run cuDNN's cell in fp16, which overflows where no scaler watches the loss.
    """
    with torch.autocast(x.device.type, enabled=False):
        return rnn(PackedSequence(x.float(), sizes))[0].data


class Recurrence(torch.autograd.Function):
    """Compute h_t = tanh(W x_t + U h_{t-1} + b), h_{-1} = 0 (Elman 1990), by time step.

    PyTorch's own on the CPU fills and adds a gradient of a whole batch once a time step, and
    multiplies by the weights' gradient as often; here each is done once, in one product. With
    g_t = dL/dh_t, by the chain rule backwards in time:

        dz_t = (g_t + U^T dz_{t+1}) (1 - h_t^2)
        dL/dx_t = W^T dz_t    dL/db = sum dz_t
        dL/dW = sum dz_t x_t^T    dL/dU = sum dz_t h_{t-1}^T
    """

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, U: Tensor, bias: Tensor, sizes: list[int]) -> Tensor:
        """Return the states (tokens, width) of x (tokens, in), laid out as a PackedSequence."""
        dtype, tokens = product_dtype(x), len(x)
        x, W, U = whole_rows(x, dtype), W.to(dtype), U.to(dtype)
        states = add_product(bias, x, W.T)[:tokens]
        steps = states.split(sizes)
        steps[0].tanh_()
        for before, now in pairwise(steps):
            now.copy_(add_product(now, before[: len(now)], U.T)).tanh_()
        ctx.save_for_backward(x, W, U, states)
        ctx.sizes = sizes
        return states

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        """g (tokens, width)."""
        x, W, U, states = ctx.saved_tensors
        slopes = 1 - states.square()
        dz = g * slopes
        steps = list(zip(dz.split(ctx.sizes), slopes.split(ctx.sizes), strict=True))
        for (after, _), (now, slope) in pairwise(reversed(steps)):
            some = len(after)
            now[:some].addcmul_((whole_rows(after, U.dtype) @ U)[:some], slope[:some])
        before = [h[:size] for h, size in zip(states.split(ctx.sizes), ctx.sizes[1:], strict=False)]
        before = torch.cat(before) if before else states[:0]
        later, before = (whole_rows(rows, U.dtype) for rows in (dz[ctx.sizes[0] :], before))
        rows = whole_rows(dz, U.dtype)
        return (rows @ W)[: len(dz)], rows.T @ x, later.T @ before, dz.sum(dim=0), None


def add_product(start: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return start + a b, of a (n, in) and b (in, out), computed in the dtype of b."""
    if b.element_size() > 2:
        return torch.addmm(start, a, b)
    return start + (whole_rows(a, b.dtype) @ b)[: len(a)]


def whole_rows(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows (n, width) in ``dtype``; of half precision there are some more, of zeros.

    oneDNN, which multiplies bf16 on a CPU, spends a millisecond on each product of a new shape. A
    student meets one at every time step; so few numbers of rows serve all.
    """
    if dtype.itemsize > 2:
        return rows.to(dtype)
    number = len(rows)
    number += -number % (16 if number <= 128 else 128)
    if (rows.dtype, len(rows)) == (dtype, number):
        return rows
    whole = rows.new_zeros(number, rows.shape[1], dtype=dtype)
    whole[: len(rows)] = rows
    return whole
