r"""Unpaired translation by energies (EGSDE): an image of one domain, led to a sample of the model's domain that still resembles it.

The reverse SDE starts from the source noised to a level t₀ < 1 and runs with

.. math:: score(x, t) - λ_r ∇_x E_r(x, t, x^{src}_t) - λ_f ∇_x E_f(x, t, x^{src}_t),\qquad x^{src}_t \sim p_t(\cdot | source)

where E_r is low for what looks unlike the source's domain (realism) and E_f for what keeps what the domains share (faithfulness). The step
of Ancestral("forward") then adds −λ β/√(1 − β) ∇E to DDPM's mean, which is the step of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..domains.tensors import batch_shape, number
from ..processes import Diffusion
from ..solvers import SampleNoise, WhiteNoise
from ..solvers.noise import mix
from .energy import descent
from .predictions import process_of

Energy = Callable[[Tensor, Tensor, Tensor], Tensor]


class Translation:
    """A score with the two energies of EGSDE; start :func:`carom.solvers.edit` from the source with it.

    Args:
        score: of the domain translated to, any callable (x, t, **condition).
        source: ``[*batch, *event]``, the data to translate: one for each sample, in their order.
        realism, faithful: energies (x, t, source_t) → ``[*batch]``, each row of its own x, differentiable by PyTorch; source_t is a forward
            draw of the source at t. None for none.
        weights: (λ_r, λ_f), ≥ 0.
        seed: of those draws: an int for the batch, or one int per sample, then a sample is the same alone and in any batch.
        shared_noise: one ε for the source at all levels, and for the start where ``edit`` is given the same seed, as in the original
            program. Otherwise a new one at each level, a function of the seed and t.
        process: whose score it is; ``score.process`` unless told.

    Energies that are not those of a diffused tilt do not lead to any law known beforehand: the weights are a matter of taste. For rules
    whose samples share their time, not adaptive ones. Raises ``TypeError``/``ValueError`` for shapes that do not fit.

    Source: Zhao et al. 2022 (EGSDE), eq. 7–11, alg. 1.
    """

    def __init__(
        self,
        score: Any,
        source: Tensor,
        realism: Energy | None,
        faithful: Energy | None,
        weights: tuple[float, float] = (1.0, 1.0),
        *,
        seed: int | Sequence[int] = 0,
        shared_noise: bool = False,
        process: Diffusion | None = None,
    ):
        if not callable(score):
            raise TypeError(f"score: got {type(score).__name__}, expected a callable score(x, t)")
        self.score, self.process = score, process_of(score, process)
        self.process.domain.check(source, "source")
        self.source, self.seed, self.shared_noise = source, seed, shared_noise
        if len(weights) != 2:
            raise ValueError(f"weights: got {weights!r}, expected (λ_r, λ_f)")
        terms = zip(("realism", "faithful"), (realism, faithful), weights, strict=True)
        self._terms = [(e, number(w, f"weight of {name}", low=0.0)) for name, e, w in terms if e is not None]

    def __call__(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """score − Σ λ∇E: x's shape and dtype."""
        if x.shape != self.source.shape:
            raise ValueError(
                f"x: got shape {tuple(x.shape)} for a source of shape {tuple(self.source.shape)}, expected one source a sample"
            )
        value, source_t = self.score(x, t, **condition), self.source_at(t).to(x)
        for energy, weight in self._terms:
            value = value + weight * descent(lambda v, e=energy: self._checked(e(v, t, source_t), v), x)  # type: ignore[misc]
        return value

    def source_at(self, t: float | Tensor) -> Tensor:
        """The forward draw of the source at t: the same at each call."""
        if torch.as_tensor(t).numel() != 1:
            raise ValueError(
                "Translation: got a time for each sample, expected one for all; use a rule with fixed steps"
            )
        time = float(t)
        words = () if self.shared_noise else time.as_integer_ratio()
        if isinstance(self.seed, int):
            noise: Any = WhiteNoise(mix(self.seed, *words) if words else self.seed)
        else:
            noise = SampleNoise([mix(seed, *words) if words else seed for seed in self.seed])
        source = noise.open(self.source, len(self.process.domain.event_shape))
        return source.given(lambda row: self.process.transition(row, time), self.source)

    def _checked(self, value: Any, x: Tensor) -> Tensor:
        batch = batch_shape(x, self.process.domain.event_shape)
        if not isinstance(value, Tensor) or value.shape != batch:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"energy: got {got}, expected one number per sample, {tuple(batch)}; sum over the event")
        return value
