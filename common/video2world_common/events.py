"""Write progress events: one JSON object per line on stdout, between lines of plain text.

On a terminal, a progress bar on stderr replaces the frequent ``progress`` events. The operator
reads the events with :mod:`video2world_common.progress_events`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

__all__ = ["ProgressReporter", "emit", "say"]


def emit(event: str, stage: str, **fields: Any) -> None:
    """Print one event line, e.g. ``emit("progress", "train", iteration=10, iterations=100)``."""
    line = json.dumps({"event": event, "stage": stage, **fields}, allow_nan=False)
    print(line, flush=True)


def say(text: str) -> None:
    """Print one line of plain text."""
    print(text, flush=True)


class ProgressReporter:
    """Report the finished items of a stage: as a bar on a terminal, otherwise as events.

    ``done`` and ``total`` are in ``unit`` (windows, captions, bytes, denoising steps, ...).
    """

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        *,
        every_seconds: float = 5.0,
        terminal: TextIO | None = None,
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.done = 0
        self._every = every_seconds
        self._started = time.monotonic()
        self._last = self._started
        self._terminal = terminal if terminal is not None else sys.stderr
        self._bar = self._terminal.isatty()

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more finished items, and report them if a report is due."""
        self.done += count
        now = time.monotonic()
        finished = self.done >= self.total
        if self._bar:
            self._draw(now)
            if finished:
                self._terminal.write("\n")
        elif finished or now - self._last >= self._every:
            self._last = now
            elapsed = now - self._started
            remaining = max(self.total - self.done, 0) * elapsed / max(self.done, 1)
            emit(
                "progress",
                self.stage,
                done=self.done,
                total=self.total,
                unit=self.unit,
                eta_seconds=round(remaining, 1),
            )

    def _draw(self, now: float) -> None:
        share = min(self.done / self.total, 1.0) if self.total else 1.0
        filled = round(share * 30)
        rate = self.done / max(now - self._started, 1e-9)
        self._terminal.write(
            f"\r{self.stage:<11}[{'#' * filled}{'.' * (30 - filled)}] "
            f"{self.done}/{self.total} {self.unit}  {rate:.1f}/s "
        )
        self._terminal.flush()
