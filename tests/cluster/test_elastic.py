"""Elastic groups on real nodes objects: nodes are lost, the group shrinks, and grows back."""

from __future__ import annotations

import json
import os

import pytest

from operators import Operator, Resource, eventually, grant
from video2world_operator.cli.main import main

TAINT = {"key": "node.kubernetes.io/out-of-service", "value": "test", "effect": "NoExecute"}
LOST = ("node-2", "node-3")


def taint(cluster, names, taints):
    """Set the taints of nodes; out-of-service ends their pods at once, as lost nodes do later."""
    for name in names:
        cluster.admin.patch(f"/api/v1/nodes/{name}", {"spec": {"taints": taints}})


@pytest.fixture
def four_nodes(gpu_cluster):
    """The cluster, whose nodes are all there again afterwards."""
    yield gpu_cluster
    taint(gpu_cluster, LOST, None)


@pytest.fixture
def operator(four_nodes, tmp_path):
    kubeconfig = four_nodes.write_kubeconfig(grant(four_nodes, "video2world-system"))
    flags = ("--own-namespace", "video2world-system", "--lease-seconds", "4")
    with Operator(
        kubeconfig, *flags, "--elastic-after-seconds", "3", log=tmp_path / "log"
    ) as running:
        yield running
        assert not running.crashed, running.tail()


def checkpoint(iteration):
    event = {"event": "checkpoint", "stage": "train", "iteration": iteration}
    return json.dumps(event | {"path": f"iter_{iteration}.pt"}) + "\n"


def all_run(run, attempt, count):
    return eventually(
        lambda: len(pods := run.pods("train", attempt)) == count and pods,
        what=lambda: (run.status, [p["status"] for p in run.children("pods")]),
    )


@pytest.mark.parametrize("gang", ["Auto", "None"])
def test_a_group_shrinks_when_nodes_are_lost_and_grows_back(
    four_nodes, gpu_namespace, operator, monkeypatch, capsys, gang
):
    cluster, run = four_nodes, Resource(four_nodes, gpu_namespace)
    training = {"nodes": 4, "minNodes": 1, "gpusPerNode": 8, "device": "GPU"}
    run.create(training={"iterations": 1000} | training, scheduling={"gang": gang})
    for stage in ("download", "dataset", "embeddings", "latents"):
        run.finish(stage)
    all_run(run, 1, 4)
    eventually(lambda: run.condition("FullSize").get("status") == "True")
    taint(cluster, LOST, [TAINT])
    small = all_run(run, 3, 2)
    status = run.status
    assert [(a["number"], a["nodes"], a.get("reason")) for a in status["attempts"]] == [
        (1, 4, "NodeLost"),
        (2, 4, "GroupShrunk"),
        (3, 2, None),
    ]
    assert status["groupSize"]["text"] == "2/4"
    assert status.get("chargedRestarts", 0) == 0
    assert {p["spec"]["nodeName"] for p in small} == {"node-0", "node-1"}
    assert "trainer.grad_accum_iter=2" in small[0]["spec"]["containers"][0]["command"]
    user = cluster.write_kubeconfig(cluster.admin, gpu_namespace)
    monkeypatch.setenv("KUBECONFIG", os.fspath(user))
    main(["explain", "run"])
    assert "The train group has 2 of 4 nodes: 2 of 4 nodes could be had" in capsys.readouterr().out
    # they come back, and the group grows at the first checkpoint after the bound
    taint(cluster, LOST, None)
    eventually(lambda: run.status["groupSize"].get("roomSince"))
    first = small[0]["metadata"]["name"]
    iteration = 0

    def saves_until_it_grows():
        nonlocal iteration
        iteration += 10
        cluster.write_pod_log(gpu_namespace, first, checkpoint(iteration))
        return run.status["groupSize"]["running"] == 4

    eventually(saves_until_it_grows, what=lambda: run.status)
    full = all_run(run, 4, 4)
    assert len({p["spec"]["nodeName"] for p in full}) == 4
    eventually(lambda: run.condition("FullSize").get("status") == "True")
    records = run.status["attempts"]
    assert (records[2]["reason"], records[2]["charged"]) == ("GroupGrown", False)
    assert records[3]["startIteration"] > 0
    events = cluster.admin.get(f"/api/v1/namespaces/{gpu_namespace}/events")["items"]
    told = {e["reason"]: e["type"] for e in events if e["involvedObject"].get("name") == "run"}
    assert (told["GroupShrunk"], told["GroupGrown"]) == ("Normal", "Normal")
    run.delete()
