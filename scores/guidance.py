r"""Guidance: scores made of scores, which compose freely and go wherever a score goes.

=====================================================  ======================================================================
``ClassifierFree(score, weight=w)``                    s_u + w (s_c − s_u): w = 1 conditional, 0 unconditional
``ClassifierFree(score, weight=w, negative={…})``      s_u is that of a second, negative condition
``ClassifierFree(score, weight=w, guide=weak)``        autoguidance: s_u is a weaker model's score of the same condition
``ClassifierFree(score, weight=cfg_plus_plus(…))``     CFG++ for ``DDIM`` and ``Euler``: a weight for each step of a grid
``Classifier(score, log_prob, weight)``                s + w ∇ log p_t(y | x)
``Energy(score, energy, weight)``                      s − w ∇E_t(x)
``Damped(score)``                                      no component normal to the walls at them
=====================================================  ======================================================================

Only w = 1 with a classifier, and the energy :math:`E_t(x) = -\log E[e^{-E(x_0)} | x_t = x]`, lead to a law one can name, p(x | y) and
p(x) e^{−E(x)}/Z; w > 1 sharpens, and the laws of its flow and of its SDE are not the same and not p(x)^{1−w} p(x|y)^w.

Between walls a combination of scores with s·n = 0 keeps it, whatever the weights, so that the flow of classifier-free guidance stays
inside at any weight. The gradient of a classifier or an energy does not vanish at walls by itself: wrap it in ``Damped``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..domains import Euclidean, KernelDomain
from ..domains.tensors import as_like, batch_shape, number, per_batch
from ..processes import Diffusion
from .energy import descent
from .neural.reflected import can_damp, damp_walls
from .predictions import process_of

Pair = tuple[Tensor, Tensor]


class Transformed:
    """A score made of another: its process, and the rows of a batch where all that it is made of has them."""

    def __init__(self, score: Any, process: Diffusion | None = None):
        if not callable(score):
            raise TypeError(f"score: got {type(score).__name__}, expected a callable score(x, t)")
        self.score = score
        self.process = process_of(score, process)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.score!r})"

    @property
    def event_ndim(self) -> int:
        return len(self.process.domain.event_shape)

    def rows(self, index: Tensor) -> Any:
        """Itself for some rows of the batch; None where a part of it cannot be restricted."""
        restrict = getattr(self.score, "rows", None)
        score = None if restrict is None else restrict(index)
        if score is None:
            return None
        other = copy.copy(self)
        other.score = score
        return other

    def _level(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, σ, std) at t in float64, in the form in which they meet x."""
        level = self.process.event_level(per_batch(t, x, self.event_ndim, "t").double())
        # where s = 0 and σ = ∞ their product is known to the schedule alone
        std = level.scale * level.sigma if self.process.parts else self.process.schedule.std(level.t)
        return level.scale, level.sigma, std


class Classifier(Transformed):
    r"""Classifier guidance: :math:`s + w\,\nabla_x \log p_t(y|x)` (Song et al. 2021, §5; Dhariwal & Nichol 2021, §4).

    Args:
        score: any score.
        log_prob: callable (x, t, **condition) → log p_t(y | x) ``[*batch]`` for noisy x, differentiable by PyTorch, such as
            :meth:`~carom.scores.neural.NoisyClassifier.log_prob` with the keyword ``label``.
        weight: w; with w = 1 and exact parts the guided score is that of p(x | y).
        conditional: whether the score hears the condition's keywords as well.
        process: whose score it is; ``score.process`` unless told.

    Offers ``prediction`` where the score does and the domain is Euclidean. Works under ``no_grad`` and ``inference_mode``.
    """

    #: of the gradient that is added
    sign = 1.0

    def __init__(
        self,
        score: Any,
        log_prob: Callable[..., Tensor],
        weight: float = 1.0,
        *,
        conditional: bool = False,
        process: Diffusion | None = None,
    ):
        super().__init__(score, process)
        if not callable(log_prob):
            raise TypeError(
                f"{self._what}: got {type(log_prob).__name__}, expected a callable (x, t, **condition) -> [*batch]"
            )
        self.log_prob, self.weight, self.conditional = log_prob, number(weight, "weight"), conditional
        if hasattr(score, "prediction") and isinstance(self.process.domain, Euclidean):
            self.prediction = self._prediction

    @property
    def _what(self) -> str:
        return "log_prob"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.score!r}, weight={self.weight:g})"

    def __call__(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """The guided score, in x's shape."""
        value = self.score(x, t, **(condition if self.conditional else {}))
        return value + self._gradient(x, t, condition)

    def _prediction(self, x: Tensor, t: float | Tensor, **condition: Any) -> Pair:
        """(E[x0 | x], E[ε | x]) of the guided score."""
        data, noise = self.score.prediction(x, t, **(condition if self.conditional else {}))
        gradient = self._gradient(x, t, condition)
        _, sigma, std = self._level(x, t)
        return data + (std * sigma).to(x.dtype) * gradient, noise - std.to(x.dtype) * gradient

    def rows(self, index: Tensor) -> Any:
        other, restrict = super().rows(index), getattr(self.log_prob, "rows", None)
        if other is None or restrict is None:
            return other
        other.log_prob = restrict(index)
        return None if other.log_prob is None else other

    def _gradient(self, x: Tensor, t: float | Tensor, condition: Mapping[str, Any]) -> Tensor:
        def value(v: Tensor) -> Tensor:
            found = self.log_prob(v, t, **condition)
            batch = batch_shape(x, self.process.domain.event_shape)
            if not isinstance(found, Tensor) or found.shape != batch:
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"{self._what}: got {got} for x of shape {tuple(x.shape)}, expected one number per sample, {tuple(batch)}"
                )
            return found

        return -self.sign * self.weight * descent(value, x)


