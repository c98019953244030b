"""One camera's videos out of many archives: several pieces at once, none read twice.

Archives are read in pieces of fixed size, wherever they are; of those on a server the depth images
are leapt over. What each piece holds is kept in a small index beside the task's videos, so that a
stopped run goes on at the next member, a lost video is fetched alone, and pods can share the
archives between them.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, cast

from video2world_common.events import Progress, say
from video2world_common.files import atomic_path, cut_name, name_bytes, read_json, write_json
from video2world_common.folder_locks import locked
from video2world_common.sharding import Share
from video2world_preprocess.archives.tar_headers import BLOCK, foreign_content
from video2world_preprocess.archives.tar_scan import ARCHIVE_SUFFIXES, Member, Piece, unproven, walk
from video2world_preprocess.hub.range_reader import JUMP, SMALLEST_RANGE, RangeReader, RemoteFile
from video2world_preprocess.listing import entries, why_unusable
from video2world_preprocess.stage_report import Report

__all__ = ["Archive", "Fetch", "find_archives", "local_archive", "remote_archive"]

PIECE = 256 << 20  # bytes; what a kill costs at most, for each reader, is the way through one
ENDLESS = 1 << 62  # the uncompressed size of an archive is not known
FORM = 2  # of an index; those of another form are made again
LONGEST_STEM = 200  # bytes of the name of an index
OTHER_ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".txz", ".tbz2", ".gz", ".zst")
COPIED = 1 << 20  # bytes at a time
READERS = 8


@dataclass(frozen=True)
class Archive:
    """``name`` as reports call it; ``identity`` changes when the content does."""

    name: str
    identity: str
    size: int
    raw: Callable[[], IO[bytes]]  # opens the file as it is
    least_leap: int = 0  # as in :func:`.archives.walk`

    @property
    def is_plain(self) -> bool:
        """Whether it is a tar without compression, by its name."""
        return self.name.endswith(".tar")

    @property
    def pieces(self) -> dict[int, int]:
        """Where its pieces begin and end; only a plain tar can be begun inside."""
        if not self.is_plain:
            return {0: ENDLESS}
        stops = {start: start + PIECE for start in range(0, max(self.size, 1), PIECE)}
        return stops | {max(stops): max(self.size, 1)}

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Yield its content, uncompressed."""
        with self.raw() as stream:
            yield stream if self.is_plain else cast("IO[bytes]", gzip.GzipFile(fileobj=stream))

    def explained(self, piece: Piece) -> Piece:
        """Return ``piece``, which begins the archive, saying so if the file is no such archive."""
        if piece.start == 0 and piece.damage and not piece.members:
            with self.raw() as stream:
                reason = foreign_content(self.name, stream.read(BLOCK))
            if reason is not None:
                return replace(piece, damage=reason, foreign=True)
        return piece


def find_archives(folder: Path, report: Report | None = None) -> list[Path]:
    """Return the archives in ``folder``, by name; others are named in ``report``."""
    found = []
    for path in entries(folder):
        reason = why_unusable(path)
        is_archive = path.name.endswith(ARCHIVE_SUFFIXES)
        if is_archive and reason is None:
            found.append(path)
        elif report is not None and not (
            path.name.isascii() and path.name.isdigit() and path.is_dir()
        ):
            if is_archive or path.suffix.lower() in OTHER_ARCHIVES or ".tar." in path.name.lower():
                endings = ", ".join(ARCHIVE_SUFFIXES)
                report.drop(
                    "archive",
                    path.name,
                    reason
                    or (f"archives that end in {path.suffix} are not read, those in {endings} are"),
                )
            else:
                report.note("file", path.name, reason or "is not read: no archive and no episode")
    return found


def local_archive(path: Path, name: str) -> Archive:
    """An archive on this volume."""
    status = path.stat()
    identity = f"{status.st_size}-{status.st_mtime_ns}"
    return Archive(name, identity, status.st_size, lambda: path.open("rb"))


def remote_archive(file: RemoteFile, name: str, identity: str) -> Archive:
    """An archive on a server."""

    def raw() -> IO[bytes]:
        return io.BufferedReader(RangeReader(file), SMALLEST_RANGE)

    # a leap takes up to two jumps to find its way
    return Archive(name, identity, file.size, raw, 2 * JUMP if name.endswith(".tar") else 0)


