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
    folders = {path.name if short else str(path): named_checkpoint(path) for path in given}
    if len(folders) < len(given):
        raise UserError("--checkpoint: one is given twice")
    for folder in folders.values():
        kind_of(folder)  # refused before another has judged a long file
    return folders


def named_checkpoint(given: Path) -> Path:
    """Return the folder that ``--checkpoint`` names: one on disk, or a name of `SHIPPED`."""
    known = str(given) in SHIPPED and not given.exists()
    return MODELS / SHIPPED[str(given)] if known else given


def default_checkpoint(args: Namespace) -> Path:
    """Return one's own LoRA run; the student that ships where there is none and none is named."""
    own = run_folder(args, "LoRA")
    if own.exists() or args.mode != "predict" or args.given & {"gpt_variant", "sr_no", "out_dir"}:
        return own
    student, teacher = (summary(read_metrics(MODELS / SHIPPED[name])[DEV]) for name in SHIPPED)
    note = f"note: the student that ships, taught by smollm2 on CoLA; accuracy on {DEV} {student}"
    print(f"{note}; of its teacher (--checkpoint smollm2) {teacher}", file=sys.stderr)
    return MODELS / SHIPPED["student"]
