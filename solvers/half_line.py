r"""Exact steps of reflected Brownian motion with drift on a half-line (Lépingle 1995).

Over a step with frozen coefficients the free path ends at y = x + hb + c√h z, and its minimum, given both ends, is

.. math:: m = \tfrac12\Big(x + y - \sqrt{(y - x)^2 - 2 c^2 h \ln U}\Big),\qquad U \sim U(0, 1);

reflected at a wall below, the state ends at y + max(0, wall − m), with the law of the reflected process itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..domains import Hypercube, Orthant
from ..domains.domain import Domain
from ..processes import Equation
from .solver import Record
from .stochastic import EulerMaruyama
from .walls import Cover, Reflect


class LepingleEulerMaruyama(EulerMaruyama):
    """Euler–Maruyama whose reflection is exact for constant coefficients on a half-line: each coordinate is pushed off the nearer of its
    walls by the local time of the frozen path; what lies beyond the other wall is reflected.

    Weak order 1 (exact for constant drift and noise with one wall), strong order ½; one evaluation, two draws. On orthants and boxes.

    Source: Lépingle 1995; Asmussen, Glynn & Pitman 1995.
    """

    wall = Reflect()
    source = "Lépingle 1995"

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        if not isinstance(equation.domain, (Hypercube, Orthant)):
            raise TypeError(f"LepingleEulerMaruyama: got {equation.domain!r}, expected an Orthant or a Hypercube")
        if isinstance(equation.wall, Cover):
            raise TypeError(
                "LepingleEulerMaruyama: got the wall Cover(), expected Reflect() or Project(): it has to know the state itself"
            )
        return [r._replace(draws=2) if r.draws else r for r in super().plan(equation, times)]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        moved, state = super().step(equation, x, record, state, noise)
        if not record.draws:
            return moved, state
        row = record.coefficients[0]
        variance = (row.weights[1] * equation.diagonal(x, record.t)) ** 2
        # −ln U of a uniform U made of the second normal
        exponential = -torch.special.log_ndtr(noise[1])
        return pushed(equation.domain, x, moved, variance, exponential), state


def pushed(domain: Domain, x: Tensor, y: Tensor, variance: Tensor, exponential: Tensor) -> Tensor:
    """y pushed off the wall that is nearer to x, coordinate by coordinate."""
    low = domain.project(torch.full_like(x, -torch.inf))
    high = domain.project(torch.full_like(x, torch.inf))
    reach = ((y - x) ** 2 + 2 * variance * exponential).sqrt()
    least, most = 0.5 * (x + y - reach), 0.5 * (x + y + reach)
    up, down = (low - least).clamp(min=0), (most - high).clamp(min=0)
    return torch.where(x - low <= high - x, y + up, y - down)
