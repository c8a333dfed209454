"""Networks that a score can be built on: ``network(x, c_noise)`` with x ``[B, *event]``, c_noise ``[B]`` → ``[B, *event]``.

Any ``nn.Module`` of this signature will do (further keywords are the condition), also one that answers with the first of a tuple
or with an object's ``sample``, as diffusers' networks do. Those of the library are each configured by a frozen dataclass that
travels in the checkpoint; :func:`register_network` lets a class of one's own travel the same way:

=============  =================================  ==========================================================
network        events                             what it is
=============  =================================  ==========================================================
MLP            any, flattened                     residual layers, modulated by the noise level
EquivariantMLP ``[K − 1]`` of ``RegularSimplex``  one network for all categories, whatever their order
UNet           ``[C, H, W]``                      convolutions at several resolutions, attention where wished
DiT            ``[C, H, W]``                      a transformer over patches
Conservative   those of the network inside        the gradient of a scalar made of another network
=============  =================================  ==========================================================

Their last layer starts at zero, so that an untrained score is that of the stationary law on a bounded domain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

N = TypeVar("N", bound=type[nn.Module])
_REGISTRY: dict[str, tuple[type[nn.Module], type]] = {}


def register_network(config: type) -> Callable[[N], N]:
    """Class decorator: ``network(config)`` builds it, ``network.config`` is an instance of this (JSON-able) dataclass.

    A class whose constructor takes something else builds it by a class method ``from_config(config)``. ``NeuralScore.load`` then
    rebuilds the network from the checkpoint alone.
    """

    def register(network: N) -> N:
        _REGISTRY[network.__name__] = (network, config)
        return network

    return register


def network_to_config(network: nn.Module) -> dict[str, Any]:
    """``{"type": name, **fields}``; the name only for a class that is not registered."""
    name = type(network).__name__
    if _REGISTRY.get(name, (None,))[0] is not type(network):
        return {"type": name}
    config: Any = network.config
    return {"type": name, **dataclasses.asdict(config)}


def network_from_config(config: Mapping[str, Any]) -> nn.Module:
    """The inverse of :func:`network_to_config`, for registered classes; unknown names and fields are refused."""
    fields = dict(config)
    name = fields.pop("type", None)
    if name not in _REGISTRY:
        raise ValueError(
            f"network: got class {name!r}, which is none of the known {', '.join(sorted(_REGISTRY))}; build it yourself and pass it: "
            "load(path, network=…), of a bridge forward=…, backward=…, or register its class with register_network"
        )
    network, kind = _REGISTRY[name]
    expected = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(fields) - expected):
        raise ValueError(
            f"network {name}: got unknown settings {', '.join(unknown)}, expected a subset of {', '.join(sorted(expected))}; "
            "check the spelling, or update carom if a checkpoint says so"
        )
    return getattr(network, "from_config", network)(kind(**fields))


def network_of_weights(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of a configuration in the precision of its weights, which it does not yet hold."""
    network = network_from_config(config)
    # of weights, not of buffers, which may be kept in another precision
    dtypes = [weights[k].dtype for k, p in network.named_parameters() if k in weights and p.is_floating_point()]
    return network.to(dtypes[0]) if dtypes else network


def answer(output: Any) -> Tensor:
    """The tensor in what a network answered: itself, the first of a tuple, or the ``sample`` of an object."""
    value = output if isinstance(output, Tensor) else getattr(output, "sample", output)
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    if not isinstance(value, Tensor):
        raise TypeError(
            f"network: got an output of type {type(output).__name__}, expected a tensor of the input's shape, a tuple that starts "
            "with it, or an object with it as its attribute `sample`"
        )
    return value


def parts(output: Tensor, x: Tensor, most: int | None = None) -> tuple[Tensor, ...]:
    """The m tensors of x's shape ``[B, C, …]`` that an output ``[B, m·C, …]`` is made of; refuses what is none, and m > ``most``."""
    same = output.dim() == x.dim() and output.shape[:1] + output.shape[2:] == x.shape[:1] + x.shape[2:]
    if output.shape == x.shape:
        return (output,)
    if not same or x.dim() < 2 or output.shape[1] % x.shape[1] or (most and output.shape[1] > most * x.shape[1]):
        raise ValueError(
            f"network: got an output of shape {tuple(output.shape)} for an input of shape {tuple(x.shape)}, expected the same shape"
            + ("" if most == 1 else ", or a multiple of it along dimension 1")
        )
    return output.chunk(output.shape[1] // x.shape[1], 1)
