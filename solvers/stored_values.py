"""Stored values, such as pixels from 0 to 255, as points whose densities are asked: mapped, dequantised, with the volumes kept."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..domains import Domain, Euclidean, Hypercube
from ..domains.tensors import batch_shape, check_event, event_sum
from ..domains.transforms import DataTransform, affine_values
from ..processes import Diffusion
from .noise import check_count, checked_seeds, mix, seeded


def check_bins(process: Diffusion, transform: DataTransform | None, bins: int | None) -> DataTransform | None:
    """The map of stored values; refuses bins that are not its own."""
    if transform is None:
        return None if bins is None else affine_values(process.domain, bins)
    if not isinstance(transform, DataTransform):
        raise TypeError(f"transform: got {type(transform).__name__}, expected a DataTransform, e.g. view.transform")
    if bins is not None and bins != transform.bins:
        raise ValueError(
            f"bins: got {bins}, expected {transform.bins}, those of {transform!r}; leave bins out, or give the transform that the model "
            "was trained with"
        )
    return transform


def stored_points(
    process: Diffusion, values: Tensor, transform: DataTransform | None, t: Tensor | None, seed: Any
) -> tuple[Tensor, Tensor]:
    """(states at time t, log |det ∂(states)/∂(values)| ``[*batch]`` in float64); values in bins are redrawn within them. Without t the
    points themselves, which stand at t = 0, not redrawn."""
    domain = process.domain
    ndim = len(domain.event_shape)
    if transform is not None and not values.dtype.is_floating_point:
        values = values.to(torch.get_default_dtype())
    check_event(values, domain.event_shape, "x" if transform is None else "values")
    batch = batch_shape(values, domain.event_shape)
    if transform is None:
        domain.check(values, "x")
        return values, torch.zeros(batch, dtype=torch.float64, device=values.device)
    points = transform.forward(values)
    if t is None:
        return points, event_sum(transform.log_volume(points), ndim)
    if transform.bins is not None:
        points = _dequantised(transform, points, seed, len(batch))
    scale = process.event_level(t).scale.to(points.device)
    volume = transform.log_volume(points) + scale.log()
    return scale.to(points) * points, event_sum(volume, ndim)


def _dequantised(transform: Any, points: Tensor, seed: Any, batch_ndim: int) -> Tensor:
    """Points redrawn within their bins, each sample by its own seed where there is one for each."""
    if seed is None or isinstance(seed, Integral):
        generator = None if seed is None else seeded(mix(int(seed), -2), points.device)
        return transform.dequantise(points, generator)
    seeds = checked_seeds(seed)
    check_count(seeds, points, batch_ndim)
    rows = points.flatten(0, batch_ndim - 1) if batch_ndim else points[None]
    drawn = [transform.dequantise(x, seeded(mix(s, -2), points.device)) for x, s in zip(rows, seeds, strict=True)]
    return torch.stack(drawn).reshape(points.shape) if drawn else points


def log_chances(domain: Domain, transform: DataTransform, x: Tensor, sigma: float) -> Tensor:
    """Σ_i log Σ_u q_σ(x_i | u) over the levels u of each coordinate, q the kernel of its line or interval: ``[*batch]``, float64.

    Levels farther than 12σ add nothing, and are left out.
    """
    assert transform.bins is not None
    ndim, top = len(domain.event_shape), transform.bins - 1
    first, last = (transform.forward(torch.full(domain.event_shape, v, dtype=torch.float64)) for v in (0.0, float(top)))
    spacing = (last - first) / top
    count = min(transform.bins, 2 * math.ceil(12 * sigma / float(spacing.min())) + 3)
    low, width = _intervals(domain)
    line = Euclidean(()) if low is None else Hypercube(())
    out = []
    for part in x.split(max(1, (1 << 22) // (count * max(1, math.prod(domain.event_shape))))):
        at = part.double()
        nearest = ((at - first.to(at)) / spacing.to(at)).round()
        start = (nearest - count // 2).clamp(0, transform.bins - count)
        levels = first.to(at)[..., None] + (start[..., None] + torch.arange(count).to(at)) * spacing.to(at)[..., None]
        if low is None:
            log_q = line.unchecked_kernel(levels, at.new_tensor(sigma)).log_prob(at[..., None])
        else:
            unit, w = low.to(at)[..., None], width.to(at)[..., None]
            kernel = line.unchecked_kernel(((levels - unit) / w).clamp(0, 1), sigma / w)
            log_q = kernel.log_prob(((at[..., None] - unit) / w).clamp(0, 1)) - w.log()
        out.append(event_sum(log_q.logsumexp(-1), ndim))
    return torch.cat(out)


def _intervals(domain: Domain) -> tuple[Tensor | None, Any]:
    """(lower walls, widths) of each coordinate; None on a line."""
    if isinstance(domain, Euclidean):
        return None, None
    if isinstance(domain, Hypercube) and domain.bounded:
        return domain.low.expand(domain.event_shape), (domain.high - domain.low).expand(domain.event_shape)
    raise TypeError(
        f"bins: got whole numbers on {domain!r}, expected a Euclidean domain or a bounded Hypercube; dequantise on others: log_likelihood"
    )
