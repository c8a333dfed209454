"""Linear inverse problems: operators, guidance on Gaussian data against the exact law, walls, translation, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from carom.domains import Euclidean, Hypercube, Product
from carom.processes import VE, VP, Diffusion, Discrete, FlowMatching, Schedule
from carom.scores import (
    DPS,
    Blur,
    CovarianceGuidance,
    Dense,
    Downsample,
    EmpiricalScore,
    GaussianMixtureScore,
    Grayscale,
    InverseGuidance,
    LinearOperator,
    Mask,
    PiGDM,
    Translation,
    check_operator,
)
from carom.scores.neural import MLP, MLPConfig, NeuralScore
from carom.solvers import AdaptiveODE, Ancestral, EulerMaruyama, Heun, bind, edit, karras, sample, uniform
from carom.solvers.systems import conjugate_gradients
from carom.validation import propagate_moments

MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 1.5, 0.1], [1.5, 1.5, -0.1], [0.1, -0.1, 0.1]], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
Y, SIGMA_Y = torch.tensor([3.0, -1.5], dtype=torch.float64), 0.8
SCHEDULES = [VP(), VE(), FlowMatching()]


def gaussian(schedule: Schedule | None = None, covariance: Tensor = COVARIANCE) -> GaussianMixtureScore:
    process = Diffusion(Euclidean((3,)), schedule or VP())
    return GaussianMixtureScore(process, [1.0], MEAN[None], covariance[None])


def conditional(
    operator: Tensor = MATRIX, noise: float = SIGMA_Y, covariance: Tensor = COVARIANCE
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x0 given y, by the formulas for Gaussians."""
    gain = (
        covariance
        @ operator.T
        @ torch.linalg.inv(operator @ covariance @ operator.T + noise**2 * torch.eye(len(operator)).double())
    )
    return MEAN + gain @ (Y[: len(operator)] - operator @ MEAN), covariance - gain @ operator @ covariance


# ---------------------------------------------------------------------------------------------------------- operators


@st.composite
def operators(draw: st.DrawFn) -> LinearOperator:
    channels, factor = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, width = (factor * draw(st.integers(1, 4)) for _ in range(2))
    event = (channels, height, width)
    weights = st.floats(-2, 2, allow_subnormal=False)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    kernel = draw(st.lists(weights, min_size=1, max_size=7).filter(lambda k: len(k) % 2 == 1))
    mask = torch.rand(event, generator=generator) < 0.5
    mask[0, 0, 0] = True
    matrix = torch.randn(draw(st.integers(1, 5)), math.prod(event), generator=generator)
    return draw(
        st.sampled_from(
            [
                Mask(mask),
                Grayscale(event, draw(st.lists(weights, min_size=channels, max_size=channels))),
                Downsample(event, factor),
                Blur(event, kernel, draw(st.sampled_from(["reflect", "circular"]))),
                Dense(matrix, event),
            ]
        )
    )


@given(operators(), st.sampled_from([(), (2,), (2, 3)]), st.integers(0, 99))
def test_the_adjoint_is_one(operator: LinearOperator, batch: tuple[int, ...], seed: int) -> None:
    """⟨Ax, y⟩ = ⟨x, Aᵀy⟩ up to the rounding of sums of at most 432 products, relative to their absolute values."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, *operator.event_shape, generator=generator, dtype=torch.float64)
    y = torch.randn(*batch, *operator.shape, generator=generator, dtype=torch.float64)
    left, right = operator.forward(x) * y, x * operator.adjoint(y)
    gap = left.sum() - right.sum()
    assert abs(float(gap)) <= 1e-13 * (1 + float(left.abs().sum() + right.abs().sum()))
    check_operator(operator)


@given(operators(), st.integers(0, 99))
def test_the_gram_matrix_is_solved_with(operator: LinearOperator, seed: int) -> None:
    """Condition numbers up to about 1e3·(1 + ‖A‖²), residuals to rounding; each sample with its own variance."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(2, *operator.shape, generator=generator, dtype=torch.float64)
    variance = torch.tensor([0.5, 3.0], dtype=torch.float64).reshape(2, *(1,) * len(operator.shape))
    u = operator.solve(y, variance, 0.01)
    back = variance * operator.forward(operator.adjoint(u)) + 0.01 * u
    torch.testing.assert_close(back, y, rtol=1e-9, atol=1e-9)
    # without noise: the pseudo-inverse, whose residual is orthogonal to what the operator reaches
    bare = operator.solve(y, 1.0, 0.0)
    image = operator.adjoint(y - operator.forward(operator.adjoint(bare)))
    assert float(image.abs().max()) < 1e-6 * (1 + float(operator.adjoint(y).abs().max()))


