"""Structured solvers: reference values to all digits given, equalities between rules, order plans, short grids, starts from pure noise."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carom.domains import Euclidean, Hypercube, Product, Simplex
from carom.processes import EDM, VE, VP, CosineVP, Diffusion, Discrete, FlowMatching, SubVP
from carom.scores import EmpiricalScore, GaussianMixtureScore
from carom.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    Adams,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverPP,
    EDMStochastic,
    Euler,
    EulerMaruyama,
    ExponentialAdams,
    Heun,
    LangevinCorrector,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    SampleNoise,
    SASolver,
    Solver,
    UniPC,
    WhiteNoise,
    bind,
    combine,
    dpm_solver_fast,
    falling_end,
    karras,
    rising,
    sample,
    singlestep_start,
    solve,
    uniform,
    uniform_lambda,
)
from carom.solvers.forms import FORMS, Levels, carry, phi, weights
from carom.validation import convergence_order, problems, propagate_moments
from carom.validation.order_matrix import entries

F64 = torch.float64


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def labels(count: int, *steps: int) -> Tensor:
    """Times of the levels ``steps`` of a table of ``count``."""
    return torch.tensor(steps, dtype=F64) / count


G1_50, G1_1000 = problems.gaussian(Discrete.ddpm(50)), problems.gaussian(Discrete.ddpm(1000))
ONE, ZERO = torch.eye(1, dtype=F64), torch.zeros(1, dtype=F64)


def moments(problem: problems.Problem, solver: Solver, times: Tensor, spread: float = 1.0) -> tuple[float, float]:
    """Mean and variance from N(0, spread²)."""
    process = problem.process
    equation = (
        process.reverse(problem.score)
        if solver.stochastic and solver.accepts[0].stochastic
        else process.flow(problem.score)
    )
    mean, covariance = propagate_moments(equation, solver, times, ZERO, spread**2 * ONE)
    return float(mean), float(covariance)


# ------------------------------------------------------------------------------------------------------ values, to the digit


@pytest.mark.parametrize(
    ("levels", "want"),
    [(range(50, -1, -1), 1.11343001408), (range(50, -1, -5), 0.985818397487), ((50, 0), 0.500903493274)],
    ids=["50 steps", "10 steps", "1 step"],
)
def test_ddim_on_g1(levels: Any, want: float) -> None:
    """formulas.md §3: from x_T = 1.3 on the levels of a table, to the data itself."""
    x = solve(G1_50.process.flow(G1_50.score), f64(1.3)[:, None], labels(50, *levels), DDIM()).x
    assert float(x) == pytest.approx(want, abs=1e-11)


@pytest.mark.parametrize(
    ("eta", "mean", "variance"),
    [
        (0.0, 0.499479441128, 0.139955964777),
        (0.5, 0.499782042312, 0.134816313269),
        (1.0, 0.499999031899, 0.111411692319),
    ],
)
def test_ddim_moments_on_ten_steps(eta: float, mean: float, variance: float) -> None:
    got = moments(G1_50, DDIM(eta), labels(50, *range(50, -1, -5)))
    assert got == pytest.approx((mean, variance), abs=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_ddim_keeps_the_marginals_of_a_point_for_any_variance(eta: float) -> None:
    """§3: with delta data the step is exact: x_s has mean s·y and variance std_s², whatever σ̃."""
    y = 0.7
    problem = problems.MixtureProblem(G1_50.process, (1.0,), ((y,),), (((0.0,),),))
    times = labels(50, 50, 33, 20, 4)
    first, last = problem.process.level(times[0]), problem.process.level(times[-1])
    equation = problem.process.reverse(problem.score) if eta else problem.process.flow(problem.score)
    mean, variance = propagate_moments(
        equation, DDIM(eta), times, first.scale.reshape(1) * y, ONE * (first.scale * first.sigma) ** 2
    )
    assert float(mean) == pytest.approx(float(last.scale) * y, abs=1e-14)
    assert float(variance) == pytest.approx(float((last.scale * last.sigma) ** 2), abs=1e-14)


@pytest.mark.parametrize(
    ("solver", "mean", "variance"),
    [
        (ReverseDiffusion(), 0.499731275199, 0.25148144175),
        (Ancestral("forward"), 0.49999495506, 0.250852075008),
        (Ancestral("posterior"), 0.49999495506, 0.24612521136),
        (ReverseDiffusion(flow=True), 0.497296079843, 0.260508447798),
    ],
    ids=repr,
)
def test_vp_rows_of_the_summary_slide(solver: Solver, mean: float, variance: float) -> None:
    """formulas.md §11, notes l.1046–1100: 1,000 levels from N(0, 1) to the data, noise at the last step too."""
    got = moments(G1_1000, solver, labels(1000, *range(1000, -1, -1)))
    assert got == pytest.approx((mean, variance), abs=1e-11)


VE_G1 = problems.gaussian(EDM(sigma_min=0.01, sigma_max=50.0))


def ve_times(n: int) -> Tensor:
    """σ_i = .01·5000^{(i−1)/(n−1)}, i = n … 1, then σ_0 = 0."""
    sigmas = 0.01 * 5000 ** (torch.arange(n, dtype=F64) / (n - 1))
    return torch.cat([sigmas.flip(0) / 50, ZERO])


@pytest.mark.parametrize(
    ("solver", "mean", "variance"),
    [
        (ReverseDiffusion(), 0.499950004999, 0.252143203462),
        (Ancestral("posterior"), 0.499950004999, 0.247782360635),
        (ReverseDiffusion(flow=True), 0.49491198423, 0.258879044742),
    ],
    ids=repr,
)
def test_ve_rows_of_the_summary_slide(solver: Solver, mean: float, variance: float) -> None:
    assert moments(VE_G1, solver, ve_times(1000), 50.0) == pytest.approx((mean, variance), abs=1e-11)


def test_the_slide_s_rows_are_their_formulas() -> None:
    """Each row once written out for one level: mean and noise of a step from level i to i − 1 of a DDPM table."""
    schedule, i = Discrete.ddpm(50), 20
    beta, ab, before = float(schedule.betas[i - 1]), *schedule.alphas_cumprod[[i - 1, i - 2]].tolist()
    process, x, z = Diffusion(Euclidean((1,)), schedule), f64(0.8)[:, None], f64(-1.3)[:, None]
    score = lambda u, t: -0.6 * u + 0.2
    s = score(x, None)
    want = {
        Ancestral("forward"): (x + beta * s) / math.sqrt(1 - beta) + math.sqrt(beta) * z,
        Ancestral("posterior"): (x + beta * s) / math.sqrt(1 - beta) + math.sqrt(beta * (1 - before) / (1 - ab)) * z,
        ReverseDiffusion(): (2 - math.sqrt(1 - beta)) * x + beta * s + math.sqrt(beta) * z,
        ReverseDiffusion(flow=True): (2 - math.sqrt(1 - beta)) * x + 0.5 * beta * s,
    }
    for solver, value in want.items():
        equation = solver.accepts[0](process, score)  # type: ignore[call-arg]
        (record,) = bind(solver.plan(equation, labels(50, i, i - 1)), x)
        moved, _ = solver.step(equation, x, record, (), (z,) * record.draws)
        torch.testing.assert_close(moved, value, rtol=0, atol=1e-14)


def test_ancestral_and_reverse_diffusion_differ_by_the_square_of_beta_a_step() -> None:
    """Erratum E13: x-coefficients by β²/4, score-coefficients by β²/2 (the notes say O(β))."""
    gaps = []
    for n in (50, 100):
        process = Diffusion(Euclidean((1,)), Discrete.ddpm(n, 0.1, 4.0))
        beta = float(process.schedule.betas[n // 2])
        times = labels(n, n // 2 + 1, n // 2)
        tables = []
        for solver in (Ancestral("forward"), ReverseDiffusion()):
            (record,) = solver.plan(process.reverse(lambda x, t: x), times)
            ((stage,), _) = record.coefficients
            # over ε = −std·score: the score's coefficient is weight·q
            tables.append((stage.row.keep, stage.row.weights[-1] * stage.reading.q))
        (a, p), (b, q) = tables
        gaps.append(((a - b) / beta**2, (p - q) / beta**2))
    # the next term is of relative size β
    assert gaps[1] == pytest.approx((0.25, 0.5), rel=0.06)
    assert abs(gaps[1][0] - 0.25) < abs(gaps[0][0] - 0.25)


@pytest.mark.parametrize(
    ("n", "steps", "mean", "variance"),
    [
        (100, 0, 0.497179875941, 0.265434733808),
        (100, 1, 0.498515903929, 0.260461116984),
        (100, 5, 0.499544380446, 0.255375771254),
        (1000, 1, None, 0.251298358655),
        (1000, 5, None, 0.250587207483),
    ],
)
def test_predictor_corrector_vp(n: int, steps: int, mean: float | None, variance: float) -> None:
    """formulas.md §11: P, then C at the new level, e = 2α(r √(1 − ᾱ))² with r = .16 and α = 1 − β."""
    solver: Solver = ReverseDiffusion()
    if steps:
        solver = PredictorCorrector(solver, LangevinCorrector(0.16, steps))
    got = moments(problems.gaussian(Discrete.ddpm(n)), solver, labels(n, *range(n, -1, -1)))
    assert got[1] == pytest.approx(variance, abs=1e-11)
    assert mean is None or got[0] == pytest.approx(mean, abs=1e-11)


@pytest.mark.parametrize(
    ("n", "steps", "variance"), [(100, 0, 0.272791940108), (100, 1, 0.261772798821), (1000, 1, 0.250765831097)]
)
def test_predictor_corrector_ve(n: int, steps: int, variance: float) -> None:
    solver = PredictorCorrector(ReverseDiffusion(), LangevinCorrector(0.16, steps)) if steps else ReverseDiffusion()
    assert moments(VE_G1, solver, ve_times(n), 50.0)[1] == pytest.approx(variance, abs=1e-11)


@pytest.mark.parametrize(
    ("n", "variance", "denoised"), [(100, 0.257908827434, 0.257702624102), (1000, 0.250838207878, None)]
)
def test_annealed_langevin(n: int, variance: float, denoised: float | None) -> None:
    """formulas.md §10: ten levels from 1 to .01, step_lr 2e-5; the last denoising multiplies deviations by v/(v + σ²)."""
    problem = problems.gaussian(EDM(sigma_min=0.01, sigma_max=1.0))
    mean, got = moments(problem, AnnealedLangevin(n, 2e-5), uniform_lambda(problem.process, 10))
    assert (mean, got) == pytest.approx((0.5, variance), abs=1e-12 if n == 100 else 1e-11)
    if denoised is not None:
        assert got * (0.25 / (0.25 + 1e-4)) ** 2 == pytest.approx(denoised, abs=1e-12)


def test_the_ncsn_step_on_delta_data() -> None:
    """Erratum E17: h = σ² as the notes print it ends at variance 2σ² on a point; the NCSN step, proportional to it but small, near σ²."""
    problem = problems.MixtureProblem(VE_G1.process, (1.0,), ((0.0,),), (((0.0,),),))
    times = f64(0.02, 0.01)
    sigma = float(problem.process.schedule.sigma(times[-1]))
    assert moments(problem, AnnealedLangevin(1, sigma**2), times)[1] == pytest.approx(2 * sigma**2, rel=1e-12)
    # v/(1 − e/2v) with e = .02 v
    assert moments(problem, AnnealedLangevin(600, 0.02 * sigma**2), times)[1] == pytest.approx(
        sigma**2 / 0.99, rel=1e-5
    )


M1_VP, START = problems.mixture(VP()), f64(-1.5, -0.6, 0.1, 0.7, 1.8)[:, None]


def lambda_grid(problem: problems.Problem, steps: int, last: float = 1e-3) -> Tensor:
    """``steps`` steps uniform in λ from t = 1 to t = last."""
    ends = problem.process.schedule.sigma(f64(1.0, last)).tolist()
    return uniform_lambda(problem.process, steps + 1, sigma_max=ends[0], sigma_min=ends[1])


@pytest.mark.parametrize(
    ("order", "want"),
    [
        (1, (-1.02440705983, -0.0163601709017, 0.624151595332, 0.841946103502, 1.15786162042)),
        (2, (-1.21356168998, -0.782453716772, 0.698991832421, 0.95534943601, 1.33798785965)),
        (3, (-1.14929807823, -0.717452173137, 0.681589962524, 0.91622978782, 1.28845482621)),
    ],
)
def test_dpm_solver_on_m1(order: int, want: tuple[float, ...]) -> None:
    """formulas.md §14: ten steps uniform in λ from x_T; the boxes of the notes with √α for α (E21) and h for h_i (E22)."""
    x = solve(M1_VP.process.flow(M1_VP.score), START, lambda_grid(M1_VP, 10), DPMSolver(order)).x
    torch.testing.assert_close(x.flatten(), f64(*want), rtol=0, atol=1e-10)


def slopes(
    problem: problems.Problem, solver: Solver, x: Tensor, steps: tuple[int, ...], grid: Any = lambda_grid
) -> list[float]:
    exact = problem.flow(x, 1.0, 1e-3)
    equation = problem.process.flow(problem.score)
    return convergence_order(lambda n: solve(equation, x, grid(problem, n), solver).x, steps, exact).tolist()


def test_dpm_solver_slopes() -> None:
    """formulas.md §14: the table's slopes to a digit; order 3 is reached in λ and not yet on steps equal in t."""
    steps = (80, 160, 320, 640)
    assert slopes(M1_VP, DPMSolver(1), START, steps) == pytest.approx([1.06, 1.03, 1.015], abs=0.006)
    assert slopes(M1_VP, DPMSolver(2), START, steps) == pytest.approx([2.02, 2.01, 2.01], abs=0.01)
    assert slopes(M1_VP, DPMSolver(3), START, steps) == pytest.approx([3.11, 3.07, 3.04], abs=0.01)
    assert slopes(M1_VP, DPMSolverPP(2), START, steps) == pytest.approx([1.96, 1.99, 1.99], abs=0.01)
    g1 = problems.gaussian(VP())
    assert slopes(g1, DPMSolver(3), f64(1.3)[:, None], (10, 20, 40, 80, 160)) == pytest.approx(
        [3.36, 3.25, 3.14, 3.07], abs=0.01
    )
    in_t = lambda problem, n: torch.linspace(1, 1e-3, n + 1, dtype=F64)
    assert max(slopes(M1_VP, DPMSolver(3), START, steps, in_t)) < 2.9


