"""Record in ``model/config.json`` which actions a network was trained with, and find them again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video2world_common.action_statistics import ActionStatistics
from video2world_common.per_clip_actions import DIMENSION, REPOSITORY, SCALE, WEIGHTS_FILE
from video2world_trainer.model.action_conditioning import (
    ACTION_KINDS,
    PUBLISHED_ROWS,
    ActionConditioning,
    ActionKind,
)

__all__ = ["PUBLISHED_FILE", "RecordedActions", "published_actions"]

PUBLISHED_FILE = f"checkpoints/{REPOSITORY}/{WEIGHTS_FILE}"


@dataclass(frozen=True)
class RecordedActions:
    """The kind of action conditioning, and the names and normalisation of the actions."""

    kind: ActionKind
    statistics: ActionStatistics

    @property
    def conditioning(self) -> ActionConditioning:
        """How the network reads the actions."""
        rows = PUBLISHED_ROWS if self.kind == "per_clip" else None
        return ActionConditioning(self.kind, self.statistics.dimension, rows)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"kind": self.kind, "statistics": self.statistics.to_json()}

    @classmethod
    def from_json(cls, value: Any) -> RecordedActions:
        """Return the actions in a JSON object.

        Raises:
            KeyError, TypeError, ValueError: it has none.
        """
        kind = value["kind"]
        if kind not in ACTION_KINDS:
            raise ValueError(f"action_conditioning: kind {kind!r:.40}")
        return cls(kind, ActionStatistics.from_json(value["statistics"]))


def published_actions(path: Path) -> RecordedActions | None:
    """Return the actions of NVIDIA's action-conditioned weights; None for any other file.

    Seven numbers: the gripper's pose relative to that of the frame before (metres and radians,
    times 20), and how far it is closed. Ranges of its training data are not published; the
    statistics are the normalisation's.
    """
    if path.name != WEIGHTS_FILE:
        return None
    statistics = ActionStatistics(
        names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        representation="relative_pose",
        source=REPOSITORY,
        fps=4.0,
        rows=1,
        mean=(0.0,) * DIMENSION,
        std=tuple(1 / one for one in SCALE),
        min=(*(-1 / one for one in SCALE[:6]), 0.0),
        max=tuple(1 / one for one in SCALE),
        offset=(0.0,) * DIMENSION,
        scale=SCALE,
    )
    return RecordedActions("per_clip", statistics)
