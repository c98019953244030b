"""Checkpoints in the guide's tree that are either whole or not there, and say whose they are.

``<job>/checkpoints/{model,optim,scheduler,trainer}/iter_%09d.pt`` are written aside, flushed and
renamed; so is ``optim/iter_%09d/``, where each rank put its part of the state. Then
``trainer/iter_%09d.json`` records size and CRC-32 of all these files, and
``latest_checkpoint.txt`` moves last. ``model/config.json`` describes the run: what it trains, and
what inference must know. Old checkpoints are deleted, but not while somebody holds them
(:func:`held`).
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.files import atomic_write, read_json, write_json, write_text

__all__ = ["PARTS", "CheckpointFolder", "crc32", "entry", "held", "newest_whole", "read_latest"]

PARTS = ("model", "optim", "scheduler", "trainer")
_NAME = re.compile(r"iter_(\d{9})\.pt")
_CHUNK = 1 << 22


class _Checksum:
    """A write-only stream that counts and sums what passes through it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.bytes = self.crc32 = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.bytes += view.nbytes
        self.crc32 = zlib.crc32(view, self.crc32)
        try:
            return self._stream.write(view)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._stream.flush()


def read_latest(folder: Path) -> int | None:
    """The iteration that ``latest_checkpoint.txt`` names; None if it is missing or garbled."""
    try:
        text = (folder / "latest_checkpoint.txt").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    match = _NAME.fullmatch(text.strip())
    return int(match[1]) if match else None


def newest_whole(folder: Path, parts: tuple[str, ...] = PARTS) -> int | None:
    """The iteration to go on from: the one that latest_checkpoint.txt names if it is whole, else
    the newest whole one (saying so); None where there is no checkpoint.

    Raises:
        UserError: there are checkpoints, one was published, and none is whole.
    """
    return CheckpointFolder(folder).newest_whole(parts)


