"""The loop and what it promises: per-sample independence, one compiled step, gradients, statuses, refusals."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from carom.domains import Euclidean, Hypercube, Orthant
from carom.processes import EDM, ODE, SDE, VE, VP, CosineVP, Diffusion, FlowMatching
from carom.scores import EmpiricalScore, GaussianMixtureScore
from carom.solvers import (
    RK4,
    SOLVERS,
    AdaptiveODE,
    BrownianPath,
    Cover,
    Euler,
    EulerMaruyama,
    Heun,
    Project,
    Reflect,
    ReflectedEulerMaruyama,
    RungeKutta,
    SampleNoise,
    SolveError,
    Status,
    Tableau,
    TorchDiffEq,
    Wall,
    WhiteNoise,
    bind,
    integrate,
    karras,
    quadratic,
    sample,
    solve,
    uniform,
    uniform_lambda,
)

GRIDS = (karras, uniform, quadratic, uniform_lambda)
FIXED = (Euler(), Heun(), RungeKutta(RK4), EulerMaruyama(), ReflectedEulerMaruyama())
BOX = Diffusion(Hypercube((2,)), VE())
OPEN = Diffusion(Euclidean((2,)), VP())


def box_score() -> EmpiricalScore:
    return EmpiricalScore(BOX, torch.rand(23, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 2)


def open_score(process: Diffusion = OPEN) -> GaussianMixtureScore:
    covariances = [[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.4]]]
    return GaussianMixtureScore(process, [0.3, 0.7], [[0.5, -0.3], [-1.0, 0.8]], covariances)


CASES = [(BOX, box_score()), (OPEN, open_score())]


# ---------------------------------------------------------------------------------------------- per-sample independence


@pytest.mark.parametrize("solver", [*FIXED, AdaptiveODE(1e-4, 1e-4)], ids=repr)
@pytest.mark.parametrize(("process", "score"), CASES, ids=["box", "open"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_a_sample_is_the_same_alone_and_in_a_batch(process, score, solver, dtype):
    grid = karras(process, 9)
    seeds = [7, 1, 30, 4, 5]
    batch = sample(process, score, solver, grid, shape=5, seed=seeds, dtype=dtype)
    nfe = torch.as_tensor(batch.nfe).expand(5)
    for i, seed in enumerate(seeds):
        alone = sample(process, score, solver, grid, shape=(), seed=[seed], dtype=dtype)
        assert torch.equal(alone.x, batch.x[i])
        assert int(alone.nfe) == int(nfe[i])
    pair = sample(process, score, solver, grid, shape=(1, 2), seed=[4, 30], dtype=dtype)
    assert torch.equal(pair.x[0], batch.x[[3, 2]])


@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_two_solves_share_nothing(solver):
    first = sample(BOX, box_score(), solver, karras(BOX, 6), shape=3, seed=5)
    sample(BOX, box_score(), solver, karras(BOX, 4), shape=7, seed=6)
    again = sample(BOX, box_score(), solver, karras(BOX, 6), shape=3, seed=5)
    assert torch.equal(first.x, again.x)


def test_the_prior_and_the_first_noise_are_not_tied():
    """Restarting the generator after the prior would make the first noise equal the prior's (numerics §2)."""
    process = Diffusion(Euclidean((1,)), VP())
    template = torch.empty(4, 1)
    for recipe in (WhiteNoise(0), SampleNoise(range(4)), BrownianPath(range(4))):
        source = recipe.open(template, 1)
        prior = source.initial(process.prior())
        assert not torch.equal(prior, source(1.0, 0.5))


# ------------------------------------------------------------------------------------------------------ noise sources


@pytest.mark.parametrize(
    "recipe", [WhiteNoise(3), SampleNoise(range(6)), BrownianPath(range(6))], ids=lambda r: type(r).__name__
)
def test_recipes_open_anew_and_streams_differ(recipe):
    x = torch.empty(2, 3, 4)
    a, b = recipe.open(x, 1), recipe.open(x, 1)
    one, two = a(1.0, 0.5, stream=0), a(1.0, 0.5, stream=1)
    assert one.shape == x.shape and one.dtype == x.dtype
    assert not torch.equal(one, two)
    assert torch.equal(b(1.0, 0.5, stream=0), one) and torch.equal(b(1.0, 0.5, stream=1), two)


