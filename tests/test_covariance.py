"""Covariance heads: E[ε² | x] and E[(ε − ε_θ)² | x] against closed forms; formulas.md §5, erratum E2."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from carom.domains import Ball, Euclidean, Hypercube, Simplex
from carom.processes import VE, Diffusion, Discrete
from carom.scores.neural import (
    MLP,
    CovarianceHead,
    DenoisingScoreMatching,
    EDMPreconditioning,
    LogUniform,
    MLPConfig,
    NeuralScore,
    ResidualHead,
    ResidualMatching,
    SecondMomentHead,
    SecondMomentMatching,
    VelocityPreconditioning,
    train,
)
from carom.solvers import (
    AnalyticDPM,
    PredictionResidual,
    ScoreStatistics,
    SecondMoment,
    WhiteNoise,
    reverse_variance,
    solve,
)
from carom.validation import problems

DOUBLE = torch.float64
M1, G1 = problems.mixture(Discrete.ddpm(50)), problems.gaussian()
EDM = EDMPreconditioning(0.7, mean=0.2)
LEVELS = torch.arange(50, 0, -1, dtype=DOUBLE) / 50
SHOWN = [50 - n for n in (1, 2, 10, 25, 50)]
HEADS = [SecondMomentHead, ResidualHead]


class Of(nn.Module):
    """A network made of a function of X and σ, behind EDM's scaling."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs, c_noise):
        sigma = (4 * c_noise).exp().reshape(-1, *(1,) * (inputs.dim() - 1))
        return self.function(inputs / EDM.c_in(sigma) + EDM.mean, sigma)


class Still(nn.Module):
    """A network that answers F, a parameter, whatever it sees."""

    def __init__(self, answer: float = 0.0):
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer, dtype=DOUBLE))

    def forward(self, inputs, c_noise):
        return self.answer.expand_as(inputs)


def at(sigma: float) -> LogUniform:
    return LogUniform(sigma, sigma * (1 + 1e-12))


def moments(problem, x: Tensor, t) -> tuple[Tensor, Tensor]:
    """(E[ε | x], Var[ε | x]) in one dimension: −std·score and 1 + std²·∂score (Tweedie's second formula)."""
    std = problem.process.schedule.std(torch.as_tensor(t, dtype=DOUBLE))
    value, slope = torch.func.jvp(lambda u: problem.score(u, t), (x,), (torch.ones_like(x),))
    return -std * value, 1 + std**2 * slope


def exact_head(kind, problem) -> CovarianceHead:
    """Made of the network that brings E[ε² | x], or Var[ε | x], to rounding: F = softplus⁻¹(h/b) − ln(e − 1)."""

    def answer(x: Tensor, sigma: Tensor) -> Tensor:
        level = problem.process.level(sigma=sigma)
        mean, variance = moments(problem, level.scale * x, level.t)
        h = variance + (mean**2 if kind is SecondMomentHead else 0)
        return (h / head.preconditioning.baseline(x, sigma)).expm1().log() - math.log(math.e - 1)

    head = kind(Of(answer), problem.process, EDM)
    return head


def covariance(head: CovarianceHead):
    return SecondMoment(head) if isinstance(head, SecondMomentHead) else PredictionResidual(head)


# closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_gamma_and_optimal_variances_of_m1_by_exact_heads(kind):
    """E Var[ε | x] over x gives Γ and γ*² of formulas.md §5, by Gauss–Legendre on panels that resolve the narrowest component."""
    node, weight = np.polynomial.legendre.leggauss(20)
    panels = np.linspace(-8, 8, 81)
    x = torch.tensor((0.5 * (panels[1:] + panels[:-1])[:, None] + 0.1 * node).ravel())[:, None]
    w = torch.tensor(np.tile(0.1 * weight, 80))
    rule = covariance(exact_head(kind, M1))
    share = [float((M1.log_prob(x, t).exp() * rule(x, t, moments(M1, x, t)[0])[:, 0] * w).sum()) for t in LEVELS]
    gamma = (1 - torch.tensor(share, dtype=DOUBLE)) / M1.process.schedule.std(LEVELS) ** 2
    want = [14.6579311262, 12.5130650584, 1.50558522663, 1.01722513392, 1.00000189437]
    assert gamma[SHOWN].tolist() == pytest.approx(want, rel=1e-10)
    grid = torch.cat([LEVELS, torch.zeros(1, dtype=DOUBLE)])
    got = reverse_variance(M1.process, ScoreStatistics(LEVELS, gamma, 0 * gamma), grid)[SHOWN]
    want = [0.00194525879308, 0.00893071128431, 0.0720188242461, 0.196106865372, 0.399999494834]
    assert got.tolist() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("dtype", "rtol"), [(DOUBLE, 1e-9), (torch.float32, 2e-3)])
