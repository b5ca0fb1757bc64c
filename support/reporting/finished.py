"""Which runs are finished, and what did each leave?"""

from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.corpus import read_rows
from support.errors import UserError
from support.reporting.metrics import DEV_SETS, broken, matthews_corrcoef, read_metrics, read_table
from support.reporting.statistics import Score, score
from support.runs.folder import METRICS, UNFINISHED, check_finished, differences, short

MODES = {"LoRA": "teacher", "distil": "taught", "rnn": "untaught"}


class Predictions(NamedTuple):
    """What predictions.csv has of one dev set."""

    labels: np.ndarray  # (sentences,)  0 or 1
    margins: np.ndarray  # (sentences,)  logit 1 less logit 0, positive for "acceptable"

    @property
    def answers(self) -> np.ndarray:
        """Return 0 or 1 for each sentence, (sentences,)."""
        return (self.margins > 0).astype(int)


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
    runs: list[Run]
    scores: dict[str, Score]

    @property
    def name(self) -> str:
        """Return mode and variant, the latter cut to what a table has room for."""
        return f"{self.mode} {self.variant:.24}"

    @property
    def metrics(self) -> dict:
        """Return what metrics.json says of the first run."""
        return self.runs[0].metrics

    @property
    def sr_nos(self) -> list[int]:
        """Return the seeds."""
        return [run.metrics["sr_no"] for run in self.runs]

    def labels(self, split: str) -> np.ndarray:
        """Return the labels (sentences,) of a dev set."""
        return self.runs[0].predictions[split].labels

    def answers(self, split: str) -> np.ndarray:
        """Return the answers (runs, sentences) of 0 and 1."""
        return np.stack([run.predictions[split].answers for run in self.runs])

    def p_acceptable(self, split: str) -> np.ndarray:
        """Return the probability (runs, sentences) of "acceptable"."""
        margins = np.stack([run.predictions[split].margins for run in self.runs])
        return 0.5 * (1 + np.tanh(margins / 2))  # which does not overflow


def load_run(folder: Path) -> Run:
    """Read a finished run's folder; its files agree with each other."""
    metrics = read_metrics(folder)
    mode, variant = metrics["mode"], metrics["variant"]
    if mode not in MODES:
        raise broken(folder / METRICS, f"mode is {mode!r}")
    if folder.name != (own := f"{mode}_{variant}_{metrics['sr_no']}"):
        raise UserError(f"{folder}: its metrics.json is that of {own}; a copy is no other run")
    predictions = read_predictions(path := folder / "predictions.csv")
    for split, (labels, _) in predictions.items():
        answers = predictions[split].answers
        counts = len(labels), labels.sum(), answers.sum(), (answers == labels).sum()
        names = ("sentences", "acceptable", "predicted_acceptable", "correct")
        scores = (answers == labels).mean(), matthews_corrcoef(labels, answers)
        told = metrics[split]
        if counts != tuple(told[name] for name in names) or not np.allclose(
            scores, (told["accuracy"], told["mcc"])
        ):
            raise broken(path, "not of the run that metrics.json describes")
    return Run(folder, mode, variant, metrics, predictions)


def read_predictions(path: Path) -> dict[str, Predictions]:
    """Read the predictions by dev set."""
    table = read_table(path, ["label", "logit_0", "logit_1"], ["split"])
    if not set(table["label"]) <= {0, 1}:
        raise broken(path, "a label that is neither 0 nor 1")
    parts = {split: table[table["split"] == split] for split in DEV_SETS}
    if any(part.empty for part in parts.values()):
        raise broken(path, "a dev set is missing")
    return {
        split: Predictions(
            part["label"].to_numpy(int), (part["logit_1"] - part["logit_0"]).to_numpy()
        )
        for split, part in parts.items()
    }


# ---------------------------------------------------------------------------------------------
# Which there are


