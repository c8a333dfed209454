"""Scores that are gradients: of any energy, and of a scalar made of a network."""

import math

import pytest
import torch
from torch import nn

from carom.domains import Euclidean, Hypercube, RegularSimplex
from carom.processes import VE, VP, Diffusion
from carom.scores import EnergyScore, GaussianMixtureScore
from carom.scores.neural import (
    MLP,
    Conservative,
    DenoisingScoreMatching,
    DiT,
    DiTConfig,
    EDMPreconditioning,
    EquivariantConfig,
    EquivariantMLP,
    MLPConfig,
    NeuralScore,
    Reflected,
    SlicedScoreMatching,
    UNet,
    UNetConfig,
    train,
)
from carom.solvers import AdaptiveODE, Heun, karras, sample, solve

PROCESS = Diffusion(Euclidean((2,)), VP())
MIXTURE = GaussianMixtureScore(
    PROCESS, [0.3, 0.7], [[0.0, 1.0], [2.0, -1.0]], [[[1.0, 0.3], [0.3, 0.5]], [[0.2, 0.0], [0.0, 0.4]]]
)


def minus_log(x: torch.Tensor, t) -> torch.Tensor:
    return -MIXTURE.log_prob(x, t)


class Bowl(nn.Module):
    """E = ½ k |x|² − b·x with parameters k, and b chosen by a label: the score is b − kx."""

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        self.b = nn.Embedding(4, 2, dtype=torch.float64)

    def forward(self, x, t, label):
        return 0.5 * self.k * x.square().sum(-1) - (self.b(label) * x).sum(-1)


def randomise(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.2)
    return network


# any energy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [None, PROCESS], ids=["alone", "process"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_the_energy_of_a_mixture_gives_its_score(process, batch):
    x, score = torch.randn(*batch, 2, dtype=torch.float64), EnergyScore(minus_log, process)
    t = torch.rand(*batch, 1, dtype=torch.float64) * 0.9 + 0.05
    for level in (t, 0.3, torch.tensor(0.3, dtype=torch.float64)):
        got = score(x, level)
        assert got.shape == x.shape and got.dtype == x.dtype and not got.requires_grad
        torch.testing.assert_close(got, MIXTURE(x, level), rtol=1e-12, atol=1e-12)  # float64 rounding
    torch.testing.assert_close(score.log_density(x, t), MIXTURE.log_prob(x, t), rtol=0, atol=0)
    low = score(x.float(), 0.3)
    assert low.dtype == torch.float32
    # float32 through a log-sum-exp of terms of size 10
    torch.testing.assert_close(low, MIXTURE(x, 0.3).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_every_grad_mode_gives_the_same_score(mode):
    score = EnergyScore(minus_log, PROCESS)
    with mode():
        x, t = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2), torch.tensor(0.3, dtype=torch.float64)
        torch.testing.assert_close(score(x, t), MIXTURE(x, t), rtol=1e-12, atol=1e-12)
        assert not score(x, t).requires_grad


@pytest.mark.parametrize("solver", [Heun(), AdaptiveODE(rtol=1e-6, atol=1e-6)], ids=repr)
def test_it_is_solved_through_as_the_mixture_is(solver):
    """The adaptive solver evaluates rows at work only, each at a time of its own."""
    start = torch.randn(3, 2, dtype=torch.float64)
    ends = [
        sample(PROCESS, score, solver, karras(PROCESS, 8), shape=(3,), initial=start, seed=0).x
        for score in (EnergyScore(minus_log), MIXTURE)
    ]
    assert not ends[0].requires_grad
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)  # rounding, amplified by the flow


def test_solve_differentiates_through_the_energy_where_grad_is_enabled():
    """d/dk of a step of Euler-like flow: what autograd gives through solve equals a difference quotient."""
    energy = Bowl()
    score, x = EnergyScore(energy), torch.ones(1, 2, dtype=torch.float64)
    label = torch.tensor([1])

    def end() -> torch.Tensor:
        flow = PROCESS.flow(lambda x, t: score(x, t, label=label))
        return solve(flow, x, [0.5, 0.4, 0.3], Heun()).x.sum()

    end().backward()
    slope, h = float(energy.k.grad), 1e-5
    with torch.no_grad():
        energy.k += h
        high = float(end())
        energy.k -= 2 * h
        low = float(end())
    assert slope == pytest.approx((high - low) / (2 * h), rel=1e-7) and abs(slope) > 1e-3