def test_a_brownian_path_adds_up_over_any_partition():
    """W(s) − W(t) is additive: the noise of a long step is the weighted sum of those of its parts, to rounding of the tree."""
    x = torch.empty(3, 2, dtype=torch.float64)
    source = BrownianPath([1, 2, 3]).open(x, 1)
    points = [2.25, 1.5, 1.0, 0.625, 0.6, 0.125]  # across cells of unit length, dyadic and not
    parts = sum(source(t, s) * math.sqrt(t - s) for t, s in itertools.pairwise(points))
    whole = source(points[0], points[-1]) * math.sqrt(points[0] - points[-1])
    # 0.6 is rounded to a multiple of 2^-24: the two increments at it are scaled by a relative 2^-24/0.025
    assert torch.allclose(parts, whole, atol=3e-6)
    fresh = BrownianPath([1, 2, 3]).open(x, 1)
    assert torch.allclose(fresh(0.6, 0.125), source(0.6, 0.125), atol=1e-14), "the cache must not matter"
    assert torch.allclose(fresh(0.125, 0.6), -source(0.6, 0.125), atol=1e-14)


@pytest.mark.montecarlo
def test_brownian_increments_are_standard_and_independent():
    n = 4000
    source = BrownianPath(range(n)).open(torch.empty(n, 1, dtype=torch.float64), 1)
    a, b, c = source(0.9, 0.7).flatten(), source(0.7, 0.1).flatten(), source(0.9, 0.7, stream=1).flatten()
    se = 1 / math.sqrt(n)
    for z in (a, b, c):
        assert abs(float(z.mean())) < 4 * se  # standard error of a mean of unit normals
        assert abs(float(z.var()) - 1) < 4 * math.sqrt(2) * se  # and of their variance
    for y, z in ((a, b), (a, c)):
        assert abs(float((y * z).mean())) < 4 * se


def test_brownian_path_refuses_steps_below_its_resolution():
    source = BrownianPath([0]).open(torch.empty(1, 1), 1)
    with pytest.raises(ValueError, match=r"longer than 6\.0e-08"):
        source(0.5, 0.5 + 1e-9)


def test_seed_counts_are_checked():
    with pytest.raises(ValueError, match="got 3, expected one per sample: 4"):
        sample(BOX, box_score(), Euler(), karras(BOX, 3), shape=(2, 2), seed=[1, 2, 3])
    with pytest.raises(TypeError, match="WhiteNoise takes one seed"):
        SampleNoise(3)
    with pytest.raises(TypeError, match="both seed and noise"):
        sample(BOX, box_score(), Euler(), karras(BOX, 3), shape=1, seed=1, noise=WhiteNoise(1))


# ------------------------------------------------------------------------------------------------------ compiling, gradients


@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_one_compiled_step_serves_every_grid(solver):
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(solver.step, fullgraph=True, backend=counter)
    score = open_score()
    equation = solver.accepts[0](OPEN, score).bound(Wall())
    x = torch.randn(4, 2, dtype=torch.float64)
    for grid in (karras(OPEN, 5), uniform(OPEN, 9), quadratic(OPEN, 12)):
        source = WhiteNoise(1).open(x, 1)
        compiled = eager = x
        for record in bind(solver.plan(equation, grid), x):
            noise = tuple(source(0.0, 1.0) for _ in range(record.draws))
            compiled, _ = step(equation, compiled, record, (), noise)
            eager, _ = solver.step(equation, eager, record, (), noise)
        assert torch.allclose(compiled, eager, rtol=1e-12)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_integrate_compiles_whole(solver):
    torch._dynamo.reset()
    equation = solver.accepts[0](OPEN, open_score())
    x = torch.randn(3, 2, dtype=torch.float64)
    records = bind(solver.plan(equation, karras(OPEN, 5)), x)
    draws = [tuple(torch.randn_like(x) for _ in range(r.draws)) for r in records]
    whole = torch.compile(integrate, fullgraph=True, backend="eager")
    assert torch.allclose(
        whole(equation, x, records, solver, draws)[0], integrate(equation, x, records, solver, draws)[0], rtol=1e-12
    )
    torch._dynamo.reset()


