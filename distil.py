"""Knowledge distillation: the loss, hints, and the runs of a student with and without a teacher.

A teacher's softened probabilities tell a student more than a label does (Hinton, Vinyals and Dean
2015, https://arxiv.org/abs/1503.02531). Their loss, section 2, as used here:

    kd_alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - kd_alpha) * CE

The gradient of the softened term with respect to the student's logits shrinks as 1 / T^2; the
factor T^2 restores it, so that kd_alpha keeps its meaning when the temperature changes.

A teacher that knows its training sentences by heart has little to add on those. It can on the
transfer set: sentences that nobody has labelled but the teacher (support/teaching/).

One answer a sentence is still little. Hints (FitNets, Romero et al. 2015, section 2.2,
https://arxiv.org/abs/1412.6550) are the leading principal components of the teacher's final hidden
state at every token (support/teaching/answers.py). A linear projection P of the student's state
learns them:

    hint_weight * mean over tokens and components of (P student's state - hints)^2

P serves this alone; the saved student does not have it.
"""

import hashlib
import math
import shlex
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils import HELD_OUT, UNLABELLED, Batch, Split, hold_out, tokenize
from model import Outputs
from student import DistilRNN
from support.bases import Base
from support.checkpoints.adapters import CONFIG, find_own_base, read_adapter
from support.checkpoints.students import checkpoint_folder, save_student
from support.corpus import DEV, TRAIN
from support.decisions import SOFTMAX, Decision, margins_of
from support.devices import Device, choose_device, keep_freed_memory
from support.errors import UserError, replaced
from support.files import read_bytes
from support.options import HINTS_COST
from support.reporting import show_run
from support.runs import Run, check_finished, claim, describe_run, run_folder
from support.teaching import edited_sentences, leading_components, teacher_answers
from train_utils import (
    Counts,
    Loss,
    Training,
    count_parameters,
    cross_entropy,
    evaluate,
    predict_logits,
    train,
)

OF_A_TEACHER = (  # which options a teacher that is missing shares with its student
    "gpt_variant", "sr_no", "data_dir", "text_column", "label_column", "positive", "device",
    "precision", "out_dir",
)  # fmt: skip
LEAST_SLOPE = 1e-3  # far below that of a student which has learnt anything


# ---------------------------------------------------------------------------------------------
# The losses


def distillation(temperature: float, kd_alpha: float) -> Loss:
    """Return the loss of Hinton et al., whose formula stands at the top of this file.

    The KD term is the mean over all sentences of the batch, the cross-entropy the mean over its
    labelled ones.
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


class HintLoss(nn.Module):
    """The loss of hints: a share of the mean over the tokens of a whole batch."""

    def __init__(self, student_width: int, hint_width: int, weight: float):
        """Make a projection of states (tokens, student_width) to hints (tokens, hint_width)."""
        super().__init__()
        self.projection = nn.Linear(student_width, hint_width)
        self.weight = weight

    def forward(self, outputs: Outputs, batch: Batch, counts: Counts) -> Tensor:
        """Return what these tokens add to the batch's mean, times the weight."""
        hints = batch.hints[outputs.tokens].float()  # kept in half precision
        missed = self.projection(outputs.hidden_states).float() - hints
        return self.weight * (missed.square().sum() / (counts.tokens * missed.shape[1]))


# ---------------------------------------------------------------------------------------------
# The lesson: which sentences, and what the teacher answers for them


def with_transfer_set(
    options: Namespace, base: Base, base_key: str, corpus: dict[str, Split], device: Device
) -> dict[str, Split]:
    """Return the corpus with the transfer set behind its training sentences, unlabelled.

    It is made of edits, read from a file, or written by the base (its fingerprint: ``base_key``).
    """
    size, train = options.transfer_size, corpus[TRAIN]
    if not size:
        return corpus
    lines: list[int] = []  # of a file
    if options.transfer_source == "edits":
        made = edited_sentences(corpus, base.tokenizer, base.max_length, size, options.sr_no)
    elif options.transfer_file:
        from support.teaching.written import sentences_of_file

        made, lines = sentences_of_file(options.transfer_file, corpus, size)
    else:
        from support.teaching import written

        write = written.written_sentences
        if options.transfer_source == "everyday":
            write = written.everyday_sentences
        made = write(base, base_key, corpus, size, device, options.out_dir / "transfer")
    labels = train.labels.tolist() + [UNLABELLED] * len(made)
    sentences, source = [*train.sentences, *made], str(options.transfer_file)
    # Only sentences of a file may be too long: the others are known to be short enough.
    lines = [0] * len(train) + (lines or [0] * len(made))
    train = tokenize(base.tokenizer, sentences, labels, base.max_length, source, lines)
    return {**corpus, TRAIN: train}


