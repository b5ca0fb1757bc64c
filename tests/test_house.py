"""The house itself: how imports run, and whose figures a page shows."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from bench.results import IN_TRAINING, PAGES, with_tables
from support import PROJECT
from support.corpus import read_corpus

STORY = sorted(PROJECT.glob("*.py"))
ROOMS = sorted((PROJECT / "support").rglob("*.py"))
OTHERS = sorted((PROJECT / "bench").glob("*.py"))
# What a room may import of the story: the types of data, and what makes a batch.
TYPES = {
    "data_utils": {"Split", "Batch", "UNLABELLED", "pack"},
    "lora": {"LoraConfig", "config_in", "PREFIX", "CONFIG", "WEIGHTS"},
}


def name_of(path: Path) -> str:
    """Return a module's name."""
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in (*STORY, *ROOMS, *OTHERS)}


def imports(path: Path) -> dict[str, set[str]]:
    """Return the modules of the project that a file imports anywhere, and which names of each."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, set())
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                module, name = (inner, "*") if inner in MODULES else (node.module, alias.name)
                found.setdefault(module, set()).add(name)
    return {module: names for module, names in found.items() if module in MODULES}


def test_imports_run_one_way():
    """A room imports of the story the types of data alone; nobody imports a benchmark."""
    story = {name_of(path) for path in STORY}
    assert any(imports(path).keys() & TYPES.keys() for path in ROOMS)  # imports are seen
    for path in ROOMS:
        for module, names in imports(path).items():
            assert module not in story or names <= TYPES.get(module, set()), (path, module, names)
    for path in (*STORY, *ROOMS):
        assert not [module for module in imports(path) if module.startswith("bench")], path


def test_there_is_no_circle_of_imports():
    graph = {name: imports(path).keys() - {name} for name, path in MODULES.items()}
    assert "support.corpus" in graph["data_utils"]
    TopologicalSorter(graph).prepare()  # a circle is a CycleError


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_of_a_page_are_those_of_the_files_in_results(page):
    text = page.read_text()
    marks = re.findall(r"^<!-- \w+: \w+ -->$", text, re.M)
    assert len(marks) == text.count("<!-- end -->") > 0
    assert with_tables(text) == text, "run: python -m bench.results --tables"
    figure = re.search(r"\d\d\.\d\d ± \d\.\d\d%", text)[0]
    assert with_tables(text.replace(figure, "99.99 ± 9.99%")) == text  # a wrong one would be seen


def test_the_lines_that_the_tables_leave_out_are_those_that_training_has(cola):
    train, *dev = read_corpus(cola).rows.values()
    known = {row.sentence for row in train}
    found = [[n for n, row in enumerate(rows, 1) if row.sentence in known] for rows in dev]
    assert [*IN_TRAINING.values()] == found
    # Of both copies the label may differ, and case, spacing and the final mark hide one more.
    labels = {row.sentence: row.label for row in train}
    assert sum(row.label != labels.get(row.sentence, row.label) for row in dev[0]) == 2
    alike = {loosely(row.sentence) for row in train}
    assert [sum(loosely(row.sentence) in alike for row in rows) for rows in dev] == [7, 12]


def loosely(sentence: str) -> str:
    """Return a sentence without case, doubled spaces and its final mark."""
    return " ".join(sentence.casefold().split()).rstrip(".?! ")
