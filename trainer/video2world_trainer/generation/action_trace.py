"""Describe the actions of a sample for its ``.json``, its contact sheet and the results page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["ActionTrace"]

MARGIN = 0.05  # of a dimension's range in the training data, beyond which a row is out of range


@dataclass(frozen=True)
class ActionTrace:
    """The actions that a video follows, in physical units.

    Args:
        names: of the D dimensions.
        rows: [N, D]; row k leads from frame k to frame k + 1.
        low: the least value of each dimension in the training data, [D].
        high: the greatest ones, [D].
        seams: frames at which one clip ends and the next begins.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seams: tuple[int, ...] = ()

    def scaled(self) -> np.ndarray:
        """Return the rows for a plot, [N, D] in [0, 1]; a constant dimension is 0.5.

        0 and 1 are the least and greatest value in the training data and these rows.
        """
        low = np.minimum(self.low, self.rows.min(0))
        span = np.maximum(self.high, self.rows.max(0)) - low
        safe = np.where(span > 0, span, 1)
        scaled: np.ndarray = np.where(span > 0, (self.rows - low) / safe, 0.5)
        return scaled

    def out_of_range(self) -> tuple[int, str] | None:
        """Return row and name of the first value far outside the training data's range."""
        margin = MARGIN * (self.high - self.low)
        found = np.argwhere((self.rows < self.low - margin) | (self.rows > self.high + margin))
        if not len(found):
            return None
        row, dimension = found[0].tolist()
        return row, self.names[dimension]

    def to_json(self) -> dict[str, Any]:
        """Return the trace for a JSON file, rounded to the digits of float32."""
        return {
            "names": list(self.names),
            "range": {"min": _rounded(self.low), "max": _rounded(self.high)},
            "rows": [_rounded(row) for row in self.rows],
            "seams": list(self.seams),
        }

    @classmethod
    def from_json(cls, value: Any) -> ActionTrace:
        """Read :meth:`to_json`.

        Raises:
            ValueError: the value is damaged.
        """
        if not isinstance(value, Mapping):
            raise ValueError("not an object")
        try:
            names = tuple(str(name) for name in value["names"])
            low, high = (np.asarray(value["range"][end], np.float64) for end in ("min", "max"))
            rows = np.asarray(value["rows"], np.float64)
            seams = tuple(int(seam) for seam in value["seams"])
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        shape = (len(names),)
        if rows.ndim != 2 or not rows.size or any(x.shape != shape for x in (*rows, low, high)):
            raise ValueError("rows, names and range differ in size")
        if not all(np.isfinite(one).all() for one in (rows, low, high)):
            raise ValueError("not finite")
        return cls(names, rows, low, high, seams)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.7g}") for value in values]
