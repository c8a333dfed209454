"""The laws of schedules; see ``laws``."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import torch
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
    even = torch.linspace(0, top, points // 2 + 1, dtype=torch.float64)[1:] * 0.9973  # off the kinks of tables
    t = torch.cat(
        [
            even,
            torch.tensor([top], dtype=torch.float64),
            top * torch.logspace(-5, -0.3, points - len(even), dtype=torch.float64) * 0.999,
        ]
    ).unique()
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
    # at the kinks of a tabulated schedule the quotient lies between the two one-sided values
    room, room2 = ((f(t + h) - f(t - h)).abs() for f in (schedule.drift_rate, lambda u: schedule.diffusion(u) ** 2))
    # truncation h²/6 times the third derivative is about 1e-10 relative, rounding ε·t/h about 1e-11
    require_close(schedule.drift_rate(t), rate, 1e-6 * (1 + rate.abs()) + 1e-15 / h + room, "drift_rate")
    require_close(schedule.diffusion(t) ** 2, growth, 1e-6 * (1 + growth.abs()) + room2, "diffusion²")


def forward_moments(schedule: Schedule, t: Tensor) -> None:
    """d mean/dt = a·mean and d var/dt = 2a·var + g², integrated, give s(t)·m₀ and s²v₀ + std².

    By variation of constants, mean = m₀ e^{A} and var = e^{2A}(v₀ + ∫ g² e^{−2A}) with A = ∫ a: two integrals, by
    Gauss–Legendre collocation on panels that crowd towards both ends and end at the kinks of a table.
    """
    top, knots = schedule.t_max, np.asarray(schedule.kinks, dtype=np.float64)
    crowd = np.geomspace(float(t[0]), top, 80)
    ends = np.unique(np.concatenate([crowd, top - crowd, np.linspace(0, top, 101), knots]))
    ends = ends[(ends >= float(t[0])) & (ends <= top)]
    ends = ends[np.append(True, np.diff(ends) > 1e-12)]
    node, weight, primitive = _collocation(8)
    half = np.diff(ends)[:, None] / 2
    at = torch.tensor((ends[1:] + ends[:-1])[:, None] / 2 + half * node)
    a, g = schedule.drift_rate(at).numpy(), schedule.diffusion(at).numpy()
    log_mean = np.concatenate([[0.0], np.cumsum((half * weight * a).sum(1))])
    inner = log_mean[:-1, None] + half * (a @ primitive.T)
    grown = np.concatenate([[0.0], np.cumsum((half * weight * g * g * np.exp(-2 * inner)).sum(1))])

    at = torch.tensor(ends)
    scale, std = schedule.scale(at), schedule.std(at)
    first = float(scale[0])
    mean = torch.tensor(first * np.exp(log_mean))
    var = torch.tensor(np.exp(2 * log_mean) * (first**2 * 0.3 + float(std[0]) ** 2 + grown))
    # 1e-9 per unit of A, which scale = e^A amplifies
    room = 1e-9 * (1 + torch.tensor(np.abs(log_mean)))
    require_close(mean, scale, room * scale, "mean of the forward SDE / m₀")
    require_close(var, scale**2 * 0.3 + std**2, room * (scale**2 * 0.3 + std**2), "variance of the forward SDE")


def _collocation(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss–Legendre nodes and weights on [−1, 1] and the matrix of ∫ from −1 to each node of the interpolant."""
    node, weight = np.polynomial.legendre.leggauss(n)
    legendre = np.polynomial.legendre.legvander(node, n)
    k = np.arange(n)
    coefficients = (2 * k[:, None] + 1) / 2 * legendre[:, :n].T * weight  # values at nodes → Legendre coefficients
    below = np.concatenate([np.zeros((n, 1)), legendre[:, : n - 1]], 1)
    integrals = (legendre[:, 1 : n + 1] - below) / (2 * k + 1)  # ∫ P_k = (P_{k+1} − P_{k−1})/(2k + 1)
    integrals[:, 0] = node + 1
    return node, weight, integrals @ coefficients


def keeps(schedule: Schedule, t: Tensor) -> None:
    """Every function is elementwise and keeps shape (0, 1, 2 dimensions, empty) and dtype."""
    for dtype in (torch.float32, torch.float64):
        for shape in ((), (4,), (2, 3), (0,)):
            at = torch.full(shape, 0.5 * schedule.t_max, dtype=dtype)
            for name in (*_FUNCTIONS, "time"):
                value = getattr(schedule, name)(schedule.sigma(at) if name == "time" else at)
                require(
                    value.shape == at.shape and value.dtype == dtype,
                    f"{name}: {value.dtype} {tuple(value.shape)}",
                    f"{dtype} {shape}",
                )
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
    require(float(schedule.sigma(torch.tensor(1e-3 * schedule.t_max))) > 0, 0.0, "sigma > 0")


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
    require(
        0 < schedule.sigma_min < schedule.sigma_max,
        (schedule.sigma_min, schedule.sigma_max),
        "0 < sigma_min < sigma_max",
    )
    require(0 < schedule.t_max <= 1, schedule.t_max, "0 < t_max ≤ 1")
    # what the prior leaves out is the signal that is left (std² = 1 − s² or (1 − s²)²), or σ_min² for VE
    end = torch.tensor(schedule.t_max, dtype=torch.float64)
    std, scale = float(schedule.std(end)), float(schedule.scale(end))
    left = schedule.sigma_min**2 + (0.0 if scale == 1.0 else 2 * scale**2)
    gap = abs(schedule.prior_std**2 - std**2)
    require(gap <= left + 1e-12 * std**2, f"prior_std {schedule.prior_std:.6g}", f"about {std:.6g}, the std at t_max")


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
