"""The laws of schedules; see ``laws``."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ..processes import Schedule
from .laws import Report, require, require_close, require_equal, run_laws

_FUNCTIONS = ("scale", "sigma", "std", "half_log_snr", "drift_rate", "diffusion")


def check_schedule(schedule: Schedule, *, points: int = 41, raises: bool = True) -> Report:
    """Run the laws of schedules on ``schedule``.

    Args:
        schedule: any :class:`carom.processes.Schedule`.
        points: times in (0, t_max] at which functions are compared, half of them equally spaced, half crowding towards 0.
        raises: raise :class:`LawError` at the first law that fails; otherwise report all.
    """
    top = schedule.t_max
    even = torch.linspace(0, top, points // 2 + 1, dtype=torch.float64)[1:]
    t = torch.cat([even, top * torch.logspace(-5, -0.3, points - len(even), dtype=torch.float64) * 0.999]).unique()
    laws = [
        ("sigma(0) = 0, scale(0) = 1", starts),
        ("sigma increases, finite and positive up to t_max", increases),
        ("closed forms equal derived ones", closed_forms),
        ("time inverts sigma", inverts),
        ("scale and sigma satisfy a = s'/s, g² = s²(σ²)'", definitions),
        ("forward SDE moments are transition moments", forward_moments),
        ("shape and dtype are kept", keeps),
        ("numbers are taken", takes_numbers),
        ("float32 agrees with float64", precisions_agree),
        ("facts are consistent", facts),
        ("config rebuilds it", config_rebuilds),
    ]
    return run_laws(repr(schedule), [(name, partial(law, schedule, t)) for name, law in laws], raises)


def starts(schedule: Schedule, t: Tensor) -> None:
    """σ(0) = 0 and s(0) = 1: exactly the data at t = 0."""
    zero = torch.zeros((), dtype=torch.float64)
    require_close(schedule.sigma(zero), 0.0, 0.0, "sigma(0)")
    require_close(schedule.scale(zero), 1.0, 1e-15, "scale(0)")


def increases(schedule: Schedule, t: Tensor) -> None:
    """0 < σ(t₁) < σ(t₂) < ∞ for 0 < t₁ < t₂ ≤ t_max, and s > 0."""
    sigma, scale = schedule.sigma(t), schedule.scale(t)
    require(sigma.isfinite() & (sigma > 0), sigma.tolist(), "0 < sigma < inf on (0, t_max]")
    require(sigma.diff() > 0, "sigma that does not increase", "strictly increasing sigma")
    require(scale.isfinite() & (scale > 0), scale.tolist(), "0 < scale < inf on (0, t_max]")


def closed_forms(schedule: Schedule, t: Tensor) -> None:
    """std, half_log_snr, drift_rate and diffusion equal what the base class derives from scale and sigma."""
    for name in ("std", "half_log_snr", "drift_rate", "diffusion"):
        got, want = getattr(schedule, name)(t), getattr(Schedule, name)(schedule, t)
        # the derived form differentiates σ = √(…), which loses digits like (σ/t)/σ' ~ 1; 1e-9 leaves room for cancellation
        require_close(got, want, 1e-9 * (1 + want.abs()), name)


def inverts(schedule: Schedule, t: Tensor) -> None:
    """time(σ(t)) = t, and it equals the base class's bisection."""
    back = schedule.time(schedule.sigma(t))
    require_close(back, t, 1e-10 * t + 1e-14, "time(sigma(t))")
    derived = Schedule.time(schedule, schedule.sigma(t))
    require_close(back, derived, 1e-8 * t + 1e-12, "time against bisection")


def definitions(schedule: Schedule, t: Tensor) -> None:
    """a and g² against central differences of ln s and σ²; independent of automatic differentiation."""
    h = 1e-5 * torch.minimum(t, torch.as_tensor(schedule.t_max, dtype=t.dtype) - t)
    keep = h > 0
    t, h = t[keep], h[keep]
    # at kinks of a tabulated schedule the two sides differ; there the difference quotient lies between them
    rate = (schedule.scale(t + h).log() - schedule.scale(t - h).log()) / (2 * h)
    growth = schedule.scale(t) ** 2 * (schedule.sigma(t + h) ** 2 - schedule.sigma(t - h) ** 2) / (2 * h)
    smooth = _smooth(schedule, t, h)
    a, g2 = schedule.drift_rate(t), schedule.diffusion(t) ** 2
    # truncation h²/6·f''' ≈ 1e-10 relative, rounding ε/(h/t) ≈ 1e-11·(f/t)/f'
    require_close(a[smooth], rate[smooth], (1e-6 * (1 + rate.abs()) + 1e-15 / h)[smooth], "drift_rate")
    require_close(g2[smooth], growth[smooth], (1e-6 * (1 + growth.abs()))[smooth], "diffusion²")


def _smooth(schedule: Schedule, t: Tensor, h: Tensor) -> Tensor:
    """Where σ' is continuous within t ± h (tables have kinks)."""
    left, right = schedule.diffusion(t - h), schedule.diffusion(t + h)
    return (left - right).abs() <= 1e-3 * (left + right)


