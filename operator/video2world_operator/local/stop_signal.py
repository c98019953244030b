"""Turn SIGINT and SIGTERM into a request to stop the run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["StopSignal"]


class StopSignal:
    """The signals received so far: the first asks to stop, the second to stop at once."""

    def __init__(self) -> None:
        self.number = 0  # of the last signal
        self.forced = False

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """The exit code of a process that ends because of the signal."""
        return 128 + (self.number or signal.SIGTERM)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Handle both signals while the block runs."""
        before = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.forced = self.requested
        self.number = number
