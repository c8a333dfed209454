r"""Linear inverse problems: scores that are led to data with A x0 + noise = y.

By Bayes' rule the score of x_t given y is score + ∇ log p(y | x_t). The three guidances here replace the unknown law of x0 given x_t by a
Gaussian about D(x) = E[x0 | x_t = x] and differentiate through D; with r = y − A D they add

.. math:: \Big(\frac{\partial D}{\partial x}\Big)^{\!T} A^T u

=======================  ==============================================================  ==============================================
guidance                 u                                                               what it takes for Cov[x0 | x_t]
=======================  ==============================================================  ==============================================
DPS, ``sigma_y`` given   scale · r/σ_y²                                                  0
DPS, as published        scale · N/g(t)² · r/‖r‖                                         a step of its own length
PiGDM                    scale · (ρ² A Aᵀ + σ_y² I)⁻¹ r, ρ² = vσ²/(v + σ²)               ρ² I: that of data N(·, v I)
CovarianceGuidance       (A C Aᵀ + σ_y² I)⁻¹ r, C = sσ² ∂D/∂x                            itself, to second order: Cov = sσ² ∂D/∂x
=======================  ==============================================================  ==============================================

The last is exact for Gaussian data of any covariance. One reading of the score and its transposed derivatives serve a call: one of those
for DPS and PiGDM, one for each number in y, or each step of Lanczos' method, for the covariance.

In R^d D and ∂D/∂x are tied to the score by Tweedie's formula. On a domain with walls D is the score's own ``prediction`` where it offers
one (then the score is read beside it), else x + σ²·score, which is no conditional mean near walls (off by 0.7σ there); and sσ² ∂D/∂x is
no covariance either way. So all three are approximations there even where data is simple; where walls are far, as measured in σ, and
as σ falls, they are what they are in the open. Nor does their term vanish along the normal of a wall.

Sources: DPS Chung et al. 2023, eq. 15–16, alg. 1; ΠGDM Song et al. 2023, eq. 7–8; covariance Boys et al. 2023 (TMPD), Rozet et al. 2024.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import (
    as_like,
    batch_shape,
    check_event,
    event_flat,
    event_sum,
    expand_right,
    is_int,
    number,
    per_batch,
    twice_differentiable,
)
from ..processes import Diffusion
from .lanczos import lanczos
from .operators import LinearOperator, check_operator
from .predictions import prediction, process_of


class _Reading(NamedTuple):
    """What a guidance knows at one x: the residual y − A D, the pull w ↦ (∂D/∂x)ᵀ w, and the level: t in float64, s and σ in
    x's dtype as they meet states."""

    residual: Tensor
    pull: Callable[[Tensor], Tensor]
    t: Tensor
    scale: Tensor
    sigma: Tensor


class InverseGuidance(ABC):
    """A score led to A x0 = y: callable ``(x, t, **condition)``. A subclass gives ``_weights``, u of the module's table.

    Args:
        score: any, differentiable by PyTorch; its own ``prediction`` is read where it offers one.
        operator: A; its adjoint is checked.
        y: ``[*shape]`` for all samples, or ``[*batch, *shape]``.
        process: whose score it is; ``score.process`` unless told. One schedule.

    ``rows`` restricts it with its y, for adaptive rules. Raises ``TypeError``/``ValueError`` for shapes that do not fit.
    """

    def __init__(self, score: Any, operator: LinearOperator, y: Tensor, process: Diffusion | None = None):
        if not callable(score):
            raise TypeError(f"score: got {type(score).__name__}, expected a callable score(x, t)")
        self.score, self.process = score, process_of(score, process)
        if self.process.parts:
            raise ValueError("process: got one with a schedule for each part, expected a single schedule")
        check_operator(operator)
        event = self.process.domain.event_shape
        if tuple(operator.event_shape) != event:
            raise ValueError(
                f"operator: got one of events {tuple(operator.event_shape)}, expected those of the process: {event}"
            )
        check_event(y, operator.shape, "y")
        self.operator, self.y = operator, y

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.score!r}, {self.operator!r})"

    def __call__(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """The score given y, by this guidance: x's shape and dtype."""
        event = self.process.domain.event_shape
        check_event(x, event)
        at = per_batch(t, x, len(event), "t").double()
        level = self.process.event_level(at)
        scale, sigma = level.scale.to(x), level.sigma.to(x)
        y = self._measured(x)

        # between walls a predicted x0 does not tell the score: not even of exact data is (s·x0 − x)/(s²σ²) that
        twice = hasattr(self.score, "prediction") and not isinstance(self.process.domain, Euclidean)

        def read(v: Tensor) -> tuple[Tensor, Tensor]:
            data, noise = prediction(self.score, v, t, self.process, **condition)
            return data, self.score(v, t, **condition) if twice else -noise / (scale * sigma)

        with twice_differentiable(torch.is_grad_enabled()):
            data, pull, value = torch.func.vjp(read, x, has_aux=True)  # type: ignore[misc]
        reading = _Reading(y - self.operator.forward(data), lambda w: pull(w)[0], at, scale, sigma)
        return value + reading.pull(self.operator.adjoint(self._weights(reading)))

    @abstractmethod
    def _weights(self, reading: _Reading) -> Tensor:
        """u: ``[*batch, *shape]``."""

    def rows(self, index: Tensor) -> InverseGuidance | None:
        """The guided score of some rows of a batch, with their y; None where the score has no rows."""
        restrict = getattr(self.score, "rows", None)
        score = None if restrict is None else restrict(index)
        if score is None:
            return None
        shape = tuple(self.operator.shape)
        y = self.y if self.y.dim() == len(shape) else self.y.reshape(-1, *shape)[index]
        return self._with(score, y)

    def _with(self, score: Any, y: Tensor) -> InverseGuidance:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, score=score, y=y)
        return other

    def _measured(self, x: Tensor) -> Tensor:
        """y in x's dtype and on its device, if it goes with x's batch."""
        y, batch = self.y.to(x), batch_shape(x, self.process.domain.event_shape)
        own = batch_shape(y, self.operator.shape)
        if own and own != batch:
            raise ValueError(
                f"y: got the batch {tuple(own)} for states of batch {tuple(batch)}, expected the same, or one y for all "
                f"of shape {tuple(self.operator.shape)}"
            )
        return y

    def _like_y(self, value: Tensor) -> Tensor:
        """A level that meets states, ``[*batch, 1, …, 1]``, with as many ones as measurements have dimensions."""
        ndim = len(self.process.domain.event_shape)
        return expand_right(value.reshape(value.shape[: value.dim() - ndim]), len(self.operator.shape))


