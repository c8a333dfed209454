r"""The torus: coordinates modulo a period, no walls. Angles, phases, crystal positions.

On a circle of circumference P the kernel is the wrapped Gaussian :math:`\sum_n \mathcal N(d + nP; σ^2)` of the shortest way
d = x − x0. It is half the Neumann kernel of the interval [0, P/2] from its end: :math:`\tfrac12 p^{[0, P/2]}_σ(|d|\,|\,0)`, for the
mirror at 0 puts every image there twice. So the engine of the interval serves here as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .constants import OnDevice
from .domain import FoldedDomain, HeatKernel, KernelDomain, Uniform, WithoutWalls
from .interval import interval_log_prob, interval_log_prob_and_score, interval_score
from .tensors import check_shape, event_flat, event_sum, per_axis, shown


class Torus(WithoutWalls, FoldedDomain, KernelDomain):
    """0 ≤ x ≤ period on every axis, the ends being one point.

    Args:
        event_shape: shape of one state.
        period: a positive number, or anything that broadcasts to ``event_shape``; 2π for angles.

    ``project`` and ``reflect`` wrap; ``difference(x, y)`` is the shortest way from y to x, coordinates in [−period/2, period/2].
    """

    def __init__(self, event_shape: Sequence[int], period: float | Sequence[float] | np.ndarray | Tensor = 1.0):
        self.event_shape = check_shape(event_shape)
        self._period = per_axis(period, self.event_shape, "period")
        if not (np.isfinite(self._period) & (self._period > 0)).all():
            raise ValueError(f"period: got {self._period.min():g}, expected finite numbers above 0")
        self._on_device = OnDevice((self.period,))

    def __repr__(self) -> str:
        return f"Torus({self.event_shape}, period={shown(self._period)})"

    def config(self) -> dict[str, Any]:
        return {"type": "Torus", "event_shape": list(self.event_shape), "period": self._period.tolist()}

    @property
    def width(self) -> float:
        return float(self._period.max())

    @property
    def period(self) -> Tensor:
        """Float64 ``[*event]``."""
        return torch.from_numpy(np.broadcast_to(self._period, self.event_shape).copy())

    def _periods(self, x: Tensor) -> float | Tensor:
        return float(self._period) if self._period.ndim == 0 else self._on_device(x.device)[0].to(x.dtype)

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        period = self._periods(x)
        d = x - y
        return d - period * (d / period).round()

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        inside = (x >= -atol) & (x <= self._periods(x) + atol)
        return event_flat(inside, len(self.event_shape)).all(-1)

    def project(self, x: Tensor) -> Tensor:
        return self.fold(x)[0]

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        period = self._periods(u)
        return torch.where((u >= 0) & (u <= period), u, u.remainder(period)), lambda v: v

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        def draw(
            shape: torch.Size, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
        ) -> Tensor:
            u = torch.rand(shape + self.event_shape, generator=generator, dtype=dtype, device=device)
            return self._periods(u) * u

        return Uniform(self, draw, float(self.period.log().sum()), dtype)

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return WrappedKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return WrappedKernel(self, x0, sigma, validate_args=False)


class WrappedKernel(HeatKernel):
    """Product of wrapped Gaussians; see the module."""

    domain: Torus

    def _log_prob(self, x: Tensor) -> Tensor:
        _, arguments = self._arguments(x)
        return self._total(interval_log_prob(*arguments))

    def _score(self, x: Tensor) -> Tensor:
        sign, arguments = self._arguments(x)
        return sign * interval_score(*arguments)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sign, arguments = self._arguments(x)
        log_prob, score = interval_log_prob_and_score(*arguments)
        return self._total(log_prob), sign * score

    def _total(self, log_prob: Tensor) -> Tensor:
        return event_sum(log_prob - math.log(2), len(self.domain.event_shape))

    def _arguments(self, x: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """The sign of d, and (|d|, 0, σ, 0, P/2). The sign is ±1 also at d = 0, where |d| must have a derivative."""
        d = self.domain.difference(x, self.x0)
        sign = torch.where(d.detach() < 0, -1.0, 1.0).to(d)
        half = 0.5 * self.domain._periods(x)
        return sign, (sign * d, d.new_zeros(()), self._sigma, 0.0, half)
