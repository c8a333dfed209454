r"""Langevin equations: dynamics in a time of their own whose stationary law p is known through its score g = ∇ log p.

.. math::
    dx &= g\,dt + \sqrt2\,dW &&\text{overdamped} \\
    dx &= [D g + \nabla·D]\,dt + \sqrt{2D}\,dW, \quad (\nabla·D)_i = \textstyle\sum_j ∂_j D_{ij} &&\text{Riemannian, } D = G^{-1}(x) \\
    dx &= v\,dt,\quad dv = [g/m - γ v]\,dt + \sqrt{2γT/m}\,dW &&\text{kinetic (underdamped)}

All are Itô equations, run forward by any rule for an ``SDE``: ``Langevin`` by ``EulerMaruyama`` is the unadjusted Langevin algorithm.
On a domain with walls they are the reflected equations, whose stationary law is p restricted to the domain.

A score of the library, (x, t) ↦ ∇ log p_t(x), is used at a fixed level: ``Langevin(lambda x: score(x, 0.1), domain)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..domains import Domain
from ..domains.phase import join_phase, phase_space, split_phase
from ..domains.tensors import as_like, number
from .equations import SDE, Field, check_field, check_timeless
from .matrix_divergence import matrix_divergence


def score_of(log_prob: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """∇ log p of log p + const, a callable x → ``[*batch]``, by automatic differentiation; differentiable where x is."""

    def score(x: Tensor, **condition: object) -> Tensor:
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            value = log_prob(at, **condition)
            if not isinstance(value, Tensor) or not value.requires_grad:
                raise ValueError(
                    "log_prob: got a value that x does not enter differentiably, expected log p(x) [*batch]"
                )
            return torch.autograd.grad(value.sum(), at, create_graph=x.requires_grad)[0]

    return score


def _check_constant(metric_inverse: Tensor, domain: Domain) -> None:
    """Refuse a constant D that is no scalar, diagonal or matrix for this domain, or not positive definite."""
    value, event = metric_inverse.detach().double(), tuple(domain.event_shape)
    if len(event) == 1 and value.dim() == 2:
        fits = value.shape == (*event, *event)
        # symmetric but for rounding, as inverses are
        even = fits and torch.allclose(value, value.mT, rtol=0, atol=1e-5 * float(value.abs().max()))
        positive = even and int(torch.linalg.cholesky_ex(value)[1]) == 0
    else:
        fits = torch.broadcast_shapes(value.shape, event) == event if value.dim() <= len(event) else False
        positive = bool((value > 0).all())
    if not (fits and positive):
        raise ValueError(
            f"metric_inverse: got a constant of shape {tuple(value.shape)} for states [*batch, {', '.join(map(str, event))}], expected a "
            "positive number, a positive diagonal, or for 1-d events a symmetric positive definite matrix"
        )


class Langevin(SDE):
    r"""Overdamped Langevin dynamics, :math:`dx = g\,dt + \sqrt2\,dW`, with the stationary law p ∝ e^{−U}, g = ∇ log p = −∇U.

    By ``EulerMaruyama`` (ULA) with steps h its stationary law errs by O(h): on N(0, v) the variance is v/(1 − h/2v). ``MALA`` has p itself.

    Args:
        score: g(x, **condition) → tensor of x's shape.
        domain: where x lives; with walls the equation is reflected.
        log_prob: log p(x) + any constant, ``[*batch]``: what ``MALA`` needs.
    """

    direction = 1

    def __init__(self, score: Field, domain: Domain, log_prob: Callable[..., Tensor] | None = None):
        check_timeless(score)
        if log_prob is not None and not callable(log_prob):
            raise TypeError(f"log_prob: got {type(log_prob).__name__}, expected a callable log_prob(x) -> [*batch]")
        super().__init__(lambda x, t, **condition: score(x, **condition), math.sqrt(2.0), domain)
        self.score, self.log_prob = score, log_prob

    @classmethod
    def of_log_prob(cls, log_prob: Callable[..., Tensor], domain: Domain) -> Langevin:
        """The equation of log p + const alone, a callable x → ``[*batch]``; its score by automatic differentiation."""
        return cls(score_of(log_prob), domain, log_prob)


class RiemannianLangevin(SDE):
    r"""Langevin dynamics in a metric G: :math:`dx = [D g + \nabla·D]\,dt + \sqrt{2D}\,dW` with D = G⁻¹(x), p with respect to dx.

    The divergence :math:`(\nabla·D)_i = \sum_j ∂_j D_{ij}` belongs to the drift, with dt. Without it the stationary law is p/D in one
    dimension: variance .525 for 1 with D = 1 + x², p = N(0, 1).

    Args:
        score: g(x) → tensor of x's shape.
        metric_inverse: D(x): a scalar or a diagonal (a shape that broadcasts against x), or for 1-d events symmetric positive
            definite matrices ``[*batch, d, d]``. Constant D may be given as a tensor, ``[d, d]`` a matrix.
        domain: where x lives. At walls specular reflection keeps p only where D's normal is an eigenvector, as of every diagonal D
            on a box; elsewhere use the wall ``Oblique`` along D n.
        divergence: ∇·D, a callable x → tensor of x's shape; by default forward-mode differentiation, one evaluation of D per axis.

    Girolami & Calderhead 2011, §5, in the form of Ma, Chen & Fox 2015, eq. 3.
    """

    direction = 1

    def __init__(
        self,
        score: Field,
        metric_inverse: Tensor | Callable[[Tensor], Tensor],
        domain: Domain,
        divergence: Callable[[Tensor], Tensor] | None = None,
    ):
        check_timeless(score)
        if not callable(metric_inverse) and not isinstance(metric_inverse, Tensor):
            raise TypeError(
                f"metric_inverse: got {type(metric_inverse).__name__}, expected a tensor or a callable D(x) -> scalar, diagonal or matrix"
            )
        if isinstance(metric_inverse, Tensor):
            _check_constant(metric_inverse, domain)
        super().__init__(self._metric_drift, self._root, domain)
        self.score, self.metric_inverse, self.divergence = score, metric_inverse, divergence

    @classmethod
    def of_log_prob(
        cls,
        log_prob: Callable[..., Tensor],
        metric_inverse: Tensor | Callable[[Tensor], Tensor],
        domain: Domain,
        divergence: Callable[[Tensor], Tensor] | None = None,
    ) -> RiemannianLangevin:
        """The equation of log p + const alone, a callable x → ``[*batch]``."""
        return cls(score_of(log_prob), metric_inverse, domain, divergence)

    def metric(self, x: Tensor) -> tuple[Tensor, bool]:
        """D at x, as matrices ``[*batch, d, d]`` (True) or as a diagonal of x's shape (False)."""
        given = self.metric_inverse
        value = as_like(given(x) if callable(given) else given, x)
        shape = (*x.shape, x.shape[-1]) if x.dim() else ()
        constant = not callable(given) and value.dim() == 2
        is_matrix = len(self.domain.event_shape) == 1 and (value.dim() == x.dim() + 1 or constant)
        try:
            return value.expand(shape if is_matrix else x.shape), is_matrix
        except RuntimeError:
            raise ValueError(
                f"metric_inverse: got {tuple(value.shape)} for states {tuple(x.shape)}, expected a shape that broadcasts against them, or "
                "for 1-d events matrices [*batch, d, d]"
            ) from None

    def metric_divergence(self, x: Tensor) -> Tensor:
        r""":math:`\sum_j ∂_j D_{ij}`, of x's shape."""
        if self.divergence is not None:
            return check_field(self.divergence(x), x)
        if not callable(self.metric_inverse):
            return torch.zeros_like(x)
        return matrix_divergence(lambda u: self.metric(u)[0], x, self.domain.event_shape)

    def _metric_drift(self, x: Tensor, t: Tensor, **condition: object) -> Tensor:
        value, is_matrix = self.metric(x)
        score = check_field(self.score(x, **condition), x)
        moved = (value * score.unsqueeze(-2)).sum(-1) if is_matrix else value * score
        return moved + self.metric_divergence(x)

    def _root(self, x: Tensor, t: Tensor) -> Tensor:
        """√(2D): the Cholesky factor of a matrix, which has the same law as its symmetric root."""
        value, is_matrix = self.metric(x)
        if not is_matrix:
            return (2 * value).sqrt()
        root, failed = torch.linalg.cholesky_ex(2 * value)
        # a D that is not positive definite ends its own sample, as the root of a negative diagonal does
        return torch.where(failed[..., None, None] == 0, root, math.nan)


