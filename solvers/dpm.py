r"""DPM-Solver and DPM-Solver++: exponential rules in λ, in noise and in data form, singlestep and multistep.

Singlestep rules are exponential Runge–Kutta steps. With h = λ_s − λ_t, z = h in noise and z = −(1 + η)h in data form, places
c = (0, r1, r2), and φ_k of ``forms``, in units of h times −std (noise) or (1 + η)·scale (data) at the stage's end:

=====  ================================  ==============================================================================
order  stages                            result
=====  ================================  ==============================================================================
1                                        φ₁ P₀
2      A₂₁ = r1 φ₁(r1 z)                 φ₁ [P₀ + (P₁ − P₀)/(2 r1)]
3      … A₃₂ = γ r1 φ₂(r1 z)             φ₁ P₀ + [γ (P₁ − P₀) + P₂ − P₀] φ₂/(γ r1 + r2),
       + (r2²/r1) φ₂(r2 z)               γ = r2 (3 r2 − 2)/(r1 (2 − 3 r1))
=====  ================================  ==============================================================================

With r2 = 2/3, γ is 0 and order 3 is the published DPM-Solver-3; for other r2 the published rule loses an order, this one does not
(Hochbruck & Ostermann 2005, eq. 5.9, the family that keeps it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains.tensors import is_int, number
from ..processes import Equation
from .forms import DATA, NOISE, Array, Form, Levels, carry, phi, weights
from .linear import LinearSolver, Stage, noise_levels, readings, rows
from .multistep import Multistep, Orders, finite_levels, rising
from .solver import Record


def dpm_solver_fast(evaluations: int) -> list[int]:
    """The order plan of "DPM-Solver-fast": as many steps of order 3 as fit, ended by lower orders so that exactly so many
    evaluations are spent. An end of order 1 or 2, 1 makes the whole of order 2."""
    if not is_int(evaluations, 1):
        raise ValueError(f"evaluations: got {evaluations!r}, expected an int ≥ 1")
    whole, rest = divmod(evaluations, 3)
    if rest == 0:
        return [3] * (whole - 1) + [2, 1]
    return [3] * whole + [rest]


def exponential_stages(order: int, r1: float, r2: float, z: Tensor) -> list[dict[int, Tensor]]:
    """Weights of the readings in each stage after the first and in the result, in units of the module's text: ``{reading: [n]}``."""
    if order == 1:
        return [{0: phi(1, z)}]
    first = {0: r1 * phi(1, r1 * z)}
    if order == 2:
        second = phi(1, z) / (2 * r1)
        return [first, {0: phi(1, z) - second, 1: second}]
    gamma = r2 * (3 * r2 - 2) / (r1 * (2 - 3 * r1))
    inner = gamma * r1 * phi(2, r1 * z) + r2**2 / r1 * phi(2, r2 * z)
    last = phi(2, z) / (gamma * r1 + r2)
    return [
        first,
        {0: r2 * phi(1, r2 * z) - inner, 1: inner},
        {0: phi(1, z) - (1 + gamma) * last, 1: gamma * last, 2: last},
    ]


