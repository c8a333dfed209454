"""Networks: classes and the null token, low precision, symmetry, other people's networks, and what travels in a file."""

import copy
import json
import math
import re
import types

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from carom.domains import Ball, Euclidean, Hypercube, Product, RegularSimplex
from carom.processes import VE, VP, Diffusion
from carom.scores.neural import (
    MLP,
    Conservative,
    DiT,
    DiTConfig,
    EquivariantConfig,
    EquivariantMLP,
    MLPConfig,
    NeuralScore,
    Reflected,
    SlicedScoreMatching,
    UNet,
    UNetConfig,
    train,
)
from carom.scores.neural.dit import grid_positions
from carom.scores.neural.layers import NoiseEmbedding, attend
from carom.scores.neural.networks import network_from_config, network_to_config
from carom.scores.neural.unet import _Attention

IMAGE = (1, 8, 8)
CLASSES = 3


def randomise(network: nn.Module) -> nn.Module:
    """Weights everywhere, also in the layers that start at zero."""
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.2)
    return network


def build(name: str, classes: int = CLASSES, **options) -> nn.Module:
    """A small network of each kind; those for images take IMAGE, the equivariant one [4]."""
    options = {"classes": classes, **options}
    match name:
        case "mlp":
            return MLP(MLPConfig(IMAGE, 16, 1, **options))
        case "unet":
            return UNet(UNetConfig(channels=8, multipliers=(1, 2), heads=2, attention=(0,), **options))
        case "dit":
            return DiT(DiTConfig(width=16, depth=1, **options))
        case "equivariant":
            return EquivariantMLP(EquivariantConfig(5, 16, 1, **options))
        case "conservative":
            return Conservative(build("unet", **options))
    raise ValueError(name)


NAMES = ["mlp", "unet", "dit", "equivariant", "conservative"]


def inputs(name: str, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, *((4,) if name == "equivariant" else IMAGE)), torch.linspace(-1, 0.2, batch)


# classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_the_null_token(name):
    """None, −1 and the index `classes` all say "no class", which is none of the classes: class 0 least of all."""
    network, (x, c_noise) = randomise(build(name)).eval(), inputs(name)
    null = network(x, c_noise)
    assert torch.equal(network(x, c_noise, label=torch.full((4,), -1)), null)
    assert torch.equal(network(x, c_noise, label=torch.full((4,), CLASSES)), null)
    each = torch.stack([network(x, c_noise, label=torch.full((4,), k, dtype=torch.int32)) for k in range(CLASSES)])
    distinct = torch.cat([each, null[None]])
    gaps = (distinct[:, None] - distinct[None]).flatten(2).norm(dim=-1) + torch.eye(CLASSES + 1)
    assert gaps.min() > 1e-3
    mixed = network(x, c_noise, label=torch.tensor([2, -1, 0, 1]))
    torch.testing.assert_close(mixed, torch.stack([each[2, 0], null[1], each[0, 2], each[1, 3]]))
    assert torch.equal(network(x, c_noise, label=2), each[2])


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_mean_nothing_are_refused(name):
    network, (x, c_noise) = build(name), inputs(name)
    for label in (torch.tensor([0, 1, 2, 4]), torch.tensor([0, -2, 1, 1])):
        with pytest.raises(ValueError, match=r"label: got values from .*expected 0 … 2, or 3 or −1 for no class"):
            network(x, c_noise, label=label)
    with pytest.raises(TypeError, match=r"label: got dtype torch.float32"):
        network(x, c_noise, label=torch.zeros(4))
    with pytest.raises(TypeError, match=r"label: got dtype torch.bool"):
        network(x, c_noise, label=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"label: got shape \(1,\), expected one for each row of the batch, \[4\]"):
        network(x, c_noise, label=torch.zeros(1, dtype=torch.long))
    unconditional = build(name, classes=0)
    assert torch.equal(unconditional(x, c_noise, label=None), unconditional(x, c_noise))
    with pytest.raises(ValueError, match=r"label: got one for a network without classes; set classes"):
        unconditional(x, c_noise, label=torch.zeros(4, dtype=torch.long))


