"""Tests of report.py on run folders made here, in the layout that training writes."""

import itertools
import json
import math
import re
import shutil
from argparse import Namespace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from pypdf import PdfReader
from sklearn.metrics import accuracy_score, cohen_kappa_score, matthews_corrcoef

import report
from data_utils import DEV
from model import DistilRNN
from support.bases.loading import find_base
from support.checkpoints.students import save_student
from support.errors import UserError
from support.reporting import pages, tables
from support.reporting.finished import DEV_SETS, Series, find_runs, read_predictions
from support.reporting.inference_speed import measure_inference
from support.reporting.metrics import read_history
from support.reporting.statistics import (
    agreement,
    calibration_error,
    crossed,
    difference,
    mcc_pseudo_values,
    mcnemar,
    score,
    wilson_interval,
)

SIZES = {"in_domain_train": (8551, 6023), DEV: (527, 365), "out_of_domain_dev": (516, 354)}
CURVES = "epoch,train_loss,val_loss,train_accuracy,val_accuracy,val_mcc"


def make_run(
    out_dir: Path, mode: str, variant: str = "gpt2", bias: float = 0.0, sr_no: int = 7
) -> Path:
    """A run folder that agrees with itself; a `bias` of 99 answers "acceptable" to everything."""
    folder = out_dir / "checkpoints" / f"{mode}_{variant}_{sr_no}"
    folder.mkdir(parents=True)
    rng, frames, scores = np.random.default_rng([len(mode), sr_no]), [], {}
    for split in DEV_SETS:
        sentences, acceptable = SIZES[split]
        label = (np.arange(sentences) < acceptable).astype(int)
        logit = 2 * label - 1 + bias + rng.normal(size=sentences)
        table = {"split": split, "label": label, "logit_0": 0, "logit_1": logit}
        frames.append(pd.DataFrame(table))
        correct = int(((logit > 0) == label).sum())
        scores[split] = {
            "sentences": sentences, "acceptable": acceptable, "correct": correct,
            "predicted_acceptable": int((logit > 0).sum()), "accuracy": correct / sentences,
            "mcc": matthews_corrcoef(label, logit > 0),
        }  # fmt: skip
    pd.concat(frames).to_csv(folder / "predictions.csv", index=False)
    curves = {"train_loss": [0.7, 0.5], "val_loss": [0.6, 0.5]}
    curves |= {"train_accuracy": [0.6, 0.9], "val_accuracy": [0.6, 0.7], "val_mcc": [0.1, 0.2]}
    pd.DataFrame({"epoch": [1, 2], **curves}).to_csv(folder / "history.csv", index=False)
    counts = {s: {"sentences": n, "tokens": 9 * n, "acceptable": a} for s, (n, a) in SIZES.items()}
    metrics = {
        "mode": mode, "variant": variant, "sr_no": sr_no, "command": f"python run.py --mode {mode}",
        "arguments": tables.PUBLISHED_RECIPES[mode], "versions": {"torch": "2.13.0"},
        "hardware": {"device": "cpu"}, "base": {"name": variant},
        "identity": {"mode": mode, "sr_no": sr_no, "teacher": f"print {sr_no}", "lr": 1e-3},
        "training": {"best_epoch": 2, "epochs": 2, "seconds": 90.0},
        "data": {"name": "cola_public", "folder": "gone", "sha256": "ab", **counts},
        "parameters": {"total": 125_034_240, "trainable": 675_840}, **scores,
        "teacher": {"folder": f"out/LoRA_{variant}_{sr_no}"} if mode == "distil" else None,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def change_metrics(run_folder: Path, part: str, **changes) -> None:
    path = run_folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(metrics | {part: metrics[part] | changes}), encoding="utf-8")


def options(out_dir: Path, sr_no: str = "7", **more) -> Namespace:
    numbers = [int(text) for text in sr_no.split(",")]
    settings = dict(out_dir=out_dir, serial=sr_no, sr_nos=numbers, mode="report", given=set())
    return Namespace(**settings | more)


