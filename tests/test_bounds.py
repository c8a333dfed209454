"""DDPM's bound and the hybrid loss on G1 and M1 against closed forms, and learned variances from training to sampling."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, VP, Diffusion, Discrete
from carom.scores import GaussianMixtureScore
from carom.scores.neural import (
    MLP,
    Bins,
    EDMPreconditioning,
    Hybrid,
    LearnedVariance,
    MLPConfig,
    NeuralScore,
    VariationalBound,
)
from carom.solvers import AnalyticDPM, Ancestral, sample
from carom.solvers.forms import Levels
from carom.solvers.onestep import forward_variance, posterior_variance

TABLE = Discrete.ddpm(50)
PROCESS = Diffusion(Euclidean((1,)), TABLE)
AB = TABLE.alphas_cumprod
INDEX = torch.arange(1, 51)


class Two(nn.Module):
    """A network of two outputs: 0, which under EDM's preconditioning is the exact score of N(½, ¼), and a number of each level."""

    def __init__(self, v: torch.Tensor, schedule: Discrete = TABLE):
        super().__init__()
        self.head = nn.Parameter(2 * v - 1)
        self.schedule = schedule

    def forward(self, x, c_noise):
        level = (self.schedule.time((4 * c_noise.double()).exp()) * len(self.head)).round().long() - 1
        v = self.head[level].reshape(-1, *[1] * (x.dim() - 1))
        return torch.cat([torch.zeros_like(x), v.expand_as(x).to(x.dtype)], 1)


def exact_score(v: torch.Tensor | None = None) -> NeuralScore:
    network = MLP(MLPConfig((1,), 8, 1)).requires_grad_(False) if v is None else Two(v)
    return NeuralScore(network, PROCESS, EDMPreconditioning(0.5, 0.5))


def per_level(objective, score, field: str = "bound") -> torch.Tensor:
    """Each L_{i−1} over G1 and noise, by Gauss–Hermite: with the exact score it is quadratic in both, so that two nodes are exact."""
    node, weight = np.polynomial.hermite_e.hermegauss(3)
    z, w = torch.tensor(node), torch.tensor(weight / weight.sum())
    shape = (50, 3, 3)
    x0 = (0.5 + 0.5 * z[:, None, None]).expand(*shape, 1)
    terms = objective.at(score, x0, INDEX[:, None, None].expand(shape), z[:, None].expand(*shape, 1))
    return (getattr(terms, field) * w[:, None] * w).sum((1, 2))


def prior_of_g1() -> float:
    """KL(N(√ᾱ x0, 1 − ᾱ) | N(0, 1)) in the mean."""
    ab = float(AB[-1])
    return 0.5 * (ab * 0.5 - ab - math.log1p(-ab))


def optimal_variance() -> torch.Tensor:
    """γ*² with η = 1 (formulas §5) of each step, β̃_1 read as β̃_2 in none of it: at i = 1 it is Var[x0 | x1]."""
    before = torch.cat([torch.ones(1).double(), AB[:-1]])
    beta = 1 - AB / before
    lam = beta * (1 - before) / (1 - AB)
    mse = AB * 0.25 / (AB * 0.25 + 1 - AB)
    return lam + (((1 - AB) / (1 - beta)).sqrt() - (1 - before - lam).sqrt()) ** 2 * mse


def learned_optimum() -> torch.Tensor:
    """The v that gives it: ln(γ*²/β̃)/ln(β/β̃), with β̃_2 for β̃_1."""
    beta = TABLE.betas
    small = beta[1:] * (1 - AB[:-1]) / (1 - AB[1:])
    small = torch.cat([small[:1], small])
    return (optimal_variance() / small).log() / (beta / small).log()


# values ---------------------------------------------------------------------------------------------------------------


