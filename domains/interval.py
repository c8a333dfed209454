r"""The one implementation of the Neumann heat kernel of an interval and of a half-line; every folded domain uses it.

Reflecting walls stand at ``low`` and ``high``; w is the width and :math:`r = \sigma / w`.

*Images*, for r < 0.4. Let p, p0 be the distances of x, x0 from the wall *nearer to x*, d = p0 − p, and ±y_0, ±y_1, … with
:math:`y_0 = p_0,\ y_1 = 2w - p_0,\ y_2 = 2w + p_0,\ y_3 = 4w - p_0, …` the images seen from that wall. Then

.. math:: p_\sigma(x|x_0) = \mathcal N(x - x_0; \sigma^2)\, S,\qquad S = \sum_k A_k (1 + u_k),\qquad
          \sigma^2 ∂_p \log p = \tfrac1S \sum_k A_k f_k,\qquad f_k = (y_k - p) - u_k (y_k + p)

with :math:`u_k = e^{-2 p y_k / \sigma^2}` and :math:`A_k = e^{-2 α_k β_k / \sigma^2}` the weight of y_k relative to the direct
image, where :math:`α_k + β_k = y_k - p` and :math:`β_k - α_k = ±d`, so that α and β are distances: for odd k,
:math:`α = jw - p,\ β = jw - p_0` with j = (k + 1)/2; for even k, :math:`α = jw,\ β = jw + d` with j = k/2. Every exponent is a
product of distances, so none cancels, and the pairs ±y about the nearer wall make the score vanish there exactly.

In f two numbers cancel as p → 0, and far from the wall y − p cancels unless it is taken of the given x and x0. With
:math:`e_k = u_k - 1 = \mathrm{expm1}(-2 p y_k / \sigma^2)` and :math:`T_k = y_k - p` (that is d for k = 0) the same f is

.. math:: f_k = -T_k e_k - 2 p u_k,

two terms accurate by themselves: the first is all that is left far away (e = −1, u = 0), both vanish with p.

*Modes*, for r ≥ 0.4: :math:`w\,p = 1 + 2 \sum_k e^{-k^2 π^2 r^2 / 2} \cos(kθ) \cos(kθ_0)` with θ, θ_0 = π/w times the distances
from ``low``; multiples of the angles by Chebyshev recurrences, :math:`\sin kθ = \sin θ\, U_{k-1}(\cos θ)` with the sine taken from
the nearer wall, where it vanishes exactly.

The terms left out err by less than 5e-7 (float32) and 2e-15 (float64) in log p and in σ·score, over all (x, x0).
Nothing here selects element by element: on random data ``torch.where`` costs more than an exponential.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .tensors import values_are_readable

Bound = float | Tensor

# Elements per pass in eager mode: the temporaries of a pass then stay in the cache, and torch starts no threads for its
# cheap operations, which would wait longer for one another than they work.
_CHUNK = 1 << 15
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_2 = math.sqrt(2)
# e^-64 is nothing beside the 1 it is added to; below, exp and expm1 leave their fast path (by a factor of up to 30).
_FLOOR = -64.0
# Images below, modes above: at r = 0.4 the density is nowhere below 0.08, so the alternating series loses one digit.
_SWITCH = 0.4


class _Parts(NamedTuple):
    """What both series deliver: score = slope / mass · unit and log p = log(mass) + offset(); of the Gaussian's exponent
    −(x − x0)²/2σ² offset() lacks the part missing()."""

    slope: Tensor
    mass: Tensor
    unit: Bound
    offset: Callable[[], Bound]
    missing: Callable[[], Bound] = lambda: 0.0


def _score(parts: _Parts) -> tuple[Tensor, ...]:
    return (parts.slope / parts.mass * parts.unit,)


def _log_prob(parts: _Parts) -> tuple[Tensor, ...]:
    return (parts.mass.log() + parts.offset(),)


def _both(parts: _Parts) -> tuple[Tensor, ...]:
    return _log_prob(parts) + _score(parts)


def _detail(parts: _Parts) -> tuple[Tensor, ...]:
    missing = parts.missing()
    reference = torch.as_tensor(parts.offset() + missing, dtype=parts.mass.dtype, device=parts.mass.device)
    return (reference, parts.mass.log() - missing, *_score(parts))


_Finish = Callable[[_Parts], tuple[Tensor, ...]]
_OUTPUTS: dict[_Finish, int] = {_score: 1, _log_prob: 1, _both: 2, _detail: 3}


def _log(value: Bound) -> Bound:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def _exp(exponent: Tensor) -> Tensor:
    return exponent.clamp(min=_FLOOR).exp()


def _expm1(exponent: Tensor) -> Tensor:
    return exponent.clamp(min=_FLOOR).expm1()


def _gauss(d: Tensor, sigma: Tensor) -> Tensor:
    """log N(x − x0; σ²), d in units of σ/√2."""
    return torch.addcmul(-_LOG_SQRT_2PI - sigma.log(), d, d, value=-0.25)


def _nearer(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller of two distances; and 0 where it is a, 1 where it is b."""
    far = (a - b).detach().sign().clamp(min=0)
    # exact, because the weight is 0 or 1; unlike a minimum it has the right derivative at the centre
    return torch.lerp(a, b, far), far


