r"""Explicit multistep rules: one polynomial through predictions of earlier steps, integrated exactly against the exponential.

.. math:: x_s = \text{carry}\cdot x_t + \sum_{j<p} w_j P_{n-j} + c\,z,\qquad w_j = \int L_j\,k\,dλ

DPM-Solver, DPM-Solver++, DEIS, exponential Adams–Bashforth, LMS and iPNDM are choices of form and variable in this scheme (see
``forms``); for the reverse SDE it gives their stochastic counterparts.

*Order plans* are visible lists, ``solver.orders(n)``: the order of each of n steps. By default a rule of order p > 2 takes its first
step in singlestep fashion with order p − 1, so that no low-order step spoils the rest, and reads the stages of that step as
history of the next: starting costs 1, 2 or 4 evaluations more than a step for p = 3, 4, 5. With n < p steps orders rise from 1. A plan of
your own, a list or a function of (n, p), may do so always (``orders=rising``), or fall at the end ([1, 2, 3, …, 2, 1],
``lambda n, p: falling_end(rising(n, p))``); ``order`` follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..domains.tensors import is_int
from ..processes import Diffusion, Equation, ProbabilityFlow, ReverseSDE
from .forms import Array, Form, Levels, carry, clock_of, form_of, weights
from .linear import LinearSolver, Reading, Stage, noise_levels, readings
from .solver import Record, Row, Solver

Orders = Sequence[int] | Callable[[int, int], Sequence[int]] | None
MAX_ORDER = 5
_LONG = 32  # steps of a plan from which its order is read
_ROOT = 6**0.5


class Starter(NamedTuple):
    """A singlestep rule whose stages can serve as history.

    ``stages``: (place c in [0, 1], the readings from which it is reached); ``result``: the readings from which the step's end is
    reached; ``history``: readings accurate enough to be kept, newest first. Stage i is read at place c_i; stage 0 at the start.
    """

    stages: tuple[tuple[float, tuple[int, ...]], ...]
    result: tuple[int, ...]
    history: tuple[int, ...]


# A stage reached from k readings has an error of h^{k+1}, one more where its places are Radau's, which make the error of the
# interpolation vanish; a step of order q needs readings whose states err by h^q.
_C1, _C2 = (4 - _ROOT) / 10, (4 + _ROOT) / 10
STARTERS: dict[int, Starter] = {
    1: Starter(((0.0, ()),), (0,), (0,)),
    2: Starter(((0.0, ()), (2 / 3, (0,))), (0, 1), (1, 0)),
    3: Starter(((0.0, ()), (1 / 3, (0,)), (2 / 3, (0, 1))), (0, 2), (2, 0)),
    4: Starter(
        ((0.0, ()), (4 / 9 * _C2, (0,)), (2 / 3 * _C2, (0, 1)), (_C2, (0, 2)), (_C1, (0, 2, 3))), (0, 4, 3), (3, 4, 0)
    ),
}


def rising(n: int, p: int) -> list[int]:
    """[1, 2, …, p, p, …]: no step reads more than what its predecessors leave."""
    return [min(i + 1, p) for i in range(n)]


def singlestep_start(n: int, p: int) -> list[int]:
    """[p − 1, p − 1, …, p, p, …]: a singlestep first step of order p − 1, then steps of that order until there are readings enough for p.
    With fewer than p steps, or p ≤ 2, the orders rise from 1 instead, at one evaluation a step."""
    if p <= 2 or n < p:
        return rising(n, p)
    # readings that the first step leaves; each further step adds one
    left = len(STARTERS[p - 1].history)
    return [p - 1 if i == 0 or left + i < p else p for i in range(n)]


def falling_end(orders: Sequence[int]) -> list[int]:
    """The same orders with the last steps lowered to …, 3, 2, 1: steadier where few steps end at a very small σ."""
    return [min(order, len(orders) - i) for i, order in enumerate(orders)]


class Multistep(LinearSolver):
    """An explicit multistep rule of order p; see the module's text. Subclasses choose form, variable and weights."""

    accepts: tuple[type[Equation], ...] = (ProbabilityFlow,)
    multistage = True
    reads_predictions = True
    start: Callable[[int, int], list[int]] = staticmethod(singlestep_start)

    def __init__(
        self,
        p: int,
        form: str | Form = "data",
        *,
        clock: str = "lambda",
        sde: bool = False,
        eta: float | None = None,
        orders: Orders = None,
    ):
        if not is_int(p, 1, MAX_ORDER):
            raise ValueError(f"{type(self).__name__}: got order {p!r}, expected an int from 1 to {MAX_ORDER}")
        if (
            orders is not None
            and not callable(orders)
            and (isinstance(orders, str) or not isinstance(orders, Sequence))
        ):
            raise TypeError(
                f"orders: got {orders!r}, expected a list of orders, one a step, or a function of (n, p) such as rising"
            )
        self.p, self.form, self.clock, self._orders = p, form_of(form), clock, orders
        clock_of(clock, None)  # type: ignore[arg-type]  # refuses a misspelling now
        if (sde or eta is not None) and not self.form.spread:
            raise ValueError(
                f"{type(self).__name__}: got form {self.form.name!r} with noise, expected 'noise' or 'data'"
            )
        if eta is not None and not eta >= 0:
            raise ValueError(f"eta: got {eta:g}, expected a number ≥ 0 (0 the flow, 1 the reverse SDE)")
        if eta is not None and not sde:
            raise ValueError(f"eta: got {eta:g} without sde=True, expected sde=True; a flow has no noise")
        self.eta = eta
        self.stochastic, self.accepts = sde, (ReverseSDE,) if sde else (ProbabilityFlow,)
        self.order = self._order_of_plan(min(p, 2) if sde else p)
        self.weak_order = self.order if sde else None
        self.strong_order = 1.0 if sde else None

    def orders(self, n: int) -> list[int]:
        """The order of each of n steps."""
        if self._orders is None:
            return rising(n, min(self.p, n)) if self.stochastic else self.start(n, self.p)
        orders = list(self._orders(n, self.p) if callable(self._orders) else self._orders)
        if len(orders) != n or not all(is_int(order, 1, self.p) for order in orders):
            raise ValueError(f"orders: got {orders} for {n} steps, expected {n} orders from 1 to {self.p}")
        return orders

    def _order_of_plan(self, order: int, corrected: int = 0) -> int:
        """What a plan leaves of the order: no more than that of a step that occurs again and again, and than one more of a step that occurs
        at most p times, at the ends. A corrector adds one to each, but for the last step."""
        if self._orders is None:
            return order
        plan = self.orders(_LONG if callable(self._orders) else len(self._orders))
        reached = [q + corrected + (plan.count(q) <= self.p) for q in plan[:-1]]
        return min([order, *reached, *(q + 1 for q in plan[-1:])])

    def _plan(self, equation: Equation, times: Tensor) -> list[Record]:
        return Planner(self, equation, times).explicit()

    def _renewed(self, equation: Equation, end: Levels) -> float:
        # e^{−ηh} is 0 however small η: any noise at all renews the state entirely
        return float(self.stochastic and bool(self._noise_levels(equation, end[[0, 0]])[0] > 0))

    def _noise_levels(self, equation: Equation, levels: Levels) -> Array:
        """η of each step."""
        return noise_levels(equation, self, levels, self.eta)

    def _weights(
        self,
        nodes: Array,
        start: Levels,
        end: Levels,
        eta: Array,
        clock: Callable[[Array], Array] | None,
        regular: bool,
    ) -> Array:
        """∫ L_j k dλ: the weights of readings at ``nodes`` (λ, newest first) ``[n, k]`` over the steps from start to end; ``regular`` says
        whether all nodes are points of the grid."""
        return weights(self.form, nodes, start, end, eta, clock)


