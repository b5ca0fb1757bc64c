"""Judge a split with an exported student, in onnxruntime."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence

from data_utils import MAX_TOKENS, Split, by_length, within_budget
from student import DistilRNN
from support.checkpoints.export import save_onnx


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
    return lambda: [session.run(["logits"], batch) for batch in batches]


def onnx_session(path: Path) -> onnxruntime.InferenceSession:
    """Return a session of a student, on as many threads as PyTorch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
