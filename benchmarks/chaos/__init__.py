"""Chaos: many resources, a seeded schedule of faults, and what must hold in every state."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / "tests/support"),
    str(ROOT / "tools"),
]  # the cluster, and what tests have of it
