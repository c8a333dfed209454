"""Operators seen from outside: a Gaussian blur, solvers that ask nothing of the device, and compiled guidance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, VP, Diffusion
from carom.scores import (
    DPS,
    Blur,
    CovarianceGuidance,
    Dense,
    EmpiricalScore,
    GaussianMixtureScore,
    Mask,
    PiGDM,
    check_operator,
)
from carom.scores.lanczos import lanczos
from carom.scores.operators import conjugate_gradients
from carom.solvers import Ancestral, karras, sample

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


def indefinite(n: int, seed: int) -> Tensor:
    matrix = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return matrix + matrix.T


def times(matrix: Tensor) -> Any:
    """Products as sums over rows, which do not depend on the batch to the bit."""
    return lambda v: (matrix * v.unsqueeze(-2)).sum(-1)


def test_lanczos_makes_an_orthonormal_basis_in_which_the_map_is_tridiagonal() -> None:
    """Also for an indefinite map; to rounding of numbers of size 10, at all steps, thanks to reorthogonalisation."""
    matrix, y = indefinite(12, 0), torch.randn(2, 12, dtype=torch.float64)
    for steps in (1, 5, 12, 30):
        basis, small = lanczos(times(matrix), y, steps)
        k = min(steps, 12)
        assert basis.shape == (2, k, 12) and small.shape == (2, k, k)
        torch.testing.assert_close(basis @ basis.mT, torch.eye(k).double().expand(2, k, k), rtol=0, atol=1e-13)
        torch.testing.assert_close(basis @ matrix @ basis.mT, small, rtol=0, atol=1e-12)
    # at the end it is the map itself
    torch.testing.assert_close(basis.mT @ small @ basis, matrix.expand(2, 12, 12), rtol=0, atol=1e-11)


def test_lanczos_stops_where_the_space_is_exhausted() -> None:
    """A multiple of the identity, an eigenvector, a map of rank 1, nothing at all: the rest is 0, not noise."""
    n, y = 6, torch.randn(6, dtype=torch.float64)
    vector = torch.randn(n, dtype=torch.float64)
    for matrix, start, rank in [
        (3.0 * torch.eye(n).double(), y, 1),
        (indefinite(n, 1), torch.linalg.eigh(indefinite(n, 1))[1][:, 2], 1),
        (torch.outer(vector, vector), y, 2),
        (indefinite(n, 2), torch.zeros(n, dtype=torch.float64), 0),
    ]:
        basis, small = lanczos(times(matrix), start, n)
        assert int((basis.norm(dim=-1) > 0.5).sum()) == rank
        assert not bool(basis[rank:].any()) and not bool(small[rank:].any())


def test_lanczos_gives_a_sample_the_same_alone_and_in_a_batch() -> None:
    matrix, y = indefinite(12, 3).float(), torch.randn(5, 12)
    together, alone = lanczos(times(matrix), y, 7), lanczos(times(matrix), y[2:3], 7)
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))


def test_near_walls_where_no_covariance_is_positive_both_ways_agree() -> None:
    """On the cube sσ²∂D/∂x has negative eigenvalues; as many iterations as numbers in y then give what the whole matrix gives. Float64,
    condition numbers up to (σ² + σ_y²)/σ_y² = 5e3."""
    process = Diffusion(Hypercube((8,)), VE(sigma_max=2.0))
    generator = torch.Generator().manual_seed(0)
    score = EmpiricalScore(process, torch.rand(6, 8, generator=generator, dtype=torch.float64))
    operator = Mask(torch.tensor([True, True, False, True, True, True, False, True]))
    y, x = torch.rand(6, generator=generator).double(), torch.rand(20, 8, generator=generator).double()
    negative = False
    for t in karras(process, 7, sigma_min=0.05).tolist():
        whole, iterated = (CovarianceGuidance(score, operator, y, 0.03, dense=k)(x, t) for k in (64, 0))
        torch.testing.assert_close(iterated, whole, rtol=1e-8, atol=1e-8 * float(whole.abs().max()))
        jacobian = torch.func.jacrev(lambda v, t=t: score(v, t).sum(0))(x).transpose(0, 1)
        eigenvalues = torch.linalg.eigvalsh(torch.eye(8) + float(process.level(t).sigma) ** 2 * jacobian)
        negative = negative or bool((eigenvalues < -1e-3).any())
    assert negative  # the case is met


def test_many_measurements_on_the_cube_find_the_datum_they_are_of() -> None:
    """56 of 192 numbers known, 10 iterations a step: all samples come to the one of 16 data that fits. (Conjugate gradients, which stop
    where the matrix is not positive, brought one of eight there.)"""
    process = Diffusion(Hypercube((3, 8, 8)), VE(sigma_max=2.0))
    generator = torch.Generator().manual_seed(0)
    data, mask = torch.rand(16, 3, 8, 8, generator=generator), torch.rand(3, 8, 8, generator=generator) < 0.3
    operator = Mask(mask)
    guided = CovarianceGuidance(
        EmpiricalScore(process, data), operator, operator.forward(data[3]), 0.05, dense=0, iterations=10
    )
    x = sample(process, guided, Ancestral(), karras(process, 50), shape=4, seed=range(4)).x
    assert float((x - data[3]).abs().max()) < 0.1


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
