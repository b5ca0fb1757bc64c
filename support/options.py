"""Describe every option once.

What a recipe sets, a run's identity, the help, and which option means something to which mode:
all of it is read from `OPTIONS`.
"""

import os
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any, NamedTuple

MODES = {  # what it does, and an example
    "gen": ("continue a prompt", "--mode gen --prompt 'The teacher'"),
    "LoRA": ("fine-tune a base on CoLA with LoRA", "--mode LoRA --gpt_variant gpt2-medium"),
    "distil": ("teach the student; needs a LoRA run", "--mode distil --sr_no 22915"),
    "rnn": ("train the student without a teacher", "--mode rnn"),
    "predict": ("judge sentences; a student ships", "--mode predict 'The cat sleeps.'"),
    "export": ("a saved model for other programs", "--mode export --checkpoint DIR"),
    "report": ("compare the finished runs", "--mode report --sr_no 22915-22919"),
    "all": ("LoRA, rnn, distil and report in a row", "--mode all --gpt_variant nano"),
}
TRAINING, STUDENTS, TAUGHT = (
    ("LoRA", "rnn", "distil", "all"),
    ("distil", "rnn", "all"),
    ("distil", "all"),
)
RULES = ("balanced", "accuracy")  # of a student's threshold
RECIPES = {  # and what a taught student costs by it
    "published": None,
    "hints": "smollm2 on two cores: about 3 hours and 5 GiB; with --transfer_file 2 hours and 2.5 GiB",
    "nano": None,
}


# ---------------------------------------------------------------------------------------------
# Types of values


def number(kind: type, low: float, high: float = float("inf"), open_low: bool = False):
    """Return an argparse type: a number in [low, high], or in (low, high] where ``open_low``."""

    def parse_number(text: str):
        value = kind(text)
        if not (low <= value <= high) or (open_low and value == low) or value == float("inf"):
            bounds = f"{'more than' if open_low else 'at least'} {low}"
            bounds += f" and at most {high}" if high != float("inf") else ""
            raise ArgumentTypeError(f"{text} is out of range: {bounds}")
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
    return Path(text).expanduser()


def variant(text: str) -> str:
    """Parse the name of a base; a folder or file may begin with ~."""
    return os.path.expanduser(text) if text.startswith("~") else text


count, size = number(int, 1), number(int, 0)
positive, share, dropout = (
    number(float, 0, open_low=True),
    number(float, 0, 1),
    number(float, 0, 0.99),
)
softness = number(float, 0.01, 1000)  # far beyond, the divergence or T^2 overflows


# ---------------------------------------------------------------------------------------------
# The table


class Option(NamedTuple):
    """A row of the table; a tuple as ``kind`` lists the choices, and bool is a switch."""

    flag: str
    metavar: str | None
    kind: Any
    default: Any  # the published value; a dict has one for each mode
    recipes: dict[str, Any]  # what the other recipes set; a dict has a value for some modes
    identity: bool  # whether it changes the result, and so belongs to a run's identity
    modes: tuple[str, ...]
    help: str

    @property
    def name(self) -> str:
        """Return the name in the parsed arguments."""
        return self.flag.removeprefix("--")

    def value(self, recipe: str | None, mode: str) -> Any:
        """Return what a recipe gives it in a mode."""
        value = self.recipes.get(recipe, self.default)
        if isinstance(value, dict):
            value = value.get(mode, self.default)
        return value.get(mode) if isinstance(value, dict) else value


