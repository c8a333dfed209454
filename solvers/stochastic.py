"""Rules for general SDEs: Euler–Maruyama, plain and reflected, Milstein, and reflected Strang splitting."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean, FoldedDomain
from ..processes import Equation
from .runge_kutta import MIDPOINT, RungeKutta
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
        steps = zip(times[:-1].tolist(), times[1:].tolist(), keep, field, noise, strict=True)
        return [Record(t, s, (Row.of(k, f, n),), int(n != 0.0), int(f != 0.0)) for t, s, k, f, n in steps]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        row = record.coefficients[0]
        field = None if row.weights[0] is None else equation.field(x, record.t)
        spread = None if row.weights[1] is None else equation.spread(x, record.t, noise[0])
        return combine(row, x, (field, spread)), ()


class ReflectedEulerMaruyama(EulerMaruyama):
    """Euler–Maruyama with the wall ``Reflect``, by definition: the discretisation of the reflected SDE (weak order 1)."""

    wall = Reflect()
    source = "Lou & Ermon 2023, alg. 1; Bossy, Gobet & Talay 2004"


class Milstein(EulerMaruyama):
    """Euler–Maruyama + ½ c c' |h| (z² − 1): strong order 1 for a diffusion that depends on the state; one evaluation, one draw.

    The diffusion must be diagonal, each entry depending on its own coordinate only; c' comes from forward-mode differentiation. Where it
    does not depend on the state at all (every equation of a process) the rule is Euler–Maruyama.

    Source: Kloeden & Platen 1992, eq. 10.3.2, 10.3.7.
    """

    strong_order = 1
    source = "Kloeden & Platen 1992, eq. 10.3.7"

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        halves = (0.5 * times.diff().abs()).tolist()
        plan = super().plan(equation, times)
        return [r._replace(coefficients=(*r.coefficients, h)) for r, h in zip(plan, halves, strict=True)]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        # asked for once: a source gives new normals each time, and both terms need the same
        draws = tuple(noise[k] for k in range(record.draws))
        moved, state = super().step(equation, x, record, state, draws)
        slope = equation.spread_slope(x, record.t) if draws else None
        if slope is None:
            return moved, state
        return torch.addcmul(moved, record.coefficients[1] * slope, draws[0] * draws[0] - 1), state


class ReflectedStrang(Solver):
    """Drift flow over h/2 (midpoint rule), exact reflected Brownian motion over h, drift flow over h/2.

    Weak order 2 where the drift's normal component vanishes at the wall (exact scores; networks only if built so); elsewhere only order 1
    is claimed. Four evaluations, one draw. For additive noise on domains whose Brownian motion is a fold (boxes, orthants, tori,
    simplices) or that have no walls.

    Source: Ninomiya & Victoir 2008 for the splitting; with reflection, Leimkuhler, Sharma & Tretyakov 2023.
    """

    accepts = STOCHASTIC
    stochastic = True
    multistage = True
    order = 2
    weak_order = 2
    strong_order = 1
    order_note = "weak 2 (1 where b·n ≠ 0), strong 1"
    evaluations = "4"
    source = "Ninomiya & Victoir 2008"
    flow = RungeKutta(MIDPOINT)

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        if not isinstance(equation.domain, (Euclidean, FoldedDomain)):
            raise TypeError(
                f"ReflectedStrang: got {equation.domain!r}, whose reflected Brownian motion is no fold, expected a box, an orthant, a "
                f"torus, a "
                "simplex or a product of them; use ReflectedEulerMaruyama()"
            )
        middles = 0.5 * (times[1:] + times[:-1])
        grid = torch.cat([torch.stack([times[:-1], middles], 1).flatten(), times[-1:]])
        halves = self.flow.plan(equation, grid)
        steps = zip(halves[::2], halves[1::2], noise_of(equation, times), strict=True)
        return [
            Record(
                first.t,
                second.s,
                (first, Row.of(1.0, c), second),
                int(c != 0.0),
                first.evaluations + second.evaluations,
            )
            for first, second, c in steps
        ]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        first, shock, second = record.coefficients
        y, _ = self.flow.step(equation, x, first, (), ())
        y = equation.settle(x, y)
        if record.draws:
            y = equation.settle(y, combine(shock, y, (equation.spread(y, second.t, noise[0]),)))
        z, _ = self.flow.step(equation, y, second, (), ())
        return z, ()


def noise_of(equation: Equation, times: Tensor) -> list[float]:
    """√∫c² dt of each step: the std of all the noise that enters."""
    points, weights = np.polynomial.legendre.leggauss(16)
    h = times.diff()
    nodes = times[:-1, None] + h[:, None] * torch.tensor(0.5 * (1 + points))
    _, _, c = equation.coefficients(nodes)
    return ((c * c) @ torch.tensor(0.5 * weights) * h.abs()).sqrt().tolist()
