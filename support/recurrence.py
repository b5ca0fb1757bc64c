"""Recurrent layers: their states by time step, with gradients by hand.

PyTorch's own on the CPU fill and add a gradient of a whole batch once a time step, and multiply for
the weights' gradient as often; here each is done once, in one product. W are a layer's weights of
its input, U those of its state, b and c their biases, in PyTorch's order of gates.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from support.fast_layers import product_dtype


def recurrent_states(rnn: nn.RNNBase, x: Tensor, sizes: Tensor) -> Tensor:
    """Return the last layer's states (tokens, width) of x (tokens, in), laid out by time step.

    ``rnn`` is PyTorch's RNN, GRU or LSTM. ``sizes (steps,)``, on the CPU, are how many sentences
    reach each step, the longest sentences first. Between layers is the dropout of ``rnn``.
    """
    if x.is_cuda:
        return library_states(rnn, x, sizes)  # cuDNN's is faster there
    for number, (W, U, b, c) in enumerate(rnn.all_weights):
        if number:
            x = F.dropout(x, rnn.dropout, rnn.training)
        if isinstance(rnn, nn.RNN):
            x = Elman.apply(x, W, U, b + c, sizes.tolist())
        else:
            cell = GRU if isinstance(rnn, nn.GRU) else LSTM
            x = Gated.apply(cell, x, W, U, b, c, sizes.tolist())
    return x


def library_states(rnn: nn.RNNBase, x: Tensor, sizes: Tensor) -> Tensor:
    """Return `recurrent_states` as PyTorch computes them, in fp32.

    Autocast would run cuDNN's cell in fp16, which overflows where no scaler watches the loss.
    """
    with torch.autocast(x.device.type, enabled=False):
        return rnn(PackedSequence(x.float(), sizes))[0].data


class Elman(torch.autograd.Function):
    """Compute h_t = tanh(W x_t + U h_{t-1} + b), h_{-1} = 0 (Elman 1990), by time step.

    With g_t = dL/dh_t, by the chain rule backwards in time:

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


# ---------------------------------------------------------------------------------------------
# Cells with gates


class Gated(torch.autograd.Function):
    """Compute the states of a `GRU` or an `LSTM`.

    With p = W x_t + b and q = U h_{t-1} + c, what a cell makes of them, and dp and dq, which it
    says, by the chain rule backwards in time:

        dL/dx_t = W^T dp_t    dL/dW = sum dp_t x_t^T    dL/db = sum dp_t
        dL/dh_{t-1} has U^T dq_t    dL/dU = sum dq_t h_{t-1}^T    dL/dc = sum dq_t
    """

    @staticmethod
    def forward(
        ctx, cell: type, x: Tensor, W: Tensor, U: Tensor, b: Tensor, c: Tensor, sizes: list[int]
    ) -> Tensor:
        """Return the states (tokens, width) of x (tokens, in), laid out as a PackedSequence."""
        dtype, tokens = product_dtype(x), len(x)
        x, W, U = whole_rows(x, dtype), W.to(dtype), U.to(dtype)
        h = memory = b.new_zeros(sizes[0], U.shape[1])

        def nothing(start: Tensor, gates: slice) -> Tensor:
            return start.expand(sizes[0], -1).clone()  # before the first token the state is zero

        def product(start: Tensor, gates: slice) -> Tensor:
            return add_product(start, h, U[gates].T)

        states, ctx.steps, add_U = [], [], nothing
        for p in add_product(cell.start(b, c), x, W.T)[:tokens].split(sizes):
            h, memory = h[: len(p)], memory[: len(p)]
            now, later, saved = cell.step(p, h, memory, c, add_U)
            ctx.steps.append((h, memory, *saved))
            states.append(now)
            h, memory, add_U = now, later, product
        ctx.save_for_backward(x, W, U)
        ctx.cell, ctx.sizes = cell, sizes
        return torch.cat(states)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        """g (tokens, width)."""
        x, W, U = ctx.saved_tensors
        grads, dmemory = list(g.clone().split(ctx.sizes)), None
        dps, dqs = [], []
        for now, before, step in zip(
            grads[::-1], [*grads[-2::-1], None], ctx.steps[::-1], strict=True
        ):
            dp, dq, dh, dmemory = ctx.cell.back(now, dmemory, *step)
            dps.append(dp)
            dqs.append(dq)
            if before is not None:
                some = before[: len(now)]
                some += (whole_rows(dq, U.dtype) @ U)[: len(now)]
                if dh is not None:
                    some += dh
        dp, dq = torch.cat(dps[::-1]), torch.cat(dqs[::-1])
        h = torch.cat([h for h, *_ in ctx.steps[1:]]) if ctx.steps[1:] else g[:0]
        rows, later, h = (whole_rows(r, U.dtype) for r in (dp, dq[ctx.sizes[0] :], h))
        dx = (rows @ W)[: len(dp)]
        return None, dx, rows.T @ x, later.T @ h, dp.sum(dim=0), dq.sum(dim=0), None


