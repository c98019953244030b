"""The operator with a wall clock that jumps: by so many seconds as stand in the file CHAOS_CLOCK.

``python -m benchmarks.chaos.clock FLAGS``. All that the operator reads its clock by is
``datetime.now``; what only measures durations is monotonic and does not jump on a machine either.
"""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

from video2world_operator.controller import manager


class _Jumping(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        offset = 0.0
        with contextlib.suppress(OSError, ValueError):
            offset = float(Path(os.environ["CHAOS_CLOCK"]).read_text())
        return datetime.now(tz) + timedelta(seconds=offset)


def main() -> int:
    """Entry point; returns the operator's exit code."""
    for name, module in list(sys.modules.items()):
        if name.startswith("video2world_operator.") and vars(module).get("datetime") is datetime:
            vars(module)["datetime"] = _Jumping
    return manager.main()


if __name__ == "__main__":
    sys.exit(main())