class Planner:
    """What a multistep rule knows of one grid, and the records it makes of it."""

    def __init__(self, solver: Multistep, equation: Equation, times: Tensor):
        self.solver, self.process, self.form = solver, equation.process, solver.form  # type: ignore[attr-defined]
        self.times, self.steps = times.tolist(), len(times) - 1
        self.levels = finite_levels(self.process, times, solver)
        self.eta = solver._noise_levels(equation, self.levels)
        self.clock = clock_of(solver.clock, self.process)
        start, end = self.levels[:-1], self.levels[1:]
        self.keep = carry(self.form, start, end, self.eta)
        self.noise = self.form.spread(start, end, self.eta) if solver.stochastic and self.form.spread else None
        self.readings = readings(self.form, self.levels, self.times)

    def explicit(self) -> list[Record]:
        """One reading a step, after a first step in singlestep fashion where the plan asks for it."""
        orders = self.solver.orders(self.steps)
        memory = self.solver.p - 1  # for whatever n, so that records of all grids are of one kind
        first, history = self.starter(orders[0], memory) if self.steps and orders[0] > 1 else ([], [])
        reads = []  # λ of what each step reads, newest first
        for i in range(len(first), self.steps):
            known = [float(self.levels.lam[i]), *history]
            check_reach(orders, i, len(known))
            reads.append(known[: orders[i]])
            history = known[:memory]
        table = self.table(reads, range(len(first), self.steps))
        return first + [
            self.record(i, [self.readings[i]], [self.row(i, weight[1:], memory, weight[:1])], memory)
            for i, weight in enumerate(table, len(first))
        ]

    def table(self, reads: Sequence[Sequence[float]], steps: Sequence[int]) -> list[list[float]]:
        """Weights of each step's readings, found for all steps with as many readings of the same kind at once."""
        on_grid = set(self.levels.lam.tolist())
        kinds: dict[tuple[int, bool], list[int]] = {}
        for k, nodes in enumerate(reads):
            kinds.setdefault((len(nodes), on_grid.issuperset(nodes)), []).append(k)
        out: list[list[float]] = [[]] * len(reads)
        for (_, regular), members in kinds.items():
            index, at = np.array([steps[k] for k in members]), np.array([reads[k] for k in members])
            start, end = self.levels[index], self.levels[index + 1]
            found = self.solver._weights(at, start, end, self.eta[index], self.clock, regular).tolist()
            for k, weight in zip(members, found, strict=True):
                out[k] = weight
        return out

    def row(self, i: int, old: Sequence[float], memory: int, new: Sequence[float]) -> Row:
        """Over (earlier readings, noise, this step's readings); earlier ones that are not used have the weight 0, so that all steps
        have one structure."""
        held = 0 if i == 0 else memory
        draw = () if self.noise is None else (float(self.noise[i]),)
        return Row(float(self.keep[i]), (*old, *[0.0] * (held - len(old)), *draw, *new))

    def record(self, i: int, read: Sequence[Reading | None], table: Sequence[Row], memory: int) -> Record:
        """The record of step i; its readings join the earlier ones, the newest of which are kept."""
        held, draws = (0 if i == 0 else memory), int(self.noise is not None)
        stages = tuple(Stage(at, row) for at, row in zip(read, table, strict=True))
        count = sum(at is not None for at in read)
        newest = [*range(held + draws + count - 1, held + draws - 1, -1), *range(held)]
        return Record(self.times[i], self.times[i + 1], (stages, _padded(newest, memory)), draws, count)

    def starter(self, order: int, memory: int) -> tuple[list[Record], list[float]]:
        """The first step in singlestep fashion, and λ of the readings it leaves, newest first."""
        rule, lam, h = STARTERS[order], self.levels.lam[0], self.levels.lam[1] - self.levels.lam[0]
        places = np.array([c for c, _ in rule.stages])
        stops = Levels.at_lambda(self.process, lam + places * h)
        read = readings(self.form, stops, [self.times[0], *stops.t[1:].tolist()])
        targets = [(stops[i : i + 1], used) for i, (_, used) in enumerate(rule.stages)][1:]
        targets.append((self.levels[1:2], rule.result))
        stages = []
        for at, (end, used) in zip(read, targets, strict=True):
            nodes = (lam + places[list(used)] * h)[None]
            found = self.solver._weights(nodes, self.levels[:1], end, self.eta[:1], self.clock, False)[0].tolist()
            weight = dict(zip(used, found, strict=True))
            keep = float(carry(self.form, self.levels[:1], end)[0])
            stages.append(Stage(at, Row(keep, tuple(weight.get(j) for j in range(max(used) + 1)))))
        kept = _padded(list(rule.history), memory)
        record = Record(self.times[0], self.times[1], (tuple(stages), kept), evaluations=len(stages))
        return [record], (lam + places[list(rule.history)] * h).tolist()


