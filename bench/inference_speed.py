"""Judge a split with an exported student, for its speed."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence

from data_utils import MAX_TOKENS, Split, by_length, within_budget
from model import DistilRNN
from support.checkpoints.export import onnx_session, save_onnx


def exported(model: DistilRNN, tokenizer: Tokenizer, source: Path, split: Split) -> Callable:
    """Return a function that judges a split with a student as ONNX."""
    with TemporaryDirectory() as folder:
        save_onnx(model, tokenizer, source, Path(folder))
        session = onnx_session(Path(folder, "student.onnx"))
    ends, batches = split.cu_seqlens.tolist(), []
    for indices in within_budget(split, by_length(split), MAX_TOKENS):
        rows = [split.input_ids[ends[i] : ends[i + 1]] for i in indices]
        lengths = split.seqlens[indices]
        batches.append({"input_ids": pad_sequence(rows, True).numpy(), "lengths": lengths})
    return lambda: [session.run(None, batch) for batch in batches]
