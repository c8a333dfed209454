"""Guidance: closed forms of classes and energies, the laws it leads to, equalities between its forms, walls, float32, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from carom.domains import Euclidean, Hypercube, Simplex
from carom.processes import VE, VP, Diffusion, FlowMatching
from carom.scores import (
    Classifier,
    ClassifierFree,
    Damped,
    DynamicThreshold,
    EmpiricalScore,
    Energy,
    GaussianMixtureScore,
    StaticThreshold,
    cfg_plus_plus,
    exact_energy,
)
from carom.scores.neural import (
    MLP,
    ClassifierMLP,
    ClassifierMLPConfig,
    CrossEntropy,
    MLPConfig,
    NeuralScore,
    NoisyClassifier,
    UNet,
    UNetConfig,
    train,
)
from carom.solvers import DDIM, AdaptiveODE, EulerMaruyama, Heun, karras, sample
from carom.validation import problems
from carom.validation.bounds import GaussianStudy

M1 = problems.mixture()
CLASSES = [GaussianMixtureScore(M1.process, [1.0], [m], [v]) for m, v in ((-1.0, 0.04), (0.8, 0.09))]


def log_class(x: Tensor, t: Any, label: int = 1) -> Tensor:
    """log p_t(label | x) of M1."""
    joint = torch.stack([math.log(w) + c.log_prob(x, t) for w, c in zip((0.3, 0.7), CLASSES, strict=True)], -1)
    return joint[..., label] - joint.logsumexp(-1)


def conditional(x: Tensor, t: Any, label: Tensor | None = None) -> Tensor:
    """The score of M1, or of one of its components for each row."""
    if label is None:
        return M1.score(x, t)
    shape = label.reshape(label.shape + (1,) * (x.dim() - label.dim()))
    each = torch.where(shape == 0, CLASSES[0](x, t), CLASSES[1](x, t))
    return torch.where(shape < 0, M1.score(x, t), each)


conditional.process = M1.process  # type: ignore[attr-defined]


def test_a_classifier_s_gradient_makes_the_class_s_score() -> None:
    x, t = torch.tensor([[0.4]], dtype=torch.float64), 0.3
    assert float(log_class(x, t)) == pytest.approx(-0.171116339937, abs=1e-11)
    guided = Classifier(M1.score, log_class)
    value = float(guided(x, t))
    assert float(M1.score(x, t)) == pytest.approx(-0.124759924703, abs=1e-11)
    assert value - float(M1.score(x, t)) == pytest.approx(0.286865410661, abs=1e-9)
    assert value == pytest.approx(0.162105485958, abs=1e-9)
    for at in (1e-3, 0.1, 0.5, 1.0):
        points = M1.points(at, 9)
        torch.testing.assert_close(guided(points, at), CLASSES[1](points, at), rtol=1e-8, atol=1e-8)
        for mine, exact in zip(guided.prediction(points, at), CLASSES[1].prediction(points, at), strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-7, atol=1e-7)


def test_the_laws_it_leads_to_are_the_reference_ones() -> None:
    """The guided score is that of N(.8, .09) diffused, so that both laws are closed: from N(0, 1) at T = 1 down to t₀ = 1e-5."""
    study, level = GaussianStudy(M1.process, model=(0.8, 0.09)), M1.process.level(1e-5)
    for law, want in ((study.sde_law, (0.799996490, 0.090000911)), (study.ode_law, (0.79842238, 0.09000445))):
        mean, variance = law(float(level.sigma) ** 2)
        assert (float(level.scale) * mean, float(level.scale) ** 2 * variance) == pytest.approx(want, abs=2e-8)


@pytest.mark.montecarlo
def test_guided_samples_have_the_law_of_the_class() -> None:
    """4,000 samples: four standard errors of mean and variance, and 2e-3 for the steps of Euler–Maruyama."""
    for score in (Classifier(M1.score, log_class), Energy(M1.score, lambda x, t: -log_class(x, t))):
        for solver, times in ((EulerMaruyama(), karras(M1.process, 200)), (Heun(), karras(M1.process, 20))):
            x = sample(M1.process, score, solver, times, shape=4000, seed=0, dtype=torch.float64).x
            assert float(x.mean()) == pytest.approx(0.8, abs=4 * 0.3 / math.sqrt(4000) + 2e-3)
            assert float(x.var()) == pytest.approx(0.09, abs=4 * 0.09 * math.sqrt(2 / 4000) + 2e-3)


def posterior(x: Tensor, t: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_0 given x under G1 and VP."""
    level = VP().scale(torch.as_tensor(t, dtype=x.dtype)), VP().sigma(torch.as_tensor(t, dtype=x.dtype))
    noise = level[1] ** 2
    return (0.5 * noise + 0.25 * x / level[0]) / (0.25 + noise), 0.25 * noise / (0.25 + noise)


