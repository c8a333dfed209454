"""The loop: ``solve`` integrates an equation over a grid, ``sample`` generates from a process and a score.

``integrate`` is the part in the middle, after the plan and before the bookkeeping: tensor operations only, so that
``torch.compile`` can take it whole. ``solve`` runs the same function with an observer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..domains import Domain
from ..domains.tensors import batch_shape, check_shape, event_sum
from ..processes import Diffusion, Equation, Wall, data_form
from ..processes.equations import Field
from .noise import Noise, SampleNoise, Source, WhiteNoise
from .solution import Solution, Status
from .solver import Record, Solver, bind
from .walls import Cover, Project, Reflect

Seed = int | Sequence[int] | None


class Info(NamedTuple):
    """What a callback sees after each step: step number (1 … steps), steps in all, the time reached, the state shown."""

    step: int
    steps: int
    time: float
    x: Tensor


class Observer(Protocol):
    def __call__(self, index: int, before: Tensor, moved: Tensor, settled: Tensor) -> None: ...


def integrate(
    equation: Equation,
    x: Tensor,
    records: Sequence[Record],
    solver: Solver,
    draws: Iterable[Any],
    observe: Observer | None = None,
) -> tuple[Tensor, Any]:
    """Run the records in order; ``draws`` holds the noise of each step (a tuple of unit normals). Returns (x, state).

    Compiles whole with ``torch.compile(integrate, fullgraph=True)`` for rules that are not adaptive.
    """
    # an adaptive rule keeps time per sample and in float64
    if records and isinstance(records[0].t, float) and not solver.adaptive:
        records = bind(records, x)
    state: Any = ()
    for index, (record, noise) in enumerate(zip(records, draws, strict=True)):
        moved, state = solver.step(equation, x, record, state, noise)
        settled = equation.settle(x, moved)
        if observe is not None:
            observe(index, x, moved, settled)
        x = settled
    return x, state


def solve(
    equation: Equation,
    x: Tensor | np.ndarray,
    times: Tensor | np.ndarray | Sequence[float],
    solver: Solver,
    *,
    noise: Noise | None = None,
    wall: Wall | None = None,
    save: Any = None,
    callback: Callable[[Info], Any] | None = None,
    progress: bool = False,
    condition: Mapping[str, Any] | None = None,
    raise_on_failure: bool = False,
) -> Solution:
    """Integrate ``equation`` from ``x`` at times[0] to times[-1] with one solver step per interval.

    Args:
        equation: what to integrate; one of ``solver.accepts``.
        x: initial states ``[*batch, *event]`` inside the domain, float32 or float64 (a NumPy array will do).
        times: strictly monotone, in the direction in which the equation runs; kept in float64.
        noise: a recipe; ``WhiteNoise()`` unless told. Each solve opens it anew.
        wall: ``None`` for the default: none on Euclidean domains; else the solver's own, ``Project`` for ODEs, ``Cover`` for
            stochastic multi-stage rules on a FoldedDomain, ``Reflect`` otherwise.
        save: ``None``; "all"; an int k for every k-th state (and the last); or a sequence of times of the grid.
        callback: called with an :class:`Info` after each step.
        progress: show a bar.
        condition: keywords for the score.
        raise_on_failure: raise :class:`SolveError` (which holds the solution) if a sample failed.

    Gradients flow through if the caller's grad mode allows. Raises ``TypeError``/``ValueError`` for input that does not fit.
    """
    x = _as_state(x)
    grid = check_times(times)
    _check_problem(equation, x, grid, solver)
    ndim = len(equation.domain.event_shape)
    source = _recipe(None, noise).open(x, ndim) if solver.stochastic else None
    solution = _run(equation, x, grid, solver, source, wall, save, callback, progress, condition)
    return solution.raise_on_failure() if raise_on_failure else solution


@torch.no_grad()
def sample(
    process: Diffusion,
    score: Field,
    solver: Solver,
    times: Tensor | np.ndarray | Sequence[float],
    *,
    shape: int | Sequence[int],
    seed: Seed = None,
    initial: Tensor | None = None,
    noise: Noise | None = None,
    denoise: bool = True,
    condition: Mapping[str, Any] | None = None,
    wall: Wall | None = None,
    save: Any = None,
    callback: Callable[[Info], Any] | None = None,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    raise_on_failure: bool = False,
) -> Solution:
    """Generate: draw the prior at times[0], integrate down to times[-1] > 0, then denoise once.

    Args:
        process, score: the diffusion, and any callable (x, t) → ∇ log p_t(x).
        solver: any; ``solver.accepts[0]`` is the equation that is built.
        times: strictly decreasing, within (0, t_max], e.g. ``karras(process, 18)``.
        shape: batch shape, e.g. ``16`` or ``(4, 4)``.
        seed: an int for the batch, or one int per sample: then a sample is the same alone and in any batch.
        initial: replaces the draw from the prior.
        noise: a recipe in place of ``seed``; prior and noise come from one opened source.
        denoise: end with one evaluation, x0 = x/s + sσ²·score moved into the domain by reflection (the score's own
            ``prediction`` where it offers one). Exact in R^d (Tweedie), an approximation of order σ near walls.
        dtype, device: of the states; those of ``initial``, else torch's defaults.
        condition, wall, save, callback, progress, raise_on_failure: as for :func:`solve`.
    """
    batch = () if isinstance(shape, (tuple, list)) and not len(shape) else _batch(shape)
    domain = process.domain
    grid = check_times(times)
    _check_generation(process, grid)
    if initial is not None:
        template = _as_state(initial)
        if tuple(template.shape) != (*batch, *domain.event_shape):
            raise ValueError(
                f"initial: got shape {tuple(template.shape)}, expected shape + event = {(*batch, *domain.event_shape)}"
            )
    else:
        template = torch.empty((*batch, *domain.event_shape), dtype=dtype, device=device)
    source = _recipe(seed, noise).open(template, len(domain.event_shape))
    x = template if initial is not None else source.initial(process.prior(template.dtype))
    equation = solver.accepts[0](process, score)  # type: ignore[call-arg]
    _check_problem(equation, x, grid, solver)
    solution = _run(equation, x, grid, solver, source, wall, save, callback, progress, condition)
    if denoise:
        solution = _denoise(process, equation.bound(condition=condition), solution, float(grid[-1]), len(grid) - 1)
    return solution.raise_on_failure() if raise_on_failure else solution


def default_wall(equation: Equation, solver: Solver) -> Wall:
    """The wall of a run that names none."""
    from ..domains import Euclidean, FoldedDomain

    if isinstance(equation.domain, Euclidean):
        return Wall()
    if solver.wall is not None:
        return solver.wall
    if not equation.stochastic:
        return Project()
    return Cover() if solver.multistage and isinstance(equation.domain, FoldedDomain) else Reflect()


def _run(
    equation: Equation,
    x: Tensor,
    grid: Tensor,
    solver: Solver,
    source: Source | None,
    wall: Wall | None,
    save: Any,
    callback: Callable[[Info], Any] | None,
    progress: bool,
    condition: Mapping[str, Any] | None,
) -> Solution:
    wall = _check_wall(wall, equation) or default_wall(equation, solver)
    equation = equation.bound(wall, condition)
    plan = solver.plan(equation, grid)
    keeper = _Keeper(equation, x, grid, save, callback, progress, pushes=equation.wall.pushes and not solver.adaptive)
    draws: Iterable[Any] = [source] * len(plan) if solver.adaptive else _draws(plan, source)
    try:
        x, state = integrate(equation, x, plan, solver, draws, keeper.observe)
    finally:
        keeper.close()
    return keeper.solution(x, solver.report(state, plan))


def _draws(plan: Sequence[Record], source: Source | None) -> Iterator[tuple[Tensor, ...]]:
    for record in plan:
        yield tuple(source(record.t, record.s, stream=k) for k in range(record.draws))  # type: ignore


class _Keeper:
    """The bookkeeping of a run: finiteness, local time, saved states, callback, progress."""

    def __init__(
        self,
        equation: Equation,
        x: Tensor,
        grid: Tensor,
        save: Any,
        callback: Callable[[Info], Any] | None,
        progress: bool,
        pushes: bool,
    ):
        self.wall, self.domain, self.pushes = equation.wall, equation.domain, pushes
        self.ndim = len(self.domain.event_shape)
        self.grid, self.times, self.callback = grid, grid.tolist(), callback
        self.keep = _saved_indices(save, grid)
        self.saved = [self.wall.show(self.domain, x)] if self.keep is not None and 0 in self.keep else []
        self.push: Tensor | None = None
        batch = batch_shape(x, self.domain.event_shape)
        self.finite = torch.ones(batch, dtype=torch.bool, device=x.device)
        self.finite_steps = torch.zeros(batch, dtype=torch.int64, device=x.device)
        self.bar = _bar(len(grid) - 1) if progress else None

    def observe(self, index: int, before: Tensor, moved: Tensor, settled: Tensor) -> None:
        # one number per sample, taken before the wall, which may hide an infinity; read after the loop
        self.finite &= event_sum(moved.detach(), self.ndim).isfinite()
        self.finite_steps += self.finite
        if self.pushes:
            length = event_sum((settled - moved) ** 2, self.ndim).sqrt() if self.ndim else (settled - moved).abs()
            self.push = length if self.push is None else self.push + length
        if self.keep is not None and index + 1 in self.keep:
            self.saved.append(self.wall.show(self.domain, settled))
        if self.callback is not None:
            shown = self.wall.show(self.domain, settled)
            self.callback(Info(index + 1, len(self.times) - 1, self.times[index + 1], shown))
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def solution(self, x: Tensor, report: dict[str, Any]) -> Solution:
        x = self.wall.show(self.domain, x)
        bad = ~self.finite
        step = torch.where(bad, self.finite_steps, -1)
        status = torch.where(bad, int(Status.NON_FINITE), report.pop("status", torch.zeros_like(step)))
        if bool(bad.any()):
            x = torch.where(bad.reshape(bad.shape + (1,) * self.ndim), math.nan, x)
        time = self.grid.to(x.device)[(step + 1).clamp(max=len(self.grid) - 1)]
        return Solution(
            x=x,
            times=self.grid if self.keep is None else self.grid[sorted(self.keep)],
            nfe=report.pop("nfe"),
            status=status,
            failed_step=torch.where(bad, step, report.pop("failed_step", step)),
            failed_time=torch.where(bad, time, report.pop("failed_time", torch.full_like(time, math.nan))),
            trajectory=torch.stack(self.saved) if self.keep is not None else None,
            local_time=self.push,
            stats=report,
        )


def _denoise(process: Diffusion, equation: Equation, solution: Solution, t: float, step: int) -> Solution:
    from dataclasses import replace

    x, domain, score = solution.x, process.domain, equation.score  # type: ignore[attr-defined]
    level = process.level(t)
    now = torch.tensor(t, dtype=x.dtype, device=x.device)
    if hasattr(score, "prediction"):
        result = domain.project(score.prediction(x, now, **equation.condition)[0])
    else:
        p, q = (float(v) for v in data_form(level))
        result = domain.reflect(p * x, q * equation.field(x, now))
    bad = ~event_sum(result, len(domain.event_shape)).isfinite() & solution.ok
    return replace(
        solution,
        x=result,
        nfe=solution.nfe + 1,
        status=torch.where(bad, int(Status.NON_FINITE), solution.status),
        failed_step=torch.where(bad, step, solution.failed_step),
        failed_time=torch.where(bad, t, solution.failed_time),
    )


# ------------------------------------------------------------------------------------------------ input at the boundary


def check_times(times: Any) -> Tensor:
    """A grid as a float64 CPU tensor, or an error."""
    grid = torch.as_tensor(times, dtype=torch.float64, device="cpu").detach()
    if grid.dim() != 1 or len(grid) == 0:
        raise ValueError(f"times: got shape {tuple(grid.shape)}, expected a list of at least one time")
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


def _check_generation(process: Diffusion, grid: Tensor) -> None:
    if len(grid) > 1 and grid[-1] > grid[0]:
        raise ValueError(
            f"times: got a grid that rises from {float(grid[0]):g} to {float(grid[-1]):g}, expected one that strictly decreases "
            "(data is at t = 0, noise at t = 1); use times.flip(0)"
        )
    t_max = process.schedule.t_max
    if float(grid[-1]) <= 0 or float(grid[0]) > t_max * (1 + 1e-12):
        raise ValueError(
            f"times: got a grid from {float(grid[0]):g} to {float(grid[-1]):g}, expected times within (0, {t_max:g}]; "
            "σ is 0 at t = 0, where the last denoising step leads by itself"
        )


def _as_state(x: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a tensor or a NumPy array of states [*batch, *event]")
    return x


def _check_problem(equation: Equation, x: Tensor, grid: Tensor, solver: Solver) -> None:
    if not isinstance(solver, Solver):
        raise TypeError(f"solver: got {solver!r}, expected an instance of a Solver, e.g. Heun()")
    if not isinstance(equation, solver.accepts):
        names = ", ".join(c.__name__ for c in solver.accepts)
        kind = "stochastic" if equation.stochastic else "deterministic"
        raise TypeError(
            f"{solver!r}: got a {type(equation).__name__}, expected one of {names}; "
            f"take a solver for {kind} equations, or process.{'flow' if equation.stochastic else 'reverse'}(score)"
        )
    rising = len(grid) > 1 and bool(grid[-1] > grid[0])
    if len(grid) > 1 and equation.direction and rising != (equation.direction > 0):
        way = "rises" if rising else "falls"
        raise ValueError(
            f"times: got a grid that {way}, but {type(equation).__name__} runs the other way; use times.flip(0)"
        )
    equation.domain.check(x)


def _check_wall(wall: Wall | None, equation: Equation) -> Wall | None:
    from ..domains import Euclidean, FoldedDomain

    if wall is None:
        return None
    if not isinstance(wall, Wall):
        raise TypeError(f"wall: got {wall!r}, expected an instance of a wall, e.g. Reflect()")
    if isinstance(equation.domain, Euclidean):
        return Wall()
    if isinstance(wall, Cover) and not isinstance(equation.domain, FoldedDomain):
        raise TypeError(
            f"wall: got Cover() on {equation.domain!r}, which has no covering space; use Reflect() or Project()"
        )
    return wall


def _batch(shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    return sizes if 0 in sizes and min(sizes) == 0 else check_shape(sizes, "shape")


def _recipe(seed: Seed, noise: Noise | None) -> Noise:
    if noise is not None:
        if seed is not None:
            raise TypeError("sample: got both seed and noise, expected one of them; the recipe carries its own seeds")
        if not isinstance(noise, Noise):
            raise TypeError(f"noise: got {noise!r}, expected a recipe such as WhiteNoise(0) or SampleNoise(range(16))")
        return noise
    return WhiteNoise(seed) if seed is None or isinstance(seed, int) else SampleNoise(seed)


def _saved_indices(save: Any, grid: Tensor) -> set[int] | None:
    """Which grid points to keep, as positions."""
    if save is None:
        return None
    last = len(grid) - 1
    if isinstance(save, str):
        if save != "all":
            raise ValueError(
                f"save: got {save!r}, expected None, 'all', an int k (every k-th state) or a list of times"
            )
        return set(range(last + 1))
    if isinstance(save, int):
        if save < 1:
            raise ValueError(f"save: got {save}, expected k ≥ 1 (every k-th state)")
        return {*range(0, last + 1, save), last}
    wanted = torch.as_tensor(save, dtype=torch.float64).reshape(-1)
    gap, index = (wanted[:, None] - grid[None, :]).abs().min(1)
    far = gap > 1e-12 * (1 + wanted.abs())
    if bool(far.any()):
        i = int(far.nonzero()[0])
        raise ValueError(
            f"save: got time {float(wanted[i]):g}, which is not on the grid (nearest: {float(grid[index[i]]):g}); "
            "add it to times"
        )
    return set(index.tolist())


def _bar(total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="step", leave=False)


__all__ = ["Domain", "Info", "check_times", "default_wall", "integrate", "sample", "solve"]
