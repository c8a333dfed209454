"""The data of a command line: those that are named or those of the recipe beside the checkpoint, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import plural, say, warn
from .recipe import DataRecipe, Recipe

if TYPE_CHECKING:
    import torch

    from .domains.transforms import DataTransform
    from .scores.neural import Data, NeuralScore


@dataclass(frozen=True)
class Given:
    """Data, what they were called, their part where they have parts, and whether the recipe says that the model was trained on them."""

    data: Data
    name: str
    part: str | None
    trained: bool

    def introduce(self, n: int) -> int:
        """Say which data these are, and how many rows of them n asks for; that number."""
        there = len(self.data)
        if n > there:
            say(f"--n {n}: the data have {there:,} {plural(there, 'row')}, all of which are taken")
        count = min(n, there)
        part = "" if self.part is None else f", {self.part} part"
        say(f"{self.name}{part}: {count:,} of {there:,} {plural(there, 'row')}")
        if self.trained:
            warn("these rows are the model's own training data, says its recipe; it may do worse on others")
        return count


def find_data(checkpoint: Path, source: str | None, part: str | None) -> Given:
    """The data called ``source``, or those of the checkpoint's recipe; of data in two parts the test part unless told.

    Files of the recipe's kind are read as the recipe reads its own. Raises ``ValueError`` for a part of data without parts, and where
    neither names data.
    """
    from .scores.neural import load_data

    recipe = _recipe(checkpoint)
    if source is None and recipe is None:
        raise ValueError(
            f"--data: got none, and no recipe lies beside {checkpoint} to name its data; name some, e.g. --data digits"
        )
    name = source if source is not None else recipe.source  # type: ignore[union-attr]
    parted = _folder(name) is not None
    if part is not None and not parted:
        raise ValueError(f"--part: got {part!r} for {name!r}, which has no parts; leave it out")
    if part not in (None, "test", "train"):
        raise ValueError(f"--part: got {part!r}, expected test or train")
    chosen = (part or "test") if parted else None
    data = load_data(name, part=chosen, **({} if recipe is None or parted else _reading(name, recipe)))  # type: ignore[arg-type]
    trained = recipe is not None and _same(name, recipe.source) and chosen in (None, recipe.part or "train")
    return Given(data, name, chosen, trained)


def fit(data: Data, score: NeuralScore) -> Data:
    """The data, whole numbers with the levels of the model where they do not say how many; refuses rows of another shape."""
    event = score.process.domain.event_shape
    if data.event_shape != event:
        raise ValueError(
            f"--data: got rows of shape {data.event_shape}, expected {event}, what the model was trained on"
        )
    bins = None if score.stored is None else score.stored.transform.bins
    if data.bins is None and bins is not None and not data.first.dtype.is_floating_point:
        return replace(data, bins=bins)
    return data


def levels(bins: int | None) -> str:
    """What values are, in words."""
    return "continuous values" if bins is None else f"whole numbers 0 … {bins - 1}"


def check_values(values: torch.Tensor, transform: DataTransform | None) -> None:
    """Refuse values that the model was not trained on, by what a command line can do about them."""
    from .scores.neural import AffineValues

    if not isinstance(transform, AffineValues) or not values.numel():
        return
    try:
        transform.forward(values)
    except ValueError:
        low, high = float(values.double().min()), float(values.double().max())
        whole = "" if bool((values == values.round()).all()) else " that are not whole"
        ends = (
            f"values from {transform.first} to {transform.last}" if transform.bins is None else levels(transform.bins)
        )
        raise ValueError(
            f"--data: got values from {low:g} to {high:g}{whole}, expected {ends}, as the model was trained on; store them so"
        ) from None


def _recipe(checkpoint: Path) -> DataRecipe | None:
    """What the recipe beside a checkpoint says of its data; None where there is none."""
    place = checkpoint.with_suffix(".json")
    try:
        return Recipe.read(place).data
    except (ValueError, OSError):
        return None


def _folder(name: str) -> Path | None:
    """Where data in two parts lie; None for others."""
    from .scores.neural.data import FASHION_MNIST

    kind, _, folder = name.partition(":")
    if name == "fashion-mnist" or (folder and kind in ("mnist", "fashion-mnist")):
        return Path(folder or FASHION_MNIST)
    return None


def _same(one: str, other: str) -> bool:
    """Whether two names stand for the same data."""
    if one == other or "digits" in (one, other):
        return one == other
    return (_folder(one) or Path(one)).resolve() == (_folder(other) or Path(other)).resolve()


def _reading(name: str, recipe: DataRecipe) -> dict[str, Any]:
    """How a file or folder is read: as the recipe reads its own."""
    if name == "digits":
        return {}
    path = Path(name)
    asked = ("size", "channels") if path.is_dir() else ("layout", "bins") if path.suffix in (".npy", ".npz") else ()
    return {option: getattr(recipe, option) for option in asked}
