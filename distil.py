"""Knowledge distillation: the loss, hints, and the runs of a student with and without a teacher.

A teacher's softened probabilities tell a student more than a label does (Hinton, Vinyals and Dean
2015, https://arxiv.org/abs/1503.02531). Their loss, section 2, as used here:

    kd_alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - kd_alpha) * CE

The gradient of the softened term with respect to the student's logits shrinks as 1 / T^2; the
factor T^2 restores it, so that kd_alpha keeps its meaning when the temperature changes.

A teacher that knows its training sentences by heart has little to add on those. It can on the
transfer set: sentences that nobody has labelled but the teacher (support/teaching/).

One answer a sentence is still little. Hints (FitNets, Romero et al. 2015, section 2.2,
https://arxiv.org/abs/1412.6550) are the leading components of the teacher's final hidden state at
every token (support/teaching/answers.py). A linear projection P of the student's state learns them:

    hint_weight * mean over tokens and components of (P student's state - hints)^2

P serves this alone; the saved student does not have it.
"""

import hashlib
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils import UNLABELLED, Batch, Split, tokenize
from model import Outputs
from student import DistilRNN
from support.bases import Base
from support.checkpoints.adapters import teacher_fingerprint
from support.checkpoints.students import save_student
from support.corpus import DEV, TRAIN
from support.decisions import SOFTMAX, Decision, margins_of
from support.devices import Device, choose_device, keep_freed_memory
from support.errors import UserError, replaced
from support.files import read_bytes, write_tensors
from support.fingerprints import corpus_fingerprint, fingerprint
from support.options import HINTS_COST
from support.reporting import show_run
from support.runs import Run, claim, describe_run, run_folder
from support.teaching import (
    HELD_OUT,
    hold_out,
    leading_components,
    linear_discriminant,
    read_hints,
    saved_tensors,
    sentences_of_file,
    transfer_sentences,
    written_sentences,
)
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

BIAS_RULE = "as learnt"  # a threshold stands beside the logits; once, it was moved to 0
COPY_RULE = "left out"  # training sentences that equal one held out
PROMPT_RULE = "none held out"  # the base writes after training sentences that are not held out


# ---------------------------------------------------------------------------------------------
# The losses


def distillation(temperature: float, kd_alpha: float) -> Loss:
    """Return the loss above.

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

    def __init__(self, width: int, hints: int, weight: float):
        """Make a projection of states (tokens, width) to hints (tokens, hints)."""
        super().__init__()
        self.projection = nn.Linear(width, hints)
        self.weight = weight

    def forward(self, outputs: Outputs, batch: Batch, counts: Counts) -> Tensor:
        """Return what these tokens add to the batch's mean, times the weight."""
        missed = self.projection(outputs.hidden_states).float() - batch.hints[outputs.tokens]
        return self.weight * (missed.square().sum() / (counts.tokens * missed.shape[1]))


def hint_loss(options: Namespace, corpus: dict[str, Split], device: Device) -> HintLoss | None:
    """Return the loss of hints where they have a weight."""
    if not options.hint_weight:
        return None
    width = corpus[TRAIN].hints.width
    return HintLoss(options.student_width, width, options.hint_weight).to(device.torch)


# ---------------------------------------------------------------------------------------------
# The lesson: which sentences, and what the teacher answers for them


def sentences_by_base(
    options: Namespace, base: Base, base_key: str, corpus: dict[str, Split], device: Device
) -> dict[str, int]:
    """Return what the base writes, or a file in its place, and the line of each sentence.

    ``base_key`` is the base's fingerprint.
    """
    size = options.transfer_size
    if options.transfer_source == "edits" or not size:
        return {}
    if options.transfer_file:
        return sentences_of_file(options.transfer_file, corpus, size)
    place = options.out_dir / "transfer"
    written = written_sentences(base, base_key, corpus, size, device, place)
    return {sentence: line for line, sentence in enumerate(written, start=1)}


def with_transfer_set(
    options: Namespace, base: Base, corpus: dict[str, Split], written: dict[str, int]
) -> dict[str, Split]:
    """Return the corpus with the transfer set behind its training sentences, unlabelled.

    It is the ``written`` sentences, by their lines, and edits of them and of the training ones.
    """
    size, longest, train = options.transfer_size, base.max_length, corpus[TRAIN]
    if not size:
        return corpus
    made = transfer_sentences(corpus, base.tokenizer, longest, size, options.sr_no, list(written))
    sentences, labels = train.sentences + made, train.labels.tolist() + [UNLABELLED] * size
    # Only what was written may be too long: the rest was looked at.
    source = str(options.transfer_file or "a sentence that the base wrote")
    lines = [written.get(sentence, 0) for sentence in sentences]
    return {**corpus, TRAIN: tokenize(base.tokenizer, sentences, labels, longest, source, lines)}


def with_answers(
    options: Namespace,
    corpus: dict[str, Split],
    teacher: nn.Module,
    key: str,
    device: Device,
    folder: Path,
) -> dict[str, Split]:
    """Return the corpus with a teacher's logits and, where they have a weight, its hints.

    The teacher is frozen: one pass serves all epochs. Logits are saved in the run's ``folder``,
    hints in ``transfer/`` for every student. Both are computed anew for another teacher, whose
    fingerprint is ``key``, or other sentences.
    """
    if options.hint_weight:
        width, place = options.hint_width, options.out_dir / "transfer"
        logits, states = read_hints(corpus[TRAIN], teacher, key, device, width, place)
        train = replace(corpus[TRAIN], teacher_logits=logits, hints=states)
        dev = replace(corpus[DEV], teacher_logits=predict_logits(teacher, corpus[DEV], device))
        return {**corpus, TRAIN: train, DEV: dev}
    path = folder / "teacher_logits.safetensors"
    whole = fingerprint(key, corpus_fingerprint(corpus), device.precision)
    splits = {name: corpus[name] for name in (TRAIN, DEV)}
    saved = saved_tensors(path, whole, {name: (len(split), 2) for name, split in splits.items()})
    if saved is None:
        saved = {
            name: predict_logits(teacher, split, device, f"teacher reads {name}")
            for name, split in splits.items()
        }
        write_tensors(path, saved, {"key": whole})
    answered = {name: replace(split, teacher_logits=saved[name]) for name, split in splits.items()}
    return {**corpus, **answered}


