"""The orthant x ≥ 0: half-lines, each with one wall at 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .domain import FoldedDomain, HeatKernel, KernelDomain
from .interval import half_line_log_prob, half_line_log_prob_and_score, half_line_score
from .tensors import as_like, check_shape, event_flat, event_sum


class Orthant(FoldedDomain, KernelDomain):
    """x ≥ 0 on every axis; folding is the absolute value, the kernel N(x − x0) + N(x + x0) on each axis.

    Args: event_shape: shape of one state. A cone, so that every schedule may be used on it.
    """

    is_cone = True

    def __init__(self, event_shape: Sequence[int]):
        self.event_shape = check_shape(event_shape)

    def __repr__(self) -> str:
        return f"Orthant({self.event_shape})"

    def config(self) -> dict[str, Any]:
        return {"type": "Orthant", "event_shape": list(self.event_shape)}

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        return event_flat(x >= -atol, len(self.event_shape)).all(-1)

    def project(self, x: Tensor) -> Tensor:
        return x.clamp(min=0.0)

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return u.abs(), lambda v: torch.where(u < 0, -v, v)

    def boundary_distance(self, x: Tensor) -> Tensor:
        return event_flat(x, len(self.event_shape)).amin(-1)

    def facets(self) -> tuple[Tensor, Tensor]:
        n = math.prod(self.event_shape)
        return torch.eye(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        return vector * (x / as_like(width, x)).clamp(0, 1)

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return OrthantKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return OrthantKernel(self, x0, sigma, validate_args=False)


class OrthantKernel(HeatKernel):
    """Product of half-line kernels: exact sample |x0 + σz|, score (x0·tanh(x·x0/σ²) − x)/σ²."""

    def _log_prob(self, x: Tensor) -> Tensor:
        return event_sum(half_line_log_prob(x, self.x0, self._sigma, 0.0), len(self.domain.event_shape))

    def _score(self, x: Tensor) -> Tensor:
        return half_line_score(x, self.x0, self._sigma, 0.0)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = half_line_log_prob_and_score(x, self.x0, self._sigma, 0.0)
        return event_sum(log_prob, len(self.domain.event_shape)), score
