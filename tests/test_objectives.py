"""Objectives and preconditionings on every kind of domain: one loss up to a constant, one minimiser, walls or none."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import j1, jnp_zeros
from torch import Tensor, nn

from carom.domains import (
    Ball,
    Domain,
    Euclidean,
    FoldedDomain,
    Hypercube,
    KernelDomain,
    Orthant,
    Polytope,
    Product,
    RegularSimplex,
    Simplex,
    Torus,
)
from carom.domains.domain import Uniform
from carom.processes import EDM, VE, Diffusion
from carom.scores.neural import (
    MLP,
    DenoisingScoreMatching,
    EDMPreconditioning,
    ImplicitScoreMatching,
    LatentImageScoreMatching,
    LogUniform,
    MLPConfig,
    NeuralScore,
    Preconditioning,
    Reflected,
    SlicedScoreMatching,
    simulate,
    train,
)
from carom.scores.neural.forward import steps_for
from carom.scores.neural.objectives import carried_forth
from carom.scores.neural.preconditioning_registry import default_preconditioning
from carom.scores.neural.reflected import bounding_box, damp_walls
from carom.solvers.divergence import exact_diagonal, sliced_diagonal

DOUBLE = torch.float64


class Bare(Domain):
    """The unit disk as a user would write it: no kernel, no fold, no distance from its wall."""

    event_shape = (2,)
    width = 2.0

    def contains(self, x: Tensor, atol: float = 0.0) -> Tensor:
        return x.norm(dim=-1) <= 1 + 1e-12 + atol

    def project(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True).clamp(min=1)

    def reflect(self, x: Tensor, displacement: Tensor) -> Tensor:
        v = displacement
        while True:
            a, b, c = (v * v).sum(-1), (x * v).sum(-1), (x * x).sum(-1) - 1
            time = ((b * b - a * c).clamp(min=0).sqrt() - b) / a.clamp(min=1e-300)
            hits = (time < 1)[..., None]
            if not bool(hits.any()):
                return self.project(x + v)
            normal = self.project(1e9 * (x + time[..., None] * v)) * (1 - 1e-15)
            mirrored = v - 2 * (v * normal).sum(-1, keepdim=True) * normal
            x, v = torch.where(hits, normal, x), torch.where(hits, (1 - time)[..., None] * mirrored, v)

    def uniform(self, dtype: torch.dtype | None = None) -> Uniform:
        def draw(shape, dtype, device, generator):
            r, angle = torch.rand(2, *shape, generator=generator, dtype=dtype)
            return r.sqrt()[..., None] * torch.stack([(2 * math.pi * angle).cos(), (2 * math.pi * angle).sin()], -1)

        return Uniform(self, draw, math.log(math.pi), dtype)

    def config(self) -> dict:
        return {"type": type(self).__name__}


class Disk(Bare):
    def boundary_distance(self, x: Tensor) -> Tensor:
        return 1 - x.norm(dim=-1)


class Sealed(KernelDomain):
    """[0, 1] with its kernel, but no fold and a least σ of the kernel."""

    event_shape, width, sigma_min = (1,), 1.0, 0.1
    inside = Hypercube((1,))

    def contains(self, x, atol=0.0):
        return self.inside.contains(x, atol)

    def project(self, x):
        return self.inside.project(x)

    def reflect(self, x, displacement):
        return self.inside.reflect(x, displacement)

    def heat_kernel(self, x0, sigma):
        assert bool((torch.as_tensor(sigma) >= self.sigma_min).all())
        return self.inside.heat_kernel(x0, sigma)


class Plain(Preconditioning):
    """The network is the score; ``claims`` to be damped, which it is not."""

    def __init__(self, claims: bool = False):
        self.claims = claims

    @property
    def damped(self) -> bool:
        return self.claims

    def inputs(self, x, sigma):
        return x

    def c_noise(self, sigma):
        return sigma.log()

    def unit(self, sigma):
        return 1 / sigma

    def score(self, raw, x, sigma):
        return raw

    def config(self):
        return {"type": "Plain"}


class Of(nn.Module):
    """A network made of a function of x and σ."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, c_noise):
        return self.function(x)


def at(sigma: float) -> LogUniform:
    return LogUniform(sigma, sigma * (1 + 1e-12))


# simulation -------------------------------------------------------------------------------------------------------

K = float(jnp_zeros(1, 1)[0])


