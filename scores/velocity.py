"""The exact score of velocities under critically damped Langevin diffusion, for data that are a mixture of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..domains.constants import OnDevice
from ..domains.tensors import check_event, event_sum, per_batch
from ..processes import CriticallyDamped

Array = float | Sequence[Any] | np.ndarray | Tensor


class _Parts(NamedTuple):
    log_prob: Tensor
    weights: Tensor
    scores: Tensor


class VelocityMixtureScore:
    r"""∇_v log p_t(x, v) for x_0 ~ Σ_k w_k N(m_k, diag c_k), v_0 ~ N(0, γM): a mixture of Gaussians at all times, coordinate by coordinate.

    Args:
        process: a CriticallyDamped; d is the number of coordinates of its data.
        weights: ``[K]``, positive; normalised here.
        means: ``[K, *event]``, or ``[K]`` for d = 1. variances: a number, ``[K]`` (isotropic) or ``[K, d]``, at least 0.

    Callable (u, t) → ``[*batch, *event]``, t a number, ``[*batch]`` or in the broadcast form of velocities or of states; offers
    ``log_prob(u, t)`` of the joint law. Batch-invariant to the bit.
    """

    def __init__(self, process: CriticallyDamped, weights: Array, means: Array, variances: Array):
        if not isinstance(process, CriticallyDamped):
            raise TypeError(f"process: got {type(process).__name__}, expected a CriticallyDamped(domain)")
        self.process = process
        event = process.data.event_shape
        dim = math.prod(event)
        weights, means, variances = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, variances))
        count = weights.numel()
        if weights.dim() != 1 or not bool((weights > 0).all()):
            raise ValueError(f"weights: got shape {tuple(weights.shape)}, expected [K] of positive numbers")
        if means.numel() != count * dim or not bool(means.isfinite().all()):
            raise ValueError(
                f"means: got shape {tuple(means.shape)}, expected [{count}, {', '.join(map(str, event))}], all finite"
            )
        if variances.shape not in ((), (count,), (count, dim)) or not bool(
            ((variances >= 0) & variances.isfinite()).all()
        ):
            raise ValueError(
                f"variances: got shape {tuple(variances.shape)}, expected a number, [{count}] or [{count}, {dim}], all finite and "
                "at least 0"
            )
        spread = variances if variances.dim() == 2 else variances.reshape(-1, 1)
        self._constants = OnDevice((weights / weights.sum(), means.reshape(count, dim), spread.expand(count, dim)))

    def __repr__(self) -> str:
        return f"VelocityMixtureScore({self.process!r}, <{len(self._constants(torch.device('cpu'))[0])} components>)"

    def __call__(self, u: Tensor, t: float | Tensor) -> Tensor:
        parts = self._parts(u, t)
        total = event_sum((parts.weights[..., None] * parts.scores).transpose(-1, -2), 1)
        return total.reshape(self.process.split(u)[1].shape)

    def log_prob(self, u: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x, v): ``[*batch]``."""
        return self._parts(u, t).log_prob

    def _parts(self, u: Tensor, t: float | Tensor) -> _Parts:
        process, ndim = self.process, len(self.process.data.event_shape)
        check_event(u, process.domain.event_shape, "u")
        x, v = process.split(u)
        t = torch.as_tensor(t, dtype=torch.float64, device=u.device)
        of_state = t.dim() == u.dim()
        time = per_batch(t, (u if of_state else x).double(), ndim + of_state, "t")[..., None, None]
        weights, means, variances = self._constants(u.device)
        kernel = process.kernel(time)
        covariance, determinant = kernel.covariance(variances, process.start * process.mass)
        # from here on in the state's dtype: the law of x, and that of v given x, neither of which cancels
        mean_x, mean_v, spread, slope, precision = (
            w.to(u.dtype)
            for w in (
                *kernel.mean(means, torch.zeros_like(means)),
                covariance.xx,
                covariance.xv / covariance.xx,
                covariance.xx / determinant,
            )
        )
        x, v = (w.reshape(*w.shape[: w.dim() - ndim], 1, -1) for w in (x, v))
        from_x = x - mean_x
        given_x = v - mean_v - slope * from_x
        exponent = from_x * from_x / spread + given_x * given_x * precision + (spread / precision).log()
        logs = weights.log().to(u.dtype) - 0.5 * event_sum(exponent + 2 * math.log(2 * math.pi), 1)
        total = logs.logsumexp(-1)
        return _Parts(total, (logs - total[..., None]).exp(), -given_x * precision)
