r"""Values as they are stored, e.g. 0 … 255, and the points of a domain they stand for.

A stored value v becomes the coordinate x by an affine map of each axis. Where values are whole numbers 0 … B − 1 ("levels"), each stands
for the bin of all reals that round to it, and a density p of x gives it the probability

.. math:: P(v) = \int_{\text{bin}(v)} p(x)\,dx .

With x uniform in the bin (dequantised), Jensen's inequality bounds the bits it takes to name v, per dimension
(Theis, van den Oord & Bethge 2016, §3.1):

.. math:: -\tfrac1d \log_2 P(v) ≤ -\tfrac{1}{d \ln 2} \mathbb E\bigl[\ln p(x) + \ln|\text{bin}(v)|\bigr],

with equality where p is constant in each bin. There are two ways to lay B levels into an interval, and images care which:

* ``"levels"``: the outermost levels lie *on* the walls, where saturated images have their mass, and the walls cut their bins in half;
* ``"bins"``: the outermost bins *end* at the walls, all bins are (high − low)/B wide, and no level touches a wall.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .domain import Domain
from .euclidean import Euclidean
from .hypercube import Hypercube
from .registry import domain_from_config, from_config
from .regular_simplex import RegularSimplex
from .simplex import Simplex
from .tensors import event_sum, is_int

Axes = float | tuple[Any, ...]
Fit = Literal["levels", "bins"]


class DataTransform(ABC):
    """A one-to-one map from stored values to points of a domain, with what it does to volumes."""

    #: values are the whole numbers 0 … bins − 1; None where they are continuous
    bins: int | None = None

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """The points of stored values ``[*batch, *event]``, in their dtype where it is floating, else in float64. Refuses values that have
        no place in the domain."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """The real-valued ``values`` at x, in x's dtype."""

    @abstractmethod
    def log_volume(self, x: Tensor) -> Tensor:
        """ln of the length, in each coordinate of x, of one unit of value; with bins, of the bin that x is in. Added to ln p(x), its sum
        over the event gives the log probability of the stored values. Float64, x's shape."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """``{"type": class name, **constructor arguments}``, JSON-able: how it travels in a checkpoint."""

    def bits_per_dim(self, log_prob: Tensor, x: Tensor) -> Tensor:
        """−(ln p(x) + Σ ln|bin|)/(d ln 2) of the stored values, ``[*batch]``, float64: for dequantised x an upper bound in the mean.

        Args:
            log_prob: ln p(x) in nats, ``[*batch]``.
            x: the points, ``[*batch, *event]``.
        """
        if x.shape[: log_prob.dim()] != log_prob.shape or x.dim() == log_prob.dim():
            raise ValueError(
                f"bits_per_dim: got log_prob of shape {tuple(log_prob.shape)} for x of shape {tuple(x.shape)}, expected [*batch] for "
                "[*batch, *event]"
            )
        ndim = x.dim() - log_prob.dim()
        volume = event_sum(self.log_volume(x), ndim)
        return -(log_prob.double() + volume) / (math.prod(x.shape[-ndim:]) * math.log(2))


@dataclass(frozen=True)
class AffineValues(DataTransform):
    """x = low + (high − low)·(v − first)/(last − first), axis by axis: ``first`` and ``last`` are the values that lie on the walls.

    Args:
        low, high: walls of the domain; numbers, or nested sequences that broadcast to the event.
        first, last: the values there, first < last. An axis with first = low and last = high is left as it is, and may be open
            (infinite).
        bins: B where values are the whole numbers 0 … B − 1, None where they are continuous. Numbers v stand for
            [v − ½, v + ½], cut off at ``first`` and ``last``; these lie in [−½, 0] and [B − 1, B − ½].

    ``affine_values`` chooses the arguments for a domain.
    """

    low: Axes = 0.0
    high: Axes = 1.0
    first: Axes = 0.0
    last: Axes = 1.0
    bins: int | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "first", "last"):
            object.__setattr__(self, name, _plain(getattr(self, name), name))
        if self.bins is not None and not is_int(self.bins, 2):
            raise ValueError(f"bins: got {self.bins!r}, expected a whole number of at least 2, or None")
        low, high, first, last = self._ends
        for name, a, b in (("low and high", low, high), ("first and last", first, last)):
            if not bool((a < b).all()):
                raise ValueError(
                    f"AffineValues: got {name} out of order, expected the first below the second on every axis"
                )
        if not bool((torch.stack(self._ends).isfinite().all(0) | ~self._moved).all()):
            raise ValueError("AffineValues: got an infinite end on an axis that is mapped, expected finite ends there")
        if self.bins is not None:
            top = self.bins - 1
            if not bool(((first >= -0.5) & (first <= 0) & (last >= top) & (last <= top + 0.5)).all()):
                raise ValueError(
                    f"AffineValues: got first = {self.first} and last = {self.last} with {self.bins} bins, expected first in [-0.5, 0] and "
                    f"last in [{top}, {top + 0.5}]"
                )

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """low, high, first, last in float64, of one shape."""
        parts = (torch.tensor(v, dtype=torch.float64) for v in (self.low, self.high, self.first, self.last))
        return torch.broadcast_tensors(*parts)

    @cached_property
    def _moved(self) -> Tensor:
        low, high, first, last = self._ends
        return (low != first) | (high != last)

    @cached_property
    def log_det(self) -> Tensor:
        """ln dx/dv of each axis: float64, 0-d or of the walls' shape."""
        low, high, first, last = self._ends
        ratio = torch.where(self._moved, (high - low) / (last - first), 1.0)
        return ratio.log()

    def forward(self, values: Tensor) -> Tensor:
        """Refuses values outside [first, last], and with ``bins`` all but 0 … bins − 1: with their number and the first of them."""
        self._check(values)
        low, high, first, last = self._ends
        return self._lerp(values, first, last, low, high)

    def inverse(self, x: Tensor) -> Tensor:
        low, high, first, last = self._ends
        return self._lerp(x, low, high, first, last)

    def _lerp(self, v: Tensor, a: Tensor, b: Tensor, to_a: Tensor, to_b: Tensor) -> Tensor:
        """v from [a, b] to [to_a, to_b]: computed in float64, exact at both ends, monotone, and never beyond them."""
        dtype = v.dtype if v.dtype.is_floating_point else torch.float64
        if not bool(self._moved.any()):
            return v.to(dtype)
        value = v.double()
        a, b, to_a, to_b, moved = (end.to(v.device) for end in (a, b, to_a, to_b, self._moved))
        out = torch.lerp(to_a, to_b, (value - a) / (b - a))
        return (out if bool(moved.all()) else torch.where(moved, out, value)).to(dtype)

    def quantise(self, x: Tensor) -> Tensor:
        """The levels whose bins x lies in: int64, 0 … bins − 1. The upper end of a bin belongs to the next one."""
        if self.bins is None:
            raise ValueError(
                "quantise: got a map without bins, expected one of whole numbers; inverse(x) gives real values"
            )
        # not in place: what inverse returns may be x itself
        return (self.inverse(x.double()) + 0.5).floor_().clamp_(0, self.bins - 1).long()

    def dequantise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x with every coordinate redrawn uniformly from the bin it lies in; ``quantise`` gives the same levels for both."""
        level = self.quantise(x)
        below, above = self._bin(level)
        u = torch.rand(x.shape, dtype=torch.float64, device=x.device, generator=generator)
        low, high, first, last = self._ends
        new = self._lerp(torch.lerp(below, above, u), first, last, low, high).to(x.dtype)
        # rounding to x's dtype may have reached the edge, which is the neighbour's
        middle = self._lerp(level.double(), first, last, low, high).to(x.dtype)
        return torch.where(self.quantise(new) == level, new, torch.nextafter(new, middle))

    def _bin(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Both ends of the bins, in values."""
        _, _, first, last = (end.to(level.device) for end in self._ends)
        level = level.double()
        return torch.maximum(level - 0.5, first), torch.minimum(level + 0.5, last)

    def log_volume(self, x: Tensor) -> Tensor:
        volume = self.log_det.to(x.device).expand(x.shape)
        if self.bins is None:
            return volume
        below, above = self._bin(self.quantise(x))
        return volume + (above - below).log()

    def config(self) -> dict[str, Any]:
        ends = {name: getattr(self, name) for name in ("low", "high", "first", "last")}
        return {"type": "AffineValues", **ends, "bins": self.bins}

    def _check(self, values: Tensor) -> None:
        _, _, first, last = (end.to(values.device) for end in self._ends)
        if self.bins is not None:
            first, last = torch.zeros_like(first), torch.full_like(last, self.bins - 1)
        if values.dtype.is_floating_point:
            # a float32 wall is the double rounded, which may lie a little outside
            inside = (values >= first.to(values.dtype)) & (values <= last.to(values.dtype))
            if self.bins is not None:
                inside &= values == values.floor()
        else:
            real = values.double()
            inside = (real >= first) & (real <= last)
        if values.dtype.is_floating_point and not bool((finite := values.isfinite()).all()):
            raise ValueError(
                f"values: got {_outside(values, finite, 'that are NaN or infinite')}; expected finite numbers. Repair or leave out "
                "those rows"
            )
        if not bool(inside.all()):
            whole = "" if self.bins is None else "whole numbers "
            expected = f"expected {whole}in [{float(first.min()):g}, {float(last.max()):g}]"
            way = "name their range by between" if self.bins is None else "name the number of their levels by bins"
            raise ValueError(f"values: got {_outside(values, inside)}; {expected}. Rescale or clip them, or {way}")


