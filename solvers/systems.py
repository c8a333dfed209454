r"""Linear systems of positive matrices that are too large to hold: conjugate gradients on products, and a preconditioner from columns."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..domains.tensors import event_sum, expand_right, values_are_readable

Map = Callable[[Tensor], Tensor]


def conjugate_gradients(
    apply: Map,
    y: Tensor,
    ndim: int,
    iterations: int,
    tolerance: float | None = None,
    *,
    precondition: Map | None = None,
    ask: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """(u, solved) with apply(u) = y, for a positive semidefinite map of ``[*batch, *shape]``, each sample by itself.

    A sample stops where its residual has fallen by ``tolerance`` (√ε·10⁻³ of the dtype unless told), or where the map turns out not to be
    positive, and keeps what it has; no sample depends on others. Which have come to the tolerance ``solved`` ``[*batch]`` says.

    Args:
        ndim: the number of dimensions of ``shape``.
        precondition: a positive map that comes near the inverse of ``apply``.
        ask: whether to look if all have stopped, so that the loop ends early. By default on the CPU alone, and not in compiled code:
            elsewhere asking stalls every step, and all iterations run, which changes nothing.
    """
    if ask is None:
        ask = y.device.type == "cpu" and values_are_readable(y)
    if tolerance is None:
        tolerance = 1e-3 * math.sqrt(torch.finfo(y.dtype).eps)
    u, residual = torch.zeros_like(y), y
    square = event_sum(y * y, ndim)
    goal, going = tolerance**2 * square, square > 0
    direction = y if precondition is None else precondition(y)
    # ⟨residual, preconditioned residual⟩, which falls along with the squared residual
    slope = square if precondition is None else event_sum(y * direction, ndim)
    for _ in range(iterations):
        if ask and not bool(going.any()):
            break
        image = apply(direction)
        bend = event_sum(direction * image, ndim)
        going = going & (bend > 0)
        step = expand_right(torch.where(going, slope / torch.where(going, bend, 1.0), 0.0), ndim)
        u, residual = u + step * direction, residual - step * image
        left = event_sum(residual * residual, ndim)
        next_one = residual if precondition is None else precondition(residual)
        after = left if precondition is None else event_sum(residual * next_one, ndim)
        ratio = torch.where(going, after / torch.where(going, slope, 1.0), 0.0)
        direction = torch.where(expand_right(going, ndim), next_one + expand_right(ratio, ndim) * direction, direction)
        slope, square = torch.where(going, after, slope), torch.where(going, left, square)
        going = going & (square > goal)
    return u, square <= goal


@torch.no_grad()
def pivoted_cholesky(
    column: Callable[[int], Tensor], diagonal: Tensor, rank: int, threshold: float
) -> tuple[Tensor, float]:
    """(F ``[r, n]``, left): FᵀF ≈ K for a positive semidefinite K ``[n, n]``, from r ≤ ``rank`` of its columns.

    Columns are drawn in proportion to what is left of the diagonal, until the largest of it, ``left``, is at most ``threshold``; the draws
    are the same at each call. Work is O(r²n). Chen, Epperly, Tropp & Webber 2023, alg. 2.1 (RPCholesky).

    Args:
        column: K's, by their index.
        diagonal: K's, ``[n]``.
    """
    rest, rank = diagonal.clone(), min(rank, len(diagonal))
    factor = rest.new_empty(rank, len(rest))
    draws = torch.rand(rank, dtype=rest.dtype, generator=torch.Generator().manual_seed(0)).tolist()
    for r, draw in enumerate(draws):
        if not float(rest.max()) > threshold:  # or NaN
            return factor[:r], float(rest.max())
        mass = rest.cumsum(0)
        pivot = min(int(torch.searchsorted(mass, draw * mass[-1], right=True)), len(rest) - 1)
        row = column(pivot) - factor[:r, pivot] @ factor[:r]
        factor[r] = row / rest[pivot].sqrt()
        rest = (rest - factor[r] ** 2).clamp(min=0.0)
        rest[pivot] = 0.0
    return factor, float(rest.max())


def shifted_inverse(factor: Tensor, shift: Tensor | float) -> Map:
    """v ``[*batch, n]`` → (FᵀF + shift·I)⁻¹ v for F ``[r, n]`` and a shift above 0, by a system of r (Woodbury's identity)."""
    inner = factor @ factor.mT
    inner.diagonal().add_(shift)
    root, _ = torch.linalg.cholesky_ex(inner)
    return lambda v: (v - torch.cholesky_solve(factor @ v.mT, root).mT @ factor) / shift
