"""Networks, preconditionings, the score made of them, and the file it is kept in."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from carom.domains import Euclidean, Hypercube, Orthant
from carom.domains.interval import interval_score
from carom.processes import VE, VP, Diffusion
from carom.scores.neural import (
    MLP,
    Conservative,
    DiT,
    DiTConfig,
    EDMPreconditioning,
    EquivariantConfig,
    EquivariantMLP,
    MLPConfig,
    NeuralScore,
    Reflected,
    UNet,
    UNetConfig,
    digits,
    split,
)
from carom.solvers import AdaptiveODE, Heun, ReflectedEulerMaruyama, karras, sample

IMAGE = (1, 8, 8)
SMALL = UNetConfig(channels=8, multipliers=(1, 2), heads=2)


def randomise(network: nn.Module) -> nn.Module:
    """Weights everywhere, also in the layers that start at zero."""
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.2)
    return network


def image_score(**options) -> NeuralScore:
    process = Diffusion(Hypercube(IMAGE), VE())
    return NeuralScore(randomise(UNet(SMALL)), process, Reflected(process.domain, **options)).eval()


def vector_score(process: Diffusion | None = None, width: int = 16) -> NeuralScore:
    process = process or Diffusion(Euclidean((3,)), VP())
    return NeuralScore(randomise(MLP(MLPConfig(process.domain.event_shape, width, 2))), process).eval()


class Labelled(nn.Module):
    """A network of somebody's own: an embedding for a label, tied weights, a channels-last convolution, a buffer."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1).to(memory_format=torch.channels_last)
        self.label = nn.Embedding(10, channels)
        self.tied = nn.Embedding(10, channels)
        self.tied.weight = self.label.weight
        self.last = nn.Conv2d(channels, 1, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, c_noise, label):
        hidden = self.first(x) + (self.label(label) + self.tied(label))[..., None, None] * c_noise[:, None, None, None]
        return self.last(hidden.tanh())


# networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "event"),
    [
        (MLP(MLPConfig((5,), 16, 1)), (5,)),
        (MLP(MLPConfig((), 16, 1)), ()),
        (MLP(MLPConfig((2, 3), 16, 2, dropout=0.1)), (2, 3)),
        (UNet(SMALL), IMAGE),
        (
            UNet(UNetConfig(image_channels=3, channels=8, multipliers=(1, 2, 2), blocks=2, heads=0, dropout=0.1)),
            (3, 12, 4),
        ),
        (UNet(UNetConfig(channels=12, multipliers=(1,))), (1, 5, 7)),
        (UNet(UNetConfig(channels=8, heads=2, attention=(0, 2), rescale=True, embedding="fourier")), IMAGE),
        (DiT(DiTConfig(width=16, depth=2)), IMAGE),
        (DiT(DiTConfig(image_channels=3, image_size=(4, 6), width=12, depth=1, heads=3, dropout=0.1)), (3, 4, 6)),
        (EquivariantMLP(EquivariantConfig(5, 16, 2)), (4,)),
        (EquivariantMLP(EquivariantConfig(2, 16, 1, dropout=0.1)), (1,)),
        (Conservative(MLP(MLPConfig((2, 3), 16, 1))), (2, 3)),
        (Conservative(UNet(SMALL)), IMAGE),
    ],
)
def test_networks_keep_the_shape_start_at_zero_and_look_at_each_row_by_itself(network, event):
    x, c_noise = torch.randn(6, *event), torch.linspace(-1, 0.2, 6)
    assert torch.equal(network(x, c_noise), torch.zeros(6, *event))
    randomise(network).eval()
    whole = network(x, c_noise)
    assert whole.shape == x.shape and whole.std() > 0
    # to rounding: convolutions depend on the batch size
    torch.testing.assert_close(network(x[2:3], c_noise[2:3]), whole[2:3])
    assert (network(x, c_noise + 0.5) - whole).abs().amax() > 1e-3


