"""The student: embedding, recurrent layers, and a linear layer on each sentence's last state."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from data_utils import Batch
from model import Head, Outputs
from support.checkpoints.students import read_student
from support.errors import UserError
from support.files import copy_tensors

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class DistilRNN(nn.Module):
    """Embedding, recurrent layers, linear to 2 classes, on the last token's state.

    The published student has one tanh layer (Elman 1990).

    Only the tokens of the training sentences have rows in the embedding: about 6,400 of GPT-2's
    50,257 for CoLA. Training is the same, since Adam never moves a row that gets no gradient. Every
    other token reads one row more, of zeros: the student knows nothing of it.
    """

    def __init__(
        self,
        vocabulary: Tensor,
        width: int = 768,
        dropout: float = 0.0,
        cell: str = "rnn",
        layers: int = 1,
    ):
        """Make a student with an embedding of the token ids ``vocabulary (rows,)``, which rise.

        ``width`` is that of the embedding and of every layer's state; ``dropout`` acts on both in
        training. ``cell`` is one of `CELLS`.
        """
        super().__init__()
        self.register_buffer("vocabulary", vocabulary)
        self.embedding = nn.Embedding(len(vocabulary) + 1, width, padding_idx=len(vocabulary))
        self.cell = cell
        self.rnn = CELLS[cell](width, width, layers, dropout=dropout if layers > 1 else 0.0)
        self.linear = Head(width, 2)
        self.dropout = nn.Dropout(dropout)

    def map_embedding(self, fixed: Tensor) -> None:
        """Have the embedding be a linear map, to be trained, of fixed rows (vocabulary, in)."""
        device, width = self.vocabulary.device, self.embedding.embedding_dim
        fixed = F.pad(fixed.to(device), (0, 0, 0, 1))  # zeros for the unknown
        linear = nn.Linear(fixed.shape[1], width, bias=False, device=device)
        self.embedding = nn.Sequential(nn.Embedding.from_pretrained(fixed), linear)

    def fold_embedding(self) -> None:
        """Put a mapped embedding's rows in its place; any other stays."""
        if isinstance(self.embedding, nn.Sequential):
            with torch.no_grad():
                rows = self.embedding(torch.arange(len(self.vocabulary) + 1).to(self.vocabulary))
            self.embedding = nn.Embedding.from_pretrained(rows, padding_idx=len(rows) - 1)

    def rows(self, input_ids: Tensor) -> Tensor:
        """Return the embedding's row of each token id; the last one where it has none."""
        unknown = len(self.vocabulary)
        rows = torch.searchsorted(self.vocabulary, input_ids).clamp(max=unknown - 1)
        return torch.where(self.vocabulary[rows] == input_ids, rows, unknown)

    def outputs(self, batch: Batch) -> Outputs:
        """Return the logits, and the state at every token.

        The states are in the order of a recurrence: by time step, then by sentence.
        """
        device = batch.input_ids.device
        lengths = [length for length, count in batch.blocks for _ in range(count)]
        steps = pack_sequence(torch.arange(sum(lengths)).split(lengths))
        tokens = steps.data.to(device)  # (tokens,)  which token of the batch stands where
        embedded = self.dropout(self.embedding(self.rows(batch.input_ids[tokens])))
        states = recurrent_states(self.rnn, embedded, steps.batch_sizes)  # (tokens, width)
        last = tokens.argsort()[batch.last_tokens]  # (sentences,)  where its last token stands
        return Outputs(self.linear(self.dropout(states[last])), states, tokens)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (sentences, 2)."""
        return self.outputs(batch).logits


def load_student(folder: Path) -> DistilRNN:
    """Load a saved student for use."""
    tensors, cell, layers = read_student(folder)
    if cell not in tuple(CELLS):
        raise UserError(f"{folder / 'config.json'}: cell = {cell!r}; it is {', '.join(CELLS)}")
    vocabulary, width = tensors["vocabulary"], tensors["embedding.weight"].shape[1]
    model = DistilRNN(vocabulary, width, cell=cell, layers=layers)
    copy_tensors(folder / "model.safetensors", tensors, model.state_dict())
    return model.requires_grad_(False).eval()


# ---------------------------------------------------------------------------------------------
# Recurrence

# g y (1 - y) and g (1 - y^2), of y = sigmoid or tanh
sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward


def recurrent_states(rnn: nn.RNNBase, x: Tensor, sizes: Tensor) -> Tensor:
    """Return the last layer's states (tokens, width) of x (tokens, in), laid out by time step.

    ``rnn`` is any recurrent layer that takes a ``PackedSequence``, as PyTorch's do. ``sizes
    (steps,)``, on the CPU, are how many sentences reach each step, the longest sentences first.
    """
    if x.is_cuda or type(rnn) is not nn.GRU or rnn.bidirectional or not rnn.bias:
        return library_states(rnn, x, sizes)
    for number, weights in enumerate(rnn.all_weights):
        if number:
            x = F.dropout(x, rnn.dropout, rnn.training)
        x = GRU.apply(x, *weights, sizes.tolist())
    return x


def library_states(rnn: nn.Module, x: Tensor, sizes: Tensor) -> Tensor:
    """Return `recurrent_states` as the layer itself computes them, in the dtype of its weights.

    Autocast would run cuDNN's cell in fp16, which overflows where no scaler watches the loss.
    """
    dtype = next(rnn.parameters()).dtype
    with torch.autocast(x.device.type, enabled=False):
        return rnn(PackedSequence(x.to(dtype), sizes))[0].data


class GRU(torch.autograd.Function):
    """Compute the states of a gated recurrent unit (Cho et al. 2014), as cuDNN has it.

    PyTorch's own on the CPU adds up a gradient of a whole batch once a time step, and multiplies
    for the weights' gradient as often; in bf16 it does not compute at all. Here each is done once,
    in one product. W are a layer's weights of its input, U those of its state, b and c their
    biases, in PyTorch's order of gates.

    See https://arxiv.org/abs/1406.1078. With p = W x_t + b, q = U h_{t-1} + c and h_{-1} = 0:

        r, z = sigmoid(p + q)    n = tanh(p_n + r q_n)    h_t = n + z (h_{t-1} - n)

    By the chain rule backwards in time, dp and dq being the gradients of p and q:

        dL/dx_t = W^T dp_t    dL/dW = sum dp_t x_t^T    dL/db = sum dp_t
        dL/dh_{t-1} has U^T dq_t    dL/dU = sum dq_t h_{t-1}^T    dL/dc = sum dq_t
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, W: Tensor, U: Tensor, b: Tensor, c: Tensor, sizes: list[int]
    ) -> Tensor:
        """Return the states (tokens, width) of x (tokens, in), laid out as a PackedSequence."""
        tokens, width = len(x), U.shape[1]
        is_autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if is_autocast else x.dtype
        x, W, U = whole_rows(x, dtype), W.to(dtype), U.to(dtype)
        h, q = b.new_zeros(sizes[0], width), c.repeat(sizes[0], 1)
        states, ctx.steps = [], []
        for number, p in enumerate((x @ W.T)[:tokens].split(sizes)):
            p, h = p.to(b.dtype).add_(b), h[: len(p)]
            if number:
                q = add_product(c, h, U.T)
            r, z = q[:, : 2 * width].add_(p[:, : 2 * width]).sigmoid_().chunk(2, dim=1)
            q_n = q[:, 2 * width :]
            n = torch.addcmul(p[:, 2 * width :], r, q_n).tanh_()
            ctx.steps.append((h, r, z, q_n, n))
            states.append(h := torch.lerp(n, h, z))
        ctx.save_for_backward(x, W, U)
        ctx.sizes = sizes
        return torch.cat(states)  # another tensor than those in ctx, or they would form a circle

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        """g (tokens, width)."""
        (x, W, U), tokens = ctx.saved_tensors, len(g)
        dp, dq = (x.new_empty(len(x), len(U)) for _ in range(2))
        dp[tokens:] = dq[tokens:] = 0
        db, dc = (g.new_zeros(len(U)) for _ in range(2))
        grads, dps, dqs = (rows[:tokens].split(ctx.sizes) for rows in (g.clone(), dp, dq))
        for number in reversed(range(len(grads))):
            h, r, z, q_n, n = ctx.steps[number]
            dh = grads[number] * z
            dn = tanh_backward(grads[number] - dh, n)
            dr = sigmoid_backward(dn * q_n, r)
            dz = sigmoid_backward(grads[number] * (h - n), z)
            of_p, of_q = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
            for whole, rows, part in ((db, dps[number], of_p), (dc, dqs[number], of_q)):
                whole += part.sum(dim=0)
                rows.copy_(part)
            if number:
                some = grads[number - 1][: len(dh)]
                some += (whole_rows(dqs[number], U.dtype) @ U)[: len(some)].to(g.dtype)
                some += dh
        h = whole_rows(torch.cat([h for h, *_ in ctx.steps]), U.dtype)
        return (dp @ W)[:tokens], dp.T @ x, dq.T @ h, db, dc, None


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
