"""Editing: data noised part of the way and sampled down again, and the ways between two data through their codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import check_event, event_sum, expand_right, is_int, number
from ..processes import Diffusion, Wall
from ..processes.equations import Field
from .checks import as_state, check_generation, check_process_and_score, check_solver_type, check_times
from .encoding import encode
from .loop import Seed, descend, recipe, solve
from .noise import Noise
from .solution import Solution
from .solver import Solver


@torch.no_grad()
def edit(
    process: Diffusion,
    score: Field,
    solver: Solver,
    times: Tensor | np.ndarray | Sequence[float],
    x0: Tensor | np.ndarray,
    *,
    t: float | None = None,
    strength: float | None = None,
    seed: Seed = None,
    noise: Noise | None = None,
    **options: Any,
) -> Solution:
    """Image to image: x0 noised to a level t < 1 by the forward process, and sampled down from there (SDEdit).

    The higher t, the more is renewed; E‖x − x0‖² grows with it and what the score finds unlikely in x0 goes. With a conditional or a
    guided score it is led on the way down: with :class:`carom.scores.Translation` this is EGSDE.

    Args:
        process, score, solver, times: as for :func:`carom.solvers.sample`; any rule.
        x0: ``[*batch, *event]`` inside the domain.
        t: the time to start from, times[-1] < t ≤ times[0]; the run goes over t and what lies below it on the grid. Or
        strength: in (0, 1], the share of the grid's steps that is taken, at least one; diffusers' word. Exactly one of the two.
        seed, noise: an int for the batch, or one int per sample, or a recipe; one open source serves the start and the way down.
        options: condition, wall, save, callback, progress, denoise as for ``sample``.

    Source: Meng et al. 2022 (SDEdit), alg. 1; the start is a draw of the domain's own kernel, so that it lies between its walls.
    """
    check_process_and_score(process, score)
    check_solver_type(solver)
    grid = _from(check_times(times), t, strength)
    check_generation(process, grid, score, solver)
    x = as_state(x0)
    process.domain.check(x, "x0")
    source = recipe(seed, noise).open(x, len(process.domain.event_shape))
    start = source.given(lambda row: process.transition(row, float(grid[0])), x)
    return descend(process, score, solver, grid, start, source, **options)


def _from(grid: Tensor, t: float | None, strength: float | None) -> Tensor:
    """The part of a grid that a run from t, or of this strength, goes over."""
    if (t is None) == (strength is None):
        raise TypeError(f"edit: got t = {t} and strength = {strength}, expected exactly one of them")
    if t is None:
        share = number(strength, "strength", low=0.0, high=1.0, open_low=True)  # type: ignore[arg-type]
        return grid[len(grid) - 1 - max(1, round(share * (len(grid) - 1))) :] if len(grid) > 1 else grid
    low, high = float(grid[-1]), float(grid[0])
    if not low < t <= high:
        raise ValueError(f"t: got {t:g}, expected a time on the grid's way, above {low:g} and up to {high:g}")
    return torch.cat([torch.tensor([t], dtype=grid.dtype), grid[grid < t * (1 - 1e-12)]])


@torch.no_grad()
def interpolate(
    process: Diffusion,
    score: Field,
    solver: Solver,
    times: Tensor | np.ndarray | Sequence[float],
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    n: int,
    *,
    condition: Mapping[str, Any] | None = None,
    wall: Wall | None = None,
) -> Solution:
    """n states from a to b, ends included, through their codes: encode both, go from code to code, and run the flow down again.

    On Euclidean domains the way is spherical: codes are near the sphere of radius √n·std, where almost all the mass of the prior is, and a
    chord would cut through what the flow has never seen. On domains with walls it is straight: the prior there is uniform on a convex set,
    in which no radius is typical and a chord stays inside, as an arc need not.

    Args:
        process, score, solver, times, condition, wall: as for :func:`carom.solvers.encode`; a deterministic rule.
        a, b: data of one shape ``[*batch, *event]`` inside the domain.
        n: ≥ 2.

    ``.x`` of the result is ``[n, *batch, *event]`` in data coordinates; its ends are the round trips of a and b.
    Source: Song, Meng & Ermon 2021, app. D.5 (spherical interpolation of codes).
    """
    if not is_int(n, 2):
        raise ValueError(f"n: got {n!r}, expected an int of at least 2: both ends and what is between")
    x, y = as_state(a), as_state(b)
    if x.shape != y.shape:
        raise ValueError(f"b: got shape {tuple(y.shape)}, expected that of a, {tuple(x.shape)}")
    check_event(x, process.domain.event_shape, "a")
    grid = check_times(times)
    first, last = (encode(process, score, solver, grid, v, condition=condition, wall=wall).x for v in (x, y))
    shares = expand_right(torch.linspace(0, 1, n, dtype=x.dtype, device=x.device), x.dim())
    if isinstance(process.domain, Euclidean):
        between = _arc(first, last, shares, len(process.domain.event_shape))
    else:
        between = torch.lerp(first, last, shares)
    down = solve(process.flow(score), between, grid, solver, condition=condition, wall=wall)
    return replace(down, x=down.x / process.event_level(grid[-1]).scale.to(down.x))


def _arc(a: Tensor, b: Tensor, share: Tensor, ndim: int) -> Tensor:
    """sin((1 − u)θ)/sin θ · a + sin(uθ)/sin θ · b with θ the angle between the codes; the chord where they point the same way or
    in opposite ones, where the arc is none or any."""
    norms = event_sum(a * a, ndim).sqrt() * event_sum(b * b, ndim).sqrt()
    cosine = expand_right(event_sum(a * b, ndim) / norms, ndim)
    theta = cosine.clamp(-1, 1).arccos()
    sine = theta.sin()
    plain = ~(sine > 1e-3)  # also where a code is 0
    safe = torch.where(plain, 1.0, sine)
    arc = ((1 - share) * theta).sin() / safe * a + (share * theta).sin() / safe * b
    return torch.where(plain, torch.lerp(a, b, share), arc)
