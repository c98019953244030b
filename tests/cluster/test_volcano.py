"""Train groups under Volcano's own scheduler and controllers (`make volcano`)."""

from __future__ import annotations

import os

import pytest

from control_plane import ApiError, Cluster
from control_plane.volcano import Volcano
from operators import Operator, Resource, eventually, grant
from repository import ROOT
from video2world_operator.cli.main import main

pytestmark = pytest.mark.skipif(
    "VOLCANO" not in os.environ, reason="`make volcano` builds Volcano and runs this"
)
EARLIER = ("download", "dataset", "embeddings", "latents")
CPU_ONLY = {"resources": {"limits": {"nvidia.com/gpu": 0}}}
GPUS = dict.fromkeys(("embeddings", "latents", "inference"), CPU_ONLY)  # these 8 a node


@pytest.fixture(scope="module")
def volcano_cluster():
    """Four nodes of eight GPUs; kube-scheduler has everything but the train groups."""
    with Cluster(nodes=4, lease_seconds=8) as running:
        running.install_definition(ROOT / "manifests" / "crd.yaml")
        yield running


@pytest.fixture(scope="module")
def volcano(volcano_cluster):
    return Volcano(volcano_cluster)


@pytest.fixture(scope="module")
def operator(volcano_cluster, volcano, tmp_path_factory):
    account = grant(volcano_cluster, "video2world-system")
    kubeconfig = volcano_cluster.write_kubeconfig(account)
    log = tmp_path_factory.mktemp("operator") / "log"
    flags = ("--termination-bound-seconds", "2", "--own-namespace", "video2world-system")
    with Operator(kubeconfig, *flags, log=log) as running:
        yield running


@pytest.fixture
def submit(volcano_cluster, operator, request):
    """Create runs that are about to train; they are deleted with the test."""
    name = request.node.name.replace("_", "-")[5:40].rstrip("-")
    volcano_cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": name}})
    path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    eventually(lambda: _found(volcano_cluster, path))
    made = []

    def create(run, nodes=2, queue="", **spec):
        volcano_cluster.add_volumes(1)
        train = {"podTemplate": {"spec": {"terminationGracePeriodSeconds": 1}}}
        if queue:
            annotations = {"scheduling.volcano.sh/queue-name": queue}
            train["podTemplate"]["metadata"] = {"annotations": annotations}
        resource = Resource(volcano_cluster, name, run).create(
            model={"size": "2B"},
            training={"nodes": nodes, "gpusPerNode": 8, "contextParallelSize": 2},
            stages=GPUS | {"train": train},
            **spec,
        )
        made.append(resource)
        for stage in EARLIER:
            resource.finish(stage)
        eventually(lambda: len(trainers(resource)) == nodes, what=lambda: resource.status)
        return resource

    yield create
    for resource in made:
        resource.delete()
    eventually(lambda: not any(resource.children("pods") for resource in made))
    assert not operator.crashed, operator.tail()


def _found(cluster, path):
    try:
        return cluster.admin.get(path)
    except ApiError:
        return None


def trainers(run, attempt=1):
    """Return the pods of a train group, of any phase."""
    return [p for phase in ("Pending", "Running") for p in run.pods("train", attempt, phase)]


def placed(run, attempt=1):
    """Return how many pods of the train group have a node, and so hold its GPUs."""
    return sum(bool(pod["spec"].get("nodeName")) for pod in trainers(run, attempt))


def pod_group(run, attempt=1):
    path = f"/apis/scheduling.volcano.sh/v1beta1/namespaces/{run.namespace}/podgroups"
    return run.cluster.admin.get(f"{path}/{run.name}-train-{attempt}")


def explained(run, monkeypatch, capsys):
    user = run.cluster.write_kubeconfig(run.cluster.admin, run.namespace)
    monkeypatch.setenv("KUBECONFIG", os.fspath(user))
    main(["explain", run.name])
    return capsys.readouterr().out