def test_dpm_solver_fast_ends_in_lower_orders() -> None:
    """§14: with NFE = 3k, 3k + 1 the ends of order 1 make the whole of order 2; 3k + 2 keeps 3."""
    assert dpm_solver_fast(15) == [3, 3, 3, 3, 2, 1]
    assert dpm_solver_fast(16) == [3, 3, 3, 3, 3, 1]
    assert dpm_solver_fast(17) == [3, 3, 3, 3, 3, 2]
    assert [sum(dpm_solver_fast(n)) for n in range(1, 20)] == list(range(1, 20))
    exact = M1_VP.flow(START, 1.0, 1e-3)

    def slope(rest: int) -> float:
        errors = []
        for k in (160, 320):
            plan = dpm_solver_fast(3 * k + rest)
            run = solve(
                M1_VP.process.flow(M1_VP.score), START, lambda_grid(M1_VP, len(plan)), DPMSolver(3, orders=plan)
            )
            assert run.nfe == 3 * k + rest
            errors.append(float((run.x - exact).abs().max()))
        return math.log2(errors[0] / errors[1])

    assert slope(0) == pytest.approx(2.1, abs=0.1) and slope(1) == pytest.approx(2.1, abs=0.1)
    assert slope(2) == pytest.approx(3.07, abs=0.05)


