"""Read and check the command line by the table of options."""

import argparse
import difflib
import shlex
import sys
from argparse import Namespace

from support import PROJECT
from support.options import MODES, OPTIONS, TRAINING, chosen
from support.processes import is_main


class Parser(argparse.ArgumentParser):
    """Report an error in one line; of several processes the main one does."""

    mode: str | None = None

    def error(self, message: str) -> None:
        """Print the line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see --help\n" if is_main() else None)

    def format_help(self) -> str:
        """Return the modes, or one mode's options."""
        from support.help import mode_help, overview  # nobody asks for it in a run

        return mode_help(self.mode) if self.mode else overview()


def parse(argv: list[str] | None) -> Namespace:
    """Parse and check the command line; ``given`` names the options that it has."""
    argv = sys.argv[1:] if argv is None else argv
    mode = mode_in(argv)
    parser = parser_of(mode)
    args, by_name = parser.parse_intermixed_args(argv), {option.name: option for option in OPTIONS}
    args.given = {name for name in by_name if getattr(args, name, []) != []}
    for name, option in by_name.items():
        if name not in args.given:
            setattr(args, name, option.default)
        elif mode not in option.modes:
            modes = ", ".join(option.modes)
            parser.error(f"{option.flag} means nothing to --mode {mode}: it is for {modes}")
    args.serial, args.sr_nos = args.sr_no
    args.sr_no = args.sr_nos[0]
    if len(args.sr_nos) > 1 and mode not in (*TRAINING, "report"):
        parser.error(f"--sr_no: --mode {mode} takes one number")
    if mode == "export" and len(args.checkpoint) > 1:
        parser.error("--checkpoint: --mode export takes one")
    nano = args.gpt_variant == "nano"
    args.recipe = args.recipe or ("nano" if nano else "published")
    args.data_dir = args.data_dir or PROJECT / ("nano/corpus" if nano else "cola_public")
    needs = {
        "transfer_source": "transfer_size", "hint_width": "hint_weight", "threshold": "held_out",
    }  # fmt: skip
    for name, needed in needs.items():
        if mode in TRAINING and name in args.given and not chosen(args, by_name[needed], "distil"):
            parser.error(f"--{name} means nothing without --{needed}")
    if args.transfer_file and chosen(args, by_name["transfer_source"], "distil") == "edits":
        parser.error("--transfer_file means nothing without --transfer_source written or both")
    args.command = shlex.join(["python", "run.py", *argv])
    return args


def mode_in(argv: list[str]) -> str:
    """Return the mode that a command line names; an unknown one is an error that names its like."""
    parser = Parser(prog="run.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--mode")
    mode = parser.parse_known_args(argv)[0].mode
    if mode is None and {"-h", "--help"} & set(argv):
        parser.print_help()
        parser.exit()
    if mode not in MODES:
        known = {name.lower(): name for name in MODES}
        like = difflib.get_close_matches(str(mode).lower(), known, 1, 0.7)
        advice = f"did you mean {known[like[0]]}?" if like else f"choose one of {', '.join(MODES)}"
        parser.error(f"--mode{f' {mode}' if mode else ''}: {advice}")
    return mode


def parser_of(mode: str) -> Parser:
    """Return the parser of every option; one that means nothing to the mode is refused later."""
    parser = Parser(prog="run.py", allow_abbrev=False)
    parser.mode = mode
    parser.add_argument("--mode")
    for option in OPTIONS:
        settings = {"type": option.kind}
        if option.kind is bool:
            settings = {"action": "store_true"}
        elif isinstance(option.kind, tuple):
            settings = {"choices": option.kind}
        if option.default == []:
            settings |= {"action": "append"} if option.flag.startswith("--") else {"nargs": "*"}
        parser.add_argument(option.flag, default=argparse.SUPPRESS, **settings)
    return parser
