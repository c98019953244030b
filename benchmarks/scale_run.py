"""One system under load: a cluster of its own, its resources, their faults and their end."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kopf

from video2world_operator.kube.client import Cluster as Client
from video2world_operator.kube.errors import ApiError

from .scale_seen import BENCH, RULES, Seen, follow, spread
from .scale_systems import NAMESPACE, Cluster, Ours, System, Work, fake_nodes

__all__ = ["Scale", "add_nodes", "client_of", "cluster_of_its_own", "measure", "mix", "usage"]

EXIT_CODE = "fake.video2world.dev/exit-code"
CRASH = 137  # as after a SIGKILL: every system takes it for worth another attempt
# Of the fake nodes, in seconds. All renew theirs at the same time, each quarter of this: so long
# that it happens in no run, where it would hit what is measured of one system and not of another.
LEASE = 14_400


@dataclass(frozen=True)
class Scale:
    """How much is asked of a system."""

    resources: int = 1000
    nodes: int = 1000  # of the one large resource
    probes: int = 60  # resources of 4 nodes, one after the other, beside all the others
    failing: float = 0.02  # of all training pods
    vanishing: float = 0.01  # of all cluster nodes
    killed: int = 10  # pods that fail, and resources that come, while the operator is away
    seed: int = 1
    patience: float = 900  # seconds that anything may take

    @property
    def cluster_nodes(self) -> int:
        """Fake nodes of eight GPUs: all training pods have room, and one in twenty is spare."""
        pods = sum(w.nodes for w in [*mix(self.resources), *_probes(self.probes)] if w.gpus == 8)
        spare = 1.05 + self.vanishing
        return max(self.nodes + 10, int(pods * spare) + self.resources // 8 + 8)


def mix(count: int) -> list[Work]:
    """11 Tiny, 6 of 1 x 8 GPUs and 3 of 4 x 8 in every 20."""
    pattern = ([("tiny", 1, 1)] * 11) + ([("one", 1, 8)] * 6) + ([("four", 4, 8)] * 3)
    order = [pattern[(7 * n) % 20] for n in range(20)]
    return [
        Work(f"{kind}-{n}", nodes, gpus)
        for n in range(count)
        for kind, nodes, gpus in [order[n % 20]]
    ]


def _probes(count: int) -> list[Work]:
    return [Work(f"probe-{n}", 4, 8) for n in range(count)]


class Load:
    """A cluster with one system, what is asked of it, and what the audit log tells."""

    def __init__(self, system: System, cluster: Cluster, client: Client, scale: Scale) -> None:
        self.system, self.cluster, self.client, self.scale = system, cluster, client, scale
        self.seen = Seen(system)
        self.log = follow(cluster.folder / "audit.log")
        self.random = random.Random(scale.seed)
        self.samples: list[dict[str, float]] = []
        self.spent = 0.0  # CPU seconds of processes that were killed

    def cpu(self) -> float:
        """CPU seconds of the system's processes so far."""
        return self.spent + usage(self.system.pids())["cpu"]

    def look(self) -> Seen:
        """The record up to now."""
        for event in next(self.log):
            self.seen.take(event)
        return self.seen

    async def until(self, what: str, probe: Callable[[Seen], Any], every: float = 1.0) -> None:
        """Wait for ``probe`` of the record."""
        began = time.monotonic()
        while not probe(self.look()):
            if time.monotonic() - began > self.scale.patience:
                raise TimeoutError(
                    f"{self.system.title}: {what} not within {self.scale.patience} s"
                )
            await asyncio.sleep(every)

    async def post(self, works: Iterable[Work]) -> None:
        """Make these resources, as fast as the API server takes them."""
        await asyncio.gather(
            *(
                self.client.request("POST", self.system.collection, body=self.system.body(work))
                for work in works
            )
        )

    async def training(self) -> dict[str, list[str]]:
        """Names of the training pods that run, by resource, in order."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        found: dict[str, list[str]] = {}
        running = {"fieldSelector": "status.phase=Running"}
        async for item in self.client.listed(path, accept=_NAMES, **running):
            name = item["metadata"]["name"]
            resource = self.system.resource_of(name)
            if resource and "deletionTimestamp" not in item["metadata"]:
                found.setdefault(resource, []).append(name)
        return {resource: sorted(names) for resource, names in found.items()}

    async def end(self, pods: Iterable[str], code: int) -> None:
        """Let these pods end with this exit code."""
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
        """How many resources have come to their good end, and how many not yet."""
        answer = await self.client.request("GET", self.system.collection)
        return Counter(self.system.succeeded(body) for body in answer["items"])

    async def sample(self) -> None:
        """Take down CPU, memory, queue and load once in two seconds, until cancelled."""
        while True:
            now = {"time": time.time(), "load": os.getloadavg()[0], **usage(self.system.pids())}
            try:
                now["depth"] = (await asyncio.to_thread(self.system.busy))["depth"]
            except (OSError, ValueError):
                now["depth"] = 0.0
            self.samples.append(now)
            await asyncio.sleep(2)


def usage(pids: Sequence[int]) -> dict[str, float]:
    """CPU seconds so far and resident MiB of these processes together."""
    ticks, resident = 0, 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            resident += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return {"cpu": ticks / os.sysconf("SC_CLK_TCK"), "mib": round(resident / 2**20, 1)}


async def measure(system: System, scale: Scale, folder: Path) -> dict[str, Any]:
    """All figures of one system, on a cluster of its own."""
    with cluster_of_its_own() as cluster:
        cluster.admin.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        async with client_of(cluster) as client:
            load = Load(system, cluster, client, scale)
            await add_nodes(client, scale.cluster_nodes)
            await asyncio.to_thread(system.install, cluster, folder)
            await asyncio.to_thread(system.launch)
            sampler = None
            try:
                await asyncio.to_thread(system.ready)
                load.look()
                sampler = asyncio.create_task(load.sample())
                results = {"title": system.title, "versions": system.versions}
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
            if isinstance(system, Ours):
                results["lost_leases"] = system.lost_leases()
            return results


def cluster_of_its_own() -> Cluster:
    """The same for whatever is measured, without nodes yet."""
    return Cluster(nodes=0, native_gang=True, lease_seconds=LEASE, audited=RULES, roomy=True)


def client_of(cluster: Cluster) -> Client:
    """The benchmark's own user of the API server, held back by nothing."""
    api = cluster.user(BENCH, "system:masters")

    def connect() -> kopf.ConnectionInfo:
        config = api.kubeconfig()
        user = config["users"][0]["user"]
        return kopf.ConnectionInfo(
            server=api.server,
            ca_data=config["clusters"][0]["cluster"]["certificate-authority-data"],
            certificate_data=user["client-certificate-data"],
            private_key_data=user["client-key-data"],
        )

    return Client(connect, requests_per_second=1e6, burst=1_000_000, parallel=24)


