"""Read and normalise actions: those of windows, and sequences that users supply."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from video2world_common.action_statistics import ActionStatistics
from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume
from video2world_common.user_text import decode, parse_json
from video2world_preprocess.actions.annotations import (
    MOST_ROWS,
    annotated_poses,
    is_number,
    matrix,
)
from video2world_preprocess.actions.checks import check_rows, quaternions_normalised
from video2world_preprocess.actions.poses import relative_actions
from video2world_preprocess.actions.resample import resampled

__all__ = ["SUFFIXES", "normalise", "read_actions", "read_sequence"]

SUFFIXES = (".safetensors", ".csv", ".json")
LARGEST_FILE = 256 << 20  # bytes
FPS_TOLERANCE = 1e-3  # relative: 29.97 is another rate than 30, 30.00003 is not
GRIPPER_SLACK = 0.05  # of the range of the gripper in training


def read_actions(path: Path) -> np.ndarray:
    """Return the tensor ``actions`` of a file, float32 [rows, D].

    Raises:
        UserError: it is missing, damaged, of another shape, or has a value that is not finite.
    """
    _check_file(path)
    try:
        with safe_open(path, "np") as file:
            if "actions" not in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                raise UserError(f"{path}: it has no tensor `actions`")
            part = file.get_slice("actions")
            shape, kind = part.get_shape(), part.get_dtype()
            if len(shape) != 2 or kind not in ("F32", "F64", "F16"):
                raise UserError(f"{path}: actions is {kind} {shape}, float32 [rows, D] is expected")
            rows: np.ndarray = file.get_tensor("actions").astype(np.float32)
    except SafetensorError as error:
        raise UserError(f"{path}: not a complete safetensors file ({error})") from None
    check_rows(rows, path)
    return rows


def normalise(raw: np.ndarray, statistics: ActionStatistics) -> np.ndarray:
    """Return actions [..., D] as the network takes them: (raw - offset) * scale, float32.

    Raises:
        UserError: they have another dimension than ``statistics``.
    """
    if raw.shape[-1] != statistics.dimension:
        raise UserError(
            f"actions of dimension {raw.shape[-1]}, but the model's have {statistics.dimension} "
            f"({', '.join(statistics.names)})"
        )
    offset, scale = np.asarray(statistics.offset), np.asarray(statistics.scale)
    normalised: np.ndarray = ((raw.astype(np.float64) - offset) * scale).astype(np.float32)
    return normalised


def read_sequence(path: Path, statistics: ActionStatistics) -> np.ndarray:
    """Return the actions of a user's file, raw (not normalised), float32 [N, D].

    The file is ``.safetensors`` (tensor ``actions``), ``.csv`` (first line: the names; an optional
    column ``timestamp`` in seconds) or ``.json``: ``{"names", "fps", "actions"}``, or an annotation
    as in Bridge (``state``, ``continuous_gripper_state``), from which relative poses are derived.
    Absolute actions of another rate than ``statistics.fps`` are resampled.

    Raises:
        UserError: the file is unusable; the message names file and row.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise UserError(f"{path}: give actions as {', '.join(SUFFIXES)}")
    if kind == ".safetensors":
        rows, fps = read_actions(path).astype(np.float64), None
        if rows.shape[1] != statistics.dimension:
            raise UserError(_dimension(path, rows.shape[1], statistics))
    else:
        _check_file(path)
        try:
            data = decode(path.read_bytes())
            rows, fps = (_csv if kind == ".csv" else _json)(path, data, statistics)
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} {error}") from None
    check_rows(rows, path)
    _check_gripper(path, rows, statistics)
    if statistics.representation == "absolute":
        rows = quaternions_normalised(rows, statistics.names, path)
    if fps is not None and abs(fps / statistics.fps - 1) > FPS_TOLERANCE:
        if statistics.representation != "absolute":
            raise UserError(
                f"{path}: {fps:g} actions per second, but the model's have {statistics.fps:g}; "
                "relative poses cannot be resampled: derive them from poses at that rate"
            )
        times = np.arange(len(rows)) / fps
        rows = resampled(rows, times, _steps(times[-1], statistics.fps), statistics.names)
    return rows.astype(np.float32)


def _check_file(path: Path) -> None:
    if not on_volume(path).is_file():
        raise UserError(f"{path}: there is no such file")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path}: more than {LARGEST_FILE} bytes; divide the sequence")


def _steps(last: float, fps: float) -> np.ndarray:
    """Return the times from 0 to ``last`` at a rate, in seconds."""
    return np.arange(int(last * fps + 1e-6) + 1) / fps


def _dimension(path: Path, dimension: int, statistics: ActionStatistics) -> str:
    return (
        f"{path}: rows of {dimension} values, but the model's actions have {statistics.dimension}: "
        f"{', '.join(statistics.names)}"
    )


