"""Denoising score matching against closed forms, and the training loop: resume, interruption, failure."""

import math
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import Dataset, TensorDataset

from carom.domains import Domain, Euclidean, Hypercube, Orthant
from carom.domains.interval import interval_score
from carom.processes import VE, VP, Diffusion
from carom.scores.neural import (
    MLP,
    DenoisingScoreMatching,
    EDMPreconditioning,
    LogUniform,
    MLPConfig,
    NeuralScore,
    Reflected,
    UNet,
    UNetConfig,
    digits,
    train,
)
from carom.scores.neural.levels import stratified

INTERVAL = Diffusion(Hypercube((1,)), VE(sigma_min=0.02))
AMPLITUDE = 0.9  # of the cosine density 1 + a·cos πx


def cosine_data(n: int, seed: int = 0) -> torch.Tensor:
    """Exact draws of 1 + a·cos πx on [0, 1], float64 [n, 1]: the CDF x + a sin(πx)/π inverted by Newton in a bracket."""
    u = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    low, high = torch.zeros_like(u), torch.ones_like(u)
    for _ in range(60):
        middle = (low + high) / 2
        below = middle + AMPLITUDE * (math.pi * middle).sin() / math.pi < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low[:, None]


def cosine_score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The heat flow multiplies the mode cos πx by e^{−π²σ²/2}."""
    a = AMPLITUDE * (-0.5 * (math.pi * sigma) ** 2).exp()
    return -math.pi * a * (math.pi * x).sin() / (1 + a * (math.pi * x).cos())


def zero(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x)


class Exact(nn.Module):
    """A "network" whose score is a given function of (x, σ): what NeuralScore makes of it undoes the preconditioning."""

    def __init__(self, function):
        super().__init__()
        self.function, self.reflected = function, Reflected(INTERVAL.domain, wall=False)

    def forward(self, inputs, c_noise):
        sigma = (4 * c_noise).exp()[:, None]
        return self.function((inputs + 1) / 2, sigma) / self.reflected.unit(sigma)


def interval(network: nn.Module, process: Diffusion = INTERVAL, **options) -> NeuralScore:
    return NeuralScore(network, process, Reflected(process.domain, **options))


def small_score(process: Diffusion = INTERVAL, dropout: float = 0.0, seed: int = 0) -> NeuralScore:
    torch.manual_seed(seed)
    return NeuralScore(MLP(MLPConfig(process.domain.event_shape, 24, 2, dropout)), process)


def same(a: NeuralScore, b: NeuralScore) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


QUIET = {"progress": False, "warmup": 5}


# the objective ----------------------------------------------------------------------------------------------------


def test_levels_are_drawn_in_strata_and_cover_the_range_of_the_process():
    u = stratified(torch.Size([4, 25]), torch.zeros(()), torch.Generator().manual_seed(1))
    assert torch.equal((u * 100).floor().flatten().sort().values, torch.arange(100.0))
    assert not torch.equal(u.flatten(), u.flatten().sort().values)
    levels = LogUniform(0.02, 2.0)
    torch.testing.assert_close(levels.quantile(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.02, 0.2, 2.0]))
    sigma = DenoisingScoreMatching().terms(small_score(), torch.rand(64, 1)).sigma
    assert 0.02 <= float(sigma.min()) < 0.022 and 1.8 < float(sigma.max()) <= 2.0


@pytest.mark.montecarlo
@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.45, 1.0, 2.0])
def test_a_score_of_zero_has_loss_one_on_uniform_data_at_every_level(sigma):
    """E target² is the Fisher information, which the unit reproduces to 0.5 % (1 % squared)."""
    x0 = torch.rand(40_000, 1, dtype=torch.float64)
    loss = DenoisingScoreMatching(LogUniform(sigma, sigma * (1 + 1e-9))).terms(interval(Exact(zero)), x0).loss
    assert float(loss.mean()) == pytest.approx(1, abs=0.01 + 4 * float(loss.std()) / math.sqrt(len(x0)))


@pytest.mark.montecarlo
def test_gaussian_data_have_loss_one_under_edm():
    process = Diffusion(Euclidean((2,)), VP())
    score = NeuralScore(MLP(MLPConfig((2,), 8, 1)), process, EDMPreconditioning(0.5, mean=1.0)).requires_grad_(False)
    loss = DenoisingScoreMatching().terms(score, 1 + 0.5 * torch.randn(50_000, 2, dtype=torch.float64)).loss
    assert float(loss.mean()) == pytest.approx(1, abs=4 * float(loss.std()) / math.sqrt(len(loss)))


def cosine_minimum(sigma: float) -> tuple[float, float]:
    """(E target², E|∇log p_σ|²) on cosine data by quadrature over x0 and the unfolded noise."""
    n, z = 2000, torch.linspace(-8, 8, 401, dtype=torch.float64)
    x0 = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    gauss = (-0.5 * z**2).exp() / (-0.5 * z**2).exp().sum()
    x = (x0 + sigma * z).remainder(2)
    x = torch.where(x > 1, 2 - x, x)
    level = torch.full_like(x0, sigma)
    density = 1 + AMPLITUDE * (math.pi * x0).cos()
    target = interval_score(x, x0.expand_as(x), level, 0.0, 1.0)
    means = [(density * v.square() * gauss).sum().item() / n for v in (target, cosine_score(x, level))]
    return means[0], means[1]


@pytest.mark.montecarlo
def test_the_exact_score_reaches_the_minimum_that_quadrature_gives():
    """Loss of the exact score = (E target² − E|∇log p_σ|²)/u²; of zero, E target²/u². The difference is what training gains."""
    sigma = 0.3
    level = torch.tensor([[sigma]], dtype=torch.float64)
    second, fisher = cosine_minimum(sigma)
    unit = float(Reflected(INTERVAL.domain).unit(level)) ** 2
    objective, x0 = DenoisingScoreMatching(LogUniform(sigma, sigma * (1 + 1e-9))), cosine_data(100_000)
    for function, expected in ((cosine_score, second - fisher), (zero, second)):
        score = interval(Exact(function), wall=False)
        loss = objective.terms(score, x0, torch.Generator().manual_seed(2)).loss
        assert float(loss.mean()) == pytest.approx(expected / unit, abs=4 * float(loss.std()) / math.sqrt(len(x0)))
    assert fisher / unit > 0.05  # so the two are told apart


def test_the_loss_is_reproducible_weighted_and_indifferent_to_the_batch_shape():
    score, x0 = small_score(), torch.rand(6, 1)
    score.network.last.weight.data.normal_()

    def loss(objective, x=x0):
        return score.loss(x, objective, torch.Generator().manual_seed(3))

    plain = loss(DenoisingScoreMatching())
    assert plain.dim() == 0 and torch.equal(plain, loss(DenoisingScoreMatching()))
    torch.testing.assert_close(loss(DenoisingScoreMatching(), x0.reshape(2, 3, 1)), plain)
    torch.testing.assert_close(loss(DenoisingScoreMatching(weight=lambda sigma: 2 + 0 * sigma)), 2 * plain)
    assert DenoisingScoreMatching().terms(score, x0.reshape(2, 3, 1)).loss.shape == (2, 3)


def test_where_there_is_no_heat_kernel_the_objective_says_so():
    class Bare(Domain):
        event_shape = (1,)
        contains = project = lambda self, x, atol=0.0: x
        reflect = lambda self, x, displacement: x

    process = Diffusion(Bare(), VE())
    score = NeuralScore(MLP(MLPConfig((1,), 8, 1)), process)
    with pytest.raises(TypeError, match="which has no heat kernel in closed form"):
        score.loss(torch.rand(3, 1))
    with pytest.raises(ValueError, match=r"x0: got shape \(3, 2\)"):
        small_score().loss(torch.rand(3, 2))


@pytest.mark.parametrize("domain", [Euclidean((1, 8, 8)), Orthant((1, 8, 8)), Hypercube((1, 8, 8))], ids=repr)
def test_the_loss_reads_no_value(domain):
    """Under FakeTensorMode any .item(), any shape that depends on data, raises: so there is no host sync on a GPU."""
    process = Diffusion(domain, VE(sigma_max=2.0))
    with FakeTensorMode():
        score = NeuralScore(UNet(UNetConfig(channels=8, dropout=0.1)), process)
        score.loss(torch.rand(4, 1, 8, 8)).backward()


# training ---------------------------------------------------------------------------------------------------------


def excess(score: NeuralScore) -> float:
    """E |score − ∇log p_σ|²/u² over ln σ uniform and x ∼ p_σ, by quadrature: what the loss exceeds its minimum by."""
    sigma = torch.logspace(math.log10(0.02), math.log10(2.0), 40, dtype=torch.float64)[:, None, None]
    x = ((torch.arange(200, dtype=torch.float64) + 0.5) / 200)[:, None].expand(40, 200, 1)
    a = AMPLITUDE * (-0.5 * (math.pi * sigma) ** 2).exp()
    unit = score.preconditioning.unit(sigma)
    with torch.no_grad():
        error = (score.at_level(x, sigma.squeeze(-1)) - cosine_score(x, sigma)) / unit
    return float((error**2 * (1 + a * (math.pi * x).cos())).mean())


@pytest.mark.parametrize("wall", [True, False])
def test_training_reaches_the_optimum_on_the_cosine_density(wall):
    torch.manual_seed(0)
    score = interval(MLP(MLPConfig((1,), 48, 2)), wall=wall)
    before = excess(score)
    result = train(score, cosine_data(20_000).float(), steps=300, batch_size=256, lr=3e-3, ema=0.98, **QUIET)
    # zero starts at .204. What remains is noise: 77,000 targets of variance 1 seen by a smooth function of (x, σ), with some
    # hundred effective parameters: 1e-3. A wrong target, sign or unit leaves it at .2 or above
    assert before > 0.2 and excess(score) < 5e-3
    assert result.steps == 300 == len(result.losses) and not result.interrupted and not score.training and score.use_ema


def test_training_is_reproducible_and_leaves_the_global_generator_alone():
    data = torch.rand(50, 1)
    torch.manual_seed(7)
    expected = torch.rand(3)
    runs = []
    for seed in (0, 0, 1):
        score = small_score(dropout=0.2)
        torch.manual_seed(7)
        train(score, data, steps=4, batch_size=16, seed=seed, **QUIET)
        assert torch.equal(torch.rand(3), expected)
        runs.append(score)
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


@pytest.mark.parametrize("network", ["mlp", "unet"])
def test_resuming_equals_not_stopping_bit_for_bit(tmp_path, network):
    def fresh():
        torch.manual_seed(0)
        if network == "mlp":
            return small_score(dropout=0.3)
        config = UNetConfig(channels=8, multipliers=(1, 2), heads=2, dropout=0.1)
        return NeuralScore(UNet(config), Diffusion(Hypercube((1, 8, 8)), VE()))

    shape = fresh().process.domain.event_shape
    data = torch.rand(40, *shape)  # 40 samples, batches of 12: epochs end within batches
    options = {"batch_size": 12, "lr": lambda step: 1e-2 / (1 + step), "weight_decay": 0.1, "seed": 3, **QUIET}
    whole = fresh()
    full = train(whole, data, steps=9, **options)
    path = tmp_path / "run.safetensors"
    parts = fresh()
    first = train(parts, data, steps=4, checkpoint=path, **options)
    other = NeuralScore.load(path)  # one and the same file serves sampling …
    assert same(other, parts) and other.use_ema
    again = fresh()  # … and going on, also in a new process with new objects
    second = train(again, data, steps=9, checkpoint=path, resume=True, **options)
    assert same(again, whole) and first.losses + second.losses == full.losses
    assert second.steps == 9 and second.seconds > first.seconds
    assert same(NeuralScore.load(path), whole)
    third = train(fresh(), data, steps=9, checkpoint=path, resume=True, **options)  # nothing left to do
    assert third.losses == [] and math.isnan(third.loss) and third.steps == 9


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint_to_resume(tmp_path, capsys):
    data, path = torch.rand(50, 1), tmp_path / "run.safetensors"
    options = {"batch_size": 16, **QUIET}
    whole = small_score()
    train(whole, data, steps=8, **options)

    def press(metrics):
        if metrics["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    score = small_score()
    result = train(score, data, steps=8, checkpoint=path, log=press, **options)
    assert result.interrupted and result.steps == 3 and result.checkpoint == str(path)
    assert signal.getsignal(signal.SIGINT) is handler
    said = capsys.readouterr().err
    assert "interrupted after step 3" in said and f"checkpoint={str(path)!r}, resume=True" in said
    train(score, data, steps=8, checkpoint=path, resume=True, **options)
    assert same(score, whole)

    def press_twice(metrics):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(small_score(), data, steps=8, log=press_twice, **options)
    assert signal.getsignal(signal.SIGINT) is handler


class Fragile(nn.Module):
    """Answers NaN from its n-th call on."""

    def __init__(self, calls: int):
        super().__init__()
        self.layer, self.left = nn.Linear(1, 1), calls

    def forward(self, x, c_noise):
        self.left -= 1
        return self.layer(x) * (1 if self.left >= 0 else math.nan)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path):
    def fresh(calls):
        torch.manual_seed(0)
        return interval(Fragile(calls))

    data, path, options = torch.rand(50, 1), tmp_path / "run", {"batch_size": 16, **QUIET}
    good = fresh(99)
    train(good, data, steps=3, **options)
    score = fresh(3)
    with pytest.raises(
        FloatingPointError, match=r"step 4 got loss nan .* the weights of step 3 are kept in the score and in"
    ):
        train(score, data, steps=9, checkpoint=path, **options)
    assert same(score, good) and not score.training and score.use_ema
    assert same(NeuralScore.load(path, Fragile(99)), good)


def test_killed_at_any_moment_it_leaves_a_file_that_loads(tmp_path):
    path = tmp_path / "run.safetensors"
    program = f"""
