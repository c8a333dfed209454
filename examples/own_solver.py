"""A solver of one's own in ten lines, and the laws that say whether it is right."""

from typing import Any

import torch
from torch import Tensor

from carom.processes import ODE, Equation, ProbabilityFlow
from carom.solvers import Record, Solver
from carom.validation import LawError, check_solver


class AdamsBashforth(Solver):
    """x' = x + h (w₀ K_n + w₁ K_{n−1}), K = a x + b F: order 2, one evaluation per step; the first step is Euler's."""

    order = 2
    accepts = (ProbabilityFlow, ODE)
    multistage = True

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        h = times.diff()
        ratio = 0.5 * h / torch.cat([h[:1], h[:-1]])  # half a step in units of the step before
        ratio[0] = 0.0
        a, b, _ = equation.coefficients(times[:-1])
        rows = zip(a.tolist(), b.tolist(), (h * (1 + ratio)).tolist(), (-h * ratio).tolist(), strict=True)
        return [Record(t, s, row) for t, s, row in zip(times[:-1].tolist(), times[1:].tolist(), rows, strict=True)]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        a, b, now, before = record.coefficients
        slope = a * x + b * equation.field(x, record.t)
        return x + now * slope + (before * state if isinstance(state, Tensor) else 0), slope


class Broken(AdamsBashforth):
    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        return super().step(equation, x, record, (), noise)  # forgets its history


print(check_solver(AdamsBashforth(), raises=False))
try:
    check_solver(Broken())
except LawError as error:
    print(error)
