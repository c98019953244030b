"""A short slice of ``make bench-operator``: thirty resources, crashes, a SIGKILL, all succeed."""

from __future__ import annotations

import asyncio

from benchmarks.scale_run import Scale, measure
from benchmarks.scale_systems import Ours

WRITES = 24  # of a life with a crash here and there; a loop that writes for nothing shows at once


def test_thirty_resources_live_through_crashes_and_a_sigkill(tmp_path):
    scale = Scale(
        resources=30, nodes=0, probes=2, failing=0.1, vanishing=0, killed=3, seed=7, patience=150
    )
    found = asyncio.run(measure(Ours(), scale, tmp_path))
    assert found["drain"]["succeeded"] == 30 + 2 + 3
    assert found["fail"]["failure_to_deletion"]["count"] == found["fail"]["pods"] >= 4
    assert found["fail"]["failure_to_new_pods"]["count"] == found["fail"]["pods"]
    assert 15 < found["drain"]["writes_per_resource"] < WRITES
    assert 0 < found["drain"]["goodput"] < 1
