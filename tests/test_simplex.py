"""The simplex: its kernel against 50-digit permanents, its particles against simulation, projection against scipy."""

import itertools
import math
from functools import cache

import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carom.domains import Polytope, Simplex
from carom.domains.permanent import permanent, permanent_and_row_means, subset_layers
from carom.domains.simplex import isotonic
from carom.processes import SDE
from carom.solvers import ReflectedEulerMaruyama, WhiteNoise, solve

mp.mp.dps = 50
ULP = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def interval(x: mp.mpf, x0: mp.mpf, sigma: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    """(p, ∂ₓp) on [0, 1] relative to nothing: mpmath's exponents do not underflow."""
    if sigma < mp.mpf("0.7"):
        reach = int(mp.ceil(8 * sigma)) + 1
        images = [y for n in range(-reach, reach + 1) for y in (2 * n + x0, 2 * n - x0)]
        weights = [mp.exp(-((x - y) ** 2) / (2 * sigma**2)) / (sigma * mp.sqrt(2 * mp.pi)) for y in images]
        return mp.fsum(weights), mp.fsum(w * (y - x) for w, y in zip(weights, images, strict=True)) / sigma**2
    modes = [(k, 2 * mp.exp(-((k * mp.pi * sigma) ** 2) / 2) * mp.cos(k * mp.pi * x0)) for k in range(1, 9)]
    p = 1 + mp.fsum(w * mp.cos(k * mp.pi * x) for k, w in modes)
    return p, -mp.fsum(w * k * mp.pi * mp.sin(k * mp.pi * x) for k, w in modes)


def exact(y: list[float], y0: list[float], sigma: float) -> tuple[mp.mpf, list[mp.mpf]]:
    """(log p, score) by the sum over all permutations."""
    s = mp.mpf(sigma)
    table = [[interval(mp.mpf(a), mp.mpf(b), s) for b in y0] for a in y]
    n = len(y)
    total, slopes = mp.mpf(0), [mp.mpf(0)] * n
    for order in itertools.permutations(range(n)):
        cells = [table[i][j] for i, j in enumerate(order)]
        product = mp.fprod(p for p, _ in cells)
        total += product
        for i, (p, slope) in enumerate(cells):
            slopes[i] += product / p * slope
    return mp.log(total), [v / total for v in slopes]


def cases(categories: int, dtype: torch.dtype, count: int) -> list[tuple[Tensor, Tensor, float]]:
    """Random pairs, pairs on walls, corners and edges, ties and near ties, at σ from 1e-4 to 1e3."""
    simplex, n, ulp = Simplex(categories), categories - 1, ULP[dtype]
    draws = simplex.uniform(dtype).sample((count,), generator=generator(categories))
    special = [
        torch.zeros(n, dtype=dtype),
        torch.ones(n, dtype=dtype),
        torch.full((n,), 0.5, dtype=dtype),
        torch.linspace(0, 1, n + 2, dtype=dtype)[1:-1],
        torch.tensor([0.3 * (1 + ulp * i) for i in range(n)], dtype=dtype),
        torch.tensor([0.0] * (n // 2) + [1.0] * (n - n // 2), dtype=dtype),
    ]
    points = [*special, *draws.unbind()]
    sigmas = torch.tensor([1e-4, 3e-3, 0.03, 0.12, 0.3, 0.39, 0.41, 0.7, 1.5, 8.0, 1e3], dtype=dtype).tolist()
    pairs = [
        (a, b) for i, a in enumerate(points) for b in (points[(i + 1) % len(points)], points[(7 * i + 3) % len(points)])
    ]
    return [(a, b, s) for i, (a, b) in enumerate(pairs) for s in sigmas[i % 2 :: 2]]


def hull(y: Tensor, y0: Tensor, sigma: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The range of the exact score·σ over corners of the box of 4 ulp about (y, y0)."""
    scores = []
    signs = torch.randint(0, 2, (48, 2, len(y)), generator=generator(1)).double() * 2 - 1
    for a, b in signs:
        moved = [
            (v.double() + 4 * ULP[dtype] * v.double().abs() * w).clamp(0, 1).tolist() for v, w in ((y, a), (y0, b))
        ]
        scores.append([float(s * sigma) for s in exact(*moved, sigma)[1]])
    scores = torch.tensor(scores, dtype=torch.float64)
    return scores.amin(0), scores.amax(0)


@pytest.mark.parametrize("graph", [False, True], ids=["split", "select"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("categories", "count"), [(2, 8), (3, 8), (5, 4), (7, 1)])
def test_kernel_equals_a_brute_force_permanent_to_50_digits(
    categories: int, count: int, dtype: torch.dtype, graph: bool
) -> None:
    """log p to the tolerance of the interval kernel for each factor; the score likewise, or equal to the exact score at a point
    within 4 ulp of (x, x0), for it is ill-conditioned where matchings tie."""
    simplex, tolerance = Simplex(categories), TOLERANCE[dtype]
    every = 1 if categories < 7 else 3
    for y, y0, sigma in cases(categories, dtype, count)[::every]:
        kernel = simplex.heat_kernel(y0, sigma)
        at = y.clone().requires_grad_(graph)
        log_p, score = kernel.log_prob(at).detach().double(), kernel.score(at).detach().double() * sigma
        want_log, want = exact(y.double().tolist(), y0.double().tolist(), sigma)
        assert abs(float(log_p) - float(want_log)) <= (categories - 1) * tolerance * (1 + abs(float(want_log)))
        want = torch.tensor([float(s * sigma) for s in want], dtype=torch.float64)
        room = tolerance * (1 + want.abs())
        if bool(((score - want).abs() <= room).all()):
            continue
        low, high = hull(y, y0, sigma, dtype)
        low, high = torch.minimum(low, want), torch.maximum(high, want)
        assert bool(((score >= low - room) & (score <= high + room)).all()), (y, y0, sigma, score, want, low, high)


@given(st.integers(1, 7), st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_permanents_and_their_row_means_by_enumeration(n: int, seed: int) -> None:
    w, s = (torch.rand(2, n, n, dtype=torch.float64, generator=generator(seed + k)) for k in (0, 1))
    total, means = torch.zeros(2, dtype=torch.float64), torch.zeros(2, n, dtype=torch.float64)
    for order in itertools.permutations(range(n)):
        product = w[:, range(n), order].prod(-1)
        total += product
        means += product[:, None] * s[:, range(n), order]
    got, got_means = permanent_and_row_means(w, s, subset_layers(n))
    # all terms positive: relative errors of a few ulp per row
    torch.testing.assert_close(got, total, rtol=1e-13, atol=0)
    torch.testing.assert_close(permanent(w, subset_layers(n)), total, rtol=1e-13, atol=0)
    torch.testing.assert_close(got_means, means / total[:, None], rtol=1e-13, atol=1e-13)


def test_thirteen_categories_are_exact_and_fourteen_are_refused() -> None:
    """At n = 12 a permanent can be known: equal rows give n! times a product."""
    simplex = Simplex(13)
    y0 = simplex.uniform(torch.float64).sample((2,), generator=generator())
    y = torch.full((2, 12), 0.37, dtype=torch.float64)
    interval = Simplex(2)
    want = sum(interval.heat_kernel(y0[:, j : j + 1], 0.3).log_prob(y[:, :1]) for j in range(12)) + math.lgamma(13)
    torch.testing.assert_close(simplex.heat_kernel(y0, 0.3).log_prob(y), want, rtol=1e-13, atol=1e-12)
    big = Simplex(14)
    y0 = big.uniform(torch.float64).sample((2,), generator=generator())
    for call in (big.heat_kernel(y0, 0.3).log_prob, big.heat_kernel(y0, 0.3).score):
        with pytest.raises(ValueError, match=r"got 14 categories, expected at most 13.*sample_with_target"):
            call(y0)


@pytest.mark.montecarlo
@pytest.mark.parametrize("sigma", [0.1, 0.35])
def test_the_labelled_target_averages_to_the_score_bin_by_bin(sigma: float) -> None:
    """200,000 draws in 36 cells of the triangle; in each the mean of target − score is 0 within 4 standard errors."""
    simplex, n = Simplex(3), 200_000
    y0 = torch.tensor([0.2, 0.35], dtype=torch.float64)
    kernel = simplex.heat_kernel(y0.expand(n, 2), sigma)
    y, target = kernel.sample_with_target(generator=generator(3))
    gap = target - kernel.score(y)
    assert float(gap.abs().max()) > 0.5  # the target is not the score itself
    cell = (6 * y[:, 0]).long().clamp(max=5) * 6 + (6 * y[:, 1]).long().clamp(max=5)
    for c in cell.unique():
        part = gap[cell == c]
        if len(part) > 200:
            assert (part.mean(0).abs() <= 4 * part.std(0) / math.sqrt(len(part))).all(), int(c)


@pytest.mark.montecarlo
@pytest.mark.parametrize("categories", [3, 10, 50])
def test_the_stationary_law_is_dirichlet(categories: int) -> None:
    """At σ = 3 each probability is Beta(1, K − 1); Kolmogorov–Smirnov on 5,000 draws, p-value above 1e-3 each."""
    simplex = Simplex(categories)
    start = simplex.from_probabilities(torch.eye(categories, dtype=torch.float64)[:1]).expand(5000, -1)
    p = simplex.to_probabilities(simplex.heat_kernel(start, 3.0).sample(generator=generator(5)))
    uniform = simplex.to_probabilities(simplex.uniform(torch.float64).sample((5000,), generator=generator(6)))
    for i in (0, 1, categories - 1):
        for draws in (p, uniform):
            assert scipy.stats.kstest(draws[:, i].numpy(), scipy.stats.beta(1, categories - 1).cdf).pvalue > 1e-3


@pytest.mark.montecarlo
def test_one_exact_draw_has_the_law_of_many_small_reflected_steps() -> None:
    """The gaps after 200 reflected steps and after one draw of the kernel: two-sample Kolmogorov–Smirnov, 20,000 paths each."""
    simplex, n, sigma = Simplex(4), 20_000, 0.2
    y0 = torch.tensor([0.1, 0.12, 0.7], dtype=torch.float64).expand(n, 3).contiguous()
    motion = SDE(lambda x, t: torch.zeros_like(x), 1.0, simplex)
    walked = solve(motion, y0, np.linspace(0, sigma**2, 201), ReflectedEulerMaruyama(), noise=WhiteNoise(0)).x
    drawn = simplex.heat_kernel(y0, sigma).sample(generator=generator(1))
    for gaps in zip(simplex.to_probabilities(walked).T, simplex.to_probabilities(drawn).T, strict=True):
        assert scipy.stats.ks_2samp(*(g.numpy() for g in gaps)).pvalue > 1e-3


def test_reflection_mirrors_neighbours_and_ends() -> None:
    simplex = Simplex(4)
    y = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    step = torch.tensor([-0.3, 0.2, -0.4], dtype=torch.float64)  # to (−0.2, 0.6, 0.5): one end, one exchange
    torch.testing.assert_close(simplex.reflect(y, step), torch.tensor([0.2, 0.5, 0.6], dtype=torch.float64))


@given(st.lists(st.lists(st.floats(-3, 3, width=32), min_size=6, max_size=6), min_size=1, max_size=5))
@settings(max_examples=100)
def test_projection_is_scipys_isotonic_regression_then_a_clip(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    got = Simplex(7).project(x)
    want = [scipy.optimize.isotonic_regression(row).x.clip(0, 1) for row in rows]
    # sums of six numbers below 3
    torch.testing.assert_close(got, torch.tensor(np.array(want)), rtol=0, atol=1e-14)
    traced = torch.func.vmap(isotonic)(x)
    torch.testing.assert_close(traced.clamp(0, 1), got, rtol=0, atol=1e-14)


def test_projection_of_long_vectors_and_infinities() -> None:
    x = torch.randn(16, 999, dtype=torch.float64, generator=generator()).cumsum(-1) / 10
    want = np.stack([scipy.optimize.isotonic_regression(row).x for row in x.numpy()])
    # means of up to 999 numbers of size 10
    torch.testing.assert_close(isotonic(x), torch.tensor(want), rtol=0, atol=1e-11)
    assert Simplex(3).project(torch.tensor([[math.inf, -math.inf], [math.nan, 0.5]]))[1].isnan().any()


@given(st.integers(2, 40), st.integers(0, 2**20), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60)
def test_probabilities_round_trip_to_k_eps(categories: int, seed: int, dtype: torch.dtype) -> None:
    """With zeros and with whole mass in one place; and every state made of probabilities is inside."""
    g = generator(seed)
    p = torch.rand(8, categories, dtype=torch.float64, generator=g)
    p = torch.where(torch.rand(8, categories, generator=g) < 0.4, 0.0, p)
    p[:, 0] += p.sum(-1) == 0
    p = p / p.sum(-1, keepdim=True)
    p[0], p[1] = 0.0, 0.0
    p[0, 0], p[1, -1] = 1.0, 1.0
    p = p.to(dtype)
    simplex = Simplex(categories)
    y = simplex.from_probabilities(p)
    assert simplex.contains(y).all()
    back = simplex.to_probabilities(y)
    eps = torch.finfo(dtype).eps
    # the last gap takes up what the sum of p as given lacks of 1
    assert ((back - p).abs() <= categories * eps + (p.double().sum(-1, keepdim=True) - 1).abs()).all()
    assert (back >= 0).all() and torch.equal(back[0], p[0]) and torch.equal(back[1], p[1])


def test_positions_are_independent() -> None:
    """A shape of positions: log p adds up, scores and projections act position by position."""
    many, one = Simplex(4, (2, 3)), Simplex(4)
    y0, y = (many.uniform(torch.float64).sample((5,), generator=generator(k)) for k in (0, 1))
    sigma = torch.tensor([0.05, 0.1, 0.3, 0.6, 2.0], dtype=torch.float64)
    kernel, part = many.heat_kernel(y0, sigma), one.heat_kernel(y0, sigma[:, None, None].expand(5, 2, 3))
    torch.testing.assert_close(kernel.log_prob(y), part.log_prob(y).sum((-1, -2)), rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(kernel.score(y), part.score(y), rtol=1e-12, atol=1e-12)
    assert torch.equal(many.project(2 * y - 0.5), one.project(2 * y - 0.5))


def test_walls_are_damped_together() -> None:
    """In the corner of all walls nothing is left of a vector; on an edge the component along the edge is left."""
    simplex, width = Simplex(4), torch.tensor(0.1, dtype=torch.float64)
    v = torch.tensor([[1.0, 2.0, -3.0], [1.0, 2.0, -3.0]], dtype=torch.float64)
    # y1 = 0 and y2 = y3: the edge runs along (0, 1, 1)
    y = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    want = torch.tensor([[0.0, 0.0, 0.0], [0.0, -0.5, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(simplex.damp(y, v, width), want, rtol=0, atol=1e-13)


REFUSALS = [
    (lambda: Simplex(1), r"Simplex: got 1 categories, expected a whole number of at least 2"),
    (lambda: Simplex(2.5), r"got 2.5 categories"),
    (lambda: Simplex(3, (0,)), r"shape: got \(0,\)"),
    (
        lambda: Simplex(3).from_probabilities(torch.tensor([0.5, 0.2, 0.2])),
        r"sums to 0.9.*expected 1 .*divide by its sum",
    ),
    (
        lambda: Simplex(3).from_probabilities(torch.tensor([0.7, 0.5, -0.2])),
        r"got an entry of -0.2, expected probabilities",
    ),
    (lambda: Simplex(3).from_probabilities(torch.tensor([0.7, 0.3, math.nan])), r"got an entry of nan"),
    (lambda: Simplex(3).from_probabilities(torch.tensor([0.7, 0.3])), r"p: got shape \(2,\), expected \[\*batch, 3\]"),
    (lambda: Simplex(3).check(torch.tensor([[0.5, 0.4]])), r"1 of 1 samples lie outside"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=[m for _, m in REFUSALS])
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_folding_and_sorting_is_what_a_ball_does_between_the_walls() -> None:
    """The fold against ray marching from wall to wall in the same alcove, for paths that bounce up to some twenty times."""
    n = 3
    rows = torch.cat([-torch.eye(n)[:1], torch.eye(n)[:-1] - torch.eye(n)[1:], torch.eye(n)[-1:]]).double()
    alcove, simplex = Polytope(rows, [0.0, 0.0, 0.0, 1.0]), Simplex(n + 1)
    y = simplex.uniform(torch.float64).sample((300,), generator=generator())
    step = torch.randn(300, n, dtype=torch.float64, generator=generator(1))
    for length in (0.1, 1.0, 3.0):
        bounce = alcove.bounce(y, length * step)
        assert bounce.finished.all()
        # each bounce rounds once more
        torch.testing.assert_close(bounce.x, simplex.reflect(y, length * step), rtol=0, atol=1e-12)


@given(st.integers(2, 7), st.integers(0, 2**20), st.sampled_from([0.05, 0.5, 5.0]))
@settings(max_examples=40, deadline=None)
def test_damping_by_elimination_is_damping_by_all_walls_at_once(categories: int, seed: int, width: float) -> None:
    """u minimises |u − v|² + Σ c_j (n_j·u)², solved densely, with points near corners and layers wider than the simplex."""
    n = categories - 1
    axes = torch.eye(n, dtype=torch.float64)
    normals = torch.cat([axes[:1], (axes[1:] - axes[:-1]) / math.sqrt(2), -axes[-1:]])
    simplex, g = Simplex(categories), generator(seed)
    y = simplex.uniform(torch.float64).sample((6,), generator=g)
    y = y + torch.tensor([0.0, 0.5, 0.99]).repeat(2).double()[:, None] * (y.new_ones(n) - y)  # towards a corner
    v = torch.randn(6, n, dtype=torch.float64, generator=g)
    distance = torch.cat([y[:, :1], y.diff(dim=-1) / math.sqrt(2), 1 - y[:, -1:]], -1)
    s = (distance / width).clamp(0, 1)
    rows = torch.cat([torch.eye(n).double().expand(6, n, n), ((1 - s) / s).sqrt().unsqueeze(-1) * normals], -2)
    right = torch.cat([v, torch.zeros_like(s)], -1).unsqueeze(-1)
    want = torch.linalg.lstsq(rows, right).solution.squeeze(-1)
    # the least-squares problem has condition numbers up to 1e4 here
    torch.testing.assert_close(
        simplex.damp(y, v, torch.tensor(width, dtype=torch.float64)), want, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("categories", [2, 3, 4, 9])
def test_the_largest_ball_inside_touches_every_wall(categories: int) -> None:
    simplex = Simplex(categories)
    r = simplex.inradius
    gaps = torch.tensor([r, *[math.sqrt(2) * r] * (categories - 2), r], dtype=torch.float64)
    centre = simplex.from_probabilities(gaps)
    assert float(simplex.boundary_distance(centre)) == pytest.approx(r, abs=1e-15)


def test_sums_a_little_beyond_rounding_are_refused() -> None:
    for dtype in (torch.float32, torch.float64):
        p = torch.full((4,), 0.25, dtype=dtype)
        room = 8 * 4 * torch.finfo(dtype).eps
        Simplex(4).from_probabilities(p * (1 + 0.5 * room))
        with pytest.raises(ValueError, match=r"expected 1"):
            Simplex(4).from_probabilities(p * (1 + 3 * room))
