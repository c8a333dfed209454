"""The loop: ``solve`` integrates an equation over a grid, ``sample`` generates from a process and a score.

``integrate`` is the part in the middle, after the plan and before the bookkeeping: tensor operations only, so that
``torch.compile`` can take it whole. ``solve`` runs the same function with an observer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean, FoldedDomain
from ..domains.tensors import as_like, event_sum, expand_right
from ..processes import Diffusion, Equation, Wall, data_form
from ..processes.equations import Field, check_field
from .bookkeeping import Info, Keeper
from .checks import (
    as_state,
    batch_sizes,
    check_checkpoint,
    check_generation,
    check_problem,
    check_process_and_score,
    check_solver_type,
    check_times,
    check_wall,
)
from .noise import Noise, SampleNoise, Source, WhiteNoise
from .solution import Solution, Status
from .solver import Record, Solver, bind
from .walls import Cover, Project, Reflect

Seed = int | Sequence[int] | None


class Observer(Protocol):
    def __call__(self, index: int, moved: Tensor, settled: Tensor) -> None: ...


def integrate(
    equation: Equation,
    x: Tensor,
    records: Sequence[Record],
    solver: Solver,
    draws: Iterable[Any],
    observe: Observer | None = None,
    checkpoint: int = 0,
) -> tuple[Tensor, Any]:
    """Run the records in order; ``draws`` holds the noise of each step (a tuple of unit normals). Returns (x, state).

    With ``checkpoint`` = k > 0, k steps at a time are not recorded for backpropagation but run again in it.
    Compiles whole with ``torch.compile(integrate, fullgraph=True)`` for rules that are not adaptive.
    """
    # an adaptive rule keeps time per sample and in float64
    if records and isinstance(records[0].t, float) and not solver.adaptive:
        records = bind(records, x)
    state: Any = ()
    steps = enumerate(zip(records, draws, strict=True))
    if not checkpoint:
        return _run_steps(equation, x, state, steps, solver, observe)
    while part := [(i, (record, tuple(noise))) for i, (record, noise) in islice(steps, checkpoint)]:
        x, state = _run_again(equation, x, state, part, solver, observe)
    return x, state


def _run_steps(
    equation: Equation, x: Tensor, state: Any, steps: Iterable[Any], solver: Solver, observe: Observer | None
) -> tuple[Tensor, Any]:
    for index, (record, noise) in steps:
        moved, state = solver.step(equation, x, record, state, noise)
        settled = equation.settle(x, moved)
        if observe is not None:
            observe(index, moved, settled)
        x = settled
    return x, state


def _run_again(
    equation: Equation, x: Tensor, state: Any, part: Sequence[Any], solver: Solver, observe: Observer | None
) -> tuple[Tensor, Any]:
    """The steps of ``part`` with their inner tensors recomputed in the backward pass, where nobody observes."""
    from torch.utils.checkpoint import checkpoint

    def quietly(index: int, moved: Tensor, settled: Tensor) -> None:
        # what is recorded must not depend on whether somebody looks
        with torch.no_grad():
            observe(index, moved.detach(), settled.detach())  # type: ignore[misc]

    observers = [] if observe is None else [quietly]  # used up by the first run
    return checkpoint(
        lambda x, state: _run_steps(equation, x, state, part, solver, observers.pop() if observers else None),
        x,
        state,
        use_reentrant=False,
    )


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
    checkpoint: int = 0,
    raise_on_failure: bool = False,
) -> Solution:
    """Integrate ``equation`` from ``x`` at times[0] to times[-1] with one solver step per interval.

    Args:
        equation: what to integrate; one of ``solver.accepts``.
        x: initial states ``[*batch, *event]`` inside the domain, float32 or float64 (a NumPy array will do).
        times: strictly monotone, in the direction in which the equation runs; kept in float64.
        noise: a recipe; ``WhiteNoise()`` unless told. Each solve opens it anew.
        wall: ``None`` for the default: none on Euclidean domains; else the equation's own or the solver's, ``Project`` for ODEs,
            ``Cover`` for stochastic multi-stage rules on a FoldedDomain, ``Reflect`` otherwise.
        save: ``None``; "all"; an int k for every k-th state (and the last); or a sequence of times of the grid.
        callback: called with an :class:`Info` after each step.
        progress: show a bar.
        condition: keywords for the score.
        checkpoint: k > 0 keeps only every k-th state for backpropagation and runs k steps at a time again in it: the same gradients in
            less memory, at one more forward pass. They reach the final state, not the saved ones.
        raise_on_failure: raise :class:`SolveError` (which holds the solution) if a sample failed.

    Gradients flow through if the caller's grad mode allows. Raises ``TypeError``/``ValueError`` for input that does not fit.
    """
    x = as_state(x)
    grid = check_times(times)
    check_problem(equation, x, grid, solver)
    ndim = len(equation.domain.event_shape)
    source = recipe(None, noise).open(x, ndim) if solver.stochastic else None
    solution = _run(
        equation,
        x,
        grid,
        solver,
        source,
        wall,
        save,
        callback,
        progress,
        condition,
        check_checkpoint(checkpoint, solver),
    )
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
        times: strictly decreasing, within (0, t_max], e.g. ``karras(process, 18)``. A score that offers ``prediction`` may be used from
            where s = 0 (t = 1 of flow matching and of tables with zero terminal SNR) with the rules that read predictions.
        shape: batch shape, e.g. ``16`` or ``(4, 4)``.
        seed: an int for the batch, or one int per sample: then a sample is the same alone and in any batch.
        initial: replaces the draw from the prior.
        noise: a recipe in place of ``seed``; prior and noise come from one opened source.
        denoise: end with one evaluation, x0 = x/s + sσ²·score moved into the domain by reflection (the score's own
            ``prediction`` where it offers one). Exact in R^d (Tweedie), an approximation of order σ near walls. Samples that a rule
            gave up on the way stay where they stopped.
        dtype, device: of the states; those of ``initial``, else torch's defaults.
        condition, wall, save, callback, progress, raise_on_failure: as for :func:`solve`.
    """
    check_process_and_score(process, score)
    batch = batch_sizes(shape)
    domain = process.domain
    grid = check_times(times)
    check_generation(process, grid, score, solver)
    if initial is not None:
        template = as_state(initial)
        if tuple(template.shape) != (*batch, *domain.event_shape):
            raise ValueError(
                f"initial: got shape {tuple(template.shape)}, expected shape + event = {(*batch, *domain.event_shape)}"
            )
    else:
        template = torch.empty((*batch, *domain.event_shape), dtype=dtype, device=device)
    check_solver_type(solver)
    source = recipe(seed, noise).open(template, len(domain.event_shape))
    x = template if initial is not None else source.initial(process.prior(template.dtype, t=float(grid[0])))
    solution = descend(process, score, solver, grid, x, source, denoise, condition, wall, save, callback, progress)
    return solution.raise_on_failure() if raise_on_failure else solution


