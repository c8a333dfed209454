"""``carom validate``: every system of the library against its closed form, in one table."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .console import clear_errors, console


def validate_command(
    only: Annotated[str, typer.Option(help="Only systems whose name holds this, e.g. langevin.")] = "",
) -> None:
    """Check every system against a closed form: the reference, what this installation measures, the error.

    Ends with status 1 if a check fails. The tests check far more; this is what can be seen in half a minute.
    """
    with clear_errors():
        from tqdm import tqdm

        from .validation.references import REFERENCES, validate

        chosen = [r for r in REFERENCES if only.lower() in r.system.lower()]
        if not chosen:
            raise ValueError(
                f"--only: got {only!r}, expected part of one of: {', '.join(dict.fromkeys(r.system for r in REFERENCES))}"
            )
        outcomes = list(tqdm(validate(chosen), total=len(chosen), desc="validate", unit="check", leave=False))
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("system", "quantity"):
            table.add_column(name, ratio=1, min_width=19 if name == "system" else None)
        for name in ("reference", "measured", "error", ""):
            table.add_column(name, no_wrap=True)
        for o in outcomes:
            r = o.reference
            verdict = "[green]ok[/green]" if o.passed else "[red]FAILED[/red]"
            table.add_row(r.system, r.quantity, _short(r.value), _short(o.measured), f"{o.error:.0e}", verdict)
        console.print(table)
        failed = [o for o in outcomes if not o.passed]
        for o in failed:
            why = o.failure or f"error {o.error:.2e}, allowed {o.reference.tolerance:.0e}"
            console.print(f"{o.reference.system}, {o.reference.quantity}: {why}", style="red", markup=False)
        console.print(f"{len(outcomes) - len(failed)} of {len(outcomes)} checks agree with their closed forms")
        if failed:
            raise typer.Exit(1)


def _short(value: float) -> str:
    """Eight digits of a number; of one that stands for 0, its size."""
    return f"{value:.8g}" if value == 0 or abs(value) > 1e-7 else f"{value:.0e}"
