r"""Networks for how uncertain the noise is, per coordinate: E[ε² | x] (SN) or E[(ε − ε_θ)² | x] (NPR), ε_θ = −σ·score of a trained score.

With :class:`~carom.solvers.SecondMoment` and :class:`~carom.solvers.PredictionResidual` they give :class:`~carom.solvers.AnalyticDPM`
its covariance: E[ε² | x] − ε_θ², or E[(ε − ε_θ)² | x] itself. Both are Var[ε | x] for an exact score. An error e of ε_θ enters the first as
−2 ε_θ e − e², beside a difference that may be small, the second as e², as it should: what a score misses is noise to its sampler. The
first needs no score to be trained.

Both targets are positive, and at large σ far from 1. So a head answers with b, what its target is for Gaussian data of the mean and
the spread that the preconditioning assumes, times a positive function of the network F:

.. math:: h = b(x, σ)\,\ln\big(1 + (e - 1)\,e^F\big),\qquad b = c \text{ (NPR)},\quad b = c + (σA)^2 \text{ (SN)},\quad c = (σu)^2,

u the unit of the preconditioning, A the score it makes of F = 0; between bounded walls c = 1, A = 0. The loss is that of h/b, a
regression on targets of mean 1 for such data, where F = 0 is exact; whatever b, its minimiser is the conditional mean. Softplus
rather than exp: it is as positive, and one large target raises h less.

Bao et al. 2022b, alg. 1, 2; the target of SN is the square, elementwise (erratum E2).
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...domains import Domain
from ...processes import Diffusion, process_from_config
from . import checkpoint
from .levels import Levels
from .objectives import Objective, ScoreMatching, Terms, check_folds, latent_image
from .preconditioning import Preconditioning
from .preconditioning_registry import default_preconditioning, preconditioning_from_config
from .score import NeuralScore

_SHIFT = math.log(math.e - 1)  # softplus of it is 1


class MomentUnits(Preconditioning, ABC):
    """h = b·softplus(F + ln(e − 1)) in place of a score, with the inputs of the preconditioning ``base``."""

    def __init__(self, base: Preconditioning, bounded: bool):
        self.base, self.bounded = base, bounded

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    @abstractmethod
    def baseline(self, x: Tensor, sigma: Tensor) -> Tensor:
        """b: what the target is for Gaussian data."""

    def variance(self, sigma: Tensor) -> Tensor:
        """c = (σu)²: Var[ε | x] for such data."""
        return torch.ones_like(sigma) if self.bounded else (sigma * self.base.unit(sigma)) ** 2

    def inputs(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.base.inputs(x, sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.base.c_noise(sigma)

    def unit(self, sigma: Tensor) -> Tensor:
        return self.variance(sigma)

    def score(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return self.baseline(x, sigma) * functional.softplus(raw + _SHIFT)

    def config(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "base": self.base.config()}

    def check(self, domain: Domain) -> None:
        self.base.check(domain)


class SecondMomentUnits(MomentUnits):
    """b = c + (σA)²."""

    def baseline(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.variance(sigma) + (sigma * self.base.score(torch.zeros_like(x), x, sigma)) ** 2


class ResidualUnits(MomentUnits):
    """b = c."""

    def baseline(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.variance(sigma).expand_as(x)


class CovarianceHead(NeuralScore, ABC):
    """A network that answers (x, t) with a positive number per coordinate, x's shape and dtype: the same in x as in X = x/s.

    It is trained, averaged, saved and loaded as a :class:`NeuralScore` is, with an objective of its own: ``train(head, data,
    objective=SecondMomentMatching())``. It is no score.

    Args:
        network: as for a score: x's shape in and out.
        process: of the score it goes with.
        preconditioning: whose inputs the network sees and whose assumptions about the data it starts from; the score's, or by default
            what a score on this domain has.
    """

    preconditioning: MomentUnits

    @staticmethod
    @abstractmethod
    def units(base: Preconditioning, bounded: bool) -> MomentUnits:
        """What stands between network and answer."""

    def __init__(self, network: nn.Module, process: Diffusion, preconditioning: Preconditioning | None = None):
        base = preconditioning or default_preconditioning(process.domain)
        super().__init__(network, process, self.units(base, process.domain.bounded))

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """h at x ``[*batch, *event]``, t a number, ``[*batch]`` or ``[*batch, 1, …, 1]``: x's shape and dtype."""
        x, sigma, _ = self.undo_scale(x, t)
        return self.at_level(x, sigma, **condition)

    def loss(
        self,
        x0: Tensor,
        objective: Objective | None = None,
        generator: torch.Generator | None = None,
        **condition: Any,
    ) -> Tensor:
        """The objective at data x0; only those made for a head are taken."""
        if not isinstance(objective, CovarianceMatching):
            raise TypeError(
                f"objective: got {type(objective).__name__} for a {type(self).__name__}, which is no score; expected "
                "SecondMomentMatching() for a SecondMomentHead, ResidualMatching(score) for a ResidualHead"
            )
        return super().loss(x0, objective, generator, **condition)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        network: nn.Module | None = None,
        *,
        process: Diffusion | None = None,
        preconditioning: Preconditioning | None = None,
    ) -> CovarianceHead:
        """As :meth:`NeuralScore.load`; also ``ValueError`` for the file of a score, or of another kind of head."""
        header = checkpoint.read(path, ()).header
        process = process or process_from_config(header["process"])
        config = header["preconditioning"]
        base = preconditioning or preconditioning_from_config(config.get("base", config), process.domain)
        expected = type(cls.units(base, process.domain.bounded)).__name__
        if config.get("type") != expected:
            raise ValueError(
                f"checkpoint: got {str(path)!r} with {config.get('type')}, expected {expected}, as {cls.__name__} has; load it with the "
                "class it was saved from"
            )
        head = super().load(path, network, process=process, preconditioning=base)
        assert isinstance(head, CovarianceHead)
        return head