@pytest.mark.parametrize(
    "network",
    [
        MLP(MLPConfig(IMAGE, 16, 1, dropout=0.5)),
        UNet(UNetConfig(channels=8, dropout=0.5)),
        DiT(DiTConfig(width=16, depth=1, dropout=0.5)),
        EquivariantMLP(EquivariantConfig(5, 16, 1, dropout=0.5)),
        Conservative(MLP(MLPConfig(IMAGE, 16, 1, dropout=0.5))),
    ],
    ids=["mlp", "unet", "dit", "equivariant", "conservative"],
)
def test_dropout_drops_in_training_only(network):
    event = (4,) if isinstance(network, EquivariantMLP) else IMAGE
    x, c_noise = torch.randn(2, *event), torch.zeros(2)
    randomise(network)
    assert not torch.equal(network(x, c_noise), network(x, c_noise))
    network.eval()
    assert torch.equal(network(x, c_noise), network(x, c_noise))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNetConfig(channels=0), r"UNetConfig.channels: got 0, expected a whole number"),
        (lambda: UNetConfig(channels=8, heads=3), r"heads: got 3, expected 0 or a divisor of the lowest level's 32"),
        (lambda: UNetConfig(multipliers=()), r"multipliers: got \(\)"),
        (lambda: MLPConfig((3,), width=2.5), r"MLPConfig.width: got 2.5"),
        (lambda: MLPConfig((3,), dropout=1.0), r"dropout: got 1"),
        (
            lambda: UNet(SMALL)(torch.zeros(2, 1, 7, 8), torch.zeros(2)),
            r"UNet: got x of shape \(2, 1, 7, 8\).*divisible by 2",
        ),
        (
            lambda: MLP(MLPConfig((3,)))(torch.zeros(2, 4), torch.zeros(2)),
            r"MLP: got x of shape \(2, 4\), expected \[B, 3\]",
        ),
        (lambda: UNet(SMALL)(torch.zeros(2, 3, 8, 8), torch.zeros(2)), r"expected \[B, 1, H, W\]"),
        (lambda: UNetConfig(attention=(3,)), r"attention: got \(3,\), expected levels from 0 to 2"),
        (lambda: UNetConfig(attention=(0,), heads=0), r"attention: got \(0,\) with heads=0"),
        (lambda: UNetConfig(heads=32, attention=(0,)), r"heads: got 32, expected 0 or a divisor of level 0's 16"),
        (lambda: UNetConfig(heads=-1), r"heads: got -1"),
        (lambda: DiTConfig(image_size=7), r"image_size: got 7, expected one or two multiples of the patch 2"),
        (lambda: DiTConfig(image_size=(8, 9)), r"image_size: got \(8, 9\)"),
        (lambda: DiTConfig(image_size=(8, 8, 8)), r"image_size: got \(8, 8, 8\)"),
        (lambda: DiTConfig(width=18, heads=2), r"width: got 18, expected a multiple of 4"),
        (lambda: DiTConfig(heads=3), r"heads: got 3"),
        (lambda: DiTConfig(depth=0), r"DiTConfig.depth: got 0"),
        (
            lambda: DiT(DiTConfig())(torch.zeros(2, 1, 8, 6), torch.zeros(2)),
            r"DiT: got x of shape \(2, 1, 8, 6\), expected \[B, 1, 8, 8\]",
        ),
        (lambda: EquivariantConfig(1), r"categories: got 1, expected a whole number of at least 2"),
        (lambda: EquivariantMLP(EquivariantConfig(4))(torch.zeros(2, 4), torch.zeros(2)), r"expected \[B, 3\]"),
        (
            lambda: MLPConfig((3,), embedding="random"),
            r"embedding: got 'random', expected one of 'sinusoidal', 'fourier'",
        ),
        (lambda: MLPConfig((3,), classes=-1), r"classes: got -1"),
        (lambda: MLPConfig((3,), classes=2, label_dropout=1.0), r"label_dropout: got 1, expected a share below 1"),
        (lambda: MLPConfig((3,), label_dropout=0.1), r"label_dropout: got 0.1 with classes=0"),
    ],
)
def test_networks_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# preconditionings -------------------------------------------------------------------------------------------------


def test_edm_coefficients_are_those_of_the_paper():
    """formulas.md §15, sigma_data = 0.5."""
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    edm = EDMPreconditioning()
    expected = torch.tensor(
        [
            [0.999984000256, 0.5, 3.90609741807e-5],
            [0.00199998400019, 0.353553390593, 0.499990234661],
            [1.99998400019, 1.41421356237, 0.0124997558665],
            [-1.55365202461, -0.17328679514, 1.09550665867],
        ],
        dtype=torch.float64,
    )
    got = torch.stack([edm.c_skip(sigma), edm.c_out(sigma), edm.c_in(sigma), edm.c_noise(sigma)])
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=0)  # the digits given


