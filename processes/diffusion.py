r"""The forward diffusion: heat flow on a domain, run on a clock, :math:`x_t = s(t)\,X_{σ(t)}` with X from the heat kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..domains import Domain, HeatKernel, KernelDomain, Product
from ..domains.domain import uniform_law
from ..domains.tensors import batch_shape, check_positive, event_sum, expand_right, per_batch
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
        schedule: the clock; takes the defaults that suit the domain (``schedule.on(domain)``). On a :class:`~carom.domains.Product`
            also a sequence of schedules, one for each part, all run over the same t. The first is then the clock that grids,
            levels and σ speak of; see ``parts``.

    ``parts`` holds the diffusions of the parts where each has a schedule of its own, and is () otherwise.
    Raises ``ValueError`` for a schedule whose scale is not 1 on a domain that scaling does not preserve.
    """

    parts: tuple[Diffusion, ...]

    def __init__(self, domain: Domain, schedule: Schedule | Sequence[Schedule]):
        if not isinstance(domain, Domain):
            raise TypeError(f"domain: got {type(domain).__name__}, expected a Domain, e.g. Hypercube((1, 8, 8))")
        self.domain, self.parts = domain, ()
        self.schedule: Schedule
        if isinstance(schedule, (tuple, list)):
            self.parts = _parts(domain, schedule)
            self.schedule = self.parts[0].schedule
            return
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule: got {type(schedule).__name__}, expected a Schedule, e.g. VE()")
        self.schedule = schedule.on(domain)
        scale = self.schedule.scale(torch.linspace(0, self.schedule.t_max, 17, dtype=torch.float64))
        if not domain.is_cone and not bool((scale == 1).all()):
            raise ValueError(
                f"Diffusion: got {schedule!r}, whose scale falls to {float(scale.min()):.4g}, on {domain!r}; scaling would "
                "move the walls, so expected a schedule with scale 1: use VE() or EDM()"
            )

    def __repr__(self) -> str:
        schedules = tuple(part.schedule for part in self.parts)
        return f"Diffusion({self.domain!r}, {schedules or self.schedule!r})"

    def config(self) -> dict[str, Any]:
        """What ``process_from_config`` rebuilds it from."""
        schedules = [part.schedule.config() for part in self.parts]
        return {"domain": self.domain.config(), "schedule": schedules or self.schedule.config()}

    def event_level(self, t: Tensor) -> Level:
        """The level as it meets states: t ``[*batch]``, values in broadcast form ``[*batch, 1, …, 1]``, or ``[*batch, n]``
        where each part has its own."""
        if not self.parts:
            t = expand_right(t, len(self.domain.event_shape))
            sigma = self.schedule.sigma(t)
            return Level(t, self.schedule.scale(t), sigma, -sigma.log())
        sigma = self._beside([part.schedule.sigma(t) for part in self.parts])
        return Level(
            t.unsqueeze(-1), self._beside([part.schedule.scale(t) for part in self.parts]), sigma, -sigma.log()
        )

    def part_sigmas(self, sigma: Tensor) -> list[Tensor]:
        """The noise level of each part where the clock's is σ, all of σ's shape; σ itself where there is one schedule."""
        if not self.parts:
            return [sigma]
        t = self.schedule.time(sigma.double())
        return [part.schedule.sigma(t).to(sigma.dtype) for part in self.parts]

    def event_sigma(self, sigma: Tensor) -> Tensor:
        """Noise levels of the clock ``[*batch]`` as they meet states: ``[*batch, 1, …, 1]``, or ``[*batch, n]`` where parts differ."""
        if not self.parts:
            return expand_right(sigma, len(self.domain.event_shape))
        return self._beside(self.part_sigmas(sigma))

    def heat_flow(self, x0: Tensor, sigma: Tensor) -> HeatKernel:
        """The law of X, in which no scale enters, at noise levels σ of the clock; unchecked, for loops."""
        return self.domain.unchecked_kernel(x0, self.part_sigmas(sigma) if self.parts else sigma)  # type: ignore[attr-defined]

    def _beside(self, values: Sequence[Tensor]) -> Tensor:
        """Values of the parts ``[*batch]`` next to states: ``[*batch, n]``."""
        pairs = zip(values, self.domain.sizes, strict=True)  # type: ignore[attr-defined]
        return torch.cat([v.unsqueeze(-1).expand(*v.shape, size) for v, size in pairs], -1)

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
        return self._kernel(self.domain.heat_kernel, x0, t)

    def unchecked_transition(self, x0: Tensor, t: Tensor) -> HeatKernel:
        """The same for loops over values that were checked before; t broadcasts over the batch."""
        return self._kernel(self.domain.unchecked_kernel, x0, t)  # type: ignore[attr-defined]

    def _kernel(self, build: Callable[..., HeatKernel], x0: Tensor, t: Tensor) -> HeatKernel:
        if self.domain.is_cone or self.parts:
            x0 = self.event_level(t).scale * x0
        return build(x0, [part.schedule.std(t) for part in self.parts] or self.schedule.std(t))

    def prior(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        t: float | None = None,
    ) -> Distribution:
        """The law from which generation starts at ``t`` (t_max unless told): uniform on a bounded domain, the heat kernel from 0 elsewhere,
        at t_max N(0, I) for variance-preserving schedules and below it of std in proportion to std(t)."""
        if self.domain.bounded:
            return uniform_law(self.domain, dtype)
        if self.parts:
            laws = [part.prior(dtype, device, t) for part in self.parts]
            return _Joint(self.domain, laws, device)  # type: ignore[arg-type]
        if not isinstance(self.domain, KernelDomain):
            raise TypeError(
                f"prior: {self.domain!r} has neither a uniform law nor a heat kernel to start from; pass initial= to sample"
            )
        origin = torch.zeros(self.domain.event_shape, dtype=dtype, device=device)
        schedule = self.schedule
        share = 1.0 if t is None else float(schedule.std(t) / schedule.std(schedule.t_max))
        return self.domain.heat_kernel(origin, share * schedule.prior_std)

    def forward(
        self, score: Field | None = None, stochasticity: float | Callable[[Tensor], Tensor] = 1.0
    ) -> ForwardSDE:
        """The noising SDE; with a score, any other member of the family in the direction of growing t (0 the flow)."""
        return ForwardSDE(self, score, stochasticity)

    def reverse(self, score: Field, stochasticity: float | Callable[[Tensor], Tensor] = 1.0) -> ReverseSDE:
        """The generating SDE with this score; 0 is the flow, 1 the reverse SDE; all share the marginals."""
        return ReverseSDE(self, score, stochasticity)

    def flow(self, score: Field) -> ProbabilityFlow:
        """The probability flow ODE with this score."""
        return ProbabilityFlow(self, score)


