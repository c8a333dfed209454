"""Models of the diffusers library: :func:`from_diffusers`.

What a scheduler's config says about the *training* becomes the process and the reading of the network's output: the β table, the
prediction type, learned variance. What it says about *sampling* stays with the caller: the spacing of timesteps and the shift are
grids (:func:`carom.solvers.grid_from_diffusers` reads them), clipping and thresholding of x0 are changes of the score, guidance is
a score of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..domains import Euclidean
from ..processes import Diffusion, Discrete, FlowMatching
from .predictions import PredictionScore, from_prediction

PREDICTS = {"epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "velocity"}
_TABLE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")


def from_diffusers(
    model: Any, scheduler: Any = None, *, event_shape: Sequence[int] | None = None
) -> tuple[Diffusion, PredictionScore]:
    """(process, score) of a diffusers model.

    The process has a :class:`~carom.processes.Discrete` schedule of the scheduler's β table (level i + 1 has label i; labels between
    are interpolated), or :class:`~carom.processes.FlowMatching`, where the label is ``num_train_timesteps``·t.

    Args:
        model: ``UNet2DModel``, ``UNet2DConditionModel``, ``DiTTransformer2DModel`` or any callable ``(x, labels, **condition)`` that
            answers with a tensor, a tuple or an object with ``.sample``; or the folder of a saved pipeline or model, whose
            safetensors are read. Its further inputs (``class_labels``, ``encoder_hidden_states``, ``added_cond_kwargs``, …) are
            keywords of the score, per sample: ``sample(…, condition={"class_labels": y})``.
        scheduler: a scheduler, its config, the config as a dict, or the folder of one; with a pipeline's folder as ``model``
            the pipeline's own unless told. A dict without ``_class_name`` must state what it relies on.
        event_shape: ``[C, H, W]``; by default the model's ``in_channels`` and ``sample_size``.

    Where the model answers with twice its channels, the first half is the prediction (``score.variance_output`` gives the rest).

    Raises ``TypeError``/``ValueError`` for what is not understood, and for ε-prediction on a table that ends at zero SNR.
    """
    if isinstance(model, (str, os.PathLike)):
        model, saved = _load(Path(model))
        scheduler = saved if scheduler is None else scheduler
    if scheduler is None:
        raise TypeError(
            "scheduler: got none, expected a scheduler or its config: a model does not say how it was trained"
        )
    if not callable(model):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a model of diffusers or the folder of a saved one"
        )
    scheduler = _scheduler(scheduler)
    config, domain = _config(scheduler), Euclidean(_event_shape(model, event_shape))
    twice = _config(model).get("out_channels") == 2 * domain.event_shape[0]
    twice |= "learned" in str(config.get("variance_type"))
    predicts = _predicts(config)
    if _is_flow(config):
        process, count = Diffusion(domain, FlowMatching()), _stated(config, "num_train_timesteps")
        return process, from_prediction(_Model(model), process, predicts, lambda t: count * t, learned_variance=twice)
    process = Diffusion(domain, Discrete(_alphas_cumprod(scheduler, config, predicts)))
    return process, from_prediction(_Model(model), process, predicts, learned_variance=twice)


class _Model:
    """A model of diffusers as a plain function of (x, label, **condition)."""

    def __init__(self, model: Callable[..., Any]):
        self.model = model
        if hasattr(model, "parameters"):
            self.parameters = model.parameters

    def __call__(self, x: Tensor, label: Tensor, **condition: Any) -> Tensor:
        output = self.model(x, label, **condition)
        if isinstance(output, Tensor):
            return output
        return output.sample if hasattr(output, "sample") else output[0]


def _config(owner: Any) -> Mapping[str, Any]:
    """The config of a scheduler or model, or the mapping that it is."""
    config = owner if isinstance(owner, Mapping) else getattr(owner, "config", {})
    return config if isinstance(config, Mapping) else {}


def _scheduler(given: Any) -> Any:
    """A scheduler or a config; a config that names its class becomes that scheduler, with the defaults of its class."""
    if isinstance(given, (str, os.PathLike)):
        given = _read_json(_one_of(Path(given), "scheduler/scheduler_config.json", "scheduler_config.json"))
    if isinstance(given, Mapping):
        name = given.get("_class_name")
        return given if name is None else _diffusers_class(name).from_config(dict(given))
    if not isinstance(getattr(given, "config", None), Mapping):
        raise TypeError(
            f"scheduler: got {type(given).__name__}, expected a scheduler of diffusers, its config or its folder"
        )
    return given


def _stated(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise ValueError(
            f"scheduler: got a config without {key}, expected it to state {key}, or its _class_name to take defaults from"
        )
    return config[key]


def _is_flow(config: Mapping[str, Any]) -> bool:
    return bool(config.get("use_flow_sigmas")) or ("shift" in config and "beta_schedule" not in config)


def _predicts(config: Mapping[str, Any]) -> str:
    if _is_flow(config):
        if config.get("invert_sigmas"):
            raise ValueError(
                "scheduler: got invert_sigmas=True, whose time runs from noise to data, expected invert_sigmas=False"
            )
        kind = config.get("prediction_type", "flow_prediction")
    else:
        kind = _stated(config, "prediction_type")
        if kind == "flow_prediction":
            raise ValueError(
                "scheduler: got prediction_type 'flow_prediction' on a β table, expected use_flow_sigmas=True"
            )
        if config.get("timestep_type", "discrete") != "discrete":
            raise ValueError(
                f"scheduler: got timestep_type {config['timestep_type']!r}, expected 'discrete'; wrap the model as a denoiser and use "
                "from_k_diffusion"
            )
    if kind not in PREDICTS:
        raise ValueError(f"scheduler: got prediction_type {kind!r}, expected one of {', '.join(PREDICTS)}")
    return PREDICTS[kind]


def _alphas_cumprod(scheduler: Any, config: Mapping[str, Any], predicts: str) -> Tensor:
    """The scheduler's own ᾱ, which the model saw in training; from a mere config, the same in float64."""
    own = getattr(scheduler, "alphas_cumprod", None)
    if own is None and not isinstance(scheduler, Mapping):
        raise ValueError(
            f"scheduler: got {type(scheduler).__name__}, expected one with a β table or a flow; wrap the model as a denoiser D(x, σ) and "
            "use from_edm or from_k_diffusion"
        )
    table = _table_of(config) if own is None else own.double().clone()
    if config.get("rescale_betas_zero_snr"):
        table[-1] = 0  # schedulers that step in σ write 2⁻²⁴, which is more than the level before has
    if predicts == "noise" and float(table[-1]) == 0:
        raise ValueError(
            "scheduler: got prediction_type 'epsilon' with a β table that ends at zero SNR, where noise says nothing about x0, expected "
            "'v_prediction' or 'sample' as the model was trained; or, for a model trained on ε, rescale_betas_zero_snr=False"
        )
    return table