@pytest.mark.parametrize("solver", [*FIXED, AdaptiveODE(1e-6, 1e-6), TorchDiffEq("rk4")], ids=repr)
def test_solve_is_differentiable(solver):
    process = Diffusion(Euclidean((2,)), EDM(sigma_min=0.2, sigma_max=3.0))
    score = open_score(process)
    equation = solver.accepts[0](process, score)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def end(x: Tensor) -> Tensor:
        return solve(equation, x, karras(process, 4), solver, noise=WhiteNoise(0)).x

    assert torch.autograd.gradcheck(end, (x,), atol=1e-6)


def test_parameters_of_the_drift_receive_gradients():
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    decay = ODE(lambda x, t: -rate * x, Euclidean((1,)))
    x = solve(decay, torch.ones(1, 1, dtype=torch.float64), torch.linspace(0, 1, 41), RungeKutta(RK4)).x
    (slope,) = torch.autograd.grad(x.sum(), rate)
    assert float(slope) == pytest.approx(-math.exp(-0.7), abs=1e-8)  # RK4's error at h = 1/40


def test_sample_runs_without_grad_and_is_quiet_about_it():
    assert not sample(OPEN, open_score(), Heun(), karras(OPEN, 3), shape=1).x.requires_grad


# ------------------------------------------------------------------------------------------------------------- adaptive


def stiffness_score() -> GaussianMixtureScore:
    return GaussianMixtureScore(Diffusion(Euclidean((1,)), EDM()), [0.5, 0.5], [[-1.0], [1.0]], 1e-4)


def test_adaptive_agrees_with_torchdiffeq_and_the_closed_form():
    process = Diffusion(Euclidean((1,)), VP())
    score = GaussianMixtureScore(process, [1.0], [[0.5]], 0.25)
    x = torch.tensor([[1.3], [-2.0]], dtype=torch.float64)
    grid = karras(process, 2)
    ours = solve(process.flow(score), x, grid, AdaptiveODE(1e-10, 1e-10))
    theirs = solve(process.flow(score), x, grid, TorchDiffEq("dopri5", rtol=1e-10, atol=1e-10))
    t, s = process.level(grid[0]), process.level(grid[-1])
    var = [0.25 * float(v.scale) ** 2 + float(v.scale * v.sigma) ** 2 for v in (t, s)]
    exact = 0.5 * s.scale + math.sqrt(var[1] / var[0]) * (x - 0.5 * t.scale)
    # both control the local error per step at 1e-10; some thirty steps later it has grown to at most 1e-8
    assert torch.allclose(ours.x, exact, atol=1e-8) and torch.allclose(theirs.x, exact, atol=1e-8)
    assert bool(ours.ok.all()) and int(ours.nfe.max()) < theirs.nfe * 1.5


def test_adaptive_error_is_proportional_to_the_tolerance():
    process = Diffusion(Euclidean((1,)), EDM())
    score = GaussianMixtureScore(process, [0.3, 0.7], [[-1.0], [0.8]], [0.04, 0.09])
    x = torch.tensor([[-120.0], [-48.0], [8.0], [56.0], [144.0]], dtype=torch.float64)
    exact = torch.tensor([-1.15355006496, -0.73108283636, 0.676884066123, 0.917925014848, 1.28856313768]).double()
    exact = solve(process.flow(score), x, karras(process, 2), AdaptiveODE(1e-13, 1e-13)).x.flatten()
    errors = []
    for tolerance in (1e-5, 1e-7, 1e-9):
        run = solve(process.flow(score), x, karras(process, 2), AdaptiveODE(tolerance, tolerance))
        errors.append(float((run.x.flatten() - exact).abs().max()))
    slopes = [math.log10(a / b) / 2 for a, b in itertools.pairwise(errors)]
    assert all(0.6 < slope < 1.4 for slope in slopes), (errors, slopes)


def test_neighbours_of_another_stiffness_change_nothing():
    score = stiffness_score()
    process = score.process
    x = torch.tensor([[0.01], [40.0], [-80.0]], dtype=torch.float64)
    solver = AdaptiveODE(1e-6, 1e-6)
    batch = solve(process.flow(score), x, karras(process, 2), solver)
    for i in range(3):
        alone = solve(process.flow(score), x[i : i + 1], karras(process, 2), solver)
        assert torch.equal(alone.x[0], batch.x[i]) and int(alone.nfe[0]) == int(batch.nfe[i])
    assert len(set(batch.nfe.tolist())) > 1


