"""Inpainting, editing and interpolation: exact moments on Gaussian data, walls, seeds, what is handed out, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from carom.domains import Ball, Euclidean, Hypercube, Product, Simplex
from carom.processes import VE, VP, Diffusion, FlowMatching
from carom.scores import EmpiricalScore, GaussianMixtureScore
from carom.solvers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    Inpaint,
    SampleNoise,
    Solver,
    UniPC,
    edit,
    encode,
    inpaint,
    interpolate,
    karras,
    round_trip,
    sample,
    solve,
)
from carom.solvers.editing import _from
from carom.validation import problems, propagate_moments

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
KNOWN = torch.tensor([1.3, torch.nan], dtype=torch.float64)  # NaN: what is not known is not read
MASK = torch.tensor([True, False])
# the law of x[1] given x[0] = 1.3
CONDITIONAL = (-0.2 + 0.8 * (1.3 - 0.3), 1 - 0.8**2)


def gaussian(schedule: Any = None) -> tuple[Diffusion, GaussianMixtureScore]:
    process = Diffusion(Euclidean((2,)), schedule or VP())
    return process, GaussianMixtureScore(process, [1.0], MEAN[None], COVARIANCE[None])


def reached(solver: Solver, n: int, resamplings: int, jump: int = 1, **stochasticity: float) -> tuple[float, float]:
    """The exact mean and variance that the unknown coordinate has at the end of a grid of n levels."""
    process, score = gaussian()
    equation: Any = solver.accepts[0](process, score, **stochasticity)  # type: ignore[call-arg]
    start = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    mean, covariance = propagate_moments(
        equation, Inpaint(solver, KNOWN, MASK, resamplings, jump), karras(process, n), *start
    )
    return float(mean[1]), float(covariance[1, 1])


@pytest.mark.parametrize("solver", [Ancestral("forward"), DDIM(), DDIM(0.5), EulerMaruyama()], ids=repr)
def test_resampling_removes_the_bias_of_replacement(solver: Solver) -> None:
    """Exact moments, no sampling noise: what is left falls from replacement over 5 to 20 resamplings."""
    errors = [abs(reached(solver, 30, r)[0] - CONDITIONAL[0]) for r in (1, 5, 20)]
    assert errors[0] > 0.25 and errors[0] > 2 * errors[1] and errors[1] > 2 * errors[2], errors


def test_resampling_has_no_bias_left_as_r_and_the_grid_grow() -> None:
    """The mean depends on the product of both, the variance on the grid alone once r is large."""
    mean, variance = reached(Ancestral("forward"), 40, 30)
    assert abs(mean - CONDITIONAL[0]) < 0.02 and abs(variance - CONDITIONAL[1]) < 0.02
    # replacement stays biased on any grid: four times the steps take away less than a fifth of it
    coarse, fine = (abs(reached(Ancestral("forward"), n, 1)[0] - CONDITIONAL[0]) for n in (50, 200))
    assert fine > 0.8 * coarse > 0.2


def test_resampling_on_fine_grids_is_more_stochasticity() -> None:
    """r = 3 steps down and two up against the reverse SDE of stochasticity 5: they differ by the order of a step."""
    gaps = []
    for n in (60, 240):
        resampled, stirred = (reached(EulerMaruyama(), n, 3), reached(EulerMaruyama(), n, 1, stochasticity=5.0))
        gaps.append(max(abs(a - b) for a, b in zip(resampled, stirred, strict=True)))
    assert gaps[1] < 0.05 and gaps[1] < 0.4 * gaps[0], gaps


def test_longer_jumps_resample_as_well() -> None:
    """Here less than jumps of one step, whose r·n visits are all at their own level, but more than none."""
    replacement, single, longer, often = (
        abs(reached(Ancestral(), 31, r, j)[0] - CONDITIONAL[0]) for r, j in [(1, 1), (5, 1), (5, 5), (20, 5)]
    )
    assert single < longer < 0.6 * replacement and often < 0.5 * longer


@pytest.mark.parametrize("resamplings", [1, 5, 20])
def test_samples_have_the_exact_moments_of_their_recursion(resamplings: int) -> None:
    """Three standard errors; and what is known comes out to the bit."""
    process, score = gaussian()
    n, times = 4000, karras(process, 20)
    x = inpaint(
        process, score, Ancestral(), times, KNOWN, MASK, shape=n, resamplings=resamplings, seed=0, denoise=False
    ).x
    mean, variance = reached(Ancestral(), 20, resamplings)
    assert torch.equal(x[:, 0], KNOWN[:1].expand(n))
    assert abs(float(x[:, 1].mean()) - mean) < 3 * (variance / n) ** 0.5
    assert abs(float(x[:, 1].var()) - variance) < 3 * variance * (2 / n) ** 0.5


def test_one_resampling_is_replacement_and_costs_nothing() -> None:
    process, score = gaussian()
    times = karras(process, 8)
    plain = sample(process, score, UniPC(2), times, shape=3, seed=0)
    assert inpaint(process, score, UniPC(2), times, KNOWN, MASK, shape=3, seed=0).nfe == plain.nfe
    # 7 steps, each three times, one denoising
    assert inpaint(process, score, Ancestral(), times, KNOWN, MASK, shape=3, seed=0, resamplings=3).nfe == 22


def test_nothing_known_changes_no_moment() -> None:
    """A mask that is False everywhere: the law of the rule alone (it draws more, so other numbers)."""
    process, score = gaussian()
    times, start = karras(process, 10), (torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    plain = propagate_moments(process.reverse(score), Ancestral(), times, *start)
    rule = Inpaint(Ancestral(), KNOWN, torch.tensor([False, False]))
    torch.testing.assert_close(
        propagate_moments(process.reverse(score), rule, times, *start), plain, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("schedule", [VP(), VE()], ids=repr)
@pytest.mark.parametrize("jump", [1, 2])
@pytest.mark.parametrize("solver", [DPMSolverPP(2), UniPC(2), DDIM(), Heun()], ids=repr)
def test_a_jump_is_the_way_down_the_forward_process_up_and_down_again(solver: Solver, schedule: Any, jump: int) -> None:
    """Nothing known: the moments of three passes over each step or pair of steps, each without history, with q(x_t | x_s) between."""
    process, score = gaussian(schedule)
    times = karras(process, 5)
    equation = process.flow(score)
    state = torch.ones(2, dtype=torch.float64), process.schedule.std(times[0]) ** 2 * torch.eye(2, dtype=torch.float64)
    rule = Inpaint(solver, KNOWN, torch.tensor([False, False]), 3, jump)
    found = propagate_moments(equation, rule, times, *state)
    scale, sigma = process.schedule.scale(times), process.schedule.sigma(times)
    for i in range(0, 4, jump):
        for k in range(3):
            if k:
                ratio = scale[i] / scale[i + jump]
                noise = scale[i] ** 2 * (sigma[i] ** 2 - sigma[i + jump] ** 2)
                state = ratio * state[0], ratio**2 * state[1] + noise * torch.eye(2, dtype=torch.float64)
            state = propagate_moments(equation, solver, times[i : i + jump + 1], *state)
    torch.testing.assert_close(found, state, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [Ancestral(), DDIM(), DPMSolverPP(2), Heun(), EulerMaruyama()], ids=repr)
def test_a_sample_is_the_same_alone_and_in_a_batch(solver: Solver) -> None:
    process = Diffusion(Hypercube((3,)), VE())
    score = EmpiricalScore(process, torch.rand(7, 3, generator=torch.Generator().manual_seed(1)))
    values, mask = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([True, False, True])

    def run(seeds: list[int]) -> Tensor:
        options: dict[str, Any] = {"shape": len(seeds), "seed": seeds, "resamplings": 2, "jump": 2}
        return inpaint(process, score, solver, karras(process, 7), values, mask, **options).x

    together = run([4, 5, 6])
    assert torch.equal(together[1:2], run([5]))
    assert bool(process.domain.contains(together).all()) and torch.equal(together[:, mask], values[mask].expand(3, 2))


def test_each_sample_may_know_other_values_at_other_places() -> None:
    process, score = gaussian()
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    mask = torch.tensor([[True, False], [False, True]])
    x = inpaint(process, score, Ancestral(), karras(process, 6), values, mask, seed=0).x
    assert x.shape == (2, 2) and x.dtype == torch.float32
    assert float(x[0, 0]) == 1.0 and float(x[1, 1]) == 4.0 and float(x[0, 1]) != 2.0


def test_the_known_part_has_the_law_of_the_domain_on_the_way() -> None:
    """On the cube a level is the fold of the Gaussian: at the first it is nearly uniform, whatever is known."""
    process = Diffusion(Hypercube((2,)), VE())
    score = EmpiricalScore(process, torch.rand(5, 2, generator=torch.Generator().manual_seed(0)))
    rule = Inpaint(Ancestral(), torch.tensor([0.1, 0.0]), torch.tensor([True, False]))
    middle = float(process.schedule.time(torch.tensor(0.5, dtype=torch.float64)))
    # the last of the states saved is that at the middle level, with what is known replaced
    found = solve(process.reverse(score), torch.rand(4000, 2), [1.0, middle], rule, noise=SampleNoise(range(4000))).x[
        :, 0
    ]
    law = process.transition(torch.tensor([0.1, 0.0]), middle)
    wanted = law.sample((4000,), generator=torch.Generator().manual_seed(5))[:, 0]  # type: ignore[call-arg]
    # two samples of one law: the largest gap of their distribution functions is below 1.63 √(2/n) in 99 of 100
    at = torch.linspace(0, 1, 101)[:, None]
    gap = ((found <= at).double().mean(1) - (wanted <= at).double().mean(1)).abs().max()
    assert float(gap) < 1.63 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("solver", [Ancestral(), Heun(), DPMSolverPP(2)], ids=repr)
def test_the_score_is_asked_inside_only(solver: Solver) -> None:
    """What is known, too, is folded before it is read."""
    process = Diffusion(Hypercube((2,)), VE())

    def score(x: Tensor, t: Any) -> Tensor:
        assert bool(process.domain.contains(x).all())
        return -torch.sin(2 * torch.pi * x)

    values, mask = torch.tensor([0.02, 0.5]), torch.tensor([True, False])
    inpaint(process, score, solver, karras(process, 8), values, mask, shape=200, seed=0, resamplings=2, denoise=False)


def test_what_stopped_on_the_way_is_handed_out_as_it_is() -> None:
    process, score = gaussian()
    broken = torch.tensor([False, True, False])

    def failing(x: Tensor, t: Any) -> Tensor:
        value = score(x, t)
        return torch.where(broken[:, None], torch.full_like(value, torch.nan), value)

    found = inpaint(process, failing, Ancestral(), karras(process, 6), KNOWN, MASK, shape=3, seed=0)
    assert found.ok.tolist() == [True, False, True]
    assert (found.x[:, 0] == KNOWN[0]).tolist() == [True, False, True]


def test_the_precision_is_that_of_the_values_unless_told() -> None:
    process, score = gaussian()
    run = lambda **o: inpaint(process, score, DDIM(), karras(process, 4), KNOWN, MASK, shape=2, seed=0, **o).x.dtype
    assert run() == torch.float64 and run(dtype=torch.float32) == torch.float32


def test_positions_of_a_simplex_are_known_as_a_whole() -> None:
    process = Diffusion(Simplex(3, (4,)), VE())
    data = process.domain.uniform().sample((6,))
    score = EmpiricalScore(process, data)
    mask = torch.tensor([True, False, True, False])[:, None].expand(4, 2)
    x = inpaint(process, score, EulerMaruyama(), karras(process, 8), data[0], mask, shape=5, seed=range(5)).x
    assert bool(process.domain.contains(x).all()) and torch.equal(x[:, mask], data[0][mask].expand(5, 4))
    # the parts of a product, too
    joint = Diffusion(Product(Hypercube((2,)), Simplex(3)), VE())
    atoms = joint.domain.uniform().sample((6,))
    parts = torch.tensor([True, False, True, True])
    x = inpaint(
        joint, EmpiricalScore(joint, atoms), EulerMaruyama(), karras(joint, 8), atoms[0], parts, shape=3, seed=0
    ).x
    assert bool(joint.domain.contains(x).all()) and torch.equal(x[:, parts], atoms[0][parts].expand(3, 3))


def test_rules_that_read_predictions_start_from_pure_noise() -> None:
    """Flow matching at t = 1, where the scale is 0: the known part is noise there, of std 1."""
    process, score = gaussian(FlowMatching())
    x = inpaint(process, score, DDIM(), [1.0, 0.7, 0.3, 0.01], KNOWN, MASK, shape=4, resamplings=2, seed=0).x
    assert bool(x.isfinite().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.tensor([True, False, True])}, "mask: got shape"),
        ({"mask": torch.tensor([1.0, 0.0])}, "mask: got torch.float32, expected bool"),
        ({"values": torch.zeros(3)}, "values: got shape"),
        ({"values": torch.zeros(5, 2)}, "values: got shape .* broadcast to those of the states"),
        ({"solver": AdaptiveODE()}, "rule with fixed steps"),
        ({"resamplings": 0}, "resamplings: got 0"),
        ({"jump": 1.5}, "jump: got 1.5"),
        ({"seeds": 3}, "seeds"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    process, score = gaussian()
    arguments: dict[str, Any] = {"solver": DDIM(), "values": KNOWN, "mask": MASK, "shape": 4, **change}
    rule, values, mask = (arguments.pop(name) for name in ("solver", "values", "mask"))
    with pytest.raises((TypeError, ValueError), match=message):
        inpaint(process, score, rule, karras(process, 4), values, mask, **arguments)


def test_values_outside_and_masks_through_a_wall_are_refused() -> None:
    cube, simplex = Diffusion(Hypercube((2,)), VE()), Diffusion(Simplex(3), VE())
    with pytest.raises(ValueError, match="values"):
        inpaint(cube, lambda x, t: x, DDIM(), karras(cube, 4), KNOWN, MASK, shape=1)
    with pytest.raises(ValueError, match="share walls"):
        inpaint(simplex, lambda x, t: x, DDIM(), karras(simplex, 4), torch.tensor([0.2, 0.5]), MASK, shape=1)
    joint, half = Diffusion(Product(Hypercube((2,)), Simplex(3)), VE()), torch.tensor([True, False, True, False])
    with pytest.raises(ValueError, match="share walls"):
        inpaint(joint, lambda x, t: x, DDIM(), karras(joint, 4), torch.full((4,), 0.3), half, shape=1)
    ball = Diffusion(Ball(2), VE())
    with pytest.raises(TypeError, match="reflection is a fold"):
        inpaint(ball, lambda x, t: x, DDIM(), karras(ball, 4), torch.zeros(2), MASK, shape=1)


# ------------------------------------------------------------------------------------------------- editing, interpolation


def test_an_edit_has_the_law_of_its_level_run_down() -> None:
    """Data noised to t and run down has, over data of the model, the model's law; given one datum, moments by the same recursion."""
    process, score = gaussian()
    times, n = karras(process, 30), 4000
    x0 = torch.tensor([2.0, 1.5], dtype=torch.float64)
    found = edit(process, score, Ancestral(), times, x0.expand(n, 2), t=0.4, seed=0, denoise=False).x
    grid = torch.cat([torch.tensor([0.4], dtype=torch.float64), times[times < 0.4]])
    scale, std = process.schedule.scale(grid[0]), process.schedule.std(grid[0])
    mean, covariance = propagate_moments(
        process.reverse(score), Ancestral(), grid, scale * x0, std**2 * torch.eye(2, dtype=torch.float64)
    )
    error = (found.mean(0) - mean) / (covariance.diagonal() / n).sqrt()
    assert float(error.abs().max()) < 3
    spread = (found.var(0) - covariance.diagonal()) / (covariance.diagonal() * (2 / n) ** 0.5)
    assert float(spread.abs().max()) < 3


