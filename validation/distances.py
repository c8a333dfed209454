r"""Distances between two samples, each with a standard error, so that a difference can be told from noise.

Samples are ``[n, *event]`` tensors or arrays of floats; the event is flattened, the arithmetic is float64, and memory is bounded by
working in blocks of at most 2²² numbers. The standard errors answer "how far may the number be from the distance of the two *laws*":

* spread: the delete-a-group jackknife over samples (energy distance: over single samples, in closed form);
* directions: the Monte Carlo error over random projections;
* bias: the sliced distance and the Fréchet distance of two samples of one law are not 0; the excess, estimated from halves of
  each sample, is part of their standard error. (The energy distance is unbiased, and so may fall a little below 0.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK = 1 << 22  # numbers per block


class Distance(NamedTuple):
    """A distance and its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


def sliced_wasserstein(x: Any, y: Any, *, projections: int = 256, seed: int = 0, groups: int = 20) -> Distance:
    r"""The sliced 2-Wasserstein distance :math:`\big(E_θ W_2^2(θ·X, θ·Y)\big)^{1/2}`, θ uniform on the sphere (Bonneel et al. 2015).

    In one dimension W₂ is the L² distance of quantile functions, exact for samples of any two sizes.

    Args:
        x, y: samples ``[n, *event]`` and ``[m, *event]``, n, m ≥ 4.
        projections: number of directions (one is enough in one dimension, and one is used there).
        seed: of the directions and of the split into groups.
        groups: of the jackknife, at most half as many as samples.

    Standard error: root of jackknife² + directions² + bias². N(0, I) and N(μ, I) in d dimensions are |μ|/√d apart.
    """
    x, y = _pair(x, y, at_least=4)
    groups = min(groups, len(x) // 2, len(y) // 2)
    generator = torch.Generator().manual_seed(seed)
    x, y = (v[torch.randperm(len(v), generator=generator)] for v in (x, y))
    dim = x.shape[1]
    directions = torch.randn(dim, 1 if dim == 1 else projections, dtype=torch.float64, generator=generator)
    directions = directions / directions.norm(dim=0)

    full, jackknife, halves = [], [], []
    for block in directions.split(max(1, _BLOCK // (len(x) + len(y))), dim=1):
        u, v = (x @ block).T, (y @ block).T  # [directions, n]
        full.append(_wasserstein_squared(u, v))
        jackknife.append(
            torch.stack([_wasserstein_squared(_without(u, g, groups), _without(v, g, groups)) for g in range(groups)])
        )
        halves.append(
            0.25 * (_wasserstein_squared(u[:, ::2], u[:, 1::2]) + _wasserstein_squared(v[:, ::2], v[:, 1::2]))
        )
    squares = torch.cat(full)
    value = math.sqrt(float(squares.mean()))
    replicas = torch.cat(jackknife, 1).mean(1).sqrt()
    # halves of one sample are four times as far apart (squared) as the sample is from its law, on average
    bias = value - math.sqrt(max(value**2 - float(torch.cat(halves).mean()), 0.0))
    count = squares.numel()
    direction_error = float(squares.std()) / math.sqrt(count) / (2 * value) if count > 1 and value > 0 else 0.0
    return Distance(value, math.hypot(_jackknife_error(replicas), direction_error, bias))


def energy_distance(x: Any, y: Any) -> Distance:
    r"""The energy distance :math:`2E|X - Y| - E|X - X'| - E|Y - Y'|` (Székely & Rizzo 2013): 0 only for equal laws.

    Args: x, y: samples ``[n, *event]`` and ``[m, *event]`` of at least 3.

    Estimated without bias (a U-statistic), so the value may fall below 0 by about its standard error, which is the jackknife over
    single samples: :math:`\mathrm{var}_i(2a_i - 2b_i)/n` and its mate for y, :math:`a_i` the mean distance of :math:`x_i`
    from y and :math:`b_i` from the rest of x. (scipy's ``energy_distance`` is the root of the biased value, in one dimension.)
    """
    x, y = _pair(x, y, at_least=3)
    n, m = len(x), len(y)
    across_x, across_y = torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    within_x, within_y = torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    for rows in torch.arange(n).split(max(1, _BLOCK // max(n, m))):
        distance = torch.cdist(x[rows], y)
        across_x[rows] = distance.mean(1)
        across_y += distance.sum(0) / n
        within_x[rows] = _without_self(torch.cdist(x[rows], x), rows)
    for rows in torch.arange(m).split(max(1, _BLOCK // m)):
        within_y[rows] = _without_self(torch.cdist(y[rows], y), rows)
    value = 2 * across_x.mean() - within_x.mean() - within_y.mean()
    variance = (2 * (across_x - within_x)).var() / n + (2 * (across_y - within_y)).var() / m
    return Distance(float(value), math.sqrt(float(variance)))


def frechet_distance(
    x: Any, y: Any, features: Callable[[Tensor], Tensor] | None = None, *, groups: int = 20
) -> Distance:
    r"""The Fréchet distance :math:`|μ_x - μ_y|^2 + \mathrm{tr}\big(C_x + C_y - 2 (C_x C_y)^{1/2}\big)` of features (Heusel et al. 2017).

    Args:
        x, y: samples ``[n, *event]`` and ``[m, *event]``, n, m ≥ 4; in no particular order.
        features: samples → ``[n, k]``; the flattened event if ``None``. With a pretrained Inception network this is FID.
        groups: of the jackknife, at most half as many as samples.

    Standard error: root of jackknife² + bias².
    """
    if features is not None:
        x, y = features(torch.as_tensor(x)), features(torch.as_tensor(y))
    x, y = _pair(x, y, at_least=4)
    groups = min(groups, len(x) // 2, len(y) // 2)
    value = _frechet(x, y)
    replicas = torch.tensor([_frechet(_without(x.T, g, groups).T, _without(y.T, g, groups).T) for g in range(groups)])
    bias = 0.25 * sum(_frechet(v[::2], v[1::2]) for v in (x, y))
    return Distance(value, math.hypot(_jackknife_error(replicas.double()), min(bias, value)))


def _pair(x: Any, y: Any, at_least: int) -> tuple[Tensor, Tensor]:
    """Both samples flattened, in float64 on the CPU, about one common centre."""
    samples = []
    for value, name in ((x, "x"), (y, "y")):
        sample = torch.as_tensor(value).detach().to("cpu")
        if not sample.dtype.is_floating_point or sample.dim() == 0:
            raise TypeError(f"{name}: got {sample.dtype} of shape {tuple(sample.shape)}, expected floats [n, *event]")
        if len(sample) < at_least:
            raise ValueError(f"{name}: got {len(sample)} samples, expected at least {at_least}")
        if not bool(sample.isfinite().all()):
            raise ValueError(f"{name}: got NaN or infinite values; leave out samples that failed: x[solution.ok]")
        samples.append(sample.to(torch.float64).reshape(len(sample), -1))
    first, second = samples
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"got events of {first.shape[1]} and {second.shape[1]} numbers, expected the same event shape")
    centre = first.mean(0)
    return first - centre, second - centre


def _wasserstein_squared(u: Tensor, v: Tensor) -> Tensor:
    """W₂² row by row: ``[r, n], [r, m] -> [r]``, by the quantile functions on their common steps."""
    u, v = u.sort(-1).values, v.sort(-1).values
    n, m = u.shape[-1], v.shape[-1]
    if n == m:
        return ((u - v) ** 2).mean(-1)
    # the steps of both quantile functions in units of 1/(nm), exact integers
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    weights = (ends - starts).to(torch.float64) / (n * m)
    return (weights * (u[:, starts // m] - v[:, starts // n]) ** 2).sum(-1)


def _without(u: Tensor, group: int, groups: int) -> Tensor:
    """All columns but those of one group."""
    return u[:, torch.arange(u.shape[1]) % groups != group]


def _without_self(distance: Tensor, rows: Tensor) -> Tensor:
    distance[torch.arange(len(rows)), rows] = 0.0
    return distance.sum(1) / (distance.shape[1] - 1)


def _jackknife_error(replicas: Tensor) -> float:
    return math.sqrt((len(replicas) - 1) * float(replicas.var(correction=0)))


def _frechet(x: Tensor, y: Tensor) -> float:
    cx, cy = (torch.cov(v.T).reshape(v.shape[1], v.shape[1]) for v in (x, y))
    values, vectors = torch.linalg.eigh(cx)
    root = vectors * values.clamp(min=0).sqrt()
    # tr (C_x C_y)^{1/2} by the symmetric matrix of the same eigenvalues
    cross = torch.linalg.eigvalsh(root.T @ cy @ root).clamp(min=0).sqrt().sum()
    return max(float(((x.mean(0) - y.mean(0)) ** 2).sum() + cx.trace() + cy.trace() - 2 * cross), 0.0)
