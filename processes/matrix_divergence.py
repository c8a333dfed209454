"""The divergence of a matrix that depends on the state, which Itô's drift needs where noise does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def matrix_divergence(matrix: Callable[[Tensor], Tensor], x: Tensor, event_shape: Sequence[int]) -> Tensor:
    r""":math:`(\nabla·D)_i = \sum_j ∂_j D_{ij}` at x ``[*batch, *event]``: x's shape, by one forward derivative for each coordinate.

    Args: matrix: D(x), matrices ``[*batch, d, d]``, or the diagonal of diagonal ones in x's shape; no row looks at another.
    """
    total = torch.zeros_like(x)
    for j, axis in enumerate(torch.eye(math.prod(event_shape), dtype=x.dtype, device=x.device)):
        along = axis.reshape(tuple(event_shape)).expand_as(x)
        _, change, *_ = torch.func.jvp(matrix, (x,), (along,))
        total = total + (change[..., j] if change.dim() > x.dim() else torch.where(along != 0, change, 0.0))
    return total
