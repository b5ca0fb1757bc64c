"""The LoRA run: from a base and a corpus to a saved adapter, and that adapter in memory again."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data_utils import Split
from lora import LoraConfig, add_lora, is_linear, lora_tensors, merge_lora, peft_settings
from model import Classifier, load_classifier
from support.bases import Base, base_fingerprint
from support.checkpoints.adapters import find_own_base, read_adapter, write_adapter
from support.devices import choose_device, keep_freed_memory
from support.errors import UserError
from support.files import copy_tensors
from support.processes import barrier
from support.reporting import read_metrics, show_run
from support.runs import claim, describe_run, run_folder
from train_utils import Training, count_parameters, cross_entropy, evaluate, train


def run_lora(options: Namespace, base: Base, corpus: dict[str, Split]) -> Path:
    """Fine-tune a base with LoRA, unless that is done; return the run's folder."""
    device, folder = choose_device(options.device, options.precision), run_folder(options, "LoRA")
    torch.manual_seed(options.sr_no)
    model = load_classifier(base.folder)
    fingerprint = base_fingerprint(model.backbone)
    sources = {"base": {"name": options.gpt_variant, "kind": base.kind, "fingerprint": fingerprint}}
    description = describe_run(options, "LoRA", device, corpus, sources)
    with claim(folder, description, options.overwrite) as run:
        if not run.finished:
            rank, alpha, dropout = options.lora_rank, options.lora_alpha, options.lora_dropout
            try:
                add_lora(model, published_config(model, rank, alpha, dropout))
            except ValueError as error:
                raise UserError(f"LoRA: {error}") from None
            print_counts(count := count_parameters(model))

            keep_freed_memory()
            training = Training(device.place(model), corpus, cross_entropy, options, device)
            progress = train(training, folder)

            settings, tensors = peft_settings(model), lora_tensors(model)
            write_adapter(folder, settings, tensors, options.gpt_variant, fingerprint)
            del model, training, tensors  # their memory

            barrier()  # what is scored is read from the folder, as `predict` does
            teacher = load_teacher(folder, options.gpt_variant)
            results, predictions = evaluate(device.place(teacher.model), corpus, device)
            run.finish(count, progress.summary(), results, predictions, adapter=teacher.fingerprint)
        else:
            print_counts(read_metrics(folder)["parameters"])
    show_run(folder)
    return folder


def published_config(
    model: Classifier, r: int = 4, lora_alpha: float | None = None, lora_dropout: float = 0.0
) -> LoraConfig:
    """Return the published recipe's LoRA of a classifier; its alpha is the rank unless given.

    What trains is every linear layer of every block with its bias, the final norm, and the head.
    PEFT compares ``modules_to_save`` with the end of a name. The name ``norm`` would also match
    norms inside of blocks, so the final norm has its full name here (``model.norm``). GPT-2's
    ``ln_f`` is the only one of its name.
    """
    named = dict(model.named_modules())
    depth = model.backbone.config.num_hidden_layers
    lists = [name for name, module in named.items() if isinstance(module, nn.ModuleList)]
    blocks = next(name for name in lists if len(named[name]) == depth)
    layers = [n.rpartition(".")[2] for n, m in named[blocks].named_modules() if is_linear(m)]
    norms = [n for n, m in named.items() if "Norm" in type(m).__name__]
    final = [norm for norm in norms if not norm.startswith(f"{blocks}.")][-1:]
    return LoraConfig(
        target_modules=list(dict.fromkeys(layers)),
        r=r,
        lora_alpha=lora_alpha or r,
        lora_dropout=lora_dropout,
        bias="lora_only",
        modules_to_save=["score", *(norm.removeprefix("transformer.") for norm in final)],
    )


def print_counts(count: dict[str, int]) -> None:
    """Print how many parameters there are, and how many of them train."""
    print(f"Number of parameters: {count['total'] / 1e6:.2f}M")
    print(f"Number of trainable parameters: {count['trainable'] / 1e6:.2f}M")
    print(f"Reduction: {1 - count['trainable'] / count['total']:.2%}")


class Teacher(NamedTuple):
    """A saved LoRA classifier in memory."""

    model: Classifier
    base: Base
    base_fingerprint: str
    fingerprint: str  # of base and adapter together


def load_teacher(folder: Path, variant: str | None = None, merged: bool = True) -> Teacher:
    """Load a saved LoRA classifier, ours or PEFT's.

    It is merged and frozen, or keeps its LoRA layers, which can train, where not ``merged``.
    ``variant`` names the base; None takes the one that the adapter names. Another base than the
    adapter was trained on is refused.
    """
    saved = read_adapter(folder)
    base, trained_on = find_own_base(saved, folder, variant)
    model = load_classifier(base.folder)
    if trained_on != (here := base_fingerprint(model.backbone)):
        raise UserError(
            f"{folder} was trained on another base ({saved.base_name}, {trained_on[:12]}) than "
            f"{base.name} ({here[:12]}); give its own with --gpt_variant"
        )
    config = saved.config
    try:
        if isinstance(config.target_modules, str):
            from support.checkpoints.patterns import matching

            names = matching(config.target_modules, dict(model.named_modules()))
            config = replace(config, target_modules=names or [config.target_modules])
        add_lora(model, config)
    except ValueError as error:
        raise UserError(f"{folder / 'adapter_config.json'}: {error}") from None
    copy_tensors(folder / "adapter_model.safetensors", saved.tensors, lora_tensors(model))
    if merged:
        merge_lora(model)
        model.requires_grad_(False).eval()
    return Teacher(model, base, here, saved.fingerprint(here))
