"""The schedule that is trained along with its score: γ = 2 ln σ as a monotone function of time with parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..domains.tensors import event_sum, is_int, number
from .schedule import VariancePreserving
from .schedules import Discrete

#: Where γ begins in t: below, σ is linear down to σ(0) = 0, as in a table of 1000 levels.
START = 1e-3


class Learned(VariancePreserving, nn.Module):
    r"""σ² = e^γ with a γ that rises from γ_min to γ_max along a curve to be learned; variance preserving.

    .. math:: γ(u) = γ_{min} + (γ_{max} - γ_{min}) F(u),\quad F(u) = \frac{f(u) - f(0)}{f(1) - f(0)},\quad
              f(u) = u + \sum_k e^{h_k} \frac{z_k}{\sqrt{1 + z_k^2}},\quad z_k = e^{r_k}(u - c_k)

    F(0) = 0, F(1) = 1 and F' > 0 whatever the parameters: a line and steps upwards, each with a height, a rate and a centre; at first
    they make nearly a straight line. (VDM's network has the same form with logistic steps; these are algebraic, so that they cannot
    overflow and come out the same to the bit in any batch.)

    Two faces. To objectives such as :class:`~carom.scores.neural.VDM`, which train it, it is ``gamma_min``, ``gamma_max`` and
    ``progress(u)``, u in [0, 1], tensors that carry gradients. To processes and solvers it is a schedule like any other, read at the
    present values of the parameters, and no gradient reaches these: t = 0.001 + 0.999 u, and below t = 0.001, where every schedule
    comes down to σ = 0, σ is linear in t. :meth:`freeze` makes a table of it that no training changes.

    Args:
        gamma_min, gamma_max: γ at the two ends, gamma_min < gamma_max; −γ is the log signal-to-noise ratio.
        width: the number of steps.
        endpoints: whether the two ends are trained too.
        curve: the rows h, r, c, each ``[width]``, as ``config`` gives them; by default equal steps on a line.

    Everything is computed in float64, a few numbers per sample. Raises ``ValueError`` for ends in the wrong order and for a ``curve``
    that does not have the shape [3, width]. Kingma, Salimans, Poole & Ho 2021, who also learn γ as a monotone function.
    """

    def __init__(
        self,
        gamma_min: float = -13.3,
        gamma_max: float = 5.0,
        width: int = 32,
        *,
        endpoints: bool = True,
        curve: Sequence[Sequence[float]] | Tensor | None = None,
    ):
        super().__init__()
        if not is_int(width, 1):
            raise ValueError(f"width: got {width!r}, expected a whole number of at least 1")
        low = number(gamma_min, "gamma_min")
        high = number(gamma_max, "gamma_max", low=low, open_low=True)
        start = _steps(width) if curve is None else torch.as_tensor(curve, dtype=torch.float64).detach().clone()
        if start.shape != (3, width):
            raise ValueError(f"curve: got shape {tuple(start.shape)}, expected [3, {width}]: heights, rates, centres")
        self.width, self.endpoints = width, bool(endpoints)
        self.gamma_min, self.gamma_max = (
            nn.Parameter(torch.tensor(end, dtype=torch.float64), requires_grad=self.endpoints) for end in (low, high)
        )
        self.curve = nn.Parameter(start)

    def __repr__(self) -> str:
        return f"Learned(gamma from {self.gamma_min.item():.4g} to {self.gamma_max.item():.4g}, width={self.width})"

    def config(self) -> dict[str, Any]:
        """The present values of the parameters included, so that a checkpoint needs nothing else."""
        ends = {"gamma_min": self.gamma_min.item(), "gamma_max": self.gamma_max.item()}
        return {
            "type": "Learned",
            **ends,
            "width": self.width,
            "endpoints": self.endpoints,
            "curve": self.curve.tolist(),
        }

    def progress(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(F(u), F'(u)), float64, in the shape of u; with gradients in ``curve``."""
        return _progress(u, self.curve)

    def freeze(self, levels: int = 1000) -> Discrete:
        """The table of γ at u = 0, 1/(levels − 1), …, 1; with 1000 levels on the same clock t as this schedule.

        ``freeze(T + 1)`` holds the levels of a :class:`~carom.scores.neural.VDM` of T steps: σ_min first.
        """
        u = torch.linspace(0, 1, levels, dtype=torch.float64)
        return Discrete((-self._gamma(u)).sigmoid())

    def sigma(self, t: Tensor) -> Tensor:
        at = t.to(torch.float64)
        above = (0.5 * self._gamma(((at - START) / (1 - START)).clamp(min=0.0))).exp()
        first = (0.5 * self.gamma_min.detach()).exp().to(t.device, torch.float64)
        return torch.where(at < START, at / START * first, above).to(t.dtype)

    @property
    def kinks(self) -> Sequence[float]:
        return (START,)

    @property
    def sigma_min(self) -> float:
        return float((0.5 * self.gamma_min.detach()).exp())

    def _gamma(self, u: Tensor) -> Tensor:
        """γ(u) of the present parameters, without their gradients, wherever u is."""
        low, high, curve = (
            p.detach().to(u.device, torch.float64) for p in (self.gamma_min, self.gamma_max, self.curve)
        )
        return low + (high - low) * _progress(u, curve)[0]


def _steps(width: int) -> Tensor:
    """Equal steps, side by side, that rise as much as the line they stand on."""
    ones = torch.ones(width, dtype=torch.float64)
    return torch.stack([-(2 * width * ones).log(), (width * ones).log(), (torch.arange(width) + 0.5) / width])


def _progress(u: Tensor, curve: Tensor) -> tuple[Tensor, Tensor]:
    """(F(u), F'(u)) of the curve ``[3, width]``."""
    height, rate, centre = curve[0].exp(), curve[1].exp(), curve[2]

    def rise(u: Tensor) -> tuple[Tensor, Tensor]:
        z = rate * (u.unsqueeze(-1) - centre)
        root = (1 + z * z).sqrt()
        slope = 1 + event_sum(height * rate / (root * root * root), 1)
        return u + event_sum(height * z / root, 1), slope

    u = u.to(torch.float64)
    value, slope = rise(u)
    first, last = rise(u.new_zeros(()))[0], rise(u.new_ones(()))[0]
    return (value - first) / (last - first), slope / (last - first)