def report_text(out_dir: Path, sr_no: str = "7") -> str:
    """The text of the report's pages, in one string with single spaces."""
    report.run_report(options(out_dir, sr_no))
    pages = PdfReader(out_dir / f"Report_{sr_no}.pdf").pages
    return " ".join(" ".join(page.extract_text() for page in pages).split())


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The closed formula of Wilson (1927)."""
    z, p = NormalDist().inv_cdf(0.975), correct / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return centre - half, centre + half


def test_wilson_interval_is_the_closed_formula_and_agrees_with_the_published_rows():
    for correct, total in ((420, 527), (437, 527), (366, 527), (0, 10), (10, 10)):
        expected = wilson(correct, total)
        assert wilson_interval(correct, total) == pytest.approx(expected, abs=1e-9)
    for row, correct in zip((0, 1, 4), (420, 437, 366), strict=True):
        low, high = wilson(correct, 527)
        expected = f"{correct / 527:.2%}", f"{100 * low:.1f} to {100 * high:.1f}"
        assert tables.PUBLISHED[row][3:5] == expected


@pytest.mark.parametrize(("one", "other"), [(30, 11), (2, 90), (7, 7), (0, 1), (4, 3)])
def test_mcnemars_p_is_the_sum_of_the_splits_that_are_no_likelier(one, other):
    n = one + other
    ways = [math.comb(n, k) for k in range(n + 1)]
    expected = sum(way for way in ways if way <= ways[one]) / 2**n
    assert mcnemar(one, other) == pytest.approx(expected)


def test_models_that_err_alike_are_not_told_apart():
    assert mcnemar(0, 0) == 1.0


def test_score_agrees_with_scikit_learn_and_another_bootstrap(tmp_path):
    found = read_predictions(make_run(tmp_path, "LoRA") / "predictions.csv")[DEV]
    label, answer = found.labels, found.answers
    shown = score(label, answer[None])
    assert shown.mcc.value == pytest.approx(matthews_corrcoef(label, answer))
    assert shown.accuracy.value == pytest.approx(accuracy_score(label, answer))
    assert shown.accuracy[1:3] == wilson_interval(int((label == answer).sum()), 527)
    assert shown.majority == pytest.approx(365 / 527)
    draws = np.random.default_rng(1).integers(527, size=(1000, 527))
    expected = np.quantile([matthews_corrcoef(label[d], answer[d]) for d in draws], (0.025, 0.975))
    assert shown.mcc[1:3] == pytest.approx(tuple(expected), abs=0.008)


def analysis_of_variance(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of a table of two crossed factors, its variance and degrees of freedom, by hand."""
    runs, sentences = values.shape
    mean = values.sum() / values.size
    rows = [sum(row) / sentences for row in values]
    columns = [sum(column) / runs for column in values.T]
    of_rows = sentences * sum((row - mean) ** 2 for row in rows) / (runs - 1)
    of_columns = runs * sum((column - mean) ** 2 for column in columns) / (sentences - 1)
    free = (runs - 1) * (sentences - 1)
    rest = sum(
        (values[i, j] - rows[i] - columns[j] + mean) ** 2
        for i, j in itertools.product(range(runs), range(sentences))
    ) / free  # fmt: skip
    parts = (of_rows, runs - 1), (of_columns, sentences - 1), (-rest, free)
    total = sum(square for square, _ in parts)
    freedom = total**2 / sum(square**2 / free for square, free in parts)
    return mean, total / values.size, freedom


def test_the_interval_over_seeds_and_sentences_is_that_of_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(4, 30))
    mean, variance, freedom = analysis_of_variance(values)
    expected = scipy.stats.t(freedom, mean, variance**0.5)
    found = crossed(values)
    assert found.value == pytest.approx(mean)
    assert found[1:3] == pytest.approx(expected.interval(0.95))
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(mean) / variance**0.5, freedom))


def draw_models(rng, seeds: int, sentences: int = 527) -> tuple[np.ndarray, ...]:
    """Labels, and two models' answers over seeds: what is a sentence's own they have in common."""
    labels = (rng.random(sentences) < 0.69).astype(int)
    common = rng.normal(size=sentences)

    def answers(skill: float) -> np.ndarray:
        own = 0.5 * rng.normal(size=(seeds, sentences)) + 0.3 * rng.normal(size=(seeds, 1))
        return (skill * (2 * labels - 1) + common + own + 0.3 > 0).astype(int)

    return labels, answers(1.0), answers(0.5)


