"""``v2w`` against a cluster: a resource's status, logs, checkpoints, and its suspension."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TextIO, TypeVar

from video2world_operator.api.constants import API_VERSION, KIND, MAX_NAME
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.status import AttemptStatus, CheckpointStatus, Status, parse_status
from video2world_operator.api.validation import parse
from video2world_operator.cli.snapshot import ClusterObjects, Snapshot, losses_of
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.errors import ApiError, LoginFailed
from video2world_operator.plan.labels import RESOURCE_LABEL
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.cluster_facts import cluster_facts
from video2world_operator.preflight.crd_version import problem_of
from video2world_operator.preflight.facts import ClusterFacts
from video2world_operator.reconcile.observed_state import Job, Pod

__all__ = [
    "RemoteFailed",
    "apply",
    "checkpoints",
    "delete",
    "logs",
    "observe",
    "preflight",
    "status",
    "suspend",
    "watch",
]

T = TypeVar("T")
LOG_LINES = "1000"  # of a log that are searched for losses: less than what is read at most
_NO_CRD = f"the cluster does not know {KIND}: kubectl apply -f manifests/crd.yaml"


class RemoteFailed(Exception):
    """The cluster or the user's rights do not allow it; the message says what to do."""


def run(work: Callable[[ApiClient, str], Awaitable[T]], namespace: str | None) -> T:
    async def connected() -> T:
        async with ApiClient() as cluster:
            return await work(cluster, namespace or cluster.default_namespace)

    try:
        return _outside_any_loop(connected())
    except (LoginFailed, OSError) as error:
        raise RemoteFailed(str(error)) from None
    except ApiError as error:
        if error.code == 404 and "could not find" in str(error):
            raise RemoteFailed(_NO_CRD) from None
        raise RemoteFailed(str(error)) from None


