"""Schrödinger bridges between Gaussians and on grids: closed forms, laws that define them, rates, limits, refusals."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from carom.domains import Ball, Euclidean, Hypercube, Polytope, Torus
from carom.solvers import EulerMaruyama, ReflectedEulerMaruyama, Weighted, WhiteNoise, bridge, sinkhorn, solve
from carom.solvers.normal import root
from carom.validation import propagate_moments

START, END = (0.5, 0.25), (-1.0, 2.0)
# sums and solves of few numbers of order 1 in float64
ROUNDING = 1e-12


def spd(d: int, seed: int) -> Tensor:
    """A covariance with eigenvalues from about 0.05 to 5."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    values = torch.exp(3 * torch.rand(d, generator=generator, dtype=torch.float64) - 2)
    matrix = (basis * values) @ basis.T
    return 0.5 * (matrix + matrix.T)


def made(d: int, seed: int, sigma: float, rate: float, centre: float = 0.3) -> bridge.GaussianBridge:
    generator = torch.Generator().manual_seed(seed + 100)
    means = torch.randn(2, d, generator=generator, dtype=torch.float64)
    return bridge.gaussian(
        (means[0], spd(d, seed)), (means[1], spd(d, seed + 1)), sigma, rate=rate, centre=centre if rate else 0.0
    )


bridges = st.builds(
    made,
    st.integers(1, 4),
    st.integers(0, 50),
    st.sampled_from([0.05, 0.7, 3.0]),
    st.sampled_from([0.0, 0.8, -0.5]),
)


# ----------------------------------------------------------------------------------------------------- closed form


def test_the_reference_values_of_brownian_bridges() -> None:
    """N(.5, .25) → N(−1, 2), to the twelve digits given."""
    b = bridge.gaussian(START, END, 1.0)
    assert float(b.coupling.cross) == pytest.approx(0.366025403784, abs=1e-12)
    assert float(bridge.gaussian(START, END, math.sqrt(0.2)).coupling.cross) == pytest.approx(0.614142842854, abs=1e-12)
    assert b.kl == pytest.approx(1.19335368503, abs=1e-11)
    assert b.coupling.cost() == pytest.approx(3.76794919243, abs=1e-11)
    mean, covariance = b.marginal(torch.tensor([0.25, 0.5, 0.75]))
    assert mean[:, 0].tolist() == [0.125, -0.25, -0.625]
    expected = [0.590384526419, 0.995512701892, 1.46538452642]
    assert covariance[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-11)


def test_the_reference_value_of_an_ornstein_uhlenbeck_bridge() -> None:
    """a = 0.6 and v = 0.64: θ = −ln a, σ² = 2θ."""
    rate = -math.log(0.6)
    b = bridge.gaussian(START, END, math.sqrt(2 * rate), rate=rate)
    assert b.reference.whole == pytest.approx((0.6, 0.64), abs=1e-15)
    assert float(b.coupling.cross) == pytest.approx(0.352355350372, abs=1e-12)


@given(bridges)
def test_the_coupling_is_the_reference_times_functions_of_the_ends(b: bridge.GaussianBridge) -> None:
    """That defines it: the precision matrix of both ends has the reference's off-diagonal block −(a/v) I, and the ends are as given.

    Inverting the joint covariance loses its condition number, at most about (5/0.05)/(1 − κ²) with 1 − κ² ≥ v/as ~ 1e-3."""
    a, v = b.reference.whole
    d = len(b.start.mean)
    joint = b.coupling.joint()
    precision = torch.linalg.inv(joint.covariance)
    torch.testing.assert_close(precision[:d, d:], -a / v * torch.eye(d).double(), rtol=1e-7, atol=1e-7 * a / v)
    torch.testing.assert_close(joint.mean, torch.cat([b.start.mean, b.end.mean]))
    kappa = b.correlations
    assert bool(((kappa >= 0) & (kappa < 1)).all())
    # E|X₁ − cX₀|² is the second moment of a linear function of both
    for c in (1.0, a):
        row = torch.cat([-c * torch.eye(d).double(), torch.eye(d).double()], 1)
        moment = (row @ joint.covariance @ row.T).trace() + (row @ joint.mean).square().sum()
        # both are small differences of numbers of order 10 c²
        assert b.coupling.cost(c) == pytest.approx(float(moment), rel=1e-9, abs=ROUNDING * (1 + c**2))
    # the canonical correlations are those of the joint law
    whitened = torch.linalg.solve(root(b.start.covariance), b.coupling.cross)
    whitened = torch.linalg.solve(root(b.end.covariance), whitened.T)
    torch.testing.assert_close(torch.linalg.svdvals(whitened), kappa, rtol=1e-9, atol=1e-12)


@given(bridges)
def test_the_divergence_is_that_of_two_normal_laws(b: bridge.GaussianBridge) -> None:
    a, v = b.reference.whole
    c, d = b.reference.centre, len(b.start.mean)
    eye = torch.eye(d, dtype=torch.float64)
    cross = a * b.start.covariance
    reference = torch.cat(
        [
            torch.cat([b.start.covariance, cross], 1),
            torch.cat([cross, a * cross + v * eye], 1),
        ]
    )
    mean = torch.cat([b.start.mean, c + a * (b.start.mean - c)])
    laws = [
        torch.distributions.MultivariateNormal(m, s, validate_args=False)
        for m, s in (b.coupling.joint(), (mean, reference))
    ]
    kl = float(torch.distributions.kl_divergence(*laws))
    assert b.kl == pytest.approx(kl, rel=1e-7)


