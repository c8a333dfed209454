"""What one check of ``carom validate`` is, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..domains import Euclidean

LINE = Euclidean((1,))


@dataclass(frozen=True)
class Reference:
    """One check.

    Attributes:
        system, quantity: what is checked.
        value: what it is.
        measure: what it comes out as here.
        tolerance: how far the two may be apart: the digits of the value, and what the run is asked for.
        slides: heading in the lecture notes or section of the paper.
    """

    system: str
    quantity: str
    value: float
    measure: Callable[[], Any]
    tolerance: float
    slides: str


@dataclass(frozen=True)
class Outcome:
    """A reference and what was measured; ``failure`` is what the check raised instead, if it did."""

    reference: Reference
    measured: float
    failure: str = ""

    @property
    def error(self) -> float:
        return abs(self.measured - self.reference.value)

    @property
    def passed(self) -> bool:
        return self.error <= self.reference.tolerance  # False for NaN


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
