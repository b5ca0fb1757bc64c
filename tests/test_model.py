"""The two models against Hugging Face's and PyTorch's own, and the way to GPT-2's weights."""

import http.server
import json
import re
import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NANO, classifier, packed_copy, padded_logits, random_gpt2, refusal
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from transformers import (
    AutoTokenizer,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import support.bases.loading
from data_utils import load_corpus, pack, tokenize
from model import DistilRNN, load_classifier, packed_attention, varlen_blocks
from support import PROJECT
from support.bases import find_base, load_language_model, load_tokenizer, token_ids
from support.bases.finding import base_folder
from support.bases.fingerprint import base_fingerprint, fingerprint_of
from support.corpus import TRAIN
from support.devices import CPU, choose_device, has_bf16
from support.errors import UserError
from support.fast_layers import Recurrence, RMSNorm, in_few_passes
from support.options import parse
from train_utils import predict_logits

RECORD = """
import json
import torch
with torch.profiler.profile(record_shapes=True) as profile:
    import model
calls = {}
for event in profile.events():
    if event.name in ("aten::tanh", "aten::exp"):
        calls.setdefault(event.name, []).append(event.input_shapes)
print(json.dumps(calls))
"""


# ---------------------------------------------------------------------------------------------
# Classifier


def test_packed_logits_equal_hugging_faces_on_the_padded_batch(cola, tokenizer, random_base):
    """GPT-2 base's own size and 64 real sentences."""
    split = load_corpus(cola, tokenizer, 1024)["in_domain_dev"]
    batch = pack(split, np.arange(64))
    with torch.no_grad():
        logits = packed_copy(random_base)(batch)
    expected = padded_logits(random_base, tokenizer, split.sentences[:64])[batch.indices]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_packed_logits_equal_hugging_faces_on_nano(nano_corpus):
    reference = GPT2ForSequenceClassification.from_pretrained(NANO, num_labels=2).eval()
    reference.config.pad_token_id = 0
    ours = classifier()
    ours.score.load_state_dict(reference.score.state_dict())
    split = nano_corpus["out_of_domain_dev"]
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


@pytest.mark.parametrize(
    ("dtype", "bf16_in_hardware", "kernel"),
    [
        (torch.bfloat16, True, "varlen"),
        (torch.float16, True, "varlen"),
        (torch.float32, True, "dense"),
        (torch.bfloat16, False, "dense"),
    ],
)
def test_the_kernel_for_variable_lengths_is_for_half_precision_on_a_gpu_that_has_it(
    nano_corpus, monkeypatch, dtype, bf16_in_hardware, kernel
):
    asked = []
    for name in ("varlen", "dense"):
        monkeypatch.setattr(
            f"model.{name}_blocks", lambda q, *_, name=name: asked.append(name) or q
        )
    monkeypatch.setattr("model.has_bf16", lambda device: bf16_in_hardware)
    batch = pack(nano_corpus["in_domain_dev"], np.arange(3))
    query = torch.randn(1, 2, len(batch.prefix_tokens), 4, dtype=dtype)
    out, _ = packed_attention(nn.Identity(), query, query, query, None, 0.5, batch=batch)
    assert asked == [kernel]
    assert torch.equal(out, query.transpose(1, 2))


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


@pytest.mark.parametrize("trained", [True, False])
def test_a_norm_in_few_passes_and_its_gradients_are_hugging_faces(trained):
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(16, eps=1e-3)
    nn.init.normal_(theirs.weight).requires_grad_(trained)
    model = nn.Sequential(theirs)
    in_few_passes(model)
    assert isinstance(model[0], RMSNorm)
    assert model.state_dict().keys() == {"0.weight"}
    x, g = torch.randn(2, 3, 5, 16)
    inputs = [x.requires_grad_(True), *([theirs.weight] if trained else [])]
    found, expected = model(x), theirs(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs, g) for y in (found, expected)))


def test_a_norm_that_computes_something_else_is_left_alone():
    theirs = GemmaRMSNorm(16)  # multiplies by 1 + weight
    random = torch.get_rng_state()
    in_few_passes(model := nn.Sequential(theirs))
    assert model[0] is theirs
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("sizes", [[3], [4, 4, 1], [1, 1, 1]])
def test_the_recurrence_and_its_gradients_are_pytorchs(sizes):
    torch.manual_seed(0)
    rnn = nn.RNN(5, 7).double()
    x, g = (torch.randn(sum(sizes), n, dtype=torch.double) for n in (5, 7))
    x.requires_grad_(True)
    expected = rnn(PackedSequence(x, torch.tensor(sizes)))[0].data
    W, U, *biases = weights = list(rnn.parameters())
    found = Recurrence.apply(x, W, U, sum(biases), sizes)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(y, [x, *weights], g) for y in (found, expected))
    torch.testing.assert_close(*gradients)


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
# Finding and loading GPT-2