def _places(names: Sequence[str], statistics: ActionStatistics) -> list[int]:
    """Return the columns of the dimensions of ``statistics``, by name.

    Raises:
        ValueError: one is missing or unknown, or there twice.
    """
    missing = [name for name in statistics.names if name not in names]
    unknown = [name for name in names if name not in statistics.names]
    if missing or unknown or len(names) != len(set(names)):
        also = f", without {', '.join(unknown)}" if unknown else ""
        raise ValueError(
            f"has the columns {', '.join(names)[:400]}, but the model's actions are "
            f"{', '.join(statistics.names)}: add {', '.join(missing) or 'each once'}{also}"
        )
    return [names.index(name) for name in statistics.names]


def _csv(path: Path, text: str, statistics: ActionStatistics) -> tuple[np.ndarray, float | None]:
    lines = csv.reader(text.splitlines())
    names = [name.strip() for name in next(lines, [])]
    clock = names.index("timestamp") if "timestamp" in names else None
    kept = [place for place in range(len(names)) if place != clock]
    places = [kept[place] for place in _places([names[place] for place in kept], statistics)]
    rows: list[list[float]] = []
    times: list[float] = []
    for line in lines:
        if not line:
            continue
        number = len(rows)
        if len(line) != len(names):
            raise ValueError(f"row {number}: {len(line)} values, the first line names {len(names)}")
        try:
            rows.append([float(line[place]) for place in places])
            times += [] if clock is None else [float(line[clock])]
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        if number >= MOST_ROWS:
            raise ValueError(f"has more than {MOST_ROWS} rows; divide the sequence")
    if not rows:
        raise ValueError("has no row of numbers after the line of names")
    return np.asarray(rows), _rate(np.asarray(times)) if len(times) > 1 else None


def _rate(times: np.ndarray) -> float:
    """Return the rate of times in seconds.

    Raises:
        ValueError: they are not evenly spaced.
    """
    steps = np.diff(times)
    step = float(np.median(steps))
    if not np.isfinite(times).all() or step <= 0:
        raise ValueError("column timestamp: the times do not increase")
    uneven = np.flatnonzero(np.abs(steps - step) > 0.5 * step)
    if len(uneven):
        raise ValueError(
            f"row {uneven[0] + 1}: its timestamp is {steps[uneven[0]]:g} s after that of the row "
            f"before, others {step:g} s; resample it to a constant rate"
        )
    return float(len(steps) / (times[-1] - times[0]))


def _json(path: Path, text: str, statistics: ActionStatistics) -> tuple[np.ndarray, float | None]:
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError('is not an object such as {"names": [...], "fps": 10, "actions": [[...]]}')
    if "state" in value and "actions" not in value:
        return _annotated(path, value, statistics), None
    rows = matrix(value.get("actions"), "actions")
    names = value.get("names")
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("names: a list of texts is expected")
        if len(names) != rows.shape[1]:
            raise ValueError(f"names {len(names)} columns, but its rows have {rows.shape[1]}")
        rows = rows[:, _places(names, statistics)]
    elif rows.shape[1] != statistics.dimension:
        raise UserError(_dimension(path, rows.shape[1], statistics))
    fps = value.get("fps")
    if fps is not None and not (is_number(fps) and 0 < fps < 1e6):
        raise ValueError(f"fps: {fps!r:.40} is not a rate")
    return rows, None if fps is None else float(fps)


def _annotated(path: Path, value: Mapping[str, Any], statistics: ActionStatistics) -> np.ndarray:
    """Return the relative poses of an annotation as in Bridge."""
    if statistics.representation != "relative_pose" or statistics.dimension != 7:
        raise ValueError(
            "is an annotation with poses (`state`), but the model's actions are "
            f"{', '.join(statistics.names)} ({statistics.representation})"
        )
    return relative_actions(*annotated_poses(value))


def _check_gripper(path: Path, rows: np.ndarray, statistics: ActionStatistics) -> None:
    for place, name in enumerate(statistics.names):
        if "gripper" not in name.lower():
            continue
        low, high = statistics.min[place], statistics.max[place]
        if statistics.representation == "relative_pose":  # whose grippers go from 0 to 1
            low, high = min(low, 0.0), max(high, 1.0)
        slack = GRIPPER_SLACK * (high - low) + 1e-6
        bad = np.flatnonzero((rows[:, place] < low - slack) | (rows[:, place] > high + slack))
        if len(bad):
            raise UserError(
                f"{path}: row {bad[0]}: {name} is {rows[bad[0], place]:g}, but in training it was "
                f"from {low:g} to {high:g}"
            )
