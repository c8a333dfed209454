"""The instruments themselves: problems against themselves, distances against closed forms and scipy, reports, pictures."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from matplotlib import image

from carom.domains import Domain, Hypercube, Polytope, Simplex, Torus
from carom.processes import EDM, VE, VP, CosineVP, Diffusion, FlowMatching, SubVP
from carom.solvers import Euler, Heun
from carom.validation import (
    LawError,
    check_domain,
    check_solver,
    convergence_order,
    domain_picture,
    energy_distance,
    frechet_distance,
    pictures,
    problems,
    report,
    sliced_wasserstein,
)

PROBLEMS = [
    problems.gaussian(),
    problems.gaussian(EDM()),
    problems.gaussian_2d(SubVP()),
    problems.mixture(),
    problems.mixture(FlowMatching()),
    problems.mixture(CosineVP()),
    problems.cosine(),
    problems.cosine(-0.8),
    problems.cosine(0.5, dim=3),
]
NAMES = [f"{type(p).__name__}-{p.process}" for p in PROBLEMS]


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------ problems


@pytest.mark.parametrize("problem", PROBLEMS, ids=NAMES)
def test_score_is_the_gradient_of_log_prob(problem: problems.Problem) -> None:
    for t in (0.1, 0.5, 0.9):
        x = problem.points(t).requires_grad_()
        (slope,) = torch.autograd.grad(problem.log_prob(x, t).sum(), x)
        # two formulas of condition 1; 1e-11 is a few hundred roundings
        torch.testing.assert_close(problem.score(x.detach(), t), slope, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("problem", PROBLEMS, ids=NAMES)
def test_time_broadcasts_as_scores_promise(problem: problems.Problem) -> None:
    x = problem.points(0.5)
    want = problem.score(x, 0.5)
    for t in (torch.tensor(0.5, dtype=torch.float64), torch.full((len(x), 1), 0.5, dtype=torch.float64)):
        assert torch.equal(problem.score(x, t), want)
    assert problem.score(x.float(), 0.5).dtype == torch.float32
    rows = problem.score.rows(torch.tensor([1, 3]))  # type: ignore[attr-defined]
    assert torch.equal(rows(x[[1, 3]], 0.5), want[[1, 3]])


@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if math.prod(p.process.domain.event_shape) == 1], ids=lambda p: str(p.process)
)
def test_moments_and_mass_by_quadrature(problem: problems.Problem) -> None:
    for t in (0.05, 0.6):
        mean, covariance = problem.moments(t)
        spread = 12 * float(covariance.sqrt())
        low, high = (0.0, 1.0) if problem.process.domain.bounded else (float(mean) - spread, float(mean) + spread)
        node, weight = np.polynomial.legendre.leggauss(400)
        x = torch.tensor(low + (high - low) * 0.5 * (1 + node))
        p = problem.log_prob(x[:, None], t).exp() * torch.tensor(0.5 * (high - low) * weight)
        got = [float((p * x**k).sum()) for k in (0, 1, 2)]
        want = [1.0, float(mean), float(covariance + mean**2)]
        assert got == pytest.approx(want, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("problem", PROBLEMS, ids=NAMES)
def test_flows_solve_their_equation(problem: problems.Problem) -> None:
    """d/ds of the exact map is the field a·x + b·score, by central differences; and maps compose and invert."""
    schedule = problem.process.schedule
    first, middle, last = schedule.time(f64(0.9, 0.4, 0.15)).tolist()
    x, flow = problem.points(first), problem.process.flow(problem.score)
    there = problem.flow(x, first, last)
    torch.testing.assert_close(
        problem.flow(problem.flow(x, first, middle), middle, last), there, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(problem.flow(there, last, first), x, rtol=1e-9, atol=1e-9)
    h = 1e-5 * middle
    slope = (problem.flow(x, first, middle + h) - problem.flow(x, first, middle - h)) / (2 * h)
    a, b, _ = flow.coefficients(middle)
    at = problem.flow(x, first, middle)
    want = a * at + b * problem.score(at, middle)
    # truncation h² ~ 1e-10·(scale of the third derivative), rounding 1e-15/h
    torch.testing.assert_close(slope, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_cosine_values() -> None:
    """formulas.md §20."""
    problem = problems.cosine()
    mean, covariance = problem.moments(0.0)
    assert (float(mean), float(covariance)) == pytest.approx((0.398678816358, 0.0730673510786), rel=1e-11)
    assert problem.entropy() == pytest.approx(-0.0646381320205, rel=1e-11)
    assert problem.cdf(f64(0.1, 0.5), 0.0).tolist() == pytest.approx([0.149181582154, 0.659154943092], rel=1e-11)
    log_p = problem.log_prob(f64(0.1, 0.9)[:, None], 0.0)
    assert log_p.tolist() == pytest.approx([0.389016066792, -0.645363728951], rel=1e-11)
    assert problems.cosine(0.5, dim=3).entropy() == pytest.approx(3 * problem.entropy(), rel=1e-14)
    assert torch.equal(problem.score(f64(0.0, 1.0)[:, None], 0.3), -torch.zeros(2, 1, dtype=torch.float64))


def test_gaussian_and_mixture_values() -> None:
    """formulas.md §0, §12, §15, §17."""
    m1 = problems.mixture(VP())
    mean, covariance = m1.moments(0.0)
    assert (float(mean), float(covariance)) == pytest.approx((0.26, 0.7554), rel=1e-14)
    integrand = lambda x: -math.exp(v := float(m1.log_prob(f64(x), 0.0))) * v
    entropy = scipy.integrate.quad(integrand, -4, 4, points=[-1, 0, 0.8], epsabs=1e-12)[0]
    assert entropy == pytest.approx(0.703722707337, abs=1e-10)
    assert float(m1.score(f64(0.4), 0.3)) == pytest.approx(-0.124759924703, rel=1e-10)
    # DDIM's exact flow of G1 (§3): x0 = m + √(s2/(ab s2 + 1 − ab)) (x − √ab m)
    g1, x, ab = problems.gaussian(VP()), 1.3, float(VP().scale(f64(0.7))) ** 2
    want = 0.5 + math.sqrt(0.25 / (ab * 0.25 + 1 - ab)) * (x - math.sqrt(ab) * 0.5)
    assert float(g1.flow(f64(x), 0.7, 0.0)) == pytest.approx(want, rel=1e-13)
    # EDM from 104 = 80·1.3 (§15)
    assert float(problems.gaussian(EDM()).flow(f64(104.0), 1.0, 0.0)) == pytest.approx(1.14686236609, rel=1e-11)


def test_problems_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"amplitude: got 1.5"):
        problems.cosine(1.5)
    with pytest.raises(TypeError, match="expected the unit cube"):
        problems.CosineProblem(Diffusion(Hypercube((1,), -1.0, 1.0), VE()))


# -------------------------------------------------------------------------------------------------------------- orders


def test_slopes_of_known_errors() -> None:
    steps = (10, 20, 40, 50)
    assert convergence_order(lambda n: 3.0 / n**2, steps).tolist() == pytest.approx([2.0] * 3, abs=1e-13)
    run = lambda n: torch.tensor([1.0, 2.0], dtype=torch.float64) + 5.0 / n**3
    assert convergence_order(run, steps, torch.tensor([1.0, 2.0])).tolist() == pytest.approx([3.0] * 3, abs=1e-9)
    # against itself: e_k = c (n_k^-3 − n_{k+1}^-3) has the same slope while the ratio of steps stays
    assert convergence_order(run, (8, 16, 32, 64)).tolist() == pytest.approx([3.0, 3.0], abs=1e-9)


def test_slopes_stop_at_rounding_and_at_infinity() -> None:
    falling = {8: 1e-9, 16: 1e-11, 32: 1e-13, 64: 1e-15}
    assert len(convergence_order(lambda n: falling[n], tuple(falling))) == 1  # 100 √32 ε = 1.3e-13
    assert len(convergence_order(lambda n: 1e-20, (1, 2, 4))) == 0
    slopes = convergence_order(lambda n: {1: 1.0, 2: 0.5, 4: math.inf, 8: 1.0}[n], (1, 2, 4, 8))
    assert slopes[0] == 1 and slopes[1].isnan() and len(slopes) == 2
    with pytest.raises(ValueError, match="increasing numbers of steps"):
        convergence_order(lambda n: 1.0, (4, 2))


# ----------------------------------------------------------------------------------------------------------- distances


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return shift + scale * torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.montecarlo
@pytest.mark.parametrize(("n", "m", "d"), [(300, 400, 1), (500, 500, 2), (400, 300, 64)])
def test_equal_laws_are_apart_by_noise_only(n: int, m: int, d: int) -> None:
    """20 pairs of samples of one law: all distances within 5 of their standard errors of 0, and most within 2.

    Five, not three: a jackknife of 20 groups knows its error to 16 %, and of 20 pairs one lies 2.6σ apart by chance.
    """
    for distance, few in ((sliced_wasserstein, {"projections": 32}), (energy_distance, {})):
        results = [distance(normal(n, d, 2 * k), normal(m, d, 2 * k + 1), **few) for k in range(20)]
        scores = np.array([r.value / r.standard_error for r in results])
        assert np.abs(scores).max() < 5 and (np.abs(scores) < 2).mean() > 0.7, scores


@pytest.mark.montecarlo
def test_distances_of_shifted_normals() -> None:
    """N(0, I) and N(μ, I): sliced W₂ = |μ|/√d, Fréchet |μ|², within 4 standard errors; and the errors are not idle."""
    x, y = normal(2000, 16, 0), normal(1500, 16, 1, shift=0.5)
    sliced, frechet = sliced_wasserstein(x, y, projections=64), frechet_distance(x, y)
    assert abs(sliced.value - 0.5) < 4 * sliced.standard_error < 0.3
    assert abs(frechet.value - 4.0) < 4 * frechet.standard_error < 2.0
    # one dimension: 2E|X − Y| − E|X − X'| − E|Y − Y'| with E|N(δ, 2)| in closed form
    far = lambda delta: 2 / math.sqrt(math.pi) * math.exp(-(delta**2) / 4) + delta * math.erf(delta / 2)
    energy = energy_distance(x[:, 0], y[:, 0])
    assert abs(energy.value - (2 * far(0.5) - 2 * far(0.0))) < 4 * energy.standard_error < 0.2


def test_distances_are_those_of_scipy_in_one_dimension() -> None:
    x, y = normal(41, 1, 0)[:, 0], normal(30, 1, 1, 0.3, 1.4)[:, 0]
    # scipy's is the root of the biased value: V = U with the diagonal counted in
    a, b = x.numpy(), y.numpy()
    mean = lambda u, v: np.abs(u[:, None] - v[None, :]).mean()
    unbiased = 2 * mean(a, b) - mean(a, a) * 41 / 40 - mean(b, b) * 30 / 29
    assert energy_distance(x, y).value == pytest.approx(unbiased, rel=1e-12)
    assert scipy.stats.energy_distance(a, b) ** 2 == pytest.approx(2 * mean(a, b) - mean(a, a) - mean(b, b), rel=1e-12)
    # W₂ of unequal sizes by brute force: repeat each sample to the common size
    big_x, big_y = np.sort(np.repeat(a, 30)), np.sort(np.repeat(b, 41))
    assert sliced_wasserstein(x, y).value == pytest.approx(math.sqrt(((big_x - big_y) ** 2).mean()), rel=1e-12)


def test_frechet_of_gaussian_samples_is_that_of_their_moments() -> None:
    x, y = normal(200, 3, 0), normal(300, 3, 1, 0.2, 1.5)
    cx, cy = np.cov(x.numpy().T), np.cov(y.numpy().T)
    cross = np.sqrt(np.linalg.eigvals(cx @ cy).real).sum()
    want = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(cx) + np.trace(cy) - 2 * cross
    assert frechet_distance(x, y).value == pytest.approx(want, rel=1e-9)
    assert frechet_distance(x, y, lambda v: v[:, :1]).value == pytest.approx(
        frechet_distance(x[:, :1], y[:, :1]).value, rel=1e-12
    )


def test_distances_flatten_events_follow_their_seed_and_refuse_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(60, 12, 0), normal(50, 12, 1)
    shaped = [v.reshape(-1, 3, 2, 2).numpy() for v in (x, y)]
    assert sliced_wasserstein(x, y) == sliced_wasserstein(*shaped)
    whole = energy_distance(x, y)
    assert energy_distance(*shaped) == whole
    monkeypatch.setattr("carom.validation.distances._BLOCK", 500)  # many small blocks
    assert energy_distance(x, y) == pytest.approx(whole, rel=1e-12)
    with pytest.raises(ValueError, match="leave out samples that failed"):
        energy_distance(x, y * math.nan)
    with pytest.raises(ValueError, match="the same event shape"):
        energy_distance(x, y[:, :3])
    with pytest.raises(ValueError, match="got 3 samples, expected at least 4"):
        sliced_wasserstein(x[:3], y)
    with pytest.raises(TypeError, match="expected floats"):
        sliced_wasserstein(torch.ones(30, 2, dtype=torch.int64), y)


# ------------------------------------------------------------------------------------------------------ laws, as objects


def test_reports_and_errors_say_what_was_got_and_expected() -> None:
    report = check_solver(Heun(), order=3, raises=False)
    assert not report and not report.ok and [law.name for law in report.failures] == ["reaches its order"]
    assert "FAIL reaches its order" in str(report) and str(report).startswith("Heun()")
    with pytest.raises(LawError) as caught:
        check_solver(Heun(), order=3)
    assert isinstance(caught.value, AssertionError) and caught.value.law == "reaches its order"
    assert "expected the last two in [2.9, 3.4] for order 3" in str(caught.value)
    good = check_solver(Euler())
    assert good and "slopes" in str(good)


def test_a_law_that_raises_is_a_failure_not_a_crash() -> None:
    class Unfinished(Hypercube):
        def reflect(self, x: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("later")

    report = check_domain(Unfinished((1,)), raises=False)
    assert any("got NotImplementedError: later" in law.detail for law in report.failures)
    with pytest.raises(LawError, match="NotImplementedError"):
        check_domain(Unfinished((1,)))


# ------------------------------------------------------------------------------------------------------------- pictures


def test_pictures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    x = torch.rand(10, 1, 8, 8)
    x[3] = math.nan
    first = pictures.image_grid(x, tmp_path / "new" / "grid.png", columns=5, title="digits")
    strip = pictures.trajectory_strip(
        torch.rand(7, 3, 3, 6, 6), torch.linspace(1, 0, 7), tmp_path / "strip.png", rows=2, columns=4
    )
    plot = pictures.order_plot((8, 16), {"Heun": (1e-2, 2.5e-3)}, tmp_path / "order.png", title="orders")
    lines = pictures.line_plot([0.0, 1.0], {"loss": torch.tensor([1.0, 0.5])}, tmp_path / "loss.png", xlabel="step")
    for path in (first, strip, plot, lines):
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 50
    with Image.open(first) as image:  # a sample that is NaN is shown in red
        pixels = np.asarray(image.convert("RGB")).astype(int)
        assert ((pixels[..., 0] > 180) & (pixels[..., 1] < 60)).any()
    with pytest.raises(ValueError, match=r"expected at least one image \[n, C, H, W\]"):
        pictures.image_grid(torch.rand(2, 5, 8, 8), tmp_path / "no.png")


def test_the_package_imports_neither_hypothesis_nor_matplotlib() -> None:
    code = "import sys, carom.validation; sys.exit(bool({'hypothesis', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_library_passes_its_own_laws() -> None:
    reports = report()
    assert len(reports) > 15 and all(r.ok for r in reports), "\n".join(str(r) for r in reports if not r.ok)


@pytest.mark.parametrize(
    "domain",
    [Simplex(3), Hypercube((2,), 0.0, [1.0, math.inf]), Polytope([[1, 0], [0, 1], [-1, -1]], [1, 1, 1]), Torus((1, 2))],
    ids=repr,
)
def test_a_domain_can_be_drawn(domain: Domain, tmp_path: Path) -> None:
    """With a kernel and without, bounded and open, with walls and without: six panels that differ, and a start that is inside."""
    path = domain_picture(domain, tmp_path / "domain.png", x0=None)
    picture = image.imread(path)[..., :3]
    panels = np.array_split(picture, 6, axis=1)
    assert picture.shape[0] > 300 and all(part.std() > 0.05 for part in panels)
    assert domain_picture(domain, tmp_path / "other.png", sigmas=[0.1, 0.2, 0.3, 0.4]).exists()


def test_only_domains_of_two_coordinates_are_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"domain_picture: got events of shape \(3,\), expected two coordinates"):
        domain_picture(Hypercube((3,)), tmp_path / "domain.png")