@given(bridges, st.floats(0.0, 1.0))
def test_both_drifts_carry_the_marginals(b: bridge.GaussianBridge, t: float) -> None:
    """m' = u(m) and Σ' = SΣ + ΣSᵀ ± σ²I at every t, the ends included; derivatives by central differences of a smooth function: error
    h² = 1e-8 times third derivatives, which grow with the stiffness σ²/Σ of large σ."""
    h = 1e-4
    t = min(max(t, h), 1 - h)
    now, before, after = (b.marginal(torch.tensor(s, dtype=torch.float64)) for s in (t, t - h, t + h))
    eye = torch.eye(len(now.mean), dtype=torch.float64)
    for drift, sign in ((b.forward, 1.0), (b.backward, -1.0)):
        at = drift(now.mean, t)
        slope = (drift(now.mean + eye, t) - at).T
        turned = slope @ now.covariance
        growth = turned + turned.T + sign * b.reference.sigma**2 * eye
        scale = float(growth.abs().max() + b.reference.sigma**2 + 1)
        torch.testing.assert_close((after.mean - before.mean) / (2 * h), at, rtol=1e-5, atol=1e-6 * scale)
        numeric = (after.covariance - before.covariance) / (2 * h)
        torch.testing.assert_close(numeric, growth, rtol=1e-5, atol=1e-6 * scale)


@given(bridges, st.floats(0.01, 0.99))
def test_the_drifts_differ_by_the_score(b: bridge.GaussianBridge, t: float) -> None:
    """forward − backward = σ²∇ log p_t = −σ²Σ_t⁻¹(x − m_t)."""
    law = b.marginal(t)
    x = law.mean + torch.randn(5, len(law.mean), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score = -torch.linalg.solve(law.covariance, (x - law.mean).T).T
    gap = b.forward(x, t) - b.backward(x, t)
    expected = b.reference.sigma**2 * score
    torch.testing.assert_close(gap, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max() + 1))


@given(bridges, st.floats(0.0, 1.0))
def test_drifts_are_gradients(b: bridge.GaussianBridge, t: float) -> None:
    """−θ(x − c) + σ²∇ log φ and its twin have symmetric slopes, which the marginals do not ask for."""
    eye = torch.eye(len(b.start.mean), dtype=torch.float64)
    for drift in (b.forward, b.backward):
        slope = drift(eye, t) - drift(0 * eye, t)
        torch.testing.assert_close(slope, slope.T, rtol=1e-8, atol=1e-8 * float(slope.abs().max()))


def test_drifts_move_with_the_origin_and_its_centre() -> None:
    """Ends and centre moved by c: the marginals move and the drifts are those of x − c."""
    c, (start, end) = 0.7, ((torch.tensor(m).double(), spd(2, s)) for m, s in (([0.5, -0.3], 1), ([-1.0, 0.2], 2)))
    here = bridge.gaussian(start, end, 0.7, rate=0.8)
    there = bridge.gaussian((start[0] + c, start[1]), (end[0] + c, end[1]), 0.7, rate=0.8, centre=c)
    x = torch.randn(4, 2, dtype=torch.float64)
    for t in (0.0, 0.4, 1.0):
        torch.testing.assert_close(there.forward(x + c, t), here.forward(x, t), rtol=0, atol=10 * ROUNDING)
        torch.testing.assert_close(there.backward(x + c, t), here.backward(x, t), rtol=0, atol=10 * ROUNDING)
        torch.testing.assert_close(there.marginal(t).mean - c, here.marginal(t).mean, rtol=0, atol=ROUNDING)
    assert there.kl == pytest.approx(here.kl, rel=ROUNDING)


def test_a_vanishing_rate_is_brownian_motion() -> None:
    """v = σ²(1 − θ + O(θ²)): at θ = 1e-13 a difference of 1 and e^{−2θ} would have lost all but three digits."""
    b, brown = (bridge.gaussian(START, END, 1.0, rate=rate) for rate in (1e-13, 0.0))
    assert float(b.coupling.cross) == pytest.approx(float(brown.coupling.cross), abs=ROUNDING)
    assert b.kl == pytest.approx(brown.kl, abs=ROUNDING)


@pytest.mark.parametrize("sigma", [1e-8, 1e-4, 1e-2])
def test_the_divergence_keeps_its_digits_as_sigma_vanishes(sigma: float) -> None:
    """From N(0, 1) to itself v = σ², κ = 1 − v/2 + v²/8 − … and KL = ½[ln v − ln(1 − κ²) − 1 + 2(1 − κ)/v] = v/8 + O(v²), to rounding of
    ln v; the cost 2(1 − κ) is of order v, and as a difference of numbers of order one would have no digit of it left."""
    b = bridge.gaussian((0.0, 1.0), (0.0, 1.0), sigma)
    assert b.kl == pytest.approx(sigma**2 / 8, abs=1e-14 + sigma**4)
    # in several dimensions, where the cost is a distance of roots, by commuting matrices
    values = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    law = torch.zeros(3), (turn * values) @ turn.T
    apart = sum(bridge.gaussian((0.0, float(v)), (0.0, float(v)), sigma).kl for v in values)
    # roots of matrices are right to 1e-15, and their distance squared to 1e-30/v
    assert bridge.gaussian(law, law, sigma).kl == pytest.approx(apart, abs=1e-13 + 1e-29 / sigma**2)


@pytest.mark.parametrize("sigma", [1e-8, 1e-4])
def test_as_sigma_vanishes_the_bridge_is_optimal_transport(sigma: float) -> None:
    """E|x0 − x1|² = W₂² + dσ² + O(σ⁴), W₂² = 3.08578643763 in the reference problem; the drift at 0 is the displacement T(x) − x."""
    b = bridge.gaussian(START, END, sigma)
    assert b.coupling.cost() == pytest.approx(3.08578643763, abs=1e-11 + 2 * sigma**2)
    x = torch.linspace(-1, 2, 7, dtype=torch.float64)[:, None]
    moved = -1 + math.sqrt(8) * (x - 0.5)
    torch.testing.assert_close(b.forward(x, 0.0), moved - x, rtol=0, atol=1e-11 + 10 * sigma**2)
    # several dimensions: Bures' formula by another route
    many = made(3, 4, sigma, 0.0)
    s0, s1 = many.start.covariance, many.end.covariance
    half = root(s0)
    bures = float((s0 + s1).trace() - 2 * torch.linalg.eigvalsh(half @ s1 @ half).sqrt().sum())
    distance = bures + float(((many.start.mean - many.end.mean) ** 2).sum())
    assert many.coupling.cost() == pytest.approx(distance + 3 * sigma**2, rel=1e-10)


