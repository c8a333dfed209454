"""Orders of convergence, measured on closed forms without sampling noise: a rule states an order, and here it is held to it.

"Within the band" is: the last two slopes before rounding lie in [order − 0.1, order + 0.4].
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carom.domains import Hypercube
from carom.processes import EDM, ODE, SDE, VE, VP, CosineVP, Diffusion, FlowMatching, Schedule, SubVP
from carom.solvers import (
    BOGACKI_SHAMPINE,
    KUTTA3,
    MIDPOINT,
    RALSTON,
    AdaptiveODE,
    BrownianPath,
    Cover,
    Euler,
    EulerMaruyama,
    Heun,
    Penalise,
    Project,
    Record,
    Reflect,
    ReflectedEulerMaruyama,
    ReflectedStrang,
    RungeKutta,
    Solver,
    TorchDiffEq,
    karras,
    sample,
    solve,
    uniform_lambda,
)
from carom.validation import LawError, check_solver, convergence_order, expectation, problems, propagate_moments
from carom.validation import strategies as some


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def within(slopes: torch.Tensor, order: float) -> bool:
    return len(slopes) >= 2 and bool(((slopes[-2:] >= order - 0.1) & (slopes[-2:] <= order + 0.4)).all())


RULES: list[Solver] = [
    Euler(),
    Heun(),
    RungeKutta(MIDPOINT),
    RungeKutta(RALSTON),
    RungeKutta(KUTTA3),
    RungeKutta(BOGACKI_SHAMPINE),
    RungeKutta(),
]
SCHEDULES: list[Schedule] = [VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching()]


# ----------------------------------------------------------------------------------------- the laws, on every rule we ship


@pytest.mark.parametrize(
    "solver",
    [*RULES, AdaptiveODE(), AdaptiveODE(1e-6, 1e-6, "bosh3"), EulerMaruyama(), ReflectedEulerMaruyama()],
    ids=repr,
)
def test_laws_of_every_solver(solver: Solver) -> None:
    check_solver(solver)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun3", "rk4"])
def test_laws_of_the_fixed_rules_of_torchdiffeq(method: str) -> None:
    check_solver(TorchDiffEq(method))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("solver", [Euler(), Heun(), RungeKutta()], ids=repr)
def test_order_does_not_depend_on_the_schedule(solver: Solver, schedule: Schedule) -> None:
    check_solver(solver, problems.mixture(schedule), steps=(16, 32, 64, 128))


@pytest.mark.parametrize("solver", [Euler(), Heun(), RungeKutta()], ids=repr)
def test_order_in_two_dimensions_and_between_walls(solver: Solver) -> None:
    check_solver(solver, problems.gaussian_2d(SubVP()), steps=(16, 32, 64, 128))
    grid = lambda process, n: uniform_lambda(process, n, sigma_max=0.6, sigma_min=0.05)
    check_solver(solver, problems.cosine(0.5, dim=3), grid=grid, steps=(16, 32, 64, 128))


@settings(max_examples=8)  # each solves some fifty times
@given(st.data(), st.sampled_from([Euler(), Heun(), RungeKutta()]))
def test_order_on_any_mixture_schedule_grid_and_start(data: st.DataObject, solver: Solver) -> None:
    problem, grid = data.draw(some.mixtures()), data.draw(some.grids())
    start = data.draw(some.starts(problem, float(grid(problem.process, 2)[0])))
    check_solver(solver, problem, grid=grid, start=start)


@settings(max_examples=5)
@given(st.data())
def test_weak_order_on_any_gaussian_schedule_and_grid(data: st.DataObject) -> None:
    problem = data.draw(some.mixtures(dim=2))
    check_solver(EulerMaruyama(), problem, grid=data.draw(some.grids()), steps=(16, 32, 64, 128))


# ------------------------------------------------------------------------------------------------------- rules that are wrong


class Trapezoid(Solver):
    """Heun's rule written out, with its weights as an argument."""

    order = 2
    accepts = (ODE, *Heun.accepts)
    multistage = True

    def __init__(self, first: float = 0.5, second: float = 0.5, fault: str = ""):
        self.weights, self.fault = (first, second), fault
        self.leak = 0.0

    def plan(self, equation: Any, times: torch.Tensor) -> list[Record]:
        h = times.diff().tolist()
        if self.fault == "numpy":
            h = [np.float64(v) for v in h]
        counted = 1 if self.fault == "counts" else 2
        rows = zip(times[:-1].tolist(), times[1:].tolist(), h, strict=True)
        return [
            Record(t, s, (v, *equation.coefficients(t), *equation.coefficients(s)), evaluations=counted)
            for t, s, v in rows
        ]

    def step(self, equation: Any, x: torch.Tensor, record: Record, state: Any, noise: Any) -> tuple[torch.Tensor, Any]:
        h, a, b, _, a1, b1, _ = record.coefficients
        first = a * x + b * equation.field(x, record.t)
        u = x + h * first
        late = record.t if self.fault == "time" else record.s
        second = a1 * u + b1 * equation.field(u, late, x)
        y = x + h * (self.weights[0] * first + self.weights[1] * second)
        if self.fault == "shares":
            y, self.leak = y + self.leak, self.leak + 1e-9
        if self.fault == "batch":
            y = y + 1e-9 * len(y)
        return (x.copy_(y) if self.fault == "in place" else y), ()