def test_errors_of_the_noise_are_the_least_there_are():
    error = per_level(VariationalBound(), exact_score(), "noise_error")
    torch.testing.assert_close(error, AB * 0.25 / (AB * 0.25 + 1 - AB), rtol=1e-12, atol=0)
    for i, value in ((1, 0.992047713718), (25, 0.018216147073), (50, 1.93620267138e-6)):  # formulas §2
        assert error[i - 1].item() == pytest.approx(value, rel=1e-9)
    assert error.mean().item() == pytest.approx(0.168510479314, rel=1e-11)


def test_the_bound_on_g1_with_the_variance_beta_has_the_values_of_the_formulas():
    levels = per_level(VariationalBound("beta"), exact_score())
    assert levels[1:].sum().item() == pytest.approx(2.43917732456, rel=1e-11)
    assert levels[0].item() == pytest.approx(-1.69134762336, rel=1e-11)
    assert prior_of_g1() == pytest.approx(1.93620642023e-6, rel=1e-9)
    assert levels.sum().item() + prior_of_g1() == pytest.approx(0.747831637401, rel=1e-10)


def test_the_bound_on_g1_with_the_posterior_variance_is_the_sum_of_gaussian_divergences():
    """KL of N(μ̃, β̃) from N(μ, β̃) is half the squared difference of means over β̃, and at i = 1 the variance is β̃_2."""
    beta, before = TABLE.betas[1:], AB[:-1]
    small = beta * (1 - before) / (1 - AB[1:])
    mse = AB * 0.25 / (AB * 0.25 + 1 - AB)
    expected = beta**2 / (2 * small * (1 - beta) * (1 - AB[1:])) * mse[1:]
    first = 0.5 * (2 * math.pi * small[0]).log() + 0.5 * (1 - AB[0]) / AB[0] * mse[0] / small[0]
    levels = per_level(VariationalBound(), exact_score())
    torch.testing.assert_close(levels[1:], expected, rtol=1e-11, atol=0)
    assert levels[0].item() == pytest.approx(first.item(), rel=1e-12)
    assert small[0].item() == pytest.approx(0.00167282734803, rel=1e-11)  # β̃_2 and β̃_50 of the formulas
    assert small[-1].item() == pytest.approx(0.399997934713, rel=1e-11)


def test_learned_variances_lie_between_on_a_log_scale():
    for v, fixed in ((0.0, "posterior"), (1.0, "beta")):
        learned = per_level(VariationalBound("learned"), exact_score(torch.full((50,), v).double()))
        torch.testing.assert_close(learned, per_level(VariationalBound(fixed), exact_score()), rtol=1e-11, atol=1e-14)
    score = exact_score(torch.full((50,), 0.5).double())
    learned = per_level(VariationalBound("learned"), score)
    # KL(N(m, β̃) | N(m', g²)) with g² = var[2] = .00411498596378 of the formulas
    g2, small = 0.00411498596378, 0.00167282734803
    beta, ab = float(TABLE.betas[1]), float(AB[1])
    square = beta**2 / ((1 - beta) * (1 - ab)) * ab * 0.25 / (ab * 0.25 + 1 - ab)
    assert learned[1].item() == pytest.approx(0.5 * (math.log(g2 / small) + (small + square) / g2 - 1), rel=1e-9)


def test_precision_in_float32():
    """Each term is right to the rounding of its parts, about 1e-6 of ρ, which is below 3."""
    x0, noise = torch.randn(2, 50, 1, generator=torch.Generator().manual_seed(0)).double()
    for variance in ("posterior", "beta"):
        objective, score = VariationalBound(variance), exact_score()
        double = objective.at(score, x0, INDEX, noise).bound
        single = objective.at(score, x0.float(), INDEX, noise.float()).bound
        assert single.dtype == torch.float32
        # errors of ε + σ·score are 1e-7 of ε
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=1e-6)


