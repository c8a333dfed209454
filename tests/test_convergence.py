"""Laws and rates against closed forms: the convergence theorem's case, discretisation, Fokker–Planck residuals, conservativity."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.linalg import expm, solve_continuous_lyapunov
from scipy.stats import norm

from carom.domains import Euclidean, Hypercube
from carom.processes import (
    EDM,
    ODE,
    SDE,
    VE,
    VP,
    Diffusion,
    FlowMatching,
    ForwardSDE,
    SubVP,
    TimeReversal,
)
from carom.solvers import EulerMaruyama, Heun, Milstein, ReflectedStrang, solve
from carom.validation import (
    OrnsteinUhlenbeck,
    asymmetry,
    discretisation,
    exponential_rates,
    family_residuals,
    fokker_planck_residual,
    gaussian_gap,
    linear_law,
    problems,
    propagate_moments,
)
from carom.validation.bounds import GaussianStudy, gaussian_divergence

LINE, PLANE = Euclidean((1,)), Euclidean((2,))
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------------------------ gaps of Gaussian laws


@pytest.mark.parametrize(
    ("one", "other"), [((0.5, 0.25), (0.3, 0.5)), ((0.0, 2.0), (0.0, 0.3)), ((1.0, 1.0), (-0.5, 1.0))]
)
def test_the_three_distances_of_gaussians_are_their_integrals(one, other) -> None:
    p, q = norm(one[0], math.sqrt(one[1])), norm(other[0], math.sqrt(other[1]))
    kinks = np.linspace(-9, 9, 37)
    variation = sum(quad(lambda x: 0.5 * abs(p.pdf(x) - q.pdf(x)), a, b)[0] for a, b in itertools.pairwise(kinks))
    # quantile functions have integrable ends; 1e-6 is quad's there
    transport = quad(lambda u: (p.ppf(u) - q.ppf(u)) ** 2, 0, 1)[0]
    gap = gaussian_gap(one, other)
    # the kinks of |p − q| lie within panels of ½
    assert gap.total_variation == pytest.approx(variation, abs=1e-8)
    assert gap.wasserstein == pytest.approx(math.sqrt(transport), abs=1e-6)
    assert gap.divergence == pytest.approx(gaussian_divergence(one, other), abs=1e-14)


def test_distances_of_gaussians_in_the_plane_have_their_closed_forms_and_vanish_only_at_equality() -> None:
    c, d = np.array([[0.5, 0.2], [0.2, 0.3]]), np.array([[0.4, -0.1], [-0.1, 0.6]])
    gap = gaussian_gap((double(0.5, -0.3), c), (double(0.1, 0.2), d))
    cross = np.sqrt(np.linalg.eigvals(c @ d).real).sum()
    assert gap.wasserstein**2 == pytest.approx(0.16 + 0.25 + np.trace(c) + np.trace(d) - 2 * cross, rel=1e-12)
    shift = np.array([0.4, -0.5])
    whole = (
        np.trace(np.linalg.solve(d, c))
        - 2
        - math.log(np.linalg.det(c) / np.linalg.det(d))
        + shift @ np.linalg.solve(d, shift)
    )
    assert gap.divergence == pytest.approx(0.5 * whole, rel=1e-12) and math.isnan(gap.total_variation)
    same = gaussian_gap((double(0.5, -0.3), c), (double(0.5, -0.3), c))
    # W2² is a sum of squares of rounded roots
    assert same.wasserstein < 1e-14 and abs(same.divergence) < 1e-15
    assert gaussian_gap((0.2, 0.7), (0.2, 0.7)).total_variation == 0


def test_gaps_keep_their_digits_between_laws_that_nearly_agree() -> None:
    # to first order: |δm| φ(0), and ½∫½δv|z² − 1|φ = δv φ(1); masses of size 1 leave 1e-16 of 1e-9
    tilted, spread = gaussian_gap((1e-9, 1.0), (0.0, 1.0)), gaussian_gap((0.0, 1 + 1e-9), (0.0, 1.0))
    assert tilted.total_variation == pytest.approx(1e-9 / math.sqrt(2 * math.pi), rel=1e-6)
    assert spread.total_variation == pytest.approx(1e-9 * norm.pdf(1.0), rel=1e-6)
    assert gaussian_gap((1e-9, 1.0), (0.0, 1.0)).wasserstein == pytest.approx(1e-9, rel=1e-12)


# ------------------------------------------------------------------------------------ the case of the theorem


def test_total_variation_of_the_reversed_ornstein_uhlenbeck_process_has_the_reference_values() -> None:
    times = (4.0, 8.0, 12.0, 16.0, 20.0)
    study = OrnsteinUhlenbeck(rate=0.1)
    found = [study.gap(t).total_variation for t in times]
    expected = [0.00850324473467, 0.00252478724858, 0.000993679592248, 0.000423456183218, 0.000186000783393]
    assert found == pytest.approx(expected, rel=1e-11)
    rates = exponential_rates(found, times)
    assert rates[1:].tolist() == pytest.approx([0.2331, 0.2132, 0.2057], abs=5e-5)
    # the printed e^{−√α T} would need rates of at least √α; they fall to 2α
    assert bool((rates < math.sqrt(0.1)).all()) and bool((rates > 0.2).all()) and bool((rates.diff() < 0).all())


def test_without_drift_the_error_falls_as_one_over_the_horizon_and_the_prior_as_its_root() -> None:
    study, times = OrnsteinUhlenbeck(rate=0.0), (10.0, 100.0, 1e3, 1e4)
    found = [study.gap(t).total_variation for t in times]
    assert found[0] == pytest.approx(0.00492546358, abs=6e-12) and found[1] == pytest.approx(
        4.98055540157e-4, rel=1e-11
    )
    priors = [gaussian_gap(study.marginal(t), study.prior(t)).total_variation for t in times]
    for values, slope in ((found, -1.0), (priors, -0.5)):
        last = math.log(values[-1] / values[-2]) / math.log(10)
        # what is left are terms of relative size 1/T
        assert last == pytest.approx(slope, abs=1e-3)


def test_the_closed_law_is_that_of_the_moment_equations_and_of_the_study_of_bounds() -> None:
    for rate, horizon in ((0.1, 4.0), (0.0, 3.0), (1.0, 2.0)):
        study = OrnsteinUhlenbeck(rate, (-0.4, 0.6))
        mean, variance = study.prior(horizon)
        reverse = TimeReversal(study.equation, study.score)
        m, c = linear_law(reverse, horizon, 0.0, double(mean), double(variance)[None])
        assert (float(m), float(c)) == pytest.approx(study.law(horizon), abs=1e-11)
        m, c = linear_law(study.equation, 0.0, horizon, double(-0.4), double(0.6)[None])
        assert (float(m), float(c)) == pytest.approx(study.marginal(horizon), abs=1e-11)
    # in units of the prior's std the process is VP of constant β = 2α on [0, 1]
    root, horizon = math.sqrt(0.1), 4.0
    data = (0.5 * root, 0.25 * 0.1)
    other = GaussianStudy(Diffusion(LINE, VP(2 * 0.1 * horizon, 2 * 0.1 * horizon)), data, data).sde_law()
    mean, variance = OrnsteinUhlenbeck(0.1).law(horizon)
    assert (mean * root, variance * 0.1) == pytest.approx(other, abs=1e-14)


def test_laws_of_equations_whose_coordinates_pull_each_other() -> None:
    """dx = (Ax + k) dt + G dW, neither A nor G symmetric: the moments by matrix exponential and Lyapunov's equation."""
    a, g, k = np.array([[-1.0, 2.0], [0.0, -0.5]]), np.array([[1.0, 0.0], [0.7, 0.4]]), np.array([0.3, -1.0])
    drift = lambda x, t: (x[..., None, :] * torch.tensor(a)).sum(-1) + torch.tensor(k)
    equation, t = SDE(drift, torch.tensor(g), PLANE), 0.8
    start, spread = np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]])
    mean, covariance = linear_law(equation, 0.0, t, torch.tensor(start), torch.tensor(spread))
    flow, rest, limit = expm(a * t), -np.linalg.solve(a, k), solve_continuous_lyapunov(a, -g @ g.T)
    np.testing.assert_allclose(mean.numpy(), rest + flow @ (start - rest), rtol=0, atol=1e-11)
    np.testing.assert_allclose(covariance.numpy(), limit + flow @ (spread - limit) @ flow.T, rtol=0, atol=1e-11)


