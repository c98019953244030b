"""Describe the actions of a data set: names, statistics and how they are normalised.

``actions.json`` of a data set and ``config.json`` of a checkpoint have the same JSON object.
Normalised = (raw - ``offset``) * ``scale``, for each dimension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume
from video2world_common.user_text import parse_json

__all__ = [
    "ACTIONS_FILE",
    "MOST_DIMENSIONS",
    "NORMALIZATIONS",
    "REPRESENTATIONS",
    "ActionStatistics",
    "Normalization",
    "Representation",
]

ACTIONS_FILE = "actions.json"  # in a data set's folder, alongside train/
FORMAT = 1
MOST_DIMENSIONS = 1024
LARGEST_FILE = 4 << 20  # bytes
Representation = Literal["absolute", "relative_pose"]
Normalization = Literal["statistics", "published"]
REPRESENTATIONS: tuple[Representation, ...] = ("absolute", "relative_pose")
NORMALIZATIONS: tuple[Normalization, ...] = ("statistics", "published")
_NUMBERS = ("mean", "std", "min", "max", "offset", "scale")


@dataclass(frozen=True)
class ActionStatistics:
    """The actions of a data set, from its training windows.

    ``names`` has one name per dimension. ``relative_pose`` means that the first six dimensions are
    the pose relative to that of the frame before, in its own coordinates. ``source`` says where
    they are from, for people. ``fps`` is the rate of frames and actions, ``rows`` how many rows
    ``mean``, ``std``, ``min`` and ``max`` are taken from, in the units of the source.
    """

    names: tuple[str, ...]
    representation: Representation
    source: str
    fps: float
    rows: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def dimension(self) -> int:
        """The number of values in a row."""
        return len(self.names)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"format": FORMAT, **lists}

    @classmethod
    def from_json(cls, value: object) -> ActionStatistics:
        """Return the statistics in a JSON object, which is treated as untrusted.

        Raises:
            ValueError: it has none; the message completes "the file ...".
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise ValueError(f"is not a description of actions of format {FORMAT}")
        names: Any = value.get("names")
        if not _is_names(names):
            raise ValueError(f"names: 1 to {MOST_DIMENSIONS} different texts are expected")
        if value.get("representation") not in REPRESENTATIONS:
            raise ValueError(f"representation: {' or '.join(REPRESENTATIONS)} is expected")
        fps: Any = value.get("fps")
        rows: Any = value.get("rows")
        if not _is_number(fps) or fps <= 0:
            raise ValueError(f"fps: {fps!r:.40} is not a rate")
        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
            raise ValueError(f"rows: {rows!r:.40} is not a number of rows")
        lists = {}
        for key in _NUMBERS:
            numbers = value.get(key)
            if not isinstance(numbers, Sequence) or isinstance(numbers, str):
                raise ValueError(f"{key}: a list of numbers is expected")
            if len(numbers) != len(names) or not all(map(_is_number, numbers)):
                raise ValueError(f"{key}: {len(names)} finite numbers are expected, one per name")
            lists[key] = tuple(map(float, numbers))
        if 0.0 in lists["scale"]:
            raise ValueError("scale: 0 would remove a dimension")
        return cls(
            names=tuple(names),
            representation=cast(Representation, value["representation"]),
            source=str(value.get("source", "")),
            fps=float(fps),
            rows=rows,
            **lists,
        )

    @classmethod
    def read(cls, path: Path) -> ActionStatistics:
        """Return the statistics in a file, such as ``actions.json`` of a data set.

        Raises:
            UserError: it is missing or damaged.
        """
        if not on_volume(path).is_file():
            raise UserError(
                f"{path}: there is no such file, so the data set has no actions: prepare it with "
                "actions (--actions; spec.dataset.actions)"
            )
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise ValueError(f"has more than {LARGEST_FILE} bytes")
            return cls.from_json(parse_json(path.read_bytes()))
        except ValueError as error:
            raise UserError(f"{path}: {error}; run the dataset stage again") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_names(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    is_valid = all(isinstance(name, str) and name for name in value)
    return is_valid and 1 <= len(value) <= MOST_DIMENSIONS and len(set(value)) == len(value)
