"""Estimate the API server's clock, which stamps everything in the cluster.

This machine's clock may be set while the operator runs; the monotonic clock is not affected.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

__all__ = ["ServerClock"]

SET_BACK = 2.0  # seconds: a server clock that reads so much less than expected was set back


class ServerClock:
    """Tell the server's time from the ``Date`` headers of its answers and the monotonic clock."""

    def __init__(self) -> None:
        self._start: float | None = None  # Unix time when this process's monotonic clock was 0

    def observe(self, date: str) -> None:
        """Take note of an answer's ``Date`` header, which has whole seconds."""
        try:
            start = parsedate_to_datetime(date).timestamp() - time.monotonic()
        except ValueError:
            return
        # truncated fractions and slow answers only read less: the highest reading is the closest
        if self._start is None or start > self._start or start < self._start - SET_BACK:
            self._start = start

    def now(self) -> datetime:
        """Return the server's time; this machine's until the first answer."""
        if self._start is None:
            return datetime.now(UTC)
        return datetime.fromtimestamp(0, UTC) + timedelta(seconds=self._start + time.monotonic())
