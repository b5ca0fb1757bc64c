"""lora.py as a library: modules and uses of every ordinary kind, beside merged weights and PEFT."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy

import peft
import pytest
import torch
import torch.nn.functional as F
from conftest import change_config
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import lora
from lora import LoraConfig, LoRALinear, add_lora, load_lora, merge_lora, remove_lora, save_lora
from support import PROJECT


class Tied(nn.Module):
    """A language model's ends: a head with the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x.argmax(dim=-1)))


class Twice(nn.Module):
    """A layer or a block under two names, called by both, as in models that repeat a layer."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.first = self.second = part

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Attends(nn.Module):
    """PyTorch's own attention, which reads its out_proj's weight and does not call it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


def encoder_layer(**settings) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, **settings)


MODELS = {  # what makes each, and its targets
    "Linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), ["0", "2"]),
    "without bias": (lambda: nn.Sequential(nn.Linear(6, 8, bias=False)), ["0"]),
    "float64": (lambda: nn.Sequential(nn.Linear(6, 8)).double(), ["0"]),
    "bfloat16": (lambda: nn.Sequential(nn.Linear(6, 8)).bfloat16(), ["0"]),
    "Conv1D": (lambda: nn.Sequential(Conv1D(8, 6), nn.Tanh(), Conv1D(5, 8)), ["0", "2"]),
    "inside modules": (lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 4))), ["0.0"]),
    "a pattern": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), r"[01]"),
    "MultiheadAttention": (Attends, ["out_proj"]),
    "TransformerEncoderLayer": (encoder_layer, ["linear1", "linear2"]),
    "the same, all of it": (encoder_layer, ["linear1", "linear2", "out_proj"]),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(encoder_layer(), 2),
        ["linear1", "linear2", "out_proj"],
    ),
    "a tied head": (Tied, ["head"]),
    "two names": (lambda: Twice(nn.Linear(6, 6)), ["first"]),
    "its second name": (lambda: Twice(nn.Linear(6, 6)), ["second"]),
    "a shared block": (lambda: Twice(nn.Sequential(nn.Linear(6, 6))), ["first.0"]),
}
# PEFT wraps a layer of two names at one of them, and loses a correction to an out_proj. In eval()
# it loses those of a TransformerEncoderLayer too: it is compared in train().
NOT_IN_PEFT = {
    "two names", "its second name", "MultiheadAttention", "the same, all of it",
    "TransformerEncoder",
}  # fmt: skip


def example(model: nn.Module, rows: int = 3) -> Tensor:
    """Return an input (rows, 4, 6) in the model's dtype."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 4, 6, generator=generator, dtype=torch.float64)
    return x.to(next(model.parameters()).dtype)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]()


def config_for(name: str, **settings) -> LoraConfig:
    return LoraConfig(MODELS[name][1], **{"r": 2, "lora_alpha": 6, **settings})


def trained(name: str, **settings) -> nn.Module:
    """Return a model whose LoRA was trained for some steps."""
    model = made(name)
    add_lora(model, config_for(name, **settings))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.05)
    for _ in range(5):
        (model(example(model)).float() - 1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def by_definition(name: str, model: nn.Module, x: Tensor) -> Tensor:
    """Return what the plain model gives with W0 + s B A for its weights, and the same biases."""
    tensors = {}
    for path, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, LoRALinear):
            W0, bias = layer.base_layer.weight, layer.base_layer.bias
            BA = layer.lora_B.weight.double() @ layer.lora_A.weight.double()
            BA = BA.T if isinstance(layer.base_layer, Conv1D) else BA
            tensors[f"{path}.weight"] = (W0.double() + 6 / 2 * BA).to(W0.dtype)
            tensors |= {} if bias is None else {f"{path}.bias": bias}
    assert tensors
    plain = made(name).train(model.training).requires_grad_(False)
    return functional_call(plain, tensors, (x,), tie_weights=False)


def assert_close(found: Tensor, expected: Tensor, loose: bool = False) -> None:
    assert found.dtype == expected.dtype
    loose = loose or found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, **({"atol": 0.06, "rtol": 0.06} if loose else {}))


def gradients(model: nn.Module, y: Tensor, *others: Tensor) -> list[Tensor]:
    """Return the gradients of all that trains, and of other tensors."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(y.square().sum(), [*parameters, *others]))


