"""Weights that others saved: state dicts, found inside whatever a training script put around them. Nothing that runs code is read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..domains import Euclidean
from ..processes import Diffusion, Discrete
from ..processes.schedule import Schedule
from .neural.checkpoint import check_fit
from .predictions import Label, PredictionScore, from_prediction


def from_ddpm_checkpoint(
    path: str | os.PathLike[str],
    network: nn.Module,
    event_shape: Sequence[int],
    schedule: Schedule | None = None,
    *,
    predicts: str = "noise",
    label: Label | None = None,
    learned_variance: bool = False,
    ema: bool = True,
) -> tuple[Diffusion, PredictionScore]:
    """(process, score) of a network of your own with the weights of a DDPM-style checkpoint, which it takes over; it ends in eval mode.

    The file is safetensors, or what ``torch.save`` wrote as long as it holds tensors, numbers and containers only. The weights are
    found by their names, under any prefix (``module.``, ``model.``, ``state_dict.``, …). Moving averages are recognised

    * by the word "ema" in their prefix, as in {"model": …, "ema": …} or "ema_model." (not "online_model.");
    * so, too, under names without their dots, as latent diffusion keeps them: "model_ema.diffusion_modelinput_blocks00weight";
    * as "shadow_params", a list in the order of the network's trained parameters, with "ema" in the prefix or not;
    * as the second state dict of a list [model, optimizer, …, averages].

    Buffers that an average lacks come from the plain weights.

    Args:
        network: built with the settings of training; called with x ``[B, *event]`` and labels ``[B]``.
        event_shape: ``[C, H, W]``.
        schedule: its levels; ``Discrete.from_betas("linear")``, Ho et al.'s 1,000, unless told.
        predicts, label, learned_variance: as for :func:`from_prediction`.
        ema: take the moving average where the file holds one; False takes the plain weights.

    Raises ``FileNotFoundError``; ``ValueError`` for files that are damaged or hold pickled code, for weights that do not fit, and for
    tensors with the word "ema" in their names where no averages of all parameters are recognised, unless ``ema=False``.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"network: got {type(network).__name__}, expected an nn.Module built with the settings of training"
        )
    weights = find_weights(read_tensors(Path(path)), network, ema)
    check_fit(network, weights, f"weights in {os.fspath(path)!r}")
    network.load_state_dict(weights)
    process = Diffusion(Euclidean(tuple(event_shape)), schedule or Discrete.from_betas("linear"))
    return process, from_prediction(network.eval(), process, predicts, label, learned_variance=learned_variance)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by their dotted names; the place in a list is a name too."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: got {str(path)!r}, which is no file; expected a state dict")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"checkpoint: got {str(path)!r}, which is no readable safetensors file ({error}); copy it again"
            ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch answers damaged files with half a dozen types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"checkpoint: got {str(path)!r}, which is damaged or pickles objects that run code when read ({reason}), expected tensors in "
            "dicts and lists only; where you trust the file, load it yourself and save its state dict with safetensors.torch.save_file"
        ) from error
    return dict(_leaves(content, ""))


def _leaves(content: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, (Mapping, list, tuple)):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            yield from _leaves(value, f"{name}.{key}" if name else str(key))


def find_weights(tensors: Mapping[str, Tensor], network: nn.Module, ema: bool) -> dict[str, Tensor]:
    """The network's state dict among named tensors, whatever stands before its names; where none is complete, the nearest there is."""
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    found = _prefixes(tensors, set(network.state_dict()))
    whole = [prefix for prefix in found if all(prefix + name in tensors for name in trained)]
    averages = [prefix for prefix in whole if "ema" in (words := _words(prefix)) and "online" not in words]
    if not averages:
        averages = [prefix for prefix in whole if prefix[:1].isdigit()][1:]  # [model, optimizer, …, averages]
    plain = next((prefix for prefix in whole if prefix not in averages), None)
    if plain is None:
        plain = (averages or [prefix for prefix, _ in found.most_common(1)] or [""])[0]
    weights = _under(tensors, plain)
    if not ema:
        return weights
    average = _shadow(tensors, trained)
    if not average:
        average = _under(tensors, averages[0]) if averages else _undotted(tensors, trained)
    if not average and whole:
        _refuse_averages([k for k in tensors if k.removeprefix(plain) not in weights], tensors, len(trained), plain)
    return weights | average


def _refuse_averages(keys: Sequence[str], tensors: Mapping[str, Tensor], count: int, plain: str) -> None:
    """Refuse tensors beside the plain weights that call themselves averages (but for counters), where none were recognised."""
    unread = [key for key in keys if "ema" in _words(key) and tensors[key].dim()]
    if unread:
        raise ValueError(
            f"checkpoint: got {unread[0]!r} and {len(unread) - 1} more tensors that may be moving averages, but no average of each of the "
            f"network's {count} trained parameters; build the network with the settings of training, or pass ema=False to take the "
            f"plain weights under {plain!r}"
        )


def _words(prefix: str) -> list[str]:
    """The words of a prefix: "semantic_net." is no average, "model_EMA." is one."""
    return re.split("[^a-z0-9]+", prefix.lower())


def _prefixes(tensors: Mapping[str, Tensor], names: set[str]) -> Counter[str]:
    """What stands before the network's names, and how often, in order of appearance."""
    found: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        found.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in names)
    return found


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _undotted(tensors: Mapping[str, Tensor], trained: Sequence[str]) -> dict[str, Tensor]:
    """Averages under the names of the trained parameters without dots, which names of buffers may not have."""
    names = {name.replace(".", ""): name for name in trained}
    if len(names) < len(trained):
        return {}  # two parameters that cannot be told apart
    first = next(iter(names), "")
    for prefix in (key.removesuffix(first) for key in tensors if key.endswith(first)):
        if "ema" in _words(prefix) and all(prefix + name in tensors for name in names):
            return {full: tensors[prefix + name] for name, full in names.items()}
    return {}


def _shadow(tensors: Mapping[str, Tensor], trained: Sequence[str]) -> dict[str, Tensor]:
    """Averages kept as a list in the order of the trained parameters."""
    values = [value for key, value in tensors.items() if "shadow_params" in key.split(".")]
    if values and len(values) != len(trained):
        raise ValueError(
            f"checkpoint: got {len(values)} shadow_params, expected {len(trained)}, one for each trained parameter of the network; build "
            "it with the settings of training, or pass ema=False"
        )
    return dict(zip(trained, values, strict=True)) if values else {}
