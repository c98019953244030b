"""Work that fails in every way, in a module of its own for spawned processes to import."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_preprocess.dataset.windows import Window


class Unportable(Exception):
    """An error that cannot be pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.function = lambda: None


FAULTS: dict[str, Callable[[], Any]] = {
    "value": lambda: int("x"),
    "key": lambda: {}["gone"],
    "index": lambda: [][0],
    "zero": lambda: 1 // 0,
    "type": lambda: None + 1,
    "attribute": lambda: None.gone,
    "unicode": lambda: b"\xff".decode(),
    "stop": lambda: next(iter([])),
    "memory": lambda: bytearray(1 << 62),
    "assertion": lambda: _fail(AssertionError("no")),
    "recursion": lambda: FAULTS["recursion"](),
    "os": lambda: _fail(OSError("a library's")),
    "absent": lambda: Path("/gone/x").read_bytes(),
    "long": lambda: Path("y" * 300).touch(),
    "runtime": lambda: _fail(RuntimeError("")),
    "unportable": lambda: _fail(Unportable(1, 2)),
    "user": lambda: _fail(UserError("it is not of use")),
}
MACHINE = {
    "full": lambda: _fail(OSError(errno.ENOSPC, "No space left on device")),
    "read-only": lambda: _fail(OSError(errno.EROFS, "Read-only file system", "x")),
    "input": lambda: _fail(OSError(errno.EIO, "Input/output error")),
    "stale": lambda: _fail(OSError(errno.ESTALE, "Stale file handle")),
    "files": lambda: _fail(OSError(errno.EMFILE, "Too many open files")),
}
CRASHES = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(3),
}


def _fail(error: Exception) -> None:
    raise error


def go_wrong(how: str) -> None:
    """Fail in the way ``how``, if it is one; crash only worker processes."""
    if how in CRASHES:
        if parent_process() is not None:
            CRASHES[how]()
    elif how:
        (FAULTS | MACHINE)[how]()


@dataclass(frozen=True)
class Hostile:
    """Captions that fail; if ``once``, a path, is set, only the first time."""

    how: str = ""
    once: str = ""
    missing: str = "none"

    def text(self, name: str, window: Window, fps: Fraction) -> str | None:
        """Fail, or return a caption."""
        if not self.once or (parent_process() is not None and not Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            go_wrong(self.how)
        return "The arm moves."


def load(device: str) -> Callable[[str], str]:
    """Return work on items that name a way to fail, or none."""

    def work(item: str) -> str:
        if item == "pid":
            return str(os.getpid())
        if item == "sleep":
            time.sleep(600)
        go_wrong(item)
        return f"{device}: done"

    return work


def load_badly(how: str, device: str) -> Callable[[str], str]:
    """Fail while loading."""
    go_wrong(how)
    return load(device)