def mode(x: Tensor) -> Tensor:
    """J_1(Kr) cos θ: the slowest Neumann mode of the disk."""
    r = x.norm(dim=-1).clamp(min=1e-12)
    return torch.as_tensor(j1(K * r.numpy())) * x[..., 0] / r


def gauss(a: float, b: float, n: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(a + (b - a) * (nodes + 1) / 2), torch.from_numpy(weights * (b - a) / 2)


def decay(h: float) -> float:
    """The rate at which reflected steps of size h let the mode decay, relative to the true K²/2, by quadrature.

    Steps are symmetric, so the Rayleigh quotient of the true mode is their eigenvalue to second order in the error.
    """
    zone = 5 * h
    (r1, w1), (r2, w2) = gauss(0, 1 - zone, 24), gauss(1 - zone, 1, 64)
    r, weight = torch.cat([r1, r2]), torch.cat([w1, w2])
    angle = math.pi * (torch.arange(64, dtype=DOUBLE) + 0.5) / 64
    rho, density = gauss(0, 8, 40)
    density = density * rho * (-0.5 * rho**2).exp()
    start, turn, length = torch.meshgrid(r, angle, rho, indexing="ij")
    move = h * length[..., None] * torch.stack([turn.cos(), turn.sin()], -1)
    end = Disk().reflect(torch.stack([start, torch.zeros_like(start)], -1), move)
    mean = (mode(end) * density).sum(-1).mean(-1)
    here = torch.from_numpy(j1(K * r.numpy()))
    quotient = float((weight * r * here * mean).sum() / (weight * r * here * here).sum())
    return -math.log(quotient) / (0.5 * K**2 * h**2)


def test_the_bias_of_reflected_steps_falls_with_their_square():
    errors = [decay(h) - 1 for h in (0.2, 0.1, 0.05)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[0] == pytest.approx(0.006, abs=0.001)  # h = 0.1 of the width, as the docstring says
    assert errors[1] == pytest.approx(0.0015, abs=0.0002)
    assert all(abs(slope - 2) < 0.2 for slope in slopes), slopes
    assert abs(slopes[1] - 2) < abs(slopes[0] - 2)


def mean_of(values: Tensor) -> tuple[float, float]:
    """The mean of independent values and its standard error."""
    values = values.detach()
    return float(values.mean()), float(values.std()) / math.sqrt(values.numel())


@pytest.mark.montecarlo
def test_the_mode_of_the_disk_decays_at_its_rate_under_simulate():
    sigma, x0 = 0.9, torch.tensor([0.6, 0.3], dtype=DOUBLE).expand(20_000, 2)
    assert steps_for(Disk(), sigma) == 21
    mean, error = mean_of(mode(simulate(Disk(), x0, sigma)))
    assert mean == pytest.approx(float(mode(x0[0])) * math.exp(-0.5 * (K * sigma) ** 2), abs=4 * error + 0.003)


@pytest.mark.montecarlo
@pytest.mark.parametrize("steps", [1, 7])
def test_flat_walls_leave_no_bias_whatever_the_steps(steps):
    """The square as inequalities against its kernel: each sample has its own σ, some beyond the width."""
    square = Polytope([[1.0, 0], [-1, 0], [0, 1], [0, -1]], [1.0, 0, 1, 0])
    sigma = torch.tensor([0.1, 0.4, 1.5], dtype=DOUBLE).repeat(10_000)
    x = simulate(square, torch.tensor([0.2, 0.7], dtype=DOUBLE).expand(len(sigma), 2), sigma, steps=steps)
    for part, level in zip(x.reshape(-1, 3, 2).unbind(1), (0.1, 0.4, 1.5), strict=True):
        for axis, start in enumerate((0.2, 0.7)):
            mean, error = mean_of((math.pi * part[:, axis]).cos())
            expected = math.cos(math.pi * start) * math.exp(-0.5 * (math.pi * level) ** 2)
            assert mean == pytest.approx(expected, abs=4 * error)


@pytest.mark.montecarlo
def test_simulate_takes_fold_kernel_and_steps_as_they_are_there():
    """A product of a folded part, one with a kernel down to σ = 0.1, and one without either."""
    domain = Product(Torus((1,)), Sealed(), Disk())
    x0 = torch.tensor([0.3, 0.2, 0.5, 0.0], dtype=DOUBLE).expand(2, 15_000, 4)
    sigma = torch.tensor([[0.05], [0.3]], dtype=DOUBLE)
    x = simulate(domain, x0, sigma)
    assert x.shape == x0.shape and bool(domain.contains(x, 1e-12).all())
    for row, level in zip(x, (0.05, 0.3), strict=True):
        tau = 2 * math.pi
        for values, start, rate in (
            ((tau * row[:, 0]).cos(), math.cos(tau * 0.3), tau),
            ((math.pi * row[:, 1]).cos(), math.cos(math.pi * 0.2), math.pi),
            (mode(row[:, 2:]), float(mode(x0[0, 0, 2:])), K),
        ):
            mean, error = mean_of(values)
            assert mean == pytest.approx(start * math.exp(-0.5 * (rate * level) ** 2), abs=4 * error + 1e-3)


def test_each_part_takes_the_steps_its_own_width_asks_for(monkeypatch):
    """Next to a wide or an unbounded part the disk still has to be walked in small steps."""
    calls = []
    monkeypatch.setattr(Disk, "reflect", lambda self, x, move: calls.append(1) or Bare.reflect(self, x, move))
    for beside in (Torus((1,), 10.0), Orthant((1,))):
        domain = Product(Disk(), beside)
        score = NeuralScore(Of(torch.zeros_like), Diffusion(domain, VE(sigma_max=2.0)), EDMPreconditioning())
        ImplicitScoreMatching(LogUniform(0.1, 0.6))(score, domain.project(torch.rand(4, 3) / 2))
        assert len(calls) == steps_for(Disk(), 0.6) == 9
        calls.clear()


def test_simulate_refuses():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"steps: got 0, expected a whole number of at least 1"):
        simulate(Disk(), x, 0.1, steps=0)
    with pytest.raises(ValueError, match=r"sigma: got -1, expected finite values above 0"):
        simulate(Disk(), x, -1.0)
    with pytest.raises(ValueError, match=r"steps: got None on .*no finite width, .*pass steps="):
        steps_for(Orthant((2,)), 0.1)
    with pytest.raises(ValueError, match=r"x0: 3 of 3 samples lie outside"):
        simulate(Disk(), x + 2, 0.1)


# preconditioning --------------------------------------------------------------------------------------------------

TRIANGLE = Polytope([[-1.0, 0], [0, -1], [1, 1]], [0.0, 0, 3])
MIXED = Product(Simplex(4), Torus((2,), 3.0), Hypercube((2, 2), high=2.0), Disk())


@pytest.mark.montecarlo
@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.6])
@pytest.mark.parametrize(
    "domain, slack", [(Simplex(4), 0.01), (Simplex(3, (2,)), 0.01), (Torus((2,), 1.0), 0.1)], ids=repr
)
def test_targets_have_unit_size_on_uniform_data(domain, slack, sigma):
    """The unit is right to 0.5 % on the simplex and 5 % on the torus, as stated; its square twice as much."""
    score = NeuralScore(Of(torch.zeros_like), Diffusion(domain, VE()))
    loss = DenoisingScoreMatching(at(sigma)).terms(score, domain.uniform(DOUBLE).sample((20_000,))).loss
    mean, error = mean_of(loss)
    assert mean == pytest.approx(1, abs=slack + 4 * error)


