"""Sums that integrate heat kernels over a domain to rounding, for domains of at most two dimensions (and disks)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..domains import Ball, Domain, RegularSimplex, Simplex, Torus

Rule = tuple[Tensor, Tensor]
_FAR = 1e7


def quadrature(domain: Domain, centre: Tensor, sigma: float) -> Rule | None:
    """Nodes ``[q, *event]`` and weights ``[q]``, float64, that integrate what varies over σ as the kernel about ``centre`` does.

    Gauss–Legendre sums on panels of 2σ: of boxes (half-lines and lines are cut where the kernel is below 1e-16) and of triangles
    (by Duffy's map); in polar coordinates on disks. None for other domains.
    """
    if isinstance(domain, Torus) and math.prod(domain.event_shape) <= 2:
        # cut opposite the centre, where the shortest way from it jumps
        halves = (domain.period / 2).flatten().tolist()
        ends = [(c - h, c + h) for c, h in zip(centre.flatten().tolist(), halves, strict=True)]
        return _shaped(domain, _box(ends, sigma))
    if isinstance(domain, (Simplex, RegularSimplex)) and domain.event_shape == (2,):
        corners = domain.from_probabilities(torch.eye(3, dtype=torch.float64))
        return _shaped(domain, _triangle(corners.numpy(), sigma))
    if isinstance(domain, Ball) and domain.event_shape == (2,):
        return _shaped(domain, _disk(domain.radius, sigma))
    if (bounds := box(domain)) is None:
        return None
    walls = zip(*(v.tolist() for v in bounds), centre.flatten().tolist(), strict=True)
    return _shaped(domain, _box([(max(low, c - 9 * sigma), min(high, c + 9 * sigma)) for low, high, c in walls], sigma))


def box(domain: Domain) -> Rule | None:
    """Bounds ``[d]`` (infinite where open) if the domain is a box of at most two dimensions."""
    dim, shape = math.prod(domain.event_shape), domain.event_shape
    if dim > 2:
        return None
    low, high = (domain.project(torch.full((1, *shape), s * _FAR, dtype=torch.float64)) for s in (-1, 1))
    choices = torch.cartesian_prod(*[torch.tensor([False, True])] * dim).reshape(-1, *shape)
    corners = torch.where(choices, high, low)
    # a disk holds the corners of a square, but reaches farther along its axes
    reach = domain.project(_FAR * torch.cat([torch.eye(dim), -torch.eye(dim)]).double().reshape(-1, *shape))
    fits = bool(((reach >= low) & (reach <= high)).all())
    if not fits or not bool(domain.contains(corners).all()) or bool((high <= low).any()):
        return None
    low, high = low.flatten(), high.flatten()
    return torch.where(low <= -_FAR, -math.inf, low), torch.where(high >= _FAR, math.inf, high)


def _shaped(domain: Domain, rule: tuple[np.ndarray, np.ndarray]) -> Rule:
    nodes, weights = rule
    return domain.project(torch.tensor(nodes).reshape(-1, *domain.event_shape)), torch.tensor(weights)


def _line(low: float, high: float, panel: float) -> tuple[np.ndarray, np.ndarray]:
    ends = np.linspace(low, high, max(1, math.ceil((high - low) / panel)) + 1)
    t, w = np.polynomial.legendre.leggauss(16)
    half = np.diff(ends)[:, None] / 2
    return ((ends[1:] + ends[:-1])[:, None] / 2 + half * t).ravel(), (half * w).ravel()


def _product(axes: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    nodes = np.stack([v.ravel() for v in np.meshgrid(*(a[0] for a in axes), indexing="ij")], -1)
    return nodes, np.prod([v.ravel() for v in np.meshgrid(*(a[1] for a in axes), indexing="ij")], 0)


def _box(ends: list[tuple[float, float]], sigma: float) -> tuple[np.ndarray, np.ndarray]:
    return _product([_line(low, high, 2 * sigma) for low, high in ends])


def _triangle(corners: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    side = max(float(np.linalg.norm(corners[i] - corners[i - 1])) for i in range(3))
    unit, weights = _product([_line(0.0, 1.0, 2 * sigma / side)] * 2)
    a, b = unit[:, :1], unit[:, 1:]
    u, v = corners[1] - corners[0], corners[2] - corners[0]
    return corners[0] + a * ((1 - b) * u + b * v), weights * a[:, 0] * abs(u[0] * v[1] - u[1] * v[0])


def _disk(radius: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    count = math.ceil(4 * math.pi * radius / sigma) + 16
    angle = 2 * math.pi * np.arange(count) / count
    polar, weights = _product([_line(0.0, radius, 2 * sigma), (angle, np.full(count, 2 * math.pi / count))])
    r, phi = polar.T
    return np.stack([r * np.cos(phi), r * np.sin(phi)], -1), weights * r
