"""Run the operator with a wall clock that is off by the seconds in the file ``CHAOS_CLOCK``.

``python -m benchmarks.chaos.jumping_clock FLAGS``. The operator reads the wall clock through
``datetime.now`` only. It measures durations with the monotonic clock, which does not jump on a
real machine either.
"""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

from video2world_operator.controller import manager


class _JumpingDatetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        offset = 0.0
        with contextlib.suppress(OSError, ValueError):
            offset = float(Path(os.environ["CHAOS_CLOCK"]).read_text())
        return datetime.now(tz) + timedelta(seconds=offset)


def main() -> int:
    """Run the operator and return its exit code."""
    for name, module in list(sys.modules.items()):
        if name.startswith("video2world_operator.") and vars(module).get("datetime") is datetime:
            vars(module)["datetime"] = _JumpingDatetime
    return manager.main()


if __name__ == "__main__":
    sys.exit(main())
