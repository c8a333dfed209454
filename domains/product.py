"""Products of domains: states that have several parts, each in a domain of its own, e.g. an image and a label's probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from .domain import Domain, FoldedDomain, HeatKernel, KernelDomain, Uniform, uniform_law
from .tensors import as_like, check_event, event_sum


class Product(Domain):
    """The Cartesian product: a state is its parts, flattened and joined, ``[*batch, n]``; everything acts part by part.

    Args: domains: at least one. The product has a fold, a heat kernel, a uniform law where all of them have.

    ``split(x)`` gives the parts in their own shapes, ``join(*parts)`` the state. A :class:`~carom.processes.Diffusion` takes one schedule
    for all parts or a sequence with one for each.
    """

    def __new__(cls, *domains: Domain) -> Product:
        if cls is Product:
            cls = _PRODUCTS[tuple(all(isinstance(d, kind) for d in domains) for kind in (FoldedDomain, KernelDomain))]
        return super().__new__(cls)

    def __init__(self, *domains: Domain):
        if not domains or not all(isinstance(d, Domain) for d in domains):
            names = ", ".join(type(d).__name__ for d in domains) or "nothing"
            raise TypeError(
                f"Product: got {names}, expected one or more domains: Product(Hypercube((3,)), Simplex(10))"
            )
        self.domains = domains
        self.sizes = [math.prod(d.event_shape) for d in domains]
        self.event_shape = (sum(self.sizes),)
        self.is_cone = all(d.is_cone for d in domains)

    def __getnewargs__(self) -> tuple[Domain, ...]:
        return self.domains

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.domains))})"

    def config(self) -> dict[str, Any]:
        return {"type": "Product", "domains": [d.config() for d in self.domains]}

    @property
    def width(self) -> float:
        return max(d.width for d in self.domains)

    @property
    def bounded(self) -> bool:
        return all(d.bounded for d in self.domains)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts ``[*batch, *event of the part]`` of states ``[*batch, n]``."""
        check_event(x, self.event_shape)
        parts = x.split(self.sizes, -1)
        return tuple(v.reshape(*x.shape[:-1], *d.event_shape) for v, d in zip(parts, self.domains, strict=True))

    def join(self, *parts: Tensor) -> Tensor:
        """The state ``[*batch, n]`` of parts ``[*batch, *event of the part]``; batches broadcast."""
        if len(parts) != len(self.domains):
            raise ValueError(f"join: got {len(parts)} parts, expected {len(self.domains)}, one for each of {self!r}")
        for i, (part, domain) in enumerate(zip(parts, self.domains, strict=True)):
            check_event(part, domain.event_shape, f"part {i}")
        flat = [
            v.reshape(*v.shape[: v.dim() - len(d.event_shape)], -1)
            if v.numel()
            else v.reshape(*v.shape[: v.dim() - len(d.event_shape)], n)
            for v, d, n in zip(parts, self.domains, self.sizes, strict=True)
        ]
        batch = torch.broadcast_shapes(*(v.shape[:-1] for v in flat))
        return torch.cat([v.expand(*batch, v.shape[-1]) for v in flat], -1)

    def _map(self, function: Callable[..., Tensor], *states: Tensor) -> Tensor:
        """join of function(domain, *parts) over the parts."""
        parts = zip(self.domains, *(self.split(x) for x in states), strict=True)
        return self.join(*(function(domain, *part) for domain, *part in parts))

    def _each(self, function: Callable[[Domain, Tensor], Tensor], x: Tensor) -> Tensor:
        """function(domain, part) of each part, stacked last: ``[*batch, parts]``."""
        return torch.stack([function(d, part) for d, part in zip(self.domains, self.split(x), strict=True)], -1)

    def difference(self, x: Tensor, y: Tensor) -> Tensor:
        return self._map(lambda d, a, b: d.difference(a, b), *torch.broadcast_tensors(x, y))

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        return self._each(lambda d, part: d.contains(part, atol), x).all(-1)

    def project(self, x: Tensor) -> Tensor:
        return self._map(lambda d, part: d.project(part), x)

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        return self._map(lambda d, part, move: d.reflect(part, move), *torch.broadcast_tensors(x, displacement))

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        if not self.bounded:
            return super().uniform(dtype)
        laws = [uniform_law(d, dtype) for d in self.domains]

        def draw(
            shape: torch.Size, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
        ) -> Tensor:
            return self.join(*(law.sample(shape, generator=generator).to(dtype) for law in laws))  # type: ignore[call-arg]

        return Uniform(self, draw, float(sum(law.entropy() for law in laws)), dtype)

    def boundary_distance(self, x: Tensor) -> Tensor:
        return self._each(lambda d, part: d.boundary_distance(part), x).amin(-1)

    def inward_normal(self, x: Tensor) -> Tensor:
        distance = self._each(lambda d, part: d.boundary_distance(part), x)
        nearest = torch.zeros_like(distance).scatter(-1, distance.argmin(-1, keepdim=True), 1.0)
        of_part = [part.expand(*part.shape[:-1], n) for part, n in zip(nearest.split(1, -1), self.sizes, strict=True)]
        return torch.cat(of_part, -1) * self._map(lambda d, part: d.inward_normal(part), x)

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        widths = as_like(width, x)
        parts = zip(self.domains, self.split(x), self.split(vector), strict=True)
        return self.join(*(d.damp(a, v, _in_form_of(d, widths)) for d, a, v in parts))


