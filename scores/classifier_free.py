r"""Classifier-free guidance: a conditional score and one without the condition, mixed; its interval, its rescaling, CFG++.

:mod:`~carom.scores.guidance` says what it leads to and lists the other guidances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.constants import OnDevice
from ..domains.tensors import event_sum, expand_right, number, per_batch, values_are_readable
from ..processes import Diffusion
from ..processes.equations import check_field
from ..solvers.checks import check_times
from .guidance import Pair, Transformed

Weight = float | Callable[[Tensor], Tensor]


class ClassifierFree(Transformed):
    r"""Classifier-free guidance, :math:`s_u + w\,(s_c - s_u)` (Ho & Salimans 2022; their w is ours − 1: :meth:`from_paper`).

    s_c is the score of the condition, keywords of the call (``sample(…, condition=…)``) and those bound here; s_u that without any
    condition, which for networks of this library is a token of its own.

    Args:
        score: any score that takes the condition's keywords.
        weight: w, a number or a function of the time t. 1 is the conditional score, at the cost of one evaluation; 0 the
            unconditional one.
        condition: keywords that are bound; those of a call come on top.
        negative: the second condition: s_u hears the condition with these keywords in place of its own. A number stands for a tensor
            filled with it. Where both hear tensors under the same names, the two are read as one batch.
        guide: another score in place of ``score`` for s_u, that hears the same condition (autoguidance, Karras et al. 2024).
        interval: (low, high) in σ: outside of it the weight is 1 (Kynkäänniemi et al. 2024).
        rescale: φ in [0, 1], how far x̂0 is brought back to the std, over each event, of the conditional x̂0 (Lin et al. 2024, §3.4).
            Euclidean domains only.
        joined: read both as one batch where that is possible.
        process: whose score it is; ``score.process`` unless told.

    Offers ``prediction`` where its scores do. Raises ``TypeError``/``ValueError`` for arguments that do not fit.
    """

    def __init__(
        self,
        score: Any,
        weight: Weight = 1.0,
        condition: Mapping[str, Any] | None = None,
        *,
        negative: Mapping[str, Any] | None = None,
        guide: Any = None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        joined: bool = True,
        process: Diffusion | None = None,
    ):
        super().__init__(score, process)
        self.weight = weight if callable(weight) else number(weight, "weight")
        if guide is not None and (negative is not None or not callable(guide)):
            raise TypeError(
                f"guide: got {guide!r} and negative {negative!r}, expected a score, or a negative condition, not both"
            )
        for name, value in (("condition", condition), ("negative", negative)):
            if value is not None and not isinstance(value, Mapping):
                raise TypeError(f"{name}: got {value!r}, expected keywords of the score, e.g. {{'label': …}}")
        self.condition, self.negative, self.guide = dict(condition or {}), negative, guide
        self.interval = None if interval is None else _interval(interval)
        self.rescale, self.joined = number(rescale, "rescale", low=0.0, high=1.0), joined
        if self.rescale and not isinstance(self.process.domain, Euclidean):
            raise TypeError(
                f"rescale: got {rescale:g} on {self.process.domain!r}, where no linear formula leads from x̂0 to the score, expected 0; on "
                "a bounded domain values cannot leave it"
            )
        if hasattr(score, "prediction") and (guide is None or hasattr(guide, "prediction")):
            self.prediction = self._prediction

    @classmethod
    def from_paper(
        cls, score: Any, w: float, condition: Mapping[str, Any] | None = None, **options: Any
    ) -> ClassifierFree:
        """Ho & Salimans' (1 + w) s_c − w s_u."""
        return cls(score, 1 + number(w, "w"), condition, **options)

    def __repr__(self) -> str:
        return f"ClassifierFree({self.score!r}, weight={self.weight})"

    def __call__(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """The guided score, in x's shape."""
        if self.rescale:
            scale, _, std = self._level(x, t)
            data = self._rescaled(x, t, condition)[0]
            return ((scale * data.double() - x.double()) / std**2).to(x.dtype)
        one, other = self._both("__call__", x, t, condition)
        return self._mix(check_field(one, x), other, x, t)

    def _prediction(self, x: Tensor, t: float | Tensor, **condition: Any) -> Pair:
        """(E[x0 | x], E[ε | x]) of the guided score."""
        if self.rescale:
            return self._rescaled(x, t, condition)
        one, other = self._both("prediction", x, t, condition)
        if other is None:
            return one
        return self._mix(one[0], other[0], x, t), self._mix(one[1], other[1], x, t)

    def rows(self, index: Tensor) -> Any:
        bound = {**self.condition, **(self.negative or {})}
        if any(isinstance(value, Tensor) and value.dim() for value in bound.values()):
            return None
        other = super().rows(index)
        if other is None or self.guide is None:
            return other
        restrict = getattr(self.guide, "rows", None)
        other.guide = None if restrict is None else restrict(index)
        return None if other.guide is None else other

    def _mix(self, one: Tensor, other: Tensor | None, x: Tensor, t: float | Tensor) -> Tensor:
        if other is None:
            return one
        weight = self._weight(x, t)
        return torch.lerp(other, one, weight.to(x.dtype) if isinstance(weight, Tensor) else weight)

    def _weight(self, x: Tensor, t: float | Tensor) -> float | Tensor:
        """w at t; a tensor meets x."""
        if not callable(self.weight) and self.interval is None:
            return self.weight
        at = per_batch(t, x, self.event_ndim, "t").double()
        weight = self.weight(at) if callable(self.weight) else torch.full_like(at, self.weight)
        if self.interval is not None:
            sigma = self.process.schedule.sigma(at)
            weight = torch.where((sigma >= self.interval[0]) & (sigma <= self.interval[1]), weight, 1.0)
        return expand_right(weight, self.event_ndim)

    def _alone(self, x: Tensor, t: float | Tensor) -> float | None:
        """1 or 0 where one of the two scores is all that is needed, as far as that is known without waiting for a device."""
        weight = self._weight(x, t)
        if isinstance(weight, Tensor):
            if weight.device.type != "cpu" or not values_are_readable(weight) or weight.dim() > self.event_ndim:
                return None
            weight = float(weight)
        return weight if weight in (0.0, 1.0) else None

    def _both(self, method: str, x: Tensor, t: float | Tensor, condition: Mapping[str, Any]) -> tuple[Any, Any]:
        """What the conditional and the other score say; the second is None where the first is all that is needed."""
        given = {**self.condition, **condition}
        if not given and self.guide is None and self.negative is None:
            raise ValueError(
                f"condition: got none for {self!r}, whose two scores are then the same, expected keywords in sample(…, condition=…) or "
                "bound here, ClassifierFree(score, weight, condition)"
            )
        without = given if self.guide is not None else self._negative(given)
        alone = self._alone(x, t)
        if alone == 1.0:
            return getattr(self.score, method)(x, t, **given), None
        guide = self.score if self.guide is None else self.guide
        if alone == 0.0:
            return getattr(guide, method)(x, t, **without), None
        if self.guide is None and self.joined and _can_join(x, self.event_ndim, given, without):
            return self._read_joined(method, x, t, given, without)
        return getattr(self.score, method)(x, t, **given), getattr(guide, method)(x, t, **without)

    def _negative(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if self.negative is None:
            return {}
        filled = {
            name: torch.full_like(given[name], value)
            if isinstance(value, (int, float)) and isinstance(given.get(name), Tensor)
            else value
            for name, value in self.negative.items()
        }
        return {**given, **filled}

    def _read_joined(
        self, method: str, x: Tensor, t: float | Tensor, given: Mapping[str, Any], without: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        n = len(x)
        both = {name: torch.cat([given[name], without[name]]) for name in given}
        at = torch.cat([t, t]) if isinstance(t, Tensor) and t.dim() else t
        found = getattr(self.score, method)(torch.cat([x, x]), at, **both)
        if isinstance(found, tuple):
            return tuple(v[:n] for v in found), tuple(v[n:] for v in found)
        return found[:n], found[n:]

    def _rescaled(self, x: Tensor, t: float | Tensor, condition: Mapping[str, Any]) -> Pair:
        """(x̂0 with its std moved towards that of the conditional one, the ε that goes with it)."""
        scale, sigma, std = self._level(x, t)
        if hasattr(self, "prediction"):
            one, other = self._both("prediction", x, t, condition)
            data = [None if v is None else v[0].double() for v in (one, other)]
        else:
            both = self._both("__call__", x, t, condition)
            data = [None if v is None else x.double() / scale + scale * sigma**2 * v.double() for v in both]
        one, other = data
        assert one is not None
        mixed = self._mix(one, other, x.double(), t)
        wide = _spread(mixed, self.event_ndim)
        # an event of equal numbers, or of one, has no spread to bring back
        ratio = torch.where(wide > 0, _spread(one, self.event_ndim) / torch.where(wide > 0, wide, 1.0), 1.0)
        mixed = (1 + self.rescale * (ratio - 1)) * mixed
        return mixed.to(x.dtype), ((x.double() - scale * mixed) / std).to(x.dtype)


def _interval(interval: Sequence[float]) -> tuple[float, float]:
    if len(interval) != 2:
        raise ValueError(f"interval: got {interval!r}, expected (low, high) in σ")
    low, high = interval
    low = number(low, "interval's low", low=0.0)
    return low, number(high, "interval's high", low=low, open_low=True)


def _can_join(x: Tensor, event_ndim: int, given: Mapping[str, Any], without: Mapping[str, Any]) -> bool:
    """Whether two batches can be one: the same names on both sides, all tensors that begin with the batch."""
    if x.dim() == event_ndim or not given or set(given) != set(without):
        return False
    pairs = [(given[name], without[name]) for name in given]
    return all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.shape[:1] == x.shape[:1]
        for a, b in pairs
    )


def _spread(x: Tensor, event_ndim: int) -> Tensor:
    """The std over an event of d numbers, in the form that meets x."""
    count = math.prod(x.shape[x.dim() - event_ndim :])
    mean = expand_right(event_sum(x, event_ndim) / count, event_ndim)
    return expand_right((event_sum((x - mean) ** 2, event_ndim) / count).sqrt(), event_ndim)


def cfg_plus_plus(
    process: Diffusion, times: Tensor | np.ndarray | Sequence[float], weight: float
) -> Callable[[Tensor], Tensor]:
    r"""The weights of CFG++ (Chung et al. 2025) for a run of ``DDIM()`` or ``Euler`` in σ down ``times``.

    A step of CFG++ renoises the guided x̂0 with the unconditional ε̂. That is the step of the guided score whose weight is
    :math:`λ\,σ_t/(σ_t - σ_s)`, from t to s: it differs from step to step, large where steps are short.

    Args: times: the grid of the run, decreasing. weight: λ in [0, 1].

    Returns w(t), for ``ClassifierFree(weight=…)``; the time of a level that is not on the grid takes that of the nearest one.
    """
    grid = check_times(times)
    if len(grid) > 1 and grid[0] < grid[-1]:
        raise ValueError(
            f"times: got a grid that rises from {float(grid[0]):g}, expected the decreasing one of the run"
        )
    weight = number(weight, "weight", low=0.0, high=1.0)
    sigma = process.level(grid).sigma
    # as a ratio, for σ may begin at infinity
    weights = torch.cat([weight / (1 - sigma[1:] / sigma[:-1]), torch.tensor([weight], dtype=torch.float64)])
    table = OnDevice((grid, weights))

    def at(t: Tensor) -> Tensor:
        levels, values = table(t.device)
        return values[(t.double()[..., None] - levels).abs().argmin(-1)]

    return at
