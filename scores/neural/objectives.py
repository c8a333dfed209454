r"""What a neural score is trained on. An objective is an object: settings in the constructor, ``objective(score, x0)`` → scalar.

Denoising score matching on a domain: with :math:`x ∼ p_σ(·|x_0)` from the domain's heat kernel,

.. math:: E\,|score(x, σ) - \nabla_x \log p_σ(x|x_0)|^2 = E\,|score(x, σ) - \nabla_x \log p_σ(x)|^2 + const,

with no boundary term whatever the walls (numerics.md §1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...domains import KernelDomain
from ...domains.tensors import batch_shape, check_event, expand_right, number

if TYPE_CHECKING:
    from ...processes import Diffusion
    from .score import NeuralScore


class Levels(Protocol):
    """A law of noise levels, by its quantile function."""

    def quantile(self, u: Tensor) -> Tensor:
        """σ at probabilities u in [0, 1): the same shape."""


@dataclass(frozen=True)
class LogUniform:
    """ln σ uniform between ln ``low`` and ln ``high``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        number(self.high, "high", low=number(self.low, "low", open_low=True, low=0.0), open_low=True)

    def quantile(self, u: Tensor) -> Tensor:
        return self.low * (self.high / self.low) ** u


def stratified(shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniforms in [0, 1), one in each of n equal strata, in random order: each is uniform, and the batch covers them all."""
    n = shape.numel()
    device = like.device if generator is None else generator.device
    order = torch.randperm(n, generator=generator, device=device)
    shift = torch.rand((), generator=generator, device=device, dtype=like.dtype)
    # (i + shift)/n < 1 but for rounding, which remainder catches
    return ((order.to(like.dtype) + shift) / n).remainder(1).reshape(shape).to(like.device)


class Terms(NamedTuple):
    """One draw of an objective, per sample: noise levels and losses, both ``[*batch]``."""

    sigma: Tensor
    loss: Tensor


class Objective(ABC):
    """``objective(score, x0, generator=, **condition)`` → scalar. It states what it needs of the domain and refuses the rest."""

    @abstractmethod
    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        """The loss sample by sample, with the noise level it was taken at."""

    def __call__(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Tensor:
        return self.terms(score, x0, generator, **condition).loss.mean()


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    r""":math:`E_σ\, w(σ)\,\tfrac1d |(score(x, σ) - target) / u(σ)|^2`, u the unit of the preconditioning.

    In these units the network regresses on a target of mean square 1, so every σ weighs the same: on a box u² is the Fisher
    information of the kernel, and a score of zero has loss 1 on uniform data; in R^d this is EDM's λ(σ) = 1/c_out², and F = 0 has
    loss 1 on data N(mean, sigma_data²). What the best score leaves is a property of the data.

    Args:
        levels: the law of σ; by default ln σ uniform on [sigma_min, sigma_max] of the process. Drawn in strata, so that each batch
            covers all levels.
        weight: w, a function of σ ``[*batch]``; 1 by default.

    Needs a domain with a heat kernel in closed form (``KernelDomain``). No value is read on the way: no host sync.
    Vincent 2011; on domains Lou & Ermon 2023, §4.2, whose regression target this is.
    """

    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        domain = score.process.domain
        if not isinstance(domain, KernelDomain):
            raise TypeError(
                f"DenoisingScoreMatching: got {domain!r}, which has no heat kernel in closed form; use a KernelDomain such as "
                "Hypercube, or an objective that needs none"
            )
        check_event(x0, domain.event_shape, "x0")
        batch, ndim = batch_shape(x0, domain.event_shape), len(domain.event_shape)
        levels = self.levels or default_levels(score.process)
        sigma = levels.quantile(stratified(batch, x0, generator))
        kernel = domain.unchecked_kernel(x0, sigma)
        x, target = kernel.sample_with_target(generator=generator)
        unit = score.preconditioning.unit(expand_right(sigma, ndim))
        residual = (score.at_level(x, sigma, **condition) - target) / unit
        loss = residual.square().flatten(len(batch)).mean(-1) if ndim else residual.square()
        return Terms(sigma, loss if self.weight is None else self.weight(sigma) * loss)


def default_levels(process: Diffusion) -> LogUniform:
    """ln σ uniform on the range the schedule names for training."""
    return LogUniform(process.schedule.sigma_min, process.schedule.sigma_max)