def tilt(x: Tensor, t: Any) -> Tensor:
    """−log E exp(−(x_0 + ½)²) given x."""
    mean, variance = posterior(x[..., 0], torch.as_tensor(t, dtype=x.dtype).reshape(-1)[0])
    return (mean + 0.5) ** 2 / (1 + 2 * variance) + 0.5 * (1 + 2 * variance).log()


def test_the_exact_energy_leads_to_the_tilted_law() -> None:
    g1 = problems.gaussian()
    x = torch.tensor([[0.4]], dtype=torch.float64)
    assert float(tilt(x, 0.3)) == pytest.approx(0.905166370665, abs=1e-11)
    guided = Energy(g1.score, tilt)
    assert float(g1.score(x, 0.3) - guided(x, 0.3)) == pytest.approx(0.319319492315, abs=1e-10)
    tilted = GaussianMixtureScore(g1.process, [1.0], [1 / 6], [1 / 6])
    for t in (1e-3, 0.1, 0.5, 1.0):
        at = g1.points(t, 5)
        torch.testing.assert_close(guided(at, t), tilted(at, t), rtol=1e-8, atol=1e-9)


@pytest.mark.montecarlo
def test_guided_samples_are_as_near_to_their_laws_as_draws_of_these() -> None:
    """The largest gap of distribution functions, below 1.63/√n in 99 of 100, for the class and for the tilted law, by SDE and flow."""
    g1, n = problems.gaussian(), 4000
    for process, score, mean, variance in (
        (M1.process, Classifier(M1.score, log_class), 0.8, 0.09),
        (g1.process, Energy(g1.score, tilt), 1 / 6, 1 / 6),
    ):
        law = torch.distributions.Normal(mean, math.sqrt(variance))
        for solver, times in ((EulerMaruyama(), karras(process, 200)), (Heun(), karras(process, 30))):
            x = sample(process, score, solver, times, shape=n, seed=1, dtype=torch.float64).x[:, 0].sort().values
            gap = (law.cdf(x) - (torch.arange(n) + 0.5) / n).abs().max()
            assert float(gap) < 1.63 / math.sqrt(n), (solver, mean)


def law_reached(score: Callable[..., Tensor], stochastic: bool) -> tuple[float, float]:
    """(mean, variance) that a linear score's reverse SDE or flow reaches from N(0, 1) under VP."""
    schedule = VP()

    def right(t: float, state: Any) -> list[float]:
        values = score(torch.tensor([[0.0], [1.0]], dtype=torch.float64), t).flatten()
        slope, start = float(values[1] - values[0]), float(values[0])
        a, g = float(schedule.drift_rate(t)), float(schedule.diffusion(t))
        share = 1.0 if stochastic else 0.5
        rate = a - share * g**2 * slope
        return [rate * state[0] - share * g**2 * start, 2 * rate * state[1] - (g**2 if stochastic else 0.0)]

    run = solve_ivp(right, (1.0, 1e-9), [0.0, 1.0], method="DOP853", rtol=1e-10, atol=1e-12)
    return float(run.y[0, -1]), float(run.y[1, -1])


def test_one_fixed_energy_is_biased_as_the_docstring_says() -> None:
    g1 = problems.gaussian()
    fixed = Energy(g1.score, lambda x, t: (x[..., 0] + 0.5) ** 2)
    assert law_reached(fixed, True) == pytest.approx((0.0489875057344, 0.107443159639), abs=1e-6)
    mean, variance = law_reached(fixed, False)
    assert mean == pytest.approx(-0.0697230941538, abs=1e-6) and variance < 1e-4
    assert law_reached(Energy(g1.score, tilt), True) == pytest.approx((1 / 6, 1 / 6), abs=1e-4)


