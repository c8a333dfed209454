"""The heat kernels against 50-digit sums, over all (x, x0, σ): numerics.md §1 asks for 1e-5 in float32 and 1e-12 in float64.

The inputs are float32 numbers, so that one reference serves both precisions; float64 has a set of its own, nearer to the walls.
"""

import itertools
import math
from functools import cache

import mpmath as mp
import pytest
import torch

from carom.domains import Euclidean, Hypercube, KernelDomain, Orthant, Product, Simplex, Torus

mp.mp.dps = 50
# The accuracy asked: |error|·σ ≤ tolerance·(1 + |score|·σ) and |Δ log p| ≤ tolerance·(1 + |log p|).
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# Every regime, both sides of every switch, and far beyond on both sides.
SIGMAS = (
    1e-4,
    1e-3,
    0.01,
    0.05,
    0.1,
    0.12,
    0.15,
    0.17,
    0.2,
    0.25,
    0.3,
    0.39,
    0.41,
    0.5,
    0.6,
    0.79,
    0.81,
    1.0,
    1.5,
    1.7,
    2.5,
    4.0,
    30.0,
    1e3,
)


def interval_reference(x: float, x0: float, sigma: float, low: float, high: float) -> tuple[mp.mpf, mp.mpf]:
    """(log p, score) by images for σ < width and by modes above; terms down to 1e-60 of the largest."""
    x, x0, sigma, low, high = map(mp.mpf, (x, x0, sigma, low, high))
    w, x, x0 = high - low, x - low, x0 - low
    if sigma < w:
        reach = int(mp.ceil(17 * sigma / (2 * w))) + 1
        images = [v for n in range(-reach, reach + 1) for v in (2 * n * w + x0, 2 * n * w - x0)]
        exponents = [-((x - y) ** 2) / (2 * sigma**2) for y in images]
        top = max(exponents)
        weights = [mp.exp(e - top) for e in exponents]
        total = mp.fsum(weights)
        slope = mp.fsum(v * (y - x) for v, y in zip(weights, images, strict=True)) / sigma**2
        return top + mp.log(total) - mp.log(sigma) - mp.log(2 * mp.pi) / 2, slope / total
    p, slope = mp.mpf(1), mp.mpf(0)
    for k in range(1, 12):
        weight = 2 * mp.exp(-((k * mp.pi * sigma / w) ** 2) / 2) * mp.cos(k * mp.pi * x0 / w)
        p += weight * mp.cos(k * mp.pi * x / w)
        slope -= weight * k * mp.pi / w * mp.sin(k * mp.pi * x / w)
    return mp.log(p / w), slope / p


def half_line_reference(x: float, x0: float, sigma: float) -> tuple[mp.mpf, mp.mpf]:
    x, x0, sigma = map(mp.mpf, (x, x0, sigma))
    z = x * x0 / sigma**2
    log_p = -((x - x0) ** 2) / (2 * sigma**2) + mp.log1p(mp.exp(-2 * z)) - mp.log(sigma) - mp.log(2 * mp.pi) / 2
    return log_p, (x0 * mp.tanh(z) - x) / sigma**2


def single(values: list[float]) -> list[float]:
    return torch.tensor(values, dtype=torch.float32).tolist()


def places(low: float, high: float, ulp: float) -> list[float]:
    """Walls, a rounding from walls, a little from walls, and the inside with its middle."""
    w = high - low
    inside = [low + f * w for f in (1e-3, 0.11, 0.37, 0.5, 0.73)]
    near = [low + max(abs(low), w) * ulp, high - max(abs(high), w) * ulp]
    return [low, high, *near, *inside]


@cache
def interval_cases(low: float, high: float, ulp: float) -> tuple[torch.Tensor, ...]:
    """(x, x0, sigma, log p, score·σ) of every pair of places at every σ; references rounded to float64."""
    w = high - low
    spots = places(low, high, ulp)
    if ulp > 1e-10:
        spots = [min(max(v, low), high) for v in single(spots)]
    sigmas = [s * w for s in SIGMAS]
    sigmas = single(sigmas) if ulp > 1e-10 else sigmas
    grid = list(itertools.product(spots, spots, sigmas))
    generator = torch.Generator().manual_seed(int(1000 * w) + 1)
    draws = torch.rand(300, 3, generator=generator, dtype=torch.float32).double()
    for u, v, r in draws.tolist():
        grid.append(
            (*(min(max(z, low), high) for z in single([low + u * w, low + v * w])), *single([w * 10 ** (7 * r - 4)]))
        )
    return _tabulate(grid, lambda x, x0, s: interval_reference(x, x0, s, low, high))


