"""The kernel of a segment around the origin: the ball of one dimension, and the probabilities of two categories."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .domain import HeatKernel
from .interval import interval_log_prob, interval_log_prob_and_score, interval_score
from .tensors import clamped


class Segment(Protocol):
    """What the kernel asks of its domain [−radius, radius]."""

    radius: float

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor: ...


class SegmentKernel(HeatKernel):
    """The interval kernel on [−R, R], computed in float64; all it asks of its domain is ``radius`` and ``reflect``."""

    domain: Segment  # type: ignore[assignment]

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        ends = -self.domain.radius, self.domain.radius
        # rounding may put a state behind its wall
        return *(clamped(v.double(), *ends) for v in (x, self.x0)), self._sigma.double(), *ends

    def _dtype(self, x: Tensor) -> torch.dtype:
        return torch.promote_types(x.dtype, self.x0.dtype)

    def _sample(self, z: Tensor) -> Tensor:
        noise = self._sigma * z
        return self.domain.reflect(self.x0.expand_as(noise), noise)

    def _log_prob(self, x: Tensor) -> Tensor:
        return interval_log_prob(*self._arguments(x))[..., 0].to(self._dtype(x))

    def _score(self, x: Tensor) -> Tensor:
        return interval_score(*self._arguments(x)).to(self._dtype(x))

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = interval_log_prob_and_score(*self._arguments(x))
        return log_prob[..., 0].to(self._dtype(x)), score.to(self._dtype(x))