def test_edm_score_is_that_of_its_denoiser():
    edm = EDMPreconditioning(sigma_data=0.7, mean=0.3)
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)[:, None]
    raw, x = torch.randn(2, 9, 4, dtype=torch.float64)
    # D − x cancels: relative to x/σ² the difference is exact to a few ulp
    torch.testing.assert_close(
        edm.score(raw, x, sigma) * sigma**2, edm.denoised(raw, x, sigma) - x, rtol=1e-12, atol=1e-14
    )
    more = edm.score(raw + 1, x, sigma) - edm.score(raw, x, sigma)
    torch.testing.assert_close(more, edm.unit(sigma).expand(9, 4), rtol=1e-11, atol=1e-14)


def interval_information(sigma: float) -> float:
    """E score² on [0, 1] by quadrature: x0 graded towards the walls (symmetry: half of them), x on a fine midpoint grid."""
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    x0, weight = u**3 / 2, 3 * u**2 / 400
    z = torch.linspace(-8, 8, 401, dtype=torch.float64)
    gauss = (-0.5 * z**2).exp() / (-0.5 * z**2).exp().sum()
    x = (x0[:, None] + sigma * z).remainder(2)
    x = torch.where(x > 1, 2 - x, x)
    score = interval_score(x, x0[:, None].expand_as(x), torch.full_like(x0[:, None], sigma), 0.0, 1.0)
    return float((score**2 @ gauss * weight).sum())


def test_the_unit_of_reflected_is_the_root_of_the_fisher_information():
    reflected = Reflected(Hypercube((1,)))
    for sigma in (0.003, 0.03, 0.1, 0.2, 0.3, 0.36, 0.42, 0.5, 0.6, 0.8, 1.2, 2.0):
        unit = float(reflected.unit(torch.tensor([[sigma]], dtype=torch.float64)))
        assert unit == pytest.approx(math.sqrt(interval_information(sigma)), rel=5e-3)  # as its docstring claims


def test_reflected_treats_each_axis_in_its_own_width():
    box, cube = Hypercube((2,), low=[0.0, -3.0], high=[1.0, 1.0]), Hypercube((2,))
    sigma = torch.logspace(-2, 0.3, 7, dtype=torch.float64)[:, None]
    unit = Reflected(box).unit(sigma)
    torch.testing.assert_close(unit[:, :1], Reflected(cube).unit(sigma))
    torch.testing.assert_close(unit[:, 1:], Reflected(cube).unit(sigma / 4) / 4)
    corners = torch.tensor([[0.0, -3.0], [1.0, 1.0], [0.5, -1.0]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(Reflected(box).inputs(corners, sigma[:3]), expected)
    assert torch.equal(Reflected(box).c_noise(4 * sigma), Reflected(cube).c_noise(sigma))  # heard in the longest width


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 50.0, 1e4])
def test_reflected_stays_finite_at_every_level(sigma):
    reflected, sigma = Reflected(Hypercube((1,))), torch.tensor([[sigma]])
    assert 0 < float(reflected.unit(sigma)) < 1.01 / float(sigma) + 1e-3 and reflected.c_noise(sigma).isfinite()


def test_with_the_wall_the_normal_component_vanishes_at_it_and_only_there():
    x = torch.rand(4, *IMAGE)
    x[0, 0, :, 0], x[1, 0, 0, :] = 0.0, 1.0
    at_wall = (x == 0) | (x == 1)
    t = torch.tensor(0.4)
    with_wall, without = image_score(wall=True), image_score(wall=False)
    without.network.load_state_dict(with_wall.network.state_dict())
    hard, soft = with_wall(x, t), without(x, t)
    assert torch.equal(hard[at_wall], torch.zeros(int(at_wall.sum()))) and (soft[at_wall] != 0).all()
    sigma = float(with_wall.process.schedule.sigma(t))
    inside = (x > sigma) & (x < 1 - sigma)
    assert sigma < 0.25 and inside.any() and torch.equal(hard[inside], soft[inside])


