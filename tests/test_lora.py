"""LoRA against its definition and against PEFT."""

import os
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import NANO, change_config, classifier, nano_lora, padded_logits, trained
from torch import nn
from transformers import GPT2Config, GPT2Model
from transformers import GPT2ForSequenceClassification as Reference

from bench.parity import hugging_face
from data_utils import Split, load_corpus, pack, tokenize
from finetune import load_teacher, published_config
from lora import LoraConfig, LoRALinear, add_lora, lora_tensors, peft_settings
from model import Classifier, load_classifier
from support.bases import base_fingerprint, load_tokenizer
from support.checkpoints.adapters import PREFIX, write_adapter
from support.devices import CPU, choose_device
from support.errors import UserError
from support.files import read_tensors, write_tensors
from train_utils import Counts, count_parameters, cross_entropy, predict_logits

PUBLISHED = dict(
    r=4, lora_alpha=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True,
    bias="lora_only", modules_to_save=["score", "ln_f"], task_type="SEQ_CLS",
)  # fmt: skip


def save(model: Classifier, folder: Path) -> None:
    """As `run_lora` does."""
    base_print = base_fingerprint(classifier().backbone)
    write_adapter(folder, peft_settings(model), lora_tensors(model), str(NANO), base_print)


def load_adapter(folder: Path, variant: str | None = None):
    """As it was saved, its LoRA layers in place."""
    return load_teacher(folder, variant, merged=False)


def tensors_of(folder):
    return read_tensors(folder / "adapter_model.safetensors")[0]


def assert_same_bits(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def split(nano_corpus) -> Split:
    """Two hundred sentences of nano's."""
    sentences = nano_corpus["in_domain_dev"].sentences[:200]
    return tokenize(load_tokenizer(NANO), sentences, [0] * 200, 512, "nano")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A trained adapter of ours on nano; no test may change it."""
    save(trained(nano_lora()), folder := tmp_path_factory.mktemp("saved"))
    return folder


@pytest.fixture
def adapter(saved, tmp_path) -> Path:
    """A copy of it that a test may break."""
    return shutil.copytree(saved, tmp_path / "adapter")


# ---------------------------------------------------------------------------------------------
# The model


def test_gradients_under_bf16_are_those_of_fp32_but_for_rounding(split):
    batch, found = pack(split, np.arange(64)), {}
    for precision in ("fp32", "bf16"):
        device = choose_device("cpu", precision)
        model = device.place(trained(nano_lora()))
        with device.autocast():
            loss = cross_entropy(model(batch), batch, Counts.of(split, np.arange(64)))
        loss.backward()
        found[precision] = [loss.detach(), *(p.grad for p in lora_tensors(model).values())]
    for exact, rounded in zip(*found.values(), strict=True):
        assert exact.dtype == rounded.dtype == torch.float32
        assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


def test_the_initial_a_and_b_are_pefts_bit_for_bit():
    layer = nn.Linear(5, 7)
    model = nn.Sequential(deepcopy(layer))
    torch.manual_seed(5)
    ours = LoRALinear(layer, LoraConfig([], r=4))
    torch.manual_seed(5)
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"]))
    wrapped = theirs.base_model.model[0]
    assert torch.equal(ours.lora_A.weight, wrapped.lora_A.default.weight)
    assert torch.equal(ours.lora_B.weight, wrapped.lora_B.default.weight)
    assert ours.lora_A.weight.std() > 0.1


@pytest.mark.parametrize(
    ("size", "trainable", "total", "reduction"),
    [
        (dict(), 675_840, 125_034_240, "99.46%"),
        (dict(n_embd=1024, n_layer=24, n_head=16), 1_798_144, 356_402_176, "99.50%"),
    ],
    ids=["gpt2", "gpt2-medium"],
)
def test_the_counts_are_the_published_ones(size, trainable, total, reduction):
    with torch.device("meta"):
        model = Classifier(GPT2Model(GPT2Config(**size)))
        add_lora(model, published_config(model))
        theirs = peft.get_peft_model(
            Reference(GPT2Config(num_labels=2, **size)), peft.LoraConfig(**PUBLISHED)
        )
    count = count_parameters(model)
    # PEFT keeps the untrained originals of `modules_to_save`, score and ln_f, beside its copies.
    originals = 4 * model.transformer.config.n_embd
    assert (count["trainable"], count["total"] + originals) == (trainable, total)
    assert theirs.get_nb_trainable_parameters() == (trainable, total)
    assert f"{1 - count['trainable'] / count['total']:.2%}" == reduction


# ---------------------------------------------------------------------------------------------
# PEFT's format


CONFIGURATIONS = {
    "published": PUBLISHED,
    "rslora, another rank and alpha": {**PUBLISHED, "r": 2, "lora_alpha": 7, "use_rslora": True},
    "attention only, no biases": {**PUBLISHED, "target_modules": ["c_attn"], "bias": "none"},
    "a pattern": {**PUBLISHED, "target_modules": r".*\.h\.[01]\.mlp\.c_proj", "lora_dropout": 0.3},
    "every bias": {**PUBLISHED, "bias": "all", "modules_to_save": ["score"]},
    "names that end alike": {**PUBLISHED, "modules_to_save": ["score", "f", "ln_2"]},
    "score alone": {k: v for k, v in PUBLISHED.items() if k != "modules_to_save"},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_pefts_adapter_gives_the_same_logits_here_and_comes_back_with_every_bit(
    name, tmp_path, split
):
    config = peft.LoraConfig(**CONFIGURATIONS[name])
    theirs = trained(peft.get_peft_model(hugging_face(NANO), config)).eval()
    theirs.save_pretrained(folder := tmp_path / "peft")
    expected = padded_logits(theirs, split)
    assert expected.std() > 0.01
    found = predict_logits(load_teacher(folder).model, split, CPU)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    save(load_adapter(folder).model, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(hugging_face(NANO), tmp_path / "ours")
    again.save_pretrained(tmp_path / "theirs")
    for later in ("ours", "theirs"):
        assert_same_bits(tensors_of(folder), tensors_of(tmp_path / later))


# ---------------------------------------------------------------------------------------------
# Adapters that cannot be used


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(r=3), r"lora_A.weight is \(4, .* where the model has \(3, "),
        (dict(r=0), "r = 0; it is 1 or more"),
        (dict(r=10_000), "rank 10000 does not fit"),
        (dict(r=10**400), "too large for fp32"),
        (dict(task_type="CAUSAL_LM"), "task_type = 'CAUSAL_LM' is not supported"),
        (dict(alpha_pattern={"c_attn": 2}), "alpha_pattern = .* is not supported"),
        (dict(layers_to_transform=0), "layers_to_transform = 0 is not supported"),
        (dict(init_lora_weights="pissa"), "init_lora_weights = .* is not supported"),
        (dict(revision="some-branch"), "revision = .* is not supported"),
        (dict(target_modules=["c_attn"]), "has no place in this model"),
        (dict(target_modules="all"), r"no layer .* is one of \['all'\]; "),
        (dict(target_modules="(c_attn"), r"target_modules = '\(c_attn'"),
        (dict(target_modules=r"(.|\w)+m"), "takes too long to match"),
        (dict(target_modules="(a{999}){999}"), "the pattern is too large"),
        (dict(base_model_name_or_path=None), "names no base model"),
        (dict(base_model_name_or_path="gone"), "base model gone: neither one of"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused_by_name(adapter, changes, words):
    change_config(adapter, "adapter_config.json", **changes)
    with pytest.raises(UserError, match=words):
        load_adapter(adapter)


def test_an_adapter_of_pefts_is_used_on_the_base_that_it_names_alone(tmp_path):
    """PEFT's files carry no fingerprint: the base that they name is looked at."""
    other = hugging_face(NANO)
    nn.init.normal_(other.transformer.wpe.weight)
    other.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, tmp_path / "other" / name)
    base = hugging_face(tmp_path / "other")
    peft.get_peft_model(base, peft.LoraConfig(**PUBLISHED)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="was trained on another base"):
        load_adapter(tmp_path / "adapter", "nano")
    copied = shutil.copytree(tmp_path / "other", tmp_path / "copy")
    load_adapter(tmp_path / "adapter", str(copied))  # the same weights by another name
    load_adapter(tmp_path / "adapter")


