"""Schedules, the forward diffusion, retiming and the equations, against closed forms and the values of formulas.md §0, §6, §14, §15."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from carom.domains import Euclidean, Hypercube, Orthant, Product, Simplex
from carom.processes import (
    EDM,
    ODE,
    SDE,
    VE,
    VP,
    CosineVP,
    Diffusion,
    Discrete,
    FlowMatching,
    Schedule,
    SubVP,
    data_form,
    noise_form,
    process_from_config,
    retime,
    schedule_from_config,
)
from carom.scores import EmpiricalScore, GaussianMixtureScore
from carom.solvers import AdaptiveODE, Euler, EulerMaruyama, Heun, ReflectedEulerMaruyama, WhiteNoise, sample, solve
from carom.validation import LawError, check_schedule, problems
from carom.validation import strategies as some

NAMED = [
    VP(),
    VP(1.0, 1.0),
    SubVP(),
    VE(),
    VE(0.1, 2.0),
    EDM(),
    CosineVP(),
    FlowMatching(),
    Discrete.ddpm(50),
    Discrete.ddpm(1000),
    Discrete.from_betas("linear"),
    Discrete.from_betas("scaled_linear", 1000, 0.00085, 0.012),
    Discrete.from_betas("squaredcos_cap_v2"),
]


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Sinh(Schedule):
    """Two functions, as a user would write them; everything else is derived."""

    def scale(self, t: torch.Tensor) -> torch.Tensor:
        return torch.exp(-t)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        return 3 * t.sinh()


@pytest.mark.parametrize("schedule", [*NAMED, Sinh()], ids=lambda s: repr(s) if "object" not in repr(s) else "Sinh")
def test_laws_of_the_named_schedules(schedule: Schedule) -> None:
    check_schedule(schedule)


@given(some.schedules())
def test_laws_of_any_schedule(schedule: Schedule) -> None:
    check_schedule(schedule)


class Wrong(VP):
    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        value = self.integral(t).expm1().sqrt()
        return value + 1e-3 if self.fault == "starts" else value

    def std(self, t: torch.Tensor) -> torch.Tensor:
        # 1 − e^{−B} without expm1: right in float64, 4.7 % off at t = 1e-5 in float32 (formulas.md §6)
        return (1 - (-self.integral(t)).exp()).sqrt() if self.fault == "cancels" else super().std(t)

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        return (self.beta(t) * (1 + 1e-6)).sqrt() if self.fault == "diffusion" else super().diffusion(t)

    def drift_rate(self, t: torch.Tensor) -> torch.Tensor:
        return -self.beta(t) / (2 if self.fault != "drift" else 1.99999)

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        return super().time(sigma).float().to(sigma.dtype) if self.fault == "time" else super().time(sigma)

    def half_log_snr(self, t: torch.Tensor) -> torch.Tensor:
        return -2 * self.sigma(t).log() if self.fault == "snr" else -self.sigma(t).log()


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("starts", "sigma(0) = 0, scale(0) = 1"),
        ("cancels", "float32 agrees with float64"),
        ("diffusion", "forward SDE moments are transition moments"),
        ("drift", "forward SDE moments are transition moments"),
        ("time", "time inverts sigma"),
        ("snr", "closed forms equal derived ones"),
    ],
)
def test_the_laws_notice_a_wrong_schedule(fault: str, law: str) -> None:
    assert law in [failure.name for failure in check_schedule(Wrong(fault), raises=False).failures]
    with pytest.raises(LawError, match="law '"):
        check_schedule(Wrong(fault))


# ------------------------------------------------------------------------------------------------------ printed values


def test_vp_values() -> None:
    """zeta(t) of §0, λ of §14, σ of §15, v_t and λ of §6; printed to 12 digits, so compared to 1e-11."""
    vp = VP()
    assert vp.scale(f64(0.1, 0.5, 1)).tolist() == pytest.approx(
        [0.946721798821, 0.281182880797, 0.00657158649493], rel=1e-11
    )
    assert vp.half_log_snr(f64(1, 1e-3)).tolist() == pytest.approx([-5.02497840666, 4.55771493273], rel=1e-11)
    assert vp.sigma(f64(1e-3, 1, 0.5)).tolist() == pytest.approx(
        [0.0104859927867, 152.166970284, 3.41291830907], rel=1e-11
    )
    # what §6 calls lambda_t is the kernel's variance, the weight of the training loss
    assert (float(vp.std(0.5)) ** 2, float(SubVP().std(0.5)) ** 2) == pytest.approx(
        (0.920936187547, 0.848123461533), rel=1e-11
    )


def test_t_lambda_inverts_in_closed_form() -> None:
    """§14: B = log(1 + e^{−2λ}), t = (−b0 + √(b0² + 2(b1 − b0)B))/(b1 − b0)."""
    for lam in (-5.0, -1.0, 0.0, 2.5, 4.5):
        b = math.log1p(math.exp(-2 * lam))
        want = (-0.1 + math.sqrt(0.01 + 2 * 19.9 * b)) / 19.9
        assert float(VP().time(math.exp(-lam))) == pytest.approx(want, rel=1e-12)


def test_moments_of_g1() -> None:
    """§6: mean and variance of x_t for N(½, ¼); VE in the convention σ(0) = 0."""
    for t, mean, var in (
        (0.1, 0.47336089941, 0.327788376728),
        (0.5, 0.140591440398, 0.94070214066),
        (1.0, 0.00328579324746, 0.999967610688),
    ):
        m, c = problems.gaussian(VP()).moments(t)
        assert (float(m), float(c)) == pytest.approx((mean, var), rel=1e-11)
    for t, var in ((0.1, 0.23482793052), (0.5, 0.867889414647), (1.0, 0.999924426804)):
        assert float(problems.gaussian(SubVP()).moments(t)[1]) == pytest.approx(var, rel=1e-11)
    ve = problems.gaussian(VE(0.01, 50.0))
    assert [float(ve.moments(t)[1]) for t in (0.5, 1.0)] == pytest.approx([0.7499, 2500.2499], rel=1e-12)


def test_ddpm_tables() -> None:
    """§0, N = 50: β_1, β_50, ᾱ_50; and N = 1000 agrees with the continuous VP to O(1/N)."""
    small = Discrete.ddpm(50)
    assert (float(small.betas[0]), float(small.betas[-1])) == pytest.approx((0.002, 0.4), rel=1e-12)
    assert float(small.alphas_cumprod[-1]) == pytest.approx(7.74476569923e-6, rel=1e-11)
    levels = torch.arange(1, 51, dtype=torch.float64) / 50
    torch.testing.assert_close(small.scale(levels) ** 2, small.alphas_cumprod, rtol=1e-13, atol=0)
    torch.testing.assert_close(small.time(small.sigma(levels)), levels, rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="N > beta_max"):
        Discrete.ddpm(20)


def test_published_beta_tables() -> None:
    """numerics.md §5: σ_max 157.41 (linear), 14.6146 (Stable Diffusion's scaled_linear); the cosine's cap .999."""
    assert Discrete.from_betas("linear").sigma_max == pytest.approx(157.41, abs=5e-3)
    assert Discrete.from_betas("scaled_linear", 1000, 0.00085, 0.012).sigma_max == pytest.approx(14.6146, abs=5e-5)
    cosine = Discrete.from_betas("squaredcos_cap_v2")
    assert float(cosine.betas.max()) == pytest.approx(0.999, rel=1e-12)


def test_discrete_below_the_first_level_and_beyond_the_last() -> None:
    """σ is linear below t_1, ln σ is linear between levels and goes on beyond t = 1; zero terminal SNR ends before."""
    table = Discrete([0.9, 0.5, 0.1])
    sigma = (1 / f64(0.9, 0.5, 0.1) - 1).sqrt()
    torch.testing.assert_close(table.sigma(f64(1 / 6)), sigma[:1] / 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(table.sigma(f64(0.5)), (sigma[:1] * sigma[1:2]).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(table.sigma(f64(4 / 3)), sigma[2:] ** 2 / sigma[1:2], rtol=1e-13, atol=0)
    ends = Discrete([0.9, 0.5, 0.0])
    assert ends.t_max == pytest.approx(2 / 3) and math.isfinite(ends.sigma_max)


def test_flow_matching_is_linear_in_time() -> None:
    t = f64(0.0, 0.3, 0.9)
    assert FlowMatching().scale(t).tolist() == pytest.approx([1.0, 0.7, 0.1]) and torch.equal(FlowMatching().std(t), t)


def test_cosine_is_nichol_and_dhariwals() -> None:
    """ᾱ(t) = f(t)/f(0), f = cos²((t + .008)/1.008·π/2), up to rounding."""
    t = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    f = lambda u: torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(CosineVP().scale(t) ** 2, f(t) / f(f64(0.0)), rtol=1e-11, atol=1e-16)


# --------------------------------------------------------------------------------------------------- forward diffusion


@pytest.mark.parametrize("schedule", [VP(), SubVP(), CosineVP(), FlowMatching(), Discrete.ddpm(50)], ids=repr)
def test_a_scale_that_moves_walls_is_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=r"would move the walls.*VE\(\) or EDM\(\)"):
        Diffusion(Hypercube((2,)), schedule)
    Diffusion(Orthant((2,)), schedule)  # a cone: scaling maps it onto itself
    Diffusion(Euclidean((2,)), schedule)


def test_ve_takes_twice_the_width_on_a_bounded_domain() -> None:
    assert Diffusion(Hypercube((2,), -1.0, 3.0), VE()).schedule.sigma_max == 8.0
    assert Diffusion(Hypercube((2,), -1.0, 3.0), VE(sigma_max=5.0)).schedule.sigma_max == 5.0
    assert Diffusion(Euclidean((2,)), VE()).schedule.sigma_max == 50.0


@given(some.schedules(), st.floats(0.02, 1.0))
def test_transition_is_scale_times_the_kernel(schedule: Schedule, fraction: float) -> None:
    """x_t | x0 ~ N(s x0, std²), for a float, [batch] and broadcast time alike."""
    process, t = Diffusion(Euclidean((2,)), schedule), fraction * schedule.t_max
    x0, x = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    s, std = schedule.scale(t), schedule.std(t)
    want = torch.distributions.Normal(s * x0, std.expand(3, 2)).log_prob(x).sum(-1)
    for time in (t, torch.full((3,), t, dtype=torch.float64), torch.full((3, 1), t, dtype=torch.float64)):
        torch.testing.assert_close(process.transition(x0, time).log_prob(x), want, rtol=1e-12, atol=1e-12)


def test_transition_on_a_cone_scales_the_kernel_from_the_wall() -> None:
    """Orthant, VP: s·X_σ(x0) has density p_σ(x/s | x0)/s^d."""
    process = Diffusion(Orthant((2,)), VP())
    x0, x = f64(0.2, 1.0), f64(0.1, 0.4)
    s, sigma = process.schedule.scale(0.4), process.schedule.sigma(0.4)
    want = Orthant((2,)).heat_kernel(x0, sigma).log_prob(x / s) - 2 * s.log()
    torch.testing.assert_close(process.transition(x0, 0.4).log_prob(x), want, rtol=1e-12, atol=1e-12)


def test_level_and_both_forms_against_the_exact_prediction() -> None:
    """E[x0 | x] = p·x + q·score (Tweedie) and E[ε | x] likewise, for every schedule; D = x/s + sσ²·score."""
    for schedule in NAMED:
        problem = problems.mixture(schedule)
        t = 0.6 * schedule.t_max
        x = problem.points(t)
        level = problem.process.level(t)
        score, (data, noise) = problem.score(x, t), problem.score.prediction(x, t)
        for form, want in ((data_form, data), (noise_form, noise)):
            p, q = form(level)
            # σ up to 100 cancels x/s against σ²·score: relative to the size of the terms
            torch.testing.assert_close(p * x + q * score, want, rtol=1e-12, atol=1e-12 * float((p * x).abs().max() + 1))
        again = problem.process.level(sigma=level.sigma)
        assert float(again.t) == pytest.approx(t, rel=1e-10) and float(level.half_log_snr) == pytest.approx(
            -math.log(level.sigma)
        )
    with pytest.raises(TypeError, match="exactly one of"):
        problem.process.level()


@given(some.schedules(), some.schedules(), st.floats(0.05, 3.0))
def test_retime_is_exact(source: Schedule, target: Schedule, sigma: float) -> None:
    """A score of one (s, σ) retimed is the score of any other: to 1e-12 of the size of its terms."""
    sigma = min(sigma, 0.99 * source.sigma_max, 0.99 * target.sigma_max)
    one, other = problems.mixture(source), problems.mixture(target)
    t = target.time(f64(sigma))[0]
    x = other.points(float(t))
    got, want = retime(one.score, one.process, other.process)(x, t), other.score(x, t)
    # σ_S(t') = σ_T(t) holds to a few ulp of t, enlarged by t σ'/σ
    assert ((got - want).abs() <= 1e-11 * (want.abs() + (x / other.process.schedule.std(t) ** 2).abs())).all()


def test_retimed_vp_is_edm_to_1e_12() -> None:
    vp, edm = problems.mixture(VP()), problems.mixture(EDM())
    for sigma in (0.01, 0.3, 1.0, 7.0, 79.0):
        t = edm.process.schedule.time(f64(sigma))[0]
        x = edm.points(float(t))
        torch.testing.assert_close(
            retime(vp.score, vp.process, edm.process)(x, t), edm.score(x, t), rtol=1e-12, atol=1e-12 / sigma
        )
    assert retime(vp.score, vp.process, edm.process).rows(torch.tensor([0])) is not None
    with pytest.raises(ValueError, match="expected the same domain"):
        retime(vp.score, vp.process, problems.gaussian_2d().process)


@given(some.smooth_schedules(), some.smooth_schedules())
def test_flows_of_all_schedules_are_one_flow_after_scaling(a: Schedule, b: Schedule) -> None:
    """x/s is the same curve in σ: VP flow = EDM flow after x/s. Exact maps agree to rounding of the inversion."""
    one, two = problems.mixture(a), problems.mixture(b)
    clean = f64(-1.5, -0.6, 0.1, 0.7, 1.8)[:, None]
    ends = []
    for problem in (one, two):
        schedule = problem.process.schedule
        first, last = schedule.time(f64(0.9, 0.1)).tolist()
        ends.append(problem.flow(schedule.scale(first) * clean, first, last) / schedule.scale(last))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


def test_vp_flow_is_edm_flow_by_integration() -> None:
    """The same with the library's own flow equations, integrated to 1e-9: nothing cancels between two exact formulas."""
    clean = f64(-1.5, -0.6, 0.1, 0.7, 1.8)[:, None]
    ends = []
    for schedule in (VP(), EDM(), SubVP(), FlowMatching()):
        problem = problems.mixture(schedule)
        times = schedule.time(f64(5.0, 0.05))
        x = schedule.scale(times[0]) * clean * 5
        out = solve(problem.process.flow(problem.score), x, times, AdaptiveODE(rtol=1e-10, atol=1e-12)).x
        ends.append(out / schedule.scale(times[1]))
        exact = problem.flow(x, *times.tolist()) / schedule.scale(times[1])
        # the tolerance per step, some hundred steps
        torch.testing.assert_close(ends[-1], exact, rtol=1e-8, atol=1e-8)
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-8, atol=1e-8)