@dataclass(frozen=True)
class Probabilities(DataTransform):
    """x = domain.from_probabilities(v): probability vectors over K categories, zeros and ones allowed, as states of a simplex.

    Volumes are those of the first K − 1 probabilities, in which a :class:`Simplex` has the uniform density (K − 1)!.
    """

    domain: Simplex | RegularSimplex

    def forward(self, values: Tensor) -> Tensor:
        return self.domain.from_probabilities(values if values.dtype.is_floating_point else values.double())

    def inverse(self, x: Tensor) -> Tensor:
        return self.domain.to_probabilities(x)

    def log_volume(self, x: Tensor) -> Tensor:
        # cumulative sums keep volumes; isometric coordinates of the plane Σp = 1 stretch those of K − 1 probabilities by √K
        total = 0.0 if isinstance(self.domain, Simplex) else 0.5 * math.log(self.domain.categories)
        return torch.full(x.shape, total / (self.domain.categories - 1), dtype=torch.float64, device=x.device)

    def config(self) -> dict[str, Any]:
        return {"type": "Probabilities", "domain": self.domain.config()}


def transform_from_config(config: Mapping[str, Any]) -> DataTransform:
    """The inverse of ``transform.config()``."""
    arguments = dict(config)
    if arguments.get("type") == "Probabilities" and isinstance(arguments.get("domain"), Mapping):
        arguments["domain"] = domain_from_config(arguments["domain"])
    classes = {"AffineValues": AffineValues, "Probabilities": Probabilities}
    return from_config(arguments, classes, "transform")


