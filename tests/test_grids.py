"""Time grids beyond the four basic ones, grids on disk, tuned grids, encoding."""

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from carom.domains import Euclidean, Hypercube
from carom.processes import EDM, VE, VP, CosineVP, Diffusion, Discrete, FlowMatching, SubVP
from carom.scores import GaussianMixtureScore
from carom.solvers import (
    DDIM,
    DPMSolverPP,
    EulerMaruyama,
    ExponentialAdams,
    Heun,
    UniPC,
    align,
    beta,
    discrete,
    encode,
    grid_from_diffusers,
    iddpm,
    iddpm_levels,
    karras,
    load_grid,
    polyexponential,
    quadratic,
    read_grid_file,
    round_trip,
    save_grid,
    solve,
    tuned,
    uniform,
    uniform_lambda,
)
from carom.validation import convergence_order, problems

F64 = torch.float64
LINE = Euclidean((1,))
LINEAR = Diffusion(LINE, Discrete.from_betas("linear"))


@pytest.mark.parametrize(
    "grid", [polyexponential, beta, lambda p, n: beta(p, n, clock="sigma"), lambda p, n: polyexponential(p, n, 2.0)]
)
@pytest.mark.parametrize("schedule", [VP(), VE(), EDM(), CosineVP(), FlowMatching()], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_grids_are_strict_and_end_at_the_schedules_levels(grid, schedule, n) -> None:
    process = Diffusion(LINE, schedule)
    times = grid(process, n)
    assert times.shape == (n,) and times.dtype == F64 and bool((times.diff() < 0).all())
    assert float(times[0]) == pytest.approx(schedule.t_max, rel=1e-9)
    if n > 1:
        assert float(schedule.sigma(times[-1])) == pytest.approx(schedule.sigma_min, rel=1e-8)


def test_polyexponential_bends_uniform_lambda() -> None:
    process = Diffusion(LINE, EDM())
    torch.testing.assert_close(polyexponential(process, 9), uniform_lambda(process, 9), rtol=1e-12, atol=0)
    ramp = torch.linspace(1, 0, 9, dtype=F64) ** 2
    want = (math.log(0.002) + ramp * math.log(80 / 0.002)).exp()
    torch.testing.assert_close(80 * polyexponential(process, 9, 2.0), want, rtol=1e-10, atol=0)


def test_beta_crowds_both_ends() -> None:
    steps = -beta(Diffusion(LINE, VP()), 11).diff()
    assert float(steps[0]) < 0.5 * float(steps[5]) and float(steps[-1]) < 0.5 * float(steps[5])
    one = beta(Diffusion(LINE, EDM()), 11, 1.0, 1.0)  # Beta(1, 1) is uniform
    torch.testing.assert_close(one, uniform(Diffusion(LINE, EDM()), 11), rtol=0, atol=1e-14)


def test_iddpm_levels_of_the_edm_table() -> None:
    """formulas.md §15 (the notes' l.1499 has −1 outside the root: erratum E10)."""
    u = iddpm_levels()
    want = {
        0: 20291.16961,
        1: 641.662345118,
        8: 80.2037018455,
        500: 1.01238956395,
        998: 0.00935049283562,
        999: 0.00642541277114,
    }
    assert len(u) == 1000 and all(float(u[j]) == pytest.approx(v, rel=1e-10) for j, v in want.items())
    wide = Diffusion(LINE, EDM(sigma_max=90.0))
    times = iddpm(wide, 18, first=8)
    assert float(times[0]) * 90 == pytest.approx(80.2037018455, rel=1e-10) and float(times[-1]) * 90 == pytest.approx(
        0.00642541277114, rel=1e-10
    )
    index = [math.floor(8 + (999 - 8) / 17 * i + 0.5) for i in range(18)]
    torch.testing.assert_close(times * 90, u[index], rtol=1e-12, atol=0)
    assert float(iddpm(Diffusion(LINE, EDM()), 5)[0]) * 80 == pytest.approx(
        float(u[9]), rel=1e-10
    )  # the first that EDM(80) reaches


def test_align_interpolates_the_logarithm() -> None:
    process = Diffusion(LINE, EDM())
    table = [10.0, 1.0, 0.01]
    torch.testing.assert_close(
        80 * align(process, 5, table), torch.tensor([10, 10**0.5, 1, 0.1, 0.01], dtype=F64), rtol=1e-12, atol=0
    )
    sigmas = LINEAR.level(align(LINEAR, 11)).sigma
    assert sigmas.tolist() == pytest.approx(
        [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029], rel=1e-9
    )
    assert len(align(process, 1)) == 1


def test_discrete_spacings() -> None:
    """Label i of N is level i + 1, t = (i + 1)/N."""
    at = lambda *args, **kw: ((1000 * discrete(LINEAR, *args, **kw)).round() - 1).int().tolist()
    assert at(10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert at(10, "leading", offset=1) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert at(10, "trailing") == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert at(10, "linspace") == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert at(1, "trailing") == [999] and at(3) == [666, 333, 0]
    assert len(discrete(LINEAR, 1000)) == 1000


# --------------------------------------------------------------------------------------------------------------- diffusers


def test_grids_of_diffusers_schedulers() -> None:
    """Against the library itself where it is installed: every spacing, Karras, beta and flow sigmas, multi-stage rules."""
    diffusers = pytest.importorskip("diffusers")

    def grid(name: str, process=None, **config):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own use of NumPy
            scheduler = getattr(diffusers, name)(**config)
            scheduler.set_timesteps(10)
        return grid_from_diffusers(scheduler, process)

    for spacing in ("leading", "trailing", "linspace"):
        assert torch.equal(grid("DDIMScheduler", timestep_spacing=spacing), discrete(LINEAR, 10, spacing))
    torch.testing.assert_close(grid("EulerDiscreteScheduler"), discrete(LINEAR, 10, "linspace"), rtol=1e-6, atol=0)
    torch.testing.assert_close(grid("HeunDiscreteScheduler"), grid("LMSDiscreteScheduler"), rtol=1e-6, atol=0)
    level = LINEAR.level(grid("DPMSolverMultistepScheduler", use_karras_sigmas=True))
    torch.testing.assert_close(level.sigma, LINEAR.level(karras(LINEAR, 10)).sigma, rtol=1e-4, atol=0)
    level = LINEAR.level(grid("EulerDiscreteScheduler", use_beta_sigmas=True))
    torch.testing.assert_close(level.sigma, LINEAR.level(beta(LINEAR, 10, clock="sigma")).sigma, rtol=1e-4, atol=0)
    flow = grid("FlowMatchEulerDiscreteScheduler")
    assert float(flow[0]) == 1.0 and len(flow) == 10
    edm = grid("EDMEulerScheduler", Diffusion(LINE, EDM()))
    torch.testing.assert_close(edm, karras(Diffusion(LINE, EDM()), 10), rtol=1e-5, atol=0)


def test_schedulers_are_read_by_their_attributes() -> None:
    betas = SimpleNamespace(
        timesteps=torch.tensor([900, 500, 100]), alphas_cumprod=LINEAR.schedule.alphas_cumprod, config={}
    )
    assert grid_from_diffusers(betas).tolist() == pytest.approx([0.901, 0.501, 0.101])
    repeated = SimpleNamespace(timesteps=[1, 1, 2], sigmas=torch.tensor([9.0, 9.0, 2.0, 2.0, 0.5, 0.0]), config={})
    assert (80 * grid_from_diffusers(repeated, Diffusion(LINE, EDM()))).tolist() == pytest.approx([9, 2, 0.5])
    with pytest.raises(TypeError, match="name the process"):
        grid_from_diffusers(repeated)
    with pytest.raises(TypeError, match="after set_timesteps"):
        grid_from_diffusers(SimpleNamespace(timesteps=[1], num_inference_steps=None))
    with pytest.raises(TypeError, match="after set_timesteps"):
        grid_from_diffusers("ddim")
    with pytest.raises(TypeError, match="has labels, no noise levels"):
        grid_from_diffusers(betas, Diffusion(LINE, EDM()))


# ------------------------------------------------------------------------------------------------------------ grids on disk


def test_grids_come_back_to_the_bit_with_what_they_were_made_for(tmp_path) -> None:
    process, path = Diffusion(Hypercube((2,)), VE()), tmp_path / "grid.json"
    times = karras(process, 13)
    save_grid(path, times, process, solver=repr(UniPC(2)), n=13)
    assert torch.equal(load_grid(path), times) and torch.equal(load_grid(path, process, n=13), times)
    content = read_grid_file(path)
    assert content["made_for"] == {"solver": "UniPC(2)", "n": 13} and content["sigmas"][0] == pytest.approx(
        2.0, rel=1e-4
    )
    with pytest.raises(ValueError, match=r"expected one for .* tune it anew"):
        load_grid(path, Diffusion(LINE, VP()))
    with pytest.raises(ValueError, match="made for n = 13, expected 14"):
        load_grid(path, process, n=14)
    (tmp_path / "other.json").write_text(json.dumps({"times": [1]}))
    (tmp_path / "text.json").write_text("no grid")
    for name in ("other.json", "text.json"):
        with pytest.raises(ValueError, match="expected one written by save_grid"):
            load_grid(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


# ------------------------------------------------------------------------------------------------------------ tuned grids


def high_dimensional() -> tuple[Diffusion, GaussianMixtureScore]:
    g = torch.Generator().manual_seed(5)
    process = Diffusion(Euclidean((16,)), EDM())
    means, variances = (
        0.5 * torch.randn(5, 16, generator=g, dtype=F64),
        torch.rand(5, 16, generator=g, dtype=F64) * 0.1 + 0.01,
    )
    return process, GaussianMixtureScore(process, [1.0] * 5, means, variances)


@pytest.mark.parametrize("solver", [UniPC(2), ExponentialAdams(3), DPMSolverPP(2)], ids=repr)
def test_a_tuned_grid_is_judged_by_measured_error(solver) -> None:
    """On starts it has not seen: without the search no worse than the plain grids by more than chance, with it twice as good
    (2.2 to 10 times over seeds and rules)."""
    process, score = high_dimensional()
    settings = {"solver": solver, "candidates": 64, "samples": 64, "seed": 1}
    programme, times = (tuned(process, 14, score, refine=n, **settings) for n in (0, 150))
    for grid in (programme, times):
        assert len(grid) == 14 and bool((grid.diff() < 0).all())
        torch.testing.assert_close(grid[[0, -1]], uniform_lambda(process, 14)[[0, -1]], rtol=1e-12, atol=0)
    x = 80 * torch.randn(64, 16, dtype=F64, generator=torch.Generator().manual_seed(9))
    exact = solve(process.flow(score), x, uniform_lambda(process, 400), ExponentialAdams(4)).x
    error = lambda grid: float((solve(process.flow(score), x, grid, solver).x - exact).norm(dim=-1).median())
    plain = [error(g(process, 14)) for g in (uniform_lambda, karras, quadratic)]
    assert error(programme) < 1.15 * min(plain)
    assert error(times) < min(plain) / 2
    # the same every time
    assert torch.equal(times, tuned(process, 14, score, refine=150, **settings))


def test_tuned_grids_refuse_and_degrade() -> None:
    process, score = high_dimensional()
    assert torch.equal(tuned(process, 2, score), uniform_lambda(process, 2))
    with pytest.raises(TypeError, match="expected a deterministic rule"):
        tuned(process, 8, score, solver=EulerMaruyama())
    box = Diffusion(Hypercube((2,)), VE())
    score = problems.cosine(0.5, 2).score
    assert len(tuned(box, 8, score, candidates=32, samples=8, refine=40)) == 8
    # fewer steps than knots
    assert len(tuned(box, 3, score, candidates=32, samples=8, refine=40)) == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: align(LINEAR, 3, "sd"), ValueError, "expected one of stable-diffusion"),
        (lambda: align(LINEAR, 3, [1.0, 2.0]), ValueError, "strictly decreasing"),
        (lambda: align(LINEAR, 3, "stable-video-diffusion"), ValueError, "expected at most σ_max"),
        (lambda: beta(LINEAR, 3, clock="lambda"), ValueError, "expected 't' or 'sigma'"),
        (lambda: beta(LINEAR, 3, a=0.0), ValueError, "a: got 0"),
        (lambda: discrete(Diffusion(LINE, VP()), 3), TypeError, "expected a Discrete schedule"),
        (lambda: discrete(LINEAR, 3, "middle"), ValueError, "expected 'leading', 'trailing' or 'linspace'"),
        (lambda: discrete(LINEAR, 1001), ValueError, "at most the 1000 levels"),
        (lambda: discrete(LINEAR, 10, offset=200), ValueError, "which leads to label 1100"),
        (lambda: iddpm(LINEAR, 5, first=998), ValueError, "at least n levels left"),
    ],
)
def test_grids_refuse(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


# --------------------------------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize(
    "solver", [Heun(), DDIM(), UniPC(2), ExponentialAdams(3, "noise"), DPMSolverPP(2, multistep=False)], ids=repr
)
def test_the_round_trip_error_falls_with_the_order_of_the_solver(solver) -> None:
    problem = problems.mixture(VP())
    x = torch.tensor([[-1.1], [-0.8], [0.5], [1.2]], dtype=F64)
    grid = lambda n: uniform_lambda(problem.process, n + 1, sigma_max=3.0, sigma_min=0.1)

    def error(n: int) -> float:
        trip = round_trip(problem.process, problem.score, solver, grid(n), x)
        assert trip.error.shape == (4,) and torch.allclose(trip.error, (trip.back - x).abs()[:, 0])
        return float(trip.error.max())

    slopes = convergence_order(error, (32, 64, 128))
    # there and back, leading errors may cancel: at least the order
    assert float(slopes[-1]) > solver.order - 0.15, slopes


