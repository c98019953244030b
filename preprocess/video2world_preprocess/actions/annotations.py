"""Read annotations as in Bridge, and other JSON lists of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["MOST_ROWS", "annotated_poses", "is_number", "matrix"]

MOST_ROWS = 1_000_000
GRIPPER = "continuous_gripper_state"
GRIPPER_SLACK = 1e-3


def annotated_poses(annotation: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the poses [N, 6] and the gripper [N] of an annotation as in Bridge.

    Only ``state`` (at least 6 columns) and ``continuous_gripper_state`` are read: the annotation's
    ``action`` has another sense of the gripper.

    Raises:
        ValueError: it is unusable; the message names key and row.
    """
    states = matrix(annotation.get("state"), "state")
    if states.shape[1] < 6:
        raise ValueError(f"state: rows of {states.shape[1]} values, at least 6 are expected")
    values = annotation.get(GRIPPER)
    if not isinstance(values, list):
        raise ValueError(f"{GRIPPER}: a list is expected")
    gripper = matrix([[value] for value in values], GRIPPER)[:, 0]
    if len(gripper) != len(states):
        raise ValueError(f"{GRIPPER}: {len(gripper)} values for {len(states)} rows of state")
    outside = np.flatnonzero((gripper < -GRIPPER_SLACK) | (gripper > 1 + GRIPPER_SLACK))
    if len(outside):
        raise ValueError(
            f"{GRIPPER}: row {outside[0]} is {gripper[outside[0]]:g}, from 0 (open) to 1 (closed) "
            "is expected"
        )
    if len(states) < 2:
        raise ValueError(f"state: {len(states)} row, at least 2 are needed for an action")
    return states[:, :6], gripper


def matrix(value: object, key: str) -> np.ndarray:
    """Return a JSON list of lists of finite numbers as float64 [rows, columns].

    Raises:
        ValueError: it is none; the message names key and row.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key}: a list of rows is expected")
    if len(value) > MOST_ROWS:
        raise ValueError(f"{key}: more than {MOST_ROWS} rows")
    for number, row in enumerate(value):
        if not isinstance(row, list) or not row or not all(map(is_number, row)):
            raise ValueError(f"{key}: row {number} is {row!r:.60}, numbers are expected")
        if len(row) != len(value[0]):
            raise ValueError(f"{key}: row {number} has {len(row)} values, row 0 {len(value[0])}")
    rows = np.asarray(value, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        raise ValueError(f"{key}: row {bad[0][0]} has {rows[tuple(bad[0])]}")
    return rows


def is_number(value: object) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
