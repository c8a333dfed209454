"""``carom train``: a recipe from a file, options and settings; the training it describes; a checkpoint with its recipe beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import DeviceName, clear_errors, find_device, plural, say
from .recipe import Recipe, differences, override, read_config, setting
from .short_names import short_names

if TYPE_CHECKING:
    from .scores.neural import NeuralScore

#: how many images --pictures draws, and with how many noise levels of Heun's rule
PICTURED, LEVELS = 36, 12


class Decay(StrEnum):
    constant = "constant"
    cosine = "cosine"


class Precision(StrEnum):
    no = "no"
    bf16 = "bf16"


def _option(text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


MODEL, COURSE, FILES = "What is trained", "How it is trained", "Files"


def train_command(
    data: Annotated[
        str | None,
        _option(
            "'digits' (default), 'fashion-mnist', 'mnist:FOLDER', a folder of pictures, or a .npy, .npz or IDX file.",
            MODEL,
        ),
    ] = None,
    domain: Annotated[
        str | None, _option(f"Where the data live (default cube:0,1): {short_names('domain')}; or JSON.", MODEL)
    ] = None,
    schedule: Annotated[
        str | None,
        _option(f"How noise grows: {short_names('schedule')}. Default: ve between walls, edm in the open.", MODEL),
    ] = None,
    network: Annotated[
        str | None,
        _option(f"{short_names('network')}. unet (default) and dit are for images, mlp for anything.", MODEL),
    ] = None,
    objective: Annotated[str | None, _option(f"What is minimised: {short_names('objective')}.", MODEL)] = None,
    preconditioning: Annotated[
        str | None, _option(f"{short_names('preconditioning')}. Default: that of the domain.", MODEL)
    ] = None,
    classes: Annotated[
        bool | None, _option("The network hears the classes of the data, and samples can be asked for by class.", MODEL)
    ] = None,
    low: Annotated[float | None, _option("Lower wall of the cube.", MODEL)] = None,
    high: Annotated[float | None, _option("Upper wall of the cube.", MODEL)] = None,
    steps: Annotated[int | None, _option("Step budget in all, resumed runs included.", COURSE, min=1)] = None,
    seconds: Annotated[
        float | None, _option("Time budget in all. Default, without --steps: 90 seconds.", COURSE, min=0.0)
    ] = None,
    batch_size: Annotated[int | None, _option("Default 128.", COURSE, min=1)] = None,
    lr: Annotated[float | None, _option("Learning rate; default 0.001.", COURSE, min=0.0)] = None,
    decay: Annotated[Decay | None, _option("Of the learning rate: cosine ends at 0 with --steps.", COURSE)] = None,
    seed: Annotated[int | None, _option("Of everything random.", COURSE, min=0)] = None,
    mixed_precision: Annotated[Precision | None, _option("Of the network's arithmetic.", COURSE)] = None,
    microbatches: Annotated[
        int | None, _option("Pieces that a batch is computed in. Default: one per process.", COURSE, min=1)
    ] = None,
    device: Annotated[DeviceName, _option("Under accelerate launch, accelerate's.", COURSE)] = DeviceName.auto,
    settings: Annotated[
        list[str] | None,
        _option(
            "Any setting of the recipe, as NAME=VALUE: network.channels=32, training.ema=0.9999, data.size=64. Repeatable.",
            COURSE,
            "--set",
            metavar="NAME=VALUE",
        ),
    ] = None,
    out: Annotated[Path, _option("The checkpoint to write; its recipe goes beside it, as .json.", FILES)] = Path(
        "model.safetensors"
    ),
    config: Annotated[Path | None, _option("A recipe, .json or .toml. Options and --set come after it.", FILES)] = None,
    write_config: Annotated[Path | None, _option("Write the recipe to this file, and train nothing.", FILES)] = None,
    resume: Annotated[
        bool,
        _option("Go on with the checkpoint and its recipe; name what changes, such as --steps.", FILES, "--resume"),
    ] = False,
    metrics: Annotated[
        Path | None, _option("A file of JSON lines: loss, gradient norm, loss by noise level …", FILES)
    ] = None,
    pictures: Annotated[
        Path | None, _option("A folder for pictures of samples, drawn as training goes on.", FILES)
    ] = None,
    pictures_every: Annotated[
        int, _option("Steps between pictures; one more is drawn at the end.", FILES, min=1)
    ] = 1000,
    save_every: Annotated[
        int, _option("Steps between saves of the checkpoint, which is written at the end as well.", FILES, min=1)
    ] = 1000,
) -> None:
    """Train a diffusion on your data. Ctrl-C leaves a checkpoint that --resume goes on with.

    A training is a recipe: `carom train --config model.json` repeats one, options and --set change it.

    Several processes train one model under `accelerate launch -m carom.cli train …`.
    """
    with clear_errors():
        given = {
            "data.source": data,
            "domain": domain,
            "domain.low": low,
            "domain.high": high,
            "schedule": schedule,
            "network": network,
            "objective": objective,
            "preconditioning": preconditioning,
            "data.labels": classes,
            "training.steps": steps,
            "training.seconds": seconds,
            "training.batch_size": batch_size,
            "training.lr": lr,
            "training.decay": decay and str(decay),
            "training.seed": seed,
            "training.mixed_precision": mixed_precision and str(mixed_precision),
            "training.microbatches": microbatches,
        }
        recipe = read_recipe(config, given, settings or [], beside(out) if resume else None)
        if write_config is not None:
            write_config.parent.mkdir(parents=True, exist_ok=True)
            recipe.write(write_config)
            return say(f"recipe → {write_config}")
        run(recipe, out, resume, device, metrics, pictures, pictures_every, save_every)


def read_recipe(config: Path | None, given: dict[str, Any], settings: list[str], last: Path | None) -> Recipe:
    """The recipe of a file, or else that of the training to be resumed, or the default one, with everything named put in its place."""
    source = config if config is not None else last if last is not None and last.exists() else None
    base = Recipe() if source is None else Recipe.from_config(read_config(source))
    named = [(place, value) for place, value in given.items() if value is not None]
    return Recipe.from_config(override(base.config(), [*named, *map(setting, settings)]))


def beside(checkpoint: Path) -> Path:
    """Where the recipe of a checkpoint lies."""
    return checkpoint.with_suffix(".json")


def run(
    recipe: Recipe,
    out: Path,
    resume: bool,
    device: DeviceName,
    metrics: Path | None,
    pictures: Path | None,
    pictures_every: int,
    save_every: int,
) -> None:
    """Train by a recipe; the first process alone writes and speaks."""
    from torch.nn import Module

    from .assemble import build, build_objective, train_arguments
    from .scores.neural import train
    from .scores.neural.workers import find_workers

    _check_out(out, resume, recipe)
    score, data = build(recipe)
    objective = build_objective(recipe.objective, score.process)
    workers = find_workers(None)
    if workers.accelerator is None:
        for module in (score, objective):
            if isinstance(module, Module):
                module.to(find_device(device))
    samples = None if pictures is None else _painter(score, pictures, recipe.training.seed)
    workers.wait()  # nothing is written before all have looked
    if workers.first:
        out.parent.mkdir(parents=True, exist_ok=True)
        weights = sum(p.numel() for p in score.network.parameters())
        say(
            f"{type(score.network).__name__} of {weights:,} {plural(weights, 'weight')}, {len(data):,} {plural(len(data), 'row')} of data, "
            f"{score.process}"
        )
    with _other_recipe(out, recipe):
        result = train(
            score,
            data,
            objective=objective,
            **train_arguments(recipe.training),
            checkpoint=out,
            checkpoint_every=save_every,
            resume=resume,
            log=_once(lambda: recipe.write(beside(out))),  # not before data and settings have been found to fit
            progress=True,
            metrics=metrics,
            samples=samples,
            samples_every=pictures_every,
            accelerator=workers.accelerator,
        )
    if workers.first:
        if samples is not None and result.losses and not result.interrupted and result.steps % pictures_every:
            samples(score, result.steps)
        if result.losses or not beside(out).exists():
            recipe.write(beside(out))
        if result.losses or result.interrupted:
            loss = f", loss {result.loss:.4f}" if result.losses else ""
            say(f"{result.steps} {plural(result.steps, 'step')} in {result.seconds:.1f} s{loss} → {out}")
        else:
            say(
                f"Nothing to do: {out} has {result.steps} {plural(result.steps, 'step')} in {result.seconds:.1f} s; "
                "name more --steps or --seconds, in all"
            )
        if result.interrupted:
            say("Interrupted; go on with the same command and --resume")
    if result.interrupted:
        raise typer.Exit(130)


@contextmanager
def _other_recipe(out: Path, recipe: Recipe) -> Iterator[None]:
    """What a checkpoint of another training was told, setting by setting, where its recipe lies beside it."""
    from .scores.neural.resuming import OtherTraining

    try:
        yield
    except OtherTraining as error:
        place = beside(out)
        found = differences(Recipe.read(place), recipe) if place.exists() else []
        if not found:
            raise ValueError(
                f"--resume: {error}. On the command line: name these settings as they were, or train anew under another --out"
            ) from None
        ends = any(line.startswith("training.steps") for line in found)
        hint = "; --set training.decay_steps keeps the end of the learning rate where it was" if ends else ""
        raise ValueError(
            f"--resume: {out} was begun otherwise: {'; '.join(found)}. Leave these out to go on with it as {place} says{hint}, or train "
            "anew under another --out"
        ) from None


def _once(action: Callable[[], None]) -> Callable[[object], None]:
    """A function of anything that acts at its first call."""
    left = [action]
    return lambda _: left.pop()() if left else None


def _check_out(out: Path, resume: bool, recipe: Recipe) -> None:
    if out.is_dir():
        raise ValueError(f"--out: got the folder {out}, expected the name of a file to write")
    if out.suffix == ".json":
        raise ValueError(f"--out: got {out}, where the recipe goes; expected another ending, e.g. .safetensors")
    if out.exists() and not resume:
        raise ValueError(f"--out: {out} exists; go on with it by --resume, or name another file")
    place = beside(out)
    if place.exists():
        try:
            there = Recipe.read(place)
        except (ValueError, OSError):
            raise ValueError(
                f"--out: {place}, where the recipe goes, holds something else; name another file"
            ) from None
        if not resume and there != recipe:
            raise ValueError(
                f"--out: {place}, where the recipe goes, holds another one, which would be lost; name another file"
            )


def _painter(score: NeuralScore, folder: Path, seed: int) -> Callable[[NeuralScore, int], None]:
    """What draws samples into a folder as the training goes on: always the same seeds, one picture per visit."""
    from .brightness import brightness, check_images
    from .labels import every_class
    from .solvers import Heun, karras, sample
    from .validation import pictures

    check_images(score.process.domain.event_shape, "--pictures")
    times = karras(score.process, LEVELS)

    def paint(score: NeuralScore, step: int) -> None:
        device = next(score.network.parameters()).device
        x = sample(
            score.process,
            score,
            Heun(),
            times,
            shape=PICTURED,
            seed=range(seed, seed + PICTURED),
            device=device,
            condition=every_class(score).condition(range(PICTURED), device),
        ).x
        pictures.image_grid(brightness(score, x), folder / f"step_{step:07d}.png", title=f"step {step}")

    return paint