class _Singlestep(LinearSolver):
    """Exponential Runge–Kutta of orders 1 to 3; see the module's text."""

    form: Form
    eta: float | None
    places: tuple[float | None, float | None]

    def orders(self, n: int) -> list[int]:
        raise NotImplementedError

    def _plan(self, equation: Equation, times: Tensor) -> list[Record]:
        levels = finite_levels(equation.process, times, self)  # type: ignore[attr-defined]
        eta = noise_levels(equation, self, levels, self.eta)
        orders = np.array(self.orders(len(times) - 1), dtype=np.int64)
        plan: dict[int, Record] = {}
        for order in set(orders.tolist()):
            index = np.nonzero(orders == order)[0]
            steps = self._steps(order, eta[index], levels[index], levels[index + 1], equation.process)  # type: ignore[attr-defined]
            plan.update(zip(index.tolist(), steps, strict=True))
        return [plan[i] for i in range(len(orders))]

    def _steps(self, order: int, eta: Array, start: Levels, end: Levels, process: Any) -> list[Record]:
        r1, r2 = self._places(order)
        h = end.lam - start.lam
        stops = [start, *(Levels.at_lambda(process, start.lam + c * h) for c in (r1, r2)[: order - 1]), end]
        z = h if self.form is NOISE else -(1 + eta) * h
        programme = []
        # noise at each stop, as weights of the normals drawn since the start
        shocks: list[Array] = [np.zeros_like(h)] * (order if self.stochastic else 0)
        for i, table in enumerate(exponential_stages(order, r1, r2, torch.as_tensor(z))):
            at, stop, before = stops[i], stops[i + 1], stops[i]
            unit = -(1 + eta) * stop.std if self.form is NOISE else (1 + eta) * stop.scale
            if self.stochastic:
                shocks = [carry(self.form, before, stop, eta) * w for w in shocks]
                shocks[i] = self.form.spread(before, stop, eta)  # type: ignore[misc]
            new = [h * unit * table[j].numpy() if j in table else np.zeros_like(h) for j in range(i + 1)]
            row = rows(carry(self.form, start, stop, eta), np.stack([*shocks, *new], 1))
            read = readings(self.form, at)
            programme.append([Stage(r, w) for r, w in zip(read, row, strict=True)])
        ends = zip(start.t.tolist(), end.t.tolist(), zip(*programme, strict=True), strict=True)
        return [Record(t, s, (stages, ()), len(shocks), order) for t, s, stages in ends]

    def _places(self, order: int) -> tuple[float, float]:
        r1, r2 = self.places
        return (r1 or (1 / 2 if order == 2 else 1 / 3)), (r2 or 2 / 3)


class _Dpm(Multistep, _Singlestep):
    """What both families share: orders 1 to 3, single- or multistep."""

    def __init__(
        self,
        order: int,
        form: Form,
        multistep: bool,
        sde: bool,
        eta: float | None,
        r1: float | None,
        r2: float | None,
        orders: Orders,
        legacy: bool,
    ):
        if order not in (1, 2, 3):
            raise ValueError(f"{type(self).__name__}: got order {order!r}, expected 1, 2 or 3")
        super().__init__(order, form, sde=sde, eta=eta, orders=orders)
        if multistep and (r1 is not None or r2 is not None):
            raise ValueError(f"{type(self).__name__}: got r1 or r2 with multistep=True, which has no stages to place")
        if legacy and (not multistep or order < 3):
            raise ValueError(f"{type(self).__name__}: got legacy=True, which only multistep order 3 knows")
        self.multistep, self.legacy, self.places = multistep, legacy, _checked_places(order, r1, r2)
        self.multistage = order > 1
        self.evaluations = "1" if multistep else str(order)
        if legacy:
            self.order = min(self.order or 2, 2)
            self.start = rising

    def orders(self, n: int) -> list[int]:
        if self._orders is not None or self.multistep:
            return super().orders(n)
        return [self.p] * n

    def _plan(self, equation: Equation, times: Tensor) -> list[Record]:
        return super()._plan(equation, times) if self.multistep else _Singlestep._plan(self, equation, times)

    def _weights(self, nodes: Array, start: Levels, end: Levels, eta: Array, clock: Any, regular: bool) -> Array:
        count, h = nodes.shape[1], end.lam - start.lam
        if count == 2:
            # the papers' "midpoint" weights: ½ φ₁ in place of φ₂, of the same order
            whole, ratio = weights(self.form, nodes[:, :1], start, end, eta), (h / (nodes[:, 0] - nodes[:, 1]))[:, None]
            return np.concatenate([whole * (1 + ratio / 2), -whole * ratio / 2], 1)
        exact = weights(self.form, nodes, start, end, eta, clock)
        return (
            exact - _half_second_difference(self.form, nodes, start, end, eta) if self.legacy and count == 3 else exact
        )


