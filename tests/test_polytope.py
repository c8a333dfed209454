"""Polytope: marching against folding, projection against all active sets, hit-and-run against exact moments, refusals."""

import copy
import itertools
import math
import pickle
import re

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carom.domains import Hypercube
from carom.domains.facets import damp_facets, march
from carom.domains.nearest import nearest
from carom.domains.polytope import Polytope
from carom.domains.regular_simplex import RegularSimplex
from carom.validation import check_domain


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regular(sides: int, radius: float = 1.0, turn: float = 0.3) -> Polytope:
    angle = turn + 2 * math.pi * torch.arange(sides, dtype=torch.float64) / sides
    return Polytope(torch.stack([angle.cos(), angle.sin()], -1), torch.full((sides,), radius))


def box(low: list[float], high: list[float], **arguments: int) -> Polytope:
    eye = np.eye(len(low))
    return Polytope(np.concatenate([eye, -eye]), [*high, *(-v for v in low)], **arguments)


PENTAGON = regular(5)
TRIANGLE = Polytope([[-1, 0], [0, -2], [3, 3]], [0, 0, 3])
CORNER = Polytope([[-1, 0, 0], [0, -1, 0], [0, 0, -1], [1, 2, 1]], [0.0, 0.2, 0.0, 1.0])
BOX = box([-1.0, 0.0], [1.0, 3.0])
# the same wall twice, walls that touch in a corner only, walls far away, and a row of zeros
REDUNDANT = Polytope([[1, 0], [0, 1], [-1, 0], [0, -1], [2, 0], [0, 1], [1, 1], [0, 0]], [1, 1, 0, 0, 2, 3, 2, 1])


@pytest.mark.parametrize("body", [PENTAGON, TRIANGLE, CORNER, BOX, REDUNDANT, box([-2.0], [5.0])], ids=repr)
def test_laws(body: Polytope) -> None:
    check_domain(body)


@settings(max_examples=6)
@given(st.integers(0, 2**20), st.integers(1, 4))
def test_laws_of_any_polytope(seed: int, dim: int) -> None:
    """Random walls about a ball of radius 1 around a random centre, and a box that closes them."""
    random = generator(seed)
    normals = torch.randn(2 * dim, dim, dtype=torch.float64, generator=random)
    centre = 3 * torch.randn(dim, dtype=torch.float64, generator=random)
    eye = torch.eye(dim, dtype=torch.float64)
    A = torch.cat([normals / normals.norm(dim=-1, keepdim=True), eye, -eye])
    b = A @ centre + 1 + torch.cat([torch.rand(2 * dim, dtype=torch.float64, generator=random), f64(*[2.0] * 2 * dim)])
    body = Polytope(A, b)
    check_domain(body, seed=seed)


def test_facts() -> None:
    side = 2 * math.tan(math.pi / 5)
    assert PENTAGON.inradius == pytest.approx(1, abs=1e-12)
    assert PENTAGON.log_volume == pytest.approx(math.log(5 * side / 2), abs=1e-12)
    corners = PENTAGON.vertices
    assert corners.shape == (5, 2)
    assert ((corners - corners.roll(1, 0)).norm(dim=-1) - side).abs().max() <= 1e-12
    assert BOX.width == pytest.approx(3, abs=1e-14) and BOX.log_volume == pytest.approx(math.log(6), abs=1e-13)
    assert CORNER.log_volume == pytest.approx(math.log(1.4 * 0.7 * 1.4 / 6), abs=1e-13)
    assert REDUNDANT.vertices.shape == (4, 2) and REDUNDANT.log_volume == pytest.approx(0, abs=1e-13)
    # large offsets and tiny sizes: the linear programmes work in units of their own
    small = box([1e3, 2e3], [1e3 + 1e-3, 2e3 + 2e-3])
    assert small.width == pytest.approx(2e-3, rel=1e-9) and small.inradius == pytest.approx(5e-4, rel=1e-9)
    huge = box([-1e9] * 2, [1e9] * 2)
    assert huge.width == pytest.approx(2e9, rel=1e-12)