# ---------------------------------------------------------------------------------------------
# Modules


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad", "autocast"])
def test_any_module_computes_what_the_definition_says(name, mode):
    """In eval() and without gradients PyTorch's own layers take their fast paths."""
    model, plain = trained(name, bias="lora_only"), made(name)
    for one in (model, plain):
        one.train(mode in ("train", "autocast"))
    x, rounded = example(model), mode == "autocast"
    with torch.set_grad_enabled(mode != "no_grad"), torch.autocast("cpu", enabled=rounded):
        found, expected = model(x), by_definition(name, model, x)
        assert_close(found, expected, rounded)
        assert (found - plain(x)).abs().max() > 0.05  # it was trained
        merge_lora(model)
        assert_close(model(x), expected, rounded)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"bfloat16", "a tied head"}))
def test_any_gradient_is_that_of_the_definition_and_w0_has_one_where_it_is_to_train(name):
    """An argmax stands before the tied head; bfloat16 rounds each product in another place."""
    model = trained(name, bias="lora_only").train()
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            layer.base_layer.weight.requires_grad_(True)
    x = example(model).requires_grad_(True)
    found, expected = (gradients(model, y, x) for y in (model(x), by_definition(name, model, x)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - NOT_IN_PEFT))
def test_any_adapter_is_read_by_peft_and_read_again(name, tmp_path):
    model = trained(name)
    x = example(model)
    save_lora(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(made(name), tmp_path / "ours").train()
    assert_close(theirs(x), model(x))
    theirs.save_pretrained(tmp_path / "theirs")
    again = made(name)
    load_lora(again, tmp_path / "theirs")
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_any_adapter_that_was_saved_is_loaded_with_every_bit(name, tmp_path):
    model, again = trained(name, bias="lora_only"), made(name)
    save_lora(model, tmp_path)
    load_lora(again, tmp_path)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), atol=0, rtol=0)
    trains = [[n for n, p in m.named_parameters() if p.requires_grad] for m in (model, again)]
    assert trains[0] == trains[1]


@pytest.mark.parametrize("name", MODELS)
def test_what_lora_was_taken_from_is_the_model_as_it_was(name):
    remove_lora(model := trained(name))
    torch.testing.assert_close(model.state_dict(), made(name).state_dict(), atol=0, rtol=0)
    add_lora(model, config_for(name))  # and can have it again


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_and_b_are_where_the_layer_is_and_not_in_half_precision(kind):
    model = nn.Sequential(nn.Linear(4, 4, dtype=kind, device="meta"))
    add_lora(model, LoraConfig(["0"], r=2))
    for part in (model[0].lora_A, model[0].lora_B):
        assert part.weight.device.type == "meta"
        assert part.weight.dtype == (torch.float64 if kind == torch.float64 else torch.float32)