@pytest.mark.parametrize(
    ("solver", "levels", "variance"),
    [
        (EDMStochastic(0.0), 18, 0.27838775757),
        (EDMStochastic(40.0), 18, 0.318152278293),
        # all steps churn here, the last one to σ = 0 as well; N counts levels, of which the grid has one more
        (EDMStochastic(40.0 * 19 / 18, s_min=0.0, s_max=math.inf, s_noise=1.0), 18, 0.316095311058),
        (EDMStochastic(40.0 * 257 / 256, s_min=0.0, s_max=math.inf, s_noise=1.0), 256, 0.250959482497),
    ],
    ids=repr,
)
def test_edm_stochastic_variances(solver: EDMStochastic, levels: int, variance: float) -> None:
    """formulas.md §15: N(0, ¼) data from N(0, 80²), to σ = 0."""
    problem = problems.MixtureProblem(problems.gaussian(EDM()).process, (1.0,), ((0.0,),), (((0.25,),),))
    if solver.s_min:  # without churn at the end the last denoising step is the Euler step to 0
        got = moments(problem, solver, karras(problem.process, levels), 80.0)[1] * (0.25 / (0.25 + 0.002**2)) ** 2
    else:
        got = moments(problem, solver, torch.cat([karras(problem.process, levels), ZERO]), 80.0)[1]
    assert got == pytest.approx(variance, abs=1e-11)


