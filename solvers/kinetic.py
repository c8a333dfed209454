r"""Splitting rules for kinetic Langevin dynamics: its motions A, B, O run one after the other, each exactly.

.. math::
    A&:\ dx = v\,dt \text{ (with walls: a billiard)} \qquad B:\ dv = \tfrac1m g(x)\,dt \\
    O&:\ dv = -γ v\,dt + \sqrt{2γT/m}\,dW,\qquad v \leftarrow e^{-γh} v + \sqrt{(1 - e^{-2γh})\,T/m}\; z

A letter that occurs twice in a rule's name takes half the step each time. All rules that are palindromes have weak order 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..processes import Equation, Kinetic
from .solver import Record, Solver
from .walls import Reflect


class BAOAB(Solver):
    r"""B h/2, A h/2, O h, A h/2, B h/2: the rule of choice for averages over positions.

    Their stationary law is exact for Gaussians: on N(0, w) the variance is w at any stable step (h² < 4mw), while velocities have
    T/m·(1 − h²/4mw). In general its error is O(h²), and O(h⁴) in the limit of high friction. One evaluation a step (two in the first),
    one draw. Every part keeps volumes or the thermal law, so with specular walls and no force the uniform law is kept exactly.

    Source: Leimkuhler & Matthews 2013; 2015, §7.4.
    """

    word: ClassVar[str] = "BAOAB"
    accepts = (Kinetic,)
    stochastic = True
    multistage = True
    order = 2
    weak_order = 2
    order_note = "weak 2; positions exact for Gaussians, 4 at high friction"
    wall = Reflect()
    source = "Leimkuhler & Matthews 2013"

    def plan(self, equation: Equation, times: Tensor) -> list[Record]:
        parts = {letter: self.word.count(letter) for letter in self.word}
        rate, speed = equation.friction, equation.thermal_speed  # type: ignore[attr-defined]
        decay = times.diff() * rate / parts["O"]
        keep, kick = (-decay).exp(), speed * (-torch.expm1(-2 * decay)).sqrt()
        columns = [v.tolist() for v in (times.diff() / parts["A"], times.diff() / parts["B"], keep, kick)]
        steps = zip(times[:-1].tolist(), times[1:].tolist(), zip(*columns, strict=True), strict=True)
        draws = int(rate > 0)
        return [Record(t, s, tuple(row), draws, 2 if i == 0 else 1) for i, (t, s, row) in enumerate(steps)]

    def step(self, equation: Equation, x: Tensor, record: Record, state: Any, noise: Any) -> tuple[Tensor, Any]:
        drift, push, keep, kick = record.coefficients
        split, join = equation.split, equation.join  # type: ignore[attr-defined]
        # the normals of the state's two halves serve two O parts
        normals = iter(split(noise[0])[::-1] if record.draws else ())
        force = state  # at the present position; () where it moved since
        for letter in self.word:
            position, velocity = split(x)
            if letter == "A":
                x, force = equation.settle(x, join(position + drift * velocity, velocity)), ()
            elif letter == "B":
                if isinstance(force, tuple):
                    force = equation.acceleration(x, record.t)  # type: ignore[attr-defined]
                x = join(position, velocity + push * force)
            elif record.draws:
                x = join(position, keep * velocity + kick * next(normals))
        return x, force

    def report(self, state: Any, records: Sequence[Record]) -> dict[str, Any]:
        # velocities bounce, so that no push is needed at walls and there is no local time
        return {**super().report(state, records), "local_time": None}


class OBABO(BAOAB):
    r"""O h/2, B h/2, A h, B h/2, O h/2: a step of velocity Verlet between two halves of friction and noise.

    Velocities are exactly thermal for Gaussians, positions not: on N(0, w) their variance is w/(1 − h²/4mw). Same cost as ``BAOAB``.

    Source: Bussi & Parrinello 2007, eq. 23; Leimkuhler & Matthews 2015, §7.3.
    """

    word = "OBABO"
    order_note = "weak 2; velocities exact for Gaussians"
    source = "Bussi & Parrinello 2007, eq. 23"
