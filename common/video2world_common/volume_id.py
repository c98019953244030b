"""Give a volume an identity: a random ID written to it, which reveals the loss of its content.

The first worker on a volume writes the ID. Each worker reports it in its log, receives the ID that
was reported first (``V2W_VOLUME_ID``), and stops on a volume with another ID, on which the results
of earlier stages are missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import uuid
from pathlib import Path

from video2world_common.events import emit

__all__ = ["FILE", "VolumeLost", "check"]

FILE = Path(".video2world/volume-id")  # relative to the volume's root


class VolumeLost(Exception):
    """The volume is not the one on which earlier stages worked."""


def check(stage: str) -> None:
    """Report the identity of the volume (the working directory), which gets one if it has none.

    Raises:
        VolumeLost: it is not the expected one.
    """
    if "V2W_STAGE" not in os.environ:
        return  # run by hand
    expected = os.environ.get("V2W_VOLUME_ID", "")
    before = _read()
    found = before or _make()
    if found:
        emit("volume", stage, id=found, expected=expected)
    if expected and before != expected:
        raise VolumeLost(
            "the volume has lost the results of earlier stages (it "
            + ("is another volume" if before else "has no .video2world/volume-id")
            + "): they have to run again"
        )


def _read() -> str:
    """Return the identity; empty if there is none."""
    try:
        text = FILE.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return text if re.fullmatch(r"[0-9a-f]{32}", text) else ""


def _make() -> str:
    """Write an identity unless another worker is faster; empty if nothing can be written."""
    with contextlib.suppress(OSError):  # full or read-only: the stage reports it
        FILE.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".partial-", dir=FILE.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(f"{uuid.uuid4().hex}\n")
                stream.flush()
                os.fsync(stream.fileno())
            partial.chmod(0o644)
            with contextlib.suppress(FileExistsError):
                _link(partial)
            if not _read():  # the file holds no identity
                partial.replace(FILE)
        finally:
            partial.unlink(missing_ok=True)
    return _read()


def _link(partial: Path) -> None:
    """Give ``partial`` the final name, unless another process has taken it.

    Raises:
        FileExistsError: another process has.
    """
    try:
        os.link(partial, FILE)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        handle = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(handle, "wb") as stream:
            stream.write(partial.read_bytes())