def gang_reported(run):
    condition = run.condition("GangScheduled")
    return (condition.get("status"), condition.get("reason")) == ("True", "Volcano")


def test_a_group_starts_together(submit):
    run = submit("run")
    eventually(lambda: len(run.pods("train")) == 2, what=lambda: run.status)
    eventually(lambda: gang_reported(run), what=lambda: run.status)
    assert {p["spec"]["schedulerName"] for p in run.pods("train")} == {"volcano"}
    assert len({p["spec"]["nodeName"] for p in run.pods("train")}) == 2
    eventually(lambda: pod_group(run)["status"]["phase"] == "Running")


def test_a_group_that_does_not_fit_holds_no_gpu(submit, volcano_cluster, monkeypatch, capsys):
    run = submit("run", nodes=5)
    eventually(lambda: gang_reported(run), what=lambda: run.status)
    reason = lambda: run.condition("PodsStarted").get("reason")  # noqa: E731
    eventually(lambda: reason() == "Unschedulable", what=lambda: run.status)
    assert placed(run) == 0
    eventually(lambda: "Volcano finds no room" in explained(run, monkeypatch, capsys))
    volcano_cluster.add_node("fifth")
    eventually(lambda: len(run.pods("train")) == 5, what=lambda: pod_group(run))
    volcano_cluster.admin.delete("/api/v1/nodes/fifth")


def test_groups_wait_in_a_queue_and_start_by_priority(
    submit, volcano, volcano_cluster, monkeypatch, capsys
):
    volcano.set_queue("team", gpus=16)
    volcano_cluster.admin.post(
        "/apis/scheduling.k8s.io/v1/priorityclasses",
        {"metadata": {"name": "urgent"}, "value": 1000, "preemptionPolicy": "Never"},
    )
    first = submit("first", queue="team")
    eventually(lambda: len(first.pods("train")) == 2, what=lambda: first.status)
    second = submit("second", queue="team")
    urgent = submit("urgent", queue="team", scheduling={"priorityClassName": "urgent"})
    eventually(lambda: gang_reported(urgent), what=lambda: urgent.status)
    assert (placed(second), placed(urgent)) == (0, 0)  # with 16 GPUs of the cluster free
    eventually(lambda: "in their Volcano queue" in explained(second, monkeypatch, capsys))
    first.finish("train")
    eventually(lambda: len(urgent.pods("train")) == 2, what=lambda: urgent.status)
    assert placed(second) == 0
    volcano.set_queue("team", gpus=32)
    eventually(lambda: len(second.pods("train")) == 2, what=lambda: second.status)


def test_two_groups_that_need_all_gpus_do_not_deadlock(submit):
    one, other = submit("one", nodes=4), submit("other", nodes=4)
    eventually(lambda: 4 in (placed(one), placed(other)))
    first, second = (one, other) if placed(one) else (other, one)
    assert (placed(first), placed(second)) == (4, 0)
    names = [pod["metadata"]["name"] for pod in first.pods("train")]
    for name in names:
        first.cluster.finish_pod(first.namespace, name)
    eventually(lambda: len(second.pods("train")) == 4, what=lambda: pod_group(second))


def test_a_group_restarts_whole_after_a_lost_node(submit, volcano_cluster):
    run = submit("run")
    eventually(lambda: len(run.pods("train")) == 2)
    lost = run.pods("train")[1]["spec"]["nodeName"]
    volcano_cluster.lose_node(lost)
    status = run.reaches(150, attempt=2)
    assert status["attempts"][0]["reason"] == "NodeLost"
    assert status.get("chargedRestarts", 0) == 0
    eventually(lambda: len(run.pods("train", 2)) == 2, what=lambda: pod_group(run, 2))
    assert lost not in {pod["spec"]["nodeName"] for pod in run.pods("train", 2)}
    volcano_cluster.find_node(lost)
    # the group of the attempt that has ended keeps nothing from others
    other = submit("other")
    eventually(lambda: len(other.pods("train")) == 2, what=lambda: pod_group(other))