@pytest.mark.parametrize("seeds", [3, 5])
def test_about_95_of_100_intervals_over_seeds_and_sentences_hold_the_truth(seeds):
    """An interval that forgot either source of chance would hold it in 50 to 90 of them."""
    rng = np.random.default_rng(seeds)
    truth = np.mean([
        [estimate.value for estimate in difference(*draw_models(rng, 5, 20_000))] for _ in range(60)
    ], axis=0)  # fmt: skip
    held = np.array([
        [found.low <= value <= found.high for found, value in zip(pair, truth, strict=True)]
        for pair in (difference(*draw_models(rng, seeds)) for _ in range(300))
    ])  # fmt: skip
    assert ((held.mean(axis=0) > 0.91) & (held.mean(axis=0) < 0.995)).all(), held.mean(axis=0)


def test_no_difference_at_all_has_no_width_and_p_1():
    labels, answers, _ = draw_models(np.random.default_rng(0), 3)
    for found in difference(labels, answers, answers):
        assert found == (0, 0, 0, 1)


def test_pseudo_values_of_mcc_are_those_of_leaving_out_each_sentence():
    labels, answers, _ = draw_models(np.random.default_rng(0), 2, 40)
    found = mcc_pseudo_values(labels, answers)
    for row, given in zip(found, answers, strict=True):
        whole = matthews_corrcoef(labels, given)
        rest = [matthews_corrcoef(np.delete(labels, i), np.delete(given, i)) for i in range(40)]
        assert row == pytest.approx([40 * whole - 39 * value for value in rest])


def test_calibration_error_is_the_weighed_gap_of_each_bin():
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 2, 500), rng.random(500)
    expected = 0.0
    for low in range(15):
        confidence = np.maximum(p, 1 - p)
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        if inside.any():
            accuracy = accuracy_score(labels[inside], p[inside] > 0.5)
            expected += inside.mean() * abs(accuracy - confidence[inside].mean())
    assert calibration_error(labels, p) == pytest.approx(expected)
    assert calibration_error(np.array([1, 0]), np.array([1.0, 0.0])) == 0


def test_agreement_is_scikit_learns_kappa():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 200))
    second[:120] = first[:120]
    share, kappa = agreement(first, second)
    assert share == pytest.approx(accuracy_score(first, second))
    assert kappa == pytest.approx(cohen_kappa_score(first, second))
    assert agreement(np.ones(5), np.ones(5)) == (1, 0)


def test_curves_and_predictions_are_read_as_pandas_reads_them(tmp_path):
    folder = make_run(tmp_path, "LoRA")
    curves = pd.read_csv(folder / "history.csv")
    assert read_history(folder, 2) == {name: curves[name].tolist() for name in curves}
    found = read_predictions(folder / "predictions.csv")
    for split, table in pd.read_csv(folder / "predictions.csv").groupby("split"):
        ours = found.pop(split)
        assert ours.labels.tolist() == table["label"].tolist()
        assert ours.logits.tolist() == table[["logit_0", "logit_1"]].to_numpy().tolist()
        assert ours.answers.tolist() == (table["logit_1"] > table["logit_0"]).astype(int).tolist()
    assert found == {}


def test_a_model_of_one_class_is_named_in_table_and_report(tmp_path, capsys):
    make_run(tmp_path, "LoRA")
    make_run(tmp_path, "rnn", bias=99)
    text, printed = report_text(tmp_path), capsys.readouterr().out.splitlines()
    # In words, and for both dev sets in the tables of results, pairs, agreement and calibration.
    assert text.count("one class only") == 1 + 4 * 2
    for split in DEV_SETS:
        named = [line.split()[0] for line in printed if split in line and "one class only" in line]
        assert named == ["rnn"]


