"""Two clusters with a real Kueue each: one sends resources with MultiKueue, the other runs them."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from control_plane import Cluster
from control_plane.kueue import NAMESPACE, Kueue
from operators import Operator, Resource, eventually, exists, grant
from repository import ROOT
from video2world_operator.api.constants import GROUP, MULTIKUEUE
from video2world_operator.cli.main import main
from video2world_operator.controller.rbac import ACCOUNT
from video2world_operator.plan.labels import RESOURCE_LABEL
from video2world_operator.preflight.dispatch import ADAPTER

CRD = ROOT / "manifests" / "crd.yaml"
STAGES = ["download", "dataset", "embeddings", "latents", "train", "inference"]
OPERATOR = f"system:serviceaccount:video2world-system:{ACCOUNT}"
ORIGIN = "kueue.x-k8s.io/multikueue-origin"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@dataclass
class Side:
    """A cluster with its Kueue and its operator."""

    cluster: Cluster
    kueue: Kueue
    operator: Operator


def documented(kind: str) -> dict:
    """The object of a kind in the chapter on jobs across clusters."""
    text = (ROOT / "docs" / "operations.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text.partition("## Jobs across clusters")[2], re.S)
    (found,) = (d for b in blocks for d in yaml.safe_load_all(b) if d.get("kind") == kind)
    return found


def start(cluster: Cluster, log, configuration) -> Iterator[Side]:
    cluster.install_definition(CRD)
    with Kueue(cluster, configuration=configuration) as kueue:
        kubeconfig = cluster.write_kubeconfig(grant(cluster, "video2world-system"))
        flags = ("--own-namespace", "video2world-system", "--lease-seconds", "4")
        with Operator(kubeconfig, *flags, log=log) as operator:
            yield Side(cluster, kueue, operator)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """The cluster that runs resources, with two nodes of eight GPUs."""
    with Cluster(nodes=2) as cluster:
        yield from start(cluster, tmp_path_factory.mktemp("worker") / "log", {})


@pytest.fixture(scope="module")
def manager(worker, tmp_path_factory):
    """The cluster that sends resources to ``worker``, set up as the documentation says."""
    written = documented("Configuration")["multiKueue"]
    assert written["externalFrameworks"] == [{"name": ADAPTER}]
    configuration = {"multiKueue": written | {"gcInterval": "5s"}}
    with Cluster() as cluster:
        for side in start(cluster, tmp_path_factory.mktemp("manager") / "log", configuration):
            connect(side, worker)
            yield side


def connect(manager: Side, worker: Side) -> None:
    """Give the manager's Kueue the documented rights in the worker's cluster."""
    role = documented("ClusterRole")
    worker.cluster.admin.post(f"{RBAC}/clusterroles", role)
    name = role["metadata"]["name"]
    body = {"metadata": {"name": name}}
    body["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    body["subjects"] = [{"kind": "User", "name": "kueue-of-the-manager"}]
    worker.cluster.admin.post(f"{RBAC}/clusterrolebindings", body)
    path = worker.cluster.write_kubeconfig(worker.cluster.user("kueue-of-the-manager"))
    secret = {"metadata": {"name": "berlin"}, "data": {}}
    secret["data"]["kubeconfig"] = base64.b64encode(path.read_bytes()).decode()
    manager.cluster.admin.post(f"/api/v1/namespaces/{NAMESPACE}/secrets", secret)
    for kind in ("MultiKueueCluster", "MultiKueueConfig", "AdmissionCheck"):
        body = documented(kind)
        manager.kueue.create(kind, body["metadata"]["name"], body["spec"])
    where = manager.kueue.path("AdmissionCheck", documented("AdmissionCheck")["metadata"]["name"])

    def active() -> bool:
        found = manager.cluster.admin.get(where).get("status", {}).get("conditions", [])
        return any((c["type"], c["status"]) == ("Active", "True") for c in found)

    eventually(active, 60, lambda: manager.cluster.admin.get(where))


@pytest.fixture
def namespace(manager, worker, request):
    """A namespace of both clusters, with a queue for two GPUs in the worker's."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    for side in (manager, worker):
        side.cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": name}})
        path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        side.cluster.components.wait(path, lambda a=side.cluster.admin, p=path: a.get(p))
    worker.cluster.add_volumes(1)
    worker.kueue.add_queue(name, gpus=2)
    check = documented("AdmissionCheck")["metadata"]["name"]
    strategy = {"admissionChecks": [{"name": check}]}
    manager.kueue.add_queue(name, gpus=2, admissionChecksStrategy=strategy)
    yield name
    assert not manager.operator.crashed, manager.operator.tail()
    assert not worker.operator.crashed, worker.operator.tail()


@pytest.fixture
def run(manager, namespace):
    """A resource of the manager's, not created yet."""
    return Resource(manager.cluster, namespace)


@pytest.fixture
def v2w(manager, namespace, monkeypatch, capsys):
    """Calls v2w in the manager's cluster; what it printed."""
    config = manager.cluster.write_kubeconfig(manager.cluster.admin, namespace)
    monkeypatch.setenv("KUBECONFIG", os.fspath(config))

    def call(*arguments, code=0):
        capsys.readouterr()
        ended = main(arguments)
        captured = capsys.readouterr()
        assert ended == code, captured
        return captured.out + captured.err

    return call


def send(run, **spec):
    """Create a resource of two nodes with a GPU each, that MultiKueue sends."""
    training = {"device": "GPU", "gpusPerNode": 1}
    return run.create(
        managedBy=MULTIKUEUE, scheduling={"queueName": "gpus"}, training=training, **spec
    )


