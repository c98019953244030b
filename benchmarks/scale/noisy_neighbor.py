"""Measure how a tenant with thousands of bad resources affects another tenant.

Measured are the start delay of the other tenant's resources and the operator's memory use.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.errors import ApiError

from .audit_log import Timeline, percentiles, tail
from .load import Work, add_nodes, client_of, start_cluster, usage
from .systems import NAMESPACE, Cluster, Video2WorldOperator

__all__ = ["measure_noise"]

NOISY = "noisy"
EVERY = 0.5  # seconds between two resources of the quiet tenant


def bad_resource(number: int) -> dict[str, Any]:
    """Return a resource that the API server accepts and that can never succeed."""
    body = Video2WorldOperator().body(Work(f"bad-{number}", 1, 1))
    spec = body["spec"]
    kind = number % 3
    if kind == 0:  # its PVC does not exist
        spec["storage"] = {"claimName": f"missing-{number}"}
    elif kind == 1:  # the API server refuses its Job
        volumes = [{"name": "two-kinds", "emptyDir": {}, "hostPath": {"path": "/"}}]
        spec["stages"]["download"] = {"podTemplate": {"spec": {"volumes": volumes}}}
    else:  # its pods are never scheduled
        spec["stages"]["download"] = {"nodeSelector": {"no": "such"}}
    return body


async def _create_quiet(client: ApiClient, first: int, count: int) -> None:
    """Create ``count`` small resources of the quiet tenant, one after the other."""
    for number in range(first, first + count):
        body = Video2WorldOperator().body(Work(f"q-{number}", 1, 1))
        await client.request("POST", Video2WorldOperator.collection, body=body)
        await asyncio.sleep(EVERY)


async def measure_noise(count: int, starts: int) -> dict[str, Any]:
    """Measure ``starts`` starts alone, then more while ``count`` bad resources are created."""
    system = Video2WorldOperator()
    with (
        tempfile.TemporaryDirectory() as folder,
        start_cluster() as cluster,
    ):
        for name in (NAMESPACE, NOISY):
            cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": name}})
        async with client_of(cluster) as client:
            await add_nodes(client, 16)
            await asyncio.to_thread(system.install, cluster, Path(folder))
            await asyncio.to_thread(system.launch)
            try:
                await asyncio.to_thread(system.ready)
                return await _measure(system, cluster, client, count, starts)
            finally:
                system.close()


async def _measure(
    system: Video2WorldOperator, cluster: Cluster, client: ApiClient, count: int, starts: int
) -> dict[str, Any]:
    log, timeline = tail(cluster.folder / "audit.log"), Timeline(system)

    async def started(first: int, last: int) -> dict[str, float]:
        names = [f"q-{n}" for n in range(first, last)]
        until = time.monotonic() + 300
        while True:
            for event in next(log):
                timeline.record(event)
            if all(name in timeline.first for name in names) or time.monotonic() > until:
                break
            await asyncio.sleep(0.5)
        lost = [name for name in names if name not in timeline.first]
        lags = percentiles(timeline.first[n] - timeline.posted[n] for n in names if n not in lost)
        return lags | ({"not_within_300_s": len(lost)} if lost else {})

    path = Video2WorldOperator.collection.replace(f"/{NAMESPACE}/", f"/{NOISY}/")
    idle = usage(system.pids())["mib"]
    load_before = os.getloadavg()[0]
    await _create_quiet(client, 0, starts)
    alone = await started(0, starts)
    before = usage(system.pids())
    began = time.time()

    async def post(number: int) -> None:
        while True:
            try:
                await client.request("POST", path, body=bad_resource(number))
                return
            except ApiError as error:
                if error.code != 409:
                    raise
                return

    noisy = asyncio.create_task(_in_parallel(post, count))
    quiet = 0
    while not noisy.done() or quiet < starts:
        await _create_quiet(client, starts + quiet, 1)
        quiet += 1
    await noisy
    posted = time.time() - began
    loaded = await started(starts, starts + quiet)
    full = usage(system.pids())
    depth = (await asyncio.to_thread(system.queue))["depth"]
    again = []
    for _ in range(2):  # deleted resources must leave nothing behind
        await client.request("DELETE", path)
        await asyncio.sleep(10)
        again.append(usage(system.pids())["mib"])
        if len(again) < 2:
            await _in_parallel(post, count)
            await asyncio.sleep(10)
            refilled = usage(system.pids())["mib"]
    return {
        "bad_resources": count,
        "posted_per_second": round(count / posted, 1),
        "start_alone": alone,
        "start_beside": loaded,
        "delay_p99": round(loaded["p99"] - alone["p99"], 2),
        "queue_depth_after": depth,
        "cpu_seconds": round(full["cpu"] - before["cpu"], 1),
        "mib_at_rest": idle,
        "mib_before": before["mib"],
        "mib_with_the_bad": full["mib"],
        "kib_per_bad_resource": round((full["mib"] - before["mib"]) * 1024 / count, 1),
        "mib_after_their_deletion": again[0],
        "mib_with_as_many_again": refilled,
        "mib_after_those_were_deleted": again[1],
        "load_before": round(load_before, 1),
    }


async def _in_parallel(post: Callable[[int], Awaitable[None]], count: int) -> None:
    limit = asyncio.Semaphore(8)  # as a script would, without saturating the API server

    async def one(number: int) -> None:
        async with limit:
            await post(number)

    await asyncio.gather(*(one(n) for n in range(count)))
