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
from sklearn.metrics import accuracy_score, matthews_corrcoef

import report
from bench.results import by_rule
from support import PROJECT
from support.corpus import COLA_SHA256, DEV, OUT_OF_DOMAIN, file_fingerprints
from support.decisions import Decision
from support.errors import UserError
from support.options import published
from support.reporting import tables
from support.reporting.curves import plot_curves
from support.reporting.finished import (
    DEV_SETS,
    find_runs,
    missing_runs,
    read_corpus,
    read_predictions,
)
from support.reporting.metrics import read_history
from support.reporting.statistics import (
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


def make_runs(out_dir: Path, sr_nos=(7, 8), modes=("LoRA", "distil", "rnn")) -> None:
    for mode, sr_no in itertools.product(modes, sr_nos):
        make_run(out_dir, mode, sr_no=sr_no)


def write_reports(out_dir: Path, sr_no: str = "7") -> tuple[str, str]:
    """The text of the PDF and that of the page, without its data, with single spaces."""
    numbers = [int(text) for text in sr_no.split(",")]
    report.run_report(
        Namespace(out_dir=out_dir, serial=sr_no, sr_nos=numbers, mode="report", given=set())
    )
    pages = PdfReader(out_dir / f"Report_{sr_no}.pdf").pages
    page = (out_dir / f"Report_{sr_no}.html").read_text().partition('<script type="app')[0]
    texts = " ".join(page.extract_text() for page in pages), re.sub(r'src="[^"]*"', "", page)
    return tuple(" ".join(text.split()) for text in texts)


# ---------------------------------------------------------------------------------------------
# Statistics


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
    assert difference(labels, answers, answers) == ((0, 0, 0, 1), (0, 0, 0, 1))
    assert mcnemar(0, 0) == 1


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


def test_an_interval_ends_where_accuracy_and_mcc_do():
    labels = np.arange(200) % 2
    answers = np.stack([labels, np.where(np.arange(200) < 5, 1 - labels, labels)])
    found = score(labels, answers)
    assert found.accuracy.high == found.mcc.high == 1
    assert crossed(answers == labels).high > 1


# ---------------------------------------------------------------------------------------------
# A run's files


def test_curves_and_predictions_are_read_to_the_last_digit(tmp_path):
    folder = make_run(tmp_path, "LoRA")
    lines = [
        [*csv.DictReader((folder / name).read_text().splitlines())]
        for name in ("history.csv", "predictions.csv")
    ]
    for name, column in read_history(folder, 2).items():
        assert column.tolist() == [float(row[name]) for row in lines[0]]
    for split, mine in read_predictions(folder / "predictions.csv").items():
        rows = [row for row in lines[1] if row["split"] == split]
        margins = [float(row["logit_1"]) - float(row["logit_0"]) for row in rows]
        assert mine.labels.tolist() == [int(row["label"]) for row in rows]
        assert mine.margins.tolist() == margins
        assert mine.answers.tolist() == [int(margin > 0) for margin in margins]


def test_a_run_loads_no_more_of_the_reporting_than_it_needs():
    """A training run shows itself and draws its curves."""
    code = (
        "import sys; import support.reporting; "
        "assert not sys.modules.keys() & {'pandas', 'matplotlib', 'scipy', 'reportlab'}; "
        "import support.reporting.curves; assert not sys.modules.keys() & {'scipy', 'reportlab'}; "
        "print(*sorted(name for name in sys.modules if name.startswith('support.reporting.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["support.reporting.curves", "support.reporting.metrics"]


def in_metrics(part: str, **changes):
    return lambda folder: change_metrics(folder, part, **changes)


def in_file(name: str, content: str):
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def with_thresholds(**entries):
    def broken(folder):
        set_threshold(folder, 1.25)
        path = folder / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return broken


def with_a_label_of_2(folder):
    path = folder / "predictions.csv"
    path.write_text(path.read_text().replace(f"{DEV},1,", f"{DEV},2,", 1))


ROWS = "split,label,logit_0,logit_1"
NO_RATIO = {"slope": -1, "intercept": 0}


@pytest.mark.parametrize(
    ("break_it", "fault"),
    [
        (in_file("metrics.json", '{"mode": "LoRA"'), "metrics.json: "),
        (in_file("metrics.json", '{"mode": "LoRA"}'), "metrics.json: broken"),
        (in_file("history.csv", ""), "history.csv: broken"),
        (in_file("history.csv", "epoch,train_loss\n1,0.5\n"), "history.csv: broken"),
        (in_file("history.csv", f"{CURVES}\n1,1,1,1,1,1\n"), "history.csv: broken (epochs are"),
        (in_file("history.csv", f"{CURVES}\n2,1,1,1,1,1\n3,1,1,1,1,1\n"), "(epochs are missing)"),
        (in_file("history.csv", f"{CURVES}\n1,1,1,1,1,1\n2,1,1\n"), "history.csv: broken"),
        (in_file("predictions.csv", "split,label\n1,1\n"), "predictions.csv: broken"),
        (in_file("predictions.csv", f"{ROWS}\n{DEV},1,0.0,1.0\n"), "broken (not of the run that"),
        (with_a_label_of_2, "predictions.csv: broken (a label that is neither 0 nor 1)"),
        (in_metrics(DEV, correct=1), "predictions.csv: broken (not of the run that metrics.json"),
        (in_metrics("training", epochs=-1), "training.epochs is not a count: -1"),
        (in_metrics("training", best_epoch=True), "training.best_epoch is not a count: True"),
        (in_metrics(DEV, sentences=0), "in_domain_dev.sentences is not a positive count: 0"),
        (in_metrics(DEV, accuracy=1.5), "in_domain_dev.accuracy is not a number from -1 to 1: 1.5"),
        (in_metrics(DEV, mcc=math.nan), "in_domain_dev.mcc is not a number from -1 to 1: nan"),
        (in_metrics("data", folder="a\0b"), "data.folder is not text: "),
        (in_metrics("data", in_domain_train=[]), "in_domain_train.sentences is not a positive"),
        (in_metrics("arguments", held_out="5"), "arguments.held_out is not a count: '5'"),
        (in_metrics("training", seconds=10**400), "training.seconds is not a number of seconds"),
        (with_thresholds(thresholds={"balanced": 1}), "thresholds.accuracy is not a number: None"),
        (with_thresholds(thresholds=3), "thresholds.balanced is not a number: None"),
        (with_thresholds(calibration=NO_RATIO), "calibration.slope is not above 0"),
        (in_metrics("identity", lr=0.5), ": lr is 0.5, and 0.001 in rnn_gpt2_7;"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_names_it(tmp_path, break_it, fault):
    make_runs(tmp_path, modes=["rnn"])
    break_it(tmp_path / "checkpoints" / "rnn_gpt2_8")
    with pytest.raises(UserError, match=f"rnn_gpt2_8.*{re.escape(fault)}") as error:
        write_reports(tmp_path, "7,8")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("Report*"))


def test_a_copy_of_a_run_is_no_other_run(tmp_path):
    folder = make_run(tmp_path, "LoRA")
    shutil.copytree(folder, folder.with_name("LoRA_gpt2_8"))
    with pytest.raises(UserError, match=r"gpt2_8: its metrics.json is that of LoRA_gpt2_7; a copy"):
        find_runs(tmp_path, [7, 8])


def test_a_run_is_judged_by_its_threshold_and_its_probabilities_are_calibrated(tmp_path):
    folder = make_run(tmp_path, "rnn")
    (plain,) = find_runs(tmp_path, [7])
    decision = set_threshold(folder, 1.25)
    (moved,) = find_runs(tmp_path, [7])  # metrics.json has the counts of before
    for split in DEV_SETS:
        before, found = (each.runs[0].predictions[split] for each in (plain, moved))
        np.testing.assert_allclose(found.margins, before.margins + 1.25)
        assert moved.answers(split).tolist() == plain.answers(split).tolist()
        expected = scipy.special.expit(0.5 * found.margins + decision.intercept)
        np.testing.assert_allclose(moved.p_acceptable(split)[0], expected)
        fewer_mistakes = by_rule(moved, "accuracy").answers(split)
        assert fewer_mistakes[0].tolist() == (expected > 0.5).astype(int).tolist()
        expected = scipy.special.expit(before.margins)
        np.testing.assert_allclose(plain.p_acceptable(split)[0], expected)
    table = tables.calibration_table([moved]).set_index("dev set")
    errors = [calibration_error(moved.labels(s), moved.p_acceptable(s)[0]) for s in DEV_SETS]
    assert table["calibration error"].tolist() == [f"{error:.3f}" for error in errors]


# ---------------------------------------------------------------------------------------------
# Which runs are shown


def test_runs_come_by_variant_then_mode_and_only_finished_ones(tmp_path):
    for mode, variant in (("rnn", "gpt2"), ("LoRA", "nano"), ("distil", "gpt2"), ("LoRA", "gpt2")):
        make_run(tmp_path, mode, variant)
    (make_run(tmp_path, "rnn", "nano") / "metrics.json").unlink()
    (make_run(tmp_path, "distil", "nano") / "unfinished.json").write_text("{}")
    names = ["LoRA gpt2", "distil gpt2", "rnn gpt2", "LoRA nano"]
    assert [experiment.name for experiment in find_runs(tmp_path, [7])] == names
    assert [experiment.name for experiment in find_runs(tmp_path, [7], "nano")] == names[3:]
    assert missing_runs(tmp_path, [7], "gpt2") == []
    with pytest.raises(UserError, match=r"no finished run with sr_no 8, 9; .*--mode all --sr_no 8"):
        find_runs(tmp_path, [8, 9])


def test_a_report_shows_what_is_there_and_names_what_is_missing(tmp_path, capsys):
    """Models are compared over the seeds that both have."""
    make_runs(tmp_path, sr_nos=(7, 8, 9))
    whole = tables.paired_table(find_runs(tmp_path, [7, 9]))
    checkpoints = tmp_path / "checkpoints"
    shutil.rmtree(checkpoints / "rnn_gpt2_9")
    (checkpoints / "distil_gpt2_8" / "unfinished.json").write_text("{}")
    missing = [
        f"{checkpoints}/distil_gpt2_8: not finished", f"{checkpoints}/rnn_gpt2_9: no such run"
    ]  # fmt: skip
    for text in write_reports(tmp_path, "7,8,9"):
        for line in missing:  # a path is broken where a line of paper ends
            assert line.replace(" ", "") in text.replace(" ", "")
        assert "Over sr_no 7, 9 they answer" in text
        assert "Over sr_no 7 they answer" in text
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"run.py: not in the report: {line}" for line in missing]
    found = find_runs(tmp_path, [7, 8, 9])
    assert {one.mode: one.sr_nos for one in found} == {
        "LoRA": [7, 8, 9],
        "distil": [7, 9],
        "rnn": [7, 8],
    }
    table = tables.paired_table(found)
    assert table.iloc[0].tolist() == whole.iloc[0].tolist()
    assert table.iloc[2]["95% interval"].endswith(" right alone")


# ---------------------------------------------------------------------------------------------
# What is said of them


def test_one_report_over_several_seeds_has_means_deviations_pairs_and_every_run(tmp_path, capsys):
    make_runs(tmp_path, sr_nos=(7, 8, 9))
    paper, page = write_reports(tmp_path, "7,8,9")
    printed = " ".join(capsys.readouterr().out.split())
    found = find_runs(tmp_path, [7, 8, 9])
    for experiment in found:
        figures = [run.metrics[DEV]["accuracy"] for run in experiment.runs]
        mean = f"{100 * np.mean(figures):.2f} ± {100 * np.std(figures, ddof=1):.2f}%"
        assert all(mean in text for text in (paper, page, printed))
        for run in experiment.runs:
            m = run.metrics[DEV]
            assert f">{m['accuracy']:.2%}, MCC {m['mcc']:.3f}</td>" in page
    lora, distil, _ = found
    row = tables.paired_table(found).iloc[0]
    expected, _ = difference(lora.labels(DEV), lora.answers(DEV), distil.answers(DEV))
    assert row.tolist()[:3] == ["LoRA against distil", DEV, f"{100 * expected.value:+.2f}"]
    assert row["p"] == p_value(expected.p)
    pngs = {f"{mode}_gpt2_7,8,9_{what}.png" for mode in ("LoRA", "distil", "rnn")
            for what in ("loss", "accuracy")}  # fmt: skip
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert drawn == pngs | {"comparison_gpt2_7,8,9.png"}
    assert page.count("<img") == len(drawn)
    for text in (paper, page):
        for words in (
            "cannot say", "both taken as drawn at random", "What all seeds share", "wall-clock",
            "Each run judged out_of_domain_dev once, with the model kept",
            "distil saw 8,551 sentences an epoch in 134 steps, rnn saw 8,551",
        ):  # fmt: skip
            assert words in text


def test_a_pair_of_single_runs_has_mcnemars_p(tmp_path):
    make_runs(tmp_path, sr_nos=[7], modes=["LoRA", "rnn"])
    one, two = same = find_runs(tmp_path, [7])
    right = [experiment.answers(DEV)[0] == experiment.labels(DEV) for experiment in (one, two)]
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    row = tables.paired_table(same).iloc[0]
    assert row["accuracy by"] == f"{100 * (only[0] - only[1]) / 527:+.2f}"
    assert row["95% interval"] == f"{only[0]} against {only[1]} right alone"
    assert row["p"] == p_value(mcnemar(*only))


@pytest.mark.parametrize("sr_nos", [(7,), (7, 8, 9)])
def test_no_report_prints_a_p_in_powers_of_ten(tmp_path, sr_nos):
    for mode, sr_no in itertools.product(("LoRA", "rnn"), sr_nos):  # they differ in all sentences
        make_run(tmp_path, mode, bias=3 if mode == "rnn" else 0, sr_no=sr_no)
    texts = write_reports(tmp_path, ",".join(map(str, sr_nos)))
    for text, words in zip(texts, ("< 0.001", "&lt; 0.001"), strict=True):
        assert words in text
        assert re.findall(r"\de-\d", text.partition("metrics.json, but")[0]) == []


def test_a_model_of_one_class_is_named_wherever_it_is_shown(tmp_path, capsys):
    make_run(tmp_path, "LoRA")
    make_run(tmp_path, "rnn", bias=99)
    paper, page = write_reports(tmp_path)
    # In words, and for both dev sets in the tables of results and of pairs.
    assert paper.count("one class only") == 1 + 2 * 2
    assert page.count("one class only") == 1 + 4 * 2  # and of each run and of calibration
    lines = [line for line in capsys.readouterr().out.splitlines() if "one class only" in line]
    assert [line.split()[0] for line in lines] == ["rnn", "rnn"]


def test_odd_names_are_shown_as_they_are(tmp_path):
    odd = "$x_{$_<b>_&_a_long_folder_name_of_a_checkpoint_at_step_100000"
    make_run(tmp_path, "LoRA", odd)
    paper, page = write_reports(tmp_path)
    assert odd in paper
    assert "<b>" not in page
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoints", "plots", "Report_7.pdf", "Report_7.html"
    }  # fmt: skip


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
        ("rnn", "data", dict(name="mine"), ["corpus mine"]),
        ("distil", "arguments", dict(max_steps=9), ["max_steps 9"]),
        ("distil", "arguments", dict(kd_alpha=0.9, epochs=6), ["epochs 6", "kd_alpha 0.9"]),
        ("distil", "arguments", dict(hint_weight=3.0), ["hint_weight 3.0"]),
    ],
)
def test_what_differs_from_the_published_setting_is_named(tmp_path, mode, part, changes, reasons):
    folder = make_run(tmp_path, mode)
    (plain,) = find_runs(tmp_path, [7])
    assert tables.differences_from_published(plain) == []
    change_metrics(folder, part, **changes)
    (experiment,) = find_runs(tmp_path, [7])
    assert tables.differences_from_published(experiment) == reasons
    row = tables.settings_table([experiment]).set_index("setting")[mode]
    assert row["arguments not as published"] == (", ".join(reasons) or "none")
    for name, value in changes.items():
        if part != "identity":
            assert row[f"{part}.{name}"] == str(value)


