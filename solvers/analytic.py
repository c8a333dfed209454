r"""Analytic-DPM: the variance that makes a Gaussian reverse step optimal, from statistics of the score.

A step with the mean of DDIM at fresh noise λ² loses what x_t does not say about ε. Its optimal variance, per coordinate, is

.. math:: γ^2 = λ^2 + \big(\sqrt{s_s^2σ_s^2 - λ^2} - s_sσ_t\big)^2\, v_t,\qquad
          v_t = \operatorname{Var}[ε | x_t],\quad \mathbb E\, v_t = 1 - s_t^2σ_t^2 Γ_t,\quad Γ_t = \tfrac1d \mathbb E\|score\|^2

(for a DDPM table Bao et al. 2022, thm. 1; the last factor of Bao et al. 2022b, thm. 3, is Cov[ε] itself: erratum E1). The mean over
coordinates and states comes from Γ estimated over data; a second network may give v per coordinate and state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import check_event, event_sum, number
from ..processes import Diffusion, Equation, ReverseSDE
from ..processes.equations import Field
from .checks import check_times
from .forms import NOISE, Array, Levels
from .linear import LinearSolver, own_noise, predict, readings
from .noise import seeded
from .onestep import posterior_variance
from .solver import Record, Row, combine

Covariance = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ScoreStatistics:
    """Γ(t) = E|score|²/d at some times.

    Attributes: times, gamma, standard_error, float64 ``[n]``, times decreasing.
    """

    times: Tensor
    gamma: Tensor
    standard_error: Tensor

    def noise_variance(self, process: Diffusion, times: Tensor) -> Tensor:
        """E Var[ε | x_t] = 1 − std²Γ at times within those of the table, linear in λ between them; never below 0."""
        known, asked = process.level(self.times), process.level(times)
        if bool((times > self.times.max() * (1 + 1e-12)).any()) or bool((times < self.times.min() * (1 - 1e-12)).any()):
            raise ValueError(
                f"statistics: got Γ from t = {float(self.times.min()):g} to {float(self.times.max()):g} for steps that begin from t = "
                f"{float(times.min()):g} to {float(times.max()):g}, expected a table that covers them; estimate it on that grid"
            )
        share = 1 - (known.scale * known.sigma) ** 2 * self.gamma
        value = np.interp(asked.half_log_snr.numpy(), known.half_log_snr.numpy(), share.numpy())
        return torch.as_tensor(value).clamp(min=0.0)


@torch.no_grad()
def estimate_statistics(
    process: Diffusion,
    score: Field,
    data: Tensor,
    times: Tensor,
    *,
    draws: int = 1,
    batch_size: int = 1024,
    seed: int = 0,
    condition: dict[str, Any] | None = None,
) -> ScoreStatistics:
    """Γ at ``times`` (float64, e.g. a grid or all levels of a table), by the mean over data ``[N, *event]`` noised ``draws`` times.

    The mean of |score|² leaves an error of √(2/N) in 1 − std²Γ, which is far less than that near pure noise. There, in R^d, the noise that
    was drawn tells more: |ε − ε_θ|²/d has the mean 1 − std²Γ as well, for an exact score, and scatters in proportion to it. Γ takes
    both, in the ratio Var[ε | x] : 1 − Var[ε | x].

    Costs N·draws·len(times) evaluations; the result is kept with a model and used for any grid within.
    """
    check_event(data, process.domain.event_shape, "data")
    times = check_times(times)
    ndim, generator = len(process.domain.event_shape), seeded(seed)
    means, errors = [], []
    for t in times.tolist():
        blocks = []
        for block in data.repeat(draws, *(1,) * ndim).split(batch_size):
            now = torch.tensor(t, dtype=block.dtype, device=block.device)
            x = process.unchecked_transition(block, now).sample(generator=generator)
            blocks.append(_noise_left(process, block, x, score(x, now, **(condition or {})), t, ndim))
        by_score, by_noise = torch.cat(blocks, 1).cpu()
        share = float(by_noise.mean().clamp(0.0, 1.0))
        left = share * by_score + (1 - share) * by_noise
        # draws of one datum are not independent
        level = process.level(t)
        each = (1 - left.reshape(draws, -1).mean(0)) / float(level.scale * level.sigma) ** 2
        means.append(float(each.mean()))
        errors.append(float(each.std() / len(each) ** 0.5) if len(each) > 1 else float("nan"))
    return ScoreStatistics(times, torch.tensor(means, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64))


def _noise_left(process: Diffusion, x0: Tensor, x: Tensor, value: Tensor, t: float, ndim: int) -> Tensor:
    """1 − |std·score|²/d and |ε + std·score|²/d, both of mean E Var[ε | x]: float64 ``[2, *batch]``; the first twice where noise folds."""
    level, dim = process.level(t), math.prod(x.shape[x.dim() - ndim :])
    scale, std = float(level.scale), float(level.scale * level.sigma)
    predicted = -std * value.double()
    by_score = 1 - event_sum(predicted**2, ndim) / dim
    if not isinstance(process.domain, Euclidean):
        return torch.stack([by_score, by_score])
    noise = (x.double() - scale * x0.double()) / std
    return torch.stack([by_score, event_sum((noise - predicted) ** 2, ndim) / dim])


def reverse_variance(
    process: Diffusion, statistics: ScoreStatistics, times: Tensor, *, eta: float = 1.0, data_width: float | None = None
) -> Tensor:
    """γ² of each step of a decreasing grid, float64 ``[n]``; the grid may end at σ = 0.

    Args: eta: λ = η·(posterior std). data_width: where data lies in an interval of this width, Var[x0 | x] is at most a quarter of its
    square, and γ² is clipped accordingly.
    """
    levels = Levels.at(process, times)
    start, end = levels[:-1], levels[1:]
    share = statistics.noise_variance(process, torch.as_tensor(start.t)).numpy()
    square, factor = _split(start, end, eta)
    return torch.as_tensor(square + factor * _clipped(share, start, data_width))


def _split(start: Levels, end: Levels, eta: float) -> tuple[Array, Array]:
    """(λ², what multiplies Var[ε])."""
    square = eta**2 * posterior_variance(start, end)
    return square, (np.sqrt(np.maximum(end.std**2 - square, 0.0)) - end.scale * start.sigma) ** 2


def _clipped(share: Array, start: Levels, data_width: float | None) -> Array:
    """Var[x0 | x] = σ²·Var[ε | x] no more than (width/2)²."""
    return share if data_width is None else np.minimum(share, (data_width / 2 / start.sigma) ** 2)


class SecondMoment:
    """SN-DPM: Var[ε | x] = h(x, t) − ε(x, t)² from a network h trained on E[ε² | x] (the square, elementwise: erratum E2)."""

    def __init__(self, network: Callable[..., Tensor]):
        self.network = network

    def __call__(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.network(x, t) - noise * noise


class PredictionResidual:
    """NPR-DPM: Var[ε | x] = g(x, t) from a network g trained on the squared residual (ε − ε_θ)² of the first."""

    def __init__(self, network: Callable[..., Tensor]):
        self.network = network

    def __call__(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.network(x, t)


class AnalyticDPM(LinearSolver):
    """DDIM's mean with the optimal variance; order 1, one evaluation (two networks where v is per coordinate), one draw.

    Args:
        statistics: :class:`ScoreStatistics` from :func:`estimate_statistics`; or :class:`SecondMoment`, :class:`PredictionResidual` or any
            callable (x, t, predicted ε) → Var[ε | x], of x's shape.
        eta: λ = η·(posterior std): 1 is Analytic-DDPM, 0 Analytic-DDIM.
        data_width: if the data is known to lie in an interval of this width, e.g. 2 for [−1, 1]: clips the variance. Off by default.
        last_std, last_steps: upper bound of γ in the last steps, e.g. 2·2/255·√(π/2) in units of pixels (the paper's); off by default.

    A step to σ = 0 adds no noise. Source: Bao et al. 2022, alg. 1; 2022b, alg. 1, 2.
    """

    accepts = (ReverseSDE,)
    stochastic = True
    order = 1
    weak_order = 1
    strong_order = 1
    source = "Bao et al. 2022, thm. 1; 2022b"

    def __init__(
        self,
        statistics: ScoreStatistics | Covariance,
        *,
        eta: float = 1.0,
        data_width: float | None = None,
        last_std: float | None = None,
        last_steps: int = 2,
    ):
        if not isinstance(statistics, ScoreStatistics) and (
            not callable(statistics) or hasattr(statistics, "prediction")
        ):
            raise TypeError(
                f"statistics: got {type(statistics).__name__}, expected ScoreStatistics, which estimate_statistics finds, or a "
                "callable (x, t, noise)"
            )
        self.statistics, self.eta = statistics, number(eta, "eta", low=0.0)
        self.data_width = None if data_width is None else number(data_width, "data_width", low=0.0, open_low=True)
        self.last_std = None if last_std is None else number(last_std, "last_std", low=0.0)
        self.last_steps = last_steps

    def _plan(self, equation: Equation, times: Tensor) -> list[Record]:
        own_noise(equation, self)
        process = equation.process  # type: ignore[attr-defined]
        levels = Levels.at(process, times)
        start, end = levels[:-1], levels[1:]
        square, factor = _split(start, end, self.eta)
        if (square > end.std**2 * (1 + 1e-12)).any():
            raise ValueError(f"{self!r}: got λ² beyond std² of a level, expected less noise; lower eta")
        limit = np.full_like(square, np.inf)
        if self.last_std is not None and self.last_steps:
            limit[-self.last_steps :] = self.last_std**2
        silent = end.sigma == 0
        keep, weight = end.scale / start.scale, np.sqrt(np.maximum(end.std**2 - square, 0.0)) - end.scale * start.sigma
        read = readings(NOISE, start)
        if isinstance(self.statistics, ScoreStatistics):
            share = _clipped(
                self.statistics.noise_variance(process, torch.as_tensor(start.t)).numpy(), start, self.data_width
            )
            std = np.where(silent, 0.0, np.sqrt(np.minimum(square + factor * share, limit)))
            extra: list[tuple] = [(float(c),) for c in std]
        else:
            bound = np.inf if self.data_width is None else (self.data_width / 2 / start.sigma) ** 2
            columns = (square, factor, np.broadcast_to(bound, square.shape), limit)
            extra = list(zip(*(c.tolist() for c in columns), strict=True))
        steps = zip(
            start.t.tolist(), end.t.tolist(), read, keep.tolist(), weight.tolist(), extra, silent.tolist(), strict=True
        )
        return [Record(t, s, (at, Row.of(k, w), numbers), int(not quiet)) for t, s, at, k, w, numbers, quiet in steps]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        at, row, numbers = record.coefficients
        epsilon = predict(equation, x, at, None)
        mean = combine(row, x, (epsilon,))
        if not record.draws:
            return mean, ()
        if len(numbers) == 1:
            return torch.addcmul(mean, numbers[0], noise[0]), ()
        square, factor, bound, limit = numbers
        share = torch.minimum(self.statistics(x, at.time, epsilon).clamp(min=0.0), bound)  # type: ignore[operator]
        return torch.addcmul(mean, torch.minimum(square + factor * share, limit).sqrt(), noise[0]), ()


def optimal(process: Diffusion, n: int, statistics: ScoreStatistics) -> Tensor:
    r"""The trajectory of n levels that loses least: among the times of ``statistics``, first and last included, the path that minimises
    :math:`\sum \tfrac12 \log(γ^2/λ^2)`, by dynamic programming (Bao et al. 2022, §4). Times as of every grid.

    The term of the last level to the data is left out, for it is infinite or fixed (erratum E24).
    """
    times = check_times(statistics.times)
    count = len(times)
    if not 2 <= n <= count:
        raise ValueError(f"n: got {n}, expected from 2 to {count}, the number of times in the statistics")
    return times[shortest_path(path_costs(process, statistics).numpy(), n)]


def path_costs(process: Diffusion, statistics: ScoreStatistics) -> Tensor:
    """½ log(γ²/λ²) of a step from times[i] to times[j], j > i, float64 ``[m, m]``; infinite elsewhere."""
    levels = Levels.at(process, statistics.times)
    share = statistics.noise_variance(process, statistics.times).numpy()
    count = len(share)
    i, j = np.triu_indices(count, 1)
    square, factor = _split(levels[i], levels[j], 1.0)
    costs = np.full((count, count), np.inf)
    costs[i, j] = 0.5 * np.log1p(factor * share[i] / square)
    return torch.as_tensor(costs)


def shortest_path(costs: Array, n: int) -> list[int]:
    """The n nodes, first and last included, of the cheapest path that goes upwards; costs ``[m, m]``."""
    count = len(costs)
    best, came = np.full(count, np.inf), []
    best[0] = 0.0
    for _ in range(n - 1):
        total = best[:, None] + costs
        came.append(total.argmin(0))
        best = total.min(0)
    path = [count - 1]
    for step in reversed(came):
        path.append(int(step[path[-1]]))
    return path[::-1]
