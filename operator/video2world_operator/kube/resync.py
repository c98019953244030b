"""Pace periodic resyncs: so many a second, however many come due at once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["ResyncPacer"]

Key = TypeVar("Key", bound=Hashable)


class ResyncPacer(Generic[Key]):
    """Assign keys the times of their next resync, ``per_second`` of them."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._times: dict[Key, float] = {}
        self._last = float("-inf")

    def next(self, key: Key, now: float, pause: float) -> float:
        """Return the time of the next resync of ``key``: the one assigned before if it is ahead.

        A new time is ``pause`` seconds from ``now`` at the earliest and twice that at the latest,
        since the times of keys that were forgotten are not assigned again.
        """
        time = self._times.get(key, now)
        if time <= now:
            behind = min(self._last + self._interval, now + 2 * pause)
            time = self._times[key] = self._last = max(now + pause, behind)
        return time

    def forget(self, key: Key) -> None:
        """Drop the time assigned to ``key``."""
        self._times.pop(key, None)