def descend(
    process: Diffusion,
    score: Field,
    solver: Solver,
    grid: Tensor,
    x: Tensor,
    source: Source,
    denoise: bool = True,
    condition: Mapping[str, Any] | None = None,
    wall: Wall | None = None,
    save: Any = None,
    callback: Callable[[Info], Any] | None = None,
    progress: bool = False,
) -> Solution:
    """What :func:`sample` does from a state at grid[0] on: integrate, and denoise once. Where x is a draw of the open ``source``, noise
    goes on from there; a source opened anew would tie the first noise to it."""
    equation = solver.accepts[0](process, score)  # type: ignore[call-arg]
    check_problem(equation, x, grid, solver)
    solution = _run(equation, x, grid, solver, source, wall, save, callback, progress, condition)
    if denoise:
        solution = _denoise(process, equation.bound(condition=condition), solution, float(grid[-1]), len(grid) - 1)
    return solution


def default_wall(equation: Equation, solver: Solver) -> Wall:
    """The wall of a run that names none."""
    if isinstance(equation.domain, Euclidean):
        return Wall()
    if equation.usual_wall is not None:
        return equation.usual_wall
    if solver.wall is not None:
        return solver.wall
    if not equation.stochastic and not solver.stochastic:
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
    checkpoint: int = 0,
) -> Solution:
    wall = check_wall(wall, equation) or default_wall(equation, solver)
    equation = equation.bound(wall, condition)
    plan = solver.plan(equation, grid)
    keeper = Keeper(equation, x, grid, save, callback, progress, pushes=equation.wall.pushes and not solver.adaptive)
    draws: Iterable[Any] = [source] * len(plan) if solver.adaptive else _draws(plan, source)
    try:
        x, state = integrate(equation, x, plan, solver, draws, keeper.observe, checkpoint)
    finally:
        keeper.close()
    return keeper.solution(x, solver.report(state, plan))


class Draws:
    """The unit normals of one step, each drawn when the rule asks for it, so that a step of many draws holds only one."""

    def __init__(self, source: Source, record: Record):
        self.source, self.t, self.s, self.count = source, record.t, record.s, record.draws

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Tensor:
        if not 0 <= k < self.count:
            raise IndexError(k)
        return self.source(self.t, self.s, stream=k)


def _draws(plan: Sequence[Record], source: Source | None) -> Iterator[Any]:
    for record in plan:
        yield () if source is None or not record.draws else Draws(source, record)


def recipe(seed: Seed, noise: Noise | None) -> Noise:
    """The noise of a run: the recipe named, or white noise from one seed, or one seed per sample."""
    if noise is not None:
        if seed is not None:
            raise TypeError("sample: got both seed and noise, expected one of them; the recipe carries its own seeds")
        if not isinstance(noise, Noise):
            raise TypeError(f"noise: got {noise!r}, expected a recipe such as WhiteNoise(0) or SampleNoise(range(16))")
        return noise
    if isinstance(seed, Integral):
        return WhiteNoise(int(seed))
    return WhiteNoise() if seed is None else SampleNoise(seed)  # type: ignore[arg-type]


def _denoise(process: Diffusion, equation: Equation, solution: Solution, t: float, step: int) -> Solution:
    x, domain, score = solution.x, process.domain, equation.score  # type: ignore[attr-defined]
    now = torch.tensor(t, dtype=x.dtype, device=x.device)
    if hasattr(score, "prediction"):
        result = domain.project(score.prediction(x, now, **equation.condition)[0])
    else:
        level = process.event_level(torch.tensor(t, dtype=torch.float64))
        p, q = (as_like(v, x) for v in data_form(level))
        result = domain.reflect(p * x, q * check_field(score(x, now, **equation.condition), x))
    # what stopped on the way is handed out where it stopped
    ended = solution.ok
    result = torch.where(expand_right(ended, len(domain.event_shape)), result, x)
    bad = ~event_sum(result, len(domain.event_shape)).isfinite() & ended
    return replace(
        solution,
        x=result,
        nfe=solution.nfe + (ended.to(torch.int64) if isinstance(solution.nfe, Tensor) else 1),
        status=torch.where(bad, int(Status.NON_FINITE), solution.status),
        failed_step=torch.where(bad, step, solution.failed_step),
        failed_time=torch.where(bad, t, solution.failed_time),
    )
