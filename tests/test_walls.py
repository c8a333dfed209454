"""What walls do: orders by quadrature, oblique reflection, exact half-line steps, splitting, first passage."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm
from test_orders import COSINE, INTERVAL, finite_difference_reference
from torch import Tensor

from carom.domains import Ball, Euclidean, Hypercube, Orthant, Polytope, RegularSimplex, Simplex
from carom.processes import SDE, VE, Diffusion
from carom.solvers import (
    Cover,
    DPMSolverPP,
    EulerMaruyama,
    ExponentialAdams,
    Heun,
    LepingleEulerMaruyama,
    Milstein,
    Oblique,
    Penalise,
    Project,
    Reflect,
    ReflectedEulerMaruyama,
    ReflectedStrang,
    Reject,
    SampleNoise,
    WhiteNoise,
    bind,
    first_passage,
    karras,
    sample,
    solve,
    uniform_lambda,
)
from carom.validation import convergence_order, expectation, problems
from carom.validation.cover import cover_expectation
from carom.validation.solver_laws import COVER, cosines, expected_cosines

F64 = torch.float64
DRIFTS = {
    "constant": lambda x, t: torch.full_like(x, -1.0),
    "linear": lambda x, t: 2 * (0.3 - x),
    "score-like": lambda x, t: -torch.sin(math.pi * x),
}


def brownian(wall: Any, drift: Any, n: int, solver: Any = None) -> float:
    """E cos πX at ¼ of dX = drift dt + dW between walls, from .2."""
    u = expectation(
        SDE(drift, 1.0, INTERVAL),
        solver or EulerMaruyama(),
        torch.linspace(0, 0.25, n + 1, dtype=F64),
        COSINE,
        wall=wall,
    )
    return float(u(torch.tensor(0.2, dtype=F64)))


# ----------------------------------------------------------------------------------------- the table of numerics.md §2


@pytest.mark.parametrize("name", DRIFTS)
def test_rejecting_has_order_one(name: str) -> None:
    """At least 1, on a function with no slope at the walls (with a constant drift 1.5 here); projection has ½."""
    exact = finite_difference_reference(DRIFTS[name], 0.25, 0.2)
    slopes = convergence_order(lambda n: brownian(Reject(), DRIFTS[name], n), (32, 64, 128, 256), exact)
    assert ((slopes >= 0.85) & (slopes <= (1.9 if name == "constant" else 1.1))).all(), slopes


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_penalising_has_order_one_half(strength: float) -> None:
    """Penalise(1) is Project to the digit; half of the way back leaves the order ½ (Słomiński)."""
    process = SDE(lambda x, t: torch.zeros_like(x), 1.0, INTERVAL)
    if strength == 1.0:
        x = torch.rand(50, 1, dtype=F64)
        ends = [
            solve(process, x, torch.linspace(0, 1, 9), EulerMaruyama(), noise=WhiteNoise(0), wall=w).x
            for w in (Penalise(1.0), Project())
        ]
        assert torch.equal(*ends)
        return
    # a state outside is not a function of one inside: an ensemble with common noise, against the exact law's mean
    n = 200_000
    exact, errors = math.exp(-(math.pi**2) / 8) * math.cos(0.2 * math.pi), []
    for steps in (8, 32, 128):
        x = torch.full((n, 1), 0.2, dtype=F64)
        run = solve(
            process,
            x,
            torch.linspace(0, 0.25, steps + 1),
            EulerMaruyama(),
            noise=WhiteNoise(1),
            wall=Penalise(strength),
        )
        assert bool(INTERVAL.contains(run.x).all())
        errors.append(float(COSINE(run.x).mean()) - exact)
    slopes = [math.log(a / b) / math.log(4) for a, b in itertools.pairwise(errors)]
    # standard error .6/√200,000 = .0013 of errors .11, .06, .03: slopes to ±.05
    assert all(0.35 < slope < 0.65 for slope in slopes), (errors, slopes)


@pytest.mark.parametrize("name", DRIFTS)
def test_strang_has_order_two_where_the_drift_is_tangential(name: str) -> None:
    """2.00 with b·n = 0; 1.43 and 1.35 otherwise, of which only 1 is claimed."""
    exact = finite_difference_reference(DRIFTS[name], 0.25, 0.2)
    slopes = convergence_order(
        lambda n: brownian(Reflect(), DRIFTS[name], n, ReflectedStrang()), (16, 32, 64, 128), exact
    )
    low, high = (1.95, 2.05) if name == "score-like" else (0.9, 1.7)
    assert ((slopes >= low) & (slopes <= high)).all(), slopes


def test_strang_without_drift_is_exact() -> None:
    zero = lambda x, t: torch.zeros_like(x)
    assert brownian(Reflect(), zero, 3, ReflectedStrang()) == pytest.approx(0.235596211952, abs=1e-11)


def test_strang_refuses_walls_that_are_no_fold() -> None:
    process = Diffusion(Ball(2), VE())
    with pytest.raises(TypeError, match=r"is no fold, .*ReflectedEulerMaruyama"):
        sample(process, lambda x, t: -x, ReflectedStrang(), karras(process, 3), shape=1)


def test_a_fold_in_mid_run_costs_multistep_rules_their_order() -> None:
    """numerics.md §2: SDE-DPM-Solver++(2M) has order 2 on the cover and order 1 when each step is folded."""
    problem = problems.cosine(0.8)
    process = problem.process
    grid = lambda n: uniform_lambda(process, n + 1, sigma_max=0.6, sigma_min=0.1)
    first, last = (float(v) for v in grid(1))
    exact = expected_cosines(problem, last)
    density = lambda x: problem.log_prob(x, first).exp()
    cover = lambda n: cover_expectation(
        process.reverse(problem.score), DPMSolverPP(2, sde=True), grid(n), cosines, density, **COVER[1]
    )
    slopes = convergence_order(lambda n: cover(n) - exact, (16, 32, 64), resolution=1e-9)
    assert float(slopes[-1]) > 1.7, slopes
    # folded, by an ensemble from the exact law, both walls on the same noise: at six steps the fold adds several times the cover's error
    n = 400_000
    u = torch.rand(n, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = problem.flow(u, 1.0, first)
    run = lambda wall: cosines(
        solve(process.reverse(problem.score), x, grid(6), DPMSolverPP(2, sde=True), noise=WhiteNoise(3), wall=wall).x
    )
    gap = run(Reflect()) - run(Cover())
    se = float(gap.std()) / math.sqrt(n)
    assert float(gap.mean()) > 2 * abs(cover(6) - exact) + 4 * se, (float(gap.mean()), se, cover(6) - exact)


@pytest.mark.parametrize("solver", [Heun(), ExponentialAdams(3), DPMSolverPP(2)], ids=repr)
def test_projection_is_best_where_a_score_points_through_the_wall(solver: Any) -> None:
    """numerics.md §2: deterministic rules agree under every wall when s·n = 0; with s·n ≠ 0 the reflected and covered "
    "ones err by far more."""
    process = Diffusion(Hypercube((1,)), VE())
    tangential = problems.cosine(0.5).score
    outwards = lambda x, t: -(x + 0.5) / (0.05 + process.schedule.sigma(t) ** 2)  # of a Gaussian that lies outside
    x = torch.linspace(0.02, 0.98, 25, dtype=F64)[:, None]
    times = uniform_lambda(process, 21, sigma_max=1.0, sigma_min=0.01)
    run = lambda score, wall: solve(process.flow(score), x, times, solver, wall=wall).x
    for wall in (Reflect(), Cover()):
        torch.testing.assert_close(run(tangential, wall), run(tangential, Project()), rtol=0, atol=1e-10)
    # the projected flow carries all to the wall at 0
    errors = {type(w): float(run(outwards, w).abs().max()) for w in (Project(), Reflect(), Cover())}
    assert errors[Project] == 0.0 and min(errors[Reflect], errors[Cover]) > 1e-4, errors


