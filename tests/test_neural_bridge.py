"""Mean-matching IPF from samples: against its population limit, between walls, short neural trainings, refusals."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carom.domains import Ball, Euclidean, Hypercube, Polytope, Torus
from carom.scores.neural import (
    MLP,
    DiffusionSchroedingerBridge,
    LinearRegressor,
    MLPConfig,
    NeuralRegressor,
    NeuralScore,
    Regressor,
    checkpoint,
)
from carom.scores.neural.regressors import Paths
from carom.solvers import ReflectedEulerMaruyama, WhiteNoise, bridge, solve

Draw = Callable[[int, torch.Generator], Tensor]


def gaussian(mean: list[float], root: list[list[float]]) -> Draw:
    """N(mean, root rootᵀ) in float64."""
    m, r = torch.tensor(mean, dtype=torch.float64), torch.tensor(root, dtype=torch.float64)
    return lambda n, generator: m + torch.randn(n, len(m), generator=generator, dtype=torch.float64) @ r.T


def law(mean: list[float], root: list[list[float]]) -> tuple[Tensor, Tensor]:
    r = torch.tensor(root, dtype=torch.float64)
    return torch.tensor(mean, dtype=torch.float64), r @ r.T


def linear(domain: Any, sigma: float, **settings: Any) -> DiffusionSchroedingerBridge:
    return DiffusionSchroedingerBridge(domain, sigma, LinearRegressor(), LinearRegressor(2), **settings)


def network(width: int = 32) -> nn.Module:
    return MLP(MLPConfig((1,), width=width, depth=1))


class Bins(Regressor):
    """The mean target in each of ``count`` cells of [0, 1], step by step: a regression that can be any function."""

    def __init__(self, count: int):
        self.count = count

    def fit(self, draw: Callable[[], Any], generator: torch.Generator) -> float:
        states, targets = draw()
        self.table = torch.zeros(len(states), self.count, dtype=states.dtype)
        for k, (x, y) in enumerate(zip(states[..., 0], targets[..., 0], strict=True)):
            cell = self._cell(x)
            sums = torch.zeros(self.count, dtype=x.dtype).index_add(0, cell, y)
            self.table[k] = sums / torch.bincount(cell, minlength=self.count)
        return 0.0

    def _cell(self, x: Tensor) -> Tensor:
        return (x * self.count).long().clamp(max=self.count - 1)

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        return self.table[step.expand(len(x)), self._cell(x[:, 0])][:, None]


# ------------------------------------------------------------------------------------------------- exact regression


def test_linear_regression_on_samples_comes_to_the_population_limit() -> None:
    """Four half iterations in two dimensions, Ornstein–Uhlenbeck reference; errors of the regressions add to those of the sample, so that
    four standard errors of moments of 40,000 are allowed, times 2."""
    start, end = ([0.5, -0.3], [[0.7, 0.0], [0.3, 0.5]]), ([-0.5, 0.4], [[1.0, 0.2], [0.0, 0.8]])
    sigma, rate, n = 0.9, 0.6, 40_000
    exact = bridge.mean_matching(bridge.gaussian(law(*start), law(*end), sigma, rate=rate), 6, 4)
    learned = linear(Euclidean((2,)), sigma, times=6, drift=lambda x, t: -rate * x)
    residuals = learned.fit(gaussian(*start), gaussian(*end), halves=4, paths=n)
    assert len(residuals) == 4 and learned.halves == 4
    tolerance = 8 / math.sqrt(n)
    for backward, source, chain in ((True, end, exact[2]), (False, start, exact[3])):
        x = gaussian(*source)(n, torch.Generator().manual_seed(7))
        reached = learned.sample(x, backward=backward, seed=8).x
        mean, covariance = chain.marginals()[0 if backward else -1]
        torch.testing.assert_close(reached.mean(0), mean, rtol=0, atol=tolerance)
        torch.testing.assert_close(reached.T.cov(), covariance, rtol=0, atol=2 * tolerance)


def test_the_residual_is_the_noise_of_the_target() -> None:
    """From a point mass Brownian motion has E[X0 | X_1] known and each step's target a variance of its own: σ²/h · t_k/t_{k+1}."""
    n, steps = 20_000, 4
    learned = linear(Euclidean((1,)), 1.0, times=steps)
    point = torch.zeros(1, 1, dtype=torch.float64)
    residual = learned.fit(point, point, halves=1, paths=n)[0]
    expected = sum(steps * k / (k + 1) for k in range(steps)) / steps
    # a mean of 80,000 squares of normals, of relative standard deviation √2
    assert residual == pytest.approx(expected, rel=4 * math.sqrt(2 / (n * steps)))


def test_half_iterations_go_on_where_they_ended_and_depend_on_the_seed_alone() -> None:
    start, end = gaussian([0.0], [[0.5]]), gaussian([1.0], [[1.0]])
    whole, again, parts = (linear(Euclidean((1,)), 1.0, times=3) for _ in range(3))
    seen: list[tuple[int, float]] = []
    losses = whole.fit(start, end, halves=2, paths=100, log=lambda half, loss: seen.append((half, loss)))
    assert seen == list(enumerate(losses, 1))
    assert again.fit(start, end, halves=2, paths=100) == losses
    assert parts.fit(start, end, halves=1, paths=100) + parts.fit(start, end, halves=1, paths=100) == losses
    assert parts.halves == 2
    assert linear(Euclidean((1,)), 1.0, times=3).fit(start, end, halves=2, paths=100, seed=1) != losses
    drawn: list[Tensor] = []
    linear(Euclidean((1,)), 1.0).fit(lambda n, g: drawn.append(start(n, g)) or drawn[-1], end, halves=3, paths=100)
    assert len({float(x[0]) for x in drawn}) == len(drawn)  # no noise is used twice
    x = start(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole.sample(x, seed=0).x, again.sample(x, seed=0).x, rtol=0, atol=0)


