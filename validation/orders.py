r"""Orders of convergence, measured without sampling noise.

* :func:`convergence_order`: slopes of log error against log steps, with the part below rounding left out.
* :func:`propagate_moments`: the exact mean and covariance that a stochastic solver gives on a linear equation with Gaussian
  data. There a solver is an affine map of (x, z₁, …, z_K); running it once on the basis of that space gives the map.
* :func:`expectation`: E f(X_N) of an Euler-type step with walls in one dimension, by quadrature of its transition operator.

All three run the solver's own ``plan`` and ``step`` and the wall's own ``settle``; none repeats a formula.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.fft
import torch
from torch import Tensor
from torch.distributions import Distribution

from ..domains.tensors import as_like
from ..processes import Equation, Wall
from ..solvers import Cover, Noise, Solver, bind, solve
from ..solvers.loop import check_times, default_wall
from ..solvers.noise import Source


def convergence_order(
    run: Callable[[int], Any], steps: Sequence[int], reference: Any = None, *, resolution: float | None = None
) -> Tensor:
    r"""Successive slopes :math:`\log(e_k/e_{k+1}) / \log(n_{k+1}/n_k)` of the largest error: ``[≤ len(steps) − 1]``, float64.

    Args:
        run: number of steps → result (tensor or number). Without ``reference`` a number is taken as the error itself; tensors are
            compared with the result of the next larger number of steps (one slope fewer).
        steps: increasing, e.g. ``(8, 16, 32, 64)``.
        reference: the exact result.
        resolution: errors below it are left out, with all that follow, because rounding blurs their slope; by default
            100·√n·ε·max(1, |reference|): n steps leave a rounding of about √n·ε, which then moves a slope by less than 0.02.

    A result that is not finite ends the slopes with NaN. No slope at all is an empty tensor.
    """
    steps = list(steps)
    if len(steps) < 2 or any(b <= a for a, b in itertools.pairwise(steps)) or steps[0] < 1:
        raise ValueError(f"steps: got {steps}, expected at least two increasing numbers of steps")
    results, floors, kept = [run(n) for n in steps], [], steps
    dtype = next((r.dtype for r in results if isinstance(r, Tensor) and r.dtype.is_floating_point), torch.float64)
    values = [_double(r) for r in results]
    size = 1.0
    if reference is not None:
        exact = _double(reference)
        errors = [float((value - exact).abs().max()) for value in values]
        size = max(1.0, float(exact.abs().max()))
    elif values[0].dim() == 0:
        errors = [abs(float(value)) for value in values]
    else:
        errors = [float((a - b).abs().max()) for a, b in itertools.pairwise(values)]
        size, kept = max(1.0, float(values[-1].abs().max())), steps[:-1]
    eps = torch.finfo(dtype).eps
    floors = [resolution if resolution is not None else 100 * math.sqrt(n) * eps * size for n in kept]

    slopes: list[float] = []
    for k in range(len(errors) - 1):
        if errors[k] < floors[k] or errors[k + 1] < floors[k + 1]:
            break
        finite = math.isfinite(errors[k]) and math.isfinite(errors[k + 1])
        slopes.append(math.log(errors[k] / errors[k + 1]) / math.log(kept[k + 1] / kept[k]) if finite else math.nan)
        if not finite:
            break
    return torch.tensor(slopes, dtype=torch.float64)


def _double(value: Any) -> Tensor:
    """A tensor or a number in float64, without a detour through float32."""
    return value.detach().double() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


# ------------------------------------------------------------------------------------- stochastic rules on Gaussian data


class _BasisSource(Source):
    """The k-th draw asked for is 1 in the rows that belong to it and 0 in all others."""

    def __init__(self, x: Tensor, batch_ndim: int, first: int):
        super().__init__(x, batch_ndim)
        self.next = first

    def __call__(self, t: float, s: float, stream: int = 0, rows: Tensor | None = None) -> Tensor:
        z = torch.zeros(self.shape, dtype=self.dtype)
        dim = math.prod(self.event)
        if self.next + dim > len(z):
            raise ValueError("BasisNoise: the solver drew more often than its records say (Record.draws)")
        z.reshape(len(z), dim)[self.next : self.next + dim] = torch.eye(dim, dtype=self.dtype)
        self.next += dim
        return z if rows is None else z[rows]

    def initial(self, distribution: Distribution) -> Tensor:
        raise NotImplementedError("BasisNoise draws no start; give x")

    def paths(self) -> list[Source]:
        raise NotImplementedError("BasisNoise has no paths; adaptive rules are not affine")


class BasisNoise(Noise):
    """Noise without randomness: draw k is the unit vectors in rows ``first + k·d … first + (k + 1)·d − 1`` and 0 elsewhere.

    Together with a start that is the basis of the state space in the rows before, one solve gives the affine map of a
    linear recursion: see :func:`propagate_moments`.
    """

    def __init__(self, first: int):
        self.first = first

    def open(self, x: Tensor, event_ndim: int | None = None) -> Source:
        return _BasisSource(x, self._batch_ndim(x, event_ndim), self.first)


def propagate_moments(
    equation: Equation, solver: Solver, times: Any, mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Exact mean ``[d]`` and covariance ``[d, d]`` of the solver's output where field and step are affine in x and the noise.

    Args:
        equation: with a field affine in x (the score of Gaussian data, any schedule), on a Euclidean domain.
        solver: any fixed-step rule that is affine then; deterministic or stochastic.
        times: the grid.
        mean, covariance: ``[d]`` and ``[d, d]`` of the Gaussian start, d the number of coordinates.

    Raises ``ValueError`` if the map found is not affine (one more row checks it).
    """
    grid = check_times(times)
    event = equation.domain.event_shape
    dim = math.prod(event)
    draws = sum(record.draws for record in solver.plan(equation, grid)) if solver.stochastic else 0
    # rows: 0, the basis, twice the sum of the basis (a check), one per draw and coordinate
    x = torch.zeros(2 + dim * (1 + draws), dim, dtype=torch.float64)
    x[1 : 1 + dim] = torch.eye(dim, dtype=torch.float64)
    x[1 + dim] = 2.0
    noise = BasisNoise(2 + dim) if solver.stochastic else None
    with torch.no_grad():
        out = solve(equation, x.reshape(len(x), *event), grid, solver, noise=noise).x.reshape(len(x), dim)
    shift = out[0]
    linear, check, push = (out[1 : 1 + dim] - shift).T, out[1 + dim] - shift, (out[2 + dim :] - shift).T
    gap, size = float((2 * linear.sum(1) - check).abs().max()), float(out.abs().max())
    if not gap <= 1e-9 * max(1.0, size):
        raise ValueError(
            f"propagate_moments: {solver!r} is not affine on this equation (gap {gap:.2g}); use Gaussian data"
        )
    return linear @ mean + shift, linear @ covariance @ linear.T + push @ push.T


