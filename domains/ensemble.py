"""Ensembles: states that are N points of one domain, e.g. the particles of a flow in which they interact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from .domain import Domain, FoldedDomain, Uniform, uniform_law
from .tensors import as_like, expand_right, is_int


class Ensemble(Domain):
    """N points of one domain: a state is ``[*batch, N, *event]``, and walls act on each point by itself.

    It is the product of N copies, held as one tensor with an axis of its own; it has a fold where its domain has one.

    Args:
        domain: where each point lives.
        count: N ≥ 1.
    """

    def __new__(cls, domain: Domain, count: int) -> Ensemble:
        if cls is Ensemble and isinstance(domain, FoldedDomain):
            cls = _FoldedEnsemble
        return super().__new__(cls)

    def __init__(self, domain: Domain, count: int):
        if not isinstance(domain, Domain):
            raise TypeError(f"domain: got {type(domain).__name__}, expected a Domain, e.g. Hypercube((2,))")
        if not is_int(count, 1):
            raise ValueError(f"count: got {count!r}, expected how many points an ensemble has, an int of at least 1")
        self.domain, self.count = domain, count
        self.event_shape = (count, *domain.event_shape)
        self.is_cone = domain.is_cone

    def __getnewargs__(self) -> tuple[Domain, int]:
        return self.domain, self.count

    def __repr__(self) -> str:
        return f"Ensemble({self.domain!r}, {self.count})"

    def config(self) -> dict[str, Any]:
        return {"type": "Ensemble", "domain": self.domain.config(), "count": self.count}

    @property
    def width(self) -> float:
        return self.domain.width

    @property
    def bounded(self) -> bool:
        return self.domain.bounded

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        return self.domain.difference(x, y)

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        return self.domain.contains(x, atol).all(-1)

    def project(self, x: Tensor) -> Tensor:
        return self.domain.project(x)

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        return self.domain.reflect(x, displacement)

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        """Independent uniform points."""
        if not self.bounded:
            return super().uniform(dtype)
        law = uniform_law(self.domain, dtype)

        def draw(
            shape: torch.Size, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
        ) -> Tensor:
            return law.sample((*shape, self.count), generator=generator).to(dtype)  # type: ignore[call-arg]

        return Uniform(self, draw, self.count * float(law.entropy()), dtype)

    def boundary_distance(self, x: Tensor) -> Tensor:
        return self.domain.boundary_distance(x).amin(-1)

    def inward_normal(self, x: Tensor) -> Tensor:
        distance = self.domain.boundary_distance(x)
        nearest = torch.zeros_like(distance).scatter(-1, distance.argmin(-1, keepdim=True), 1.0)
        return expand_right(nearest, len(self.domain.event_shape)) * self.domain.inward_normal(x)

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        return self.domain.damp(x, vector, as_like(width, x))


class _FoldedEnsemble(Ensemble, FoldedDomain):
    domain: FoldedDomain

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.domain.fold(u)

    reflect = Ensemble.reflect
