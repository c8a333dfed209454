r"""Explicit Runge–Kutta rules as checked tables.

For dx = [a(t)x + b(t)F]dt every stage state and the result are linear in x and the field values, so a step is a few rows
of float64 numbers found before the loop:

.. math:: U_i = x + h \sum_{j<i} A_{ij} K_j,\quad K_j = a_j U_j + b_j F(U_j, t_j),\quad x' = x + h \sum_j B_j K_j
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..processes import Equation
from .solver import DETERMINISTIC, Record, Row, Solver, combine


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau: A strictly lower triangular (row i has i entries), weights b, nodes c, order; ``error`` = b − b̂
    and the lower ``error_order`` for embedded pairs, which end with a stage at the result (first same as last) if ``fsal``."""

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    error: tuple[float, ...] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not len(self.a) == len(self.b) == len(self.c) or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(
                f"Tableau {self.name}: got {len(self.a)} rows, {len(self.b)} weights and {len(self.c)} nodes, expected as many of "
                "each and i entries in row i"
            )
        gaps = [abs(sum(self.b) - 1), *(abs(sum(row) - c) for row, c in zip(self.a, self.c, strict=True))]
        if self.error is not None:
            gaps.append(abs(sum(self.error)))
        if max(gaps) > 1e-14:
            raise ValueError(
                f"Tableau {self.name}: got weights summing to {sum(self.b)!r} and rows to {[sum(r) for r in self.a]}, expected 1 "
                f"and the nodes {list(self.c)}"
            )

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the result, so that its field value starts the next step."""
        return self.a[-1] == self.b[:-1] and self.b[-1] == 0.0 and self.c[-1] == 1.0


EULER = Tableau("Euler", ((),), (1.0,), (0.0,), 1)
MIDPOINT = Tableau("midpoint", ((), (0.5,)), (0.0, 1.0), (0.0, 0.5), 2)
HEUN = Tableau("Heun", ((), (1.0,)), (0.5, 0.5), (0.0, 1.0), 2, source="Karras et al. 2022, alg. 1")
RALSTON = Tableau("Ralston", ((), (2 / 3,)), (0.25, 0.75), (0.0, 2 / 3), 2)
KUTTA3 = Tableau("Kutta 3", ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), (0.0, 0.5, 1.0), 3)
RK4 = Tableau("RK4", ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0), 4)
BOGACKI_SHAMPINE = Tableau(
    "bosh3",
    ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9, 1 / 3, 4 / 9, 0.0),
    (0.0, 1 / 2, 3 / 4, 1.0),
    3,
    (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    "Bogacki & Shampine 1989",
)
DORMAND_PRINCE = Tableau(
    "dopri5",
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    5,
    (
        35 / 384 - 5179 / 57600,
        0.0,
        500 / 1113 - 7571 / 16695,
        125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200,
        11 / 84 - 187 / 2100,
        -1 / 40,
    ),
    "Dormand & Prince 1980",
)

TSITOURAS = Tableau(
    "tsit5",
    (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    ),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774, 0.0),
    (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    5,
    (
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        0.015151515151515152,
    ),
    "Tsitouras 2011",
)


def stage_rows(tableau: Tableau, h: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows of the linear map (x, F_0, …) ↦ (U_0, …, U_{S−1}, x'), for n steps at once.

    Args: h ``[n]``; a, b ``[n, S]`` at the stage times. Returns ``[n, S + 1, S + 1]``.
    """
    stages = tableau.stages
    rows = np.zeros((len(h), stages + 1, stages + 1))
    slopes = np.zeros((len(h), stages, stages + 1))
    for i in range(stages + 1):
        rows[:, i, 0] = 1.0
        for j, weight in enumerate(tableau.a[i] if i < stages else tableau.b):
            rows[:, i] += (h * weight)[:, None] * slopes[:, j]
        if i < stages:
            slopes[:, i] = a[:, i, None] * rows[:, i]
            slopes[:, i, i + 1] += b[:, i]
    return rows


class RungeKutta(Solver):
    """An explicit Runge–Kutta rule for flows and ODEs; its order is its tableau's.

    Args: tableau: ``EULER``, ``MIDPOINT``, ``HEUN``, ``RALSTON``, ``KUTTA3``, ``RK4``, or a :class:`Tableau` of your own.
    """

    accepts = DETERMINISTIC
    order: float = 4
    order_note = "1 to 4, the tableau's"
    evaluations = "the tableau's stages"
    source = "Hairer, Nørsett & Wanner, II.1"

    def __init__(self, tableau: Tableau = RK4):
        if not isinstance(tableau, Tableau):
            raise TypeError(f"tableau: got {tableau!r}, expected a Tableau, e.g. carom.solvers.RK4")
        self.tableau = tableau
        if type(self) is RungeKutta or "order" not in type(self).__dict__:
            self.order = tableau.order  # a subclass that states an order is held to it
        self.multistage, self.evaluations = tableau.stages > 1, str(tableau.stages)

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        h = times.diff()
        nodes = times[:-1, None] + h[:, None] * torch.tensor(self.tableau.c, dtype=torch.float64)
        # the last node is the next time to the bit, which rounding of t + h would miss
        nodes = torch.where(torch.tensor(self.tableau.c) == 1.0, times[1:, None], nodes)
        a, b, _ = equation.coefficients(nodes)
        rows = stage_rows(self.tableau, h.numpy(), a.numpy(), b.numpy()).tolist()
        stages = self.tableau.stages
        return [
            Record(t, s, (tuple(at), tuple(Row.of(*row) for row in table[1:])), evaluations=stages)
            for t, s, at, table in zip(times[:-1].tolist(), times[1:].tolist(), nodes.tolist(), rows, strict=True)
        ]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        times, rows = record.coefficients
        u, values = x, []
        for i, (time, row) in enumerate(zip(times, rows, strict=True)):
            values.append(equation.field(u, time, x if i else None))
            u = combine(row, x, values)
        return u, ()


class Euler(RungeKutta):
    """x' = (1 + ha)x + hbF: order 1, one evaluation. In σ (EDM's clock) it is DDIM."""

    order = 1
    order_note = ""
    evaluations = "1"
    source = "Song et al. 2021, probability flow"

    def __init__(self) -> None:
        super().__init__(EULER)


class Heun(RungeKutta):
    """The trapezoidal corrector of an Euler step: order 2, two evaluations (EDM's deterministic sampler)."""

    order = 2
    order_note = ""
    multistage = True
    evaluations = "2"
    source = "Karras et al. 2022, alg. 1"

    def __init__(self) -> None:
        super().__init__(HEUN)