@pytest.mark.parametrize("process", [Diffusion(Ball(2), VE()), Diffusion(Hypercube((2,)), VE())], ids=repr)
def test_an_edit_is_the_same_alone_and_in_a_batch_and_stays_inside(process: Diffusion) -> None:
    atoms = process.domain.uniform().sample((5,))
    score = EmpiricalScore(process, atoms)
    times = karras(process, 6)
    together = edit(process, score, EulerMaruyama(), times, atoms[:3], strength=0.6, seed=[1, 2, 3])
    assert bool(process.domain.contains(together.x, atol=1e-6).all())
    assert torch.equal(
        together.x[1:2], edit(process, score, EulerMaruyama(), times, atoms[1:2], strength=0.6, seed=[2]).x
    )
    # 3 of 5 steps, and one denoising
    assert together.nfe == 4


def test_a_part_of_the_way_is_a_part_of_the_grid() -> None:
    """A level of the grid is gone over once, though a float of it be; shares are rounded, not cut: .29·100 is 28.999…"""
    grid = karras(gaussian()[0], 101)
    assert torch.equal(_from(grid, float(grid[40]), None), grid[40:])
    between = float(grid[40] + grid[41]) / 2
    assert torch.equal(_from(grid, between, None), torch.cat([torch.tensor([between], dtype=torch.float64), grid[41:]]))
    for share, steps in ((0.29, 29), (1.0, 100), (0.001, 1), (0.018, 2)):
        assert torch.equal(_from(grid, None, share), grid[100 - steps :])


