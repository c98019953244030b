"""A slice of `make chaos`: few resources, few seeds, and what must hold in every state."""

from __future__ import annotations

import pytest
from benchmarks.chaos.arena import Arena
from benchmarks.chaos.schedule import KINDS, faults, resources
from benchmarks.chaos.trial import Size, run

# The first is waited for a minute; the others take long, and test_faults and test_leader have them.
SLOW = ("node vanishes", "leader frozen", "API server restarted")


@pytest.fixture(scope="module")
def arena(gpu_cluster, tmp_path_factory):
    with Arena(gpu_cluster, tmp_path_factory.mktemp("arena"), lease=6) as arena:
        yield arena


@pytest.mark.parametrize("seed", [1, 2])
def test_every_invariant_holds(arena, seed, tmp_path):
    kinds = [kind for kind in KINDS if kind not in SLOW]
    schedule = faults(seed, 8, kinds)
    trial = run(arena, seed, resources(seed, 10), schedule, Size(patience=2))
    assert trial.broken == [], trial.write(tmp_path, arena.logs()).read_text()
    assert trial.figures["resources"] >= 10
    assert trial.figures["states"] > 200
    nodes = arena.cluster.admin.get("/api/v1/nodes")["items"]
    assert not any(node["spec"].get("taints") for node in nodes)  # for those who come after