@pytest.mark.parametrize("domain", ["line", "cube", "simplex"])
def test_the_exact_energy_of_a_data_set_reweights_it(domain: str) -> None:
    """With e^{−E} = 1, 2, 3 the guided score is that of the data repeated so many times, on any domain with a kernel."""
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(3, 2, dtype=torch.float64, generator=generator).sort(-1).values
    process = {
        "line": Diffusion(Euclidean((2,)), VP()),
        "cube": Diffusion(Hypercube((2,)), VE()),
        "simplex": Diffusion(Simplex(3), VE()),
    }[domain]
    counts = torch.tensor([1, 2, 3])
    energy = exact_energy(process, data, lambda x: -counts.double().log())
    guided = Energy(EmpiricalScore(process, data), energy)
    reweighted = EmpiricalScore(process, data.repeat_interleave(counts, 0))
    x = torch.rand(5, 2, dtype=torch.float64, generator=generator).sort(-1).values
    for t in (0.2, torch.linspace(0.3, 0.9, 5, dtype=torch.float64)[:, None]):
        torch.testing.assert_close(guided(x, t), reweighted(x, t), rtol=1e-8, atol=1e-8)


def test_the_paper_s_weight_is_one_less() -> None:
    """p(x|y) = 1 + .5 cos πx against the uniform law at x = .3, σ = .25, w = 1."""
    cosine = problems.cosine()

    def score(x: Tensor, t: Any, label: int | None = None) -> Tensor:
        return torch.zeros_like(x) if label is None else cosine.score(x, t)

    x, t = torch.tensor([[0.3]], dtype=torch.float64), float(cosine.process.level(sigma=0.25).t)
    guided = ClassifierFree.from_paper(score, 1.0, {"label": 0}, process=cosine.process)
    assert float(guided(x, t)) == pytest.approx(-1.53555129227, abs=1e-10)
    assert guided.weight == 2.0


numbers = st.floats(-3, 15)


@given(numbers, st.sampled_from([0.01, 0.3, 1.0]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_weight_is_the_line_through_the_two_scores(weight: float, t: float, joined: bool) -> None:
    x = M1.points(t, 4)
    label = torch.tensor([0, 1, 1, 0])
    one, other = conditional(x, t, label), M1.score(x, t)
    for negative in (None, {"label": -1}):
        guided = ClassifierFree(conditional, weight, negative=negative, joined=joined)
        torch.testing.assert_close(guided(x, t, label=label), other + weight * (one - other), rtol=1e-9, atol=1e-9)
    # bound in the constructor; at times of each row
    times = torch.full((4, 1), t, dtype=torch.float64)
    bound = ClassifierFree(conditional, weight, {"label": label}, negative={"label": -1}, joined=joined)
    torch.testing.assert_close(bound(x, times), other + weight * (one - other), rtol=1e-9, atol=1e-9)


class Counted:
    """A score of ten classes that counts what it is asked."""

    process = M1.process

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any]] = []

    def __call__(self, x: Tensor, t: Any, label: Tensor | None = None) -> Tensor:
        self.calls.append((len(x), None if label is None else label.tolist()))
        return conditional(x, t, label)


def test_what_is_not_needed_is_not_read() -> None:
    x, label = M1.points(0.3, 2), torch.tensor([0, 1])
    low, high = (float(M1.process.level(t).sigma) for t in (0.2, 0.5))
    for options, t, calls in (
        ({"weight": 1.0}, 0.3, [(2, [0, 1])]),
        ({"weight": 0.0}, 0.3, [(2, None)]),
        ({"weight": 3.0}, 0.3, [(2, [0, 1]), (2, None)]),
        ({"weight": 3.0, "negative": {"label": -1}}, 0.3, [(4, [0, 1, -1, -1])]),
        ({"weight": 3.0, "negative": {"label": -1}, "joined": False}, 0.3, [(2, [0, 1]), (2, [-1, -1])]),
        ({"weight": 3.0, "interval": (low, high)}, 0.1, [(2, [0, 1])]),
        ({"weight": 3.0, "interval": (low, high)}, 0.6, [(2, [0, 1])]),
        ({"weight": 3.0, "interval": (low, high)}, 0.3, [(2, [0, 1]), (2, None)]),
    ):
        score = Counted()
        ClassifierFree(score, **options)(x, torch.tensor(t, dtype=torch.float64), label=label)  # type: ignore[arg-type]
        assert score.calls == calls, options


def test_an_interval_holds_for_each_row() -> None:
    x, label = M1.points(0.3, 3), torch.tensor([0, 1, 0])
    t = torch.tensor([[0.1], [0.3], [0.7]], dtype=torch.float64)
    low, high = (float(M1.process.level(v).sigma) for v in (0.2, 0.5))
    guided = ClassifierFree(conditional, 4.0, interval=(low, high))(x, t, label=label)
    plain, full = conditional(x, t, label), ClassifierFree(conditional, 4.0)(x, t, label=label)
    torch.testing.assert_close(guided, torch.stack([plain[0], full[1], plain[2]]))