def forward_moments(schedule: Schedule, t: Tensor) -> None:
    """d mean/dt = a·mean and d var/dt = 2a·var + g² lead to mean s(t)·m₀ and variance s²v₀ + std², by scipy's integrator."""
    mean0, var0 = 0.7, 0.3
    # a in log time: near t = t_max schedules with infinite σ at 1 are stiff only in t
    ends = np.array([float(t[0]), *(schedule.t_max * np.array([0.1, 0.35, 0.7, 0.95, 1.0])).tolist()])

    def slope(time: float, y: np.ndarray) -> list[float]:
        at = torch.tensor(time, dtype=torch.float64)
        a, g = float(schedule.drift_rate(at)), float(schedule.diffusion(at))
        return [a * y[0], 2 * a * y[1] + g * g]

    scale, std = schedule.scale(torch.tensor(ends)), schedule.std(torch.tensor(ends))
    mean, var = (scale * mean0).numpy(), (scale**2 * var0 + std**2).numpy()
    y = np.array([mean[0], var[0]])
    for k in range(len(ends) - 1):
        solution = solve_ivp(slope, (ends[k], ends[k + 1]), y, rtol=1e-8, atol=1e-12)
        require(bool(solution.success), solution.message, "an integrable drift and diffusion")
        y = solution.y[:, -1]
        for name, got, want in (("mean", y[0], mean[k + 1]), ("variance", y[1], var[k + 1])):
            # rtol per step, a few hundred steps, growth at most that of the variance itself
            require(abs(got - want) <= 1e-5 * (1e-3 + abs(want)), f"{name} {got:.9g} at t = {ends[k + 1]:.4g}", f"{want:.9g}")


def keeps(schedule: Schedule, t: Tensor) -> None:
    """Every function is elementwise and keeps shape (0, 1, 2 dimensions, empty) and dtype."""
    for dtype in (torch.float32, torch.float64):
        for shape in ((), (4,), (2, 3), (0,)):
            at = torch.full(shape, 0.5 * schedule.t_max, dtype=dtype)
            for name in (*_FUNCTIONS, "time"):
                value = getattr(schedule, name)(schedule.sigma(at) if name == "time" else at)
                require(value.shape == at.shape and value.dtype == dtype, f"{name}: {value.dtype} {tuple(value.shape)}", f"{dtype} {shape}")
    grid = t[:6].reshape(2, 3)
    for name in _FUNCTIONS:
        function = getattr(schedule, name)
        require_equal(function(grid)[1, 1], function(grid[1, 1]), f"{name} of a grid and of a number")


def takes_numbers(schedule: Schedule, t: Tensor) -> None:
    """A Python number is a float64 tensor."""
    at = 0.25 * schedule.t_max
    for name in _FUNCTIONS:
        function = getattr(schedule, name)
        require_equal(function(at), function(torch.tensor(at, dtype=torch.float64)), f"{name} of a number")
    require(float(schedule.sigma(1e-3 * schedule.t_max)) > 0, 0.0, "sigma > 0")


def precisions_agree(schedule: Schedule, t: Tensor) -> None:
    """In float32 σ, s and std are right to the rounding of t: relative error (1 + t·f'/f)·few ulp."""
    t = t.float().double()
    t = t[t <= schedule.t_max]
    for name in ("scale", "sigma", "std"):
        function = getattr(schedule, name)
        want, got = function(t), function(t.float())
        h = 1e-6 * t
        condition = ((function(t) - function(t - h)).abs() / h * t / want.abs()).nan_to_num(nan=1.0)
        require_close(got.double(), want, 64 * 2**-24 * (1 + condition) * want.abs(), f"{name} in float32")


def facts(schedule: Schedule, t: Tensor) -> None:
    """0 < sigma_min < sigma_max ≤ about σ(t_max), the prior's std is that of x at t_max, and 0 < t_max ≤ 1."""
    require(0 < schedule.sigma_min < schedule.sigma_max, (schedule.sigma_min, schedule.sigma_max), "0 < sigma_min < sigma_max")
    require(0 < schedule.t_max <= 1, schedule.t_max, "0 < t_max ≤ 1")
    # what the prior leaves out is at most the signal that is left: s(t_max) for variance-preserving ones, σ_min for VE
    std, scale = float(schedule.std(schedule.t_max)), float(schedule.scale(schedule.t_max))
    room = 2e-3 + min(scale, schedule.sigma_min) ** 2
    require(abs(schedule.prior_std - std) <= room * std, f"prior_std {schedule.prior_std:.6g}", f"{std:.6g}, the std at t_max")


def config_rebuilds(schedule: Schedule, t: Tensor) -> str | None:
    """config() is JSON-able and rebuilds a schedule with the same values; it is optional for schedules of one's own."""
    try:
        config = schedule.config()
    except NotImplementedError:
        return "none given"
    arguments = dict(json.loads(json.dumps(config)))
    require(arguments.pop("type") == type(schedule).__name__, config.get("type"), type(schedule).__name__)
    again = type(schedule)(**arguments)
    require_equal(again.sigma(t), schedule.sigma(t), "sigma after rebuilding")
    require_equal(again.scale(t), schedule.scale(t), "scale after rebuilding")
    return None
