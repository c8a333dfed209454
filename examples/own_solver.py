"""A solver of one's own, and the laws that say whether it is right."""

import torch

from carom.processes import ODE, ProbabilityFlow
from carom.solvers import Record, Solver
from carom.validation import LawError, check_solver


class AdamsBashforth(Solver):
    """x' = x + h (1 + r) K_n − h r K_{n−1}, K = a x + b F, r = h/2h_before: order 2, one evaluation; Euler's step first."""

    order = 2
    accepts = (ProbabilityFlow, ODE)
    multistage = True

    def plan(self, equation, times):
        h, (a, b, _) = times.diff(), equation.coefficients(times[:-1])
        r = 0.5 * h / torch.cat([h[:1], h[:-1]])
        r[0] = 0.0
        ends = zip(times[:-1].tolist(), times[1:].tolist(), strict=True)
        rows = zip(a.tolist(), b.tolist(), (h * (1 + r)).tolist(), (-h * r).tolist(), strict=True)
        return [Record(t, s, row) for (t, s), row in zip(ends, rows, strict=True)]

    def step(self, equation, x, record, state, noise):
        a, b, now, before = record.coefficients
        slope = a * x + b * equation.field(x, record.t)
        return x + now * slope + (before * state[0] if state else 0.0), (slope,)


class Forgetful(AdamsBashforth):
    def step(self, equation, x, record, state, noise):
        return super().step(equation, x, record, (), noise)


print(check_solver(AdamsBashforth(), raises=False))
try:
    check_solver(Forgetful())
except LawError as error:
    print(f"refused: {error}")
