"""One seed for each datum: densities and bounds whose draws are the same alone and in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from carom.domains import Euclidean, Hypercube, Product, Torus
from carom.processes import VE, Diffusion
from carom.solvers import Heun, Hutchinson, bits_per_dim, elbo, karras, log_likelihood

SEEDS = (3, 4, 0, 7, 2**40)
BOX, SPACE = Diffusion(Hypercube((2,)), VE(sigma_min=0.1)), Diffusion(Euclidean((2,)), VE(sigma_min=0.1))
WHOLE = torch.tensor([[0, 1], [2, 2], [1, 0], [2, 1], [0, 0]])
POINTS = torch.linspace(0.1, 0.9, 10, dtype=torch.float64).reshape(5, 2)


def score(x: Tensor, t: Tensor) -> Tensor:
    """Of no law that is known here, each row by itself."""
    return torch.sin(3 * x) - 2 * x**2


def bound(process: Diffusion, x: Tensor, seed: Any, **options: Any) -> Tensor:
    return elbo(process, score, x, seed=seed, draws=3, **options).log_prob


PRIOR = Independent(Normal(torch.full((2,), 0.5, dtype=torch.float64), 1.0), 1)
BOUNDS: dict[str, tuple[Diffusion, Tensor, dict[str, Any]]] = {
    "states": (BOX, POINTS, {}),
    "whole numbers": (BOX, WHOLE, {"bins": 3}),
    "probes": (BOX, POINTS, {"form": "fisher", "divergence": Hutchinson(1)}),
    "drawn prior": (SPACE, POINTS, {"prior": PRIOR}),
    "product": (Diffusion(Product(Hypercube((1,)), Torus((1,))), VE(sigma_min=0.1)), POINTS, {}),
    "ddpm": (SPACE, POINTS, {"form": "ddpm", "times": karras(SPACE, 4)}),
    "vdm": (SPACE, WHOLE, {"form": "vdm", "times": karras(SPACE, 4), "bins": 3}),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_of_a_seed_of_its_own_is_the_same_in_any_batch(name: str) -> None:
    process, x, options = BOUNDS[name]
    whole = bound(process, x, SEEDS, **options)
    parts = [bound(process, x[a:b], SEEDS[a:b], **options) for a, b in ((0, 1), (1, 4), (4, 5))]
    # the same numbers but for the order of sums in float64 (float32 for whole numbers)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5 if "bins" in options else 1e-12, atol=1e-6)
    assert bool((bound(process, x, [s + 1 for s in SEEDS], **options) != whole).all())
    square = bound(process, x[:4].reshape(2, 2, 2), SEEDS[:4], **options)
    torch.testing.assert_close(square.flatten(), whole[:4], rtol=1e-5, atol=1e-6)


def test_bits_of_a_seed_of_its_own_are_the_same_in_any_batch() -> None:
    def bits(x: Tensor, seed: Sequence[int]) -> Tensor:
        options: dict[str, Any] = {"times": karras(BOX, 4), "divergence": Hutchinson(1), "bins": 3, "draws": 2}
        return bits_per_dim(BOX, score, x, seed=seed, solver=Heun(), **options).each

    whole = bits(WHOLE, SEEDS)
    torch.testing.assert_close(torch.cat([bits(WHOLE[:2], SEEDS[:2]), bits(WHOLE[2:], SEEDS[2:])]), whole)
    assert bool((bits(WHOLE, [s + 1 for s in SEEDS]) != whole).all())


def test_equal_data_of_different_seeds_have_draws_of_their_own_and_of_equal_seeds_the_same() -> None:
    x = POINTS[:1].expand(3, 2)
    a, b, c = bound(BOX, x, (5, 6, 5)).tolist()
    assert a == c != b


def test_bounds_of_seeds_of_their_own_have_the_mean_of_those_of_one_seed() -> None:
    x = POINTS[:1].expand(400, 2)
    own, one = (bound(BOX, x, seed) for seed in (range(400), 0))
    error = float((own.var() / 400 + one.var() / 400).sqrt())
    assert abs(float(own.mean() - one.mean())) < 4 * error < 1.0  # four standard errors, small beside the mean of −2.3


@pytest.mark.parametrize("form", ["dsm", "vdm"])
def test_another_number_of_seeds_than_of_data_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="seeds: got 2, expected one per sample: 5"):
        bound(SPACE, POINTS, (0, 1), form=form)
    with pytest.raises(ValueError, match="seeds: got 2, expected one per sample: 5"):
        log_likelihood(BOX, score, POINTS, seed=(0, 1), divergence=Hutchinson(1))
    with pytest.raises(ValueError, match="seeds: got 2, expected one per sample: 5"):
        bits_per_dim(BOX, score, WHOLE, seed=(0, 1), bins=3)