def test_an_option_that_metrics_json_does_not_name_has_its_published_value(tmp_path):
    """A run names every option of its identity that there was; what it lacks came later."""
    make_run(tmp_path, "distil")
    (experiment,) = find_runs(tmp_path, [7])
    for name in ("hint_weight", "lr_schedule", "held_out"):
        del experiment.metrics["arguments"][name]
    assert tables.differences_from_published(experiment) == []
    assert "distil saw 8,551 sentences" in tables.effort(experiment, experiment)


def test_a_report_says_what_each_model_saw_and_whether_a_threshold_was_set(tmp_path):
    make_runs(tmp_path, modes=["distil", "rnn"])
    for sr_no in (7, 8):
        folder = tmp_path / "checkpoints" / f"distil_gpt2_{sr_no}"
        change_metrics(folder, "arguments", transfer_size=40_000, held_out=1000)
        change_metrics(folder, "training", steps=sr_no * 100)
    for text in write_reports(tmp_path, "7,8"):
        saw = "distil saw 47,551 sentences an epoch in 700 to 800 steps, rnn saw 8,551 sentences"
        assert saw in text
        assert "distil gpt2, epoch by epoch; before a threshold was set." in text
        assert "rnn gpt2, epoch by epoch." in text


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
# Whose corpus, and what it has


