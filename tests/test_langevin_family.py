"""Langevin dynamics in a time of their own: stationary laws by quadrature and linear algebra, detailed balance move by move."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from carom.domains import Ball, Euclidean, Hypercube, Orthant, Torus
from carom.processes import EDM, SDE, VP, Diffusion, Kinetic, Langevin, RiemannianLangevin
from carom.scores import GaussianMixtureScore
from carom.solvers import (
    MALA,
    SVGD,
    EulerMaruyama,
    Milstein,
    Reflect,
    SampleNoise,
    SolveError,
    Solver,
    Status,
    WhiteNoise,
    bind,
    solve,
)
from carom.validation import (
    convergence_order,
    expectation,
    gaussian_gap,
    linear_law,
    problems,
    propagate_moments,
)

F64 = torch.float64
LINE, PLANE = Euclidean((1,)), Euclidean((2,))
ONE = torch.eye(1, dtype=F64)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def steps(span: float, n: int) -> Tensor:
    return torch.linspace(0, span, n + 1, dtype=F64)


def skewed(x: Tensor) -> Tensor:
    """log p of .3 N(−1, .2²) + .7 N(.8, .3²), M1 of formulas.md."""
    logs = [math.log(w / s) - 0.5 * ((x[..., 0] - m) / s) ** 2 for w, m, s in ((0.3, -1.0, 0.2), (0.7, 0.8, 0.3))]
    return torch.stack(logs).logsumexp(0) - 0.5 * math.log(2 * math.pi)


# ---------------------------------------------------------------------------------------------------- unadjusted Langevin (ULA)


def test_the_stationary_variance_of_ula_on_a_gaussian() -> None:
    """§7: v/(1 − h/2v), .277777777778 for v = .25, h = .05; the start is forgotten by .8 a step."""
    equation = Langevin(lambda x: -x / 0.25, LINE)
    _, variance = propagate_moments(equation, EulerMaruyama(), steps(0.05 * 160, 160), torch.zeros(1, dtype=F64), ONE)
    assert float(variance) == pytest.approx(0.25 / (1 - 0.05 / 0.5), abs=1e-13)
    assert float(variance) == pytest.approx(0.277777777778, abs=5e-13)


def test_the_stationary_variance_at_the_first_level_of_annealed_langevin() -> None:
    """§10: N(.5, .25) at σ = 1, h = .2: v/(1 − h/2v) with v = 1.25; the start is forgotten by .84 a step."""
    score = problems.gaussian(EDM(sigma_max=1.0)).score
    equation = Langevin(lambda x: score(x, 1.0), LINE)
    mean, variance = propagate_moments(equation, EulerMaruyama(), steps(0.2 * 200, 200), f64(0.0), ONE)
    assert (float(mean), float(variance)) == pytest.approx((0.5, 1.35869565217), abs=5e-12)


@pytest.mark.parametrize(("t", "want"), [(0.5, 0.0694496427597), (1.0, 0.0196812793868), (2.0, 0.0023370658084)])
def test_relative_entropy_falls_as_it_should(t: float, want: float) -> None:
    """§7: KL(q_t | N(0, 1)) from N(.5, .25): of the equation to the digits given, of a rule at weak order 1 in the step."""
    exact = linear_law(Langevin(lambda x: -x, LINE), 0.0, t, f64(0.5), 0.25 * ONE)
    assert gaussian_gap(exact, (0.0, 1.0)).divergence == pytest.approx(want, abs=6e-14)  # 13 places

    def divergence(n: int) -> Tensor:
        mean, variance = propagate_moments(
            Langevin(lambda x: -x, LINE), EulerMaruyama(), steps(t, n), f64(0.5), 0.25 * ONE
        )
        return 0.5 * (variance[0, 0] + mean[0] ** 2 - 1 - variance[0, 0].log())

    slopes = convergence_order(divergence, (64, 128, 256, 512), want)
    # at t = 2 the error's second order is still a twentieth of the first
    assert float(slopes[-1]) == pytest.approx(1.0, abs=0.06)


def test_between_walls_the_law_is_kept_up_to_the_order_of_the_step() -> None:
    """p ∝ e^{2x} on [0, 1]: ∫ p E[f(X_1)|x] dx − ∫ p f falls at order 1; for the uniform law it is rounding."""
    nodes, weights = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(60))
    x, w = 0.5 * (1 + nodes)[:, None], 0.5 * weights
    f = lambda u: torch.cos(math.pi * u)

    def drift(rate: float, n: int) -> float:
        equation = Langevin(lambda u: torch.full_like(u, rate), Hypercube((1,)))
        p = w * (rate * x[:, 0]).exp()
        p = p / p.sum()
        return float(p @ (expectation(equation, EulerMaruyama(), steps(1.0, n), f)(x) - f(x))[:, 0])

    assert abs(drift(0.0, 8)) < 1e-12
    slopes = convergence_order(lambda n: drift(2.0, n), (16, 32, 64))
    assert slopes.tolist() == pytest.approx([1.0, 1.0], abs=0.1)


def test_milstein_is_euler_maruyama_where_noise_does_not_depend_on_the_state() -> None:
    equation, x = Langevin(lambda x: -(x**3), LINE), f64(0.3, -1.0)[:, None]
    runs = [solve(equation, x, steps(1, 10), rule, noise=WhiteNoise(0)).x for rule in (EulerMaruyama(), Milstein())]
    assert torch.equal(*runs)


def test_a_score_of_the_library_at_a_fixed_level_takes_its_density_along() -> None:
    """The stationary law of the score at level t is p_t: MALA from the data law forgets it."""
    process = Diffusion(LINE, VP())
    score = GaussianMixtureScore(process, [1.0], [2.0], 0.25)
    equation = Langevin(lambda x: score(x, 0.4), LINE, lambda x: score.log_prob(x, 0.4))
    run = solve(equation, torch.zeros(20_000, 1, dtype=F64), steps(12, 60), MALA(), noise=WhiteNoise(0))
    level = process.level(0.4)
    mean, variance = 2 * float(level.scale), float(level.scale**2 * (0.25 + level.sigma**2))
    # standard errors of 20,000 independent chains; e^{-12/variance} of the start is left
    assert float(run.x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 20_000))
    assert float(run.x.var()) == pytest.approx(variance, abs=4 * variance * math.sqrt(2 / 20_000))


def test_langevin_from_a_density_alone_has_its_gradient_for_a_score() -> None:
    equation = Langevin.of_log_prob(lambda x, scale=1.0: -0.25 * scale * (x**4).sum(-1), PLANE)
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(equation.score(x), -(x**3), rtol=0, atol=1e-14)
        at = equation.bound(condition={"scale": 3.0}).field(x, f64(0.0)[0])
    torch.testing.assert_close(at, -3 * x**3, rtol=0, atol=1e-13)
    again = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(equation.score(again).sum(), again)
    torch.testing.assert_close(slope, -3 * x**2, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------------------- Riemannian Langevin


def stationary_variance(equation: RiemannianLangevin, drift: Callable[[Tensor], Tensor]) -> float:
    """The variance of the stationary density exp(∫ b/D)/D in one dimension, on x = sinh y: the potential by Gauss's rule in each cell,
    the density, analytic and 0 beyond |x| = 27, by the trapezoidal rule. Both converge faster than any power of the step."""
    ends, step = torch.linspace(-4, 4, 401, dtype=F64), 0.02
    place, weight = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(6))
    y = ends[:-1, None] + 0.5 * step * (1 + place)
    inner = y.sinh().reshape(-1, 1)
    rise = (drift(inner) / equation.metric(inner)[0]).reshape(y.shape) * y.cosh()
    potential = torch.cat([torch.zeros(1, dtype=F64), (0.5 * step * rise * weight).sum(1).cumsum(0)])
    x = ends.sinh()[:, None]
    weights = (potential - potential.max()).exp() / equation.metric(x)[0][:, 0] * ends.cosh()
    return float((weights * x[:, 0] ** 2).sum() / weights.sum())


def test_the_divergence_belongs_to_the_drift_and_leaving_it_out_is_wrong() -> None:
    """§7, erratum E7: D = 1 + x², p = N(0, 1). The stationary variance is 1; without the divergence, or with half of it, as given."""
    equation = RiemannianLangevin(lambda x: -x, lambda x: 1 + x**2, LINE)
    zero = f64(0.0)[0]
    assert stationary_variance(equation, lambda x: equation.drift(x, zero)) == pytest.approx(1.0, abs=1e-12)
    for share, want in ((0.0, 0.525135276161), (0.5, 0.715377737206)):
        less = lambda x, share=share: equation.drift(x, zero) - (1 - share) * equation.metric_divergence(x)
        assert stationary_variance(equation, less) == pytest.approx(want, abs=6e-13)  # 12 places


def mixing(x: Tensor) -> Tensor:
    """D = [[1 + x², xy], [xy, 1 + y²]] = I + x xᵀ."""
    return torch.eye(2, dtype=x.dtype) + x[..., :, None] * x[..., None, :]


COVARIANCE = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
PRECISION = COVARIANCE.inverse()


def fokker_planck(equation: RiemannianLangevin, x: Tensor, drift: Callable[[Tensor], Tensor]) -> float:
    """[−∇·(b p) + Σ ∂_i ∂_j (D_ij p)] / p at x, by automatic differentiation."""
    density = lambda u: (-0.5 * u @ PRECISION @ u).exp()

    def flux(u: Tensor) -> Tensor:
        spread = torch.func.jacrev(lambda w: equation.metric(w)[0] * density(w))(u)
        return torch.einsum("ijj->i", spread) - drift(u) * density(u)

    return float(torch.func.jacrev(flux)(x).diagonal().sum() / density(x))


def test_the_fokker_planck_residual_of_a_matrix_metric() -> None:
    """§7: ∇·D = (3x, 3y); at (.3, −.4) the drift is (.0388, .2654), the residual 0 with it and 3.97317073171 p without."""
    equation = RiemannianLangevin(lambda x: -x @ PRECISION, mixing, PLANE)
    x, zero = f64(0.3, -0.4), f64(0.0)[0]
    torch.testing.assert_close(equation.metric_divergence(x), 3 * x, rtol=0, atol=1e-15)
    torch.testing.assert_close(
        equation.drift(x, zero), f64(0.0387804878049, 0.265365853659), rtol=0, atol=5e-13
    )  # digits given
    assert abs(fokker_planck(equation, x, lambda u: equation.drift(u, zero))) < 1e-13
    without = fokker_planck(equation, x, lambda u: equation.drift(u, zero) - equation.metric_divergence(u))
    assert without == pytest.approx(3.97317073171, abs=5e-12)


@pytest.mark.parametrize(
    ("metric", "divergence"),
    [
        (lambda x: 1 + x**2, lambda x: 2 * x),
        (lambda x: 1 + x.square().sum(-1, keepdim=True), lambda x: 2 * x),
        (lambda x: 1 + x.flip(-1) ** 2, lambda x: 0 * x),
        (mixing, lambda x: 3 * x),
        (torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64), lambda x: 0 * x),
        (f64(2.0)[0], lambda x: 0 * x),
    ],
    ids=["diagonal", "scalar", "crossed", "matrix", "constant matrix", "constant"],
)
@pytest.mark.parametrize("rows", [None, 2, 5])
def test_every_form_of_a_metric(metric, divergence, rows: int | None) -> None:
    """Divergence in closed form, and noise with the covariance 2D, also where the batch is as large as the dimension."""
    x = torch.randn(*([] if rows is None else [rows]), 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    equation, zero = RiemannianLangevin(lambda u: -u, metric, PLANE), f64(0.0)[0]
    torch.testing.assert_close(equation.metric_divergence(x), divergence(x), rtol=0, atol=1e-14)
    given = RiemannianLangevin(lambda u: -u, metric, PLANE, divergence=divergence)
    torch.testing.assert_close(given.drift(x, zero), equation.drift(x, zero), rtol=0, atol=1e-13)
    columns = torch.stack(
        [equation.spread(x, zero, axis.expand(x.shape)) for axis in torch.eye(2, dtype=F64)], -1
    )  # the matrix of the noise
    value, is_matrix = equation.metric(x)
    want = value if is_matrix else torch.diag_embed(value)
    torch.testing.assert_close(
        equation.drift(x, zero), divergence(x) - (want @ x[..., None])[..., 0], rtol=0, atol=1e-13
    )
    torch.testing.assert_close(columns @ columns.mT, 2 * want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", [EulerMaruyama(), Milstein()], ids=repr)
def test_a_riemannian_chain_has_the_law_it_should(solver: Solver) -> None:
    """D = 1 + x²/4 on N(0, 1), run for four units of time from the law itself; without the divergence the variance is below .8."""
    metric = lambda x: 1 + x**2 / 4
    start = torch.randn(10_000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    variance = lambda equation: float(solve(equation, start, steps(4, 200), solver, noise=WhiteNoise(1)).x.var())
    # h = .02 leaves a bias of about h; the standard error is √(2/10000) = .014
    assert variance(RiemannianLangevin(lambda x: -x, metric, LINE)) == pytest.approx(1.0, abs=0.02 + 3 * 0.014)
    without = RiemannianLangevin(lambda x: -x, metric, LINE, divergence=torch.zeros_like)
    assert variance(without) < 0.85


def test_milstein_uses_one_normal_for_both_its_terms() -> None:
    """dx = x dW: x(1 + √h z + ½h(z² − 1)) = x[½(1 + √h z)² + ½(1 − h)] never falls below ½(1 − h) x, with any source of noise."""
    equation = SDE(lambda x, t: 0 * x, lambda x, t: x, LINE)
    for noise in (WhiteNoise(0), SampleNoise(range(2000))):
        x = solve(equation, torch.ones(2000, 1, dtype=F64), [0.0, 0.5], Milstein(), noise=noise).x
        assert 0.25 - 1e-15 <= float(x.min()) < 0.3


def test_an_inverse_is_a_constant_metric_though_rounding_leaves_it_uneven() -> None:
    uneven = torch.tensor([[1.0, 0.3], [0.3 + 1e-7, 0.5]])
    x = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(RiemannianLangevin(lambda x: -x, uneven, PLANE).drift(x, x[0, 0]), -x @ uneven)


# ----------------------------------------------------------------------------------------------------------------------------- MALA


def accepted(equation: Langevin, h: float, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Where the proposal of normal z leads from x, and the probability with which it is taken, by bisection of the step's own answer."""
    record = bind(MALA().plan(equation, f64(0.0, h)), x)[0]
    move = lambda w: MALA().step(equation, x, record, (), (z, torch.broadcast_to(w[:, None], x.shape)))[0]
    low, high = torch.full((len(x),), -37.0, dtype=F64), torch.full((len(x),), 37.0, dtype=F64)
    end = move(low)
    for _ in range(70):
        middle = 0.5 * (low + high)
        taken = (move(middle) == end).all(-1)
        low, high = torch.where(taken, middle, low), torch.where(taken, high, middle)
    return end, torch.special.ndtr(low)


