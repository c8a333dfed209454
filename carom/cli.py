"""The command line: ``carom demo | train | sample | likelihood | inpaint | solvers``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from . import __version__
from .console import clear_errors, console
from .inpaint_command import inpaint_command
from .likelihood_command import likelihood_command
from .rules import SOLVERS
from .sample_command import sample_command
from .train_command import train_command
from .validate_command import validate_command

# Threads that spin while they wait make each other wait where the cores are shared: a training step can then take ten times
# as long. Read when torch is first imported, which no line above does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Diffusions that stay where the data lives.")


def _version(show: bool) -> None:
    if show:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Diffusions that stay where the data lives."""


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=1.0, help="Training time.")] = 90.0,
    out: Annotated[Path, typer.Option(help="Where pictures, checkpoint and report go.")] = Path("out/demo"),
    samples: Annotated[int, typer.Option(min=64, help="Images per solver.")] = 360,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the checkpoint in the output folder.")] = False,
) -> None:
    """Train on handwritten digits in the unit cube, then sample the same weights with five solvers."""
    with clear_errors():
        from .demo import run_demo

        if run_demo(out, seconds=seconds, samples=samples, seed=seed, resume=resume, console=console) is None:
            raise typer.Exit(130)


app.command("train")(train_command)
app.command("sample")(sample_command)
app.command("likelihood")(likelihood_command)
app.command("inpaint")(inpaint_command)
app.command("validate")(validate_command)


@app.command()
def solvers(
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/solvers.md instead of a table.")] = False,
    names: Annotated[bool, typer.Option("--names", help="The names that sample --solver takes, one a line.")] = False,
) -> None:
    """The solvers and their facts."""
    from .solvers import LANGEVIN_SOLVERS
    from .solvers import SOLVERS as classes

    if names:
        return typer.echo("\n".join(SOLVERS))
    if markdown:
        from .solver_page import solver_page

        return typer.echo(solver_page(), nl=False)

    table = Table(title="Solvers")
    facts = [cls.facts() for cls in (*classes, *LANGEVIN_SOLVERS)]
    shown = [name for name in facts[0] if name != "source" or console.width >= 120]
    for name in shown:
        table.add_column(name, no_wrap=name == "solver")
    for row in facts:
        table.add_row(*(row[name] for name in shown))
    console.print(table)


if __name__ == "__main__":
    app()