def test_a_module_shows_its_parameters_and_takes_conditions():
    energy = Bowl()
    score, x, label = EnergyScore(energy), torch.randn(4, 2, dtype=torch.float64), torch.arange(4)
    assert dict(score.named_parameters()).keys() == {"energy.k", "energy.b.weight"}
    got = score(x, 0.5, label=label)
    torch.testing.assert_close(got, energy.b.weight - energy.k * x, rtol=1e-13, atol=1e-13)
    got.sum().backward()
    torch.testing.assert_close(energy.k.grad, -x.sum(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(energy.b.weight.grad, torch.ones(4, 2, dtype=torch.float64))
    assert not list(EnergyScore(minus_log).parameters())


def test_it_differentiates_further_and_compiles_whole():
    score = EnergyScore(minus_log, PROCESS)
    x, t = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: score(v, t), (x,))
    compiled = torch.compile(score, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x.detach(), t), MIXTURE(x.detach(), t), rtol=1e-12, atol=1e-12)


def test_rows_are_those_of_the_energy():
    class Sorted:
        """An energy that belongs to the rows of a batch."""

        def __init__(self, centres):
            self.centres = centres

        def __call__(self, x, t):
            return 0.5 * (x - self.centres).square().sum(-1)

        def rows(self, index):
            return None if len(index) == 0 else Sorted(self.centres[index])

    centres, x = torch.randn(4, 2), torch.randn(4, 2)
    score, index = EnergyScore(Sorted(centres)), torch.tensor([2, 0])
    torch.testing.assert_close(score.rows(index)(x[index], 0.3), (centres - x)[index])
    assert score.rows(index[:0]) is None
    plain = EnergyScore(minus_log)
    assert plain.rows(index) is plain


def test_energies_that_are_none_are_refused():
    x = torch.zeros(4, 2)
    with pytest.raises(
        ValueError, match=r"energy: got an output of shape \(4, 2\) for x of shape \(4, 2\).*sum it over"
    ):
        EnergyScore(lambda x, t: x)(x, 0.3)
    for energy in (lambda x, t: x.sum(-1, keepdim=True), lambda x, t: x.sum(0)):
        with pytest.raises(ValueError, match=r"energy: got an output of shape .*expected one number per sample"):
            EnergyScore(energy)(x, 0.3)
    with pytest.raises(ValueError, match=r"energy: got an output of shape \(\) for x of shape \(4, 2\)"):
        EnergyScore(lambda x, t: x.sum(), PROCESS)(x, 0.3)
    with pytest.raises(TypeError, match=r"energy: got an output of type float"):
        EnergyScore(lambda x, t: 1.0)(x, 0.3)
    with pytest.raises(ValueError, match=r"x: got shape \(4, 3\), expected \[\*batch, 2\]"):
        EnergyScore(minus_log, PROCESS)(torch.zeros(4, 3), 0.3)
    with pytest.raises(TypeError, match=r"energy: got int, expected a callable"):
        EnergyScore(3)
    with pytest.raises(TypeError, match=r"process: got VP, expected a Diffusion"):
        EnergyScore(minus_log, VP())
    number = EnergyScore(lambda x, t: 0.5 * x**2, Diffusion(Euclidean(()), VP()))
    assert torch.equal(number(torch.arange(3.0), 0.3), -torch.arange(3.0))


# networks that are gradients --------------------------------------------------------------------------------------


def jacobian(function, x: torch.Tensor) -> torch.Tensor:
    size = x.numel()
    return torch.autograd.functional.jacobian(function, x).reshape(size, size)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_the_jacobian_of_a_conservative_network_is_symmetric(kind, dtype, bound):
    make = {
        "mlp": lambda: MLP(MLPConfig((1, 4, 4), 16, 2)),
        "unet": lambda: UNet(UNetConfig(channels=8, multipliers=(1, 2), heads=2)),
    }[kind]
    inner = randomise(make()).to(dtype).eval()
    x, c_noise = torch.randn(1, 1, 4, 4, dtype=dtype), torch.zeros(1, dtype=dtype)
    free, bowed = (jacobian(lambda v, n=n: n(v, c_noise), x) for n in (inner, Conservative(inner)))
    # relative to its size; the network inside is far from it
    assert (bowed - bowed.T).abs().max() < bound * bowed.abs().max() * 10
    assert (free - free.T).abs().max() > 0.05 * free.abs().max()


