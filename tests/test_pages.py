"""The Python on the pages of docs/ that needs no files of its own runs as it stands, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["likelihood", "systems"])
def test_the_code_of_a_page_runs(page: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    code = "\n".join(blocks)
    exec(compile(code, f"{page}.md", "exec"), {})
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) >= code.count("print(") > 0 and "nan" not in printed


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_what_a_page_links_to_exists(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", (DOCS / page).read_text())
    assert all((DOCS / link).exists() for link in links), links
