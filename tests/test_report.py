"""Tests of report.py on run folders made here, in the layout that training writes."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pypdf import PdfReader
from scipy.stats import binomtest
from sklearn.metrics import matthews_corrcoef

import report
from data_utils import DEV, PROJECT, UserError
from distil import save_student
from model import DistilRNN, load_tokenizer

SIZES = {"in_domain_train": (8551, 6023), DEV: (527, 365), "out_of_domain_dev": (516, 354)}


def make_run(out_dir: Path, mode: str, variant: str = "gpt2", bias: float = 0.0) -> Path:
    """A run folder that agrees with itself; a `bias` of 99 answers "acceptable" to everything."""
    folder = out_dir / "checkpoints" / f"{mode}_{variant}_7"
    folder.mkdir(parents=True)
    rng, tables, scores = np.random.default_rng(len(mode)), [], {}
    for split in report.DEV_SETS:
        sentences, acceptable = SIZES[split]
        label = (np.arange(sentences) < acceptable).astype(int)
        logit = 2 * label - 1 + bias + rng.normal(size=sentences)
        table = {"split": split, "label": label, "logit_0": 0, "logit_1": logit}
        tables.append(pd.DataFrame(table))
        scores[split] = {"correct": int(((logit > 0) == label).sum())}
    pd.concat(tables).to_csv(folder / "predictions.csv", index=False)
    curves = {"train_loss": [0.7, 0.5], "val_loss": [0.6, 0.5]}
    curves |= {"train_accuracy": [0.6, 0.9], "val_accuracy": [0.6, 0.7]}
    pd.DataFrame({"epoch": [1, 2], **curves}).to_csv(folder / "history.csv", index=False)
    counts = {s: {"sentences": n, "tokens": 9 * n, "acceptable": a} for s, (n, a) in SIZES.items()}
    metrics = {
        "mode": mode, "variant": variant, "sr_no": 7, "command": f"python run.py --mode {mode}",
        "arguments": {"lr": 0.001, "max_steps": None}, "versions": {"torch": "2.13.0"},
        "hardware": {"device": "cpu"}, "base": {"name": variant}, "training": {"best_epoch": 2},
        "data": {"name": "cola_public", "folder": "gone", "sha256": "ab", **counts},
        "parameters": {"total": 125_034_240, "trainable": 675_840}, **scores,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def change_metrics(run_folder: Path, part: str, **changes) -> None:
    path = run_folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(metrics | {part: metrics[part] | changes}), encoding="utf-8")


def report_text(out_dir: Path) -> str:
    """The text of the report's pages, in one string with single spaces."""
    report.run_report(Namespace(out_dir=out_dir, sr_no=7))
    pages = PdfReader(out_dir / "Report_7.pdf").pages
    return " ".join(" ".join(page.extract_text() for page in pages).split())


def test_wilson_interval_agrees_with_scipy_and_with_the_published_rows():
    for correct, total in ((420, 527), (437, 527), (366, 527), (0, 10), (10, 10)):
        expected = binomtest(correct, total).proportion_ci(method="wilson")
        assert report.wilson_interval(correct, total) == pytest.approx(tuple(expected), abs=1e-6)
    for row, correct in zip((0, 1, 4), (420, 437, 366), strict=True):
        low, high = binomtest(correct, 527).proportion_ci(method="wilson")
        expected = f"{correct / 527:.2%}", f"{100 * low:.1f} to {100 * high:.1f}"
        assert report.PUBLISHED[row][3:5] == expected


@pytest.mark.parametrize("counts", [(30, 11), (2, 90), (7, 7), (0, 1)])
def test_mcnemar_agrees_with_scipys_binomial_test(counts):
    assert report.mcnemar(*counts) == pytest.approx(binomtest(counts[0], sum(counts)).pvalue)
    assert report.mcnemar(0, 0) == 1.0


def test_score_agrees_with_scikit_learn_and_another_bootstrap(tmp_path):
    table = pd.read_csv(make_run(tmp_path, "LoRA") / "predictions.csv").iloc[:527]
    label, answer, shown = table["label"], table["logit_1"] > 0, report.score(table)
    assert shown["mcc"] == pytest.approx(matthews_corrcoef(label, answer))
    assert shown["majority"] == pytest.approx(365 / 527)
    draws = np.random.default_rng(1).integers(527, size=(1000, 527))
    expected = np.quantile([matthews_corrcoef(label[d], answer[d]) for d in draws], (0.025, 0.975))
    assert shown["mcc_interval"] == pytest.approx(expected, abs=0.008)