def test_euler_steps_have_the_reference_values_and_slope_one_where_the_theorem_says_one_half() -> None:
    study = OrnsteinUhlenbeck(rate=1.0)
    found = [study.gap(8.0, n).total_variation for n in (200, 400, 800, 1600, 3200)]
    assert found[:3] == pytest.approx([0.0369237204157, 0.0183962051345, 0.00916765658916], rel=5e-12)
    assert -math.log2(found[-1] / found[-2]) == pytest.approx(1.0, abs=0.005)  # "1.00"
    # a rule of the same weak order: the diffusion does not depend on the state
    assert study.chain(8.0, 50, Milstein()) == pytest.approx(study.chain(8.0, 50), abs=1e-14)
    # and one of weak order 2, from an error in the variance of .022 at 50 steps, where Euler's is .199
    errors = [study.chain(8.0, n, ReflectedStrang())[1] - 0.25 for n in (100, 200, 400)]
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([2.0, 2.0], abs=0.15)
    assert OrnsteinUhlenbeck() == OrnsteinUhlenbeck(1.0, (0.5, 0.25))


# ------------------------------------------------------------------------------------------------ discretisation


def test_laws_near_the_exact_one_with_the_order_of_the_rule_and_kl_with_twice_that() -> None:
    study = OrnsteinUhlenbeck(rate=1.0)
    start = (double(0.0), double(1.0)[None])
    grid = lambda n: torch.linspace(2, 0, n + 1, dtype=torch.float64)
    euler = discretisation(TimeReversal(study.equation, study.score), EulerMaruyama(), grid, (64, 128, 256), start)
    # what is left at 128 steps: half of what is left at 64
    for slopes, order in ((euler.total_variation, 1), (euler.wasserstein, 1), (euler.divergence, 2)):
        assert float(slopes[-1]) == pytest.approx(order, abs=0.06)
    heun = discretisation(TimeReversal(study.equation, study.score).flow(), Heun(), grid, (64, 128, 256), start)
    for slopes, order in ((heun.total_variation, 2), (heun.wasserstein, 2), (heun.divergence, 4)):
        assert float(slopes[-1]) == pytest.approx(order, abs=0.12)
    assert len(euler.gaps) == 3 and euler.gaps[-1].total_variation < euler.gaps[0].total_variation


