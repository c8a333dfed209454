r"""What a score's errors cost in likelihood, where every term is known: objects for the study of bounds.

For data q, a score s and the prior π at σ₁, in nats (½g² dt = σ dσ, and X = x/s_t is meant throughout):

===============  =======================================================================================================
``fisher``       :math:`D_{Fisher} = \int σ\,E_q|s - \nabla\log q_σ|^2 dσ`
``prior``        KL(q_T | π)
``kl_sde``       KL(q₀ | p₀ of the reverse SDE) = D_Fisher + KL(q_T | π) − ``gap``
``gap``          :math:`\int σ\,E_q|s - \nabla\log p^{SDE}_σ|^2 dσ`, 0 for a self-consistent s: the *variational gap*
``kl_ode``       KL(q₀ | p₀ of the flow) = ``d_ode`` + KL(q_T | π)
``d_ode``        :math:`D_{Fisher} + D_{diff}`, :math:`D_{diff} = \int σ\,E_q[(s - \nabla\log q)·(\nabla\log p^{ODE} - s)]\,dσ`
``fisher_ode``   :math:`\int σ\,E_q|\nabla\log q_σ - \nabla\log p^{ODE}_σ|^2 dσ`; d_ode ≤ √(fisher·fisher_ode)
===============  =======================================================================================================

:class:`GaussianStudy` has all of them in closed form up to one integral each; :func:`flow_study` those of any score on a mixture.
Song, Durkan, Murray & Ermon 2021, theorems 1–3; Lu et al. 2022, theorems 3.1, 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..processes import Diffusion
from ..solvers import AdaptiveODE, karras, log_likelihood
from ..solvers.divergence import slope
from .problems import MixtureProblem

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GaussianStudy:
    """Data N(data), the score of N(model) diffused, the prior N(prior) of x_T, each (mean, variance) of one number, under any schedule.

    The terms of the module's table are properties. ``model`` = ``data`` is the exact score; ``prior_law=None`` is N(0, 1), and
    "model" the model's own terminal law, with which it is self-consistent.
    """

    process: Diffusion
    data: tuple[float, float] = (0.5, 0.25)
    model: tuple[float, float] = (0.3, 0.5)
    prior_law: tuple[float, float] | Literal["model"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.prior_law, str) and self.prior_law != "model":
            raise ValueError(f"prior_law: got {self.prior_law!r}, expected (mean, variance), 'model' or None")

    @property
    def _last(self) -> tuple[float, float]:
        """The variance σ_T² and the scale at t_max."""
        level = self.process.level(self.process.schedule.t_max)
        return float(level.sigma) ** 2, float(level.scale)

    @property
    def start(self) -> tuple[float, float]:
        """The prior in X."""
        noise, scale = self._last
        if isinstance(self.prior_law, str):
            return self.model[0], self.model[1] + noise
        mean, variance = self.prior_law or (0.0, 1.0)
        return float(mean) / scale, float(variance) / scale**2

    def data_law(self, noise: Any = 0.0) -> tuple[Any, Any]:
        """q at σ² = noise: mean and variance of X."""
        return self.data[0], self.data[1] + noise

    def sde_law(self, noise: Any = 0.0) -> tuple[Any, Any]:
        """p of the reverse SDE: with w = v + σ² its mean goes as w, and its variance is w + C w²."""
        (m, v), (mean, variance), last = self.model, self.start, self._last[0]
        w, end = v + noise, v + last
        return m + (mean - m) * w / end, w + (variance - end) * (w / end) ** 2

    def ode_law(self, noise: Any = 0.0) -> tuple[Any, Any]:
        """p of the flow: X − m goes as √w."""
        (m, v), (mean, variance), last = self.model, self.start, self._last[0]
        ratio = (v + noise) / (v + last)
        return m + (mean - m) * np.sqrt(ratio), variance * ratio

    @property
    def fisher(self) -> float:
        return self._product(self._score, self.data_law)

    @property
    def prior(self) -> float:
        return gaussian_divergence(self.data_law(self._last[0]), self.start)

    @property
    def kl_sde(self) -> float:
        return gaussian_divergence(self.data_law(), self.sde_law())

    @property
    def gap(self) -> float:
        return self._product(self._score, self.sde_law)

    @property
    def kl_ode(self) -> float:
        return gaussian_divergence(self.data_law(), self.ode_law())

    @property
    def d_ode(self) -> float:
        return self.kl_ode - self.prior

    @property
    def d_diff(self) -> float:
        return self._integral(
            lambda n: _mean_product(self._score(n), self.data_law(n), self.ode_law(n), self._score(n), self.data_law(n))
        )

    @property
    def fisher_ode(self) -> float:
        return self._product(self.data_law, self.ode_law)

    def _score(self, noise: Any) -> tuple[Any, Any]:
        """The law whose score s is."""
        return self.model[0], self.model[1] + noise

    def _product(self, one: Callable, other: Callable) -> float:
        """∫ σ E_q |∇log one − ∇log other|² dσ."""
        return self._integral(lambda n: _mean_product(one(n), other(n), one(n), other(n), self.data_law(n)))

    def _integral(self, function: Callable[[np.ndarray], np.ndarray]) -> float:
        """∫ σ f dσ = ½∫ f d(σ²), by Gauss–Legendre nodes in ln(σ² + v), in which rational functions of both are smooth."""
        nodes, weights = np.polynomial.legendre.leggauss(400)
        low = min(self.data[1], self.model[1])
        span = math.log1p(self._last[0] / low)
        shifted = low * np.exp(span * (nodes + 1) / 2)
        return float(0.25 * span * np.sum(weights * shifted * function(shifted - low)))


def gaussian_divergence(one: tuple[float, float], other: tuple[float, float]) -> float:
    """KL(N(one) | N(other)), each (mean, variance)."""
    ratio = one[1] / other[1]
    return 0.5 * (ratio - 1 - math.log(ratio) + (one[0] - other[0]) ** 2 / other[1])


def _mean_product(a: Any, b: Any, c: Any, d: Any, over: Any) -> Any:
    """E[(∇log a − ∇log b)(∇log c − ∇log d)] over N(over), for Gaussian laws (mean, variance): a product of two linear functions."""
    (m, v), lines = over, []
    for p, q in ((a, b), (c, d)):
        gradient = 1 / q[1] - 1 / p[1]
        lines.append((p[0] / p[1] - q[0] / q[1] + gradient * m, gradient))
    (u, k), (w, h) = lines
    return u * w + k * h * v


class FlowStudy(NamedTuple):
    """``nll`` = −E log p₀ of the flow = ``entropy`` + ``d_ode`` + ``prior``; ``jacobian`` is the Fisher integral of the score's Jacobian,
    ∫σ³ E|∇s − ∇²log q|² dσ. "0" is σ_min."""

    fisher: float
    jacobian: float
    d_ode: float
    nll: float
    entropy: float
    prior: float


def flow_study(problem: MixtureProblem, score: Field, *, nodes: int = 20, low: float | None = None) -> FlowStudy:
    """What a score on the mixture's process is worth, without sampling noise: means over q_σ are Gauss–Hermite sums over each
    component, log p₀ at their nodes that of :func:`~carom.solvers.log_likelihood`.

    Args: score: any, called in float64. nodes: per axis and component. low: the level that stands for the data; σ_min unless told.
    """
    process = problem.process
    times = karras(process, 2, sigma_min=low)
    first, last = float(times[-1]), float(times[0])
    x, weight = mixture_nodes(problem, first, nodes)
    entropy = -float(weight @ problem.log_prob(x, first))
    found = log_likelihood(process, score, x, solver=AdaptiveODE(1e-8, 1e-8), times=times)
    nll = -float(weight @ found.log_prob)
    x, weight = mixture_nodes(problem, last, nodes)
    law = process.prior(torch.float64, t=last)
    prior = float(weight @ (problem.log_prob(x, last) - law.log_prob(x)))
    ends = process.level(times).sigma.log()
    tau, tau_weight = np.polynomial.legendre.leggauss(40)
    half = 0.5 * float(ends[0] - ends[1])
    fisher = jacobian = 0.0
    for node, factor in zip(float(ends[1]) + half * (1 + tau), half * tau_weight, strict=True):
        of_score, of_jacobian = _errors(problem, score, math.exp(node), nodes)
        fisher, jacobian = fisher + factor * of_score, jacobian + factor * of_jacobian
    return FlowStudy(fisher, jacobian, nll - entropy - prior, nll, entropy, prior)


def mixture_nodes(problem: MixtureProblem, t: float, n: int) -> tuple[Tensor, Tensor]:
    """x_t ``[q, d]`` and weights ``[q]`` that integrate over the mixture at time t: n^d Gauss–Hermite nodes for each component."""
    w, m, c = (torch.tensor(v, dtype=torch.float64) for v in (problem.weights, problem.means, problem.covariances))
    level = problem.process.level(t)
    z, weight = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(n))
    d = m.shape[1]
    z = torch.cartesian_prod(*[z] * d).reshape(-1, d)
    weight = torch.cartesian_prod(*[weight / math.sqrt(2 * math.pi)] * d).reshape(-1, d).prod(-1)
    root = torch.linalg.cholesky(c + level.sigma**2 * torch.eye(d, dtype=torch.float64))
    return level.scale * (m[:, None] + z @ root.mT).reshape(-1, d), (w[:, None] / w.sum() * weight).flatten()


def _errors(problem: MixtureProblem, score: Field, sigma: float, nodes: int) -> tuple[float, float]:
    """(σ² E|s − ∇log q|², σ⁴ E|∇s − ∇²log q|²) of X at one level."""
    level = problem.process.level(sigma=sigma)
    x, weight = mixture_nodes(problem, float(level.t), nodes)
    (s, js), (q, jq) = (_with_jacobian(f, x, level.t) for f in (score, problem.score))
    std = float(level.scale) * sigma
    return std**2 * float(weight @ (s - q).square().sum(-1)), std**4 * float(weight @ (js - jq).square().sum((1, 2)))


def _with_jacobian(score: Field, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(score ``[q, d]``, its Jacobian ``[q, d, d]``)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = score(x, t)
        rows = [slope(value[:, i].sum(), x) for i in range(x.shape[-1])]
    return value.detach(), torch.stack(rows, 1)
