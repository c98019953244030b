"""Run the operator with its periodic checks every second instead of every 30."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from video2world_operator.controller.flags import parse_arguments
from video2world_operator.controller.manager import run

if __name__ == "__main__":
    sys.exit(asyncio.run(run(replace(parse_arguments(None), housekeeping=1.0))))
