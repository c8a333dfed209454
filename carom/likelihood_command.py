"""``carom likelihood``: what data cost in bits per dimension under a model, by the probability flow and by the variational bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from .bundled import DEFAULT, find_checkpoint
from .console import DeviceName, clear_errors, console, find_device, interruptible, plural, say, warn
from .given_data import check_values, find_data, fit, levels
from .rules import GRIDS, SOLVERS, check_name, make_grid, make_solver

if TYPE_CHECKING:
    import torch

    from .scores.neural import Data, NeuralScore
    from .solvers import Solver
    from .solvers.divergence import Divergence


def likelihood_command(
    checkpoint: Annotated[
        str, typer.Argument(help="A file written by train or demo, or the name of a checkpoint that came along.")
    ] = DEFAULT,
    data: Annotated[
        str | None,
        typer.Option(
            help="As for train: 'digits', 'fashion-mnist', a folder, .npy, .npz or IDX file. Default: those of the checkpoint's recipe."
        ),
    ] = None,
    part: Annotated[str | None, typer.Option(help="Of the MNISTs: test (default) or train.")] = None,
    n: Annotated[int, typer.Option(min=1, help="How many rows, drawn at random without repetition.")] = 100,
    solver: Annotated[
        str, typer.Option(metavar="NAME", help="A deterministic rule for the flow; carom solvers --names lists them.")
    ] = "heun",
    grid: Annotated[str, typer.Option(metavar="NAME", help=f"Where the steps go: {', '.join(GRIDS)}.")] = "karras",
    noise_levels: Annotated[int, typer.Option("--levels", min=2, help="Noise levels of the grid.")] = 40,
    divergence: Annotated[
        str, typer.Option(help="exact: a backward pass per dimension; hutchinson[:PROBES]: random probes.")
    ] = "hutchinson:1",
    dequantise: Annotated[int, typer.Option(min=1, help="Draws within the bins: more tighten the flow's bound.")] = 1,
    draws: Annotated[int, typer.Option(min=1, help="Of the variational bound: noise levels per row.")] = 32,
    classes: Annotated[
        bool, typer.Option(help="A network that hears classes is told the label of each row, or none.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of rows, probes, dequantisation and noise, row by row.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Rows at a time; no figure depends on it.")] = 10,
    device: Annotated[DeviceName, typer.Option(help="Where the network runs.")] = DeviceName.auto,
    out: Annotated[Path | None, typer.Option(help="A .npz with the bits of each row.")] = None,
) -> None:
    """Bits per dimension of data under a checkpoint: by the probability flow, and by the variational bound of the SDE.

    The two are of different densities, of which neither is always the larger. Ctrl-C reports the batches done so far.
    """
    with clear_errors(), interruptible("nothing was scored"), find_checkpoint(checkpoint) as file:
        for option, name, known in (("solver", solver, SOLVERS), ("grid", grid, GRIDS)):
            check_name(f"--{option}", name, known)
        from .scores.neural import NeuralScore

        if out is not None and out.suffix != ".npz":
            raise ValueError(f"--out: got {out}, expected a file that ends in .npz")
        rule, probes = _flow_rule(solver), _divergence(divergence)
        score, place = NeuralScore.load(file), find_device(device)
        given = find_data(file, data, part)
        times = make_grid(grid, score.process, noise_levels)
        work = Rows(score.to(place), fit(given.data, score), rule, times, classes, place)
        work.check()
        count = given.introduce(n)
        done = _run(work, count, probes, dequantise, draws, seed, batch)
        whole = len(done.row) == count
        if not whole:
            say(f"interrupted: {len(done.row)} of {count} {plural(count, 'row')}")
        _report(done, work)
        if out is not None:
            done.save(out)
            say(f"{len(done.row)} {plural(len(done.row), 'row')} → {out}")
        if not whole:
            raise typer.Exit(130)


class Measured(NamedTuple):
    """Of each row: its number, −log₂ p per dimension by the flow and by the bound, the error of the flow's probes in the same unit, how
    far walls pushed, the flow's evaluations."""

    row: torch.Tensor
    flow: torch.Tensor
    bound: torch.Tensor
    probes: torch.Tensor
    pushed: torch.Tensor
    nfe: torch.Tensor

    def save(self, path: Path) -> None:
        import numpy as np

        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, row=self.row.numpy(), flow=self.flow.numpy(), bound=self.bound.numpy())


