"""Networks that predict something else than a score: exact predictors give the exact score, at every level and in every shape."""

import pytest
import torch
from torch import nn

from carom.domains import Euclidean, Hypercube, Product
from carom.processes import EDM, VE, VP, CosineVP, Diffusion, Discrete, FlowMatching, SubVP, retime
from carom.scores import GaussianMixtureScore, PredictionScore, from_prediction, prediction
from carom.solvers import DDIM, DPMSolverPP, Heun, sample, uniform

KINDS = ("noise", "data", "v", "velocity", "score")
SCHEDULES = [VP(), SubVP(), VE(), EDM(), CosineVP(), FlowMatching(), Discrete.ddpm(50)]
PLANE = Euclidean((2,))
F64 = torch.float64


def zero_snr() -> Discrete:
    table = Discrete.ddpm(50).alphas_cumprod.clone()
    table[-1] = 0
    return Discrete(table)


def mixture(schedule) -> GaussianMixtureScore:
    return GaussianMixtureScore(
        Diffusion(PLANE, schedule), [0.3, 0.7], [[0.5, -0.3], [-1.0, 0.8]], [[0.5, 0.2], [0.3, 0.4]]
    )


def exact(score: GaussianMixtureScore, kind: str):
    """The network with the smallest regression loss of its kind, which sees x [B, 2] and t [B]."""
    schedule = score.process.schedule

    def network(x, t):
        assert x.dim() == 2 and t.shape == x.shape[:1]
        if kind == "score":
            return score(x, t)
        data, noise = score.prediction(x, t)
        s, m = schedule.scale(t)[:, None], schedule.std(t)[:, None]
        v = (s * noise - m * data) / torch.hypot(s, m)
        return {"noise": noise, "data": data, "v": v, "velocity": noise - data}[kind]

    return network


