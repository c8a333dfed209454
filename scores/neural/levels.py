r"""Laws of noise levels for training, each by its quantile function, and draws of them in strata.

A loss :math:`\mathbb E_σ\,w(σ)\,L(σ)` depends on the law and the weight only through their product; the law decides what it costs in noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...domains.tensors import batch_shape, check_event, is_int, number
from ...processes import Diffusion, Discrete, Schedule


class Levels(Protocol):
    """A law of noise levels, by its quantile function."""

    def quantile(self, u: Tensor) -> Tensor:
        """σ at probabilities u in [0, 1): the same shape."""


@dataclass(frozen=True)
class LogUniform:
    """ln σ uniform between ln ``low`` and ln ``high``: what g²/std² of any schedule is in its own time, see
    :meth:`DenoisingScoreMatching.likelihood`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        number(self.high, "high", low=number(self.low, "low", open_low=True, low=0.0), open_low=True)

    def quantile(self, u: Tensor) -> Tensor:
        return self.low * (self.high / self.low) ** u


@dataclass(frozen=True)
class LogNormal:
    """ln σ ∼ N(mean, std²), cut off at ``low`` and ``high``: the law is that of a normal given that it lies between.

    The defaults are those of Karras et al. 2022, table 1, for images in [−1, 1]; on [0, 1] σ is half as large, so mean = −1.9.
    """

    mean: float = -1.2
    std: float = 1.2
    low: float = 2e-3
    high: float = 80.0

    def __post_init__(self) -> None:
        number(self.mean, "mean")
        number(self.std, "std", low=0.0, open_low=True)
        number(self.high, "high", low=number(self.low, "low", open_low=True, low=0.0), open_low=True)

    def quantile(self, u: Tensor) -> Tensor:
        low, high = (_normal_cdf((math.log(v) - self.mean) / self.std) for v in (self.low, self.high))
        # in float64 and kept off the ends, whose quantiles rounding may put at infinity
        p = (low + (high - low) * u.double()).clamp(1e-15, 1 - 1e-15)
        sigma = (self.mean + self.std * torch.special.ndtri(p)).exp()
        return sigma.clamp(self.low, self.high).to(u.dtype)


@dataclass(frozen=True)
class UniformTime:
    """t uniform between ``low`` and ``high`` of a schedule; with ``steps`` = N uniform over the levels t = 1/N, …, 1 of a table.

    :meth:`of` takes the range of a process for training, and the table of a ``Discrete`` schedule.
    """

    schedule: Schedule
    low: float = 0.0
    high: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        number(self.high, "high", low=number(self.low, "low", low=0.0), open_low=True)
        if self.steps is not None and not is_int(self.steps, 1):
            raise ValueError(f"steps: got {self.steps!r}, expected a whole number of at least 1, or None")
        if self.steps is None:
            return
        if not isinstance(self.schedule, Discrete):
            raise TypeError(
                f"steps: got {self.steps} on {self.schedule!r}, which has no table, expected a Discrete schedule, or None"
            )
        if self.steps > len(self.schedule.alphas_cumprod):
            raise ValueError(
                f"steps: got {self.steps}, expected at most the {len(self.schedule.alphas_cumprod)} levels of {self.schedule!r}"
            )

    @classmethod
    def of(cls, process: Diffusion) -> UniformTime:
        schedule = process.schedule
        if isinstance(schedule, Discrete):
            return cls(schedule, steps=round(schedule.t_max * len(schedule.alphas_cumprod)))
        low, high = (float(schedule.time(v)) for v in (schedule.sigma_min, schedule.sigma_max))
        return cls(schedule, low, high)

    def quantile(self, u: Tensor) -> Tensor:
        if self.steps is None:
            return self.schedule.sigma(self.low + (self.high - self.low) * u)
        assert isinstance(self.schedule, Discrete)
        return self.schedule.sigma(((u.double() * self.steps).floor() + 1) / len(self.schedule.alphas_cumprod)).to(u)


@dataclass(frozen=True)
class LogitNormalTime(LogNormal):
    """logit t ∼ N(mean, std²) of the path (1 − t) x0 + t ε, so that ln σ = ln(t/(1 − t)) is normal: Esser et al. 2024, eq. 19.

    In σ this is a :class:`LogNormal`; only what mean and std are by default differs, and where σ is cut off.
    """

    mean: float = 0.0
    std: float = 1.0
    low: float = 1e-4
    high: float = 1e4


@dataclass(frozen=True)
class MinSNR:
    """The weight min(1, γσ²) on the error in ε, which is min(SNR, γ)/SNR: Hang et al. 2023, eq. 8 (γ = 5 there)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        number(self.gamma, "gamma", low=0.0, open_low=True)

    def __call__(self, sigma: Tensor) -> Tensor:
        return (self.gamma * sigma**2).clamp(max=1.0)


@dataclass(frozen=True)
class Constant:
    """A weight that is the same at every σ."""

    value: float

    def __call__(self, sigma: Tensor) -> Tensor:
        return torch.full_like(sigma, self.value)


def stratified(shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniforms in [0, 1), one in each of n equal strata, in random order: each is uniform, and the batch covers them all."""
    n = shape.numel()
    device = like.device if generator is None else generator.device
    order = torch.randperm(n, generator=generator, device=device)
    shift = torch.rand((), generator=generator, device=device, dtype=like.dtype)
    # (i + shift)/n < 1 but for rounding, which remainder catches
    return ((order.to(like.dtype) + shift) / n).remainder(1).reshape(shape).to(like.device)


def draw_uniforms(x0: Tensor, event_shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """One uniform for each sample of data ``[*batch, *event]``, in strata: ``[*batch]``. Refuses data of another shape."""
    check_event(x0, event_shape, "x0")
    return stratified(batch_shape(x0, event_shape), x0, generator)


def draw_levels(levels: Levels, x0: Tensor, event_shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """One σ for each sample of data, as :func:`draw_uniforms` draws its probability: ``[*batch]``."""
    return levels.quantile(draw_uniforms(x0, event_shape, generator))


def default_levels(process: Diffusion) -> LogUniform:
    """ln σ uniform on the range the schedule names for training."""
    return LogUniform(process.schedule.sigma_min, process.schedule.sigma_max)


def largest_level(levels: Levels) -> float:
    """The largest σ of a law, read off the law: a batch may be on a GPU."""
    return float(levels.quantile(torch.ones((), dtype=torch.float64)))


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
