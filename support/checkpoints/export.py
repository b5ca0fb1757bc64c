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
from support.bases import Base, load_auto_tokenizer, save_tokenizer
from support.bases.pretrained import read_pretrained
from support.checkpoints.students import STUDENT
from support.decisions import SOFTMAX, Decision
from support.errors import UserError
from support.files import cannot_write, write_bytes
from support.recurrence import is_plain

LABELS = {0: "unacceptable", 1: "acceptable"}
# By a layer's ``mode``: ONNX's cell, its order of PyTorch's gates, and its settings.
ONNX_CELLS = {
    "RNN_TANH": ("RNN", (0,), {"activations": ["Tanh"]}),
    "RNN_RELU": ("RNN", (0,), {"activations": ["Relu"]}),
    "GRU": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "LSTM": ("LSTM", (0, 3, 1, 2), {}),
}


def save_merged(classifier: nn.Module, base: Base, target: Path) -> None:
    """Write a merged classifier as a Hugging Face model, with its base's tokenizer.

    ``AutoModelForSequenceClassification`` and ``pipeline`` load it, in batches too: both pad with
    the end-of-text token, after the sentence, and read the last token before it.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = load_auto_tokenizer(base.folder)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    config = read_pretrained(
        AutoConfig,
        base.folder,
        num_labels=2,
        id2label=LABELS,
        label2id={name: label for label, name in LABELS.items()},
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
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


def save_onnx(
    model: nn.Module, tokenizer: Tokenizer, source: Path, target: Path, decision: Decision = SOFTMAX
) -> None:
    """Write a student as ONNX (opset 17), for onnxruntime and others, with its tokenizer.

    Inputs, both int64: ``input_ids (batch, time)``, padded with any of the tokenizer's ids, and
    ``lengths (batch,)``. Outputs: ``logits (batch, 2)`` and ``p_acceptable (batch,)``; what margin
    of the logits decides stands in the metadata. The graph is written node by node: ONNX's cells
    read each sentence to its own length, and no example batch is traced whose shape could be frozen
    into it.
    """
    rnn = model.rnn
    if not is_plain(rnn):
        raise UserError(f"{source}: a student's cell {model.cell} cannot be written as ONNX here")
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError:
        raise UserError("a student as ONNX: pip install -r requirements-export.txt") from None
    constants = {
        "rows": model.rows(torch.arange(tokenizer.get_vocab_size())),
        "embedding": model.embedding.weight,
        "first": torch.tensor([0]),  # axes
        "direction": torch.tensor([1]),
        "linear.weight": model.linear.weight,
        "linear.bias": model.linear.bias,
        "slopes": torch.tensor([-decision.slope, decision.slope]),
        "intercept": torch.tensor(decision.intercept),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["rows", "input_ids"], ["row"]),  # (batch, time)
        node("Gather", ["embedding", "row"], ["embedded"]),  # (batch, time, width)
        node("Transpose", ["embedded"], ["X0"], perm=[1, 0, 2]),  # (time, batch, width)
        node("Cast", ["lengths"], ["lengths32"], to=TensorProto.INT32),  # as cells want them
    ]
    kind, order, settings = ONNX_CELLS[rnn.mode]
    for n, weights in enumerate(rnn.all_weights, start=1):
        blocks = (tensor.chunk(len(order)) for tensor in weights)
        W, R, b, c = (torch.cat([some[gate] for gate in order]) for some in blocks)
        named = {f"W{n}": W, f"R{n}": R, f"B{n}": torch.cat([b, c])}
        constants |= {name: tensor.unsqueeze(0) for name, tensor in named.items()}  # one direction
        inputs = [f"X{n - 1}", *named, "lengths32"]
        nodes += [
            node(kind, inputs, [f"Y{n}", f"last{n}"], hidden_size=rnn.hidden_size, **settings),
            node("Squeeze", [f"Y{n}", "direction"], [f"X{n}"]),  # (time, batch, width)
        ]
    nodes += [
        node("Squeeze", [f"last{n}", "first"], ["state"]),  # (batch, width)
        node("Gemm", ["state", "linear.weight", "linear.bias"], ["logits"], transB=1),
        node("MatMul", ["logits", "slopes"], ["sloped"]),  # (batch,)
        node("Add", ["sloped", "intercept"], ["log_odds"]),
        node("Sigmoid", ["log_odds"], ["p_acceptable"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        STUDENT,
        [
            value("input_ids", TensorProto.INT64, ["batch", "time"]),
            value("lengths", TensorProto.INT64, ["batch"]),
        ],
        [
            value("logits", TensorProto.FLOAT, ["batch", 2]),
            value("p_acceptable", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(t.detach().numpy(), name) for name, t in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx_model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    labels = {f"label_{label}": name for label, name in LABELS.items()}
    edges = {"threshold": decision.threshold}
    edges |= {f"threshold_{rule}": edge for rule, edge in (decision.thresholds or {}).items()}
    facts = {**labels, "tokenizer": "tokenizer.json", "version": VERSION}
    facts |= {name: str(edge) for name, edge in edges.items()}
    helper.set_model_props(onnx_model, facts)
    checker.check_model(onnx_model, full_check=True)
    write_bytes(target / "student.onnx", onnx_model.SerializeToString())
    save_tokenizer(tokenizer, source, target)
