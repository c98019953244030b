"""Add up statistics of actions, episode by episode, in one pass and in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from video2world_common.action_statistics import ActionStatistics
from video2world_common.per_clip_actions import SCALE
from video2world_preprocess.actions.layout import ActionLayout

__all__ = ["Moments", "describe"]

LEAST_STD = 1e-6  # relative to the mean: below it, a dimension is taken for constant


@dataclass(frozen=True)
class Moments:
    """The number of rows, their mean, sum of squared differences from it, minimum and maximum."""

    rows: int
    mean: tuple[float, ...]
    squares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """Return the moments of rows [N, D], N >= 1."""
        values = rows.astype(np.float64)
        mean = values.mean(0)
        squares = ((values - mean) ** 2).sum(0)
        parts = (mean, squares, values.min(0), values.max(0))
        return cls(len(values), *(tuple(part.tolist()) for part in parts))

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of the rows of both (Chan, Golub and LeVeque 1983)."""
        rows = self.rows + other.rows
        means = np.asarray([self.mean, other.mean])
        step = means[1] - means[0]
        mean = means[0] + step * (other.rows / rows)
        squares = np.add(self.squares, other.squares) + step**2 * (self.rows * other.rows / rows)
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Moments(rows, *(tuple(part.tolist()) for part in (mean, squares, low, high)))

    @classmethod
    def from_json(cls, value: object, dimension: int) -> Moments:
        """Return the moments that ``vars()`` gave, from a file that is treated as untrusted.

        Raises:
            ValueError: they are not moments of ``dimension`` values.
        """
        if not isinstance(value, Mapping):
            raise ValueError("not an object")
        try:
            found = cls(**value)
            lists = np.asarray([found.mean, found.squares, found.low, found.high], np.float64)
            if lists.shape != (4, dimension) or not np.isfinite(lists).all() or found.rows < 1:
                raise ValueError("not the moments of these actions")
        except TypeError as error:
            raise ValueError(str(error)) from None
        return cls(int(found.rows), *(tuple(part.tolist()) for part in lists))


def describe(
    layout: ActionLayout, parts: Iterable[Moments], fps: float, source: str
) -> ActionStatistics:
    """Return the description of actions whose moments are the sum of ``parts``.

    Raises:
        ValueError: there are none.
    """
    total: Moments | None = None
    for part in parts:
        total = part if total is None else total + part
    if total is None:
        raise ValueError("there are no actions")
    std = np.sqrt(np.asarray(total.squares) / total.rows)
    is_constant = std <= LEAST_STD * np.maximum(np.abs(total.mean), LEAST_STD)
    std = np.where(is_constant, 0.0, std)
    offset, scale = total.mean, tuple(np.where(is_constant, 1.0, 1 / np.where(is_constant, 1, std)))
    if layout.normalization == "published":
        offset, scale = (0.0,) * len(layout.names), SCALE
    return ActionStatistics(
        names=layout.names,
        representation=layout.representation,
        source=source,
        fps=fps,
        rows=total.rows,
        mean=total.mean,
        std=tuple(std.tolist()),
        min=total.low,
        max=total.high,
        offset=offset,
        scale=tuple(map(float, scale)),
    )