def test_a_model_of_one_class_is_named_in_table_and_report(tmp_path, capsys):
    make_run(tmp_path, "LoRA")
    make_run(tmp_path, "rnn", bias=99)
    text, printed = report_text(tmp_path), capsys.readouterr().out.splitlines()
    assert text.count("one class only") == 4  # in the table of results and in that of pairs
    for split in report.DEV_SETS:
        named = [line.split()[0] for line in printed if split in line and "one class only" in line]
        assert named == ["rnn"]


def test_runs_come_by_variant_then_mode_and_only_finished_ones(tmp_path):
    for mode, variant in (("rnn", "gpt2"), ("LoRA", "nano"), ("distil", "gpt2"), ("LoRA", "gpt2")):
        make_run(tmp_path, mode, variant)
    (make_run(tmp_path, "rnn", "nano") / "metrics.json").unlink()
    names = [run.name for run in report.find_runs(tmp_path, 7)]
    assert names == ["LoRA gpt2", "distil gpt2", "rnn gpt2", "LoRA nano"]
    with pytest.raises(UserError, match=r"python run.py --mode all --sr_no 8"):
        report.find_runs(tmp_path, 8)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"mode": "LoRA"'),
        ("metrics.json", '{"mode": "LoRA"}'),
        ("history.csv", ""),
        ("history.csv", "epoch,train_loss\n1,0.5\n"),
        ("predictions.csv", "split,label\n1,1\n"),
        ("predictions.csv", "split,label,logit_0,logit_1\nin_domain_dev,1,0.0,1.0\n"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, name, content):
    path = make_run(tmp_path, "LoRA") / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        report.run_report(Namespace(out_dir=tmp_path, sr_no=7))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("Report*"))


def test_predictions_that_metrics_json_contradicts_are_an_error(tmp_path):
    change_metrics(make_run(tmp_path, "LoRA"), DEV, correct=1)
    with pytest.raises(UserError, match=r"metrics.json: broken.*predictions.csv"):
        report.find_runs(tmp_path, 7)


def test_only_the_published_setting_is_called_comparable(tmp_path):
    make_run(tmp_path, "LoRA")
    change_metrics(make_run(tmp_path, "LoRA", "a"), "base", name="models/gpt2")
    change_metrics(make_run(tmp_path, "rnn"), "data", in_domain_train={"sentences": 8550})
    change_metrics(make_run(tmp_path, "distil"), "arguments", max_steps=9)
    assert "Comparable here: LoRA gpt2." in report_text(tmp_path)


def test_report_holds_results_pairs_and_limits_and_survives_odd_names(tmp_path):
    odd = "$x_{$_<b>_&_a_long_folder_name_of_a_checkpoint_at_step_100000"
    for mode, variant in (("LoRA", "gpt2"), ("distil", "gpt2"), ("rnn", "gpt2"), ("LoRA", odd)):
        make_run(tmp_path, mode, variant)
    text = report_text(tmp_path)
    pairs = "LoRA against distil", "distil against rnn"
    for expected in (*pairs, "79.70%", "69.26%", "675840", "not measured", odd, "cannot say"):
        assert expected in text
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert plots > {f"comparison_{odd}_7.png", "rnn_gpt2_7_loss.png", "rnn_gpt2_7_accuracy.png"}
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "plots", "Report_7.pdf"}


def test_inference_is_measured_for_what_is_there_and_left_out_where_not(tmp_path):
    folder = make_run(tmp_path, "distil")
    change_metrics(folder, "data", folder=str(PROJECT / "nano" / "corpus"))
    model = DistilRNN(torch.arange(10), width=8)
    save_student(model, load_tokenizer(PROJECT / "nano"), 512, folder)
    make_run(tmp_path, "rnn")
    measured = report.measure_inference(report.find_runs(tmp_path, 7))
    assert list(measured) == ["distil", "distil as ONNX"]
    parameters = sum(p.numel() for p in model.parameters())
    assert measured["distil"]["bytes"] == 4 * parameters + 8 * 10  # fp32, and its token ids
    assert all(row["sentences_per_second"] > 0 for row in measured.values())