def test_a_wrong_rule_does_not_near_the_exact_law() -> None:
    study = OrnsteinUhlenbeck(rate=1.0)
    start = (double(0.0), double(1.0)[None])
    # the reverse drift with g²/2 in place of g²: the flow's drift with the SDE's noise
    wrong = SDE(lambda x, t: -x - study.score(x, t), math.sqrt(2), LINE)
    right = linear_law(TimeReversal(study.equation, study.score), 2.0, 0.0, *start)
    found = discretisation(wrong, EulerMaruyama(), lambda n: np.linspace(2, 0, n + 1), (32, 64), start, exact=right)
    assert abs(float(found.total_variation)) < 0.1 and found.gaps[-1].total_variation > 0.1


# --------------------------------------------------------------------------------- the Fokker–Planck residual


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(), EDM(), FlowMatching()])
def test_all_members_of_a_family_share_the_marginals_whatever_the_schedule(schedule) -> None:
    problem = problems.mixture_2d(schedule)
    # where σ is moderate, so that residuals are differences of numbers of moderate size
    t = float(problem.process.level(sigma=0.7).t)
    found = family_residuals(problem.process, problem.score, problem.log_prob, problem.points(t), t)
    scale = float(problem.process.schedule.diffusion(double(t))) ** 2
    assert len(found) == 9 and max(found.values()) < 1e-11 * max(1.0, scale)


