"""A slice of `make chaos`: few resources and seeds, with the invariants of every state."""

from __future__ import annotations

import pytest
from benchmarks.chaos.schedule import KINDS, faults, resources
from benchmarks.chaos.testbed import Testbed
from benchmarks.chaos.trial import Timeouts, run

# The first takes a minute; test_faults and test_leader cover the other two.
SLOW = ("node vanishes", "leader frozen", "API server restarted")


@pytest.fixture(scope="module")
def testbed(gpu_cluster, tmp_path_factory):
    with Testbed(gpu_cluster, tmp_path_factory.mktemp("testbed"), lease=6) as testbed:
        yield testbed


@pytest.mark.parametrize("seed", [1, 2])
def test_every_invariant_holds(testbed, seed, tmp_path):
    kinds = [kind for kind in KINDS if kind not in SLOW]
    schedule = faults(seed, 8, kinds)
    trial = run(testbed, seed, resources(seed, 10), schedule, Timeouts(fault=2))
    assert trial.violations == [], trial.write(tmp_path, testbed.logs()).read_text()
    assert trial.figures["resources"] >= 10
    assert trial.figures["states"] > 200
    nodes = testbed.cluster.admin.get("/api/v1/nodes")["items"]
    assert not any(node["spec"].get("taints") for node in nodes)  # for later tests