def _in_form_of(part: Domain, value: Tensor) -> Tensor:
    """A value in the product's broadcast form, 0-d or ``[*batch, 1]``, in that of a part."""
    return value if value.dim() == 0 else value.reshape(*value.shape[:-1], *[1] * len(part.event_shape))


class _Folded(Product, FoldedDomain):
    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        folded = [d.fold(part) for d, part in zip(self.domains, self.split(u), strict=True)]  # type: ignore[attr-defined]
        return self.join(*(x for x, _ in folded)), partial(self._back, [back for _, back in folded])

    def _back(self, backs: Sequence[Callable[[Tensor], Tensor]], v: Tensor) -> Tensor:
        return self.join(*(back(part) for back, part in zip(backs, self.split(v), strict=True)))

    reflect = Product.reflect


class _Kernel(Product, KernelDomain):
    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return max(d.sigma_min for d in self.domains)  # type: ignore[attr-defined]

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor | Sequence[float | Tensor]) -> HeatKernel:
        """``sigma`` as everywhere, or a sequence with one for each part."""
        return ProductKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor | Sequence[float | Tensor]) -> HeatKernel:
        return ProductKernel(self, x0, sigma, validate_args=False)


class _FoldedKernel(_Folded, _Kernel):
    pass


# by (all are folded, all have kernels)
_PRODUCTS: dict[tuple[bool, ...], type[Product]] = {
    (False, False): type("_Plain", (Product,), {"__module__": __name__}),
    (True, False): _Folded,
    (False, True): _Kernel,
    (True, True): _FoldedKernel,
}


class ProductKernel(HeatKernel):
    """The parts' kernels side by side: logarithms of densities add, samples, targets and scores are joined."""

    domain: _Kernel

    def __init__(
        self,
        domain: _Kernel,
        x0: Tensor,
        sigma: float | Tensor | Sequence[float | Tensor],
        validate_args: bool | None = None,
    ):
        sigmas: Sequence[float | Tensor] = [sigma] * len(domain.domains)  # type: ignore[list-item]
        if isinstance(sigma, (tuple, list)):
            if len(sigma) != len(domain.domains):
                raise ValueError(
                    f"sigma: got {len(sigma)} values, expected one or {len(domain.domains)}, one for each part"
                )
            sigmas = [as_like(s, x0) for s in sigma]
        # the first σ stands for all where one is asked for; the parts check theirs and their points
        widest = torch.broadcast_shapes(*(as_like(s, x0).shape for s in sigmas))
        super().__init__(domain, x0, as_like(sigmas[0], x0).expand(widest), validate_args=False)
        self._validate = validate_args is not False
        build = "heat_kernel" if validate_args is not False else "unchecked_kernel"
        parts = zip(domain.domains, domain.split(x0), sigmas, strict=True)
        self.parts = [getattr(d, build)(part, s) for d, part, s in parts]

    def _sample(self, z: Tensor) -> Tensor:
        return self.domain.join(*(k._sample(v) for k, v in zip(self.parts, self.domain.split(z), strict=True)))

    @torch.no_grad()
    def sample_with_target(self, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        pairs = [kernel.sample_with_target(generator=generator) for kernel in self.parts]
        return self.domain.join(*(x for x, _ in pairs)), self.domain.join(*(target for _, target in pairs))

    def _log_prob(self, x: Tensor) -> Tensor:
        terms = [k._log_prob(part) for k, part in zip(self.parts, self.domain.split(x), strict=True)]
        return event_sum(torch.stack(torch.broadcast_tensors(*terms), -1), 1)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [k.log_prob_and_score(part) for k, part in zip(self.parts, self.domain.split(x), strict=True)]
        total = event_sum(torch.stack(torch.broadcast_tensors(*(log_prob for log_prob, _ in pairs)), -1), 1)
        return total, self.domain.join(*(score for _, score in pairs))

    def _score(self, x: Tensor) -> Tensor:
        return self.domain.join(*(k._score(part) for k, part in zip(self.parts, self.domain.split(x), strict=True)))
