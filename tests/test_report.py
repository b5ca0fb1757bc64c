"""Tests of report.py on run folders made here, in the layout that training writes."""

import csv
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from pypdf import PdfReader
from sklearn.metrics import accuracy_score, cohen_kappa_score, matthews_corrcoef

import report
from bench.results import by_rule
from support import PROJECT
from support.corpus import COLA_SHA256, DEV, file_fingerprints
from support.decisions import Decision
from support.errors import UserError
from support.options import options_of, parse, published
from support.reporting import pdf, tables
from support.reporting.curves import plot_curves
from support.reporting.finished import (
    DEV_SETS,
    Series,
    find_runs,
    missing_runs,
    read_history,
    read_predictions,
)
from support.reporting.statistics import (
    agreement,
    calibration_error,
    crossed,
    difference,
    mcc_pseudo_values,
    mcnemar,
    p_value,
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
        "arguments": published(mode), "versions": {"torch": "2.13.0"},
        "hardware": {"device": "cpu"}, "base": {"name": variant, "kind": "hub"},
        "identity": {"mode": mode, "sr_no": sr_no, "teacher": f"fingerprint {sr_no}", "lr": 1e-3},
        "training": {"best_epoch": 2, "epochs": 2, "steps": 134, "seconds": 90.0},
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


def set_threshold(run_folder: Path, edge: float, share: float = 0.7) -> Decision:
    """Move a run's margins and its threshold by as much: it answers as before."""
    path = run_folder / "predictions.csv"
    table = pd.read_csv(path)
    table["logit_1"] += edge
    table.to_csv(path, index=False)
    log_odds = math.log(share / (1 - share))
    thresholds = {"balanced": edge, "accuracy": edge - log_odds / 0.5}
    decision = Decision("balanced", thresholds, 0.5, log_odds - 0.5 * edge)
    path = run_folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) | decision.entries()
    path.write_text(json.dumps(metrics), encoding="utf-8")
    return decision


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
        assert tuple(tables.PUBLISHED.iloc[row][["accuracy", "95% interval"]]) == expected


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


@pytest.mark.parametrize(
    ("p", "printed"),
    [(4e-16, "< 0.001"), (0.00099, "< 0.001"), (0, "< 0.001"), (0.001, "0.001"), (0.0061, "0.0061"),
     (0.6249, "0.62"), (1.0, "1")],
)  # fmt: skip
def test_a_p_below_one_in_a_thousand_is_printed_as_such(p, printed):
    assert p_value(p) == printed


@pytest.mark.parametrize("sr_nos", [(7,), (7, 8, 9)])
def test_no_report_prints_a_p_in_powers_of_ten(tmp_path, sr_nos, capsys):
    make_runs(tmp_path, sr_nos)
    for mode, sr_no in itertools.product(("LoRA", "rnn"), sr_nos):  # they differ in all sentences
        shutil.rmtree(tmp_path / "checkpoints" / f"{mode}_gpt2_{sr_no}")
        make_run(tmp_path, mode, bias=3 if mode == "rnn" else 0, sr_no=sr_no)
    text = report_text(tmp_path, serial := ",".join(map(str, sr_nos)))
    page = (tmp_path / f"Report_{serial}.html").read_text()
    shown = text.partition("All settings")[0], page.partition('<script type="app')[0]
    assert "< 0.001" in shown[0]
    assert "&lt; 0.001" in shown[1]
    for words in shown:
        assert re.findall(r"\de-\d", words) == []


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


def test_curves_and_predictions_are_read_to_the_last_digit(tmp_path):
    folder = make_run(tmp_path, "LoRA")

    def rows(name: str) -> list[dict]:
        with open(folder / name, encoding="utf-8") as file:
            return list(csv.DictReader(file))

    for name, column in read_history(folder, 2).items():
        assert column.tolist() == [float(row[name]) for row in rows("history.csv")]
    predictions = read_predictions(folder / "predictions.csv")
    for split in DEV_SETS:
        mine, read = predictions[split], [r for r in rows("predictions.csv") if r["split"] == split]
        assert mine.labels.tolist() == [int(row["label"]) for row in read]
        margins = [float(row["logit_1"]) - float(row["logit_0"]) for row in read]
        assert mine.margins.tolist() == margins
        assert mine.answers.tolist() == [int(margin > 0) for margin in margins]