# ---------------------------------------------------------------------------------------------
# The student


def new_student(options: Namespace, corpus: dict[str, Split], device: Device) -> DistilRNN:
    """Return a student for the training sentences, its weights a function of ``sr_no``."""
    torch.manual_seed(options.sr_no)
    vocabulary = corpus[TRAIN].input_ids.unique()
    student = DistilRNN(
        vocabulary,
        options.student_width,
        options.student_dropout,
        options.student_cell,
        options.student_layers,
    )
    return student.to(device.torch)


@torch.no_grad()
def start_embedding(student: DistilRNN, teacher: nn.Module) -> None:
    """Start the student's embedding from its teacher's; what is wider than that stays random."""
    rows = teacher.backbone.get_input_embeddings().weight[student.vocabulary]
    start = leading_components(rows, student.embedding.embedding_dim)
    student.embedding.weight[:-1, : start.shape[1]] = start


def set_threshold(
    student: DistilRNN, held_out: Split | None, rule: str, device: Device
) -> Decision:
    """Return where a student decides, by a rule of `linear_discriminant` on held-out sentences.

    Without any it is where p is 0.5. The student stays as it has learnt.
    """
    if held_out is None:
        return SOFTMAX
    margins = margins_of(predict_logits(student, held_out, device))
    decision = linear_discriminant(margins, held_out.labels.numpy(), rule)
    p = decision.p_acceptable(decision.threshold)
    words = f"a margin of {decision.threshold:+.2f}, p(acceptable) = {p:.3f}"
    print(f"threshold: {words} ({rule}), set on {len(held_out)} held-out sentences")
    return decision


# ---------------------------------------------------------------------------------------------
# The runs


def run_distil(options: Namespace, base: Base, corpus: dict[str, Split]) -> Path:
    """Train the student with a teacher, unless that is done; return the run's folder."""
    device, folder = choose_device(options.device, options.precision), run_folder(options, "distil")
    teacher_folder = options.teacher or run_folder(options, "LoRA")
    key, unknown = None, {}  # a finished run is shown without its teacher
    try:
        key = teacher_fingerprint(teacher_folder, options)
    except UserError as error:
        unknown["teacher"] = error
    rules = identity_rules(options, "distil")
    try:
        rules |= file_rule(options)
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
            written = sentences_by_base(options, base, teacher.base_fingerprint, corpus, device)
            if not rules.items() >= file_rule(options).items():
                raise replaced(options.transfer_file)
            keep_freed_memory()  # not before: a writer's batches differ in size, and leave holes
            corpus = with_transfer_set(options, base, corpus, written)
            corpus = with_answers(options, corpus, teacher.model, key, device, folder)

            student = new_student(options, corpus, device)
            if options.embedding_start == "teacher":
                start_embedding(student, teacher.model)
            hints = hint_loss(options, corpus, device)
            del teacher  # its memory
            loss = distillation(options.kd_temperature, options.kd_alpha)
            finish(run, Training(student, corpus, loss, options, device, hints), base)
    show_run(folder)
    return folder


def run_rnn(options: Namespace, base: Base, corpus: dict[str, Split]) -> Path:
    """Train the student without a teacher, unless that is done; return the run's folder."""
    device, folder = choose_device(options.device, options.precision), run_folder(options, "rnn")
    sources = {"base": {"name": options.gpt_variant, "kind": base.kind, "fingerprint": None}}
    rules = identity_rules(options, "rnn")
    description = describe_run(options, "rnn", device, corpus, sources, rules)
    with claim(folder, description, options.overwrite) as run:
        if not run.finished:
            keep_freed_memory()
            corpus = hold_out(corpus, options.held_out)
            student = new_student(options, corpus, device)
            finish(run, Training(student, corpus, cross_entropy, options, device), base)
    show_run(folder)
    return folder


def finish(run: Run, training: Training, base: Base) -> None:
    """Train a student, set its threshold, save it, and write what was measured."""
    student, held_out = training.model, training.corpus.get(HELD_OUT)
    progress = train(training, run.folder)
    decision = set_threshold(student, held_out, training.options.threshold, training.device)
    save_student(student, base, run.folder, decision)
    results, predictions = evaluate(student, training.corpus, training.device, decision)
    counts = count_parameters(student)
    run.finish(counts, progress.summary(), results, predictions, **decision.entries())


def identity_rules(options: Namespace, mode: str) -> dict[str, str]:
    """Return what changes a student's result beside its options: another rule is another run."""
    if not options.held_out:
        return {}
    rules = {"bias": BIAS_RULE, "copies": COPY_RULE}
    written = mode == "distil" and options.transfer_size and options.transfer_source == "written"
    if written and not options.transfer_file:
        rules["prompts"] = PROMPT_RULE
    return rules


def file_rule(options: Namespace) -> dict[str, str]:
    """Return the checksum of the transfer set's file, where there is one, for the identity."""
    if not (options.transfer_file and options.transfer_size):
        return {}
    return {"transfer_file": hashlib.sha256(read_bytes(options.transfer_file)).hexdigest()}
