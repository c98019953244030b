"""Check rows of numbers: finite values, and quaternions of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from video2world_common.action_statistics import MOST_DIMENSIONS
from video2world_common.exit_codes import UserError

__all__ = ["QUATERNION_SLACK", "check_rows", "quaternion_places", "quaternions_normalised"]

QUATERNION_SLACK = 1e-3


def check_rows(rows: np.ndarray, place: Path | str) -> None:
    """Check the shape and values of actions.

    Raises:
        UserError: they are not [rows, 1 to MOST_DIMENSIONS], or a value is not finite.
    """
    if rows.ndim != 2 or not len(rows) or not 1 <= rows.shape[1] <= MOST_DIMENSIONS:
        raise UserError(
            f"{place}: actions have the shape {list(rows.shape)}; at least one row of 1 to "
            f"{MOST_DIMENSIONS} values is expected"
        )
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[0]
        raise UserError(f"{place}: row {row}: value {column} is {rows[row, column]}")


def quaternion_places(names: Sequence[str]) -> list[list[int]]:
    """Return the columns of each quaternion among ``names``, in the order x, y, z, w.

    The names of its components are equal but for their ends: qx, qy, qz and qw.
    """
    found = []
    for name in names:
        if name.lower().endswith("qx"):
            parts = [
                name[:-1] + (letter if name.endswith("x") else letter.upper()) for letter in "xyzw"
            ]
            if all(part in names for part in parts):
                found.append([list(names).index(part) for part in parts])
    return found


def quaternions_normalised(
    rows: np.ndarray, names: Sequence[str], place: Path | str, first: int = 0
) -> np.ndarray:
    """Return ``rows`` [N, D] with their quaternions divided by their lengths.

    ``first`` is the number of the first row in the file ``place``.

    Raises:
        UserError: a length differs from 1 by more than ``QUATERNION_SLACK``.
    """
    result = rows
    for columns in quaternion_places(names):
        length = np.linalg.norm(rows[:, columns].astype(np.float64), axis=1)
        bad = np.flatnonzero(np.abs(length - 1) > QUATERNION_SLACK)
        if len(bad):
            raise UserError(
                f"{place}: row {first + bad[0]}: the quaternion "
                f"{', '.join(names[c] for c in columns)} has the length {length[bad[0]]:.4g} "
                "instead of 1; normalise it"
            )
        result = result.copy()
        result[:, columns] = rows[:, columns] / length[:, None]
    return result
