r"""The ball |x| ≤ R in any dimension: reflection and projection in closed form, and the exact Neumann heat kernel as a Bessel series.

With R = 1, r = |x|, γ the angle between x and x_0, ν = l + d/2 − 1 and ω_d the area of the unit sphere,

.. math:: p_\sigma(x|x_0) = \frac1{ω_d} \Big[ d + \sum_{l,n} e^{-k^2 σ^2 / 2} f_{ln}(r) f_{ln}(r_0) Z_l(\cos γ) \Big],\qquad
          f_{ln}(r) = \frac{r^{1-d/2} J_ν(kr)}{J_ν(k) \sqrt{½(1 - l(l+d-2)/k^2)}},

where k = k_{ln} runs through the positive roots of :math:`k J_ν'(k) = (d/2 - 1) J_ν(k)`, that is :math:`k J_{ν+1}(k) = l J_ν(k)`, and Z_l
is the zonal harmonic, :math:`Z_l(t) = N_l P_l(t)` with P_l the Gegenbauer polynomial of index λ = d/2 − 1 scaled to P_l(1) = 1 and N_l
the number of harmonics of degree l (Carslaw & Jaeger, *Conduction of Heat in Solids*, ch. XIV, for d = 2, 3).

*Radial functions* are polynomials in practice: r^{a} h(2r² − 1) with a = 0, 1, 2 for l = 0, odd, even, and h a Chebyshev series. So are
their derivatives :math:`f' = (1 - r^2) r^{b} h'(2r^2 - 1)`, b = 0 for odd l and 1 for even: the factor makes the score's normal component
vanish at the wall exactly. Angular derivatives need f/r, which is a power of r times the same h, so that nothing is 0/0 at the centre.
Modes with :math:`e^{-k^2 σ^2/2}` below rounding are left out: about 70 (R/σ)²/8 remain. Tables are float64, made once for each dimension and
each octave of σ; the arithmetic is float64 whatever the dtype of the states.

*Where the series has no digits left* (p below about 1e-8 of its scale :math:`(2πσ^2)^{-d/2}`; it alternates), and for σ below ``sigma_min``,
Varadhan's leading term with one image takes over: with a = 1 − r, a_0 = 1 − r_0 the distances from the wall

.. math:: p \approx (2πσ^2)^{-d/2} e^{-|x - x_0|^2 / 2σ^2} (1 + u),\qquad
          u = \exp\Big(-\frac{2 a a_0}{σ^2} \Big[1 + \frac{r r_0 (1 - \cos γ)}{a + a_0}\Big]\Big),

which is symmetric, has no flux through the wall, is the image of the tangent half-space near it, and is exact on a common ray but for the
curvature of the wave front. Where no path that touches the wall matters the Gaussian alone is exact, and is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.distributions import Distribution

from .domain import HeatKernel, KernelDomain, Uniform
from .interval import interval_log_prob, interval_log_prob_and_score, interval_score
from .tensors import as_like, event_sum, number, values_are_readable

# The smallest σ of each table, in units of R; the first is sigma_min.
_LEVELS = (0.05, 0.1, 0.2, 0.4, 0.8)
# Modes whose weight, counted with the number of modes (Weyl), is below this share of p(x0|x0) are left out.
_TRUNCATION = 1e-17
# The exponent v of p = (2πσ²)^{-d/2} e^{−v} at which Varadhan's term begins to replace the series, and has replaced it.
_SERIES_ENDS, _VARADHAN_BEGINS = 18.0, 26.0
# Rows that share elementwise work: their [rows, degrees] temporaries stay small.
_CHUNK = 4096
# Points on which a draw's distribution function is tabled, a tenth of the smallest σ apart, and Newton's steps from there.
_GRID, _NEWTON = 512, 5
# |x| below which directions fade to 0. Their derivative would multiply rounding by 1/|x|.
_CENTRE = 1e-10
# e^-200 is nothing beside 1; products of smaller numbers would leave the range of normal floats, where arithmetic is slow.
_NOTHING = -200.0
# r from which a point is on the wall: projecting onto it rounds.
_WALL = 1 - 1e-15
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Ball(KernelDomain):
    r"""The ball |x| ≤ R in R^dim.

    Args:
        dim: the dimension, 1 or more; the event shape is ``(dim,)``.
        radius: R > 0.

    Reflection is that of a billiard: all chords after the first hit have the same length and turn by the same angle, so any number of
    bounces is one rotation. ``sigma_min`` = 0.05 R is where the exact heat kernel begins (0 in one dimension), see :class:`BallKernel`.
    """

    def __init__(self, dim: int, radius: float = 1.0):
        if isinstance(dim, bool) or not isinstance(dim, int | np.integer):
            raise TypeError(f"dim: got {dim!r}, expected a whole number of at least 1; write Ball(3) for the ball in R^3")
        if dim < 1:
            raise ValueError(f"dim: got {dim}, expected at least 1; Ball(1) is the interval [-radius, radius]")
        self.dim, self.radius = int(dim), number(radius, "radius", low=0.0, open_low=True)
        self.event_shape = (self.dim,)
        self.sigma_min = 0.0 if self.dim == 1 else _LEVELS[0] * self.radius

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

        def draw(shape: torch.Size, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None) -> Tensor:
            z = torch.randn(shape + self.event_shape, generator=generator, dtype=dtype, device=device)
            u = torch.rand(shape + (1,), generator=generator, dtype=dtype, device=device)
            return self.project(self.radius * u ** (1 / self.dim) * z / _norm(z))

        return Uniform(self, draw, math.log(_sphere(self.dim) / self.dim) + self.dim * math.log(self.radius), dtype)

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


def _sphere(dim: int) -> float:
    """The area of the unit sphere in R^dim."""
    return 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)


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
    angle = bounces * 2 * torch.atan2(cosine, sine)
    at, ahead = angle.cos() * hit + angle.sin() * tangent, angle.cos() * tangent - angle.sin() * hit
    return (1 - part * cosine) * at + part * sine * ahead


class SegmentKernel(HeatKernel):
    """The ball of one dimension: the kernel of the interval [−R, R], exact at every σ."""

    domain: Ball

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        return x, self.x0, self._sigma, -self.domain.radius, self.domain.radius

    def _sample(self, z: Tensor) -> Tensor:
        noise = self._sigma * z
        return self.domain.reflect(self.x0.expand_as(noise), noise)

    def _log_prob(self, x: Tensor) -> Tensor:
        return interval_log_prob(*self._arguments(x))[..., 0]

    def _score(self, x: Tensor) -> Tensor:
        return interval_score(*self._arguments(x))

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = interval_log_prob_and_score(*self._arguments(x))
        return log_prob[..., 0], score


class BallKernel(HeatKernel):
    """The Neumann heat kernel of the ball in two dimensions or more: see the head of the file.

    DOCSTRING
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
        value = _LogProb.apply(*rows) - self.domain.dim * math.log(self.domain.radius)
        return value.reshape(batch).to(x.dtype)

    def _score(self, x: Tensor) -> Tensor:
        batch, *rows = self._rows(x)
        return (_evaluate(*rows).slope / self.domain.radius).reshape(*batch, self.domain.dim).to(x.dtype)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return self._log_prob(x), self._score(x)
        batch, *rows = self._rows(x)
        result = _evaluate(*rows)
        value = result.value - self.domain.dim * math.log(self.domain.radius)
        return value.reshape(batch).to(x.dtype), (result.slope / self.domain.radius).reshape(*batch, self.domain.dim).to(x.dtype)

    def _sample(self, z: Tensor) -> Tensor:
        batch, z_rows, x0, sigma = self._rows(z * self.domain.radius)
        noise = self._sigma * z
        near = self.domain.reflect(self.x0.expand_as(noise), noise)
        out = near.double().reshape(-1, near.shape[-1]) / self.domain.radius
        for level, index in _by_level(sigma[:, 0], sigma[:, 0] >= _LEVELS[0]):
            out[index] = _draw(_table(self.domain.dim, level, out.device), z_rows[index], x0[index], sigma[index])
        x = (out * self.domain.radius).reshape(*batch, self.domain.dim).to(near.dtype)
        return torch.where(self._sigma < self.domain.sigma_min, near, self.domain.project(x))