@cache
def half_line_cases() -> tuple[torch.Tensor, ...]:
    spots = single([0.0, 1e-30, 1e-7, 1e-3, 0.4, 1.0, 3.7, 120.0])
    grid = list(itertools.product(spots, spots, single(list(SIGMAS))))
    return _tabulate(grid, half_line_reference)


def _tabulate(grid, reference) -> tuple[torch.Tensor, ...]:
    pairs = [reference(*case) for case in grid]
    x, x0, sigma = torch.tensor(grid, dtype=torch.float64).unbind(1)
    scaled = torch.tensor(
        [float(score * mp.mpf(case[2])) for (_, score), case in zip(pairs, grid, strict=True)], dtype=torch.float64
    )
    return x, x0, sigma, torch.tensor([float(log_p) for log_p, _ in pairs], dtype=torch.float64), scaled


def check(domain: KernelDomain, cases: tuple[torch.Tensor, ...], dtype: torch.dtype, graph: bool) -> None:
    """``graph`` asks for gradients and so for the path without data-dependent shapes; without, each regime has its own pass."""
    x, x0, sigma, log_p, scaled = cases
    kernel = domain.heat_kernel(x0[:, None].to(dtype), sigma.to(dtype))
    at = x[:, None].to(dtype).requires_grad_(graph)
    got_log, got_score = kernel.log_prob(at).detach().double(), kernel.score(at).detach()[:, 0].double()
    assert torch.isfinite(got_log).all() and torch.isfinite(got_score).all()
    tolerance = TOLERANCE[dtype]
    error = (got_score * sigma - scaled).abs() / (1 + scaled.abs())
    worst = int(error.argmax())
    assert error[worst] <= tolerance, (float(error[worst]), [float(v[worst]) for v in cases])
    error = (got_log - log_p).abs() / (1 + log_p.abs())
    worst = int(error.argmax())
    assert error[worst] <= tolerance, (float(error[worst]), [float(v[worst]) for v in cases])
    both = kernel.log_prob_and_score(at)
    assert torch.equal(both[0].detach().double(), got_log) and torch.equal(both[1].detach()[:, 0].double(), got_score)


BOUNDS = [(0.0, 1.0), (-1.25, 2.5), (100.0, 100.125)]  # numbers that float32 holds


