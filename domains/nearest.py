r"""The nearest point of a polytope: the dual active-set method of Goldfarb & Idnani (1983), for many points at once.

A point outside is pushed in through the wall it violates most, while it goes on leaning on the walls held so far; a wall
whose force would turn negative is let go first. Each round solves for at most d walls, and all samples share the rounds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .facets import facet_distances
from .tensors import event_sum, values_are_readable


def nearest(
    x: Tensor, normals: Tensor, offsets: Tensor, gram: Tensor, tolerance: Tensor, max_rounds: int | None = None
) -> Tensor:
    """The points y nearest to x ``[n, d]`` with n_j·y + c_j ≥ −tolerance_j, for ``normals [m, d]``, ``offsets [m]`` and the
    products ``gram [m, m]`` of the normals. NaN for points that are not finite, and where ``max_rounds`` do not suffice, by default
    4(m + d).

    y = x + Σ force·normal over the walls held. Before each round y is set anew onto them, which is what makes the result exact."""
    (n, dim), m = x.shape, len(offsets)
    finite = x.isfinite().all(-1)
    y = torch.where(finite.unsqueeze(-1), x, math.nan)
    held = _Held(*(torch.zeros(n, dim, dtype=t, device=x.device) for t in (torch.long, torch.bool, x.dtype)))
    entering, push = torch.zeros(n, dtype=torch.long, device=x.device), torch.zeros(n, dtype=x.dtype, device=x.device)
    pending, busy = torch.zeros_like(finite), finite
    for _ in range(4 * (m + dim) if max_rounds is None else max_rounds):
        own = held.gram(gram)
        met = y - held.combine(normals, held.coefficients(own, facet_distances(y, normals, offsets)))
        # a sample that is done stays as it is, whatever the others need
        y = torch.where(busy.unsqueeze(-1), met, y)
        distance = facet_distances(y, normals, offsets)
        leaned = torch.zeros_like(distance).scatter_add(-1, held.slots, held.use.to(x.dtype)) > 0
        excess = torch.where(leaned, math.inf, distance + tolerance)
        worst, facet = excess.min(-1)
        busy = busy & (pending | (worst < 0))
        if values_are_readable(x) and not bool(busy.any()):
            break
        entering = torch.where(pending, entering, facet)
        step = _push(
            held, own, normals, gram[entering], distance.gather(-1, entering.unsqueeze(-1)).squeeze(-1), entering
        )
        y = torch.where(busy.unsqueeze(-1), y + step.shift, y)
        push = torch.where(pending, push, 0.0) + step.length
        force = held.force - step.length.unsqueeze(-1) * step.relief
        held, pending = _exchange(held._replace(force=force), entering, push, step, busy)
    return torch.where(busy.unsqueeze(-1), math.nan, y)


class _Held(NamedTuple):
    """The walls a projection leans on: at most d ``slots [n, d]``, of which those in ``use`` hold a facet and its ``force`` ≥ 0."""

    slots: Tensor
    use: Tensor
    force: Tensor

    def gram(self, products: Tensor) -> Tensor:
        """The Gram matrix of the walls held, the identity elsewhere: ``[n, d, d]``."""
        both = self.use.unsqueeze(-1) & self.use.unsqueeze(-2)
        eye = torch.eye(self.slots.shape[-1], dtype=products.dtype, device=products.device)
        return torch.where(both, products[self.slots.unsqueeze(-1), self.slots.unsqueeze(-2)], eye)

    def coefficients(self, gram: Tensor, values: Tensor) -> Tensor:
        """λ with Σ_k λ_k n_k·n_j = values_j on the walls held, values ``[n, m]``; 0 in empty slots."""
        right = torch.where(self.use, values.gather(-1, self.slots), 0.0)
        # walls held are independent; should rounding say no, that sample alone becomes NaN
        return torch.linalg.solve_ex(gram, right.unsqueeze(-1)).result.squeeze(-1)

    def combine(self, normals: Tensor, weights: Tensor) -> Tensor:
        """Σ_k weights_k n_k: ``[n, d]``."""
        return event_sum(normals[self.slots].transpose(-1, -2) * weights.unsqueeze(-2), 1)


class _Step(NamedTuple):
    """How far to push along the entering wall, what that does to y and to the forces, and whether a wall must be let go first."""

    length: Tensor
    shift: Tensor
    relief: Tensor
    blocked: Tensor
    blocker: Tensor


def _push(held: _Held, own: Tensor, normals: Tensor, products: Tensor, distance: Tensor, entering: Tensor) -> _Step:
    relief = held.coefficients(own, products)
    free = normals[entering] - held.combine(normals, relief)
    room = event_sum(free * free, 1)
    yields = held.use & (relief > 0)
    limits = torch.where(yields, held.force.clamp(min=0) / torch.where(yields, relief, 1.0), math.inf)
    limit, blocker = limits.min(-1)
    # a normal that depends on those held cannot move y: one of them has to go
    movable = room > 64 * torch.finfo(room.dtype).eps
    full = torch.where(movable, -distance / torch.where(movable, room, 1.0), math.inf)
    length = torch.minimum(limit, full)
    length = torch.where(length.isinf(), 0.0, length)
    shift = torch.where(movable.unsqueeze(-1), length.unsqueeze(-1) * free, 0.0)
    return _Step(length, shift, relief, limit < full, blocker)


def _exchange(held: _Held, entering: Tensor, push: Tensor, step: _Step, busy: Tensor) -> tuple[_Held, Tensor]:
    """Let the blocking wall go, or take the entering one in; (walls held, whether the entering one still waits)."""
    places = torch.arange(held.slots.shape[-1], device=push.device)
    drop = (busy & step.blocked).unsqueeze(-1) & (places == step.blocker.unsqueeze(-1))
    first_free = held.use.to(torch.int8).argmin(-1, keepdim=True)
    take = (busy & ~step.blocked).unsqueeze(-1) & (places == first_free) & ~held.use
    return (
        _Held(
            torch.where(take, entering.unsqueeze(-1), held.slots),
            (held.use & ~drop) | take,
            torch.where(take, push.unsqueeze(-1), held.force),
        ),
        busy & step.blocked,
    )
