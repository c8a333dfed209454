"""Data that live on a grid of values, as pixels do: what a variational bound says of them given the last latent.

The bound of a Gaussian model of continuous data may fall without end; of data rounded to bins it is a code length in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .tensors import is_int, number


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
        r"""−log p(x | latent) with :math:`p(v_k | latent) ∝ N(latent;\, v_k, std^2)` over all values v_k (Kingma et al. 2021).

        x and latent of one shape, x among the values; std broadcasts. Takes ``count`` times the memory of x.
        """
        values = torch.arange(self.count, dtype=x.dtype, device=x.device) * self.spacing + self.low
        half_precision = 0.5 / (std * std)
        # less the term of x itself: of the large squares only their differences are left
        excess = (latent.unsqueeze(-1) - values).square() - (latent - x).square().unsqueeze(-1)
        return (-half_precision.unsqueeze(-1) * excess).logsumexp(-1)

    def gaussian_nll(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """−log of the mass of N(mean, std²) within half a spacing of x; the outermost bins reach to infinity (Ho et al. 2020, eq. 13)."""
        left = x < mean
        # mirrored into the lower tail, where log Φ keeps its digits
        offset, half = torch.where(left, x - mean, mean - x), 0.5 * self.spacing
        upper = torch.special.log_ndtr((offset + half) / std)
        lower = torch.special.log_ndtr((offset - half) / std)
        inside = upper + torch.log1p(-(lower - upper).clamp(max=-torch.finfo(x.dtype).eps).exp())
        # the whole of a side of x ± spacing/2: through the middle, or the tail that is left
        through = torch.special.log_ndtr((half - offset) / std)
        first = torch.where(left, upper, through)
        last = torch.where(left, through, upper)
        outermost = torch.where(x < self.low + half, first, last)
        return -torch.where((x < self.low + half) | (x > self.high - half), outermost, inside)
