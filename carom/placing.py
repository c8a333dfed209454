"""Data onto the domain of a recipe; where they do not fit, what to write on the command line instead."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .domains import Ball, Domain, Euclidean, Hypercube
from .recipe import DataRecipe
from .scores.neural import Data, DomainDataset

#: rows that are looked at together
CHUNK = 1024


def place(data: Data, domain: Domain, given: DataRecipe) -> DomainDataset:
    """The data as points of the domain.

    Raises ``ValueError`` or ``TypeError`` with the options that would make them fit.
    """
    if given.between is not None and data.bins is not None:
        raise ValueError(
            f"--set data.between: got it for data of {data.bins} levels, which are laid between the walls as they are; leave it out"
        )
    try:
        return data.on(domain, fit=given.fit, between=given.between, labels=given.labels, dequantise=given.dequantise)
    except (ValueError, TypeError) as error:
        advice = advise(data, domain, given)
        raise type(error)(f"--data {given.source}: {error}{advice and f'. Try {advice}'}") from None


def advise(data: Data, domain: Domain, given: DataRecipe) -> str:
    """Options that make the data fit, or nothing where none would."""
    if not isinstance(data.source, Tensor) or not len(data) or data.event_shape != domain.event_shape:
        return ""
    low, high, whole = _facts(data.source)
    if not math.isfinite(high - low):
        return ""
    ends = f"{math.floor(low):g},{math.ceil(high):g}" if low < high else f"{low:g},{low + 1:g}"
    bins = f"--set data.bins={int(high) + 1}" if whole and low >= 0 and 1 <= high < 2**20 else ""
    between = f"--set data.between=[{ends}]" if isinstance(domain, (Hypercube, Euclidean)) else ""
    if data.bins is not None or not data.source.dtype.is_floating_point:
        return " or ".join(filter(None, [bins, between if data.bins is None else ""]))
    if given.between is not None:
        return between
    if isinstance(domain, Hypercube):
        return f"--domain cube:{ends} for walls there, or {between} to lay that range between the walls"
    if isinstance(domain, Ball):
        radius = float(data.source.double().norm(dim=-1).max())
        return f"--domain ball:{math.ceil(radius):g}"
    return "another --domain, e.g. euclidean"


def _facts(values: Tensor) -> tuple[float, float, bool]:
    """The least value, the largest, and whether all are whole numbers."""
    parts = values.split(CHUNK)
    whole = not values.dtype.is_floating_point or all(bool((part == part.floor()).all()) for part in parts)
    ends = torch.stack([end for part in parts for end in part.double().aminmax()])
    return float(ends.min()), float(ends.max()), whole
