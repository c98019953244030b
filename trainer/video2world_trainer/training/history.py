"""The curves of a run on the volume: one JSON object a report in ``<job>/progress.jsonl``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from video2world_common.events import say

__all__ = ["Records", "is_number", "read_records"]

NAME = "progress.jsonl"


class Records:
    """Appends a run's reports; one process of a run writes."""

    def __init__(self, job_folder: Path) -> None:
        self.path = job_folder / NAME
        self._silent = False  # it has been said that they cannot be written

    def append(
        self, iteration: int, *, loss: float | None, seconds: float, **numbers: float | None
    ) -> None:
        """Add a report: the mean loss since the last one, seconds per iteration, and what else.

        Training goes on where this cannot be written: a full disk shows at the next checkpoint.
        """
        record = {"iteration": iteration, "loss": loss, "seconds_per_iteration": round(seconds, 4)}
        line = json.dumps(record | numbers, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # a killed writer may have left half a line: it must not spoil this one
            with self.path.open("ab+") as stream:
                if stream.tell():
                    stream.seek(-1, 2)
                    line = line if stream.read(1) == b"\n" else f"\n{line}"
                stream.write(line.encode())
        except OSError as error:
            if not self._silent:
                say(f"note: {self.path} cannot be written ({error.strerror}): no curves are kept")
                self._silent = True


def read_records(job_folder: Path) -> list[dict[str, Any]]:
    """The reports of a run in order of iterations; empty where there are none.

    What a restart repeated counts as it was the last time. Damaged lines are passed over.
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
    """Whether ``value``, read from a JSON file, is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)
