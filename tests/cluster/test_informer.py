"""Jobs and pods in the cache: listed, added, changed, and deleted while no watch was open."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import replace

import pytest
from kubernetes.aio.client import Configuration

from api_proxy import Proxy
from operators import eventually, exists, grant
from video2world_operator.controller.cache import CHILDREN, WatchCache
from video2world_operator.controller.informer import Informer
from video2world_operator.kube.auth import Connection
from video2world_operator.kube.client import ApiClient

PODS = next(kind for kind in CHILDREN if kind.kind == "Pod")
LABEL = "video2world.dev/resource"


class World:
    """Pods of resources, their informer, and the requests and faults on its way."""

    def __init__(self, cluster, namespace):
        self.path = f"/api/v1/namespaces/{namespace}/pods"
        self.admin, self.namespace = cluster.admin, namespace
        self.cache, self.woken = WatchCache(), Counter()
        self.faults, self.requests = [], Counter()
        self.client_api = grant(cluster, namespace, [namespace])
        eventually(
            lambda: exists(cluster.admin, self.path.replace("pods", "serviceaccounts/default"))
        )

    def pod(self, name, resource="run", **labels):
        metadata = {"name": name, "labels": {LABEL: resource, **labels}}
        spec = {"containers": [{"name": "a", "image": "a"}], "nodeSelector": {"no": "where"}}
        self.admin.post(self.path, {"metadata": metadata, "spec": spec})

    def delete(self, name):
        self.admin.delete(f"{self.path}/{name}?gracePeriodSeconds=0")

    def judge(self, method, path):
        if not path.startswith(self.path):
            return None
        self.requests[method] += 1
        return self.faults.pop(0) if method == "WATCH" and self.faults else None

    def names(self, resource="run"):
        return sorted(pod.name for pod in self.cache.pods((self.namespace, resource)))


@pytest.fixture
def world(cluster, namespace):
    return World(cluster, namespace)


def informed(world, story, watch_seconds=300.0, kind=PODS):
    """Run ``story(proxy)`` while the informer runs."""

    async def both(proxy):
        token = world.client_api.kubeconfig()["users"][0]["user"]["token"]
        settings = Configuration(host=proxy.url, api_key={"BearerToken": f"Bearer {token}"})

        async def connect():
            return Connection(settings)

        async with ApiClient(connect) as client:
            informer = Informer(
                client, world.cache, kind, world.namespace, lambda key: world.woken.update([key])
            )
            task = asyncio.create_task(informer.run())
            try:
                await asyncio.wait_for(informer.listed.wait(), 20)
                await asyncio.to_thread(story, proxy)
                assert not task.done()
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    with Proxy(world.client_api, world.judge, watch_seconds=watch_seconds) as proxy:
        asyncio.run(both(proxy))


def test_listed_added_changed_and_deleted_pods_are_followed(world):
    world.pod("a")
    world.pod("other", resource="another")
    key = (world.namespace, "run")

    def story(_):
        assert world.names() == ["a"]
        assert not world.woken  # whoever waits for the listing looks at all of them anyway
        world.pod("b")
        eventually(lambda: world.names() == ["a", "b"])
        assert world.woken[key]
        world.delete("a")
        eventually(lambda: world.names() == ["b"])
        world.pod("c")
        eventually(lambda: world.names() == ["b", "c"])

    informed(world, story)
    assert world.names("another") == ["other"]
    assert world.requests == {"GET": 1, "WATCH": 1}


@pytest.mark.parametrize("fault", ["410", "429", "500", "cut"])
def test_a_watch_that_is_refused_is_started_again(world, fault):
    world.pod("a")

    def story(proxy):
        world.pod("first")
        eventually(lambda: world.names() == ["a", "first"])  # the watch is open
        world.faults += [fault] * 3
        proxy.cut_watches()
        eventually(lambda: world.requests["WATCH"] >= 2)
        world.delete("a")  # while nobody watches
        world.pod("b")
        eventually(lambda: world.requests["WATCH"] == 5 and world.names() == ["b", "first"])

    informed(world, story)
    assert world.requests["GET"] == (4 if fault == "410" else 1)


def test_a_watch_that_ends_is_resumed_without_a_listing(world):
    def story(_):
        for number in range(6):
            world.pod(f"p{number}")
            eventually(lambda number=number: len(world.names()) == number + 1)

    informed(world, story, watch_seconds=0.3)
    assert world.requests["GET"] == 1


def test_objects_that_cannot_be_parsed_hold_nothing_up(world):
    world.pod("strange", **{"video2world.dev/attempt": "x", "video2world.dev/stage": ""})
    world.pod("a")

    def put(cache, key, body):
        if body["metadata"]["name"] == "strange-too":
            raise ValueError("as of a pod that nobody thought of")
        PODS.put(cache, key, body)

    def story(_):
        world.pod("strange-too", **{"video2world.dev/attempt": "y"})
        world.pod("b")
        eventually(lambda: {"a", "b"} <= set(world.names()))

    informed(world, story, kind=replace(PODS, put=put))
    assert "strange-too" not in world.names()
