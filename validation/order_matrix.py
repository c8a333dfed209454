"""The matrix of measured orders: every solver against a Gaussian, a mixture in the plane, the interval and the 3-category simplex.

``print_matrix()`` prints it, every blank with its reason. Deterministic rules are measured by their states against exact flows;
stochastic ones by exact moments on the Gaussian and by quadrature of expectations between walls, under ``Cover``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..domains import Euclidean
from ..processes import VP, Diffusion
from ..solvers import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    KUTTA3,
    MIDPOINT,
    RALSTON,
    Adams,
    AdaptiveODE,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    BrownianPath,
    DPMSolver,
    DPMSolverPP,
    EDMStochastic,
    Euler,
    EulerMaruyama,
    ExponentialAdams,
    Heun,
    LangevinCorrector,
    LepingleEulerMaruyama,
    Milstein,
    PredictorCorrector,
    ReflectedEulerMaruyama,
    ReflectedStrang,
    Restart,
    ReverseDiffusion,
    RungeKutta,
    SASolver,
    Solver,
    TorchDiffEq,
    TorchSDE,
    UniPC,
    rising,
    solve,
    uniform_lambda,
)
from . import problems
from .laws import Violation, require
from .orders import propagate_moments
from .solver_laws import SolverBench, reaches_order


class Column(NamedTuple):
    """A problem, and ranges of σ on whose grids, uniform in ln σ, orders show. A range on which the leading term of a rule's error
    vanishes by
    accident, or settles below rounding, is passed over for the next."""

    name: str
    problem: problems.Problem
    ranges: tuple[tuple[float, float], ...]


def levels(sigma_max: float, sigma_min: float, process: Diffusion, n: int) -> Tensor:
    return uniform_lambda(process, n, sigma_max=sigma_max, sigma_min=sigma_min)


# The middle of a run, where data and noise are of one size; between walls of width 1 that is a third of it. Longer ranges serve high
# orders, whose errors would be rounding before they settle.
_OPEN = ((2.0, 0.3), (5.0, 0.1), (20.0, 0.05), (10.0, 0.2))
_CLOSED = ((0.5, 0.1), (1.0, 0.1), (1.0, 0.05), (2.0, 0.1), (2.0, 0.2))
COLUMNS = (
    Column("Gaussian", problems.gaussian_2d(VP()), _OPEN),
    Column("mixture in 2-D", problems.mixture_2d(VP()), _OPEN),
    Column("cosine, interval", problems.cosine(0.5), _CLOSED),
    Column("3-category simplex", problems.pair(), _CLOSED),
)


@dataclass(frozen=True)
class Entry:
    """A solver in the matrix; ``at`` makes it anew for a number of steps where its own arguments have to grow with it."""

    solver: Solver
    at: Callable[[int], Solver] | None = None

    @property
    def name(self) -> str:
        return repr(self.solver)


def entries() -> list[Entry]:
    """Every solver of the library, in all its orders and variants."""
    flows: list[Solver] = [
        Euler(),
        Heun(),
        *(RungeKutta(table) for table in (MIDPOINT, RALSTON, KUTTA3)),
        RungeKutta(),
        DDIM(),
        *(DPMSolver(p) for p in (1, 2, 3)),
        DPMSolver(2, r1=0.7),
        DPMSolver(3, r1=0.5, r2=0.9),
        *(DPMSolver(p, multistep=True) for p in (2, 3)),
        *(DPMSolverPP(p) for p in (1, 2, 3)),
        *(DPMSolverPP(p, multistep=False) for p in (2, 3)),
        DPMSolver(3, multistep=True, legacy=True),
        DPMSolverPP(3, legacy=True),
        *(UniPC(p) for p in (1, 2, 3, 4)),
        UniPC(2, "noise"),
        UniPC(3, "velocity"),
        UniPC(3, "velocity", orders=rising),
        *(DEIS(p) for p in (1, 2, 3, 4, 5)),
        DEIS(3, clock="t"),
        *(ExponentialAdams(p) for p in (2, 3, 4, 5)),
        *(ExponentialAdams(p, form) for form in ("velocity", "v") for p in (2, 4, 5)),
        *(Adams(p) for p in (1, 2, 3, 4, 5)),
        *(IPNDM(p) for p in (2, 4)),
        *(IPNDM(p, variable=True) for p in (3, 4)),
        IPNDM(3, variable=True, legacy=True),
        ReverseDiffusion(flow=True),
        *(TorchDiffEq(method) for method in ("euler", "midpoint", "heun3", "rk4")),
    ]
    adaptive: list[Solver] = [AdaptiveODE(method=m) for m in ("dopri5", "tsit5", "bosh3", "exponential")]
    noisy: list[Solver] = [
        EulerMaruyama(),
        ReflectedEulerMaruyama(),
        Milstein(),
        LepingleEulerMaruyama(),
        ReflectedStrang(),
        DDIM(0.5),
        DDIM(1.0),
        Ancestral(),
        Ancestral("forward"),
        ReverseDiffusion(),
        *(DPMSolverPP(p, sde=True) for p in (1, 2, 3)),
        *(DPMSolverPP(p, multistep=False, sde=True) for p in (2, 3)),
        *(DPMSolver(p, multistep=True, sde=True) for p in (2, 3)),
        DPMSolver(2, sde=True),
        *(ExponentialAdams(p, sde=True) for p in (2, 4)),
        *(SASolver(p, c) for p, c in ((1, 1), (1, 2), (2, 3))),
        *(ERSDE(p) for p in (1, 2, 3)),
        EDMStochastic(2.0, s_min=0.0, s_noise=1.0),
        *(
            TorchSDE(method)
            for method in ("euler", "milstein", "srk", "heun", "midpoint", "euler_heun", "reversible_heun")
        ),
        AdaptiveSDE(),
    ]
    chains: list[Solver] = [
        PredictorCorrector(ReverseDiffusion(), LangevinCorrector(0.16, 200)),
        AnnealedLangevin(200, 0.01),
    ]
    restart = Entry(Restart([(0.3, 0.5, 4, 2)]), lambda n: Restart([(0.3, 0.5, n + 1, 2)]))
    return [*map(Entry, (*flows, *adaptive, *noisy)), restart, *map(Entry, chains)]


def blank(entry: Entry, column: Column) -> str | None:
    """Why a cell is not measured, or None."""
    solver, walls = entry.solver, not isinstance(column.problem.process.domain, Euclidean)
    if isinstance(solver, (TorchDiffEq, TorchSDE)) and walls:
        return "the other library knows no walls"
    if isinstance(solver, LepingleEulerMaruyama):
        return (
            "its steps have kinks: measured by a quadrature of its own, tests/test_walls.py"
            if walls
            else "without a wall, Euler–Maruyama"
        )
    if not solver.stochastic:
        return None
    if solver.order is None or isinstance(solver, AdaptiveSDE):
        return None if column.name == "Gaussian" else "stationary or strong errors are measured on the Gaussian"
    if column.name == "mixture in 2-D":
        return "weak errors are measured where moments or expectations are exact: Gaussian and walls"
    memory = _memory(solver)
    if walls and (memory > 1 or (memory and column.name == "3-category simplex")):
        return f"quadrature over {memory} remembered predictions would have {memory + 1} dimensions or more"
    dims = math.prod(column.problem.process.domain.event_shape)
    if walls and _draws(solver) * dims > 2:
        return f"quadrature over {_draws(solver) * dims} normals a step; the same rule with fewer is measured"
    return None


def _plan(solver: Solver) -> list[Any]:
    problem = COLUMNS[0].problem
    equation = SolverBench(
        solver, problem, 1.0, (4,), functools.partial(levels, *COLUMNS[0].ranges[0]), None
    ).equation()
    return solver.plan(equation, functools.partial(levels, *COLUMNS[0].ranges[0])(problem.process, 5))


def _memory(solver: Solver) -> int:
    """Predictions that a step inherits."""
    coefficients = _plan(solver)[1].coefficients
    kept = coefficients[1] if len(coefficients) == 2 and isinstance(coefficients[1], tuple) else ()
    return len(kept) if all(isinstance(k, int) for k in kept) else 0


def _draws(solver: Solver) -> int:
    return max(record.draws for record in _plan(solver))


def measure_cell(entry: Entry, column: Column) -> str:
    """What a cell says, e.g. "slopes 1.98, 1.99"; a :class:`Violation` where the claim does not hold."""
    solver = entry.solver
    if solver.order is None:
        return stationary_law(solver, column.problem)
    if isinstance(solver, AdaptiveSDE):
        return strong_error_by_tolerance(column.problem)
    if isinstance(solver, AdaptiveODE):
        return error_by_tolerance(solver, column.problem, functools.partial(levels, *column.ranges[0]))
    walls = not isinstance(column.problem.process.domain, Euclidean)
    steps = (8, 16, 32, 64) if solver.stochastic and walls else (8, 16, 32, 64, 128)
    if solver.stochastic and column.name == "3-category simplex":
        steps = (4, 8, 16, 32)
    if solver.order >= 5:
        steps = (32, 64, 128, 256)
    for i, ends in enumerate(column.ranges):
        bench = _Bench(
            solver, column.problem, float(solver.order), steps, functools.partial(levels, *ends), None, at=entry.at
        )
        try:
            return reaches_order(bench) + f" on σ from {ends[0]:g} to {ends[1]:g}" * (i > 0)
        except Violation:
            if ends == column.ranges[-1]:
                raise
    raise AssertionError("a column has at least one range")


@dataclass
class _Bench(SolverBench):
    at: Callable[[int], Solver] | None = None

    def rule(self, n: int) -> Solver:
        return self.solver if self.at is None else self.at(n)


def error_by_tolerance(solver: AdaptiveODE, problem: problems.Problem, grid: Callable[[Diffusion, int], Tensor]) -> str:
    """Error ∝ rtol: the slope of log error against log tolerance over four decades lies in [0.75, 1.35]."""
    times = grid(problem.process, 2)
    x = problem.points(float(times[0]))
    exact = problem.flow(x, float(times[0]), float(times[-1]))

    def error(tolerance: float) -> float:
        rule = AdaptiveODE(tolerance, tolerance, solver.pair.name)
        return float((solve(problem.process.flow(problem.score), x, times, rule).x - exact).abs().max())

    errors = torch.tensor([error(10.0**-k) for k in (4, 6, 8)], dtype=torch.float64)
    slope = float((errors[0] / errors[-1]).log10()) / 4
    require(0.75 <= slope <= 1.35, f"error ∝ rtol^{slope:.2f}", "rtol^1")
    return f"error ∝ rtol^{slope:.2f}"


def strong_error_by_tolerance(problem: problems.Problem) -> str:
    """AdaptiveSDE on fixed paths: the root mean square distance from a tight run falls at least as rtol^{0.55} (⅔ expected)."""
    process, times = problem.process, levels(2.0, 0.5, problem.process, 2)
    x = problem.points(float(times[0]), 16)

    def run(tolerance: float) -> Tensor:
        rule, paths = AdaptiveSDE(tolerance, tolerance), BrownianPath(range(len(x)))
        return solve(process.reverse(problem.score), x, times, rule, noise=paths).x

    fine = run(2e-4)
    errors = [float((run(tolerance) - fine).square().mean().sqrt()) for tolerance in (0.1, 0.01, 0.002)]
    slope = float(torch.tensor(errors[0] / errors[-1]).log() / torch.tensor(50.0).log())
    # the fine run's own error, about a fifth of the last one's, adds .05; 16 paths leave 1/√32/ln 50 ≈ .05
    require(0.55 <= slope <= 1.1, f"error ∝ rtol^{slope:.2f}", "rtol^⅔")
    return f"strong error ∝ rtol^{slope:.2f}"


def stationary_law(solver: Solver, problem: problems.Problem) -> str:
    """A Langevin chain of step e run long at the last level: the variance along each axis of a Gaussian is v/(1 − e/2v)."""
    process, times = problem.process, levels(0.5, 0.3, problem.process, 3)
    mean, covariance = problem.moments(float(times[0]))
    got_mean, got = propagate_moments(process.reverse(problem.score), solver, times, mean, covariance)
    exact_mean, exact = problem.moments(float(times[-1]))
    kick = _last_kick(solver, process, times)
    values, vectors = torch.linalg.eigh(exact)
    want = vectors @ torch.diag(values / (1 - kick / (2 * values))) @ vectors.T
    # what is left of the level before falls by (1 − e/v) a step
    left = float((1 - kick / values).abs().max()) ** 200
    gap = max(float((got - want).abs().max()), float((got_mean - exact_mean).abs().max()))
    require(gap <= left + 1e-12, f"stationary law off by {gap:.1g}", f"at most {left:.1g}")
    return f"stationary law to {gap:.0e}"


def _last_kick(solver: Solver, process: Diffusion, times: Tensor) -> float:
    """The step e of the last level, from the plan."""
    *_, kicks = solver.plan(process.reverse(lambda x, t: x), times)[-1].coefficients
    return float(kicks[0].row.weights[0])


def matrix(names: Sequence[str] = ()) -> Iterator[tuple[str, str, str]]:
    """(solver, column, what it says) of every cell, or of those whose solver contains one of ``names``; blanks begin with "—", failures
    with "FAIL"."""
    for entry in entries():
        if names and not any(name in entry.name for name in names):
            continue
        for column in COLUMNS:
            reason = blank(entry, column)
            if reason is not None:
                yield entry.name, column.name, f"— {reason}"
                continue
            try:
                yield entry.name, column.name, measure_cell(entry, column)
            except Violation as failure:
                yield entry.name, column.name, f"FAIL {failure}"


def print_matrix(names: Sequence[str] = ()) -> bool:
    """Print the matrix as it is measured; whether all holds."""
    good = True
    for solver, column, text in matrix(names):
        good = good and not text.startswith("FAIL")
        print(f"{solver:52} {column:20} {text}", flush=True)
    return good


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    raise SystemExit(not print_matrix(sys.argv[1:]))