def test_a_higher_level_renews_more() -> None:
    process, score = gaussian()
    x0 = torch.tensor([2.0, -2.0]).expand(500, 2)
    distance = [
        float((edit(process, score, DDIM(), karras(process, 20), x0, t=t, seed=0).x - x0).pow(2).mean())
        for t in (0.05, 0.2, 0.6)
    ]
    assert distance[0] < distance[1] < distance[2] and distance[0] < 0.5


def test_the_noise_on_the_way_goes_on_from_the_start() -> None:
    """Were the source opened anew, the first noise would be that of the start: the variance would show it, see the moments above; here the
    draws themselves."""
    process, score = gaussian()
    x0 = torch.zeros(1, 2)
    seen = edit(process, score, EulerMaruyama(), [0.9, 0.5], x0, t=0.9, seed=[3], denoise=False, save="all")
    start = seen.trajectory[0]  # type: ignore[index]
    z = start / process.schedule.std(torch.tensor(0.9))
    again = SampleNoise([3]).open(x0, 1)
    first, second = again(0.9, 0.5), again(0.9, 0.5)
    torch.testing.assert_close(z, first, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": 1.5}, "t: got 1.5"),
        ({"t": 1e-9}, "t: got 1e-09"),
        ({"strength": 0.0}, "strength: got 0"),
        ({"strength": 1.2}, "strength: got 1.2"),
        ({}, "exactly one"),
        ({"t": 0.5, "strength": 0.5}, "exactly one"),
    ],
)
def test_levels_off_the_way_are_refused(change: dict[str, Any], message: str) -> None:
    process, score = gaussian()
    with pytest.raises((TypeError, ValueError), match=message):
        edit(process, score, DDIM(), karras(process, 4), torch.zeros(2, 2), **change)