@dataclass(frozen=True)
class Rows:
    """A model and rows of data, measured batch by batch."""

    score: NeuralScore
    data: Data
    solver: Solver
    times: torch.Tensor
    classes: bool
    device: str

    @property
    def transform(self) -> Any:
        return None if self.score.stored is None else self.score.stored.transform

    @property
    def bins(self) -> int | None:
        return None if self.transform is None else self.transform.bins

    def check(self) -> None:
        if self.data.bins != self.bins:
            raise ValueError(
                f"--data: got {levels(self.data.bins)}, expected {levels(self.bins)}, as the model was trained on: bits of other values "
                "cannot be compared"
            )

    def measure(self, index: torch.Tensor, divergence: Divergence, dequantise: int, draws: int, seed: int) -> Measured:
        import torch

        from .labels import every_class
        from .solvers import bits_per_dim, elbo, log_likelihood
        from .solvers.noise import mix

        values, labels = self.data.read(index)
        check_values(values, self.transform)
        values = values.to(self.device)
        given: dict[str, Any] = {}
        if self.classes and labels is not None and every_class(self.score).classes:
            given = {"label": labels.to(self.device)}
        options: dict[str, Any] = {"transform": self.transform, "condition": given, "times": self.times}
        # neither the batch nor another seed shares a row's draws
        options["seed"] = [mix(seed, row) for row in index.tolist()]
        flow: dict[str, Any] = {"solver": self.solver, "divergence": divergence, "progress": not self.solver.adaptive}
        process, score = self.score.process, self.score
        if self.bins is None:
            found = log_likelihood(process, score, values, **options, **flow)
            bits = found.bits_per_dim
        else:
            several = bits_per_dim(process, score, values, draws=dequantise, **options, **flow)
            found, bits = several.likelihood, several.each
        bound = elbo(process, score, values, draws=draws, progress=True, **options).bits_per_dim

        pushed = torch.zeros_like(bits) if found.pushed is None else found.pushed.reshape(-1, len(bits)).mean(0)
        probes = found.standard_error.reshape(-1, len(bits)).square().mean(0).sqrt() / (found.dim * math.log(2))
        nfe = torch.as_tensor(found.nfe, dtype=bits.dtype, device=bits.device).expand_as(found.log_prob)
        each = (bits, bound, probes, pushed, nfe.reshape(-1, len(bits)).mean(0))
        return Measured(index, *(value.cpu() for value in each))


def _flow_rule(name: str) -> Solver:
    """A rule by its name, which a flow's density can be found by."""
    from .solvers.likelihood import check_solver

    solver = make_solver(name)
    try:
        check_solver(solver)
    except TypeError:
        raise ValueError(
            f"--solver: got {name!r}, expected a deterministic rule, e.g. adaptive, unipc-3 or heun; noise moves no density along"
        ) from None
    return solver


def _run(work: Rows, n: int, divergence: Divergence, dequantise: int, draws: int, seed: int, size: int) -> Measured:
    """All batches, or those that were done before Ctrl-C, which is passed on if there were none."""
    import torch
    from tqdm import tqdm

    chosen = torch.randperm(len(work.data), generator=torch.Generator().manual_seed(seed))[:n]
    parts: list[Measured] = []
    with tqdm(total=n, unit="rows", desc="likelihood") as bar:
        try:
            for index in chosen.split(size):
                parts.append(work.measure(index, divergence, dequantise, draws, seed))
                bar.update(len(index))
                bar.set_postfix_str(f"flow {torch.cat([part.flow for part in parts]).nanmean():.4f} bits/dim")
        except KeyboardInterrupt:
            if not parts:
                raise
    return Measured(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _divergence(text: str) -> Divergence:
    from .solvers.divergence import Exact, Hutchinson

    name, _, count = text.partition(":")
    if name == "exact" and not count:
        return Exact()
    if name == "hutchinson" and (count or "1").isdecimal() and int(count or "1") > 0:
        return Hutchinson(int(count or "1"))
    raise ValueError(f"--divergence: got {text!r}, expected exact or hutchinson:PROBES, e.g. hutchinson:4")


def _report(done: Measured, work: Rows) -> None:
    kept = done.flow.isfinite() & done.bound.isfinite()
    flow, bound, count = done.flow[kept], done.bound[kept], int(kept.sum())
    flow_note, bound_note = (
        "bits of the flow's density of the values",
        "upper bound on the bits of the SDE's density of the values",
    )
    if work.bins is not None:
        flow_note = "upper bound on the bits of whole numbers under the flow's density, dequantised uniformly"
        bound_note = "upper bound on the bits of whole numbers under the SDE's density, read by Bayes' rule"
    table = Table(title=f"{count} {plural(count, 'row')}, {work.score.process!r}")
    for column in ("density of", "bits/dim", "±", "how"):
        table.add_column(column, no_wrap=column != "how")
    table.add_row("flow (ODE)", *_mean_and_error(flow), f"{flow_note}; {float(done.nfe.mean()):.4g} evaluations")
    table.add_row("SDE (ELBO)", *_mean_and_error(bound), bound_note)
    table.add_row("SDE − flow", *_mean_and_error(bound - flow), "row by row")
    console.print(table)
    say("the flow and the SDE have two densities, of which neither is always the larger")
    probes = float(done.probes[kept].square().mean().sqrt()) / max(1, count) ** 0.5
    if probes > 0:
        say(f"of the flow's error {probes:.4f} is due to its probes")
    pushed = int((done.pushed > 1e-3).sum())
    if pushed:
        warn(
            f"walls pushed {pushed} {plural(pushed, 'row')} back, by up to {float(done.pushed.max()):.3g}: the score's normal component "
            "there is not 0, and the flow's density is none, or the steps are too coarse: try more --levels"
        )
    if count < len(kept):
        failed = len(kept) - count
        warn(f"{failed} {plural(failed, 'row')} failed on the way, left out; try more --levels")


def _mean_and_error(x: torch.Tensor) -> tuple[str, str]:
    error = f"{float(x.std()) / len(x) ** 0.5:.4f}" if len(x) > 1 else "—"
    return f"{float(x.mean()):.4f}" if len(x) else "—", error