def copy_of(run, worker):
    """Wait for the copy in the worker's cluster."""
    copy = Resource(worker.cluster, run.namespace, run.name)
    eventually(lambda: exists(worker.cluster.admin, f"{copy.path}/{copy.name}"), 60, run_state(run))
    return copy


def run_state(run):
    return lambda: workload_of(run)


def workload_of(run):
    """The Workload of a resource in the manager's cluster; empty without one."""
    path = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{run.namespace}/workloads"
    items = run.cluster.admin.get(f"{path}?labelSelector={RESOURCE_LABEL}%3D{run.name}")["items"]
    return items[0] if items else {}


def is_true(workload, kind):
    conditions = workload.get("status", {}).get("conditions", [])
    return any((c["type"], c["status"]) == (kind, "True") for c in conditions)


def test_a_run_in_another_cluster(run, manager, worker, v2w):
    send(run, ttlSecondsAfterFinished=0)
    copy = copy_of(run, worker)
    about = copy.object["metadata"]
    assert about["labels"][ORIGIN] == "multikueue"
    assert "managedBy" not in copy.object["spec"]
    for stage in STAGES[:4]:  # one GPU each of a quota for two: the Workload holds none
        copy.finish(stage)
    copy.running("train")
    status = run.reaches(phase="Running", stage="train")
    assert [e["name"] for e in status["stages"]] == STAGES
    shown = manager.cluster.kubectl("get", "v2w", "-n", run.namespace).stdout
    assert shown.splitlines()[1].split()[:3] == ["run", "Running", "train"]
    assert "(runs in cluster berlin)" in v2w("status", "run")
    eventually(lambda: "no problems found" in v2w("explain", "run"), 30)
    assert "another cluster" in v2w("logs", "run", code=2)
    sent = worker.kueue.workloads(run.namespace)
    owner = next(
        w["metadata"]["ownerReferences"][0]
        for w in sent
        if ORIGIN in w["metadata"].get("labels", {})
    )
    assert (owner["uid"], owner["controller"]) == (about["uid"], True)
    copy.finish("train")
    copy.finish("inference")
    status = run.reaches(phase="Succeeded")
    assert [e["state"] for e in status["stages"]] == ["Succeeded"] * 6
    eventually(lambda: is_true(workload_of(run), "Finished"), 30, run_state(run))
    # MultiKueue deletes the copy; its volume stays
    eventually(lambda: not exists(worker.cluster.admin, f"{copy.path}/run"), 30)
    claim = f"/api/v1/namespaces/{run.namespace}/persistentvolumeclaims/run-data"
    assert exists(worker.cluster.admin, claim)
    # the manager's operator has left the resource alone
    assert exists(manager.cluster.admin, f"{run.path}/run")  # no TTL either
    assert run.object["metadata"].get("finalizers", []) == []
    assert [run.children(kind) for kind in ("jobs", "pods", "persistentvolumeclaims")] == [[]] * 3
    wrote = {
        (event["verb"], event["objectRef"]["resource"])
        for event in manager.cluster.audit(OPERATOR)
        if event.get("objectRef", {}).get("apiGroup") == GROUP
    }
    assert {verb for verb, _ in wrote} <= {"get", "list", "watch"}
    assert "(ran in cluster berlin)" in v2w("status", "run")


def test_an_eviction_in_the_other_cluster_is_dispatched_anew(run, worker):
    send(run)
    copy_of(run, worker)
    eventually(lambda: is_true(workload_of(run), "Admitted"), 60, run_state(run))
    queue = f"{run.namespace}-gpus"
    worker.kueue.set_stop_policy(queue, "HoldAndDrain")
    # both operators give the quota back, without which Kueue would not send it again
    eventually(lambda: not is_true(workload_of(run), "Admitted"), 60, run_state(run))
    there = worker.kueue.workloads
    eventually(lambda: not any(is_true(w, "Admitted") for w in there(run.namespace)))
    worker.kueue.set_stop_policy(queue, "None")
    eventually(lambda: is_true(workload_of(run), "Admitted"), 60, run_state(run))
    copy = copy_of(run, worker)
    for stage in STAGES:
        copy.finish(stage)
    run.reaches(phase="Succeeded")


def test_suspending_deletes_the_copy_and_resuming_sends_it_again(run, worker, v2w):
    send(run)
    copy = copy_of(run, worker)
    copy.reaches(phase="Running")
    v2w("suspend", "run")
    eventually(lambda: not exists(worker.cluster.admin, f"{copy.path}/run"), 60, run_state(run))
    assert workload_of(run) == {}
    assert "suspended" in v2w("status", "run")
    v2w("resume", "run")
    copy_of(run, worker)
    run.delete()
    eventually(lambda: not exists(worker.cluster.admin, f"{copy.path}/run"), 60)


def test_a_resource_that_no_controller_manages_is_named(run, manager, v2w, tmp_path):
    run.create(managedBy=MULTIKUEUE, scheduling={"queueName": "none"})
    eventually(lambda: workload_of(run))
    assert "no LocalQueue none" in v2w("explain", "run")
    manager.kueue.add_queue(run.namespace, "local", gpus=8)  # without MultiKueue's check
    body = Resource.body("local", managedBy=MULTIKUEUE, scheduling={"queueName": "local"})
    manager.cluster.admin.post(run.path, body)
    said = v2w("explain", "local")
    assert "No controller manages this resource" in said
    assert "no admission check of MultiKueue" in said
    file = tmp_path / "local.yaml"
    file.write_text(yaml.safe_dump(body))
    said = v2w("preflight", "-f", os.fspath(file), "--cluster", code=2)
    assert re.search(r"fail +managedBy +ClusterQueue \S+ has no admission check", said)
