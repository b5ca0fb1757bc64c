"""What is in a checkpoint's folder: a student, or a teacher?"""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import nn

from model import DistilRNN
from support.bases.loading import Base
from support.bases.tokens import load_tokenizer, save_tokenizer
from support.checkpoints.peft_files import CONFIG as ADAPTER_CONFIG
from support.errors import UserError
from support.files import copy_tensors, read_json, read_tensors, write_json, write_tensors
from support.runs.folder import check_finished, run_folder

if TYPE_CHECKING:
    from support.checkpoints.adapters import Adapter

STUDENT = "distil_rnn"  # the model_type in a student's config.json


def save_student(model: DistilRNN, base: Base, folder: Path) -> None:
    """Write a student with its base's tokenizer: the folder is complete by itself."""
    save_tokenizer(base.tokenizer, base.folder, folder)
    write_json(folder / "config.json", {"model_type": STUDENT, "n_positions": base.max_length})
    write_tensors(folder / "model.safetensors", model.state_dict(), {})


def load_student(folder: Path) -> DistilRNN:
    """Read what `save_student` wrote."""
    path = folder / "model.safetensors"
    tensors, _ = read_tensors(path)
    # What the file has bounds what is allocated for it, also for a file that lies.
    sizes = ("vocabulary", "rnn.weight_hh_l0", "embedding.weight")
    match [tuple(tensors[name].shape) for name in sizes if name in tensors]:
        case [(rows,), (width, height), embedding] if rows * width and width == height:
            vocabulary = tensors["vocabulary"]
            rising = vocabulary.dtype == torch.long and bool(vocabulary.diff().gt(0).all())
            whole = rising and embedding == (rows + 1, width)
        case _:
            whole = False
    if not whole:
        raise UserError(f"{path}: not the weights of a student; train it again with --overwrite")
    model = DistilRNN(vocabulary, width)
    copy_tensors(path, tensors, model.state_dict())
    return model.requires_grad_(False).eval()


def load_teacher(args: Namespace) -> tuple["Adapter", Path]:
    """Load the teacher that the options name; returns it, as `load_merged` does, and its folder."""
    folder = args.teacher or run_folder(args, "LoRA")
    if not (folder / ADAPTER_CONFIG).exists():
        check_finished(folder)
        advice = "--teacher wants the folder of a LoRA run"
        if not args.teacher:
            advice = (
                f"run: python run.py --mode LoRA --gpt_variant {args.gpt_variant} "
                f"--sr_no {args.sr_no} --out_dir {args.out_dir}, or name one with --teacher"
            )
        raise UserError(f"{folder}: no teacher there; {advice}")
    return load_merged(folder, args.gpt_variant), folder


def load_merged(folder: Path, variant: str | None) -> "Adapter":
    """A teacher for use: merged, frozen, in evaluation mode."""
    # These import transformers, which takes seconds and which a student does not need.
    from lora import merge_lora
    from support.checkpoints.adapters import load_adapter

    adapter = load_adapter(folder, variant)
    merge_lora(adapter.model)
    adapter.model.requires_grad_(False).eval()
    return adapter


def load_checkpoint(folder: Path, variant: str | None = None) -> tuple[nn.Module, Tokenizer, int]:
    """Load any saved model for use: the model, its tokenizer, and the most tokens of a sentence.

    Args:
        folder: the checkpoint.
        variant: the base of a teacher; None takes the one that it names.
    """
    check_finished(folder)
    if (folder / ADAPTER_CONFIG).exists():
        teacher = load_merged(folder, variant)
        return teacher.model, teacher.base.tokenizer, teacher.base.max_length
    if (folder / "config.json").exists():
        config = read_json(folder / "config.json")
        if config.get("model_type") == STUDENT:
            max_length = config.get("n_positions")
            if type(max_length) is not int:
                raise UserError(f"{folder / 'config.json'}: n_positions = {max_length!r}")
            return load_student(folder), load_tokenizer(folder), max_length
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder; --mode LoRA, rnn or distil make one")
    raise UserError(
        f"{folder}: neither a LoRA adapter ({ADAPTER_CONFIG}) nor a student (config.json with "
        f"model_type {STUDENT})"
    )
