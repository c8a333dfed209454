"""``carom inpaint``: data with a part hidden, completed by a model; a picture of what was there, what was hidden and what came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .bundled import DEFAULT, find_checkpoint
from .console import DeviceName, clear_errors, find_device, interruptible, plural, say, warn
from .given_data import check_values, find_data, fit
from .rules import GRIDS, SOLVERS, check_name, make_grid, make_solver

if TYPE_CHECKING:
    import torch

    from .scores.neural import NeuralScore

#: which part is hidden, by name: (first row, last row, first column, last column) as shares of height and width
REGIONS = {
    "right": (0.0, 1.0, 0.5, 1.0),
    "left": (0.0, 1.0, 0.0, 0.5),
    "top": (0.0, 0.5, 0.0, 1.0),
    "bottom": (0.5, 1.0, 0.0, 1.0),
    "middle": (0.25, 0.75, 0.25, 0.75),
}


def inpaint_command(
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
    rows: Annotated[int, typer.Option("--n", min=1, help="How many pictures, drawn at random.")] = 8,
    hide: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(REGIONS)}; a share of pixels at random, e.g. 0.7; or a .npy of Bool, True where hidden."
        ),
    ] = "middle",
    draws: Annotated[int, typer.Option(min=1, help="Completions of each picture.")] = 4,
    resamplings: Annotated[
        int,
        typer.Option(
            min=1,
            help="How often each step is taken: 1 is replacement alone, more is nearer to the true conditional law.",
        ),
    ] = 5,
    solver: Annotated[
        str, typer.Option(metavar="NAME", help="A rule with fixed steps; carom solvers --names lists them.")
    ] = "reflected-euler-maruyama",
    grid: Annotated[str, typer.Option(metavar="NAME", help=f"Where the steps go: {', '.join(GRIDS)}.")] = "karras",
    levels: Annotated[int, typer.Option(min=2, help="Noise levels of the grid.")] = 60,
    classes: Annotated[bool, typer.Option(help="Tell a network that hears classes the label of each picture.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of pictures, hidden pixels and noise.")] = 0,
    device: Annotated[DeviceName, typer.Option(help="Where the network runs.")] = DeviceName.auto,
    out: Annotated[
        Path,
        typer.Option(help=".png: original, what is left, completions side by side; .npy: the completions' values."),
    ] = Path("inpainted.png"),
) -> None:
    """Hide a part of pictures and let a model complete them."""
    with clear_errors(), interruptible("nothing was written"), find_checkpoint(checkpoint) as file:
        for option, name, known in (("solver", solver, SOLVERS), ("grid", grid, GRIDS)):
            check_name(f"--{option}", name, known)
        if out.suffix not in (".png", ".npy"):
            raise ValueError(f"--out: got {out}, expected a file that ends in .png or .npy")
        import torch

        from .brightness import check_images
        from .scores.neural import NeuralScore
        from .solvers import inpaint

        rule = make_solver(solver)
        if rule.adaptive:
            raise ValueError(
                f"--solver: got {solver!r}, expected a rule with fixed steps, e.g. ancestral, ddim or heun"
            )
        score = NeuralScore.load(file).to(find_device(device))
        event = score.process.domain.event_shape
        if out.suffix == ".png":
            check_images(event, f"--out {out}")
        given = find_data(file, data, part)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(given.data), generator=generator)[:rows]
        x, label = _points(score, given.data, chosen)
        hidden = hidden_part(hide, event, generator)
        given.introduce(rows)
        condition = _condition(score, label, draws) if classes else {}
        several = x.repeat_interleave(draws, 0)
        run = inpaint(
            score.process,
            score,
            rule,
            make_grid(grid, score.process, levels),
            several.to(next(score.parameters()).device),
            ~hidden,
            resamplings=resamplings,
            seed=range(seed, seed + len(several)),
            condition=condition,
            progress=True,
        )
        made = Completed(score, x, hidden, run.x.cpu().reshape(len(x), draws, *event))
        made.save(out)
        count = len(several)
        say(
            f"{len(x)} {plural(len(x), 'picture')}, {float(hidden.double().mean()):.0%} hidden, {count} {plural(count, 'completion')}, "
            f"{int(torch.as_tensor(run.nfe).max())} evaluations each → {out}"
        )
        if out.suffix == ".png":
            say(f"columns: original | what is left | {'draw 1' if draws == 1 else f'draws 1–{draws}'}")
        if not bool(run.ok.all()):
            warn(run.report())


def hidden_part(text: str, event: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Bool ``[*event]``, True where hidden: a region, a share of pixels, or a file."""
    import numpy as np
    import torch

    hidden = torch.zeros(event, dtype=torch.bool)
    if text in REGIONS:
        if len(event) < 2:
            raise ValueError(
                f"--hide: got {text!r} for samples of shape {event}, expected a share, e.g. 0.5, or a .npy"
            )
        first, last, left, right = (round(share * event[-2 + i // 2]) for i, share in enumerate(REGIONS[text]))
        hidden[..., first:last, left:right] = True
        return hidden
    if text.endswith(".npy"):
        mask = np.load(text)
        try:
            return torch.from_numpy(np.broadcast_to(mask, event).astype(bool, casting="no"))
        except (ValueError, TypeError):
            raise ValueError(
                f"--hide: got {mask.dtype} of shape {mask.shape} in {text}, expected bool that broadcasts to {event}, True where hidden"
            ) from None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise ValueError(
            f"--hide: got {text!r}, expected one of {', '.join(REGIONS)}, a share between 0 and 1, or a .npy file"
        )
    # all channels of a pixel together
    plane = event[-2:] if len(event) > 2 else event
    return (torch.rand(plane, generator=generator) < share).expand(event).clone()


def _points(score: NeuralScore, data: Any, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Points of the domain and labels of some rows."""
    import torch

    values, label = fit(data, score).read(index)
    check_values(values, None if score.stored is None else score.stored.transform)
    if score.stored is None:
        return values.to(torch.get_default_dtype()), label
    return score.stored.transform.forward(values).to(torch.get_default_dtype()), label


def _condition(score: NeuralScore, label: torch.Tensor | None, draws: int) -> dict[str, Any]:
    from .labels import every_class

    if not every_class(score).classes or label is None:
        raise ValueError("--classes: got it for a model that hears none, or data without labels; leave it out")
    return {"label": label.repeat_interleave(draws).to(next(score.parameters()).device)}


#: what is hidden: no grey; on coloured pictures, which may be blue themselves, in stripes with white
COVER = (0.25, 0.45, 0.85)


def covered(x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Pictures ``[n, C, H, W]`` in colours ``[n, 3, H, W]``, those pixels covered of which a channel is hidden ``[C, H, W]``."""
    import torch

    height, width = x.shape[-2:]
    cover = torch.tensor(COVER).to(x)[:, None, None].expand(3, height, width)
    if x.shape[1] == 3:
        stripes = (torch.arange(height)[:, None] + torch.arange(width)) % 4 < 2
        cover = torch.where(stripes, cover, 1.0)
    return torch.where(hidden.any(0), cover, x)


@dataclass(frozen=True)
class Completed:
    """x ``[n, *event]``, what is hidden ``[*event]``, completions ``[n, draws, *event]``."""

    score: NeuralScore
    x: torch.Tensor
    hidden: torch.Tensor
    made: torch.Tensor

    def save(self, path: Path) -> None:
        import numpy as np
        import torch

        from .brightness import brightness
        from .validation.pictures import image_grid

        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            stored = self.score.stored
            flat = self.made.flatten(0, 1)
            values = flat if stored is None else stored.values(flat)
            np.save(path, values.reshape(self.made.shape).numpy())
            return
        original = brightness(self.score, self.x)
        shown = brightness(self.score, self.made.flatten(0, 1)).reshape(self.made.shape)
        columns = torch.cat([original[:, None], shown], 1).expand(-1, -1, 3, -1, -1)
        columns = torch.cat([columns[:, :1], covered(original, self.hidden)[:, None], columns[:, 1:]], 1)
        image_grid(columns.flatten(0, 1), path, columns=columns.shape[1])
