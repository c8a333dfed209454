"""The command line: ``carom demo | train | sample | solvers``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from .processes import Diffusion, Wall

# Threads that spin while they wait make each other wait where the cores are shared: a training step can then take ten times
# as long. Read when torch is first imported, which no line above does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Diffusions that stay where the data lives.")
console = Console()


#: solvers by their command-line names: class and arguments, looked up when asked for
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("Euler", {}),
    "heun": ("Heun", {}),
    "rk4": ("RungeKutta", {}),
    "adaptive": ("AdaptiveODE", {}),
    "adaptive-sde": ("AdaptiveSDE", {}),
    "ddim": ("DDIM", {}),
    "dpm-solver-2": ("DPMSolver", {"order": 2}),
    "dpm-solver-3": ("DPMSolver", {"order": 3}),
    "dpm-solver++-2m": ("DPMSolverPP", {"order": 2}),
    "dpm-solver++-3m": ("DPMSolverPP", {"order": 3}),
    "dpm-solver++-2m-sde": ("DPMSolverPP", {"order": 2, "sde": True}),
    "unipc-2": ("UniPC", {"p": 2}),
    "unipc-3": ("UniPC", {"p": 3}),
    "deis-3": ("DEIS", {"p": 3}),
    "exponential-adams-3": ("ExponentialAdams", {"p": 3}),
    "exponential-adams-4": ("ExponentialAdams", {"p": 4, "form": "velocity"}),
    "adams-4": ("Adams", {"p": 4}),
    "ancestral": ("Ancestral", {}),
    "reverse-diffusion": ("ReverseDiffusion", {}),
    "er-sde-3": ("ERSDE", {"order": 3}),
    "sa-solver": ("SASolver", {}),
    "edm-stochastic": ("EDMStochastic", {}),
    "euler-maruyama": ("EulerMaruyama", {}),
    "reflected-euler-maruyama": ("ReflectedEulerMaruyama", {}),
    "reflected-strang": ("ReflectedStrang", {}),
}
GRIDS = ("karras", "uniform", "quadratic", "uniform-lambda", "polyexponential", "beta")
Rule = StrEnum("Rule", {name: name for name in SOLVERS})  # type: ignore[misc]
GridName = StrEnum("GridName", {name: name for name in GRIDS})  # type: ignore[misc]


class WallName(StrEnum):
    default = "default"
    reflect = "reflect"
    project = "project"
    cover = "cover"
    reject = "reject"
    penalise = "penalise"


class NetworkName(StrEnum):
    unet = "unet"
    mlp = "mlp"


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What the library refuses, in one line instead of a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        Console(stderr=True).print("[red]error:[/red]", escape(str(error)), highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


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
    with _clear_errors():
        from .demo import run_demo

        if run_demo(out, seconds=seconds, samples=samples, seed=seed, resume=resume, console=console) is None:
            raise typer.Exit(130)


@app.command("train")
def train_command(
    data: Annotated[
        str, typer.Option(help="'digits', or a .npy file of floats, N x event, between --low and --high.")
    ] = "digits",
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")] = Path("model.safetensors"),
    network: Annotated[
        NetworkName, typer.Option(help="unet for images [C, H, W], mlp for anything.")
    ] = NetworkName.unet,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="Time budget in all, resumed runs included.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Step budget in all. Default: 90 seconds.")] = None,
    low: Annotated[float, typer.Option(help="Lower wall.")] = 0.0,
    high: Annotated[float, typer.Option(help="Upper wall.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the checkpoint.")] = False,
) -> None:
    """Train a reflected diffusion on your data. Ctrl-C leaves a checkpoint that --resume goes on with."""
    with _clear_errors():
        import torch

        from .domains import Hypercube
        from .processes import VE, Diffusion
        from .scores.neural import MLP, MLPConfig, NeuralScore, UNet, UNetConfig, train

        if out.is_dir():
            raise ValueError(f"--out: got the folder {out}, expected the name of a file to write")
        if out.exists() and not resume:
            raise ValueError(f"--out: {out} exists; go on with it by --resume, or name another file")
        out.parent.mkdir(parents=True, exist_ok=True)
        x = _read_data(data)
        event = tuple(x.shape[1:])
        torch.manual_seed(seed)
        model: torch.nn.Module
        if network is NetworkName.unet:
            if len(event) != 3:
                raise ValueError(
                    f"--network unet: got data of event shape {event}, expected [C, H, W]; use --network mlp"
                )
            model = UNet(UNetConfig(image_channels=event[0]))
        else:
            model = MLP(MLPConfig(event_shape=event))
        score = NeuralScore(model, Diffusion(Hypercube(event, low, high), VE()))
        budget = 90.0 if seconds is None and steps is None else seconds
        result = train(
            score,
            x,
            seconds=budget,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            checkpoint=out,
            resume=resume,
        )
        console.print(f"{result.steps} steps in {result.seconds:.1f} s, loss {result.loss:.4f} → {out}")
        if result.interrupted:
            console.print("Interrupted; go on with the same command and --resume")
            raise typer.Exit(130)


@app.command("sample")
def sample_command(
    checkpoint: Annotated[Path, typer.Argument(help="A file written by train or demo.")],
    solver: Annotated[Rule, typer.Option(help="The step rule.")] = Rule("heun"),
    n: Annotated[int, typer.Option(min=1, help="How many samples.")] = 64,
    levels: Annotated[int, typer.Option(min=1, help="Noise levels of the grid (adaptive: output times).")] = 18,
    grid: Annotated[GridName, typer.Option(help="Where the steps go.")] = GridName("karras"),
    wall: Annotated[WallName, typer.Option(help="What happens at the boundary.")] = WallName.default,
    seed: Annotated[int, typer.Option(min=0, help="Sample i has seed + i, whatever n is.")] = 0,
    out: Annotated[Path, typer.Option(help=".npy for the values, .png for a picture grid.")] = Path("samples.png"),
) -> None:
    """Sample a checkpoint with any solver, grid and wall."""
    with _clear_errors():
        import numpy as np

        from .scores.neural import NeuralScore
        from .solvers import sample

        if out.suffix not in (".npy", ".png"):
            raise ValueError(f"--out: got {out.name!r}, expected a name that ends in .npy or .png")
        score = NeuralScore.load(checkpoint)
        process = score.process
        if out.suffix == ".png" and len(process.domain.event_shape) != 3:
            raise ValueError(
                f"--out: got {out.name!r} for samples of shape {process.domain.event_shape}, expected images [C, H, W] for a "
                "picture; write the values with --out samples.npy"
            )
        solution = sample(
            process,
            score,
            _solver(solver.value),
            _grid(grid.value, process, levels),
            shape=n,
            seed=range(seed, seed + n),
            wall=_wall(wall),
            progress=not solver.value.startswith("adaptive"),
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".npy":
            np.save(out, solution.x.numpy())
        else:
            from .validation import pictures

            pictures.image_grid(solution.x, out)
        console.print(f"{n} samples, {_evaluations(solution.nfe)} evaluations each → {out}")
        if not bool(solution.ok.all()):
            console.print(f"[yellow]{solution.report()}[/yellow]")


@app.command()
def solvers(
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/solvers.md instead of a table.")] = False,
) -> None:
    """The solvers and their facts."""
    from .solvers import SOLVERS

    if markdown:
        from .solver_page import solver_page

        return typer.echo(solver_page(), nl=False)

    table = Table(title="Solvers")
    facts = [cls.facts() for cls in SOLVERS]
    shown = [name for name in facts[0] if name != "source" or console.width >= 120]
    for name in shown:
        table.add_column(name, no_wrap=name == "solver")
    for row in facts:
        table.add_row(*(row[name] for name in shown))
    console.print(table)


def _read_data(name: str) -> Tensor:
    import numpy as np
    import torch

    if name == "digits":
        from .scores.neural import digits

        return digits()
    path = Path(name)
    if path.suffix != ".npy":
        raise ValueError(f"--data: got {name!r}, expected 'digits' or a .npy file")
    try:
        values = np.load(path, allow_pickle=False)
    except ValueError:
        raise ValueError(f"--data: {name} is not a .npy array of floats") from None
    if values.dtype.kind != "f":
        raise ValueError(f"--data: got dtype {values.dtype}, expected floats; scale integers yourself, e.g. x / 255")
    return torch.from_numpy(values).float()


def _solver(rule: str) -> Any:
    from . import solvers as s

    name, arguments = SOLVERS[rule]
    return getattr(s, name)(**arguments)


def _grid(name: str, process: Diffusion, levels: int) -> Tensor:
    from . import solvers as s

    return getattr(s, name.replace("-", "_"))(process, levels)


def _wall(name: WallName) -> Wall | None:
    from . import solvers as s

    walls: dict[WallName, Callable[[], Wall | None]] = {
        WallName.default: lambda: None,
        WallName.reflect: s.Reflect,
        WallName.project: s.Project,
        WallName.cover: s.Cover,
        WallName.reject: s.Reject,
        WallName.penalise: s.Penalise,
    }
    return walls[name]()


def _evaluations(nfe: Any) -> str:
    import torch

    if isinstance(nfe, torch.Tensor):
        return f"{int(nfe.min())} to {int(nfe.max())}"
    return str(nfe)


if __name__ == "__main__":
    app()
