"""Boxes: the unit cube of images, and any box with bounds of its own on each axis, which may be open at one end or both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .constants import OnDevice
from .domain import FoldedDomain, HeatKernel, KernelDomain, Uniform
from .interval import (
    half_line_log_prob,
    half_line_score,
    interval_log_prob,
    interval_log_prob_and_score,
    interval_score,
    line_log_prob,
    line_score,
)
from .tensors import as_like, check_shape, event_flat, event_sum, per_axis, shown

Bounds = float | Sequence[float] | np.ndarray | Tensor


class Hypercube(FoldedDomain, KernelDomain):
    """The box low ≤ x ≤ high, axis by axis; the unit cube by default.

    Args:
        event_shape: shape of one state, e.g. ``(1, 8, 8)``.
        low, high: bounds, numbers or anything that broadcasts to ``event_shape``; low < high on every axis. An infinite bound makes
            an axis a half-line or a line; then the box is unbounded, and has no uniform law.

    The covering space is R^d and the folding a triangle wave of period 2·(high − low) on each axis. The heat kernel is the
    product of interval kernels (Lou & Ermon 2023, §4.1; here exact for all σ, see ``interval``), half-line and Gaussian kernels.
    """

    def __init__(self, event_shape: Sequence[int], low: Bounds = 0.0, high: Bounds = 1.0):
        self.event_shape = check_shape(event_shape)
        self._low, self._high = (per_axis(v, self.event_shape, n) for v, n in ((low, "low"), (high, "high")))
        if not bool((self._low < self._high).all()):
            i = tuple(np.argwhere(~np.broadcast_to(self._low < self._high, self.event_shape))[0].tolist())
            raise ValueError(
                f"Hypercube: got low = {np.broadcast_to(self._low, self.event_shape)[i]:g} and "
                f"high = {np.broadcast_to(self._high, self.event_shape)[i]:g} at axis {i}, expected low < high on every axis"
            )
        walls = np.concatenate([self._low.ravel(), self._high.ravel()])
        self._closed = bool(np.isfinite(walls).all())
        self.is_cone = bool(((walls == 0) | np.isinf(walls)).all())
        finite = [np.isfinite(np.broadcast_to(v, self.event_shape)).ravel() for v in (self._low, self._high)]
        #: the flat indices of the axes by (low is finite, high is finite), in the order of _KINDS
        self._axes = OnDevice(
            tuple(torch.from_numpy(np.flatnonzero((finite[0] == a) & (finite[1] == b))) for a, b in _KINDS)
        )
        self._bounds = OnDevice((self.low, self.high))

    def __repr__(self) -> str:
        low, high = (shown(v) for v in (self._low, self._high))
        return f"Hypercube({self.event_shape}, low={low}, high={high})"

    def config(self) -> dict[str, Any]:
        low, high = self._low.tolist(), self._high.tolist()
        return {"type": "Hypercube", "event_shape": list(self.event_shape), "low": low, "high": high}

    @property
    def width(self) -> float:
        return float((self._high - self._low).max())

    @property
    def bounded(self) -> bool:
        return self._closed

    def bounds(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """(low, high) to compute with next to ``x``: floats where all axes agree, tensors of x's dtype and device otherwise."""
        if self._low.ndim == self._high.ndim == 0:
            return float(self._low), float(self._high)
        low, high = self._bounds(x.device)
        return low.to(x.dtype), high.to(x.dtype)

    @property
    def low(self) -> Tensor:
        """Lower bounds, float64 ``[*event]``."""
        return torch.from_numpy(np.broadcast_to(self._low, self.event_shape).copy())

    @property
    def high(self) -> Tensor:
        """Upper bounds, float64 ``[*event]``."""
        return torch.from_numpy(np.broadcast_to(self._high, self.event_shape).copy())

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        # NaN passes through the minimum, and is outside
        return self._nearest_wall(x).amin(-1) >= -atol

    def _nearest_wall(self, x: Tensor) -> Tensor:
        """The distance of each coordinate from its nearer bound, negative outside: ``[*batch, n]``."""
        low, high = self.bounds(x)
        return event_flat(torch.minimum(x - low, high - x), len(self.event_shape))

    def project(self, x: Tensor) -> Tensor:
        return _clamp(x, *self.bounds(x))

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        low, high = self.bounds(u)
        if not self._closed:
            return _fold_open(u, *torch.broadcast_tensors(as_like(low, u), as_like(high, u)))
        width = high - low
        # in place where the tensor is our own: states are large
        phase = (u - low).remainder_(2 * width)
        # points inside come back to the bit, and rounding never leaves the box
        inside = (u >= low) & (u <= high)
        flipped = (phase > width) & ~inside
        # low + (width − |phase − width|)
        folded = phase.sub_(width).abs_().neg_().add_(width).add_(low)
        return torch.where(inside, u, _clamp(folded, low, high)), lambda v: torch.where(flipped, -v, v)

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        if not self._closed:
            return super().uniform(dtype)

        def draw(
            shape: torch.Size, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
        ) -> Tensor:
            u = torch.rand(shape + self.event_shape, generator=generator, dtype=dtype, device=device)
            low, high = self.bounds(u)
            return _clamp(low + (high - low) * u, low, high)

        return Uniform(self, draw, float((self.high - self.low).log().sum()), dtype)

    def boundary_distance(self, x: Tensor) -> Tensor:
        return self._nearest_wall(x).amin(-1)

    def facets(self) -> tuple[Tensor, Tensor]:
        """Lower walls first, then upper ones; open ends have none."""
        axes = torch.eye(math.prod(self.event_shape), dtype=torch.float64)
        low, high = self.low.flatten(), self.high.flatten()
        below, above = low.isfinite(), high.isfinite()
        return torch.cat([axes[below], -axes[above]]), torch.cat([-low[below], high[above]])

    def inward_normal(self, x: Tensor) -> Tensor:
        low, high = self.bounds(x)
        below, above = (event_flat(v, len(self.event_shape)) for v in (x - low, high - x))
        distance = torch.minimum(below, above)
        nearest = torch.zeros_like(distance).scatter(-1, distance.argmin(-1, keepdim=True), 1.0)
        normal = torch.where(below <= above, nearest, -nearest)
        return torch.where(distance.amin(-1, keepdim=True).isinf(), 0.0, normal).reshape(x.shape)

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        low, high = self.bounds(x)
        layer = torch.minimum(as_like(width, x), as_like((high - low) / 2, x))
        return vector * ((x - low) / layer).clamp(0, 1) * ((high - x) / layer).clamp(0, 1)

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return BoxKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return BoxKernel(self, x0, sigma, validate_args=False)


