"""Tests of report.py on run folders made here, in the layout that training writes."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pypdf import PdfReader
from scipy.stats import binomtest
from sklearn.metrics import matthews_corrcoef

import report
from data_utils import UserError

SIZES = {"in_domain_dev": (527, 365), "out_of_domain_dev": (516, 354)}


def make_run(
    out_dir: Path, mode: str, variant: str = "gpt2", skill: float = 1.0, bias: float = 0.0,
    epochs: int = 6, sr_no: int = 22915,
) -> Path:  # fmt: skip
    """A run folder whose predictions, scores and metrics.json agree; a large `bias` makes the model
    answer "acceptable" to everything."""
    folder = out_dir / "checkpoints" / f"{mode}_{variant}_{sr_no}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(mode) + 10 * epochs)
    tables, scores = [], {}
    for split, (sentences, acceptable) in SIZES.items():
        label = (np.arange(sentences) < acceptable).astype(int)
        logit = skill * (2 * label - 1) + bias + rng.normal(size=sentences)
        table = pd.DataFrame({"split": split, "line": np.arange(sentences) + 1, "label": label})
        tables.append(table.assign(logit_0=-logit, logit_1=logit))
        predicted = (logit > 0).astype(int)
        scores[split] = {
            "sentences": sentences, "acceptable": acceptable,
            "predicted_acceptable": int(predicted.sum()),
            "correct": int((predicted == label).sum()),
            "accuracy": float((predicted == label).mean()),
            "mcc": float(matthews_corrcoef(label, predicted)), "loss": 0.5,
        }  # fmt: skip
    pd.concat(tables).to_csv(folder / "predictions.csv", index=False)
    epoch = np.arange(1, epochs + 1)
    best, final = max(1, epochs - 2), scores["in_domain_dev"]["accuracy"]
    pd.DataFrame({
        "epoch": epoch, "train_loss": 0.7 * 0.8**epoch, "train_accuracy": 1 - 0.35 * 0.7**epoch,
        "val_loss": 0.5 + 0.02 * np.abs(epoch - 2),
        "val_accuracy": final - 0.01 * np.abs(epoch - best), "val_mcc": 0.3,
        "seconds": 20.0, "sentences_per_second": 400.0,
    }).to_csv(folder / "history.csv", index=False)  # fmt: skip
    own = {"lora_rank": 4, "lora_alpha": 4, "lora_dropout": 0.0} if mode == "LoRA" else {}
    if mode == "distil":
        own = {"kd_temperature": 2.0, "kd_alpha": 0.5, "transfer_size": 0}
    train = {"sentences": 8551, "tokens": 80125, "acceptable": 6023}
    dev = {s: {"sentences": n, "tokens": 9 * n, "acceptable": a} for s, (n, a) in SIZES.items()}
    metrics = {
        "mode": mode, "variant": variant, "sr_no": sr_no,
        "command": f"python run.py --mode {mode} --gpt_variant {variant}",
        "arguments": {"batch_size": 128, "lr": 0.001, "epochs": 10, "patience": 3,
                      "monitor": "accuracy", "max_steps": None, **own},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": {"device": "cpu", "name": "AMD EPYC", "threads": 2, "processes": 1,
                     "precision": "fp32"},
        "data": {"name": "cola_public", "sha256": "ab12" * 16, "in_domain_train": train, **dev},
        "base": {"name": variant, "fingerprint": None if mode == "rnn" else "cd34" * 16},
        "parameters": {"total": 125_034_240, "trainable": 675_840},
        "training": {"epochs": epochs, "best_epoch": best, "steps": 67 * epochs, "seconds": 123.4,
                     "stopped": "patience" if epochs > 1 else "max_steps"},
        **scores, "teacher": None,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def run_report(out_dir: Path, sr_no: int = 22915) -> str:
    """The text of the report's pages, in one string with single spaces."""
    report.run_report(Namespace(out_dir=out_dir, sr_no=sr_no))
    path = out_dir / f"Report_{sr_no}.pdf"
    assert path.read_bytes().startswith(b"%PDF")
    return " ".join(" ".join(page.extract_text() for page in PdfReader(path).pages).split())


@pytest.mark.parametrize(("correct", "total"), [(420, 527), (0, 10), (10, 10), (365, 527)])
def test_wilson_interval_agrees_with_scipy(correct, total):
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert report.wilson_interval(correct, total) == pytest.approx(tuple(expected), abs=1e-6)


def test_intervals_of_the_published_rows_follow_from_their_counts():
    for row in report.PUBLISHED[1:]:
        if "/" in row[5]:
            correct, total = map(int, row[5].split("/"))
            low, high = binomtest(correct, total).proportion_ci(method="wilson")
            assert row[4] == f"{100 * correct / total:.2f}"
            assert row[6] in ("", f"{100 * low:.1f} to {100 * high:.1f}")


def test_mcnemar_agrees_with_scipys_binomial_test():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.random((2, 527)) < [[0.8], [0.7]]
        only_first, only_second, p = report.mcnemar_exact(first, second)
        assert only_first - only_second == first.sum() - second.sum()
        expected = binomtest(only_first, only_first + only_second).pvalue
        assert p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_two_models_that_agree_is_one():
    assert report.mcnemar_exact(np.ones(5, bool), np.ones(5, bool)) == (0, 0, 1.0)


