"""The exact score of a data set smoothed by a domain's heat kernel: what a perfect network trained on it would learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..domains import KernelDomain
from ..domains.tensors import check_event, check_positive, expand_right, per_batch
from ..processes import Diffusion

# Elements of one block of (data point, event), and of one block of (state, data point, event). The first alone fixes
# the order of summation, so that a sample's score does not depend on its batch mates.
_DATA_BLOCK, _BLOCK = 1 << 16, 1 << 21


class _Sums(NamedTuple):
    """Running log-sum-exp over data: maximum and sum of weights ``[B]``, weighted sums of kernel scores and of data."""

    peak: Tensor
    mass: Tensor
    score: Tensor
    data: Tensor

    def add(self, log_weight: Tensor, score: Tensor, data: Tensor) -> _Sums:
        peak = torch.maximum(self.peak, log_weight.amax(1))
        # a state to which no data point contributes yet has peak −∞ and mass 0
        old = torch.where(self.mass > 0, (self.peak - peak).exp(), 0.0)
        weight = (log_weight - peak[:, None]).exp()
        ndim = score.dim() - 2
        old_event, weight_event = expand_right(old, ndim), expand_right(weight, ndim)
        return _Sums(
            peak,
            old * self.mass + weight.sum(1),
            old_event * self.score + (weight_event * score).sum(1),
            old_event * self.data + (weight_event * data).sum(1),
        )


class EmpiricalScore:
    r"""∇ log p_t for x_0 uniform on a data set: :math:`p_t(x) = \tfrac1N \sum_i p_{σ}(x | x_i)`, on any kernel domain.

    The score is the posterior mean of the kernel scores, summed in blocks by a running log-sum-exp: memory does not grow
    with N, time is O(N) per state. Batch-invariant to the bit.

    Args:
        process: a Diffusion on a KernelDomain.
        data: ``[N, *event]`` inside the domain.

    Offers ``log_prob(x, t)``, ``prediction(x, t)`` = (E[x0 | x], E[ε | x]) and ``rows``. E[x0 | x] is exact near walls, where
    Tweedie's formula is not; the noise is defined by x = s·x0 + std·ε.
    """

    def __init__(self, process: Diffusion, data: Tensor | np.ndarray):
        if not isinstance(process.domain, KernelDomain):
            raise TypeError(f"EmpiricalScore: got {process.domain!r}, expected a domain with a heat kernel")
        data = torch.as_tensor(data)
        check_event(data, process.domain.event_shape, "data")
        if data.dim() != len(process.domain.event_shape) + 1 or not len(data):
            raise ValueError(
                f"data: got shape {tuple(data.shape)}, expected [N, {', '.join(map(str, process.domain.event_shape))}], N ≥ 1"
            )
        process.domain.check(data, "data")
        self.process, self.domain, self.data = process, process.domain, data.detach()

    def __repr__(self) -> str:
        return f"EmpiricalScore({self.process!r}, <{len(self.data)} points>)"

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        def block(part: _Sums, ndim: int) -> Tensor:
            return part.score / expand_right(part.mass, ndim)

        return self._over_blocks(x, t, block).reshape(x.shape)

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x): ``[*batch]``."""

        def block(part: _Sums, ndim: int) -> Tensor:
            return part.peak + part.mass.log() - math.log(len(self.data))

        return self._over_blocks(x, t, block).reshape(x.shape[: x.dim() - len(self.domain.event_shape)])

    def prediction(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(E[x0 | x], E[ε | x]); see the class."""

        def block(part: _Sums, ndim: int) -> Tensor:
            return part.data / expand_right(part.mass, ndim)

        data = self._over_blocks(x, t, block).reshape(x.shape)
        level = self.process.event_level(per_batch(t, x, len(self.domain.event_shape), "t"))
        return data, (x - level.scale * data) / (level.scale * level.sigma)

    def rows(self, index: Tensor) -> EmpiricalScore:
        return self

    def _over_blocks(self, x: Tensor, t: float | Tensor, finish: Callable[[_Sums, int], Tensor]) -> Tensor:
        ndim = len(self.domain.event_shape)
        check_event(x, self.domain.event_shape)
        batch = x.shape[: x.dim() - ndim]
        flat = x.reshape(math.prod(batch), *self.domain.event_shape)
        level = per_batch(t, x, ndim, "t").expand(batch).reshape(math.prod(batch))
        if level.device.type == "cpu":  # reading values on a GPU would stall it
            check_positive(level, "t")
        dim = math.prod(self.domain.event_shape)
        points = max(1, _DATA_BLOCK // dim)
        states = max(1, _BLOCK // (min(points, len(self.data)) * dim))
        out = [
            finish(self._sums(flat[i : i + states], level[i : i + states], points), ndim)
            for i in range(0, max(len(flat), 1), states)
        ]
        return torch.cat(out)

    def _sums(self, x: Tensor, t: Tensor, points: int) -> _Sums:
        zero = torch.zeros_like(x)
        sums = _Sums(torch.full_like(t, -math.inf), torch.zeros_like(t), zero, zero)
        for data in self._data(points, x):
            kernel = self.process.unchecked_transition(data[None], t[:, None])
            log_prob, score = kernel.log_prob_and_score(x[:, None])
            sums = sums.add(log_prob, score, data)
        return sums

    def _data(self, points: int, x: Tensor) -> Iterator[Tensor]:
        for block in self.data.split(points):
            yield block.to(x.device, x.dtype)