class BoxKernel(HeatKernel):
    """Product of interval kernels: exact sample by folding x0 + σz, log_prob and score by images or modes."""

    domain: Hypercube

    def _log_prob(self, x: Tensor) -> Tensor:
        return event_sum(self._by_axis(0, x), len(self.domain.event_shape))

    def _score(self, x: Tensor) -> Tensor:
        return self._by_axis(1, x)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.domain.bounded:
            return super().log_prob_and_score(x)
        log_prob, score = interval_log_prob_and_score(x, self.x0, self._sigma, *self.domain.bounds(x))
        return event_sum(log_prob, len(self.domain.event_shape)), score

    def _by_axis(self, which: int, x: Tensor) -> Tensor:
        """log p (0) or the score (1) of each axis."""
        low, high = self.domain.bounds(x)
        if self.domain.bounded:
            return (interval_log_prob, interval_score)[which](x, self.x0, self._sigma, low, high)
        arguments = torch.broadcast_tensors(x, self.x0, self._sigma, as_like(low, x), as_like(high, x))
        return _by_kind(which, self.domain, arguments)


def _interval(which: int, x: Tensor, x0: Tensor, sigma: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (interval_log_prob, interval_score)[which](x, x0, sigma, low, high)


def _above(which: int, x: Tensor, x0: Tensor, sigma: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (half_line_log_prob, half_line_score)[which](x, x0, sigma, low)


def _below(which: int, x: Tensor, x0: Tensor, sigma: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return half_line_score(-x, -x0, sigma, -high).neg() if which else half_line_log_prob(-x, -x0, sigma, -high)


def _line(which: int, x: Tensor, x0: Tensor, sigma: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (line_log_prob, line_score)[which](x, x0, sigma)


# by (low is finite, high is finite)
_KINDS = {(True, True): _interval, (True, False): _above, (False, True): _below, (False, False): _line}


def _by_kind(which: int, domain: Hypercube, arguments: Sequence[Tensor]) -> Tensor:
    """Each axis by the kernel of its kind; the arguments (x, x0, sigma, low, high) have one shape."""
    ndim = len(domain.event_shape)
    flat = [event_flat(v, ndim) for v in arguments]
    parts, places = [], []
    for axes, function in zip(domain._axes(flat[0].device), _KINDS.values(), strict=True):
        if len(axes):
            parts.append(function(which, *(v.index_select(-1, axes) for v in flat)))
            places.append(axes)
    return torch.cat(parts, -1).index_select(-1, torch.cat(places).argsort()).reshape(arguments[0].shape)


def _fold_open(u: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The fold of axes that may be open: at most one reflection where one end is open, none where both are."""
    closed = low.isfinite() & high.isfinite()
    start, width = torch.where(closed, low, 0.0), torch.where(closed, high - low, 1.0)
    phase = (u - start).remainder(2 * width)
    at_low, at_high = torch.where(low.isfinite(), low, 0.0), torch.where(high.isfinite(), high, 0.0)
    once = torch.where(u < low, 2 * at_low - u, torch.where(u > high, 2 * at_high - u, u))
    folded = torch.where(closed, start + (width - (phase - width).abs()), once)
    inside = (u >= low) & (u <= high)
    flipped = torch.where(closed, phase > width, True) & ~inside
    return torch.where(inside, u, folded.clamp(low, high)), lambda v: torch.where(flipped, -v, v)


def _clamp(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    return x.clamp(low, high)  # type: ignore[arg-type]  # torch takes two numbers or two tensors
