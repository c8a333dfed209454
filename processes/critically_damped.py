r"""Critically damped Langevin diffusion: data coupled to velocities, and noise that enters through these alone.

On states u = (x, v), ``[*batch, 2, *event]``, with mass M, friction Γ = 2√M and a clock β(t), t ∈ [0, 1]:

.. math:: dx = \tfrac βM v\,dt, \qquad dv = -β x\,dt - \tfrac{Γβ}M v\,dt + \sqrt{2Γβ}\,dW

from x_0 the data, v_0 ~ N(0, γM), to N(0, 1) × N(0, M). With B = ∫β and τ = 2B/Γ the law of u_t given u_0 is N(A u_0, S), the same for
every coordinate:

.. math::
    A &= e^{-τ} \begin{pmatrix} 1 + τ & 2τ/Γ \\ -Γτ/2 & 1 - τ \end{pmatrix}, \quad \det A = e^{-2τ} \\
    S_{xx} &= P(3, 2τ),\qquad S_{xv} = Γ τ^2 e^{-2τ},\qquad S_{vv} = M [1 - e^{-2τ}(1 - 2τ + 2τ^2)]

with P the regularised incomplete gamma function, 1 − e^{−2τ}(1 + 2τ + 2τ²) without cancellation. Only the velocity part of the score,
∇_v log p_t(u), is ever needed: a score here is a callable (u, t) → ``[*batch, *event]``.

Dockhorn, Vahdat & Kreis 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..domains import Domain, Euclidean
from ..domains.phase import join_phase, phase_space, split_phase
from ..domains.tensors import (
    as_like,
    check_event,
    check_positive,
    event_sum,
    expand_right,
    number,
    per_batch,
    values_are_readable,
)
from .equations import ODE, SDE, Field, check_field
from .schedules import VP


class Blocks(NamedTuple):
    """A symmetric 2 × 2 matrix, the covariance of one coordinate and its velocity, for each time."""

    xx: Tensor
    xv: Tensor
    vv: Tensor

    @property
    def determinant(self) -> Tensor:
        return self.xx * self.vv - self.xv * self.xv


class PhaseKernel(NamedTuple):
    """u_t given u_0: N(A u_0, S), by coordinate. All entries have the shape of the times asked for, in float64."""

    from_x: tuple[Tensor, Tensor]
    from_v: tuple[Tensor, Tensor]
    noise: Blocks

    def mean(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A (x, v)."""
        (xx, vx), (xv, vv) = self.from_x, self.from_v
        return xx * x + xv * v, vx * x + vv * v

    def beside(self, x: Tensor, ndim: int) -> PhaseKernel:
        """The same with A in x's dtype and on its device, times ``[*batch]`` in broadcast form."""
        (xx, vx), (xv, vv) = (tuple(expand_right(as_like(w, x), ndim) for w in pair) for pair in self[:2])
        return PhaseKernel((xx, vx), (xv, vv), self.noise)

    def covariance(self, x: Tensor | float, v: Tensor | float) -> tuple[Blocks, Tensor]:
        """Covariance A diag(x, v) Aᵀ + S from independent variances x and v, and its determinant, by a sum that does not cancel."""
        (xx, vx), (xv, vv) = self.from_x, self.from_v
        carried = Blocks(xx * xx * x + xv * xv * v, xx * vx * x + xv * vv * v, vx * vx * x + vv * vv * v)
        noise = self.noise
        mixed = carried.xx * noise.vv + carried.vv * noise.xx - 2 * carried.xv * noise.xv
        own = (xx * vv - xv * vx) ** 2 * x * v
        return Blocks(*(a + b for a, b in zip(carried, noise, strict=True))), own + noise.determinant + mixed


