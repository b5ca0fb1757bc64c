"""Write a saved model in a form that needs nothing of this project.

A teacher becomes a plain Hugging Face folder, base and adapter merged; a student becomes
`student.onnx` with its tokenizer.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from support import VERSION
from support.bases import Base, load_auto_tokenizer, save_tokenizer
from support.bases.pretrained import read_pretrained
from support.decisions import SOFTMAX, Decision
from support.errors import UserError
from support.files import cannot_write, write_bytes
from support.sentences import COLA_CLASSES

# By a layer's ``mode``: ONNX's cell, its settings, and its order of PyTorch's gates.
ONNX_CELLS = {
    "RNN_TANH": ("RNN", 'activations = ["Tanh"], ', [0]),
    "RNN_RELU": ("RNN", 'activations = ["Relu"], ', [0]),
    "GRU": ("GRU", "linear_before_reset = 1, ", [1, 0, 2]),
    "LSTM": ("LSTM", "", [0, 3, 1, 2]),
}
# Every layer of the student stands between the two parts; 6 is int32, as cells want lengths.
OPENING = """<ir_version: 9, opset_import: ["": 17]>
distil_rnn (int64[batch, time] input_ids, int64[batch] lengths)
    => (float[batch, 2] logits, float[batch] p_acceptable) {
    row = Gather (rows, input_ids)
    embedded = Gather (embedding, row)
    steps = Cast <to = 6> (lengths)
    X0 = Transpose <perm = [1, 0, 2]> (embedded)
"""
LAYER = """
    Y{n}, last{n} = {cell} <{settings}hidden_size = {width}> (X{before}, W{n}, R{n}, B{n}, steps)
    X{n} = Squeeze (Y{n}, direction)
"""
CLOSING = """
    state = Squeeze (last%d, first)
    logits = Gemm <transB = 1> (state, weight, bias)
    sloped = MatMul (logits, slopes)
    log_odds = Add (sloped, intercept)
    p_acceptable = Sigmoid (log_odds)
}"""


def save_merged(
    classifier: nn.Module, base: Base, target: Path, classes: Sequence[str] = COLA_CLASSES
) -> None:
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
        id2label=dict(enumerate(classes)),
        label2id={name: label for label, name in enumerate(classes)},
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    model.load_state_dict(classifier.state_dict())
    write_files(target, tokenizer.save_pretrained)
    write_files(target, model.save_pretrained)


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
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            path.chmod(0o666 & ~umask)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            place = folder / path.relative_to(partial)  # a tokenizer may have folders of templates
            place.parent.mkdir(exist_ok=True)
            os.replace(path, place)
    except OSError as error:
        raise cannot_write(folder, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_onnx(
    model: nn.Module,
    tokenizer: Tokenizer,
    source: Path,
    target: Path,
    decision: Decision = SOFTMAX,
    classes: Sequence[str] = COLA_CLASSES,
) -> None:
    """Write a student as ONNX (opset 17), for onnxruntime and others, with its tokenizer.

    Inputs, both int64: ``input_ids (batch, time)``, padded with any of the tokenizer's ids, and
    ``lengths (batch,)``. Outputs: ``logits (batch, 2)`` and ``p_acceptable (batch,)``; what margin
    of the logits decides stands in the metadata. The graph is written as text: ONNX's cells read
    each sentence to its own length, and no example batch is traced whose shape could be frozen
    into it.
    """
    try:
        from onnx import checker, helper, numpy_helper, parser
    except ImportError:
        raise UserError("a student as ONNX: pip install -r requirements-export.txt") from None
    constants = {
        "rows": model.rows(torch.arange(tokenizer.get_vocab_size())),
        "embedding": model.embedding.weight,
        "first": torch.tensor([0]),  # axes
        "direction": torch.tensor([1]),
        "weight": model.linear.weight,
        "bias": model.linear.bias,
        "slopes": torch.tensor([-decision.slope, decision.slope]),
        "intercept": torch.tensor(decision.intercept),
    }
    rnn = model.rnn
    if type(rnn) not in (nn.RNN, nn.GRU, nn.LSTM) or rnn.bidirectional or not rnn.bias:
        raise UserError(f"{source}: a student's cell {model.cell} cannot be written as ONNX here")
    cell, settings, order = ONNX_CELLS[rnn.mode]
    text, width = OPENING, rnn.hidden_size
    for n, weights in enumerate(rnn.all_weights, start=1):
        text += LAYER.format(n=n, before=n - 1, cell=cell, settings=settings, width=width)
        gates = (tensor.chunk(len(order)) for tensor in weights)
        W, R, b, c = (torch.cat([some[gate] for gate in order]) for some in gates)
        for name, tensor in (("W", W), ("R", R), ("B", torch.cat([b, c]))):
            constants[f"{name}{n}"] = tensor.unsqueeze(0)  # of the one direction
    onnx_model = parser.parse_model(text + CLOSING % n)
    onnx_model.graph.initializer.extend(
        numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in constants.items()
    )
    edges = {"threshold": decision.threshold}
    edges |= {f"threshold_{rule}": edge for rule, edge in (decision.thresholds or {}).items()}
    facts = {f"label_{label}": name for label, name in enumerate(classes)}
    facts |= {"tokenizer": "tokenizer.json", "version": VERSION}
    facts |= {name: str(edge) for name, edge in edges.items()}
    helper.set_model_props(onnx_model, facts)
    checker.check_model(onnx_model, full_check=True)
    write_bytes(target / "student.onnx", onnx_model.SerializeToString())
    save_tokenizer(tokenizer, source, target)
