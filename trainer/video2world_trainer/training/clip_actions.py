"""Read the actions of clips: the rows between their frames, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from video2world_common.action_statistics import ActionStatistics
from video2world_common.exit_codes import UserError
from video2world_preprocess.actions.sequence import normalise, read_actions

__all__ = ["ACTIONS", "ClipActions"]

ACTIONS = "actions"  # folder of a split


class ClipActions:
    """The actions of a split's windows, ``actions/<window>.safetensors``.

    Row k of a window leads from its frame k to k + 1, so a clip of F frames from frame s has the
    rows s to s + F - 2.

    Args:
        split: the split's folder.
        statistics: names of the actions, and how they are normalised.
        clip_frames: pixel frames of a clip, F.
    """

    def __init__(self, split: Path, statistics: ActionStatistics, clip_frames: int) -> None:
        self.folder, self._statistics, self._rows = split / ACTIONS, statistics, clip_frames - 1

    def path(self, stem: str) -> Path:
        """Return the file of a window's actions."""
        return self.folder / f"{stem}.safetensors"

    def problem(self, stem: str, starts: Sequence[int], frames: int | None) -> str:
        """Return why a window cannot be used; empty if it can.

        Args:
            stem: the window's name.
            starts: first frames of its clips.
            frames: frames of its video, if they are known: it has one row less.
        """
        path = self.path(stem)
        if not path.is_file():
            return f"{path} is missing: the window has no actions; run the dataset stage again"
        try:
            rows, dimension = read_actions(path).shape
        except UserError as error:
            return str(error)
        if dimension != self._statistics.dimension:
            return (
                f"{path} has {dimension} numbers per row, the actions are "
                f"{self._statistics.dimension} ({', '.join(self._statistics.names)})"
            )
        if frames is not None and rows != frames - 1:
            return (
                f"{path} has {rows} rows, but the window has {frames} frames and so "
                f"{frames - 1} rows; run the dataset stage again"
            )
        last = max(starts, default=0) + self._rows
        if rows < last:
            return f"{path} has {rows} rows, its clips need {last}; run the dataset stage again"
        return ""

    def read(self, stem: str, start: int) -> Tensor:
        """Return the normalised actions [F - 1, D] in float32 of the clip from frame ``start``.

        Raises:
            UserError: the file is damaged.
        """
        rows = read_actions(self.path(stem))
        clip = rows[start : start + self._rows]
        if len(clip) != self._rows:
            raise UserError(
                f"{self.path(stem)} has {len(rows)} rows, the clip from frame {start} needs "
                f"{start + self._rows}: it was changed during training; run the dataset stage again"
            )
        return torch.from_numpy(normalise(clip, self._statistics)).contiguous()