def test_the_sampler_is_the_chain_that_was_fitted() -> None:
    """Each step reads the rate of its own index, in both directions, also on a grid that is not equidistant and in float32; its noise taken
    away (σ → 0), a path is the sum of h·rate."""

    class Index(Regressor):
        def fit(self, draw: Any, generator: torch.Generator) -> float:
            self.seen = draw()
            return 0.0

        def __call__(self, x: Tensor, step: Tensor) -> Tensor:
            return (10.0 ** step.to(x)).expand(len(x))[:, None]

    times = torch.tensor([0.0, 0.1, 0.3, 1.0], dtype=torch.float64)
    forward, backward = Index(), Index()
    learned = DiffusionSchroedingerBridge(Euclidean((1,)), 1e-9, forward, backward, times=times)
    data = torch.zeros(3, 1)
    learned.fit(data, data, halves=3, paths=4)
    # what each was shown last: row k has the states that step k of the other has led to, and minus its rate
    for regressor, reached in ((backward, [0.1, 2.1, 72.1]), (forward, [72.1, 72.0, 70.0])):
        assert regressor.seen.states[:, 0, 0].tolist() == pytest.approx(reached, rel=1e-6)
        assert regressor.seen.targets[:, 0, 0].tolist() == pytest.approx([-1.0, -10.0, -100.0], rel=1e-3)
    paths = learned.sample(data, seed=0, save="all").trajectory
    assert paths is not None
    assert paths[:, 0, 0].tolist() == pytest.approx([0.0, 0.1, 2.1, 72.1], rel=1e-6)
    back = learned.sample(data, backward=True, seed=0, save="all").trajectory
    assert back is not None
    assert back[:, 0, 0].tolist() == pytest.approx([0.0, 70.0, 72.0, 72.1], rel=1e-6)
    # every sample with a time of its own, in any batch shape
    drift = learned.equation().drift
    t = torch.tensor([0.0, 0.2, 0.99])[:, None]
    assert drift(data, t)[:, 0].tolist() == [1.0, 10.0, 100.0]
    assert drift(data.reshape(3, 1, 1).expand(3, 2, 1), torch.tensor(0.3)).shape == (3, 2, 1)


def test_the_last_step_may_go_without_noise() -> None:
    """Then the variance is that of the chain less σ²h, and all before is the same."""
    n = 20_000
    learned = linear(Euclidean((1,)), 1.0, times=4)
    learned.fit(gaussian([0.5], [[0.5]]), gaussian([-1.0], [[1.4]]), halves=1, paths=n)
    x = gaussian([-1.0], [[1.4]])(n, torch.Generator().manual_seed(1))
    noisy, clean = (learned.sample(x, backward=True, seed=2, denoise=denoise, save="all") for denoise in (False, True))
    assert noisy.trajectory is not None and clean.trajectory is not None
    torch.testing.assert_close(clean.trajectory, noisy.trajectory[: len(clean.trajectory)], rtol=0, atol=0)
    assert (noisy.nfe, clean.nfe) == (4, 4)
    # the standard error of a variance near 0.5
    assert float(noisy.x.var() - clean.x.var()) == pytest.approx(0.25, abs=4 * 0.5 * math.sqrt(2 / n))


def test_a_reference_may_drift_and_is_run_first() -> None:
    learned = linear(Euclidean((1,)), 1e-9, times=2, drift=lambda x, t: 1 + t + 0 * x)
    data = torch.zeros(2, 1)
    bad = linear(Euclidean((1,)), 1.0, times=2, drift=lambda x, t: torch.zeros(()))
    with pytest.raises(ValueError, match=r"score/drift: got \(\) .* for a state of shape"):
        bad.fit(data, data, halves=1, paths=3)
    # Euler's steps: ½·1 + ½·1.5
    assert learned.sample(data, seed=0).x[:, 0].tolist() == pytest.approx([1.25, 1.25])
    moved = learned.equation().drift(data, torch.tensor([[0.0], [0.5]]))
    assert moved[:, 0].tolist() == [1.0, 1.5]


def test_samples_and_fits_draw_by_their_seeds() -> None:
    """Also from a distribution; whose defaults are 20 steps and 10 half iterations."""
    box, data = Hypercube((1,)), torch.rand(9, 1)
    runs = []
    for global_seed, seed in ((0, 3), (1, 3), (1, 4)):
        torch.manual_seed(global_seed)
        learned = linear(box, 1.0)
        runs.append(learned.fit(data, box.uniform(), paths=50, seed=seed))
    assert runs[0] == runs[1] != runs[2]
    assert len(learned.times) == 21 and len(runs[0]) == 10
    assert not torch.equal(learned.sample(data, seed=0).x, learned.sample(data, seed=1).x)
    assert not torch.equal(learned.sample(data).x, learned.sample(data).x)


def test_every_point_of_the_data_is_drawn() -> None:
    """More paths than points: each is drawn about as often as the others (4 standard errors of a count)."""
    data = torch.arange(5.0, dtype=torch.float64)[:, None]
    learned = linear(Euclidean((1,)), 1e-9, times=1)
    seen = []
    learned.regressors[True].fit = lambda draw, generator: seen.append(draw().states) or 0.0  # type: ignore[method-assign]
    learned.fit(data, data, halves=1, paths=1000)
    counts = torch.bincount(seen[0].round().long().flatten(), minlength=5)
    assert float((counts - 200.0).abs().max()) < 4 * math.sqrt(160)


def test_events_of_several_dimensions_are_regressed_as_flat_ones() -> None:
    """And a step without noise is reflected: nobody is ever outside."""
    box = Hypercube((2, 3))
    learned = linear(box, 0.5, times=4)
    data = torch.rand(40, 2, 3)
    learned.fit(data, 1 - data, halves=2, paths=60)
    flat = linear(Hypercube((6,)), 0.5, times=4)
    flat.fit(data.flatten(1), 1 - data.flatten(1), halves=2, paths=60)
    x = data[:7]
    for backward in (False, True):
        drift, other = (b.equation(backward=backward).drift for b in (learned, flat))
        t = torch.linspace(0, 1, 7)
        torch.testing.assert_close(drift(x, t.reshape(7, 1, 1)).flatten(1), other(x.flatten(1), t[:, None]))
        assert drift(x[0], torch.tensor(0.3)).shape == (2, 3)
        assert bool(box.contains(learned.sample(x, backward=backward, seed=0, denoise=True).x).all())


