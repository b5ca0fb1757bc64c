"""The two models against Hugging Face's and PyTorch's own, and the device that they compute on."""

import gc
import json
import subprocess
import sys
import weakref
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NANO, classifier, onnx_session, packed_copy, padded_logits, random_gpt2
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from transformers import GPT2ForSequenceClassification

from data_utils import load_corpus, pack, tokenize
from model import dense_blocks, packed_attention, padded_block, varlen_blocks
from student import CELLS, DistilRNN, library_states, load_student, recurrent_states
from support import PROJECT, processes
from support.bases import find_base, load_tokenizer, token_ids
from support.checkpoints.export import save_onnx
from support.checkpoints.students import save_student
from support.corpus import TRAIN
from support.devices import CPU, choose_device, has_bf16
from support.errors import UserError
from support.slow_bf16 import note_slow_bf16
from train_utils import predict_logits

RECORD = """
import json
import torch
with torch.profiler.profile(record_shapes=True) as profile:
    from support.setup import setup
    setup()
calls = {}
for event in profile.events():
    if event.name in ("aten::tanh", "aten::exp"):
        calls.setdefault(event.name, []).append(event.input_shapes)
print(json.dumps(calls))
"""


# ---------------------------------------------------------------------------------------------
# Classifier


def test_packed_logits_equal_hugging_faces_on_the_padded_batch(cola, tokenizer, random_base):
    """GPT-2 base's own size and 24 real sentences."""
    split = load_corpus(cola, tokenizer, 1024)["in_domain_dev"]
    batch = pack(split, np.arange(24))
    with torch.no_grad():
        logits = packed_copy(random_base)(batch)
    expected = padded_logits(random_base, tokenizer, split.sentences[:24])[batch.indices]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_packed_logits_equal_hugging_faces_on_nano(nano_corpus):
    reference = GPT2ForSequenceClassification.from_pretrained(NANO, num_labels=2).eval()
    reference.config.pad_token_id = 0
    ours = classifier()
    ours.score.load_state_dict(reference.score.state_dict())
    split = nano_corpus["out_of_domain_dev"].chosen(np.arange(300))  # more than one batch
    expected = padded_logits(reference, load_tokenizer(NANO), split.sentences)
    torch.testing.assert_close(predict_logits(ours, split, CPU), expected, atol=1e-5, rtol=1e-5)