def test_operators_do_what_they_say() -> None:
    x = torch.arange(48, dtype=torch.float64).reshape(3, 4, 4)
    torch.testing.assert_close(Grayscale((3, 4, 4)).forward(x)[0], 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2])
    means = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(Downsample((3, 4, 4), 2).forward(x), means)
    kernel = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for boundary, mode in (("circular", "circular"), ("reflect", "symmetric")):
        index = [-1, 0, 1, 2, 3, 4] if mode == "circular" else [0, 0, 1, 2, 3, 3]
        padded = x[:, [i % 4 for i in index]][:, :, [i % 4 for i in index]]
        wanted = torch.nn.functional.conv2d(padded[:, None], torch.outer(kernel, kernel)[None, None])[:, 0]
        torch.testing.assert_close(Blur((3, 4, 4), kernel.tolist(), boundary).forward(x), wanted)
    mask = x % 5 == 0
    torch.testing.assert_close(Mask(mask).forward(x), x[mask])
    torch.testing.assert_close(Dense(torch.ones(1, 48), (3, 4, 4)).forward(x), x.sum()[None])
    assert repr(Downsample((1, 4, 4), 2)) == "Downsample((1, 4, 4) → (1, 2, 2))"


class Doubled(LinearOperator):
    """Of one's own: solve comes with the class."""

    event_shape, shape = (3,), (3,)

    def __init__(self, wrong: float = 1.0):
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + x.roll(1, -1)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.wrong * (2 * y + y.roll(-1, -1))


def test_an_operator_of_ones_own_is_solved_with_by_conjugate_gradients() -> None:
    y = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    u = Doubled().solve(y, 0.7, 0.1)
    torch.testing.assert_close(0.7 * Doubled().forward(Doubled().adjoint(u)) + 0.1 * u, y, rtol=1e-10, atol=1e-10)
    # a sample stops where the map is not positive, and leaves the others alone
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    found, solved = conjugate_gradients(lambda v: signs * v, torch.ones(2, 3, dtype=torch.float64), 1, 5)
    assert solved.tolist() == [True, False]
    torch.testing.assert_close(found, torch.tensor([[1.0], [0.0]], dtype=torch.float64).expand(2, 3))


