"""Watch one namespace in etcd on a thread and feed every change to the invariant checker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from control_plane import Store

from .history import WATCHED
from .invariants import Checker

__all__ = ["EtcdWatcher"]


class EtcdWatcher:
    """Feed ``checker`` all changes in ``namespace`` after revision ``since``.

    Hold :attr:`lock` while reading the checker.
    """

    def __init__(self, store: Store, namespace: str, since: int, checker: Checker) -> None:
        self.checker, self.lock = checker, threading.Lock()
        self.failure: BaseException | None = None
        self._closed = threading.Event()
        self._started = time.monotonic()
        self._objects: dict[str, Any] = {}
        kinds = [f"{prefix}{namespace}/" for prefix in WATCHED]
        self._thread = threading.Thread(
            target=self._read, args=(store, kinds, since + 1), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    @property
    def now(self) -> float:
        """Seconds since the watch started."""
        return time.monotonic() - self._started

    def _read(self, store: Store, kinds: list[str], since: int) -> None:
        try:
            for change in store.changes(kinds, since, self._closed):
                with self.lock:
                    if change.body is None:
                        self._objects.pop(change.key, None)
                    else:
                        self._objects[change.key] = change.body
                    self.checker.see(change, self.now)
        except BaseException as error:  # any failure on this thread must fail the trial
            self.failure = error

    def objects(self, prefix: str) -> list[dict[str, Any]]:
        """Return the current objects whose key starts with ``prefix``, by name."""
        with self.lock:
            return [self._objects[k] for k in sorted(self._objects) if k.startswith(prefix)]

    def wait(
        self, probe: Callable[[Checker], bool], seconds: float, idle: float = float("inf")
    ) -> bool:
        """Return whether ``probe`` became true within ``seconds``.

        Gives up early when nothing has changed for ``idle`` seconds.

        Raises:
            RuntimeError: etcd can no longer be read.
        """
        until, states = time.monotonic() + seconds, -1
        while True:
            if self.checker.states != states:
                states, changed = self.checker.states, time.monotonic()
            if self.failure is not None:
                raise RuntimeError("etcd cannot be read") from self.failure
            with self.lock:
                self.checker.check_deadlines(self.now)
                if probe(self.checker):
                    return True
            if time.monotonic() > min(until, changed + idle):
                return False
            time.sleep(0.25)