AddU = Callable[[Tensor, slice], Tensor]  # start + U h for some gates' rows of U


class GRU:
    """A gated recurrent unit (Cho et al. 2014, https://arxiv.org/abs/1406.1078), as cuDNN has it.

    r, z = sigmoid(p + q)    n = tanh(p_n + r q_n)    h' = n + z (h - n)
    """

    @staticmethod
    def start(b: Tensor, c: Tensor) -> Tensor:
        """Return the bias of p; c_n is not in it, since r multiplies it."""
        width = len(c) // 3
        return torch.cat([b[: 2 * width] + c[: 2 * width], b[2 * width :]])

    @staticmethod
    def step(p: Tensor, h: Tensor, memory: Tensor, c: Tensor, add_U: AddU) -> tuple:
        """Return the state, no memory, and what `back` wants."""
        width = h.shape[1]
        rz = add_U(p[:, : 2 * width], slice(2 * width)).sigmoid_()
        r, z = rz.chunk(2, dim=1)
        q = add_U(c[2 * width :], slice(2 * width, None))
        n = torch.addcmul(p[:, 2 * width :], r, q).tanh_()
        return torch.lerp(n, h, z), memory, (r, z, q, n)

    @staticmethod
    def back(g: Tensor, _: None, h: Tensor, memory: Tensor, *saved: Tensor) -> tuple:
        """Return dp and dq (sentences, 3 width), what else goes to dh, and no dmemory."""
        r, z, q, n = saved
        dn = (g - g * z) * (1 - n * n)
        dr = dn * q * (r - r * r)
        dz = g * (h - n) * (z - z * z)
        return torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1), g * z, None


class LSTM:
    """A long short-term memory (Hochreiter and Schmidhuber 1997), as PyTorch has it.

    i, f, o = sigmoid(p + q)    g = tanh(p_g + q_g)    memory' = f memory + i g
    h' = o tanh(memory')
    """

    @staticmethod
    def start(b: Tensor, c: Tensor) -> Tensor:
        """Return the bias of p."""
        return b + c

    @staticmethod
    def step(p: Tensor, h: Tensor, memory: Tensor, c: Tensor, add_U: AddU) -> tuple:
        """Return the state, the memory, and what `back` wants."""
        i, f, g, o = add_U(p, slice(None)).chunk(4, dim=1)
        for gate in (i, f, o):
            gate.sigmoid_()
        later = torch.addcmul(i * g.tanh_(), f, memory)
        tanh = later.tanh()
        return o * tanh, later, (i, f, g, o, tanh)

    @staticmethod
    def back(g: Tensor, dmemory: Tensor | None, h: Tensor, memory: Tensor, *saved: Tensor) -> tuple:
        """Return dp and dq (sentences, 4 width), which are one, nothing for dh, and dmemory."""
        i, f, new, o, tanh = saved
        d = g * o * (1 - tanh * tanh)
        if dmemory is not None:
            d[: len(dmemory)] += dmemory
        dp = torch.cat(
            [
                d * new * (i - i * i),
                d * memory * (f - f * f),
                d * i * (1 - new * new),
                g * tanh * (o - o * o),
            ],
            dim=1,
        )
        return dp, dp, None, d * f


# ---------------------------------------------------------------------------------------------
# Products


def add_product(start: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return start + a b, of a (n, in) and b (in, out), computed in the dtype of b."""
    if b.element_size() > 2:
        return torch.addmm(start, a, b)
    # Cast first: to add tensors of two dtypes takes several times as long.
    return (whole_rows(a, b.dtype) @ b)[: len(a)].to(start.dtype).add_(start)


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
    whole = rows.new_empty(number, rows.shape[1], dtype=dtype)
    whole[: len(rows)], whole[len(rows) :] = rows, 0
    return whole
