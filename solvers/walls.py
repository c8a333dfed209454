"""Walls: what happens at the boundary, chosen independently of the step rule.

=========  ====================================  =========================================  =====================
wall       reads the field outside at            after a move                               weak order (EM)
=========  ====================================  =========================================  =====================
Reflect    the reflected point, sign carried     reflects specularly                        1
           back
Cover      the folded point, sign carried back   stays on the covering space, folds at the  that of the rule
                                                 end
Reject     the nearest point                     stays where it was if the move leaves      1
Project    the nearest point                     takes the nearest point                    1/2
Penalise   the nearest point                     goes part of the way to the nearest point  1/2
Oblique    the reflected point                   reflects along a direction of each wall    1
=========  ====================================  =========================================  =====================

Defaults: ``Project`` for ODEs (with a score that points through the wall it is by far the best for multistep rules and never worse for
others, with s·n = 0 all walls agree); ``Cover`` for stochastic multi-stage and multistep rules on a FoldedDomain (a fold in mid-run cuts
their history to order 1); ``Reflect`` otherwise. ``benchmarks/walls.py`` prints the comparison behind them.

Sources: projection has order ½ (Asmussen, Glynn & Pitman 1995), symmetrised Euler order 1, oblique directions too (Bossy, Gobet & Talay
2004), penalisation (ln n/n)^½ on polyhedra, ^¼ on other convex sets (Słomiński 2012).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from ..domains import Domain, FoldedDomain, Hypercube, Orthant
from ..domains.constants import OnDevice
from ..domains.facets import facet_distances
from ..domains.tensors import batch_shape, expand_right, number, values_are_readable
from ..processes import Wall
from ..processes.equations import Field


def _folded(domain: Domain, field: Field, u: Tensor, t: Tensor) -> Tensor:
    x, back = domain.fold(u)  # type: ignore[attr-defined]
    return back(field(x, t))


class Reflect(Wall):
    """Specular reflection after each move: the reflected SDE itself (Lou & Ermon 2023, alg. 1)."""

    pushes = True

    def evaluate(self, domain: Domain, field: Field, u: Tensor, t: Tensor, start: Tensor | None) -> Tensor:
        if start is None:
            return field(u, t)
        if isinstance(domain, FoldedDomain):
            return _folded(domain, field, u, t)
        return field(domain.reflect(start, u - start), t)

    def settle(self, domain: Domain, x: Tensor, y: Tensor) -> Tensor:
        return domain.fold(y)[0] if isinstance(domain, FoldedDomain) else domain.reflect(x, y - x)


class Project(Wall):
    """The nearest point after each move: "thresholding" of the state."""

    pushes = True

    def evaluate(self, domain: Domain, field: Field, u: Tensor, t: Tensor, start: Tensor | None) -> Tensor:
        return field(u if start is None else domain.project(u), t)

    def settle(self, domain: Domain, x: Tensor, y: Tensor) -> Tensor:
        return domain.project(y)


class Cover(Wall):
    """The state lives on the covering space, the field is its odd periodic continuation, and one fold ends the run.

    Needs a :class:`FoldedDomain`. Stochastic multi-stage and multistep rules need it for their order, because a fold in
    mid-run cuts their history.
    """

    def check(self, domain: Domain) -> None:
        if not isinstance(domain, FoldedDomain):
            raise TypeError(f"wall: got Cover() on {domain!r}, which has no covering space; use Reflect() or Project()")

    def evaluate(self, domain: Domain, field: Field, u: Tensor, t: Tensor, start: Tensor | None) -> Tensor:
        return _folded(domain, field, u, t)

    def show(self, domain: Domain, x: Tensor) -> Tensor:
        return domain.fold(x)[0]  # type: ignore[attr-defined]


class Reject(Wall):
    """A move that would leave the domain is not made: the sample stays where it was (on boxes and orthants, coordinate by coordinate).
    Metropolis' rule for the uniform law."""

    def evaluate(self, domain: Domain, field: Field, u: Tensor, t: Tensor, start: Tensor | None) -> Tensor:
        return field(u if start is None else domain.project(u), t)

    def settle(self, domain: Domain, x: Tensor, y: Tensor) -> Tensor:
        if isinstance(domain, (Hypercube, Orthant)):
            return torch.where(domain.project(y) == y, y, x)
        return torch.where(expand_right(domain.contains(y), len(domain.event_shape)), y, x)


