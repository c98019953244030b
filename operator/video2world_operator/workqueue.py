"""A queue of keys to work on: each once at a time, repeats merged, failures put off longer."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["WorkQueue"]

Key = TypeVar("Key", bound=Hashable)
log = logging.getLogger(__name__)


class WorkQueue(Generic[Key]):
    """Calls ``work(key)`` for every key that was added, after its delay, with ``workers`` at once.

    A key added again while it waits keeps the earlier time; while it is worked on, it is worked on
    once more afterwards. If ``work`` raises, the key comes back after ``first_delay`` seconds,
    doubled with every failure in a row, up to ``longest_delay``; ``expected`` exceptions are logged
    without a traceback. ``observe`` is told of every call: its seconds, and whether it went well.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[None]],
        *,
        workers: int = 16,
        first_delay: float = 0.5,
        longest_delay: float = 60.0,
        expected: tuple[type[Exception], ...] = (),
    ) -> None:
        self._work, self._workers, self._expected = work, workers, expected
        self._first, self._longest = first_delay, longest_delay
        self._heap: list[tuple[float, int, Key]] = []
        self._due: dict[Key, float] = {}
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()
        self._count = 0
        self.observe: Callable[[float, bool], None] = lambda seconds, ok: None

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Work on ``key`` after ``delay`` seconds at the latest."""
        due = time.monotonic() + delay
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))
        self._changed.set()

    def forget(self, key: Key) -> None:
        """Drop what is known of ``key``."""
        self._due.pop(key, None)
        self._failures.pop(key, None)

    @property
    def depth(self) -> int:
        """Keys whose time has come and that nobody works on yet."""
        now = time.monotonic()
        return sum(due <= now for due in self._due.values())

    @property
    def lag(self) -> float:
        """For how many seconds the most overdue key has been waiting."""
        now = time.monotonic()
        waiting = [now - due for key, due in self._due.items() if key not in self._busy]
        return max([0.0, *waiting])

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            key = await self._next()
            self._busy.add(key)
            started = time.monotonic()
            try:
                await self._work(key)
                self._failures.pop(key, None)
                self.observe(time.monotonic() - started, True)
            except Exception as error:  # whatever it is, the other keys must go on
                count = self._failures[key] = self._failures.get(key, 0) + 1
                delay = min(self._first * 2.0 ** (count - 1), self._longest)
                log.warning(
                    "%s: %s; again in %.1f s",
                    key,
                    error,
                    delay,
                    exc_info=not isinstance(error, self._expected),
                )
                self.add(key, delay)
                self.observe(time.monotonic() - started, False)
            finally:
                self._busy.discard(key)
                self._changed.set()  # it may have been added again meanwhile

    async def _next(self) -> Key:
        while True:
            now = time.monotonic()
            held: list[tuple[float, int, Key]] = []
            found: Key | None = None
            while self._heap and self._heap[0][0] <= now:
                entry = heapq.heappop(self._heap)
                due, _, key = entry
                if self._due.get(key) != due:
                    continue  # superseded
                if key in self._busy:
                    held.append(entry)
                    continue
                del self._due[key]
                found = key
                break
            for entry in held:
                heapq.heappush(self._heap, entry)
            if found is not None:
                return found
            self._changed.clear()
            later = [entry[0] for entry in self._heap if entry[0] > now]
            timeout = min(later) - now if later else None
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                continue
