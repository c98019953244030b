"""Write files atomically: they appear under their final names only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from video2world_common.user_text import parse_json

__all__ = [
    "FULL",
    "NAME_BYTES",
    "PARTIAL_PREFIX",
    "atomic_path",
    "atomic_write",
    "cut_name",
    "name_bytes",
    "read_json",
    "remove_leftovers",
    "sync_folder",
    "write_json",
    "write_text",
]

PARTIAL_PREFIX = ".partial-"  # marks leftovers of a killed writer, which are ignored
_UMASK = os.umask(0)  # can only be read by setting it: once, before there are threads
os.umask(_UMASK)
NAME_BYTES = 255  # longest file name on Linux file systems, in bytes
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space for the file


def name_bytes(name: str) -> int:
    """Return the length of ``name`` in bytes, as the file system counts it."""
    return len(os.fsencode(name))


def cut_name(name: str, most: int) -> str:
    """Return the longest prefix of ``name`` of at most ``most`` bytes and complete characters."""
    return os.fsencode(name)[:most].decode("utf-8", "ignore")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete the files that killed writers left in ``folder``; no writer may be running there."""
    for path in folder.glob(f"{PARTIAL_PREFIX}*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``final``, and rename it into place if the block succeeds.

    The temporary file keeps the suffix of ``final``, by which encoders choose the format. On an
    exception it is removed, and ``final`` is left unchanged.

    Raises:
        OSError: the block or the rename failed (disk full, read-only volume, ...); if there was no
            space, the error names ``final``, which that of a failed write does not.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        prefix=f"{PARTIAL_PREFIX}{cut_name(final.stem, 80)}-", suffix=final.suffix, dir=final.parent
    )
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        # mkstemp creates private files; other readers of the volume are other users of the group
        partial.chmod(0o666 & ~_UMASK)
        partial.replace(final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(error.errno, os.strerror(error.errno), str(final)) from error
        raise
    sync_folder(final.parent)


def atomic_write(final: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call ``write`` with a binary stream, whose content atomically becomes ``final``."""
    with atomic_path(final) as partial, partial.open("wb") as stream:
        write(stream)


def write_text(final: Path, text: str) -> None:
    """Write UTF-8 text to ``final`` atomically."""
    atomic_write(final, lambda stream: stream.write(text.encode()))


def write_json(final: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``final`` atomically."""
    write_text(final, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read the JSON value in ``path``; return None if there is no such file.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
