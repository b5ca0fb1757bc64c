"""The models that ship, the format that makes them small, and predict with several models."""

import shutil
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import PROJECT

from bench.shipping import card, compact
from data_utils import load_corpus
from model import load_student
from predict import load_model
from support.bases import find_base
from support.checkpoints import kind_of, teacher_fingerprint
from support.checkpoints.shipped import MODELS, SHIPPED, chosen_checkpoints
from support.checkpoints.students import expand
from support.command_line import parse
from support.corpus import DEV
from support.devices import CPU
from support.errors import UserError
from support.files import read_tensors, write_tensors
from support.reporting import read_metrics
from support.reporting.finished import DEV_SETS, load_run
from train_utils import count_parameters, predict_logits

SENTENCES = ["The boys were running.", "The boys was running."]


def test_compact_tensors_are_near_and_a_quarter_or_an_eighth_of_the_size():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "embedding.weight": torch.randn(50, 128, generator=generator),
        "rnn.weight_hh_l0": torch.randn(384, 128, generator=generator),
        "rnn.bias_hh_l0": torch.randn(384, generator=generator),
    }
    tensors["embedding.weight"][-1] = 0
    stored = compact(tensors)
    again = expand(stored)
    assert again.keys() == tensors.keys()
    bits = {"embedding.weight": 4, "rnn.weight_hh_l0": 8, "rnn.bias_hh_l0": 32}
    for name, tensor in tensors.items():
        assert stored[name].nbytes == tensor.numel() * bits[name] // 8
        step = tensor.abs().amax(dim=-1, keepdim=True) / (2 ** (bits[name] - 1) - 1)
        assert ((again[name] - tensor).abs() <= 0.51 * step).all(), name
    assert not again["embedding.weight"][-1].any()
    assert expand(tensors).keys() == tensors.keys()  # what is not compact stays as it is


@pytest.mark.parametrize("shape", [(2,), (3, 1), (2, 0), (2, 3)])
def test_scales_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="embedding"):
        expand({"embedding.weight": torch.zeros(2, 4), "embedding.weight.scale": torch.ones(shape)})


# ---------------------------------------------------------------------------------------------
# What ships


def shipped(name):
    """The folder of a model that ships; its test is skipped where its base is not installed."""
    folder = MODELS / SHIPPED[name]
    if kind_of(folder) == "adapter":
        try:
            find_base("smollm2")
        except UserError as error:
            pytest.skip(str(error))
    return folder


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_gives_the_answers_that_its_folder_has(name, cola):
    run = load_run(folder := shipped(name))
    model, tokenizer, longest = load_model(folder, Namespace(given=set()))
    corpus = load_corpus(cola, tokenizer, longest)
    for split in DEV_SETS:
        logits = predict_logits(model, corpus[split], CPU)
        margins, recorded = (logits[:, 1] - logits[:, 0]).numpy(), run.predictions[split].margins
        surely = np.abs(recorded) > 1e-2
        assert surely.mean() > 0.95
        assert ((margins > 0) == (recorded > 0))[surely].all()


def test_what_ships_is_small_and_holds_nothing_of_the_corpus():
    files = [file for name in SHIPPED.values() for file in (MODELS / name).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 20_000_000
    kinds = {".safetensors", ".json", ".csv", ".md"}
    assert {file.suffix for file in files} <= kinds
    for name in SHIPPED.values():
        assert (MODELS / name / "README.md").read_text() == card(MODELS / name)


def test_what_is_said_of_a_model_that_ships_is_of_its_own_files():
    student, teacher = (MODELS / SHIPPED[name] for name in ("student", "smollm2"))
    sizes = count_parameters(load_student(student).requires_grad_())
    assert read_metrics(student)["parameters"] == sizes
    fingerprint = teacher_fingerprint(teacher, Namespace(teacher=teacher))
    assert read_metrics(teacher)["adapter"] == fingerprint


def test_a_student_of_a_damaged_file_is_refused(tmp_path):
    shutil.copytree(MODELS / SHIPPED["student"], folder := tmp_path / "student")
    tensors, _ = read_tensors(folder / "model.safetensors")
    scale = "rnn.weight_ih_l0.scale"
    without = {name: tensor for name, tensor in tensors.items() if name != scale}
    lost = {**tensors, "other.scale": tensors[scale].clone()}
    infinite = {**tensors, "linear.bias": torch.tensor([0.0, float("nan")])}
    for broken, words in ((without, "do not fit"), (lost, "do not fit"), (infinite, "not finite")):
        write_tensors(folder / "model.safetensors", broken, {})
        with pytest.raises(UserError, match=words):
            load_student(folder)


def test_predict_without_a_checkpoint_takes_the_student_that_ships(run, tmp_path):
    result = run("--mode", "predict", *SENTENCES)
    assert result.returncode == 0, result.stderr
    figure = f"MCC {load_run(MODELS / SHIPPED['student']).metrics[DEV]['mcc']:.3f}"
    (note,) = result.stderr.splitlines()
    assert note.startswith("note: the student that ships")
    assert figure in note
    named = run("--mode", "predict", "--checkpoint", "student", *SENTENCES)
    assert (named.stdout, named.stderr) == (result.stdout, "")


@pytest.mark.parametrize("words", ["--sr_no 7", "--gpt_variant nano", "--out_dir a"])
def test_predict_takes_no_other_model_than_the_run_that_is_named(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = parse(["--mode", "predict", *words.split(), *SENTENCES])
    with pytest.raises(UserError, match="no such checkpoint folder"):
        chosen_checkpoints(args)


def test_a_student_that_ships_starts_without_transformers():
    """So its first answer is soon there."""
    code = (
        "import sys, run\n"
        "run.main(['--mode', 'predict', '--checkpoint', 'student', 'The boys were running.'])\n"
        "assert not {'transformers', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True)
