"""Euler–Maruyama, plain and reflected."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..processes import Equation, ForwardSDE
from .solver import STOCHASTIC, Record, Row, Solver, combine
from .walls import Reflect


class EulerMaruyama(Solver):
    """x' = (1 + ha)x + hbF + c√|h| z: weak order 1, strong order ½ (1 for additive noise); one evaluation, one draw.

    Accepts the reverse family, the forward process and general Itô SDEs (scalar, diagonal or matrix diffusion).
    """

    order = 1
    weak_order = 1
    strong_order = 0.5
    accepts = STOCHASTIC
    stochastic = True
    source = "Maruyama 1955; Song et al. 2021, app. D"

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        h = times.diff()
        a, b, c = equation.coefficients(times[:-1])
        keep, field, noise = ((1 + h * a).tolist(), (h * b).tolist(), (c * h.abs().sqrt()).tolist())
        evaluations = 0 if isinstance(equation, ForwardSDE) else 1
        steps = zip(times[:-1].tolist(), times[1:].tolist(), keep, field, noise, strict=True)
        return [Record(t, s, (Row.of(k, f, n),), int(n != 0.0), evaluations) for t, s, k, f, n in steps]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        (row,) = record.coefficients
        field = None if row.weights[0] is None else equation.field(x, record.t)
        spread = None if row.weights[1] is None else equation.spread(x, record.t, noise[0])
        return combine(row, x, (field, spread)), ()


class ReflectedEulerMaruyama(EulerMaruyama):
    """Euler–Maruyama with the wall ``Reflect``, by definition: the discretisation of the reflected SDE (weak order 1)."""

    wall = Reflect()
    source = "Lou & Ermon 2023, alg. 1; Bossy, Gobet & Talay 2004"