# ----------------------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("dense", [64, 0], ids=["matrix", "conjugate gradients"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_covariance_makes_guidance_exact_on_gaussian_data(schedule: Schedule, dense: int) -> None:
    """The guided score is that of the diffused conditional law: a few roundings of numbers of its size at all t."""
    score, law = gaussian(schedule), conditional()
    guided = CovarianceGuidance(score, Dense(MATRIX), Y, SIGMA_Y, dense=dense)
    exact = GaussianMixtureScore(score.process, [1.0], law[0][None], law[1][None])
    generator = torch.Generator().manual_seed(0)
    for t in (1e-3, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99):
        std = 1 + schedule.std(torch.tensor(t, dtype=torch.float64))
        x = 2 * std * torch.randn(20, 3, dtype=torch.float64, generator=generator)
        wanted = exact(x, t)
        torch.testing.assert_close(guided(x, t), wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
        single, size = guided(x.float(), t), float(wanted.abs().max())
        torch.testing.assert_close(single.double(), wanted, rtol=0, atol=1e-5 * size)  # a hundred roundings of float32
    # times of each sample, as adaptive rules give them
    t = torch.rand(20, 1, dtype=torch.float64, generator=generator) * 0.9 + 0.01
    torch.testing.assert_close(guided(x, t), exact(x, t), rtol=1e-9, atol=1e-9)


def test_pseudoinverse_guidance_is_exact_where_its_assumption_is() -> None:
    """Data N(m, v I): ρ² is the variance of x0 given x_t."""
    score = gaussian(covariance=2.5 * torch.eye(3, dtype=torch.float64))
    law = conditional(covariance=2.5 * torch.eye(3, dtype=torch.float64))
    exact = GaussianMixtureScore(score.process, [1.0], law[0][None], law[1][None])
    guided = PiGDM(score, Dense(MATRIX), Y, SIGMA_Y, prior_variance=2.5)
    x = torch.randn(9, 3, dtype=torch.float64)
    for t in (0.01, 0.3, 0.9):
        torch.testing.assert_close(guided(x, t), exact(x, t), rtol=1e-10, atol=1e-10)
    gap = PiGDM(score, Dense(MATRIX), Y, SIGMA_Y)(x, 0.3) - exact(x, 0.3)
    assert float(gap.abs().max()) > 0.01  # v = 1 is wrong here


def test_terms_are_the_gradients_they_stand_for() -> None:
    """By differences in float64: h² of truncation, ε/h of rounding."""
    score, operator = gaussian(), Dense(MATRIX)
    x, t, h = torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64), 0.4, 1e-5

    def distance(v: Tensor, power: int) -> Tensor:
        return (Y - operator.forward(score.prediction(v, t)[0])).norm() ** power

    def slope(power: int) -> Tensor:
        moves = h * torch.eye(3, dtype=torch.float64)
        return torch.stack([(distance(x + e, power) - distance(x - e, power)) / (2 * h) for e in moves])

    likelihood = DPS(score, operator, Y, scale=1.7, sigma_y=SIGMA_Y)(x, t) - score(x, t)
    torch.testing.assert_close(likelihood, -1.7 / (2 * SIGMA_Y**2) * slope(2), rtol=1e-8, atol=1e-8)
    # the published step: at N uniform steps Euler–Maruyama moves by −scale·∇‖y − A D‖
    n = 50
    published = DPS(score, operator, Y, scale=0.3, steps=n)
    rate = score.process.schedule.diffusion(torch.tensor(t, dtype=torch.float64)) ** 2
    torch.testing.assert_close((published(x, t) - score(x, t)) * rate / n, -0.3 * slope(1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["covariance", "pseudoinverse", "posterior sampling"])
def test_samples_have_the_law_of_their_guidance(name: str) -> None:
    """Three standard errors from the exact moments of the recursion; with the covariance these are those of x0 given y, the
    others' bias is far outside."""
    score, n = gaussian(), 3000
    guided: Any = {
        "covariance": CovarianceGuidance(score, Dense(MATRIX), Y, SIGMA_Y),
        "pseudoinverse": PiGDM(score, Dense(MATRIX), Y, SIGMA_Y),
        "posterior sampling": DPS(score, Dense(MATRIX), Y, sigma_y=SIGMA_Y),
    }[name]
    times = karras(score.process, 60)
    start = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    mean, covariance = propagate_moments(score.process.reverse(guided), Ancestral("forward"), times, *start)
    x = sample(
        score.process, guided, Ancestral("forward"), times, shape=n, seed=1, denoise=False, dtype=torch.float64
    ).x
    variance = (covariance.diagonal()[:, None] * covariance.diagonal() + covariance**2) / n
    assert float(((x.mean(0) - mean) / (covariance.diagonal() / n).sqrt()).abs().max()) < 3
    assert float(((x.T.cov() - covariance) / variance.sqrt()).abs().max()) < 3
    exact, own = conditional()
    # 60 steps of order 1 are right in the mean to the prior's own error, and in the covariance to a few per cent
    bias, spread = float((mean - exact).abs().max()), float((covariance - own).abs().max())
    assert bias < 1e-3 and spread < 0.05 if name == "covariance" else bias > 0.02


def test_the_covariance_guides_the_flow_to_the_exact_law() -> None:
    """Deterministic: from the exact law at the grid's start, mean and covariance of the flow's affine map, second order in the step."""
    score = gaussian()
    guided = CovarianceGuidance(score, Dense(MATRIX), Y, SIGMA_Y)
    exact = conditional()

    def law(t: Tensor) -> tuple[Tensor, Tensor]:
        scale, std = score.process.schedule.scale(t), score.process.schedule.std(t)
        return scale * exact[0], scale**2 * exact[1] + std**2 * torch.eye(3)

    errors = []
    for n in (61, 121):
        times = karras(score.process, n)
        found = propagate_moments(score.process.flow(guided), Heun(), times, *law(times[0]))
        errors.append(max(float((a - b).abs().max()) for a, b in zip(found, law(times[-1]), strict=True)))
    assert errors[1] < 5e-3 and 3 < errors[0] / errors[1] < 5.5, errors


@pytest.mark.parametrize("kind", [DPS, PiGDM, CovarianceGuidance])
def test_a_guided_sample_is_the_same_alone_and_in_a_batch(kind: type[InverseGuidance]) -> None:
    score = gaussian()
    y = torch.tensor([[0.7, -0.4], [0.1, 0.2], [-0.5, 0.0]])
    options: dict[str, Any] = {"sigma_y": SIGMA_Y}
    for solver in (EulerMaruyama(), AdaptiveODE(1e-3, 1e-3)):
        together = sample(
            score.process,
            kind(score, Dense(MATRIX), y, **options),
            solver,
            karras(score.process, 6),
            shape=3,
            seed=[1, 2, 3],
        )
        alone = sample(
            score.process,
            kind(score, Dense(MATRIX), y[1:2], **options),
            solver,
            karras(score.process, 6),
            shape=1,
            seed=[2],
        )
        assert torch.equal(together.x[1:2], alone.x)


@pytest.mark.parametrize("kind", ["published", "likelihood", "pseudoinverse", "covariance", "iterative"])
def test_strong_guidance_on_the_cube_is_finite_in_float32(kind: str) -> None:
    """From σ = 2 to 0.01, at the walls and in the corners, with y outside and next to no noise."""
    process = Diffusion(Hypercube((4,)), VE(sigma_max=2.0))
    score = EmpiricalScore(process, torch.rand(16, 4, generator=torch.Generator().manual_seed(0)))
    operator, y = Dense([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]), torch.tensor([2.5, 0.3])
    guided: Any = {
        "published": DPS(score, operator, y, scale=15.0),
        "likelihood": DPS(score, operator, y, scale=15.0, sigma_y=1e-2),
        "pseudoinverse": PiGDM(score, operator, y, 0.0, scale=15.0),
        "covariance": CovarianceGuidance(score, operator, y, 1e-4),
        "iterative": CovarianceGuidance(score, operator, y, 1e-4, dense=0),
    }[kind]
    x = sample(process, guided, EulerMaruyama(), karras(process, 30, sigma_min=0.01), shape=64, seed=0)
    assert x.x.dtype == torch.float32 and bool(x.ok.all()) and bool(process.domain.contains(x.x).all())
    corners = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.5, 1.0]])
    for t in karras(process, 9, sigma_min=0.01).tolist():
        assert bool(guided(corners, t).isfinite().all())


