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
ConditionalFlowMatching       that fold                        one fold               the same target, in units of a velocity
ExplicitScoreMatching         whose forward process runs       one score of another   none but that of x
ImplicitScoreMatching         that know their walls            a backward pass/axis   that of the divergence
SlicedScoreMatching           that know their walls            a backward pass/probe  more, by the probes
SimulatedScoreMatching        the same, under any SDE          simulation, then these the same
============================  ===============================  =====================  ==========================================

The variational bounds (``vdm``, ``ddpm``), matching of higher orders (``high_order``) and covariances (``covariance``) have files of
their own. What a loss weighs, levels and weights, is in ``levels``.

Vincent 2011 (denoising), Hyvärinen 2005 (implicit), Song et al. 2019 (sliced); walls: Hyvärinen 2007, Lou & Ermon 2023.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ...domains import Domain, FoldedDomain, KernelDomain
from ...domains.tensors import expand_right
from ...processes import Diffusion, FlowMatching
from ...solvers.divergence import slope
from .forward import normal, unchecked
from .levels import (
    Constant,
    Levels,
    LogNormal,
    LogUniform,
    MinSNR,
    UniformTime,
    default_levels,
    draw_levels,
    largest_level,
)

if TYPE_CHECKING:
    from .score import NeuralScore


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

    def sums(self) -> list[Tensor]:
        """What ``terms`` notes of samples in a step, as sums over them: ``train`` adds these up over processes, then calls ``settle``."""
        return []

    def settle(self) -> None:
        """Take over what was noted in a step, into buffers: if the step was bad, these become again what they were."""
        return


class ScoreMatching(Objective):
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
        levels = self.levels or self.default(score.process)
        return draw_levels(levels, x0, score.process.domain.event_shape, generator)

    def default(self, process: Diffusion) -> Levels:
        """The levels where none are given."""
        return default_levels(process)

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
class DenoisingScoreMatching(ScoreMatching):
    r""":math:`E_σ\, w(σ)\,\tfrac1d |(score(x, σ) - target) / u(σ)|^2`, u the unit of the preconditioning.

    In these units the network regresses on a target of mean square 1, so every σ weighs the same: on a box u² is the Fisher
    information of the kernel, and a score of zero has loss 1 on uniform data; in R^d this is EDM's λ(σ) = 1/c_out², and F = 0 has
    loss 1 on data N(mean, sigma_data²). What the best score leaves is a property of the data.

    The losses of the literature are choices of levels, weight and unit, made by the class methods:

    ===================  =====================  ======  =============  ===============================================
    ..                   levels                 unit    weight         source
    ===================  =====================  ======  =============  ===============================================
    the default          ln σ uniform           u(σ)    1
    ``simple(p)``        t uniform              1/σ     1              Ho et al. 2020, eq. 14: the error in ε
    ``likelihood(p)``    ln σ uniform           1/σ     ln(σ₁/σ₀)      Song et al. 2021b, eq. 7, importance-sampled
    ``min_snr(p)``       t uniform              1/σ     min(1, γσ²)    Hang et al. 2023
    ``edm()``            ln σ normal            u(σ)    1              Karras et al. 2022, table 1
    ===================  =====================  ======  =============  ===============================================

    Args:
        levels: the law of σ; by default ln σ uniform on [sigma_min, sigma_max] of the process. Drawn in strata, so that each batch
            covers all levels.
        weight: w, a function of σ ``[*batch]``; 1 by default.
        unit: "network" for u, "noise" for 1/σ, in which the loss is the error in ε = −σ·score, on walls too.

    Needs a domain with a heat kernel in closed form (``KernelDomain``). No value is read on the way: no host sync.
    Vincent 2011; on domains Lou & Ermon 2023, §4.2, whose regression target this is.
    """

    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None
    unit: Literal["network", "noise"] = "network"
    by_part: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.unit not in ("network", "noise"):
            raise ValueError(f"unit: got {self.unit!r}, expected 'network' or 'noise'")

    @classmethod
    def simple(cls, process: Diffusion) -> DenoisingScoreMatching:
        """L_simple: the error in ε, t uniform; over the levels of the table where the schedule is ``Discrete``."""
        return cls(UniformTime.of(process), None, "noise")

    @classmethod
    def likelihood(cls, process: Diffusion) -> DenoisingScoreMatching:
        r"""The weight g² of maximum likelihood, with times drawn in proportion to g²/std²: what the bound on −log p_0 has of the score.

        .. math:: \tfrac12\int g^2\,E|score_x - target_x|^2 dt = \int E|σ (score_X - target_X)|^2\,d\ln σ = d·loss

        for every schedule, for g² dt = s² d(σ²) and the score of x = sX is that of X by s: in nats, d the size of the event, the
        integral (not the mean) over t, between sigma_min and sigma_max. On walls likewise.
        """
        low, high = process.schedule.sigma_min, process.schedule.sigma_max
        return cls(LogUniform(low, high), Constant(math.log(high / low)), "noise")

    @classmethod
    def min_snr(cls, process: Diffusion, gamma: float = 5.0) -> DenoisingScoreMatching:
        """L_simple with easy levels, where SNR = 1/σ² > γ, weighed down as 1/SNR."""
        return cls(UniformTime.of(process), MinSNR(gamma), "noise")

    @classmethod
    def edm(cls, mean: float = -1.2, std: float = 1.2) -> DenoisingScoreMatching:
        """Unit weight in the preconditioning's units, ln σ normal; see :class:`LogNormal` for data of another width."""
        return cls(LogNormal(mean, std))

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
        level = score.process.event_sigma(sigma)
        unit = score.preconditioning.unit(level) if self.unit == "network" else 1 / level
        residual = (score.at_level(x, sigma, **condition) - target) / unit
        return self._end(sigma, residual.square())