def test_codes_do_not_depend_on_the_schedule() -> None:
    """VP, sub-VP and EDM encode one point to one z = x/std where they end at the same σ: all are reparametrisations of one flow."""
    x = torch.tensor([[-1.1], [0.2], [0.9]], dtype=F64)
    codes = []
    for schedule in (VP(), SubVP(), EDM(), FlowMatching()):
        problem = problems.mixture(schedule)
        times = uniform_lambda(problem.process, 301, sigma_max=40.0, sigma_min=0.01)
        code = encode(problem.process, problem.score, ExponentialAdams(3), times, x)
        codes.append(code.x / schedule.std(times[0]))
        # and it is the flow's own answer from x at σ_min
        exact = problem.flow(x * problem.process.level(times[-1]).scale, float(times[-1]), float(times[0]))
        torch.testing.assert_close(code.x, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
    for other in codes[1:]:
        torch.testing.assert_close(other, codes[0], rtol=0, atol=1e-11)


def test_encoding_between_walls_and_its_refusals() -> None:
    problem = problems.cosine(0.5, 2)
    x = torch.rand(5, 2, dtype=F64)
    trip = round_trip(problem.process, problem.score, Heun(), uniform_lambda(problem.process, 60), x)
    assert float(trip.error.max()) < 1e-3 and bool(problem.process.domain.contains(trip.code.x).all())
    with pytest.raises(ValueError, match="lie outside"):
        encode(problem.process, problem.score, Heun(), uniform_lambda(problem.process, 6), x + 1)
    with pytest.raises(TypeError, match="expected a deterministic rule that takes a probability flow"):
        encode(problem.process, problem.score, EulerMaruyama(), uniform_lambda(problem.process, 6), x)
    with pytest.raises(ValueError, match=r"use times\.flip"):
        encode(problem.process, problem.score, Heun(), uniform_lambda(problem.process, 6).flip(0), x)
