"""All of R^d: no walls, and the Gaussian as heat kernel. Every unreflected diffusion model lives here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .domain import FoldedDomain, HeatKernel, KernelDomain, WithoutWalls
from .tensors import check_shape, event_flat, event_sum


class Euclidean(WithoutWalls, FoldedDomain, KernelDomain):
    """R^d with states of shape ``event_shape``: nothing reflects, nothing is projected.

    Args: event_shape: shape of one state, e.g. ``(3, 32, 32)``.
    """

    is_cone = True

    def __init__(self, event_shape: Sequence[int]):
        self.event_shape = check_shape(event_shape)

    def __repr__(self) -> str:
        return f"Euclidean({self.event_shape})"

    def config(self) -> dict[str, Any]:
        return {"type": "Euclidean", "event_shape": list(self.event_shape)}

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        return ~event_flat(x.isnan(), len(self.event_shape)).any(-1)

    def project(self, x: Tensor) -> Tensor:
        return x

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return u, lambda v: v

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return GaussianKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return GaussianKernel(self, x0, sigma, validate_args=False)


class GaussianKernel(HeatKernel):
    r"""N(x0, σ² I): :math:`\log p = -|x - x_0|^2 / 2σ^2 - \tfrac d2 \log 2πσ^2`, score :math:`(x_0 - x)/σ^2`."""

    def _sample(self, z: Tensor) -> Tensor:
        return self.x0 + self._sigma * z

    def _log_prob(self, x: Tensor) -> Tensor:
        dim = math.prod(self.domain.event_shape)
        distance = event_sum(((x - self.x0) / self._sigma) ** 2, len(self.domain.event_shape))
        return -0.5 * distance - dim * (self.sigma.log() + 0.5 * math.log(2 * math.pi))

    def _score(self, x: Tensor) -> Tensor:
        return (self.x0 - x) / self._sigma / self._sigma

    @torch.no_grad()
    def sample_with_target(self, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        # −z/σ rather than (x0 − x)/σ²: the difference has lost σz where |x0| ≫ σ
        z = self._noise(self._extended_shape(), generator)
        return self._sample(z), -z / self._sigma