def test_finished_samples_leave_the_batch_where_the_score_offers_rows():
    score = stiffness_score()
    sizes = []

    class Watched:
        def __call__(self, x, t):
            sizes.append(len(x))
            return score(x, t)

    class WithRows(Watched):
        def rows(self, index):
            return self

    x = torch.tensor([[0.01], [40.0], [-80.0]], dtype=torch.float64)
    grid = karras(score.process, 2)
    frozen = solve(score.process.flow(Watched()), x, grid, AdaptiveODE())
    assert set(sizes) == {3}
    sizes.clear()
    leaving = solve(score.process.flow(WithRows()), x, grid, AdaptiveODE())
    assert min(sizes) == 1
    assert torch.equal(frozen.x, leaving.x) and torch.equal(frozen.nfe, leaving.nfe)
    # a fresh slope and the first-step probe are evaluated for the whole batch at once, everything else for those that need it
    assert sum(sizes) <= int(leaving.nfe.sum()) + 6


def test_max_nfe_returns_the_partial_result_of_that_sample_only():
    score = stiffness_score()
    process = score.process
    x = torch.tensor([[0.01], [40.0]], dtype=torch.float64)
    full = solve(process.flow(score), x, karras(process, 2), AdaptiveODE(1e-8, 1e-8))
    limit = int(full.nfe.min()) + 6
    cut = solve(process.flow(score), x, karras(process, 2), AdaptiveODE(1e-8, 1e-8, max_nfe=limit))
    slow = int(full.nfe.argmax())
    assert cut.status[slow] == Status.MAX_EVALUATIONS and cut.status[1 - slow] == Status.OK
    assert torch.equal(cut.x[1 - slow], full.x[1 - slow]) and bool(cut.x.isfinite().all())
    assert int(cut.nfe.max()) <= limit
    assert "max_nfe was reached" in cut.report()


def test_adaptive_statuses_of_broken_fields():
    process = Diffusion(Euclidean((1,)), EDM())
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)

    def poisoned(x, t):
        return torch.where(x > 1.5, math.nan, -x / (1 + (80 * t) ** 2))

    run = solve(process.flow(poisoned), x, karras(process, 2), AdaptiveODE())
    assert run.status.tolist() == [Status.OK, Status.NON_FINITE]
    step = ODE(lambda x, t: 1 / (0.5 - t).abs() ** 1.5 * torch.ones_like(x), Euclidean((1,)))
    blow = solve(step, x, [0.0, 1.0], AdaptiveODE(max_nfe=100_000))
    assert set(blow.status.tolist()) <= {Status.STEP_UNDERFLOW, Status.NON_FINITE}
    assert torch.allclose(blow.failed_time, torch.tensor(0.5, dtype=torch.float64), atol=1e-3)


# ------------------------------------------------------------------------------------------------ walls and local time


def test_reflected_euler_maruyama_is_euler_maruyama_with_the_wall_reflect():
    grid = karras(BOX, 20)
    a = sample(BOX, box_score(), ReflectedEulerMaruyama(), grid, shape=9, seed=range(9))
    b = sample(BOX, box_score(), EulerMaruyama(), grid, shape=9, seed=range(9), wall=Reflect())
    assert torch.equal(a.x, b.x)


@pytest.mark.parametrize("wall", [Reflect(), Project(), Cover()], ids=repr)
@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_every_wall_hands_out_states_inside_and_never_reads_the_score_outside(solver, wall):
    score = box_score()

    def guarded(x, t):
        assert bool(BOX.domain.contains(x).all())
        return score(x, t)

    run = sample(BOX, guarded, solver, uniform(BOX, 7), shape=64, seed=1, wall=wall, save="all")
    assert bool(BOX.domain.contains(run.trajectory).all()) and bool(BOX.domain.contains(run.x).all())


def test_deterministic_rules_do_not_notice_the_wall_when_the_score_is_tangential():
    """s·n = 0 and steps that do not cross: the same digits under every wall (numerics §2)."""
    grid = uniform_lambda(BOX, 60)
    x = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [
        sample(BOX, box_score(), Heun(), grid, shape=50, initial=x, wall=w, denoise=False).x
        for w in (Reflect(), Project(), Cover())
    ]
    assert torch.allclose(ends[0], ends[1], atol=1e-12) and torch.allclose(ends[0], ends[2], atol=1e-12)


