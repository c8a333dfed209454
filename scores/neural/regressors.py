"""What learns the rates of a Schrödinger bridge from simulated paths: linear regression, which is exact, and networks."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...domains.tensors import number
from .checkpoint import check_fit
from .networks import answer, network_of, network_to_config
from .updates import Cosine, check_counts, rising


class Paths(NamedTuple):
    """Regression pairs of N steps and M paths: states and targets, each ``[N, M, *event]``."""

    states: Tensor
    targets: Tensor


class Regressor(ABC):
    """What learns the rates of one direction: E[target | state] step by step. One object for each direction.

    One of your own needs ``fit`` and a call; to be saved with its bridge also ``config``, ``state`` and ``restore``.
    """

    @abstractmethod
    def fit(self, draw: Callable[[], Paths], generator: torch.Generator) -> float:
        """Fit to paths, drawn anew at each call of ``draw``; returns the mean squared residual of what was fitted last."""

    @abstractmethod
    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        """The rates at x ``[B, *event]``; ``step`` is 0-d or ``[B]``, whole numbers from 0 to N − 1."""

    def config(self) -> dict[str, Any]:
        """What a file says of it, JSON-able: ``{"type": name, **settings}``."""
        raise TypeError(
            f"save: got {type(self).__name__}, expected a regressor with config(), state() and restore(); give yours these three"
        )

    def state(self) -> dict[str, Tensor]:
        """What it has learned."""
        return {}

    def restore(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Take over what one of the same kind has learned."""
        return