def add_corpus(folder: Path, dev: dict[int, int] | None = None) -> Path:
    """A corpus of distinct sentences; lines of in_domain_dev may be lines of training too.

    Of the dev sets 480 are of a source, the others of seven.
    """
    raw = folder / "corpus" / "raw"
    raw.mkdir(parents=True)
    for split, (sentences, acceptable) in SIZES.items():
        lines = []
        for line in range(1, sentences + 1):
            source = "big" if line <= 480 else f"s{line % 7}"
            text = f"{split} {line}."
            if split == DEV and line in (dev or {}):
                text = f"in_domain_train {dev[line]}."
            lines.append(f"{source}\t{int(line <= acceptable)}\t\t{text}")
        (raw / f"{split}.tsv").write_text("\n".join(lines))
    change_metrics(folder, "data", folder=str(folder / "corpus"))
    return raw


def test_a_report_tells_the_scores_by_source_and_without_what_training_has(tmp_path):
    """Also of sentences with the other label: line 7000 of training is unacceptable."""
    dev = {1: 5, 100: 7000, 527: 8551}
    add_corpus(make_run(tmp_path, "LoRA"), dev)
    (experiment,) = find_runs(tmp_path, [7])
    kept = ~np.isin(np.arange(1, 528), [*dev])
    labels, answers = experiment.labels(DEV), experiment.answers(DEV)[0]
    scores = accuracy_score, matthews_corrcoef
    accuracy, mcc = (f(labels[kept], answers[kept]) for f in scores)
    expected = [
        f"Without the 3 of 527 sentences of {DEV} that the training split has too: LoRA gpt2 "
        f"{accuracy:.2%}, MCC {mcc:.3f}; majority baseline {labels[kept].mean():.2%}.",
        f"No sentence of {OUT_OF_DOMAIN} stands in the training split too.",
    ]
    for text in write_reports(tmp_path):
        assert all(line in text for line in expected)
    row = tables.source_table([experiment], read_corpus(experiment)).iloc[0]
    accuracy, mcc = (f(labels[:480], answers[:480]) for f in scores)
    assert row.tolist() == ["big", DEV, 480, f"{365 / 480:.1%}", f"{accuracy:.1%}, {mcc:.2f}"]


