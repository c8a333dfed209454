"""Analytic-DPM: optimal reverse variances, per-coordinate covariances, least-cost trajectories; formulas.md §5 and errata E1, E2, E24."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, VP, Diffusion, Discrete
from carom.solvers import (
    DDIM,
    AnalyticDPM,
    Ancestral,
    PredictionResidual,
    ScoreStatistics,
    SecondMoment,
    WhiteNoise,
    bind,
    estimate_statistics,
    karras,
    optimal,
    reverse_variance,
    solve,
    uniform_lambda,
)
from carom.solvers.analytic import path_costs, shortest_path
from carom.validation import convergence_order, problems, propagate_moments

F64 = torch.float64
M1 = problems.mixture(Discrete.ddpm(50))
LEVELS = torch.arange(50, 0, -1, dtype=F64) / 50
TO_DATA = torch.cat([LEVELS, torch.zeros(1, dtype=F64)])


def posterior_noise_variance(problem: problems.MixtureProblem) -> Any:
    """Var[ε | x] of a mixture from its score's derivative: 1 + std²·∂score (Tweedie's second formula)."""

    def covariance(x: Tensor, t: Tensor) -> Tensor:
        std = problem.process.schedule.std(t)
        slope = torch.func.jvp(lambda u: problem.score(u, t), (x,), (torch.ones_like(x),))[1]
        return 1 + std**2 * slope

    return covariance


def exact_statistics(problem: problems.MixtureProblem, times: Tensor) -> ScoreStatistics:
    """Γ = (1 − E Var[ε | x])/std² by Gauss–Legendre on panels that resolve the narrowest component; the variance directly, since near pure
    noise 1 − std²Γ would be rounding."""
    node, weight = np.polynomial.legendre.leggauss(20)
    panels = np.linspace(-8, 8, 161)
    x = torch.tensor((0.5 * (panels[1:] + panels[:-1])[:, None] + 0.05 * node).ravel())[:, None]
    w = torch.tensor(np.tile(0.05 * weight, 160))
    variance = posterior_noise_variance(problem)
    share = [float((problem.log_prob(x, float(t)).exp() * variance(x, t)[:, 0] * w).sum()) for t in times]
    gamma = (1 - torch.tensor(share, dtype=F64)) / problem.process.schedule.std(times) ** 2
    return ScoreStatistics(times, gamma, torch.zeros(len(times), dtype=F64))


STATISTICS = exact_statistics(M1, LEVELS)
SHOWN = [50 - n for n in (1, 2, 10, 25, 50)]


def test_gamma_of_m1() -> None:
    want = [14.6579311262, 12.5130650584, 1.50558522663, 1.01722513392, 1.00000189437]
    assert STATISTICS.gamma[SHOWN].tolist() == pytest.approx(want, rel=1e-11)


@pytest.mark.parametrize(
    ("eta", "want"),
    [
        (1.0, [0.00194525879308, 0.00893071128431, 0.0720188242461, 0.196106865372, 0.399999494834]),
        (0.0, [0.00194525879308, 0.00367953100262, 0.00268449640405, 0.000772226540322, 4.9540437471e-7]),
    ],
)
def test_optimal_variances_of_m1(eta: float, want: list[float]) -> None:
    got = reverse_variance(M1.process, STATISTICS, TO_DATA, eta=eta)[SHOWN]
    assert got.tolist() == pytest.approx(want, rel=2e-11)


def test_optimal_variances_bring_the_kl_of_the_notes() -> None:
    """½ Σ_{n ≥ 2} log(γ²/λ²) = 2.46116454632: nodes from 2 on (erratum E24)."""
    gamma = reverse_variance(M1.process, STATISTICS, TO_DATA)
    level = M1.process.level(TO_DATA)
    std = level.scale * level.sigma
    posterior = std[1:] ** 2 * (1 - (level.sigma[1:] / level.sigma[:-1]) ** 2)
    assert 0.5 * float((gamma[:-1] / posterior[:-1]).log().sum()) == pytest.approx(2.46116454632, abs=1e-10)


@pytest.mark.parametrize(
    ("n", "nodes", "cost"),
    [
        (3, [1, 5, 50], 2.7184757337),
        (5, [1, 4, 6, 8, 50], 2.57201909298),
        (10, [1, 3, 4, 5, 6, 7, 8, 9, 11, 50], 2.48326977279),
    ],
)
def test_optimal_trajectories_of_m1(n: int, nodes: list[int], cost: float) -> None:
    times = optimal(M1.process, n, STATISTICS)
    assert (times * 50).round().int().tolist() == nodes[::-1]
    costs = path_costs(M1.process, STATISTICS)
    assert sum(float(costs[50 - a, 50 - b]) for a, b in itertools.pairwise(nodes[::-1])) == pytest.approx(
        cost, abs=1e-9
    )


def test_the_cost_of_an_edge_in_its_other_form() -> None:
    """γ² = β (1 − βΓ)/(1 − β), so that ½ log(γ²/λ²) is ½ log(1 − βΓ), β = 1 − ᾱ_r/ᾱ_s, and what telescopes along a path."""
    costs = path_costs(M1.process, STATISTICS)
    level = M1.process.level(LEVELS)
    r, s = 10, 30
    ab = level.scale[[r, s]] ** 2
    telescopes = 0.5 * ((1 - ab[0]) / (1 - ab[1])).log() - 0.5 * (ab[0] / ab[1]).log()
    other = 0.5 * (1 - (1 - ab[0] / ab[1]) * STATISTICS.gamma[r]).log() + telescopes
    assert float(costs[r, s]) == pytest.approx(float(other), rel=1e-10)


def test_the_linear_trajectory_costs_more() -> None:
    costs = path_costs(M1.process, STATISTICS)
    for n, linear in ((3, 2.96717715573), (5, 2.93377714358), (10, 2.6934860281)):
        nodes = [round(1 + 49 * i / (n - 1)) for i in range(n)][::-1]
        total = sum(float(costs[50 - a, 50 - b]) for a, b in itertools.pairwise(nodes))
        assert total == pytest.approx(linear, abs=0.06) and total > 2.48


def test_shortest_path_is_that_of_brute_force() -> None:
    costs = np.triu(np.random.default_rng(0).random((9, 9)), 1)
    costs[costs == 0] = np.inf
    for n in (2, 3, 5, 9):
        best = min(
            itertools.combinations(range(1, 8), n - 2),
            key=lambda inner: sum(costs[a, b] for a, b in itertools.pairwise((0, *inner, 8))),
        )
        assert shortest_path(costs, n) == [0, *best, 8]


@pytest.mark.montecarlo
def test_statistics_are_estimated_with_their_standard_error() -> None:
    data = M1.score.sample(20_000, generator=torch.Generator().manual_seed(0), dtype=F64)  # type: ignore[attr-defined]
    times = LEVELS[::7]
    got = estimate_statistics(M1.process, M1.score, data, times, seed=1)
    assert bool(((got.gamma - STATISTICS.gamma[::7]).abs() < 4 * got.standard_error).all())
    again = estimate_statistics(M1.process, M1.score, data[:500], times, draws=2, seed=1, batch_size=77)
    assert bool((again.standard_error > 3 * got.standard_error).all())


def test_estimates_near_pure_noise_are_good_enough_to_choose_a_trajectory_from() -> None:
    """1 − std²Γ is 5e-7 to .02 there: |score|² alone leaves ±.01, the noise drawn about 1 % of the value itself, √(2/20,000)."""
    data = M1.score.sample(20_000, generator=torch.Generator().manual_seed(0), dtype=F64)  # type: ignore[attr-defined]
    got = estimate_statistics(M1.process, M1.score, data, LEVELS, seed=1)
    want = STATISTICS.noise_variance(M1.process, LEVELS)
    assert float((got.noise_variance(M1.process, LEVELS) / want - 1).abs().max()) < 0.04
    std = M1.process.schedule.std(LEVELS)
    assert bool((got.standard_error * std**2 < 2 * (2 / 20_000) ** 0.5 * want).all())
    nodes = (50 - optimal(M1.process, 5, got) * 50).round().int().tolist()
    costs = path_costs(M1.process, STATISTICS)
    # equal steps cost 2.934
    assert sum(float(costs[a, b]) for a, b in itertools.pairwise(nodes)) == pytest.approx(2.57201909298, abs=0.01)


def test_between_the_times_of_the_table_gamma_is_interpolated_and_beyond_them_refused() -> None:
    fine = exact_statistics(M1, LEVELS)
    coarse = ScoreStatistics(LEVELS[::2], fine.gamma[::2], fine.standard_error[::2])
    got, want = (s.noise_variance(M1.process, LEVELS[1:48]) for s in (coarse, fine))
    assert float((got - want).abs().max()) < 0.02
    with pytest.raises(ValueError, match="expected a table that covers them"):
        fine.noise_variance(M1.process, torch.tensor([0.01], dtype=F64))


# --------------------------------------------------------------------------------------------------------------- sampling


def test_gaussian_data_comes_out_exactly_in_any_number_of_steps() -> None:
    """For a Gaussian the optimal reverse step is the true one: with the exact start every K gives the exact moments."""
    problem = problems.gaussian(Discrete.ddpm(50))
    process = problem.process
    level = process.level(LEVELS)
    variance = level.scale**2 * 0.25 + (level.scale * level.sigma) ** 2
    statistics = ScoreStatistics(LEVELS, 1 / variance, torch.zeros(50, dtype=F64))
    for nodes in ((50, 1), (50, 20, 1), tuple(range(50, 0, -1))):
        times = torch.tensor(nodes, dtype=F64) / 50
        mean, covariance = problem.moments(1.0)
        got = propagate_moments(process.reverse(problem.score), AnalyticDPM(statistics), times, mean, covariance)
        want = problem.moments(1 / 50)
        assert float(got[0]) == pytest.approx(float(want[0]), abs=1e-12)
        assert float(got[1]) == pytest.approx(float(want[1]), abs=1e-10)  # near pure noise 1 − std²Γ loses six digits
        ancestral = propagate_moments(process.reverse(problem.score), Ancestral(), times, mean, covariance)
        assert abs(float(ancestral[1]) - float(want[1])) > 1e-3


def test_it_has_order_one_as_ddim_has() -> None:
    problem = problems.gaussian(VP())
    grid = lambda n: uniform_lambda(problem.process, n + 1, sigma_max=2.0, sigma_min=0.3)
    mean, covariance = problem.moments(float(grid(1)[0]))
    want = torch.cat([v.flatten() for v in problem.moments(float(grid(1)[-1]))])
    fine = uniform_lambda(problem.process, 2000, sigma_max=2.1, sigma_min=0.29)
    level = problem.process.level(fine)
    wrong = 1 / (
        level.scale**2 * 0.3 + (level.scale * level.sigma) ** 2
    )  # as if the data were wider: then it converges, too

    def run(n: int) -> Tensor:
        rule = AnalyticDPM(ScoreStatistics(fine, wrong, wrong * 0))
        return torch.cat(
            [
                v.flatten()
                for v in propagate_moments(problem.process.reverse(problem.score), rule, grid(n), mean, covariance)
            ]
        )

    slopes = convergence_order(run, (16, 32, 64, 128), want)
    assert bool(((slopes > 0.9) & (slopes < 1.4)).all()), slopes


def test_covariances_per_state_match_their_definitions() -> None:
    """SN: h − ε², NPR: g itself; both give Cov[ε | x] (erratum E1: not 1 − Cov/d), whose mean is 1 − std²Γ (E2: squares elementwise)."""
    var = posterior_noise_variance(M1)
    t = torch.tensor(0.2, dtype=F64)
    x = torch.linspace(-2, 2, 7, dtype=F64)[:, None]
    noise = -M1.process.schedule.std(t) * M1.score(x, t)
    second = SecondMoment(lambda u, s: var(u, s) + (M1.process.schedule.std(s) * M1.score(u, s)) ** 2)
    torch.testing.assert_close(second(x, t, noise), var(x, t))
    torch.testing.assert_close(PredictionResidual(var)(x, t, noise), var(x, t))
    # one step from t to s, by hand
    process, s = M1.process, 0.1
    rule = AnalyticDPM(PredictionResidual(var), eta=0.6)
    (record,) = bind(rule.plan(process.reverse(M1.score), torch.tensor([0.2, s], dtype=F64)), x)
    moved, _ = rule.step(process.reverse(M1.score), x, record, (), (torch.ones_like(x),))
    a, b = process.level(0.2), process.level(s)
    std_b = float(b.scale * b.sigma)
    square = 0.36 * std_b**2 * (1 - float(b.sigma / a.sigma) ** 2)
    factor = (math.sqrt(std_b**2 - square) - float(b.scale * a.sigma)) ** 2
    data = (x - float(a.scale * a.sigma) * noise) / float(a.scale)
    want = float(b.scale) * data + math.sqrt(std_b**2 - square) * noise + (square + factor * var(x, t)).sqrt()
    torch.testing.assert_close(moved, want, rtol=1e-12, atol=1e-13)


@pytest.mark.montecarlo
def test_fewer_steps_suffice_with_the_optimal_variance() -> None:
    """Ten steps on M1: E x² after DDPM's β̃ is too small by far, after the optimal variance it is right to 2 %; seen per state, better."""
    from carom.validation import energy_distance

    n = 8000
    times = torch.cat([LEVELS[::5], torch.zeros(1, dtype=F64)])
    x = torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    real = M1.score.sample(n, generator=torch.Generator().manual_seed(1), dtype=F64)  # type: ignore[attr-defined]
    rules = (Ancestral(), AnalyticDPM(STATISTICS), AnalyticDPM(PredictionResidual(posterior_noise_variance(M1))))
    gaps = [
        energy_distance(
            solve(M1.process.reverse(M1.score), x, times, r, noise=WhiteNoise(2)).x[:2000], real[:2000]
        ).value
        for r in rules
    ]
    assert gaps[1] < 0.8 * gaps[0] and gaps[2] < 0.8 * gaps[0], gaps


