"""hypothesis strategies: arbitrary domains, schedules, mixtures, grids and starts, for property tests of objects of one's own.

The only module of the library that imports hypothesis (the extra ``dev``): ``from carom.validation import strategies``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..domains import (
    Ball,
    Domain,
    Euclidean,
    Hypercube,
    Orthant,
    Polytope,
    Product,
    RegularSimplex,
    Simplex,
    Torus,
)
from ..processes import EDM, VE, VP, CosineVP, Diffusion, Discrete, FlowMatching, Schedule, SubVP
from .problems import MixtureProblem


def _floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_infinity=False)


def event_shapes(max_dims: int = 2, max_side: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of at least one dimension, e.g. (2, 3)."""
    return st.lists(st.integers(1, max_side), min_size=1, max_size=max_dims).map(tuple)


@st.composite
def boxes(draw: st.DrawFn) -> Hypercube:
    """Unit cubes and boxes with bounds of their own on each axis, widths from 0.1 to 20."""
    shape = draw(event_shapes())
    if draw(st.booleans()):
        return Hypercube(shape)
    count = int(torch.Size(shape).numel())
    low = torch.tensor(draw(st.lists(_floats(-5, 5), min_size=count, max_size=count)), dtype=torch.float64).reshape(
        shape
    )
    width = torch.tensor(draw(st.lists(_floats(0.1, 20), min_size=count, max_size=count)), dtype=torch.float64).reshape(
        shape
    )
    return Hypercube(shape, low, low + width)


@st.composite
def open_boxes(draw: st.DrawFn) -> Hypercube:
    """Boxes of which some ends are open."""
    box = draw(boxes())
    count = 2 * int(torch.Size(box.event_shape).numel())
    opened = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count))).reshape(2, *box.event_shape)
    infinity = torch.tensor(torch.inf, dtype=torch.float64)
    return Hypercube(
        box.event_shape, torch.where(opened[0], -infinity, box.low), torch.where(opened[1], infinity, box.high)
    )


def simplices() -> st.SearchStrategy[Simplex]:
    """Up to five categories at up to two positions."""
    shapes = st.sampled_from([(), (1,), (2,)])
    return st.builds(Simplex, st.integers(2, 5), shapes)


def kernel_domains() -> st.SearchStrategy[Domain]:
    """Every domain of the library whose kernel is exact at every σ, but for products."""
    return st.one_of(
        boxes(),
        open_boxes(),
        event_shapes().map(Orthant),
        event_shapes().map(Euclidean),
        st.builds(Torus, event_shapes(), _floats(0.2, 10)),
        simplices(),
        st.integers(2, 3).map(RegularSimplex),
    )


@st.composite
def polytopes(draw: st.DrawFn) -> Polytope:
    """Convex polygons and polyhedra around the origin: a box cut by up to four planes at distances from 0.3 to 1."""
    dim = draw(st.integers(1, 3))
    cuts = draw(st.lists(st.tuples(*[_floats(-1, 1)] * dim).filter(lambda n: max(map(abs, n)) > 0.1), max_size=4))
    normals = torch.cat([torch.eye(dim), -torch.eye(dim), torch.tensor(cuts).reshape(-1, dim)]).double()
    distances = draw(st.lists(_floats(0.3, 1), min_size=len(normals), max_size=len(normals)))
    return Polytope(normals, torch.tensor(distances, dtype=torch.float64) * normals.square().sum(-1).sqrt())


def domains() -> st.SearchStrategy[Domain]:
    """Every domain of the library."""
    single = st.one_of(
        kernel_domains(),
        st.integers(4, 6).map(RegularSimplex),
        st.builds(Ball, st.integers(1, 3), _floats(0.3, 5)),
        polytopes(),
    )
    pairs = st.lists(kernel_domains(), min_size=1, max_size=2).map(lambda parts: Product(*parts))
    return st.one_of(single, pairs)


def alphas_cumprod(max_levels: int = 60) -> st.SearchStrategy[list[float]]:
    """Tables of ᾱ that decrease strictly from below 1 to above 0, with uneven steps."""
    betas = st.lists(_floats(1e-3, 0.4), min_size=3, max_size=max_levels)
    return betas.map(lambda b: (1 - torch.tensor(b, dtype=torch.float64)).cumprod(0).tolist())


