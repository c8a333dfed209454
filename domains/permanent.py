r"""Permanents of positive matrices by dynamic programming over subsets: every term positive, so nothing cancels.

With :math:`F_m(S)` the sum over all ways to give the first m rows the columns S, one each,

.. math:: F_m(S) = \sum_{j ∈ S} F_{m-1}(S ∖ j)\, w_{mj}, \qquad \operatorname{perm} w = F_n(\{1 … n\}),

in :math:`n 2^{n-1}` multiplications; likewise :math:`G_m(S)` for the rows after m and the columns not in S. Two sums meet in a row,
which gives the mean of any :math:`s_{ij}` over the posterior of the column that row i takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .constants import lasting
from .tensors import event_sum

#: the largest n; the work doubles with each further row
MAX_ROWS = 12


class Layer(NamedTuple):
    """The subsets of size m, in lexicographic order: their ``members``, ``[count, m]``, and where the subset without each of
    them stands in the layer below; the columns ``missing`` from them, ``[count, n − m]``, and the subset ``above`` with each."""

    members: Tensor
    below: Tensor
    missing: Tensor
    above: Tensor


@cache
@lasting
def subset_layers(n: int) -> tuple[Layer, ...]:
    """The tables of sizes 0 … n, on the CPU; a kernel looks them up once and hands them to the functions below."""
    subsets = [list(combinations(range(n), m)) for m in range(n + 1)]
    places = [{s: i for i, s in enumerate(layer)} for layer in subsets]

    def table(rows: list[list[int]], width: int) -> Tensor:
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), width)

    layers = []
    for m, layer in enumerate(subsets):
        missing = [[j for j in range(n) if j not in s] for s in layer]
        below = [[places[m - 1][tuple(v for v in s if v != j)] for j in s] for s in layer]
        above = [[places[m + 1][tuple(sorted((*s, j)))] for j in rest] for s, rest in zip(layer, missing, strict=True)]
        layers.append(
            Layer(table([list(s) for s in layer], m), table(below, m), table(missing, n - m), table(above, n - m))
        )
    return tuple(layers)


def _gather(values: Tensor, columns: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """Σ_k values[…, columns[:, k]] · weights[…, places[:, k]], term by term: small temporaries and a fixed order."""
    total = values[..., columns[:, 0]] * weights[..., places[:, 0]]
    for k in range(1, columns.shape[1]):
        total = torch.addcmul(total, values[..., columns[:, k]], weights[..., places[:, k]])
    return total


def _prefixes(w: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """F_0, …, F_n, each ``[*batch, subsets of that size]``."""
    sums = [torch.ones_like(w[..., 0, :1])]
    for m, layer in enumerate(layers[1:]):
        sums.append(_gather(w[..., m, :], layer.members, sums[-1], layer.below))
    return sums


def permanent(w: Tensor, layers: Sequence[Layer]) -> Tensor:
    """perm w for w ≥ 0 ``[*batch, n, n]``, n ≤ MAX_ROWS: ``[*batch]``; ``layers`` is ``subset_layers(n)`` on w's device."""
    return _prefixes(w, layers)[-1][..., 0]


def permanent_and_row_means(w: Tensor, s: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """(perm w ``[*batch]``, the posterior means of s_ij over the column j that row i takes ``[*batch, n]``)."""
    n, first = w.shape[-1], _prefixes(w, layers)
    weighted = w * s
    last = torch.ones_like(first[-1])
    rows = []
    for m in range(n, 0, -1):
        layer = layers[m]
        through = _gather(weighted[..., m - 1, :], layer.members, first[m - 1], layer.below)
        rows.append(event_sum(last * through, 1))
        if m > 1:
            last = _gather(w[..., m - 1, :], layers[m - 1].missing, last, layers[m - 1].above)
    total = first[-1][..., 0]
    return total, torch.stack(rows[::-1], -1) / total.unsqueeze(-1)
