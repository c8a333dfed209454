"""The laws of solvers; see ``laws``. The order a solver claims is measured, on problems with closed answers and no sampling noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..processes import ODE, SDE, VP, Diffusion, Equation, ForwardSDE, ProbabilityFlow, ReverseSDE
from ..solvers import AdaptiveSDE, BrownianPath, SampleNoise, Solver, WhiteNoise, solve, uniform_lambda
from . import problems
from .cover import cover_expectation
from .laws import Report, Violation, require, require_close, require_equal, run_laws
from .orders import convergence_order, propagate_moments

Grid = Callable[[Diffusion, int], Tensor]


def check_solver(
    solver: Solver,
    problem: problems.Problem | None = None,
    *,
    order: float | None = None,
    steps: Sequence[int] = (8, 16, 32, 64, 128, 256),
    grid: Grid | None = None,
    start: Tensor | None = None,
    raises: bool = True,
) -> Report:
    """Run the laws of solvers on ``solver``.

    The last two slopes of the error before rounding must lie in [order − 0.1, order + 0.4]. The error is that of the states
    against the exact flow for deterministic rules; that of mean and covariance on Gaussian data for stochastic ones, whose
    exact moments :func:`propagate_moments` gives, and that of an expectation, found by quadrature, on the interval and the 3-category
    simplex. Adaptive rules may meet their tolerance instead; Markov chains (``order`` None) have none.

    Args:
        solver: any :class:`carom.solvers.Solver` that takes a flow, an ODE, the reverse SDE, the forward SDE or an SDE.
        problem: from ``problems`` (stochastic rules: a Gaussian one, ``cosine()`` or ``pair()``); M1 or G1 under VP by default.
        order: the order to be reached; by default what the solver claims.
        steps: numbers of steps, doubling. More are needed where a problem is rough, fewer where it is smooth.
        grid: (process, number of levels) → strictly decreasing times; by default uniform in ln σ from σ = 2 to σ = 0.2, the
            middle, where data and noise are of one size.
        start: float64 states ``[n, *event]`` at the grid's first time, n ≥ 2.
        raises: raise :class:`LawError` at the first law that fails; otherwise report all.
    """
    problem = problem or (problems.gaussian(VP()) if solver.stochastic else problems.mixture(VP()))
    bench = SolverBench(
        solver,
        problem,
        _claimed(solver, order),
        tuple(steps),
        grid or middle,
        start,
    )
    laws: list[tuple[str, Callable[[SolverBench], str | None]]] = [
        ("states its facts", facts),
        ("plans one record of plain floats per step", plans),
        ("one and two steps work", few_steps),
        ("field evaluations are counted truly", counts),
        ("two solves share nothing", shares_nothing),
        ("a sample does not depend on its batch", independent),
        ("float32 agrees with float64", precisions_agree),
    ]
    if bench.order is not None:
        meets_tolerance = solver.adaptive and not solver.stochastic
        laws.append(
            ("meets its tolerance or order", accuracy) if meets_tolerance else ("reaches its order", reaches_order)
        )
    return run_laws(repr(solver), [(name, partial(law, bench)) for name, law in laws], raises)


def _claimed(solver: Solver, order: float | None) -> float | None:
    claimed = getattr(solver, "order", 0.0) if order is None else order
    return None if claimed is None or isinstance(solver, AdaptiveSDE) else float(claimed)


def middle(process: Diffusion, n: int) -> Tensor:
    """n levels, uniform in ln σ from σ = 2 to 0.2: the default grid of :func:`check_solver`."""
    return uniform_lambda(process, n, sigma_max=2.0, sigma_min=0.2)


@dataclass
class Counter:
    """A score that counts its calls; offers what the score offers."""

    score: Any
    calls: int = 0
    rows: Any = field(init=False)

    def __post_init__(self) -> None:
        # counted per batch: restricting it would count a part as a whole
        self.rows = lambda index: None

    def __call__(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        self.calls += 1
        return self.score(x, t, **condition)


@dataclass
class SolverBench:
    """A solver, a problem it accepts, and how to run it."""

    solver: Solver
    problem: problems.Problem
    order: float | None
    steps: tuple[int, ...]
    grid: Grid
    start: Tensor | None

    def rule(self, n: int) -> Solver:
        """The solver for n steps."""
        return self.solver

    def times(self, n: int) -> Tensor:
        """n steps, in the direction in which the equation runs."""
        times = self.grid(self.problem.process, n + 1)
        return times.flip(0) if self.equation().direction > 0 else times

    def equation(self, score: Callable[..., Tensor] | None = None) -> Equation:
        """The problem as an equation that the solver accepts."""
        process, score = self.problem.process, score or self.problem.score

        def drift(eta: float) -> Callable[..., Tensor]:
            def value(x: Tensor, t: Tensor) -> Tensor:
                a, b, _ = ReverseSDE(process, score, eta).coefficients(t)
                return a * x + b * score(x, t)

            return value

        makers: dict[type[Equation], Callable[[], Equation]] = {
            ProbabilityFlow: lambda: process.flow(score),
            ODE: lambda: ODE(drift(0.0), process.domain),
            ReverseSDE: lambda: process.reverse(score),
            SDE: lambda: SDE(drift(1.0), lambda x, t: process.schedule.diffusion(t), process.domain),
            ForwardSDE: lambda: process.forward(),
        }
        for accepted in self.solver.accepts:
            for kind, make in makers.items():
                if issubclass(kind, accepted):
                    return make()
        names = ", ".join(c.__name__ for c in self.solver.accepts)
        raise Violation(f"got a solver that accepts {names}, expected one of {', '.join(c.__name__ for c in makers)}")

    def initial(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """States at the first time."""
        x = self.problem.points(float(self.times(1)[0])) if self.start is None else self.start
        return x.to(dtype)

    def run(self, n: int, x: Tensor, noise: Any = None, score: Callable[..., Tensor] | None = None) -> Any:
        return solve(self.equation(score), x, self.times(n), self.rule(n), noise=noise)

    def noise(self, count: int, first: int = 0) -> Any:
        return SampleNoise(range(first, first + count)) if self.solver.stochastic else None


def facts(bench: SolverBench) -> None:
    """order > 0; accepts names equation classes; stochastic rules state a weak order."""
    solver = bench.solver
    require(bench.order is None or bench.order > 0, bench.order, "a positive order")
    accepts = getattr(solver, "accepts", ())
    require(len(accepts) > 0 and all(issubclass(c, Equation) for c in accepts), accepts, "a tuple of equation classes")
    if solver.stochastic and bench.order is not None:
        require(solver.weak_order is not None, None, "a weak order")


def plans(bench: SolverBench) -> None:
    """plan gives one record per interval, its ends to the bit, its coefficients nested tuples of Python floats."""
    if bench.solver.adaptive:
        return
    times = bench.times(5)
    records = bench.solver.plan(bench.equation(), times)
    require(len(records) == 5, f"{len(records)} records", "5, one per step")
    ends = [(record.t, record.s) for record in records]
    require(
        ends == list(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)), ends, "the grid's times, to the bit"
    )
    for record in records:
        _plain((record.t, record.s, record.coefficients))
        require(record.draws == 0 or bench.solver.stochastic, f"{record.draws} draws", "none of a deterministic rule")


def _plain(node: Any) -> None:
    if isinstance(node, tuple):
        for child in node:
            _plain(child)
    else:
        allowed = node is None or type(node) in (float, int, bool, str)
        require(
            allowed,
            f"a {type(node).__module__}.{type(node).__name__} among coefficients",
            "Python floats, None and tuples",
        )


def few_steps(bench: SolverBench) -> None:
    """One step and two steps give finite states of the same shape, for a batch, one sample and none."""
    x = bench.initial()
    for n in (1, 2):
        for part in (x, x[0], x[:0]):
            count = part.shape[0] if part.dim() == x.dim() else 1
            solution = bench.run(n, part, bench.noise(count))
            require(solution.x.shape == part.shape, tuple(solution.x.shape), tuple(part.shape))
            require(
                solution.x.isfinite() & (solution.status == 0).reshape(-1, *(1,) * (x.dim() - 1)).all(),
                solution.x.tolist(),
                "finite states",
            )


def counts(bench: SolverBench) -> str:
    """Solution.nfe is the number of times the score was called."""
    equation = bench.equation()
    if isinstance(equation, ForwardSDE):
        return "no field to evaluate"
    score = Counter(bench.problem.score)
    nfe = bench.run(4, bench.initial()[:1], bench.noise(1), score).nfe
    got = int(nfe.max()) if isinstance(nfe, Tensor) else nfe
    require(got == score.calls, f"nfe = {got}", f"{score.calls}, the calls of the score")
    return f"{got} for 4 steps"


def shares_nothing(bench: SolverBench) -> None:
    """A solve gives the same bits after another solve as before it, and leaves its input as it was."""
    x = bench.initial()
    kept = x.clone()
    noise = WhiteNoise(7) if bench.solver.stochastic else None
    first = bench.run(6, x, noise).x
    bench.run(3, x.flip(0) * 0.9, noise)
    require_equal(bench.run(6, x, noise).x, first, "the second of two equal solves")
    require_equal(x, kept, "the input after a solve")


def independent(bench: SolverBench) -> None:
    """With per-sample noise a sample has the same bits alone, in a part of the batch, and in the batch."""
    for dtype in (torch.float32, torch.float64):
        x = bench.initial(dtype)
        whole = bench.run(7, x, bench.noise(len(x))).x
        for i in range(len(x)):
            require_equal(bench.run(7, x[i : i + 1], bench.noise(1, i)).x[0], whole[i], f"sample {i} alone")
        require_equal(bench.run(7, x[1:], bench.noise(len(x) - 1, 1)).x, whole[1:], "a part of the batch")


def precisions_agree(bench: SolverBench) -> None:
    """In float32 the result has that dtype and agrees with float64 on the same noise to 1e-4 of the state's size."""
    x = bench.initial(torch.float32)
    noise = BrownianPath(range(len(x))) if bench.solver.stochastic else None
    single, double = bench.run(10, x, noise).x, bench.run(10, x.double(), noise).x
    require(single.dtype == torch.float32, single.dtype, torch.float32)
    # adaptive rules choose other steps in the other precision: their tolerance is what can be asked
    tolerance = 1e-4 + (20 * _tolerance(bench.solver) if bench.solver.adaptive else 0.0)
    require_close(single.double(), double, tolerance * (1 + double.abs().max()), "a float32 state")