class _Index:
    """What is known of one archive's pieces. Each share writes a file of its own."""

    def __init__(self, archive: Archive, folder: Path, camera: str, share: Share) -> None:
        self.archive = archive
        stem = f"{archive.name.replace('/', '-')}.{camera}"
        if name_bytes(stem) > LONGEST_STEM:
            digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:16]
            stem = f"{cut_name(stem, LONGEST_STEM - 17)}-{digest}"
        self._lock = threading.Lock()
        self._stamp = {
            "archive": archive.name,
            "identity": archive.identity,
            "piece": PIECE,
            "form": FORM,
        }
        self._whole = folder / f"{stem}.index.json"
        self._own = folder / f"{stem}.{share}.json"
        self._others = f"{glob.escape(stem)}.*-of-*.json"
        self._mine: dict[int, Piece] = self._load(self._own)

    def _load(self, path: Path) -> dict[int, Piece]:
        try:
            content = read_json(path) or {}
            if any(content.get(key) != value for key, value in self._stamp.items()):
                return {}
            pieces = [
                Piece(**{**p, "members": [Member(*m) for m in p["members"]]})
                for p in content["pieces"]
            ]
        except (ValueError, TypeError, KeyError, AttributeError):
            return {}
        return {piece.start: piece for piece in pieces}

    def _save(self, path: Path, pieces: dict[int, Piece]) -> None:
        listed = [
            {**asdict(piece), "members": [list(vars(m).values()) for m in piece.members]}
            for _, piece in sorted(pieces.items())
        ]
        write_json(path, {**self._stamp, "pieces": listed})

    def pieces(self) -> dict[int, Piece]:
        """The pieces that are known, of all shares, by where they start."""
        with self._lock:
            known = self._load(self._whole)
            if known:
                return known
            for path in self._own.parent.glob(self._others):
                known |= self._load(path)
            return known | self._mine

    def add(self, piece: Piece) -> None:
        with self._lock:
            self._mine[piece.start] = piece
            self._save(self._own, self._mine)

    def close(self, pieces: dict[int, Piece]) -> None:
        """All pieces are there and fit: one file has them from now on."""
        with self._lock:
            self._save(self._whole, pieces)
            for path in self._own.parent.glob(self._others):
                path.unlink(missing_ok=True)


