"""Forward processes without a kernel: their simulation, the loss on it, the grid's reference, an anharmonic drift learned and reversed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from carom.domains import Euclidean, Hypercube
from carom.processes import SDE, VE, VP, Diffusion, Kinetic, Langevin, TimeReversal
from carom.scores.neural import (
    MLP,
    Cosine,
    ImplicitScoreMatching,
    LogUniform,
    MLPConfig,
    NeuralScore,
    Reflected,
    SimulatedScoreMatching,
    VPPreconditioning,
    simulate_sde,
    train,
)
from carom.solvers import (
    BAOAB,
    MALA,
    AdaptiveSDE,
    EulerMaruyama,
    Heun,
    Milstein,
    Reflect,
    ReflectedStrang,
    WhiteNoise,
    bind,
    solve,
)
from carom.validation import GridLaw

LINE, PLANE, UNIT = Euclidean((1,)), Euclidean((2,)), Hypercube((1,))
DOUBLE = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------- simulation


def test_without_noise_each_sample_takes_euler_steps_to_its_own_time() -> None:
    sde = SDE(lambda x, t: -t * x, 0.0, LINE)
    x0, t = torch.tensor([[1.0], [2.0], [-1.0]], dtype=DOUBLE), torch.tensor([0.3, 1.0, 2.0], dtype=DOUBLE)
    expected = x0[:, 0].clone()
    for k in range(8):
        expected *= 1 - (t / 8) * (k * t / 8)
    for given in (t, t[:, None]):
        found = simulate_sde(sde, x0, given, steps=8)
        torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=1e-14)
    assert found.shape == (3, 1) and not found.requires_grad
    alone = simulate_sde(sde, x0[1:2], 1.0, steps=8)
    torch.testing.assert_close(alone, found[1:2], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("solver", "diffusion"),
    [
        (EulerMaruyama(), lambda x, t: (1 + t) * (1 + x**2 / 4)),
        (Milstein(), lambda x, t: (1 + t) * (1 + x**2 / 4)),
        (EulerMaruyama(), lambda x, t: torch.diag_embed(1 + t * x.flip(-1)) + 0.5),
    ],
    ids=["diagonal", "Milstein", "matrix"],
)
def test_a_simulation_is_the_scheme_of_its_solver_from_0_to_the_time_of_each_sample(solver, diffusion) -> None:
    sde = SDE(lambda x, t: -(1 + 3 * t) * x, diffusion, PLANE)
    x0 = torch.tensor([[0.3, -1.0], [0.8, 0.2]], dtype=DOUBLE)
    found = simulate_sde(sde, x0, torch.tensor([0.4, 1.1], dtype=DOUBLE), solver=solver, steps=6, generator=seeded(3))
    bound = sde.bound(Reflect())
    for i, t in enumerate((0.4, 1.1)):
        x, generator = x0[i : i + 1], seeded(3)
        for record in bind(solver.plan(bound, torch.linspace(0, t, 7, dtype=DOUBLE)), x):
            normals = torch.randn(2, 2, dtype=DOUBLE, generator=generator)
            x, _ = solver.step(bound, x, record, (), (normals[i : i + 1],))
        torch.testing.assert_close(found[i : i + 1], x, rtol=0, atol=1e-13)


def test_what_is_done_unless_told() -> None:
    """64 steps, of Euler–Maruyama, and nothing to differentiate, though the drift may be a network; an objective's solver is its own."""
    times, rate = [], torch.ones((), dtype=DOUBLE, requires_grad=True)

    def drift(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(t)
        return -rate * x

    sde, x0 = SDE(drift, lambda x, t: 1 + 0.5 * x, LINE), torch.ones(5, 1, dtype=DOUBLE)
    assert not simulate_sde(sde, x0, 0.5).requires_grad and len(times) == 64
    assert SimulatedScoreMatching(sde).steps == 64
    score = Linear(Diffusion(LINE, VP(2.0, 2.0)), -0.7)
    losses = [
        SimulatedScoreMatching(sde, steps=4, **settings).terms(score, x0, seeded(1)).loss
        for settings in ({}, {"solver": EulerMaruyama()}, {"solver": Milstein()})
    ]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_a_linear_sde_has_the_moments_of_its_scheme_for_scalar_and_matrix_noise() -> None:
    n, t, steps = 40000, 0.8, 5
    h, z = t / steps, torch.zeros(n, 2, dtype=DOUBLE)
    matrix = torch.tensor([[1.0, 0.0], [0.7, 0.4]], dtype=DOUBLE)
    growth = sum((1 - h) ** (2 * k) * h for k in range(steps))
    for diffusion, unit in ((1.3, 1.69 * torch.eye(2, dtype=DOUBLE)), (matrix, matrix @ matrix.T)):
        x = simulate_sde(SDE(lambda x, t: -x, diffusion, PLANE), z + 1, t, steps=steps, generator=seeded())
        covariance, expected = torch.cov(x.T), growth * unit
        # standard errors of a mean and of a covariance of n normals; five of them for five numbers
        error = (torch.outer(expected.diagonal(), expected.diagonal()) + expected**2).div(n).sqrt()
        assert bool(((covariance - expected).abs() < 5 * error).all())
        assert bool(((x.mean(0) - (1 - h) ** steps).abs() < 5 * (expected.diagonal() / n).sqrt()).all())


def test_a_callable_matrix_is_told_from_diagonals_where_the_batch_is_as_large_as_the_event() -> None:
    matrix = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=DOUBLE)
    sde = SDE(lambda x, t: 0 * x, lambda x, t: matrix, PLANE)
    x = simulate_sde(sde, torch.zeros(2, 2, dtype=DOUBLE), torch.tensor([0.5, 1.0], dtype=DOUBLE), steps=3)
    # only the first coordinate is moved, by the second's normals
    assert not bool(x[:, 1].any()) and bool((x[:, 0] != 0).all())