def _table_of(config: Mapping[str, Any]) -> Tensor:
    if config.get("trained_betas") is not None:
        table = (1 - torch.as_tensor(config["trained_betas"], dtype=torch.float64)).cumprod(0)
    else:
        count, name, start, end = (_stated(config, key) for key in _TABLE)
        table = Discrete.from_betas(name, count, start, end).alphas_cumprod
    if not config.get("rescale_betas_zero_snr"):
        return table
    root = table.sqrt()
    # Lin et al. 2024, alg. 1: √ᾱ shifted to end at 0 and scaled to start where it did
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def _event_shape(model: Any, told: Sequence[int] | None) -> tuple[int, ...]:
    if told is not None:
        return tuple(told)
    config = _config(model)
    channels, size = config.get("in_channels"), config.get("sample_size")
    if channels is None or size is None or "2D" not in type(model).__name__:
        raise ValueError(
            f"event_shape: {type(model).__name__} does not say it (in_channels {channels}, sample_size {size}); pass event_shape=(C, H, W)"
        )
    return (channels, size, size) if isinstance(size, int) else (channels, *size)


# ------------------------------------------------------------------------------------------------------------------ folders


def _load(folder: Path) -> tuple[Any, Any]:
    """(model, scheduler config or None) of the folder of a saved pipeline or of a saved model; weights from safetensors only."""
    index = _one_of(folder, "model_index.json", "config.json")
    content = _read_json(index)
    if index.name == "config.json":
        return _pretrained(folder, content), None
    part = next((k for k in ("unet", "transformer") if isinstance(content.get(k), list)), None)
    if part is None:
        raise ValueError(
            f"model: got the pipeline {str(folder)!r} of {sorted(content)}, expected one with a unet or a transformer"
        )
    model = _pretrained(folder / part, {"_class_name": content[part][-1]})
    return model, _scheduler(folder) if (folder / "scheduler").is_dir() else None


def _pretrained(folder: Path, config: Mapping[str, Any]) -> Any:
    model = _diffusers_class(_stated(config, "_class_name"))
    return model.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()


def _one_of(folder: Path, *names: str) -> Path:
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"folder: got {str(folder)!r}, expected it to hold {' or '.join(names)}, as save_pretrained writes them"
        )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _diffusers_class(name: str) -> Any:
    try:
        import diffusers
    except ImportError:
        raise ImportError(
            f"from_diffusers: reading {name} needs diffusers; install it, or pass the objects themselves"
        ) from None
    found = getattr(diffusers, name, None)
    if found is None:
        raise ValueError(
            f"from_diffusers: got the class {name!r}, which the installed diffusers {diffusers.__version__} does not have"
        )
    return found
