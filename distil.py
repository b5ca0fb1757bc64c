"""Knowledge distillation: the loss, the teacher's logits, the transfer set, the student's run.

A teacher's softened probabilities tell a student more than a label does (Hinton, Vinyals and Dean
2015, https://arxiv.org/abs/1503.02531). Their loss, section 2, as used here:

    kd_alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - kd_alpha) * CE

The gradient of the softened term with respect to the student's logits shrinks as 1 / T^2; the
factor T^2 restores it, so that kd_alpha keeps its meaning when the temperature changes.

A teacher that knows its training sentences by heart has little to add on those. The transfer set
is where it can: variations of the training sentences that nobody has labelled but the teacher.
"""

import random
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils import (
    DEV,
    OUT_OF_DOMAIN,
    TRAIN,
    UNLABELLED,
    Batch,
    Split,
    UserError,
    corpus_fingerprint,
    fingerprint,
    load_corpus,
    tokenize,
)
from lora import CONFIG as ADAPTER_CONFIG
from lora import load_adapter
from model import DistilRNN, load_tokenizer, max_length, variant_folder
from train_utils import (
    Compute,
    Loss,
    Totals,
    check_tensors,
    cross_entropy,
    predict_logits,
    read_json,
    read_tensors,
    run_folder,
    run_training,
    write_bytes,
    write_files,
    write_json,
    write_tensors,
)

STUDENT = "distil_rnn"  # the model_type in a student's config.json


# ---------------------------------------------------------------------------------------------
# The loss


def distillation(temperature: float, kd_alpha: float) -> Loss:
    """The loss above: the KD term is the mean over all sentences of the batch, the cross-entropy
    the mean over its labelled ones.
    """

    def loss(logits: Tensor, examples: Batch | Split, totals: Totals) -> Tensor:
        divergence = F.kl_div(
            F.log_softmax(logits / temperature, dim=1),
            F.log_softmax(examples.teacher_logits / temperature, dim=1),
            reduction="sum",
            log_target=True,
        )
        soft = temperature**2 * divergence / totals.sentences
        return kd_alpha * soft + (1 - kd_alpha) * cross_entropy(logits, examples, totals)

    return loss


# ---------------------------------------------------------------------------------------------
# The transfer set


def transfer_set(sentences: list[str], size: int, sr_no: int, excluded: set[str]) -> list[str]:
    """Variations of ``sentences``, a function of the arguments alone.

    Each has one edit: two words swapped, a word dropped, a word of the corpus inserted, or a word
    replaced by one of like form, with the same three letters at its beginning or the same two at
    its end. The capital at the start and the mark at the end stay in their places, so that they do
    not give an edit away.

    Args:
        sentences: the training sentences.
        size: how many variations are wanted; all differ, from each other and from ``sentences``.
        sr_no: the seed.
        excluded: sentences that must not come out, the dev sets'.

    Raises:
        UserError: where the sentences do not allow so many.
    """
    rng = random.Random(f"transfer set {sr_no}")
    midwords = {word for sentence in sentences for word in sentence.split()[1:]}
    takes = [take for take in (_words(s, midwords) for s in sentences) if take[0]]
    words = [word for take, _ in takes for word in take]
    like: dict[str, list[str]] = {}
    for word in dict.fromkeys(words):
        for edit in ("begin", "end"):
            like.setdefault(_form(word, edit), []).append(word)
    known = excluded | set(sentences)
    found: dict[str, None] = {}  # in the order of their making
    for _ in range(20 * size + 1000):
        if len(found) == size or not takes:
            break
        take, mark = rng.choice(takes)
        sentence = " ".join(_edited(take, words, like, rng)) + mark
        sentence = sentence[:1].upper() + sentence[1:]
        if sentence not in known:
            found[sentence] = None
    if len(found) < size:
        raise UserError(
            f"--transfer_size {size}: only {len(found)} variations of the training sentences were "
            "found; ask for at most that many"
        )
    return list(found)


def _words(sentence: str, midwords: set[str]) -> tuple[list[str], str]:
    """A sentence's words, the first one as it is written mid-sentence, and its final mark."""
    bare = sentence.rstrip(" .?!")
    words = bare.split()
    if words and words[0] not in midwords and words[0].lower() in midwords:
        words[0] = words[0].lower()
    return words, sentence[len(bare) :]


