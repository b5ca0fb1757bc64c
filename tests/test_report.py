"""Tests of report.py on run folders made here, in the layout that training writes."""

import io
import itertools
import json
import math
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import torch
from pypdf import PdfReader
from sklearn.metrics import accuracy_score, matthews_corrcoef

import report
import run as front_door
from bench.results import by_rule
from support.corpus import COLA_SHA256, DEV, OUT_OF_DOMAIN, read_corpus
from support.decisions import Decision
from support.errors import UserError
from support.options import parse, published
from support.reporting import statistics, tables
from support.reporting.finished import DEV_SETS, corpus_of, find_runs, missing_runs
from support.reporting.metrics import measure
from support.reporting.statistics import crossed, difference, mcnemar, p_value, score

SIZES = {"in_domain_train": (8551, 6023), DEV: (527, 365), "out_of_domain_dev": (516, 354)}
CURVES = "epoch,train_loss,val_loss,train_accuracy,val_accuracy,val_mcc"


def make_run(out_dir: Path, mode: str, variant="gpt2", bias=0.0, sr_no=7) -> Path:
    """A run folder that agrees with itself; a `bias` of 99 answers "acceptable" to everything."""
    folder = out_dir / "checkpoints" / f"{mode}_{variant}_{sr_no}"
    folder.mkdir(parents=True)
    rng, frames, scores = np.random.default_rng([len(mode), sr_no]), [], {}
    for split in DEV_SETS:
        sentences, acceptable = SIZES[split]
        label = (np.arange(sentences) < acceptable).astype(int)
        logits = np.zeros((sentences, 2))
        logits[:, 1] = 2 * label - 1 + bias + rng.normal(size=sentences)
        table = {"split": split, "label": label, "logit_0": 0, "logit_1": logits[:, 1]}
        frames.append(pd.DataFrame(table))
        scores[split] = measure(torch.from_numpy(logits), torch.from_numpy(label))
    pd.concat(frames).to_csv(folder / "predictions.csv", index=False)
    (folder / "history.csv").write_text(f"{CURVES}\n1,.7,.6,.6,.6,.1\n2,.5,.5,.9,.7,.2\n")
    counts = {s: {"sentences": n, "acceptable": a} for s, (n, a) in SIZES.items()}
    metrics = {
        "mode": mode, "variant": variant, "sr_no": sr_no, "command": f"python run.py --mode {mode}",
        "arguments": published(mode), "base": {"name": variant, "kind": "hub"},
        "identity": {"mode": mode, "sr_no": sr_no, "teacher": f"fingerprint {sr_no}", "lr": 1e-3},
        "training": {"best_epoch": 2, "epochs": 2, "steps": 134, "seconds": 90.0},
        "data": {"name": "cola_public", "folder": "gone", "sha256": "ab", **counts},
        "parameters": {"total": 125_034_240, "trainable": 675_840},
        **scores,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def make_runs(out_dir: Path, sr_nos=(7, 8), modes=("LoRA", "distil", "rnn")) -> None:
    for mode, sr_no in itertools.product(modes, sr_nos):
        make_run(out_dir, mode, sr_no=sr_no)


def change_metrics(run_folder: Path, part: str = "", **changes) -> None:
    """Change entries of metrics.json, or of one of its parts."""
    path = run_folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    (metrics[part] if part else metrics).update(changes)
    path.write_text(json.dumps(metrics), encoding="utf-8")


def set_threshold(run_folder: Path, edge: float) -> Decision:
    """Move a run's margins and its threshold by as much: it answers as before."""
    path = run_folder / "predictions.csv"
    table = pd.read_csv(path)
    table["logit_1"] += edge
    table.to_csv(path, index=False)
    thresholds = {"balanced": edge, "accuracy": edge - 1.7}
    decision = Decision("balanced", thresholds, slope=0.5, intercept=0.85 - 0.5 * edge)
    change_metrics(run_folder, **decision.entries())
    return decision


def write_reports(out_dir: Path, sr_no: str = "7") -> tuple[str, str]:
    """The text of the PDF and that of the page, without its data, with single spaces."""
    report.run_report(parse(["--mode", "report", "--sr_no", sr_no, "--out_dir", str(out_dir)]))
    pages = PdfReader(out_dir / f"Report_{sr_no}.pdf").pages
    paper = " ".join(page.extract_text() for page in pages)
    page = (out_dir / f"Report_{sr_no}.html").read_text().partition('<script type="app')[0]
    return " ".join(paper.split()), " ".join(re.sub(r'src="[^"]*"', "", page).split())


# ---------------------------------------------------------------------------------------------
# Statistics


def draw_models(rng, seeds: int, sentences: int = 527) -> tuple[np.ndarray, ...]:
    """Labels, and two models' answers over seeds: what is a sentence's own they have in common."""
    labels = (rng.random(sentences) < 0.69).astype(int)
    common = rng.normal(size=sentences)

    def answers(skill: float) -> np.ndarray:
        own = 0.5 * rng.normal(size=(seeds, sentences)) + 0.3 * rng.normal(size=(seeds, 1))
        return (skill * (2 * labels - 1) + common + own + 0.3 > 0).astype(int)

    return labels, answers(1.0), answers(0.5)


@pytest.mark.parametrize("correct", [420, 437, 366])
def test_the_published_rows_have_wilsons_interval(correct):
    """Its ends are the accuracies from which 1.96 standard errors lead to what was found."""
    ends = np.array(statistics.wilson_interval(correct, 527))
    errors = (correct / 527 - ends) / np.sqrt(ends * (1 - ends) / 527)
    assert errors == pytest.approx([1.959964, -1.959964], abs=1e-4)
    published_rows = tables.PUBLISHED.set_index("accuracy")["95% interval"]
    low, high = 100 * ends
    assert published_rows[f"{correct / 527:.2%}"] == f"{low:.1f} to {high:.1f}"


@pytest.mark.parametrize(("one", "other"), [(30, 11), (2, 90), (7, 7), (0, 1), (4, 3), (0, 0)])
def test_mcnemars_p_is_the_sum_of_the_splits_that_are_no_likelier(one, other):
    n = one + other
    ways = [math.comb(n, k) for k in range(n + 1)]
    expected = sum(way for way in ways if way <= ways[one]) / 2**n
    assert mcnemar(one, other) == pytest.approx(expected)


def test_score_agrees_with_scikit_learn_and_another_bootstrap():
    labels, (answers,), _ = draw_models(np.random.default_rng(0), 1)
    found = score(labels, answers[None])
    assert found.mcc.value == pytest.approx(matthews_corrcoef(labels, answers))
    assert found.accuracy.value == pytest.approx(accuracy_score(labels, answers))
    assert found.accuracy[1:3] == statistics.wilson_interval(int((labels == answers).sum()), 527)
    assert found.majority == pytest.approx(max(labels.mean(), 1 - labels.mean()))
    draws = np.random.default_rng(1).integers(527, size=(1000, 527))
    resampled = [matthews_corrcoef(labels[draw], answers[draw]) for draw in draws]
    expected = np.quantile(resampled, (0.025, 0.975))
    assert found.mcc[1:3] == pytest.approx(tuple(expected), abs=0.01)


def test_the_interval_over_seeds_and_sentences_is_that_of_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(4, 30))
    mean, runs, sentences = values.mean(), values.mean(axis=1), values.mean(axis=0)
    rest = np.square(values - runs[:, None] - sentences + mean).sum() / (3 * 29)
    # What each adds to the variance of the mean, and its degrees of freedom.
    parts = (runs.var(ddof=1) / 4, 3), (sentences.var(ddof=1) / 30, 29), (-rest / 120, 3 * 29)
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    found = crossed(values)
    assert found.value == pytest.approx(mean)
    assert found[1:3] == pytest.approx(scipy.stats.t.interval(0.95, freedom, mean, variance**0.5))
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(mean) / variance**0.5, freedom))


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


