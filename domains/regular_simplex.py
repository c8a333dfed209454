r"""The probability simplex as a regular simplex: all categories alike, distances those of the probabilities.

The state of a probability vector p is its place in the plane Σp = 1, in Helmert's orthonormal coordinates

.. math:: x_k = \frac{p_1 + … + p_k - k\,p_{k+1}}{\sqrt{k (k + 1)}},\ k = 1 … K - 1,\qquad p = \tfrac1K + H^T x,

an isometry, so that the nearest point, walls and normals are those of the simplex {p ≥ 0, Σp = 1} of side √2: the wall of
category i is at the distance :math:`p_i / \sqrt{1 - 1/K}`.

Walls meet at the angle arccos(1/(K − 1)). For K = 2 (an interval) and K = 3 (an equilateral triangle, at 60°) mirrors fold the plane onto
the simplex, and the heat kernel is known; the formulas are at :class:`_Triangle`. For K ≥ 4 the angle is no π/m: images do not
close up, no trigonometric functions satisfy the boundary condition, and reflection is by ray marching.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .domain import Domain, FoldedDomain, HeatKernel, KernelDomain, Uniform
from .facets import Bounce, damp_facets, march
from .interval import interval_log_prob, interval_log_prob_and_score, interval_score
from .probabilities import check_probabilities
from .simplex import check_categories
from .tensors import as_like, check_event, event_sum, values_are_readable

_HALF_WIDTH = math.sqrt(0.5)
# Rounding that contains() forgives, in units of eps of the state's dtype; sums of K terms carry another K eps of float64.
_SLACK = 8


class RegularSimplex(Domain):
    """Probability vectors over ``categories`` in isometric coordinates ``[*batch, categories − 1]``; see the module.

    Args:
        categories: K ≥ 2. For 2 and 3 the object is also a :class:`FoldedDomain` and a :class:`KernelDomain`.
        max_bounces: for K ≥ 4, where reflection is by ray marching: a displacement that would bounce more often comes back as NaN,
            so that the status of a solve names the sample; ``bounce`` returns the point and a status instead. A path of length
            L bounces about 0.4 K^{3/2} L times. Under ``torch.compile`` and ``vmap`` all bounces are unrolled: give a small
            number there.

    :class:`Simplex` has walls of other angles, between neighbouring categories, and a kernel for any number of them.
    """

    def __new__(cls, categories: int, max_bounces: int = 1000) -> Self:
        special = {2: _Segment, 3: _Triangle}.get(categories, cls) if cls is RegularSimplex else cls
        # an instance of a subclass, so that Python goes on to call __init__
        return cast(Self, super().__new__(special))

    def __init__(self, categories: int, max_bounces: int = 1000):
        categories = check_categories("RegularSimplex", categories)
        if max_bounces < 1:
            raise ValueError(f"max_bounces: got {max_bounces}, expected at least 1")
        self.categories, self.max_bounces = categories, int(max_bounces)
        self.event_shape = (categories - 1,)
        #: the distance of a wall is p_i times this
        self._stretch = 1 / math.sqrt(1 - 1 / categories)
        k = torch.arange(1, categories, dtype=torch.float64)
        self._k, self._root = k, (k * (k + 1)).sqrt()
        # columns of H are the gradients of the p_i
        eye = torch.eye(categories, dtype=torch.float64)
        self._normals = self._to_plane(eye - 1 / categories) * self._stretch
        self._offsets = torch.full((categories,), self._stretch / categories, dtype=torch.float64)

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return RegularSimplex, (self.categories, self.max_bounces)

    def __repr__(self) -> str:
        return f"RegularSimplex({self.categories})"

    def config(self) -> dict[str, Any]:
        return {"type": "RegularSimplex", "categories": self.categories, "max_bounces": self.max_bounces}

    @property
    def width(self) -> float:
        return math.sqrt(2.0)

    def _to_plane(self, p: Tensor) -> Tensor:
        """H p, by cumulative sums: ``[*batch, K] -> [*batch, K − 1]``."""
        return (p.cumsum(-1)[..., :-1] - self._k.to(p.device) * p[..., 1:]) / self._root.to(p.device)

    def _barycentric(self, x: Tensor) -> Tensor:
        """p = 1/K + Hᵀx in float64, of any x in the plane: ``[*batch, K]``."""
        scaled = x.double() / self._root.to(x.device)
        tail = scaled.flip(-1).cumsum(-1).flip(-1)
        zero = torch.zeros_like(scaled[..., :1])
        return 1 / self.categories + torch.cat([tail, zero], -1) - torch.cat([zero, self._k.to(x.device) * scaled], -1)

    @property
    def inradius(self) -> float:
        """The radius of the largest ball inside, around p = 1/K."""
        return 1 / math.sqrt(self.categories * (self.categories - 1))

    def from_probabilities(self, p: Tensor) -> Tensor:
        """The states of probability vectors ``[*batch, K]``; zeros and ones are allowed. Computed in float64.

        Raises ``ValueError`` for entries below 0 and for sums that are not 1. to_probabilities gives p back to K·eps, absolute.
        """
        check_probabilities(p, (self.categories,))
        return self._to_plane(p.double()).to(p.dtype)

    def to_probabilities(self, x: Tensor) -> Tensor:
        """The probability vectors ``[*batch, K]`` of states; rounding below 0 is cut off."""
        check_event(x, self.event_shape)
        p = self._barycentric(x)
        return torch.where((p < 0) & (p >= -self._slack(x)), 0.0, p).to(x.dtype)

    def _slack(self, x: Tensor) -> float:
        return _SLACK * torch.finfo(x.dtype).eps + self.categories * torch.finfo(torch.float64).eps

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        return (self._barycentric(x) * self._stretch >= -atol - self._slack(x)).all(-1)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point: the p of x lowered by one number and cut at 0, the number found by sorting (Held, Wolfe & Crowder 1974)."""
        p = self._barycentric(x)
        highest = p.sort(dim=-1, descending=True).values
        count = torch.arange(1, self.categories + 1, dtype=p.dtype, device=p.device)
        lowered = (highest.cumsum(-1) - 1) / count
        last = (highest > lowered).sum(-1, keepdim=True).clamp(min=1) - 1
        return self._inside_or(x, p - lowered.gather(-1, last))

    def _inside_or(self, x: Tensor, p: Tensor) -> Tensor:
        """x to the bit where it is inside, else the state of p, of which rounding below 0 and in the sum is taken off."""
        p = p.clamp(min=0)
        p = p / event_sum(p, 1).unsqueeze(-1)
        return torch.where(self.contains(x).unsqueeze(-1), x, self._to_plane(p).to(x.dtype))

    def bounce(self, x: Tensor, displacement: Tensor) -> Bounce:
        """The reflected path's end, the number of its bounces, and whether they sufficed; see ``facets.march``."""
        return march(x, displacement, self._normals, self._offsets, self.max_bounces)

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        end, _, finished = self.bounce(x, displacement)
        return torch.where(finished.unsqueeze(-1), end, math.nan)

    def uniform(self, dtype: torch.dtype | None = None) -> Distribution:
        """Dirichlet(1, …, 1) in the probabilities; the volume is √K / (K − 1)!."""

        def draw(
            shape: torch.Size, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
        ) -> Tensor:
            e = torch.empty(*shape, self.categories, dtype=torch.float64, device=device)
            e = e.exponential_(generator=generator)
            return self._to_plane(e / event_sum(e, 1).unsqueeze(-1)).to(dtype)

        return Uniform(self, draw, 0.5 * math.log(self.categories) - math.lgamma(self.categories), dtype)

    def boundary_distance(self, x: Tensor) -> Tensor:
        return (self._barycentric(x).amin(-1) * self._stretch).to(x.dtype)

    def inward_normal(self, x: Tensor) -> Tensor:
        return self._normals.to(x)[self._barycentric(x).argmin(-1)]

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        distance = (self._barycentric(x) * self._stretch).to(x.dtype)
        return damp_facets(vector, distance, self._normals.to(x), as_like(width, x))

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        """For 2 and 3 categories."""
        raise TypeError(
            f"{self!r} has no heat kernel in closed form: its walls meet at the angle arccos(1/{self.categories - 1}), which is no "
            f"π/m, so there are no images and no trigonometric basis; use Simplex({self.categories}), whose kernel is exact in any "
            f"dimension, or train by implicit score matching"
        )


