"""Resample rows of numbers to other times, with regard to angles and quaternions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from video2world_preprocess.actions.checks import quaternion_places

__all__ = ["angle_places", "resampled"]

# Euler angles in radians jump by a full turn; joint angles do not
_EULER = re.compile(r"(?:^|[._/\- ])(?:roll|pitch|yaw|r[xyz])$", re.IGNORECASE)


def angle_places(names: Sequence[str]) -> list[int]:
    """Return the columns that are Euler angles."""
    return [place for place, name in enumerate(names) if _EULER.search(name)]


def resampled(
    rows: np.ndarray, times: np.ndarray, wanted: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Return ``rows`` [N, D] of ``times`` [N] at the times ``wanted`` [M], as [M, D].

    Values are interpolated linearly, Euler angles along the shorter way and wrapped to
    (-pi, pi], quaternions on the sphere. Times before the first and after the last row get its
    values.
    """
    source = rows.astype(np.float64)
    angles = angle_places(names)
    source[:, angles] = np.unwrap(source[:, angles], axis=0)
    result = np.stack([np.interp(wanted, times, column) for column in source.T], axis=1)
    wrapped = np.remainder(result[:, angles] + np.pi, 2 * np.pi) - np.pi
    result[:, angles] = np.where(wrapped <= -np.pi, np.pi, wrapped)
    for columns in quaternion_places(names):
        result[:, columns] = _slerp(source[:, columns], times, wanted)
    return result


def _slerp(rows: np.ndarray, times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    after = np.clip(np.searchsorted(times, wanted, side="right"), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        return np.repeat(rows, len(wanted), axis=0)
    first, second = rows[after - 1], rows[after]
    share = np.clip((wanted - times[after - 1]) / (times[after] - times[after - 1]), 0, 1)[:, None]
    cosine = np.sum(first * second, axis=1, keepdims=True)
    second = np.where(cosine < 0, -second, second)  # q and -q are the same rotation
    angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
    sine = np.sin(angle)
    small = sine < 1e-6
    safe = np.where(small, 1.0, sine)
    weights = [np.where(small, s, np.sin(s * angle) / safe) for s in (1 - share, share)]
    mixed = weights[0] * first + weights[1] * second
    unit: np.ndarray = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return unit
