"""Conditional generation from end to end: what is sampled has the law of x0 given what is known, within its standard errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, VP, Diffusion, Schedule
from carom.scores import CovarianceGuidance, Dense, EmpiricalScore, GaussianMixtureScore, Mask, PiGDM
from carom.solvers import (
    KUTTA3,
    SOLVERS,
    AnalyticDPM,
    AnnealedLangevin,
    DPMSolverPP,
    LepingleEulerMaruyama,
    PredictorCorrector,
    RungeKutta,
    Solver,
    inpaint,
    karras,
    sample,
)

MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.2, -0.2], [0.1, -0.2, 0.5]], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64)


def conditional(operator: Tensor, y: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x0 given y, by the formulas for Gaussians."""
    gram = operator @ COVARIANCE @ operator.T + noise**2 * torch.eye(len(operator), dtype=torch.float64)
    gain = COVARIANCE @ operator.T @ torch.linalg.inv(gram)
    return MEAN + gain @ (y - operator @ MEAN), COVARIANCE - gain @ operator @ COVARIANCE


def deviations(x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[float, float]:
    """The largest errors of mean and covariance in standard errors of n Gaussian draws: √(C_ii/n), √((C_ii C_jj + C_ij²)/n)."""
    n, own = len(x), covariance.diagonal()
    moved = (x.mean(0) - mean).abs() / (own / n).sqrt()
    spread = (x.T.cov() - covariance).abs() / ((own[:, None] * own + covariance**2) / n).sqrt()
    return float(moved.max()), float(spread.max())


@pytest.mark.parametrize("stochastic", [True, False], ids=["reverse SDE", "flow"])
@pytest.mark.parametrize("schedule", [VP(), VE()], ids=repr)
def test_inpainting_by_the_covariance_has_the_conditional_law(schedule: Schedule, stochastic: bool) -> None:
    """One of three coordinates known without noise: mean and covariance of the others within 3 standard errors of the closed form, the
    known one exact. From the exact law at the grid's start, 120 steps of second order are off by a sixth of a standard error."""
    score, n = GaussianMixtureScore(Diffusion(Euclidean((3,)), schedule), [1.0], MEAN[None], COVARIANCE[None]), 4000
    known, times = torch.tensor([1.8], dtype=torch.float64), karras(score.process, 120)
    mean, covariance = conditional(torch.eye(3, dtype=torch.float64)[:1], known, 0.0)
    law = GaussianMixtureScore(score.process, [1.0], mean[None], covariance[None])
    start = score.process.transition(
        law.sample(n, generator=torch.Generator().manual_seed(7), dtype=torch.float64), times[0]
    ).sample(generator=torch.Generator().manual_seed(8))
    guided = CovarianceGuidance(score, Mask(torch.tensor([True, False, False])), known, 0.0)
    rule = DPMSolverPP(2, sde=stochastic)
    x = sample(score.process, guided, rule, times, shape=n, initial=start, seed=0).x
    # rounding of a residual, divided by a variance of σ² = 1e-4 and multiplied by it again
    torch.testing.assert_close(x[:, 0], known.expand(n), rtol=0, atol=1e-11)
    assert max(deviations(x[:, 1:], mean[1:], covariance[1:, 1:])) < 3


@pytest.mark.parametrize("dense", [64, 0], ids=["matrix", "conjugate gradients"])
def test_a_noisy_measurement_leads_to_its_conditional_law(dense: int) -> None:
    """The same for y = A x0 + noise from the prior; the assumption that data is N(·, I) is told apart, far out, where it is wrong most."""
    score, n = GaussianMixtureScore(Diffusion(Euclidean((3,)), VP()), [1.0], MEAN[None], COVARIANCE[None]), 4000
    y, noise, times = torch.tensor([5.0], dtype=torch.float64), 0.5, karras(score.process, 120)
    law = conditional(MATRIX, y, noise)

    def run(guided: Any) -> Tensor:
        rule = DPMSolverPP(2, sde=True)
        return sample(score.process, guided, rule, times, shape=n, seed=1, dtype=torch.float64).x

    operator = Dense(MATRIX)
    assert max(deviations(run(CovarianceGuidance(score, operator, y, noise, dense=dense)), *law)) < 3
    assert max(deviations(run(PiGDM(score, operator, y, noise)), *law)) > 6


RULES: list[Solver] = [
    RungeKutta(KUTTA3),
    *(
        kind()
        for kind in SOLVERS
        if not kind.adaptive and kind not in (RungeKutta, AnalyticDPM, PredictorCorrector, LepingleEulerMaruyama)
    ),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule_with_fixed_steps_inpaints_on_the_cube_in_float32(rule: Solver) -> None:
    """Multistep, multi-stage, churning, correcting: inside, exact where known, and the same alone and in a batch."""
    process = Diffusion(Hypercube((3,)), VE())
    score = EmpiricalScore(process, torch.rand(7, 3, generator=torch.Generator().manual_seed(0)))
    values, mask = torch.tensor([0.2, torch.nan, 0.5]), torch.tensor([True, False, True])
    options: dict[str, Any] = {"resamplings": 2, "jump": 1 if isinstance(rule, AnnealedLangevin) else 2}
    times = karras(process, 5, sigma_min=0.01)
    together = inpaint(process, score, rule, times, values, mask, shape=3, seed=[4, 5, 6], **options)
    alone = inpaint(process, score, rule, times, values, mask, shape=1, seed=[5], **options)
    assert together.x.dtype == torch.float32 and bool(together.ok.all())
    assert bool(process.domain.contains(together.x).all())
    assert torch.equal(together.x[:, mask], values[mask].expand(3, 2))
    assert torch.equal(together.x[1:2], alone.x)
