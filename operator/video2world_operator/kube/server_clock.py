"""The API server's clock, by which all in the cluster is stamped; this machine's may jump."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

__all__ = ["ServerClock"]

SET_BACK = 2.0  # seconds: a clock that reads so much less than expected was set back


class ServerClock:
    """Tells the time from the ``Date`` of the API server's answers, and what has passed since."""

    def __init__(self) -> None:
        self._start: float | None = None  # Unix time when this process's monotonic clock was 0

    def hear(self, date: str) -> None:
        """An answer came with this ``Date``, which leaves out the fraction of the second."""
        try:
            start = parsedate_to_datetime(date).timestamp() - time.monotonic()
        except ValueError:
            return
        # cut-off fractions and slow answers read less: the highest reading is the nearest
        if self._start is None or start > self._start or start < self._start - SET_BACK:
            self._start = start

    def now(self) -> datetime:
        """The time; this machine's as long as nothing was heard."""
        if self._start is None:
            return datetime.now(UTC)
        return datetime.fromtimestamp(0, UTC) + timedelta(seconds=self._start + time.monotonic())
