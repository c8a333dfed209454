r"""Grids tuned to a score: where a fine solve says that few steps of a given solver lose least.

Along exact trajectories (a fine solve from a few starts) the error of *one* step from λ_i to λ_j of an exponential rule of order p is the
integral of what its polynomial leaves of the prediction,

.. math:: e_{ij} = \Big| \int_{λ_i}^{λ_j} k(λ)\,\big(P(λ) - \textstyle\sum_m L_m(λ) P(λ_i - m(λ_j - λ_i))\big)\, dλ \Big|,

with earlier readings as far back as the step is long. Carried to the end of the run, where a deviation of X shrinks by about
√((v + σ_end²)/(v + σ_j²)) (v the variance of the data), these are lengths of edges, and the cheapest path with n nodes is a grid.

The sum of local errors is not the error, though: the best of these grids are refined by a search over step lengths that *measures* the
error of the solver itself. Last, all candidates and the plain grids are judged by measured error on other starts; the best is what comes
out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from ..domains.tensors import event_flat, is_int
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
# the search: (places between which the factor of the step lengths is interpolated, its share of the solves), and a probe's length in ln
# of the factor
_SEARCH = ((3, 0.2), (6, 0.3), (12, 0.5))
_PROBE = 0.03
# grids from which it sets out, for there are local minima
_STARTS = 2


@torch.no_grad()
def tuned(
    process: Diffusion,
    n: int,
    score: Field,
    *,
    solver: Solver | None = None,
    candidates: int = 96,
    samples: int = 64,
    refine: int = 300,
    seed: int = 0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    condition: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """n levels on which ``solver`` is most accurate for this score: a dynamic programme, then a measured choice.

    Args:
        process, score, condition: as for :func:`carom.solvers.sample`.
        solver: a deterministic rule, ``ExponentialAdams(3)`` unless told; edges are measured for its form and order (order ≤ 3) if it is a
            multistep rule, and for data predictions of order 2 otherwise.
        candidates: levels among which the path is sought; the fine solve takes that many steps of order 4.
        samples: trajectories of the fine solve, half of them for the programme and the search and half to judge.
        refine: solves of n steps that the search may take; 0 leaves it out.
        sigma_min, sigma_max: the ends, by default the schedule's.
        dtype, device: of the states that the score is given: float32 for a network whose weights are.

    Costs about (candidates + 4) · samples evaluations, and n · samples/2 for each of the grids compared and each solve of the search, which
    reduces errors three- to thirtyfold where plain grids fit badly. Keep it with :func:`save_grid`.
    """
    solver = ExponentialAdams(3) if solver is None else solver
    if not isinstance(solver, Solver) or solver.stochastic or solver.adaptive:
        raise TypeError(f"solver: got {solver!r}, expected a deterministic rule with fixed steps, e.g. UniPC(3)")
    for name, value, least in (("candidates", candidates, 4), ("samples", samples, 2), ("refine", refine, 0)):
        if not is_int(value, least):
            raise ValueError(f"{name}: got {value!r}, expected an int of at least {least}")
    ends: dict[str, Any] = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    plain = [uniform_lambda(process, n, **ends), karras(process, n, **ends), polyexponential(process, n, 0.8, **ends)]
    if n <= 2:
        return plain[0]
    fine = uniform_lambda(process, max(candidates, 2 * n), **ends)
    equation = process.flow(score).bound(condition=condition)
    check_process(equation, solver)
    template = torch.empty((samples, *process.domain.event_shape), dtype=dtype, device=device)
    start = WhiteNoise(seed).open(template, template.dim() - 1).initial(process.prior(dtype, t=float(fine[0])))
    path = solve(equation, start, fine, ExponentialAdams(4), save="all").trajectory
    half = samples // 2
    costs = edge_lengths(process, score, solver, fine, path[:, :half], condition)  # type: ignore[index]
    found = [fine[shortest_path(costs**power, n)] for power in _POWERS]

    def gap(times: Tensor, of: slice) -> Tensor:
        goal = path[-1, of]  # type: ignore[index]
        return event_flat(solve(equation, start[of], times, solver).x - goal, goal.dim() - 1).double().cpu()

    def error(times: Tensor, of: slice) -> float:
        """ln of the geometric mean over samples, which no single one dominates."""
        return float(gap(times, of).norm(dim=-1).clamp_min(1e-300).log().mean())

    learnt, judged = slice(0, half), slice(half, None)
    if refine:
        best = sorted([*found, *plain], key=lambda times: error(times, learnt))[:_STARTS]
        found += [_refined(process, times, lambda times: gap(times, learnt), refine // _STARTS) for times in best]
    return min([*found, *plain], key=lambda times: error(times, judged))


def _refined(process: Diffusion, times: Tensor, gap: Callable[[Tensor], Tensor], solves: int) -> Tensor:
    """The grid with its steps in λ stretched by a factor that is piecewise linear over the steps, from coarse to fine; the ends stay.

    Least squares (trust region) on the errors ``gap(times)`` ``[samples, d]``, each sample's scaled so that its square is its length: a few
    that went another way shall not decide alone.
    """
    for knots, share in _SEARCH:
        times = _searched(process, times, gap, min(knots, len(times) - 1), int(share * solves))
    return times


def _searched(process: Diffusion, times: Tensor, gap: Callable[[Tensor], Tensor], knots: int, solves: int) -> Tensor:
    steps, at = -process.schedule.sigma(times).log().diff(), np.linspace(0, 1, len(times) - 1)

    def stretched(shape: np.ndarray) -> Tensor:
        longer = steps * torch.as_tensor(np.exp(np.interp(at, np.linspace(0, 1, knots), shape - 1)))
        inner = (longer.cumsum(0) / longer.sum())[:-1] * steps.sum()
        sigma = process.schedule.sigma(times[:1]) * (-inner).exp()
        return torch.cat([times[:1], process.schedule.time(sigma), times[-1:]])

    def residuals(shape: np.ndarray) -> np.ndarray:
        value = gap(stretched(shape))
        return (value / value.norm(dim=-1, keepdim=True).clamp_min(1e-300).sqrt()).flatten().numpy()

    # about 1, since probes are relative to what they change
    rounds = max(1, solves // (knots + 1))
    return stretched(least_squares(residuals, np.ones(knots), diff_step=_PROBE, max_nfev=rounds).x)


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
