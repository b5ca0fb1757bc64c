"""Whose is a run's folder, is its run finished, and what does it leave there?

`unfinished.json` stands in the folder from before a run's first step until after `metrics.json`,
which is written last. While it stands, the folder holds no model that may be used.
"""

import platform
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from data_utils import Split, corpus_fingerprint
from support.bases.loading import PROJECT, variant_name
from support.devices import Device
from support.errors import UserError
from support.files import read_json, write_csv, write_json
from support.processes import any_process, is_main
from support.runs.locks import hold, no_folder, stop_where_refused

UNFINISHED, METRICS, STATE = "unfinished.json", "metrics.json", "state.safetensors"
RESULTS = (
    METRICS,
    "predictions.csv",
    "history.csv",
    "adapter_model.safetensors",
    "adapter_config.json",
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip  what a finished run leaves, and another must not find
# Options that came later: a run of their defaults has the identity that it had before them.
LATER = {
    "lr_schedule": "constant", "transfer_source": "edits", "hint_weight": 0.0, "hint_width": 128,
    "student_width": 768, "student_dropout": 0.0, "embedding_start": "random", "held_out": 0,
}  # fmt: skip


class Claim(NamedTuple):
    """A claimed folder; ``description`` is what metrics.json says of a run before it trains."""

    folder: Path
    description: dict
    finished: bool

    def finish(self, parameters: dict, training: dict, results: dict, predictions: list) -> None:
        """Write what was measured, and with it that the run is finished.

        Args:
            parameters: how many there are, and how many train.
            training: how the training went.
            results: by dev set.
            predictions: the rows of predictions.csv.
        """
        write_csv(self.folder / "predictions.csv", predictions)
        measured = {"parameters": parameters, "training": training, **results}
        write_json(self.folder / METRICS, {**self.description, **measured})
        if is_main():
            (self.folder / UNFINISHED).unlink()
            (self.folder / STATE).unlink(missing_ok=True)


def run_folder(args: Namespace, mode: str) -> Path:
    """Where a run lives: ``<out_dir>/checkpoints/<mode>_<variant>_<sr_no>``."""
    return args.out_dir / "checkpoints" / f"{mode}_{variant_name(args.gpt_variant)}_{args.sr_no}"


def describe_run(
    args: Namespace,
    mode: str,
    corpus: dict[str, Split],
    device: Device,
    sources: dict[str, dict],
    arguments: dict,
) -> dict:
    """The description of a `Claim`, with the identity that a folder is compared by.

    Args:
        args: the command line.
        mode: "LoRA", "distil" or "rnn".
        corpus: as it was read.
        device: where it is computed.
        sources: the base and the teacher, each with its "fingerprint".
        arguments: the options that change the result.
    """
    place = args.data_dir.resolve()
    inside = place.is_relative_to(PROJECT)
    name = place.relative_to(PROJECT).as_posix() if inside else place.name
    data = corpus_fingerprint(corpus)
    identity = {
        "mode": mode,
        "data": data,
        "precision": device.precision,
        **{key: source["fingerprint"] for key, source in sources.items()},
        **{key: value for key, value in arguments.items() if LATER.get(key, ...) != value},
    }
    return {
        "mode": mode,
        "variant": variant_name(args.gpt_variant),
        "sr_no": args.sr_no,
        "command": args.command,
        "arguments": {key: value for key, value in arguments.items() if key != "sr_no"},
        "identity": identity,
        "data": {
            "name": name,
            "folder": str(args.data_dir),
            "sha256": data,
            **{key: split.counts() for key, split in corpus.items()},
        },
        "teacher": None,
        **sources,
        "hardware": device.description(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }


@contextmanager
def claim(folder: Path, description: dict, overwrite: bool) -> Iterator[Claim]:
    """Hold a run's folder, and tell whether its run is finished.

    ``overwrite`` clears a finished run, another run and a broken one; this very run, interrupted,
    it leaves to be gone on with. A run that stopped before it had saved anything makes way unasked.
    """
    with hold(folder / ".lock"):
        finished, refusal = False, None
        if is_main():
            try:
                finished = prepare(folder, description, overwrite)
            except UserError as error:
                refusal = error
            except OSError as error:
                refusal = no_folder(folder, error)
        stop_where_refused(refusal, folder)
        yield Claim(folder, description, any_process(finished))


def prepare(folder: Path, description: dict, overwrite: bool) -> bool:
    """Make a claimed folder ready for a run; returns whether it is finished already."""
    unfinished, metrics, state = (folder / name for name in (UNFINISHED, METRICS, STATE))
    identity, mark = description["identity"], unfinished if unfinished.exists() else metrics
    used = [name for name in (*RESULTS, STATE) if (folder / name).exists()]
    try:
        if mark.exists():
            check_identity(folder, read_json(mark).get("identity"), identity)
        elif used:
            check_identity(folder, None, identity)
    except UserError:
        if not overwrite and (used or mark != unfinished):
            raise
        clear = True
    else:
        clear = overwrite and mark == metrics
    if mark == metrics and metrics.exists() and not clear:
        state.unlink(missing_ok=True)  # left by a kill right after the mark was removed
        return True
    if clear or not unfinished.exists():
        # In this order, a kill between two lines leaves the old run's mark or the new one's.
        state.unlink(missing_ok=True)
        write_json(unfinished, {"command": description["command"], "identity": identity})
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
    return False


def check_identity(folder: Path, found: object, identity: dict) -> None:
    """Compare the identity of the run on disk with the one asked for; says what differs."""
    if not isinstance(found, dict):
        raise UserError(f"{folder}: not a run of this project; add --overwrite to replace it")
    differing = [
        f"{key} is {short(found.get(key))} there, {short(identity.get(key))} here"
        for key in sorted(found.keys() | identity.keys())
        if found.get(key) != identity.get(key)
    ]
    if differing:
        raise UserError(
            f"{folder} holds another run ({'; '.join(differing)}); add --overwrite to replace it, "
            "or choose another --sr_no or --out_dir"
        )


def short(value: object) -> str:
    """A fingerprint's first digits; anything else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def check_finished(folder: Path) -> None:
    """Refuse a folder whose run is not finished, saying which command finishes it."""
    if (folder / UNFINISHED).exists():
        command = read_json(folder / UNFINISHED).get("command")
        raise UserError(f"{folder}: this run is not finished; finish it with: {command}")