def test_without_a_network_the_head_is_exact_for_gaussian_data(kind, dtype, rtol):
    """F = 0 on G1: Var[ε | x] = 1 − std²Γ, a constant, .140993649151 at t = .3. SN subtracts squares that are up to 1/c ≈ 1e4 as large
    at the top of the range, so rounding grows as much."""
    head = kind(MLP(MLPConfig((1,), 8, 1)).to(dtype), G1.process, EDMPreconditioning(0.5, mean=0.5))
    for t, tolerance in ((0.01, rtol), (0.3, rtol), (0.7, 100 * rtol)):
        x = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None]
        mean, variance = moments(G1, x, t)
        got = covariance(head)(x.to(dtype), torch.tensor(t, dtype=dtype), mean.to(dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), variance, rtol=tolerance, atol=0)
    assert float(moments(G1, x, 0.3)[1][0]) == pytest.approx(0.140993649151, rel=1e-11)


def test_heads_are_positive_and_have_no_scale():
    """h depends on X = x/s alone, and is above 0 for any F."""
    torch.manual_seed(3)
    for kind in HEADS:
        head = kind(Of(lambda x, sigma: -40 + 10 * x), G1.process, EDM)
        t = torch.tensor([0.1, 0.5], dtype=DOUBLE)
        x = torch.randn(2, 1, dtype=DOUBLE)
        level = G1.process.level(t)
        torch.testing.assert_close(head(x, t), head.at_level(x / level.scale[:, None], level.sigma))
        assert bool((head(x, t) > 0).all()) and head(x[0], 0.1).shape == (1,)


def test_a_velocity_preconditioning_makes_no_sampler_believe_in_a_prediction():
    head = SecondMomentHead(MLP(MLPConfig((1,), 8, 1)), G1.process, VelocityPreconditioning())
    assert not hasattr(head, "prediction") and bool((head(torch.randn(5, 1), 0.4) > 0).all())


# objectives -------------------------------------------------------------------------------------------------------


def standard(loss: Tensor, want: float) -> float:
    """By how many standard errors the mean misses."""
    loss = loss.detach()
    return (float(loss.mean()) - want) / float(loss.std()) * math.sqrt(loss.numel())


@pytest.mark.montecarlo
def test_the_loss_of_an_exact_head_on_gaussian_data_is_two():
    """ℓ = (ε − ε̂)²/c is χ²₁ whatever σ: its variance is 2. With h = kb it is 2 + (k − 1)²."""
    x0 = 0.5 + 0.5 * torch.randn(20_000, 1, dtype=DOUBLE)
    column = EDMPreconditioning(0.5, mean=0.5)
    objective = ResidualMatching(NeuralScore(MLP(MLPConfig((1,), 8, 1)).double(), G1.process, column))
    for k in (1.0, 1.5):
        head = ResidualHead(Still(math.log(math.expm1(k)) - math.log(math.e - 1)), G1.process, column)
        assert abs(standard(objective.terms(head, x0).loss, 2 + (k - 1) ** 2)) < 4


@pytest.mark.montecarlo
@pytest.mark.parametrize("domain", [Hypercube((2,)), Simplex(3)], ids=repr)
def test_between_walls_noise_is_that_of_the_image(domain):
    """Uniform data stays uniform and ε given x is normal: E[ε² | x] = 1 at every σ and x, F = 0, and a loss of Var[ε²] = 2."""
    process = Diffusion(domain, VE())
    x0 = domain.uniform(DOUBLE).sample((20_000,), generator=torch.Generator().manual_seed(0))
    zero = NeuralScore(MLP(MLPConfig((2,), 8, 1)).double(), process)
    for kind, objective in zip(HEADS, (SecondMomentMatching(), ResidualMatching(zero)), strict=True):
        head = kind(Still(), process)
        assert bool((head(x0[:5], 0.4) == 1).all())
        assert abs(standard(objective.terms(head, x0).loss, 2.0)) < 4


