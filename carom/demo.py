"""The demonstration: one reflected diffusion trained on real images, sampled by interchangeable solvers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .domains import Hypercube
from .processes import VE, Diffusion
from .scores.neural import NeuralScore, TrainingResult, UNet, UNetConfig, digits, split, train
from .solvers import (
    AdaptiveODE,
    Euler,
    EulerMaruyama,
    Heun,
    Project,
    ReflectedEulerMaruyama,
    Solution,
    Solver,
    Wall,
    karras,
    sample,
)
from .validation import sliced_wasserstein

TRAJECTORY_IMAGES = 4


@dataclass(frozen=True)
class Contender:
    """A way of sampling: a name, a solver, the number of noise levels, and a wall where it is not the solver's own."""

    name: str
    solver: Solver
    levels: int
    wall: Wall | None = None

    @property
    def slug(self) -> str:
        return "_".join(re.findall(r"\w+", self.name.lower()))


def contenders() -> list[Contender]:
    """What the demo compares: the same weights, the same grid family, five rules. The adaptive one chooses its own steps."""
    return [
        Contender("ReflectedEulerMaruyama", ReflectedEulerMaruyama(), 100),
        Contender("EulerMaruyama + Project", EulerMaruyama(), 100, Project()),
        Contender("Heun", Heun(), 18),
        Contender("AdaptiveODE", AdaptiveODE(rtol=1e-2, atol=1e-2, method="bosh3"), 2),
        Contender("Euler", Euler(), 36),
    ]


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    solver: str
    evaluations: float
    seconds: float
    distance: float
    standard_error: float
    outside: float
    failed: int


def new_score(seed: int) -> NeuralScore:
    """An untrained network for 8×8 digits in the unit cube."""
    torch.manual_seed(seed)
    return NeuralScore(UNet(UNetConfig()), Diffusion(Hypercube((1, 8, 8)), VE()))


def run_demo(out: Path, *, seconds: float, samples: int, seed: int, resume: bool, console: Console) -> list[Row] | None:
    """Train, sample with every contender, print the table, write pictures, checkpoint and report; None if interrupted."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "digits.safetensors"
    training, held_out = split(digits(), seed=seed)
    score = new_score(seed)
    size = sum(p.numel() for p in score.network.parameters())
    console.print(
        f"[bold]Training[/bold] a U-Net of {size:,} parameters on {len(training)} handwritten digits, as a reflected diffusion "
        f"in {score.process.domain!r}, for {seconds:g} s"
    )
    result = train(score, training, seconds=seconds, seed=seed, checkpoint=checkpoint, resume=resume)
    if result.interrupted:
        console.print(
            f"Stopped after {result.steps} steps; the state is in {checkpoint}. Go on with: carom demo --resume --out {out}"
        )
        return None
    console.print(f"{result.steps} steps, loss {result.loss:.4f} → {checkpoint}")

    floor = sliced_wasserstein(*_halves(training, held_out), seed=seed)
    rows = []
    for contender in contenders():
        console.print(f"Sampling {samples} images with {contender.name} …")
        solution, row = _sample(score, contender, held_out, samples, seed)
        rows.append(row)
        _picture(solution.x, out / f"{contender.slug}.png", contender.name)
    console.print(_table(rows, floor.value, floor.standard_error))
    _trajectory(score, out / "trajectory.png", seed)
    _write_report(out / "report.json", result, rows, floor.value, floor.standard_error, seed)
    console.print(f"Pictures, checkpoint and report.json are in {out}/")
    return rows


def _halves(training: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Real against real: as many training digits as there are held-out ones."""
    return training[: len(held_out)], held_out


def _sample(score: NeuralScore, contender: Contender, real: Tensor, samples: int, seed: int) -> tuple[Solution, Row]:
    process = score.process
    grid = karras(process, contender.levels)
    start = time.perf_counter()
    seeds = range(seed, seed + samples)
    solution = sample(process, score, contender.solver, grid, shape=samples, seed=seeds, wall=contender.wall)
    elapsed = time.perf_counter() - start
    good = solution.x[solution.ok]
    distance = sliced_wasserstein(good, real, seed=seed)
    outside = float(((good < 0) | (good > 1)).double().mean())
    evaluations = float(torch.as_tensor(solution.nfe, dtype=torch.float64).mean())
    failed = int((~solution.ok).sum())
    return solution, Row(contender.name, evaluations, elapsed, distance.value, distance.standard_error, outside, failed)


def _table(rows: Sequence[Row], floor: float, floor_error: float) -> Table:
    table = Table(title="The same weights, five solvers")
    for name in ("solver", "evaluations", "seconds", "distance", "outside"):
        table.add_column(name, justify="left" if name == "solver" else "right", no_wrap=True)
    for row in rows:
        share = f"{100 * row.outside:.2f} %" + (f" ({row.failed} failed)" if row.failed else "")
        table.add_row(
            row.solver,
            f"{row.evaluations:.0f}",
            f"{row.seconds:.1f}",
            f"{row.distance:.4f} ± {row.standard_error:.4f}",
            share,
        )
    table.add_section()
    table.add_row("real against real", "", "", f"{floor:.4f} ± {floor_error:.4f}", "")
    table.caption = (
        "distance: sliced Wasserstein to held-out digits ± its standard error; "
        "outside: share of values outside the domain"
    )
    return table


def _picture(x: Tensor, path: Path, title: str) -> None:
    from .validation import pictures

    pictures.image_grid(x[:64], path, title=title)


def _trajectory(score: NeuralScore, path: Path, seed: int) -> None:
    from .validation import pictures

    grid = karras(score.process, 41)
    seeds = range(seed, seed + TRAJECTORY_IMAGES)
    solution = sample(score.process, score, Heun(), grid, shape=TRAJECTORY_IMAGES, seed=seeds, save=5)
    assert solution.trajectory is not None
    # the last step, from the end of the grid to the image, is a denoising one
    states = torch.cat([solution.trajectory, solution.x[None]])
    pictures.trajectory_strip(states, torch.cat([solution.times, torch.zeros(1, dtype=torch.float64)]), path)


def _write_report(
    path: Path, result: TrainingResult, rows: Sequence[Row], floor: float, floor_error: float, seed: int
) -> None:
    report = {
        "training": {"steps": result.steps, "seconds": result.seconds, "loss": result.loss, "seed": seed},
        "distance": "sliced Wasserstein to held-out digits",
        "real_against_real": {"distance": floor, "standard_error": floor_error},
        "solvers": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