def test_of_several_seeds_the_scores_without_some_sentences_are_means(tmp_path):
    make_runs(tmp_path, modes=["LoRA"])
    (experiment,) = find_runs(tmp_path, [7, 8])
    lines = {DEV: [2, 500], OUT_OF_DOMAIN: [*range(1, 517)]}
    told, every = tables.scores_without(lines, {"the teacher": experiment})
    kept = np.delete(np.arange(527), [1, 499])
    right = 100 * (experiment.answers(DEV) == experiment.labels(DEV))[:, kept].mean(axis=1)
    assert f"the teacher {right.mean():.2f} ± {right.std(ddof=1):.2f}%, MCC " in told
    assert every == f"Every sentence of {OUT_OF_DOMAIN} stands in the training split too."


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (DEV, lambda text: text + "\nbig\t1\t\tOne more."),
        (DEV, lambda text: text.replace("big\t1", "big\t0", 1)),
        ("in_domain_train", lambda text: text + "\nbig\t1\t\tOne more."),
        ("in_domain_train", None),
    ],
)
def test_without_the_runs_own_corpus_a_report_says_what_is_not_known(tmp_path, name, change):
    raw = add_corpus(folder := make_run(tmp_path, "LoRA"))
    path = raw / f"{name}.tsv"
    if change:
        path.write_text(change(path.read_text()))
        fault = f"not the corpus of {folder}"
    else:
        path.unlink()
        fault = "no such file"
    for text in write_reports(tmp_path):
        told = f"sentences of the dev sets is not known: {path}: {fault}."
        assert told.replace(" ", "") in text.replace(" ", "")
        assert "Each source" not in text