def test_clipping_is_an_argument_and_off_by_default() -> None:
    """Var[x0 | x] ≤ (width/2)²; the last steps' std; a step to σ = 0 draws nothing."""
    free = reverse_variance(M1.process, STATISTICS, TO_DATA)
    clipped = reverse_variance(M1.process, STATISTICS, TO_DATA, data_width=0.5)
    assert bool((clipped <= free + 1e-15).all()) and bool((clipped < free - 1e-6).any())
    # (2/255 · 2 · √(π/2))² = 3.86508900096e-4
    last = 2 / 255 * 2 * math.sqrt(math.pi / 2)
    assert last**2 == pytest.approx(3.86508900096e-4, rel=1e-11)
    plan = AnalyticDPM(STATISTICS, last_std=last).plan(M1.process.reverse(M1.score), LEVELS)
    stds = [record.coefficients[2][0] for record in plan]
    assert stds[-1] == stds[-2] == pytest.approx(last) and stds[-3] > last
    quiet = AnalyticDPM(STATISTICS).plan(M1.process.reverse(M1.score), TO_DATA)[-1]
    assert quiet.draws == 0
    covariance = AnalyticDPM(lambda x, t, noise: torch.full_like(x, 9.0), data_width=0.5, last_std=0.01, last_steps=1)
    run = solve(M1.process.reverse(M1.score), torch.zeros(3, 1, dtype=F64), LEVELS, covariance, noise=WhiteNoise(0))
    assert bool(run.ok.all())


