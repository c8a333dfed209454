"""RegularSimplex: coordinates, folding against marching, and the triangle's kernel against 50-digit sums over reflected images."""

import copy
import itertools
import math
import pickle
import re
from functools import cache

import mpmath as mp
import numpy as np
import pytest
import torch

from carom.domains import FoldedDomain, Hypercube, KernelDomain
from carom.domains.facets import damp_facets, march
from carom.domains.regular_simplex import RegularSimplex
from carom.validation import check_domain

mp.mp.dps = 50
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# both sides of every switch (0.26, 0.37, 0.5), far beyond on both sides, and every regime between
SIGMAS = (
    1e-4,
    1e-3,
    0.02,
    0.1,
    0.2,
    0.259,
    0.261,
    0.3,
    0.369,
    0.371,
    0.45,
    0.499,
    0.501,
    0.6,
    0.8,
    1.2,
    1.7,
    2.4,
    10.0,
    1e3,
)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(domain: RegularSimplex, n: int, seed: int = 0) -> torch.Tensor:
    return domain.uniform(torch.float64).sample((n,), generator=generator(seed))  # type: ignore[call-arg]


@pytest.mark.parametrize("categories", [2, 3, 4, 6])
def test_laws(categories: int) -> None:
    check_domain(RegularSimplex(categories))


@pytest.mark.parametrize("categories", [2, 3, 4, 7, 50])
def test_coordinates_are_an_isometry_with_the_matrix_of_helmert(categories: int) -> None:
    domain = RegularSimplex(categories)
    basis = np.zeros((categories - 1, categories))
    for k in range(1, categories):
        basis[k - 1, :k] = 1
        basis[k - 1, k] = -k
        basis[k - 1] /= math.sqrt(k * (k + 1))
    p = torch.rand(20, categories, dtype=torch.float64, generator=generator()).exp()
    p = torch.cat([p / p.sum(-1, keepdim=True), torch.eye(categories, dtype=torch.float64)])
    x = domain.from_probabilities(p)
    # sums of K terms of at most 1
    room = 2 * categories * 2.0**-52
    assert (x - p @ torch.from_numpy(basis).T).abs().max() <= room
    assert (domain.to_probabilities(x) - p).abs().max() <= room
    assert domain.contains(x).all() and (domain.to_probabilities(x) >= 0).all()
    distances = [(v[:, None] - v).norm(dim=-1) for v in (x, p)]
    torch.testing.assert_close(*distances, rtol=0, atol=4 * room)
    single = domain.from_probabilities(p.float())
    assert (domain.to_probabilities(single).double() - p).abs().max() <= 2 * categories * 2.0**-23
    domain.from_probabilities(domain.to_probabilities(x))


def test_volume_is_that_of_the_triangle_and_the_tetrahedron_of_side_root_two() -> None:
    for categories, volume in ((2, math.sqrt(2)), (3, math.sqrt(3) / 2), (4, 2**1.5 / (6 * math.sqrt(2)))):
        assert float(RegularSimplex(categories).uniform().entropy()) == pytest.approx(math.log(volume), abs=1e-14)


@pytest.mark.parametrize("categories", [2, 3, 5])
def test_facets_are_where_the_geometry_puts_them(categories: int) -> None:
    """The corner i is at the height √(K/(K−1)) over its wall; normals are unit vectors that meet at the cosine −1/(K−1)."""
    domain = RegularSimplex(categories)
    corners = domain.from_probabilities(torch.eye(categories, dtype=torch.float64))
    middle = corners.mean(0)
    normals = torch.stack([domain.inward_normal((corners.sum(0) - c) / (categories - 1)) for c in corners])
    gram = normals @ normals.T
    want = torch.full_like(gram, -1 / (categories - 1)).fill_diagonal_(1.0)
    torch.testing.assert_close(gram, want, rtol=0, atol=1e-14)
    height = (normals * (corners - (corners.sum(0) - corners) / (categories - 1))).sum(-1)
    torch.testing.assert_close(
        height, torch.full_like(height, math.sqrt(categories / (categories - 1))), rtol=0, atol=1e-14
    )
    radius = 1 / math.sqrt(categories * (categories - 1))
    assert float(domain.boundary_distance(middle)) == pytest.approx(radius, abs=1e-15)


