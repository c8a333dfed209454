"""The file a model travels in: one safetensors file, tensors and a JSON header, nothing that runs code.

Metadata: ``format``, the kind of the model, ``version``, ``header`` (JSON). Tensors of a neural score: ``network.*``, ``ema.*`` and, while
training goes on, ``training.*`` and the ``objective.*`` of an objective that learns; of a Schrödinger bridge: ``times``, ``forward.*`` and
``backward.*``. Written to a temporary file in the same folder and moved into place: a reader or a crash never meets half a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class _Kind(NamedTuple):
    """Of one format: whose files these are, what else writes them, what bare weights go into, and what every header has."""

    owner: str
    writer: str
    use: str
    required: dict[str, type]


VERSION = 1
SCORE, CLASSIFIER, VELOCITY = "carom.neural_score", "carom.noisy_classifier", "carom.velocity_score"
BRIDGE = "carom.schroedinger_bridge"
_VELOCITY = {"network": dict, "process": dict, "ema": bool}
_MODEL = _VELOCITY | {"preconditioning": dict}
_BRIDGE = {"domain": dict, "sigma": float, "drift": bool, "halves": int, "forward": dict, "backward": dict}
_KINDS = {
    SCORE: _Kind("NeuralScore", "train", "NeuralScore(network, process)", _MODEL),
    CLASSIFIER: _Kind("NoisyClassifier", "train", "NoisyClassifier(network, process)", _MODEL),
    VELOCITY: _Kind("MixedScore", "train", "MixedScore(network, process)", _VELOCITY),
    BRIDGE: _Kind("DiffusionSchroedingerBridge", "fit", "NeuralRegressor(network)", _BRIDGE),
}
# data: how the data were stored, see ``Stored``
_OPTIONAL = {"training": dict, "data": dict}


class Checkpoint(NamedTuple):
    """What a file holds."""

    path: Path
    header: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under ``prefix.``, without it."""
        return part(self.tensors, prefix)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under ``prefix.``, without it."""
    return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}


def check_place(path: str | os.PathLike[str]) -> None:
    """Refuse, before any work is done, a place where no file can be written."""
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        what = "a folder" if target.is_dir() else f"a file in {str(target.parent)!r}, which is no folder"
        raise ValueError(f"checkpoint: got {str(target)!r}, {what}; expected a file in a folder that exists")


def write(
    path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: str = SCORE
) -> None:
    """Write atomically. The folder must exist; a file of this name is replaced."""
    target = Path(path)
    # safetensors refuses views and shared memory (tied weights, channels-last): give each name memory of its own
    own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    metadata = {"format": kind, "version": str(VERSION), "header": json.dumps(header)}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        # safetensors writes files that the owner alone can read: take the permissions that any new file has here
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(own, temporary, metadata)
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read(
    path: str | os.PathLike[str], prefixes: tuple[str, ...] = ("network.", "ema."), kind: str = SCORE
) -> Checkpoint:
    """Read the header and the tensors under these prefixes of a file of this kind.

    Raises ``FileNotFoundError``, or ``ValueError`` for a file that is damaged, of another kind or from a newer version.
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"checkpoint: got {str(source)!r}, which does not exist; train or save one first")
    if source.is_dir():
        raise ValueError(
            f"checkpoint: got the folder {str(source)!r}, expected a file; from_diffusers reads folders of diffusers"
        )
    try:
        with safe_open(source, framework="pt") as file:
            header = _header(source, file.metadata() or {}, kind)
            tensors = {k: file.get_tensor(k) for k in file.keys() if k.startswith(prefixes)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"checkpoint: got {str(source)!r}, which is no readable safetensors file ({error}); expected one written by "
            f"{_KINDS[kind].owner}.save or {_KINDS[kind].writer}; it may be cut short (copy it again) or of another kind"
        ) from error
    return Checkpoint(source, header, tensors)


def _header(path: Path, metadata: Mapping[str, str], kind: str) -> dict[str, Any]:
    found = metadata.get("format")
    if found != kind:
        advice = (
            f"{_KINDS[found].owner}.load reads it"
            if found in _KINDS
            else f"bare weights go into a network of your own with safetensors.torch.load_file, then {_KINDS[kind].use}"
        )
        raise ValueError(
            f"checkpoint: got {str(path)!r}, a safetensors file of format {found!r}, expected {kind!r}; {advice}"
        )
    version = metadata.get("version", "")
    if not version.isdecimal() or int(version) > VERSION:
        raise ValueError(
            f"checkpoint: got {str(path)!r} of version {version!r}, expected at most {VERSION}; update carom to read it"
        )
    try:
        header = json.loads(metadata.get("header", ""))
    except json.JSONDecodeError as error:
        raise ValueError(f"checkpoint: got {str(path)!r} with a damaged header ({error}); save it again") from error
    required = _KINDS[kind].required
    known = required | _OPTIONAL
    if not isinstance(header, dict) or not all(isinstance(header.get(k, t()), t) for k, t in known.items()):
        types = ", ".join(f"{k} {t.__name__}" for k, t in known.items())
        raise ValueError(f"checkpoint: got {str(path)!r} with a damaged header, expected {types}; save it again")
    if missing := sorted(required.keys() - header.keys()):
        raise ValueError(f"checkpoint: got {str(path)!r} without {', '.join(missing)} in its header; save it again")
    if unknown := sorted(header.keys() - known.keys()):
        raise ValueError(
            f"checkpoint: got {str(path)!r} with unknown header entries {', '.join(unknown)}, expected a subset of "
            f"{', '.join(sorted(known))}; it may come from a newer carom"
        )
    return header


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors whose names or shapes are not those of the module."""
    if wrong := differences(module.state_dict(), tensors, "the network"):
        raise ValueError(
            f"checkpoint: got {what} that do not fit {type(module).__name__} ({wrong}); build the network with the settings it was "
            "trained with"
        )


def differences(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], where: str) -> str:
    """How names and shapes differ, in words; "" if they do not."""
    wrong = [f"{k} missing" for k in expected if k not in got]
    wrong += [f"{k} not in {where}" for k in got if k not in expected]
    wrong += [
        f"{k} of shape {tuple(got[k].shape)} for {tuple(v.shape)}"
        for k, v in expected.items()
        if k in got and got[k].shape != v.shape
    ]
    shown = "; ".join(wrong[:4]) + ("; …" if len(wrong) > 4 else "")
    return f"{len(wrong)} difference{'s' * (len(wrong) > 1)}: {shown}" if wrong else ""