def test_an_adapter_of_another_base_or_version_or_without_a_head_is_refused(adapter):
    path, tensors = adapter / "adapter_model.safetensors", tensors_of(adapter)
    headless = {name: t for name, t in tensors.items() if name != PREFIX + "score.weight"}
    for content, metadata, words in (
        (tensors, {"base_sha256": "of another"}, "was trained on another base"),
        (tensors, {"base_fingerprint": "0" * 64}, "an earlier version of this project wrote it"),
        (headless, {}, r"no score\.weight, the classifier's head"),
    ):
        write_tensors(path, content, metadata)
        with pytest.raises(UserError, match=words):
            load_adapter(adapter)
    for keep in (5000, 100, 7, 0):
        os.truncate(path, keep)
        with pytest.raises(UserError, match="truncated"):
            load_adapter(adapter)


# ---------------------------------------------------------------------------------------------
# What was saved, and the merged model


def test_the_fingerprint_tells_base_scaling_and_weights(saved, adapter, tmp_path):
    original = load_adapter(saved).fingerprint
    assert load_adapter(adapter).fingerprint == original
    assert load_adapter(adapter, "nano").fingerprint == original
    change_config(adapter, "adapter_config.json", lora_alpha=8)
    scaled = load_adapter(adapter).fingerprint
    change_config(adapter, "adapter_config.json", lora_alpha=4)
    tensors = tensors_of(adapter)
    tensors[PREFIX + "score.weight"][0, 0] += 1
    write_tensors(adapter / "adapter_model.safetensors", tensors, {})
    assert len({original, scaled, load_adapter(adapter).fingerprint}) == 3


def test_at_full_size_logits_are_hugging_faces_and_with_an_adapter_pefts(tmp_path, cola, tokenizer):
    """GPT-2 base's size with random weights, 50 real sentences."""
    split = load_corpus(cola, tokenizer, 1024)["in_domain_dev"].chosen(np.arange(50))
    reference = Reference(GPT2Config(num_labels=2, pad_token_id=50256)).eval()
    reference.save_pretrained(tmp_path / "base")
    ours = load_classifier(tmp_path / "base").eval()
    ours.score.load_state_dict(reference.score.state_dict())
    untrained = padded_logits(reference, split)
    torch.testing.assert_close(predict_logits(ours, split, CPU), untrained, atol=1e-5, rtol=1e-5)
    add_lora(ours, published_config(ours))
    save(trained(ours).eval(), tmp_path)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path).eval()
    expected = padded_logits(theirs, split)
    assert (expected - untrained).abs().min() > 1e-3  # what is compared is the adapter's doing
    torch.testing.assert_close(predict_logits(ours, split, CPU), expected, atol=1e-4, rtol=1e-4)