# ---------------------------------------------------------------------------------------- walls in one dimension


def expectation(
    equation: Equation,
    solver: Solver,
    times: Any,
    function: Callable[[Tensor], Tensor],
    *,
    wall: Wall | None = None,
    nodes: int = 97,
) -> Callable[[Tensor], Tensor]:
    r"""u(x) = E[f(X_N) | X_0 = x] for a step with one normal draw z in which the move is affine, on a bounded interval.

    The operator :math:`u_n(x) = ∫ u_{n+1}\big(\text{settle}(x, \text{step}(x, z))\big) φ(z) dz` is applied backwards in time; u
    lives on Chebyshev points (dense at the walls, where it has layers of width √h), the integral over z is Gauss–Legendre on
    panels that end where the move meets a wall, since the settled state has a kink there. Exact to about 1e-12.

    Args:
        equation: on a one-dimensional bounded domain with straight walls; its field is evaluated at the nodes only.
        solver: a rule with one state, e.g. ``EulerMaruyama()``; history (``state``) is refused.
        times: the grid. function: f, elementwise on ``[n, 1]``. wall: as in ``solve``. nodes: Chebyshev points.

    Raises ``ValueError`` for a rule with history, for one whose normal a wall swallows within the step (``ReflectedStrang`` under a wall
    that does not fold), and for a wall that leaves states outside (``Penalise``).
    """
    domain, grid = equation.domain, check_times(times)
    if math.prod(domain.event_shape) != 1 or not domain.bounded:
        raise ValueError(f"expectation: got {domain!r}, expected a bounded domain of one dimension")
    equation = equation.bound(wall or default_wall(equation, solver))
    far = torch.tensor([[-1e6], [1e6]], dtype=torch.float64).reshape(2, *domain.event_shape)
    low, high = domain.project(far).flatten().tolist()
    x = torch.tensor(low + (high - low) * 0.5 * (1 - np.cos(np.pi * np.arange(nodes) / (nodes - 1))))
    records = bind(solver.plan(equation, grid), x)
    values = function(x[:, None]).reshape(-1)
    for record in reversed(records):
        values = _apply(equation, solver, record, x, values, low, high)
    return lambda at: _interpolate(x, values, as_like(at, x).flatten()).reshape(at.shape)


