"""How does a checkpoint leave this project?

A teacher becomes a plain Hugging Face folder, base and adapter merged; a student becomes
`student.onnx` with its tokenizer.
"""

from argparse import Namespace
from pathlib import Path

import torch

from model import DistilRNN
from support.bases.tokens import save_tokenizer
from support.checkpoints.peft_files import CONFIG as ADAPTER_CONFIG
from support.checkpoints.students import STUDENT, load_checkpoint, load_merged
from support.errors import UserError
from support.files import write_bytes, write_files
from support.runs.folder import run_folder


def run_export(args: Namespace) -> None:
    """Write a checkpoint, in a form that needs nothing of ours, to ``<out_dir>/exports/``."""
    folder = args.checkpoint or run_folder(args, "LoRA")
    target = args.out_dir / "exports" / folder.resolve().name
    if (folder / ADAPTER_CONFIG).exists():
        save_merged(folder, args.gpt_variant if "gpt_variant" in args.given else None, target)
        print(f"{target}: transformers.AutoModelForSequenceClassification.from_pretrained loads it")
    else:
        model, tokenizer, _ = load_checkpoint(folder)
        save_onnx(model, tokenizer.get_vocab_size(), target / "student.onnx")
        save_tokenizer(tokenizer, folder, target)
        print(f"{target / 'student.onnx'}: inputs input_ids (batch, time) and lengths (batch,)")


def save_merged(folder: Path, variant: str | None, target: Path) -> None:
    """Write base and adapter as one plain Hugging Face model, with its tokenizer.

    ``AutoModelForSequenceClassification`` loads it without PEFT and without this project.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    merged, _, base, *_ = load_merged(folder, variant)
    tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    config = AutoConfig.from_pretrained(
        base.folder,
        num_labels=2,
        id2label={0: "unacceptable", 1: "acceptable"},
        label2id={"unacceptable": 0, "acceptable": 1},
        pad_token_id=tokenizer.eos_token_id,  # needed to find each sentence's last token
    )
    model = AutoModelForSequenceClassification.from_config(config)
    model.load_state_dict(merged.state_dict())
    write_files(target, model.save_pretrained)
    write_files(target, tokenizer.save_pretrained)


def save_onnx(model: DistilRNN, vocabulary_size: int, path: Path) -> None:
    """Write a student as ONNX (opset 17), for onnxruntime and others.

    Inputs ``input_ids (batch, time)`` int64, padded with any of the tokenizer's ids, and
    ``lengths (batch,)`` int32; output ``logits (batch, 2)``. The graph is written node by node:
    ONNX's RNN reads each sentence to its own length, and no example batch is traced whose shape
    could be frozen into it.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError:
        raise UserError("a student as ONNX: pip install -r requirements-export.txt") from None
    rnn, width = dict(model.rnn.named_parameters()), model.rnn.hidden_size
    constants = {
        "rows": model.rows(torch.arange(vocabulary_size)),
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
        node("RNN", ["X", "W", "R", "B", "lengths"], ["", "last"], hidden_size=width),
        node("Squeeze", ["last", "directions"], ["state"]),  # (batch, width)
        node("Gemm", ["state", "linear.weight", "linear.bias"], ["logits"], transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        STUDENT,
        [
            value("input_ids", TensorProto.INT64, ["batch", "time"]),
            value("lengths", TensorProto.INT32, ["batch"]),
        ],
        [value("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(t.detach().numpy(), name) for name, t in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx_model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    checker.check_model(onnx_model, full_check=True)
    write_bytes(path, onnx_model.SerializeToString())


def onnx_session(path: Path):
    """An onnxruntime session for what `save_onnx` wrote, on as many threads as PyTorch uses."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime: pip install -r requirements-export.txt") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