class Fetch:
    """Takes the ``camera``'s videos out of ``archives``, each to the path ``target`` gives it.

    ``wanted`` says whether a member is to be had; ``admit`` makes its reader wait until there is
    room for it; ``arrived`` gets it once it is there, ``dismiss`` is called instead if it does not
    come. All are called by several threads. ``folder`` is for the indexes.
    """

    def __init__(
        self,
        archives: Sequence[Archive],
        folder: Path,
        camera: str,
        target: Callable[[Member], Path],
        wanted: Callable[[Archive, Member], bool],
        share: Share,
        arrived: Callable[[Archive, Member], None] = lambda *_: None,
        admit: Callable[[], None] = lambda: None,
        dismiss: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._camera, self._share = folder, camera, share
        self._target, self._wanted = target, wanted
        self._arrived, self._admit, self._dismiss = arrived, admit, dismiss
        self._indexes = [_Index(archive, folder, camera, share) for archive in archives]
        self._stop = threading.Event()
        self._without: dict[int, str] = {}
        self.cameras: set[str] = set()  # that the archives have

    def run(self, stage: str) -> None:
        """Read this share of the archives.

        Raises:
            OSError: an archive cannot be read, or a video not written; what is whole stays.
        """
        units = [(index, start) for index in self._indexes for start in index.archive.pieces]
        known = {id(index): index.pieces() for index in self._indexes}
        progress = Progress(stage, max(len(self._share.of(units)), 1), "pieces of archives")
        waiting: queue.SimpleQueue[tuple[_Index, int]] = queue.SimpleQueue()
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        mine = self._share.of(units)
        for unit in mine:
            waiting.put(unit)

        def work() -> None:
            while not self._stop.is_set():
                try:
                    index, start = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._read(index, start, known[id(index)].get(start))
                    done.put(None)
                except BaseException as error:
                    done.put(error)
                    return

        for _ in range(min(READERS, len(mine))):
            # daemons: a pod that is asked to end does not wait for the ends of their pieces
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in mine:
                if (error := done.get()) is not None:
                    raise error
                progress.advance()
        finally:
            self._stop.set()

    def _read(self, index: _Index, start: int, piece: Piece | None) -> None:
        archive = index.archive
        if piece is None:
            with archive.open() as stream:
                at, stop = None if start else 0, archive.pieces[start]
                take, least = self._taker(archive), archive.least_leap
                piece = walk(stream, start, stop, self._camera, take, at, least)
            index.add(archive.explained(piece))
            return
        missing = [m for m in piece.members if self._wanted(archive, m)]
        if missing:
            with archive.open() as stream:
                for m in missing:
                    at = m.offset
                    walk(stream, at, at + 1, self._camera, self._taker(archive), at)

    def _taker(self, archive: Archive) -> Callable[[Member, IO[bytes]], None]:
        def take(member: Member, content: IO[bytes]) -> None:
            if not self._wanted(archive, member):
                return
            self._admit()
            try:
                self._copy(member, content)
            except BaseException:
                self._dismiss()
                raise
            self._arrived(archive, member)

        return take

    def _copy(self, member: Member, content: IO[bytes]) -> None:
        target = self._target(member)
        if target.is_file() and target.stat().st_size == member.size:
            return
        with atomic_path(target) as partial, partial.open("wb") as output:
            while chunk := content.read(COPIED):
                output.write(chunk)
            if output.tell() != member.size:
                raise EOFError(f"{output.tell()} of {member.size} bytes are there")

    def members(self, report: Report) -> list[tuple[Archive, Member]] | None:
        """All wanted videos of all archives, once every share has read its own; None before.

        Pieces that turn out to be begun at the wrong place are read again. What is wrong with an
        archive is told in ``report``.
        """
        with locked(self._folder / ".index-lock"):
            return self._members(report)

    def _members(self, report: Report) -> list[tuple[Archive, Member]] | None:
        found: list[tuple[Archive, Member]] = []
        for index in self._indexes:
            archive, pieces = index.archive, index.pieces()
            starts = list(archive.pieces)
            if any(start not in pieces for start in starts):
                return None
            while (wrong := unproven([pieces[start] for start in starts])) is not None:
                start, at = starts[wrong[0]], wrong[1]
                pieces[start] = self._again(archive, pieces[start], at)
            leapt = {episode for start in starts for episode in pieces[start].leapt}
            if leapt - {m.episode for start in starts for m in pieces[start].members}:
                # its video may lie among the depth images that were leapt over
                for start in starts:
                    if pieces[start].leapt:
                        pieces[start] = self._again(archive, pieces[start], pieces[start].first)
            index.close(pieces)
            videos = [m for start in starts for m in pieces[start].members]
            found += [(archive, member) for member in videos]
            self._tell(archive, [pieces[start] for start in starts], len(videos), report)
        for _, member in found:
            self._without.pop(member.episode, None)
        return found

    @property
    def without_camera(self) -> dict[int, str]:
        """The episodes that have no video of the camera, each with its archive."""
        return dict(sorted(self._without.items()))

    def _again(self, archive: Archive, piece: Piece, at: int | None) -> Piece:
        """``piece`` walked anew from ``at``, every header of it."""
        say(f"{archive.name}: reading again from byte {at}")
        with archive.open() as stream:
            take = self._taker(archive)
            return walk(stream, piece.start, piece.stop, self._camera, take, at)

    def _tell(self, archive: Archive, pieces: Sequence[Piece], videos: int, report: Report) -> None:
        for piece in pieces:
            for name, reason in piece.rejected:
                report.drop("archive member", f"{archive.name}: {name}", reason)
        found = {member.episode for piece in pieces for member in piece.members}
        without = {e for piece in pieces for e in piece.episodes} - found
        damaged = [piece.damage for piece in pieces if piece.damage and not piece.foreign]
        if (truncated := _truncation(archive, pieces)) is not None:
            damaged.append(truncated)
        for damage in damaged:
            lost = f"; of episodes {_listed(without)} it could not" if without else ""
            report.drop(
                "archive",
                archive.name,
                f"truncated or corrupt, {videos} videos of {self._camera} could be read{lost}: "
                f"{damage}; copy or download it again",
            )
        if pieces[0].foreign:
            report.drop("archive", archive.name, pieces[0].damage or "")
        elif not videos:
            report.note("archive", archive.name, f"no video of camera {self._camera} in it")
        if not damaged:
            self._without |= dict.fromkeys(without, archive.name)
        self.cameras |= {camera for piece in pieces for camera in piece.cameras}


def _truncation(archive: Archive, pieces: Sequence[Piece]) -> str | None:
    """Say that an archive ends too early, which no piece of it could see; None if it does not."""
    begun = [piece for piece in pieces if piece.first is not None]
    if not begun or begun[-1].last or begun[-1].damage:
        return None
    end = begun[-1].end or 0
    if end > archive.size:
        return f"its last member ends at byte {end}, the file at byte {archive.size}"
    return f"the end mark is missing at byte {end}"


def _listed(episodes: Iterable[int]) -> str:
    numbers = sorted(episodes)
    more = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    return ", ".join(map(str, numbers[:20])) + more