def test_runs_come_by_variant_then_mode_and_only_finished_ones(tmp_path):
    for mode, variant in (("rnn", "gpt2"), ("LoRA", "nano"), ("distil", "gpt2"), ("LoRA", "gpt2")):
        make_run(tmp_path, mode, variant)
    (make_run(tmp_path, "rnn", "nano") / "metrics.json").unlink()
    (make_run(tmp_path, "distil", "nano") / "unfinished.json").write_text("{}")
    names = [run.name for run in find_runs(tmp_path, [7])]
    assert names == ["LoRA gpt2", "distil gpt2", "rnn gpt2", "LoRA nano"]
    with pytest.raises(UserError, match=r"python run.py --mode all --sr_no 8"):
        find_runs(tmp_path, [8])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"mode": "LoRA"'),
        ("metrics.json", '{"mode": "LoRA"}'),
        ("history.csv", ""),
        ("history.csv", "epoch,train_loss\n1,0.5\n"),
        ("history.csv", f"{CURVES}\n1,1,1,1,1,1\n"),  # the epoch kept is the second
        ("history.csv", f"{CURVES}\n2,1,1,1,1,1\n3,1,1,1,1,1\n"),
        ("history.csv", f"{CURVES}\n1,1,1,1,1,1\n2,1,1\n"),
        ("predictions.csv", "split,label\n1,1\n"),
        ("predictions.csv", "split,label,logit_0,logit_1\nin_domain_dev,1,0.0,1.0\n"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, name, content):
    path = make_run(tmp_path, "LoRA") / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        report.run_report(options(tmp_path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("Report*"))


def test_predictions_that_metrics_json_contradicts_are_an_error(tmp_path):
    change_metrics(make_run(tmp_path, "LoRA"), DEV, correct=1)
    with pytest.raises(UserError, match=r"predictions.csv: not of the run that metrics.json"):
        find_runs(tmp_path, [7])


@pytest.mark.parametrize(
    ("part", "changes", "fault"),
    [
        ("training", dict(epochs=-1), "training.epochs is not a count: -1"),
        ("training", dict(best_epoch=True), "training.best_epoch is not a count: True"),
        (DEV, dict(sentences=0), "in_domain_dev.sentences is not a count: 0"),
        (DEV, dict(accuracy=1.5), "in_domain_dev.accuracy is not a number from -1 to 1: 1.5"),
        (DEV, dict(mcc=math.nan), "in_domain_dev.mcc is not a number from -1 to 1: nan"),
        ("data", dict(folder="a\0b"), "data.folder is not text: "),
        ("data", dict(in_domain_train=[]), "data.in_domain_train is no object"),
    ],
)
def test_metrics_json_with_an_impossible_value_is_an_error_that_names_it(
    tmp_path, part, changes, fault
):
    change_metrics(make_run(tmp_path, "LoRA"), part, **changes)
    with pytest.raises(UserError, match=rf"metrics\.json: broken \({re.escape(fault)}"):
        find_runs(tmp_path, [7])


def test_a_label_that_is_neither_0_nor_1_is_an_error(tmp_path):
    path = make_run(tmp_path, "LoRA") / "predictions.csv"
    path.write_text(path.read_text().replace(f"{DEV},1,", f"{DEV},2,", 1))
    with pytest.raises(UserError, match=r"predictions.csv: broken .*neither 0 nor 1"):
        read_predictions(path)


def changed(series: Series, part: str, **changes) -> Series:
    (run,) = series.runs
    return series._replace(
        runs=[run._replace(metrics=run.metrics | {part: run.metrics[part] | changes})]
    )


@pytest.mark.parametrize(
    ("mode", "part", "changes", "reasons"),
    [
        ("LoRA", "base", dict(name="gpt2-medium"), []),
        ("distil", "arguments", dict(sr_no=1, patience=3), []),
        ("LoRA", "arguments", dict(lora_rank=64, lr=0.01), ["lr 0.01", "lora_rank 64"]),
        ("LoRA", "base", dict(name="models/gpt2"), ["base models/gpt2"]),
        ("rnn", "data", dict(in_domain_train={"sentences": 8550}), ["corpus cola_public"]),
        ("distil", "arguments", dict(max_steps=9), ["max_steps 9"]),
        ("distil", "arguments", dict(kd_alpha=0.9, epochs=6), ["epochs 6", "kd_alpha 0.9"]),
        ("distil", "arguments", dict(hint_weight=3.0), ["hint_weight 3.0"]),
    ],
)
def test_what_differs_from_the_published_setting_is_named(tmp_path, mode, part, changes, reasons):
    make_run(tmp_path, mode)
    (run,) = find_runs(tmp_path, [7])
    assert tables.differences_from_published(run) == []
    assert tables.differences_from_published(changed(run, part, **changes)) == reasons


def test_many_settings_leave_the_table_within_the_margins(tmp_path):
    make_run(tmp_path, "distil")
    settings = dict(
        transfer_size=100_000, transfer_source="written", hint_weight=10.0, hint_width=576,
        student_width=1536, student_dropout=0.3, embedding_start="teacher", lr_schedule="linear",
    )  # fmt: skip
    (series,) = find_runs(tmp_path, [7])
    rows = tables.recipe_rows([changed(series, "arguments", **settings)])
    told = " ".join(rows[1][1].split())
    assert all(f"{name} {value}" in told for name, value in settings.items())
    pages.write_pdf(tmp_path / "empty.pdf", [])  # knows the fonts from here on
    _, body = pages.table("How.", rows, left=2)
    assert body.wrap(pages.WIDTH, 800)[0] <= pages.WIDTH


def test_a_run_from_before_an_option_came_has_its_default(tmp_path):
    make_run(tmp_path, "distil")
    (series,) = find_runs(tmp_path, [7])
    for name in ("hint_weight", "lr_schedule"):
        del series.metrics["arguments"][name]
    assert tables.differences_from_published(series) == []


def test_a_setting_that_metrics_json_does_not_tell_is_not_taken_for_the_published(tmp_path):
    make_run(tmp_path, "rnn")
    (run,) = find_runs(tmp_path, [7])
    del run.metrics["arguments"]["lr"]
    assert tables.differences_from_published(run) == ["lr not known"]


@pytest.mark.parametrize("held_out", [0, 5])
def test_curves_say_whether_a_bias_was_fitted_after_them(tmp_path, held_out):
    change_metrics(make_run(tmp_path, "rnn"), "arguments", held_out=held_out)
    assert ("; before the bias was fitted" in report_text(tmp_path)) == (held_out > 0)


def test_the_report_says_which_runs_are_comparable_and_why_others_are_not(tmp_path):
    make_run(tmp_path, "LoRA")
    change_metrics(make_run(tmp_path, "rnn"), "arguments", lr=0.01, batch_size=8)
    text = report_text(tmp_path)
    assert "Comparable here: LoRA gpt2. Not comparable: rnn gpt2 (batch_size 8, lr 0.01)." in text


def test_report_holds_results_pairs_and_limits_and_survives_odd_names(tmp_path):
    odd = "$x_{$_<b>_&_a_long_folder_name_of_a_checkpoint_at_step_100000"
    for mode, variant in (("LoRA", "gpt2"), ("distil", "gpt2"), ("rnn", "gpt2"), ("LoRA", odd)):
        make_run(tmp_path, mode, variant)
    text = report_text(tmp_path)
    pairs = "LoRA against distil", "distil against rnn"
    for expected in (
        *pairs,
        "79.70%",
        "69.26%",
        "125.03M",
        "0.68M",
        "not measured",
        odd,
        "cannot say",
    ):
        assert expected in text
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert plots > {f"comparison_{odd}_7.png", "rnn_gpt2_7_loss.png", "rnn_gpt2_7_accuracy.png"}
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "plots", "Report_7.pdf"}


