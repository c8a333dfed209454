r"""Problems whose every answer is known in closed form: score, density, moments and the exact flow, at every noise level.

=====================  ==========================================================  ==================
problem                data law                                                    domain
=====================  ==========================================================  ==================
``gaussian()``         G1 = N(½, ¼)                                                R
``gaussian_2d()``      G2 = N((.5, −.3), [[.5, .2], [.2, .3]])                     R²
``mixture()``          M1 = .3 N(−1, .2²) + .7 N(.8, .3²)                          R
``mixture_2d()``       M2 = .4 N((−1, .5), C₁) + .6 N((.7, −.4), C₂)               R²
``cosine()``           p(x) = Π (1 + a cos πxᵢ), a = ½                             [0, 1]^d
``pair()``             p(y) ∝ q₁(y₁)q₂(y₂) + q₁(y₂)q₂(y₁), qᵢ = 1 + aᵢ cos πy      Simplex(3)
=====================  ==========================================================  ==================

The *flow* is the probability flow ODE, which in R¹ (and on an interval) carries quantiles to quantiles: with F_σ the
distribution function of X_σ and :math:`x_t = s(t) X`, the exact map from t to s is :math:`s(s)\,F_{σ(s)}^{-1}(F_{σ(t)}(x/s(t)))`;
elsewhere it is found by another library's integrator, scipy's DOP853, to 1e-12.
Everything is float64; ``t`` is a number or broadcasts against x, as for scores.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ..domains import Euclidean, Hypercube, Simplex
from ..domains.tensors import event_sum, per_batch
from ..processes import VE, VP, Diffusion, Schedule
from ..scores import GaussianMixtureScore

Time = float | Tensor


@dataclass(frozen=True)
class Problem(ABC):
    """A process with its exact score; ``score(x, t)`` obeys the contract of scores and has ``rows``."""

    process: Diffusion
    score: Callable[..., Tensor] = field(init=False)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """log p_t(x): ``[*batch]``."""
        return self.score.log_prob(x, t)  # type: ignore[attr-defined]

    def marginal(self, t: float) -> Marginal:
        """The law of x_t, as a prior for :func:`~carom.solvers.log_likelihood`."""
        return Marginal(self, t)

    @abstractmethod
    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        """Where the probability flow carries x from time t to time s, exactly: the shape of x."""

    @abstractmethod
    def moments(self, t: float) -> tuple[Tensor, Tensor]:
        """Mean ``[d]`` and covariance ``[d, d]`` of x_t."""

    @abstractmethod
    def points(self, t: float, n: int = 5) -> Tensor:
        """n typical states at time t, always the same: ``[n, *event]``."""


@dataclass(frozen=True)
class Marginal:
    """The law of a problem's states at one time."""

    problem: Problem
    t: float

    def log_prob(self, value: Tensor) -> Tensor:
        return self.problem.log_prob(value, self.t)