def test_a_step_without_noise_has_the_length_of_its_own_and_is_reflected() -> None:
    """Rates of 10^k on a grid that is not equidistant, up to the wall and back."""

    class Index(Regressor):
        def fit(self, draw: Any, generator: torch.Generator) -> float:
            return 0.0

        def __call__(self, x: Tensor, step: Tensor) -> Tensor:
            return (0.5 * 4.0 ** step.to(x)).expand(len(x))[:, None]

    learned = DiffusionSchroedingerBridge(Hypercube((1,)), 1e-6, Index(), Index(), times=[0.0, 0.7, 0.9, 1.0])
    data = torch.full((2, 1), 0.1, dtype=torch.float64)
    learned.fit(data, data, halves=2, paths=2)
    # 0.1 + 0.7·0.5 + 0.2·2 + 0.1·8 = 1.65
    assert learned.sample(data, seed=0, denoise=True).x[:, 0].tolist() == pytest.approx([0.35] * 2, abs=1e-5)
    # 0.1 + 0.1·8 + 0.2·2 = 1.3, so 0.7, and then 0.7·0.5 more
    back = learned.sample(data, seed=0, backward=True, denoise=True).x
    assert back[:, 0].tolist() == pytest.approx([0.95] * 2, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------- walls


@pytest.mark.parametrize("place", [0.1, 0.6])
def test_between_walls_the_target_is_the_reflected_score(place: float) -> None:
    """From one point reflected Brownian motion has the law of the heat kernel, so the reversal's rate is σ²∇ log p_{σ√t}(x | x0). Means of
    the target in 16 cells are compared with it at every step, within 4.5 standard errors and what a cell averages away (1.5 %). Differences
    of folded positions would be drawn inwards at a wall, by σ√(2/πh) = 1.1."""
    box, sigma, steps, n, cells = Hypercube((1,)), 0.7, 4, 200_000, 16
    learned = DiffusionSchroedingerBridge(box, sigma, Bins(cells), Bins(cells), times=steps)
    data = torch.full((1, 1), place, dtype=torch.float64)
    learned.fit(data, data, halves=1, paths=n)
    centres = (torch.arange(cells, dtype=torch.float64)[:, None] + 0.5) / cells
    for k in range(1, steps):  # before the first step the law is the point
        kernel = box.heat_kernel(data, sigma * math.sqrt((k + 1) / steps))
        exact = sigma**2 * kernel.score(centres)[:, 0]
        found = learned.rates[True](centres, torch.tensor(k))[:, 0]
        count = n * kernel.log_prob(centres).exp() / cells
        # the target's standard deviation is at most σ/√h
        error = 4.5 * sigma * math.sqrt(steps) / count.sqrt() + 0.015 * exact.abs().max()
        assert bool(((found - exact).abs() <= error).all())


@pytest.mark.parametrize("domain", [Hypercube((2,)), Torus((2,)), Ball(2)], ids=["box", "torus", "disk"])
def test_the_uniform_law_stays_uniform_and_everybody_inside(domain: Any) -> None:
    """Reflected Brownian motion is its own reversal in the uniform law: rates 0 up to their standard errors, σ/√(h·n) times a few.
    Differences of folded positions would give rates of about σ√(2/πh) = 0.6 at the walls."""
    n, sigma = 1000, 0.4
    learned = linear(domain, sigma, times=4)
    learned.fit(domain.uniform(), domain.uniform(), halves=2, paths=n)
    x = domain.uniform().sample((100,), generator=torch.Generator().manual_seed(3))
    # a plane's value in a corner has √7 times the error of a mean, two regressions add, and of 100 points and 8 planes none should be
    # beyond four of Rayleigh's units
    bound = 4 * math.sqrt(2) * math.sqrt(7) * sigma * math.sqrt(4) / math.sqrt(n)
    for backward in (False, True):
        for k in range(4):
            assert float(learned.rates[backward](x, torch.tensor(k)).norm(dim=1).max()) < bound
        assert bool(domain.contains(learned.sample(x, backward=backward, seed=0).x).all())


def test_simulated_steps_are_reflected_before_they_are_noised() -> None:
    """A push of 1.5 from the middle of the disk comes back to 0.5, on the backward chain that the second half iteration runs; its wall is
    2.5σ from there, which moves the mean by 0.001."""

    class Push(Regressor):
        def fit(self, draw: Any, generator: torch.Generator) -> float:
            self.seen = draw()
            return 0.0

        def __call__(self, x: Tensor, step: Tensor) -> Tensor:
            return torch.tensor([1.5, 0.0], dtype=x.dtype).expand_as(x)

    disk, forward, sigma, n = Ball(2), Push(), 0.2, 400
    learned = DiffusionSchroedingerBridge(disk, sigma, forward, Push(), times=1)
    data = torch.zeros(1, 2, dtype=torch.float64)
    learned.fit(data, data, halves=2, paths=n)
    states, targets = (values[0] for values in forward.seen)
    middle = torch.tensor([0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(states.mean(0), middle, rtol=0, atol=4 * sigma / math.sqrt(n))
    # σ²∇ log p − b, with h = 1
    torch.testing.assert_close(targets, sigma**2 * disk.heat_kernel(middle, sigma).score(states) - 3 * middle)


# -------------------------------------------------------------------------------------------------------- regressors


def some_paths(seed: int, steps: int = 3, many: int = 20, event: tuple[int, ...] = (2,)) -> Paths:
    generator = torch.Generator().manual_seed(seed)
    return Paths(*torch.randn(2, steps, many, *event, generator=generator, dtype=torch.float64))


def test_a_linear_regressor_is_least_squares_over_all_its_draws() -> None:
    """By another route, over the joined paths; the residual is the mean square of what is left."""
    draws = [some_paths(seed) for seed in range(3)]
    regressor, left = LinearRegressor(3), iter(draws)
    residual = regressor.fit(lambda: next(left), torch.Generator())
    x, y = (torch.cat(values, 1) for values in zip(*draws, strict=True))
    rows = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    table = torch.linalg.lstsq(rows, y).solution
    assert residual == pytest.approx(float((rows @ table - y).square().mean()), rel=1e-12)
    for k in range(3):
        torch.testing.assert_close(regressor(x[k], torch.tensor(k)), rows[k] @ table[k])
    # each state with the step of its own, in float32
    each = regressor(x[0, :3].float(), torch.arange(3))
    torch.testing.assert_close(each, torch.stack([(rows[0, k] @ table[k]) for k in range(3)]).float())
    # sums in float64: paths far from the origin keep their digits
    far = LinearRegressor()
    far.fit(lambda: Paths((draws[0].states + 1000).float(), draws[0].states.float()), torch.Generator())
    moved = far((draws[0].states[1] + 1000).float(), torch.tensor(1))
    torch.testing.assert_close(moved, draws[0].states[1].float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("refreshes", "many"), [(1, 3), (2, 2)])
def test_as_many_paths_as_unknowns_are_enough(refreshes: int, many: int) -> None:
    """In all draws together; three paths for a plane's three unknowns leave nothing over."""
    draws = [some_paths(seed, many=many) for seed in range(refreshes)]
    regressor, left = LinearRegressor(refreshes), iter(draws)
    residual = regressor.fit(lambda: next(left), torch.Generator())
    if refreshes == 1:
        assert residual == pytest.approx(0.0, abs=1e-9)
        for k in range(3):
            torch.testing.assert_close(regressor(draws[0].states[k], torch.tensor(k)), draws[0].targets[k])
    assert residual >= -1e-9


class Probe(nn.Module):
    """w at every x, and what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))
        self.asked: list[tuple[Tensor, Tensor]] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.asked.append((x.detach(), c))
        self.modes.append(self.training)
        if self.training:
            self.calls += 1
        return self.w.expand_as(x)


def test_a_network_sees_standardised_states_and_the_step_they_were_at() -> None:
    """States of step k are 10 + k or so: c = 2(k + ½)/N and x = (state − mean)/std, noted at the first fit; the answer is the average's
    times the scale, in evaluation mode."""
    states = 10 + torch.arange(4.0)[:, None, None] + 0.01 * torch.rand(4, 30, 1)
    probe = Probe()
    regressor = NeuralRegressor(probe, steps=5, batch_size=64, refresh=2, lr=0.1)
    for shift in (0.0, 7.0):
        probe.asked.clear()
        probe.eval()  # as a user may hand it over
        regressor.fit(lambda shift=shift: Paths(states + shift, states), torch.Generator().manual_seed(0))
        mean, std = float(states.mean()), float(states.std())
        assert probe.modes == [True] * len(probe.modes)
        for x, c in probe.asked:
            k = (std * x[:, 0] + mean - shift - 10).floor()
            torch.testing.assert_close(c, 2 * (k + 0.5) / 4)
            assert set(k.tolist()) == {0.0, 1.0, 2.0, 3.0}
    average = regressor.average
    average.asked.clear(), average.modes.clear()  # type: ignore[operator, union-attr]
    rates = regressor(states[2], torch.tensor(2))
    ((x, c),) = average.asked  # type: ignore[union-attr, misc]
    torch.testing.assert_close(x, (states[2] - mean) / std)
    assert c.tolist() == [1.25] * 30 and average.modes == [False]
    torch.testing.assert_close(rates, std * average.w.expand_as(rates))  # type: ignore[operator]
    assert average.w.item() != probe.w.item()
    assert float(average.calls) == float(probe.calls) == 10  # buffers are those of the last step


@pytest.mark.parametrize("ema", [0.0, 0.3, 0.99])
def test_weights_move_by_the_rate_along_half_a_cosine_and_their_average_after_them(ema: float) -> None:
    """Far from its target the gradient is as good as constant, and clipped it is: Adam moves by the rate itself. The average begins young:
    its decay at step k is at most (1 + k)/(10 + k)."""
    steps, lr = 6, 0.01
    probe = Probe()
    data = Paths(torch.randn(2, 50, 1, dtype=torch.float64), torch.full((2, 50, 1), 1e9, dtype=torch.float64))
    regressor = NeuralRegressor(probe, steps=steps, batch_size=16, lr=lr, ema=ema)
    loss = regressor.fit(lambda: data, torch.Generator().manual_seed(0))
    w = mean = 0.0
    for k in range(steps):
        w += lr * (1 + math.cos(math.pi * k / steps)) / 2
        decay = min(ema, (1 + k) / (10 + k))
        mean = decay * mean + (1 - decay) * w
    # Adam's ε is 1e-8 of a gradient clipped to 1, and sums are float32
    assert probe.w.item() == pytest.approx(w, rel=1e-6)
    assert regressor.average.w.item() == pytest.approx(mean, rel=1e-6)  # type: ignore[arg-type]
    assert loss == pytest.approx(1e18, rel=1e-6)


def test_gradients_are_of_the_scaled_loss_and_clipped() -> None:
    """States and rates of size 1e-4 train as those of size 1; a clip far below Adam's ε = 1e-8 leaves the weights where they are."""
    for clip, moved in ((1.0, 0.02), (1e-20, 0.0)):
        probe = Probe()
        data = Paths(1e-4 * torch.randn(2, 50, 1), torch.full((2, 50, 1), 1e-4))
        NeuralRegressor(probe, steps=3, batch_size=16, lr=0.01, clip=clip).fit(
            lambda data=data: data, torch.Generator()
        )
        assert probe.w.item() == pytest.approx(moved, rel=0.05, abs=1e-9)


def test_the_residual_of_a_network_is_that_of_the_last_refresh() -> None:
    """Targets of 0, 0, then 1 with weights that stand still: 1; and paths are drawn every ``refresh`` steps."""
    targets = iter([0.0, 0.0, 1.0])
    draw = lambda: Paths(torch.randn(2, 9, 1), torch.full((2, 9, 1), next(targets)))
    regressor = NeuralRegressor(Probe(), steps=6, batch_size=4, refresh=2, lr=1e-12)
    assert regressor.fit(draw, torch.Generator()) == pytest.approx(1.0, abs=1e-6)
    assert next(targets, None) is None


# ------------------------------------------------------------------------------------------------------------ neural


def test_a_network_learns_the_bridge_between_two_gaussians() -> None:
    """Its ends and its coupling, against mean matching's own limit at N = 8: means and variances within 0.12, where doing nothing would be
    1.5 off in the mean and the reference 0.75 in the variance."""
    torch.manual_seed(0)
    regressors = [NeuralRegressor(network(), steps=200, batch_size=512, refresh=100, lr=1e-2) for _ in range(2)]
    learned = DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, *regressors, times=8)
    draw = {
        m: lambda n, g, m=m, s=s: m + s * torch.randn(n, 1, generator=g) for m, s in ((0.5, 0.5), (-1.0, math.sqrt(2)))
    }
    learned.fit(draw[0.5], draw[-1.0], halves=4, paths=2048)
    exact = bridge.mean_matching(bridge.gaussian((0.5, 0.25), (-1.0, 2.0), 1.0), 8, 4)
    generator = torch.Generator().manual_seed(1)
    for backward, chain in ((True, exact[2]), (False, exact[3])):
        x = draw[-1.0 if backward else 0.5](4000, generator)
        reached = learned.sample(x, backward=backward, seed=2).x
        mean, covariance = (float(v) for v in chain.marginals()[0 if backward else -1])
        assert float(reached.mean()) == pytest.approx(mean, abs=0.12)
        assert float(reached.var()) == pytest.approx(covariance, abs=0.2 if not backward else 0.1)
        # corr(X0, X1) = √.268 = .518 in the bridge, less by O(1/N) here
        together = torch.corrcoef(torch.cat([x, reached], 1).T)[0, 1]
        assert float(together) == pytest.approx(math.sqrt(0.268), abs=0.1)


def test_a_network_learns_a_reflected_bridge_from_data_to_the_uniform_law() -> None:
    """Data to noise in the unit interval: data beside a wall, as a tensor; nobody is ever outside. Standard errors are 0.006, the bias at
    N = 8 some hundredths; the uniform law has the mean 0.5 and the data 0.25."""
    torch.manual_seed(0)
    box = Hypercube((1,))
    regressors = [NeuralRegressor(network(), steps=200, batch_size=512, refresh=100, lr=1e-2) for _ in range(2)]
    learned = DiffusionSchroedingerBridge(box, 0.6, *regressors, times=8)
    data = 0.5 * torch.rand(2000, 1)
    learned.fit(data, box.uniform(), halves=4, paths=2048)
    noise = box.uniform().sample((3000,), generator=torch.Generator().manual_seed(1))
    back = learned.sample(noise, backward=True, seed=0, save="all")
    forth = learned.sample(data, seed=0, save="all")
    for run in (back, forth):
        assert run.trajectory is not None and bool(box.contains(run.trajectory).all())
    assert float(forth.x.mean()) == pytest.approx(0.5, abs=0.06)
    assert float(forth.x.std()) == pytest.approx(math.sqrt(1 / 12), abs=0.03)
    assert float(back.x.mean()) == pytest.approx(float(data.mean()), abs=0.05)
    # the last step's noise alone has the variance 0.045, of which the rates take back all but O(h²)
    assert float(back.x.std()) == pytest.approx(float(data.std()), abs=0.08)


@pytest.mark.parametrize("warm", [True, False])
def test_a_warm_start_keeps_the_weights_of_the_last_half_iteration_of_its_direction(warm: bool) -> None:
    """With a learning rate of nothing, the network is afterwards what it was, or what it was made as."""
    model = network(8)
    regressor = NeuralRegressor(model, steps=3, batch_size=8, refresh=1, lr=1e-12, warm_start=warm)
    made = {name: value.clone() for name, value in model.state_dict().items()}
    draws = []

    def draw() -> Any:
        draws.append(1)
        return torch.randn(2, 8, 1), torch.randn(2, 8, 1)

    class Pairs:
        def __call__(self) -> Any:
            return Paths(*draw())

    with torch.no_grad():
        model.last.bias.add_(1.0)  # type: ignore[union-attr]
    regressor.fit(Pairs(), torch.Generator().manual_seed(0))
    assert len(draws) == 3  # refreshed at every step
    moved = float((model.state_dict()["last.bias"] - made["last.bias"]).abs().max())
    assert moved == pytest.approx(1.0 if warm else 0.0, abs=1e-9)


def test_the_average_of_the_weights_begins_as_that_of_train() -> None:
    """With decays 1/10 and then 2/11, below which they stay where ``ema`` is: (1 + k)/(10 + k) at step k."""
    for ema, decay in ((0.99, 2 / 11), (0.15, 0.15)):
        model, noted = network(4).double(), []
        regressor = NeuralRegressor(model, steps=2, batch_size=8, refresh=1, lr=0.1, ema=ema)

        def draw(model: nn.Module = model, noted: list[Any] = noted) -> Paths:
            noted.append({k: v.clone() for k, v in model.state_dict().items()})
            return Paths(states(8)[None], states(8)[None].sqrt())

        regressor.fit(draw, torch.Generator().manual_seed(0))
        first, second = noted
        for name, value in regressor.average.state_dict().items():
            before = 0.1 * first[name] + 0.9 * second[name]
            # roundings of float64
            expected = decay * before + (1 - decay) * model.state_dict()[name]
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)


def test_any_solver_runs_the_learned_equation() -> None:
    """``sample`` is the equation solved on the training grid by reflected Euler–Maruyama, to the bit."""
    box = Hypercube((1,))
    learned = linear(box, 0.5, times=4)
    data = torch.rand(50, 1)
    learned.fit(data, data, halves=2, paths=50)
    run = solve(learned.equation(), data, learned.times, ReflectedEulerMaruyama(), noise=WhiteNoise(4))
    torch.testing.assert_close(run.x, learned.sample(data, seed=4).x, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------------- files


def neural(steps: int = 4, seed: int = 0, **settings: Any) -> DiffusionSchroedingerBridge:
    """Two small networks with dropout, in float64, on the unit interval."""
    torch.manual_seed(seed)
    made = [MLP(MLPConfig((1,), width=8, depth=1, dropout=0.2)).double() for _ in range(2)]
    regressors = [NeuralRegressor(n, steps=steps, batch_size=8, refresh=2, lr=1e-2, **settings) for n in made]
    return DiffusionSchroedingerBridge(Hypercube((1,)), 0.5, *regressors, times=[0.0, 0.3, 1.0])


def states(n: int = 9) -> Tensor:
    return torch.rand(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def assert_same(one: DiffusionSchroedingerBridge, two: DiffusionSchroedingerBridge) -> None:
    """The same samples to the bit in both directions."""
    assert one.halves == two.halves
    for backward in (False, True):
        a, b = (bridge.sample(states(), backward=backward, seed=1, save="all").trajectory for bridge in (one, two))
        assert a is not None and b is not None and torch.equal(a, b)


@pytest.mark.parametrize("halves", [1, 2, 3])
@pytest.mark.parametrize("make", [lambda: linear(Hypercube((1,)), 0.5, times=3), neural], ids=["linear", "neural"])
def test_a_bridge_is_loaded_as_it_was_saved(tmp_path: Path, make: Any, halves: int) -> None:
    """Samples to the bit, and it goes on as the one it was saved from would."""
    learned, path = make(), tmp_path / "bridge.safetensors"
    learned.fit(states(), states().sqrt(), halves=halves, paths=50)
    learned.save(path)
    loaded = DiffusionSchroedingerBridge.load(path)
    assert loaded.header() == learned.header() and torch.equal(loaded.times, learned.times)
    assert_same(loaded.to("cpu"), learned)
    for one in (learned, loaded):
        one.fit(states(), states().sqrt(), halves=1, paths=50, progress=False)
    assert_same(loaded, learned)


def test_what_no_file_holds_is_passed_to_load(tmp_path: Path) -> None:
    """A drift for as long as the reference runs, and regressors and networks of one's own."""
    path, domain = tmp_path / "bridge.safetensors", Euclidean((1,))
    drift = lambda x, t: -x
    learned = linear(domain, 1.0, times=2, drift=drift)
    learned.fit(states(), states(), halves=1, paths=50)
    learned.save(path)
    with pytest.raises(ValueError, match=r"drift: got none, but the reference .* has one"):
        DiffusionSchroedingerBridge.load(path)
    assert_same(DiffusionSchroedingerBridge.load(path, drift=drift), learned)
    learned.fit(states(), states(), halves=1, paths=50)
    learned.save(path)
    assert_same(DiffusionSchroedingerBridge.load(path), learned)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return self.layer(x) + c[:, None]

    settings: dict[str, Any] = {"steps": 2, "batch_size": 4, "warm_start": False}
    learned = DiffusionSchroedingerBridge(domain, 1.0, NeuralRegressor(Own(), **settings), LinearRegressor(), times=2)
    learned.fit(states(), states(), halves=2, paths=50)
    learned.save(path)
    with pytest.raises(ValueError, match=r"network: got class 'Own'.*forward=…"):
        DiffusionSchroedingerBridge.load(path)
    with pytest.raises(ValueError, match=r"forward: got a LinearRegressor, but .* holds what a NeuralRegressor"):
        DiffusionSchroedingerBridge.load(path, forward=LinearRegressor())
    with pytest.raises(ValueError, match=r"do not fit MLP \(.*network.embedding.layers.0.weight missing"):
        DiffusionSchroedingerBridge.load(path, forward=NeuralRegressor(network(4), **settings))
    assert_same(DiffusionSchroedingerBridge.load(path, forward=NeuralRegressor(Own(), **settings)), learned)
    mine = DiffusionSchroedingerBridge(domain, 1.0, Bins(2), LinearRegressor())
    with pytest.raises(NotImplementedError, match=r"Bins does not define config\(\)"):
        mine.save(path)


def rewrite(path: Path, *, without: str = "", **header: Any) -> None:
    """The file without a tensor, or with other entries in its header, None for none."""
    file = checkpoint.read(path, ("",), checkpoint.BRIDGE)
    entries = {k: v for k, v in (file.header | header).items() if v is not None}
    tensors = {k: v for k, v in file.tensors.items() if k != without}
    checkpoint.write(path, entries, tensors, checkpoint.BRIDGE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: p.write_bytes(p.read_bytes()[:-9]),
            r"DiffusionSchroedingerBridge\.save or fit; it may be cut short",
        ),
        (lambda p: checkpoint.write(p, {}, {}), "format 'carom.neural_score', .*NeuralScore.load reads it"),
        (lambda p: rewrite(p, without="times"), "without the grid of times"),
        (lambda p: rewrite(p, without="backward.table"), "1 difference: table missing"),
        (lambda p: rewrite(p, without="forward.average.last.bias"), "1 difference: average.last.bias missing"),
        (lambda p: rewrite(p, without="forward.noted"), "1 difference: noted missing"),
        (lambda p: rewrite(p, domain=None, sigma=None), "without domain, sigma in its header"),
        (lambda p: rewrite(p, sigma="1"), "damaged header, expected domain dict, sigma float"),
        (lambda p: rewrite(p, backward={"type": "Mine"}), "regressor: got type 'Mine'"),
        (lambda p: rewrite(p, backward={"type": "LinearRegressor", "order": 2}), "unknown arguments order"),
        (lambda p: rewrite(p, colour=1), "unknown header entries colour"),
    ],
)
def test_a_file_that_is_no_bridge_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "bridge.safetensors"
    made = neural()
    made = DiffusionSchroedingerBridge(made.domain, 0.5, made.regressors[False], LinearRegressor(), times=2)
    made.fit(states(), states(), halves=2, paths=50)
    made.save(path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        DiffusionSchroedingerBridge.load(path)


def test_a_bridge_is_no_score(tmp_path: Path) -> None:
    path = tmp_path / "bridge.safetensors"
    linear(Euclidean((1,)), 1.0).save(path)
    with pytest.raises(ValueError, match=r"DiffusionSchroedingerBridge\.load reads it"):
        NeuralScore.load(path)
    with pytest.raises(FileNotFoundError, match="got 'nowhere', which does not exist"):
        DiffusionSchroedingerBridge.load("nowhere")


# ------------------------------------------------------------------------------------------------------------ resume

FIT: dict[str, Any] = {"paths": 50, "seed": 3, "progress": False}


class Cut(Exception):
    """A fit that is cut short."""


def cut_after(draws: int) -> Draw:
    """The law of ``states`` that cannot be drawn from more often than this."""
    left = [draws + 1]  # one to be looked at

    def draw(count: int, generator: torch.Generator) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise Cut
        return torch.rand(count, 1, dtype=torch.float64, generator=generator)

    return draw


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: linear(Hypercube((1,)), 0.5, times=3),
        lambda seed: neural(seed=seed, warm_start=False),
        lambda seed: neural(seed=seed),
    ],
    ids=["linear", "cold", "warm"],
)
def test_a_fit_that_was_cut_short_goes_on_to_the_same_numbers(tmp_path: Path, make: Any) -> None:
    """In another process, with other objects that began elsewhere, and within a half iteration of two draws: to the bit."""
    path, end = tmp_path / "bridge.safetensors", Hypercube((1,)).uniform()
    whole = make(0)
    residuals = whole.fit(cut_after(99), end, halves=4, **FIT)
    cut = make(0)
    with pytest.raises(Cut):
        # the first and the third half iteration draw from the start, twice each
        cut.fit(cut_after(3), end, halves=4, checkpoint=path, **FIT)
    assert DiffusionSchroedingerBridge.load(path).halves == cut.halves == 2
    again = make(1)
    torch.manual_seed(9)
    assert again.fit(cut_after(99), end, halves=4, checkpoint=path, resume=True, **FIT) == residuals
    assert_same(again, whole)
    assert_same(DiffusionSchroedingerBridge.load(path), whole)
    # nothing is left to do
    assert make(1).fit(cut_after(0), end, halves=4, checkpoint=path, resume=True, **FIT) == residuals