async def add_nodes(client: Client, count: int) -> None:
    """Fake nodes, node-0 and so on."""
    nodes = (fake_nodes.node(f"node-{n}", 8, {}) for n in range(count))
    await asyncio.gather(*(client.request("POST", "/api/v1/nodes", body=n) for n in nodes))
    while True:  # a node has its taint until KWOK has taken it over
        listing = await client.request("GET", "/api/v1/nodes")
        if not any(node["spec"].get("taints") for node in listing["items"]):
            return
        await asyncio.sleep(1)


# ---------------------------------------------------------------------- the parts


async def _large(load: Load) -> dict[str, Any] | None:
    """One resource of as many training nodes as the cluster has, then gone again."""
    if not load.scale.nodes:
        return None
    work = Work("large", load.scale.nodes, 8)
    before = load.cpu()
    await load.post([work])
    await load.until("all pods of the large resource", lambda s: s.whole("large", work.nodes))
    seen = load.seen
    made, begun = seen.whole("large", work.nodes), _turn(load, "large")
    assert made is not None
    await load.until(
        "the large resource to run",
        lambda s: (
            sum(bool(p.running) for n, p in s.pods.items() if load.system.resource_of(n) == "large")
            >= work.nodes
        ),
    )
    ran = max(p.running for n, p in seen.pods.items() if load.system.resource_of(n) == "large")
    figures = {
        "nodes": work.nodes,
        "turn_to_all_pods_created": round(made - begun, 2),
        "turn_to_all_pods_running": round(ran - begun, 2),
        "apply_to_all_pods_created": round(made - seen.posted["large"], 2),
        "cpu_seconds": round(load.cpu() - before, 1),
        "mib": usage(load.system.pids())["mib"],
    }
    await load.client.request("DELETE", f"{load.system.collection}/large")
    while await load.training():
        await asyncio.sleep(1)
    return figures


