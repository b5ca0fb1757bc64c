"""LoRA, written out: the layer, adding, merging, saving and loading it, and the LoRA run.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) freezes a pretrained weight W0 and learns
a low-rank correction beside it (section 4.1):

    y = W0 x + (alpha / r) B A x        A: (r, in), B: (out, r), r much smaller than in and out

The course text writes the same as W0 + L R. B starts at zero, so that training starts from the
pretrained model exactly. Adapters are stored in the format of Hugging Face's PEFT library, in its
names, so that PEFT loads ours and we load PEFT's.
"""

import math
import re
from argparse import Namespace
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from data_utils import UserError, fingerprint, load_corpus
from model import (
    GPT2Classifier,
    base_fingerprint,
    load_classifier,
    load_gpt2,
    load_tokenizer,
    max_length,
    variant_folder,
)
from train_utils import (
    copy_tensors,
    count_parameters,
    cross_entropy,
    read_json,
    read_tensors,
    run_training,
    write_files,
    write_json,
    write_tensors,
)

PEFT_PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass
class LoraConfig:
    """The part of PEFT's ``LoraConfig`` that decides the numbers, in its names."""

    r: int = 4
    lora_alpha: float = 4
    lora_dropout: float = 0.0
    use_rslora: bool = False  # scaling alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)
    target_modules: list[str] | str = field(default_factory=lambda: ["c_attn", "c_proj", "c_fc"])
    bias: str = "lora_only"  # the biases that train: the wrapped layers', or "none"
    modules_to_save: list[str] = field(default_factory=lambda: ["score", "ln_f"])  # trained whole
    fan_in_fan_out: bool = True  # for PEFT: the layers store (in, out); here their type says it

    @property
    def scaling(self) -> float:
        """What the correction is multiplied by."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


# ---------------------------------------------------------------------------------------------
# The layer


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` or Hugging Face ``Conv1D`` with a low-rank correction beside it."""

    def __init__(self, base_layer: nn.Linear | Conv1D, config: LoraConfig):
        """Wrap a layer; at first its output is the wrapped layer's, bit for bit.

        A is Kaiming-uniform and B zero, as in loralib and PEFT.

        Raises:
            ValueError: where the rank is not between 1 and the smaller side of the weight.
        """
        super().__init__()
        transposed = isinstance(base_layer, Conv1D)  # Conv1D keeps its weight as (in, out)
        size_in, size_out = base_layer.weight.shape[:: 1 if transposed else -1]
        if not 1 <= config.r <= min(size_in, size_out):
            raise ValueError(f"rank {config.r} does not fit a layer of {size_in} x {size_out}")
        self.base_layer = base_layer
        self.lora_A = nn.Linear(size_in, config.r, bias=False)
        self.lora_B = nn.Linear(config.r, size_out, bias=False)
        self.lora_dropout = nn.Dropout(config.lora_dropout)
        self.scaling = config.scaling
        self.transposed = transposed
        self.unmerged_weight: Tensor | None = None  # W0, while merged
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.unmerged_weight is not None:
            return self.base_layer(x)
        # LowRankCorrection has no dropout, and its in-place products need one dtype.
        dropping = self.training and self.lora_dropout.p > 0
        if dropping or torch.is_autocast_enabled(x.device.type):
            # Scaled where the tensor is small: (..., r), not (..., out).
            correction = self.lora_B(self.scaling * self.lora_A(self.lora_dropout(x)))
            return self.base_layer(x) + correction
        weight = self.base_layer.weight if self.transposed else self.base_layer.weight.T
        parameters = (self.base_layer.bias, self.lora_A.weight, self.lora_B.weight)
        return LowRankCorrection.apply(x, weight, *parameters, self.scaling)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the correction to the weight itself: the same function at no extra cost."""
        if self.unmerged_weight is None:
            self.unmerged_weight = self.base_layer.weight.data
            correction = self.scaling * self.lora_B.weight @ self.lora_A.weight  # (out, in)
            self.base_layer.weight.data = self.unmerged_weight + (
                correction.T if self.transposed else correction
            )

    def unmerge(self) -> None:
        """Put W0 back, bit for bit."""
        if self.unmerged_weight is not None:
            self.base_layer.weight.data = self.unmerged_weight
            self.unmerged_weight = None


class LowRankCorrection(torch.autograd.Function):
    """y = x W0 + bias + s (x A^T) B^T and its gradients, the wide tensors read and written once.

    With g = dL/dy, by the chain rule, W0 being frozen:

        dL/dx = g W0^T + s (g B) A    dL/dA = s (g B)^T x    dL/dB = s g^T (x A^T)
    """

    @staticmethod
    def forward(ctx, x, weight, bias, A, B, scaling):
        """x (..., in), weight (in, out), bias (out,) or None, A (r, in), B (out, r)."""
        flat = x.flatten(0, -2)  # (n, in)
        low = flat @ A.T  # (n, r)
        y = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        y.addmm_(low, B.T, alpha=scaling)
        ctx.save_for_backward(flat, low, weight, A, B)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)  # (..., out)

    @staticmethod
    def backward(ctx, g):
        """g (..., out)."""
        flat, low, weight, A, B = ctx.saved_tensors
        dx, dbias = None, None
        g_flat = g.flatten(0, -2)  # (n, out)
        g_low = ctx.scaling * (g_flat @ B)  # (n, r)
        if ctx.needs_input_grad[0]:
            dx = (g_flat @ weight.T).addmm_(g_low, A).view(*g.shape[:-1], -1)
        if ctx.needs_input_grad[2]:
            dbias = g_flat.sum(dim=0)
        return dx, None, dbias, g_low.T @ flat, ctx.scaling * (g_flat.T @ low), None


# ---------------------------------------------------------------------------------------------
# The verbs, for any model


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Wrap the targeted layers of any model, in place, and say which parameters train.

    A layer is targeted, as in PEFT, when its name is, or ends in a dot and, one of
    ``target_modules``; a string is a regular expression for the whole name.

    Raises:
        UserError: where the rank does not fit a layer, or nothing is targeted.
    """
    targets = config.target_modules
    wrapped = 0
    for name, layer in list(model.named_modules()):
        if isinstance(targets, str):
            targeted = re.fullmatch(targets, name)
        else:
            targeted = any(f".{name}".endswith(f".{target}") for target in targets)
        if targeted and isinstance(layer, nn.Linear | Conv1D):
            try:
                model.set_submodule(name, LoRALinear(layer, config))
            except ValueError as error:
                raise UserError(f"LoRA: {error} ({name}); choose a smaller --lora_rank") from None
            wrapped += 1
    if not wrapped:
        names = targets if isinstance(targets, str) else ", ".join(targets)
        raise UserError(f"LoRA: no layer of this model is one of target_modules, {names}")
    mark_trainable(model, config)


