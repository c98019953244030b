"""Tests that the Triton kernel of norm and SiLU equals float64, without a GPU."""

import json
import os
import subprocess
import sys

import pytest

from repository import ROOT

pytest.importorskip("triton")


def test_equals_float64_and_writes_nothing_else():
    worker = ROOT / "tests/support/norm_kernel_worker.py"
    done = subprocess.run(
        [sys.executable, str(worker)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cases = json.loads(done.stdout)
    assert len(cases) == 9
    assert [one for one in cases if not (one["error"] < one["bound"] and one["beside"])] == []
