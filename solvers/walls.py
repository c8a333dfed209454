"""Walls: what happens at the boundary, chosen independently of the step rule.

=========  ====================================  =========================================  =====================
wall       reads the field outside at            after a move                               weak order (EM)
=========  ====================================  =========================================  =====================
Reflect    the reflected point, sign carried     reflects specularly                        1
Project    the nearest point                     takes the nearest point                    1/2
Cover      the folded point, sign carried back   stays on the covering space, folds at the  that of the rule
           back                                  end
=========  ====================================  =========================================  =====================

Sources: projection has order ½ (Asmussen, Glynn & Pitman 1995), symmetrised Euler order 1 (Bossy, Gobet & Talay 2004).
"""

from __future__ import annotations

from torch import Tensor

from ..domains import Domain, FoldedDomain
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

    def evaluate(self, domain: Domain, field: Field, u: Tensor, t: Tensor, start: Tensor | None) -> Tensor:
        return _folded(domain, field, u, t)

    def show(self, domain: Domain, x: Tensor) -> Tensor:
        return domain.fold(x)[0]  # type: ignore[attr-defined]
