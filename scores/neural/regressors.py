"""What learns the rates of a Schrödinger bridge from simulated paths: linear regression, which is exact, and networks."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ...domains.registry import from_config
from ...domains.tensors import number
from . import checkpoint
from .networks import answer, network_of_weights, network_to_config
from .trainable import move_average, rising
from .updates import Cosine, check_counts


class Paths(NamedTuple):
    """Regression pairs of N steps and M paths: states and targets, each ``[N, M, *event]``."""

    states: Tensor
    targets: Tensor


class Regressor(ABC):
    """What learns the rates of one direction: E[target | state] step by step. One object for each direction."""

    @abstractmethod
    def fit(self, draw: Callable[[], Paths], generator: torch.Generator) -> float:
        """Fit to paths, drawn anew at each call of ``draw``; returns the mean squared residual of what was fitted last.

        Everything random comes from the generator, or a fit that is resumed will not equal one that was not interrupted.
        """

    @abstractmethod
    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        """The rates at x ``[B, *event]``; ``step`` is 0-d or ``[B]``, whole numbers from 0 to N − 1."""

    def config(self) -> dict[str, Any]:
        """``{"type": class name, **settings}``, JSON-able: how it travels in a file."""
        raise NotImplementedError(f"{type(self).__name__} does not define config(), which files need")

    def state_dict(self) -> dict[str, Tensor]:
        """What it has learned, and what its next fit begins at; may be empty before the first."""
        raise NotImplementedError(f"{type(self).__name__} does not define state_dict(), which files need")

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another of the same settings has learned; ``ValueError`` where it does not fit."""
        raise NotImplementedError(f"{type(self).__name__} does not define load_state_dict(), which files need")

    def to(self, device: str | torch.device) -> Self:
        """Move what computes to a device; by default nothing, for tables follow the states."""
        return self


