r"""Phase space: positions in a domain beside velocities that no wall bounds, as one state ``[*batch, 2, *event]``.

A ball that hits a wall keeps its speed, and its velocity is mirrored with its path. Where the domain folds, so does its phase space:
:math:`(u, v) \mapsto (W u, W v)` with W the fold and its linear part. Elsewhere the velocity after the last bounce is the derivative of
the reflected path by the length of the move. Both keep volumes in phase space, so the uniform law of positions survives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .domain import Domain, FoldedDomain
from .euclidean import Euclidean
from .tensors import event_sum, expand_right


def phase_space(domain: Domain) -> Domain:
    """The domain of states (position, velocity) ``[*batch, 2, *event]``: of R^d another R^2d, of a domain that folds one that folds."""
    if isinstance(domain, Euclidean):
        return Euclidean((2, *domain.event_shape))
    return FoldedPhase(domain) if isinstance(domain, FoldedDomain) else Phase(domain)


def split_phase(state: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """Position and velocity of states ``[*batch, 2, *event]`` with ``ndim`` dimensions in an event: views."""
    x, v = state.unbind(-ndim - 1)
    return x, v


def join_phase(x: Tensor, v: Tensor, ndim: int) -> Tensor:
    """The inverse of :func:`split_phase`."""
    if x.shape != v.shape:
        raise ValueError(f"v: got velocities {tuple(v.shape)} for positions {tuple(x.shape)}, expected the same shape")
    return torch.stack([x, v], -ndim - 1)


class Phase(Domain):
    """Positions in ``domain``, any velocities. A move of the state reflects its position and mirrors its velocity."""

    def __init__(self, domain: Domain):
        self.base = domain
        self.event_shape = (2, *domain.event_shape)
        self.is_cone = domain.is_cone

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    @property
    def width(self) -> float:
        return math.inf

    def config(self) -> dict[str, Any]:
        return {"type": "Phase", "domain": self.base.config()}

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return split_phase(state, len(self.base.event_shape))

    def join(self, x: Tensor, v: Tensor) -> Tensor:
        return join_phase(x, v, len(self.base.event_shape))

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        (a, v), (b, w) = self.split(x), self.split(y)
        return self.join(self.base.difference(a, b), v - w)

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        position, velocity = self.split(x)
        # a velocity that is NaN is outside, as a position is
        return self.base.contains(position, atol) & ~event_sum(velocity, len(self.base.event_shape)).isnan()

    def project(self, x: Tensor) -> Tensor:
        position, velocity = self.split(x)
        return self.join(self.base.project(position), velocity)

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        (position, velocity), (move, kick) = self.split(x), self.split(displacement)
        ndim, after = len(self.base.event_shape), velocity + kick
        inside = expand_right(self.base.contains(position + move), ndim)
        # the path's end, differentiated along the velocity, is the velocity after the last bounce; curved walls bend what is not along
        # the path, so that a kick within a move keeps its size alone
        moved, mirrored, *_ = torch.func.jvp(lambda d: self.base.reflect(position, d), (move,), (after,))
        speed, was = (event_sum(w * w, ndim).sqrt() for w in (mirrored, after))
        mirrored = mirrored * expand_right(was / speed.clamp(min=torch.finfo(x.dtype).tiny), ndim)
        return self.join(moved, torch.where(inside, after, mirrored))

    def boundary_distance(self, x: Tensor) -> Tensor:
        return self.base.boundary_distance(self.split(x)[0])

    def inward_normal(self, x: Tensor) -> Tensor:
        position, velocity = self.split(x)
        return self.join(self.base.inward_normal(position), torch.zeros_like(velocity))


class FoldedPhase(Phase, FoldedDomain):
    """Phase space of a domain that folds: the fold of the position, its linear part for the velocity."""

    base: FoldedDomain

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        position, velocity = self.split(u)
        x, back = self.base.fold(position)
        # folds are isometries: the transpose of ``back`` is its inverse
        _, forth, *_ = torch.func.vjp(back, velocity)
        return self.join(x, forth(velocity)[0]), lambda w: self.join(*(back(part) for part in self.split(w)))

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        return self.fold(x + displacement)[0]
