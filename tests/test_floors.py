"""The floors of the house: imports point down, the lower floors stay light, nothing unpickles.

Read from the sources, so that imports inside functions and under TYPE_CHECKING count as well.
"""

import ast
import importlib
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"domains": 1, "processes": 2, "solvers": 3, "scores": 4, "validation": 5, "carom": 6}
SOURCES = sorted(path for folder in FLOORS for path in (ROOT / folder).rglob("*.py"))
# Extras: a user who has not asked for them must be able to import everything.
OPTIONAL = ("matplotlib", "sklearn", "PIL", "accelerate", "diffusers", "hypothesis", "pytest")
# Modules whose files run code when they are read.
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def package_of(path: Path) -> str:
    """The package a file of the checkout belongs to once installed: scores/neural/unet.py is in carom.scores.neural."""
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(parts if parts[0] == "carom" else ("carom", *parts))


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything imported, down to the single name: `from .. import a` is carom.a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def floor_of(name: str) -> str | None:
    """The folder an absolute name is found in, or None if it is not ours. carom.cli is in carom."""
    parts = name.split(".")
    if parts[0] != "carom":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "carom"


def weights_only_loads(tree: ast.AST) -> list[ast.AST]:
    """The `torch.load` of every `torch.load(…, weights_only=True)`, which reads tensors and containers and runs no code."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    return [
        call.func
        for call in calls
        if any(
            word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True
            for word in call.keywords
        )
    ]


def faults(source: str, package: str) -> list[str]:
    """What a source file of this package does that the house does not allow."""
    tree, here, found = ast.parse(source), floor_of(package), []
    for line, name in imported(tree, package):
        there = floor_of(name)
        if there is not None and FLOORS[there] > FLOORS[here]:
            found.append(f"line {line}: {here} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
        if there is None and name.split(".")[0] in FLOORS:
            found.append(f"line {line}: {name} exists in the checkout only; it is installed as carom.{name}")
        if name.split(".")[0] in UNPICKLERS or name in ("torch.load", "torch.save"):
            found.append(f"line {line}: imports {name}; files are safetensors and JSON, which run no code")
    harmless = weights_only_loads(tree)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node) in ("torch.load", "torch.save")
            and node not in harmless
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)}; files are safetensors and JSON, which run no code")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_nothing_unpickles(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8"), package_of(path)) == []


@pytest.mark.parametrize(
    ("package", "source", "allowed"),
    [
        ("carom.solvers", "from ..domains import Domain", True),
        ("carom.solvers", "from .loop import solve", True),
        ("carom.solvers", "from ..scores import NeuralScore", False),
        ("carom.solvers", "from .. import scores", False),
        ("carom.solvers", "def f():\n    import carom.scores.neural", False),
        ("carom.solvers", "from carom import cli", False),
        ("carom.solvers", "from processes import VP", False),
        ("carom.domains", "from ..processes.schedules import VP", False),
        ("carom.scores.neural", "from ...solvers import solve", True),
        ("carom.scores.neural", "from ..guided import Energy", True),
        ("carom.scores.neural", "from ...validation import problems", False),
        ("carom", "from .validation import report", True),
        ("carom.scores.neural", "import pickle", False),
        ("carom.scores", "import torch\nx = torch.load('x', weights_only=True)", True),
        ("carom.scores", "import torch\nx = torch.load('x')", False),
        ("carom.scores", "import torch\nx = torch.load('x', weights_only=False)", False),
        ("carom.scores", "import torch\nx = torch.load('x', weights_only=flag)", False),
        ("carom.scores", "import torch\nload = torch.load\nx = load('x', weights_only=True)", False),
        ("carom.scores.neural", "from torch import load", False),
        ("carom.scores.neural", "from safetensors.torch import load_file", True),
    ],
)
def test_the_checker_itself(package: str, source: str, allowed: bool) -> None:
    assert (faults(source, package) == []) == allowed


def test_every_folder_with_sources_is_packaged() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert {package_of(path) for path in SOURCES} <= set(listed["packages"])
    assert {name: str((ROOT / folder).relative_to(ROOT)) for name, folder in listed["package-dir"].items()} == {
        name: name.removeprefix("carom.").replace(".", "/") for name in listed["packages"]
    }


def test_importing_a_floor_loads_nothing_above_it_and_no_extra(tmp_path: Path) -> None:
    """One fresh interpreter climbs the stairs; the empty folder keeps the checkout itself out of sys.path."""
    stairs = [folder for folder in FLOORS if (ROOT / folder / "__init__.py").exists()]
    program = f"""
import importlib, sys
above = {stairs!r}
while above:
    folder = above.pop(0)
    importlib.import_module("carom" if folder == "carom" else "carom." + folder)
    early = [name for name in above if "carom." + name in sys.modules]
    extra = [name for name in {OPTIONAL!r} if name in sys.modules]
    if early or extra:
        sys.exit(f"importing {{folder}} loads {{early + extra}}")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", sorted({package_of(path) for path in SOURCES}))
def test_what_a_package_hands_on_is_there_and_named_once(package: str) -> None:
    """``from package import *`` fails on a name that is not there."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", ())
    assert not [name for name in names if not hasattr(module, name)]
    assert len(names) == len(set(names))


def test_torchvision_is_absent() -> None:
    """Beside a CPU build of torch it breaks on import, and takes torchmetrics and diffusers with it."""
    assert importlib.util.find_spec("torchvision") is None
