r"""Networks in the conventions of research code: EDM, k-diffusion, score_sde.

=================  ========================  ================  ===========================================  ==================
adapter            the network answers       it sees of x      it sees of time                              process
=================  ========================  ================  ===========================================  ==================
from_edm           D = E[x0 | x]             x0 + σε           σ, rounded by its ``round_sigma``            EDM
from_k_diffusion   D                         x0 + σε           σ                                            EDM
from_score_sde     vp, subvp: −std·score     x_t               999 t                                        VP, SubVP
..                 vp, discrete: likewise    x_t               the label 0..N − 1 of a level                 Discrete.ddpm
..                 ve: the score             x0 + σε           σ                                            VE
..                 ve, discrete: likewise    x0 + σε           a label, from N − 1 at σ_min to 0 at σ_max   VE
=================  ========================  ================  ===========================================  ==================

Times go in as ``[B]``. In the ve rows σ is what the whole library calls so, the std of the noise; the code of Song et al. gives the level
σ(t) = σ_min r^t to its time t, the processes here that with σ² = σ_min²(r^{2t} − 1), and the network knows levels only.
To use such a score on another schedule, :func:`carom.processes.retime` it: on a VP state it is then read at D(x/s, σ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..domains import Euclidean
from ..domains.tensors import is_int
from ..processes import EDM, VE, VP, Diffusion, Discrete, SubVP
from ..processes.schedule import Schedule
from .predictions import PredictionScore, from_prediction


def from_edm(
    net: Callable[..., Tensor],
    event_shape: Sequence[int] | None = None,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> tuple[Diffusion, PredictionScore]:
    """(process, score) of a preconditioned network D = net(x, σ, class_labels) of Karras et al. 2022: score = (D − x)/σ².

    Args:
        net: called with x ``[B, *event]``, σ ``[B]`` and the condition's keywords (``class_labels=``). If it has ``round_sigma``
            (networks trained on a table of levels), it gets σ rounded so; take a grid of its levels, e.g.
            :func:`carom.solvers.iddpm`, for x keeps the level that the grid states.
        event_shape: ``[C, H, W]``; by default from the network's ``img_channels`` and ``img_resolution``.
        sigma_min, sigma_max: ends of grids; by default 0.002 and 80, within the network's own ``sigma_min`` and ``sigma_max``.
    """
    low = max(0.002, float(getattr(net, "sigma_min", 0.0))) if sigma_min is None else sigma_min
    high = min(80.0, float(getattr(net, "sigma_max", 80.0))) if sigma_max is None else sigma_max
    process = Diffusion(Euclidean(_event_shape(net, event_shape)), EDM(low, high))
    rounded = getattr(net, "round_sigma", None)
    if rounded is None:
        return process, from_prediction(net, process, "data", "sigma")
    return process, from_prediction(net, process, "data", lambda t: rounded(process.schedule.sigma(t)))


def from_k_diffusion(
    denoiser: Callable[..., Tensor],
    event_shape: Sequence[int] | None = None,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> tuple[Diffusion, PredictionScore]:
    """(process, score) of a denoiser D = denoiser(x, σ, **extra) in the coordinates x = x0 + σε, as k-diffusion's samplers call it.

    Args:
        denoiser: called with x ``[B, *event]``, σ ``[B]`` and the condition's keywords.
        event_shape: ``[*event]``; by default ``denoiser.event_shape`` (what :func:`to_k_diffusion` returns has it).
        sigma_min, sigma_max: ends of grids; by default the denoiser's own, or 0.002 and 80.
    """
    low = float(getattr(denoiser, "sigma_min", 0.002)) if sigma_min is None else sigma_min
    high = float(getattr(denoiser, "sigma_max", 80.0)) if sigma_max is None else sigma_max
    process = Diffusion(Euclidean(_event_shape(denoiser, event_shape)), EDM(low, high))
    return process, from_prediction(denoiser, process, "data", "sigma")


def from_score_sde(
    net: Callable[..., Tensor],
    sde: str | Schedule = "vp",
    event_shape: Sequence[int] | None = None,
    *,
    continuous: bool = True,
    N: int = 1000,
) -> tuple[Diffusion, PredictionScore]:
    """(process, score) of a network of Song et al. 2021; see the module's table for what it sees and answers.

    With ``continuous=False`` the network knows N labels. VP: β_i and ᾱ_i are those of the table that it was trained on
    (``Discrete.ddpm``), fractional labels lie between, and their clock's t is i/(N − 1). VE: the N levels are geometric from σ_min to
    σ_max, the nearest one is asked for, and labels run backwards: 0 is σ_max.

    Args:
        net: called with x ``[B, *event]``, labels ``[B]`` and the condition's keywords.
        sde: "vp", "subvp", "ve", or VP(…), SubVP(…), VE(…) with the network's own numbers.
        event_shape: ``[C, H, W]``.
        continuous: whether it was trained at all times.
        N: the number of labels otherwise.
    """
    names: dict[str, Callable[[], Schedule]] = {"vp": VP, "subvp": SubVP, "ve": VE}
    if isinstance(sde, str) and sde in names:
        sde = names[sde]()
    if not isinstance(sde, (VP, SubVP, VE)):
        raise ValueError(f"sde: got {sde!r}, expected 'vp', 'subvp', 've', or a VP, SubVP or VE schedule")
    if not is_int(N, 2):
        raise ValueError(f"N: got {N!r}, expected an int of at least 2: how many labels the network knows")
    domain = Euclidean(_event_shape(net, event_shape))
    if isinstance(sde, VE):
        process = Diffusion(domain, sde)
        return process, from_prediction(net, process, "score", "sigma" if continuous else _backwards(sde, N))
    if continuous:
        process = Diffusion(domain, sde)
        return process, from_prediction(net, process, "noise", lambda t: 999 * t)
    if isinstance(sde, SubVP):
        raise ValueError("continuous: got False with a sub-VP SDE, which has no discrete form, expected True")
    process = Diffusion(domain, Discrete.ddpm(N, sde.beta_min, sde.beta_max))
    return process, from_prediction(net, process, "noise", "index")


def _backwards(schedule: VE, count: int) -> Callable[[Tensor], Tensor]:
    """Labels of a table of geometric levels that counts down from the noisiest."""
    rate = math.log(schedule.sigma_max / schedule.sigma_min) / (count - 1)

    def label(t: Tensor) -> Tensor:
        above = (schedule.sigma(t) / schedule.sigma_min).log() / rate
        return (count - 1 - above).round().clamp(0, count - 1).long()

    return label


def _event_shape(net: Any, told: Sequence[int] | None) -> tuple[int, ...]:
    if told is not None:
        return tuple(told)
    if hasattr(net, "event_shape"):
        return tuple(net.event_shape)
    if hasattr(net, "img_channels") and hasattr(net, "img_resolution"):
        return (net.img_channels, net.img_resolution, net.img_resolution)
    raise TypeError(
        f"event_shape: {type(net).__name__} does not say it; pass the shape of one sample, e.g. event_shape=(3, 32, 32)"
    )
