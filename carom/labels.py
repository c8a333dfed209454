"""Which class each sample is asked for: by its index, so that it does not depend on batches or processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .scores.neural import NeuralScore


@dataclass(frozen=True)
class Labels:
    """Image i is of class ``classes[i mod len]``; with none, of no class in particular."""

    classes: tuple[int, ...] = ()

    def condition(self, index: Sequence[int], device: torch.device | str) -> dict[str, Any]:
        """What the network hears for the images ``index``."""
        if not self.classes:
            return {}
        return {"label": torch.tensor([self.classes[i % len(self.classes)] for i in index], device=device)}


def every_class(score: NeuralScore) -> Labels:
    """All classes in turn; none for a network that hears none."""
    return Labels(tuple(range(_count(score.network))))


def find_labels(score: NeuralScore, asked: str | None) -> Labels:
    """The classes of a command line: "all" (what None takes too), "none", or numbers and names parted by commas.

    Raises ``ValueError`` for classes there are not.
    """
    count = _count(score.network)
    if asked is None or asked == "all":
        if asked == "all" and not count:
            raise ValueError("--classes: got 'all' for a model that hears no classes; leave it out")
        return every_class(score)
    if asked == "none":
        return Labels()
    if not count:
        raise ValueError(f"--classes: got {asked!r} for a model that hears no classes; leave it out")
    names = (score.stored.classes if score.stored is not None else None) or ()
    return Labels(tuple(_class(part.strip(), count, names) for part in asked.split(",")))


def _class(text: str, count: int, names: Sequence[str]) -> int:
    # a number is a number, also where classes have numbers for names
    if text.isdecimal() and int(text) < count:
        return int(text)
    if text in names:
        return names.index(text)
    words = [name for name in names if not name.isdecimal()]
    known = f", or {', '.join(words)}" if words else ""
    raise ValueError(f"--classes: got {text!r}, expected numbers from 0 to {count - 1}{known}, 'all' or 'none'")


def _count(network: Any) -> int:
    """How many classes a network hears, inside a Conservative as well."""
    while hasattr(network, "network"):
        network = network.network
    return int(getattr(getattr(network, "config", None), "classes", 0))