def test_labels_are_withheld_in_training_at_their_share():
    p, n = 0.3, 2000
    network = randomise(MLP(MLPConfig((1,), 8, 1, classes=2, label_dropout=p)))
    x, c_noise, label = torch.ones(n, 1), torch.zeros(n), torch.ones(n, dtype=torch.long)
    with torch.no_grad():
        null, kept = network(x, c_noise), network.train()(x, c_noise, label=label)
        share = (kept - null).abs().squeeze(1).lt(1e-6).double().mean()
        assert not (network.eval()(x, c_noise, label=label) - null).abs().lt(1e-6).any()
    assert abs(float(share) - p) < 4 * math.sqrt(p * (1 - p) / n)  # four standard errors of a share


def test_a_label_reaches_the_network_through_the_score_with_the_batch_flattened():
    process = Diffusion(Hypercube(IMAGE), VE())
    score = NeuralScore(randomise(build("unet")), process).eval()
    x, label = torch.rand(2, 3, *IMAGE), torch.arange(6).reshape(2, 3) % CLASSES
    got = score(x, 0.3, label=label)
    torch.testing.assert_close(got[1, 2], score(x[1, 2], 0.3, label=label[1, 2]))
    assert torch.equal(score(x, 0.3, label=1), score(x, 0.3, label=torch.ones(2, 3, dtype=torch.long)))
    assert (got - score(x, 0.3)).abs().amax() > 1e-3


def test_training_with_labels_learns_a_score_for_each_class_and_for_none():
    """Two classes at ±1: where x = 0, their scores point apart, and that of no class, in the middle, stays between."""
    torch.manual_seed(0)
    process = Diffusion(Euclidean((1,)), VP())
    label = torch.arange(256) % 2
    data = torch.utils.data.TensorDataset((2.0 * label - 1)[:, None] + 0.1 * torch.randn(256, 1), label)
    score = NeuralScore(MLP(MLPConfig((1,), 24, 1, classes=2, label_dropout=0.3)), process)
    train(score, data, steps=200, ema=None, warmup=10, lr=5e-3, progress=False)
    x, t = torch.zeros(1, 1), 0.3
    with torch.no_grad():
        low, none, high = (float(score(x, t, label=k)) for k in (0, None, 1))
    # std(0.3)² ≈ 0.63, scale ≈ 0.6: the scores of N(±0.6, 0.64) at 0 are ±0.95
    assert low < -0.5 and high > 0.5 and abs(none) < 0.4


# the noise level --------------------------------------------------------------------------------------------------