@dataclass(frozen=True)
class MixtureProblem(Problem):
    """A Gaussian mixture in R^d under any schedule; the flow is closed for one component or d = 1, else integrated.

    Args: weights ``[K]``, means ``[K, d]``, covariances ``[K, d, d]``, as nested tuples of floats.
    """

    weights: tuple[float, ...] = (1.0,)
    means: tuple[tuple[float, ...], ...] = ((0.5,),)
    covariances: tuple[tuple[tuple[float, ...], ...], ...] = (((0.25,),),)

    def __post_init__(self) -> None:
        score = GaussianMixtureScore(self.process, self.weights, self.means, self.covariances)
        object.__setattr__(self, "score", score)

    @property
    def gaussian(self) -> bool:
        return len(self.weights) == 1

    def moments(self, t: float) -> tuple[Tensor, Tensor]:
        w, m, c = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.covariances))
        w = w / w.sum()
        mean = (w[:, None] * m).sum(0)
        spread = (w[:, None, None] * (c + m[:, :, None] * m[:, None, :])).sum(0) - mean[:, None] * mean[None, :]
        level = self.process.level(t)
        variance = (level.scale * level.sigma) ** 2
        return level.scale * mean, level.scale**2 * spread + variance * torch.eye(len(mean), dtype=torch.float64)

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        before, after = self.process.level(t), self.process.level(s)
        clean = x.double() / before.scale
        if self.gaussian:
            moved = self._whiten(clean, float(before.sigma), float(after.sigma))
        elif clean.shape[-1] == 1:
            w, m, c = (
                torch.tensor(v, dtype=torch.float64).flatten() for v in (self.weights, self.means, self.covariances)
            )
            logits = [_Logit(w / w.sum(), m, (c + level.sigma**2).sqrt()) for level in (before, after)]
            moved = logits[1].inverse(logits[0](clean), clean)
        else:
            return integrated_flow(self, x, t, s)
        return (after.scale * moved).to(x.dtype)

    def points(self, t: float, n: int = 5) -> Tensor:
        mean, covariance = self.moments(t)
        d = len(mean)
        # unevenly spaced, so that no symmetry of the law hides an error
        spots = torch.linspace(-1.6, 1.9, n, dtype=torch.float64) if n > 1 else torch.tensor([0.7], dtype=torch.float64)
        directions = torch.tensor(
            [[math.cos(1.0 + 2.3 * i + 1.7 * j * (i + 1)) for j in range(d)] for i in range(n)], dtype=torch.float64
        )
        return (
            mean + (spots[:, None] * directions.sign() if d == 1 else 1.5 * directions) * covariance.diagonal().sqrt()
        )

    def _whiten(self, clean: Tensor, before: float, after: float) -> Tensor:
        """A Gaussian's flow is linear in each eigenbasis: X − m scales by √((v + σ_s²)/(v + σ_t²))."""
        mean = torch.tensor(self.means[0], dtype=torch.float64)
        values, vectors = torch.linalg.eigh(torch.tensor(self.covariances[0], dtype=torch.float64))
        gain = ((values + after**2) / (values + before**2)).sqrt()
        return mean + (((clean - mean) @ vectors) * gain) @ vectors.T


def integrated_flow(problem: Problem, x: Tensor, t: float, s: float) -> Tensor:
    """The flow by scipy's DOP853 at its tightest: dX/dσ = −σ·score_X in σ, the clock on which flows are smoothest."""
    values = _integrated(problem, tuple(x.double().flatten().tolist()), tuple(x.shape), t, s)
    return torch.tensor(values, dtype=torch.float64).reshape(x.shape).to(x.dtype)


@functools.lru_cache(256)
def _integrated(problem: Problem, x: tuple[float, ...], shape: tuple[int, ...], t: float, s: float) -> list[float]:
    process = problem.process
    begin, end = process.level(t), process.level(s)

    def slope(sigma: float, flat: np.ndarray) -> np.ndarray:
        level = process.level(sigma=sigma)
        at = torch.as_tensor(flat).reshape(shape)
        return (-sigma * level.scale * problem.score(level.scale * at, level.t)).numpy().ravel()

    clean = np.array(x) / float(begin.scale)
    run = solve_ivp(slope, (float(begin.sigma), float(end.sigma)), clean, method="DOP853", rtol=1e-13, atol=1e-14)
    return (float(end.scale) * run.y[:, -1]).tolist()


@dataclass(frozen=True)
class CosineProblem(Problem):
    """p(x) = Π (1 + a cos πxᵢ) on the unit cube, diffused: a_σ = a·exp(−π²σ²/2) (formulas §20)."""

    amplitude: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", CosineScore(self.process, self.amplitude))

    def _decayed(self, t: float) -> float:
        return float(self.amplitude * (-0.5 * (math.pi * self.process.level(t).sigma) ** 2).exp())

    def moments(self, t: float) -> tuple[Tensor, Tensor]:
        a, d = self._decayed(t), math.prod(self.process.domain.event_shape)
        mean, variance = 0.5 - 2 * a / math.pi**2, 1 / 12 - 4 * a**2 / math.pi**4
        return torch.full((d,), mean, dtype=torch.float64), variance * torch.eye(d, dtype=torch.float64)

    def entropy(self, t: float = 0.0) -> float:
        """−∫ p log p per state: per axis −log((1 + q)/2) − 1 + q with q = √(1 − a²)."""
        q = math.sqrt(1 - self._decayed(t) ** 2)
        return -math.prod(self.process.domain.event_shape) * (math.log((1 + q) / 2) + 1 - q)

    def cdf(self, x: Tensor, t: float) -> Tensor:
        """F_σ, coordinate by coordinate: x + a_σ sin(πx)/π."""
        return x + self._decayed(t) * (math.pi * x).sin() / math.pi

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        x = x.double()
        a = self._decayed(s)
        return _invert(lambda y: self.cdf(y, s), lambda y: 1 + a * (math.pi * y).cos(), self.cdf(x, t), 0.0, 1.0).to(
            x.dtype
        )

    def points(self, t: float, n: int = 5) -> Tensor:
        spots = (
            torch.linspace(0.06, 0.97, n, dtype=torch.float64) if n > 1 else torch.tensor([0.3], dtype=torch.float64)
        )
        event = self.process.domain.event_shape
        shifts = 0.01 * torch.arange(math.prod(event), dtype=torch.float64)
        return (spots[:, None] * (1 - shifts)).reshape(n, *event)


