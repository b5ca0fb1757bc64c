"""Runs: whose is a run's folder, what is its identity, and how does it survive a kill?

docs/files.md has the four states of a folder, and what an identity is.
"""

from support.runs.folder import Run, check_finished, claim, describe_run, run_folder
from support.runs.resumption import Progress, SavedState, check_finite

__all__ = [
    "Progress", "Run", "SavedState", "check_finished", "check_finite", "claim", "describe_run",
    "run_folder",
]  # fmt: skip