# ------------------------------------------------------------------------------------------------------- exact half-line steps


def lepingle_operator(drift: Any, n: int, start: float) -> float:
    """E cos πX of LepingleEulerMaruyama by quadrature of its steps: over z on panels, over the exponential beyond the value where the path
    first touches the wall."""
    equation, solver = SDE(drift, 1.0, INTERVAL).bound(Reflect()), LepingleEulerMaruyama()
    count = 65
    nodes = 0.5 * (1 - np.cos(np.pi * np.arange(count) / (count - 1)))
    x = torch.tensor(nodes)[:, None]
    records = bind(solver.plan(equation, torch.linspace(0, 0.25, n + 1, dtype=F64)), x)
    values, (lag, lagw) = np.cos(np.pi * nodes), np.polynomial.laguerre.laggauss(24)
    t, w = np.polynomial.legendre.leggauss(16)
    h = 0.25 / n

    def interpolate(at: np.ndarray) -> np.ndarray:
        series = np.polynomial.chebyshev.chebfit(2 * nodes - 1, values, count - 1)
        return np.polynomial.chebyshev.chebval(2 * at - 1, series)

    for record in reversed(records):
        out = np.zeros(count)
        shift = float(1) * h * drift(x, None)[:, 0].numpy()
        for i, at in enumerate(nodes):
            low = at <= 0.5
            # kinks where the free path ends on a wall
            kinks = np.sort(np.clip([(k - at - shift[i]) / math.sqrt(h) for k in (0.0, 1.0)], -8.0, 8.0))
            ends_ = np.unique(np.concatenate([np.linspace(-8, 8, 9), kinks]))
            z = np.concatenate([0.5 * (a + b) + 0.5 * (b - a) * t for a, b in itertools.pairwise(ends_)])
            weight = np.concatenate([0.5 * (b - a) * w for a, b in itertools.pairwise(ends_)]) * norm.pdf(z)
            y = at + shift[i] + math.sqrt(h) * z
            gap = np.maximum((at - 0) * (y - 0) if low else (1 - at) * (1 - y), 0)
            touch = 2 * gap / h  # the exponential at which the path just reaches the wall
            exponential = np.concatenate([np.zeros((1, len(z))), touch + lag[:, None]])
            uniform = norm.ppf(np.exp(-np.clip(exponential, 1e-300, 700)))
            state = torch.full((exponential.size, 1), at, dtype=F64)
            noise = (
                torch.tensor(np.broadcast_to(z, exponential.shape).ravel())[:, None],
                torch.tensor(uniform.ravel())[:, None],
            )
            moved, _ = solver.step(equation, state, record, (), noise)
            settled = equation.settle(state, moved)[:, 0].numpy().reshape(exponential.shape)
            u = interpolate(settled)
            out[i] = (weight * ((1 - np.exp(-touch)) * u[0] + np.exp(-touch) * (lagw[:, None] * u[1:]).sum(0))).sum()
        values = out
    return float(interpolate(np.array([start]))[0])