def test_every_move_on_the_line_is_in_detailed_balance() -> None:
    """p(x) q(y|x) a(x, y) is symmetric, to the rounding of 70 bisections: nothing about the chain is left to chance."""
    equation, h = Langevin.of_log_prob(skewed, LINE), 0.05
    x, y = (v.reshape(-1, 1) for v in torch.meshgrid(*[torch.linspace(-1.4, 1.6, 9, dtype=F64)] * 2, indexing="ij"))

    def flux(a: Tensor, b: Tensor) -> Tensor:
        z = (b - a - h * equation.score(a)) / math.sqrt(2 * h)
        end, probability = accepted(equation, h, a, z)
        torch.testing.assert_close(end, b, rtol=0, atol=1e-13)
        return (skewed(a) - 0.5 * z[:, 0] ** 2).exp() * probability

    torch.testing.assert_close(flux(x, y), flux(y, x), rtol=1e-9, atol=1e-14)


def test_moves_between_walls_are_in_detailed_balance_image_by_image() -> None:
    """On [0, 1]: the flux to y, summed over the images of y on the line, is that of the way back; each image has a way back of its own."""
    log_prob = lambda x: (1 + 0.8 * torch.cos(3 * x[..., 0])).log() + x[..., 0]
    equation, h = Langevin.of_log_prob(log_prob, Hypercube((1,))), 0.2
    x, y = (v.reshape(-1, 1) for v in torch.meshgrid(*[torch.linspace(0.05, 0.95, 5, dtype=F64)] * 2, indexing="ij"))

    def flux(a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a), dtype=F64)
        for sign, period in itertools.product((1, -1), range(-3, 4)):
            z = (sign * b + 2 * period - a - h * equation.score(a)) / math.sqrt(2 * h)
            end, probability = accepted(equation, h, a, z)
            torch.testing.assert_close(end, b, rtol=0, atol=1e-12)
            total += (log_prob(a) - 0.5 * z[:, 0] ** 2).exp() * probability
        return total

    torch.testing.assert_close(flux(x, y), flux(y, x), rtol=1e-9, atol=1e-14)