def test_data_comes_nearer_to_what_was_measured() -> None:
    """On two images' worth of atoms the guided samples are those that y fits."""
    process = Diffusion(Euclidean((1, 4, 4)), VP())
    atoms = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    score = EmpiricalScore(process, atoms)
    for operator in (Downsample((1, 4, 4), 2), Blur((1, 4, 4), [0.25, 0.5, 0.25])):
        y = operator.forward(atoms[5])
        guided = CovarianceGuidance(score, operator, y, 0.05)
        x = sample(process, guided, Ancestral(), karras(process, 40), shape=20, seed=0).x
        near = (x - atoms[5]).pow(2).mean((-3, -2, -1)) < 1e-2
        assert float(near.double().mean()) > 0.3  # of 12 atoms; without y one in twelve


@pytest.mark.parametrize("kind", [DPS, PiGDM, CovarianceGuidance])
@pytest.mark.parametrize("domain", [Euclidean((4,)), Hypercube((4,))], ids=repr)
def test_networks_are_guided_while_sampling_and_their_parameters_are_left_alone(
    kind: type[InverseGuidance], domain: Any
) -> None:
    """Under no_grad, as samples are drawn; each sample with its own y and its own seed, and y in another dtype."""
    process = Diffusion(domain, VE(sigma_max=5.0))
    score = NeuralScore(MLP(MLPConfig(event_shape=(4,), width=16, depth=1)), process)
    mask = torch.tensor([True, False, True, False])
    guided = kind(score, Mask(mask), torch.tensor([[0.2, 0.9], [0.5, 0.1]], dtype=torch.float64), sigma_y=0.1)
    x = sample(process, guided, EulerMaruyama(), karras(process, 8), shape=2, seed=[1, 2])
    assert bool(x.ok.all()) and x.x.dtype == torch.float32
    assert all(p.grad is None for p in score.parameters())


