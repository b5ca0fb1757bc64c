"""Knowledge distillation: the loss, the teacher's logits, the student's run.

A teacher's softened probabilities tell a student more than a label does (Hinton, Vinyals and Dean
2015, https://arxiv.org/abs/1503.02531). Their loss, section 2, as used here:

    kd_alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - kd_alpha) * CE

The gradient of the softened term with respect to the student's logits shrinks as 1 / T^2; the
factor T^2 restores it, so that kd_alpha keeps its meaning when the temperature changes.

A teacher that knows its training sentences by heart has little to add on those. The transfer set
(support/transfer_set.py) is where it can: sentences that nobody has labelled but the teacher.

One answer a sentence is still little. Hints (FitNets, Romero et al. 2015, section 2.2,
https://arxiv.org/abs/1412.6550) are what the teacher thinks at every token: the leading components
of its final hidden state (support/teacher_states.py), which a linear projection of the student's
own state is to meet,

    hint_weight * mean over tokens and dimensions of (P student's state - hints)^2

The projection P serves this alone; the student that is kept does not have it.
"""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils import DEV, TRAIN, Batch, Split, corpus_fingerprint
from model import DistilRNN
from support.bases.loading import Base
from support.checkpoints.students import load_teacher, save_student
from support.devices import Device, choose_device, keep_freed_memory
from support.errors import UserError
from support.files import write_tensors
from support.fingerprints import fingerprint
from support.processes import is_main, sum_over_processes
from support.reporting.metrics import show_run
from support.runs.folder import claim, describe_run, run_folder
from support.teaching.answers import Basis, kept, principal_components, read_states
from support.teaching.edits import with_transfer_set
from support.teaching.written import written_sentences
from train_utils import (
    Counts,
    Loss,
    Recipe,
    Training,
    count_parameters,
    cross_entropy,
    evaluate,
    predict_logits,
    train,
)

if TYPE_CHECKING:  # it imports transformers, which a student does not need
    from support.checkpoints.adapters import Adapter

STUDENT_OPTIONS = ("student_width", "student_dropout", "held_out")
DISTIL_OPTIONS = (
    "kd_temperature",
    "kd_alpha",
    "transfer_size",
    "transfer_source",
    "hint_weight",
    "hint_width",
    "embedding_start",
)  # fmt: skip  the options of its own
HELD_OUT = "held_out"
BIAS_RULE = "halfway"  # `fit_bias`; a part of a run's identity, so another rule is another run


def distillation(temperature: float, kd_alpha: float) -> Loss:
    """The loss above: the KD term is the mean over all sentences of the batch, the cross-entropy
    the mean over its labelled ones.
    """

    def loss(logits: Tensor, examples: Batch | Split, counts: Counts) -> Tensor:
        divergence = F.kl_div(
            F.log_softmax(logits / temperature, dim=1),
            F.log_softmax(examples.teacher_logits / temperature, dim=1),
            reduction="sum",
            log_target=True,
        )
        soft = temperature**2 * divergence / counts.sentences
        return kd_alpha * soft + (1 - kd_alpha) * cross_entropy(logits, examples, counts)

    return loss


def with_teacher_logits(
    corpus: dict[str, Split], teacher: nn.Module, teacher_print: str, device: Device, path: Path
) -> dict[str, Split]:
    """The corpus, its training sentences and in_domain_dev with their ``teacher_logits``.

    The teacher is frozen, so one pass serves all epochs. The logits are kept at ``path`` and
    computed anew when the teacher, the sentences or the tokens are others.
    """
    teacher.to(device.torch)
    key = fingerprint(teacher_print, corpus_fingerprint(corpus), device.precision)
    splits = {name: corpus[name] for name in (TRAIN, DEV)}
    found = kept(path, key, {name: (len(split), 2) for name, split in splits.items()})
    if found is None:
        found = {
            name: predict_logits(teacher, split, device, f"teacher reads {name}")
            for name, split in splits.items()
        }
        write_tensors(path, found, {"key": key})
    taught = {name: replace(split, teacher_logits=found[name]) for name, split in splits.items()}
    return {**corpus, **taught}