# --- reflection -------------------------------------------------------------------------------------------------------


def test_marching_in_a_box_is_folding() -> None:
    low, high = [-1.0, 0.0, 2.0], [1.0, 3.0, 2.5]
    body, cube = box(low, high), Hypercube((3,), low, high)
    x = cube.uniform(torch.float64).sample((400,), generator=generator())  # type: ignore[call-arg]
    x[:40, 0], x[20:60, 1] = -1.0, 3.0  # on walls and edges
    d = torch.randn(x.shape, dtype=torch.float64, generator=generator(1)) * torch.logspace(-2, 1.3, 400)[:, None]
    end = body.bounce(x, d)
    assert end.finished.all() and int(end.count.max()) > 50
    room = 4e-16 * (4 + d.norm(dim=-1) + 3 * end.count)
    assert ((end.x - cube.reflect(x, d)).abs().amax(-1) <= room).all()
    # the walls crossed are counted by the cells between start and end; a start on a wall belongs to two cells
    cells = torch.floor((x + d - cube.low) / (cube.high - cube.low)).abs().sum(-1).long()
    assert torch.equal(end.count[60:], cells[60:])


def test_into_a_corner_comes_back_along_the_same_line() -> None:
    """Two walls at a right angle hit at once turn the path round; so do edges and the corner of a cube."""
    body = box([0.0] * 3, [1.0] * 3)
    x = f64(0.25, 0.25, 0.25).expand(3, 3)
    d = f64(-0.75, -0.75, 0, -0.75, 0, 0, -0.75, -0.75, -0.75).reshape(3, 3)
    end = body.bounce(x, d)
    torch.testing.assert_close(end.x, torch.where(d != 0, 0.5, 0.25).double(), rtol=0, atol=1e-15)
    assert end.count.tolist() == [2, 1, 3]
    # at 60° three bounces turn a path into the corner round, whichever wall is first
    triangle = RegularSimplex(3)
    start, corner = f64(0.0, 0.1), triangle.from_probabilities(f64(1, 0, 0))
    end = march(start, 2 * (corner - start), triangle._normals, triangle._offsets, 10)
    torch.testing.assert_close(end.x, triangle.reflect(start, 2 * (corner - start)), rtol=0, atol=1e-15)


def test_a_march_is_a_ball_that_flies_at_unit_speed() -> None:
    """One ball at a time, by hand: straight on to the nearest wall ahead, mirrored there, until the length is used up."""
    x = PENTAGON.uniform(torch.float64).sample((30,), generator=generator())  # type: ignore[call-arg]
    d = 4 * torch.randn(x.shape, dtype=torch.float64, generator=generator(1))
    end, normals = PENTAGON.bounce(x, d), PENTAGON._normals
    assert end.finished.all() and int(end.count.max()) > 4
    for i in range(len(x)):
        at, v, left = x[i], d[i] / d[i].norm(), float(d[i].norm())
        for _ in range(int(end.count[i])):
            speed, gap = normals @ v, normals @ at + PENTAGON._offsets
            times = [float(-g / s) if s < -1e-12 and g > 1e-12 else math.inf for g, s in zip(gap, speed, strict=True)]
            j = int(np.argmin(times))
            at, left = at + times[j] * v, left - times[j]
            v = v - 2 * (normals[j] @ v) * normals[j]
        assert left >= 0
        torch.testing.assert_close(end.x[i], at + left * v, rtol=0, atol=1e-13)


@pytest.mark.montecarlo
@pytest.mark.parametrize("body", [PENTAGON, CORNER], ids=repr)
def test_reflection_keeps_the_uniform_law(body: Polytope) -> None:
    """Billiards preserve the uniform law with directions at random: moments before and after, five standard errors."""
    n = 6_000
    x = body.uniform(torch.float64).sample((n,), generator=generator())  # type: ignore[call-arg]
    y = body.reflect(x, 0.7 * body.width * torch.randn(x.shape, dtype=torch.float64, generator=generator(1)))
    for power in (1, 2, 3):
        a, b = (x - body.centre) ** power, (y - body.centre) ** power
        assert ((a.mean(0) - b.mean(0)).abs() <= 5 * (a.var(0) + b.var(0)).sqrt() / math.sqrt(n)).all()