class LinearRegressor(Regressor):
    """Rates A_k x + c_k by least squares, step by step: exact for Gaussian ends but for the error of sampling.

    Args: refreshes: over how many draws of paths the normal equations are summed.

    ``fit`` raises ``ValueError`` for fewer paths than unknowns, ``FloatingPointError`` for paths that are not finite.
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
            if self.refreshes * rows.shape[1] < rows.shape[2]:
                raise ValueError(
                    f"paths: got {rows.shape[1]} in each of {self.refreshes} refreshes, expected in all at least the {rows.shape[2]} "
                    "unknowns of a component; take more"
                )
            sums.append((rows.mT @ rows, rows.mT @ y, (y**2).mean()))
        gram, moment, square = (torch.stack(terms).sum(0) for terms in zip(*sums, strict=True))
        self.table = torch.linalg.solve(gram, moment)
        # ‖y‖² − ⟨fit, y⟩, which orthogonality makes the residual
        residual = float(square - (self.table * moment).sum() / y.numel()) / self.refreshes
        if not math.isfinite(residual):
            raise FloatingPointError(f"LinearRegressor: got a residual of {residual}, expected finite states and rates")
        return residual

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        if self.table is None:
            raise RuntimeError("LinearRegressor: got no fit yet; fit the bridge first")
        rows = _with_one(x.double().flatten(1)).unsqueeze(1)
        return (rows @ self.table.to(x.device)[step]).reshape(x.shape).to(x)

    def config(self) -> dict[str, Any]:
        return {"type": "LinearRegressor", "refreshes": self.refreshes}

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.table is None else {"table": self.table}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        # steps and coordinates are whatever they are
        like = {"table": torch.empty(state["table"].shape if "table" in state else 0)}
        if wrong := checkpoint.differences(like, state, "a LinearRegressor"):
            raise ValueError(f"checkpoint: got rates that are no table of a LinearRegressor ({wrong}); save it again")
        self.table = state["table"]


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
        ema: decay of the moving average of the weights, which is what answers, in [0, 1), approached as in ``train``.
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
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"network: got {type(network).__name__}, expected a torch.nn.Module, e.g. MLP(MLPConfig(shape))"
            )
        check_counts(steps=steps, batch_size=batch_size, refresh=refresh)
        self.lr = number(lr, "lr", low=0.0, open_low=True)
        self.clip = number(clip, "clip", low=0.0, open_low=True)
        self.ema = number(ema, "ema", low=0.0, high=1.0)
        if self.ema == 1.0:
            raise ValueError("ema: got 1, expected a decay below 1, which lets the average move")
        self.network, self.steps, self.batch_size, self.refresh = network, steps, batch_size, refresh
        self.warm_start = warm_start
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self._first = copy.deepcopy(network.state_dict())
        #: the step's count N, and the centre and spread of states, noted when first fitted
        self.count, self.centre, self.scale = 0, 0.0, 1.0

    def fit(self, draw: Callable[[], Paths], generator: torch.Generator) -> float:
        device = next(self.network.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(generator.initial_seed())  # of dropout, which takes no generator
            return self._fit(draw, generator)

    def _fit(self, draw: Callable[[], Paths], generator: torch.Generator) -> float:
        if not self.warm_start:
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
            move_average(self.average, self.network, decay(k))
            losses.append(loss.detach())
        mean = float(torch.stack(losses[-self.refresh :]).mean())
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"NeuralRegressor: got a loss of {mean}, expected a finite one; lower lr={self.lr:g}"
            )
        return mean

    def _rates(self, network: nn.Module, x: Tensor, step: Tensor) -> Tensor:
        inside = ((x - self.centre) / self.scale).to(next(network.parameters()).dtype)
        condition = (2 * (step.to(inside) + 0.5) / self.count).expand(len(x))
        rates = answer(network(inside, condition))
        if rates.shape != x.shape:
            raise ValueError(
                f"network: got an output of shape {tuple(rates.shape)}, expected {tuple(x.shape)}, that of x"
            )
        return self.scale * rates.to(x.dtype)

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        if not self.count:
            raise RuntimeError("NeuralRegressor: got no fit yet; fit the bridge first")
        return self._rates(self.average, x, step)

    def to(self, device: str | torch.device) -> Self:
        self.network.to(device)
        self.average.to(device)
        return self

    def config(self) -> dict[str, Any]:
        names = ("steps", "batch_size", "lr", "refresh", "warm_start", "ema", "clip")
        settings = {name: getattr(self, name) for name in names}
        return {"type": "NeuralRegressor", "network": network_to_config(self.network), **settings}

    def state_dict(self) -> dict[str, Tensor]:
        parts = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        if not self.warm_start:
            parts["first"] = self._first
        noted = torch.tensor([self.count, self.centre, self.scale], dtype=torch.float64)
        return {f"{part}.{k}": v for part, values in parts.items() for k, v in values.items()} | {"noted": noted}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        if wrong := checkpoint.differences(own, state, "the network"):
            raise ValueError(
                f"checkpoint: got weights that do not fit {type(self.network).__name__} ({wrong}); build the regressor with the settings "
                "it was trained with"
            )
        self.network.load_state_dict(checkpoint.part(state, "network"))
        self.average.load_state_dict(checkpoint.part(state, "average"))
        if not self.warm_start:
            self._first = checkpoint.part(state, "first")
        count, self.centre, self.scale = state["noted"].tolist()
        self.count = int(count)


REGRESSORS: dict[str, Callable[..., Regressor]] = {c.__name__: c for c in (LinearRegressor, NeuralRegressor)}


def regressor_from_config(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Regressor:
    """The regressor of ``config()`` that holds a state; a class of one's own is refused, as are unknown names and settings."""
    settings = dict(config)
    if isinstance(settings.get("network"), Mapping):
        settings["network"] = network_of_weights(settings["network"], checkpoint.part(state, "network"))
    return from_config(settings, REGRESSORS, "regressor")


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)
