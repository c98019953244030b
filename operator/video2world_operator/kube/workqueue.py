"""Queue keys for work: one worker per key, repeats merged, failures retried with backoff."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["WorkQueue"]

Key = TypeVar("Key", bound=Hashable)
log = logging.getLogger(__name__)
URGENT_IN_A_ROW = 3  # urgent keys taken before one that is not urgent gets its turn


class _Lane(Generic[Key]):
    """Keys that are due, handed out round-robin over tenants."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Hashable, OrderedDict[Key, None]] = OrderedDict()  # by tenant

    def put(self, tenant: Hashable, key: Key) -> None:
        self._keys.setdefault(tenant, OrderedDict())[key] = None

    def take(self, may: Callable[[Hashable], bool]) -> tuple[Key] | None:
        """Take the first key of the first tenant that ``may`` have another key worked on."""
        for tenant in filter(may, self._keys):
            keys = self._keys.pop(tenant)
            key, _ = keys.popitem(last=False)
            if keys:
                self._keys[tenant] = keys  # behind the other tenants
            return (key,)
        return None


class WorkQueue(Generic[Key]):
    """Call ``work(key)`` for every key that was added, after its delay, ``workers`` at a time.

    A key that is added again while it waits keeps the earlier time; if it is being worked on, it is
    worked on once more afterwards. If ``work`` raises, the key is retried after ``first_delay``
    seconds, doubled with every failure in a row, up to ``longest_delay``; ``expected`` exceptions
    are logged without a traceback. Due keys are taken round-robin by ``tenant``, so that none waits
    for all keys of another, and no tenant has more than ``per_tenant`` workers at once. ``urgent``
    keys overtake others, but after :data:`URGENT_IN_A_ROW` of them another one has its turn.
    ``observe`` is called after every call of ``work`` with its seconds and whether it succeeded.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[None]],
        *,
        workers: int = 16,
        first_delay: float = 0.5,
        longest_delay: float = 60.0,
        expected: tuple[type[Exception], ...] = (),
        tenant: Callable[[Key], Hashable] = lambda key: None,
        per_tenant: int | None = None,
        urgent: Callable[[Key], bool] = lambda key: False,
    ) -> None:
        self._work, self._expected, self._tenant = work, expected, tenant
        self._urgent, self._most = urgent, per_tenant or workers
        self._first, self._longest = first_delay, longest_delay
        self._due: dict[Key, float] = {}
        self._later: list[tuple[float, int, Key]] = []  # heap of keys that are not due yet
        self._first_lane: _Lane[Key] = _Lane()  # urgent keys; they may be in the other one, too
        self._other_lane: _Lane[Key] = _Lane()
        self._in_a_row = 0  # urgent keys taken since another one was
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()
        self._free = asyncio.Semaphore(workers)
        self._count = 0
        self.observe: Callable[[float, bool], None] = lambda seconds, ok: None

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Work on ``key`` after ``delay`` seconds at the latest."""
        due = time.monotonic() + delay
        if key in self._due and self._due[key] <= due:
            if self._due[key] <= time.monotonic() and self._urgent(key):
                self._first_lane.put(self._tenant(key), key)  # it may have become urgent
            return
        self._due[key] = due
        self._put(key)
        if self._later[0][2] == key:
            self._changed.set()

    def _put(self, key: Key) -> None:
        self._count += 1
        heapq.heappush(self._later, (self._due[key], self._count, key))

    def forget(self, key: Key) -> None:
        """Drop ``key`` and its count of failures."""
        self._due.pop(key, None)
        self._failures.pop(key, None)

    @property
    def depth(self) -> int:
        """The number of keys that are due and not being worked on."""
        now = time.monotonic()
        return sum(due <= now for due in self._due.values())

    @property
    def lag(self) -> float:
        """How long the most overdue key has been waiting, in seconds."""
        now = time.monotonic()
        waiting = [now - due for key, due in self._due.items() if key not in self._busy]
        return max([0.0, *waiting])

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._free.acquire()
                group.create_task(self._serve(await self._next()))

    async def _serve(self, key: Key) -> None:
        started = time.monotonic()
        try:
            await self._work(key)
            self._failures.pop(key, None)
            self.observe(time.monotonic() - started, True)
        except Exception as error:  # the other keys must not suffer from it
            count = self._failures[key] = self._failures.get(key, 0) + 1
            delay = min(self._first * 2.0 ** (count - 1), self._longest)
            log.warning(
                "%s: %s; retrying in %.1f s",
                key,
                error,
                delay,
                exc_info=not isinstance(error, self._expected),
            )
            self.add(key, delay)
            self.observe(time.monotonic() - started, False)
        finally:
            self._busy.discard(key)
            if key in self._due:  # added meanwhile, and passed over if it was due
                self._put(key)
            self._free.release()
            self._changed.set()

    async def _next(self) -> Key:
        """Take the next key to work on, once there is one."""
        while True:
            self._move_due()
            while (taken := self._take()) is not None:
                (key,) = taken
                if key not in self._due or key in self._busy:
                    continue  # forgotten, or taken from the other lane
                del self._due[key]
                self._busy.add(key)
                return key
            self._changed.clear()
            timeout = self._later[0][0] - time.monotonic() if self._later else None
            with contextlib.suppress(TimeoutError):
                # not wait_for(): before Python 3.12 it can swallow a cancellation
                async with asyncio.timeout(timeout):
                    await self._changed.wait()

    def _take(self) -> tuple[Key] | None:
        working = Counter(map(self._tenant, self._busy))

        def may(tenant: Hashable) -> bool:
            return working[tenant] < self._most

        if self._in_a_row < URGENT_IN_A_ROW and (taken := self._first_lane.take(may)):
            self._in_a_row += 1
            return taken
        self._in_a_row = 0
        return self._other_lane.take(may) or self._first_lane.take(may)

    def _move_due(self) -> None:
        """Move due keys into their lane, behind the others of their tenant."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            if self._due.get(key) == due and key not in self._busy:
                lane = self._first_lane if self._urgent(key) else self._other_lane
                lane.put(self._tenant(key), key)