@dataclass(frozen=True)
class LatentImageScoreMatching(ScoreMatching):
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
        domain = check_folds(score.process.domain, self, "Hypercube or Simplex; use ImplicitScoreMatching")
        sigma = self._begin(score, x0, generator)
        level, x, target = latent_image(domain, x0, sigma, generator)
        residual = (score.at_level(x, sigma, **condition) - target) / noise_unit(score, level)
        return self._end(sigma, residual.square())


@dataclass(frozen=True)
class ConditionalFlowMatching(ScoreMatching):
    r""":math:`E\,\tfrac1d |v_θ - v|^2`, v the velocity of the path from x_0 to noise, :math:`v_θ` that of the flow with this score.

    In R^d the path is (1 − t) x_0 + t ε, v = ε − x_0 and t = σ/(1 + σ); then :math:`v_θ - v = -σ(1 + σ)(score - target)` in
    coordinates of the heat flow, whatever the schedule and whatever the network predicts; with :class:`VelocityPreconditioning` it
    predicts :math:`v_θ` itself. On a domain that folds the path is x_σ = fold(x_0 + σz), whose velocity dx/dσ = W z is the latent image's;
    :math:`v_θ = -σ·score`, and :class:`ReflectedVelocity` makes the network predict it.

    Args:
        levels: by default t uniform over the range of the process, on bounded domains ln σ uniform. :class:`LogitNormalTime` is the
            other usual choice.
        weight: w, a function of σ ``[*batch]``; 1 by default.

    Its minimiser is the score itself: the mean of v given x is the velocity of the probability flow. Needs a ``FoldedDomain``, of which
    ``Euclidean`` is the plainest. Lipman et al. 2023, eq. 9; Liu et al. 2023, eq. 1.
    """

    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None

    def default(self, process: Diffusion) -> Levels:
        if process.domain.bounded:
            return default_levels(process)
        low, high = process.schedule.sigma_min, process.schedule.sigma_max
        return UniformTime(FlowMatching(), low / (1 + low), high / (1 + high))

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        domain = check_folds(score.process.domain, self, "Hypercube or Simplex; use ImplicitScoreMatching")
        sigma = self._begin(score, x0, generator)
        level, x, target = latent_image(domain, x0, sigma, generator)
        speed = level if domain.bounded else level * (1 + level)
        residual = (score.at_level(x, sigma, **condition) - target) * speed
        return self._end(sigma, residual.square())


@dataclass(frozen=True)
class ExplicitScoreMatching(ScoreMatching):
    r""":math:`E_σ\, w(σ)\,\tfrac1d |(score - s)(x, σ) / u(σ)|^2` with a known score s for a target: what the others estimate.

    Args:
        target: s, any score (x, t) of the same process: a closed form to test with, or a large model to distil. It is called without
            gradients, and with the condition if ``pass_condition``.
        levels, weight: as for denoising.
        steps: of the simulation where the domain has neither kernel nor fold, see :func:`simulate`.

    Any domain whose forward process can be run. Hyvärinen 2005, eq. 2.
    """

    target: Callable[..., Tensor]
    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None
    steps: int | None = None
    pass_condition: bool = False

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        process = score.process
        sigma = self._begin(score, x0, generator)
        with torch.no_grad():
            x = unchecked(
                process.domain,
                x0,
                sigma,
                generator,
                self.steps,
                lambda: largest_level(self.levels or self.default(process)),
            )
            level = process.event_level(process.schedule.time(sigma.double()).to(sigma.dtype))
            target = level.scale * self.target(level.scale * x, level.t, **(condition if self.pass_condition else {}))
        unit = score.preconditioning.unit(process.event_sigma(sigma))
        residual = (score.at_level(x, sigma, **condition) - target) / unit
        return self._end(sigma, residual.square())


def latent_image(
    domain: FoldedDomain, x0: Tensor, sigma: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(σ in broadcast form, x = W u + c the fold of u = x0 + σz, −W z/σ), σ ``[*batch]``."""
    level = expand_right(sigma, len(domain.event_shape))
    z = normal(x0, sigma, domain, generator)
    with torch.no_grad():
        x, back = domain.fold(x0 + level * z)
    return level, x, carried_forth(back, -z) / level


def check_folds(domain: Domain, objective: Objective, advice: str) -> FoldedDomain:
    """The domain, if it folds; ``advice`` names one that does, and says what to do."""
    if not isinstance(domain, FoldedDomain):
        raise TypeError(
            f"{type(objective).__name__}: got {domain!r}, whose reflection is no folding, expected a FoldedDomain such as {advice}"
        )
    return domain


def carried_forth(back: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    """The vectors at x whose ``back`` is ``vector``. back is linear and orthogonal (signs, rotations, permutations), so that its
    inverse is its transpose: the gradient of ⟨back(v), vector⟩ by v."""
    with torch.enable_grad():
        v = torch.zeros_like(vector).requires_grad_()
        return slope((back(v) * vector.detach()).sum(), v)
