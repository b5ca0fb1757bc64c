"""Runs: whose is a run's folder, what is its identity, and how does it survive a kill?"""

from support.runs.folder import Claim, check_finished, claim, describe_run, run_folder
from support.runs.resumption import Progress, Session, interruptible, resumable

__all__ = [
    "Claim", "Progress", "Session", "check_finished", "claim", "describe_run", "interruptible",
    "resumable", "run_folder",
]  # fmt: skip
