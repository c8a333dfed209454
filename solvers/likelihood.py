r"""Densities of a model by its probability flow, on walls as in the open.

Along the flow :math:`dx = [a\,x + b\,s(x, t)]\,dt`, :math:`b = -g^2/2`, from :math:`t_0` up to :math:`T`,

.. math:: \log p_{t_0}(x) = \log π(x_T) + d \ln\frac{s(T)}{s(t_0)} + \int_{t_0}^{T} b(t)\, \nabla\!\cdot s(x_t, t)\, dt

(Chen et al. 2018; Song et al. 2021, eq. 39): the linear part is exact, the integral is one more coordinate. The state is (x, m) on the
product of the domain with a line, m = s(t)/s(T) · (the integral up to t), so that it obeys the very equation that x does, with the
"score" s(t)/s(T) ∇·s. Hence every deterministic rule serves, structured and per-sample adaptive ones too, and walls act on x alone.

On a bounded domain the flow keeps inside where the normal component of the score vanishes at the walls: no term is added there, nothing
is clipped. What walls had to push back is reported; where it is not 0, the flow is not one-to-one and its "density" not one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..domains import Domain, Euclidean
from ..domains.tensors import batch_shape, expand_right, is_int
from ..domains.transforms import DataTransform
from ..processes import Diffusion, ProbabilityFlow, Wall
from ..processes.equations import Field
from .adaptive import AdaptiveODE
from .checks import as_state, check_generation, check_process_and_score, check_solver_type, check_times
from .divergence import Divergence, Exact
from .grids import karras
from .joint import JointScore
from .loop import Seed, recipe, solve
from .noise import SampleNoise, mix
from .per_sample import rms
from .solution import Status
from .solver import Solver
from .stored_values import check_bins, stored_points
from .walls import Cover, Reflect


class Law(Protocol):
    """What a prior must offer."""

    def log_prob(self, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Likelihood:
    """What :func:`log_likelihood` returns; tensors are float64 ``[*batch]`` unless said otherwise.

    Attributes:
        log_prob: nats; of the stored values where a transform led to x, with ``bins`` the bound for one dequantisation. NaN for
            samples that did not reach times[0]; ``status`` says why.
        standard_error: of ``log_prob``, from the probes; 0 where the divergence is exact, NaN of a single probe.
        code: where the flow ends, states ``[*batch, *event]`` at times[0].
        prior_log_prob: log π(code), NaN where log_prob is.
        log_det: log |det ∂(code)/∂(values)|, so that log_prob = prior_log_prob + log_det.
        pushed: length of the way that walls pushed states back; 0 for a flow that keeps inside, None on domains without walls and under
            ``Cover``.
        round_trip: root mean square of the way back minus x over each event, None unless asked.
        nfe, status: evaluations of the score and how each sample ended, as in :class:`Solution`.
        dim: numbers in an event.
    """

    log_prob: Tensor
    standard_error: Tensor
    code: Tensor
    prior_log_prob: Tensor
    log_det: Tensor
    pushed: Tensor | None
    round_trip: Tensor | None
    nfe: int | Tensor
    status: Tensor
    dim: int

    @property
    def ok(self) -> Tensor:
        """Which samples ended well: Bool ``[*batch]``."""
        return self.status == Status.OK

    @property
    def bits_per_dim(self) -> Tensor:
        """−log_prob/(d ln 2)."""
        return -self.log_prob / (self.dim * math.log(2))

    def __repr__(self) -> str:
        count, nfe = self.log_prob.numel(), torch.as_tensor(self.nfe, dtype=torch.float64).mean()
        return f"Likelihood(<{count} samples>, log_prob mean {float(self.log_prob.mean()):.6g}, nfe {float(nfe):.4g})"


def log_likelihood(
    process: Diffusion,
    score: Field,
    x: Tensor | np.ndarray,
    *,
    solver: Solver | None = None,
    times: Tensor | np.ndarray | Sequence[float] | None = None,
    divergence: Divergence = Exact(),
    prior: Law | None = None,
    transform: DataTransform | None = None,
    bins: int | None = None,
    seed: Seed = None,
    condition: Mapping[str, Any] | None = None,
    wall: Wall | None = None,
    round_trip: bool = False,
    differentiable: bool = False,
    progress: bool = False,
) -> Likelihood:
    """log p of states under the probability flow of a score; the module's text has the formula.

    Args:
        process, score: the diffusion and any callable score.
        x: states ``[*batch, *event]`` at times[-1], in x_t coordinates; with ``transform`` or ``bins`` stored values, which are data at
            t = 0 and enter at times[-1] scaled by s.
        solver: any rule that takes a probability flow; AdaptiveODE(1e-6, 1e-6) unless told. Rules of fixed steps err by their order.
        times: a decreasing grid as for :func:`sample`; from t_max to the time of σ_min unless told, in 64 levels of :func:`karras` where
            steps are fixed.
        divergence: ``Exact()``, or ``Hutchinson(probes)`` where events are large.
        prior: the law at times[0], with ``log_prob``; that of the process unless told.
        transform: maps stored values to the domain and knows what it does to volumes, such as ``view.transform`` of loaded data; log_prob
            is that of the values. Where it has ``bins``, values are redrawn uniformly in their bins.
        bins: B: values are the whole numbers 0 … B − 1, mapped by ``affine_values(domain, B)`` where no transform is given.
        seed: of probes and of dequantisation: an int, or one for each sample.
        condition: keywords for the score.
        wall: ``Reflect()`` on domains with walls unless told, or ``Cover()``. Others do not keep volumes.
        round_trip: also run the flow back and report how far it comes from x.
        differentiable: let gradients flow to x and to the score's parameters (fixed steps save memory with few levels).

    Raises ``TypeError``/``ValueError`` for a stochastic rule, a wall that does not keep volumes, a process without prior, values that are
    not in the bins.
    """
    check_process_and_score(process, score)
    solver = AdaptiveODE(1e-6, 1e-6) if solver is None else solver
    check_solver(solver)
    wall = check_volume_wall(wall, process.domain)
    grid = check_times(_default_grid(process, solver) if times is None else times)
    check_generation(process, grid)
    if not isinstance(divergence, Divergence):
        raise TypeError(f"divergence: got {divergence!r}, expected Exact() or Hutchinson(probes)")
    transform = check_bins(process, transform, bins)
    points, log_volume = stored_points(process, as_state(x), transform, grid[-1], seed)
    law = check_prior(process, prior, points, float(grid[0]))
    event = process.domain.event_shape
    batch = batch_shape(points, event)
    flat = points.reshape(math.prod(batch), *event)
    given = {name: flat_condition(value, batch) for name, value in (condition or {}).items()}
    with torch.set_grad_enabled(differentiable):
        directions = divergence.directions(recipe(seed, None).open(flat, len(event)))
        joint = JointScore(process, score, divergence, directions, grid, differentiable)
        flow, up = joint.process.flow(joint), grid.flip(0)
        run = solve(flow, joint.join(flat), up, solver, wall=wall, condition=given, progress=progress)
        code, grown = joint.split(run.x)
        # what stopped on the way has no density: it must not enter a mean unseen, nor keep the others from theirs
        ok = expand_right(run.ok, len(event))
        reached = torch.where(ok, code, flat)
        log_prior = torch.where(run.ok, _log_prob(law, reached), math.nan)
        log_det = grown.double().mean(-1) + joint.linear
        error = _standard_error(divergence, grown.detach().double())
        back = None
        if round_trip:
            back = solve(process.flow(score), reached, grid, solver, wall=wall, condition=given).x
            back = torch.where(ok, back, math.nan)
    total = log_det.reshape(batch) + log_volume
    return Likelihood(
        log_prob=log_prior.reshape(batch) + total,
        standard_error=error.reshape(batch),
        code=code.reshape(points.shape),
        prior_log_prob=log_prior.reshape(batch),
        log_det=total,
        pushed=None if run.local_time is None else run.local_time.reshape(batch).double(),
        round_trip=None if back is None else rms(back - flat, len(event)).reshape(batch),
        nfe=run.nfe.reshape(batch) if isinstance(run.nfe, Tensor) else run.nfe,
        status=run.status.reshape(batch),
        dim=math.prod(event),
    )


def check_solver(solver: Any) -> None:
    check_solver_type(solver)
    if solver.stochastic or ProbabilityFlow not in solver.accepts:
        raise TypeError(
            f"solver: got {solver!r}, expected a deterministic rule that takes a probability flow, e.g. AdaptiveODE(1e-6, 1e-6) or "
            "UniPC(3); noise moves no density along"
        )


def check_volume_wall(wall: Wall | None, domain: Domain) -> Wall:
    """The wall of a run that must keep volumes."""
    if isinstance(domain, Euclidean):
        return Wall()
    if wall is None:
        return Reflect()
    if not isinstance(wall, (Reflect, Cover)):
        raise TypeError(
            f"wall: got {wall!r}, which lays volumes onto each other at the walls, expected Reflect() or Cover(), which keep them"
        )
    wall.check(domain)
    return wall


def check_prior(process: Diffusion, prior: Law | None, x: Tensor, t: float) -> Law:
    if prior is None:
        try:
            return process.prior(x.dtype, x.device, t)
        except TypeError as error:
            raise TypeError(
                f"prior: {process.domain!r} has no uniform law and no heat kernel to take for one; pass prior=, the law of states at "
                "times[0], an object with log_prob(x) → [*batch]"
            ) from error
    if not callable(getattr(prior, "log_prob", None)):
        raise TypeError(f"prior: got {type(prior).__name__}, expected a law with log_prob(x) → [*batch]")
    return prior


def _log_prob(law: Law, code: Tensor) -> Tensor:
    value = law.log_prob(code)
    if value.shape != code.shape[:1]:
        raise ValueError(
            f"prior: got log_prob of shape {tuple(value.shape)} for states {tuple(code.shape)}, expected one number for each, "
            f"{tuple(code.shape[:1])}; torch.distributions.Independent sums over an event"
        )
    return value.double()


def _standard_error(divergence: Divergence, estimates: Tensor) -> Tensor:
    """Of the mean of estimates ``[B, size]``."""
    if divergence.size == 1:
        return torch.full_like(estimates[:, 0], 0.0 if isinstance(divergence, Exact) else math.nan)
    apart = estimates - estimates.mean(-1, keepdim=True)
    # not std(), which warns of an empty batch
    return (apart.square().sum(-1) / (divergence.size * (divergence.size - 1))).sqrt()


def _default_grid(process: Diffusion, solver: Solver) -> Tensor:
    grid = karras(process, 64)
    return grid[[0, -1]] if solver.adaptive else grid


def flat_condition(value: Any, batch: torch.Size) -> Any:
    """A condition whose first dimensions are the batch, with these joined to one."""
    if len(batch) == 1 or not isinstance(value, Tensor) or value.shape[: len(batch)] != batch:
        return value
    return value.reshape(math.prod(batch), *value.shape[len(batch) :])


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension: the mean over data, its standard error, and each datum's, float64 ``[*batch]``; ``likelihood`` is that of
    all draws, ``[draws, *batch]``."""

    value: float
    standard_error: float
    each: Tensor
    likelihood: Likelihood

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.standard_error:.4f} bits/dim"