# ----------------------------------------------------------------------------------------------------------- equations


@given(some.schedules(), st.floats(0.05, 0.95))
def test_coefficients_of_the_equations(schedule: Schedule, fraction: float) -> None:
    """(a, b, c): forward (a, 0, g), reverse (a, −(1 + η)g²/2, √η g), flow (a, −g²/2, 0); floats for floats, tensors for grids."""
    process, t = Diffusion(Euclidean((1,)), schedule), fraction * schedule.t_max
    a, g = float(schedule.drift_rate(f64(t))), float(schedule.diffusion(f64(t)))
    score = lambda x, t: -x
    wanted = {
        process.forward(): (a, 0.0, g),
        process.flow(score): (a, -0.5 * g * g, 0.0),
        process.reverse(score): (a, -g * g, g),
        process.reverse(score, 0.25): (a, -0.625 * g * g, 0.5 * g),
        process.reverse(score, lambda t: 4 * torch.ones_like(t)): (a, -2.5 * g * g, 2 * g),
        ODE(score, process.domain): (0.0, 1.0, 0.0),
        SDE(score, 1.0, process.domain): (0.0, 1.0, 1.0),
    }
    for equation, want in wanted.items():
        got = equation.coefficients(t)
        assert all(type(v) is float for v in got) and got == pytest.approx(want, rel=1e-13)
        grid = equation.coefficients(f64(t, t / 2))
        assert [float(v[0]) for v in grid] == pytest.approx(want, rel=1e-13) and all(v.shape == (2,) for v in grid)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(0.05, 5.0), EDM(), CosineVP(), FlowMatching()], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
