"""Upgrade benchmark: a new release of the operator takes over resources in every stage."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# the test cluster and its helpers
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tools")]