import torch
from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.scores.neural import *
torch.set_num_threads(1)
score = NeuralScore(MLP(MLPConfig((1,), 256, 3)), Diffusion(Hypercube((1,)), VE()))
train(score, torch.rand(64, 1), steps=10**6, checkpoint={str(path)!r}, checkpoint_every=1, progress=False)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        deadline = time.monotonic() + 120
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.137)  # it writes without pause: this lands anywhere in a write
        process.kill()
    NeuralScore.load(path)
    score = NeuralScore(MLP(MLPConfig((1,), 256, 3)), Diffusion(Hypercube((1,)), VE()))
    done = train(score, torch.rand(64, 1), steps=1, checkpoint=path, resume=True, progress=False)
    assert done.steps >= 1


def test_budgets_and_what_is_reported(capsys):
    seen = []
    start = time.monotonic()
    result = train(small_score(), torch.rand(9, 1), seconds=0.3, batch_size=8, log=seen.append)
    assert 0.3 <= result.seconds <= time.monotonic() - start and result.steps == len(seen) == len(result.losses)
    assert seen[-1].keys() == {"step", "loss", "lr", "grad_norm", "seconds"}
    assert seen[-1]["step"] == result.steps and result.loss == pytest.approx(
        sum(result.losses[-100:]) / len(result.losses[-100:])
    )
    rates = [s["lr"] for s in seen]
    assert rates[0] == pytest.approx(2e-3 / 101) and max(rates) <= 2e-3
    said = capsys.readouterr().err
    assert "training" in said and "loss" in said and f"step {result.steps}" in said
    train(small_score(), torch.rand(9, 1), steps=2, progress=False)
    assert capsys.readouterr().err == ""