def test_what_a_run_imports_to_show_itself_and_to_draw_its_curves_is_light():
    """A LoRA run draws curves: it needs no scipy, no tables and no PDF."""
    code = (
        "import sys; import support.reporting; "
        "assert not sys.modules.keys() & {'pandas', 'matplotlib', 'scipy', 'reportlab'}; "
        "import support.reporting.curves; "
        "assert not sys.modules.keys() & {'scipy', 'reportlab', 'support.reporting.tables'}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_a_model_of_one_class_is_named_in_table_and_report(tmp_path, capsys):
    make_run(tmp_path, "LoRA")
    make_run(tmp_path, "rnn", bias=99)
    text, printed = report_text(tmp_path), capsys.readouterr().out.splitlines()
    # In words, and for both dev sets in the tables of results, of each run, pairs and confidence.
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
    with pytest.raises(
        UserError, match=r"predictions.csv: broken \(not of the run that metrics.json"
    ):
        find_runs(tmp_path, [7])


@pytest.mark.parametrize(
    ("part", "changes", "fault"),
    [
        ("training", dict(epochs=-1), "training.epochs is not a count: -1"),
        ("training", dict(best_epoch=True), "training.best_epoch is not a count: True"),
        (DEV, dict(sentences=0), "in_domain_dev.sentences is not a positive count: 0"),
        (DEV, dict(accuracy=1.5), "in_domain_dev.accuracy is not a number from -1 to 1: 1.5"),
        (DEV, dict(mcc=math.nan), "in_domain_dev.mcc is not a number from -1 to 1: nan"),
        ("data", dict(folder="a\0b"), "data.folder is not text: "),
        ("data", dict(in_domain_train=[]), "data.in_domain_train.sentences is not a positive"),
        ("arguments", dict(held_out="5"), "arguments.held_out is not a count: '5'"),
        ("training", dict(seconds=10**400), "training.seconds is not a number of seconds: 1000"),
    ],
)
def test_metrics_json_with_an_impossible_value_is_an_error_that_names_it(
    tmp_path, part, changes, fault
):
    change_metrics(make_run(tmp_path, "LoRA"), part, **changes)
    with pytest.raises(UserError, match=rf"metrics\.json: broken \({re.escape(fault)}"):
        find_runs(tmp_path, [7])


def test_a_run_is_judged_by_its_threshold_and_its_probabilities_are_calibrated(tmp_path):
    folder = make_run(tmp_path, "rnn")
    (plain,) = find_runs(tmp_path, [7])
    decision = set_threshold(folder, 1.25)
    (series,) = find_runs(tmp_path, [7])  # metrics.json has the counts of before
    for split in DEV_SETS:
        before, found = (each.runs[0].predictions[split] for each in (plain, series))
        np.testing.assert_allclose(found.margins, before.margins + 1.25)
        assert series.answers(split).tolist() == plain.answers(split).tolist()
        expected = scipy.special.expit(0.5 * found.margins + decision.intercept)
        np.testing.assert_allclose(series.p_acceptable(split)[0], expected)
        fewer_mistakes = by_rule(series, "accuracy").answers(split)
        assert fewer_mistakes[0].tolist() == (expected > 0.5).astype(int).tolist()
        np.testing.assert_allclose(
            plain.p_acceptable(split)[0], scipy.special.expit(before.margins)
        )
    table = tables.confidence_table([series]).set_index("dev set")
    errors = [calibration_error(series.labels(s), series.p_acceptable(s)[0]) for s in DEV_SETS]
    assert table["calibration error"].tolist() == [f"{error:.3f}" for error in errors]


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"thresholds": {"balanced": 1}}, "thresholds.accuracy is not a number: None"),
        ({"thresholds": 3}, "thresholds.balanced is not a number: None"),
        ({"calibration": {"slope": -1, "intercept": 0}}, "calibration.slope is not above 0"),
    ],
)
def test_a_run_whose_thresholds_are_broken_is_an_error_that_names_them(tmp_path, entries, fault):
    set_threshold(folder := make_run(tmp_path, "rnn"), 1.25)
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(UserError, match=rf"metrics\.json: broken \({fault}"):
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
        ("rnn", "arguments", dict(patience=9), ["patience 9"]),
        ("LoRA", "arguments", dict(lora_rank=64, lr=0.01), ["lr 0.01", "lora_rank 64"]),
        ("LoRA", "base", dict(name="openai-community/gpt2"), []),
        ("LoRA", "base", dict(name="somebody/gpt2"), ["base somebody/gpt2"]),
        ("LoRA", "base", dict(kind="folder"), ["base gpt2 (a folder)"]),
        ("LoRA", "base", dict(kind=None), ["base gpt2"]),
        ("LoRA", "identity", dict(precision="bf16"), ["precision bf16"]),
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
    series = changed(*find_runs(tmp_path, [7]), "arguments", **settings)
    table = tables.facts_table([series, series._replace(mode="rnn")])
    words = table.set_index(" ")["distil"]["not as published"]
    assert all(f"{name} {value}" in words for name, value in settings.items())
    pdf.write_pdf(tmp_path / "empty.pdf", [])  # knows the fonts from here on
    *_, body = pdf.table("How.", table, left=3)
    assert body.wrap(pdf.WIDTH, 800)[0] <= pdf.WIDTH