def test_edm_gamma_is_capped() -> None:
    """γ = min(churn/N, √2 − 1) = .414213562373."""
    process = Diffusion(Euclidean((1,)), EDM())
    solver = EDMStochastic(1e4, s_min=0.0, s_max=math.inf, s_noise=1.0)
    record = solver.plan(process.reverse(lambda x, t: x), karras(process, 4))[0]
    (lift, first, _), _ = record.coefficients
    assert first.reading.time == pytest.approx(1.414213562373, abs=1e-11)
    assert lift.row.weights[0] == pytest.approx(80.0, abs=1e-9)  # √(2 − 1)·σ


# ------------------------------------------------------------------------------------------------------------- equalities


def ends(solver: Solver, problem: problems.Problem, times: Tensor, z: int = 3) -> Tensor:
    equation = solver.accepts[0](problem.process, problem.score)  # type: ignore[call-arg]
    return solve(equation, problem.points(float(times[0])), times, solver, noise=WhiteNoise(z)).x


SCHEDULES = [VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(100)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_four_names_of_one_stochastic_step(schedule: Any) -> None:
    """numerics.md §3.10: DDIM(η = 1) ≡ DDPM's posterior step ≡ Euler-ancestral(1) ≡ SDE-DPM-Solver++(1)."""
    problem = problems.mixture(schedule)
    times = karras(problem.process, 12)
    one = ends(DDIM(1.0), problem, times)
    for other in (
        Ancestral(),
        DPMSolverPP(1, sde=True),
        DPMSolverPP(1, multistep=False, sde=True),
        ExponentialAdams(1, sde=True),
    ):
        torch.testing.assert_close(
            ends(other, problem, times), one, rtol=0, atol=1e-12 * float(one.abs().max().clamp(min=1))
        )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_many_names_of_one_deterministic_step(schedule: Any) -> None:
    """DPM-Solver-1 ≡ DDIM(0) ≡ Euler in σ/α ≡ DPM-Solver++(1) ≡ DEIS(1), in every form but v, which turns while D and ε rest."""
    problem = problems.mixture(schedule)
    times = karras(problem.process, 12)
    one = ends(DDIM(), problem, times)
    others = [
        DPMSolver(1),
        DPMSolver(1, multistep=True),
        DPMSolverPP(1),
        DPMSolverPP(1, multistep=False),
        DEIS(1),
        Adams(1),
        IPNDM(1),
    ]
    for other in (*others, *(ExponentialAdams(1, form) for form in ("noise", "data", "velocity"))):
        torch.testing.assert_close(
            ends(other, problem, times), one, rtol=0, atol=1e-12 * float(one.abs().max().clamp(min=1))
        )
    # Euler in σ: the same process on EDM's clock, where t is σ
    level = problem.process.level(times)
    clock = problems.mixture(EDM(sigma_min=float(level.sigma[-1]) / 2, sigma_max=float(level.sigma[0])))
    start = problem.points(float(times[0])) / level.scale[0]
    euler = solve(clock.process.flow(clock.score), start, level.sigma / level.sigma[0], Euler()).x * level.scale[-1]
    torch.testing.assert_close(euler, one, rtol=0, atol=1e-10 * float(one.abs().max().clamp(min=1)))


def test_one_scheme_by_several_names() -> None:
    problem, times = problems.mixture(VP()), karras(problems.mixture(VP()).process, 12)
    pairs = [
        (Adams(4), DEIS(4, clock="sigma")),
        (Adams(3), IPNDM(3, variable=True)),
        (DPMSolver(3, multistep=True), DEIS(3)),
        (DPMSolverPP(3), ExponentialAdams(3)),
        (DPMSolverPP(3, sde=True), ExponentialAdams(3, sde=True)),
        (DPMSolver(2), DPMSolver(2, r1=0.5)),
        (EDMStochastic(0.0), None),
    ]
    for one, other in pairs[:-1]:
        if other is pairs[2][1] or other is pairs[3][1]:
            # the papers' second order is "midpoint": the first steps of the plan differ where they use it
            one = type(one)(3, True, orders=[1, 1, *[3] * 9])
            other = type(other)(3, orders=[1, 1, *[3] * 9])
        if one.stochastic:
            one, other = (
                DPMSolverPP(3, sde=True, orders=[1, 1, *[3] * 9]),
                ExponentialAdams(3, sde=True, orders=[1, 1, *[3] * 9]),
            )
        torch.testing.assert_close(ends(one, problem, times), ends(other, problem, times), rtol=0, atol=1e-12)


def test_iterated_constants_of_the_papers() -> None:
    """numerics.md §3.1, 3.2: DPM-Solver++(3M) as corrected, and its SDE with 2(… + ½) D2, written out for one step."""
    process = Diffusion(Euclidean((1,)), VP())
    times = uniform_lambda(process, 6, sigma_max=3.0, sigma_min=0.2)
    level = Levels.at(process, times)
    i = 4
    h, h0, h1 = (float(level.lam[k + 1] - level.lam[k]) for k in (i, i - 1, i - 2))
    r0, r1, scale, sigma, before = (
        h0 / h,
        h1 / h,
        float(level.scale[i + 1]),
        float(level.std[i + 1]),
        float(level.std[i]),
    )
    D = np.array([0.7, -0.2, 0.5])
    D10, D11 = (D[0] - D[1]) / r0, (D[1] - D[2]) / r1
    D1, D2 = D10 + r0 / (r0 + r1) * (D10 - D11), 2 * (D10 - D11) / (r0 + r1)
    want = (
        -scale * math.expm1(-h) * D[0]
        + scale * (math.expm1(-h) / h + 1) * D1
        - scale * ((math.expm1(-h) + h) / h**2 - 0.5) * D2
    )

    def weigh(solver: Any, equation: Any) -> np.ndarray:
        ((stage,), _) = solver.plan(equation, times)[i].coefficients
        *old, _ = (*stage.row.weights[:2], 0.0) if solver.stochastic else (*stage.row.weights[:-1], 0.0)
        return np.array([stage.row.weights[-1], *old]) @ D, stage.row.keep

    value, keep = weigh(DPMSolverPP(3), process.flow(lambda x, t: x))
    assert (value, keep) == pytest.approx((want, sigma / before), abs=1e-13)
    e = math.expm1(-2 * h)
    stochastic = (
        -scale * e * D[0]
        + scale * (e / (2 * h) + 1) * D1
        + scale * 2 * (-e / (4 * h**2) * 1.0 - 1 / (2 * h) + 0.5) * D2 / 2
    )
    value, keep = weigh(DPMSolverPP(3, sde=True), process.reverse(lambda x, t: x))
    assert (value, keep) == pytest.approx((stochastic, sigma / before * math.exp(-h)), abs=1e-13)
    # what is distributed lacks a factor of 2 in D2
    value, _ = weigh(DPMSolverPP(3, legacy=True), process.flow(lambda x, t: x))
    assert value == pytest.approx(want + 0.5 * scale * ((math.expm1(-h) + h) / h**2 - 0.5) * D2, abs=1e-13)


# ------------------------------------------------------------------------------------------------- forms, weights, φ


def test_phi_functions_against_fifty_digits() -> None:
    import mpmath as mp

    z = torch.tensor(
        [-30.0, -3.0, -1.0, -0.999, -0.02, -1e-2, -9e-3, -1e-8, 0.0, 1e-12, 5e-3, 0.3, 0.99, 1.0, 1.01, 2.5, 20.0],
        dtype=F64,
    )
    with mp.workdps(50):
        for k in range(4):
            for value, got in zip(z.tolist(), phi(k, z).tolist(), strict=True):
                want = (
                    mp.quad(lambda u, v=value, k=k: mp.e ** ((1 - u) * v) * u ** (k - 1) / mp.factorial(k - 1), [0, 1])
                    if k
                    else mp.e**value
                )
                assert got == pytest.approx(float(want), rel=5e-15 * 4**k)


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda f: f.name)
@pytest.mark.parametrize("schedule", [VP(), EDM(), FlowMatching()], ids=repr)
def test_a_step_is_exact_while_its_prediction_is_a_polynomial(form: Any, schedule: Any) -> None:
    """With P a cubic in λ along the run, four readings give x_s exactly: checked against scipy's quadrature of k·P."""
    from scipy.integrate import quad

    process = Diffusion(Euclidean((1,)), schedule)
    times = uniform_lambda(process, 2, sigma_max=8.0, sigma_min=0.05)
    level = Levels.at(process, times)
    start, end = level[:1], level[1:]
    polynomial = lambda lam: 0.3 - 0.2 * lam + 0.5 * lam**2 - 0.1 * lam**3
    nodes = start.lam[:, None] - np.array([[0.0, 0.4, 1.1, 1.7]])
    got = float((weights(form, nodes, start, end) * polynomial(nodes)).sum())
    kernel = lambda lam: form.kernel(end.scale, end.lam, np.array(lam), np.zeros(1)).item() * polynomial(lam)
    want = sum(
        quad(kernel, a, b, epsabs=1e-14, epsrel=1e-13)[0] for a, b in itertools.pairwise(np.linspace(*level.lam, 9))
    )
    # extrapolating five steps ahead enlarges rounding by the weights themselves
    assert got == pytest.approx(want, rel=1e-11)
    # where D and ε rest, so does P, and the step is exact; v alone turns with φ
    one = weights(form, nodes[:, :1], start, end).sum()
    data, noise = 0.4, -0.9
    x = lambda at: at.scale * (data + at.sigma * noise)
    moved = carry(form, start, end) * x(start) + one * (form.data(start.sigma) * data + form.noise(start.sigma) * noise)
    assert (abs(moved - x(end)).item() < 1e-12 * abs(x(start)).item()) == (form.name != "v")