def test_ctrl_c_finishes_the_half_iteration_and_leaves_a_file_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data = tmp_path / "bridge.safetensors", states()
    whole, learned = neural(), neural()
    residuals = whole.fit(data, data, halves=3, **FIT)

    def press(half: int, residual: float) -> None:
        if half == 2:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    assert learned.fit(data, data, halves=3, checkpoint=path, log=press, **FIT) == residuals[:2]
    assert signal.getsignal(signal.SIGINT) is handler
    said = capsys.readouterr().err
    assert f"interrupted after half iteration 2, saved to {path}; go on with fit(…, checkpoint={str(path)!r}" in said
    shown = FIT | {"progress": True}
    assert learned.fit(data, data, halves=3, checkpoint=path, resume=True, **shown) == residuals
    assert "3/3 half iterations" in (said := capsys.readouterr().err) and f"loss {residuals[2]:.4f}" in said
    assert_same(learned, whole)


def test_a_fit_goes_on_from_its_own_file_alone(tmp_path: Path) -> None:
    path, data = tmp_path / "bridge.safetensors", states()

    def resume(learned: DiffusionSchroedingerBridge | None = None, **changes: Any) -> None:
        (learned or linear(Hypercube((1,)), 0.5, times=2)).fit(
            data, changes.pop("end", data), halves=2, **FIT | {"checkpoint": path, "resume": True} | changes
        )

    with pytest.raises(ValueError, match="resume=True without a checkpoint"):
        resume(checkpoint=None)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        resume()
    for place, what in ((tmp_path, "a folder"), (tmp_path / "none" / "b", "a file in .*none', which is no folder")):
        with pytest.raises(ValueError, match=f"checkpoint: got .*{what}; expected a file in a folder that exists"):
            resume(checkpoint=place, resume=False)
    linear(Hypercube((1,)), 0.5, times=2).save(path)
    with pytest.raises(ValueError, match="without the state of a fit"):
        resume()
    resume(resume=False)
    resume()
    other = r"belongs to another training: {}; pass the settings it was started with"
    with pytest.raises(ValueError, match=other.format("paths is 50 there and 51 here; seed is 3 there and 4 here")):
        resume(paths=51, seed=4)
    with pytest.raises(ValueError, match=r"end is '\[9, 1\] of sum .* there and '\[8, 1\] of sum .* here"):
        resume(end=data[1:])
    with pytest.raises(ValueError, match=r"end is '\[9, 1\] of sum .* there and '\[9, 1\] of sum .* here"):
        resume(end=1 - data)
    with pytest.raises(ValueError, match=other.format(r"times is \[0.0, 0.5, 1.0\] there and \[0.0, 1.0\] here")):
        resume(linear(Hypercube((1,)), 0.5, times=1))
    with pytest.raises(ValueError, match=other.format("sigma is 0.5 there and 0.6 here")):
        resume(linear(Hypercube((1,)), 0.6, times=2))
    three = DiffusionSchroedingerBridge(Hypercube((1,)), 0.5, LinearRegressor(3), LinearRegressor(2), times=2)
    with pytest.raises(ValueError, match=r"forward is .*'refreshes': 1.* there and .*'refreshes': 3.* here"):
        resume(three)
    assert three.halves == 0