class _Alcove(RegularSimplex, FoldedDomain, KernelDomain):
    """The regular simplices whose mirrors fold the plane."""

    def bounce(self, x: Tensor, displacement: Tensor) -> Bounce:
        # folding is marching without an end; who asks for the count gets that of the march
        count = super().bounce(x, displacement).count
        return Bounce(self.reflect(x, displacement), count, torch.ones_like(count, dtype=torch.bool))

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        # the sum in float64, so that a long path loses nothing before it is folded
        end = self.fold(x.double() + displacement.double())[0].to(x.dtype)
        return torch.where((displacement == 0).all(-1, keepdim=True), x, end)


class _Segment(_Alcove):
    """K = 2: the interval |x| ≤ √½, with the kernel of ``interval``."""

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        inside = self.contains(u).unsqueeze(-1)
        width = 2 * _HALF_WIDTH
        phase = (u.double() + _HALF_WIDTH).remainder(2 * width)
        folded = (_HALF_WIDTH - (phase - width).abs()).clamp(-_HALF_WIDTH, _HALF_WIDTH)
        flips = ~inside & (phase > width)
        return torch.where(inside, u, folded.to(u.dtype)), lambda v: torch.where(flips, -v, v)

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return SegmentKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return SegmentKernel(self, x0, sigma, validate_args=False)