def test_combine_leaves_its_input_alone() -> None:
    from carom.solvers import Row

    x, terms = torch.ones(3), (torch.ones(3), None, torch.full((3,), 2.0))
    out = combine(Row(None, (0.5, 1.0, 2.0)), x, terms)
    assert (
        torch.equal(out, torch.full((3,), 5.5))
        and torch.equal(x, torch.ones(3))
        and torch.equal(terms[0], torch.ones(3))
    )
    assert combine(Row(None, (None,)), x, (x,)) is x


# ---------------------------------------------------------------------------------------------------------- order plans


def test_order_plans_are_visible_lists() -> None:
    assert rising(5, 3) == [1, 2, 3, 3, 3]
    assert singlestep_start(7, 5) == [4, 4, 5, 5, 5, 5, 5]
    assert singlestep_start(7, 4) == [3, 3, 4, 4, 4, 4, 4]
    assert singlestep_start(7, 3) == [2, 3, 3, 3, 3, 3, 3]
    assert (
        singlestep_start(3, 5) == [1, 2, 3] and singlestep_start(4, 2) == [1, 2, 2, 2] and singlestep_start(0, 3) == []
    )
    assert falling_end(rising(6, 3)) == [1, 2, 3, 3, 2, 1]
    assert DEIS(4).orders(6) == [3, 3, 4, 4, 4, 4] and DPMSolverPP(2).orders(3) == [1, 2, 2]
    assert DPMSolver(3).orders(3) == [3, 3, 3] and DPMSolverPP(3, sde=True).orders(4) == [1, 2, 3, 3]
    assert DPMSolverPP(3, legacy=True).orders(4) == [1, 2, 3, 3]
    plan = DEIS(3, orders=lambda n, p: falling_end(rising(n, p)))
    assert plan.orders(6) == [1, 2, 3, 3, 2, 1]
    problem = problems.mixture(VP())
    assert solve(problem.process.flow(problem.score), problem.points(0.9), uniform(problem.process, 7), plan).nfe == 6


