"""Approximate sampling: most evaluations of the network replaced by extrapolating earlier ones.

Velocities change slowly from one noise level to the next. The network is evaluated at the first
levels, at every third one after them and at the last; in between, its velocity is continued along
the line through the last two that were computed (TaylorSeer, Liu et al. 2025, of first order and
over the whole network). What it costs in quality is measured in docs/inference.md.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["computed_steps", "extrapolated"]

FIRST, EVERY = 3, 3  # levels at the start that are all computed; after them one of so many


def computed_steps(count: int) -> list[int]:
    """Which of ``count`` evaluations the network makes."""
    later = range(FIRST + EVERY - 1, count, EVERY)
    return sorted({*range(min(FIRST, count)), *later, count - 1})


def extrapolated(
    velocity: Callable[[Tensor, Tensor], Tensor], count: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """``velocity`` for one sample of ``count`` evaluations, called for each in turn."""
    chosen = set(computed_steps(count))
    known: list[tuple[int, Tensor]] = []  # the last two that were computed
    step = -1

    def approximate(x: Tensor, times: Tensor) -> Tensor:
        nonlocal step
        step += 1
        if step in chosen:
            known.append((step, velocity(x, times)))
            del known[:-2]
            return known[-1][1]
        (before, earlier), (last, latest) = known
        return latest + (step - last) / (last - before) * (latest - earlier)

    return approximate
