"""``carom validate``: all references hold, and a wrong one is noticed."""

from __future__ import annotations

import dataclasses
import math

import pytest
from typer.testing import CliRunner

from carom.cli import app
from carom.validation import references
from carom.validation.references import REFERENCES, Reference, validate

runner = CliRunner()


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: f"{r.system}, {r.quantity}")
def test_the_system_agrees_with_its_closed_form(reference: Reference) -> None:
    (outcome,) = validate([reference])
    assert outcome.passed, f"{outcome.measured} instead of {reference.value}: {outcome.failure}"
    # a tolerance that any number would meet is none
    assert reference.tolerance <= 1e-6 * max(1.0, abs(reference.value))


def broken() -> float:
    raise RuntimeError("no flow")


def test_what_is_off_not_a_number_or_raises_fails_and_the_rest_goes_on() -> None:
    good = next(r for r in REFERENCES if r.system == "VP SDE")
    wrong = dataclasses.replace(good, value=good.value + 1e-9)
    outcomes = list(
        validate(
            [
                wrong,
                dataclasses.replace(good, measure=lambda: math.nan),
                dataclasses.replace(good, measure=broken),
                good,
            ]
        )
    )
    assert [o.passed for o in outcomes] == [False, False, False, True]
    assert outcomes[2].failure == "RuntimeError: no flow"
    assert outcomes[0].error == pytest.approx(1e-9, rel=1e-3)


def test_the_command_prints_the_table_and_ends_with_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("80", "160"):
        result = runner.invoke(app, ["validate", "--only", "vp sde"], env={"COLUMNS": columns})
        assert result.exit_code == 0, result.output
        assert "2 of 2 checks agree" in result.output and "0.94070214 " in result.output
        assert result.output.count("variance at t = ½") == 2 and " ok" in result.output
    good = next(r for r in REFERENCES if r.system == "VP SDE")
    monkeypatch.setattr(references, "REFERENCES", [dataclasses.replace(good, value=1.0)])
    result = runner.invoke(app, ["validate"], env={"COLUMNS": "160"})
    assert result.exit_code == 1 and "FAILED" in result.output and "error 5.93e-02, allowed 1e-11" in result.output
    monkeypatch.setattr(references, "REFERENCES", [good, dataclasses.replace(good, measure=broken)])
    result = runner.invoke(app, ["validate"], env={"COLUMNS": "160"})
    assert result.exit_code == 1 and "RuntimeError: no flow" in result.output and "1 of 2 checks agree" in result.output
    result = runner.invoke(app, ["validate", "--only", "teleport"])
    assert result.exit_code == 2 or result.exit_code == 1
    assert "expected part of one of: VP SDE" in " ".join(result.output.split())
