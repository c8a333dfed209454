"""The conventions of EDM, k-diffusion, score_sde and DDPM checkpoints, against small stand-ins written from their definitions."""

import copy
import itertools
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from carom.domains import Euclidean, Hypercube
from carom.processes import EDM, VE, VP, CosineVP, Diffusion, Discrete, FlowMatching, SubVP, retime
from carom.scores import (
    Denoiser,
    GaussianMixtureScore,
    from_ddpm_checkpoint,
    from_edm,
    from_k_diffusion,
    from_prediction,
    from_score_sde,
    to_k_diffusion,
)
from carom.scores.neural import MLP, MLPConfig, NeuralScore
from carom.solvers import DDIM, Euler, iddpm, karras, sample, uniform

F64 = torch.float64
PLANE = Euclidean((2,))


def mixture(schedule) -> GaussianMixtureScore:
    return GaussianMixtureScore(
        Diffusion(PLANE, schedule), [0.3, 0.7], [[0.5, -0.3], [-1.0, 0.8]], [[0.5, 0.2], [0.3, 0.4]]
    )


def points(n=6, dtype=F64):
    return torch.randn(n, 2, dtype=dtype, generator=torch.Generator().manual_seed(2))


def denoised(x, sigma):
    """E[x0 | x0 + σε = x] for the mixture, in closed form."""
    truth = mixture(EDM(1e-3, 1e3))
    return truth.prediction(x, (sigma / 1e3)[:, None])[0]


# ---------------------------------------------------------------------------------------------------------- EDM and k-diffusion


class EDMNet:
    """D = c_skip x + c_out F(c_in x, ¼ ln σ, labels) around the F that makes D exact; σ per sample, [B, C, H, W] as theirs."""

    img_channels, img_resolution, sigma_data = 2, 1, 0.5

    def __init__(self, sigma_min=0.0, sigma_max=math.inf):
        self.sigma_min, self.sigma_max, self.seen = sigma_min, sigma_max, []

    def __call__(self, x, sigma, class_labels=None):
        self.seen.append((sigma, class_labels))
        sigma = sigma.reshape(-1, 1, 1, 1)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        exact = denoised(x[:, :, 0, 0], sigma.flatten())[:, :, None, None]
        network = (exact - c_skip * x) / c_out
        return c_skip * x + c_out * network


def test_an_edm_network_gives_the_exact_score_at_any_sigma() -> None:
    net, truth = EDMNet(), mixture(EDM())
    process, score = from_edm(net)
    assert process.domain.event_shape == (2, 1, 1)
    assert (process.schedule.sigma_min, process.schedule.sigma_max) == (0.002, 80)
    x, t = points(3), torch.tensor([0.001, 0.02, 1.0], dtype=F64)
    found = score(x[:, :, None, None], t.reshape(3, 1, 1, 1), class_labels=torch.tensor([1, 2, 3]))
    # D to 1e-16, divided by σ² ≥ 6e-3
    torch.testing.assert_close(found[:, :, 0, 0], truth(x, t[:, None]), rtol=1e-11, atol=1e-11)
    sigma, labels = net.seen[-1]
    torch.testing.assert_close(sigma, 80 * t)
    assert labels.tolist() == [1, 2, 3]


def test_an_edm_network_samples_as_their_deterministic_sampler_does() -> None:
    """Their loop without churn and correction: d = (x − D)/σ, x += (σ' − σ) d, from σ_max down to 0."""
    net = EDMNet()
    process, score = from_edm(net)
    times = karras(process, 12)
    x = 80 * points(5)[:, :, None, None]
    ours = sample(process, score, Euler(), times, shape=5, initial=x).x
    theirs, sigmas = x, [*(80 * times).tolist(), 0.0]
    for now, then in itertools.pairwise(sigmas):
        d = (theirs - net(theirs, torch.full((5,), now, dtype=F64))) / now
        theirs = theirs + (then - now) * d
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_an_edm_network_is_used_at_a_vp_state_by_retiming() -> None:
    """D(x/α, σ/α) of numerics: the network sees the unscaled state at the noise-to-signal ratio."""
    process, score = from_edm(EDMNet(), sigma_max=200.0)
    vp = Diffusion(process.domain, VP())
    x = points(4)
    found = retime(score, process, vp)(x[:, :, None, None], 0.6)[:, :, 0, 0]
    torch.testing.assert_close(found, mixture(VP())(x, 0.6), rtol=1e-10, atol=1e-10)


