"""Adams–Bashforth rules by the names under which they are known: DEIS, LMS, iPNDM; and ER-SDE, their stochastic cousin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..processes import Equation, ReverseSDE
from .forms import DATA, Array, Form, Levels, weights
from .multistep import ExponentialAdams, Multistep, Orders, rising


class DEIS(ExponentialAdams):
    """Exponential Adams–Bashforth through noise predictions (tAB-DEIS): order p, one evaluation. DEIS(1) is DDIM.

    Args: p: order, 1 to 5: the number of predictions the polynomial goes through (r + 1 of the paper). ``clock``: its variable, "t" as
    in the
    paper or "lambda" (the "log ρ" variant, the default); form and other options as for :class:`ExponentialAdams`.

    Source: Zhang & Chen 2023, eq. 14, 15.
    """

    source = "Zhang & Chen 2023, eq. 14"

    def __init__(self, p: int = 3, form: str = "noise", **options: Any):
        super().__init__(p, form, **options)


class Adams(Multistep):
    """Linear multistep (LMS): Adams–Bashforth for dX/dσ = ε, with weights for the actual step sizes. Order p, one evaluation.

    Equals ``DEIS(p, clock="sigma")``. Distributed LMS begins with an Euler step, which costs orders above 2.

    Args: p: order, 1 to 5; orders: as for :class:`ExponentialAdams`.

    Source: Hairer, Nørsett & Wanner, III.5; as a sampler Liu et al. 2022 (PNDM).
    """

    order: float | None = 4
    order_note = "p, 1 to 5"
    source = "Hairer, Nørsett & Wanner, III.5"

    def __init__(self, p: int = 4, *, orders: Orders = None):
        super().__init__(p, "noise", clock="sigma", orders=orders)


# Adams–Bashforth weights of equal steps, newest first
_EQUAL = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


class IPNDM(Multistep):
    """iPNDM: DDIM steps with Adams–Bashforth combinations of ε.

    * ``variable=False`` (iPNDM): the constant weights of equal steps, whatever the grid: order p where steps are equal in σ, and 2
      elsewhere, since σ then bends within a step. Starting steps have exact weights.
    * ``variable=True`` (iPNDM_v): weights for the actual steps: order p on any grid, the same as :class:`Adams`.

    Args: p: 1 to 4. orders: as for :class:`ExponentialAdams`. legacy: as distributed: an Euler start, and in iPNDM_v of p = 3 a misplaced
    bracket, which leaves order 2 on unequal steps.

    Source: Zhang & Chen 2023, app. H.2; Liu et al. 2022, eq. 9.
    """

    order: float | None = 2
    order_note = "2; p (to 4) for equal steps or variable=True"
    source = "Zhang & Chen 2023, app. H.2"

    def __init__(self, p: int = 4, variable: bool = False, *, orders: Orders = None, legacy: bool = False):
        if p not in _EQUAL:
            raise ValueError(f"IPNDM: got order {p!r}, expected 1, 2, 3 or 4")
        if legacy and variable and p != 3:
            raise ValueError(
                f"IPNDM: got legacy=True and variable=True with p = {p}, expected p = 3, where the bracket is"
            )
        super().__init__(p, "noise", clock="sigma", orders=orders)
        self.variable, self.legacy = variable, legacy
        self.order = self._order_of_plan(p if variable and not legacy else min(p, 2))
        if legacy:
            self.start = rising

    def _weights(self, nodes: Array, start: Levels, end: Levels, eta: Array, clock: Any, regular: bool) -> Array:
        count = nodes.shape[1]
        if regular and not self.variable:
            return weights(self.form, nodes[:, :1], start, end, eta) * np.array(_EQUAL[count])
        if self.legacy and self.variable and count == 3:
            return _bracketed(nodes, end) * weights(self.form, nodes[:, :1], start, end, eta)
        return super()._weights(nodes, start, end, eta, clock, regular)


def _bracketed(nodes: Array, end: Levels) -> Array:
    """The third-order weights of iPNDM_v as distributed; right would be (1 − h/3(h + h₁)) · h(h + h₁)/h₁(h₁ + h₂)."""
    sigma = np.exp(-nodes)
    h, h1, h2 = end.sigma - sigma[:, 0], sigma[:, 0] - sigma[:, 1], sigma[:, 1] - sigma[:, 2]
    bend = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    return np.stack([1 + h / h1 / 2 + bend, -h / h1 / 2 - (1 + h1 / h2) * bend, bend * h1 / h2], 1)


def default_phi(sigma: torch.Tensor) -> torch.Tensor:
    """φ(σ) = σ (e^{σ^0.3} + 10), the paper's choice."""
    return sigma * ((sigma**0.3).exp() + 10)


class ERSDE(Multistep):
    r"""Extended reverse-time SDE solvers: the family with noise η(σ) = d ln φ/d ln σ − 1, its decay φ_s/φ_t exact, and the polynomial in
    σ through data predictions:

    .. math:: x_s = \frac{s_s φ_s}{s_t φ_t} x_t + s_s φ_s \sum_j D_j ∫_{σ_s}^{σ_t} L_j(σ) \frac{φ'}{φ^2} dσ
                    + s_s \sqrt{σ_s^2 - σ_t^2 (φ_s/φ_t)^2}\, z

    Weak order min(order, 2), one evaluation. φ(σ) = σ is the flow, φ(σ) = σ² the reverse SDE.

    Args:
        order: 1, 2 or 3: how many predictions are used.
        phi: elementwise on tensors; φ/σ must not decrease.

    Source: Cui et al. 2023, alg. 1–3.
    """

    accepts: tuple[type[Equation], ...] = (ReverseSDE,)
    stochastic = True
    order: float | None = 2
    weak_order: float | None = 2
    strong_order: float | None = 1
    order_note = "weak 1, 2, 2 for order = 1, 2, 3"
    source = "Cui et al. 2023, alg. 1–3"

    def __init__(self, order: int = 3, phi: Callable[[torch.Tensor], torch.Tensor] = default_phi):
        if order not in (1, 2, 3):
            raise ValueError(f"ERSDE: got order {order!r}, expected 1, 2 or 3")
        super().__init__(order, _extended(phi), clock="sigma", sde=True)
        self.phi = phi


def _extended(phi: Callable[[torch.Tensor], torch.Tensor]) -> Form:
    """The data form under φ in place of a constant η."""

    def value(sigma: Array) -> Array:
        return phi(torch.as_tensor(sigma, dtype=torch.float64)).numpy()

    def kernel(scale: Array, end: Array, lam: Array, eta: Array) -> Array:
        sigma = torch.as_tensor(np.exp(-lam))
        at, slope, *_ = torch.func.jvp(phi, (sigma,), (torch.ones_like(sigma),))
        return scale * value(np.exp(-end)) * (slope * sigma / at**2).numpy()

    def spread(start: Levels, end: Levels, eta: Array) -> Array:
        kept = start.sigma * value(end.sigma) / value(start.sigma)
        square = (end.sigma - kept) * (end.sigma + kept)
        if (square < -1e-12 * end.sigma**2).any():
            i = int(np.argmin(square))
            raise ValueError(
                f"phi: got φ/σ falling from {value(end.sigma)[i] / end.sigma[i]:g} at σ = {end.sigma[i]:g} to "
                f"{value(start.sigma)[i] / start.sigma[i]:g} at σ = {start.sigma[i]:g}, expected it to rise with σ"
            )
        return end.scale * np.sqrt(np.maximum(square, 0.0))

    return Form("data", DATA.data, DATA.noise, lambda scale, sigma: scale * value(sigma), kernel, spread=spread)
