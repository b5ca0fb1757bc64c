"""Every option in one row of `parser_of`; what a recipe sets; the options of one run.

A value is the one that is given, else the recipe's, else the published one: its row's default.
"""

import argparse
import importlib.util
import os
import shlex
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

from support import PROJECT
from support.processes import is_main

MODES = ("gen", "LoRA", "distil", "rnn", "predict", "export", "report", "all")
TRAINING = ("LoRA", "distil", "rnn", "all")
RULES = ("balanced", "accuracy")  # of a student's threshold
HINTS = {
    "batch_size": 512, "lr": 2e-3, "lr_schedule": "linear", "student_cell": "gru",
    "student_layers": 2, "student_dropout": 0.3, "held_out": 1000,
}  # fmt: skip
RECIPES: dict[str, dict[str, dict[str, Any]]] = {  # by mode, what differs from the published
    "published": {},
    "hints": {
        "distil": HINTS | {
            "epochs": 6, "monitor": "none", "transfer_size": 200_000, "transfer_source": "written",
            "kd_alpha": 0.9, "hint_weight": 30.0, "embedding_start": "mapped",
        },
        # It learns its sentences by heart: the best epoch is kept, and no patience ends it.
        "rnn": HINTS | {"monitor": "mcc", "patience": 1000},
    },
    "nano": {
        "distil": {"student_width": 256, "transfer_size": 40_000, "hint_weight": 10.0},
        "rnn": {"student_width": 256},
    },
}  # fmt: skip
HINTS_COST = "on two cores smollm2 takes 3 to 4 h and 5 GiB; with --transfer_file 2 h and 2.5 GiB"
NOT_IN_IDENTITY = (  # of a run
    "mode", "sr_no", "gpt_variant", "out_dir", "device", "precision", "data_dir", "recipe",
    "overwrite", "tensorboard", "teacher", "transfer_file", "text_column", "label_column",
    "positive",
)  # fmt: skip

NEEDS = {"transfer_source": "transfer_size", "hint_width": "hint_weight", "threshold": "held_out"}


def number(kind: type, low: float, high: float = inf, above: bool = False) -> Callable:
    """Return an argparse type: a number from ``low``, or ``above`` it, to ``high``."""

    def parse_number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or value == inf or (above and value == low):
            upper = f" and at most {high}" if high < inf else ""
            lower = f"{'more than' if above else 'at least'} {low}"
            raise ArgumentTypeError(f"{text} is out of range: {lower}{upper}")
        return value

    parse_number.__name__ = {int: "whole number", float: "number"}[kind]  # for argparse's errors
    return parse_number


def serial_numbers(text: str) -> tuple[str, list[int]]:
    """Parse one seed, or several as in 22915,22917-22919; return the text and the numbers."""
    if len(text) > 100:
        raise ArgumentTypeError("more than 100 characters, which name the report")
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise ArgumentTypeError(f"{text!r} is not like 22915, 22915,22916 or 22915-22919")
        low, high = int(first), int(last or first)
        if high > 2**63 - 1:
            raise ArgumentTypeError(f"{high} is out of range: at most {2**63 - 1}")
        if not low <= high < low + 1000:
            raise ArgumentTypeError(f"{part}: a range rises, by less than 1000")
        numbers += range(low, high + 1)
    if len(set(numbers)) < len(numbers):
        raise ArgumentTypeError(f"{text} has a number twice")
    return text, numbers


def path(text: str) -> Path:
    """Parse a path, with ~ for the home folder, also in --option=~/place."""
    if not text:
        raise ArgumentTypeError("it is empty")
    return Path(os.path.expanduser(text))


class Parser(argparse.ArgumentParser):
    """Report an error in one line; of several processes the main one does."""

    def error(self, message: str) -> None:
        """Print the line and exit with status 2."""
        self.exit(2, f"run.py: error: {message}; see --help\n" if is_main() else None)


def add_columns(add: Callable) -> None:
    """Add what says which columns of a table are meant."""
    add("--text_column", "of a table: the column of the sentences [sentence, or text]")
    add("--label_column", "the column of the labels [label]")
    add("--positive", "the class that counts as 1 [1, acceptable, positive, yes, true]")