def test_a_bad_starter_costs_orders_above_two() -> None:
    """numerics.md §3.4: from the middle of the grid, an Euler first step leaves order 2 (local error h²); the default keeps p."""
    problem = problems.mixture(VP())
    grid = lambda n: uniform_lambda(problem.process, n + 1, sigma_max=2.0, sigma_min=0.3)
    x = problem.points(float(grid(1)[0]))
    exact = problem.flow(x, *(float(v) for v in grid(1)))
    equation = problem.process.flow(problem.score)

    def last(solver: Solver) -> float:
        return float(convergence_order(lambda n: solve(equation, x, grid(n), solver).x, (32, 64, 128, 256), exact)[-1])

    for p in (3, 4):
        assert last(DEIS(p)) > p - 0.15
        assert last(DEIS(p, orders=rising)) < 2.3 and DEIS(p, orders=rising).order == 2
    # a corrector mends half of it: h³ of the first step
    unmended = UniPC(4, orders=rising)
    assert unmended.order == 3 and 2.85 < last(unmended) < 3.4
    run = solve(equation, x, grid(9), unmended)
    assert int(run.nfe) == 9 and unmended.orders(6) == [1, 2, 3, 4, 4, 4] and UniPC(3).orders(5) == [3] * 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DEIS(6), "expected an int from 1 to 5"),
        (lambda: DEIS(0), "expected an int from 1 to 5"),
        (lambda: DEIS(3, form="score"), "form: got 'score', expected one of noise, data, velocity, v"),
        (lambda: DEIS(3, clock="time"), "clock: got 'time', expected one of lambda, sigma, t"),
        (lambda: DPMSolver(4), "expected 1, 2 or 3"),
        (lambda: DPMSolver(2, multistep=True, r1=0.5), "no stages to place"),
        (lambda: DPMSolver(3, legacy=True), "only multistep order 3"),
        (lambda: DPMSolver(3, r1=0.5, r2=0.5), "two different places"),
        (lambda: DPMSolver(2, r1=0.0), "r1: got 0"),
        (lambda: DPMSolverPP(2, eta=0.5), "without sde=True"),
        (lambda: DPMSolverPP(2, sde=True, eta=-1.0), "expected a number ≥ 0"),
        (lambda: ExponentialAdams(2, "velocity", sde=True), "expected 'noise' or 'data'"),
        (lambda: UniPC(5), "expected 1, 2, 3 or 4"),
        (lambda: SASolver(2, 4), "from 1 to predictor"),
        (lambda: ERSDE(4), "expected 1, 2 or 3"),
        (lambda: IPNDM(5), "expected 1, 2, 3 or 4"),
        (lambda: IPNDM(4, variable=True, legacy=True), "expected p = 3"),
        (lambda: DDIM(-0.1), "eta: got -0.1"),
        (lambda: DDIM(0.5, variances=[0.0]), "expected one of them"),
        (lambda: Ancestral("small"), "expected 'posterior'"),
        (lambda: EDMStochastic(s_min=2.0, s_max=1.0), "expected at least s_min"),
        (lambda: Restart([(1.0, 0.5, 4, 2)]), "expected 0 < low < high"),
        (lambda: Restart([(0.1,)]), r"expected tuples \(low, high"),
        (lambda: Restart([], DDIM(1.0)), "expected a deterministic rule"),
        (lambda: PredictorCorrector(Heun), "expected a rule with fixed steps"),
        (lambda: PredictorCorrector(Heun(), 3), "expected a LangevinCorrector"),
        (lambda: LangevinCorrector(steps=0), "expected an int ≥ 1"),
        (lambda: AnnealedLangevin(0), "expected an int ≥ 1"),
        (lambda: dpm_solver_fast(0), "expected an int ≥ 1"),
    ],
)
def test_constructors_refuse(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    ("solver", "equation", "times", "message"),
    [
        (DEIS(3, orders=[3, 3]), "flow", karras, "expected 4 orders from 1 to 3"),
        (DEIS(3, orders=[1, 3, 3, 3]), "flow", karras, r"step 2 has 2 readings"),
        (UniPC(3, orders=[1, 3, 3, 3]), "flow", karras, r"step 2 has 2 readings"),
        (DPMSolver(2), "flow", [0.5, 0.0], "where ln σ is infinite, expected σ > 0"),
        (DDIM(1.0), "eta", karras, "this rule sets its noise itself"),
        (DPMSolverPP(2, sde=True, eta=0.3), "eta", karras, "state η in one place"),
        (DDIM(1.9), "reverse", karras, "lower eta"),
        (DDIM(variances=[0.1]), "reverse", karras, r"expected one per step: \(4,\)"),
        (DDIM(variances=[9.0, 0, 0, 0]), "reverse", karras, "got σ̃² = 9 in step 1"),
        (ERSDE(2, lambda s: s**0.5), "reverse", karras, "expected it to rise with σ"),
        (Restart([(0.5, 500.0, 4, 2)]), "flow", karras, "expected it to lie within"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_plans_refuse(solver: Solver, equation: str, times: Any, message: str) -> None:
    problem = problems.mixture(VP())
    process, score = problem.process, problem.score
    made = {"flow": process.flow(score), "reverse": process.reverse(score), "eta": process.reverse(score, 0.5)}[
        equation
    ]
    with pytest.raises(ValueError, match=message):
        solve(made, problem.points(0.9), karras(process, 5) if callable(times) else times, solver)


def test_processes_by_part_are_refused_by_name() -> None:
    process = Diffusion(Product(Euclidean((1,)), Euclidean((1,))), (VE(), EDM()))
    with pytest.raises(TypeError, match="a schedule for each part, expected a single schedule; use Heun"):
        sample(process, lambda x, t: -x, DEIS(2), uniform(process, 4), shape=2)


def test_norm_rule_is_refused_between_walls() -> None:
    process = Diffusion(Hypercube((2,)), VE())
    solver = PredictorCorrector(ReverseDiffusion(), LangevinCorrector(norm_rule=True))
    with pytest.raises(ValueError, match="the score vanishes at large σ"):
        sample(process, lambda x, t: -x, solver, karras(process, 4), shape=2)


# ------------------------------------------------------------------------------------- every rule on short grids, everywhere


def spaces() -> dict[str, tuple[Diffusion, Any]]:
    points = torch.rand(9, 2, dtype=F64, generator=torch.Generator().manual_seed(3))
    box, simplex, plane = (
        Diffusion(Hypercube((2,)), VE()),
        Diffusion(Simplex(3), VE()),
        Diffusion(Euclidean((2,)), VP()),
    )
    mixture = GaussianMixtureScore(
        plane, [0.3, 0.7], [[0.5, -0.3], [-1.0, 0.8]], [[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.4]]]
    )
    return {
        "plane": (plane, mixture),
        "box": (box, EmpiricalScore(box, points**2)),
        "simplex": (simplex, EmpiricalScore(simplex, points.sort(-1).values)),
    }


SPACES = spaces()
SOLVERS = [e.solver for e in entries() if not isinstance(e.solver, (AnnealedLangevin, PredictorCorrector, Restart))]
SOLVERS += [
    AnnealedLangevin(2, 1e-3),
    PredictorCorrector(ReverseDiffusion(), LangevinCorrector(0.16, 2)),
    PredictorCorrector(DPMSolverPP(2, sde=True)),
    Restart([(0.05, 0.3, 3, 2)]),
    SASolver(2, 3, tau=lambda s: (s > 0.05) & (s < 1)),
    DDIM(variances=lambda process, times: 0.1 * process.schedule.std(times[1:]) ** 2),
    DEIS(3, orders=lambda n, p: falling_end(rising(n, p))),
]


def fits(solver: Solver, space: str) -> bool:
    external = type(solver).__name__ in ("TorchDiffEq", "TorchSDE")
    return (space == "plane" or not external) and (space == "box" or type(solver).__name__ != "LepingleEulerMaruyama")


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_one_to_five_steps_everywhere(solver: Solver, space: str) -> None:
    """Every (solver, order, steps) combination runs, stays inside, is finite, counts its evaluations, and with per-sample seeds a sample
    is the same alone as in the batch, to the bit."""
    if not fits(solver, space):
        pytest.skip("not its domain")
    process, score = SPACES[space]
    calls = 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return score(x, t)

    equation = solver.accepts[0](process, counted)  # type: ignore[call-arg]
    x = SampleNoise(range(3)).open(torch.empty(3, 2, dtype=F64), 1).initial(process.prior(F64))
    # adaptive rules choose their own steps, whatever the grid
    for steps in (1, 3) if solver.adaptive else range(1, 6):
        times = uniform_lambda(process, steps + 1)
        calls = 0
        run = solve(equation, x, times, solver, noise=SampleNoise([5, 8, 1]) if solver.stochastic else None)
        assert bool(run.x.isfinite().all()) and bool(run.ok.all()) and bool(process.domain.contains(run.x, 1e-12).all())
        if isinstance(run.nfe, int):
            assert run.nfe == calls
        for i, seed in enumerate((5, 8, 1)):
            alone = solve(
                equation, x[i : i + 1], times, solver, noise=SampleNoise([seed]) if solver.stochastic else None
            )
            if type(solver).__name__ == "TorchDiffEq" and steps:
                torch.testing.assert_close(alone.x[0], run.x[i])
            else:
                assert torch.equal(alone.x[0], run.x[i])


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.stochastic], ids=repr)
def test_two_solves_of_a_stochastic_rule_share_nothing(solver: Solver) -> None:
    if not fits(solver, "box"):
        pytest.skip("not its domain")
    process, score = SPACES["box"]
    equation = solver.accepts[0](process, score)  # type: ignore[call-arg]
    x, times = torch.rand(4, 2, dtype=F64), uniform_lambda(process, 5)
    first = solve(equation, x, times, solver, noise=SampleNoise(range(4))).x
    solve(equation, x.flip(0) * 0.9, uniform_lambda(process, 4), solver, noise=SampleNoise(range(4)))
    assert torch.equal(solve(equation, x, times, solver, noise=SampleNoise(range(4))).x, first)


