"""The learned schedule, and VDM's bound against closed forms: values, gradients, and what training the schedule gains."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, VP, Diffusion, Discrete, Learned, process_from_config
from carom.scores import GaussianMixtureScore
from carom.scores.neural import MLP, VDM, Bins, EDMPreconditioning, MLPConfig, NeuralScore, train
from carom.solvers import Ancestral, karras, sample
from carom.validation import check_schedule

LINE = Diffusion(Euclidean((1,)), VP())
S_MIN, S_MAX = math.exp(-13.3), math.exp(5.0)  # σ² at the two ends
L_INF = 5.95601463362  # formulas §4, G1


class Straight(Learned):
    def progress(self, u):
        return u.double(), torch.ones_like(u).double()


class Cubic(Learned):
    def progress(self, u):
        return u.double() ** 3, 3 * u.double() ** 2


class Cosine(Learned):
    """1 − cos πu, halved."""

    def progress(self, u):
        return 0.5 - 0.5 * (math.pi * u.double()).cos(), 0.5 * math.pi * (math.pi * u.double()).sin()


def wavy(**options) -> Learned:
    """A learned schedule far from its start."""
    schedule = Learned(width=6, **options)
    noise = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        schedule.curve.add_(noise * torch.tensor([[1.0], [0.5], [0.2]], dtype=torch.float64))
    return schedule


SCHEDULES = [Straight, Cubic, Cosine, wavy]


def exact_score(mean: float = 0.5, std: float = 0.5, process: Diffusion = LINE) -> NeuralScore:
    """A network of zeros, with which EDM's preconditioning is the exact score of N(mean, std²)."""
    network = MLP(MLPConfig(process.domain.event_shape, 8, 1)).requires_grad_(False)
    return NeuralScore(network, process, EDMPreconditioning(std, mean))


def random_score(dim: int = 1) -> NeuralScore:
    torch.manual_seed(0)
    score = NeuralScore(MLP(MLPConfig((dim,), 8, 1)), Diffusion(Euclidean((dim,)), VP())).double()
    nn.init.normal_(score.network.last.weight, std=0.5)
    return score