@pytest.mark.montecarlo
def test_what_the_score_misses_counts_as_noise():
    """A score off by δ: the residual's minimiser is Var[ε | x] + (σδ)², where the gradient by F vanishes; at Var[ε | x] it does not."""
    sigma, delta, n = 0.6, 0.7, 20_000
    column = EDMPreconditioning(0.5, mean=0.5)
    score = NeuralScore(Still(delta / float(column.unit(torch.tensor(sigma, dtype=DOUBLE)))), G1.process, column)
    x0 = 0.5 + 0.5 * torch.randn(n, 1, dtype=DOUBLE)
    c = 0.25 / (0.25 + sigma**2)

    def misses(h: float) -> float:
        inner = torch.full((n, 1), math.log(math.expm1(h / c)) - math.log(math.e - 1), dtype=DOUBLE, requires_grad=True)
        head = ResidualHead(Of(lambda x, level: inner), G1.process, column)
        loss = ResidualMatching(score, levels=at(sigma)).terms(head, x0).loss
        return standard(torch.autograd.grad(loss.sum(), inner)[0], 0.0)

    assert abs(misses(c + (sigma * delta) ** 2)) < 4 and misses(c) < -20


def test_the_target_of_sn_is_the_square():
    """Erratum E2: (h − ε²)², not (h − ε)². With h = b = 1 far from the data's scale and ε read off x."""
    process = Diffusion(Euclidean((2,)), VE())
    head = SecondMomentHead(Still(), process, EDMPreconditioning(0.5))
    seen = []
    baseline = head.preconditioning.baseline
    head.preconditioning.baseline = lambda x, level: (seen.append(x), baseline(x, level))[1]  # type: ignore[method-assign]
    x0, sigma = torch.zeros(3, 2, dtype=DOUBLE), 2.0
    loss = SecondMomentMatching(levels=at(sigma), weight=lambda s: 3 * s).terms(head, x0).loss
    z, b = seen[0] / sigma, baseline(seen[0], torch.tensor(sigma, dtype=DOUBLE))
    torch.testing.assert_close(loss, 6 * ((b - z**2) / b).square().mean(-1), rtol=1e-9, atol=0)


@pytest.mark.montecarlo
@pytest.mark.parametrize("kind", HEADS)
def test_a_small_trained_head_reaches_the_covariance_of_m1(kind):
    """h/b is a regression on targets of variance of about 2: least squares in P weights from n samples errs by √(2P/n), 0.2 here, and falls
    like it (0.05 from five times as many). F = 0 errs by half."""
    problem = problems.mixture()
    torch.manual_seed(2)
    head = kind(MLP(MLPConfig((1,), 32, 1)), problem.process, EDM)
    exact = NeuralScore(Of(lambda x, sigma: _network_of(problem, x, sigma)), problem.process, EDM)
    levels = LogUniform(0.05, 5.0)
    objective = SecondMomentMatching(levels) if kind is SecondMomentHead else ResidualMatching(exact, levels)
    data = problem.score.sample(20_000, generator=torch.Generator().manual_seed(0))
    sigma = torch.logspace(math.log10(0.05), math.log10(5), 40).repeat_interleave(100)
    level = problem.process.level(sigma=sigma.double())
    x = data[:4000, 0] + sigma * torch.randn(4000)
    mean, variance = moments(problem, (level.scale * x)[:, None], level.t[:, None])
    want = variance + (mean**2 if kind is SecondMomentHead else 0)

    def error() -> float:
        with torch.no_grad():
            gap = (head.at_level(x[:, None], sigma) - want) / head.preconditioning.baseline(x[:, None], sigma[:, None])
        return float(gap.square().mean().sqrt())

    before = error()
    train(head, data, objective=objective, steps=300, batch_size=1024, lr=1e-2, ema=0.98, progress=False)
    allowed = math.sqrt(2 * sum(p.numel() for p in head.network.parameters()) / (300 * 1024))
    assert before > 0.45 and error() < allowed < 0.21, (before, error(), allowed)


def _network_of(problem, x: Tensor, sigma: Tensor) -> Tensor:
    """What EDM's network says where the score is the problem's."""
    level = problem.process.level(sigma=sigma.double())
    score = level.scale * problem.score(level.scale * x.double(), level.t)
    return ((score - EDM.score(torch.zeros_like(x), x, sigma)) / EDM.unit(sigma)).to(x.dtype)


def test_the_score_is_left_alone_and_answers_with_its_average():
    score = NeuralScore(MLP(MLPConfig((1,), 8, 1)), G1.process)
    score.track_ema()
    nn.init.ones_(score.network.last.bias)  # type: ignore[union-attr, arg-type]
    head, x0 = ResidualHead(MLP(MLPConfig((1,), 8, 1)), G1.process), torch.randn(50, 1)
    losses = []
    for use in (False, True):
        with score.ema_weights(use):
            losses.append(ResidualMatching(score)(head, x0, generator=torch.Generator().manual_seed(0)))
    assert float(losses[0].detach()) > float(losses[1].detach())
    losses[0].backward()
    assert all(p.grad is None for p in score.network.parameters())
    assert all(p.grad is not None for p in head.network.parameters())


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = MLP(MLPConfig((1,), 8, 1))

    def forward(self, x, c_noise, label=None):
        self.label = label
        return self.inner(x, c_noise)


