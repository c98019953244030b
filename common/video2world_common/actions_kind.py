"""Tell whether weights were trained with actions, and how these enter the network."""

from __future__ import annotations

from pathlib import Path

from video2world_common.files import read_json
from video2world_common.per_clip_actions import WEIGHTS_FILE

__all__ = ["actions_kind_of"]


def actions_kind_of(path: Path) -> str | None:
    """Return how the weights at ``path`` read actions: none, per_frame, per_clip; None if unknown.

    The record next to them precedes their name.

    Raises:
        ValueError: the record is damaged.
    """
    content = read_json(path.parent / "config.json")
    run = content.get("run") if isinstance(content, dict) else None
    if isinstance(run, dict):
        return str(run.get("action_conditioning", "none"))
    return "per_clip" if path.name == WEIGHTS_FILE else None
