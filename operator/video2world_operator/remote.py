"""``v2w`` against a cluster: a resource's status, logs, checkpoints, and its suspension."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TextIO, TypeVar

from .cluster import ApiError, Cluster, LoginFailed, path_of
from .models import API_VERSION, KIND, MAX_NAME
from .observed import Pod
from .plan import RESOURCE_LABEL

__all__ = ["RemoteFailed", "checkpoints", "logs", "status", "suspend", "watch"]

T = TypeVar("T")
_NO_CRD = f"the cluster does not know {KIND}: kubectl apply -f manifests/crd.yaml"


class RemoteFailed(Exception):
    """The cluster or the user's rights do not allow it; the message says what to do."""


def _run(work: Callable[[Cluster, str], Awaitable[T]], namespace: str | None) -> T:
    async def connected() -> T:
        async with Cluster() as cluster:
            return await work(cluster, namespace or cluster.default_namespace)

    try:
        return asyncio.run(connected())
    except (LoginFailed, OSError) as error:
        raise RemoteFailed(str(error)) from None
    except ApiError as error:
        if error.code == 404 and "could not find" in str(error):
            raise RemoteFailed(_NO_CRD) from None
        raise RemoteFailed(str(error)) from None


async def _get(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    found = await cluster.get(path_of(API_VERSION, KIND, namespace, name[:MAX_NAME]))
    if found is not None and found.get("kind") == KIND:
        return found
    every = await cluster.get(path_of(API_VERSION, KIND, namespace))
    if every is None:
        raise RemoteFailed(_NO_CRD)
    names = ", ".join(item["metadata"]["name"] for item in every["items"])
    known = f"; there is {names}" if names else ""
    raise RemoteFailed(f"{name}: no resource of this name in namespace {namespace}{known}")


def status(name: str, namespace: str | None) -> Mapping[str, Any]:
    """The status of a resource; empty while no operator has looked at it."""

    async def work(cluster: Cluster, space: str) -> Mapping[str, Any]:
        return (await _get(cluster, space, name)).get("status") or {}

    return _run(work, namespace)


def checkpoints(name: str, namespace: str | None) -> tuple[Mapping[str, Any], list[Any]]:
    """The newest checkpoint and the attempts, as the status has them."""
    found = status(name, namespace)
    return found.get("checkpoint") or {}, list(found.get("attempts") or [])


def suspend(name: str, namespace: str | None, value: bool) -> bool:
    """Set ``spec.suspend``; answers whether that was a change."""

    async def work(cluster: Cluster, space: str) -> bool:
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

    return _run(work, namespace)


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

    async def work(cluster: Cluster, space: str) -> None:
        body = await _get(cluster, space, name)
        at_work = (body.get("status") or {}).get("stage", "")
        path = path_of("v1", "Pod", space)
        found = await cluster.get(path, labelSelector=f"{RESOURCE_LABEL}={name}") or {}
        pods = [Pod.of(item) for item in found.get("items", [])]
        pod = _choose(name, pods, stage or at_work, rank, attempt)
        params = {"follow": "true"} if follow else {}
        try:
            async with cluster.stream_log(space, pod.name, pod.stage, **params) as stream:
                async for line in stream:
                    out.write(line.decode("utf-8", "replace"))
                    if follow:
                        out.flush()
        except ApiError as error:
            why = pod.waits or pod.unschedulable or str(error)
            raise RemoteFailed(f"pod {pod.name} has no log yet: {why}") from None

    _run(work, namespace)


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


def watch(name: str, namespace: str | None, show: Callable[[Mapping[str, Any]], None]) -> None:
    """Show the status whenever it has changed, until the resource is at its end."""
    before: Mapping[str, Any] | None = None
    while True:
        now = status(name, namespace)
        if now != before:
            show(now)
        if now.get("phase") in ("Succeeded", "Failed"):
            return
        before = now
        time.sleep(2)