def test_a_sample_that_bounces_too_often_says_so_and_spoils_no_other() -> None:
    body = box([0.0, 0.0], [1.0, 1.0], max_bounces=5)
    x, d = f64(0.5, 0.5).expand(3, 2), f64(0.1, 0.0, 5.0, 0.0, 9.0, 0.0).reshape(3, 2)
    end = body.bounce(x, d)
    assert end.finished.tolist() == [True, True, False] and end.count.tolist() == [0, 5, 5]
    assert body.contains(end.x).all()
    y = body.reflect(x, d)
    assert y.isnan().any(-1).tolist() == [False, False, True]
    torch.testing.assert_close(y[:2], f64(0.6, 0.5, 0.5, 0.5).reshape(2, 2), rtol=0, atol=1e-14)


def test_marching_and_projecting_without_readable_values() -> None:
    body = Polytope([[-1, 0], [0, -1], [1, 1]], [0, 0, 1], max_bounces=6)
    x = body.uniform(torch.float64).sample((8,), generator=generator())  # type: ignore[call-arg]
    d = 0.5 * torch.randn(x.shape, dtype=torch.float64, generator=generator(1))
    for function, inputs in ((body.reflect, (x, d)), (body.project, (x + 3 * d,))):
        eager = function(*inputs)
        compiled = torch.compile(function, backend="eager", fullgraph=True)(*inputs)
        for other in (compiled, torch.func.vmap(function)(*inputs)):
            torch.testing.assert_close(other, eager, rtol=0, atol=1e-15)


def test_a_sample_does_not_depend_on_its_batch_in_double_precision() -> None:
    x = CORNER.uniform(torch.float64).sample((300,), generator=generator())  # type: ignore[call-arg]
    d = torch.randn(x.shape, dtype=torch.float64, generator=generator(1))
    layer = torch.tensor(0.3, dtype=torch.float64)
    whole = CORNER.reflect(x, d), CORNER.project(x + d), CORNER.damp(x, d, layer)
    for i in range(300):
        alone = CORNER.reflect(x[i], d[i]), CORNER.project((x + d)[i]), CORNER.damp(x[i], d[i], layer)
        assert all(torch.equal(a, b[i]) for a, b in zip(alone, whole, strict=True))


def test_grazing_paths_come_to_an_end() -> None:
    """Along a wall, in eight dimensions, the sum n·v rounds to −1e-17 at times, and mirroring leaves such a rate as it is."""
    basis = torch.from_numpy(scipy.linalg.hadamard(8) / math.sqrt(8))
    body = Polytope(torch.cat([basis, -basis]), torch.full((16,), 3.0), max_bounces=30)
    coordinates = torch.randn(20_000, 8, dtype=torch.float64, generator=generator()).clamp(-2.9, 2.9)
    along = 0.3 * torch.randn(20_000, 8, dtype=torch.float64, generator=generator(1))
    coordinates[:, 0], along[:, 0] = 3.0, 0.0
    end = body.bounce(body.project(coordinates @ basis), along @ basis)
    assert end.finished.all() and int(end.count.max()) <= 8
    assert ((end.x @ basis[0]) - 3).abs().max() <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_start_a_rounding_behind_a_wall(dtype: torch.dtype) -> None:
    """States in float32 that contains() calls inside, up to 8 roundings behind their wall, slide along it and end within it."""
    corners, n = PENTAGON.vertices, 500
    side = torch.arange(n) % 5
    t = torch.linspace(0.1, 0.4, n, dtype=torch.float64)[:, None]
    a, b = corners[side], corners[(side + 1) % 5]
    x = ((a + t * (b - a)) * (1 + 6e-7)).float()
    assert PENTAGON.contains(x).all() and (PENTAGON._distances(x) < -3e-7).any(-1).all()
    d = (0.5 * (b - a)).to(dtype)
    end = PENTAGON.bounce(x, d)
    assert end.x.dtype == dtype and PENTAGON.contains(end.x).all() and int(end.count.max()) <= 2
    torch.testing.assert_close(end.x.double(), x.double() + 0.5 * (b - a), rtol=0, atol=2e-6)


