"""Data that live on a grid of values, as pixels do: what a variational bound says of them given the last latent.

The bound of a Gaussian model of continuous data may fall without end; of data rounded to bins it is a code length in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...domains.tensors import is_int, number


@dataclass(frozen=True)
class Bins:
    """``count`` equally spaced values from ``low`` to ``high``, both included: 256 from −1 to 1 are pixels k/127.5 − 1."""

    count: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not is_int(self.count, 2):
            raise ValueError(f"count: got {self.count!r}, expected a whole number of at least 2")
        number(self.high, "high", low=number(self.low, "low"), open_low=True)

    @property
    def spacing(self) -> float:
        return (self.high - self.low) / (self.count - 1)

    def softmax_nll(self, x: Tensor, latent: Tensor, std: Tensor) -> Tensor:
        r"""−log p(x | latent) with :math:`p(v_k | latent) ∝ N(latent;\, v_k, std^2)` over all values v_k (Kingma et al. 2021, eq. 9).

        x and latent of one shape, x among the values; std broadcasts. Takes ``count`` times the memory of x.
        """
        values = torch.arange(self.count, dtype=x.dtype, device=x.device) * self.spacing + self.low
        half_precision = 0.5 / (std * std)
        # less the term of x itself: of the large squares only their differences are left
        excess = (latent.unsqueeze(-1) - values).square() - (latent - x).square().unsqueeze(-1)
        return (-half_precision.unsqueeze(-1) * excess).logsumexp(-1)

    def gaussian_nll(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """−log of the mass of N(mean, std²) within half a spacing of x; the outermost bins reach to infinity (Ho et al. 2020, eq. 13)."""
        # mirrored into the lower tail, where log Φ keeps its digits
        side = torch.where(x < mean, 1.0, -1.0).to(x.dtype)
        offset = side * (x - mean)
        above, below = ((offset + h) / std for h in (0.5 * self.spacing, -0.5 * self.spacing))
        upper, lower = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
        inside = upper + torch.log1p(-(lower - upper).clamp(max=-torch.finfo(x.dtype).eps).exp())
        first = x < self.low + 0.5 * self.spacing
        last = x > self.high - 0.5 * self.spacing
        # all below x + spacing/2, or all above x − spacing/2, in mirrored coordinates where side = −1
        outer, other = torch.special.log_ndtr(-below), upper
        falls = torch.where(side > 0, other, outer)
        rises = torch.where(side > 0, outer, other)
        return -torch.where(first, falls, torch.where(last, rises, inside))
