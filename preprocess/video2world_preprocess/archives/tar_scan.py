"""Find one camera's videos in AgiBot's archives, which are treated as untrusted.

Only members named ``<episode>/videos/<camera>.mp4`` are used, and of their names only the episode
number: no name, link or device in an archive decides where a file is written. Most other members
are depth images. A reader that starts inside an archive searches for the next member with a valid
header checksum; :func:`misaligned_piece` finds the pieces for which that was not a real member.
"""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, Self

from video2world_preprocess.archives.tar_headers import (
    BLOCK,
    EXTENDED_HEADERS,
    LARGEST_EXTENDED_HEADER,
    SCAN_SIZE,
    next_header,
    skip_directory,
)

__all__ = ["Member", "Piece", "Take", "misaligned_piece", "walk"]

MAX_CAMERAS = 50  # to list
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@dataclass(frozen=True)
class Member:
    """A video of the camera: its episode, the offset of its header and its size in bytes."""

    episode: int
    offset: int
    size: int


Take = Callable[[Member, IO[bytes]], None]


@dataclass
class Piece:
    """The members that begin in the bytes ``start .. stop - 1`` of an archive.

    Attributes:
        first: offset of the first member of any kind; None if no member begins here.
        end: offset after the last member; None if no member begins here.
        last: whether the archive's end mark was read.
        members: the videos of the camera.
        rejected: names of unsafe members, each with the reason.
        damage: why reading ended early, if it did.
        skipped: the episodes whose depth images were not read member by member.
        episodes: the episodes with any video or depth image.
        cameras: the cameras with any video.
        foreign: whether the file is not an archive of the kind its name says; see ``damage``.
    """

    start: int
    stop: int
    first: int | None = None
    end: int | None = None
    last: bool = False
    members: list[Member] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    damage: str | None = None
    skipped: list[int] = field(default_factory=list)
    episodes: list[int] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    foreign: bool = False


class _CheckedMember(tarfile.TarInfo):
    """Raises an error for damage, where tarfile would end the archive or accept any size."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not in typeshed
            # the proper end: blocks of zeros
            raise
        except (
            tarfile.HeaderError,
            ValueError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ) as error:
            reason = str(error) or type(error).__name__
            raise tarfile.ReadError(
                f"no complete member at byte {archive.offset}: {reason}"
            ) from None

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        is_extended = self.type in EXTENDED_HEADERS
        if self.size < 0 or (is_extended and self.size > LARGEST_EXTENDED_HEADER):
            raise tarfile.HeaderError(f"a size of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed


def _why_unsafe(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute():
        return "its name is an absolute path"
    if ".." in path.parts:
        return "its name contains .."
    if member.issym() or member.islnk():
        return f"it is a link (to {member.linkname})"
    if member.issparse():
        return "it is a sparse file"
    if not (member.isreg() or member.isdir()):
        return "it is a device or another special file"
    return None


def walk(
    stream: Any,
    start: int,
    stop: int,
    camera: str,
    take: Take,
    at: int | None = None,
    min_skip: int = 0,
) -> Piece:
    """Pass the ``camera``'s videos that begin at ``start .. stop - 1`` to ``take``, in order.

    Args:
        stream: the archive, uncompressed and seekable.
        take: called with each video and a stream of its content, which it need not read.
        at: offset of a member, if known; otherwise the next member is searched for.
        min_skip: if set, depth images are skipped where that saves so many bytes at once; see
            :func:`.tar_headers.skip_directory`.

    Raises:
        OSError: raised by ``stream`` or ``take``. Damage of the archive does not raise: the piece
            describes it.
    """
    piece = Piece(start, stop)
    try:
        begin = at if at is not None else next_header(stream, start, stop)
        if begin is None or begin >= stop:
            return piece
        piece.first = begin
        stream.seek(begin)
        with tarfile.TarFile(fileobj=stream, mode="r", tarinfo=_CheckedMember) as members:
            at, skipped = begin, None
            while at < stop:
                member = members.next()
                if member is None:
                    _check_end(piece, stream, at)
                    break
                if members.offset <= at:
                    raise tarfile.ReadError(f"the member at byte {at} has an invalid size")
                at = members.offset
                # tarfile would keep each of millions of depth images in its list of members
                members.members = []  # type: ignore[attr-defined]  # not in typeshed
                _handle(piece, members, member, camera, take)
                if min_skip and (folder := _depth_folder(member)) and folder != skipped:
                    skipped = folder
                    target = skip_directory(stream, at, stop, folder, min_skip)
                    if target > at:
                        at = members.offset = target
                        piece.skipped.append(int(folder.parent.name))
            piece.end = at
    except DAMAGE as error:
        piece.damage = str(error) or type(error).__name__
    except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
        piece.damage = f"{type(error).__name__}: {error}"
    return piece


def _check_end(piece: Piece, stream: Any, at: int) -> None:
    """Check that the archive's end mark, two blocks of zeros, is at ``at``.

    tarfile has read the first block, but also stops at the end of the file.
    """
    already_read = stream.tell() - at
    rest = stream.read(SCAN_SIZE)
    rest += stream.read(1)  # raises an error if a compressed file is truncated
    if already_read < BLOCK or len(rest) < BLOCK or any(rest[:BLOCK]):
        piece.damage = f"the end mark is missing or incomplete at byte {at}"
        return
    piece.last = True
    if any(rest):
        reason = "they are not read: unpack archives that were joined into one file"
        piece.rejected.append((f"data after the end mark at byte {at}", reason))


def _depth_folder(member: tarfile.TarInfo) -> PurePosixPath | None:
    """Return the directory of an episode's depth images if ``member`` is in it."""
    folder = PurePosixPath(member.name).parent
    return folder if folder.name == "depth" and _is_episode(folder.parent.name) else None