def test_in_a_disk_proposals_outside_are_left_and_balance_holds() -> None:
    log_prob = lambda x: x[..., 0] - 2 * x.square().sum(-1)
    domain, h = Ball(2), 0.1
    equation = Langevin.of_log_prob(log_prob, domain)
    x, y = (
        domain.uniform(F64).sample((40,), generator=torch.Generator().manual_seed(s))  # type: ignore[call-arg]
        for s in (0, 1)
    )

    def flux(a: Tensor, b: Tensor) -> Tensor:
        z = (b - a - h * equation.score(a)) / math.sqrt(2 * h)
        _, probability = accepted(equation, h, a, z)
        return (log_prob(a) - 0.5 * z.square().sum(-1)).exp() * probability

    torch.testing.assert_close(flux(x, y), flux(y, x), rtol=1e-9, atol=1e-14)

    def seen(u: Tensor) -> Tensor:
        assert bool(domain.contains(u).all()), "asked for outside of the domain"
        return log_prob(u)

    equation = Langevin.of_log_prob(seen, domain)
    record = bind(MALA().plan(equation, f64(0.0, h)), x)[0]
    away = (
        10 * x / x.norm(dim=-1, keepdim=True),
        torch.full_like(x, -8.0),
    )  # log U = log Φ(−8): anything inside is taken
    assert torch.equal(MALA().step(equation, x, record, (), away)[0], x)


