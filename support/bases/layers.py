"""Which layers does a base have, and which of them does the published recipe train?"""

from torch import nn
from transformers.pytorch_utils import Conv1D


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names, each once and without its place, of a model's linear layers."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def published_set(model: nn.Module) -> dict:
    """Return what trains of a classifier, as settings of a `LoraConfig`.

    Every linear layer of every block with its bias, the final norm, and the head. PEFT matches
    ``modules_to_save`` by the end of a name, and blocks have norms too: the final norm is named
    from the top, but for GPT-2's, whose name no block has.
    """
    named = dict(model.named_modules())
    depth = model.backbone.config.num_hidden_layers
    name, blocks = next(
        (name, module)
        for name, module in named.items()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    )
    norms = [n for n, m in named.items() if "Norm" in type(m).__name__]
    final = [norm for norm in norms if not norm.startswith(f"{name}.")][-1:]
    return {
        "target_modules": linear_layers(blocks),
        "modules_to_save": ["score", *(norm.removeprefix("transformer.") for norm in final)],
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in blocks.modules()),
    }
