"""The options: published values, recipes, one run's options, refusals, and the help."""

import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from support import PROJECT
from support.help import ABOUT, options_of_mode
from support.options import MODES, options_of, parse, published

NANO = ("--gpt_variant", "nano")
HINTS = ("--recipe", "hints")
COMMON = {
    "batch_size": 128, "lr": 1e-3, "patience": 3, "monitor": "accuracy", "max_steps": None,
    "lr_schedule": "constant",
}  # fmt: skip
STUDENT = {
    "epochs": 5, "student_width": 768, "student_cell": "rnn", "student_layers": 1,
    "student_dropout": 0, "held_out": 0, "threshold": "balanced",
}  # fmt: skip
TEACHING = {
    "kd_temperature": 2, "kd_alpha": 0.5, "transfer_size": 0, "transfer_source": "edits",
    "hint_weight": 0, "hint_width": 128, "embedding_start": "random",
}  # fmt: skip
LORA = {"epochs": 10, "lora_rank": 4, "lora_alpha": 4, "lora_dropout": 0}
PUBLISHED = {
    "LoRA": COMMON | LORA, "rnn": COMMON | STUDENT, "distil": COMMON | STUDENT | TEACHING,
}  # fmt: skip
WIDE = {"batch_size": 512, "lr": 2e-3, "lr_schedule": "linear", "held_out": 1000}
WIDE |= {"student_cell": "gru", "student_layers": 2, "student_dropout": 0.3}
WRITTEN = {"transfer_source": "written", "hint_weight": 30, "embedding_start": "mapped"}
TAUGHT = WIDE | WRITTEN | {"kd_alpha": 0.9, "epochs": 6, "monitor": "none"}
TAUGHT |= {"transfer_size": 200_000}


def options_for(mode: str, *words, of: str = "all") -> SimpleNamespace:
    """One run's options on a corpus of 8,000 training sentences."""
    return options_of(parse(["--mode", of, *map(str, words)]), mode, 1, 8000)


@pytest.mark.parametrize("of", ["all", "its own"])
@pytest.mark.parametrize(
    ("mode", "words", "changed"),
    [
        ("LoRA", (), {}),
        ("rnn", (), {}),
        ("distil", (), {}),
        ("distil", (*NANO, "--recipe", "published"), {}),
        ("LoRA", NANO, {}),
        ("rnn", NANO, {"student_width": 256}),
        ("distil", NANO, {"student_width": 256, "transfer_size": 40_000, "hint_weight": 10}),
        ("distil", HINTS, TAUGHT),
        # As many steps as one that is taught: 200,000 beside 7,000 are 29.57 times as many.
        ("rnn", HINTS, WIDE | {"epochs": 177, "monitor": "mcc", "patience": 1000}),
        ("LoRA", ("--lora_rank", 8), {"lora_rank": 8, "lora_alpha": 8}),
        ("LoRA", ("--lora_rank", 8, "--lora_alpha", 2), {"lora_rank": 8, "lora_alpha": 2}),
        ("distil", (*HINTS, "--hint_weight", 0, "--lr", 1), TAUGHT | {"hint_weight": 0, "lr": 1}),
    ],
)
def test_the_options_of_a_run_are_the_published_ones_the_recipes_and_those_given(
    mode, words, changed, of
):
    """Written out, so that no default can move unseen."""
    found = options_for(mode, *words, of="all" if of == "all" else mode)
    assert published(mode) == PUBLISHED[mode]
    assert found.settings == PUBLISHED[mode] | changed
    assert vars(found).items() >= found.settings.items()


def test_an_untaught_student_beside_hints_takes_as_many_steps():
    words = (*HINTS, "--transfer_size", 21_000)  # three times 8,000 - 1,000
    assert options_for("rnn", *words).epochs == 4 * options_for("distil", *words).epochs
    assert options_for("rnn", *words, "--epochs", 7).epochs == 4 * 7
    assert options_for("rnn", *HINTS, "--epochs", 7, of="rnn").epochs == 7
    assert options_for("rnn", "--epochs", 7).epochs == 7


def test_help_is_short_and_imports_nothing_heavy():
    code = (
        "import sys, run\n"
        "try: run.main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'pandas', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    for words in ((), ("--mode", "distil")):
        command = [sys.executable, "-c", code, *words, "--help"]
        printed = subprocess.check_output(command, cwd=PROJECT, encoding="utf-8")
        assert printed.count("\n") <= 60
    modes = subprocess.check_output([sys.executable, "run.py", "-h"], cwd=PROJECT, text=True)
    for mode in MODES:
        assert re.search(rf"^  {mode} .* run.py --mode {mode}\b", modes, re.M)


@pytest.mark.parametrize("mode", MODES)
def test_a_modes_help_has_its_options_and_what_the_recipes_set(mode):
    """Every mode's options, and of those in the identity each published value."""
    runs = {"all": tuple(PUBLISHED), **{name: (name,) for name in PUBLISHED}}.get(mode, ())
    known = {name for run in runs for name in PUBLISHED[run]} | {"sr_no", "gpt_variant", "out_dir"}
    if mode not in ("export", "report"):
        known |= {"device", "precision"}
    known |= {"data_dir", "overwrite", "tensorboard"} if runs else set()
    columns = {"text_column", "label_column", "positive"}
    known |= columns if runs or mode == "predict" else set()
    known |= {"recipe"} if runs and mode != "LoRA" else set()
    known |= {"transfer_file"} if "distil" in runs else set()
    known |= {
        "distil": {"teacher"},
        "gen": {"prompt", "max_new_tokens", "temperature", "top_k", "top_p", "num_samples"},
        "predict": {"checkpoint", "input", "json", "threshold"},
        "export": {"checkpoint"},
    }.get(mode, set())
    text = options_of_mode(mode)
    options, *recipes = text.split("--recipe hints, ")
    assert set(re.findall(r"^  --(\w+)", options, re.M)) == known
    for run in runs:
        for name, value in (PUBLISHED[run] | {"epochs": ""}).items():
            if name not in ("lora_alpha", "max_steps", "threshold"):
                assert re.search(rf"--{name}\b[^[]*\[.*{value}", options), name
    assert len(recipes) == len(set(runs) - {"LoRA"})
    assert ("--hint_weight 30.0" in text) == ("distil" in runs)
    words = shlex.split(ABOUT[mode][1])
    assert parse(words).mode == mode  # the example