def accuracy(bench: SolverBench) -> str:
    """The error against the exact flow stays within 100 times the tolerance, with one and with several output intervals.

    Rules that take one step per interval after all are measured as the others are.
    """
    x, worst = bench.initial(), 0.0
    for n in (1, 8):
        times = bench.times(n)
        got = bench.run(n, x).x
        exact = bench.problem.flow(x, float(times[0]), float(times[-1]))
        # per-step control leaves an error of steps · tolerance, which the flow may enlarge; a factor of 100 covers both
        allowed = 100 * _tolerance(bench.solver) * (1 + exact.abs().max())
        worst = max(worst, float((got - exact).abs().max() / (allowed / 100)))
        try:
            require_close(got, exact, allowed, f"the state in {n} interval{'s' * (n > 1)}")
        except Violation as far:
            try:
                return reaches_order(bench)
            except Violation as slow:
                raise Violation(f"{far}; {slow}") from None
    return f"error {worst:.2g} tolerances"


def _tolerance(solver: Solver) -> float:
    return max(getattr(solver, "rtol", 1e-6), getattr(solver, "atol", 1e-6))


def reaches_order(bench: SolverBench) -> str:
    """The last two slopes before rounding lie in [order − 0.1, order + 0.4].

    Where the leading term of the error happens to be small, slopes settle late: then up to four more doublings decide, or,
    where rounding comes first, numbers of steps half an octave apart, which go nearer to it.
    """
    order: float = bench.order  # type: ignore[assignment]
    low, high = order - 0.1, order + 0.4
    steps = bench.steps
    for attempt in range(5):
        slopes = measure(bench, steps)
        last = slopes[-2:]
        if len(last) == 2 and bool(((last >= low) & (last <= high)).all()):
            return f"slopes {_listed(slopes)}" + f" up to {steps[-1]} steps" * (attempt > 0)
        if not len(last) or abs(float(last[-1]) - order) > 0.6:
            break  # not on its way to this order
        if len(slopes) < len(steps) - 1:
            if attempt:
                break
            steps = tuple(sorted({*steps, *(3 * n // 2 for n in steps)}))
        else:
            steps = (*steps[-2:], 2 * steps[-1])
    require(len(last) == 2, f"slopes [{_listed(slopes)}] above rounding", "at least two; give other steps")
    raise Violation(f"got slopes [{_listed(slopes)}], expected the last two in [{low:g}, {high:g}] for order {order:g}")


def _listed(slopes: Tensor) -> str:
    return ", ".join(f"{v:.2f}" for v in slopes.tolist())


def measure(bench: SolverBench, steps: Sequence[int]) -> Tensor:
    """Slopes of the error: of states for deterministic rules, of mean and covariance for stochastic ones."""
    solver, problem = bench.solver, bench.problem
    first, last = (float(bench.times(1)[i]) for i in (0, -1))
    if not solver.stochastic:
        x = bench.initial()
        return convergence_order(lambda n: bench.run(n, x).x, steps, problem.flow(x, first, last))
    if isinstance(problem, (problems.CosineProblem, problems.PairProblem)):
        exact = expected_cosines(problem, last)

        def weak_error(n: int) -> float:
            return cover_expectation(
                bench.equation(),
                bench.rule(n),
                bench.times(n),
                cosines,
                lambda x: problem.log_prob(x, first).exp(),
                **COVER[state_dim(problem)],
            )

        return convergence_order(lambda n: weak_error(n) - exact, steps, resolution=1e-8)
    if not getattr(problem, "gaussian", False):
        raise Violation(
            f"got {type(problem).__name__} for a stochastic rule, expected a Gaussian problem: problems.gaussian(schedule)"
        )
    mean, covariance = problem.moments(first)

    def moments(n: int) -> Tensor:
        m, c = propagate_moments(bench.equation(), bench.rule(n), bench.times(n), mean, covariance)
        return torch.cat([m, c.flatten()])

    exact_mean, exact_covariance = problem.moments(last)
    return convergence_order(moments, steps, torch.cat([exact_mean, exact_covariance.flatten()]))


#: Chebyshev points and normals by dimension: what is left out is below 1e-9, of errors above 1e-6
COVER = {1: {"degree": 25, "nodes": 40}, 2: {"degree": 15, "nodes": 20}}


def state_dim(problem: problems.Problem) -> int:
    return math.prod(problem.process.domain.event_shape)


def cosines(x: Tensor) -> Tensor:
    """A function of states that is even and periodic on the covering space, ``[n, d] -> [n]``."""
    return ((math.pi * x).cos() + 0.7 * (2 * math.pi * x).cos()).sum(-1)


def expected_cosines(problem: problems.Problem, t: float) -> float:
    """E of ``cosines`` at time t, by Gauss–Legendre on the square (the interval)."""
    dim = state_dim(problem)
    node, weight = np.polynomial.legendre.leggauss(48)
    x = torch.cartesian_prod(*[torch.tensor(0.5 + 0.5 * node)] * dim).reshape(-1, dim)
    w = torch.cartesian_prod(*[torch.tensor(0.5 * weight)] * dim).reshape(-1, dim).prod(-1)
    density = problem.log_prob(problem.process.domain.fold(x)[0], t).exp()  # type: ignore[attr-defined]
    return float((density * cosines(x) * w).sum()) / math.factorial(dim)
