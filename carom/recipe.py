"""A training in one file: data, domain, schedule, network, objective and settings, all that ``carom train`` is told.

A recipe is a tree of frozen dataclasses that says what was asked for; what follows from the data (shapes, channels, numbers of
classes) may be left out. As JSON it lies beside every checkpoint, and ``carom train --config`` reads it, or TOML, back.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from .short_names import Spec, full_spec, nearest


class Section:
    """A dataclass whose fields are checked against their types when it is made, and that is a mapping in a file."""

    #: what comes before a field's name in ``--set``
    place: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is not ClassVar:
                object.__setattr__(self, name, _fitted(getattr(self, name), hint, self.place + name))

    def config(self) -> dict[str, Any]:
        """As JSON: every field, defaults too."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload]


@dataclass(frozen=True)
class DataRecipe(Section):
    """source, part, size, channels, layout, bins: as for ``load_data``. fit, between, dequantise: as for ``Data.on``. labels: the
    network hears the class."""

    place: ClassVar[str] = "data."
    source: str = "digits"
    part: Literal["train", "test"] | None = None
    size: int | tuple[int, int] | None = None
    channels: int | None = None
    layout: Literal["HW", "HWC"] | None = None
    bins: int | None = None
    fit: Literal["levels", "bins"] = "levels"
    between: tuple[float, float] | None = None
    dequantise: int | None = None
    labels: bool = False


@dataclass(frozen=True)
class TrainingRecipe(Section):
    """As for ``train``, but lr, which is multiplied by half a cosine down to ``final_lr`` in ``decay_steps`` with ``decay="cosine"``.

    decay_steps is by default ``steps``; with neither steps nor seconds the training takes 90 seconds.
    """

    place: ClassVar[str] = "training."
    steps: int | None = None
    seconds: float | None = None
    batch_size: int = 128
    lr: float = 1e-3
    decay: Literal["constant", "cosine"] = "constant"
    decay_steps: int | None = None
    final_lr: float = 0.0
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float | None = 1.0
    ema: float | None = 0.999
    seed: int = 0
    microbatches: int | None = None
    mixed_precision: Literal["no", "bf16"] | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay == "cosine" and self.steps is None and self.decay_steps is None:
            raise ValueError(
                "training.decay: got 'cosine' without steps, expected steps or decay_steps to say where it ends"
            )


@dataclass(frozen=True)
class Recipe(Section):
    """A whole training.

    domain, schedule, network, preconditioning, objective: a type and its arguments, or a short name. None takes VE on bounded domains
    and EDM on others, the preconditioning of the domain, and denoising score matching.
    """

    data: DataRecipe = field(default_factory=DataRecipe)
    domain: Spec = field(default_factory=lambda: {"type": "Hypercube"})
    schedule: Spec | None = None
    network: Spec = field(default_factory=lambda: {"type": "UNet"})
    preconditioning: Spec | None = None
    objective: Spec | None = None
    training: TrainingRecipe = field(default_factory=TrainingRecipe)

    def __post_init__(self) -> None:
        for name in ("domain", "schedule", "network", "preconditioning", "objective"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, full_spec(name, value))
        super().__post_init__()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Recipe:
        """The inverse of ``config``. What is missing takes its default; what is unknown is refused."""
        sections = {"data": DataRecipe, "training": TrainingRecipe}
        values = _known(config, cls, "recipe")
        for name, section in sections.items():
            if name in values:
                if not isinstance(values[name], Mapping):
                    raise ValueError(f"recipe: got {values[name]!r} for {name}, expected an object of settings")
                values[name] = section(**_known(values[name], section, name))
        return cls(**values)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """From a .json or .toml file."""
        return cls.from_config(read_config(path))

    def write(self, path: str | os.PathLike[str]) -> None:
        """As JSON, which ``read`` gives back equal; in place of what was there, at once or not at all."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self.config(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a .json or .toml file, not yet checked."""
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"config: got {str(path)!r}, which is no file")
    try:
        text = source.read_text(encoding="utf-8")
        config = tomllib.loads(text) if source.suffix == ".toml" else json.loads(text)
    except ValueError as error:  # of both parsers, and of what is no text
        raise ValueError(f"config: got {str(path)!r}, which is no readable JSON or .toml file ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"config: got {str(path)!r}, which holds no object of settings")
    return config


def override(config: Mapping[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """``config`` with values put at places such as "network.channels"."""
    changed = json.loads(json.dumps(config))
    for place, value in changes:
        *path, last = place.split(".")
        inner = changed
        for i, name in enumerate(path):
            if inner.get(name) is None or isinstance(inner[name], str):
                found = inner.get(name)
                # a part by its short name, or by default, becomes one whose arguments can be set
                inner[name] = {} if found is None else full_spec(name, found)
            inner = inner[name]
            if not isinstance(inner, dict):
                raise ValueError(f"--set {place}: {'.'.join(path[: i + 1])} is {inner!r}, which has no settings")
        inner[last] = value
    return changed


def setting(text: str) -> tuple[str, Any]:
    """The place and value of ``network.channels=32``: JSON where it is JSON, else text."""
    place, equals, value = text.partition("=")
    if not equals or not all(place.split(".")):
        raise ValueError(f"--set: got {text!r}, expected NAME=VALUE, e.g. network.channels=32")
    try:
        return place, json.loads(value)
    except json.JSONDecodeError:
        return place, value


def differences(there: Recipe, asked: Recipe) -> list[str]:
    """Setting by setting what two recipes say, but for budgets and the place of the data, which may change on the way."""
    free = {"training.seconds", "training.compile", "data.source"}
    if asked.training.decay != "cosine" or asked.training.decay_steps is not None:
        free.add("training.steps")
    one, two = _flat(there.config()), _flat(asked.config())
    keys = [key for key in one | two if one.get(key) != two.get(key) and key not in free]
    return [f"{key}: {json.dumps(one.get(key))} there, {json.dumps(two.get(key))} asked" for key in keys]


def _flat(config: dict[str, Any], place: str = "") -> dict[str, Any]:
    """A tree of settings by their names for ``--set``."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{place}{name}.") if isinstance(value, dict) else {place + name: value}
    return found


def _known(config: Mapping[str, Any], section: type, where: str) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(section)]
    if unknown := [str(name) for name in config if name not in names]:
        guess = nearest(unknown[0], names)
        raise ValueError(
            f"{where}: got unknown settings {', '.join(unknown)}{guess}, expected some of {', '.join(names)}"
        )
    return dict(config)


def _fitted(value: Any, hint: Any, where: str) -> Any:
    """The value in the type its field has; lists become tuples and whole numbers floats where these are meant."""
    options = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    for option in options:
        fits, fitted = _as_type(value, option)
        if fits:
            return fitted
    raise ValueError(f"{where}: got {value!r}, expected {' or '.join(map(_words, options))}")


def _as_type(value: Any, hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint), value
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != len(parts):
            return False, None
        fitted = [_as_type(v, part) for v, part in zip(value, parts, strict=True)]
        return all(fits for fits, _ in fitted), tuple(v for _, v in fitted)
    if hint is float:
        fits = type(value) in (int, float) and math.isfinite(value)
        return fits, float(value) if fits else None
    kind = dict if get_origin(hint) is dict else hint
    return type(value) is kind, value


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"[{', '.join(map(_words, get_args(hint)))}]"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
    return words.get(hint, "an object")