def test_guided_scores_are_guided_again() -> None:
    """Two measurements, one after the other, are both at once where the term is exact: independent noise, the covariance of the inner."""
    score, law = gaussian(), conditional()
    first = CovarianceGuidance(score, Dense(MATRIX[:1]), Y[:1], SIGMA_Y)
    both = CovarianceGuidance(first, Dense(MATRIX[1:]), Y[1:], SIGMA_Y)
    exact = GaussianMixtureScore(score.process, [1.0], law[0][None], law[1][None])
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(both(x, 0.4), exact(x, 0.4), rtol=1e-9, atol=1e-9)


def test_where_the_residual_vanishes_the_published_term_does() -> None:
    score, operator = gaussian(), Dense(MATRIX)
    x = torch.zeros(3, dtype=torch.float64)
    y = operator.forward(score.prediction(x, 0.3)[0])
    torch.testing.assert_close(DPS(score, operator, y)(x, 0.3), score(x, 0.3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: PiGDM(s, Dense(MATRIX), torch.zeros(3)), "y: got shape"),
        (lambda s: PiGDM(s, Dense(torch.ones(1, 2)), torch.zeros(1)), "operator: got one of events"),
        (lambda s: DPS(s, Doubled(wrong=1.1), torch.zeros(3)), "adjoint is not that of its forward"),
        (lambda s: DPS(s, MATRIX, Y), "(?s)operator: got .* without forward"),
        (lambda s: DPS(None, Dense(MATRIX), Y), "score: got NoneType"),
        (lambda s: DPS(lambda x, t: x, Dense(MATRIX), Y), "pass process="),
        (lambda s: DPS(s, Dense(MATRIX), Y, scale=-1.0), "scale: got -1"),
        (lambda s: DPS(s, Dense(MATRIX), Y, sigma_y=0.0), "sigma_y: got 0"),
        (lambda s: DPS(s, Dense(MATRIX), Y, steps=0), "steps: got 0"),
        (lambda s: PiGDM(s, Dense(MATRIX), Y, prior_variance=0.0), "prior_variance: got 0"),
        (lambda s: CovarianceGuidance(s, Dense(MATRIX), Y, iterations=0), "dense, iterations"),
        (lambda s: PiGDM(s, Dense(MATRIX), torch.zeros(5, 2))(torch.zeros(4, 3), 0.5), "y: got the batch"),
        (lambda s: Mask(torch.ones(3)), "mask: got torch.float32"),
        (lambda s: Grayscale((1, 4, 4)), "Grayscale: got events"),
        (lambda s: Downsample((1, 4, 4), 3), "divides height and width"),
        (lambda s: Blur((1, 4, 4), [0.5, 0.5]), "an odd number"),
        (lambda s: Blur((1, 4, 4), [1.0], "zero"), "boundary: got 'zero'"),
        (lambda s: Dense([1.0, 2.0]), "matrix: got shape"),
        (lambda s: Dense(MATRIX, (2,)), "event_shape: got"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(gaussian())


def test_schedules_of_parts_and_lying_shapes_are_refused() -> None:
    joint = Diffusion(Product(Euclidean((1,)), Euclidean((2,))), [VP(), VE()])
    with pytest.raises(ValueError, match="single schedule"):
        DPS(lambda x, t: x, Dense(MATRIX), Y, process=joint)
    lying = Doubled()
    lying.shape = (2,)
    with pytest.raises(ValueError, match="expected the stated shapes"):
        check_operator(lying)


# -------------------------------------------------------------------------------------------------------- translation


def test_a_step_of_translation_is_the_published_one() -> None:
    """β = .02, ᾱ = .6, y = .4, ε = .3, ∇E = .7 at λ = .5, in two energies: mean .387406801534."""
    process = Diffusion(Euclidean((1,)), Discrete(torch.tensor([0.6 / 0.98, 0.6], dtype=torch.float64)))
    score = lambda x, t: torch.full_like(x, -0.3 / math.sqrt(0.4))
    source = torch.zeros(1, 1, dtype=torch.float64)
    guided = Translation(
        score, source, lambda x, t, y: 0.7 * x.sum(-1), lambda x, t, y: 1.4 * x.sum(-1), (0.3, 0.1), process=process
    )
    equation, x = process.reverse(guided), torch.tensor([[0.4]], dtype=torch.float64)
    record = bind(Ancestral("forward").plan(equation, torch.tensor([1.0, 0.5], dtype=torch.float64)), x)[0]
    moved, _ = Ancestral("forward").step(equation, x, record, (), (torch.zeros_like(x),))
    assert abs(float(moved) - 0.387406801534) < 1e-12


def test_one_noise_may_serve_all_levels_and_the_start() -> None:
    score = gaussian()
    source = torch.randn(3, 3, dtype=torch.float64)
    schedule = score.process.schedule

    def noise(translation: Translation, t: float) -> Tensor:
        level = torch.tensor(t, dtype=torch.float64)
        return (translation.source_at(t) - schedule.scale(level) * source) / schedule.std(level)

    for seed in (5, [1, 2, 3]):
        one, own = (Translation(score, source, None, None, seed=seed, shared_noise=s) for s in (True, False))
        torch.testing.assert_close(noise(one, 0.5), noise(one, 0.2), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(noise(own, 0.5), noise(own, 0.2))
        assert torch.equal(own.source_at(0.5), own.source_at(0.5))
    run = edit(
        score.process, one, EulerMaruyama(), [0.6, 0.1], source, t=0.5, seed=[1, 2, 3], save="all", denoise=False
    )
    torch.testing.assert_close(run.trajectory[0], one.source_at(0.5), rtol=1e-12, atol=1e-12)  # type: ignore[index]


def test_faithful_energy_keeps_a_translation_near_its_source() -> None:
    """On the cube, one seed a sample: alone and in a batch, inside, and nearer the heavier the energy weighs."""
    process = Diffusion(Hypercube((2,)), VE())
    score = EmpiricalScore(process, torch.rand(8, 2, generator=torch.Generator().manual_seed(2)))
    source, times = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.8, 0.2]]), karras(process, 20)

    def run(weight: float, rows: slice = slice(None)) -> Tensor:
        seeds = list(range(3))[rows]
        faithful = lambda x, t, y: (x - y).pow(2).sum(-1) / 2
        guided = Translation(score, source[rows], None, faithful, (0.0, weight), seed=seeds)
        return edit(process, guided, EulerMaruyama(), times, source[rows], t=float(times[6]), seed=seeds).x

    assert torch.equal(run(3.0)[1:2], run(3.0, slice(1, 2)))
    assert bool(process.domain.contains(run(30.0)).all())
    free, held = (float((run(w) - source).pow(2).mean()) for w in (0.0, 30.0))
    assert held < free


