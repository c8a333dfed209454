r"""How fast laws converge, for Gaussian data, where every law is known: no sampling, no histogram.

* :func:`gaussian_gap`: total variation, W₂ and KL of two Gaussian laws;
* :func:`linear_law`: the exact law that a linear equation makes of a Gaussian start;
* :func:`discretisation`: what a solver's steps add to it, and at what order in each of the three;
* :class:`OrnsteinUhlenbeck`: the setting of the convergence theorem of De Bortoli et al. 2021, in T and in the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import is_int, number
from ..processes import SDE, Equation, TimeReversal
from ..solvers import EulerMaruyama, Solver
from .orders import convergence_order, propagate_moments

Law = tuple[Any, Any]


class Gap(NamedTuple):
    """Two laws apart: ½∫|p − q| (NaN beyond one dimension), W₂, and KL(first | second)."""

    total_variation: float
    wasserstein: float
    divergence: float


def gaussian_gap(one: Law, other: Law) -> Gap:
    r"""The distances of N(one) and N(other), each (mean, covariance) as numbers or ``[d]`` and ``[d, d]``, covariances positive definite.

    W₂² = |m − n|² + |C^{1/2} − D^{1/2}U|² with U the rotation that brings the roots closest (Bures), a form that does not cancel;
    KL = ½Σ(λ − 1 − ln λ) + ½|D^{-1/2}(m − n)|² with λ the eigenvalues of D^{-1/2} C D^{-1/2}, good to 1e-16 absolutely.
    Raises ``ValueError`` for other shapes and for covariances that are not positive definite.
    """
    (m, c), (n, d) = (_law(law, name) for law, name in ((one, "one"), (other, "other")))
    if len(m) != len(n):
        raise ValueError(f"gaussian_gap: got laws of {len(m)} and {len(n)} dimensions, expected the same")
    root_c, root_d = _root(c), _root(d)
    left, _, right = np.linalg.svd(root_c @ root_d)
    distance = float(np.sum((m - n) ** 2) + np.sum((root_c - root_d @ (left @ right).T) ** 2))
    whitened = np.linalg.solve(root_d, np.column_stack([root_c, m - n]))
    off = np.linalg.eigvalsh(whitened[:, :-1] @ whitened[:, :-1].T) - 1
    divergence = 0.5 * float(np.sum(off - np.log1p(off)) + np.sum(whitened[:, -1] ** 2))
    variation = _total_variation(m[0], c[0, 0], n[0], d[0, 0]) if len(m) == 1 else math.nan
    return Gap(variation, math.sqrt(distance), divergence)


def _law(law: Law, name: str) -> tuple[np.ndarray, np.ndarray]:
    mean, covariance = (np.asarray(v, dtype=np.float64) for v in law)
    mean = np.atleast_1d(mean)
    covariance = covariance.reshape(1, 1) if covariance.size == 1 else covariance
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{name}: got mean {mean.shape} and covariance {covariance.shape}, expected [d] and [d, d], or two numbers"
        )
    if not (
        np.isfinite(mean).all() and np.allclose(covariance, covariance.T) and np.linalg.eigvalsh(covariance)[0] > 0
    ):
        raise ValueError(
            f"{name}: got covariance {covariance.tolist()} and mean {mean.tolist()}, expected a positive definite one and finite numbers"
        )
    return mean, covariance


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values)) @ vectors.T


def _total_variation(m: float, v: float, n: float, w: float) -> float:
    """|P − Q| of the set where the densities' quadratic log ratio is positive: between its roots, or beyond its one root."""
    a, s = 0.5 * (v - w) / w, math.sqrt(v)
    shift = (m - n) / s
    # log p/q at m + s z is a z² + b z + k
    b, k = v / w * shift, 0.5 * (v / w * shift**2 + math.log(w / v))
    if v == w:
        return abs(math.erf(shift / math.sqrt(8)))
    # b² − 4ak ≥ 0, for a and ln(w/v) have opposite signs; Vieta for the root that would cancel
    q = -0.5 * (b + math.copysign(math.sqrt(max(b * b - 4 * a * k, 0.0)), b))
    roots = (q / a, k / q)
    low, high = min(roots), max(roots)
    inside = [_mass(low * t + u, high * t + u) for t, u in ((1.0, 0.0), (s / math.sqrt(w), (m - n) / math.sqrt(w)))]
    return abs(inside[0] - inside[1])


def _mass(low: float, high: float) -> float:
    """Φ(high) − Φ(low)."""
    return 0.5 * (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2)))


