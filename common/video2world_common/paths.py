"""Refuse symbolic links that lead out of the volume."""

from __future__ import annotations

import os
from pathlib import Path

from video2world_common.exit_codes import UserError

__all__ = ["on_volume"]


def on_volume(path: Path) -> Path:
    """Return ``path`` unchanged, if a stage's pod may read it.

    Another user of the volume could link a caption, for example, to a file of the pod such as its
    environment. A command run by hand, which is not a stage, follows every link.

    Raises:
        UserError: with links resolved, the path is outside the volume (the working directory).
    """
    if os.environ.get("V2W_STAGE"):
        volume, real = os.path.realpath("."), os.path.realpath(path)
        if os.path.commonpath((volume, real)) != volume:
            raise UserError(
                f"{path}: a link leads out of the volume, to {real}; copy the file to the "
                "volume, or mount its folder there"
            )
    return path
