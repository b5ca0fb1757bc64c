#!/usr/bin/env python3
"""The front door: options and dispatch. Nothing heavy is imported before a mode runs."""

import argparse
import os
import shlex
import sys
from itertools import product
from pathlib import Path

from support.errors import UserError, explain
from support.processes import is_first_of_machine, is_main, process_group

PROJECT = Path(__file__).resolve().parent
MODES = ("gen", "LoRA", "distil", "rnn", "predict", "export", "report", "all")
TRAINING = ("LoRA", "distil", "rnn", "all")
NANO = {"transfer_size": 40_000, "student_width": 256, "hint_weight": 10.0}  # its own recipe
LONG = {  # to the end of a falling rate
    "lr": 5e-4, "lr_schedule": "linear", "student_dropout": 0.3, "held_out": 500,
}  # fmt: skip
RECIPES = {  # what a mode trains with where no option says otherwise
    "published": {"LoRA": {"epochs": 10}, "distil": {"epochs": 5}, "rnn": {"epochs": 5}},
    "hints": {
        "LoRA": {"epochs": 10},
        "distil": {"epochs": 16, "transfer_size": 40_000, "transfer_source": "written",
                   "hint_weight": 30.0, "embedding_start": "teacher", "monitor": "none", **LONG},
        # For as many steps as distil takes; it learns its sentences by heart, so the best are kept.
        "rnn": {"monitor": "mcc", "patience": 1000, **LONG},
    },
}  # fmt: skip


