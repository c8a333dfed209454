r"""Noised states on any domain, with or without a heat kernel: what the objectives are evaluated at.

Gaussian steps are exact in the interior however large they are, so the only error is made at walls, and there only where these are
curved or meet at angles that do not tile: n steps :math:`x ← reflect(x, σ z / \sqrt n)` have a bias that falls with h² = σ²/n (weak
order 1 in h²). Steps are symmetric in their two ends, so the uniform law is kept exactly at any h.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...domains import Domain, FoldedDomain, KernelDomain, Product
from ...domains.tensors import as_like, check_positive, expand_right

#: The standard deviation of one reflected step, in units of the domain's width, that ``simulate`` does not exceed by itself.
STEP = 0.1
# σ in widths from which a walk is as good as uniform: in a convex set of diameter w what is left falls at least like e^{−π²σ²/2w²}.
_MIXED = 1.5


@torch.no_grad()
def simulate(
    domain: Domain,
    x0: Tensor,
    sigma: float | Tensor,
    *,
    steps: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A draw of :math:`x_σ`, Brownian motion from x0 reflected at the walls, after variance σ².

    Exact where the domain folds (``FoldedDomain``: the fold of x0 + σz) or has a heat kernel (``KernelDomain``, from its ``sigma_min``
    on); a :class:`Product` goes part by part. Elsewhere reflected steps, as many for each sample of the batch; see the module.

    Args:
        x0: ``[*batch, *event]`` inside the domain.
        sigma: above 0, broadcasts over the batch; each sample may have its own.
        steps: how many reflected steps, where they are needed; by default so many that none has a standard deviation above ``STEP``
            = 0.1 of the domain's width: 100 (σ/width)², for the largest σ, whose value is read (on a GPU, a synchronisation), and
            225 for all above 1.5 widths, where 2e-5 of x0 is left. At this size the slowest mode of the disk decays 0.6 % too fast;
            at half of it, in 4 times as many steps, 0.15 %.

    Returns x ``[*batch, *event]``. Raises ``ValueError`` for points outside, σ ≤ 0, steps < 1, and no steps where the width is infinite.
    """
    domain.check(x0, "x0")
    sigma = as_like(sigma, x0)
    check_positive(sigma, "sigma")
    if steps is not None and (int(steps) != steps or steps < 1):
        raise ValueError(f"steps: got {steps!r}, expected a whole number of at least 1, or None to have it chosen")
    return unchecked(domain, x0, sigma, generator, steps)


def unchecked(
    domain: Domain,
    x0: Tensor,
    sigma: Tensor,
    generator: torch.Generator | None = None,
    steps: int | None = None,
    largest: Callable[[], float] | None = None,
) -> Tensor:
    """The same for loops over values that were checked before; who can tell the ``largest`` σ spares its reading."""
    if isinstance(domain, FoldedDomain):
        return domain.fold(x0 + expand_right(sigma, len(domain.event_shape)) * normal(x0, sigma, domain, generator))[0]
    if isinstance(domain, Product):
        parts = zip(domain.domains, domain.split(x0), strict=True)
        return domain.join(*(unchecked(part, x, sigma, generator, steps, largest) for part, x in parts))
    if not isinstance(domain, KernelDomain):
        sigma = sigma.clamp(max=_MIXED * domain.width)
        if not steps:
            top = float(sigma.max()) if largest is None else min(largest(), _MIXED * domain.width)
            steps = steps_for(domain, top)
        return _walk(domain, x0, sigma, steps, generator)
    if not domain.sigma_min:
        return domain.unchecked_kernel(x0, sigma).sample(generator=generator)
    far = domain.unchecked_kernel(x0, sigma.clamp(min=domain.sigma_min)).sample(generator=generator)
    few = steps_for(domain, domain.sigma_min)
    near = _walk(domain, x0, sigma.clamp(max=domain.sigma_min), few, generator)
    return torch.where(expand_right(sigma >= domain.sigma_min, len(domain.event_shape)), far, near)


def steps_for(domain: Domain, sigma: float) -> int:
    """The least number of steps to reach σ of which none exceeds ``STEP`` of the width; refused where that is infinite."""
    if not math.isfinite(domain.width):
        raise ValueError(
            f"steps: got None on {domain!r}, which has neither fold nor kernel and no finite width, expected a number of reflected "
            "steps that are small beside the curvature of its walls: pass steps="
        )
    return max(1, math.ceil((sigma / (STEP * domain.width)) ** 2 - 1e-9))


def normal(x0: Tensor, sigma: Tensor, domain: Domain, generator: torch.Generator | None) -> Tensor:
    """Unit normals in the shape of x0 broadcast with σ, drawn on the generator's device."""
    shape = torch.broadcast_shapes(x0.shape, expand_right(sigma, len(domain.event_shape)).shape)
    device = x0.device if generator is None else generator.device
    return torch.randn(shape, dtype=x0.dtype, device=device, generator=generator).to(x0.device)


def _walk(domain: Domain, x0: Tensor, sigma: Tensor, steps: int, generator: torch.Generator | None) -> Tensor:
    increment = expand_right(sigma, len(domain.event_shape)) / math.sqrt(steps)
    x = x0.expand(torch.broadcast_shapes(x0.shape, increment.shape))
    for _ in range(steps):
        x = domain.reflect(x, increment * normal(x, sigma, domain, generator))
    return x