def test_pseudo_values_of_mcc_are_those_of_leaving_out_each_sentence():
    labels, answers, _ = draw_models(np.random.default_rng(0), 2, 40)
    for row, given in zip(statistics.mcc_pseudo_values(labels, answers), answers, strict=True):
        whole = matthews_corrcoef(labels, given)
        rest = [matthews_corrcoef(np.delete(labels, i), np.delete(given, i)) for i in range(40)]
        assert row == pytest.approx([40 * whole - 39 * value for value in rest])


def test_intervals_end_where_accuracy_and_mcc_do_and_of_no_difference_have_no_width():
    labels, answers, _ = draw_models(np.random.default_rng(0), 3)
    assert difference(labels, answers, answers) == ((0, 0, 0, 1), (0, 0, 0, 1))
    answers = np.stack([labels, labels])
    answers[1, :5] = 1 - labels[:5]
    found = score(labels, answers)
    assert found.accuracy.high == found.mcc.high == 1
    assert crossed(answers == labels).high > 1


def test_calibration_error_is_the_weighed_gap_of_each_bin():
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 2, 500), rng.random(500)
    confidence, expected = np.maximum(p, 1 - p), 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        if inside.any():
            accuracy = accuracy_score(labels[inside], p[inside] > 0.5)
            expected += inside.mean() * abs(accuracy - confidence[inside].mean())
    assert statistics.calibration_error(labels, p) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------
