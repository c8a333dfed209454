r"""The Neumann heat kernel of the ball as a Bessel series: density, score and exact draws, in rows of float64.

With R = 1, r = |x|, γ the angle between x and x_0, ν = l + d/2 − 1 and ω_d the area of the unit sphere,

.. math:: p_\sigma(x|x_0) = \frac1{ω_d} \Big[ d + \sum_{l,n} e^{-k^2 σ^2 / 2} f_{ln}(r) f_{ln}(r_0) Z_l(\cos γ) \Big],\qquad
          f_{ln}(r) = \frac{r^{1-d/2} J_ν(kr)}{J_ν(k) \sqrt{½(1 - l(l+d-2)/k^2)}},

where k = k_{ln} runs through the positive roots of :math:`k J_ν'(k) = (d/2 - 1) J_ν(k)`, that is :math:`k J_{ν+1}(k) = l J_ν(k)`, and
Z_l is the zonal harmonic, :math:`Z_l(t) = N_l P_l(t)` with P_l the Gegenbauer polynomial of index λ = d/2 − 1 scaled to P_l(1) = 1 and N_l
the number of harmonics of degree l (Carslaw & Jaeger, *Conduction of Heat in Solids*, ch. XIV, for d = 2, 3).

*Radial functions* are polynomials in practice: r^{a} h(2r² − 1) with a = 0, 1, 2 for l = 0, odd, even, and h a Chebyshev series. So are
their derivatives :math:`f' = (1 - r^2) r^{b} g(2r^2 - 1)`, b = 0 for odd l and 1 for even: the factor makes the score's normal component
vanish at the wall exactly. Angular derivatives need f/r, which is a power of r times the same h, so that nothing is 0/0 at the centre.
Modes with :math:`e^{-k^2 σ^2/2}` below rounding are left out: about 9 (R/σ)² remain. Tables are float64, made once for each dimension and
each octave of σ; the arithmetic is float64 whatever the dtype of the states.

*Where the series has no digits left* (p below about 1e-8 of its scale :math:`(2πσ^2)^{-d/2}`; it alternates), and for σ below
``sigma_min``, Varadhan's leading term with one image takes over: with a = 1 − r, a_0 = 1 − r_0 the distances from the wall

.. math:: p \approx (2πσ^2)^{-d/2} e^{-|x - x_0|^2 / 2σ^2} (1 + u),\qquad
          u = \exp\Big(-\frac{2 a a_0}{σ^2} \Big[1 + \frac{r r_0 (1 - \cos γ)}{a + a_0}\Big]\Big),

which is symmetric, has no flux through the wall, is the image of the tangent half-space near it, and is exact on a common ray but for the
curvature of the wave front. Where no path that touches the wall matters the Gaussian alone is exact, and is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor

from .constants import OnDevice, lasting
from .tensors import event_sum, expand_right, values_are_readable

# The smallest σ of each table, in units of R; the first is sigma_min.
LEVELS = (0.05, 0.1, 0.2, 0.4, 0.8)
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
# float64 numbers in a cache line.
_LINE = 8
# Numbers in a [rows, modes] temporary: on a processor they stay in its cache, on an accelerator they keep it busy.
_CACHED, _BUSY = 1 << 16, 1 << 20


def sphere_area(dim: int) -> float:
    """The area of the unit sphere in R^dim."""
    return 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)


class LogProb(torch.autograd.Function):
    """log p of rows, whose derivatives are the formulas themselves: where the series has few digits left, differentiating its
    rounding would give another score. Twice differentiable, since the formulas are."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        return evaluate_rows(x, x0, sigma, slopes=False).value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, x0, sigma = ctx.saved_tensors
        here, there = evaluate_rows(x, x0, sigma), evaluate_rows(x0, x, sigma)
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
        at, at0 = (torch.where(v > _WALL, 1.0, v) for v in (r, r0))
        return cls(x, x0, sigma, at, at0, x / r, x0 / r0)

    def take(self, rows: Tensor | slice) -> _Pair:
        return _Pair._make(v[rows] for v in self)