def add_student(folder: Path) -> DistilRNN:
    """A small student in a run's folder, and two sentences to time it on."""
    sentences = folder / "corpus" / "raw" / f"{DEV}.tsv"
    sentences.parent.mkdir(parents=True)
    sentences.write_text("a\t1\t\tShe sat.\na\t0\t*\tSat the dog she.\n")
    change_metrics(folder, "data", folder=str(folder / "corpus"))
    model = DistilRNN(torch.arange(10), width=8)
    save_student(model, find_base("nano"), folder)
    return model


def test_what_can_be_timed_is_and_for_the_rest_the_reason_is_told(tmp_path):
    model = add_student(make_run(tmp_path, "distil"))
    rnn = make_run(tmp_path, "rnn")
    measured = measure_inference([series.runs[0] for series in find_runs(tmp_path, [7])])
    assert list(measured) == ["distil", "distil as ONNX", "rnn"]
    parameters = sum(p.numel() for p in model.parameters())
    assert measured["distil"]["bytes"] == 4 * parameters + 8 * 10  # fp32, and its token ids
    assert measured["distil"]["sentences_per_second"] > 0
    assert measured["distil as ONNX"]["sentences_per_second"] > 0
    assert list(measured["rnn"]) == ["reason"]
    assert measured["rnn"]["reason"].startswith(f"{rnn}: neither a LoRA adapter")