def number(kind: type, low: float, high: float = float("inf"), open_low: bool = False):
    """An argparse type: a number in [low, high], or in (low, high] where ``open_low``."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number ({kind.__name__})"
            ) from None
        if not (low <= value <= high) or (open_low and value == low) or value == float("inf"):
            bounds = f"{'more than' if open_low else 'at least'} {low}"
            bounds += f" and at most {high}" if high != float("inf") else ""
            raise argparse.ArgumentTypeError(f"{text} is out of range: {bounds}")
        return value

    return parse


def serial_numbers(text: str) -> tuple[str, list[int]]:
    """An argparse type: one number, or several as in 22915,22917-22919, each once; as written too."""
    found = []
    if len(text) > 100:
        raise argparse.ArgumentTypeError("more than 100 characters, which name the report")
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not like 22915, 22915,22916 or 22915-22919"
            )
        low, high = int(first), int(last or first)
        if high > 2**63 - 1:
            raise argparse.ArgumentTypeError(f"{high} is out of range: at most {2**63 - 1}")
        if not low <= high < low + 1000:
            raise argparse.ArgumentTypeError(f"{part}: a range rises, by less than 1000")
        found += range(low, high + 1)
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text} has a number twice")
    return text, found


count, size = number(int, 1), number(int, 0)
positive, share = number(float, 0, open_low=True), number(float, 0, 1)
softness = number(float, 0.01, 1000)  # far beyond, the divergence or T^2 overflows

# Title, modes, then rows: flag, metavar, type (a tuple: choices; bool: a switch), default, help.
# An option is refused in a mode that is not its own.
OPTIONS = (
    ("every mode", MODES, (
        ("--sr_no", "N", serial_numbers, ("22915", [22915]), "seeds all, names the outputs; several: 1,2 or 1-5 [22915]"),
        ("--gpt_variant", "NAME", str, "gpt2", "gpt2[-medium|-large|-xl], smollm2, nano, OWNER/NAME, folder, .gguf [gpt2]"),
        ("--out_dir", "DIR", Path, Path("."), "for checkpoints/, plots/, transfer/, the report [.]"),
    )),
    ("every mode but export, report", tuple(mode for mode in MODES if mode not in ("export", "report")), (
        ("--device", "NAME", str, "auto", "auto, cpu, cuda, cuda:1, mps [auto]"),
        ("--precision", None, ("fp32", "bf16"), None, "[fp32; bf16 where the GPU has it]"),
    )),
    ("training: LoRA, distil, rnn, all", TRAINING, (
        ("--data_dir", "DIR", Path, None, "a folder in CoLA's layout [cola_public; nano's own]"),
        ("--recipe", None, tuple(RECIPES), "published", "hints: for a better student, see below [published]"),
        ("--batch_size", "N", count, 128, "sentences an optimiser step [128]"),
        ("--lr", "X", positive, 1e-3, "Adam's learning rate [0.001]"),
        ("--epochs", "N", count, None, "passes over the corpus [LoRA 10; distil, rnn 5]"),
        ("--patience", "N", count, 3, "stop after N epochs without a better one [3]"),
        ("--monitor", None, ("accuracy", "mcc", "none"), "accuracy", "what early stopping watches; none keeps the last epoch [accuracy]"),
        ("--lr_schedule", None, ("constant", "linear"), "constant", "linear falls to 0 over all epochs [constant]"),
        ("--max_steps", "N", count, None, "stop after N optimiser steps [none]"),
        ("--overwrite", None, bool, False, "train again what is finished"),
    )),
    ("LoRA, all", ("LoRA", "all"), (
        ("--lora_rank", "N", count, 4, "r, the rank of the correction [4]"),
        ("--lora_alpha", "X", positive, None, "the correction times alpha / r [the rank]"),
        ("--lora_dropout", "P", number(float, 0, 0.99), 0.0, "dropout before A [0]"),
    )),
    ("distil, rnn, all", ("distil", "rnn", "all"), (
        ("--student_width", "N", number(int, 1, 65536), 768, f"of the student's embedding and state [768; nano {NANO['student_width']}]"),
        ("--student_dropout", "P", number(float, 0, 0.99), 0.0, "of embedding and state, while training [0]"),
        ("--held_out", "N", size, 0, "labelled sentences kept from training, to set its bias on [0]"),
    )),
    ("distil, all", ("distil", "all"), (
        ("--kd_temperature", "T", softness, 2.0, "softens teacher and student [2]"),
        ("--kd_alpha", "X", share, 0.5, "weight of KD against cross-entropy [0.5]"),
        ("--transfer_size", "N", size, 0, f"extra sentences, teacher-labelled [0; nano {NANO['transfer_size']}]"),
        ("--transfer_source", None, ("edits", "written", "both"), "edits", "edited, or written by the base [edits]"),
        ("--hint_weight", "X", number(float, 0, 1e6), 0.0, f"weight of the teacher's hidden states [0; nano {NANO['hint_weight']:g}]"),
        ("--hint_width", "N", count, 128, "how many of their components [128]"),
        ("--embedding_start", None, ("random", "teacher"), "random", "where the student's embedding starts [random]"),
    )),
    ("distil", ("distil",), (
        ("--teacher", "DIR", Path, None, "a LoRA run [the one of this variant and sr_no]"),
    )),
    ("gen", ("gen",), (
        ("--prompt", "TEXT", str, "The teacher", "the text to continue ['The teacher']"),
        ("--max_new_tokens", "N", count, 50, "tokens to add [50]"),
        ("--temperature", "X", number(float, 0), 0.8, "0 takes the likeliest token [0.8]"),
        ("--top_k", "N", size, 50, "sample among the N likeliest; 0 all [50]"),
        ("--top_p", "P", number(float, 0, 1, open_low=True), 1.0, "sample among the likeliest of this mass [1]"),
        ("--num_samples", "N", count, 1, "how many continuations [1]"),
    )),
    ("predict, export", ("predict", "export"), (
        ("--checkpoint", "DIR", Path, None, "any saved teacher or student [as --teacher]"),
    )),
    ("predict", ("predict",), (
        ("sentences", "SENTENCE", str, [], "to judge; none: from --input or standard input"),
        ("--input", "FILE", Path, None, "one sentence a line"),
        ("--json", None, bool, False, "one JSON object a line instead of a table"),
    )),
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> None:
        """Print the line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see --help\n" if is_main() else None)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line; ``given`` holds the names of the options it had."""
    hints = ", ".join(f"--{name} {value}" for name, value in RECIPES["hints"]["distil"].items())
    parser = Parser(
        prog="run.py",
        usage="run.py --mode MODE [options] [SENTENCE ...]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 26, 80),
        description="Decoders on CoLA: LoRA fine-tuning, and distillation into a small RNN.",
        epilog="Defaults are in brackets; those of training are the published hyperparameters. "
        f"--recipe hints is for distil: {hints}; rnn takes as many steps, with the last four of "
        "these and its best epoch by MCC. With smollm2 and CoLA on two cores the first student takes "
        "an hour, most of it for the sentences, which serve every other one in the same --out_dir; "
        "the next takes minutes. --precision bf16 takes half, where the CPU has it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--mode", required=True, choices=MODES, metavar="MODE", help=", ".join(MODES)
    )
    defaults, modes_of = {}, {}
    for title, modes, rows in OPTIONS:
        group = parser.add_argument_group(title)
        for flag, metavar, kind, default, text in rows:
            settings = {"help": text, "default": argparse.SUPPRESS}
            if kind is bool:
                settings["action"] = "store_true"
            elif isinstance(kind, tuple):
                settings |= {"choices": kind, "metavar": "|".join(kind)}
            else:
                settings |= {"type": kind, "metavar": metavar}
            if not flag.startswith("--"):
                settings["nargs"] = "*"
            name = group.add_argument(flag, **settings).dest
            defaults[name], modes_of[name] = default, (flag, modes)
    args = parser.parse_intermixed_args(argv)
    args.given = {name for name in vars(args) if name in defaults and vars(args)[name] != []}
    for name in sorted(args.given):
        flag, modes = modes_of[name]
        if args.mode not in modes:
            parser.error(
                f"{flag} means nothing to --mode {args.mode}: it is for {', '.join(modes)}"
            )
    for name, default in defaults.items():
        if name not in args.given:
            setattr(args, name, default)
    args.serial, args.sr_nos = args.sr_no
    args.sr_no = args.sr_nos[0]
    if len(args.sr_nos) > 1 and args.mode not in (*TRAINING, "report"):
        parser.error(f"--sr_no: --mode {args.mode} takes one number")
    nano = args.gpt_variant == "nano"
    if args.data_dir is None:
        args.data_dir = PROJECT / ("nano/corpus" if nano else "cola_public")
    for name, value in NANO.items() if nano and "recipe" not in args.given else ():
        if name not in args.given:
            setattr(args, name, value)
    if args.mode in ("distil", "all"):
        taught = options_of(args, args.sr_no, "distil", 1)
        for name, needed in (("transfer_source", "transfer_size"), ("hint_width", "hint_weight")):
            if name in args.given and not getattr(taught, needed):
                parser.error(f"--{name} means nothing without --{needed}")
    args.command = shlex.join(["python", "run.py", *(sys.argv[1:] if argv is None else argv)])
    return args