YES, NO = True, False
ALL, BUT = tuple(MODES), tuple(mode for mode in MODES if mode not in ("export", "report"))
# Beside hints the untaught student takes as many steps, by the same schedule. It learns its
# sentences by heart, so the epoch with the best MCC is kept, and no patience ends it.
OPTIONS = tuple(Option(*row) for row in (
    ("--sr_no", "N", serial_numbers, ("22915", [22915]), {}, NO, ALL, "the random seed; it names the outputs; training and report take several: 1,2 or 1-5"),
    ("--gpt_variant", "NAME", variant, "gpt2", {}, NO, ALL, "gpt2[-medium|-large|-xl], smollm2, nano, OWNER/NAME, folder, .gguf"),
    ("--out_dir", "DIR", path, Path("."), {}, NO, ALL, "for checkpoints/, plots/, transfer/, exports/, the report"),
    ("--device", "NAME", str, "auto", {}, NO, BUT, "auto, cpu, cuda, cuda:1, mps"),
    ("--precision", None, ("fp32", "bf16"), None, {}, NO, BUT, "fp32; bf16 where the GPU has it"),
    ("--data_dir", "DIR", path, None, {}, NO, TRAINING, "a folder in CoLA's layout [cola_public; nano's own]"),
    ("--recipe", None, tuple(RECIPES), None, {}, NO, STUDENTS, "values for the options below [published; for nano: nano]"),
    ("--batch_size", "N", count, 128, {"hints": {"distil": 512, "rnn": 512}}, YES, TRAINING, "sentences an optimiser step, of all processes"),
    ("--lr", "X", positive, 1e-3, {"hints": {"distil": 2e-3, "rnn": 2e-3}}, YES, TRAINING, "Adam's learning rate"),
    ("--epochs", "N", count, {"LoRA": 10, "distil": 5, "rnn": 5}, {"hints": {"distil": 6, "rnn": None}}, YES, TRAINING, "passes over the corpus; rnn with --recipe hints: as many steps as distil takes"),
    ("--patience", "N", count, 3, {"hints": {"rnn": 1000}}, YES, TRAINING, "stop after N epochs without a better one"),
    ("--monitor", None, ("accuracy", "mcc", "none"), "accuracy", {"hints": {"distil": "none", "rnn": "mcc"}}, YES, TRAINING, "what early stopping watches on in_domain_dev; none keeps the last epoch"),
    ("--lr_schedule", None, ("constant", "linear"), "constant", {"hints": {"distil": "linear", "rnn": "linear"}}, YES, TRAINING, "linear falls to 0 over all epochs"),
    ("--max_steps", "N", count, None, {}, YES, TRAINING, "stop after N optimiser steps"),
    ("--overwrite", None, bool, False, {}, NO, TRAINING, "train again what is finished"),
    ("--lora_rank", "N", count, 4, {}, YES, ("LoRA", "all"), "r, the rank of the correction"),
    ("--lora_alpha", "X", positive, None, {}, YES, ("LoRA", "all"), "the correction times alpha / r [the rank]"),
    ("--lora_dropout", "P", dropout, 0.0, {}, YES, ("LoRA", "all"), "dropout before A"),
    ("--student_width", "N", number(int, 1, 65536), 768, {"nano": 256}, YES, STUDENTS, "units of the student's embedding and state"),
    ("--student_cell", None, ("rnn", "gru", "lstm"), "rnn", {"hints": "gru"}, YES, STUDENTS, "Elman's cell, or one with gates"),
    ("--student_layers", "N", number(int, 1, 8), 1, {"hints": 2}, YES, STUDENTS, "recurrent layers, one above the other"),
    ("--student_dropout", "P", dropout, 0.0, {"hints": 0.3}, YES, STUDENTS, "dropout of embedding and state, while training"),
    ("--held_out", "N", size, 0, {"hints": 1000}, YES, STUDENTS, "labelled sentences kept from training, to set its thresholds on"),
    ("--threshold", None, RULES, {"distil": "balanced", "rnn": "balanced"}, {}, YES, (*STUDENTS, "predict"), "where a student decides: for MCC, or for accuracy; predict: as set in training"),
    ("--kd_temperature", "T", softness, 2.0, {}, YES, TAUGHT, "softens teacher and student"),
    ("--kd_alpha", "X", share, 0.5, {}, YES, TAUGHT, "weight of the KD term against cross-entropy"),
    ("--transfer_size", "N", number(int, 0, 1_000_000), 0, {"hints": 200_000, "nano": 40_000}, YES, TAUGHT, "extra sentences that the teacher labels"),
    ("--transfer_source", None, ("edits", "written", "both"), "edits", {"hints": "written"}, YES, TAUGHT, "edited training sentences, or written by the base"),
    ("--transfer_file", "FILE", path, None, {}, NO, TAUGHT, "sentences, one a line, in the place of those that the base writes; .gz too"),
    ("--hint_weight", "X", number(float, 0, 1e6), 0.0, {"hints": 30.0, "nano": 10.0}, YES, TAUGHT, "weight of the teacher's hidden states"),
    ("--hint_width", "N", count, 128, {}, YES, TAUGHT, "how many of their components"),
    ("--embedding_start", None, ("random", "teacher"), "random", {"hints": "teacher"}, YES, TAUGHT, "where the student's embedding starts"),
    ("--teacher", "DIR", path, None, {}, NO, ("distil",), "a LoRA run [the one of this variant and sr_no]"),
    ("--prompt", "TEXT", str, "The teacher", {}, NO, ("gen",), "the text to continue"),
    ("--max_new_tokens", "N", count, 50, {}, NO, ("gen",), "tokens to add"),
    ("--temperature", "X", number(float, 0), 0.8, {}, NO, ("gen",), "0 takes the likeliest token"),
    ("--top_k", "N", size, 50, {}, NO, ("gen",), "sample among the N likeliest; 0 all"),
    ("--top_p", "P", number(float, 0, 1, open_low=True), 1.0, {}, NO, ("gen",), "sample among the likeliest of this mass"),
    ("--num_samples", "N", count, 1, {}, NO, ("gen",), "how many continuations"),
    ("--checkpoint", "DIR", path, [], {}, NO, ("predict", "export"), "a saved teacher or student, or one that ships: student, smollm2 [one's own LoRA run; in predict else student]; predict takes several"),
    ("--input", "FILE", path, None, {}, NO, ("predict",), "one sentence a line, or a file in CoLA's layout"),
    ("--json", None, bool, False, {}, NO, ("predict",), "one JSON object a line instead of a table"),
    ("sentences", "SENTENCE", str, [], {}, NO, ("predict",), "to judge; none: from --input or standard input"),
))  # fmt: skip


