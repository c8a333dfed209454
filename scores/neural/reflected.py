r"""The preconditioning of scores on bounded domains, and what keeps them from pushing through the walls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...domains import Domain, Hypercube, Product, RegularSimplex, Torus
from ...domains.bounding import bounding_box
from ...domains.tensors import as_like
from .preconditioning import Preconditioning


class Reflected(Preconditioning):
    r"""score = u(σ)·F for data in a bounded domain, with u² the mean Fisher information of an interval's heat kernel.

    On [0, 1], :math:`u(σ)^2 = E[(∂_x \log p_σ(x|x_0))^2]` over uniform :math:`x_0` and :math:`x ∼ p_σ(·|x_0)` is what the
    targets of score matching average to: :math:`σ^{-2}(1 - 1.533σ)` for small σ and :math:`π^2 e^{-π^2 σ^2}` for large σ. Here

    .. math:: u(σ) = e^{-π^2 σ^2/2} \sqrt{π^2 + σ^{-2} e^{-1.28σ - 5σ^2}},

    smooth, right at both ends and within 0.5 % of quadrature in between; a width w has u(σ/w)/w. From σ = 2w on (where the
    kernel is uniform to 5e-9) u stays, and there is nothing left to learn. What w is:

    * ``Hypercube``: each axis its own width; u² is the Fisher information.
    * ``Simplex``: 1, and exact too, for the targets are those of particles on [0, 1].
    * ``Torus``: each axis its own period, with :func:`circle_unit` in place of the formula: right to 5 %.
    * ``Product``: part by part.
    * every other: the longest side of its bounding box. Where the domain is convex and that is its diameter, no mode decays slower
      than the interval's (Payne & Weinberger 1960), so that for large σ the target is at most of unit size up to a constant, and
      for small σ it is of unit size up to the share of points within σ of a wall.

    Inputs are mapped to [−1, 1] by the bounding box, on ``RegularSimplex`` to [−√2, 1] by one factor 2/w about the centroid;
    c_noise = ¼ ln(σ / longest width).

    Args:
        domain: a bounded domain.
        wall: damp the normal component at the walls over a layer min(σ, w/4), see :func:`damp_walls`, so that the score's flux
            through them is exactly 0, as the true score's is. The probability flow and covering walls need it to reach their
            order, implicit score matching to have no boundary term.

    Raises ``TypeError`` for an unbounded domain, and for ``wall=True`` on one without ``boundary_distance``.
    """

    # σ/w beyond which the kernel is flat to rounding
    _FLAT = 2.0

    def __init__(self, domain: Domain, wall: bool = True):
        if not isinstance(domain, Domain) or not domain.bounded:
            raise TypeError(
                f"Reflected: got {domain!r}, expected a Hypercube or another bounded domain; where it is unbounded use "
                "EDMPreconditioning"
            )
        if wall and not can_damp(domain):
            raise TypeError(
                f"Reflected: got wall=True on {domain!r}, expected a domain that knows its walls; define boundary_distance(x) "
                "on it, or pass wall=False"
            )
        self.domain, self.wall = domain, bool(wall)
        self.parts = [type(self)(part, wall) for part in domain.domains] if isinstance(domain, Product) else []
        self.box = None if self.parts else bounding_box(domain)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.domain!r}, wall={self.wall})"

    def config(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "wall": self.wall}

    @property
    def damped(self) -> bool:
        return self.wall

    @property
    def width(self) -> float:
        return self.box.width if self.box is not None else max(part.width for part in self.parts)

    def check(self, domain: Domain) -> None:
        if domain is self.domain:
            return
        if type(domain) is not type(self.domain) or domain.config() != self.domain.config():
            raise ValueError(f"preconditioning: got one made for {self.domain!r}, expected one for {domain!r}")

    def inputs(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.box is None:
            return self._join(lambda part, values, level: part.inputs(values, level), x, sigma)
        if isinstance(self.domain, RegularSimplex):
            # by one factor about the centroid: relabelling the categories, which turns the axes, stays a symmetry
            return x * (2 / self.width)
        low, high = self.box.bounds(x)
        return (x - 0.5 * (low + high)) * (2 / (high - low))

    def c_noise(self, sigma: Tensor) -> Tensor:
        return (sigma / self.width).clamp(max=self._FLAT).log() / 4

    def unit(self, sigma: Tensor) -> Tensor:
        if self.box is None:
            here = sigma.expand(*sigma.shape[:-1], self.domain.event_shape[0])
            return self._join(lambda part, values, level: part.unit(level).expand_as(values), here, sigma)
        if isinstance(self.domain, Torus):
            low, high = self.box.bounds(sigma)
            return circle_unit(sigma / (high - low)) / (high - low)
        low, high = self.box.bounds(sigma) if isinstance(self.domain, Hypercube) else (0.0, self.box.width)
        width = high - low
        r = (sigma / width).clamp(max=self._FLAT)
        return (-0.5 * math.pi**2 * r**2).exp() * (math.pi**2 + (-1.28 * r - 5 * r**2).exp() / r**2).sqrt() / width

    def score(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        score = self.unit(sigma) * raw
        return damp_walls(self.domain, x, score, sigma) if self.wall else score

    def _join(self, function: Callable[[Reflected, Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        """function(part, its x, σ in its broadcast form) of the parts of a product, side by side."""
        assert isinstance(self.domain, Product)
        parts = zip(self.parts, self.domain.split(x), part_levels(sigma, self.domain), strict=True)
        return self.domain.join(*(function(part, v, level) for part, v, level in parts))


class ReflectedVelocity(Reflected):
    r"""score = −F/σ: F predicts the velocity dx/dσ of the reflected path x_σ = fold(x_0 + σz), which is W z with W the fold's linear part.

    The probability flow in σ is dx/dσ = −σ·score = E[W z | x], so this is flow matching with walls, the reflected form of
    :class:`VelocityPreconditioning`; :class:`ConditionalFlowMatching` trains it. The target has unit size at every σ, but where the kernel
    flattens (σ > w/2) it is nearly all noise, which :class:`Reflected` with denoising leaves out.

    Args: domain, wall: as there.
    """

    def unit(self, sigma: Tensor) -> Tensor:
        return 1 / sigma

    def score(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return super().score(-raw, x, sigma)


def circle_unit(r: Tensor) -> Tensor:
    r"""The root of the Fisher information of the wrapped Gaussian on a circle of circumference 1, at σ = r.

    With :math:`y = 4π^2 r^2`: :math:`u^2 = 4π^2 (2 e^{-y} + e^{-2y}/y)`, which is :math:`r^{-2}(1 + O(y^3))` and
    :math:`8π^2 e^{-y}`, as it should be at the two ends, and within 5 % of quadrature in u between. It stays from r = 1 on.
    """
    y = 4 * math.pi**2 * r.clamp(max=1.0) ** 2
    return 2 * math.pi * (-0.5 * y).exp() * (2 + (-y).exp() / y).sqrt()


def part_levels(sigma: Tensor, domain: Product) -> list[Tensor]:
    """σ of each part in its broadcast form, of σ in that of the product: ``[*batch, 1]``, or ``[*batch, n]`` constant over each part."""
    firsts = (
        [0] * len(domain.sizes) if sigma.shape[-1] == 1 else [sum(domain.sizes[:i]) for i in range(len(domain.sizes))]
    )
    return [
        sigma[..., first].reshape(*sigma.shape[:-1], *[1] * len(part.event_shape))
        for first, part in zip(firsts, domain.domains, strict=True)
    ]


def can_damp(domain: Domain) -> bool:
    """Whether scores on the domain can be damped at its walls: it defines ``boundary_distance``, or ``damp`` itself."""
    if isinstance(domain, Product):
        return all(can_damp(part) for part in domain.domains)
    kind = type(domain)
    return kind.damp is not Domain.damp or kind.boundary_distance is not Domain.boundary_distance


def damp_walls(domain: Domain, x: Tensor, vector: Tensor, sigma: Tensor) -> Tensor:
    """G·vector, with G the symmetric matrix of ``domain.damp`` over a layer min(σ, w/4), or min(σ, inradius/2) where the domain states
    its inradius; w is the width, of each axis on a hypercube. σ in broadcast form."""
    if isinstance(domain, Product):
        parts = zip(domain.domains, domain.split(x), domain.split(vector), part_levels(sigma, domain), strict=True)
        return domain.join(*(damp_walls(part, a, v, level) for part, a, v, level in parts))
    if isinstance(domain, Hypercube):
        low, high = domain.bounds(x)
        return domain.damp(x, vector, torch.minimum(sigma, as_like((high - low) / 4, x)))
    return domain.damp(x, vector, sigma.clamp(max=wall_layer(domain)))


def wall_layer(domain: Domain) -> float:
    """The thickest layer in which a domain is damped: half the radius of the largest ball inside, as on the cube."""
    inradius = getattr(domain, "inradius", None)
    return domain.width / 4 if inradius is None else float(inradius) / 2
