r"""First-passage times: when a diffusion first leaves its domain, with the crossings between grid points that a grid does not see.

Given both ends x, y of a step inside a flat wall at the distances d(x), d(y), and noise of variance v = c²h along its normal, the path
between has crossed it with probability :math:`e^{-2 d(x) d(y) / v}`, and where it has, first at the time τ with

.. math:: \frac{τ}{h - τ} \sim \text{InverseGaussian}\Big(\text{mean } \frac{d(x)}{|d(y)|},\ \text{shape } \frac{d(x)^2}{v}\Big).

Exact for constant coefficients and one wall (Brownian bridges; several walls are taken as independent, which is exponentially right in
1/h); without the correction hitting times are late by O(√h).

Sources: Gobet 2000 (killed diffusions); Michael, Schucany & Haas 1976 for the inverse Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..domains.facets import facet_distances
from ..domains.tensors import batch_shape
from ..processes import Equation, Wall
from .checks import as_state, check_problem, check_times
from .loop import Draws, Seed, recipe
from .noise import Noise, Source
from .solver import Record, Solver, bind


@dataclass(frozen=True)
class FirstPassage:
    """Attributes: time: when each sample left, NaN where it did not within the grid, float64 ``[*batch]``; wall: through which wall, −1
    for none; x: the state at the end of the step before it left, or at the end of the grid."""

    time: Tensor
    wall: Tensor
    x: Tensor

    @property
    def left(self) -> Tensor:
        return self.wall >= 0


@torch.no_grad()
def first_passage(
    equation: Equation,
    x: Tensor | np.ndarray,
    times: Tensor | np.ndarray | Sequence[float],
    solver: Solver,
    *,
    seed: Seed = None,
    noise: Noise | None = None,
    bridge: bool = True,
) -> FirstPassage:
    """Run ``equation`` until each sample leaves ``equation.domain``, whose flat walls (``domain.facets()``) here absorb.

    Args:
        equation: an SDE with isotropic noise of the coefficient c(t) and ``diffusion(x, t)``; on a Polytope, Hypercube, Orthant, ….
        x: starts ``[*batch, *event]`` inside.
        times, solver: as for :func:`carom.solvers.solve`; a rule with one field evaluation and one draw, e.g. ``EulerMaruyama()``.
        seed, noise: as for :func:`carom.solvers.sample`.
        bridge: whether to correct for crossings between grid points.
    """
    x, grid = as_state(x), check_times(times)
    check_problem(equation, x, grid, solver)
    if not equation.stochastic:
        raise TypeError(
            f"equation: got {type(equation).__name__}, expected a stochastic one, e.g. SDE(drift, diffusion, domain)"
        )
    equation = equation.bound(Wall())
    records = solver.plan(equation, grid)
    if solver.adaptive or any(record.draws != 1 or record.evaluations != 1 for record in records):
        raise TypeError(
            f"solver: got {solver!r}, expected a rule of one evaluation and one draw a step, e.g. EulerMaruyama()"
        )
    normals, offsets = equation.domain.facets()
    ndim = len(equation.domain.event_shape)
    source = recipe(seed, noise).open(x, ndim)
    batch = batch_shape(x, equation.domain.event_shape)
    normals, offsets = normals.to(x.device), offsets.to(x.device)

    def distances(u: Tensor) -> Tensor:
        return facet_distances(u.double().reshape(*batch, -1), normals, offsets)

    when = torch.full(batch, torch.nan, dtype=torch.float64, device=x.device)
    through = torch.full(batch, -1, dtype=torch.int64, device=x.device)
    for record, bound in zip(records, bind(records, x), strict=True):
        y, _ = solver.step(equation, x, bound, (), Draws(source, record))
        h = abs(record.s - record.t)
        c = float(torch.as_tensor(equation.coefficients(record.t)[2]))
        std = c * equation.diagonal(x, bound.t).double().reshape(*batch, -1)
        variance = h * (std.unsqueeze(-2) ** 2 * normals**2).sum(-1)
        before, after = distances(x), distances(y)
        # one uniform and one inverse Gaussian for each wall, made of normals of this step's streams beyond the rule's own
        u, z, w = _for_walls(source, record, before)
        crossing = (
            (-2 * before * after.clamp(min=0) / variance).clamp(max=0).exp() if bridge else torch.zeros_like(before)
        )
        crossed = (after <= 0) | (u < crossing)
        share = _hitting_share(before, after.abs(), variance, z, w) if bridge else torch.ones_like(before)
        first, wall = torch.where(crossed, share, torch.inf).min(-1)
        leaves = crossed.any(-1) & (through < 0)
        when = torch.where(leaves, record.t + (record.s - record.t) * first, when)
        through = torch.where(leaves, wall, through)
        stays = (through < 0).reshape(*batch, *(1,) * ndim)
        x = torch.where(stays, y, x)
    return FirstPassage(when, through, x)


def _for_walls(source: Source, record: Record, walls: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(uniform, normal, uniform) for each wall, float64 ``[*batch, m]``, from streams beyond the rule's own."""
    batch, count = walls.shape[:-1], walls.shape[-1]
    each = max(1, math.prod(source.event))
    blocks = -(-count // each)
    streams = range(record.draws, record.draws + 3 * blocks)
    normals = [source(record.t, record.s, stream=k).double().reshape(*batch, -1) for k in streams]
    u, z, w = (torch.cat(normals[i * blocks : (i + 1) * blocks], -1)[..., :count] for i in range(3))
    return torch.special.ndtr(u), z, torch.special.ndtr(w)


def _hitting_share(before: Tensor, after: Tensor, variance: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """τ/h of a bridge that crosses: Y/(1 + Y) with Y inverse Gaussian, by the root of its quadratic and a choice of two."""
    mean, shape = before / after.clamp(min=1e-300), before**2 / variance
    y = mean * z * z / shape
    # the smaller root in the form that does not cancel: mean · 2/(2 + y + √(4y + y²))
    root = mean * 2 / (2 + y + (4 * y + y * y).sqrt())
    value = torch.where(w <= mean / (mean + root), root, mean * mean / root)
    return torch.where(value.isinf(), 1.0, value / (1 + value))