def test_conditions_reach_the_head_and_where_asked_the_score():
    labels = torch.arange(4)
    for both in (False, True):
        score = NeuralScore(Labelled(), G1.process)
        head = ResidualHead(Labelled(), G1.process)
        ResidualMatching(score, pass_condition=both)(head, torch.randn(4, 1), label=labels)
        assert torch.equal(head.network.label, labels)  # type: ignore[arg-type]
        assert score.network.label is None or (both and torch.equal(score.network.label, labels))  # type: ignore[arg-type]
        assert both == (score.network.label is not None)


@pytest.mark.parametrize("domain", [Euclidean((2,)), Hypercube((2,))], ids=repr)
def test_a_step_reads_no_value(domain):
    process = Diffusion(domain, VE())
    with FakeTensorMode():
        score = NeuralScore(MLP(MLPConfig((2,), 8, 1)), process)
        for kind, objective in zip(HEADS, (SecondMomentMatching(), ResidualMatching(score)), strict=True):
            objective(kind(MLP(MLPConfig((2,), 8, 1)), process), torch.rand(4, 2)).backward()


# samplers and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_analytic_dpm_takes_heads_for_covariances(kind):
    """Ten steps on M1 equal those with the closed form of Var[ε | x], which multiplies rounding by at most 1/c."""
    process = M1.process
    times, x = LEVELS[::5], torch.randn(50, 1, dtype=DOUBLE)
    plain = AnalyticDPM(PredictionResidual(lambda u, t: moments(M1, u, t)[1]))
    runs = [
        solve(process.reverse(M1.score), x, times, rule, noise=WhiteNoise(3)).x
        for rule in (AnalyticDPM(covariance(exact_head(kind, M1))), plain)
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", HEADS)
def test_heads_are_saved_resumed_and_loaded_as_scores_are(kind, tmp_path):
    data, score = torch.randn(200, 1), NeuralScore(MLP(MLPConfig((1,), 8, 1)), G1.process)
    objective = SecondMomentMatching() if kind is SecondMomentHead else ResidualMatching(score)

    def fresh() -> CovarianceHead:
        torch.manual_seed(5)
        return kind(MLP(MLPConfig((1,), 8, 1)), G1.process, EDM)

    whole, parts, path = fresh(), fresh(), tmp_path / "head.safetensors"
    settings = {"objective": objective, "batch_size": 16, "progress": False}
    train(whole, data, steps=8, **settings)
    train(parts, data, steps=4, checkpoint=path, **settings)
    parts = fresh()
    train(parts, data, steps=8, checkpoint=path, resume=True, **settings)
    x = torch.randn(5, 1)
    assert torch.equal(parts(x, 0.3), whole(x, 0.3))
    loaded = kind.load(path)
    assert type(loaded) is kind and torch.equal(loaded(x, 0.3), whole(x, 0.3))
    assert loaded.preconditioning.config() == whole.preconditioning.config()
    other = HEADS[1 - HEADS.index(kind)]
    for wrong in (other, NeuralScore):
        with pytest.raises(ValueError, match=r"load it with the class it was saved from|preconditioning"):
            wrong.load(path)
    score.save(path)
    with pytest.raises(ValueError, match="load it with the class it was saved from"):
        kind.load(path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: head().loss(torch.zeros(3, 1), DenoisingScoreMatching()), TypeError, "which is no score; expected"),
        (lambda: head().loss(torch.zeros(3, 1)), TypeError, "SecondMomentMatching"),
        (lambda: ResidualMatching(head()), TypeError, "score: got SecondMomentHead"),
        (lambda: SecondMomentMatching()(score(), torch.zeros(3, 1)), TypeError, "expected a SecondMomentHead"),
        (lambda: ResidualMatching(score())(head(), torch.zeros(3, 1)), TypeError, "expected a ResidualHead"),
        (lambda: SecondMomentMatching()(head(Ball(2)), torch.zeros(3, 2)), TypeError, "no Gaussian noise leads"),
        (lambda: head()(torch.zeros(3, 2), 0.1), ValueError, "got shape"),
        (lambda: CovarianceHead(Still(), G1.process), TypeError, "abstract"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def head(domain=None) -> SecondMomentHead:
    return SecondMomentHead(Still(), Diffusion(domain, VE()) if domain else G1.process)


def score() -> NeuralScore:
    return NeuralScore(Still(), G1.process)
