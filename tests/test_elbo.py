"""Variational bounds: quadrature against closed forms, equality in the self-consistent cases, chains against DDPM's and VDM's numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carom.domains import Euclidean, Hypercube
from carom.domains.decoders import Bins
from carom.domains.transforms import AffineValues, affine_values
from carom.processes import VE, VP, Diffusion, Discrete, FlowMatching
from carom.scores import EmpiricalScore, GaussianMixtureScore
from carom.scores.neural import MLP, MLPConfig, NeuralScore, VariationalBound
from carom.solvers import Exact, Hutchinson, elbo, karras
from carom.solvers.variational import ChainBound, ContinuousBound, LevelScore, _data
from carom.validation import problems

PROBLEMS = {
    "VP": problems.mixture(),
    "VE": problems.mixture(VE(sigma_max=20.0)),
    "flow matching": problems.mixture_2d(FlowMatching()),
    "cube": problems.cosine(dim=2),
    "simplex": problems.pair(),
}


@pytest.mark.montecarlo
@pytest.mark.parametrize("form", ["dsm", "fisher"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_with_exact_score_and_terminal_law_the_bound_is_the_density(name: str, form: str) -> None:
    """Five standard errors, over 10 × 3 estimates; the errors themselves are estimated from 400 draws, to some 5 %."""
    problem = PROBLEMS[name]
    times = karras(problem.process, 2)
    x = problem.points(float(times[-1]), 3)
    found = elbo(
        problem.process, problem.score, x, form=form, draws=400, seed=0, prior=problem.marginal(float(times[0]))
    )
    error = (found.log_prob - problem.log_prob(x, float(times[-1]))) / found.standard_error
    assert float(error.abs().max()) < 5 and float(found.standard_error.max()) < 1.2
    torch.testing.assert_close(-sum(found.terms.values()), found.log_prob)  # type: ignore[arg-type]
    assert "path" in repr(found)


def hermite(n: int) -> tuple[Tensor, Tensor]:
    z, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(z), torch.tensor(w / math.sqrt(2 * math.pi))


def legendre(n: int, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(n)
    return torch.tensor(low + (high - low) * (x + 1) / 2), torch.tensor((high - low) * w / 2)


def by_quadrature(
    process: Diffusion, score: Any, x: float, times: Tensor, prior: Any = None, divergence: Any = None
) -> float:
    """The bound at one number x on a line, with no noise left."""
    z, wz = hermite(30)
    u, wu = legendre(300)
    at = torch.full((len(z), 1), x, dtype=torch.float64)
    data = _data(process, at, None, times)
    law = process.prior(torch.float64, None, float(times[0])) if prior is None else prior
    bound = ContinuousBound(process, LevelScore(process, score, {}), data, times[[-1, 0]], law, prior is None)
    path = 0.0
    for node, weight in zip(u, wu, strict=True):
        tau, sigma, factor = bound.level(node.expand(len(z)))
        target = None if divergence else -z[:, None] / tau[:, None]
        reading = bound.reading(data.x + tau[:, None] * z[:, None], target, sigma, divergence or Exact(), None)
        path += float(weight * (wz * factor * reading).sum())
    if prior is None:
        last = float(bound.prior(bound._kernel(torch.full_like(z, bound.high)), None)[0])
    else:
        ends = bound.last * (data.x + bound.high * z[:, None])
        last = -float((wz * prior.log_prob(ends)).sum()) - math.log(bound.last)
    return last + path + float(data.values_term(data.x).reshape(-1)[0])


def test_the_bound_has_the_reference_values() -> None:
    """G1 diffused by VP up to T = 1, the model's score that of N(.3, .5) diffused, at x = 1; t₀ = 1e-8 moves them by less than 1e-7."""
    process = problems.gaussian().process
    model = GaussianMixtureScore(process, [1.0], [0.3], [0.5])
    times = torch.tensor([1.0, 1e-8], dtype=torch.float64)

    class Terminal:
        def log_prob(self, x: Tensor) -> Tensor:
            return model.log_prob(x, 1.0)

    for divergence in (None, Exact()):
        run = lambda score, prior=None: by_quadrature(process, score, 1.0, times, prior, divergence)  # noqa: B023
        assert run(model) == pytest.approx(1.06237595541, abs=1e-6)  # (A), prior N(0, 1)
        assert run(model, Terminal()) == pytest.approx(1.06236494292, abs=1e-6)  # (B), its own: equality
        assert run(problems.gaussian().score) == pytest.approx(0.725807547563, abs=1e-6)  # (C), the exact score