def find_runs(
    out_dir: Path, sr_nos: list[int], variant: str | None = None, within: str = "checkpoints"
) -> list[Series]:
    """Return all finished runs, of one variant or all: by variant, then LoRA, distil, rnn.

    Raises:
        UserError: there is none, or the runs of one mode and variant have other settings.
    """
    series = []
    for folders in folders_of(Path(out_dir, within), sr_nos, variant):
        if finished := [folder for folder in folders if is_finished(folder)]:
            series.append(load_series(finished))
    if not series:
        which = f"sr_no {', '.join(map(str, sr_nos))}" + (f" of {variant}" if variant else "")
        command = f"python run.py --mode all --sr_no {sr_nos[0]} --out_dir {out_dir}"
        place = Path(out_dir, within)
        raise UserError(f"{place}: no finished run with {which}; make them with: {command}")
    return series


def missing_runs(
    out_dir: Path, sr_nos: list[int], variant: str | None = None, within: str = "checkpoints"
) -> list[str]:
    """Name each run that is not finished, or not there where another ``sr_no`` has its like."""
    lines = []
    for folder in sum(folders_of(Path(out_dir, within), sr_nos, variant), []):
        if not is_finished(folder):
            try:
                check_finished(folder)
                lines.append(f"{folder}: no such run")
            except UserError as error:
                lines.append(str(error))
    return lines


def folders_of(place: Path, sr_nos: list[int], variant: str | None) -> list[list[Path]]:
    """Return a folder for each ``sr_no``, by variant and mode, where at least one was begun."""
    begun = set()
    for (order, mode), sr_no, mark in product(enumerate(MODES), sr_nos, (METRICS, UNFINISHED)):
        for path in place.glob(f"{mode}_*_{sr_no}/{mark}"):
            name = path.parent.name.removeprefix(f"{mode}_").removesuffix(f"_{sr_no}")
            if variant in (None, name):
                begun.add((name, order, mode))
    return [
        [place / f"{mode}_{name}_{sr_no}" for sr_no in sr_nos] for name, _, mode in sorted(begun)
    ]


def is_finished(folder: Path) -> bool:
    """Return whether a folder has a run that is finished."""
    return (folder / METRICS).exists() and not (folder / UNFINISHED).exists()


def load_series(folders: list[Path]) -> Series:
    """Read finished runs of one mode and variant; they have the same settings."""
    runs = [load_run(folder) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        differing = differences(run.metrics["identity"], first.metrics["identity"], {})
        for key in differing.keys() - {"sr_no", "teacher"}:
            here, there = map(short, differing[key])
            raise UserError(
                f"{run.folder}: {key} is {here}, and {there} in {first.folder.name}; one report "
                "takes runs of the same settings"
            )
        for split in DEV_SETS:
            labels = run.predictions[split].labels, first.predictions[split].labels
            if not np.array_equal(*labels):
                raise UserError(f"{run.folder}: other {split} labels than in {first.folder.name}")
    return series_of(runs)


def series_of(runs: list[Run]) -> Series:
    """Return runs of one mode and variant with their scores."""
    series = Series(runs[0].mode, runs[0].variant, runs, {})
    scores = {split: score(series.labels(split), series.answers(split)) for split in DEV_SETS}
    return series._replace(scores=scores)


def in_common(one: Series, two: Series) -> tuple[Series, Series] | None:
    """Return the runs of the seeds that both have; None where they have none or other sentences."""
    common = set(one.sr_nos) & set(two.sr_nos)
    if not common or one.metrics["data"]["sha256"] != two.metrics["data"]["sha256"]:
        return None
    parts = [[r for r in series.runs if r.metrics["sr_no"] in common] for series in (one, two)]
    return series_of(parts[0]), series_of(parts[1])


def read_sources(run: Run) -> dict[str, np.ndarray]:
    """Read the source of each sentence by dev set, from the corpus that the run was trained on."""
    sources = {}
    for split in DEV_SETS:
        rows = read_rows(path := Path(run.metrics["data"]["folder"], "raw", f"{split}.tsv"))
        if [row.label for row in rows] != run.predictions[split].labels.tolist():
            raise UserError(f"{path}: not the corpus of {run.folder}")
        sources[split] = np.array([row.source for row in rows])
    return sources
