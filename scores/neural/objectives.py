r"""What a neural score is trained on. An objective is an object: settings in the constructor, ``objective(score, x0)`` → scalar.

With x ∼ p_σ(·|x_0) and p_σ its law over the data, each of these has the mean :math:`E|score(x, σ) - \nabla \log p_σ(x)|^2` + const:

.. math::
    E\,|score - t|^2,\ E[t | x, x_0] = \nabla_x \log p_σ(x|x_0) &\quad\text{denoising: no boundary term whatever the walls} \\
    E\,\big[|score|^2 + 2 \nabla·score\big] &\quad\text{implicit: if } \textstyle\oint p_σ\, score·n = 0

============================  ===============================  =====================  ==========================================
objective                     domains                          per sample             noise
============================  ===============================  =====================  ==========================================
DenoisingScoreMatching        with a heat kernel               one kernel score       least: t is of the size of the score itself
LatentImageScoreMatching      that fold                        one fold               t = ±z/σ, however small the score
ImplicitScoreMatching         that know their walls            a backward pass/axis   that of the divergence
SlicedScoreMatching           that know their walls            a backward pass/probe  more, by the probes
============================  ===============================  =====================  ==========================================

Vincent 2011 (denoising), Hyvärinen 2005 (implicit), Song et al. 2019 (sliced); walls: Hyvärinen 2007, Lou & Ermon 2023.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...domains import FoldedDomain, KernelDomain
from ...domains.tensors import batch_shape, check_event, expand_right, number
from .divergence import exact_diagonal, sliced_diagonal, slope
from .forward import normal, unchecked
from .preconditioning import can_damp, damp_walls

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


class _ScoreMatching(Objective):
    """What the objectives here have in common: levels, units, weights and the mean over an event."""

    levels: Levels | None
    weight: Callable[[Tensor], Tensor] | None
    #: whether each part of a product may have a schedule of its own
    by_part: ClassVar[bool] = False

    def _begin(self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None) -> Tensor:
        """σ ``[*batch]``, in strata; refuses data of the wrong shape."""
        if score.process.parts and not self.by_part:
            raise TypeError(
                f"{type(self).__name__}: got {score.process!r}, with a schedule for each part, expected one for all; use "
                "Diffusion(Product(…), schedule), or DenoisingScoreMatching"
            )
        event = score.process.domain.event_shape
        check_event(x0, event, "x0")
        levels = self.levels or default_levels(score.process)
        return levels.quantile(stratified(batch_shape(x0, event), x0, generator))

    def _end(self, sigma: Tensor, loss: Tensor) -> Terms:
        """The mean of a loss ``[*batch, *event]`` over the event, weighted."""
        loss = loss.flatten(sigma.dim()).mean(-1) if loss.dim() > sigma.dim() else loss
        return Terms(sigma, loss if self.weight is None else self.weight(sigma) * loss)


def noise_unit(score: NeuralScore, sigma: Tensor) -> Tensor:
    """The unit of objectives whose noise does not fall with the score: 1/σ on a bounded domain, u(σ) elsewhere. σ in broadcast form.

    On bounded domains u falls like e^{−π²σ²/2w²}: noise of size 1/σ measured in it would drown every other level.
    """
    return 1 / sigma if score.process.domain.bounded else score.preconditioning.unit(sigma)


@dataclass(frozen=True)
class DenoisingScoreMatching(_ScoreMatching):
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
    by_part: ClassVar[bool] = True

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        domain = score.process.domain
        if not isinstance(domain, KernelDomain):
            raise TypeError(
                f"DenoisingScoreMatching: got {domain!r}, which has no heat kernel in closed form; use a KernelDomain such as "
                "Hypercube, or ImplicitScoreMatching, which needs none"
            )
        sigma = self._begin(score, x0, generator)
        x, target = score.process.heat_flow(x0, sigma).sample_with_target(generator=generator)
        unit = score.preconditioning.unit(score.process.event_sigma(sigma))
        residual = (score.at_level(x, sigma, **condition) - target) / unit
        return self._end(sigma, residual.square())


@dataclass(frozen=True)
class LatentImageScoreMatching(_ScoreMatching):
    r""":math:`E_σ\, w(σ)\,\tfrac1d |(score(x, σ) - target) / v(σ)|^2` on the covering space of a domain that folds.

    The unfolded point u = x_0 + σz is kept: with x = W u the fold and W's linear part, target = −W z/σ, whose mean given x and x_0
    is the exact score, for W maps the Gaussian around x_0 to the image that contributes there. Unlike denoising it needs no kernel,
    and its target has the mean square 1/σ² at every σ, where the score's falls: 4.0 against 1.16 on [0, 1] from 0.2 at σ = ½.

    Args:
        levels: as for denoising.
        weight: w, a function of σ ``[*batch]``; 1 by default. The loss is in units of v = 1/σ on bounded domains, where denoising's is
            in units of u(σ), see :func:`noise_unit`; elsewhere in u(σ) too.

    Needs a ``FoldedDomain``. No value is read on the way: no host sync.
    """

    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        domain = score.process.domain
        if not isinstance(domain, FoldedDomain):
            raise TypeError(
                f"LatentImageScoreMatching: got {domain!r}, whose reflection is no folding, expected a FoldedDomain such as "
                "Hypercube or Simplex; use ImplicitScoreMatching"
            )
        sigma = self._begin(score, x0, generator)
        level = expand_right(sigma, len(domain.event_shape))
        z = normal(x0, sigma, domain, generator)
        with torch.no_grad():
            x, back = domain.fold(x0 + level * z)
        target = carried_forth(back, -z) / level
        residual = (score.at_level(x, sigma, **condition) - target) / noise_unit(score, level)
        return self._end(sigma, residual.square())


def carried_forth(back: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    """The vectors at x whose ``back`` is ``vector``. back is linear and orthogonal (signs, rotations, permutations), so that its
    inverse is its transpose: the gradient of ⟨back(v), vector⟩ by v."""
    with torch.enable_grad():
        v = torch.zeros_like(vector).requires_grad_()
        return slope((back(v) * vector.detach()).sum(), v)


class _Implicit(_ScoreMatching):
    """Implicit score matching, by whatever gives the diagonal of the Jacobian."""

    steps: int | None

    @abstractmethod
    def _diagonal(self, value: Tensor, x: Tensor, ndim: int, keep: bool, generator: torch.Generator | None) -> Tensor:
        """∂_i value_i or an estimate of it, ``[*batch, *event]``; differentiable if ``keep``."""

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        domain, damped = score.process.domain, score.preconditioning.damped
        if not (damped or can_damp(domain)):
            raise TypeError(
                f"{type(self).__name__}: got {domain!r}, which does not know its walls, expected a domain with "
                "boundary_distance(x), for without damping at the walls the loss has a boundary term; define it on the domain"
            )
        sigma = self._begin(score, x0, generator)
        level = expand_right(sigma, len(domain.event_shape))
        with torch.no_grad():
            x = unchecked(domain, x0, sigma, generator, self.steps, self._largest(score))
        keep = torch.is_grad_enabled()
        # fused attention cannot be differentiated twice
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = x.detach().requires_grad_()
            value = score.at_level(x, sigma, **condition)
            flux = value if damped else damp_walls(domain, x, value, level)
            diagonal = self._diagonal(flux, x, len(domain.event_shape), keep, generator)
            loss = (value * flux + 2 * diagonal) / noise_unit(score, level) ** 2
        return self._end(sigma, loss if keep else loss.detach())

    def _largest(self, score: NeuralScore) -> float:
        """The largest σ there is, from the law: the batch may be on a GPU."""
        return float((self.levels or default_levels(score.process)).quantile(torch.ones((), dtype=torch.float64)))


@dataclass(frozen=True)
class ImplicitScoreMatching(_Implicit):
    r""":math:`E_σ\, w(σ)\,\tfrac1d \big(|score|^2 + 2 \nabla·score\big)(x, σ) / v(σ)^2`: no kernel, no target, any domain with walls.

    It is denoising score matching less a constant, if the score has no flux through the walls: :math:`\oint p_σ\,score·n = 0`. A
    preconditioning that damps (``Reflected(wall=True)``) sees to that. For any other score s the loss is that of a damped metric,

    .. math:: s·G s + 2 \nabla·(G s) = |G^{1/2}(s - \nabla \log p_σ)|^2 + const \quad\text{in the mean,}

    with G the identity away from the walls and 0 along their normals at them (``domain.damp`` over a thin layer): the best s is
    :math:`\nabla \log p_σ` itself. Damping s in both terms would instead teach s to be too large near walls.

    Args:
        levels: as for denoising.
        weight: w, a function of σ ``[*batch]``; 1 by default. Units v = 1/σ on bounded domains, see :func:`noise_unit`.
        steps: of the simulation where the domain has neither kernel nor fold; by default what the largest level needs, see
            :func:`simulate`. It costs as many reflections, without derivatives.

    The divergence is exact: one backward pass per axis of the event, so for events of a few dimensions; beyond,
    :class:`SlicedScoreMatching`. On a torus the network itself must be periodic, or its jump is a boundary term that nothing sees.
    Needs a domain that defines ``boundary_distance`` or ``damp``, and a score that looks at each row by itself.
    Hyvärinen 2005, eq. 4; weights that vanish at walls: Hyvärinen 2007, §3.
    """

    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None
    steps: int | None = None

    def _diagonal(self, value: Tensor, x: Tensor, ndim: int, keep: bool, generator: torch.Generator | None) -> Tensor:
        return exact_diagonal(value, x, ndim, keep)


@dataclass(frozen=True)
class SlicedScoreMatching(_Implicit):
    """:class:`ImplicitScoreMatching` with Hutchinson's estimate of the divergence: one backward pass per probe at any dimension.

    Args: levels, weight, steps: as there. probes: how many random sign vectors per sample.

    The same mean, with more noise; more probes pay where the off-diagonal Jacobian is large. Song et al. 2019, eq. 8, in the form that
    keeps |score|² exact (their variance reduction).
    """

    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None
    steps: int | None = None
    probes: int = 1

    def __post_init__(self) -> None:
        if int(self.probes) != self.probes or self.probes < 1:
            raise ValueError(f"probes: got {self.probes!r}, expected a whole number of at least 1")

    def _diagonal(self, value: Tensor, x: Tensor, ndim: int, keep: bool, generator: torch.Generator | None) -> Tensor:
        return sliced_diagonal(value, x, self.probes, keep, generator)


def default_levels(process: Diffusion) -> LogUniform:
    """ln σ uniform on the range the schedule names for training."""
    return LogUniform(process.schedule.sigma_min, process.schedule.sigma_max)
