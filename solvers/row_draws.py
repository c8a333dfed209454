"""Draws for a batch from one generator, or for each row from its own, so that a row has the same alone and in any batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..domains.domain import HeatKernel
from .loop import Seed, recipe
from .noise import SampleNoise, WhiteNoise, check_count, global_seed, mix, seeded

#: one for the batch, or one for each row of it
Generators = torch.Generator | list[torch.Generator]


def generators(seed: Seed, x: Tensor) -> Generators:
    """The generator of one seed, or those of one for each row of x ``[B, *event]``."""
    noise = recipe(seed, None)
    if isinstance(noise, WhiteNoise):
        return seeded(global_seed() if noise.seed is None else noise.seed)
    assert isinstance(noise, SampleNoise)
    check_count(noise.seeds, x, 1)
    # other numbers than those of probes, which the same seeds govern
    return [seeded(mix(s, -3)) for s in noise.seeds]


def shifts(count: int, generator: Generators) -> Tensor:
    """Uniform in (0, 1) for each row, float64 ``[count]``; from one generator one in each stratum of the batch."""
    if isinstance(generator, list):
        return torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generator])
    order = torch.randperm(count, generator=generator).double()
    return (order + torch.rand(count, generator=generator, dtype=torch.float64)) / max(1, count)


def normals(x: Tensor, generator: Generators) -> Tensor:
    """Unit normals like x."""
    if isinstance(generator, list):
        return torch.stack([normals(row, g) for row, g in zip(x, generator, strict=True)])
    return torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)


def draw(kernel: HeatKernel, generator: Generators | None, target: bool = False) -> tuple[Tensor, ...]:
    """(x,) or (x, target) of a kernel."""
    if isinstance(generator, list):
        rows = zip(kernel.x0.split(1), kernel.sigma.split(1), generator, strict=True)
        own: Callable[..., HeatKernel] = kernel.domain.unchecked_kernel
        return tuple(map(torch.cat, zip(*(draw(own(x0, s), g, target) for x0, s, g in rows), strict=True)))
    return kernel.sample_with_target(generator=generator) if target else (kernel.sample(generator=generator),)
