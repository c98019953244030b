"""One camera's videos out of AgiBot's archives, read as a stream and trusted in nothing.

An archive holds mostly depth images that are not wanted; of its members only
``<episode>/videos/<camera>.mp4`` are written, to a place computed here from the episode's number:
no name, link or device in the archive decides where anything goes.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from .files import atomic_path
from .report import Report

__all__ = ["ARCHIVE_SUFFIXES", "extract_camera", "find_archives"]

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
CHUNK = 1 << 20  # bytes


class _CheckedMember(tarfile.TarInfo):
    """Makes damage between members an error, where tarfile would quietly end the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the proper end: blocks of zeros
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no whole member at byte {archive.offset}: {error}") from error


def find_archives(folder: Path) -> list[Path]:
    """The archives in ``folder``, by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(ARCHIVE_SUFFIXES))


def _unsafe(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute():
        return "its name is an absolute path"
    if ".." in path.parts:
        return "its name contains .."
    if member.issym() or member.islnk():
        return f"it is a link (to {member.linkname})"
    if not (member.isreg() or member.isdir()):
        return "it is a device or another special file"
    return None


def _copy(stream: IO[bytes], target: Path, size: int) -> None:
    with atomic_path(target) as partial, partial.open("wb") as output:
        while chunk := stream.read(CHUNK):
            output.write(chunk)
        if output.tell() != size:
            raise tarfile.ReadError(f"{output.tell()} of {size} bytes are there")


def extract_camera(
    archive: Path,
    folder: Path,
    camera: str,
    report: Report,
    advance: Callable[[Path], None] = lambda target: None,
) -> tuple[list[Path], bool]:
    """Write the ``camera``'s videos of ``archive`` to ``folder/<episode>/videos/<camera>.mp4``.

    Videos that are already there in full are kept. Unsafe members and damage are named in
    ``report``; members before the damage are good. Returns the videos that are there now, and
    whether the archive was whole.

    Raises:
        OSError: the target cannot be written (disk full, ...).
    """
    videos: list[Path] = []
    try:
        with tarfile.open(archive, "r|*", tarinfo=_CheckedMember) as members:
            for member in members:
                # a stream's list of members would grow with each of millions of depth images
                members.members = []
                if (reason := _unsafe(member)) is not None:
                    report.drop("archive member", f"{archive}: {member.name}", reason)
                    continue
                parts = PurePosixPath(member.name).parts
                if not member.isreg() or parts[-2:] != ("videos", f"{camera}.mp4"):
                    continue
                if len(parts) < 3 or not (parts[-3].isascii() and parts[-3].isdigit()):
                    report.drop(
                        "archive member", f"{archive}: {member.name}", "no episode number above it"
                    )
                    continue
                target = folder / parts[-3] / "videos" / f"{camera}.mp4"
                if not (target.is_file() and target.stat().st_size == member.size):
                    stream = members.extractfile(member)
                    assert stream is not None  # only directories and the like have no content
                    _copy(stream, target, member.size)
                videos.append(target)
                advance(target)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        report.drop(
            "archive",
            str(archive),
            f"truncated or corrupt after {len(videos)} videos of "
            f"{camera}: {error}; copy or download it again",
        )
        return videos, False
    return videos, True
