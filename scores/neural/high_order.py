r"""High-order score matching: what the derivatives of a score are trained on, beside the score itself.

With :math:`x = x_0 + σz` and :math:`ℓ_1 = σ\,s + z`, which for the exact score s is the noise less its mean given x, derivatives of
log p_σ are cumulants of the noise:

.. math::
    σ^2\,\nabla s &= E[ℓ_1 ℓ_1^\top | x] - I \\
    σ^2\,\nabla · s &= E[|ℓ_1|^2 | x] - d \\
    σ^3\,\nabla\,\nabla · s &= -E\big[(|ℓ_1|^2 - \operatorname{tr} ℓ_2 - 2 ℓ_2)\,ℓ_1 | x\big], \qquad ℓ_2 = σ^2\, \nabla s + I

In each line the model appears twice. On the left it is trained; in ℓ_1 and ℓ_2, on the right, it stands for lower orders that are
known, and its gradient is stopped. Their errors, δ of the score and Δ of its Jacobian, shift what the second order is trained towards by
δδᵀ, the third by (tr Δ + 2Δ)δ − |δ|²δ: products only. The density of the probability flow depends on all three.

Walls: where a domain folds, x = W u + c is the fold of u = x_0 + σz, and Wz lies between x and the image of x_0 that u started from.
Given x, that image follows the law of the data, unfolded over the whole space, times the Gaussian about x: with Wz for z each line holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ...domains.tensors import event_sum, expand_right, is_int, number
from ...solvers.divergence import signs, slope
from .layers import LayerNorm
from .levels import Levels
from .objectives import ScoreMatching, Terms, check_folds, latent_image, noise_unit

if TYPE_CHECKING:
    from .score import NeuralScore

Pullback = Callable[[Tensor], Tensor]


class Residuals(NamedTuple):
    """σ^k·(derivative − target) of each order, squared. Over the event they sum to |ℓ_1|², |A|_F², (tr A)² and the third's norm squared.

    ``[*batch, *event]``; the trace, one number per sample, is shared out evenly over the event.
    """

    first: Tensor
    second: Tensor
    trace: Tensor
    third: Tensor


@dataclass(frozen=True)
class HighOrderScoreMatching(ScoreMatching):
    r"""Denoising score matching of the score, its Jacobian, its divergence and the gradient of that:

    .. math:: E_σ\,\frac{w(σ)}{d\,(σu)^2} \Big[a_1 |ℓ_1|^2 + a_2 |A|_F^2 + a_{tr} (\operatorname{tr} A)^2
        + a_3 |σ^3\,\nabla\,\nabla · s + (|\hatℓ_1|^2 - \operatorname{tr} \hatℓ_2 - 2 \hatℓ_2)\,\hatℓ_1|^2\Big],\quad
        A = σ^2\,\nabla s + I - \hatℓ_1 \hatℓ_1^\top

    u is the unit of the preconditioning (1/σ on bounded domains), hats pass no gradient, see the module for ℓ. With ``second = trace =
    third = 0`` it is :class:`LatentImageScoreMatching`, which in R^d is :class:`DenoisingScoreMatching`. Each derivative adds a σ to the
    unit of the first, so that with inputs X/√(σ² + data²) a change of ∂F by them counts σ/√(σ² + data²) ≤ 1, and no σ drowns the others.
    With the exact score, where the noise given x is N(·, cI), the four are c, (d + 1)c², 2c² and 2(d + 2)c³ over (σu)², which in R^d is
    about c: of unit size at small σ, where c is 1, and smaller at large σ.

    Args:
        first, second, trace, third: a, at least 0 and not all 0; ``third=0`` makes it second order. The source weighs 1, λ₁, λ₁, λ₂.
        probes: None for exact derivatives, at d backward passes (one more, through them, for the third); or how many random sign
            vectors v take the place of the axes, one pass each: |Av|² for |A|_F², v·Av for tr A. The second keeps its mean; the trace term
            gets :math:`(\operatorname{tr} A)^2 + \tfrac2m (|S|_F^2 - \sum S_{ii}^2)`, S the symmetric part of A and m the number of probes,
            and the third likewise the variance of its estimate, least where the derivatives are exact: the same minimiser, other values.
        levels: the law of σ, by default ln σ uniform on the range of the process.
        weight: w, a function of σ ``[*batch]``; 1 by default. w = (σu)² gives the unweighted losses of the source.

    Needs a ``FoldedDomain``, of which ``Euclidean`` is the plainest, and a network with continuous derivatives of one order more, such as
    SiLU gives. Third order refuses PyTorch's own LayerNorm and BatchNorm, whose third derivatives are silently wrong. No value is read
    on the way: no host sync. Lu et al. 2022.
    """

    first: float = 1.0
    second: float = 0.5
    trace: float = 0.5
    third: float = 0.1
    probes: int | None = None
    levels: Levels | None = None
    weight: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        weights = [number(getattr(self, name), name, low=0.0) for name in Residuals._fields]
        if not any(weights):
            raise ValueError("first, second, trace, third: got 0 for all, expected at least one weight above 0")
        if self.probes is not None and not is_int(self.probes, 1):
            raise ValueError(f"probes: got {self.probes!r}, expected a whole number of at least 1, or None")

    def terms(
        self, score: NeuralScore, x0: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Terms:
        advice = "Euclidean or Hypercube, where the noise between a state and an image of its data is Gaussian; use ImplicitScoreMatching"
        domain = check_folds(score.process.domain, self, advice)
        if self.third:
            _check_layers(score.network)
        sigma = self._begin(score, x0, generator)
        level, x, target = latent_image(domain, x0, sigma, generator)
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value, pull = self._evaluate(lambda u: score.at_level(u, sigma, **condition), x, keep)
            directions, ndim = self._directions(x, sigma.dim(), generator), len(domain.event_shape)
            parts = residuals(value, pull, x, -level * target, level, directions, ndim, third=self.third > 0, keep=keep)
            loss = self.first * parts.first + self.second * parts.second
            loss = loss + self.trace * parts.trace + self.third * parts.third
            loss = loss / (level * noise_unit(score, level)) ** 2
        return self._end(sigma, loss if keep else loss.detach())

    def _evaluate(self, function: Callable[[Tensor], Tensor], x: Tensor, keep: bool) -> tuple[Tensor, Pullback]:
        """(s at x, v ↦ vᵀ∂s). For the third order by torch.func, inside which the library's layers are right at every order."""
        if self.third:
            value, pull, *_ = torch.func.vjp(function, x)
            return value, lambda v: pull(v.expand_as(value))[0]
        value = function(x)
        return value, lambda v: slope((v * value).sum(), x, keep)

    def _directions(self, x: Tensor, batch_ndim: int, generator: torch.Generator | None) -> list[tuple[float, Tensor]]:
        """(share, v) with Σ share·vvᵀ the identity, at least in the mean: the axes, or random signs. None where no derivative counts."""
        if not (self.second or self.trace or self.third):
            return []
        if self.probes is not None:
            return [(1 / self.probes, signs(x, generator)) for _ in range(self.probes)]
        event = x.shape[batch_ndim:]
        return [(1.0, v.reshape(event)) for v in torch.eye(event.numel(), dtype=x.dtype, device=x.device)]


