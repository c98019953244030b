"""Turn the columns of a data set into actions: which values, from which frame, in which form."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from video2world_common.action_statistics import (
    MOST_DIMENSIONS,
    Normalization,
    Representation,
)
from video2world_common.exit_codes import UserError
from video2world_preprocess.actions.checks import quaternions_normalised
from video2world_preprocess.actions.poses import (
    RELATIVE_NAMES,
    matrix_of,
    matrix_of_quaternion,
    relative_poses,
)
from video2world_preprocess.actions.resample import resampled
from video2world_preprocess.actions.selection import ActionSelection
from video2world_preprocess.listing import nearest

__all__ = ["ActionLayout", "Column", "Track"]

LOST_ROWS = 2  # by which rows and frames may differ, as encoders lose or repeat frames
SAME_RATE = 0.02  # relative difference of rates
GRIPPER_SLACK = 1e-3
_QUATERNION = ("qx", "qy", "qz", "qw")


@dataclass(frozen=True)
class Column:
    """A column of numbers: ``labels`` has a name for each of its values.

    ``is_state``: row k has what is true at frame k, such as measured joint angles, so that the
    action that leads from frame k to frame k + 1 is in row k + 1. Else row k has that action.
    """

    name: str
    labels: tuple[str, ...]
    is_state: bool

    @classmethod
    def of(cls, name: str, labels: Sequence[str]) -> Column:
        """Return the column ``name``, which has commands if its name says action."""
        return cls(name, tuple(labels), "action" not in name.lower())


@dataclass(frozen=True)
class Track:
    """The values of an episode's columns, float64 [rows, all columns], and where they are from.

    ``times`` are the rows' seconds since the first frame, if they are known. ``place`` is the file,
    in which ``first`` is the number of the first row.
    """

    values: np.ndarray
    times: np.ndarray | None
    place: str
    first: int = 0

    def row(self, number: int) -> str:
        """Return how an error names a row."""
        return f"{self.place}: row {self.first + number}"


@dataclass(frozen=True)
class ActionLayout:
    """The values of ``columns`` to use (``picked``, by place in all), and what becomes of them."""

    columns: tuple[Column, ...]
    picked: tuple[int, ...]
    picked_names: tuple[str, ...]
    representation: Representation
    normalization: Normalization

    @classmethod
    def of(cls, selection: ActionSelection, columns: Sequence[Column]) -> ActionLayout:
        """Return the layout of a selection.

        Raises:
            UserError: the columns do not have what is selected; the message lists what they have.
        """
        flat = [(column, label) for column in columns for label in column.labels]
        labels = [label for _, label in flat]
        names = [n if labels.count(n) == 1 else f"{c.name}.{n}" for c, n in flat]
        if len(set(names)) < len(names):
            names = [f"{name}_{place}" for place, name in enumerate(names)]
        picked = list(range(len(names)))
        if selection.names:
            picked = [_place_of(wanted, flat, names) for wanted in selection.names]
        if not 1 <= len(picked) <= MOST_DIMENSIONS:
            raise UserError(f"--actions: {len(picked)} values, 1 to {MOST_DIMENSIONS} are possible")
        found = cls(
            tuple(columns),
            tuple(picked),
            tuple(names[place] for place in picked),
            selection.representation,
            selection.normalization,
        )
        if selection.representation == "relative_pose":
            found._check_pose()
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the actions' dimensions."""
        return RELATIVE_NAMES if self.representation == "relative_pose" else self.picked_names

    @property
    def digest(self) -> str:
        """A digest of all that decides the rows, to which the normalisation is applied later."""
        decisive = (self.columns, self.picked, self.representation)
        return hashlib.sha256(repr(decisive).encode()).hexdigest()[:24]

    @property
    def _is_state(self) -> np.ndarray:
        flags = [column.is_state for column in self.columns for _ in column.labels]
        return np.asarray(flags)[list(self.picked)]

    def _check_pose(self) -> None:
        listed = ", ".join(self.picked_names)
        if len(self.picked) not in (7, 8):
            raise UserError(
                "--action_representation relative_pose: 7 values are needed (x y z roll pitch yaw "
                f"gripper), or 8 (x y z qx qy qz qw gripper), but {len(self.picked)} are selected "
                f"({listed}); choose them with --action_names (spec.dataset.actions.names)"
            )
        if not self._is_state[:-1].all():
            raise UserError(
                "--action_representation relative_pose: relative poses are derived from the poses "
                f"at the frames, which are no commands: select a state column such as "
                f"observation.state for the pose instead of {listed}"
            )

    def _quaternion(self) -> list[int]:
        """Return the places of x, y, z and w among the picked values, by name if they say so."""
        ends = [name.lower()[-2:] for name in self.picked_names[3:7]]
        if sorted(ends) == sorted(_QUATERNION):
            return [3 + ends.index(end) for end in _QUATERNION]
        return [3, 4, 5, 6]

    def steps(self, track: Track, frames: int, fps: float) -> np.ndarray:
        """Return the actions of an episode of ``frames`` frames, float32 [frames - 1, D].

        Row k leads from frame k to frame k + 1. Rows that are not one per frame are resampled if
        the track has their times.

        Raises:
            UserError: the rows are unusable; the message names file and row.
        """
        values = self._checked(track)
        if abs(len(values) - frames) > LOST_ROWS:
            values = self._resampled(track, values, frames, fps)
        is_state = self._is_state
        needed = frames if is_state.any() else frames - 1
        if len(values) < needed:
            raise UserError(
                f"{track.row(len(values) - 1)} is the last of {len(values)}, but the video has "
                f"{frames} frames: fewer actions than frames"
            )
        if self.representation == "relative_pose":
            steps = self._relative(track, values[:frames])
        else:
            steps = values[: frames - 1].copy()
            if is_state.any():
                steps[:, is_state] = values[1:frames, is_state]
        with np.errstate(over="ignore"):
            result: np.ndarray = steps.astype(np.float32)
        bad = np.argwhere(~np.isfinite(result))
        if len(bad):
            row, column = bad[0]
            raise UserError(f"{track.row(row)}: {self.names[column]} is too large for float32")
        return result

    def _checked(self, track: Track) -> np.ndarray:
        """Return the picked values, finite and with quaternions of length 1."""
        if not len(track.values):
            raise UserError(f"{track.place}: it has no rows")
        values = track.values[:, list(self.picked)]
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            raise UserError(
                f"{track.row(row)}: {self.picked_names[column]} is {values[row, column]}; correct "
                "the row, or exclude the episode"
            )
        if self.representation == "relative_pose":
            return values if len(self.picked) == 7 else self._unit(track, values)
        return quaternions_normalised(values, self.picked_names, track.place, track.first)

    def _unit(self, track: Track, values: np.ndarray) -> np.ndarray:
        """Return values x, y, z, qx, qy, qz, qw and gripper with normalised quaternions."""
        ordered = values[:, [0, 1, 2, *self._quaternion(), 7]]
        names = ("x", "y", "z", *_QUATERNION, "gripper")
        return quaternions_normalised(ordered, names, track.place, track.first)

    def _resampled(self, track: Track, values: np.ndarray, frames: int, fps: float) -> np.ndarray:
        """Return the values at the times of the frames."""
        rows, times = len(values), track.times
        disagree = f"{track.place}: {rows} rows for {frames} frames of the video"
        if times is None or len(times) != rows or rows < 2:
            raise UserError(
                f"{disagree}, and no timestamps by which to resample them: fewer actions than "
                "frames, or more; correct the dataset, or exclude the episode"
            )
        late = np.flatnonzero(~(np.diff(times) > 0))
        if len(late):
            raise UserError(
                f"{track.row(late[0] + 1)}: its timestamp {times[late[0] + 1]} is not after that "
                f"of the row before, so that the {rows} rows cannot be resampled to {frames} frames"
            )
        rate = 1 / float(np.median(np.diff(times)))
        last = (frames - 1) / fps
        if times[-1] < last - 1.5 / fps or abs(rate / fps - 1) < SAME_RATE:
            raise UserError(
                f"{disagree}: fewer actions than frames, or more: they are {rate:g} per second and "
                f"end at {times[-1]:.3f} s, the video's {fps:g} frames/s at {last:.3f} s"
            )
        names = list(self.picked_names)
        if self.representation == "relative_pose":
            turn = ("roll", "pitch", "yaw") if len(self.picked) == 7 else _QUATERNION
            names = ["x", "y", "z", *turn, "gripper"]
        return resampled(values, times, np.arange(frames) / fps, names)

    def _relative(self, track: Track, values: np.ndarray) -> np.ndarray:
        turn = values[:, 3:-1]
        rotations = matrix_of(turn) if turn.shape[1] == 3 else matrix_of_quaternion(turn)
        gripper = values[1:, -1] if self._is_state[-1] else values[:-1, -1]
        if self.normalization == "published":
            outside = np.flatnonzero((gripper < -GRIPPER_SLACK) | (gripper > 1 + GRIPPER_SLACK))
            if len(outside):
                row = int(outside[0]) + bool(self._is_state[-1])
                raise UserError(
                    f"{track.row(row)}: the gripper is {gripper[outside[0]]:g}, out of the range "
                    "from 0 (open) to 1 (closed) of the published normalisation"
                )
        poses = relative_poses(values[:, :3], rotations)
        return np.concatenate([poses, gripper[:, None]], axis=1)


def _place_of(wanted: str, flat: Sequence[tuple[Column, str]], names: Sequence[str]) -> int:
    matches = [
        place
        for place, (column, label) in enumerate(flat)
        if wanted in (names[place], label, f"{column.name}.{label}")
    ]
    exact = [place for place in matches if names[place] == wanted]
    matches = exact or matches
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(names)
    if matches:
        several = ", ".join(names[place] for place in matches)
        raise UserError(f"--action_names {wanted}: several match, give one of {several}")
    close = nearest(wanted, names)
    hint = f"did you mean {close}? " if close else ""
    raise UserError(f"--action_names {wanted}: {hint}the columns have {listed}")