# ------------------------------------------------------------------------------------------------- the family, both directions


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0, lambda t: 1 + t], ids=["0", ".5", "1", "2", "1 + t"])
@pytest.mark.parametrize("forward", [False, True], ids=["reverse", "forward"])
@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=repr)
def test_all_members_of_the_family_share_the_marginals(schedule: Any, forward: bool, eta: Any) -> None:
    """Euler–Maruyama's moments approach those of the process at order 1 for any stochasticity, in both directions of time."""
    problem = problems.gaussian(schedule)
    process = problem.process
    grid = lambda n: uniform_lambda(process, n + 1, sigma_max=2.0, sigma_min=0.3)
    times = lambda n: grid(n).flip(0) if forward else grid(n)
    equation = process.forward(problem.score, eta) if forward else process.reverse(problem.score, eta)
    mean, covariance = problem.moments(float(times(1)[0]))
    want = torch.cat([v.flatten() for v in problem.moments(float(times(1)[-1]))])

    def run(n: int) -> Tensor:
        return torch.cat(
            [v.flatten() for v in propagate_moments(equation, EulerMaruyama(), times(n), mean, covariance)]
        )

    found = convergence_order(run, (64, 128, 256), want)
    # the noising process is exact in no number of steps, but its drift is linear and needs no score: order 1 as well
    assert bool(((found > 0.85) & (found < 1.4)).all()), found