# ---------------------------------------------------------------------------------------------------------- refusals


def test_what_makes_no_bridge_is_refused() -> None:
    one, two = LinearRegressor(), LinearRegressor()
    with pytest.raises(TypeError, match="expected one with a known heat kernel"):
        DiffusionSchroedingerBridge(Polytope([[1.0], [-1.0]], [1.0, 1.0]), 1.0, one, two)
    with pytest.raises(TypeError, match="expected another"):
        DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, one, one)
    with pytest.raises(ValueError, match="sigma: got 0"):
        DiffusionSchroedingerBridge(Euclidean((1,)), 0.0, one, two)
    with pytest.raises(ValueError, match="rises from 0 to 1"):
        DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, one, two, times=[1.0, 0.0])
    with pytest.raises(ValueError, match="times: got 0"):
        DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, one, two, times=0)
    with pytest.raises(ValueError, match="sigma: got -1"):
        DiffusionSchroedingerBridge(Euclidean((1,)), -1.0, one, two)
    with pytest.raises(ValueError, match=r"times: got 2\.5, expected a whole number"):
        DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, one, two, times=2.5)  # type: ignore[arg-type]
    for times in ([0.1, 0.5, 1.0], [0.0, 0.5, 0.9], [0.0]):
        with pytest.raises(ValueError, match="expected one that rises from 0 to 1"):
            DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, one, two, times=times)
    with pytest.raises(
        ValueError, match=r"a step of standard deviation 0\.0223607, expected at least 0\.05, .* fewer steps"
    ):
        DiffusionSchroedingerBridge(Ball(2), 0.1, one, two, times=20)
    # the shortest step counts, and it is its root that the noise has
    with pytest.raises(ValueError, match=r"a step of standard deviation 0\.04,"):
        DiffusionSchroedingerBridge(Ball(2), 0.4, one, two, times=[0.0, 0.99, 1.0])
    with pytest.raises(TypeError, match=r"forward: got MLP, expected a Regressor, e\.g\..* NeuralRegressor\(network\)"):
        DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, network(4), two)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="backward: got int, expected a Regressor"):
        DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, one, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="drift: got float, expected a callable"):
        DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, one, two, drift=0.5)  # type: ignore[arg-type]
    learned = DiffusionSchroedingerBridge(Hypercube((1,)), 1.0, one, two)
    data = torch.rand(5, 1)
    with pytest.raises(RuntimeError, match="no backward rates yet"):
        learned.sample(data, backward=True)
    with pytest.raises(ValueError, match="start: 5 of 5 samples lie outside"):
        learned.fit(data + 2, data)
    with pytest.raises(ValueError, match="end: 1 of 1 samples lie outside"):
        learned.fit(data, lambda n, generator: torch.full((n, 1), 2.0))
    with pytest.raises(ValueError, match=r"start: got shape \(5,\), expected \[\*batch, 1\]"):
        learned.fit(data[:, 0], data)
    for nothing in (data[:0], data[0]):
        with pytest.raises(ValueError, match=r"start: got shape .*, expected data \[n, \*event\] with n of at least 1"):
            learned.fit(nothing, data)
    with pytest.raises(ValueError, match=r"end: got a draw of shape \(1,\) at count 1, expected \(1, 1\)"):
        learned.fit(data, lambda n, generator: torch.zeros(1))
    with pytest.raises(ValueError, match=r"end: got a draw of shape \(5, 1\) at count 1"):
        learned.fit(data, lambda n, generator: data)
    with pytest.raises(TypeError, match=r"end: got Uniform\(.*\), whose sample takes no generator, .* in a callable"):
        learned.fit(data, torch.distributions.Uniform(torch.zeros(1), torch.ones(1)))
    with pytest.raises(TypeError, match="expected data"):
        learned.fit(data, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="halves: got 0"):
        learned.fit(data, data, halves=0)
    with pytest.raises(RuntimeError, match="no fit yet"):
        one(data, torch.tensor(0))


