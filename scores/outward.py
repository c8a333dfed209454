"""Our scores in other people's samplers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import batch_shape, check_event, expand_right, per_batch
from ..processes import Diffusion
from .predictions import prediction, process_of


class Denoiser:
    """D(X, σ) = E[x0 | x0 + σε = X] of a score on any schedule; made by :func:`to_k_diffusion`."""

    def __init__(self, score: Any, process: Diffusion):
        self.score, self.process = score, process
        self.event_shape = process.domain.event_shape
        self.sigma_min, self.sigma_max = process.schedule.sigma_min, process.schedule.sigma_max

    def __repr__(self) -> str:
        return f"Denoiser({self.score!r}, sigma from {self.sigma_min:.4g} to {self.sigma_max:.4g})"

    def __call__(self, x: Tensor, sigma: float | Tensor, **extra: Any) -> Tensor:
        """x ``[*batch, *event]`` at noise level σ, a number, ``[*batch]`` or ``[*batch, 1, …, 1]``: x's shape and dtype."""
        ndim = len(self.event_shape)
        check_event(x, self.event_shape)
        # one for each sample: a number with ones for the event would read as neither
        sigma = expand_right(per_batch(sigma, x, ndim, "sigma").double().expand(batch_shape(x, self.event_shape)), ndim)
        # in float64: σ → t amplifies rounding where σ is flat
        t = self.process.schedule.time(sigma)
        scale = self.process.schedule.scale(t).to(x.dtype)
        # a score takes t in x's dtype: at σ ≤ 50 its rounding moves D by 2e-6 at most, less than D = x + σ²·score loses by itself
        return prediction(self.score, scale * x, t.to(x.dtype), self.process, **extra)[0]


def to_k_diffusion(score: Any, process: Diffusion | None = None) -> Denoiser:
    """``model(x, sigma, **extra)`` → D in the coordinates x = x0 + σε that k-diffusion's samplers work in, for any score on a Euclidean
    domain. They call it with σ ``[B]``; ``extra`` are the score's condition keywords.

    ``event_shape``, ``sigma_min`` and ``sigma_max`` are those of the process, so that :func:`from_k_diffusion` leads back without more.

    Args: process: whose score it is; ``score.process`` unless told.
    """
    if not callable(score):
        raise TypeError(f"score: got {type(score).__name__}, expected a callable score(x, t)")
    process = process_of(score, process)
    if not isinstance(process.domain, Euclidean) or process.parts:
        raise ValueError(
            f"to_k_diffusion: got {process!r}, expected a single schedule on a Euclidean domain: those samplers know no walls"
        )
    return Denoiser(score, process)
