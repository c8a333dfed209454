"""The schedules of the literature as six choices of (scale, sigma), with their closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..domains.constants import OnDevice
from ..domains.tensors import entries, number
from .schedule import Schedule, UnitScale, VariancePreserving

if TYPE_CHECKING:
    from ..domains import Domain


class _LinearBeta(Schedule):
    """What VP and sub-VP share: β(t) = β_min + t(β_max − β_min) and B(t) = ∫β, s = e^{−B/2}."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        self.beta_min = number(beta_min, "beta_min", low=0.0, open_low=True)
        self.beta_max = number(beta_max, "beta_max", low=self.beta_min)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(beta_min={self.beta_min:g}, beta_max={self.beta_max:g})"

    def config(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "beta_min": self.beta_min, "beta_max": self.beta_max}

    @property
    def prior_std(self) -> float:
        return 1.0

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        """B(t) = ∫₀ᵗ β."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _inverse_integral(self, integral: Tensor) -> Tensor:
        # the root of the quadratic in the form that does not cancel, valid for β_max = β_min too
        return (
            2 * integral / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt())
        )

    def scale(self, t: Tensor) -> Tensor:
        return (-0.5 * self.integral(t)).exp()

    def drift_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)


class VP(_LinearBeta):
    """dx = −½βx dt + √β dW (Song et al. 2021, eq. 11): s = e^{−B/2}, σ² = e^B − 1, std² = 1 − e^{−B}.

    Args: beta_min, beta_max: β at t = 0 and t = 1, 0 < beta_min ≤ beta_max. The prior is N(0, I).
    """

    def sigma(self, t: Tensor) -> Tensor:
        return self.integral(t).expm1().sqrt()

    def std(self, t: Tensor) -> Tensor:
        return (-(-self.integral(t)).expm1()).sqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self._inverse_integral((sigma * sigma).log1p())


class SubVP(_LinearBeta):
    """dx = −½βx dt + √(β(1 − e^{−2B})) dW (Song et al. 2021, eq. 13): s = e^{−B/2}, std = 1 − e^{−B}, σ = 2 sinh(B/2).

    Args: beta_min, beta_max: as for VP. The prior is N(0, I).
    """

    def sigma(self, t: Tensor) -> Tensor:
        return 2 * (0.5 * self.integral(t)).sinh()

    def std(self, t: Tensor) -> Tensor:
        return -(-self.integral(t)).expm1()

    def diffusion(self, t: Tensor) -> Tensor:
        return (-self.beta(t) * (-2 * self.integral(t)).expm1()).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return self._inverse_integral(2 * (0.5 * sigma).asinh())


class VE(UnitScale):
    """s = 1, σ² = σ_min² (r^{2t} − 1) with r = σ_max/σ_min (Song et al. 2021, eq. 9, with σ(0) = 0).

    Args:
        sigma_min: lower end of grids and training, > 0.
        sigma_max: > sigma_min; by default 50, and 2 × the longest width on a bounded domain, where more is waste:
            beyond it the kernel is uniform to 5e-9.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float | None = None):
        self._sigma_min = number(sigma_min, "sigma_min", low=0.0, open_low=True)
        self._sigma_max = (
            None if sigma_max is None else number(sigma_max, "sigma_max", low=self._sigma_min, open_low=True)
        )

    def __repr__(self) -> str:
        return f"VE(sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g})"

    def config(self) -> dict[str, Any]:
        return {"type": "VE", "sigma_min": self._sigma_min, "sigma_max": self._sigma_max}

    def on(self, domain: Domain) -> Schedule:
        if self._sigma_max is None and domain.bounded:
            return VE(self._sigma_min, 2 * domain.width)
        return self

    @property
    def sigma_min(self) -> float:
        return self._sigma_min

    @property
    def sigma_max(self) -> float:
        return 50.0 if self._sigma_max is None else self._sigma_max

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self._rate * t).expm1().sqrt()

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma_min * math.sqrt(self._rate) * (0.5 * self._rate * t).exp()

    def time(self, sigma: Tensor) -> Tensor:
        return ((sigma / self.sigma_min) ** 2).log1p() / self._rate


