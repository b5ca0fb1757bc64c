"""Answer --help, and a command line without a mode that there is."""

import difflib
from argparse import ArgumentParser, HelpFormatter, Namespace

ABOUT = {  # what a mode does, and an example
    "gen": ("continue a prompt", "--mode gen --prompt 'The teacher'"),
    "LoRA": ("fine-tune a base on CoLA with LoRA", "--mode LoRA --gpt_variant gpt2-medium"),
    "distil": ("teach the student; needs a LoRA run", "--mode distil --sr_no 22915"),
    "rnn": ("train the student without a teacher", "--mode rnn"),
    "predict": ("judge sentences; a student ships", "--mode predict 'The cat sleeps.'"),
    "export": ("a saved model for other programs", "--mode export --checkpoint DIR"),
    "report": ("compare the finished runs", "--mode report --sr_no 22915-22919"),
    "all": ("LoRA, rnn, distil and report in a row", "--mode all --gpt_variant nano"),
}


def answer(parser: ArgumentParser, wanted: Namespace, recipes: dict) -> None:
    """Print the modes, or one mode's options, and exit; an unknown mode is an error."""
    mode = wanted.mode
    if mode in ABOUT:
        print(options_of_mode(mode, parser, recipes), end="")
    elif mode is None and wanted.help:
        print(modes())
    else:
        known = {name.lower(): name for name in ABOUT}
        like = difflib.get_close_matches(str(mode).lower(), known, 1, 0.7)
        advice = f"did you mean {known[like[0]]}?" if like else f"choose one of {', '.join(ABOUT)}"
        parser.error(f"--mode {mode}: {advice}" if mode else f"--mode: {advice}")
    parser.exit()


def modes() -> str:
    """Return each mode with what it does and an example."""
    rows = [f"  {mode:<8} {does:<40} run.py {example}" for mode, (does, example) in ABOUT.items()]
    return "\n".join([
        "Decoders on CoLA: LoRA fine-tuning, and distillation into a small RNN.\n",
        "usage: python run.py --mode MODE [options] [SENTENCE ...]\n",
        *rows,
        "\npython run.py --mode MODE --help lists the options of a mode.",
    ])  # fmt: skip


def options_of_mode(mode: str, parser: ArgumentParser, recipes: dict) -> str:
    """Return a mode's options, each with its published value, and what the recipes set."""
    does, example = ABOUT[mode]
    parser.usage, parser.description = f"python run.py {example}", f"{mode}: {does}."
    parser.formatter_class = lambda prog: HelpFormatter(prog, max_help_position=36, width=100)
    for recipe, by_mode in recipes.items():
        for student, values in by_mode.items():
            if mode in (student, "all"):
                words = " ".join(f"--{name} {value}" for name, value in values.items())
                if (recipe, student) == ("hints", "rnn"):
                    words += "; it takes as many steps as distil"
                parser.add_argument_group(f"--recipe {recipe}, {student}", words)
    return parser.format_help()
