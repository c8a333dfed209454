"""The solver protocol: a step rule is a plan of coefficients and a pure function that uses them.

To add a solver, derive from :class:`Solver`, state its facts (``order``, ``accepts``, …) and give

* ``plan(equation, times)``: one :class:`Record` per step, with every coefficient that depends on the grid alone, computed
  in float64 for the whole grid at once;
* ``step(equation, x, record, state, noise)``: tensor operations only, no ``.item()``, no branch on values. Coefficients,
  ``record.t`` and ``record.s`` arrive as 0-d tensors of x's dtype and device; ``state`` is ``()`` at first and is returned anew.

``carom.validation.check_solver`` then measures whether the order is reached.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..processes import ODE, SDE, Equation, ForwardSDE, ProbabilityFlow, ReverseSDE, Wall

# a float in a plan, a 0-d tensor of x's dtype and device in a step
Number = Any
_LONGEST = 60  # characters of an argument in a representation
DETERMINISTIC: tuple[type[Equation], ...] = (ProbabilityFlow, ODE)
STOCHASTIC: tuple[type[Equation], ...] = (ReverseSDE, ForwardSDE, SDE)


class Record(NamedTuple):
    """What one step from t to s needs. ``coefficients`` is a nest of tuples of floats; ``None`` stands for a zero left out."""

    t: Number
    s: Number
    coefficients: tuple = ()
    draws: int = 0
    evaluations: int = 1


class Row(NamedTuple):
    """A linear combination keep·x + Σ weights[j]·terms[j]; ``keep`` None means 1, a weight None means 0."""

    keep: Number | None
    weights: tuple[Number | None, ...]

    @classmethod
    def of(cls, keep: float, *weights: float) -> Row:
        """The row of these numbers, with ones and zeros left out."""
        return cls(None if keep == 1.0 else keep, tuple(None if w == 0.0 else w for w in weights))


def combine(row: Row, x: Tensor, terms: Sequence[Tensor | None]) -> Tensor:
    """keep·x + Σ weights[j]·terms[j], with one pass over memory per term."""
    out = x if row.keep is None else row.keep * x
    for weight, term in zip(row.weights, terms, strict=False):
        if weight is None or term is None:
            continue
        # the first sum makes a tensor of our own; later ones may then work in place
        out = torch.addcmul(out, _like(weight, term), term) if out is x else out.addcmul_(_like(weight, term), term)
    return out


def _like(weight: Number, term: Tensor) -> Tensor:
    return weight if isinstance(weight, Tensor) else torch.as_tensor(weight, dtype=term.dtype, device=term.device)


def bind(records: Sequence[Record], x: Tensor) -> list[Record]:
    """The records with every float as a 0-d tensor of x's dtype and device, in one transfer."""
    numbers: list[float] = []
    _gather(records, numbers)
    tensors = iter(torch.tensor(numbers, dtype=torch.float64).to(x.dtype).to(x.device).unbind() if numbers else ())
    return [_scatter(record, tensors) for record in records]


def _gather(node: Any, into: list[float]) -> None:
    if isinstance(node, float):
        into.append(node)
    elif isinstance(node, (tuple, list)):
        for child in node:
            _gather(child, into)


def _scatter(node: Any, tensors: Any) -> Any:
    if isinstance(node, float):
        return next(tensors)
    if isinstance(node, tuple):
        children = [_scatter(child, tensors) for child in node]
        return type(node)(*children) if hasattr(node, "_fields") else tuple(children)
    return node


class Solver(ABC):
    """A step rule. Its facts are read by the loop, by the tests and by the solver table.

    Facts:
        order: measured order of convergence (for stochastic rules the weak order); None for Markov chains at a fixed step, whose law
            is a stationary one.
        weak_order, strong_order: for stochastic rules; ``None`` otherwise.
        accepts: equation classes; the first is what :func:`carom.solvers.sample` builds.
        stochastic: whether it draws noise.
        adaptive: whether it chooses its own steps within [t, s]; its ``noise`` argument is then the open noise source.
        multistage: whether it reads the field at more than one state per step or keeps a history.
        reads_predictions: whether it may start where the scale is 0, from a score's own predictions.
        wall: the wall it prefers on domains that have one, or ``None`` for the default.
        evaluations, order_note: field evaluations per step, and the order in words where an argument decides, for the table.
        source: the paper and equation.
    """

    order: float | None
    weak_order: float | None = None
    strong_order: float | None = None
    accepts: tuple[type[Equation], ...]
    stochastic: bool = False
    adaptive: bool = False
    multistage: bool = False
    reads_predictions: bool = False
    wall: Wall | None = None
    evaluations: str = "1"
    order_note: str = ""
    source: str = ""
    _arguments: tuple[tuple, dict[str, Any]] = ((), {})

    @abstractmethod
    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        """One record per step of the float64 CPU grid ``times``; coefficients are Python floats."""

    @abstractmethod
    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        """One move from record.t to record.s, before the wall; (x, state)."""

    def report(self, state: Any, records: Sequence[Record]) -> dict[str, Any]:
        """What the solver says of a finished run: ``nfe`` and, per sample, ``status``; adaptive rules read it off their state."""
        return {"nfe": sum(record.evaluations for record in records)}

    @classmethod
    def facts(cls) -> dict[str, str]:
        """One line of the solver table."""
        order = (
            f"weak {cls.weak_order:g}, strong {cls.strong_order:g}"
            if cls.weak_order and cls.strong_order
            else cls.order
        )
        return {
            "solver": cls.__name__,
            "for": ", ".join(c.__name__ for c in cls.accepts),
            "order": cls.order_note or f"{order}",
            "evaluations": cls.evaluations,
            "noise": "yes" if cls.stochastic else "no",
            "source": cls.source,
        }

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _remembering(cls.__init__)  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """As it was made: the first argument, and those that differ from their defaults, so that two rules that differ read so."""
        args, named = self._arguments
        if type(self).__init__ is object.__init__:
            return f"{type(self).__name__}()"
        signature = inspect.signature(type(self).__init__)
        bound = signature.bind(self, *args, **named)
        bound.apply_defaults()
        shown: list[str] = []
        for k, (name, value) in enumerate(list(bound.arguments.items())[1:]):
            parameter = signature.parameters[name]
            if parameter.kind is parameter.VAR_KEYWORD:
                shown += [f"{key}={_shown(v)}" for key, v in value.items()]
            elif k == 0 or not _same(value, parameter.default):
                positional = (
                    len(shown) == k and not isinstance(value, bool) and parameter.kind is not parameter.KEYWORD_ONLY
                )
                shown.append(_shown(value) if positional else f"{name}={_shown(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def remember(self: Any, *args: Any, **named: Any) -> None:
        self.__dict__.setdefault("_arguments", (args, named))  # the outermost call comes first
        init(self, *args, **named)

    return remember


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, (int, float, str)) and value == default)


def _shown(value: Any) -> str:
    """Numbers shortly, tables and functions by their names, nothing long."""
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    if isinstance(name, str):
        return name
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= _LONGEST else f"{type(value).__name__}(…)"