@pytest.mark.montecarlo
@pytest.mark.parametrize("domain", [RegularSimplex(3), Ball(2)], ids=repr)
def test_on_other_convex_domains_the_unit_is_an_upper_bound(domain):
    """Close where walls are far, and soon too large where the modes decay faster than the interval's."""
    score, loss = NeuralScore(Of(torch.zeros_like), Diffusion(domain, VE())), []
    for share in (0.05, 0.2, 0.5, 1.0):
        x0 = domain.uniform(DOUBLE).sample((2000,))
        mean, error = mean_of(DenoisingScoreMatching(at(share * domain.width)).terms(score, x0).loss)
        assert mean < 1.01 + 4 * error
        loss.append(mean)
    assert loss[0] > 0.9 and loss[-1] < 0.1


@pytest.mark.parametrize(
    "domain, low, high",
    [
        (Simplex(3, (2,)), torch.zeros(2, 2), torch.ones(2, 2)),
        (Torus((2,), [1.0, 3.0]), torch.zeros(2), torch.tensor([1.0, 3.0])),
        (TRIANGLE, torch.zeros(2), torch.full((2,), 3.0)),
        (Disk(), -torch.ones(2), torch.ones(2)),
    ],
    ids=repr,
)
def test_inputs_fill_the_box_around_the_domain(domain, low, high):
    box = bounding_box(domain)
    torch.testing.assert_close(box.low, low.double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(box.high, high.double(), rtol=0, atol=1e-7)
    ends = Reflected(domain).inputs(torch.stack([low, high]), torch.ones(2))
    torch.testing.assert_close(ends, torch.stack([-torch.ones_like(low), torch.ones_like(low)]), rtol=0, atol=1e-6)


def test_a_product_is_preconditioned_part_by_part():
    x, sigma = MIXED.uniform(DOUBLE).sample((5,)), torch.linspace(0.1, 0.9, 5, dtype=DOUBLE)
    raw, both = torch.randn_like(x), Reflected(MIXED)
    whole = (both.inputs(x, sigma[:, None]), both.score(raw, x, sigma[:, None]))
    for i, domain in enumerate(MIXED.domains):
        part, level = Reflected(domain), sigma.reshape(-1, *[1] * len(domain.event_shape))
        here, vector = MIXED.split(x)[i], MIXED.split(raw)[i]
        assert torch.equal(MIXED.split(whole[0])[i], part.inputs(here, level))
        assert torch.equal(MIXED.split(whole[1])[i], part.score(vector, here, level))
    assert both.width == 3.0 and torch.equal(both.c_noise(sigma), Reflected(Torus((1,), 3.0)).c_noise(sigma))


def test_no_flux_leaves_through_any_wall():
    for domain in (Simplex(4), RegularSimplex(4), Ball(3), Disk(), TRIANGLE, Product(Disk(), Hypercube((1,)))):
        outside = 3 * torch.randn(200, *domain.event_shape, dtype=DOUBLE)
        x = domain.project(outside)
        x = x[domain.boundary_distance(x) < 1e-12]
        assert len(x) > 50
        score = Reflected(domain).score(torch.randn_like(x), x, torch.full((len(x), 1), 0.1, dtype=DOUBLE))
        assert float((score * domain.inward_normal(x)).sum(-1).abs().max()) < 1e-10
        assert float(score.abs().max()) > 1


def test_the_default_is_made_for_the_domain():
    for domain in (Hypercube((2,)), Simplex(4), Torus((2,)), RegularSimplex(4), Ball(2), TRIANGLE, Disk(), MIXED):
        chosen = default_preconditioning(domain)
        assert isinstance(chosen, Reflected) and chosen.damped
    assert not default_preconditioning(Bare()).damped
    for domain in (Hypercube((2,), 0.0, [1.0, math.inf]), Orthant((2,)), Product(Simplex(3), Euclidean((1,)))):
        assert isinstance(default_preconditioning(domain), EDMPreconditioning)


@pytest.mark.parametrize(
    "domain", [Simplex(4), RegularSimplex(4), Ball(2), TRIANGLE, Product(Simplex(3), Torus((2,)))], ids=repr
)
def test_a_score_on_any_bounded_domain_travels(tmp_path, domain):
    score = NeuralScore(MLP(MLPConfig(domain.event_shape, 8, 1)), Diffusion(domain, VE())).eval()
    for parameter in score.parameters():
        nn.init.normal_(parameter)
    score.save(tmp_path / "score")
    x, again = domain.uniform().sample((6,)), NeuralScore.load(tmp_path / "score")
    assert isinstance(again.preconditioning, Reflected) and again.preconditioning.wall
    assert torch.equal(again(x, 0.3), score(x, 0.3)) and float(again(x, 0.3).detach().abs().max()) > 0


def test_preconditioning_refuses():
    with pytest.raises(TypeError, match=r"Reflected: got Hypercube\(.*expected a Hypercube or another bounded domain"):
        Reflected(Hypercube((2,), high=math.inf))
    with pytest.raises(TypeError, match=r"Reflected: got wall=True on .*define boundary_distance"):
        Reflected(Bare())
    with pytest.raises(ValueError, match=r"preconditioning: got one made for Simplex\(3\), expected one for Torus"):
        NeuralScore(Of(torch.zeros_like), Diffusion(Torus((2,)), VE()), Reflected(Simplex(3)))


# latent images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "domain",
    [Hypercube((3,), -1.0, 2.0), Simplex(5), Torus((3,)), RegularSimplex(3), Product(Simplex(3), Orthant((2,)))],
    ids=repr,
)
def test_vectors_are_carried_forth_by_the_inverse_of_back(domain):
    u = 4 * torch.randn(50, *domain.event_shape, dtype=DOUBLE)
    _, back = domain.fold(u)
    v = torch.randn_like(u)
    torch.testing.assert_close(carried_forth(back, back(v)), v, rtol=0, atol=1e-12)


