"""Extract one camera's videos from many archives in parallel, without reading anything twice.

Archives are read in pieces of fixed size, whether they are on the volume or on a server; most
bytes of those on a server, the depth images, are never downloaded. A small index per archive
(:mod:`.piece_index`) records what each piece contains: a stopped run resumes at the next piece, a
lost video is read alone, and pods can share the archives.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from video2world_common.events import ProgressReporter, say
from video2world_common.files import atomic_path
from video2world_common.folder_locks import locked
from video2world_common.sharding import Shard
from video2world_preprocess.archives.archive import Archive
from video2world_preprocess.archives.piece_index import PieceIndex
from video2world_preprocess.archives.tar_scan import Member, Piece, misaligned_piece, walk
from video2world_preprocess.stage_report import Report

__all__ = ["Extraction"]

COPY_SIZE = 1 << 20  # bytes
READERS = 8


class Extraction:
    """Extracts the videos of ``camera`` from ``archives``, each to the path ``target`` returns.

    ``folder`` is for the indexes. All callbacks are called by several threads.

    Args:
        wanted: whether a video is to be extracted.
        acquire_slot: waits until there is room for one more video.
        on_extracted: called with each extracted video, which takes over the slot.
        release_slot: called instead if the extraction of a video fails.
    """

    def __init__(
        self,
        archives: Sequence[Archive],
        folder: Path,
        camera: str,
        target: Callable[[Member], Path],
        wanted: Callable[[Archive, Member], bool],
        shard: Shard,
        on_extracted: Callable[[Archive, Member], None] = lambda *_: None,
        acquire_slot: Callable[[], None] = lambda: None,
        release_slot: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._camera, self._shard = folder, camera, shard
        self._target, self._wanted = target, wanted
        self._on_extracted = on_extracted
        self._acquire_slot, self._release_slot = acquire_slot, release_slot
        self._indexes = [PieceIndex(archive, folder, camera, shard) for archive in archives]
        self._stop = threading.Event()
        self._without_camera: dict[int, str] = {}
        self.cameras: set[str] = set()  # all that the archives have

    def run(self, stage: str) -> None:
        """Read this shard of the archives.

        Raises:
            OSError: an archive cannot be read, or a video cannot be written. Complete videos are
                kept.
        """
        units = [(index, start) for index in self._indexes for start in index.archive.pieces]
        known = {id(index): index.pieces() for index in self._indexes}
        progress = ProgressReporter(stage, max(len(self._shard.of(units)), 1), "pieces of archives")
        waiting: queue.SimpleQueue[tuple[PieceIndex, int]] = queue.SimpleQueue()
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        mine = self._shard.of(units)
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
            # daemon threads: a terminating pod does not wait for them to finish their pieces
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in mine:
                if (error := done.get()) is not None:
                    raise error
                progress.advance()
        finally:
            self._stop.set()

    def _read(self, index: PieceIndex, start: int, piece: Piece | None) -> None:
        """Read a piece, or of a known ``piece`` the videos that are still wanted."""
        archive = index.archive
        if piece is None:
            with archive.open() as stream:
                at, stop = None if start else 0, archive.pieces[start]
                take, min_skip = self._taker(archive), archive.min_skip
                piece = walk(stream, start, stop, self._camera, take, at, min_skip)
            index.add(archive.explain_damage(piece))
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
            self._acquire_slot()
            try:
                self._copy(member, content)
            except BaseException:
                self._release_slot()
                raise
            self._on_extracted(archive, member)

        return take

    def _copy(self, member: Member, content: IO[bytes]) -> None:
        target = self._target(member)
        if target.is_file() and target.stat().st_size == member.size:
            return
        with atomic_path(target) as partial, partial.open("wb") as output:
            while chunk := content.read(COPY_SIZE):
                output.write(chunk)
            if output.tell() != member.size:
                raise EOFError(f"{output.tell()} of {member.size} bytes are there")

    def members(self, report: Report) -> list[tuple[Archive, Member]] | None:
        """Return the camera's videos in all archives; None until all shards have read theirs.

        Pieces that turn out to have been read from a wrong position are read again. ``report``
        receives what is wrong with each archive.
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
            while (wrong := misaligned_piece([pieces[start] for start in starts])) is not None:
                start, at = starts[wrong[0]], wrong[1]
                pieces[start] = self._read_again(archive, pieces[start], at)
            skipped = {episode for start in starts for episode in pieces[start].skipped}
            if skipped - {m.episode for start in starts for m in pieces[start].members}:
                # the missing video may be among the depth images that were skipped
                for start in starts:
                    if pieces[start].skipped:
                        first = pieces[start].first
                        pieces[start] = self._read_again(archive, pieces[start], first)
            index.complete(pieces)
            videos = [m for start in starts for m in pieces[start].members]
            found += [(archive, member) for member in videos]
            self._report(archive, [pieces[start] for start in starts], len(videos), report)
        for _, member in found:
            self._without_camera.pop(member.episode, None)
        return found

    @property
    def without_camera(self) -> dict[int, str]:
        """The episodes that have no video of the camera, each with the name of its archive."""
        return dict(sorted(self._without_camera.items()))

    def _read_again(self, archive: Archive, piece: Piece, at: int | None) -> Piece:
        """Read ``piece`` again from the member at ``at``, without skipping any header."""
        say(f"{archive.name}: reading again from byte {at}")
        with archive.open() as stream:
            take = self._taker(archive)
            return walk(stream, piece.start, piece.stop, self._camera, take, at)

    def _report(
        self, archive: Archive, pieces: Sequence[Piece], videos: int, report: Report
    ) -> None:
        for piece in pieces:
            for name, reason in piece.rejected:
                report.drop("archive member", f"{archive.name}: {name}", reason)
        found = {member.episode for piece in pieces for member in piece.members}
        without = {e for piece in pieces for e in piece.episodes} - found
        damaged = [piece.damage for piece in pieces if piece.damage and not piece.foreign]
        if (truncated := _truncation(archive, pieces)) is not None:
            damaged.append(truncated)
        for damage in damaged:
            lost = f", those of episodes {_listed(without)} could not" if without else ""
            report.drop(
                "archive",
                archive.name,
                f"truncated or corrupt, {videos} videos of {self._camera} could be read{lost}: "
                f"{damage}; copy or download it again",
            )
        if pieces[0].foreign:
            report.drop("archive", archive.name, pieces[0].damage or "")
        elif not videos:
            report.note("archive", archive.name, f"it has no video of camera {self._camera}")
        if not damaged:
            self._without_camera |= dict.fromkeys(without, archive.name)
        self.cameras |= {camera for piece in pieces for camera in piece.cameras}


def _truncation(archive: Archive, pieces: Sequence[Piece]) -> str | None:
    """Return how an archive is cut off in a way that no single piece shows; None if it is not."""
    read = [piece for piece in pieces if piece.first is not None]
    if not read or read[-1].last or read[-1].damage:
        return None
    end = read[-1].end or 0
    if end > archive.size:
        return f"its last member ends at byte {end}, the file at byte {archive.size}"
    return f"the end mark is missing at byte {end}"


def _listed(episodes: Iterable[int]) -> str:
    numbers = sorted(episodes)
    more = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    return ", ".join(map(str, numbers[:20])) + more
