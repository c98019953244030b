"""Approximate sampling: extrapolate most of the network's evaluations from earlier ones.

Velocities change slowly from one noise level to the next. The network is evaluated at the first
levels, at every third one after them and at the last. In between, its velocity is extrapolated
along the parabola through the last three that were computed: TaylorSeer (Liu et al. 2025,
https://arxiv.org/abs/2503.06923) of second order, applied to the complete network. The loss of
quality is measured in docs/inference.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

__all__ = ["computed_steps", "with_extrapolation"]

FIRST = 3  # all evaluations up to this one are computed
EVERY = 3  # after them, one in this many
POINTS = 3  # computed velocities that are extrapolated from


def computed_steps(count: int) -> list[int]:
    """Return which of ``count`` evaluations the network computes."""
    later = range(FIRST + EVERY - 1, count, EVERY)
    return sorted({*range(min(FIRST, count)), *later, count - 1})


def weights(step: int, known: list[int]) -> list[float]:
    """Return the weights at ``step`` of the values at ``known`` steps (Lagrange polynomials)."""
    return [
        math.prod((step - other) / (one - other) for other in known if other != one)
        for one in known
    ]


def with_extrapolation(
    velocity: Callable[[Tensor, Tensor], Tensor], count: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Wrap ``velocity`` for one sample; call the result ``count`` times, once per evaluation."""
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