@pytest.mark.montecarlo
@torch.no_grad()
def test_random_levels_and_all_levels_have_the_mean_that_quadrature_gives():
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 + 0.5 * torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    for variance in ("posterior", "beta"):
        objective, score = VariationalBound(variance), exact_score()
        exact = per_level(objective, score)
        terms = objective.terms(score, x0, generator)
        error = float(terms.loss.std()) / math.sqrt(len(x0))
        # most of it is that of N L_0 among the levels, which the strata take away
        assert error < 0.3 and float(terms.loss.mean()) == pytest.approx(float(exact.sum()), abs=4 * error)
        assert float(objective(score, x0, generator)) == pytest.approx(float(exact.sum()), abs=4 * error)
        parts = objective.levelwise(score, x0[:5000], generator)
        assert parts.levels.shape == (50,)
        # each L is ½kχ² times the mean square error: std below 1.5 of its own size, L_0 within .02
        torch.testing.assert_close(parts.levels[1:], exact[1:], rtol=4 * 1.5 / math.sqrt(5000), atol=0)
        assert float(parts.levels[0]) == pytest.approx(float(exact[0]), abs=0.08)
        assert float(parts.prior) == pytest.approx(prior_of_g1(), rel=0.2)
        assert float(parts.total) == float(parts.prior + parts.levels.sum())


def test_levels_are_drawn_in_strata_and_any_batch_shape_will_do():
    x0 = torch.randn(100, 1)
    objective, score = VariationalBound(), exact_score()
    sigma = objective.terms(score, x0, torch.Generator().manual_seed(0)).sigma
    table = TABLE.sigma(INDEX / 50)
    torch.testing.assert_close(sigma.sort().values, table.repeat_interleave(2).float())
    whole = objective(score, x0, torch.Generator().manual_seed(1))
    folded = objective(score, x0.reshape(4, 25, 1), torch.Generator().manual_seed(1))
    torch.testing.assert_close(whole, folded)


# data on a grid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masses_of_bins_sum_to_one_and_keep_their_digits_in_the_tails(dtype):
    bins = Bins(9, -1.0, 1.0)
    values = torch.linspace(-1, 1, 9, dtype=dtype)
    mean = torch.tensor([[-3.0], [-1.1], [0.07], [0.9], [3.0]], dtype=dtype).expand(5, 9)
    for std in (0.05, 0.4, 5.0):
        nll = bins.gaussian_nll(values.expand(5, 9), mean, torch.tensor(std, dtype=dtype))
        torch.testing.assert_close((-nll).exp().sum(-1), torch.ones(5, dtype=dtype))
        edges = np.concatenate([[-np.inf], np.linspace(-0.875, 0.875, 8), [np.inf]])
        for row, m in enumerate(mean[:, 0].tolist()):
            a, b = (edges[:-1] - m) / std, (edges[1:] - m) / std
            flip = a > 0
            a, b = np.where(flip, -b, a), np.where(flip, -a, b)
            exact = norm.logcdf(b) + np.log1p(-np.exp(norm.logcdf(a) - norm.logcdf(b)))
            # the argument of log Φ, up to 80, is squared: its rounding counts 80² times
            tolerance = 1e-4 if dtype == torch.float32 else 1e-11
            np.testing.assert_allclose(-nll[row].double().numpy(), exact, rtol=tolerance, atol=tolerance)
    x = values.clone()
    m = torch.zeros(9, dtype=dtype, requires_grad=True)
    bins.gaussian_nll(x, m, torch.full((), 1e-3, dtype=dtype)).sum().backward()
    assert bool(m.grad.isfinite().all())


def test_binned_data_change_the_last_step_alone():
    x0 = torch.randint(0, 5, (50, 1), generator=torch.Generator().manual_seed(0)) / 2.0 - 1
    noise = torch.randn(50, 1, generator=torch.Generator().manual_seed(1))
    bins, score = Bins(5), exact_score()
    plain = VariationalBound("beta").at(score, x0, INDEX, noise).bound
    binned = VariationalBound("beta", bins).at(score, x0, INDEX, noise).bound
    assert torch.equal(plain[1:], binned[1:])
    sigma, std = float(TABLE.sigma(1 / 50)), float(TABLE.betas[0].sqrt())
    mean = x0[:1] + sigma * (noise[:1] + sigma * score.at_level(x0[:1] + sigma * noise[:1], torch.tensor(sigma)))
    torch.testing.assert_close(
        binned[:1], bins.gaussian_nll(x0[:1], mean, torch.tensor(std))[:, 0], rtol=1e-4, atol=1e-6
    )
    assert float(binned[0]) >= 0  # a probability, where the density's −log is −1.7