def test_two_and_three_categories_fold_and_survive_copies() -> None:
    for categories in (2, 3, 4):
        domain = RegularSimplex(categories, max_bounces=77)
        for again in (copy.deepcopy(domain), pickle.loads(pickle.dumps(domain))):
            assert type(again) is type(domain) and again.config() == domain.config()
            assert isinstance(again, FoldedDomain) is isinstance(again, KernelDomain) is (categories < 4)
        assert repr(domain) == f"RegularSimplex({categories})" and domain.config()["type"] == "RegularSimplex"
        assert domain.config() == {"type": "RegularSimplex", "categories": categories, "max_bounces": 77}


@pytest.mark.parametrize("categories", [2, 3])
def test_folding_is_marching(categories: int) -> None:
    """Two roads to the same place: the arithmetic of ⌊p⌋, and bouncing from wall to wall."""
    domain = RegularSimplex(categories)
    x = uniform(domain, 300)
    d = torch.randn(x.shape, dtype=torch.float64, generator=generator(1)) * torch.logspace(-2, 1.5, 300)[:, None]
    end = march(x, d, domain._normals, domain._offsets, 500)
    assert end.finished.all() and int(end.count.max()) > 40
    # each bounce rounds what is left of the path, so that marching errs by up to ε · length · bounces
    assert ((domain.reflect(x, d) - end.x).abs() <= (1e-15 * (1 + d.abs().amax(-1)) * (1 + end.count))[:, None]).all()
    assert torch.equal(domain.bounce(x, d).count, end.count)


def test_the_fold_is_right_at_corners_walls_and_far_away() -> None:
    domain = RegularSimplex(3)
    corners = domain.from_probabilities(torch.eye(3, dtype=torch.float64))
    lattice = torch.cartesian_prod(*[torch.arange(-4.0, 5.0, dtype=torch.float64)] * 2)
    points = corners[2] + lattice @ (corners[:2] - corners[2])  # all corners of the tiling
    x, _ = domain.fold(points)
    nearest = (x[:, None] - corners).norm(dim=-1).min(-1)
    assert float(nearest.values.max()) <= 1e-14
    # the colouring of the corners: translations by a side go through all three
    assert (nearest.indices == ((2 - 2 * lattice[:, 0] - lattice[:, 1]) % 3).long()).all()
    assert domain.contains(domain.fold(points * 1e7 + 0.1)[0]).all()
    assert domain.contains(domain.fold((points * 1e3 + 0.1).float())[0]).all()


def test_projection_is_the_nearest_probability_vector() -> None:
    """KKT: p = max(v − λ, 0) with one λ for all entries, here found by bisection."""
    domain = RegularSimplex(5)
    u = 2 * torch.randn(50, 4, dtype=torch.float64, generator=generator())
    got = domain.to_probabilities(domain.project(u))
    v = domain._barycentric(u).numpy()
    low, high = v.min(-1) - 1, v.max(-1)
    for _ in range(200):
        middle = (low + high) / 2
        above = np.maximum(v - middle[:, None], 0).sum(-1) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    torch.testing.assert_close(got, torch.from_numpy(np.maximum(v - low[:, None], 0)), rtol=0, atol=4e-15)
    far = domain.project(u * 1e9)
    assert domain.contains(far).all()


@pytest.mark.parametrize("categories", [2, 3, 5, 40])
@pytest.mark.parametrize("width", [1e-3, 0.3, 50.0])
def test_damping_is_that_of_facets(categories: int, width: float) -> None:
    """The closed form against the system of equations, with s = 0 for none, some, and all but one of the walls."""
    domain = RegularSimplex(categories)
    p = torch.rand(60, categories, dtype=torch.float64, generator=generator())
    for row in range(30):
        p[row, torch.randperm(categories, generator=generator(row))[: 1 + row % (categories - 1)]] = 0
    x = domain.from_probabilities(p / p.sum(-1, keepdim=True))
    distance, v = (
        domain._barycentric(x) * domain._stretch,
        torch.randn(60, categories - 1, generator=generator(1)).double(),
    )
    normals, w = domain._normals, torch.tensor(width, dtype=torch.float64)
    want = damp_facets(v, distance, normals, normals @ normals.T, w)
    got = domain.damp(x, v, w)
    # the system itself loses what its condition, up to w over the largest distance, takes
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14 * (10 + width) * categories)
    on_walls = (distance <= 1e-16) & (torch.arange(60) < 30)[:, None]
    assert on_walls.any() and ((got @ normals.T)[on_walls].abs() <= 1e-14 + 1e-15 / width).all()
    single = domain.damp(domain.project(x.float()), v.float(), w.float())
    assert single.dtype == torch.float32 and single.isfinite().all()


