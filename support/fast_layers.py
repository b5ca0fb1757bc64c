"""Layers that compute what PyTorch's and Hugging Face's do, in fewer passes over their tensors.

Reading and writing memory is what such layers cost.
"""

import torch
from torch import Tensor, nn


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which x is to be multiplied: autocast's, where it is on, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@torch.no_grad()
def in_few_passes(backbone: nn.Module) -> None:
    """Put faster layers in the place of a loaded decoder's, in place; names and weights stay."""
    for name, module in list(backbone.named_modules()):
        kind, weight = type(module).__name__, getattr(module, "weight", None)
        if kind == "NewGELUActivation":
            backbone.set_submodule(name, nn.GELU("tanh"))
        elif kind.endswith("RMSNorm") and weight is not None and weight.ndim == 1:
            norm = RMSNorm(weight, getattr(module, "variance_epsilon", 1e-6))
            # So small that eps counts.
            x = torch.linspace(-1e-3, 1e-3, len(weight), device=weight.device)
            if torch.allclose(norm(x), module(x), rtol=1e-5, atol=1e-6):  # some add 1 to the weight
                backbone.set_submodule(name, norm)


class RMSNorm(nn.Module):
    """y = w x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, weight: nn.Parameter, eps: float):
        """Make a norm of a weight (width,)."""
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return Normalised.apply(x, self.weight, self.eps)


class Normalised(torch.autograd.Function):
    """Compute `RMSNorm` and its gradient.

    With r = 1 / sqrt(mean(x^2) + eps), n = r x and g = dL/dy:

    dL/dx = r (w g - n mean(w g n))    dL/dw = sum g n
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (..., width) and weight (width,)."""
        x = x.float()
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        r = squares.div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        n = x * r
        ctx.save_for_backward(n, r, weight)
        return (n * weight).to(product_dtype(x))

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """g (..., width)."""
        n, r, weight = ctx.saved_tensors
        dweight = (g * n).flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        wg = g * weight
        return wg.addcmul_(n, (wg * n).mean(dim=-1, keepdim=True), value=-1).mul_(r), dweight, None
