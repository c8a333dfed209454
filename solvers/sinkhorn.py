r"""Schrödinger bridges between densities on grids: Sinkhorn's iteration in the log domain, on any domain with a heat kernel.

The reference is Brownian motion of variance σ²t, reflected at the walls where there are some: its kernel is the domain's own Neumann heat
kernel, the Gaussian in the open. Start and end are masses μ_i at points x_i and ν_j at points y_j (cells of a grid, or samples). The
coupling and the two potentials are

.. math:: π_{ij} = μ_i ν_j\, e^{f_i + g_j} p_σ(y_j | x_i),\qquad
          f_i = -\log\sum_j ν_j e^{g_j} p_σ(y_j | x_i),\quad g_j = -\log\sum_i μ_i e^{f_i} p_σ(y_j | x_i),   (1)

one equation after the other: each is a half-iteration of IPF, and all is done in logarithms, so that no σ under- or overflows. At time t
the bridge has the density φ_t φ̂_t and the drifts ±σ²∇ log of its factors, both mixtures of heat kernels:

.. math:: φ_t(x) = \sum_j ν_j e^{g_j} p_{σ\sqrt{1-t}}(x | y_j),\qquad \hat φ_t(x) = \sum_i μ_i e^{f_i} p_{σ\sqrt t}(x | x_i).   (2)

A sum over cells is an integral over densities while its kernels are wider than the cells: as t → 1 (forward) or 0 (backward) the
drift comes to see single points. Their heat kernels know the walls, and so do the drifts: their normal component vanishes there.

Sources: Cuturi 2013; Peyré & Cuturi 2019, §4.4 (log domain); Chen, Georgiou & Pavon 2016 (the bridge behind it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..domains import Domain, KernelDomain
from ..domains.tensors import batch_shape, check_event, event_sum, is_int, number, per_batch
from ..processes import SDE

_BLOCK = 1 << 22  # entries of a kernel matrix that are computed at a time


class Weighted(NamedTuple):
    """Masses ``[n]``, above 0 and summing to 1, at points ``[n, *event]``; float64. Made by :meth:`of` and :meth:`cells`."""

    points: Tensor
    masses: Tensor

    @classmethod
    def of(cls, points: Tensor, masses: Tensor | None = None) -> Weighted:
        """Points ``[n, *event]`` with these masses ``[n]``, equal ones by default: normalised, and points without any left out.

        Raises ``TypeError`` for what is no tensor, ``ValueError`` for no points or some that are not finite, and for masses that are
        negative or not finite, all 0, or not one for each point."""
        for value, name in ((points, "points"), (masses, "masses")):
            if not isinstance(value, Tensor | None):
                raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor; use torch.as_tensor")
        if not points.dim() or not len(points) or not bool(points.isfinite().all()):
            raise ValueError(
                f"points: got shape {tuple(points.shape)}, expected [n, *event] with n of at least 1 and finite numbers"
            )
        values = points.new_ones(len(points)).double() if masses is None else masses.detach().to(points.device).double()
        good = values.shape == points.shape[:1] and bool((values.isfinite() & (values >= 0)).all())
        if not good or not float(values.sum()) > 0:
            least = float(values.min()) if values.numel() else math.nan
            raise ValueError(
                f"masses: got shape {tuple(values.shape)} with values from {least:g}, expected {len(points)} finite numbers "
                "of at least 0 that are not all 0"
            )
        keep = values > 0
        return cls(points[keep].detach().double(), values[keep] / values.sum())

    @classmethod
    def cells(
        cls,
        low: Sequence[float],
        high: Sequence[float],
        counts: Sequence[int],
        density: Callable[[Tensor], Tensor],
    ) -> Weighted:
        """The middles of a grid of equal cells in a box, with the masses that a density has there.

        Args:
            low, high: bounds of the box on each axis; in the open, of one that holds all but nothing of the mass.
            counts: cells along each axis.
            density: points ``[n, d]`` → ``[n]``, up to a factor, nowhere negative.
        """
        if not len(low) == len(high) == len(counts):
            raise ValueError(
                f"counts: got {len(counts)} of them for {len(low)} and {len(high)} bounds, expected one for each axis"
            )
        lines = []
        for a, b, n in zip(low, high, counts, strict=True):
            if not is_int(n, 1) or not a < b:
                raise ValueError(f"counts: got {n!r} cells from {a:g} to {b:g}, expected at least one, and low < high")
            lines.append(a + (b - a) * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        points = torch.cartesian_prod(*lines).reshape(-1, len(lines))
        return cls.of(points, density(points))


@dataclass(frozen=True)
class GridBridge:
    """The Schrödinger bridge between two weighted sets of points; made by :func:`sinkhorn`.

    f, g: the potentials of (1), ``[n]`` and ``[m]``. errors: after each iteration, the total variation between the start's masses and those
    the coupling has (the end's are exact); their ratios are the rate of IPF.
    """

    domain: KernelDomain
    sigma: float
    start: Weighted
    end: Weighted
    f: Tensor
    g: Tensor
    errors: tuple[float, ...]

    def log_coupling(self) -> Tensor:
        """log π, ``[n, m]``."""
        kernel = _log_kernel(self.domain, self.start.points, self.end.points, self.sigma)
        return (self.start.masses.log() + self.f)[:, None] + (self.end.masses.log() + self.g) + kernel

    @property
    def cost(self) -> float:
        """E|X₁ − X₀|² under the coupling, by the domain's own difference of points."""
        ndim = len(self.domain.event_shape)
        apart = self.domain.difference(self.end.points, self.start.points.unsqueeze(1))
        return float((self.log_coupling().exp() * event_sum(apart**2, ndim)).sum())

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The drift with rising t: σ²∇ log φ_t(x), 0 ≤ t < 1."""
        return self.sigma**2 * self._factor(x, t, backward=False)[1].to(x)

    def backward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The drift with falling t: −σ²∇ log φ̂_t(x), 0 < t ≤ 1."""
        return -(self.sigma**2) * self._factor(x, t, backward=True)[1].to(x)

    def log_density(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x), 0 < t < 1: ``[*batch]``."""
        return (self._factor(x, t, backward=False)[0] + self._factor(x, t, backward=True)[0]).to(x)

    def equation(self, *, backward: bool = False) -> SDE:
        """The SDE of one direction on the domain: solve it on times that rise from 0, or fall from 1 where ``backward``."""
        drift = self.backward if backward else self.forward
        return SDE(drift, self.sigma, self.domain, direction=-1 if backward else 1)

    def _factor(self, x: Tensor, t: float | Tensor, backward: bool) -> tuple[Tensor, Tensor]:
        """log and ∇ log of φ̂_t where ``backward``, else of φ_t, in float64 and in blocks of x."""
        check_event(x, self.domain.event_shape)
        side, potential = (self.start, self.f) if backward else (self.end, self.g)
        points, log_masses = (v.to(x.device) for v in (side.points, side.masses.log() + potential))
        x = x.detach().double()
        span, x = _span(t, x, len(self.domain.event_shape), backward)
        states = x.reshape(-1, *self.domain.event_shape)
        outcomes = []
        for rows in torch.arange(len(states)).split(
            max(1, _BLOCK // (len(side.masses) * max(1, math.prod(self.domain.event_shape))))
        ):
            sigma = self.sigma * (span[rows, None] if span.dim() else span).sqrt()
            outcomes.append(_mixture(self.domain, states[rows], points, log_masses, sigma))
        logs, slopes = (torch.cat(parts) for parts in zip(*outcomes, strict=True))
        return logs.reshape(batch_shape(x, self.domain.event_shape)), slopes.reshape(x.shape)


def sinkhorn(
    domain: Domain,
    start: Weighted,
    end: Weighted,
    sigma: float,
    *,
    tolerance: float = 1e-9,
    iterations: int = 10_000,
) -> GridBridge:
    r"""The bridge between two weighted sets of points, whose reference is Brownian motion of variance σ²t, reflected at the domain's walls.

    Args:
        domain: with a heat kernel: a box, Euclidean space, a torus, a simplex, ….
        start, end: from ``Weighted.cells`` (a density on a grid) or ``Weighted.of`` (points). Memory and a step cost n·m numbers.
        sigma: above 0. In the open this is entropic optimal transport of the cost |x − y|² at ε = 2σ².
        tolerance: total variation between the start's masses and those reached, at which to stop.
        iterations: the most of them; their number grows like (width/σ)².

    Raises ``TypeError`` for a domain without heat kernel, ``ValueError`` for points outside and for σ below the domain's ``sigma_min``,
    from which its kernel is exact (drifts see smaller ones at the end of their way), and ``RuntimeError`` where ``iterations`` do not
    suffice.
    """
    if not isinstance(domain, KernelDomain):
        raise TypeError(
            f"domain: got {domain!r}, expected one whose heat kernel is known, such as Hypercube or Euclidean; for others train a "
            "DiffusionSchroedingerBridge"
        )
    number(sigma, "sigma", low=0.0, open_low=True)
    if sigma < domain.sigma_min:
        raise ValueError(
            f"sigma: got {sigma:g}, expected at least {domain.sigma_min:g}, below which the kernel of {domain!r} is not exact; "
            "take a larger one"
        )
    number(tolerance, "tolerance", low=0.0, open_low=True)
    if not is_int(iterations, 1):
        raise ValueError(f"iterations: got {iterations!r}, expected a whole number of at least 1")
    for side, name in ((start, "start"), (end, "end")):
        if not isinstance(side, Weighted):
            raise TypeError(
                f"{name}: got {type(side).__name__}, expected points with masses; make them by Weighted.of(points) or Weighted.cells"
            )
        domain.check(side.points, name)
    kernel = _log_kernel(domain, start.points, end.points, sigma)
    first, last = kernel + end.masses.log(), kernel.T + start.masses.log()
    f, g = torch.zeros_like(start.masses), torch.zeros_like(end.masses)
    errors: list[float] = []
    for _ in range(iterations):
        g = -(last + f).logsumexp(1)
        needed = -(first + g).logsumexp(1)
        # the start's masses are too large by e^{f − needed}
        errors.append(0.5 * float((start.masses * (f - needed).expm1().abs()).sum()))
        if errors[-1] <= tolerance:
            return GridBridge(domain, float(sigma), start, end, f, g, tuple(errors))
        f = needed
    raise RuntimeError(
        f"sinkhorn: got an error of {errors[-1]:.2g} after {iterations} iterations, expected {tolerance:g}; take "
        "more iterations, a larger sigma or a larger tolerance"
    )


def _log_kernel(domain: KernelDomain, x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """log p_σ(y_j | x_i): ``[n, m]``, in blocks of rows."""
    size = max(1, math.prod(domain.event_shape))
    rows = [
        domain.unchecked_kernel(part.unsqueeze(1), sigma).log_prob(y)
        for part in x.split(max(1, _BLOCK // (len(y) * size)))
    ]
    return torch.cat(rows)


def _mixture(
    domain: KernelDomain, x: Tensor, points: Tensor, log_masses: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """log and ∇ₓ log of Σ_j e^{log_masses_j} p_σ(x | points_j): ``[n]`` and ``[n, *event]``."""
    logs, scores = domain.unchecked_kernel(points, sigma).log_prob_and_score(x.unsqueeze(1))
    weighted_logs = logs + log_masses
    share = weighted_logs.softmax(1).reshape(*weighted_logs.shape, *(1,) * (x.dim() - 1))
    return weighted_logs.logsumexp(1), (share * scores).sum(1)


def _span(t: float | Tensor, x: Tensor, ndim: int, backward: bool) -> tuple[Tensor, Tensor]:
    """The time from the side that the mixture stands on, 0-d or one for each state; refused where it is 0. And the states."""
    times = per_batch(t, x, ndim, "t")
    span = times if backward else 1 - times
    if not bool(((span > 0) & (span <= 1)).all()):
        expected = "(0, 1] backwards" if backward else "[0, 1) forwards"
        raise ValueError(
            f"t: got times from {float(times.min()):g} to {float(times.max()):g}, expected {expected}; at the end of its way the bridge "
            "stands on the points themselves"
        )
    if not span.dim():
        return span, x
    batch = torch.broadcast_shapes(span.shape, x.shape[: x.dim() - ndim])
    return span.expand(batch).reshape(-1), x.expand(*batch, *x.shape[x.dim() - ndim :])