def affine_values(
    domain: Domain,
    bins: int | None = None,
    *,
    fit: Fit = "levels",
    between: tuple[float, float] | None = None,
) -> AffineValues:
    """The map of stored values onto a domain.

    Args:
        domain: a bounded :class:`Hypercube`, whose walls are met axis by axis, or :class:`Euclidean`, where [−1, 1] takes their place.
            Without ``bins`` and ``between`` values are points already, and any domain will do.
        bins: B for whole numbers 0 … B − 1.
        fit: ``"levels"`` puts levels 0 and B − 1 on the walls, ``"bins"`` the outer ends of their bins.
        between: (a, b), the range of continuous values, mapped onto the walls.
    """
    if fit not in ("levels", "bins"):
        raise ValueError(f"fit: got {fit!r}, expected 'levels' or 'bins'")
    if bins is not None and between is not None:
        raise ValueError(
            f"affine_values: got both bins = {bins} and between = {between}, expected one of them; levels are 0 … bins − 1"
        )
    if bins is None and between is None:
        return AffineValues(*_walls(domain), *_walls(domain))
    low, high = (-1.0, 1.0) if isinstance(domain, Euclidean) else _walls(domain)
    if not math.isfinite(np.min(low)) or not math.isfinite(np.max(high)):
        raise TypeError(
            f"affine_values: got {domain}, expected a bounded Hypercube or Euclidean; on other domains map the values yourself, and pass "
            "points, as floats without bins or between"
        )
    if between is not None:
        return AffineValues(low, high, *between)
    margin = 0.5 if fit == "bins" else 0.0
    assert bins is not None
    return AffineValues(low, high, -margin, bins - 1 + margin, bins)


def _walls(domain: Domain) -> tuple[Any, Any]:
    if not isinstance(domain, Hypercube):
        return -math.inf, math.inf
    return domain.low.numpy(), domain.high.numpy()


def _plain(value: Any, name: str) -> Axes:
    """A float where all axes agree, nested tuples of floats otherwise: they compare, hash and travel in JSON."""
    array = np.asarray(value, dtype=np.float64)
    if array.size == 0 or np.isnan(array).any():
        raise ValueError(f"{name}: got {value!r}, expected numbers")
    if (array == array.flat[0]).all():
        return float(array.flat[0])
    return _tuples(array.tolist())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, Sequence) else value


def _outside(values: Tensor, inside: Tensor, how: str = "outside") -> str:
    """How many values are not inside, of how many, and the first of them."""
    where = (~inside).nonzero()
    place = tuple(where[0].tolist())
    return f"{len(where)} of {inside.numel()} values {how}, the first {values[place].item():g} at {place}"