def test_between_walls_the_bound_of_a_self_consistent_model_is_its_density() -> None:
    """r₀ = 1 + .2 cos πx against data 1 + .5 cos πx: the bound less the entropy is KL = .0242812982365, with no gap."""
    model, data = problems.cosine(0.2), problems.cosine(0.5)
    process, times = model.process, karras(model.process, 2)
    t0 = float(times[-1])
    nodes, weights = legendre(200)
    u, wu = legendre(80)
    totals = []
    x0, w0 = legendre(12)
    for x in x0:
        at = x.expand(len(nodes), 1)
        setting = _data(process, at, None, times)
        bound = ContinuousBound(
            process, LevelScore(process, model.score, {}), setting, times[[-1, 0]], process.prior(), True
        )
        path = 0.0
        for node, weight in zip(u, wu, strict=True):
            tau, sigma, factor = bound.level(node.expand(len(nodes)))
            if float(tau[0]) < 0.02:
                # nodes no longer resolve the kernel, whose mean is the value at its centre up to τ²
                reading = bound.reading(setting.x[:1], None, sigma[:1], Exact(), None)
                path += float(weight * factor[0] * reading)
                continue
            kernel = process.domain.heat_kernel(at, tau)  # type: ignore[attr-defined]
            chances = weights * kernel.log_prob(nodes[:, None]).exp()
            reading = bound.reading(nodes[:, None], kernel.score(nodes[:, None]), sigma, Exact(), None)
            path += float(weight * (chances * factor * reading).sum())
        totals.append(float(bound.prior(bound._kernel(torch.ones(1)), None)[0]) + path)
        # the terminal law is uniform up to 1e-9 here
        assert totals[-1] == pytest.approx(-float(model.log_prob(x.reshape(1, 1), t0)), abs=2e-4)
    p = data.log_prob(x0[:, None], t0)
    divergence = float((w0 * p.exp() * (p + torch.tensor(totals))).sum())
    exact = float((w0 * p.exp() * (p - model.log_prob(x0[:, None], t0))).sum())
    assert divergence == pytest.approx(exact, abs=1e-4) and divergence == pytest.approx(0.0242812982365, abs=2e-4)


@pytest.mark.montecarlo
@pytest.mark.parametrize("domain", ["cube", "line"])
def test_bits_of_three_values_are_their_entropy(domain: str) -> None:
    """Chances .2, .3, .5 of levels 0, ½, 1, σ₀ far below their distance: the bound of the exact score is tight."""
    levels = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[:, None]
    if domain == "cube":
        process, points = Diffusion(Hypercube((1,)), VE()), levels
    else:
        process, points = Diffusion(Euclidean((1,)), VP()), 2 * levels - 1
    score = EmpiricalScore(process, points.repeat_interleave(torch.tensor([2, 3, 5]), 0))
    values = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    found = elbo(process, score, values, bins=3, draws=1500, seed=0)
    want = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    assert float(((found.log_prob - want) / found.standard_error).abs().max()) < 4.5
    assert float(found.standard_error.max()) < 0.3 and "reconstruction" in found.terms


def test_levels_far_away_are_left_out_without_loss() -> None:
    """256 levels at σ of 3 spacings: 75 of them are summed; all of them, by hand, give the same."""
    from carom.solvers.stored_values import log_chances

    for domain in (Hypercube((4,), low=[0, 0, -1, 2], high=[1, 2, 1, 3]), Euclidean((4,))):
        transform = affine_values(domain, 256)
        levels = torch.tensor([[0, 3, 128, 255]], dtype=torch.float64)
        x = transform.forward(levels)
        spacing = transform.forward(torch.ones(4).double()) - transform.forward(torch.zeros(4).double())
        x = domain.project(x + 0.7 * spacing)
        sigma = 3 * float(spacing.min())
        everything = torch.stack(
            [transform.forward(torch.full((4,), float(k), dtype=torch.float64)) for k in range(256)]
        )
        wanted = torch.zeros(())
        for i in range(4):
            if isinstance(domain, Euclidean):
                line: Any = Euclidean((1,))
            else:
                line = Hypercube((1,), low=float(domain.low[i]), high=float(domain.high[i]))
            wanted = wanted + line.heat_kernel(everything[:, i, None], sigma).log_prob(x[:, i, None]).logsumexp(0)
        torch.testing.assert_close(log_chances(domain, transform, x, sigma)[0], wanted, rtol=1e-11, atol=1e-11)