class _LogProb(torch.autograd.Function):
    """log p of rows, whose derivatives are the formulas themselves: where the series has few digits left, differentiating its
    rounding would give another score. Twice differentiable, since the formulas are."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        return _evaluate(x, x0, sigma, slopes=False).value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, x0, sigma = ctx.saved_tensors
        here, there = _evaluate(x, x0, sigma), _evaluate(x0, x, sigma)
        grad = grads[0][:, None]
        return grad * here.slope, grad * there.slope, grad * here.rate[:, None]


class _Result(NamedTuple):
    """log p ``[n]``, its gradient in x ``[n, d]`` and its derivative in σ ``[n]``."""

    value: Tensor
    slope: Tensor
    rate: Tensor


class _Pair(NamedTuple):
    """What both formulas are made of: x, x0 ``[n, d]``, σ ``[n, 1]``, r and r0 ``[n, 1]`` (at most 1), directions ``[n, d]``."""

    x: Tensor
    x0: Tensor
    sigma: Tensor
    r: Tensor
    r0: Tensor
    out: Tensor
    out0: Tensor

    @classmethod
    def of(cls, x: Tensor, x0: Tensor, sigma: Tensor) -> _Pair:
        r, r0 = (event_sum(v * v, 1)[:, None].clamp(min=_CENTRE**2).sqrt() for v in (x, x0))
        return cls(x, x0, sigma, *(torch.where(v > _WALL, 1.0, v) for v in (r, r0)), x / r, x0 / r0)

    def take(self, rows: Tensor) -> _Pair:
        return _Pair(*(v[rows] for v in self))


def _evaluate(x: Tensor, x0: Tensor, sigma: Tensor, slopes: bool = True) -> _Result:
    """Rows in units of R, float64. Without ``slopes`` the derivatives are those of Varadhan's term alone, to be left unused."""
    pair = _Pair.of(x, x0, sigma)
    far, exponent, free = _varadhan(pair)
    wanted = (exponent < _VARADHAN_BEGINS) & ~free & (sigma[:, 0] >= _LEVELS[0])
    dim = x.shape[-1]
    # under nested transforms of torch.func the batched tensor hides inside other wrappers
    if not values_are_readable(wanted) or torch._C._functorch.is_functorch_wrapped_tensor(wanted):
        near = _series(_table(dim, 0, x.device), pair._replace(sigma=sigma.clamp(min=_LEVELS[0])), slopes)
        return _Result(*(_where(wanted, b, f) for b, f in zip(_blend(near, far, exponent, pair), far, strict=True)))
    parts = list(far)
    for level, index in _by_level(sigma[:, 0].detach(), wanted):
        for rows in index.split(_CHUNK):
            near = _series(_table(dim, level, x.device), pair.take(rows), slopes)
            mixed = _blend(near, _Result(*(v[rows] for v in far)), exponent[rows], pair.take(rows))
            parts = [whole.index_put((rows,), part) for whole, part in zip(parts, mixed, strict=True)]
    return _Result(*parts)


