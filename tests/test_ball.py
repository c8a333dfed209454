"""The ball: reflection against bounces one by one, the heat kernel against 40-digit Bessel series, draws against quadrature."""

import math
from functools import cache

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import optimize, special

from carom.domains.ball import Ball
from carom.validation import check_domain


def points(ball: Ball, n: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return ball.uniform(dtype).sample((n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ball", [Ball(1), Ball(1, 0.3), Ball(2, 1.5), Ball(3), Ball(4, 0.7)], ids=repr)
def test_the_laws_hold(ball: Ball) -> None:
    check_domain(ball)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "dim: got 0, expected at least 1"),
        ((2.0,), TypeError, "dim: got 2.0, expected a whole number"),
        ((True,), TypeError, "dim: got True, expected a whole number"),
        ((2, 0.0), ValueError, "radius: got 0, expected a finite number"),
        ((2, math.inf), ValueError, "radius: got inf, expected a finite number"),
        ((2, "one"), TypeError, "radius: got 'one', expected a number"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        Ball(*arguments)


def test_states_outside_are_refused() -> None:
    ball, x = Ball(2), torch.tensor([[0.9, 0.9]])
    with pytest.raises(ValueError, match=r"1 of 1 samples lie outside Ball\(2, radius=1\)"):
        ball.heat_kernel(x, 0.3)
    with pytest.raises(ValueError, match="sigma: got 0, expected finite values above 0"):
        ball.heat_kernel(0.1 * x, 0.0)


# Reflection


def bounce(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One chord after another."""
    left = np.linalg.norm(v)
    u = v / left
    while True:
        b = x @ u
        chord = -b + math.sqrt(max(b * b + 1 - x @ x, 0.0))
        if chord >= left:
            return x + left * u
        x = x + chord * u
        x = x / np.linalg.norm(x)
        u = u - 2 * (u @ x) * x
        left -= chord


@pytest.mark.parametrize("dim", [1, 2, 3, 7])
def test_reflect_is_bounce_after_bounce(dim: int) -> None:
    """Each bounce of the loop rounds by some 1e-15 and paths spread linearly in their number, at most a few hundred here."""
    ball = Ball(dim, 2.0)
    x = points(ball, 200, 1)
    x[:20] = ball.project(100 * x[:20])
    v = torch.randn(200, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for length in (0.3, 2.0, 20.0):
        got = ball.reflect(x, length * v)
        want = [2 * bounce(a / 2, b / 2) for a, b in zip(x.numpy(), (length * v).numpy(), strict=True)]
        torch.testing.assert_close(got, torch.tensor(np.array(want)), rtol=0, atol=1e-10)


def test_one_bounce_keeps_the_speed_and_the_angle() -> None:
    """From the centre of a chord at distance h from the origin: half the chord to the wall, the rest at the same incidence."""
    h, rest = 0.6, 0.5
    x = torch.tensor([0.0, h], dtype=torch.float64)
    end = Ball(2).reflect(x, torch.tensor([math.sqrt(1 - h * h) + rest, 0.0], dtype=torch.float64))
    hit = torch.tensor([math.sqrt(1 - h * h), h], dtype=torch.float64)
    assert float((end - hit).norm()) == pytest.approx(rest, abs=1e-15)
    assert float(-(end - hit) @ hit) / rest == pytest.approx(0.8, abs=1e-15)


def test_paths_along_the_wall_glide() -> None:
    """At grazing incidence a path of length s ends at the angle s; on the wall, heading outwards, it turns at once."""
    x = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    v = torch.tensor([[0.0, 2.0], [1e-12, 2.0], [0.5, 0.0]], dtype=torch.float64).requires_grad_()
    end = Ball(2).reflect(x, v)
    glide = [math.cos(2.0), math.sin(2.0)]
    want = torch.tensor([glide, glide, [0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(end, want, rtol=0, atol=1e-7)
    (slope,) = torch.autograd.grad(end.sum(), v)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_reflect_is_an_isometry_between_bounces_and_runs_under_transforms(dim: int) -> None:
    ball = Ball(dim)
    x, v = points(ball, 60, 3), 2 * points(ball, 60, 4)
    assert torch.autograd.gradcheck(ball.reflect, (x[:5].requires_grad_(), v[:5].clone().requires_grad_()))
    x = x.detach()
    eager = ball.reflect(x, v)
    torch.testing.assert_close(torch.func.vmap(ball.reflect)(x, v), eager, rtol=0, atol=1e-14)
    compiled = torch.compile(ball.reflect, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, v), eager, rtol=0, atol=1e-14)


@pytest.mark.montecarlo
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_reflect_preserves_the_uniform_law(dim: int) -> None:
    """(r/R)^d stays uniform on [0, 1] when x is uniform and v independent of it: Kolmogorov's bound at 1e-6."""
    ball, n = Ball(dim, 3.0), 20_000
    v = torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for length in (1.0, 10.0):
        y = ball.reflect(points(ball, n, 5), length * v)
        share = ((y.norm(dim=-1) / 3) ** dim).sort().values
        gap = (share - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max()
        assert float(gap) < math.sqrt(math.log(2e6) / (2 * n)) + 0.5 / n


def test_damping_turns_off_the_normal_component_alone() -> None:
    ball = Ball(3, 2.0)
    x = torch.tensor([[2.0, 0, 0], [1.9, 0, 0], [0.5, 0, 0], [0, 0, 0]], dtype=torch.float64)
    got = ball.damp(x, torch.ones_like(x), torch.tensor(0.2, dtype=torch.float64))
    want = torch.tensor([[0.0, 1, 1], [0.5, 1, 1], [1, 1, 1], [1, 1, 1]], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    assert torch.equal(ball.damp(x[3], x[0], torch.tensor(100.0)), x[0])
    torch.testing.assert_close(ball.boundary_distance(x), torch.tensor([0.0, 0.1, 1.5, 2.0], dtype=torch.float64))


# The heat kernel


@cache
def reference_modes(dim: int, bound: float) -> list[tuple[mp.mpf, int]]:
    """(k, l) with k J_ν' = (d/2 − 1) J_ν, k ≤ bound: sign changes on a fine grid, Brent, and one step of Newton in 40 digits."""
    modes = []
    a = dim / 2 - 1
    for degree in range(int(bound) + 1):
        nu = degree + a
        grid = np.arange(max(0.05, 0.9 * degree), bound, 0.05)
        value = grid * special.jvp(nu, grid) - a * special.jv(nu, grid)
        for i in np.nonzero((np.sign(value[1:]) * np.sign(value[:-1])) < 0)[0]:
            f = lambda k, nu=nu: k * special.jvp(nu, k) - a * special.jv(nu, k)
            k, order = mp.mpf(optimize.brentq(f, grid[i], grid[i + 1], xtol=1e-13)), mp.mpf(nu)
            bessel = mp.besselj(order, k)
            slope = (mp.besselj(order - 1, k) - mp.besselj(order + 1, k)) / 2
            modes.append((k - (k * slope - a * bessel) / (-a * slope - (k - order**2 / k) * bessel), degree))
    return modes


@cache
def reference_radial(dim: int, bound: float, r: float) -> list[tuple[mp.mpf, mp.mpf]]:
    """f_{ln}(r) and f_{ln}'(r), normalised."""
    out = []
    a, at = mp.mpf(dim) / 2 - 1, mp.mpf(r)
    for k, degree in reference_modes(dim, bound):
        nu = degree + a
        norm = mp.besselj(nu, k) * mp.sqrt((1 - degree * (degree + dim - 2) / k**2) / 2)
        if r == 0:
            # the terms of lowest order of J_ν
            lead = (k / 2) ** nu / mp.gamma(nu + 1) / norm
            out.append((lead if degree == 0 else mp.mpf(0), lead if degree == 1 else mp.mpf(0)))
            continue
        bessel, above = mp.besselj(nu, k * at), mp.besselj(nu + 1, k * at)
        out.append((at**-a * bessel / norm, at**-a * (degree / at * bessel - k * above) / norm))
    return out


def reference_zonal(dim: int, count: int, t: mp.mpf) -> list[tuple[mp.mpf, mp.mpf]]:
    """Z_l(t) and Z_l'(t) from the recurrence of Chebyshev's or of Gegenbauer's polynomials, and its derivative."""
    a = mp.mpf(dim) / 2 - 1
    c, slope = [mp.mpf(1), t if dim == 2 else 2 * a * t], [mp.mpf(0), mp.mpf(1) if dim == 2 else 2 * a]
    for n in range(2, count):
        first, second = (2, 1) if dim == 2 else (2 * (n + a - 1) / n, (n + 2 * a - 2) / n)
        c.append(first * t * c[-1] - second * c[-2])
        slope.append(first * (c[-2] + t * slope[-1]) - second * slope[-2])
    factor = [mp.mpf(1 if degree == 0 else 2) if dim == 2 else (degree + a) / a for degree in range(count)]
    return [(f * v, f * s) for f, v, s in zip(factor, c, slope, strict=True)]


def reference(dim: int, sigma: float, r: float, r0: float, angle: float) -> tuple[float, float, float]:
    """(log p, ∂_r log p, r⁻¹ ∂_γ log p), the last for r > 0."""
    bound = 9.3 / sigma  # leaves out e^{-43}
    modes, here, there = reference_modes(dim, bound), *(reference_radial(dim, bound, v) for v in (r, r0))
    cosine, sine = mp.cos(angle), mp.sin(angle)
    zonal = reference_zonal(dim, max(2, 1 + max((degree for _, degree in modes), default=0)), cosine)
    total, normal, across = mp.mpf(dim), mp.mpf(0), mp.mpf(0)
    for (k, degree), (f, df), (f0, _) in zip(modes, here, there, strict=True):
        weight = mp.exp(-((k * mp.mpf(sigma)) ** 2) / 2) * f0
        total += weight * f * zonal[degree][0]
        normal += weight * df * zonal[degree][0]
        across -= weight * f * zonal[degree][1] * sine
    sphere = 2 * mp.pi ** (mp.mpf(dim) / 2) / mp.gamma(mp.mpf(dim) / 2)
    if total < mp.mpf(10) ** -15:  # what was left out counts
        return -math.inf, math.nan, math.nan
    return float(mp.log(total / sphere)), float(normal / total), float(across / total / r) if r else math.nan


CASES = [(2, 0.1), (2, 0.2), (2, 0.55), (2, 2.0), (3, 0.2), (3, 0.45), (3, 1.0), (4, 0.4), (7, 0.5)]


@pytest.mark.parametrize(("dim", "sigma"), CASES)
def test_kernel_against_40_digits(dim: int, sigma: float) -> None:
    """Centre, walls, antipodes, the same point, near points. The terms add up to (2πσ²)^{-d/2}, and Bessel functions
    come with some 1e-14 (measured: the sum errs by 3e-14 of its scale), so that p = (2πσ²)^{-d/2} e^{−v} has lost a factor e^v of its
    digits; a derivative in units of σ some more, k σ being up to 9."""
    mp.mp.dps = 40
    ball = Ball(dim)
    for r0 in (0.0, 0.3, 0.95, 1.0):
        for r in (0.0, 0.3, 0.31, 1.0):
            for angle in (0.0, 1e-6, 0.1, 1.3, math.pi):
                log_p, normal, across = reference(dim, sigma, r, r0, angle)
                lost = math.exp(min(99.0, -log_p - dim * math.log(sigma * math.sqrt(2 * math.pi))))
                if lost > 5e7:
                    continue  # here Varadhan's term begins
                x0, x = torch.zeros(2, dim, dtype=torch.float64)
                x0[0], x[0], x[1] = r0, r * math.cos(angle), r * math.sin(angle)
                kernel = ball.heat_kernel(x0, sigma)
                where = f"r = {r}, r0 = {r0}, angle = {angle:.3g}"
                assert float(kernel.log_prob(x)) == pytest.approx(log_p, abs=5e-14 * max(1.0, lost)), where
                room = 2e-13 * max(1.0, lost) / sigma
                score = kernel.score(x)
                c, s = math.cos(angle), math.sin(angle)
                if r:
                    assert float(c * score[0] + s * score[1]) == pytest.approx(normal, abs=room), where
                    assert float(c * score[1] - s * score[0]) == pytest.approx(across, abs=room), where
                elif angle == 0:
                    assert float(score[0]) == pytest.approx(normal, abs=room), where
                assert float(score[2:].abs().sum()) <= room


def test_modes_are_complete() -> None:
    """As many as the zeros that scipy tables for d = 2; in three dimensions as many sign changes as roots."""
    from carom.domains.bessel import _roots

    k, degree = _roots(2, 90.0)
    assert len(k) == len(set(k.tolist()))
    for each in range(degree.max() + 2):
        zeros = special.jnp_zeros(each, 40)
        zeros = zeros[zeros <= 90]
        assert np.sort(k[degree == each]) == pytest.approx(zeros, rel=4e-15)
    k, degree = _roots(3, 60.0)
    assert len(k) == len(reference_modes(3, 60.0))


def polar(dim: int, radii: int, angles: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights for functions on the unit ball that depend on r and on the angle to the first axis."""
    (s, ws), (t, wt) = np.polynomial.legendre.leggauss(radii), np.polynomial.legendre.leggauss(angles)
    r, g = (s[:, None] + 1) / 2, (t + 1) * math.pi / 2
    sphere = 2 * math.pi ** ((dim - 1) / 2) / math.gamma((dim - 1) / 2)
    w = ws[:, None] / 2 * wt * math.pi / 2 * r ** (dim - 1) * np.sin(g) ** (dim - 2) * sphere
    x = np.zeros((radii, angles, dim))
    x[..., 0], x[..., 1] = r * np.cos(g), r * np.sin(g)
    return torch.tensor(x.reshape(-1, dim)), torch.tensor(w.ravel())


@pytest.mark.parametrize(("dim", "sigma"), [(2, 0.06), (2, 0.15), (3, 0.06), (3, 0.3), (3, 1.0), (6, 0.3)])
def test_mass_is_one_and_kernels_compose(dim: int, sigma: float) -> None:
    """∫ p = 1, and ∫ p_σ(z|x0) p_σ(x|z) dz = p_{√2σ}(x|x0) for x on the axis of x0.

    Where σ is small Varadhan's term holds the 1e-8 of the mass with v > 18, to a factor."""
    z, weight = polar(dim, round(40 + 2 / sigma), round(40 + 4 / sigma))
    for r0 in (0.0, 0.6, 1.0):
        x0, x = torch.zeros(2, dim, dtype=torch.float64)
        x0[0], x[0] = r0, r0 - 1.5 * sigma if r0 else 0.4 * sigma
        ball = Ball(dim)
        density = ball.heat_kernel(x0, sigma).log_prob(z).exp()
        assert float((density * weight).sum()) == pytest.approx(1, abs=1e-9)
        if r0 != 0.6:
            both = float((density * ball.heat_kernel(x, sigma).log_prob(z).exp() * weight).sum())
            want = float(ball.heat_kernel(x0, sigma * math.sqrt(2)).log_prob(x).exp())
            assert both == pytest.approx(want, rel=1e-9)


def test_the_series_is_gaussian_in_the_interior() -> None:
    """The series itself, not the shortcut: the wall, 8σ away, is felt by e^{−(2·8)²/2}."""
    from carom.domains.bessel import _Pair, _series, mode_table

    x0 = torch.tensor([[0.1, 0.05]], dtype=torch.float64)
    x = x0 + torch.tensor([[0.2, -0.1]], dtype=torch.float64)
    sigma = torch.full((1, 1), 0.1, dtype=torch.float64)
    got = _series(mode_table(2, 1, torch.device("cpu")), _Pair.of(x, x0, sigma), True)
    square = float(((x - x0) ** 2).sum()) / 0.01
    assert float(got.value) == pytest.approx(-0.5 * square - 2 * math.log(0.1 * math.sqrt(2 * math.pi)), abs=1e-12)
    torch.testing.assert_close(got.slope, (x0 - x) / 0.01, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dim", [2, 3])
def test_score_is_the_slope_of_log_prob_in_the_tails(dim: int) -> None:
    """Through the handover to Varadhan's term, by differences: log_prob's derivative is the score by construction."""
    ball, sigma, step = Ball(dim), 0.1, 1e-4
    x0, x = torch.zeros(2, 40, dim, dtype=torch.float64)
    x0[:, 0] = 0.8
    x[:, 0], x[:, 1] = 0.8 - torch.linspace(0.5, 1, 40), 0.1
    aside = torch.randn(40, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = ball.heat_kernel(x0, sigma)
    slope = (kernel.log_prob(x + step * aside) - kernel.log_prob(x - step * aside)) / (2 * step)
    # at the end of the series p has four digits, and a difference over 1e-3 σ one
    torch.testing.assert_close(slope, (kernel.score(x) * aside).sum(-1), rtol=2e-3, atol=0.02 / sigma)


@pytest.mark.parametrize("dim", [2, 3])
def test_log_prob_differentiates_twice_and_under_transforms(dim: int) -> None:
    ball = Ball(dim)
    x0, x = 0.95 * points(ball, 3, 7), 0.95 * points(ball, 3, 8)
    sigma = torch.tensor([0.5, 0.9, 2.0], dtype=torch.float64)
    log_prob = lambda x, x0, sigma: ball.unchecked_kernel(x0, sigma).log_prob(x)
    inputs = [v.clone().requires_grad_() for v in (x, x0, sigma)]
    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)


def test_kernel_under_vmap() -> None:
    """There the largest table serves every σ: another rounding."""
    ball = Ball(2)
    x0, x, sigma = points(ball, 3, 7), points(ball, 3, 8), torch.tensor([0.3, 0.9, 0.02], dtype=torch.float64)
    score = lambda x, x0, sigma: ball.unchecked_kernel(x0, sigma).score(x)
    log_prob = lambda x, x0, sigma: ball.unchecked_kernel(x0, sigma).log_prob(x)
    eager = score(x, x0, sigma)
    torch.testing.assert_close(torch.func.vmap(score)(x, x0, sigma), eager, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(log_prob))(x, x0, sigma), eager, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [2, 12])
def test_everything_is_finite(dim: int, dtype: torch.dtype) -> None:
    """Any pair of points, any σ: log p, score, draws, and the derivatives in x, x0 and σ."""
    ball = Ball(dim)
    inside = points(ball, 3, 9, dtype)
    wall = ball.project(100 * inside)
    spots = torch.cat(
        [inside, wall, -wall[:1], 0 * wall[:1], 1e-12 * wall[:1], 1e-30 * wall[:1], (1 - 1e-6) * wall[:1]]
    )
    n = len(spots)
    x, x0 = spots.repeat(n, 1).requires_grad_(), spots.repeat_interleave(n, 0).requires_grad_()
    for sigma in (1e-4, 1e-2, 0.0499, 0.11, 0.2, 0.5, 1.0, 30.0, 1e3):
        level = torch.full((n * n,), sigma, dtype=dtype, requires_grad=True)
        if 0.05 <= sigma < 0.2 and dim > 2:
            continue  # large tables to make; the smaller ones are of the same kind
        kernel = ball.heat_kernel(x0, level)
        log_p = kernel.log_prob(x)
        draws = kernel.sample()
        for value in (log_p, kernel.score(x), draws, *torch.autograd.grad(log_p.sum(), (x, x0, level))):
            assert torch.isfinite(value).all(), sigma
        assert ball.contains(draws).all()


def test_single_precision_is_double_precision_rounded() -> None:
    ball = Ball(3, 0.7)
    x0, x = points(ball, 50, 10, torch.float32), points(ball, 50, 11, torch.float32)
    single, double = ball.heat_kernel(x0, 0.2), ball.heat_kernel(x0.double(), torch.tensor(0.2).double())
    torch.testing.assert_close(single.log_prob(x), double.log_prob(x.double()).float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(single.score(x), double.score(x.double()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.montecarlo
@pytest.mark.parametrize(("dim", "sigma", "r0"), [(2, 0.12, 0.9), (2, 0.5, 1.0), (3, 0.3, 0.7), (5, 0.5, 0.0)])
def test_draws_follow_the_kernel(dim: int, sigma: float, r0: float) -> None:
    """The distribution of the coordinate along x0 and of the radius, against quadrature of the density at 60 places: the bound of
    Kolmogorov's statistic at 1e-6. Quadrature of a step errs by the spacing of its nodes: cells of the polar grid, at most 0.004."""
    n = 20_000
    x0 = torch.zeros(n, dim, dtype=torch.float64)
    x0[:, 0] = r0
    draws = Ball(dim).heat_kernel(x0, sigma).sample(generator=torch.Generator().manual_seed(12))
    z, weight = polar(dim, 120, 120)
    density = Ball(dim).heat_kernel(x0[0], sigma).log_prob(z).exp() * weight
    bound = math.sqrt(math.log(2e6) / (2 * n)) + 0.01
    for of in (lambda x: x[:, 0], lambda x: x.norm(dim=-1), lambda x: x[:, 1].abs()):
        if of(z).equal(z[:, 1]) and dim > 2:
            continue  # the nodes stand for all directions across, of which this is one
        for place in of(draws).quantile(torch.linspace(0.02, 0.98, 25, dtype=torch.float64)):
            want = density[of(z) <= place].sum()
            assert abs(float((of(draws) <= place).double().mean() - want)) < bound
    # moments are smooth, and quadrature exact for them
    for of in (lambda x: x[:, 0], lambda x: (x**2).sum(-1), lambda x: x[:, 0] ** 2):
        error = 5 * float(of(draws).std()) / math.sqrt(n)
        assert float(of(draws).mean()) == pytest.approx(float((of(z) * density).sum()), abs=error)


@pytest.mark.montecarlo
def test_draws_below_sigma_min_err_by_little() -> None:
    """At σ = 0.05, where both kinds of draw are at hand: paired by their normals, from a start on the wall."""
    ball, n, sigma = Ball(2), 10_000, 0.05
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(n, 2)
    z = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(13))
    exact, near = ball.heat_kernel(x0, sigma)._sample(z), ball.heat_kernel(x0, 0.9999 * sigma)._sample(z)
    assert abs(float((exact - near).norm(dim=-1).mean())) < 0.7 * sigma  # another path to the same law
    gap = (near[:, 0].mean() - exact[:, 0].mean()) / sigma
    spread = (near[:, 0] - exact[:, 0]).std() / sigma / math.sqrt(n)
    assert abs(float(gap)) < 0.02 + 4 * float(spread)
    assert abs(float((near[:, 1] ** 2).mean() / (exact[:, 1] ** 2).mean()) - 1) < 0.05