@pytest.mark.montecarlo
def test_latent_images_cost_four_where_the_kernel_costs_little_more_than_one():
    """On [0, 1] from 0.2 at σ = ½: 1/σ² = 4 and the Fisher information 1.1562 (numerics.md: 4.0 against 1.16)."""
    sigma = 0.5
    score = NeuralScore(Of(torch.zeros_like), Diffusion(Hypercube((1,)), VE()))
    x0, unit = torch.full((40_000, 1), 0.2, dtype=DOUBLE), float(score.preconditioning.unit(torch.tensor([[sigma]])))
    for objective, per, expected in (
        (LatentImageScoreMatching(at(sigma)), 1 / sigma, 4.0),
        (DenoisingScoreMatching(at(sigma)), unit, 1.1562),
    ):
        mean, error = mean_of(objective.terms(score, x0).loss * per**2)
        assert mean == pytest.approx(expected, abs=4 * error)


# the losses against each other ------------------------------------------------------------------------------------


def waves(x: Tensor, seed: int) -> Tensor:
    """A field of period 2 on every axis, whose Jacobian is full and not symmetric."""
    dim, generator = x.shape[-1], torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, dim, dim, generator=generator, dtype=DOUBLE).to(x)
    return (math.pi * x).sin() @ a + (math.pi * x).cos() @ b