@pytest.mark.parametrize("graph", [False, True], ids=["split", "select"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_interval_against_50_digits(bounds: tuple[float, float], dtype: torch.dtype, graph: bool) -> None:
    check(Hypercube((1,), *bounds), interval_cases(*bounds, ulp=2.0**-23), dtype, graph)


@pytest.mark.parametrize("graph", [False, True], ids=["split", "select"])
def test_interval_within_float64_rounding_of_the_walls(graph: bool) -> None:
    check(Hypercube((1,)), interval_cases(0.0, 1.0, ulp=2.0**-52), torch.float64, graph)


@pytest.mark.parametrize("graph", [False, True], ids=["split", "select"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_half_line_against_50_digits(dtype: torch.dtype, graph: bool) -> None:
    """As an orthant, and as an axis of a box open above or below."""
    x, x0, sigma, log_p, scaled = half_line_cases()
    # the exponent (x − x0)²/2σ² leaves float32 beyond 1e38
    keep = ((x - x0) / sigma).abs() < 1e15
    cases = tuple(v[keep] for v in (x, x0, sigma, log_p, scaled))
    for domain in (Orthant((1,)), Hypercube((1,), 0.0, math.inf)):
        check(domain, cases, dtype, graph)
    x, x0, sigma, log_p, scaled = cases
    check(Hypercube((1,), -math.inf, 0.0), (-x, -x0, sigma, log_p, -scaled), dtype, graph)


@pytest.mark.parametrize("graph", [False, True], ids=["split", "select"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("period", [1.0, 6.25])
def test_wrapped_gaussian_against_50_digits(period: float, dtype: torch.dtype, graph: bool) -> None:
    """The torus: half the kernel of [0, P/2] started at its end, with d = x − x0 taken the short way. Opposite points tie, where the
    score is that of a point within 4 ulp."""
    ulp = torch.finfo(dtype).eps
    spots = [period * f for f in (0.0, ulp, 0.11, 0.37, 0.5, 0.5 + 2 * ulp, 0.73, 1.0 - ulp, 1.0)]
    spots = torch.tensor(spots, dtype=dtype).tolist()
    sigmas = torch.tensor([s * period for s in SIGMAS], dtype=dtype).tolist()

    def reference(x: float, x0: float, sigma: float, nudge: float = 0.0) -> tuple[mp.mpf, mp.mpf]:
        d, half = mp.mpf(x) - mp.mpf(x0) + nudge, mp.mpf(period) / 2
        d -= period * mp.nint(d / period)
        log_p, score = interval_reference(abs(d), 0, sigma, 0, half)
        return log_p - mp.log(2), score * (1 if d >= 0 else -1)

    grid = list(itertools.product(spots, spots, sigmas))
    x, x0, sigma, log_p, scaled = _tabulate(grid, reference)
    kernel = Torus((1,), period).heat_kernel(x0[:, None].to(dtype), sigma.to(dtype))
    at = x[:, None].to(dtype).requires_grad_(graph)
    got_log, got = kernel.log_prob(at).detach().double(), kernel.score(at).detach()[:, 0].double() * sigma
    assert ((got_log - log_p).abs() <= TOLERANCE[dtype] * (1 + log_p.abs())).all()
    for i in ((got - scaled).abs() > TOLERANCE[dtype] * (1 + scaled.abs())).nonzero().flatten().tolist():
        near = [
            float(reference(*grid[i], nudge=k * ulp * period)[1] * grid[i][2]) for k in (-8, -4, -2, -1, 1, 2, 4, 8)
        ]
        room = TOLERANCE[dtype] * (1 + abs(float(scaled[i])))
        assert min(near) - room <= float(got[i]) <= max(near) + room, (grid[i], float(got[i]), near)


def test_box_with_a_width_and_a_sigma_regime_per_axis() -> None:
    """One σ, three axes in three regimes: the box is the product of its intervals."""
    low, high, sigma = [-1.25, 0.0, 100.0], [2.5, 0.125, 164.0], 0.5
    box = Hypercube((3,), low, high)
    x0, x = (box.uniform(torch.float64).sample((40,), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    x[0], x0[1] = box.low, box.high
    kernel = box.heat_kernel(x0, sigma)
    for graph in (False, True):
        at = x.clone().requires_grad_(graph)
        score, log_p = kernel.score(at).detach(), kernel.log_prob(at).detach()
        for i in range(len(x)):
            parts = [
                interval_reference(*v, sigma, lo, hi)
                for *v, lo, hi in zip(x[i].tolist(), x0[i].tolist(), low, high, strict=True)
            ]
            want = torch.tensor([float(s) for _, s in parts], dtype=torch.float64)
            total = float(mp.fsum(part for part, _ in parts))
            assert ((score[i] - want).abs() * sigma <= 1e-12 * (1 + want.abs() * sigma)).all()
            assert abs(float(log_p[i]) - total) <= 3e-12 * (1 + abs(total))  # three axes


def test_reference_values_of_the_literature() -> None:
    """formulas.md §20, printed to 12 digits: p(.1 | .2) and its score."""
    for sigma, p, score in (
        (0.05, 1.07981945178, 39.9999819944),
        (0.2, 2.40791461215, -0.1894142137),
        (0.5, 1.45172109376, -0.326357903389),
    ):
        kernel = Hypercube((1,)).heat_kernel(torch.tensor([0.2], dtype=torch.float64), sigma)
        x = torch.tensor([0.1], dtype=torch.float64)
        assert float(kernel.log_prob(x).exp()) == pytest.approx(p, rel=3e-11)
        assert float(kernel.score(x)) == pytest.approx(score, rel=3e-10)


@pytest.mark.parametrize(
    "domain",
    [
        Hypercube((3,)),
        Hypercube((3,), -2.0, [1.0, 5.0, 0.5]),
        Hypercube((3,), [0.0, -math.inf, -math.inf], [math.inf, 1.0, math.inf]),
        Orthant((3,)),
        Euclidean((3,)),
        Torus((3,), [1.0, 1.5, 2.0]),
        Simplex(4),
        Product(Hypercube((1,)), Simplex(3)),
    ],
    ids=repr,
)
def test_kernels_differentiate_twice_and_under_transforms(domain: KernelDomain) -> None:
    """gradcheck and gradgradcheck of log_prob in x, x0 and σ; vmap and a fullgraph trace give the eager values."""
    generator = torch.Generator().manual_seed(5)
    x0, x = (domain.project(torch.rand(4, 3, dtype=torch.float64, generator=generator)) for _ in range(2))
    sigma = torch.tensor([0.05, 0.3, 0.7, 2.0], dtype=torch.float64)

    def log_prob(x: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return domain.unchecked_kernel(x0, sigma).log_prob(x)

    inputs = [v.clone().requires_grad_() for v in (x, x0, sigma)]
    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)

    def score(x: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return domain.unchecked_kernel(x0, sigma).score(x)

    eager = score(x, x0, sigma)
    # two paths of the same accuracy (1e-12, tested above)
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(torch.func.vmap(score)(x, x0, sigma), eager, **close)
    compiled = torch.compile(score, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, x0, sigma), eager, **close)
    jacobian = torch.func.vmap(torch.func.jacrev(log_prob))(x, x0, sigma)
    torch.testing.assert_close(jacobian, eager, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_finite_at_walls_and_at_every_sigma(dtype: torch.dtype) -> None:
    """The series that is not chosen must not leave NaN in the gradient (0·∞)."""
    spots = torch.tensor([0.0, 1e-6, 0.5, 1.0], dtype=dtype)
    x0, x, sigma = (v.flatten() for v in torch.meshgrid(spots, spots, torch.tensor(SIGMAS, dtype=dtype), indexing="ij"))
    inputs = [v.clone().requires_grad_() for v in (x[:, None], x0[:, None], sigma)]
    log_p = Hypercube((1,)).heat_kernel(inputs[1], inputs[2]).log_prob(inputs[0])
    for slope in torch.autograd.grad(log_p.sum(), inputs):
        assert torch.isfinite(slope).all()


def test_a_kernel_is_symmetric_under_mirrors_to_the_last_bits() -> None:
    """Mirroring the box mirrors the score: an image set that is not symmetric about the middle errs by 6.7e-4."""
    generator = torch.Generator().manual_seed(2)
    x, x0 = (torch.rand(200, 1, dtype=torch.float64, generator=generator) for _ in range(2))
    for sigma in (0.05, 0.2, 0.35, 0.45, 1.0):
        here = Hypercube((1,)).heat_kernel(x0, sigma).score(x)
        there = Hypercube((1,)).heat_kernel(1 - x0, sigma).score(1 - x)
        # 1 − x rounds by 1e-16, which the score's slope 1/σ² enlarges
        assert ((here + there).abs() <= 1e-14 / sigma**2).all()


def test_sigma_to_infinity_is_uniform_and_to_zero_is_gaussian() -> None:
    x0, x = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[0.3001]], dtype=torch.float64)
    assert Hypercube((1,), 0.0, 4.0).heat_kernel(x0, 40.0).log_prob(x).item() == pytest.approx(-math.log(4), abs=1e-15)
    near = Hypercube((1,)).heat_kernel(x0, 1e-4)
    flat = Euclidean((1,)).heat_kernel(x0, 1e-4)
    assert near.log_prob(x).item() == pytest.approx(flat.log_prob(x).item(), rel=1e-14)
    assert near.score(x).item() == pytest.approx(flat.score(x).item(), rel=1e-13)
