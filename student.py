"""The student: embedding, recurrent layers, and a linear layer on each sentence's last state."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from data_utils import Batch
from model import Head, Outputs
from support.checkpoints.students import read_student
from support.errors import UserError
from support.files import copy_tensors
from support.recurrence import recurrent_states

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class DistilRNN(nn.Module):
    """Embedding, recurrent layers, linear to 2 classes, on the last token's state.

    The published student has one tanh layer (Elman 1990).

    Only the tokens of the training sentences have rows in the embedding: about 6,400 of GPT-2's
    50,257 for CoLA. Training is the same, since Adam never moves a row that gets no gradient. Every
    other token reads one row of zeros: the student knows nothing of it.
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