def test_fourier_features_are_seeded_and_below_highest():
    first, again, other = (NoiseEmbedding(8, 4000, kind="fourier", seed=seed).frequencies for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    # 32 is two standard deviations: 4.55 % lie beyond, ± 4·0.33 % in a sample of 4000
    assert float((first.abs() > 32).double().mean()) == pytest.approx(0.0455, abs=0.0132)
    before = torch.get_rng_state()
    NoiseEmbedding(8, kind="fourier").frequencies.sum()
    drawn = torch.get_rng_state()
    torch.set_rng_state(before)
    NoiseEmbedding(8)
    assert torch.equal(torch.get_rng_state(), drawn)  # the frequencies leave the caller's generator alone


def test_fourier_features_travel_in_the_checkpoint_and_those_that_are_computed_do_not(tmp_path):
    process = Diffusion(Euclidean((3,)), VP())
    score = NeuralScore(randomise(MLP(MLPConfig((3,), 8, 1, embedding="fourier"))), process).eval()
    score.network.embedding.frequencies.mul_(1.5)
    score.save(tmp_path / "a")
    loaded, x = NeuralScore.load(tmp_path / "a"), torch.randn(4, 3)
    assert torch.equal(loaded(x, 0.3), score(x, 0.3))
    assert not any("frequencies" in key for key in MLP(MLPConfig((3,))).state_dict())


@pytest.mark.parametrize("embedding", ["sinusoidal", "fourier"])
def test_a_network_in_bfloat16_hears_the_same_noise_level_and_comes_back_in_bfloat16(tmp_path, embedding):
    process = Diffusion(Euclidean((3,)), VP())
    score = NeuralScore(randomise(MLP(MLPConfig((3,), 8, 1, embedding=embedding))), process).eval()
    exact = score.network.embedding.frequencies.clone()
    score.network.bfloat16()
    assert torch.equal(score.network.embedding.frequencies, exact)
    score.save(tmp_path / "a")
    loaded, x = NeuralScore.load(tmp_path / "a"), torch.randn(4, 3)
    assert {p.dtype for p in loaded.network.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.network.embedding.frequencies, exact) and torch.equal(loaded(x, 0.3), score(x, 0.3))


# precision, layout, compilation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_close(name):
    network, (x, c_noise) = randomise(build(name)).eval(), inputs(name)
    with torch.no_grad():
        expected, low = network(x, c_noise), copy.deepcopy(network).bfloat16()(x.bfloat16(), c_noise)
    assert low.dtype == torch.bfloat16
    # 8 bits, 0.4 % in each of some ten layers
    assert float((low - expected).abs().max()) < 0.08 * float(expected.abs().max())


def test_the_unet_keeps_channels_last_from_end_to_end():
    config = UNetConfig(3, 8, (1, 2), heads=2, attention=(0,), classes=2)
    network, last = randomise(UNet(config)).eval(), torch.channels_last
    x, c_noise, label = torch.randn(2, 3, 8, 4), torch.zeros(2), torch.tensor([0, 1])
    expected = network(x, c_noise, label=label)
    assert expected.is_contiguous()
    seen: list[bool] = []
    network.to(memory_format=last)
    for module in network.modules():
        module.register_forward_hook(lambda _, __, y: seen.append(y.dim() < 4 or y.is_contiguous(memory_format=last)))
    got = network(x.contiguous(memory_format=last), c_noise, label=label)
    assert all(seen) and len(seen) > 30
    torch.testing.assert_close(got, expected)  # to rounding: sums in another order


@pytest.mark.parametrize("name", NAMES)
def test_networks_compile_whole(name):
    network, (x, c_noise) = randomise(build(name)).eval(), inputs(name)
    compiled, label = torch.compile(network, fullgraph=True, backend="eager"), torch.tensor([0, 1, -1, 2])
    torch.testing.assert_close(compiled(x, c_noise, label=label), network(x, c_noise, label=label))


@pytest.mark.parametrize("name", NAMES)
def test_networks_read_no_value_in_training(name):
    """Under FakeTensorMode any .item() raises: so there is no host sync on a GPU."""
    with FakeTensorMode():
        network, (x, c_noise) = build(name, dropout=0.1, label_dropout=0.1, embedding="fourier"), inputs(name)
        network(x, c_noise, label=torch.randint(0, CLASSES, (4,))).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


# what each network is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "network"),
    [
        (MLPConfig((10,)), MLP),
        (UNetConfig(), UNet),
        (DiTConfig(), DiT),
        (EquivariantConfig(5), EquivariantMLP),
        (EquivariantConfig(50), EquivariantMLP),
    ],
)
def test_docstrings_state_the_number_of_weights(config, network):
    stated = re.search(r"([\d,]+) weights", type(config).__doc__)
    count = sum(p.numel() for p in network(config).parameters())
    assert stated and abs(count - int(stated[1].replace(",", ""))) <= 500  # to the thousand


