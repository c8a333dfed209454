"""Checks of probability vectors, shared by the simplices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .tensors import check_event, values_are_readable


def check_probabilities(p: Tensor, event_shape: Sequence[int]) -> None:
    """Refuse what is not ``[*batch, *event_shape]`` with entries ≥ 0 whose last dimension sums to 1, up to rounding."""
    check_event(p, event_shape, "p")
    if not values_are_readable(p):
        return
    if not bool((p >= 0).all()):
        bad = p[~(p >= 0)][0].item()
        raise ValueError(
            f"p: got an entry of {bad:.6g}, expected probabilities ≥ 0; clamp them and divide by their sum"
        )
    total = p.double().sum(-1)
    # each entry may carry half an ulp of its own, and a softmax a few
    room = 8 * p.shape[-1] * torch.finfo(p.dtype).eps
    if not bool(((total - 1).abs() <= room).all()):
        worst = total.flatten()[(total - 1).abs().flatten().argmax()].item()
        raise ValueError(
            f"p: got a probability vector that sums to {worst:.9g}, expected 1 (within {room:.2g}); divide by its sum"
        )