def test_an_option_that_metrics_json_does_not_name_has_its_published_value(tmp_path):
    """A run names every option of its identity that there was; what it lacks came later."""
    make_run(tmp_path, "distil")
    (series,) = find_runs(tmp_path, [7])
    for name in ("hint_weight", "lr_schedule", "held_out"):
        del series.metrics["arguments"][name]
    assert tables.differences_from_published(series) == []
    assert tables.sentences_an_epoch(series) == 8551
    (row,) = tables.settings_table([series]).query("part == 'arguments'").to_dict("records")
    assert row["of"] == "all"
    assert "lr_schedule: constant" in row["what it says"]


@pytest.mark.parametrize("held_out", [0, 5])
def test_curves_say_whether_a_bias_was_fitted_after_them(tmp_path, held_out):
    change_metrics(make_run(tmp_path, "rnn"), "arguments", held_out=held_out)
    assert ("; before a threshold was set" in report_text(tmp_path)) == (held_out > 0)


def test_the_report_says_which_runs_are_comparable_and_why_others_are_not(tmp_path):
    make_run(tmp_path, "LoRA")
    change_metrics(make_run(tmp_path, "rnn"), "arguments", lr=0.01, batch_size=8)
    text = report_text(tmp_path)
    assert "Comparable here: LoRA gpt2." in text
    assert "not as published nothing batch_size 8, lr 0.01" in text
    change_metrics(tmp_path / "checkpoints" / "LoRA_gpt2_7", "base", kind="folder")
    text = report_text(tmp_path)
    assert "Comparable here: none." in text
    assert "starts from gpt2 (a folder) random weights" in text
    assert "not as published base gpt2 (a folder) batch_size 8, lr 0.01" in text


def test_report_holds_results_pairs_and_limits_and_survives_odd_names(tmp_path):
    odd = "$x_{$_<b>_&_a_long_folder_name_of_a_checkpoint_at_step_100000"
    for mode, variant in (("LoRA", "gpt2"), ("distil", "gpt2"), ("rnn", "gpt2"), ("LoRA", odd)):
        make_run(tmp_path, mode, variant)
    text = report_text(tmp_path)
    pairs = "LoRA against distil", "distil against rnn"
    for expected in (*pairs, "79.70%", "69.26%", "125.03M", "0.68M", odd, "cannot say"):
        assert expected in text
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert plots > {f"comparison_{odd}_7.png", "rnn_gpt2_7_loss.png", "rnn_gpt2_7_accuracy.png"}
    assert {p.name for p in tmp_path.iterdir()} == {
        "checkpoints", "plots", "Report_7.pdf", "Report_7.html"
    }  # fmt: skip


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
    row = tables.paired_table(same).iloc[0]
    expected, _ = difference(lora.labels(DEV), lora.answers(DEV), distil.answers(DEV))
    gaps = [
        100 * (a.metrics[DEV]["accuracy"] - b.metrics[DEV]["accuracy"])
        for a, b in zip(lora.runs, distil.runs, strict=True)
    ]
    assert tuple(row.iloc[:3]) == ("LoRA against distil", DEV, f"{np.mean(gaps):+.2f}")
    assert row["p"] == p_value(expected.p)


def test_a_pair_of_single_runs_has_mcnemars_p(tmp_path):
    make_runs(tmp_path, sr_nos=[7], modes=["LoRA", "rnn"])
    one, two = same = find_runs(tmp_path, [7])
    right = [series.answers(DEV)[0] == series.labels(DEV) for series in (one, two)]
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    row = tables.paired_table(same).iloc[0]
    assert row["accuracy by"] == f"{100 * (only[0] - only[1]) / 527:+.2f}"
    assert row["right alone"] == f"{only[0]} against {only[1]} alone"
    assert row["p"] == p_value(mcnemar(*only))