@pytest.mark.parametrize("dropout", [0.0, 1e-9])
@pytest.mark.parametrize("mixed", [True, False])
def test_a_correction_smaller_than_half_precision_rounds_is_not_lost(dropout, mixed):
    """bf16 has 8 bits: 1e-3 beside outputs of 1 is half a step. With dropout too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4096, bias=False))
    nn.init.normal_(model[0].weight, std=1 / 8)
    model = model if mixed else model.bfloat16()
    plain = deepcopy(model)
    add_lora(model, LoraConfig(["0"], r=2, lora_alpha=2, lora_dropout=dropout))
    nn.init.constant_(model[0].lora_A.weight, 1 / 64)
    nn.init.constant_(model[0].lora_B.weight, 1e-3)
    x = torch.ones(8, 64, dtype=torch.float32 if mixed else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = (model.train()(x).float() - plain(x).float()).mean()
    torch.testing.assert_close(found.item(), 2e-3, rtol=0.1, atol=0)


# ---------------------------------------------------------------------------------------------
# Uses


USES = {
    "compiled": lambda model, x: torch.compile(model, backend="aot_eager")(x),
    "traced": lambda model, x: torch.fx.symbolic_trace(nn.Sequential(*model))(x),
    "checkpointed": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "by row": lambda model, x: vmap(model)(x),
}


@pytest.mark.parametrize(
    ("use", "name"),
    [(use, "Linear") for use in USES]
    + [("compiled", "Conv1D"), ("compiled", "MultiheadAttention")],
)
def test_any_use_gives_the_same_values_and_gradients(use, name):
    model = trained(name)
    x = example(model).requires_grad_(True)
    found, expected = USES[use](model, x), model(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(model, found, x), gradients(model, expected, x))


def test_a_copy_is_another_model():
    model = trained("Linear")
    x = example(model)
    merge_lora(copied := deepcopy(model))
    torch.testing.assert_close(copied(x), model(x))
    assert isinstance(model[0], LoRALinear)
    with torch.inference_mode():
        torch.testing.assert_close(copied(x), model(x))


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 0, 6), (5, 6), (2, 3, 4, 6)])
def test_any_shape_is_taken_that_the_plain_layer_takes(shape):
    model, x = trained("Linear"), torch.randn(shape)
    torch.testing.assert_close(model(x), by_definition("Linear", model, x))
    for other in ((3, 7), (6, 4, 9)):  # the latter has as many numbers as whole rows have
        with pytest.raises(RuntimeError):
            model(torch.randn(other))


def test_dropout_acts_on_what_a_reads_while_training_alone():
    model = made("Linear").eval()  # and stays so
    add_lora(model, config_for("Linear", lora_dropout=0.5))
    nn.init.normal_(model[0].lora_B.weight)
    x = torch.randn(100, 6)
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))
    torch.manual_seed(7)
    found = model[0](x)
    torch.manual_seed(7)
    A, B = model[0].lora_A.weight, model[0].lora_B.weight
    expected = model[0].base_layer(x) + 3 * F.dropout(x, 0.5) @ A.T @ B.T
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------------------------------------
# What trains


class Small(nn.Module):
    """Names that end alike: PEFT's ``modules_to_save`` goes by the end, after a dot or not."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))
        self.input_layernorm, self.norm = nn.LayerNorm(6), nn.BatchNorm1d(4)
        self.score, self.plain = nn.Linear(6, 2), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.norm(self.input_layernorm(self.plain(self.inner(x)))))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": "lora_only"},
        {"bias": "all"},
        {"modules_to_save": ["score"]},
        {"modules_to_save": ["norm"], "bias": "lora_only"},
        {"modules_to_save": ["score", "plain"], "target_modules": ["0", "plain"]},
        {"use_rslora": True, "r": 3},
    ],
    ids=str,
)
def test_the_same_trains_as_in_peft_and_the_same_is_saved(settings, tmp_path):
    settings = {"target_modules": ["0"], "r": 2, **settings}
    torch.manual_seed(0)
    ours = Small()
    theirs = peft.get_peft_model(deepcopy(ours), peft.LoraConfig(**settings))
    add_lora(ours, LoraConfig(**settings))
    counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    assert counts[0] == counts[1]
    expected = {name: t.shape for name, t in peft.get_peft_model_state_dict(theirs).items()}
    found = {lora.PREFIX + name: t.shape for name, t in lora.lora_tensors(ours).items()}
    assert found == expected
    with torch.no_grad():
        for tensor in lora.lora_tensors(ours).values():
            tensor += torch.rand(tensor.shape).to(tensor.dtype)
    save_lora(ours.eval(), tmp_path)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Small(), tmp_path).eval()
    x = example(ours)
    torch.testing.assert_close(again(x), ours(x))


