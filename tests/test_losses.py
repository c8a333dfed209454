"""Preconditionings, levels and weights against the tables and closed forms they come from."""

import math

import pytest
import torch
from scipy.stats import truncnorm
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from carom.domains import Ball, Euclidean, Hypercube, Orthant, RegularSimplex, Simplex
from carom.processes import EDM, VE, VP, CosineVP, Diffusion, Discrete, FlowMatching, SubVP
from carom.scores import GaussianMixtureScore
from carom.scores.neural import (
    MLP,
    ConditionalFlowMatching,
    DenoisingScoreMatching,
    EDMPreconditioning,
    ExplicitScoreMatching,
    IDDPMPreconditioning,
    LatentImageScoreMatching,
    LogitNormalTime,
    LogNormal,
    LogUniform,
    MinSNR,
    MLPConfig,
    NeuralScore,
    Reflected,
    ReflectedVelocity,
    UniformTime,
    VelocityPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
    VPredictionPreconditioning,
    train,
)
from carom.scores.neural.preconditioning_registry import PRECONDITIONINGS, preconditioning_from_config
from carom.solvers import DDIM, iddpm_levels, sample
from carom.validation.problems import CosineScore

COLUMNS = [
    EDMPreconditioning(0.7, mean=0.2),
    VPPreconditioning(mean=-0.3),
    VEPreconditioning(),
    IDDPMPreconditioning(),
    VPredictionPreconditioning(),
    VelocityPreconditioning(),
]
SCHEDULES = [VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(50)]
DOUBLE = torch.float64


class Answer(nn.Module):
    """A network that gives the answer it was handed."""

    answer: torch.Tensor

    def forward(self, x, c_noise):
        self.seen = x, c_noise
        return self.answer


def mixture(schedule) -> GaussianMixtureScore:
    """M1 = .3 N(−1, .2²) + .7 N(.8, .3²)."""
    return GaussianMixtureScore(Diffusion(Euclidean((1,)), schedule), [0.3, 0.7], [-1.0, 0.8], [0.04, 0.09])


def at(sigma: float) -> LogUniform:
    return LogUniform(sigma, sigma * (1 + 1e-12))


# preconditionings -------------------------------------------------------------------------------------------------


def ideal(column, data, noise, sigma):
    """What the network of each column should say, in the words of its source, from E[x0|x] and E[ε|x]."""
    if isinstance(column, EDMPreconditioning):
        mu, d, x = column.mean, column.sigma_data, data + sigma * noise
        size = (sigma**2 + d**2).sqrt()
        return (data - mu - d**2 / size**2 * (x - mu)) / (sigma * d / size)
    if isinstance(column, VEPreconditioning):
        return -noise
    if isinstance(column, VPredictionPreconditioning):
        return (noise - sigma * data) / (1 + sigma**2).sqrt()
    if isinstance(column, VelocityPreconditioning):
        return noise - data
    return noise