def gap(objective, domain: Domain, sigma: float, seed: int, n: int) -> tuple[float, float]:
    """Half the difference of the losses of a field and of its negative, in units of 1: mean and standard error.

    |score|² is gone from it: what is left is −2 E[score·∇log p_σ], which every objective finds in its own way."""
    process, losses = Diffusion(domain, VE()), []
    x0 = domain.project(0.3 * domain.width * torch.rand(n, *domain.event_shape, dtype=DOUBLE) ** 2)
    noise = torch.initial_seed() + seed
    for sign in (1, -1):
        score = NeuralScore(Of(lambda x, sign=sign: sign * waves(x, seed)), process)
        losses.append(objective.terms(score, x0, torch.Generator().manual_seed(noise)).loss)
    unit = score.preconditioning.unit(torch.tensor([[sigma]], dtype=DOUBLE)).flatten()[0]
    scale = float(unit) if isinstance(objective, DenoisingScoreMatching) else 1 / sigma
    return mean_of((losses[0] - losses[1]) / 2 * scale**2)


# domain, the field that has most to do with the score there, samples
CASES = [
    (Hypercube((2,), high=2.0), 2, 40_000),
    (Simplex(4), 2, 40_000),
    (Torus((2,), 2.0), 2, 40_000),
    (RegularSimplex(3), 8, 8_000),
    (Ball(2), 2, 8_000),
]


@pytest.mark.montecarlo
@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("domain, seed, n", CASES, ids=lambda v: repr(v) if isinstance(v, Domain) else "")
def test_the_objectives_differ_by_constants(domain, seed, n, share):
    """So the losses of two scores differ by the same, whichever is asked."""
    sigma = share * domain.width
    truth, error = gap(DenoisingScoreMatching(at(sigma)), domain, sigma, seed, n)
    assert abs(truth) > 20 * error
    folds = [LatentImageScoreMatching] if isinstance(domain, FoldedDomain) else []
    for i, kind in enumerate([*folds, ImplicitScoreMatching, SlicedScoreMatching]):
        torch.manual_seed(i + 1)
        mean, other = gap(kind(at(sigma)), domain, sigma, seed, n)
        assert mean == pytest.approx(truth, abs=4.5 * math.hypot(error, other)), kind.__name__
        assert other < 0.15 * abs(truth)  # or the comparison would see nothing


def slope_of(amplitude: float):
    return lambda x: amplitude * torch.ones_like(x)


