#!/usr/bin/env python3
"""The front door: dispatch, and what the exit status says. Options: support/options.py.

Nothing heavy is imported before a mode runs.
"""

import argparse
import os
import sys
from itertools import product

from support.errors import UserError, explain
from support.options import MODES, TRAINING, mode_and_help, options_of, parse, settings_of
from support.processes import PeerLost, is_first_of_machine, is_main, process_group, together
from support.setup import setup


def dispatch(args: argparse.Namespace) -> None:
    """Run the mode; what it needs is imported here."""
    if args.mode in TRAINING:
        with process_group():
            train_runs(args)
    if not is_main() or args.mode in ("LoRA", "distil", "rnn"):
        return
    if args.mode == "gen":
        from predict import run_gen as run
    elif args.mode == "predict":
        from predict import run_predict as run
    elif args.mode == "export":
        from predict import run_export as run
    else:
        from report import run_report as run
    run(args)


def train_runs(args: argparse.Namespace) -> None:
    """Train for each sr_no, in one mode or in all, on one base and one corpus; draw the curves."""
    from data_utils import hold_out, tokenize_corpus
    from support.bases import find_base
    from support.corpus import TRAIN, read_corpus
    from support.sentences import Columns

    with together():
        base = find_base(args.gpt_variant, weights=args.mode != "rnn")
        columns = Columns(args.text_column, args.label_column, args.positive)
        data = read_corpus(args.data_dir, columns)
        corpus = tokenize_corpus(data, base.tokenizer, base.max_length)
    args.data = data.facts
    for line in data.understood:
        print(line, file=sys.stderr)
    if base.kind == "folder":  # which takes precedence over the hub's base of that name
        print(f"note: base {base.name}: a folder, {base.folder.resolve()}", file=sys.stderr)
    if args.mode != "LoRA":
        # Too large a --held_out fails now, and not after hours of training a teacher.
        hold_out(corpus, settings_of(args, "rnn")["held_out"])
    modes = ("LoRA", "rnn", "distil") if args.mode == "all" else (args.mode,)
    for sr_no, mode in product(args.sr_nos, modes):
        if mode == "LoRA":
            from finetune import run_lora as run
        elif mode == "distil":
            from distil import run_distil as run
        else:
            from distil import run_rnn as run
        folder = run(options_of(args, mode, sr_no, len(corpus[TRAIN])), base, corpus)
        if is_main():
            from support.reporting.curves import plot_curves

            plot_curves(folder.name, [folder], args.out_dir / "plots")


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0 done, 2 what the user can mend, 130 interrupted."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the shell has closed it, as by >&-
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  open to the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # any sentence can be printed, whatever the locale says
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    wanted = mode_and_help(argv)
    if wanted.help or wanted.mode not in MODES:
        from support.help import answer  # which no run needs

        answer(wanted)
    args = parse(argv)
    try:
        setup()
        dispatch(args)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return interrupted(args)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return interrupted(args) if args.mode in TRAINING else 0
    except PeerLost:  # the other process has said why
        return 2
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        # Every process of a machine meets the user's errors: one says so.
        if is_first_of_machine() or not isinstance(error, UserError):
            print(f"run.py: error: {line}", file=sys.stderr)
        return 2


def interrupted(args: argparse.Namespace) -> int:
    """Print how to go on; return the exit status."""
    again = ""
    if args.mode in TRAINING:
        # With it, what this command has finished already would be trained again.
        without = " without --overwrite" if args.overwrite else ""
        again = f"; the same command{without} goes on from the last save"
    if is_main():
        print(f"\nrun.py: interrupted{again}", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
