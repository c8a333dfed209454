"""Critically damped Langevin diffusion: its kernel against an ODE solve, reference values to the digits given, orders by exact moments."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.integrate
import torch
from torch import Tensor, nn

from carom.domains import Euclidean, Hypercube
from carom.processes import VP, CriticallyDamped, Diffusion, PhaseGaussian
from carom.scores.neural import (
    MLP,
    DenoisingScoreMatching,
    HybridScoreMatching,
    MixedScore,
    MLPConfig,
    NeuralScore,
    train,
)
from carom.scores.velocity import VelocityMixtureScore
from carom.solvers import (
    SSCS,
    AdaptiveODE,
    Euler,
    EulerMaruyama,
    Heun,
    SampleNoise,
    Solver,
    WhiteNoise,
    bind,
    sample,
    solve,
)
from carom.validation import convergence_order, fokker_planck_residual, propagate_moments

F64 = torch.float64
PROCESS = CriticallyDamped(Euclidean((1,)))
RISING = CriticallyDamped(Euclidean((1,)), mass=0.6, beta_min=1.0, beta_max=9.0, start=0.3)
G1 = VelocityMixtureScore(PROCESS, [1.0], [0.5], 0.25)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def matrix(kernel) -> Tensor:
    """A, 2 × 2."""
    return torch.stack([torch.stack(kernel.from_x), torch.stack(kernel.from_v)], -1)


def square(blocks) -> Tensor:
    return torch.stack([torch.stack([blocks.xx, blocks.xv]), torch.stack([blocks.xv, blocks.vv])])


def moments(process: CriticallyDamped, t: float, mean: float = 0.5, variance: float = 0.25) -> tuple[Tensor, Tensor]:
    """Of u_t for data N(mean, variance) in one dimension."""
    kernel = process.kernel(t)
    covariance, _ = kernel.covariance(f64(variance)[0], process.start * process.mass)
    return matrix(kernel) @ f64(mean, 0.0), square(covariance)


# ------------------------------------------------------------------------------------------------------------------------ the kernel


@pytest.mark.parametrize("process", [PROCESS, RISING], ids=repr)
@pytest.mark.parametrize(("since", "t"), [(0.0, 0.3), (0.0, 1.0), (0.2, 0.7)])
def test_the_kernel_is_the_solution_of_the_moment_equations(process: CriticallyDamped, since: float, t: float) -> None:
    """dA = F A, dS = F S + S Fᵀ + G Gᵀ, by an order-8 rule at tolerances of 1e-13: to 1e-12."""
    generator = f64(0.0, 1 / process.mass, -1.0, -process.friction / process.mass).reshape(2, 2)
    noise = f64(0.0, 0.0, 0.0, 2 * process.friction).reshape(2, 2)

    def slope(time: float, y: Tensor) -> Tensor:
        a, s = torch.as_tensor(y).reshape(2, 2, 2)
        beta = process.clock.beta(f64(time)[0])
        return (beta * torch.stack([generator @ a, generator @ s + s @ generator.T + noise])).flatten()

    start = torch.stack([torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64)]).flatten()
    run = scipy.integrate.solve_ivp(slope, (since, t), start, method="DOP853", rtol=1e-13, atol=1e-14)
    want = torch.tensor(run.y[:, -1]).reshape(2, 2, 2)
    kernel = process.kernel(t, since)
    torch.testing.assert_close(matrix(kernel), want[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(square(kernel.noise), want[1], rtol=0, atol=1e-12)
    mean = torch.stack(kernel.mean(f64(0.7)[0], f64(-0.4)[0]))
    torch.testing.assert_close(mean, want[0] @ f64(0.7, -0.4), rtol=0, atol=1e-12)


def test_reference_values() -> None:
    """formulas.md §19, to the digits given."""
    kernel = PROCESS.kernel(0.3)
    covariance, determinant = kernel.covariance(0.0, 0.04 * 0.25)
    got = [*covariance, (covariance.xx / determinant).sqrt(), *matrix(kernel).flatten()]
    want = [0.859356914831, 0.0468503040007, 0.234277891238, 2.07737433065]
    want += [0.308441041184, 0.435446175789, -0.108861543947, -0.127005134605]
    assert [float(v) for v in got] == pytest.approx(want, rel=5e-12)
    assert float(kernel.covariance(f64(0.25)[0], 0.01)[0].xx) == pytest.approx(0.883140883803, rel=5e-12)


def test_small_times_do_not_cancel() -> None:
    """S_xx ≈ ⅔ Γ B³/M² and det S ≈ My⁴/12 with y = 4B/Γ, to the next order in y; the determinant for given x_0 in high precision."""
    for integral in (1e-3, 1e-5, 1e-8):
        kernel = PROCESS.kernel_of(f64(integral)[0])
        y = 4 * integral / PROCESS.friction
        assert float(kernel.noise.xx) == pytest.approx(2 / 3 * PROCESS.friction * integral**3 / 0.25**2, rel=y)
        assert float(kernel.noise.determinant) == pytest.approx(0.25 * y**4 / 12, rel=2 * y + 1e-12)
        # given x_0: det ≈ γM·⅙y³(1 + O(y/γ))
        determinant = float(kernel.covariance(0.0, 0.01)[1])
        assert determinant == pytest.approx(0.01 * y**3 / 6 + 0.25 * y**4 / 12, rel=3 * y + 1e-12)


def test_kernels_compose_and_end_in_the_prior() -> None:
    first, second, whole = RISING.kernel(0.4), RISING.kernel(0.9, 0.4), RISING.kernel(0.9)
    torch.testing.assert_close(matrix(second) @ matrix(first), matrix(whole), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        matrix(second) @ square(first.noise) @ matrix(second).T + square(second.noise),
        square(whole.noise),
        rtol=0,
        atol=1e-14,
    )
    late = RISING.kernel_of(f64(200.0)[0])
    torch.testing.assert_close(square(late.noise), torch.diag(f64(1.0, 0.6)), rtol=0, atol=1e-14)
    prior = RISING.prior(F64)
    torch.testing.assert_close(prior.inverse_std.flatten(), f64(0.6**-0.5), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_transitions_are_gaussians(dtype: torch.dtype) -> None:
    """log_prob and score against torch's multivariate normal, samples against moments, in events of two dimensions."""
    process = CriticallyDamped(Euclidean((2, 3)), mass=0.4)
    x0 = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    t = torch.tensor([0.05, 0.3, 0.6, 1.0], dtype=dtype)
    for v0 in (None, 0.1 * x0):
        law = process.transition(x0, t, v0)
        assert law.batch_shape == (4,) and law.event_shape == (2, 2, 3)
        u, target = law.sample_with_target(generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(law.score(u), target, rtol=0, atol=2e4 * torch.finfo(dtype).eps)
        kernel = process.kernel(t.double())
        covariance, _ = kernel.covariance(0.0, 0.0 if v0 is not None else process.start * process.mass)
        sigma = torch.stack([torch.stack([covariance.xx, covariance.xv]), torch.stack([covariance.xv, covariance.vv])])
        mean = kernel.beside(x0, 2).mean(x0, torch.zeros_like(x0) if v0 is None else v0)
        normal = torch.distributions.MultivariateNormal(
            torch.stack(mean, -1).double(), sigma.permute(2, 0, 1)[:, None, None]
        )
        pairs = torch.stack(process.split(u), -1).double()
        want = normal.log_prob(pairs).sum((1, 2))
        torch.testing.assert_close(law.log_prob(u).double(), want, rtol=1e4 * torch.finfo(dtype).eps, atol=0)
    assert process.transition(x0[0], 0.3).sample((5,)).shape == (5, 2, 2, 3)


def test_samples_have_the_moments_of_the_law() -> None:
    law = PROCESS.transition(f64(1.5), 0.2)
    u = law.sample((100_000,), generator=torch.Generator().manual_seed(0))[..., 0]
    covariance = square(PROCESS.kernel(0.2).covariance(0.0, 0.01)[0])
    # standard errors: σ/√n of means, √2 σ²/√n of variances
    torch.testing.assert_close(
        u.mean(0), law.loc[:, 0], rtol=0, atol=4 * float(covariance.diagonal().max() / 1e5) ** 0.5
    )
    torch.testing.assert_close(u.T.cov(), covariance, rtol=0, atol=4 * math.sqrt(2 / 1e5) * float(covariance.max()))


# ------------------------------------------------------------------------------------------------------------------------ exact scores


def test_the_score_of_a_mixture_is_the_gradient_of_its_density() -> None:
    process = CriticallyDamped(Euclidean((2,)), beta_max=6.0)
    score = VelocityMixtureScore(process, [1.0, 3.0], [[0.5, -1.0], [2.0, 0.0]], [[0.2, 0.1], [0.0, 0.5]])
    u = torch.randn(6, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for t in (0.01, 0.4, 1.0):
        (slope,) = torch.autograd.grad(score.log_prob(u, t).sum(), u)
        torch.testing.assert_close(score(u, t), slope[:, 1], rtol=1e-10, atol=1e-10)
        # the density itself: a weighted sum of transitions' marginals, here for one Gaussian by torch's own
    mean, covariance = moments(PROCESS, 0.4)
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    v = torch.randn(5, 2, 1, dtype=F64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(G1.log_prob(v, 0.4), normal.log_prob(v[..., 0]), rtol=1e-12, atol=1e-12)
    assert torch.equal(score(u.detach(), f64(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)[:, None])[2:3], score(u.detach()[2:3], 0.3))
    # weights are shares, however they are given
    shares = VelocityMixtureScore(process, [0.25, 0.75], [[0.5, -1.0], [2.0, 0.0]], [[0.2, 0.1], [0.0, 0.5]])
    torch.testing.assert_close(shares.log_prob(u, 0.4), score.log_prob(u, 0.4), rtol=0, atol=1e-14)
    single = score(u.detach().float(), 0.4)
    torch.testing.assert_close(single.double(), score(u.detach(), 0.4), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------------- sampling


def variance_error(solver: Solver, n: int, process: CriticallyDamped = PROCESS, stochasticity: float = 1.0) -> float:
    """|var x| error of the reverse from the exact law at t = 1 to t = 1e-3, data N(.5, .25); no sampling noise."""
    score = VelocityMixtureScore(process, [1.0], [0.5], 0.25)
    equation = process.reverse(score, stochasticity) if solver.stochastic else process.flow(score)
    _, got = propagate_moments(equation, solver, torch.linspace(1, 1e-3, n + 1, dtype=F64), *moments(process, 1.0))
    return abs(float(got[0, 0] - moments(process, 1e-3)[1][0, 0]))


@pytest.mark.parametrize(
    ("solver", "first", "last"),
    [(EulerMaruyama(), 1.40, 1.02), (Euler(), 1.66, 1.04), (SSCS(), 0.99, 1.00)],
    ids=repr,
)
def test_orders_of_the_published_rules(solver: Solver, first: float, last: float) -> None:
    """§19: slopes from N = 50 to 1600, as digits are given; those of SSCS from an error of 2.15e-2 to one of 6.76e-4."""
    errors = [variance_error(solver, n) for n in (50, 100, 800, 1600)]
    slopes = math.log2(errors[0] / errors[1]), math.log2(errors[2] / errors[3])
    assert slopes == pytest.approx((first, last), abs=0.0051)
    if isinstance(solver, SSCS):
        assert errors[0] == pytest.approx(2.15e-2, abs=5e-5) and errors[-1] == pytest.approx(6.76e-4, abs=5e-7)


@pytest.mark.parametrize("process", [PROCESS, RISING], ids=repr)
@pytest.mark.parametrize("order", [1, 2])
def test_the_splitting_has_the_order_it_claims_under_any_clock(process: CriticallyDamped, order: int) -> None:
    slopes = convergence_order(lambda n: variance_error(SSCS(order), n, process), (100, 200, 400))
    assert slopes.tolist() == pytest.approx([order] * 2, abs=0.2) and abs(float(slopes[-1]) - order) < 0.1


@pytest.mark.parametrize("order", [1, 2])
def test_the_two_half_steps_have_normals_of_their_own(order: int) -> None:
    """Each normal handed over as a unit: the columns of both draws make the covariance of the step, and no third is asked for."""
    equation, times, zero = PROCESS.reverse(G1), f64(0.8, 0.7), torch.zeros(1, 2, 1, dtype=F64)
    record = bind(SSCS(order).plan(equation, times), zero)[0]
    move = lambda first, second: SSCS(order).step(equation, zero, record, (), (first, second))[0].flatten()
    units = torch.eye(2, dtype=F64).reshape(2, 1, 2, 1)
    columns = [move(unit, zero) - move(zero, zero) for unit in units] + [
        move(zero, unit) - move(zero, zero) for unit in units
    ]
    _, want = propagate_moments(equation, SSCS(order), times, f64(0.0, 0.0), torch.zeros(2, 2, dtype=F64))
    pushes = torch.stack(columns, -1)
    torch.testing.assert_close(pushes @ pushes.T, want, rtol=0, atol=1e-14)
    assert float(pushes[:, 2:].norm()) > 0.3 * float(pushes.norm()) and record.draws == 2


@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 2.0])
def test_all_members_of_the_family_share_the_marginals(stochasticity: float) -> None:
    slopes = convergence_order(lambda n: variance_error(EulerMaruyama(), n, RISING, stochasticity), (100, 200, 400))
    # the flow is the last to settle: 1.24, 1.11
    assert slopes.tolist() == pytest.approx([1.0] * 2, abs=0.3) and abs(float(slopes[-1]) - 1) < 0.15


@pytest.mark.parametrize("t", [0.1, 0.7])
def test_forward_reverse_and_flow_have_the_marginals_of_the_kernel_to_rounding(t: float) -> None:
    """The Fokker–Planck residual of a mixture's joint density, in two dimensions and under a clock that runs; a wrong score shows."""
    process = CriticallyDamped(Euclidean((2,)), mass=0.6, beta_min=1.0, beta_max=9.0, start=0.3)
    score = VelocityMixtureScore(process, [1.0, 3.0], [[0.5, -1.0], [2.0, 0.0]], [[0.2, 0.1], [0.1, 0.5]])
    u = torch.randn(5, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    equations = [process.forward(), process.flow(score), *(process.reverse(score, eta) for eta in (0.5, 1.0, 2.0))]
    for equation in equations:
        # differences of terms of size 2Γβ·ℓ² ≤ 1e3
        assert float(fokker_planck_residual(equation, score.log_prob, u, t).abs().max()) < 1e-9
    wrong = process.reverse(lambda u, t: 1.1 * score(u, t))
    assert float(fokker_planck_residual(wrong, score.log_prob, u, t).abs().max()) > 0.1


def test_keywords_of_a_solve_reach_the_score() -> None:
    pulled = lambda u, t, pull=0.0: G1(u, t) + pull
    u = PROCESS.prior(F64).sample((3,), generator=torch.Generator().manual_seed(0))
    runs = {
        "reverse": (
            PROCESS.reverse(pulled),
            [EulerMaruyama(), SSCS(), SSCS(2)],
            PROCESS.reverse(lambda u, t: pulled(u, t, 2.0)),
        ),
        "flow": (PROCESS.flow(pulled), [Euler(), Heun()], PROCESS.flow(lambda u, t: pulled(u, t, 2.0))),
    }
    for equation, rules, fixed in runs.values():
        for rule in rules:
            noise = WhiteNoise(0) if rule.stochastic else None
            got = solve(equation, u, [1.0, 0.9], rule, noise=noise, condition={"pull": 2.0}).x
            assert torch.equal(got, solve(fixed, u, [1.0, 0.9], rule, noise=noise).x)
            assert not torch.equal(got, solve(equation, u, [1.0, 0.9], rule, noise=noise).x)


def test_the_forward_equation_has_the_law_of_its_kernel() -> None:
    start = torch.diag(f64(0.25, 0.3 * 0.6))
    run = lambda n: propagate_moments(
        RISING.forward(), EulerMaruyama(), torch.linspace(0, 0.6, n + 1, dtype=F64), f64(0.5, 0.0), start
    )
    mean, covariance = moments(RISING, 0.6)
    for k, want in ((0, mean), (1, covariance)):
        slopes = convergence_order(lambda n, k=k: run(n)[k], (100, 200, 400), want)
        assert slopes.tolist() == pytest.approx([1.0] * 2, abs=0.1)


def test_the_flow_goes_there_and_back_and_runs_adaptively() -> None:
    score = VelocityMixtureScore(PROCESS, [0.3, 0.7], [-1.0, 0.8], [0.04, 0.09])
    flow = PROCESS.flow(score)
    u = PROCESS.join(f64(-1.0, 0.2, 0.9)[:, None], f64(0.1, 0.0, -0.1)[:, None])
    rule = AdaptiveODE(1e-8, 1e-8)
    there = solve(flow, u, [0.01, 1.0], rule).x
    torch.testing.assert_close(solve(flow, there, [1.0, 0.01], rule).x, u, rtol=0, atol=1e-5)
    close = solve(flow, u, torch.linspace(0.1, 0.4, 400, dtype=F64), Heun()).x
    torch.testing.assert_close(close, solve(flow, u, [0.1, 0.4], rule).x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", [SSCS(), SSCS(2)], ids=repr)
def test_generation_from_the_prior_has_the_law_of_the_data(solver: Solver) -> None:
    """A mixture in the plane, 3,000 samples in 100 steps; means of indicators and coordinates within four standard errors."""
    process = CriticallyDamped(Euclidean((2,)))
    score = VelocityMixtureScore(process, [0.3, 0.7], [[-1.5, 0.0], [1.0, 1.0]], [0.04, 0.09])
    start = process.prior(F64).sample((3000,), generator=torch.Generator().manual_seed(0))
    times = torch.linspace(1, 1e-3**0.5, 101, dtype=F64) ** 2  # velocities are fast near the data
    run = solve(process.reverse(score), start, times, solver, noise=WhiteNoise(1))
    x, v = process.split(run.x)
    assert run.nfe == 100 * solver.order and bool(run.ok.all())
    assert float((x[:, 0] < 0).double().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 3000) + 0.005)
    right = x[x[:, 0] > 0]
    assert right.mean(0).tolist() == pytest.approx([1.0, 1.0], abs=4 * 0.3 / math.sqrt(2100) + 0.02)
    assert float(right[:, 1].std()) == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(4200) + 0.02)
    assert float(v.var()) == pytest.approx(0.01 + 2 * 4e-3, rel=0.15)  # γM + 2Γβt


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_sample_is_the_same_alone_and_in_a_batch_and_the_step_compiles(dtype: torch.dtype) -> None:
    equation = PROCESS.reverse(G1)
    u, times = PROCESS.prior(dtype).sample((3,), generator=torch.Generator().manual_seed(0)), torch.linspace(1, 0.01, 9)
    for solver in (SSCS(), SSCS(2), EulerMaruyama()):
        run = solve(equation, u, times, solver, noise=SampleNoise([7, 8, 9]))
        assert run.x.dtype == dtype
        for i, seed in enumerate((7, 8, 9)):
            assert torch.equal(solve(equation, u[i : i + 1], times, solver, noise=SampleNoise([seed])).x[0], run.x[i])
    linear = PROCESS.reverse(lambda u, t: -u[:, 1])
    record = bind(SSCS(2).plan(linear, f64(1.0, 0.9)), u)[0]
    step, noise = torch.compile(SSCS(2).step, fullgraph=True, backend="eager"), (u, 2 * u)
    torch.testing.assert_close(step(linear, u, record, (), noise)[0], SSCS(2).step(linear, u, record, (), noise)[0])


# ---------------------------------------------------------------------------------------------------------------------------- training


def test_hybrid_score_matching_has_its_minimum_at_the_score() -> None:
    """For the exact score of Gaussian data the loss at t is 1 − p/ℓ², p the precision of v given x; a score of zero has loss 1."""
    objective = HybridScoreMatching(PROCESS, t_min=0.05)
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 + 0.5 * torch.randn(40_000, 1, dtype=F64, generator=generator)
    t, loss = objective.terms(G1, x0, generator)
    assert (
        0.05 <= float(t.min()) < 0.0501 and 0.9999 < float(t.max()) <= 1 and HybridScoreMatching(PROCESS).t_min == 1e-5
    )
    kernel = PROCESS.kernel(t)
    (given, determinant), (whole, total) = kernel.covariance(0.0, 0.01), kernel.covariance(f64(0.25), 0.01)
    want = 1 - (whole.xx / total) / (given.xx / determinant)
    gap = (loss - want).mean() / (loss - want).std() * 200
    assert abs(float(gap)) < 4  # standard errors
    none = objective(lambda u, t: torch.zeros_like(u[:, 1]), x0, generator)
    assert float(none) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 40_000))
    pulled = lambda u, t, pull=0.0: G1(u, t) + pull
    at = [objective(pulled, x0, torch.Generator().manual_seed(1), **c) for c in ({"pull": 3.0}, {})]
    assert float(at[0]) > float(at[1]) + 1  # keywords reach the score
    # a mean over the event, whatever its shape
    wide = HybridScoreMatching(CriticallyDamped(Euclidean((2, 3))))
    none = wide(lambda u, t: torch.zeros_like(u[:, 1]), torch.zeros(5000, 2, 3), generator)
    assert float(none) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 30_000))
    for factor in (0.9, 1.1):
        other = objective.terms(lambda u, t, factor=factor: factor * G1(u, t), x0, torch.Generator().manual_seed(1))
        base = objective.terms(G1, x0, torch.Generator().manual_seed(1))
        assert float((other[1] - base[1]).mean() / (other[1] - base[1]).std() * 200) > 4
    doubled = HybridScoreMatching(PROCESS, 0.05, weight=lambda t: 2 * t)
    times, weighted = doubled.terms(G1, x0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(weighted, 2 * times * base[1], rtol=1e-12, atol=0)


def test_the_target_has_the_score_for_its_mean_where_everything_is_linear() -> None:
    """E[target·u] = −(0, 1) as of the score itself, so that the best linear prediction of the target is the exact score."""
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 + 0.5 * torch.randn(200_000, 1, dtype=F64, generator=generator)
    u, target = PROCESS.transition(x0, 0.3).sample_with_target(generator=generator)
    inputs = torch.cat([u[..., 0], torch.ones_like(target)], 1)
    fit = torch.linalg.lstsq(inputs, target).solution[:, 0]
    basis = torch.cat([torch.zeros(1, 2, 1), torch.eye(2)[..., None]]).double()
    at = G1(basis, 0.3)[:, 0]
    want = torch.stack([at[1] - at[0], at[2] - at[0], at[0]])
    # ℓ = 2.08 over 200,000 samples, and inputs of variance .23: .01
    torch.testing.assert_close(fit, want, rtol=0, atol=0.04)


def mixed(process: CriticallyDamped, **settings: Any) -> MixedScore:
    torch.manual_seed(0)
    event = process.data.event_shape
    return MixedScore(MLP(MLPConfig((2 * event[0], *event[1:]), width=24, depth=1, **settings)), process)


def test_a_score_is_trained_saved_loaded_and_sampled_as_any_other(tmp_path: Path) -> None:
    """250 steps close over half of the gap to the loss of the exact score (.127 to .081 here), and samples have both modes."""
    process = CriticallyDamped(Euclidean((1,)))
    exact = VelocityMixtureScore(process, [0.5, 0.5], [-1.0, 1.0], 0.05)
    generator = torch.Generator().manual_seed(0)
    data = torch.where(torch.rand(20_000, 1, generator=generator) < 0.5, -1.0, 1.0)
    data = data + 0.05**0.5 * torch.randn(data.shape, generator=generator)
    score, objective, place = mixed(process), HybridScoreMatching(process, 1e-3), tmp_path / "score.safetensors"

    @torch.no_grad()
    def loss(score: Callable[..., Tensor]) -> float:
        return float(objective(score, data, torch.Generator().manual_seed(1)))

    before, best = loss(score), loss(exact)
    result = train(
        score,
        data,
        objective=objective,
        steps=250,
        batch_size=512,
        lr=1e-2,
        ema=0.95,
        checkpoint=place,
        progress=False,
        metrics=tmp_path / "metrics.jsonl",
        metrics_every=250,
    )
    after = loss(score)
    assert best < after < best + 0.5 * (before - best) and result.steps == 250
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    # by t, in bins of ln t; times are uniform on [1e-3, 1], so that early bins are empty
    assert line["sigma"][-1] < 1 and line["loss_by_sigma"][0] is None and line["loss_by_sigma"][-1] > 0
    again = MixedScore.load(place)
    assert again.process.config() == process.config() and again.use_ema and not again.training
    u = process.prior().sample((2000,), generator=generator)
    with torch.no_grad():
        assert torch.equal(again(u, 0.3), score(u, 0.3))
        times = torch.linspace(1, 1e-3**0.5, 61, dtype=F64) ** 2
        run = solve(process.reverse(again), u, times, SSCS(), noise=WhiteNoise(1))
    x = process.split(run.x)[0]
    # the network's error is some hundredths; standard errors of a share and a second moment of 2,000 are .011 and .012
    assert float((x < 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(x.square().mean()) == pytest.approx(1.05, abs=0.15)
    with pytest.raises(ValueError, match=r"format 'carom\.velocity_score'.*MixedScore\.load reads it"):
        NeuralScore.load(place)


def test_training_a_score_of_velocities_resumes_to_the_bit(tmp_path: Path) -> None:
    process, place = CriticallyDamped(Euclidean((1, 2)), mass=0.5), tmp_path / "score.safetensors"
    data, labels = torch.randn(32, 1, 2), torch.arange(32) % 3

    def run(steps: int, resume: bool = False, **others: Any) -> MixedScore:
        score = mixed(process, classes=3)
        settings = {"batch_size": 8, "progress": False, "checkpoint": place, "resume": resume} | others
        train(score, torch.utils.data.TensorDataset(data, labels), steps=steps, **settings)
        return score

    whole = run(4)
    run(2)
    for a, b in zip(whole.state_dict().values(), run(4, resume=True).state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="another training"):
        run(6, resume=True, objective=HybridScoreMatching(process, 1e-2))
    u, label = torch.randn(2, 3, 2, 1, 2), torch.arange(6).reshape(2, 3) % 3
    t = torch.rand(2, 3)
    rows = whole(u, t, label=label)
    assert rows.shape == (2, 3, 1, 2) and whole(u[:0], 0.3).shape == (0, 3, 1, 2)
    for at in (t[1, 2], t[1:, 2:, None, None]):
        torch.testing.assert_close(whole(u[1:, 2:], at, label=label[1:, 2:]), rows[1:, 2:], rtol=1e-5, atol=1e-6)
    assert not torch.equal(whole(u, 0.3, label=0), whole(u, 0.3, label=1))
    assert whole(u.double(), 0.3).dtype == F64 and whole.rows(torch.tensor([0])) is whole


def test_a_mixed_score_is_its_formula_whichever_half_its_network_answers_with() -> None:
    """−v/Σ_vv − ℓ F, with Σ and ℓ from the kernel; where F = 0 it is exact for independent x and v."""

    class Fixed(nn.Module):
        def __init__(self, whole: bool, size: float) -> None:
            super().__init__()
            self.whole, self.size = whole, size

        def forward(self, u: Tensor, c_noise: Tensor) -> Tensor:
            assert u.shape == (4, 6) and c_noise.tolist() == pytest.approx([math.log(0.3) / 4] * 4, rel=1e-14)
            x, v = u.chunk(2, -1)
            return self.size * (torch.cat([100 * v, x - 2 * v], -1) if self.whole else x - 2 * v)

    process = CriticallyDamped(Euclidean((3,)), mass=0.6, start=0.3)
    u = torch.randn(4, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    x, v = process.split(u)
    kernel = process.kernel(0.3)
    spread, (given, determinant) = kernel.covariance(1.0, 0.18)[0], kernel.covariance(0.0, 0.18)
    for whole in (True, False):
        want = -v / spread.vv - (given.xx / determinant).sqrt() * (x - 2 * v)
        torch.testing.assert_close(MixedScore(Fixed(whole, 1.0), process)(u, 0.3), want, rtol=0, atol=1e-12)
    # at B = 4 e^{−2τ} = e^{−16} is left, times 2τ²
    late = CriticallyDamped(Euclidean((3,)), beta_min=4 / 0.3, beta_max=4 / 0.3)
    exact = VelocityMixtureScore(late, [1.0], [[0.0] * 3], 1.0)
    torch.testing.assert_close(MixedScore(Fixed(True, 0.0), late)(u, 0.3), exact(u, 0.3), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------------- refusals


class Wide(nn.Module):
    def forward(self, u: Tensor, c_noise: Tensor) -> Tensor:
        return u.new_zeros(len(u), 5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: CriticallyDamped(Hypercube((1,))),
            TypeError,
            "expected a Euclidean domain; Kinetic runs between walls",
        ),
        (lambda: CriticallyDamped(Euclidean((1,)), mass=0), ValueError, "mass: got 0"),
        (lambda: CriticallyDamped(Euclidean((1,)), beta_max=1.0), ValueError, "beta_max: got 1"),
        (lambda: CriticallyDamped(Euclidean((1,)), start=0), ValueError, "start: got 0"),
        (lambda: PROCESS.transition(f64(0.5), 0.0), ValueError, "t: got 0, expected finite values above 0"),
        (lambda: PROCESS.transition(torch.zeros(3, 2), 0.1), ValueError, "x0: got shape"),
        (
            lambda: sample(PROCESS, G1, SSCS(), [1.0, 0.5], shape=3),
            TypeError,
            r"use solve\(process\.reverse\(score\), ",
        ),
        (lambda: PROCESS.reverse(3), TypeError, "score: got int, expected a callable"),
        (lambda: PROCESS.flow(None), TypeError, "score: got NoneType"),
        (lambda: PROCESS.reverse(G1, -1.0), ValueError, "stochasticity: got -1"),
        (lambda: PROCESS.transition(torch.zeros(3, 1), 0.1, torch.zeros(3, 2)), ValueError, r"v0: got shape \(3, 2\)"),
        (lambda: PROCESS.transition(torch.zeros(3, 1), 0.1).log_prob(torch.zeros(3, 1)), ValueError, "u: got shape"),
        (lambda: PROCESS.kernel(0.1, 0.5), ValueError, r"t: got 0\.1 for since = 0\.5, expected t ≥ since"),
        (lambda: G1(torch.zeros(3, 2, 1), -1.0), ValueError, "t: got -1 for since = 0"),
        (lambda: SSCS(3), ValueError, "order: got 3, expected 1 or 2"),
        (lambda: SSCS(True), ValueError, "order: got True, expected 1 or 2"),
        (
            lambda: SSCS().plan(PROCESS.reverse(G1), f64(1.0, -0.5)),
            ValueError,
            "got times down to -0.5, expected none below",
        ),
        (lambda: G1(torch.zeros(3, 1), 0.5), ValueError, "u: got shape"),
        (lambda: VelocityMixtureScore(Diffusion(Euclidean((1,)), VP()), [1.0], [0.0], 1.0), TypeError, "got Diffusion"),
        (lambda: VelocityMixtureScore(PROCESS, [1.0], [math.nan], 1.0), ValueError, "means: got shape"),
        (lambda: VelocityMixtureScore(PROCESS, [1.0], [0.0], math.inf), ValueError, "variances: got shape"),
        (lambda: SSCS().plan(PROCESS.reverse(G1, 0.5), f64(1.0, 0.5)), ValueError, "got stochasticity 0.5, expected 1"),
        (
            lambda: solve(PROCESS.forward(), torch.zeros(1, 2, 1), [1.0, 0.5], EulerMaruyama()),
            ValueError,
            "runs the other way",
        ),
        (
            lambda: solve(PROCESS.reverse(lambda u, t: u), torch.zeros(1, 2, 1), [1.0, 0.5], SSCS()),
            ValueError,
            "expected the same shape and dtype",
        ),
        (lambda: VelocityMixtureScore(PROCESS, [1.0, -1.0], [0.0, 0.0], 1.0), ValueError, "weights: got shape"),
        (lambda: VelocityMixtureScore(PROCESS, [1.0], [0.0, 0.0], 1.0), ValueError, "means: got shape"),
        (lambda: VelocityMixtureScore(PROCESS, [1.0], [0.0], -1.0), ValueError, "variances: got shape"),
        (
            lambda: HybridScoreMatching(Diffusion(Euclidean((1,)), VP())),
            TypeError,
            "process: got Diffusion, expected a Critic",
        ),
        (lambda: MixedScore(nn.Linear(2, 2), Diffusion(Euclidean((1,)), VP())), TypeError, "process: got Diffusion"),
        (lambda: MixedScore(lambda u, t: u, PROCESS), TypeError, "network: got function, expected an nn.Module"),
        (lambda: mixed(PROCESS)(torch.zeros(3, 1), 0.5), ValueError, "u: got shape"),
        (
            lambda: MixedScore(Wide(), PROCESS)(torch.zeros(1, 2, 1), 0.5),
            ValueError,
            "the velocities alone",
        ),
        (
            lambda: train(mixed(PROCESS), torch.zeros(4, 1), objective=DenoisingScoreMatching(), steps=1),
            TypeError,
            "for a MixedScore, expected HybridScoreMatching",
        ),
        (
            lambda: train(mixed(PROCESS), torch.zeros(4, 1), objective=HybridScoreMatching(RISING), steps=1),
            TypeError,
            "for a MixedScore, expected HybridScoreMatching",
        ),
        (lambda: train(mixed(PROCESS), torch.zeros(4, 2), steps=1), ValueError, "data"),
        (lambda: HybridScoreMatching(PROCESS)(G1, torch.zeros(4, 2)), ValueError, "x0: got shape"),
        (lambda: HybridScoreMatching(PROCESS)(lambda u, t: u, torch.zeros(4, 1)), ValueError, r"got \(4, 2, 1\)"),
        (lambda: HybridScoreMatching(PROCESS, 0.0), ValueError, "t_min: got 0, expected a number between 0 and 1"),
    ],
)
def test_refusals(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_what_things_are_called() -> None:
    assert repr(PROCESS) == "CriticallyDamped(Euclidean((1,)), mass=0.25, beta_min=4, beta_max=4, start=0.04)"
    assert repr(G1).startswith("VelocityMixtureScore(CriticallyDamped(") and "1 components" in repr(G1)
    assert repr(SSCS(2)) == "SSCS(2)" and isinstance(PROCESS.prior(), PhaseGaussian)