def test_packed_gradients_equal_hugging_faces(tokenizer):
    reference = random_gpt2(n_layer=2, n_embd=96, n_head=4)
    reference.config.embd_pdrop = 0.0
    ours = packed_copy(reference)
    sentences = ["She sat.", "The dog that I saw sat down on the mat.", "He sat.", "We saw them."]
    split = tokenize(tokenizer, sentences, [0] * 4, 1024, "here")
    ours(pack(split, np.arange(4)))[:, 1].sum().backward()
    ids = token_ids(tokenizer, sentences)
    longest = max(map(len, ids))
    padded = torch.tensor([row + [50256] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    reference(input_ids=padded, attention_mask=mask).logits[:, 1].sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("make", [classifier, lambda: student()])
def test_a_sentences_logits_do_not_depend_on_its_neighbours(make, nano_corpus):
    model, split = make().eval(), nano_corpus["in_domain_dev"]
    with torch.no_grad():
        together = pack(split, np.arange(200))
        logits = model(together)
        for place in range(0, 200, 23):
            alone = model(pack(split, together.indices[place : place + 1].numpy()))
            torch.testing.assert_close(alone[0], logits[place], atol=1e-5, rtol=1e-5)


def test_the_kernel_for_variable_lengths_is_asked_for_the_same(nano_corpus, monkeypatch):
    """Its arguments, against a reference of its documented meaning; the kernel needs a GPU."""

    def reference(q, k, v, starts, ends, reach, longest, *, scale, window_size, enable_gqa):
        assert window_size == (-1, 0)  # causal
        assert not enable_gqa  # GPT-2 has as many keys as queries
        assert longest == ends.diff().max()
        assert reach == starts.diff().max()
        outputs = []
        for (a, b), (c, d) in zip(pairwise(starts.tolist()), pairwise(ends.tolist()), strict=True):
            mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
            one = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
            out = F.scaled_dot_product_attention(*one, attn_mask=mask, scale=scale)
            outputs.append(out.transpose(0, 1))
        return torch.cat(outputs)

    model, batch = classifier(), pack(nano_corpus["in_domain_dev"], np.arange(60))
    with torch.no_grad():
        expected = model(batch)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference)
        monkeypatch.setattr("model.dense_blocks", varlen_blocks)
        torch.testing.assert_close(model(batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("heads", [6, 2])
def test_attention_in_one_padded_tensor_is_attention_in_blocks(nano_corpus, heads, last_only):
    batch = pack(nano_corpus["in_domain_dev"], np.arange(60))
    torch.manual_seed(0)
    q, k, v = torch.randn(3, len(batch.input_ids), 6, 8)
    arguments = q, k[:, :heads], v[:, :heads], batch, last_only, 0.3
    torch.testing.assert_close(padded_block(*arguments), dense_blocks(*arguments))


@pytest.mark.parametrize(
    ("half", "bf16_in_hardware", "kernel"),
    [(True, True, "varlen"), (False, True, "dense"), (True, False, "dense")],
)
def test_the_kernel_for_variable_lengths_is_for_half_precision_on_a_gpu_that_has_it(
    nano_corpus, monkeypatch, half, bf16_in_hardware, kernel
):
    asked = []
    for name in ("varlen", "dense"):
        monkeypatch.setattr(
            f"model.{name}_blocks", lambda q, *_, name=name: asked.append((name, q.dtype)) or q
        )
    monkeypatch.setattr("model.has_bf16", lambda device: bf16_in_hardware)
    batch = pack(nano_corpus["in_domain_dev"], np.arange(3))
    query = torch.randn(1, 2, len(batch.input_ids), 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out, _ = packed_attention(nn.Identity(), query, query, query, None, 0.5, batch=batch)
    dtype = torch.bfloat16 if kernel == "varlen" else torch.float32
    assert asked == [(kernel, dtype)]
    assert torch.equal(out, query.transpose(1, 2).to(dtype))


# ---------------------------------------------------------------------------------------------
# DistilRNN


def student(rows: int = 1000) -> DistilRNN:
    torch.manual_seed(0)
    return DistilRNN(torch.arange(rows))


def test_the_student_is_pytorchs_rnn_read_at_each_sentences_last_token(nano_corpus):
    model, split = student().eval(), nano_corpus["in_domain_dev"]
    batch = pack(split, np.arange(50))
    with torch.no_grad():
        logits = model(batch)
        for place, index in enumerate(batch.indices.tolist()):
            start, end = split.cu_seqlens[index : index + 2].tolist()
            states, _ = model.rnn(model.embedding(split.input_ids[start:end]))
            torch.testing.assert_close(logits[place], model.linear(states[-1]))


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


def test_a_cell_that_is_added_trains_and_is_exported_as_pytorch_computes_it(
    nano_corpus, monkeypatch, tmp_path
):
    """As "How to extend it" says: a line in `CELLS`; it is known by its name from then on."""
    monkeypatch.setitem(CELLS, "relu", partial(nn.RNN, nonlinearity="relu"))
    batch = pack(nano_corpus[TRAIN], np.arange(32))
    torch.manual_seed(0)
    student = DistilRNN(batch.input_ids.unique(), 24, cell="relu", layers=2)
    logits, states, tokens = student.outputs(batch)
    rows = student.rows(batch.input_ids).split(batch.cu_seqlens.diff().tolist())
    alone = [student.rnn(student.embedding(row))[0] for row in rows]
    torch.testing.assert_close(states, torch.cat(alone)[tokens])
    save_student(student, find_base("nano"), tmp_path)
    loaded = load_student(tmp_path)
    assert loaded.rnn.nonlinearity == "relu"
    torch.testing.assert_close(loaded(batch), logits)
    save_onnx(loaded, load_tokenizer(NANO), tmp_path, tmp_path)
    lengths = batch.cu_seqlens.diff().numpy()
    rows = batch.input_ids.split(lengths.tolist())
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).numpy()
    session = onnx_session(tmp_path / "student.onnx")
    (found,) = session.run(["logits"], {"input_ids": ids, "lengths": lengths})
    np.testing.assert_allclose(found, logits.detach().numpy(), atol=1e-5)


def test_no_recurrent_kernel_is_run_in_half_precision_under_autocast():
    """Written out for PyTorch's own cell, which computes on GPUs."""
    torch.manual_seed(0)
    rnn, x, sizes = torch.nn.RNN(5, 7), torch.randn(5, 5), torch.tensor([3, 2])
    expected = library_states(rnn, x, sizes)
    with torch.autocast("cpu", dtype=torch.float16):
        found = library_states(rnn, x.half().float(), sizes), library_states(rnn, x, sizes)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert torch.equal(found[1], expected)


def test_a_step_frees_its_states_at_once():
    """Without waiting for the collector of circles, while a run's memory grows by gigabytes."""
    gc.disable()
    try:
        states = recurrent_states(nn.GRU(5, 7), torch.randn(9, 5), torch.tensor([4, 4, 1]))
        states.sum().backward()
        node = weakref.ref(states.grad_fn)
        assert node() is not None
        del states
        assert node() is None
    finally:
        gc.enable()


def test_a_students_dropout_is_for_training_alone(nano_corpus):
    batch = pack(nano_corpus["in_domain_dev"], np.arange(9))
    student = DistilRNN(batch.input_ids.unique(), 16, dropout=0.5)
    plain = DistilRNN(batch.input_ids.unique(), 16)
    plain.load_state_dict(student.state_dict())
    assert torch.equal(student.eval()(batch), plain(batch))  # none is the default, in training too
    student.train()
    assert not torch.equal(student(batch), student(batch))


def test_training_the_rows_that_occur_is_training_the_full_embedding(nano_corpus):
    """Three steps of Adam: the same losses, and the same rows afterwards."""
    split = nano_corpus["in_domain_train"]
    occurring = split.input_ids.unique()
    assert len(occurring) < 1000
    compact, full = DistilRNN(occurring), DistilRNN(torch.arange(1000))
    full.rnn.load_state_dict(compact.rnn.state_dict())
    full.linear.load_state_dict(compact.linear.state_dict())
    full.embedding.weight.data[occurring] = compact.embedding.weight.data[:-1]
    losses = {}
    for model in (compact, full):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses[model] = []
        for step in range(3):
            batch = pack(split, np.arange(64) + 64 * step)
            loss = F.cross_entropy(model(batch), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[model].append(loss.item())
    assert losses[compact] == pytest.approx(losses[full], rel=1e-6)
    torch.testing.assert_close(compact.embedding.weight[:-1], full.embedding.weight[occurring])


def test_a_token_outside_the_vocabulary_reads_the_row_of_zeros():
    model = DistilRNN(torch.tensor([3, 5, 8]))
    assert model.rows(torch.tensor([0, 3, 4, 5, 8, 9])).tolist() == [3, 0, 3, 1, 2, 3]
    assert not model.embedding.weight[3].any()


# ---------------------------------------------------------------------------------------------
# The device


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((10, 0), "bf16")]
)
def test_bf16_is_chosen_for_a_gpu_that_multiplies_it_in_hardware(
    monkeypatch, index, capability, precision
):
    """The GPU that computes decides, whatever the others can do."""
    name, others = f"cuda:{index}", {(7, 5): (8, 0)}.get(capability, (7, 5))
    capabilities = {torch.device(name): capability}
    one = torch.zeros(1)
    monkeypatch.setattr("torch.zeros", lambda *size, device: one)
    monkeypatch.setattr(
        "torch.cuda.get_device_capability", lambda device=None: capabilities.get(device, others)
    )
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)  # by emulation
    assert choose_device(name) == (torch.device(name), precision)
    assert has_bf16(torch.device(name)) == (precision == "bf16")
    assert choose_device(name, "fp32").precision == "fp32"


def test_a_processor_computes_in_fp32():
    assert choose_device("cpu") == CPU
    assert not has_bf16(torch.device("cpu"))


@pytest.mark.parametrize("name", ["meta", "cuda:99", "nonsense"])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(UserError, match=f"--device {name}: not usable here .*; use cpu"):
        choose_device(name)


def test_a_device_that_another_process_lacks_is_refused_in_all(monkeypatch):
    """Each raises the first one's error."""

    def gather(messages: list, message: str | None) -> None:
        messages[:] = [message, "--device cuda:1: not usable here"]

    monkeypatch.setattr(processes, "rank_and_processes", lambda: (0, 2))
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    with pytest.raises(UserError, match="--device cuda:1: not usable here"):
        choose_device("cpu", None)


@pytest.mark.parametrize("slow", [True, False])
def test_a_processor_that_emulates_bf16_is_told_of_once(slow, monkeypatch, capsys):
    clock = iter(range(100))  # every call a second later: fp32's four products, then bf16's

    def seconds() -> float:
        called = next(clock)
        return called * (3 if slow and called >= 8 else 1)

    monkeypatch.setattr("support.slow_bf16.time.perf_counter", seconds)
    note_slow_bf16.cache_clear()
    for _ in range(2):
        choose_device("cpu", "bf16")
    choose_device("cpu", "fp32")
    said = "note: --precision bf16: this processor takes 3.0 times as long"
    assert capsys.readouterr().err.count(said) == slow
    note_slow_bf16.cache_clear()


def test_a_process_first_calls_of_tanh_and_exp_are_of_one_element():
    """Which is one thread's: where two make it together, one may run a coarse kernel."""
    command = [sys.executable, "-c", RECORD]
    output = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == {"aten::tanh": [[[1]]], "aten::exp": [[[1]]]}


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_a_student_trains_under_bf16_on_the_cpu(nano_corpus, cell):
    """Products are rounded, to 8 bits; states are kept and added in fp32. PyTorch's are in fp32."""
    split = nano_corpus[TRAIN].chosen(np.arange(32))
    batch = pack(split, np.arange(32))
    torch.manual_seed(0)
    student = DistilRNN(split.input_ids.unique(), 32, cell=cell)
    found = {}
    for precision in ("fp32", "bf16"):
        with choose_device("cpu", precision).autocast():
            logits, states, _ = student.outputs(batch)
        logits.float().square().sum().backward()
        found[precision] = [logits.float(), states, *(p.grad for p in student.parameters())]
        student.zero_grad()
    torch.testing.assert_close(found["bf16"][1], found["fp32"][1], atol=0.02, rtol=0.02)
    for exact, rounded in zip(*found.values(), strict=True):
        assert exact.dtype == rounded.dtype == torch.float32
        apart = (rounded - exact).norm()
        assert apart == 0 if cell == "rnn" else 0 < apart < 0.02 * exact.norm()
