"""Write the numbers of every optimiser step: to steps.csv, and for TensorBoard where asked."""

import csv
import io
from pathlib import Path

from support.files import read_bytes, write_bytes
from support.processes import is_main


class StepLog:
    """The rows of steps.csv, from a run's first step on."""

    def __init__(self, folder: Path, steps: int, tensorboard: bool):
        """Go on after so many steps; rows of later ones, whose state was not saved, are dropped.

        With ``tensorboard`` the same numbers go to that folder beside the file.
        """
        self.path, self.text, self.events = folder / "steps.csv", io.StringIO(), None
        if steps and self.path.exists():
            lines = read_bytes(self.path).decode(errors="replace").splitlines(keepends=True)
            self.text.writelines(lines[: 1 + steps])  # the first is the heading
        if tensorboard and is_main():
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(folder / "tensorboard", purge_step=steps + 1)

    def add_step(self, step: int, numbers: dict[str, float]) -> None:
        """Add a step's row."""
        row = {"step": step, **numbers}
        table = csv.DictWriter(self.text, row, lineterminator="\n")
        if not self.text.tell():
            table.writeheader()
        table.writerow(row)
        self.show("step", step, numbers)

    def show(self, group: str, step: int, numbers: dict[str, float]) -> None:
        """Have TensorBoard show numbers at a step, if it was asked for."""
        if self.events:
            for name, value in numbers.items():
                self.events.add_scalar(f"{group}/{name}", value, step)

    def save(self) -> None:
        """Replace the file, and have the events on disk. The state that goes on from it is next."""
        if self.text.tell():
            write_bytes(self.path, self.text.getvalue().encode())
        if self.events:
            self.events.flush()
