"""From a recipe to the objects it names: the data on their domain, the score, the objective, the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from .domains import Domain, Euclidean, RegularSimplex, domain_from_config
from .domains.registry import from_config
from .domains.tensors import is_int, number
from .placing import place
from .processes import EDM, VE, Diffusion, Discrete, Learned, Schedule, schedule_from_config
from .recipe import DataRecipe, Recipe, TrainingRecipe
from .scores.neural import (
    VDM,
    Bins,
    ConditionalFlowMatching,
    Constant,
    Cosine,
    Data,
    DenoisingScoreMatching,
    DomainDataset,
    ImplicitScoreMatching,
    LatentImageScoreMatching,
    LogitNormalTime,
    LogNormal,
    LogUniform,
    MinSNR,
    NeuralScore,
    Objective,
    SlicedScoreMatching,
    UniformTime,
    VariationalBound,
    load_data,
)
from .scores.neural.networks import network_from_config
from .scores.neural.preconditioning_registry import preconditioning_from_config
from .short_names import Spec, full_spec

#: the share of labels withheld where a recipe does not say, so that the network learns the score without a class as well
LABEL_DROPOUT = 0.1


def build(recipe: Recipe) -> tuple[NeuralScore, DomainDataset]:
    """The untrained score of a recipe, whose weights are a function of its seed, and the data to train it on.

    Raises ``ValueError`` or ``TypeError`` for parts that do not fit the data or each other.
    """
    given = recipe.data
    data = load_data(
        given.source, part=given.part, size=given.size, channels=given.channels, layout=given.layout, bins=given.bins
    )
    domain = build_domain(recipe.domain, data)
    # the network first: it says in plain words what it cannot take
    spec = network_spec(recipe.network, domain, class_count(data, given) if given.labels else 0)
    torch.manual_seed(recipe.training.seed)
    network = network_from_config(spec)
    rows = place(data, domain, given)
    process = build_process(domain, recipe.schedule)
    chosen = recipe.preconditioning
    preconditioning = None if chosen is None else preconditioning_from_config(chosen, domain)
    return NeuralScore(network, process, preconditioning), rows


def build_domain(spec: Spec, data: Data) -> Domain:
    """The domain of a recipe, of the shape of the data where it does not say. On a simplex rows are probability vectors."""
    event = list(data.event_shape)
    shape, last = {"event_shape": event}, event[-1] if event else 1
    found: dict[str, dict[str, Any]] = {
        "Hypercube": shape,
        "Euclidean": shape,
        "Orthant": shape,
        "Torus": shape,
        "Simplex": {"categories": last, "shape": event[:-1]},
        "RegularSimplex": {"categories": last},
        "Ball": {"dim": last},
    }
    return domain_from_config(found.get(spec["type"], {}) | spec)


def build_process(domain: Domain, spec: Spec | None) -> Diffusion:
    """The process of a recipe; by default VE on bounded domains and EDM on others."""
    if spec is None:
        return Diffusion(domain, VE() if domain.bounded else EDM())
    schedule = (
        from_config(spec, {"ddpm": _ddpm}, "--schedule") if spec["type"] == "ddpm" else schedule_from_config(spec)
    )
    try:
        return Diffusion(domain, schedule)
    except ValueError as error:
        raise ValueError(f"--schedule: {error}; on the command line --schedule ve, or --domain euclidean") from None


def _ddpm(steps: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The linear table of DDPM in so many steps."""
    number(beta_min, "--schedule ddpm: beta_min", low=0.0, open_low=True)
    number(beta_max, "--schedule ddpm: beta_max", low=0.0, open_low=True)
    if not is_int(steps, 2) or steps <= beta_max:
        raise ValueError(
            f"--schedule ddpm: got {steps!r} steps, expected a whole number above beta_max = {beta_max:g}, e.g. ddpm:1000"
        )
    return Discrete.ddpm(steps, beta_min, beta_max)


def class_count(data: Data, given: DataRecipe) -> int:
    """How many classes the data have."""
    if data.classes is not None:
        return len(data.classes)
    if data.labels is None:
        raise ValueError(f"--classes: got {given.source!r}, which has no labels; train without --classes")
    return int(data.labels.max()) + 1


