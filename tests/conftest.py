"""What the tests share: where the real corpus is, models made on the spot, and `run.py`."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import hypothesis
import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AttentionInterface, GPT2Config, GPT2ForSequenceClassification, GPT2Model

from data_utils import load_corpus
from model import Classifier, load_classifier, packed_attention
from support import PROJECT
from support.bases import load_tokenizer, token_ids
from support.corpus import COLA_DIR
from support.setup import setup

setup()

# The same examples at every run; many others, and hours of them, are
# `HYPOTHESIS_PROFILE=nightly python -m pytest -k any_`.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=20_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

NANO = PROJECT / "nano"
BESIDE = PROJECT.parent / "shared"  # a folder of data beside the project, where there is one


def first_folder(variable: str, wanted: str, *others: Path) -> Path | None:
    """The folder that an environment variable names, or the first of others with a wanted file."""
    if named := os.environ.get(variable):
        assert Path(named, wanted).exists(), f"{variable}={named}: it has no {wanted}"
        return Path(named)
    return next((folder for folder in others if (folder / wanted).exists()), None)


@pytest.fixture(scope="session")
def cola() -> Path:
    """The real corpus' folder; the tests that want it are skipped where there is none."""
    train = "raw/in_domain_train.tsv"
    folder = first_folder("LORA_TEST_COLA", train, COLA_DIR, BESIDE / "cola_public")
    return folder or pytest.skip("CoLA is not in cola_public/, and LORA_TEST_COLA names no folder")


@pytest.fixture(scope="session")
def tokenizer():
    """GPT-2's own tokenizer where its files are at hand (LORA_TEST_GPT2), nano's otherwise."""
    return load_tokenizer(first_folder("LORA_TEST_GPT2", "vocab.json", BESIDE / "gpt2") or NANO)


@pytest.fixture(scope="session")
def nano_corpus() -> dict:
    return load_corpus(NANO / "corpus", load_tokenizer(NANO), 512)


@pytest.fixture(scope="session")
def random_base() -> GPT2ForSequenceClassification:
    """Hugging Face's classifier of GPT-2 base's own size; no test may change it."""
    return random_gpt2()


def classifier(folder: Path = NANO) -> Classifier:
    """Our classifier on a base, its head the same in every call."""
    torch.manual_seed(0)
    return load_classifier(folder)


def trained(model: torch.nn.Module) -> torch.nn.Module:
    """As if trained: noise on everything that trains, B included."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def random_gpt2(**settings) -> GPT2ForSequenceClassification:
    """Hugging Face's classifier, GPT-2 base's size unless told otherwise, with random weights."""
    torch.manual_seed(0)
    config = GPT2Config(num_labels=2, pad_token_id=50256, **settings)
    return GPT2ForSequenceClassification(config).eval()


def packed_copy(reference: GPT2ForSequenceClassification) -> Classifier:
    """Our classifier with the reference's weights."""
    AttentionInterface.register("packed", packed_attention)
    config = GPT2Config(**reference.config.to_dict())
    config._attn_implementation = "packed"
    config.embd_pdrop = config.attn_pdrop = config.resid_pdrop = 0.0
    with torch.device("meta"):  # nothing to initialise
        ours = Classifier(GPT2Model(config))
    weights = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    ours.load_state_dict(weights, assign=True)
    return ours.eval()


def padded_logits(reference: GPT2ForSequenceClassification, tokenizer, sentences) -> torch.Tensor:
    """The usual way: pad to the longest, mask, (sentences, 2)."""
    ids = token_ids(tokenizer, sentences)
    longest = max(map(len, ids))
    pad = reference.config.pad_token_id
    input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        return reference(input_ids=input_ids, attention_mask=mask).logits


def onnx_session(path: Path) -> onnxruntime.InferenceSession:
    """A session of an exported student."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def write_gguf(path: Path) -> Path:
    """Write a GGUF file of a small Llama, its weights random, its tokenizer nano's."""
    model = json.loads((NANO / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    rows = dict.fromkeys(("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), (8, 8))
    rows |= {"attn_k": (4, 8), "attn_v": (4, 8), "attn_norm": (8,), "ffn_norm": (8,)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in rows.items()}
    shapes |= {"token_embd.weight": (len(tokens), 8), "output_norm.weight": (8,)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def run(tmp_path):
    """Run ``run.py`` in a process of its own, in an empty folder."""

    def call(*arguments, env=None, **kwargs) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, PROJECT / "run.py", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "0", **(env or {})},
            capture_output=True,
            encoding="utf-8",
            timeout=600,
            **kwargs,
        )

    return call


@contextmanager
def serve_bytes(content: bytes, cut: bool = False) -> Iterator[tuple[str, list]]:
    """Serve bytes, or half of them, on the loopback address: the URL, and who has asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/cola_public_1.1.zip", asked
    server.shutdown()
    server.server_close()


def refusal(result: subprocess.CompletedProcess) -> str:
    """The one line of a command that the user can mend."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("run.py: error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr
