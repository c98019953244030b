"""Approximate sampling: most evaluations of the network replaced by extrapolating earlier ones.

Velocities change slowly from one noise level to the next. The network is evaluated at the first
levels, at every third one after them and at the last; in between, its velocity is continued along
the parabola through the last three that were computed (TaylorSeer, Liu et al. 2025, of second order
and over the whole network). What it costs in quality is measured in docs/inference.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

__all__ = ["computed_steps", "extrapolated"]

FIRST, EVERY = 3, 3  # levels at the start that are all computed; after them one of so many
POINTS = 3  # computed velocities that are continued


def computed_steps(count: int) -> list[int]:
    """Which of ``count`` evaluations the network makes."""
    later = range(FIRST + EVERY - 1, count, EVERY)
    return sorted({*range(min(FIRST, count)), *later, count - 1})


def weights(step: int, known: list[int]) -> list[float]:
    """What each of the values at ``known`` steps counts at ``step`` (Lagrange's polynomials)."""
    return [
        math.prod((step - other) / (one - other) for other in known if other != one)
        for one in known
    ]


def extrapolated(
    velocity: Callable[[Tensor, Tensor], Tensor], count: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """``velocity`` for one sample of ``count`` evaluations, called for each in turn."""
    chosen = set(computed_steps(count))
    known: dict[int, Tensor] = {}
    step = -1

    def approximate(x: Tensor, times: Tensor) -> Tensor:
        nonlocal step
        step += 1
        if step in chosen:
            known[step] = velocity(x, times)
            if len(known) > POINTS:
                del known[min(known)]
            return known[step]
        total, *rest = (
            weight * one
            for weight, one in zip(weights(step, list(known)), known.values(), strict=True)
        )
        return sum(rest, start=total)

    return approximate
