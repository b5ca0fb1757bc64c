"""Train the runs of results/, and write its page, its reports, plots/ and the headline.

    python -m bench.results                  # every study, a day; what is finished is not run again
    python -m bench.results smollm2_cola     # one study
    python -m bench.results --tables         # trains nothing; writes all else from results/*/runs

Models stay in runs/, which is not committed. results/ gets what a run leaves but for its weights.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from support import PROJECT
from support.corpus import DEV, OUT_OF_DOMAIN
from support.decisions import SOFTMAX
from support.files import write_bytes
from support.options import RULES
from support.reporting import summary
from support.reporting.curves import plot_curves
from support.reporting.finished import DEV_SETS, Series, find_runs, load_series, read_history
from support.reporting.plots import plot_comparison
from support.reporting.statistics import calibration_error, score
from support.reporting.tables import difference_cells, paired_table, scores_without, spread

RESULTS, PLOTS = PROJECT / "results", PROJECT / "plots"
PAGES = (PROJECT / "README.md", RESULTS / "README.md")
KEPT = ("metrics.json", "history.csv", "predictions.csv")


class Study(NamedTuple):
    """Runs of one --out_dir: what their commands share, and each one's mode and own options."""

    shared: dict[str, str]
    commands: list[tuple[str, dict[str, str]]]


CORPUS = {"data_dir": "cola_public"}
SMOLLM2 = {"gpt_variant": "smollm2", "sr_no": "22915-22919"}
# Sentences that smollm2 wrote, and one teacher for all: what differs is the students' doing.
LESSON = {
    "transfer_file": "results/smollm2_student/written.txt.gz",
    "teacher": "runs/smollm2_bf16/checkpoints/LoRA_smollm2_22915",
}
STUDENT = {**CORPUS, "recipe": "hints"}
# In these precisions the students of results/ were trained.
PRECISIONS = (
    {"sr_no": "22915-22918", "precision": "bf16"},
    {"sr_no": "22919", "precision": "fp32"},
)
STUDIES = {
    "smollm2_cola": Study(SMOLLM2, [("all", CORPUS)]),
    "smollm2_bf16": Study(
        {"gpt_variant": "smollm2", "sr_no": "22915-22917"},
        [("LoRA", {**CORPUS, "precision": "bf16"})],
    ),
    "smollm2_student": Study(
        SMOLLM2,
        [
            (mode, {**STUDENT, **more, **own})
            for mode, more in (("distil", LESSON), ("rnn", {}))
            for own in PRECISIONS
        ],
    ),
    "nano": Study(
        {"gpt_variant": "nano", "sr_no": "22915-22917"}, [("all", {"data_dir": "nano/corpus"})]
    ),
}
# The lines of CoLA's dev sets whose sentence, character by character, is one of the training split.
IN_TRAINING = {
    DEV: [19, 56, 74, 387, 388, 526],
    OUT_OF_DOMAIN: [245, 248, 282, 284, 388, 415, 416, 417, 423, 424, 427, 450],
}
NAMES = {"LoRA": "LoRA, the teacher", "distil": "distil, with the teacher", "rnn": "rnn, without"}


def main() -> None:
    """Train, copy what a reader wants, write the rest from it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--tables", action="store_true", help="train nothing")
    args = parser.parse_args()
    if unknown := set(args.studies) - set(STUDIES):
        parser.error(f"{unknown.pop()}: no study; there are {', '.join(STUDIES)}")
    for study in [] if args.tables else args.studies or STUDIES:
        shared, commands = STUDIES[study]
        for mode, options in commands:
            run(mode, {**shared, **options, "out_dir": f"runs/{study}"})
        keep(PROJECT / "runs" / study, RESULTS / study)
    for study in args.studies or STUDIES:
        write_study_report(study)
    write_pictures()
    for page in PAGES:
        write_bytes(page, with_tables(page.read_text()).encode())


def run(mode: str, options: dict[str, str]) -> None:
    """Run a command of the front door; one that fails says why itself."""
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run([sys.executable, "run.py", "--mode", mode, *words], cwd=PROJECT)
    if done.returncode:
        sys.exit(done.returncode)


def keep(source: Path, target: Path) -> None:
    """Copy the runs of an --out_dir without their weights."""
    shutil.rmtree(target / "runs", ignore_errors=True)
    for name in KEPT:
        for path in source.glob(f"checkpoints/*/{name}"):
            copy = target / "runs" / path.parent.name / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def write_study_report(study: str) -> None:
    """Write a study's report beside its runs, and its page where it may show the corpus."""
    from report import write_html, write_report  # reportlab, which the tables need not wait for

    serial = STUDIES[study].shared["sr_no"]
    for path in (RESULTS / study).glob("Report_*"):
        path.unlink()
    # A page holds the dev sentences: CoLA's stay out of what is committed.
    place = RESULTS if study == "nano" else PROJECT / "runs"
    shown = runs_of(study)
    if study == "smollm2_student":  # its teacher is a run of another study
        shown = [load_series([RESULTS / "smollm2_bf16" / "runs" / "LoRA_smollm2_22915"]), *shown]
    write_html(place / study / f"Report_{serial}.html", shown, serial)
    with TemporaryDirectory() as pictures:
        path = RESULTS / study / f"Report_{serial}.pdf"
        write_report(path, shown, serial, Path(pictures))