OF_NANO = ("nano is a demonstration", "was redesigned", "nano/README.md")
OF_COLA = ("published LoRA gpt2", "Comparable here: ", "the best that anyone has reported")


def test_each_corpus_has_a_table_of_its_own_and_the_published_stand_beside_cola(tmp_path):
    make_run(tmp_path, "LoRA")
    change_metrics(make_run(tmp_path, "rnn"), "arguments", lr=0.01)
    folder = make_run(tmp_path, "LoRA", "nano")
    change_metrics(
        folder, "data", name="nano/corpus", sha256="cd", in_domain_train={"sentences": 4000}
    )
    for text in write_reports(tmp_path):
        assert all(words in text for words in (*OF_COLA, *OF_NANO))
        assert "Comparable here: LoRA gpt2." in text
        first, second = text.split("How good, and how sure")[1:]
        assert "cola_public: 8,551 training sentences, dev sets of 527 and 516." in first
        assert "published LoRA gpt2" in first
        assert "nano/corpus: 4,000 training sentences" in second
        assert "published LoRA" not in second
    printed = tables.comparison_table(find_runs(tmp_path, [7])).split("\n\n")
    assert [block.count("LoRA nano") for block in printed] == [0, 2]


def test_cola_and_nanos_corpus_are_known_by_their_files(tmp_path):
    """A run that does not record its files is known by its corpus' name."""
    folder = make_run(tmp_path, "LoRA")
    nano = file_fingerprints(PROJECT / "nano" / "corpus")
    for files, expected in ((COLA_SHA256, "CoLA"), (nano, "nano"), ({**nano, DEV: "ab"}, "")):
        change_metrics(folder, "data", files=files)
        assert tables.known_corpus(*find_runs(tmp_path, [7])) == expected


def test_the_report_of_ones_own_corpus_on_nano_says_nothing_of_others(tmp_path, run):
    raw = tmp_path / "mine" / "raw"
    raw.mkdir(parents=True)
    for split, size in (("in_domain_train", 40), (DEV, 12), (OUT_OF_DOMAIN, 10)):
        lines = [f"me\t{n % 2}\t\tThe dog saw {n} cats." for n in range(size)]
        (raw / f"{split}.tsv").write_text("\n".join(lines))
    options = ("--gpt_variant", "nano", "--data_dir", raw.parent, "--sr_no", 7, "--max_steps", 1)
    assert run("--mode", "rnn", *options).returncode == 0
    (experiment,) = find_runs(tmp_path, [7])
    assert experiment.metrics["data"]["files"] == file_fingerprints(raw.parent)
    for text in write_reports(tmp_path):
        assert "mine: 40 training sentences, dev sets of 12 and 10." in text
        assert f"Every sentence of {DEV} stands in the training split too." in text
        assert not any(words in text for words in (*OF_NANO, *OF_COLA))