def test_families_share_the_marginals_on_the_cube_and_by_the_law_of_every_member() -> None:
    cube = problems.cosine(dim=2)
    t = float(cube.process.level(sigma=0.3).t)
    assert max(family_residuals(cube.process, cube.score, cube.log_prob, cube.points(t), t).values()) < 1e-10
    plane = problems.gaussian_2d()
    late, early = (plane.moments(t) for t in (0.4, 0.3))
    equations = [(plane.process.reverse(plane.score, eta), 0.4, 0.3) for eta in (0.5, 2.0)]
    equations += [(ForwardSDE(plane.process, plane.score, 0.5), 0.3, 0.4), (plane.process.flow(plane.score), 0.4, 0.3)]
    for equation, start, end in equations:
        law, expected = (late, early) if start > end else (early, late)
        mean, covariance = linear_law(equation, start, end, *law, tolerance=1e-10)
        torch.testing.assert_close(mean, expected[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(covariance, expected[1], rtol=0, atol=1e-8)


def gaussian(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """log N(0, I), stationary."""
    return -0.5 * x.square().sum(-1)


def test_a_wrong_drift_has_the_residual_derived_for_it() -> None:
    x = torch.randn(7, 1, dtype=torch.float64)
    # N(0, 1) under dx = −κx dt + √2 dW: v = (1 − κ)x, r = (1 − κ)(1 − x²)
    for kappa in (1.0, 1.3, 0.0):
        found = fokker_planck_residual(SDE(lambda x, t, k=kappa: -k * x, math.sqrt(2), LINE), gaussian, x, 0.4)
        torch.testing.assert_close(found, (1 - kappa) * (1 - x[:, 0] ** 2), rtol=0, atol=1e-14)
    # with time: the flow of the forward process with half the score, δ = ¼β∇log p
    problem = problems.gaussian()
    halved = problem.process.flow(lambda x, t: 0.5 * problem.score(x, t))
    mean, variance = (float(v) for v in problem.moments(0.3))
    beta = float(problem.process.schedule.diffusion(double(0.3))) ** 2
    expected = 0.25 * beta * (-1 / variance + (x[:, 0] - mean) ** 2 / variance**2)
    torch.testing.assert_close(fokker_planck_residual(halved, problem.log_prob, x, 0.3), expected, rtol=0, atol=1e-12)


def test_noise_that_depends_on_the_state_enters_as_ito_says() -> None:
    mu, sigma = 0.3, 0.5

    def log_normal(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        z = x.log() - (mu - 0.5 * sigma**2) * t
        return (-0.5 * z**2 / (sigma**2 * t) - x.log() - 0.5 * t.log())[..., 0]

    x, t = torch.linspace(0.5, 2.5, 6, dtype=torch.float64)[:, None], torch.linspace(0.4, 1.2, 6, dtype=torch.float64)
    ito = SDE(lambda x, t: mu * x, lambda x, t: sigma * x, LINE)
    assert float(fokker_planck_residual(ito, log_normal, x, t).abs().max()) < 1e-12
    # read as Stratonovich's the drift gains ½σ²x
    other = SDE(lambda x, t: (mu + 0.5 * sigma**2) * x, lambda x, t: sigma * x, LINE)
    slope = -1 / x - (x.log() - (mu - 0.5 * sigma**2) * t[:, None]) / (sigma**2 * t[:, None] * x)
    expected = (0.5 * sigma**2 * (1 + x * slope))[:, 0]
    torch.testing.assert_close(fokker_planck_residual(other, log_normal, x, t), expected, rtol=0, atol=1e-12)


def shear(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """g = [[1, 0], [x₀, 1]]: D = g gᵀ has ∇·D = (0, 1)."""
    one, zero = torch.ones_like(x[..., 0]), torch.zeros_like(x[..., 0])
    return torch.stack([torch.stack([one, zero], -1), torch.stack([x[..., 0], one], -1)], -2)


def riemannian(x: torch.Tensor, divergence: float) -> torch.Tensor:
    g = shear(x, x)
    pull = (g @ (g.mT @ -x[..., None]))[..., 0]
    return 0.5 * (pull + divergence * double(0.0, 1.0))


@pytest.mark.parametrize("batch", [(5,), (2,), (3, 2)])
def test_matrix_noise_needs_its_divergence_in_the_drift(batch) -> None:
    x = torch.randn(*batch, 2, dtype=torch.float64)
    right = SDE(lambda x, t: riemannian(x, 1.0), shear, PLANE)
    assert float(fokker_planck_residual(right, gaussian, x, 0.0).abs().max()) < 1e-13
    # left out, v lacks (0, ½) and r gains ½x₁
    wrong = SDE(lambda x, t: riemannian(x, 0.0), shear, PLANE)
    torch.testing.assert_close(fokker_planck_residual(wrong, gaussian, x, 0.0), 0.5 * x[..., 1], rtol=0, atol=1e-13)


def test_time_may_fall_and_an_ode_moves_densities_as_its_flow_does() -> None:
    x = torch.randn(5, 1, dtype=torch.float64)
    spreading = lambda x, t: -0.5 * (x[..., 0] ** 2) / (1 + t[..., 0]) - 0.5 * (1 + t[..., 0]).log()
    # N(0, 1 + t): heat flow forwards; backwards the drift is the whole score
    assert float(fokker_planck_residual(SDE(lambda x, t: 0 * x, 1.0, LINE), spreading, x, 0.5).abs().max()) < 1e-14
    back = SDE(lambda x, t: x / (1 + t), 1.0, LINE)
    assert float(fokker_planck_residual(back, spreading, x, 0.5, direction=-1).abs().max()) < 1e-14
    assert float(fokker_planck_residual(back, spreading, x, 0.5).abs().max()) > 0.1
    assert (
        float(fokker_planck_residual(ODE(lambda x, t: 0.5 * x / (1 + t), LINE), spreading, x, 0.5).abs().max()) < 1e-14
    )


def test_the_reversal_of_a_general_sde_has_its_marginals_at_every_stochasticity() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    matrix = SDE(lambda x, t: riemannian(x, 1.0), shear, PLANE)
    diagonal = SDE(
        lambda x, t: -0.5 * x * (1 + x.flip(-1) ** 2),
        lambda x, t: (1 + x.flip(-1) ** 2).sqrt(),
        PLANE,
    )
    by_time = SDE(lambda x, t: -0.5 * (1 + t) * x, lambda x, t: (1 + t).sqrt(), PLANE)
    constant = SDE(lambda x, t: -x, math.sqrt(2), PLANE)
    for sde in (matrix, diagonal, by_time, constant):
        assert float(fokker_planck_residual(sde, gaussian, x, 0.3).abs().max()) < 1e-13
        for eta in (0.4, 1.0):
            reverse = TimeReversal(sde, lambda x, t: -x, eta)
            assert float(fokker_planck_residual(reverse, gaussian, x, 0.3).abs().max()) < 1e-12
        flow = TimeReversal(sde, lambda x, t: -x).flow()
        assert float(fokker_planck_residual(flow, gaussian, x, 0.3).abs().max()) < 1e-12
    # and a score that is wrong by δ = −x shows: r = −½(1 + η)[∇·(Dδ) + Dδ·∇log p] = ½·2·2·(2 − |x|²) for D = 2
    wrong = TimeReversal(constant, lambda x, t: -2 * x)
    expected = 2 * (2 - x.square().sum(-1))
    torch.testing.assert_close(fokker_planck_residual(wrong, gaussian, x, 0.3), expected, rtol=0, atol=1e-13)


def test_the_reversal_is_the_reverse_sde_of_a_process_and_runs_in_falling_time_only() -> None:
    problem, x = problems.gaussian_2d(VP()), torch.randn(6, 2, dtype=torch.float64)
    schedule = problem.process.schedule
    sde = SDE(lambda x, t: schedule.drift_rate(t) * x, lambda x, t: schedule.diffusion(t), PLANE)
    times = np.linspace(0.9, 0.1, 9)
    start = problem.moments(0.9)
    for eta in (0.5, 1.0):
        ours = propagate_moments(TimeReversal(sde, problem.score, eta), EulerMaruyama(), times, *start)
        theirs = propagate_moments(problem.process.reverse(problem.score, eta), EulerMaruyama(), times, *start)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    flow = solve(TimeReversal(sde, problem.score).flow(), x, times, Heun()).x
    torch.testing.assert_close(flow, solve(problem.process.flow(problem.score), x, times, Heun()).x, rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match="runs the other way"):
        solve(TimeReversal(sde, problem.score), x, times[::-1].copy(), EulerMaruyama())
    # keywords of a solve reach the score
    shifted = lambda x, t, by=0.0: problem.score(x, t) + by
    moved = solve(TimeReversal(sde, shifted).flow(), x, times, Heun(), condition={"by": 1.0}).x
    assert float((moved - flow).abs().min()) > 0.1


def test_a_reversal_is_refused_a_score_of_another_domain() -> None:
    cube = problems.cosine()
    with pytest.raises(
        ValueError, match=r"score: got one on Hypercube.*expected one on the domain of the SDE, Euclidean"
    ):
        TimeReversal(SDE(lambda x, t: -x, 1.0, LINE), cube.score)


def test_what_is_no_equation_and_what_has_no_derivative_are_refused() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    plane = problems.gaussian_2d()
    with pytest.raises(TypeError, match=r"equation: got Diffusion, expected an equation: process.flow"):
        fokker_planck_residual(plane.process, plane.log_prob, x, 0.3)
    with pytest.raises(ValueError, match="x does not enter differentiably"):
        asymmetry(lambda x, t: -x.detach(), x, 0.3)
    with pytest.raises(TypeError, match=r"x: got torch.int64, expected float32"):
        asymmetry(lambda x, t: -x, torch.zeros(2, 2, dtype=torch.long), 0.3)


# ------------------------------------------------------------------------------------------------- conservativity


def twisted(x: torch.Tensor, t: torch.Tensor, w: float = 0.7) -> torch.Tensor:
    return -x + w * (x[..., None, :] * TURN.to(x)).sum(-1)


def test_a_score_with_a_rotation_is_no_gradient_and_still_leaves_the_marginals_alone() -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    for w in (0.0, 0.7, -3.0):
        found = asymmetry(twisted, x, 0.5, w=w)
        expected = torch.full_like(x[:, 0], 2 * abs(w) / math.sqrt(1 + w * w))
        torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-14)
        assert not found.standard_error.any()
    process = Diffusion(PLANE, VP())
    # erratum E9: p = N(0, I) under VP for flow and SDE alike, though the score is not ∇log p
    assert max(family_residuals(process, twisted, gaussian, x, 0.5).values()) < 1e-12
    found = family_residuals(process, lambda x, t: -1.1 * x, gaussian, x, 0.5)
    # only the forward SDE itself asks for no score
    assert found.pop("forward 1") < 1e-12 and len(found) == 8 and min(found.values()) > 0.01


def test_probes_find_the_asymmetry_of_a_large_score_within_their_standard_error() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(96, 96, dtype=torch.float64, generator=generator) / 10
    score = lambda x, t: -x + (x @ weights.T).tanh() * t
    x = torch.randn(40, 96, dtype=torch.float64, generator=generator)
    slopes = (1 - (x @ weights.T).tanh() ** 2)[..., None] * weights - torch.eye(96, dtype=torch.float64)
    exact = (slopes - slopes.mT).square().sum((1, 2)).div(slopes.square().sum((1, 2))).sqrt()
    found = asymmetry(score, x, 1.0)  # 64 probes by default beyond 64 coordinates
    z = (found.value - exact) / found.standard_error
    # 40 points share their law but not their probes: the mean square of z is 1 ± √(2/40), of t-like tails at 64 probes
    assert bool((found.standard_error > 0).all()) and 0.4 < float(z.square().mean()) < 1.9
    few = asymmetry(score, x[:2], torch.ones(2, dtype=torch.float64), probes=4, seed=3)
    assert bool((few.standard_error > found.standard_error[:2]).all())
    other = asymmetry(score, x[:2], torch.ones(2, dtype=torch.float64), probes=4, seed=4)
    assert not torch.equal(few.value, other.value)
    assert torch.equal(found.value, asymmetry(score, x, 1.0, probes=64).value)
    gradient = asymmetry(lambda x, t: -x.tanh() * 2, x, 0.1, probes=2)
    # Jv and Jᵀv of a gradient are the same numbers up to rounding
    assert float(gradient.value.max()) < 1e-14 and float(gradient.standard_error.max()) < 1e-14


def test_asymmetry_of_events_of_any_shape() -> None:
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    flat = torch.tensor([[1.0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 1, -2], [0, 0, 0, 1]], dtype=torch.float64)
    score = lambda x, t: (x.flatten(-2) @ flat.T).reshape(x.shape)
    # ‖J − Jᵀ‖² = 4·4, ‖J‖² = 4 + 8
    expected = torch.full((3,), math.sqrt(16 / 12), dtype=torch.float64)
    torch.testing.assert_close(asymmetry(score, x, 0.0, event_ndim=2).value, expected, rtol=0, atol=1e-14)
    assert float(asymmetry(lambda x, t: -(x**3), double(0.3, 0.4), 0.0, event_ndim=0).value.max()) == 0
    # the closed-form score of a mixture is a gradient
    problem = problems.mixture_2d()
    assert float(asymmetry(problem.score, problem.points(0.3), 0.3).value.max()) < 1e-12


# ------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_studied_is_refused() -> None:
    study, x = OrnsteinUhlenbeck(), torch.zeros(3, 1, dtype=torch.float64)
    uneven = double(1.0, 0.5, 0.0, 1.0).reshape(2, 2)
    for mean, spread in ((0.0, -1.0), (math.nan, 1.0), (0.0, math.nan), (double(0, 0), uneven)):
        with pytest.raises(ValueError, match="positive definite"):
            gaussian_gap((mean, spread), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"mean \(2,\)"):
        gaussian_gap((double(0, 0), double(1.0)), (0.0, 1.0))
    with pytest.raises(ValueError, match="of 1 and 2 dimensions"):
        gaussian_gap((0.0, 1.0), (double(0, 0), torch.eye(2)))
    with pytest.raises(ValueError, match="runs the other way"):
        linear_law(TimeReversal(study.equation, study.score), 0.0, 1.0, double(0.0), double(1.0)[None])
    for bent in (lambda x, t: -(x**3), lambda x, t: -x + 1e-6 * x**2):
        with pytest.raises(ValueError, match="not affine"):
            linear_law(SDE(bent, 1.0, LINE), 0.0, 1.0, double(0.0), double(1.0)[None])
    with pytest.raises(ValueError, match="the noise of SDE depends on x at t = 0"):
        linear_law(SDE(lambda x, t: -x, lambda x, t: x, LINE), 0.0, 1.0, double(0.0), double(1.0)[None])
    for values, at in (([1.0, 0.5], [2.0, 1.0]), ([1.0, 0.5], [1.0, 1.0]), ([1.0], [1.0]), ([1.0, 0.0], [0.0, 1.0])):
        with pytest.raises(ValueError, match="exponential_rates: got"):
            exponential_rates(values, at)
    with pytest.raises(ValueError, match="exponential_rates: got"):
        exponential_rates([math.nan, 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="steps: got 0, expected a whole number"):
        study.gap(1.0, 0)
    with pytest.raises(ValueError, match="rate"):
        OrnsteinUhlenbeck(rate=-1.0)
    with pytest.raises(ValueError, match="variance of the data"):
        OrnsteinUhlenbeck(data=(0.0, 0.0))
    with pytest.raises(ValueError, match="horizon"):
        study.gap(0.0)
    with pytest.raises(ValueError, match="direction: got 1, but TimeReversal"):
        fokker_planck_residual(TimeReversal(study.equation, study.score), gaussian, x, 0.5, direction=1)
    with pytest.raises(ValueError, match="direction: got 2"):
        fokker_planck_residual(study.equation, gaussian, x, 0.5, direction=2)
    with pytest.raises(ValueError, match="log_density: got"):
        fokker_planck_residual(study.equation, lambda x, t: -0.5 * x**2, x, 0.5)
    with pytest.raises(ValueError, match="differentiable in x"):
        fokker_planck_residual(study.equation, lambda x, t: -0.5 * x.detach().square().sum(-1), x, 0.5)
    with pytest.raises(ValueError, match="lie outside"):
        fokker_planck_residual(SDE(lambda x, t: -x, 1.0, Hypercube((1,))), gaussian, x - 1, 0.5)
    with pytest.raises(ValueError, match="probes: got 1"):
        asymmetry(twisted, x, 0.5, probes=1)
    with pytest.raises(ValueError, match="event_ndim: got 3"):
        asymmetry(twisted, x, 0.5, event_ndim=3)
    reverse = TimeReversal(study.equation, study.score)
    with pytest.raises(TypeError, match="got a TimeReversal, which runs towards falling t already"):
        TimeReversal(reverse, study.score)
    assert torch.equal(study.score(x, 0.5), study.score(x, double(0.5)))
    with pytest.raises(TypeError, match="sde: got Diffusion"):
        TimeReversal(Diffusion(LINE, VP()), study.score)
    wrong = TimeReversal(study.equation, lambda x, t: study.score(x, t)[:1])
    with pytest.raises(ValueError, match=r"score/drift: got \(1, 1\)"):
        solve(wrong, x, [1.0, 0.5], EulerMaruyama())
    with pytest.raises(TypeError, match="score: got NoneType"):
        TimeReversal(study.equation, None)
    with pytest.raises(ValueError, match="stochasticity"):
        TimeReversal(study.equation, study.score, -1.0)