class Energy(Classifier):
    r"""Energy guidance: :math:`s - w\,\nabla_x E_t(x)`, towards the law p(x) e^{−E(x)}/Z.

    It leads there if :math:`E_t(x) = -\log E[e^{-E(x_0)} | x_t = x]` (``exact_energy`` has it for a data set). One fixed energy at
    all t is biased, for noisy x are judged by what is meant for data: with data N(½, ¼) and E = (x + ½)² the law aimed at is
    N(1/6, 1/6); a fixed E leads the SDE to N(.049, .107), and the flow to the single point −.070.

    Args: energy: callable (x, t, **condition) → E_t(x) ``[*batch]``, differentiable by PyTorch. The rest as for :class:`Classifier`.
    """

    sign = -1.0

    def __init__(
        self,
        score: Any,
        energy: Callable[..., Tensor],
        weight: float = 1.0,
        *,
        conditional: bool = False,
        process: Diffusion | None = None,
    ):
        super().__init__(score, energy, weight, conditional=conditional, process=process)

    @property
    def _what(self) -> str:
        return "energy"


def exact_energy(process: Diffusion, data: Tensor, energy: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    r"""E_t(x) = −log E[e^{−E(x_0)} | x_t = x] for x_0 uniform on a data set: callable (x, t) → ``[*batch]``, for :class:`Energy`.

    Args: data: ``[N, *event]`` on a domain with a heat kernel. energy: E of data, ``[N, *event]`` → ``[N]``.
    """
    if not isinstance(process.domain, KernelDomain):
        raise TypeError(f"exact_energy: got {process.domain!r}, expected a domain with a heat kernel")
    cost = energy(data)
    if cost.shape != data.shape[:1]:
        raise ValueError(
            f"energy: got shape {tuple(cost.shape)} for data of shape {tuple(data.shape)}, expected ({len(data)},)"
        )
    ndim = len(process.domain.event_shape)

    def at(x: Tensor, t: float | Tensor) -> Tensor:
        level = per_batch(t, x, ndim, "t")
        kernel = process.unchecked_transition(data.to(x), level[..., None])
        chances = kernel.log_prob(x.unsqueeze(-ndim - 1) if ndim else x[..., None])
        return chances.logsumexp(-1) - (chances - as_like(cost, x)).logsumexp(-1)

    return at


class Damped(Transformed):
    r"""A score with its component normal to the walls taken away at them, over a layer min(σ, a quarter of the width): the flow then
    keeps inside, whatever was added to the score.

    Args: score: any score on a domain with walls. process: whose score it is; ``score.process`` unless told.
    """

    def __init__(self, score: Any, process: Diffusion | None = None):
        super().__init__(score, process)
        domain = self.process.domain
        if self.process.parts or isinstance(domain, Euclidean) or not can_damp(domain):
            raise TypeError(f"Damped: got {self.process!r}, expected one schedule on a domain that knows its walls")

    def __call__(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        value = self.score(x, t, **condition)
        return damp_walls(self.process.domain, x, value, self._level(x, t)[1].to(x.dtype))