@pytest.mark.montecarlo
def test_local_time_of_reflected_brownian_motion():
    """E[L_t] = E|W_t| = √(2t/π) from 0; symmetrised Euler keeps it exactly, so only Monte Carlo error is left."""
    n = 20_000
    brownian = SDE(lambda x, t: torch.zeros_like(x), 1.0, Orthant((1,)))
    x = torch.zeros(n, 1, dtype=torch.float64)
    run = solve(brownian, x, torch.linspace(0, 2, 41), ReflectedEulerMaruyama(), noise=WhiteNoise(0))
    se = float(run.local_time.std()) / math.sqrt(n)
    assert run.local_time.shape == (n,)
    assert abs(float(run.local_time.mean()) - math.sqrt(4 / math.pi)) < 4 * se


def test_no_local_time_where_no_wall_pushes():
    assert sample(OPEN, open_score(), EulerMaruyama(), karras(OPEN, 3), shape=2).local_time is None
    assert sample(BOX, box_score(), EulerMaruyama(), karras(BOX, 3), shape=2, wall=Cover()).local_time is None


# ------------------------------------------------------------------------------------------------------ own equations


def test_matrix_diagonal_and_scalar_diffusions_have_the_right_covariance():
    """One Euler–Maruyama step of dx = dW·B has covariance h·BBᵀ; read off from unit noises, no sampling."""
    matrix = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    for diffusion, expected in (
        (matrix, matrix),
        (lambda x, t: matrix.expand(len(x), 2, 2), matrix),
        (lambda x, t: torch.tensor([1.0, 3.0]), torch.diag(torch.tensor([1.0, 3.0])).double()),
        (0.7, 0.7 * torch.eye(2, dtype=torch.float64)),
    ):
        equation = SDE(lambda x, t: torch.zeros_like(x), diffusion, Euclidean((2,)))
        solver = EulerMaruyama()
        x = torch.zeros(2, 2, dtype=torch.float64)
        (record,) = bind(solver.plan(equation, torch.tensor([1.0, 1.25], dtype=torch.float64)), x)
        moved, _ = solver.step(equation, x, record, (), (torch.eye(2, dtype=torch.float64),))
        assert torch.allclose(moved, 0.5 * expected.T)


def test_time_may_run_either_way_over_any_span():
    growth = ODE(lambda x, t: t * x, Euclidean((1,)))
    x = torch.ones(1, 1, dtype=torch.float64)
    there = solve(growth, x, torch.linspace(-3, 5, 401, dtype=torch.float64), RungeKutta(RK4)).x
    back = solve(growth, there, torch.linspace(5, -3, 401, dtype=torch.float64), RungeKutta(RK4)).x
    # the sum of RK4's local errors (th)^5/120 at h = 0.02 is about 4e-6
    assert float(there) == pytest.approx(math.exp((25 - 9) / 2), rel=1e-5)
    assert float(back) == pytest.approx(1.0, rel=1e-5)


def test_numpy_in_and_out():
    decay = ODE(lambda x, t: -x, Euclidean((2,)))
    run = solve(decay, np.ones((3, 2)), np.linspace(0, 1, 11), Heun(), save=[0.5, 1.0]).numpy()
    assert isinstance(run.x, np.ndarray) and run.trajectory.shape == (2, 3, 2)
    assert run.times.tolist() == [0.5, 1.0]


def test_encoding_then_generating_comes_back():
    grid = karras(OPEN, 200)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = OPEN.flow(open_score())
    code = solve(flow, x, grid.flip(0), RungeKutta(RK4)).x
    again = solve(flow, code, grid, RungeKutta(RK4)).x
    assert torch.allclose(again, x, atol=1e-6)  # RK4 at 200 levels, both ways


# -------------------------------------------------------------------------------------------------- saving, callbacks


