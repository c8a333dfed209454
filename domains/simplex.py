r"""The probability simplex in cumulative coordinates: the one simplex whose heat kernel is exact in any dimension.

The state of a probability vector p is :math:`y_i = p_1 + … + p_i`, so that :math:`0 ≤ y_1 ≤ … ≤ y_{K-1} ≤ 1`. This simplex is an alcove:
its walls are mirrors of :math:`y_i ↔ y_{i+1}` and of the interval's ends, and their images tile space. Brownian motion reflected in it is
K − 1 independent particles reflected on [0, 1] whose labels are forgotten, hence

* forward sample: sort(fold(y_0 + σz)), reflection likewise;
* kernel: :math:`p_\sigma(y|y_0) = \operatorname{perm}[p_1(y_i|y_{0j})]` with the interval kernel p_1, all terms positive;
* target of score matching at any size: the interval score of the particle that landed in place i, whose mean given y and y_0 is the score;
* stationary law: uniform, which is Dirichlet(1, …, 1) in p.

The permanent is taken relative to its largest term. The Gaussian part :math:`y_i y_{0j}/σ^2` of the exponents is reduced by potentials
of rows and columns, which every permutation meets alike, to

.. math:: R_{ij} = \tfrac1{σ^2} \sum_{k=i}^{j-1} (y_i - t_k)(y_{0,k+1} - y_{0,k}) ≤ 0\ (j > i),\qquad t_k = \tfrac12(y_k + y_{k+1}),

and likewise for j < i: sums of products of gaps, in which nothing cancels, with R_ii = 0. So the sorted matching has weight 1, weights lie
between 0 and about 4, and their products neither overflow nor lose what counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .constants import OnDevice
from .domain import FoldedDomain, HeatKernel, KernelDomain, Uniform
from .interval import interval_detail, interval_score
from .permanent import MAX_ROWS, permanent, permanent_and_row_means, subset_layers
from .probabilities import check_probabilities
from .tensors import as_like, check_shape, event_flat, event_sum, values_are_readable


class Simplex(FoldedDomain, KernelDomain):
    """Probability vectors over ``categories``, one at each position of ``shape``, as cumulative sums ``[*shape, categories − 1]``.

    The order of categories matters: neighbours share walls of their own, and noise on y moves mass between neighbours. It suits ordered
    categories and any number of them; :class:`RegularSimplex` treats all alike, but has a kernel for 2 and 3 only.

    Args:
        categories: K ≥ 2.
        shape: of positions, e.g. ``(length,)`` for sequences; ``()`` for one vector.

    ``log_prob`` and ``score`` of the kernel are exact up to 13 categories (time doubles with each) and refused beyond;
    ``sample`` and ``sample_with_target`` are exact at any size, in O(K log K).
    """

    def __init__(self, categories: int, shape: Sequence[int] = ()):
        self.categories = check_categories("Simplex", categories)
        self.shape = check_shape(shape, "shape")
        self.event_shape = (*self.shape, self.categories - 1)
        #: tables of the permanent, () where there are too many categories for it
        self._layers = OnDevice(subset_layers(self.categories - 1) if self.categories - 1 <= MAX_ROWS else ())

    def __repr__(self) -> str:
        return f"Simplex({self.categories}{f', {self.shape}' if self.shape else ''})"

    def config(self) -> dict[str, Any]:
        return {"type": "Simplex", "categories": self.categories, "shape": list(self.shape)}

    @property
    def width(self) -> float:
        return 1.0

    @property
    def inradius(self) -> float:
        """The radius of the largest ball inside: y_1 = r, y_{i+1} − y_i = √2 r, 1 − y_{K−1} = r."""
        return 1 / (2 + math.sqrt(2) * (self.categories - 2))

    def from_probabilities(self, p: Tensor) -> Tensor:
        """The states of probability vectors ``[*batch, *shape, K]``; zeros and ones are allowed.

        Sums are taken in float64. A probability below eps of p's dtype is lost next to the others: to_probabilities gives p back
        to K·eps, absolute. Raises ``ValueError`` for entries below 0 and for sums that are not 1.
        """
        check_probabilities(p, (*self.shape, self.categories))
        return p.double().cumsum(-1)[..., :-1].clamp(max=1.0).to(p.dtype)

    def to_probabilities(self, x: Tensor) -> Tensor:
        """The probability vectors ``[*batch, *shape, K]`` of states: the gaps. Refuses points outside."""
        self.check(x)
        return torch.cat([x[..., :1], x.diff(dim=-1), 1 - x[..., -1:]], -1)

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        # the sorted vector nearest to x in the largest coordinate lies half the worst inversion away
        inversion = x.cummax(-1).values - x
        inside = (x >= -atol) & (x <= 1 + atol) & (inversion <= 2 * atol)
        return event_flat(inside, len(self.event_shape)).all(-1)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point: isotonic regression, then the ends clipped."""
        return isotonic(x).clamp(0.0, 1.0)

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        folded, flipped = _fold_unit(u)
        x, order = folded.sort(dim=-1, stable=True)

        def back(v: Tensor) -> Tensor:
            unsorted = torch.empty_like(v).scatter(-1, order.expand(v.shape), v)
            return torch.where(flipped, -unsorted, unsorted)

        return x, back

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        """Sorted uniforms: Dirichlet(1, …, 1) in the probabilities."""

        def draw(
            shape: torch.Size, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
        ) -> Tensor:
            u = torch.rand(shape + self.event_shape, generator=generator, dtype=dtype, device=device)
            return u.sort(dim=-1).values

        return Uniform(self, draw, -math.prod(self.shape) * math.lgamma(self.categories), dtype)

    def boundary_distance(self, x: Tensor) -> Tensor:
        return event_flat(_distances(x), len(self.event_shape)).amin(-1)

    def inward_normal(self, x: Tensor) -> Tensor:
        flat = event_flat(_distances(x), len(self.event_shape))
        nearest = torch.zeros_like(flat).scatter(-1, flat.argmin(-1, keepdim=True), 1.0)
        return _push(nearest.reshape(*x.shape[:-1], self.categories))

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        """Along the normals of all K walls at once, as in ``facets``; their Gram matrix is tridiagonal."""
        s = (_distances(x) / as_like(width, x)).clamp(0, 1)
        force = _solve_walls(s, (1 - s) * _along(vector))
        return vector - _push(force)

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return SimplexKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return SimplexKernel(self, x0, sigma, validate_args=False)


