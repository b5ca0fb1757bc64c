"""Train what results/ tells of, keep its figures there, and write the README's tables from them.

    python bench/results.py                  # every study, a day; what is finished is not run again
    python bench/results.py smollm2_cola     # one
    python bench/results.py --readme         # the tables alone, from what stands in results/

Models stay in runs/, which is not committed; of checkpoints/ there, results/ has what is no weight.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np


from ablation import figures

from data_utils import DEV
from support.bases.loading import PROJECT
from support.files import write_bytes
from support.reporting.finished import DEV_SETS, Series, find_runs
from support.reporting.metrics import read_history, summary
from support.reporting.tables import difference_cells, paired_rows, spread

RESULTS, README = PROJECT / "results", PROJECT / "README.md"
KEPT = ("metrics.json", "history.csv", "predictions.csv")


class Study(NamedTuple):
    """Runs with an --out_dir of their own: what their commands share, and each mode's options."""

    shared: dict[str, str]
    commands: dict[str, dict[str, str]]


CORPUS = {"data_dir": "cola_public"}
SMOLLM2 = {"gpt_variant": "smollm2", "sr_no": "22915-22919"}
# One teacher of them all: what differs is the students' doing.
TEACHER = {"teacher": "runs/smollm2_cola/checkpoints/LoRA_smollm2_22915"}
HINTS = {**CORPUS, "recipe": "hints", "precision": "bf16"}
# The published distillation for as many steps as the hints take.
LONG = {
    **CORPUS, "epochs": "95", "patience": "95", "monitor": "mcc", "lr_schedule": "linear",
    "held_out": "500", "precision": "bf16",
}  # fmt: skip
STUDIES = {
    "smollm2_cola": Study(SMOLLM2, {"all": CORPUS}),
    "smollm2_hints": Study(SMOLLM2, {"distil": {**HINTS, **TEACHER}, "rnn": HINTS, "report": {}}),
    "smollm2_long": Study(SMOLLM2, {"distil": {**LONG, **TEACHER}, "report": {}}),
    "nano": Study(
        {"gpt_variant": "nano", "sr_no": "22915-22917"}, {"all": {"data_dir": "nano/corpus"}}
    ),
}
NAMES = {"LoRA": "LoRA, the teacher", "distil": "distil, taught", "rnn": "rnn, untaught"}


def main() -> None:
    """Run, copy, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--readme", action="store_true", help="train nothing")
    args = parser.parse_args()
    if unknown := set(args.studies) - set(STUDIES):
        parser.error(f"{unknown.pop()}: no study; there are {', '.join(STUDIES)}")
    for study in [] if args.readme else args.studies or STUDIES:
        shared, commands = STUDIES[study]
        for mode, options in commands.items():
            run(mode, {**shared, **options, "out_dir": f"runs/{study}"})
        keep(PROJECT / "runs" / study, RESULTS / study, shared["sr_no"])
    write_bytes(README, with_tables(README.read_text()).encode())


def run(mode: str, options: dict[str, str]) -> None:
    """A command of the front door; where it fails, it has said why."""
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run([sys.executable, "run.py", "--mode", mode, *words], cwd=PROJECT)
    if done.returncode:
        sys.exit(done.returncode)


def keep(source: Path, target: Path, serial: str) -> None:
    """Copy what a reader wants of an --out_dir: no weights, and of the plots those of all runs."""
    for old in ("plots", "runs"):
        shutil.rmtree(target / old, ignore_errors=True)
    for path in target.glob("Report_*.pdf"):
        path.unlink()
    paths = [path for name in KEPT for path in source.glob(f"checkpoints/*/{name}")]
    paths += [*source.glob(f"plots/*_{serial}*.png"), source / f"Report_{serial}.pdf"]
    for path in paths:
        place = path.relative_to(source).as_posix().replace("checkpoints/", "runs/")
        copy = target / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


# ---------------------------------------------------------------------------------------------
# The README's tables


def with_tables(page: str) -> str:
    """The page with what stands between its marks written anew from results/."""

    def table(mark: re.Match) -> str:
        study, kind = mark[1], mark[2]
        return f"{mark[0].splitlines()[0]}\n\n{TABLES[kind](found_in(study))}\n\n<!-- end -->"

    return re.sub(r"<!-- (\w+): (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def found_in(study: str) -> list[Series]:
    """The runs of a study, over all sr_no that it has."""
    folders = (RESULTS / study / "runs").glob("*_*")
    sr_nos = sorted({int(path.name.rpartition("_")[2]) for path in folders})
    return find_runs(RESULTS / study, sr_nos, within="runs")


def picture(found: list[Series]) -> str:
    """The comparison of the models kept."""
    folder = found[0].runs[0].folder.parent.parent
    (path,) = folder.glob("plots/comparison_*.png")
    modes = ", ".join(series.mode for series in found)
    return f"![{modes} on {found[0].variant}]({path.relative_to(PROJECT).as_posix()})"


def markdown(rows: list[tuple[str, ...]]) -> str:
    """A table, the headings first."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])