def test_save_and_callback():
    grid = karras(BOX, 8)
    seen = []
    everything = sample(
        BOX, box_score(), Euler(), grid, shape=2, seed=0, save="all", callback=seen.append, denoise=False
    )
    assert everything.trajectory.shape == (8, 2, 2) and torch.equal(everything.times, grid)
    assert torch.equal(everything.trajectory[-1], everything.x)
    assert [i.step for i in seen] == list(range(1, 8)) and seen[0].steps == 7 and seen[-1].time == float(grid[-1])
    every3 = sample(BOX, box_score(), Euler(), grid, shape=2, seed=0, save=3)
    assert torch.equal(every3.times, grid[[0, 3, 6, 7]])
    assert torch.equal(every3.trajectory, everything.trajectory[[0, 3, 6, 7]])
    some = sample(BOX, box_score(), Euler(), grid, shape=2, seed=0, save=grid[[2, 5]])
    assert torch.equal(some.trajectory, everything.trajectory[[2, 5]])
    with pytest.raises(ValueError, match=r"not on the grid \(nearest"):
        sample(BOX, box_score(), Euler(), grid, shape=2, save=[0.1234])
    with pytest.raises(ValueError, match="save: got 'some'"):
        sample(BOX, box_score(), Euler(), grid, shape=2, save="some")


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("solver", FIXED, ids=repr)
def test_one_and_two_levels(solver, n):
    run = sample(OPEN, open_score(), solver, karras(OPEN, n), shape=3, seed=0)
    stages = int(solver.evaluations) if solver.evaluations.isdigit() else 4
    assert run.nfe == (n - 1) * stages + 1 and bool(run.x.isfinite().all())


@pytest.mark.parametrize("shape", [0, (), 3, (2, 3), (0, 2)])
@pytest.mark.parametrize("solver", [*FIXED, AdaptiveODE()], ids=repr)
def test_batch_shapes(solver, shape):
    run = sample(BOX, box_score(), solver, karras(BOX, 3), shape=shape, seed=0)
    batch = (shape,) if isinstance(shape, int) else tuple(shape)
    assert run.x.shape == (*batch, 2) and run.status.shape == batch


def test_euclidean_samples_end_at_the_prediction_where_sigma_vanishes():
    """On a point mass every grid of one level lands on the data exactly."""
    process = Diffusion(Euclidean((1,)), FlowMatching())
    score = GaussianMixtureScore(process, [1.0], [[0.3]], 0.0)
    run = sample(process, score, Euler(), [0.999], shape=4, seed=0, dtype=torch.float64)
    assert torch.allclose(run.x, torch.full_like(run.x, 0.3), atol=1e-13)


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_nan_stops_its_sample_only():
    score = open_score()
    grid = karras(OPEN, 10)

    def poisoned(x, t):
        value = score(x, t)
        bad = (torch.arange(len(x)) == 1) & (t < grid[4] * 1.01)
        return torch.where(bad[:, None], math.nan, value)

    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clean = sample(OPEN, score, Heun(), grid, shape=3, initial=x, denoise=False)
    run = sample(OPEN, poisoned, Heun(), grid, shape=3, initial=x, denoise=False)
    assert run.status.tolist() == [0, Status.NON_FINITE, 0]
    assert torch.equal(run.x[[0, 2]], clean.x[[0, 2]]) and bool(run.x[1].isnan().all())
    # Heun's second stage of step 3 (from grid[3] to grid[4]) is the first to read the field there
    assert int(run.failed_step[1]) == 3 and float(run.failed_time[1]) == float(grid[4])
    assert "1 of 3 samples: the state became NaN" in run.report() and "step 3" in run.report()
    with pytest.raises(SolveError, match="sample 1, step 3") as caught:
        sample(OPEN, poisoned, Heun(), grid, shape=3, initial=x, raise_on_failure=True)
    assert torch.equal(caught.value.solution.status, run.status)


def test_an_infinity_is_seen_before_a_projection_hides_it():
    run = sample(BOX, lambda x, t: torch.full_like(x, math.inf), Euler(), karras(BOX, 3), shape=2, wall=Project())
    assert run.status.tolist() == [Status.NON_FINITE] * 2


# ------------------------------------------------------------------------------------------------------------ refusals