def test_eta_zero_without_uncertainty_is_ddim() -> None:
    none = AnalyticDPM(lambda x, t, noise: torch.zeros_like(x), eta=0.0)
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    got = solve(M1.process.reverse(M1.score), x, LEVELS, none, noise=WhiteNoise(0)).x
    torch.testing.assert_close(got, solve(M1.process.flow(M1.score), x, LEVELS, DDIM()).x, rtol=0, atol=1e-13)


def test_between_walls_and_on_trajectories_of_other_schedules() -> None:
    process = Diffusion(Hypercube((2,)), VE())
    score = problems.cosine(0.5, dim=2).score
    times = karras(process, 30)
    data = torch.rand(200, 2, dtype=F64)
    statistics = estimate_statistics(process, score, data, times)
    assert len(optimal(process, 8, statistics)) == 8
    run = solve(
        process.reverse(score), data, optimal(process, 8, statistics), AnalyticDPM(statistics), noise=WhiteNoise(0)
    )
    assert bool(process.domain.contains(run.x).all())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AnalyticDPM(3), TypeError, "expected ScoreStatistics"),
        (lambda: AnalyticDPM(STATISTICS, eta=-1.0), ValueError, "eta: got -1"),
        (lambda: optimal(M1.process, 1, STATISTICS), ValueError, "expected from 2 to 50"),
        (lambda: optimal(M1.process, 51, STATISTICS), ValueError, "expected from 2 to 50"),
        (lambda: AnalyticDPM(STATISTICS, eta=3.0).plan(M1.process.reverse(M1.score), LEVELS), ValueError, "lower eta"),
        (lambda: estimate_statistics(M1.process, M1.score, torch.zeros(3, 2), LEVELS), ValueError, "expected"),
        (lambda: Diffusion(Euclidean((1,)), VP()).level(-1.0), ValueError, "expected times of at least 0"),
    ],
)
def test_refusals(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
