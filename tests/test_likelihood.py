"""Likelihoods by the probability flow: closed forms, the mass of a model, estimates and their errors, stored values, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carom.domains import Domain, Euclidean, Hypercube, Product
from carom.domains.transforms import affine_values
from carom.processes import VE, VP, Diffusion, FlowMatching, Schedule, SubVP
from carom.scores import Downsample, PiGDM
from carom.scores.neural import MLP, MLPConfig, NeuralScore, UNet, UNetConfig, train
from carom.solvers import (
    RK4,
    AdaptiveODE,
    Cover,
    DPMSolverPP,
    EulerMaruyama,
    Exact,
    Heun,
    Hutchinson,
    Project,
    Reflect,
    RungeKutta,
    Solver,
    UniPC,
    bits_per_dim,
    karras,
    log_likelihood,
)
from carom.solvers.likelihood import _standard_error
from carom.validation import problems
from carom.validation.problems import Problem

TIGHT = AdaptiveODE(1e-10, 1e-10)
PROBLEMS = {
    "VP": problems.mixture(),
    "sub-VP": problems.mixture(SubVP()),
    "VE": problems.mixture(VE(sigma_max=20.0)),
    "flow matching": problems.mixture_2d(FlowMatching()),
    "plane": problems.mixture_2d(),
    "cube": problems.cosine(dim=2),
    "simplex": problems.pair(),
}


def ends(problem: Problem) -> Tensor:
    return karras(problem.process, 2)


@pytest.mark.parametrize("name", PROBLEMS)
def test_with_the_exact_terminal_law_the_flow_has_the_exact_density(name: str) -> None:
    problem = PROBLEMS[name]
    times = ends(problem)
    x = problem.points(float(times[-1]), 5)
    found = log_likelihood(
        problem.process,
        problem.score,
        x,
        solver=TIGHT,
        times=times,
        prior=problem.marginal(float(times[0])),
        round_trip=True,
    )
    # tolerances of 1e-10 a step, some hundred steps
    torch.testing.assert_close(found.log_prob, problem.log_prob(x, float(times[-1])), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.code, problem.flow(x, float(times[-1]), float(times[0])), rtol=1e-6, atol=1e-7)
    assert bool((found.standard_error == 0).all()) and float(found.round_trip.max()) < 1e-7  # type: ignore[union-attr]
    torch.testing.assert_close(found.log_prob, found.prior_log_prob + found.log_det)


def test_the_standard_prior_gives_the_reference_values() -> None:
    """Reference values of the sources, which end at t₀ = 1e-5: there log q(.8) has moved by 5.5e-6."""
    times = [1.0, 1e-5]
    for problem, x, want, code in (
        (
            problems.mixture(),
            [-1.0, 0.0, 0.8, 1.5],
            [-0.511715584365, -3.62620031744, -0.0723100745634, -2.79802793856],
            [-1.03472058614, -0.514992938595, 0.387028067526, 2.46563733533],
        ),
        (problems.gaussian(), [1.0], [-0.72908249116], None),
    ):
        at = torch.tensor(x, dtype=torch.float64)[:, None]
        found = log_likelihood(problem.process, problem.score, at, solver=AdaptiveODE(1e-11, 1e-11), times=times)
        torch.testing.assert_close(found.log_prob, torch.tensor(want, dtype=torch.float64), rtol=0, atol=2e-6)
        if code is not None:
            torch.testing.assert_close(found.code[:, 0], torch.tensor(code, dtype=torch.float64), rtol=0, atol=1e-6)


class Plain:
    """A score without the extras: no closed divergence, no rows."""

    def __init__(self, score: Any):
        self.score = score

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.score(x, t)


@pytest.mark.parametrize("schedule", [VP(), VE(sigma_max=20.0)])
def test_the_closed_divergence_of_a_mixture_is_that_of_autograd(schedule: Schedule) -> None:
    problem = problems.mixture_2d(schedule)
    for t in (1e-3, 0.3, 1.0):
        x = problem.points(t, 7)
        at = torch.tensor(t, dtype=torch.float64)
        _, own = Exact()(problem.score, x, at, None)
        value, found = Exact()(Plain(problem.score), x, at, None)
        torch.testing.assert_close(own, found, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(value, problem.score(x, t))


@pytest.mark.parametrize(
    ("solver", "order"), [(RungeKutta(RK4), 4), (Heun(), 2), (UniPC(2), 3), (DPMSolverPP(2), 2)], ids=str
)
def test_rules_of_fixed_steps_keep_their_order_for_the_volume(solver: Solver, order: int) -> None:
    problem = problems.cosine(dim=2)
    # in the middle of the grid, where a coarse start does not show
    errors = []
    for n in (17, 33, 65):
        times = karras(problem.process, n, sigma_min=0.1, sigma_max=0.8)
        x = problem.points(float(times[-1]), 5)
        found = log_likelihood(
            problem.process, problem.score, x, solver=solver, times=times, prior=problem.marginal(float(times[0]))
        )
        errors.append(float((found.log_prob - problem.log_prob(x, float(times[-1]))).abs().max()))
    slopes = -np.diff(np.log2(errors))
    assert slopes[-1] > order - 0.35, (errors, slopes)


@pytest.mark.montecarlo
@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_hutchinson_is_within_two_of_its_standard_errors_in_95_of_100_runs(law: Any) -> None:
    """1,000 runs of 64 probes. With t of 63 degrees 95.0 % lie within two errors; the share's own error is 0.7 %. In three dimensions,
    for in two the sum of signs takes few values."""
    covariances = [
        [[0.3, 0.1, 0.05], [0.1, 0.2, -0.08], [0.05, -0.08, 0.25]],
        [[0.1, -0.05, 0], [-0.05, 0.2, 0.1], [0, 0.1, 0.3]],
    ]
    means = [[-1.0, 0.5, 0.0], [0.7, -0.4, 0.3]]
    process = Diffusion(Euclidean((3,)), VP())
    problem = problems.MixtureProblem(process, (0.4, 0.6), means, covariances)  # type: ignore[arg-type]
    times = karras(process, 12)
    x = problem.points(float(times[-1]), 2)[:1]
    exact = log_likelihood(problem.process, problem.score, x, solver=Heun(), times=times)
    found = log_likelihood(
        problem.process,
        problem.score,
        x.expand(1000, 3),
        solver=Heun(),
        times=times,
        divergence=Hutchinson(64, law),
        seed=range(1000),  # type: ignore[arg-type]
    )
    within = ((found.log_prob - exact.log_prob).abs() <= 2 * found.standard_error).double().mean()
    assert 0.93 <= float(within) <= 0.97
    alone = log_likelihood(
        problem.process, problem.score, x, solver=Heun(), times=times, divergence=Hutchinson(64, law), seed=[7]
    )
    torch.testing.assert_close(alone.log_prob[0], found.log_prob[7])  # probes belong to the sample


def test_the_error_of_few_probes_is_that_of_a_mean_of_them() -> None:
    estimates = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    # √(Σ(e − mean)²/(n − 1)/n) with sums of squares 14/3 and 6
    torch.testing.assert_close(_standard_error(Hutchinson(3), estimates) ** 2, torch.tensor([7 / 9, 1.0]).double())


def test_one_probe_tells_no_error() -> None:
    problem = problems.gaussian_2d()
    found = log_likelihood(
        problem.process, problem.score, problem.points(0.01), solver=Heun(), divergence=Hutchinson(), seed=0
    )
    assert bool(found.standard_error.isnan().all()) and bool(found.log_prob.isfinite().all())


def test_a_trained_model_between_walls_has_mass_one() -> None:
    """∫ p over the square by Gauss–Legendre, whose error on a density of this width is far below the solver's."""
    torch.manual_seed(0)
    process = Diffusion(Hypercube((2,)), VE())
    score = NeuralScore(MLP(MLPConfig((2,), width=32, depth=2)), process)
    data = torch.rand(2000, 2) ** 2
    train(score, data, steps=150, batch_size=128, seed=0, progress=False)
    score.double()
    nodes, weights = np.polynomial.legendre.leggauss(40)
    axis, weight = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    x = torch.cartesian_prod(axis, axis)
    # σ₀ = 0.05 and not the default 0.01: an untrained corner may be as narrow as σ₀
    found = log_likelihood(process, score, x, solver=Heun(), times=karras(process, 40, sigma_min=0.05))
    mass = float((torch.outer(weight, weight).flatten() * found.log_prob.exp()).sum())
    assert mass == pytest.approx(1.0, abs=2e-3), mass
    assert float(found.log_prob.std()) > 0.1  # it is not the uniform law
    assert float(found.pushed.max()) < 1e-9  # type: ignore[union-attr]