def test_the_first_budget_spent_ends_it_and_without_an_average_there_is_none():
    score = small_score()
    assert train(score, torch.rand(9, 1), steps=3, seconds=100, ema=None, **QUIET).steps == 3
    assert score.ema is None and not score.use_ema
    assert train(score, torch.rand(9, 1), steps=10**6, seconds=0.05, **QUIET).steps < 10**5
    assert score.ema is not None and score.use_ema


class Items(Dataset):
    def __init__(self, x):
        self.x, self.read = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read.append(i)
        return self.x[i]


class OfLabel(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Embedding(3, 1)

    def forward(self, x, c_noise, label):
        return self.value(label) + 0 * x


def test_datasets_with_and_without_labels():
    data = torch.rand(20, 1)
    options = {"steps": 5, "batch_size": 8, **QUIET}
    one, two = small_score(), small_score()
    train(one, data, **options)
    train(two, Items(data), **options)
    assert same(one, two)
    labelled = interval(OfLabel())
    before = labelled.network.value.weight.clone()
    train(labelled, TensorDataset(data, torch.arange(20) % 2), **options)
    moved = (labelled.network.value.weight != before).flatten().tolist()
    assert moved == [True, True, False]  # no sample has label 2


@pytest.mark.parametrize("batch_size", [4, 25])
def test_an_epoch_reads_each_sample_once_in_an_order_of_its_own(batch_size):
    data = Items(torch.rand(10, 1))
    train(small_score(), data, steps=100 // batch_size, batch_size=batch_size, **QUIET)
    epochs = [data.read[i : i + 10] for i in range(0, 100, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10


def resumable(tmp_path, **options) -> dict:
    path = tmp_path / "run"
    settings = {"steps": 2, "batch_size": 4, "checkpoint": path, **QUIET, **options}
    train(small_score(), torch.rand(9, 1), **settings)
    return settings | {"resume": True}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "got neither steps nor seconds"),
        ({"steps": 0}, ValueError, "steps: got 0, expected a whole number of at least 1"),
        ({"steps": 2.5}, ValueError, "steps: got 2.5, expected a whole number of at least 1"),
        ({"steps": 2, "batch_size": 2.5}, ValueError, "batch_size: got 2.5, expected a whole number"),
        ({"seconds": math.inf}, ValueError, "seconds: got inf"),
        ({"steps": 1, "batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"steps": 1, "ema": 1.0}, ValueError, r"ema: got 1.0, expected a decay in \[0, 1\)"),
        ({"steps": 1, "resume": True}, ValueError, "resume=True without a checkpoint"),
        ({"steps": 1, "epochs": 3}, TypeError, "epochs"),
        ({"steps": 1, "checkpoint": "."}, ValueError, r"checkpoint: got '\.', a folder"),
        (
            {"steps": 1, "checkpoint": "none/c"},
            ValueError,
            "checkpoint: got 'none/c', a file in 'none', which is no folder",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        train(small_score(), torch.rand(9, 1), **options)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.rand(9, 1) + 0.5, ValueError, "data: .* samples lie outside Hypercube"),
        (torch.zeros(9, 1, dtype=torch.uint8), TypeError, "data: got dtype torch.uint8"),
        (torch.rand(9, 2), ValueError, r"data: got shape \(9, 2\)"),
        (torch.rand(9), ValueError, r"data: got shape \(9,\), expected \[N, 1\]"),
        (torch.zeros(0, 1), ValueError, "data: got no samples"),
        (torch.full((9, 1), math.nan), ValueError, "data: 9 of 9 samples lie outside"),
        (Items(torch.rand(9, 1) + 0.5), ValueError, "data: .* lie outside"),
        (iter([]), TypeError, "data: got list_iterator, expected a tensor"),
        (Items([(1, 2, 3)]), TypeError, "data: got items of 3 parts"),
    ],
    ids=range(9),
)
def test_data_that_do_not_fit_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        train(small_score(), data, steps=1, **QUIET)


def test_resuming_refuses_what_is_not_this_training_and_touches_nothing(tmp_path):
    settings = resumable(tmp_path)
    path = settings["checkpoint"]
    before = path.read_bytes()
    score, reference = small_score(seed=5), small_score(seed=5)

    def refused(error, message, data=None, target=score, **changes):
        with pytest.raises(error, match=message):
            train(target, torch.rand(9, 1) if data is None else data, **settings | {"steps": 9} | changes)
        assert same(score, reference) and path.read_bytes() == before

    refused(ValueError, "batch_size is 4 there and 5 here; pass the settings", batch_size=5)
    refused(ValueError, "lr is 0.002 there and 0.003 here", lr=3e-3)
    refused(ValueError, "objective is .* there", objective=DenoisingScoreMatching(LogUniform(0.1, 1.0)))
    refused(ValueError, "objective is .* there", objective=DenoisingScoreMatching(weight=torch.ones_like))
    refused(ValueError, "samples is 9 there and 8 here", torch.rand(8, 1))
    refused(ValueError, "network is .* there", target=interval(MLP(MLPConfig((1,), 25, 2))))
    refused(ValueError, "process is .* there", target=small_score(Diffusion(Hypercube((1,)), VE(sigma_min=0.03))))
    refused(FileNotFoundError, "does not exist", checkpoint=tmp_path / "nowhere")
    small_score().save(tmp_path / "finished")
    refused(ValueError, "a finished score without training state", checkpoint=tmp_path / "finished")
    (tmp_path / "torn").write_bytes(before[: len(before) // 2])
    refused(ValueError, "no readable safetensors file", checkpoint=tmp_path / "torn")


@pytest.mark.slow
def test_a_small_unet_learns_the_digits():
    """Zero predicts loss 1.2 on digits; half the pixels are background, which any local rule explains within seconds."""
    data = digits()
    score = NeuralScore(UNet(UNetConfig()), Diffusion(Hypercube((1, 8, 8)), VE()))
    result = train(score, data, steps=80, progress=False)
    assert result.losses[0] > 1.1 and sum(result.losses[-20:]) / 20 < 0.75


def test_an_objective_on_another_clock_is_another_training(tmp_path):
    """Times uniform under VP(.1, 10) are other noise levels than under VP(.1, 20)."""

    def run(beta_max: float, **options):
        process = Diffusion(Euclidean((1,)), VP(0.1, beta_max))
        objective = DenoisingScoreMatching.simple(process)
        train(small_score(), torch.rand(8, 1), objective=objective, checkpoint=tmp_path / "c", **options, **QUIET)

    run(10.0, steps=1)
    with pytest.raises(ValueError, match=r"belongs to another training: objective is .*10.0.* there and .*20.0.* here"):
        run(20.0, steps=2, resume=True)
