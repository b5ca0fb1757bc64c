"""Which runs are finished, and what did each leave?"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_utils import DEV, OUT_OF_DOMAIN
from support.errors import UserError
from support.files import read_bytes
from support.metrics import read_metrics
from support.run_folder import METRICS, UNFINISHED
from support.statistics import score

DEV_SETS = (DEV, OUT_OF_DOMAIN)
MODES = {"LoRA": "teacher, fine-tuned", "distil": "student, taught", "rnn": "student, untaught"}


class Run(NamedTuple):
    """A finished run: metrics.json, and a `score` for each dev set."""

    folder: Path
    mode: str
    variant: str
    name: str
    metrics: dict
    scores: dict[str, dict]


def load_run(folder: Path) -> Run:
    """Read a finished run's folder."""
    metrics = read_metrics(folder)
    mode, variant = metrics["mode"], metrics["variant"]
    if mode not in MODES:
        raise UserError(f"{folder / METRICS}: mode = {mode!r}; run it again with --overwrite")
    path = folder / "predictions.csv"
    scores = {split: score(*pair) for split, pair in read_predictions(path).items()}
    for split in DEV_SETS:
        if metrics[split]["correct"] != scores[split]["right"].sum():
            raise UserError(
                f"{path}: not of the run that metrics.json describes; run it again with --overwrite"
            )
    return Run(folder, mode, variant, f"{mode} {variant:.24}", metrics, scores)


def read_predictions(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels and answers of each dev set, (sentences,) of 0 and 1."""
    try:
        rows = list(csv.DictReader(read_bytes(path).decode().splitlines()))
        columns = ("label", "logit_0", "logit_1")
        found = {}
        for split in DEV_SETS:
            cells = [[float(row[c]) for c in columns] for row in rows if row["split"] == split]
            labels, low, high = np.array(cells).T
            if not set(labels) <= {0, 1}:
                raise ValueError("a label that is neither 0 nor 1")
            found[split] = labels.astype(int), (high > low).astype(int)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: broken ({error!r}); run it again with --overwrite") from None
    return found


def find_runs(out_dir: Path, sr_no: int) -> list[Run]:
    """All finished runs of ``sr_no``, by variant, then LoRA, distil, rnn; at least one."""
    folder = Path(out_dir, "checkpoints")
    found = [
        path.parent
        for mode in MODES
        for path in folder.glob(f"{mode}_*_{sr_no}/{METRICS}")
        if not (path.parent / UNFINISHED).exists()
    ]
    if not found:
        command = f"python run.py --mode all --sr_no {sr_no} --out_dir {out_dir}"
        raise UserError(f"{folder}: no finished run with sr_no {sr_no}; make them with: {command}")
    return sorted(map(load_run, found), key=lambda run: run.variant)
