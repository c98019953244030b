"""A short slice of ``make bench-operator``: concurrent resources, crashes, a SIGKILL."""

from __future__ import annotations

import asyncio

from benchmarks.scale.load import Scale
from benchmarks.scale.phases import measure
from benchmarks.scale.systems import Video2WorldOperator

WRITES = 45  # per run, even on a slow machine; needless writes in a loop would be hundreds


def test_twenty_resources_live_through_crashes_and_a_sigkill(tmp_path):
    scale = Scale(
        resources=20, nodes=0, probes=1, failing=0.1, vanishing=0, killed=3, seed=7, patience=150
    )
    found = asyncio.run(measure(Video2WorldOperator(), scale, tmp_path))
    assert found["drain"]["succeeded"] == 20 + 1 + 3
    assert found["fail"]["failure_to_deletion"]["count"] == found["fail"]["pods"] >= 3
    assert found["fail"]["failure_to_new_pods"]["count"] == found["fail"]["pods"]
    assert 15 < found["drain"]["writes_per_resource"] < WRITES
    assert 0 < found["drain"]["goodput"] < 1