def network_spec(spec: Spec, domain: Domain, classes: int) -> Spec:
    """The network of a recipe with what follows from the domain and the number of classes, 0 for none."""
    event, kind = domain.event_shape, spec["type"]
    if kind == "Conservative":
        inner = full_spec("network", spec.get("network", "mlp"))
        return spec | {"network": network_spec(inner, domain, classes)}
    found: Spec = {"classes": classes, "label_dropout": LABEL_DROPOUT} if classes else {}
    if kind in ("UNet", "DiT"):
        if len(event) != 3:
            advice = ", or for grey pictures --set data.layout=HW" if len(event) == 2 else ""
            raise ValueError(
                f"--network {kind.lower()}: got data of event shape {tuple(event)}, expected [C, H, W]; use --network mlp{advice}"
            )
        if event[0] > 4 and event[2] in (1, 3, 4):
            raise ValueError(
                f"--network {kind.lower()}: got data of event shape {tuple(event)}, expected [C, H, W]; say that channels come last by "
                "--set data.layout=HWC"
            )
        found |= {"image_channels": event[0]} | ({"image_size": event[1:]} if kind == "DiT" else {})
    if kind == "MLP":
        found["event_shape"] = event
    if kind == "EquivariantMLP":
        if not isinstance(domain, RegularSimplex):
            raise ValueError(
                f"--network equivariant: got {domain}, expected --domain regular-simplex; use --network mlp"
            )
        found["categories"] = domain.categories
    return found | spec


def build_objective(spec: Spec | None, process: Diffusion) -> Objective | None:
    """The objective of a recipe; None for the default."""
    if spec is None:
        return None
    laws = {c.__name__: c for c in (LogUniform, LogNormal, LogitNormalTime)}
    weights = {c.__name__: c for c in (MinSNR, Constant)}
    arguments = dict(spec)
    for name, known in (
        ("levels", laws | {"UniformTime": partial(UniformTime.of, process)}),
        ("weight", weights),
    ):
        if arguments.get(name) is not None:
            arguments[name] = from_config(_mapping(arguments[name], name), known, f"objective {name}")
    bins = arguments.get("bins")
    if bins is not None:
        arguments["bins"] = (
            from_config({"type": "bins"} | dict(bins), {"bins": Bins}, "objective")
            if isinstance(bins, Mapping)
            else Bins(bins)
        )
    if spec["type"] in ("vdm", "bound"):
        _check_bound(spec["type"], process)
    return from_config(arguments, _objectives(process), "objective")


def _check_bound(name: str, process: Diffusion) -> None:
    """Refuse a Gaussian bound on walls, or without the schedule it needs, by the options that would do."""
    short, kind = ("learned", Learned) if name == "vdm" else ("ddpm", Discrete)
    if not isinstance(process.domain, Euclidean) or not isinstance(process.schedule, kind):
        raise ValueError(f"--objective {name}: got {process}, expected --schedule {short} --domain euclidean")


def _objectives(process: Diffusion) -> dict[str, Callable[..., Objective]]:
    schedule: Any = process.schedule  # VDM says itself which it takes
    return {
        "denoising": DenoisingScoreMatching,
        "simple": partial(DenoisingScoreMatching.simple, process),
        "likelihood": partial(DenoisingScoreMatching.likelihood, process),
        "min-snr": partial(DenoisingScoreMatching.min_snr, process),
        "edm": DenoisingScoreMatching.edm,
        "flow-matching": ConditionalFlowMatching,
        "latent-image": LatentImageScoreMatching,
        "implicit": ImplicitScoreMatching,
        "sliced": SlicedScoreMatching,
        "vdm": partial(VDM, schedule),
        "bound": VariationalBound,
    }


def train_arguments(given: TrainingRecipe) -> dict[str, Any]:
    """The settings of a recipe as ``train`` takes them."""
    lr: Any = given.lr
    if given.decay == "cosine":
        lr = Cosine(given.lr, given.decay_steps or given.steps or 1, given.final_lr)
    same = [
        "steps",
        "batch_size",
        "warmup",
        "weight_decay",
        "clip",
        "ema",
        "seed",
        "microbatches",
        "mixed_precision",
        "compile",
    ]
    seconds = 90.0 if given.seconds is None and given.steps is None else given.seconds
    return {name: getattr(given, name) for name in same} | {"lr": lr, "seconds": seconds}


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"objective {name}: got {value!r}, expected an object with a type")
    return value
