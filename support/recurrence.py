"""Recurrent layers: their states by time step, with gradients by hand.

PyTorch's own on the CPU fill and add a gradient of a whole batch once a time step, and multiply for
the weights' gradient as often; here each is done once, in one product. W are a layer's weights of
its input, U those of its state, b and c their biases, in PyTorch's order of gates.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from support.fast_layers import product_dtype

# g y (1 - y) and g (1 - y^2), of y = sigmoid or tanh
sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward


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
        q = c.repeat(sizes[0], 1)  # before the first token the state is zero
        states, ctx.steps = [], []
        for n, p in enumerate((x @ W.T)[:tokens].split(sizes)):
            h, memory = h[: len(p)], memory[: len(p)]
            if n:
                q = add_product(c, h, U.T)
            state, later, saved = cell.step(p.to(b.dtype).add_(b), q, h, memory)
            ctx.steps.append((h, memory, *saved))
            states.append(state)
            h, memory = state, later
        ctx.save_for_backward(x, W, U)
        ctx.cell, ctx.sizes = cell, sizes
        return torch.cat(states)  # another tensor than those in ctx, or they would form a circle

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        """g (tokens, width)."""
        (x, W, U), tokens, dmemory = ctx.saved_tensors, len(g), None
        dp, dq = (x.new_empty(len(x), len(U)) for _ in range(2))
        dp[tokens:] = dq[tokens:] = 0
        db, dc = (g.new_zeros(len(U)) for _ in range(2))
        grads, dps, dqs = (rows[:tokens].split(ctx.sizes) for rows in (g.clone(), dp, dq))
        for n in reversed(range(len(grads))):
            of_p, of_q, dh, dmemory = ctx.cell.back(grads[n], dmemory, *ctx.steps[n])
            for whole, rows, part in ((db, dps[n], of_p), (dc, dqs[n], of_q)):
                whole += part.sum(dim=0)
                rows.copy_(part)
            if n:
                some = grads[n - 1][: len(of_q)]
                some += (whole_rows(dqs[n], U.dtype) @ U)[: len(some)].to(g.dtype)
                if dh is not None:
                    some += dh
        h = whole_rows(torch.cat([h for h, *_ in ctx.steps]), U.dtype)
        return None, (dp @ W)[:tokens], dp.T @ x, dq.T @ h, db, dc, None


class GRU:
    """A gated recurrent unit (Cho et al. 2014, https://arxiv.org/abs/1406.1078), as cuDNN has it.

    r, z = sigmoid(p + q)    n = tanh(p_n + r q_n)    h' = n + z (h - n)
    """

    @staticmethod
    def step(p: Tensor, q: Tensor, h: Tensor, memory: Tensor) -> tuple:
        """Return the state, no memory, and what `back` wants; q (sentences, 3 width) is spent."""
        width = h.shape[1]
        r, z = q[:, : 2 * width].add_(p[:, : 2 * width]).sigmoid_().chunk(2, dim=1)
        q_n = q[:, 2 * width :]
        n = torch.addcmul(p[:, 2 * width :], r, q_n).tanh_()
        return torch.lerp(n, h, z), memory, (r, z, q_n, n)

    @staticmethod
    def back(g: Tensor, _: None, h: Tensor, memory: Tensor, *saved: Tensor) -> tuple:
        """Return dp and dq (sentences, 3 width), what else goes to dh, and no dmemory."""
        r, z, q_n, n = saved
        dh = g * z
        dn = tanh_backward(g - dh, n)
        dr = sigmoid_backward(dn * q_n, r)
        dz = sigmoid_backward(g * (h - n), z)
        return torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1), dh, None


class LSTM:
    """A long short-term memory (Hochreiter and Schmidhuber 1997), as PyTorch has it.

    i, f, o = sigmoid(p + q)    g = tanh(p_g + q_g)    memory' = f memory + i g
    h' = o tanh(memory')
    """

    @staticmethod
    def step(p: Tensor, q: Tensor, h: Tensor, memory: Tensor) -> tuple:
        """Return the state, the memory, and what `back` wants; q (sentences, 4 width) is spent."""
        i, f, g, o = q.add_(p).chunk(4, dim=1)
        for gate in (i, f, o):
            gate.sigmoid_()
        later = torch.addcmul(i * g.tanh_(), f, memory)
        tanh = later.tanh()
        return o * tanh, later, (i, f, g, o, tanh)

    @staticmethod
    def back(g: Tensor, dmemory: Tensor | None, h: Tensor, memory: Tensor, *saved: Tensor) -> tuple:
        """Return dp and dq (sentences, 4 width), which are one, nothing for dh, and dmemory."""
        i, f, new, o, tanh = saved
        d = tanh_backward(g * o, tanh)
        if dmemory is not None:
            d[: len(dmemory)] += dmemory
        di, df = sigmoid_backward(d * new, i), sigmoid_backward(d * memory, f)
        dnew, do = tanh_backward(d * i, new), sigmoid_backward(g * tanh, o)
        dp = torch.cat([di, df, dnew, do], dim=1)
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