def test_translations_that_do_not_fit_are_refused() -> None:
    score, source = gaussian(), torch.zeros(2, 3)
    with pytest.raises(TypeError, match="score: got"):
        Translation(1.0, source, None, None)
    with pytest.raises(ValueError, match="source"):
        Translation(score, torch.zeros(2, 4), None, None)
    with pytest.raises(ValueError, match="weight of faithful: got -1"):
        Translation(score, source, None, lambda x, t, y: x, (1.0, -1.0))
    with pytest.raises(ValueError, match="weights: got"):
        Translation(score, source, None, None, (1.0, 2.0, 3.0))  # type: ignore[arg-type]
    guided = Translation(score, source, lambda x, t, y: x, None)
    with pytest.raises(ValueError, match="energy: got shape"):
        guided(source, 0.5)
    with pytest.raises(ValueError, match="one source a sample"):
        guided(torch.zeros(3, 3), 0.5)
    with pytest.raises(ValueError, match="a time for each sample"):
        guided(source, torch.tensor([[0.5], [0.4]]))


def test_the_published_steps_bring_data_to_the_measurement() -> None:
    """On N uniform steps, as quoted."""
    score, operator = gaussian(), Dense(MATRIX)
    times = uniform(score.process, 201)

    def distance(guided: Any) -> float:
        x = sample(score.process, guided, EulerMaruyama(), times, shape=100, seed=0, dtype=torch.float64).x
        return float((operator.forward(x) - Y).norm(dim=-1).mean())

    assert distance(DPS(score, operator, Y, scale=0.05, steps=200)) < 0.2 * distance(score)
