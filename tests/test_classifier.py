"""Classifiers of noisy data: the gradient that guides, training to the posterior of the classes, files, refusals."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from carom.domains import Euclidean, Hypercube, Polytope
from carom.processes import VE, VP, Diffusion
from carom.scores import GaussianMixtureScore
from carom.scores.neural import (
    MLP,
    DenoisingScoreMatching,
    EDMPreconditioning,
    LogUniform,
    MLPConfig,
    NeuralScore,
    train,
)
from carom.scores.neural.classifier import ClassifierMLP, ClassifierMLPConfig, CrossEntropy, NoisyClassifier

LINE = Diffusion(Euclidean((1,)), VP())
# the mixture 0.3 N(−1, 0.2²) + 0.7 N(0.8, 0.3²); a label is the component that x_0 came from
WEIGHTS, MEANS, SPREADS = torch.tensor([[0.3, 0.7], [-1.0, 0.8], [0.2, 0.3]], dtype=torch.float64)
QUIET = {"progress": False}


def posterior(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """log p_σ(label | X) of the mixture, X ``[..., 1]`` on the heat flow: ``[..., 2]``."""
    variance = SPREADS**2 + sigma**2
    joint = WEIGHTS.log() - 0.5 * variance.log() - (x - MEANS) ** 2 / (2 * variance)
    return joint.log_softmax(-1)


def mixture_data(n: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    label = (torch.rand(n, generator=generator) < 0.7).long()
    x = MEANS[label] + SPREADS[label] * torch.randn(n, dtype=torch.float64, generator=generator)
    return TensorDataset(x[:, None].float(), label)


class Exact(nn.Module):
    """A "network" that knows the posterior: it undoes the preconditioning, and answers up to a constant of x, as logits may."""

    def forward(self, inputs, c_noise):
        sigma = (4 * c_noise).exp()[:, None]
        x = inputs * (sigma**2 + 0.25).sqrt()
        return posterior(x, sigma) + sigma


def small_classifier(process: Diffusion = LINE, classes: int = 2, **settings) -> NoisyClassifier:
    torch.manual_seed(0)
    config = ClassifierMLPConfig(process.domain.event_shape, classes, **{"width": 32, "depth": 2} | settings)
    return NoisyClassifier(ClassifierMLP(config), process)


def gradient(classifier: NoisyClassifier, x: torch.Tensor, t: float, label: int) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(classifier.log_prob(x, t, label).sum(), x)
    return slope


def test_the_gradient_is_that_of_the_posterior_and_adds_up_to_the_score_of_the_class():
    classifier = NoisyClassifier(Exact(), LINE, EDMPreconditioning(0.5))
    x = torch.tensor([[0.4]], dtype=torch.float64)
    slope = gradient(classifier, x, 0.3, 1)
    # by 40-digit arithmetic; the derivative of a logarithm of size 1 loses nothing
    assert slope.item() == pytest.approx(0.28686541064659909, abs=1e-14)
    score = GaussianMixtureScore(LINE, WEIGHTS, MEANS, SPREADS**2)
    of_class = GaussianMixtureScore(LINE, [1.0], MEANS[1:], SPREADS[1:] ** 2)
    torch.testing.assert_close(score(x, 0.3) + slope, of_class(x, 0.3), rtol=1e-12, atol=1e-13)


def test_probabilities_sum_to_one_whatever_the_shape():
    classifier = NoisyClassifier(Exact(), LINE, EDMPreconditioning(0.5))
    x = torch.randn(3, 4, 1, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)[:, None].expand(3, 4)
    both = torch.stack([classifier.log_prob(x, t, k) for k in (0, 1)])
    assert both.shape == (2, 3, 4) and classifier.logits(x, t).shape == (3, 4, 2)
    torch.testing.assert_close(both.logsumexp(0), torch.zeros(3, 4, dtype=torch.float64), rtol=0, atol=1e-14)
    label = torch.arange(12).reshape(3, 4) % 2
    torch.testing.assert_close(classifier.log_prob(x, t, label), both.gather(0, label[None])[0])
    torch.testing.assert_close(classifier(x, t), classifier.logits(x, t))
    torch.testing.assert_close(classifier.log_prob(x[1, 2], 0.4, 1), both[1, 1, 2])
    flat = x.float()
    assert classifier.log_prob(flat, 0.4, 0).dtype == torch.float32


@pytest.mark.montecarlo
def test_the_loss_of_the_posterior_is_the_conditional_entropy():
    """E[−log p_σ(y | x)] by quadrature, at one level."""
    sigma = torch.tensor(0.5, dtype=torch.float64)
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    log_p = posterior(x, sigma)
    spread = (SPREADS**2 + sigma**2).sqrt()
    joint = WEIGHTS * (-0.5 * ((x - MEANS) / spread) ** 2).exp() / (spread * math.sqrt(2 * math.pi))
    entropy = -(joint * log_p).sum() * 12 / 4000
    data, label = mixture_data(40_000).tensors
    objective = CrossEntropy(LogUniform(0.5, 0.5 * (1 + 1e-9)))
    classifier = NoisyClassifier(Exact(), LINE, EDMPreconditioning(0.5))
    loss = objective.terms(classifier, data.double(), torch.Generator().manual_seed(2), label=label).loss
    error = 4 * float(loss.std()) / math.sqrt(len(loss))
    assert float(loss.mean()) == pytest.approx(float(entropy), abs=error) and error < 0.01 < float(entropy)


def test_training_reaches_the_posterior():
    r"""KL(posterior | classifier) by quadrature over x ∼ p_σ and ln σ uniform: what the loss exceeds its minimum by."""
    classifier = small_classifier()
    objective = CrossEntropy(LogUniform(0.05, 3.0))
    result = train(
        classifier, mixture_data(20_000), objective=objective, steps=300, batch_size=256, lr=3e-3, ema=0.98, **QUIET
    )
    sigma = torch.logspace(math.log10(0.05), math.log10(3.0), 30, dtype=torch.float64)[:, None, None]
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)[:, None].expand(30, 801, 1)
    spread = (SPREADS**2 + sigma**2).sqrt()
    density = (
        (WEIGHTS * (-0.5 * ((x - MEANS) / spread) ** 2).exp() / (spread * math.sqrt(2 * math.pi))).sum(-1) * 16 / 800
    )
    exact = posterior(x, sigma)
    with torch.no_grad():
        found = classifier.logits_at_level(x, sigma.squeeze(-1)).log_softmax(-1)
    excess = float((density * (exact.exp() * (exact - found)).sum(-1)).sum(-1).mean())
    # logits of zero start at ln 2 less the entropy, 0.4. p effective parameters leave p/2n of likelihood: 100/(2·77,000), 7e-4
    zero = float((density * (exact.exp() * (exact + math.log(2))).sum(-1)).sum(-1).mean())
    assert zero > 0.3 and 0 < excess < 3e-3
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-6) and classifier.use_ema and not classifier.training
    # a gradient is off by about √excess in units of the posterior's own width, about 1: here within 0.1 of 0.2869
    assert float(gradient(classifier, torch.tensor([[0.4]]), 0.3, 1)) == pytest.approx(0.2869, abs=0.1)


def test_a_classifier_is_resumed_bit_for_bit_and_its_file_is_not_that_of_a_score(tmp_path):
    path, data = tmp_path / "c", mixture_data(100)
    options = {"batch_size": 16, "checkpoint": path, **QUIET}
    whole, again = small_classifier(dropout=0.2), small_classifier(dropout=0.2)
    train(whole, data, steps=6, **QUIET | {"batch_size": 16})
    train(small_classifier(dropout=0.2), data, steps=3, **options)
    train(again, data, steps=6, resume=True, **options)
    loaded = NoisyClassifier.load(path)
    x = torch.randn(5, 1)
    for other in (again, loaded):
        assert torch.equal(other.log_prob(x, 0.3, 1), whole.log_prob(x, 0.3, 1))
    with pytest.raises(ValueError, match=r"expected 'carom.neural_score'; NoisyClassifier.load reads it"):
        NeuralScore.load(path)
    score = NeuralScore(MLP(MLPConfig((1,), 8, 1)), LINE)
    with pytest.raises(ValueError, match=r"'carom.noisy_classifier', expected 'carom.neural_score'"):
        train(score, data.tensors[0], steps=9, resume=True, **options)
    score.save(tmp_path / "s")
    with pytest.raises(ValueError, match=r"expected 'carom.noisy_classifier'; NeuralScore.load reads it"):
        NoisyClassifier.load(tmp_path / "s")
    again.save(path)
    assert torch.equal(NoisyClassifier.load(path).log_prob(x, 0.3, 1), whole.log_prob(x, 0.3, 1))


@pytest.mark.parametrize(
    "domain",
    [Hypercube((2,)), Polytope([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1]], [1, 0, 1, 0, 1.5])],
    ids=["cube", "polytope"],
)
def test_classes_are_learnt_between_walls_as_well(domain):
    """Two halves, at levels where they are still told apart: the entropy left is below half of ln 2."""
    process = Diffusion(domain, VE())
    x = domain.uniform().sample((500,), generator=torch.Generator().manual_seed(0)).float()
    data = TensorDataset(x, (x[:, 0] > x[:, 0].median()).long())
    objective = CrossEntropy(LogUniform(0.01, 0.1), steps=4)
    result = train(small_classifier(process), data, objective=objective, steps=60, lr=1e-2, warmup=5, **QUIET)
    assert result.losses[0] > 0.69 and sum(result.losses[-10:]) / 10 < 0.35


class Lone(nn.Module):
    def forward(self, x, c_noise):
        return x.sum(-1)


def refusals():
    classifier, x = small_classifier(), torch.zeros(3, 1)
    score = NeuralScore(MLP(MLPConfig((1,), 8, 1)), LINE)
    labelled = mixture_data(9)
    yield (
        lambda: classifier.log_prob(x, 0.3, 2),
        ValueError,
        "label: got values from 2 to 2, expected 0 to 1, for the network",
    )
    yield lambda: classifier.log_prob(x, 0.3, torch.tensor(0.0)), TypeError, "label: got dtype torch.float32"
    yield (
        lambda: classifier.log_prob(x, 0.3, torch.zeros(2).long()),
        ValueError,
        r"label: got shape \(2,\), expected a number",
    )
    yield lambda: classifier.logits(torch.zeros(3, 2), 0.3), ValueError, r"x: got shape \(3, 2\)"
    yield (
        lambda: NoisyClassifier(Lone(), LINE).logits(x, 0.3),
        ValueError,
        r"shape \(3,\) for 3 samples, expected \[B, classes\]",
    )
    yield lambda: train(classifier, x, steps=1, **QUIET), ValueError, "got data without labels"
    yield (
        lambda: train(score, labelled, objective=CrossEntropy(), steps=1, **QUIET),
        TypeError,
        "expected a NoisyClassifier",
    )
    yield (
        lambda: train(classifier, labelled, objective=DenoisingScoreMatching(), steps=1, **QUIET),
        TypeError,
        "objective: got DenoisingScoreMatching.* for a NoisyClassifier, expected CrossEntropy",
    )
    yield lambda: ClassifierMLPConfig((1,), 1), ValueError, "classes: got 1, expected a whole number of at least 2"
    yield lambda: ClassifierMLPConfig((1,), 2, dropout=1.0), ValueError, "dropout: got 1"
    yield lambda: ClassifierMLP(ClassifierMLPConfig((2,), 2))(x, x[:, 0]), ValueError, r"got x of shape \(3, 1\)"


@pytest.mark.parametrize("case", range(11))
def test_what_does_not_fit_is_refused(case):
    call, error, message = list(refusals())[case]
    with pytest.raises(error, match=message):
        call()
