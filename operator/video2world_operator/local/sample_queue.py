"""Decide which checkpoint is sampled next: one at a time, the newest first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["SampleQueue", "SamplingJob"]


class SamplingJob(Protocol):
    """The processes that sample one checkpoint."""

    def poll(self) -> int | None:
        """Read their output; return their exit code once all have ended, else None."""

    def stop(self, *, force: bool) -> None:
        """Ask them to stop, or kill them."""


class SampleQueue:
    """Starts a job for the newest checkpoint whenever none is running."""

    def __init__(
        self, start: Callable[[int], SamplingJob], on_end: Callable[[int, int | None], None]
    ) -> None:
        """``start`` starts the job of an iteration; ``on_end`` gets its exit code, or None if it
        was skipped."""
        self._start, self._on_end = start, on_end
        self._waiting: int | None = None
        self._running: tuple[int, SamplingJob] | None = None

    @property
    def iteration(self) -> int | None:
        """The checkpoint that is being sampled."""
        return self._running[0] if self._running else None

    def offer(self, iteration: int) -> None:
        """Queue a new checkpoint; one that still waits is skipped."""
        if iteration in (self.iteration, self._waiting):
            return
        self._skip_waiting()
        self._waiting = iteration

    def tick(self) -> None:
        """Record a job that has ended, and start the one that waits; to be called often."""
        if self._running is not None:
            iteration, job = self._running
            code = job.poll()
            if code is None:
                return
            self._running = None
            self._on_end(iteration, code)
        if self._waiting is not None:
            iteration, self._waiting = self._waiting, None
            self._running = (iteration, self._start(iteration))

    def finish(self, stopped: Callable[[], bool], pause: float = 0.2) -> None:
        """Skip the checkpoint that waits, and wait for the running job unless ``stopped``."""
        self._skip_waiting()
        while self._running is not None and not stopped():
            self.tick()
            time.sleep(pause)

    def stop(self, seconds: Sequence[float] = (60.0, 5.0), pause: float = 0.1) -> None:
        """Stop the running job: wait the first of ``seconds``, kill it, wait the second."""
        self._waiting = None
        for force, bound in zip((False, True), seconds, strict=True):
            if self._running is not None:
                self._running[1].stop(force=force)
            deadline = time.monotonic() + bound
            while self._running is not None and time.monotonic() < deadline:
                self.tick()
                time.sleep(pause)

    def _skip_waiting(self) -> None:
        if self._waiting is not None:
            self._on_end(self._waiting, None)
            self._waiting = None