def test_a_weaker_guide_takes_the_place_of_no_condition() -> None:
    weak = GaussianMixtureScore(M1.process, [1.0], [0.3], [0.8])
    heard: list[Any] = []

    def guide(x: Tensor, t: Any, label: Tensor) -> Tensor:
        heard.append(label)
        return weak(x, t)

    x, label = M1.points(0.3, 3), torch.tensor([0, 1, 0])
    found = ClassifierFree(conditional, 2.5, guide=guide)(x, 0.3, label=label)
    torch.testing.assert_close(found, weak(x, 0.3) + 2.5 * (conditional(x, 0.3, label) - weak(x, 0.3)))
    assert heard and heard[0] is label
    # two closed-form scores offer predictions, and so does their combination
    both = ClassifierFree(CLASSES[1], 2.5, guide=weak)
    data, noise = both.prediction(x, 0.3)
    level = M1.process.level(0.3)
    torch.testing.assert_close(level.scale * data + level.scale * level.sigma * noise, x)
    torch.testing.assert_close(-noise / (level.scale * level.sigma), both(x, 0.3))


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_cfg_plus_plus_renoises_with_the_unconditional_noise(weight: float) -> None:
    """Step by step by hand against DDIM on the guided score."""
    times = karras(M1.process, 8)
    x = M1.points(float(times[0]), 5)
    guided = ClassifierFree(CLASSES[1], cfg_plus_plus(M1.process, times, weight), guide=M1.score)
    found = sample(M1.process, guided, DDIM(), times, shape=5, initial=x).x
    level = M1.process.level(times)
    for i in range(8):
        t = float(times[i])
        (d1, _), (d0, noise) = CLASSES[1].prediction(x, t), M1.score.prediction(x, t)  # type: ignore[attr-defined]
        data = d0 + weight * (d1 - d0)
        x = data if i == 7 else level.scale[i + 1] * (data + level.sigma[i + 1] * noise)
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("offers", [True, False])
def test_rescaling_gives_the_guided_data_the_spread_of_the_conditional_ones(offers: bool) -> None:
    process = Diffusion(Euclidean((4,)), VP())
    one = GaussianMixtureScore(process, [0.5, 0.5], [[-1.0, 0, 1, 2], [1, 1, 0, -1]], 0.1)
    other = GaussianMixtureScore(process, [1.0], [[0.0, 0, 0, 0]], 0.8)
    scores = [one, other] if offers else [lambda x, t: one(x, t), lambda x, t: other(x, t)]
    x, t = torch.tensor([[0.3, -0.2, 1.0, 0.4], [2.0, 0.1, 0.5, -1.0]], dtype=torch.float64), 0.4
    for share in (0.0, 0.7, 1.0):
        guided = ClassifierFree(scores[0], 5.0, guide=scores[1], rescale=share, process=process)
        level = process.level(t)
        data = x / level.scale + level.scale * level.sigma**2 * guided(x, t)
        first, second = one.prediction(x, t)[0], other.prediction(x, t)[0]
        plain = second + 5 * (first - second)
        wanted = plain * (1 - share + share * (first.std(-1) / plain.std(-1))[:, None])
        torch.testing.assert_close(data, wanted, rtol=1e-8, atol=1e-8)
        assert hasattr(guided, "prediction") is offers
        if offers:
            torch.testing.assert_close(guided.prediction(x, t)[0], wanted, rtol=1e-8, atol=1e-8)