def _half_line(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound) -> _Parts:
    unit = _SQRT_2 / sigma
    n, d = (low - x) * unit, (x0 - x) * unit
    e = _expm1(n * (d - n))
    u = 1 + e
    return _Parts(n * u - 0.5 * (d * e), 1 + u, unit, lambda: _gauss(d, sigma))


def _place(x: Tensor, x0: Tensor, unit: Tensor, low: Bound, high: Bound) -> tuple[Tensor, Tensor, Tensor]:
    """(n, d, unit) as seen from the nearer wall: −p, d, and the unit with the sign that carries a slope back."""
    p, far = _nearer(x - low, high - x)
    signed = torch.addcmul(unit, far, unit, value=-2)
    return p * -unit, (x0 - x) * signed, signed


def _image(n: Tensor, minus_alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(A, A·e, T) of one pair of images."""
    t = beta - minus_alpha
    weight = _exp(minus_alpha * beta)
    return weight, weight * _expm1(n * (t - n)), t


def _images(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound, pairs: int) -> _Parts:
    # in units of σ/√2 the exponents are plain products; p enters as n = −p, which makes them negative
    unit = _SQRT_2 / sigma
    w = (high - low) * unit
    n, d, unit = _place(x, x0, unit, low, high)
    y0 = d - n
    bent = _expm1(n * y0)
    whole: Bound = 1.0  # Σ A, beside Σ A·e and Σ A·e·T
    lever = d * bent
    for k in range(1, pairs):
        jw = (k + 1) // 2 * w
        weight, term, t = _image(n, -jw - n, jw - y0) if k % 2 else _image(n, -jw, jw + d)
        whole, bent, lever = weight + whole, bent + term, torch.addcmul(lever, term, t)
    u = bent + whole
    return _Parts(torch.sub(n * u, lever, alpha=0.5), u + whole, unit, lambda: _gauss(d, sigma))


def _modes(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound, modes: int) -> _Parts:
    unit = math.pi / (high - low)
    damping = -0.5 * (sigma * unit) ** 2
    a = x - low
    sine = (_nearer(a, high - x)[0] * unit).sin()
    c, c0 = (a * unit).cos(), ((x0 - low) * unit).cos()
    weight = 2 * damping.exp() * c0
    mass, slope = weight * c, weight
    # u is U_{k−1}(c), t is T_k(c) = c·U_{k−1} − U_{k−2}, v is T_k(c0)
    one = c.new_ones(())
    u, t, v, v_old = one, c, c0, one
    for k in range(2, modes + 1):
        u, u_old = torch.addcmul(t, c, u), u
        t = c * u - u_old
        v, v_old = 2 * c0 * v - v_old, v
        weight = 2 * (k * k * damping).exp() * v
        mass, slope = torch.addcmul(mass, weight, t), torch.addcmul(slope, weight, u, value=k)
    return _Parts(sine * slope, 1 + mass, -unit, lambda: -_log(high - low), lambda: -0.5 * ((x - x0) / sigma) ** 2)


class _Regime(NamedTuple):
    """A range of r that ends at ``below``, its series, and the number of terms."""

    below: float
    series: Callable[..., _Parts]
    terms: int


def _regimes(truncation: float) -> tuple[_Regime, ...]:
    """The ranges of r, each with the fewest terms whose remainder is below ``truncation``."""
    digits = -math.log(truncation)

    def images_below(pairs: int) -> float:
        # the next pair, k = pairs, has weight e^{−k(k−1)/2r²} at most: x in the middle, x0 at a wall
        return math.sqrt(pairs * (pairs - 1) / 2 / digits)

    def modes_below(modes: int) -> float:
        # one mode fewer would leave out e^{−k²π²r²/2}, k = modes
        return math.sqrt(2 * digits) / (math.pi * modes) if modes > 1 else math.inf

    pairs = (k for k in range(2, 9) if images_below(k - 1) < _SWITCH)
    modes = (k for k in range(8, 0, -1) if modes_below(k) > _SWITCH)
    return (
        *(_Regime(min(images_below(k), _SWITCH), _images, k) for k in pairs),
        *(_Regime(modes_below(k), _modes, k) for k in modes),
    )


_SINGLE, _DOUBLE = _regimes(1e-8), _regimes(6e-17)


def _table(dtype: torch.dtype) -> tuple[_Regime, ...]:
    return _DOUBLE if dtype == torch.float64 else _SINGLE


def _evaluate(finish: _Finish, x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> tuple[Tensor, ...]:
    operands = [v for v in (x, x0, sigma, low, high) if isinstance(v, Tensor)]
    graph = torch.is_grad_enabled() and any(v.requires_grad for v in operands)
    if graph or x.device.type != "cpu" or not values_are_readable(*operands):
        return _select(finish, x, x0, sigma, low, high)
    return _split(finish, x, x0, sigma, low, high)


def _select(finish: _Finish, x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> tuple[Tensor, ...]:
    """Both series everywhere, then a choice: no data-dependent shape. Each sees only σ of its own range, so that the
    series not chosen stays finite and its gradient is a true zero."""
    switch = _SWITCH * (high - low)
    small = sigma < switch
    pairs, modes = (max(r.terms for r in _table(x.dtype) if r.series is s) for s in (_images, _modes))
    first = finish(_images(x, x0, torch.where(small, sigma, switch), low, high, pairs))
    second = finish(_modes(x, x0, torch.where(small, switch, sigma), low, high, modes))
    return tuple(torch.where(small, i, m) for i, m in zip(first, second, strict=True))


def _split(finish: _Finish, x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> tuple[Tensor, ...]:
    """Each row in its own regime, in passes that fit the cache. A row is the part of the event over which r is constant."""
    shape = torch.broadcast_shapes(*(v.shape for v in (x, x0, sigma, low, high) if isinstance(v, Tensor)))
    ratio = sigma / (high - low)
    ratio = ratio[(None,) * (len(shape) - ratio.dim())]
    lead = max((i + 1 for i, n in enumerate(ratio.shape) if n != 1), default=0)
    rows, columns = math.prod(shape[:lead]), math.prod(shape[lead:])
    row_shape = shape[:lead] + (1,) * (len(shape) - lead)

    ratio = ratio.expand(row_shape).reshape(rows)
    x, x0 = (v.expand(shape).reshape(rows, columns) for v in (x, x0))
    low, high = (v.expand(shape).reshape(rows, columns) if isinstance(v, Tensor) else v for v in (low, high))
    sigma = sigma[(None,) * (len(shape) - sigma.dim())].expand(row_shape).reshape(rows, 1)
    out = tuple(x.new_empty((rows, columns)) for _ in range(_OUTPUTS[finish]))
    table = _table(x.dtype)
    # σ = NaN lands in the last regime and stays NaN
    place = torch.bucketize(ratio, ratio.new_tensor([regime.below for regime in table[:-1]]), right=True)
    for i, count in enumerate(place.bincount().tolist()):
        for index in _passes(place, i, count, columns):
            take = partial(_take, *index)
            parts = table[i].series(
                take(x), take(x0), _take(index[0], slice(None), sigma), take(low), take(high), table[i].terms
            )
            for whole, value in zip(out, finish(parts), strict=True):
                whole[index] = value
    return tuple(v.reshape(shape) for v in out)


def _passes(place: Tensor, regime: int, count: int, columns: int) -> Iterator[tuple[slice | Tensor, slice]]:
    """(rows, columns) that cover the rows of a regime, at most _CHUNK elements each; slices where all rows are of it."""
    index = None if count == len(place) else (place == regime).nonzero().flatten()
    step = max(1, _CHUNK // max(columns, 1))
    for i in range(0, count, step):
        rows = slice(i, i + step) if index is None else index[i : i + step]
        for j in range(0, columns, _CHUNK):
            yield rows, slice(j, j + _CHUNK)


def _take(rows: slice | Tensor, columns: slice, value: Bound) -> Bound:
    if not isinstance(value, Tensor):
        return value
    value = value[:, columns]
    return value[rows] if isinstance(rows, slice) else value.index_select(0, rows)


def interval_log_prob(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> Tensor:
    """log p_σ(x | x0) on [low, high], element by element; all arguments broadcast."""
    return _evaluate(_log_prob, x, x0, sigma, low, high)[0]


def interval_score(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> Tensor:
    """∂ₓ log p_σ(x | x0) on [low, high], element by element; all arguments broadcast."""
    return _evaluate(_score, x, x0, sigma, low, high)[0]


def interval_log_prob_and_score(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> tuple[Tensor, ...]:
    """Both at the cost of about one."""
    return _evaluate(_both, x, x0, sigma, low, high)


def interval_detail(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound, high: Bound) -> tuple[Tensor, ...]:
    """(reference, excess, score) with log p = reference + excess: the reference is −(x − x0)²/2σ² and a number that depends on σ
    alone, the excess of order 1, for sums over many x0 that factor the Gaussian out."""
    return _evaluate(_detail, x, x0, sigma, low, high)


def half_line_log_prob(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound) -> Tensor:
    """log p_σ(x | x0) on [low, ∞)."""
    return _log_prob(_half_line(x, x0, sigma, low))[0]


def half_line_score(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound) -> Tensor:
    """∂ₓ log p_σ(x | x0) on [low, ∞): (x0 tanh(x x0/σ²) − x)/σ² for low = 0, without its cancellations."""
    return _score(_half_line(x, x0, sigma, low))[0]


def line_log_prob(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """log N(x − x0; σ²)."""
    return _gauss((x0 - x) * (_SQRT_2 / sigma), sigma)


def line_score(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """(x0 − x)/σ²."""
    return (x0 - x) / sigma / sigma


def half_line_log_prob_and_score(x: Tensor, x0: Tensor, sigma: Tensor, low: Bound) -> tuple[Tensor, ...]:
    """Both at the cost of about one."""
    return _both(_half_line(x, x0, sigma, low))