def run(**changes):
    arguments = {
        "process": BOX,
        "score": box_score(),
        "solver": Euler(),
        "times": karras(BOX, 3),
        "shape": 2,
        "seed": 0,
    }
    return sample(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"initial": torch.rand(2, 3)}, ValueError, r"\[\*batch, 2\]|expected shape \+ event"),
        ({"initial": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "expected a floating dtype"),
        ({"initial": torch.full((2, 2), 1.5)}, ValueError, "2 of 2 samples lie outside Hypercube"),
        ({"initial": torch.full((2, 2), math.nan)}, ValueError, "lie outside"),
        ({"times": [0.2, 0.4]}, ValueError, r"rises from 0.2 to 0.4, expected one that strictly decreases"),
        ({"times": [0.4, 0.4, 0.2]}, ValueError, "0.4 followed by 0.4 at position 0, expected a strictly monotone"),
        ({"times": [0.5, 0.0]}, ValueError, r"expected times within \(0, 1\]"),
        ({"times": [1.5, 0.5]}, ValueError, r"expected times within \(0, 1\]"),
        ({"times": []}, ValueError, "at least one time"),
        ({"times": [0.5, math.nan]}, ValueError, "NaN or infinite"),
        ({"solver": Euler}, TypeError, r"expected an instance of a Solver, e.g. Heun\(\)|accepts"),
        ({"wall": "reflect"}, TypeError, "expected an instance of a wall"),
        ({"noise": 3, "seed": None}, TypeError, "expected a recipe"),
        ({"score": lambda x, t: x[..., :1]}, ValueError, r"got \(2, 1\) .* expected the same shape and dtype"),
        ({"score": lambda x, t: x.double()}, ValueError, "expected the same shape and dtype"),
        ({"score": 3}, TypeError, "expected a callable score"),
        ({"shape": -1}, ValueError, "expected batch sizes of at least 0"),
        ({"colour": 1}, TypeError, "unexpected keyword"),
    ],
)
def test_bad_input_is_refused_with_what_was_got_expected_and_the_fix(changes, error, message):
    with pytest.raises(error, match=message):
        run(**changes)


def test_equations_and_solvers_must_fit():
    flow, reverse = BOX.flow(box_score()), BOX.reverse(box_score())
    x = torch.rand(2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"got a ReverseSDE, expected one of ProbabilityFlow, ODE; .*process.flow"):
        solve(reverse, x, [0.5, 0.1], Heun())
    with pytest.raises(TypeError, match=r"got a ProbabilityFlow, expected one of ReverseSDE"):
        solve(flow, x, [0.5, 0.1], EulerMaruyama())
    line = Euclidean((1,))
    for equation, times in (
        (SDE(lambda x, t: x, 1.0, line, direction=1), [1.0, 0.0]),
        (ODE(lambda x, t: x, line, direction=-1), [0.0, 1.0]),
    ):
        with pytest.raises(ValueError, match="DE runs the other way"):
            solve(equation, torch.zeros(2, 1), times, EulerMaruyama() if equation.stochastic else Euler())
        solve(equation, torch.zeros(2, 1), times[::-1], EulerMaruyama() if equation.stochastic else Euler())
    with pytest.raises(ValueError, match="direction: got 2"):
        SDE(lambda x, t: x, 1.0, line, direction=2)
    with pytest.raises(ValueError, match="ReverseSDE runs the other way"):
        solve(reverse, x, [0.1, 0.5], EulerMaruyama())
    with pytest.raises(ValueError, match="ForwardSDE runs the other way"):
        solve(BOX.forward(), x, [0.5, 0.1], EulerMaruyama())
    with pytest.raises(TypeError, match="torchdiffeq knows no walls"):
        solve(flow, x, [0.5, 0.1], TorchDiffEq("euler"))
    with pytest.raises(ValueError, match="stochasticity: got -1"):
        BOX.reverse(box_score(), -1.0)


