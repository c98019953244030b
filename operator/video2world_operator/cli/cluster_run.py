"""Read, change and watch a resource in the cluster."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TextIO, TypeVar

from video2world_operator.api.constants import API_VERSION, KIND, MAX_NAME
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.status import Status, parse_status
from video2world_operator.api.validation import parse
from video2world_operator.cli.common import UsageError
from video2world_operator.cli.dispatched import dispatch_note
from video2world_operator.cli.snapshot import ClusterObjects, Snapshot, losses_of
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.discovery import discover
from video2world_operator.kube.errors import ApiError, LoginFailed
from video2world_operator.plan.labels import RESOURCE_LABEL
from video2world_operator.plan.multikueue import is_dispatched
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.cluster_facts import cluster_facts
from video2world_operator.preflight.crd_version import problem_of
from video2world_operator.preflight.dispatch import read_dispatch
from video2world_operator.preflight.facts import ClusterFacts
from video2world_operator.preflight.queues import find_workload
from video2world_operator.reconcile.observed_state import Job, Pod
from video2world_operator.reconcile.workload import Workload

__all__ = [
    "RequestFailed",
    "apply",
    "delete",
    "logs",
    "observe",
    "preflight",
    "run_with_client",
    "status",
    "suspend",
    "watch",
]

T = TypeVar("T")
LOG_LINES = "1000"  # of the training log, read for its losses: within the client's size limit
LOG_RETRY_SECONDS = 2.0  # while a pod has not started
_NO_CRD = f"the cluster does not know {KIND}: kubectl apply -f manifests/crd.yaml"
_ELSEWHERE = "{name} runs in another cluster, and its logs are there: v2w status {name} names it"


class RequestFailed(UsageError):
    """The cluster refused a request or did not answer; the message says what to do."""


def status(name: str, namespace: str | None) -> Status:
    """Return the status of a resource; empty if no operator has handled it yet."""

    async def work(client: ApiClient, namespace: str) -> Status:
        return parse_status((await _get(client, namespace, name)).get("status"))

    return run_with_client(work, namespace)


def watch(
    name: str, namespace: str | None, show: Callable[[Snapshot], None], every: float | None
) -> None:
    """Show the resource once, or every ``every`` seconds until it has ended.

    If the API server becomes unavailable meanwhile, the last snapshot is shown with a note.
    """

    async def work(client: ApiClient, namespace: str) -> None:
        seen = await _snapshot(client, namespace, name)
        while True:
            show(seen)
            if every is None or seen.ended:
                return
            await asyncio.sleep(every)
            try:
                seen = await _snapshot(client, namespace, name)
            except OSError as error:
                seen = replace(seen, note=f"({error}; showing the last known state)")
            except ApiError as error:
                if error.code < 500:
                    raise
                seen = replace(seen, note=f"(API server: {error}; showing the last known state)")

    run_with_client(work, namespace)


def observe(name: str, namespace: str | None) -> tuple[Snapshot, ClusterObjects]:
    """Read a resource and the objects that concern it, as far as the user may see them."""

    async def work(client: ApiClient, namespace: str) -> tuple[Snapshot, ClusterObjects]:
        body = await _get(client, namespace, name)
        spec = body["spec"]
        pvc = (spec.get("storage") or {}).get("claimName") or f"{name}-data"
        try:
            gpus = parse({k: v for k, v in body.items() if k != "status"}).spec.processes_per_node
        except InvalidResource:
            gpus = 0
        seen = await _snapshot(client, namespace, name)
        if is_dispatched(body):
            facts = await read_dispatch(client, body, namespace)
            problem = await problem_of(client)
            return seen, ClusterObjects(body["metadata"], spec, crd_problem=problem, dispatch=facts)
        jobs = await _jobs(client, namespace, name)
        events = await client.get_if_allowed(path_of("v1", "Event", namespace)) or {}
        return seen, ClusterObjects(
            metadata=body["metadata"],
            spec=spec,
            pvc=await client.get_if_allowed(path_of("v1", "PersistentVolumeClaim", namespace, pvc)),
            events=events.get("items", []),
            jobs=jobs,
            workload=await _workload(client, namespace, seen.status.stage, jobs or ()),
            nodes=(await client.get_if_allowed("/api/v1/nodes") or {}).get("items"),
            gpus_per_node=gpus,
            crd_problem=await problem_of(client),
        )

    return run_with_client(work, namespace)


def preflight(plan: Plan, manifest: Mapping[str, Any], namespace: str | None) -> ClusterFacts:
    """Collect the facts of the cluster that the checks before a run of ``plan`` need.

    ``manifest`` is the resource as written; the API server is asked whether it accepts it.
    """

    async def work(client: ApiClient, namespace: str) -> ClusterFacts:
        return await cluster_facts(client, namespace, plan, manifest)

    return run_with_client(work, namespace)


def apply(manifest: Mapping[str, Any], namespace: str | None) -> None:
    """Create or update the resource (server-side apply)."""

    async def work(client: ApiClient, namespace: str) -> None:
        await client.request(
            "PATCH",
            path_of(API_VERSION, KIND, namespace, manifest["metadata"]["name"]),
            params={"fieldManager": "v2w", "force": "true"},
            body=manifest,
            content_type="application/apply-patch+yaml",
        )

    run_with_client(work, namespace)


def delete(name: str, namespace: str | None) -> bool:
    """Delete the resource; returns whether it existed."""

    async def work(client: ApiClient, namespace: str) -> bool:
        path = path_of(API_VERSION, KIND, namespace, name)
        if await client.get(path) is None:
            return False
        await client.request("DELETE", path)
        return True

    return run_with_client(work, namespace)


def suspend(name: str, namespace: str | None, value: bool) -> bool:
    """Set ``spec.suspend``; returns whether that changed it."""

    async def work(client: ApiClient, namespace: str) -> bool:
        body = await _get(client, namespace, name)
        if bool(body["spec"].get("suspend")) == value:
            return False
        await client.request(
            "PATCH",
            path_of(API_VERSION, KIND, namespace, name),
            body={"spec": {"suspend": value}},
            content_type="application/merge-patch+json",
        )
        return True

    return run_with_client(work, namespace)


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
    """Print the log of one pod, by default of the running stage and its last attempt."""

    async def work(client: ApiClient, namespace: str) -> None:
        shown = ""
        while True:
            body = await _get(client, namespace, name)
            if is_dispatched(body):
                raise RequestFailed(_ELSEWHERE.format(name=name))
            status = parse_status(body.get("status"))
            pods = await _pods(client, namespace, name)
            pod = _choose(name, pods, stage or status.stage, rank, attempt)
            try:
                async with client.stream_log(
                    namespace, pod.name, pod.container, **({"follow": "true"} if follow else {})
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
                    raise RequestFailed(why) from None
            if why != shown:
                print(f"{why}; waiting", file=sys.stderr)
                shown = why
            await asyncio.sleep(LOG_RETRY_SECONDS)

    run_with_client(work, namespace)


# ---------------------------------------------------------------------- requests


def run_with_client(work: Callable[[ApiClient, str], Awaitable[T]], namespace: str | None) -> T:
    """Run ``work`` with a client and a namespace, by default that of the kubeconfig.

    Raises:
        RequestFailed: the cluster refuses, or does not answer.
    """

    async def connected() -> T:
        async with ApiClient() as client:
            return await work(client, namespace or client.default_namespace)

    try:
        return _run_in_new_loop(connected())
    except (LoginFailed, OSError) as error:
        raise RequestFailed(str(error)) from None
    except ApiError as error:
        if error.code == 404 and "could not find" in str(error):
            raise RequestFailed(_NO_CRD) from None
        raise RequestFailed(str(error)) from None


def _run_in_new_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in an event loop of its own, also if one is running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


async def _get(client: ApiClient, namespace: str, name: str) -> dict[str, Any]:
    found = await client.get(path_of(API_VERSION, KIND, namespace, name[:MAX_NAME]))
    if found is not None and found.get("kind") == KIND:
        return found
    every = await client.get(path_of(API_VERSION, KIND, namespace))
    if every is None:
        raise RequestFailed(_NO_CRD)
    names = ", ".join(item["metadata"]["name"] for item in every["items"])
    known = f"; there is {names}" if names else ""
    raise RequestFailed(f"{name}: no resource of this name in namespace {namespace}{known}")


async def _snapshot(client: ApiClient, namespace: str, name: str) -> Snapshot:
    """Read status, pods and losses; only the status if the user may not list pods."""
    body = await _get(client, namespace, name)
    status = parse_status(body.get("status"))
    if is_dispatched(body):
        facts = await read_dispatch(client, body, namespace)
        note = dispatch_note(facts, suspended=bool(body["spec"].get("suspend")))
        return Snapshot(name, status, note=note)
    try:
        pods = await _pods(client, namespace, name)
    except ApiError as error:
        if error.code != 403:
            raise
        return Snapshot(name, status, note="(pods are not shown: you may not list them)")
    train = [p for p in pods if (p.stage, p.index) == ("train", 0) and p.phase != "Pending"]
    losses: list[float] = []
    if train:
        newest = max(train, key=lambda p: p.attempt)
        log = await client.pod_log(namespace, newest.name, "train", tailLines=LOG_LINES)
        losses = losses_of(log.splitlines())
    return Snapshot(name, status, pods, losses)


async def _pods(client: ApiClient, namespace: str, name: str) -> list[Pod]:
    path = path_of("v1", "Pod", namespace)
    found = await client.get(path, labelSelector=f"{RESOURCE_LABEL}={name}") or {}
    return [Pod.of(item) for item in found.get("items", [])]


async def _jobs(client: ApiClient, namespace: str, name: str) -> list[Job] | None:
    path = path_of("batch/v1", "Job", namespace)
    try:
        found = await client.get(path, labelSelector=f"{RESOURCE_LABEL}={name}")
    except ApiError as error:
        if error.code != 403:
            raise
        return None
    return [Job.of(item) for item in (found or {}).get("items", [])]


async def _workload(
    client: ApiClient, namespace: str, stage: str, jobs: Sequence[Job]
) -> Workload | None:
    """Return the Workload of the unfinished Job of ``stage``, if that is in a queue of Kueue's."""
    for job in jobs:
        if job.queue and job.stage == stage and not job.finished:
            return await find_workload(client, await discover(client), namespace, job.uid)
    return None


def _choose(name: str, pods: list[Pod], stage: str, rank: int, attempt: int | None) -> Pod:
    """Choose the pod whose log is meant; without a stage, that of the last pod started."""
    if not pods:
        raise RequestFailed(f"{name}: there are no pods, and so no logs; see v2w status {name}")
    if not stage:
        stage = max(pods, key=lambda p: (p.started is not None, p.started, p.name)).stage
    of_stage = [p for p in pods if p.stage == stage]
    if not of_stage:
        known = ", ".join(sorted({p.stage for p in pods}))
        raise RequestFailed(f"--stage {stage}: it has no pod; there is {known}")
    wanted = attempt or max(p.attempt for p in of_stage)
    chosen = [p for p in of_stage if (p.attempt, p.index) == (wanted, rank)]
    if not chosen:
        raise RequestFailed(f"there is no pod of {stage}, attempt {wanted}, rank {rank}")
    return chosen[-1]
