r"""The Metropolis-adjusted Langevin algorithm: Langevin steps, each taken or left so that the stationary law is p itself.

From x with g = ∇ log p, u = x + h g(x) + √(2h) z is proposed and taken with probability min(1, r),

.. math:: \ln r = \ln p(u) - \ln p(x) + \tfrac12 |z|^2 - \tfrac1{4h} |x - u - h\,g(u)|^2 .

*Walls.* On a domain that folds, u is on the covering space and g is read there (the folded score, carried back): the mirrored way is as
long, so each image of u has its own way back and balance holds image by image. On other domains with walls a proposal outside is left,
which is exact too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..domains import FoldedDomain
from ..domains.tensors import batch_shape, event_flat, event_sum, expand_right
from ..processes import Equation, Langevin
from .solver import Record, Solver


class _Chain(NamedTuple):
    """What a chain knows of the state it is at: its score and log-density; and how many of its proposals were taken."""

    score: Tensor
    log_prob: Tensor
    accepted: Tensor


class MALA(Solver):
    r"""Metropolis-adjusted Langevin steps of size h = s − t: the stationary law is p itself at any h, where ``EulerMaruyama`` errs by O(h).

    Each sample decides for itself. ``Solution.stats["acceptance"]`` is the share of its proposals that was taken ``[*batch]``. A mean of
    about .57 is best in many dimensions, where h falls as d^{−1/3}, but the least of them counts as well: a chain that never moved has
    seen nothing. Needs the equation's ``log_prob``. One evaluation a step (two in the first), two draws. A state at which p or its score
    is NaN ends its sample; one at which p is 0 takes every proposal until it has left.

    Source: Roberts & Tweedie 1996; Roberts & Rosenthal 1998 for the rate.
    """

    accepts = (Langevin,)
    stochastic = True
    order = None
    order_note = "stationary law exact"
    source = "Roberts & Tweedie 1996, §1.4"

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        if getattr(equation, "log_prob", None) is None:
            raise TypeError(
                "MALA: got a Langevin equation without log_prob, expected one with it: Langevin(score, domain, log_prob), or "
                "Langevin.of_log_prob(log_prob, domain)"
            )
        steps = zip(times[:-1].tolist(), times[1:].tolist(), times.diff().tolist(), strict=True)
        return [Record(t, s, (h, math.sqrt(2 * h)), 2, 2 if i == 0 else 1) for i, (t, s, h) in enumerate(steps)]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        h, spread = record.coefficients
        ndim, domain = len(equation.domain.event_shape), equation.domain
        chain = state or _Chain(equation.field(x, record.t), _log_prob(equation, x), _none(x, domain.event_shape))
        # every draw is asked for once: a source gives new normals each time
        z, uniform = noise[0], event_flat(noise[1], ndim)[..., 0]
        u = x + h * chain.score + spread * z
        inside: Tensor | bool = True
        if isinstance(domain, FoldedDomain):
            y, back = domain.fold(u)
        else:
            inside = domain.contains(u)
            y, back = torch.where(expand_right(inside, ndim), u, x), lambda v: v
        score, log_prob = equation.field(y, record.t), _log_prob(equation, y)
        returning = (x - u - h * back(score)) / spread
        ratio = log_prob - chain.log_prob + 0.5 * (event_sum(z * z, ndim) - event_sum(returning * returning, ndim))
        known = ~event_sum(u, ndim).isnan()
        # where p is 0 its score may be anything, but not where the chain is
        ratio = torch.where(known & (log_prob == -math.inf), log_prob, ratio)
        # a chain that was put where p is 0 takes every proposal until it has left
        ratio = torch.where(known & (chain.log_prob == -math.inf), 0.0, ratio)
        # ln U of a uniform U made of one coordinate of the second normal
        taken = (torch.special.log_ndtr(uniform) < ratio) & inside
        wide = expand_right(taken, ndim)
        moved = torch.where(expand_right(ratio.isnan(), ndim), math.nan, torch.where(wide, y, x))
        accepted = chain.accepted + taken
        return moved, _Chain(
            torch.where(wide, score, chain.score), torch.where(taken, log_prob, chain.log_prob), accepted
        )

    def report(self, state: Any, records: Sequence[Record]) -> dict[str, Any]:
        stats = {"acceptance": state.accepted / len(records)} if records else {}
        return {**super().report(state, records), **stats}


def _none(x: Tensor, event_shape: Sequence[int]) -> Tensor:
    return torch.zeros(batch_shape(x, event_shape), dtype=x.dtype, device=x.device)


def _log_prob(equation: Equation, x: Tensor) -> Tensor:
    value = equation.log_prob(x, **equation.condition)  # type: ignore[attr-defined]
    batch = batch_shape(x, equation.domain.event_shape)
    if not isinstance(value, Tensor) or value.shape != batch:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"log_prob: got {got} for states {tuple(x.shape)}, expected one number a sample: {tuple(batch)}"
        )
    return value
