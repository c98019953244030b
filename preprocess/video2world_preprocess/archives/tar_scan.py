"""One camera's videos in AgiBot's archives, which are read from any place and trusted in nothing.

An archive holds mostly depth images that are not wanted; of its members only
``<episode>/videos/<camera>.mp4`` are taken, by the episode's number: no name, link or device in
the archive decides where anything goes. A reader that starts inside an archive looks for the next
member whose header checksum holds; :func:`unproven` finds the pieces that were begun at something
that only looked like one.
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
    LARGEST_NAME,
    NAMES,
    SCAN,
    leap,
    next_header,
)

__all__ = ["ARCHIVE_SUFFIXES", "Member", "Piece", "Take", "unproven", "walk"]

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MOST_CAMERAS = 50  # that are named
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@dataclass(frozen=True)
class Member:
    """A wanted video: its episode's number, where its header begins, and its size in bytes."""

    episode: int
    offset: int
    size: int


Take = Callable[[Member, IO[bytes]], None]


@dataclass
class Piece:
    """What lies in the bytes ``start .. stop - 1`` of an archive: the members that begin there.

    ``first`` is where the first of all members begins, ``end`` where the one after the last does;
    both None where no member begins. ``last``: the archive's end mark was met. ``rejected`` are
    members not to be trusted, each with the reason; ``damage`` says what ended the walk too early.
    ``leapt`` are the episodes of directories that were not read member by member. ``episodes`` and
    ``cameras`` are those that have any video or depth image. ``foreign``: the file is no archive
    of the kind that its name says, as ``damage`` explains.
    """

    start: int
    stop: int
    first: int | None = None
    end: int | None = None
    last: bool = False
    members: list[Member] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    damage: str | None = None
    leapt: list[int] = field(default_factory=list)
    episodes: list[int] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    foreign: bool = False


class _CheckedMember(tarfile.TarInfo):
    """Makes damage an error, where tarfile would quietly end the archive or believe any size."""

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
            raise tarfile.ReadError(f"no whole member at byte {archive.offset}: {reason}") from None

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.type in NAMES and self.size > LARGEST_NAME):
            raise tarfile.HeaderError(f"a size of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed


def _unsafe(member: tarfile.TarInfo) -> str | None:
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
    least_leap: int = 0,
) -> Piece:
    """Hand the ``camera``'s members that begin at ``start .. stop - 1`` to ``take``, in order.

    ``stream`` is the archive, uncompressed and seekable. ``at`` is where a member begins, if that
    is known, else the next one is looked for. ``take`` gets the member and a stream of its
    content, which it may leave unread. With ``least_leap`` an episode's directory of depth images
    is leapt over, as :func:`.headers.leap` does, where so many bytes are saved at once.

    Raises:
        OSError: of ``stream`` or ``take``; damage to the archive is no exception but reported.
    """
    piece = Piece(start, stop)
    try:
        begin = at if at is not None else next_header(stream, start, stop)
        if begin is None or begin >= stop:
            return piece
        piece.first = begin
        stream.seek(begin)
        with tarfile.TarFile(fileobj=stream, mode="r", tarinfo=_CheckedMember) as members:
            at, leapt = begin, None
            while at < stop:
                member = members.next()
                if member is None:
                    _judge_end(piece, stream, at)
                    break
                if members.offset <= at:
                    raise tarfile.ReadError(f"the member at byte {at} has no good size")
                at = members.offset
                # tarfile's list of members would grow with each of millions of depth images
                members.members = []  # type: ignore[attr-defined]  # not in typeshed
                _judge(piece, members, member, camera, take)
                if least_leap and (folder := _depth_folder(member)) and folder != leapt:
                    leapt = folder
                    target = leap(stream, at, stop, folder, least_leap)
                    if target > at:
                        at = members.offset = target
                        piece.leapt.append(int(folder.parent.name))
            piece.end = at
    except DAMAGE as error:
        piece.damage = str(error) or type(error).__name__
    except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
        piece.damage = f"{type(error).__name__}: {error}"
    return piece


def _judge_end(piece: Piece, stream: Any, at: int) -> None:
    """Note whether the archive's end mark, two blocks of zeros, is at ``at``.

    tarfile has read the first block: it ends there, too, where the file does.
    """
    there = stream.tell() - at
    rest = stream.read(SCAN)
    rest += stream.read(1)  # a compressed file that lacks its own end says so at last
    if there < BLOCK or len(rest) < BLOCK or any(rest[:BLOCK]):
        piece.damage = f"the end mark is missing or incomplete at byte {at}"
        return
    piece.last = True
    if any(rest):
        reason = "it is not read: unpack archives that were joined into one file"
        piece.rejected.append((f"what follows the end mark at byte {at}", reason))


def _depth_folder(member: tarfile.TarInfo) -> PurePosixPath | None:
    """The directory of an episode's depth images that ``member`` lies in, if it does."""
    folder = PurePosixPath(member.name).parent
    return folder if folder.name == "depth" and _is_episode(folder.parent.name) else None


def _is_episode(number: str) -> bool:
    return number.isascii() and number.isdigit() and len(number) < 16


def _judge(
    piece: Piece, members: tarfile.TarFile, member: tarfile.TarInfo, camera: str, take: Take
) -> None:
    if (reason := _unsafe(member)) is not None:
        piece.rejected.append((member.name, reason))
        return
    parts = PurePosixPath(member.name).parts
    _note_episode(piece, parts)
    if not member.isreg() or parts[-2:] != ("videos", f"{camera}.mp4"):
        return
    number = parts[-3] if len(parts) > 2 else ""
    if not _is_episode(number):
        piece.rejected.append((member.name, "no episode number above it"))
        return
    found = Member(int(number), member.offset, member.size)
    content = members.extractfile(member)
    assert content is not None  # only directories and the like have no content
    take(found, content)
    piece.members.append(found)


def _note_episode(piece: Piece, parts: tuple[str, ...]) -> None:
    """Remember the episode and the camera of a member of any camera."""
    if len(parts) < 3 or parts[-2] not in ("videos", "depth") or not _is_episode(parts[-3]):
        return
    episode, camera = int(parts[-3]), PurePosixPath(parts[-1])
    # most members are depth images of the episode of the member before
    if piece.episodes[-1:] != [episode] and episode not in piece.episodes:
        piece.episodes.append(episode)
    if parts[-2] == "videos" and camera.suffix == ".mp4" and len(piece.cameras) < MOST_CAMERAS:
        piece.cameras += [camera.stem] if camera.stem not in piece.cameras else []


def unproven(pieces: Sequence[Piece]) -> tuple[int, int] | None:
    """The first of ``pieces`` (all of an archive, in order) that was not begun where it should be.

    Returns its index and where the first member after the pieces before it begins, to be walked
    anew from there; None if all fit together, and so are what one walk from the start would find.
    """
    at: int | None = 0
    for index, piece in enumerate(pieces):
        if at is not None:
            expected = at if at < piece.stop else None
            if piece.first != expected:
                return index, at
            if expected is None:
                continue
        # beyond damage, what was found is taken as it is
        at = None if piece.damage else pieces[-1].stop if piece.last else piece.end
    return None