def test_tableaus_are_checked():
    with pytest.raises(ValueError, match=r"weights summing to 0\.8333"):
        Tableau("bad", ((), (1.0,)), (1 / 3, 1 / 2), (0.0, 1.0), 2)
    with pytest.raises(ValueError, match="without an error row"):
        AdaptiveODE(method=RK4)
    with pytest.raises(ValueError, match="got 'dopri6', expected one of"):
        AdaptiveODE(method="dopri6")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("schedule", [VP(), VE(), EDM(), CosineVP(), FlowMatching()], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_grids_are_strict_and_end_at_the_schedules_levels(grid, schedule, n):
    process = Diffusion(Euclidean((1,)), schedule)
    times = grid(process, n)
    assert times.shape == (n,) and times.dtype == torch.float64 and bool((times.diff() < 0).all())
    assert float(times[0]) == pytest.approx(schedule.t_max, rel=1e-9)
    if n > 1:
        assert float(schedule.sigma(times[-1])) == pytest.approx(schedule.sigma_min, rel=1e-9)
    half = grid(process, n, sigma_max=schedule.sigma_max / 2)
    assert float(schedule.sigma(half[0])) == pytest.approx(schedule.sigma_max / 2, rel=1e-9)


def test_grid_shapes():
    process = Diffusion(Euclidean((1,)), VP())
    assert uniform(process, 6).diff().std() < 1e-15
    assert quadratic(process, 6).sqrt().diff().std() < 1e-15
    assert process.level(uniform_lambda(process, 6)).half_log_snr.diff().std() < 1e-13
    assert (process.level(karras(process, 6)).sigma ** (1 / 7)).diff().std() < 1e-13


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_grids_refuse_bad_counts(n):
    with pytest.raises(ValueError, match="expected an int ≥ 1"):
        karras(BOX, n)


def test_grids_refuse_bad_ends():
    with pytest.raises(ValueError, match="sigma_min: got 0"):
        karras(BOX, 3, sigma_min=0.0)
    with pytest.raises(ValueError, match="expected less than sigma_max"):
        karras(BOX, 3, sigma_min=3.0)


def test_the_solver_table_reads_class_facts():
    for cls in SOLVERS:
        facts = cls.facts()
        assert set(facts) == {"solver", "for", "order", "evaluations", "noise", "source"}
        assert all(facts.values()), facts


# ------------------------------------------------------------------------------------------- what users hand in instead


def test_a_callable_that_returns_one_matrix_is_a_matrix_whatever_the_batch():
    matrix = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    shared = SDE(lambda x, t: torch.zeros_like(x), lambda x, t: matrix, Euclidean((2,)))
    diagonal = SDE(lambda x, t: torch.zeros_like(x), lambda x, t: 1 + x**2, Euclidean((2,)))
    t = torch.tensor(0.5, dtype=torch.float64)
    for batch in (1, 2, 3):
        x, z = torch.rand(batch, 2, dtype=torch.float64), torch.rand(batch, 2, dtype=torch.float64)
        assert torch.allclose(shared.spread(x, t, z), z @ matrix.T)
        assert torch.allclose(diagonal.spread(x, t, z), (1 + x**2) * z)


def test_numpy_numbers_are_numbers():
    grid = karras(BOX, 4)
    one = sample(BOX, box_score(), Euler(), grid, shape=np.int64(2), seed=np.int64(3), save=np.int64(2))
    two = sample(BOX, box_score(), Euler(), grid, shape=2, seed=3, save=2)
    assert torch.equal(one.x, two.x) and torch.equal(one.trajectory, two.trajectory)
    SDE(lambda x, t: -x, np.float32(0.3), Euclidean((2,)))
    with pytest.raises(ValueError, match="save: got an empty list"):
        run(save=[])
    with pytest.raises(ValueError, match="expected k ≥ 1"):
        run(save=True)


def test_low_precision_states_and_solver_names_are_refused():
    with pytest.raises(TypeError, match=r"got torch\.float16, expected float32 or float64"):
        run(dtype=torch.float16)
    with pytest.raises(TypeError, match=r"got 'heun', expected an instance of a Solver"):
        run(solver="heun")
    with pytest.raises(TypeError, match="got float, expected a tensor of x's shape"):
        run(score=lambda x, t: 0.0)


def test_stochasticity_may_be_a_plain_function():
    x = torch.rand(3, 2, dtype=torch.float64)
    ends = [
        solve(BOX.reverse(box_score(), eta), x, karras(BOX, 5), EulerMaruyama(), noise=WhiteNoise(0)).x
        for eta in (0.5, lambda t: 0.5)
    ]
    assert torch.equal(*ends)


def test_a_bounded_domain_of_the_contract_alone_can_be_sampled():
    """event_shape, contains, project, reflect, uniform() and nothing else: bounded by its uniform law, its width measured."""
    from carom.domains import Domain

    cube = Hypercube((2,), 0.0, 3.0)

    class Mine(Domain):
        event_shape = (2,)

        def contains(self, x, atol=0.0):
            return cube.contains(x, atol)

        def project(self, x):
            return cube.project(x)

        def reflect(self, x, displacement):
            return cube.reflect(x, displacement)

        def uniform(self):
            return cube.uniform()

    process = Diffusion(Mine(), VE())
    assert process.domain.bounded and process.schedule.sigma_max == pytest.approx(6.0, rel=5e-3)
    result = sample(
        process, lambda x, t: torch.zeros_like(x), ReflectedEulerMaruyama(), karras(process, 5), shape=9, seed=1
    )
    assert bool(cube.contains(result.x).all())
    from carom.validation import check_domain

    assert check_domain(Mine(), raises=False).ok