def test_forward_family_without_a_score() -> None:
    process = problems.gaussian(VP()).process
    with pytest.raises(ValueError, match="of stochasticity 1, needs none"):
        process.forward(None, 0.5)
    with pytest.raises(ValueError, match="stochasticity: got -1"):
        process.forward(lambda x, t: x, -1.0)


@pytest.mark.parametrize(
    "solver", [ReverseDiffusion(), ExponentialAdams(2, sde=True), DPMSolverPP(2, False, sde=True), SASolver()], ids=repr
)
@pytest.mark.parametrize("eta", [0.25, lambda t: 0.5 + t], ids=["¼", "½ + t"])
def test_exponential_rules_take_the_equation_s_noise(solver: Solver, eta: Any) -> None:
    problem = problems.gaussian(VP())
    times = lambda n: uniform_lambda(problem.process, n + 1, sigma_max=2.0, sigma_min=0.3)
    mean, covariance = problem.moments(float(times(1)[0]))
    want = torch.cat([v.flatten() for v in problem.moments(float(times(1)[-1]))])
    equation = problem.process.reverse(problem.score, eta)
    run = lambda n: torch.cat([v.flatten() for v in propagate_moments(equation, solver, times(n), mean, covariance)])
    found = convergence_order(run, (64, 128, 256, 512), want)
    assert float(found[-1]) > solver.order - 0.15, found


# ------------------------------------------------------------------------------------------------------- pure noise


TERMINAL = Discrete(torch.cat([torch.linspace(0.99, 0.01, 99, dtype=F64), ZERO]))


@pytest.mark.parametrize("schedule", [FlowMatching(), TERMINAL], ids=["flow matching", "zero terminal SNR"])
@pytest.mark.parametrize(
    "solver",
    [
        DDIM(),
        DDIM(1.0),
        DEIS(3),
        DPMSolverPP(2),
        DPMSolver(3, multistep=True),
        UniPC(2),
        ExponentialAdams(4, "velocity"),
    ],
    ids=repr,
)
def test_predictions_start_where_the_scale_vanishes(schedule: Any, solver: Solver) -> None:
    """From t = 1, where x is noise alone: the first step is DDIM's from predicted data, which here is exact on one Gaussian."""
    process = Diffusion(Euclidean((1,)), schedule)
    score = GaussianMixtureScore(process, [1.0], [[0.5]], 0.04)
    times = torch.cat([torch.ones(1, dtype=F64), uniform_lambda(process, 200, sigma_max=9.0, sigma_min=0.02)])
    x = f64(-1.0, 0.2, 1.5)[:, None]
    run = sample(process, score, solver, times, shape=3, initial=x, seed=0)
    assert bool(run.ok.all())
    if not solver.stochastic:
        # x0 = ½ + .2 z; the first step, to σ = 9, holds D = ½ and errs by a relative v/σ² in the spread
        torch.testing.assert_close(run.x, 0.5 + 0.2 * x, rtol=0, atol=0.03)


def test_starts_from_pure_noise_are_refused_without_predictions() -> None:
    process = Diffusion(Euclidean((1,)), FlowMatching())
    score = GaussianMixtureScore(process, [1.0], [[0.5]], 0.04)
    with pytest.raises(
        ValueError, match=r"where the scale is 0 .* a score that offers prediction\(x, t\) and a solver that reads it"
    ):
        sample(process, score, Heun(), [1.0, 0.5], shape=1)
    with pytest.raises(ValueError, match="got function and DDIM"):
        sample(process, lambda x, t: -x, DDIM(), [1.0, 0.5], shape=1)
    with pytest.raises(ValueError, match="where the scale is 0, expected times from t_max"):
        solve(process.reverse(score), f64(0.3)[:, None], [1.0, 0.5], ReverseDiffusion())


def test_the_prior_fits_the_first_level_of_a_grid() -> None:
    """A grid that starts below σ_max starts from noise of that level."""
    process = Diffusion(Euclidean((1,)), EDM())
    run = sample(
        process, lambda x, t: -x, Euler(), karras(process, 1, sigma_max=3.0), shape=4000, seed=0, denoise=False
    )
    assert float(run.x.std()) == pytest.approx(3.0, rel=4 / math.sqrt(8000))


def test_predictions_keep_digits_that_scores_lose() -> None:
    """In float32 at the noisy end of flow matching, D = x/s + sσ²·score cancels to 1e-4; a score's own prediction does not."""
    process = Diffusion(Euclidean((2,)), FlowMatching())
    score = GaussianMixtureScore(process, [0.4, 0.6], [[0.5, -0.3], [-0.4, 0.8]], 0.02)
    times = f64(0.999, 0.5)
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    exact = solve(process.flow(score), x, times, DPMSolverPP(2)).x

    def gap(of: Any) -> float:
        return float((solve(process.flow(of), x.float(), times, DPMSolverPP(2)).x.double() - exact).abs().max())

    # ε_single·x/s = 6e-8 · 1000 · 2, halved by s(½); with the prediction only that of the state
    assert gap(score) < 1e-6 < gap(lambda u, t: score(u, t)) < 1e-4