def _where(choose: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(choose.reshape(choose.shape + (1,) * (a.dim() - 1)), a, b)


def _by_level(sigma: Tensor, wanted: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The tables that the wanted rows need, each with its rows. It depends on a row's own σ alone."""
    level = torch.bucketize(sigma, sigma.new_tensor(_LEVELS), right=True) - 1
    for i in range(len(_LEVELS)):
        index = (wanted & (level == i)).nonzero()[:, 0]
        if len(index):
            yield i, index


def _varadhan(p: _Pair) -> tuple[_Result, Tensor, Tensor]:
    """The Gaussian with one image; its exponent v; and where the walls are out of reach, so that it is exact."""
    dim, square = p.x.shape[-1], (p.sigma * p.sigma)[:, 0]
    a, a0 = 1 - p.r, 1 - p.r0
    between = p.x - p.x0
    distance = event_sum(between * between, 1)
    around = p.r * p.r0 * event_sum((p.out - p.out0) ** 2, 1)[:, None] / 2  # r r0 (1 − cos γ)
    # at a = a0 = 0 this chooses the limit in which x reaches the wall first: no flux there
    tiny = torch.finfo(a.dtype).tiny
    share = (a0 + tiny) / (a + a0 + tiny)
    detour = 4 * a * (a0 + share * around)  # ≥ 0, the square of the bounced path less that of the straight one
    bend = -4 * (a0 + share * share * around) * p.out + 4 * a * share * (p.r0 * p.out - p.x0)  # its gradient
    u = (-detour[:, 0] / (2 * square)).clamp(min=_NOTHING).exp()
    weight = u / (1 + u)
    exponent = distance / (2 * square) - u.log1p()
    value = -exponent - dim * (p.sigma[:, 0].log() + _LOG_SQRT_2PI)
    slope = -between / square[:, None] - (weight / (2 * square))[:, None] * bend
    rate = ((distance + weight * detour[:, 0]) / square - dim) / p.sigma[:, 0]
    # no path by the wall is shorter than a + a0; in d dimensions a concave mirror gathers up to σ^{1−d} of them
    free = (4 * a * a0 - 2 * around)[:, 0] > (80 + 6 * dim) * square
    return _Result(value, slope, rate), exponent, free


def _blend(near: _Result, far: _Result, exponent: Tensor, p: _Pair) -> _Result:
    """From the series to Varadhan's term by a smooth step in the exponent v, which has no flux either."""
    s = ((exponent - _SERIES_ENDS) / (_VARADHAN_BEGINS - _SERIES_ENDS)).clamp(0, 1)
    share = s * s * s * (10 - 15 * s + 6 * s * s)
    steep = 30 * (s * (1 - s)) ** 2 / (_VARADHAN_BEGINS - _SERIES_ENDS) * (far.value - near.value)
    value = near.value + share * (far.value - near.value)
    # ∇v = −∇ log p of Varadhan's term; in σ without that of its prefactor
    slope = near.slope + (share[:, None] * (far.slope - near.slope) - steep[:, None] * far.slope)
    climb = -(far.rate + p.x.shape[-1] / p.sigma[:, 0])
    return _Result(value, slope, near.rate + share * (far.rate - near.rate) + steep * climb)


def _series(table: _Table, p: _Pair, slopes: bool) -> _Result:
    basis, basis0 = _chebyshev(p.r, table.size), _chebyshev(p.r0, table.size)
    polynomials, steps = _zonal(_cosine(p), len(table.count), table.dim)
    polynomials, steps = polynomials * table.count, steps * table.count
    powers, powers0 = _powers(p.r)[:, table.power], _powers(p.r0)[:, table.power]
    both = polynomials * (powers * powers0)
    lean = polynomials * powers0 * _powers(p.r)[:, table.lower]
    tilt = steps * powers0 * _powers(p.r)[:, table.below]
    total, rate, radial, angular = [], [], [], []
    for rows in _blocks(len(p.x), table.rows):
        h, h0 = _product(basis[rows], table.value, table.rows), _product(basis0[rows], table.value, table.rows)
        weight = (table.decay * p.sigma[rows] ** 2).clamp(min=_NOTHING).exp()
        term = weight * (h * h0)
        modes = term * both[rows].index_select(1, table.degree)
        total.append(event_sum(modes, 1))
        if slopes:
            g = _product(basis[rows], table.slope, table.rows)
            rate.append(event_sum(modes * (2 * table.decay), 1))
            radial.append(event_sum(weight * (g * h0) * lean[rows].index_select(1, table.degree), 1))
            angular.append(event_sum(term * tilt[rows].index_select(1, table.degree), 1))
    # far beyond its digits the sum can be negative; it is not used there, but has to be finite
    density = (torch.cat(total) + table.dim).clamp(min=1e-30)
    value = density.log() - math.log(_sphere(table.dim))
    if not slopes:
        return _Result(value, torch.zeros_like(p.x), torch.zeros_like(value))
    normal = torch.cat(radial)[:, None] * ((1 - p.r) * (1 + p.r)) * p.out
    turn = torch.cat(angular)[:, None] * (p.out0 - _cosine(p) * p.out)
    return _Result(value, (normal + turn) / density[:, None], torch.cat(rate) * p.sigma[:, 0] / density)


def _powers(r: Tensor) -> Tensor:
    """1, r, r²: ``[n, 1] -> [n, 3]``."""
    return torch.cat([torch.ones_like(r), r, r * r], -1)


def _cosine(p: _Pair) -> Tensor:
    return event_sum(p.out * p.out0, 1)[:, None]


def _blocks(count: int, rows: int) -> list[slice]:
    return [slice(i, min(i + rows, count)) for i in range(0, count, rows)] or [slice(0, 0)]


def _product(rows: Tensor, matrix: Tensor, block: int) -> Tensor:
    """rows @ matrix as a product of one fixed shape: matrix products round differently for different numbers of rows, and
    a sample would depend on its batch."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, block - len(rows)))
    return (padded @ matrix)[: len(rows)]


def _chebyshev(r: Tensor, count: int) -> Tensor:
    """T_j(2r² − 1) for j < count, ``[n, 1] -> [n, count]``, by T_{m+j} = 2 T_m T_j − T_{m−j}: few steps on wide tensors."""
    y = 2 * r * r - 1
    known = torch.cat([torch.ones_like(y), y], -1)
    while known.shape[-1] < count:
        last = known[:, -1:]
        known = torch.cat([known, 2 * last * known[:, 1:] - known[:, :-1].flip(-1)], -1)
    return known[:, :count]


def _zonal(t: Tensor, count: int, dim: int) -> tuple[Tensor, Tensor]:
    """P_l(t) and P_l'(t) for l < count, ``[n, 1] -> [n, count]``: the derivative is of the same kind, two dimensions up."""

    def ladder(index: float, count: int) -> list[Tensor]:
        rungs = [torch.ones_like(t), t]
        for l in range(1, count - 1):
            rungs.append((2 * (l + index) * t * rungs[l] - l * rungs[l - 1]) / (l + 2 * index))
        return rungs[:count]

    index = dim / 2 - 1
    upper = ladder(index + 1, count - 1)
    steps = [torch.zeros_like(t), *(l * (l + 2 * index) / (2 * index + 1) * v for l, v in enumerate(upper, 1))]
    return torch.cat(ladder(index, count), -1), torch.cat(steps, -1)


@dataclass(frozen=True)
class _Table:
    """The modes of one dimension with k below a bound, in the order l = 0, odd l, even l; T of them of degrees up to L."""

    dim: int
    rows: int  #: of a block
    size: int  #: Chebyshev coefficients of each function
    degree: Tensor  #: l of each mode, [T]
    decay: Tensor  #: −k²/2, [T]
    value: Tensor  #: coefficients of h in f = r^power · h(2r² − 1), [size, T]
    slope: Tensor  #: coefficients of h in f' = (1 − r²) r^lower · h(2r² − 1), [size, T]
    count: Tensor  #: N_l, [L + 1]
    power: Tensor  #: 0, 1, 2 for l = 0, odd, even, [L + 1]; ``below`` is one less
    below: Tensor
    lower: Tensor


@torch.compiler.assume_constant_result
@cache
def _table(dim: int, level: int, device: torch.device) -> _Table:
    bound = math.sqrt(2 * special.gammainccinv(dim / 2, _TRUNCATION)) / _LEVELS[level]
    k, degree = _roots(dim, bound)
    order = np.argsort(np.where(degree == 0, 0, 1 + (degree + 1) % 2), kind="stable")
    k, degree = k[order], degree[order]
    size = math.ceil((bound + 8 * bound ** (1 / 3) + 24) / 2)
    value, slope = _coefficients(dim, k, degree, size)
    top = int(degree.max(initial=1))
    l = np.arange(top + 1)
    power = np.where(l == 0, 0, 2 - l % 2)
    count = special.binom(l + dim - 1, dim - 1) - np.where(l > 1, special.binom(l + dim - 3, dim - 1), 0)
    rows = 1 << max(4, min(10, int(math.log2(65536 / max(len(k), 1)))))
    tensors = (degree, -k * k / 2, value, slope, count, power, np.maximum(power - 1, 0), (l + 1) % 2)
    return _Table(dim, rows, size, *(torch.from_numpy(np.ascontiguousarray(v)).to(device) for v in tensors))


def _coefficients(dim: int, k: np.ndarray, degree: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev coefficients in 2r² − 1 of f and f', less their powers of r and the factor 1 − r², ``[size, T]``."""
    theta = (np.arange(size) + 0.5) * math.pi / size
    r, fall = np.cos(theta / 2)[:, None], np.sin(theta / 2)[:, None] ** 2  # 1 − r²
    order = degree + dim / 2 - 1
    norm = special.jv(order, k) * np.sqrt((1 - degree * (degree + dim - 2) / k**2) / 2)
    here, next_ = special.jv(order, k * r), special.jv(order + 1, k * r)
    power = np.where(degree == 0, 0, 2 - degree % 2)
    scale = r ** (1 - dim / 2) / norm
    value = here * scale / r**power
    slope = (degree / r * here - k * next_) * scale / (fall * r ** ((degree + 1) % 2))
    weight = np.full((size, 1), 2 / size)
    weight[0] /= 2
    transform = weight * np.cos(np.arange(size)[:, None] * theta)
    return transform @ value, transform @ slope


def _roots(dim: int, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """All (k, l) with 0 < k ≤ bound and k J_{ν+1}(k) = l J_ν(k), ν = l + d/2 − 1.

    k J_{ν+1}/J_ν increases from 0 to ∞ on (0, j_{ν,1}) and from −∞ to ∞ between the zeros j_{ν,n} of J_ν, so each interval holds
    one root (the first none for l = 0, and none below k² = l(l + d − 2) for the others), and none can be missed; the zeros
    themselves interlace with those of J_{ν+1}.
    """
    roots, degrees = [], []
    order, top = dim / 2 - 1, math.ceil(bound) + 1
    zeros = _first_zeros(order, int(bound / math.pi) + top + 3)
    for l in range(top):
        ends = np.concatenate([[math.sqrt(l * (l + dim - 2))], zeros[: int(np.searchsorted(zeros, bound)) + 1]])
        found = _solve(order, l, *((ends[:-1], ends[1:]) if l else (ends[1:-1], ends[2:])))
        found = found[found <= bound]
        roots.append(found)
        degrees.append(np.full(len(found), l))
        if l and not len(found):
            break
        zeros = _solve(order, 0, zeros[:-1], zeros[1:])
        order += 1
    return np.concatenate(roots), np.concatenate(degrees)


def _first_zeros(order: float, count: int) -> np.ndarray:
    """Zeros of J_order: tabled for order 0, nπ for ½, and up from there by interlacing."""
    steps = int(order)
    zeros = np.arange(1, count + steps + 1) * math.pi if order > steps else special.jn_zeros(0, count + steps)
    for step in range(steps):
        zeros = _solve(order - steps + step, 0, zeros[:-1], zeros[1:])
    return zeros


def _solve(order: float, l: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The root of k J_{order+1} = l J_order in each bracket: halvings, then Newton's steps held inside."""
    f, _ = _condition(order, l, low + 1e-6 * (high - low))
    sign, k = np.sign(f), (low + high) / 2
    for step in range(9):
        f, slope = _condition(order, l, k)
        left = np.sign(f) == sign
        low, high = np.where(left, k, low), np.where(left, high, k)
        newton = k - f / slope
        held = (newton > low) & (newton < high) & (step > 3)
        k = np.where(held | ((newton == k) & (step > 3)), newton, (low + high) / 2)
    return k


def _condition(order: float, l: int, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k J_{order+1} − l J_order and its derivative."""
    here, next_ = special.jv(order, k), special.jv(order + 1, k)
    return k * next_ - l * here, (l - order) * next_ + (k - l * order / k) * here


def _draw(table: _Table, z: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The draws made of unit normals z ``[n, d]``, in units of R: the radius by inverting its distribution function, then the angle
    from x0 by inverting its own, given the radius; the rest of z gives the direction across."""
    radius = event_sum(x0 * x0, 1)[:, None].sqrt()
    first = torch.zeros_like(x0)
    first[:, 0] = 1
    axis = torch.where(radius > _CENTRE, x0 / radius.clamp(min=_CENTRE), first)
    along = event_sum(z * axis, 1)[:, None]
    across = z - along * axis
    square = event_sum(across * across, 1)[:, None]
    r = _draw_radius(table, torch.special.ndtr(along), radius, sigma)
    share = torch.special.gammainc(torch.full_like(square, (table.dim - 1) / 2), square / 2)
    angle = _draw_angle(table, share, r, radius, sigma)
    return r * (angle.cos() * axis + angle.sin() * across / square.clamp(min=1e-300).sqrt())


def _draw_radius(table: _Table, share: Tensor, r0: Tensor, sigma: Tensor) -> Tensor:
    """r with F(r) = share, where F(r) = r^d [1 − (1 − r²) Σ e^{−k²σ²/2} f(r0) h(2r² − 1)/k²] over l = 0: the flux of each mode."""
    dim, count = table.dim, int((table.degree == 0).sum())
    value, slope, decay = table.value[:, :count], table.slope[:, :count], table.decay[:count]
    term = (decay * sigma * sigma).clamp(min=_NOTHING).exp() * (_chebyshev(r0, table.size) @ value)
    density = term @ value.mT
    flux = (term / (-2 * decay)) @ slope.mT

    def law(r: Tensor) -> tuple[Tensor, Tensor]:
        basis = _chebyshev(r, table.size)
        mass = r**dim * (1 - (1 - r) * (1 + r) * (basis * flux).sum(-1, keepdim=True))
        return mass, r ** (dim - 1) * (dim + (basis * density).sum(-1, keepdim=True))

    grid = torch.linspace(0, 1, _GRID + 1, dtype=r0.dtype, device=r0.device)[:, None]
    known = grid**dim * (1 - (1 - grid**2) * (_chebyshev(grid, table.size) @ flux.mT))
    return _invert(law, share, grid[:, 0], known.mT)


def _draw_angle(table: _Table, share: Tensor, r: Tensor, r0: Tensor, sigma: Tensor) -> Tensor:
    """γ with G(γ) = share; the density is Σ a_l P_l(cos γ) sin^{d−2} γ."""
    dim, top = table.dim, len(table.count)
    basis, basis0 = _chebyshev(r, table.size), _chebyshev(r0, table.size)
    sums = []
    for rows in _blocks(len(r), table.rows):
        term = (table.decay * sigma[rows] ** 2).clamp(min=_NOTHING).exp() * (
            (basis[rows] @ table.value) * (basis0[rows] @ table.value)
        )
        sums.append(term.new_zeros(len(term), top).index_add(1, table.degree, term))
    powers = _powers(r)[:, table.power] * _powers(r0)[:, table.power]
    a = torch.cat(sums) * powers * table.count
    a = torch.cat([a[:, :1] + dim, a[:, 1:]], -1)

    def law(angle: Tensor) -> tuple[Tensor, Tensor]:
        mass, density = _angular(angle, top, dim)
        return (a * mass).sum(-1, keepdim=True), (a * density).sum(-1, keepdim=True)

    grid = torch.linspace(0, math.pi, _GRID + 1, dtype=r.dtype, device=r.device)
    known = a @ _angular(grid[:, None], top, dim)[0].mT
    return _invert(law, share * known[:, -1:], grid, known)


def _angular(angle: Tensor, count: int, dim: int) -> tuple[Tensor, Tensor]:
    """∫_0^γ P_l(cos s) sin^{d−2} s ds and its integrand for l < count, ``[n, 1] -> [n, count]``."""
    sine, cosine = angle.sin(), angle.cos()
    plain, steps = _zonal(cosine, count, dim)
    whole = angle if dim % 2 == 0 else 1 - cosine
    for power in range(2 + dim % 2, dim - 1, 2):
        whole = (-cosine * sine ** (power - 1) + (power - 1) * whole) / power
    l = torch.arange(1, count, dtype=angle.dtype, device=angle.device)
    return torch.cat([whole, sine ** (dim - 1) * steps[:, 1:] / (l * (l + dim - 2))], -1), plain * sine ** (dim - 2)


def _invert(law: Callable[[Tensor], tuple[Tensor, Tensor]], share: Tensor, grid: Tensor, known: Tensor) -> Tensor:
    """Where the distribution function reaches ``share`` ``[n, 1]``: bracketed by its values ``[n, points]`` on the grid, then by
    Newton's steps, or halvings where a step would leave the bracket."""
    place = ((known < share).sum(-1) - 1).clamp(0, len(grid) - 2)
    low, high = grid[place][:, None], grid[place + 1][:, None]
    before, after = known.gather(1, place[:, None]), known.gather(1, place[:, None] + 1)
    at = low + (high - low) * ((share - before) / (after - before)).nan_to_num(0.5).clamp(0.01, 0.99)
    for _ in range(_NEWTON):
        mass, density = law(at)
        low, high = torch.where(mass < share, at, low), torch.where(mass < share, high, at)
        step = at + (share - mass) / density
        at = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    return at