# learned variance -----------------------------------------------------------------------------------------------------


def solved(objective, score: NeuralScore) -> torch.Tensor:
    """The v at which the objective is least, by Newton-like descent on its exact value."""
    head = score.network.head
    optimizer = torch.optim.LBFGS(
        [head], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        # each level by itself, whose curvatures span five decades
        loss = (per_level(objective, score) / curvature).sum()
        loss.backward()
        return loss

    curvature = scale_of(score)
    optimizer.step(closure)
    return 0.5 * (head.detach() + 1)


def scale_of(score: NeuralScore) -> torch.Tensor:
    """Of each level, ln²(β/β̃): the curvature of the bound in v at its optimum is half of it."""
    beta = TABLE.betas
    small = beta[1:] * (1 - AB[:-1]) / (1 - AB[1:])
    return (beta / torch.cat([small[:1], small])).log().square()


@pytest.mark.parametrize("objective", [VariationalBound("learned"), Hybrid()], ids=repr)
def test_the_best_learned_variance_on_g1_is_the_optimal_reverse_variance(objective):
    score = exact_score(torch.full((50,), 0.5).double())
    torch.testing.assert_close(solved(objective, score), learned_optimum(), rtol=0, atol=1e-5)
    # with it the bound is the least any choice of variances has
    best = per_level(VariationalBound("learned"), exact_score(learned_optimum())).sum()
    assert all(best < per_level(VariationalBound(v), exact_score()).sum() for v in ("posterior", "beta"))


class Mixture(nn.Module):
    """For M1: EDM's preconditioning undone, so that the score is that of the mixture, and a trained number per level."""

    def __init__(self):
        super().__init__()
        self.exact = GaussianMixtureScore(PROCESS, [0.3, 0.7], [-1.0, 0.8], [0.04, 0.09])
        self.scaling = EDMPreconditioning(0.5, 0.0)
        self.head = nn.Parameter(torch.zeros(50, dtype=torch.float64))

    def forward(self, x, c_noise):
        sigma = (4 * c_noise.double()).exp()[:, None]
        t = TABLE.time(sigma)
        state = x.double() / self.scaling.c_in(sigma)
        scale = TABLE.scale(t)
        value = scale * self.exact(scale * state, t)
        raw = (value + self.scaling.c_in(sigma) ** 2 * state) / self.scaling.unit(sigma)
        v = self.head[(t * 50).round().long() - 1]
        return torch.cat([raw, v], 1).to(x.dtype)


@pytest.mark.montecarlo
def test_a_variance_trained_on_samples_of_m1_comes_to_the_optimal_one():
    """γ*² with η = 1 at n = 2, 10, 25 of formulas §5. Adam on the head, 200 batches of 1024, each level seen 4000 times: γ*² is right to
    √(2/4000) of its error part, 2 %; v to that over ln(β/β̃)."""
    score = NeuralScore(Mixture(), PROCESS, EDMPreconditioning(0.5, 0.0))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([score.network.head], lr=0.1)
    for k in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - k / 200)
        x0 = score.network.exact.sample(1024, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        score.loss(x0, VariationalBound("learned"), generator).backward()
        optimizer.step()
    v = 0.5 * (score.network.head.detach() + 1)
    beta = TABLE.betas
    small = torch.cat([beta[:1] * 0, beta[1:] * (1 - AB[:-1]) / (1 - AB[1:])])
    for n, value in ((2, 0.00893071128431), (10, 0.0720188242461), (25, 0.196106865372)):
        got = (small[n - 1].log() + v[n - 1] * (beta[n - 1] / small[n - 1]).log()).exp()
        assert float(got) == pytest.approx(value, rel=0.03)


def test_the_hybrid_loss_trains_the_mean_on_the_noise_and_the_variance_on_the_bound():
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.variance = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x, c_noise):
            return torch.cat([self.mean(x), self.variance(x)], 1)

    process = Diffusion(Euclidean((2,)), TABLE)
    x0, index = torch.randn(64, 2).double(), torch.randint(1, 51, (64,))
    noise = torch.randn(64, 2).double()

    def gradients(loss):
        return torch.autograd.grad(loss.mean(), list(score.network.parameters()), retain_graph=True, allow_unused=True)

    score = NeuralScore(Both().double(), process)
    hybrid, whole = Hybrid(weight=0.02), VariationalBound("learned")
    held = gradients(hybrid.at(score, x0, index, noise).bound)
    free = gradients(whole.at(score, x0, index, noise).bound)
    assert torch.equal(held[2], free[2]) and torch.equal(held[3], free[3])
    assert not held[0].any() and not held[1].any() and bool(free[0].all())

    def terms(objective):
        return objective.terms(score, x0, torch.Generator().manual_seed(3))

    loss, simple, bound = terms(hybrid), terms(Hybrid(weight=0.0)), terms(whole)
    assert torch.equal(loss.sigma, bound.sigma)
    torch.testing.assert_close(loss.loss, simple.loss + 0.02 * bound.loss)
    torch.testing.assert_close(gradients(loss.loss)[:2], gradients(simple.loss)[:2])
    torch.testing.assert_close(gradients(loss.loss)[2], 0.02 * gradients(bound.loss)[2])


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_sampling_with_a_learned_variance_adds_the_noise_it_says(v):
    """On the table's own steps and on steps that skip levels: v = 0 is Ancestral("posterior"), 1 Ancestral("forward"), bit by bit but for
    rounding; between, the variance is exp(v ln β + (1 − v) ln β̃) of the step."""
    score = exact_score(torch.full((50,), v).double())
    for levels in (INDEX.flip(0), torch.tensor([50, 40, 31, 30, 11, 4, 1])):
        times = levels.double() / 50
        variance = LearnedVariance(score, times)
        x = torch.linspace(-1, 2, 7, dtype=torch.float64)[:, None]
        levels = Levels.at(PROCESS, times)
        small, large = (f(levels[:-1], levels[1:]) for f in (posterior_variance, forward_variance))
        ratio = np.expm1(v * np.log(large / small))
        for k, t in enumerate(times[:-1]):
            gain = (levels.sigma[k] / levels.sigma[k + 1]) ** 2 - 1
            # the logarithm of the test is of ratios down to 1 + 2e-6, known to 1e-16
            torch.testing.assert_close(variance(x, t, x), torch.full_like(x, ratio[k] / gain), rtol=1e-7, atol=1e-15)
        if v in (0.0, 1.0):
            options = {"shape": (5,), "seed": 0, "dtype": torch.float64}
            got = sample(PROCESS, score, AnalyticDPM(variance), times, **options).x
            fixed = Ancestral("forward" if v else "posterior")
            torch.testing.assert_close(got, sample(PROCESS, score, fixed, times, **options).x, rtol=1e-9, atol=1e-10)


