"""Tables and other constant tensors, kept on every device that has asked for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

Constants = TypeVar("Constants", bound=tuple)
P = ParamSpec("P")
R = TypeVar("R")


def lasting(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose tensors are kept for later callers: they are real though its first caller's are fake, and can be used for training
    though it runs in inference mode."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        with torch.inference_mode(False), unset_fake_temporarily():
            return function(*args, **kwargs)

    return wrapped


class OnDevice(Generic[Constants]):
    """Tuples of constant tensors (nested ones too) on the device where they are needed, copied there once.

    Copies and pickles of the owner carry those on the CPU alone. What ``torch.compile`` and ``torch.func`` copy belongs to
    them and is not kept."""

    def __init__(self, constants: Constants):
        self._kept = {torch.device("cpu"): constants}

    def __call__(self, device: torch.device) -> Constants:
        if device in self._kept:
            return self._kept[device]
        source = self._kept[torch.device("cpu")]
        if torch.compiler.is_compiling():
            return _moved(source, device)
        # a tensor made in inference mode could not be used for training later
        with torch.inference_mode(False):
            constants = _moved(source, device)
        if not _is_transient(constants):
            self._kept[device] = constants
        return constants

    def __getstate__(self) -> dict[str, Any]:
        cpu = torch.device("cpu")
        return {"_kept": {cpu: self._kept[cpu]}}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [_moved(v, device) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _is_transient(value: Any) -> bool:
    """Whether tensors among the constants belong to a trace or a transform that ends."""
    if isinstance(value, Tensor):
        return type(value) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(value)
    return isinstance(value, tuple) and any(map(_is_transient, value))
