"""Train the runs of results/, and write its page, its reports, plots/ and the headline.

    python -m bench.results                  # every study, a day; what is in runs/ is not run again
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
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas import DataFrame
from sklearn.metrics import roc_auc_score

from bench import markdown
from bench.minimal_pairs import KEPT as PAIR_MARGINS
from bench.minimal_pairs import by_kind, judged
from support import PROJECT
from support.checkpoints.students import MODELS, SHIPPED
from support.corpus import DEV, OUT_OF_DOMAIN
from support.decisions import SOFTMAX
from support.files import write_bytes
from support.options import RULES
from support.reporting import summary
from support.reporting.curves import plot_curves
from support.reporting.finished import DEV_SETS, Experiment, find_runs, load_experiment, load_run
from support.reporting.metrics import read_history
from support.reporting.plots import plot_comparison
from support.reporting.statistics import calibration_error
from support.reporting.tables import (
    difference_cells,
    paired_table,
    score_cells,
    scores_without,
    spread,
)

RESULTS, PLOTS = PROJECT / "results", PROJECT / "plots"
PAGES = (PROJECT / "README.md", RESULTS / "README.md")
KEPT = ("metrics.json", "history.csv", "predictions.csv")


class Study(NamedTuple):
    """Runs of one --out_dir: what their commands share, and each one's mode and own options."""

    shared: dict[str, str]
    commands: list[tuple[str, dict[str, str]]]