def test_the_whole_reverse_family_shares_its_marginals(schedule: Schedule, eta: float) -> None:
    """Gaussian data: d mean = (a + bA)·mean + b·k, d var = 2(a + bA)·var + c², with score = A x + k, runs into the marginals.

    In falling time the noise enters as −c² dt. scipy's integrator at 1e-10; the tolerance leaves room for its global error.
    """
    problem = problems.gaussian(schedule)
    equation = problem.process.reverse(problem.score, eta)
    first, last = schedule.time(f64(3.0, 0.1)).tolist()

    def slope(t: float, y: np.ndarray) -> list[float]:
        a, b, c = equation.coefficients(t)
        k, total = problem.score(f64(0.0, 1.0)[:, None], t).flatten().tolist()
        rate = a + b * (total - k)
        return [rate * y[0] + b * k, 2 * rate * y[1] - c * c]

    start = [float(v) for v in problem.moments(first)]
    end = solve_ivp(slope, (first, last), start, rtol=1e-10, atol=1e-12, method="DOP853").y[:, -1]
    assert end.tolist() == pytest.approx([float(v) for v in problem.moments(last)], rel=1e-7)


def test_spread_takes_scalars_diagonals_and_matrices() -> None:
    domain, x, z = Euclidean((2,)), torch.ones(3, 2), torch.tensor([[1.0, 2.0]]).expand(3, 2)
    t = torch.tensor(0.5)
    still = lambda x, t: torch.zeros_like(x)
    assert SDE(still, 2.0, domain).spread(x, t, z)[0].tolist() == [2.0, 4.0]
    assert SDE(still, torch.tensor([1.0, 3.0]), domain).spread(x, t, z)[0].tolist() == [1.0, 6.0]
    assert SDE(still, torch.tensor([[0.0, 1.0], [1.0, 1.0]]), domain).spread(x, t, z)[0].tolist() == [2.0, 3.0]
    per_state = lambda x, t: torch.diag_embed(x) + torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert SDE(still, per_state, domain).spread(x, t, z)[0].tolist() == [3.0, 2.0]