def test_without_a_grid_the_optimal_learned_variance_is_the_error_of_the_noise_and_optimal_on_any_grid():
    """Var[ε | x] of G1 is the mean square error, whatever steps are taken."""
    variance = LearnedVariance(exact_score(learned_optimum()))
    x = torch.randn(4, 3, 1, dtype=torch.float64)
    for i in (1, 2, 10, 25, 50):
        expected = torch.full_like(x, float(AB[i - 1] * 0.25 / (AB[i - 1] * 0.25 + 1 - AB[i - 1])))
        torch.testing.assert_close(variance(x, torch.tensor(i / 50), x), expected, rtol=1e-6, atol=1e-12)
        per_row = torch.full((4, 3, 1), i / 50, dtype=torch.float64)
        torch.testing.assert_close(variance(x, per_row, x), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.montecarlo
def test_samples_with_the_optimal_variance_have_the_variance_of_the_data():
    """Ten steps: β̃ leaves .111 on G1 (formulas §3), the optimal variance .25, each step being exact for Gaussian data."""
    times = torch.arange(50, 0, -5, dtype=torch.float64) / 50
    score = exact_score(learned_optimum())
    solver = AnalyticDPM(LearnedVariance(score))
    result = sample(PROCESS, score, solver, times, shape=(20_000,), seed=0, dtype=torch.float64, denoise=False).x
    # at t = .1, where the grid ends
    ab = float(AB[4])
    exact = ab * 0.25 + 1 - ab
    assert float(result.var()) == pytest.approx(exact, abs=4 * exact * math.sqrt(2 / 20_000))
    assert float(result.mean()) == pytest.approx(math.sqrt(ab) * 0.5, abs=4 * math.sqrt(exact / 20_000))


# refusals -------------------------------------------------------------------------------------------------------------


def test_the_losses_read_no_value():
    """Under FakeTensorMode any .item(), any shape that depends on data, raises: so there is no host sync on a GPU. The table is real."""
    process = Diffusion(Euclidean((2, 4, 4)), TABLE)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 4, 1)

        def forward(self, x, c_noise):
            return self.layer(x)

    with FakeTensorMode(allow_non_fake_inputs=True):
        score = NeuralScore(Pair(), process)
        for objective in (VariationalBound("learned"), VariationalBound("learned", Bins(8)), Hybrid()):
            score.loss(torch.rand(6, 2, 4, 4), objective).backward()


