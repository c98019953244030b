"""Run the phases of the scale benchmark on one system: load, faults and completion."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from video2world_operator.kube.errors import ApiError

from .audit_log import Timeline, percentiles
from .load import CRASH, Load, Scale, Work, add_nodes, client_of, mix, probes, start_cluster, usage
from .systems import NAMESPACE, System, Video2WorldOperator

__all__ = ["measure"]


async def measure(system: System, scale: Scale, folder: Path) -> dict[str, Any]:
    """Measure all figures of one system, on a cluster of its own."""
    with start_cluster() as cluster:
        cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        async with client_of(cluster) as client:
            load = Load(system, cluster, client, scale)
            await add_nodes(client, scale.cluster_nodes)
            await asyncio.to_thread(system.install, cluster, folder)
            await asyncio.to_thread(system.launch)
            sampler = None
            try:
                await asyncio.to_thread(system.ready)
                load.refresh()
                sampler = asyncio.create_task(load.sample())
                results: dict[str, Any] = {"title": system.title, "versions": system.versions}
                results["at_rest_mib"] = usage(system.pids())["mib"]
                for name, part in (
                    ("large", _large),
                    ("fill", _fill),
                    ("probe", _probe),
                    ("fail", _fail),
                    ("vanish", _vanish),
                    ("crash", _crash),
                    ("drain", _drain),
                ):
                    began, load_before = time.monotonic(), os.getloadavg()[0]
                    figures = await part(load)
                    if figures is None:
                        continue
                    figures["took_seconds"] = round(time.monotonic() - began, 1)
                    figures["load_before_and_after"] = [
                        round(load_before, 1),
                        round(os.getloadavg()[0], 1),
                    ]
                    results[name] = figures
                    print(f"{system.name} {name}: {figures}", flush=True)
            finally:
                if sampler is not None:
                    sampler.cancel()
                system.close()
            if isinstance(system, Video2WorldOperator):
                results["lost_leases"] = system.lost_leases()
            return results


async def _large(load: Load) -> dict[str, Any] | None:
    """Create, and then delete, one resource with as many training nodes as the cluster has."""
    if not load.scale.nodes:
        return None
    work = Work("large", load.scale.nodes, 8)
    before = load.cpu()
    await load.post([work])
    await load.until(
        "all pods of the large resource", lambda t: t.group_created("large", work.nodes)
    )
    timeline = load.timeline
    created, begun = timeline.group_created("large", work.nodes), _training_start(load, "large")
    assert created is not None
    await load.until(
        "the large resource to run",
        lambda t: (
            sum(bool(p.running) for n, p in t.pods.items() if load.system.resource_of(n) == "large")
            >= work.nodes
        ),
    )
    ran = max(p.running for n, p in timeline.pods.items() if load.system.resource_of(n) == "large")
    figures = {
        "nodes": work.nodes,
        "turn_to_all_pods_created": round(created - begun, 2),
        "turn_to_all_pods_running": round(ran - begun, 2),
        "apply_to_all_pods_created": round(created - timeline.posted["large"], 2),
        "cpu_seconds": round(load.cpu() - before, 1),
        "mib": usage(load.system.pids())["mib"],
    }
    await load.client.request("DELETE", f"{load.system.collection}/large")
    while await load.training_pods():
        await asyncio.sleep(1)
    return figures


async def _fill(load: Load) -> dict[str, Any]:
    """Create all resources at once and wait until all of them train."""
    works = mix(load.scale.resources)
    before, requests = load.cpu(), Counter(load.refresh().requests)
    began = time.time()
    await load.post(works)
    posted = time.time() - began
    print(f"{load.system.name}: {len(works)} resources posted in {posted:.1f} s", flush=True)
    await load.until(
        "all resources to train",
        lambda t: all(t.group_created(w.name, w.nodes) for w in works),
        2.0,
    )
    timeline = load.timeline
    accepted = [timeline.accepted.get(w.name) or timeline.first[w.name] for w in works]
    busy = [one for one in load.samples if one["time"] >= began]
    return {
        "resources": len(works),
        "training_pods": sum(w.nodes for w in works),
        "posted_per_second": round(len(works) / posted, 1),
        "accepted_per_second": round(len(works) / (max(accepted) - began), 1),
        "apply_to_first_pod": percentiles(
            timeline.first[w.name] - timeline.posted[w.name] for w in works
        ),
        "apply_to_all_training_pods": percentiles(
            _all_created(timeline, w) - timeline.posted[w.name] for w in works
        ),
        "seconds_until_all_train": round(max(_all_created(timeline, w) for w in works) - began, 1),
        "pods_per_second": round(timeline.all_pods / (time.time() - began), 1),
        "queue_depth_max": max((one["depth"] for one in busy), default=0),
        "queue_depth_mean": round(sum(o["depth"] for o in busy) / max(1, len(busy)), 1),
        "reconcile_seconds": await asyncio.to_thread(load.system.latency),
        "requests": dict(timeline.requests - requests),
        "cpu_seconds": round(load.cpu() - before, 1),
        "mib": usage(load.system.pids())["mib"],
    }


async def _probe(load: Load) -> dict[str, Any] | None:
    """Create 4 x 8 resources one after the other, next to all live ones."""
    works = probes(load.scale.probes)
    if not works:
        return None
    await asyncio.sleep(5)
    for work in works:
        await load.post([work])
        await load.until(work.name, partial(Timeline.group_created, resource=work.name, nodes=4))
    timeline = load.timeline
    return {
        "turn_to_4_pods_created": percentiles(
            _all_created(timeline, w) - _training_start(load, w.name) for w in works
        ),
        "apply_to_first_pod": percentiles(
            timeline.first[w.name] - timeline.posted[w.name] for w in works
        ),
        "apply_to_4_pods_created": percentiles(
            _all_created(timeline, w) - timeline.posted[w.name] for w in works
        ),
    }


async def _fail(load: Load) -> dict[str, Any]:
    """Crash training pods one after the other, of different groups, multi-node groups first."""
    running = await load.training_pods()
    total = sum(len(pods) for pods in running.values())
    count = max(1, round(total * load.scale.failing))
    groups = sorted(running)
    load.random.shuffle(groups)
    groups.sort(key=lambda name: len(running[name]) == 1)  # several nodes first
    victims = {name: load.random.choice(running[name]) for name in groups[:count]}
    at = {}
    for name, pod in victims.items():
        at[name] = time.time()
        await load.end_pods([pod], CRASH)
        await asyncio.sleep(0.7)
    nodes = {name: len(running[name]) for name in victims}
    return {"pods": len(victims), **await _recovery(load, at, nodes, victims)}


async def _vanish(load: Load) -> dict[str, Any] | None:
    """Delete nodes with their pods, as a cloud reclaims machines."""
    count = round(load.scale.cluster_nodes * load.scale.vanishing)
    if not count:
        return None
    listing = await load.client.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")
    place: dict[str, list[str]] = {}
    for pod in listing["items"]:
        name = pod["metadata"]["name"]
        gpus = pod["spec"]["containers"][0].get("resources", {}).get("limits", {})
        running = pod["status"].get("phase") == "Running"
        if load.system.resource_of(name) and gpus.get("nvidia.com/gpu") == "8" and running:
            place.setdefault(pod["spec"]["nodeName"], []).append(name)
    gone = load.random.sample(sorted(place), min(count, len(place)))
    groups = await load.training_pods()
    at, victims = {}, {}
    for node in gone:
        for pod in place[node]:
            resource = load.system.resource_of(pod)
            at[resource], victims[resource] = time.time(), pod
        await load.client.request("DELETE", f"/api/v1/nodes/{node}")
    nodes = {name: len(groups[name]) for name in victims}
    return {"nodes": len(gone), "groups": len(at), **await _recovery(load, at, nodes, victims)}


async def _recovery(
    load: Load, at: dict[str, float], nodes: dict[str, int], victims: dict[str, str]
) -> dict[str, Any]:
    """Measure how long groups that lost a pod take to be deleted and created again."""
    needed = {name: nodes[name] if load.system.restarts_group else 1 for name in at}
    await load.until(
        "groups to be created again",
        lambda t: all(t.group_created(name, needed[name], at[name]) for name in at),
    )
    timeline = load.timeline
    failed = {}  # when each group lost its pod
    for name, started in at.items():
        pod = timeline.pods.get(victims[name])
        failed[name] = max(pod.ended if pod is not None else 0.0, started)
    deleted = []
    for name, started in at.items():
        times = [
            t
            for n, deletions in timeline.deleted.items()
            if n == name or n.startswith(f"{name}-")
            for t in deletions
            if t >= started
        ]
        deleted += [min(times) - failed[name]] if times else []
    lags = [
        created - failed[name]
        for name, started in at.items()
        if (created := timeline.group_created(name, needed[name], started)) is not None
    ]
    return {"failure_to_deletion": percentiles(deleted), "failure_to_new_pods": percentiles(lags)}


async def _crash(load: Load) -> dict[str, Any] | None:
    """Kill the operator, fail pods and create resources while it is down, and start it again."""
    count = load.scale.killed
    if not count:
        return None
    running = await load.training_pods()
    names = load.random.sample(sorted(running), min(count, len(running)))
    new = [Work(f"late-{n}", 1, 8) for n in range(count)]
    load.spent = load.cpu()
    load.system.kill()
    at = {name: time.time() for name in names}
    await load.end_pods([running[name][0] for name in names], CRASH)
    refused = left = await _post_each(load, new)
    await asyncio.sleep(1)
    launched = time.time()
    load.system.launch()
    while left := await _post_each(load, left):
        await asyncio.sleep(0.2)
    need = {name: len(running[name]) if load.system.restarts_group else 1 for name in names}
    await load.until(
        "everything after SIGKILL",
        lambda t: (
            all(t.group_created(n, need[n], at[n]) for n in names)
            and all(w.name in t.first for w in new)
        ),
        0.5,
    )
    timeline = load.timeline
    converged = max(
        *(timeline.group_created(n, need[n], at[n]) or 0 for n in names),
        *(timeline.first[w.name] for w in new),
    )
    return {
        "live_resources": len(running),
        "resources_refused_while_away": len(refused),
        "launch_to_all_done": round(converged - launched, 2),
        "mib_after": usage(load.system.pids())["mib"],
    }


async def _post_each(load: Load, works: Sequence[Work]) -> list[Work]:
    """Create these resources; return those refused because a webhook does not respond."""
    refused = []
    for work in works:
        try:
            await load.post([work])
        except ApiError:
            refused.append(work)
    return refused


async def _drain(load: Load) -> dict[str, Any]:
    """Let every training pod succeed, until every resource has."""
    stopped = time.time()
    while True:
        running = await load.training_pods()
        await load.end_pods([pod for pods in running.values() for pod in pods], 0)
        done = await load.succeeded()
        if not done[False]:
            break
        print(f"{load.system.name}: {done[False]} resources have not ended", flush=True)
        if time.time() - stopped > load.scale.patience:
            raise TimeoutError(f"{load.system.title}: {done[False]} resources do not end")
        await asyncio.sleep(3)
    timeline = load.refresh()
    works = {w.name: (w.nodes, w.gpus) for w in mix(load.scale.resources)}
    held = timeline.goodput(works, time.time())
    count = done[True]
    busy = [one for one in load.samples if one["mib"]]
    return {
        "succeeded": count,
        "seconds": round(time.time() - stopped, 1),
        "gpu_seconds": held,
        "goodput": round(held["useful"] / held["held"], 4) if held["held"] else None,
        "requests": {k: round(n / count, 2) for k, n in sorted(timeline.requests.items())},
        "requests_per_resource": round(sum(timeline.requests.values()) / count, 1),
        "writes_per_resource": round(
            sum(n for k, n in timeline.requests.items() if not k.startswith(("get", "list")))
            / count,
            1,
        ),
        "mib_max": max(one["mib"] for one in busy),
        "load_max": round(max(one["load"] for one in load.samples), 1),
        "cpu_seconds": round(load.cpu(), 1),
    }


def _all_created(timeline: Timeline, work: Work) -> float:
    created = timeline.group_created(work.name, work.nodes)
    assert created is not None
    return created


def _training_start(load: Load, name: str) -> float:
    """Return when the training of a resource could start.

    Ours starts when the Job controller has reported the previous stage complete; the peers have no
    such stages, theirs starts with the resource.
    """
    timeline = load.timeline
    if not isinstance(load.system, Video2WorldOperator):
        return timeline.posted[name]
    begun = timeline.applied[f"{name}-train-1"]
    return max(when for when in timeline.jobs[f"{name}-latents-1"] if when <= begun)
