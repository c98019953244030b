"""Publish checkpoints in the guide's folder tree so that each is either complete or absent.

``<job>/checkpoints/{model,optim,scheduler,trainer}/iter_%09d.pt`` and ``optim/iter_%09d/``, with
each rank's shards, are written under temporary names, flushed and renamed. Then
``trainer/iter_%09d.json`` records the sizes and CRC-32 checksums of all these files, and finally
``latest_checkpoint.txt`` is updated. ``model/config.json`` describes the run: what it trains, and
what inference needs to know. Old checkpoints are pruned, except while a process reads them
(:func:`pin_checkpoint`).
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
from typing import IO, Any, cast

import torch

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.files import atomic_write, read_json, write_json, write_text

__all__ = [
    "PARTS",
    "CheckpointFolder",
    "crc32",
    "file_record",
    "pin_checkpoint",
    "read_latest",
]

PARTS = ("model", "optim", "scheduler", "trainer")
_NAME = re.compile(r"iter_(\d{9})\.pt")
_CHUNK = 1 << 22


class _Checksum:
    """Write to a stream, counting bytes and updating a checksum."""

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
    """Return the iteration in ``latest_checkpoint.txt``; None if it is missing or malformed."""
    try:
        text = (folder / "latest_checkpoint.txt").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    match = _NAME.fullmatch(text.strip())
    return int(match[1]) if match else None


@dataclass(frozen=True)
class CheckpointFolder:
    """The ``checkpoints`` folder of a run: one process writes it, any number may read it."""

    folder: Path

    def path(self, part: str, iteration: int) -> Path:
        """Return the file of one of a checkpoint's :data:`PARTS`."""
        return self.folder / part / f"iter_{iteration:09d}.pt"

    def _manifest(self, iteration: int) -> Path:
        return self.folder / "trainer" / f"iter_{iteration:09d}.json"

    @property
    def config_path(self) -> Path:
        """The file that describes the run."""
        return self.folder / "model" / "config.json"

    def iterations(self) -> list[int]:
        """Return the iterations of which any part exists, newest first."""
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
        """Write and publish a checkpoint without shards.

        Args:
            iteration: iterations done.
            contents: the content of each of the :data:`PARTS`.
            keep: number of newest checkpoints to keep; 0 keeps all.

        Returns:
            The model file.

        Raises:
            OSError: it could not be written; earlier checkpoints stay published.
        """
        record = {part: self.write(part, iteration, contents[part]) for part in PARTS}
        return self.publish(iteration, record, keep=keep)

    def write(self, part: str, iteration: int, content: Mapping[str, Any]) -> dict[str, int]:
        """Write the file of one part without publishing it, and return its record."""
        sums: list[_Checksum] = []

        def write(stream: IO[bytes]) -> None:
            sums.append(_Checksum(stream))
            # torch writes the zip archive sequentially, so the checksum needs no second pass
            try:
                torch.save(dict(content), cast(IO[bytes], sums[0]))  # only write and flush are used
            except RuntimeError:  # on a full disk torch reports an unexpected file position
                if sums[0].error is not None:
                    raise sums[0].error from None
                raise

        atomic_write(self.path(part, iteration), write)
        return {"bytes": sums[0].bytes, "crc32": sums[0].crc32}

    def publish(
        self,
        iteration: int,
        record: Mapping[str, Any],
        *,
        keep: int = 0,
        healthy: int | None = None,
        losses: Mapping[int, float] | None = None,
    ) -> Path:
        """Mark a checkpoint as complete, and prune older ones.

        Args:
            iteration: the checkpoint's iteration, whose files are all written.
            record: size and checksum of each file, by part.
            keep: number of newest checkpoints to keep; 0 keeps all.
            healthy: also keep the newest checkpoint up to this iteration (default: ``iteration``).
            losses: validation losses by iteration; also keep the checkpoint with the least.

        Returns:
            The model file.
        """
        write_json(self._manifest(iteration), record)
        write_text(self.folder / "latest_checkpoint.txt", f"iter_{iteration:09d}.pt\n")
        if keep:
            self._prune(keep, iteration, iteration if healthy is None else healthy, losses or {})
        return self.path("model", iteration)

    def shards(self, iteration: int) -> Path:
        """Return the folder of the checkpoint's shards, alongside the ``optim`` file."""
        return self.folder / "optim" / f"iter_{iteration:09d}"

    def merged(self, iteration: int) -> Path:
        """Return the model file of a LoRA run with adapters merged into the weights."""
        return self.folder / "model" / f"iter_{iteration:09d}_merged.pt"

    def _prune(self, keep: int, latest: int, healthy: int, losses: Mapping[int, float]) -> None:
        existing = self.iterations()
        last_healthy = next((one for one in existing if one <= healthy), None)
        validated = [one for one in existing if one in losses]
        best = min(validated, key=lambda one: (losses[one], one), default=None)
        for iteration in [one for one in existing if one != latest][max(keep - 1, 0) :]:
            if iteration in (last_healthy, best):
                continue
            with _exclusive_lock(self.path("model", iteration)) as locked:
                if locked:
                    self._delete(iteration)
                else:
                    say(f"checkpoint {iteration} is kept while its samples are being generated")

    def delete_after(self, iteration: int) -> int | None:
        """Delete all checkpoints after ``iteration``; return the newest remaining one."""
        later = [one for one in self.iterations() if one > iteration]
        newest = next((one for one in self.iterations() if one <= iteration), None)
        if newest is None:
            (self.folder / "latest_checkpoint.txt").unlink(missing_ok=True)
        elif later:
            write_text(self.folder / "latest_checkpoint.txt", f"iter_{newest:09d}.pt\n")
        for one in later:
            self._delete(one)
        return newest

    def _delete(self, iteration: int) -> None:
        # trainer first: a partly deleted checkpoint must not look complete
        for path in [self.path(part, iteration) for part in reversed(PARTS)]:
            path.unlink(missing_ok=True)
        self.merged(iteration).unlink(missing_ok=True)
        shutil.rmtree(self.shards(iteration), ignore_errors=True)
        self._manifest(iteration).unlink(missing_ok=True)

    def delete_partial_files(self) -> None:
        """Delete what killed writers left behind; only the writing process may call this."""
        for part in (".", *PARTS):
            for path in (self.folder / part).glob(".partial-*"):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def find_damage(self, iteration: int, parts: tuple[str, ...] = PARTS) -> str | None:
        """Describe what is wrong with a checkpoint's files; None if they are complete.

        Sizes and checksums are compared with the record. Without a record, as in checkpoints of
        Cosmos-Predict2's own trainer, each file must load.
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

    def latest_complete(self, parts: tuple[str, ...] = PARTS) -> int | None:
        """Return the iteration to resume from; None if there is no checkpoint.

        This is the one that ``latest_checkpoint.txt`` names if it is complete, otherwise the newest
        complete one, with a message.

        Raises:
            UserError: a checkpoint was published, but none is complete.
        """
        latest = read_latest(self.folder)
        published = (self.folder / "latest_checkpoint.txt").exists()
        others = [one for one in self.iterations() if one != latest]
        if published and latest is None:
            say(
                f"{self.folder / 'latest_checkpoint.txt'} is damaged: looking for the newest "
                "complete checkpoint"
            )
        for iteration in ([latest] if latest is not None else []) + others:
            damage = self.find_damage(iteration, parts)
            if damage is None:
                if published and iteration != latest:
                    say(f"resuming from iteration {iteration}, the newest complete checkpoint")
                return iteration
            say(f"checkpoint {iteration} is not complete: {damage}")
        if published:
            raise UserError(
                f"no checkpoint in {self.folder} is complete: restore one, or move this folder "
                "aside to train from the start"
            )
        return None

    def load(self, part: str, iteration: int) -> dict[str, Any]:
        """Load one part, with tensors memory-mapped on the CPU."""
        content = torch.load(
            self.path(part, iteration), map_location="cpu", weights_only=True, mmap=True
        )
        return dict(content)

    def set_description(self, description: Mapping[str, Any]) -> None:
        """Write the run's description, unless the folder holds another run's checkpoints.

        The flat ``description["run"]`` must be equal for a run to resume.

        Raises:
            UserError: the folder belongs to another run; the message names every difference.
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
def pin_checkpoint(path: Path) -> Iterator[bool]:
    """Protect a model file from pruning while it is read; yield whether it exists.

    This is a shared ``flock``, which the kernel releases when the process ends. On file systems
    without locks the file may be pruned while it is read.
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
        yield path.exists()  # it may have been deleted between open and flock


@contextlib.contextmanager
def _exclusive_lock(path: Path) -> Iterator[bool]:
    """Lock a model file against readers; yield False if a reader has pinned it."""
    try:
        stream = path.open("r+b")
    except OSError:
        yield True
        return
    with stream:
        locked = True
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = False
        except OSError:  # the file system has no locks
            pass
        yield locked


def file_record(path: Path) -> dict[str, int]:
    """Return the size and checksum of a file, for a checkpoint's record."""
    return {"bytes": path.stat().st_size, "crc32": crc32(path)}


def crc32(path: Path) -> int:
    """Return the CRC-32 checksum of a file."""
    value = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