def points(*shape, dtype=F64):
    return torch.randn(*shape, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_predictor_gives_the_exact_score_and_predictions(kind, schedule) -> None:
    truth = mixture(schedule)
    score = from_prediction(exact(truth, kind), truth.process, kind, "t")
    for t in (0.05, 0.3, 0.8, schedule.t_max):
        x = float(schedule.std(t)) * points(7)
        # two products of float64 numbers, whose difference is divided by σ ≥ 0.03 at most twice
        torch.testing.assert_close(score(x, t), truth(x, t), rtol=1e-10, atol=1e-10 / float(schedule.std(t)))
        for ours, theirs in zip(score.prediction(x, t), truth.prediction(x, t), strict=True):
            # from a score x0 is a difference of numbers of size |x|/s
            size = float(x.abs().max() / schedule.scale(t))
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14 * size + 1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_exact_where_sigma_vanishes(kind, schedule) -> None:
    truth, x = mixture(schedule), points(5)
    data, noise = from_prediction(exact(truth, kind), truth.process, kind, "t").prediction(x, 0.0)
    torch.testing.assert_close(data, x, rtol=1e-13, atol=1e-13)
    # E[ε | x] = −std·score is 0 there
    torch.testing.assert_close(noise, torch.zeros_like(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("schedule", [FlowMatching(), zero_snr()], ids=repr)
@pytest.mark.parametrize("kind", ["data", "v", "velocity"])
def test_predictions_are_exact_where_the_scale_vanishes(kind, schedule) -> None:
    truth, x = mixture(schedule), points(5)
    score = from_prediction(exact(truth, kind), truth.process, kind, "t")
    data, noise = score.prediction(x, 1.0)
    # nothing is known: the mean of the data, and x itself for noise
    mean = (truth.weights[:, None] * truth.means).sum(0).expand(5, 2)
    torch.testing.assert_close(data, mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(noise, x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("schedule", [FlowMatching(), zero_snr()], ids=repr)
@pytest.mark.parametrize("kind", ["noise", "score"])
def test_noise_and_scores_say_nothing_about_data_where_the_scale_vanishes(kind, schedule) -> None:
    truth = mixture(schedule)
    score = from_prediction(exact(truth, kind), truth.process, kind, "t")
    with pytest.raises(
        ValueError, match=r"t = 1, where the scale is 0 .* predicts (noise|score).*; start the grid there"
    ):
        score.prediction(points(3), 1.0)


def test_sampling_may_start_from_pure_noise_with_a_velocity() -> None:
    truth = mixture(FlowMatching())
    score = from_prediction(exact(truth, "velocity"), truth.process, "velocity", "t")
    x = points(16)
    for solver in (DDIM(), DPMSolverPP(2)):
        ours, theirs = (
            sample(truth.process, s, solver, torch.linspace(1, 0.05, 9, dtype=F64), shape=16, initial=x).x
            for s in (score, truth)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_score_serves_other_schedules_by_retiming(kind) -> None:
    truth = mixture(VP())
    score = from_prediction(exact(truth, kind), truth.process, kind, "t")
    target = mixture(EDM())
    for t in (torch.tensor(0.01, dtype=F64), torch.full((4, 1), 0.01, dtype=F64)):
        x = points(4)
        found = retime(score, truth.process, target.process)
        torch.testing.assert_close(found(x, t), target(x, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.prediction(x, t)[0], target.prediction(x, t)[0], rtol=1e-9, atol=1e-9)


def test_retiming_hands_on_one_time_or_one_per_sample() -> None:
    seen = []
    score = retime(lambda x, t: (seen.append(t), x)[1], Diffusion(PLANE, VP()), Diffusion(PLANE, EDM()))
    x = torch.zeros(4, 3, 2, dtype=F64)
    for t in (0.5, torch.tensor(0.5), torch.full((3,), 0.5), torch.full((4, 3, 1), 0.5)):
        score(x, t)
    assert [tuple(t.shape) for t in seen] == [(), (), (4, 3, 1), (4, 3, 1)]
    assert all(float((t - seen[0]).abs().max()) == 0 for t in seen)


def test_float32_loses_no_more_than_its_rounding() -> None:
    """From scale 6e-3 to 1, with noise, data and v, against float64 at the same float32 points."""
    truth = mixture(Discrete.ddpm(1000))
    for kind in ("noise", "data", "v"):
        score = from_prediction(exact(truth, kind), truth.process, kind, "t")
        for level in (1000, 700, 30):
            x, t = points(9, dtype=torch.float32), torch.tensor(level / 1000)
            expected = truth.prediction(x.double(), level / 1000)
            for ours, theirs, amplified in zip(
                score.prediction(x, t),
                expected,
                (
                    1 / float(truth.process.schedule.scale(level / 1000)),
                    1 / float(truth.process.schedule.std(level / 1000)),
                ),
                strict=True,
            ):
                # the network's answer and x are rounded to 6e-8, the network itself computes in float32: a few roundings of
                # numbers up to 3, which x0 = (x − mε)/s and ε = (x − s·x0)/m divide by s and m
                assert float((ours - theirs).abs().max()) <= 2e-6 * amplified


# ----------------------------------------------------------------------------------------------------------- shapes and types


class Recorder(nn.Module):
    """Answers with x and remembers what it saw."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x, label, **condition):
        self.seen = (x, label, condition)
        return self.weight * x


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("form", ["number", "0-d", "per sample"])
def test_networks_see_one_batch_dimension_whatever_the_callers_are(batch, form) -> None:
    process, network = Diffusion(Euclidean((3, 4)), VP()), Recorder()
    x = torch.randn(*batch, 3, 4)
    t = {"number": 0.5, "0-d": torch.tensor(0.5), "per sample": torch.full((*batch, 1, 1), 0.5)}[form]
    count = x.numel() // 12
    condition = {
        "y": torch.arange(count).reshape(batch),
        "more": {"text": torch.zeros(*batch, 5, 6)},
        "flag": True,
    }
    score = from_prediction(network, process, "noise", "1000t")
    value = score(x, t, **condition)
    assert value.shape == x.shape and value.dtype == x.dtype
    seen, label, extra = network.seen
    assert seen.shape == (count, 3, 4) and label.tolist() == [500.0] * count
    assert extra["y"].tolist() == list(range(count)) and extra["more"]["text"].shape == (count, 5, 6)
    assert extra["flag"] is True
    assert torch.equal(score.rows(torch.tensor([0]))(x, t), value)
    for part in score.prediction(x, t):
        assert part.shape == x.shape and part.dtype == x.dtype


@pytest.mark.parametrize(
    ("own", "seen_label"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)]
)
def test_a_network_computes_in_its_own_dtype_and_the_rest_in_the_callers(own, seen_label) -> None:
    network = Recorder(own)
    score = from_prediction(network, Diffusion(PLANE, VP()), "v")
    x = points(4)
    assert score(x, 0.3).dtype == F64
    assert network.seen[0].dtype == own and network.seen[1].dtype == seen_label
    data, noise = score.prediction(x, 0.3)
    # the pair belongs to x exactly, however coarse the network
    s, m = (score.process.schedule.scale(0.3), score.process.schedule.std(0.3))
    torch.testing.assert_close(s * data + m * noise, x, rtol=1e-13, atol=1e-13)


def test_an_empty_batch_does_not_reach_the_network() -> None:
    score = from_prediction(lambda x, t: 1 / 0, Diffusion(PLANE, VP()), "noise")
    assert score(torch.zeros(0, 2), 0.5).shape == (0, 2)


def test_gradients_reach_the_network_and_x() -> None:
    network = Recorder()
    x = torch.randn(3, 2, requires_grad=True)
    from_prediction(network, Diffusion(PLANE, VP()), "data")(x, 0.5).square().sum().backward()
    assert float(network.weight.grad.abs()) > 0 and float(x.grad.abs().min()) > 0


@pytest.mark.parametrize("schedule", [Discrete.ddpm(50), FlowMatching()], ids=repr)
def test_a_prediction_score_compiles_whole(schedule) -> None:
    score = from_prediction(Recorder(), Diffusion(PLANE, schedule), "v")
    x, t = torch.randn(3, 2), torch.tensor(0.5)
    for function in (score.__call__, score.prediction):
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, t), function(x, t))


def test_learned_variance_is_the_second_half_of_the_channels() -> None:
    process = Diffusion(Euclidean((2, 3)), VP())
    x = torch.randn(5, 2, 3)
    score = from_prediction(lambda x, t: torch.cat([x, 7 * x], 1), process, "noise", learned_variance=True)
    torch.testing.assert_close(score(x, 0.4), -x / process.schedule.std(0.4).float())
    torch.testing.assert_close(score.variance_output(x, 0.4), 7 * x)
    with pytest.raises(ValueError, match="without learned variance"):
        from_prediction(lambda x, t: x, process, "noise").variance_output(x, 0.4)


# --------------------------------------------------------------------------------------------------------------------- labels


def seen_label(label, schedule, t, dtype=F64):
    network = []
    score = from_prediction(lambda x, label: (network.append(label), x)[1], Diffusion(PLANE, schedule), "noise", label)
    score(torch.zeros(1, 2, dtype=dtype), t)
    return network[0]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_labels_are_whole_at_the_levels_of_a_table(dtype) -> None:
    for count in (50, 1000):
        schedule = Discrete.from_betas("linear", count)
        t = (torch.arange(1, count + 1, dtype=F64) / count).to(dtype)
        score = from_prediction(lambda x, label: label[:, None] + 0 * x, Diffusion(PLANE, schedule), "score")
        assert torch.equal(score(torch.zeros(count, 2, dtype=dtype), t)[:, 0], torch.arange(count).to(dtype))


def test_labels_between_levels_are_linear_in_log_sigma() -> None:
    schedule = Discrete.from_betas("linear")
    low, high = schedule.sigma(0.3), schedule.sigma(0.301)
    for share in (0.25, 0.5, 0.9):
        t = float(schedule.time(low ** (1 - share) * high**share))
        assert float(seen_label(None, schedule, t)) == pytest.approx(299 + share, abs=1e-9)
        assert float(seen_label(range(0, 4000, 4), schedule, t)) == pytest.approx(4 * (299 + share), abs=1e-8)
    # below the first level there is no other label
    assert float(seen_label("index", schedule, 0.0003)) == 0


def test_labels_by_name_and_by_function() -> None:
    assert float(seen_label(None, VP(), 0.25)) == 0.25
    assert float(seen_label("t", VP(), 0.25)) == 0.25
    assert float(seen_label("1000t", FlowMatching(), 0.25)) == 250
    assert float(seen_label("sigma", EDM(), 0.25)) == 20
    whole = seen_label(lambda t: (999 * t).round().long(), VP(), 0.25)
    assert whole.dtype == torch.int64 and whole.tolist() == [250]


# ----------------------------------------------------------------------------------------------------- prediction(score, x, t)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_any_score_has_predictions(schedule) -> None:
    truth = mixture(schedule)
    bare = lambda x, t: truth(x, t)
    for t in (0.05, 0.5, torch.tensor([[0.3], [0.6], [0.7]], dtype=F64)):
        x, expected = points(3), truth.prediction(points(3), t)
        for ours, theirs in zip(prediction(bare, x, t, truth.process), expected, strict=True):
            # x0 = x/s + sσ²·score: a difference of numbers of size |x|/s ≤ 3e2
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
        for ours, theirs in zip(prediction(truth, x, t), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_the_score_may_bring_its_process_and_takes_its_condition() -> None:
    class Bare:
        process = Diffusion(Hypercube((2,)), VE())

        def __call__(self, x, t, *, by):
            return by * torch.ones_like(x)

    x, t = torch.full((1, 2), 0.5, dtype=F64), 0.5
    data, noise = prediction(Bare(), x, t, by=3.0)
    sigma = float(Bare.process.schedule.sigma(t))
    torch.testing.assert_close(data, x + 3 * sigma**2)
    torch.testing.assert_close(noise, torch.full_like(x, -3 * sigma))


# ------------------------------------------------------------------------------------------------------------------- refusals

LINE = Diffusion(PLANE, VP())
PARTS = Diffusion(Product(Euclidean((1,)), Euclidean((1,))), [VP(), EDM()])
REFUSALS = [
    (lambda: from_prediction(3, LINE, "noise"), TypeError, "network: got int, expected a callable"),
    (lambda: from_prediction(Recorder(), VP(), "noise"), TypeError, "process: got VP"),
    (
        lambda: from_prediction(Recorder(), LINE, "eps"),
        ValueError,
        "predicts: got 'eps', expected one of noise, data, v,",
    ),
    (lambda: from_prediction(Recorder(), PARTS, "score"), ValueError, "a schedule for each part"),
    (
        lambda: from_prediction(Recorder(), Diffusion(Hypercube((2,)), VE()), "noise"),
        ValueError,
        "got 'noise' on Hypercube.* expected 'score'",
    ),
    (
        lambda: from_prediction(Recorder(), LINE, "noise", "2000t"),
        ValueError,
        "label: got '2000t', expected one of t, 1000t",
    ),
    (lambda: from_prediction(Recorder(), LINE, "noise", "index"), TypeError, "expected a Discrete schedule"),
    (
        lambda: from_prediction(Recorder(), Diffusion(PLANE, Discrete.ddpm(50)), "noise", [1, 2]),
        ValueError,
        r"table of shape \(2,\), expected \(50,\)",
    ),
    (
        lambda: from_prediction(lambda x, t: x[:, :1], LINE, "noise")(torch.zeros(3, 2), 0.5),
        ValueError,
        r"output of shape \(3, 1\) for an input of shape \(3, 2\), expected shape \(3, 2\)",
    ),
    (
        lambda: from_prediction(lambda x, t: None, LINE, "noise")(torch.zeros(3, 2), 0.5),
        ValueError,
        "output of NoneType",
    ),
    (lambda: from_prediction(Recorder(), LINE, "noise")(torch.zeros(3, 5), 0.5), ValueError, r"x: got shape \(3, 5\)"),
    (
        lambda: prediction(lambda x, t: x, torch.zeros(3, 2), 0.5),
        TypeError,
        "got NoneType for function, expected the Diffusion",
    ),
    (
        lambda: prediction(lambda x, t: x, torch.zeros(3, 2), 1.0, Diffusion(PLANE, FlowMatching())),
        ValueError,
        "where the scale is 0 and a score says nothing",
    ),
]


@pytest.mark.parametrize(("act", "error", "message"), REFUSALS, ids=[m for *_, m in REFUSALS])
def test_refusals_say_what_was_got_and_what_was_expected(act, error, message) -> None:
    with pytest.raises(error, match=message):
        act()


def test_a_prediction_score_works_on_a_bounded_domain_as_a_score() -> None:
    process = Diffusion(Hypercube((2,)), VE())
    score = from_prediction(lambda x, sigma: -(x - 0.5) / (1 + sigma[:, None] ** 2), process, "score", "sigma")
    assert "PredictionScore(function" in repr(score) and isinstance(score, PredictionScore)
    x = sample(process, score, Heun(), uniform(process, 5), shape=8, seed=0).x
    assert bool(process.domain.contains(x).all())