def published(mode: str) -> dict[str, Any]:
    """Return the published value of each option in the identity of a mode's runs."""
    values = {o.name: o.value("published", mode) for o in OPTIONS if o.identity and mode in o.modes}
    return values | ({"lora_alpha": values["lora_rank"]} if mode == "LoRA" else {})


def options_of(args: Namespace, mode: str, sr_no: int, sentences: int) -> Namespace:
    """Return the options of one run: those given, and its recipe's for the rest.

    ``settings`` of the result are those in the run's identity. ``sentences`` is the size of the
    training split: beside hints the untaught student takes as many steps as the taught one, which
    sees a transfer set too.
    """
    values = {o.name: chosen(args, o, mode) for o in OPTIONS if o.identity}
    if (
        mode == "rnn"
        and args.recipe == "hints"
        and (args.mode == "all" or "epochs" not in args.given)
    ):
        taught = {o.name: chosen(args, o, "distil") for o in OPTIONS}
        labelled = max(sentences - taught["held_out"], 1)
        values["epochs"] = round(taught["epochs"] * (1 + taught["transfer_size"] / labelled))
    values["lora_alpha"] = values["lora_alpha"] or values["lora_rank"]
    settings = {name: values[name] for name in published(mode)}
    return Namespace(**vars(args) | values | {"sr_no": sr_no, "settings": settings})


def chosen(args: Namespace, option: Option, mode: str) -> Any:
    """Return an option's value in a mode: as given, or as the recipe has it."""
    given = option.name in args.given
    return getattr(args, option.name) if given else option.value(args.recipe, mode)