# A run's files


BROKEN = [  # a file, how it is changed, and words of the fault
    ("metrics.json", '{"mode": "LoRA"}', ": broken (variant is not text"),
    ("metrics.json", dict(sr_no=7), "its metrics.json is that of rnn_gpt2_7; a copy is no other"),
    ("metrics.json", dict(part="training", epochs=True), "training.epochs is not a count: True"),
    ("metrics.json", dict(part="training", seconds=10**400), "is not a number of seconds: 1000"),
    ("metrics.json", dict(part=DEV, sentences=0), "_dev.sentences is not a positive count: 0"),
    ("metrics.json", dict(part=DEV, mcc=math.nan), ".mcc is not a number from -1 to 1: nan"),
    ("metrics.json", dict(part="data", folder="a\0b"), "data.folder is not text: "),
    ("metrics.json", dict(part="arguments", held_out="5"), "held_out is not a count: '5'"),
    ("metrics.json", dict(part="identity", lr=0.5), ": lr is 0.5, and 0.001 in rnn_gpt2_7;"),
    ("metrics.json", dict(thresholds={"balanced": 1}), "thresholds.accuracy is not a number: None"),
    ("metrics.json", dict(calibration={"slope": -1, "intercept": 0}), "slope is not above 0"),
    ("predictions.csv", "split,label\n1,1\n", ": broken"),
    ("predictions.csv", f"split,label,logit_0,logit_1\n{DEV},2,0,1\n", ": broken (a label"),
    ("metrics.json", dict(part=DEV, correct=1), "predictions.csv: broken (not of the run that"),
    ("history.csv", f"{CURVES}\n1,1,1,1,1,1\n2,1,1\n", ": broken (could not convert"),
    ("history.csv", f"{CURVES}\n2,1,1,1,1,1\n3,1,1,1,1,1\n", ": broken (epochs are missing)"),
]


@pytest.mark.parametrize(("name", "change", "fault"), BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_it(tmp_path, name, change, fault):
    make_runs(tmp_path, modes=["rnn"])
    folder = tmp_path / "checkpoints" / "rnn_gpt2_8"
    set_threshold(folder, 1.25)
    if isinstance(change, str):
        (folder / name).write_text(change)
        fault = name + fault
    else:
        change_metrics(folder, **change)
    with pytest.raises(UserError, match=f"rnn_gpt2_8.*{re.escape(fault)}") as error:
        write_reports(tmp_path, "7,8")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("Report*"))


def test_a_run_is_judged_by_its_threshold_and_its_probabilities_are_calibrated(tmp_path):
    folder = make_run(tmp_path, "rnn")
    written = pd.read_csv(folder / "predictions.csv", dtype=str).set_index("split")["logit_1"]
    (plain,) = find_runs(tmp_path, [7])
    decision = set_threshold(folder, 1.25)
    (moved,) = find_runs(tmp_path, [7])  # metrics.json has the counts of before
    for split in DEV_SETS:
        before, found = (each.runs[0].predictions[split] for each in (plain, moved))
        assert before.margins.tolist() == [float(text) for text in written[split]]
        np.testing.assert_allclose(found.margins, before.margins + 1.25)
        assert moved.answers(split).tolist() == plain.answers(split).tolist()
        expected = scipy.special.expit(0.5 * found.margins + decision.intercept)
        np.testing.assert_allclose(moved.p_acceptable(split)[0], expected)
        fewer_mistakes = by_rule(moved, "accuracy").answers(split)
        assert fewer_mistakes[0].tolist() == (expected > 0.5).astype(int).tolist()
        expected = scipy.special.expit(before.margins)
        np.testing.assert_allclose(plain.p_acceptable(split)[0], expected)
    error = statistics.calibration_error(moved.labels(DEV), moved.p_acceptable(DEV)[0])
    assert tables.calibration_table([moved])["calibration error"][0] == f"{error:.3f}"