def ula_moment(h: float, function: Callable[[Tensor], Tensor]) -> float:
    """A stationary moment of Euler–Maruyama on the skewed mixture, from its transition matrix on a grid."""
    equation = Langevin.of_log_prob(skewed, LINE)
    x = torch.linspace(-2.6, 2.8, 301, dtype=F64)[:, None]
    record = bind(EulerMaruyama().plan(equation, f64(0.0, h)), x)[0]
    ends = [EulerMaruyama().step(equation, x, record, (), (torch.full_like(x, z),))[0] for z in (0.0, 1.0)]
    centre, spread = ends[0], ends[1] - ends[0]
    matrix = (-0.5 * ((x.T - centre) / spread) ** 2).exp()
    matrix = matrix / matrix.sum(1, keepdim=True)
    system = torch.cat([(matrix - torch.eye(len(x), dtype=F64)).T, torch.ones(1, len(x), dtype=F64)])
    law = torch.linalg.lstsq(system, torch.cat([torch.zeros(len(x), dtype=F64), f64(1.0)])[:, None]).solution[:, 0]
    return float(law @ function(x))


def exact(function: Callable[[Tensor], Tensor]) -> float:
    x = torch.linspace(-3.5, 3.5, 4001, dtype=F64)[:, None]
    return float((skewed(x).exp() * function(x)).sum() * 7 / 4000)