@dataclass(frozen=True)
class CheckpointFolder:
    """The ``checkpoints`` folder of a run. One process writes, any may read."""

    folder: Path

    def path(self, part: str, iteration: int) -> Path:
        """The file of one part of a checkpoint."""
        return self.folder / part / f"iter_{iteration:09d}.pt"

    def _manifest(self, iteration: int) -> Path:
        return self.folder / "trainer" / f"iter_{iteration:09d}.json"

    @property
    def config_path(self) -> Path:
        """The description of the run."""
        return self.folder / "model" / "config.json"

    def iterations(self) -> list[int]:
        """Iterations of which any part is there, newest first."""
        found = {
            int(match[1])
            for part in PARTS
            for path in (self.folder / part).glob("iter_*.pt")
            if (match := _NAME.fullmatch(path.name))
        }
        return sorted(found, reverse=True)

    def save(
        self, iteration: int, contents: Mapping[str, Mapping[str, Any]], *, keep: int = 0
    ) -> Path:
        """Write ``contents`` (one dictionary a part, see :data:`PARTS`) and publish it.

        Args:
            iteration: optimizer steps done.
            contents: what each part's file holds.
            keep: how many of the newest checkpoints stay; 0 keeps all.

        Returns:
            The model file.

        Raises:
            OSError: it could not be written; what was published before stays published.
        """
        record = {part: self.write(part, iteration, contents[part]) for part in PARTS}
        return self.publish(iteration, record, keep=keep)

    def write(self, part: str, iteration: int, content: Mapping[str, Any]) -> dict[str, int]:
        """Write one part's file, unpublished; its entry in the record."""
        sums: list[_Checksum] = []

        def write(stream: IO[bytes]) -> None:
            sums.append(_Checksum(stream))
            # the zip is written front to back, so that its sum can be taken on the way
            try:
                torch.save(dict(content), sums[0])
            except RuntimeError:  # torch, on a full disk, complains of a file position
                if sums[0].error is not None:
                    raise sums[0].error from None
                raise

        atomic_write(self.path(part, iteration), write)
        return {"bytes": sums[0].bytes, "crc32": sums[0].crc32}

    def publish(
        self, iteration: int, record: Mapping[str, Any], *, keep: int = 0, sound: int | None = None
    ) -> Path:
        """Declare a checkpoint whole whose files lie there, each with its entry in ``record``.

        Of older ones ``keep`` stay (0: all), and the newest that is not after ``sound``.
        """
        write_json(self._manifest(iteration), record)
        write_text(self.folder / "latest_checkpoint.txt", f"iter_{iteration:09d}.pt\n")
        if keep:
            self._prune(keep, iteration, iteration if sound is None else sound)
        return self.path("model", iteration)

    def shards(self, iteration: int) -> Path:
        """The folder beside optim's file with each rank's part of the state."""
        return self.folder / "optim" / f"iter_{iteration:09d}"

    def merged(self, iteration: int) -> Path:
        """The model file of a LoRA run with its adapters folded in."""
        return self.folder / "model" / f"iter_{iteration:09d}_merged.pt"

    def _prune(self, keep: int, latest: int, sound: int) -> None:
        there = self.iterations()
        last_sound = next((one for one in there if one <= sound), None)
        for iteration in [one for one in there if one != latest][max(keep - 1, 0) :]:
            if iteration == last_sound:
                continue
            with _given_up(self.path("model", iteration)) as free:
                if free:
                    self._remove(iteration)
                else:
                    say(f"checkpoint {iteration} stays while its samples are made")

    def withdraw(self, after: int) -> int | None:
        """Delete all checkpoints after an iteration; returns the newest that is left."""
        gone = [one for one in self.iterations() if one > after]
        left = next((one for one in self.iterations() if one <= after), None)
        if left is None:
            (self.folder / "latest_checkpoint.txt").unlink(missing_ok=True)
        elif gone:
            write_text(self.folder / "latest_checkpoint.txt", f"iter_{left:09d}.pt\n")
        for iteration in gone:
            self._remove(iteration)
        return left

    def _remove(self, iteration: int) -> None:
        # trainer first: a half-pruned checkpoint must not look whole
        for path in [self.path(part, iteration) for part in reversed(PARTS)]:
            path.unlink(missing_ok=True)
        self.merged(iteration).unlink(missing_ok=True)
        shutil.rmtree(self.shards(iteration), ignore_errors=True)
        self._manifest(iteration).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what killed writers left; only the writing process may call it."""
        for part in (".", *PARTS):
            for path in (self.folder / part).glob(".partial-*"):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def fault(self, iteration: int, parts: tuple[str, ...] = PARTS) -> str | None:
        """What is wrong with a checkpoint's files, or None if they are whole.

        Sizes and sums are compared with the record; without one (upstream's files) each file must
        load.
        """
        try:
            record = read_json(self._manifest(iteration))
        except (ValueError, OSError):
            record = None
        record = record if isinstance(record, dict) else {}
        wanted: dict[Path, Any] = {self.path(part, iteration): record.get(part) for part in parts}
        if "optim" in parts:
            wanted |= {
                self.shards(iteration) / name: one
                for name, one in record.get("shards", {}).items()
                if Path(name).name == name
            }
        for path, one in wanted.items():
            if not path.is_file():
                return f"{path} is missing"
            if one is None:
                try:
                    torch.load(path, map_location="cpu", weights_only=True)
                except Exception as error:  # damage shows as almost any exception
                    return f"{path} does not load ({type(error).__name__})"
            elif path.stat().st_size != one["bytes"]:
                return f"{path} has {path.stat().st_size} bytes instead of {one['bytes']}"
            elif crc32(path) != one["crc32"]:
                return f"{path} is damaged (its checksum is not the recorded one)"
        return None

    def newest_whole(self, parts: tuple[str, ...] = PARTS) -> int | None:
        """See :func:`newest_whole`."""
        latest = read_latest(self.folder)
        published = (self.folder / "latest_checkpoint.txt").exists()
        others = [one for one in self.iterations() if one != latest]
        if published and latest is None:
            say(
                f"{self.folder / 'latest_checkpoint.txt'} is damaged: looking for the newest "
                "whole checkpoint"
            )
        for iteration in ([latest] if latest is not None else []) + others:
            fault = self.fault(iteration, parts)
            if fault is None:
                if published and iteration != latest:
                    say(f"going on from iteration {iteration}, the newest whole checkpoint")
                return iteration
            say(f"checkpoint {iteration} is not whole: {fault}")
        if published:
            raise UserError(
                f"no checkpoint in {self.folder} is whole: restore one, or move this folder aside "
                "to train from the start"
            )
        return None

    def load(self, part: str, iteration: int) -> dict[str, Any]:
        """The content of one part, tensors on the CPU (memory-mapped)."""
        content = torch.load(
            self.path(part, iteration), map_location="cpu", weights_only=True, mmap=True
        )
        return dict(content)

    def claim(self, description: Mapping[str, Any]) -> None:
        """Put the run's description here, or refuse if another run's checkpoints lie here.

        ``description["run"]`` (flat) is what must be equal for training to go on.

        Raises:
            UserError: the folder belongs to another run; every difference is named.
        """
        before = None
        with contextlib.suppress(ValueError):
            before = read_json(self.config_path)
        if self.iterations() and isinstance(before, dict):
            mine, theirs = description["run"], before.get("run", {})
            differences = [
                f"{key} is {theirs.get(key)!r} there and {mine.get(key)!r} here"
                for key in sorted({*mine, *theirs})
                if mine.get(key) != theirs.get(key)
            ]
            if differences:
                raise UserError(
                    f"{self.folder} holds the checkpoints of another run: "
                    f"{'; '.join(differences)}. Choose another job.name, or move the folder aside"
                )
        if before != description:
            write_json(self.config_path, description)


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Keep a model file from being pruned while it is read; yields whether it is there.

    The lock is the kernel's (``flock``) and ends with the process. Where a file system has none,
    pruning goes ahead, and who reads the file has to bear that.
    """
    if path.is_dir():
        yield True
        return
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        yield False
        return
    with stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_SH)
        yield path.exists()  # whoever pruned it may have been a moment quicker


@contextlib.contextmanager
def _given_up(path: Path) -> Iterator[bool]:
    """Whether nobody holds ``path``; nobody can while the block runs."""
    try:
        stream = path.open("r+b")
    except OSError:
        yield True
        return
    with stream:
        free = True
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:  # no locks on this file system
            pass
        yield free


def entry(path: Path) -> dict[str, int]:
    """A written file's entry in the record."""
    return {"bytes": path.stat().st_size, "crc32": crc32(path)}


def crc32(path: Path) -> int:
    """The checksum of a file."""
    value = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
