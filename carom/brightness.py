"""Samples as pictures: from 0, black, to 1, white, as the data were stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .domains import Euclidean, Hypercube
from .scores.neural import AffineValues, NeuralScore


def check_images(event_shape: Sequence[int], option: str) -> None:
    """Refuse events that are no pictures."""
    if len(event_shape) != 3 or event_shape[0] not in (1, 3):
        advice = "; write the values with --out samples.npy" if option.startswith("--out") else ""
        raise ValueError(
            f"{option}: got samples of shape {tuple(event_shape)}, expected images [C, H, W] with C = 1 or 3 for a picture{advice}"
        )


def brightness(score: NeuralScore, x: Tensor) -> Tensor:
    """``[n, C, H, W]`` in [0, 1]; NaN where a sample is. Stored levels are met exactly; without them the walls are black and white, in
    the open −1 and 1."""
    transform, domain = None if score.stored is None else score.stored.transform, score.process.domain
    if isinstance(transform, AffineValues) and transform.bins is not None:
        level = transform.quantise(x.nan_to_num(0.0)).to(x.dtype) / (transform.bins - 1)
        return torch.where(x.isnan(), x, level)
    if isinstance(domain, Hypercube) and domain.bounded:
        low, high = domain.low.to(x), domain.high.to(x)
        return ((x - low) / (high - low)).clamp(0, 1)
    return ((x + 1) / 2).clamp(0, 1) if isinstance(domain, Euclidean) else x.clamp(0, 1)
