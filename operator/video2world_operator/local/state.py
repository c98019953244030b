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

__all__ = ["RunRefused", "StateFolder"]


class RunRefused(Exception):
    """The run cannot begin; the message names the reason and the remedy."""


class StateFolder:
    """What the engine keeps of a resource on the volume: state, logs, lock."""

    def __init__(self, volume: Path, resource: str) -> None:
        self.volume, self.resource = volume, resource
        self.folder = volume / ".video2world" / resource

    def read(self) -> dict[str, Any]:
        """The state of the last run; empty if there was none or its file is damaged."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep ``state``, at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / ".partial-state.json"
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(state, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.folder / "state.json")

    def log(self, stage: str, attempt: int, pod: int) -> Path:
        """Where the output of a pod goes."""
        return self.folder / "logs" / f"{stage}-{attempt}-{pod}.log"

    @property
    def identity(self) -> str:
        """The volume's identity, as its first worker wrote it; empty if none has."""
        try:
            return (self.volume / ".video2world/volume-id").read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the resource's lock; another run of it on this volume is refused."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as stream:
            if not _lock(stream, fcntl.LOCK_EX):
                time.sleep(0.1)  # it may have been somebody who only asked whether it is held
                if not _lock(stream, fcntl.LOCK_EX):
                    raise RunRefused(
                        f"{self.resource} is running on {self.volume} already: wait for it, or "
                        "choose another metadata.name or --volume"
                    )
            yield

    @property
    def held(self) -> bool:
        """Whether a process runs the resource now."""
        try:
            with (self.folder / "lock").open() as stream:
                return not _lock(stream, fcntl.LOCK_SH)
        except OSError:
            return False


def _lock(stream: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