@pytest.mark.parametrize("name", NAMES)
def test_configs_travel_as_json(name):
    network = build(name, label_dropout=0.1, embedding="fourier")
    rebuilt = network_from_config(json.loads(json.dumps(network_to_config(network))))
    assert network_to_config(rebuilt) == network_to_config(network) and type(rebuilt) is type(network)
    rebuilt.load_state_dict(randomise(network).state_dict())
    x, c_noise = inputs(name)
    assert torch.equal(rebuilt.eval()(x, c_noise, label=1), network.eval()(x, c_noise, label=1))


def test_files_from_before_the_new_settings_load():
    """Names of weights, and configs without the fields that came later."""
    old = {"image_channels": 1, "channels": 8, "multipliers": [1, 2], "blocks": 1, "heads": 2, "dropout": 0.0}
    layers = ["norm_in", "norm_out", "conv_in", "modulation", "conv_out"]
    blocks = {"down.0": layers, "down.2": [*layers, "skip"], "middle": layers, "up.0": [*layers, "skip"]}
    blocks["up.2"] = blocks["up.0"]
    names = {f"{block}.{layer}" for block, inside in blocks.items() for layer in inside}
    names |= {"embedding.layers.0", "embedding.layers.2", "first", "down.1", "norm", "last"}
    names |= {"attention.norm", "attention.qkv", "attention.out"}
    unet = network_from_config({"type": "UNet", **old})
    assert set(unet.state_dict()) == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    names = {"embedding.layers.0", "embedding.layers.2", "first", "norm", "last"}
    names |= {"blocks.0.modulation", "blocks.0.layers.0", "blocks.0.layers.3"}
    mlp = network_from_config({"type": "MLP", "event_shape": [3], "width": 8, "depth": 1, "dropout": 0.0})
    assert set(mlp.state_dict()) == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def test_attention_is_softmax_of_scaled_products():
    qkv = torch.randn(2, 5, 3 * 8, dtype=torch.float64)
    q, k, v = qkv.reshape(2, 5, 3, 2, 4).unbind(2)
    weight = (torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(4)).softmax(-1)
    expected = torch.einsum("bhij,bjhd->bihd", weight, v).reshape(2, 5, 8)
    torch.testing.assert_close(attend(qkv, 2), expected, rtol=1e-12, atol=1e-13)  # float64 rounding


@pytest.mark.parametrize(("attention", "heads", "count"), [((), 0, 0), ((), 2, 1), ((0,), 2, 5), ((0, 1), 2, 9)])
def test_attention_follows_the_blocks_of_the_levels_named(attention, heads, count):
    network = UNet(UNetConfig(channels=8, multipliers=(1, 2), blocks=2, heads=heads, attention=attention))
    assert sum(isinstance(module, _Attention) for module in network.modules()) == count


def test_attention_at_full_resolution_lets_distant_pixels_meet():
    def reach(**options) -> float:
        """How much the first pixel hears of those beyond the convolutions' reach."""
        network = randomise(UNet(UNetConfig(channels=8, multipliers=(1,), **options))).eval()
        network.attention = nn.Identity()
        for module in network.modules():  # group norms see the whole image too
            for name in [name for name, child in module.named_children() if isinstance(child, nn.GroupNorm)]:
                setattr(module, name, nn.Identity())
        x = torch.randn(1, 1, 1, 64, requires_grad=True)
        network(x, torch.zeros(1))[0, 0, 0, 0].backward()
        return float(x.grad[..., 40:].abs().max())

    assert reach(heads=0) == 0 and reach(heads=2, attention=(0,)) > 1e-6


def test_rescale_keeps_the_size_of_sums():
    """A fresh block adds nothing: it is its skip over √2, or its skip."""
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    for rescale, factor in ((False, 1.0), (True, math.sqrt(0.5))):
        network = UNet(UNetConfig(channels=8, multipliers=(1,), heads=2, rescale=rescale))
        torch.testing.assert_close(network.middle(x, embedding), factor * x)
        torch.testing.assert_close(network.attention(x), factor * x)