def test_milstein_is_nearer_to_the_path_of_geometric_brownian_motion() -> None:
    sde, x0, steps = SDE(lambda x, t: 0 * x, lambda x, t: 0.8 * x, LINE), torch.ones(4000, 1, dtype=DOUBLE), 16
    draws = torch.stack([torch.randn(4000, 1, dtype=DOUBLE, generator=g) for g in [seeded(4)] for _ in range(steps)])
    exact = (0.8 * draws.sum(0) / math.sqrt(steps) - 0.32).exp()
    errors = [
        float(
            (simulate_sde(sde, x0, 1.0, solver=solver, steps=steps, generator=seeded(4)) - exact).square().mean().sqrt()
        )
        for solver in (EulerMaruyama(), Milstein())
    ]
    # strong orders ½ and 1: leading terms ½σ²√h·√(2·…) against σ³h: a ratio of about 3 at h = 1/16
    assert errors[1] < 0.5 * errors[0] < 0.2


@pytest.mark.parametrize("solver", [None, ReflectedStrang()])
def test_walls_reflect_and_the_heat_kernel_decays_as_it_should(solver) -> None:
    sde = SDE(lambda x, t: 0 * x, 1.0, UNIT)
    x = simulate_sde(sde, torch.full((20000, 1), 0.2, dtype=DOUBLE), 0.1, solver=solver, steps=4, generator=seeded())
    assert bool(UNIT.contains(x).all())
    found = (math.pi * x).cos()
    # reflection of Brownian steps on an interval is exact: the first mode decays as e^{−π²t/2}
    expected = math.exp(-0.05 * math.pi**2) * math.cos(0.2 * math.pi)
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(20000)


# ---------------------------------------------------------------------------------------------------- the loss


class Linear(NeuralScore):
    """score(X) = slope·X + shift at every level."""

    def __init__(self, process: Diffusion, slope: float, shift: float = 0.0, **settings):
        super().__init__(MLP(MLPConfig((1,), width=8, depth=1)), process, **settings)
        self.slope, self.shift = slope, shift

    def at_level(self, x, sigma, **condition):
        return self.slope * x + self.shift


@pytest.mark.parametrize("probes", [None, 1])
def test_on_the_clocks_own_sde_the_loss_is_that_of_implicit_score_matching(probes) -> None:
    process = Diffusion(LINE, VP(2.0, 2.0))
    sde = SDE(lambda x, t: -x, math.sqrt(2), LINE)
    levels = LogUniform(0.3, 1.0)
    score = Linear(process, -0.7)
    x0 = 0.5 + 0.5 * torch.randn(20000, 1, dtype=DOUBLE, generator=seeded(1))
    with torch.no_grad():
        ours = SimulatedScoreMatching(sde, steps=64, levels=levels, probes=probes).terms(score, x0, seeded(2)).loss
        theirs = ImplicitScoreMatching(levels=levels).terms(score, x0, seeded(3)).loss
    error = math.hypot(float(ours.std()), float(theirs.std())) / math.sqrt(20000)
    # 64 steps leave a bias of t/128 < 0.3 % of the variance of x, well below one standard error
    assert abs(float(ours.mean() - theirs.mean())) < 4 * error
    assert float(ours.std()) > 0 and not ours.requires_grad