def parser_of(mode: str) -> Parser:
    """Return the parser of a mode's options."""
    parser = Parser(add_help=False, allow_abbrev=False)
    count, size, positive = number(int, 1), number(int, 0), number(float, 0, above=True)
    share, dropout = number(float, 0, 1), number(float, 0, 0.99)

    def add(flag: str, help: str, default: Any = None, **more: Any) -> None:
        shown = help if default is None else f"{help} [{default}]"
        parser.add_argument(flag, help=shown, default=default, **more)

    variants = "gpt2[-medium|-large|-xl], smollm2, nano, OWNER/NAME, folder, .gguf"
    add("--mode", argparse.SUPPRESS)
    several = "; several: 1,2 or 1-5" if mode in (*TRAINING, "report") else ""
    add("--sr_no", f"the seed, also in names{several}", "22915", type=serial_numbers)
    add("--gpt_variant", variants, "gpt2", type=os.path.expanduser)
    add("--out_dir", "for checkpoints/, plots/, transfer/, exports/, the report", ".", type=path)
    if mode not in ("export", "report"):
        add("--device", "auto, cpu, cuda, cuda:1, mps", "auto")
        add("--precision", "fp32; bf16 where the GPU has it", choices=("fp32", "bf16"))
    if mode in TRAINING:
        add("--data_dir", "a labelled file, or a folder [cola_public; nano's own]", type=path)
        add_columns(add)
        add("--batch_size", "sentences per optimiser step, of all processes", 128, type=count)
        add("--lr", "Adam's learning rate", 1e-3, type=positive)
        add("--epochs", "passes over the corpus [LoRA 10, a student 5]", type=count)
        parser.set_defaults(epochs=10 if mode == "LoRA" else 5)
        add("--patience", "stop after so many epochs without a better one", 3, type=count)
        monitors = ("accuracy", "mcc", "none")
        add("--monitor", "what chooses the epoch; none: the last", "accuracy", choices=monitors)
        schedules = ("constant", "linear")
        add("--lr_schedule", "linear falls to 0 over all steps", "constant", choices=schedules)
        add("--max_steps", "stop after so many optimiser steps", type=count)
        parser.add_argument("--overwrite", action="store_true", help="train what is finished again")
        parser.add_argument("--tensorboard", action="store_true", help="events for TensorBoard")
    if mode in ("LoRA", "all"):
        add("--lora_rank", "r, the rank of the correction", 4, type=count)
        add("--lora_alpha", "the correction times alpha / r [the rank]", type=positive)
        add("--lora_dropout", "dropout before A", 0.0, type=dropout)
    if mode in ("distil", "rnn", "all"):
        add("--recipe", "what it sets stands below [published; nano for nano]", choices=RECIPES)
        add("--student_width", "units of embedding and state", 768, type=number(int, 1, 65536))
        add("--student_cell", "Elman's, or with gates", "rnn", choices=("rnn", "gru", "lstm"))
        add("--student_layers", "recurrent layers", 1, type=number(int, 1, 8))
        add("--student_dropout", "dropout of embedding and state, in training", 0.0, type=dropout)
        add("--held_out", "labelled sentences kept apart, for its thresholds", 0, type=size)
        add("--threshold", "where it decides: for MCC, or accuracy", RULES[0], choices=RULES)
    if mode in ("distil", "all"):
        starts, sizes = ("random", "teacher", "mapped"), number(int, 0, 1_000_000)
        # Far beyond these, the divergence or T^2 overflows.
        add("--kd_temperature", "softens both sides", 2.0, type=number(float, 0.01, 1000))
        add("--kd_alpha", "weight of the KD term against cross-entropy", 0.5, type=share)
        add("--transfer_size", "extra sentences that the teacher labels", 0, type=sizes)
        sources = ("edits", "written", "everyday")
        add("--transfer_source", "how they are made", sources[0], choices=sources)
        add("--transfer_file", "sentences, one a line, in place of written ones", type=path)
        add("--hint_weight", "weight of the teacher's states", 0.0, type=number(float, 0, 1e6))
        add("--hint_width", "how many of their components", 128, type=count)
        add("--embedding_start", "where the student's embedding starts", starts[0], choices=starts)
    if mode == "distil":
        add("--teacher", "a LoRA run [the one of this variant and sr_no]", type=path)
    if mode == "all":
        parser.set_defaults(teacher=None)  # the LoRA run beside it
    if mode == "gen":
        add("--prompt", "the text to continue", "The teacher")
        add("--max_new_tokens", "tokens to add", 50, type=count)
        add("--temperature", "0 takes the likeliest token", 0.8, type=number(float, 0))
        add("--top_k", "sample among so many likeliest; 0 all", 50, type=size)
        add("--top_p", "of these, the likeliest mass", 1.0, type=number(float, 0, 1, above=True))
        add("--num_samples", "how many continuations", 1, type=count)
    if mode in ("predict", "export"):
        add("--checkpoint", "a run's folder, student, or smollm2", type=path, action="append")
    if mode == "predict":
        add("--input", "one sentence a line, or a table with labels or without", type=path)
        add_columns(add)
        add("--threshold", "where a student decides [as set in training]", choices=RULES)
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
        parser.add_argument("sentences", nargs="*", help="to judge [--input or standard input]")
    return parser