class CosineScore:
    r"""∇ log Π (1 + a_σ cos πxᵢ) = −π a_σ sin πxᵢ / (1 + a_σ cos πxᵢ) on the unit cube; zero at the walls.

    Args: process on a ``Hypercube`` from 0 to 1; amplitude a in (−1, 1).
    """

    def __init__(self, process: Diffusion, amplitude: float = 0.5):
        domain = process.domain
        if not isinstance(domain, Hypercube) or not bool((domain.low == 0).all() & (domain.high == 1).all()):
            raise TypeError(f"CosineScore: got {domain!r}, expected the unit cube Hypercube(event_shape)")
        if not -1 < amplitude < 1:
            raise ValueError(
                f"amplitude: got {amplitude:g}, expected a number in (-1, 1), or the density is not positive"
            )
        self.process, self.amplitude = process, amplitude

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        a = self._decayed(x, t)
        # the sine of the nearer wall's distance, so that it vanishes exactly at both
        sine = (math.pi * torch.minimum(x, 1 - x)).sin()
        return -math.pi * a * sine / (1 + a * (math.pi * x).cos())

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        return event_sum((self._decayed(x, t) * (math.pi * x).cos()).log1p(), len(self.process.domain.event_shape))

    def rows(self, index: Tensor) -> CosineScore:
        return self

    def _decayed(self, x: Tensor, t: Time) -> Tensor:
        ndim = len(self.process.domain.event_shape)
        sigma = self.process.schedule.sigma(per_batch(t, x, ndim, "t"))
        return (self.amplitude * (-0.5 * (math.pi * sigma) ** 2).exp()).reshape(sigma.shape + (1,) * ndim)


@dataclass(frozen=True)
class PairProblem(Problem):
    """Two particles on [0, 1] whose labels are forgotten: p(y) = q₁(y₁)q₂(y₂) + q₁(y₂)q₂(y₁) on ``Simplex(3)``, qᵢ = 1 + aᵢ cos πy;
    diffusion multiplies each aᵢ by exp(−π²σ²/2). The two do not separate, so that the score has no closed flow."""

    amplitudes: tuple[float, float] = (0.8, -0.6)

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", PairScore(self.process, self.amplitudes))

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        return integrated_flow(self, x, t, s)

    def moments(self, t: float) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("PairProblem: moments are not among its closed answers; integrate log_prob")

    def points(self, t: float, n: int = 5) -> Tensor:
        low = torch.linspace(0.05, 0.6, n, dtype=torch.float64) if n > 1 else torch.tensor([0.2], dtype=torch.float64)
        return torch.stack([low, low + 0.05 + 0.3 * low], -1)


