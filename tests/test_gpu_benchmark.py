"""``benchmarks/gpu.py`` where there is no GPU: what it says there, that its sections run, that its checks can fail."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture
def checks(gpu: ModuleType) -> ModuleType:
    return importlib.import_module("gpu_checks")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so_and_ends(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_every_section_runs_small(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, timed = tmp_path / "gpu.md", ["bandwidth", "sampling", "training", "memory"]
    page.write_text("# On a GPU\n\nA text.\n\n## Measured\n\nan old table\n")
    assert gpu.main(["--device", "cpu", "--quick", "--only", *timed, "--markdown", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# On a GPU\n\nA text.\n\n## Measured\n\nCPU, torch ") and "old table" not in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert {row[0][2:] for row in rows} == set(timed) and all(len(row) == 4 for row in rows)
    assert rows == [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]


def test_a_section_that_fails_is_reported_and_the_others_go_on(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(setting: Any) -> Iterator[Any]:
        yield gpu.Row("first", "1")
        raise RuntimeError("no room | none\nat all")

    monkeypatch.setattr(
        gpu, "SECTIONS", {"broken": broken, "whole": lambda setting: iter([gpu.Row("last", "2", True)])}
    )
    assert gpu.main(["--device", "cpu", "--quick"]) == 1
    *_, first, failed, last, verdict = capsys.readouterr().out.splitlines()
    assert first == "| broken | first | 1 |  |"
    assert failed == "| broken | ended by RuntimeError | no room / none | **FAIL** |"
    assert last == "| whole | last | 2 | pass |" and verdict == "1 failed"


def test_numbers_by_the_formulas_of_an_accelerator_are_within_the_bounds(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where values are not read both series are summed everywhere and one is chosen: so it is on a GPU, but for its rounding."""
    differ = 0

    def compared(what: str, on: Callable[[torch.device], torch.Tensor], device: torch.device, bound: float) -> Any:
        nonlocal differ
        with monkeypatch.context() as context:
            for name, module in list(sys.modules.items()):
                if name.startswith("carom.") and hasattr(module, "values_are_readable"):
                    context.setattr(module, "values_are_readable", lambda *tensors: False)
            chosen = on(device)
        error = checks.difference(chosen, on(CPU))
        differ += error > 0
        return checks.Row(what, f"{error:.1e}", error <= bound)

    monkeypatch.setattr(checks, "compared", compared)
    rows = list(checks.numerics(CPU))
    assert len(rows) > 80 and all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert differ > 15


def test_numbers_that_differ_or_are_not_finite_fail(checks: ModuleType) -> None:
    for wrong in (1 + 3e-9, float("nan"), float("inf")):
        values = iter([torch.tensor([1.0, wrong], dtype=torch.float64), torch.ones(2).double()])
        assert checks.compared("", lambda d, values=values: next(values), CPU, 1e-9).passed is False
    values = iter([torch.tensor([1.0, 1 + 1e-9], dtype=torch.float64), torch.ones(2).double()])
    assert checks.compared("", lambda d: next(values), CPU, 1e-9).passed


def test_waits_are_counted_and_refused_where_torch_reports_them(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for CUDA: sync-debug mode as torch has it, which warns or raises in each operation that waits."""
    import warnings

    mode = "default"

    def set_mode(value: str) -> None:
        nonlocal mode
        mode = value

    def operation() -> None:
        if mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nmore")
        if mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    cuda = torch.device("cuda")
    assert checks.waits(lambda: [operation() for _ in range(3)], cuda) == 3 and mode == "default"
    row = checks.never_waits("a loss", operation, cuda)
    assert row == ("a loss", "waits: called a synchronizing CUDA operation", False) and mode == "default"
    assert checks.never_waits("a loss", lambda: None, cuda).passed


def test_losses_and_solves_are_watched_for_waits(checks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DOMAINS", checks.DOMAINS[2:4])
    rows = list(checks.syncs(CPU))
    assert all(row.passed for row in rows) and len(rows) == 2 * 4 + 2 * 6