def bits_per_dim(
    process: Diffusion,
    score: Field,
    values: Tensor | np.ndarray,
    *,
    bins: int | None = None,
    transform: DataTransform | None = None,
    draws: int = 1,
    seed: Seed = None,
    condition: Mapping[str, Any] | None = None,
    **options: Any,
) -> BitsPerDim:
    r"""Bits it takes to name whole numbers v under the flow's density p, an upper bound by uniform dequantisation:

    .. math:: -\log_2 P(v) \le -\mathbb E \log_2 \frac1K \sum_{k=1}^K p(x_k)\, |\text{bin}(v)|, \quad x_k \text{ uniform in the bin}

    (Burda et al. 2016; K = 1 is the usual bound). It falls with K towards −log₂ P(v).

    Args:
        values: whole numbers 0 … B − 1, ``[*batch, *event]``.
        bins, transform: B, or the map that the model was trained with; one of them at least.
        draws: K.
        seed: of the K draws and of probes: an int, or one for each datum.
        condition, options: as for :func:`log_likelihood`.
    """
    transform = check_bins(process, transform, bins)
    if transform is None or transform.bins is None:
        raise ValueError(
            f"bins: got {'no transform' if transform is None else 'one of continuous values'}, expected bins=B, or a transform of whole "
            "numbers; log_likelihood gives densities"
        )
    if not is_int(draws, 1):
        raise ValueError(f"draws: got {draws!r}, expected a whole number of at least 1")
    values = as_state(values)
    batch = batch_shape(values, process.domain.event_shape)
    repeated = values.expand(draws, *values.shape)
    given = {name: _repeated(value, batch, draws) for name, value in (condition or {}).items()}
    if not (seed is None or isinstance(seed, (int, Integral))):
        seeds = SampleNoise(seed).seeds
        seed = [mix(s, k) for k in range(draws) for s in seeds]
    found = log_likelihood(process, score, repeated, transform=transform, seed=seed, condition=given, **options)
    each = -(found.log_prob.logsumexp(0) - math.log(draws)) / (found.dim * math.log(2))
    count = each.numel()
    error = float(each.std()) / math.sqrt(count) if count > 1 else math.nan
    return BitsPerDim(float(each.mean()), error, each, found)


def _repeated(value: Any, batch: torch.Size, draws: int) -> Any:
    """A condition whose first dimensions are the batch, for each draw."""
    if not isinstance(value, Tensor) or value.shape[: len(batch)] != batch:
        return value
    return value.expand(draws, *value.shape)