# ---------------------------------------------------------------------------------------------
# The student


def new_student(options: Namespace, corpus: dict[str, Split], device: Device) -> DistilRNN:
    """Return a student for the training sentences, its weights a function of ``sr_no``."""
    torch.manual_seed(options.sr_no)
    student = DistilRNN(
        corpus[TRAIN].input_ids.unique(),
        options.student_width,
        options.student_dropout,
        options.student_cell,
        options.student_layers,
    )
    return student.to(device.torch)


@torch.no_grad()
def start_embedding(student: DistilRNN, teacher: nn.Module, how: str) -> None:
    """Start the student's embedding from its teacher's; what is wider than that stays random.

    "teacher" trains it from there. "mapped" leaves it as it is, and trains a linear map of it.
    """
    rows = teacher.backbone.get_input_embeddings().weight[student.vocabulary]
    if how == "teacher":
        start = leading_components(rows, student.embedding.embedding_dim)
        student.embedding.weight[:-1, : start.shape[1]] = start
    elif how == "mapped":
        student.map_embedding(leading_components(rows, rows.shape[1]))


def choose_threshold(
    student: DistilRNN, held_out: Split | None, rule: str, device: Device
) -> Decision:
    """Return where a student decides, by a rule of `linear_discriminant` on held-out sentences.

    Without any it is where p is 0.5. The student stays as it has learnt.
    """
    if held_out is None:
        return SOFTMAX
    margins = margins_of(predict_logits(student, held_out, device))
    decision = linear_discriminant(margins, held_out.labels.numpy(), rule)
    threshold, p = decision.threshold, decision.p_acceptable(decision.threshold)
    words = f"a margin of {threshold:+.2f}, p(acceptable) = {p:.3f} ({rule})"
    print(f"threshold: {words}, set on {len(held_out)} held-out sentences")
    return decision


def linear_discriminant(margins: np.ndarray, labels: np.ndarray, rule: str) -> Decision:
    """Return thresholds and probabilities by the linear discriminant of two classes (Fisher 1936).

    Margins (sentences,) of either label, 0 or 1, are taken to be normal, with means of their own
    and one variance. Then Bayes' rule gives the posterior, with no further choice:

        p(acceptable) = sigmoid(slope * (margin - halfway) + log(n acceptable / n unacceptable))

    where slope is the gap between the means divided by the variance, and halfway their middle.
    "accuracy" decides at p = 0.5, where mistakes are fewest. "balanced" lets both classes weigh
    the same, for a good MCC: it decides halfway, where p is the share of acceptable sentences.
    Margins that tell nothing, or the opposite, have the least slope: p is that share for all.
    """
    below, above = margins[labels == 0], margins[labels == 1]
    halfway, gap = (below.mean() + above.mean()) / 2, above.mean() - below.mean()
    squares = np.square(below - below.mean()).sum() + np.square(above - above.mean()).sum()
    variance = squares / max(len(margins) - 2, 1)
    slope = max(gap / max(variance, 1e-6), LEAST_SLOPE)
    log_odds = math.log(len(above) / len(below))
    thresholds = {"balanced": float(halfway), "accuracy": float(halfway - log_odds / slope)}
    return Decision(rule, thresholds, float(slope), float(log_odds - slope * halfway))


# ---------------------------------------------------------------------------------------------
# The runs


