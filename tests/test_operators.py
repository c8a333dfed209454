"""Operators seen from outside: a Gaussian blur, a solver that asks nothing of the device, and compiled guidance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from carom.domains import Euclidean
from carom.processes import VP, Diffusion
from carom.scores import DPS, Blur, CovarianceGuidance, Dense, GaussianMixtureScore, PiGDM, check_operator
from carom.scores.operators import conjugate_gradients

MATRIX = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
Y = torch.tensor([3.0, -1.5], dtype=torch.float64)


@pytest.mark.parametrize("boundary", ["reflect", "circular"])
def test_a_gaussian_blur_keeps_the_mean_and_adds_its_variance(boundary: str) -> None:
    """Weights of sum 1 keep constants; a point becomes a bump of variance std² along each axis, up to what is beyond 4 std (1e-3) and to
    the difference of a sum from an integral (2e^{−2π²std²}, nothing here)."""
    blur, std = Blur.gaussian((1, 41, 41), 1.5, boundary), 1.5
    check_operator(blur)
    ones = torch.ones(1, 41, 41, dtype=torch.float64)
    torch.testing.assert_close(blur.forward(ones), ones, rtol=0, atol=1e-13)
    point = torch.zeros(1, 41, 41, dtype=torch.float64)
    point[0, 20, 20] = 1.0
    bump, away = blur.forward(point)[0], torch.arange(41) - 20.0
    torch.testing.assert_close(bump, bump.T)
    assert float((bump.sum(0) * away**2).sum()) == pytest.approx(std**2, rel=2e-3)


def test_a_very_narrow_blur_is_none_and_a_wide_one_is_cut_and_continued() -> None:
    x = torch.rand(1, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(Blur.gaussian((1, 5, 7), 1e-200).forward(x), x)
    # by mirror images a wide blur of a small image comes to its mean; e^{−π²·25/2/49} of the slowest cosine is left
    left = math.exp(-(math.pi**2) * 25 / (2 * 49))
    wide = Blur.gaussian((1, 5, 7), 5.0).forward(x)
    assert float((wide - x.mean()).abs().max()) < 2 * left
    with pytest.raises(ValueError, match="std: got 0"):
        Blur.gaussian((1, 5, 7), 0.0)


def test_conjugate_gradients_ask_nothing_of_values_when_compiled() -> None:
    """And all iterations change nothing once a sample has stopped: the same numbers to the bit."""
    matrix = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    y = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)

    def solved(y: Tensor) -> Tensor:
        return conjugate_gradients(lambda v: v @ matrix, y, 1, 12)

    plain = solved(y)
    torch.testing.assert_close(plain, y / matrix.diagonal(), rtol=1e-11, atol=1e-11)
    assert torch.equal(torch.compile(solved, fullgraph=True, backend="eager")(y), plain)


@pytest.mark.parametrize("name", ["published", "likelihood", "pseudoinverse", "covariance", "iterative"])
def test_guidance_compiles_whole_and_is_differentiable(name: str) -> None:
    process = Diffusion(Euclidean((3,)), VP())
    covariance = torch.tensor([[2.0, 1.5, 0.1], [1.5, 1.5, -0.1], [0.1, -0.1, 0.1]], dtype=torch.float64)
    score = GaussianMixtureScore(process, [1.0], [[0.3, -0.2, 0.5]], covariance[None])
    operator = Dense(MATRIX)
    guided: Any = {
        "published": DPS(score, operator, Y),
        "likelihood": DPS(score, operator, Y, sigma_y=0.8),
        "pseudoinverse": PiGDM(score, operator, Y, 0.8),
        "covariance": CovarianceGuidance(score, operator, Y, 0.8),
        "iterative": CovarianceGuidance(score, operator, Y, 0.8, dense=0),
    }[name]
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(4, 3, dtype=torch.float64, generator=generator), torch.tensor(0.3, dtype=torch.float64)
    plain = guided(x, t)
    compiled = torch.compile(guided.__call__, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t), plain, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        assert torch.equal(guided(x, t), plain)
    # along a line, by differences: h² of truncation, ε/h of rounding
    h, along = 1e-5, torch.randn(4, 3, dtype=torch.float64, generator=generator)
    slope = torch.autograd.functional.jvp(lambda v: guided(v, t), x, along)[1]
    difference = (guided(x + h * along, t) - guided(x - h * along, t)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-6)
