"""LoRA, written out: the layer, and the verbs for any model.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) freezes a pretrained weight W0 and learns
a low-rank correction beside it (section 4.1):

    y = W0 x + (alpha / r) B A x        A: (r, in), B: (out, r), r much smaller than in and out

The course text writes the same as W0 + L R. B starts at zero, so that training starts from the
pretrained model exactly. Names are those of Hugging Face's PEFT library, in whose format adapters
are stored, so that PEFT loads ours and we load PEFT's.
"""

from dataclasses import dataclass, field

import regex
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from support.bases.layers import linear_layers
from support.errors import UserError
from support.fast_layers import product_dtype


@dataclass
class LoraConfig:
    """The part of PEFT's ``LoraConfig`` that decides the numbers, in its names."""

    r: int = 4
    lora_alpha: float = 4
    lora_dropout: float = 0.0
    use_rslora: bool = False  # scaling alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)
    target_modules: list[str] | str = field(default_factory=lambda: ["c_attn", "c_proj", "c_fc"])
    bias: str = "lora_only"  # the biases that train: the wrapped layers', or "none"
    modules_to_save: list[str] | None = field(default_factory=lambda: ["score", "ln_f"])  # whole
    fan_in_fan_out: bool = True  # for PEFT: the layers store (in, out); here their type says it

    @property
    def scaling(self) -> float:
        """Return what the correction is multiplied by."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


# ---------------------------------------------------------------------------------------------
# The layer


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` or Hugging Face ``Conv1D`` with a low-rank correction beside it."""

    def __init__(self, base_layer: nn.Linear | Conv1D, config: LoraConfig):
        """Wrap a layer; at first its output is the wrapped layer's, bit for bit.

        A is Kaiming-uniform and B zero, as in loralib and PEFT. A rank that does not fit the weight
        is a ValueError.
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
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of x (..., in)."""
        if self.training and self.lora_dropout.p > 0:
            # Scaled where the tensor is small: (..., r), not (..., out).
            correction = self.lora_B(self.scaling * self.lora_A(self.lora_dropout(x)))
            return self.base_layer(x) + correction
        weight = self.base_layer.weight if self.transposed else self.base_layer.weight.T
        parameters = (self.base_layer.bias, self.lora_A.weight, self.lora_B.weight)
        return LowRankCorrection.apply(x, weight, *parameters, self.scaling)

    @torch.no_grad()
    def merged(self) -> nn.Linear | Conv1D:
        """Return the wrapped layer, the correction added to its weight: one product for three."""
        correction = self.scaling * self.lora_B.weight @ self.lora_A.weight  # (out, in)
        self.base_layer.weight += correction.T if self.transposed else correction
        return self.base_layer


class LowRankCorrection(torch.autograd.Function):
    """Compute y = x W0 + bias + s (x A^T) B^T, the wide tensors read and written once.

    Under autocast all of it is in autocast's dtype. With g = dL/dy, by the chain rule, W0 being
    frozen:

        dL/dx = g W0^T + s (g B) A    dL/dA = s (g B)^T x    dL/dB = s g^T (x A^T)
    """

    @staticmethod
    def forward(ctx, x, weight, bias, A, B, scaling):
        """x (..., in), weight (in, out), bias (out,) or None, A (r, in), B (out, r)."""
        dtype = product_dtype(x)
        flat, weight, A, B = (t.to(dtype) for t in (x.flatten(0, -2), weight, A, B))  # x: (n, in)
        low = scaling * (flat @ A.T)  # (n, r)
        bias = None if bias is None else bias.to(dtype)
        y = two_products(bias, (flat, weight), (low, B.T))
        ctx.save_for_backward(flat, low, weight, A, B)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)  # (..., out)

    @staticmethod
    def backward(ctx, g):
        """g (..., out)."""
        flat, low, weight, A, B = ctx.saved_tensors
        dx, dbias = None, None
        g_flat = g.flatten(0, -2)  # (n, out)
        # A product with a side of r is faster where its long sides are rows.
        g_low = ctx.scaling * (g_flat @ B.T.contiguous().T)  # (n, r)
        if ctx.needs_input_grad[0]:
            dx = two_products(None, (g_flat, weight.T), (g_low, A)).view(*g.shape[:-1], -1)
        if ctx.needs_input_grad[2]:
            dbias = g_flat.sum(dim=0)
        return dx, None, dbias, g_low.T @ flat, (low.T @ g_flat).T, None


def two_products(bias: Tensor | None, wide: tuple, thin: tuple) -> Tensor:
    """Return bias + wide[0] @ wide[1] + thin[0] @ thin[1].

    In half precision the thin product, LoRA's, comes first: a matrix product adds to what is there
    in fp32. Added last, a correction smaller than the rounding of the wide one would vanish.
    """
    (a, b), (c, d) = (thin, wide) if wide[0].element_size() == 2 else (wide, thin)
    return (a @ b if bias is None else torch.addmm(bias, a, b)).addmm_(c, d)


# ---------------------------------------------------------------------------------------------
# The verbs, for any model


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Wrap the targeted layers of any model, in place, and set which parameters train."""
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and is_target(name, config.target_modules)
    ]
    if not layers:
        names = linear_layers(model)
        raise UserError(
            f"LoRA: no layer of this model is one of {config.target_modules}; target_modules takes "
            f"names of its linear layers: {', '.join(names) or 'it has none'}"
        )
    for name, layer in layers:
        try:
            model.set_submodule(name, LoRALinear(layer, config))
        except ValueError as error:
            raise UserError(f"LoRA: {error} ({name}); choose a smaller rank") from None
    mark_trainable(model, config)


def is_target(name: str, targets: list[str] | str) -> bool:
    """Return whether a layer's name is, or ends in a dot and, one of the names, as in PEFT.

    A string is a regular expression for the whole name. It may come from a downloaded file and take
    forever, so it is given a tenth of a second.
    """
    if not isinstance(targets, str):
        return any(f".{name}".endswith(f".{target}") for target in targets)
    try:
        return bool(regex.fullmatch(targets, name, timeout=0.1))
    except TimeoutError:
        raise UserError(f"LoRA: target_modules, {targets!r}, takes too long to match") from None


def mark_trainable(model: nn.Module, config: LoraConfig) -> None:
    """Freeze everything but A, B, the biases that ``bias`` names, and ``modules_to_save``."""
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            module.lora_A.requires_grad_(True)
            module.lora_B.requires_grad_(True)
            if config.bias == "lora_only" and module.base_layer.bias is not None:
                module.base_layer.bias.requires_grad_(True)
        if is_target(name, config.modules_to_save or []):
            module.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Put every LoRA layer's correction into its weight, and the plain layer back in its place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            model.set_submodule(name, module.merged())


def lora_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters, which are what an adapter keeps."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
