r"""Schedules: the clock of a diffusion, two functions of time from which everything else follows.

.. math:: x_t = s(t)\, X_{σ(t)},\qquad \text{std}(t) = s σ,\qquad λ(t) = -\ln σ,\qquad
          dx = a x\, dt + g\, dW,\quad a = s'/s,\quad g^2 = s^2 (σ^2)'

t ∈ [0, 1] runs from data to noise and σ(0) = 0. To add a schedule, derive from :class:`Schedule` and write ``scale`` and
``sigma`` with torch operations; the rest is derived by forward-mode differentiation (which works on a constant scale
and under ``inference_mode``, where backward mode does not) and by bisection. A closed form may override any of them;
``carom.validation.check_schedule`` compares the two on a grid.

Every function is elementwise, takes tensors of any shape or numbers (numbers become float64 tensors) and keeps the dtype.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..domains import Domain

_FUNCTIONS = ("scale", "sigma", "std", "time", "drift_rate", "diffusion", "half_log_snr")


def _number(value: float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _with_slope(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """(f(t), f'(t)) of an elementwise function."""
    value, slope, *_ = torch.func.jvp(function, (t,), (torch.ones_like(t),))
    return value, slope


def _takes_numbers(function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(self: Schedule, value: Tensor | float) -> Tensor:
        at = value if isinstance(value, Tensor) else _number(value)
        result = function(self, at)
        return result if isinstance(result, Tensor) else torch.full_like(at, result)

    return wrapped


class Schedule(ABC):
    """scale s(t) and noise level σ(t) on [0, t_max]; see the module's text.

    Facts: ``t_max`` where σ is still finite (grids start and the prior is drawn there); ``sigma_min`` and ``sigma_max``,
    the ends of default grids and of training; ``prior_std``, the std of the prior on an unbounded domain.
    """

    t_max: float = 1.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _FUNCTIONS:
            if name in cls.__dict__:
                setattr(cls, name, _takes_numbers(cls.__dict__[name]))

    @abstractmethod
    def scale(self, t: Tensor) -> Tensor:
        """s(t), with s(0) = 1."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σ(t): noise-to-signal, increasing, σ(0) = 0."""

    @property
    def kinks(self) -> Sequence[float]:
        """Times inside (0, t_max) at which derivatives jump, as in a table; quadrature over t should break there."""
        return ()

    def config(self) -> dict[str, Any]:
        """``{"type": class name, **constructor arguments}``: how the schedule travels in a checkpoint."""
        raise NotImplementedError(f"{type(self).__name__} does not define config(), which checkpoints need")

    def on(self, domain: Domain) -> Schedule:
        """This schedule with the defaults that suit ``domain``."""
        return self

    @property
    def sigma_min(self) -> float:
        return float(self.sigma(_number(1e-3 * self.t_max)))

    @property
    def sigma_max(self) -> float:
        return float(self.sigma(_number(self.t_max)))

    @property
    def prior_std(self) -> float:
        return float(self.std(_number(self.t_max)))

    @_takes_numbers
    def std(self, t: Tensor) -> Tensor:
        """s(t)·σ(t)."""
        return self.scale(t) * self.sigma(t)

    @_takes_numbers
    def half_log_snr(self, t: Tensor) -> Tensor:
        """λ(t) = −ln σ(t)."""
        return -self.sigma(t).log()

    @_takes_numbers
    def drift_rate(self, t: Tensor) -> Tensor:
        """a(t) = s'(t) / s(t)."""
        scale, slope = _with_slope(self.scale, t)
        return slope / scale

    @_takes_numbers
    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) = s √(2σσ')."""
        sigma, slope = _with_slope(self.sigma, t)
        return self.scale(t) * (2 * sigma * slope).sqrt()

    @_takes_numbers
    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of σ(t) on [0, t_max]: bisection in float64, then Newton."""
        target = sigma.to(torch.float64)
        low, high = torch.zeros_like(target), torch.full_like(target, self.t_max)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.sigma(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        t = 0.5 * (low + high)
        value, slope = _with_slope(self.sigma, t)
        newton = t - (value - target) / slope
        return torch.where((newton >= low - 1e-9) & (newton <= high + 1e-9), newton, t).to(sigma.dtype)


class UnitScale(Schedule):
    """A schedule with s = 1, the only kind that a domain with walls admits (unless it is a cone)."""

    def scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def drift_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def std(self, t: Tensor) -> Tensor:
        return self.sigma(t)


class VariancePreserving(Schedule):
    """A schedule with s² (1 + σ²) = 1; its prior is N(0, I)."""

    def std(self, t: Tensor) -> Tensor:
        # s·σ without 0·∞ where σ is infinite
        return (1 + self.sigma(t) ** -2).rsqrt()

    def scale(self, t: Tensor) -> Tensor:
        return (1 + self.sigma(t) ** 2).rsqrt()

    @property
    def prior_std(self) -> float:
        return 1.0