def test_a_report_over_several_sr_no_takes_runs_of_the_same_settings(tmp_path):
    make_runs(tmp_path)
    change_metrics(tmp_path / "checkpoints" / "rnn_gpt2_8", "identity", lr=0.5)
    with pytest.raises(UserError, match=r"rnn_gpt2_8: lr is 0.5, and 0.001 in rnn_gpt2_7;"):
        find_runs(tmp_path, [7, 8])


def test_a_report_shows_what_is_there_and_names_what_is_missing(tmp_path, capsys):
    make_runs(tmp_path, sr_nos=(7, 8, 9))
    checkpoints = tmp_path / "checkpoints"
    shutil.rmtree(checkpoints / "rnn_gpt2_8")
    (checkpoints / "distil_gpt2_9" / "unfinished.json").write_text("{}")
    missing = [
        f"{checkpoints}/distil_gpt2_9: not finished", f"{checkpoints}/rnn_gpt2_8: no such run"
    ]  # fmt: skip
    assert missing_runs(tmp_path, [7, 8, 9]) == missing
    text, errors = report_text(tmp_path, "7,8,9"), capsys.readouterr().err
    assert errors.splitlines() == [f"run.py: not in the report: {line}" for line in missing]
    for line in missing:  # a path is broken where a line of the page ends
        assert line.replace(" ", "") in text.replace(" ", "")
    by_mode = {series.mode: series.sr_nos for series in find_runs(tmp_path, [7, 8, 9])}
    assert by_mode == {"LoRA": [7, 8, 9], "distil": [7, 8], "rnn": [7, 9]}


def test_runs_are_compared_over_the_seeds_that_both_have(tmp_path):
    make_runs(tmp_path, sr_nos=(7, 8, 9))
    whole = find_runs(tmp_path, [7, 9])
    shutil.rmtree(tmp_path / "checkpoints" / "distil_gpt2_8")
    shutil.rmtree(tmp_path / "checkpoints" / "rnn_gpt2_9")
    table = tables.paired_table(find_runs(tmp_path, [7, 8, 9]))
    assert table.iloc[0].tolist() == tables.paired_table(whole).iloc[0].tolist()  # 7 and 9
    assert table.iloc[2, 1].endswith("; sr_no 7, 9 alone")
    assert table.iloc[3]["95% interval"].endswith(" alone")  # of distil and rnn both have 7
    assert table.iloc[5, 1].endswith("; sr_no 7 alone")


def test_without_a_finished_run_a_report_is_an_error(tmp_path):
    folder = make_run(tmp_path, "rnn")
    (folder / "unfinished.json").write_text('{"command": "python run.py --mode rnn"}')
    with pytest.raises(UserError, match="no finished run with sr_no 7, 8; make them with: "):
        report.run_report(options(tmp_path, "7,8"))


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


def test_a_report_over_one_variant_leaves_the_others_alone(tmp_path):
    make_runs(tmp_path)
    make_run(tmp_path, "rnn", "nano")
    assert {s.variant for s in find_runs(tmp_path, [7, 8], "gpt2")} == {"gpt2"}
    assert missing_runs(tmp_path, [7, 8], "gpt2") == []
    assert missing_runs(tmp_path, [7, 8]) == [f"{tmp_path}/checkpoints/rnn_nano_8: no such run"]


# ---------------------------------------------------------------------------------------------
# What is said of the runs


def make_recipe(out_dir: Path, mode: str, recipe: str, variant: str = "smollm2", **training):
    """A run as a recipe makes it, with its own epochs and steps."""
    words = ["--mode", mode, "--gpt_variant", variant]
    words += [] if mode == "LoRA" else ["--recipe", recipe]
    settings = options_of(parse(words), mode, 7, 8551).settings
    folder = make_run(out_dir, mode, variant)
    change_metrics(folder, "arguments", **settings)
    change_metrics(folder, "training", **training)
    epochs = np.arange(1, training.get("epochs", 2) + 1)
    columns = dict.fromkeys(CURVES.split(",")[1:], 0.5)
    pd.DataFrame({"epoch": epochs, **columns}).to_csv(folder / "history.csv", index=False)
    return folder


def facts(out_dir: Path) -> dict[str, dict[str, str]]:
    return tables.facts_table(find_runs(out_dir, [7])).set_index(" ").to_dict()