@pytest.mark.parametrize("name", ["linear", "score-like"])
def test_exact_half_line_steps_have_order_one(name: str) -> None:
    """numerics.md §2: exact for zero and constant drift at one wall; 1.00 and .96."""
    exact = finite_difference_reference(DRIFTS[name], 0.25, 0.2)
    errors = [lepingle_operator(DRIFTS[name], n, 0.2) - exact for n in (8, 16)]
    slopes = [math.log2(abs(a / b)) for a, b in itertools.pairwise(errors)]
    assert all(0.85 < slope < 1.15 for slope in slopes), (errors, slopes)


@pytest.mark.montecarlo
@pytest.mark.parametrize(("drift", "start"), [(-1.0, 0.1), (0.7, 0.3), (0.0, 0.0)])
def test_one_step_on_a_half_line_has_the_exact_law(drift: float, start: float) -> None:
    """Of Brownian motion with drift, reflected at 0: P(X ≤ y) = Φ((y − x − bt)/√t) − e^{2by} Φ((−y − x − bt)/√t)."""
    n, t = 40_000, 0.5
    equation = SDE(lambda x, time: torch.full_like(x, drift), 1.0, Orthant((1,)))
    x = torch.full((n, 1), start, dtype=F64)
    got = solve(equation, x, [0.0, t], LepingleEulerMaruyama(), noise=WhiteNoise(4)).x.flatten().numpy()
    root = math.sqrt(t)
    law = lambda y: (
        norm.cdf((y - start - drift * t) / root) - np.exp(2 * drift * y) * norm.cdf((-y - start - drift * t) / root)
    )
    assert kstest(got, law).pvalue > 1e-3