def test_a_thousand_bounces_and_more() -> None:
    """As many as a straight path crosses cells; and no wall is left behind by more than rounding."""
    body, cube = box([0.0, 0.0], [1.0, 0.01], max_bounces=4000), Hypercube((2,), [0.0, 0.0], [1.0, 0.01])
    x = cube.uniform(torch.float64).sample((20,), generator=generator())  # type: ignore[call-arg]
    d = 20 + torch.rand(20, 2, dtype=torch.float64, generator=generator(1))
    end = body.bounce(x, d)
    assert end.finished.all() and int(end.count.min()) >= 2000 and body.contains(end.x).all()
    # a rounding of the velocity at each bounce, times what is left of the path
    torch.testing.assert_close(end.x, cube.reflect(x, d), rtol=0, atol=2.0**-52 * 21 * int(end.count.max()))


def test_results_have_the_common_dtype() -> None:
    x, d = PENTAGON.centre.float().expand(3, 2), torch.ones(3, 2, dtype=torch.float64)
    assert PENTAGON.reflect(x, d).dtype == PENTAGON.reflect(x.double(), d.float()).dtype == torch.float64
    assert PENTAGON.reflect(x, d.float()).dtype == torch.float32
    layer = torch.tensor(0.1)
    assert (
        PENTAGON.damp(x, d, layer).dtype == PENTAGON.damp(x.double(), d.float(), layer.double()).dtype == torch.float64
    )


# --- damping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_damping_where_more_facets_meet_than_there_are_dimensions(dtype: torch.dtype) -> None:
    signs = torch.cartesian_prod(*[f64(-1, 1)] * 3)
    cross = Polytope(signs, torch.ones(8))
    pyramid = Polytope([[2, 0, 1], [-2, 0, 1], [0, 2, 1], [0, -2, 1], [0, 0, -1]], [1, 1, 1, 1, 0])
    for body, apex, faces in ((cross, f64(1, 0, 0), signs[:, 0] > 0), (pyramid, f64(0, 0, 1), torch.arange(5) < 4)):
        v = torch.randn(50, 3, dtype=dtype, generator=generator())
        x = body.project(apex.to(dtype)).expand(50, 3)
        damped = body.damp(x, v, torch.tensor(0.1, dtype=dtype))
        normals = body._normals[faces].to(dtype)
        assert len(normals) == 4
        assert (damped @ normals.T).abs().max() <= 16 * torch.finfo(dtype).eps * v.abs().max()


def test_damping_by_walls_that_depend_on_one_another_spoils_no_other_sample() -> None:
    """A wall twice, and three walls in a plane; their systems are singular on the wall. Batch mates are what they are alone."""
    angles = f64(0, 2 * math.pi / 3, 4 * math.pi / 3)
    for normals in (f64(1, 0, 1, 0).reshape(2, 2), torch.stack([angles.cos(), angles.sin()], -1)):
        gram, width = normals @ normals.T, f64(1.0)
        distance = torch.tensor([0.0, math.nan, 0.5], dtype=torch.float64)[:, None].expand(3, len(normals))
        v = torch.randn(3, 2, dtype=torch.float64, generator=generator())
        got = damp_facets(v, distance, normals, gram, width)
        assert (normals @ got[0]).abs().max() <= 1e-15 and got[1].isnan().any() and got[2].isfinite().all()
        assert torch.equal(got[2], damp_facets(v[2], distance[2], normals, gram, width))


# --- projection -------------------------------------------------------------------------------------------------------


