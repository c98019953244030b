"""Reads one namespace in the cluster's store, in a thread of its own, and has it checked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from control_plane import Store

from .invariants import WATCHED, Checker

__all__ = ["Eye"]


class Eye:
    """``checker`` with all changes of ``namespace`` that there were after ``since``.

    Take :attr:`lock` to look at the checker.
    """

    def __init__(self, store: Store, namespace: str, since: int, checker: Checker) -> None:
        self.checker, self.lock = checker, threading.Lock()
        self.failure: BaseException | None = None
        self._closed = threading.Event()
        self._began = time.monotonic()
        self._objects: dict[str, Any] = {}
        kinds = [f"{prefix}{namespace}/" for prefix in WATCHED]
        self._thread = threading.Thread(
            target=self._read, args=(store, kinds, since + 1), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    @property
    def now(self) -> float:
        """Seconds since it was opened."""
        return time.monotonic() - self._began

    def _read(self, store: Store, kinds: list[str], since: int) -> None:
        try:
            for change in store.changes(kinds, since, self._closed):
                with self.lock:
                    if change.body is None:
                        self._objects.pop(change.key, None)
                    else:
                        self._objects[change.key] = change.body
                    self.checker.see(change, self.now)
        except BaseException as error:  # whatever it is, the trial must hear of it
            self.failure = error

    def objects(self, prefix: str) -> list[dict[str, Any]]:
        """The objects that are there now, by name."""
        with self.lock:
            return [self._objects[k] for k in sorted(self._objects) if k.startswith(prefix)]

    def wait(
        self, probe: Callable[[Checker], bool], seconds: float, still: float = float("inf")
    ) -> bool:
        """Whether ``probe`` came true in time; it is over, too, when nothing changes for ``still``.

        Raises:
            RuntimeError: the store cannot be read any more.
        """
        until, states = time.monotonic() + seconds, -1
        while True:
            if self.checker.states != states:
                states, moved = self.checker.states, time.monotonic()
            if self.failure is not None:
                raise RuntimeError("the store cannot be read") from self.failure
            with self.lock:
                self.checker.overdue(self.now)
                if probe(self.checker):
                    return True
            if time.monotonic() > min(until, moved + still):
                return False
            time.sleep(0.25)
