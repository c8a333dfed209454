r"""Symmetric maps of which only products are known, seen on the space that a vector spans with its images.

k products with M make an orthonormal basis V of :math:`y, My, \dots, M^{k-1}y` in which M is a tridiagonal T: :math:`T = V^T M V`. Then
f(M) y ≈ ‖y‖ V f(T) e₁ for any function f of the eigenvalues, exactly once the space is exhausted. For f(λ) = 1/λ and M positive that is
the method of conjugate gradients; others, such as one that takes negative eigenvalues for 0, cost nothing more.

Source: Golub & Van Loan 2013, § 10.1, with full reorthogonalisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..domains.tensors import event_sum


def lanczos(apply: Callable[[Tensor], Tensor], y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(V ``[*batch, k, m]`` by rows, T ``[*batch, k, k]``) of a symmetric map of ``[*batch, m]``; k = min(steps, m) products.

    Each sample by itself, to the bit; nothing is asked of values. Once a sample's space is exhausted its further rows of V, and of T,
    are 0.
    """
    steps = min(steps, y.shape[-1])
    basis, diagonal, beside = _unit(y, 0.0)[0].unsqueeze(-2), [], []
    for k in range(steps):
        row = basis[..., k, :]
        image = apply(row)
        diagonal.append(event_sum(row * image, 1))
        if k + 1 == steps:
            break
        # what is no more than the rounding of the image is no new direction
        least = 100 * torch.finfo(y.dtype).eps * event_sum(image * image, 1).sqrt()
        for _ in range(2):  # the first round leaves rounding of the size of what it removes
            shares = event_sum(basis * image.unsqueeze(-2), 1)
            image = image - event_sum((basis * shares.unsqueeze(-1)).mT, 1)
        following, length = _unit(image, least)
        beside.append(length)
        basis = torch.cat([basis, following.unsqueeze(-2)], -2)
    matrix = torch.diag_embed(torch.stack(diagonal, -1))
    if beside:
        off = torch.diag_embed(torch.stack(beside, -1), 1)
        matrix = matrix + off + off.mT
    return basis, matrix


def _unit(v: Tensor, least: float | Tensor) -> tuple[Tensor, Tensor]:
    """v over its length, and that; zeros where it is not above ``least``."""
    length = event_sum(v * v, 1).sqrt()
    there = ~(length <= least)  # NaN goes on as NaN
    unit = v / torch.where(there, length, 1.0).unsqueeze(-1)
    return torch.where(there.unsqueeze(-1), unit, 0.0), torch.where(there, length, 0.0)
