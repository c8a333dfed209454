"""The ball: reflection against bounces one by one, the heat kernel against 40-digit Bessel series, draws against quadrature."""

import math
from functools import cache

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import optimize, special

from carom.domains import bessel
from carom.domains.ball import Ball
from carom.validation import check_domain


def points(ball: Ball, n: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return ball.uniform(dtype).sample((n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ball", [Ball(1), Ball(2, 1.5), Ball(3)], ids=repr)
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


def bessel_pair(twice: int, x: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    """J_ν(x) and J_{ν+1}(x) for ν = twice/2: the power series in whole numbers, with digits for what cancels (at most e^x of the
    first term is reached, and e^{−x/2} of it left). Eight times faster than ``mp.besselj``."""
    bits = mp.mp.prec + 10 + int(2.2 * float(x))
    with mp.workprec(bits + 20):
        y = int(mp.ldexp(x * x / 2, bits))
    term, m = 1 << bits, 0
    first = second = 0
    while term:
        signed = -term if m % 2 else term
        first, second, m = first + signed, second + 2 * signed // (twice + 2 * m + 2), m + 1
        term = (term * y >> bits) // (m * (twice + 2 * m))
    scale = (x / 2) ** (mp.mpf(twice) / 2) / mp.gamma(mp.mpf(twice) / 2 + 1)
    return scale * mp.ldexp(first, -bits), scale * x / 2 * mp.ldexp(second, -bits)


def test_the_reference_is_right() -> None:
    mp.mp.dps = 40
    for twice, x in ((0, "0.3"), (0, "120.5"), (1, "99"), (61, "130"), (240, "125"), (130, "3")):
        for got, nu in zip(bessel_pair(twice, mp.mpf(x)), (mp.mpf(twice) / 2, mp.mpf(twice) / 2 + 1), strict=True):
            assert abs(got - mp.besselj(nu, mp.mpf(x))) <= mp.mpf(10) ** -37 * max(abs(got), mp.mpf(10) ** -30)


@cache
def reference_modes(dim: int, bound: float) -> list[tuple[mp.mpf, int, mp.mpf]]:
    """(k, l, J_ν(k)) with k J_ν' = (d/2 − 1) J_ν, k ≤ bound: sign changes on a fine grid, Brent, and one step of Newton in 40 digits,
    which leaves 10⁻²⁶ of Brent's 10⁻¹³; J_ν at its end by Taylor's formula."""
    modes = []
    a = dim / 2 - 1
    for degree in range(int(bound) + 1):
        nu = degree + a
        grid = np.arange(max(0.05, 0.9 * degree), bound, 0.05)
        value = grid * special.jvp(nu, grid) - a * special.jv(nu, grid)
        for i in np.nonzero((np.sign(value[1:]) * np.sign(value[:-1])) < 0)[0]:
            f = lambda k, nu=nu: k * special.jvp(nu, k) - a * special.jv(nu, k)
            k, order = mp.mpf(optimize.brentq(f, grid[i], grid[i + 1], xtol=1e-13)), mp.mpf(nu)
            here, above = bessel_pair(2 * degree + dim - 2, k)
            slope = order / k * here - above
            bend = -slope / k - (1 - (order / k) ** 2) * here
            step = -(k * slope - a * here) / ((1 - a) * slope + k * bend)
            modes.append((k + step, degree, here + step * slope + step**2 / 2 * bend))
    return modes


@cache
def reference_radial(dim: int, bound: float, r: float) -> list[tuple[mp.mpf, mp.mpf]]:
    """f_{ln}(r) and f_{ln}'(r), normalised."""
    out = []
    a, at = mp.mpf(dim) / 2 - 1, mp.mpf(r)
    for k, degree, wall in reference_modes(dim, bound):
        nu = degree + a
        norm = wall * mp.sqrt((1 - degree * (degree + dim - 2) / k**2) / 2)
        if r == 0:
            # the terms of lowest order of J_ν
            lead = (k / 2) ** nu / mp.gamma(nu + 1) / norm if degree < 2 else mp.mpf(0)
            out.append((lead if degree == 0 else mp.mpf(0), lead if degree == 1 else mp.mpf(0)))
            continue
        if r == 1:
            # f' = 0 there
            out.append((wall / norm, mp.mpf(0)))
            continue
        here, above = bessel_pair(2 * degree + dim - 2, k * at)
        out.append((at**-a * here / norm, at**-a * (degree / at * here - k * above) / norm))
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
    bound = (
        8.8 + 0.1 * dim
    ) / sigma  # leaves out e^{-40}; the more, the more dimensions, of which modes are the more there
    modes, here, there = reference_modes(dim, bound), *(reference_radial(dim, bound, v) for v in (r, r0))
    cosine, sine = mp.cos(angle), mp.sin(angle)
    zonal = reference_zonal(dim, max(2, 1 + max((degree for _, degree, _ in modes), default=0)), cosine)
    total, normal, across = mp.mpf(dim), mp.mpf(0), mp.mpf(0)
    for (k, degree, _), (f, df), (f0, _) in zip(modes, here, there, strict=True):
        weight = mp.exp(-((k * mp.mpf(sigma)) ** 2) / 2) * f0
        total += weight * f * zonal[degree][0]
        normal += weight * df * zonal[degree][0]
        across -= weight * f * zonal[degree][1] * sine
    sphere = 2 * mp.pi ** (mp.mpf(dim) / 2) / mp.gamma(mp.mpf(dim) / 2)
    if total < mp.mpf(10) ** -15:  # what was left out counts
        return -math.inf, math.nan, math.nan
    return float(mp.log(total / sphere)), float(normal / total), float(across / total / r) if r else math.nan


CASES = [(2, 0.12), (2, 0.25), (2, 0.55), (2, 2.0), (3, 0.25), (3, 0.45), (3, 1.0), (4, 0.4), (7, 0.5)]


def check_against_reference(dim: int, sigma: float, r: float, r0: float, angle: float) -> None:
    """The terms add up to (2πσ²)^{-d/2}, and Bessel functions come with some 1e-14 (measured: the sum errs by 3e-14 of its scale), so
    that p = (2πσ²)^{-d/2} e^{−v} has lost a factor e^v of its digits; a derivative in units of σ some more, k σ being up to 9."""
    log_p, normal, across = reference(dim, sigma, r, r0, angle)
    lost = math.exp(min(99.0, -log_p - dim * math.log(sigma * math.sqrt(2 * math.pi))))
    if lost > 5e7:
        return  # here Varadhan's term begins
    x0, x = torch.zeros(2, dim, dtype=torch.float64)
    c, s = math.cos(angle), math.sin(angle)
    x0[0], x[0], x[1] = r0, r * c, r * s
    kernel = Ball(dim).heat_kernel(x0, sigma)
    where = f"r = {r}, r0 = {r0}, angle = {angle:.3g}"
    assert float(kernel.log_prob(x)) == pytest.approx(log_p, abs=5e-14 * max(1.0, lost)), where
    room = 2e-13 * max(1.0, lost) / sigma
    score = kernel.score(x)
    if r:
        assert float(c * score[0] + s * score[1]) == pytest.approx(normal, abs=room), where
        assert float(c * score[1] - s * score[0]) == pytest.approx(across, abs=room), where
    elif angle == 0:
        assert float(score[0]) == pytest.approx(normal, abs=room), where
    assert float(score[2:].abs().sum()) <= room


@pytest.mark.parametrize(("dim", "sigma"), CASES)
def test_kernel_against_40_digits(dim: int, sigma: float) -> None:
    """Centre, walls, antipodes, the same point, near points."""
    mp.mp.dps = 40
    for r0 in (0.0, 0.3, 0.95, 1.0):
        for r in (0.0, 0.3, 0.31, 1.0):
            for angle in (0.0, 1e-6, 0.1, 1.3, math.pi):
                check_against_reference(dim, sigma, r, r0, angle)


@pytest.mark.parametrize(("dim", "sigma"), [(2, 0.06), (3, 0.08), (3, 0.12)])
def test_small_sigma_against_40_digits(dim: int, sigma: float) -> None:
    """The largest tables, between near points: at the wall, and on it, v up to 18; for the smallest σ on the wall alone, to save time."""
    mp.mp.dps = 40
    for r, r0 in ((1.0, 1.0), (0.9, 0.9), (0.9, 1.0))[: 1 if sigma == 0.06 else 3]:
        for angle in (0.0, 1e-6, 0.5 * sigma, 2 * sigma, 5.5 * sigma):
            check_against_reference(dim, sigma, r, r0, angle)


def test_modes_are_complete() -> None:
    """As many as the zeros that scipy tables for d = 2; in three dimensions as many sign changes as roots."""
    k, degree = bessel._roots(2, 90.0)
    assert len(k) == len(set(k.tolist()))
    for each in range(degree.max() + 2):
        zeros = special.jnp_zeros(each, 40)
        zeros = zeros[zeros <= 90]
        assert np.sort(k[degree == each]) == pytest.approx(zeros, rel=4e-15)
    k, degree = bessel._roots(3, 60.0)
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
    x0 = torch.tensor([[0.1, 0.05]], dtype=torch.float64)
    x = x0 + torch.tensor([[0.2, -0.1]], dtype=torch.float64)
    sigma = torch.full((1, 1), 0.1, dtype=torch.float64)
    got = bessel._series(bessel.mode_table(2, 1, torch.device("cpu")), bessel._Pair.of(x, x0, sigma), True)
    square = float(((x - x0) ** 2).sum()) / 0.01
    assert float(got.value) == pytest.approx(-0.5 * square - 2 * math.log(0.1 * math.sqrt(2 * math.pi)), abs=1e-12)
    torch.testing.assert_close(got.slope, (x0 - x) / 0.01, rtol=0, atol=1e-11)


def pairs(dim: int, where: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, x0, σ: all σ less than sigma_min, next to the wall; where the series hands over to Varadhan's term, 18 < v < 26, along
    the wall, across it and through the ball; all of them in the series."""
    uniform = lambda n, low, high: torch.empty(n, dtype=torch.float64).uniform_(
        low, high, generator=torch.Generator().manual_seed(n)
    )
    if where == "series":
        n = 30
        sigma = uniform(n, 0.06, 1.5)
        x0 = 0.95 * points(Ball(dim), n, 14)
        x = Ball(dim).project(x0 + 2 * sigma[:, None] * points(Ball(dim), n, 15)) * 0.98
        return x, x0, sigma
    n = 31
    sigma = uniform(n, 0.01, 0.049) if where == "below" else uniform(n, 0.06, 0.12)
    chord = (
        sigma * (2 * uniform(n + 1, 18.7, 26.3)[:n]).sqrt() if where == "blend" else sigma * uniform(n + 2, 0, 3)[:n]
    )
    # depths below the wall, 0.3 σ and more: there must be room for differences
    r0, r = 1 - 0.3 * sigma, 1 - uniform(n + 3, 0.3, 1.5)[:n] * sigma
    x0, x = torch.zeros(2, n, dim, dtype=torch.float64)
    angle = 2 * (chord / 2).asin()
    x0[:, 0], x[:, 0], x[:, 1] = r0, r * angle.cos(), r * angle.sin()
    return x, x0, sigma


# Step and tolerance in units of σ and 1/σ. A step h, for σ a quarter of it, leaves h⁴/30 of the fifth derivative, which is up to
# some 10³ in the blend, and of log p's rounding, up to 1e-6 there (5e-14 e^v, less as its share falls), that over h: 5e-5. Measured:
# 1e-11, 1e-11 and 8e-5 at most.
@pytest.mark.parametrize(
    ("where", "step", "room"), [("below", 1e-3, 1e-8), ("series", 1e-3, 1e-8), ("blend", 0.02, 1e-3)]
)
@pytest.mark.parametrize("dim", [2, 3])
def test_derivatives_are_those_of_the_values(dim: int, where: str, step: float, room: float) -> None:
    """By differences of log_prob's values: its backward pass is the score by construction, and agrees with it, right or wrong."""
    inputs = pairs(dim, where)
    log_prob = lambda x, x0, sigma: Ball(dim).unchecked_kernel(x0, sigma).log_prob(x)
    x, x0, sigma = (v.clone().requires_grad_() for v in inputs)
    slopes = torch.autograd.grad(log_prob(x, x0, sigma).sum(), (x, x0, sigma))
    torch.testing.assert_close(Ball(dim).heat_kernel(*inputs[1:]).score(inputs[0]), slopes[0], rtol=0, atol=0)
    scale = inputs[2]
    for i, slope in enumerate(slopes):
        for axis in range(dim) if i < 2 else (None,):
            unit = torch.zeros_like(inputs[i])
            unit[..., axis if i < 2 else slice(None)] = 1
            h = step * scale[:, None] if i < 2 else step / 4 * scale
            at = lambda m, i=i, aside=unit * h: log_prob(
                *(v + m * aside if j == i else v for j, v in enumerate(inputs))
            )
            got = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step if i < 2 else 3 * step)
            want = (slope[:, axis] if i < 2 else slope) * scale
            torch.testing.assert_close(got, want, rtol=0, atol=room)


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


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(("sigma", "r0"), [(0.15, 0.9), (0.3, 1.0), (0.5, 0.4), (1.2, 0.7)])
def test_a_draw_inverts_the_distribution_functions(dim: int, sigma: float, r0: float) -> None:
    """The radius holds the share Φ(z₁) of the mass within it, and the angle the share of chi² (d − 1) of the mass at that radius:
    Gauss-Legendre quadrature of log_prob from 0 to the draw."""
    kernel = Ball(dim).heat_kernel(torch.eye(1, dim, dtype=torch.float64)[0] * r0, sigma)
    z = torch.zeros(5, dim, dtype=torch.float64)
    z[:, 0] = torch.tensor([-3.0, -1.0, 0.2, 1.5, 3.5])
    z[:, 1] = torch.tensor([0.5, 3.0, 0.02, 1.0, 2.0])
    x = kernel._sample(z)
    cosine, across = x[:, 0], x[:, 1:].norm(dim=-1)
    r, angle = x.norm(dim=-1), torch.atan2(across, cosine)
    node, weight = (torch.tensor(v) for v in np.polynomial.legendre.leggauss(80))

    def mass(r: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        """∫_0^angle p sin^{d−2} at each radius r."""
        g = (node + 1) * angle[..., None] / 2
        at = torch.zeros(*g.shape, dim, dtype=torch.float64)
        at[..., 0], at[..., 1] = r[..., None] * g.cos(), r[..., None] * g.sin()
        density = kernel.log_prob(at).exp() * g.sin() ** (dim - 2)
        return (density * weight).sum(-1) * angle / 2

    whole = torch.full_like(angle, math.pi)
    share = torch.special.gammainc(torch.full_like(r, (dim - 1) / 2), z[:, 1] ** 2 / 2)
    torch.testing.assert_close(mass(r, angle) / mass(r, whole), share, rtol=0, atol=1e-9)
    radii = (node + 1) * r[:, None] / 2
    inside = (mass(radii, whole[:, None].expand_as(radii)) * radii ** (dim - 1) * weight).sum(-1) * r / 2
    around = bessel.sphere_area(dim - 1)
    torch.testing.assert_close(around * inside, torch.special.ndtr(z[:, 0]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_draws_do_not_depend_on_their_batch(dim: int) -> None:
    """To the bit, in any order, for levels of σ mixed: also on the wall, at the centre and below sigma_min."""
    ball, n = Ball(dim), 40
    sigma = torch.logspace(math.log10(0.04 if dim < 4 else 0.41), 0.2, n, dtype=torch.float64)
    x0 = points(ball, n, 16)
    x0[::5], x0[1] = ball.project(100 * x0[::5]), 0
    z = torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(17))
    whole = ball.heat_kernel(x0, sigma)._sample(z)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(18))
    for size in (1, 7):
        parts = [ball.unchecked_kernel(x0[i], sigma[i])._sample(z[i]) for i in order.split(size)]
        assert torch.equal(torch.cat(parts), whole[order]), size


def test_rows_that_cannot_be_picked_have_the_largest_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator runs: no shape depends on a value, and results are the same but for rounding."""
    ball, n = Ball(2), 40
    x0, sigma = points(ball, n, 19), torch.logspace(-2, 0.3, n, dtype=torch.float64)
    x0[-1] = 0
    x = ball.project(x0 + 2 * sigma[:, None] * points(ball, n, 20))
    z = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(21))
    kernel = ball.heat_kernel(x0, sigma)
    results = []
    for picked in (True, False):
        if not picked:
            monkeypatch.setattr(bessel, "_rows_can_be_picked", lambda wanted: False)
            monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: pytest.fail("a shape depends on values"))
        results.append((kernel.log_prob(x), kernel.score(x) * sigma[:, None], kernel._sample(z)))
    # v is at most 2: of rounding's 5e-14 and 2e-13 there is e^2; draws lose more where their density is low
    for got, want, room in zip(*results, (4e-13, 2e-12, 1e-10), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=room)


@pytest.mark.parametrize("dim", [1, 2])
def test_mixed_precisions_promote(dim: int) -> None:
    ball = Ball(dim)
    x0, x = points(ball, 5, 22), points(ball, 5, 23)
    for a, b in ((x0, x.float()), (x0.float(), x)):
        mixed, double = ball.heat_kernel(a, 0.3), ball.heat_kernel(a.double(), mixed_sigma(a))
        for got, want in zip(mixed.log_prob_and_score(b), double.log_prob_and_score(b.double()), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mixed.log_prob(b), double.log_prob(b.double()), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mixed.score(b), double.score(b.double()), rtol=1e-12, atol=1e-12)


def mixed_sigma(x0: torch.Tensor) -> torch.Tensor:
    """0.3 as a kernel of x0's dtype has it."""
    return torch.tensor(0.3, dtype=x0.dtype).double()


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
    ball, n, sigma = Ball(2), 5_000, 0.05
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(n, 2)
    z = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(13))
    exact, near = ball.heat_kernel(x0, sigma)._sample(z), ball.heat_kernel(x0, 0.9999 * sigma)._sample(z)
    assert abs(float((exact - near).norm(dim=-1).mean())) < 0.7 * sigma  # another path to the same law
    gap = (near[:, 0].mean() - exact[:, 0].mean()) / sigma
    spread = (near[:, 0] - exact[:, 0]).std() / sigma / math.sqrt(n)
    assert abs(float(gap)) < 0.02 + 4 * float(spread)
    assert abs(float((near[:, 1] ** 2).mean() / (exact[:, 1] ** 2).mean()) - 1) < 0.05
