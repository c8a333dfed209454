"""Stored values, such as pixels from 0 to 255, as points whose densities are asked: mapped, dequantised, with the volumes kept."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..domains.tensors import batch_shape, check_event, event_sum
from ..domains.transforms import DataTransform, affine_values
from ..processes import Diffusion
from .noise import mix, seeded


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
    process: Diffusion, values: Tensor, transform: DataTransform | None, t: Tensor, seed: Any
) -> tuple[Tensor, Tensor]:
    """(states at time t, log |det ∂(states)/∂(values)| ``[*batch]`` in float64); values in bins are redrawn within them."""
    domain = process.domain
    ndim = len(domain.event_shape)
    check_event(values, domain.event_shape, "x" if transform is None else "values")
    batch = batch_shape(values, domain.event_shape)
    if transform is None:
        domain.check(values, "x")
        return values, torch.zeros(batch, dtype=torch.float64, device=values.device)
    points = transform.forward(values)
    if not values.dtype.is_floating_point:
        points = points.to(torch.get_default_dtype())
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
    rows = points.flatten(0, batch_ndim - 1) if batch_ndim else points[None]
    drawn = [transform.dequantise(x, seeded(mix(s, -2), points.device)) for x, s in zip(rows, seed, strict=True)]
    return torch.stack(drawn).reshape(points.shape)
