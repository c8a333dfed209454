"""The box around a bounded domain."""

from __future__ import annotations

import math

import torch

from .domain import Domain
from .hypercube import Hypercube
from .product import Product
from .simplex import Simplex
from .torus import Torus


def bounding_box(domain: Domain) -> Hypercube:
    """The smallest box around a bounded domain: as the domain states it, or from the points in which it touches far planes.

    A point far out along an axis projects to where the domain reaches farthest along it, to a relative 1e-8 on curved walls. No
    random numbers, for checkpoints must mean the same everywhere.
    """
    if isinstance(domain, Hypercube):
        return domain
    if isinstance(domain, Simplex):
        return Hypercube(domain.event_shape)
    if isinstance(domain, Torus):
        return Hypercube(domain.event_shape, 0.0, domain.period)
    if isinstance(domain, Product):
        boxes = [bounding_box(part) for part in domain.domains]
        lows, highs = [b.low.flatten() for b in boxes], [b.high.flatten() for b in boxes]
        return Hypercube(domain.event_shape, torch.cat(lows), torch.cat(highs))
    dim = math.prod(domain.event_shape)
    origin = domain.project(torch.zeros(domain.event_shape, dtype=torch.float64))
    low, high = [], []
    for axis in range(dim):
        far = torch.zeros(2, dim, dtype=torch.float64)
        far[:, axis] = 1e4 * domain.width * torch.tensor([-1.0, 1.0], dtype=torch.float64)
        ends = domain.project(origin + far.reshape(2, *domain.event_shape)).reshape(2, dim)[:, axis]
        low.append(float(ends[0]))
        high.append(float(ends[1]))
    shape = domain.event_shape
    return Hypercube(shape, torch.tensor(low).double().reshape(shape), torch.tensor(high).double().reshape(shape))