class SimplexKernel(HeatKernel):
    """The law of sorted reflected particles; see the module."""

    domain: Simplex

    @torch.no_grad()
    def sample_with_target(self, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        u = self.x0 + self._sigma * self._noise(self._extended_shape(), generator)
        folded, _ = _fold_unit(u)
        target = interval_score(folded, self.x0, self._sigma, 0.0, 1.0)
        x, order = folded.sort(dim=-1, stable=True)
        return x, target.gather(-1, order)

    def _log_prob(self, x: Tensor) -> Tensor:
        reference, weights, _ = self._matrices(x)
        return self._total(reference, permanent(weights, self.domain._layers(x.device)))

    def _score(self, x: Tensor) -> Tensor:
        _, weights, scores = self._matrices(x)
        return permanent_and_row_means(weights, scores, self.domain._layers(x.device))[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        reference, weights, scores = self._matrices(x)
        total, means = permanent_and_row_means(weights, scores, self.domain._layers(x.device))
        return self._total(reference, total), means

    def _total(self, reference: Tensor, total: Tensor) -> Tensor:
        return event_sum(event_sum(reference, 1) + total.log(), len(self.domain.shape))

    def _matrices(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log weight of the sorted matching ``[…, n]``, relative weights ``[…, n, n]``, interval scores ``[…, n, n]``)."""
        if self.domain.categories - 1 > MAX_ROWS:
            raise ValueError(
                f"log_prob and score: got {self.domain.categories} categories, expected at most {MAX_ROWS + 1}, for their time "
                "doubles with each; train with sample_with_target, which is exact at any size"
            )
        x, x0, sigma = torch.broadcast_tensors(x, self.x0, self._sigma)
        sigma = sigma[..., :1, None]
        reference, excess, scores = interval_detail(x[..., :, None], x0[..., None, :], sigma, 0.0, 1.0)
        weights = (excess + _reduced(x / sigma[..., 0], x0 / sigma[..., 0])).exp()
        return reference.diagonal(dim1=-2, dim2=-1), weights, scores


def _fold_unit(u: Tensor) -> tuple[Tensor, Tensor]:
    """The triangle wave onto [0, 1], and whether it falls at u; points inside come back to the bit."""
    phase, inside = u.remainder(2.0), (u >= 0) & (u <= 1)
    return torch.where(inside, u, 1 - (phase - 1).abs()), (phase > 1) & ~inside


def _reduced(y: Tensor, y0: Tensor) -> Tensor:
    """R of the module docstring, for y and y0 in units of σ: ``[…, n, n]``."""
    n = y.shape[-1]
    if n == 1:
        return torch.zeros_like(y).unsqueeze(-1)
    # y_i − t_k as the mean of two differences of one sign
    above = y.unsqueeze(-1) - y.unsqueeze(-2)
    product = 0.5 * (above[..., :, :-1] + above[..., :, 1:]) * y0.diff(dim=-1).unsqueeze(-2)
    right, left = product.triu(), (-product).tril(-1)
    edge = torch.zeros_like(product[..., :1])
    return torch.cat([edge, right.cumsum(-1)], -1) + torch.cat([left.flip(-1).cumsum(-1).flip(-1), edge], -1)


def check_categories(name: str, categories: int) -> int:
    """K as an int, or an error."""
    if isinstance(categories, bool) or not isinstance(categories, (int, np.integer)) or categories < 2:
        kind = ValueError if isinstance(categories, (int, float, np.number)) else TypeError
        raise kind(f"{name}: got {categories!r} categories, expected a whole number of at least 2")
    return int(categories)


# Longest rows whose n² numbers each are spent to keep an accelerator busy.
_SHORT = 64


def isotonic(x: Tensor) -> Tensor:
    """The non-decreasing vectors nearest to x, along its last dimension; rows that are sorted come back to the bit.

    Neighbouring blocks that violate the order are pooled, all runs of all rows at once, until none does. Where values cannot be
    read (compiled, vmapped), or short rows lie on an accelerator, which would be waited for in each round of pooling, the min–max formula
    max_{a ≤ i} min_{b ≥ i} mean(x_a … x_b), which takes n² memory.
    """
    away = x.device.type != "cpu" and x.shape[-1] <= _SHORT
    return _min_max(x) if away or not values_are_readable(x) else _pool(x)


def _pool(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x
    bad = (rows.diff(dim=-1) < 0).any(-1)
    if not bool(bad.any()):
        return x
    values = mean = rows[bad]
    block = torch.arange(values.shape[-1], device=x.device).expand(values.shape)
    while True:
        # a run of falling block means is constant in the solution: its blocks become one
        starts = (block.diff(dim=-1) != 0) & (mean.diff(dim=-1) >= 0)
        merged = torch.nn.functional.pad(starts.cumsum(-1), (1, 0))
        if torch.equal(merged, block):
            break
        block = merged
        total = torch.zeros_like(values).scatter_add(-1, block, values)
        count = torch.zeros_like(values).scatter_add(-1, block, torch.ones_like(values))
        mean = (total / count.clamp(min=1)).gather(-1, block)
    out = rows.clone()
    out[bad] = mean
    return out.reshape(x.shape)


def _min_max(x: Tensor) -> Tensor:
    n = x.shape[-1]
    index = torch.arange(n, device=x.device)
    length = (index[None, :] - index[:, None] + 1).clamp(min=1)
    # sums of x_a … x_b from a on, so that a block of one element is that element
    sums = x.unsqueeze(-2).expand(*x.shape, n).triu().cumsum(-1)
    mean = torch.where(index[None, :] >= index[:, None], sums / length, math.inf)
    least = mean.flip(-1).cummin(-1).values.flip(-1)
    least = torch.where(index[None, :] >= index[:, None], least, -math.inf)
    pooled = least.cummax(-2).values.diagonal(dim1=-2, dim2=-1)
    sorted_already = (x.diff(dim=-1) >= 0).all(-1, keepdim=True)
    return torch.where(sorted_already, x, pooled)


_HALF_ROOT = math.sqrt(0.5)


def _distances(x: Tensor) -> Tensor:
    """From the K walls y_1 = 0, y_i = y_{i+1}, y_{K−1} = 1, whose mirrors are at right angles or at 60° or 45°."""
    return torch.cat([x[..., :1], x.diff(dim=-1) * _HALF_ROOT, 1 - x[..., -1:]], -1)


def _along(vector: Tensor) -> Tensor:
    """N·v: the components along the walls' inward unit normals, ``[…, K]``."""
    return torch.cat([vector[..., :1], vector.diff(dim=-1) * _HALF_ROOT, -vector[..., -1:]], -1)


def _push(force: Tensor) -> Tensor:
    """Nᵀ·λ: the sum of forces along the normals, ``[…, K − 1]``."""
    inner = force[..., 1:-1] * _HALF_ROOT
    left = torch.cat([force[..., :1], inner], -1)
    right = torch.cat([inner, force[..., -1:]], -1)
    return left - right


def _solve_walls(s: Tensor, right: Tensor) -> Tensor:
    """λ of (s + (1 − s) N Nᵀ) λ = right, by elimination along the chain of walls: neighbours meet at cosine −½, the ends at −√½;
    with two categories the two walls face each other."""
    last = s.shape[-1] - 1
    cosines = [-_HALF_ROOT if i in (0, last - 1) else -0.5 for i in range(last)] if last > 1 else [-1.0]
    free = 1 - s
    tiny = torch.finfo(s.dtype).eps
    diagonal, values = [s[..., 0] + free[..., 0] + tiny], [right[..., 0]]
    for i in range(1, last + 1):
        factor = free[..., i] * cosines[i - 1] / diagonal[-1]
        diagonal.append(s[..., i] + free[..., i] + tiny - factor * free[..., i - 1] * cosines[i - 1])
        values.append(right[..., i] - factor * values[-1])
    out = [values[-1] / diagonal[-1]]
    for i in range(last - 1, -1, -1):
        out.append((values[i] - free[..., i] * cosines[i] * out[-1]) / diagonal[i])
    return torch.stack(out[::-1], -1)
