"""Flows that are stirred: noise is added for a moment, and the flow carries it off again. EDM's stochastic sampler, and Restart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..domains.tensors import number
from ..processes import Equation, ProbabilityFlow, ReverseSDE
from .forms import NOISE, Levels
from .grids import karras
from .linear import LinearSolver, Stage, check_process, own_noise, readings, rows
from .runge_kutta import Heun
from .solver import Record, Row, Solver, combine


class EDMStochastic(LinearSolver):
    """EDM's stochastic sampler: raise σ to σ̂ = (1 + γ)σ with fresh noise, then one Heun step in σ from σ̂ to σ_s.

    γ = min(churn/N, √2 − 1) where s_min ≤ σ ≤ s_max, else 0; N is the number of levels of the grid. Weak order 2 at a given churn,
    two evaluations a step, and a draw where γ > 0. churn = 0 is Heun's rule in σ.

    Args:
        churn: ≥ 0, the amount of noise over the whole run (S_churn).
        s_min, s_max: the noise levels σ between which it is added.
        s_noise: ≥ 0, inflation of the fresh noise; 1 keeps the marginals, the paper's networks like 1.003 to 1.007.

    A grid that ends at σ = 0 (in ``solve``) ends with an Euler step, as the paper's does. It may read the score beyond t = 1 (by a
    factor √2 in σ at most) unless s_max forbids.
    Source: Karras et al. 2022, alg. 2.
    """

    accepts: tuple[type[Equation], ...] = (ReverseSDE, ProbabilityFlow)
    stochastic = True
    multistage = True
    order: float | None = 2
    weak_order: float | None = 2
    strong_order: float | None = 1
    evaluations = "2"
    source = "Karras et al. 2022, alg. 2"

    def __init__(self, churn: float = 40.0, *, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003):
        self.churn, self.s_noise = number(churn, "churn", low=0.0), number(s_noise, "s_noise", low=0.0)
        self.s_min, self.s_max = number(s_min, "s_min", low=0.0), float(s_max)
        if not self.s_max >= self.s_min:
            raise ValueError(f"s_max: got {s_max}, expected at least s_min = {s_min:g}; math.inf for no upper end")

    def _plan(self, equation: Equation, times: Tensor) -> list[Record]:
        own_noise(equation, self)
        process = equation.process  # type: ignore[attr-defined]
        levels = Levels.at(process, times)
        start, end = levels[:-1], levels[1:]
        inside = (start.sigma >= self.s_min) & (start.sigma <= self.s_max)
        gamma = np.where(inside, min(self.churn / len(times), math.sqrt(2) - 1), 0.0)
        raised = np.where(gamma > 0, (1 + gamma) * start.sigma, start.sigma)
        t = torch.where(
            torch.as_tensor(gamma > 0), process.schedule.time(torch.as_tensor(raised)), torch.as_tensor(start.t)
        )
        stirred = Levels.at(process, t)
        fresh = self.s_noise * start.sigma * np.sqrt(gamma * (2 + gamma))
        step = end.scale * (end.sigma - stirred.sigma)
        keep, noise = end.scale / start.scale, end.scale * fresh
        tables = (
            rows(stirred.scale / start.scale, np.stack([stirred.scale * fresh], 1)),
            rows(keep, np.stack([noise, step], 1)),
            rows(keep, np.stack([noise, 0.5 * step, 0.5 * step], 1)),
            # without noise
            rows(keep, np.stack([step], 1)),
            rows(keep, np.stack([0.5 * step, 0.5 * step], 1)),
        )
        first, second = readings(NOISE, stirred), readings(NOISE, end, end.t.tolist())
        plan = []
        for i, (lift, euler, heun, quiet_euler, quiet_heun) in enumerate(zip(*tables, strict=True)):
            draws = int(gamma[i] > 0)
            stages = [Stage(first[i], euler), Stage(second[i], heun)]
            if not draws:
                stages = [Stage(first[i], quiet_euler), Stage(second[i], quiet_heun)]
            if end.sigma[i] == 0:
                del stages[1]  # there is nothing to correct with at σ = 0
            reads = len(stages)
            raising = [Stage(None, lift)] * draws
            plan.append(Record(float(start.t[i]), float(end.t[i]), ((*raising, *stages), ()), draws, reads))
        return plan


class RestartInterval(NamedTuple):
    """Between these noise levels the run goes back up and down again: ``levels`` noise levels on the way, ``repeats`` times."""

    low: float
    high: float
    levels: int = 4
    repeats: int = 2


class Restart(Solver):
    """Restart sampling: a flow whose run, once below ``low``, is thrown back to ``high`` by fresh noise and integrated down again.

    Contracts the errors of earlier steps as an SDE does, with the order of the deterministic rule. Each restart happens at the first
    level of the grid at or below ``low``.

    Args:
        intervals: :class:`RestartInterval` or tuples (low, high, levels, repeats), 0 < low < high in units of σ.
        solver: the deterministic rule, :class:`Heun` unless told.

    Source: Xu et al. 2023 (Restart), alg. 1.
    """

    accepts: tuple[type[Equation], ...] = (ProbabilityFlow,)
    stochastic = True
    multistage = True
    order: float | None = 2
    weak_order: float | None = 2
    order_note = "its solver's"
    evaluations = "its solver's, and those of the restarts"
    source = "Xu et al. 2023, alg. 1"

    def __init__(self, intervals: Sequence[RestartInterval | tuple] = (), solver: Solver | None = None):
        self.solver = Heun() if solver is None else solver
        if not isinstance(self.solver, Solver) or self.solver.stochastic or self.solver.adaptive:
            raise TypeError(f"solver: got {solver!r}, expected a deterministic rule with fixed steps, e.g. Heun()")
        self.intervals = tuple(_checked(interval) for interval in intervals)
        self.order = self.weak_order = self.solver.order

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        check_process(equation, self)
        process = equation.process  # type: ignore[attr-defined]
        levels = process.level(times)
        stops: dict[int, list[RestartInterval]] = {}
        for interval in self.intervals:
            below = (levels.sigma <= interval.low * (1 + 1e-12)).nonzero().flatten()
            if not len(below) or interval.high > float(levels.sigma[0]) * (1 + 1e-12):
                raise ValueError(
                    f"{self!r}: got the interval {tuple(interval)} on a grid from σ = {float(levels.sigma[0]):g} to "
                    f"{float(levels.sigma[-1]):g}, expected it to lie within"
                )
            stops.setdefault(max(int(below[0]), 1), []).append(interval)
        # what follows a restart has no history: the grid is planned piece by piece
        plan, begin = [], 0
        for stop in sorted({*stops, len(times) - 1}):
            piece = self.solver.plan(equation, times[begin : stop + 1])
            plan += [record._replace(coefficients=(record, ())) for record in piece]
            if stop in stops:
                plan[-1] = self._with_restarts(equation, plan[-1], stops[stop])
            begin = stop
        return plan

    def _with_restarts(self, equation: Equation, record: Record, intervals: Sequence[RestartInterval]) -> Record:
        process, repeats = equation.process, []  # type: ignore[attr-defined]
        for interval in intervals:
            grid = karras(
                process, interval.levels, sigma_max=interval.high, sigma_min=float(process.schedule.sigma(record.s))
            )
            grid[-1] = record.s
            low, high = process.level(record.s), process.level(grid[0])
            fresh = float(high.scale * ((high.sigma - low.sigma) * (high.sigma + low.sigma)).sqrt())
            repeat = Row.of(float(high.scale / low.scale), fresh), tuple(self.solver.plan(equation, grid))
            repeats += [repeat] * interval.repeats
        inner, _ = record.coefficients
        evaluations = inner.evaluations + sum(r.evaluations for _, records in repeats for r in records)
        return Record(record.t, record.s, (inner, tuple(repeats)), len(repeats), evaluations)

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        inner, repeats = record.coefficients
        y, state = self.solver.step(equation, x, inner, state, ())
        for (jump, records), z in zip(repeats, noise, strict=True):
            x = equation.settle(x, y)
            x = equation.settle(x, combine(jump, x, (z,)))
            state = ()
            for each in records:
                y, state = self.solver.step(equation, x, each, state, ())
                x = equation.settle(x, y)
            y, state = x, ()
        return y, state


def _checked(interval: RestartInterval | tuple) -> RestartInterval:
    try:
        value = RestartInterval(*interval)
    except TypeError:
        raise TypeError(f"intervals: got {interval!r}, expected tuples (low, high, levels, repeats)") from None
    if not 0 < value.low < value.high or value.levels < 2 or value.repeats < 1:
        raise ValueError(f"intervals: got {tuple(value)}, expected 0 < low < high, levels ≥ 2 and repeats ≥ 1")
    return value
