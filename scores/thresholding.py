r"""Thresholding of the predicted data, as image models do it: a change of the score, not a wall.

x̂0 = E[x0 | x] is brought into the range of the data and ε̂ derived anew, so that x = s·x̂0 + std·ε̂ still holds; the score is
−ε̂/std. With an exact unguided score the static rule changes nothing, for E[x0 | x] lies in the convex hull of the data. Guided scores
leave it. Neither rule makes samples of the data's law near the range's ends: ``benchmarks/guidance.py`` compares with a reflected model.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import expand_right, number
from ..processes import Diffusion
from .guidance import Transformed
from .predictions import prediction


class _Threshold(Transformed):
    """A score whose x̂0 goes through ``clip``."""

    def __init__(self, score: Any, low: float, high: float, process: Diffusion | None):
        super().__init__(score, process)
        self.low, self.high = number(low, "low"), number(high, "high", low=low, open_low=True)
        if not isinstance(self.process.domain, Euclidean):
            raise TypeError(
                f"{type(self).__name__}: got {self.process.domain!r}, whose walls keep states inside, expected a Euclidean domain; "
                "at walls x + σ² score is not E[x0 | x]"
            )

    def __call__(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """−ε̂/std of the thresholded x̂0, in x's shape."""
        noise = self._noise(x, t, self._data(x, t, condition))
        return (noise / self._level(x, t)[2]).neg().to(x.dtype)

    def prediction(self, x: Tensor, t: float | Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """(x̂0 within the range, the ε̂ that goes with it)."""
        data = self._data(x, t, condition)
        return data, self._noise(x, t, data).to(x.dtype)

    def _data(self, x: Tensor, t: float | Tensor, condition: dict[str, Any]) -> Tensor:
        return self.clip(prediction(self.score, x, t, self.process, **condition)[0])

    def _noise(self, x: Tensor, t: float | Tensor, data: Tensor) -> Tensor:
        scale, _, std = self._level(x, t)
        # in float64: near σ_min the two nearly cancel
        return (x.double() - scale * data.double()) / std

    @abstractmethod
    def clip(self, data: Tensor) -> Tensor:
        """x̂0 ``[*batch, *event]`` brought into the range."""


class StaticThreshold(_Threshold):
    """x̂0 clamped to [low, high].

    Args: score: on a Euclidean domain. low, high: range of the data. process: whose score it is; ``score.process`` unless told.
    """

    def __init__(self, score: Any, low: float = -1.0, high: float = 1.0, process: Diffusion | None = None):
        super().__init__(score, low, high, process)

    def clip(self, data: Tensor) -> Tensor:
        return data.clamp(self.low, self.high)


class DynamicThreshold(_Threshold):
    r"""Imagen's rule, sample by sample (Saharia et al. 2022, §2.3): with q the quantile of |x̂0 − middle| over the event in units of
    half the range, x̂0 is clamped to max(1, q) of them and divided by that.

    Args: score: on a Euclidean domain. quantile: in (0, 1]. low, high: range of the data. process: whose score it is.
    """

    def __init__(
        self,
        score: Any,
        quantile: float = 0.995,
        low: float = -1.0,
        high: float = 1.0,
        process: Diffusion | None = None,
    ):
        super().__init__(score, low, high, process)
        self.quantile = number(quantile, "quantile", low=0.0, high=1.0, open_low=True)

    def clip(self, data: Tensor) -> Tensor:
        middle, half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        unit = (data - middle) / half
        sizes = (
            unit.detach().abs().flatten(unit.dim() - self.event_ndim)
            if self.event_ndim
            else unit.detach().abs()[..., None]
        )
        # by sorting: torch.quantile takes at most 2^24 numbers
        place = self.quantile * (sizes.shape[-1] - 1)
        ordered = sizes.sort(-1).values
        below = ordered[..., int(place)]
        above = ordered[..., min(int(place) + 1, sizes.shape[-1] - 1)]
        bound = expand_right(torch.lerp(below, above, place - int(place)).clamp(min=1.0), self.event_ndim)
        return middle + half * unit.clamp(-bound, bound) / bound
