"""Keep a run's progress reports on the volume: one JSON object per line of ``progress.jsonl``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from video2world_common.events import say

__all__ = ["HistoryWriter", "is_number", "read_history"]

NAME = "progress.jsonl"


class HistoryWriter:
    """Append reports to ``<job>/progress.jsonl``; only one process of a run writes."""

    def __init__(self, job_folder: Path) -> None:
        self.path = job_folder / NAME
        self._failure_reported = False

    def append(
        self, iteration: int, *, loss: float | None, seconds: float, **numbers: float | None
    ) -> None:
        """Append a report.

        A write error is logged once and does not end training; the next checkpoint will.

        Args:
            iteration: iterations done.
            loss: mean loss since the last report; None if all steps were skipped.
            seconds: seconds per iteration.
            numbers: other metrics.
        """
        record = {"iteration": iteration, "loss": loss, "seconds_per_iteration": round(seconds, 4)}
        line = json.dumps(record | numbers, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # start a new line after an incomplete one of a killed writer
            with self.path.open("ab+") as stream:
                if stream.tell():
                    stream.seek(-1, 2)
                    line = line if stream.read(1) == b"\n" else f"\n{line}"
                stream.write(line.encode())
        except OSError as error:
            if not self._failure_reported:
                say(f"note: {self.path} cannot be written ({error.strerror}): no progress is kept")
                self._failure_reported = True


def read_history(job_folder: Path) -> list[dict[str, Any]]:
    """Return a run's reports in order of iterations; empty if there are none.

    Of iterations that a restart has repeated, the newest reports count. Damaged lines are skipped.
    """
    try:
        text = (job_folder / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    kept: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or type(record.get("iteration")) is not int:
            continue
        while kept and kept[-1]["iteration"] >= record["iteration"]:
            kept.pop()
        kept.append({name: value for name, value in record.items() if is_number(value)})
    return kept


def is_number(value: Any) -> bool:
    """Return whether ``value`` from a JSON file is a finite number; booleans are not."""
    return type(value) in (int, float) and math.isfinite(value)
