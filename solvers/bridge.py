r"""Schrödinger bridges between Gaussians, in closed form: the bridge, the iterates of IPF, and those of mean matching.

The Schrödinger bridge is the law of paths on [0, 1] nearest in KL to a reference among those with given ends. The reference is

.. math:: dX = -θ (X - c)\,dt + σ\,dW,\qquad X_t\,|\,X_s \sim N\big(c + a_{st}(X_s - c),\ v_{st} I\big),
          \quad a_{st} = e^{-θ(t-s)},\ v_{st} = σ^2 \frac{1 - a_{st}^2}{2θ}

(θ = 0: Brownian motion, v = σ²(t − s)), and a, v without indices belong to the whole of [0, 1]. With start N(m₀, Σ₀) and end N(m₁, Σ₁)
let :math:`Σ_1^{1/2} Σ_0^{1/2} = U\,\mathrm{diag}(s)\,V^T`. The coupling of the ends has the cross-covariance and canonical correlations

.. math:: \mathrm{Cov}(X_0, X_1) = Σ_0^{1/2}\, V\,\mathrm{diag}(κ)\,U^T Σ_1^{1/2},\qquad
          κ = \frac{2 a s}{\sqrt{4 a^2 s^2 + v^2} + v},\qquad 1 - κ^2 = \frac{2v}{\sqrt{4 a^2 s^2 + v^2} + v},   (1)

in which nothing cancels at any σ: κ → 1 is optimal transport, κ → 0 independence. IPF approaches it at the rates κ² (mean) and κ⁴
(covariance). Given its ends a path is the reference's bridge, whatever they are:

.. math:: X_t - c = A (X_0 - c) + B (X_1 - c) + \sqrt w\,z,\qquad A = a_{0t} v_{t1}/v,\ B = a_{t1} v_{0t}/v,\ w = v_{0t} v_{t1}/v.   (2)

Sources: Chen, Georgiou & Pavon 2016; Janati et al. 2020, thm. 1; Bunne et al. 2023, thm. 3; De Bortoli et al. 2021, §3 (mean matching).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import check_event, is_int, number, per_batch
from ..processes import SDE
from .normal import Affine, Normal, as_normal, root


@dataclass(frozen=True)
class Reference:
    """dX = −rate·(X − centre) dt + sigma dW on t ∈ [0, 1]: Brownian motion, or Ornstein–Uhlenbeck with rate ≠ 0.

    Args: sigma: above 0. rate: from −300 on, negative drives outwards. centre: where the drift vanishes, on every axis.
    """

    sigma: float = 1.0
    rate: float = 0.0
    centre: float = 0.0

    def __post_init__(self) -> None:
        number(self.sigma, "sigma", low=0.0, open_low=True)
        number(self.rate, "rate", low=-300.0)  # e^{-2 rate} is then a number
        number(self.centre, "centre")

    def decay(self, span: Tensor) -> Tensor:
        """a over this span of time."""
        return torch.exp(-self.rate * span)

    def variance(self, span: Tensor) -> Tensor:
        """v over this span of time."""
        if self.rate == 0.0:
            return self.sigma**2 * span
        return self.sigma**2 * torch.expm1(-2 * self.rate * span) / (-2 * self.rate)

    @property
    def whole(self) -> tuple[float, float]:
        """(a, v) from 0 to 1."""
        one = torch.ones((), dtype=torch.float64)
        return float(self.decay(one)), float(self.variance(one))


class Coupling(NamedTuple):
    """A Gaussian law of both ends: their laws, and ``cross`` = Cov(X₀, X₁), ``[d, d]``."""

    start: Normal
    end: Normal
    cross: Tensor

    def joint(self) -> Normal:
        """The law of (X₀, X₁) in 2d dimensions."""
        rows = (self.start.covariance, self.cross), (self.cross.T, self.end.covariance)
        return Normal(torch.cat([self.start.mean, self.end.mean]), torch.cat([torch.cat(row, 1) for row in rows]))

    def cost(self, decay: float = 1.0) -> float:
        """E|X₁ − decay·X₀|²: with decay = 1 the transport cost."""
        spread = self.end.covariance + decay**2 * self.start.covariance - 2 * decay * self.cross
        return float(((self.end.mean - decay * self.start.mean) ** 2).sum() + spread.trace())


@dataclass(frozen=True)
class GaussianBridge:
    """The Schrödinger bridge between two Gaussians; see the module for formulas, and :func:`gaussian`, which makes one.

    ``forward(x, t)`` and ``backward(x, t)`` are the drifts of the two SDEs that have its law, dx = drift dt + σ dW with t rising from
    ``start`` and falling from ``end``; both are smooth on the whole of [0, 1].
    """

    start: Normal
    end: Normal
    reference: Reference = field(default_factory=Reference)

    @cached_property
    def _singular(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Σ₀^{1/2} V, κ, 1 − κ², Uᵀ Σ₁^{1/2}, s."""
        a, v = self.reference.whole
        left, right = root(self.start.covariance), root(self.end.covariance)
        u, s, vt = torch.linalg.svd(right @ left)
        whole = torch.hypot(2 * a * s, torch.full_like(s, v)) + v
        return left @ vt.T, 2 * a * s / whole, 2 * v / whole, u.T @ right, s

    @property
    def correlations(self) -> Tensor:
        """The canonical correlations κ of both ends, ``[d]``, falling."""
        return self._singular[1]

    @property
    def coupling(self) -> Coupling:
        """The law of both ends: the solution of the static problem (1)."""
        left, kappa, _, right, _ = self._singular
        return Coupling(self.start, self.end, (left * kappa) @ right)

    @property
    def kl(self) -> float:
        """KL(bridge ‖ reference started at ``start``), which is that of the couplings.

        ½[d ln v − ln det Cov(X₁|X₀) − d + E|X₁ − aX₀|²/v] about the centre, with E|X₁ − aX₀|² = |m₁ − am₀|² + |Σ₁^{1/2}U − aΣ₀^{1/2}V|²
        + 2aΣs(1 − κ), in which nothing cancels as v → 0."""
        a, v = self.reference.whole
        d = len(self.start.mean)
        left, kappa, rest, right, s = self._singular
        gap = self._about(self.end).mean - a * self._about(self.start).mean
        cost = gap.square().sum() + (right.T - a * left).square().sum() + 2 * a * (s * rest / (1 + kappa)).sum()
        conditional = torch.linalg.slogdet(self.end.covariance).logabsdet + rest.log().sum()
        return 0.5 * (d * math.log(v) - float(conditional) - d + float(cost) / v)

    def marginal(self, t: float | Tensor) -> Normal:
        """Mean ``[*t, d]`` and covariance ``[*t, d, d]`` of X_t, t in [0, 1]."""
        start, end, w, _, _ = self._between(_times(t))
        m0, m1 = self._about(self.start).mean, self._about(self.end).mean
        mean = self.reference.centre + start[..., 0] * m0 + end[..., 0] * m1
        return Normal(mean, self._covariance(start, end, w))

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        r"""The drift with rising t: −θ(x − c) + σ² ∇ log φ_t(x); x ``[*batch, d]``, t a number or broadcasting against x."""
        return self._drift(x, t, backward=False)

    def backward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The drift with falling t: forward(x, t) − σ² ∇ log p_t(x)."""
        return self._drift(x, t, backward=True)

    def equation(self, *, backward: bool = False) -> SDE:
        """The SDE of one direction: solve it on times from 0 to 1, or from 1 to 0 where ``backward``."""
        drift = self.backward if backward else self.forward
        return SDE(drift, self.reference.sigma, Euclidean((len(self.start.mean),)), direction=-1 if backward else 1)

    def _about(self, law: Normal) -> Normal:
        return law._replace(mean=law.mean - self.reference.centre)

    def _between(self, t: Tensor) -> tuple[Tensor, ...]:
        """A, B, w, v_{t1}, v_{0t} of (2), each ``[*t, 1, 1]``."""
        t = t[..., None, None]
        _, v = self.reference.whole
        past, future = self.reference.variance(t), self.reference.variance(1 - t)
        start, end = self.reference.decay(t) * future / v, self.reference.decay(1 - t) * past / v
        return start, end, past * future / v, future, past

    def _covariance(self, start: Tensor, end: Tensor, w: Tensor) -> Tensor:
        cross, eye = self.coupling.cross, torch.eye(len(self.start.mean), dtype=torch.float64)
        both = start**2 * self.start.covariance + end**2 * self.end.covariance
        return both + start * end * (cross + cross.T) + w * eye

    def _drift(self, x: Tensor, t: float | Tensor, backward: bool) -> Tensor:
        r"""u(m_t) + S (x − m_t).

        Forward S = −θ + σ² (a_{t1}/v_{t1}) Cov(X₁ − a_{t1}X_t, X_t) Σ_t⁻¹. All terms of that covariance share the factor v_{t1} (for
        1 − a_{t1}B = v_{t1}/v), which is taken out by hand, so that nothing is 0/0 at the ends; backward S adds σ²Σ_t⁻¹ alike.
        """
        check_event(x, self.start.mean.shape)
        reference, (a, v) = self.reference, self.reference.whole
        times = _times(t, x)
        start, end, w, future, past = self._between(times)
        covariance, cross = self._covariance(start, end, w), self.coupling.cross
        onward = reference.decay(1 - times)[..., None, None]
        eye = torch.eye(len(self.start.mean), dtype=torch.float64)
        shared = start * cross.T + end * self.end.covariance - a * (start * self.start.covariance + end * cross)
        numerator = onward * shared + future * eye if backward else onward * (shared - onward * past * eye)
        slope = torch.linalg.solve(covariance, numerator.mT).mT * (reference.sigma**2 / v) - reference.rate * eye
        m0, m1 = self._about(self.start).mean, self._about(self.end).mean
        mean = start[..., 0] * m0 + end[..., 0] * m1
        velocity = -reference.rate * mean + reference.sigma**2 / v * onward[..., 0] * (m1 - a * m0)
        slope, mean, velocity = (v.to(x.device) for v in (slope, reference.centre + mean, velocity))
        return (velocity + (slope @ (x.double() - mean)[..., None])[..., 0]).to(x)


def gaussian(
    start: Sequence[Any] | Normal,
    end: Sequence[Any] | Normal,
    sigma: float = 1.0,
    *,
    rate: float = 0.0,
    centre: float = 0.0,
) -> GaussianBridge:
    """The Schrödinger bridge between two Gaussians with Brownian (rate = 0) or Ornstein–Uhlenbeck reference, exact at every σ.

    Args:
        start, end: (mean, covariance) at t = 0 and 1: ``[d]`` and ``[d, d]``, symmetric positive definite; two numbers in one dimension.
        sigma, rate, centre: of the :class:`Reference` dX = −rate·(X − centre) dt + sigma dW.

    Raises ``ValueError`` for covariances that are not positive definite, shapes that do not fit, σ ≤ 0.
    """
    first, last = as_normal(start, "start"), as_normal(end, "end")
    if first.mean.shape != last.mean.shape:
        raise ValueError(
            f"end: got {len(last.mean)} dimensions, expected the {len(first.mean)} of start; a bridge joins laws in one space"
        )
    return GaussianBridge(first, last, Reference(sigma, rate, centre))


def ipf(bridge: GaussianBridge, halves: int) -> list[Coupling]:
    r"""The first iterates of iterative proportional fitting, which begins at the reference started at ``start``.

    Iterate 0 has the right end (q⁰), 1 the right start (p¹), and so on in turn: each keeps the conditional law of one end given the other
    and replaces the law it is given. Errors of means fall by κ² per two halves, those of covariances by κ⁴, κ = bridge.correlations.
    """
    _check_count(halves, "halves", 0)
    a, v = bridge.reference.whole
    eye, centre = torch.eye(len(bridge.start.mean), dtype=torch.float64), bridge.reference.centre
    given, kernel = bridge.start, Affine(a * eye, (1 - a) * torch.full_like(bridge.start.mean, centre), v * eye)
    out = []
    for half in range(halves):
        kernel = kernel.given(given)
        given = bridge.start if half % 2 else bridge.end
        reached, cross = kernel.push(given), kernel.matrix @ given.covariance
        # the kernel leads from `given`, which is the end in even halves
        out.append(Coupling(given, reached, cross.T) if half % 2 else Coupling(reached, given, cross))
    return out


class GaussianChain(NamedTuple):
    """A Markov chain of N affine Gaussian steps from ``law``; of step index 0 … N, falling where ``backward``."""

    law: Normal
    steps: list[Affine]
    backward: bool

    def marginals(self) -> list[Normal]:
        """The laws at indices 0 … N, in that order."""
        laws = [self.law]
        for step in self.steps:
            laws.append(step.push(laws[-1]))
        return laws[::-1] if self.backward else laws


def mean_matching(bridge: GaussianBridge, steps: int, halves: int, *, matching: str = "drift") -> list[GaussianChain]:
    r"""Mean-matching IPF in the limit of infinitely many samples: what an exact linear regression makes of Gaussian ends.

    The reference is taken in N Euler steps :math:`F(x) = x - \tfracθN (x - c)` with noise of variance 2γ = σ²/N. A half iteration runs one
    chain and regresses the map of the other, whose noise stays 2γ (De Bortoli et al. 2021, eq. 12):

    .. math:: B_{k+1}(x) = E[X_{k+1} + F_k(X_k) - F_k(X_{k+1})\,|\,X_{k+1} = x].

    Chain 0 runs backwards from ``end``, chain 1 forwards from ``start``, in turn. Their limit is *not* the bridge: the noise of a step is
    2γ where that of the exact reversal is smaller by O(γ²), and the regressed map is right to O(γ²); so means and covariances at the ends
    err by O(1/N), however long one iterates. ``matching="mean"`` regresses E[X_k | X_{k+1} = x] instead, which keeps the mean.

    Args: steps: N ≥ 1. halves: how many half iterations.
    """
    _check_count(steps, "steps", 1)
    _check_count(halves, "halves", 0)
    if matching not in ("drift", "mean"):
        raise ValueError(f"matching: got {matching!r}, expected 'drift' or 'mean'")
    reference, eye = bridge.reference, torch.eye(len(bridge.start.mean), dtype=torch.float64)
    keep, pull = 1 - reference.rate / steps, torch.full_like(bridge.start.mean, reference.centre)
    first = Affine(keep * eye, (1 - keep) * pull, reference.sigma**2 / steps * eye)
    chain = GaussianChain(bridge.start, [first] * steps, backward=False)
    out = []
    for _ in range(halves):
        law, turned = chain.law, []
        for step in chain.steps:
            reached = step.push(law)
            turned.append(_matched(step, law, reached, matching))
            law = reached
        chain = GaussianChain(bridge.start if chain.backward else bridge.end, turned[::-1], not chain.backward)
        out.append(chain)
    return out


def _matched(step: Affine, law: Normal, reached: Normal, matching: str) -> Affine:
    """The step of the other direction, where x has this law before ``step`` and the one ``reached`` after it."""
    gain, offset = step.regression(law, reached)
    if matching == "mean":
        return Affine(gain, offset, step.noise)
    eye = torch.eye(len(law.mean), dtype=torch.float64)
    return Affine(eye - step.matrix + step.matrix @ gain, step.matrix @ offset, step.noise)


def _times(t: float | Tensor, x: Tensor | None = None) -> Tensor:
    """Times in float64; one that broadcasts against x ``[*batch, d]`` loses its last dimension."""
    times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    if x is not None and times.dim():
        times = per_batch(times, torch.empty(x.shape, dtype=torch.float64), 1, "t")
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(f"t: got times from {float(times.min()):g} to {float(times.max()):g}, expected [0, 1]")
    return times


def _check_count(value: int, name: str, least: int) -> None:
    if not is_int(value, least):
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at least {least}")
