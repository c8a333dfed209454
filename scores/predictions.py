r"""Networks that predict something else than a score, read as scores.

With s the scale, m = s·σ the std of x_t = s·x0 + m·ε, what a network's output F says about the pair (x0, ε):

==========  ==============================  =========================  =========================  ==========================
predicts    F stands for                    x0                         ε                          what F leaves open
==========  ==============================  =========================  =========================  ==========================
noise       ε                               (x − m F)/s                F                          x0 where s = 0
data        x0                              F                          (x − s F)/m                ε where σ = 0, taken as 0
v           (s ε − m x0)/r                  (s x/r − m F)/r            (m x/r + s F)/r            nothing
velocity    ε − x0                          (x − m F)/(s + m)          (x + s F)/(s + m)          nothing
score       ∇ log p_t(x)                    (x + m² F)/s               −m F                       x0 where s = 0
==========  ==============================  =========================  =========================  ==========================

r² = s² + m². Under a variance-preserving schedule r = 1 and v is that of Salimans & Ho 2022; under flow matching s + m = 1 and the
velocity is Lipman et al.'s. The score is −ε/m. Coefficients are found in float64, and at the exact level of a table: t = i/N
rounded to float32 stands for level i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean
from ..domains.constants import OnDevice
from ..domains.tensors import batch_shape, check_event, entries, expand_right, per_batch, values_are_readable
from ..processes import Diffusion, Discrete, data_form, noise_form
from ..processes.schedule import Schedule

Label = str | Sequence[float] | np.ndarray | Tensor | Callable[[Tensor], Tensor]


class Reading(NamedTuple):
    """x0 = data[0]·x + data[1]·F and ε = noise[0]·x + noise[1]·F: the row of the module's table."""

    data: tuple[Tensor, Tensor]
    noise: tuple[Tensor, Tensor]


def _noise(scale: Tensor, std: Tensor) -> Reading:
    return Reading((1 / scale, -std / scale), (torch.zeros_like(scale), torch.ones_like(scale)))


def _data(scale: Tensor, std: Tensor) -> Reading:
    # E[ε | x] = −m·score vanishes with m, whatever the density
    share = torch.where(std > 0, 1 / std, 0.0)
    return Reading((torch.zeros_like(scale), torch.ones_like(scale)), (share, -scale * share))


def _v(scale: Tensor, std: Tensor) -> Reading:
    r = torch.hypot(scale, std)
    return Reading((scale / r**2, -std / r), (std / r**2, scale / r))


def _velocity(scale: Tensor, std: Tensor) -> Reading:
    whole = scale + std
    return Reading((1 / whole, -std / whole), (1 / whole, scale / whole))


def _score(scale: Tensor, std: Tensor) -> Reading:
    return Reading((1 / scale, std**2 / scale), (torch.zeros_like(scale), -std))


READINGS: dict[str, Callable[[Tensor, Tensor], Reading]] = {
    "noise": _noise,
    "data": _data,
    "v": _v,
    "velocity": _velocity,
    "score": _score,
}