def _apply(
    equation: Equation, solver: Solver, record: Any, x: Tensor, values: Tensor, low: float, high: float
) -> Tensor:
    event = equation.domain.event_shape

    def move(at: Tensor, z: Tensor) -> Tensor:
        moved, state = solver.step(equation, at.reshape(-1, *event), record, (), (z.reshape(-1, *event),))
        if not (isinstance(state, tuple) and state == ()):
            raise ValueError(f"expectation: got {solver!r}, which keeps a history, expected a rule without state")
        return moved.reshape(-1)

    if not record.draws:
        settled = equation.settle(x.reshape(-1, *event), move(x, torch.zeros_like(x)).reshape(-1, *event))
        return _interpolate(x, values, settled.reshape(-1))
    centre = move(x, torch.zeros_like(x))
    spread = move(x, torch.ones_like(x)) - centre
    if not bool((spread != 0).all()):
        raise ValueError(
            f"expectation: got {solver!r} under {equation.wall!r}, whose moves from some points do not depend on the normal, expected a "
            "move that is affine in it, or a wall that folds"
        )
    z, weights = _normal_quadrature(centre.numpy(), spread.numpy(), low, high)
    start = x[:, None].expand(z.shape).reshape(-1)
    settled = equation.settle(start.reshape(-1, *event), move(start, z.reshape(-1)).reshape(-1, *event))
    # what the cover leaves outside is folded: a rule without history does not notice when
    if not isinstance(equation.wall, Cover) and not bool(equation.domain.contains(settled).all()):
        raise ValueError(
            f"expectation: got {equation.wall!r}, which leaves states outside the domain, expected a wall that settles them inside"
        )
    inside = equation.wall.show(equation.domain, settled).reshape(-1)
    return (_interpolate(x, values, inside).reshape(z.shape) * weights).sum(1)


def _normal_quadrature(
    centre: np.ndarray, spread: np.ndarray, low: float, high: float, reach: float = 8.5
) -> tuple[Tensor, Tensor]:
    """Nodes and weights ``[n, q]`` of ∫ · φ(z) dz, row by row, with panels of length ≤ 2 that end at all kinks.

    Kinks lie where centre + spread·z is a wall or a mirror image of one.
    """
    width, even = high - low, np.arange(-reach, reach + 0.1, 1.7)
    most = math.ceil(2 * reach * float(np.abs(spread).max()) / width) + 2
    first = np.ceil((centre - reach * np.abs(spread) - low) / width)
    walls = low + width * (first[:, None] + np.arange(most)[None, :])
    kinks = np.clip((walls - centre[:, None]) / spread[:, None], -reach, reach)
    ends = np.sort(np.concatenate([kinks, np.broadcast_to(even, (len(centre), len(even)))], 1), 1)
    t, w = np.polynomial.legendre.leggauss(14)
    middle, half = 0.5 * (ends[:, 1:] + ends[:, :-1]), 0.5 * np.diff(ends, axis=1)
    z = middle[..., None] + half[..., None] * t
    weights = half[..., None] * w * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.tensor(z.reshape(len(centre), -1)), torch.tensor(weights.reshape(len(centre), -1))


def _interpolate(x: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """The polynomial through ``values`` at the Chebyshev points x, at points within: its coefficients, then Clenshaw's sum."""
    coefficients = scipy.fft.dct(values.numpy(), type=1) / (len(x) - 1)
    coefficients[0] *= 0.5
    coefficients[-1] *= 0.5
    low, high = float(x[0]), float(x[-1])
    twice = (2 * (2 * at - (low + high)) / (low - high)).numpy()  # the points run as −cos, the series as cos
    b1, b2 = np.zeros_like(twice), np.zeros_like(twice)
    for c in coefficients[:0:-1]:
        b1, b2 = twice * b1 - b2 + c, b1
    return torch.from_numpy(0.5 * twice * b1 - b2 + coefficients[0])
