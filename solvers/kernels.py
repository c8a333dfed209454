r"""Kernels of interacting particles: what a particle feels of another, and how far that reaches.

A kernel k(x, y) is symmetric and positive semi-definite. The one used most is :math:`k = \exp(-|x - y|^2 / 2h)`; its *bandwidth* h is
a squared length, as in the lecture notes, and comes from a rule that looks at the particles.

To add a kernel of your own, derive from :class:`Kernel` and give ``values``. What the flows need of its derivatives is then taken by
forward-mode differentiation; override ``slope_x`` and ``slope_y`` where closed forms are cheaper.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..domains import Domain, Product, Torus
from ..domains.tensors import as_like, is_int, number


class Kernel(ABC):
    """A symmetric kernel k(x, y). Particles are rows: x is ``[n, d]``, y is ``[m, d]``, events flattened.

    Facts: ``straight`` says that it compares points by straight lines, which is wrong where a domain identifies points (a torus);
    ``smooths`` that it is positive and falls off, so that Σ_j k(x, y_j) is an estimate of a density, which Blob, GFSD and GFSF need.
    """

    straight: bool = False
    smooths: bool = True

    def check(self, domain: Domain) -> None:
        """Refuse a domain of particles on which this kernel means nothing."""
        if self.straight and _identifies_points(domain):
            raise TypeError(
                f"kernel: got {self!r} on {domain!r}, where opposite ends are one and the same, expected a periodic kernel; derive one "
                "from Kernel"
            )

    def fitted(self, x: Tensor) -> Kernel:
        """The kernel for these particles ``[N, d]``, with its bandwidth set; itself if there is nothing to set."""
        return self

    @abstractmethod
    def values(self, x: Tensor, y: Tensor) -> Tensor:
        """k(x_i, y_j): ``[n, m]``."""

    def slope_x(self, x: Tensor, y: Tensor, values: Tensor, weights: Tensor) -> Tensor:
        """Σ_j w_j ∂k(x_i, y_j)/∂x_i: ``[n, d]``; ``values`` are k(x_i, y_j), ``weights`` is ``[m]``."""
        return _by_coordinate(lambda u: self.values(u, y) @ weights, x)

    def slope_y(self, x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        """Σ_j ∂k(x_i, y_j)/∂y_j: ``[n, d]``."""
        return _by_coordinate(lambda u: self.values(x, u).sum(1), y)


def _identifies_points(domain: Domain) -> bool:
    return isinstance(domain, Torus) or (isinstance(domain, Product) and any(map(_identifies_points, domain.domains)))


def _by_coordinate(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The derivatives of a function ``[·, d] → [n]`` as all rows move together along one axis after the other: ``[n, d]``."""
    axes: Iterator[Tensor] = iter(torch.eye(at.shape[1], dtype=at.dtype, device=at.device))
    return torch.stack([torch.func.jvp(function, (at,), (axis.expand_as(at),))[1] for axis in axes], 1)


# Up to this dimension a pass per coordinate beats cdist, six times over in the plane.
_FEW = 8


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i − y_j|²: ``[n, m]``. From differences: |x|² − 2x·y + |y|² would cancel where particles are close to one another."""
    if x.shape[1] > _FEW:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    first, *others = zip(x.T, y.T.contiguous(), strict=True)
    total = (first[0][:, None] - first[1]).square()
    for a, b in others:
        apart = a[:, None] - b
        total = torch.addcmul(total, apart, apart)
    return total


class Bandwidth(ABC):
    """A rule for h, the squared length scale of :class:`RBF`."""

    @abstractmethod
    def of(self, x: Tensor) -> Tensor:
        """h > 0 for particles ``[N, d]``: 0-d, of x's dtype and device."""


@dataclass(frozen=True)
class FixedBandwidth(Bandwidth):
    """h itself, a squared length > 0."""

    h: float

    def __post_init__(self) -> None:
        number(self.h, "h", low=0.0, open_low=True)

    def of(self, x: Tensor) -> Tensor:
        return as_like(float(self.h), x)