def run_distil(options: Namespace, base: Base, corpus: dict[str, Split]) -> Path:
    """Train the student with a teacher, unless that is done; return the run's folder."""
    device, folder = choose_device(options.device, options.precision), run_folder(options, "distil")
    teacher_folder = checkpoint_folder(options.teacher or run_folder(options, "LoRA"))
    key, unknown = None, {}  # a finished run is shown also where its teacher is missing
    try:
        key = teacher_fingerprint(teacher_folder, options)
    except UserError as error:
        unknown["teacher"] = error
    rules = {}
    try:
        rules = file_rule(options)
    except UserError as error:
        unknown["transfer_file"] = error
    sources = {
        "base": {"name": options.gpt_variant, "kind": base.kind, "fingerprint": None},
        "teacher": {"folder": str(teacher_folder), "fingerprint": key},
    }
    description = describe_run(options, "distil", device, corpus, sources, rules)
    with claim(folder, description, options.overwrite, unknown) as run:
        if not run.finished:
            # Here, since transformers takes seconds, which rnn need not wait for.
            from finetune import load_teacher

            if options.recipe == "hints":
                print(f"--recipe hints: {HINTS_COST}")
            teacher = load_teacher(teacher_folder, options.gpt_variant)
            if teacher.fingerprint != key:
                raise replaced(teacher_folder)
            device.place(teacher.model)
            corpus = hold_out(corpus, options.held_out)
            corpus = with_transfer_set(options, base, teacher.base_fingerprint, corpus, device)
            if rules != file_rule(options):
                raise replaced(options.transfer_file)
            # Not before the base has written: its batches differ in size, and fragment the memory.
            keep_freed_memory()
            width, place = options.hint_width, options.out_dir / "transfer"
            for split, hints in ((TRAIN, width if options.hint_weight else 0), (DEV, 0)):
                found = teacher_answers(corpus[split], teacher.model, key, device, hints, place)
                corpus = {**corpus, split: found}

            student = new_student(options, corpus, device)
            start_embedding(student, teacher.model, options.embedding_start)
            loss, hint_loss = distillation(options.kd_temperature, options.kd_alpha), None
            if options.hint_weight:
                width = corpus[TRAIN].hints.shape[1]
                hint_loss = HintLoss(options.student_width, width, options.hint_weight)
                hint_loss.to(device.torch)
            del teacher  # its memory
            train_and_save(run, Training(student, corpus, loss, options, device, hint_loss), base)
    show_run(folder)
    return folder


def run_rnn(options: Namespace, base: Base, corpus: dict[str, Split]) -> Path:
    """Train the student without a teacher, unless that is done; return the run's folder."""
    device, folder = choose_device(options.device, options.precision), run_folder(options, "rnn")
    sources = {"base": {"name": options.gpt_variant, "kind": base.kind, "fingerprint": None}}
    description = describe_run(options, "rnn", device, corpus, sources)
    with claim(folder, description, options.overwrite) as run:
        if not run.finished:
            keep_freed_memory()
            corpus = hold_out(corpus, options.held_out)
            student = new_student(options, corpus, device)
            train_and_save(run, Training(student, corpus, cross_entropy, options, device), base)
    show_run(folder)
    return folder


def train_and_save(run: Run, training: Training, base: Base) -> None:
    """Train a student, set its threshold, save it, and write what was measured."""
    student, held_out = training.model, training.corpus.get(HELD_OUT)
    counts = count_parameters(student)  # as it is trained
    progress = train(training, run.folder)
    student.fold_embedding()
    decision = choose_threshold(student, held_out, training.options.threshold, training.device)
    save_student(student, base, run.folder, decision)
    results, predictions = evaluate(student, training.corpus, training.device, decision)
    run.finish(counts, progress.summary(), results, predictions, **decision.entries())


def teacher_fingerprint(folder: Path, options: Namespace) -> str:
    """Return the fingerprint of a run's teacher, without loading its base where its files tell."""
    check_finished(folder)
    if not (folder / CONFIG).exists():
        advice = "--teacher wants the folder of a LoRA run"
        if not options.teacher:
            given = [name for name in OF_A_TEACHER if name in {*options.given, "sr_no"}]
            words = [word for name in given for word in (f"--{name}", str(vars(options)[name]))]
            command = shlex.join(["python", "run.py", "--mode", "LoRA", *words])
            advice = f"run: {command}, or name one with --teacher"
        raise UserError(f"{folder}: no teacher there; {advice}")
    saved = read_adapter(folder)
    trained_on = saved.base_fingerprint or find_own_base(saved, folder, options.gpt_variant)[1]
    return saved.fingerprint(trained_on)


def file_rule(options: Namespace) -> dict[str, str]:
    """Return the checksum of the transfer set's file, if there is one, for the run's identity."""
    if not (options.transfer_file and options.transfer_size):
        return {}
    return {"transfer_file": hashlib.sha256(read_bytes(options.transfer_file)).hexdigest()}
