"""What the tests share: where the real corpus is, models made on the spot, and `run.py`."""

import http.server
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import gguf
import hypothesis
import numpy as np
import pytest
import torch

import run as front_door
from bench import parity
from data_utils import Split, load_corpus
from finetune import published_config
from lora import add_lora
from model import Classifier, load_classifier
from support import PROJECT
from support.bases import load_tokenizer
from support.corpus import COLA_DIR, SPLITS
from support.options import published
from support.setup import setup

setup()

# The same examples at every run; many others, and hours of them, are
# `HYPOTHESIS_PROFILE=nightly python -m pytest -k any_`.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=20_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

NANO = PROJECT / "nano"
# What a training asks of its options, before it is told more.
TRAINING = {
    **published("rnn"), "sr_no": 1, "tensorboard": False,
    "data": {"classes": ["unacceptable", "acceptable"]},
}  # fmt: skip
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


def classifier(folder: Path = NANO) -> Classifier:
    """Our classifier on a base, its head the same in every call."""
    torch.manual_seed(0)
    return load_classifier(folder)


def nano_lora() -> Classifier:
    """The same with LoRA as published, on nano."""
    model = classifier()
    add_lora(model, published_config(model))
    return model


def trained(model: torch.nn.Module) -> torch.nn.Module:
    """As if trained: noise on everything that trains, B included."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def padded_logits(reference: torch.nn.Module, split: Split) -> torch.Tensor:
    """The usual way: pad to the longest, mask, (sentences, 2)."""
    return parity.padded_logits(reference, split, range(len(split)))


def change_config(folder: Path, name: str = "config.json", **changes) -> None:
    """Change entries of a folder's settings, or add some."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def beginnings(*sizes: int) -> dict[str, bytes]:
    """So many first lines of each split of nano's corpus."""
    lines = {s: (NANO / "corpus/raw" / f"{s}.tsv").read_bytes().splitlines(True) for s in SPLITS}
    return {s: b"".join(lines[s][:size]) for s, size in zip(SPLITS, sizes, strict=True)}


def write_corpus(folder: Path, content: dict[str, bytes]) -> Path:
    """Write splits in CoLA's layout."""
    (folder / "raw").mkdir(parents=True)
    for split, lines in content.items():
        (folder / "raw" / f"{split}.tsv").write_bytes(lines)
    return folder


def archive_of(splits: dict[str, bytes], method=zipfile.ZIP_DEFLATED, **others: bytes) -> bytes:
    """An archive as CoLA's, and what else is in it."""
    files = {f"cola_public/raw/{split}.tsv": content for split, content in splits.items()} | others
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def write_gguf(path: Path) -> Path:
    """Write a GGUF file of a small Llama, its weights random, its tokenizer nano's."""
    model = json.loads((NANO / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    settings = {
        "context_length": 128, "embedding_length": 8, "feed_forward_length": 8, "block_count": 1,
        "head_count": 2, "head_count_kv": 2, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 1e4,
        "vocab_size": len(tokens), "tokenizer_model": "gpt2", "tokenizer_pre": "gpt-2",
        "token_list": tokens, "token_types": [gguf.TokenType.NORMAL] * len(tokens),
        "token_merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in settings.items():
        getattr(writer, f"add_{name}")(value)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{name}": (8, 8) for name in square} | {"token_embd": (len(tokens), 8)}
    shapes |= dict.fromkeys(("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"), (8,))
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
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


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run ``run.py`` as the fixture ``run`` does, but in this process."""
    monkeypatch.chdir(tmp_path)

    def in_process(*arguments, input="") -> SimpleNamespace:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode())))
        try:
            status = front_door.main([*map(str, arguments)])
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=printed.out, stderr=printed.err)

    return in_process


@contextmanager
def serving(handler: type) -> Iterator[http.server.HTTPServer]:
    """Serve on the loopback address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


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

    with serving(Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}/cola_public_1.1.zip", asked


def refusal(result: subprocess.CompletedProcess) -> str:
    """The one line of a command that the user can mend."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("run.py: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr
