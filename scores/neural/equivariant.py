r"""A network for the regular simplex that treats all categories alike.

Heat flow on :class:`~carom.domains.RegularSimplex` does not change when categories are relabelled: relabelling is an orthogonal map
P of the isometric coordinates that carries the simplex onto itself, and so the score of relabelled data is P score(Pᵀx). A network
with network(P x) = P network(x) need not learn this K! times. With V ``[K, K − 1]`` the vertices, an isometry of the coordinates into
the vectors of sum 0, each category k has the number (V x)_k; the same layers serve all categories, which hear of each other by
means over them (Zaheer et al. 2017), and the answer is Vᵀ o. The score then is equivariant too, for ``Reflected`` scales all
coordinates here by one factor and damps all walls alike.

On :class:`~carom.domains.Simplex` the coordinates are cumulative sums, and relabelling the gaps is no symmetry: its heat flow moves
mass between neighbours only, and its walls meet at 60° or 45° where they are neighbours and at right angles elsewhere. What its heat
flow keeps is the reversal of the order, :math:`y_i → 1 - y_{K-i}`, alone: data that are as likely backwards can be shown both ways.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...domains import RegularSimplex
from ...domains.tensors import is_int
from .layers import (
    ClassEmbedding,
    Conditioned,
    KeepsPrecision,
    LayerNorm,
    NoiseEmbedding,
    check_counts,
    check_share,
    zeroed,
)
from .networks import register_network


@dataclass(frozen=True)
class EquivariantConfig(Conditioned):
    """Settings of :class:`EquivariantMLP`; those of :class:`Conditioned` by keyword.

    categories: K ≥ 2. width, depth: neurons per layer and category, and number of residual blocks. dropout: in [0, 1).

    The defaults have 69,000 weights, whatever K.
    """

    categories: int
    width: int = 64
    depth: int = 3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_int(self.categories, 2):
            raise ValueError(f"categories: got {self.categories!r}, expected a whole number of at least 2")
        check_counts(self, "width", "depth")
        check_share(self.dropout, "dropout")


class _Block(nn.Module):
    """h_k + W₃ dropout(SiLU(W₁ n_k + W₂ mean_j n_j)), with n the modulated norm of h ``[B, K, width]``."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.own, self.pooled = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).unsqueeze(1).chunk(2, -1)
        normed = torch.addcmul(shift, self.norm(hidden), 1 + scale)
        mixed = functional.silu(self.own(normed) + self.pooled(normed.mean(1, keepdim=True)))
        return hidden + self.out(self.dropout(mixed))


@register_network(EquivariantConfig)
class EquivariantMLP(KeepsPrecision):
    """An MLP for events ``[K − 1]`` of ``RegularSimplex(K)``, equivariant under every relabelling of the categories; see the module."""

    vertices: Tensor

    def __init__(self, config: EquivariantConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = NoiseEmbedding(width, kind=config.embedding)
        self.label = ClassEmbedding(config.classes, width, config.label_dropout)
        corners = torch.eye(config.categories, dtype=torch.float64)
        self.register_buffer(
            "vertices", RegularSimplex(config.categories).from_probabilities(corners), persistent=False
        )
        self.first = nn.Linear(1, width)
        self.blocks = nn.ModuleList(_Block(width, config.dropout) for _ in range(config.depth))
        self.norm = LayerNorm(width)
        self.last = zeroed(nn.Linear(width, 1))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | int | None = None) -> Tensor:
        """x ``[B, K − 1]``, c_noise ``[B]``, label as in :class:`ClassEmbedding` → ``[B, K − 1]``."""
        if x.shape[1:] != (self.config.categories - 1,):
            raise ValueError(
                f"EquivariantMLP: got x of shape {tuple(x.shape)}, expected [B, {self.config.categories - 1}]; set categories of "
                "EquivariantConfig to those of the RegularSimplex"
            )
        embedding = functional.silu(self.label(self.embedding(c_noise), label))
        vertices = self.vertices.to(x.dtype)
        hidden = self.first((x @ vertices.T).unsqueeze(-1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.last(functional.silu(self.norm(hidden))).squeeze(-1) @ vertices