def small(process: Diffusion) -> NeuralScore:
    return NeuralScore(MLP(MLPConfig(process.domain.event_shape, 8, 1)), process)


REFUSALS = [
    (lambda: VariationalBound("small"), ValueError, "variance: got 'small', expected one of posterior, beta, learned"),
    (lambda: Hybrid(weight=-1.0), ValueError, "weight: got -1, expected a finite number"),
    (
        lambda: small(Diffusion(Hypercube((1,)), VE())).loss(torch.rand(3, 1), VariationalBound()),
        TypeError,
        r"VariationalBound: got Hypercube.*expected a Euclidean domain",
    ),
    (
        lambda: small(Diffusion(Euclidean((1,)), VP())).loss(torch.rand(3, 1), VariationalBound()),
        TypeError,
        r"VariationalBound: got VP.*expected a Discrete schedule.*use VDM",
    ),
    (
        lambda: small(Diffusion(Euclidean((1,)), Discrete([0.9, 0.5, 0.0]))).loss(torch.rand(3, 1), Hybrid()),
        ValueError,
        "Hybrid: got a table that ends at ᾱ = 0",
    ),
    (
        lambda: exact_score().loss(torch.rand(3, 1), Hybrid()),
        ValueError,
        "learned variance: got a network with 0 outputs beside the score, expected 1",
    ),
    (lambda: exact_score().loss(torch.rand(3, 2), VariationalBound()), ValueError, r"x0: got shape \(3, 2\)"),
    (lambda: _levelwise(torch.rand(3, 2)), ValueError, r"x0: got shape \(3, 2\)"),
    (
        lambda: LearnedVariance(small(Diffusion(Euclidean((1,)), VP()))),
        TypeError,
        "LearnedVariance: got VP.*expected a Discrete schedule",
    ),
    (
        lambda: LearnedVariance(exact_score(), [1.0, 0.33]),
        ValueError,
        r"times: got \[1.0, 0.33\], expected a decreasing list of the table's own times i/50",
    ),
]


def _levelwise(x0):
    return VariationalBound().levelwise(exact_score(), x0)


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS, ids=[m for *_, m in REFUSALS])
def test_what_does_not_fit_is_refused_with_the_fix(call, error, message):
    with pytest.raises(error, match=message):
        call()
