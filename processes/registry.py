"""Schedules and processes to and from plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..domains.registry import domain_from_config, from_config
from .critically_damped import CriticallyDamped
from .diffusion import Diffusion
from .learned import Learned
from .schedule import Schedule
from .schedules import EDM, VE, VP, CosineVP, Discrete, FlowMatching, SubVP

SCHEDULES: dict[str, type[Schedule]] = {
    c.__name__: c for c in (VP, SubVP, VE, EDM, CosineVP, FlowMatching, Discrete, Learned)
}


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The inverse of ``schedule.config()``."""
    return from_config(config, SCHEDULES, "schedule")


def process_from_config(config: Mapping[str, Any]) -> Diffusion:
    """The inverse of ``process.config()``."""
    if set(config) != {"domain", "schedule"}:
        raise ValueError(f"process: got keys {sorted(config)}, expected 'domain' and 'schedule'")
    schedule = config["schedule"]
    if isinstance(schedule, Sequence):
        return Diffusion(domain_from_config(config["domain"]), [schedule_from_config(part) for part in schedule])
    return Diffusion(domain_from_config(config["domain"]), schedule_from_config(schedule))


def critically_damped_from_config(config: Mapping[str, Any]) -> CriticallyDamped:
    """The inverse of ``CriticallyDamped.config()``."""
    if isinstance(config.get("domain"), Mapping):
        config = {**config, "domain": domain_from_config(config["domain"])}
    return from_config(config, {"CriticallyDamped": CriticallyDamped}, "process")
