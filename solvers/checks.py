"""Input refused at the boundary of ``solve`` and ``sample``: what was got, what was expected, how to fix it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean
from ..processes import CriticallyDamped, Diffusion, Equation, Wall
from .solver import Solver


def check_times(times: Any) -> Tensor:
    """A grid as a float64 CPU tensor, or an error."""
    if callable(times) or isinstance(times, str):
        raise TypeError(f"times: got {times!r}, expected decreasing times themselves, e.g. karras(process, 18)")
    grid = torch.as_tensor(times, dtype=torch.float64, device="cpu").detach()
    if grid.dim() != 1 or len(grid) == 0:
        raise ValueError(
            f"times: got shape {tuple(grid.shape)}, expected a list of at least one time, e.g. karras(process, 18)"
        )
    if not bool(grid.isfinite().all()):
        raise ValueError("times: got a time that is NaN or infinite, expected finite times")
    steps = grid.diff()
    if len(steps) and not (bool((steps > 0).all()) or bool((steps < 0).all())):
        sign = -1 if grid[-1] < grid[0] else 1
        i = int((steps * sign <= 0).nonzero()[0])
        raise ValueError(
            f"times: got {float(grid[i]):g} followed by {float(grid[i + 1]):g} at position {i}, expected a strictly monotone "
            "grid; drop repeated times (the grids of carom.solvers never repeat one)"
        )
    return grid


def check_generation(process: Diffusion, grid: Tensor, score: Any = None, solver: Solver | None = None) -> None:
    if len(grid) > 1 and grid[-1] > grid[0]:
        raise ValueError(
            f"times: got a grid that rises from {float(grid[0]):g} to {float(grid[-1]):g}, expected one that strictly decreases "
            "(data is at t = 0, noise at t = 1); use times.flip(0)"
        )
    t_max, first = process.schedule.t_max, float(grid[0])
    if float(grid[-1]) > 0 and first <= t_max * (1 + 1e-12):
        return
    if float(grid[-1]) > 0 and float(process.schedule.scale(grid[0])) == 0.0:
        offers = hasattr(score, "prediction") and isinstance(process.domain, Euclidean)
        if offers and getattr(solver, "reads_predictions", False):
            return
        raise ValueError(
            f"times: got a grid from {first:g}, where the scale is 0 and no score is finite, expected times within (0, {t_max:g}], "
            f"or a score "
            f"that offers prediction(x, t) and a solver that reads it, such as DDIM(); got {type(score).__name__} and {solver!r}"
        )
    raise ValueError(
        f"times: got a grid from {first:g} to {float(grid[-1]):g}, expected times within (0, {t_max:g}]; "
        "σ is 0 at t = 0, where the last denoising step leads by itself"
    )


def as_state(x: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a tensor or a NumPy array of states [*batch, *event]")
    return x


def check_process_and_score(process: Any, score: Any) -> None:
    if not isinstance(process, Diffusion):
        way = "Diffusion, e.g. Diffusion(Euclidean((2,)), VP())"
        if isinstance(process, CriticallyDamped):
            way = "Diffusion; use solve(process.reverse(score), process.prior().sample((n,)), times, SSCS())"
        raise TypeError(f"process: got {type(process).__name__}, expected a {way}")
    if not callable(score):
        raise TypeError(f"score: got {score!r}, expected a callable score (x, t) → ∇ log p_t(x)")
    own = getattr(score, "process", None)
    if isinstance(own, Diffusion) and own is not process and _differ(own, process):
        raise ValueError(
            f"score: got one of {own!r} for {process!r}, where t stands for other levels; use score.process, or on the same domain "
            "retime(score, score.process, process)"
        )


def _differ(one: Diffusion, other: Diffusion) -> bool:
    """Whether two processes are known to be different; those that have no configuration are told apart by nothing."""
    try:
        return one.config() != other.config()
    except NotImplementedError:
        return False


def check_solver_type(solver: object) -> None:
    if not isinstance(solver, Solver):
        raise TypeError(f"solver: got {solver!r}, expected an instance of a Solver, e.g. Heun()")


def check_problem(equation: Equation, x: Tensor, grid: Tensor, solver: Solver) -> None:
    check_solver_type(solver)
    if not isinstance(equation, Equation):
        raise TypeError(
            f"equation: got {type(equation).__name__}, expected an equation, e.g. process.flow(score), process.reverse(score) or "
            "SDE(drift, diffusion, domain)"
        )
    if not isinstance(equation, solver.accepts):
        names = ", ".join(c.__name__ for c in solver.accepts)
        kind = "stochastic" if equation.stochastic else "deterministic"
        usual = "EulerMaruyama()" if equation.stochastic else "Heun()"
        other = (
            f", or process.{'flow' if equation.stochastic else 'reverse'}(score)"
            if hasattr(equation, "process")
            else ""
        )
        raise TypeError(
            f"{solver!r}: got a {type(equation).__name__}, expected one of {names}; "
            f"take a solver for {kind} equations such as {usual}{other}"
        )
    rising = len(grid) > 1 and bool(grid[-1] > grid[0])
    if len(grid) > 1 and equation.direction and rising != (equation.direction > 0):
        way = "rises" if rising else "falls"
        raise ValueError(
            f"times: got a grid that {way}, but {type(equation).__name__} runs the other way; use times.flip(0)"
        )
    if x.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"x: got {x.dtype}, expected float32 or float64; low precision belongs inside the network (use autocast there)"
        )
    equation.domain.check(x)


def check_wall(wall: Wall | None, equation: Equation) -> Wall | None:
    if wall is None:
        return None
    if not isinstance(wall, Wall):
        raise TypeError(f"wall: got {wall!r}, expected an instance of a wall, e.g. Reflect()")
    if isinstance(equation.domain, Euclidean):
        return Wall()
    wall.check(equation.domain)
    return wall


def batch_sizes(shape: int | Sequence[int]) -> tuple[int, ...]:
    """A batch shape: sizes of at least 0; () is one sample without a batch dimension."""
    sizes: Any = (shape,) if isinstance(shape, Integral) else shape
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise TypeError(f"shape: got {shape!r}, expected an int or a sequence of them, e.g. 16 or (4, 4)")
    sizes = tuple(sizes)
    if not all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 0 for n in sizes):
        raise ValueError(f"shape: got {shape!r}, expected batch sizes of at least 0, ints")
    return tuple(int(n) for n in sizes)


def check_checkpoint(checkpoint: int, solver: Solver) -> int:
    """k ≥ 0 steps; adaptive rules, whose steps depend on values, are not run in parts."""
    if isinstance(checkpoint, bool) or not isinstance(checkpoint, Integral) or checkpoint < 0:
        raise ValueError(
            f"checkpoint: got {checkpoint!r}, expected k ≥ 1: how many steps to recompute at a time (0 for none)"
        )
    if checkpoint and solver.adaptive:
        raise ValueError(
            f"checkpoint: got {checkpoint} with {solver!r}, expected a rule with fixed steps; for adaptive ones TorchDiffEq(adjoint=True) "
            "saves memory"
        )
    return int(checkpoint)