def evaluate_rows(x: Tensor, x0: Tensor, sigma: Tensor, *, slopes: bool = True) -> _Result:
    """Rows in units of R, float64. Without ``slopes`` the derivatives are those of Varadhan's term alone, to be left unused."""
    pair = _Pair.of(x, x0, sigma)
    far, exponent, free = _varadhan(pair)
    wanted = (exponent < _VARADHAN_BEGINS) & ~free & (sigma[:, 0] >= LEVELS[0])
    dim = x.shape[-1]
    if not _rows_can_be_picked(wanted):
        table, held = mode_table(dim, 0, x.device), pair._replace(sigma=sigma.clamp(min=LEVELS[0]))
        pieces = [_series(table, held.take(rows), slopes) for rows in _blocks(len(x), _CHUNK)]
        near = _Result(*(torch.cat(v) for v in zip(*pieces, strict=True)))
        return _Result(*(_where(wanted, b, f) for b, f in zip(_blend(near, far, exponent, pair), far, strict=True)))
    parts = list(far)
    for table, rows in _rows_by_table(dim, sigma[:, 0].detach(), wanted):
        near = _series(table, pair.take(rows), slopes)
        mixed = _blend(near, _Result(*(v[rows] for v in far)), exponent[rows], pair.take(rows))
        parts = [whole.index_put((rows,), part) for whole, part in zip(parts, mixed, strict=True)]
    return _Result(*parts)


def _rows_can_be_picked(wanted: Tensor) -> bool:
    """Whether each row can have the table of its own σ. Otherwise the largest serves all: under transforms, where there are no values
    to pick by, and on an accelerator, which would be waited for at each table."""
    if wanted.device.type != "cpu" or not values_are_readable(wanted):
        return False
    # under nested transforms the batched tensor hides inside other wrappers
    return not torch._C._functorch.is_functorch_wrapped_tensor(wanted)