def test_twenty_thousand_categories_cost_no_square() -> None:
    domain, k = RegularSimplex(20_000), 20_000
    x = domain.uniform(torch.float32).sample((2,), generator=generator())  # type: ignore[call-arg]
    v = torch.randn(2, k - 1, generator=generator(1))
    damped = domain.damp(x, v, torch.tensor(1e-6))
    assert damped.isfinite().all() and (damped.norm(dim=-1) <= v.norm(dim=-1)).all()
    corner = domain.from_probabilities(torch.nn.functional.one_hot(torch.tensor(5), k).double())
    # all walls but the one opposite meet in a corner: nothing is left
    assert domain.damp(corner, v[0].double(), torch.tensor(0.1).double()).abs().max() <= 1e-12
    assert domain.contains(domain.project(3 * v)).all() and domain.boundary_distance(x).shape == (2,)
    assert float(domain.inward_normal(x).double().norm(dim=-1).sub(1).abs().max()) <= 1e-6
    assert "_normals" not in domain.__dict__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("categories", [2, 3, 4])
def test_contains_forgives_eight_roundings_and_no_more(categories: int, dtype: torch.dtype) -> None:
    domain = RegularSimplex(categories)
    normal, eps = domain._normals[0], torch.finfo(dtype).eps
    wall = -domain.inradius * normal
    beyond = [(wall - n * eps * normal).to(dtype) for n in (5.0, 14.0)]
    assert [bool(domain.contains(x)) for x in beyond] == [True, False]


@pytest.mark.parametrize("categories", [2, 3, 4])
def test_results_have_the_common_dtype(categories: int) -> None:
    domain = RegularSimplex(categories)
    x = domain.uniform(torch.float32).sample((3,), generator=generator())  # type: ignore[call-arg]
    assert domain.reflect(x, x.double()).dtype == domain.reflect(x.double(), x).dtype == torch.float64
    assert domain.damp(x, x.double(), torch.tensor(0.1)).dtype == torch.float64
    if isinstance(domain, KernelDomain):
        for a, b, dtype in ((x, x.double(), torch.float64), (x.double(), x, torch.float64), (x, x, torch.float32)):
            law = domain.heat_kernel(b, 0.3)
            assert all(v.dtype == dtype for v in (law.log_prob(a), law.score(a), *law.log_prob_and_score(a)))


@pytest.mark.montecarlo
def test_uniform_is_dirichlet() -> None:
    """E p_i = 1/K, Var p_i = (K − 1)/(K²(K + 1)); five standard errors."""
    k, n = 4, 20_000
    domain = RegularSimplex(k)
    p = domain.to_probabilities(uniform(domain, n))
    error = 5 * p.std(0) / math.sqrt(n)
    assert ((p.mean(0) - 1 / k).abs() <= error).all()
    square = (p - 1 / k) ** 2
    assert ((square.mean(0) - (k - 1) / (k**2 * (k + 1))).abs() <= 5 * square.std(0) / math.sqrt(n)).all()


# --- the triangle's kernel --------------------------------------------------------------------------------------------


@cache
def group() -> list[tuple[mp.matrix, mp.matrix]]:
    """x ↦ M x + t for every element of the group up to a distance, found by reflecting in the three sides again and again."""
    corners = [
        mp.matrix(v)
        for v in ((mp.sqrt("0.5"), 1 / mp.sqrt(6)), (-mp.sqrt("0.5"), 1 / mp.sqrt(6)), (0, -2 / mp.sqrt(6)))
    ]
    mirrors = []
    for i in range(3):
        a, b = corners[(i + 1) % 3], corners[(i + 2) % 3]
        along = (b - a) / mp.norm(b - a)
        linear = 2 * along * along.T - mp.eye(2)
        mirrors.append((linear, a - linear * a))
    found, queue = {}, [(mp.eye(2), mp.matrix(2, 1))]
    centre, mark = mp.matrix((0, 0)), mp.matrix(("0.1", "0.03"))
    while queue:
        m, t = queue.pop()
        place = m * mark + t
        key = (round(float(place[0]), 6), round(float(place[1]), 6))
        if key in found or mp.norm(m * centre + t) > 27:
            continue
        found[key] = m, t
        queue += [(m * r, m * s + t) for r, s in mirrors]
    return sorted(found.values(), key=lambda e: mp.norm(e[1]))


