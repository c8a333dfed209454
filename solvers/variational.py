r"""Variational bounds on the density of the reverse SDE, on walls as in the open, term by term.

In the coordinates X = x/s of the heat flow no schedule enters. With s the score of X, π its law at σ₁, and data X that stand at the level
σ₀ themselves,

.. math:: -\log p_{σ_0}(X) \le \underbrace{\mathbb E[-\log π(X_{σ_1})]}_{prior}
          + \underbrace{\int_{σ_0}^{σ_1} σ\,\mathbb E\big[|s|^2 - 2\,s·\nabla\log q(X_σ|X)\big]\,dσ}_{path}

(Song, Durkan, Murray & Ermon 2021, theorem 3, its two integrals combined, for each alone diverges; Lou & Ermon 2023, eq. 13), q the heat
kernel of variance σ² − σ₀². In the "fisher" form 2∇·s stands for −2 s·∇log q: their means agree where s·n = 0 at the walls.

Data that are whole numbers stand at σ = 0. From their X at σ₀ they are read by Bayes' rule with equal chances for all levels, and

.. math:: -\log P(v) \le \underbrace{\mathbb E\big[\textstyle\sum_i \log\sum_u q_{σ_0}(X_i|u)\big]}_{reconstruction} + prior + path .

It bounds the *SDE's* density. The flow's is another number, and neither is always the larger one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..domains import Euclidean, KernelDomain
from ..domains.decoders import Bins
from ..domains.domain import HeatKernel
from ..domains.tensors import batch_shape, event_sum, expand_right, is_int
from ..domains.transforms import DataTransform
from ..processes import Diffusion, Discrete
from ..processes.equations import Field, check_field
from .checks import as_state, check_generation, check_process_and_score, check_times
from .divergence import Divergence, Exact
from .grids import karras
from .likelihood import Law, check_prior, flat_condition
from .loop import Seed, recipe
from .noise import global_seed
from .row_draws import Generators, draw, generators, normals, shifts
from .stored_values import check_bins, log_chances, stored_points

FORMS = ("dsm", "fisher", "ddpm", "vdm")


@dataclass(frozen=True)
class Elbo:
    """A lower bound on log p, estimated; tensors are float64 ``[*batch]``.

    Attributes:
        log_prob: of the state, or of the stored values, nats.
        standard_error: of the estimate, from its draws.
        terms: what adds up to −log_prob, by name. "dsm", "fisher": ``prior``, ``path``, and ``reconstruction`` of whole numbers or else
            ``volume``, −log|det| from values to X. "ddpm", "vdm": ``L_T``, ``L_t`` (``[levels − 1, *batch]``, that of the smallest level
            first) and ``L_0``.
        dim: numbers in an event.
    """

    log_prob: Tensor
    standard_error: Tensor
    terms: dict[str, Tensor]
    dim: int

    @property
    def bits_per_dim(self) -> Tensor:
        """−log_prob/(d ln 2), an upper bound."""
        return -self.log_prob / (self.dim * math.log(2))

    def __repr__(self) -> str:
        means = ", ".join(f"{name} {float(value.mean()):.5g}" for name, value in self.terms.items())
        return f"Elbo(<{self.log_prob.numel()} samples>, log_prob mean {float(self.log_prob.mean()):.6g}: {means})"


@torch.no_grad()
def elbo(
    process: Diffusion,
    score: Field,
    x: Tensor | np.ndarray,
    *,
    form: str = "dsm",
    times: Tensor | np.ndarray | Sequence[float] | None = None,
    draws: int = 16,
    divergence: Divergence = Exact(),
    prior: Law | None = None,
    transform: DataTransform | None = None,
    bins: int | None = None,
    variance: str = "posterior",
    seed: Seed = None,
    condition: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Elbo:
    r"""A bound log p ≥ … for the reverse SDE of a score; the module's text has the formulas.

    Args:
        process, score: the diffusion on a domain with a heat kernel, one schedule, and any callable score.
        x: ``[*batch, *event]``. "dsm", "fisher": states at times[-1], in x_t coordinates, as for :func:`log_likelihood`; "ddpm", "vdm":
            data at t = 0. With ``transform`` or ``bins`` stored values.
        form: "dsm" or "fisher", in continuous time; "ddpm" or "vdm", the chain of Gaussians over the levels ``times`` (Euclidean only):

            .. math:: L_{t} = \tfrac12 \sum_{axes}\big[ρ + e^{-ρ} - 1 + e^{-ρ} k\,(ε - \hat ε)^2\big],\quad k = σ_t^2/σ_s^2 - 1,\
                      ρ = \ln(g^2/\tilde β)

            from level t to the next lower one s; "vdm" has ρ = 0. ``L_T`` is KL(q(x_T|x_0) | π) and ``L_0`` the last step: "ddpm" to the
            data with the variance of that step, of whole numbers the mass of their bin; "vdm" reads x_0 off the smallest level.
        times: decreasing; its ends, or with "ddpm" and "vdm" its levels. From t_max to the time of σ_min unless told, and the table of a
            ``Discrete`` schedule or 100 levels of :func:`karras`.
        draws: levels per datum, in strata of ln σ (importance-sampled for g²); for the chains, draws of noise at each level.
        divergence: for "fisher".
        prior: the law at times[0]; a Gaussian, or the uniform law between walls, unless told. Chains know only their own.
        variance: of the chain "ddpm": "posterior" (β̃; in the last step, where it is 0, that of the step before) or "beta" (β).
        transform, bins, condition: as for :func:`log_likelihood`; whole numbers are not dequantised.
        seed: of levels and noise: an int, or one for each datum, whose draws are then the same in any batch.

    Raises ``TypeError``/``ValueError`` for arguments that do not fit.
    """
    check_process_and_score(process, score)
    _check(process, form, draws, variance, prior)
    grid = check_times(_default_grid(process, form) if times is None else times)
    check_generation(process, grid)
    transform = check_bins(process, transform, bins)
    values = as_state(x)
    batch, event = batch_shape(values, process.domain.event_shape), process.domain.event_shape
    given = {name: flat_condition(value, batch) for name, value in (condition or {}).items()}
    flat = values.reshape(math.prod(batch), *event)
    seed = global_seed() if seed is None else seed
    if form in ("dsm", "fisher"):
        data, ends = _data(process, flat, transform, grid), grid[[-1, 0]]
        law = check_prior(process, prior, data.x, float(grid[0]))
        run = ContinuousBound(process, LevelScore(process, score, given), data, ends, law, prior is None)
        totals, terms = run.terms(form, draws, divergence, seed, progress)
    else:
        points, volume = stored_points(process, flat, transform, None, None)
        chain = ChainBound(
            process, LevelScore(process, score, given), points, grid, transform, variance if form == "ddpm" else None
        )
        totals, terms = chain.terms(draws, seed, progress)
        if transform is None or transform.bins is None:
            terms["L_0"] = terms["L_0"] - volume
            totals = totals - volume
    return Elbo(
        log_prob=-totals.mean(0).reshape(batch),
        standard_error=_standard_error(totals, in_strata=form in ("dsm", "fisher")).reshape(batch),
        terms={name: value.reshape(value.shape[:-1] + batch) for name, value in terms.items()},
        dim=math.prod(event),
    )


class LevelScore:
    """The score of X = x/s at noise levels: s·score(s·X, t(σ)); ``divergence`` where the score offers it."""

    def __init__(self, process: Diffusion, score: Field, condition: Mapping[str, Any]):
        self.process, self.score, self.condition = process, score, condition
        if hasattr(score, "divergence"):
            self.divergence = self._divergence

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x ``[B, *event]``, sigma ``[B]`` float64."""
        scale, time = self._at(x, sigma)
        return scale * check_field(self.score(scale * x, time, **self.condition), x)

    def _divergence(self, x: Tensor, sigma: Tensor) -> Tensor:
        scale, time = self._at(x, sigma)
        return scale.reshape(-1) ** 2 * self.score.divergence(scale * x, time, **self.condition)  # type: ignore[attr-defined]

    def _at(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        schedule = self.process.schedule
        # in float64: σ → t amplifies rounding where σ is flat
        time = expand_right(schedule.time(sigma), x.dim() - 1)
        return schedule.scale(time).to(x.dtype), time.to(x.dtype)


class _Data(NamedTuple):
    """X ``[B, *event]``, the level it stands at, and the terms that lead from X to the values."""

    x: Tensor
    start: float
    name: str
    values_term: Callable[[Tensor], Tensor]


def _data(process: Diffusion, values: Tensor, transform: DataTransform | None, grid: Tensor) -> _Data:
    level = process.level(grid[-1])
    if transform is not None and transform.bins is not None:
        points, _ = stored_points(process, values, transform, None, None)
        return _Data(
            points, 0.0, "reconstruction", lambda x: log_chances(process.domain, transform, x, float(level.sigma))
        )
    states, volume = stored_points(process, values, transform, grid[-1], None)
    scale = process.event_level(grid[-1]).scale
    dim = math.prod(process.domain.event_shape)
    rest = dim * float(level.scale.log()) - volume
    return _Data(states / scale.to(states), float(level.sigma), "volume", lambda x: rest)


class ContinuousBound:
    """The bound in continuous time, by draws of the level and of X."""

    def __init__(self, process: Diffusion, score: LevelScore, data: _Data, ends: Tensor, law: Law, own_prior: bool):
        self.process, self.score, self.data, self.law = process, score, data, law
        self.own_prior, self._gaussian = own_prior, isinstance(process.domain, Euclidean)
        self.dim = math.prod(process.domain.event_shape)
        low, high = (float(v) for v in process.schedule.sigma(ends))
        self.end, self.last = high, float(process.schedule.scale(ends[1]))
        # τ² = σ² − start² is the variance of X given the data; ln(τ + offset) is uniform
        self.offset = data.start
        self.low = 0.0 if data.start else low
        self.high = math.sqrt(high**2 - data.start**2)

    def terms(
        self, form: str, draws: int, divergence: Divergence, seed: Seed, progress: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the sum of the terms in each draw ``[draws, B]``, their means)."""
        x0 = self.data.x
        generator, source = generators(seed, x0), recipe(seed, None).open(x0, x0.dim() - 1)
        # one level in each stratum of each datum
        shift = shifts(len(x0), generator)
        rows = []
        for k in _counted(draws, progress):
            u = ((k + shift) / draws).to(x0.device)
            tau, sigma, weight = self.level(u)
            x, target = draw(self._kernel(tau), generator, target=True)
            directions = divergence.directions(source) if form == "fisher" else None
            path = weight * self.reading(x, target if form == "dsm" else None, sigma, divergence, directions)
            first = draw(self._kernel(torch.full_like(tau, self.low)), generator)[0] if self.low else x0
            last = self._kernel(torch.full_like(tau, self.high))
            rows.append(torch.stack([self.prior(last, generator), path, self.data.values_term(first)]))
        each = torch.stack(rows)
        return each.sum(1), dict(zip(("prior", "path", self.data.name), each.mean(0), strict=True))

    def level(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(τ, σ, weight) at u in (0, 1): ∫ σ f dσ = ∫ weight f du."""
        ratio = math.log((self.high + self.offset) / (self.low + self.offset))
        # τ = 0 itself has no kernel
        shifted = (self.low + self.offset) * (ratio * u.clamp(min=1e-9)).exp()
        tau = shifted - self.offset
        return tau, (tau**2 + self.data.start**2).sqrt(), tau * shifted * ratio

    def reading(
        self, x: Tensor, target: Tensor | None, sigma: Tensor, divergence: Divergence, directions: Tensor | None
    ) -> Tensor:
        """|s|² − 2 s·target, or |s|² + 2∇·s without a target: ``[B]``, float64."""
        ndim = x.dim() - 1
        if target is not None:
            value = self.score(x, sigma)
            plain = event_sum((value * (value - 2 * target)).double(), ndim)
            return plain + self._control(target, sigma) if self._gaussian else plain
        value, estimates = divergence(self.score, x, sigma, directions)
        return event_sum(value.double() ** 2, ndim) + 2 * estimates.double().mean(-1)

    def _control(self, target: Tensor, sigma: Tensor) -> Tensor:
        """c·(|target|² − d/τ²), whose mean is 0. At large σ, where s is near its target, c = 1 takes away nearly all noise, at small σ
        c = 0 adds none; between them c = τ²/(τ² + v) with v = |X|²/d, that of each datum."""
        x0, variance = self.data.x, sigma**2 - self.data.start**2
        dim, ndim = self.dim, x0.dim() - 1
        square = event_sum(target.double() ** 2, ndim)
        spread = event_sum(x0.double() ** 2, ndim) / dim + self.data.start**2
        return (square * variance - dim) / (variance + spread)

    def prior(self, last: HeatKernel, generator: Generators | None) -> Tensor:
        """E[−log π_X] ``[B]``: in closed form for the process's own law, else of one draw."""
        dim, x0, domain = self.dim, self.data.x, self.process.domain
        if self.own_prior and domain.bounded:
            return torch.full(
                (len(x0),), float(self.process.domain.uniform().entropy()), dtype=torch.float64, device=x0.device
            )
        moved = dim * math.log(self.last)
        if self.own_prior and isinstance(domain, Euclidean):
            variance = float(self.law.sigma) ** 2 / self.last**2  # type: ignore[attr-defined]
            square = event_sum(x0.double() ** 2, x0.dim() - 1) + dim * self.high**2
            # of X: what the scale adds has cancelled
            return 0.5 * (square / variance + dim * math.log(2 * math.pi * variance))
        return -self.law.log_prob(self.last * draw(last, generator)[0]).double() - moved

    def _kernel(self, tau: Tensor) -> HeatKernel:
        x0 = self.data.x
        return self.process.domain.unchecked_kernel(x0, tau.to(x0.dtype))  # type: ignore[attr-defined]


class ChainBound:
    """The bound of a chain of Gaussians over levels; variance None for "vdm"."""

    def __init__(
        self,
        process: Diffusion,
        score: LevelScore,
        x0: Tensor,
        grid: Tensor,
        transform: DataTransform | None,
        variance: str | None,
    ):
        self.score, self.x0, self.variance, self.transform = score, x0, variance, transform
        self.dim = math.prod(process.domain.event_shape)
        level = process.level(grid.flip(0))
        self.sigma, self.std, self.last = level.sigma, level.scale * level.sigma, float(level.scale[-1])
        self.prior_std = float(process.prior(torch.float64, t=float(grid[0])).sigma)  # type: ignore[attr-defined]

    def terms(self, draws: int, seed: Seed, progress: bool) -> tuple[Tensor, dict[str, Tensor]]:
        generator = generators(seed, self.x0)
        last = self._prior()
        first = torch.stack([self._last_step(normals(self.x0, generator)) for _ in range(draws)])
        steps = []
        for i in _counted(len(self.sigma) - 1, progress):
            steps.append(torch.stack([self._step(i + 1, normals(self.x0, generator)) for _ in range(draws)]))
        each = torch.stack(steps) if steps else first.new_zeros(0, *first.shape)
        totals = last + first + each.sum(0)
        return totals, {"L_T": last, "L_t": each.mean(1), "L_0": first.mean(0)}

    def _error(self, i: int, noise: Tensor) -> Tensor:
        """ε − ε̂ at level i, float64."""
        sigma = self.sigma[i]
        x = self.x0 + sigma.to(self.x0) * noise
        return (noise + sigma.to(self.x0) * self.score(x, sigma.to(x.device).expand(len(x)))).double()

    def _step(self, i: int, noise: Tensor) -> Tensor:
        """From level i to level i − 1."""
        gain = float((self.sigma[i] / self.sigma[i - 1]) ** 2 - 1)
        rho = 2 * math.log(self.std[i] / self.std[i - 1]) if self.variance == "beta" else 0.0
        square = event_sum(self._error(i, noise) ** 2, self.x0.dim() - 1)
        return 0.5 * (self.dim * (rho + math.expm1(-rho)) + math.exp(-rho) * gain * square)

    def _last_step(self, noise: Tensor) -> Tensor:
        """From the smallest level to the data."""
        ndim, sigma = self.x0.dim() - 1, float(self.sigma[0])
        bins = None if self.transform is None or self.transform.bins is None else _bins(self.transform, self.x0)
        if self.variance is None:
            if bins is None:
                entropy = 0.5 * self.dim * (math.log(2 * math.pi * sigma**2) + 1)
                return torch.full((len(noise),), entropy, dtype=torch.float64, device=noise.device)
            latent = self.x0 + sigma * noise
            return event_sum(bins.softmax_nll(self.x0, latent, torch.full((), sigma).to(latent)).double(), ndim)
        std = torch.tensor(self._last_std(), dtype=torch.float64, device=noise.device)
        error = sigma * self._error(0, noise)
        if bins is not None:
            x0 = self.x0.double()
            return event_sum(bins.gaussian_nll(x0, x0 + error, std), ndim)
        return 0.5 * event_sum((2 * math.pi * std**2).log() + (error / std) ** 2, ndim)

    def _last_std(self) -> float:
        """√β_1, or √β̃_2, which stands for β̃_1 = 0."""
        first = float(self.std[0])
        if self.variance == "beta" or len(self.sigma) == 1:
            return first
        return first * math.sqrt(1 - float(self.sigma[0] / self.sigma[1]) ** 2)

    def _prior(self) -> Tensor:
        """KL(q(x_T | x_0) | π)."""
        dim, variance = self.dim, float(self.std[-1] / self.prior_std) ** 2
        square = event_sum((self.last / self.prior_std * self.x0.double()) ** 2, self.x0.dim() - 1)
        return 0.5 * (square + dim * (variance - 1 - math.log(variance)))


def _bins(transform: DataTransform, x0: Tensor) -> Bins:
    assert transform.bins is not None
    ends = transform.forward(
        torch.tensor([0.0, transform.bins - 1], dtype=torch.float64).reshape(2, *[1] * (x0.dim() - 1))
    )
    if ends.numel() != 2:
        raise ValueError(
            "transform: got walls that differ between axes, expected one range of values for this form; use 'dsm'"
        )
    return Bins(transform.bins, *(float(v) for v in ends.flatten()))


def _standard_error(totals: Tensor, in_strata: bool) -> Tensor:
    """Of the mean of draws ``[draws, B]``. Draws in neighbouring strata differ by noise alone, nearly; all of them also by their strata."""
    if len(totals) == 1 or not totals.numel():
        return torch.full_like(totals[0], math.nan)
    variance = totals.diff(dim=0).square().mean(0) / 2 if in_strata else totals.var(0)
    return (variance / len(totals)).sqrt()


def _counted(n: int, progress: bool) -> Any:
    if not progress:
        return range(n)
    from tqdm.auto import trange

    return trange(n, unit="level", leave=False)


def _default_grid(process: Diffusion, form: str) -> Tensor:
    schedule = process.schedule
    if form not in ("ddpm", "vdm"):
        return karras(process, 2)
    if not isinstance(schedule, Discrete):
        return karras(process, 100)
    count = len(schedule.alphas_cumprod)
    return torch.arange(round(schedule.t_max * count), 0, -1, dtype=torch.float64) / count


def _check(process: Diffusion, form: str, draws: int, variance: str, prior: Law | None) -> None:
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, expected one of {', '.join(FORMS)}")
    if not is_int(draws, 1):
        raise ValueError(f"draws: got {draws!r}, expected a whole number of at least 1")
    if variance not in ("posterior", "beta"):
        raise ValueError(f"variance: got {variance!r}, expected 'posterior' or 'beta'")
    if process.parts or not isinstance(process.domain, KernelDomain):
        raise TypeError(
            f"elbo: got {process!r}, expected one schedule on a domain with a heat kernel; log_likelihood needs neither"
        )
    if form not in ("ddpm", "vdm"):
        return
    if not isinstance(process.domain, Euclidean):
        raise TypeError(
            f"form: got {form!r} on {process.domain!r}, whose walls a chain of Gaussians does not know, expected 'dsm' or 'fisher'"
        )
    if prior is not None:
        raise ValueError(
            f"prior: got one with form {form!r}, whose L_T is the divergence from the process's own, expected None"
        )
