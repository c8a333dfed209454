r"""Time reversed for a general SDE: with D = g gᵀ and s the score of its marginals at each t,

.. math:: dx = \big[f - \tfrac{1+η}2 (\nabla·D + D s)\big] dt + \sqrt η\, g\, d\bar W, \qquad (\nabla·D)_i = \sum_j ∂_j D_{ij},

run towards falling t, has the marginals of dx = f dt + g dW (Anderson 1982 for η = 1; Song et al. 2021, eq. 13 with app. A and D.1;
η = 0 is the flow). Where g does not depend on the state ∇·D is 0 and this is the reverse family of ``equations``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..domains.tensors import number
from .equations import ODE, SDE, Field, check_field
from .matrix_divergence import matrix_divergence


class TimeReversal(SDE):
    r"""The SDE of the module's formula: from x_t at the end of ``sde`` back to data, for any solver that takes an ``SDE``.

    Args:
        sde: the forward :class:`SDE`, with any drift and a scalar, diagonal or matrix diffusion.
        score: (x, t) → ∇log p_t(x), p_t the marginal of ``sde`` started from the data; keywords of a solve reach the score alone.
        stochasticity: η ≥ 0; 1 is the reversed SDE itself. For 0 take :meth:`flow`, which solvers of ODEs accept.

    Of a diffusion that depends on the state ∇·D costs d forward derivatives of it a step. On a domain with walls a scalar diffusion
    and the wall ``Reflect`` are meant, for which the reversal of a reflected SDE is reflected in the same way.

    Raises ``TypeError`` for what is no forward SDE or no score, ``ValueError`` for η < 0.
    """

    direction = -1

    def __init__(self, sde: SDE, score: Field, stochasticity: float = 1.0):
        if not isinstance(sde, SDE):
            raise TypeError(
                f"sde: got {type(sde).__name__}, expected an SDE(drift, diffusion, domain); a process has process.reverse(score)"
            )
        if sde.direction < 0:
            raise TypeError(
                f"sde: got a {type(sde).__name__}, which runs towards falling t already, expected a forward SDE"
            )
        if not callable(score):
            raise TypeError(
                f"score: got {type(score).__name__}, expected a callable score(x, t) -> tensor of x's shape"
            )
        own = getattr(getattr(score, "process", None), "domain", None)
        if own is not None and repr(own) != repr(sde.domain):
            raise ValueError(f"score: got one on {own!r}, expected one on the domain of the SDE, {sde.domain!r}")
        self.sde, self.score = sde, score
        self.stochasticity = number(stochasticity, "stochasticity", low=0.0)
        noise, given = math.sqrt(self.stochasticity), sde.diffusion
        super().__init__(
            self._reversed, (lambda x, t: noise * given(x, t)) if callable(given) else noise * given, sde.domain
        )

    def flow(self) -> ODE:
        """dx = [f − ½(∇·D + D s)] dt, the ordinary equation with the same marginals, in either direction."""
        still = TimeReversal(self.sde, self.score, 0.0)
        return ODE(still.drift, self.domain)

    def _reversed(self, x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        score = check_field(self.score(x, t, **condition), x)
        pull = covariance_divergence(self.sde, x, t) + _covariance_times(self.sde, x, t, score)
        return self.sde.drift(x, t) - 0.5 * (1 + self.stochasticity) * pull


def covariance_divergence(sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """(∇·D)_i = Σ_j ∂_j (g gᵀ)_ij at x ``[*batch, *event]``: x's shape. 0 where g does not depend on the state, else one forward
    derivative of g per coordinate."""
    if not _depends_on_state(sde, x, t):
        return torch.zeros_like(x)

    def covariance(u: Tensor) -> Tensor:
        value, is_matrix = sde._diffusion_at(u, t)
        return value @ value.mT if is_matrix else torch.broadcast_to(value, u.shape) ** 2

    return matrix_divergence(covariance, x, sde.domain.event_shape)


def _covariance_times(sde: SDE, x: Tensor, t: Tensor, vector: Tensor) -> Tensor:
    """g gᵀ · vector."""
    value, is_matrix = sde._diffusion_at(x, t)
    if not is_matrix:
        return value * value * vector
    inner = (value * vector.unsqueeze(-1)).sum(-2)
    return (value * inner.unsqueeze(-2)).sum(-1)


def _depends_on_state(sde: SDE, x: Tensor, t: Tensor) -> bool:
    if not callable(sde.diffusion):
        return False
    with torch.enable_grad():
        return sde._diffusion_at(x.detach().requires_grad_(), t)[0].requires_grad
