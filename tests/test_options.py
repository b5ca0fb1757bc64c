"""The one table of options: recipes, one run's options, and the help."""

import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from support import PROJECT
from support.command_line import parse
from support.options import MODES, OPTIONS, RECIPES, options_of, published


def options_for(mode: str, *words, of: str = "all") -> SimpleNamespace:
    """One run's options on a corpus of 8,000 training sentences."""
    return options_of(parse(["--mode", of, *map(str, words)]), mode, 1, 8000)


def test_the_published_values_are_the_published_ones():
    """Written out, so that no default can move unseen."""
    common = {
        "batch_size": 128, "lr": 1e-3, "patience": 3, "monitor": "accuracy", "max_steps": None,
        "lr_schedule": "constant",
    }  # fmt: skip
    student = {
        "epochs": 5, "student_width": 768, "student_cell": "rnn", "student_layers": 1,
        "student_dropout": 0, "held_out": 0, "threshold": "balanced",
    }  # fmt: skip
    teaching = {
        "kd_temperature": 2, "kd_alpha": 0.5, "transfer_size": 0, "transfer_source": "edits",
        "hint_weight": 0, "hint_width": 128, "embedding_start": "random",
    }  # fmt: skip
    lora = {"epochs": 10, "lora_rank": 4, "lora_alpha": 4, "lora_dropout": 0}
    assert published("LoRA") == common | lora
    assert published("rnn") == common | student
    assert published("distil") == common | student | teaching
    for mode in ("LoRA", "rnn", "distil"):
        assert options_for(mode, of=mode if mode != "rnn" else "all").settings == published(mode)


def test_a_recipe_is_what_is_not_given():
    hinted = options_for("distil", "--recipe", "hints", "--hint_weight", 3)
    assert (hinted.hint_weight, hinted.transfer_size, hinted.epochs) == (3, 200_000, 6)
    assert (hinted.lr, hinted.monitor, hinted.held_out) == (2e-3, "none", 1000)
    assert (hinted.student_cell, hinted.student_layers) == ("gru", 2)
    assert options_for("LoRA", "--recipe", "hints").settings == published("LoRA")


def test_nanos_own_recipe_has_a_name_and_an_option_overrides_it():
    nano = ("--gpt_variant", "nano")
    small = options_for("distil", *nano, "--hint_weight", 0)
    assert (small.student_width, small.transfer_size, small.hint_weight) == (256, 40_000, 0)
    assert options_for("rnn", *nano).student_width == 256
    assert options_for("distil", *nano, "--recipe", "published").settings == published("distil")
    for mode in ("distil", "rnn"):
        for variant, recipe in (("nano", "nano"), ("gpt2", "published")):
            plain = ("--gpt_variant", variant)
            named = options_for(mode, *plain, "--recipe", recipe)
            assert options_for(mode, *plain).settings == named.settings


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_changes_nothing_for_a_mode_is_refused_there(recipe, capsys):
    with pytest.raises(SystemExit):
        parse(["--mode", "LoRA", "--recipe", recipe])
    assert "--recipe means nothing to --mode LoRA" in capsys.readouterr().err


def test_an_untaught_student_beside_hints_takes_as_many_steps():
    words = ("--recipe", "hints", "--transfer_size", 21_000)  # three times 8,000 - 1,000
    taught, untaught = (options_for(mode, *words) for mode in ("distil", "rnn"))
    assert untaught.epochs == 4 * taught.epochs
    assert untaught.lr_schedule == taught.lr_schedule == "linear"
    assert (untaught.patience, untaught.monitor) == (1000, "mcc")
    assert options_for("rnn", *words, "--epochs", 7).epochs == 4 * 7
    assert options_for("rnn", "--recipe", "hints", "--epochs", 7, of="rnn").epochs == 7
    assert options_for("rnn", "--epochs", 7).epochs == 7


def help_of(*words: str) -> list[str]:
    command = [sys.executable, "run.py", *words, "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.splitlines()


def test_the_first_help_is_short_and_shows_each_mode_with_an_example():
    lines = help_of()
    assert len(lines) <= 40
    for mode in MODES:
        assert any(line.split()[:1] == [mode] and f"run.py --mode {mode}" in line for line in lines)


@pytest.mark.parametrize("mode", MODES)
def test_a_modes_help_shows_its_options_and_no_others(mode):
    words = {word for line in help_of("--mode", mode) for word in line.split()[:1]}
    for option in OPTIONS[:-1]:  # the last one is no flag
        assert (option.flag in words) == (mode in option.modes), option.flag


@pytest.mark.parametrize("mode", MODES)
def test_every_example_of_the_help_can_be_parsed(mode):
    assert parse(shlex.split(MODES[mode][1])).mode == mode