@pytest.fixture
def folder(tmp_path):
    """A copy of nano that a test may break."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in NANO.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


def change_config(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache of its own, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_fingerprint_is_of_the_weights_and_not_of_the_path(folder, cache):
    original = base_fingerprint(NANO)
    assert base_fingerprint(folder) == original
    change_config(folder, n_head=json.loads((folder / "config.json").read_text())["n_head"] // 2)
    assert base_fingerprint(folder) != original


def test_a_fingerprint_is_computed_once_and_again_where_a_file_changed(folder, cache, monkeypatch):
    original = base_fingerprint(folder)
    loads, load = [], support.bases.loading.load_pretrained
    monkeypatch.setattr(
        "support.bases.loading.load_pretrained", lambda *a: loads.append(1) or load(*a)
    )
    assert base_fingerprint(folder) == original
    assert not loads
    change_config(folder, layer_norm_epsilon=0.5)
    assert base_fingerprint(folder) != original
    assert len(loads) == 1


def test_a_key_that_a_later_transformers_adds_changes_no_fingerprint(cache):
    """The one of before took every key; that of now takes those that change the numbers."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=9)
    heads = dict(num_attention_heads=2, num_key_value_heads=1)
    backbone = LlamaModel(LlamaConfig(**sizes, **heads))
    original = fingerprint_of(backbone)
    backbone.config.invented_tomorrow = True
    later = fingerprint_of(backbone)
    assert later.now == original.now
    assert later.before != original.before
    for key, value in (("rms_norm_eps", 0.5), ("num_key_value_heads", 2), ("hidden_act", "relu")):
        before = getattr(backbone.config, key)
        setattr(backbone.config, key, value)
        assert fingerprint_of(backbone).now != original.now, key
        setattr(backbone.config, key, before)
    assert fingerprint_of(backbone) == later


def test_a_variant_may_begin_with_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    args = parse(["--mode", "gen", "--gpt_variant", f"~/{folder.name}"])
    assert find_base(args.gpt_variant).folder == folder


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(
        UserError,
        match=r"gpt3: neither one of gpt2, .*nano, nor OWNER/NAME on the hub, nor a folder",
    ):
        base_folder("gpt3")


NEGATIVE_RANGE = json.dumps(
    {**json.loads((NANO / "config.json").read_text()), "initializer_range": -1.0}
).encode()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "config.json: no such file"),
        ("config.json", b"{", "config.json: broken JSON"),
        ("config.json", b'{"model_type": "bert"}', "bert cannot be used here: it is an encoder$"),
        ("config.json", b'{"model_type": "of another kind"}', "cannot be loaded"),
        ("config.json", b"[" * 100_000, "config.json: broken JSON"),
        ("config.json", NEGATIVE_RANGE, "initializer_range is out of range"),
        ("model.safetensors", None, "model.safetensors: no such file"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", "tensors are missing"),
        ("model.safetensors", b"broken", "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_decoder_is_refused(folder, name, content, words):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_classifier(base_folder(str(folder)))


def test_a_folder_without_its_tokenizer_is_refused(folder):
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="lacks its tokenizer"):
        base_folder(str(folder))


@pytest.mark.parametrize("load", [load_classifier, load_language_model])
def test_truncated_weights_are_refused(folder, load):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(folder)


def test_the_language_model_is_hugging_faces(nano_corpus):
    ids = nano_corpus["in_domain_dev"].input_ids[:9].unsqueeze(0)
    expected = GPT2LMHeadModel.from_pretrained(NANO).eval()
    with torch.no_grad():
        assert torch.equal(load_language_model(NANO)(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("positions", [0, "many", True])
def test_a_number_of_positions_that_is_none_is_refused(folder, positions):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_positions": positions}))
    with pytest.raises(UserError, match=f"n_positions = {positions!r}"):
        find_base(str(folder))


def test_a_base_is_found_with_its_tokenizer_and_its_number_of_positions(folder):
    base = find_base(str(folder))
    assert (base.name, base.folder, base.max_length) == (str(folder), folder, 512)
    assert base.tokenizer.get_vocab() == load_tokenizer(NANO).get_vocab()


def test_the_tokenizer_is_hugging_faces(nano_corpus):
    sentences = nano_corpus["in_domain_dev"].sentences
    expected = AutoTokenizer.from_pretrained(NANO)(sentences)["input_ids"]
    assert token_ids(load_tokenizer(NANO), sentences) == expected


# ---------------------------------------------------------------------------------------------
# The device


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((10, 0), "bf16")]
)
def test_bf16_is_chosen_for_a_gpu_that_multiplies_it_in_hardware(
    monkeypatch, index, capability, precision
):
    """Of the GPU that computes, whatever the others can do."""
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


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"--device cuda:99: not usable here .*; use cpu"):
        choose_device("cuda:99")


