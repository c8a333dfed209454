r"""Diffusion Schrödinger bridges: mean-matching IPF between two data sets, or from data to noise, on any domain with a heat kernel.

Time 0 = t_0 < … < t_N = 1, h_k = t_{k+1} − t_k. Two chains, forward with rates f_k and backward with rates b_k, step like

.. math:: X_{k+1} \sim p_{σ\sqrt{h_k}}\big(\cdot\,|\,m\big),\quad m = \mathrm{reflect}\big(X_k,\ h_k f_k(X_k)\big),   (1)

p the domain's Neumann heat kernel: Euler–Maruyama in the open, and between walls its reflected form, for a fold of x + hf + σ√h z
is a draw of (1). IPF starts at the reference, f = drift (0: reflected Brownian motion), and alternates: run the forward chain from
``start`` and fit b to its reversal, run the backward chain from ``end`` and fit f to the reversal of that.

*What is regressed.* The reversal of a step has the rate −f_k(x) + σ²∇ log q_{k+1}(x), q_{k+1} the law of X_{k+1} (Haussmann & Pardoux
1986). By the denoising identity that score is E[∇ log p(X_{k+1} | m) | X_{k+1}], so that

.. math:: b_k(x) = E\big[-f_k(X_{k+1}) + σ^2\, ∇_x \log p_{σ\sqrt{h_k}}(X_{k+1}\,|\,m)\ \big|\ X_{k+1} = x\big]   (2)

and f from b alike, with the roles of the ends exchanged. In the open ∇ log p is (m − x)/σ²h, and x + h b_k(x) is the map
E[X_{k+1} + F_k(X_k) − F_k(X_{k+1}) | X_{k+1} = x], F = x + h f, of mean matching (De Bortoli et al. 2021, eq. 12). Between walls that
difference of positions would be wrong: a state that was folded has come from an image of m, seen across the wall. With u the unfolded
state the difference to take is m − u, carried back through the fold; its mean given m and x is the kernel's own score, which (2) uses: it
has less variance, needs no bookkeeping of folds, serves domains whose kernel is no fold, and has no normal component at a wall.

*Its bias.* Noise of variance σ²h in both directions and a rate right to O(h) leave the ends with errors of O(1/N), however well f and b
are fitted: ``carom.solvers.bridge.mean_matching`` computes them exactly for Gaussians.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from ...domains import Domain, KernelDomain, domain_from_config
from ...domains.tensors import batch_shape, expand_right, number
from ...processes import SDE
from ...processes.equations import check_field
from ...solvers import ReflectedEulerMaruyama, Solution, WhiteNoise, solve
from ...solvers.checks import check_times
from . import checkpoint as files
from .batches import mix
from .laws import Draw, Law, described, drawing
from .regressors import Paths, Regressor, regressor_from_config
from .resuming import check_same
from .terminal import Bar, interruptions, say_interrupted
from .updates import check_counts

# by direction, True being backward
_NAMES = {False: "forward", True: "backward"}
_PREFIXES = ("times", "forward.", "backward.")


class _Reference:
    """The rates of the reference: its drift at the beginning of each step."""

    def __init__(self, drift: Callable[..., Tensor] | None, times: Tensor):
        self.drift, self.times = drift, times

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        if self.drift is None:
            return torch.zeros_like(x)
        t = self.times[step.cpu()].to(x)
        return check_field(self.drift(x, expand_right(t, x.dim() - 1) if t.dim() else t), x)


class DiffusionSchroedingerBridge:
    """Mean-matching IPF (De Bortoli et al. 2021, alg. 1): learns the Schrödinger bridge between two laws; see the module.

    Args:
        domain: where states live, with a heat kernel: Euclidean space, a box, a torus, a simplex, a ball ….
        sigma: of the reference dX = drift(X, t) dt + σ dW on t ∈ [0, 1], reflected at the walls.
        forward, backward: a regressor for each direction.
        times: a grid rising from 0 to 1, or the number of equal steps.
        drift: of the reference, a callable (x, t); none for Brownian motion.

    Raises ``TypeError`` for a domain without heat kernel, for what is no regressor, and for one in both places, ``ValueError`` for a grid
    that is none.
    """

    def __init__(
        self,
        domain: Domain,
        sigma: float,
        forward: Regressor,
        backward: Regressor,
        *,
        times: int | Sequence[float] | Tensor = 20,
        drift: Callable[..., Tensor] | None = None,
    ):
        if not isinstance(domain, KernelDomain):
            raise TypeError(
                f"domain: got {domain!r}, expected one with a known heat kernel, such as Hypercube or Euclidean: the target is its score"
            )
        for regressor, name in ((forward, "forward"), (backward, "backward")):
            if not isinstance(regressor, Regressor):
                raise TypeError(
                    f"{name}: got {type(regressor).__name__}, expected a Regressor, e.g. LinearRegressor() or NeuralRegressor(network)"
                )
        if drift is not None and not callable(drift):
            raise TypeError(
                f"drift: got {type(drift).__name__}, expected a callable drift(x, t), or None for Brownian motion"
            )
        if forward is backward:
            raise TypeError(
                "backward: got the regressor of forward, expected another; each direction learns rates of its own"
            )
        self.domain, self.sigma = domain, number(sigma, "sigma", low=0.0, open_low=True)
        self.times = _grid(times)
        shortest = self.sigma * math.sqrt(float(self.times.diff().min()))
        if shortest < domain.sigma_min:
            raise ValueError(
                f"times: got a step of standard deviation {shortest:g}, expected at least {domain.sigma_min:g}, below which the kernel of "
                f"{domain!r} is not exact; take fewer steps"
            )
        self.regressors = {False: forward, True: backward}
        self.reference = _Reference(drift, self.times)
        self.halves = 0

    @property
    def rates(self) -> dict[bool, Callable[[Tensor, Tensor], Tensor]]:
        """The rates in force: by direction, True being backward, which has none before the first half iteration."""
        forward = self.regressors[False] if self.halves > 1 else self.reference
        return {False: forward, True: self.regressors[True]} if self.halves else {False: forward}

    def __repr__(self) -> str:
        return f"DiffusionSchroedingerBridge({self.domain!r}, {self.sigma:g}, {len(self.times) - 1} steps, {self.halves} half iterations)"

    def fit(
        self,
        start: Law,
        end: Law,
        *,
        halves: int = 10,
        paths: int = 4096,
        seed: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: bool = True,
        log: Callable[[int, float], Any] | None = None,
    ) -> list[float]:
        """Run half iterations of IPF, going on from those already done; returns the mean squared residual of each.

        The first fits the backward rates to the reference, the next the forward rates, and so on, in one call or in several. Between data
        sets take as many as the coupling matters; from data to noise that the reference nearly reaches, few will do.

        Args:
            start, end: the laws at t = 0 and 1: data ``[n, *event]``, a distribution whose ``sample(shape, generator=…)`` draws (such
                as ``domain.uniform()``), or a callable (count, generator) → states.
            halves: how many half iterations, those before a resume included.
            paths: how many are simulated and cached at a time.
            seed: of everything random here: a half iteration is a function of it, of its number and of what was learned before.
            checkpoint: a file that ``load`` reads and ``resume=True`` continues, written after each half iteration; a file of that name
                is replaced. Ctrl-C ends the fit once the half iteration at work is finished, a second one at once.
            resume: go on from the file's last half iteration, to the same numbers, to the bit on the CPU at the same number of threads,
                as a fit that was not interrupted; its residuals are among those returned.
            progress: show a bar over half iterations.
            log: called as ``log(half, residual)`` after each.

        Raises ``FloatingPointError`` where a regressor says so; ``ValueError`` for data outside the domain, or a checkpoint that does
        not belong to this fit.
        """
        check_counts(halves=halves, paths=paths)
        if resume and checkpoint is None:
            raise ValueError("fit: got resume=True without a checkpoint; name the file to resume from")
        if checkpoint is not None:
            files.check_place(checkpoint)
        laws = {False: drawing(start, "start", self.domain), True: drawing(end, "end", self.domain)}
        settings = {"start": described(start), "end": described(end), "paths": paths, "seed": seed}
        losses = self._resumed(checkpoint, settings) if resume and checkpoint is not None else []
        with (
            interruptions() as interrupted,
            Bar(halves, None, len(losses), progress, step="half iteration", memory=0.0) as bar,
        ):
            while len(losses) < halves and not interrupted():
                losses.append(self._half(laws, paths, seed))
                if checkpoint is not None:
                    state = {"settings": settings, "losses": losses}
                    files.write(checkpoint, self.header() | {"training": state}, self.state_dict(), files.BRIDGE)
                bar.show(len(losses), 0.0, losses[-1])
                if log is not None:
                    log(self.halves, losses[-1])
        if len(losses) < halves:
            place = None if checkpoint is None else str(checkpoint)
            say_interrupted(len(losses), place, "half iteration", "fit")
        return losses

    def _half(self, laws: dict[bool, Draw], paths: int, seed: int) -> float:
        """The next half iteration; returns its mean squared residual."""
        backward = self.halves % 2 == 0
        generator = torch.Generator().manual_seed(mix(seed, "half iteration", self.halves))

        def draw() -> Paths:
            # the direction that is fitted is the reversal of the paths of the other, whose rates stay in force meanwhile
            return self._simulate(laws[not backward](paths, generator), not backward, generator)

        loss = self.regressors[backward].fit(draw, generator)
        self.halves += 1
        return loss

    def _resumed(self, path: str | os.PathLike[str], settings: dict[str, Any]) -> list[float]:
        """Take over what the file of a fit with the same settings has come to; returns its residuals."""
        file = files.read(path, _PREFIXES, files.BRIDGE)
        state = file.header.get("training")
        if state is None:
            raise ValueError(
                f"resume: got {str(path)!r}, which holds a bridge without the state of a fit; expected a file written by "
                f"fit(checkpoint=…). To go on from its rates: {type(self).__name__}.load, then fit without resume"
            )
        ours, theirs = (
            {k: v for k, v in header.items() if k not in ("halves", "training")} | {"times": times.tolist()}
            for header, times in ((self.header(), self.times), (file.header, _times(file)))
        )
        check_same(path, (theirs, json.loads(json.dumps(ours))), (state["settings"], settings))
        self.restore(file)
        return list(state["losses"])

    def to(self, device: str | torch.device) -> Self:
        """Move the networks to a device."""
        for regressor in self.regressors.values():
            regressor.to(device)
        return self

    def header(self) -> dict[str, Any]:
        """What a file says about this bridge, JSON-able."""
        return {
            "domain": self.domain.config(),
            "sigma": self.sigma,
            "drift": self.reference.drift is not None,
            "halves": self.halves,
        } | {_NAMES[backward]: regressor.config() for backward, regressor in self.regressors.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The grid and what the regressors have learned."""
        learned = {_NAMES[backward]: regressor.state_dict() for backward, regressor in self.regressors.items()}
        return {"times": self.times} | {f"{name}.{k}": v for name, part in learned.items() for k, v in part.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bridge to one safetensors file, atomically, as :meth:`NeuralScore.save` does. The folder must exist.

        A reference's drift is a function, which no file holds.
        """
        files.write(path, self.header(), self.state_dict(), files.BRIDGE)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        forward: Regressor | None = None,
        backward: Regressor | None = None,
        domain: Domain | None = None,
        drift: Callable[..., Tensor] | None = None,
    ) -> Self:
        """Rebuild a bridge from its file, on the CPU; it samples what it did, to the bit, and ``fit`` goes on from where it was.

        Args:
            forward, backward: for regressors, or networks of them, that the library does not know: instances built with the settings
                of training. They take over what was learned.
            domain: likewise.
            drift: of the reference; needed where it had one and the forward rates have not been fitted yet.

        Raises ``FileNotFoundError``; ``ValueError`` for a file that is damaged, of another kind, from a newer version, or that does
        not fit what is given here.
        """
        file = files.read(path, _PREFIXES, files.BRIDGE)
        forward, backward = (
            regressor_from_config(file.header[name], file.part(name)) if given is None else given
            for name, given in (("forward", forward), ("backward", backward))
        )
        domain = domain or domain_from_config(file.header["domain"])
        bridge = cls(domain, file.header["sigma"], forward, backward, times=_times(file), drift=drift)
        if file.header["halves"] < 2 and file.header["drift"] != (drift is not None):
            raise ValueError(
                f"drift: got {'one' if drift else 'none'}, but the reference of {str(path)!r} has {'none' if drift else 'one'}, and its "
                "forward rates have not been fitted yet; pass load(path, drift=…) as it was made with"
            )
        bridge.restore(file)
        return bridge

    def restore(self, file: files.Checkpoint) -> None:
        """Take over what the regressors of a file have learned; ``ValueError`` where it does not fit."""
        for backward, regressor in self.regressors.items():
            state, config = file.part(_NAMES[backward]), file.header[_NAMES[backward]]
            if config.get("type") != type(regressor).__name__:
                raise ValueError(
                    f"{_NAMES[backward]}: got a {type(regressor).__name__}, but {str(file.path)!r} holds what a {config.get('type')} "
                    "has learned; pass an instance of that class"
                )
            fitted = file.header["halves"] >= (1 if backward else 2)
            if state or fitted:
                regressor.load_state_dict(state)
        self.halves = file.header["halves"]

    def equation(self, *, backward: bool = False) -> SDE:
        """The SDE of one direction, with rates that are constant in time over each step: times rise, or fall where ``backward``."""
        if backward not in self.rates:
            raise RuntimeError("bridge: got no backward rates yet; fit at least one half iteration")
        rates, ndim = self.rates[backward], len(self.domain.event_shape)

        def drift(x: Tensor, t: Tensor) -> Tensor:
            grid = self.times.to(t)
            # the step that begins at t in this direction
            step = (torch.searchsorted(grid, t.contiguous(), right=not backward) - 1).clamp(0, len(grid) - 2)
            if step.dim():
                step = step.reshape(step.shape[:-ndim]).expand(batch_shape(x, self.domain.event_shape)).reshape(-1)
            value = rates(x.reshape(-1, *self.domain.event_shape), step).reshape(x.shape)
            return -value if backward else value

        return SDE(drift, self.sigma, self.domain, direction=-1 if backward else 1)

    @torch.no_grad()
    def sample(
        self, x: Tensor, *, backward: bool = False, seed: int | None = None, denoise: bool = False, save: Any = None
    ) -> Solution:
        """Carry states ``[B, *event]`` of ``start`` to ``end``, or back where ``backward``, on the grid it was trained on.

        The pairs (x, solution.x) are the learned coupling; ``save="all"`` keeps the paths. ``denoise``: the last step is taken without
        noise, as De Bortoli et al. do, for data narrower than its σ√h; x is then no draw of the chain, and its variance too small by σ²h.
        """
        times = self.times.flip(0) if backward else self.times
        equation, grid = self.equation(backward=backward), times[:-1] if denoise else times
        run = solve(equation, x, grid, ReflectedEulerMaruyama(), noise=WhiteNoise(seed), save=save)
        if not denoise:
            return run
        move = float(times[-1] - times[-2]) * equation.drift(run.x, times[-2].to(run.x))
        return replace(run, x=self.domain.reflect(run.x, move), nfe=run.nfe + 1)

    @torch.no_grad()
    def _simulate(self, x: Tensor, backward: bool, generator: torch.Generator) -> Paths:
        """Paths of this direction from x, with the targets (2) of the other."""
        rates, spans = self.rates[backward], self.times.diff()
        states, targets = [], []
        order = range(len(spans))
        for k in reversed(order) if backward else order:
            step, h = torch.tensor(k), float(spans[k])
            kernel = self.domain.unchecked_kernel(self.domain.reflect(x, h * rates(x, step)), self.sigma * math.sqrt(h))
            x, score = kernel.sample_with_target(generator=generator)
            states.append(x)
            targets.append(self.sigma**2 * score - rates(x, step))
        if backward:
            states, targets = states[::-1], targets[::-1]
        return Paths(torch.stack(states), torch.stack(targets))


def _grid(times: int | Sequence[float] | Tensor) -> Tensor:
    if isinstance(times, (int, float)):
        check_counts(times=times)
        return torch.linspace(0, 1, int(times) + 1, dtype=torch.float64)
    grid = check_times(times)
    if len(grid) < 2 or float(grid[0]) != 0.0 or float(grid[-1]) != 1.0:
        raise ValueError(
            f"times: got a grid from {float(grid[0]):g} to {float(grid[-1]):g}, expected one that rises from 0 to 1, or a number of steps"
        )
    return grid


def _times(file: files.Checkpoint) -> Tensor:
    if "times" not in file.tensors:
        raise ValueError(f"checkpoint: got {str(file.path)!r} without the grid of times; save it again")
    return file.tensors["times"]
