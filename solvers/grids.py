"""Time grids: where the steps go. Each takes a process and the number of noise levels n and returns n strictly monotone
times, float64 on the CPU, from the noisiest (σ_max) down to σ_min > 0.

n levels are n − 1 steps; with the last denoising evaluation of :func:`carom.solvers.sample` a first-order solver then costs
n evaluations. n = 1 is the noisiest level alone: one denoise. ``sigma_min`` and ``sigma_max`` default to the schedule's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..domains.tensors import number
from ..processes import Diffusion


def uniform(process: Diffusion, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Tensor:
    """Equal steps in t."""
    first, last = process.schedule.time(_ends(process, n, sigma_min, sigma_max))
    return _strict(process, first + _fractions(n) * (last - first))


def quadratic(process: Diffusion, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None) -> Tensor:
    """Equal steps in √t (Song, Meng & Ermon 2021, §D.3)."""
    first, last = process.schedule.time(_ends(process, n, sigma_min, sigma_max)).sqrt()
    return _strict(process, (first + _fractions(n) * (last - first)) ** 2)


def uniform_lambda(
    process: Diffusion, n: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """Equal steps in λ = −ln σ (Lu et al. 2022)."""
    first, last = _ends(process, n, sigma_min, sigma_max).log()
    return _strict(process, process.schedule.time((first + _fractions(n) * (last - first)).exp()))


def karras(
    process: Diffusion, n: int, rho: float = 7.0, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """Equal steps in σ^{1/ρ} (Karras et al. 2022, eq. 5, without its last σ = 0)."""
    power = 1 / number(rho, "rho", low=0.0, open_low=True)
    first, last = _ends(process, n, sigma_min, sigma_max) ** power
    return _strict(process, process.schedule.time((first + _fractions(n) * (last - first)) ** (1 / power)))


def _fractions(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


def _ends(process: Diffusion, n: int, sigma_min: float | None, sigma_max: float | None) -> Tensor:
    """(σ_max, σ_min) of the grid, checked."""
    if not isinstance(process, Diffusion):
        raise TypeError(f"process: got {type(process).__name__}, expected a Diffusion(domain, schedule)")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n: got {n!r}, expected an int ≥ 1: the number of noise levels")
    schedule = process.schedule
    high = schedule.sigma_max if sigma_max is None else number(sigma_max, "sigma_max", low=0.0, open_low=True)
    low = schedule.sigma_min if sigma_min is None else number(sigma_min, "sigma_min", low=0.0, open_low=True)
    if high <= schedule.sigma_max:
        # σ(t_max) falls short of VE's σ_max by the rounding of σ² − σ_min²; a grid starts at t_max
        high = min(high, float(schedule.sigma(torch.tensor(schedule.t_max, dtype=torch.float64))))
    if low >= high:
        raise ValueError(f"sigma_min: got {low:g}, expected less than sigma_max = {high:g}")
    return torch.tensor([high, low], dtype=torch.float64)


def _strict(process: Diffusion, times: Tensor) -> Tensor:
    n, t_max = len(times), process.schedule.t_max
    # the inverse of σ may overshoot t_max by rounding
    times = torch.where((times > t_max) & (times <= t_max * (1 + 1e-12)), t_max, times)
    if n > 1 and not bool((times.diff() < 0).all()):
        raise ValueError(f"grid: {n} levels do not fit between the ends in float64; take fewer levels or a wider range")
    return times
