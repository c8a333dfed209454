r"""The Neumann heat kernel of the equilateral triangle of side √2, whose mirrors generate the affine Weyl group Ã₂.

Points x, x_0 of the plane are in Helmert's coordinates, p, q are their barycentric coordinates, e_i the corners; see
``regular_simplex``.

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

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .domain import HeatKernel
from .tensors import clamped, event_sum, values_are_readable

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
        series = self.series(*arguments, self.table)
        return tuple(getattr(series, name)() for name in names)


Regimes = tuple[_Regime, ...]

_HELMERT = (
    torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
    / torch.tensor([[2.0], [6.0]]).double().sqrt()
)


def triangle_regimes() -> Regimes:
    """The tables, for ``TriangleKernel``."""
    images, modes = _image_table(), _mode_table()
    return (*(_Regime(below, _Images, images.first(below)) for below in _EDGES), _Regime(math.inf, _Modes, modes))


def _image_table() -> _ImageTable:
    """The images that count below the largest edge, nearest first; found by walking from triangle to triangle."""
    corners, limit = np.eye(3), 2 * _EDGES[-1] ** 2 * _DIGITS
    found, queue = {}, [tuple(map(tuple, np.eye(3, dtype=int).tolist()))]
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
    return _ImageTable(cost.flatten(1).T.contiguous(), _to_plane(shift).flatten(1).T.contiguous(), cost.amin((1, 2)))


def _mode_table() -> _ModeTable:
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
    square = unit**2 * (table[:, 0] ** 2).sum(-1)
    return _ModeTable(unit * (table[..., :2] - table[..., 2:]), unit * _to_plane(table), size, square)


def _to_plane(p: Tensor) -> Tensor:
    """Helmert's coordinates: ``[*batch, 3] -> [*batch, 2]``."""
    return event_sum(p.unsqueeze(-2) * _HELMERT, 1)


class TriangleKernel(HeatKernel):
    """By images for small σ, by modes for large, computed in float64."""

    domain: Any  # RegularSimplex(3), whose file imports this one

    def _sample(self, z: Tensor) -> Tensor:
        noise = self._sigma * z
        return self.domain.reflect(self.x0.expand_as(noise), noise)

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
        coordinates = [clamped(self.domain._barycentric(v), 0.0, math.inf) for v in states]
        arguments = (*states, *coordinates, self.sigma.double().expand(shape))
        graph = torch.is_grad_enabled() and any(v.requires_grad for v in arguments)
        # other devices would wait for every number of rows that is read
        simple = graph or x.device.type != "cpu" or not values_are_readable(*arguments)
        values = (_select if simple else _split)(self.domain._regimes(x.device), names, *arguments)
        dtype = torch.promote_types(x.dtype, self.x0.dtype)
        return tuple(v.to(dtype) for v in values)


def _select(regimes: Regimes, names: tuple[str, ...], *arguments: Tensor) -> tuple[Tensor, ...]:
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


def _split(regimes: Regimes, names: tuple[str, ...], *arguments: Tensor) -> tuple[Tensor, ...]:
    """Each state in its own regime, in passes of ``_CHUNK`` states."""
    *states, sigma = arguments
    shape, sigma = sigma.shape, sigma.reshape(-1).contiguous()
    rows = [*(v.reshape(-1, v.shape[-1]) for v in states), sigma]
    place = torch.bucketize(sigma.detach(), sigma.new_tensor([r.below for r in regimes[:-1]]), right=True)
    passes = [(k, i) for k in range(len(regimes)) for i in (place == k).nonzero().flatten().split(_CHUNK) if len(i)]
    passes = passes or [(0, place)]  # an empty batch
    parts = [regimes[k].evaluate(names, *(v.index_select(0, i) for v in rows)) for k, i in passes]
    back = torch.cat([i for _, i in passes]).argsort()
    return tuple(
        torch.cat(v).index_select(0, back).reshape((*shape, *v[0].shape[1:])) for v in zip(*parts, strict=True)
    )
