r"""Grids tuned to a score: where a fine solve says that few steps of a given solver lose least.

Along exact trajectories (a fine solve from a few starts) the error of *one* step from λ_i to λ_j of an exponential rule of order p is the
integral of what its polynomial leaves of the prediction,

.. math:: e_{ij} = \Big| \int_{λ_i}^{λ_j} k(λ)\,\big(P(λ) - \textstyle\sum_m L_m(λ) P(λ_i - m(λ_j - λ_i))\big)\, dλ \Big|,

with earlier readings as far back as the step is long. Carried to the end of the run, where a deviation of X shrinks by about
√((v + σ_end²)/(v + σ_j²)) (v the variance of the data), these are lengths of edges, and the cheapest path with n nodes is a grid. Its ends
count: a candidate is judged by the *measured* error of the solver itself on other starts, against the fine solve, beside the plain
grids; the best is what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains.tensors import event_flat
from ..processes import Diffusion
from ..processes.equations import Field
from .analytic import shortest_path
from .forms import carry, reading, weights
from .grids import karras, polyexponential, uniform_lambda
from .linear import check_process
from .loop import solve
from .multistep import ExponentialAdams, Multistep, finite_levels
from .noise import WhiteNoise
from .solver import Solver

# powers of the edge lengths that are tried: their sum weighs the worst steps more or less
_POWERS = (0.5, 1.0, 2.0)


@torch.no_grad()
def tuned(
    process: Diffusion,
    n: int,
    score: Field,
    *,
    solver: Solver | None = None,
    candidates: int = 96,
    samples: int = 32,
    seed: int = 0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    condition: Mapping[str, Any] | None = None,
) -> Tensor:
    """n levels on which ``solver`` is most accurate for this score: a dynamic programme, then a measured choice.

    Args:
        process, score, condition: as for :func:`carom.solvers.sample`.
        solver: a deterministic rule, ``ExponentialAdams(3)`` unless told; edges are measured for its form and order (order ≤ 3) if it is a
            multistep rule, and for data predictions of order 2 otherwise.
        candidates: levels among which the path is sought; the fine solve takes that many steps of order 4.
        samples: trajectories of the fine solve, half of them for the programme and half to judge.

    Costs about (candidates + 4) · samples evaluations, and n · samples/2 for each of the grids compared. Keep it with :func:`save_grid`.
    """
    solver = ExponentialAdams(3) if solver is None else solver
    if solver.stochastic or solver.adaptive:
        raise TypeError(f"solver: got {solver!r}, expected a deterministic rule with fixed steps")
    ends: dict[str, Any] = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    plain = [uniform_lambda(process, n, **ends), karras(process, n, **ends), polyexponential(process, n, 0.8, **ends)]
    if n <= 2:
        return plain[0]
    fine = uniform_lambda(process, max(candidates, 2 * n), **ends)
    equation = process.flow(score).bound(condition=condition)
    check_process(equation, solver)
    template = torch.empty((samples, *process.domain.event_shape), dtype=torch.float64)
    start = WhiteNoise(seed).open(template, template.dim() - 1).initial(process.prior(torch.float64, t=float(fine[0])))
    path = solve(equation, start, fine, ExponentialAdams(4), save="all").trajectory
    half = max(1, samples // 2)
    costs = edge_lengths(process, score, solver, fine, path[:, :half], condition)  # type: ignore[index]
    found = [fine[shortest_path(costs**power, n)] for power in _POWERS]
    goal, begin = path[-1, half:], start[half:]  # type: ignore[index]

    def error(times: Tensor) -> float:
        gap = event_flat(solve(equation, begin, times, solver).x - goal, goal.dim() - 1)
        return float((gap**2).mean(-1).sqrt().median()) if len(goal) else 0.0

    return min([*found, *plain], key=error)


def edge_lengths(
    process: Diffusion,
    score: Field,
    solver: Solver,
    times: Tensor,
    path: Tensor,
    condition: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """e_ij of the module's text in units of the end's spread, mean over samples; float64 ``[m, m]``, infinite for j ≤ i.

    Args: times ``[m]``; path: states at them ``[m, samples, *event]``.
    """
    form, order = (solver.form, min(solver.p, 3)) if isinstance(solver, Multistep) else (ExponentialAdams(2).form, 2)
    levels = finite_levels(process, times, solver)
    p, q, _, _ = reading(form, levels)
    predictions = []
    for i, t in enumerate(times.tolist()):
        value = score(path[i], torch.tensor(t, dtype=path.dtype, device=path.device), **(condition or {}))
        predictions.append(p[i] * path[i] + q[i] * value)
    known = torch.stack(predictions).flatten(2).double().cpu().numpy()  # [m, samples, d]
    clean = path[-1].flatten(1).double().cpu().numpy() / levels.scale[-1]
    variance = float(clean.var(0).mean()) if len(clean) > 1 else 1.0
    shrinks = np.sqrt((variance + levels.sigma[-1] ** 2) / (variance + levels.sigma**2)) / levels.scale
    count = len(times)
    costs = np.full((count, count), np.inf)
    lam = levels.lam
    for i in range(count - 1):
        for j in range(i + 1, count):
            h = lam[j] - lam[i]
            # earlier readings a step apart, no earlier than the first
            nodes = np.unique(np.maximum(lam[i] - h * np.arange(order), lam[0]))[::-1]
            start, end = levels[i : i + 1], levels[j : j + 1]
            taken = weights(form, nodes[None], start, end)[0]
            read = np.stack([_between(lam, known, at) for at in nodes])
            rule = carry(form, start, end)[0] * path[i].flatten(1).double().cpu().numpy() + np.tensordot(taken, read, 1)
            gap = rule - path[j].flatten(1).double().cpu().numpy()
            costs[i, j] = np.sqrt((gap**2).mean(-1)).mean() * shrinks[j]
    return costs


def _between(lam: np.ndarray, known: np.ndarray, at: float) -> np.ndarray:
    """Predictions at λ = at, by the cubic through the four nearest of a fine grid."""
    i = int(np.clip(np.searchsorted(lam, at) - 2, 0, len(lam) - 4))
    places = lam[i : i + 4]
    out = np.zeros_like(known[0])
    for k in range(4):
        others = np.delete(places, k)
        out += np.prod((at - others) / (places[k] - others)) * known[i + k]
    return out