def schedules(unit_scale: bool = False) -> st.SearchStrategy[Schedule]:
    """Every schedule of the library; with ``unit_scale`` only those that a domain with walls admits."""
    ends = st.tuples(_floats(1e-3, 0.1), _floats(1.0, 100.0))
    unit = [ends.map(lambda e: VE(*e)), ends.map(lambda e: EDM(*e))]
    if unit_scale:
        return st.one_of(*unit)
    betas = st.tuples(_floats(0.05, 2.0), _floats(3.0, 25.0))
    return st.one_of(
        *unit,
        betas.map(lambda b: VP(*b)),
        betas.map(lambda b: SubVP(*b)),
        _floats(1e-3, 0.05).map(CosineVP),
        st.just(FlowMatching()),
        alphas_cumprod().map(Discrete),
    )


def smooth_schedules() -> st.SearchStrategy[Schedule]:
    """Schedules without kinks: all but tables, on which high orders cannot be measured."""
    return schedules().filter(lambda s: not isinstance(s, Discrete))


@st.composite
def mixtures(draw: st.DrawFn, dim: int = 1, schedule: st.SearchStrategy[Schedule] | None = None) -> MixtureProblem:
    """Mixtures of one to three Gaussians in R^dim (one in several dimensions, where the flow is closed), stds from 0.3 to 1.

    In several dimensions the axes' stds lie apart: a rule's leading error can vanish for one of them by chance, hardly for two.
    """
    process = Diffusion(Euclidean((dim,)), draw(schedule or smooth_schedules()))
    count = draw(st.integers(1, 3)) if dim == 1 else 1
    weights = tuple(draw(st.lists(_floats(0.2, 1.0), min_size=count, max_size=count)))
    means = tuple(tuple(draw(st.lists(_floats(-1.5, 1.5), min_size=dim, max_size=dim))) for _ in range(count))
    bands = [(0.3, 1.0)] if dim == 1 else [(0.3, 0.45), (0.7, 1.0)]
    stds = [[draw(_floats(*bands[i % len(bands)])) for i in range(dim)] for _ in range(count)]
    covariances = tuple(
        tuple(tuple(s[i] ** 2 if i == j else 0.0 for j in range(dim)) for i in range(dim)) for s in stds
    )
    return MixtureProblem(process, weights, means, covariances)


@st.composite
def grids(draw: st.DrawFn, sigma_max: float = 2.0, sigma_min: float = 0.2) -> Callable[[Diffusion, int], Tensor]:
    """(process, n) → n levels from σ_max to σ_min, uniform in ln σ after a smooth monotone warp u + a u (1 − u), |a| ≤ ½."""
    warp = draw(_floats(-0.5, 0.5))

    def grid(process: Diffusion, n: int) -> Tensor:
        u = torch.linspace(0, 1, n, dtype=torch.float64)
        u = u + warp * u * (1 - u)
        first, last = torch.tensor([sigma_max, sigma_min], dtype=torch.float64).log()
        return process.schedule.time((first + u * (last - first)).exp())

    return grid


def sigmas(low: float = 1e-4, high: float = 1e3) -> st.SearchStrategy[float]:
    """Noise levels, uniform in ln σ."""
    exponent = st.tuples(st.just(torch.tensor(low).log10().item()), st.just(torch.tensor(high).log10().item()))
    return exponent.flatmap(lambda e: _floats(e[0], e[1])).map(lambda v: 10.0**v)


@st.composite
def starts(draw: st.DrawFn, problem: MixtureProblem, t: float, n: int = 4) -> Tensor:
    """n ≥ 2 states within two standard deviations of x_t's mean, float64 ``[n, d]``; the last is 0.7 of them away, since a
    start at a fixed point of the flow alone would show no error."""
    mean, covariance = problem.moments(t)
    z = torch.tensor(
        draw(st.lists(st.lists(_floats(-2, 2), min_size=len(mean), max_size=len(mean)), min_size=n, max_size=n)),
        dtype=torch.float64,
    )
    z[-1] = 0.7
    return mean + z * covariance.diagonal().sqrt()