class PairScore:
    """∇ log p of :class:`PairProblem`."""

    def __init__(self, process: Diffusion, amplitudes: tuple[float, float]):
        if not isinstance(process.domain, Simplex) or process.domain.event_shape != (2,):
            raise TypeError(f"PairScore: got {process.domain!r}, expected Simplex(3)")
        self.process, self.amplitudes = process, amplitudes

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        density, slope = self._sums(x, t)
        return slope / density[..., None]

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        return self._sums(x, t)[0].log()

    def rows(self, index: Tensor) -> PairScore:
        return self

    def _sums(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(p, ∇p)."""
        sigma = self.process.schedule.sigma(per_batch(t, x, 1, "t"))
        decay = (-0.5 * (math.pi * sigma) ** 2).exp()[..., None]
        cosine, sine = (math.pi * x).cos(), (math.pi * torch.minimum(x, 1 - x)).sin()
        (q1, q2), (s1, s2) = zip(
            *((1 + a * decay * cosine, -math.pi * a * decay * sine) for a in self.amplitudes), strict=True
        )
        density = q1[..., 0] * q2[..., 1] + q1[..., 1] * q2[..., 0]
        slope = torch.stack(
            [s1[..., 0] * q2[..., 1] + q1[..., 1] * s2[..., 0], q1[..., 0] * s2[..., 1] + s1[..., 1] * q2[..., 0]], -1
        )
        return density, slope


def gaussian(schedule: Schedule | None = None) -> MixtureProblem:
    """G1 = N(½, ¼) in R, VP unless told."""
    return MixtureProblem(Diffusion(Euclidean((1,)), schedule or VP()))


def gaussian_2d(schedule: Schedule | None = None) -> MixtureProblem:
    """G2 = N((.5, −.3), [[.5, .2], [.2, .3]]) in R²."""
    process = Diffusion(Euclidean((2,)), schedule or VP())
    return MixtureProblem(process, (1.0,), ((0.5, -0.3),), (((0.5, 0.2), (0.2, 0.3)),))


def mixture(schedule: Schedule | None = None) -> MixtureProblem:
    """M1 = .3 N(−1, .2²) + .7 N(.8, .3²) in R."""
    process = Diffusion(Euclidean((1,)), schedule or VP())
    return MixtureProblem(process, (0.3, 0.7), ((-1.0,), (0.8,)), (((0.2**2,),), ((0.3**2,),)))


def mixture_2d(schedule: Schedule | None = None) -> MixtureProblem:
    """M2, two tilted components in R²."""
    process = Diffusion(Euclidean((2,)), schedule or VP())
    covariances = (((0.3, 0.1), (0.1, 0.15)), ((0.1, -0.05), (-0.05, 0.2)))
    return MixtureProblem(process, (0.4, 0.6), ((-1.0, 0.5), (0.7, -0.4)), covariances)


def pair(amplitudes: tuple[float, float] = (0.8, -0.6), schedule: Schedule | None = None) -> PairProblem:
    """Two unlike particles on the 3-category simplex, VE unless told."""
    return PairProblem(Diffusion(Simplex(3), schedule or VE()), amplitudes)


def cosine(amplitude: float = 0.5, dim: int = 1, schedule: Schedule | None = None) -> CosineProblem:
    """The cosine density on the unit cube of ``dim`` axes, VE unless told."""
    return CosineProblem(Diffusion(Hypercube((dim,)), schedule or VE()), amplitude)


@dataclass(frozen=True)
class _Logit:
    """L = log F − log(1 − F) of a one-dimensional mixture: monotone, and accurate in both tails."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        below, above = self._tails(x)
        return below - above

    def _tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x[..., None] - self.means) / self.stds
        log_w = self.weights.log()
        return (log_w + torch.special.log_ndtr(z)).logsumexp(-1), (log_w + torch.special.log_ndtr(-z)).logsumexp(-1)

    def slope(self, x: Tensor) -> Tensor:
        """L' = p / (F (1 − F))."""
        z = (x[..., None] - self.means) / self.stds
        log_p = (self.weights.log() - self.stds.log() - 0.5 * z * z - 0.5 * math.log(2 * math.pi)).logsumexp(-1)
        below, above = self._tails(x)
        return (log_p - below - above).exp()

    def inverse(self, target: Tensor, near: Tensor) -> Tensor:
        reach = 40 * float(self.stds.max()) + float(self.means.abs().max())
        return _invert(self, self.slope, target, -reach, reach)


def _invert(
    function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], target: Tensor, low: float, high: float
) -> Tensor:
    """The root of function(y) = target, increasing on [low, high]: bisection to its end, then Newton."""
    a, b = torch.full_like(target, low), torch.full_like(target, high)
    for _ in range(60):
        middle = 0.5 * (a + b)
        below = function(middle) < target
        a, b = torch.where(below, middle, a), torch.where(below, b, middle)
    y = 0.5 * (a + b)
    for _ in range(2):
        y = (y - (function(y) - target) / slope(y)).clamp(low, high)
    return y