@pytest.mark.parametrize("column", COLUMNS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_ideal_network_makes_the_exact_score_under_every_schedule(column, schedule):
    exact = mixture(schedule)
    t = torch.linspace(0.02, 0.98, 7, dtype=DOUBLE)[:, None] * schedule.t_max
    x = torch.linspace(-1.5, 1.5, 7, dtype=DOUBLE)[:, None] * (schedule.scale(t) + schedule.std(t))
    data, noise = exact.prediction(x, t)
    network = Answer()
    network.answer = ideal(column, data, noise, schedule.sigma(t))
    score = NeuralScore(network, exact.process, column)
    # the score is a difference of terms of size |x|/(s σ²) where D is close to x, and D itself rounds: relative to those
    size = 1 / (schedule.scale(t) * schedule.sigma(t) ** 2) + exact(x, t).abs()
    assert float(((score(x, t) - exact(x, t)) / size).abs().max()) < 1e-11
    inputs, c_noise = network.seen
    assert inputs.shape == x.shape and c_noise.shape == (7,) and bool(torch.isfinite(c_noise).all())


def test_what_networks_see_is_what_their_sources_say():
    t = torch.tensor([0.001, 0.3, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(VPPreconditioning().c_noise(VP().sigma(t)), 999 * t, rtol=1e-10, atol=0)
    u = iddpm_levels()
    labels = torch.tensor([0, 1, 8, 500, 999])
    assert torch.equal(IDDPMPreconditioning().c_noise(u[labels]), (999 - labels).to(DOUBLE))
    # halfway between two levels, the nearer one
    middle = 0.5 * (u[500] + u[501])
    assert IDDPMPreconditioning().c_noise(middle * torch.tensor([1.0001, 0.9999])).tolist() == [499, 498]
    assert float(VEPreconditioning().c_noise(torch.tensor(2 * math.e))) == pytest.approx(1)
    sigma = FlowMatching().sigma(t[:2])
    torch.testing.assert_close(VelocityPreconditioning().c_noise(sigma), t[:2], rtol=1e-12, atol=0)


@pytest.mark.parametrize("column", COLUMNS, ids=repr)
def test_columns_are_consistent(column):
    """c_skip, c_out and c_in as the table in the module's text has them; the score is that of the denoiser."""
    sigma = torch.logspace(-3, 3, 13, dtype=DOUBLE)[:, None]
    raw, x = torch.randn(2, 13, 4, dtype=DOUBLE)
    # D − X cancels as σ² falls: to a few ulp of X
    denoised = column.denoised(raw, x, sigma)
    torch.testing.assert_close(column.score(raw, x, sigma) * sigma**2, denoised - x, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(column.unit(sigma), (column.c_out(sigma) / sigma**2).abs(), rtol=1e-12, atol=0)
    torch.testing.assert_close(column.shrinkage(sigma) * sigma**2, 1 - column.c_skip(sigma), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(column.inputs(x, sigma), column.c_in(sigma) * (x - column.mean), rtol=0, atol=0)


def test_v_is_edm_at_unit_spread_with_the_other_sign():
    v, edm, sigma = VPredictionPreconditioning(), EDMPreconditioning(1.0), torch.logspace(-3, 3, 9, dtype=DOUBLE)
    torch.testing.assert_close(v.c_out(sigma), -edm.c_out(sigma))
    torch.testing.assert_close(v.c_skip(sigma), edm.c_skip(sigma), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("column", [VPredictionPreconditioning(), VelocityPreconditioning()], ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_predictions_are_exact_where_signal_or_noise_vanish(column, schedule):
    exact = mixture(schedule)
    t = torch.tensor([0.0, 1e-6, 0.3, 0.9, 1.0], dtype=DOUBLE)[:, None]
    x = torch.randn(5, 1, dtype=DOUBLE)
    data, noise = exact.prediction(x, t)
    scale, std = column.standard(schedule.scale(t), schedule.std(t))
    network = Answer()
    # v = s ε − std·x0 and the velocity ε − x0, both finite where σ is 0 or infinite
    network.answer = scale * noise - std * data if isinstance(column, VPredictionPreconditioning) else noise - data
    got = NeuralScore(network, exact.process, column).prediction(x, t)
    # x0 = (x − std ε)/s: at s → 0 the two predictions are not each other's remainder, so what is lost is some ulp of 1/s;
    # both columns read x0 and ε without dividing, up to the rounding of x in the network's clock
    for one, other in zip(got, (data, noise), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert bool(torch.isfinite(network.seen[1]).all())


def test_only_where_it_is_exact_is_a_prediction_offered():
    network = MLP(MLPConfig((2,), 8, 1))
    assert hasattr(NeuralScore(network, Diffusion(Euclidean((2,)), VP()), VPredictionPreconditioning()), "prediction")
    assert not hasattr(NeuralScore(network, Diffusion(Euclidean((2,)), VP())), "prediction")
    assert not hasattr(NeuralScore(network, Diffusion(Hypercube((2,)), VE()), VelocityPreconditioning()), "prediction")


def test_a_velocity_network_is_sampled_from_zero_signal():
    """t = 1 of flow matching, where s = 0 and no score exists: DDIM reads the prediction. Data N(0, 1): v = (2t − 1) x/(s² + t²)."""

    class Velocity(nn.Module):
        def forward(self, x, t):
            t = t[:, None]
            return (2 * t - 1) * x / ((1 - t) ** 2 + t**2)

    score = NeuralScore(Velocity(), Diffusion(Euclidean((1,)), FlowMatching()), VelocityPreconditioning())
    times = torch.linspace(1, 1e-3, 400, dtype=DOUBLE)
    x = sample(score.process, score, DDIM(), times, shape=4000, seed=0).x
    # the flow of N(0, 1) to N(0, 1) ends where it began up to O(1/400); 4,000 draws: 4 standard errors of a variance are .09
    assert float(x.var()) == pytest.approx(1, abs=0.1)


DOMAIN_OF = {"Reflected": Hypercube((2,)), "ReflectedVelocity": Hypercube((2,))}


@pytest.mark.parametrize(
    "column", [*COLUMNS, Reflected(Hypercube((2,))), ReflectedVelocity(Hypercube((2,)), wall=False)], ids=repr
)
def test_preconditionings_travel(column, tmp_path):
    domain = DOMAIN_OF.get(type(column).__name__, Euclidean((2,)))
    again = preconditioning_from_config(column.config(), domain)
    assert type(again) is type(column) and repr(again) == repr(column) and again.config() == column.config()
    score = NeuralScore(MLP(MLPConfig((2,), 8, 1)), Diffusion(domain, VE()), column)
    torch.nn.init.normal_(score.network.last.weight)
    score.save(tmp_path / "a.safetensors")
    x = torch.rand(3, 2)
    assert torch.equal(NeuralScore.load(tmp_path / "a.safetensors")(x, 0.4), score(x, 0.4))


def test_every_preconditioning_is_tested_here():
    assert {type(c).__name__ for c in COLUMNS} | set(DOMAIN_OF) == set(PRECONDITIONINGS)


@pytest.mark.parametrize("make", [lambda: VPPreconditioning(M=1), lambda: IDDPMPreconditioning(M=10.0)])
def test_a_table_of_no_labels_is_refused(make):
    with pytest.raises(ValueError, match=r"M: got .*, expected a whole number of at least 2"):
        make()


# levels and weights -----------------------------------------------------------------------------------------------


def test_levels_have_the_laws_they_name():
    u = torch.linspace(0, 1 - 1e-9, 101, dtype=DOUBLE)
    normal = LogNormal(-1.2, 1.2, 0.01, 20.0)
    a, b = ((math.log(v) + 1.2) / 1.2 for v in (0.01, 20.0))
    expected = torch.from_numpy(truncnorm(a, b, -1.2, 1.2).ppf(u.numpy())).exp()
    torch.testing.assert_close(normal.quantile(u), expected, rtol=1e-9, atol=0)
    assert normal.quantile(torch.zeros(1)) == pytest.approx(0.01)  # float32's u = 0 is no infinity
    process = Diffusion(Euclidean((1,)), VP())
    t = process.schedule.time(UniformTime.of(process).quantile(u))
    torch.testing.assert_close(t, 1e-3 + 0.999 * u, rtol=1e-9, atol=1e-9)
    logits = LogitNormalTime(0.5, 0.8).quantile(torch.tensor([0.5], dtype=DOUBLE)).log()
    assert float(logits) == pytest.approx(
        0.5, abs=1e-9
    )  # the median of ln σ = logit t; the cut-off at ±9.2 is out of sight


@pytest.mark.parametrize("schedule", [Discrete.ddpm(50), Discrete([0.9, 0.5, 0.1, 0.0])], ids=repr)
def test_of_a_table_every_level_is_drawn_equally_often_and_none_between(schedule):
    positive = schedule.alphas_cumprod[schedule.alphas_cumprod > 0]
    levels = UniformTime.of(Diffusion(Euclidean((1,)), schedule)).quantile(
        (torch.arange(200, dtype=DOUBLE) + 0.5) / 200
    )
    table, counts = levels.unique(return_counts=True)
    torch.testing.assert_close(table, (1 / positive - 1).sqrt(), rtol=1e-10, atol=0)
    assert int(counts.max() - counts.min()) <= 1


def test_the_likelihood_weight_is_the_integral_of_g2_over_std2():
    """formulas.md §16: ∫ g²/std² dt from 1e-5 to 1 is 23.8644723655 = 2 ln(σ₁/σ₀), and importance sampling by it is ln σ uniform."""
    low, high = (float(VP().sigma(t)) for t in (1e-5, 1.0))
    assert 2 * math.log(high / low) == pytest.approx(23.8644723655, rel=1e-11)
    objective = DenoisingScoreMatching.likelihood(Diffusion(Euclidean((1,)), VP()))
    low = float(VP().sigma(1e-3))
    assert objective.levels == LogUniform(low, high)
    assert float(objective.weight(torch.ones(1))) == pytest.approx(math.log(high / low))


def test_min_snr_is_the_ratio_of_snrs():
    sigma = torch.logspace(-2, 2, 9, dtype=DOUBLE)
    snr = sigma**-2
    torch.testing.assert_close(MinSNR(5.0)(sigma), torch.minimum(snr, torch.full_like(snr, 5.0)) / snr)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormal(std=0.0), "std: got 0"),
        (lambda: LogUniform(2.0, 1.0), "high: got 1"),
        (lambda: LogitNormalTime(low=2.0, high=1.0), "high: got 1"),
        (lambda: UniformTime(VP(), 0.5, 0.2), "high: got 0.2"),
        (lambda: UniformTime(Discrete.ddpm(50), steps=0), "steps: got 0"),
        (lambda: MinSNR(-1.0), "gamma: got -1"),
        (lambda: DenoisingScoreMatching(unit="std"), "unit: got 'std', expected 'network' or 'noise'"),
    ],
)
def test_levels_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# losses -----------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """F of a score −(x − .2)/.6 at σ, for EDM(1.0)."""

    def __init__(self, column: EDMPreconditioning):
        super().__init__()
        self.column = column

    def forward(self, inputs, c_noise):
        sigma = (4 * c_noise).exp()[:, None]
        x = inputs / self.column.c_in(sigma)
        return (-(x - 0.2) / 0.6 + self.column.shrinkage(sigma) * x) / self.column.gain(sigma)


COLUMN = EDMPreconditioning(1.0)
LINEAR = NeuralScore(Linear(COLUMN), Diffusion(Euclidean((1,)), VE()), COLUMN)
U = float(COLUMN.unit(torch.tensor(0.5, dtype=DOUBLE)))


@pytest.mark.montecarlo
@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # formulas.md §9: M1 and σ = .5, s = −(x − .2)/.6; D_DSM = 3.46944444444, D_Fisher = 1.37511969179
        (DenoisingScoreMatching(at(0.5)), 3.46944444444 / U**2),
        (DenoisingScoreMatching(at(0.5), unit="noise"), 3.46944444444 / 4),
        (DenoisingScoreMatching(at(0.5), MinSNR(2.0), "noise"), 3.46944444444 / 4 / 2),
        (LatentImageScoreMatching(at(0.5)), 3.46944444444 / U**2),
        (ConditionalFlowMatching(at(0.5)), 3.46944444444 * 0.75**2),
        (ExplicitScoreMatching(mixture(VE()), at(0.5)), 1.37511969179 / U**2),
    ],
    ids=["network", "noise", "min-SNR", "latent image", "flow matching", "explicit"],
)
def test_losses_at_a_given_score_are_those_of_quadrature(objective, expected):
    x0 = mixture(VE()).sample(100_000)
    loss = objective.terms(LINEAR, x0.to(DOUBLE), torch.Generator().manual_seed(1)).loss
    assert float(loss.mean()) == pytest.approx(expected, abs=4 * float(loss.std()) / math.sqrt(len(loss)))


@pytest.mark.montecarlo
@pytest.mark.parametrize("schedule", [VP(), SubVP()], ids=repr)
def test_the_likelihood_weighting_is_the_fisher_divergence_in_nats(schedule):
    """q0 = G1 = N(.5, .25), score of diffused N(.3, .5): the loss exceeds that of the exact score by D_Fisher(g²/2) = .1366 of
    formulas.md §16 (VP), which no schedule changes but by its range. The same noise is put to both; against the exact score as a
    target there is none, so that the digits show."""

    def gaussian(mean, variance):
        return GaussianMixtureScore(Diffusion(Euclidean((1,)), schedule), [1.0], [mean], [variance])

    class Of(nn.Module):
        def __init__(self, exact):
            super().__init__()
            self.exact = exact

        def forward(self, inputs, c_noise):
            sigma = (4 * c_noise).exp()[:, None]
            t = schedule.time(sigma)
            s, x = schedule.scale(t), inputs / COLUMN.c_in(sigma)
            return (s * self.exact(s * x, t) + COLUMN.shrinkage(sigma) * x) / COLUMN.gain(sigma)

    process = Diffusion(Euclidean((1,)), schedule)
    x0 = 0.5 + 0.5 * torch.randn(100_000, 1, dtype=DOUBLE)
    objective = DenoisingScoreMatching.likelihood(process)
    model, exact = (
        objective.terms(NeuralScore(Of(score), process, COLUMN), x0, torch.Generator().manual_seed(2)).loss
        for score in (gaussian(0.3, 0.5), gaussian(0.5, 0.25))
    )
    # the law of σ is cut at t = 1e-3, below which the integral of σ²·(difference of 1)² d ln σ is ½σ² = 5e-5 (VP)
    error = 4 * float((model - exact).std()) / math.sqrt(len(x0))
    assert float((model - exact).mean()) == pytest.approx(0.136572726517, abs=error + 2e-4) and error < 0.03
    weight = lambda sigma: objective.weight(sigma) * (sigma * COLUMN.unit(sigma)) ** 2
    explicit = ExplicitScoreMatching(gaussian(0.5, 0.25), objective.levels, weight)
    loss = explicit.terms(NeuralScore(Of(gaussian(0.3, 0.5)), process, COLUMN), x0).loss
    error = 4 * float(loss.std()) / math.sqrt(len(x0))
    assert float(loss.mean()) == pytest.approx(0.136572726517, abs=error + 2e-4) and error < 0.008


def test_on_walls_flow_matching_is_matching_of_latent_images():
    process = Diffusion(Hypercube((2,)), VE())
    score = NeuralScore(MLP(MLPConfig((2,), 8, 1)), process, ReflectedVelocity(process.domain))
    torch.nn.init.normal_(score.network.last.weight)
    x0 = torch.rand(64, 2)
    one, other = (
        objective.terms(score, x0, torch.Generator().manual_seed(3)).loss
        for objective in (ConditionalFlowMatching(), LatentImageScoreMatching())
    )
    torch.testing.assert_close(one, other)


@pytest.mark.montecarlo
def test_the_reflected_velocity_of_uniform_data_is_half_noise_and_has_unit_size():
    """With F = 0 the loss is E|W z|² = 1: the target of reflected flow matching has unit size at every σ."""
    process = Diffusion(Hypercube((1,)), VE())
    score = NeuralScore(MLP(MLPConfig((1,), 8, 1)), process, ReflectedVelocity(process.domain)).requires_grad_(False)
    loss = ConditionalFlowMatching().terms(score, torch.rand(40_000, 1, dtype=DOUBLE)).loss
    assert float(loss.mean()) == pytest.approx(1, abs=4 * float(loss.std()) / 200)


def test_training_a_reflected_velocity_learns_the_score_of_the_cosine_density():
    process = Diffusion(Hypercube((1,)), VE(sigma_min=0.02))
    exact = CosineScore(process, 0.9)
    torch.manual_seed(0)
    score = NeuralScore(MLP(MLPConfig((1,), 48, 2)), process, ReflectedVelocity(process.domain))
    data = exact_data(exact, 20_000)
    train(
        score,
        data,
        steps=400,
        batch_size=256,
        lr=3e-3,
        warmup=5,
        ema=0.98,
        progress=False,
        objective=ConditionalFlowMatching(),
    )
    x = torch.linspace(0, 1, 101)[:, None]
    for t in (0.4, 0.6):
        true = exact(x, torch.tensor(t))
        with torch.no_grad():
            error = float((score(x, t) - true).square().mean() / true.square().mean())
        # 100,000 targets of variance 1 around a signal of relative size σ·score ~ .3; what smoothing leaves is a few per cent
        assert error < 0.05


def exact_data(score: CosineScore, n: int) -> torch.Tensor:
    """Draws of 1 + a cos πx by inversion of its distribution function."""
    u, x = torch.rand(n, dtype=DOUBLE), torch.rand(n, dtype=DOUBLE)
    low, high = torch.zeros_like(u), torch.ones_like(u)
    for _ in range(50):
        x = (low + high) / 2
        below = x + 0.9 * (math.pi * x).sin() / math.pi < u
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    return x.float()[:, None]


def test_distilling_an_exact_score_reaches_it():
    """Explicit score matching has no noise in its target: the loss falls to what the network cannot say, not to a variance."""
    exact = mixture(VP())
    torch.manual_seed(0)
    score = NeuralScore(MLP(MLPConfig((1,), 48, 2)), exact.process, EDMPreconditioning(0.87, 0.26))
    data = exact.sample(5000).float()
    objective = ExplicitScoreMatching(exact)
    start = float(score.loss(data, objective).detach())
    train(score, data, steps=300, batch_size=256, lr=3e-3, warmup=5, ema=0.98, progress=False, objective=objective)
    with torch.no_grad():
        assert start > 0.05 and float(score.loss(data, objective)) < 0.04 * start


def test_a_teacher_sees_the_condition_only_when_told():
    seen = []

    def teacher(x, t, **condition):
        seen.append(condition)
        return -x

    process = Diffusion(Hypercube((2,)), VE())

    class Network(nn.Module):
        def forward(self, x, c_noise, label):
            return x

    score = NeuralScore(Network(), process)
    for told in (False, True):
        score.loss(torch.rand(4, 2), ExplicitScoreMatching(teacher, pass_condition=told), label=torch.zeros(4))
    assert [set(c) for c in seen] == [set(), {"label"}]


@pytest.mark.parametrize(
    "objective",
    [
        lambda p: DenoisingScoreMatching.simple(p),
        lambda p: DenoisingScoreMatching.likelihood(p),
        lambda p: DenoisingScoreMatching.min_snr(p),
        lambda p: DenoisingScoreMatching.edm(),
        lambda p: ConditionalFlowMatching(),
        lambda p: ConditionalFlowMatching(LogitNormalTime()),
        lambda p: ExplicitScoreMatching(lambda x, t: -x),
    ],
)
@pytest.mark.parametrize(
    "process",
    [
        Diffusion(Euclidean((2,)), VP()),
        Diffusion(Euclidean((2,)), Discrete.ddpm(50)),
        Diffusion(Orthant((2,)), VE()),
        Diffusion(Hypercube((2,)), VE()),
        Diffusion(Simplex(3), VE()),
    ],
    ids=repr,
)
def test_losses_read_no_value(objective, process):
    """Under FakeTensorMode any .item(), any shape that depends on data, raises: so there is no host sync on a GPU."""
    made = objective(process)
    with FakeTensorMode(allow_non_fake_inputs=True):  # the table of Discrete is a real tensor
        score = NeuralScore(MLP(MLPConfig((2,), 8, 1)), process)
        score.loss(torch.rand(4, 2), made).backward()


@pytest.mark.parametrize("objective", [ConditionalFlowMatching(), LatentImageScoreMatching()])
def test_domains_that_do_not_fold_are_refused(objective):
    process = Diffusion(Ball(2), VE())
    score = NeuralScore(MLP(MLPConfig((2,), 8, 1)), process)
    with pytest.raises(TypeError, match=rf"{type(objective).__name__}: got Ball.*, whose reflection is no folding"):
        score.loss(torch.zeros(3, 2), objective)


def test_explicit_matching_runs_where_only_reflection_is_known():
    process = Diffusion(RegularSimplex(4), VE())
    score = NeuralScore(MLP(MLPConfig((3,), 8, 1)), process)
    x0 = process.domain.uniform().sample((8,))
    loss = score.loss(x0, ExplicitScoreMatching(lambda x, t: torch.zeros_like(x), steps=3))
    assert float(loss.detach()) == 0.0  # an untrained score is zero, and so is the target
    with pytest.raises(TypeError, match="no heat kernel in closed form"):
        score.loss(x0)
