r"""The variational bound of a diffusion in continuous or discrete time, with a noise schedule that is trained along.

With :math:`γ = 2 \ln σ`, :math:`X = x_0 + e^{γ/2} ε` and :math:`\hat ε = -σ\,score(X, σ)`, in nats for each x_0 in R^d,

.. math:: -\log p(x_0) \le \underbrace{KL\big(q(z_1|x_0)\,|\,N(0, I)\big)}_{prior} + \underbrace{E[-\log p(x_0|z_0)]}_{reconstruction}
          + \underbrace{\tfrac12 \int_0^1 γ'(u)\, E|ε - \hat ε|^2\, du}_{diffusion},

the last of which depends on γ(0) and γ(1) alone. In T steps it is :math:`\tfrac12 \sum_i (e^{γ_i - γ_{i-1}} - 1)\, E|ε - \hat ε(X_i)|^2`,
which exceeds the integral by O(1/T) and does depend on the curve between.

Kingma, Salimans, Poole & Ho 2021, "Variational diffusion models", eq. 11-18.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...domains import Euclidean
from ...domains.decoders import Bins
from ...domains.tensors import batch_shape, event_sum, expand_right, is_int
from ...processes.learned import Learned
from .forward import normal
from .levels import draw_uniforms
from .objectives import Objective, Terms
from .score import NeuralScore

INTERIORS = ("variance", "bound", "fixed")


class Bound(NamedTuple):
    """The parts of a bound on −log p(x_0) in nats per dimension, and the noise level the diffusion was taken at: all ``[*batch]``."""

    sigma: Tensor
    diffusion: Tensor
    prior: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        return self.diffusion + self.prior + self.reconstruction


class VDM(Objective, nn.Module):
    r"""The bound on −log p(x_0), per dimension, at one random time per sample; it owns the schedule and trains it.

    Gradients, in one backward pass: the network and the two ends of the schedule get that of the bound. Between the ends the
    continuous bound is flat, so there the schedule gets the gradient of the second moment of the diffusion part, sample by sample, and with
    it of the variance of what is being minimised: each sample's gradient, on its way to the curve, is multiplied by twice its loss.

    Args:
        schedule: a :class:`~carom.processes.Learned`. Its parameters are this module's and belong to the optimizer. The
            score may run on any schedule: it is asked at noise levels, and a score trained here is sampled on ``schedule`` or
            on ``schedule.freeze()``. Training refuses a score on another ``Learned``, which would stay as it began;
            ``bound`` and ``at`` evaluate it on any.
        steps: T, for the bound in discrete time; None for continuous time.
        interior: what the curve between the ends is trained on: "variance" (see above), "bound" or "fixed". By default the variance
            in continuous time and the bound in discrete time, which depends on the curve.
        bins: for data on a grid of values, :class:`Bins`, and p(x_0|z_0) is a distribution over them, N(X, σ_min²) at each value. By
            default data are continuous and p(x_0|z_0) = N(X, σ_min²), of which the mean over noise ½(ln 2π + γ_min + 1) is added.
        denoise: put D(X, σ_min), the denoiser's mean, in place of X there, for a second evaluation of the network: the bound falls by
            about ½σ_min²/v for data that are smooth on a scale √v.

    Times are drawn in strata, so that a batch covers them all: a low-discrepancy sample. Accepts Euclidean domains only, for
    σ_max ends in a Gaussian. No value is read on the way: no host sync.
    Kingma et al. 2021, eq. 11-18 and app. I.
    """

    def __init__(
        self,
        schedule: Learned,
        *,
        steps: int | None = None,
        interior: str | None = None,
        bins: Bins | None = None,
        denoise: bool = False,
    ):
        super().__init__()
        if not isinstance(schedule, Learned):
            raise TypeError(f"schedule: got {type(schedule).__name__}, expected a Learned() from carom.processes")
        if steps is not None and not is_int(steps, 1):
            raise ValueError(
                f"steps: got {steps!r}, expected a whole number of at least 1, or None for continuous time"
            )
        interior = interior or ("variance" if steps is None else "bound")
        if interior not in INTERIORS:
            raise ValueError(f"interior: got {interior!r}, expected one of {', '.join(INTERIORS)}")
        self.schedule, self.steps, self.interior = schedule, steps, interior
        self.bins, self.denoise = bins, bool(denoise)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, interior={self.interior!r}, bins={self.bins}, denoise={self.denoise}"

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        self._check_schedule(score)
        bound = self.bound(score, x0, generator, **condition)
        return Terms(bound.sigma, bound.total)

    def _check_schedule(self, score: NeuralScore) -> None:
        """Refuse to train a schedule while the score is on another that looks the same and stays as it began."""
        own = score.process.schedule
        if isinstance(own, Learned) and own is not self.schedule:
            raise ValueError(
                f"VDM: got a score on a {own!r} that is not the schedule of the objective, so that nothing would train it; expected one "
                "object for both: VDM(score.process.schedule)"
            )

    def bound(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Bound:
        """The parts of the bound, each of which has its mean over times and noise."""
        refuse_walls(self, score)
        u = draw_uniforms(x0, score.process.domain.event_shape, generator)
        return self.at(score, x0, u, normal(x0, u, score.process.domain, generator), **condition)

    def at(self, score: NeuralScore, x0: Tensor, u: Tensor, noise: Tensor, **condition: Any) -> Bound:
        """The same at given times u ``[*batch]`` in [0, 1) and given noise, of x0's shape: what sums and quadratures are made of.

        In discrete time u picks the step from i/T to (i + 1)/T that it lies in.
        """
        refuse_walls(self, score)
        ndim = len(score.process.domain.event_shape)
        low, high = self.schedule.gamma_min, self.schedule.gamma_max
        path, scale = _late_scale(self._path(u), self.interior)
        if self.steps is None:
            gamma, slope = low + (high - low) * path[0], (high - low) * path[1]
        else:
            before, gamma = low + (high - low) * path
            slope = self.steps * (gamma - before).expm1()
        sigma = (0.5 * gamma).exp().to(x0.dtype)
        level = expand_right(sigma, ndim)
        error = noise + level * score.at_level(x0 + level * noise, sigma, **condition)
        diffusion = 0.5 * slope.to(x0.dtype) * event_mean(error.square(), ndim)
        scale.append(2 * diffusion.detach())
        return Bound(
            sigma, diffusion, prior_divergence(x0, high, ndim), self._reconstruction(score, x0, noise, condition)
        )

    def _path(self, u: Tensor) -> Tensor:
        """(F, F') at u, or F at the two ends of the step u lies in: ``[2, *batch]``, float64."""
        if self.steps is None:
            return torch.stack(self.schedule.progress(u))
        step = (u.double() * self.steps).floor()
        return self.schedule.progress(torch.stack([step, step + 1]) / self.steps)[0]

    def _reconstruction(self, score: NeuralScore, x0: Tensor, noise: Tensor, condition: dict[str, Any]) -> Tensor:
        """−log p(x_0 | z_0) with the same noise, in which it is nearly independent of the rest."""
        ndim, gamma = len(score.process.domain.event_shape), self.schedule.gamma_min
        batch = batch_shape(x0, score.process.domain.event_shape)
        std = (0.5 * gamma).exp().to(x0.dtype)
        if self.denoise:
            noise = noise + std * score.at_level(x0 + std * noise, std.expand(batch), **condition)
        if self.bins is not None:
            return event_mean(self.bins.softmax_nll(x0, x0 + std * noise, std), ndim)
        square = event_mean(noise.square(), ndim) if self.denoise else x0.new_ones(batch)
        return 0.5 * (math.log(2 * math.pi) + gamma.to(x0.dtype) + square)


def _late_scale(path: Tensor, interior: str) -> tuple[Tensor, list[Tensor]]:
    """(path, a list): gradients that come back along ``path`` are multiplied by what is in the list by then, ``[*batch]``."""
    scale: list[Tensor] = []
    if interior == "fixed":
        return path.detach(), scale
    if interior == "variance" and path.requires_grad:
        path.register_hook(lambda gradient: gradient * scale[0])
    return path, scale


def event_mean(x: Tensor, ndim: int) -> Tensor:
    """The mean over an event of ndim dimensions: ``[*batch]``."""
    return event_sum(x, ndim) / math.prod(x.shape[x.dim() - ndim :])


def prior_divergence(x0: Tensor, gamma: Tensor, ndim: int) -> Tensor:
    """KL(N(√ᾱ x_0, (1 − ᾱ) I) | N(0, I)) per dimension, ᾱ = 1/(1 + e^γ) that of the last level: ``[*batch]``."""
    signal, log_variance = (-gamma).sigmoid(), -functional.softplus(-gamma)
    return 0.5 * (signal.to(x0.dtype) * (event_mean(x0.square(), ndim) - 1) - log_variance.to(x0.dtype))


def refuse_walls(asking: object, score: NeuralScore) -> None:
    """A TypeError on every domain but a Euclidean one: elsewhere chains of Gaussians are no model of the diffusion."""
    if not isinstance(score.process.domain, Euclidean):
        raise TypeError(
            f"{type(asking).__name__}: got {score.process.domain!r}, whose walls or parts the Gaussian bound does not know, "
            "expected a Euclidean domain; use DenoisingScoreMatching"
        )