def test_of_the_published_recipe_the_report_says_what_was_seen_and_kept(tmp_path):
    make_recipe(tmp_path, "LoRA", "published", best_epoch=2, epochs=5, steps=335)
    make_recipe(tmp_path, "distil", "published", best_epoch=1, epochs=4, steps=268)
    make_recipe(tmp_path, "rnn", "published", best_epoch=1, epochs=4, steps=268)
    lora, distil, _ = facts(tmp_path).values()
    assert (lora["starts from"], distil["starts from"]) == ("smollm2", "random weights")
    assert distil["labelled sentences"] == "8,551 of 8,551"
    assert distil["labelled by the teacher alone"] == "none"
    assert (distil["epochs"], distil["optimiser steps"]) == ("4", "268")
    assert distil["epoch kept"] == "1, the best accuracy on in_domain_dev"
    assert distil["threshold"] == "p = 0.50"
    assert distil["minutes of training"] == "1.5"
    text = report_text(tmp_path)
    saw = "distil saw 8,551 sentences an epoch in 268 steps, rnn saw 8,551 sentences an epoch in"
    assert f"{saw} 268 steps" in text


def test_of_hints_the_report_says_what_was_held_out_written_and_kept(tmp_path):
    make_recipe(tmp_path, "distil", "hints", best_epoch=16, epochs=16, steps=6016)
    make_recipe(tmp_path, "rnn", "hints", best_epoch=37, epochs=95, steps=5985)
    for mode in ("distil", "rnn"):
        set_threshold(tmp_path / "checkpoints" / f"{mode}_smollm2_7", 1.0)
    distil, rnn = facts(tmp_path).values()
    assert distil["starts from"] == "random weights, the embedding from the teacher's"
    assert rnn["starts from"] == "random weights"
    assert distil["labelled sentences"] == rnn["labelled sentences"] == "7,551 of 8,551"
    assert distil["labelled by the teacher alone"] == "200,000 written by the base"
    assert distil["sentences an epoch"] == "207,551"
    assert distil["epoch kept"] == "16, the last"
    assert rnn["epoch kept"] == "37, the best mcc on in_domain_dev"
    assert distil["threshold"] == rnn["threshold"]
    assert distil["threshold"] == "p = 0.70 (balanced), set on the 1000 held out"
    text = report_text(tmp_path)
    for words in (
        "distil saw 207,551 sentences an epoch in 6,016 steps, rnn saw 7,551 sentences an epoch in "
        "5,985 steps",
        "a teacher of this corpus had been trained on them",
        "Each run judged out_of_domain_dev once, with the model kept",
        "wall-clock",
    ):
        assert words in text


def test_of_nanos_recipe_the_report_says_what_was_edited_and_shows_no_published_row(tmp_path):
    make_recipe(tmp_path, "distil", "nano", "nano", steps=1720)
    make_recipe(tmp_path, "rnn", "nano", "nano", steps=160)
    for mode in ("distil", "rnn"):
        sizes = {"in_domain_train": {"sentences": 4000}}
        folder = tmp_path / "checkpoints" / f"{mode}_nano_7"
        change_metrics(folder, "data", name="nano/corpus", **sizes)
    assert facts(tmp_path)["distil"]["labelled by the teacher alone"] == "40,000 edited"
    text = report_text(tmp_path)
    assert "distil saw 44,000 sentences an epoch in 1,720 steps, rnn saw 4,000 sentences" in text
    assert "published LoRA" not in text
    assert "nano is a demonstration" in text


def test_findings_over_several_seeds_never_compare_without_saying_what_each_saw(tmp_path):
    make_runs(tmp_path, modes=["distil", "rnn"])
    for sr_no in (7, 8):
        folder = tmp_path / "checkpoints" / f"distil_gpt2_{sr_no}"
        change_metrics(folder, "arguments", transfer_size=40_000)
        change_metrics(folder, "training", steps=sr_no * 100)
    words = tables.findings(find_runs(tmp_path, [7, 8]))
    saw = "distil saw 48,551 sentences an epoch in 700 to 800 steps, rnn saw 8,551 sentences"
    assert "of MCC (" in words
    assert f", where {saw}" in words.partition("distil against rnn: ")[2]