class LinearRegressor(Regressor):
    """Rates A_k x + c_k by least squares, step by step: exact for Gaussian ends but for the error of sampling.

    Args: refreshes: over how many draws of paths the normal equations are summed.
    """

    def __init__(self, refreshes: int = 1):
        check_counts(refreshes=refreshes)
        self.refreshes = refreshes
        self.table: Tensor | None = None

    def fit(self, draw: Callable[[], Paths], generator: torch.Generator) -> float:
        sums = []
        for _ in range(self.refreshes):
            x, y = (values.double().flatten(2) for values in draw())
            rows = _with_one(x)
            sums.append((rows.mT @ rows, rows.mT @ y, (y**2).mean()))
        gram, moment, square = (torch.stack(terms).sum(0) for terms in zip(*sums, strict=True))
        self.table = torch.linalg.solve(gram, moment)
        # ‖y‖² − ⟨fit, y⟩, which orthogonality makes the residual
        return float(square - (self.table * moment).sum() / y.numel()) / self.refreshes

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        if self.table is None:
            raise RuntimeError("LinearRegressor: got no fit yet; fit the bridge first")
        rows = _with_one(x.double().flatten(1)).unsqueeze(1)
        return (rows @ self.table[step]).reshape(x.shape).to(x)

    def config(self) -> dict[str, Any]:
        return {"type": "LinearRegressor", "refreshes": self.refreshes}

    def state(self) -> dict[str, Tensor]:
        return {} if self.table is None else {"table": self.table}

    def restore(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        self.table = state.get("table")


class NeuralRegressor(Regressor):
    """Rates by a network conditioned on the step, trained by Adam on cached paths that are refreshed.

    Args:
        network: ``network(x, c)`` with x ``[B, *event]`` about standardised, c = 2(k + ½)/N ``[B]`` → ``[B, *event]``, e.g. an
            :class:`MLP`. One that starts at zero starts at the law of its noise alone.
        steps: of the optimiser in each half iteration.
        batch_size: pairs per step, over all k.
        lr: learning rate, falling to 0 along half a cosine in each half iteration.
        refresh: after so many steps the paths are simulated anew.
        warm_start: begin each half iteration at the weights of the last one of this direction; else at those it was made with.
        ema: decay of the moving average of the weights, which is what answers; in [0, 1).
        clip: the largest gradient norm.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        steps: int = 1000,
        batch_size: int = 512,
        lr: float = 2e-3,
        refresh: int = 250,
        warm_start: bool = True,
        ema: float = 0.99,
        clip: float = 1.0,
    ):
        check_counts(steps=steps, batch_size=batch_size, refresh=refresh)
        number(lr, "lr", low=0.0, open_low=True)
        number(clip, "clip", low=0.0, open_low=True)
        if number(ema, "ema", low=0.0, high=1.0) == 1.0:
            raise ValueError("ema: got 1, expected a decay below 1, which lets the average move")
        self.network, self.steps, self.batch_size, self.lr = network, steps, batch_size, lr
        self.refresh, self.warm_start, self.ema, self.clip = refresh, warm_start, ema, clip
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self._first = None if warm_start else copy.deepcopy(network.state_dict())
        #: the step's count N, and the centre and spread of states, noted when first fitted
        self.count, self.centre, self.scale = 0, 0.0, 1.0

    def fit(self, draw: Callable[[], Paths], generator: torch.Generator) -> float:
        if self._first is not None:
            self.network.load_state_dict(self._first)
        self.network.train()
        optimizer = torch.optim.Adam(self.network.parameters(), self.lr)
        losses: list[Tensor] = []
        rate, decay = Cosine(self.lr, self.steps), rising(self.ema)
        for k in range(self.steps):
            if k % self.refresh == 0:
                paths = draw()
                if not self.count:
                    self.count = len(paths.states)
                    self.centre, self.scale = float(paths.states.mean()), float(paths.states.std())
                states, targets = (values.flatten(0, 1) for values in paths)
                many = paths.states.shape[1]
            index = torch.randint(len(states), (self.batch_size,), generator=generator).to(states.device)
            found = self._rates(self.network, states[index], index // many)
            loss = ((found - targets[index]) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            (loss / self.scale**2).backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
            for group in optimizer.param_groups:
                group["lr"] = rate(k)
            optimizer.step()
            self._average(decay(k))
            losses.append(loss.detach())
        mean = float(torch.stack(losses[-self.refresh :]).mean())
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"NeuralRegressor: got a loss of {mean}, expected a finite one; lower lr={self.lr:g}"
            )
        return mean

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        for kept, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
            kept.copy_(buffer)

    def _rates(self, network: nn.Module, x: Tensor, step: Tensor) -> Tensor:
        inside = ((x - self.centre) / self.scale).to(next(network.parameters()).dtype)
        condition = (2 * (step.to(inside) + 0.5) / self.count).expand(len(x))
        return self.scale * answer(network(inside, condition)).to(x.dtype)

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        if not self.count:
            raise RuntimeError("NeuralRegressor: got no fit yet; fit the bridge first")
        return self._rates(self.average, x, step)

    def config(self) -> dict[str, Any]:
        settings = ("steps", "batch_size", "lr", "refresh", "warm_start", "ema", "clip", "count", "centre", "scale")
        return {"type": "NeuralRegressor", "network": network_to_config(self.network)} | {
            name: getattr(self, name) for name in settings
        }

    def state(self) -> dict[str, Tensor]:
        parts = {"network": self.network.state_dict(), "average": self.average.state_dict(), "first": self._first or {}}
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def restore(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        weights, average, first = (_under(state, part) for part in ("network", "average", "first"))
        check_fit(self.network, weights, "weights")
        check_fit(self.average, average, "averaged weights")
        self.network.load_state_dict(weights)
        self.average.load_state_dict(average)
        self._first = first or self._first
        self.count, self.centre, self.scale = config["count"], config["centre"], config["scale"]


def regressor_from_file(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Regressor:
    """One of the two above as a file has it, with what it has learned."""
    settings = dict(config)
    kind = settings.pop("type", None)
    made: Regressor
    if kind == "LinearRegressor":
        made = LinearRegressor(**settings)
    elif kind == "NeuralRegressor":
        for learned in ("count", "centre", "scale"):
            settings.pop(learned)
        made = NeuralRegressor(network_of(settings.pop("network"), _under(state, "network")), **settings)
    else:
        raise ValueError(
            f"checkpoint: got a regressor {kind!r}, expected LinearRegressor or NeuralRegressor; make one of your own and pass it as "
            "forward or backward"
        )
    made.restore(config, state)
    return made


def _under(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(part + "."): value for name, value in state.items() if name.startswith(part + ".")}


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)
