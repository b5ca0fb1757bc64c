"""The first fetch by several processes, of one machine or of two: each waits for its machine's one.

Processes are started as torchrun starts them, so that each one's exit status can be seen. A machine
is a folder of its own for CoLA and a cache of its own; both share an --out_dir.
"""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import archive_of, beginnings, serve_bytes, write_gguf

from support import PROJECT
from support.bases import base_fingerprint, load_backbone

FILES = beginnings(300, 100, 100)
START = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(PROJECT)!r})
import run, support.archive, support.corpus
support.archive.URL, support.corpus.COLA_DIR = sys.argv[1], Path(sys.argv[2])
support.corpus.COLA_SHA256 = { {s: hashlib.sha256(c).hexdigest() for s, c in FILES.items()}!r}
sys.exit(run.main(sys.argv[3:]))
"""
FEW = ("--gpt_variant", "nano", "--recipe", "published", "--epochs", 1, "--student_width", 8)
NOWHERE = "http://127.0.0.1:1/cola.zip"


@pytest.fixture
def archive():
    """The address of an archive in CoLA's layout, and who has asked for it."""
    with serve_bytes(archive_of(FILES)) as (address, asked):
        yield address, asked


def train(
    machines: list[Path], local_ranks: list[int], urls: list[str], out_dirs: list[Path], *more
):
    """Train a student in two processes; return each one's exit status and its errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank, machine in enumerate(machines):
        options = ("--mode", "rnn", *FEW, "--data_dir", machine, "--out_dir", out_dirs[rank], *more)
        environment = {
            "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": local_ranks[rank], "MASTER_PORT": port,
            "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1, "XDG_CACHE_HOME": machine / "cache",
        }  # fmt: skip
        command = [sys.executable, "-c", START, urls[rank], machine, *options]
        processes.append(
            subprocess.Popen(
                [*map(str, command)],
                env=os.environ | {name: str(value) for name, value in environment.items()},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
            )
        )  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [(p.returncode, error) for p, error in zip(processes, errors, strict=True)]


@pytest.mark.parametrize("local_ranks", [[0, 1], [0, 0]], ids=["one machine", "two machines"])
def test_every_process_waits_for_the_one_of_its_machine_that_fetches(
    archive, tmp_path, local_ranks
):
    address, asked = archive
    out = tmp_path / "out"
    machines = [tmp_path / "one", tmp_path / ("two" if local_ranks == [0, 0] else "one")]
    assert train(machines, local_ranks, [address] * 2, [out] * 2) == [(0, "")] * 2
    for machine in set(machines):
        for split, content in FILES.items():
            assert (machine / "raw" / f"{split}.tsv").read_bytes() == content
    assert len(asked) == len(set(machines))  # each machine asked once
    assert (out / "checkpoints" / "rnn_nano_22915" / "metrics.json").exists()


def test_every_machine_of_a_group_converts_a_gguf_file_for_itself(archive, tmp_path):
    machines, outs = [tmp_path / "one", tmp_path / "two"], [tmp_path / "out"] * 2
    base = ("--gpt_variant", write_gguf(tmp_path / "small.gguf"))
    for status, error in train(machines, [0, 0], [archive[0]] * 2, outs, *base):
        assert status == 0, error
    one, two = (next(machine.glob("cache/*/small-*/model.safetensors")) for machine in machines)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(os.listdir(one.parent)) == sorted(os.listdir(two.parent))
    backbones = (load_backbone(weights.parent) for weights in (one, two))
    assert len(set(map(base_fingerprint, backbones))) == 1  # both can be loaded


@pytest.mark.parametrize(
    ("failing", "local_ranks", "lines"),
    [(0, [0, 0], [1, 1]), (1, [0, 0], [1, 1]), (1, [0, 1], [1, 0])],
    ids=["the first machine", "the second machine", "the second process of one machine"],
)
def test_an_error_that_one_process_meets_ends_all_with_one_line_each_machine(
    archive, tmp_path, failing, local_ranks, lines
):
    """One of them cannot reach the corpus' site."""
    urls = [archive[0]] * 2
    urls[failing] = NOWHERE
    machines, outs = [tmp_path / "one", tmp_path / "two"], [tmp_path / "out"] * 2
    for (status, error), count in zip(train(machines, local_ranks, urls, outs), lines, strict=True):
        assert status == 2
        assert error.count(f"run.py: error: {NOWHERE}: cannot be downloaded") == count
        assert error.count("\n") == count
    assert not (tmp_path / "out").exists()


def test_a_process_whose_peer_has_gone_ends_without_a_traceback(archive, tmp_path):
    """The second cannot read what the first wrote, as where no folder is shared."""
    machines = [tmp_path / "one", tmp_path / "two"]
    outs = [machine / "out" for machine in machines]
    ended = train(machines, [0, 0], [archive[0]] * 2, outs)
    assert {status for status, _ in ended} in ({2}, {0, 2})
    assert all("Traceback" not in error for _, error in ended)