def test_what_has_no_spread_is_not_rescaled() -> None:
    """Events of one number, and of equal ones."""
    weak = GaussianMixtureScore(M1.process, [1.0], [0.3], [0.8])
    x = M1.points(0.3, 3)
    plain, rescaled = (ClassifierFree(CLASSES[1], 3.0, guide=weak, rescale=r) for r in (0.0, 0.7))
    torch.testing.assert_close(rescaled(x, 0.3), plain(x, 0.3), rtol=1e-9, atol=1e-9)
    process = Diffusion(Euclidean((3,)), VP())
    one, two = (GaussianMixtureScore(process, [1.0], [[m] * 3], 0.5) for m in (0.4, -0.2))
    x = torch.full((2, 3), 0.25, dtype=torch.float64)
    found = ClassifierFree(one, 3.0, guide=two, rescale=1.0)(x, 0.3)
    torch.testing.assert_close(found, ClassifierFree(one, 3.0, guide=two)(x, 0.3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", [-1.0, 0.0, 2.5, 15.0])
def test_weights_multiply_the_gradient(weight: float) -> None:
    x, t = M1.points(0.3, 5), 0.3
    plain, gradient = M1.score(x, t), CLASSES[1](x, t) - M1.score(x, t)
    for guided in (Classifier(M1.score, log_class, weight), Energy(M1.score, lambda x, t: -log_class(x, t), weight)):
        torch.testing.assert_close(guided(x, t), plain + weight * gradient, rtol=1e-8, atol=1e-8)


def test_a_classifier_s_condition_reaches_the_score_only_where_told() -> None:
    """The plain score knows no label; a conditional one hears it as well, in its prediction too."""
    x, t, label = M1.points(0.3, 4), 0.3, torch.tensor([0, 1, 1, 0])

    def log_prob(x: Tensor, t: Any, label: Tensor) -> Tensor:
        return torch.where(label == 0, log_class(x, t, 0), log_class(x, t, 1))

    exact = conditional(x, t, label)
    torch.testing.assert_close(Classifier(M1.score, log_prob)(x, t, label=label), exact, rtol=1e-8, atol=1e-8)
    both = Classifier(conditional, log_prob, 2.0, conditional=True)(x, t, label=label)
    torch.testing.assert_close(both, exact + 2 * (exact - M1.score(x, t)), rtol=1e-8, atol=1e-8)


def test_negative_conditions_change_only_the_keywords_they_name() -> None:
    """And those of a call come on top of those bound; a number is spread over a tensor, another tensor taken as it is."""
    heard: list[dict[str, Any]] = []

    def score(x: Tensor, t: Any, **condition: Any) -> Tensor:
        heard.append(condition)
        return x

    x, label, style = torch.zeros(2, 1), torch.tensor([3, 4]), torch.tensor([[1.0], [2.0]])
    bound = {"label": torch.tensor([7, 7]), "style": style}
    guided = ClassifierFree(score, 2.0, bound, negative={"label": -1}, joined=False, process=M1.process)
    guided(x, 0.3, label=label)
    assert [h["label"].tolist() for h in heard] == [[3, 4], [-1, -1]] and all(h["style"] is style for h in heard)
    heard.clear()
    other = torch.tensor([8, 9])
    ClassifierFree(score, 2.0, bound, negative={"label": other}, process=M1.process)(x, 0.3, label=label)
    # of both batches one: labels and styles of the one half, then of the other
    assert heard[0]["label"].tolist() == [3, 4, 8, 9] and heard[0]["style"].flatten().tolist() == [1, 2, 1, 2]


def test_conditions_that_do_not_begin_with_the_batch_are_not_joined() -> None:
    heard: list[tuple[int, int]] = []

    def score(x: Tensor, t: Any, words: Tensor) -> Tensor:
        heard.append((len(x), len(words)))
        return x * words.sum()

    x = torch.ones(2, 1)
    guided = ClassifierFree(score, 2.0, {"words": torch.ones(5)}, negative={"words": 0.0}, process=M1.process)
    torch.testing.assert_close(guided(x, 0.3), 10 * x)
    assert heard == [(2, 5), (2, 5)]


def test_an_interval_holds_its_ends() -> None:
    x, label, sigma = M1.points(0.3, 2), torch.tensor([0, 1]), float(M1.process.level(0.3).sigma)
    t = torch.tensor(0.3, dtype=torch.float64)
    full = ClassifierFree(conditional, 4.0)(x, t, label=label)
    for interval in ((sigma, 2 * sigma), (0.5 * sigma, sigma)):
        torch.testing.assert_close(ClassifierFree(conditional, 4.0, interval=interval)(x, t, label=label), full)


def test_single_precision_stays_single() -> None:
    """Weights that depend on time are found in float64; what they weigh is not. To roundings of float32, times the weight."""
    x, label = M1.points(0.3, 3), torch.tensor([0, 1, 0])
    weights: list[dict[str, Any]] = [
        {"weight": lambda t: 1 + 6 * t},
        {"weight": 3.0, "interval": (0.1, 1.0)},
        {"weight": cfg_plus_plus(M1.process, karras(M1.process, 9), 0.6)},
        {"weight": 3.0, "rescale": 0.5},
    ]
    for options in weights:
        guided = ClassifierFree(conditional, **options)
        for t in (0.3, torch.full((3, 1), 0.3)):
            single = guided(x.float(), t, label=label)
            assert single.dtype == torch.float32
            torch.testing.assert_close(single.double(), guided(x, 0.3, label=label), rtol=1e-4, atol=1e-4)
    both = ClassifierFree(CLASSES[1], lambda t: 1 + 6 * t, guide=M1.score)
    assert all(v.dtype == torch.float32 for v in both.prediction(x.float(), 0.3))


@pytest.mark.parametrize("weight", [3.0, 15.0])
@pytest.mark.parametrize("kind", ["classifier", "energy", "static", "dynamic", "free"])
def test_high_weights_of_any_guidance_in_float32_have_no_nan(kind: str, weight: float) -> None:
    """Exact scores, between walls (damped) and in the open, the reverse SDE and the flow, down to σ of .01."""
    atoms, points = torch.rand(16, 2, generator=torch.Generator().manual_seed(0)), torch.rand(40, 2)
    for process in (Diffusion(Hypercube((2,)), VE()), Diffusion(Euclidean((2,)), VP())):
        walls = isinstance(process.domain, Hypercube)
        if walls and kind in ("static", "dynamic"):
            continue
        whole, half = EmpiricalScore(process, atoms), EmpiricalScore(process, atoms[:8])
        cost = exact_energy(process, atoms, lambda x: x.sum(-1))
        free = ClassifierFree(half, weight, guide=whole)
        guided: Any = {
            "classifier": Classifier(whole, lambda x, t, c=cost: -c(x, t), weight),
            "energy": Energy(whole, cost, weight),
            "static": StaticThreshold(free) if not walls else None,
            "dynamic": DynamicThreshold(free) if not walls else None,
            "free": free,
        }[kind]
        guided = Damped(guided) if walls else guided
        for solver in (EulerMaruyama(), Heun(), DDIM()):
            run = sample(process, guided, solver, karras(process, 20, sigma_min=0.01), shape=20, seed=0)
            assert run.x.dtype == torch.float32 and bool(run.ok.all()) and bool(run.x.isfinite().all())
            assert bool(process.domain.contains(run.x).all())
        for t in karras(process, 5, sigma_min=0.01).tolist():
            assert bool(guided(points, t).isfinite().all())


def test_transformers_compose() -> None:
    """Classifier on guidance on a threshold, in a solver, with the adaptive rule dropping rows that have arrived."""
    guided = Classifier(ClassifierFree(CLASSES[0], 2.0, guide=M1.score), log_class, 0.5)
    assert guided.rows(torch.tensor([0])) is not None
    x = sample(M1.process, guided, AdaptiveODE(1e-3, 1e-3), karras(M1.process, 2), shape=6, seed=range(6)).x
    alone = sample(M1.process, guided, AdaptiveODE(1e-3, 1e-3), karras(M1.process, 2), shape=1, seed=[4]).x
    assert torch.equal(alone[0], x[4]) and bool(x.isfinite().all())
    inside = StaticThreshold(guided)
    assert float(inside.prediction(x, 0.5)[0].abs().max()) <= 1.0
    # bound tensors of a batch cannot be restricted; numbers can
    index = torch.tensor([0])
    assert ClassifierFree(CLASSES[0], 2.0, {"label": torch.tensor([0, 1])}).rows(index) is None
    assert ClassifierFree(CLASSES[0], 2.0, negative={"label": torch.tensor([0, 1])}).rows(index) is None
    assert ClassifierFree(CLASSES[0], 2.0, {"label": torch.tensor(1)}).rows(index) is not None
    assert ClassifierFree(CLASSES[0], 2.0, guide=lambda x, t: x).rows(index) is None


class Tilted:
    """The energy b·x with a slope of its own for each row."""

    def __init__(self, slopes: Tensor):
        self.slopes = slopes

    def __call__(self, x: Tensor, t: Any) -> Tensor:
        return (self.slopes * x).sum(-1)

    def rows(self, index: Tensor) -> Tilted:
        return Tilted(self.slopes[index])


def test_rows_of_a_batch_keep_their_own_energies() -> None:
    slopes = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    guided, x = Energy(M1.score, Tilted(slopes)), M1.points(0.3, 6)
    index = torch.tensor([1, 4])
    torch.testing.assert_close(guided.rows(index)(x[index], 0.3), guided(x, 0.3)[index])
    # as adaptive rules use it
    run = lambda rows: sample(
        M1.process, Energy(M1.score, Tilted(slopes[rows])), AdaptiveODE(1e-3, 1e-3), karras(M1.process, 2),
        shape=len(rows), seed=rows,
    ).x  # fmt: skip
    torch.testing.assert_close(run([1, 4]), run(list(range(6)))[[1, 4]])


def test_predictions_are_offered_where_tweedie_s_formula_holds() -> None:
    """On a bounded domain E[x_0 | x] is not x + σ² score, so a gradient of the score tells nothing of it."""
    process = Diffusion(Hypercube((1,)), VE())
    exact = EmpiricalScore(process, torch.rand(5, 1))
    assert hasattr(exact, "prediction")
    assert not hasattr(Classifier(exact, lambda x, t: x.sum(-1)), "prediction")
    assert hasattr(Classifier(M1.score, log_class), "prediction")
    assert hasattr(ClassifierFree(exact, 2.0, guide=exact), "prediction")  # a mixture of means is one


def test_a_trained_classifier_guides_a_trained_score() -> None:
    """Two classes on the left and on the right of a square: guided samples are on the side asked for."""
    torch.manual_seed(0)
    process = Diffusion(Hypercube((2,)), VE())
    label = torch.randint(0, 2, (1000,), generator=torch.Generator().manual_seed(0))
    x0 = torch.rand(1000, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.4, 1.0]) + 0.6 * label[
        :, None
    ] * torch.tensor([1.0, 0])
    data = torch.utils.data.TensorDataset(x0, label)
    score = NeuralScore(MLP(MLPConfig((2,), width=32, depth=2)), process)
    train(score, x0, steps=200, batch_size=128, lr=4e-3, seed=0, progress=False)

    classifier = NoisyClassifier(ClassifierMLP(ClassifierMLPConfig((2,), classes=2, width=32)), process)
    train(classifier, data, objective=CrossEntropy(), steps=200, batch_size=128, lr=4e-3, seed=0, progress=False)
    guided = Damped(Classifier(score, classifier.log_prob, 3.0))
    wanted = torch.arange(64) % 2
    run = sample(process, guided, Heun(), karras(process, 12), shape=64, seed=0, condition={"label": wanted})
    assert float(((run.x[:, 0] > 0.5).long() == wanted).double().mean()) > 0.9
    assert bool(process.domain.contains(run.x).all())


@pytest.mark.parametrize("weight", [1.5, 7.5, 15.0])
def test_high_weights_in_float32_stay_finite_and_inside(weight: float) -> None:
    """Random networks, on walls and in the open, fixed and adaptive steps. Guidance of two scores with s·n = 0 keeps the flow inside:
    what walls push back is rounding."""
    torch.manual_seed(0)
    for process in (Diffusion(Hypercube((1, 8, 8)), VE()), Diffusion(Euclidean((1, 8, 8)), VP())):
        network = UNet(UNetConfig(channels=8, multipliers=(1, 2), classes=3))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        score = NeuralScore(network, process)
        guided: Any = ClassifierFree(score, weight, negative={"label": -1})
        if isinstance(process.domain, Euclidean):
            guided = StaticThreshold(guided)
        label = torch.arange(4) % 3
        for solver, times in ((Heun(), karras(process, 40)), (AdaptiveODE(1e-2, 1e-2), karras(process, 2))):
            run = sample(process, guided, solver, times, shape=4, seed=0, condition={"label": label}, denoise=False)
            assert run.x.dtype == torch.float32 and bool(run.x.isfinite().all()) and bool(run.ok.all())
            if run.local_time is not None:
                assert float(run.local_time.max()) < 0.05


def test_damping_keeps_any_guidance_inside() -> None:
    process = Diffusion(Hypercube((2,)), VE())
    outward = lambda x, t: torch.full_like(x, -6.0)  # the flow goes against it
    pushed = []
    for score in (outward, Damped(outward, process)):
        run = sample(process, score, Heun(), karras(process, 200), shape=20, seed=0, denoise=False)
        pushed.append(float(run.local_time.max()))  # type: ignore[union-attr]
    assert pushed[0] > 0.2 and pushed[1] < 0.02 * pushed[0], pushed
    x = torch.tensor([[0.0, 0.5], [1.0, 0.2]], dtype=torch.float64)
    damped = Damped(outward, process)(x, 0.5)
    assert float(damped[0, 0]) == 0 and float(damped[1, 0]) == 0 and float(damped[0, 1]) == -6


def test_gradients_flow_through_guidance_where_they_are_asked_for() -> None:
    x = M1.points(0.3, 2).requires_grad_()
    guided = Classifier(M1.score, log_class, 2.0)
    assert torch.autograd.gradcheck(lambda v: guided(v, 0.3), (x,))
    with torch.no_grad():
        assert not guided(x, 0.3).requires_grad
    with torch.inference_mode():
        assert bool(guided(x.detach(), 0.3).isfinite().all())


def test_flow_matching_starts_where_the_scale_is_0() -> None:
    """A combination of predictions is a prediction, finite at s = 0."""
    process = Diffusion(Euclidean((1,)), FlowMatching())
    one, other = GaussianMixtureScore(process, [1.0], [0.8], [0.09]), GaussianMixtureScore(process, [1.0], [0.0], [1.0])
    guided = ClassifierFree(one, 3.0, guide=other)
    times = torch.cat([torch.tensor([1.0], dtype=torch.float64), karras(process, 10)])
    run = sample(process, guided, DDIM(), times, shape=4, seed=0)
    assert bool(run.x.isfinite().all())
    # there all is noise: ε̂ = x; and the first step of CFG++ is the guided one
    x = torch.tensor([[0.4], [-1.3]], dtype=torch.float64)
    for score in (
        guided,
        StaticThreshold(guided),
        DynamicThreshold(guided),
        ClassifierFree(one, 3.0, guide=other, rescale=0.5),
    ):
        torch.testing.assert_close(score.prediction(x, 1.0)[1], x)
    weights = cfg_plus_plus(process, times, 0.6)
    assert float(weights(times[0])) == pytest.approx(0.6) and bool(weights(times).isfinite().all())


def test_refusals() -> None:
    with pytest.raises(TypeError, match="score: got int, expected a callable"):
        ClassifierFree(3, 1.0)
    with pytest.raises((TypeError, ValueError), match=r"weight|strong"):
        ClassifierFree(M1.score, "strong")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="interval's high"):
        ClassifierFree(M1.score, 2.0, interval=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"interval: got \(1, 2, 3\), expected \(low, high\)"):
        ClassifierFree(M1.score, 2.0, interval=(1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="times: got a grid that rises"):
        cfg_plus_plus(M1.process, [0.1, 0.5], 0.5)
    with pytest.raises(ValueError, match="times"):
        cfg_plus_plus(M1.process, [0.5, 0.5, 0.1], 0.5)
    with pytest.raises(ValueError, match=r"weight: got 1\.5"):
        cfg_plus_plus(M1.process, [0.5, 0.1], 1.5)
    with pytest.raises(ValueError, match="rescale"):
        ClassifierFree(M1.score, 2.0, rescale=1.5)
    with pytest.raises(TypeError, match=r"rescale: got 0.7 on Hypercube"):
        ClassifierFree(problems.cosine().score, 2.0, rescale=0.7)
    with pytest.raises(TypeError, match=r"guide: got .* not both"):
        ClassifierFree(M1.score, 2.0, guide=M1.score, negative={"label": -1})
    with pytest.raises(TypeError, match="process: got NoneType"):
        ClassifierFree(lambda x, t: x, 2.0)
    with pytest.raises(TypeError, match="log_prob: got str, expected a callable"):
        Classifier(M1.score, "class")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"energy: got \(4, 1\) for x of shape \(4, 1\), expected one number per sample, \(4,\)"
    ):
        Energy(M1.score, lambda x, t: x**2)(M1.points(0.3, 4), 0.3)
    with pytest.raises(
        TypeError, match=r"Damped: got .*Euclidean.*expected one schedule on a domain that knows its walls"
    ):
        Damped(M1.score)
    with pytest.raises(ValueError, match=r"condition: got none for ClassifierFree.*two scores are then the same"):
        ClassifierFree(conditional, 2.0)(M1.points(0.3, 4), 0.3)
    with pytest.raises(TypeError, match=r"negative: got 9, expected keywords"):
        ClassifierFree(conditional, 2.0, negative=9)  # type: ignore[arg-type]
    for energy in (lambda x, t: x.detach().sum(-1), lambda x, t: torch.zeros(len(x))):
        with pytest.raises(ValueError, match="energy: got values that PyTorch cannot follow back to x"):
            Energy(M1.score, energy)(M1.points(0.3, 4), 0.3)
    with pytest.raises(ValueError, match=r"energy: got shape \(3, 1\) for data of shape \(3, 1\), expected \(3,\)"):
        exact_energy(M1.process, torch.zeros(3, 1), lambda x: x)