def check_reach(orders: Sequence[int], i: int, readings: int) -> None:
    """A step reads no more than there is."""
    if orders[i] > readings:
        raise ValueError(
            f"orders: got {list(orders)}, but step {i + 1} has {readings} readings, expected an order of at most that; let orders "
            "rise by one a step, or begin with order p − 1"
        )


def _padded(newest: list[int], memory: int) -> tuple[int, ...]:
    """As many as are remembered; the oldest fills what is missing."""
    return tuple((newest + newest[-1:] * memory)[:memory])


def finite_levels(process: Diffusion, times: Tensor, solver: Solver) -> Levels:
    """The levels of a grid on which λ is finite."""
    levels = Levels.at(process, times)
    if not np.isfinite(levels.lam).all():
        at = levels.t[~np.isfinite(levels.lam)][0]
        raise ValueError(
            f"{solver!r}: got a grid through t = {at:g}, where ln σ is infinite, expected σ > 0; end above 0 and let the last denoising "
            "step lead to the data"
        )
    return levels


class ExponentialAdams(Multistep):
    """Exponential Adams–Bashforth of order p in λ: the polynomial through the last p predictions, integrated exactly.

    Order p, one evaluation a step; starting costs 1, 2, 4 more for p = 3, 4, 5. p = 1 is DDIM (but for "v"). In data form p = 2 is
    DPM-Solver++(2M)
    and p = 3 DPM-Solver++(3M), both with exact weights; in noise form DEIS. With ``sde=True`` it integrates the reverse SDE at
    weak order min(p, 2).

    Args:
        p: order, 1 to 5.
        form: what the polynomial goes through: "data" D, "noise" ε, "velocity" ε − D, "v" cos φ·ε − sin φ·D with tan φ = σ.
        clock: its variable: "lambda", "sigma" or "t".
        sde, eta: noise of the reverse family (data and noise forms); eta defaults to the equation's.
        orders: an order plan: a list of one order per step, or a function of their number and p such as ``rising``; ``solver.orders(n)``
            shows it.

    Source: Zhang & Chen 2023, §3 (DEIS); Lu et al. 2022, app. D; Hochbruck & Ostermann 2010, §2.5.
    """

    order: float | None = 3
    order_note = "p, 1 to 5 (SDE: weak min(p, 2))"
    source = "Zhang & Chen 2023; Hochbruck & Ostermann 2010, §2.5"

    def __init__(self, p: int = 3, form: str = "data", **options: Any):
        super().__init__(p, form, **options)