def test_data_that_are_not_finite_are_refused_where_they_enter_or_when_they_are_regressed() -> None:
    learned = linear(Euclidean((1,)), 1.0, times=2)
    data = torch.randn(5, 1)
    with pytest.raises(ValueError, match="start: 5 of 5 samples lie outside"):
        learned.fit(data * math.nan, data)
    with pytest.raises(ValueError, match=r"end: got shape .* and finite numbers"):
        learned.fit(data, data / 0)
    with pytest.raises(FloatingPointError, match="LinearRegressor: got a residual of nan"):
        learned.fit(lambda n, generator: torch.full((n, 1), math.inf if n > 1 else 0.0), data)
    with pytest.raises(
        ValueError, match="paths: got 2 in each of 1 refreshes, expected in all at least the 3 unknowns"
    ):
        DiffusionSchroedingerBridge(Euclidean((2,)), 1.0, LinearRegressor(), LinearRegressor()).fit(
            torch.randn(5, 2), torch.randn(5, 2), paths=2
        )


@pytest.mark.parametrize("denoise", [False, True])
def test_one_step_is_enough_for_a_bridge(denoise: bool) -> None:
    """Of the reference it is Brownian motion over the whole of [0, 1], whose mean stands still. No samples and one alone are states too."""
    learned = linear(Euclidean((1,)), 1.0, times=1)
    data = torch.zeros(3, 1)
    there = learned.sample(data, seed=0, denoise=denoise).x
    assert torch.equal(there, data) if denoise else float(there.std()) > 0
    assert learned.sample(data[:0], seed=0, denoise=denoise).x.shape == (0, 1)
    assert learned.sample(data[0], seed=0, denoise=denoise).x.shape == (1,)


