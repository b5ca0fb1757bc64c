"""LoRA against its definition and against PEFT."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from conftest import NANO, packed_copy, padded_logits, random_gpt2
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
)
from transformers.pytorch_utils import Conv1D

from data_utils import UserError, pack
from lora import (
    LoraConfig,
    LoRALinear,
    add_lora,
    load_adapter,
    lora_tensors,
    merge_lora,
    read_config,
    save_adapter,
    save_merged,
    unmerge_lora,
)
from model import GPT2Classifier, base_fingerprint, load_classifier, load_tokenizer
from train_utils import Compute, count_parameters, predict_logits, read_tensors, write_tensors

CPU = Compute(torch.device("cpu"), "fp32")
PUBLISHED = dict(
    r=4, lora_alpha=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True,
    bias="lora_only", modules_to_save=["score", "ln_f"], task_type="SEQ_CLS",
)  # fmt: skip


def layer_of(kind: type) -> nn.Module:
    torch.manual_seed(0)
    return Conv1D(7, 5) if kind is Conv1D else nn.Linear(5, 7)


def trained(model: nn.Module) -> nn.Module:
    """As if trained: noise on everything that trains, B included."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def nano_lora(config: LoraConfig | None = None) -> GPT2Classifier:
    torch.manual_seed(0)
    model = load_classifier(NANO)
    add_lora(model, config or LoraConfig())
    return model


# ---------------------------------------------------------------------------------------------
# The layer


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_layer_is_w0_plus_the_scaled_product_of_b_and_a(kind, rslora):
    base = layer_of(kind)
    layer = LoRALinear(base, LoraConfig(r=2, lora_alpha=6, use_rslora=rslora))
    nn.init.normal_(layer.lora_B.weight)
    w0 = base.weight.T if kind is Conv1D else base.weight
    scaling = 6 / 2**0.5 if rslora else 6 / 2
    weight = w0 + scaling * layer.lora_B.weight @ layer.lora_A.weight
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(layer(x), x @ weight.T + base.bias)


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_the_layer_starts_as_the_layer_it_wraps_bit_for_bit(kind):
    base = layer_of(kind)
    x = torch.randn(3, 5)
    assert torch.equal(LoRALinear(base, LoraConfig())(x), base(x))


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_merging_changes_no_output_and_unmerging_gives_the_bits_back(kind):
    layer = LoRALinear(layer_of(kind), LoraConfig(r=2))
    nn.init.normal_(layer.lora_B.weight)
    before, x = layer.base_layer.weight.clone(), torch.randn(3, 5)
    unmerged = layer(x)
    layer.merge()
    layer.merge()  # a second time does nothing
    assert not torch.equal(layer.base_layer.weight, before)
    torch.testing.assert_close(layer(x), unmerged)
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, before)
    assert torch.equal(layer(x), unmerged)


def test_dropout_acts_while_training_only():
    layer = LoRALinear(layer_of(nn.Linear), LoraConfig(r=2, lora_dropout=0.5))
    nn.init.normal_(layer.lora_B.weight)
    x = torch.randn(100, 5)
    assert torch.equal(layer.eval()(x), layer.eval()(x))
    assert not torch.equal(layer.train()(x), layer.train()(x))


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradients_written_by_hand_are_autograds(kind, bias):
    layer = LoRALinear(layer_of(kind), LoraConfig(r=2, lora_alpha=6)).double()
    nn.init.normal_(layer.lora_B.weight)
    layer.base_layer.weight.requires_grad_(False)
    if not bias and kind is nn.Linear:
        layer.base_layer.bias = None
    layer.base_layer.requires_grad_(False)
    if bias:
        layer.base_layer.bias.requires_grad_(True)
    x = torch.randn(3, 4, 5, dtype=torch.double, requires_grad=True)
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
    plain = layer.base_layer(x) + layer.lora_B(layer.scaling * layer.lora_A(x))
    weights = torch.randn_like(plain)
    found = torch.autograd.grad((layer(x) * weights).sum(), inputs)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    assert len(found) == 3 + bias
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_initial_a_is_pefts():
    torch.manual_seed(5)
    ours = LoRALinear(layer_of(nn.Linear), LoraConfig()).lora_A.weight
    model = nn.Sequential(layer_of(nn.Linear))
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"]))
    bound = 1 / 5**0.5  # Kaiming-uniform with a = sqrt(5) is uniform in +- 1 / sqrt(in)
    for weight in (ours, theirs.base_model.model[0].lora_A.default.weight):
        assert 0.5 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank {rank} does not fit a layer of 5 x 7"):
        LoRALinear(layer_of(Conv1D), LoraConfig(r=rank))


