r"""Training the score of velocities of a critically damped diffusion.

Conditioned on x_0 alone, with the velocity v_0 ~ N(0, γM) integrated out in closed form, u_t is Gaussian and

.. math:: \nabla_v \log p(u_t | x_0) = -ℓ_t\, ε_v,\qquad ℓ_t = \sqrt{Σ_{xx} / \det Σ}

with ε_v the normal that drives v given x. ℓ is bounded as t → 0, by the variance that velocities start with, where that of denoising
score matching (given v_0 as well) grows like t^{−1/2}.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ...domains import Domain
from ...domains.tensors import as_like, check_event, expand_right, number, per_batch
from ...processes import CriticallyDamped
from ...processes.equations import check_field
from ...processes.registry import critically_damped_from_config
from . import checkpoint
from .levels import draw_uniforms
from .objectives import Objective, Terms
from .trainable import Trainable, flatten


def _check_process(process: Any) -> None:
    if not isinstance(process, CriticallyDamped):
        raise TypeError(f"process: got {type(process).__name__}, expected a CriticallyDamped(domain)")


@dataclass(frozen=True)
class HybridScoreMatching(Objective):
    r""":math:`E_t\, w(t)\,\tfrac1d |score(u_t, t)/ℓ_t + ε_v|^2`, t uniform in strata: the error in units of noise.

    Its minimiser is ∇_v log p_t, for any w > 0. A score of zero has loss 1.

    Args:
        process: a CriticallyDamped.
        t_min: training times are uniform on [t_min, 1], 0 < t_min < 1.
        weight: w, a function of t ``[*batch]``; 1 by default, the published choice for samples. That of maximum likelihood is β(t) ℓ_t².

    ``objective(score, x0, generator=, **condition)`` → scalar; score is any callable (u, t) → ``[*batch, *event]``, t ``[*batch, 1, …]``.
    The levels that ``terms`` gives beside the losses are the times.

    Dockhorn, Vahdat & Kreis 2022, eq. 8 and §3.2.
    """

    process: CriticallyDamped
    t_min: float = 1e-5
    weight: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        _check_process(self.process)
        if not 0 < number(self.t_min, "t_min") < 1:
            raise ValueError(f"t_min: got {self.t_min:g}, expected a number between 0 and 1")

    def terms(
        self, score: Callable[..., Tensor], x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        event = self.process.data.event_shape
        check_event(x0, event, "x0")
        t = self.t_min + (1 - self.t_min) * draw_uniforms(x0, event, generator)
        law = self.process.unchecked_transition(x0, t.double())
        u, target = law.sample_with_target(generator=generator)
        value = check_field(score(u, expand_right(t, len(event)), **condition), target)
        loss = ((value - target) / law.inverse_std).square().flatten(t.dim()).mean(-1)
        return Terms(t, loss if self.weight is None else self.weight(t) * loss)


class MixedScore(Trainable):
    r"""The score of velocities that a network corrects: :math:`-v/Σ_{vv}(t) - ℓ_t\,F(u, t)`, with Σ_vv the variance of velocities for
    data of variance 1. Callable (u, t, **condition) → ``[*batch, *event]``, t a number, ``[*batch]`` or ``[*batch, 1, …, 1]``, above 0.

    It is trained by ``train(score, data)`` on :class:`HybridScoreMatching`, averaged, saved and loaded as a :class:`NeuralScore` is;
    samples come from ``solve(process.reverse(score), process.prior().sample((n,)), times, SSCS())``.

    Args:
        network: any ``nn.Module``; called with positions and velocities one after the other along the first axis of an event,
            ``[B, 2C, …]`` (``[B, 2d]`` for vectors), ¼ ln t ``[B]`` and the condition's keywords. Answers with the same shape, of which
            the half of the velocities is F, or with F alone, ``[B, C, …]``. So ``MLP(MLPConfig((2 * d,)))`` will do.
        process: a CriticallyDamped.

    F = 0 is exact where x and v are independent, which they are near t = 1; its outputs are of order 1 at all times.

    Dockhorn, Vahdat & Kreis 2022, eq. 10.
    """

    kind: ClassVar[str] = checkpoint.VELOCITY
    process: CriticallyDamped

    def __init__(self, network: nn.Module, process: CriticallyDamped):
        super().__init__(network, process)
        _check_process(process)

    @property
    def data_domain(self) -> Domain:
        return self.process.data

    @property
    def levels(self) -> tuple[float, float]:
        return 1e-5, 1.0

    def forward(self, u: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        process, event = self.process, self.process.data.event_shape
        check_event(u, process.domain.event_shape, "u")
        _, v = process.split(u)
        if u.numel() == 0:
            return torch.zeros_like(v)
        time = per_batch(t, v, len(event), "t")
        kernel, first = process.kernel(time.double()), process.start * process.mass
        spread, _ = kernel.covariance(1.0, first)
        given, determinant = kernel.covariance(0.0, first)
        rest, unit = (expand_right(as_like(w, u), len(event)) for w in (spread.vv, (given.xx / determinant).sqrt()))
        return -v / rest - unit * self._correction(u, time, condition).reshape(v.shape)

    def _correction(self, u: Tensor, time: Tensor, condition: dict[str, Any]) -> Tensor:
        """F ``[B, *event]``."""
        event = self.process.data.event_shape
        batch = u.shape[: u.dim() - len(event) - 1]
        first, *others = event or (1,)
        joined = u.reshape(-1, 2 * first, *others)
        c_noise = (0.25 * time.log()).expand(batch).reshape(-1)
        raw = self.ask(joined, c_noise, {k: flatten(v, batch) for k, v in condition.items()})
        if raw.shape not in (joined.shape, (len(joined), first, *others)):
            raise ValueError(
                f"network: got an output of shape {tuple(raw.shape)} for an input of shape {tuple(joined.shape)}, expected the same shape, "
                f"or {(len(joined), first, *others)}, the velocities alone"
            )
        return raw[:, -first:]

    def rows(self, index: Tensor) -> MixedScore:
        """The score of some rows of a batch: itself, for a network looks at each row by itself."""
        return self

    def default_objective(self) -> Objective:
        return HybridScoreMatching(self.process)

    def check_objective(self, objective: Any) -> None:
        if not isinstance(objective, HybridScoreMatching) or objective.process.config() != self.process.config():
            raise TypeError(
                f"objective: got {objective!r} for a MixedScore, expected HybridScoreMatching({self.process!r}) or one derived from it"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], network: nn.Module | None = None) -> Self:
        """Rebuild a score from its file alone, in eval mode and answering with the moving average if there is one; ``network``, refusals:
        see ``NeuralScore.load``."""
        file, network = cls._read(path, network)
        return cls(network, critically_damped_from_config(file.header["process"]))._as_read(file)