def test_preconditionings_refuse():
    with pytest.raises(TypeError, match=r"Reflected: got Euclidean\(\(2,\)\), expected a Hypercube"):
        Reflected(Euclidean((2,)))
    with pytest.raises(ValueError, match=r"sigma_data: got 0"):
        EDMPreconditioning(0.0)
    with pytest.raises(ValueError, match=r"preconditioning: got one made for .*expected one for"):
        NeuralScore(UNet(SMALL), Diffusion(Hypercube(IMAGE), VE()), Reflected(Hypercube(IMAGE, low=-1.0)))


# the score --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_batch_shape_and_dtype(batch, dtype):
    for score in (image_score(), vector_score(), vector_score(Diffusion(Orthant((2, 2)), VP()))):
        event = score.process.domain.event_shape
        x = torch.rand(*batch, *event, dtype=dtype)
        t = torch.rand(batch, dtype=dtype) * 0.5 + 0.2
        got = score(x, t.reshape(*batch, *(1 for _ in event)))
        assert got.shape == x.shape and got.dtype == dtype and got.isfinite().all()
        torch.testing.assert_close(score(x, t), got, rtol=0, atol=0)
        if len(batch) == 2 and x.numel():
            torch.testing.assert_close(score(x[1, 2], t[1, 2]), got[1, 2], rtol=1e-4, atol=1e-5)


def test_time_as_a_number_a_scalar_or_per_sample_says_the_same():
    score, x = image_score(), torch.rand(3, *IMAGE)
    expected = score(x, 0.3)
    for t in (torch.tensor(0.3), torch.full((3,), 0.3), torch.full((3, 1, 1, 1), 0.3)):
        assert torch.equal(score(x, t), expected)


def test_the_score_of_a_scaled_process_is_that_of_the_heat_flow():
    """x_t = s X_σ: score(x, t) = score_X(x/s, σ)/s, and with F = 0 EDM is the score of N(s·μ, s²(d² + σ²))."""
    process = Diffusion(Euclidean((3,)), VP())
    score = NeuralScore(MLP(MLPConfig((3,))), process, EDMPreconditioning(0.6, mean=0.4))
    x, t = torch.randn(8, 3, dtype=torch.float64), torch.linspace(0.05, 1, 8, dtype=torch.float64)[:, None]
    scale, sigma = process.schedule.scale(t), process.schedule.sigma(t)
    exact = -(x - 0.4 * scale) / (scale**2 * (0.36 + sigma**2))
    torch.testing.assert_close(score(x, t), exact, rtol=1e-12, atol=0)


def test_low_precision_stays_in_the_network():
    score = image_score()
    x = torch.rand(4, *IMAGE, dtype=torch.float64)
    expected = score(x, 0.4)
    seen = []
    score.network.bfloat16().register_forward_pre_hook(lambda _, args: seen.extend(v.dtype for v in args))
    got = score(x, 0.4)
    # the image in the network's precision, the noise level not: in bfloat16 it would be another level
    assert got.dtype == torch.float64 and seen == [torch.bfloat16, torch.float32]
    # bfloat16 has 8 bits: some per cent through this network, against a score of this size
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_condition_reaches_the_network_with_the_batch_flattened():
    process = Diffusion(Hypercube(IMAGE), VE())
    score = NeuralScore(Labelled(), process).eval()
    x, label = torch.rand(2, 3, *IMAGE), torch.arange(6).reshape(2, 3)
    got = score(x, 0.3, label=label)
    flat = score(x.reshape(6, *IMAGE), 0.3, label=label.reshape(6))
    assert torch.equal(got.reshape(6, *IMAGE), flat)
    torch.testing.assert_close(score(x[1, 0], 0.3, label=label[1, 0]), got[1, 0])
    with pytest.raises(TypeError, match="lable"):
        score(x, 0.3, lable=label)


@pytest.mark.parametrize("solver", [Heun(), ReflectedEulerMaruyama(), AdaptiveODE(rtol=0.1, atol=0.1)], ids=repr)
def test_solvers_take_it_as_any_score_and_the_box_holds(solver):
    """Also the adaptive one, which evaluates the rows at work only (``rows``), each at a time of its own."""
    score = image_score()
    solution = sample(score.process, score, solver, karras(score.process, 6), shape=(2, 3), seed=0)
    assert solution.x.shape == (2, 3, *IMAGE) and solution.ok.all() and not solution.x.requires_grad
    assert float(solution.x.min()) >= 0 and float(solution.x.max()) <= 1