def test_the_field_is_refused_in_another_shape_or_dtype() -> None:
    process, x = problems.gaussian().process, torch.zeros(4, 1, dtype=torch.float64)
    for score in (lambda x, t: x[:, 0], lambda x, t: x.float(), lambda x, t: x[:2]):
        with pytest.raises(ValueError, match="expected the same shape and dtype"):
            process.flow(score).field(x, torch.tensor(0.5, dtype=torch.float64))


REFUSALS = [
    (lambda: Diffusion(VP(), VP()), TypeError, "domain: got VP, expected a Domain"),
    (lambda: Diffusion(Euclidean((1,)), Euclidean((1,))), TypeError, "schedule: got Euclidean, expected a Schedule"),
    (lambda: VP(beta_min=0.0), ValueError, r"beta_min: got 0, expected a finite number in \(0"),
    (lambda: VP(beta_min=3.0, beta_max=2.0), ValueError, "beta_max: got 2"),
    (lambda: VE(sigma_min=1.0, sigma_max=0.5), ValueError, "sigma_max: got 0.5"),
    (lambda: EDM(sigma_min=-1.0), ValueError, "sigma_min: got -1"),
    (lambda: Discrete([0.5, 0.9]), ValueError, "decrease strictly"),
    (lambda: Discrete([0.5]), ValueError, "at least 2"),
    (lambda: Discrete.from_betas("lineer"), ValueError, "got 'lineer', expected 'linear'"),
    (lambda: problems.gaussian().process.reverse(lambda x, t: x, -0.5), ValueError, "stochasticity: got -0.5"),
    (lambda: problems.gaussian().process.flow(3.0), TypeError, "score: got float, expected a callable"),
    (lambda: SDE(3.0, 1.0, Euclidean((1,))), TypeError, "drift: got float"),
    (lambda: SDE(lambda x, t: x, "1", Euclidean((1,))), TypeError, "diffusion: got str"),
    (lambda: SDE(lambda x, t: x, torch.eye(3), Euclidean((2,))), ValueError, r"diffusion: got a matrix \(3, 3\)"),
    (lambda: schedule_from_config({"type": "VP", "beta": 1.0}), ValueError, "unknown arguments beta"),
    (lambda: process_from_config({"domain": {}}), ValueError, "expected 'domain' and 'schedule'"),
    (
        lambda: problems.gaussian().process.transition(torch.zeros(3, 1), torch.ones(2)),
        ValueError,
        r"t: got shape \(2,\)",
    ),
    (
        lambda: GaussianMixtureScore(Diffusion(Hypercube((1,)), VE()), [1.0], [0.5], 0.1),
        TypeError,
        "use EmpiricalScore",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS, ids=[m for *_, m in REFUSALS])
def test_bad_input_is_refused_with_what_was_got_and_the_fix(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("schedule", NAMED, ids=repr)
def test_processes_travel_as_dictionaries(schedule: Schedule) -> None:
    process = Diffusion(Euclidean((2,)), schedule)
    again = process_from_config(process.config())
    t = torch.linspace(0, schedule.t_max, 9, dtype=torch.float64)
    assert torch.equal(again.schedule.sigma(t), process.schedule.sigma(t)) and again.config() == process.config()


def test_constant_scales_may_be_plain_numbers_and_levels_out_of_range_are_refused() -> None:
    class Mine(Schedule):
        def scale(self, t):  # type: ignore[no-untyped-def]
            return 1.0

        def sigma(self, t):  # type: ignore[no-untyped-def]
            return 2 * t

    process = Diffusion(Hypercube((2,)), Mine())
    assert float(process.schedule.diffusion(0.5)) == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"got sigma up to 40, expected noise levels that .* reaches"):
        process.level(sigma=40.0)
    with pytest.raises(ValueError, match=r"got t down to -0\.5"):
        process.level(-0.5)
    with pytest.raises(ValueError, match="t: got -1"):
        process.transition(torch.rand(3, 2), -1.0)


def test_retime_takes_times_per_sample_and_hands_predictions_on() -> None:
    vp, edm = (Diffusion(Euclidean((2,)), s) for s in (VP(), EDM()))
    mixture = GaussianMixtureScore(vp, [0.4, 0.6], [[0.0, 1.0], [1.0, -1.0]], 0.2)
    moved, exact = retime(mixture, vp, edm), GaussianMixtureScore(edm, [0.4, 0.6], [[0.0, 1.0], [1.0, -1.0]], 0.2)
    for batch in (2, 3):
        x, t = torch.randn(batch, 2, dtype=torch.float64), torch.linspace(0.01, 0.1, batch, dtype=torch.float64)
        assert torch.allclose(moved(x, t), exact(x, t), rtol=1e-11)
        assert torch.allclose(moved(x, t), moved(x, t[:, None]), rtol=1e-14)
        assert torch.allclose(moved.prediction(x, t)[0], exact.prediction(x, t)[0], rtol=1e-10)


def test_each_part_of_a_product_may_have_a_schedule_of_its_own() -> None:
    """Each part moves as it does alone: its transition, and its share of the flow and of the reverse SDE, step by step."""
    image, label = Hypercube((2,)), Simplex(3)
    both = Product(image, label)
    parts = Diffusion(image, VE(0.01, 2.0)), Diffusion(label, EDM(0.002, 1.0))
    process = Diffusion(both, [part.schedule for part in parts])
    data = both.uniform(torch.float64).sample((4,), generator=torch.Generator().manual_seed(0))
    pieces = both.split(data)
    kernel = process.transition(data, 0.4)
    sum_of_parts = sum(p.transition(a, 0.4).log_prob(a.flip(0)) for p, a in zip(parts, pieces, strict=True))
    torch.testing.assert_close(kernel.log_prob(data.flip(0)), sum_of_parts)

    scores = [EmpiricalScore(p, a[:1]) for p, a in zip(parts, pieces, strict=True)]
    joint = EmpiricalScore(process, data[:1])  # one datum: the joint score is the parts' scores side by side
    t = torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(
        joint(data, t), both.join(*(s(a, t) for s, a in zip(scores, pieces, strict=True))), rtol=1e-12, atol=1e-12
    )
    times = torch.linspace(0.6, 0.1, 30)
    noises = [s.prediction(a, t)[1] for s, a in zip(scores, pieces, strict=True)]
    torch.testing.assert_close(joint.prediction(data, t)[1], both.join(*noises), rtol=1e-12, atol=1e-12)

    def plain(x, t):  # without a prediction, so that the last denoising step takes the score
        return joint(x, t)

    last = sample(process, plain, Euler(), [0.4], shape=4, initial=data).x
    for got, part, score, piece in zip(both.split(last), parts, scores, pieces, strict=True):
        sigma = part.schedule.sigma(t)
        torch.testing.assert_close(got, part.domain.reflect(piece, sigma**2 * score(piece, t)), rtol=1e-12, atol=1e-12)
    # EulerMaruyama without noise is Euler
    for run, solver in ((lambda p, s: p.flow(s), Heun()), (lambda p, s: p.reverse(s, 0.0), EulerMaruyama())):
        together = solve(run(process, joint), data, times, solver).x
        alone = [solve(run(p, s), a, times, solver).x for p, s, a in zip(parts, scores, pieces, strict=True)]
        torch.testing.assert_close(together, both.join(*alone), rtol=1e-11, atol=1e-11)


def test_parts_with_scales_of_their_own_keep_their_priors_and_moments() -> None:
    """A VP part in R² next to a VE part on an interval: 20,000 forward paths against the transition, 5 standard errors."""
    both = Product(Euclidean((2,)), Hypercube((1,)))
    process = Diffusion(both, (VP(), VE(0.01, 2.0)))
    start = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64).expand(20_000, 3).contiguous()
    walked = solve(
        process.forward(), start, torch.linspace(0, 0.3, 301), ReflectedEulerMaruyama(), noise=WhiteNoise(0)
    ).x
    drawn = process.transition(start, 0.3).sample(generator=torch.Generator().manual_seed(1))
    error = 5 * (walked.var(0) / 20_000 + drawn.var(0) / 20_000).sqrt()
    # Euler's weak error of 300 steps is below a tenth of that
    assert ((walked.mean(0) - drawn.mean(0)).abs() <= error).all()
    assert ((walked.var(0) - drawn.var(0)).abs() <= 5 * walked.var(0) * (2 * 2 / 20_000) ** 0.5).all()
    prior = process.prior(torch.float64).sample((20_000,), generator=torch.Generator().manual_seed(2))
    assert both.contains(prior).all()
    assert ((prior.var(0) - torch.tensor([1.0, 1.0, 1 / 12]).double()).abs() < 0.05).all()
    again = process_from_config(json.loads(json.dumps(process.config())))
    assert again.config() == process.config() and len(again.parts) == 2


def test_schedules_that_do_not_fit_the_parts_are_refused() -> None:
    both = Product(Hypercube((1,)), Simplex(3))
    with pytest.raises(ValueError, match=r"got 3 schedules on Product.*expected 2, one for each part, or a single one"):
        Diffusion(both, [VE(), VE(), VE()])
    nested = Product(both, Hypercube((1,)))
    with pytest.raises(ValueError, match=r"schedules within schedules"):
        Diffusion(nested, [[VE(), VE()], VE()])
    with pytest.raises(ValueError, match=r"retime: got a process with a schedule for each part"):
        retime(lambda x, t: x, Diffusion(both, [VE(), EDM()]), Diffusion(both, VE()))
    with pytest.raises(ValueError, match=r"got 2 schedules on Hypercube.*expected a single one"):
        Diffusion(Hypercube((2,)), [VE(), VE()])
    with pytest.raises(ValueError, match=r"whose scale falls"):
        Diffusion(both, [VP(), VE()])
    with pytest.raises(ValueError, match=r"schedules that end at t = .*expected one end"):
        Diffusion(Product(Euclidean((1,)), Euclidean((1,))), [FlowMatching(), VP()])
