r"""DDPM's variational bound over the levels of a table, with fixed or learned variance, and the hybrid loss of iDDPM.

Level i of N has ᾱ_i, σ_i² = 1/ᾱ_i − 1; the reverse step has the mean of the posterior at the predicted ε and the variance g². In nats
for each x_0 in R^d, -log p(x_0) ≤ L_N + Σ_{i=1}^N L_{i−1} in the mean over noise, with L_N = KL(q(x_N|x_0) | N(0, I)) and

.. math::
    L_{i-1} &= \tfrac12 \sum_{axes} \big[ρ + e^{-ρ} - 1 + e^{-ρ} k_i (ε - \hat ε)^2\big],\quad ρ = \ln(g^2/\tilde β_i),\ \
               k_i = σ_i^2/σ_{i-1}^2 - 1 & (i ≥ 2) \\
    L_0 &= \tfrac12 \sum_{axes} \big[\ln 2π g^2 + σ_1^2 (ε - \hat ε)^2/g^2\big] & (i = 1)

β_i and β̃_i are the variances of x_i given x_{i−1}, and of x_{i−1} given x_i and x_0; β̃_1 = 0, so that β̃_2 stands in for it.
ρ = v·ln(β_i/β̃_i) with v = 0 ("posterior"), 1 ("beta"), or learned: (1 + the network's second output)/2, axis by axis. The best ρ is
ln(1 + k_i E(ε − ε̂)²), the variance of Analytic-DPM.

Sohl-Dickstein et al. 2015; Ho, Jain & Abbeel 2020, eq. 5, 13; Nichol & Dhariwal 2021, eq. 15, 16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...domains.constants import OnDevice, lasting
from ...domains.decoders import Bins
from ...domains.tensors import batch_shape, check_event, expand_right, number, per_batch
from ...processes import Discrete
from .forward import normal
from .levels import draw_uniforms
from .objectives import Objective, Terms
from .score import NeuralScore
from .vdm import event_mean, prior_divergence, refuse_walls

VARIANCES = ("posterior", "beta", "learned")


class LevelTerms(NamedTuple):
    """At one level per sample, all ``[*batch]``: σ_i, the mean of (ε − ε̂)² over axes, and L_{i−1} in nats per dimension."""

    sigma: Tensor
    noise_error: Tensor
    bound: Tensor


class Levelwise(NamedTuple):
    """The bound level by level, in nats per dimension, over data: L_N and L_0, …, L_{N−1} ``[N]``."""

    prior: Tensor
    levels: Tensor

    @property
    def total(self) -> Tensor:
        return self.prior + self.levels.sum()


class _ByLevel(Objective):
    """What the two objectives share: a table of levels, to one of which each sample is noised, in strata."""

    variance: str
    bins: Bins | None
    #: whether the bound trains the variance alone
    hold_mean: ClassVar[bool] = False

    def at(self, score: NeuralScore, x0: Tensor, index: Tensor, noise: Tensor, **condition: Any) -> LevelTerms:
        """The terms at given levels ``index`` ``[*batch]``, in 1, …, N, and given noise of x0's shape: what exact sums are made of."""
        ndim = len(score.process.domain.event_shape)
        columns = _constants(table_of(self, score), x0.device)[0][:, index - 1].to(x0.dtype)
        sigma, gain, span, posterior = (expand_right(column, ndim) for column in columns)
        value, extra = score.with_extra(x0 + sigma * noise, columns[0], **condition)
        error = noise + sigma * value
        held = error.detach() if self.hold_mean else error
        rho = span * (_share(extra) if self.variance == "learned" else float(self.variance == "beta"))
        misfit = gain * (-rho).exp() * held.square()
        step = 0.5 * (rho + (-rho).expm1() + misfit)
        if self.bins is None:
            last = 0.5 * (rho + misfit + (2 * math.pi * posterior).log())
        else:
            # the last Gaussian's mean is x_0 + σ_1 times the error
            last = self.bins.gaussian_nll(x0, x0 + sigma * held, (posterior * rho.exp()).sqrt())
        bound = torch.where(expand_right(index == 1, ndim), last, step)
        return LevelTerms(columns[0], event_mean(error.square(), ndim), event_mean(bound, ndim))

    @torch.no_grad()
    def levelwise(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Levelwise:
        """Every term of the bound as its mean over x0, with noise of its own at each of the N levels: N evaluations of the batch."""
        table, event = table_of(self, score), score.process.domain.event_shape
        check_event(x0, event, "x0")
        batch, means = batch_shape(x0, event), []
        for i in range(1, len(table.alphas_cumprod) + 1):
            index = torch.full(batch, i, device=x0.device)
            noise = normal(x0, index, score.process.domain, generator)
            means.append(self.at(score, x0, index, noise, **condition).bound.mean())
        return Levelwise(last_divergence(table, x0, len(batch)).mean(), torch.stack(means))

    def _draw(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None, condition: dict[str, Any]
    ) -> tuple[LevelTerms, Tensor]:
        """The terms at one level per sample, and N L_{i−1} + L_N, whose mean is the bound."""
        table = table_of(self, score)
        count = len(table.alphas_cumprod)
        index = (draw_uniforms(x0, score.process.domain.event_shape, generator).double() * count).long() + 1
        drawn = self.at(score, x0, index, normal(x0, index, score.process.domain, generator), **condition)
        return drawn, count * drawn.bound + last_divergence(table, x0, index.dim())


@dataclass(frozen=True)
class VariationalBound(_ByLevel):
    r"""The whole bound of a DDPM, per dimension: :math:`N L_{i-1} + L_N` at one level i per sample, uniform over 1, …, N in strata.

    Args:
        variance: of the reverse steps: "posterior" (β̃, with β̃_2 at i = 1), "beta" (β), or "learned" (between the two on a log scale,
            by the second half of an output of twice as many channels).
        bins: for data on a grid of values: :class:`Bins`, and L_0 is the mass of the bin under the last Gaussian. By default data are
            continuous and L_0 is a density.

    Needs a Euclidean domain and a ``Discrete`` schedule with ᾱ_N > 0. No value is read on the way: no host sync.
    Ho et al. 2020, eq. 5; for the learned variance Nichol & Dhariwal 2021, eq. 15.
    """

    variance: str = "posterior"
    bins: Bins | None = None

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise ValueError(f"variance: got {self.variance!r}, expected one of {', '.join(VARIANCES)}")

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        drawn, bound = self._draw(score, x0, generator, condition)
        return Terms(drawn.sigma, bound)


@dataclass(frozen=True)
class Hybrid(_ByLevel):
    r"""iDDPM's loss: :math:`\tfrac1d|ε - \hat ε|^2 + λ\,(N L_{i-1} + L_N)`, one level per sample as in :class:`VariationalBound`.

    The bound is that with learned variance, and trains the variance only: in it ε̂ is held fixed.

    Args:
        weight: λ. (The primary code's bound is in bits, per dimension too: its 0.001 is 0.00144 here.)
        bins: as for the bound.

    Needs a Euclidean domain, a ``Discrete`` schedule with ᾱ_N > 0 and a network that answers twice as many channels.
    Nichol & Dhariwal 2021, eq. 16.
    """

    weight: float = 1e-3
    bins: Bins | None = None
    variance: str = field(default="learned", init=False, repr=False)
    hold_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number(self.weight, "weight", low=0.0)

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        drawn, bound = self._draw(score, x0, generator, condition)
        return Terms(drawn.sigma, drawn.noise_error + self.weight * bound)


def step_table(schedule: Discrete) -> Tensor:
    """σ_i, k_i, ln(β_i/β̃_i), β̃_i of the steps from levels i = 1, …, N, float64 ``[4, N]``; in step 1, to the data, k_i β̃_i = σ_1² and β̃_2
    stands for β̃_1."""
    square = (-schedule.alphas_cumprod.log()).expm1()
    gain, span = step_columns(square[1:], square[:-1])
    variance = square / (1 + square)
    # (1 − σ_{i−1}²/σ_i²)·Var[x_{i−1} | x_0] = k/(1 + k)·…, free of cancellation
    posterior = variance[:-1] * gain / (1 + gain)
    posterior = torch.cat([posterior[:1], posterior])
    gain = torch.cat([square[:1] / posterior[:1], gain])
    return torch.stack([square.sqrt(), gain, torch.cat([(variance[:1] / posterior[:1]).log(), span]), posterior])


def step_columns(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """k = σ_t²/σ_s² − 1 and ln(β/β̃) = ln of the ratio of std² of a step from σ_t² = ``start`` to σ_s² = ``end``."""
    gain = (start - end) / end
    # std² = σ²/(1 + σ²), so that the ratio is (1 + k)(1 + σ_s²)/(1 + σ_t²) = 1 + k/(1 + σ_t²)
    return gain, (gain / (1 + start)).log1p()


def last_divergence(table: Discrete, x0: Tensor, batch_ndim: int) -> Tensor:
    """L_N per dimension: ``[*batch]``."""
    return prior_divergence(x0, _constants(table, x0.device)[1], x0.dim() - batch_ndim)


#: of each table in use, on each device that asked: a copy in every step would wait for the device
_KEPT: WeakKeyDictionary[Discrete, OnDevice[tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def _constants(table: Discrete, device: torch.device) -> tuple[Tensor, Tensor]:
    """(``step_table``, ln σ_N²) on a device."""
    if table not in _KEPT:
        _KEPT[table] = OnDevice(_make_constants(table))
    return _KEPT[table](device)


@lasting
def _make_constants(table: Discrete) -> tuple[Tensor, Tensor]:
    return step_table(table), (-table.alphas_cumprod[-1].log()).expm1().log()


def table_of(asking: object, score: NeuralScore) -> Discrete:
    """The schedule of the score's process, if it is a table of levels on a Euclidean domain that ends above ᾱ = 0; else an error."""
    refuse_walls(asking, score)
    schedule, name = score.process.schedule, type(asking).__name__
    if not isinstance(schedule, Discrete):
        raise TypeError(
            f"{name}: got {schedule!r}, which has no table of levels, expected a Discrete schedule, e.g. Discrete.ddpm(1000); "
            "in continuous time use VDM"
        )
    if schedule.t_max < 1:
        raise ValueError(
            f"{name}: got a table that ends at ᾱ = 0, where x says nothing of x_0 and ε̂ = x, expected ᾱ_N > 0; leave the last level out"
        )
    return schedule


def _share(extra: tuple[Tensor, ...]) -> Tensor:
    """v of the network's second output."""
    if len(extra) != 1:
        raise ValueError(
            f"learned variance: got a network with {len(extra)} outputs beside the score, expected 1: an output of twice as many "
            'channels as the input; or choose variance="posterior" or "beta"'
        )
    return 0.5 * (extra[0] + 1)


class LearnedVariance:
    r"""What a score trained with learned variance says of Var[ε | x]: callable (x, t, noise), for ``AnalyticDPM(LearnedVariance(score))``,
    whose step then adds noise of the variance g² = exp(v ln β + (1 − v) ln β̃), at least β̃.

    A reverse step of variance g² asserts :math:`\operatorname{Var}[ε|x] = (g^2/\tilde β - 1)/k`, see the module.

    Args:
        score: a :class:`NeuralScore` trained with :class:`VariationalBound` ("learned") or :class:`Hybrid`.
        times: the grid of the sampler, a decreasing list of the table's own times i/N, if v is to mean a place between β and β̃ of its
            own steps, as Nichol & Dhariwal skip levels. By default v is read as it was learned, of the step to the level before, and
            what that says of Var[ε | x] holds on any grid.
        condition: keywords of the network.

    Costs a second evaluation per step. Raises ``TypeError`` and ``ValueError`` as the objectives do, ``ValueError`` for other times.
    """

    def __init__(
        self,
        score: NeuralScore,
        times: Tensor | Sequence[float] | None = None,
        *,
        condition: dict[str, Any] | None = None,
    ):
        schedule = table_of(self, score)
        self.score, self.condition = score, condition or {}
        gain, span = step_table(schedule)[1:3]
        # the last step has the variance of x_0 itself, g² = σ_1² Var[ε | x], to which no β̃ is added
        self._columns = torch.stack([gain, span, (torch.arange(len(gain)) == 0).double()])
        self._on_device = OnDevice((self._columns,))
        if times is None:
            return
        square, count = (-schedule.alphas_cumprod.log()).expm1(), len(schedule.alphas_cumprod)
        position = torch.as_tensor(times, dtype=torch.float64).cpu() * count
        levels = position.round().long()
        if not bool(((position - levels).abs() < 1e-3).all() & (levels.diff() < 0).all() & (levels >= 0).all()):
            raise ValueError(f"times: got {times!r}, expected a decreasing list of the table's own times i/{count}")
        start, end = levels[:-1], levels[1:]
        start, end = start[end > 0] - 1, end[end > 0] - 1
        self._columns[:2, start] = torch.stack(step_columns(square[start], square[end]))

    def __call__(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        schedule, ndim = self.score.process.schedule, len(self.score.process.domain.event_shape)
        t = per_batch(t, x, ndim, "t")
        count = self._columns.shape[1]
        index = (t.double() * count).round().long().clamp(1, count) - 1
        columns = self._on_device(x.device)[0][:, index].to(x.dtype)
        gain, span, whole = (expand_right(column, ndim) for column in columns)
        _, extra = self.score.with_extra(x / expand_right(schedule.scale(t), ndim), schedule.sigma(t), **self.condition)
        return ((span * _share(extra)).expm1() + whole) / gain
