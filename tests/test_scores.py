"""Closed-form scores: gradients of their own log densities, limits, invariance to blocks and batch mates, refusals."""

import math

import pytest
import torch

import carom.scores.empirical as empirical
from carom.domains import Euclidean, Hypercube, Orthant
from carom.processes import (
    EDM,
    VE,
    VP,
    CosineVP,
    Diffusion,
    Discrete,
    FlowMatching,
    SubVP,
    data_form,
    noise_form,
)
from carom.scores import EmpiricalScore, GaussianMixtureScore

SCHEDULES = [VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(50)]
PLANE = Diffusion(Euclidean((2,)), VP())
COVARIANCES = [[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.4]]]


def mixture(schedule, covariances=COVARIANCES) -> GaussianMixtureScore:
    return GaussianMixtureScore(
        Diffusion(Euclidean((2,)), schedule), [0.3, 0.7], [[0.5, -0.3], [-1.0, 0.8]], covariances
    )


def points(n=6, dim=2):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_mixture_score_is_the_gradient_of_its_log_density(schedule):
    score, x = mixture(schedule), points().requires_grad_()
    for t in (0.02, 0.4, 0.9):
        (gradient,) = torch.autograd.grad(score.log_prob(x, t).sum(), x)
        # both are sums of a few terms of size |score|: relative rounding
        assert torch.allclose(score(x.detach(), t), gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_mixture_density_is_the_convolution(schedule):
    """Against torch's own mixture of multivariate normals."""
    from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

    score, x, t = mixture(schedule), points(), 0.37
    s, std = float(score.process.schedule.scale(t)), float(score.process.schedule.std(t))
    means = torch.tensor([[0.5, -0.3], [-1.0, 0.8]], dtype=torch.float64) * s
    covariances = torch.tensor(COVARIANCES, dtype=torch.float64) * s**2 + std**2 * torch.eye(2, dtype=torch.float64)
    weights = Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64))
    reference = MixtureSameFamily(weights, MultivariateNormal(means, covariances))
    assert torch.allclose(score.log_prob(x, t), reference.log_prob(x), rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_predictions_are_the_score_in_other_forms_and_exact_at_the_ends(schedule):
    score, x = mixture(schedule), points()
    level = score.process.level(0.3)
    data, noise = score.prediction(x, 0.3)
    for got, (p, q) in ((data, data_form(level)), (noise, noise_form(level))):
        # x/s + sσ²·score cancels by a factor of σ²/var
        assert torch.allclose(got, p * x + q * score(x, 0.3), rtol=1e-9, atol=1e-9)
    data, _ = score.prediction(x, 0.0)
    assert torch.allclose(data, x, atol=1e-14)
    if isinstance(schedule, FlowMatching):
        data, noise = score.prediction(x, 1.0)
        mean = 0.3 * torch.tensor([0.5, -0.3]).double() + 0.7 * torch.tensor([-1.0, 0.8]).double()
        assert torch.allclose(data, mean.expand(6, 2), atol=1e-14) and torch.allclose(noise, x, atol=1e-14)


@pytest.mark.parametrize("batch", [(0,), (), (2, 3), (2, 0)])
def test_any_batch_shape(batch):
    process, data = EMPIRICAL[0]
    for score, dim in ((mixture(VP()), 2), (EmpiricalScore(process, data), 2)):
        x = torch.rand(*batch, dim)
        assert score(x, 0.3).shape == x.shape and score.log_prob(x, 0.3).shape == batch
        assert score.prediction(x, 0.3)[0].shape == x.shape


def test_covariances_in_every_form_agree():
    x = points()
    full = mixture(VP(), [[[0.3, 0.0], [0.0, 0.3]], [[0.1, 0.0], [0.0, 0.1]]])(x, 0.4)
    assert torch.allclose(mixture(VP(), [[0.3, 0.3], [0.1, 0.1]])(x, 0.4), full, rtol=1e-12)
    isotropic = GaussianMixtureScore(PLANE, [0.5, 0.3, 0.2], torch.eye(3)[:, :2].tolist(), [0.3, 0.1, 0.2])
    diagonal = GaussianMixtureScore(
        PLANE, [0.5, 0.3, 0.2], torch.eye(3)[:, :2].tolist(), [[0.3] * 2, [0.1] * 2, [0.2] * 2]
    )
    assert torch.equal(isotropic(x, 0.4), diagonal(x, 0.4))
    one = GaussianMixtureScore(PLANE, [1.0], [[0.0, 0.0]], 1.0)
    assert torch.allclose(one(x, 0.4), -x, rtol=1e-12)


def test_reference_values_of_the_one_dimensional_mixture():
    """formulas §6, §12, §17: M1 at t = 0.3, x = 0.4 under VP, and D1's denoiser tanh(x/σ²) under EDM."""
    process = Diffusion(Euclidean((1,)), VP())
    score = GaussianMixtureScore(process, [0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])
    x = torch.tensor([[0.4]], dtype=torch.float64, requires_grad=True)
    value = score(x, 0.3)
    (slope,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(-0.124759924703, abs=1e-12)
    assert float(slope) == pytest.approx(-1.13105146904, abs=1e-11)
    atoms = GaussianMixtureScore(Diffusion(Euclidean((1,)), EDM()), [0.5, 0.5], [[-1.0], [1.0]], 0.0)
    data, _ = atoms.prediction(torch.tensor([[0.3]], dtype=torch.float64), 0.5 / 80)
    assert float(data) == pytest.approx(0.833654607012, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mixture_score_is_finite_far_out_and_close_in(dtype):
    score = mixture(EDM())
    x = torch.tensor([[1e3, -1e3], [0.0, 0.0], [50.0, 80.0]], dtype=dtype)
    for t in (1e-5, 1e-3, 1.0):
        assert bool(score(x, t).isfinite().all())


@pytest.mark.montecarlo
def test_mixture_samples_have_its_moments():
    n = 40_000
    x = mixture(VP()).sample(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = 0.3 * torch.tensor([0.5, -0.3]).double() + 0.7 * torch.tensor([-1.0, 0.8]).double()
    assert bool(((x.mean(0) - mean).abs() < 4 * x.std(0) / math.sqrt(n)).all())
    within = 0.3 * torch.tensor(COVARIANCES[0]) + 0.7 * torch.tensor(COVARIANCES[1])
    gap = torch.tensor([1.5, -1.1])
    expected = within + 0.21 * torch.outer(gap, gap)  # w(1 − w) times the outer product of the means' difference
    # the standard error of a covariance is at most √(2 var var / n)·√2 here
    assert torch.allclose(x.T.cov(), expected.double(), atol=4 * 2 / math.sqrt(n))


EMPIRICAL = [
    (Diffusion(Hypercube((2,)), VE()), torch.rand(40, 2, generator=torch.Generator().manual_seed(1))),
    (Diffusion(Hypercube((2,), [-1.0, 2.0], [1.0, 5.0]), VE()), torch.tensor([[0.0, 2.0], [1.0, 4.5], [-0.3, 3.0]])),
    (Diffusion(Orthant((2,)), VP()), torch.rand(40, 2, generator=torch.Generator().manual_seed(1))),
    (Diffusion(Euclidean((2,)), SubVP()), torch.randn(40, 2, generator=torch.Generator().manual_seed(1))),
]


def inside(process: Diffusion, n=7):
    x = 3 * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return process.domain.fold(x)[0]


@pytest.mark.parametrize(("process", "data"), EMPIRICAL, ids=lambda v: repr(v) if isinstance(v, Diffusion) else "")
def test_the_empirical_score_is_the_gradient_of_its_log_density(process, data):
    score, x = EmpiricalScore(process, data), inside(process).requires_grad_()
    for t in (0.05, 0.4, 0.8):
        (gradient,) = torch.autograd.grad(score.log_prob(x, t).sum(), x)
        assert torch.allclose(score(x.detach(), t), gradient, rtol=1e-9, atol=1e-9)


def test_on_r_d_the_empirical_score_is_a_mixture_of_atoms():
    process, data = EMPIRICAL[3]
    x = points()
    atoms = GaussianMixtureScore(process, torch.ones(40), data, 0.0)
    for t in (0.1, 0.5, 1.0):
        assert torch.allclose(EmpiricalScore(process, data)(x, t), atoms(x, t), rtol=1e-11, atol=1e-12)
        ours, theirs = EmpiricalScore(process, data).prediction(x, t), atoms.prediction(x, t)
        assert torch.allclose(ours[0], theirs[0], rtol=1e-11, atol=1e-12)


def test_one_data_point_gives_the_kernel_itself():
    process = EMPIRICAL[0][0]
    data = torch.tensor([[0.2, 0.9]], dtype=torch.float64)
    x = inside(process)
    kernel = process.transition(data[0], 0.3)
    score = EmpiricalScore(process, data)
    assert torch.allclose(score(x, 0.3), kernel.score(x), rtol=1e-12)
    assert torch.allclose(score.log_prob(x, 0.3), kernel.log_prob(x), rtol=1e-12)


def test_blocks_change_nothing_but_rounding_and_batch_mates_nothing_at_all(monkeypatch):
    process, data = EMPIRICAL[0]
    score, x = EmpiricalScore(process, data), inside(process, 50)
    whole = score(x, 0.3)
    monkeypatch.setattr(empirical, "_BLOCK", 256)
    assert torch.equal(score(x, 0.3), whole), "the split over states must not be seen"
    monkeypatch.setattr(empirical, "_DATA_BLOCK", 14)
    assert torch.allclose(score(x, 0.3), whole, rtol=1e-12)
    t = torch.linspace(0.1, 0.9, 50, dtype=torch.float64)[:, None]
    batch = score(x, t)
    assert all(torch.equal(score(x[i], t[i]), batch[i]) for i in range(50))


def test_few_data_points_leave_room_for_many_states(monkeypatch):
    """Four atoms and 10,000 states are one block, not hundreds."""
    sums, blocks = EmpiricalScore._sums, []
    monkeypatch.setattr(EmpiricalScore, "_sums", lambda self, x, *rest: blocks.append(len(x)) or sums(self, x, *rest))
    score = EmpiricalScore(Diffusion(Hypercube((1,)), VE()), torch.rand(4, 1))
    score(torch.rand(10_000, 1), 0.5)
    assert blocks == [10_000]


def test_far_from_all_data_the_weights_do_not_vanish():
    """Log-sum-exp: at σ = 1e-4 every kernel underflows, yet the score points at the nearest data point."""
    process = EMPIRICAL[0][0]
    score = EmpiricalScore(process, torch.tensor([[0.1, 0.1], [0.9, 0.9]]))
    t = float(process.schedule.time(torch.tensor(1e-4, dtype=torch.float64)))
    x = torch.tensor([[0.3, 0.2]])
    assert torch.allclose(score(x, t), (torch.tensor([[0.1, 0.1]]) - x) / 1e-8, rtol=1e-4)


def test_a_score_with_walls_has_no_normal_component_there():
    process, data = EMPIRICAL[0]
    score = EmpiricalScore(process, data)
    for x, axis in (([[0.0, 0.4]], 0), ([[1.0, 0.4]], 0), ([[0.3, 0.0]], 1), ([[0.3, 1.0]], 1)):
        for t in (0.1, 0.5, 0.9):
            assert float(score(torch.tensor(x), t)[0, axis]) == 0.0


def test_refusals():
    process = EMPIRICAL[0][0]
    with pytest.raises(ValueError, match=r"2 of 2 samples lie outside Hypercube"):
        EmpiricalScore(process, torch.full((2, 2), 2.0))
    with pytest.raises(TypeError, match="expected a floating dtype"):
        EmpiricalScore(process, torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected \[N, 2\], N ≥ 1"):
        EmpiricalScore(process, torch.rand(2, 2, 2))
    with pytest.raises(ValueError, match=r"expected \[N, 2\], N ≥ 1"):
        EmpiricalScore(process, torch.rand(0, 2))
    with pytest.raises(TypeError, match="expected a Euclidean domain; use EmpiricalScore"):
        GaussianMixtureScore(process, [1.0], [[0.0, 0.0]], 1.0)
    with pytest.raises(ValueError, match=r"weights: got shape .* of positive numbers"):
        GaussianMixtureScore(PLANE, [1.0, -1.0], torch.zeros(2, 2), 1.0)
    with pytest.raises(ValueError, match=r"means: got shape \(3, 2\), expected \[2, 2\]"):
        GaussianMixtureScore(PLANE, [1.0, 1.0], torch.zeros(3, 2), 1.0)
    with pytest.raises(ValueError, match="covariances: got shape"):
        GaussianMixtureScore(PLANE, [1.0, 1.0], torch.zeros(2, 2), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="expected positive semidefinite"):
        GaussianMixtureScore(PLANE, [1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]])
