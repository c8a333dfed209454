"""How the data of a model were stored: what its samples become in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...domains.transforms import AffineValues, DataTransform, transform_from_config


@dataclass(frozen=True)
class Stored:
    """The map from stored values to points of the domain, and the names of the classes 0, 1, … (None where there are none).

    ``train`` notes it in the score when it is given ``Data.on(domain)``, and it travels in the checkpoint.
    """

    transform: DataTransform
    classes: tuple[str, ...] | None = None

    def values(self, x: Tensor) -> Tensor:
        """The stored values that points ``[*batch, *event]`` stand for: whole numbers where there are levels, uint8 up to 256 of them and
        uint16 up to 65536; else reals in x's dtype. NaN becomes level 0, for whole numbers know no NaN."""
        transform = self.transform
        if not isinstance(transform, AffineValues) or transform.bins is None:
            return transform.inverse(x)
        levels = transform.quantise(x.nan_to_num(float(torch.as_tensor(transform.low).min())))
        dtypes = {torch.uint8: 256, torch.uint16: 65536}
        return levels.to(next((dtype for dtype, most in dtypes.items() if transform.bins <= most), torch.int64))

    def config(self) -> dict[str, Any]:
        """As JSON."""
        return {"transform": self.transform.config(), "classes": None if self.classes is None else list(self.classes)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Stored:
        """The inverse of ``config``."""
        if set(config) != {"transform", "classes"}:
            raise ValueError(f"data: got keys {sorted(config)}, expected 'transform' and 'classes'")
        classes = config["classes"]
        return cls(transform_from_config(config["transform"]), None if classes is None else tuple(classes))
