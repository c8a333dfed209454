"""The state of a training in a checkpoint: what is written, and what has to agree before any of it is taken over."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from ...processes import Schedule
from . import checkpoint as files
from .stored import Stored
from .updates import Updates


class OtherTraining(ValueError):
    """A checkpoint that was begun with other settings."""


def tensors(updates: Updates, objective: object) -> dict[str, Tensor]:
    """The tensors of a checkpoint: weights, averages, the optimizer's state, an objective's own weights."""
    state = updates.optimizer.state_dict()["state"]
    packed = {f"training.{i}.{name}": v for i, values in state.items() for name, v in values.items()}
    learned = objective.state_dict() if isinstance(objective, nn.Module) else {}
    return updates.model.state_dict() | packed | {f"objective.{name}": v for name, v in learned.items()}


def resume(
    path: str | os.PathLike[str], updates: Updates, objective: object, settings: dict[str, Any]
) -> tuple[int, float]:
    """Take over weights and optimizer state after everything has been checked: (step, seconds spent)."""
    model = updates.model
    file = files.read(path, ("network.", "ema.", "training.", "objective."), model.kind)
    state = file.header.get("training")
    if state is None:
        raise ValueError(
            f"resume: got {str(path)!r}, which holds a finished score without training state; expected a file written by "
            f"train(checkpoint=…). To start from its weights: {type(model).__name__}.load, then train without resume"
        )
    ours = _fixed(json.loads(json.dumps(model.header() | {"ema": settings["ema"] is not None})))
    theirs = _fixed({k: v for k, v in file.header.items() if k != "training"})
    if not ("data" in ours and "data" in theirs):  # not everybody says how the data were stored
        ours.pop("data", None), theirs.pop("data", None)
    check_same(path, (theirs, ours), (state["settings"], json.loads(json.dumps(settings))))
    files.check_fit(model.network, file.part("network"), "weights")
    if file.header["ema"]:
        files.check_fit(model.network, file.part("ema"), "averaged weights")
    if isinstance(objective, nn.Module):
        files.check_fit(objective, file.part("objective"), "weights of the objective")
    slots = _slots(file, updates.parameters, int(state["step"]))
    if isinstance(objective, nn.Module):
        objective.load_state_dict(file.part("objective"))
    model.restore(file)
    if model.stored is None and "data" in file.header:
        model.stored = Stored.from_config(file.header["data"])
    optimizer = updates.optimizer
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["step"]), float(state["seconds"])


def _slots(file: files.Checkpoint, parameters: list[nn.Parameter], step: int) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state parameter by parameter, all of it; none if the file was written before the first step."""
    kept = file.part("training")
    if not kept and step == 0:
        return {}
    like = [{"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p} for p in parameters]
    expected = {f"{i}.{name}": value for i, slot in enumerate(like) for name, value in slot.items()}
    if wrong := files.differences(expected, kept, "AdamW"):
        raise ValueError(
            f"resume: the optimizer state in {str(file.path)!r} does not fit the network ({wrong}); take an intact copy of the file, or "
            "resume=False to start anew"
        )
    return {i: {name: kept[f"{i}.{name}"] for name in slot} for i, slot in enumerate(like)}


def _fixed(header: dict[str, Any]) -> dict[str, Any]:
    """A header without what training changes: the values of a schedule that is trained along, which travel with the objective."""
    process = header["process"]
    schedule = process.get("schedule")
    if not isinstance(schedule, dict) or schedule.get("type") != "Learned":
        return header
    kept = {k: v for k, v in schedule.items() if k not in ("gamma_min", "gamma_max", "curve")}
    return header | {"process": process | {"schedule": kept}}


def describe(value: Any) -> Any:
    """A setting as a checkpoint names it: the same in every process, so functions go by their names."""
    if isinstance(value, nn.Module):
        return {"type": type(value).__name__, "settings": value.extra_repr()}
    if dataclasses.is_dataclass(value):
        return {"type": type(value).__name__} | {
            f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Schedule):
        return value.config()
    if value is None or isinstance(value, (int, float, str)):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def check_same(path: str | os.PathLike[str], *pairs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Refuse a file unless of each pair what it says, and what this training would say, are the same."""
    differences = [
        f"{k} is {theirs.get(k)!r} there and {ours.get(k)!r} here"
        for theirs, ours in pairs
        for k in sorted(theirs.keys() | ours.keys())
        if theirs.get(k) != ours.get(k)
    ]
    if differences:
        raise OtherTraining(
            f"resume: {str(path)!r} belongs to another training: {'; '.join(differences)}; pass the settings it was started "
            "with, or resume=False to start anew"
        )