def test_walls_that_had_to_push_are_reported() -> None:
    process = Diffusion(Hypercube((1,)), VE())
    x = torch.tensor([[0.02], [0.5]], dtype=torch.float64)
    outward = lambda x, t: torch.full_like(x, 30.0)  # the flow goes against the score
    for solver in (Heun(), AdaptiveODE(1e-2, 1e-2)):
        pushed = log_likelihood(process, outward, x, solver=solver, times=[0.8, 0.2]).pushed
        assert bool((pushed > 0.1).all())  # type: ignore[operator]
        assert log_likelihood(process, outward, x, solver=solver, times=[0.8, 0.2], wall=Cover()).pushed is None


def test_walls_that_keep_volumes_agree() -> None:
    problem = problems.cosine(dim=2)
    x = problem.points(0.01)
    found = [
        log_likelihood(problem.process, problem.score, x, solver=RungeKutta(RK4), wall=wall)
        for wall in (Reflect(), Cover())
    ]
    torch.testing.assert_close(found[0].log_prob, found[1].log_prob, rtol=1e-9, atol=1e-9)


def test_float32_keeps_five_digits() -> None:
    for name in ("VP", "cube"):
        problem = PROBLEMS[name]
        x = problem.points(0.05)
        exact = log_likelihood(problem.process, problem.score, x, solver=RungeKutta(RK4))
        found = log_likelihood(problem.process, problem.score, x.float(), solver=RungeKutta(RK4))
        assert found.log_prob.dtype == torch.float64 and found.code.dtype == torch.float32
        # 64 steps of rounding on sums of about 1
        torch.testing.assert_close(found.log_prob, exact.log_prob, rtol=0, atol=3e-5)