def vdm_table(steps: int) -> Discrete:
    """γ from −13.3 to 5 in equal steps, VDM's linear schedule."""
    gamma = torch.linspace(-13.3, 5.0, steps + 1, dtype=torch.float64)
    return Discrete((-gamma).sigmoid())


@pytest.mark.parametrize(("steps", "want"), [(10, 15.7275644645), (100, 6.48569036632)])
def test_vdm_in_steps_has_the_reference_values(steps: int, want: float) -> None:
    """Means over G1 and over noise by 40² Gauss–Hermite nodes, exact for what is a polynomial."""
    problem = problems.gaussian(vdm_table(steps))
    grid = torch.arange(steps + 1, 0, -1, dtype=torch.float64) / (steps + 1)
    prior, diffusion, reconstruction = over_g1(problem.process, problem.score, grid, None)
    assert diffusion == pytest.approx(want, rel=1e-9)
    # the other two of the bound, in the same source
    assert prior == pytest.approx(0.00168446151349, rel=1e-9)
    # there x_0 is read by its posterior mean, which gains ½σ_0²/v = 3.3e-6
    assert reconstruction == pytest.approx(-5.23106481577 + 2 * math.exp(-13.3), abs=1e-9)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("bins", [None, 17])
def test_the_chain_is_the_bound_that_ddpm_trains(variance: str, bins: int | None) -> None:
    torch.manual_seed(0)
    process = Diffusion(Euclidean((3,)), Discrete.ddpm(30))
    score = NeuralScore(MLP(MLPConfig((3,), width=8, depth=1)), process).double()
    transform = None if bins is None else affine_values(process.domain, bins)
    values = torch.tensor([[0.0, 5, 16], [3, 8, 11]], dtype=torch.float64)
    x0 = values / 8 - 1
    chain = ChainBound(
        process, LevelScore(process, score, {}), x0, torch.arange(30, 0, -1).double() / 30, transform, variance
    )
    objective = VariationalBound(variance, None if bins is None else Bins(bins))
    for i in (1, 2, 11, 30):
        noise = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        want = 3 * objective.at(score, x0, torch.full((2,), i), noise).bound
        got = chain._last_step(noise) if i == 1 else chain._step(i - 1, noise)
        torch.testing.assert_close(got, want.detach(), rtol=1e-7, atol=1e-9)


def over_g1(
    process: Diffusion, score: Any, grid: Tensor, variance: str | None, nodes: int = 40
) -> tuple[float, float, float]:
    """(L_T, ΣL_t, L_0) as means over G1 and over noise by Gauss–Hermite nodes, exact for what is a polynomial."""
    z, w = hermite(nodes)
    x0 = (0.5 + 0.5 * z).repeat_interleave(len(z))[:, None]
    noise, weight = z.repeat(len(z))[:, None], torch.outer(w, w).flatten()
    chain = ChainBound(process, LevelScore(process, score, {}), x0, grid, None, variance)
    steps = sum(float(weight @ chain._step(i, noise)) for i in range(1, len(grid)))
    return float(weight @ chain._prior()), steps, float(weight @ chain._last_step(noise))


@pytest.mark.parametrize("variance", ["beta", None])
def test_chains_bound_the_density_from_below_and_close_in_with_more_levels(variance: str | None) -> None:
    """In the mean over G1, whose entropy is ½ ln 2πe/4: the excess falls as 1/levels."""
    problem = problems.gaussian()
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25)
    excess = []
    for count in (20, 80, 320):
        grid = karras(problem.process, count, rho=7, sigma_min=2e-3)
        excess.append(sum(over_g1(problem.process, problem.score, grid, variance, 12)) - entropy)
    assert excess[0] > excess[1] > excess[2] > -1e-4, excess
    if variance is None:
        assert excess[1] / excess[2] == pytest.approx(4, rel=0.2)


