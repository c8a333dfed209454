"""Models of real probability vectors: as far from held-out data as real data are, and never outside the simplex."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from carom.domains import Simplex
from carom.processes import VE, Diffusion
from carom.scores.neural import MLP, MLPConfig, NeuralScore, split, train
from carom.solvers import Heun, ReflectedEulerMaruyama, karras, sample
from carom.validation import sliced_wasserstein

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from data.digit_probabilities import digit_probabilities
from data.jaspar import HINT, jaspar


def trained(data: Tensor, steps: int, batch_size: int) -> tuple[Simplex, Diffusion, NeuralScore]:
    torch.manual_seed(0)
    simplex = Simplex(data.shape[-1])
    process = Diffusion(simplex, VE(sigma_min=0.002, sigma_max=2.0))
    score = NeuralScore(MLP(MLPConfig(simplex.event_shape, width=128)), process)
    fall = lambda step: 3e-3 * (1 - step / steps) + 2e-5
    train(score, simplex.from_probabilities(data), steps=steps, batch_size=batch_size, lr=fall, progress=False)
    return simplex, process, score


def check(data: Tensor, steps: int, batch_size: int) -> None:
    """Distance of samples to held-out data within 1.5 times that of the training data, for an SDE and for the flow; the mean over
    four sample sets, for one alone varies by a quarter."""
    ours, held_out = split(data, 0.5)
    simplex, process, score = trained(ours, steps, batch_size)
    held_out = held_out[:3000]
    real = sliced_wasserstein(ours[: len(held_out)], held_out).value
    for solver, levels in ((ReflectedEulerMaruyama(), 200), (Heun(), 30)):
        distances = []
        for seed in range(4):
            x = sample(process, score, solver, karras(process, levels), shape=len(held_out), seed=seed).x
            p = simplex.to_probabilities(x)
            assert simplex.contains(x).all() and (p >= 0).all() and ((p.sum(-1) - 1).abs() <= 1e-6).all()
            distances.append(sliced_wasserstein(p, held_out).value)
        assert sum(distances) / len(distances) <= 1.5 * real, (solver, distances, real)


@pytest.mark.slow
def test_digit_probabilities_of_ten_categories() -> None:
    check(digit_probabilities().float(), steps=2500, batch_size=256)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyjaspar") is None, reason=HINT)
def test_jaspar_columns() -> None:
    data = jaspar()
    assert data.shape[1] == 4 and len(data) > 50_000
    keep = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:12_000]
    check(data[keep].float(), steps=4000, batch_size=512)


@pytest.mark.skipif(importlib.util.find_spec("pyjaspar") is not None, reason="pyjaspar is here")
def test_jaspar_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"pip install --no-deps pyjaspar"):
        jaspar()
