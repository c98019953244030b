"""Links on the volume: a stage reads no file that one of them puts outside of it."""

from __future__ import annotations

import os
from pathlib import Path

from video2world_common.exit_codes import UserError

__all__ = ["on_volume"]


def on_volume(path: Path) -> Path:
    """``path``, which a stage's pod is about to read, as it is.

    Who shares a volume can put a link there whose target is the pod's own: its environment, say,
    as somebody's caption. A command run by hand, which is no stage's, follows every link.

    Raises:
        UserError: links followed, it lies outside of the volume, the working directory.
    """
    if os.environ.get("V2W_STAGE"):
        volume, real = os.path.realpath("."), os.path.realpath(path)
        if os.path.commonpath((volume, real)) != volume:
            raise UserError(
                f"{path}: a link leads out of the volume, to {real}; put it there itself, or mount "
                "its folder on the volume"
            )
    return path