def mode_and_help(argv: list[str]) -> Namespace:
    """Parse the mode, and whether help is asked for."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mode")
    parser.add_argument("-h", "--help", action="store_true")
    return parser.parse_known_args(argv)[0]


def parse(argv: list[str]) -> Namespace:
    """Parse and check the command line of a mode; ``given`` names the options that it has."""
    mode = mode_and_help(argv).mode
    parser = parser_of(mode)
    args, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.error(f"{unknown[0]} means nothing to --mode {mode}")
    args.argv, args.command = argv, shlex.join(["python", "run.py", *argv])
    args.given = {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    args.serial, args.sr_nos = args.sr_no
    args.sr_no = args.sr_nos[0]
    if len(args.sr_nos) > 1 and mode not in (*TRAINING, "report"):
        parser.error(f"--sr_no: --mode {mode} takes one number")
    for name in {"sr_no", *(["out_dir"] if mode == "predict" else [])} & args.given:
        if vars(args).get("checkpoint"):
            parser.error(f"--{name} means nothing beside --checkpoint")
    if mode == "export" and len(args.checkpoint or []) > 1:
        parser.error("--checkpoint: --mode export takes one")
    if mode in TRAINING:
        nano = args.gpt_variant == "nano"
        args.data_dir = args.data_dir or PROJECT / ("nano/corpus" if nano else "cola_public")
        args.recipe = vars(args).get("recipe") or ("nano" if nano else "published")
        settings = settings_of(args, "distil")
        for name, needed in NEEDS.items():
            if name in args.given and not settings[needed]:
                parser.error(f"--{name} means nothing without --{needed}")
        if "transfer_file" in args.given and settings["transfer_source"] != "written":
            parser.error("--transfer_file means nothing without --transfer_source written")
        if args.tensorboard and not importlib.util.find_spec("tensorboard"):
            parser.error("--tensorboard: that package is not installed; pip install tensorboard")
    return args


def published(mode: str) -> dict[str, Any]:
    """Return the published value of each option in the identity of a mode's runs."""
    return settings_of(Namespace(argv=[], recipe="published"), mode)


def settings_of(args: Namespace, mode: str) -> dict[str, Any]:
    """Return the value of each option in the identity of a mode's run."""
    parser = parser_of(mode)
    parser.set_defaults(**RECIPES[args.recipe].get(mode, {}))
    values = vars(parser.parse_known_args(args.argv)[0])  # of `all` it knows what is its own
    settings = {name: value for name, value in values.items() if name not in NOT_IN_IDENTITY}
    if mode == "LoRA":
        settings["lora_alpha"] = settings["lora_alpha"] or settings["lora_rank"]
    return settings


def options_of(args: Namespace, mode: str, sr_no: int, sentences: int) -> Namespace:
    """Return the options of one run on so many training sentences; ``settings`` in its identity."""
    settings = settings_of(args, mode)
    beside = args.recipe == "hints" and (args.mode == "all" or "epochs" not in args.given)
    if mode == "rnn" and beside:
        # As many steps as one taught with hints takes, which has the transfer set as well.
        taught = settings_of(args, "distil")
        labelled = max(sentences - taught["held_out"], 1)
        settings["epochs"] = round(taught["epochs"] * (1 + taught["transfer_size"] / labelled))
    return Namespace(**vars(args) | settings | {"sr_no": sr_no, "settings": settings})