def test_states_keep_their_precision_whatever_the_network_computes_in() -> None:
    regressors = [NeuralRegressor(network(4), steps=2, batch_size=4) for _ in range(2)]
    learned = DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, *regressors, times=2)
    data = torch.randn(9, 1, dtype=torch.float64)
    learned.fit(data, data, halves=2, paths=8)
    assert learned.sample(data, seed=0).x.dtype == torch.float64
    assert learned.sample(data.float(), seed=0).x.dtype == torch.float32


def test_settings_of_regressors_are_refused() -> None:
    with pytest.raises(ValueError, match="refreshes: got 0"):
        LinearRegressor(0)
    with pytest.raises(ValueError, match="refresh: got 0"):
        NeuralRegressor(network(4), refresh=0)
    with pytest.raises(ValueError, match="ema: got 1"):
        NeuralRegressor(network(4), ema=1.0)
    with pytest.raises(ValueError, match="lr: got 0"):
        NeuralRegressor(network(4), lr=0.0)
    with pytest.raises(ValueError, match="clip: got 0"):
        NeuralRegressor(network(4), clip=0.0)
    with pytest.raises(ValueError, match="steps: got 0"):
        NeuralRegressor(network(4), steps=0)
    with pytest.raises(TypeError, match=r"network: got int, expected a torch\.nn\.Module"):
        NeuralRegressor(3)  # type: ignore[arg-type]
    scalar = NeuralRegressor(network(4), steps=1, batch_size=2)
    scalar.network.forward = lambda x, c: c  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"network: got an output of shape \(2,\), expected \(2, 1\)"):
        scalar.fit(lambda: Paths(torch.randn(2, 5, 1), torch.randn(2, 5, 1)), torch.Generator())
    with pytest.raises(RuntimeError, match="no fit yet"):
        NeuralRegressor(network(4))(torch.zeros(1, 1), torch.tensor(0))
    wild = NeuralRegressor(network(4), steps=60, lr=1e30, clip=1e30, batch_size=4)
    learned = DiffusionSchroedingerBridge(Euclidean((1,)), 1.0, LinearRegressor(), wild, times=2)
    with pytest.raises(FloatingPointError, match="lower lr"):
        learned.fit(torch.randn(9, 1), torch.randn(9, 1), halves=1, paths=8)
