"""Boxes: the unit cube of images, and any box with bounds of its own on each axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .domain import FoldedDomain, HeatKernel, KernelDomain
from .interval import interval_log_prob, interval_log_prob_and_score, interval_score
from .tensors import as_like, check_event, check_shape, event_sum

Bounds = float | Sequence[float] | np.ndarray | Tensor


class Hypercube(FoldedDomain, KernelDomain):
    """The box low ≤ x ≤ high, axis by axis; the unit cube by default.

    Args:
        event_shape: shape of one state, e.g. ``(1, 8, 8)``.
        low, high: finite bounds, numbers or anything that broadcasts to ``event_shape``; low < high on every axis.

    The covering space is R^d and the folding a triangle wave of period 2·(high − low) on each axis. The heat kernel is the
    product of interval kernels (Lou & Ermon 2023, §4.1; here exact for all σ, see ``interval``).
    """

    def __init__(self, event_shape: Sequence[int], low: Bounds = 0.0, high: Bounds = 1.0):
        self.event_shape = check_shape(event_shape)
        self._low, self._high = (_bound(v, self.event_shape, n) for v, n in ((low, "low"), (high, "high")))
        if not bool((self._low < self._high).all()):
            i = tuple(np.argwhere(~np.broadcast_to(self._low < self._high, self.event_shape))[0].tolist())
            raise ValueError(
                f"Hypercube: got low = {np.broadcast_to(self._low, self.event_shape)[i]:g} and "
                f"high = {np.broadcast_to(self._high, self.event_shape)[i]:g} at axis {i}, expected low < high on every axis"
            )

    def __repr__(self) -> str:
        low, high = (f"{v:g}" if v.ndim == 0 else f"array of {v.size}" for v in (self._low, self._high))
        return f"Hypercube({self.event_shape}, low={low}, high={high})"

    def config(self) -> dict[str, Any]:
        low, high = self._low.tolist(), self._high.tolist()
        return {"type": "Hypercube", "event_shape": list(self.event_shape), "low": low, "high": high}

    @property
    def width(self) -> float:
        return float((self._high - self._low).max())

    def bounds(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """(low, high) to compute with next to ``x``: floats where all axes agree, tensors of x's dtype and device otherwise."""
        if self._low.ndim == self._high.ndim == 0:
            return float(self._low), float(self._high)
        return as_like(self.low, x), as_like(self.high, x)

    @property
    def low(self) -> Tensor:
        """Lower bounds, float64 ``[*event]``."""
        return torch.from_numpy(np.broadcast_to(self._low, self.event_shape).copy())

    @property
    def high(self) -> Tensor:
        """Upper bounds, float64 ``[*event]``."""
        return torch.from_numpy(np.broadcast_to(self._high, self.event_shape).copy())

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        low, high = self.bounds(x)
        inside = (x >= low - atol) & (x <= high + atol)
        return inside.flatten(x.dim() - len(self.event_shape)).all(-1) if self.event_shape else inside

    def project(self, x: Tensor) -> Tensor:
        return _clamp(x, *self.bounds(x))

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        low, high = self.bounds(u)
        width = high - low
        phase = (u - low).remainder(2 * width)
        folded = low + (width - (phase - width).abs())
        # points inside come back to the bit, and rounding never leaves the box
        x = torch.where((u >= low) & (u <= high), u, _clamp(folded, low, high))
        return x, lambda v: torch.where(phase > width, -v, v)

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        return UniformBox(self, dtype)

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

    def _sample(self, z: Tensor) -> Tensor:
        return self.domain.fold(self.x0 + self._sigma * z)[0]

    def _log_prob(self, x: Tensor) -> Tensor:
        return event_sum(interval_log_prob(*self._arguments(x)), len(self.domain.event_shape))

    def _score(self, x: Tensor) -> Tensor:
        return interval_score(*self._arguments(x))

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = interval_log_prob_and_score(*self._arguments(x))
        return event_sum(log_prob, len(self.domain.event_shape)), score

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        return x, self.x0, self._sigma, *self.domain.bounds(x)


class UniformBox(Distribution):
    """The uniform law on a :class:`Hypercube`; entropy is its log-volume."""

    arg_constraints = {}
    support = constraints.real

    def __init__(self, domain: Hypercube, dtype: torch.dtype | None = None):
        self.domain, self.dtype = domain, dtype
        super().__init__(torch.Size(), torch.Size(domain.event_shape), validate_args=False)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``[*sample_shape, *event]`` on the generator's device."""
        shape, device = self._extended_shape(torch.Size(sample_shape)), None if generator is None else generator.device
        u = torch.rand(shape, generator=generator, dtype=self.dtype, device=device)
        low, high = self.domain.bounds(u)
        return _clamp(low + (high - low) * u, low, high)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.domain.event_shape)
        inside = self.domain.contains(x)
        return torch.where(inside, -self.entropy().to(x), -math.inf)

    def entropy(self) -> Tensor:
        return (self.domain.high - self.domain.low).log().sum()


def _clamp(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    return x.clamp(low, high)  # type: ignore[arg-type]  # torch takes two numbers or two tensors


def _bound(value: Bounds, event_shape: tuple[int, ...], name: str) -> np.ndarray:
    """Bounds in float64, 0-d where all axes agree."""
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    try:
        whole = np.broadcast_to(array, event_shape)
    except ValueError:
        raise ValueError(
            f"{name}: got shape {array.shape}, expected a number or a shape that broadcasts to {event_shape}"
        ) from None
    if not np.isfinite(whole).all():
        raise ValueError(f"{name}: got a bound that is not finite; for axes that are open at one side use Orthant")
    return np.array(whole.flat[0]) if (whole == whole.flat[0]).all() else whole.copy()