def test_the_score_refuses():
    score = image_score()
    with pytest.raises(ValueError, match=r"x: got shape \(2, 8, 8\), expected \[\*batch, 1, 8, 8\]"):
        score(torch.zeros(2, 8, 8), 0.5)
    with pytest.raises(TypeError, match=r"x: got dtype torch.int64"):
        score(torch.zeros(2, *IMAGE, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match=r"t: got shape \(3,\)"):
        score(torch.zeros(2, *IMAGE), torch.full((3,), 0.5))
    with pytest.raises(ValueError, match=r"network: got an output of shape \(2, 64\)"):
        net = type("Flat", (nn.Module,), {"forward": lambda self, x, c: x.flatten(1)})()
        NeuralScore(net, score.process)(torch.zeros(2, *IMAGE), 0.5)
    with pytest.raises(TypeError, match=r"network: got function, expected an nn\.Module"):
        NeuralScore(lambda x, c: x, score.process)
    with pytest.raises(TypeError, match=r"process: got VE, expected a Diffusion"):
        NeuralScore(UNet(SMALL), VE())


def test_the_score_compiles_whole_and_differentiates():
    score, x = vector_score(), torch.randn(4, 3)
    compiled = torch.compile(score, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, torch.tensor(0.3)), score(x, torch.tensor(0.3)))
    score = vector_score(Diffusion(Euclidean((2,)), VE()))
    score.network.double()
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: score(v, 0.2), (x,))


# moving average and file ------------------------------------------------------------------------------------------


def test_the_moving_average_is_swapped_in_and_back_whatever_happens():
    score, x = image_score(), torch.rand(2, *IMAGE)
    with pytest.raises(RuntimeError, match="no moving average"), score.ema_weights():
        pass
    first = score(x, 0.3)
    score.track_ema()
    randomise(score.network)
    second = score(x, 0.3)
    assert not torch.equal(first, second)
    with pytest.raises(KeyError), score.ema_weights():
        assert torch.equal(score(x, 0.3), first)
        with score.ema_weights(False):
            assert torch.equal(score(x, 0.3), second)
        assert torch.equal(score(x, 0.3), first)
        raise KeyError
    assert torch.equal(score(x, 0.3), second)
    before = [p.clone() for p in score.ema.parameters()]
    score.update_ema(0.75)
    for mean, old, new in zip(score.ema.parameters(), before, score.network.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.75 * old + 0.25 * new)
        assert not mean.requires_grad
    assert {k.split(".")[0] for k in score.state_dict()} == {"network", "ema"}


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("make", [image_score, vector_score], ids=["unet", "mlp"])
def test_a_file_gives_back_the_same_score(tmp_path, make, ema):
    score = make()
    if ema:
        score.track_ema()
        randomise(score.network)
    score.save(tmp_path / "score.safetensors")
    loaded = NeuralScore.load(tmp_path / "score.safetensors")
    x = torch.rand(3, *score.process.domain.event_shape)
    assert not loaded.training and loaded.use_ema == ema
    assert loaded.header() == score.header() and loaded.network.config == score.network.config
    for use in {False, ema}:
        with score.ema_weights(use), loaded.ema_weights(use):
            assert torch.equal(loaded(x, 0.4), score(x, 0.4))
    assert [p.name for p in tmp_path.iterdir()] == ["score.safetensors"]


def test_dtype_and_preconditioning_travel(tmp_path):
    process = Diffusion(Hypercube((2,), low=[0.0, -1.0], high=[1.0, 1.0]), VE(sigma_min=0.02, sigma_max=3.0))
    score = NeuralScore(MLP(MLPConfig((2,), 8, 1)).double(), process, Reflected(process.domain, wall=False))
    score.save(tmp_path / "a")
    loaded = NeuralScore.load(tmp_path / "a")
    assert next(loaded.network.parameters()).dtype == torch.float64
    assert loaded.preconditioning.config() == {"type": "Reflected", "wall": False}
    assert loaded.process.config() == process.config()