@dataclass
class HintedTraining(Training):
    """Training with hints: the corpus' training split has ``teacher_states``."""

    projection: nn.Linear  # of the student's states (tokens, width) to hints (tokens, hints)
    weight: float

    def parameters(self) -> dict[str, nn.Parameter]:
        """The projection trains too."""
        named = self.projection.named_parameters(prefix="projection")
        return super().parameters() | dict(named)

    def fingerprint(self) -> str:
        """The hints belong to it."""
        return fingerprint(super().fingerprint(), self.corpus[TRAIN].teacher_states.fingerprint)

    def judge(self, batch: Batch, counts: Counts) -> tuple[Tensor, Tensor, Tensor]:
        """The hints' loss stands beside the students' own, which is what a history tells."""
        with self.device.autocast():
            logits, states, places = self.model.read(batch)
            missed = self.projection(states).float() - batch.teacher_states[places]
        hint = missed.square().sum() / (counts.tokens * missed.shape[1])
        logits = logits.float()
        loss = self.loss(logits, batch, counts)
        return logits, loss, loss + self.weight * hint


def with_hints(
    corpus: dict[str, Split],
    teacher: nn.Module,
    teacher_print: str,
    device: Device,
    width: int,
    folder: Path,
) -> dict[str, Split]:
    """The same, and the training sentences with ``width`` hints at every token.

    Kept in ``folder`` is what the teacher says of the training sentences.
    """
    logits, states = read_states(corpus[TRAIN], teacher, teacher_print, device, width, folder)
    train = replace(corpus[TRAIN], teacher_logits=logits, teacher_states=states)
    dev = replace(corpus[DEV], teacher_logits=predict_logits(teacher, corpus[DEV], device))
    return {**corpus, TRAIN: train, DEV: dev}


def hold_out(corpus: dict[str, Split], size: int) -> dict[str, Split]:
    """The corpus with ``size`` of its training sentences in a split of their own.

    They are the same for every sr_no, so that what a teacher said of the rest serves all.

    Raises:
        UserError: none is left, or those held out are all acceptable, or none of them is.
    """
    if not size:
        return corpus
    train = corpus[TRAIN]
    if size >= len(train):
        raise UserError(f"--held_out {size}: the corpus has {len(train)}; hold out fewer")
    held_out, rest = np.split(np.random.default_rng(0).permutation(len(train)), [size])
    corpus = {**corpus, TRAIN: train.chosen(np.sort(rest)), HELD_OUT: train.chosen(held_out)}
    if len(corpus[HELD_OUT].labels.unique()) == 1:
        raise UserError(f"--held_out {size}: these have one label, a bias needs two; hold out more")
    return corpus


@torch.no_grad()
def fit_bias(training: Training) -> None:
    """Have the student decide halfway between the held-out classes' mean margins.

    So does a linear discriminant to which both classes weigh the same (Fisher 1936), however many
    there are of each. Most training sentences are acceptable; trained on them for the fewest
    mistakes a student calls too many acceptable for a good MCC.
    """
    held_out = training.corpus[HELD_OUT]
    logits = predict_logits(training.model, held_out, training.device)
    margins = logits[:, 1] - logits[:, 0]
    edge = (margins[held_out.labels == 0].mean() + margins[held_out.labels == 1].mean()) / 2
    training.model.linear.bias[1] -= edge.item()
    print(f"bias moved by {-edge:.2f} after a look at {len(held_out)} held-out sentences")


