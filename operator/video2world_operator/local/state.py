"""Keep the state and logs of a local run on its volume."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from video2world_common.progress_events import parse

__all__ = ["RunRefused", "StateFolder", "log_tail"]

TAIL_LINES = 15
TAIL_BYTES = 64 << 10  # read from the end of a log to find them


class RunRefused(Exception):
    """The run cannot start; the message names the reason and the remedy."""


class StateFolder:
    """The folder of a resource on the volume: its state file, logs and lock."""

    def __init__(self, volume: Path, resource: str) -> None:
        self.volume, self.resource = volume, resource
        self.folder = volume / ".video2world" / resource

    def read(self) -> dict[str, Any]:
        """Return the state of the last run; empty if there was none or its file is damaged."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the state file atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / ".partial-state.json"
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(state, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.folder / "state.json")

    def log(self, stage: str, attempt: int, pod: int) -> Path:
        """Return the path of a pod's log."""
        return self.folder / "logs" / f"{stage}-{attempt}-{pod}.log"

    @property
    def volume_id(self) -> str:
        """The volume's identity, which its first worker wrote; empty if none has yet."""
        try:
            return (self.volume / ".video2world/volume-id").read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the resource's lock while the block runs.

        Raises:
            RunRefused: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as stream:
            if not _lock(stream, fcntl.LOCK_EX):
                time.sleep(0.1)  # :attr:`running` takes the lock for a moment to test it
                if not _lock(stream, fcntl.LOCK_EX):
                    raise RunRefused(
                        f"{self.resource} is already running on {self.volume}: wait for it, or "
                        "choose another metadata.name or --volume"
                    )
            yield

    @property
    def running(self) -> bool:
        """Whether a process is running the resource."""
        try:
            with (self.folder / "lock").open() as stream:
                return not _lock(stream, fcntl.LOCK_SH)
        except OSError:
            return False


def log_tail(log: Path) -> list[str]:
    """Return the last lines of a log that are not event lines; empty if it cannot be read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if parse(line) is None][-TAIL_LINES:]


def _lock(stream: IO[str], kind: int) -> bool:
    """Try to lock a file; False if another process holds it."""
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