def nearest_of_all(body: Polytope, u: np.ndarray) -> np.ndarray:
    """The nearest point by trying every set of at most d walls: the feasible candidate at the least distance."""
    normals, offsets = body._normals.numpy(), body._offsets.numpy()
    best, distance = u, math.inf
    for count in range(len(u) + 1):
        for walls in itertools.combinations(range(len(offsets)), count):
            n = normals[list(walls)]
            y = u - np.linalg.pinv(n) @ (n @ u + offsets[list(walls)]) if count else u
            if (normals @ y + offsets >= -1e-12).all() and np.linalg.norm(y - u) < distance - 1e-13:
                best, distance = y, np.linalg.norm(y - u)
    return best


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_projection_against_every_active_set(dim: int) -> None:
    random = generator(dim)
    A = torch.randn(3 * dim, dim, dtype=torch.float64, generator=random)
    eye = torch.eye(dim, dtype=torch.float64)
    body = Polytope(torch.cat([A, eye, -eye]), torch.cat([A.norm(dim=-1), f64(*[1.5] * (2 * dim))]))
    u = 2 * torch.randn(12, dim, dtype=torch.float64, generator=random)
    y = body.project(u)
    want = torch.from_numpy(np.stack([nearest_of_all(body, v.numpy()) for v in u]))
    torch.testing.assert_close(y, want, rtol=0, atol=1e-13)
    assert body.contains(y).all() and torch.equal(body.project(y), y)
    single = body.project(u.float())
    torch.testing.assert_close(single.double(), y, rtol=0, atol=1e-5)
    # from far away nothing is lost but the rounding of u itself
    far = body.project(1e8 * u)
    assert body.contains(far).all()


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_cross_polytope_where_many_facets_meet_in_a_corner(dim: int) -> None:
    """{Σ|x_i| ≤ 1}: 2^d facets, 2^(d−1) of them at each corner; the projection shrinks all |u_i| by one number, cut at 0."""
    signs = torch.cartesian_prod(*[f64(-1, 1)] * dim)
    body = Polytope(signs, torch.ones(2**dim))
    u = torch.randn(60, dim, dtype=torch.float64, generator=generator()) * torch.logspace(-1, 2, 60)[:, None]
    u[:dim] = 3 * torch.eye(dim, dtype=torch.float64)  # straight to the corners
    low, high = torch.zeros(60, 1, dtype=torch.float64), u.abs().amax(-1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        above = (u.abs() - middle).clamp(min=0).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    inside = u.abs().sum(-1, keepdim=True) <= 1
    want = torch.where(inside, u, u.sign() * (u.abs() - high).clamp(min=0))
    y = body.project(u)
    assert ((y - want).abs().amax(-1) <= 1e-15 * (8 + u.abs().amax(-1))).all() and body.contains(y).all()
    assert body.vertices.shape == (2 * dim, dim)
    assert body.log_volume == pytest.approx(math.log(2**dim / math.factorial(dim)), abs=1e-12)
    # straight into the corner; only a right angle sends every such path straight back
    end = body.bounce(torch.zeros(1, dim, dtype=torch.float64), 1.7 * torch.eye(dim, dtype=torch.float64)[:1])
    assert end.finished.all() and body.contains(end.x).all() and float(end.x.norm()) <= 1
    if dim == 2:
        torch.testing.assert_close(end.x, f64(0.3, 0)[None], rtol=0, atol=1e-14)


def test_projection_in_many_dimensions_and_in_acute_corners() -> None:
    cube = box([0.0] * 30, [1.0] * 30)
    u = 3 * torch.randn(40, 30, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(cube.project(u), u.clamp(0, 1), rtol=0, atol=1e-14)
    needle = Polytope([[-1e-4, -1], [-1e-4, 1], [1, 0]], [0, 0, 1])  # walls at an angle of 2e-4 meet at 0
    y = needle.project(f64(-1, 0, -1e-5, 1e-3, 0.5, 1, 3, 0).reshape(4, 2))
    want = f64(0, 0, 0.0, 0.0, 0.5 + 5e-5, 5e-5, 1, 0).reshape(4, 2)
    # walls at an angle of 1e-4 are met to 1e-16, the tip of the needle only to 1e-12
    torch.testing.assert_close(y[[0, 3]], want[[0, 3]], rtol=0, atol=1e-12)
    slope = 1e-4
    for i in (1, 2):
        x, h = ((-1e-5, 1e-3), (0.5, 1.0))[i - 1]
        along = max((x + slope * h) / (1 + slope**2), 0.0)
        torch.testing.assert_close(y[i], f64(along, slope * along), rtol=0, atol=1e-12)


def test_projection_where_an_entering_wall_drives_out_several() -> None:
    """Many walls about a ball; u − y must be a sum of the outward normals at y with weights ≥ 0, which is what nearest means."""
    A = torch.randn(60, 5, dtype=torch.float64, generator=generator())
    A = A / A.norm(dim=-1, keepdim=True)
    body = Polytope(A, 1 + 0.1 * torch.rand(60, dtype=torch.float64, generator=generator(1)))
    u = 3 * torch.randn(200, 5, dtype=torch.float64, generator=generator(2))
    y = body.project(u)
    assert body.contains(y).all()
    for gap, move in zip(body._distances(y), u - y, strict=True):
        touched = A[gap <= 1e-12].T.numpy()
        residual = scipy.optimize.nnls(touched, move.numpy())[1] if touched.size else float(move.norm())
        assert residual <= 1e-12


def test_a_projection_that_runs_out_of_rounds_or_starts_nowhere_says_so() -> None:
    constants, tolerance = CORNER._constants(torch.device("cpu")), torch.full((4,), 1e-15, dtype=torch.float64)
    u = f64(0.1, 0, 0.1, -1, 0.1, 0.1, 9, -9, -9).reshape(3, 3)  # inside, before a wall, before a corner
    y = nearest(u, constants.normals, constants.offsets, constants.gram, tolerance, max_rounds=2)
    assert y.isnan().all(-1).tolist() == [False, False, True] and CORNER.contains(y[:2]).all()
    u = 3 * torch.randn(6, 3, dtype=torch.float64, generator=generator())
    clean = CORNER.project(u)
    for bad in (math.nan, math.inf, -math.inf):
        for axis in range(3):
            spoilt = u.clone()
            spoilt[2, axis] = bad
            for project in (CORNER.project, torch.func.vmap(CORNER.project)):
                y = project(spoilt)
                assert y[2].isnan().all()
                torch.testing.assert_close(y[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]], rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_contains_forgives_eight_roundings_and_no_more(dtype: torch.dtype) -> None:
    body, eps = box([-1.0, 0.0], [1.0, 3.0]), torch.finfo(dtype).eps
    # the scale of the wall x ≤ 1 is |b| + max |x| = 2, of y ≤ 3 it is 6
    for axis, end, scale in ((0, 1.0, 2), (1, 3.0, 6)):
        x = torch.full((2, 2), 0.5, dtype=dtype)
        x[:, axis] = end + torch.tensor([6, 12], dtype=torch.float64).to(dtype) * scale * eps
        assert body.contains(x).tolist() == [True, False]
        assert body.contains(x, atol=8 * scale * eps).all()


# --- uniform law ------------------------------------------------------------------------------------------------------


@pytest.mark.montecarlo
@pytest.mark.parametrize("dim", [2, 4])
def test_hit_and_run_has_the_moments_of_a_simplex(dim: int) -> None:
    """{x ≥ 0, Σ x_i/w_i ≤ 1}, long and thin: x/w is Dirichlet(1, …, 1), whose moments of order 1, 2 and 3 are known."""
    w = torch.logspace(0, 2, dim, dtype=torch.float64)
    eye = torch.eye(dim, dtype=torch.float64)
    body = Polytope(torch.cat([-eye, 1 / w[None]]), torch.cat([torch.zeros(dim), torch.ones(1)]))
    n = 4_000
    x = body.uniform(torch.float64).sample((n,), generator=generator()) / w  # type: ignore[call-arg]
    for power in (1, 2, 3):
        want = math.factorial(power) / math.prod(range(dim + 1, dim + 1 + power))
        values = torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) ** power
        assert ((values.mean(0) - want).abs() <= 4.5 * values.std(0) / math.sqrt(n)).all(), (power, values.mean(0))


@pytest.mark.montecarlo
def test_hit_and_run_in_a_long_body_across_the_axes() -> None:
    """A rectangle of side ratio 100 at 45°, whose bounding box is a square: E u² = 1/3, Var u² = 4/45, five standard errors."""
    turn = torch.tensor([[1, 1], [-1, 1]], dtype=torch.float64) / math.sqrt(2)
    half, n = f64(50, 0.5), 4_000
    body = Polytope(torch.cat([turn, -turn]), torch.cat([half, half]))
    u = body.uniform(torch.float64).sample((n,), generator=generator()) @ turn.T / half  # type: ignore[call-arg]
    assert (u.mean(0).abs() <= 5 * math.sqrt(1 / 3 / n)).all()
    assert (((u**2).mean(0) - 1 / 3).abs() <= 5 * math.sqrt(4 / 45 / n)).all()


def test_volume_beyond_reach_is_refused_when_it_is_needed() -> None:
    law = box([0.0] * 10, [1.0] * 10).uniform(torch.float64)
    x = law.sample((3,))
    with pytest.raises(ValueError, match=r"got 10 dimensions, expected at most 8 .* its samples do not"):
        law.log_prob(x)


# --- hulls, copies, refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_from_vertices_is_the_hull(dim: int) -> None:
    corners = 1e3 + 5 * torch.randn(3 * dim + 4, dim, dtype=torch.float64, generator=generator(dim))
    middle = corners.mean(0, keepdim=True)
    body = Polytope.from_vertices(torch.cat([corners, middle]))
    assert body.contains(corners).all()
    found = body.vertices
    # every corner found was given, and all given are in the hull of those found
    assert (found[:, None] - corners).norm(dim=-1).amin(-1).max() <= 1e-9
    assert Polytope.from_vertices(found).contains(corners, atol=1e-9).all()
    assert type(body.project(corners)) is torch.Tensor and len(body.config()["b"]) == len(body._normals)


def test_from_vertices_of_known_bodies() -> None:
    cube = Polytope.from_vertices(list(itertools.product([0, 2], [0, 1], [-1, 1])), max_bounces=7)
    assert len(cube.config()["b"]) == 6 and cube.max_bounces == 7  # two triangles of a face are one wall
    assert cube.log_volume == pytest.approx(math.log(4), abs=1e-13)
    segment = Polytope.from_vertices([[3.0], [-1.0], [0.5]])
    assert (float(segment.low), float(segment.high)) == (-1, 3)
    triangle = RegularSimplex(3)
    ours = Polytope.from_vertices(triangle.from_probabilities(torch.eye(3, dtype=torch.float64)))
    u = 3 * torch.randn(50, 2, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(ours.project(u), triangle.project(u), rtol=0, atol=1e-14)


def test_constants_are_copied_to_a_device_once_and_stay_out_of_copies() -> None:
    body, meta = regular(6), torch.device("meta")

    def touch(x: torch.Tensor) -> torch.Tensor:
        return x.sum() + 0 * body._constants(meta).normals.shape[0]

    torch.func.grad(touch)(torch.ones(2))
    with torch.inference_mode():
        first = body._constants(meta)
    assert not torch._C._functorch.is_functorch_wrapped_tensor(first.normals) and not first.normals.is_inference()
    assert body._constants(meta) is first and first.normals.device == meta
    for again in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):
        assert again.config() == body.config() and list(again._constants._kept) == [torch.device("cpu")]
        assert torch.equal(again.project(f64(9, 9)), body.project(f64(9, 9)))


def test_damping_reads_no_values() -> None:
    """On a device without values nothing can be waited for."""
    x = torch.zeros(4, 3, device="meta")
    assert CORNER.damp(x, x, torch.tensor(0.1)).shape == RegularSimplex(4).damp(x, x, torch.tensor(0.1)).shape == (4, 3)


SQUARE = [[1, 0], [-1, 0], [0, 1], [0, -1]]
REFUSALS = [
    (lambda: Polytope([[1, 0], [-1, 0], [0, 1], [0, -1]], [1, -2, 1, 1]), "contradict each other.* at least 0.5"),
    (lambda: Polytope([[0, 0], *SQUARE], [-1, 1, 1, 1, 1]), "row 0 of A is 0 and b is -1"),
    (lambda: Polytope(SQUARE, [1, -1, 1, 1]), "inradius of .* flat"),
    (lambda: Polytope(SQUARE[:3], [1, 1, 1]), r"unbounded towards -x\[1\]"),
    (lambda: Polytope([[1, 0], [-1, 0]], [1, 1]), r"unbounded towards [-+]x\[1\].*Orthant"),
    (lambda: Polytope([[1, 1]], [1]), r"unbounded towards -x\[0\]"),
    (lambda: Polytope([[0, 0]], [1]), r"unbounded towards -x\[0\]"),
    (lambda: Polytope([[-1, 0], [0, -1], [1, -1]], [0, 0, 1]), r"unbounded towards \+x\[[01]\]"),
    (lambda: Polytope([1, 0], [1, 0]), r"A: got shape \(2,\), expected \[m, d\]"),
    (lambda: Polytope(SQUARE, [1, 1, 1]), r"b: got shape \(3,\), expected \(4,\)"),
    (lambda: Polytope(SQUARE, [1, 1, 1, math.inf]), "b: got entries that are not finite"),
    (lambda: Polytope([[math.nan, 0], *SQUARE[1:]], [1, 1, 1, 1]), "A: got entries that are not finite"),
    (lambda: Polytope(SQUARE, [1, 1, 1, 1], max_bounces=0), "max_bounces: got 0.*whole number of at least 1"),
    (lambda: Polytope(SQUARE, [1, 1, 1, 1], max_bounces=2.5), "max_bounces: got 2.5.*whole number"),
    (lambda: Polytope(SQUARE, [1, 1, 1, 1], max_bounces=math.inf), "max_bounces: got inf.*whole number"),
    (lambda: Polytope.from_vertices([1, 2, 3]), r"points: got shape \(3,\), expected \[n, d\]"),
    (lambda: Polytope.from_vertices([[0, 0], [1, 1], [2, 2]]), "got 3 points that span 1 of 2 dimensions.*drop"),
    (lambda: Polytope.from_vertices([[0, 0, 0], [1, 0, 0], [0, 1, 0]]), "span 2 of 3 dimensions"),
    (lambda: Polytope.from_vertices([[2.0], [2.0]]), "span 0 of 1 dimensions"),
    (lambda: Polytope.from_vertices(torch.zeros(0, 2)), "got 0 points"),
    (lambda: Polytope.from_vertices([[0, 0], [1, math.inf], [0, 1]]), "points: got entries that are not finite"),
]
MISTYPED = [
    (lambda: Polytope("walls", [1]), "A: got 'walls', expected numbers"),
    (lambda: Polytope([[1, 0], [1]], [1, 1]), "A: got .*rows of one length"),
    (lambda: Polytope(SQUARE, [1, 1, 1, 1], max_bounces="a"), "max_bounces: got 'a', expected a whole number"),
    (lambda: Polytope.from_vertices({"x": 1}), "points: got .*expected numbers"),
]


@pytest.mark.parametrize(("call", "message"), MISTYPED, ids=[m for _, m in MISTYPED])
def test_what_is_no_number_is_refused(call, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[m for _, m in REFUSALS])
def test_bad_input_is_refused_with_what_was_got_and_the_fix(call, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)


def test_config_keeps_the_rows_as_given() -> None:
    config = TRIANGLE.config()
    assert config == {"type": "Polytope", "A": [[-1, 0], [0, -2], [3, 3]], "b": [0, 0, 3], "max_bounces": 1000}
    assert torch.equal(Polytope(**{k: v for k, v in config.items() if k != "type"})._normals, TRIANGLE._normals)
