"""What a GPU computes, beside what a processor does: `python -m pytest -m gpu`.

All of it is skipped where there is no GPU.
"""

import numpy as np
import pytest
import torch
from conftest import NANO, nano_lora, trained
from torch import nn

from data_utils import Split, pack
from model import dense_blocks, varlen_blocks
from student import DistilRNN
from support.bases import load_language_model, load_tokenizer, token_ids
from support.corpus import DEV, TRAIN
from support.devices import CPU, choose_device, has_bf16
from support.reporting import read_metrics
from support.teaching.continuations import continuations
from train_utils import Counts, cross_entropy, predict_logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
needs_bf16 = pytest.mark.skipif(
    not has_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    reason="no GPU that multiplies bf16",
)


def gradients(model, split, device) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean cross-entropy over a split, on the CPU."""
    batch = pack(split, np.arange(len(split))).to(device.torch)
    device.place(model).train()
    with device.autocast():
        logits = model(batch)
    cross_entropy(logits.float(), batch, Counts.of(split)).backward()
    return {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


def teacher(_: Split) -> nn.Module:
    """Return a classifier with LoRA's layers in it, their correction no longer zero."""
    return trained(nano_lora())


def student(split: Split) -> nn.Module:
    torch.manual_seed(0)
    return DistilRNN(split.input_ids.unique(), width=64)


@pytest.mark.parametrize("make", [teacher, student])
@pytest.mark.parametrize(
    ("precision", "most"), [("fp32", 1e-4), pytest.param("bf16", 0.05, marks=needs_bf16)]
)
def test_logits_and_gradients_are_the_processors(nano_corpus, make, precision, most):
    split, found = nano_corpus[TRAIN].chosen(np.arange(64)), []
    for device in (CPU, choose_device("cuda", precision)):
        model = make(split)
        found.append(gradients(model, split, device))
        found[-1]["logits"] = predict_logits(model, split, device)
    expected, got = found
    assert len(expected) > 5
    for name in expected:
        if "c_attn.base_layer.bias" not in name:  # a third of it is zero but for rounding
            assert apart(got[name], expected[name]) < most, name


@needs_bf16
def test_the_kernel_for_variable_lengths_is_attention_in_dense_blocks(nano_corpus):
    batch = pack(nano_corpus[TRAIN], np.arange(64)).to("cuda")
    shape = len(batch.input_ids), 6, 64
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    for heads in (6, 2):  # with as many keys as queries, and in groups
        for last_only in (False, True):
            arguments = q, k[:, :heads], v[:, :heads], batch, last_only, 0.125
            found, expected = varlen_blocks(*arguments), dense_blocks(*arguments)
            assert apart(found.float(), expected.float()) < 1e-2


def test_a_writers_likeliest_text_is_the_processors(nano_corpus):
    texts = []
    for device in (CPU, choose_device("cuda", "fp32")):
        model = device.place(load_language_model(NANO))
        anything = torch.ones(model.config.vocab_size, dtype=torch.bool, device=device.torch)
        ids = token_ids(load_tokenizer(NANO), nano_corpus[DEV].sentences[:8])
        generator = torch.Generator(device.torch)
        texts.append(continuations(model, ids, 16, 1, 1, anything, generator))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 8 * 16


def test_a_whole_run_ends_where_the_processors_does(run, tmp_path):
    words = ["--mode", "all", "--gpt_variant", "nano", "--epochs", "1", "--precision", "fp32"]
    for device in ("cpu", "cuda"):
        result = run(*words, "--device", device, "--out_dir", tmp_path / device)
        assert result.returncode == 0, result.stderr
    for mode in ("LoRA", "rnn", "distil"):
        cpu, cuda = (
            read_metrics(tmp_path / device / "checkpoints" / f"{mode}_nano_22915")[DEV]
            for device in ("cpu", "cuda")
        )
        assert cuda["accuracy"] == pytest.approx(cpu["accuracy"], abs=0.03)
