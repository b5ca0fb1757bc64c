"""Tell whose a run's folder is and whether its run is finished; write what a run leaves there.

`unfinished.json` stands in the folder from before a run's first step until after `metrics.json`,
which is written last. While it stands, the folder holds no model that may be used.
"""

import platform
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from data_utils import Split
from support.bases import variant_name
from support.devices import Device
from support.errors import UserError
from support.files import no_folder, read_json, write_csv, write_json
from support.fingerprints import corpus_fingerprint
from support.options import published
from support.processes import any_process, is_main, together
from support.runs.locks import locked
from support.sentences import COLA_CLASSES

IDENTITY_VERSION = 2  # of the rule by which an identity tells bases and teachers
UNFINISHED, METRICS, STATE = "unfinished.json", "metrics.json", "state.safetensors"
RESULTS = (  # what a finished run leaves, and another must not find
    METRICS, "predictions.csv", "history.csv", "steps.csv", "adapter_model.safetensors",
    "adapter_config.json", "model.safetensors", "config.json", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip


def run_folder(options: Namespace, mode: str) -> Path:
    """Return where a run lives: ``<out_dir>/checkpoints/<mode>_<variant>_<sr_no>``."""
    name = f"{mode}_{variant_name(options.gpt_variant)}_{options.sr_no}"
    return options.out_dir / "checkpoints" / name


def check_finished(folder: Path) -> None:
    """Refuse a folder whose run is not finished, naming the command that finishes it."""
    if (folder / UNFINISHED).exists():
        command = read_json(folder / UNFINISHED).get("command")
        raise UserError(f"{folder}: this run is not finished; finish it with: {command}")


# ---------------------------------------------------------------------------------------------
# A run's description and identity


def describe_run(
    options: Namespace,
    mode: str,
    device: Device,
    corpus: dict[str, Split],
    sources: dict[str, dict],
    rules: dict[str, str] | None = None,
) -> dict:
    """Return what metrics.json says of a run beforehand, with the identity that it is known by.

    ``options.data`` is what the corpus says of itself. ``sources`` are the base and the teacher,
    each with its "fingerprint"; ``rules`` are what else changes the result, beside the options.
    """
    arguments = options.settings | (rules or {})
    data, classes = corpus_fingerprint(corpus), options.data["classes"]
    counts = {
        name: {
            "sentences": len(split),
            "tokens": len(split.input_ids),
            "acceptable": int((split.labels == 1).sum()),
        }
        for name, split in corpus.items()
    }
    return {
        "mode": mode,
        "variant": variant_name(options.gpt_variant),
        "sr_no": options.sr_no,
        "command": options.command,
        "arguments": arguments,
        "identity": {
            "version": IDENTITY_VERSION,
            "mode": mode,
            "data": data,
            "precision": device.precision,
            "sr_no": options.sr_no,
            **({} if classes == list(COLA_CLASSES) else {"classes": classes}),
            **{key: source["fingerprint"] for key, source in sources.items()},
            **arguments,
        },
        "data": {**options.data, "sha256": data, **counts},
        "teacher": None,
        **sources,
        "hardware": device.description(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }


def differences(there: dict, here: dict) -> dict[str, tuple]:
    """Return the entries in which two identities differ, as they are there and here.

    An option that an identity does not name has its published value: it came later.
    """
    values = published(str(here.get("mode")))
    there, here = values | there, values | here
    keys = sorted(there.keys() | here.keys())
    return {key: (there.get(key), here.get(key)) for key in keys if there.get(key) != here.get(key)}


def short(value: object) -> str:
    """Return a fingerprint's first digits; anything else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


# ---------------------------------------------------------------------------------------------
# Claiming a folder, and finishing its run


class Run(NamedTuple):
    """A run in a folder that is this command's."""

    folder: Path
    description: dict  # what metrics.json says beforehand
    finished: bool

    def finish(
        self, parameters: dict, training: dict, results: dict, predictions: list, **more
    ) -> None:
        """Write what was measured, and with it that the run is finished.

        ``results`` are by dev set, ``predictions`` the rows of predictions.csv, ``more`` further
        entries of metrics.json.
        """
        write_csv(self.folder / "predictions.csv", predictions)
        measured = {"parameters": parameters, "training": training, **more, **results}
        write_json(self.folder / METRICS, {**self.description, **measured})
        if is_main():
            (self.folder / UNFINISHED).unlink()
            (self.folder / STATE).unlink(missing_ok=True)


@contextmanager
def claim(
    folder: Path, description: dict, overwrite: bool, unknown: dict[str, UserError] | None = None
) -> Iterator[Run]:
    """Hold a run's folder, and tell whether its run is finished.

    ``overwrite`` clears a finished run, another run and a broken one; this very run, interrupted,
    it leaves to be gone on with. A run that stopped before it had saved anything makes way unasked,
    and where an error stops it there, it is as if it had never begun.
    ``unknown`` are the errors that kept entries of the identity from being known: a finished run is
    shown without them, for any other the first is raised.
    """
    with locked(folder / ".lock"):
        finished = False
        with together():
            if is_main():
                try:
                    finished = prepare(folder, description, overwrite, unknown or {})
                except OSError as error:
                    raise no_folder(folder, error) from None
        try:
            yield Run(folder, description, any_process(finished))
        except UserError:
            if is_main() and not (folder / STATE).exists():
                (folder / UNFINISHED).unlink(missing_ok=True)
            raise


def prepare(
    folder: Path, description: dict, overwrite: bool, unknown: dict[str, UserError]
) -> bool:
    """Make a claimed folder ready for a run; return whether it is finished already."""
    unfinished = (folder / UNFINISHED).exists()
    used = any((folder / name).exists() for name in (*RESULTS, STATE))
    reason = ""  # why what is there is not this run
    if unfinished or used:
        reason = why_another(folder, description["identity"], unknown.keys())
    finished = used and not unfinished and not reason
    for error in unknown.values():
        if overwrite or not finished:
            raise error
        print(f"note: {error}; the run is finished, and is shown", file=sys.stderr)
    if reason and used and not overwrite:
        raise UserError(f"{folder}{reason}")
    if finished and not overwrite:
        (folder / STATE).unlink(missing_ok=True)  # left by a kill right after the mark's removal
        return True
    if not unfinished or reason or not (folder / STATE).exists():
        # In this order, a kill between two lines leaves the old run's mark or the new one's, and
        # the next start clears what was left.
        (folder / STATE).unlink(missing_ok=True)
        mark = {"command": description["command"], "identity": description["identity"]}
        write_json(folder / UNFINISHED, mark)
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return False


def why_another(folder: Path, identity: dict, unknown: Iterable[str]) -> str:
    """Return why the run in a folder is not that of this identity; nothing where it is."""
    unfinished = (folder / UNFINISHED).exists()
    try:
        there = read_json(folder / (UNFINISHED if unfinished else METRICS)).get("identity")
    except UserError:
        there = None
    if not isinstance(there, dict):
        return ": not a run of this project; add --overwrite to replace it"
    differing = {k: pair for k, pair in differences(there, identity).items() if k not in unknown}
    if "version" in differing:
        return (
            ": an earlier version of this project wrote this run, and told bases and teachers by "
            "another rule; add --overwrite to replace it, or choose another --sr_no or --out_dir"
        )
    if not differing:
        return ""
    parts = [f"{key} is {short(a)} there, {short(b)} here" for key, (a, b) in differing.items()]
    words = ""
    if differing.keys() <= {"epochs", "max_steps"} and not unfinished:
        words = " A finished run is not extended: train it anew."
    return (
        f" holds another run ({'; '.join(parts)}).{words} Add --overwrite to replace it, or choose "
        "another --sr_no or --out_dir"
    )
