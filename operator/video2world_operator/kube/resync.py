"""Spreads over time what nobody waits for: so much a second, however much comes due at once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Turns"]

Key = TypeVar("Key", bound=Hashable)


class Turns(Generic[Key]):
    """Gives keys their turns, ``per_second`` of them."""

    def __init__(self, per_second: float) -> None:
        self._apart = 1 / per_second
        self._of: dict[Key, float] = {}
        self._last = float("-inf")

    def next(self, key: Key, now: float, pause: float) -> float:
        """When ``key`` has its turn: the one it has been given, or another if that has come;
        ``pause`` seconds from ``now`` at the earliest, and twice as many at the latest, as turns
        of keys that have gone are not given again."""
        turn = self._of.get(key, now)
        if turn <= now:
            behind = min(self._last + self._apart, now + 2 * pause)
            turn = self._of[key] = self._last = max(now + pause, behind)
        return turn

    def forget(self, key: Key) -> None:
        """Drop what is known of ``key``."""
        self._of.pop(key, None)
