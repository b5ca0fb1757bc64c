"""The first fetch by several processes, of one machine or of two: each waits for its machine's one.

Processes are started as torchrun starts them, so that each one's exit status can be seen. A machine
is a folder of its own for CoLA and a cache of its own; both share an --out_dir.
"""

import hashlib
import io
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import NANO, serve_bytes, write_gguf

from support import PROJECT
from support.bases import base_fingerprint, load_backbone
from support.corpus import SPLITS

SIZES = {"in_domain_train": 300, "in_domain_dev": 100, "out_of_domain_dev": 100}
FILES = {
    split: b"".join((NANO / "corpus" / "raw" / f"{split}.tsv").read_bytes().splitlines(True)[:n])
    for split, n in SIZES.items()
}
START = """
import sys
from pathlib import Path
sys.path.insert(0, {project!r})
import run, support.archive, support.corpus
support.corpus.COLA_DIR = Path({machine!r})
support.corpus.COLA_SHA256 = {sha256!r}
support.archive.URL = {url!r}
sys.exit(run.main(sys.argv[1:]))
"""
FEW = ("--gpt_variant", "nano", "--recipe", "published", "--epochs", 1, "--student_width", 8)


@pytest.fixture
def url():
    """The address of an archive in CoLA's layout."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for split, content in FILES.items():
            archive.writestr(f"cola_public/raw/{split}.tsv", content)
    with serve_bytes(buffer.getvalue()) as (address, asked):
        yield address, asked


def start(rank: int, local_rank: int, port: int, machine: Path, url: str, *arguments):
    """Start one of two processes."""
    sha256 = {split: hashlib.sha256(FILES[split]).hexdigest() for split in SPLITS}
    code = START.format(project=str(PROJECT), machine=str(machine), sha256=sha256, url=url)
    ranks = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": local_rank, "MASTER_PORT": port}
    environment = {name: str(value) for name, value in ranks.items()}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
             "XDG_CACHE_HOME": str(machine / "cache")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip


def train(machines: list[Path], local_ranks: list[int], urls: list[str], out_dir: Path, *more):
    """Train a student in two processes; each one's exit status and what it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ("--mode", "rnn", *FEW, "--out_dir", out_dir, *more)
    processes = [
        start(rank, local_ranks[rank], port, machines[rank], urls[rank], *shared,
              "--data_dir", machines[rank])
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize("local_ranks", [[0, 1], [0, 0]], ids=["one machine", "two machines"])
def test_every_process_waits_for_the_one_of_its_machine_that_fetches(url, tmp_path, local_ranks):
    address, asked = url
    one, two = tmp_path / "one", tmp_path / "two"
    machines = [one, two if local_ranks == [0, 0] else one]
    for status, _, error in train(machines, local_ranks, [address] * 2, tmp_path / "out"):
        assert (status, error) == (0, "")
    for machine in set(machines):
        for split, content in FILES.items():
            assert (machine / "raw" / f"{split}.tsv").read_bytes() == content
    assert len(asked) == len(set(machines))  # each machine asked once
    assert (tmp_path / "out" / "checkpoints" / "rnn_nano_22915" / "metrics.json").exists()


def test_every_machine_of_a_group_converts_a_gguf_file_for_itself(url, tmp_path):
    machines = [tmp_path / "one", tmp_path / "two"]
    path = write_gguf(tmp_path / "small.gguf")
    options = (tmp_path / "out", "--gpt_variant", path)
    for status, _, error in train(machines, [0, 0], [url[0]] * 2, *options):
        assert status == 0, error
    one, two = (next(machine.glob("cache/*/small-*/model.safetensors")) for machine in machines)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(os.listdir(one.parent)) == sorted(os.listdir(two.parent))
    backbones = (load_backbone(weights.parent) for weights in (one, two))
    assert len(set(map(base_fingerprint, backbones))) == 1  # both can be loaded


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_that_one_process_meets_ends_all_with_one_line_each_machine(
    url, tmp_path, failing
):
    """One machine cannot reach the corpus' site."""
    urls = [url[0], url[0]]
    urls[failing] = "http://127.0.0.1:1/cola.zip"
    machines = [tmp_path / "one", tmp_path / "two"]
    for status, _, error in train(machines, [0, 0], urls, tmp_path / "out"):
        assert status == 2
        assert error.startswith("run.py: error: http://127.0.0.1:1/cola.zip: cannot be downloaded")
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_of_one_machine_one_process_says_what_the_other_met(url, tmp_path):
    urls = [url[0], "http://127.0.0.1:1/cola.zip"]  # another folder each, as no machine has
    machines = [tmp_path / "one", tmp_path / "two"]
    first, second = train(machines, [0, 1], urls, tmp_path / "out")
    assert (first[0], second[0]) == (2, 2)
    assert "cannot be downloaded" in first[2]
    assert second[2] == ""


def test_a_process_whose_peer_has_gone_ends_without_a_traceback(url, tmp_path):
    """The second cannot read what the first wrote, as where no folder is shared."""
    one, two = tmp_path / "one", tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ("--mode", "rnn", *FEW, "--data_dir")
    processes = [
        start(rank, 0, port, machine, url[0], *shared, machine, "--out_dir", machine / "out")
        for rank, machine in enumerate((one, two))
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert {process.returncode for process in processes} <= {0, 2}
    assert all("Traceback" not in error for _, error in outputs)
    assert any(process.returncode == 2 for process in processes)
