"""DDPM's bound at levels drawn by importance: the same mean, less noise, and a memory that travels with the training."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from carom.domains import Euclidean
from carom.processes import Diffusion, Discrete
from carom.scores.neural import MLP, EDMPreconditioning, MLPConfig, NeuralScore, VariationalBound, train
from carom.scores.neural.importance import ImportanceSampled
from carom.scores.neural.updates import Updates
from carom.scores.neural.workers import Workers

TABLE = Discrete.ddpm(20, beta_max=8.0)
PROCESS = Diffusion(Euclidean((1,)), TABLE)
QUIET = {"progress": False, "batch_size": 40, "warmup": 0, "lr": 1e-3}
DATA = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))


def small_score() -> NeuralScore:
    torch.manual_seed(0)
    return NeuralScore(MLP(MLPConfig((1,), 8, 1)), PROCESS, EDMPreconditioning(1.0, 0.0))


def sampled(**settings) -> ImportanceSampled:
    return ImportanceSampled(VariationalBound(), 20, **settings)


def seed(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


@torch.no_grad()
def warm(objective: ImportanceSampled, score: NeuralScore) -> ImportanceSampled:
    for i in range(20):
        objective(score, DATA, generator=seed(i))
        objective.settle()
    return objective


def same(a, b) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_until_every_level_has_its_losses_it_is_the_bound_itself():
    score, objective = small_score(), sampled()
    for i in range(1, 4):
        with torch.no_grad():
            ours = objective.terms(score, DATA[:60], seed(i))
            plain = VariationalBound().terms(score, DATA[:60], seed(i))
        assert torch.equal(ours.sigma, plain.sigma)
        torch.testing.assert_close(ours.loss, plain.loss)  # L/p and N·L: float32 roundings
        objective.settle()
        assert objective.counts.tolist() == [3 * i] * 20  # 60 samples in strata of 20 levels
        assert torch.equal(objective.probabilities(), torch.full((20,), 1 / 20, dtype=torch.float64))
    objective(score, DATA[:60])
    objective.settle()
    assert bool((objective.counts == 12).all()) and float(objective.probabilities().diff().abs().max()) > 0


def test_the_memory_is_the_mean_of_the_first_losses_and_then_a_running_one():
    objective = ImportanceSampled(VariationalBound(), 2, memory=4, floor=0.1)
    place = torch.tensor([0, 0, 0, 1])
    objective._see(place, torch.tensor([1.0, 2.0, 3.0, 5.0]))
    objective.settle()
    torch.testing.assert_close(objective.squares, torch.tensor([14 / 3, 25.0]))
    objective._see(place, torch.tensor([2.0, 2.0, 2.0, 5.0]))
    objective.settle()
    # three new ones of a memory of four
    torch.testing.assert_close(objective.squares, torch.tensor([14 / 3 / 4 + 3, 25.0]))
    assert objective.counts.tolist() == [6, 2] and objective.probabilities().tolist() == [0.5, 0.5]
    objective._see(torch.ones(9).long(), torch.full((9,), 3.0))
    objective.settle()
    assert objective.squares[1] == 9  # more new ones than it remembers
    first = math.sqrt(14 / 12 + 3)
    assert objective.probabilities()[0].item() == pytest.approx(0.9 * first / (first + 3) + 0.05, rel=1e-6)


def test_as_many_losses_as_it_remembers_are_enough():
    objective = ImportanceSampled(VariationalBound(), 2, memory=2, floor=0.5)
    objective._see(torch.tensor([0, 0, 1, 1]), torch.tensor([3.0, 3.0, 1.0, 1.0]))
    objective.settle()
    assert objective.probabilities().tolist() == pytest.approx([0.625, 0.375])  # half by size, 3 : 1, half alike


@torch.no_grad()
def test_levels_are_drawn_with_these_probabilities_in_strata():
    score = small_score()
    objective = warm(sampled(), score)
    n = 10_000
    sigma = objective.terms(score, torch.zeros(n, 1), seed(3)).sigma
    drawn = (TABLE.time(sigma.double()) * 20).round().long().bincount(minlength=21)[1:]
    expected = n * objective.probabilities()
    # of a stratified sample an interval of the law holds its share of points to within 1
    assert float((drawn - expected).abs().max()) <= 1 and float(expected.max() / expected.min()) > 3


@pytest.mark.montecarlo
@torch.no_grad()
def test_it_has_the_mean_of_the_bound_and_less_noise():
    score = small_score()
    objective, plain = warm(sampled(), score).eval(), VariationalBound()
    x0 = torch.randn(20_000, 1, generator=seed(1))
    ours, theirs = (o.terms(score, x0, seed(2)).loss for o in (objective, plain))
    error = math.hypot(float(ours.std()), float(theirs.std())) / math.sqrt(len(x0))
    assert abs(float(ours.mean() - theirs.mean())) <= 4 * error
    # most of the noise of the bound is that of L_0 among the levels
    assert float(ours.var()) < 0.5 * float(theirs.var())
    assert not bool(objective.seen.any())  # an evaluation is not remembered


def test_parts_of_a_batch_add_up_to_the_memory_of_the_whole():
    """What processes and pieces see are sums, added before they are taken over; with the law fixed in between."""
    whole, parts = sampled(), (sampled(), sampled())
    place, loss = torch.arange(80) % 20, torch.rand(80, generator=seed(0))
    whole._see(place, loss)
    for part, rows in zip(parts, (slice(30), slice(30, 80)), strict=True):
        part._see(place[rows], loss[rows])
    total = parts[0].sums()[0] + parts[1].sums()[0]
    for part in parts:
        part.sums()[0].copy_(total)  # as Workers.add does
        part.settle()
    whole.settle()
    assert same(*parts)
    torch.testing.assert_close(parts[0].squares, whole.squares)


def test_a_step_adds_over_processes_before_it_settles():
    """Of two processes that saw the same losses every level remembers both, once."""

    class Twins(Workers):
        def add(self, tensors):
            for tensor in tensors:
                tensor.mul_(2)

    objective = sampled()
    updates = Updates(small_score(), objective, lambda _: 1e-3, None, 0.0, None, Twins())
    updates.begin()
    loss = objective(updates.model, DATA[:40], generator=seed(0))
    loss.backward()
    updates.finish(loss.detach(), 0)
    assert objective.counts.tolist() == [4] * 20  # 40 samples in strata of 20 levels, twice
    assert not objective.seen.any()


def test_training_remembers_and_resumes_bit_for_bit(tmp_path):
    path, whole, again = tmp_path / "run", (small_score(), sampled()), (small_score(), sampled())
    train(whole[0], DATA, objective=whole[1], steps=12, microbatches=2, **QUIET)
    train(small_score(), DATA, objective=sampled(), steps=7, microbatches=2, checkpoint=path, **QUIET)
    train(again[0], DATA, objective=again[1], steps=12, microbatches=2, checkpoint=path, resume=True, **QUIET)
    assert same(whole[0], again[0]) and same(whole[1], again[1])
    # 12 batches of 40 samples, and a law that has left the uniform one
    assert float(whole[1].counts.sum()) == 480 and float(whole[1].probabilities().diff().abs().max()) > 0
    with pytest.raises(ValueError, match=r"belongs to another training: objective is .*memory=10.*memory=5"):
        train(
            small_score(),
            DATA,
            objective=sampled(memory=5),
            steps=20,
            microbatches=2,
            checkpoint=path,
            resume=True,
            **QUIET,
        )


def test_a_bad_step_is_not_remembered():
    score, objective = small_score(), sampled()
    data = DATA.clone()
    with pytest.raises(FloatingPointError, match="step 3 got loss nan"):
        train(score, data, objective=_Spoiled(objective, 2), steps=6, log_every=6, **QUIET)
    good = sampled()
    train(small_score(), data, objective=good, steps=2, **QUIET)
    assert same(good, objective)


class _Spoiled(ImportanceSampled):
    """The same, but for one step whose losses are no numbers; it remembers in the buffers of the one it is made of."""

    def __init__(self, inner: ImportanceSampled, bad: int):
        super().__init__(inner.bound, len(inner.squares))
        self.squares, self.counts, self.bad, self.step = inner.squares, inner.counts, bad, 0

    def terms(self, score, x0, generator=None, **condition):
        self.step += 1
        return super().terms(score, x0 * math.nan if self.step == self.bad + 1 else x0, generator, **condition)


def test_it_reads_no_value():
    """Under FakeTensorMode any .item(), any shape that depends on data, raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        score, objective = small_score(), sampled()
        score.loss(torch.rand(6, 1), objective).backward()
        objective.settle()


REFUSALS = [
    (lambda: ImportanceSampled(None), TypeError, r"bound: got NoneType, expected a VariationalBound\(\)"),
    (lambda: sampled(memory=0), ValueError, "memory: got 0, expected a whole number"),
    (lambda: ImportanceSampled(VariationalBound(), 0), ValueError, "levels: got 0"),
    (lambda: sampled(floor=0.0), ValueError, "floor: got 0"),
    (
        lambda: small_score().loss(DATA, ImportanceSampled(VariationalBound())),
        ValueError,
        "got a table of 20 levels, expected 1000; set levels= to its length",
    ),
    (lambda: sampled()(small_score(), torch.rand(3, 2)), ValueError, r"x0: got shape \(3, 2\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS, ids=[m for *_, m in REFUSALS])
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