def taught_corpus(
    args: Namespace,
    base: Base,
    corpus: dict[str, Split],
    teacher: "Adapter",
    device: Device,
    folder: Path,
) -> dict[str, Split]:
    """The corpus with the transfer set, and with what the teacher says of every sentence."""
    written, size = [], args.transfer_size
    if size and args.transfer_source != "edits":
        share = size // (2 if args.transfer_source == "both" else 1)
        place = args.out_dir / "transfer"
        written = written_sentences(base, teacher.base_print, corpus, share, device, place)
    keep_freed_memory()  # not before: a writer's keys and values grow, and would leave holes
    corpus = hold_out(corpus, args.held_out)
    if size:
        seed, longest = args.sr_no, base.max_length
        more = with_transfer_set(corpus, base.tokenizer, longest, size, seed, written)
        corpus = {**corpus, TRAIN: more}
    said = teacher.model, teacher.fingerprint, device
    if args.hint_weight:
        return with_hints(corpus, *said, args.hint_width, args.out_dir / "transfer")
    return with_teacher_logits(corpus, *said, folder / "teacher_logits.safetensors")


def new_student(args: Namespace, corpus: dict[str, Split], device: Device) -> DistilRNN:
    """A student for the training sentences, its weights a function of ``args.sr_no``."""
    torch.manual_seed(args.sr_no)
    vocabulary = corpus[TRAIN].input_ids.unique()
    student = DistilRNN(vocabulary, args.student_width, args.student_dropout)
    return student.to(device.torch)


@torch.no_grad()
def start_embedding(student: DistilRNN, teacher: nn.Module) -> None:
    """Start the student's embedding from its teacher's: its principal components (`Basis`).

    What is wider than the teacher's stays random. Of several processes all take the main one's: on
    another machine the components may come out turned.
    """
    taught = teacher.backbone.get_input_embeddings().weight
    rows = taught[student.vocabulary].float().cpu()  # (rows, the teacher's width)
    basis = Basis(**principal_components(rows, student.embedding.embedding_dim))
    found = basis.hints_of(rows) * is_main()
    sum_over_processes(found)
    student.embedding.weight[:-1, : found.shape[1]] = found


def taught_training(
    args: Namespace,
    base: Base,
    corpus: dict[str, Split],
    teacher: "Adapter",
    recipe: Recipe,
    device: Device,
    folder: Path,
) -> Training:
    """A student on the sentences that its teacher has judged, with its losses."""
    corpus = taught_corpus(args, base, corpus, teacher, device, folder)
    loss = distillation(args.kd_temperature, args.kd_alpha)
    student = new_student(args, corpus, device)
    if args.embedding_start == "teacher":
        start_embedding(student, teacher.model)
    if not args.hint_weight:
        return Training(student, corpus, loss, recipe, device)
    hints = corpus[TRAIN].teacher_states.width
    projection = nn.Linear(args.student_width, hints).to(device.torch)
    return HintedTraining(student, corpus, loss, recipe, device, projection, args.hint_weight)


def run_student(args: Namespace, mode: str, base: Base, corpus: dict[str, Split]) -> Path:
    """Train the student with a teacher ("distil") or without ("rnn"), unless that is done.

    Returns:
        The run's folder.
    """
    device, recipe = choose_device(args.device, args.precision), Recipe.of(args)
    sources = {"base": {"name": args.gpt_variant, "fingerprint": None}}
    settings = {name: getattr(args, name) for name in STUDENT_OPTIONS}
    if args.held_out:
        settings["bias"] = BIAS_RULE
    if mode == "distil":
        teacher, where = load_teacher(args)
        sources["teacher"] = {"folder": str(where), "fingerprint": teacher.fingerprint}
        settings |= {name: getattr(args, name) for name in DISTIL_OPTIONS}

    description = describe_run(args, mode, corpus, device, sources, recipe._asdict() | settings)
    folder = run_folder(args, mode)
    with claim(folder, description, args.overwrite) as claimed:
        if not claimed.finished:
            if mode == "distil":
                training = taught_training(args, base, corpus, teacher, recipe, device, folder)
                del teacher  # its memory
            else:
                keep_freed_memory()
                corpus = hold_out(corpus, args.held_out)
                student = new_student(args, corpus, device)
                training = Training(student, corpus, cross_entropy, recipe, device)
            progress = train(training, folder)
            if args.held_out:
                fit_bias(training)
            save_student(training.model, base, folder)
            results, predictions = evaluate(training)
            parameters = count_parameters(training.model)
            claimed.finish(parameters, progress.summary(), results, predictions)
    show_run(folder)
    return folder