# ---------------------------------------------------------------------------------------------
# The hub, played by a server on the loopback address


@pytest.fixture
def hub():
    """Answers as the Hugging Face hub does, with nano behind the name gpt2.

    Behind some/decoder stands nano without weights, and gated/decoder asks for an agreement.
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            asked.append((self.command, self.path))
            if self.path.startswith("/api/models/"):
                return self.listing(re.match("/api/models/(.+?)/(revision|tree)/", self.path)[1])
            repo, _, name = (
                self.path.lstrip("/").replace("0" * 40, "main").partition("/resolve/main/")
            )
            path = NANO / name
            known = repo in ("gpt2", "some/decoder") and path.is_file()
            known = known and not (repo == "some/decoder" and "safetensors" in name)
            content = path.read_bytes() if known else b""
            self.send_response(200 if known else 403 if "gated" in repo else 404)
            if known:
                self.send_header("ETag", f'"{len(content)}-{name}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            else:
                missing = "EntryNotFound" if repo in ("gpt2", "some/decoder") else "RepoNotFound"
                self.send_header("X-Error-Code", "GatedRepo" if "gated" in repo else missing)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def listing(self, repo: str):
            """A repository's facts, or the list of its files."""
            names = [path.name for path in NANO.iterdir() if path.is_file()]
            names = [n for n in names if repo == "gpt2" or "safetensors" not in n]
            facts = {"id": repo, "sha": "0" * 40}
            files = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
            content = json.dumps(files if "/tree/" in self.path else facts).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_a_variant_comes_from_the_hub_by_name_and_then_from_the_cache(run, hub, tmp_path):
    endpoint, asked = hub
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
    arguments = ("--mode", "gen", "--gpt_variant", "gpt2", "--max_new_tokens", 5)
    first = run(*arguments, env=env)
    assert first.returncode == 0, first.stderr
    assert any(what == "GET" and path.endswith("model.safetensors") for what, path in asked)
    asked.clear()
    second = run(*arguments, env=env)
    assert second.stdout == first.stdout != ""
    assert asked == []


def test_an_unreachable_hub_is_one_clear_line(run, tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "cache")}
    line = refusal(run("--mode", "gen", "--gpt_variant", "gpt2", env=env))
    assert "local folder" in line
    assert "--gpt_variant nano" in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt2-xl", "404"),
        ("gated/decoder", "ask for an agreement"),
        ("some/decoder", "only safetensors are read"),
    ],
)
def test_what_the_hub_does_not_give_is_one_clear_line(run, hub, tmp_path, name, words):
    env = {"HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "cache")}
    assert words in refusal(run("--mode", "gen", "--gpt_variant", name, env=env))


def test_the_projects_folder_does_not_depend_on_the_working_folder():
    assert base_folder("nano") == PROJECT / "nano"


def test_a_process_first_calls_of_tanh_and_exp_are_of_one_element():
    """Which is one thread's; bench/first_calls.py shows what two can do."""
    command = [sys.executable, "-c", RECORD]
    output = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == {"aten::tanh": [[[1]]], "aten::exp": [[[1]]]}


def test_a_student_trains_under_bf16_on_the_cpu(nano_corpus):
    """Products are rounded, to 8 bits; states are kept and added in fp32."""
    split = nano_corpus[TRAIN].chosen(np.arange(32))
    batch = pack(split, np.arange(32))
    student = DistilRNN(split.input_ids.unique(), 32)
    found = {}
    for precision in ("fp32", "bf16"):
        with choose_device("cpu", precision).autocast():
            logits, states, _ = student.read(batch)
        logits.float().square().sum().backward()
        found[precision] = [logits.float(), states, *(p.grad for p in student.parameters())]
        student.zero_grad()
    torch.testing.assert_close(found["bf16"][1], found["fp32"][1], atol=0.02, rtol=0.02)
    for exact, rounded in zip(*found.values(), strict=True):
        assert exact.dtype == rounded.dtype == torch.float32
        assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