def test_each_corpus_has_a_table_of_its_own_and_the_published_stand_beside_cola(tmp_path):
    make_run(tmp_path, "LoRA", "gpt2")
    folder = make_run(tmp_path, "LoRA", "nano")
    change_metrics(
        folder, "data", name="nano/corpus", sha256="cd", in_domain_train={"sentences": 4000}
    )
    text = report_text(tmp_path)
    first, second = re.split(r"Table 2\.", text.partition("Table 1.")[2])[:2]
    assert "cola_public: 8,551 training sentences, dev sets of 527 and 516." in first
    assert "published LoRA gpt2" in first
    assert "LoRA nano" not in first
    assert "nano/corpus: 4,000 training sentences" in second
    assert "published LoRA" not in second
    printed = tables.comparison_table(find_runs(tmp_path, [7])).split("\n\n")
    assert [block.count("LoRA nano") for block in printed] == [0, 2]


def test_a_figure_without_room_lets_the_text_behind_it_go_first(tmp_path):
    make_run(tmp_path, "LoRA")
    (picture, _) = plot_curves("LoRA", [tmp_path / "checkpoints" / "LoRA_gpt2_7"], tmp_path)

    def parts():
        yield from (pdf.text(f"before {number}") for number in range(35))
        yield pdf.Figure("the figure", picture)
        yield from (pdf.text(f"behind {number}") for number in range(9))

    pdf.write_pdf(tmp_path / "flow.pdf", parts())
    first, second = (page.extract_text() for page in PdfReader(tmp_path / "flow.pdf").pages)
    assert "behind 0" in first
    assert "behind 8" in second
    assert "Figure 1. the figure" in second