class DPS(InverseGuidance):
    r"""Diffusion posterior sampling: all of x0's law at D, :math:`-\frac{scale}{2σ_y^2}\nabla\|y - A D(x)\|^2`.

    With ``sigma_y`` that is the term of the paper's derivation (eq. 15) times ``scale``. Without, it is the step that the paper's code
    takes at each of N steps of the sampler, x ← x − scale·∇‖y − A D‖, written as a score: −scale·(N/g(t)²) ∇‖y − A D‖. (Alg. 1
    writes ζ_i ∇‖y − A D‖² with ζ_i = ζ'/‖y − A D‖: twice that, since ∇‖r‖² = 2‖r‖∇‖r‖; so scale = 2ζ' there.) Euler–Maruyama on N
    uniform steps then takes just that step; on other grids the same amount is spread over the same times. Ignoring how uncertain x0
    is, it is too sure of y at high noise.

    Args:
        score, operator, y, process: as for :class:`InverseGuidance`.
        sigma_y: > 0, the std of the noise in y, or None for the published normalisation, which is made for many small steps and
            overshoots on coarse grids: give sigma_y there.
        scale: ≥ 0, the step of the paper's code (0.1 to 1 for its images); 1 is the derivation's where sigma_y is given.
        steps: N, at how many steps ``scale`` is quoted.

    Source: Chung et al. 2023, eq. 15–16, alg. 1 and app. D.
    """

    def __init__(
        self,
        score: Any,
        operator: LinearOperator,
        y: Tensor,
        *,
        sigma_y: float | None = None,
        scale: float = 1.0,
        steps: int = 1000,
        process: Diffusion | None = None,
    ):
        super().__init__(score, operator, y, process)
        self.scale = number(scale, "scale", low=0.0)
        self.sigma_y = None if sigma_y is None else number(sigma_y, "sigma_y", low=0.0, open_low=True)
        if not is_int(steps, 1):
            raise ValueError(f"steps: got {steps!r}, expected an int of at least 1")
        self.steps = steps

    def _weights(self, reading: _Reading) -> Tensor:
        residual, ndim = reading.residual, len(self.operator.shape)
        if self.sigma_y is not None:
            return self.scale / self.sigma_y**2 * residual
        norm = expand_right(event_sum(residual**2, ndim).sqrt(), ndim)
        rate = expand_right(self.process.schedule.diffusion(reading.t), ndim) ** 2
        # at the solution the norm has no gradient; 0 is one of its subgradients
        direction = torch.where(norm > 0, residual / torch.where(norm > 0, norm, 1.0), 0.0)
        return as_like(self.scale * self.steps / rate, residual) * direction