@pytest.mark.parametrize(("there", "ratio"), [("LoRA", r" \([\d.]+×\)"), ("rnn", "")])
def test_the_size_table_tells_why_a_model_could_not_be_timed(tmp_path, there, ratio):
    """Ratios are to the first, LoRA, where that is there."""
    gone = {"LoRA": "rnn", "rnn": "LoRA"}[there]
    add_student(make_run(tmp_path, there))
    folder = make_run(tmp_path, gone)
    cells = {name: row for name, *row in tables.size_rows(find_runs(tmp_path, [7]))}
    assert all(re.fullmatch(rf"[\d,.]+{ratio}", cell) for cell in cells[there])
    (reason,) = cells[gone]
    assert "".join(reason.split()).startswith(f"notmeasured:{folder}:neither")


@pytest.mark.parametrize("name", ["load_checkpoint", "exported", "predict_logits"])
def test_a_fault_of_the_programs_own_is_not_taken_for_a_model_that_cannot_be_timed(
    tmp_path, monkeypatch, name
):
    add_student(make_run(tmp_path, "distil"))
    monkeypatch.setattr(f"support.reporting.inference_speed.{name}", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tables.size_rows(find_runs(tmp_path, [7]))


# ---------------------------------------------------------------------------------------------
# Several sr_no


def make_runs(out_dir: Path, sr_nos=(7, 8), modes=("LoRA", "distil", "rnn")) -> None:
    for mode, sr_no in itertools.product(modes, sr_nos):
        make_run(out_dir, mode, sr_no=sr_no)


def test_one_report_over_several_sr_no_has_means_deviations_and_every_run(tmp_path, capsys):
    make_runs(tmp_path, sr_nos=(7, 8, 9))
    text, printed = report_text(tmp_path, "7,8,9"), capsys.readouterr().out
    for series in find_runs(tmp_path, [7, 8, 9]):
        figures = [run.metrics[DEV]["accuracy"] for run in series.runs]
        for page in (text, " ".join(printed.split())):
            assert f"{100 * np.mean(figures):.2f} ± {100 * np.std(figures, ddof=1):.2f}%" in page
        for run in series.runs:
            shown = f"{run.metrics[DEV]['accuracy']:.2%}, MCC {run.metrics[DEV]['mcc']:.3f}"
            assert f"{series.mode} {run.metrics['sr_no']} {shown}" in text
    assert "both taken as drawn at random" in text
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"LoRA_gpt2_7,8,9_loss.png", "reliability_gpt2_7,8,9.png"} < plots


def test_differences_are_paired_by_sr_no(tmp_path):
    make_runs(tmp_path)
    lora, distil, _ = same = find_runs(tmp_path, [7, 8])
    row = tables.paired_rows(same)[1]
    found, _ = difference(lora.labels(DEV), lora.answers(DEV), distil.answers(DEV))
    gaps = [
        100 * (a.metrics[DEV]["accuracy"] - b.metrics[DEV]["accuracy"])
        for a, b in zip(lora.runs, distil.runs, strict=True)
    ]
    assert row[:3] == ("LoRA against distil", DEV, f"{np.mean(gaps):+.2f}")
    assert row[4] == f"{found.p:.2g}"


def test_a_report_over_several_sr_no_wants_all_of_them_finished_and_alike(tmp_path):
    make_runs(tmp_path)
    folder = tmp_path / "checkpoints" / "rnn_gpt2_8"
    change_metrics(folder, "identity", lr=0.5)
    with pytest.raises(UserError, match=r"rnn_gpt2_8: lr is 0.5, and 0.001 in rnn_gpt2_7;"):
        find_runs(tmp_path, [7, 8])
    (folder / "unfinished.json").write_text('{"command": "python run.py --mode rnn"}')
    with pytest.raises(UserError, match=r"rnn_gpt2_8: this run is not finished; finish it with: "):
        find_runs(tmp_path, [7, 8])
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"rnn_gpt2_8: no such run; train it"):
        find_runs(tmp_path, [7, 8])
    assert len(find_runs(tmp_path, [7])) == 3


def test_a_copy_of_a_run_is_no_other_run(tmp_path):
    folder = make_run(tmp_path, "LoRA")
    shutil.copytree(folder, folder.with_name("LoRA_gpt2_8"))
    with pytest.raises(UserError, match=r"gpt2_8: its metrics.json is that of LoRA_gpt2_7; a copy"):
        find_runs(tmp_path, [7, 8])