class SegmentKernel(HeatKernel):
    """The interval kernel of length √2, computed in float64."""

    domain: _Segment

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        ends = -_HALF_WIDTH, _HALF_WIDTH
        # rounding may put a state behind its wall
        return *(_clamped(v.double(), *ends) for v in (x, self.x0)), self._sigma.double(), *ends

    def _sample(self, z: Tensor) -> Tensor:
        return self.domain.fold(self.x0.double() + self._sigma.double() * z.double())[0].to(z.dtype)

    def _log_prob(self, x: Tensor) -> Tensor:
        return event_sum(interval_log_prob(*self._arguments(x)), 1).to(x.dtype)

    def _score(self, x: Tensor) -> Tensor:
        return interval_score(*self._arguments(x)).to(x.dtype)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = interval_log_prob_and_score(*self._arguments(x))
        return event_sum(log_prob, 1).to(x.dtype), score.to(x.dtype)


class _Triangle(_Alcove):
    r"""K = 3: the equilateral triangle of side √2, alcove of the affine Weyl group Ã₂.

    *Folding.* The mirrors are the lines on which some p_i is a whole number. With f = ⌊p⌋, r = p − f and c = (f_2 + 2 f_3) mod 3, u lies
    above the p' with :math:`p'_{c+i} = r_i` where Σr = 1, and :math:`p'_{c-i} = 1 - r_i` where Σr = 2 (indices mod 3, from 0).

    *Images*, for σ < 0.5. The images of x_0 (of barycentric coordinates q) are w x_0, w in the group. Relative to the direct image

    .. math:: |x - w x_0|^2 - |x - x_0|^2 = \sum_{ij} C_{ij}\, p_i q_j,\qquad C_{ij} = |e_i - w e_j|^2 - |e_i - e_j|^2 ≥ 0,

    which is bilinear since w is an isometry, with whole numbers C: products of distances, in which nothing cancels. Then
    :math:`p_\sigma = \mathcal N(x - x_0; σ^2)\, S`, :math:`S = \sum_w e^{-C(p,q)/2σ^2}`, and the score is the posterior mean over images,
    :math:`(\overline{w x_0} - x)/σ^2`.

    *Modes*, for σ ≥ 0.5, over the orbits O_k of the lattice dual to the group's translations:

    .. math:: |T|\, p_\sigma = \sum_k |O_k|\, e^{-|k|^2 σ^2/2}\, \mathrm{Re}\, φ_k(x) \overline{φ_k(x_0)},

    φ_k the mean of :math:`e^{i w k·x}` over the six linear parts w about a corner (Lamé 1833; Pinsky 1980; McCartin 2003).

    What is left out is below 1e-17 of the largest term. All in float64, with temporaries of 6 × 121 numbers per state at most.
    """

    def __init__(self, categories: int, max_bounces: int = 1000):
        super().__init__(categories, max_bounces)
        self._linear = self._linear_parts()
        images, modes = self._image_table(), self._mode_table()
        self._regimes = (
            *(_Regime(below, _Images, images.first(below)) for below in _EDGES),
            _Regime(math.inf, _Modes, modes),
        )

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        p = self._barycentric(u)
        f = p.detach().floor()
        # at corners, and by rounding elsewhere, Σf can leave {0, −1}; one coordinate then counts from its other end
        total = event_sum(f, 1).unsqueeze(-1)
        f = torch.cat([f[..., :1] + total.clamp(-1, 0) - total, f[..., 1:]], -1)
        r = (p - f).clamp(0, 1)
        down = event_sum(f, 1) < -0.5
        colour = (f[..., 1] + 2 * f[..., 2]).remainder(3).long()
        places = torch.arange(3, device=u.device)
        turn = torch.where(down, -1, 1).unsqueeze(-1)
        moved = r.gather(-1, (turn * (places - colour.unsqueeze(-1))).remainder(3))
        x = self._inside_or(u, torch.where(down.unsqueeze(-1), 1 - moved, moved))
        part = torch.where(self.contains(u), 0, colour + 3 * down)
        linear = self._linear.to(u)[part]
        return x, lambda v: event_sum(linear.transpose(-1, -2) * v.unsqueeze(-2), 1)

    def _linear_parts(self) -> Tensor:
        """The derivatives of the fold, ``[6, 2, 2]``: by colour for triangles that point up, then for those that point down."""
        parts = []
        for down in (False, True):
            for colour in range(3):
                permuted = torch.zeros(3, 3, dtype=torch.float64)
                for i in range(3):
                    permuted[(colour - i if down else colour + i) % 3, i] = -1.0 if down else 1.0
                # H P Hᵀ; rows of _to_plane are multiplied by H
                parts.append(self._to_plane(self._to_plane(permuted).T))
        linear = torch.stack(parts).transpose(-1, -2).contiguous()
        linear[0] = torch.eye(2, dtype=torch.float64)  # to the bit
        return linear

    def _image_table(self) -> _ImageTable:
        """The images that count below the largest edge, nearest first; found by walking from triangle to triangle."""
        corners = torch.eye(3, dtype=torch.float64).numpy()
        limit, start = 2 * _EDGES[-1] ** 2 * _DIGITS, tuple(map(tuple, np.eye(3, dtype=int).tolist()))
        found, queue = {}, [start]
        while queue:
            w = queue.pop()
            image = np.array(w, dtype=np.float64)
            distances = ((corners[:, None] - image) ** 2).sum(-1)
            cost = distances - ((corners[:, None] - corners) ** 2).sum(-1)
            if w in found or distances.min() > limit + 2:
                continue
            found[w] = cost, image - corners
            for i in range(3):  # across the side opposite to corner i
                mirrored = np.array(w)
                mirrored[i] = mirrored.sum(0) - 2 * mirrored[i]
                queue.append(tuple(map(tuple, mirrored.tolist())))
        near = sorted((v for v in found.values() if v[0].min() <= limit), key=lambda v: float(v[0].min()))
        cost, shift = (torch.tensor(np.stack(v)) for v in zip(*near, strict=True))
        least = cost.amin((1, 2))
        return _ImageTable(cost.flatten(1).T.contiguous(), self._to_plane(shift).flatten(1).T.contiguous(), least)

    def _mode_table(self) -> _ModeTable:
        """The waves that count above the largest edge, one row of six for each orbit but that of 0."""
        reach = math.sqrt(2 * _DIGITS) / _EDGES[-1] * 3 / (2 * math.pi)
        n = math.ceil(reach)
        orbits = {}
        for a in range(-n, n + 1):
            for b in range(-n, n + 1):
                m = (a, b, -a - b)
                turns = [tuple(m[(i + s) % 3] for i in range(3)) for s in range(3)]
                orbit = turns + [(-t[1], -t[0], -t[2]) for t in turns]
                if 0 < sum(v * v for v in m) <= reach**2:
                    orbits[max(orbit)] = orbit
        waves = sorted(orbits.values(), key=lambda o: sum(v * v for v in o[0]))
        table, unit = torch.tensor(waves, dtype=torch.float64), 2 * math.pi / 3
        size = torch.tensor([len(set(o)) for o in waves], dtype=torch.float64)
        return _ModeTable(
            unit * (table[..., :2] - table[..., 2:]),
            unit * self._to_plane(table),
            size,
            unit**2 * (table[:, 0] ** 2).sum(-1),
        )

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return TriangleKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return TriangleKernel(self, x0, sigma, validate_args=False)