class Kinetic(SDE):
    r"""Kinetic (underdamped) Langevin dynamics on states (position, velocity) ``[*batch, 2, *event]``:

    .. math:: dx = v\,dt,\qquad dv = [g(x)/m - γ v]\,dt + \sqrt{2γT/m}\,dW

    with the stationary law :math:`p(x)^{1/T} N(v; 0, T/m)`. Walls are specular: a position that meets one is reflected, and its velocity
    with it (the domain is :func:`~carom.domains.phase.phase_space` of the one given). γ = 0 is Hamiltonian motion, γ → ∞ with time
    scaled by γ the overdamped equation. Run it by ``BAOAB`` or ``OBABO``; any rule for an ``SDE`` will do.

    Args:
        score: g(x, **condition) = ∇ log p at positions ``[*batch, *event]`` → tensor of their shape.
        domain: where positions live.
        friction: γ ≥ 0, per time. mass: m > 0. temperature: T > 0.

    Leimkuhler & Matthews 2015, §6.3.
    """

    direction = 1

    def __init__(
        self, score: Field, domain: Domain, friction: float = 1.0, mass: float = 1.0, temperature: float = 1.0
    ):
        check_timeless(score)
        self.friction = number(friction, "friction", low=0.0)
        self.mass, self.temperature = (
            number(v, n, low=0.0, open_low=True) for v, n in ((mass, "mass"), (temperature, "temperature"))
        )
        if not isinstance(domain, Domain):
            raise TypeError(f"domain: got {type(domain).__name__}, expected a Domain, e.g. Hypercube((2,))")
        self.score, self.positions = score, domain
        noise = torch.zeros(2, *(1 for _ in domain.event_shape), dtype=torch.float64)
        noise[1] = math.sqrt(2 * self.friction) * self.thermal_speed
        super().__init__(self._motion, noise, phase_space(domain))

    @classmethod
    def of_log_prob(cls, log_prob: Callable[..., Tensor], domain: Domain, **settings: float) -> Kinetic:
        """The equation of log p + const alone, a callable x → ``[*batch]``; settings: friction, mass, temperature."""
        return cls(score_of(log_prob), domain, **settings)

    @property
    def thermal_speed(self) -> float:
        """The standard deviation √(T/m) of a velocity."""
        return math.sqrt(self.temperature / self.mass)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities, ``[*batch, *event]`` each."""
        return split_phase(state, len(self.positions.event_shape))

    def join(self, x: Tensor, v: Tensor) -> Tensor:
        """The state ``[*batch, 2, *event]`` of positions and velocities."""
        return join_phase(x, v, len(self.positions.event_shape))

    def acceleration(self, state: Tensor, t: Tensor) -> Tensor:
        """g(x)/m at the positions of a state, read through the wall: ``[*batch, *event]``."""
        push = self.wall.evaluate(self.domain, lambda u, t: self._push(u, **self.condition), state, t, None)
        return self.split(push)[1]

    def _push(self, state: Tensor, **condition: object) -> Tensor:
        x, v = self.split(state)
        return self.join(torch.zeros_like(v), check_field(self.score(x, **condition), x) / self.mass)

    def _motion(self, state: Tensor, t: Tensor, **condition: object) -> Tensor:
        _, v = self.split(state)
        return self._push(state, **condition) + self.join(v, -self.friction * v)
