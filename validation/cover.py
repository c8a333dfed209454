r"""Weak errors on cubes and simplices without sampling noise, for any linear-combination rule under the wall ``Cover``.

Where states live on the covering space, a step is a smooth function of state, history and normals, and for an f that is even and periodic
there :math:`u_n(x, P) = \mathbb E[f(X_N) | X_n = x, \text{history } P]` is so as well: Chebyshev series in x ∈ [0, 1]^d (and in P for a
rule that remembers one prediction), Gauss–Legendre sums over z. The reflection that folds x' takes the history along: P ↦ ±P + α·shift
with α = 1 for data and 0 for noise predictions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..domains import Hypercube, Simplex
from ..processes import Equation
from ..solvers import Cover, Solver, bind
from ..solvers.checks import check_times

REACH = 6.5  # beyond so many standard deviations 1e-10 of the mass are left out


class _Series(NamedTuple):
    """A function on a box by its Chebyshev coefficients ``[n, …]``; low and high ends of each axis."""

    coefficients: Tensor
    ends: tuple[tuple[float, float], ...]

    def __call__(self, at: Tensor) -> Tensor:
        """Values at points ``[q, axes]``."""
        # in blocks that stay in a processor's cache
        return torch.cat([self._block(part) for part in at.split(1 << 13)])

    def _block(self, at: Tensor) -> Tensor:
        counts = self.coefficients.shape
        value = self.coefficients.reshape(counts[0], -1).T @ _basis(at[:, 0], counts[0], self.ends[0])
        for axis in range(1, len(counts)):
            basis = _basis(at[:, axis], counts[axis], self.ends[axis])
            value = (value.reshape(counts[axis], -1, len(at)) * basis[:, None]).sum(0)
        return value.reshape(len(at))


def _places(count: int, ends: tuple[float, float]) -> Tensor:
    angle = math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    low, high = ends
    return low + (high - low) * 0.5 * (1 - angle.cos())


def _basis(x: Tensor, count: int, ends: tuple[float, float]) -> Tensor:
    """T_j for j < count, ``[count, q]``, by T_{j+1} = 2y T_j − T_{j−1}, which keeps all digits on [−1, 1]."""
    low, high = ends
    y = (1 - 2 * (x - low) / (high - low)).clamp(-1, 1)
    out = y.new_ones(count, len(y))
    if count > 1:
        out[1] = y
    for j in range(2, count):
        torch.addcmul(-out[j - 2], y, out[j - 1], value=2, out=out[j])
    return out


def _series(values: Tensor, ends: Sequence[tuple[float, float]]) -> _Series:
    """The series through values at the tensor grid of ``_places``."""
    for axis, count in enumerate(values.shape):
        angle = math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
        transform = (2 / count) * (torch.arange(count, dtype=torch.float64)[:, None] * angle).cos()
        transform[0] *= 0.5
        values = torch.movedim(torch.tensordot(transform, values, ([1], [axis])), 0, axis)
    return _Series(values, tuple(ends))


def cover_expectation(
    equation: Equation,
    solver: Solver,
    times: Any,
    function: Callable[[Tensor], Tensor],
    density: Callable[[Tensor], Tensor],
    *,
    degree: int = 25,
    nodes: int = 32,
) -> float:
    """E f(X_N) for X_0 of a given density, under ``Cover``.

    Args:
        equation: on the unit interval, ``Hypercube((1,))``, or on ``Simplex(3)``.
        solver: a rule that remembers at most one prediction (none on the simplex) and draws up to two normals a step.
        times: the grid. function: f, even and periodic on the cover (and symmetric on the simplex), of states ``[n, d]``. density: of X_0.
        degree: Chebyshev points per axis. nodes: quadrature points per normal.

    Spectrally accurate where s·n = 0 on the walls, as for exact scores; elsewhere the field jumps between copies of the domain, which the
    quadrature does not follow, and a few per cent of the error are lost.
    """
    domain, grid = equation.domain, check_times(times)
    if not isinstance(domain, (Hypercube, Simplex)) or domain.event_shape not in ((1,), (2,)):
        raise ValueError(f"cover_expectation: got {domain!r}, expected Hypercube((1,)) or Simplex(3)")
    dim, axes = domain.event_shape[0], [(0.0, 1.0)] * domain.event_shape[0]
    equation = equation.bound(Cover())
    records = bind(solver.plan(equation, grid), torch.zeros(1, dtype=torch.float64))
    moves = []
    held: list[tuple[float, float]] = []  # the range of the remembered prediction
    for record in records:
        moves.append(_Moves.of(equation, solver, record, [*axes, *held], degree, nodes, dim))
        held = [(float(v.min()), float(v.max())) for v in moves[-1].points[:, dim:].unbind(1)]
    u: Any = partial(_of_state, function, dim)
    for move in reversed(moves):
        u = move.pull_back(u)
    gauss, weight = np.polynomial.legendre.leggauss(40)
    x = torch.cartesian_prod(*[torch.tensor(0.5 + 0.5 * gauss)] * dim).reshape(-1, dim)
    w = torch.cartesian_prod(*[torch.tensor(0.5 * weight)] * dim).reshape(-1, dim).prod(-1)
    # on the simplex the square counts each state once per order of its particles
    return float((u(x) * density(domain.fold(x)[0]) * w).sum()) / math.factorial(dim)


def _of_state(function: Callable[[Tensor], Tensor], dim: int, at: Tensor) -> Tensor:
    return function(at[:, :dim])


class _Moves(NamedTuple):
    """Where one step leads from all places of a grid by all normals: points ``[places · draws, axes]``, weights ``[draws]``."""

    ends: list[tuple[float, float]]
    shape: tuple[int, ...]
    points: Tensor
    weights: Tensor

    @classmethod
    def of(
        cls,
        equation: Equation,
        solver: Solver,
        record: Any,
        ends: list[tuple[float, float]],
        degree: int,
        nodes: int,
        dim: int,
    ) -> _Moves:
        places = torch.cartesian_prod(*(_places(degree, e) for e in ends)).reshape(-1, len(ends))
        z, weights = _normals(record.draws * dim, nodes if record.draws * dim < 3 else 3 * nodes // 4)
        start = places.repeat_interleave(len(z), 0)
        noise = z.repeat(len(places), 1).reshape(len(start), record.draws, dim)
        state = tuple(start[:, dim:].T.unsqueeze(-1)) if len(ends) > dim else ()
        moved, state = solver.step(equation, start[:, :dim], record, state, noise.unbind(1))
        kept = list(state) if isinstance(state, tuple) else []
        if len(kept) > 1 or (kept and dim > 1):
            raise ValueError(
                f"cover_expectation: got {solver!r}, which remembers {len(kept)} predictions, expected at most one"
            )
        width = moved.remainder(2)
        folded = torch.where(width > 1, 2 - width, width)
        sign = torch.where(width > 1, -1.0, 1.0)
        remembered = [sign * p + _is_point(solver) * (folded - sign * moved) for p in kept]
        return cls(ends, (degree,) * len(ends), torch.cat([folded, *remembered], -1), weights)

    def pull_back(self, u: Callable[[Tensor], Tensor]) -> _Series:
        values = (u(self.points).reshape(-1, len(self.weights)) * self.weights).sum(1)
        return _series(values.reshape(self.shape), self.ends)


def _is_point(solver: Solver) -> float:
    """1 where remembered predictions are points of the covering space, 0 where they are vectors."""
    return float(solver.form.data(np.ones(1))[0])  # type: ignore[attr-defined]


def _normals(count: int, nodes: int) -> tuple[Tensor, Tensor]:
    """A rule for ``count`` unit normals: ``[q, count]``, ``[q]``."""
    if not count:
        return torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    t, w = np.polynomial.legendre.leggauss(nodes)
    z = REACH * t
    weight = REACH * w * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    points = torch.tensor(list(itertools.product(z, repeat=count)), dtype=torch.float64)
    weights = torch.tensor([math.prod(v) for v in itertools.product(weight, repeat=count)], dtype=torch.float64)
    return points, weights / weights.sum()
