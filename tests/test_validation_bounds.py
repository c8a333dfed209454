"""What a score's errors cost: the reference values of the Gaussian study, its identities, and the study of any score on a mixture."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from carom.domains import Euclidean
from carom.processes import VE, VP, Diffusion, FlowMatching
from carom.scores import GaussianMixtureScore
from carom.validation import problems
from carom.validation.bounds import GaussianStudy, flow_study, mixture_nodes

LINE = Diffusion(Euclidean((1,)), VP())


def test_the_gaussian_study_has_the_reference_values() -> None:
    a = GaussianStudy(LINE)
    assert a.fisher == pytest.approx(0.136572726517, abs=1e-12)
    assert a.prior == pytest.approx(5.39848090509e-6, rel=1e-9)
    assert a.sde_law() == pytest.approx((0.299993521998, 0.500000000233), abs=1e-12)
    assert a.kl_sde == pytest.approx(0.136576181621, abs=1e-12)
    assert a.gap == pytest.approx(1.943377e-6, rel=1e-6)
    assert a.ode_law() == pytest.approx((0.298605940937, 0.50001079667), abs=1e-11)
    assert a.kl_ode == pytest.approx(0.137137679843, abs=1e-12)
    assert a.d_ode == pytest.approx(0.137132281363, abs=1e-12)
    assert a.d_diff == pytest.approx(0.000559554845326, abs=1e-12)
    assert a.fisher_ode == pytest.approx(0.137712691941, abs=1e-12)
    assert math.sqrt(a.fisher * a.fisher_ode) == pytest.approx(0.137141524763, abs=1e-12)
    b = GaussianStudy(LINE, prior_law="model")
    assert b.prior == pytest.approx(8.63762773906e-7, rel=1e-9)
    assert b.kl_sde == pytest.approx(0.13657359028, abs=1e-11) and abs(b.gap) < 1e-25
    assert b.sde_law() == pytest.approx((0.3, 0.5)) and b.ode_law() == pytest.approx((0.3, 0.5))
    c = GaussianStudy(LINE, model=(0.5, 0.25))
    assert c.kl_ode == pytest.approx(5.39848e-6, rel=1e-6) and c.kl_sde == pytest.approx(5.82853e-11, rel=1e-4)


numbers, variances = st.floats(-2, 2), st.floats(0.05, 4)


@given(
    st.tuples(numbers, variances),
    st.tuples(numbers, variances),
    st.sampled_from([None, "model", (0.3, 1.7)]),
    st.sampled_from([VP(), VE(sigma_max=5.0), FlowMatching(), VP(0.1, 3.0)]),
)
@settings(max_examples=40, deadline=None)
def test_identities_hold_for_any_gaussians(data, model, prior, schedule) -> None:
    study = GaussianStudy(Diffusion(Euclidean((1,)), schedule), data, model, prior)
    # quadrature to 1e-11, and differences of the terms
    size = 1e-9 * (1 + study.fisher + study.prior)
    assert study.kl_sde == pytest.approx(study.fisher + study.prior - study.gap, abs=size)
    assert study.d_ode == pytest.approx(study.fisher + study.d_diff, abs=size)
    assert study.d_ode <= math.sqrt(study.fisher * study.fisher_ode) + size
    assert min(study.fisher, study.gap, study.fisher_ode, study.kl_sde + size, study.kl_ode + size) >= 0


def test_the_study_of_any_score_agrees_with_the_gaussian_one() -> None:
    data = problems.gaussian()
    model = GaussianMixtureScore(data.process, [1.0], [0.3], [0.5])
    found = flow_study(data, model, low=1e-3)
    closed = GaussianStudy(data.process)
    # from σ = 1e-3 in place of 0
    assert found.fisher == pytest.approx(closed.fisher, abs=1e-5)
    assert found.d_ode == pytest.approx(closed.d_ode, abs=1e-5)
    assert found.prior == pytest.approx(closed.prior, rel=1e-6)
    assert found.entropy == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25), abs=1e-5)
    assert found.nll == pytest.approx(found.entropy + found.d_ode + found.prior)
    # ∫σ³ (1/(.25 + σ²) − 1/(.5 + σ²))² dσ = ½∫ n/16 /((.25 + n)(.5 + n))² dn, from 0 and to where it has ended
    density = lambda u: math.exp(2 * u) / 32 / ((0.25 + math.exp(u)) * (0.5 + math.exp(u))) ** 2  # by ln n
    wanted = quad(density, -20, math.log(float(LINE.level(1.0).sigma) ** 2))[0]
    assert found.jacobian == pytest.approx(wanted, abs=1e-5)


def test_an_exact_score_of_a_mixture_costs_nothing_but_the_prior() -> None:
    problem = problems.mixture_2d()
    found = flow_study(problem, problem.score, nodes=12, low=0.02)
    assert abs(found.fisher) < 1e-20 and abs(found.jacobian) < 1e-20
    assert found.nll == pytest.approx(found.entropy + found.prior, abs=1e-6)
    x, weight = mixture_nodes(problem, 0.3, 12)
    mean, covariance = problem.moments(0.3)
    torch.testing.assert_close(weight @ x, mean)
    torch.testing.assert_close((weight[:, None] * (x - mean)).mT @ (x - mean), covariance)
