"""Leader election: a second operator waits and takes over, and none acts without the lease."""

from __future__ import annotations

import asyncio
import time

import pytest

from operators import Operator, Resource, connection, eventually, exists, grant
from video2world_operator.kube.client import ApiClient


@pytest.fixture
def pair(cluster, namespace, tmp_path):
    """Two operators of one namespace, not started."""
    api = grant(cluster, namespace, [namespace])
    flags = ("--namespaces", namespace, "--own-namespace", namespace)
    kubeconfig = cluster.write_kubeconfig(api)
    two = [Operator(kubeconfig, *flags, log=tmp_path / f"log-{n}") for n in range(2)]
    yield two
    for operator in two:
        operator.kill()


def lease(cluster, namespace):
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/video2world-operator"
    return cluster.admin.get(path)


def test_a_second_operator_takes_over_when_the_leader_is_killed(cluster, namespace, pair):
    first, second = pair
    first.start()
    second.start("waiting")
    assert second.probe("readyz") == (200, "waiting")
    run = Resource(cluster, namespace).create()
    eventually(lambda: run.children("jobs"))
    holder = lease(cluster, namespace)["spec"]["holderIdentity"]
    first.kill()
    began = time.monotonic()
    eventually(lambda: second.probe("readyz")[1] == "leading", 30)
    assert time.monotonic() - began <= 20
    taken = lease(cluster, namespace)["spec"]
    assert taken["holderIdentity"] != holder
    assert taken["leaseTransitions"] == 1
    run.patch(suspend=True)
    run.reaches(phase="Suspended")  # it works, too


def test_a_restarted_container_of_the_same_pod_leads_again_without_waiting(
    cluster, namespace, tmp_path
):
    kubeconfig = cluster.write_kubeconfig(grant(cluster, namespace, [namespace]))
    flags = ("--namespaces", namespace, "--own-namespace", namespace, "--pod-uid", "the-pod")
    operator = Operator(kubeconfig, *flags, "--lease-seconds", "600", log=tmp_path / "log")
    try:
        operator.start()
        operator.kill()
        operator.start()  # within its 60 s, a tenth of the lease
    finally:
        operator.kill()
    assert lease(cluster, namespace)["spec"]["leaseTransitions"] == 0


def test_a_second_operator_takes_over_at_once_when_the_leader_shuts_down(cluster, namespace, pair):
    first, second = pair
    first.start()
    second.start("waiting")
    assert first.stop() == 0
    eventually(lambda: second.probe("readyz")[1] == "leading", 10)


def test_a_leader_that_loses_the_lease_exits_at_once(cluster, namespace, pair):
    first, _ = pair
    first.start()
    held = lease(cluster, namespace)
    held["spec"]["holderIdentity"] = "usurper"
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/video2world-operator"
    cluster.admin.request("PUT", path, held)
    eventually(lambda: not first.alive, 20, first.tail)
    assert first.process.returncode == 1
    assert "usurper has taken the lease" in first.tail()


def test_liveness_depends_on_cache_and_queue_not_only_on_http():
    from video2world_operator.controller.health import Health

    health = Health(queue_lag=lambda: 3, cache_age=lambda: 5)
    assert health.problems() == []
    stuck = Health(queue_lag=lambda: 300, cache_age=lambda: 5)
    assert stuck.problems() == ["a resource has been waiting for 300 s to be reconciled"]
    behind = Health(queue_lag=lambda: 0, cache_age=lambda: 200)
    assert behind.problems() == ["the watch is 200 s behind the API server"]
    lost = Health(holds=lambda: False, state="leading")
    assert lost.problems() == ["it no longer holds the lease, and has not ended"]
    assert Health(holds=lambda: False, state="waiting").problems() == []


@pytest.mark.parametrize("change", ["create", "apply_status", "delete"])
def test_a_leader_that_may_have_lost_the_lease_changes_nothing(cluster, namespace, change):
    """A leader that was frozen and wakes up; with the lease the same change is made."""
    api = grant(cluster, namespace, [namespace])
    run = Resource(cluster, namespace).create()
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "a", "namespace": namespace},
        "spec": {"suspend": True, "template": template},
    }
    uid = cluster.admin.post(jobs, job)["metadata"]["uid"] if change == "delete" else ""
    body = run.object

    async def attempt(holds):
        async with ApiClient(connection(api)) as client:
            client.fence = lambda: holds
            await {
                "create": lambda: client.create(job),
                "apply_status": lambda: client.apply_status(body, {"message": "mine"}),
                "delete": lambda: client.delete("batch/v1", "Job", namespace, "a", uid),
            }[change]()

    def changed():
        if change == "apply_status":
            return run.status.get("message") == "mine"
        return exists(cluster.admin, f"{jobs}/a") == (change == "create")

    with pytest.raises(OSError, match="lease"):
        asyncio.run(attempt(False))
    assert not changed()
    asyncio.run(attempt(True))
    eventually(changed, 20)
