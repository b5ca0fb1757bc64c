"""The models that ship with the project: which are they, and when does predict take one?"""

import sys
from argparse import Namespace
from pathlib import Path

from support import PROJECT
from support.checkpoints.students import kind_of
from support.corpus import DEV
from support.errors import UserError
from support.reporting import read_metrics, summary
from support.runs import run_folder

MODELS = PROJECT / "results" / "models"
SHIPPED = {"student": "distil_smollm2_22919", "smollm2": "LoRA_smollm2_22915"}


def chosen_checkpoints(args: Namespace) -> dict[str, Path]:
    """Return the folders of the models that the options name, or of the default one, by name."""
    given = args.checkpoint or [default_checkpoint(args)]
    short = len({path.name for path in given}) == len(given)
    folders = {}
    for path in given:
        known = str(path) in SHIPPED and not path.exists()
        folder = MODELS / SHIPPED[str(path)] if known else path
        kind_of(folder)  # refused before another has judged a long file
        folders[path.name if short else str(path)] = folder
    if len(folders) < len(given):
        raise UserError("--checkpoint: one is given twice")
    return folders


def default_checkpoint(args: Namespace) -> Path:
    """Return one's own LoRA run; the student that ships where there is none and none is named."""
    own = run_folder(args, "LoRA")
    if own.exists() or args.mode != "predict" or args.given & {"gpt_variant", "sr_no", "out_dir"}:
        return own
    student, teacher = (summary(read_metrics(MODELS / SHIPPED[name])[DEV]) for name in SHIPPED)
    note = f"note: the student that ships, taught by smollm2 on CoLA; accuracy on {DEV} {student}"
    print(f"{note}; of its teacher (--checkpoint smollm2) {teacher}", file=sys.stderr)
    return MODELS / SHIPPED["student"]