def _form(word: str, edit: str) -> str:
    """The key of the words of like form: "sle-" for sleep, sleeps, "-ps" for sleeps, jumps."""
    return word[:3].lower() + "-" if edit == "begin" else "-" + word[-2:]


def _edited(
    take: list[str], words: list[str], like: dict[str, list[str]], rng: random.Random
) -> list[str]:
    """A copy of ``take`` with one edit; at least one word stays."""
    take, place = list(take), rng.randrange(len(take))
    edit = rng.choice(("swap", "drop", "insert", "begin", "end"))
    if edit == "swap":
        other = rng.randrange(len(take))
        take[place], take[other] = take[other], take[place]
    elif edit == "insert":
        take.insert(place, rng.choice(words))
    elif edit in ("begin", "end"):
        take[place] = rng.choice(like[_form(take[place], edit)])
    elif len(take) > 1:
        del take[place]
    return take


# ---------------------------------------------------------------------------------------------
# Teacher and student


def load_teacher(args: Namespace) -> tuple[nn.Module, dict[str, str]]:
    """Load the teacher that the options name; returns it, and its folder and fingerprint.

    Raises:
        UserError: saying which command makes one, where there is none.
    """
    folder = args.teacher or run_folder(args, "LoRA")
    if not (folder / ADAPTER_CONFIG).exists():
        raise UserError(
            f"{folder}: no teacher there; run: python run.py --mode LoRA --gpt_variant "
            f"{args.gpt_variant} --sr_no {args.sr_no} --out_dir {args.out_dir}, or name one with "
            "--teacher"
        )
    adapter = load_adapter(folder, args.gpt_variant)
    return adapter.merged(), {"folder": str(folder), "fingerprint": adapter.fingerprint}


def add_teacher_logits(
    corpus: dict[str, Split], teacher: nn.Module, teacher_print: str, compute: Compute, path: Path
) -> None:
    """Give the training sentences and in_domain_dev their ``teacher_logits``.

    The teacher is frozen, so one pass serves all epochs. The logits are kept at ``path`` and
    computed anew when the teacher, the sentences or the tokens are others.
    """
    key = fingerprint(teacher_print, corpus_fingerprint(corpus), compute.precision)
    found, metadata = {}, {}
    with suppress(UserError):  # no file, or a broken one: its content can be computed again
        found, metadata = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if metadata.get("key") != key or shapes != {n: (len(corpus[n]), 2) for n in (TRAIN, DEV)}:
        teacher.to(compute.device)
        found = {
            name: predict_logits(teacher, corpus[name], compute, f"teacher reads {name}")
            for name in (TRAIN, DEV)
        }
        write_tensors(path, found, {"key": key})
    for name in (TRAIN, DEV):
        corpus[name].teacher_logits = found[name]


def save_student(model: DistilRNN, tokenizer, positions: int, folder: Path) -> None:
    """Write a student with its tokenizer: the folder is complete by itself."""
    write_files(folder, tokenizer.save_pretrained)
    write_json(folder / "config.json", {"model_type": STUDENT, "n_positions": positions})
    write_tensors(folder / "model.safetensors", model.state_dict(), {})


def load_student(folder: Path) -> DistilRNN:
    """Read what `save_student` wrote.

    Raises:
        UserError: where a file is missing, broken or of other shapes.
    """
    path = folder / "model.safetensors"
    tensors, _ = read_tensors(path)
    try:
        vocabulary, width = tensors["vocabulary"], tensors["linear.weight"].shape[1]
        flat = vocabulary.dtype == torch.long and vocabulary.ndim == 1
        rising = flat and bool((vocabulary.diff() > 0).all())
        with torch.device("meta"):  # shapes alone: nothing is allocated for a file that lies
            model = DistilRNN(vocabulary, width)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError):
        rising = False
    if not rising or not len(vocabulary):
        raise UserError(f"{path}: not the weights of a student; train it again with --overwrite")
    expected = model.state_dict()
    check_tensors(path, tensors, expected)
    typed = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    model.load_state_dict(typed, assign=True)
    return model.requires_grad_(False).eval()