def test_half_line_steps_at_an_upper_wall_mirror_those_at_a_lower_one() -> None:
    down, up = (SDE(lambda x, t, b=b: torch.full_like(x, b), 0.8, Hypercube((2,))) for b in (-1.0, 1.0))
    x = torch.rand(40, 2, dtype=F64) * 0.4
    z = SampleNoise(range(40))

    class Mirrored(SampleNoise):
        def open(self, like: Tensor, event_ndim: int | None = None) -> Any:
            source = super().open(like, event_ndim)
            inner = source.__call__
            draw = lambda t, s, stream=0, rows=None: inner(t, s, stream, rows) * (1 if stream else -1)
            return draw

    one = solve(down, x, [0.0, 0.1], LepingleEulerMaruyama(), noise=z).x
    two = solve(up, 1 - x, [0.0, 0.1], LepingleEulerMaruyama(), noise=Mirrored(range(40))).x
    torch.testing.assert_close(two, 1 - one, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("domain", "wall", "message"),
    [(Simplex(3), None, "expected an Orthant or a Hypercube"), (Hypercube((2,)), Cover(), r"got the wall Cover\(\)")],
)
def test_half_line_steps_refuse(domain: Any, wall: Any, message: str) -> None:
    process = Diffusion(domain, VE())
    with pytest.raises(TypeError, match=message):
        sample(process, lambda x, t: -x, LepingleEulerMaruyama(), karras(process, 3), shape=1, wall=wall)


# ------------------------------------------------------------------------------------------------------- rejecting


def test_rejecting_keeps_the_coordinate_or_the_sample() -> None:
    box, disk = Hypercube((2,)), Ball(2)
    x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.5, 0.7]])
    assert torch.equal(Reject().settle(box, x, y), torch.tensor([[0.5, 0.7]]))
    assert torch.equal(Reject().settle(disk, x, y), x)
    assert torch.equal(Reject().settle(disk, x, torch.tensor([[0.1, 0.7]])), torch.tensor([[0.1, 0.7]]))


# ------------------------------------------------------------------------------------------------------------ oblique


def half_plane(slope: float) -> tuple[Any, Oblique]:
    domain = Hypercube((2,), [0.0, -math.inf], math.inf)
    return domain, Oblique(domain, [[1.0, slope]])


@pytest.mark.montecarlo
def test_oblique_reflection_pushes_along_its_direction() -> None:
    """In the half-plane x₁ ≥ 0 along (1, a): x₁ is |B| and x₂ moves by a·L, E L_t = √(2t/π); the scheme is exact in both."""
    n, a, t = 100_000, 0.7, 2.0
    domain, wall = half_plane(a)
    still = SDE(lambda x, time: torch.zeros_like(x), 1.0, domain)
    run = solve(
        still, torch.zeros(n, 2, dtype=F64), torch.linspace(0, t, 21), EulerMaruyama(), noise=WhiteNoise(0), wall=wall
    )
    for got, want in ((run.x[:, 1], a * math.sqrt(2 * t / math.pi)), (run.x[:, 0], math.sqrt(2 * t / math.pi))):
        assert abs(float(got.mean()) - want) < 4 * float(got.std()) / math.sqrt(n)
    assert bool(domain.contains(run.x).all())


@pytest.mark.montecarlo
def test_skew_symmetric_reflection_in_the_quadrant_has_an_exponential_law() -> None:
    """Harrison & Williams 1987: directions (1, r), (−r, 1), drift μ: independent exponentials of rate −2 R⁻¹μ are stationary."""
    r, drift = 0.5, torch.tensor([-1.0, -1.0], dtype=F64)
    domain = Orthant((2,))
    equation = SDE(lambda x, t: drift.expand_as(x), 1.0, domain)
    rates = -2 * torch.linalg.solve(torch.tensor([[1.0, -r], [r, 1.0]], dtype=F64), drift)
    n = 20_000
    x = torch.distributions.Exponential(rates).sample((n,))
    run = solve(
        equation,
        x,
        torch.linspace(0, 2, 401),
        EulerMaruyama(),
        noise=WhiteNoise(1),
        wall=Oblique(domain, [[1.0, r], [-r, 1.0]]),
    )
    # four standard errors, and a bias of order h = .005 (measured .004 at this step)
    assert ((run.x.mean(0) - 1 / rates).abs() < 4 / rates / math.sqrt(n) + 0.02).all(), (run.x.mean(0), 1 / rates)
    assert abs(float(torch.corrcoef(run.x.T)[0, 1])) < 4 / math.sqrt(n) + 0.02


