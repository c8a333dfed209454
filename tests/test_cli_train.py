"""carom train: recipes, what their parts become, and that a recipe is the whole training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from carom.assemble import LABEL_DROPOUT, build, build_objective, build_process, train_arguments
from carom.cli import app
from carom.domains import Ball, Euclidean, Hypercube, RegularSimplex, Simplex, Torus
from carom.processes import EDM, VE, VP, Diffusion, Discrete
from carom.recipe import DataRecipe, Recipe, TrainingRecipe, override, read_config, setting
from carom.scores.neural import (
    Bins,
    Cosine,
    DenoisingScoreMatching,
    EDMPreconditioning,
    LogNormal,
    MinSNR,
    NeuralScore,
    SlicedScoreMatching,
    UniformTime,
    VariationalBound,
    checkpoint,
)
from carom.short_names import SHORT, full_spec, short_names

runner = CliRunner()
SMALL = ["--network", "mlp", "--set", "network.width=8", "--set", "network.depth=1"]
GAUSSIAN = ["--domain", "euclidean", "--schedule", "ddpm"]


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, [str(a) for a in arguments], catch_exceptions=True)
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", np.random.default_rng(0).random((64, 3)).astype(np.float32))
    return tmp_path


numbers = st.integers(0, 10**9)
finite = st.floats(allow_nan=False, allow_infinity=False)
optional = lambda values: st.none() | values
data_recipes = st.builds(
    DataRecipe,
    source=st.text(),
    part=optional(st.sampled_from(["train", "test"])),
    size=optional(numbers | st.tuples(numbers, numbers)),
    bins=optional(numbers),
    fit=st.sampled_from(["levels", "bins"]),
    between=optional(st.tuples(finite, finite)),
    dequantise=optional(numbers),
    labels=st.booleans(),
)
training_recipes = st.builds(
    TrainingRecipe,
    steps=numbers,
    seconds=optional(finite),
    lr=finite,
    decay=st.sampled_from(["constant", "cosine"]),
    clip=optional(finite),
    mixed_precision=optional(st.sampled_from(["no", "bf16"])),
    compile=st.booleans(),
)
arguments = st.dictionaries(
    st.text(), st.recursive(st.none() | st.booleans() | finite | st.text(), st.lists, max_leaves=5)
)
specs = lambda part: st.builds(
    lambda more, name: more | {"type": name}, arguments, st.sampled_from(sorted(SHORT[part])) | st.text()
)


@given(
    st.builds(
        Recipe,
        data=data_recipes,
        domain=specs("domain"),
        schedule=optional(specs("schedule")),
        network=specs("network"),
        preconditioning=optional(specs("preconditioning")),
        objective=optional(specs("objective")),
        training=training_recipes,
    )
)
def test_a_recipe_comes_back_equal_from_its_file(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("recipes") / "r.json"
    recipe.write(path)
    assert Recipe.read(path) == recipe
    assert Recipe.from_config(recipe.config()) == recipe
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_toml_says_the_same(tmp_path):
    (tmp_path / "r.toml").write_text(
        'domain = "cube:-1,1"\n[data]\nsource = "digits"\nsize = [8, 8]\n[network]\ntype = "unet"\nchannels = 8\n'
        "[training]\nsteps = 5\nlr = 1\n"
    )
    assert Recipe.read(tmp_path / "r.toml") == Recipe(
        DataRecipe(size=(8, 8)),
        {"type": "Hypercube", "low": -1, "high": 1},
        network={"type": "UNet", "channels": 8},
        training=TrainingRecipe(steps=5, lr=1.0),
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dta": {}}, "unknown settings dta (did you mean data?), expected some of data, domain"),
        (
            {"data": {"sorce": "x"}},
            "data: got unknown settings sorce (did you mean source?), expected some of source, part",
        ),
        ({"data": 3}, "expected an object of settings"),
        ({"training": {"steps": "many"}}, "steps: got 'many', expected a whole number or null"),
        ({"training": {"steps": True}}, "steps: got True"),
        ({"training": {"lr": float("nan")}}, "lr: got nan, expected a number"),
        ({"training": {"decay": "linear"}}, "expected 'constant' or 'cosine'"),
        ({"training": {"decay": "cosine"}}, "expected steps or decay_steps"),
        ({"data": {"size": [1, 2, 3]}}, "size: got"),
        ({"domain": "cub"}, "expected one of cube"),
        ({"domain": "cube:1,2,3"}, "at most 2 numbers"),
        ({"domain": "cube:a"}, "expected numbers after the colon"),
        ({"domain": "cube:true"}, "expected numbers after the colon"),
        ({"domain": None}, "domain: got None, expected an object"),
        ({"network": {"width": 3}}, "without a type"),
        ({"network": 3}, "expected a name or an object with a type"),
        ({"objective": "{"}, "which is no JSON"),
    ],
)
def test_recipes_that_say_nothing_sensible_are_refused(config, message):
    with pytest.raises(ValueError) as error:
        Recipe.from_config(config)
    assert message in str(error.value)


def test_what_is_no_recipe_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file"):
        read_config(tmp_path / "none.json")
    for name, text in (("a.json", "{"), ("b.toml", "a = "), ("c.json", "[1]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="config: got"):
            read_config(tmp_path / name)
    with pytest.raises(ValueError, match="what JSON can say"):
        Recipe(domain={"type": "Hypercube", "low": torch.zeros(2)})


def test_a_short_name_stands_for_a_type_and_numbers():
    assert full_spec("domain", "cube:-1,2.5") == {"type": "Hypercube", "low": -1, "high": 2.5}
    assert full_spec("objective", "min-snr:3") == {"type": "min-snr", "gamma": 3}
    assert full_spec("network", '{"type": "mlp", "width": 4}') == {"type": "MLP", "width": 4}
    assert full_spec("network", {"type": "Mine"}) == {"type": "Mine"}


def test_settings_are_put_in_their_place():
    config = Recipe().config()
    changed = override(
        config, [("network", "dit"), ("network.width", 32), ("training.lr", 0.5), ("schedule", "vp:1,2")]
    )
    recipe = Recipe.from_config(changed)
    assert recipe.network == {"type": "DiT", "width": 32} and recipe.training.lr == 0.5
    assert recipe.schedule == {"type": "VP", "beta_min": 1, "beta_max": 2}
    assert config == Recipe().config()
    assert setting("a.b=[1, 2]") == ("a.b", [1, 2]) and setting("a=b=c") == ("a", "b=c")
    for text in ("a", "=3", "a..b=3"):
        with pytest.raises(ValueError, match="expected NAME=VALUE"):
            setting(text)
    with pytest.raises(ValueError, match="which has no settings"):
        override(config, [("training.lr.x", 1)])


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("cube:-1,1", Hypercube((3,), -1, 1)),
        ("euclidean", Euclidean((3,))),
        ("torus:2", Torus((3,), 2.0)),
        ("ball:2", Ball(3, 2.0)),
        ("simplex", Simplex(3)),
        ("regular-simplex", RegularSimplex(3)),
    ],
)
def test_a_domain_takes_its_shape_from_the_data(here, domain, expected):
    x = np.random.default_rng(0).dirichlet(np.ones(3), 16)
    np.save("p.npy", x)
    score, data = build(Recipe(DataRecipe("p.npy"), full_spec("domain", domain), network={"type": "MLP"}))
    assert score.process.domain.config() == expected.config()
    x0 = data.tensor()
    expected.check(x0, "x0")
    # rows of probabilities on simplices, points elsewhere: stored values come back to float32 rounding
    assert np.allclose(score.stored is None and data.stored.values(x0).numpy(), x, atol=1e-6)


def test_schedules_and_preconditionings_follow_the_domain_or_the_recipe(here):
    made = lambda **more: build(Recipe(DataRecipe("points.npy"), network={"type": "MLP"}, **more))[0]
    assert isinstance(made().process.schedule, VE)
    open_ = made(domain=full_spec("domain", "euclidean"))
    assert isinstance(open_.process.schedule, EDM) and isinstance(open_.preconditioning, EDMPreconditioning)
    both = made(
        domain=full_spec("domain", "euclidean"),
        schedule=full_spec("schedule", "vp:0.2,10"),
        preconditioning=full_spec("preconditioning", "edm:0.3,0.5"),
    )
    assert both.process.schedule.config() == VP(0.2, 10).config()
    assert both.preconditioning.config() == {"type": "EDMPreconditioning", "sigma_data": 0.3, "mean": 0.5}


def test_networks_take_shapes_and_classes_from_the_data():
    labelled = DataRecipe(labels=True)
    for name in ("unet", "dit", "mlp"):
        score, data = build(Recipe(labelled, network=full_spec("network", name)))
        assert score.network.config.classes == 10 and score.network.config.label_dropout == LABEL_DROPOUT
        x, label = data[0]
        score(x.unsqueeze(0), 0.5, label=label.reshape(1))
    score, _ = build(Recipe(network={"type": "Conservative", "network": {"type": "unet", "heads": 0}}))
    assert type(score.network.network).__name__ == "UNet"
    assert build(Recipe(network={"type": "Conservative"}))[0].network.network.config.event_shape == (1, 8, 8)
    given = {"type": "UNet", "label_dropout": 0.5}
    assert build(Recipe(labelled, network=given))[0].network.config.label_dropout == 0.5


def test_initial_weights_are_a_function_of_the_seed():
    one, again, other = (
        build(Recipe(training=TrainingRecipe(seed=seed)))[0].network.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_objectives_are_those_of_the_library():
    process = Diffusion(Hypercube((2,)), VE())
    make = lambda spec: build_objective(full_spec("objective", spec), process)
    assert build_objective(None, process) is None
    assert make("min-snr:3") == DenoisingScoreMatching.min_snr(process, 3)
    assert make("edm:-2,1") == DenoisingScoreMatching.edm(-2, 1)
    assert make("sliced:4") == SlicedScoreMatching(probes=4)
    levels = {"type": "LogNormal", "mean": -1.0}
    assert make({"type": "denoising", "levels": levels, "weight": {"type": "MinSNR"}}) == DenoisingScoreMatching(
        LogNormal(-1.0), MinSNR()
    )
    assert make({"type": "denoising", "levels": {"type": "UniformTime"}}).levels == UniformTime.of(process)
    with pytest.raises(ValueError, match="unknown arguments gama"):
        make({"type": "min-snr", "gama": 3})
    with pytest.raises(ValueError, match="expected one of bound, denoising"):
        make({"type": "guesswork"})
    with pytest.raises(ValueError, match="expected an object with a type"):
        make({"type": "denoising", "levels": 3})


def test_the_learning_rate_ends_with_the_steps():
    constant, falling = TrainingRecipe(lr=0.5), TrainingRecipe(steps=10, lr=0.5, decay="cosine", final_lr=0.1)
    assert train_arguments(constant)["lr"] == 0.5 and train_arguments(constant)["seconds"] == 90.0
    assert train_arguments(falling)["lr"] == Cosine(0.5, 10, 0.1) and train_arguments(falling)["seconds"] is None
    assert train_arguments(TrainingRecipe(decay="cosine", decay_steps=7))["lr"].steps == 7


@pytest.mark.parametrize("objective", sorted(SHORT["objective"].keys() - {"vdm", "bound"}))
def test_every_objective_trains(here, objective):
    run("train", "--data", "points.npy", *SMALL, "--objective", objective, "--steps", 2, "--batch-size", 8)
    assert Recipe.read("model.json").objective == full_spec("objective", objective)
    assert NeuralScore.load("model.safetensors").stored is not None


def test_a_schedule_is_trained_along_and_goes_on(here):
    learned = ["--domain", "euclidean", "--schedule", "learned", "--objective", "vdm"]
    run("train", "--data", "points.npy", *SMALL, *learned, "--steps", 2, "--batch-size", 8)
    assert "4 steps in" in run("train", "--resume", "--steps", 4)
    assert type(NeuralScore.load("model.safetensors").process.schedule).__name__ == "Learned"
    run("sample", "model.safetensors", "--levels", 2, "--n", 2, "--out", "x.npy")


def test_a_recipe_is_the_whole_training(here):
    run(
        "train",
        "--data",
        "points.npy",
        *SMALL,
        "--steps",
        3,
        "--seed",
        5,
        "--lr",
        0.01,
        "--decay",
        "cosine",
        "--batch-size",
        8,
    )
    run("train", "--config", "model.json", "--out", "again.safetensors")
    assert Recipe.read("again.json") == Recipe.read("model.json")
    one, two = load_file("model.safetensors"), load_file("again.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_options_come_after_the_file_and_settings_after_both(here):
    Recipe(DataRecipe("points.npy"), network={"type": "MLP"}, training=TrainingRecipe(steps=9, lr=0.5)).write("a.json")
    out = run(
        "train", "--config", "a.json", "--steps", 4, "--low", -1, "--no-classes",
        "--set", "training.lr=0.25", "--set", "network.width=16", "--write-config", "new/b.json",
    )  # fmt: skip
    assert "b.json" in out and not Path("model.safetensors").exists()
    recipe = Recipe.read("new/b.json")
    assert recipe.training == TrainingRecipe(steps=4, lr=0.25) and recipe.network == {"type": "MLP", "width": 16}
    assert recipe.domain == {"type": "Hypercube", "low": -1.0} and recipe.data == DataRecipe("points.npy")


def test_resuming_needs_no_more_than_what_changes(here):
    run("train", "--data", "points.npy", *SMALL, "--steps", 2, "--batch-size", 8)
    assert "4 steps in" in run("train", "--resume", "--steps", 4)
    assert Recipe.read("model.json").training.steps == 4
    before = Path("model.json").read_bytes()
    text = run(
        "train",
        "--resume",
        "--steps",
        6,
        "--batch-size",
        16,
        "--set",
        "network.width=4",
        "--objective",
        "simple",
        code=2,
    )
    assert "--resume: model.safetensors was begun otherwise: " in text
    for line in (
        "training.batch_size: 8 there, 16 asked",
        "network.width: 8 there, 4 asked",
        'objective.type: null there, "simple" asked',
    ):
        assert line in text
    assert "training.steps" not in text and "as model.json says, or train anew under another --out" in text
    assert Path("model.json").read_bytes() == before


@pytest.mark.parametrize("steps", [2, 1])
def test_a_budget_that_is_spent_leaves_nothing_to_do(here, steps):
    run("train", "--data", "points.npy", *SMALL, "--steps", 2, "--batch-size", 8)
    before = Path("model.json").read_bytes()
    out = run("train", "--resume", "--steps", steps)
    assert "Nothing to do: model.safetensors has 2 steps" in out and "nan" not in out
    assert Path("model.json").read_bytes() == before


def test_labels_metrics_and_pictures(here):
    run(
        "train", "--classes", "--steps", 4, "--batch-size", 8, "--set", "network.channels=4", "--set", "network.heads=0",
        "--set", "network.multipliers=[1]", "--metrics", "m.jsonl", "--pictures", "p", "--pictures-every", 2,
    )  # fmt: skip
    assert sorted(p.name for p in Path("p").iterdir()) == ["step_0000002.png", "step_0000004.png"]
    lines = [json.loads(line) for line in Path("m.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4 and lines[-1]["loss"] > 0
    with safe_open("model.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    assert header["network"]["classes"] == 10 and header["data"]["classes"] == list("0123456789")
    assert header["data"]["transform"]["bins"] == 17


def test_a_file_without_word_of_its_data_still_resumes(here):
    from carom.scores.neural import MLP, MLPConfig, load_data, train

    data = load_data("points.npy").on(Hypercube((3,)))
    new = lambda: NeuralScore(MLP(MLPConfig((3,), 8, 1)), Diffusion(Hypercube((3,)), VE()))
    train(new(), data.tensor(), steps=1, checkpoint="old.safetensors", progress=False)
    assert NeuralScore.load("old.safetensors").stored is None
    score = new()
    assert train(score, data, steps=2, checkpoint="old.safetensors", resume=True, progress=False).steps == 2
    assert NeuralScore.load("old.safetensors").stored == score.stored == data.stored
    # nor is it forgotten by who does not say it
    score = new()
    train(score, data.tensor(), steps=3, checkpoint="old.safetensors", resume=True, progress=False)
    assert NeuralScore.load("old.safetensors").stored == data.stored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "dit", "--data", "points.npy"], "--network dit: got data of event shape (3,)"),
        (["--network", "equivariant", "--data", "points.npy"], "expected --domain regular-simplex"),
        (["--data", "grey.npy"], "--set data.layout=HW"),
        (["--data", "colour.npy"], "--set data.layout=HWC"),
        (["--network", "mlp", "--data", "points.npy", "--classes"], "which has no labels"),
        (["--network", "mlp", "--data", "points.npy", "--pictures", "p"], "expected images [C, H, W]"),
        (["--network", "mlp", "--set", "network.wdith=3"], "unknown settings wdith"),
        (["--domain", "euclidean", "--low", "0"], "unknown arguments low"),
        (["--set", "training.stpes=3"], "unknown settings stpes"),
        (["--config", "none.json"], "which is no file"),
        (["--out", "x.json"], "where the recipe goes"),
        (["--out", "package.safetensors"], "package.json, where the recipe goes, holds something else"),
        (["--device", "cuda"], "torch finds no GPU"),
        (["--objective", "guess"], "expected one of denoising"),
        (["--objective", "denosing"], "--objective: got 'denosing' (did you mean denoising?)"),
        (["--set", "training.bach_size=3"], "unknown settings bach_size (did you mean batch_size?)"),
        (["--set", "data.between=0,4"], "data.between: got '0,4', expected [a number, a number] or null"),
        (["--set", "data.between=[0,4]"], "--set data.between: got it for data of 17 levels"),
        (["--objective", "vdm"], "--objective vdm: got Diffusion(Hypercube"),
        (["--objective", "vdm", "--domain", "euclidean"], "expected --schedule learned --domain euclidean"),
        (["--objective", "bound"], "expected --schedule ddpm --domain euclidean"),
        (["--schedule", "learned"], "on the command line --schedule ve, or --domain euclidean"),
        (
            ["--schedule", "ddpm:10", "--domain", "euclidean"],
            "got 10 steps, expected a whole number above beta_max = 20",
        ),
        (
            ["--schedule", '{"type": "ddpm", "step": 9}'],
            "--schedule ddpm: got unknown arguments step, expected a subset of",
        ),
        (["--schedule", '{"type": "ddpm", "beta_max": "x"}'], "--schedule ddpm: beta_max: got 'x', expected a number"),
        (["--schedule", "ddpm:100,-5"], "--schedule ddpm: beta_min: got -5, expected a finite number in (0, inf]"),
        (
            [*GAUSSIAN, "--objective", '{"type": "bound", "bins": {"cuont": 4}}'],
            "objective bins: got unknown arguments cuont, expected a subset of count, high, low",
        ),
    ],
)
def test_refusals_are_one_clear_line_and_leave_nothing(here, arguments, message):
    if torch.cuda.is_available() and "cuda" in arguments:
        pytest.skip("there is a GPU")
    Path("package.json").write_text('{"name": "mine"}')
    np.save("grey.npy", np.zeros((4, 8, 8), np.uint8))
    np.save("colour.npy", np.zeros((4, 8, 8, 3), np.uint8))
    before = {p: p.read_bytes() for p in here.iterdir()}
    assert message in run("train", "--steps", 1, *arguments, code=2)
    assert {p: p.read_bytes() for p in here.iterdir()} == before


def test_a_recipe_of_ones_own_is_not_written_over(here):
    """Neither by options that change it, nor by a training of another ending beside it, nor by one that is refused."""
    run("train", "--data", "points.npy", *SMALL, "--steps", 2, "--write-config", "mine.json")
    before = Path("mine.json").read_bytes()
    for arguments in (["--seed", 3, "--out", "mine.safetensors"], ["--out", "mine.pt", "--steps", 1]):
        text = run("train", "--config", "mine.json", *arguments, code=2)
        assert "mine.json, where the recipe goes, holds another one, which would be lost" in text
        assert Path("mine.json").read_bytes() == before
    np.save("points.npy", np.full((8, 3), 7.0, dtype=np.float32))
    run("train", "--config", "mine.json", "--out", "other.safetensors", code=2)  # values outside the cube
    assert not Path("other.json").exists()
    assert Path("mine.json").read_bytes() == before


def test_a_learning_rate_that_ends_with_the_steps_says_what_keeps_its_end(here):
    run("train", "--data", "points.npy", *SMALL, "--steps", 2, "--decay", "cosine", "--batch-size", 8)
    text = run("train", "--resume", "--steps", 4, code=2)
    assert "training.steps: 2 there, 4 asked" in text and "--set training.decay_steps keeps the end" in text
    assert "4 steps in" in run("train", "--resume", "--steps", 4, "--set", "training.decay_steps=2")


def test_a_checkpoint_whose_recipe_is_gone_still_says_what_differs(here):
    run("train", "--data", "points.npy", *SMALL, "--steps", 2, "--batch-size", 8)
    Path("model.json").rename("kept.json")
    text = run("train", "--config", "kept.json", "--resume", "--steps", 4, "--batch-size", 4, code=2)
    assert "batch_size is 8 there and 4 here" in text and "train anew under another --out" in text


def test_a_table_takes_more_steps_than_its_largest_beta():
    """beta_max/steps is the last β, and lies below 1."""
    with pytest.raises(ValueError, match="got 20 steps, expected a whole number above beta_max = 20"):
        build_process(Euclidean((1,)), {"type": "ddpm", "steps": 20})
    assert len(build_process(Euclidean((1,)), {"type": "ddpm", "steps": 21}).schedule.alphas_cumprod) == 21


def test_the_bound_of_ddpm_trains_and_samples(here):
    table = ["--domain", "euclidean", "--schedule", "ddpm:40", "--objective", "bound"]
    run("train", "--data", "points.npy", *SMALL, *table, "--steps", 2, "--batch-size", 8)
    process = NeuralScore.load("model.safetensors").process
    assert torch.equal(process.schedule.alphas_cumprod, Discrete.ddpm(40).alphas_cumprod)
    assert "2 samples, " in run("sample", "model.safetensors", "--levels", 3, "--n", 2, "--out", "x.npy")
    assert np.isfinite(np.load("x.npy")).all()
    assert build_objective({"type": "bound", "bins": 17}, process) == VariationalBound(bins=Bins(17))
    given = {"type": "bound", "variance": "beta", "bins": {"count": 4, "low": 0.0, "high": 3.0}}
    assert build_objective(given, process) == VariationalBound("beta", Bins(4, 0.0, 3.0))
    assert "ddpm[:steps,beta_min,beta_max]" in short_names("schedule") and "bound" in short_names("objective")


def test_the_checkpoint_is_saved_and_pictures_drawn_at_intervals_of_their_own(here, monkeypatch):
    saved = []
    write = checkpoint.write
    monkeypatch.setattr(
        checkpoint,
        "write",
        lambda path, header, *rest: saved.append(header["training"]["step"]) or write(path, header, *rest),
    )
    small = ["--set", "network.channels=4", "--set", "network.heads=0", "--set", "network.multipliers=[1]"]
    run("train", *small, "--steps", 5, "--batch-size", 8, "--save-every", 2, "--pictures", "p", "--pictures-every", 3)
    assert saved == [2, 4, 5]
    assert sorted(p.name for p in Path("p").iterdir()) == ["step_0000003.png", "step_0000005.png"]
    run("train", "--resume", "--steps", 5, "--pictures", "none")
    assert not Path("none").exists()  # nothing was trained, nothing is drawn


FITTING = [
    (
        "wide.npy",
        [],
        "91 of 192 values outside",
        "Try --domain cube:-1,1 for walls there, or --set data.between=[-1,1]",
        ["--domain", "cube:-1,1"],
    ),
    (
        "wide.npy",
        ["--set", "data.between=[0,1]"],
        "expected in [0, 1]",
        "Try --set data.between=[-1,1]",
        ["--set", "data.between=[-1,1]"],
    ),
    (
        "whole.npy",
        [],
        "without their number of levels",
        "Try --set data.bins=5 or --set data.between=[0,4]",
        ["--set", "data.bins=5"],
    ),
    (
        "whole.npy",
        ["--set", "data.bins=3"],
        "whole numbers in [0, 2]",
        "Try --set data.bins=5",
        ["--set", "data.between=[0,4]"],
    ),
    ("wide.npy", ["--domain", "ball:1"], "samples lie outside", "Try --domain ball:2", ["--domain", "ball:2"]),
    (
        "wide.npy",
        ["--domain", "orthant"],
        "samples lie outside",
        "Try another --domain, e.g. euclidean",
        ["--domain", "euclidean"],
    ),
]


@pytest.mark.parametrize(("file", "arguments", "problem", "advice", "options"), FITTING)
def test_data_that_do_not_fit_are_told_the_options_that_would_and_these_do(
    here, file, arguments, problem, advice, options
):
    random = np.random.default_rng(0)
    random.random((64, 3))  # what the points of the fixture took
    np.save("wide.npy", random.random((64, 3)).astype(np.float32) * 2 - 1)
    np.save("whole.npy", np.arange(60).reshape(20, 3) % 5)
    train = ["train", "--data", file, *SMALL, "--steps", 1, "--batch-size", 4]
    text = run(*train, *arguments, code=2)
    assert f"--data {file}: " in text and problem in text and advice in text
    assert "1 step in" in run(*train, *options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_are_no_numbers_get_no_advice_about_walls(here, bad):
    x = np.zeros((4, 3), np.float32)
    x[2, 1] = bad
    np.save("bad.npy", x)
    text = run("train", "--data", "bad.npy", *SMALL, "--steps", 1, code=2)
    assert f"--data bad.npy: values: got 1 of 12 values that are NaN or infinite, the first {bad:g} at (2, 1)" in text
    assert "Try" not in text


def test_one_row_is_one_row(here):
    np.save("one.npy", np.full((1, 3), 0.5, np.float32))
    assert "1 row of data" in run("train", "--data", "one.npy", *SMALL, "--steps", 1, "--batch-size", 1)
    run("train", "--data", "points.npy", *SMALL, "--steps", 1, "--out", "b.safetensors")
    assert "1 sample, " in run("sample", "b.safetensors", "--levels", 2, "--n", 1, "--out", "x.npy")