@pytest.mark.parametrize(
    ("mode", "part", "changes", "reasons"),
    [
        ("distil", "arguments", dict(sr_no=1, patience=3), []),
        ("LoRA", "arguments", dict(lora_rank=64, lr=0.01), ["lr 0.01", "lora_rank 64"]),
        ("LoRA", "base", dict(name="openai-community/gpt2"), []),
        ("LoRA", "base", dict(name="somebody/gpt2"), ["base somebody/gpt2"]),
        ("LoRA", "base", dict(kind="folder"), ["base gpt2 (a folder)"]),
        ("rnn", "identity", dict(precision="bf16"), ["precision bf16"]),
        ("rnn", "data", dict(name="mine"), ["corpus mine"]),
        ("rnn", "data", dict(files={}), ["corpus cola_public"]),  # of that name, and not those
        ("distil", "arguments", dict(kd_alpha=0.9, epochs=6), ["epochs 6", "kd_alpha 0.9"]),
    ],
)
def test_what_differs_from_the_published_setting_is_named(tmp_path, mode, part, changes, reasons):
    folder = make_run(tmp_path, mode)
    (plain,) = find_runs(tmp_path, [7])
    del plain.metrics["arguments"]["batch_size"]  # what an earlier run lacks is as published
    assert tables.differences_from_published(plain) == []
    change_metrics(folder, part, **changes)
    (experiment,) = find_runs(tmp_path, [7])
    assert tables.differences_from_published(experiment) == reasons
    row = tables.settings_table([experiment]).set_index("setting")[mode]
    assert row["arguments not as published"] == (", ".join(reasons) or "none")
    assert row["base.name"] == experiment.metrics["base"]["name"]


# ---------------------------------------------------------------------------------------------
# One report over several seeds


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> SimpleNamespace:
    """A report over three seeds, of which each student lacks one; rnn answers one class only."""
    out_dir = tmp_path_factory.mktemp("seeds")
    for sr_no in (7, 8, 9):
        make_run(out_dir, "LoRA", sr_no=sr_no)
        distil = make_run(out_dir, "distil", bias=1, sr_no=sr_no)
        change_metrics(distil, "arguments", transfer_size=40_000, held_out=1000)
        change_metrics(distil, "training", steps=sr_no * 100)
        make_run(out_dir, "rnn", bias=99, sr_no=sr_no)
    shutil.rmtree(out_dir / "checkpoints" / "rnn_gpt2_9")
    (out_dir / "checkpoints" / "distil_gpt2_8" / "unfinished.json").write_text("{}")
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as errors:
        paper, page = write_reports(out_dir, "7,8,9")
    return SimpleNamespace(
        folder=out_dir, found=find_runs(out_dir, [7, 8, 9]), paper=paper, page=page,
        printed=printed.getvalue(), errors=errors.getvalue().splitlines(),
    )  # fmt: skip


def test_what_is_missing_is_named_and_the_rest_shown(seeds):
    shown = {one.mode: one.sr_nos for one in seeds.found}
    assert shown == {"LoRA": [7, 8, 9], "distil": [7, 9], "rnn": [7, 8]}
    assert missing_runs(seeds.folder, [7, 8, 9], "nano") == []
    place = seeds.folder / "checkpoints"
    missing = [f"{place}/distil_gpt2_8: not finished", f"{place}/rnn_gpt2_9: no such run"]
    assert seeds.errors == [f"run.py: not in the report: {line}" for line in missing]
    for text, line in itertools.product((seeds.paper, seeds.page), missing):
        assert line.replace(" ", "") in text.replace(" ", "")  # a line of paper breaks a path


