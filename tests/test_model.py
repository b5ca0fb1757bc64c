"""The two models against Hugging Face's and PyTorch's own, and the device that they compute on."""

import gc
import subprocess
import sys
import weakref
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NANO
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from data_utils import pack
from model import dense_blocks, packed_attention, padded_block, varlen_blocks
from student import CELLS, DistilRNN, recurrent_states
from support import PROJECT, processes
from support.bases import load_tokenizer
from support.checkpoints.export import save_onnx
from support.corpus import DEV, TRAIN
from support.devices import CPU, choose_device, has_bf16, note_slow_bf16
from support.errors import UserError

# ---------------------------------------------------------------------------------------------
# Classifier


def varlen_attn(q, k, v, starts, ends, reach, longest, *, scale, window_size, enable_gqa):
    """What PyTorch documents of its kernel for variable lengths, which needs a GPU."""
    assert window_size == (-1, 0)  # causal
    assert longest == ends.diff().max()
    assert reach == starts.diff().max()
    outputs, settings = [], {"scale": scale, "enable_gqa": enable_gqa}
    for (a, b), (c, d) in zip(pairwise(starts.tolist()), pairwise(ends.tolist()), strict=True):
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        one = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
        out = F.scaled_dot_product_attention(*one, attn_mask=mask, **settings)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("heads", [6, 2])
@pytest.mark.parametrize("attend", [padded_block, varlen_blocks])
def test_one_call_attends_as_blocks_do(nano_corpus, monkeypatch, attend, heads, last_only):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    batch = pack(nano_corpus[DEV], np.arange(60))
    torch.manual_seed(0)
    q, k, v = torch.randn(3, len(batch.input_ids), 6, 8)
    arguments = q, k[:, :heads], v[:, :heads], batch, last_only, 0.3
    torch.testing.assert_close(attend(*arguments), dense_blocks(*arguments))


def test_the_kernel_for_variable_lengths_is_for_bf16_in_hardware(nano_corpus, monkeypatch):
    asked, batch = [], pack(nano_corpus[DEV], np.arange(3))
    query = torch.randn(1, 2, len(batch.input_ids), 4)
    monkeypatch.setattr("model.varlen_blocks", lambda q, *_: asked.append(q.dtype) or q)
    for half, in_hardware in ((False, True), (True, False), (True, True)):
        assert not asked
        monkeypatch.setattr("model.has_bf16", lambda device, found=in_hardware: found)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            packed_attention(nn.Identity(), query, query, query, None, 0.5, batch=batch)
    assert asked == [torch.bfloat16]


# ---------------------------------------------------------------------------------------------
# DistilRNN