def test_ways_between_data_end_where_their_round_trips_do() -> None:
    process, score = gaussian()
    times, a, b = karras(process, 30), torch.tensor([[1.0, 0.5]]).double(), torch.tensor([[-0.4, 0.9]]).double()
    way = interpolate(process, score, Heun(), times, a, b, 5)
    assert way.x.shape == (5, 1, 2)
    for end, x in ((0, a), (-1, b)):
        torch.testing.assert_close(way.x[end], round_trip(process, score, Heun(), times, x).back, rtol=1e-9, atol=1e-9)


def test_codes_go_along_an_arc_in_the_open_and_a_chord_between_walls() -> None:
    """On standard normal data the flow of VP is the identity: the way itself is seen."""
    process = Diffusion(Euclidean((2,)), VP())
    score = GaussianMixtureScore(process, [1.0], [[0.0, 0.0]], 1.0)
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    x = interpolate(process, score, Heun(), karras(process, 30), a, b, 3).x
    # up to the flow below the end of the grid, where s² + std² = 1 but data is divided by s alone
    torch.testing.assert_close(x[1], torch.tensor([0.5**0.5, 0.5**0.5]).double(), rtol=0, atol=1e-3)
    opposite = interpolate(process, score, Heun(), karras(process, 30), a, -a, 3).x
    assert bool(opposite.isfinite().all())
    cube = problems.cosine(dim=2)
    a, b, times = torch.tensor([0.1, 0.2]).double(), torch.tensor([0.9, 0.5]).double(), karras(cube.process, 20)
    middle = interpolate(cube.process, cube.score, Heun(), times, a, b, 3).x[1]
    codes = [encode(cube.process, cube.score, Heun(), times, x).x for x in (a, b)]
    down = solve(cube.process.flow(cube.score), (codes[0] + codes[1]) / 2, times, Heun()).x
    torch.testing.assert_close(middle, down, rtol=1e-12, atol=1e-12)


def test_ways_that_do_not_fit_are_refused() -> None:
    process, score = gaussian()
    with pytest.raises(ValueError, match="n: got 1"):
        interpolate(process, score, Heun(), karras(process, 4), torch.zeros(2), torch.ones(2), 1)
    with pytest.raises(ValueError, match="b: got shape"):
        interpolate(process, score, Heun(), karras(process, 4), torch.zeros(2), torch.ones(1, 2), 3)
    with pytest.raises(TypeError, match="deterministic"):
        interpolate(process, score, Ancestral(), karras(process, 4), torch.zeros(2), torch.ones(2), 3)
