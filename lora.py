"""LoRA, written out: the layer, and the verbs for any model.

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) freezes a pretrained weight W0 and learns
a low-rank correction beside it (section 4.1):

    y = W0 x + s B A x        A: (r, in), B: (out, r), r much smaller than in and out; s = alpha / r

The course text writes the same as W0 + L R. B starts at zero, so that training starts from the
pretrained model exactly.

    add_lora(model, config)     wraps layers in place, and sets which parameters train
    save_lora(model, folder)    writes what was trained, in the format of Hugging Face's PEFT
    load_lora(model, folder)    adds what was saved, by PEFT too, to a model without LoRA
    merge_lora(model)           puts the corrections into the weights: plain layers again
    remove_lora(model)          drops the corrections

Names and defaults are PEFT's. What cannot be served is a ValueError of one line that names the
layer; it is raised before anything in the model has changed. The layer and the verbs need PyTorch
alone, saving and loading safetensors as well.
"""

import json
import math
import re
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

PREFIX = "base_model.model."  # before every tensor's name in PEFT's files
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class LoraConfig:
    """The part of PEFT's ``LoraConfig`` that decides the numbers."""

    # The names of the layers, or what their names end in after a dot; or a regular expression.
    target_modules: list[str] | str
    r: int = 8  # the rank, at most the smaller side of a weight
    lora_alpha: float = 8
    lora_dropout: float = 0.0  # of what A reads, in training
    use_rslora: bool = False  # scaling alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)
    bias: str = "none"  # the biases that train: "none", "lora_only" (of the layers wrapped), "all"
    modules_to_save: list[str] | None = None  # trained whole: what the names of modules end in

    def __post_init__(self):
        """Refuse what is no configuration; sets of names, which PEFT takes too, become lists."""
        for key, other in (("target_modules", str), ("modules_to_save", NoneType)):
            names = getattr(self, key)
            if isinstance(names, set | tuple):
                object.__setattr__(self, key, names := sorted(names))
            is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
            if not is_list and not isinstance(names, other):
                raise ValueError(f"{key} = {names!r}; it is a list of names")
        if type(self.r) is not int or type(self.use_rslora) is not bool:
            raise ValueError(
                f"r = {self.r!r}, use_rslora = {self.use_rslora!r}; a number and a bool"
            )
        for key in ("lora_alpha", "lora_dropout"):
            number = getattr(self, key)
            if type(number) not in (int, float) or not math.isfinite(number):
                raise ValueError(f"{key} = {number!r}; it is a number")
        if not 0 <= self.lora_dropout <= 1:
            raise ValueError(f"lora_dropout = {self.lora_dropout!r}; it is from 0 to 1")
        if self.bias not in ("none", "lora_only", "all"):
            raise ValueError(f'bias = {self.bias!r}; it is "none", "lora_only" or "all"')
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except (re.error, RecursionError) as error:
                raise ValueError(f"target_modules = {self.target_modules!r}: {error}") from None

    @property
    def scaling(self) -> float:
        """Return s, what the correction is multiplied by."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


# ---------------------------------------------------------------------------------------------
# The layer


def is_conv1d(layer: nn.Module) -> bool:
    """Return whether a layer is GPT-2's ``Conv1D``: a linear layer whose weight is (in, out)."""
    kind = type(layer)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` or ``Conv1D`` with a low-rank correction beside it.

    It reads the weights of its parts and calls none of them, so that their hooks are silent.
    ``weight`` and ``bias`` are those of the equivalent plain layer, for modules that read them from
    a layer in the place of calling it, as ``nn.MultiheadAttention`` does with its out_proj. The
    weight is computed at every reading, without dropout, and cannot be written to.
    """

    def __init__(self, base_layer: nn.Module, config: LoraConfig):
        """Wrap a layer; at first its output is the wrapped layer's.

        A is Kaiming-uniform and B zero, as in loralib and PEFT. Both are where the layer's weight
        is and of its dtype, or in fp32 where that is of half precision.
        """
        super().__init__()
        W0 = base_layer.weight
        self.transposed = is_conv1d(base_layer)
        self.in_features, self.out_features = W0.shape if self.transposed else reversed(W0.shape)
        kind = {"device": W0.device, "dtype": torch.promote_types(W0.dtype, torch.float32)}
        self.base_layer, self.config = base_layer, config
        self.lora_A = nn.Linear(self.in_features, config.r, bias=False, **kind)
        self.lora_B = nn.Linear(config.r, self.out_features, bias=False, **kind)
        self.lora_dropout = nn.Dropout(config.lora_dropout)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)
        self.train(base_layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of x (..., in).

        The correction is what the product with W0 is added to: in half precision a matrix product
        adds in fp32 and rounds once. Added last, a small correction would be lost in the rounding.
        B is laid out with its long side in rows, in which the backward pass multiplies it faster.
        """
        W0, bias = self.base_layer.weight, self.base_layer.bias
        A, B = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])  # (n, in)
        low = self.config.scaling * F.linear(self.lora_dropout(rows), A)  # (n, r)
        correction = F.linear(low, B.T.contiguous().T, bias)  # (n, out)
        y = torch.addmm(correction, rows, W0 if self.transposed else W0.T)
        return y.view(x.shape[:-1] + (self.out_features,))  # noqa: RUF005  for torch.fx

    @property
    def weight(self) -> Tensor:
        """Return W0 + s B A, in the wrapped layer's shape and dtype."""
        W0 = self.base_layer.weight
        with torch.autocast(W0.device.type, enabled=False):
            correction = self.config.scaling * self.lora_B.weight @ self.lora_A.weight  # (out, in)
        return (W0 + (correction.T if self.transposed else correction)).to(W0.dtype)

    @property
    def bias(self) -> Tensor | None:
        """Return the wrapped layer's."""
        return self.base_layer.bias

    def merged(self) -> nn.Module:
        """Return the wrapped layer with the correction in its weight: one product for three.

        The weight is a new parameter: another module that shares the old one keeps it.
        """
        trains = self.base_layer.weight.requires_grad
        self.base_layer.weight = nn.Parameter(self.weight.detach(), requires_grad=trains)
        return self.base_layer


# ---------------------------------------------------------------------------------------------
# Adding it to a model, and taking it away


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Wrap the targeted layers of any model, in place, and set which parameters train.

    These are A, B, the biases that ``config.bias`` names, and ``modules_to_save``. A layer that has
    several names is one layer, and is wrapped at all of them. As in PEFT, nothing inside of
    ``modules_to_save`` is wrapped, and what trains is a copy of each: its weights may be tied.
    """
    if is_linear(model):
        raise ValueError("the model is itself a layer; put it into nn.Sequential, where it is 0")
    named = dict(model.named_modules(remove_duplicate=False))
    saved = [name for name in named if ends_in(name, config.modules_to_save)]
    targets = {}  # each layer once, with its first name
    for name, layer in named.items():
        if isinstance(layer, LoRALinear):
            raise ValueError(f"{name} has LoRA already; call merge_lora or remove_lora first")
        if name and is_target(name, config.target_modules) and not is_within(name, saved):
            targets.setdefault(layer, name)
    if not targets:
        linear = [name.rpartition(".")[2] for name, layer in named.items() if is_linear(layer)]
        outside = f" outside of {config.modules_to_save}" if saved else ""
        raise ValueError(
            f"no layer of this model{outside} is one of {config.target_modules}; target_modules "
            f"takes names of its linear layers: {', '.join(dict.fromkeys(linear)) or 'it has none'}"
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name} has no values yet; call the model once, which gives it some")
    for layer, name in targets.items():
        if reason := why_not(layer, config):
            raise ValueError(f"{name}: {reason}")
    copies = {}
    for name in saved:
        if not all(p.is_floating_point() for p in named[name].parameters()):
            raise ValueError(f"{name}: not all of its parameters can train; leave it out")
        try:
            copies[name] = deepcopy(named[name])
        except RuntimeError:
            raise ValueError(f"{name}: a weight that is computed cannot be copied") from None
    replace_modules(model, {layer: LoRALinear(layer, config) for layer in targets})
    for name, copy in copies.items():
        model.set_submodule(name, copy)
    model.requires_grad_(False)
    trained = trained_names(model, config)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in trained:
            parameter.requires_grad_(True)


def is_linear(layer: nn.Module) -> bool:
    """Return whether a layer is of a kind that LoRA is for."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def why_not(layer: nn.Module, config: LoraConfig) -> str:
    """Return why a layer cannot be wrapped; nothing where it can."""
    kind, weight = type(layer).__name__, layer._parameters.get("weight")
    if not is_linear(layer):
        kind = f"{type(layer).__module__}.{kind}"
        return f"{kind} is not a linear layer; LoRA is for PyTorch's nn.Linear and GPT-2's Conv1D"
    if weight is None:
        return "its weight is computed, by a parametrization or by pruning; remove that first"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}; LoRA is for floating-point weights"
    is_subclass = isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward
    if is_subclass or "forward" in vars(layer):  # the latter is a patch
        return f"{kind} has a forward of its own, and LoRA replaces the plain one"
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_hooks)
    if any(hooks) or layer._backward_pre_hooks:
        return "it has hooks, which would not be called any more; remove them first"
    if not 1 <= config.r <= min(weight.shape):
        size = " x ".join(map(str, weight.shape))
        return f"rank {config.r} does not fit a weight of {size}; choose a smaller rank"
    if isinstance(layer, NonDynamicallyQuantizableLinear) and config.lora_dropout:
        return "nn.MultiheadAttention reads its weight and drops nothing; lora_dropout must be 0"
    return ""


def is_target(name: str, targets: list[str] | str) -> bool:
    """Return whether a module's name is, or ends in a dot and, one of the names, as in PEFT.

    A string is a regular expression for the whole name.
    """
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, name))
    return any(f".{name}".endswith(f".{target}") for target in targets)


def ends_in(name: str, ends: list[str] | None) -> bool:
    """Return whether a module's name ends in one of these, after a dot or not, as in PEFT."""
    return name.endswith(tuple(ends or ()))


def is_within(name: str, modules: list[str]) -> bool:
    """Return whether a name is one of these modules', or of something inside of one."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def trained_names(model: nn.Module, config: LoraConfig) -> set[str]:
    """Return the names in ``model.state_dict()`` of what trains, which is what an adapter keeps."""
    named = dict(model.named_modules(remove_duplicate=False))
    layers = [name for name, module in named.items() if isinstance(module, LoRALinear)]
    saved = [n for n in named if ends_in(n, config.modules_to_save) and not is_within(n, layers)]
    kept = saved + [f"{layer}.{part}" for layer in layers for part in ("lora_A", "lora_B")]
    if config.bias == "lora_only":
        kept += [f"{layer}.base_layer.bias" for layer in layers]
    return {
        name
        for name in model.state_dict()
        if is_within(name, kept) or (config.bias == "all" and f".{name}".endswith(".bias"))
    }


def merge_lora(model: nn.Module) -> None:
    """Put every correction into its layer's weight, and the plain layers back in their places.

    What was frozen stays frozen.
    """
    replace_modules(model, {m: m.merged() for m in model.modules() if isinstance(m, LoRALinear)})


def remove_lora(model: nn.Module) -> None:
    """Drop every correction, and put the plain layers back in their places.

    Biases and modules that were trained whole stay as they are.
    """
    replace_modules(model, {m: m.base_layer for m in model.modules() if isinstance(m, LoRALinear)})


def replace_modules(model: nn.Module, others: dict[nn.Module, nn.Module]) -> None:
    """Put each of the other modules in the place of its key, under all names that this has."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in others:
            model.set_submodule(name, others[module])


# ---------------------------------------------------------------------------------------------
# PEFT's format

# What an adapter_config.json may say beside the fields of `LoraConfig`: what steers training or
# serving, and what has one meaning here. Anything else would change the numbers.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "megatron_core", "peft_version", "qalora_group_size", "runtime_config", "task_type",
}  # fmt: skip
ALLOWED = {
    "peft_type": ("LORA",),
    "init_lora_weights": (True, False, "gaussian"),  # others change the base's weights too
    "revision": (None, "main"),  # of the base
}


def config_of(model: nn.Module) -> LoraConfig:
    """Return the configuration by which LoRA was added to a model."""
    configs = [module.config for module in model.modules() if isinstance(module, LoRALinear)]
    if not configs:
        raise ValueError("the model has no LoRA; call add_lora first")
    if any(config != configs[0] for config in configs):
        raise ValueError("parts of the model have LoRA of other settings; save each part by itself")
    return configs[0]


def lora_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what an adapter keeps, by its name in the model: all that trains, each tensor once.

    The prefix that torch.compile puts before its model's names is none of theirs.
    """
    kept, first = trained_names(model, config_of(model)), {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in kept:
            first.setdefault(id(tensor), (name.replace("_orig_mod.", ""), tensor))
    return dict(first.values())


def peft_settings(model: nn.Module) -> dict:
    """Return what PEFT's adapter_config.json says of a model's LoRA."""
    transposed = any(m.transposed for m in model.modules() if isinstance(m, LoRALinear))
    return {"peft_type": "LORA", **asdict(config_of(model)), "fan_in_fan_out": transposed}


def config_in(entries: dict) -> LoraConfig:
    """Return the configuration in the entries of an adapter_config.json."""
    known = {field.name for field in fields(LoraConfig)}
    if not isinstance(entries, dict) or entries.get("target_modules") is None:
        raise ValueError("target_modules is missing")
    for name, value in entries.items():
        unset = value is None or value is False or value in ("", [], {})
        is_served = value in ALLOWED[name] if name in ALLOWED else unset or name in known | HARMLESS
        if not is_served:
            raise ValueError(f"{name} = {value!r} is not supported here")
    return LoraConfig(**{name: entries[name] for name in known & entries.keys()})


def save_lora(model: nn.Module, folder: Path | str) -> None:
    """Write what was trained into a folder, as PEFT does; its base is not part of it."""
    from safetensors.torch import save_file

    settings, tensors = json.dumps(peft_settings(model), indent=2), lora_tensors(model)
    copies = {PREFIX + n: t.detach().cpu().clone().contiguous() for n, t in tensors.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(copies, Path(folder, WEIGHTS), {"format": "pt"})
    Path(folder, CONFIG).write_text(settings)


def load_lora(model: nn.Module, folder: Path | str) -> None:
    """Add to a model what `save_lora` or PEFT has written; what trained before trains again.

    A file that does not fit the model is a ValueError, and leaves the model as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = config_in(json.loads((path := Path(folder, CONFIG)).read_text()))
        tensors = load_file(path := Path(folder, WEIGHTS))
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from None
    saved = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    trained = {p: p.requires_grad for p in model.parameters()}
    add_lora(model, config)
    here = lora_tensors(model)
    for name in sorted(saved.keys() | here.keys()):
        there, place = (tuple(t[name].shape) if name in t else "missing" for t in (saved, here))
        if there != place or here[name].is_meta:
            place = "without memory" if there == place else place
            for path, module in list(modules.items())[1:]:  # but for the model itself
                model.set_submodule(path, module)
            for parameter, flag in trained.items():
                parameter.requires_grad_(flag)
            raise ValueError(f"{folder}: {name} is {there} there and {place} in the model")
    with torch.no_grad():
        for name, tensor in here.items():
            tensor.copy_(saved[name])
