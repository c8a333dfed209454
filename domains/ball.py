r"""The ball |x| ≤ R in any dimension: reflection and projection in closed form; its heat kernel is that of ``bessel``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .bessel import LEVELS, LogProb, draw_rows, evaluate_rows, sphere_area
from .domain import HeatKernel, KernelDomain, Uniform
from .segment import SegmentKernel
from .tensors import as_like, event_sum, number


class Ball(KernelDomain):
    r"""The ball |x| ≤ R in R^dim.

    Args:
        dim: the dimension, 1 or more; the event shape is ``(dim,)``.
        radius: R > 0.

    Reflection is that of a billiard: all chords after the first hit have the same length and turn by the same angle, so any number of
    bounces is one rotation. ``sigma_min`` = 0.05 R is where the exact heat kernel begins (0 in one dimension). From there on it samples
    by inversion of distribution functions: nothing is rejected, every proposal is a draw. Below, a draw is one specular step, x0 + σz
    reflected, exact farther than 7σ from the wall; from a start on it the mean radius errs by 0.01 σ to 0.02 σ and the variance along
    the wall by 3 % (d = 2, 3). See :class:`BallKernel`.
    """

    def __init__(self, dim: int, radius: float = 1.0):
        if isinstance(dim, bool) or not isinstance(dim, int | np.integer):
            raise TypeError(
                f"dim: got {dim!r}, expected a whole number of at least 1; write Ball(3) for the ball in R^3"
            )
        if dim < 1:
            raise ValueError(f"dim: got {dim}, expected at least 1; Ball(1) is the interval [-radius, radius]")
        self.dim, self.radius = int(dim), number(radius, "radius", low=0.0, open_low=True)
        self.event_shape = (self.dim,)
        self.sigma_min = 0.0 if self.dim == 1 else LEVELS[0] * self.radius

    def __repr__(self) -> str:
        return f"Ball({self.dim}, radius={self.radius:g})"

    def config(self) -> dict[str, Any]:
        return {"type": "Ball", "dim": self.dim, "radius": self.radius}

    @property
    def width(self) -> float:
        return 2 * self.radius

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        return event_sum(x * x, 1).sqrt() <= self.radius * (1 + 8 * torch.finfo(x.dtype).eps) + atol

    def project(self, x: Tensor) -> Tensor:
        direction = x / x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        # rounding stays within the slack of contains, so that a second projection changes nothing
        return torch.where(self.contains(x)[..., None], x, direction * (self.radius / _norm(direction)))

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        """Any number of bounces in closed form. Differentiable but where the number of bounces changes; a path that touches the wall
        at no angle glides along it."""
        moved = _billiard(x.double() / self.radius, displacement.double() / self.radius) * self.radius
        straight = x + displacement
        free = event_sum(straight.double() ** 2, 1)[..., None] <= self.radius**2
        still = (displacement == 0).all(-1, keepdim=True)
        return torch.where(still, x, self.project(torch.where(free, straight, moved.to(straight.dtype))))

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        """A normal vector's direction, at radius R·u^{1/d}."""

        def draw(
            shape: torch.Size, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
        ) -> Tensor:
            z = torch.randn(shape + self.event_shape, generator=generator, dtype=dtype, device=device)
            u = torch.rand((*shape, 1), generator=generator, dtype=dtype, device=device)
            return self.project(self.radius * u ** (1 / self.dim) * z / _norm(z))

        return Uniform(self, draw, math.log(sphere_area(self.dim) / self.dim) + self.dim * math.log(self.radius), dtype)

    def boundary_distance(self, x: Tensor) -> Tensor:
        return (self.radius - _norm(x)[..., 0]).clamp(min=0)

    def inward_normal(self, x: Tensor) -> Tensor:
        """−x/|x|; 0 at the centre, from which all walls are equally far."""
        return -x / _norm(x)

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        # a layer no thicker than R reaches the centre with nothing left to damp, where the normal is not defined
        return super().damp(x, vector, as_like(width, x).clamp(max=self.radius))

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return (SegmentKernel if self.dim == 1 else BallKernel)(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return (SegmentKernel if self.dim == 1 else BallKernel)(self, x0, sigma, validate_args=False)


def _norm(x: Tensor) -> Tensor:
    """|x| in broadcast form, with the derivative 0 at 0."""
    return event_sum(x * x, 1)[..., None].clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def _billiard(x: Tensor, displacement: Tensor) -> Tensor:
    """Where a path from x through the unit ball ends that hits its wall at least once.

    The first chord hits at h, with c = cos of the angle of incidence. From there on every chord has the length 2c and turns h by
    φ = 2 asin(c) in the plane of h and the tangent τ: m = ⌊rest/2c⌋ whole chords, and a part ρ of the next.
    """
    length = _norm(displacement)
    heading = displacement / length
    along = event_sum(x * heading, 1)[..., None]
    room = (1 - event_sum(x * x, 1)[..., None]).clamp(min=0)
    cosine = (along * along + room).clamp(min=1e-18, max=1).sqrt()
    # of √(b² + room) − b the form that does not cancel
    first = torch.where(along > 0, room / (along.abs() + cosine), cosine - along)
    hit = x + first * heading
    hit = hit / _norm(hit)
    tangent = heading - event_sum(heading * hit, 1)[..., None] * hit
    sine = _norm(tangent)
    tangent = tangent / sine
    rest = (length - first).clamp(min=0)
    bounces = (rest / (2 * cosine)).floor().detach()
    part = rest - bounces * 2 * cosine
    angle = bounces * 2 * (cosine / sine).atan()  # atan2 rounds differently alone and in a batch
    at, ahead = angle.cos() * hit + angle.sin() * tangent, angle.cos() * tangent - angle.sin() * hit
    return (1 - part * cosine) * at + part * sine * ahead


class BallKernel(HeatKernel):
    r"""The Neumann heat kernel of the ball in two dimensions or more: see ``bessel``.

    *From* ``sigma_min`` *on*: with :math:`p = (2πσ^2)^{-d/2} e^{-v}`, log p errs by less than :math:`5·10^{-14} \max(1, e^v)`, and
    σ·score by four times that, for v < 18. Beyond, where one sample in 10⁷ falls, Varadhan's term takes over by v = 26: far from walls it
    is exact, between two points on the wall it errs by about log 4. ``sample`` inverts distribution functions, that of the radius and then
    that of the angle, and is exact to about 1e-9 in them: it is no fold of x0 + σz, and ``sample_with_target`` gives the score itself.

    *Below*: the same term everywhere, and samples by one specular reflection of x0 + σz. Farther than 7σ from the wall both are exact.
    Near it they err by O(σ/R), measured at σ = 0.05 R from a start on the wall in 2 and 3 dimensions: log p by 0.02 and 0.04 in the mean,
    σ·score by 0.03 and 0.04 (root mean square over samples); the mean radius by 0.01 σ and 0.02 σ, the variance along the wall by 3 %.

    A sample costs 0.1 to 0.3 ms on one core at σ = 0.05 R, four times less with each doubling of σ down to 0.01 ms. The table of
    4,000 modes for σ < 0.1 R takes some 5 s, once for each dimension; the others 1 s and less. Works under ``torch.func``; not inside
    ``torch.compile(fullgraph=True)``, to which the making of tables is opaque. Under ``torch.func``, and on an accelerator, which would
    be waited for wherever rows are picked by their σ, the largest table serves every σ.
    """

    domain: Ball

    def _rows(self, x: Tensor) -> tuple[torch.Size, Tensor, Tensor, Tensor]:
        """The batch shape, and (x, x0, σ) in units of R as float64 ``[n, d]``, ``[n, d]``, ``[n, 1]``."""
        shape = torch.broadcast_shapes(x.shape, self.x0.shape, self._sigma.shape)
        x, x0 = (v.double().expand(shape).reshape(-1, shape[-1]) / self.domain.radius for v in (x, self.x0))
        sigma = self._sigma.double().expand(*shape[:-1], 1).reshape(-1, 1) / self.domain.radius
        return shape[:-1], x, x0, sigma

    def _log_prob(self, x: Tensor) -> Tensor:
        batch, *rows = self._rows(x)
        value = LogProb.apply(*rows) - self.domain.dim * math.log(self.domain.radius)
        return value.reshape(batch).to(torch.result_type(x, self.x0))

    def _score(self, x: Tensor) -> Tensor:
        batch, *rows = self._rows(x)
        score = (evaluate_rows(*rows).slope / self.domain.radius).reshape(*batch, self.domain.dim)
        return score.to(torch.result_type(x, self.x0))

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return self._log_prob(x), self._score(x)
        batch, *rows = self._rows(x)
        result, dtype = evaluate_rows(*rows), torch.result_type(x, self.x0)
        value = result.value - self.domain.dim * math.log(self.domain.radius)
        score = (result.slope / self.domain.radius).reshape(*batch, self.domain.dim)
        return value.reshape(batch).to(dtype), score.to(dtype)

    def _sample(self, z: Tensor) -> Tensor:
        batch, z_rows, x0, sigma = self._rows(z * self.domain.radius)
        noise = self._sigma * z
        near = self.domain.reflect(self.x0.expand_as(noise), noise)
        out = draw_rows(z_rows, x0, sigma, near.double().reshape(-1, near.shape[-1]) / self.domain.radius)
        x = (out * self.domain.radius).reshape(*batch, self.domain.dim).to(near.dtype)
        return torch.where(self._sigma < self.domain.sigma_min, near, self.domain.project(x))
