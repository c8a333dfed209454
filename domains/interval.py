r"""The one implementation of the Neumann heat kernel of an interval and of a half-line; every folded domain uses it.

Reflecting walls stand at ``low`` and ``high``; w is the width and :math:`r = \sigma / w`.

*Images*, for r < 0.4. Let p, p0 be the distances of x, x0 from the wall *nearer to x*, q, q0 those from the other wall,
and :math:`y_0 = p_0,\ y_1 = 2w - p_0,\ y_2 = 2w + p_0,\ y_3 = 4w - p_0, …`; the images are :math:`±y_k` and

.. math:: p_\sigma(x|x_0) = \mathcal N(x - x_0; \sigma^2)\, S,\qquad S = \sum_k A_k (1 + u_k),\qquad
          \sigma^2 ∂_x \log p = \tfrac1S \sum_k A_k f(p, y_k),\qquad f(p, y) = (y - p) - u (y + p)

with :math:`u_k = e^{-2 p y_k / \sigma^2}` and :math:`A_k` the weight of :math:`y_k` relative to the direct image. Every
exponent is a product of distances, so none cancels; the pairs ±y about the nearer wall make the score vanish there exactly.

*Modes*, for r ≥ 0.4: :math:`w\,p = 1 + 2 \sum_k e^{-k^2 π^2 r^2 / 2} \cos(kπp/w) \cos(kπp_0/w)`, cosines by recurrence.

Where f cancels: with :math:`m = 1 - u = -\mathrm{expm1}(-2py/σ^2)`, exactly :math:`f = m (y + p) - 2p`, which is accurate
as p → 0; once m rounds to 1 the difference y − p, taken of the given numbers, takes over. Between the two, both
distances are a few σ, so that their rounding is a few ulp of σ.

The terms kept in each regime leave a truncation below 1e-7 (float32) and 1e-16 (float64) relative to the density, over all (x, x0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .tensors import values_are_readable

Bound = float | Tensor

# Elements per pass in eager mode: the twenty-odd temporaries of a pass then stay in the cache.
_CHUNK = 1 << 15
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
# Images below, modes above: at r = 0.4 the density is nowhere below 0.08, so the alternating series loses one digit.
_SWITCH = 0.4


class _Parts(NamedTuple):
    """What both series deliver: score = slope / mass · unit and log p = log(mass) + offset."""

    slope: Tensor
    mass: Tensor
    unit: Bound
    offset: Bound


def _score(parts: _Parts) -> tuple[Tensor, ...]:
    return (parts.slope / parts.mass * parts.unit,)


def _log_prob(parts: _Parts) -> tuple[Tensor, ...]:
    return (parts.mass.log() + parts.offset,)


def _both(parts: _Parts) -> tuple[Tensor, ...]:
    return _log_prob(parts) + _score(parts)


def _log(value: Bound) -> Bound:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def _pair(p: Tensor, y: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    """(f(p, y), 1 + u) of the images ±y seen from p, in units of σ; ``difference`` is y − p with one rounding."""
    m = -torch.expm1(-2 * (p * y))
    return torch.where(m == 1, difference, m * (y + p) - 2 * p), 2 - m


def _half_line(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound) -> _Parts:
    unit = 1 / sigma
    d = (x0 - x) * unit
    slope, mass = _pair((x - low) * unit, (x0 - low) * unit, d)
    return _Parts(slope, mass, unit, -0.5 * (d * d) - (sigma.log() + _LOG_SQRT_2PI))


def _images(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound, pairs: int) -> _Parts:
    unit = 1 / sigma
    w = (high - low) * unit
    d = (x0 - x) * unit
    a, b, a0, b0 = (x - low) * unit, (high - x) * unit, (x0 - low) * unit, (high - x0) * unit
    flip = a > b
    p, q = torch.minimum(a, b), torch.maximum(a, b)
    p0, q0 = torch.where(flip, b0, a0), torch.where(flip, a0, b0)
    slope, mass = _pair(p, p0, torch.where(flip, -d, d))
    for k in range(1, pairs):
        shift = (k // 2) * w
        if k % 2:  # y_k = (k + 1) w − p0
            y, exponent = k * w + q0, -2 * ((shift + q) * (shift + q0))
        else:  # y_k = k w + p0
            y, exponent = k * w + p0, -2 * (shift * (shift + (p0 - p)))
        weight = exponent.exp()
        f, s = _pair(p, y, y - p)
        slope, mass = slope + weight * f, mass + weight * s
    return _Parts(torch.where(flip, -slope, slope), mass, unit, -0.5 * (d * d) - (sigma.log() + _LOG_SQRT_2PI))


def _modes(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound, modes: int) -> _Parts:
    unit = math.pi / (high - low)
    a, b = x - low, high - x
    flip = a > b
    p, p0 = torch.minimum(a, b) * unit, torch.where(flip, high - x0, x0 - low) * unit
    damping = -0.5 * (sigma * unit) ** 2
    cos, sin, cos0 = p.cos(), p.sin(), p0.cos()
    weight = damping.exp() * cos0
    mass, slope = weight * cos, weight * sin
    # cos kp and sin kp by c_k = 2 cos(p) c_{k−1} − c_{k−2}, likewise for p0
    c, c_old, s, s_old, c0, c0_old = cos, 1.0, sin, 0.0, cos0, 1.0
    for k in range(2, modes + 1):
        c, c_old = 2 * cos * c - c_old, c
        s, s_old = 2 * cos * s - s_old, s
        c0, c0_old = 2 * cos0 * c0 - c0_old, c0
        weight = (k * k * damping).exp() * c0
        mass, slope = mass + weight * c, slope + (k * weight) * s
    slope = -2 * slope
    return _Parts(torch.where(flip, -slope, slope), 1 + 2 * mass, unit, -_log(high - low))


class _Regime(NamedTuple):
    """A range of r, its series, and the number of terms for float32 and float64."""

    below: float
    series: Callable[..., _Parts]
    single: int
    double: int

    def terms(self, dtype: torch.dtype) -> int:
        return self.double if dtype == torch.float64 else self.single


_REGIMES = (
    _Regime(0.16, _images, 2, 2),
    _Regime(_SWITCH, _images, 3, 4),
    _Regime(0.8, _modes, 4, 6),
    _Regime(1.6, _modes, 2, 3),
    _Regime(math.inf, _modes, 1, 1),
)


def _evaluate(
    finish: Callable[[_Parts], tuple[Tensor, ...]], x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound
):
    operands = [v for v in (x, x0, sigma, low, high) if isinstance(v, Tensor)]
    graph = torch.is_grad_enabled() and any(v.requires_grad for v in operands)
    if graph or x.device.type != "cpu" or not values_are_readable(*operands):
        return _select(finish, x, x0, sigma, low, high)
    return _split(finish, x, x0, sigma, low, high)


def _select(finish, x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> tuple[Tensor, ...]:
    """Both series everywhere, then a choice: no data-dependent shape. Each sees only σ of its own range, so that the
    series not chosen stays finite and its gradient is a true zero."""
    switch = _SWITCH * (high - low)
    small = sigma < switch
    images, modes = _REGIMES[1], _REGIMES[2]
    first = finish(_images(x, x0, torch.where(small, sigma, switch), low, high, images.terms(x.dtype)))
    second = finish(_modes(x, x0, torch.where(small, switch, sigma), low, high, modes.terms(x.dtype)))
    return tuple(torch.where(small, i, m) for i, m in zip(first, second, strict=True))


def _split(finish, x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> tuple[Tensor, ...]:
    """Each row in its own regime, in passes that fit the cache. A row is the part of the event over which r is constant."""
    shape = torch.broadcast_shapes(*(v.shape for v in (x, x0, sigma, low, high) if isinstance(v, Tensor)))
    ratio = sigma / (high - low)
    ratio = ratio[(None,) * (len(shape) - ratio.dim())]
    lead = max((i + 1 for i, n in enumerate(ratio.shape) if n != 1), default=0)
    rows, columns = math.prod(shape[:lead]), math.prod(shape[lead:])
    row_shape = shape[:lead] + (1,) * (len(shape) - lead)

    ratio = ratio.expand(row_shape).reshape(rows)
    x, x0, low, high = (
        v.expand(shape).reshape(rows, columns) if isinstance(v, Tensor) else v for v in (x, x0, low, high)
    )
    sigma = sigma[(None,) * (len(shape) - sigma.dim())].expand(row_shape).reshape(rows, 1)
    # σ = NaN falls into no regime and leaves NaN
    out = tuple(x.new_full((rows, columns), math.nan) for _ in range(2 if finish is _both else 1))
    above = -math.inf
    for regime in _REGIMES:
        chosen = (ratio >= above) & (ratio < regime.below)
        above = regime.below
        for part in _passes(chosen, columns):
            bounds = [v[part] if isinstance(v, Tensor) else v for v in (low, high)]
            parts = regime.series(x[part], x0[part], sigma[part[0]], *bounds, regime.terms(x.dtype))
            for whole, value in zip(out, finish(parts), strict=True):
                whole[part] = value
    return tuple(v.reshape(shape) for v in out)


def _passes(chosen: Tensor, columns: int) -> Iterator[tuple]:
    """Index tuples (rows, columns) that cover the chosen rows, at most _CHUNK elements each; slices where all are chosen."""
    index = chosen.nonzero().flatten()
    everything = len(index) == len(chosen)
    step = max(1, _CHUNK // max(columns, 1))
    for i in range(0, len(index), step):
        rows = slice(i, i + step) if everything else index[i : i + step]
        for j in range(0, columns, _CHUNK):
            yield rows, slice(j, j + _CHUNK)


def interval_log_prob(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> Tensor:
    """log p_σ(x | x0) on [low, high], element by element; all arguments broadcast."""
    return _evaluate(_log_prob, x, x0, sigma, low, high)[0]


def interval_score(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> Tensor:
    """∂ₓ log p_σ(x | x0) on [low, high], element by element; all arguments broadcast."""
    return _evaluate(_score, x, x0, sigma, low, high)[0]


def interval_log_prob_and_score(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> tuple[Tensor, ...]:
    """Both at the cost of about one."""
    return _evaluate(_both, x, x0, sigma, low, high)


def half_line_log_prob(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound) -> Tensor:
    """log p_σ(x | x0) on [low, ∞)."""
    return _log_prob(_half_line(x, x0, sigma, low))[0]


def half_line_score(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound) -> Tensor:
    """∂ₓ log p_σ(x | x0) on [low, ∞): (x0 tanh(x x0/σ²) − x)/σ² for low = 0, without its cancellations."""
    return _score(_half_line(x, x0, sigma, low))[0]


def half_line_log_prob_and_score(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound) -> tuple[Tensor, ...]:
    """Both at the cost of about one."""
    return _both(_half_line(x, x0, sigma, low))
