"""Time grids: where the steps go. Each takes a process and the number of noise levels n and returns n strictly monotone
times, float64 on the CPU, from the noisiest (σ_max) down to σ_min > 0.

n levels are n − 1 steps; with the last denoising evaluation of :func:`carom.solvers.sample` a first-order solver then costs
n evaluations. n = 1 is the noisiest level alone: one denoise. ``sigma_min`` and ``sigma_max`` default to the schedule's.

==================  =============================================================  ==========================================
grid                equal steps in                                                 use
==================  =============================================================  ==========================================
``uniform``         t                                                              SDEs, DDPM
``quadratic``       √t                                                             DDIM on small images
``uniform_lambda``  ln σ                                                           DPM-Solver and its kin; high orders
``karras``          σ^{1/ρ}, ρ = 7                                                 EDM's; a good default for networks
``polyexponential`` (ln σ)^{1/ρ}                                                   between the two above; ρ = 1 is uniform_lambda
``beta``            quantiles of a Beta law, in t or σ                             more steps at both ends
``align``           a table of σ's, ln σ interpolated                              published schedules ("Align Your Steps")
``discrete``        levels of a table: leading, trailing or linspace               networks trained on N levels, parity
``iddpm``           levels u_j of the improved DDPM                                EDM's iDDPM column
``optimal``         least-cost path by Analytic-DPM's statistics                   ancestral sampling (in ``analytic``)
``tuned``           least error of a solver on a score                             few steps of one model (in ``tuning``)
==================  =============================================================  ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import is_int, number
from ..processes import Diffusion, Discrete


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


def polyexponential(
    process: Diffusion, n: int, rho: float = 1.0, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Tensor:
    """ln σ = ln σ_min + (1 − i/(n − 1))^ρ (ln σ_max − ln σ_min): ρ = 1 is ``uniform_lambda``, larger ρ puts more steps near σ_min
    (Crowson 2022)."""
    power = number(rho, "rho", low=0.0, open_low=True)
    first, last = _ends(process, n, sigma_min, sigma_max).log()
    return _strict(process, process.schedule.time((last + (1 - _fractions(n)) ** power * (first - last)).exp()))


def beta(
    process: Diffusion,
    n: int,
    a: float = 0.6,
    b: float = 0.6,
    *,
    clock: str = "t",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """Quantiles of the Beta(a, b) law between the ends, in t (Lee et al. 2024) or in σ (``clock="sigma"``, as diffusers does)."""
    from scipy.stats import beta as law

    if clock not in ("t", "sigma"):
        raise ValueError(f"clock: got {clock!r}, expected 't' or 'sigma'")
    a, b = number(a, "a", low=0.0, open_low=True), number(b, "b", low=0.0, open_low=True)
    ends = _ends(process, n, sigma_min, sigma_max)
    high, low = process.schedule.time(ends) if clock == "t" else ends
    places = low + torch.as_tensor(law.ppf(1 - _fractions(n).numpy(), a, b)) * (high - low)
    return _strict(process, places if clock == "t" else process.schedule.time(places))


#: noise levels of Sabour et al. 2024 (Align Your Steps), tables 2–4
ALIGNED = {
    "stable-diffusion": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "stable-diffusion-xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "stable-video-diffusion": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def align(process: Diffusion, n: int, table: str | Sequence[float] = "stable-diffusion") -> Tensor:
    """n levels along a table of noise levels σ, ln σ interpolated over its index (Sabour et al. 2024, §4).

    Args: table: "stable-diffusion", "stable-diffusion-xl", "stable-video-diffusion", or decreasing σ's of your own, within the process's.
    """
    if isinstance(table, str) and table not in ALIGNED:
        raise ValueError(f"table: got {table!r}, expected one of {', '.join(ALIGNED)} or a list of noise levels")
    sigmas = torch.as_tensor(ALIGNED[table] if isinstance(table, str) else table, dtype=torch.float64)
    if sigmas.dim() != 1 or len(sigmas) < 2 or not bool((sigmas.diff() < 0).all()) or float(sigmas[-1]) <= 0:
        raise ValueError(
            f"table: got {sigmas.tolist()}, expected at least two noise levels, strictly decreasing, above 0"
        )
    _ends(process, n, None, None)
    place = _fractions(n) * (len(sigmas) - 1)
    i = place.floor().clamp(max=len(sigmas) - 2).long()
    logs = sigmas.log()
    return _at_sigmas(process, (logs[i] + (place - i) * (logs[i + 1] - logs[i])).exp())


def discrete(process: Diffusion, n: int, spacing: str = "leading", *, offset: int = 0) -> Tensor:
    """n of the N levels of a :class:`~carom.processes.Discrete` schedule, as diffusers spaces its timesteps: level i + 1 for label i.

    * "leading": labels 0, k, 2k, … with k = ⌊N/n⌋, plus ``offset`` (its ``steps_offset``);
    * "trailing": N − 1, N − 1 − N/n, … rounded;
    * "linspace": from 0 to N − 1, both included, rounded.
    """
    schedule = process.schedule
    if not isinstance(schedule, Discrete):
        raise TypeError(f"discrete: got {schedule!r}, expected a Discrete schedule; other grids take any")
    _ends(process, n, None, None)
    count = len(schedule.alphas_cumprod)
    if n > count:
        raise ValueError(f"n: got {n}, expected at most the {count} levels of the table")
    index = torch.arange(n, dtype=torch.float64)
    if spacing == "leading":
        labels = (index * (count // n)).flip(0) + offset
    elif spacing == "trailing":
        labels = (count - index * (count / n)).round() - 1
    elif spacing == "linspace":
        labels = torch.linspace(0, count - 1, n, dtype=torch.float64).round().flip(0)
    else:
        raise ValueError(f"spacing: got {spacing!r}, expected 'leading', 'trailing' or 'linspace'")
    if float(labels[0]) > count - 1:
        raise ValueError(
            f"offset: got {offset}, which leads to label {int(labels[0])}, expected labels up to {count - 1}"
        )
    return _strict(process, (labels + 1) / count)


def iddpm_levels(M: int = 1000, C1: float = 0.001, C2: float = 0.008) -> Tensor:
    """u_0 > u_1 > … > u_{M−1}, the noise levels of the improved DDPM (Karras et al. 2022, table 1): u_M = 0 and
    u_{j−1} = √((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, C1) − 1), ᾱ_j = sin²(π/2 · j/(M(C2 + 1)))."""
    u, levels = 0.0, []
    for j in range(M, 0, -1):
        before, at = (math.sin(0.5 * math.pi * k / (M * (C2 + 1))) ** 2 for k in (j - 1, j))
        u = math.sqrt((u * u + 1) / max(before / at, C1) - 1)
        levels.append(u)
    return torch.tensor(levels[::-1], dtype=torch.float64)


def iddpm(
    process: Diffusion, n: int, *, first: int | None = None, M: int = 1000, C1: float = 0.001, C2: float = 0.008
) -> Tensor:
    """n of the levels u_j of :func:`iddpm_levels`: j = ⌊j_0 + (M − 1 − j_0)/(n − 1)·i + ½⌋ (Karras et al. 2022, table 1).

    Args: first: j_0; by default the first level that the process reaches (the paper takes 8, where u = 80.2).
    """
    _ends(process, n, None, None)
    levels = iddpm_levels(M, C1, C2)
    if first is None:
        first = int((levels > process.schedule.sigma_max).sum())
    if not 0 <= first < M or n > M - first:
        raise ValueError(f"first: got {first} for {n} levels, expected 0 ≤ first < M = {M} with at least n levels left")
    index = (first + (M - 1 - first) * _fractions(n) + 0.5).floor().long()
    return _at_sigmas(process, levels[index])


def grid_from_diffusers(scheduler: Any, process: Diffusion | None = None) -> Tensor:
    """The levels that a diffusers scheduler steps through after its ``set_timesteps(n)``, as times.

    Read from its ``sigmas`` where it has them (without the last 0 and without the repetitions of multi-stage rules), else from its
    ``timesteps``. Flow-matching schedulers give times of :class:`~carom.processes.FlowMatching`.

    Args: process: whose times to give; by default the ``Discrete`` schedule of the scheduler's own ``alphas_cumprod``.
    """
    sigmas, table = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
    if not hasattr(scheduler, "timesteps") or getattr(scheduler, "num_inference_steps", 1) is None:
        raise TypeError(
            f"scheduler: got {type(scheduler).__name__}, expected a diffusers scheduler after set_timesteps(n)"
        )
    config = getattr(scheduler, "config", {})
    if config.get("use_flow_sigmas", False) or (table is None and "shift" in config):
        times = _distinct(torch.as_tensor(sigmas, dtype=torch.float64))
        return times if process is None else _at_sigmas(process, times / (1 - times))
    if process is None:
        if table is None:
            raise TypeError(
                f"scheduler: got {type(scheduler).__name__} without alphas_cumprod; name the process whose times you want"
            )
        process = Diffusion(Euclidean((1,)), Discrete(torch.as_tensor(table, dtype=torch.float64)))
    if sigmas is not None:
        return _at_sigmas(process, _distinct(torch.as_tensor(sigmas, dtype=torch.float64)))
    schedule = process.schedule
    if not isinstance(schedule, Discrete):
        raise TypeError(
            f"process: got {schedule!r}, expected a Discrete schedule: {type(scheduler).__name__} has labels, no noise levels"
        )
    labels = torch.as_tensor(scheduler.timesteps, dtype=torch.float64).cpu()
    return _strict(process, (_distinct(labels + 1)) / len(schedule.alphas_cumprod))


def _distinct(levels: Tensor) -> Tensor:
    """Positive levels without what repeats its predecessor."""
    levels = levels.cpu()
    keep = torch.ones_like(levels, dtype=torch.bool)
    keep[1:] = levels[1:] != levels[:-1]
    return levels[keep & (levels > 0)]


def _at_sigmas(process: Diffusion, sigmas: Tensor) -> Tensor:
    """The times of given noise levels, which the process must reach; levels kept in float32 may overshoot its end by their rounding."""
    t, t_max = process.level(sigma=sigmas).t, process.schedule.t_max
    if float(t.max()) > t_max * (1 + 1e-6):
        raise ValueError(
            f"grid: got noise levels up to {float(sigmas.max()):g}, expected at most σ_max = {process.schedule.sigma_max:g} of "
            f"{process.schedule!r}; leave out the levels above"
        )
    return _strict(process, torch.where((t > t_max) & (t < t_max * (1 + 1e-6)), t_max, t))


def _fractions(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


def _ends(process: Diffusion, n: int, sigma_min: float | None, sigma_max: float | None) -> Tensor:
    """(σ_max, σ_min) of the grid, checked."""
    if not isinstance(process, Diffusion):
        raise TypeError(f"process: got {type(process).__name__}, expected a Diffusion(domain, schedule)")
    if not is_int(n, 1):
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
