"""Write what --help says, from the table of options."""

import textwrap

from support.options import MODES, OPTIONS, RECIPES, STUDENTS, Option

LEFT, WIDTH = 28, 100  # columns


def overview() -> str:
    """Return the modes, each with what it does and an example."""
    lines = [f"  {mode:<8} {does:<40} run.py {example}" for mode, (does, example) in MODES.items()]
    return "\n".join([
        "Decoders on CoLA: LoRA fine-tuning, and distillation into a small RNN.\n",
        "usage: python run.py --mode MODE [options] [SENTENCE ...]\n",
        *lines,
        "\npython run.py --mode MODE --help lists the options of a mode.\n",
    ])  # fmt: skip


def mode_help(mode: str) -> str:
    """Return a mode's options, each with its default, and what the recipes set there."""
    does, example = MODES[mode]
    lines = [f"{mode}: {does}.\n", f"example: python run.py {example}\n"]
    for option in OPTIONS:
        if mode in option.modes:
            flag = option.flag if option.flag.startswith("--") else ""
            metavar = "|".join(option.kind) if isinstance(option.kind, tuple) else option.metavar
            left = f"  {flag} {metavar or ''}"
            words = textwrap.wrap(option.help + default_of(option, mode), WIDTH - LEFT)
            if len(left) > LEFT - 2:
                lines.append(left)
                left = ""
            lines += [f"{left:<{LEFT}}{words[0]}", *(" " * LEFT + more for more in words[1:])]
    student = "distil" if mode == "all" else mode
    for recipe in tuple(RECIPES)[1:] if mode in STUDENTS else ():
        rows = [
            option for option in OPTIONS if recipe in option.recipes and student in option.modes
        ]
        values = [(option.flag, option.value(recipe, student)) for option in rows]
        words = " ".join(f"{flag} {value}" for flag, value in values if value is not None)
        lines.append("")
        words += f"; {cost}" if student == "distil" and (cost := RECIPES[recipe]) else ""
        lines += textwrap.wrap(f"--recipe {recipe} is {words}", WIDTH, subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def default_of(option: Option, mode: str) -> str:
    """Return an option's default in brackets; nothing where there is none."""
    default = option.default if mode == "all" else option.value("published", mode)
    if isinstance(default, dict):
        default = ", ".join(f"{name} {value}" for name, value in default.items())
    if isinstance(default, tuple):
        default = default[0]
    return "" if default is None or default is False or default == [] else f" [{default}]"
