"""Which wall for which rule: weak errors on [0, 1] under every wall, and whether each rule's default is the best of them.

Two scores: the exact one of a cosine density, whose normal component s·n vanishes at the walls, and the same with a constant added, as
a network's error may do: it points out through the wall at 0. The error is the L² distance between the distribution functions of X_N and
X, where X is the reflected diffusion (for flows: the projected one) driven by that score, in its first MODES Fourier terms:
√(2 Σ_k (E cos kπX_N − E cos kπX)²/(kπ)²). Printed with the order over the last two doublings; defaults are starred. Where
the second score favours another wall than the default, the two are compared with the constant of the other sign as well.

No sampling noise: where steps draw normals, u(x) = E[cos kπX_N | X_n = x] is pulled back step by step, through the solver's own ``step``
and the wall's own ``settle``, as Chebyshev series in x (and in the prediction that a rule remembers), with Gauss–Legendre sums over the
normal whose panels end where the wall makes a kink. The law to be reached solves Kolmogorov's equation. Errors come out to three digits;
to about 2 % for ReflectedStrang where s·n ≠ 0, since its second flow may meet a wall once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from timing import settle_allocator, verdict
from torch import Tensor

from carom.domains import Ball, Domain
from carom.processes import VE, Diffusion, Equation, Wall
from carom.solvers import (
    Ancestral,
    Cover,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    Penalise,
    Project,
    Reflect,
    ReflectedStrang,
    Reject,
    RungeKutta,
    Solver,
    bind,
    solve,
    uniform_lambda,
)
from carom.solvers.loop import default_wall
from carom.validation import problems

STEPS = (8, 16, 32, 64, 128)
WALLS = (Reflect(), Cover(), Project(), Reject(), Penalise())
KINDS: dict[str, tuple[Solver, ...]] = {
    "deterministic": (Euler(), Heun(), DPMSolverPP(3)),
    "stochastic, one evaluation, no history": (EulerMaruyama(), Ancestral()),
    "stochastic, several evaluations or a history": (ReflectedStrang(), DPMSolverPP(2, sde=True)),
}
PROBLEM = problems.cosine(0.8)
PROCESS, DOMAIN = PROBLEM.process, PROBLEM.process.domain
SIGMA_MAX, SIGMA_MIN = 0.6, 0.1
PUSH = 2.0
MODES = 2
#: Chebyshev points in x; normals beyond REACH standard deviations are left out (1e-10 of them)
PLACES, REACH = 33, 6.5
GAUSS = np.polynomial.legendre.leggauss(11)
BLOCK = 512  # segments whose series are summed at a time, in the processor's cache
#: a default may err so many times as much as the best wall of its rule, in the geometric mean over STEPS
FACTOR = 1.5
Array = np.ndarray
Score = Callable[[Tensor, Any], Tensor]


def outward(x: Tensor, t: Any) -> Tensor:
    return PROBLEM.score(x, t) - PUSH


def opposite(x: Tensor, t: Any) -> Tensor:
    return PROBLEM.score(x, t) + PUSH


def modes(x: Tensor) -> Tensor:
    """cos kπx of states ``[…, 1]``: ``[MODES, …]``."""
    return torch.stack([(k * math.pi * x[..., 0]).cos() for k in range(1, MODES + 1)])


def grid(steps: int) -> Tensor:
    return uniform_lambda(PROCESS, steps + 1, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN)


def density(x: Tensor) -> Tensor:
    """Of the law at σ_max, where all runs start."""
    return PROBLEM.log_prob(x, float(grid(1)[0])).exp()


@cache
def starts(count: int = 200) -> tuple[Tensor, Tensor]:
    """Nodes ``[n, 1]`` and weights of that law."""
    node, weight = np.polynomial.legendre.leggauss(count)
    x = torch.tensor(0.5 + 0.5 * node)[:, None]
    return x, torch.tensor(0.5 * weight) * density(x)


# ------------------------------------------------------------------------------------------------ pulling back one step


def places(count: int, low: float, high: float) -> Array:
    return low + (high - low) * 0.5 * (1 - np.cos(math.pi * np.arange(count) / (count - 1)))


@cache
def transform(count: int) -> Array:
    """From values at so many places to the coefficients of the Chebyshev series through them."""
    j = np.arange(count)
    matrix = np.cos(math.pi * j[:, None] * (count - 1 - j) / (count - 1)) * 2 / (count - 1)
    matrix[[0, -1]] *= 0.5
    matrix[:, [0, -1]] *= 0.5
    return matrix


class Panel(NamedTuple):
    low: float
    high: float

    def local(self, x: Array) -> Array:
        return np.clip((2 * x - self.low - self.high) / (self.high - self.low), -1, 1)


class Axes(NamedTuple):
    """Where states and remembered predictions (if any) lie before a step; a panel each for the states inside and on either side."""

    state: tuple[Panel, ...]
    memory: Panel | None

    @classmethod
    def around(cls, x: Array, memory: Array | None) -> Axes:
        low, high = float(x.min()), float(x.max())
        state = (Panel(0.0, 1.0),)
        if low < 0 or high > 1:
            state = (Panel(min(low, -1e-3), 0.0), *state, Panel(1.0, max(high, 1 + 1e-3)))
        return cls(state, None if memory is None else Panel(float(memory.min()) - 1e-3, float(memory.max()) + 1e-3))

    @property
    def held(self) -> int:
        """Places in the memory."""
        return 1 if self.memory is None else 5 + math.ceil(2 * (self.memory.high - self.memory.low))

    def points(self) -> tuple[Tensor, Tensor | None]:
        """All combinations, ``[rows, 1]`` each."""
        x = np.concatenate([places(PLACES, *panel) for panel in self.state])
        held = None if self.memory is None else torch.tensor(np.tile(places(self.held, *self.memory), len(x)))[:, None]
        return torch.tensor(np.repeat(x, self.held))[:, None], held


class Watched(Wall):
    """A wall that remembers where moves ended before it acted."""

    def __init__(self, wall: Wall):
        self.wall, self.ends = wall, []

    def evaluate(self, domain: Domain, field: Any, u: Tensor, t: Tensor, start: Tensor | None) -> Tensor:
        return self.wall.evaluate(domain, field, u, t, start)

    def settle(self, domain: Domain, x: Tensor, y: Tensor) -> Tensor:
        self.ends.append(y)
        return self.wall.settle(domain, x, y)


class Moves(NamedTuple):
    """Where one step leads from each point of the axes by each normal, ``[nodes, segments]``, and what it remembers, ``[segments]``.

    A segment is one point and one panel of normals between two kinks: all its moves end in one interval between walls and their images.
    """

    axes: Axes
    ends: Array
    weights: Array
    memory: Array | None

    @classmethod
    def of(cls, equation: Equation, solver: Solver, record: Any, axes: Axes) -> Moves:
        x, memory = axes.points()
        z, weights = normals(*affine(equation, solver, record, x, memory))
        each = lambda v: v[:, 0].repeat_interleave(z.shape[1] // len(v)).expand(z.shape).reshape(-1, 1)
        held = None if memory is None else each(memory)
        ends, kept = step(equation, solver, record, each(x), held, torch.tensor(z).reshape(-1, 1))
        if isinstance(equation.wall, Cover):
            # all copies of the interval are alike; the reflection that folds a state takes along the point that it remembers
            outside, (ends, back) = ends, DOMAIN.fold(ends)
            kept = None if kept is None else ends + back(kept - outside)
        return cls(
            axes, ends.reshape(z.shape).numpy(), weights, None if kept is None else kept.reshape(z.shape)[0].numpy()
        )

    def pull_back(self, u: Series | Callable[[Array, Array | None], Array]) -> Series:
        values = (u(self.ends, self.memory) * self.weights).sum(1)
        values = values.reshape(MODES, len(self.axes.state), PLACES, self.axes.held, -1).sum(-1)
        table = transform(PLACES) @ values
        return Series(self.axes, table @ transform(self.axes.held).T if self.axes.memory else table)


class Series(NamedTuple):
    """Functions of state and memory by their Chebyshev coefficients ``[modes, panels, places, memory]``."""

    axes: Axes
    table: Array

    def __call__(self, x: Array, memory: Array | None) -> Array:
        """At states ``[nodes, segments]`` with one memory per segment: ``[modes, nodes, segments]``."""
        blocks = [slice(i, i + BLOCK) for i in range(0, x.shape[1], BLOCK)]
        return np.concatenate([self._at(x[:, b], None if memory is None else memory[b]) for b in blocks], -1)

    def _at(self, x: Array, memory: Array | None) -> Array:
        table, panels = self.table, self.axes.state
        if self.axes.memory and memory is not None:
            angle = np.arccos(self.axes.memory.local(memory))
            basis = np.cos(np.arange(table.shape[-1])[:, None] * angle)
            # by torch, whose threads main() limits; NumPy's own would spin
            table = (torch.from_numpy(table) @ torch.from_numpy(basis)).numpy()
        if len(panels) == 1:
            return clenshaw(table[:, 0], panels[0].local(x))
        table = np.broadcast_to(table, (*table.shape[:-1], x.shape[1]))
        which, out = np.searchsorted([p.low for p in panels[1:]], x, side="right"), np.zeros((MODES, *x.shape))
        for i, panel in enumerate(panels):
            here = which == i
            some = here.any(0)
            if some.any():
                out[..., some] += here[:, some] * clenshaw(table[:, i][..., some], panel.local(x[:, some]))
        return out


def clenshaw(table: Array, y: Array) -> Array:
    """Σ table_j T_j(y): table ``[modes, places, segments]``, y ``[nodes, segments]``."""
    twice, b1, b2 = 2 * y, np.zeros((len(table), *y.shape)), np.zeros((len(table), *y.shape))
    product = np.empty_like(b1)
    for j in range(table.shape[1] - 1, 0, -1):
        np.multiply(twice, b1, out=product)
        np.subtract(product, b2, out=b2)
        b2 += table[:, j, None]
        b1, b2 = b2, b1
    return y * b1 - b2 + table[:, 0, None]


def step(
    equation: Equation, solver: Solver, record: Any, x: Tensor, memory: Tensor | None, z: Tensor
) -> tuple[Tensor, Tensor | None]:
    moved, state = solver.step(equation, x, record, () if memory is None else (memory,), (z,))
    return equation.settle(x, moved), (state[0] if state else None)


def affine(equation: Equation, solver: Solver, record: Any, x: Tensor, memory: Tensor | None) -> tuple[Array, Array]:
    """(m, s) ``[rows]`` of the move m + s z that the normal makes before a wall acts on it."""
    watched, z = Watched(equation.wall), torch.cat([torch.zeros_like(x), torch.ones_like(x)])
    twice = lambda v: None if v is None else torch.cat([v, v])
    step(equation.bound(watched), solver, record, twice(x), twice(memory), z)
    ends = (end[:, 0].chunk(2) for end in watched.ends)
    still, moved = next((a, b) for a, b in ends if not torch.equal(a, b))
    return still.numpy(), (moved - still).numpy()


def normals(centre: Array, spread: Array) -> tuple[Array, Array]:
    """Nodes and weights ``[nodes, rows · panels]`` of ∫ · φ(z) dz; panels end where centre + spread·z is a wall or an image of one."""
    even = np.linspace(-REACH, REACH, 5)
    most = math.ceil(2 * REACH * float(spread.max())) + 1
    first = np.ceil(centre - REACH * spread)
    kinks = np.clip((first[:, None] + np.arange(most) - centre[:, None]) / spread[:, None], -REACH, REACH)
    ends = np.sort(np.concatenate([kinks, np.broadcast_to(even, (len(centre), len(even)))], 1), 1)
    t, w = GAUSS
    middle, half = (v.reshape(-1) for v in (0.5 * (ends[:, 1:] + ends[:, :-1]), 0.5 * np.diff(ends, axis=1)))
    z = middle + half * t[:, None]
    return z, half * w[:, None] * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


# ------------------------------------------------------------------------------------------------------- expectations


def expected(score: Score, solver: Solver, wall: Wall, steps: int) -> Tensor:
    """E cos kπX_N, ``[MODES]``."""
    equation = solver.accepts[0](PROCESS, score)  # type: ignore[call-arg]
    x, weight = starts()
    if not solver.stochastic:
        return modes(solve(equation, x, grid(steps), solver, wall=wall).x) @ weight
    equation = equation.bound(wall)
    moves, axes = [], Axes((Panel(0.0, 1.0),), None)
    for record in bind(solver.plan(equation, grid(steps)), x):
        moves.append(Moves.of(equation, solver, record, axes))
        axes = Axes.around(moves[-1].ends, moves[-1].memory)
    u: Any = lambda at, memory: modes(wall.show(DOMAIN, torch.tensor(at)[..., None])).numpy()
    for move in reversed(moves):
        u = move.pull_back(u)
    return torch.tensor(u(x.numpy(), None)[..., 0]) @ weight


@cache
def limit(score: Score, stochastic: bool) -> Tensor:
    """What the rules approach."""
    if stochastic:
        return kolmogorov(score)
    x, weight = starts()
    return modes(solve(PROCESS.flow(score), x, grid(1024), RungeKutta(), wall=Project()).x) @ weight


def kolmogorov(score: Score) -> Tensor:
    """E cos kπX of the reflected diffusion: ∂u/∂v = score u' + ½u'' with u' = 0 at the walls, v the variance left, by collocation."""
    n = 48
    y = np.cos(math.pi * np.arange(n + 1) / n)
    c = np.r_[2, np.ones(n - 1), 2] * (-1) ** np.arange(n + 1)
    d = np.outer(c, 1 / c) / (y[:, None] - y[None, :] + np.eye(n + 1))
    d = 2 * (d - np.diag(d.sum(1)))  # on [0, 1], x = (1 + y)/2
    inner, ends = np.arange(1, n), [0, n]
    whole = np.zeros((n + 1, n - 1))  # from values inside to all values, those at the walls such that u' = 0
    whole[inner], whole[ends] = np.eye(n - 1), -np.linalg.solve(d[np.ix_(ends, ends)], d[np.ix_(ends, inner)])
    first, second = (d @ whole)[inner], (d @ d @ whole)[inner]
    x = torch.tensor(0.5 + 0.5 * y[inner])[:, None]

    def slope(v: float, u: Array) -> Array:
        t = PROCESS.level(sigma=math.sqrt(SIGMA_MIN**2 + v)).t
        return score(x, t)[:, 0].numpy() * (first @ u) + 0.5 * (second @ u)

    span, at, out = (0.0, SIGMA_MAX**2 - SIGMA_MIN**2), starts()[0][:, 0].numpy(), []
    for start in modes(x).numpy():
        u = solve_ivp(slope, span, start, method="Radau", rtol=1e-9, atol=1e-10).y[:, -1]
        out.append(np.polynomial.chebyshev.chebval(2 * at - 1, np.polynomial.chebyshev.chebfit(y, whole @ u, n)))
    return torch.tensor(np.array(out)) @ starts()[1]


# ------------------------------------------------------------------------------------------------------------ report


def distance(gap: Tensor) -> float:
    k = torch.arange(1, MODES + 1, dtype=torch.float64)
    return float((2 * (gap / (k * math.pi)) ** 2).sum().sqrt())


def name(solver: Solver) -> str:
    if isinstance(solver, DPMSolverPP):
        return f"DPMSolverPP({solver.p}{', sde=True' * solver.stochastic})"
    return repr(solver)


def weak_errors(score: Score, solver: Solver, wall: Wall) -> list[float]:
    goal = limit(score, solver.stochastic)
    return [distance(expected(score, solver, wall, n) - goal) for n in STEPS]


def mean(errors: list[float]) -> float:
    return math.prod(errors) ** (1 / len(errors))


def compare(score: Score, solver: Solver) -> str:
    """Print the rule's errors under all walls; what is to be said of its default."""
    default = default_wall(solver.accepts[0](PROCESS, score), solver)  # type: ignore[call-arg]
    default = next(wall for wall in WALLS if type(wall) is type(default))
    errors = {wall: weak_errors(score, solver, wall) for wall in WALLS}
    for i, (wall, found) in enumerate(errors.items()):
        order = f"{math.log2(found[-3] / found[-1]) / 2:8.2f}"
        title = f"{'' if i else name(solver):24} {wall!r:>14}{'*' if wall is default else ' '}"
        print(title + "".join(f"{e:10.1e}" for e in found) + order, flush=True)
    best = min(WALLS, key=lambda wall: mean(errors[wall]))
    factor = mean(errors[default]) / mean(errors[best])
    other = "none errs less" if factor < 1.005 else f"{best!r} errs less"
    line = f"  {name(solver):24} {default!r:9} {factor:.2f}× the least, {other:21} {verdict(factor, FACTOR)}"
    if factor <= FACTOR or score is not outward:
        return line
    turned = mean(weak_errors(opposite, solver, default)) / mean(weak_errors(opposite, solver, best))
    return f"{line}\n    with the constant of the other sign {default!r} errs {turned:.2f}× as much as {best!r}"


