"""Thresholds of x̂0: nothing changes for exact scores, what is clipped is clipped sample by sample, and ε̂ goes with it."""

from __future__ import annotations

import pytest
import torch

from carom.domains import Euclidean
from carom.processes import VP, Diffusion, FlowMatching
from carom.scores import DynamicThreshold, EmpiricalScore, GaussianMixtureScore, StaticThreshold
from carom.solvers import DDIM, Heun, karras, sample
from carom.validation import problems

PROCESS = Diffusion(Euclidean((3,)), VP())
WIDE = GaussianMixtureScore(PROCESS, [1.0], [[0.0, 0.0, 0.0]], 4.0)


def test_an_exact_score_of_data_in_the_range_is_left_alone() -> None:
    """E[x_0 | x] lies in the convex hull of the data (numerics: a no-op for exact unguided scores)."""
    data = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact = EmpiricalScore(PROCESS, data)
    for rule in (StaticThreshold(exact), DynamicThreshold(exact)):
        for t in (0.05, 0.4, 1.0):
            x = 2 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            torch.testing.assert_close(rule(x, t), exact(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rule", [StaticThreshold(WIDE), StaticThreshold(WIDE, 0.0, 2.0), DynamicThreshold(WIDE, 0.8)])
def test_the_noise_goes_with_the_clipped_data(rule: StaticThreshold) -> None:
    x = 3 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.02, 0.2, 0.4, 0.7, 1.0], dtype=torch.float64)[:, None]
    data, noise = rule.prediction(x, t)
    level = PROCESS.event_level(t[:, 0])
    torch.testing.assert_close(level.scale * data + level.scale * level.sigma * noise, x)
    torch.testing.assert_close(rule(x, t), -noise / (level.scale * level.sigma))
    assert float(data.min()) >= rule.low and float(data.max()) <= rule.high
    assert bool((data != WIDE.prediction(x, t)[0]).any())


def test_the_noise_keeps_its_digits_in_single_precision() -> None:
    """At σ = 1e-3 x and s·x̂0 agree in three digits; rounded to float32 each, ε̂ would be off by 6e-8/1e-3. It is found from x and x̂0 in
    float64: what is left is the rounding of x̂0 itself, which prediction shows."""
    level = PROCESS.level(sigma=1e-3)
    x = torch.tensor([[0.7, -0.3, 0.9]])
    for rule in (StaticThreshold(WIDE), DynamicThreshold(WIDE)):
        data, noise = rule.prediction(x, float(level.t))
        at = PROCESS.event_level(torch.tensor([float(level.t)], dtype=torch.float64))
        wanted = (x.double() - at.scale * data.double()) / (at.scale * at.sigma)
        torch.testing.assert_close(noise.double(), wanted, rtol=1e-6, atol=0)


def test_the_static_rule_clamps() -> None:
    x = torch.tensor([[9.0, 0.1, -9.0]], dtype=torch.float64)
    plain = WIDE.prediction(x, 0.05)[0]
    torch.testing.assert_close(StaticThreshold(WIDE, -1, 2).prediction(x, 0.05)[0], plain.clamp(-1, 2))


def test_the_dynamic_rule_is_imagen_s_sample_by_sample() -> None:
    x = torch.tensor([[9.0, 0.1, -5.0], [0.2, 0.3, 0.1]], dtype=torch.float64)
    plain = WIDE.prediction(x, 0.05)[0]
    for quantile in (0.3, 0.5, 0.75, 1.0):
        bound = plain.abs().quantile(quantile, -1, keepdim=True).clamp(min=1)
        want = plain.clamp(-bound, bound) / bound
        torch.testing.assert_close(DynamicThreshold(WIDE, quantile).prediction(x, 0.05)[0], want)
        alone = DynamicThreshold(WIDE, quantile).prediction(x[1:], 0.05)[0]
        assert torch.equal(alone, DynamicThreshold(WIDE, quantile).prediction(x, 0.05)[0][1:])
    # another range is the same rule in its own units
    shifted = DynamicThreshold(WIDE, 0.75, low=1.0, high=5.0).clip(3 + 2 * plain)
    torch.testing.assert_close((shifted - 3) / 2, DynamicThreshold(WIDE, 0.75).clip(plain))


def test_solvers_take_thresholded_scores() -> None:
    process = Diffusion(Euclidean((3,)), FlowMatching())
    wide = GaussianMixtureScore(process, [1.0], [[0.0, 0.0, 0.0]], 4.0)
    pure = torch.cat([torch.tensor([1.0], dtype=torch.float64), karras(process, 8)])
    for score in (StaticThreshold(wide), DynamicThreshold(wide)):
        run = sample(process, score, DDIM(), pure, shape=50, seed=0)
        assert float(run.x.abs().max()) <= 1 and run.x.dtype == torch.float32
        assert bool(sample(process, score, Heun(), karras(process, 8), shape=50, seed=0).x.isfinite().all())
        assert score.rows(torch.tensor([0])) is not None


def test_refusals() -> None:
    cube = problems.cosine()
    with pytest.raises(TypeError, match=r"StaticThreshold: got Hypercube.* walls keep states inside"):
        StaticThreshold(cube.score)
    with pytest.raises(ValueError, match="high"):
        StaticThreshold(WIDE, 1.0, -1.0)
    with pytest.raises(ValueError, match="quantile"):
        DynamicThreshold(WIDE, 0.0)