def mark_trainable(model: nn.Module, config: LoraConfig) -> None:
    """Freeze everything but A, B, the biases that ``bias`` names, and ``modules_to_save``."""
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            module.lora_A.requires_grad_(True)
            module.lora_B.requires_grad_(True)
            if config.bias == "lora_only" and module.base_layer.bias is not None:
                module.base_layer.bias.requires_grad_(True)
        if any(f".{name}".endswith(f".{kept}") for kept in config.modules_to_save or ()):
            module.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Merge every LoRA layer of a model; see `LoRALinear.merge`."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Undo `merge_lora`."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.unmerge()


def lora_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters under PEFT's names."""
    named = model.named_parameters()
    return {PEFT_PREFIX + name: p for name, p in named if p.requires_grad}


# ---------------------------------------------------------------------------------------------
# On disk, in PEFT's format


def save_adapter(
    model: nn.Module, folder: Path, config: LoraConfig, base: str, base_print: str
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT does.

    Args:
        model: a model that `add_lora` has wrapped.
        folder: where to.
        config: as given to `add_lora`.
        base: the base model as the user named it.
        base_print: fingerprint of the base weights, for the file's metadata, which PEFT ignores.
    """
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
        **asdict(config),
    }
    write_json(folder / CONFIG, settings)
    write_tensors(folder / WEIGHTS, lora_tensors(model), {"base_fingerprint": base_print})


def read_config(folder: Path) -> tuple[LoraConfig, str]:
    """Read an ``adapter_config.json``, ours or PEFT's: the configuration and the base's name.

    Raises:
        UserError: for a broken file, and for a setting of PEFT's that is not supported here,
            by its name, since ignoring it would give other numbers.
    """
    path = folder / CONFIG
    found = read_json(path)
    ours = {f.name for f in fields(LoraConfig)}
    allowed = {
        "peft_type": ("LORA",),
        "task_type": ("SEQ_CLS",),
        "bias": ("none", "lora_only"),
        "init_lora_weights": (True, False, "gaussian"),  # others change the base weights too
        "revision": (None, "main"),  # of the base, whose newest files are taken here
    }
    harmless = {  # they steer training or serving, not what a trained adapter computes
        "auto_mapping", "base_model_name_or_path", "inference_mode", "layers_pattern",
        "megatron_core", "peft_version", "qalora_group_size", "runtime_config",
    }  # fmt: skip
    for key, value in found.items():
        unset = value is None or value is False or value in ("", [], {})
        known = key in ours or key in harmless or unset
        if not (value in allowed[key] if key in allowed else known):
            raise UserError(f"{path}: {key} = {value!r} is not supported here")
    # Older versions of PEFT do not write use_rslora.
    missing = sorted((ours | {"peft_type", "task_type"}) - found.keys() - {"use_rslora"})
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing; not an adapter_config.json of PEFT's")
    try:
        config = LoraConfig(**{key: found[key] for key in ours & found.keys()})
        check_config(config)
    except (TypeError, ValueError, OverflowError, re.error) as error:
        raise UserError(f"{path}: not a LoRA configuration ({error})") from None
    return config, str(found.get("base_model_name_or_path") or "")


def check_config(config: LoraConfig) -> None:
    """Raise TypeError, ValueError, OverflowError or re.error for what no layer can be made of."""

    def are_names(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)

    targets, kept = config.target_modules, config.modules_to_save
    valid = {
        "r": type(config.r) is int and config.r >= 1,  # JSON's true is an int to isinstance
        "lora_dropout": 0 <= config.lora_dropout <= 1,
        "use_rslora": type(config.use_rslora) is bool,
        "target_modules": are_names(targets) or (isinstance(targets, str) and re.compile(targets)),
        "modules_to_save": kept is None or are_names(kept),
    }
    for name, is_valid in valid.items():
        if not is_valid:
            raise ValueError(f"{name} = {getattr(config, name)!r}")
    if not math.isfinite(config.scaling):
        raise ValueError(f"lora_alpha = {config.lora_alpha!r}")


class Adapter(NamedTuple):
    """A saved LoRA classifier in memory, unmerged, as it was when it was saved."""

    model: GPT2Classifier
    config: LoraConfig
    base: str  # as the adapter names it
    base_folder: Path
    base_print: str  # fingerprint of the base weights
    fingerprint: str  # of base and adapter together

    def merged(self) -> GPT2Classifier:
        """The model for use: merged, frozen, in evaluation mode."""
        merge_lora(self.model)
        return self.model.requires_grad_(False).eval()


def load_adapter(folder: Path, variant: str | None = None) -> Adapter:
    """Load a saved LoRA classifier, ours or PEFT's.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        variant: the base model; None takes the one that the adapter names.

    Raises:
        UserError: where a file is missing, broken or of other shapes, or the adapter was trained
            on another base, or without a head.
    """
    config, base = read_config(folder)
    tensors, metadata = read_tensors(folder / WEIGHTS)
    if PEFT_PREFIX + "score.weight" not in tensors:
        raise UserError(
            f"{folder / WEIGHTS}: no score.weight, the classifier's head; train it with "
            'modules_to_save=["score"]'
        )
    if not (variant or base):
        raise UserError(f"{folder / CONFIG} names no base model; give it with --gpt_variant")
    base_folder = variant_folder(variant or base)
    model = load_classifier(base_folder)
    base_print = trained_on = base_fingerprint(model.transformer)
    if "base_fingerprint" in metadata:
        trained_on = metadata["base_fingerprint"]
    elif variant and base and variant != base:  # PEFT's own files carry no fingerprint
        trained_on = base_fingerprint(load_gpt2(variant_folder(base)))
    if trained_on != base_print:
        raise UserError(
            f"{folder} was trained on another base ({base}, {trained_on[:12]}) than "
            f"{variant or base} ({base_print[:12]}); give its own with --gpt_variant"
        )
    add_lora(model, config)
    copy_tensors(folder / WEIGHTS, tensors, lora_tensors(model))
    content = (part for item in sorted(tensors.items()) for part in item)
    whole = fingerprint(base_print, repr(config.scaling), *content)
    return Adapter(model, config, base, base_folder, base_print, whole)


def save_merged(adapter: Adapter, folder: Path) -> None:
    """Write base and adapter as one plain Hugging Face model, with its tokenizer.

    ``AutoModelForSequenceClassification`` loads it without PEFT and without this project.
    """
    tensors = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in adapter.merged().state_dict().items()
        if ".lora_" not in name
    }
    tokenizer = load_tokenizer(adapter.base_folder)
    config = GPT2Config.from_pretrained(
        adapter.base_folder,
        num_labels=2,
        id2label={0: "unacceptable", 1: "acceptable"},
        label2id={"unacceptable": 0, "acceptable": 1},
        pad_token_id=tokenizer.eos_token_id,  # needed to find each sentence's last token
    )
    model = GPT2ForSequenceClassification(config)
    model.load_state_dict(tensors)
    write_files(folder, model.save_pretrained)
    write_files(folder, tokenizer.save_pretrained)


# ---------------------------------------------------------------------------------------------
# The run


def run_lora(args: Namespace) -> Path:
    """Fine-tune GPT-2 with LoRA as the options say, or show the run if it is finished.

    Returns:
        The run's folder.
    """
    base_folder = variant_folder(args.gpt_variant)
    corpus = load_corpus(args.data_dir, load_tokenizer(base_folder), max_length(base_folder))
    torch.manual_seed(args.sr_no)
    model = load_classifier(base_folder)
    base_print = base_fingerprint(model.transformer)
    alpha = args.lora_rank if args.lora_alpha is None else args.lora_alpha
    config = LoraConfig(args.lora_rank, alpha, args.lora_dropout)
    add_lora(model, config)
    show_parameters(model)
    return run_training(
        args,
        "LoRA",
        corpus,
        sources={"base": {"name": args.gpt_variant, "fingerprint": base_print}},
        options={"lora_rank": config.r, "lora_alpha": alpha, "lora_dropout": config.lora_dropout},
        prepare=lambda folder, compute: (model, cross_entropy),
        save=lambda model, folder: save_adapter(
            model, folder, config, args.gpt_variant, base_print
        ),
    )


def show_parameters(model: nn.Module) -> None:
    """Print how many parameters there are, how many train, and what that saves."""
    count = count_parameters(model)
    print(f"Number of parameters: {count['total'] / 1e6:.2f}M")
    print(f"Number of trainable parameters: {count['trainable'] / 1e6:.2f}M")
    print(f"Reduction: {1 - count['trainable'] / count['total']:.2%}")
