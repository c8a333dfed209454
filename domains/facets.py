r"""Flat walls at any angle to one another: distances, specular reflection by ray marching, and damping along their normals.

Inside is :math:`\{x : n_j·x + c_j ≥ 0\}` with inward unit normals :math:`n_j` (``normals [m, d]``, ``offsets [m]``).

*Reflection.* A ball that starts at x with the displacement v flies to the first wall ahead, at the time
:math:`t = \min_j d_j / (-n_j·v)` over the walls with :math:`n_j·v < 0`, and goes on with :math:`(1 - t)(v - 2 (n_j·v) n_j)` until t ≥ 1.

*Damping.* With distances :math:`d_j`, a vector v is damped over a layer of thickness w to the u that minimises
:math:`|u - v|^2 + \sum_j c_j (n_j·u)^2`, :math:`c_j = (1 - s_j)/s_j`, :math:`s_j = \min(d_j/w, 1)`: a single wall scales the normal
component by s, facets out of reach do nothing, and on a wall the normal component is 0 whatever the others do.

*Domains.* :class:`Billiard` gives a domain its ``bounce`` and ``reflect`` by ray marching; :class:`OnDevice` keeps the walls, and other
constants of a domain, where its states are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from .domain import Domain
from .tensors import event_sum, values_are_readable


class Bounce(NamedTuple):
    """Where a ball ended, ``[*batch, d]``; how often it bounced, int64 ``[*batch]``; and whether it went all the way, Bool ``[*batch]``:
    where it did not, x is the point at which its bounces were used up."""

    x: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody asks of this one
    finished: Tensor


class Billiard(Domain):
    """A domain with flat walls in which a path is followed from wall to wall.

    A subclass gives ``_facets(device)``: (normals, offsets), float64.

    Args:
        max_bounces: a displacement that would bounce more often comes back from ``reflect`` as NaN, so that the status of a
            solve names the sample; ``bounce`` returns the point and a status instead. Under ``torch.compile`` and ``vmap`` all
            bounces are unrolled: give a small number there.
    """

    def __init__(self, max_bounces: int):
        if isinstance(max_bounces, bool) or not isinstance(max_bounces, (int, float, np.number)):
            raise TypeError(f"max_bounces: got {max_bounces!r}, expected a whole number of at least 1, e.g. 1000")
        if max_bounces != max_bounces // 1 or max_bounces < 1 or max_bounces == math.inf:
            raise ValueError(f"max_bounces: got {max_bounces}, expected a whole number of at least 1, e.g. 1000")
        self.max_bounces = int(max_bounces)

    @abstractmethod
    def _facets(self, device: torch.device) -> tuple[Tensor, Tensor]: ...

    def facets(self) -> tuple[Tensor, Tensor]:
        return self._facets(torch.device("cpu"))

    def bounce(self, x: Tensor, displacement: Tensor) -> Bounce:
        """The reflected path's end, the number of its bounces, and whether they sufficed; see ``march``."""
        return march(x, displacement, *self._facets(x.device), self.max_bounces)

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        end, _, finished = self.bounce(x, displacement)
        return torch.where(finished.unsqueeze(-1), end, math.nan)


def facet_products(normals: Tensor, v: Tensor) -> Tensor:
    """n_j·v: ``[*batch, d] -> [*batch, m]``, batch-invariant to the bit (which a matrix product is not)."""
    return event_sum(normals * v.unsqueeze(-2), 1)


def facet_distances(x: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """n_j·x + c_j, positive inside: ``[*batch, d] -> [*batch, m]``."""
    return facet_products(normals, x) + offsets


def march(x: Tensor, displacement: Tensor, normals: Tensor, offsets: Tensor, max_bounces: int) -> Bounce:
    """Specular reflection of the displacement, both ``[*batch, d]``; ``normals`` and ``offsets`` in float64.

    Computed in float64 whatever the dtypes, whose common one is that of the result; with temporaries ``[*batch, m, d]``. Eager loops
    end when the whole batch has landed; under ``torch.compile`` and ``vmap`` there are always ``max_bounces`` + 1 rounds, unrolled.
    """
    shape = torch.broadcast_shapes(x.shape, displacement.shape)
    y, v = x.to(offsets.dtype).expand(shape), displacement.to(offsets.dtype).expand(shape)
    last = torch.full(shape[:-1], -1, dtype=torch.long, device=x.device)
    count, flying = torch.zeros_like(last), torch.ones_like(last, dtype=torch.bool)
    for bounce in range(max_bounces + 1):
        time, facet = _next_wall(y, v, last, normals, offsets)
        lands = flying & (time >= 1)
        hits = flying & ~lands & (bounce < max_bounces)
        step = time.clamp(max=1).unsqueeze(-1)
        moves = (lands | hits).unsqueeze(-1)
        y = torch.where(moves, y + step * v, y)
        normal = embedding(facet, normals)
        mirrored = v - 2 * event_sum(normal * v, 1).unsqueeze(-1) * normal
        v = torch.where(hits.unsqueeze(-1), (1 - step) * mirrored, v)
        last, count, flying = torch.where(hits, facet, last), count + hits, flying & ~lands
        if values_are_readable(y, v) and not bool(flying.any()):
            break
    still = (displacement == 0).all(-1, keepdim=True)
    end = torch.where(still, x, _push_inside(y, normals, offsets).to(torch.promote_types(x.dtype, displacement.dtype)))
    return Bounce(end, count, ~flying)


def _next_wall(y: Tensor, v: Tensor, last: Tensor, normals: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """(time, facet) of the first wall ahead, infinite where there is none.

    The wall just hit is not ahead, though rounding may say so of a ball that grazes it: from five dimensions on mirroring may leave a
    rate of −1e-17 as it is, for ever. A wall behind which rounding has put the ball is hit at once. In a corner the walls are hit
    one after the other at time 0."""
    rate = facet_products(normals, v)
    ahead = (rate < 0) & (torch.arange(len(offsets), device=y.device) != last.unsqueeze(-1))
    distance = facet_distances(y, normals, offsets).clamp(min=0)
    time = torch.where(ahead, distance / torch.where(ahead, -rate, 1.0), math.inf)
    first, facet = time.min(-1)
    return first, facet


def _push_inside(y: Tensor, normals: Tensor, offsets: Tensor) -> Tensor:
    """y moved back by what rounding has put it behind its walls; twice, for corners."""
    for _ in range(2):
        distance, facet = facet_distances(y, normals, offsets).min(-1)
        y = y - distance.clamp(max=0).unsqueeze(-1) * embedding(facet, normals)
    return y


def damp_facets(vector: Tensor, distance: Tensor, normals: Tensor, gram: Tensor, width: Tensor) -> Tensor:
    """u as above. ``vector [*batch, d]``, ``distance [*batch, m]``, ``normals [m, d]``, their products ``gram [m, m]``; ``width``
    broadcasts against ``distance``."""
    s = (distance / width).clamp(0, 1)
    # u = v − Nᵀλ with λ = c·Nu, multiplied by s so that nothing divides by a distance: (s + (1 − s)NNᵀ)λ = (1 − s)Nv;
    # where more facets meet than there are dimensions that is singular: a little more s keeps it solvable
    matrix = torch.diag_embed(s + torch.finfo(s.dtype).eps) + (1 - s).unsqueeze(-1) * gram
    right = (1 - s) * facet_products(normals, vector)
    # without the check of solve(), which waits for the device, and which one bad sample would make fail for all
    force = torch.linalg.solve_ex(matrix, right.unsqueeze(-1)).result.squeeze(-1)
    return vector - facet_products(normals.T, force)