def test_an_interval_ends_where_accuracy_and_mcc_do():
    labels = np.arange(200) % 2
    answers = np.stack([labels, np.where(np.arange(200) < 5, 1 - labels, labels)])
    found = score(labels, answers)
    assert found.accuracy.high == found.mcc.high == 1
    assert crossed(answers == labels).high > 1


def test_an_option_that_an_older_run_does_not_name_has_its_default(tmp_path):
    make_runs(tmp_path, modes=["rnn"])
    path = tmp_path / "checkpoints" / "rnn_gpt2_7" / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["arguments"]["lr_schedule"]
    path.write_text(json.dumps(metrics))
    rows = tables.settings_rows(find_runs(tmp_path, [7, 8]))
    (row,) = [row for row in rows if row[0] == "arguments"]
    assert row[1] == "all"
    assert "lr_schedule: constant" in row[2]


def test_a_report_over_one_variant_leaves_the_others_alone(tmp_path):
    make_runs(tmp_path)
    make_run(tmp_path, "rnn", "nano")
    assert {s.variant for s in find_runs(tmp_path, [7, 8], "gpt2")} == {"gpt2"}
    with pytest.raises(UserError, match="rnn_nano_8: no such run"):
        find_runs(tmp_path, [7, 8])


# ---------------------------------------------------------------------------------------------
# Sources, calibration, agreement


def add_corpus(folder: Path) -> None:
    """A corpus with the dev sets' labels: 500 of a source, then 20, then 7 small ones."""
    (folder / "corpus" / "raw").mkdir(parents=True)
    for split in DEV_SETS:
        sentences, acceptable = SIZES[split]
        sources = ["big"] * 480 + ["mid"] * 20 + [f"s{i % 7}" for i in range(500, sentences)]
        lines = [f"{name}\t{int(i < acceptable)}\t\tA." for i, name in enumerate(sources)]
        (folder / "corpus" / "raw" / f"{split}.tsv").write_text("\n".join(lines))
    change_metrics(folder, "data", folder=str(folder / "corpus"))


def test_results_by_source_put_the_small_sources_together(tmp_path):
    add_corpus(make_run(tmp_path, "LoRA"))
    (series,) = same = find_runs(tmp_path, [7])
    rows = tables.source_rows(same)
    assert [row[:3] for row in rows[1:4]] == [
        (DEV, "big", "480"), (DEV, "mid", "20"), (DEV, "7 others", "27")
    ]  # fmt: skip
    labels, answers = series.labels(DEV)[:480], series.answers(DEV)[0, :480]
    expected = accuracy_score(labels, answers), matthews_corrcoef(labels, answers)
    assert rows[1][4] == "{:.1%}, {:.2f}".format(*expected)


def test_without_its_corpus_a_report_says_why_it_has_no_sources(tmp_path):
    folder = make_run(tmp_path, "LoRA")
    rows = tables.source_rows(find_runs(tmp_path, [7]))
    assert rows[1] == ("–", "not known: gone/raw/in_domain_dev.tsv: no such file")
    add_corpus(folder)
    path = folder / "corpus" / "raw" / f"{DEV}.tsv"
    whole = path.read_text()
    path.write_text(whole + "\n\n")
    assert "not the corpus of" in tables.source_rows(find_runs(tmp_path, [7]))[1][1]
    path.write_text(whole.replace("big\t1", "big\t0", 1))
    assert "not the corpus of" in tables.source_rows(find_runs(tmp_path, [7]))[1][1]


def test_a_student_that_is_its_teacher_agrees_with_it(tmp_path):
    for mode in ("LoRA", "distil"):
        make_run(tmp_path, mode)
    same = find_runs(tmp_path, [7])
    assert [row[:2] for row in tables.agreement_rows(same)[1:]] == [("distil", s) for s in DEV_SETS]
    change_metrics(tmp_path / "checkpoints" / "distil_gpt2_7", "teacher", folder="LoRA_gpt2_8")
    assert tables.agreement_rows(find_runs(tmp_path, [7]))[1:] == []
    twin = same[0]._replace(mode="rnn")
    assert tables.agreement_rows([same[0], twin])[1][2:] == ("100.0%", "1.000", "1.000")
