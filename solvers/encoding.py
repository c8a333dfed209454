"""Encoding: the probability flow run from data to noise, by any deterministic solver on the reversed grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains.tensors import event_sum
from ..processes import Diffusion, ProbabilityFlow, Wall
from ..processes.equations import Field
from .checks import as_state, check_generation, check_times
from .loop import solve
from .solution import Solution
from .solver import Solver


@torch.no_grad()
def encode(
    process: Diffusion,
    score: Field,
    solver: Solver,
    times: Tensor | np.ndarray | Sequence[float],
    x0: Tensor | np.ndarray,
    *,
    condition: Mapping[str, Any] | None = None,
    wall: Wall | None = None,
    **options: Any,
) -> Solution:
    """The codes of data: the flow from times[-1] up to times[0], the grid that generation would run down.

    Args:
        process, score, solver: as for :func:`carom.solvers.sample`; the solver must take a probability flow.
        times: a decreasing grid, as for ``sample``; it is reversed here.
        x0: data ``[*batch, *event]`` inside the domain, taken for states at times[-1] after scaling by s: what is left out is the flow
            below σ_min, of order σ_min².
        condition, wall, options: as for :func:`carom.solvers.solve`.

    ``.x`` of the result are the codes, states at times[0]; ``.x / process.schedule.std(times[0])`` are unit normals for data from the model
    where σ is large, the same under every schedule that ends at the same σ.
    """
    if not isinstance(solver, Solver) or ProbabilityFlow not in solver.accepts:
        raise TypeError(
            f"solver: got {solver!r}, expected a deterministic rule that takes a probability flow, e.g. UniPC(3)"
        )
    grid = check_times(times)
    check_generation(process, grid)
    x = as_state(x0)
    process.domain.check(x, "x0")
    start = process.event_level(grid[-1]).scale.to(x) * x
    return solve(process.flow(score), start, grid.flip(0), solver, condition=condition, wall=wall, **options)


@dataclass(frozen=True)
class RoundTrip:
    """Data, its code, and what comes back.

    Attributes: code: the solution of :func:`encode`; back: data again ``[*batch, *event]``; error: root mean square of back − x0 over each
    event ``[*batch]``.
    """

    code: Solution
    back: Tensor
    error: Tensor


@torch.no_grad()
def round_trip(
    process: Diffusion,
    score: Field,
    solver: Solver,
    times: Tensor | np.ndarray | Sequence[float],
    x0: Tensor | np.ndarray,
    *,
    condition: Mapping[str, Any] | None = None,
    wall: Wall | None = None,
) -> RoundTrip:
    """Encode and decode on the same grid, and report how far each sample comes back from where it was; arguments of :func:`encode`.

    The error falls with the order of the solver; what is left at many steps is rounding, enlarged by the flow.
    """
    grid = check_times(times)
    code = encode(process, score, solver, grid, x0, condition=condition, wall=wall)
    back = solve(process.flow(score), code.x, grid, solver, condition=condition, wall=wall).x
    x = as_state(x0).to(back)
    back = back / process.event_level(grid[-1]).scale.to(back)
    ndim = len(process.domain.event_shape)
    error = (
        event_sum((back - x).double() ** 2, ndim) / max(1, x[(0,) * (x.dim() - ndim)].numel() if x.numel() else 1)
    ).sqrt()
    return RoundTrip(code, back, error)
