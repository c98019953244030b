"""Find and open tar archives, on the volume or on a server."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

from video2world_preprocess.archives.tar_headers import BLOCK, foreign_content
from video2world_preprocess.archives.tar_scan import Piece
from video2world_preprocess.hub.range_reader import (
    SMALLEST_RANGE,
    WORTH_SKIPPING,
    RangeReader,
    RemoteFile,
)
from video2world_preprocess.listing import entries, why_unusable
from video2world_preprocess.stage_report import Report

__all__ = ["ARCHIVE_SUFFIXES", "Archive", "find_archives", "local_archive", "remote_archive"]

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".txz", ".tbz2", ".gz", ".zst")
PIECE_SIZE = 256 << 20  # bytes; a killed reader loses at most its progress in one piece
UNKNOWN_SIZE = 1 << 62  # stands for the uncompressed size of a compressed archive


@dataclass(frozen=True)
class Archive:
    """A tar archive, read in pieces of ``piece_size`` bytes.

    ``name`` is what reports call it. ``identity`` changes when the content does. ``size`` is that
    of the file, in bytes, and ``raw`` opens the file as it is. For ``min_skip`` see
    :func:`.tar_scan.walk`.
    """

    name: str
    identity: str
    size: int
    raw: Callable[[], IO[bytes]]
    min_skip: int = 0
    piece_size: int = PIECE_SIZE

    @property
    def is_plain(self) -> bool:
        """Whether the archive is uncompressed, judged by its name."""
        return self.name.endswith(".tar")

    @property
    def pieces(self) -> dict[int, int]:
        """The end of each piece by its start; a compressed archive is one piece."""
        if not self.is_plain:
            return {0: UNKNOWN_SIZE}
        size = max(self.size, 1)
        return {
            start: min(start + self.piece_size, size) for start in range(0, size, self.piece_size)
        }

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the uncompressed content."""
        with self.raw() as stream:
            yield stream if self.is_plain else cast("IO[bytes]", gzip.GzipFile(fileobj=stream))

    def explain_damage(self, piece: Piece) -> Piece:
        """Return ``piece``, marked as foreign if the file is not the archive its name promises."""
        if piece.start == 0 and piece.damage and not piece.members:
            with self.raw() as stream:
                reason = foreign_content(self.name, stream.read(BLOCK))
            if reason is not None:
                return replace(piece, damage=reason, foreign=True)
        return piece


def find_archives(folder: Path, report: Report | None = None) -> list[Path]:
    """Return the archives in ``folder``, by name; report all other entries but episode folders."""
    found = []
    for path in entries(folder):
        reason = why_unusable(path)
        is_archive = path.name.endswith(ARCHIVE_SUFFIXES)
        if is_archive and reason is None:
            found.append(path)
        elif report is not None and not _is_episode_folder(path):
            if is_archive or path.suffix.lower() in OTHER_ARCHIVES or ".tar." in path.name.lower():
                readable = ", ".join(ARCHIVE_SUFFIXES)
                report.drop(
                    "archive",
                    path.name,
                    reason or f"{path.suffix} archives are not read, only {readable}",
                )
            else:
                report.note(
                    "file", path.name, reason or "is not read: neither an archive nor an episode"
                )
    return found


def _is_episode_folder(path: Path) -> bool:
    return path.name.isascii() and path.name.isdigit() and path.is_dir()


def local_archive(path: Path, name: str) -> Archive:
    """Return an archive on the volume."""
    status = path.stat()
    identity = f"{status.st_size}-{status.st_mtime_ns}"
    return Archive(name, identity, status.st_size, lambda: path.open("rb"))


def remote_archive(file: RemoteFile, name: str, identity: str) -> Archive:
    """Return an archive on a server."""

    def raw() -> IO[bytes]:
        return io.BufferedReader(RangeReader(file), SMALLEST_RANGE)

    # finding the end of what is skipped takes up to two requests
    min_skip = 2 * WORTH_SKIPPING if name.endswith(".tar") else 0
    return Archive(name, identity, file.size, raw, min_skip)
