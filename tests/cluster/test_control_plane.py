"""The test cluster is a real one, accepts fault injection, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from control_plane import ApiError, Cluster, binaries
from operators import eventually, exists
from repository import ROOT

TOOLS = ROOT / "tools"


def job(name: str, **pod: Any) -> dict[str, Any]:
    container = {
        "name": "train",
        "image": "none",
        "resources": {"limits": {"nvidia.com/gpu": 8}},
    }
    spec = {"restartPolicy": "Never", "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": {**spec, **pod}}},
    }


def pods(cluster: Cluster, namespace: str, phase: str | None = None) -> list[dict[str, Any]]:
    every = cluster.admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    return [one for one in every if phase in (None, one["status"].get("phase"))]


def test_the_server_reports_its_version(cluster):
    if "KUBEBUILDER_ASSETS" in os.environ:
        pytest.skip("KUBEBUILDER_ASSETS may hold any version")
    version = binaries.ALL["kube-apiserver"].version
    assert cluster.admin.get("/version")["gitVersion"] == f"v{version}"
    reported = json.loads(cluster.kubectl("version", "--output=json").stdout)
    assert reported["clientVersion"]["gitVersion"] == reported["serverVersion"]["gitVersion"]


def test_owned_objects_are_garbage_collected(cluster, namespace):
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = cluster.admin.post(maps, {"metadata": {"name": "owner"}})
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
    }
    cluster.admin.post(maps, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    cluster.admin.post(maps, {"metadata": {"name": "free"}})
    cluster.admin.delete(f"{maps}/owner")
    eventually(lambda: not exists(cluster.admin, f"{maps}/owned"))
    assert exists(cluster.admin, f"{maps}/free")


def test_rbac_grants_only_what_it_lists(cluster, namespace):
    jane = cluster.user("jane", "trainers")
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    with pytest.raises(ApiError, match='User "jane" cannot list') as refused:
        jane.get(maps)
    assert refused.value.code == 403
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}
    cluster.admin.post(f"{roles}/roles", {"metadata": {"name": "reader"}, "rules": [rule]})
    cluster.admin.post(
        f"{roles}/rolebindings",
        {
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [
                {"kind": "Group", "name": "trainers", "apiGroup": "rbac.authorization.k8s.io"},
                {"kind": "ServiceAccount", "name": "default", "namespace": namespace},
            ],
        },
    )

    def allowed() -> bool:  # the authorizer learns of the binding through a watch
        try:
            return bool(jane.get(maps)["items"])
        except ApiError:
            return False

    eventually(allowed)
    with pytest.raises(ApiError, match="cannot create"):
        jane.post(maps, {"metadata": {"name": "mine"}})
    assert cluster.service_account(namespace, "default").get(maps)["items"]
    used = {(one["verb"], one["responseStatus"]["code"]) for one in cluster.audit("jane")}
    assert {("list", 403), ("list", 200), ("create", 403)} <= used


def test_a_kubeconfig_authenticates_its_user(cluster, namespace):
    kubeconfig = cluster.write_kubeconfig(cluster.user("jane"), namespace)
    assert cluster.kubectl("auth", "whoami", kubeconfig=kubeconfig).stdout.count("jane") == 1
    refused = cluster.kubectl("get", "pods", kubeconfig=kubeconfig, check=False)
    assert f'"jane" cannot list resource "pods" in API group "" in the namespace "{namespace}"' in (
        refused.stderr
    )


def test_pod_security_is_enforced(cluster, namespace):
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.admin.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": label}})
    pod = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "none"}]}}

    def refused() -> bool:
        try:
            cluster.admin.post(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
        except ApiError as error:
            return error.code == 403 and "restricted" in str(error)
        return False

    eventually(refused)


def test_jobs_get_gpus_run_and_exit_with_the_requested_code(gpu_cluster, gpu_namespace):
    jobs = f"/apis/batch/v1/namespaces/{gpu_namespace}/jobs"
    for index in range(5):
        gpu_cluster.admin.post(jobs, job(f"job-{index}"))
    running = eventually(
        lambda: len(found := pods(gpu_cluster, gpu_namespace, "Running")) == 4 and found
    )
    assert len({one["spec"]["nodeName"] for one in running}) == 4  # eight GPUs per node, all in use
    (waiting,) = eventually(lambda: pods(gpu_cluster, gpu_namespace, "Pending"))
    path = f"/api/v1/namespaces/{gpu_namespace}/pods/{waiting['metadata']['name']}"
    refused = eventually(lambda: gpu_cluster.admin.get(path)["status"].get("conditions"))
    assert "Insufficient nvidia.com/gpu" in refused[0]["message"]
    good, bad = running[0]["metadata"], running[1]["metadata"]
    gpu_cluster.finish_pod(gpu_namespace, good["name"])
    gpu_cluster.finish_pod(gpu_namespace, bad["name"], exit_code=137)

    def condition(owner: dict[str, Any]) -> set[str]:
        seen = gpu_cluster.admin.get(f"{jobs}/{owner['labels']['job-name']}")["status"]
        return {one["type"] for one in seen.get("conditions", [])}

    eventually(lambda: "Complete" in condition(good))
    eventually(lambda: "Failed" in condition(bad))
    ended = gpu_cluster.admin.get(f"/api/v1/namespaces/{gpu_namespace}/pods/{bad['name']}")
    assert ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
    eventually(lambda: not pods(gpu_cluster, gpu_namespace, "Pending"))


def test_a_pod_log_returns_what_was_written(gpu_cluster, gpu_namespace):
    spec = {"containers": [{"name": "a", "image": "none"}]}
    path = f"/api/v1/namespaces/{gpu_namespace}/pods"
    gpu_cluster.admin.post(path, {"metadata": {"name": "talks"}, "spec": spec})
    gpu_cluster.write_pod_log(gpu_namespace, "talks", '{"event":"progress"}\n')
    eventually(lambda: pods(gpu_cluster, gpu_namespace, "Running"))

    def log() -> str:
        asked = ("logs", "--namespace", gpu_namespace, "talks")
        return gpu_cluster.kubectl(*asked, check=False).stdout

    eventually(lambda: log() == '{"event":"progress"}\n')
    gpu_cluster.write_pod_log(gpu_namespace, "talks", "more\n")
    assert log() == '{"event":"progress"}\nmore\n'


def test_a_claim_is_bound_and_its_pod_runs(gpu_cluster, gpu_namespace):
    base = f"/api/v1/namespaces/{gpu_namespace}"
    wanted = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "500Gi"}}}
    gpu_cluster.admin.post(
        f"{base}/persistentvolumeclaims", {"metadata": {"name": "data"}, "spec": wanted}
    )
    spec = {
        "containers": [{"name": "a", "image": "none"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    }
    gpu_cluster.admin.post(f"{base}/pods", {"metadata": {"name": "reads"}, "spec": spec})
    eventually(lambda: pods(gpu_cluster, gpu_namespace, "Running"))


def test_a_native_gang_starts_completely_or_not_at_all(gpu_cluster, gpu_namespace):
    groups = f"/apis/scheduling.k8s.io/v1beta1/namespaces/{gpu_namespace}/podgroups"
    gang = {"schedulingPolicy": {"gang": {"minCount": 2}}}
    gpu_cluster.admin.post(groups, {"metadata": {"name": "gang"}, "spec": gang})
    spec = {
        "containers": [{"name": "a", "image": "none"}],
        "schedulingGroup": {"podGroupName": "gang"},
    }
    path = f"/api/v1/namespaces/{gpu_namespace}/pods"
    gpu_cluster.admin.post(path, {"metadata": {"name": "first"}, "spec": spec})
    time.sleep(2)  # a single pod would run by now: those above take less
    assert not pods(gpu_cluster, gpu_namespace, "Running")
    gpu_cluster.admin.post(path, {"metadata": {"name": "second"}, "spec": spec})
    eventually(lambda: len(pods(gpu_cluster, gpu_namespace, "Running")) == 2)


def test_a_hanging_pod_stays_until_force_deleted(gpu_cluster, gpu_namespace):
    path = f"/api/v1/namespaces/{gpu_namespace}/pods"
    spec = {
        "containers": [{"name": "a", "image": "none"}],
        "terminationGracePeriodSeconds": 1,
    }
    annotations = {"fake.video2world.dev/hangs": "true"}
    for name, noted in {"hangs": annotations, "ends": {}}.items():
        gpu_cluster.admin.post(
            path, {"metadata": {"name": name, "annotations": noted}, "spec": spec}
        )
    eventually(lambda: len(pods(gpu_cluster, gpu_namespace, "Running")) == 2)
    for name in ("hangs", "ends"):
        gpu_cluster.admin.delete(f"{path}/{name}")
    eventually(lambda: not exists(gpu_cluster.admin, f"{path}/ends"))
    time.sleep(2)
    assert gpu_cluster.admin.get(f"{path}/hangs")["metadata"]["deletionTimestamp"]
    gpu_cluster.admin.delete(f"{path}/hangs?gracePeriodSeconds=0")
    assert not exists(gpu_cluster.admin, f"{path}/hangs")


@pytest.mark.slow
def test_a_lost_node_becomes_not_ready(gpu_cluster):
    gpu_cluster.add_node("lost", gpus=0, labels={"test": "lost"})

    def ready() -> str:
        conditions = gpu_cluster.admin.get("/api/v1/nodes/lost")["status"].get("conditions", [])
        return next((one["status"] for one in conditions if one["type"] == "Ready"), "")

    eventually(lambda: ready() == "True")
    gpu_cluster.lose_node("lost")
    eventually(lambda: ready() == "Unknown", 90)
    taints = eventually(lambda: gpu_cluster.admin.get("/api/v1/nodes/lost")["spec"].get("taints"))
    assert "node.kubernetes.io/unreachable" in {one["key"] for one in taints}
    gpu_cluster.admin.delete("/api/v1/nodes/lost")


def test_the_api_server_keeps_its_data_over_a_restart(cluster, namespace):
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.admin.post(maps, {"metadata": {"name": "kept"}})
    cluster.stop_api_server(grace=0)
    with pytest.raises(OSError, match="refused"):
        cluster.admin.get(f"{maps}/kept")
    cluster.start_api_server()
    assert exists(cluster.admin, f"{maps}/kept")


def test_a_paused_etcd_stalls_writes_and_recovers(cluster, namespace):
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    with cluster.etcd_paused(), pytest.raises(OSError, match="timed out"):
        cluster.admin.request("POST", maps, {"metadata": {"name": "late"}}, timeout=2)
    cluster.admin.post(maps, {"metadata": {"name": "after"}})
    assert exists(cluster.admin, f"{maps}/after")


def test_nothing_outlives_a_killed_owner(cluster):
    script = (
        "from control_plane import Cluster\n"
        "cluster = Cluster()\n"
        "pids = [one.pid for one in cluster.components.keeper.processes]\n"
        "print(cluster.folder, *pids, flush=True)\n"
        "input()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    folder, *pids = owner.stdout.readline().split()  # a second cluster next to the fixture's
    assert len(pids) == 3
    assert all(Path(f"/proc/{one}").exists() for one in pids)
    assert Path(folder, "admin.kubeconfig").exists()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    eventually(lambda: not any(Path(f"/proc/{one}").exists() for one in pids), 20)
    eventually(lambda: not Path(folder).exists(), 20)
    assert cluster.admin.get("/readyz") == "ok"


@pytest.mark.slow
def test_make_cluster_starts_a_cluster_and_removes_it():
    running = subprocess.Popen(
        [sys.executable, "-m", "control_plane"],
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    reported = []
    for line in running.stdout:
        reported.append(line)
        if line.startswith("Ctrl-C"):
            break
    exports = dict(one.split()[1].split("=", 1) for one in reported if one.startswith("export "))
    seen = subprocess.run(
        ["kubectl", "get", "crd,nodes", "--output=name"],
        env={**os.environ, **exports},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert sum(one.startswith("node/") for one in seen) == 4
    assert any(one.endswith("/video2worldposttrains.video2world.dev") for one in seen)
    running.terminate()
    assert running.wait(30) == 143
    assert not Path(exports["KUBECONFIG"]).exists()