def test_a_drift_into_a_wall_makes_a_score_there_and_the_loss_finds_it() -> None:
    # f = −1, g = 1 reflected on [0, 1] keeps p ∝ e^{−2x}, whose score −2 does not vanish at the walls
    sde = SDE(lambda x, t: -torch.ones_like(x), 1.0, UNIT)
    process, n = Diffusion(UNIT, VE()), 40000
    u = torch.rand(n, 1, dtype=DOUBLE, generator=seeded(1))
    x0 = -0.5 * (1 - u * (1 - math.exp(-2))).log()
    objective = SimulatedScoreMatching(sde, steps=128, levels=LogUniform(0.2, 0.3), weight=lambda sigma: 1 / sigma**2)
    # with the damping G the loss of a constant c is (c² + 4c) E[G]: least at c = −2; undamped it would be c²
    losses = []
    for c in (-1.0, -2.0, -3.0):
        score = Linear(process, 0.0, c, preconditioning=Reflected(UNIT, wall=False))
        with torch.no_grad():
            losses.append(float(objective.terms(score, x0, seeded(2)).loss.mean()))
    # one seed, one set of states: loss = c²a + 2cb, so that three fix a and b, and −b/a is the best c. Euler's reflection misplaces
    # mass within √h ~ 0.02 of walls, a tenth of the layer, and b has a standard error of a few per cent
    a = 0.5 * (losses[0] - 2 * losses[1] + losses[2])
    b = 0.25 * (losses[0] - losses[2] + 8 * a)
    assert -b / a == pytest.approx(-2.0, rel=0.15)


# ------------------------------------------------------------------------------------------------ the reference


def test_the_grid_has_the_laws_of_the_ornstein_uhlenbeck_process_to_second_order() -> None:
    def law(points: int) -> GridLaw:
        return GridLaw(lambda x, t: -x, math.sqrt(2), lambda x: (-((x - 0.5) ** 2) / 0.5).exp(), -7, 8, points)

    mean, variance = 0.5 * math.exp(-0.4), 0.25 * math.exp(-0.8) + 1 - math.exp(-0.8)
    errors = []
    for points in (201, 401, 801):
        grid = law(points)
        exact = (mean - grid.x) / variance
        inside = abs(grid.x - mean) < 3
        errors.append(abs(grid.score(0.4) - exact)[inside].max())
        assert grid.mean(lambda x: 0 * x + 1, 0.4) == pytest.approx(1, abs=1e-12)
    for before, after in itertools.pairwise(errors):
        assert math.log2(before / after) == pytest.approx(2, abs=0.1)
    assert grid.mean(lambda x: x, 0.4) == pytest.approx(mean, abs=1e-4)
    assert grid.mean(lambda x: x**2, 0.4) == pytest.approx(variance + mean**2, abs=1e-3)
    # Fisher's divergence of a score wrong by δ is δ², and ½g²∫δ² dt = 0.01·0.9
    wrong = lambda x, t: (0.5 * (-t).exp() - x) / (0.25 * (-2 * t).exp() - (-2 * t).expm1()) + 0.1
    assert grid.fisher(wrong, 0.4) == pytest.approx(0.01, rel=1e-2)
    assert grid.divergence(wrong, 0.1, 1.0) == pytest.approx(0.009, rel=1e-2)


def test_the_grid_keeps_the_stationary_law_of_an_anharmonic_drift() -> None:
    stationary = lambda x: (-(x**2) / 2 - x**4 / 8).exp()
    grid = GridLaw(cubic, math.sqrt(6), stationary, -4, 4, 401)
    p = grid.density(5.0)
    assert abs(p - grid.density(0.0)).max() < 1e-11
    # and forever: the eigenvalue 0 of this law would come with rounding
    assert abs(grid.density(1e13) - grid.density(0.0)).max() < 1e-11
    assert len(GridLaw(cubic, math.sqrt(6), stationary, -4, 4).x) == 801


