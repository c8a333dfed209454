"""Data that comes with the library's dependencies."""

from __future__ import annotations

import torch
from torch import Tensor


def digits() -> Tensor:
    """The 1797 handwritten digits of scikit-learn: float32 ``[1797, 1, 8, 8]``, seventeen grey levels in [0, 1].

    Raises ``ImportError`` with the install hint where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits() needs scikit-learn; install it with: pip install 'carom[train]'") from error
    return torch.as_tensor(load_digits().images, dtype=torch.float32).div_(16).unsqueeze(1)


def split(data: Tensor, held_out: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(training, held-out) rows of ``data``, drawn without replacement; the same for the same seed and length, everywhere.

    Args:
        data: ``[N, …]`` with N ≥ 2.
        held_out: share of the rows held out, in (0, 1); at least one row lands on each side.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: got {held_out}, expected a share between 0 and 1, e.g. 0.2")
    if len(data) < 2:
        raise ValueError(f"data: got {len(data)} rows, expected at least 2 to split")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(data.device)
    count = min(max(round(held_out * len(data)), 1), len(data) - 1)
    return data[order[count:]], data[order[:count]]
