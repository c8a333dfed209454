r"""Predictions of a score, and the exponential weights with which a multistep rule sums them.

Write X = x/s, σ, λ = −ln σ, D = E[x0 | x] and ε = (X − D)/σ. The reverse family of a process (η = 0 its flow, 1 the reverse SDE) is

.. math:: dX = -(1+η)(X - D)\,dλ + \sqrt{2η}\,σ\,dW_λ = (1+η)\,ε\,dσ + \dots

Each *form* takes one combination P of D and ε as what varies slowly; with the rest solved exactly, a step from t to s is

.. math:: x_s = \frac{r_s}{r_t} e^{-η h} x_t + \int_{λ_t}^{λ_s} k(λ)\, P(λ)\, dλ + c\, z,\qquad h = λ_s - λ_t

=========  =====================  =============  ==========================================  ======================================
form       P                      r              k(λ)                                        in the literature
=========  =====================  =============  ==========================================  ======================================
noise      ε                      s              −(1 + η) s_s σ                              DDIM, DPM-Solver, DEIS; SDE-DPM-Solver
data       D                      s σ            (1 + η) s_s e^{−(1+η)(λ_s − λ)}             DPM-Solver++, SDE-DPM-Solver++, SA
velocity   ε − D                  s (1 + σ)      −s_s (1 + σ_s) σ / (1 + σ)²                 flow matching, rectified flow
v          cos φ ε − sin φ D      s √(1 + σ²)    −s_s √(1 + σ_s²) σ / (1 + σ²)               Salimans & Ho 2022; tan φ = σ
=========  =====================  =============  ==========================================  ======================================

(with noise, r is that of the table only where η enters by the factor e^{−ηh}: data; the noise form keeps r = s.) P is replaced by
the polynomial through known values in a variable of choice (λ, σ or t); its weights :math:`w_j = ∫ L_j k\,dλ` are found in float64 by
Gauss–Legendre sums on panels no longer than 1 in λ, which are exact to rounding because every k is smooth on that scale.

On a domain with walls D and ε are only names for X + σ²·score and −σ·score: the formulas above need no more.

Sources: Lu et al. 2022 (DPM-Solver, eq. 3.4; DPM-Solver++, eq. 8), Zhang & Chen 2023 (DEIS, eq. 14), Xue et al. 2023 (SA-Solver, eq. 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..processes import Diffusion
from ..processes.diffusion import Level

Array = np.ndarray
NODES, PANEL = 16, 1.0
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(NODES)


class Levels:
    """A process along some times as NumPy arrays: t, scale, sigma, lam = −ln σ. ``λ`` is ±∞ where σ is 0 or infinite."""

    def __init__(self, level: Level):
        self.t, self.scale, self.sigma = level.t.numpy(), level.scale.numpy(), level.sigma.numpy()
        with np.errstate(divide="ignore"):
            self.lam = -np.log(self.sigma)

    @classmethod
    def at(cls, process: Diffusion, times: torch.Tensor | Array) -> Levels:
        return cls(process.level(torch.as_tensor(times, dtype=torch.float64)))

    @classmethod
    def at_lambda(cls, process: Diffusion, lam: Array) -> Levels:
        """Where half the log-SNR has these values."""
        sigma = torch.as_tensor(np.exp(-lam))
        return cls.at(process, process.schedule.time(sigma))

    @property
    def std(self) -> Array:
        return self.scale * self.sigma

    def __getitem__(self, index: Any) -> Levels:
        part = object.__new__(Levels)
        part.t, part.scale, part.sigma, part.lam = (v[index] for v in (self.t, self.scale, self.sigma, self.lam))
        return part


@dataclass(frozen=True)
class Form:
    """A prediction P = data(σ)·D + noise(σ)·ε and what stays when P does.

    ``rest(s, σ)`` is r of the module's table, ``kernel(s_s, λ_s, λ, η)`` is k, ``decay`` says whether η damps x, ``spread(start, end, η)``
    is c; all elementwise. Without ``spread`` a form is for flows only.
    """

    name: str
    data: Callable[[Array], Array]
    noise: Callable[[Array], Array]
    rest: Callable[[Array, Array], Array]
    kernel: Callable[[Array, Array, Array, Array], Array]
    decay: bool = False
    spread: Callable[[Levels, Levels, Array], Array] | None = None


def _zeros(sigma: Array) -> Array:
    return np.zeros_like(sigma)


def _ones(sigma: Array) -> Array:
    return np.ones_like(sigma)


NOISE = Form(
    "noise",
    data=_zeros,
    noise=_ones,
    rest=lambda scale, sigma: scale,
    kernel=lambda scale, end, lam, eta: -(1 + eta) * scale * np.exp(-lam),
    spread=lambda start, end, eta: end.scale * np.sqrt(eta * (start.sigma - end.sigma) * (start.sigma + end.sigma)),
)
DATA = Form(
    "data",
    data=_ones,
    noise=_zeros,
    rest=lambda scale, sigma: scale * sigma,
    kernel=lambda scale, end, lam, eta: (1 + eta) * scale * np.exp((1 + eta) * (lam - end)),
    decay=True,
    spread=lambda start, end, eta: end.std * np.sqrt(-np.expm1(-2 * eta * (end.lam - start.lam))),
)
VELOCITY = Form(
    "velocity",
    data=lambda sigma: -np.ones_like(sigma),
    noise=_ones,
    rest=lambda scale, sigma: scale * (1 + sigma),
    # σ/(1 + σ)² = 1/(e^{λ/2} + e^{−λ/2})², which neither overflows nor cancels
    kernel=lambda scale, end, lam, eta: -scale * (1 + np.exp(-end)) / (2 * np.cosh(lam / 2)) ** 2,
)
V = Form(
    "v",
    data=lambda sigma: -sigma / np.hypot(1, sigma),
    noise=lambda sigma: 1 / np.hypot(1, sigma),
    rest=lambda scale, sigma: scale * np.hypot(1, sigma),
    kernel=lambda scale, end, lam, eta: -scale * np.hypot(1, np.exp(-end)) / (2 * np.cosh(lam)),
)
FORMS = {form.name: form for form in (NOISE, DATA, VELOCITY, V)}
#: the variables in which a polynomial may be laid through predictions
CLOCKS = ("lambda", "sigma", "t")


def form_of(name: str | Form) -> Form:
    if isinstance(name, Form):
        return name
    if name not in FORMS:
        raise ValueError(f"form: got {name!r}, expected one of {', '.join(FORMS)}")
    return FORMS[name]


def reading(form: Form, at: Levels) -> tuple[Array, Array, Array, Array]:
    """(p, q, data, noise): P = p·x + q·score = data·x0 + noise·ε, where a score offers its predictions itself."""
    data, noise = form.data(at.sigma), form.noise(at.sigma)
    with np.errstate(divide="ignore", invalid="ignore"):
        # at s = 0 only predictions can be read
        p = np.where(data == 0, 0.0, data / at.scale)
    return p, (data * at.sigma - noise) * at.std, data, noise


def carry(form: Form, start: Levels, end: Levels, eta: Array | float = 0.0) -> Array:
    """r_s/r_t·e^{−ηh}: what is left of x when P is zero."""
    kept = form.rest(end.scale, end.sigma) / form.rest(start.scale, start.sigma)
    return kept * np.exp(-eta * (end.lam - start.lam)) if form.decay else kept


def weights(
    form: Form,
    nodes: Array,
    start: Levels,
    end: Levels,
    eta: Array | float = 0.0,
    clock: Callable[[Array], Array] | None = None,
) -> Array:
    """∫ L_j k dλ from t to s for the Lagrange basis L at the λ values ``nodes`` ``[n, k]``; start, end ``[n]``. Returns ``[n, k]``.

    ``clock`` maps λ to the variable of the polynomial (λ itself by default).
    """
    span = end.lam - start.lam
    panels = max(1, math.ceil(float(np.abs(span).max(initial=0.0)) / PANEL))
    # quadrature points of all panels on [0, 1]
    unit = ((np.arange(panels)[:, None] + 0.5 * (1 + _POINTS)) / panels).reshape(-1)
    share = np.tile(0.5 * _WEIGHTS / panels, panels)
    lam = start.lam[:, None] + span[:, None] * unit
    eta = np.broadcast_to(np.asarray(eta, dtype=np.float64), span.shape)[:, None]
    kernel = form.kernel(end.scale[:, None], end.lam[:, None], lam, eta) * share * span[:, None]
    at, places = (lam, nodes) if clock is None else (clock(lam), clock(nodes))
    return np.stack([(lagrange(places, j, at) * kernel).sum(1) for j in range(nodes.shape[1])], 1)


def lagrange(nodes: Array, j: int, at: Array) -> Array:
    """The j-th Lagrange polynomial of ``nodes`` ``[n, k]`` at points ``[n, q]``."""
    out = np.ones_like(at)
    for m in range(nodes.shape[1]):
        if m != j:
            out = out * (at - nodes[:, m, None]) / (nodes[:, j] - nodes[:, m])[:, None]
    return out


def clock_of(name: str, process: Diffusion) -> Callable[[Array], Array] | None:
    """The variable of the polynomials as a function of λ."""
    if name not in CLOCKS:
        raise ValueError(f"clock: got {name!r}, expected one of {', '.join(CLOCKS)}")
    if name == "lambda":
        return None
    if name == "sigma":
        return lambda lam: np.exp(-lam)
    return lambda lam: process.schedule.time(torch.as_tensor(np.exp(-lam))).numpy()


def phi(k: int, z: torch.Tensor) -> torch.Tensor:
    r"""φ_k(z) = ∫₀¹ e^{(1−θ)z} θ^{k−1}/(k−1)! dθ (φ₀ = e^z), float64: by recursion, by its series where that would cancel."""
    if k == 0:
        return z.exp()
    small = z.abs() < (1e-2 if k == 1 else 1.0)
    safe, near = torch.where(small, 1.0, z), torch.where(small, z, 0.0)
    direct = safe.expm1() / safe if k == 1 else (phi(k - 1, safe) - 1 / math.factorial(k - 1)) / safe
    series = torch.zeros_like(z)
    for j in range(20, -1, -1):  # Horner; |z|²¹/21! is below rounding
        series = series * near + 1 / math.factorial(j + k)
    return torch.where(small, series, direct)
