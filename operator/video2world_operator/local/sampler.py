"""Samples beside training on this machine: one checkpoint at a time, the newest first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["Group", "Sampler"]


class Group(Protocol):
    """The processes that make a checkpoint's samples."""

    def poll(self) -> int | None:
        """Take in what they have told; their exit code once all have ended."""

    def stop(self, *, hard: bool) -> None:
        """Ask them to end, or end them at once."""


class Sampler:
    """Starts a :class:`Group` for the newest checkpoint whenever none is at work."""

    def __init__(
        self, start: Callable[[int], Group], ended: Callable[[int, int | None], None]
    ) -> None:
        """``start`` begins the samples of an iteration; ``ended`` is told of the exit code, None:
        it was overtaken before its turn."""
        self._start, self._ended = start, ended
        self._waiting: int | None = None
        self._at_work: tuple[int, Group] | None = None

    @property
    def iteration(self) -> int | None:
        """The checkpoint whose samples are being made."""
        return self._at_work[0] if self._at_work else None

    def offer(self, iteration: int) -> None:
        """A checkpoint is there; one that still waits for its turn is passed over."""
        if iteration in (self.iteration, self._waiting):
            return
        if self._waiting is not None:
            self._ended(self._waiting, None)
        self._waiting = iteration

    def tick(self) -> None:
        """See what has ended, and start what waits; to be called often."""
        if self._at_work is not None:
            iteration, group = self._at_work
            code = group.poll()
            if code is None:
                return
            self._at_work = None
            self._ended(iteration, code)
        if self._waiting is not None:
            iteration, self._waiting = self._waiting, None
            self._at_work = (iteration, self._start(iteration))

    def finish(self, stopped: Callable[[], bool], pause: float = 0.2) -> None:
        """Wait for what is at work, unless ``stopped``; what waits for its turn has none."""
        if self._waiting is not None:
            self._ended(self._waiting, None)
            self._waiting = None
        while self._at_work is not None and not stopped():
            self.tick()
            time.sleep(pause)

    def stop(self, seconds: Sequence[float] = (60.0, 5.0), pause: float = 0.1) -> None:
        """End what is at work: so many ``seconds`` by itself, then by force."""
        self._waiting = None
        for hard, bound in zip((False, True), seconds, strict=True):
            if self._at_work is not None:
                self._at_work[1].stop(hard=hard)
            deadline = time.monotonic() + bound
            while self._at_work is not None and time.monotonic() < deadline:
                self.tick()
                time.sleep(pause)