def test_the_epoch_kept_is_marked_by_a_ring_that_leaves_its_point_visible(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    make_run(tmp_path, "LoRA")
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plot_curves("LoRA", [tmp_path / "checkpoints" / "LoRA_gpt2_7"], tmp_path)
    for figure in drawn:
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        ring, curve = lines["epoch kept"], lines[DEV]
        assert ring.get_fillstyle() == "none"
        assert ring.get_markersize() > curve.get_markersize()
        assert list(ring.get_xydata()[0]) == list(curve.get_xydata()[1])


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
    table = tables.source_table(same)
    assert table.iloc[:3, :3].astype(str).to_numpy().tolist() == [
        [DEV, "big", "480"], [DEV, "7 others", "27"], [DEV, "mid", "20"]
    ]  # fmt: skip
    labels, answers = series.labels(DEV)[:480], series.answers(DEV)[0, :480]
    expected = accuracy_score(labels, answers), matthews_corrcoef(labels, answers)
    assert table.iloc[0, 4] == "{:.1%}, {:.2f}".format(*expected)


def test_without_its_corpus_a_report_says_why_it_has_no_sources(tmp_path):
    folder = make_run(tmp_path, "LoRA")
    same = find_runs(tmp_path, [7])
    expected = "not known: gone/raw/in_domain_dev.tsv: no such file"
    assert tables.source_table(same)["source"].tolist() == [expected]
    add_corpus(folder)
    path, same = folder / "corpus" / "raw" / f"{DEV}.tsv", find_runs(tmp_path, [7])
    whole = path.read_text()
    path.write_text(whole + "\nbig\t1\t\tA.")
    assert "not the corpus of" in tables.source_table(same)["source"][0]
    path.write_text(whole.replace("big\t1", "big\t0", 1))
    assert "not the corpus of" in tables.source_table(same)["source"][0]


def add_distinct_corpus(folder: Path, dev: dict[int, int], out: dict[int, int]) -> None:
    """A corpus of distinct sentences; some lines of the dev sets are lines of training too."""
    raw = folder / "corpus" / "raw"
    raw.mkdir(parents=True)
    for split, repeated in zip(SIZES, ({}, dev, out), strict=True):
        sentences, acceptable = SIZES[split]
        lines = [
            f"s\t{int(line <= acceptable)}\t\t"
            + (f"in_domain_train {repeated[line]}." if line in repeated else f"{split} {line}.")
            for line in range(1, sentences + 1)
        ]
        (raw / f"{split}.tsv").write_text("\n".join(lines))
    change_metrics(folder, "data", folder=str(folder / "corpus"))


def test_a_report_tells_the_scores_without_the_sentences_that_training_has(tmp_path):
    """Also of sentences with the other label: line 7000 of training is unacceptable."""
    folder = make_run(tmp_path, "LoRA")
    dev, out = {1: 5, 100: 7000, 527: 8551}, {}
    add_distinct_corpus(folder, dev, out)
    (series,) = find_runs(tmp_path, [7])
    assert tables.lines_in_training(series) == {DEV: [*dev], "out_of_domain_dev": []}
    kept = ~np.isin(np.arange(1, 528), [*dev])
    labels, answers = series.labels(DEV)[kept], series.answers(DEV)[0, kept]
    expected = [
        f"Without the 3 of 527 sentences of {DEV} that the training split has too: LoRA gpt2 "
        f"{accuracy_score(labels, answers):.2%}, MCC {matthews_corrcoef(labels, answers):.3f}; "
        f"majority baseline {labels.mean():.2%}.",
        "No sentence of out_of_domain_dev stands in the training split too.",
    ]
    assert tables.without_training([series]) == expected
    text = report_text(tmp_path)
    page = (tmp_path / "Report_7.html").read_text()
    for line in expected:
        assert line in text
        assert f"<p>{line}</p>" in page


def test_of_several_seeds_the_scores_without_some_sentences_are_means(tmp_path):
    make_runs(tmp_path, modes=["LoRA"])
    (series,) = find_runs(tmp_path, [7, 8])
    lines = {DEV: [2, 500], "out_of_domain_dev": [*range(1, 517)]}
    told, every = tables.scores_without(lines, {"the teacher": series})
    kept = np.delete(np.arange(527), [1, 499])
    right = 100 * (series.answers(DEV) == series.labels(DEV))[:, kept].mean(axis=1)
    assert f"the teacher {right.mean():.2f} ± {right.std(ddof=1):.2f}%, MCC " in told
    assert every == "Every sentence of out_of_domain_dev stands in the training split too."


def test_without_its_corpus_a_report_says_that_repeated_sentences_are_not_known(tmp_path):
    folder = make_run(tmp_path, "LoRA")
    unknown = "Whether the training split has sentences of the dev sets is not known: "
    assert f"{unknown}gone/raw/in_domain_dev.tsv: no such file." in report_text(tmp_path)
    add_distinct_corpus(folder, {1: 5}, {})
    train = folder / "corpus" / "raw" / "in_domain_train.tsv"
    train.write_text(train.read_text() + "\ns\t1\t\tOne more.")
    (line,) = tables.without_training(find_runs(tmp_path, [7]))
    assert line.startswith(f"{unknown}{train}: not the corpus of ")


# ---------------------------------------------------------------------------------------------
# Whose corpus


OF_OURS = ("nano is a demonstration", "was redesigned", "results/README.md", "nano/README.md")
OF_COLA = ("published LoRA gpt2", "Comparable", "the best that anyone has reported")


def words_and_page(out_dir: Path) -> list[str]:
    """The text of the report, and its page, with single spaces."""
    texts = report_text(out_dir), (out_dir / "Report_7.html").read_text()
    return [" ".join(text.split()) for text in texts]


def test_the_report_of_ones_own_corpus_on_nano_says_nothing_of_ours(tmp_path, run):
    raw = tmp_path / "mine" / "raw"
    raw.mkdir(parents=True)
    for split, size in (("in_domain_train", 40), (DEV, 12), ("out_of_domain_dev", 10)):
        lines = [f"me\t{n % 2}\t\tThe dog saw {n} cats." for n in range(size)]
        (raw / f"{split}.tsv").write_text("\n".join(lines))
    options = ("--gpt_variant", "nano", "--data_dir", "mine", "--sr_no", 7, "--max_steps", 3)
    done = run("--mode", "all", *options, "--transfer_size", 10, "--batch_size", 8)
    assert done.returncode == 0, done.stderr
    for name in ("LoRA", "distil", "rnn"):  # "mine" is relative to where the command ran
        change_metrics(tmp_path / "checkpoints" / f"{name}_nano_7", "data", folder=str(raw.parent))
    for series in find_runs(tmp_path, [7]):
        assert series.metrics["data"]["files"] == file_fingerprints(raw.parent)
    for words in words_and_page(tmp_path):
        assert "mine: 40 training sentences, dev sets of 12 and 10." in words
        assert "Every sentence of in_domain_dev stands in the training split too." in words
        for sentence in (*OF_OURS, *OF_COLA):
            assert sentence not in words


def copied_corpus(place: Path) -> dict[str, str]:
    """The fingerprints of nano's corpus, copied to another place."""
    shutil.copytree(PROJECT / "nano" / "corpus", place)
    return file_fingerprints(place)


@pytest.mark.parametrize("recorded", [True, False])
def test_what_is_said_of_nanos_corpus_and_of_cola_goes_by_their_files(tmp_path, recorded):
    """A copy is the same corpus; a run of an earlier version is known by its name or its sizes."""
    make_run(tmp_path, "rnn", "smollm2")
    nano = make_run(tmp_path, "LoRA", "smollm2")
    changes = {"name": "nano/corpus", "sha256": "cd", "in_domain_train": {"sentences": 4000}}
    if recorded:
        changes |= {"name": "copy", "files": copied_corpus(tmp_path / "copy")}
    change_metrics(nano, "data", **changes)
    for words in words_and_page(tmp_path):
        for sentence in (*OF_OURS, *OF_COLA):
            assert sentence in words


def test_a_corpus_of_colas_sizes_is_not_cola(tmp_path):
    folder = make_run(tmp_path, "LoRA")
    for files, expected in ((COLA_SHA256, "CoLA"), ({**COLA_SHA256, DEV: "ab"}, ""), ({}, "")):
        change_metrics(folder, "data", files=files)
        (series,) = find_runs(tmp_path, [7])
        assert tables.known_corpus(series) == expected
        assert tables.is_cola(series) == bool(expected)


def test_what_all_seeds_share_is_said_of_the_runs_that_share_it(tmp_path):
    make_runs(tmp_path)
    shared = "All seeds of {} share {}."
    assert "All seeds of" not in report_text(tmp_path, "7,8")  # each has a teacher of its own
    more = dict(held_out=1000, transfer_size=9, transfer_source="written")
    for sr_no in (7, 8):
        folder = tmp_path / "checkpoints" / f"distil_gpt2_{sr_no}"
        change_metrics(folder, "arguments", **more)
        change_metrics(folder, "teacher", folder="out/LoRA_gpt2_7", fingerprint="ab")
        rnn = tmp_path / "checkpoints" / f"rnn_gpt2_{sr_no}"
        change_metrics(rnn, "arguments", held_out=1000)
    text = report_text(tmp_path, "7,8")
    parts = "one held-out set, one set of written sentences, one teacher"
    assert shared.format("distil gpt2", parts) in text
    assert shared.format("rnn gpt2", "one held-out set") in text
    assert "All seeds of LoRA" not in text
    assert "All seeds of" not in report_text(tmp_path, "7")  # a single run


def test_a_students_report_names_its_teacher_and_what_it_scores(tmp_path):
    distil = make_run(tmp_path, "distil")
    assert facts(tmp_path)["distil"]["teacher"] == "LoRA_gpt2_7"
    lora = make_run(tmp_path / "elsewhere", "LoRA")
    change_metrics(distil, "teacher", folder=str(lora))
    m = json.loads((lora / "metrics.json").read_text())[DEV]
    expected = f"LoRA_gpt2_7: {m['accuracy']:.2%}, MCC {m['mcc']:.3f}"
    assert facts(tmp_path)["distil"]["teacher"] == expected
    make_run(tmp_path, "rnn")
    assert facts(tmp_path)["rnn"]["teacher"] == "none"


AGREEMENT = ["answers as LoRA", "kappa", "correlation of margins"]


def test_a_student_that_is_its_teacher_agrees_with_it(tmp_path):
    for mode in ("LoRA", "distil"):
        make_run(tmp_path, mode)
    same = find_runs(tmp_path, [7])
    table = tables.confidence_table(same)
    assert table[AGREEMENT].notna().all(axis=1).tolist() == [False, False, True, True]
    twin = tables.confidence_table([same[0], same[0]._replace(mode="rnn")])
    assert twin[AGREEMENT].iloc[2].tolist() == ["100.0%", "1.000", "1.000"]


def test_a_teacher_is_known_by_its_fingerprint_and_in_an_older_run_by_its_folder(tmp_path):
    lora, distil = (make_run(tmp_path, mode) for mode in ("LoRA", "distil"))

    def compared(**teacher) -> bool:
        change_metrics(distil, "teacher", **teacher)
        return "kappa" in tables.confidence_table(find_runs(tmp_path, [7]))

    assert compared(folder="elsewhere/LoRA_gpt2_7", fingerprint="ab")
    assert not compared(folder="LoRA_gpt2_8")
    path = lora / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adapter": "ab"}))
    assert compared(folder="copies/teacher")
    assert not compared(folder="LoRA_gpt2_7", fingerprint="cd")