def _half_second_difference(form: Form, nodes: Array, start: Levels, end: Levels, eta: Array) -> Array:
    """Half of what the second difference contributes: distributed code leaves it out of D2 by a missing factor 2."""
    after, before = nodes[:, 0] - nodes[:, 1], nodes[:, 1] - nodes[:, 2]
    second = np.stack([1 / after, -1 / after - 1 / before, 1 / before], 1) * (2 / (after + before))[:, None]
    # ∫ k (λ − λ_t)²/2 dλ, from the weights of a parabola through three places
    places = start.lam[:, None] + (end.lam - start.lam)[:, None] * np.array([0.0, 0.5, 1.0])
    parabola = weights(form, places, start, end, eta) * (places - start.lam[:, None]) ** 2 / 2
    return 0.5 * parabola.sum(1, keepdims=True) * second


def _checked_places(order: int, r1: float | None, r2: float | None) -> tuple[float | None, float | None]:
    one = None if r1 is None else number(r1, "r1", low=0.0, high=1.0, open_low=True)
    two = None if r2 is None else number(r2, "r2", low=0.0, high=1.0, open_low=True)
    if order == 3 and ((one or 1 / 3) == (two or 2 / 3) or abs((one or 1 / 3) - 2 / 3) < 1e-3):
        raise ValueError(f"r1, r2: got {r1}, {r2}, expected two different places, r1 ≠ 2/3, e.g. 1/3 and 2/3")
    return one, two


class DPMSolver(_Dpm):
    """DPM-Solver: the polynomial in λ goes through the noise prediction. Order 1 is DDIM.

    Args:
        order: 1, 2 or 3, reached by singlestep (that many evaluations) as by multistep rules (one evaluation).
        multistep: whether to use earlier steps' predictions in place of stages.
        sde, eta: integrate the reverse family instead, at weak order min(order, 2); eta defaults to the equation's.
        r1, r2: places of the stages in (0, 1]; by default ½ for order 2, ⅓ and ⅔ for order 3. Any keep the order.
        orders: an order plan, e.g. ``dpm_solver_fast(20)`` or [1, 2, 3, 3, …]; ``orders(n)`` shows the default.
        legacy: multistep order 3 as it is distributed, which is of order 2 (a factor 2 is missing) and starts with an Euler step.

    Source: Lu et al. 2022 (DPM-Solver), alg. 1, 2; notes l.1200–1236, with √α for α (E21) and h for h_i (E22).
    """

    order: float | None = 3
    order_note = "1, 2 or 3 (SDE: weak min(order, 2))"
    evaluations = "order (multistep: 1)"
    source = "Lu et al. 2022a"

    def __init__(
        self,
        order: int = 3,
        multistep: bool = False,
        *,
        sde: bool = False,
        eta: float | None = None,
        r1: float | None = None,
        r2: float | None = None,
        orders: Orders = None,
        legacy: bool = False,
    ):
        super().__init__(order, NOISE, multistep, sde, eta, r1, r2, orders, legacy)


class DPMSolverPP(_Dpm):
    """DPM-Solver++: the same through the data prediction; steadier under guidance. Order 1 is DDIM, with sde=True DDPM's posterior step.

    Args: as for :class:`DPMSolver`, with multistep=True by default: (2, sde=False) is "DPM++ 2M", (2, sde=True) "DPM++ 2M SDE".

    Source: Lu et al. 2022 (DPM-Solver++), alg. 1, 2 and app. B for the SDE. Order 3 has the factor 2 that distributed code lacks; for the
    SDE, too, exact weights.
    """

    order: float | None = 2
    order_note = "1, 2 or 3 (SDE: weak min(order, 2))"
    evaluations = "1 (singlestep: order)"
    source = "Lu et al. 2022b"

    def __init__(
        self,
        order: int = 2,
        multistep: bool = True,
        *,
        sde: bool = False,
        eta: float | None = None,
        r1: float | None = None,
        r2: float | None = None,
        orders: Orders = None,
        legacy: bool = False,
    ):
        super().__init__(order, DATA, multistep, sde, eta, r1, r2, orders, legacy)