# Upper ends in σ of the regimes by images, each with the fewest of them; modes beyond.
_EDGES = (0.26, 0.37, 0.5)
# −log of what is left out, with room for the number of terms
_DIGITS = 42.0
_LOG_AREA = 0.5 * math.log(3) - math.log(2)
# States per pass in eager mode, so that the temporaries stay near the processor.
_CHUNK = 1 << 11


class _ImageTable(NamedTuple):
    """``cost [9, n]`` C_ij of each image, ``shift [6, n]`` the coordinates of w e_j − e_j, ``least [n]`` the smallest C_ij."""

    cost: Tensor
    shift: Tensor
    least: Tensor

    def first(self, below: float) -> _ImageTable:
        """The images that count where σ < below."""
        n = int((self.least <= 2 * below**2 * _DIGITS).sum())
        return _ImageTable(self.cost[:, :n].contiguous(), self.shift[:, :n].contiguous(), self.least[:n])


class _ModeTable(NamedTuple):
    """``phase [n, 6, 2]``: w k·x = phase·(p_1, p_2) from the third corner; ``wave [n, 6, 2]``: w k itself; ``size [n]``: |O|;
    ``square [n]``: |k|²."""

    phase: Tensor
    wave: Tensor
    size: Tensor
    square: Tensor


