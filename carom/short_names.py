"""What parts are called on the command line and in recipes: ``"cube:-1,1"`` for ``{"type": "Hypercube", "low": -1.0, "high": 1.0}``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

#: what a part is described by, as JSON: its type and its arguments
Spec = dict[str, Any]

#: short name: the type it stands for, and the arguments whose numbers may follow it after a colon
SHORT: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "domain": {
        "cube": ("Hypercube", ("low", "high")),
        "euclidean": ("Euclidean", ()),
        "orthant": ("Orthant", ()),
        "torus": ("Torus", ("period",)),
        "simplex": ("Simplex", ()),
        "regular-simplex": ("RegularSimplex", ()),
        "ball": ("Ball", ("radius",)),
    },
    "schedule": {
        "ve": ("VE", ("sigma_min", "sigma_max")),
        "edm": ("EDM", ("sigma_min", "sigma_max")),
        "vp": ("VP", ("beta_min", "beta_max")),
        "sub-vp": ("SubVP", ("beta_min", "beta_max")),
        "cosine": ("CosineVP", ("offset",)),
        "flow": ("FlowMatching", ()),
        "ddpm": ("ddpm", ("steps", "beta_min", "beta_max")),
        "learned": ("Learned", ()),
    },
    "network": {
        "unet": ("UNet", ()),
        "dit": ("DiT", ()),
        "mlp": ("MLP", ()),
        "equivariant": ("EquivariantMLP", ()),
        "conservative": ("Conservative", ()),
    },
    "preconditioning": {
        "reflected": ("Reflected", ()),
        "reflected-velocity": ("ReflectedVelocity", ()),
        "edm": ("EDMPreconditioning", ("sigma_data", "mean")),
        "vp": ("VPPreconditioning", ("beta_min", "beta_max")),
        "ve": ("VEPreconditioning", ()),
        "iddpm": ("IDDPMPreconditioning", ()),
        "v": ("VPredictionPreconditioning", ()),
        "velocity": ("VelocityPreconditioning", ()),
    },
    "objective": {
        "denoising": ("denoising", ()),
        "simple": ("simple", ()),
        "likelihood": ("likelihood", ()),
        "min-snr": ("min-snr", ("gamma",)),
        "edm": ("edm", ("mean", "std")),
        "flow-matching": ("flow-matching", ()),
        "latent-image": ("latent-image", ()),
        "implicit": ("implicit", ()),
        "sliced": ("sliced", ("probes",)),
        "vdm": ("vdm", ("steps",)),
        "bound": ("bound", ()),
    },
}


def nearest(name: str, known: Iterable[str]) -> str:
    """What follows a name that is not known: " (did you mean …?)" after a name that is not known, or nothing where none is like it."""
    found = difflib.get_close_matches(name.lower(), list(known), 1, 0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def short_names(part: str) -> str:
    """The short names of a part with what may follow them, for messages and help."""
    return ", ".join(
        name + (f"[:{','.join(numbers)}]" if numbers else "") for name, (_, numbers) in SHORT[part].items()
    )


def full_spec(part: str, value: Any) -> Spec:
    """A part by its short name, with numbers or without, as JSON text, or as a mapping already: its type and arguments.

    Args: part: "domain", "schedule", "network", "preconditioning" or "objective".
    """
    if isinstance(value, Mapping):
        spec = _plain(part, dict(value))
        if not isinstance(spec.get("type"), str):
            raise ValueError(f"--{part}: got {value!r} without a type, expected one of {short_names(part)}")
        return spec | {"type": SHORT[part].get(spec["type"], (spec["type"], ()))[0]}
    if not isinstance(value, str):
        raise ValueError(f"--{part}: got {value!r}, expected a name or an object with a type: {short_names(part)}")
    if value.lstrip().startswith("{"):
        try:
            return full_spec(part, json.loads(value))
        except json.JSONDecodeError as error:
            raise ValueError(f"--{part}: got {value!r}, which is no JSON ({error})") from None
    name, _, numbers = value.partition(":")
    if name not in SHORT[part]:
        raise ValueError(
            f"--{part}: got {name!r}{nearest(name, SHORT[part])}, expected one of {short_names(part)}, or a JSON object with its type"
        )
    kind, names = SHORT[part][name]
    values = _numbers(part, value, numbers)
    if len(values) > len(names):
        raise ValueError(f"--{part}: got {value!r}, expected at most {len(names)} numbers: {short_names(part)}")
    return {"type": kind} | dict(zip(names, values, strict=False))


def _numbers(part: str, value: str, numbers: str) -> list[int | float]:
    try:
        found = [json.loads(number) for number in numbers.split(",")] if numbers else []
        return [_number(v) for v in found]
    except ValueError:
        raise ValueError(
            f"--{part}: got {value!r}, expected numbers after the colon, parted by commas: {short_names(part)}"
        ) from None


def _number(value: Any) -> int | float:
    if type(value) not in (int, float):
        raise ValueError(value)
    return value


def _plain(part: str, value: Any) -> Any:
    """As JSON reads it again, so that what was given and what a file says compare equal."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{part}: got {value!r}, expected what JSON can say ({error})") from None