def hermite(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights of N(0, 1), exact for polynomials of degree 2n − 1."""
    node, weight = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(node), torch.tensor(weight / weight.sum())


def legendre(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    node, weight = np.polynomial.legendre.leggauss(n)
    return torch.tensor(0.5 * (node + 1)), torch.tensor(weight / 2)


def exactly(objective: VDM, n: int = 3, power: int = 1) -> dict[str, torch.Tensor]:
    """The parts of the bound on G1 with its exact score: Gauss–Hermite over x0 and noise, in which ε̂ is linear, and over times
    Gauss–Legendre, or every step."""
    (z, wz), steps = hermite(n), objective.steps
    if steps is None:
        u, wu = legendre(400)
    else:
        u, wu = (torch.arange(steps).double() + 0.5) / steps, torch.full((steps,), 1 / steps, dtype=torch.float64)
    x0, noise = 0.5 + 0.5 * z[None, :, None, None], z[None, None, :, None]
    shape = torch.broadcast_shapes((len(u), 1, 1, 1), x0.shape, noise.shape)
    bound = objective.at(exact_score(), x0.expand(shape), u[:, None, None].expand(shape[:-1]), noise.expand(shape))
    weight = wu[:, None, None] * wz[:, None] * wz
    return {k: (weight * getattr(bound, k) ** power).sum() for k in ("diffusion", "prior", "reconstruction", "total")}


def expected(objective: VDM, n: int = 3, power: int = 1) -> dict[str, float]:
    return {k: v.item() for k, v in exactly(objective, n, power).items()}


# the schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Learned, wavy, lambda: wavy().freeze(), lambda: Learned(-6, 3, 3).freeze(40)])
def test_learned_and_frozen_schedules_obey_the_laws_of_schedules(make):
    check_schedule(make())


def test_whatever_its_parameters_it_rises_from_end_to_end_and_knows_its_slope():
    u = torch.linspace(0, 1, 201, dtype=torch.float64, requires_grad=True)
    for seed in range(5):
        schedule = Learned(width=7)
        with torch.no_grad():
            schedule.curve.add_(2 * torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)).double())
        share, slope = schedule.progress(u)
        assert share[0].item() == 0 and share[-1].item() == 1  # exactly: γ(0) and γ(1) are the parameters
        assert bool((share.diff() > 0).all()) and bool((slope > 0).all())
        torch.testing.assert_close(slope, torch.autograd.grad(share.sum(), u)[0], rtol=1e-12, atol=0)


def test_its_clock_holds_the_two_ends_and_that_of_a_table_of_1000_levels():
    schedule = wavy()
    assert schedule.sigma_min == math.exp(-6.65) and schedule.sigma_max == pytest.approx(math.exp(2.5), rel=1e-14)
    assert float(schedule.sigma(1e-3)) == pytest.approx(math.exp(-6.65), rel=1e-12)
    t = torch.arange(1001, dtype=torch.float64) / 1000
    # 1 − ᾱ = 2e-6 of a table is known to 1e-10 of itself
    torch.testing.assert_close(schedule.freeze().sigma(t), schedule.sigma(t), rtol=1e-9, atol=0)
    frozen = schedule.freeze(11)
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    gamma = schedule.gamma_min + (schedule.gamma_max - schedule.gamma_min) * schedule.progress(u)[0]
    sigma = frozen.sigma(torch.arange(1, 12, dtype=torch.float64) / 11)
    torch.testing.assert_close(sigma, (0.5 * gamma).exp().detach(), rtol=1e-9, atol=0)
    before = frozen.config()
    with torch.no_grad():
        schedule.curve.zero_()
    assert isinstance(frozen, Discrete) and frozen.config() == before


def test_processes_and_solvers_read_it_as_it_is_now_without_gradients():
    schedule = wavy()
    process = Diffusion(Euclidean((1,)), schedule)
    level = process.level(torch.linspace(0, 1, 5))
    assert not any(value.requires_grad for value in level)
    exact = GaussianMixtureScore(process, [1.0], [0.5], 0.25)
    x = sample(process, exact, Ancestral(), karras(process, 200), shape=(4000,), seed=0).x
    # weak order 1: a few parts in 200; the standard error of the std is .5/√8000 = .006
    assert float(x.mean()) == pytest.approx(0.5, abs=0.04) and float(x.std()) == pytest.approx(0.5, abs=0.03)
    before = float(schedule.sigma(0.5))
    with torch.no_grad():
        schedule.gamma_max.add_(1.0)
    assert float(schedule.sigma(0.5)) > before and not schedule.sigma(0.5).requires_grad


def test_it_travels_with_its_parameters_frozen_or_not():
    process = Diffusion(Euclidean((2,)), wavy(endpoints=False))
    again = process_from_config(json.loads(json.dumps(process.config())))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert torch.equal(again.schedule.sigma(t), process.schedule.sigma(t))
    assert not again.schedule.gamma_min.requires_grad and again.schedule.curve.requires_grad
    assert repr(again.schedule) == "Learned(gamma from -13.3 to 5, width=6)"


# the bound ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", SCHEDULES)
def test_the_continuous_bound_does_not_depend_on_the_curve(make):
    """formulas §4, to the twelve digits given there."""
    got = expected(VDM(make(), denoise=True))
    assert got["diffusion"] == pytest.approx(L_INF, rel=1e-11)
    assert math.log((1 + 0.25 / S_MIN) / (1 + 0.25 / S_MAX)) == pytest.approx(2 * L_INF, rel=1e-11)
    assert got["prior"] == pytest.approx(0.00168446151349, rel=1e-11)
    # the values there are of the exact posterior at σ_min; N(D, σ_min²) exceeds it by (σ_min²/v)²/4 = 1.1e-11
    assert got["reconstruction"] == pytest.approx(-5.23106481577 + 1.1e-11, rel=1e-11)
    assert got["total"] == pytest.approx(0.726634279362 + 1.1e-11, abs=1e-11)
    # and N(X, σ_min²) by ½σ_min²/v more
    plain = expected(VDM(make()))
    assert plain["reconstruction"] == pytest.approx(0.5 * (math.log(2 * math.pi) - 13.3 + 1), rel=1e-14)
    assert plain["reconstruction"] - got["reconstruction"] == pytest.approx(0.5 * S_MIN / 0.25, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (Straight, {10: 15.7275644645, 100: 6.48569036632, 1000: 6.00623678294}),
        (Cubic, {10: 23.4396373101, 100: 6.65772384847, 1000: 6.02092780309}),
    ],
)
def test_the_bound_in_steps_depends_on_the_curve_and_comes_down_to_the_continuous_one(make, values):
    for steps, value in values.items():
        assert expected(VDM(make(), steps=steps))["diffusion"] == pytest.approx(value, rel=1e-11)


class TwoPoints:
    """The exact score of (δ₋₁ + δ₁)/2: all that objectives ask of a score."""

    process = LINE

    def at_level(self, x, sigma, **condition):
        square = sigma.unsqueeze(-1) ** 2
        return ((x / square).tanh() - x) / square


def test_two_points_have_the_bound_that_mutual_information_gives():
    """L_∞ = log 2 − I(SNR_min) (formulas §4). By symmetry x0 = 1; the noise by the trapezoidal rule, which converges geometrically; below
    σ = .05 the error is 2^-290."""
    u, wu = legendre(300)
    z = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    weight = (-0.5 * z**2).exp() / (-0.5 * z**2).exp().sum()
    shape = (300, 2001)
    bound = VDM(Straight()).at(
        TwoPoints(), torch.ones(*shape, 1).double(), u[:, None].expand(shape), z[:, None].expand(*shape, 1)
    )
    assert (wu[:, None] * weight * bound.diffusion).sum().item() == pytest.approx(0.689789506483, abs=1e-10)


@pytest.mark.montecarlo
@pytest.mark.parametrize("steps", [None, 10])
@torch.no_grad()
def test_a_random_draw_has_the_mean_that_quadrature_gives(steps):
    objective = VDM(wavy(), steps=steps)
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 + 0.5 * torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    terms = objective.terms(exact_score(), x0, generator)
    error = float(terms.loss.std()) / math.sqrt(len(x0))  # strata make it smaller
    value = expected(objective)["total"]
    assert error < 0.2 and float(terms.loss.mean()) == pytest.approx(value, abs=4 * error)
    low = math.exp(-6.65) if steps is None else math.exp(-6.64)
    assert low < float(terms.sigma.min()) and float(terms.sigma.max()) <= math.exp(2.5) * (1 + 1e-12)
    assert float(exact_score().loss(x0, objective, generator)) == pytest.approx(value, abs=4 * error)


def test_the_mean_over_axes_and_any_batch_shape():
    objective, generator = VDM(wavy()), torch.Generator().manual_seed(1)
    score = random_score(3)
    x0, noise = torch.randn(2, 8, 3, generator=generator).double()
    u = torch.rand(8, generator=generator)
    whole = objective.at(score, x0, u, noise)
    folded = objective.at(score, x0.reshape(2, 4, 3), u.reshape(2, 4), noise.reshape(2, 4, 3))
    for one, other in zip(whole, folded, strict=True):
        assert one.shape == (8,)
        torch.testing.assert_close(other.reshape(8), one)
    level = torch.ones(8, 3).double()
    assert torch.equal(
        objective.at(score, level, u, noise).prior, objective.at(random_score(), level[:, :1], u, noise[:, :1]).prior
    )


# gradients ------------------------------------------------------------------------------------------------------------


def slopes(function, parameter, h=1e-6) -> torch.Tensor:
    """Central differences by every entry of a parameter: rounding 1e-16/h, truncation h²."""
    flat, result = parameter.data.view(-1), []
    for i in range(flat.numel()):
        values = []
        for step in (h, -h):
            flat[i] += step
            values.append(function().item())
            flat[i] -= step
        result.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(result, dtype=torch.float64).reshape(parameter.shape)


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("interior", ["variance", "bound", "fixed"])
@pytest.mark.parametrize("last", [{}, {"denoise": True}, {"bins": Bins(5, -2.0, 2.0), "denoise": True}], ids=str)
def test_one_backward_pass_gives_each_parameter_the_gradient_of_what_it_is_trained_on(steps, interior, last):
    """Network and ends: the bound. Curve: the second moment of the diffusion part, or the bound, or nothing."""
    schedule = wavy(gamma_min=-4.0, gamma_max=3.0)
    objective, score = VDM(schedule, steps=steps, interior=interior, **last), random_score(2)
    generator = torch.Generator().manual_seed(2)
    x0 = torch.randint(-2, 3, (16, 2), generator=generator).double()
    u, noise = torch.rand(16, generator=generator), torch.randn(16, 2, generator=generator).double()

    def bound():
        return objective.at(score, x0, u, noise).total.mean()

    def second_moment():
        return objective.at(score, x0, u, noise).diffusion.square().mean()

    bound().backward()
    for parameter in (schedule.gamma_min, schedule.gamma_max, score.network.last.weight):
        assert float(parameter.grad.abs().max()) > 1e-3
        torch.testing.assert_close(parameter.grad, slopes(bound, parameter), rtol=1e-5, atol=1e-7)
    if interior == "fixed":
        assert schedule.curve.grad is None
    else:
        aim = second_moment if interior == "variance" else bound
        assert float(schedule.curve.grad.abs().max()) > 1e-2
        torch.testing.assert_close(schedule.curve.grad, slopes(aim, schedule.curve), rtol=1e-5, atol=1e-7)


def test_the_ends_follow_the_bound_in_closed_form():
    """G1: bound(γ₀, γ₁) = KL + ½(ln 2π + 1 + γ₀) + ½ ln((1 + e^{−γ₀}/4)/(1 + e^{−γ₁}/4))."""
    schedule = wavy()
    ends = [p.detach().clone().requires_grad_() for p in (schedule.gamma_min, schedule.gamma_max)]
    signal = 1 / (1 + ends[1].exp())
    closed = 0.5 * (signal * (0.5 - 1) - (1 - signal).log()) + 0.5 * (math.log(2 * math.pi) + 1 + ends[0])
    closed = closed + 0.5 * ((1 + 0.25 * (-ends[0]).exp()) / (1 + 0.25 * (-ends[1]).exp())).log()
    total = exactly(VDM(schedule))["total"]
    torch.testing.assert_close(total, closed, rtol=1e-10, atol=0)
    closed.backward()
    total.backward()
    for parameter, end in zip((schedule.gamma_min, schedule.gamma_max), ends, strict=True):
        # at γ₀ the derivative is 3e-6, what ½ and −½ leave, each right to 1e-12
        torch.testing.assert_close(parameter.grad, end.grad, rtol=1e-8, atol=1e-11)


def test_training_the_interior_lowers_the_variance_to_its_minimum_and_leaves_the_mean():
    """With error of variance m(γ) Gaussian, E ℓ² = ∫ ¾ γ'² m² du, least where γ'm is constant: 3 L_∞² = 106.4; a line has 156."""
    schedule = Learned(endpoints=False)
    objective, score = VDM(schedule), exact_score()
    before = {k: expected(objective, 5, k)["diffusion"] for k in (1, 2)}
    optimizer = torch.optim.Adam([schedule.curve], lr=0.03)
    generator = torch.Generator().manual_seed(0)
    for k in range(300):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - k / 300)
        x0 = 0.5 + 0.5 * torch.randn(256, 1, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        score.loss(x0, objective, generator).backward()
        optimizer.step()
    after = {k: expected(objective, 5, k)["diffusion"] for k in (1, 2)}
    least = 3 * L_INF**2
    assert before[2] > 1.4 * least
    # 32 steps come within 1 % of it (found with exact gradients); noise of 77,000 samples adds to that in second order
    assert least * (1 - 1e-9) < after[2] < 1.05 * least
    assert before[1] == pytest.approx(L_INF, rel=1e-9) and after[1] == pytest.approx(L_INF, rel=1e-6)
    variances = [values[2] - values[1] ** 2 for values in (before, after)]
    assert variances[1] < 0.67 * variances[0]


def test_in_steps_the_curve_is_trained_on_the_bound_and_lowers_it():
    schedule = Learned(endpoints=False)
    objective = VDM(schedule, steps=10)
    before = expected(objective)["total"]
    optimizer = torch.optim.Adam([schedule.curve], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        exactly(objective)["total"].backward()
        optimizer.step()
    after = expected(objective)["total"]
    # never below what no chain of steps beats: the entropy
    assert 0.725791352645 < after < before - 3


# data on a grid -------------------------------------------------------------------------------------------------------


def test_reconstruction_of_binned_data_is_a_code_length():
    """Given the latent, the probabilities of all values sum to 1; far below the spacing the value is certain, far above all are alike."""
    bins = Bins(5, -1.0, 1.0)
    values = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for std in (0.01, 0.3, 100.0):
        latent = torch.tensor([[-1.3], [0.1], [0.9]], dtype=torch.float64)
        nll = bins.softmax_nll(values.expand(3, 5), latent.expand(3, 5), torch.tensor(std, dtype=torch.float64))
        torch.testing.assert_close((-nll).exp().sum(-1), torch.ones(3).double(), rtol=1e-12, atol=0)
        weights = (-0.5 * ((latent - values) / std) ** 2).exp()
        if std > 0.1:
            torch.testing.assert_close((-nll).exp(), weights / weights.sum(-1, keepdim=True), rtol=1e-12, atol=0)
    objective = VDM(Learned(), bins=Bins(256))
    x0 = torch.randint(0, 256, (64, 1), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    for ends, value in (((-13.3, 5.0), 0.0), ((15.0, 20.0), math.log(256))):
        objective = VDM(Learned(*ends), bins=Bins(256))
        got = objective.bound(exact_score(), x0, torch.Generator().manual_seed(1)).reconstruction
        # at σ_min the neighbour is 6 σ away and mistaken with probability 2e-3; far above, deviations are of the order 1/σ
        assert got.mean().item() == pytest.approx(value, abs=5e-3)


# refusals -------------------------------------------------------------------------------------------------------------


def test_the_loss_reads_no_value():
    """Under FakeTensorMode any .item(), any shape that depends on data, raises: so there is no host sync on a GPU."""
    with FakeTensorMode():
        for options in ({}, {"steps": 10}, {"bins": Bins(8)}, {"denoise": True}):
            score = NeuralScore(MLP(MLPConfig((4,), 8, 1)), LINE_4)
            objective = VDM(Learned(), **options)
            score.loss(torch.rand(6, 4), objective).backward()
            assert all(p.grad is not None for p in objective.parameters())


LINE_4 = Diffusion(Euclidean((4,)), VP())

REFUSALS = [
    (lambda: Learned(5.0, -13.3), ValueError, r"gamma_max: got -13.3, expected a finite number in \(5"),
    (lambda: Learned(width=0), ValueError, "width: got 0, expected a whole number of at least 1"),
    (lambda: Learned(width=2, curve=[[1.0]]), ValueError, r"curve: got shape \(1, 1\), expected \[3, 2\]"),
    (lambda: VDM(VP()), TypeError, r"schedule: got VP, expected a Learned\(\)"),
    (lambda: VDM(Learned(), steps=0), ValueError, "steps: got 0, expected a whole number of at least 1, or None"),
    (lambda: VDM(Learned(), interior="all"), ValueError, "interior: got 'all', expected one of variance, bound, fixed"),
    (lambda: Bins(1), ValueError, "count: got 1, expected a whole number of at least 2"),
    (lambda: Bins(4, 1.0, 1.0), ValueError, "high: got 1, expected a finite number in"),
    (
        lambda: NeuralScore(MLP(MLPConfig((1,), 8, 1)), Diffusion(Hypercube((1,)), VE())).loss(
            torch.rand(3, 1), VDM(Learned())
        ),
        TypeError,
        r"VDM: got Hypercube.* expected a Euclidean domain; use DenoisingScoreMatching",
    ),
    (lambda: exact_score().loss(torch.rand(3, 2), VDM(Learned())), ValueError, r"x0: got shape \(3, 2\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS, ids=[m for *_, m in REFUSALS])
def test_what_does_not_fit_is_refused_with_the_fix(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_network_and_schedule_share_an_optimizer_and_a_norm():
    """float32 and float64 parameters in one clipped step, as the training loop takes it."""
    schedule, score = Learned(-8.0, 1.0), NeuralScore(MLP(MLPConfig((1,), 8, 1)), LINE)
    objective = VDM(schedule)
    parameters = [*score.network.parameters(), *objective.parameters()]
    assert {p.dtype for p in parameters} == {torch.float32, torch.float64}
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, 1e-2, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):  # the network's last layer starts at 0, which hides the others in the first step
        optimizer.zero_grad()
        score.loss(0.5 + 0.5 * torch.randn(64, 1, generator=generator), objective, generator).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.nn.utils.clip_grads_with_norm_(parameters, 0.5 * norm.item(), norm)
        optimizer.step()
    clipped = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))
    assert clipped == pytest.approx(0.5 * norm.item(), rel=1e-5)
    assert all(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_its_parameters_are_those_of_its_schedule():
    schedule = Learned()
    objective = VDM(schedule, steps=5)
    names = {name for name, _ in objective.named_parameters()}
    assert names == {"schedule.gamma_min", "schedule.gamma_max", "schedule.curve"}
    assert "steps=5, interior='bound', bins=None, denoise=False" in repr(objective)
    other = VDM(Learned(-3.0, 1.0))
    other.load_state_dict(objective.state_dict())
    assert other.schedule.gamma_min.item() == -13.3


def trained(steps: int, path, resume: bool = False) -> tuple[NeuralScore, Learned]:
    """A score on the very schedule that is trained along."""
    torch.manual_seed(0)
    schedule = Learned(-8.0, 4.0, width=8)
    score = NeuralScore(MLP(MLPConfig((1,), 8, 1)), Diffusion(Euclidean((1,)), schedule))
    data = 0.5 + 0.5 * torch.randn(64, 1, generator=torch.Generator().manual_seed(1))
    objective = VDM(schedule)
    train(score, data, objective=objective, steps=steps, batch_size=16, checkpoint=path, resume=resume, progress=False)
    return score, schedule


def test_the_schedule_resumes_with_the_network_bit_for_bit(tmp_path):
    whole, one = trained(6, tmp_path / "whole")
    trained(3, tmp_path / "half")
    half, two = trained(6, tmp_path / "half", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.curve, Learned(-8.0, 4.0, width=8).curve)  # it did learn
    # the file holds the schedule as it ended, and a plain load has it
    torch.testing.assert_close(NeuralScore.load(tmp_path / "half").process.schedule.gamma_min, two.gamma_min.detach())


def test_a_bound_of_other_settings_is_not_resumed(tmp_path):
    score, schedule = trained(2, tmp_path / "c")
    with pytest.raises(
        ValueError, match=r"belongs to another training: objective is .*steps=None.* there and .*steps=5"
    ):
        train(
            score,
            torch.zeros(64, 1),
            objective=VDM(schedule, steps=5),
            steps=4,
            batch_size=16,
            checkpoint=tmp_path / "c",
            resume=True,
            progress=False,
        )


def test_a_score_on_another_learned_schedule_is_not_trained_but_may_be_judged():
    """Nothing would train it: the score would be sampled on a schedule that stays as it began."""
    score = NeuralScore(MLP(MLPConfig((1,), 8, 1)), Diffusion(Euclidean((1,)), Learned(-8.0, 4.0)))
    x0 = torch.zeros(8, 1)
    with pytest.raises(ValueError, match=r"that is not the schedule of the objective.*VDM\(score\.process\.schedule\)"):
        train(score, x0, objective=VDM(Learned(-6.0, 2.0)), steps=1, batch_size=8, progress=False)
    assert VDM(Learned(-6.0, 2.0)).bound(score, x0).total.isfinite().all()
    train(score, x0, objective=VDM(score.process.schedule), steps=1, batch_size=8, progress=False)
