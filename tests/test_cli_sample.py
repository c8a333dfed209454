"""carom sample: what is written, that it goes on where it stopped, and that nobody's share changes a sample."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from carom import bundled
from carom.brightness import brightness
from carom.cli import app
from carom.domains import Euclidean, Hypercube, RegularSimplex
from carom.journal import Batch, Journal
from carom.labels import Labels, every_class, find_labels
from carom.outputs import ArrayFile, Folder
from carom.processes import EDM, VE, Diffusion
from carom.recipe import Recipe
from carom.sample_command import _turns
from carom.scores.neural import (
    MLP,
    AffineValues,
    Conservative,
    MLPConfig,
    NeuralScore,
    Probabilities,
    affine_values,
    load_data,
)
from carom.scores.neural.stored import Stored

runner = CliRunner()
# the same sample in another batch: a network agrees with itself to rounding, here a few float32 ulps over 5 evaluations
ROUNDING = 1e-5


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, [str(a) for a in arguments], catch_exceptions=True)
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return " ".join(result.output.replace("│", " ").split())


def digits_score() -> NeuralScore:
    """An MLP with random weights that hears the ten classes of the digits."""
    torch.manual_seed(0)
    domain = Hypercube((1, 8, 8))
    network = MLP(MLPConfig((1, 8, 8), 16, 1, classes=10))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    score = NeuralScore(network, Diffusion(domain, VE()))
    score.stored = load_data("digits").on(domain).stored
    return score


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits_score().save("m.safetensors")
    return tmp_path


def sample(*arguments: object, code: int = 0, checkpoint: str = "m.safetensors") -> str:
    return run("sample", checkpoint, "--levels", 3, *arguments, code=code)


# --- stored values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bins", "dtype"), [(17, torch.uint8), (256, torch.uint8), (65536, torch.uint16), (10**6, torch.int64)]
)
def test_levels_come_back_as_whole_numbers(bins, dtype):
    transform = affine_values(Hypercube((4,), -1, 1), bins)
    levels = torch.tensor([0, 1, bins // 2, bins - 1])
    x = transform.forward(levels)
    values = Stored(transform).values(x)
    assert values.dtype == dtype and torch.equal(values.long(), levels)
    x[1] = torch.nan
    assert Stored(transform).values(x).long().tolist() == [0, 0, bins // 2, bins - 1]


def test_reals_and_probabilities_come_back_as_they_were():
    p = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64)).sample((5,))
    stored = Stored(Probabilities(RegularSimplex(3)))
    assert torch.allclose(stored.values(stored.transform.forward(p)), p, atol=1e-14)
    reals = Stored(affine_values(Hypercube((2,)), between=(10.0, 20.0)))
    assert reals.values(torch.tensor([0.0, 0.5])).tolist() == [10.0, 15.0]


def test_what_is_known_of_the_data_travels_in_the_checkpoint(tmp_path):
    score = digits_score()
    score.save(tmp_path / "m.safetensors")
    loaded = NeuralScore.load(tmp_path / "m.safetensors")
    assert loaded.stored == score.stored and loaded.stored.classes == tuple("0123456789")
    assert Stored.from_config(json.loads(json.dumps(score.stored.config()))) == score.stored
    assert Stored.from_config(Stored(AffineValues()).config()) == Stored(AffineValues())
    with pytest.raises(ValueError, match="expected 'transform' and 'classes'"):
        Stored.from_config({"transform": {}})
    score.stored = None
    score.save(tmp_path / "old.safetensors")
    assert NeuralScore.load(tmp_path / "old.safetensors").stored is None


def test_brightness_meets_levels_and_walls():
    score = digits_score()
    x = torch.tensor([0.0, 1.0, 0.49 / 16, torch.nan]).reshape(1, 1, 2, 2)
    assert torch.equal(brightness(score, x)[..., 0, :], torch.tensor([[[0.0, 1.0]]]))
    assert brightness(score, x)[0, 0, 1, 0] == 0 and brightness(score, x).isnan().sum() == 1
    walled = NeuralScore(MLP(MLPConfig((1, 1, 2))), Diffusion(Hypercube((1, 1, 2), -1, 3), VE()))
    assert brightness(walled, torch.tensor([-1.0, 0.0])).tolist() == [[[0.0, 0.25]]]
    open_ = NeuralScore(MLP(MLPConfig((1, 1, 3))), Diffusion(Euclidean((1, 1, 3)), EDM()))
    assert brightness(open_, torch.tensor([-3.0, 0.0, 1.0])).tolist() == [0.0, 0.5, 1.0]


# --- classes --------------------------------------------------------------------------------------------------------------


def test_classes_are_named_by_number_or_word_and_go_round():
    score = digits_score()
    score.stored = Stored(score.stored.transform, ("a", "b", *"cdefghij"))
    assert find_labels(score, "3, b").classes == (3, 1)
    assert find_labels(score, None) == find_labels(score, "all") == every_class(score) == Labels(tuple(range(10)))
    assert find_labels(score, "none").condition([1], "cpu") == {}
    assert Labels((3, 1, 4)).condition(range(2, 6), "cpu")["label"].tolist() == [4, 3, 1, 4]
    plain = NeuralScore(MLP(MLPConfig((2,))), Diffusion(Hypercube((2,)), VE()))
    assert find_labels(plain, None) == find_labels(plain, "none") == Labels()
    inside = Conservative(MLP(MLPConfig((2,), classes=3)))
    assert every_class(NeuralScore(inside, Diffusion(Hypercube((2,)), VE()))).classes == (0, 1, 2)
    for text in ("10", "-1", "z", "1,,2"):
        with pytest.raises(ValueError, match="numbers from 0 to 9, or a, b"):
            find_labels(score, text)
    for text in ("all", "1"):
        with pytest.raises(ValueError, match="hears no classes"):
            find_labels(plain, text)


def test_a_class_makes_the_samples_it_names(here):
    sample("--n", 4, "--classes", "3,7", "--points", "--out", "two.npy")
    sample("--n", 4, "--classes", 7, "--points", "--out", "seven.npy")
    sample("--n", 4, "--classes", "none", "--points", "--out", "none.npy")
    two, seven, none = (np.load(f"{name}.npy") for name in ("two", "seven", "none"))
    assert np.allclose(two[1::2], seven[1::2], atol=ROUNDING)
    for a, b in ((two[::2], seven[::2]), (none, seven)):
        assert abs(a - b).max() > 0.01


# --- what is written ------------------------------------------------------------------------------------------------------


def test_values_are_those_the_data_were_stored_in(here):
    output = sample("--n", 5, "--batch", 2, "--out", "new/x.npy")
    assert "5 samples, 5 evaluations each → new/x.npy" in output
    sample("--n", 5, "--batch", 2, "--points", "--out", "p.npy")
    x, points = np.load("new/x.npy"), np.load("p.npy")
    assert x.dtype == np.uint8 and points.dtype == np.float32 and x.shape == points.shape == (5, 1, 8, 8)
    assert np.array_equal(x, digits_score().stored.transform.quantise(torch.from_numpy(points)).numpy())
    sample("--n", 2, "--points", "--dtype", "float64", "--out", "d.npy")
    assert np.load("d.npy").dtype == np.float64


def test_batches_do_not_matter_but_for_rounding(here):
    for size in (1, 3, 7):
        sample("--n", 7, "--batch", size, "--points", "--seed", 3, "--solver", "euler-maruyama", "--out", f"{size}.npy")
    one, three, seven = (np.load(f"{size}.npy") for size in (1, 3, 7))
    assert np.allclose(one, three, atol=ROUNDING) and np.allclose(one, seven, atol=ROUNDING)


def test_a_folder_has_a_picture_for_each(here):
    from PIL import Image

    sample("--n", 5, "--batch", 2, "--out", "pictures")
    sample("--n", 5, "--batch", 2, "--out", "x.npy")
    names = sorted(p.name for p in Path("pictures").glob("*.png"))
    assert names == [f"{i:06d}.png" for i in range(5)]
    levels = np.load("x.npy")
    for name, values in zip(names, levels, strict=True):
        with Image.open(Path("pictures") / name) as picture:
            # seventeen levels between black and white
            assert np.array_equal(np.asarray(picture), np.round(values[0] / 16 * 255).astype(np.uint8))
    assert "exists; go on by --resume" in sample("--n", 5, "--out", "pictures", code=2)
    sample("--n", 2, "--out", "pictures", "--overwrite")
    assert len(list(Path("pictures").glob("*.png"))) == 2
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("x")
    assert "holds other things than samples" in sample("--out", "mine", "--overwrite", code=2)
    assert Path("mine/thesis.txt").exists()


def test_colour_pictures_keep_their_channels(tmp_path):
    from PIL import Image

    domain = Hypercube((3, 1, 2))
    folder = Folder(tmp_path / "f", NeuralScore(MLP(MLPConfig((3, 1, 2))), Diffusion(domain, VE())), 1)
    folder.begin()
    folder.write(0, torch.tensor([1.0, 0, 0, 1, 0, 0]).reshape(1, 3, 1, 2))
    with Image.open(tmp_path / "f" / "000000.png") as picture:
        assert np.asarray(picture).tolist() == [[[255, 0, 0], [0, 255, 0]]]


def test_one_picture_of_all_leaves_nothing_beside_it(here):
    sample("--n", 5, "--batch", 2, "--out", "s.png")
    sample("--n", 5, "--batch", 2, "--out", "s.png")  # to look at: it may be replaced
    assert sorted(p.name for p in here.iterdir()) == ["m.safetensors", "s.png"]
    assert "at most 1024 in one picture" in sample("--n", 1025, "--out", "s.png", code=2)


def test_rows_are_written_in_place(tmp_path):
    score = digits_score()
    array = ArrayFile(tmp_path / "x.npy", score, 6)
    array.begin()
    assert np.load(tmp_path / "x.npy").shape == (6, 1, 8, 8)
    size = (tmp_path / "x.npy").stat().st_size
    array.write(4, torch.ones(2, 1, 8, 8))
    array.write(1, torch.full((1, 1, 8, 8), 0.5))
    assert np.load(tmp_path / "x.npy")[:, 0, 0, 0].tolist() == [0, 8, 0, 0, 16, 16]
    assert (tmp_path / "x.npy").stat().st_size == size


def test_failures_are_counted_and_shown(here):
    score = digits_score()
    score.network.last.bias.data.fill_(torch.nan)
    score.save("bad.safetensors")
    output = sample("--n", 5, "--batch", 2, "--points", "--out", "x.npy", checkpoint="bad.safetensors")
    assert "5 of 5 samples failed" in output and "became NaN" in output
    assert np.isnan(np.load("x.npy")).all()
    sample("--n", 2, "--out", "y.npy", checkpoint="bad.safetensors")
    assert (np.load("y.npy") == 0).all()


def test_evaluations_of_adaptive_rules_are_a_range(here):
    output = sample("--n", 4, "--batch", 2, "--solver", "adaptive", "--out", "x.npy")
    fewest, most = (int(v) for v in output.split("samples, ")[1].split(" evaluations")[0].split(" to "))
    lines = [json.loads(line) for line in Path("x.npy.journal").read_text().splitlines()[1:]]
    assert fewest == min(v["fewest"] for v in lines) < most == max(v["most"] for v in lines)


# --- going on -------------------------------------------------------------------------------------------------------------


def interrupt_after(monkeypatch, batches: int) -> None:
    """Ctrl-C once so many batches are on disk."""
    write, written = ArrayFile.write, []

    def stop(self, start, x):
        if len(written) == batches:
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, x)

    monkeypatch.setattr(ArrayFile, "write", stop)


@pytest.mark.parametrize("name", ["x.npy", "x.png"])
def test_an_interrupted_run_goes_on_to_the_same_samples(here, monkeypatch, name):
    common = ["--n", 11, "--batch", 3, "--out"]
    sample(*common, f"whole{name[1:]}")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        output = sample(*common, name, code=130)
    assert f"Interrupted with 6 of 11 samples in {name}; go on with the same command and --resume" in output
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)  # exactly what was missing: 9, 10 come third
        assert "Interrupted with 11" not in sample(*common, name, "--resume")
    assert Path(name).read_bytes() == Path(f"whole{name[1:]}").read_bytes()


def test_starting_anew_forgets_what_was_done_before_it_goes(here, monkeypatch):
    for name in ("x.npy", "pictures"):
        sample("--n", 2, "--out", name)
        with monkeypatch.context() as patch:  # a crash right after the old samples are gone
            patch.setattr(Journal, "begin", lambda self: (_ for _ in ()).throw(OSError("disk full")))
            assert "disk full" in sample("--n", 2, "--out", name, "--overwrite", code=2)
        assert "is not there to say what was done" in sample("--n", 2, "--out", name, "--resume", code=2)


def test_done_is_done(here, monkeypatch):
    sample("--n", 4, "--batch", 2, "--out", "x.npy")
    before = Path("x.npy").stat().st_mtime_ns
    interrupt_after(monkeypatch, 0)
    assert "4 samples, 5 evaluations each" in sample("--n", 4, "--batch", 2, "--out", "x.npy", "--resume")
    assert Path("x.npy").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--seed", 1], "seed was 0, now 1"),
        (["--resume", "--n", 5], "n was 4, now 5"),
        (["--resume", "--solver", "euler"], "solver was 'heun', now 'euler'"),
        (["--resume", "--classes", "3"], "classes was"),
        (["--resume", "--out", "y.npy"], "is not there to say what was done"),
        (["--resume", "--out", "gone.npy"], "is no longer there"),
        (["--resume", "--out", "other.npy"], "is no journal of samples"),
        (["--resume", "--overwrite"], "expected one of them"),
        ([], "exists; go on by --resume, or replace it by --overwrite"),
        (["--points", "--out", "x.png"], "expected it for a .npy file"),
        (["--out", "x.gif"], "or a folder, whose name has no ending"),
        (["--classes", "11", "--out", "z.npy"], "expected numbers from 0 to 9, 'all' or 'none'"),
        (["--device", "cuda", "--out", "z.npy"], "torch finds no GPU"),
    ],
)
def test_what_does_not_go_on_is_refused_and_changes_nothing(here, arguments, message):
    if torch.cuda.is_available() and "cuda" in arguments:
        pytest.skip("there is a GPU")
    sample("--n", 4, "--out", "x.npy")
    Path("gone.npy.journal").write_bytes(Path("x.npy.journal").read_bytes())
    Path("other.npy.journal").write_text("[]\n")
    before = {p: p.read_bytes() for p in here.iterdir()}
    given = ["--n", 4, "--out", "x.npy", *arguments]
    assert message in sample(*given, code=2)
    assert {p: p.read_bytes() for p in here.iterdir()} == before


def test_another_checkpoint_of_the_same_name_is_noticed(here):
    sample("--n", 2, "--out", "x.npy")
    score = digits_score()
    score.network.last.bias.data += 1
    score.save("m.safetensors")
    assert "checkpoint was" in sample("--n", 2, "--out", "x.npy", "--resume", code=2)
    sample("--n", 2, "--out", "x.npy", "--overwrite")


def test_a_line_cut_short_counts_for_nothing(tmp_path):
    journal = Journal(tmp_path / "j", {"n": 4, "classes": (1, 2)})
    journal.begin()
    journal.add(Batch(0, 5, 7))
    with open(journal.path, "a") as file:
        file.write('{"batch": 1, "few')
    assert journal.done() == {0: Batch(0, 5, 7)}
    journal.mend()
    journal.mend()
    journal.add(Batch(1, 5, 5, 1, "why"))
    assert journal.done() == {0: Batch(0, 5, 7), 1: Batch(1, 5, 5, 1, "why")}
    journal.check()


def test_every_batch_is_somebodys():
    for count in (1, 2, 3):
        turns = list(_turns([0, 2, 3, 5, 6], count))
        shares = [[turn[rank] for turn in turns if rank < len(turn)] for rank in range(count)]
        assert sorted(b for share in shares for b in share) == [0, 2, 3, 5, 6]
        # nobody waits for more than one batch
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


# --- checkpoints that come along ------------------------------------------------------------------------------------------


def test_without_a_name_the_checkpoint_that_came_along_is_sampled(here, monkeypatch):
    (here / "checkpoints").mkdir()
    Path("m.safetensors").rename("checkpoints/fashion-mnist.safetensors")
    monkeypatch.setattr(bundled.resources, "files", lambda package: here)
    assert bundled.bundled() == ["fashion-mnist"]
    run("sample", "--levels", 2, "--n", 2, "--out", "a.npy")
    run("sample", "fashion-mnist", "--levels", 2, "--n", 2, "--out", "b.npy")
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
    assert "expected a file or one of fashion-mnist" in run("sample", "mnist", code=2)


def test_what_comes_along_is_small_and_has_its_recipe(here):
    for name in bundled.bundled():
        with bundled.find_checkpoint(name) as path:
            assert path.stat().st_size <= 4 * 2**20
            Recipe.read(path.with_suffix(".json"))
        run("sample", name, "--levels", 2, "--n", 1, "--out", f"{name}.npy")
        # written as pictures are stored, not as points
        assert np.load(f"{name}.npy").dtype == np.uint8


def test_an_installation_without_checkpoints_says_so(here, monkeypatch):
    monkeypatch.setattr(bundled.resources, "files", lambda package: here)
    assert "this installation has no checkpoints of its own" in run("sample", code=2)


# --- other processes ------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_processes_make_the_samples_of_one(here):
    """Batches are the same, so samples are, bit for bit at the same number of threads."""
    arguments = [
        "sample",
        "m.safetensors",
        "--levels",
        "3",
        "--n",
        "23",
        "--batch",
        "4",
        "--points",
        "--solver",
        "euler-maruyama",
    ]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_cpu_threads_per_process", "1", "-m", "carom.cli"]
    done = subprocess.run(
        [*launch, *arguments, "--out", "two.npy"], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("23 samples, 3 evaluations each → two.npy") == 1
    run(*arguments, "--out", "one.npy")
    assert np.array_equal(np.load("one.npy"), np.load("two.npy"))
    # and one goes on with what two began
    lines = Path("two.npy.journal").read_text().splitlines(keepends=True)
    Path("two.npy.journal").write_text("".join(lines[:3]))
    run(*arguments, "--out", "two.npy", "--resume")
    assert np.array_equal(np.load("one.npy"), np.load("two.npy"))


@pytest.mark.slow
def test_a_killed_run_goes_on(here):
    arguments = [
        "sample",
        "m.safetensors",
        "--levels",
        "40",
        "--n",
        "400",
        "--batch",
        "8",
        "--points",
        "--out",
        "x.npy",
    ]
    journal = Path("x.npy.journal")
    with subprocess.Popen(
        [sys.executable, "-m", "carom.cli", *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (journal.exists() and journal.read_text().count("\n") > 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = journal.read_text().count('"fewest"')
    assert 3 <= done < 50
    run(*arguments, "--resume")
    run(*arguments[:-1], "whole.npy")
    assert np.array_equal(np.load("x.npy"), np.load("whole.npy"))


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--solver", "hoin", "--solver: got 'hoin' (did you mean heun?), expected one of euler, heun, rk4"),
        ("--solver", "UNIPC2", "(did you mean unipc-2?)"),
        ("--grid", "karass", "--grid: got 'karass' (did you mean karras?), expected one of karras, uniform"),
        ("--wall", "zzz", "--wall: got 'zzz', expected one of default, reflect, project"),
    ],
)
def test_a_name_that_is_not_known_is_told_the_nearest(here, option, name, message):
    assert message in sample("--n", 1, option, name, "--out", "x.npy", code=2)
    assert not Path("x.npy").exists()