@pytest.mark.parametrize("names", [["embedding"], ["embedding", "head"], ["head"]], ids=str)
def test_what_is_trained_whole_is_a_copy_as_in_peft(names, tmp_path):
    """Of weights that are tied each copy is its own."""
    ours = nn.Sequential(Tied(), nn.Linear(11, 11))
    theirs = peft.get_peft_model(
        deepcopy(ours), peft.LoraConfig(r=2, target_modules=["1"], modules_to_save=names)
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += torch.rand_like(parameter)
    theirs.eval().save_pretrained(tmp_path)
    load_lora(ours.eval(), tmp_path)
    torch.testing.assert_close(ours(example(ours)), theirs(example(ours)))


def test_parts_with_lora_of_other_settings_are_not_saved_as_one(tmp_path):
    parts = nn.Sequential(made("Linear"), made("Linear"))
    for part, alpha in zip(parts, (2, 20), strict=True):
        add_lora(part, LoraConfig(["0"], r=2, lora_alpha=alpha))
    with pytest.raises(ValueError, match="save each part by itself"):
        save_lora(parts, tmp_path)
    save_lora(parts[0], tmp_path)


def test_a_compiled_model_is_saved_and_loaded_by_the_names_of_its_own(tmp_path):
    model = trained("Linear")
    save_lora(torch.compile(model, backend="eager"), tmp_path)
    for again in (made("Linear"), torch.compile(made("Linear"), backend="eager")):
        load_lora(again, tmp_path)
        assert torch.equal(again(example(model)), model(example(model)))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("target_modules", ["(", [1]]),
        ("modules_to_save", ["score"]),
        ("r", ["2", 2.0]),
        ("lora_alpha", [None, float("nan")]),
        ("lora_dropout", ["0.1", 1.5]),
        ("use_rslora", ["no"]),
        ("bias", ["some"]),
    ],
)
def test_what_is_no_configuration_is_refused_at_once(name, values):
    for value in values:
        with pytest.raises(ValueError, match=re.escape(f"{name} = {value!r}")):
            LoraConfig(**{"target_modules": ["0"], name: value})


def test_a_configuration_cannot_change_under_a_model_and_can_be_saved(tmp_path):
    config = LoraConfig({"0"}, r=2)
    with pytest.raises(AttributeError):
        config.lora_alpha = 3
    add_lora(model := made("Linear"), config)
    save_lora(model, tmp_path)
    load_lora(made("Linear"), tmp_path)


def test_the_defaults_are_pefts():
    ours, theirs = LoraConfig(["0"]), peft.LoraConfig(target_modules=["0"])
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "modules_to_save"):
        assert getattr(ours, name) == getattr(theirs, name), name


# ---------------------------------------------------------------------------------------------
# What is refused, when LoRA is added and never later


