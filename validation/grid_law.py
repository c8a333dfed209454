"""The marginals of a one-dimensional SDE of any drift, solved on a grid: a reference where nothing is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from ..domains.tensors import is_int, number

_FLOOR = 1e-9  # of the peak: densities below it are rounding of the expansion


class GridLaw:
    r"""p_t of dx = f(x) dt + g dW from p₀ on [low, high], reflected at both ends, by the eigen-expansion of a reversible jump process.

    With U' = −2f/g² the jumps i → i ± 1 have rates g²/2h²·exp(½(U_i − U_{i±1})): they keep e^{−U} exactly, and p_t, :math:`∂_x\log p_t` and
    means are right to O(h²) at every t, with no error from steps in time.

    Args:
        drift: f(x, t) on float64 tensors ``[n]`` as of an SDE, elementwise, and not dependent on t. noise: g > 0.
        density: p₀ on the same, up to a constant. low, high: where all mass fits, as U varies by at most 600 between them.
        points: of the grid; 801 cost 0.1 s.

    Raises ``ValueError`` for an empty interval, U that varies more, and a density that is negative or 0.
    """

    def __init__(
        self,
        drift: Callable[..., Tensor],
        noise: float,
        density: Callable[[Tensor], Tensor],
        low: float,
        high: float,
        points: int = 801,
    ):
        number(noise, "noise", low=0.0, open_low=True)
        number(high, "high", low=number(low, "low"), open_low=True)
        if not is_int(points, 3):
            raise ValueError(f"points: got {points!r}, expected a whole number of at least 3")
        self.noise = float(noise)
        self.x = np.linspace(low, high, points)
        self.step = (high - low) / (points - 1)
        # differences of U by Simpson's rule, so that its error is far below that of the grid
        left, right = torch.tensor(self.x[:-1]), torch.tensor(self.x[1:])
        zero = torch.zeros((), dtype=torch.float64)
        sides = drift(left, zero) + 4 * drift(0.5 * (left + right), zero) + drift(right, zero)
        rise = (-2 / noise**2 * self.step / 6 * sides).numpy()
        potential = np.concatenate([[0.0], np.cumsum(rise)])
        potential -= potential.min()
        if not potential.max() < 600:
            raise ValueError(
                f"drift: got a potential that varies by {potential.max():.3g}, expected at most 600; narrow the interval"
            )
        rate = 0.5 * (noise / self.step) ** 2
        out = np.zeros(points)
        out[:-1] += np.exp(-0.5 * rise)
        out[1:] += np.exp(0.5 * rise)
        # symmetric in the weights √π, π = e^{−U}
        self.values, self.vectors = eigh_tridiagonal(-rate * out, np.full(points - 1, rate))
        self.values[-1] = 0.0  # that of the stationary law; as found it is rounding, which a long time would amplify
        self.root = np.exp(-0.5 * potential)
        start = density(torch.tensor(self.x)).numpy()
        if not ((start >= 0).all() and start.sum() > 0 and np.isfinite(start).all()):
            raise ValueError("density: got negative or no mass on the grid, expected a density within [low, high]")
        self.coefficients = self.vectors.T @ (start / (start.sum() * self.step) / self.root)

    def density(self, t: float) -> np.ndarray:
        """p_t at the points ``x`` of the grid: ``[n]``."""
        number(t, "t", low=0.0)
        grown = np.exp(np.minimum(self.values, 0.0) * t) * self.coefficients
        return np.maximum(self.root * (self.vectors @ grown), 0.0)

    def mean(self, function: Callable[[np.ndarray], np.ndarray], t: float) -> float:
        """E f(x_t)."""
        return float((self.density(t) * function(self.x)).sum() * self.step)

    def score(self, t: float) -> np.ndarray:
        """∂_x log p_t at the points: ``[n]``; NaN where p_t is below 1e-9 of its peak."""
        p = self.density(t)
        return np.gradient(np.log(np.where(p > _FLOOR * p.max(), p, np.nan)), self.step)

    def fisher(self, score: Callable[[Tensor, Tensor], Tensor], t: float) -> float:
        """E|score(x, t) − ∂_x log p_t|² of a score on states ``[n, 1]``, called in float32."""
        p, exact = self.density(t), self.score(t)
        with torch.no_grad():
            found = score(torch.tensor(self.x, dtype=torch.float32)[:, None], torch.tensor(float(t)))
        return float(np.nansum(p * (found[:, 0].double().numpy() - exact) ** 2) * self.step)

    def divergence(self, score: Callable[[Tensor, Tensor], Tensor], low: float, high: float, nodes: int = 12) -> float:
        """½g² ∫ E|score − ∂_x log p_t|² dt over [low, high], in nats: a bound of KL(p_low | what the reversed SDE makes of p_high), by
        Girsanov's theorem. Gauss–Legendre nodes in ln t."""
        number(high, "high", low=number(low, "low", low=0.0, open_low=True), open_low=True)
        place, weight = np.polynomial.legendre.leggauss(nodes)
        half = 0.5 * math.log(high / low)
        times = low * np.exp(half * (place + 1))
        return (
            0.5
            * self.noise**2
            * float(sum(half * w * t * self.fisher(score, float(t)) for t, w in zip(times, weight, strict=True)))
        )