def test_where_a_density_is_rounding_it_is_not_negative_and_has_no_score() -> None:
    grid = GridLaw(lambda x, t: -x, math.sqrt(2), lambda x: (-((x - 0.5) ** 2) / 0.5).exp(), -9, 9, 401)
    p, score = grid.density(0.05), grid.score(0.05)
    assert (p >= 0).all() and bool(torch.tensor(score).isnan()[abs(torch.tensor(grid.x)) > 8].all())
    assert bool(torch.tensor(score).isfinite()[abs(torch.tensor(grid.x) - 0.5) < 1].all())


def test_the_divergence_is_an_integral_over_time() -> None:
    """A score wrong by t/10 in N(0, 1), stationary: ½g²∫ .01 t² dt over [.1, 1] = .00333, to the .01 of the grid's own score."""
    grid = GridLaw(lambda x, t: -x, math.sqrt(2), lambda x: (-(x**2) / 2).exp(), -7, 7, 801)
    found = grid.divergence(lambda x, t: -x + 0.1 * t, 0.1, 1.0)
    assert found == pytest.approx(0.01 * (1 - 0.1**3) / 3, rel=1e-2)


def cubic(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -3 * (x + x**3 / 2)


# --------------------------------------------------------------------------------------- learned and reversed


class Epsilon(nn.Module):
    """−std times the stationary score 2f/g², and a correction that is learned."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 2))

    def forward(self, x, t):
        std, late = (1 - (-6 * t[:, None]).exp()).sqrt(), 1 + t[:, None].log() / 2
        shift, slope = self.body(torch.cat([x, 2 * std - 1, late], -1)).chunk(2, -1)
        return std * (x + x**3 / 2) + shift + slope * x


def test_an_anharmonic_process_is_learned_and_its_reversal_gives_the_data_back() -> None:
    generator = seeded(5)
    side = (torch.rand(20000, 1, generator=generator) < 0.7).float()
    data = 1.8 * side - 1 + 0.3 * torch.randn(20000, 1, generator=generator)
    sde = SDE(cubic, math.sqrt(6), LINE)
    score = NeuralScore(Epsilon(), Diffusion(LINE, VP(6, 6)), VPPreconditioning(6, 6, M=2))
    objective = SimulatedScoreMatching(sde, steps=48, levels=LogUniform(0.25, 20.0), weight=lambda s: 1 + s**-2)
    law = GridLaw(
        cubic,
        math.sqrt(6),
        lambda x: 0.3 * (-((x + 1) ** 2) / 0.18).exp() + 0.7 * (-((x - 0.8) ** 2) / 0.18).exp(),
        -4,
        4,
    )
    stationary = law.divergence(lambda x, t: -x - x**3 / 2, 0.01, 1.0)
    train(score, data, objective=objective, steps=300, batch_size=256, lr=Cosine(2e-2, 300), ema=None, progress=False)
    found = law.divergence(score, 0.01, 1.0)
    # three quarters of what there is to learn; 48 steps of Euler leave about 0.01 of bias, 300 batches the rest
    assert found < 0.25 * stationary
    start = solve(sde, data[:2000], torch.linspace(0, 3, 601), EulerMaruyama(), noise=WhiteNoise(1)).x
    times = torch.linspace(1, 0.1, 201) ** 2
    with torch.no_grad():
        x = solve(TimeReversal(sde, score), start, times, EulerMaruyama(), noise=WhiteNoise(2)).x
    for power in (1, 2, 3):
        exact = law.mean(lambda v, p=power: v**p, 0.01)
        deviation = math.sqrt(law.mean(lambda v, p=power: v ** (2 * p), 0.01) - exact**2)
        # four standard errors, and what KL ≤ found allows: |E_p f − E_q f| ≤ √(2 KL Var f) to first order
        allowed = deviation * (4 / math.sqrt(len(x)) + math.sqrt(2 * found))
        assert abs(float((x**power).mean()) - exact) < allowed
    # the stationary law, whose mean is 0, is further off than that
    assert abs(float(start.mean()) - law.mean(lambda v: v, 0.01)) > 0.2


def test_training_resumes_from_its_file_with_the_same_settings_only(tmp_path) -> None:
    sde, place = SDE(lambda x, t: -x, math.sqrt(2), LINE), tmp_path / "score.safetensors"
    data = torch.randn(64, 1, generator=seeded())

    def run(steps: int, into=None, resume=False, simulated=4) -> NeuralScore:
        torch.manual_seed(0)
        score = NeuralScore(MLP(MLPConfig((1,), width=8, depth=1)), Diffusion(LINE, VP(6, 6)))
        objective = SimulatedScoreMatching(sde, steps=simulated)
        train(
            score, data, objective=objective, steps=steps, batch_size=8, checkpoint=into, resume=resume, progress=False
        )
        return score

    whole = run(4)
    run(2, place)
    resumed = run(4, place, resume=True)
    for a, b in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="another training"):
        run(6, place, resume=True, simulated=5)


# ---------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_simulated_is_refused() -> None:
    sde, x0 = SDE(lambda x, t: -x, 1.0, LINE), torch.zeros(3, 1)
    with pytest.raises(TypeError, match="sde: got Diffusion"):
        SimulatedScoreMatching(Diffusion(LINE, VP()))
    with pytest.raises(TypeError, match="sde: got TimeReversal"):
        simulate_sde(TimeReversal(sde, lambda x, t: -x), x0, 1.0)
    for solver in (Heun(), AdaptiveSDE(), "euler"):
        with pytest.raises(TypeError, match="solver: got"):
            SimulatedScoreMatching(sde, solver=solver)
    # these take an equation of their own, which on a clock it no longer is
    for equation, rule in (
        (Kinetic(lambda x: -x, LINE), BAOAB()),
        (Langevin(lambda x: -x, LINE, lambda x: x[..., 0]), MALA()),
    ):
        with pytest.raises(TypeError, match="expected one of fixed steps that takes any SDE"):
            simulate_sde(equation, torch.zeros(3, *equation.domain.event_shape), 1.0, solver=rule)
    with pytest.raises(ValueError, match="t: got inf to inf, expected finite times"):
        simulate_sde(sde, x0, math.inf)
    with pytest.raises(ValueError, match="steps: got 0"):
        simulate_sde(sde, x0, 1.0, steps=0)
    with pytest.raises(ValueError, match="t: got 0"):
        simulate_sde(sde, x0, torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="lie outside"):
        simulate_sde(SDE(lambda x, t: -x, 1.0, UNIT), x0 - 1, 1.0)
    with pytest.raises(ValueError, match="probes: got 0"):
        SimulatedScoreMatching(sde, probes=0)
    score = NeuralScore(MLP(MLPConfig((2,), width=8, depth=1)), Diffusion(PLANE, VP()))
    with pytest.raises(TypeError, match="the score's domain"):
        score.loss(torch.zeros(3, 2), SimulatedScoreMatching(sde))
    with pytest.raises(ValueError, match="varies by"):
        GridLaw(lambda x, t: -(x**3), 0.1, lambda x: 1 + 0 * x, -4, 4)
    with pytest.raises(ValueError, match="density: got"):
        GridLaw(lambda x, t: -x, 1.0, lambda x: -1 + 0 * x, -4, 4)
    for nothing in (lambda x: 0 * x, lambda x: 0 * x + math.inf, lambda x: math.nan * x):
        with pytest.raises(ValueError, match="density: got"):
            GridLaw(lambda x, t: -x, 1.0, nothing, -4, 4, 5)
    settings = {
        "drift": lambda x, t: -x,
        "noise": 1.0,
        "density": lambda x: 1 + 0 * x,
        "low": -4,
        "high": 4,
        "points": 5,
    }
    for change, message in (
        ({"noise": 0.0}, "noise: got 0"),
        ({"high": -4}, "high: got -4"),
        ({"low": math.nan}, "low: got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            GridLaw(**settings | change)
    with pytest.raises(ValueError, match="t: got -1"):
        GridLaw(**settings).density(-1.0)
    for ends, message in (((0.0, 1.0), "low: got 0"), ((1.0, 1.0), "high: got 1")):
        with pytest.raises(ValueError, match=message):
            GridLaw(**settings).divergence(lambda x, t: -x, *ends)
    with pytest.raises(ValueError, match="points: got 2"):
        GridLaw(lambda x, t: -x, 1.0, lambda x: 1 + 0 * x, -4, 4, points=2)