def test_patches_of_a_fresh_transformer_do_not_hear_of_each_other():
    """Gates start at zero (adaLN-Zero), so only the patch that changed answers otherwise; with gates open all do."""
    network = DiT(DiTConfig(2, (4, 6), 2, 16, 2))
    nn.init.normal_(network.last.weight)
    x, c_noise = torch.randn(1, 2, 4, 6), torch.zeros(1)
    changed = x.clone()
    changed[0, 1, 2, 5] += 1  # the patch of rows 2, 3 and columns 4, 5
    moved = (network(changed, c_noise) - network(x, c_noise)).abs().amax((0, 1)) > 1e-6
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[2:, 4:] = True
    assert torch.equal(moved, expected)
    randomise(network)
    assert ((network(changed, c_noise) - network(x, c_noise)).abs() > 1e-6).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 4), (2, 16)])
def test_positions_tell_all_patches_apart(rows, columns):
    positions = grid_positions(rows, columns, 16)
    assert positions.shape == (rows * columns, 16) and positions.isfinite().all()
    if len(positions) > 1:
        assert torch.pdist(positions).min() > 0.05


# relabelling categories -------------------------------------------------------------------------------------------


def relabelling(domain: RegularSimplex) -> torch.Tensor:
    """A random permutation of the categories as the orthogonal matrix it is in isometric coordinates."""
    vertices = domain.from_probabilities(torch.eye(domain.categories, dtype=torch.float64))
    order = torch.randperm(domain.categories)
    while domain.categories > 2 and torch.equal(order, torch.arange(domain.categories)):
        order = torch.randperm(domain.categories)
    return vertices.T[:, order] @ vertices


@pytest.mark.parametrize("categories", [2, 3, 4, 7])
@pytest.mark.parametrize("wall", [True, False])
def test_the_equivariant_network_and_its_score_follow_every_relabelling(categories, wall):
    domain = RegularSimplex(categories)
    network = randomise(EquivariantMLP(EquivariantConfig(categories, 16, 2, classes=2))).double().eval()
    score = NeuralScore(network, Diffusion(domain, VE()), Reflected(domain, wall=wall)).eval()
    x = domain.uniform(torch.float64).sample((8,))
    t, label = torch.linspace(0.1, 0.9, 8, dtype=torch.float64), torch.arange(8) % 2
    for _ in range(4):
        turn = relabelling(domain)
        torch.testing.assert_close(turn @ turn.T, torch.eye(categories - 1, dtype=torch.float64), rtol=0, atol=1e-14)
        for function in (network, score):
            value = function(x, t, label=label)
            # rounding of float64 through the layers
            torch.testing.assert_close(function(x @ turn.T, t, label=label), value @ turn.T, rtol=1e-11, atol=1e-11)
            assert value.std() > 1e-3


def test_a_plain_network_does_not():
    domain = RegularSimplex(4)
    score = NeuralScore(randomise(MLP(MLPConfig((3,), 16, 2))).double(), Diffusion(domain, VE())).eval()
    x, turn = domain.uniform(torch.float64).sample((8,)), relabelling(domain)
    assert (score(x @ turn.T, 0.3) - score(x, 0.3) @ turn.T).abs().max() > 1e-2


@pytest.mark.parametrize("categories", [2, 3, 5])
def test_reflected_scales_the_regular_simplex_by_one_factor_about_its_centroid(categories):
    domain = RegularSimplex(categories)
    corners = domain.from_probabilities(torch.eye(categories, dtype=torch.float64))
    sigma = torch.ones(categories, 1, dtype=torch.float64)
    inside = Reflected(domain).inputs(corners, sigma)
    torch.testing.assert_close(inside, math.sqrt(2) * corners, rtol=1e-7, atol=1e-12)  # the box is known to 1e-8
    assert inside.min() >= -math.sqrt(2) and inside.max() <= 1 + 1e-7
    product = Product(domain, Hypercube((1,)))
    both = torch.cat([corners, torch.zeros(categories, 1, dtype=torch.float64)], -1)
    torch.testing.assert_close(
        Reflected(product).inputs(both, sigma), torch.cat([inside, -torch.ones(categories, 1).double()], -1)
    )
    disk = Ball(2, radius=3.0)  # other domains by their box, as before
    edge = torch.tensor([[3.0, 0.0]])
    torch.testing.assert_close(Reflected(disk).inputs(edge, edge[:, :1]), torch.tensor([[1.0, 0.0]]))


