"""Cached objects that the API server no longer has: deleted, with or without an event."""

import asyncio

from operators import Operator, Resource, connection, eventually, exists, grant
from video2world_operator.controller import resource
from video2world_operator.controller.cache import WatchCache
from video2world_operator.controller.health import Freshness
from video2world_operator.kube.client import ApiClient
from video2world_operator.reconcile.observed_state import Job


def test_the_last_resource_is_deleted_without_an_event(cluster, namespace):
    """The API server answers null instead of an empty list of metadata. Informers drop Jobs."""
    api = grant(cluster, namespace, [namespace])
    key = (namespace, "run")
    cache = WatchCache()
    metadata = {"uid": "r1", "namespace": namespace, "name": "run"}
    cache.put_resource(resource.Resource({"metadata": metadata}))
    cache.put_job(key, Job("run-train-1", "j1", "train", 1, "", "r1"))

    async def check():
        async with ApiClient(connection(api)) as client:
            return await Freshness(client, cache, [namespace]).check()

    assert asyncio.run(check()) == {key}
    assert cache.resource(key) is None
    assert [job.uid for job in cache.jobs(key)] == ["j1"]


def test_another_program_s_pod_with_our_label_holds_nothing_up(cluster, namespace, tmp_path):
    """An operator starts once its cache has every object with the label, whatever it is."""
    path = f"/api/v1/namespaces/{namespace}"
    eventually(lambda: exists(cluster.admin, f"{path}/serviceaccounts/default"))
    for name, labels in (("a", {}), ("b", {"video2world.dev/attempt": "x"})):
        metadata = {"name": name, "labels": {"video2world.dev/resource": "nobody", **labels}}
        containers = [{"name": "a", "image": "a"}]
        cluster.admin.post(
            f"{path}/pods", {"metadata": metadata, "spec": {"containers": containers}}
        )
    kubeconfig = cluster.write_kubeconfig(grant(cluster, namespace, [namespace]))
    flags = ("--namespaces", namespace, "--own-namespace", namespace)
    with Operator(kubeconfig, *flags, log=tmp_path / "log") as operator:
        run = Resource(cluster, namespace).create()
        eventually(lambda: run.children("jobs"), what=operator.tail)