def test_a_report_has_means_deviations_every_run_and_every_picture(seeds):
    for experiment in seeds.found:
        figures = [run.metrics[DEV]["accuracy"] for run in experiment.runs]
        mean = f"{100 * np.mean(figures):.2f} ± {100 * np.std(figures, ddof=1):.2f}%"
        printed = " ".join(seeds.printed.split())
        assert all(mean in text for text in (seeds.paper, seeds.page, printed))
        for run in experiment.runs:
            m = run.metrics[DEV]
            assert f">{m['accuracy']:.2%}, MCC {m['mcc']:.3f}" in seeds.page
    assert (seeds.folder / "plots" / "comparison_gpt2_7,8,9.png").exists()
    assert seeds.page.count("<img") == 1 + 2 * 3


def test_pairs_are_of_the_seeds_that_both_have_and_of_a_single_one_mcnemars(seeds):
    (lora, distil, rnn), labels = seeds.found, seeds.found[0].labels(DEV)
    over_seeds, single = tables.paired_table(seeds.found).iloc[::2].to_dict("records")
    expected, _ = difference(labels, lora.answers(DEV)[[0, 2]], distil.answers(DEV))
    assert over_seeds["pair"] == "LoRA against distil"
    assert over_seeds["accuracy by"] == f"{100 * expected.value:+.2f}"
    assert over_seeds["p"] == p_value(expected.p)
    right, other = (one.answers(DEV)[0] == labels for one in (distil, rnn))
    only = int((right & ~other).sum()), int((other & ~right).sum())
    assert single["accuracy by"] == f"{100 * (only[0] - only[1]) / 527:+.2f}"
    assert single["95% interval"] == f"{only[0]} against {only[1]} right alone"
    assert single["p"] == p_value(mcnemar(*only)) == "< 0.001"


def test_a_model_of_one_class_is_named_wherever_it_is_shown(seeds):
    # In words, and for both dev sets in the tables of results and of pairs.
    assert seeds.paper.count("one class only") == 1 + 2 * 2
    assert seeds.page.count("one class only") == 1 + 5 * 2  # and of both runs and of calibration
    lines = [line for line in seeds.printed.splitlines() if "one class only: 2 of 2" in line]
    assert [line.split()[0] for line in lines] == ["rnn", "rnn"]


def test_a_report_says_what_was_compared_and_what_it_cannot_say(seeds):
    for text in (seeds.paper, seeds.page):
        for words in (
            "both taken as drawn at random",
            "Training: distil 700 steps of 128, rnn 134 steps of 128 sentences. Over sr_no 7 they",
            "Training: LoRA 134 steps of 128, distil 700 to 900 steps of 128 sentences. Over sr_no",
            "distil gpt2, epoch by epoch; before a threshold was set.",
        ):
            assert words in text
        assert not re.search(r"\de-\d", text.partition("metrics.json, but")[0])  # no such p


# ---------------------------------------------------------------------------------------------
# Whose corpus, and what it has


KNOWN = {1: "in_domain_train 5.", 100: "in_domain_train 7000.", 527: "in_domain_train 8551."}


def add_corpus(folder: Path) -> Path:
    """Write a corpus of a run's sizes; of in_domain_dev the training split has `KNOWN`."""
    raw = folder / "corpus" / "raw"
    raw.mkdir(parents=True)
    for split, (sentences, acceptable) in SIZES.items():
        texts = {n: f"{split} {n}." for n in range(1, sentences + 1)}
        texts |= KNOWN if split == DEV else {}
        sources = ["big"] * 480 + ["small"] * (sentences - 480)
        lines = [f"{s}\t{int(n <= acceptable)}\t\t{texts[n]}" for n, s in enumerate(sources, 1)]
        (raw / f"{split}.tsv").write_text("\n".join(lines))
    change_metrics(folder, "data", folder=str(folder / "corpus"))
    return raw


ODD = "$x_{$_<b>_&_a_long_folder_name_of_a_checkpoint_at_step_100000"
OF_NANO = ("nano is a demonstration", "nano/README.md")
OF_COLA = ("published LoRA gpt2", "Comparable here: ", "the best that anyone has reported")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> SimpleNamespace:
    """A report on CoLA, which is known by its files, and on nano's corpus, known by its name."""
    out_dir = tmp_path_factory.mktemp("corpora")
    add_corpus(make_run(out_dir, "LoRA", ODD))
    change_metrics(make_run(out_dir, "LoRA"), "data", name="mine", files=COLA_SHA256)
    change_metrics(make_run(out_dir, "rnn"), "arguments", lr=0.01)
    own = {"name": "nano/corpus", "sha256": "cd", "files": {}}
    change_metrics(make_run(out_dir, "LoRA", "nano"), "data", **own)
    return SimpleNamespace(
        folder=out_dir, texts=write_reports(out_dir), found=find_runs(out_dir, [7])
    )