class TwiceTheInput(nn.GRU):
    """A layer of somebody's own, which is a GRU by its class alone."""

    def forward(self, x: PackedSequence) -> tuple:
        return super().forward(x._replace(data=2 * x.data))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    "cell",
    [
        nn.GRU, partial(nn.GRU, bias=False), partial(nn.GRU, bidirectional=True), TwiceTheInput,
        nn.RNN, partial(nn.LSTM, proj_size=3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sizes", [[3], [4, 4, 1], [1, 1, 1]])
def test_states_and_their_gradients_are_pytorchs(sizes, cell, layers):
    torch.manual_seed(0)
    rnn = cell(5, 7, layers).double()
    x = torch.randn(sum(sizes), 5, dtype=torch.double, requires_grad=True)
    expected = rnn(PackedSequence(x, torch.tensor(sizes)))[0].data
    found = recurrent_states(rnn, x, torch.tensor(sizes))
    torch.testing.assert_close(found, expected)
    wanted, g = [x, *rnn.parameters()], torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, wanted, g) for y in (found, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("cell", CELLS)
def test_a_student_is_its_layer_read_at_each_last_token(nano_corpus, cell):
    batch = pack(nano_corpus[TRAIN], np.arange(32))
    torch.manual_seed(0)
    student = DistilRNN(batch.input_ids.unique(), 24, cell=cell, layers=2)
    logits, states, tokens = student.outputs(batch)
    rows = student.rows(batch.input_ids).split(batch.cu_seqlens.diff().tolist())
    alone = [student.rnn(student.embedding(row))[0] for row in rows]
    torch.testing.assert_close(states, torch.cat(alone)[tokens])
    expected = torch.stack([student.linear(of_sentence[-1]) for of_sentence in alone])
    torch.testing.assert_close(logits, expected)


def test_a_step_frees_its_states_at_once():
    """Without waiting for the collector of circles, while a run's memory grows by gigabytes."""
    gc.disable()
    try:
        states = recurrent_states(nn.GRU(5, 7), torch.randn(9, 5), torch.tensor([4, 4, 1]))
        states.sum().backward()
        node = weakref.ref(states.grad_fn)
        del states
        assert node() is None
    finally:
        gc.enable()


def test_a_students_dropout_is_for_training_alone(nano_corpus):
    batch = pack(nano_corpus[DEV], np.arange(9))
    student = DistilRNN(batch.input_ids.unique(), 16, dropout=0.5)
    plain = DistilRNN(batch.input_ids.unique(), 16)
    plain.load_state_dict(student.state_dict())
    assert torch.equal(student.eval()(batch), plain(batch))  # none is the default, in training too
    assert not torch.equal(student.train()(batch), student(batch))


def test_training_the_rows_that_occur_is_training_the_full_embedding(nano_corpus):
    """Three steps of Adam: the same losses, and the same rows afterwards."""
    split, losses = nano_corpus[TRAIN], []
    occurring = split.input_ids.unique()
    assert len(occurring) < 1000
    compact, full = DistilRNN(occurring), DistilRNN(torch.arange(1000))
    full.rnn.load_state_dict(compact.rnn.state_dict())
    full.linear.load_state_dict(compact.linear.state_dict())
    full.embedding.weight.data[occurring] = compact.embedding.weight.data[:-1]
    for model in (compact, full):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(3):
            batch = pack(split, np.arange(64) + 64 * step)
            loss = F.cross_entropy(model(batch), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-6)
    torch.testing.assert_close(compact.embedding.weight[:-1], full.embedding.weight[occurring])


def test_a_token_outside_the_vocabulary_reads_the_row_of_zeros():
    model = DistilRNN(torch.tensor([3, 5, 8]))
    assert model.rows(torch.tensor([0, 3, 4, 5, 8, 9])).tolist() == [3, 0, 3, 1, 2, 3]
    assert not model.embedding.weight[3].any()


# ---------------------------------------------------------------------------------------------
# The device


@pytest.mark.parametrize(
    ("capability", "others", "precision"),
    [((7, 5), (8, 0), "fp32"), ((8, 0), (7, 5), "bf16"), ((10, 0), (7, 5), "bf16")],
)
def test_bf16_is_for_a_gpu_that_has_it_in_hardware(monkeypatch, capability, others, precision):
    """The GPU that computes decides, whatever the others can do."""
    device, one = torch.device("cuda:1"), torch.zeros(1)
    monkeypatch.setattr("torch.zeros", lambda *size, device: one)
    monkeypatch.setattr(
        "torch.cuda.get_device_capability", lambda of=None: capability if of == device else others
    )
    assert choose_device("cuda:1") == (device, precision)
    assert has_bf16(device) == (precision == "bf16")
    assert choose_device("cuda:1", "fp32").precision == "fp32"
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["meta", "cuda:99", "nonsense"])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(UserError, match=f"--device {name}: not usable here .*; use cpu"):
        choose_device(name)


def test_a_device_that_another_process_lacks_is_refused_in_all(monkeypatch):
    """Each raises the first one's error."""
    words, gather = "--device cuda:1: not usable here", "torch.distributed.all_gather_object"
    monkeypatch.setattr(gather, lambda messages, _: messages.insert(0, words))
    monkeypatch.setattr(processes, "rank_and_processes", lambda: (0, 2))
    with pytest.raises(UserError, match=words):
        choose_device("cpu")


@pytest.mark.parametrize("features", ["avx512f", "avx512f avx512_bf16", "asimd bf16", ""])
def test_a_processor_that_emulates_bf16_is_told_of_once(features, monkeypatch, capsys):
    monkeypatch.setattr("support.devices.cpuinfo", lambda: features)
    note_slow_bf16.cache_clear()
    for precision in ("bf16", "bf16", "fp32"):
        choose_device("cpu", precision)
    said = "note: --precision bf16: this processor has no bf16"
    assert capsys.readouterr().err.count(said) == (features == "avx512f")


def test_a_process_first_calls_of_tanh_and_exp_are_of_one_element():
    """Which is one thread's: where two make it together, one may run a coarse kernel."""
    code = """
import torch
with torch.profiler.profile(record_shapes=True) as profile:
    from support.setup import setup
    setup()
print([(e.name, e.input_shapes) for e in profile.events() if e.name in ("aten::tanh", "aten::exp")])
"""
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True)
    assert printed.strip() == "[('aten::tanh', [[1]]), ('aten::exp', [[1]])]"


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_a_student_trains_under_bf16_on_the_cpu(nano_corpus, cell):
    """Products are rounded, to 8 bits; states are kept and added in fp32. PyTorch's are in fp32."""
    batch = pack(nano_corpus[TRAIN], np.arange(32))
    torch.manual_seed(0)
    student = DistilRNN(batch.input_ids.unique(), 32, cell=cell)
    found = {}
    for precision in ("fp32", "bf16"):
        with choose_device("cpu", precision).autocast():
            logits, states, _ = student.outputs(batch)
        logits.float().square().sum().backward()
        found[precision] = [logits.float(), states, *(p.grad for p in student.parameters())]
        student.zero_grad()
    for exact, rounded in zip(*found.values(), strict=True):
        assert exact.dtype == rounded.dtype == torch.float32
        apart = (rounded - exact).norm()
        assert apart == 0 if cell == "rnn" else 0 < apart < 0.02 * exact.norm()


def test_a_cell_that_onnx_has_no_form_for_is_refused_by_its_name(monkeypatch, tmp_path):
    for cell, layer in {"odd": TwiceTheInput, "unbiased": partial(nn.GRU, bias=False)}.items():
        monkeypatch.setitem(CELLS, cell, layer)
        student = DistilRNN(torch.arange(9), 8, cell=cell)
        with pytest.raises(UserError, match=f"cell {cell} cannot be written as ONNX"):
            save_onnx(student, load_tokenizer(NANO), tmp_path, tmp_path)
        assert not list(tmp_path.iterdir())