class EDM(UnitScale):
    """s = 1, σ = t·σ_max (Karras et al. 2022, where time *is* σ).

    Args: sigma_min, sigma_max: ends of grids and training, 0 < sigma_min < sigma_max.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0):
        self._sigma_min = number(sigma_min, "sigma_min", low=0.0, open_low=True)
        self._sigma_max = number(sigma_max, "sigma_max", low=self._sigma_min, open_low=True)

    def __repr__(self) -> str:
        return f"EDM(sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g})"

    def config(self) -> dict[str, Any]:
        return {"type": "EDM", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}

    @property
    def sigma_min(self) -> float:
        return self._sigma_min

    @property
    def sigma_max(self) -> float:
        return self._sigma_max

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma_max * (2 * t).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return sigma / self.sigma_max


class CosineVP(VariancePreserving):
    """ᾱ(t) = cos²θ / cos²θ₀, θ = (t + s)/(1 + s)·π/2 (Nichol & Dhariwal 2021, eq. 17), variance preserving.

    σ² = 1/ᾱ − 1 = sin(θ − θ₀) sin(θ + θ₀) / cos²θ. σ is infinite at t = 1: ``t_max`` is 0.999, where σ ≈ 640.

    Args: offset: s > 0, which keeps β small near t = 0.
    """

    t_max = 0.999

    def __init__(self, offset: float = 0.008):
        self.offset = number(offset, "offset", low=0.0, open_low=True)
        self._rate = 0.5 * math.pi / (1 + self.offset)
        self._start = self.offset * self._rate

    def __repr__(self) -> str:
        return f"CosineVP(offset={self.offset:g})"

    def config(self) -> dict[str, Any]:
        return {"type": "CosineVP", "offset": self.offset}

    def _angle(self, t: Tensor) -> Tensor:
        return self._start + self._rate * t

    def scale(self, t: Tensor) -> Tensor:
        return self._angle(t).cos() / math.cos(self._start)

    def std(self, t: Tensor) -> Tensor:
        return ((self._rate * t).sin() * (self._angle(t) + self._start).sin()).sqrt() / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        return ((self._rate * t).sin() * (self._angle(t) + self._start).sin()).sqrt() / self._angle(t).cos()

    def drift_rate(self, t: Tensor) -> Tensor:
        return -self._rate * self._angle(t).tan()

    def diffusion(self, t: Tensor) -> Tensor:
        return (2 * self._rate * self._angle(t).tan()).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        # tan θ = √(tan²θ₀ + σ²/cos²θ₀); the angle difference by its tangent, which does not cancel at small σ
        start = math.tan(self._start)
        square = (sigma / math.cos(self._start)) ** 2
        tangent = (start**2 + square).sqrt()
        return (square / ((tangent + start) * (1 + start * tangent))).atan() / self._rate


class FlowMatching(Schedule):
    """x_t = (1 − t) x_0 + t z (Lipman et al. 2023; rectified flow): s = 1 − t, std = t, σ = t/(1 − t).

    σ is infinite at t = 1: ``t_max`` is 0.999 (σ = 999).
    """

    t_max = 0.999

    def __repr__(self) -> str:
        return "FlowMatching()"

    def config(self) -> dict[str, Any]:
        return {"type": "FlowMatching"}

    def scale(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def std(self, t: Tensor) -> Tensor:
        return t

    def drift_rate(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def diffusion(self, t: Tensor) -> Tensor:
        return (2 * t / (1 - t)).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)


def _laplace(t: Tensor) -> Tensor:
    """√(e^λ/(1 + e^λ)) with λ a Laplace quantile, the ᾱ of the table that goes by this name."""
    half = 0.5 - t
    return (-0.5 * half.sign() * (1 - 2 * half.abs() + 1e-6).log()).sigmoid().sqrt()


#: ᾱ(t) up to a factor, for the tables β_i = min(1 − ᾱ(i/N)/ᾱ((i−1)/N), 0.999)
_ALPHA_BARS: dict[str, Callable[[Tensor], Tensor]] = {
    "squaredcos_cap_v2": lambda t: ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2,
    "laplace": _laplace,
    "exp": lambda t: (-12 * t).exp(),
}


class Discrete(VariancePreserving):
    """A variance-preserving schedule given by a table: level i of N at t_i = i/N has ᾱ_i = alphas_cumprod[i − 1].

    σ_i = √(1/ᾱ_i − 1); between levels ln σ is linear in t, below t_1 σ itself is (σ(0) = 0), beyond t = 1 the last piece
    goes on. With terminal ᾱ = 0 (zero SNR) ``t_max`` is the last level with ᾱ > 0, and σ is infinite from t = 1 on.

    Args: alphas_cumprod: N ≥ 2 values, strictly decreasing, in (0, 1) (the last may be 0).
    """

    def __init__(self, alphas_cumprod: Sequence[float] | np.ndarray | Tensor):
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu()
        if table.dim() != 1 or len(table) < 2:
            raise ValueError(f"alphas_cumprod: got shape {tuple(table.shape)}, expected a list of at least 2 numbers")
        if not bool((table.diff() < 0).all()) or not 0 < float(table[0]) < 1 or float(table[-1]) < 0:
            raise ValueError(
                f"alphas_cumprod: got values from {table[0]:g} to {table[-1]:g}, expected them to decrease strictly within "
                "(0, 1), level 1 first; pass cumprod(1 − betas), without the leading 1"
            )
        self.alphas_cumprod = table
        positive = table[table > 0]
        self.t_max = len(positive) / len(table)
        #: ln σ_i by −ln ᾱ, which keeps the digits that 1/ᾱ − 1 loses near 1
        self._log_sigma = 0.5 * (-positive.log()).expm1().log()
        self._on_device = OnDevice((self._log_sigma,))
        self._range = float(self._log_sigma[0].exp()), float(self._log_sigma[-1].exp())

    def __repr__(self) -> str:
        return f"Discrete(<{len(self.alphas_cumprod)} levels, sigma from {self.sigma_min:.4g} to {self.sigma_max:.4g}>)"

    def config(self) -> dict[str, Any]:
        return {"type": "Discrete", "alphas_cumprod": self.alphas_cumprod.tolist()}

    @classmethod
    def ddpm(cls, N: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> Discrete:
        """β_i = β_min/N + (i−1)/(N−1)·(β_max − β_min)/N (notes l.113); needs N > beta_max."""
        if beta_max >= N:
            raise ValueError(f"Discrete.ddpm: got N = {N}, expected N > beta_max = {beta_max:g}, or β_N would exceed 1")
        return cls((1 - torch.linspace(beta_min / N, beta_max / N, N, dtype=torch.float64)).cumprod(0))

    @classmethod
    def from_betas(cls, name: str, N: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
        """The β tables that published networks were trained with: ``linear``, ``scaled_linear``, ``sigmoid`` between beta_start and
        beta_end; ``squaredcos_cap_v2``, ``laplace``, ``exp``, which need neither, from a function ᾱ(t)."""
        if name == "linear":
            betas = torch.linspace(beta_start, beta_end, N, dtype=torch.float64)
        elif name == "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, N, dtype=torch.float64) ** 2
        elif name == "sigmoid":
            betas = beta_start + (beta_end - beta_start) * torch.linspace(-6, 6, N, dtype=torch.float64).sigmoid()
        elif name in _ALPHA_BARS:
            ab = _ALPHA_BARS[name](torch.linspace(0, 1, N + 1, dtype=torch.float64))
            betas = (1 - ab[1:] / ab[:-1]).clamp(max=0.999)
        else:
            names = ("linear", "scaled_linear", "sigmoid", *_ALPHA_BARS)
            raise ValueError(f"from_betas: got {name!r}, expected {', '.join(map(repr, names))}")
        return cls((1 - betas).cumprod(0))

    @property
    def betas(self) -> Tensor:
        """β_i = 1 − ᾱ_i/ᾱ_{i−1}, i = 1..N."""
        return 1 - self.alphas_cumprod / torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @property
    def kinks(self) -> Sequence[float]:
        count = len(self.alphas_cumprod)
        return [i / count for i in range(1, count)]

    @property
    def sigma_min(self) -> float:
        return self._range[0]

    @property
    def sigma_max(self) -> float:
        return self._range[1]

    def sigma(self, t: Tensor) -> Tensor:
        (table,), position = self._on_device(t.device), t.to(torch.float64) * len(self.alphas_cumprod)
        i = position.detach().floor().clamp(1, len(table) - 1).long()
        left, right = entries(table, i - 1), entries(table, i)
        above = (left + (position - i) * (right - left)).exp()
        if len(table) < len(self.alphas_cumprod):  # zero terminal SNR
            above = torch.where(position >= len(self.alphas_cumprod), torch.inf, above)
        return torch.where(position < 1, position * table[0].exp(), above).to(t.dtype)

    def time(self, sigma: Tensor) -> Tensor:
        (table,), target = self._on_device(sigma.device), sigma.to(torch.float64)
        i = torch.searchsorted(table, target.log().contiguous()).clamp(1, len(table) - 1)
        left, right = entries(table, i - 1), entries(table, i)
        above = i + (target.log() - left) / (right - left)
        first = table[0].exp()
        return (torch.where(target < first, target / first, above) / len(self.alphas_cumprod)).to(sigma.dtype)
