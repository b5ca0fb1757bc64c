"""How large and how fast is each model that was kept?"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from data_utils import DEV, Split, by_length, read_split, tokenize, within_budget
from model import DistilRNN
from support.checkpoints.export import onnx_session, save_onnx
from support.checkpoints.students import load_checkpoint
from support.devices import CPU
from support.errors import UserError
from support.reporting.finished import Run
from train_utils import MAX_TOKENS, predict_logits

EXPORTED = "distil as ONNX"


def measure_inference(runs: list[Run]) -> dict[str, dict]:
    """Size and CPU speed of one variant's models by mode, and of the taught student as ONNX.

    The models take turns on in_domain_dev; the best of three counts. What cannot be measured has
    the reason instead.
    """
    judges: dict[str, Callable] = {}
    measured: dict[str, dict] = {}
    sentences = 0
    for run in runs:
        source = Path(run.metrics["data"]["folder"], "raw", f"{DEV}.tsv")
        name = run.mode
        try:
            model, tokenizer, max_length = load_checkpoint(run.folder, run.metrics["base"]["name"])
            split = tokenize(tokenizer, *read_split(source), max_length, str(source))
            size, sentences = sum(t.nbytes for t in model.state_dict().values()), len(split)
            judges[name] = partial(predict_logits, model, split, CPU)
            measured[name] = {"bytes": size, "sentences_per_second": 0.0}
            if run.mode == "distil":
                name = EXPORTED
                size, judges[name] = exported(model, tokenizer.get_vocab_size(), split)
                measured[name] = {"bytes": size, "sentences_per_second": 0.0}
        except UserError as error:
            measured[name] = {"reason": str(error)}
    for _ in tqdm(range(4), desc="timing the models", disable=None, leave=False):
        for name, judge in judges.items():
            began, best = time.perf_counter(), measured[name]["sentences_per_second"]
            judge()
            rate = sentences / (time.perf_counter() - began)
            measured[name]["sentences_per_second"] = max(rate, best)  # the first only warms up
    return measured


def exported(model: DistilRNN, vocabulary_size: int, split: Split) -> tuple[int, Callable]:
    """The size of a student as ONNX, and a function that judges a split with it."""
    with TemporaryDirectory() as folder:
        save_onnx(model, vocabulary_size, path := Path(folder, "student.onnx"))
        size, session = path.stat().st_size, onnx_session(path)
    ends = split.cu_seqlens.tolist()
    batches = []
    for indices in within_budget(split, by_length(split), MAX_TOKENS):
        rows = [split.input_ids[ends[i] : ends[i + 1]] for i in indices]
        lengths = split.seqlens[indices].astype(np.int32)
        batches.append({"input_ids": pad_sequence(rows, True).numpy(), "lengths": lengths})
    return size, lambda: [session.run(None, batch) for batch in batches]