def write_pictures() -> None:
    """Draw plots/: the teacher, and the students with hints and without a teacher."""
    (teacher, *_), serial = runs_of("smollm2_cola"), SMOLLM2["sr_no"]
    shown = [teacher, *runs_of("smollm2_student")]
    for series in shown:
        name = f"{series.mode}_{series.variant}_{serial}"
        plot_curves(name, [run.folder for run in series.runs], PLOTS)
    plot_comparison(shown, PLOTS, serial)


# ---------------------------------------------------------------------------------------------
# The tables


def with_tables(page: str) -> str:
    """Return the page with what stands between its marks written anew from results/."""

    def table(mark: re.Match) -> str:
        study, kind = mark[1], mark[2]
        return f"<!-- {study}: {kind} -->\n\n{TABLES[kind](runs_of(study))}\n\n<!-- end -->"

    return re.sub(r"<!-- (\w+): (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def runs_of(study: str) -> list[Series]:
    """Return the runs of a study, over all sr_no that it has."""
    folders = (RESULTS / study / "runs").glob("*_*")
    sr_nos = sorted({int(path.name.rpartition("_")[2]) for path in folders})
    return find_runs(RESULTS / study, sr_nos, within="runs")


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Return a table, the headings first."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])


def by_rule(series: Series, rule: str) -> Series:
    """Return students as they would answer with the threshold of a rule."""
    runs = []
    for run in series.runs:
        decided = {
            split: found._replace(decision=found.decision._replace(rule=rule))
            for split, found in run.predictions.items()
        }
        runs.append(run._replace(predictions=decided))
    series = series._replace(runs=runs)
    scores = {split: score(series.labels(split), series.answers(split)) for split in DEV_SETS}
    return series._replace(scores=scores)


def headline(found: list[Series]) -> str:
    """Return the scores on the first page."""
    teacher, *_ = runs_of("smollm2_cola")
    taught, untaught = found
    named = {
        "LoRA": teacher,
        "a student that one such model taught": taught,
        "the same, set for accuracy": by_rule(taught, "accuracy"),
        "a student with no teacher": untaught,
    }
    heads = "SmolLM2-135M on CoLA", f"{DEV} accuracy", "MCC", f"{OUT_OF_DOMAIN} accuracy", "MCC"
    return score_table(heads, named, 'always "acceptable"')


def results(found: list[Series]) -> str:
    """Return the scores of each mode."""
    return scores({NAMES[series.mode]: series for series in found})


def students(found: list[Series]) -> str:
    """Return the scores of students by both rules of the threshold, and AUC, which needs none."""
    heads = ("run", "seeds", "dev set", "AUC", "threshold", "accuracy", "MCC")
    rows = [heads]
    for series, split in product(found, DEV_SETS):
        labels = series.labels(split)
        aucs = [roc_auc_score(labels, run.predictions[split].margins) for run in series.runs]
        first = NAMES[series.mode], str(len(series.runs)), split, spread(np.array(aucs), ".3f")
        for rule in RULES:
            s = by_rule(series, rule).scores[split]
            cells = spread(100 * s.accuracies, ".2f", "%"), spread(s.mccs, ".3f") + s.remark
            rows.append((*first, rule, *cells))
            first = "", "", "", ""
    return markdown(rows)


def calibration(found: list[Series]) -> str:
    """Return how far students' probabilities are from shares, by softmax and calibrated."""
    heads = ("run", "dev set", "acceptable", "mean p by softmax", "error", "calibrated", "error")
    rows = [heads]
    for series, split in product(found, DEV_SETS):
        labels = series.labels(split)
        margins = np.stack([run.predictions[split].margins for run in series.runs])
        cells = [f"{labels.mean():.3f}"]
        for p in (SOFTMAX.p_acceptable(margins), series.p_acceptable(split)):
            errors = np.array([calibration_error(labels, each) for each in p])
            cells += [f"{p.mean():.3f}", spread(errors, ".3f")]
        rows.append((NAMES[series.mode], split, *cells))
    return markdown(rows)


def gains(found: list[Series]) -> str:
    """Return by how much the taught are better than others, on the same seeds and sentences."""
    heads = ("more than", "threshold", "dev set", "accuracy by", "95%", "p", "MCC by", "95%", "p")
    rows = [heads]
    for rule, split in product(RULES, DEV_SETS):
        taught, untaught = (by_rule(series, rule) for series in found)
        others = {f"rnn{untaught.scores[split].remark}": untaught.answers(split)}
        if rule == "accuracy":
            others['always "acceptable"'] = np.ones_like(taught.answers(split))
        for name, theirs in others.items():
            cells = difference_cells(taught.labels(split), taught.answers(split), theirs)
            rows.append((name, rule, split, *cells))
    return markdown(rows)


def scores(named: dict[str, Series]) -> str:
    """Return mean and standard deviation of accuracy and MCC."""
    numbers = ", ".join(str(run.metrics["sr_no"]) for run in next(iter(named.values())).runs)
    heads = [f"{split} {what}" for split in DEV_SETS for what in ("accuracy", "MCC")]
    return score_table((f"sr_no {numbers}", *heads), named, "majority baseline")


def score_table(heads: tuple[str, ...], named: dict[str, Series], baseline: str) -> str:
    """Return the scores of some series by name, and the majority baseline's."""
    rows = [heads]
    for name, series in named.items():
        both = [series.scores[split] for split in DEV_SETS]
        cells = [
            (spread(100 * s.accuracies, ".2f", "%"), spread(s.mccs, ".3f") + s.remark) for s in both
        ]
        rows.append((name, *(cell for pair in cells for cell in pair)))
    first = next(iter(named.values()))
    majorities = [(f"{first.scores[split].majority:.2%}", "0") for split in DEV_SETS]
    rows.append((baseline, *(cell for pair in majorities for cell in pair)))
    return markdown(rows)


def runs(found: list[Series]) -> str:
    """Return each run's accuracy and MCC on in_domain_dev, a column a sr_no."""
    rows = [("run", *(str(run.metrics["sr_no"]) for run in found[0].runs))]
    for series in found:
        cells = (summary(run.metrics[DEV]) for run in series.runs)
        rows.append((NAMES[series.mode], *cells))
    return markdown(rows)


def unseen(found: list[Series]) -> str:
    """Return the scores without CoLA's dev sentences that the training split has too, in lines."""
    named = {series.mode: series for series in found}
    if all(series.metrics["arguments"].get("held_out") for series in found):
        named |= {f"{mode}, set for accuracy": by_rule(s, "accuracy") for mode, s in named.items()}
    return "\n".join(f"- {line}" for line in scores_without(IN_TRAINING, named))


def pairs(found: list[Series]) -> str:
    """Return differences on the same sentences and seeds: the report's table of pairs."""
    table = paired_table(found)
    table = table[table["pair"] != ""]  # without the lines on what either saw
    return markdown([tuple(table.columns), *table.itertuples(index=False, name=None)])


def monitor(found: list[Series]) -> str:
    """Return the scores of the epoch kept, and of the one that MCC would have kept."""
    rows = [("run", "epochs kept by accuracy", "their score", "epochs kept by MCC", "their score")]
    for series in found:
        cells = []
        for watched in ("val_accuracy", "val_mcc"):
            kept, accuracies, mccs = [], [], []
            for run in series.runs:
                curves = read_history(run.folder, run.metrics["training"]["best_epoch"])
                best = int(np.argmax(curves[watched]))
                kept.append(str(best + 1))
                accuracies.append(curves["val_accuracy"][best])
                mccs.append(curves["val_mcc"][best])
            cells += [", ".join(kept), f"{np.mean(accuracies):.2%}, MCC {np.mean(mccs):.3f}"]
        rows.append((NAMES[series.mode], *cells))
    return markdown(rows)


KINDS = (headline, results, students, calibration, gains, runs, unseen, pairs, monitor)
TABLES: dict[str, Callable[[list[Series]], str]] = {kind.__name__: kind for kind in KINDS}


if __name__ == "__main__":
    main()