@cache
def exact_group() -> list[tuple[mp.mpf, ...]]:
    return [(*m, *t) for m, t in group()]


@cache
def group_arrays() -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([[float(v) for v in e[i]] for e in group()]) for i in (0, 1))  # type: ignore[return-value]


def triangle_reference(x, x0, sigma: float, room: float) -> tuple[float, np.ndarray, float]:
    """(log p, score, how far the score moves when x and x0 move by ``room``), from 50-digit images; uniform above σ = 3.5."""
    if sigma > 3.5:  # what is left of the first mode is e^{-53}
        return math.log(2 / math.sqrt(3)), np.zeros(2), 0.0
    linear, shift = group_arrays()
    rough = ((np.asarray(x) - (linear.reshape(-1, 2, 2) @ np.asarray(x0) + shift)) ** 2).sum(-1)
    near = np.nonzero(rough <= rough.min() + 2 * 46 * sigma**2 + 1e-9)[0]
    x, x0, s = mp.matrix(x), mp.matrix(x0), mp.mpf(sigma)
    elements = exact_group()
    images = [
        (a * x0[0] + b * x0[1] + e, c * x0[0] + d * x0[1] + f) for a, b, c, d, e, f in (elements[i] for i in near)
    ]
    away = [(y[0] - x[0], y[1] - x[1]) for y in images]
    exponents = [-(a * a + b * b) / (2 * s * s) for a, b in away]
    top = max(exponents)
    weights = [mp.exp(e - top) for e in exponents]
    total = mp.fsum(weights)
    score = [mp.fsum(w * a[i] for w, a in zip(weights, away, strict=True)) / total / s**2 for i in (0, 1)]
    log_p = top + mp.log(total) - 2 * mp.log(s) - mp.log(2 * mp.pi)
    # derivatives of the posterior mean in x and in x0
    w = np.array([float(v / total) for v in weights])[:, None]
    a, m = np.array([[float(v) for v in d] for d in away]), linear[near].reshape(-1, 2, 2)
    pull = (m.transpose(0, 2, 1) @ a[:, :, None])[:, :, 0]
    centred = a - (w * a).sum(0)
    by_x = -np.eye(2) / sigma**2 + (w * centred).T @ a / sigma**4
    by_x0 = (w[:, :, None] * m).sum(0) / sigma**2 - (w * centred).T @ pull / sigma**4
    return float(log_p), np.array([float(v) for v in score]), room * float(np.abs(by_x).sum() + np.abs(by_x0).sum())


def spots(dtype: torch.dtype) -> list[list[float]]:
    """Corners, points on walls, a rounding and a little from walls, inside, with the centre."""
    domain = RegularSimplex(3)
    tiny = float(torch.finfo(dtype).eps)
    p = [
        (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0), (0.3, 0, 0.7), (0, 0.999, 0.001),
        (1 - 2 * tiny, tiny, tiny), (tiny, 0.4, 0.6 - tiny), (1e-3, 0.25, 0.749), (1 / 3, 1 / 3, 1 / 3), (0.6, 0.3, 0.1),
    ]  # fmt: skip
    return domain.from_probabilities(torch.tensor(p, dtype=torch.float64)).to(dtype).tolist()


