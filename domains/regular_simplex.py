r"""The probability simplex as a regular simplex: all categories alike, distances those of the probabilities.

The state of a probability vector p is its place in the plane Σp = 1, in Helmert's orthonormal coordinates

.. math:: x_k = \frac{p_1 + … + p_k - k\,p_{k+1}}{\sqrt{k (k + 1)}},\ k = 1 … K - 1,\qquad p = \tfrac1K + H^T x,

an isometry, so that the nearest point, walls and normals are those of the simplex {p ≥ 0, Σp = 1} of side √2: the wall of
category i is at the distance :math:`p_i / \sqrt{1 - 1/K}`.

Walls meet at the angle arccos(1/(K − 1)). For K = 2 (an interval) and K = 3 (an equilateral triangle, at 60°) mirrors fold the plane onto
the simplex, and the heat kernel is known; that of the triangle is in ``triangle``. For K ≥ 4 the angle is no π/m: images do not
close up, no trigonometric functions satisfy the boundary condition, and reflection is by ray marching.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from .constants import OnDevice, lasting
from .domain import FoldedDomain, HeatKernel, KernelDomain, Uniform
from .facets import Billiard, Bounce
from .probabilities import check_probabilities
from .segment import SegmentKernel
from .simplex import check_categories
from .tensors import as_like, event_sum
from .triangle import TriangleKernel, triangle_regimes

# Rounding that contains() forgives, in units of eps of the state's dtype; sums of K terms carry another K eps of float64.
_SLACK = 8


class _Constants(NamedTuple):
    """k and √(k(k + 1)) for k = 1 … K − 1, float64."""

    k: Tensor
    root: Tensor


class RegularSimplex(Billiard):
    """Probability vectors over ``categories`` in isometric coordinates ``[*batch, categories − 1]``; see the module.

    Args:
        categories: K ≥ 2. For 2 and 3 the object is also a :class:`FoldedDomain` and a :class:`KernelDomain`.
        max_bounces: for K ≥ 4, where reflection is by ray marching: a displacement that would bounce more often comes back as NaN,
            see :class:`Billiard`. A path of length L bounces about 0.4 K^{3/2} L times; a bounce takes O(K²) time and memory,
            all else O(K), a projection O(K log K).

    :class:`Simplex` has walls of other angles, between neighbouring categories, and a kernel for any number of them.
    """

    def __new__(cls, categories: int, max_bounces: int = 1000) -> Self:
        categories = check_categories("RegularSimplex", categories)
        special = {2: _Segment, 3: _Triangle}.get(categories, cls) if cls is RegularSimplex else cls
        # an instance of a subclass, so that Python goes on to call __init__
        return cast(Self, super().__new__(special))

    def __init__(self, categories: int, max_bounces: int = 1000):
        if isinstance(max_bounces, (tuple, list)):
            raise TypeError(
                f"RegularSimplex: got {max_bounces!r} for max_bounces, expected a number; it has one probability vector per state, "
                f"without a shape of positions: use Product(…) of several, or Simplex({categories}, {tuple(max_bounces)})"
            )
        super().__init__(max_bounces)
        self.categories = categories = check_categories("RegularSimplex", categories)
        self.event_shape = (categories - 1,)
        #: the distance of a wall is p_i times this
        self._stretch = 1 / math.sqrt(1 - 1 / categories)
        k = torch.arange(1, categories, dtype=torch.float64)
        self._constants = OnDevice(_Constants(k, (k * (k + 1)).sqrt()))

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
        k, root = self._constants(p.device)
        return (p.cumsum(-1)[..., :-1] - k * p[..., 1:]) / root

    def _from_plane(self, x: Tensor) -> Tensor:
        """Hᵀx in float64: ``[*batch, K − 1] -> [*batch, K]``."""
        k, root = self._constants(x.device)
        scaled = x.double() / root
        tail = scaled.flip(-1).cumsum(-1).flip(-1)
        zero = torch.zeros_like(scaled[..., :1])
        return torch.cat([tail, zero], -1) - torch.cat([zero, k * scaled], -1)

    def _barycentric(self, x: Tensor) -> Tensor:
        """p = 1/K + Hᵀx in float64, of any x in the plane: ``[*batch, K]``."""
        return 1 / self.categories + self._from_plane(x)

    @cached_property
    @lasting
    def _normals(self) -> Tensor:
        """The gradients of the distances, columns of H but for their length: ``[K, K − 1]``."""
        return self._to_plane(torch.eye(self.categories, dtype=torch.float64)) * self._stretch

    @cached_property
    @lasting
    def _offsets(self) -> Tensor:
        return torch.full((self.categories,), self._stretch / self.categories, dtype=torch.float64)

    @cached_property
    @lasting
    def _walls(self) -> OnDevice[tuple[Tensor, Tensor]]:
        """Quadratic in K, and needed for marching only."""
        return OnDevice((self._normals, self._offsets))

    def _facets(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self._walls(device)

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
        p = self._barycentric(x)
        nearest = torch.zeros_like(p).scatter(-1, p.argmin(-1, keepdim=True), self._stretch)
        return self._to_plane(nearest).to(x.dtype)

    def damp(self, x: Tensor, vector: Tensor, width: Tensor) -> Tensor:
        """Along the normals of all K walls at once, as in ``facets``, where forces λ solve (s + (1 − s) N Nᵀ) λ = (1 − s) N v.

        All pairs of normals meet at the same angle, so that the matrix is a diagonal d = 1 + (1 − s)/(K − 1) less one of rank one, and
        λ = (1 − s)(Nv − m)/d by Sherman & Morrison (1950), where m is the mean of Nv with the weights s/d."""
        s = (self._barycentric(x) * self._stretch / as_like(width, x).double()).clamp(0, 1)
        along = self._from_plane(vector) * self._stretch
        diagonal = 1 + (1 - s) / (self.categories - 1)
        weight = s / diagonal
        mean = event_sum(weight * along, 1) / event_sum(weight, 1).clamp(min=torch.finfo(weight.dtype).tiny)
        force = (1 - s) * (along - mean.unsqueeze(-1)) / diagonal
        return (vector - self._to_plane(force) * self._stretch).to(torch.promote_types(x.dtype, vector.dtype))

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
        end = self.fold(x.double() + displacement.double())[0]
        end = end.to(torch.promote_types(x.dtype, displacement.dtype))
        return torch.where((displacement == 0).all(-1, keepdim=True), x, end)


class _Segment(_Alcove):
    """K = 2: the interval |x| ≤ √½, with the kernel of ``interval``."""

    radius = math.sqrt(0.5)

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        inside = self.contains(u).unsqueeze(-1)
        width = 2 * self.radius
        phase = (u.double() + self.radius).remainder(2 * width)
        folded = (self.radius - (phase - width).abs()).clamp(-self.radius, self.radius)
        flips = ~inside & (phase > width)
        return torch.where(inside, u, folded.to(u.dtype)), lambda v: torch.where(flips, -v, v)

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return SegmentKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return SegmentKernel(self, x0, sigma, validate_args=False)


class _Triangle(_Alcove):
    r"""K = 3: the equilateral triangle of side √2, alcove of the affine Weyl group Ã₂.

    *Folding.* The mirrors are the lines on which some p_i is a whole number. With f = ⌊p⌋, r = p − f and c = (f_2 + 2 f_3) mod 3, u lies
    above the p' with :math:`p'_{c+i} = r_i` where Σr = 1, and :math:`p'_{c-i} = 1 - r_i` where Σr = 2 (indices mod 3, from 0).

    The kernel is in ``triangle``.
    """

    def __init__(self, categories: int, max_bounces: int = 1000):
        super().__init__(categories, max_bounces)
        self._linear = OnDevice((self._linear_parts(),))
        self._regimes = OnDevice(triangle_regimes())

    def fold(self, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        p = self._barycentric(u)
        f = p.detach().floor()
        # at corners, and by rounding elsewhere, Σf can leave {0, −1}; one coordinate then counts from its other end
        total = event_sum(f, 1).unsqueeze(-1)
        f = torch.cat([f[..., :1] + total.clamp(-1, 0) - total, f[..., 1:]], -1)
        r = (p - f).clamp(0, 1)
        down = event_sum(f, 1) < -0.5
        # states that are not finite have no colour, and stay what they are
        colour = (f[..., 1] + 2 * f[..., 2]).remainder(3).nan_to_num(0.0).long()
        places = torch.arange(3, device=u.device)
        turn = torch.where(down, -1, 1).unsqueeze(-1)
        moved = r.gather(-1, (turn * (places - colour.unsqueeze(-1))).remainder(3))
        x = self._inside_or(u, torch.where(down.unsqueeze(-1), 1 - moved, moved))
        part = torch.where(self.contains(u), 0, colour + 3 * down)
        linear = self._linear(u.device)[0][part].to(u.dtype)
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

    def heat_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return TriangleKernel(self, x0, sigma)

    def unchecked_kernel(self, x0: Tensor, sigma: float | Tensor) -> HeatKernel:
        return TriangleKernel(self, x0, sigma, validate_args=False)
