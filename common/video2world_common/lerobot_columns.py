"""Describe the columns of numbers of a LeRobotDataset, before a run (preflight) and in it.

The features are those of ``meta/info.json``, as written by many programs: nothing about them is
certain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["INDEX_COLUMNS", "columns_of", "labels_of", "width_of"]

INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that say which row a row is."""
_NOT_NUMBERS = ("video", "image", "string", "language")


def columns_of(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the names of the values of each column whose number of values is known."""
    found = {}
    for column, feature in features.items():
        if column in INDEX_COLUMNS or not isinstance(feature, Mapping):
            continue
        width = width_of(feature.get("shape"))
        if width and feature.get("dtype") not in _NOT_NUMBERS:
            found[column] = labels_of(feature, column, width)
    return found


def labels_of(feature: Mapping[str, Any], column: str, width: int) -> tuple[str, ...]:
    """Return the names of a column's values, from ``names`` of a feature in ``meta/info.json``.

    They may be a list, a list in a list, or an object whose values are a list or whose keys are
    the names; if they are missing or of another number, values are named after column and place.
    """
    names: Any = feature.get("names")
    if isinstance(names, Mapping):
        inner = next(iter(names.values()), None)
        names = inner if isinstance(inner, list) else list(names)
    while isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    is_valid = isinstance(names, list) and len(names) == width
    if not is_valid or not all(isinstance(n, str) and n for n in names):
        return tuple(f"{column}_{place}" for place in range(width)) if width > 1 else (column,)
    return tuple(names)


def width_of(shape: object) -> int | None:
    """Return the number of values of a shape such as [7] in ``meta/info.json``."""
    value = shape[0] if isinstance(shape, list) and len(shape) == 1 else None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if 0 < value <= 1 << 20 else None