@pytest.mark.parametrize(
    "domain",
    [Polytope([[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1]], [1, 1, 0, 0, 1.4]), RegularSimplex(3), Hypercube((2,))],
    ids=repr,
)
def test_normal_directions_reflect_and_all_stay_inside(domain: Any) -> None:
    normals, _ = domain.facets()
    x = domain.uniform(F64).sample((400,), generator=torch.Generator().manual_seed(0))
    y = x + 0.05 * torch.randn(400, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    got = Oblique(domain, normals).settle(domain, x, y)
    assert bool(domain.contains(got).all())
    one_wall = ((torch.einsum("mj,nj->nm", normals, y) + domain.facets()[1] < 0).sum(-1) <= 1) & domain.contains(got)
    torch.testing.assert_close(got[one_wall], domain.reflect(x, y - x)[one_wall], rtol=0, atol=1e-12)
    tilted = normals + 0.3 * torch.stack([-normals[:, 1], normals[:, 0]], -1)
    far = x + 2 * torch.randn(400, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    inside = Oblique(domain, tilted).settle(domain, x, far)
    assert (
        bool((domain.contains(inside) | inside.isnan().any(-1)).all()) and float(inside.isnan().double().mean()) < 0.01
    )


def test_facets_are_the_walls() -> None:
    normals, offsets = Hypercube((2,), [0.0, -1.0], [2.0, math.inf]).facets()
    assert normals.tolist() == [[1, 0], [0, 1], [-1, 0]] and offsets.tolist() == [0, 1, 2]
    assert Orthant((2,)).facets()[0].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(TypeError, match="has no list of flat walls"):
        Ball(2).facets()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Oblique(Orthant((2,)), [[1.0, 0.0]]), r"got shape \(1, 2\), expected \(2, 2\)"),
        (lambda: Oblique(Orthant((2,)), [[1.0, 0.0], [1.0, -0.1]]), "for wall 1 .* points inwards"),
        (lambda: Penalise(0.0), r"strength: got 0"),
        (lambda: Penalise(1.5), r"strength: got 1\.5"),
    ],
)
def test_walls_refuse(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------------------ Milstein


def test_milstein_has_strong_order_one_on_geometric_brownian_motion() -> None:
    """E|X_N − X(T)|² exactly: both are products of one factor per step of the same normal, whose moments are Gauss–Hermite sums."""
    drift, noise, horizon = 0.3, 0.6, 1.0
    equation = SDE(lambda x, t: drift * x, lambda x, t: noise * x, Euclidean((1,)))
    nodes, weights_ = np.polynomial.hermite_e.hermegauss(60)
    weights_ = weights_ / weights_.sum()

    def error(solver: Any, n: int) -> float:
        h = horizon / n
        (record,) = bind(solver.plan(equation, torch.tensor([0.0, h], dtype=F64)), torch.ones(1, dtype=F64))
        z = torch.tensor(nodes)[:, None]
        factor = solver.step(equation, torch.ones_like(z), record, (), (z,))[0][:, 0].numpy()
        exact = np.exp((drift - noise**2 / 2) * h + noise * math.sqrt(h) * nodes)
        a, b, c = ((weights_ * v).sum() for v in (factor**2, factor * exact, exact**2))
        return math.sqrt(a**n - 2 * b**n + c**n)

    steps = (32, 64, 128, 256)
    slopes = {s: convergence_order(lambda n, s=s: error(s, n), steps).tolist() for s in (EulerMaruyama(), Milstein())}
    low, high = slopes.values()
    assert all(0.45 < v < 0.6 for v in low) and all(0.95 < v < 1.05 for v in high), slopes


def test_milstein_refuses_matrices() -> None:
    equation = SDE(
        lambda x, t: x,
        lambda x, t: torch.eye(2, dtype=x.dtype).expand(len(x), 2, 2) * (1 + x[:, :1, None]),
        Euclidean((2,)),
    )
    with pytest.raises(TypeError, match="expected a scalar or a diagonal for this solver"):
        solve(equation, torch.ones(3, 2, dtype=F64), [0.0, 0.1], Milstein(), noise=WhiteNoise(0))


# ------------------------------------------------------------------------------------------------------- first passage


@pytest.mark.montecarlo
def test_first_passage_out_of_an_interval() -> None:
    """E τ = x(1 − x) and P(through the upper wall) = x; without the bridge exits are late by O(√h)."""
    n, start = 20_000, 0.3
    still = SDE(lambda x, t: torch.zeros_like(x), 1.0, INTERVAL)
    x = torch.full((n, 1), start, dtype=F64)
    times = torch.linspace(0, 4, 201, dtype=F64)
    run = first_passage(still, x, times, EulerMaruyama(), seed=0)
    assert bool(run.left.all())
    assert abs(float(run.time.mean()) - start * (1 - start)) < 4 * float(run.time.std()) / math.sqrt(n)
    assert abs(float((run.wall == 1).double().mean()) - start) < 4 * math.sqrt(start * (1 - start) / n)
    late = first_passage(still, x, times, EulerMaruyama(), seed=0, bridge=False)
    assert float(late.time.nanmean()) > 1.2 * start * (1 - start)


@pytest.mark.montecarlo
def test_first_passage_with_drift_on_a_coarse_grid_has_the_exact_law() -> None:
    """P(τ ≤ t) = Φ((−a − bt)/√t) + e^{−2ab} Φ((−a + bt)/√t), here with two steps and times within them by the bridge's own law."""
    n, a, b = 30_000, 0.5, -0.5
    equation = SDE(lambda x, t: torch.full_like(x, b), 1.0, Hypercube((1,), 0.0, math.inf))
    run = first_passage(equation, torch.full((n, 1), a, dtype=F64), [0.0, 0.4, 1.0], EulerMaruyama(), seed=range(n))
    law = lambda t: norm.cdf((-a - b * t) / np.sqrt(t)) + math.exp(-2 * a * b) * norm.cdf((-a + b * t) / np.sqrt(t))
    hit = run.time[run.left].numpy()
    assert abs(len(hit) / n - law(1.0)) < 4 * math.sqrt(law(1.0) * (1 - law(1.0)) / n)
    assert kstest(hit, lambda t: law(np.asarray(t)) / law(1.0)).pvalue > 1e-3


def test_first_passage_is_per_sample() -> None:
    equation = SDE(lambda x, t: torch.zeros_like(x), 1.0, Polytope([[1, 0], [0, 1], [-1, -1]], [1, 1, 1.0]))
    x = torch.zeros(4, 2, dtype=F64)
    whole = first_passage(equation, x, np.linspace(0, 1, 21), EulerMaruyama(), seed=[3, 1, 4, 2])
    for i, seed in enumerate([3, 1, 4, 2]):
        alone = first_passage(equation, x[i : i + 1], np.linspace(0, 1, 21), EulerMaruyama(), seed=[seed])
        assert torch.equal(alone.time[0].nan_to_num(), whole.time[i].nan_to_num()) and int(alone.wall[0]) == int(
            whole.wall[i]
        )


def test_quad_is_what_the_reference_says() -> None:
    """finite_difference_reference at zero drift against the closed form, by another road."""
    got = finite_difference_reference(lambda x, t: torch.zeros_like(x), 0.25, 0.2)
    kernel = lambda y: (
        1
        + 2
        * sum(
            math.exp(-((k * math.pi) ** 2) / 8) * math.cos(0.2 * k * math.pi) * math.cos(k * math.pi * y)
            for k in range(1, 40)
        )
    )
    assert got == pytest.approx(quad(lambda y: kernel(y) * math.cos(math.pi * y), 0, 1)[0], abs=1e-10)


def test_defaults_are_what_the_table_says() -> None:
    from carom.solvers.loop import default_wall

    process = Diffusion(Hypercube((1,)), VE())
    flow, reverse = process.flow(lambda x, t: x), process.reverse(lambda x, t: x)
    assert isinstance(default_wall(flow, Heun()), Project)
    assert isinstance(default_wall(reverse, EulerMaruyama()), Reflect)
    assert isinstance(default_wall(reverse, ReflectedEulerMaruyama()), Reflect)
    assert isinstance(default_wall(reverse, DPMSolverPP(2, sde=True)), Cover)
    ball = Diffusion(Ball(2), VE())
    assert isinstance(default_wall(ball.reverse(lambda x, t: x), DPMSolverPP(2, sde=True)), Reflect)