# other people's networks ------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Answers as others do: a tuple, or an object with ``sample``."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(3, 3)

    def forward(self, x, c_noise):
        value = self.inner(x)
        answers = {"tensor": value, "tuple": (value, "more"), "sample": types.SimpleNamespace(sample=value)}
        return (answers | {"list": [], "number": 3.0, "wide": (value[:, :2],)})[self.kind]


@pytest.mark.parametrize("wrap", [lambda network: network, Conservative], ids=["plain", "conservative"])
def test_answers_in_a_tuple_or_under_sample_are_taken(wrap):
    process, x = Diffusion(Euclidean((3,)), VP()), torch.randn(4, 3)
    scores = {
        kind: NeuralScore(wrap(Wrapped(kind)), process)
        for kind in ("tensor", "tuple", "sample", "list", "number", "wide")
    }
    for score in scores.values():
        score.network.load_state_dict(scores["tensor"].network.state_dict())
    for kind in ("tuple", "sample"):
        assert torch.equal(scores[kind](x, 0.3), scores["tensor"](x, 0.3))
    for kind, name in (("list", "list"), ("number", "float")):
        with pytest.raises(TypeError, match=rf"network: got an output of type {name}, expected a tensor .* `sample`"):
            scores[kind](x, 0.3)
    with pytest.raises(ValueError, match=r"network: got an output of shape \(4, 2\) for an input of shape \(4, 3\)"):
        scores["wide"](x, 0.3)


def test_the_unet_of_diffusers_works_out_of_the_box(tmp_path):
    diffusers = pytest.importorskip("diffusers")

    def unet() -> nn.Module:
        return diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=4,
            num_class_embeds=3,
        )

    process = Diffusion(Hypercube(IMAGE), VE())
    score = NeuralScore(unet(), process)
    x, label = torch.rand(2, 3, *IMAGE), torch.arange(6).reshape(2, 3) % 3
    score.loss(x, class_labels=label).backward()
    assert all(p.grad is not None for p in score.parameters())
    score.eval()
    with torch.no_grad():
        got = score(x, 0.3, class_labels=label)
        direct = score.network(
            2 * x[0] - 1, score.preconditioning.c_noise(process.schedule.sigma(torch.full((3,), 0.3))), label[0]
        )
        unit = score.preconditioning.unit(process.schedule.sigma(torch.tensor(0.3)).reshape(1, 1, 1, 1))
        plain = NeuralScore(score.network, process, Reflected(process.domain, wall=False))(
            x[0], 0.3, class_labels=label[0]
        )
    assert got.shape == x.shape
    torch.testing.assert_close(plain, unit * direct.sample)
    score.save(tmp_path / "a")
    with pytest.raises(ValueError, match="got class 'UNet2DModel'"):
        NeuralScore.load(tmp_path / "a")
    loaded = NeuralScore.load(tmp_path / "a", unet())
    with torch.no_grad():
        assert torch.equal(loaded(x, 0.3, class_labels=label), got)


def test_implicit_score_matching_differentiates_attention_twice():
    """Fused attention has no second derivative; the loss asks for one."""
    score = NeuralScore(randomise(build("dit")), Diffusion(Hypercube(IMAGE), VE()))
    score.loss(torch.rand(2, *IMAGE), SlicedScoreMatching(), label=1).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in score.parameters())