@pytest.mark.parametrize("sigma", [1e4, 1e8, 1e80])
def test_as_sigma_grows_the_ends_become_independent(sigma: float) -> None:
    """Cov(X0, X1) → Σ0 Σ1/v, whose digits a difference of roots would have lost (v² = 1e16, 1e32 there); corrections are O(v⁻²)."""
    b = made(3, 7, sigma, 0.0)
    expected = b.start.covariance @ b.end.covariance / sigma**2
    torch.testing.assert_close(b.coupling.cross, expected, rtol=1e-10, atol=1e-14 * float(expected.abs().max()))
    # the drift is that of the Brownian bridge's pull towards what the end has left: finite, and right where it begins
    assert bool(b.forward(b.start.mean, 0.0).isfinite().all() and b.backward(b.end.mean, 1.0).isfinite().all())
    torch.testing.assert_close(b.forward(b.start.mean, 0.0), b.end.mean - b.start.mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backward", [False, True])
def test_its_equation_reaches_the_other_end_at_the_order_of_euler(backward: bool) -> None:
    """Exact moments of the rule: errors of the covariance fall like 1/N (weak order 1)."""
    b = made(2, 3, 0.8, 0.4)
    start, end = (b.end, b.start) if backward else (b.start, b.end)
    errors = []
    for n in (100, 200, 400):
        times = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        times = times.flip(0) if backward else times
        _, covariance = propagate_moments(b.equation(backward=backward), EulerMaruyama(), times, *start)
        errors.append(float((covariance - end.covariance).abs().max()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([1.0, 1.0], abs=0.1)
    x = torch.distributions.MultivariateNormal(*start).sample((5,)).float()
    assert solve(b.equation(backward=backward), x, times[:3], EulerMaruyama(), noise=WhiteNoise(0)).x.dtype == x.dtype


def test_each_sample_may_have_a_time_of_its_own() -> None:
    b = made(2, 5, 0.7, 0.8)
    x, t = torch.randn(6, 2), torch.linspace(0, 1, 6)[:, None]
    for drift in (b.forward, b.backward):
        one_by_one = torch.stack([drift(row, float(s)) for row, s in zip(x, t, strict=True)])
        # the same float64 arithmetic but for the order in which LAPACK solves a batch; then rounded to float32
        torch.testing.assert_close(drift(x, t), one_by_one, rtol=1e-6, atol=1e-6)
        # also by a number for each sample, and many times for one state
        assert torch.equal(drift(x, t[:, 0]), drift(x, t))
        assert drift(x[0], t[:, 0]).shape == (6, 2)
        assert drift(x.reshape(3, 2, 2), t.reshape(3, 2, 1)).shape == (3, 2, 2)
        assert drift(x[:0], 0.5).shape == (0, 2)
        with pytest.raises(ValueError, match=r"t: got shape \(4, 1\), expected a number, a shape that broadcasts over"):
            drift(x, torch.zeros(4, 1))
    law = b.marginal(t)
    assert law.mean.shape == (6, 1, 2) and law.covariance.shape == (6, 1, 2, 2)


def test_laws_are_read_without_their_gradients() -> None:
    mean = torch.zeros(2, requires_grad=True)
    b = bridge.gaussian((mean, torch.eye(2)), (mean + 1, torch.eye(2)))
    assert not b.coupling.joint().mean.requires_grad
    # a covariance that is symmetric but for rounding is made so
    rounded = torch.eye(2, dtype=torch.float64) + torch.tensor([[0.0, 1e-16], [0.0, 0.0]])
    assert torch.equal(bridge.gaussian((mean, rounded), (mean, rounded)).start.covariance[0, 1], rounded[0, 1] / 2)
    # a root takes eigenvalues that rounding has put below 0
    torch.testing.assert_close(root(torch.ones(3, 3).double()), torch.full((3, 3), 3**-0.5).double())


# -------------------------------------------------------------------------------------------------------------- IPF


def test_the_reference_values_of_ipf() -> None:
    q0, p1, q1, p2, q2, _, q3 = bridge.ipf(bridge.gaussian(START, END, 1.0), 7)
    assert [float(v) for v in (*q0.start, q0.cross)] == pytest.approx([0.2, 0.28, 0.4], abs=1e-12)
    assert [float(v) for v in p1.end] == pytest.approx([-0.571428571429, 1.9387755102], abs=1e-11)
    assert [float(v) for v in q1.start] == pytest.approx([0.421052631579, 0.252077562327], abs=1e-11)
    assert [float(v) for v in p2.end] == pytest.approx([-0.884615384615, 1.99556213018], abs=1e-11)
    assert [float(v) for v in q2.start] == pytest.approx([0.478873239437, 0.250148780004], abs=1e-11)
    assert [float(v) for v in q3.start] == pytest.approx([0.494339622642, 0.250010679957], abs=1e-11)


def test_the_rates_of_ipf_are_powers_of_the_correlation() -> None:
    b = bridge.gaussian(START, END, 1.0)
    assert float(b.correlations**2) == pytest.approx(0.267949192431, abs=1e-12)
    assert float(b.correlations**4) == pytest.approx(0.0717967697, abs=1e-10)
    iterates = bridge.ipf(b, 17)[0::2]
    mean = [abs(float(q.start.mean) - 0.5) for q in iterates]
    variance = [abs(float(q.start.covariance) - 0.25) for q in iterates]
    # the ratio at iterate n has still to go the variance's own error, of relative size κ⁴ⁿ
    assert mean[8] / mean[7] == pytest.approx(0.267949192431, rel=1e-6)
    assert variance[5] / variance[4] == pytest.approx(0.0717967697, rel=1e-4)


@given(bridges)
def test_each_half_of_ipf_keeps_a_conditional_and_takes_an_end(b: bridge.GaussianBridge) -> None:
    """E[X₀|X₁] of the reference started at ``start`` in q⁰, E[X₁|X₀] of q⁰ in p¹, E[X₀|X₁] of p¹ in q¹; tolerances by condition numbers."""
    a, v = b.reference.whole
    eye, c = torch.eye(len(b.start.mean), dtype=torch.float64), b.reference.centre
    moved = bridge.Normal(c + a * (b.start.mean - c), a**2 * b.start.covariance + v * eye)
    before = bridge.Coupling(b.start, moved, a * b.start.covariance)
    for half, now in enumerate(bridge.ipf(b, 3)):
        # seen from the end that is given: cross is Cov(given, reached)
        (given, reached, cross), (old, old_reached, old_cross) = (
            (q.start, q.end, q.cross) if half % 2 else (q.end, q.start, q.cross.T) for q in (now, before)
        )
        torch.testing.assert_close(given, b.start if half % 2 else b.end)
        gain, kept = (torch.linalg.solve(law.covariance, m).T for law, m in ((given, cross), (old, old_cross)))
        torch.testing.assert_close(gain, kept, rtol=1e-7, atol=1e-8)
        expected = old_reached.mean + kept @ (given.mean - old.mean)
        torch.testing.assert_close(reached.mean, expected, rtol=1e-7, atol=1e-7)
        before = now


@given(bridges.filter(lambda b: float(b.correlations[0]) < 0.8))
def test_ipf_converges_to_the_bridge(b: bridge.GaussianBridge) -> None:
    """In every dimension; 0.8^{2·60} is 2e-12."""
    last = bridge.ipf(b, 121)[-1]
    torch.testing.assert_close(last.cross, b.coupling.cross, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(last.start.covariance, b.start.covariance, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(last.start.mean, b.start.mean, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------------- mean matching


def limit(b: bridge.GaussianBridge, steps: int, halves: int, matching: str = "drift") -> list[float]:
    """Mean and variance of the start at the fixed point of mean matching, by reduced-rank extrapolation of whole chains.

    x₀ + Σγ_i u_i with u_i = x_{i+1} − x_i and γ the least-squares solution of u₀ + Σγ_i (u_{i+1} − u_i) = 0."""
    chains = bridge.mean_matching(b, steps, halves, matching=matching)[40::8]
    rows = [torch.cat([v.flatten() for v in (*chain.marginals()[0], *sum(chain.steps, ()))]) for chain in chains]
    moves = torch.stack(rows).diff(dim=0)
    weights = torch.linalg.lstsq(moves.diff(dim=0).T, -moves[0], rcond=1e-14, driver="gelsd").solution
    return (rows[0] + weights @ moves[:-1])[:2].tolist()


# mean and variance of x0, from the design's formulas
FIXED = {
    10: (0.453709064683, 0.320731449264),
    20: (0.476743235739, 0.28340767099),
    40: (0.488340178755, 0.266200728986),
}


def test_the_reference_values_of_mean_matching() -> None:
    """q⁴ at N = 10, 20 and 40, and the fixed points: of their N modes each makes the extrapolation worse conditioned."""
    b = bridge.gaussian(START, END, 1.0)
    expected = {
        10: (0.44665583212, 0.320144412813),
        20: (0.472380434865, 0.282728803765),
        40: (0.485849927641, 0.265592419969),
    }
    for n, values in expected.items():
        start = bridge.mean_matching(b, n, 9)[8].marginals()[0]
        assert [float(v) for v in start] == pytest.approx(values, abs=1e-11)
    for n, halves, tolerance in ((10, 201, 1e-11), (20, 401, 1e-10), (40, 401, 3e-8)):
        assert limit(b, n, halves) == pytest.approx(FIXED[n], abs=tolerance)


def test_mean_matching_is_biased_by_one_over_n() -> None:
    """Slopes of the variance after the first reversal, 1.02 at N = 20 → 40 and on finer grids 1, and at the fixed points."""
    b = bridge.gaussian(START, END, 1.0)
    first = [float(bridge.mean_matching(b, n, 1)[0].marginals()[0].covariance) - 0.28 for n in (10, 20, 40)]
    assert first == pytest.approx([0.0544203322, 0.0256403656, 0.0124125061], abs=1e-10)
    fine = [float(bridge.mean_matching(b, n, 1)[0].marginals()[0].covariance) - 0.28 for n in (160, 320, 640)]
    slopes = [math.log2(a / b) for a, b in pairwise(fine)]
    assert slopes == pytest.approx([1.0, 1.0], abs=0.01)
    # of the mean at the fixed points 0.993 and 0.996, rising to 1
    means = [0.5 - FIXED[n][0] for n in FIXED]
    slopes = [math.log2(a / b) for a, b in pairwise(means)]
    assert slopes == pytest.approx([1.0, 1.0], abs=0.01)
    # of the variance 1.02 to 1.08 and falling as N grows
    biases = [float(bridge.mean_matching(b, n, 61)[-1].marginals()[0].covariance) - 0.25 for n in (10, 20, 40)]
    slopes = [math.log2(a / b) for a, b in pairwise(biases)]
    assert slopes == pytest.approx([1.08, 1.04], abs=0.01)


def test_matching_means_keeps_the_mean_but_not_the_variance() -> None:
    b = bridge.gaussian(START, END, 1.0)
    # what is left of the iteration falls slowly: .27618 after 80 half iterations, .27602 in the limit
    assert limit(b, 20, 201, "mean") == pytest.approx((0.5, 0.276022378418), abs=1e-10)


@pytest.mark.parametrize("matching", ["drift", "mean"])
def test_each_half_regresses_what_it_says(matching: str) -> None:
    """B(x) = E[X_{k+1} + F(X_k) − F(X_{k+1}) | X_{k+1} = x], or E[X_k | X_{k+1} = x], read off the joint law of (X_k, X_{k+1}), for the
    chain of Euler's steps of the reference and the three that follow, in two dimensions and with a centre."""
    b, steps = made(2, 3, 0.9, 0.8, centre=0.3), 3
    eye = torch.eye(2, dtype=torch.float64)
    keep, noise = 1 - 0.8 / steps, 0.9**2 / steps * eye
    maps = [(keep * eye, torch.full((2,), (1 - keep) * 0.3, dtype=torch.float64))] * steps
    law, out = b.start, bridge.mean_matching(b, steps, 4, matching=matching)
    for half, chain in enumerate(out):
        expected = []
        for matrix, offset in maps:
            joint = torch.cat([eye, matrix]) @ law.covariance @ torch.cat([eye, matrix]).T
            joint[2:, 2:] += noise
            means = torch.cat([law.mean, matrix @ law.mean + offset])
            # the regressed variable as a linear function of (X_k, X_{k+1})
            row = torch.cat([matrix, eye - matrix] if matching == "drift" else [eye, 0 * eye], 1)
            slope = torch.linalg.solve(joint[2:, 2:], joint[2:] @ row.T).T
            expected.append((slope, row @ means - slope @ means[2:]))
            law = bridge.Normal(means[2:], joint[2:, 2:])
        maps, law = expected[::-1], b.start if half % 2 else b.end
        assert chain.backward == (half % 2 == 0)
        for step, (matrix, offset) in zip(chain.steps, maps, strict=True):
            torch.testing.assert_close(step.matrix, matrix, rtol=0, atol=10 * ROUNDING)
            torch.testing.assert_close(step.offset, offset, rtol=0, atol=10 * ROUNDING)
            torch.testing.assert_close(step.noise, noise)
    torch.testing.assert_close(
        bridge.mean_matching(b, steps, 1)[0].steps, bridge.mean_matching(b, steps, 1, matching="drift")[0].steps
    )


def test_one_step_of_an_ornstein_uhlenbeck_chain() -> None:
    """F(x) = 0.95 x, noise 0.1: the regression of X0 has slope .729366602687, the matched map .742898272553."""
    rate, sigma = 0.05, math.sqrt(0.1)
    b = bridge.gaussian(START, (0.0, 1.0), sigma, rate=rate)
    drift, mean = (bridge.mean_matching(b, 1, 1, matching=m)[0].steps[0] for m in ("drift", "mean"))
    assert float(drift.matrix) == pytest.approx(0.742898272553, abs=1e-12)
    assert float(mean.matrix) == pytest.approx(0.729366602687, abs=1e-12)


def test_chains_are_read_in_the_order_of_time() -> None:
    b = made(2, 8, 0.7, 0.3)
    back, forth = bridge.mean_matching(b, 5, 2)
    assert back.backward and not forth.backward
    assert len(back.marginals()) == 6
    torch.testing.assert_close(back.marginals()[-1].mean, b.end.mean)
    torch.testing.assert_close(forth.marginals()[0].covariance, b.start.covariance)


# ------------------------------------------------------------------------------------------------------------- grids


def normal(mean: float, variance: float) -> Any:
    return lambda x: torch.exp(-((x[:, 0] - mean) ** 2) / (2 * variance))


@pytest.fixture(scope="module")
def line() -> Any:
    """The Gaussian problem on a grid: the midpoint rule on smooth densities is exact to rounding, but for the tails that are cut off at 6.3
    standard deviations of the end and 9 of the start."""
    start = Weighted.cells([-4.0], [5.0], [180], normal(*START))
    end = Weighted.cells([-10.0], [8.0], [220], normal(*END))
    return sinkhorn(Euclidean((1,)), start, end, 1.0, tolerance=1e-12)


def test_sinkhorn_finds_the_gaussian_bridge(line: Any) -> None:
    b = bridge.gaussian(START, END, 1.0)
    # the tails
    assert line.cost == pytest.approx(b.coupling.cost(), abs=1e-7)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for t in (0.25, 0.5, 0.75):
        torch.testing.assert_close(line.forward(x, t), b.forward(x, t), rtol=0, atol=1e-5)
        torch.testing.assert_close(line.backward(x, t), b.backward(x, t), rtol=0, atol=1e-5)
        law = torch.distributions.Normal(*(v.reshape(()) for v in (b.marginal(t)[0], b.marginal(t)[1].sqrt())))
        torch.testing.assert_close(line.log_density(x, t), law.log_prob(x[:, 0]), rtol=0, atol=1e-6)


def test_sinkhorn_converges_at_the_rate_of_ipf(line: Any) -> None:
    """The total variation is linear in the mean's error, of rate κ² = .267949."""
    assert line.errors[8] / line.errors[7] == pytest.approx(0.267949192431, rel=1e-6)


def test_the_coupling_has_the_ends(line: Any) -> None:
    coupling = line.log_coupling().exp()
    torch.testing.assert_close(coupling.sum(0), line.end.masses, rtol=0, atol=1e-12)
    torch.testing.assert_close(coupling.sum(1), line.start.masses, rtol=0, atol=1e-12)


def test_errors_are_total_variations_of_the_start() -> None:
    """Of the coupling that is handed out, whose end is exact however early one stops."""
    x, y = (Weighted.of(torch.rand(n, 1, dtype=torch.float64), torch.rand(n, dtype=torch.float64)) for n in (6, 9))
    assert sinkhorn(Hypercube((1,)), x, y, 0.2).errors[-1] <= 1e-9
    for tolerance in (0.5, 1e-2, 1e-4):
        b = sinkhorn(Hypercube((1,)), x, y, 0.2, tolerance=tolerance)
        coupling = b.log_coupling().exp()
        torch.testing.assert_close(coupling.sum(0), y.masses, rtol=0, atol=ROUNDING)
        assert b.errors[-1] == pytest.approx(0.5 * float((coupling.sum(1) - x.masses).abs().sum()), abs=ROUNDING)
        assert b.errors[-1] <= tolerance and all(error > tolerance for error in b.errors[:-1])


def square() -> tuple[Hypercube, Weighted, Weighted]:
    box, counts = Hypercube((2,)), [16, 16]
    start = Weighted.cells([0, 0], [1, 1], counts, lambda x: 1 + 0.9 * torch.cos(math.pi * x[:, 0]))
    end = Weighted.cells([0, 0], [1, 1], counts, lambda x: 1 - 0.8 * torch.cos(math.pi * x[:, 1]))
    return box, start, end


def test_between_walls_the_reference_is_reflected() -> None:
    """From the uniform law to itself the reflected bridge is its reference, without drift; sums over cells are exact for the first 127
    cosines of the kernel."""
    box = Hypercube((1,))
    flat = Weighted.cells([0.0], [1.0], [64], lambda x: torch.ones(len(x)))
    b = sinkhorn(box, flat, flat, 0.6)
    x = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    torch.testing.assert_close(b.forward(x, 0.5), torch.zeros_like(x), rtol=0, atol=1e-12)
    expected = box.heat_kernel(flat.points[:1], 0.6).log_prob(flat.points) - 2 * math.log(64)
    torch.testing.assert_close(b.log_coupling()[0], expected, rtol=0, atol=1e-9)


def test_in_the_square_it_reaches_the_other_end_and_stays_inside() -> None:
    """Means of cosines, whose standard error is at most 1/√n; the grid of times errs by about 1/100."""
    box, start, end = square()
    b = sinkhorn(box, start, end, 0.5, tolerance=1e-10)
    n = 1000
    index = torch.multinomial(start.masses, n, replacement=True, generator=torch.Generator().manual_seed(0))
    x = start.points[index].float()
    run = solve(b.equation(), x, torch.linspace(0, 1, 21)[:-1], ReflectedEulerMaruyama(), noise=WhiteNoise(0))
    assert bool(box.contains(run.x).all())
    # at t = 19/20 compare with the bridge's own density, by the midpoint rule
    points = start.points
    density = b.log_density(points, 19 / 20).exp()
    assert float(density.mean()) == pytest.approx(1.0, abs=1e-6)
    for axis in (0, 1):
        exact = float((density * torch.cos(math.pi * points[:, axis])).mean())
        measured = float(torch.cos(math.pi * run.x[:, axis]).mean())
        assert measured == pytest.approx(exact, abs=3.5 / math.sqrt(n) + 0.01)
    # and the ends are far enough apart for a bridge that does nothing to fail
    assert float((end.masses * torch.cos(math.pi * points[:, 1])).sum()) == pytest.approx(-0.4, abs=1e-3)


def test_drifts_between_walls_do_not_point_through_them() -> None:
    box, start, end = square()
    b = sinkhorn(box, start, end, 0.5)
    y = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    walls = torch.stack([torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]).double(), y], 1)
    for t in (0.1, 0.5, 0.9):
        assert float(b.forward(walls, t)[:, 0].abs().max()) == 0.0
        assert float(b.backward(walls, t)[:, 0].abs().max()) == 0.0
        assert float(b.forward(walls, t)[:, 1].abs().max()) > 0.01


def test_drifts_on_grids_take_a_time_for_each_sample_and_keep_the_dtype() -> None:
    box, start, end = square()
    b = sinkhorn(box, start, end, 0.5)
    x, t = torch.rand(4, 2), torch.tensor([0.1, 0.3, 0.5, 0.9])[:, None]
    each = torch.stack([b.forward(row, float(s)) for row, s in zip(x, t, strict=True)])
    assert b.forward(x, t).dtype == torch.float32
    torch.testing.assert_close(b.forward(x, t), each, rtol=1e-6, atol=1e-6)
    h = 1e-5
    shift = torch.tensor([h, 0.0], dtype=torch.float64)
    difference = (b.log_density(x.double() + shift, 0.4) - b.log_density(x.double() - shift, 0.4)) / (2 * h)
    gap = b.forward(x.double(), 0.4) - b.backward(x.double(), 0.4)
    # a central difference, h² = 1e-10
    torch.testing.assert_close(gap[:, 0] / 0.5**2, difference, rtol=1e-6, atol=1e-6)
    for backward, drift in ((False, b.forward), (True, b.backward)):
        equation, at = b.equation(backward=backward), torch.tensor(0.5)
        assert torch.equal(equation.drift(x, at), drift(x, 0.5))
        assert equation.diffusion == 0.5 and equation.domain is box


def test_times_on_grids_come_in_any_shape_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """And blocks of a few numbers change nothing."""
    box, start, end = square()
    b = sinkhorn(box, start, end, 0.5)
    x, t = torch.rand(4, 2), torch.tensor([0.1, 0.3, 0.5, 0.9])
    whole = b.forward(x, t[:, None]), b.backward(x, t[:, None]), b.log_density(x, t[:, None]), b.log_coupling()
    assert torch.equal(b.forward(x, t), whole[0])
    assert torch.equal(b.forward(x.reshape(2, 2, 2), t.reshape(2, 2, 1)), whole[0].reshape(2, 2, 2))
    torch.testing.assert_close(b.forward(x[0], t)[0], whole[0][0])
    assert b.forward(x[:0], 0.5).shape == (0, 2) and b.log_density(x[0], 0.5).shape == ()
    # the package's name for the module is that of the function
    monkeypatch.setattr(sys.modules["carom.solvers.sinkhorn"], "_BLOCK", 600)
    apart = b.forward(x, t[:, None]), b.backward(x, t[:, None]), b.log_density(x, t[:, None]), b.log_coupling()
    torch.testing.assert_close(apart, whole, rtol=1e-6, atol=1e-6)


def test_events_of_several_dimensions_are_flat_ones_in_another_shape() -> None:
    """A torus whose points are 2 × 1 tables, at distances across the seam: drifts, cost, and the other end's."""
    points = torch.rand(2, 5, 2, dtype=torch.float64)
    masses = torch.rand(2, 5, dtype=torch.float64)
    flat, table = (
        sinkhorn(
            Torus(shape), *(Weighted.of(p.reshape(5, *shape), m) for p, m in zip(points, masses, strict=True)), 0.3
        )
        for shape in ((2,), (2, 1))
    )
    apart = (points[1] - points[0][:, None] + 0.5) % 1 - 0.5
    assert flat.cost == pytest.approx(float((flat.log_coupling().exp() * apart.square().sum(-1)).sum()), rel=ROUNDING)
    assert table.cost == pytest.approx(flat.cost, rel=ROUNDING)
    x, t = torch.rand(3, 2, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.7])
    for name in ("forward", "backward"):
        drift = getattr(table, name)(x.reshape(3, 2, 1), t.reshape(3, 1, 1))
        torch.testing.assert_close(drift.flatten(1), getattr(flat, name)(x, t[:, None]))


def test_one_point_at_either_end_is_a_brownian_bridge() -> None:
    """The only coupling; forward (y − x)/(1 − t), backward (x − x₀)/t, and N((1 − t)x₀ + ty, σ²t(1 − t)) between."""
    x0, y, x, t = torch.zeros(1, 1), torch.full((1, 1), 2.0), torch.randn(4, 1, dtype=torch.float64), 0.3
    b = sinkhorn(Euclidean((1,)), Weighted.of(x0), Weighted.of(y), 0.8)
    assert b.errors == (0.0,) and b.cost == pytest.approx(4.0, rel=ROUNDING)
    torch.testing.assert_close(b.forward(x, t), (2 - x) / 0.7)
    torch.testing.assert_close(b.backward(x, t), x / 0.3)
    law = torch.distributions.Normal(torch.tensor(0.6, dtype=torch.float64), 0.8 * math.sqrt(0.21))
    torch.testing.assert_close(b.log_density(x, t), law.log_prob(x[:, 0]))


def test_masses_are_normalised_and_cells_lie_in_the_middle_along_each_axis() -> None:
    cells = Weighted.cells([0.0, -1.0], [1.0, 3.0], [2, 4], lambda x: x[:, 0])
    assert cells.points[:5].tolist() == [[0.25, -0.5], [0.25, 0.5], [0.25, 1.5], [0.25, 2.5], [0.75, -0.5]]
    torch.testing.assert_close(cells.masses, torch.tensor([0.0625] * 4 + [0.1875] * 4, dtype=torch.float64))
    some = Weighted.of(torch.tensor([[1], [2], [3]]), torch.tensor([3, 0, 1]))
    assert some.points.tolist() == [[1.0], [3.0]] and some.masses.tolist() == [0.75, 0.25]


def test_a_domain_with_curved_walls_will_do() -> None:
    disk = Ball(2)
    generator = torch.Generator().manual_seed(0)
    x, y = (disk.uniform(torch.float64).sample((40,), generator=generator) for _ in range(2))
    b = sinkhorn(disk, Weighted.of(x), Weighted.of(y, torch.arange(40.0)), 0.5, tolerance=1e-8)
    assert len(b.end.masses) == 39  # the point without mass is left out
    coupling = b.log_coupling().exp()
    torch.testing.assert_close(coupling.sum(1), b.start.masses, rtol=0, atol=1e-8)


def test_small_noise_does_not_underflow() -> None:
    """At σ = 0.03 kernels between far points are e^{−2000}, 0 in float64; the coupling is then the monotone one."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(30, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    b = sinkhorn(Euclidean((1,)), Weighted.of(x), Weighted.of(y + 1), 0.03, tolerance=1e-3)
    monotone = float((y.sort(0).values + 1 - x.sort(0).values).square().mean())
    # entropic blur costs about σ² = 9e-4, masses that err by the tolerance as much again
    assert b.cost == pytest.approx(monotone, abs=3e-3)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ((0.0, -1.0), END, "start: got the covariance .*, expected a symmetric positive definite"),
        (([0.0, 0.0], [1.0, 1.0]), END, r"expected \[d\] and \[d, d\]"),
        (([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), END, "symmetric"),
        (([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]), END, "expected the 2 of start"),
        (([0.0, 0.0], [[1.0, 1e-6], [0.0, 1.0]]), END, "symmetric"),
        (([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), END, "positive definite"),
        (([0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]]), END, "positive definite"),
        (([], torch.zeros(0, 0)), END, r"expected \[d\] and \[d, d\]"),
        ((torch.zeros(2, 1), torch.eye(2)), END, r"got a mean of shape \(2, 1\)"),
        ((math.nan, 1.0), END, "finite"),
        ((0.0, math.inf), END, "finite"),
    ],
)
def test_gaussians_that_are_none_are_refused(start: Any, end: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bridge.gaussian(start, end)


def test_other_arguments_of_gaussian_bridges_are_refused() -> None:
    with pytest.raises(TypeError, match=r"start: got 3, expected \(mean, covariance\)"):
        bridge.gaussian(3, END)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma: got 0"):
        bridge.gaussian(START, END, 0.0)
    with pytest.raises(ValueError, match="sigma: got -1"):
        bridge.gaussian(START, END, -1.0)
    with pytest.raises(ValueError, match="rate: got nan"):
        bridge.gaussian(START, END, rate=math.nan)
    with pytest.raises(ValueError, match=r"rate: got -400, expected a finite number in \[-300"):
        bridge.gaussian(START, END, rate=-400.0)
    with pytest.raises(ValueError, match="centre: got inf"):
        bridge.gaussian(START, END, centre=math.inf)
    b = bridge.gaussian(START, END)
    with pytest.raises(ValueError, match="t: got times from 2 to 2"):
        b.marginal(2.0)
    with pytest.raises(ValueError, match=r"t: got times from -0.1 to -0.1"):
        b.forward(torch.zeros(3, 1), -0.1)
    with pytest.raises(ValueError, match="x: got shape"):
        b.forward(torch.zeros(3, 2), 0.5)
    with pytest.raises(ValueError, match="halves: got -1"):
        bridge.ipf(b, -1)
    with pytest.raises(ValueError, match="steps: got 0"):
        bridge.mean_matching(b, 0, 1)
    with pytest.raises(ValueError, match=r"halves: got 1.5"):
        bridge.mean_matching(b, 1, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 'drift' or 'mean'"):
        bridge.mean_matching(b, 1, 1, matching="median")


@pytest.mark.parametrize("backward", [False, True])
def test_each_direction_of_a_bridge_runs_its_own_way_only(backward: bool) -> None:
    x, times = torch.rand(3, 1), [0.1, 0.9] if backward else [0.9, 0.1]
    points = Weighted.of(torch.rand(3, 1))
    for made in (bridge.gaussian(START, END, 1.0), sinkhorn(Hypercube((1,)), points, points, 1.0)):
        with pytest.raises(ValueError, match="runs the other way"):
            solve(made.equation(backward=backward), x, times, EulerMaruyama())


def test_arguments_of_grids_are_refused() -> None:
    x = Weighted.of(torch.rand(3, 1))
    with pytest.raises(ValueError, match="masses: got shape"):
        Weighted.of(torch.rand(3, 1), torch.tensor([1.0, -1.0, 0.0]))
    for masses in (torch.tensor([1.0, math.inf, 0.0]), torch.zeros(3), torch.ones(4), torch.ones(3, 1), torch.ones(0)):
        with pytest.raises(ValueError, match="masses: got shape"):
            Weighted.of(torch.rand(3, 1), masses)
    with pytest.raises(TypeError, match=r"masses: got list, expected a torch.Tensor"):
        Weighted.of(torch.rand(3, 1), [1.0, 1.0, 1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"points: got list, expected a torch.Tensor"):
        Weighted.of([[0.0]])  # type: ignore[arg-type]
    for points in (torch.zeros(0, 1), torch.tensor(1.0), torch.tensor([[math.inf]]), torch.tensor([[math.nan]])):
        with pytest.raises(ValueError, match=r"points: got shape .* and finite numbers"):
            Weighted.of(points)
    with pytest.raises(ValueError, match=r"counts: got 2.5 cells"):
        Weighted.cells([0.0], [1.0], [2.5], lambda x: x[:, 0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="low < high"):
        Weighted.cells([1.0], [0.0], [5], lambda x: x[:, 0])
    with pytest.raises(ValueError, match="one for each axis"):
        Weighted.cells([0.0], [1.0], [5, 5], lambda x: x[:, 0])
    with pytest.raises(TypeError, match="whose heat kernel is known"):
        sinkhorn(Polytope([[1.0], [-1.0]], [1.0, 1.0]), x, x, 1.0)
    with pytest.raises(TypeError, match=r"end: got Tensor, expected points with masses; make them by Weighted\.of"):
        sinkhorn(Hypercube((1,)), x, x.points, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma: got 0, expected a finite number"):
        sinkhorn(Hypercube((1,)), x, x, 0.0)
    with pytest.raises(ValueError, match="sigma: got -1, expected a finite number"):
        sinkhorn(Hypercube((1,)), x, x, -1.0)
    with pytest.raises(ValueError, match=r"sigma: got 0.01, expected at least 0.05, below which .* take a larger one"):
        disk = Weighted.of(torch.zeros(1, 2))
        sinkhorn(Ball(2), disk, disk, 0.01)
    with pytest.raises(ValueError, match="tolerance: got 0"):
        sinkhorn(Hypercube((1,)), x, x, 1.0, tolerance=0.0)
    with pytest.raises(ValueError, match=r"iterations: got 2.5"):
        sinkhorn(Hypercube((1,)), x, x, 1.0, iterations=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"start: got shape \(3, 1\), expected \[\*batch, 2\]"):
        sinkhorn(Euclidean((2,)), x, x, 1.0)
    with pytest.raises(ValueError, match="start: 1 of 1 samples lie outside"):
        sinkhorn(Hypercube((1,)), Weighted.of(torch.full((1, 1), 2.0)), x, 1.0)
    with pytest.raises(ValueError, match="lie outside"):
        sinkhorn(Hypercube((1,)), x, Weighted.of(torch.full((1, 1), 2.0)), 1.0)
    with pytest.raises(RuntimeError, match="after 1 iterations"):
        sinkhorn(Hypercube((1,)), x, Weighted.of(torch.rand(3, 1)), 0.1, iterations=1)
    b = sinkhorn(Hypercube((1,)), x, x, 1.0)
    with pytest.raises(ValueError, match=r"expected \[0, 1\) forwards"):
        b.forward(x.points, 1.0)
    with pytest.raises(ValueError, match=r"expected \(0, 1\] backwards"):
        b.backward(x.points, 0.0)
    with pytest.raises(ValueError, match=r"t: got times from 1.5 to 1.5"):
        b.backward(x.points, 1.5)
    with pytest.raises(ValueError, match="x: got shape"):
        b.forward(torch.rand(3, 2), 0.5)
    with pytest.raises(ValueError, match=r"t: got shape \(4, 1\), expected a number"):
        b.forward(x.points, torch.full((4, 1), 0.5))