# ---------------------------------------------------------------------------------------------
# The model


def test_lora_at_step_0_is_the_base_model(nano_corpus):
    batch = pack(nano_corpus["in_domain_dev"], np.arange(50))
    torch.manual_seed(0)
    base = load_classifier(NANO)
    with torch.no_grad():
        assert torch.equal(nano_lora()(batch), base(batch))


def test_merged_weights_give_the_same_logits(nano_corpus):
    batch = pack(nano_corpus["in_domain_dev"], np.arange(50))
    model = trained(nano_lora())
    with torch.no_grad():
        unmerged = model(batch)
        merge_lora(model)
        torch.testing.assert_close(model(batch), unmerged, atol=1e-5, rtol=1e-5)
        unmerge_lora(model)
        assert torch.equal(model(batch), unmerged)


def test_frozen_weights_do_not_move_and_trained_ones_do(nano_corpus):
    model = nano_lora().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        batch = pack(nano_corpus["in_domain_train"], np.arange(32) + 32 * step)
        nn.functional.cross_entropy(model(batch), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize(
    ("size", "trainable", "total", "lines"),
    [
        (dict(), 675_840, 125_034_240, ("125.03M", "0.68M", "99.46%")),
        (
            dict(n_embd=1024, n_layer=24, n_head=16),
            1_798_144,
            356_402_176,
            ("356.40M", "1.80M", "99.50%"),
        ),
    ],
    ids=["gpt2", "gpt2-medium"],
)
def test_the_counts_are_the_published_ones(size, trainable, total, lines, capsys):
    from lora import show_parameters

    with torch.device("meta"):
        model = GPT2Classifier(GPT2Model(GPT2Config(**size)))
        add_lora(model, LoraConfig())
        theirs = peft.get_peft_model(
            GPT2ForSequenceClassification(GPT2Config(num_labels=2, **size)),
            peft.LoraConfig(**PUBLISHED),
        )
    assert count_parameters(model)["trainable"] == trainable
    # PEFT keeps the untrained originals of `modules_to_save`, score and ln_f, beside its copies.
    originals = 4 * model.transformer.config.n_embd
    assert count_parameters(model)["total"] + originals == total
    assert theirs.get_nb_trainable_parameters() == (trainable, total)
    show_parameters(model)
    printed = capsys.readouterr().out
    assert all(line in printed for line in lines)


def test_a_model_without_the_targeted_layers_is_refused():
    with pytest.raises(UserError, match="no layer of this model"):
        add_lora(nn.Sequential(nn.Linear(3, 3)), LoraConfig())


# ---------------------------------------------------------------------------------------------
# PEFT's format


def reference_on(base: str) -> GPT2ForSequenceClassification:
    model = GPT2ForSequenceClassification.from_pretrained(base, num_labels=2)
    model.config.pad_token_id = 0
    return model


def test_peft_loads_our_adapter_and_gives_the_same_logits(tmp_path, nano_corpus):
    model = trained(nano_lora())
    save_adapter(
        model, tmp_path, LoraConfig(), "nano", base_fingerprint(load_classifier(NANO).transformer)
    )
    theirs = peft.PeftModel.from_pretrained(reference_on(str(NANO)), tmp_path).eval()
    split = nano_corpus["in_domain_dev"]
    expected = padded_logits(theirs, load_tokenizer(NANO), split.sentences)
    torch.testing.assert_close(predict_logits(model, split, CPU), expected, atol=1e-5, rtol=1e-5)


def test_our_file_has_the_keys_of_pefts_own(tmp_path):
    theirs = peft.get_peft_model(reference_on(str(NANO)), peft.LoraConfig(**PUBLISHED))
    expected = {
        name: tuple(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(theirs).items()
    }
    assert {n: tuple(t.shape) for n, t in lora_tensors(nano_lora()).items()} == expected


CONFIGURATIONS = {
    "published": PUBLISHED,
    "another rank and alpha": {**PUBLISHED, "r": 2, "lora_alpha": 32},
    "rslora": {**PUBLISHED, "use_rslora": True, "lora_alpha": 7},
    "attention only, no biases": {**PUBLISHED, "target_modules": ["c_attn"], "bias": "none"},
    "a pattern": {**PUBLISHED, "target_modules": r".*\.h\.[01]\.mlp\.c_proj", "lora_dropout": 0.3},
    "score alone": {k: v for k, v in PUBLISHED.items() if k != "modules_to_save"},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_we_load_pefts_adapter_and_give_the_same_logits(name, tmp_path, nano_corpus):
    config = peft.LoraConfig(**CONFIGURATIONS[name])
    theirs = trained(peft.get_peft_model(reference_on(str(NANO)), config)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(tmp_path).merged()
    split = nano_corpus["in_domain_dev"]
    expected = padded_logits(theirs, load_tokenizer(NANO), split.sentences)
    assert expected.std() > 0.01
    torch.testing.assert_close(predict_logits(ours, split, CPU), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"rank_pattern": {"c_attn": 2}},
        {"alpha_pattern": {"c_attn": 2}},
        {"layers_to_transform": [0]},
        {"bias": "all"},
        {"task_type": "CAUSAL_LM"},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": 0},
        {"revision": "some-branch"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_setting_that_is_not_supported_is_refused_by_name(settings, tmp_path):
    config = peft.LoraConfig(**{**PUBLISHED, **settings})
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{next(iter(settings))} = .* is not supported"):
        read_config(tmp_path)


# ---------------------------------------------------------------------------------------------
# Adapters that cannot be used


@pytest.fixture
def adapter(tmp_path):
    model = nano_lora()
    base_print = base_fingerprint(load_classifier(NANO).transformer)
    save_adapter(trained(model), tmp_path, LoraConfig(), str(NANO), base_print)
    return tmp_path


def test_an_adapter_of_another_base_is_refused(tmp_path):
    save_adapter(nano_lora(), adapter := tmp_path, LoraConfig(), str(NANO), "of another")
    with pytest.raises(UserError, match="was trained on another base"):
        load_adapter(adapter)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: {**c, "r": 3}, r"lora_A.weight is \(4, .* where the model has \(3, "),
        (lambda c: {**c, "r": 10_000}, "rank 10000 does not fit"),
        (lambda c: {**c, "r": "four"}, "not a LoRA configuration"),
        (lambda c: {**c, "r": True}, "r = True"),
        (lambda c: {**c, "use_rslora": "no"}, "use_rslora = 'no'"),
        (lambda c: {**c, "modules_to_save": "score"}, "modules_to_save = 'score'"),
        (lambda c: {**c, "target_modules": ["c_attn"]}, "has no place in this model"),
        (lambda c: {k: v for k, v in c.items() if k != "lora_alpha"}, "lora_alpha is missing"),
        (lambda c: {**c, "peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        (lambda c: {k: v for k, v in c.items() if k != "task_type"}, "task_type is missing"),
        (lambda c: {**c, "target_modules": "all"}, "target_modules, all$"),
        (lambda c: {**c, "base_model_name_or_path": None}, "names no base model"),
        (lambda c: {**c, "base_model_name_or_path": "gone"}, "base model gone: neither one of"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(adapter, change, words):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=words):
        load_adapter(adapter)


def test_an_adapter_of_pefts_is_used_on_the_base_that_it_names_alone(tmp_path):
    """PEFT's files carry no fingerprint: the base that they name is looked at."""
    other = reference_on(str(NANO))
    torch.nn.init.normal_(other.transformer.wpe.weight)
    other.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, tmp_path / "other" / name)
    base = reference_on(str(tmp_path / "other"))
    peft.get_peft_model(base, peft.LoraConfig(**PUBLISHED)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="was trained on another base"):
        load_adapter(tmp_path / "adapter", "nano")
    copied = shutil.copytree(tmp_path / "other", tmp_path / "copy")
    load_adapter(tmp_path / "adapter", str(copied))  # the same weights by another name
    load_adapter(tmp_path / "adapter")


def test_an_adapter_without_a_head_is_refused(adapter):
    tensors = tensors_of(adapter)
    del tensors["base_model.model.score.weight"]
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modules_to_save": ["ln_f"]}))
    write_tensors(adapter / "adapter_model.safetensors", tensors, {})
    with pytest.raises(UserError, match=r"no score\.weight, the classifier's head"):
        load_adapter(adapter)


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_a_truncated_adapter_is_refused(adapter, keep):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated"):
        load_adapter(adapter)


def test_full_size_adapter_round_trip_through_peft(tmp_path, cola, tokenizer):
    """GPT-2 base's size, 50 real sentences: ours -> PEFT."""
    reference = random_gpt2()
    ours = packed_copy(reference)
    add_lora(ours, LoraConfig())
    trained(ours)
    save_adapter(ours, tmp_path, LoraConfig(), "gpt2", "")
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path).eval()
    from data_utils import load_corpus

    split = load_corpus(cola, tokenizer, 1024)["in_domain_dev"]
    batch = pack(split, np.arange(50))
    with torch.no_grad():
        logits = ours.eval()(batch)
    expected = padded_logits(theirs, tokenizer, split.sentences[:50])[batch.indices]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------
# Round trips, and the merged model


def tensors_of(folder):
    return read_tensors(folder / "adapter_model.safetensors")[0]


def assert_same_bits(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_ours_to_peft_to_ours_keeps_every_bit(adapter, tmp_path):
    theirs = peft.PeftModel.from_pretrained(reference_on(str(NANO)), adapter)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_bits(tensors_of(tmp_path / "theirs"), tensors_of(adapter))
    found = load_adapter(tmp_path / "theirs", str(NANO))
    save_adapter(found.model, tmp_path / "again", found.config, found.base, found.base_print)
    assert_same_bits(tensors_of(tmp_path / "again"), tensors_of(adapter))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_peft_to_ours_to_peft_keeps_every_bit(name, tmp_path):
    config = peft.LoraConfig(**CONFIGURATIONS[name])
    trained(peft.get_peft_model(reference_on(str(NANO)), config)).save_pretrained(tmp_path / "1")
    found = load_adapter(tmp_path / "1")
    save_adapter(found.model, tmp_path / "2", found.config, found.base, found.base_print)
    theirs = peft.PeftModel.from_pretrained(reference_on(str(NANO)), tmp_path / "2")
    theirs.save_pretrained(tmp_path / "3")
    for later in ("2", "3"):
        assert_same_bits(tensors_of(tmp_path / "1"), tensors_of(tmp_path / later))


def test_the_merged_folder_is_a_plain_hugging_face_model(adapter, tmp_path, nano_corpus):
    save_merged(load_adapter(adapter), tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    split = nano_corpus["in_domain_dev"]
    expected = predict_logits(load_adapter(adapter).merged(), split, CPU)
    found = padded_logits(plain, load_tokenizer(tmp_path / "merged"), split.sentences)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert plain.config.id2label[1] == "acceptable"
