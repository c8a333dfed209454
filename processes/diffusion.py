r"""The forward diffusion: heat flow on a domain, run on a clock, :math:`x_t = s(t)\,X_{σ(t)}` with X from the heat kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..domains import Domain, HeatKernel, KernelDomain
from ..domains.domain import uniform_law
from ..domains.tensors import check_positive, expand_right, per_batch
from .equations import Field, ForwardSDE, ProbabilityFlow, ReverseSDE
from .schedule import Schedule


class Level(NamedTuple):
    """Where a process stands at some times: float64 tensors of one shape."""

    t: Tensor
    scale: Tensor
    sigma: Tensor
    half_log_snr: Tensor


class Diffusion:
    """A domain and a schedule.

    Args:
        domain: where states live.
        schedule: the clock; takes the defaults that suit the domain (``schedule.on(domain)``).

    Raises ``ValueError`` for a schedule whose scale is not 1 on a domain that scaling does not preserve.
    """

    def __init__(self, domain: Domain, schedule: Schedule):
        if not isinstance(domain, Domain):
            raise TypeError(f"domain: got {type(domain).__name__}, expected a Domain, e.g. Hypercube((1, 8, 8))")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule: got {type(schedule).__name__}, expected a Schedule, e.g. VE()")
        self.domain, self.schedule = domain, schedule.on(domain)
        scale = self.schedule.scale(torch.linspace(0, self.schedule.t_max, 17, dtype=torch.float64))
        if not domain.is_cone and not bool((scale == 1).all()):
            raise ValueError(
                f"Diffusion: got {schedule!r}, whose scale falls to {float(scale.min()):.4g}, on {domain!r}; scaling would "
                "move the walls, so expected a schedule with scale 1: use VE() or EDM()"
            )

    def __repr__(self) -> str:
        return f"Diffusion({self.domain!r}, {self.schedule!r})"

    def config(self) -> dict[str, Any]:
        """What ``process_from_config`` rebuilds it from."""
        return {"domain": self.domain.config(), "schedule": self.schedule.config()}

    def level(self, t: Any = None, *, sigma: Any = None) -> Level:
        """The level at times ``t`` or at noise levels ``sigma`` (numbers, lists or tensors): float64, whole grids at once."""
        if (t is None) == (sigma is None):
            raise TypeError("level: expected exactly one of t and sigma")
        if t is None:
            sigma = torch.as_tensor(sigma, dtype=torch.float64)
            t = self.schedule.time(sigma)
            if not bool(((self.schedule.sigma(t) - sigma).abs() <= 1e-6 * sigma).all()):
                raise ValueError(
                    f"level: got sigma up to {float(sigma.max()):g}, expected noise levels that {self.schedule!r} reaches: "
                    f"from 0 to {self.schedule.sigma_max:g}"
                )
        else:
            t = torch.as_tensor(t, dtype=torch.float64)
            if not bool((t >= 0).all()):
                raise ValueError(f"level: got t down to {float(t.min()):g}, expected times of at least 0")
            sigma = self.schedule.sigma(t)
        return Level(t, self.schedule.scale(t), sigma, -sigma.log())

    def transition(self, x0: Tensor, t: float | Tensor) -> HeatKernel:
        """The law of x_t given x_0, in x_t coordinates.

        ``t`` is a number, broadcasts over the batch, or is in broadcast form ``[*batch, 1, …, 1]``; t > 0.
        On a cone s·X_σ(x0) has the law X_{sσ}(s·x0), so one kernel serves all schedules.
        """
        if not isinstance(self.domain, KernelDomain):
            raise TypeError(
                f"transition: {self.domain!r} has no heat kernel in closed form; simulate with solve(process.forward(), …)"
            )
        t = per_batch(t, x0, len(self.domain.event_shape), "t")
        check_positive(t, "t")
        scale = self.schedule.scale(t)
        if self.domain.is_cone:
            x0 = scale.reshape(scale.shape + (1,) * len(self.domain.event_shape)) * x0
        return self.domain.heat_kernel(x0, self.schedule.std(t))

    def prior(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Distribution:
        """The law from which generation starts at t_max: uniform on a bounded domain, the heat kernel from 0 elsewhere
        (N(0, I) for variance-preserving schedules)."""
        if self.domain.bounded:
            return uniform_law(self.domain, dtype)
        if not isinstance(self.domain, KernelDomain):
            raise TypeError(
                f"prior: {self.domain!r} has neither a uniform law nor a heat kernel to start from; pass initial= to sample"
            )
        origin = torch.zeros(self.domain.event_shape, dtype=dtype, device=device)
        return self.domain.heat_kernel(origin, self.schedule.prior_std)

    def forward(self) -> ForwardSDE:
        """The noising SDE."""
        return ForwardSDE(self)

    def reverse(self, score: Field, stochasticity: float | Callable[[Tensor], Tensor] = 1.0) -> ReverseSDE:
        """The generating SDE with this score; 0 is the flow, 1 the reverse SDE; all share the marginals."""
        return ReverseSDE(self, score, stochasticity)

    def flow(self, score: Field) -> ProbabilityFlow:
        """The probability flow ODE with this score."""
        return ProbabilityFlow(self, score)


def data_form(level: Level) -> tuple[Tensor, Tensor]:
    """(p, q) with E[x0 | x] = p·x + q·score: D = x/s + sσ²·score (Tweedie; exact where the domain has no walls)."""
    return 1 / level.scale, level.scale * level.sigma**2


def noise_form(level: Level) -> tuple[Tensor, Tensor]:
    """(p, q) with E[ε | x] = p·x + q·score: ε = −sσ·score."""
    return torch.zeros_like(level.scale), -level.scale * level.sigma


class retime:
    r"""A score trained on the process ``source``, used on ``target``; the domains must agree.

    Both see the same X: :math:`score_T(x, t) = \frac{s_S(t')}{s_T(t)}\, score_S\big(\tfrac{s_S(t')}{s_T(t)} x, t'\big)`
    with :math:`σ_S(t') = σ_T(t)`.
    """

    def __init__(self, score: Field, source: Diffusion, target: Diffusion):
        if source.domain.event_shape != target.domain.event_shape:
            raise ValueError(
                f"retime: got events {source.domain.event_shape} and {target.domain.event_shape}, expected the same domain"
            )
        self.score, self.source, self.target = score, source, target
        if hasattr(score, "prediction"):
            self.prediction = self._prediction

    def __call__(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        ratio, time = self._translate(x, t)
        return ratio * self.score(ratio * x, time, **condition)

    def _prediction(self, x: Tensor, t: float | Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """(E[x0 | x], E[ε | x]), which do not depend on the clock."""
        ratio, time = self._translate(x, t)
        return self.score.prediction(ratio * x, time, **condition)  # type: ignore[attr-defined]

    def _translate(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        # in float64: σ ↔ t amplifies rounding where σ is flat, and this is a few numbers per sample
        ndim = len(self.target.domain.event_shape)
        at = expand_right(per_batch(torch.as_tensor(t, dtype=torch.float64), x.double(), ndim, "t"), ndim)
        time = self.source.schedule.time(self.target.schedule.sigma(at))
        ratio = self.source.schedule.scale(time) / self.target.schedule.scale(at)
        return ratio.to(x.dtype), time.to(x.dtype)

    def rows(self, index: Tensor) -> Any:
        restrict = getattr(self.score, "rows", None)
        score = None if restrict is None else restrict(index)
        return None if score is None else retime(score, self.source, self.target)
