"""Domains to and from plain dictionaries: how they travel in checkpoints and configuration files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .ball import Ball
from .domain import Domain
from .ensemble import Ensemble
from .euclidean import Euclidean
from .hypercube import Hypercube
from .orthant import Orthant
from .phase import Phase, phase_space
from .polytope import Polytope
from .product import Product
from .regular_simplex import RegularSimplex
from .simplex import Simplex
from .torus import Torus

DOMAINS: dict[str, type[Domain]] = {
    c.__name__: c
    for c in (Euclidean, Hypercube, Orthant, Torus, Simplex, RegularSimplex, Ball, Polytope, Product, Ensemble, Phase)
}


def from_config(config: Mapping[str, Any], classes: Mapping[str, Callable[..., Any]], what: str) -> Any:
    """Build the object that ``{"type": name, **arguments}`` describes; unknown names and arguments are refused."""
    arguments = dict(config)
    name = arguments.pop("type", None)
    if name not in classes:
        raise ValueError(f"{what}: got type {name!r}, expected one of {', '.join(sorted(classes))}")
    known = set(inspect.signature(classes[name]).parameters)
    if unknown := sorted(set(arguments) - known):
        raise ValueError(
            f"{what} {name}: got unknown arguments {', '.join(unknown)}, expected a subset of {', '.join(sorted(known))}"
        )
    return classes[name](**arguments)


def domain_from_config(config: Mapping[str, Any]) -> Domain:
    """The inverse of ``domain.config()``."""
    if config.get("type") == "Product" and isinstance(config.get("domains"), Sequence):
        return Product(*(domain_from_config(part) for part in config["domains"]))
    if config.get("type") == "Ensemble" and isinstance(config.get("domain"), Mapping):
        return from_config({**config, "domain": domain_from_config(config["domain"])}, DOMAINS, "domain")
    if config.get("type") == "Phase" and isinstance(config.get("domain"), Mapping):
        return phase_space(domain_from_config(config["domain"]))
    return from_config(config, DOMAINS, "domain")
