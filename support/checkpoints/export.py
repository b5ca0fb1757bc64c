"""Write a saved model in a form that needs nothing of this project.

A teacher becomes a plain Hugging Face folder, base and adapter merged; a student becomes
`student.onnx` with its tokenizer.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from support import VERSION
from support.bases import Base, save_tokenizer
from support.checkpoints.students import STUDENT
from support.errors import UserError
from support.files import cannot_write, write_bytes

LABELS = {0: "unacceptable", 1: "acceptable"}


def save_merged(classifier: nn.Module, base: Base, target: Path) -> None:
    """Write a merged classifier as a Hugging Face model, with its base's tokenizer.

    ``AutoModelForSequenceClassification`` and ``pipeline`` load it, in batches too: both pad with
    the end-of-text token, after the sentence, and read the last token before it.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    config = AutoConfig.from_pretrained(
        base.folder,
        num_labels=2,
        id2label=LABELS,
        label2id={name: label for label, name in LABELS.items()},
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    model.load_state_dict(classifier.state_dict())
    write_files(target, model.save_pretrained)
    write_files(target, tokenizer.save_pretrained)


def write_files(folder: Path, save: Callable[[Path], object]) -> None:
    """Have a library's ``save`` write files somewhere, and move each into ``folder`` whole.

    Every file can be read by whom the umask allows; the library that writes weights lets their
    owner alone. What a crash leaves is cleared by the next call.
    """
    partial, umask = folder / ".partial", os.umask(0)
    os.umask(umask)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save(partial)
        for path in sorted(partial.iterdir()):
            path.chmod(0o666 & ~umask)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(path, folder / path.name)
    except OSError as error:
        raise cannot_write(folder, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_onnx(model: nn.Module, tokenizer: Tokenizer, source: Path, target: Path) -> None:
    """Write a student as ONNX (opset 17), for onnxruntime and others, with its tokenizer.

    Inputs, both int64: ``input_ids (batch, time)``, padded with any of the tokenizer's ids, and
    ``lengths (batch,)``. Output: ``logits (batch, 2)``. The graph is written node by node: ONNX's
    RNN reads each sentence to its own length, and no example batch is traced whose shape could be
    frozen into it.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError:
        raise UserError("a student as ONNX: pip install -r requirements-export.txt") from None
    rnn, width = dict(model.rnn.named_parameters()), model.rnn.hidden_size
    constants = {
        "rows": model.rows(torch.arange(tokenizer.get_vocab_size())),
        "embedding": model.embedding.weight,
        "W": rnn["weight_ih_l0"].unsqueeze(0),  # (directions, width, width)
        "R": rnn["weight_hh_l0"].unsqueeze(0),
        "B": torch.cat([rnn["bias_ih_l0"], rnn["bias_hh_l0"]]).unsqueeze(0),
        "directions": torch.tensor([0]),
        "linear.weight": model.linear.weight,
        "linear.bias": model.linear.bias,
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["rows", "input_ids"], ["row"]),  # (batch, time)
        node("Gather", ["embedding", "row"], ["embedded"]),  # (batch, time, width)
        node("Transpose", ["embedded"], ["X"], perm=[1, 0, 2]),  # (time, batch, width)
        node("Cast", ["lengths"], ["lengths32"], to=TensorProto.INT32),  # as RNN wants them
        node("RNN", ["X", "W", "R", "B", "lengths32"], ["", "last"], hidden_size=width),
        node("Squeeze", ["last", "directions"], ["state"]),  # (batch, width)
        node("Gemm", ["state", "linear.weight", "linear.bias"], ["logits"], transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        STUDENT,
        [
            value("input_ids", TensorProto.INT64, ["batch", "time"]),
            value("lengths", TensorProto.INT64, ["batch"]),
        ],
        [value("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(t.detach().numpy(), name) for name, t in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx_model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    labels = {f"label_{label}": name for label, name in LABELS.items()}
    facts = {**labels, "tokenizer": "tokenizer.json", "version": VERSION}
    helper.set_model_props(onnx_model, facts)
    checker.check_model(onnx_model, full_check=True)
    write_bytes(target / "student.onnx", onnx_model.SerializeToString())
    save_tokenizer(tokenizer, source, target)


def onnx_session(path: Path):
    """Return an onnxruntime session for a student, on as many threads as PyTorch uses."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime: pip install -r requirements-export.txt") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