@pytest.mark.montecarlo
@pytest.mark.parametrize("claims", [False, True], ids=["damped by the objective", "not damped"])
def test_without_damping_the_boundary_term_is_missing_and_seen(claims):
    """On p = 1 + a cos πx and the score 1, E[|s|² + 2∇·s] = 1, while E|s|² − 2E[s ∂log p] = 1 − 2[p]₀¹ = 1 + 4a.

    With damping by a layer of thickness w it is E[g + 2g'], g rising from 0 at the walls to 1: nothing is missing."""
    sigma, domain = 0.3, Hypercube((1,))
    a = 0.5 * math.exp(-0.5 * (math.pi * sigma) ** 2)
    score = NeuralScore(Of(slope_of(1.0)), Diffusion(domain, VE()), Plain(claims))
    grid = ((torch.arange(4000, dtype=DOUBLE) + 0.5) / 4000)[:, None]
    x0 = cosine_data(400_000)
    mean, error = mean_of(ImplicitScoreMatching(at(sigma)).terms(score, x0).loss / sigma**2)
    # the right answer in the damped metric: E[s·Gs] − 2E[Gs·∂log p]
    p, dp = 1 + a * (math.pi * grid).cos(), -a * math.pi * (math.pi * grid).sin()
    g = domain.damp(grid, torch.ones_like(grid), torch.tensor(0.25))
    assert mean == pytest.approx(1.0 if claims else float((g * p - 2 * g * dp).mean()), abs=4 * error + 1e-9)
    # and that of the undamped loss is far from both
    assert abs(1 + 4 * a - mean) > 10 * error


def cosine_data(n: int) -> Tensor:
    """n draws of 1 + cos(πx)/2 on [0, 1], in strata: bisection of the distribution function x + sin(πx)/2π."""
    u = (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    low, high = torch.zeros(n, dtype=DOUBLE), torch.ones(n, dtype=DOUBLE)
    for _ in range(50):
        middle = (low + high) / 2
        below = middle + (math.pi * middle).sin() / (2 * math.pi) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low[:, None]


# where no kernel exists -------------------------------------------------------------------------------------------

TILT = 1.5


def tilted(n: int) -> Tensor:
    """n draws of 1 + TILT·mode on the disk, by rejection: at σ it is 1 + TILT e^{−K²σ²/2}·mode."""
    x = Disk().uniform(DOUBLE).sample((3 * n,))
    kept = x[torch.rand(3 * n, dtype=DOUBLE) * 2 < 1 + TILT * mode(x)]
    return kept[:n]


class Combination(nn.Module):
    """The score Σ θ_k feature_k(x)."""

    def __init__(self, features):
        super().__init__()
        self.features, self.theta = features, nn.Parameter(torch.zeros(3, dtype=DOUBLE))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return sum(c * f for c, f in zip(self.theta, self.features(x), strict=True))


def best_fit(objective, domain: Domain, features, preconditioning, x0: Tensor) -> tuple[Tensor, Tensor]:
    """The θ of least loss, which is quadratic in θ, and its standard error: Newton's step from 0 on each of 20 parts of the data."""
    score, found = NeuralScore(Combination(features), Diffusion(domain, VE()), preconditioning), []
    theta = score.network.theta
    for part in x0.chunk(20):
        (slope,) = torch.autograd.grad(objective(score, part), theta, create_graph=True)
        hessian = torch.stack([torch.autograd.grad(g, theta, retain_graph=True)[0] for g in slope])
        found.append(-torch.linalg.solve(hessian, slope.detach()))
    found = torch.stack(found)
    return found.mean(0), found.std(0) / math.sqrt(len(found))


def disk_features(sigma: float):
    """The truth, a field with flux through the wall, and one along it."""

    def features(x: Tensor) -> list[Tensor]:
        value, slope = torch_mode(x)
        amplitude = TILT * math.exp(-0.5 * (K * sigma) ** 2)
        return [amplitude * slope / (1 + amplitude * value)[..., None], x, x.flip(-1) * torch.tensor([1.0, -1.0])]

    return features


def torch_mode(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mode and its gradient, differentiable: J_1(Kr)/r and its derivative as power series in r²."""
    r2 = (x * x).sum(-1)
    q, bend = torch.zeros_like(r2), torch.zeros_like(r2)
    for m in range(16):
        c = (-1) ** m / (math.factorial(m) * math.factorial(m + 1)) * (K / 2) ** (2 * m + 1)
        q = q + c * r2**m
        bend = bend + 2 * m * c * r2 ** max(m - 1, 0)
    slope = bend[..., None] * x[..., :1] * x + q[..., None] * torch.tensor([1.0, 0.0], dtype=x.dtype)
    return q * x[..., 0], slope


@pytest.mark.montecarlo
@pytest.mark.parametrize("kind", [ImplicitScoreMatching, SlicedScoreMatching])
def test_the_minimiser_on_the_disk_is_the_true_score(kind):
    """In a family with flux through the wall and a score that nothing damps: the objective's own damping is enough."""
    sigma = 0.4
    theta, error = best_fit(kind(at(sigma)), Disk(), disk_features(sigma), Plain(), tilted(40_000))
    truth = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE)
    assert bool(((theta - truth).abs() < 4.5 * error + 0.005).all()), (theta, error)
    assert float(error.max()) < 0.1


@pytest.mark.montecarlo
def test_without_damping_the_minimiser_on_the_disk_has_flux_through_the_wall():
    sigma = 0.4
    theta, error = best_fit(ImplicitScoreMatching(at(sigma)), Disk(), disk_features(sigma), Plain(True), tilted(40_000))
    assert float(theta[1]) < -1 and float(error.max()) < 0.1


@pytest.mark.montecarlo
def test_training_on_a_domain_without_kernel_learns_the_score():
    """E|s − truth|²/E|truth|² on the disk at the levels trained, from 1 at the start."""
    levels, process = LogUniform(0.25, 0.5), Diffusion(Disk(), VE())
    score = NeuralScore(MLP(MLPConfig((2,), 32, 2)), process)
    data = tilted(30_000).float()
    train(
        score,
        data,
        objective=ImplicitScoreMatching(levels),
        steps=400,
        batch_size=512,
        lr=4e-3,
        ema=0.98,
        progress=False,
    )
    sigma = levels.quantile(torch.rand(4000))
    with torch.no_grad():
        x = simulate(process.domain, tilted(4000).float(), sigma)
        value, slope = torch_mode(x.double())
        amplitude = TILT * (-0.5 * (K * sigma.double()) ** 2).exp()[:, None]
        truth = amplitude * slope / (1 + amplitude * value[:, None])
        learned = score.at_level(x, sigma).double()
    assert float((learned - truth).square().mean() / truth.square().mean()) < 0.1


# the divergence, and what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [(), (3,), (2, 2)])
def test_the_diagonal_of_the_jacobian(event):
    x = torch.randn(5, *event, dtype=DOUBLE, requires_grad=True)
    theta = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    flat = x.reshape(5, -1)
    value = (theta * flat**3 + flat.roll(1, -1) * (flat.shape[-1] > 1)).reshape(x.shape)
    exact = exact_diagonal(value, x, len(event), create_graph=True)
    torch.testing.assert_close(exact, 3 * theta * x**2)
    torch.testing.assert_close(torch.autograd.grad(exact.sum(), theta)[0], 3 * (x**2).sum())
    many = sliced_diagonal(value, x, 4000, False)
    torch.testing.assert_close(many, exact, rtol=0, atol=5 / math.sqrt(4000))
    assert torch.equal(exact_diagonal(torch.ones(5, *event), x, len(event), False), torch.zeros_like(x))


@pytest.mark.parametrize("kind", [ImplicitScoreMatching, SlicedScoreMatching, LatentImageScoreMatching])
def test_objectives_are_differentiable_reproducible_and_keep_nothing_without_grad(kind):
    domain = Simplex(3, (2,))
    score, x0 = (
        NeuralScore(MLP(MLPConfig(domain.event_shape, 8, 1)), Diffusion(domain, VE())),
        domain.uniform().sample((4, 3)),
    )
    loss = kind()(score, x0, torch.Generator().manual_seed(3))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in score.parameters())
    with torch.no_grad():
        again = kind().terms(score, x0, torch.Generator().manual_seed(3))
    assert not again.loss.requires_grad and again.loss.shape == again.sigma.shape == (4, 3)
    torch.testing.assert_close(again.loss.mean(), loss.detach())


