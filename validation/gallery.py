"""What a domain looks like: a reflected path, its heat kernel at four noise levels, the score between the walls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Domain, KernelDomain
from ..domains.domain import uniform_law
from ..processes import SDE
from ..solvers import ReflectedEulerMaruyama, WhiteNoise, solve
from .pictures import _figure, _save

_PIXELS, _ARROWS, _STEPS = 160, 17, 1500


def domain_picture(
    domain: Domain, path: str | Path, *, x0: Tensor | None = None, sigmas: Sequence[float] | None = None
) -> Path:
    """Six panels in a row: Brownian motion reflected at the walls, p_σ(x|x0) at four σ, and the score at the third of them.

    Args:
        domain: with two coordinates, ``event_shape`` of two numbers in all. Where it has no kernel the densities are histograms of
            simulated paths, and the last panel shows distances from the walls with their inward normals.
        x0: ``[*event]``, the start; off the centre by default, so that walls are felt.
        sigmas: four noise levels; 0.08 to 0.64 widths by default.
        path: the file to write, e.g. ``"ball.png"``.
    """
    if math.prod(domain.event_shape) != 2:
        raise ValueError(f"domain_picture: got events of shape {domain.event_shape}, expected two coordinates to draw")
    low, high = _frame(domain)
    size = domain.width if domain.bounded else 1.0
    sigmas = [r * size for r in (0.08, 0.16, 0.32, 0.64)] if sigmas is None else list(sigmas)
    start = _start(domain, low, high) if x0 is None else x0.double().reshape(domain.event_shape)

    figure = _figure(15.0, 2.9)
    axes = figure.subplots(1, 6)
    walk = _walk(domain, start, size)
    axes[0].plot(walk[:, 0], walk[:, 1], linewidth=0.5)
    walls = "" if bool(domain.boundary_distance(start[None]).isinf().all()) else "reflected "
    axes[0].set_title(f"{walls}Brownian motion", fontsize=9)
    for panel, sigma in zip(axes[1:5], sigmas, strict=True):
        density = _density(domain, start, sigma, low, high)
        panel.imshow(density.T, origin="lower", extent=(*_ends(low, high, 0), *_ends(low, high, 1)), vmin=0.0)
        kind = "" if isinstance(domain, KernelDomain) else ", simulated"
        panel.set_title(f"p(x | x0), σ = {sigma:.2g}{kind}", fontsize=9)
    _field(axes[5], domain, start, sigmas[2], low, high)
    outline = _inside(domain, low, high)
    for panel in axes:
        if not bool(outline.all()):
            panel.contour(
                *(np.linspace(*_ends(low, high, i), _PIXELS) for i in (0, 1)),
                outline.T,
                [0.5],
                colors="k",
                linewidths=0.8,
            )
        panel.plot(*start.flatten().tolist(), "r+", markersize=6)
        panel.set_aspect("equal")
        panel.set_xlim(*_ends(low, high, 0))
        panel.set_ylim(*_ends(low, high, 1))
        panel.tick_params(labelsize=6)
    figure.suptitle(repr(domain), fontsize=10)
    return _save(figure, path, tight=True)


def _ends(low: Tensor, high: Tensor, axis: int) -> tuple[float, float]:
    return float(low[axis]), float(high[axis])


def _frame(domain: Domain) -> tuple[Tensor, Tensor]:
    """The box that is drawn: around the domain, or a part of it that has its walls in view."""
    if domain.bounded:
        x = uniform_law(domain).sample((20_000,), generator=torch.Generator().manual_seed(0))  # type: ignore[call-arg]
        x = x.double().reshape(-1, 2)
    else:
        corners = torch.tensor([[-1.0, -1.0], [2.0, 2.0]], dtype=torch.float64)
        x = domain.project(corners.reshape(2, *domain.event_shape)).reshape(2, 2)
    low, high = x.amin(0), x.amax(0)
    margin = 0.04 * (high - low).max()
    return low - margin, high + margin


def _start(domain: Domain, low: Tensor, high: Tensor) -> Tensor:
    """Between the middle and a wall."""
    corner = domain.project((low + 0.2 * (high - low)).reshape(domain.event_shape))
    middle = domain.project((0.5 * (low + high)).reshape(domain.event_shape))
    if domain.bounded:
        middle = uniform_law(domain).sample((2000,), generator=torch.Generator().manual_seed(0)).double().mean(0)  # type: ignore[call-arg]
    return domain.project(0.5 * (corner + middle))


def _walk(domain: Domain, start: Tensor, size: float) -> np.ndarray:
    motion = SDE(lambda x, t: torch.zeros_like(x), 1.0, domain)
    times = np.linspace(0, (0.8 * size) ** 2, _STEPS + 1)
    run = solve(motion, start[None], times, ReflectedEulerMaruyama(), noise=WhiteNoise(1), save="all")
    walk = run.trajectory[:, 0].reshape(-1, 2)  # type: ignore[index]
    # a step across the seam of a torus is not drawn
    jumps = (walk.diff(dim=0).abs().amax(1) > 0.5 * size).nonzero().flatten() + 1
    walk[jumps] = math.nan
    return walk.numpy()


def _grid(domain: Domain, low: Tensor, high: Tensor, count: int) -> Tensor:
    lines = [torch.linspace(*_ends(low, high, i), count, dtype=torch.float64) for i in (0, 1)]
    return torch.cartesian_prod(*lines).reshape(count, count, *domain.event_shape)


def _inside(domain: Domain, low: Tensor, high: Tensor) -> np.ndarray:
    return domain.contains(_grid(domain, low, high, _PIXELS)).double().numpy()


def _density(domain: Domain, start: Tensor, sigma: float, low: Tensor, high: Tensor) -> np.ndarray:
    """p(x | x0) on a grid, NaN outside."""
    if isinstance(domain, KernelDomain):
        grid = _grid(domain, low, high, _PIXELS)
        inside = domain.contains(grid)
        values = torch.full(inside.shape, math.nan, dtype=torch.float64)
        values[inside] = domain.heat_kernel(start, sigma).log_prob(grid[inside]).exp()
        return values.numpy()
    motion = SDE(lambda x, t: torch.zeros_like(x), 1.0, domain)
    x = start.float().expand(20_000, *domain.event_shape).contiguous()
    x = solve(motion, x, np.linspace(0, sigma**2, 41), ReflectedEulerMaruyama(), noise=WhiteNoise(0)).x.reshape(-1, 2)
    frame = [_ends(low, high, i) for i in (0, 1)]
    return np.histogram2d(x[:, 0].numpy(), x[:, 1].numpy(), bins=40, range=frame, density=True)[0]


def _field(panel: Any, domain: Domain, start: Tensor, sigma: float, low: Tensor, high: Tensor) -> None:
    """Arrows: the score, or where there is no kernel the inward normals over the distance from the walls."""
    grid = _grid(domain, low, high, _ARROWS)
    x = grid[domain.contains(grid)]
    at = x.reshape(-1, 2).T.numpy()
    if isinstance(domain, KernelDomain):
        arrows = domain.heat_kernel(start, sigma).score(x).reshape(-1, 2).T.numpy()
        panel.quiver(*at, *arrows, angles="xy", width=0.006)
        panel.set_title(f"score, σ = {sigma:.2g}", fontsize=9)
        return
    fine = _grid(domain, low, high, _PIXELS)
    distance = torch.where(domain.contains(fine), domain.boundary_distance(fine), math.nan)
    extent = (*_ends(low, high, 0), *_ends(low, high, 1))
    panel.imshow(distance.T.numpy(), origin="lower", extent=extent, cmap="Blues")
    panel.quiver(*at, *domain.inward_normal(x).reshape(-1, 2).T.numpy(), angles="xy", width=0.006, scale=30)
    panel.set_title("distance and inward normals", fontsize=9)
