"""docs/notes.md promises a function, a script and a test for each slide of the lecture notes: all of them exist."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "notes.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and line.count("|") == 7 and not line.startswith("| slide")
]


@functools.cache
def names_in(name: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / f"{name}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def resolve(name: str) -> object:
    """The object of a dotted name: the longest part that imports, then attributes."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_a_slide_names_exists(row: list[str]) -> None:
    slide, formula, errata, functions, example, test = row
    assert slide and formula
    for name in re.findall(r"`([^`]+)`", functions):
        assert resolve(name) is not None
    scripts = re.findall(r"\(\.\./([^)]+)\)", example)
    assert scripts and all((ROOT / path).is_file() for path in scripts), scripts
    file, name = test.strip("`").split("::")
    assert name in names_in(file), test
    for erratum in re.findall(r"E\d+", errata):
        assert f"\n| {erratum} |" in PAGE, erratum


def test_every_slide_has_its_row_and_every_erratum_its_place() -> None:
    assert len(ROWS) >= 57
    listed = {line.split("|")[1].strip() for line in PAGE.splitlines() if re.match(r"\| E\d+ \|", line)}
    assert listed == {f"E{k}" for k in range(1, 35)}


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_says_what_it_shows_prints_it_and_is_named_on_a_page(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 40
    assert "print(" in source and ast.get_docstring(ast.parse(source))
    pages = PAGE + (ROOT / "README.md").read_text()
    assert f"examples/{path.name})" in pages