def _where(choose: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(expand_right(choose, a.dim() - 1), a, b)


def _rows_by_table(dim: int, sigma: Tensor, wanted: Tensor) -> Iterator[tuple[_Table, Tensor]]:
    """The tables that the wanted rows need, each with rows of its own. It depends on a row's own σ alone."""
    level = torch.bucketize(sigma, sigma.new_tensor(LEVELS), right=True) - 1
    for i in range(len(LEVELS)):
        index = (wanted & (level == i)).nonzero()[:, 0]
        if len(index):
            for rows in index.split(_CHUNK):
                yield mode_table(dim, i, sigma.device), rows


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
    value = -exponent - dim / 2 * (2 * math.pi * square).log()
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
    value = density.log() - math.log(sphere_area(table.dim))
    if not slopes:
        return _Result(value, torch.zeros_like(p.x), torch.zeros_like(value))
    normal = torch.cat(radial)[:, None] * ((1 - p.r) * (1 + p.r)) * p.out
    turn = torch.cat(angular)[:, None] * (p.out0 - _cosine(p) * p.out)
    return _Result(value, (normal + turn) / density[:, None], torch.cat(rate) * p.sigma[:, 0] / density)


def _power(x: Tensor, exponent: int) -> Tensor:
    """x^exponent by products: ``pow`` rounds the last elements of a tensor differently from the others."""
    if exponent == 0:
        return torch.ones_like(x)
    half = _power(x, exponent // 2)
    return half * half * x if exponent % 2 else half * half


def _powers(r: Tensor) -> Tensor:
    """1, r, r²: ``[n, 1] -> [n, 3]``."""
    return torch.cat([torch.ones_like(r), r, r * r], -1)


def _cosine(p: _Pair) -> Tensor:
    return event_sum(p.out * p.out0, 1)[:, None]


def _blocks(count: int, rows: int) -> list[slice]:
    return [slice(i, min(i + rows, count)) for i in range(0, count, rows)] or [slice(0, 0)]


def _product(rows: Tensor, matrix: Tensor, block: int) -> Tensor:
    """rows @ matrix as a product of one fixed shape, with columns in whole cache lines: matrix products round differently for
    different numbers of rows, and in rows that begin at odd addresses; a sample would depend on its batch."""
    columns = matrix.shape[1]
    padded = torch.nn.functional.pad(rows, (0, 0, 0, block - len(rows)))
    return (padded @ torch.nn.functional.pad(matrix, (0, -columns % _LINE)))[: len(rows), :columns]


def _products(rows: Tensor, matrix: Tensor, block: int) -> Tensor:
    """``_product`` of any number of rows."""
    return torch.cat([_product(rows[each], matrix, block) for each in _blocks(len(rows), block)])


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
        for n in range(1, count - 1):
            rungs.append((2 * (n + index) * t * rungs[n] - n * rungs[n - 1]) / (n + 2 * index))
        return rungs[:count]

    index = dim / 2 - 1
    upper = ladder(index + 1, count - 1)
    steps = [torch.zeros_like(t), *(n * (n + 2 * index) / (2 * index + 1) * v for n, v in enumerate(upper, 1))]
    return torch.cat(ladder(index, count), -1), torch.cat(steps, -1)


class _Table(NamedTuple):
    """The modes of one dimension with k below a bound, in the order l = 0, odd l, even l; T of them of degrees up to L."""

    dim: int
    radial: int  #: how many have l = 0
    size: int  #: Chebyshev coefficients of each function
    degree: Tensor  #: l of each mode, [T]
    decay: Tensor  #: −k²/2, [T]
    value: Tensor  #: coefficients of h in f = r^power · h(2r² − 1), [size, T]
    slope: Tensor  #: coefficients of g in f' = (1 − r²) r^lower · g(2r² − 1), [size, T]
    count: Tensor  # type: ignore[assignment]  #: N_l, [L + 1]; hides tuple.count, which nobody asks of this one
    power: Tensor  #: 0, 1, 2 for l = 0, odd, even, [L + 1]; ``below`` is one less
    below: Tensor
    lower: Tensor

    @property
    def rows(self) -> int:
        """Of a block."""
        room = _CACHED if self.decay.device.type == "cpu" else _BUSY
        return 1 << max(4, min(10, int(math.log2(room / max(len(self.decay), 1)))))


def mode_table(dim: int, level: int, device: torch.device) -> _Table:
    return _mode_tables(dim, level)(device)


@cache
@lasting
def _mode_tables(dim: int, level: int) -> OnDevice[_Table]:
    bound = math.sqrt(2 * special.gammainccinv(dim / 2, _TRUNCATION)) / LEVELS[level]
    k, degree = _roots(dim, bound)
    order = np.argsort(np.where(degree == 0, 0, 1 + (degree + 1) % 2), kind="stable")
    k, degree = k[order], degree[order]
    size = math.ceil((bound + 8 * bound ** (1 / 3) + 24) / 2)
    value, slope = _coefficients(dim, k, degree, size)
    top = int(degree.max(initial=1))
    each = np.arange(top + 1)
    power = np.where(each == 0, 0, 2 - each % 2)
    count = special.binom(each + dim - 1, dim - 1) - np.where(each > 1, special.binom(each + dim - 3, dim - 1), 0)
    tensors = (degree, -k * k / 2, value, slope, count, power, np.maximum(power - 1, 0), (each + 1) % 2)
    return OnDevice(
        _Table(dim, int((degree == 0).sum()), size, *(torch.from_numpy(np.ascontiguousarray(v)) for v in tensors))
    )


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

    k J_{ν+1}/J_ν increases from 0 to ∞ on (0, j_{ν,1}) and from −∞ to ∞ between the zeros j_{ν,n} of J_ν, so each interval
    holds one root (the first none for l = 0, and none below k² = l(l + d − 2) for the others), and none can be missed; the zeros
    themselves interlace with those of J_{ν+1}.
    """
    roots, degrees = [], []
    order, top = dim / 2 - 1, math.ceil(bound) + 1
    zeros = _first_zeros(order, int(bound / math.pi) + 6)
    for degree in range(top):
        below = int(np.searchsorted(zeros, bound))
        ends = np.concatenate([[math.sqrt(degree * (degree + dim - 2))], zeros[: below + 1]])
        found = _solve(order, degree, *((ends[:-1], ends[1:]) if degree else (ends[1:-1], ends[2:])))
        found = found[found <= bound]
        roots.append(found)
        degrees.append(np.full(len(found), degree))
        if degree and not len(found):
            break
        # four more than needed; gaps fall towards π (grow, for order 0), which bounds the one after the last
        zeros = zeros[: below + 4]
        zeros = _solve(order, 0, zeros, np.append(zeros[1:], zeros[-1] + max(math.pi, zeros[-1] - zeros[-2])))
        order += 1
    return np.concatenate(roots), np.concatenate(degrees)


def _first_zeros(order: float, count: int) -> np.ndarray:
    """Zeros of J_order: tabled for order 0, nπ for ½, and up from there by interlacing."""
    steps = int(order)
    zeros = np.arange(1, count + steps + 1) * math.pi if order > steps else special.jn_zeros(0, count + steps)
    for step in range(steps):
        zeros = _solve(order - steps + step, 0, zeros[:-1], zeros[1:])
    return zeros


def _solve(order: float, degree: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The root of k J_{order+1} = degree · J_order in each bracket: halvings, then Newton's steps held inside."""
    f, _ = _condition(order, degree, low + 1e-6 * (high - low))
    sign, k = np.sign(f), (low + high) / 2
    for step in range(9):
        f, slope = _condition(order, degree, k)
        left = np.sign(f) == sign
        low, high = np.where(left, k, low), np.where(left, high, k)
        newton = k - f / slope
        held = (newton > low) & (newton < high) & (step > 3)
        k = np.where(held | ((newton == k) & (step > 3)), newton, (low + high) / 2)
    return k


def _condition(order: float, degree: int, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k J_{order+1} − degree · J_order and its derivative."""
    here, next_ = special.jv(order, k), special.jv(order + 1, k)
    return k * next_ - degree * here, (degree - order) * next_ + (k - degree * order / k) * here


def draw_rows(z: Tensor, x0: Tensor, sigma: Tensor, below: Tensor) -> Tensor:
    """Draws in units of R, made of unit normals z, all ``[n, d]``; where σ ``[n, 1]`` is less than every table's they are those given
    as ``below``."""
    dim, wanted = z.shape[-1], sigma[:, 0] >= LEVELS[0]
    if not _rows_can_be_picked(wanted):
        table, held = mode_table(dim, 0, z.device), sigma.clamp(min=LEVELS[0])
        pieces = [_draw(table, z[rows], x0[rows], held[rows]) for rows in _blocks(len(z), _CHUNK)]
        return torch.where(wanted[:, None], torch.cat(pieces), below)
    for table, rows in _rows_by_table(dim, sigma[:, 0], wanted):
        below = below.index_put((rows,), _draw(table, z[rows], x0[rows], sigma[rows]))
    return below


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
    angle = _draw_angle(table, _chi_square(square, table.dim - 1), r, radius, sigma)
    return r * (angle.cos() * axis + angle.sin() * across / square.clamp(min=1e-300).sqrt())


def _chi_square(square: Tensor, count: int) -> Tensor:
    """The distribution function of the sum of ``count`` squared unit normals, P(count/2, square/2), up from P(½, ·) or P(1, ·) by
    P(a + 1, y) = P(a, y) − y^a e^{−y} / Γ(a + 1). (``gammainc`` rounds the last elements of a tensor differently from the others.)"""
    y, a = square / 2, 0.5 if count % 2 else 1.0
    share = y.sqrt().erf() if count % 2 else -(-y).expm1()
    term = (-y).exp() * (y.sqrt() if count % 2 else y) / math.gamma(a + 1)
    while a < count / 2:
        share, a = share - term, a + 1
        term = term * y / a
    return share.clamp(min=0)


def _draw_radius(table: _Table, share: Tensor, r0: Tensor, sigma: Tensor) -> Tensor:
    """r with F(r) = share, where F(r) = r^d [1 − (1 − r²) Σ e^{−k²σ²/2} f(r0) g(2r² − 1)/k²], summed over l = 0."""
    dim, count = table.dim, table.radial
    value, slope, decay = table.value[:, :count], table.slope[:, :count], table.decay[:count]
    term = (decay * sigma * sigma).clamp(min=_NOTHING).exp() * _products(_chebyshev(r0, table.size), value, table.rows)
    density = _products(term, value.mT, table.rows)
    flux = _products(term / (-2 * decay), slope.mT, table.rows)

    def law(r: Tensor) -> tuple[Tensor, Tensor]:
        basis = _chebyshev(r, table.size)
        mass = _power(r, dim) * (1 - (1 - r) * (1 + r) * event_sum(basis * flux, 1)[:, None])
        return mass, _power(r, dim - 1) * (dim + event_sum(basis * density, 1)[:, None])

    grid = torch.linspace(0, 1, _GRID + 1, dtype=r0.dtype, device=r0.device)
    lost = (1 - grid**2) * _products(flux, _chebyshev(grid[:, None], table.size).mT, table.rows)
    return _invert(law, share, grid, grid**dim * (1 - lost))


def _draw_angle(table: _Table, share: Tensor, r: Tensor, r0: Tensor, sigma: Tensor) -> Tensor:
    """γ with G(γ) = share; the density is Σ a_l P_l(cos γ) sin^{d−2} γ."""
    dim, top = table.dim, len(table.count)
    basis, basis0 = _chebyshev(r, table.size), _chebyshev(r0, table.size)
    sums = []
    for rows in _blocks(len(r), table.rows):
        h, h0 = _product(basis[rows], table.value, table.rows), _product(basis0[rows], table.value, table.rows)
        term = (table.decay * sigma[rows] ** 2).clamp(min=_NOTHING).exp() * (h * h0)
        sums.append(term.new_zeros(len(term), top).index_add(1, table.degree, term))
    powers = _powers(r)[:, table.power] * _powers(r0)[:, table.power]
    a = torch.cat(sums) * powers * table.count
    a = torch.cat([a[:, :1] + dim, a[:, 1:]], -1)

    def law(angle: Tensor) -> tuple[Tensor, Tensor]:
        mass, density = _angular(angle, top, dim)
        return event_sum(a * mass, 1)[:, None], event_sum(a * density, 1)[:, None]

    grid = torch.linspace(0, math.pi, _GRID + 1, dtype=r.dtype, device=r.device)
    known = _products(a, _angular(grid[:, None], top, dim)[0].mT, table.rows)
    return _invert(law, share * known[:, -1:], grid, known)


def _angular(angle: Tensor, count: int, dim: int) -> tuple[Tensor, Tensor]:
    """∫_0^γ P_l(cos s) sin^{d−2} s ds and its integrand for l < count, ``[n, 1] -> [n, count]``."""
    sine, cosine = angle.sin(), angle.cos()
    plain, steps = _zonal(cosine, count, dim)
    whole = angle if dim % 2 == 0 else 1 - cosine
    for power in range(2 + dim % 2, dim - 1, 2):
        whole = (-cosine * _power(sine, power - 1) + (power - 1) * whole) / power
    n, weight = torch.arange(1, count, dtype=angle.dtype, device=angle.device), _power(sine, dim - 2)
    return torch.cat([whole, weight * sine * steps[:, 1:] / (n * (n + dim - 2))], -1), plain * weight


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