@dataclass(frozen=True)
class _OfDistances(Bandwidth):
    r"""h = ½·m / log(N + 1), with m a middle value of all N² squared distances, the N zeros of particles to themselves among them.

    Where m vanishes since many particles coincide, the mean takes its place; where all do, h = 1.
    """

    subsample: int = field(default=1000, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not is_int(self.subsample, 2):
            raise ValueError(
                f"subsample: got {self.subsample!r}, expected how many particles are compared, an int of at least 2"
            )
        if not is_int(self.seed, 0):
            raise ValueError(f"seed: got {self.seed!r}, expected an int of at least 0")

    @abstractmethod
    def middle(self, values: Tensor) -> Tensor:
        """m of squared distances ``[n]``."""

    def of(self, x: Tensor) -> Tensor:
        some = self._some(x)
        distances = squared_distances(some, some).flatten()
        middle = self.middle(distances)
        middle = torch.where(middle > 0, middle, distances.mean())
        return torch.where(middle > 0, 0.5 * middle / math.log(len(x) + 1), 1.0)

    def _some(self, x: Tensor) -> Tensor:
        """All particles, or as many as are compared: always the same places, so that the flow stays a function of the state."""
        if len(x) <= self.subsample:
            return x
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        return x[order[: self.subsample].to(x.device)]


@dataclass(frozen=True)
class MedianBandwidth(_OfDistances):
    """h = ½·median |x_i − x_j|² / log(N + 1), so that Σ_j k(x_i, x_j) ≈ 1 + a particle or so (Liu & Wang 2016, §5).

    All N² pairs count, those of a particle with itself too; an even number of values has the mean of the two middle ones.

    Args:
        subsample: with more particles than this, the median is that of so many of them (its relative error is about 1/√subsample);
            which ones is drawn once from ``seed``.
    """

    def middle(self, values: Tensor) -> Tensor:
        n = len(values)
        low = values.kthvalue((n + 1) // 2).values
        return low if n % 2 else 0.5 * (low + values.kthvalue(n // 2 + 1).values)


@dataclass(frozen=True)
class PercentileBandwidth(_OfDistances):
    """h = ½·P_q / log(N + 1), where P_q is the q-th percentile of |x_i − x_j|²: the smallest value at or above its rank, q(N² − 1)/100.

    Args: q: in percent, within (0, 100]; 50 is the median's place.
    """

    q: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self.q, "q", low=0.0, high=100.0, open_low=True)

    def middle(self, values: Tensor) -> Tensor:
        return values.kthvalue(1 + math.ceil(self.q / 100 * (len(values) - 1))).values


class RBF(Kernel):
    r"""k(x, y) = exp(−|x − y|²/2h).

    Args: bandwidth: a rule, or h itself (a squared length; :class:`FixedBandwidth`).
    """

    straight = True

    def __init__(self, bandwidth: Bandwidth | float = MedianBandwidth()):
        rule = FixedBandwidth(bandwidth) if isinstance(bandwidth, (int, float)) else bandwidth
        if not isinstance(rule, Bandwidth):
            raise TypeError(f"bandwidth: got {bandwidth!r}, expected a number or a rule, e.g. MedianBandwidth()")
        self.bandwidth = rule

    def __repr__(self) -> str:
        return f"RBF({self.bandwidth!r})"

    def fitted(self, x: Tensor) -> Kernel:
        return _FittedRBF(self.bandwidth, self.bandwidth.of(x))

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        """With the bandwidth of y."""
        return self.fitted(y).values(x, y)


class _FittedRBF(RBF):
    def __init__(self, bandwidth: Bandwidth, h: Tensor):
        super().__init__(bandwidth)
        self.h = h

    def fitted(self, x: Tensor) -> Kernel:
        return self

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        return (squared_distances(x, y) * (-0.5 / self.h)).exp_()

    def slope_x(self, x: Tensor, y: Tensor, values: Tensor, weights: Tensor) -> Tensor:
        x, y = _centred(x, y)
        return (values @ (weights[:, None] * y) - (values @ weights)[:, None] * x) / self.h

    def slope_y(self, x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        x, y = _centred(x, y)
        return (values.sum(1, keepdim=True) * x - values @ y) / self.h


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both seen from the middle of y: far from the origin the sums of x and of y would cancel."""
    centre = y.mean(0)
    return x - centre, y - centre


class LinearKernel(Kernel):
    """k(x, y) = x·y + 1. With it SVGD comes to rest where E[∇log p] = 0 and E[∇log p ⊗ x] = −I: on a Gaussian target, at its mean and
    covariance exactly (Liu & Wang 2018). It is no estimate of a density, so the other flows refuse it."""

    straight = True
    smooths = False

    def __repr__(self) -> str:
        return "LinearKernel()"

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y.T + 1

    def slope_x(self, x: Tensor, y: Tensor, values: Tensor, weights: Tensor) -> Tensor:
        return (weights @ y).expand_as(x)

    def slope_y(self, x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        return len(y) * x


class VanishingKernel(Kernel):
    r"""k(x, y) = b(x) b(y) k₀(x, y) on a domain with walls, b(x) = s(2 − s), s = min(1, distance from the nearest wall/width).

    It is 0 at the walls, so that the Stein identity E_p[k ∇log p + ∂k] = 0, on which SVGD rests, holds for a p that does not vanish
    there. It is no estimate of a density, so the other flows refuse it.

    Args:
        kernel: k₀.
        domain: where a particle lives, with walls.
        width: of the layer in which it falls, a length > 0, in which particles move slowly; a tenth or a fifth of the domain does well.
    """

    smooths = False

    def __init__(self, kernel: Kernel, domain: Domain, width: float):
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel: got {kernel!r}, expected a Kernel, e.g. RBF()")
        if not isinstance(domain, Domain):
            raise TypeError(f"domain: got {type(domain).__name__}, expected a Domain, e.g. Hypercube((2,))")
        self.kernel, self.domain, self.straight = kernel, domain, kernel.straight
        self.width = number(width, "width", low=0.0, open_low=True)

    def __repr__(self) -> str:
        return f"VanishingKernel({self.kernel!r}, {self.domain!r}, {self.width:g})"

    def check(self, domain: Domain) -> None:
        if repr(self.domain) != repr(domain):
            raise ValueError(
                f"kernel: got one that vanishes at the walls of {self.domain!r}, expected {domain!r}, where particles live"
            )
        super().check(domain)

    def fitted(self, x: Tensor) -> Kernel:
        return VanishingKernel(self.kernel.fitted(x), self.domain, self.width)

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        return self._fade(x)[:, None] * self._fade(y) * self.kernel.values(x, y)

    def _fade(self, x: Tensor) -> Tensor:
        s = (self.domain.boundary_distance(x.reshape(-1, *self.domain.event_shape)) / self.width).clamp(0, 1)
        return s * (2 - s)
