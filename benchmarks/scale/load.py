"""Put load on one system: its cluster, its resources, and what is measured of it."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane import Cluster, fake_nodes
from video2world_operator.kube.auth import Connection, from_kubeconfig
from video2world_operator.kube.client import ApiClient

from .audit_log import BENCH, RULES, Timeline, tail
from .systems import NAMESPACE, System, Work

__all__ = [
    "CRASH",
    "Load",
    "Scale",
    "Work",
    "add_nodes",
    "client_of",
    "mix",
    "probes",
    "start_cluster",
    "usage",
]

EXIT_CODE = "fake.video2world.dev/exit-code"
CRASH = 137  # as after a SIGKILL, which every system retries
# Lease of the fake nodes in seconds. All nodes renew at the same time, every quarter of this: so
# long that it happens in no run, where it would affect one system's figures and not another's.
LEASE = 14_400


@dataclass(frozen=True)
class Scale:
    """The size of the load."""

    resources: int = 1000
    nodes: int = 1000  # of the one large resource
    probes: int = 60  # resources of 4 nodes, one after the other, next to all the others
    failing: float = 0.02  # of all training pods
    vanishing: float = 0.01  # of all cluster nodes
    killed: int = 10  # pods that fail, and resources created, while the operator is down
    seed: int = 1
    patience: float = 900  # seconds to wait for anything

    @property
    def cluster_nodes(self) -> int:
        """Number of fake 8-GPU nodes: enough for all training pods, and one in twenty spare."""
        pods = sum(w.nodes for w in [*mix(self.resources), *probes(self.probes)] if w.gpus == 8)
        spare = 1.05 + self.vanishing
        return max(self.nodes + 10, int(pods * spare) + self.resources // 8 + 8)


def mix(count: int) -> list[Work]:
    """Return ``count`` resources: of every 20, 11 Tiny, 6 of 1 x 8 GPUs and 3 of 4 x 8."""
    pattern = ([("tiny", 1, 1)] * 11) + ([("one", 1, 8)] * 6) + ([("four", 4, 8)] * 3)
    order = [pattern[(7 * n) % 20] for n in range(20)]
    return [
        Work(f"{kind}-{n}", nodes, gpus)
        for n in range(count)
        for kind, nodes, gpus in [order[n % 20]]
    ]


def probes(count: int) -> list[Work]:
    """Return ``count`` resources of 4 x 8 GPUs."""
    return [Work(f"probe-{n}", 4, 8) for n in range(count)]


class Load:
    """A cluster with one system, its load, and the timeline of its audit log."""

    def __init__(self, system: System, cluster: Cluster, client: ApiClient, scale: Scale) -> None:
        self.system, self.cluster, self.client, self.scale = system, cluster, client, scale
        self.timeline = Timeline(system)
        self.log = tail(cluster.folder / "audit.log")
        self.random = random.Random(scale.seed)
        self.samples: list[dict[str, float]] = []
        self.spent = 0.0  # CPU seconds of processes that were killed

    def cpu(self) -> float:
        """Return the CPU seconds of the system's processes so far."""
        return self.spent + usage(self.system.pids())["cpu"]

    def refresh(self) -> Timeline:
        """Read new audit events and return the timeline."""
        for event in next(self.log):
            self.timeline.record(event)
        return self.timeline

    async def until(self, what: str, probe: Callable[[Timeline], Any], every: float = 1.0) -> None:
        """Wait until ``probe`` of the timeline is true.

        Raises:
            TimeoutError: it is not within the patience of the scale.
        """
        began = time.monotonic()
        while not probe(self.refresh()):
            if time.monotonic() - began > self.scale.patience:
                raise TimeoutError(
                    f"{self.system.title}: {what} not within {self.scale.patience} s"
                )
            await asyncio.sleep(every)

    async def post(self, works: Iterable[Work]) -> None:
        """Create these resources as fast as the API server accepts them."""
        await asyncio.gather(
            *(
                self.client.request("POST", self.system.collection, body=self.system.body(work))
                for work in works
            )
        )

    async def training_pods(self) -> dict[str, list[str]]:
        """Return the names of the running training pods by resource, sorted."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        found: dict[str, list[str]] = {}
        selector = "status.phase=Running"
        async for item in self.client.list_objects(path, accept=_NAMES, fieldSelector=selector):
            name = item["metadata"]["name"]
            resource = self.system.resource_of(name)
            if resource and "deletionTimestamp" not in item["metadata"]:
                found.setdefault(resource, []).append(name)
        return {resource: sorted(names) for resource, names in found.items()}

    async def end_pods(self, pods: Iterable[str], code: int) -> None:
        """Make these pods exit with ``code``."""
        body = {"metadata": {"annotations": {EXIT_CODE: str(code)}}}
        await asyncio.gather(
            *(
                self.client.request(
                    "PATCH",
                    f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}",
                    body=body,
                    content_type="application/merge-patch+json",
                )
                for pod in pods
            )
        )

    async def succeeded(self) -> Counter[bool]:
        """Count the resources that have succeeded (True) and that have not (False)."""
        answer = await self.client.request("GET", self.system.collection)
        return Counter(self.system.succeeded(body) for body in answer["items"])

    async def sample(self) -> None:
        """Sample CPU, memory, queue and load every two seconds, until cancelled."""
        while True:
            now = {"time": time.time(), "load": os.getloadavg()[0], **usage(self.system.pids())}
            try:
                now["depth"] = (await asyncio.to_thread(self.system.queue))["depth"]
            except (OSError, ValueError):
                now["depth"] = 0.0
            self.samples.append(now)
            await asyncio.sleep(2)


def usage(pids: Sequence[int]) -> dict[str, float]:
    """Return CPU seconds and resident MiB of these processes together."""
    ticks, resident = 0, 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            resident += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return {"cpu": ticks / os.sysconf("SC_CLK_TCK"), "mib": round(resident / 2**20, 1)}


def start_cluster() -> Cluster:
    """Start a cluster without nodes; every measurement uses the same settings."""
    return Cluster(nodes=0, native_gang=True, lease_seconds=LEASE, audited=RULES, roomy=True)


def client_of(cluster: Cluster) -> ApiClient:
    """Return an API client of the benchmark's own user, without a rate limit."""
    api = cluster.user(BENCH, "system:masters")

    async def connect() -> Connection:
        return await from_kubeconfig(api.kubeconfig())

    return ApiClient(connect, requests_per_second=1e6, burst=1_000_000, parallel=24)


async def add_nodes(client: ApiClient, count: int) -> None:
    """Add fake nodes ``node-0``, ``node-1`` and so on, and wait until KWOK manages them."""
    nodes = (fake_nodes.node(f"node-{n}", 8, {}) for n in range(count))
    await asyncio.gather(*(client.request("POST", "/api/v1/nodes", body=n) for n in nodes))
    while True:  # a node has its taint until KWOK manages it
        listing = await client.request("GET", "/api/v1/nodes")
        if not any(node["spec"].get("taints") for node in listing["items"]):
            return
        await asyncio.sleep(1)


_NAMES = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