def test_it_is_minus_the_slope_of_its_energy_and_keeps_gradients_of_quadratics():
    network = Conservative(randomise(MLP(MLPConfig((3,), 16, 1, classes=2))).double().eval())
    x, c_noise = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.zeros(4, dtype=torch.float64)
    energy = network.energy(x, c_noise, label=1)
    assert energy.shape == (4,)
    (slope,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(network(x, c_noise, label=1), -slope, rtol=1e-12, atol=1e-13)

    class Quadratic(nn.Module):
        def forward(self, x, c_noise):
            return x @ torch.tensor([[2.0, 1.0], [1.0, -3.0]], dtype=x.dtype)

    x = torch.randn(4, 2)
    torch.testing.assert_close(Conservative(Quadratic())(x, c_noise), Quadratic()(x, c_noise))


@pytest.mark.parametrize("process", [PROCESS, Diffusion(Hypercube((2,)), VE())], ids=["edm", "reflected"])
def test_the_score_of_a_conservative_network_is_a_gradient_where_nothing_is_damped(process):
    bounded = process.domain.bounded
    preconditioning = Reflected(process.domain, wall=False) if bounded else EDMPreconditioning()
    score = NeuralScore(Conservative(randomise(MLP(MLPConfig((2,), 16, 2))).double()), process, preconditioning)
    slope = jacobian(lambda v: score(v, 0.3), torch.rand(1, 2, dtype=torch.float64))
    assert (slope - slope.T).abs().max() < 1e-12 * slope.abs().max() * 10
    plain = NeuralScore(score.network.network, process, preconditioning)
    slope = jacobian(lambda v: plain(v, 0.3), torch.rand(1, 2, dtype=torch.float64))
    assert (slope - slope.T).abs().max() > 1e-3 * slope.abs().max()


@pytest.mark.parametrize("objective", [DenoisingScoreMatching(), SlicedScoreMatching()], ids=["denoising", "sliced"])
@pytest.mark.parametrize("kind", ["mlp", "dit", "equivariant", "unet"])
def test_losses_differentiate_by_every_parameter(kind, objective):
    """Against a difference quotient along a random direction: up to third derivatives, where PyTorch's own layer norm is wrong."""
    image = Hypercube((1, 4, 4))
    inner, domain = {
        "mlp": (lambda: MLP(MLPConfig((2,), 8, 1)), Hypercube((2,))),
        "dit": (lambda: DiT(DiTConfig(1, 4, 2, 8, 1, 2)), image),
        "equivariant": (lambda: EquivariantMLP(EquivariantConfig(3, 8, 1)), RegularSimplex(3)),
        "unet": (lambda: UNet(UNetConfig(channels=4, multipliers=(1,), heads=2)), image),
    }[kind]
    score = NeuralScore(Conservative(randomise(inner()).double()), Diffusion(domain, VE()))
    x0 = domain.uniform(torch.float64).sample((8,))

    def loss() -> torch.Tensor:
        return score.loss(x0, objective, torch.Generator().manual_seed(1))

    loss().backward()
    parameters = list(score.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
    values, h = [], 1e-5
    for step in (h, -2 * h):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
        values.append(float(loss().detach()))
    # h² of the quotient, and eps/h of its rounding
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5) and abs(slope) > 1e-4


def test_training_lowers_the_loss_and_the_file_rebuilds_the_network(tmp_path):
    torch.manual_seed(0)
    process = Diffusion(Hypercube((1, 4, 4)), VE())
    network = Conservative(UNet(UNetConfig(channels=8, multipliers=(1,), heads=2)))
    score = NeuralScore(network, process)
    data = 0.2 + 0.1 * torch.rand(64, 1, 4, 4)
    path = tmp_path / "score"
    result = train(score, data, steps=20, lr=1e-2, warmup=2, batch_size=16, ema=0.9, progress=False, checkpoint=path)
    first, last = sum(result.losses[:5]) / 5, sum(result.losses[-5:]) / 5
    assert last < 0.9 * first
    loaded, x = NeuralScore.load(path), torch.rand(3, 1, 4, 4)
    assert isinstance(loaded.network, Conservative) and loaded.network.config == network.config
    assert torch.equal(loaded(x, 0.4), score(x, 0.4)) and not math.isnan(float(loaded(x, 0.4).sum()))


def test_a_network_of_ones_own_inside_is_asked_for(tmp_path):
    class Own(nn.Linear):
        def forward(self, x, c_noise):
            return super().forward(x)

    score = NeuralScore(Conservative(Own(2, 2)), PROCESS)
    score.save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"network: got class 'Own'.*build it yourself"):
        NeuralScore.load(tmp_path / "a")
    loaded, x = NeuralScore.load(tmp_path / "a", Conservative(Own(2, 2))), torch.randn(3, 2)
    assert torch.equal(loaded(x, 0.3), score(x, 0.3))
    with pytest.raises(TypeError, match=r"Conservative: got function, expected an nn\.Module"):
        Conservative(lambda x, c: x)
