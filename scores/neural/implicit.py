r"""Score matching without a kernel: the divergence of the score in place of a target; the table in ``objectives`` compares it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...domains.tensors import expand_right, twice_differentiable
from ...solvers.divergence import exact_diagonal, sliced_diagonal
from .forward import unchecked
from .levels import Levels, largest_level
from .objectives import ScoreMatching, Terms, noise_unit
from .reflected import can_damp, damp_walls

if TYPE_CHECKING:
    from .score import NeuralScore


class Implicit(ScoreMatching):
    """Implicit score matching: of states that a subclass makes of the data, by whatever gives the diagonal of the Jacobian."""

    steps: int | None

    def _states(self, score: NeuralScore, x0: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        """X = x/s at levels σ ``[*batch]``, without gradients: the heat flow, unless told."""
        return unchecked(
            score.process.domain,
            x0,
            sigma,
            generator,
            self.steps,
            lambda: largest_level(self.levels or self.default(score.process)),
        )

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
            x = self._states(score, x0, sigma, generator)
        keep = torch.is_grad_enabled()
        with torch.enable_grad(), twice_differentiable():
            x = x.detach().requires_grad_()
            value = score.at_level(x, sigma, **condition)
            flux = value if damped else damp_walls(domain, x, value, level)
            diagonal = self._diagonal(flux, x, len(domain.event_shape), keep, generator)
            loss = (value * flux + 2 * diagonal) / noise_unit(score, level) ** 2
        return self._end(sigma, loss if keep else loss.detach())


@dataclass(frozen=True)
class ImplicitScoreMatching(Implicit):
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
class SlicedScoreMatching(Implicit):
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