def test_objectives_refuse():
    x, bare = torch.zeros(4, 2), NeuralScore(Of(torch.zeros_like), Diffusion(Bare(), VE()))
    for objective, message in (
        (DenoisingScoreMatching(), r"DenoisingScoreMatching: got .*no heat kernel.*use .*ImplicitScoreMatching"),
        (
            LatentImageScoreMatching(),
            r"LatentImageScoreMatching: got .*expected a FoldedDomain.*use ImplicitScoreMatching",
        ),
        (ImplicitScoreMatching(), r"ImplicitScoreMatching: got .*expected a domain with boundary_distance.*define it"),
        (SlicedScoreMatching(), r"SlicedScoreMatching: got .*does not know its walls"),
    ):
        with pytest.raises(TypeError, match=message):
            objective(bare, x)
    with pytest.raises(ValueError, match=r"probes: got 0, expected a whole number of at least 1"):
        SlicedScoreMatching(probes=0)
    with pytest.raises(ValueError, match=r"x0: got shape \(4, 3\), expected"):
        ImplicitScoreMatching()(NeuralScore(Of(torch.zeros_like), Diffusion(Disk(), VE())), torch.zeros(4, 3))
    parts = Diffusion(Product(Torus((1,)), Torus((1,))), [VE(), VE(sigma_max=1.0)])
    with pytest.raises(TypeError, match=r"with a schedule for each part, expected one for all"):
        LatentImageScoreMatching()(NeuralScore(Of(torch.zeros_like), parts, EDMPreconditioning()), x)