class Penalise(Wall):
    """After each move the fraction ``strength`` of the way back to the nearest point is taken: an Euler step of a drift that pushes
    inwards in proportion to the distance outside, at the rate strength/h. 1 is :class:`Project`.

    States are outside on the way, and are projected where the field is read and when they are handed out.

    Args: strength: in (0, 1].
    """

    pushes = True

    def __init__(self, strength: float = 0.5):
        self.strength = number(strength, "strength", low=0.0, high=1.0, open_low=True)

    def __repr__(self) -> str:
        return f"Penalise({self.strength:g})"

    def evaluate(self, domain: Domain, field: Field, u: Tensor, t: Tensor, start: Tensor | None) -> Tensor:
        return field(domain.project(u), t)

    def settle(self, domain: Domain, x: Tensor, y: Tensor) -> Tensor:
        return y + self.strength * (domain.project(y) - y)

    def show(self, domain: Domain, x: Tensor) -> Tensor:
        return domain.project(x)


class Oblique(Wall):
    """Reflection along a given direction at each flat wall: the symmetrised Euler scheme of dX = … + Σ γ_j dL_j.

    Where a move ends at distance d behind wall j it is moved on by 2d/(n_j·γ_j) along γ_j, the farthest wall first, and again while walls
    are violated; after ``rounds`` such turns it is put on the walls along their directions instead, and a state that is still outside after
    four times as many becomes NaN, so that its status tells. Normal directions give ``Reflect`` up to corners.

    Args:
        domain: a Polytope, RegularSimplex, Hypercube or Orthant; ``domain.facets()`` lists its walls in order (of a box
            first all lower ones, then all upper ones).
        directions: ``[m, n]``, one per wall, pointing inwards: n_j·γ_j > 0.

    Raises ``ValueError`` for directions that do not fit or do not point inwards.
    """

    pushes = True

    def __init__(self, domain: Domain, directions: Sequence[Sequence[float]] | np.ndarray | Tensor, rounds: int = 16):
        normals, offsets = domain.facets()
        gamma = torch.as_tensor(directions, dtype=torch.float64)
        if gamma.shape != normals.shape:
            raise ValueError(
                f"directions: got shape {tuple(gamma.shape)}, expected {tuple(normals.shape)}: one row for each wall of {domain!r}"
            )
        along = (gamma * normals).sum(-1)
        if not bool((along > 1e-9 * gamma.norm(dim=-1)).all()):
            j = int((along / gamma.norm(dim=-1)).argmin())
            raise ValueError(
                f"directions: got {gamma[j].tolist()} for wall {j} with the inward normal {normals[j].tolist()}, expected a direction that "
                "points inwards"
            )
        self.domain, self.rounds = domain, rounds
        self._walls = OnDevice((normals, offsets, gamma / along[:, None]))

    def __repr__(self) -> str:
        return f"Oblique({self.domain!r}, …)"

    def check(self, domain: Domain) -> None:
        # by what they are made of: the representation of a polytope leaves its walls out
        if domain.config() != self.domain.config():
            raise ValueError(f"wall: got directions for the walls of {self.domain!r}, expected those of {domain!r}")

    def evaluate(self, domain: Domain, field: Field, u: Tensor, t: Tensor, start: Tensor | None) -> Tensor:
        return field(u if start is None else self.settle(domain, start, u), t)

    def settle(self, domain: Domain, x: Tensor, y: Tensor) -> Tensor:
        normals, offsets, directions = self._walls(y.device)
        batch = batch_shape(y, domain.event_shape)
        at = y.double().reshape(*batch, -1)
        slack = 1e-15 * (1 + offsets.abs().max())
        for turn in range(5 * self.rounds):
            distance, wall = facet_distances(at, normals, offsets).min(-1)
            behind = -distance.clamp(max=0)
            if values_are_readable(at) and not bool((behind > slack).any()):
                break
            factor = 2.0 if turn < self.rounds else 1.0
            at = at + (factor * behind).unsqueeze(-1) * embedding(wall, directions)
        left = (facet_distances(at, normals, offsets).amin(-1) < -1e-9).unsqueeze(-1)
        moved = torch.where(left, torch.nan, at).reshape(y.shape).to(y.dtype)
        # rounding to the state's dtype may leave the domain again
        return torch.where(moved.isnan(), moved, domain.project(moved))
