"""Laws: what every domain, schedule and solver must obey, as functions to run on an object of your own.

>>> check_domain(MyDomain())                        # silent, or LawError: "MyDomain(): law 'project is nearest': got …, expected …"
>>> print(check_solver(MySolver(), raises=False))   # one line per law

The laws themselves are in ``domain_laws``, ``kernel_laws``, ``schedule_laws`` and ``solver_laws``; each is a function whose docstring
states it, and which calls :func:`require`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class LawError(AssertionError):
    """A law does not hold. ``law``, ``subject``, ``detail`` say which, of what, and what was got and expected."""

    def __init__(self, subject: str, law: str, detail: str):
        super().__init__(f"{subject}: law '{law}': {detail}")
        self.subject, self.law, self.detail = subject, law, detail


class Violation(Exception):
    """Raised inside a law by :func:`require`; the runner adds the law's name and the subject."""


@dataclass(frozen=True)
class Law:
    """The outcome of one law: its name, whether it holds, and what was measured or what went wrong."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The outcomes of all laws for one subject; true where all hold, printable."""

    subject: str
    laws: tuple[Law, ...]

    @property
    def ok(self) -> bool:
        return all(law.ok for law in self.laws)

    @property
    def failures(self) -> tuple[Law, ...]:
        return tuple(law for law in self.laws if not law.ok)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        width = max((len(law.name) for law in self.laws), default=0)
        lines = [f"  {'ok  ' if law.ok else 'FAIL'} {law.name:{width}}  {law.detail}".rstrip() for law in self.laws]
        return "\n".join([self.subject, *lines])


def require(holds: bool | Tensor, got: Any, expected: Any) -> None:
    """Raise a :class:`Violation` that says what was got and expected unless ``holds`` (everywhere)."""
    if not (bool(holds.all()) if isinstance(holds, Tensor) else holds):
        raise Violation(f"got {_text(got)}, expected {_text(expected)}")


def require_close(got: Tensor, expected: Tensor | float, tolerance: Tensor | float, what: str) -> None:
    """Require |got − expected| ≤ tolerance everywhere; the worst place is named. NaN is never close."""
    expected = torch.as_tensor(expected, dtype=got.dtype)
    require(got.shape == torch.broadcast_shapes(got.shape, expected.shape), tuple(got.shape), tuple(expected.shape))
    excess = (got - expected).abs() - torch.as_tensor(tolerance, dtype=got.dtype)
    excess = torch.where(excess.isnan() & ~(got == expected), torch.inf, excess).nan_to_num(nan=0.0, posinf=torch.inf)
    if excess.numel() and bool((excess > 0).any()):
        i = int(excess.flatten().argmax())
        a, b = (torch.broadcast_to(v, excess.shape).flatten()[i].item() for v in (got, expected))
        raise Violation(f"got {what} = {a:.9g}, expected {b:.9g} (difference {abs(a - b):.2g})")


def require_equal(got: Tensor, expected: Tensor, what: str) -> None:
    """Require equality to the bit, shape and dtype included."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise Violation(
            f"got {what} of shape {tuple(got.shape)} {got.dtype}, expected {tuple(expected.shape)} {expected.dtype}"
        )
    if not torch.equal(got, expected):
        i = int((got != expected).flatten().to(torch.int8).argmax())
        a, b = got.flatten()[i].item(), expected.flatten()[i].item()
        raise Violation(f"got {what} = {a!r}, expected {b!r} to the bit")


def require_refused(call: Callable[[], Any], what: str) -> None:
    """Require a TypeError or ValueError with a message."""
    try:
        call()
    except (TypeError, ValueError) as error:
        require(
            len(str(error)) > 10, f"the message {str(error)!r} for {what}", "a message with got, expected and the fix"
        )
    else:
        raise Violation(f"got no error for {what}, expected a TypeError or ValueError")


def run_laws(subject: str, laws: Iterable[tuple[str, Callable[[], str | None]]], raises: bool) -> Report:
    """Run the laws in order. ``raises`` stops at the first that fails; otherwise all run and are reported."""
    outcomes = []
    for name, law in laws:
        try:
            detail = law()
        except Violation as violation:
            if raises:
                raise LawError(subject, name, str(violation)) from None
            outcomes.append(Law(name, False, str(violation)))
        except Exception as error:
            detail = f"got {type(error).__name__}: {error}, expected no exception"
            if raises:
                raise LawError(subject, name, detail) from error
            outcomes.append(Law(name, False, detail))
        else:
            outcomes.append(Law(name, True, detail or ""))
    return Report(subject, tuple(outcomes))


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