CORPUS = {"data_dir": "cola_public"}
SMOLLM2 = {"gpt_variant": "smollm2", "sr_no": "22915-22919"}
STUDENT = {**CORPUS, "recipe": "hints", "precision": "bf16"}
# Sentences that smollm2 wrote, and one teacher for all: what differs is the students' doing.
LESSON = {
    "transfer_file": "results/smollm2_student/written.txt.gz",
    "transfer_size": "400000",
    "teacher": f"results/models/{SHIPPED['smollm2']}",
}
STUDIES = {
    "smollm2_cola": Study(SMOLLM2, [("all", CORPUS)]),
    "smollm2_bf16": Study(
        {"gpt_variant": "smollm2", "sr_no": "22915-22917"},
        [("LoRA", {**CORPUS, "precision": "bf16"})],
    ),
    "smollm2_student": Study(  # in 324 epochs the untaught take as many steps
        SMOLLM2, [("distil", STUDENT | LESSON), ("rnn", STUDENT | {"epochs": "324"})]
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
    done = subprocess.run([sys.executable, "run.py", *words_of(mode, options)], cwd=PROJECT)
    if done.returncode:
        sys.exit(done.returncode)


def words_of(mode: str, options: dict[str, str]) -> list[str]:
    """Return a command's words."""
    return ["--mode", mode, *(w for name, value in options.items() for w in (f"--{name}", value))]


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
    from report import write_report  # reportlab, which the tables need not wait for

    serial = STUDIES[study].shared["sr_no"]
    for path in (RESULTS / study).glob("Report_*"):
        path.unlink()
    # A page holds the dev sentences: CoLA's stay out of what is committed.
    place = RESULTS if study == "nano" else PROJECT / "runs"
    shown = runs_of(study)
    if study == "smollm2_student":  # its teacher is a run of another study
        shown = [load_experiment([MODELS / SHIPPED["smollm2"]]), *shown]
    pdf, page = RESULTS / study / f"Report_{serial}.pdf", place / study / f"Report_{serial}.html"
    with TemporaryDirectory() as pictures:
        write_report(pdf, page, shown, serial, Path(pictures), [])


def write_pictures() -> None:
    """Draw plots/: the teacher, and the students with hints and without a teacher."""
    (teacher, *_), serial = runs_of("smollm2_cola"), SMOLLM2["sr_no"]
    shown = [teacher, *runs_of("smollm2_student")]
    for one in shown:
        name = f"{one.mode}_{one.variant}_{serial}"
        plot_curves(name, [run.folder for run in one.runs], PLOTS)
    plot_comparison(shown, PLOTS, serial)


# ---------------------------------------------------------------------------------------------
# The tables


def with_tables(page: str) -> str:
    """Return the page with what stands between its marks written anew from results/."""

    def table(mark: re.Match) -> str:
        study, kind = mark[1], mark[2]
        return f"<!-- {study}: {kind} -->\n\n{TABLES[kind](runs_of(study))}\n\n<!-- end -->"

    return re.sub(r"<!-- (\w+): (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def runs_of(study: str) -> list[Experiment]:
    """Return the runs of a study, over all sr_no that it has."""
    folders = (RESULTS / study / "runs").glob("*_*")
    sr_nos = sorted({int(path.name.rpartition("_")[2]) for path in folders})
    return find_runs(RESULTS / study, sr_nos, within="runs")


def by_rule(experiment: Experiment, rule: str) -> Experiment:
    """Return students as they would answer with the threshold of a rule."""
    runs = []
    for run in experiment.runs:
        decided = {
            split: found._replace(decision=found.decision._replace(rule=rule))
            for split, found in run.predictions.items()
        }
        runs.append(run._replace(predictions=decided))
    return replace(experiment, runs=runs)


def headline(found: list[Experiment]) -> str:
    """Return the scores on the first page."""
    teacher, *_ = runs_of("smollm2_cola")
    taught, untaught = found
    named = {
        "LoRA": teacher,
        "a student that one such model taught": taught,
        "the same, set for accuracy": by_rule(taught, "accuracy"),
        "a student with no teacher": untaught,
    }
    heads = f"{DEV} accuracy", "MCC", f"{OUT_OF_DOMAIN} accuracy", "MCC"
    return score_table(("SmolLM2-135M-Instruct on CoLA", *heads), named, 'always "acceptable"')


def results(found: list[Experiment]) -> str:
    """Return the scores of each mode."""
    heads = [f"sr_no {', '.join(map(str, found[0].sr_nos))}"]
    heads += [f"{split} {what}" for split in DEV_SETS for what in ("accuracy", "MCC")]
    named = {NAMES[experiment.mode]: experiment for experiment in found}
    return score_table(tuple(heads), named, "majority baseline")


def score_table(heads: tuple[str, ...], named: dict[str, Experiment], baseline: str) -> str:
    """Return mean and standard deviation of accuracy and MCC, and the majority baseline's."""
    rows = [heads]
    for name, experiment in named.items():
        cells = [cell for split in DEV_SETS for cell in score_cells(experiment.scores[split])]
        rows.append((name, *cells))
    first = next(iter(named.values()))
    majorities = [(f"{first.scores[split].majority:.2%}", "0") for split in DEV_SETS]
    rows.append((baseline, *(cell for pair in majorities for cell in pair)))
    return markdown(rows)


def students(found: list[Experiment]) -> str:
    """Return the scores of students by both rules of the threshold, and AUC, which needs none."""
    rows = [("run", "seeds", "dev set", "AUC", "threshold", "accuracy", "MCC")]
    for experiment, split in product(found, DEV_SETS):
        labels = experiment.labels(split)
        aucs = [roc_auc_score(labels, run.predictions[split].margins) for run in experiment.runs]
        name, seeds = NAMES[experiment.mode], str(len(experiment.runs))
        first = name, seeds, split, spread(np.array(aucs), ".3f")
        for rule in RULES:
            rows.append((*first, rule, *score_cells(by_rule(experiment, rule).scores[split])))
            first = "", "", "", ""
    return markdown(rows)


def calibration(found: list[Experiment]) -> str:
    """Return how far students' probabilities are from shares, by softmax and calibrated."""
    rows = [("run", "dev set", "acceptable", "mean p by softmax", "error", "calibrated", "error")]
    for experiment, split in product(found, DEV_SETS):
        labels = experiment.labels(split)
        margins = np.stack([run.predictions[split].margins for run in experiment.runs])
        cells = [f"{labels.mean():.3f}"]
        for p in (SOFTMAX.p_acceptable(margins), experiment.p_acceptable(split)):
            errors = np.array([calibration_error(labels, each) for each in p])
            cells += [f"{p.mean():.3f}", spread(errors, ".3f")]
        rows.append((NAMES[experiment.mode], split, *cells))
    return markdown(rows)


def gains(found: list[Experiment]) -> str:
    """Return by how much the taught are better than others, on the same seeds and sentences."""
    rows = [("more than", "threshold", "dev set", "accuracy by", "95%", "p", "MCC by", "95%", "p")]
    for rule, split in product(RULES, DEV_SETS):
        taught, untaught = (by_rule(experiment, rule) for experiment in found)
        others = {f"rnn{untaught.scores[split].remark}": untaught.answers(split)}
        if rule == "accuracy":
            others['always "acceptable"'] = np.ones_like(taught.answers(split))
        for name, theirs in others.items():
            cells = difference_cells(taught.labels(split), taught.answers(split), theirs)
            rows.append((name, rule, split, *cells))
    return markdown(rows)


def kinds(_: list[Experiment]) -> str:
    """Return how well the models that ship judge the pairs, by kind."""
    tables = {}
    for name in ("smollm2", "student"):
        run = load_run(MODELS / SHIPPED[name])
        margins = pd.read_csv(run.folder / PAIR_MARGINS)
        tables[name] = judged(margins, run.predictions[DEV].decision)
    return markdown(by_kind(tables))


def runs(found: list[Experiment]) -> str:
    """Return each run's accuracy and MCC on in_domain_dev, a column a sr_no."""
    rows = [("run", *map(str, found[0].sr_nos))]
    for experiment in found:
        cells = (summary(run.metrics[DEV]) for run in experiment.runs)
        rows.append((NAMES[experiment.mode], *cells))
    return markdown(rows)


def unseen(found: list[Experiment]) -> str:
    """Return the scores without CoLA's dev sentences that the training split has too, in lines."""
    named = {one.mode: one for one in found}
    if all(one.metrics["arguments"].get("held_out") for one in found):
        named |= {f"{mode}, set for accuracy": by_rule(s, "accuracy") for mode, s in named.items()}
    return "\n".join(f"- {line}" for line in scores_without(IN_TRAINING, named))


def pairs(found: list[Experiment]) -> str:
    """Return differences on the same sentences and seeds: the report's table of pairs."""
    table = paired_table(found)
    return markdown([tuple(table), *table.itertuples(index=False, name=None)])


def monitor(found: list[Experiment]) -> str:
    """Return the scores of the epoch kept, and of the one that MCC would have kept."""
    rows = [("run", "epochs kept by accuracy", "their score", "epochs kept by MCC", "their score")]
    for experiment in found:
        cells = []
        for watched in ("val_accuracy", "val_mcc"):
            histories = [
                read_history(run.folder, run.metrics["training"]["best_epoch"])
                for run in experiment.runs
            ]
            best = DataFrame([table.loc[table[watched].idxmax()] for table in histories])
            means = best.mean()
            cells.append(", ".join(f"{epoch:.0f}" for epoch in best["epoch"]))
            cells.append(f"{means['val_accuracy']:.2%}, MCC {means['val_mcc']:.3f}")
        rows.append((NAMES[experiment.mode], *cells))
    return markdown(rows)


KINDS = (headline, results, students, calibration, gains, kinds, runs, unseen, pairs, monitor)
TABLES: dict[str, Callable[[list[Experiment]], str]] = {kind.__name__: kind for kind in KINDS}


if __name__ == "__main__":
    main()