class PiGDM(InverseGuidance):
    r"""Pseudoinverse guidance: x0's law about D of covariance ρ² I, :math:`ρ^2 = vσ^2/(v + σ^2)`.

    v is the variance assumed of the data, coordinate by coordinate and all independent; ρ² is then the exact covariance. The paper's
    r_t² = σ²/(1 + σ²) is v = 1. For data of another covariance it is biased, most where v is far off in directions that A sees.

    Args:
        score, operator, y, process: as for :class:`InverseGuidance`.
        sigma_y: ≥ 0, the std of the noise in y; 0 gives the pseudo-inverse.
        prior_variance: v > 0, in units of the data.
        scale: ≥ 0, a factor on the term; 1 is the derivation's. (The paper's DDIM step multiplies by r_t² besides.)

    Source: Song, Vahdat, Mardani & Kautz 2023, eq. 7–8.
    """

    def __init__(
        self,
        score: Any,
        operator: LinearOperator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        prior_variance: float = 1.0,
        scale: float = 1.0,
        process: Diffusion | None = None,
    ):
        super().__init__(score, operator, y, process)
        self.sigma_y, self.scale = number(sigma_y, "sigma_y", low=0.0), number(scale, "scale", low=0.0)
        self.prior_variance = number(prior_variance, "prior_variance", low=0.0, open_low=True)

    def _weights(self, reading: _Reading) -> Tensor:
        # as 1/(1/v + 1/σ²), which no large σ overflows
        variance = self._like_y(1 / (1 / self.prior_variance + reading.sigma**-2))
        return self.scale * self.operator.solve(reading.residual, variance, self.sigma_y**2)


class CovarianceGuidance(InverseGuidance):
    r"""x0's law about D with its own covariance: :math:`C = \mathrm{Cov}[x_0 | x_t] = sσ^2\,∂D/∂x` (σ² ∂D/∂X in X = x/s).

    Exact for Gaussian data of any mean and covariance and any linear measurement; to second order for others. C is held fixed where the
    term is differentiated. Where y has up to ``dense`` numbers the matrix A C Aᵀ is built, its symmetric part taken and negative
    eigenvalues, which no covariance has, set to 0; above that the same is done on the space of residual, A C Aᵀ residual, … that
    ``iterations`` products reach. There it is what conjugate gradients are, and goes on where those break down: where the matrix is
    not positive, as of trained scores. C is applied by transposed derivatives alone: ∂D/∂x is symmetric for a true score, and nearly
    so for a trained one.

    Args:
        score, operator, y, process: as for :class:`InverseGuidance`.
        sigma_y: ≥ 0, the std of the noise in y.
        dense: ≥ 0, the largest size of y for which the matrix is built; its cost is one derivative for each number in y.
        iterations: ≥ 1, of Lanczos' method, each one derivative.

    Sources: Boys et al. 2023 (TMPD); Rozet et al. 2024 (in place of whose conjugate gradients :mod:`~carom.scores.lanczos` stands).
    """

    def __init__(
        self,
        score: Any,
        operator: LinearOperator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        dense: int = 64,
        iterations: int = 30,
        process: Diffusion | None = None,
    ):
        super().__init__(score, operator, y, process)
        self.sigma_y = number(sigma_y, "sigma_y", low=0.0)
        if not is_int(dense, 0) or not is_int(iterations, 1):
            raise ValueError(
                f"dense, iterations: got {dense!r} and {iterations!r}, expected ints of at least 0 and of at least 1"
            )
        self.dense, self.iterations = dense, iterations

    def _weights(self, reading: _Reading) -> Tensor:
        shape = tuple(self.operator.shape)
        residual = event_flat(reading.residual, len(shape))
        size = residual.shape[-1]

        def covariance(v: Tensor) -> Tensor:
            """A C Aᵀ v, flat."""
            weight = reading.scale * reading.sigma**2
            image = self.operator.forward(
                weight * reading.pull(self.operator.adjoint(v.reshape(reading.residual.shape)))
            )
            return event_flat(image, len(shape))

        if size <= self.dense:
            basis = torch.eye(size, dtype=residual.dtype, device=residual.device)
            matrix = torch.stack([covariance(e.expand_as(residual)) for e in basis], -1)
            return _solved(matrix, self.sigma_y**2, residual).reshape(reading.residual.shape)
        basis, matrix = lanczos(covariance, residual, self.iterations)
        # in the basis, the residual is its length along the first of its vectors
        inner = event_sum(basis * residual.unsqueeze(-2), 1)
        weights = _solved(matrix, self.sigma_y**2, inner)
        return event_sum((basis * weights.unsqueeze(-1)).mT, 1).reshape(reading.residual.shape)


def _solved(matrix: Tensor, noise: float, right: Tensor) -> Tensor:
    """(M + noise·I)⁻¹ right, with M the symmetric part of matrices ``[*batch, n, n]`` and its negative eigenvalues taken for 0. NaN where
    a matrix is not finite, directions of which neither M nor the noise says anything 0."""
    n = matrix.shape[-1]
    identity = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    # what is not finite would stop the eigenvalues of all; it comes out as NaN, by itself
    finite = matrix.isfinite().all(-1).all(-1)
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], 0.5 * (matrix + matrix.mT), identity))
    values = values.clamp(min=0)
    weight = values + noise
    known = weight > max(4, n) * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    inverse = torch.where(known, 1 / torch.where(known, weight, 1.0), 0.0)
    inner = event_sum(vectors.mT * right.unsqueeze(-2), 1)
    out = event_sum(vectors * (inverse * inner).unsqueeze(-2), 1)
    return torch.where(finite[..., None], out, torch.nan)