# -------------------------------------------------------------------------------------------------------- exact laws


def linear_law(
    equation: Equation, start: float, end: float, mean: Tensor, covariance: Tensor, *, tolerance: float = 1e-12
) -> tuple[Tensor, Tensor]:
    r"""Exact mean ``[d]`` and covariance ``[d, d]`` at ``end`` of N(mean, covariance) at ``start`` under an equation with a field affine
    in x and noise that does not depend on it: m' = Am + k, C' = AC + CAᵀ ± GGᵀ (+ where end > start), by DOP853 to ``tolerance``.

    A solver's law is that of :func:`propagate_moments`; this is the one it converges to. Raises ``ValueError`` for a field that is not
    affine and for noise that depends on x, ``RuntimeError`` where the integrator gives up.
    """
    event = equation.domain.event_shape
    dim, sign = math.prod(event), math.copysign(1.0, end - start)
    if equation.direction and sign != equation.direction:
        raise ValueError(
            f"linear_law: got times {start:g} to {end:g}, but {type(equation).__name__} runs the other way"
        )
    rows = torch.cat([torch.zeros(1, dim), torch.eye(dim), torch.full((1, dim), 2.0)]).double().reshape(-1, *event)
    units = torch.eye(dim, dtype=torch.float64).reshape(dim, *event)

    @torch.no_grad()
    def parts(t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(A, k, GGᵀ) at t."""
        at = torch.tensor(t, dtype=torch.float64)
        a, b, c = equation.coefficients(at)
        out = (a * rows + b * equation.field(rows, at)).reshape(len(rows), dim).numpy()
        linear = out[1:-1] - out[0]
        if not np.allclose(2 * linear.sum(0), out[-1] - out[0], rtol=1e-9, atol=1e-9 * max(1.0, np.abs(out).max())):
            raise ValueError(f"linear_law: the field of {type(equation).__name__} is not affine in x at t = {t:g}")
        noise = np.zeros((dim, dim))
        if equation.stochastic:
            noise, elsewhere = (
                (c * equation.spread(x, at, units)).reshape(dim, dim).numpy()
                for x in (rows[:1].expand_as(units), units)
            )
            if not np.allclose(noise, elsewhere, rtol=1e-9, atol=1e-9):
                raise ValueError(f"linear_law: the noise of {type(equation).__name__} depends on x at t = {t:g}")
        return linear.T, out[0], noise.T @ noise

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        a, k, added = parts(t)
        grown = a @ flat[dim:].reshape(dim, dim)
        return np.concatenate([a @ flat[:dim] + k, (grown + grown.T + sign * added).ravel()])

    begin = torch.cat([mean.double().flatten(), covariance.double().flatten()]).numpy()
    run = solve_ivp(slope, (start, end), begin, method="DOP853", rtol=tolerance, atol=1e-2 * tolerance)
    if not run.success:
        raise RuntimeError(
            f"linear_law: the moments of {type(equation).__name__} could not be integrated: {run.message}"
        )
    out = torch.from_numpy(run.y[:, -1].copy())
    return out[:dim], out[dim:].reshape(dim, dim)


# ------------------------------------------------------------------------------------------------- discretisation


class Discretisation(NamedTuple):
    """The gaps of a solver's law from the exact one at each number of steps, and their successive slopes."""

    gaps: list[Gap]
    total_variation: Tensor
    wasserstein: Tensor
    divergence: Tensor


def discretisation(
    equation: Equation,
    solver: Solver,
    grid: Callable[[int], Any],
    steps: Sequence[int],
    start: Law,
    exact: Law | None = None,
) -> Discretisation:
    """How the law of a solver's last state nears the exact law, for an equation linear as :func:`linear_law` wants it.

    Args:
        grid: number of steps → times, all with the same ends, e.g. ``lambda n: torch.linspace(T, 0, n + 1)``.
        steps: increasing. start: (mean ``[d]``, covariance ``[d, d]``) at the first time.
        exact: the law to compare with; by default that of the equation itself.

    Total variation and W₂ fall with the weak order of the rule, KL with twice that. (Bounds by Girsanov's theorem promise half
    the order in total variation: theirs is the distance of paths.)
    """
    mean, covariance = (torch.as_tensor(v, dtype=torch.float64) for v in start)
    if exact is None:
        ends = [float(v) for v in grid(steps[0])]
        exact = linear_law(equation, ends[0], ends[-1], mean, covariance)
    found = {n: gaussian_gap(propagate_moments(equation, solver, grid(n), mean, covariance), exact) for n in steps}

    def slopes(name: str) -> Tensor:
        return convergence_order(lambda n: getattr(found[n], name), steps)

    return Discretisation(list(found.values()), *(slopes(name) for name in Gap._fields))


def exponential_rates(values: Sequence[float], at: Sequence[float]) -> Tensor:
    """Successive rates −Δ ln value / Δ at: ``[n − 1]``, float64; values above 0, ``at`` increasing."""
    if (
        len(values) != len(at)
        or len(at) < 2
        or any(b <= a for a, b in itertools.pairwise(at))
        or not all(v > 0 for v in values)
    ):
        raise ValueError(
            f"exponential_rates: got {list(values)} at {list(at)}, expected as many positive values as increasing places, two or more"
        )
    return -torch.tensor(values, dtype=torch.float64).log().diff() / torch.tensor(at, dtype=torch.float64).diff()


@dataclass(frozen=True)
class OrnsteinUhlenbeck:
    r"""dx = −αx dt + √2 dW on [0, T] from data N(data) of one number, reversed with the exact score from the prior N(0, 1/α), or for α = 0
    N(0, 2T). De Bortoli et al. 2021, theorem 1 bounds ``gap(T, n).total_variation``, up to constants, by

    ======  ==========================  ==============  ================================================================
    α       in T                        in the step γ   measured
    ======  ==========================  ==============  ================================================================
    α > 0   :math:`e^{-\sqrt α T}`      √γ              :math:`e^{-2αT}` and γ: slower than printed for α < ¼
    α = 0   :math:`T^{-1} + T^{-1/2}`   √γ              :math:`T^{-1}`; of the prior itself :math:`T^{-1/2}`
    ======  ==========================  ==============  ================================================================

    Args: rate: α ≥ 0. data: (mean, variance).
    """

    rate: float = 1.0
    data: tuple[float, float] = (0.5, 0.25)

    def __post_init__(self) -> None:
        number(self.rate, "rate", low=0.0)
        number(self.data[1], "variance of the data", low=0.0, open_low=True)

    @property
    def equation(self) -> SDE:
        """The forward process."""
        return SDE(lambda x, t: -self.rate * x, math.sqrt(2), Euclidean((1,)))

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """∇ log p_t, exact."""
        mean, variance = self._moments(torch.as_tensor(t, dtype=x.dtype, device=x.device))
        return (mean - x) / variance

    def marginal(self, t: float) -> tuple[float, float]:
        """Mean and variance of x_t."""
        mean, variance = self._moments(torch.tensor(t, dtype=torch.float64))
        return float(mean), float(variance)

    def _moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        scale = (-self.rate * t).exp()
        noise = -(-2 * self.rate * t).expm1() / self.rate if self.rate else 2 * t
        return self.data[0] * scale, self.data[1] * scale**2 + noise

    def prior(self, horizon: float) -> tuple[float, float]:
        return 0.0, 1 / self.rate if self.rate else 2 * horizon

    def law(self, horizon: float) -> tuple[float, float]:
        """Mean and variance of what the reversed SDE makes of the prior, in closed form: with k = v/(v + σ²), σ² = ∫ 2e^{2αt} dt,
        m(1 − k) and v + (1/α − v)k², where 0 stands for 1/α if α = 0."""
        (m, v), noise = self.data, math.expm1(2 * self.rate * horizon) / self.rate if self.rate else 2 * horizon
        k = v / (v + noise)
        return m * noise / (v + noise), v + ((1 / self.rate if self.rate else 0.0) - v) * k * k

    def chain(self, horizon: float, steps: int, solver: Solver | None = None) -> tuple[float, float]:
        """Mean and variance of a solver's output in equal steps, ``EulerMaruyama()`` unless told."""
        if not is_int(steps, 1):
            raise ValueError(f"steps: got {steps!r}, expected a whole number of at least 1")
        mean, variance = self.prior(horizon)
        out = propagate_moments(
            TimeReversal(self.equation, self.score),
            solver or EulerMaruyama(),
            torch.linspace(horizon, 0, steps + 1, dtype=torch.float64),
            torch.tensor([mean], dtype=torch.float64),
            torch.tensor([[variance]], dtype=torch.float64),
        )
        return float(out[0]), float(out[1])

    def gap(self, horizon: float, steps: int | None = None) -> Gap:
        """The output's law from the data's: of the SDE itself, or of Euler–Maruyama in equal steps."""
        number(horizon, "horizon", low=0.0, open_low=True)
        return gaussian_gap(self.law(horizon) if steps is None else self.chain(horizon, steps), self.data)