def test_heun_written_out_passes() -> None:
    check_solver(Trapezoid())


@pytest.mark.parametrize(
    ("solver", "law"),
    [
        (Trapezoid(1 / 3, 1 / 3), "reaches its order"),  # the classic: ÷ 3
        (Trapezoid(0.6, 0.4), "reaches its order"),  # consistent, but of order 1
        (Trapezoid(0.5, 0.5, "time"), "reaches its order"),  # the second stage read at the first one's time
        (Trapezoid(0.5, 0.5, "numpy"), "plans one record of plain floats per step"),
        (Trapezoid(0.5, 0.5, "counts"), "field evaluations are counted truly"),
        (Trapezoid(0.5, 0.5, "shares"), "two solves share nothing"),
        (Trapezoid(0.5, 0.5, "batch"), "a sample does not depend on its batch"),
        (Trapezoid(0.5, 0.5, "in place"), "two solves share nothing"),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{v.weights} {v.fault}",
)
def test_a_deliberately_wrong_heun_fails(solver: Solver, law: str) -> None:
    assert law in [failure.name for failure in check_solver(solver, raises=False).failures]
    with pytest.raises(LawError, match=r"Trapezoid\(.*\): law '"):
        check_solver(solver)


def test_a_stochastic_rule_with_the_wrong_noise_fails() -> None:
    class Louder(EulerMaruyama):
        def step(
            self, equation: Any, x: torch.Tensor, record: Record, state: Any, noise: Any
        ) -> tuple[torch.Tensor, Any]:
            return super().step(equation, x, record, state, (1.02 * noise[0],))

    assert [law.name for law in check_solver(Louder(), raises=False).failures] == ["reaches its order"]


# ---------------------------------------------------------------------------------------------------- values, to the digit


def test_edm_heun_on_m1() -> None:
    """formulas.md §15: N = 18, ρ = 7, from 80·(−1.5, …, 1.8) to σ = 0; 35 evaluations, as EDM counts them."""
    problem = problems.mixture(EDM())
    x = 80 * f64(-1.5, -0.6, 0.1, 0.7, 1.8)[:, None]
    solution = sample(problem.process, problem.score, Heun(), karras(problem.process, 18), shape=5, initial=x)
    want = f64(-1.18802965679, -0.758024058204, 0.690730247552, 0.938854887302, 1.32703931466)[:, None]
    torch.testing.assert_close(solution.x, want, rtol=0, atol=1e-9)
    assert solution.nfe == 35
    sigmas = karras(problem.process, 18) * 80
    assert (float(sigmas[1]), float(sigmas[8]), float(sigmas[17])) == pytest.approx(
        (57.5859847212, 3.25682151977, 0.002), rel=1e-11
    )


def test_edm_slopes_on_m1() -> None:
    """§15: at σ_min, on ρ grids, Euler's slopes fall to 1 and Heun's to 2; the table for N = 10 … 1152 levels, doubling."""
    problem = problems.mixture(EDM())
    x = 80 * f64(-1.5, -0.6, 0.1, 0.7, 1.8)[:, None]
    exact = problem.flow(x, 1.0, 0.002 / 80)
    torch.testing.assert_close(
        exact.flatten(),
        f64(-1.15355006496, -0.73108283636, 0.676884066123, 0.917925014848, 1.28856313768),
        rtol=0,
        atol=1e-10,
    )
    levels = (18, 36, 72, 144, 288)

    def run(solver: Solver) -> torch.Tensor:
        equation = problem.process.flow(problem.score)
        return convergence_order(lambda n: solve(equation, x, karras(problem.process, n), solver).x, levels, exact)

    assert within(run(Euler()), 1.0) and within(run(Heun()), 2.0)


def test_vp_exact_flow_of_m1_by_rk4() -> None:
    """§14: x(1e-3) from x_T, reached by RK4 with 1,000 uniform-λ steps to 1e-9 (order 4: (1e-3)⁴ times the constant 1e2)."""
    problem = problems.mixture(VP())
    x = f64(-1.5, -0.6, 0.1, 0.7, 1.8)[:, None]
    times = uniform_lambda(
        problem.process,
        1001,
        sigma_max=float(problem.process.schedule.sigma(1.0)),
        sigma_min=float(problem.process.schedule.sigma(1e-3)),
    )
    got = solve(problem.process.flow(problem.score), x, times, RungeKutta()).x
    want = f64(-1.15327135847, -0.728606556528, 0.677492624982, 0.918520321059, 1.28931240224)[:, None]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", [Heun(), RungeKutta(), Euler()], ids=repr)
@pytest.mark.parametrize("wall", [Project(), Reflect(), Cover()], ids=repr)
def test_the_flow_on_the_interval_is_the_cdf_map(solver: Solver, wall: Any) -> None:
    """§20: from data to uniform noise .1 → .149181582154, .5 → .659154943092, and back; every wall the same, since s·n = 0."""
    problem = problems.cosine()
    x, start = f64(0.1, 0.5, 0.999)[:, None], 1e-4  # σ(1e-4) ≈ 3e-4, where the map is off by a σ²·score/2 ~ 1e-7
    exact = problem.flow(x, start, 1.0)
    torch.testing.assert_close(exact[:2, 0], f64(0.149181582154, 0.659154943092), rtol=0, atol=1e-6)
    equation = problem.process.flow(problem.score)

    def run(n: int) -> torch.Tensor:
        return solve(equation, x, torch.linspace(start, 1.0, n + 1, dtype=torch.float64), solver, wall=wall).x

    assert within(convergence_order(run, (32, 64, 128, 256), exact), solver.order)
    # and back from noise to data, to the error of the finest run
    back = solve(equation, exact, torch.linspace(1.0, start, 257, dtype=torch.float64), solver, wall=wall).x
    torch.testing.assert_close(back, x, rtol=0, atol=10 * float((run(256) - exact).abs().max()))


def test_the_rounding_criterion_cuts_where_slopes_blur() -> None:
    """RK4 on a smooth linear flow reaches rounding early; what remains lies within the band, and a finer criterion would not."""
    problem = problems.gaussian(EDM())
    times = lambda n: uniform_lambda(problem.process, n + 1, sigma_max=1.0, sigma_min=0.5)
    x = problem.points(float(times(1)[0]))
    exact = problem.flow(x, *(float(v) for v in times(1)))
    run = lambda n: solve(problem.process.flow(problem.score), x, times(n), RungeKutta()).x
    steps = tuple(2**k for k in range(2, 11))
    slopes = convergence_order(run, steps, exact)
    assert 2 <= len(slopes) < len(steps) - 1 and within(slopes, 4.0)
    blurred = convergence_order(run, steps, exact, resolution=0.0)
    assert float((blurred[-3:] - 4).abs().max()) > 0.5


# ----------------------------------------------------------------------------------------------------- stochastic rules


def test_propagated_moments_are_those_of_the_recursion() -> None:
    """ULA of formulas.md §7: on N(0, v) with step h the stationary variance is v/(1 − h/(2v)): v = ¼, h = .05 → .277777777778."""
    domain = problems.gaussian().process.domain
    equation = SDE(lambda x, t: -x / 0.25, math.sqrt(2.0), domain)
    times = torch.arange(0, 201, dtype=torch.float64) * 0.05
    mean, covariance = propagate_moments(equation, EulerMaruyama(), times, f64(3.0), f64(0.25).reshape(1, 1))
    # the memory of the start is (1 − .2)^200 = 4e-20
    assert float(mean) == pytest.approx(0.0, abs=1e-14) and float(covariance) == pytest.approx(
        0.277777777778, rel=1e-11
    )
    with pytest.raises(ValueError, match="not affine"):
        propagate_moments(
            SDE(lambda x, t: x**2, 1.0, domain), EulerMaruyama(), times[:5], f64(0.0), f64(1.0).reshape(1, 1)
        )


@pytest.mark.montecarlo
def test_propagated_moments_agree_with_a_big_batch() -> None:
    """20,000 samples: the mean within 4 standard errors, the variance within 4·√(2/n)."""
    problem, n = problems.gaussian(VP()), 20_000
    times = uniform_lambda(problem.process, 9, sigma_max=2.0, sigma_min=0.2)
    equation = problem.process.reverse(problem.score)
    mean, covariance = problem.moments(float(times[0]))
    want_mean, want_covariance = propagate_moments(equation, EulerMaruyama(), times, mean, covariance)
    generator = torch.Generator().manual_seed(0)
    x = mean + covariance[0, 0].sqrt() * torch.randn(n, 1, dtype=torch.float64, generator=generator)
    from carom.solvers import WhiteNoise

    out = solve(equation, x, times, EulerMaruyama(), noise=WhiteNoise(1)).x
    assert abs(float(out.mean() - want_mean)) <= 4 * math.sqrt(float(want_covariance) / n)
    assert abs(float(out.var() / want_covariance) - 1) <= 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("eta", [0.0, 0.5, 2.0])
def test_euler_maruyama_has_weak_order_1_for_the_whole_family(eta: float) -> None:
    problem = problems.gaussian(VE(0.05, 5.0))
    equation = problem.process.reverse(problem.score, eta)
    grid = lambda n: uniform_lambda(problem.process, n + 1, sigma_max=2.0, sigma_min=0.2)
    first, last = (problem.moments(float(t)) for t in grid(1))

    def run(n: int) -> torch.Tensor:
        mean, covariance = propagate_moments(equation, EulerMaruyama(), grid(n), *first)
        return torch.cat([mean, covariance.flatten()])

    assert within(convergence_order(run, (32, 64, 128, 256), torch.cat([last[0], last[1].flatten()])), 1.0)


def test_two_step_sizes_on_one_brownian_path_converge_strongly() -> None:
    """Additive noise: Euler–Maruyama's strong order is 1. Coarse runs are compared with the finest on the same paths.

    The error of one path is Gaussian, so the root mean square over 400 of them has a relative standard error of 1/√800 = 3.5 %
    and a slope one of √2·3.5 %/ln 2 = .07 at most (the runs share their paths, which ties them). The finest run's own error
    adds up to 16/512/ln 2 = .05 to the last slope. Bounds: four standard errors.
    """
    problem = problems.gaussian(VP())
    equation = problem.process.reverse(problem.score)
    x = problem.points(0.5, 400)

    def run(n: int, first: int = 0) -> torch.Tensor:
        times = torch.linspace(0.5, 0.25, n + 1, dtype=torch.float64)  # dyadic: each time is one node of the tree
        return solve(equation, x, times, EulerMaruyama(), noise=BrownianPath(range(first, first + len(x)))).x

    fine = run(512)
    errors = {n: float((run(n) - fine).square().mean().sqrt()) for n in (8, 16, 32)}
    slopes = convergence_order(lambda n: errors[n], tuple(errors))
    assert ((slopes > 1 - 0.28) & (slopes < 1 + 0.28 + 0.05)).all(), slopes
    # and on other paths they do not meet at all
    assert float((run(32, 1000) - fine).square().mean().sqrt()) > 10 * errors[32]


# --------------------------------------------------------------------------------------------------- walls, by quadrature

INTERVAL = Hypercube((1,))
COSINE = lambda x: torch.cos(math.pi * x)
STEPS = (16, 32, 64, 128)


def brownian(n: int, wall: Any, drift: Any = None, horizon: float = 0.25, start: float = 0.2, f: Any = COSINE) -> float:
    equation = SDE(drift or (lambda x, t: torch.zeros_like(x)), 1.0, INTERVAL)
    u = expectation(equation, EulerMaruyama(), torch.linspace(0, horizon, n + 1, dtype=torch.float64), f, wall=wall)
    return float(u(f64(start)))


def test_folding_brownian_motion_is_exact_and_projecting_it_is_of_order_one_half() -> None:
    """formulas.md §20: Brownian motion from .2 to variance ¼, E cos πX = e^{−π²/8} cos(π/5) = .235596211952.

    Slopes of projection .44 → .487 over N = 16 … 512; N = 64 gives .272312051694 (found by two independent quadratures).
    """
    exact = math.exp(-(math.pi**2) / 8) * math.cos(math.pi / 5)
    assert exact == pytest.approx(0.235596211952, abs=1e-12)
    assert brownian(64, Reflect()) == pytest.approx(exact, abs=1e-12)
    assert brownian(64, Cover()) == pytest.approx(exact, abs=1e-12)
    assert brownian(64, Project()) == pytest.approx(0.272312051694, abs=1e-11)
    slopes = convergence_order(lambda n: brownian(n, Project()), (*STEPS, 256), exact)
    assert slopes.tolist() == pytest.approx([0.4375, 0.4580, 0.4714, 0.4804], abs=5e-4)


def finite_difference_reference(drift: Any, horizon: float, start: float) -> float:
    """∂u = b u' + ½u'' with u' = 0 at the walls, by Chebyshev collocation and the matrix exponential: exact to 1e-10."""
    from scipy.linalg import expm

    n = 48
    theta = np.pi * np.arange(n + 1) / n
    y = np.cos(theta)
    c = np.r_[2, np.ones(n - 1), 2] * (-1) ** np.arange(n + 1)
    d = np.outer(c, 1 / c) / (y[:, None] - y[None, :] + np.eye(n + 1))
    d = 2 * (d - np.diag(d.sum(1)))  # derivative on [0, 1], x = (1 + y)/2
    x = (1 + y) / 2
    # boundary values from u'(0) = u'(1) = 0, eliminated
    ends, inner = [0, n], np.arange(1, n)
    to_ends = -np.linalg.solve(d[np.ix_(ends, ends)], d[np.ix_(ends, inner)])
    whole = np.zeros((n + 1, n - 1))
    whole[inner], whole[ends] = np.eye(n - 1), to_ends
    b = drift(torch.tensor(x[inner]), None).numpy()
    generator = b[:, None] * (d @ whole)[inner] + 0.5 * (d @ d @ whole)[inner]
    u = whole @ (expm(horizon * generator) @ np.cos(np.pi * x[inner]))
    weights = np.polynomial.chebyshev.chebfit(y, u, n)
    return float(np.polynomial.chebyshev.chebval(2 * start - 1, weights))


@pytest.mark.parametrize("name", ["constant", "linear", "score-like"])
@pytest.mark.parametrize(("wall", "order"), [(Reflect(), 1.0), (Project(), 0.5)], ids=["fold", "project"])
def test_weak_orders_of_walls_with_drift(wall: Any, order: float, name: str) -> None:
    """numerics.md §2: fold .98, 1.01, 1.00; project .49, .47 and, where b·n = 0, .60 and falling."""
    drift = {
        "constant": lambda x, t: torch.full_like(x, -1.0),
        "linear": lambda x, t: 2 * (0.3 - x),
        "score-like": lambda x, t: -torch.sin(math.pi * x),
    }[name]
    exact = finite_difference_reference(drift, 0.25, 0.2)
    slopes = convergence_order(lambda n: brownian(n, wall, drift), STEPS, exact)
    # the band of numerics.md §2: projection's slopes rise slowly to ½, or fall to it where b·n = 0
    low, high = (order - 0.1, order + 0.1) if order == 1.0 else (0.4, 0.7)
    assert ((slopes[-2:] >= low) & (slopes[-2:] <= high)).all(), slopes


@pytest.mark.parametrize(
    ("wall", "low", "high"), [(Reflect(), 0.95, 1.1), (Project(), 0.7, 0.85)], ids=["fold", "project"]
)
def test_generating_between_walls(wall: Any, low: float, high: float) -> None:
    """The reverse SDE of the cosine density, VE, from its exact law at σ = 2: E cos πX₀ = ¼. Folding has order 1 (.95 → .995);
    projecting has less, and falling (.81, .80, .77, …): at the walls b·n = 0, which hides the ½ for a while."""
    problem = problems.cosine()
    equation = problem.process.reverse(problem.score)
    node, weight = np.polynomial.legendre.leggauss(40)
    x, w = torch.tensor(0.5 + 0.5 * node)[:, None], torch.tensor(0.5 * weight)
    density = problem.log_prob(x, 1.0).exp()

    def run(n: int) -> float:
        times = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        u = expectation(equation, ReflectedEulerMaruyama(), times, COSINE, wall=wall)
        return float((u(x[:, 0]) * w * density).sum()) - 0.25

    slopes = convergence_order(run, (32, 64, 128, 256))
    assert ((slopes >= low) & (slopes <= high)).all() and bool((slopes.diff() < 0).all()) == (low < 0.9), slopes


def test_the_quadrature_itself_is_exact() -> None:
    """One step of length h is the kernel: E f(fold(x + √h z)) against the modes, and E z-moments of a projected step by hand."""
    u = expectation(
        SDE(lambda x, t: torch.zeros_like(x), 1.0, INTERVAL), EulerMaruyama(), [0.0, 0.09], COSINE, wall=Reflect()
    )
    x = torch.linspace(0, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(u(x), math.exp(-(math.pi**2) * 0.045) * COSINE(x), rtol=0, atol=1e-13)
    # E clip(x + s z) with s = .3 from x = 0: s(φ(0) − φ(1/s)) + Φ̄(1/s)
    u = expectation(
        SDE(lambda x, t: torch.zeros_like(x), 1.0, INTERVAL), EulerMaruyama(), [0.0, 0.09], lambda x: x, wall=Project()
    )
    s, phi = 0.3, lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    tail = 0.5 * math.erfc(1 / s / math.sqrt(2))
    assert float(u(f64(0.0))) == pytest.approx(s * (phi(0) - phi(1 / s)) + tail, abs=1e-13)
    with pytest.raises(ValueError, match="bounded domain of one dimension"):
        expectation(SDE(lambda x, t: x, 1.0, Hypercube((2,))), EulerMaruyama(), [0.0, 1.0], COSINE)
    # what it cannot do it refuses: states that a wall leaves outside, and a normal lost within the step
    still = SDE(lambda x, t: torch.zeros_like(x), 1.0, INTERVAL)
    with pytest.raises(ValueError, match="leaves states outside the domain"):
        expectation(still, EulerMaruyama(), [0.0, 0.09], COSINE, wall=Penalise())
    problem = problems.cosine()
    grid = uniform_lambda(problem.process, 3, sigma_max=0.6, sigma_min=0.1)
    with pytest.raises(ValueError, match="do not depend on the normal"):
        expectation(problem.process.reverse(problem.score), ReflectedStrang(), grid, COSINE, wall=Project())


def test_flows_integrated_numerically_agree_with_the_closed_one() -> None:
    """Two equal components are one Gaussian, whose flow is closed; both ways of time, to the integrator's tolerance."""
    process = Diffusion(problems.gaussian_2d().process.domain, VP())
    covariance, mean = ((0.6, 0.2), (0.2, 0.3)), (0.4, -0.3)
    one = problems.MixtureProblem(process, (1.0,), (mean,), (covariance,))
    two = problems.MixtureProblem(process, (0.5, 0.5), (mean, mean), (covariance, covariance))
    for before, after in ((0.9, 0.1), (0.1, 0.9)):
        x = one.points(before)
        torch.testing.assert_close(two.flow(x, before, after), one.flow(x, before, after), rtol=1e-10, atol=1e-10)


def test_moment_recursions_refuse_a_mixture() -> None:
    with pytest.raises(LawError, match="expected a Gaussian problem"):
        check_solver(EulerMaruyama(), problems.mixture(VP()))
