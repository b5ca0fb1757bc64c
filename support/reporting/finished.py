"""Which runs are finished, and what did each leave?"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.checkpoints.students import decision_of
from support.corpus import TRAIN, read_corpus
from support.decisions import SOFTMAX, Decision
from support.errors import UserError
from support.reporting.metrics import (
    COUNTS,
    DEV_SETS,
    broken,
    cut,
    dev_sets_of,
    read_metrics,
    read_table,
)
from support.reporting.statistics import Score, score
from support.runs.folder import METRICS, UNFINISHED
from support.sentences import Columns, Row

ROLES = {"LoRA": "the teacher", "distil": "with a teacher", "rnn": "without"}
Rows = dict[str, list[Row]]  # by split
FREE = ("sr_no", "teacher", "precision")  # in what the runs of one experiment may differ


class Predictions(NamedTuple):
    """What predictions.csv has of one dev set."""

    labels: np.ndarray  # (sentences,)  0 or 1
    margins: np.ndarray  # (sentences,)  logit 1 less logit 0
    decision: Decision = SOFTMAX

    @property
    def answers(self) -> np.ndarray:
        """Return 0 or 1 for each sentence, (sentences,)."""
        return self.decision.answers(self.margins)


class FinishedRun(NamedTuple):
    """A finished run: metrics.json, and its predictions by dev set."""

    folder: Path
    metrics: dict
    predictions: dict[str, Predictions]


@dataclass(frozen=True)
class Experiment:
    """The runs of one mode and variant, one for each sr_no, whose other settings are equal."""

    mode: str
    variant: str
    runs: list[FinishedRun]

    @property
    def name(self) -> str:
        """Return mode and variant, which is cut to what a table has room for."""
        return f"{self.mode} {cut(self.variant)}"

    @property
    def metrics(self) -> dict:
        """Return what metrics.json says of the first run."""
        return self.runs[0].metrics

    @property
    def dev_sets(self) -> list[str]:
        """Return the dev sets of the corpus."""
        return dev_sets_of(self.metrics)

    @property
    def sr_nos(self) -> list[int]:
        """Return the seeds."""
        return [run.metrics["sr_no"] for run in self.runs]

    def of_seeds(self, sr_nos: set[int]) -> "Experiment":
        """Return it with the runs of some seeds alone."""
        return replace(self, runs=[run for run in self.runs if run.metrics["sr_no"] in sr_nos])

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Return the `score` on each dev set."""
        return {split: score(self.labels(split), self.answers(split)) for split in self.dev_sets}

    def labels(self, split: str) -> np.ndarray:
        """Return the labels (sentences,) of a dev set."""
        return self.runs[0].predictions[split].labels

    def answers(self, split: str) -> np.ndarray:
        """Return the answers (runs, sentences) of 0 and 1."""
        return np.stack([run.predictions[split].answers for run in self.runs])

    def p_acceptable(self, split: str) -> np.ndarray:
        """Return the probability (runs, sentences) of "acceptable"."""
        parts = [run.predictions[split] for run in self.runs]
        return np.stack([part.decision.p_acceptable(part.margins) for part in parts])


# ---------------------------------------------------------------------------------------------
# A folder


def load_run(folder: Path) -> FinishedRun:
    """Read a finished run's folder, whose files agree."""
    metrics = read_metrics(folder)
    mode, variant = metrics["mode"], metrics["variant"]
    if mode not in ROLES:
        raise broken(folder / METRICS, f"mode is {mode!r}")
    if folder.name != (own := f"{mode}_{variant}_{metrics['sr_no']}"):
        raise UserError(f"{folder}: its metrics.json is that of {own}; a copy is no other run")
    try:
        decision = decision_of(metrics, metrics["arguments"].get("threshold"))
    except ValueError as error:
        raise broken(folder / METRICS, str(error)) from None
    predictions = read_predictions(path := folder / "predictions.csv", decision)
    counts = {}
    for split, part in predictions.items():
        right = part.answers == part.labels
        counts[split] = [len(right), part.labels.sum(), part.answers.sum(), right.sum()]
    if counts != {s: [metrics[s][name] for name in COUNTS] for s in dev_sets_of(metrics)}:
        raise broken(path, "not of the run that metrics.json describes")
    return FinishedRun(folder, metrics, predictions)


