"""Which runs are finished, and what did each leave?"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data_utils import DEV, OUT_OF_DOMAIN
from support.errors import UserError
from support.metrics import read_metrics
from support.run_folder import METRICS, UNFINISHED
from support.statistics import score

DEV_SETS = (DEV, OUT_OF_DOMAIN)
MODES = {"LoRA": "GPT-2, fine-tuned", "distil": "student, taught", "rnn": "student, untaught"}
CURVES = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]


class Run(NamedTuple):
    """A finished run: metrics.json, history.csv by epoch, and a `score` for each dev set."""

    folder: Path
    mode: str
    variant: str
    name: str
    metrics: dict
    history: pd.DataFrame
    scores: dict[str, dict]

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights were kept."""
        return self.metrics["training"]["best_epoch"]


def load_run(folder: Path) -> Run:
    """Read a finished run's folder."""
    metrics = read_metrics(folder)
    mode, variant = metrics["mode"], metrics["variant"]
    try:
        path = folder / "history.csv"
        history = pd.read_csv(path, index_col="epoch")[CURVES].astype(float)
        history.loc[[metrics["training"]["best_epoch"]]]
        path = folder / "predictions.csv"
        by_split = pd.read_csv(path).groupby("split")
        scores = {split: score(by_split.get_group(split)) for split in DEV_SETS}
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path}: broken ({error!r}); run it again with --overwrite") from None
    for split in DEV_SETS:
        if metrics[split]["correct"] != scores[split]["right"].sum():
            raise UserError(
                f"{path}: not of the run that metrics.json describes; run it again with --overwrite"
            )
    if mode not in MODES:
        raise UserError(f"{folder / METRICS}: mode = {mode!r}; run it again with --overwrite")
    return Run(folder, mode, variant, f"{mode} {variant:.24}", metrics, history, scores)


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
