"""Which preconditioning a domain takes by default, and how they are rebuilt from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...domains import Domain
from ...domains.registry import from_config
from .denoisers import (
    EDMPreconditioning,
    IDDPMPreconditioning,
    VelocityPreconditioning,
    VEPreconditioning,
    VPPreconditioning,
    VPredictionPreconditioning,
)
from .preconditioning import Preconditioning
from .reflected import Reflected, ReflectedVelocity, can_damp

PRECONDITIONINGS: dict[str, type[Preconditioning]] = {
    c.__name__: c
    for c in (
        EDMPreconditioning,
        VPPreconditioning,
        VEPreconditioning,
        IDDPMPreconditioning,
        VPredictionPreconditioning,
        VelocityPreconditioning,
        Reflected,
        ReflectedVelocity,
    )
}


def default_preconditioning(domain: Domain) -> Preconditioning:
    """:class:`Reflected` where the domain is bounded, with the wall if it knows its walls; else :class:`EDMPreconditioning`."""
    return Reflected(domain, wall=can_damp(domain)) if domain.bounded else EDMPreconditioning()


def preconditioning_from_config(config: Mapping[str, Any], domain: Domain) -> Preconditioning:
    """The inverse of ``preconditioning.config()``, on this domain; unknown names and arguments are refused."""
    arguments = dict(config)
    if issubclass(PRECONDITIONINGS.get(arguments.get("type", ""), Preconditioning), Reflected):
        arguments["domain"] = domain
    return from_config(arguments, PRECONDITIONINGS, "preconditioning")