def test_denoising_knows_the_level_of_each_part() -> None:
    """A product with a schedule per part: the joint loss is the mean of the parts' own losses, each at its own σ of the same time."""
    both = Product(Hypercube((1, 2)), Simplex(4))
    process = Diffusion(both, (VE(0.01, 2.0), EDM(0.002, 0.7)))
    score = NeuralScore(MLP(MLPConfig(both.event_shape, width=16)), process)
    x0 = both.uniform().sample((4096,), generator=torch.Generator().manual_seed(0))
    fixed = DenoisingScoreMatching(levels=LogUniform(0.3, 0.3 + 1e-9))
    with torch.no_grad():
        terms = fixed.terms(score, x0, torch.Generator().manual_seed(1))  # the network is zero at first
    sigma = torch.tensor([0.3])
    levels = process.part_sigmas(sigma)
    assert float(levels[1]) == pytest.approx(0.7 * float(process.schedule.time(0.3)), rel=1e-6)
    kernel = both.heat_kernel(x0, [v.expand(4096) for v in levels])
    _, target = kernel.sample_with_target(generator=torch.Generator().manual_seed(2))
    want = (target / score.preconditioning.unit(process.event_sigma(sigma))).square().mean(-1)
    error = (terms.loss.var() / 4096 + want.var() / 4096).sqrt()
    assert abs(float(terms.loss.mean() - want.mean())) <= 4.5 * float(error)
    assert float(terms.loss.mean()) == pytest.approx(1.0, abs=0.1)  # units of each part's own Fisher information
    t = process.schedule.time(torch.tensor(0.3))
    assert score(x0, t).shape == x0.shape and both.contains(x0).all()
    with pytest.raises(TypeError, match=r"with a schedule for each part, expected one for all"):
        score.loss(x0, ImplicitScoreMatching())


def test_the_preconditioning_of_each_part_sees_its_own_level() -> None:
    """With a network that answers 1, the score is each part's own unit, and its input does not depend on the level."""
    both = Product(Torus((1,), 2.0), Hypercube((2,), 0.0, 3.0))
    process = Diffusion(both, (VE(0.01, 2.0), EDM(0.002, 0.7)))
    score = NeuralScore(Of(lambda x: torch.ones_like(x)), process, Reflected(both, wall=False))
    t = torch.tensor(0.5)
    x = both.uniform().sample((3,), generator=torch.Generator().manual_seed(0))
    got = both.split(score(x, t))
    for value, part in zip(got, process.parts, strict=True):
        alone = Reflected(part.domain, wall=False).unit(part.schedule.sigma(t).reshape(1, 1))
        torch.testing.assert_close(value, alone.expand_as(value))


@pytest.mark.montecarlo
@pytest.mark.parametrize("period", [0.5, 3.0])
def test_the_unit_of_a_torus_scales_with_its_period(period: float) -> None:
    """The mean square of targets in units of u, at σ = 0.1 periods, is 1 within the formula's 10 % of the square and noise."""
    torus, sigma = Torus((1,), period), 0.1 * period
    x0 = torus.uniform(torch.float64).sample((20_000,), generator=torch.Generator().manual_seed(0))
    _, target = torus.heat_kernel(x0, sigma).sample_with_target(generator=torch.Generator().manual_seed(1))
    unit = Reflected(torus).unit(torch.tensor([[sigma]], dtype=torch.float64))
    assert float((target / unit).square().mean()) == pytest.approx(1.0, abs=0.1 + 5 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize(
    "domain", [Simplex(4), Polytope([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], [1.0, 1.0, 1.0])], ids=repr
)
def test_damping_leaves_the_middle_alone_at_every_level(domain: Domain) -> None:
    """Layers end half way to the centre of the largest ball inside, however large σ."""
    if isinstance(domain, Polytope):
        centre = domain.centre
    else:
        r = domain.inradius
        centre = domain.from_probabilities(
            torch.tensor([r, math.sqrt(2) * r, math.sqrt(2) * r, r], dtype=torch.float64)
        )
    v = torch.randn(domain.event_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(damp_walls(domain, centre, v, torch.tensor([40.0], dtype=torch.float64)), v)
