r"""Predictor-corrector multistep rules that read the field once a step: UniPC and SA-Solver.

A step predicts x_s from the last p predictions, reads the prediction at what it found, and corrects x_s by the polynomial that goes
through the new reading as well. The reading at the *predicted* state serves the next step as history. Where orders rise from 1 the last
step of several is not corrected, so that n steps cost n evaluations; a singlestep start and the last correction cost more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..domains.tensors import is_int, number
from ..processes import Equation, ReverseSDE
from .forms import Array, Levels
from .linear import Stage, noise_levels, own_noise
from .multistep import Multistep, Orders, Planner, check_reach, rising
from .solver import Record, Row


class _Corrected(Multistep):
    """Predictor of order p; the corrector reads ``corrector`` predictions, the new one among them."""

    corrector: int

    def _plan(self, equation: Equation, times: Tensor) -> list[Record]:
        return _PecPlanner(self, equation, times).corrected(self.corrector)


class _PecPlanner(Planner):
    def corrected(self, corrector: int) -> list[Record]:
        n, orders = self.steps, self.solver.orders(self.steps)
        memory, lam = max(self.solver.p, corrector - 1), self.levels.lam.tolist()
        plan: list[Record] = []
        history: list[float] = []
        if n and orders[0] > 1:
            first, history = self.starter(orders[0], memory)
            plan, history = self._read_at_the_end(first[0], memory), [lam[1], *history]
        # orders that rise with the readings end on a prediction, whose local error is that of the whole
        quick = not plan
        predicted, corrected = [], []
        for i in range(len(plan), n):
            known = history or [lam[0]]
            check_reach(orders, i, len(known))
            predicted.append(known[: orders[i]])
            corrected.append([lam[i + 1], *known[: min(corrector - 1, orders[i])]])
            history = [lam[i + 1], *known][:memory]
        steps = range(len(plan), n)
        tables = self.table(predicted, steps), self.table(corrected, steps)
        for i, predict, correct in zip(steps, *tables, strict=True):
            plan.append(self._step(i, predict, correct, memory, quick and 0 < i == n - 1))
        return plan

    def _step(self, i: int, predict: list[float], correct: list[float], memory: int, quick: bool) -> Record:
        """Earlier readings already hold the one at t, but for the first step, which makes it; a quick last step does not correct."""
        first = [self.readings[0]] if i == 0 else [None]
        if quick:
            return self.record(i, first, [self._row(i, predict, [], memory)], memory)
        rows = [self._row(i, predict, [], memory), self._row(i, correct[1:], correct[:1], memory)]
        return self.record(i, [*first, self.readings[i + 1]], rows, memory)

    def _row(self, i: int, known: list[float], new: list[float], memory: int) -> Row:
        # in the first step what is known has just been read
        return self.row(i, [], memory, [*known, *new]) if i == 0 else self.row(i, known, memory, new)

    def _read_at_the_end(self, record: Record, memory: int) -> list[Record]:
        """The starting step followed by a reading at its end, which leaves the state as it is."""
        stages, kept = record.coefficients
        count = len(stages)
        again = Stage(self.readings[1], stages[-1].row)
        kept = (count, *kept)[:memory]
        return [record._replace(coefficients=((*stages, again), kept), evaluations=count + 1)]


class UniPC(_Corrected):
    """UniPC-p: exponential Adams–Bashforth of order p, corrected by Adams–Moulton of order p + 1, at one evaluation a step.

    Order p + 1. For p = 3 and 4 and more than p steps the first is a singlestep one of order p, so that n steps cost n + 3 and n + 5
    evaluations; n otherwise (2 for a single step). The weights are the exact ones, which the paper's B(h) reproduces but for its
    shortcuts in the smallest systems.

    Args:
        p: 1 to 4.
        form: "data" (the default), "noise", "velocity" or "v". "velocity" is often best where the data has structure at many scales.
        orders: the predictor's order plan, as for :class:`ExponentialAdams`. ``rising`` begins with orders 1, 2, … at one evaluation each:
            order 3 in the limit, yet better at few evaluations where the prior is so wide that the first steps hardly err.

    Source: Zhao et al. 2023, alg. 1, 2; thm. 3.1.
    """

    order: float | None = 3
    order_note = "p + 1, p = 1 to 4"
    source = "Zhao et al. 2023, alg. 1, 2"

    def __init__(self, p: int = 2, form: str = "data", *, orders: Orders = None):
        if not is_int(p, 1, 4):
            raise ValueError(f"UniPC: got p = {p!r}, expected 1, 2, 3 or 4")
        super().__init__(p, form, orders=orders)
        self.corrector = p + 1
        self.order = self._order_of_plan(p + 1, corrected=1)

    @staticmethod
    def start(n: int, p: int) -> list[int]:
        """[p, p, …] with a singlestep start where p > 2 and n > p, and orders that rise from 1 elsewhere."""
        return [p] * n if n > p > 2 else rising(n, p)


class SASolver(_Corrected):
    """SA-Solver: stochastic Adams of the reverse family, predictor and corrector in data form, one evaluation a step, one draw.

    Weak order min(predictor + 1, corrector, 2).

    Args:
        predictor: how many predictions the predictor reads, 1 to 4.
        corrector: how many the corrector reads, the new one among them; at most predictor + 1.
        tau: the noise τ ≥ 0, η = τ²: a number, or a function of σ (held over each step), e.g. ``lambda s: (s > .05) & (s < 1)``; by default
            the equation's.

    Source: Xue et al. 2023, alg. 1.
    """

    accepts: tuple[type[Equation], ...] = (ReverseSDE,)
    stochastic = True
    order: float | None = 2
    weak_order: float | None = 2
    strong_order: float | None = 1
    order_note = "weak min(predictor + 1, corrector, 2)"
    source = "Xue et al. 2023, alg. 1"

    def __init__(self, predictor: int = 2, corrector: int = 3, tau: float | Callable[[Tensor], Tensor] | None = None):
        if not is_int(predictor, 1, 4):
            raise ValueError(f"predictor: got {predictor!r}, expected 1, 2, 3 or 4")
        if corrector not in range(1, predictor + 2):
            raise ValueError(f"corrector: got {corrector!r}, expected an int from 1 to predictor + 1 = {predictor + 1}")
        super().__init__(predictor, "data", sde=True)
        self.corrector, self.tau = corrector, tau if callable(tau) or tau is None else number(tau, "tau", low=0.0)
        self.order = self.weak_order = min(predictor + 1, corrector, 2)

    def _noise_levels(self, equation: Equation, levels: Levels) -> Array:
        if self.tau is None:
            return super()._noise_levels(equation, levels)
        if not callable(self.tau):
            return noise_levels(equation, self, levels, self.tau**2)
        own_noise(equation, self)
        middle = torch.as_tensor(np.exp(-0.5 * (levels.lam[1:] + levels.lam[:-1])))
        return np.asarray(torch.as_tensor(self.tau(middle), dtype=torch.float64).expand_as(middle)) ** 2
