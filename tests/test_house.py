"""The house itself: imports run one way, and the pages name what is there."""

import ast
import re
import sys
from graphlib import TopologicalSorter

import pytest

from support.bases.loading import PROJECT

sys.path.insert(0, str(PROJECT / "bench"))
from results import with_tables

STORY = ["run", "report", "predict", "distil", "lora", "train_utils", "model", "data_utils"]
PAGES = ["README.md", "bench/README.md", "nano/README.md"]


def imports() -> dict[str, set[str]]:
    """Each module of the story and of support, and those of them that it imports anywhere."""
    files = [PROJECT / f"{name}.py" for name in STORY] + sorted((PROJECT / "support").rglob("*.py"))
    names = {str(f.relative_to(PROJECT).with_suffix("")).replace("/", "."): f for f in files}
    graph = {}
    for name, file in names.items():
        nodes = list(ast.walk(ast.parse(file.read_text())))
        found = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        found |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        graph[name] = found & names.keys()
    return graph


def test_imports_run_one_way():
    graph = imports()
    assert "lora" in graph["support.checkpoints.adapters"]
    TopologicalSorter(graph).prepare()  # a circle is a CycleError


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page):
    code = "\n".join(path.read_text() for path in (PROJECT / "tests").glob("test_*.py"))
    for name in re.findall(r"\btest_\w+", (PROJECT / page).read_text()):
        assert f"def {name}(" in code or (PROJECT / "tests" / f"{name}.py").exists(), name


def test_the_readme_names_every_room():
    page = (PROJECT / "README.md").read_text()
    for path in [*PROJECT.glob("*.py"), *(PROJECT / "support").glob("*.py")]:
        assert path.name == "__init__.py" or re.search(rf"^{path.name}|  {path.name} ", page, re.M)


def test_the_readmes_tables_are_those_of_the_files_in_results():
    page = (PROJECT / "README.md").read_text()
    assert page.count("<!-- smollm2_cola: ") >= 4
    assert with_tables(page) == page, "run: python bench/results.py --readme"
    figure = re.search(r"\d\d\.\d\d ± \d\.\d\d%|\d\d\.\d\d%, MCC", page)[0]
    assert with_tables(page.replace(figure, "99.99%, MCC")) == page  # it would be seen