def results(found: list[Series]) -> str:
    """The scores of each mode."""
    return scores({NAMES[series.mode]: series for series in found})


def students(found: list[Series]) -> str:
    """The scores of students by what they were taught with."""
    return scores(by_teaching(found))


def by_teaching(found: list[Series]) -> dict[str, Series]:
    """The students with hints, and two kinds beside them for as many steps."""
    hinted, untaught = found
    (published,) = found_in("smollm2_long")
    return {
        "hints": hinted,
        "the published recipe, as many steps": published,
        "no teacher, as many steps": untaught,
    }


def scores(named: dict[str, Series]) -> str:
    """Mean and standard deviation of accuracy and MCC."""
    found = list(named.values())
    numbers = ", ".join(str(run.metrics["sr_no"]) for run in found[0].runs)
    rows = [
        (
            f"sr_no {numbers}",
            *(f"{split} {what}" for split in DEV_SETS for what in ("accuracy", "MCC")),
        )
    ]
    for name, series in named.items():
        both = [series.scores[split] for split in DEV_SETS]
        cells = [
            (spread(100 * s.accuracies, ".2f", "%"), spread(s.mccs, ".3f") + s.remark) for s in both
        ]
        rows.append((name, *(cell for pair in cells for cell in pair)))
    majorities = [(f"{found[0].scores[split].majority:.2%}", "0") for split in DEV_SETS]
    rows.append(("majority baseline", *(cell for pair in majorities for cell in pair)))
    return markdown(rows)


def runs(found: list[Series]) -> str:
    """Each run's accuracy and MCC on in_domain_dev, a column a sr_no."""
    rows = [("run", *(str(run.metrics["sr_no"]) for run in found[0].runs))]
    for series in found:
        cells = (summary(run.metrics[DEV]) for run in series.runs)
        rows.append((NAMES[series.mode], *cells))
    return markdown(rows)


def ranking(found: list[Series]) -> str:
    """How the students rank in_domain_dev, and what another bias would give: `figures`."""
    rows = [("in_domain_dev", "as it is", "before its bias was fitted", "best threshold", "AUC")]
    for name, series in by_teaching(found).items():
        accuracy, mcc, _, best, auc, _ = figures(series.runs)
        before = []
        for run in series.runs:
            epoch = run.metrics["training"]["best_epoch"]
            curves = read_history(run.folder, epoch)
            before.append((curves["val_accuracy"][epoch - 1], curves["val_mcc"][epoch - 1]))
        unfitted = "{:.2%}, MCC {:.3f}".format(*np.mean(before, axis=0))
        rows.append((name, f"{accuracy}, MCC {mcc.split()[0]}", unfitted, f"MCC {best}", auc))
    return markdown(rows)


def hints(found: list[Series]) -> str:
    """What hints give over as many steps without a teacher, and with the published recipe."""
    rows = [("hints against", "dev set", "accuracy by", "95% int.", "p", "MCC by", "95% int.", "p")]
    (_, hinted), *others = by_teaching(found).items()
    for (name, other), split in product(others, DEV_SETS):
        answers = hinted.answers(split), other.answers(split)
        rows.append((name, split, *difference_cells(hinted.labels(split), *answers)))
    return markdown(rows)


def pairs(found: list[Series]) -> str:
    """Differences on the same sentences and sr_no: the report's table of pairs."""
    return markdown(paired_rows(found))


def monitor(found: list[Series]) -> str:
    """What in_domain_dev says of the epoch kept, and of the one that MCC would have kept."""
    rows = [("run", "watching accuracy keeps epochs", "these score", "watching MCC", "these score")]
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


TABLES: dict[str, Callable[[list[Series]], str]] = {
    function.__name__: function
    for function in (picture, results, students, runs, pairs, monitor, ranking, hints)
}


if __name__ == "__main__":
    main()