def _parts(domain: Domain, schedules: Sequence[Schedule]) -> tuple[Diffusion, ...]:
    if not isinstance(domain, Product) or len(schedules) != len(domain.domains):
        count = len(domain.domains) if isinstance(domain, Product) else 1
        raise ValueError(
            f"Diffusion: got {len(schedules)} schedules on {domain!r}, expected "
            + (f"{count}, one for each part, or a single one" if count > 1 else "a single one; parts make a Product")
        )
    if any(isinstance(s, (tuple, list)) for s in schedules):
        raise ValueError(
            "Diffusion: got schedules within schedules, expected one for each part; a Product in a Product is one part"
        )
    parts = tuple(Diffusion(d, s) for d, s in zip(domain.domains, schedules, strict=True))
    if len({part.schedule.t_max for part in parts}) > 1:
        ends = ", ".join(f"{part.schedule.t_max:g}" for part in parts)
        raise ValueError(
            f"Diffusion: got schedules that end at t = {ends}, expected one end, for the parts share their time"
        )
    return parts


class _Joint(Distribution):
    """Independent laws of the parts of a product, joined; what a prior needs of a law."""

    arg_constraints = {}
    support = constraints.real

    def __init__(self, domain: Product, laws: Sequence[Distribution], device: torch.device | str | None):
        self.domain, self.laws, self.device = domain, laws, device
        super().__init__(torch.Size(), torch.Size(domain.event_shape), validate_args=False)

    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        parts = [law.sample(sample_shape, generator=generator) for law in self.laws]  # type: ignore[arg-type, call-arg]
        return self.domain.join(*(part.to(self.device) for part in parts))

    def log_prob(self, x: Tensor) -> Tensor:
        parts = zip(self.laws, self.domain.split(x), strict=True)
        return event_sum(torch.stack([law.log_prob(part) for law, part in parts], -1), 1)


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
        if source.parts or target.parts:
            raise ValueError("retime: got a process with a schedule for each part, expected one schedule on both sides")
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
        at = per_batch(torch.as_tensor(t, dtype=torch.float64), x.double(), ndim, "t")
        if at.dim():  # a time for all stays one number, as scores take it
            at = expand_right(at.expand(batch_shape(x, self.target.domain.event_shape)), ndim)
        time = self.source.schedule.time(self.target.schedule.sigma(at))
        ratio = self.source.schedule.scale(time) / self.target.schedule.scale(at)
        return ratio.to(x.dtype), time.to(x.dtype)

    def rows(self, index: Tensor) -> Any:
        restrict = getattr(self.score, "rows", None)
        score = None if restrict is None else restrict(index)
        return None if score is None else retime(score, self.source, self.target)