async def _fill(load: Load) -> dict[str, Any]:
    """All resources at once, until all of them train."""
    works = mix(load.scale.resources)
    before, requests = load.cpu(), Counter(load.look().requests)
    began = time.time()
    await load.post(works)
    posted = time.time() - began
    print(f"{load.system.name}: {len(works)} resources posted in {posted:.1f} s", flush=True)
    await load.until(
        "all resources to train", lambda s: all(s.whole(w.name, w.nodes) for w in works), 2.0
    )
    seen = load.seen
    accepted = [seen.accepted.get(w.name) or seen.first[w.name] for w in works]
    busy = [one for one in load.samples if one["time"] >= began]
    return {
        "resources": len(works),
        "training_pods": sum(w.nodes for w in works),
        "posted_per_second": round(len(works) / posted, 1),
        "accepted_per_second": round(len(works) / (max(accepted) - began), 1),
        "apply_to_first_pod": spread(seen.first[w.name] - seen.posted[w.name] for w in works),
        "apply_to_all_training_pods": spread(_made(seen, w) - seen.posted[w.name] for w in works),
        "seconds_until_all_train": round(max(_made(seen, w) for w in works) - began, 1),
        "pods_per_second": round(seen.all_pods / (time.time() - began), 1),
        "queue_depth_max": max((one["depth"] for one in busy), default=0),
        "queue_depth_mean": round(sum(o["depth"] for o in busy) / max(1, len(busy)), 1),
        "reconcile_seconds": await asyncio.to_thread(load.system.latency),
        "requests": dict(seen.requests - requests),
        "cpu_seconds": round(load.cpu() - before, 1),
        "mib": usage(load.system.pids())["mib"],
    }


async def _probe(load: Load) -> dict[str, Any] | None:
    """Resources of 4 x 8, one after the other, beside all those that live."""
    works = _probes(load.scale.probes)
    if not works:
        return None
    await asyncio.sleep(5)
    for work in works:
        await load.post([work])
        await load.until(work.name, partial(Seen.whole, resource=work.name, nodes=4))
    seen = load.seen
    return {
        "turn_to_4_pods_created": spread(_made(seen, w) - _turn(load, w.name) for w in works),
        "apply_to_first_pod": spread(seen.first[w.name] - seen.posted[w.name] for w in works),
        "apply_to_4_pods_created": spread(_made(seen, w) - seen.posted[w.name] for w in works),
    }


async def _fail(load: Load) -> dict[str, Any]:
    """Training pods crash one after the other, each of another group of several nodes first."""
    running = await load.training()
    total = sum(len(pods) for pods in running.values())
    count = max(1, round(total * load.scale.failing))
    groups = sorted(running)
    load.random.shuffle(groups)
    groups.sort(key=lambda name: len(running[name]) == 1)  # several nodes first
    victims = {name: load.random.choice(running[name]) for name in groups[:count]}
    at = {}
    for name, pod in victims.items():
        at[name] = time.time()
        await load.end([pod], CRASH)
        await asyncio.sleep(0.7)
    nodes = {name: len(running[name]) for name in victims}
    return {"pods": len(victims), **await _again(load, at, nodes, victims)}


async def _vanish(load: Load) -> dict[str, Any] | None:
    """Nodes that vanish with their pods, as machines do that a cloud takes back."""
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
    groups = await load.training()
    at, victims = {}, {}
    for node in gone:
        for pod in place[node]:
            resource = load.system.resource_of(pod)
            at[resource], victims[resource] = time.time(), pod
        await load.client.request("DELETE", f"/api/v1/nodes/{node}")
    nodes = {name: len(groups[name]) for name in victims}
    return {"nodes": len(gone), "groups": len(at), **await _again(load, at, nodes, victims)}