def test_mcc_interval_agrees_with_resampling_the_sentences():
    rng = np.random.default_rng(1)
    label = (rng.random(400) < 0.7).astype(int)
    predicted = np.where(rng.random(400) < 0.8, label, 1 - label)
    draws = rng.integers(400, size=(2000, 400))
    mcc = [matthews_corrcoef(label[draw], predicted[draw]) for draw in draws]
    expected = np.quantile(mcc, (0.025, 0.975))
    interval = report.mcc_interval(label, predicted, seed=22915)
    assert interval == pytest.approx(expected, abs=0.02)
    assert interval == report.mcc_interval(label, predicted, seed=22915)


def test_table_shows_every_run_with_the_baseline_in_100_columns(tmp_path):
    make_run(tmp_path, "LoRA")
    make_run(tmp_path, "rnn", "a_folder_name_that_is_much_longer_than_any_column")
    runs = report.find_runs(tmp_path, 22915)
    lines = report.comparison_table(runs).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("365/527" in line and line.startswith("majority") for line in lines) == 1
    lora = next(line.split() for line in lines if line.startswith("LoRA"))
    score = runs[1].metrics["in_domain_dev"]
    assert f"{score['correct']}/527" in lora
    assert f"{score['mcc']:.3f}" in lora


@pytest.mark.parametrize(("bias", "word"), [(99, "acceptable"), (-99, "unacceptable")])
def test_a_model_of_one_class_is_named_in_table_and_report(tmp_path, capsys, bias, word):
    make_run(tmp_path, "LoRA")
    make_run(tmp_path, "rnn", bias=bias)
    said = f"rnn gpt2 answers one class only on in_domain_dev ({word})"
    assert said in run_report(tmp_path)
    printed = capsys.readouterr().out
    assert said in printed
    assert "LoRA gpt2 answers" not in printed


def test_runs_come_by_variant_then_mode_and_only_the_finished_ones_of_the_sr_no(tmp_path):
    for mode, variant in (("rnn", "gpt2"), ("LoRA", "nano"), ("distil", "gpt2"), ("LoRA", "gpt2")):
        make_run(tmp_path, mode, variant)
    make_run(tmp_path, "rnn", "nano", sr_no=15)
    (make_run(tmp_path, "rnn", "nano") / "metrics.json").unlink()
    names = [run.name for run in report.find_runs(tmp_path, 22915)]
    assert names == ["LoRA gpt2", "distil gpt2", "rnn gpt2", "LoRA nano"]
    assert [run.name for run in report.find_runs(tmp_path, 15)] == ["rnn nano"]


def test_no_run_is_an_error_that_gives_the_command(tmp_path):
    with pytest.raises(UserError, match=r"--mode all --sr_no 7"):
        report.find_runs(tmp_path, 7)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"mode": "LoRA"'),
        ("metrics.json", "[]"),
        ("metrics.json", '{"mode": "LoRA"}'),
        ("history.csv", ""),
        ("history.csv", "epoch,train_loss\n1,0.5\n"),
        ("predictions.csv", "line,label\n1,1\n"),
        ("predictions.csv", "split,line,label,logit_0,logit_1\nin_domain_dev,1,1,0.0,1.0\n"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, name, content):
    path = make_run(tmp_path, "LoRA") / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        report.run_report(Namespace(out_dir=tmp_path, sr_no=22915))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("Report*"))


def test_report_of_a_single_run_of_one_epoch(tmp_path):
    make_run(tmp_path, "rnn", epochs=1)
    text = run_report(tmp_path)
    assert "cut short by --max_steps" in text
    assert "McNemar" not in text
    assert "What these numbers cannot say" in text


def test_report_of_six_runs_holds_results_and_their_limits(tmp_path):
    long_name = "a_very_long_folder_name_of_a_checkpoint_<b>_with_$signs_&_step_100000"
    for variant in ("nano", "gpt2", long_name):
        make_run(tmp_path, "LoRA", variant)
    for mode in ("distil", "rnn"):
        make_run(tmp_path, mode, "gpt2", skill=0.4)
    make_run(tmp_path, "rnn", "nano", skill=0.1)
    text = run_report(tmp_path)
    for expected in (
        "79.70", "82.92", "84.06", "72.45", "69.45", "69.26", "365/527", "McNemar", "80,125",
        "python run.py --mode LoRA --gpt_variant nano", "transformers 5.23.0", "AMD EPYC",
        "One dev set. With 527 sentences", "One seed (sr_no 22915)", "Table 5.", "Figure 6.",
        "LoRA gpt2, distil gpt2, rnn gpt2: comparable", "the base weights are nano",
    ):  # fmt: skip
        assert expected in text
    pages = PdfReader(tmp_path / "Report_22915.pdf").pages
    assert sum(len(page.images) for page in pages) == 2 * 3  # comparison and curves of each variant
    pictures = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert len(pictures) == 6 * 2 + 3
    assert {"comparison_gpt2_22915.png", "LoRA_nano_22915_loss.png"} < set(pictures)
    others = {path.name for path in tmp_path.iterdir()}
    assert others == {"checkpoints", "plots", "Report_22915.pdf"}  # no temporary file


def test_a_pair_on_other_sentences_is_not_tested(tmp_path):
    make_run(tmp_path, "LoRA")
    path = make_run(tmp_path, "distil") / "predictions.csv"
    assert len(report.paired_rows(report.find_runs(tmp_path, 22915))) == 2
    table = pd.read_csv(path)
    table.assign(line=table["line"] + 1).to_csv(path, index=False)
    assert report.paired_rows(report.find_runs(tmp_path, 22915)) == []


def test_an_output_folder_that_cannot_be_written_is_an_error(tmp_path):
    folder = make_run(tmp_path, "LoRA")
    (tmp_path / "plots").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(UserError, match="--out_dir"):
        report.plot_run(folder, tmp_path / "plots")