def dispatch(args: argparse.Namespace) -> None:
    """Run the mode; what it needs is imported here."""
    if args.mode in TRAINING:
        with process_group():
            train(args)
    if not is_main():
        return
    if args.mode in ("report", "all"):
        from report import run_report

        run_report(args)
    elif args.mode == "gen":
        from predict import run_gen

        run_gen(args)
    elif args.mode == "predict":
        from predict import run_predict

        run_predict(args)
    elif args.mode == "export":
        from support.checkpoints.export import run_export

        run_export(args)


def train(args: argparse.Namespace) -> None:
    """Train for each sr_no, in one mode or in all, on one base and one corpus; draw the curves."""
    from data_utils import TRAIN, load_corpus
    from support.bases.loading import find_base

    base = find_base(args.gpt_variant, weights=args.mode != "rnn")
    corpus = load_corpus(args.data_dir, base.tokenizer, base.max_length)
    modes = ("LoRA", "rnn", "distil") if args.mode == "all" else (args.mode,)
    sentences = len(corpus[TRAIN])
    for mode in modes:
        if held_out := options_of(args, args.sr_no, mode, sentences).held_out:
            from distil import hold_out

            hold_out(corpus, held_out)  # refused before an hour has gone by
    for sr_no, mode in product(args.sr_nos, modes):
        one = options_of(args, sr_no, mode, sentences)
        if mode == "LoRA":
            from lora import run_lora

            folder = run_lora(one, base, corpus)
        else:
            from distil import run_student

            folder = run_student(one, mode, base, corpus)
        if is_main():
            from support.reporting.plots import plot_curves

            plot_curves(folder.name, [folder], args.out_dir / "plots")


def options_of(
    args: argparse.Namespace, sr_no: int, mode: str, sentences: int
) -> argparse.Namespace:
    """The options of one run: those given, and the recipe's for its mode.

    ``sentences`` are those of the training split.
    """
    recipe = RECIPES[args.recipe]
    changes = {n: v for n, v in recipe[mode].items() if n not in args.given}
    if "epochs" not in recipe[mode] and (args.mode == "all" or "epochs" not in args.given):
        taught = options_of(args, sr_no, "distil", sentences)
        labelled = max(sentences - taught.held_out, 1)
        changes["epochs"] = round(taught.epochs * (1 + taught.transfer_size / labelled))
    return argparse.Namespace(**vars(args) | changes | {"sr_no": sr_no})


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 what the user can mend, 130 interrupted."""
    args = parse(argv)
    try:
        dispatch(args)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return interrupted(args)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return interrupted(args) if args.mode in TRAINING else 0
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        # Every process of a machine meets the user's errors: one says so.
        if is_first_of_machine() or not isinstance(error, UserError):
            print(f"run.py: error: {line}", file=sys.stderr)
        return 2


def interrupted(args: argparse.Namespace) -> int:
    """Say how to go on; returns the exit status."""
    again = ""
    if args.mode in TRAINING:
        without = " without --overwrite" if args.overwrite else ""
        again = f"; the same command{without} goes on from the last save"
    if is_main():
        print(f"\nrun.py: interrupted{again}", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