def read_predictions(path: Path, decision: Decision = SOFTMAX) -> dict[str, Predictions]:
    """Read the predictions by dev set, of a model that decides so."""
    table, predictions = read_table(path, ["label", "logit_0", "logit_1"], ["split"]), {}
    if not set(table["label"]) <= {0, 1}:
        raise broken(path, "a label that is neither 0 nor 1")
    for split in DEV_SETS:
        rows = table[table["split"] == split]
        if rows.empty:
            continue
        margins = rows["logit_1"] - rows["logit_0"]
        predictions[split] = Predictions(rows["label"].to_numpy(int), margins.to_numpy(), decision)
    return predictions


def load_experiment(folders: list[Path]) -> Experiment:
    """Read finished runs of one mode and variant, whose settings are equal but for `FREE`."""
    first, *others = runs = [load_run(folder) for folder in folders]
    for run in others:
        here, there = run.metrics["identity"], first.metrics["identity"]
        for key in sorted((here.keys() | there.keys()) - set(FREE)):
            if here.get(key) != there.get(key):
                raise UserError(
                    f"{run.folder}: {key} is {here.get(key)}, and {there.get(key)} in "
                    f"{first.folder.name}; one report takes runs of the same settings"
                )
    return Experiment(first.metrics["mode"], first.metrics["variant"], runs)


def corpus_of(experiment: Experiment) -> Rows:
    """Read the corpus where metrics.json says that it is.

    The dev sets must have the labels of the runs, line by line, and the training split as many
    sentences and acceptable ones.
    """
    data = experiment.metrics["data"]
    given = data.get("columns") or {}
    columns = Columns(*map(given.get, Columns._fields))
    found = read_corpus(Path(data["folder"]), columns, fetch=False)
    if found.rows.keys() != {TRAIN, *experiment.dev_sets}:
        raise UserError(f"{data['folder']}: not the splits of {experiment.runs[0].folder}")
    for split, rows in found.rows.items():
        labels = [row.label for row in rows]
        if split == TRAIN:
            counts = data[TRAIN]["sentences"], data[TRAIN].get("acceptable")
            same = (len(labels), sum(labels)) == counts
        else:
            same = labels == experiment.labels(split).tolist()
        if not same:
            raise UserError(f"{found.files[split]}: not the corpus of {experiment.runs[0].folder}")
    return found.rows


# ---------------------------------------------------------------------------------------------
# All folders


def find_runs(
    out_dir: Path, sr_nos: list[int], variant: str | None = None, within: str = "checkpoints"
) -> list[Experiment]:
    """Return the finished runs, of one variant or all, by variant, then LoRA, distil, rnn."""
    place = Path(out_dir, within)
    kinds = [
        [folder for folder in folders if is_finished(folder)]
        for folders in folders_of(place, sr_nos, variant)
    ]
    if not any(kinds):
        which = f"sr_no {', '.join(map(str, sr_nos))}" + (f" of {variant}" if variant else "")
        raise UserError(f"{place}: no finished run with {which}; --mode all makes them there")
    return [load_experiment(folders) for folders in kinds if folders]


def missing_runs(out_dir: Path, sr_nos: list[int], variant: str | None = None) -> list[str]:
    """Name each run that was begun and not finished, or that only other seeds have."""
    folders = chain(*folders_of(Path(out_dir, "checkpoints"), sr_nos, variant))
    return [
        f"{folder}: {'not finished' if (folder / UNFINISHED).exists() else 'no such run'}"
        for folder in folders
        if not is_finished(folder)
    ]


def folders_of(place: Path, sr_nos: list[int], variant: str | None) -> list[list[Path]]:
    """Return a folder for each seed, of each variant and mode that one of them has begun."""
    begun = set()
    for (order, mode), sr_no, mark in product(enumerate(ROLES), sr_nos, (METRICS, UNFINISHED)):
        for path in place.glob(f"{mode}_*_{sr_no}/{mark}"):
            name = path.parent.name.removeprefix(f"{mode}_").removesuffix(f"_{sr_no}")
            if variant in (None, name):
                begun.add((name, order, mode))
    return [[place / f"{mode}_{name}_{n}" for n in sr_nos] for name, _, mode in sorted(begun)]


def is_finished(folder: Path) -> bool:
    """Return whether a folder has a finished run."""
    return (folder / METRICS).exists() and not (folder / UNFINISHED).exists()