def _outside_any_loop(work: Coroutine[Any, Any, T]) -> T:
    """The outcome of ``work``, also where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(asyncio.run, work).result()


async def _get(cluster: ApiClient, namespace: str, name: str) -> dict[str, Any]:
    found = await cluster.get(path_of(API_VERSION, KIND, namespace, name[:MAX_NAME]))
    if found is not None and found.get("kind") == KIND:
        return found
    every = await cluster.get(path_of(API_VERSION, KIND, namespace))
    if every is None:
        raise RemoteFailed(_NO_CRD)
    names = ", ".join(item["metadata"]["name"] for item in every["items"])
    known = f"; there is {names}" if names else ""
    raise RemoteFailed(f"{name}: no resource of this name in namespace {namespace}{known}")


def status(name: str, namespace: str | None) -> Status:
    """The status of a resource; empty while no operator has looked at it."""

    async def work(cluster: ApiClient, space: str) -> Status:
        return parse_status((await _get(cluster, space, name)).get("status"))

    return run(work, namespace)


def watch(
    name: str, namespace: str | None, show: Callable[[Snapshot], None], every: float | None
) -> None:
    """Show the resource as it is; then, if ``every`` so many seconds, until it is at its end.

    An API server that is away meanwhile is waited for.
    """

    async def work(cluster: ApiClient, space: str) -> None:
        seen = await _snapshot(cluster, space, name)
        while True:
            show(seen)
            if every is None or seen.ended:
                return
            await asyncio.sleep(every)
            try:
                seen = await _snapshot(cluster, space, name)
            except OSError as error:
                seen = replace(seen, note=f"({error}; this is what was seen last)")
            except ApiError as error:
                if error.code < 500:
                    raise
                seen = replace(seen, note=f"(the API server: {error}; seen last)")

    run(work, namespace)


async def _snapshot(cluster: ApiClient, namespace: str, name: str) -> Snapshot:
    """Status, pods and losses; who may not see pods or logs is shown the status alone."""
    status = parse_status((await _get(cluster, namespace, name)).get("status"))
    try:
        pods = await _pods(cluster, namespace, name)
    except ApiError as error:
        if error.code != 403:
            raise
        return Snapshot(name, status, note="(you may not list pods: they are not shown)")
    train = [p for p in pods if (p.stage, p.index) == ("train", 0) and p.phase != "Pending"]
    losses: list[float] = []
    if train:
        newest = max(train, key=lambda p: p.attempt)
        log = await cluster.pod_log(namespace, newest.name, "train", tailLines=LOG_LINES)
        losses = losses_of(log.splitlines())
    return Snapshot(name, status, pods, losses)


def observe(name: str, namespace: str | None) -> tuple[Snapshot, ClusterObjects]:
    """The resource and what is around it; what the user may not see is left out."""

    async def work(cluster: ApiClient, space: str) -> tuple[Snapshot, ClusterObjects]:
        body = await _get(cluster, space, name)
        seen = await _snapshot(cluster, space, name)
        spec = body["spec"]
        claim = (spec.get("storage") or {}).get("claimName") or f"{name}-data"
        try:
            gpus = parse({k: v for k, v in body.items() if k != "status"}).spec.processes_per_node
        except InvalidResource:
            gpus = 0
        return seen, ClusterObjects(
            metadata=body["metadata"],
            spec=spec,
            pvc=await cluster.get_if_allowed(path_of("v1", "PersistentVolumeClaim", space, claim)),
            events=(await cluster.get_if_allowed(path_of("v1", "Event", space)) or {}).get(
                "items", []
            ),
            jobs=await _jobs(cluster, space, name),
            nodes=(await cluster.get_if_allowed("/api/v1/nodes") or {}).get("items"),
            gpus_per_node=gpus,
            crd_problem=await problem_of(cluster),
        )

    return run(work, namespace)


def preflight(plan: Plan, manifest: Mapping[str, Any], namespace: str | None) -> ClusterFacts:
    """What can be seen of the cluster for the checks before a run of ``plan``.

    ``manifest`` is the resource as written: the API server is asked whether it accepts that.
    """

    async def work(cluster: ApiClient, space: str) -> ClusterFacts:
        return await cluster_facts(cluster, space, plan, manifest)

    return run(work, namespace)


async def _pods(cluster: ApiClient, namespace: str, name: str) -> list[Pod]:
    path = path_of("v1", "Pod", namespace)
    found = await cluster.get(path, labelSelector=f"{RESOURCE_LABEL}={name}") or {}
    return [Pod.of(item) for item in found.get("items", [])]


async def _jobs(cluster: ApiClient, namespace: str, name: str) -> list[Job] | None:
    path = path_of("batch/v1", "Job", namespace)
    try:
        found = await cluster.get(path, labelSelector=f"{RESOURCE_LABEL}={name}")
    except ApiError as error:
        if error.code != 403:
            raise
        return None
    return [Job.of(item) for item in (found or {}).get("items", [])]


def apply(manifest: Mapping[str, Any], namespace: str | None) -> None:
    """Make the resource, or bring its spec to what ``manifest`` says (server-side apply)."""

    async def work(cluster: ApiClient, space: str) -> None:
        await cluster.request(
            "PATCH",
            path_of(API_VERSION, KIND, space, manifest["metadata"]["name"]),
            params={"fieldManager": "v2w", "force": "true"},
            body=manifest,
            content_type="application/apply-patch+yaml",
        )

    run(work, namespace)


def delete(name: str, namespace: str | None) -> bool:
    """Delete the resource; answers whether it was there."""

    async def work(cluster: ApiClient, space: str) -> bool:
        path = path_of(API_VERSION, KIND, space, name)
        if await cluster.get(path) is None:
            return False
        await cluster.request("DELETE", path)
        return True

    return run(work, namespace)


def checkpoints(
    name: str, namespace: str | None
) -> tuple[CheckpointStatus | None, list[AttemptStatus]]:
    """The newest checkpoint and the attempts, as the status has them."""
    found = status(name, namespace)
    return found.checkpoint, found.attempts


def suspend(name: str, namespace: str | None, value: bool) -> bool:
    """Set ``spec.suspend``; answers whether that was a change."""

    async def work(cluster: ApiClient, space: str) -> bool:
        body = await _get(cluster, space, name)
        if bool(body["spec"].get("suspend")) == value:
            return False
        await cluster.request(
            "PATCH",
            path_of(API_VERSION, KIND, space, name),
            body={"spec": {"suspend": value}},
            content_type="application/merge-patch+json",
        )
        return True

    return run(work, namespace)


def logs(
    name: str,
    namespace: str | None,
    *,
    stage: str | None,
    rank: int,
    attempt: int | None,
    follow: bool,
    out: TextIO = sys.stdout,
) -> None:
    """Print the log of one pod, by default of the stage at work and of its newest attempt."""

    async def work(cluster: ApiClient, space: str) -> None:
        said = ""
        while True:
            status = parse_status((await _get(cluster, space, name)).get("status"))
            pods = await _pods(cluster, space, name)
            pod = _choose(name, pods, stage or status.stage, rank, attempt)
            try:
                async with cluster.stream_log(
                    space, pod.name, pod.container, **({"follow": "true"} if follow else {})
                ) as stream:
                    async for line in stream:
                        out.write(line.decode("utf-8", "replace"))
                        if follow:
                            out.flush()
                return
            except ApiError as error:
                why = pod.waits or pod.unschedulable or str(error)
                why = f"pod {pod.name} has no log yet: {why}"
                if not follow or pod.phase != "Pending":
                    raise RemoteFailed(why) from None
            if why != said:
                print(f"{why}; waiting", file=sys.stderr)
                said = why
            await asyncio.sleep(2)

    run(work, namespace)


def _choose(name: str, pods: list[Pod], stage: str, rank: int, attempt: int | None) -> Pod:
    if not pods:
        raise RemoteFailed(f"{name}: there are no pods, and so no logs; see v2w status {name}")
    if not stage:  # nothing is at work: the last that was
        stage = max(pods, key=lambda p: (p.started is not None, p.started, p.name)).stage
    of_stage = [p for p in pods if p.stage == stage]
    if not of_stage:
        known = ", ".join(sorted({p.stage for p in pods}))
        raise RemoteFailed(f"--stage {stage}: there is no pod of it; there is {known}")
    wanted = attempt or max(p.attempt for p in of_stage)
    chosen = [p for p in of_stage if (p.attempt, p.index) == (wanted, rank)]
    if not chosen:
        raise RemoteFailed(f"there is no pod of {stage}, attempt {wanted}, rank {rank}")
    return chosen[-1]
