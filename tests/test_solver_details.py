"""Single formulas of solvers by hand, where orders and laws would not notice that they are wrong; and what users see of them."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from carom.domains import Euclidean, Hypercube, Polytope, Simplex
from carom.processes import EDM, ODE, SDE, VE, VP, Diffusion, FlowMatching
from carom.scores import GaussianMixtureScore
from carom.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    Adams,
    AdaptiveODE,
    AdaptiveSDE,
    AnalyticDPM,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverPP,
    EDMStochastic,
    EulerMaruyama,
    ExponentialAdams,
    Heun,
    LangevinCorrector,
    Oblique,
    Penalise,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    SASolver,
    Solution,
    Solver,
    Status,
    UniPC,
    WhiteNoise,
    beta,
    encode,
    estimate_statistics,
    falling_end,
    first_passage,
    karras,
    load_grid,
    rising,
    round_trip,
    sample,
    save_grid,
    solve,
    tuned,
    uniform_lambda,
)
from carom.solvers.adams import default_phi
from carom.solvers.langevin import langevin_step
from carom.validation import convergence_order, problems, propagate_moments

F64 = torch.float64
PLANE = Diffusion(Euclidean((2,)), VP())
SCORE = GaussianMixtureScore(PLANE, [1.0], torch.tensor([[0.4, -0.3]], dtype=F64), [0.2])


def f64(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=F64)


class Counting:
    """A score that counts its calls and remembers where and with what it was read."""

    def __init__(self, score: Any):
        self.score, self.calls, self.words = score, 0, []

    def __call__(self, x: Tensor, t: Tensor, **words: Any) -> Tensor:
        self.calls += 1
        self.words.append(words)
        return self.score(x, t)


# ------------------------------------------------------------------------------------------------------ Langevin, restarts


def test_the_norm_rule_sets_each_samples_own_step() -> None:
    """e = 2α (r |z|/|score|)² (Song et al. 2021, alg. 4, with each sample's own norms)."""
    (at,) = LangevinCorrector(0.3, norm_rule=True).plan(PLANE.reverse(SCORE), f64(0.5))
    x, z = f64([0.5, 1.0], [-2.0, 0.1]), f64([0.3, -0.4], [1.2, 0.5])
    s = SCORE(x, f64(0.5)[0])
    e = 2 * (0.3 * z.norm(dim=-1) / s.norm(dim=-1))[:, None] ** 2 * float(PLANE.schedule.scale(f64(0.5))) ** 2
    torch.testing.assert_close(
        langevin_step(PLANE.reverse(SCORE).bound(), x, at, z), x + e * s + (2 * e).sqrt() * z, rtol=1e-12, atol=1e-12
    )


def test_planned_langevin_steps() -> None:
    """NCSN: step_lr (s σ/σ_last)²; between walls never beyond the width; each level of the grid is visited, the first as well."""
    times = uniform_lambda(PLANE, 5)
    level = PLANE.level(times)
    plan = AnnealedLangevin(3, 1e-3).plan(PLANE.reverse(SCORE), times)
    kicks = [kick for record in plan for kick in record.coefficients[0]]
    assert [k.time for k in kicks] == times.tolist() and [record.draws for record in plan] == [6, 3, 3, 3]
    sizes = 1e-3 * (level.scale * level.sigma / level.sigma[-1]) ** 2
    torch.testing.assert_close(f64(*[k.row.weights[0] for k in kicks]), sizes, rtol=1e-12, atol=0)
    cube = Diffusion(Hypercube((2,), 0.0, 3.0), VE())
    kicks = LangevinCorrector(10.0).plan(cube.reverse(lambda x, t: -x), uniform_lambda(cube, 4))
    assert max(k.row.weights[0] for k in kicks) == pytest.approx(9.0)


@pytest.mark.parametrize("inner", [Heun(), UniPC(2), ExponentialAdams(3)], ids=repr)
def test_restarts_by_hand(inner: Solver) -> None:
    """Down to the level at or below ``low``, then ``repeats`` times up by fresh noise and down again, from a history of its own."""
    process = Diffusion(Euclidean((2,)), EDM())
    score = GaussianMixtureScore(process, [0.5, 0.5], f64([0.5, 0.0], [-0.5, 0.2]), [0.1, 0.2])
    times = uniform_lambda(process, 7, sigma_max=2.0, sigma_min=0.1)
    cut = int((process.schedule.sigma(times) <= 0.4).nonzero()[0])
    x, counted = torch.ones(3, 2, dtype=F64), Counting(score)
    rule = Restart([(0.4, 0.9, 4, 2)], inner)
    run = solve(process.flow(counted), x, times, rule, noise=WhiteNoise(3))
    assert int(run.nfe) == counted.calls and [r.draws for r in rule.plan(process.flow(score), times)][cut - 1] == 2
    down = karras(process, 4, sigma_max=0.9, sigma_min=float(process.schedule.sigma(times[cut])))
    down[-1] = times[cut]
    flow, source = process.flow(score), WhiteNoise(3).open(x, 1)
    y = solve(flow, x, times[: cut + 1], inner).x
    low, high = process.schedule.sigma(times[cut]), process.schedule.sigma(down[0])
    for k in range(2):
        y = y + (high**2 - low**2).sqrt() * source(float(times[cut - 1]), float(times[cut]), stream=k)
        y = solve(flow, y, down, inner).x
    torch.testing.assert_close(run.x, solve(flow, y, times[cut:], inner).x, rtol=1e-9, atol=1e-9)


def test_churn_includes_the_ends_of_its_range() -> None:
    process = Diffusion(Euclidean((2,)), EDM())
    times = uniform_lambda(process, 5)
    sigma = process.schedule.sigma(times)
    rule = EDMStochastic(40, s_min=float(sigma[3]), s_max=float(sigma[1]))
    assert [record.draws for record in rule.plan(process.reverse(SCORE), times)] == [0, 1, 1, 1]


# ------------------------------------------------------------------------------------------------------- noise and plans


def test_the_tau_of_sa_solver_is_the_root_of_the_stochasticity() -> None:
    """τ² = η, a number or a function of σ read at the middle of a step in λ."""
    times, x = uniform_lambda(PLANE, 9), torch.ones(4, 2, dtype=F64)
    run = lambda equation, solver: solve(equation, x, times, solver, noise=WhiteNoise(1)).x
    same = run(PLANE.reverse(SCORE, stochasticity=0.25), SASolver(2, 2))
    for tau in (0.5, lambda sigma: 0.5 + 0 * sigma):
        torch.testing.assert_close(run(PLANE.reverse(SCORE), SASolver(2, 2, tau)), same, rtol=1e-12, atol=1e-12)
    middles = torch.exp(0.5 * (PLANE.level(times).sigma.log()[1:] + PLANE.level(times).sigma.log()[:-1]))
    edge = float(middles[3])  # noise in steps whose middle is at or above this level
    plan = SASolver(2, 2, lambda sigma: (sigma >= edge * (1 - 1e-12)).double()).plan(PLANE.reverse(SCORE), times)
    weights = [record.coefficients[0][-1].row.weights for record in plan]
    noisy = [any(abs(w or 0) > 0 for w in row) for row in weights]
    spread = [float(propagate_step_noise(record)) > 0 for record in plan]
    assert all(noisy) and spread == [True] * 4 + [False] * 4


def propagate_step_noise(record: Any) -> float:
    """The weight of the step's normal in its last row: it follows the earlier readings, of which the last stage knows the count."""
    stages, _ = record.coefficients
    row, count = stages[-1].row, sum(stage.reading is not None for stage in stages)
    return abs(row.weights[len(row.weights) - count - 1] or 0.0)


def test_the_default_phi_of_er_sde() -> None:
    """φ(σ) = σ (e^{σ^0.3} + 10) (Cui et al. 2023)."""
    found = default_phi(f64(1.0, 2.0))
    torch.testing.assert_close(found, f64(math.e + 10, 2 * (math.exp(2**0.3) + 10)), rtol=1e-14, atol=0)


@pytest.mark.parametrize("solver", [DDIM(), DDIM(0.5), DDIM(1.0), DPMSolverPP(2, sde=True)], ids=repr)
def test_the_first_step_out_of_pure_noise_has_the_exact_law(solver: Solver) -> None:
    """At s = 0 the data prediction is the mean m, so that whatever the fresh share x_s is N(s m, std²): the parts add up in squares."""
    process = Diffusion(Euclidean((2,)), FlowMatching())
    score = GaussianMixtureScore(process, [1.0], f64([0.4, -0.3]), [0.2])
    equation = solver.accepts[0](process, score)  # type: ignore[call-arg]
    grid = f64(1.0, 0.8)
    assert [record.draws for record in solver.plan(equation, grid)] == [int(solver.stochastic)]
    mean, covariance = propagate_moments(equation, solver, grid, torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    level = process.level(grid[1])
    torch.testing.assert_close(mean, level.scale * f64(0.4, -0.3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        covariance, (level.scale * level.sigma) ** 2 * torch.eye(2, dtype=F64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (ExponentialAdams(3, orders=lambda n, p: [1] * n), 1),
        (DPMSolver(3, orders=lambda n, p: [1, 3] * (n // 2)), 1),
        (DEIS(3, orders=lambda n, p: falling_end(rising(n, p))), 2),
        (DEIS(4, orders=rising), 2),
        (UniPC(3, orders=lambda n, p: [1] * n), 2),
        (UniPC(3, orders=lambda n, p: falling_end(rising(n, p))), 2),
        (UniPC(2, orders=rising), 3),
        (UniPC(4, "velocity", orders=rising), 3),
    ],
    ids=lambda v: repr(v) if isinstance(v, Solver) else str(v),
)
def test_the_order_follows_the_plan(solver: Solver, order: int) -> None:
    problem = problems.mixture(VP())
    grid = lambda n: uniform_lambda(problem.process, n + 1, sigma_max=2.0, sigma_min=0.3)
    x = problem.points(float(grid(1)[0]))
    exact = problem.flow(x, *(float(v) for v in grid(1)))
    slopes = convergence_order(
        lambda n: solve(problem.process.flow(problem.score), x, grid(n), solver).x, (64, 128, 256), exact
    )
    assert solver.order == order and abs(float(slopes[-1]) - order) < 0.15


@pytest.mark.parametrize(
    ("solver", "extra"),
    [(UniPC(2), 0), (UniPC(3), 3), (UniPC(4), 5), (UniPC(4, orders=rising), 0), (DEIS(5), 4)],
    ids=repr,
)
def test_evaluations_are_those_of_the_docstring(solver: Solver, extra: int) -> None:
    counted = Counting(SCORE)
    run = solve(PLANE.flow(counted), torch.ones(2, 2, dtype=F64), uniform_lambda(PLANE, 11), solver)
    assert int(run.nfe) == counted.calls == 10 + extra


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "exponential"])
def test_adaptive_rules_count_truly(method: str) -> None:
    counted = Counting(SCORE)
    run = solve(
        PLANE.flow(counted), torch.ones(1, 2, dtype=F64), uniform_lambda(PLANE, 4), AdaptiveODE(1e-4, method=method)
    )
    assert int(run.nfe) == counted.calls


def test_seeds_of_white_noise_reach_the_paths_of_adaptive_rules() -> None:
    first, again, other = (
        sample(PLANE, SCORE, AdaptiveSDE(0.1), uniform_lambda(PLANE, 2), shape=2, noise=WhiteNoise(seed), dtype=F64,
               initial=torch.ones(2, 2, dtype=F64)).x
        for seed in (0, 0, 1)
    )  # fmt: skip
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first[0], first[1])


# ----------------------------------------------------------------------------------------------------- grids, encoding, statistics


def test_beta_grids_are_quantiles() -> None:
    times = beta(PLANE, 11, 2.0, 5.0)
    ends = uniform_lambda(PLANE, 2)
    places = scipy.stats.beta.ppf(np.linspace(1, 0, 11), 2.0, 5.0)
    torch.testing.assert_close(times, ends[1] + torch.as_tensor(places) * (ends[0] - ends[1]), rtol=1e-12, atol=1e-14)


def test_the_round_trip_error_is_the_root_mean_square_over_an_event() -> None:
    process = Diffusion(Euclidean((3,)), EDM())
    score = GaussianMixtureScore(process, [0.5, 0.5], torch.eye(2, 3, dtype=F64), [0.1, 0.2])
    trip = round_trip(process, score, Heun(), karras(process, 8), torch.eye(3, dtype=F64))
    expected = ((trip.back - torch.eye(3, dtype=F64)) ** 2).mean(-1).sqrt()
    torch.testing.assert_close(trip.error, expected, rtol=1e-12, atol=0)


def test_conditions_reach_the_score_from_everywhere() -> None:
    x, times = torch.ones(4, 2, dtype=F64), uniform_lambda(PLANE, 4)
    for call in (
        lambda s: encode(PLANE, s, Heun(), times, x, condition={"label": 7}),
        lambda s: round_trip(PLANE, s, Heun(), times, x, condition={"label": 7}),
        lambda s: estimate_statistics(PLANE, s, x, times, condition={"label": 7}),
        lambda s: tuned(PLANE, 4, s, candidates=8, samples=4, refine=20, condition={"label": 7}),
    ):
        counted = Counting(SCORE)
        call(counted)
        assert counted.calls and all(words == {"label": 7} for words in counted.words)


def test_draws_of_one_datum_do_not_shrink_the_standard_error() -> None:
    """Between data the spread of E[|score|² | x0] stays, however often each is noised: at small noise |score|² depends on z alone,
    at large noise on x0 hardly; in the middle the error of 64 draws lies well above an eighth of that of one."""
    data = 3 * torch.randn(400, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    one, many = (estimate_statistics(PLANE, SCORE, data, f64(0.2), draws=n).standard_error for n in (1, 64))
    assert float(many) > 0.3 * float(one)


def test_tuned_serves_a_float32_network_and_refuses_nonsense() -> None:
    net = torch.nn.Linear(3, 2)
    score = lambda x, t: net(torch.cat([x, t.expand(len(x), 1)], -1)) - x
    grid = tuned(PLANE, 5, score, candidates=12, samples=6, refine=20, dtype=torch.float32)
    assert grid.dtype == F64 and len(grid) == 5
    for options, message in (
        ({"samples": 1}, "samples: got 1, expected an int of at least 2"),
        ({"refine": 1.5}, "refine: got 1.5"),
        ({"candidates": -3}, "candidates: got -3"),
    ):
        with pytest.raises(ValueError, match=message):
            tuned(PLANE, 5, SCORE, **options)
    with pytest.raises(TypeError, match="expected a deterministic rule with fixed steps"):
        tuned(PLANE, 5, SCORE, solver=UniPC)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- between walls


def test_first_passage_through_a_wall_that_is_no_axis() -> None:
    """Brownian motion reaches a wall at distance d before T with the probability 2 Φ(−d/√T), whatever its normal; 6000 samples, 4 σ."""
    wall = (
        torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0], [0.0, 1.0]])
        / torch.tensor([5.0, 1, 1, 1, 1])[:, None]
    )
    domain = Polytope(wall, [0.5, 40.0, 40.0, 40.0, 40.0])
    brownian = SDE(lambda x, t: torch.zeros_like(x), 1.0, domain)
    left = first_passage(
        brownian, torch.zeros(6000, 2, dtype=F64), torch.linspace(0, 1, 4), EulerMaruyama(), seed=0
    ).left
    exact = 2 * float(torch.special.ndtr(f64(-0.5)))
    assert abs(float(left.double().mean()) - exact) < 4 * math.sqrt(exact * (1 - exact) / 6000)


def test_first_passage_takes_what_it_says() -> None:
    box = Hypercube((1,))
    ode = ODE(lambda x, t: torch.ones_like(x), box)
    with pytest.raises(TypeError, match="expected a stochastic one"):
        first_passage(ode, f64([0.5]), [0.0, 1.0], Heun())
    brownian = SDE(lambda x, t: torch.zeros_like(x), 1.0, box)
    with pytest.raises(TypeError, match="one evaluation and one draw a step"):
        first_passage(brownian, f64([0.5]), [0.0, 1.0], AdaptiveSDE())


def test_directions_belong_to_one_domain() -> None:
    wall = Oblique(Hypercube((2,)), [[1.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    process = Diffusion(Simplex(3), VE())
    with pytest.raises(ValueError, match="directions for the walls of Hypercube"):
        sample(process, lambda x, t: -x, EulerMaruyama(), karras(process, 4), shape=2, seed=0, wall=wall)
    # two polytopes that read alike are two polytopes
    rows = [[1, 0], [0, 1], [-1, 0], [0, -1]]
    one, other = Polytope(rows, [1, 1, 0, 0]), Polytope(rows, [1, 2, 0, 0])
    assert repr(one) == repr(other)
    wall = Oblique(one, [[-1.0, 0.1], [0.0, -1.0], [1.0, 0.0], [0.0, 1.0]])
    process = Diffusion(other, VE())
    with pytest.raises(ValueError, match="directions for the walls of Polytope"):
        sample(process, lambda x, t: -x, EulerMaruyama(), karras(process, 4), shape=2, seed=0, wall=wall)


def test_samples_given_up_on_the_way_are_not_denoised() -> None:
    process = Diffusion(Hypercube((2,)), VE())
    score = problems.CosineScore(process, 0.8)
    options = {"shape": 3, "seed": 0, "dtype": F64}
    rule = AdaptiveODE(1e-8, 1e-8, max_nfe=20)
    plain, ended = (sample(process, score, rule, karras(process, 3), denoise=d, **options) for d in (False, True))
    assert bool((ended.status == Status.MAX_EVALUATIONS).all()) and torch.equal(plain.x, ended.x)
    assert torch.equal(plain.nfe, ended.nfe) and int(ended.nfe.max()) <= 20


def test_the_last_denoising_step_ends_inside() -> None:
    class Outside:
        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.zeros_like(x)

        def prediction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return x + 5, torch.zeros_like(x)

    process = Diffusion(Hypercube((2,)), VE())
    run = sample(process, Outside(), Heun(), karras(process, 3), shape=4, seed=0)
    assert torch.equal(run.x, torch.ones(4, 2))


def test_penalised_states_are_read_at_the_nearest_point() -> None:
    seen = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    process = Diffusion(Hypercube((2,)), VE())
    sample(process, field, EulerMaruyama(), karras(process, 6), shape=50, seed=0, wall=Penalise(0.1))
    assert all(bool(process.domain.contains(x).all()) for x in seen)


# ------------------------------------------------------------------------------------------------------------ what users see


@pytest.mark.parametrize(
    ("solver", "text"),
    [
        (UniPC(), "UniPC(2)"),
        (UniPC(3, "velocity", orders=rising), "UniPC(3, 'velocity', orders=rising)"),
        (Adams(3, orders=rising), "Adams(3, orders=rising)"),
        (ExponentialAdams(2, sde=True, eta=0.5), "ExponentialAdams(2, sde=True, eta=0.5)"),
        (DPMSolverPP(2, multistep=False), "DPMSolverPP(2, multistep=False)"),
        (EDMStochastic(s_min=0), "EDMStochastic(40, s_min=0)"),
        (AdaptiveODE(max_nfe=20), "AdaptiveODE(1e-05, max_nfe=20)"),
        (ERSDE(2, default_phi), "ERSDE(2)"),
        (Heun(), "Heun()"),
        (
            PredictorCorrector(ReverseDiffusion(), LangevinCorrector(norm_rule=True)),
            "PredictorCorrector(ReverseDiffusion(flow=False), LangevinCorrector(snr=0.16, steps=1, norm_rule=True))",
        ),
    ],
)
def test_a_solver_reads_as_it_was_made(solver: Solver, text: str) -> None:
    assert repr(solver) == text


def test_grids_know_the_solver_they_were_made_for(tmp_path) -> None:
    times = uniform_lambda(PLANE, 5)
    save_grid(tmp_path / "grid.json", times, PLANE, solver=Adams(3, orders=rising))
    assert torch.equal(load_grid(tmp_path / "grid.json", PLANE, solver=Adams(3, orders=rising)), times)
    with pytest.raises(ValueError, match=r"made for solver = 'Adams\(3, orders=rising\)', expected Adams\(3\)"):
        load_grid(tmp_path / "grid.json", PLANE, solver=Adams(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sample(PLANE, SCORE, Heun(), karras, shape=2), TypeError, r"expected decreasing times themselves, e.g. karras"),
        (lambda: sample(PLANE, SCORE, Heun(), "karras", shape=2), TypeError, "times: got 'karras'"),
        (lambda: solve(PLANE, torch.ones(1, 2), [0.5, 0.1], Heun()), TypeError, "expected an equation, e.g. process.flow"),
        (lambda: sample(SCORE, PLANE, Heun(), [0.5, 0.1], shape=2), TypeError, "process: got GaussianMixtureScore"),
        (lambda: sample(PLANE, SCORE, Heun(), [0.5, 0.1], shape=2.5), TypeError, "shape: got 2.5, expected an int"),
        (lambda: sample(PLANE, SCORE, Heun(), [0.5, 0.1], shape=(2.7,)), ValueError, "expected batch sizes"),
        (lambda: DEIS(3, orders="rising"), TypeError, "orders: got 'rising', expected a list of orders"),
        (lambda: DEIS(3, orders=2), TypeError, "orders: got 2, expected a list"),
        (lambda: UniPC(3, orders=[-1] * 7), ValueError, "expected 7 orders from 1 to 3"),
        (lambda: UniPC(True), ValueError, "expected 1, 2, 3 or 4"),
        (lambda: SASolver(5, 3), ValueError, "predictor: got 5"),
        (lambda: AnalyticDPM(SCORE), TypeError, "which estimate_statistics finds"),
    ],
)  # fmt: skip
def test_mistakes_at_the_front_door(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_solution_prints_what_there_is_and_no_states():
    one = torch.zeros(3, dtype=torch.int64)
    solution = Solution(torch.zeros(3, 2), torch.ones(4), 7, one, one - 1, torch.zeros(3))
    assert repr(solution) == "Solution(x: [3, 2] float32 on cpu; nfe: 7)"
    more = replace(
        solution,
        nfe=torch.tensor([4, 9, 5]),
        status=torch.tensor([0, 1, 0]),
        trajectory=torch.zeros(4, 3, 2),
        stats={"a": 1},
    )
    assert repr(more) == (
        "Solution(x: [3, 2] float32 on cpu; nfe: 4 to 9; trajectory: [4, 3, 2] float32 on cpu; failed: 1 of 3; stats: a)"
    )
    assert repr(more.numpy()).startswith("Solution(x: [3, 2] float32; nfe: 4 to 9;")
    empty = replace(solution, x=torch.zeros(0, 2), nfe=one[:0], status=one[:0])
    assert repr(empty) == "Solution(x: [0, 2] float32 on cpu; nfe: none)"


def test_one_sample_is_reported_in_the_singular():
    zero = torch.zeros(1, dtype=torch.int64)
    one = Solution(torch.zeros(1, 2), torch.ones(2), 1, zero, zero - 1, torch.zeros(1))
    assert one.report() == "1 sample: reached the end of the grid"
    assert replace(one, status=zero + 1).report().startswith("1 of 1 sample: the state became NaN")