class _Images:
    """The sum over images at states x, x0 ``[*batch, 2]`` with barycentric coordinates p, q ``[*batch, 3]``, σ ``[*batch]``."""

    def __init__(self, x: Tensor, x0: Tensor, p: Tensor, q: Tensor, sigma: Tensor, table: _ImageTable):
        self.away, self.q, self.sigma, self.table = x0 - x, q, sigma, table
        products = (p.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2) / (2 * sigma * sigma).unsqueeze(-1)
        exponent = products[..., :1] * table.cost[0]
        for i in range(1, 9):
            exponent = exponent + products[..., i : i + 1] * table.cost[i]
        self.weight = (-exponent).exp()
        self.mass = event_sum(self.weight, 1)

    def log_prob(self) -> Tensor:
        gauss = -0.5 * event_sum((self.away / self.sigma.unsqueeze(-1)) ** 2, 1)
        return gauss + self.mass.log() - 2 * self.sigma.log() - math.log(2 * math.pi)

    def score(self) -> Tensor:
        shift = event_sum(self.weight.unsqueeze(-2) * self.table.shift, 1).unflatten(-1, (3, 2))
        mean = event_sum(self.q.unsqueeze(-2) * shift.transpose(-1, -2), 1) / self.mass.unsqueeze(-1)
        return (self.away + mean) / (self.sigma * self.sigma).unsqueeze(-1)


class _Modes:
    """The sum over modes, with the same arguments."""

    def __init__(self, x: Tensor, x0: Tensor, p: Tensor, q: Tensor, sigma: Tensor, table: _ModeTable):
        self.angle, self.table = self._angles(p, table), table
        weight = table.size * (-0.5 * table.square * (sigma * sigma).unsqueeze(-1)).exp()
        start = self._angles(q, table)
        self.real, self.imaginary = (weight * event_sum(f, 1) / 36 for f in (start.cos(), start.sin()))
        real, imaginary = (event_sum(f, 1) for f in (self.angle.cos(), self.angle.sin()))
        self.mass = 1 + event_sum(self.real * real + self.imaginary * imaginary, 1)

    @staticmethod
    def _angles(p: Tensor, table: _ModeTable) -> Tensor:
        return p[..., 0, None, None] * table.phase[..., 0] + p[..., 1, None, None] * table.phase[..., 1]

    def log_prob(self) -> Tensor:
        return self.mass.log() - _LOG_AREA

    def score(self) -> Tensor:
        slope = self.imaginary.unsqueeze(-1) * self.angle.cos() - self.real.unsqueeze(-1) * self.angle.sin()
        parts = [event_sum(slope * self.table.wave[..., i], 2) for i in (0, 1)]
        return torch.stack(parts, -1) / self.mass.unsqueeze(-1)