def refusal() -> str:
    """What the library says to the one wall that a domain can lack."""
    process = Diffusion(Ball(2), VE())
    try:
        solve(process.flow(lambda x, t: -x), torch.zeros(1, 2), [1.0, 0.5], Euler(), wall=Cover())
    except TypeError as refused:
        return str(refused)
    return "accepted"


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    settle_allocator()
    judged: dict[str, list[str]] = {}
    closed = PROBLEM.amplitude / 2 * math.exp(-0.5 * (math.pi * SIGMA_MIN) ** 2)  # E cos πX of 1 + a cos πx is a/2
    exact = torch.tensor([closed] + [0.0] * (MODES - 1), dtype=torch.float64)
    gap = float((limit(PROBLEM.score, True) - exact).abs().max())
    print(f"the law to be reached, where it is known in closed form: off by {gap:.0e}   {verdict(gap, 1e-9)}")
    for title, score in (("exact score, s·n = 0", PROBLEM.score), (f"exact score − {PUSH:g}, s·n ≠ 0", outward)):
        print(f"\n{title}; steps:")
        print(f"{'':40}" + "".join(f"{n:>10}" for n in STEPS) + "   order")
        for kind, solvers in KINDS.items():
            judged.setdefault(kind, []).extend([f" {title}", *(compare(score, solver) for solver in solvers)])
    print(f"\nall walls are accepted on an interval; elsewhere: {refusal()}")
    print("\nerror of the default as a multiple of the best wall's, in the geometric mean over steps")
    for kind, lines in judged.items():
        print("\n".join([kind, *lines]))


if __name__ == "__main__":
    main()
