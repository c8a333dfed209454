"""Details of neural scores that a change of one sign, factor or place would alter: closed forms, each by hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from carom.domains import Euclidean, Hypercube, Product, RegularSimplex, Torus
from carom.processes import EDM, VE, VP, Diffusion, Discrete, Learned
from carom.scores import from_prediction
from carom.scores.checkpoints import find_weights
from carom.scores.neural import (
    MLP,
    ConditionalFlowMatching,
    IDDPMPreconditioning,
    MLPConfig,
    NeuralScore,
    Reflected,
    ReflectedVelocity,
    UniformTime,
    VelocityPreconditioning,
    VPredictionPreconditioning,
    image_folder,
)
from carom.scores.neural.batches import Batches
from carom.scores.neural.classifier import CrossEntropy, NoisyClassifier
from carom.scores.neural.levels import stratified
from carom.scores.neural.reflected import circle_unit, wall_layer
from carom.solvers import DDIM, iddpm_levels, sample

DOUBLE = torch.float64


# preconditionings and levels ------------------------------------------------------------------------------------------


def test_a_reflected_velocity_points_against_the_score():
    """dx/dσ = −σ·score, so that F = 3 at σ = ½ is the score −6 where nothing is damped."""
    column = ReflectedVelocity(Hypercube((1,)), wall=False)
    score = column.score(torch.tensor([[3.0]]), torch.tensor([[0.5]]), torch.tensor([[0.5]]))
    assert score.item() == -6


def test_iddpm_asks_for_the_nearest_level():
    """M − 1 − argmin_j |u_j − σ| by brute force: the borders are midpoints in σ, not in ln σ."""
    u = iddpm_levels(20)
    sigma = torch.logspace(-2, 3, 997, dtype=DOUBLE)
    nearest = 19 - (u - sigma[:, None]).abs().argmin(1)
    assert torch.equal(IDDPMPreconditioning(20).c_noise(sigma), nearest.to(DOUBLE))


@pytest.mark.parametrize("column", [VPredictionPreconditioning(), VelocityPreconditioning()], ids=repr)
def test_c_skip_keeps_its_digits_where_it_is_small(column):
    """v: 1/(σ² + 1), velocity: 1/(1 + σ); as 1 − σ²·(1 − c_skip)/σ² float32 would keep nothing of 1e-8 at σ = 1e4."""
    sigma = torch.logspace(-4, 5, 28, dtype=DOUBLE)
    power = 2 if isinstance(column, VPredictionPreconditioning) else 1
    # a handful of roundings
    torch.testing.assert_close(
        column.c_skip(sigma.float()).double(), 1 / (1 + sigma.float().double() ** power), rtol=1e-6, atol=0
    )


def test_an_empty_batch_has_an_empty_prediction():
    """As it has an empty score; networks that flatten events cannot be asked."""
    score = NeuralScore(MLP(MLPConfig((2,), 8, 1)), Diffusion(Euclidean((2,)), VP()), VPredictionPreconditioning())
    data, noise = score.prediction(torch.zeros(0, 2), 0.5)
    assert data.shape == noise.shape == score(torch.zeros(0, 2), 0.5).shape == (0, 2)


def test_flow_matching_draws_times_whose_levels_span_the_range_of_the_process():
    """σ = t/(1 − t): from t = σ_min/(1 + σ_min) on, here a third for σ_min = ½; and half way between the ends t = (1/3 + 3/4)/2."""
    levels = ConditionalFlowMatching().default(Diffusion(Euclidean((1,)), EDM(0.5, 3.0)))
    t = (1 / 3 + 3 / 4) / 2
    expected = torch.tensor([0.5, t / (1 - t), 3.0], dtype=DOUBLE)
    torch.testing.assert_close(levels.quantile(torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)), expected)


@pytest.mark.parametrize("n", [2, 3, 1000])
def test_no_stratum_ends_at_one(n, monkeypatch):
    """(n − 1 + shift)/n rounds to 1 in float32 for the largest shift below 1; the quantile there may be infinite."""
    largest = torch.tensor(1.0).nextafter(torch.tensor(0.0))
    monkeypatch.setattr(torch, "rand", lambda *size, **options: largest)
    u = stratified(torch.Size([n]), torch.zeros(()), None)
    assert bool((u < 1).all()) and bool((u >= 0).all())


def test_beyond_flat_kernels_nothing_changes_any_more():
    """From σ = 2w on networks hear ¼ ln 2 and units stay; on a circle from σ = 1 on, where u = 2π e^{−2π²} √2 to 1e-17."""
    column = Reflected(Hypercube((1,)))
    sigma = torch.tensor([[2.0], [2.5], [5.0]], dtype=DOUBLE)
    torch.testing.assert_close(column.c_noise(sigma), torch.full_like(sigma, math.log(2) / 4))
    assert column.unit(sigma).unique().numel() == 1
    flat = torch.full((2,), 2 * math.pi * math.exp(-2 * math.pi**2) * math.sqrt(2), dtype=DOUBLE)
    torch.testing.assert_close(circle_unit(torch.tensor([1.0, 3.0], dtype=DOUBLE)), flat, rtol=1e-12, atol=0)


def test_walls_of_a_triangle_are_damped_within_half_its_inradius():
    """The triangle of three categories has sides √2, and an inscribed circle of radius √2·√3/6; on a cube the layer is a quarter."""
    assert wall_layer(RegularSimplex(3)) == pytest.approx(math.sqrt(6) / 12)
    assert wall_layer(Hypercube((2,))) == 0.25


def test_steps_need_a_table_that_has_them():
    with pytest.raises(TypeError, match=r"steps: got 10 on VP.*, which has no table, expected a Discrete schedule"):
        UniformTime(VP(), steps=10)
    with pytest.raises(ValueError, match="steps: got 51, expected at most the 50 levels"):
        UniformTime(Discrete.ddpm(50), steps=51)


def test_a_fresh_learned_schedule_is_nearly_a_line_of_which_its_steps_make_half():
    """f(1) − f(0) = 1 + Σ 2 e^{h_k} but for tails: with heights 1/(2·width) the steps rise by 1, as the line does."""
    schedule = Learned(width=32)
    height = schedule.curve[0].exp()
    assert 2 * height.sum().item() == pytest.approx(1)
    u = torch.linspace(0, 1, 101, dtype=DOUBLE)
    value, _ = schedule.progress(u)
    # what a step of width 1/32 with tails ∝ 1/z² strays by, and the ends, where half of the tails are missing
    assert (value - u).abs().max() < 0.02


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_takes_the_same_steps_and_the_same_noise_by_data_as_by_noise(eta):
    """x' = s' D + √(std'² − σ̃²) ε + σ̃ z, whether D is asked for or made of the score; data are N(½, ¼), D = E[x0 | x]."""
    process = Diffusion(Euclidean((1,)), VP())

    def data(x, t):
        scale, std = (v.to(x)[:, None] for v in (process.schedule.scale(t), process.schedule.std(t)))
        return 0.5 + 0.25 * scale / (0.25 * scale**2 + std**2) * (x - 0.5 * scale)

    offered = from_prediction(data, process, "data", "t")
    grid = [1.0, 0.7, 0.4, 0.1, 0.01]
    runs = [
        sample(process, score, DDIM(eta), grid, shape=200, seed=0, dtype=DOUBLE).x
        for score in (offered, lambda x, t: offered(x, t))
    ]
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-10)


