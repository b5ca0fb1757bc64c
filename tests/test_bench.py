"""The benchmarks: that they start, and that what they compare would be seen to differ."""

import importlib
import json
import shlex
import subprocess
import sys

import pytest
from conftest import beginnings, write_corpus

from bench import ablation, kills
from bench.results import STUDIES, words_of
from support import PROJECT
from support.options import options_of, parse

SCRIPTS = [p.stem for p in (PROJECT / "bench").glob("*.py") if "__main__" in p.read_text()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_starts_and_says_how_it_is_called(name, monkeypatch, capsys):
    module = importlib.import_module(f"bench.{name}")
    assert f"python -m bench.{name}" in module.__doc__
    assert f"bench.{name}" in (PROJECT / "bench/README.md").read_text() or name == "results"
    monkeypatch.setattr("sys.argv", [f"bench.{name}", "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert capsys.readouterr().out.startswith("usage:")


def test_every_command_that_a_benchmark_runs_is_one_of_the_front_door():
    for shared, commands in STUDIES.values():
        for mode, options in commands:
            assert parse(words_of(mode, shared | options)).mode == mode
    for words in ablation.SETTINGS.values():
        assert parse(["--mode", *shlex.split(words)])


def test_the_untaught_of_a_study_take_as_many_steps_as_the_taught():
    commands = dict(STUDIES["smollm2_student"].commands)
    size = commands["distil"]["transfer_size"]
    args = parse(["--mode", "all", "--recipe", "hints", "--transfer_size", size])
    assert str(options_of(args, "rnn", 22915, 8551).epochs) == commands["rnn"]["epochs"]


def test_two_folders_differ_by_a_byte_and_not_by_the_clock(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for folder, seconds in ((alone, 1.0), (killed, 2.0)):
        folder.mkdir()
        (folder / "history.csv").write_text(f"epoch,seconds,sentences_per_second\n1,{seconds},1\n")
        (folder / "metrics.json").write_text(json.dumps({"training": {"seconds": seconds}}))
        (folder / "model.safetensors").write_bytes(b"weights")
    assert kills.compare(alone, killed) == []
    (killed / "model.safetensors").write_bytes(b"weightz")
    (killed / "history.csv").write_text("epoch,seconds,sentences_per_second\n2,2.0,1\n")
    (alone / "predictions.csv").touch()
    found = kills.compare(alone, killed)
    assert [line.split()[1] for line in found] == [
        "predictions.csv", "history.csv", "model.safetensors",
    ]  # fmt: skip


def test_the_rehearsal_on_a_gpu_runs_on_a_processor_in_small(tmp_path):
    """On a small corpus, since nano's takes minutes where bf16 is emulated."""
    write_corpus(tmp_path, beginnings(200, 70, 70))
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--base", "nano", "--tiny"]
    command += ["--data_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    works = [line.split("|")[1].strip() for line in done.stdout.splitlines() if "| " in line]
    for start in ("LoRA training, gpt2, sent", "LoRA training, smollm2, GFL", "writing", "a whole"):
        assert any(work.startswith(start) for work in works), (start, done.stdout)