class PredictionScore:
    """The score of a network that predicts noise, data, v, velocity or the score; made by :func:`from_prediction`.

    Callable ``(x, t, **condition)``. ``prediction`` = (x0, ε) stays exact where s or σ vanish, as far as the network's output says
    something there (see the module's table). ``variance_output`` is the second half of the output of a network with learned variance.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        process: Diffusion,
        predicts: str,
        label: Label | None = None,
        learned_variance: bool = False,
    ):
        if not callable(network):
            raise TypeError(f"network: got {type(network).__name__}, expected a callable (x, label, **condition)")
        if not isinstance(process, Diffusion):
            raise TypeError(f"process: got {type(process).__name__}, expected a Diffusion(domain, schedule)")
        if predicts not in READINGS:
            raise ValueError(f"predicts: got {predicts!r}, expected one of {', '.join(READINGS)}")
        if process.parts:
            raise ValueError("process: got one with a schedule for each part, expected a single schedule")
        if predicts != "score" and not isinstance(process.domain, Euclidean):
            raise ValueError(
                f"predicts: got {predicts!r} on {process.domain!r}, expected 'score': on a domain with walls no linear formula "
                "leads from x0 or ε to the score"
            )
        self.network, self.process, self.predicts, self.learned_variance = network, process, predicts, learned_variance
        self.label = label_function(label, process.schedule)

    def __repr__(self) -> str:
        return f"PredictionScore({type(self.network).__name__}, {self.process!r}, predicts={self.predicts!r})"

    def __call__(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """The score at x ``[*batch, *event]``, t a number, ``[*batch]`` or ``[*batch, 1, …, 1]``: x's shape and dtype."""
        at = self._time(x, t)
        output = self._output(x, at, condition)[0]
        if self.predicts == "score":
            return output
        scale, std = self._level(at)
        return self._sum([-c / std for c in READINGS[self.predicts](scale, std).noise], x, output)

    def prediction(self, x: Tensor, t: float | Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """(E[x0 | x], E[ε | x]), each of x's shape and dtype.

        Raises ``ValueError`` where s = 0 and the network says nothing about x0 there (on the CPU; elsewhere x0 is not finite).
        """
        at = self._time(x, t)
        scale, std = self._level(at)
        if self.predicts in ("noise", "score"):
            _refuse_pure_noise(scale, at, f"a network that predicts {self.predicts}", self.process.schedule)
        reading = READINGS[self.predicts](scale, std)
        output = self._output(x, at, condition)[0]
        return self._sum(reading.data, x, output), self._sum(reading.noise, x, output)

    def variance_output(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """The second half of the output, in x's shape: u of Nichol & Dhariwal 2021, eq. 15, as their networks give it, where
        the variance of a step is exp(w ln β + (1 − w) ln β̃) with w = (u + 1)/2."""
        rest = self._output(x, self._time(x, t), condition)[1]
        if rest is None:
            raise ValueError("variance_output: got a network without learned variance, expected learned_variance=True")
        return rest

    def rows(self, index: Tensor) -> PredictionScore:
        """The score of some rows of a batch: itself, for a network looks at each row by itself."""
        return self

    def _time(self, x: Tensor, t: float | Tensor) -> Tensor:
        """t in float64, broadcasting over the batch; at the very level of a table if it is meant."""
        event = self.process.domain.event_shape
        check_event(x, event)
        return _on_table(per_batch(t, x, len(event), "t").double(), self.process.schedule, x.dtype)

    def _level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.schedule.scale(t), self.process.schedule.std(t)

    def _sum(self, weights: Sequence[Tensor], x: Tensor, output: Tensor) -> Tensor:
        ndim = len(self.process.domain.event_shape)
        a, b = (expand_right(weight, ndim).to(x.dtype) for weight in weights)
        return a * x + b * output

    def _output(self, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The network's answer in x's shape and dtype, and the second half of one with learned variance."""
        event = self.process.domain.event_shape
        if x.numel() == 0:
            return torch.zeros_like(x), torch.zeros_like(x) if self.learned_variance else None
        batch = batch_shape(x, event)
        dtype, label = network_dtype(self.network, x.dtype), self.label(t.expand(batch).reshape(-1))
        if label.is_floating_point():
            # a label rounded to bfloat16 would be another label
            label = label.to(torch.promote_types(dtype, torch.float32))
        flat = x.reshape(-1, *event).to(dtype)
        output = self.network(flat, label, **{k: _joined(v, batch) for k, v in condition.items()})
        halves = 2 if self.learned_variance else 1
        expected = (len(flat), halves * event[0], *event[1:]) if event else (len(flat),)
        if not isinstance(output, Tensor) or tuple(output.shape) != expected:
            got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"network: got an output of {got} for an input of shape {tuple(flat.shape)}, expected shape {expected}; "
                "learned_variance=True takes twice the channels"
            )
        parts = [part.to(x.dtype).reshape(x.shape) for part in output.chunk(halves, 1 if halves == 2 else 0)]
        return parts[0], parts[1] if self.learned_variance else None


def from_prediction(
    fn: Callable[..., Tensor],
    process: Diffusion,
    predicts: str,
    label: Label | None = None,
    *,
    learned_variance: bool = False,
) -> PredictionScore:
    """A plain network as a score on ``process``, which it also carries as ``.process``.

    Args:
        fn: the network, called with x ``[B, *event]``, labels ``[B]`` and the condition's keywords; answers in x's shape. A module gets x
            in the dtype of its parameters and labels in float32 at least; the rest is computed in the caller's dtype. Of the condition,
            tensors that start with the batch dimensions arrive as ``[B, …]``, also those inside a dict.
        process: where and when; x arrives in its x_t coordinates.
        predicts: "noise" (ε), "data" (x0), "v", "velocity" (ε − x0) or "score"; on domains with walls "score" only.
        label: what the network sees of the time:

            * "t", "1000t", or "sigma", the noise level σ(t);
            * "index": i − 1 at level i of a :class:`~carom.processes.Discrete` schedule, and between levels, where ln σ is linear,
              the fraction; its default (elsewhere "t");
            * N numbers: what stands for the levels of a Discrete schedule, interpolated likewise;
            * a function of t ``[B]`` (float64); integers that it returns stay integers.
        learned_variance: whether fn answers with twice as many channels (the first event dimension), of which the second half is
            about the variance.

    Raises ``TypeError``/``ValueError`` for arguments that do not fit, when called also for outputs of another shape.
    """
    return PredictionScore(fn, process, predicts, label, learned_variance)


def prediction(
    score: Any, x: Tensor, t: float | Tensor, process: Diffusion | None = None, **condition: Any
) -> tuple[Tensor, Tensor]:
    """(E[x0 | x], E[ε | x]) of any score, each of x's shape and dtype: its own ``prediction`` if it offers one, else x/s + sσ²·score and
    −sσ·score, which need a finite score (so s, σ > 0). Near walls they are names for these combinations.

    Args:
        x, t: as a score takes them.
        process: whose score it is; ``score.process`` unless told.
        condition: keywords for the score.
    """
    if hasattr(score, "prediction"):
        return score.prediction(x, t, **condition)
    process = process_of(score, process)
    event = process.domain.event_shape
    check_event(x, event)
    # in float64, and at the level that a rounded t stands for
    at = _on_table(per_batch(t, x, len(event), "t").double(), process.schedule, x.dtype)
    level = process.event_level(at)
    _refuse_pure_noise(level.scale, at, "a score", process.schedule)
    value = score(x, t, **condition)
    data, noise = ([c.to(x.dtype) for c in form(level)] for form in (data_form, noise_form))
    return data[0] * x + data[1] * value, noise[1] * value


def process_of(score: Any, process: Diffusion | None) -> Diffusion:
    """The process that is told, or the score's own."""
    found = getattr(score, "process", None) if process is None else process
    if not isinstance(found, Diffusion):
        raise TypeError(
            f"process: got {type(found).__name__} for {type(score).__name__}, expected the Diffusion whose score it is; pass process="
        )
    return found


def label_function(label: Label | None, schedule: Schedule) -> Callable[[Tensor], Tensor]:
    """What a network sees of times ``[B]``, as :func:`from_prediction` explains."""
    if label is None:
        label = "index" if isinstance(schedule, Discrete) else "t"
    if callable(label):
        return label
    if isinstance(label, str):
        named = {"t": lambda t: t, "1000t": lambda t: 1000 * t, "sigma": schedule.sigma}
        if label in named:
            return named[label]
        if label != "index":
            raise ValueError(
                f"label: got {label!r}, expected one of {', '.join([*named, 'index'])}, a table or a function of t"
            )
    if not isinstance(schedule, Discrete):
        raise TypeError(
            f"label: got an index or a table for {schedule!r}, expected a Discrete schedule; use 't' or a function of t"
        )
    count = len(schedule.alphas_cumprod)
    numbers = torch.arange(count) if isinstance(label, str) else torch.as_tensor(label)
    if numbers.shape != (count,):
        raise ValueError(
            f"label: got a table of shape {tuple(numbers.shape)}, expected ({count},): one label per level"
        )
    return _Table(numbers.double().cpu())


class _Table:
    """Labels of the levels of a table, linear between them (as ln σ is), the first one below the first level."""

    def __init__(self, labels: Tensor):
        self.labels, self._on_device = labels, OnDevice((labels,))

    def __call__(self, t: Tensor) -> Tensor:
        (labels,), position = self._on_device(t.device), _whole(t * len(self.labels), t.dtype)
        i = position.detach().floor().clamp(1, len(labels) - 1).long()
        left, right = entries(labels, i - 1), entries(labels, i)
        return left + (position - i).clamp(min=0) * (right - left)


def _on_table(t: Tensor, schedule: Schedule, dtype: torch.dtype) -> Tensor:
    """Times t in float64, moved to the level of a table that they are the rounded (to ``dtype``) time of."""
    if not isinstance(schedule, Discrete):
        return t
    count = len(schedule.alphas_cumprod)
    position = t * count
    level = _whole(position, dtype)
    return torch.where(level == position, t, level / count)


def _whole(position: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions in a table, made whole where they are so up to the rounding of a t in ``dtype``."""
    level = position.detach().round()
    return torch.where((position - level).abs() <= torch.finfo(dtype).eps * level, level, position)


def _refuse_pure_noise(scale: Tensor, t: Tensor, what: str, schedule: Schedule) -> None:
    """No formula leads from ε or a score to x0 where the scale is 0. Read on the CPU only: elsewhere it would stall every step."""
    if scale.device.type == "cpu" and values_are_readable(scale) and bool((scale == 0).any()):
        raise ValueError(
            f"prediction: got t = {float(t.max()):g}, where the scale is 0 and {what} says nothing about x0, expected t of at most "
            f"t_max = {schedule.t_max:g}; start the grid there, or use a network that predicts v, velocity or data"
        )


def network_dtype(network: Any, default: torch.dtype) -> torch.dtype:
    """The floating dtype of a network's parameters."""
    parameters = getattr(network, "parameters", None)
    if parameters is None:
        return default
    return next((p.dtype for p in parameters() if p.is_floating_point()), default)


def _joined(value: Any, batch: torch.Size) -> Any:
    """A conditioning tensor whose first dimensions are the batch, with these joined to one; a dict entry by entry."""
    if isinstance(value, Mapping):
        return {k: _joined(v, batch) for k, v in value.items()}
    if len(batch) == 1 or not isinstance(value, Tensor) or value.shape[: len(batch)] != batch:
        return value
    return value.reshape(-1, *value.shape[len(batch) :])