class PhaseGaussian(Distribution):
    """N(mean, Σ ⊗ I) on states ``[*batch, 2, *event]``: one 2 × 2 covariance Σ for every coordinate and its velocity.

    Args: mean: ``[*batch, 2, *event]``. covariance: :class:`Blocks` that broadcast over the batch. determinant: that of Σ.
    """

    arg_constraints = {}
    support = constraints.real

    def __init__(self, mean: Tensor, covariance: Blocks, determinant: Tensor, ndim: int):
        self.loc, self.ndim = mean, ndim
        shape = mean.shape[: mean.dim() - ndim - 1]
        root = (covariance.xx.sqrt(), covariance.xv / covariance.xx.sqrt(), (determinant / covariance.xx).sqrt())
        #: Cholesky factor of Σ: xx, vx, vv, in broadcast form
        self._root = tuple(expand_right(as_like(r, mean), ndim) for r in root)
        super().__init__(shape, mean.shape[len(shape) :], validate_args=False)

    @property
    def inverse_std(self) -> Tensor:
        """ℓ = √(Σ_xx / det Σ): the target of score matching is −ℓ ε with ε a unit normal. Broadcasts against velocities."""
        return 1 / self._root[2]

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        return self.sample_with_target(sample_shape, generator=generator)[0]

    @torch.no_grad()
    def sample_with_target(
        self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(u, ∇_v log p(u)): the second is what score matching regresses on, ``[*sample_shape, *batch, *event]``."""
        shape = (*sample_shape, *self.loc.shape)
        device = self.loc.device if generator is None else generator.device
        z = torch.randn(shape, generator=generator, dtype=self.loc.dtype, device=device).to(self.loc.device)
        first, second = split_phase(z, self.ndim)
        xx, vx, vv = self._root
        return self.loc + join_phase(xx * first, vx * first + vv * second, self.ndim), -second / vv

    def _units(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The unit normals that lead to u."""
        xx, vx, vv = self._root
        check_event(u, self.event_shape, "u")
        x, v = split_phase(u - self.loc, self.ndim)
        first = x / xx
        return first, (v - vx * first) / vv

    def log_prob(self, u: Tensor) -> Tensor:
        """``[*batch]``."""
        first, second = self._units(u)
        xx, _, vv = self._root
        size = math.prod(self.event_shape[1:])
        volume = (xx * vv).log().reshape(xx.shape[: xx.dim() - self.ndim]) + math.log(2 * math.pi)
        return -0.5 * event_sum(first * first + second * second, self.ndim) - size * volume

    def score(self, u: Tensor) -> Tensor:
        """∇_v log p(u): ``[*batch, *event]``."""
        return -self._units(u)[1] / self._root[2]


class CriticallyDamped:
    r"""The process of this module: data in R^d, with a velocity for each coordinate.

    Args:
        domain: of the data, Euclidean.
        mass: M > 0; the friction is 2√M. beta_min, beta_max: β at t = 0 and 1, 0 < beta_min ≤ beta_max.
        start: γ > 0, the share of its final variance M that a velocity starts with.

    Raises ``TypeError`` for a domain with walls, where the joint law has no closed form (``Kinetic`` runs there).
    """

    def __init__(
        self, domain: Domain, mass: float = 0.25, beta_min: float = 4.0, beta_max: float = 4.0, start: float = 0.04
    ):
        if not isinstance(domain, Euclidean):
            raise TypeError(
                f"CriticallyDamped: got {domain!r}, expected a Euclidean domain; Kinetic runs between walls"
            )
        self.data, self.domain = domain, phase_space(domain)
        self.mass, self.start = (number(v, n, low=0.0, open_low=True) for v, n in ((mass, "mass"), (start, "start")))
        self.friction, self.clock = 2 * math.sqrt(self.mass), VP(beta_min, beta_max)

    def __repr__(self) -> str:
        clock = f"beta_min={self.clock.beta_min:g}, beta_max={self.clock.beta_max:g}"
        return f"CriticallyDamped({self.data!r}, mass={self.mass:g}, {clock}, start={self.start:g})"

    def config(self) -> dict[str, Any]:
        """What ``critically_damped_from_config`` rebuilds it from."""
        clock = {"beta_min": self.clock.beta_min, "beta_max": self.clock.beta_max}
        return {
            "type": "CriticallyDamped",
            "domain": self.data.config(),
            "mass": self.mass,
            **clock,
            "start": self.start,
        }

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities, ``[*batch, *event]`` each."""
        return split_phase(state, len(self.data.event_shape))

    def join(self, x: Tensor, v: Tensor) -> Tensor:
        """The state ``[*batch, 2, *event]`` of positions and velocities."""
        return join_phase(x, v, len(self.data.event_shape))

    def kernel(self, t: float | Tensor, since: float | Tensor = 0.0) -> PhaseKernel:
        """The law of u_t given u at time ``since`` ≤ t; earlier t are refused where reading them costs nothing, on the CPU."""
        end, begin = (torch.as_tensor(w, dtype=torch.float64) for w in (t, since))
        if end.device.type == "cpu" and values_are_readable(end, begin) and bool((end < begin).any()):
            raise ValueError(
                f"t: got {float(end.min()):g} for since = {float(begin.max()):g}, expected t ≥ since; the way back is reverse(score)"
            )
        return self.kernel_of(self.clock.integral(end) - self.clock.integral(begin))

    def kernel_of(self, integral: Tensor) -> PhaseKernel:
        """The same after ∫β = ``integral``, float64."""
        friction, tau = self.friction, 2 * integral / self.friction
        decay = (-tau).exp()
        twice, square = 2 * tau, decay * decay
        noise = Blocks(
            torch.special.gammainc(torch.full_like(twice, 3.0), twice),
            friction * tau * tau * square,
            self.mass * (-torch.expm1(-twice) + square * (twice - 2 * tau * tau)),
        )
        from_x = (decay * (1 + tau), -decay * friction * tau / 2)
        return PhaseKernel(from_x, (decay * 2 * tau / friction, decay * (1 - tau)), noise)

    def transition(self, x0: Tensor, t: float | Tensor, v0: Tensor | None = None) -> PhaseGaussian:
        """The law of u_t given x_0, over all v_0 ~ N(0, γM): what hybrid score matching conditions on; with ``v0`` given that as well.

        ``t`` > 0 is a number, broadcasts over the batch, or is in broadcast form ``[*batch, 1, …, 1]``.
        """
        check_event(x0, self.data.event_shape, "x0")
        if v0 is not None and v0.shape != x0.shape:
            raise ValueError(f"v0: got shape {tuple(v0.shape)}, expected that of x0, {tuple(x0.shape)}")
        ndim = len(self.data.event_shape)
        t = per_batch(torch.as_tensor(t, dtype=torch.float64), x0.double(), ndim, "t")
        check_positive(t, "t")
        return self.unchecked_transition(x0, t, v0)

    def unchecked_transition(self, x0: Tensor, t: Tensor, v0: Tensor | None = None) -> PhaseGaussian:
        """The same for loops over values that were checked before, t float64 ``[*batch]``: no value is read, no host sync."""
        kernel, ndim = self.kernel(t), len(self.data.event_shape)
        covariance, determinant = kernel.covariance(0.0, 0.0 if v0 is not None else self.start * self.mass)
        mean = kernel.beside(x0, ndim).mean(x0, torch.zeros_like(x0) if v0 is None else v0)
        return PhaseGaussian(self.join(*mean), covariance, determinant, ndim)

    def prior(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> PhaseGaussian:
        """N(0, I) × N(0, M I), from which generation starts at t = 1; ``sample(shape)`` gives states."""
        one = torch.ones((), dtype=torch.float64)
        mean = torch.zeros(self.domain.event_shape, dtype=dtype, device=device)
        return PhaseGaussian(mean, Blocks(one, 0 * one, self.mass * one), self.mass * one, len(self.data.event_shape))

    def forward(self) -> ForwardKinetic:
        """The noising SDE."""
        return ForwardKinetic(self)

    def reverse(self, score: Field, stochasticity: float = 1.0) -> ReverseKinetic:
        """The generating SDE with this score of velocities, run in falling t; any stochasticity ≥ 0 has the same marginals."""
        return ReverseKinetic(self, score, stochasticity)

    def flow(self, score: Field) -> KineticFlow:
        """The probability flow with this score of velocities; either direction."""
        return KineticFlow(self, score)


class _Damped:
    """What the equations of this process share: the drift f(u, t) − w·2Γβ ∇_v log p_t for a weight w of the score."""

    process: CriticallyDamped
    score: Field | None
    weight: float

    def _drift(self, u: Tensor, t: Tensor, **condition: Any) -> Tensor:
        process = self.process
        x, v = process.split(u)
        at = t.squeeze(-len(process.domain.event_shape)) if t.dim() else t  # as a time of velocities
        beta = process.clock.beta(at)
        pull = -x - (process.friction / process.mass) * v
        if self.score is not None:
            pull = pull - (2 * process.friction * self.weight) * check_field(self.score(u, at, **condition), v)
        return process.join(beta * v / process.mass, beta * pull)


def _check_score(score: object) -> None:
    if not callable(score):
        raise TypeError(
            f"score: got {type(score).__name__}, expected a callable score(u, t) -> ∇_v log p_t, of v's shape"
        )


class _DampedSDE(_Damped, SDE):
    def __init__(self, process: CriticallyDamped, score: Field | None, weight: float, stochasticity: float):
        self.process, self.score, self.weight, self.stochasticity = process, score, weight, stochasticity
        unit = torch.zeros(2, *(1 for _ in process.data.event_shape), dtype=torch.float64)
        unit[1] = math.sqrt(2 * process.friction * stochasticity)
        super().__init__(self._drift, lambda u, t: as_like(unit, u) * process.clock.beta(t).sqrt(), process.domain)

    def spread_slope(self, x: Tensor, t: Tensor) -> None:
        """The noise does not depend on the state."""


class ForwardKinetic(_DampedSDE):
    """du of the module: needs no score."""

    direction = 1

    def __init__(self, process: CriticallyDamped):
        super().__init__(process, None, 0.0, 1.0)


class ReverseKinetic(_DampedSDE):
    r"""The family with the marginals of the process, in falling t: the drift of the forward equation less (1 + η) Γβ ∇_v log p_t in dv,
    noise √(2ηΓβ). η = ``stochasticity`` ≥ 0; 1 is the reverse SDE."""

    direction = -1

    def __init__(self, process: CriticallyDamped, score: Field, stochasticity: float = 1.0):
        _check_score(score)
        eta = number(stochasticity, "stochasticity", low=0.0)
        super().__init__(process, score, 0.5 * (1 + eta), eta)


class KineticFlow(_Damped, ODE):
    """The deterministic member: half the score, no noise."""

    def __init__(self, process: CriticallyDamped, score: Field):
        _check_score(score)
        self.process, self.score, self.weight = process, score, 0.5
        super().__init__(self._drift, process.domain)