def _check_layers(network: nn.Module) -> None:
    """Refuse layers of PyTorch whose third derivatives are silently wrong (pytorch issue 175754)."""
    for layer in network.modules():
        if isinstance(layer, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)) and not isinstance(layer, LayerNorm):
            raise TypeError(
                f"network: got one with PyTorch's {type(layer).__name__}, whose third derivatives are wrong, expected none for third > 0; "
                "use scores.neural.layers.LayerNorm or nn.GroupNorm(1, width), or third=0"
            )


def residuals(
    value: Tensor,
    pull: Pullback,
    x: Tensor,
    z: Tensor,
    level: Tensor,
    directions: Sequence[tuple[float, Tensor]],
    ndim: int,
    *,
    third: bool,
    keep: bool,
) -> Residuals:
    """Of a score's ``value`` at ``x``, from which it was computed row by row, with noise ``z`` at ``level`` = σ, in broadcast form.

    ``pull(v)`` is vᵀ∂s, and leads to x where ``third`` is asked for; the event has ``ndim`` dimensions; ``keep`` makes the third
    differentiable. Without ``directions`` all but the first are 0, and the third unless asked for.

    Of each direction v: ℓ_2 v = σ²∂(v·s) + v (of ℓ_2 transposed, where a network is no gradient) and Av = ℓ_2 v − (ℓ_1·v) ℓ_1; the rest
    is made of v·Av, v·∂(v·s) and these.
    """

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return expand_right(event_sum(a * b, ndim), ndim)

    first = level * value + z
    known = first.detach()
    second, cubic, trace = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(level)
    divergence = torch.zeros_like(level)
    for share, v in directions:
        row = pull(v)
        curved, along = level**2 * row + v, inner(known, v)
        left = curved - along * known
        second, trace = second + share * left.square(), trace + share * inner(v, left)
        if third:
            curved = curved.detach()
            divergence = divergence + share * inner(v, row)
            cubic = cubic + share * ((along**2 - inner(v, curved)) * known - 2 * along * curved)
    if third:
        cubic = level**3 * slope(divergence.sum(), x, keep) + cubic
    size = x.shape[x.dim() - ndim :].numel()
    return Residuals(first.square(), second, (trace.square() / size).expand_as(x), cubic.square())