def test_batches_of_any_shape_and_conditions_with_them() -> None:
    problem = problems.gaussian_2d()
    x = problem.points(0.01, 6)

    def score(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return problem.score(x - shift[..., None], t)

    shift = torch.linspace(0, 1, 6, dtype=torch.float64)
    for solver in (Heun(), AdaptiveODE(1e-6, 1e-6)):
        flat = log_likelihood(problem.process, score, x, solver=solver, condition={"shift": shift})
        grid = log_likelihood(
            problem.process, score, x.reshape(2, 3, 2), solver=solver, condition={"shift": shift.reshape(2, 3)}
        )
        one = log_likelihood(problem.process, score, x[4], solver=solver, condition={"shift": shift[4]})
        torch.testing.assert_close(grid.log_prob.flatten(), flat.log_prob)
        torch.testing.assert_close(one.log_prob, flat.log_prob[4])
        assert grid.code.shape == (2, 3, 2) and one.log_prob.shape == () and grid.status.shape == (2, 3)
        moved = log_likelihood(problem.process, problem.score, x[4] - shift[4], solver=solver)
        assert not torch.allclose(flat.log_prob[4], flat.log_prob[0]) and moved.log_prob.isfinite()


def test_parts_with_clocks_of_their_own_add_up() -> None:
    one, two = problems.gaussian_2d(), problems.cosine(dim=2)
    process = Diffusion(Product(one.process.domain, two.process.domain), (one.process.schedule, two.process.schedule))

    def score(x: Tensor, t: Tensor) -> Tensor:
        a, b = process.domain.split(x)  # type: ignore[attr-defined]
        return process.domain.join(one.score(a, t), two.score(b, t))  # type: ignore[attr-defined]

    x = torch.cat([one.points(0.05), two.points(0.05)], -1)
    times = [1.0, 0.05]
    found = log_likelihood(process, score, x, solver=TIGHT, times=times)
    apart = [log_likelihood(p.process, p.score, p.points(0.05), solver=TIGHT, times=times).log_prob for p in (one, two)]
    torch.testing.assert_close(found.log_prob, apart[0] + apart[1], rtol=0, atol=1e-8)
    # the closed divergence of the whole does not know the clocks; probes weigh their axes by them: three standard errors of 60
    score.divergence = lambda x, t: math.nan * x[:, 0]  # type: ignore[attr-defined]
    grid = karras(one.process, 8)
    exact, probed = (
        log_likelihood(process, score, x, solver=Heun(), times=grid, divergence=d, seed=0)
        for d in (Exact(), Hutchinson(60))
    )
    assert bool(((probed.log_prob - exact.log_prob).abs() < 3 * probed.standard_error).all())
    assert 0 < float(probed.standard_error.max()) < 0.5


def test_gradients_reach_x_and_the_score() -> None:
    problem = problems.mixture_2d()
    times = karras(problem.process, 8)
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    x = problem.points(float(times[-1]), 3).requires_grad_()

    def run(x: Tensor, *weights: Tensor, divergence: Any = Exact()) -> Tensor:
        names = dict(zip([n for n, _ in network.named_parameters()], weights, strict=True))
        score = lambda x, t: torch.func.functional_call(network, names, (x,))
        return log_likelihood(
            problem.process, score, x, solver=Heun(), times=times, divergence=divergence, seed=0, differentiable=True
        ).log_prob

    torch.manual_seed(0)
    weights = tuple(p.detach().clone().requires_grad_() for p in network.parameters())
    for divergence in (Exact(), Hutchinson(2)):
        assert torch.autograd.gradcheck(lambda *a: run(*a, divergence=divergence), (x, *weights), atol=1e-5)  # noqa: B023
    # and none unless asked
    assert not log_likelihood(
        problem.process, lambda x, t: network(x), x, solver=Heun(), times=times
    ).log_prob.requires_grad


def cosine_chances(bins: int, low: float, amplitude: float = 0.5) -> Tensor:
    """P(v) of the cosine density in ``affine_values(cube, bins)``: the outer levels lie on the walls and their bins are cut in half."""
    edges = torch.cat([torch.tensor([0.0]), (torch.arange(bins - 1) + 0.5) / (bins - 1), torch.tensor([1.0])]).double()
    decay = amplitude * math.exp(-((math.pi * low) ** 2) / 2)
    return (edges + decay * (math.pi * edges).sin() / math.pi).diff()


@pytest.mark.montecarlo
@pytest.mark.parametrize("bins", [2, 5, 256])
def test_bits_of_whole_numbers_reach_those_of_their_chances(bins: int) -> None:
    problem = problems.cosine()
    times = karras(problem.process, 24)
    values = torch.arange(bins)[:: max(1, bins // 5), None]
    chances = cosine_chances(bins, float(problem.process.level(times[-1]).sigma))[values[:, 0]]
    prior = problem.marginal(float(times[0]))
    options: dict[str, Any] = {"solver": Heun(), "times": times, "prior": prior, "bins": bins}
    found = bits_per_dim(problem.process, problem.score, values.double(), draws=400, seed=0, **options)
    # p varies by a factor e within the bins of 2 levels: 400 draws err by about 1.5 %, that is 0.02 bits
    torch.testing.assert_close(found.each, -chances.log2(), rtol=0, atol=0.06 if bins == 2 else 0.01)
    one = [bits_per_dim(problem.process, problem.score, values.double(), seed=s, **options).value for s in range(8)]
    assert np.mean(one) > found.value - 3 * np.std(one) / math.sqrt(8) - 1e-3
    assert "bits/dim" in str(found)


def test_a_transform_of_continuous_values_changes_the_density_by_its_volume() -> None:
    problem = problems.cosine()
    transform = affine_values(problem.process.domain, between=(0.0, 16.0))
    values = torch.tensor([[1.0], [9.0]], dtype=torch.float64)
    found = log_likelihood(problem.process, problem.score, values, solver=Heun(), transform=transform)
    plain = log_likelihood(problem.process, problem.score, values / 16, solver=Heun())
    torch.testing.assert_close(found.log_prob, plain.log_prob - math.log(16))
    torch.testing.assert_close(found.bits_per_dim, -found.log_prob / math.log(2))
    # data enter scaled by s where the scale is not 1
    gauss = problems.gaussian()
    transform = affine_values(gauss.process.domain, between=(-1.0, 1.0))
    times = karras(gauss.process, 64, sigma_min=0.2)
    s = float(gauss.process.level(times[-1]).scale)
    found = log_likelihood(gauss.process, gauss.score, values / 16, solver=Heun(), transform=transform, times=times)
    plain = log_likelihood(gauss.process, gauss.score, s * values / 16, solver=Heun(), times=times)
    assert s < 0.99
    torch.testing.assert_close(found.log_prob, plain.log_prob + math.log(s))


def test_samples_that_stop_on_the_way_have_no_density() -> None:
    problem = problems.mixture()
    found = log_likelihood(
        problem.process, problem.score, problem.points(0.01), solver=AdaptiveODE(1e-6, 1e-6, max_nfe=50)
    )
    assert not bool(found.ok.any()) and bool(found.log_prob.isnan().all())
    assert "5 samples" in repr(found)


class Squared:
    """The density 3x² on [0, 1]."""

    def log_prob(self, x: Tensor) -> Tensor:
        return math.log(3) + 2 * x[:, 0].log()


@pytest.mark.montecarlo
def test_more_draws_go_from_jensen_s_bound_to_the_chance() -> None:
    """A score of 0 moves nothing: −log₂ P of the bins below and above ½ is log₂ 8 and log₂ 8/7. One draw costs −E log₂ of 3x²/2, x uniform
    in the bin; its standard deviation, 2/ln 2 below, gives the errors of 4,000, here times four."""
    process = Diffusion(Hypercube((1,)), VE())
    options: dict[str, Any] = {"solver": Heun(), "times": [0.5, 0.1], "prior": Squared(), "bins": 2, "seed": 0}
    still = lambda x, t: torch.zeros_like(x)
    values = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    many = bits_per_dim(process, still, values, draws=4000, **options)
    # 3x² has the relative deviation √(4/5) below ½
    torch.testing.assert_close(
        many.each,
        torch.tensor([8.0, 8 / 7], dtype=torch.float64).log2(),
        rtol=0,
        atol=4 * 0.9 / 4000**0.5 / math.log(2),
    )
    single = bits_per_dim(process, still, values.repeat_interleave(4000, 0), **options).each.reshape(2, 4000).mean(1)
    below = -math.log2(1.5) - 2 * (math.log(0.5) - 1) / math.log(2)
    above = -math.log2(1.5) - 2 * (math.log(2) - 1) / math.log(2)  # 2∫ln x over (½, 1) = ln 2 − 1
    torch.testing.assert_close(
        single, torch.tensor([below, above], dtype=torch.float64), rtol=0, atol=4 * 2 / 4000**0.5 / math.log(2)
    )


def test_the_mean_of_bits_has_the_error_of_a_mean() -> None:
    problem = problems.cosine()
    found = bits_per_dim(
        problem.process, problem.score, torch.tensor([[0.0], [3.0], [7.0]]), bins=8, solver=Heun(), seed=0
    )
    assert found.value == pytest.approx(float(found.each.mean()))
    assert found.standard_error == pytest.approx(float(found.each.numpy().std(ddof=1)) / math.sqrt(3))
    one = bits_per_dim(problem.process, problem.score, torch.tensor([[3.0]]), bins=8, solver=Heun(), seed=0)
    assert math.isnan(one.standard_error)


@pytest.mark.parametrize("domain", [Hypercube((2,)), Euclidean((2,))], ids=repr)
def test_a_sample_that_stops_leaves_the_others_their_densities(domain: Any) -> None:
    """One of three scores is NaN. The others are what they are alone, their way back as well."""
    process = Diffusion(domain, VE(sigma_max=2.0))
    x = torch.tensor([[0.2, 0.3], [0.5, 0.9], [0.7, 0.7]], dtype=torch.float64)

    def score(x: Tensor, t: Tensor, broken: Tensor) -> Tensor:
        value = torch.cos(torch.pi * x).roll(1, -1)
        return torch.where(broken[:, None], torch.full_like(value, math.nan), value)

    options: dict[str, Any] = {"round_trip": True, "times": karras(process, 9)}
    for solver in (Heun(), AdaptiveODE(1e-4, 1e-4)):
        found = log_likelihood(
            process, score, x, solver=solver, condition={"broken": torch.tensor([False, True, False])}, **options
        )
        alone = log_likelihood(
            process, score, x[::2], solver=solver, condition={"broken": torch.tensor([False, False])}, **options
        )
        assert found.ok.tolist() == [True, False, True]
        for name in ("log_prob", "prior_log_prob", "log_det", "round_trip"):
            torch.testing.assert_close(getattr(found, name)[::2], getattr(alone, name))
        assert all(math.isnan(float(v[1])) for v in (found.log_prob, found.prior_log_prob, found.round_trip))  # type: ignore[index]


def test_probes_go_with_their_samples_where_some_have_arrived() -> None:
    """Adaptive rules drop those from the batch, where the score has ``rows``."""
    problem = problems.mixture_2d()
    x = problem.points(0.01, 6)
    run = lambda rows: (
        log_likelihood(
            problem.process, problem.score, x[rows], solver=AdaptiveODE(1e-4, 1e-4), divergence=Hutchinson(3), seed=rows
        ).log_prob
    )
    torch.testing.assert_close(run([1, 4]), run(list(range(6)))[[1, 4]])


@pytest.mark.parametrize("schedule", [VP(), VE(sigma_max=20.0)], ids=repr)
def test_the_prior_is_that_of_the_process_where_the_grid_begins(schedule: Schedule) -> None:
    """N(0, std(t)²), in proportion to that of t_max, 1 or σ_max."""
    problem = problems.mixture(schedule)
    found = log_likelihood(problem.process, problem.score, problem.points(0.1), solver=Heun(), times=[0.4, 0.1])
    share = schedule.std(torch.tensor(0.4)) / schedule.std(torch.tensor(1.0))
    law = torch.distributions.Normal(0.0, share.double() * schedule.prior_std)
    torch.testing.assert_close(found.prior_log_prob, law.log_prob(found.code[:, 0]), rtol=1e-6, atol=1e-6)


def test_conditions_are_those_of_each_datum_or_of_all() -> None:
    """A shift for each, and one for all whose length is not that of the batch, over batches of two dimensions and draws of bits."""
    problem = problems.cosine(dim=1)
    times = karras(problem.process, 8, sigma_min=0.1)

    def score(x: Tensor, t: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        assert own.shape == (len(x),) and shared.shape == (5,)
        return problem.score(x, t) * own[:, None] * shared.sum()

    own, shared = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).reshape(2, 3), torch.full((5,), 0.2).double()
    values = torch.arange(6).reshape(2, 3, 1).double()
    options: dict[str, Any] = {"bins": 8, "solver": Heun(), "times": times, "seed": 0}
    condition = {"own": own, "shared": shared}
    found = bits_per_dim(problem.process, score, values, draws=2, condition=condition, **options)
    flat = bits_per_dim(
        problem.process,
        score,
        values.reshape(6, 1),
        draws=2,
        condition={"own": own.flatten(), "shared": shared},
        **options,
    )
    torch.testing.assert_close(found.each.flatten(), flat.each)
    # and each hears its own
    plain = bits_per_dim(
        problem.process,
        score,
        values.reshape(6, 1),
        draws=2,
        condition={"own": own.flatten() * 0 + 1, "shared": shared},
        **options,
    )
    assert bool(((flat.each - plain.each).abs() > 1e-4).all())


def test_batches_of_none_and_of_one_event() -> None:
    problem, cube = problems.gaussian_2d(), problems.cosine(dim=2)
    for divergence in (Exact(), Hutchinson(2)):
        for solver in (Heun(), AdaptiveODE(1e-4, 1e-4)):
            found = log_likelihood(
                problem.process, problem.score, torch.zeros(0, 2), solver=solver, divergence=divergence, seed=0
            )
            assert found.log_prob.shape == found.standard_error.shape == (0,) and found.code.shape == (0, 2)
    none = bits_per_dim(cube.process, cube.score, torch.zeros(0, 2), bins=8, draws=2, solver=Heun(), seed=0)
    assert none.each.shape == (0,) and math.isnan(none.value)
    values = torch.tensor([1, 6])
    one = bits_per_dim(cube.process, cube.score, values, bins=8, draws=2, solver=Heun(), seed=0)
    several = bits_per_dim(cube.process, cube.score, values[None], bins=8, draws=2, solver=Heun(), seed=0)
    assert one.each.shape == () and one.value == several.value


def test_each_sample_is_dequantised_by_its_own_seed() -> None:
    problem = problems.cosine(dim=2)
    run = lambda values, seed: (
        log_likelihood(problem.process, problem.score, values, bins=4, solver=Heun(), seed=seed).log_prob
    )
    values = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    together = run(values, [3, 4, 5])
    assert float(together[0]) != float(together[1])
    torch.testing.assert_close(run(values[1:2], [4]), together[1:2], rtol=0, atol=0)
    with pytest.raises(ValueError, match="seeds: got 1, expected one per sample: 3"):
        run(values, [3])


def test_a_domain_without_a_law_of_its_own_needs_a_prior() -> None:
    class Bare(Domain):
        """A half-plane with nothing but its walls."""

        event_shape = (2,)

        def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
            return x[..., 0] >= -atol

        def project(self, x: Tensor) -> Tensor:
            return torch.stack([x[..., 0].clamp(min=0), x[..., 1]], -1)

        def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
            y = x + displacement
            return torch.stack([y[..., 0].abs(), y[..., 1]], -1)

        def __repr__(self) -> str:
            return "Bare()"

    process = Diffusion(Bare(), VE(sigma_max=2.0))
    run = lambda **o: log_likelihood(process, lambda x, t: 0 * x, torch.ones(3, 2), solver=Heun(), times=[1, 0.1], **o)
    with pytest.raises(TypeError, match=r"prior: Bare\(\) has no uniform law.* pass prior=, .*log_prob"):
        run()

    class Law:
        def log_prob(self, x: Tensor) -> Tensor:
            return -x.sum(-1)

    torch.testing.assert_close(run(prior=Law()).log_prob, torch.full((3,), -2.0).double())


def test_a_network_with_attention_is_differentiated_twice() -> None:
    """Fused attention has no second derivative; what asks for one must not meet it: gradients of a density, a density of a guided score."""
    process = Diffusion(Hypercube((1, 4, 4)), VE(sigma_max=2.0))
    net = UNet(UNetConfig(channels=8, multipliers=(1, 2), attention=(0,)))
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    score = NeuralScore(net, process)
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    given: dict[str, Any] = {"solver": Heun(), "times": karras(process, 3), "divergence": Hutchinson(1), "seed": 0}
    log_likelihood(process, score, x, differentiable=True, **given).log_prob.sum().backward()
    gradients = [w.grad for w in net.parameters() if w.grad is not None]
    assert gradients and all(bool(g.isfinite().all()) for g in gradients) and any(bool(g.any()) for g in gradients)
    operator = Downsample((1, 4, 4), 2)
    guided = PiGDM(score, operator, operator.forward(x), 0.1)
    assert bool(log_likelihood(process, guided, x, **given).log_prob.isfinite().all())


def test_a_score_of_another_process_is_refused() -> None:
    cube = problems.cosine()
    other = Diffusion(Hypercube((1,)), VE(sigma_max=7.0))
    with pytest.raises(ValueError, match=r"score: got one of Diffusion.* use score.process, or .*retime"):
        log_likelihood(other, cube.score, cube.points(0.1))
    # an equal process that is another object is the same process
    same = Diffusion(cube.process.domain, cube.process.schedule)
    log_likelihood(same, cube.score, cube.points(0.1), solver=Heun(), times=karras(same, 3))


def test_refusals() -> None:
    problem, cube = problems.gaussian(), problems.cosine()
    x = problem.points(0.1)
    run = lambda **o: log_likelihood(problem.process, problem.score, x, **o)
    with pytest.raises(TypeError, match=r"solver: got EulerMaruyama.* deterministic rule"):
        run(solver=EulerMaruyama())
    with pytest.raises(TypeError, match=r"wall: got Project.* volumes.*Reflect\(\) or Cover\(\)"):
        log_likelihood(cube.process, cube.score, cube.points(0.1), wall=Project())
    with pytest.raises(TypeError, match=r"divergence: got 'exact', expected Exact\(\) or Hutchinson"):
        run(divergence="exact")
    with pytest.raises(ValueError, match="grid that rises"):
        run(times=[0.1, 1.0])
    with pytest.raises(TypeError, match=r"prior: got float, expected a law with log_prob"):
        run(prior=1.0)
    with pytest.raises(ValueError, match=r"prior: got log_prob of shape \(5, 1\).*Independent"):
        run(prior=torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="bins: got 8, expected 16, those of AffineValues"):
        run(bins=8, transform=affine_values(Euclidean((1,)), 16))
    with pytest.raises(ValueError, match=r"outside.*whole numbers in"):
        bits_per_dim(cube.process, cube.score, torch.tensor([[9.0]]), bins=8)
    with pytest.raises(ValueError, match="bins: got no transform, expected bins=B"):
        bits_per_dim(cube.process, cube.score, torch.tensor([[0.3]]))
    with pytest.raises(ValueError, match="draws: got 0"):
        bits_per_dim(cube.process, cube.score, torch.tensor([[3.0]]), bins=8, draws=0)
    with pytest.raises(ValueError, match="seeds: got 2, expected one per sample"):
        bits_per_dim(cube.process, cube.score, torch.tensor([[3.0]]), bins=8, seed=[0, 1])
    with pytest.raises(ValueError, match="probes: got 0"):
        Hutchinson(0)
    with pytest.raises(ValueError, match="law: got 'uniform'"):
        Hutchinson(1, "uniform")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="transform: got int"):
        run(transform=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sovler'"):
        bits_per_dim(cube.process, cube.score, torch.tensor([[3.0]]), bins=8, sovler=Heun())
