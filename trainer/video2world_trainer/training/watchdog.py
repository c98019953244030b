"""End a process that makes no progress, after printing the stacks of its threads."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

from video2world_common.events import emit
from video2world_common.exit_codes import EXIT_FAILURE

__all__ = ["Watchdog"]


class Watchdog:
    """Require, within a ``with`` block, a call of :meth:`beat` at least every ``seconds``.

    A collective that waits for a dead or stuck rank cannot be interrupted. After ``seconds``
    without a call, all stacks are printed and the process exits with the code for another attempt.
    """

    def __init__(self, seconds: float, rank: int) -> None:
        self._seconds, self._rank = seconds, rank
        self._last, self._doing = time.monotonic(), "starting"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, doing: str) -> None:
        """Report progress; ``doing`` describes what comes next, for the message."""
        self._last, self._doing = time.monotonic(), doing

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(min(self._seconds / 4, 5.0)):
            waited = time.monotonic() - self._last
            if waited >= self._seconds:
                message = (
                    f"rank {self._rank} made no progress for {waited:.0f} s while {self._doing}: "
                    "another rank has died or hangs, or this takes longer than "
                    f"trainer.timeout_seconds={self._seconds:g}; the stacks of all threads are "
                    "above"
                )
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                print(f"error: {message}", file=sys.stderr, flush=True)
                emit("failed", "train", reason="Hang", message=message)
                os._exit(EXIT_FAILURE)