MOMENTS = {
    "mean": lambda x: x[..., 0],
    "second": lambda x: x[..., 0] ** 2,
    "third": lambda x: x[..., 0] ** 3,
    "log p": skewed,
}


def test_ula_on_a_skewed_mixture_errs_in_proportion_to_its_step() -> None:
    errors = [ula_moment(h, skewed) - exact(skewed) for h in (0.005, 0.0025, 0.00125)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    # the next term is about h/v of the first, v = .04 the smaller variance
    assert slopes == pytest.approx([1.0, 1.0], abs=0.1) and slopes[1] > slopes[0]
    assert errors[0] < -0.015


def test_mala_on_a_skewed_mixture_has_its_moments_where_ula_has_not() -> None:
    """10,000 chains from draws of the mixture, 60 steps of h = .02: stationary, so that all errors are those of independent samples."""
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(10_000, generator=generator, dtype=F64) < 0.3
    z = torch.randn(10_000, generator=generator, dtype=F64)
    start = torch.where(left, -1 + 0.2 * z, 0.8 + 0.3 * z)[:, None]
    equation = Langevin.of_log_prob(skewed, LINE)
    run, free = (
        solve(equation, start, steps(60 * 0.02, 60), rule, noise=WhiteNoise(1)) for rule in (MALA(), EulerMaruyama())
    )
    score = lambda x, f: float((f(x).mean() - exact(f)) / (f(x).std() / 100))
    assert max(abs(score(run.x, f)) for f in MOMENTS.values()) < 3.5
    assert abs(score(free.x, MOMENTS["log p"])) > 6
    assert run.stats["acceptance"].shape == (10_000,) and run.nfe == 61
    assert 0.8 < float(run.stats["acceptance"].mean()) < 0.97
    moved = (solve(equation, start, steps(60 * 0.02, 60), MALA(), noise=WhiteNoise(1), save="all").trajectory).diff(
        dim=0
    )
    # the share of steps in which a chain moved is what it reports
    torch.testing.assert_close((moved != 0).double().mean(0)[:, 0], run.stats["acceptance"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "domain", [PLANE, Hypercube((2,)), Orthant((2,)), Torus((2,)), Ball(2)], ids=lambda d: type(d).__name__
)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_chain_is_the_same_alone_and_in_a_batch_and_stays_inside(domain, dtype: torch.dtype) -> None:
    equation = Langevin.of_log_prob(lambda x: torch.cos(2 * math.pi * x).sum(-1) - x.square().sum(-1), domain)
    x = torch.tensor([[0.2, 0.6], [0.5, 0.1], [0.3, 0.3]], dtype=dtype)
    run = solve(equation, x, steps(0.3, 15), MALA(), noise=SampleNoise([3, 1, 2]))
    assert run.x.dtype == dtype and bool(run.ok.all()) and bool(domain.contains(run.x).all())
    assert 0 < float(run.stats["acceptance"].min()) <= 1
    for i, seed in enumerate((3, 1, 2)):
        alone = solve(equation, x[i : i + 1], steps(0.3, 15), MALA(), noise=SampleNoise([seed]))
        assert torch.equal(alone.x[0], run.x[i])
        assert torch.equal(alone.stats["acceptance"][0], run.stats["acceptance"][i])


def test_chains_put_where_there_is_no_density_walk_until_they_find_some_and_stay() -> None:
    """Half of the starts lie at density 0 with a flat score; by T = 8 a Brownian path from −.5 has met 0 but for erf(.5/√32) = 10 %."""
    log_prob = lambda x: torch.where(x[..., 0] > 0, -0.5 * x[..., 0] ** 2, -math.inf)
    start = torch.linspace(-0.5, 0.5, 200, dtype=F64)[:, None]
    run = solve(Langevin.of_log_prob(log_prob, LINE), start, steps(8, 160), MALA(), noise=WhiteNoise(0), save="all")
    inside = run.trajectory[..., 0] > 0
    assert bool(run.ok.all()) and not bool((inside[:-1] & ~inside[1:]).any())
    assert float(inside[-1, :100].double().mean()) > 0.8


def test_where_the_density_is_zero_nothing_is_taken_and_nan_ends_a_chain() -> None:
    log_prob = lambda x: torch.where(x[..., 0] > 0, -x[..., 0], -math.inf)
    score = lambda x: torch.where(x > 0, -1.0, torch.nan).to(x)
    equation = Langevin(score, LINE, log_prob)
    run = solve(equation, torch.full((500, 1), 0.2, dtype=F64), steps(4, 20), MALA(), noise=WhiteNoise(0))
    assert bool(run.ok.all()) and float(run.x.min()) > 0
    broken = Langevin(lambda x: torch.where(x > 0.5, torch.nan, -x), LINE, lambda x: -0.5 * x[..., 0] ** 2)
    run = solve(broken, f64(0.6, 0.2)[:, None], steps(0.001, 1), MALA(), noise=WhiteNoise(0))
    assert run.status.tolist() == [Status.NON_FINITE, Status.OK]
    with pytest.raises(SolveError, match="NaN"):
        run.raise_on_failure()
    # a chain may start where p is 0, if its score leads away from there; with a score that is NaN it could never move
    outside = f64(-1.0, -1.0)[:, None]
    lost = solve(equation, outside, steps(4, 20), MALA(), noise=WhiteNoise(0))
    assert lost.status.tolist() == [Status.NON_FINITE] * 2
    led = Langevin(lambda x: torch.where(x > 0, -1.0, 1.0).to(x), LINE, log_prob)
    assert float(solve(led, outside, steps(10, 40), MALA(), noise=WhiteNoise(0)).x.min()) > 0


@pytest.mark.parametrize("domain", [PLANE, Hypercube((2,)), Ball(2)], ids=lambda d: type(d).__name__)
def test_what_a_chain_remembers_is_what_it_would_compute_anew(domain) -> None:
    """Thirty steps, many of them refused, are those of a rule that forgets; what counts as taken is what moved."""
    equation = Langevin.of_log_prob(lambda x: torch.cos(7 * x).sum(-1) - x.square().sum(-1), domain)
    x = torch.tensor([[0.2, 0.6], [0.5, 0.1], [0.3, 0.3]], dtype=F64)
    run = solve(equation, x, steps(3, 30), MALA(), noise=WhiteNoise(5), save="all")
    share = (run.trajectory.diff(dim=0) != 0).any(-1).double().mean(0)
    assert float(share.min()) > 0 and float(share.max()) < 0.9
    torch.testing.assert_close(run.stats["acceptance"], share, rtol=0, atol=1e-15)
    draw, bound = WhiteNoise(5).open(x), equation.bound(Reflect())
    for record in bind(MALA().plan(bound, steps(3, 30)), x):
        noise = [draw(float(record.t), float(record.s), stream) for stream in range(2)]
        x = MALA().step(bound, x, record, (), noise)[0]
    # where it does not fold the wall leaves x + (y − x) for y, so that the two differ by rounding
    torch.testing.assert_close(x, run.x, rtol=0, atol=1e-12)


def test_a_chain_that_takes_nothing_says_so() -> None:
    equation = Langevin(lambda x: -x, LINE, lambda x: -0.5 * x[..., 0] ** 2)
    start = f64(0.3, -1.0)[:, None]
    run = solve(equation, start, steps(4e6, 4), MALA(), noise=WhiteNoise(0))
    assert torch.equal(run.x, start) and run.stats["acceptance"].tolist() == [0.0, 0.0] and bool(run.ok.all())


def test_keywords_of_a_solve_reach_density_and_score() -> None:
    """N(shift, 1) from N(0, 1): the mean of 4,000 chains after 8 units of time; without the keyword in the density it would be 0."""
    equation = Langevin.of_log_prob(lambda x, shift=0.0: -0.5 * (x[..., 0] - shift) ** 2, LINE)
    start = torch.randn(4000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = solve(equation, start, steps(8, 16), MALA(), noise=WhiteNoise(1), condition={"shift": 1.0}).x
    assert float(x.mean()) == pytest.approx(1.0, abs=4 / math.sqrt(4000))


def test_a_metric_that_is_not_positive_definite_ends_its_own_sample() -> None:
    metric = lambda x: torch.diag_embed(torch.stack([torch.ones_like(x[..., 0]), x[..., 0]], -1))
    equation = RiemannianLangevin(lambda x: -x, metric, PLANE)
    x = f64(1.0, 0.5, -1.0, 0.5).reshape(2, 2)
    run = solve(equation, x, [0.0, 0.01], EulerMaruyama(), noise=SampleNoise([1, 2]))
    assert run.status.tolist() == [Status.OK, Status.NON_FINITE]
    assert torch.equal(run.x[:1], solve(equation, x[:1], [0.0, 0.01], EulerMaruyama(), noise=SampleNoise([1])).x)


def test_every_dynamics_is_made_of_a_log_density_alone() -> None:
    x, zero = f64(0.3, -0.7)[:, None], f64(0.0)[0]
    log_prob = lambda x: -0.25 * x[..., 0] ** 4
    state = torch.stack([x, 0 * x], 1)
    kinetic = Kinetic.of_log_prob(log_prob, LINE, friction=0.5, mass=2.0)
    torch.testing.assert_close(kinetic.acceleration(state, zero), -(x**3) / 2, rtol=1e-14, atol=0)
    assert (kinetic.friction, kinetic.mass) == (0.5, 2.0)
    metric = RiemannianLangevin.of_log_prob(log_prob, lambda x: 1 + x**2, LINE)
    torch.testing.assert_close(metric.drift(x, zero), -(1 + x**2) * x**3 + 2 * x, rtol=1e-14, atol=1e-15)


def test_a_score_that_takes_a_time_is_refused_with_the_way_to_fix_its_level() -> None:
    score = problems.gaussian().score
    makes = [lambda: Langevin(score, LINE), lambda: Kinetic(score, LINE), lambda: SVGD(score, LINE, 2)]
    makes.append(lambda: RiemannianLangevin(score, f64(1.0)[0], LINE))
    for timed in (lambda x, t: -x, lambda x, t, *, label=None: -x):
        with pytest.raises(TypeError, match=r"got function, a function of x and t.*lambda x: score\(x, 0.1\)"):
            Langevin(timed, LINE)
    Langevin(lambda x, t=0.0, **condition: -x, LINE)
    for make in makes:
        with pytest.raises(
            TypeError, match=r"got GaussianMixtureScore, a function of x and t.*lambda x: score\(x, 0.1\)"
        ):
            make()


def test_a_run_of_no_steps_reports_no_acceptance() -> None:
    run = solve(Langevin.of_log_prob(skewed, LINE), f64(0.1)[:, None], [0.0], MALA())
    assert run.stats == {} and run.nfe == 0


# -------------------------------------------------------------------------------------------------------------------------- refusals

MINUS = Langevin(lambda x: -x, LINE)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Langevin(3, LINE), TypeError, "score: got int, expected a callable"),
        (lambda: Langevin(lambda x: x, LINE, 3), TypeError, "log_prob: got int, expected a callable"),
        (lambda: Langevin(lambda x: x, (1,)), TypeError, "domain: got tuple, expected a Domain"),
        (lambda: RiemannianLangevin(None, lambda x: x, LINE), TypeError, "score: got NoneType"),
        (lambda: RiemannianLangevin(lambda x: x, "D", LINE), TypeError, "metric_inverse: got str, expected a tensor"),
        (
            lambda: RiemannianLangevin(lambda x: -x, torch.ones(3, 3), PLANE),
            ValueError,
            r"metric_inverse: got a constant of shape \(3, 3\) for states \[\*batch, 2\], expected a positive number",
        ),
        (
            lambda: RiemannianLangevin(lambda x: -x, f64(2.0, 0.5, 0.0, 1.0).reshape(2, 2), PLANE),
            ValueError,
            "symmetric positive definite",
        ),
        (lambda: RiemannianLangevin(lambda x: -x, -torch.eye(2), PLANE), ValueError, "symmetric positive definite"),
        (lambda: RiemannianLangevin(lambda x: -x, f64(1.0, -1.0), PLANE), ValueError, "a positive diagonal"),
        (
            lambda: solve(
                RiemannianLangevin(lambda x: -x, lambda x: torch.ones(3, 3, 3), PLANE),
                torch.zeros(4, 2),
                [0.0, 0.1],
                EulerMaruyama(),
            ),
            ValueError,
            r"metric_inverse: got \(3, 3, 3\) for states \(4, 2\), expected a shape that broadcasts",
        ),
        (
            lambda: solve(
                RiemannianLangevin(lambda x: x[:1], f64(1.0)[0], LINE), torch.zeros(2, 1), [0.0, 0.1], EulerMaruyama()
            ),
            ValueError,
            r"got \(1, 1\) torch.float32 for a state of shape \(2, 1\)",
        ),
        (
            lambda: Langevin.of_log_prob(lambda x: x.detach().sum(-1), LINE).score(torch.zeros(2, 1)),
            ValueError,
            "x does not enter differentiably",
        ),
        (lambda: MALA().plan(MINUS, steps(1, 2)), TypeError, "without log_prob, expected one with it"),
        (lambda: solve(MINUS, torch.zeros(2, 1), [1.0, 0.0], EulerMaruyama()), ValueError, "runs the other way"),
        (
            lambda: solve(Langevin(lambda x: -x, LINE, lambda x: -x), torch.zeros(2, 1), [0.0, 1.0], MALA()),
            ValueError,
            r"log_prob: got \(2, 1\) for states \(2, 1\), expected one number a sample: \(2,\)",
        ),
        (
            lambda: solve(Langevin(lambda x: -x, LINE, lambda x: 0.0), torch.zeros(2, 1), [0.0, 1.0], MALA()),
            ValueError,
            "log_prob: got float",
        ),
        (
            lambda: solve(RiemannianLangevin(lambda x: -x, mixing, PLANE), torch.zeros(2, 2), [0.0, 0.1], Milstein()),
            TypeError,
            "expected a scalar or a diagonal",
        ),
        (
            lambda: solve(
                RiemannianLangevin(lambda x: -x, lambda x: 1 + x**2, LINE, divergence=lambda x: x[:1]),
                torch.zeros(2, 1),
                [0.0, 0.1],
                EulerMaruyama(),
            ),
            ValueError,
            "expected the same shape and dtype",
        ),
    ],
)
def test_refusals(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_mala_says_what_it_is() -> None:
    solver: Solver = MALA()
    assert repr(solver) == "MALA()" and solver.order is None
    assert MALA.facts()["order"] == "stationary law exact" and MALA.facts()["for"] == "Langevin"