class Scaled(nn.Linear):
    """A linear layer that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def changed(change: Callable, *arguments) -> nn.Module:
    """Return a model of one layer that was changed."""
    layer = nn.Linear(6, 6).requires_grad_(False)
    change(layer, *arguments)
    return nn.Sequential(layer)


REFUSED = {
    "itself a layer": (lambda: nn.Linear(6, 6), {}, "the model is itself a layer"),
    "by a pattern": (lambda: nn.Linear(6, 6), {"target_modules": ".*"}, "is itself a layer"),
    "twice": (lambda: trained("Linear"), {}, "0 has LoRA already"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(6)), {}, r"0\.weight has no values yet"),
    "weight norm": (lambda: changed(parametrizations.weight_norm), {}, "0: .* is computed"),
    "pruned": (lambda: changed(prune.random_unstructured, "weight", 0.5), {}, "0: .* is computed"),
    "integers": (lambda: changed(nn.Linear.type, torch.int8), {}, "0: its weight is torch.int8"),
    "a subclass": (lambda: nn.Sequential(Scaled(6, 6)), {}, "0: Scaled has a forward of its own"),
    "patched": (lambda: changed(setattr, "forward", torch.tanh), {}, "0: Linear has a forward of"),
    "hooked": (lambda: changed(nn.Linear.register_forward_hook, print), {}, "0: it has hooks"),
    "an embedding": (Tied, {"target_modules": ["embedding"]}, "embedding: .*Embedding is not"),
    "attention itself": (Attends, {"target_modules": ["attention"]}, "MultiheadAttention is not"),
    "a rank too large": (Small, {"target_modules": ["score"], "r": 3}, "score: rank 3 .* 2 x 6"),
    "no rank": (Small, {"r": 0}, "0: rank 0 does not fit"),
    "dropout nobody calls": (
        Attends,
        {"target_modules": ["out_proj"], "lora_dropout": 0.1},
        r"attention\.out_proj: nn.MultiheadAttention",
    ),
    "nothing outside": (Small, {"modules_to_save": ["inner"]}, r"no layer .* of \['inner'\]"),
    "lazy to train": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.LazyLinear(6)),
        {"modules_to_save": ["1"]},
        r"1\.weight has no values yet",
    ),
    "lazy elsewhere": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.LazyLinear(6)),
        {},
        r"1\.weight has no values yet",
    ),
    "integers to train": (
        lambda: nn.Sequential(nn.Linear(6, 6), *changed(nn.Linear.type, torch.int8)),
        {"modules_to_save": ["1"]},
        "1: not all of its parameters can train",
    ),
    "no copy to train": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.utils.weight_norm(nn.Linear(6, 6))),
        {"modules_to_save": ["1"]},
        "1: a weight that is computed cannot be copied",
    ),
    "no such layer": (Small, {"target_modules": ["b"]}, r"one of \['b'\]; .*: 0, score, "),
    "no layer at all": (nn.ReLU, {}, "linear layers: it has none$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_by_name_and_nothing_has_changed(case):
    make, settings, words = REFUSED[case]
    model = make()
    before = [(n, type(m)) for n, m in model.named_modules(remove_duplicate=False)]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=words) as error:
        add_lora(model, LoraConfig(**{"target_modules": ["0"], "r": 2, **settings}))
    assert "\n" not in str(error.value)
    assert [(n, type(m)) for n, m in model.named_modules(remove_duplicate=False)] == before
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 3}, r"0.lora_A.weight is \(2, 6\) there and \(3, 6\) in the model"),
        ({"target_modules": ["2"]}, "0.lora_A.weight is .* there and missing in the model"),
        ({"bias": "lora_only"}, "0.base_layer.bias is missing there"),
        ({"use_dora": True}, "use_dora = True is not supported here"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported here"),
        ({"target_modules": None}, "target_modules is missing"),
    ],
    ids=str,
)
def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(change, words, tmp_path):
    save_lora(trained("Linear"), tmp_path)
    change_config(tmp_path, lora.CONFIG, **change)
    model = made("Linear")
    with pytest.raises(ValueError, match=words):
        load_lora(model, tmp_path)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_a_file_that_is_cut_short_or_a_model_without_memory_is_refused(tmp_path):
    save_lora(trained("Linear"), tmp_path)
    with torch.device("meta"):
        empty = made("Linear")
    with pytest.raises(ValueError, match="without memory in the model"):
        load_lora(empty, tmp_path)
    path = tmp_path / lora.WEIGHTS
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        load_lora(made("Linear"), tmp_path)
    (tmp_path / lora.CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json: "):
        load_lora(made("Linear"), tmp_path)


def test_a_model_without_lora_has_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="the model has no LoRA; call add_lora first"):
        save_lora(nn.Sequential(nn.Linear(2, 2)), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_the_file_is_complete_by_itself_and_needs_pytorch_alone(tmp_path):
    shutil.copy(PROJECT / "lora.py", tmp_path / "copied.py")
    code = (
        "import sys, torch; before = set(sys.modules); import copied; print(*sorted("
        "name.partition('.')[0] for name in set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {"copied", *sys.stdlib_module_names}
