"""A noisy tenant beside a quiet one: how much later the quiet one's resources start, and what
the noisy one's leave behind in the operator's memory."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from video2world_operator.kube.client import Cluster as Client
from video2world_operator.kube.errors import ApiError

from .scale_run import add_nodes, client_of, cluster_of_its_own, usage
from .scale_seen import Seen, follow, spread
from .scale_systems import NAMESPACE, Cluster, Ours, Work

__all__ = ["noise"]

NOISY = "noisy"
EVERY = 0.5  # seconds between two starts of the quiet tenant


def bad(number: int) -> dict[str, Any]:
    """A resource that the API server takes and that cannot come to anything."""
    body = Ours().body(Work(f"bad-{number}", 1, 1))
    spec = body["spec"]
    kind = number % 3
    if kind == 0:  # its claim never comes
        spec["storage"] = {"claimName": f"missing-{number}"}
    elif kind == 1:  # the API server refuses its Job
        volumes = [{"name": "two-kinds", "emptyDir": {}, "hostPath": {"path": "/"}}]
        spec["stages"]["download"] = {"podTemplate": {"spec": {"volumes": volumes}}}
    else:  # its pods never get a node
        spec["stages"]["download"] = {"nodeSelector": {"no": "such"}}
    return body


async def _starts(client: Client, first: int, count: int) -> None:
    """``count`` small resources of the quiet tenant, one after the other."""
    for number in range(first, first + count):
        await client.request("POST", Ours.collection, body=Ours().body(Work(f"q-{number}", 1, 1)))
        await asyncio.sleep(EVERY)


async def noise(count: int, starts: int) -> dict[str, Any]:
    """``starts`` starts alone, and ``starts`` or more while ``count`` bad resources come."""
    system = Ours()
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster_of_its_own() as cluster,
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
    system: Ours, cluster: Cluster, client: Client, count: int, starts: int
) -> dict[str, Any]:
    log, seen = follow(cluster.folder / "audit.log"), Seen(system)

    async def started(first: int, last: int) -> dict[str, float]:
        names = [f"q-{n}" for n in range(first, last)]
        until = time.monotonic() + 300
        while True:
            for event in next(log):
                seen.take(event)
            if all(name in seen.first for name in names) or time.monotonic() > until:
                break
            await asyncio.sleep(0.5)
        lost = [name for name in names if name not in seen.first]
        lags = spread(seen.first[n] - seen.posted[n] for n in names if n not in lost)
        return lags | ({"not_within_300_s": len(lost)} if lost else {})

    path = Ours.collection.replace(f"/{NAMESPACE}/", f"/{NOISY}/")
    rested = usage(system.pids())["mib"]
    load_before = os.getloadavg()[0]
    await _starts(client, 0, starts)
    alone = await started(0, starts)
    before = usage(system.pids())
    began = time.time()

    async def post(number: int) -> None:
        while True:
            try:
                await client.request("POST", path, body=bad(number))
                return
            except ApiError as error:
                if error.code != 409:
                    raise
                return

    noisy = asyncio.create_task(_all(post, count))
    quiet = 0
    while not noisy.done() or quiet < starts:
        await _starts(client, starts + quiet, 1)
        quiet += 1
    await noisy
    posted = time.time() - began
    beside = await started(starts, starts + quiet)
    full = usage(system.pids())
    depth = (await asyncio.to_thread(system.busy))["depth"]
    again = []
    for _ in range(2):  # what is deleted must leave nothing behind
        await client.request("DELETE", path)
        await asyncio.sleep(10)
        again.append(usage(system.pids())["mib"])
        if len(again) < 2:
            await _all(post, count)
            await asyncio.sleep(10)
            refilled = usage(system.pids())["mib"]
    return {
        "bad_resources": count,
        "posted_per_second": round(count / posted, 1),
        "start_alone": alone,
        "start_beside": beside,
        "delay_p99": round(beside["p99"] - alone["p99"], 2),
        "queue_depth_after": depth,
        "cpu_seconds": round(full["cpu"] - before["cpu"], 1),
        "mib_at_rest": rested,
        "mib_before": before["mib"],
        "mib_with_the_bad": full["mib"],
        "kib_per_bad_resource": round((full["mib"] - before["mib"]) * 1024 / count, 1),
        "mib_after_their_deletion": again[0],
        "mib_with_as_many_again": refilled,
        "mib_after_those_were_deleted": again[1],
        "load_before": round(load_before, 1),
    }


async def _all(post: Any, count: int) -> None:
    waiting = asyncio.Semaphore(8)  # a script's worth, not all of the API server

    async def one(number: int) -> None:
        async with waiting:
            await post(number)

    await asyncio.gather(*(one(n) for n in range(count)))
