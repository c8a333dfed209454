r"""DDPM's bound with levels drawn by importance, for less noise in its gradient.

A level i drawn with the probability p_i has the loss L_{i−1}/p_i, whose mean is Σ L_{i−1} whatever p. Its second moment is least for
:math:`p_i \propto \sqrt{E L_{i-1}^2}`. These are not known and change in training, so they are remembered level by level.

Nichol & Dhariwal 2021, §3.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...domains.tensors import is_int, number
from .ddpm import VariationalBound, last_divergence, table_of
from .forward import normal
from .levels import draw_uniforms
from .objectives import Objective, Terms
from .score import NeuralScore


class ImportanceSampled(Objective, nn.Module):
    r"""A :class:`VariationalBound` whose levels are drawn with :math:`p_i \propto \sqrt{E L_{i-1}^2}`, in strata: loss L_{i−1}/p_i + L_N.

    The second moment of a level is the mean square of its first ``memory`` losses, then a running one with the weight 1/memory for each
    new loss (Nichol & Dhariwal keep the last ten; sums, unlike lists, are the same whatever process a sample was on). Until every level
    has that many, p is uniform. Steps of ``train`` settle what was seen, of all processes, and a checkpoint keeps it; in a
    loop of your own call ``settle()`` after each step.

    Args:
        bound: which bound.
        levels: N, that of the table it is trained on.
        memory: number of losses, at least 1.
        floor: the share of levels that are drawn uniformly, in (0, 1]: no level is forgotten.

    Needs what the bound needs. No value is read on the way: no host sync. Raises ``ValueError`` for a table of another length.
    """

    squares: Tensor
    counts: Tensor
    seen: Tensor

    def __init__(self, bound: VariationalBound, levels: int = 1000, *, memory: int = 10, floor: float = 1e-3):
        super().__init__()
        if not isinstance(bound, VariationalBound):
            raise TypeError(f"bound: got {type(bound).__name__}, expected a VariationalBound()")
        for name, value in (("levels", levels), ("memory", memory)):
            if not is_int(value, 1):
                raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")
        self.bound, self.memory = bound, memory
        self.floor = number(floor, "floor", low=0.0, high=1.0, open_low=True)
        self.register_buffer("squares", torch.zeros(levels))
        self.register_buffer("counts", torch.zeros(levels))
        # [2, N]: sums of squares and numbers of losses of the step at work
        self.register_buffer("seen", torch.zeros(2, levels), persistent=False)

    def extra_repr(self) -> str:
        return f"{self.bound!r}, levels={len(self.squares)}, memory={self.memory}, floor={self.floor}"

    def probabilities(self) -> Tensor:
        """p ``[N]``, float64."""
        n = len(self.squares)
        sizes = self.squares.double().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        weighted = (1 - self.floor) * sizes / sizes.sum() + self.floor / n
        return torch.where((self.counts >= self.memory).all(), weighted, 1 / n)

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        table, p = table_of(self, score), self.probabilities()
        if len(p) != len(table.alphas_cumprod):
            raise ValueError(
                f"ImportanceSampled: got a table of {len(table.alphas_cumprod)} levels, expected {len(p)}; set levels= to its length"
            )
        u = draw_uniforms(x0, score.process.domain.event_shape, generator).double()
        # the last sum may fall short of 1 by rounding
        place = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=len(p) - 1)
        noise = normal(x0, place, score.process.domain, generator)
        drawn = self.bound.at(score, x0, place + 1, noise, **condition)
        if self.training:
            self._see(place.flatten(), drawn.bound.detach().flatten().float())
        loss = drawn.bound / p[place].to(x0.dtype) + last_divergence(table, x0, place.dim())
        return Terms(drawn.sigma, loss)

    def _see(self, place: Tensor, loss: Tensor) -> None:
        # as a product with zeros and ones: sums by index are not deterministic on a GPU
        inside = place[:, None] == torch.arange(len(self.squares), device=place.device)
        self.seen += torch.stack([loss.square(), torch.ones_like(loss)]) @ inside.float()

    def sums(self) -> list[Tensor]:
        return [self.seen]

    @torch.no_grad()
    def settle(self) -> None:
        total, new = self.seen
        self.counts += new
        weight = (new / self.counts.clamp(min=1, max=self.memory)).clamp(max=1)
        self.squares.lerp_(total / new.clamp(min=1), weight)
        self.seen.zero_()