@cache
def triangle_cases(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """(x, x0, σ, log p, score, sensitivity)."""
    places = spots(dtype)
    grid = list(itertools.product(places, places, SIGMAS))
    grid = grid[:: 7 if dtype == torch.float64 else 11]  # 7 and 11 do not divide the number of σ
    draws = uniform(RegularSimplex(3), 200, 5).to(dtype).tolist()
    levels = (10 ** (4.5 * torch.rand(100, dtype=torch.float64, generator=generator(3)) - 4)).to(dtype).tolist()
    grid += list(zip(draws[:60], draws[100:160], levels[:60], strict=True))
    sigmas = torch.tensor([g[2] for g in grid], dtype=dtype).tolist()
    room = 4 * float(torch.finfo(dtype).eps) / 2
    values = [triangle_reference(x, x0, s, room) for (x, x0, _), s in zip(grid, sigmas, strict=True)]
    return (
        torch.tensor([g[0] for g in grid], dtype=dtype),
        torch.tensor([g[1] for g in grid], dtype=dtype),
        torch.tensor(sigmas, dtype=dtype),
        f64(*(v[0] for v in values)),
        torch.from_numpy(np.stack([v[1] for v in values])),
        f64(*(v[2] for v in values)),
    )


@pytest.mark.parametrize("path", ["split", "select"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_triangle_kernel_against_50_digits(dtype: torch.dtype, path: str) -> None:
    """Equal to the exact score at a point within 4 ulp (where images tie the score is that ill-conditioned), and to 1e-12."""
    x, x0, sigma, log_p, score, sensitivity = triangle_cases(dtype)

    def both(x: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return RegularSimplex(3).unchecked_kernel(x0, sigma).log_prob_and_score(x)

    call = both if path == "split" else torch.func.vmap(both)
    got_log, got_score = (v.double() for v in call(x, x0, sigma))
    s, tolerance, room = sigma.double(), TOLERANCE[dtype], 4 * torch.finfo(dtype).eps / 2
    size = score.abs().amax(-1)
    error = (got_score - score).abs().amax(-1) - sensitivity
    relative = error * s / (1 + size * s)
    i = int(relative.argmax())
    assert torch.isfinite(got_score).all() and relative[i] <= tolerance, (float(relative[i]), x[i], x0[i], sigma[i])
    error = ((got_log - log_p).abs() - 4 * size * room) / (1 + log_p.abs())
    i = int(error.argmax())
    assert error[i] <= tolerance, (float(error[i]), x[i], x0[i], sigma[i])


def duffy(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights that integrate smooth functions over the triangle."""
    t, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(n))
    t, w = (t + 1) / 2, w / 2
    a, b = torch.cartesian_prod(t, t).unbind(-1)
    p = torch.stack([1 - a, a * b, a * (1 - b)], -1)
    return RegularSimplex(3)._to_plane(p), torch.cartesian_prod(w, w).prod(-1) * a * math.sqrt(3)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.49, 0.51, 0.9, 2.0])
def test_triangle_kernel_has_mass_one_and_is_a_semigroup(sigma: float) -> None:
    domain = RegularSimplex(3)
    nodes, weights = duffy(60)
    assert float(weights.sum()) == pytest.approx(math.sqrt(3) / 2, abs=1e-14)
    starts = torch.tensor(spots(torch.float64), dtype=torch.float64)
    density = domain.heat_kernel(starts[:, None], sigma).log_prob(nodes).exp()
    mass = (density * weights).sum(-1)
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-11)
    onwards = domain.heat_kernel(nodes, 0.2).log_prob(starts[:, None]).exp()  # [starts, nodes]
    chained = (density[:, None] * onwards[None] * weights).sum(-1)
    direct = domain.heat_kernel(starts[:, None], math.hypot(sigma, 0.2)).log_prob(starts).exp()
    torch.testing.assert_close(chained, direct, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sigma", [0.03, 0.2, 0.45, 0.7, 3.0])
def test_triangle_score_has_no_flux_through_walls(sigma: float) -> None:
    domain = RegularSimplex(3)
    p = torch.rand(60, 3, dtype=torch.float64, generator=generator(8))
    p[torch.arange(60), torch.arange(60) % 3] = 0
    x = domain.from_probabilities(p / p.sum(-1, keepdim=True))
    normal = domain._normals[torch.arange(60) % 3]
    x0 = uniform(domain, 60, 2)
    flux = (domain.heat_kernel(x0, sigma).score(x) * normal).sum(-1).abs()
    # the state itself lies a rounding (1e-16) from its wall, where the normal score grows per length by 1/σ², and by the spread of the
    # scores of the two images that meet there, each up to |x − x0|/σ²
    far = (x - x0).norm(dim=-1) / sigma
    assert (flux * sigma <= 1e-14 + 4e-16 * (1 + far**2) / sigma).all()


def test_triangle_kernel_reads_no_values_off_the_processor() -> None:
    """On a device without values nothing can be waited for and no shape can depend on data; tables are copied once."""
    domain, meta = RegularSimplex(3), torch.device("meta")
    x = torch.zeros(5, 2, device=meta)
    with torch.no_grad():
        law = domain.unchecked_kernel(x, torch.full((5,), 0.3, device=meta))
        log_prob, score = law.log_prob_and_score(x)
        assert log_prob.shape == (5,) and score.shape == law.sample().shape == (5, 2)
    assert domain._regimes(meta) is domain._regimes(meta)


def test_triangle_kernel_differentiates_twice_and_under_transforms() -> None:
    domain = RegularSimplex(3)
    x0, x = uniform(domain, 5, 0), uniform(domain, 5, 1)
    sigma = f64(0.15, 0.3, 0.45, 0.6, 1.5)

    def log_prob(x: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return domain.unchecked_kernel(x0, sigma).log_prob(x)

    def score(x: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return domain.unchecked_kernel(x0, sigma).score(x)

    inputs = [v.clone().requires_grad_() for v in (x, x0, sigma)]
    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)
    eager, close = score(x, x0, sigma), {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(torch.func.vmap(score)(x, x0, sigma), eager, **close)
    compiled = torch.compile(score, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, x0, sigma), eager, **close)
    jacobian = torch.func.vmap(torch.func.jacrev(log_prob))(x, x0, sigma)
    torch.testing.assert_close(jacobian, eager, rtol=1e-9, atol=1e-9)
    folded = torch.compile(lambda u: domain.fold(u)[0], backend="eager", fullgraph=True)(3 * x)
    torch.testing.assert_close(folded, domain.fold(3 * x)[0], rtol=0, atol=1e-15)


def test_gradients_are_finite_at_corners_and_at_every_sigma() -> None:
    places = spots(torch.float64)
    grid = list(itertools.product(places[:8], places[:8], SIGMAS))
    for transform in (lambda f: f, torch.func.vmap):
        inputs = [f64(*(g[i] for g in grid)).clone().requires_grad_() if i == 2 else
                  torch.tensor([g[i] for g in grid], dtype=torch.float64, requires_grad=True) for i in range(3)]  # fmt: skip
        call = transform(lambda x, x0, s: RegularSimplex(3).unchecked_kernel(x0, s).log_prob(x))
        for slope in torch.autograd.grad(call(*inputs).sum(), inputs):
            assert torch.isfinite(slope).all()


def test_two_categories_are_an_interval_of_length_root_two() -> None:
    half = math.sqrt(0.5)
    domain, box = RegularSimplex(2), Hypercube((1,), -half, half)
    x0, x = uniform(domain, 50, 0), uniform(domain, 50, 1)
    x[:2] = f64(-half, half)[:, None]
    for sigma in SIGMAS:
        ours, theirs = domain.heat_kernel(x0, sigma), box.heat_kernel(x0, sigma)
        assert torch.equal(ours.log_prob(x), theirs.log_prob(x)) and torch.equal(ours.score(x), theirs.score(x))
    u = 5 * torch.randn(50, 1, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(domain.fold(u)[0], box.fold(u)[0], rtol=0, atol=1e-14)


REFUSALS = [
    (lambda: RegularSimplex(1), ValueError, "got 1 categories, expected a whole number of at least 2"),
    (lambda: RegularSimplex(2.5), ValueError, "got 2.5 categories"),
    (lambda: RegularSimplex([3]), TypeError, r"got \[3\] categories, expected a whole number"),
    (lambda: RegularSimplex("3"), TypeError, "got '3' categories, expected a whole number"),
    (lambda: RegularSimplex(3, (2,)), TypeError, r"got \(2,\) for max_bounces.*Simplex\(3, \(2,\)\)"),
    (lambda: RegularSimplex(3, max_bounces="a"), TypeError, "max_bounces: got 'a', expected a whole number"),
    (lambda: RegularSimplex(4, max_bounces=0), ValueError, "max_bounces: got 0"),
    (
        lambda: RegularSimplex(3).from_probabilities(torch.tensor([0.5, 0.6, 0.1])),
        ValueError,
        "sums to 1.2.*, expected 1",
    ),
    (lambda: RegularSimplex(3).from_probabilities(torch.tensor([0.5, 0.6, -0.1])), ValueError, "got an entry of -0.1"),
    (lambda: RegularSimplex(3).from_probabilities(torch.tensor([0.5, 0.5])), ValueError, r"got shape \(2,\)"),
    (lambda: RegularSimplex(4).heat_kernel(torch.zeros(3), 0.1), TypeError, r"arccos\(1/3\).*use Simplex\(4\)"),
    (lambda: RegularSimplex(3).heat_kernel(torch.ones(2), 0.1), ValueError, "x0: 1 of 1 samples lie outside"),
    (lambda: RegularSimplex(3).heat_kernel(torch.zeros(2), 0.0), ValueError, "sigma: got 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS, ids=[m for *_, m in REFUSALS])
def test_bad_input_is_refused_with_what_was_got_and_the_fix(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
