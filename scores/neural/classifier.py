r"""Classifiers of noisy data: log p_t(label | x), whose gradient guides a score towards a class.

Bayes: :math:`\nabla \log p_t(x | y) = \nabla \log p_t(x) + \nabla \log p_t(y | x)`, exactly, if the classifier has seen data at the noise
level of t. The cross-entropy of its answers at :math:`(x_σ, y)` is least, and equals the mean of :math:`-\log p_t(y | x)`, for the
posterior of the classes itself. Song et al. 2021, appendix I; Dhariwal & Nichol 2021, §4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...domains.tensors import batch_shape, check_shape, is_int, number
from . import checkpoint
from .forward import unchecked
from .layers import NoiseEmbedding
from .levels import Levels, default_levels, draw_levels, largest_level
from .networks import register_network
from .objectives import Objective, Terms
from .trainable import Preconditioned


class NoisyClassifier(Preconditioned):
    r"""log p_t(label | x) from a network, at any noise level.

    The network sees what a score's would: ``network(c_in (X − centre), c_noise, **condition)`` with X = x/s(t), and answers with one
    logit for each class. It is trained by ``train(classifier, TensorDataset(x, labels), …)`` and kept as a :class:`NeuralScore` is.

    Args:
        network: any ``nn.Module``; called with x ``[B, *event]``, c_noise ``[B]``; answers ``[B, classes]``.
        process: the :class:`~carom.processes.Diffusion` that brings the noise.
        preconditioning: whose ``inputs`` and ``c_noise`` the network sees; the rest of it is not used. As for a score by default.
    """

    kind: ClassVar[str] = checkpoint.CLASSIFIER

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """The same as :meth:`logits`."""
        return self.logits(x, t, **condition)

    def logits(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """``[*batch, classes]`` in x's dtype, at x ``[*batch, *event]``; t a number, ``[*batch]`` or ``[*batch, 1, …, 1]``."""
        x, sigma, _ = self.undo_scale(x, t)
        return self.logits_at_level(x, sigma, **condition)

    def logits_at_level(self, x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        """The logits at X on the heat flow, where no scale enters; σ broadcasts over the batch."""
        raw = self.answer(x, sigma, condition).raw
        batch = batch_shape(x, self.process.domain.event_shape)
        if raw.dim() != 2 or len(raw) != batch.numel():
            raise ValueError(
                f"network: got an output of shape {tuple(raw.shape)} for {batch.numel()} samples, expected [B, classes]"
            )
        return raw.reshape(*batch, raw.shape[-1])

    def log_prob(self, x: Tensor, t: float | Tensor, label: int | Tensor, **condition: Any) -> Tensor:
        """log p_t(label | x) ``[*batch]``, to differentiate by x; ``label`` a number or whole numbers ``[*batch]`` from 0."""
        logits = self.logits(x, t, **condition)
        return -cross_entropy(logits, check_label(label, logits))

    def default_objective(self) -> Objective:
        return CrossEntropy()

    def check_objective(self, objective: Any) -> None:
        if not isinstance(objective, CrossEntropy):
            raise TypeError(
                f"objective: got {objective!r} for a NoisyClassifier, expected CrossEntropy or one derived from it"
            )


@dataclass(frozen=True)
class CrossEntropy(Objective):
    r""":math:`E_σ\,[-\log p_σ(y | x_σ)]`: the loss of :class:`NoisyClassifier`, in nats. Data are (x, label).

    Args:
        levels: the law of σ; by default ln σ uniform on [sigma_min, sigma_max] of the process. Drawn in strata, so that each batch
            covers all levels.
        steps: of the simulation where the domain has neither kernel nor fold; by default what the largest level needs, see
            :func:`simulate`.

    Any domain, under one schedule. On a device no value is read on the way: no host sync; on the CPU labels are.
    """

    levels: Levels | None = None
    steps: int | None = None

    def terms(
        self,
        score: Any,
        x0: Tensor,
        generator: torch.Generator | None = None,
        *,
        label: Tensor | None = None,
        **condition: Any,
    ) -> Terms:
        if not isinstance(score, NoisyClassifier):
            raise TypeError(f"CrossEntropy: got a {type(score).__name__}, expected a NoisyClassifier")
        if label is None:
            raise ValueError(
                "CrossEntropy: got data without labels, expected (x, label), e.g. torch.utils.data.TensorDataset(x, labels)"
            )
        domain = score.process.domain
        if score.process.parts:
            raise TypeError(
                f"CrossEntropy: got {score.process!r}, with a schedule for each part, expected one for all; use "
                "Diffusion(Product(…), schedule)"
            )
        levels = self.levels or default_levels(score.process)
        sigma = draw_levels(levels, x0, domain.event_shape, generator)
        with torch.no_grad():
            x = unchecked(domain, x0, sigma, generator, self.steps, lambda: largest_level(levels))
        logits = score.logits_at_level(x, sigma, **condition)
        return Terms(sigma, cross_entropy(logits, check_label(label, logits)))


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """−log softmax(logits)[label] over the last dimension: ``[*batch]``."""
    return -functional.log_softmax(logits, -1).gather(-1, label[..., None]).squeeze(-1)


def check_label(label: int | Tensor, logits: Tensor) -> Tensor:
    """Labels ``[*batch]``, on the device of the logits. Values are looked at where that costs nothing: on the CPU."""
    batch, classes = logits.shape[:-1], logits.shape[-1]
    label = torch.as_tensor(label)
    if label.dtype.is_floating_point or label.dtype.is_complex or label.dtype == torch.bool:
        raise TypeError(f"label: got dtype {label.dtype}, expected whole numbers from 0 to {classes - 1}")
    if label.dim() and label.shape != batch:
        raise ValueError(
            f"label: got shape {tuple(label.shape)}, expected a number or {tuple(batch)}, one for each sample"
        )
    if label.device.type == "cpu" and label.numel() and not 0 <= int(label.min()) <= int(label.max()) < classes:
        raise ValueError(
            f"label: got values from {int(label.min())} to {int(label.max())}, expected 0 to {classes - 1}, for the network "
            f"answers with {classes} logits"
        )
    return label.to(logits.device, torch.int64).expand(batch)


@dataclass(frozen=True)
class ClassifierMLPConfig:
    """Settings of :class:`ClassifierMLP`.

    event_shape: shape of one state. classes: at least 2. width, depth: neurons per layer and number of residual blocks. dropout: in
    [0, 1).
    """

    event_shape: tuple[int, ...]
    classes: int
    width: int = 128
    depth: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "event_shape", check_shape(self.event_shape))
        for name, least in (("classes", 2), ("width", 1), ("depth", 1)):
            if not is_int(getattr(self, name), least):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected a whole number of at least {least}")
        if number(self.dropout, "dropout", low=0.0, high=1.0) == 1:
            raise ValueError("dropout: got 1, expected a share in [0, 1)")


@register_network(ClassifierMLPConfig)
class ClassifierMLP(nn.Module):
    """A residual network on the flattened event and the noise level that ends in a logit for each class, all 0 before training."""

    def __init__(self, config: ClassifierMLPConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = NoiseEmbedding(width)
        self.first = nn.Linear(math.prod(config.event_shape), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Dropout(config.dropout),
                nn.Linear(width, width),
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, config.classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """x ``[B, *event]``, c_noise ``[B]`` → ``[B, classes]``."""
        if x.shape[1:] != self.config.event_shape:
            raise ValueError(
                f"ClassifierMLP: got x of shape {tuple(x.shape)}, expected [B, {', '.join(map(str, self.config.event_shape))}]"
            )
        level = self.embedding(c_noise)
        hidden = self.first(x.flatten(1))
        for block in self.blocks:
            hidden = hidden + block(hidden + level)
        return self.last(functional.silu(self.norm(hidden)))
