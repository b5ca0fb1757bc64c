"""Which runs are finished, and what did each leave?"""

import csv
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.corpus import DEV, OUT_OF_DOMAIN, read_lines
from support.errors import UserError
from support.files import read_bytes
from support.reporting.metrics import read_metrics
from support.reporting.statistics import Score, score
from support.runs.folder import METRICS, UNFINISHED, check_finished, short

DEV_SETS = (DEV, OUT_OF_DOMAIN)
MODES = {"LoRA": "teacher", "distil": "taught", "rnn": "untaught"}


class Predictions(NamedTuple):
    """What predictions.csv has of one dev set."""

    labels: np.ndarray  # (sentences,)  0 or 1
    logits: np.ndarray  # (sentences, 2)

    @property
    def answers(self) -> np.ndarray:
        """0 or 1 for each sentence, (sentences,)."""
        return (self.margins > 0).astype(int)

    @property
    def margins(self) -> np.ndarray:
        """The logits' differences (sentences,), positive for "acceptable"."""
        return self.logits[:, 1] - self.logits[:, 0]


class Run(NamedTuple):
    """A finished run: metrics.json, and its predictions by dev set."""

    folder: Path
    mode: str
    variant: str
    metrics: dict
    predictions: dict[str, Predictions]


class Series(NamedTuple):
    """The runs of one mode and variant, one for each sr_no, and their `score` by dev set."""

    mode: str
    variant: str
    name: str
    runs: list[Run]
    scores: dict[str, Score]

    @property
    def metrics(self) -> dict:
        """What metrics.json says, of the first run."""
        return self.runs[0].metrics

    def labels(self, split: str) -> np.ndarray:
        """The labels (sentences,) of a dev set."""
        return self.runs[0].predictions[split].labels

    def answers(self, split: str) -> np.ndarray:
        """The answers (runs, sentences) of 0 and 1."""
        return np.stack([run.predictions[split].answers for run in self.runs])

    def margins(self, split: str) -> np.ndarray:
        """Those of every run, (runs, sentences)."""
        return np.stack([run.predictions[split].margins for run in self.runs])

    def p_acceptable(self, split: str) -> np.ndarray:
        """The probability (runs, sentences) of "acceptable"."""
        return 0.5 * (1 + np.tanh(self.margins(split) / 2))  # which does not overflow


def load_run(folder: Path) -> Run:
    """Read a finished run's folder."""
    metrics = read_metrics(folder)
    mode, variant = metrics["mode"], metrics["variant"]
    if mode not in MODES:
        raise UserError(f"{folder / METRICS}: mode = {mode!r}; run it again with --overwrite")
    if folder.name != (own := f"{mode}_{variant}_{metrics['sr_no']}"):
        raise UserError(f"{folder}: its metrics.json is that of {own}; a copy is no other run")
    path = folder / "predictions.csv"
    predictions = read_predictions(path)
    for split, found in predictions.items():
        counts = len(found.labels), (found.answers == found.labels).sum()
        if counts != (metrics[split]["sentences"], metrics[split]["correct"]):
            raise UserError(
                f"{path}: not of the run that metrics.json describes; run it again with --overwrite"
            )
    return Run(folder, mode, variant, metrics, predictions)


def read_predictions(path: Path) -> dict[str, Predictions]:
    """The predictions by dev set."""
    try:
        rows = list(csv.DictReader(read_bytes(path).decode().splitlines()))
        columns = ("label", "logit_0", "logit_1")
        found = {}
        for split in DEV_SETS:
            cells = [[float(row[c]) for c in columns] for row in rows if row["split"] == split]
            labels, *logits = np.array(cells).T
            if not set(labels) <= {0, 1}:
                raise ValueError("a label that is neither 0 nor 1")
            if not np.isfinite(logits).all():
                raise ValueError("a logit that is not finite")
            found[split] = Predictions(labels.astype(int), np.stack(logits, axis=1))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: broken ({error!r}); run it again with --overwrite") from None
    return found


def find_runs(
    out_dir: Path, sr_nos: list[int], variant: str | None = None, within: str = "checkpoints"
) -> list[Series]:
    """All finished runs, of one variant or all, by variant, then LoRA, distil, rnn; at least one.

    Of several ``sr_nos`` every mode and variant that one has, all must have, with equal settings.
    """
    checkpoints, found = Path(out_dir, within), []
    marks = (METRICS, UNFINISHED) if len(sr_nos) > 1 else (METRICS,)
    for mode in MODES:
        names = {
            path.parent.name.removeprefix(f"{mode}_").removesuffix(f"_{sr_no}")
            for sr_no, mark in product(sr_nos, marks)
            for path in checkpoints.glob(f"{mode}_*_{sr_no}/{mark}")
            if len(sr_nos) > 1 or not (path.parent / UNFINISHED).exists()
        }
        for name in names & {variant} if variant else names:
            folders = [checkpoints / f"{mode}_{name}_{sr_no}" for sr_no in sr_nos]
            found.append(load_series(folders))
    if not found:
        which = f"sr_no {', '.join(map(str, sr_nos))}" + (f" of {variant}" if variant else "")
        command = f"python run.py --mode all --sr_no {sr_nos[0]} --out_dir {out_dir}"
        raise UserError(f"{checkpoints}: no finished run with {which}; make them with: {command}")
    return sorted(found, key=lambda series: series.variant)


def load_series(folders: list[Path]) -> Series:
    """Read the runs of one mode and variant, sure that they are finished and of equal settings."""
    for folder in folders:
        check_finished(folder)
        if not (folder / METRICS).exists():
            raise UserError(f"{folder}: no such run; train it, or leave its sr_no out")
    runs = [load_run(folder) for folder in folders]
    first = runs[0]
    known = first.metrics["identity"]
    for run in runs[1:]:
        found = run.metrics["identity"]
        for key in sorted((known.keys() | found.keys()) - {"sr_no", "teacher"}):
            if found.get(key) != known.get(key):
                raise UserError(
                    f"{run.folder}: {key} is {short(found.get(key))}, and {short(known.get(key))} "
                    f"in {first.folder.name}; one report takes runs of the same settings"
                )
        for split in DEV_SETS:
            labels = run.predictions[split].labels, first.predictions[split].labels
            if not np.array_equal(*labels):
                raise UserError(f"{run.folder}: other {split} labels than in {first.folder.name}")
    series = Series(first.mode, first.variant, f"{first.mode} {first.variant:.24}", runs, {})
    scores = {split: score(series.labels(split), series.answers(split)) for split in DEV_SETS}
    return series._replace(scores=scores)


def read_sources(run: Run) -> dict[str, np.ndarray]:
    """The source of each sentence by dev set, from the corpus that the run was trained on."""
    found = {}
    for split in DEV_SETS:
        path = Path(run.metrics["data"]["folder"], "raw", f"{split}.tsv")
        lines = [line.split("\t") for line in read_lines(read_bytes(path), str(path))]
        labels = [line[1] if len(line) == 4 else None for line in lines]
        if labels != [str(label) for label in run.predictions[split].labels]:
            raise UserError(f"{path}: not the corpus of {run.folder}")
        found[split] = np.array([line[0] for line in lines])
    return found
