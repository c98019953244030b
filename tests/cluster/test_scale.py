"""A short slice of ``make bench-operator``: resources beside each other, crashes, a SIGKILL."""

from __future__ import annotations

import asyncio

from benchmarks.scale_run import Scale, measure
from benchmarks.scale_systems import Ours

WRITES = 45  # of a life, on a slow machine too; a loop that writes for nothing makes hundreds


def test_twenty_resources_live_through_crashes_and_a_sigkill(tmp_path):
    scale = Scale(
        resources=20, nodes=0, probes=1, failing=0.1, vanishing=0, killed=3, seed=7, patience=150
    )
    found = asyncio.run(measure(Ours(), scale, tmp_path))
    assert found["drain"]["succeeded"] == 20 + 1 + 3
    assert found["fail"]["failure_to_deletion"]["count"] == found["fail"]["pods"] >= 3
    assert found["fail"]["failure_to_new_pods"]["count"] == found["fail"]["pods"]
    assert 15 < found["drain"]["writes_per_resource"] < WRITES
    assert 0 < found["drain"]["goodput"] < 1
