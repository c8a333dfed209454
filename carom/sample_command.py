"""``carom sample``: batch after batch to disk, in constant memory, from where it stopped, on any number of processes.

Image i has the seed ``seed`` + i and the batches are the same whoever computes them, so that every number of processes gives the same
images, to the rounding of the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .bundled import DEFAULT, find_checkpoint
from .console import DeviceName, clear_errors, find_device, plural, say, warn
from .rules import GRIDS, SOLVERS, WALLS, check_name, make_grid, make_solver, make_wall

if TYPE_CHECKING:
    import torch

    from .journal import Journal
    from .labels import Labels
    from .outputs import Output
    from .scores.neural import NeuralScore
    from .scores.neural.workers import Workers


class Dtype(StrEnum):
    float32 = "float32"
    float64 = "float64"


def sample_command(
    checkpoint: Annotated[
        str, typer.Argument(help="A file written by train or demo, or the name of a checkpoint that came along.")
    ] = DEFAULT,
    n: Annotated[int, typer.Option(min=1, help="How many samples.")] = 64,
    out: Annotated[
        Path,
        typer.Option(help=".npy for the values, .png for one picture of all, a folder (no ending) for a .png of each."),
    ] = Path("samples.png"),
    solver: Annotated[
        str, typer.Option(metavar="NAME", help="The step rule; carom solvers --names lists them.")
    ] = "heun",
    grid: Annotated[str, typer.Option(metavar="NAME", help=f"Where the steps go: {', '.join(GRIDS)}.")] = "karras",
    levels: Annotated[int, typer.Option(min=1, help="Noise levels of the grid (adaptive: output times).")] = 18,
    wall: Annotated[
        str, typer.Option(metavar="NAME", help=f"What happens at the boundary: {', '.join(WALLS)}.")
    ] = "default",
    classes: Annotated[
        str | None,
        typer.Option(
            help="Numbers or names, e.g. 0,3,7, in turn by index; 'all' (default, where there are any); 'none'."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Sample i has seed + i, whatever n is.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time: memory grows with it, not with n.")] = 256,
    points: Annotated[
        bool, typer.Option("--points", help="Write points of the domain, not the stored values they stand for (.npy).")
    ] = False,
    dtype: Annotated[Dtype, typer.Option(help="Of the states; the network keeps its own.")] = Dtype.float32,
    device: Annotated[DeviceName, typer.Option(help="Under accelerate launch, accelerate's.")] = DeviceName.auto,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same command was interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace samples that are there.")] = False,
) -> None:
    """Sample a checkpoint with any solver, grid and wall; without one, the one that comes with carom.

    Several processes share the work under `accelerate launch -m carom.cli sample …`.
    """
    with clear_errors(), find_checkpoint(checkpoint) as file:
        for option, name, known in (("solver", solver, SOLVERS), ("grid", grid, GRIDS), ("wall", wall, WALLS)):
            check_name(f"--{option}", name, known)
        import torch

        from .journal import Journal
        from .labels import find_labels
        from .outputs import find_output
        from .scores.neural import NeuralScore
        from .scores.neural.workers import find_workers

        if resume and overwrite:
            raise ValueError("--overwrite: got it with --resume, expected one of them")
        score = NeuralScore.load(file)
        labels, kind = find_labels(score, classes), getattr(torch, dtype.value)
        output = find_output(out, score, n, points, kind)
        workers = find_workers(None)
        place = find_device(device) if workers.accelerator is None else workers.accelerator.device
        times = make_grid(grid, score.process, levels)
        work = Work(score.to(place), make_solver(solver), times, wall, labels, seed, kind, place)
        asked = {
            "checkpoint": hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest(),
            "n": n,
            "batch": batch,
            "solver": solver,
            "grid": grid,
            "levels": levels,
            "wall": wall,
            "classes": list(labels.classes),
            "seed": seed,
            "dtype": dtype.value,
            "points": points,
        }
        journal = Journal(output.journal, asked)
        _check(output, journal, resume, overwrite)
        _begin(output, journal, workers, resume)
        try:
            _work(work, output, journal, workers, n, batch)
        except KeyboardInterrupt:
            if workers.first:
                made = sum(min(batch, n - b * batch) for b in journal.done())
                say(
                    f"Interrupted with {made} of {n} {plural(n, 'sample')} in {out}; go on with the same command and --resume"
                )
            raise typer.Exit(130) from None
        workers.wait()
        if workers.first:
            _finish(output, journal, n)


@dataclass(frozen=True)
class Work:
    """What makes samples of indices."""

    score: NeuralScore
    solver: Any
    times: torch.Tensor
    wall: str
    labels: Labels
    seed: int
    dtype: torch.dtype
    device: torch.device | str

    def __call__(self, index: range, progress: bool) -> Any:
        """The samples of these indices, as a ``Solution``."""
        from .solvers import sample

        return sample(
            self.score.process,
            self.score,
            self.solver,
            self.times,
            shape=len(index),
            seed=range(self.seed + index.start, self.seed + index.stop),
            condition=self.labels.condition(index, self.device),
            wall=make_wall(self.wall),
            progress=progress and not self.solver.adaptive,
            dtype=self.dtype,
            device=self.device,
        )


def _check(output: Output, journal: Journal, resume: bool, overwrite: bool) -> None:
    if resume:
        journal.check()
        if not output.resumable():
            raise ValueError(f"--resume: {output.path} is no longer there; start anew by --overwrite")
    elif output.exists and not (overwrite or output.replaces):
        raise ValueError(f"--out: {output.path} exists; go on by --resume, or replace it by --overwrite")


def _begin(output: Output, journal: Journal, workers: Workers, resume: bool) -> None:
    workers.wait()  # nothing is written before all have looked
    if workers.first and resume:
        journal.mend()
    elif workers.first:
        output.path.parent.mkdir(parents=True, exist_ok=True)
        output.begin()
        journal.begin()
    workers.wait()


def _work(work: Work, output: Output, journal: Journal, workers: Workers, n: int, size: int) -> None:
    """The batches that are not done, every P-th by each of P processes."""
    from tqdm import tqdm

    from .journal import Batch

    done = journal.done()
    # all have read what is done before anybody adds to it, or they would share out different lists
    workers.wait()
    missing = [b for b in range(-(-n // size)) if b not in done]
    ranges = {b: range(b * size, min(n, (b + 1) * size)) for b in missing}
    several = len(ranges) > 1
    left = sum(len(index) for index in ranges.values())
    with tqdm(
        total=n, initial=n - left, unit="images", desc="sampling", disable=not (several and workers.first)
    ) as bar:
        for turn in _turns(missing, workers.count):
            if workers.rank < len(turn):
                number = turn[workers.rank]
                solution = work(ranges[number], progress=not several and workers.first)
                output.write(ranges[number].start, solution.x)
                journal.add(Batch(number, *_evaluations(solution.nfe), int((~solution.ok).sum()), _report(solution)))
            bar.update(sum(len(ranges[b]) for b in turn))


def _turns(missing: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    """One batch for each process at a time."""
    for start in range(0, len(missing), count):
        yield missing[start : start + count]


def _finish(output: Output, journal: Journal, n: int) -> None:
    done = journal.done()
    batches = list(done.values())
    output.end()
    fewest, most = min(b.fewest for b in batches), max(b.most for b in batches)
    evaluations = str(most) if fewest == most else f"{fewest} to {most}"
    say(f"{n} {plural(n, 'sample')}, {evaluations} evaluation{'' if evaluations == '1' else 's'} each → {output.path}")
    failed = [b for b in batches if b.failed]
    if failed:
        total = sum(b.failed for b in failed)
        warn(f"{total} of {n} {plural(n, 'sample')} failed; of the first batch with any: {failed[0].report}")


def _report(solution: Any) -> str:
    return "" if bool(solution.ok.all()) else solution.report()


def _evaluations(nfe: Any) -> tuple[int, int]:
    import torch

    return (int(nfe.min()), int(nfe.max())) if isinstance(nfe, torch.Tensor) else (int(nfe), int(nfe))
