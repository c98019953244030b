"""Expose the operator's metrics over a simulated run, and find Prometheus' own tools."""

import os

import pytest
from prometheus_client.parser import text_string_to_metric_families as classic

from control_plane import Unavailable, binaries
from reconcile_world import STAGES, World
from video2world_operator.controller.metrics import Metrics, ResourceMetrics
from video2world_operator.controller.resource import Resource
from video2world_operator.kube.workqueue import WorkQueue


def tool(name):
    """Return the path of a program of Prometheus, built if it is missing."""
    try:
        return str(binaries.find(name)[name])
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


class Scraped:
    """The metrics of a process that has observed one simulated cluster."""

    def __init__(self, world=None):
        self.world, self.metrics, self.resources = world or World(), Metrics(), {}
        self.queue = WorkQueue(self.work)
        self.queue.observe = self.metrics.count_reconciliation
        self.metrics.attach(
            ResourceMetrics(lambda: list(self.resources.values()), self.queue, lambda: 7.0)
        )

    async def work(self, key):
        if key == "bad":
            raise ValueError(key)

    def look(self, name="run"):
        key = ("ns", name)
        self.resources[key] = Resource(self.world.body)
        self.metrics.observe_resource(key, self.resources[key], self.world.pods.values())

    def text(self, accept=""):
        return self.metrics.expose(accept)[0].decode()

    def value(self, name, **labels):
        """Return one value as it is scraped; None if there is none."""
        for family in classic(self.text()):
            for sample in family.samples:
                if sample.name == f"video2world_{name}" and sample.labels == labels:
                    return sample.value
        return None


def lived(scraped):
    """Run a resource with one restart to its end, observed after every step."""
    world = scraped.world
    scraped.look()
    world.settle()
    scraped.look()
    for stage in STAGES:
        world.start_pods()
        scraped.look()
        world.round()
        scraped.look()
        world.tick(100)
        if stage == "train":
            world.pod("run-train-1-1", phase="Failed", exit_code=1, ended=world.now)
            world.round()
            scraped.look()
            world.pods.clear()
            world.tick(30)
            world.settle()
            scraped.look()
            world.start_pods()
            scraped.look()
            world.round()
            scraped.look()
            world.tick(50)
        world.finish(stage)
        world.pods.clear()
        world.settle()
        scraped.look()
