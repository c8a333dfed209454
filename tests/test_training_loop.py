"""The training loop on devices and by many hands: no host sync, pieces and processes, low precision, what it writes as it goes."""

import json
import math
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from carom.domains import Euclidean, Hypercube
from carom.processes import VE, VP, Diffusion
from carom.scores.neural import (
    MLP,
    DenoisingScoreMatching,
    MLPConfig,
    NeuralScore,
    Objective,
    Terms,
    UNet,
    UNetConfig,
    train,
)
from carom.scores.neural import updates as update_module
from carom.scores.neural.batches import Batches
from carom.scores.neural.metrics import BINS, Curve
from carom.scores.neural.updates import Cosine
from carom.scores.neural.workers import Workers, find_workers

INTERVAL = Diffusion(Hypercube((1,)), VE(sigma_min=0.02))
DATA = torch.linspace(0, 1, 50)[:, None]
QUIET = {"progress": False, "warmup": 5, "batch_size": 16}


def small_score(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> NeuralScore:
    torch.manual_seed(0)
    return NeuralScore(MLP(MLPConfig((1,), 24, 2, dropout)).to(dtype), INTERVAL)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# reading ----------------------------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """How often a value leaves the device: item(), bool(), float(), and shapes that depend on values."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        read = (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
        )
        self.count += function.overloadpacket in read
        return function(*args, **(kwargs or {}))