def test_continuous_values_and_shapes_and_conditions() -> None:
    problem = problems.gaussian_2d()
    transform = affine_values(problem.process.domain, between=(0.0, 16.0))
    values = torch.tensor([[[2.0, 9.0]], [[4.0, 3.0]]], dtype=torch.float64)

    def score(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return problem.score(x - shift[..., None], t)

    shift = torch.tensor([[0.1], [0.4]], dtype=torch.float64)
    for form in ("dsm", "ddpm"):
        options: dict[str, Any] = {"form": form, "draws": 3, "seed": 0, "condition": {"shift": shift}}
        if form == "ddpm":
            options["times"] = karras(problem.process, 6)
        found = elbo(problem.process, score, values, transform=transform, **options)
        assert found.log_prob.shape == found.standard_error.shape == (2, 1) and found.log_prob.dtype == torch.float64
        assert all(v.shape[-2:] == (2, 1) for v in found.terms.values())
        x = transform.forward(values)
        scale = 1.0 if form == "ddpm" else float(problem.process.level(karras(problem.process, 2)[-1]).scale)
        plain = elbo(problem.process, score, scale * x, **options)
        # a unit of value is 1/8 of one of x
        torch.testing.assert_close(found.log_prob, plain.log_prob + 2 * math.log(scale / 8))
        torch.testing.assert_close(found.bits_per_dim, -found.log_prob / (2 * math.log(2)))


def test_float32_agrees_with_float64() -> None:
    problem = problems.cosine(dim=2)
    x = problem.points(0.05)
    found = [elbo(problem.process, problem.score, x.to(d), draws=64, seed=0) for d in (torch.float32, torch.float64)]
    assert found[0].log_prob.dtype == torch.float64
    # the draws differ between the precisions: five of the two errors together
    error = (found[0].standard_error ** 2 + found[1].standard_error ** 2).sqrt()
    assert float(((found[0].log_prob - found[1].log_prob) / error).abs().max()) < 5


def test_hutchinson_serves_the_fisher_form() -> None:
    problem = problems.cosine(dim=2)
    x = problem.points(0.05)
    exact, probed = (
        elbo(problem.process, problem.score, x, form="fisher", divergence=d, draws=200, seed=0)
        for d in (Exact(), Hutchinson(2))
    )
    error = (exact.standard_error**2 + probed.standard_error**2).sqrt()
    assert float(((exact.log_prob - probed.log_prob) / error).abs().max()) < 5


def test_a_run_can_be_repeated_and_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    problem = problems.cosine()
    x = problem.points(0.05)
    found = [elbo(problem.process, problem.score, x, draws=4, seed=s, progress=True).log_prob for s in (0, 0, 1)]
    assert bool((found[0] == found[1]).all()) and not bool((found[0] == found[2]).any())
    assert "0/4" in capsys.readouterr().err
    assert bool(elbo(problem.process, problem.score, x, draws=1, seed=0).standard_error.isnan().all())


@pytest.mark.montecarlo
@pytest.mark.parametrize("form", ["dsm", "fisher", "ddpm"])
def test_the_standard_error_is_that_of_the_estimates(form: str) -> None:
    """600 estimates of one bound: their spread against what each reports. The share's own error is 1/√1200 = 3 %; neighbouring strata
    overstate it by what the mean differs between them."""
    problem = problems.gaussian_2d()
    x = problem.points(0.1)[:1].expand(600, 2)
    times = karras(problem.process, 2 if form != "ddpm" else 12, sigma_min=0.1)
    found = elbo(problem.process, lambda x, t: 0.7 * problem.score(x, t), x, form=form, draws=16, seed=0, times=times)
    ratio = float(found.standard_error.square().mean().sqrt() / found.log_prob.std())
    assert 0.9 < ratio < 1.25, ratio


def test_the_control_takes_noise_away_and_moves_no_mean() -> None:
    """With the exact score |s|² − 2 s·target is mostly noise of the target at large σ, where s is nearly it."""
    problem = problems.mixture_2d(VE(sigma_max=20.0))
    x, times = problem.points(0.1, 3).repeat_interleave(200, 0), karras(problem.process, 2)
    plain = ContinuousBound._control
    try:
        found = [elbo(problem.process, problem.score, x, draws=16, seed=0, times=times)]
        ContinuousBound._control = lambda self, target, sigma: 0.0  # type: ignore[method-assign, assignment, return-value]
        found.append(elbo(problem.process, problem.score, x, draws=16, seed=0, times=times))
    finally:
        ContinuousBound._control = plain  # type: ignore[method-assign]
    with_, without = (f.log_prob.reshape(3, 200) for f in found)
    assert bool((with_.std(1) < 0.7 * without.std(1)).all())
    error = (with_.var(1) + without.var(1)).div(200).sqrt()
    assert bool(((with_.mean(1) - without.mean(1)).abs() < 4 * error).all())


@pytest.mark.parametrize("schedule", [VP(), VE(sigma_max=2.0), FlowMatching()], ids=repr)
def test_the_prior_term_is_closed_also_where_data_stand_at_a_level_of_their_own(schedule: Any) -> None:
    """E over N(X, σ₁² − σ₀²) of −log π, as a sum over Gauss–Hermite nodes of the law of X_T itself."""
    process = Diffusion(Euclidean((1,)), schedule)
    times = torch.tensor([0.8, 0.5], dtype=torch.float64)
    x = torch.tensor([[0.7], [-1.2]], dtype=torch.float64)
    found = elbo(process, lambda x, t: 0 * x, x, draws=2, seed=0, times=times).terms["prior"]
    top, low = process.level(times[0]), process.level(times[1])
    z, w = hermite(20)
    last = top.scale * (x / low.scale + (top.sigma**2 - low.sigma**2).sqrt() * z)
    log_pi = process.prior(torch.float64, t=0.8).log_prob(last.reshape(-1, 1)).reshape(2, 20)
    # the density of X is that of x times the scale
    torch.testing.assert_close(found, -(log_pi + top.scale.log()) @ w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [VP(), VE(sigma_max=2.0)], ids=repr)
@pytest.mark.parametrize("form", ["ddpm", "vdm"])
def test_the_terms_of_a_chain_are_the_closed_ones_of_a_score_of_0(form: str, schedule: Any) -> None:
    """Then ε − ε̂ = ε: L_t has the mean ½d(σ_t²/σ_s² − 1), from the smallest level on; 400 draws of 10 numbers leave √(2/4000) of it, here
    times 4.5. L_T is KL between two Gaussians, and all add up."""
    process = Diffusion(Euclidean((10,)), schedule)
    times = karras(process, 7, sigma_min=0.05)
    x = torch.linspace(-1, 1, 10, dtype=torch.float64)[None]
    found = elbo(process, lambda x, t: 0 * x, x, form=form, draws=400, seed=0, times=times)
    sigma = process.level(times.flip(0)).sigma
    wanted = 5 * ((sigma[1:] / sigma[:-1]) ** 2 - 1)
    torch.testing.assert_close(found.terms["L_t"][:, 0], wanted, rtol=4.5 * math.sqrt(2 / 4000), atol=0)
    top, pi = process.level(times[0]), torch.distributions.Normal(0.0, process.prior(t=float(times[0])).sigma.double())  # type: ignore[attr-defined]
    q = torch.distributions.Normal(top.scale * x[0], top.scale * top.sigma)
    torch.testing.assert_close(
        found.terms["L_T"][0], torch.distributions.kl_divergence(q, pi).sum(), rtol=1e-6, atol=1e-9
    )
    total = found.terms["L_T"] + found.terms["L_t"].sum(0) + found.terms["L_0"]
    torch.testing.assert_close(found.log_prob, -total)


def test_vdm_reads_whole_numbers_by_bayes_rule() -> None:
    """L_0 of two levels at ±1 given X = v + σz is the mean of ln(1 + exp(−2(1 + σ z)/σ²)); σ = 1: by Gauss–Hermite nodes."""
    process = Diffusion(Euclidean((1,)), VE(sigma_max=2.0))
    transform = affine_values(process.domain, 2)
    z, w = hermite(60)
    x0 = torch.ones(60, 1, dtype=torch.float64)
    chain = ChainBound(
        process,
        LevelScore(process, lambda x, t: 0 * x, {}),
        x0,
        process.schedule.time(torch.tensor([2.0, 1.0]).double()),
        transform,
        None,
    )
    found = float(w @ chain._last_step(z[:, None]))
    u, wu = legendre(400, -8, 8)
    density = wu * (-(u**2) / 2).exp() / math.sqrt(2 * math.pi)
    assert found == pytest.approx(float(density @ torch.log1p((-2 * (1 + u)).exp())), abs=1e-4)


def test_a_chain_goes_over_the_table_of_a_discrete_schedule_unless_told() -> None:
    process = Diffusion(Euclidean((2,)), Discrete.ddpm(30))
    score = GaussianMixtureScore(process, [1.0], [[0.2, -0.1]], 0.5)
    x = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    found = elbo(process, score, x, form="ddpm", draws=2, seed=0)
    told = elbo(process, score, x, form="ddpm", draws=2, seed=0, times=torch.arange(30, 0, -1).double() / 30)
    assert found.terms["L_t"].shape == (29, 1)
    torch.testing.assert_close(found.log_prob, told.log_prob)


def test_chances_of_levels_keep_their_digits_in_single_precision() -> None:
    from carom.solvers.stored_values import log_chances

    for domain in (Hypercube((3,), low=[0.0, -1, 2], high=[1.0, 1, 3]), Euclidean((3,))):
        transform = affine_values(domain, 256)
        x = domain.project(transform.forward(torch.tensor([[3.0, 128.0, 255.0]])) - 1e-3)
        found = log_chances(domain, transform, x, 2e-3)
        torch.testing.assert_close(found, log_chances(domain, transform, x.double(), 2e-3), rtol=1e-12, atol=1e-12)


def test_batches_of_none_and_of_one_event() -> None:
    problem, cube = problems.gaussian_2d(), problems.cosine(dim=2)
    x = torch.tensor([0.3, 0.6], dtype=torch.float64)
    runs: list[tuple[Any, dict[str, Any]]] = [
        (problem, {"form": "dsm"}),
        (problem, {"form": "fisher", "divergence": Hutchinson(2)}),
        (problem, {"form": "ddpm"}),
        (problem, {"form": "vdm"}),
        (cube, {"form": "fisher"}),
        (cube, {"bins": 4}),
    ]
    for of, options in runs:
        at = torch.tensor([1.0, 3.0], dtype=torch.float64) if "bins" in options else x
        none = elbo(of.process, of.score, at.expand(0, 2), draws=3, seed=0, **options)
        assert none.log_prob.shape == none.standard_error.shape == (0,)
        one, several = (elbo(of.process, of.score, v, draws=3, seed=0, **options) for v in (at, at[None]))
        assert one.log_prob.shape == one.standard_error.shape == () and float(one.log_prob) == float(several.log_prob)
        assert all(v.shape == several.terms[name].shape[:-1] for name, v in one.terms.items())


def test_refusals() -> None:
    problem, cube = problems.gaussian(), problems.cosine()
    x = problem.points(0.1)
    with pytest.raises(ValueError, match="form: got 'nelbo', expected one of dsm, fisher, ddpm, vdm"):
        elbo(problem.process, problem.score, x, form="nelbo")
    with pytest.raises(TypeError, match=r"form: got 'ddpm' on Hypercube.* chain of Gaussians"):
        elbo(cube.process, cube.score, cube.points(0.1), form="ddpm")
    with pytest.raises(ValueError, match="prior: got one with form 'vdm'"):
        elbo(problem.process, problem.score, x, form="vdm", prior=problem.marginal(1.0))
    with pytest.raises(ValueError, match="variance: got 'learned'"):
        elbo(problem.process, problem.score, x, form="ddpm", variance="learned")
    with pytest.raises(ValueError, match="draws: got 0"):
        elbo(problem.process, problem.score, x, draws=0)
    with pytest.raises(ValueError, match="seeds: got 2, expected one per sample"):
        elbo(problem.process, problem.score, x, seed=[0, 1])
    plane = problems.gaussian_2d()
    uneven = AffineValues([-1.0, -2.0], [1.0, 2.0], 0, 15, 16)
    with pytest.raises(ValueError, match=r"transform: got walls that differ between axes.* use 'dsm'"):
        elbo(plane.process, plane.score, torch.ones(1, 2), form="ddpm", transform=uneven)
    with pytest.raises(ValueError, match="bins: got 8, expected 16"):
        elbo(problem.process, problem.score, x, bins=8, transform=affine_values(Euclidean((1,)), 16))
    simplex = problems.pair()
    with pytest.raises(TypeError, match="affine_values: got Simplex"):
        elbo(simplex.process, simplex.score, torch.ones(1, 2), bins=3)
    from carom.domains import Polytope

    polytope = Diffusion(Polytope([[-1.0, 0], [0, -1], [1, 1]], [0, 0, 1]), VE(sigma_max=2.0))
    with pytest.raises(TypeError, match=r"elbo: got .*Polytope.* log_likelihood needs neither"):
        elbo(polytope, lambda x, t: 0 * x, torch.full((1, 2), 0.2))
