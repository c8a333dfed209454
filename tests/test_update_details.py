"""Details of one step of training that runs of many steps hide: decay, rate, a bad step in between, what a file must fit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from carom.domains import Euclidean
from carom.processes import VP, Diffusion
from carom.scores.neural import MLP, MLPConfig, NeuralScore, train

DATA = torch.linspace(-1, 1, 8)[:, None]
QUIET = {"progress": False, "batch_size": 4, "warmup": 0}


def small_score() -> NeuralScore:
    torch.manual_seed(0)
    return NeuralScore(MLP(MLPConfig((1,), 8, 1)), Diffusion(Euclidean((1,)), VP()))


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def test_the_average_follows_closely_at_first():
    """Decay min(ema, (1 + k)/(10 + k)): after step k = 0 the average is 0.1 of the old weights and 0.9 of the new."""
    score = small_score()
    before = weights(score.network)
    train(score, DATA, steps=1, lr=1e-2, **QUIET)
    after = weights(score.network)
    assert not torch.equal(before, after)
    # float32 roundings of numbers of size 1
    torch.testing.assert_close(weights(score.ema), 0.1 * before + 0.9 * after, rtol=0, atol=1e-6)


def test_a_step_has_the_rate_of_its_own_number():
    """Adam's first step is lr·g/(|g| + ε), so that the farthest weight moves by lr(0) = 0.01; lr(1) is 0."""
    score = small_score()
    before = weights(score.network)
    train(score, DATA, steps=1, lr=lambda step: 0.01 if step == 0 else 0.0, clip=None, **QUIET)
    assert (weights(score.network) - before).abs().max().item() == pytest.approx(0.01, rel=1e-4)


class Odd:
    """The square of the scores, but for one step whose loss is not a number."""

    def __init__(self, bad: int | None):
        self.bad, self.count = bad, 0

    def __call__(self, score, x, generator=None):
        self.count += 1
        loss = score(x, 0.5).square().mean()
        return loss * float("nan") if self.count - 1 == self.bad else loss


def test_good_steps_after_a_bad_one_are_not_taken_either():
    """Read after ten steps: steps 0 and 1 were taken, step 2 was bad, and those after it were good by themselves."""
    stopped, whole = small_score(), small_score()
    with pytest.raises(FloatingPointError, match="step 3 got loss nan"):
        train(stopped, DATA, objective=Odd(2), steps=10, log_every=10, **QUIET)
    train(whole, DATA, objective=Odd(None), steps=2, **QUIET)
    assert torch.equal(weights(stopped.network), weights(whole.network))
    assert torch.equal(weights(stopped.ema), weights(whole.ema))


class Spare(nn.Module):
    """A network with a weight that nothing reaches."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise):
        return self.used * x


def test_weights_out_of_reach_decay_as_others_do():
    """Their gradient is 0, with which AdamW leaves p·(1 − lr·decay) = 1 − 0.1·0.5."""
    network = Spare()
    score = NeuralScore(network, Diffusion(Euclidean((1,)), VP()))
    train(score, DATA, steps=1, lr=0.1, weight_decay=0.5, **QUIET)
    assert network.spare.item() == pytest.approx(0.95)


def started(path):
    """(metadata, tensors) of the file of a training of two steps."""
    train(small_score(), DATA, steps=2, checkpoint=path, **QUIET)
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("ema.", "averaged weights that do not fit MLP"),
        ("network.", "weights that do not fit MLP"),
        ("training.", "the optimizer state .* does not fit the network"),
    ],
)
def test_a_file_with_one_tensor_of_another_shape_is_not_resumed_and_touches_nothing(prefix, message, tmp_path):
    path = tmp_path / "run"
    metadata, tensors = started(path)
    wrong = next(name for name, value in tensors.items() if name.startswith(prefix) and value.dim())
    save_file(tensors | {wrong: torch.zeros(3, 5, 7)}, path, metadata)
    score = small_score()
    before = weights(score.network)
    with pytest.raises(ValueError, match=message):
        train(score, DATA, steps=4, checkpoint=path, resume=True, **QUIET)
    assert torch.equal(weights(score.network), before) and score.ema is None


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (lambda k: k == "training.0.exp_avg", r"1 difference: 0\.exp_avg missing\)"),
        (lambda k: k == "training.1.exp_avg_sq", r"1 difference: 1\.exp_avg_sq missing\)"),
        (lambda k: k == "training.2.step", r"1 difference: 2\.step missing\)"),
        (lambda k: k.startswith("training.3."), r"3 differences: 3\.step missing; 3\.exp_avg missing"),
        (lambda k: k.startswith("training."), r"48 differences: 0\.step missing; 0\.exp_avg missing; .*…\)"),
    ],
    ids=["mean", "square", "counter", "one parameter", "all"],
)
def test_a_file_without_some_of_the_optimizers_state_is_not_resumed_and_touches_nothing(lost, message, tmp_path):
    """Moments that start anew at 0 would be another training, without a word."""
    path = tmp_path / "run"
    metadata, tensors = started(path)
    save_file({k: v for k, v in tensors.items() if not lost(k)}, path, metadata)
    score = small_score()
    before = weights(score.network)
    with pytest.raises(ValueError, match=rf"optimizer state in '.*run' does not fit the network \({message}"):
        train(score, DATA, steps=4, checkpoint=path, resume=True, **QUIET)
    assert torch.equal(weights(score.network), before) and score.ema is None
    save_file(tensors | {"training.x.exp_avg": torch.zeros(2)}, path, metadata)
    with pytest.raises(ValueError, match=r"x\.exp_avg not in AdamW"):
        train(score, DATA, steps=4, checkpoint=path, resume=True, **QUIET)


def test_a_file_written_before_the_first_step_is_resumed(tmp_path):
    """A first step that is bad leaves no step to keep: the training goes on from its beginning."""
    path, score, whole = tmp_path / "run", small_score(), small_score()
    with pytest.raises(FloatingPointError, match="step 1 got loss nan"):
        train(score, DATA, objective=Odd(0), steps=3, checkpoint=path, **QUIET)
    train(score, DATA, objective=Odd(None), steps=3, checkpoint=path, resume=True, **QUIET)
    train(whole, DATA, objective=Odd(None), steps=3, **QUIET)
    assert torch.equal(weights(score.network), weights(whole.network))
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["header"])
    header["training"]["step"] = 0  # as a device writes it whose AdamW never ran
    bare = {k: v for k, v in tensors.items() if not k.startswith("training.")}
    save_file(bare, path, metadata | {"header": json.dumps(header)})
    assert train(small_score(), DATA, objective=Odd(None), steps=1, checkpoint=path, resume=True, **QUIET).steps == 1