def test_a_network_of_ones_own_travels_with_its_weights_only(tmp_path):
    process = Diffusion(Hypercube(IMAGE), VE())
    score, path = NeuralScore(Labelled(), process).eval(), tmp_path / "own"
    score.save(path)
    with pytest.raises(ValueError, match=r"network: got class 'Labelled'.*load\(path, network=…\)"):
        NeuralScore.load(path)
    with pytest.raises(ValueError, match=r"network: got UNet, but .* holds the weights of Labelled"):
        NeuralScore.load(path, UNet(SMALL))
    other = Labelled(channels=5)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(
        ValueError, match=r"weights that do not fit Labelled.*first.weight of shape \(4, 1, 3, 3\) for \(5"
    ):
        NeuralScore.load(path, other)
    assert all(torch.equal(p, q) for p, q in zip(before, other.parameters(), strict=True))
    own = Labelled()
    loaded = NeuralScore.load(path, own)
    x, label = torch.rand(3, *IMAGE), torch.tensor([1, 2, 3])
    assert loaded.network is own and own.tied.weight is own.label.weight
    torch.testing.assert_close(loaded(x, 0.3, label=label), score(x, 0.3, label=label), rtol=0, atol=0)


def rewrite(path, **changes):
    """The file with some metadata changed."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["header"]) | changes.pop("header", {})
    save_file(tensors, path, metadata | {"header": json.dumps(header)} | changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "no readable safetensors file.*cut short"),
        (lambda p: p.write_bytes(b"\x80\x04."), "no readable safetensors file"),
        (lambda p: p.write_bytes(b""), "no readable safetensors file"),
        (lambda p: save_file({"a": torch.zeros(2)}, p), "of format None, expected 'carom.neural_score'"),
        (lambda p: rewrite(p, format="other"), "of format 'other'"),
        (lambda p: rewrite(p, version="2"), "of version '2', expected at most 1; update carom"),
        (lambda p: rewrite(p, version="one"), "of version 'one'"),
        (lambda p: rewrite(p, header={"network": 3}), "damaged header"),
        (lambda p: rewrite(p, header={"colour": 1}), "unknown header entries colour"),
        (
            lambda p: rewrite(p, header={"network": {"type": "MLP", "event_shape": [3], "wdith": 3}}),
            "unknown settings wdith",
        ),
        (lambda p: rewrite(p, header={"network": {"type": "MLP", "event_shape": [3], "width": 9}}), "do not fit MLP"),
        (
            lambda p: rewrite(p, header={"preconditioning": {"type": "EDMPreconditioning", "d": 1}}),
            "unknown arguments d",
        ),
        (lambda p: rewrite(p, header={"preconditioning": {"type": "Mine"}}), "got type 'Mine'"),
        (lambda p: rewrite(p, header={"process": {"schedule": {"type": "VP"}}}), "domain"),
    ],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path, damage, message):
    path = tmp_path / "score.safetensors"
    vector_score().save(path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        NeuralScore.load(path)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="got 'nowhere', which does not exist"):
        NeuralScore.load("nowhere")


def test_a_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").touch()
    NeuralScore(MLP(MLPConfig((1,), 8, 1)), Diffusion(Hypercube((1,)), VE())).save(tmp_path / "c")
    assert (tmp_path / "c").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path, score = tmp_path / "score", vector_score()
    score.save(path)
    old = path.read_bytes()
    randomise(score.network)

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        score.save(path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["score"]


# data -------------------------------------------------------------------------------------------------------------


def test_digits_and_their_split():
    data = digits()
    assert data.shape == (1797, *IMAGE) and data.dtype == torch.float32
    Hypercube(IMAGE).check(data)
    assert torch.equal(data.mul(16).unique(), torch.arange(17.0))
    train, held_out = split(data)
    assert len(held_out) == 359 and torch.equal(split(data)[0], train)
    both = torch.cat([train, held_out]).flatten(1)
    assert torch.equal(both.sum(1).sort().values, data.flatten(1).sum(1).sort().values)
    assert not torch.equal(split(data, seed=1)[1], held_out)
    with pytest.raises(ValueError, match="held_out: got 1"):
        split(data, held_out=1)
    with pytest.raises(ValueError, match="data: got N = 1, expected at least 2 rows"):
        split(data[:1])