def _is_episode(number: str) -> bool:
    return number.isascii() and number.isdigit() and len(number) < 16


def _handle(
    piece: Piece, members: tarfile.TarFile, member: tarfile.TarInfo, camera: str, take: Take
) -> None:
    """Note a member of the archive in ``piece``, and pass it to ``take`` if it is wanted."""
    if (reason := _why_unsafe(member)) is not None:
        piece.rejected.append((member.name, reason))
        return
    parts = PurePosixPath(member.name).parts
    _note_episode(piece, parts)
    if not member.isreg() or parts[-2:] != ("videos", f"{camera}.mp4"):
        return
    number = parts[-3] if len(parts) > 2 else ""
    if not _is_episode(number):
        piece.rejected.append((member.name, "it is not in a folder named by an episode number"))
        return
    found = Member(int(number), member.offset, member.size)
    content = members.extractfile(member)
    assert content is not None  # only other types of members have no content
    take(found, content)
    piece.members.append(found)


def _note_episode(piece: Piece, parts: tuple[str, ...]) -> None:
    """Note the episode and the camera of a video or depth image of any camera."""
    if len(parts) < 3 or parts[-2] not in ("videos", "depth") or not _is_episode(parts[-3]):
        return
    episode, camera = int(parts[-3]), PurePosixPath(parts[-1])
    # fast path: most members belong to the same episode as the member before
    if piece.episodes[-1:] != [episode] and episode not in piece.episodes:
        piece.episodes.append(episode)
    if parts[-2] == "videos" and camera.suffix == ".mp4" and len(piece.cameras) < MAX_CAMERAS:
        piece.cameras += [camera.stem] if camera.stem not in piece.cameras else []


def misaligned_piece(pieces: Sequence[Piece]) -> tuple[int, int] | None:
    """Find the first of ``pieces`` whose first member is not where the piece before it ends.

    ``pieces`` are all pieces of an archive, in order.

    Returns:
        Its index, and the offset to read it from; None if all pieces fit together, so that they
        are equal to what one walk from the start would find.
    """
    at: int | None = 0
    for index, piece in enumerate(pieces):
        if at is not None:
            expected = at if at < piece.stop else None
            if piece.first != expected:
                return index, at
            if expected is None:
                continue
        # after damage there is no position to compare with
        at = None if piece.damage else pieces[-1].stop if piece.last else piece.end
    return None
