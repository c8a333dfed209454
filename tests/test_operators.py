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
from carom.scores.inverse import _solved
from carom.scores.lanczos import lanczos
from carom.solvers import Ancestral, karras, sample
from carom.solvers.systems import conjugate_gradients

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
        return conjugate_gradients(lambda v: v @ matrix, y, 1, 12)[0]

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


@pytest.mark.parametrize("domain", [Euclidean((3,)), Hypercube((3,))], ids=repr)
def test_guidance_of_no_weight_is_the_score(domain: Any) -> None:
    """Between walls as well, where (D − x)/σ² of the exact D is another vector than the score."""
    process, generator = Diffusion(domain, VE(sigma_max=2.0)), torch.Generator().manual_seed(0)
    score = EmpiricalScore(process, torch.rand(5, 3, generator=generator, dtype=torch.float64))
    x = torch.rand(7, 3, generator=generator, dtype=torch.float64)
    for t in (0.05, 0.4, 1.0):
        for guided in (DPS(score, Dense(MATRIX), Y, scale=0.0), PiGDM(score, Dense(MATRIX), Y, 0.5, scale=0.0)):
            torch.testing.assert_close(guided(x, t), score(x, t), rtol=1e-10, atol=1e-10)


def test_where_what_stands_for_the_covariance_is_not_positive_both_ways_agree() -> None:
    """A linear "score" S x at σ = 1: C = I + S with eigenvalues from −3 to 4. As many iterations as numbers in y then give what the whole
    matrix gives, and that is the closed form with the negative ones taken for 0; condition numbers up to 5/0.25."""
    process = Diffusion(Euclidean((6,)), VE(sigma_max=2.0))
    basis = torch.linalg.qr(indefinite(6, 4))[0]
    eigenvalues = torch.tensor([-3.0, -0.5, 0.0, 0.1, 1.0, 4.0], dtype=torch.float64)
    covariance = (basis * eigenvalues) @ basis.T
    slope, t = covariance - torch.eye(6), process.level(sigma=1.0).t

    def score(x: Tensor, t: Any) -> Tensor:
        return x @ slope

    y, x = torch.randn(6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    whole, iterated = (
        CovarianceGuidance(score, Dense(torch.eye(6)), y, 0.5, dense=k, process=process)(x, t) for k in (64, 0)
    )
    inverse = (basis / (eigenvalues.clamp(min=0) + 0.25)) @ basis.T
    wanted = score(x, t) + (y - x @ covariance) @ inverse @ covariance
    # the time of σ = 1 is found by inverting σ(t)
    torch.testing.assert_close(whole, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(iterated, whole, rtol=1e-10, atol=1e-10)


def test_many_measurements_on_the_cube_find_the_datum_they_are_of() -> None:
    """Three in ten of 192 numbers known, 10 iterations a step: most samples come to the one of 16 data that fits (all but one in six, as
    measured; one in sixteen without y)."""
    process = Diffusion(Hypercube((3, 8, 8)), VE(sigma_max=2.0))
    generator = torch.Generator().manual_seed(0)
    data, mask = torch.rand(16, 3, 8, 8, generator=generator), torch.rand(3, 8, 8, generator=generator) < 0.3
    operator = Mask(mask)
    guided = CovarianceGuidance(
        EmpiricalScore(process, data), operator, operator.forward(data[3]), 0.2, dense=0, iterations=10
    )
    x = sample(process, guided, Ancestral(), karras(process, 50), shape=6, seed=range(6)).x
    near = (x - data[3]).pow(2).mean((-1, -2, -3)) < 0.05**2
    assert float(near.double().mean()) > 0.6


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


def test_conjugate_gradients_go_as_far_as_they_say() -> None:
    """Residuals against their promise, by matrices too wide in spectrum to end by exhaustion; looser where told."""
    matrix = torch.diag(torch.linspace(1, 300, 80, dtype=torch.float64))
    y = torch.randn(3, 80, dtype=torch.float64)
    for tolerance, promise in ((None, 1e-3 * 2.0**-26), (1e-2, 1e-2)):
        u, _ = conjugate_gradients(lambda v: v @ matrix, y, 1, 500, tolerance)
        left = (y - u @ matrix).norm(dim=-1) / y.norm(dim=-1)
        # what the recursion takes for the residual is it up to rounding
        assert bool((left < 1.1 * promise + 1e-14).all()) and bool((left > 1e-3 * promise).all())


def test_a_matrix_without_full_rank_has_its_pseudo_inverse() -> None:
    """Of singular values that are 0 but for rounding nothing is asked; and what is small in one sample is not in another."""
    left, right = torch.randn(4, 2, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    matrix, y = left @ right, torch.randn(2, 4, dtype=torch.float64)
    operator = Dense(matrix)
    wanted = y @ torch.linalg.pinv(matrix @ matrix.T, hermitian=True, rtol=1e-12)
    torch.testing.assert_close(operator.solve(y, 1.0, 0.0), wanted, rtol=1e-8, atol=1e-8)
    variance = torch.tensor([[1.0], [1e-18]], dtype=torch.float64)
    torch.testing.assert_close(operator.solve(y, variance, 0.0), wanted / variance, rtol=1e-8, atol=0)


def test_an_adjoint_that_is_nearly_one_is_refused() -> None:
    operator = Dense(MATRIX)
    operator.adjoint = lambda y: (1 + 1e-7) * Dense(MATRIX).adjoint(y)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="adjoint is not that of its forward"):
        check_operator(operator)
    check_operator(operator, torch.float32)  # nothing that single precision could see


def test_a_covariance_that_is_not_symmetric_is_taken_by_its_symmetric_part() -> None:
    """A linear "score" S x at σ = 1 that is no gradient: u solves with the symmetric part of C = I + S, and C itself carries it back."""
    process = Diffusion(Euclidean((4,)), VE(sigma_max=2.0))
    slope = 0.4 * torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slope = slope + torch.eye(4)
    covariance, t = slope + torch.eye(4), process.level(sigma=1.0).t
    symmetric = 0.5 * (covariance + covariance.T)
    assert float(torch.linalg.eigvalsh(symmetric).min()) > 0 and not torch.allclose(covariance, symmetric, atol=0.1)
    y, x = torch.randn(4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    found = CovarianceGuidance(lambda x, t: x @ slope, Dense(torch.eye(4)), y, 0.5, process=process)(x, t)
    weights = (y - x @ covariance) @ torch.linalg.inv(symmetric + 0.25 * torch.eye(4))
    torch.testing.assert_close(found, x @ slope + weights @ covariance.T, rtol=1e-9, atol=1e-9)


def test_matrices_are_solved_with_where_they_say_something() -> None:
    """Rank 1 without noise: its pseudo-inverse. One that is not finite comes to NaN, by itself."""
    v, right = torch.randn(5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    matrix = torch.outer(v, v).expand(3, 5, 5).clone()
    matrix[1, 0, 2] = torch.inf
    found, wanted = _solved(matrix, 0.0, right), (right @ v)[:, None] * v / v.square().sum() ** 2
    torch.testing.assert_close(found[::2], wanted[::2], rtol=1e-9, atol=1e-9)
    assert bool(found[1].isnan().all())


def test_lanczos_keeps_its_basis_where_one_round_of_it_would_not() -> None:
    """Eigenvalues over twelve decades; and NaN is handed on, by itself."""
    matrix = torch.diag(torch.logspace(0, -12, 40, dtype=torch.float64))
    y = torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis, _ = lanczos(times(matrix), y, 30)
    k = int((basis.norm(dim=-1) > 0.5).sum(-1).min())
    assert k > 8
    torch.testing.assert_close((basis @ basis.mT)[:, :k, :k], torch.eye(k).double().expand(2, k, k), rtol=0, atol=1e-13)
    y[1, 3] = torch.nan
    assert bool(lanczos(times(matrix), y, 4)[0][1].isnan().all())
    torch.testing.assert_close(lanczos(times(matrix), y, 30)[0][0], basis[0], rtol=0, atol=0)