def save_onnx(model: DistilRNN, vocabulary_size: int, path: Path) -> None:
    """Write a student as ONNX (opset 17), for onnxruntime and others; needs the package onnx.

    Inputs ``input_ids (batch, time)`` int64, padded with any of the tokenizer's ids, and
    ``lengths (batch,)`` int32; output ``logits (batch, 2)``. The graph is written node by node:
    ONNX's RNN reads each sentence to its own length, and no example batch is traced whose shape
    could be frozen into it.

    Raises:
        UserError: where onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError:
        raise UserError(
            "--mode export: a student needs onnx: pip install -r requirements-export.txt"
        ) from None
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
    """An onnxruntime session for what `save_onnx` wrote, on as many threads as PyTorch uses.

    Raises:
        UserError: where onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime: pip install -r requirements-export.txt") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load_checkpoint(folder: Path, variant: str | None = None):
    """Load any saved model, teacher or student, recognised by what its folder contains.

    Args:
        folder: the checkpoint.
        variant: the base of a teacher; None takes the one that it names.

    Returns:
        The model, its tokenizer, and the longest sentence it takes, in tokens.

    Raises:
        UserError: where the folder holds neither, or a file is broken.
    """
    if (folder / ADAPTER_CONFIG).exists():
        adapter = load_adapter(folder, variant)
        base = adapter.base_folder
        return adapter.merged(), load_tokenizer(base), max_length(base)
    if (folder / "config.json").exists():
        config = read_json(folder / "config.json")
        if config.get("model_type") == STUDENT:
            positions = config.get("n_positions")
            if not isinstance(positions, int):
                raise UserError(f"{folder / 'config.json'}: n_positions = {positions!r}")
            return load_student(folder), load_tokenizer(folder), positions
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder; --mode LoRA, rnn or distil make one")
    raise UserError(
        f"{folder}: neither a LoRA adapter ({ADAPTER_CONFIG}) nor a student (config.json with "
        f"model_type {STUDENT})"
    )


# ---------------------------------------------------------------------------------------------
# The run


def run_student(args: Namespace, mode: str) -> Path:
    """Train the student, with a teacher (``distil``) or without (``rnn``), or show the run.

    Returns:
        The run's folder.
    """
    taught = mode == "distil"
    base_folder = variant_folder(args.gpt_variant, weights=taught)
    tokenizer, positions = load_tokenizer(base_folder), max_length(base_folder)
    corpus = load_corpus(args.data_dir, tokenizer, positions)
    sources: dict[str, dict] = {"base": {"name": args.gpt_variant, "fingerprint": None}}
    options = {}
    if taught:
        teacher, sources["teacher"] = load_teacher(args)
        names = ("kd_temperature", "kd_alpha", "transfer_size")
        options = {name: getattr(args, name) for name in names}

    def prepare(folder: Path, compute: Compute) -> tuple[nn.Module, Loss]:
        loss = cross_entropy
        if taught:
            if args.transfer_size:
                corpus[TRAIN] = with_transfer_set(corpus, tokenizer, positions, args)
            cache = folder / "teacher_logits.safetensors"
            add_teacher_logits(corpus, teacher, sources["teacher"]["fingerprint"], compute, cache)
            loss = distillation(args.kd_temperature, args.kd_alpha)
        torch.manual_seed(args.sr_no)
        return DistilRNN(corpus[TRAIN].input_ids.unique()), loss

    def save(model: DistilRNN, folder: Path) -> None:
        save_student(model, tokenizer, positions, folder)

    return run_training(args, mode, corpus, sources, options, prepare, save)


def with_transfer_set(
    corpus: dict[str, Split], tokenizer, positions: int, args: Namespace
) -> Split:
    """The training split and ``args.transfer_size`` unlabelled variations of its sentences."""
    known = corpus[TRAIN]
    excluded = {*corpus[DEV].sentences, *corpus[OUT_OF_DOMAIN].sentences}
    made = transfer_set(known.sentences, args.transfer_size, args.sr_no, excluded)
    labels = known.labels.tolist() + [UNLABELLED] * len(made)
    return tokenize(tokenizer, known.sentences + made, labels, positions, "the transfer set")
