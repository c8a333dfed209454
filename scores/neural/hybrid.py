r"""Training the score of velocities of a critically damped diffusion.

Conditioned on x_0 alone, with the velocity v_0 ~ N(0, γM) integrated out in closed form, u_t is Gaussian and

.. math:: \nabla_v \log p(u_t | x_0) = -ℓ_t\, ε_v,\qquad ℓ_t = \sqrt{Σ_{xx} / \det Σ}

with ε_v the normal that drives v given x. ℓ is bounded as t → 0, by the variance that velocities start with, where that of denoising
score matching (given v_0 as well) grows like t^{−1/2}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...domains.tensors import as_like, expand_right, number
from ...processes import CriticallyDamped
from ...processes.equations import check_field
from .levels import draw_uniforms


@dataclass(frozen=True)
class HybridScoreMatching:
    r""":math:`E_t\, w(t)\,\tfrac1d |score(u_t, t)/ℓ_t + ε_v|^2`, t uniform in strata: the error in units of noise.

    Its minimiser is ∇_v log p_t, for any w > 0. A score of zero has loss 1.

    Args:
        process: a CriticallyDamped.
        t_min: training times are uniform on [t_min, 1], 0 < t_min < 1.
        weight: w, a function of t ``[*batch]``; 1 by default, the published choice for samples. That of maximum likelihood is β(t) ℓ_t².

    ``objective(score, x0, generator=, **condition)`` → scalar; score is any callable (u, t) → ``[*batch, *event]``, t ``[*batch, 1, …]``.

    Dockhorn, Vahdat & Kreis 2022, eq. 8 and §3.2.
    """

    process: CriticallyDamped
    t_min: float = 1e-5
    weight: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 < number(self.t_min, "t_min") < 1:
            raise ValueError(f"t_min: got {self.t_min:g}, expected a number between 0 and 1")

    def terms(
        self, score: Callable[..., Tensor], x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> tuple[Tensor, Tensor]:
        """The times drawn, and the loss sample by sample: ``[*batch]`` each."""
        event = self.process.data.event_shape
        t = self.t_min + (1 - self.t_min) * draw_uniforms(x0, event, generator)
        law = self.process.transition(x0, t)
        u, target = law.sample_with_target(generator=generator)
        value = check_field(score(u, expand_right(t, len(event)), **condition), target)
        loss = ((value - target) / law.inverse_std).square().flatten(t.dim()).mean(-1)
        return t, loss if self.weight is None else self.weight(t) * loss

    def __call__(
        self, score: Callable[..., Tensor], x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Tensor:
        return self.terms(score, x0, generator, **condition)[1].mean()


class MixedScore(nn.Module):
    r"""The score that a network corrects: :math:`-v/Σ_{vv}(t) - ℓ_t\,F(u, t)`, with Σ_vv the variance of velocities for data of variance 1.

    Args:
        network: F(u, t, **condition) → ``[*batch, *event]``, the state u ``[*batch, 2, *event]`` and t ``[*batch, 1, …, 1]``.
        process: a CriticallyDamped.

    F = 0 is exact where x and v are independent, which they are near t = 1; its outputs are of order 1 at all times.

    Dockhorn, Vahdat & Kreis 2022, eq. 10.
    """

    def __init__(self, network: nn.Module, process: CriticallyDamped):
        super().__init__()
        self.network, self.process = network, process

    def forward(self, u: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        process, ndim = self.process, len(self.process.data.event_shape)
        _, v = process.split(u)
        t = as_like(t, u)
        t = expand_right(t.expand(v.shape[: v.dim() - ndim]), ndim) if t.dim() == 0 else t
        kernel, first = process.kernel(t.double()), process.start * process.mass
        spread, _ = kernel.covariance(1.0, first)
        given, determinant = kernel.covariance(0.0, first)
        rest, unit = (as_like(w, u) for w in (spread.vv, (given.xx / determinant).sqrt()))
        return -v / rest - unit * check_field(self.network(u, t, **condition), v)
