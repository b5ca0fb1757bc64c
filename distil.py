"""Knowledge distillation: the loss, the teacher's logits, the student's run.

A teacher's softened probabilities tell a student more than a label does (Hinton, Vinyals and Dean
2015, https://arxiv.org/abs/1503.02531). Their loss, section 2, as used here:

    kd_alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - kd_alpha) * CE

The gradient of the softened term with respect to the student's logits shrinks as 1 / T^2; the
factor T^2 restores it, so that kd_alpha keeps its meaning when the temperature changes.

A teacher that knows its training sentences by heart has little to add on those. The transfer set
(support/transfer_set.py) is where it can: sentences that nobody has labelled but the teacher.
"""

from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils import DEV, TRAIN, Batch, Split, corpus_fingerprint
from model import DistilRNN
from support.bases import Base
from support.checkpoints import load_teacher, save_student
from support.devices import Device, choose_device, keep_freed_memory
from support.errors import UserError
from support.files import read_tensors, write_tensors
from support.fingerprints import fingerprint
from support.metrics import show_run
from support.run_folder import claim, describe_run, run_folder
from support.transfer_set import with_transfer_set
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
    key = fingerprint(teacher_print, corpus_fingerprint(corpus), device.precision)
    found, metadata = {}, {}
    with suppress(UserError):  # no file, or a broken one: its content can be computed again
        found, metadata = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if metadata.get("key") != key or shapes != {n: (len(corpus[n]), 2) for n in (TRAIN, DEV)}:
        teacher.to(device.torch)
        found = {
            name: predict_logits(teacher, corpus[name], device, f"teacher reads {name}")
            for name in (TRAIN, DEV)
        }
        write_tensors(path, found, {"key": key})
    taught = {name: replace(corpus[name], teacher_logits=found[name]) for name in (TRAIN, DEV)}
    return {**corpus, **taught}


def run_student(args: Namespace, mode: str, base: Base, corpus: dict[str, Split]) -> Path:
    """Train the student with a teacher ("distil") or without ("rnn"), unless that is done.

    Returns:
        The run's folder.
    """
    taught = mode == "distil"
    device, recipe = choose_device(args.device, args.precision), Recipe.of(args)
    sources, settings = {"base": {"name": args.gpt_variant, "fingerprint": None}}, {}
    if taught:
        teacher, sources["teacher"] = load_teacher(args)
        names = ("kd_temperature", "kd_alpha", "transfer_size")
        settings = {name: getattr(args, name) for name in names}

    description = describe_run(args, mode, corpus, device, sources, recipe._asdict() | settings)
    folder = run_folder(args, mode)
    with claim(folder, description, args.overwrite) as claimed:
        if not claimed.finished:
            keep_freed_memory()
            loss = cross_entropy
            if taught:
                if args.transfer_size:
                    some = (args.transfer_size, args.sr_no)
                    more = with_transfer_set(corpus, base.tokenizer, base.max_length, *some)
                    corpus = {**corpus, TRAIN: more}
                teacher_print = sources["teacher"]["fingerprint"]
                cache = folder / "teacher_logits.safetensors"
                corpus = with_teacher_logits(corpus, teacher, teacher_print, device, cache)
                loss = distillation(args.kd_temperature, args.kd_alpha)
                del teacher  # its memory
            torch.manual_seed(args.sr_no)
            model = DistilRNN(corpus[TRAIN].input_ids.unique()).to(device.torch)
            training = Training(model, corpus, loss, recipe, device)
            progress = train(training, folder)
            save_student(model, base, folder)
            results, predictions = evaluate(training)
            claimed.finish(count_parameters(model), progress.summary(), results, predictions)
    show_run(folder)
    return folder