def test_networks_on_a_table_get_their_own_levels() -> None:
    levels = torch.tensor([0.01, 1.0, 50.0], dtype=F64)

    class Rounding(EDMNet):
        def round_sigma(self, sigma):
            return levels[(sigma[:, None].log() - levels.log()).abs().argmin(1)]

    net = Rounding(0.02, 60.0)
    process, score = from_edm(net)
    assert (process.schedule.sigma_min, process.schedule.sigma_max) == (0.02, 60)
    score(
        points(3)[:, :, None, None],
        process.schedule.time(torch.tensor([0.02, 1.2, 60.0], dtype=F64)).reshape(-1, 1, 1, 1),
    )
    assert net.seen[-1][0].tolist() == levels.tolist()
    assert len(iddpm(process, 5)) == 5  # the grid of such levels


def test_k_diffusion_denoisers_come_in() -> None:
    process, score = from_k_diffusion(denoised, (2,), sigma_max=50.0)
    assert (process.schedule.sigma_min, process.schedule.sigma_max) == (0.002, 50)
    x = points()
    for sigma in (0.1, 2.0, 50.0):
        torch.testing.assert_close(score(x, sigma / 50), mixture(EDM())(x, sigma / 80), rtol=1e-11, atol=1e-11)


def test_an_eps_network_in_k_diffusion_is_the_same_model() -> None:
    """Their wrapper of a network trained on a table: D = x − σ·ε(x/√(σ² + 1), t(σ))."""
    process = Diffusion(PLANE, Discrete.from_betas("linear"))
    network = lambda x, label: torch.tanh(x + label[:, None] / 500)
    score = from_prediction(network, process, "noise")
    table = process.schedule.alphas_cumprod
    sigmas = ((1 - table) / table).sqrt()

    def wrapped(x, sigma):
        label = (sigmas[:, None] - sigma).abs().argmin(0).double()
        return x - sigma[:, None] * network(x / (sigma[:, None] ** 2 + 1).sqrt(), label)

    model = to_k_diffusion(score)
    levels = sigmas[[3, 400, 999]]
    x = points(3) * levels[:, None]
    torch.testing.assert_close(model(x, levels), wrapped(x, levels), rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------------------------ going out


@pytest.mark.parametrize(
    "schedule", [VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(50)], ids=repr
)
def test_every_score_goes_out_as_a_denoiser(schedule) -> None:
    truth = mixture(schedule)
    x, sigma = points(3), torch.tensor([0.1, 1.0, 20.0], dtype=F64)
    for score in (truth, lambda x, t: truth(x, t)):  # with and without predictions of its own
        model = to_k_diffusion(score, truth.process)
        assert isinstance(model, Denoiser) and "sigma from" in repr(model)
        for given in (sigma, sigma[:, None]):
            # X + σ²·score, of numbers up to 20
            torch.testing.assert_close(model(x, given), denoised(x, sigma), rtol=1e-9, atol=1e-10)


def test_going_out_and_coming_back_is_the_identity() -> None:
    truth = mixture(VP())
    process, back = from_k_diffusion(to_k_diffusion(truth))
    assert process.domain.event_shape == (2,) and process.schedule.sigma_max == VP().sigma_max
    again = retime(back, process, truth.process)
    for t in (0.05, 0.4, 0.9):
        # D to 1e-15, divided by σ² ≥ 0.01
        torch.testing.assert_close(again(points(), t), truth(points(), t), rtol=1e-10, atol=1e-10)
    for dtype in (torch.float32, F64):
        _, score = from_k_diffusion(denoised, (2,))
        x, sigma = points(3, dtype), torch.tensor([0.1, 1.0, 80.0], dtype=dtype)
        tolerance = 8 * torch.finfo(dtype).eps  # σ → t → σ, and D's answer to it
        torch.testing.assert_close(to_k_diffusion(score)(x, sigma), denoised(x, sigma), rtol=tolerance, atol=tolerance)


def test_one_sigma_stands_for_every_picture() -> None:
    process = Diffusion(Euclidean((1, 2, 2)), VP())
    model = to_k_diffusion(from_prediction(lambda x, t: x * t.reshape(-1, 1, 1, 1), process, "noise"))
    x = torch.randn(3, 1, 2, 2, dtype=F64)
    expected = model(x, torch.full((3,), 5.0, dtype=F64))
    for sigma in (5.0, torch.tensor(5.0, dtype=F64), torch.full((3, 1, 1, 1), 5.0, dtype=F64)):
        assert torch.equal(model(x, sigma), expected)


@pytest.mark.parametrize("schedule", [VP(), VE(), EDM(), FlowMatching()], ids=repr)
def test_in_float32_a_network_goes_out_as_exact_as_its_score_allows(schedule) -> None:
    """D = X + σ²·score, of numbers of X's size in float32. A σ(t) found in float32 would multiply that, under VE by 9."""
    torch.manual_seed(0)
    coarse = NeuralScore(MLP(MLPConfig((2,), 16, 1)), Diffusion(PLANE, schedule)).eval()
    nn.init.normal_(coarse.network.last.weight)
    fine = copy.deepcopy(coarse).double()
    sigma = torch.linspace(46, 50, 200)
    x = points(200, torch.float32) * sigma[:, None]
    with torch.no_grad():
        error = to_k_diffusion(coarse)(x, sigma) - to_k_diffusion(fine)(x.double(), sigma.double())
    # half a unit in the last place for each of x/s, c_skip, F's share, their sum and the product with σ²
    assert float(error.abs().max()) <= 5 / 2 * torch.finfo(torch.float32).eps * float(x.abs().max())


def test_their_samplers_run_our_models() -> None:
    """A sampler as they write it, with extra arguments: Euler in σ equals ours in the same coordinates and DDIM in the model's own."""
    truth = mixture(VP())

    def conditioned(x, t, *, shift):
        return truth(x, t) + shift

    model = to_k_diffusion(conditioned, truth.process)
    ve = Diffusion(PLANE, EDM(0.02, 100.0))
    times = karras(ve, 14)
    sigmas = torch.cat([100 * times, torch.zeros(1, dtype=F64)])
    extra, x = {"shift": 0.3}, 100 * points(5)
    theirs, s_in = x, x.new_ones([5])
    for i in range(len(sigmas) - 1):
        d = (theirs - model(theirs, sigmas[i] * s_in, **extra)) / sigmas[i]
        theirs = theirs + d * (sigmas[i + 1] - sigmas[i])
    ours = sample(ve, retime(conditioned, truth.process, ve), Euler(), times, shape=5, initial=x, condition=extra).x
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    vp_times = truth.process.level(sigma=100 * times).t
    start = truth.process.schedule.scale(vp_times[0]) * x
    own = sample(truth.process, conditioned, DDIM(), vp_times, shape=5, initial=start, condition=extra).x
    torch.testing.assert_close(own, theirs, rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------------------------------------- score_sde


@pytest.mark.parametrize("sde", ["vp", "subvp", SubVP(0.2, 10.0)], ids=repr)
def test_continuous_vp_networks_see_999t_and_predict_noise(sde) -> None:
    schedule = {"vp": VP(), "subvp": SubVP()}.get(sde, sde)
    truth = mixture(schedule)

    def net(x, labels):
        """−std·score, as a network of theirs is trained to be."""
        t = (labels / 999)[:, None]
        return -schedule.std(t) * truth(x, t)

    process, score = from_score_sde(net, sde, (2,))
    assert type(process.schedule) is type(schedule)
    t = torch.tensor([0.01, 0.5, 1.0], dtype=F64)[:, None]
    torch.testing.assert_close(score(points(3), t), truth(points(3), t), rtol=1e-11, atol=1e-11)


def test_discrete_vp_networks_see_their_labels() -> None:
    """Theirs: label t(N − 1), std from the table √(1 − ᾱ) of β_i = linspace(β_min/N, β_max/N, N)."""
    N, seen = 1000, []
    betas = torch.linspace(0.1 / N, 20 / N, N, dtype=F64)
    std = (1 - (1 - betas).cumprod(0)).sqrt()

    def net(x, labels):
        seen.append(labels)
        return torch.sin(x + labels[:, None] / 300)

    _, score = from_score_sde(net, "vp", (2,), continuous=False, N=N)
    x, labels = points(3), torch.tensor([0, 400, 999], dtype=F64)
    their_t = labels / (N - 1)
    theirs = -net(x, their_t * (N - 1)) / std[(their_t * (N - 1)).round().long()][:, None]
    torch.testing.assert_close(score(x, ((labels + 1) / N)[:, None]), theirs, rtol=1e-12, atol=1e-12)
    assert seen[0].tolist() == pytest.approx([0, 400, 999]) and seen[1].tolist() == [0, 400, 999]


def test_continuous_ve_networks_see_sigma_and_answer_with_the_score() -> None:
    truth = mixture(VE(0.01, 50.0))
    net = lambda x, sigma: (denoised(x, sigma) - x) / sigma[:, None] ** 2
    process, score = from_score_sde(net, "ve", (2,))
    assert isinstance(process.schedule, VE)
    t = torch.tensor([0.3, 0.6, 1.0], dtype=F64)[:, None]
    torch.testing.assert_close(score(points(3), t), truth(points(3), t), rtol=1e-10, atol=1e-10)


def test_discrete_ve_labels_run_backwards() -> None:
    """Theirs: σ_i = exp(linspace(ln σ_min, ln σ_max, N)), and the network's label of level i is N − 1 − i."""
    N, seen = 11, []
    schedule = VE(0.01, 50.0)
    sigmas = torch.linspace(math.log(0.01), math.log(50), N, dtype=F64).exp()
    process, score = from_score_sde(lambda x, y: (seen.append(y), x)[1], schedule, (2,), continuous=False, N=N)
    x = points(N)
    # between two levels the nearest; a value of the network is the score itself
    for factor in (1.0, 1.2, 0.85):
        t = schedule.time((sigmas * factor).clamp(max=50.0))[:, None]
        assert torch.equal(score(x, t), x)
        assert seen[-1].dtype == torch.int64 and seen[-1].tolist() == list(range(N - 1, -1, -1))
    score(x[:2], torch.tensor([1e-6, 1.0], dtype=F64)[:, None])
    assert seen[-1].tolist() == [N - 1, 0]
    assert bool(sample(process, score, Euler(), uniform(process, 3), shape=2, seed=0).x.isfinite().all())


# ----------------------------------------------------------------------------------------------------------------- checkpoints


def small_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

        def forward(self, x, label):
            return self.last(torch.tanh(self.norm(self.first(torch.cat([x, label[:, None] / 1000], 1)))))

    network = Network()
    network.norm.running_mean.uniform_()
    return network.eval()


def under(prefix: str, state) -> dict:
    return {prefix + k: v for k, v in state.items()}


PLAIN, AVERAGE = small_network(1), small_network(2)
STATE, MEAN = PLAIN.state_dict(), AVERAGE.state_dict()
SHADOW = [p.detach() for p in AVERAGE.parameters()]
TRAINED = {k: v.detach() for k, v in AVERAGE.named_parameters()}  # averages without buffers
# as latent diffusion keeps averages: in buffers, whose names may not have dots, of a wrapper around the network
UNDOTTED = under("model_ema.diffusion_model", {k.replace(".", ""): v for k, v in TRAINED.items()})
COUNTERS = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
LAYOUTS = {
    "state dict": STATE,
    "module.": under("module.", STATE),
    "model": {"model": STATE, "step": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    "state_dict": {"state_dict": under("net.", STATE), "epoch": 1},
    "model and ema": {"model": STATE, "ema": MEAN},
    "ema_model": under("online_model.model.", STATE) | under("ema_model.model.", MEAN) | {"step": torch.tensor(5)},
    "shadow_params": {"model": under("module.", STATE), "ema": {"decay": 0.99, "shadow_params": SHADOW}},
    "model_ema without dots": {"state_dict": under("model.diffusion_model.", STATE) | COUNTERS | UNDOTTED, "epoch": 1},
    "list": [under("module.", STATE), {"state": {}}, 4, 1000, under("module.", TRAINED)],
}


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_in_every_layout(layout, ema, tmp_path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(LAYOUTS[layout], path)
    network = small_network(9)
    process, score = from_ddpm_checkpoint(path, network.train(), (2,), ema=ema)
    averaged = ema and any(word in layout for word in ("ema", "shadow", "list"))
    expected = {**STATE, **TRAINED} if averaged else STATE
    if averaged and layout in ("model and ema", "ema_model"):
        expected = MEAN  # these carry buffers of their own
    assert all(torch.equal(v, expected[k]) for k, v in network.state_dict().items()) and not network.training
    x = points(3, torch.float32)
    with torch.no_grad():
        label = torch.full((3,), 499.0)
        torch.testing.assert_close(score.prediction(x, 0.5)[1], network(x, label))
    assert isinstance(process.schedule, Discrete) and process.schedule.sigma_max == pytest.approx(157.41, rel=1e-4)


def test_safetensors_and_other_readings_of_a_checkpoint(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(under("unet.", STATE), path)
    schedule = Discrete.from_betas("squaredcos_cap_v2", 100)
    process, score = from_ddpm_checkpoint(
        str(path), small_network(9), (2,), schedule, predicts="v", label=range(0, 1000, 10)
    )
    x = points(3, torch.float32)
    with torch.no_grad():
        v = PLAIN(x, torch.full((3,), 490.0))
        data, _ = score.prediction(x, 0.5)
    scale, std = (float(f(0.5)) for f in (process.schedule.scale, process.schedule.std))
    torch.testing.assert_close(data, scale * x - std * v, rtol=1e-6, atol=1e-6)
    _, wide = from_ddpm_checkpoint(path, small_network(9), (1,), learned_variance=True)
    assert wide.learned_variance


def test_names_that_differ_in_their_dots_alone_and_networks_of_their_own_ema(tmp_path) -> None:
    """The names "a.b" and "ab" are one without dots; a layer may have "ema" in its name and be no average."""

    class Network(nn.Module):
        def __init__(self, one: str, other: str):
            super().__init__()
            self.add_module(one, nn.Linear(2, 2, bias=False))
            self.add_module(other, nn.ModuleDict({"b": nn.Linear(2, 2, bias=False)}))

    path = tmp_path / "model.pt"
    network = Network("ab", "a")
    squeezed = {k.replace(".", ""): v for k, v in network.state_dict().items()}
    torch.save(under("model.", network.state_dict()) | under("model_ema.", squeezed), path)
    with pytest.raises(ValueError, match=r"got 'model_ema\.abweight' and 0 more tensors that may be"):
        from_ddpm_checkpoint(path, network, (2,))
    network = Network("ema_gate", "other")
    torch.save(under("model.", network.state_dict()) | COUNTERS, path)
    from_ddpm_checkpoint(path, network, (2,))


class Harmful:
    """What a pickle may do to its reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_files_that_run_code_are_refused_unread(tmp_path) -> None:
    path, trap = tmp_path / "model.pt", tmp_path / "trap"
    torch.save({"model": STATE, "config": Harmful(trap)}, path)
    with pytest.raises(
        ValueError, match=r"pickles objects that run code when read .* save its state dict with safetensors"
    ):
        from_ddpm_checkpoint(path, small_network(9), (2,))
    assert not trap.exists()


def test_checkpoints_that_do_not_fit_are_refused(tmp_path) -> None:
    path, network = tmp_path / "model.pt", small_network(9)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    cases = [
        ({k: v for k, v in STATE.items() if k != "first.bias"}, "first.bias missing"),
        (under("module.", STATE | {"extra.weight": torch.zeros(2)}), "extra.weight not in the network"),
        (STATE | {"last.bias": torch.zeros(5)}, r"last.bias of shape \(5,\) for \(2,\)"),
        ({"nothing": torch.zeros(2)}, "first.weight missing"),
        ({"model": STATE, "ema": {"shadow_params": SHADOW[:-1]}}, "got 5 shadow_params, expected 6"),
        (
            {"model": STATE, "ema": {k: v for k, v in TRAINED.items() if k != "last.bias"}},
            r"got 'ema\.first\.weight' and 4 more tensors that may be moving averages.* 6 trained .*ema=False .* under 'model\.'",
        ),
        (
            under("model.", STATE) | dict(list(UNDOTTED.items())[:-1]),
            r"got 'model_ema\.diffusion_modelfirstweight' and 4 more tensors that may be",
        ),
    ]
    for content, message in cases:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            from_ddpm_checkpoint(path, network, (2,))
        if "may be" in message:
            from_ddpm_checkpoint(path, small_network(9), (2,), ema=False)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        from_ddpm_checkpoint(path, network, (2,))
    (tmp_path / "x.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="no readable safetensors"):
        from_ddpm_checkpoint(tmp_path / "x.safetensors", network, (2,))
    with pytest.raises(FileNotFoundError, match="which is no file"):
        from_ddpm_checkpoint(tmp_path / "absent.pt", network, (2,))
    with pytest.raises(TypeError, match=r"expected an nn\.Module"):
        from_ddpm_checkpoint(path, lambda x, t: x, (2,))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


# ------------------------------------------------------------------------------------------------------------------- refusals

REFUSALS = [
    (lambda: from_edm(lambda x, s: x), TypeError, r"event_shape: function does not say it; pass the shape"),
    (
        lambda: from_score_sde(lambda x, t: x, "vpsde", (2,)),
        ValueError,
        "sde: got 'vpsde', expected 'vp', 'subvp', 've'",
    ),
    (lambda: from_score_sde(lambda x, t: x, EDM(), (2,)), ValueError, "expected 'vp'.* or a VP, SubVP or VE schedule"),
    (lambda: from_score_sde(lambda x, t: x, "subvp", (2,), continuous=False), ValueError, "has no discrete form"),
    (lambda: from_score_sde(lambda x, t: x, "ve", (2,), continuous=False, N=1), ValueError, "N: got 1"),
    (lambda: to_k_diffusion(3), TypeError, "score: got int"),
    (lambda: to_k_diffusion(lambda x, t: x), TypeError, "expected the Diffusion whose score it is; pass process="),
    (
        lambda: to_k_diffusion(lambda x, t: x, Diffusion(Hypercube((2,)), VE())),
        ValueError,
        "expected a single schedule on a Euclidean domain",
    ),
]


@pytest.mark.parametrize(("act", "error", "message"), REFUSALS, ids=[m for *_, m in REFUSALS])
def test_refusals_say_what_was_got_and_what_was_expected(act, error, message) -> None:
    with pytest.raises(error, match=message):
        act()