class SecondMomentHead(CovarianceHead):
    """E[ε² | x], elementwise, for :class:`~carom.solvers.SecondMoment` (SN-DPM). See :class:`CovarianceHead`."""

    @staticmethod
    def units(base: Preconditioning, bounded: bool) -> MomentUnits:
        return SecondMomentUnits(base, bounded)


class ResidualHead(CovarianceHead):
    """E[(ε − ε_θ)² | x], elementwise, for :class:`~carom.solvers.PredictionResidual` (NPR-DPM). See :class:`CovarianceHead`."""

    @staticmethod
    def units(base: Preconditioning, bounded: bool) -> MomentUnits:
        return ResidualUnits(base, bounded)


class CovarianceMatching(ScoreMatching):
    """Regression of a head on the square of what is not known of ε, in units of its baseline."""

    head: ClassVar[type[CovarianceHead]]

    @abstractmethod
    def _unknown(self, x: Tensor, z: Tensor, sigma: Tensor, level: Tensor, condition: dict[str, Any]) -> Tensor:
        """ε or what is left of it, of x's shape; σ is ``sigma`` and, in broadcast form, ``level``."""

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        if not isinstance(score, self.head):
            raise TypeError(
                f"{type(self).__name__}: got a {type(score).__name__}, expected a {self.head.__name__}(network, process)"
            )
        advice = "Euclidean, for elsewhere no Gaussian noise leads from the data to x"
        domain = check_folds(score.process.domain, self, advice)
        sigma = self._begin(score, x0, generator)
        level, x, target = latent_image(domain, x0, sigma, generator)
        with torch.no_grad():
            unknown = self._unknown(x, -level * target, sigma, level, condition)
        baseline = score.preconditioning.baseline(x, level)
        residual = (score.at_level(x, sigma, **condition) - unknown.square()) / baseline
        return self._end(sigma, residual.square())


@dataclass(frozen=True)
class SecondMomentMatching(CovarianceMatching):
    r""":math:`E_σ\,w(σ)\,\tfrac1d |(h - ε^2)/b|^2`, the square elementwise: h = E[ε² | x] at best. It needs no score.

    Args:
        levels: by default ln σ uniform over the range of the process.
        weight: w, a function of σ ``[*batch]``; 1 by default.

    Needs a :class:`SecondMomentHead` on a ``FoldedDomain``: where it folds, ε lies between x and the image of the data it came from, as in
    :class:`HighOrderScoreMatching`. No host sync. Bao et al. 2022b, alg. 1.
    """

    head = SecondMomentHead
    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None

    def _unknown(self, x: Tensor, z: Tensor, sigma: Tensor, level: Tensor, condition: dict[str, Any]) -> Tensor:
        return z


@dataclass(frozen=True)
class ResidualMatching(CovarianceMatching):
    r""":math:`E_σ\,w(σ)\,\tfrac1d |(h - (ε + σ\,score)^2)/b|^2`, the square elementwise, from a trained score that stays as it is.

    Args:
        score: called without gradients, with the weights it answers with at the time (after training, their average).
        levels, weight: as for :class:`SecondMomentMatching`.
        pass_condition: whether the score takes the condition, too.

    Needs a :class:`ResidualHead` on the domain of the score, a ``FoldedDomain``. No host sync. Bao et al. 2022b, alg. 2.
    """

    head = ResidualHead
    score: NeuralScore = field(repr=False)
    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None
    pass_condition: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.score, NeuralScore) or isinstance(self.score, CovarianceHead):
            raise TypeError(
                f"score: got {type(self.score).__name__}, expected the trained NeuralScore whose residual it is"
            )

    def _unknown(self, x: Tensor, z: Tensor, sigma: Tensor, level: Tensor, condition: dict[str, Any]) -> Tensor:
        return z + level * self.score.at_level(x, sigma, **(condition if self.pass_condition else {}))