class _Regime(NamedTuple):
    """A range of σ that ends at ``below``, its series, and the terms."""

    below: float
    series: Callable[..., _Images | _Modes]
    table: Any

    def evaluate(self, names: tuple[str, ...], *arguments: Tensor) -> tuple[Tensor, ...]:
        series = self.series(*arguments, type(self.table)(*(v.to(arguments[0].device) for v in self.table)))
        return tuple(getattr(series, name)() for name in names)


class TriangleKernel(HeatKernel):
    """By images for small σ, by modes for large; see :class:`_Triangle`."""

    domain: _Triangle

    def _sample(self, z: Tensor) -> Tensor:
        return self.domain.fold(self.x0.double() + self._sigma.double() * z.double())[0].to(z.dtype)

    def _log_prob(self, x: Tensor) -> Tensor:
        return self._evaluate(x, "log_prob")[0]

    def _score(self, x: Tensor) -> Tensor:
        return self._evaluate(x, "score")[0]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = self._evaluate(x, "log_prob", "score")
        return log_prob, score

    def _evaluate(self, x: Tensor, *names: str) -> tuple[Tensor, ...]:
        shape = torch.broadcast_shapes(x.shape[:-1], self.x0.shape[:-1], self.sigma.shape)
        states = [v.double().expand(*shape, 2) for v in (x, self.x0)]
        # rounding may put a state behind its wall, where weights would exceed 1
        coordinates = [_clamped(self.domain._barycentric(v), 0.0, math.inf) for v in states]
        arguments = (*states, *coordinates, self.sigma.double().expand(shape))
        graph = torch.is_grad_enabled() and any(v.requires_grad for v in arguments)
        choose = _split if values_are_readable(*arguments) and not graph else _select
        return tuple(v.to(x.dtype) for v in choose(self.domain._regimes, names, *arguments))


def _select(regimes: tuple[_Regime, ...], names: tuple[str, ...], *arguments: Tensor) -> tuple[Tensor, ...]:
    """Images and modes everywhere, then a choice: no data-dependent shape. Each sees only σ of its own range, so that the
    series not chosen stays finite and its gradient is a true zero."""
    *states, sigma = arguments
    images, modes = regimes[-2:]
    small = sigma < images.below
    first = images.evaluate(names, *states, torch.where(small, sigma, images.below))
    second = modes.evaluate(names, *states, torch.where(small, images.below, sigma))
    return tuple(
        torch.where(small if i.dim() == small.dim() else small.unsqueeze(-1), i, m)
        for i, m in zip(first, second, strict=True)
    )


def _split(regimes: tuple[_Regime, ...], names: tuple[str, ...], *arguments: Tensor) -> tuple[Tensor, ...]:
    """Each state in its own regime, in passes of ``_CHUNK`` states."""
    *states, sigma = arguments
    shape, sigma = sigma.shape, sigma.reshape(-1).contiguous()
    rows = [*(v.reshape(-1, v.shape[-1]) for v in states), sigma]
    place = torch.bucketize(sigma.detach(), sigma.new_tensor([r.below for r in regimes[:-1]]), right=True)
    order = [i for k in range(len(regimes)) for i in (place == k).nonzero().flatten().split(_CHUNK) if len(i)]
    if not order:
        order = [place]
    parts = [
        regimes[int(place[i[0]]) if len(i) else 0].evaluate(names, *(v.index_select(0, i) for v in rows)) for i in order
    ]
    back = torch.cat(order).argsort()
    return tuple(
        torch.cat(v).index_select(0, back).reshape((*shape, *v[0].shape[1:])) for v in zip(*parts, strict=True)
    )


def _clamped(x: Tensor, low: float, high: float) -> Tensor:
    """x between its bounds, with the derivative 1 throughout: the functions that follow go on smoothly across walls."""
    return x + (x.clamp(low, high) - x).detach()