def test_losses_are_read_in_blocks_and_nothing_else_is_read(monkeypatch, tmp_path):
    """In R^d: on the CPU the kernel of the interval sorts its rows into regimes, which no device does."""
    blocks = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: blocks.append(self.shape) or tolist(self))

    def run(steps):
        score = NeuralScore(MLP(MLPConfig((1,), 24, 2, 0.1)), Diffusion(Euclidean((1,)), VE(sigma_max=2.0)))
        with Reads() as reads:
            result = train(score, DATA, steps=steps, log_every=10, metrics=tmp_path / "m", **QUIET)
        return reads.count, len(result.losses)

    once, _ = run(1)
    blocks.clear()
    # what is read at the start, to check the data, is read once; the steps add nothing. The curve is read with its line
    assert run(25) == (once, 25)
    assert blocks == [(10, 2), (10, 2), (5, 2), (2, BINS)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_on_a_gpu_a_step_never_waits(where, monkeypatch):
    """Sync-debug mode raises at any wait. The reading itself is done outside it."""
    tolist = torch.Tensor.tolist

    def read(self):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return tolist(self)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(torch.Tensor, "tolist", read)
    score = NeuralScore(UNet(UNetConfig(channels=8, dropout=0.1)), Diffusion(Hypercube((1, 8, 8)), VE())).cuda()
    data = torch.rand(64, 1, 8, 8, device=where)
    first = True

    def rate(step):
        nonlocal first
        if step == 1 and first:  # what a first step initialises may wait
            first = False
            torch.cuda.set_sync_debug_mode("error")
        return 1e-3

    try:
        result = train(score, data, steps=20, lr=rate, progress=False, log_every=10, mixed_precision="bf16")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.steps == 20 and not first


def test_how_often_losses_are_read_changes_nothing(tmp_path):
    def run(**options):
        score, seen = small_score(dropout=0.3), []
        result = train(score, DATA, steps=11, log=lambda m: seen.append((m["step"], m["loss"])), **QUIET, **options)
        return score, result.losses, seen

    one, losses, seen = run(log_every=1)
    for options in (
        {"log_every": 4},
        {"log_every": 100},
        {"log_every": 4, "checkpoint": tmp_path / "c", "checkpoint_every": 3},
    ):
        other = run(**options)
        assert same(one, other[0]) and (losses, seen) == other[1:]
    assert [step for step, _ in seen] == list(range(1, 12))


class Fragile(nn.Module):
    """Answers NaN from its n-th call on; a batch norm keeps running means, which a NaN would spoil."""

    def __init__(self, calls: int):
        super().__init__()
        self.norm, self.layer, self.left = nn.BatchNorm1d(1), nn.Linear(1, 1), calls

    def forward(self, x, c_noise):
        self.left -= 1
        return self.layer(self.norm(x * (1 if self.left >= 0 else math.nan)))


@pytest.mark.parametrize("devices", [("cpu",), ()], ids=["fused", "others"])
@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_a_bad_step_found_out_late_has_changed_nothing(tmp_path, monkeypatch, log_every, devices):
    monkeypatch.setattr(update_module, "_FUSED", devices)

    def fresh(calls):
        torch.manual_seed(0)
        return NeuralScore(Fragile(calls), INTERVAL)

    options, path = QUIET | {"weight_decay": 0.1}, tmp_path / "run"
    good = fresh(99)
    train(good, DATA, steps=5, **options)
    score = fresh(5)
    with pytest.raises(
        FloatingPointError, match=r"step 6 got loss nan .* weights of step 5 are kept in the score and in"
    ):
        train(score, DATA, steps=30, checkpoint=path, log_every=log_every, **options)
    assert same(score, good) and score.network.norm.num_batches_tracked == 5 and not score.training
    # the optimizer's state is that of step 5 as well: from there it goes on as if nothing had been
    whole, again = fresh(99), fresh(99)
    train(whole, DATA, steps=8, **options)
    train(again, DATA, steps=8, checkpoint=path, resume=True, **options)
    assert same(whole, again)


# pieces and processes -----------------------------------------------------------------------------------------------


class Regression(Objective):
    """Without noise: the network at fixed σ against a function of x."""

    def terms(self, score, x0, generator=None, **condition):
        sigma = torch.full(x0.shape[:1], 0.3, dtype=x0.dtype)
        return Terms(sigma, (score.at_level(x0, sigma) - x0.cos()).square().mean(-1))


def test_pieces_of_a_batch_add_up_to_the_batch():
    runs = []
    for pieces in (1, 2, 8):
        score = small_score(dtype=torch.float64)
        result = train(score, DATA.double(), objective=Regression(), steps=10, microbatches=pieces, **QUIET)
        runs.append((score, result.losses))
    for score, losses in runs[1:]:
        # sums of 16 in another order: 1e-15 of each gradient, which Adam normalises by the largest of ten
        assert losses == pytest.approx(runs[0][1], rel=1e-11)
        for a, b in zip(score.parameters(), runs[0][0].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_each_piece_has_noise_and_dropout_of_its_own():
    levels = []

    class Spy(DenoisingScoreMatching):
        def terms(self, score, x0, generator=None, **condition):
            terms = super().terms(score, x0, generator, **condition)
            levels.append((terms.sigma, torch.rand(())))
            return terms

    train(small_score(), DATA, objective=Spy(), steps=3, microbatches=2, **QUIET)
    assert len(levels) == 6 and all(len(sigma) == 8 for sigma, _ in levels)
    assert len({float(sigma[0]) for sigma, _ in levels}) == 6 == len({float(u) for _, u in levels})


PROGRAM = """
import os, sys, torch
from carom.domains import Hypercube
from carom.processes import VE, Diffusion
from carom.scores.neural import MLP, MLPConfig, NeuralScore, train
torch.set_num_threads(1)
for pieces in (2, 4):
    torch.manual_seed(int(os.environ.get("RANK", 0)))  # processes need not start from the same weights: the first one's count
    score = NeuralScore(MLP(MLPConfig((1,), 24, 2, 0.2)), Diffusion(Hypercube((1,)), VE(sigma_min=0.02)))
    result = train(score, torch.linspace(0, 1, 50)[:, None], steps=20, batch_size=16, microbatches=pieces, progress=False,
        checkpoint=f"{sys.argv[1]}{pieces}", metrics=f"{sys.argv[1]}{pieces}.jsonl", warmup=5)
    with open(f"{sys.argv[1]}.loss{os.environ.get('RANK', 0)}", "a") as file:
        print(repr(result.loss), file=file)
"""


@pytest.mark.slow
def test_two_processes_train_the_model_that_one_trains(tmp_path, monkeypatch):
    """Two summands commute, so two pieces give the same bits. The sum of four depends on the order: 1e-7 of a gradient in each of 20
    steps of at most 2e-3 times the learning rate's ramp, through Adam, stays below 1e-5."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    launch = (
        "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch.split(), str(script), str(tmp_path / "two")]
    launched = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert launched.returncode == 0, launched.stderr[-2000:]
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "one")])
    runpy.run_path(str(script))
    torch.set_num_threads(threads)
    losses = {name: (tmp_path / name).read_text().split() for name in ("one.loss0", "two.loss0", "two.loss1")}
    # both processes know the loss of the whole batch
    assert losses["two.loss0"] == losses["two.loss1"] and losses["one.loss0"][0] == losses["two.loss0"][0]
    one, two = (NeuralScore.load(tmp_path / f"{name}2") for name in ("one", "two"))
    assert same(one, two)
    one, two = (NeuralScore.load(tmp_path / f"{name}4") for name in ("one", "two"))
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    curves = [json.loads((tmp_path / f"{name}4.jsonl").read_text())["loss_by_sigma"] for name in ("one", "two")]
    # the processes' samples are all in the curve; 20 steps of 16 samples in 16 bins leave none empty
    assert curves[0] == pytest.approx(curves[1], rel=1e-4) and None not in curves[0]


def test_an_accelerator_of_ones_own_trains_the_same_and_says_how_to_accumulate():
    accelerate = pytest.importorskip("accelerate")
    plain, passed = small_score(), small_score()
    train(plain, DATA, steps=4, microbatches=2, **QUIET)
    train(passed, DATA, steps=4, accelerator=accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2), **QUIET)
    assert same(plain, passed)


def stub(kind: str = "NO", processes: int = 1, precision: str = "no") -> SimpleNamespace:
    return SimpleNamespace(
        distributed_type=SimpleNamespace(value=kind),
        num_processes=processes,
        process_index=0,
        mixed_precision=precision,
        gradient_accumulation_steps=1,
        device=torch.device("cpu"),
        wait_for_everyone=lambda: None,
    )


def test_processes_share_the_pieces_out():
    one, three = Workers(), Workers(stub("MULTI_CPU", 3))
    assert list(one.own(4)) == [0, 1, 2, 3] and one.pieces(None) == 1 and three.pieces(None) == 3
    three.rank = 1
    assert list(three.own(6)) == [2, 3] and not three.first
    assert one.any(True, False) == (True, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"microbatches": 3}, "batch_size: got 16, which 3 microbatches do not divide, expected a multiple, e.g. 18"),
        ({"microbatches": 0}, "microbatches: got 0"),
        ({"log_every": 0}, "log_every: got 0"),
        ({"metrics_every": 0}, "metrics_every: got 0"),
        ({"samples_every": 0}, "samples_every: got 0"),
        ({"mixed_precision": "fp16"}, "mixed_precision: got 'fp16', expected 'no' or 'bf16'"),
        ({"accelerator": stub(precision="fp16")}, "mixed_precision: got 'fp16'"),
        ({"accelerator": stub("FSDP")}, "accelerator: got one for FSDP"),
        ({"accelerator": stub("MULTI_CPU", 2), "microbatches": 3}, "microbatches: got 3 for 2 processes"),
    ],
    ids=range(9),
)
def test_settings_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train(small_score(), DATA, steps=1, **QUIET | options)


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError,
        match=r"accelerator: got one for 1 process where 2 were launched; make it with Accelerator\(cpu=True",
    ):
        train(small_score(), DATA, steps=1, accelerator=stub(), **QUIET)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"needs accelerate; install it with: pip install 'carom\[train\]'"):
        find_workers(None)


# precision and compilation ----------------------------------------------------------------------------------------


class Looking(MLP):
    """Notes in which dtype its middle layer answers."""

    seen: list

    def forward(self, x, c_noise):
        self.seen = []
        hook = self.first.register_forward_hook(lambda module, inputs, output: self.seen.append(output.dtype))
        try:
            return super().forward(x, c_noise)
        finally:
            hook.remove()


def test_low_precision_stays_in_the_network():
    runs = []
    for precision in ("no", "bf16"):
        torch.manual_seed(0)
        score = NeuralScore(Looking(MLPConfig((1,), 24, 2)), INTERVAL)
        result = train(score, DATA, steps=30, mixed_precision=precision, **QUIET)
        runs.append((score.network.seen[0], result.losses))
        assert {v.dtype for v in score.state_dict().values()} == {torch.float32}
        score(DATA, 0.5)
        assert score.ema.seen == [torch.float32]  # afterwards it answers in its own precision
    assert [dtype for dtype, _ in runs] == [torch.float32, torch.bfloat16]
    # bf16 has 8 bits: the network's output is off by some 2^-8 of itself, the loss by twice that, in units where it is about 1
    assert runs[0][1] != runs[1][1] and runs[1][1] == pytest.approx(runs[0][1], abs=0.05)


def test_a_compiled_network_trains_the_same_under_plain_names(tmp_path):
    """Traced and run eagerly, the operations are the same but for LayerNorm, which is another kernel then: equal to rounding, which Adam's
    first steps of ±lr = 2e-3 in each weight may magnify."""
    plain, compiled = small_score(), small_score()
    train(plain, DATA, steps=4, **QUIET)
    train(compiled, DATA, steps=4, compile="eager", checkpoint=tmp_path / "c", **QUIET)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=0, atol=1e-5)
    assert same(NeuralScore.load(tmp_path / "c"), compiled)
    calls = []
    with compiled.called_by(lambda *inputs: calls.append(1) or compiled.network(*inputs)):
        compiled(DATA, 0.5)
        assert calls == []  # in eval mode the network itself answers, and the average
        compiled.train().use_ema = False
        compiled(DATA, 0.5)
    assert calls == [1]


# objectives that learn --------------------------------------------------------------------------------------------


class Weighted(Objective, nn.Module):
    """Denoising with a scale of its own, whose best value is known: E[L]·e^{−a} + a is least at a = log E[L]."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))

    def terms(self, score, x0, generator=None, **condition):
        sigma, loss = DenoisingScoreMatching().terms(score, x0, generator, **condition)
        return Terms(sigma, loss * (-self.a).exp() + self.a)


def test_an_objective_that_learns_is_trained_saved_and_resumed(tmp_path):
    whole, parts = (small_score(), Weighted()), (small_score(), Weighted())
    train(whole[0], DATA, objective=whole[1], steps=9, **QUIET)
    path = tmp_path / "run"
    train(parts[0], DATA, objective=parts[1], steps=4, checkpoint=path, **QUIET)
    again = small_score(), Weighted()
    train(again[0], DATA, objective=again[1], steps=9, checkpoint=path, resume=True, **QUIET)
    assert same(whole[0], again[0]) and same(whole[1], again[1]) and whole[1].a.item() != 0 and not whole[1].training
    assert same(NeuralScore.load(path), whole[0])

    class Weighted2(Weighted):
        def __init__(self):
            super().__init__()
            self.b = nn.Parameter(torch.zeros(()))

    Weighted2.__name__ = Weighted.__name__
    before = small_score()
    with pytest.raises(ValueError, match="weights of the objective that do not fit"):
        train(before, DATA, objective=Weighted2(), steps=10, checkpoint=path, resume=True, **QUIET)
    assert same(before, small_score())


def test_an_objective_may_be_a_function_or_reduce_in_its_own_way(tmp_path):
    class Summed(DenoisingScoreMatching):
        def __call__(self, score, x0, generator=None, **condition):
            return self.terms(score, x0, generator, **condition).loss.sum()

    plain = train(small_score(), DATA, steps=1, **QUIET).losses[0]
    assert train(small_score(), DATA, objective=Summed(), steps=1, **QUIET).losses[0] == pytest.approx(
        16 * plain, rel=1e-6
    )
    by_hand = lambda score, x0, generator=None: DenoisingScoreMatching()(score, x0, generator)
    train(small_score(), DATA, objective=by_hand, steps=1, metrics=tmp_path / "m", **QUIET)
    line = json.loads((tmp_path / "m").read_text())
    assert line["loss"] == pytest.approx(plain) and set(line["loss_by_sigma"]) == {
        None
    }  # it does not say at which levels


def test_parameters_out_of_reach_have_no_gradient():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x, c_noise):
            return self.used(x)

    score = NeuralScore(Spare(), INTERVAL)
    before = score.network.spare.weight.clone(), score.network.used.weight.clone()
    train(score, DATA, steps=3, **QUIET)
    assert torch.equal(score.network.spare.weight, before[0]) and not torch.equal(score.network.used.weight, before[1])


# what it writes -----------------------------------------------------------------------------------------------------


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_the_means_since_the_last_line(tmp_path):
    path, seen = tmp_path / "m.jsonl", []
    train(small_score(), DATA, steps=25, metrics=path, metrics_every=10, log=seen.append, **QUIET)
    written = lines(path)
    assert [line["step"] for line in written] == [10, 20, 25]
    for line, block in zip(written, (seen[:10], seen[10:20], seen[20:]), strict=True):
        assert line["loss"] == pytest.approx(sum(s["loss"] for s in block) / len(block))
        assert line["grad_norm"] == pytest.approx(sum(s["grad_norm"] for s in block) / len(block))
        assert (line["lr"], line["seconds"]) == (block[-1]["lr"], block[-1]["seconds"])
        assert len(line["sigma"]) == len(line["loss_by_sigma"]) == BINS and line["samples_per_second"] > 0
        # strata fill the bins evenly: 16 samples a step, one in each of 16 bins
        assert sum(line["loss_by_sigma"]) / BINS == pytest.approx(line["loss"], rel=1e-5)
    assert 0.02 < written[0]["sigma"][0] < written[0]["sigma"][-1] < 2.0


def test_the_curve_is_the_mean_loss_of_each_bin():
    curve = Curve(0.01, 1.0, torch.device("cpu"))
    middle = torch.tensor(curve.centres)
    torch.testing.assert_close(middle[1:] / middle[:-1], torch.full((BINS - 1,), 100 ** (1 / BINS)))
    curve.add(Terms(middle[[0, 0, 3]], torch.tensor([1.0, 2.0, 5.0])))
    curve.add(Terms(torch.tensor([[1e-9, 1e9]]), torch.tensor([[6.0, 7.0]])))  # beyond the ends: in the outer bins
    expected = [3.0, None, None, 5.0] + [None] * (BINS - 5) + [7.0]
    assert curve.read() == expected and curve.read() == [None] * BINS


def test_resuming_goes_on_with_the_metrics(tmp_path):
    path, whole, checkpoint = tmp_path / "m", tmp_path / "whole", tmp_path / "c"
    options = {**QUIET, "metrics_every": 2}
    train(small_score(), DATA, steps=8, metrics=whole, **options)
    train(small_score(), DATA, steps=4, metrics=path, checkpoint=checkpoint, **options)
    kept = path.read_text()
    # a run that went on to step 6 and was killed within a line, before it saved
    path.write_text(kept + '{"step": 6, "loss": 0.5}\n{"step": 8, "lo')
    train(small_score(), DATA, steps=8, metrics=path, checkpoint=checkpoint, resume=True, **options)
    assert path.read_text().startswith(kept) and [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    for one, two in zip(lines(path), lines(whole), strict=True):
        assert {k: v for k, v in one.items() if "second" not in k} == {
            k: v for k, v in two.items() if "second" not in k
        }
    path.write_text("a shopping list\n" + kept)
    with pytest.raises(ValueError, match="whose line 1 is no JSON object with a step"):
        train(small_score(), DATA, steps=9, metrics=path, checkpoint=checkpoint, resume=True, **options)
    assert path.read_text() == "a shopping list\n" + kept
    train(small_score(), DATA, steps=2, metrics=path, **options)  # anew: replaced
    assert [line["step"] for line in lines(path)] == [2]


def test_tensorboard_gets_the_same_or_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard, or write metrics="):
        train(small_score(), DATA, steps=1, tensorboard=tmp_path / "t", **QUIET)
    written, closed = {}, []

    class Writer:
        def __init__(self, folder, purge_step):
            assert (folder, purge_step) == (str(tmp_path / "t"), 1)

        def add_scalar(self, name, value, step):
            written[name, step] = value

        flush = lambda self: None
        close = lambda self: closed.append(True)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    train(small_score(), DATA, steps=4, tensorboard=tmp_path / "t", metrics=tmp_path / "m", metrics_every=4, **QUIET)
    (line,) = lines(tmp_path / "m")
    assert closed == [True] and written["loss", 4] == line["loss"]
    curve = [value for (name, step), value in written.items() if name.startswith("loss_by_sigma/")]
    assert curve == line["loss_by_sigma"] and ("step", 4) not in written


def test_samples_are_drawn_from_the_average_and_disturb_nothing():
    drawn = []

    def draw(score, step):
        assert score.use_ema and not score.training and not torch.is_grad_enabled()
        drawn.append((step, float(torch.rand(())), score(torch.full((1, 1), 0.3), 0.5)))

    plain, watched = small_score(dropout=0.2), small_score(dropout=0.2)
    train(plain, DATA, steps=7, **QUIET)
    state = torch.get_rng_state()
    train(watched, DATA, steps=7, samples=draw, samples_every=3, **QUIET)
    assert same(plain, watched) and torch.equal(torch.get_rng_state(), state)
    first = list(drawn)
    assert [step for step, *_ in drawn] == [3, 6] and drawn[0][1] != drawn[1][1]
    train(small_score(dropout=0.2), DATA, steps=7, samples=draw, samples_every=3, **QUIET)
    assert [u for _, u, _ in drawn[2:]] == [u for _, u, _ in first]  # what it draws is reproducible as well
    bare = small_score()
    train(
        bare, DATA, steps=3, ema=None, samples=lambda score, step: drawn.append(score.use_ema), samples_every=3, **QUIET
    )
    assert drawn[-1] is False


# rates, data, averages ------------------------------------------------------------------------------------------------


def test_a_cosine_falls_from_one_rate_to_the_other_and_travels_in_the_checkpoint(tmp_path):
    rate = Cosine(2e-3, 100, 1e-4)
    assert [rate(k) for k in (0, 50, 100, 1000)] == pytest.approx([2e-3, 1.05e-3, 1e-4, 1e-4])
    assert rate(25) == pytest.approx(1e-4 + 1.9e-3 * (2 + math.sqrt(2)) / 4)
    options = {"checkpoint": tmp_path / "c", **QUIET}
    train(small_score(), DATA, steps=2, lr=Cosine(2e-3, 100), **options)
    with pytest.raises(ValueError, match=r"lr is .*'steps': 100.* there and .*'steps': 200"):
        train(small_score(), DATA, steps=4, lr=Cosine(2e-3, 200), resume=True, **options)
    with pytest.raises(ValueError, match="steps: got 0"):
        Cosine(1e-3, 0)


def test_pieces_are_consecutive_parts_of_the_batch():
    whole, parts = (Batches(DATA, INTERVAL.domain, 12, pieces, 3) for pieces in (1, 3))
    for step in (0, 3, 4):  # the fifth batch crosses into the next epoch
        x = torch.cat([parts.at(step, piece, torch.device("cpu"))[0] for piece in range(3)])
        assert torch.equal(x, whole.at(step, 0, torch.device("cpu"))[0])


def test_a_tensor_dataset_is_read_as_its_items_are():
    labelled = TensorDataset(DATA, torch.arange(50))
    items = [(x, int(label)) for x, label in labelled]
    one, two = (Batches(data, INTERVAL.domain, 12, 1, 3).at(1, 0, torch.device("cpu")) for data in (labelled, items))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1]["label"], two[1]["label"])
    assert Batches(TensorDataset(DATA), INTERVAL.domain, 4, 1, 0).at(0, 0, torch.device("cpu"))[1] == {}
    with pytest.raises(TypeError, match="items of 3 parts"):
        Batches(TensorDataset(DATA, DATA, DATA), INTERVAL.domain, 4, 1, 0).at(0, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("data", "message"),
    [(DATA.numpy(), "numpy array, expected a tensor"), ((DATA, torch.arange(50)), r"TensorDataset\(x, labels\)")],
)
def test_what_looks_like_a_data_set_is_refused(data, message):
    with pytest.raises(TypeError, match=message):
        train(small_score(), data, steps=1, progress=False)


def test_checkpoints_are_readable_as_any_new_file_is(tmp_path):
    (tmp_path / "plain").touch()
    small_score().save(tmp_path / "score.safetensors")
    assert (tmp_path / "score.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(ValueError, match="got the folder"):
        NeuralScore.load(tmp_path)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_average_moves_by_its_decay(as_tensor):
    score = NeuralScore(MLP(MLPConfig((1,), 8, 1)), Diffusion(Euclidean((1,)), VP()))
    score.track_ema()
    before = [p.clone() for p in score.ema.parameters()]
    for p in score.network.parameters():
        p.data.add_(1)
    score.update_ema(torch.tensor(0.75) if as_tensor else 0.75)
    for mean, start in zip(score.ema.parameters(), before, strict=True):
        torch.testing.assert_close(mean, start + 0.25)
    kept = [p.clone() for p in score.ema.parameters()]
    score.update_ema(torch.ones(()) if as_tensor else 1.0)
    assert all(torch.equal(a, b) for a, b in zip(kept, score.ema.parameters(), strict=True))
