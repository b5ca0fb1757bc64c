"""The LoRA run: from a base and a corpus to a saved adapter, and that adapter in memory again."""

from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_utils import Split
from lora import LoraConfig, add_lora, is_linear, lora_tensors, merge_lora, peft_settings
from model import Classifier, load_classifier
from support.bases import Base, base_fingerprint
from support.checkpoints import adapter_fingerprint, find_own_base, read_adapter, write_adapter
from support.checkpoints.peft_settings import matching
from support.devices import choose_device, keep_freed_memory
from support.errors import UserError, replaced
from support.files import copy_tensors
from support.reporting import read_metrics, show_run
from support.runs import claim, describe_run, run_folder
from train_utils import Training, count_parameters, cross_entropy, evaluate, train


def run_lora(options: Namespace, base: Base, corpus: dict[str, Split]) -> Path:
    """Fine-tune a base with LoRA, unless that is done; return the run's folder."""
    device, folder = choose_device(options.device, options.precision), run_folder(options, "LoRA")
    fingerprint = base_fingerprint(base.folder)
    sources = {"base": {"name": options.gpt_variant, "kind": base.kind, "fingerprint": fingerprint}}
    description = describe_run(options, "LoRA", device, corpus, sources)
    with claim(folder, description, options.overwrite) as run:
        if not run.finished:
            torch.manual_seed(options.sr_no)
            model = load_same(base, fingerprint)
            rank, alpha, dropout = options.lora_rank, options.lora_alpha, options.lora_dropout
            config = published_config(model, rank, alpha, dropout)
            try:
                add_lora(model, config)
            except ValueError as error:
                raise UserError(f"LoRA: {error}") from None
            print_counts(count := count_parameters(model))

            keep_freed_memory()
            training = Training(device.place(model), corpus, cross_entropy, options, device)
            progress = train(training, folder)

            tensors, base_name = lora_tensors(model), options.gpt_variant
            write_adapter(folder, peft_settings(model), tensors, base_name, fingerprint)
            adapter = adapter_fingerprint(tensors, fingerprint, asdict(config))

            del model, training  # their memory; what is scored is merged as `load_teacher` does it
            model = with_adapter(base, fingerprint, config, tensors, folder)
            results, predictions = evaluate(device.place(model), corpus, device)
            run.finish(count, progress.summary(), results, predictions, adapter=adapter)
        else:
            print_counts(read_metrics(folder)["parameters"])
    show_run(folder)
    return folder


def published_config(
    model: Classifier, r: int = 4, lora_alpha: float | None = None, lora_dropout: float = 0.0
) -> LoraConfig:
    """Return the published recipe's LoRA of a classifier; its alpha is the rank unless given.

    What trains is every linear layer of every block with its bias, the final norm, and the head.
    PEFT matches ``modules_to_save`` by the end of a name, and blocks have norms too: the final norm
    is named from the top, but for GPT-2's, whose name no block has.
    """
    named = dict(model.named_modules())
    depth = model.backbone.config.num_hidden_layers
    lists = [name for name, module in named.items() if isinstance(module, nn.ModuleList)]
    name = next(name for name in lists if len(named[name]) == depth)  # of the blocks
    layers = [name.rpartition(".")[2] for name, m in named[name].named_modules() if is_linear(m)]
    norms = [n for n, m in named.items() if "Norm" in type(m).__name__]
    final = [norm for norm in norms if not norm.startswith(f"{name}.")][-1:]
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
    config: LoraConfig
    base: Base
    base_fingerprint: str
    fingerprint: str  # of base and adapter together


def load_teacher(folder: Path, variant: str | None = None, merged: bool = True) -> Teacher:
    """Load a saved LoRA classifier, ours or PEFT's, merged and frozen; else its layers train.

    ``variant`` names the base; None takes the one that the adapter names.
    """
    saved = read_adapter(folder)
    base, trained_on = find_own_base(saved, folder, variant)
    config = LoraConfig(**saved.settings)
    model = with_adapter(base, trained_on, config, saved.tensors, folder, merged)
    whole = adapter_fingerprint(saved.tensors, trained_on, saved.settings)
    return Teacher(model, config, base, trained_on, whole)


def with_adapter(
    base: Base,
    fingerprint: str,
    config: LoraConfig,
    tensors: dict[str, Tensor],
    folder: Path,
    merged: bool = True,
) -> Classifier:
    """Load a base of this fingerprint with an adapter, merged and frozen; else its layers train.

    ``folder`` is where the adapter's ``tensors`` stand, for errors.
    """
    model, targets = load_same(base, fingerprint), config.target_modules
    if isinstance(targets, str):
        targets = matching(targets, dict(model.named_modules())) or [targets]
    try:
        add_lora(model, replace(config, target_modules=targets))
    except ValueError as error:
        raise UserError(f"{folder / 'adapter_config.json'}: {error}") from None
    copy_tensors(folder / "adapter_model.safetensors", tensors, lora_tensors(model))
    if merged:
        merge_lora(model)
        model.requires_grad_(False).eval()
    return model


def load_same(base: Base, fingerprint: str) -> Classifier:
    """Load a base under a new head; refuse one that is not, or no longer, of this fingerprint."""
    model = load_classifier(base.folder)
    if fingerprint != base_fingerprint(base.folder):
        raise replaced(base.folder)
    return model