# classifiers, batches, files ------------------------------------------------------------------------------------------


class Logits(nn.Module):
    def forward(self, x, c_noise):
        return torch.zeros(len(x), 2)


def test_a_classifier_under_a_schedule_for_each_part_is_refused():
    """All parts would be noised to the level of the first one, and asked at levels of their own."""
    domain = Product(Hypercube((1,)), Torus((1,)))
    classifier = NoisyClassifier(Logits(), Diffusion(domain, [VE(0.01, 1.0), VE(0.001, 0.3)]))
    with pytest.raises(TypeError, match=r"CrossEntropy: got .* with a schedule for each part, expected one for all"):
        CrossEntropy()(classifier, torch.full((3, 2), 0.5), label=torch.zeros(3, dtype=torch.long))


class Rows(Dataset):
    """Rows that are read together, as ``DataLoader`` asks for them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        raise AssertionError("one by one")

    def __getitems__(self, indices):
        return [(torch.tensor([float(i)]), i) for i in indices]


def test_a_batch_is_read_at_once_where_the_data_can():
    x, condition = Batches(Rows(), Euclidean((1,)), 4, 1, 0).at(0, 0, torch.device("cpu"))
    assert x.shape == (4, 1) and torch.equal(condition["label"].float(), x[:, 0])


@pytest.mark.parametrize(
    ("average", "plain", "found"),
    [
        ("model_EMA.", "model.", True),
        ("ema.ema_model.", "ema.online_model.", True),
        ("semantic_net.", "unet.", False),
    ],
)
def test_averages_are_told_by_the_word(average, plain, found):
    """ "ema" is a word of the prefix, in any case; of lucidrains' wrapper the online model is no average."""
    network = nn.Linear(2, 2)
    names = network.state_dict()
    tensors = {plain + k: torch.zeros_like(v) for k, v in names.items()}
    tensors |= {average + k: torch.ones_like(v) for k, v in names.items()}
    assert all(bool((v == found).all()) for v in find_weights(tensors, network, ema=True).values())
    assert all(bool((v == 0).all()) for v in find_weights(tensors, network, ema=False).values())


def test_a_list_of_averages_leaves_frozen_parameters_out():
    """Averages are kept of what is trained: with the bias frozen, of the weight alone."""
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    tensors = {"model.weight": torch.zeros(2, 2), "model.bias": torch.zeros(2), "ema.shadow_params.0": torch.ones(2, 2)}
    found = find_weights(tensors, network, ema=True)
    assert bool((found["weight"] == 1).all()) and bool((found["bias"] == 0).all())


def test_turned_and_upright_photographs_of_one_size_go_together(tmp_path):
    """Stored as 2 × 3 and noted to be turned it stands 3 × 2, as the other is stored."""
    turned = Image.fromarray(np.zeros((2, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.zeros((3, 2), np.uint8)).save(tmp_path / "b.png")
    assert image_folder(tmp_path).event_shape == (1, 3, 2)