async def _again(
    load: Load, at: dict[str, float], nodes: dict[str, int], victims: dict[str, str]
) -> dict[str, Any]:
    """How long the groups that lost a pod take to be deleted and to come again."""
    whole = isinstance(load.system, Ours) or load.system.name == "trainer"
    await load.until(
        "groups to come again",
        lambda s: all(s.whole(name, nodes[name] if whole else 1, at[name]) for name in at),
    )
    seen = load.seen
    told = {
        name: (seen.pods[victims[name]].ended if victims[name] in seen.pods else 0) or at[name]
        for name in at
    }
    told = {name: when if when >= at[name] else at[name] for name, when in told.items()}
    deleted = []
    for name in at:
        times = [
            t
            for n, all_ in seen.deleted.items()
            if n == name or n.startswith(f"{name}-")
            for t in all_
            if t >= at[name]
        ]
        deleted += [min(times) - told[name]] if times else []
    again = [seen.whole(n, nodes[n] if whole else 1, at[n]) for n in at]
    lag = [made - told[n] for made, n in zip(again, at, strict=True) if made is not None]
    return {"failure_to_deletion": spread(deleted), "failure_to_new_pods": spread(lag)}


async def _crash(load: Load) -> dict[str, Any] | None:
    """SIGKILL with everything live; pods fail and resources come while nobody is there."""
    count = load.scale.killed
    if not count:
        return None
    running = await load.training()
    names = load.random.sample(sorted(running), min(count, len(running)))
    new = [Work(f"late-{n}", 1, 8) for n in range(count)]
    load.spent = load.cpu()
    load.system.kill()
    at = {name: time.time() for name in names}
    await load.end([running[name][0] for name in names], CRASH)
    refused = left = await _insist(load, new)
    await asyncio.sleep(1)
    launched = time.time()
    load.system.launch()
    while left := await _insist(load, left):
        await asyncio.sleep(0.2)
    whole = isinstance(load.system, Ours) or load.system.name == "trainer"
    need = {name: len(running[name]) if whole else 1 for name in names}
    await load.until(
        "everything after SIGKILL",
        lambda s: (
            all(s.whole(n, need[n], at[n]) for n in names) and all(w.name in s.first for w in new)
        ),
        0.5,
    )
    seen = load.seen
    converged = max(
        *(seen.whole(n, need[n], at[n]) or 0 for n in names), *(seen.first[w.name] for w in new)
    )
    return {
        "live_resources": len(running),
        "resources_refused_while_away": len(refused),
        "launch_to_all_done": round(converged - launched, 2),
        "mib_after": usage(load.system.pids())["mib"],
    }


async def _insist(load: Load, works: Sequence[Work]) -> list[Work]:
    """Make these resources; those that the API server refuses, as its webhook does not answer."""
    refused = []
    for work in works:
        try:
            await load.post([work])
        except ApiError:
            refused.append(work)
    return refused


async def _drain(load: Load) -> dict[str, Any]:
    """Every training pod is told to succeed, until every resource has."""
    stopped = time.time()
    while True:
        running = await load.training()
        await load.end([pod for pods in running.values() for pod in pods], 0)
        done = await load.succeeded()
        if not done[False]:
            break
        print(f"{load.system.name}: {done[False]} resources have not ended", flush=True)
        if time.time() - stopped > load.scale.patience:
            raise TimeoutError(f"{load.system.title}: {done[False]} resources do not end")
        await asyncio.sleep(3)
    seen = load.look()
    works = {w.name: (w.nodes, w.gpus) for w in mix(load.scale.resources)}
    held = seen.goodput(works, time.time())
    count = done[True]
    busy = [one for one in load.samples if one["mib"]]
    return {
        "succeeded": count,
        "seconds": round(time.time() - stopped, 1),
        "gpu_seconds": held,
        "goodput": round(held["useful"] / held["held"], 4) if held["held"] else None,
        "requests": {k: round(n / count, 2) for k, n in sorted(seen.requests.items())},
        "requests_per_resource": round(sum(seen.requests.values()) / count, 1),
        "writes_per_resource": round(
            sum(n for k, n in seen.requests.items() if not k.startswith(("get", "list"))) / count, 1
        ),
        "mib_max": max(one["mib"] for one in busy),
        "load_max": round(max(one["load"] for one in load.samples), 1),
        "cpu_seconds": round(load.cpu(), 1),
    }


def _made(seen: Seen, work: Work) -> float:
    made = seen.whole(work.name, work.nodes)
    assert made is not None
    return made


def _turn(load: Load, name: str) -> float:
    """When the training of a resource could begin: our stage before it had been told complete by
    the Job controller; the peers have no such stages, theirs begins with the resource."""
    seen = load.seen
    if not isinstance(load.system, Ours):
        return seen.posted[name]
    begun = seen.applied[f"{name}-train-1"]
    return max(when for when in seen.jobs[f"{name}-latents-1"] if when <= begun)


_NAMES = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