def test_each_corpus_has_a_table_of_its_own_and_the_published_stand_beside_cola(corpora):
    modes = [(one.mode, one.variant) for one in corpora.found]
    assert modes == [("LoRA", ODD), ("LoRA", "gpt2"), ("rnn", "gpt2"), ("LoRA", "nano")]
    (nano,) = find_runs(corpora.folder, [7], "nano")
    for text in corpora.texts:
        assert all(words in text for words in (*OF_COLA, *OF_NANO))
        assert "Comparable here: LoRA gpt2." in text
        first, second = text.split("How good, and how sure")[1:]
        assert "cola_public: 8,551 training sentences, dev sets of 527 and 516." in first
        assert "published LoRA gpt2" in first
        assert tables.corpus_facts(nano) in second
        assert "published LoRA" not in second
        assert "not known: gone: no such file or folder; --data_dir names a corpus." in second
    paper, page = corpora.texts
    assert ODD in paper
    assert "<b>" not in page
    printed = [tables.result_table(group)["run"] for group in tables.grouped(corpora.found)]
    assert [(block == "LoRA nano").sum() for block in printed] == [0, 2]


def test_a_report_tells_the_scores_by_source_and_without_what_training_has(corpora):
    experiment = corpora.found[0]
    labels, answers = experiment.labels(DEV), experiment.answers(DEV)[0]
    kept = ~np.isin(np.arange(1, 528), [*KNOWN])
    accuracy = accuracy_score(labels[kept], answers[kept])
    mcc = matthews_corrcoef(labels[kept], answers[kept])
    for text in corpora.texts:
        assert f"Without the 3 of 527 sentences of {DEV} that the training split has too" in text
        assert f"{accuracy:.2%}, MCC {mcc:.3f}; " in text
        assert f"; majority baseline {labels[kept].mean():.2%}." in text
        assert f"No sentence of {OUT_OF_DOMAIN} stands in the training split too." in text
    big = labels[:480], answers[:480]
    row = tables.source_table([experiment], corpus_of(experiment)).iloc[0]
    scores = f"{accuracy_score(*big):.1%}, {matthews_corrcoef(*big):.2f}"
    assert row.tolist() == ["big", DEV, 480, f"{365 / 480:.1%}", scores]


@pytest.mark.parametrize("split", [DEV, "in_domain_train"])
@pytest.mark.parametrize("line", ["big\t0", "big\t1\t\tOne more.\nbig\t1"])
def test_what_is_not_the_runs_own_corpus_is_not_taken_for_it(tmp_path, split, line):
    raw = add_corpus(folder := make_run(tmp_path, "LoRA"))
    (experiment,) = find_runs(tmp_path, [7])
    path = raw / f"{split}.tsv"
    path.write_text(path.read_text().replace("big\t1", line, 1))
    with pytest.raises(UserError, match=f"^{path}: not the corpus of {folder}$"):
        corpus_of(experiment)


def test_the_report_of_ones_own_corpus_on_nano_says_nothing_of_others(tmp_path):
    """Of a run that was trained, which records its corpus' files."""
    (raw := tmp_path / "mine" / "raw").mkdir(parents=True)
    for split, size in (("in_domain_train", 40), (DEV, 12), (OUT_OF_DOMAIN, 10)):
        lines = [f"me\t{n % 2}\t\tThe dog saw {n} cats." for n in range(size)]
        (raw / f"{split}.tsv").write_text("\n".join(lines))
    options = f"--gpt_variant nano --sr_no 7 --max_steps 1 --out_dir {tmp_path}"
    assert front_door.main(["--mode", "rnn", "--data_dir", str(raw.parent), *options.split()]) == 0
    (experiment,) = find_runs(tmp_path, [7])
    assert experiment.metrics["data"]["files"] == read_corpus(raw.parent).facts["files"]
    for text in write_reports(tmp_path):
        assert "mine: 40 training sentences, dev sets of 12 and 10." in text
        assert f"Every sentence of {DEV} stands in the training split too." in text
        assert not any(words in text for words in (*OF_NANO, *OF_COLA))
