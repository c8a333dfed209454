"""A state and the volume it sweeps: the probability flow of (x, m) on the product of the domain with a line; see ``likelihood``."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..domains import Euclidean, Product
from ..domains.tensors import expand_right
from ..processes import Diffusion
from ..processes.equations import Field
from .divergence import Divergence


class JointScore:
    """The "score" of (x, m): the score and s(t)/s(T) times its divergence, or several estimates of it."""

    def __init__(
        self,
        process: Diffusion,
        score: Field,
        divergence: Divergence,
        directions: Tensor | None,
        grid: Tensor,
        keep_graph: bool = False,
    ):
        self.inner, self.score, self.divergence = process, score, divergence
        self.directions, self.keep_graph = directions, keep_graph
        line, parts = Euclidean((divergence.size,)), process.parts
        self.process = (
            Diffusion(Product(*process.domain.domains, line), [p.schedule for p in (*parts, parts[0])])  # type: ignore[attr-defined]
            if parts
            else Diffusion(Product(process.domain, line), process.schedule)
        )
        self.clock = process.schedule  # of the line
        self.last = float(self.clock.scale(grid[0]))
        scales = process.event_level(grid[[0, -1]]).scale.expand(2, *process.domain.event_shape).flatten(1).log()
        #: ∫ tr a dt
        self.linear = float((scales[0] - scales[1]).sum())

    def __call__(self, state: Tensor, t: Tensor, **condition: Any) -> Tensor:
        x, _ = self.split(state)
        at = expand_right(t.squeeze(-1), x.dim() - 1) if t.dim() else t
        weight = self._weight(t) if self.inner.parts else None
        value, estimates = self.divergence(self.score, x, at, self.directions, weight, self.keep_graph, **condition)
        return torch.cat([value.flatten(1), self.clock.scale(t) / self.last * estimates], -1)

    def _weight(self, t: Tensor) -> Tensor:
        """b of each coordinate over b of the line, where parts have clocks of their own: the line's equation multiplies by its own."""
        g = [
            part.schedule.diffusion(t.squeeze(-1) if t.dim() else t)
            for part in (*self.inner.parts, self.inner.parts[0])
        ]
        *ratios, _ = [(v / g[-1]) ** 2 for v in g]
        return self.inner._beside(ratios)

    def join(self, x: Tensor) -> Tensor:
        """Where a run starts."""
        return torch.cat([x.flatten(1), x.new_zeros(len(x), self.divergence.size)], -1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        x, m = state.split([state.shape[-1] - self.divergence.size, self.divergence.size], -1)
        return x.reshape(len(state), *self.inner.domain.event_shape), m

    def rows(self, index: Tensor) -> JointScore | None:
        restrict = getattr(self.score, "rows", None)
        score = None if restrict is None else restrict(index)
        if score is None:
            return None
        other = copy.copy(self)
        other.score = score
        other.directions = None if self.directions is None else self.directions[index]
        return other
