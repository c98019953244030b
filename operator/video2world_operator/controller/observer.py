"""Gather what a reconciliation has to know about the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from video2world_operator.api.conditions import Reason, Type, find
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.status import Status
from video2world_operator.controller.cache import WatchCache
from video2world_operator.controller.key_state import KeyState
from video2world_operator.controller.resource import Key, Object, Resource
from video2world_operator.controller.worker_logs import WorkerLogs
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.plan import gang
from video2world_operator.plan.commands import run_folder
from video2world_operator.plan.labels import ATTEMPT_LABEL, RESOURCE_LABEL, STAGE_LABEL
from video2world_operator.plan.optional_apis import Capabilities
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.queues import find_workload
from video2world_operator.reconcile.actions import Apply, Decision
from video2world_operator.reconcile.observed_state import Claim, Job, ObservedState, Pod, VolumePeer
from video2world_operator.reconcile.workload import Workload

__all__ = ["Observer", "needs_live_read"]

WORKLOAD_SECONDS = 1.0  # for which a Workload is not read again
PVC_SECONDS = 60.0  # for which a PVC is not read again while an attempt is running
PlanOf = Callable[[Object], Plan | InvalidResource]


class Observer:
    """Read caches, the API server and workers' logs. ``interval()`` is that of reading logs."""

    def __init__(
        self,
        api: ApiClient,
        cache: WatchCache,
        states: Mapping[Key, KeyState],
        plan_of: PlanOf,
        interval: Callable[[], float],
    ) -> None:
        self._api, self._cache, self._states = api, cache, states
        self._plan_of, self._interval = plan_of, interval
        self._logs = WorkerLogs(api, interval)
        self.capabilities = Capabilities()

    async def observe(self, resource: Resource, plan: Plan | InvalidResource) -> ObservedState:
        """Return what is known, with Jobs and pods from the cache."""
        state, pods = self._states[resource.key], self._cache.pods(resource.key)
        observed = ObservedState(
            jobs=self._cache.jobs(resource.key),
            pods=pods,
            capabilities=self.capabilities,
            events=await self._logs.events(resource, state, pods),
            problems=state.problems,
        )
        if isinstance(plan, InvalidResource):
            return observed
        return replace(
            observed,
            claim=await self._pvc(resource, state, plan),
            peers=self._peers(resource, plan),
            pod_group=await self._pod_group(resource, plan),
            workload=await self._workload(resource, state, observed),
        )

    async def read_live(self, resource: Resource, observed: ObservedState) -> ObservedState:
        """Return ``observed`` with Jobs and pods from the API server: watches may lag behind."""
        namespace, name = resource.key
        label = {"labelSelector": f"{RESOURCE_LABEL}={name}"}

        async def every(version: str, kind: str) -> list[Object]:
            path = path_of(version, kind, namespace)
            found: list[Object] = (await self._api.request("GET", path, params=label))["items"]
            return found

        jobs, pods = await every("batch/v1", "Job"), await every("v1", "Pod")
        return replace(observed, jobs=[Job.of(b) for b in jobs], pods=[Pod.of(b) for b in pods])

    async def _pvc(self, resource: Resource, state: KeyState, plan: Plan) -> Claim | None:
        """Return the PVC's state; while an attempt is running, as it was a moment ago."""
        if resource.ended and resource.status.observed_generation == resource.generation:
            return None
        is_running = any(e.state == "Running" and e.job_uid for e in resource.status.stages)
        if is_running and state.pvc is not None:
            read_at, claim = state.pvc
            if time.monotonic() - read_at < max(PVC_SECONDS, self._interval()):
                return claim
        job = plan.stages[0].job["spec"]["template"]["spec"]
        name = next(
            v["persistentVolumeClaim"]["claimName"]
            for v in job["volumes"]
            if "persistentVolumeClaim" in v
        )
        path = path_of("v1", "PersistentVolumeClaim", plan.namespace, name)
        claim = Claim.of(name, await self._api.get(path))
        state.pvc = (time.monotonic(), claim) if claim.found else None
        return claim

    async def _pod_group(self, resource: Resource, plan: Plan) -> Object | None:
        """Return the PodGroup of the training attempt, until a scheduler has acted on it."""
        status = resource.status
        entry, condition = status.stage_status("train"), find(status.conditions, Type.GANG)
        if entry is None or condition is None or condition.status == "True":
            return None
        nodes = status.group_size.running if status.group_size else None
        chosen = gang.choose(plan.resource, self.capabilities, nodes)
        waits = condition.reason in (chosen.reason, Reason.GANG_UNATTENDED)
        is_running = entry.state == "Running" and entry.job_uid
        if not (chosen.version and waits and is_running):
            return None
        name = f"{plan.name}-train-{entry.attempt}"
        return await self._api.get(path_of(chosen.version, "PodGroup", plan.namespace, name))

    async def _workload(
        self, resource: Resource, state: KeyState, observed: ObservedState
    ) -> Workload | None:
        """Return Kueue's Workload of the running attempt while that waits."""
        running = {(e.name, e.attempt) for e in resource.status.stages if e.state == "Running"}
        job = next((j for j in observed.jobs if j.queue and (j.stage, j.attempt) in running), None)
        if job is None:
            return None
        if not (job.suspended or any(pod.unschedulable for pod in observed.pods)):
            return None
        if state.workload is not None:
            read_at, uid, workload = state.workload
            if uid == job.uid and time.monotonic() - read_at < WORKLOAD_SECONDS:
                return workload
        namespace = resource.key[0]
        workload = await find_workload(self._api, self.capabilities, namespace, job.uid)
        state.workload = (time.monotonic(), job.uid, workload)
        return workload

    def _peers(self, resource: Resource, plan: Plan) -> list[VolumePeer]:
        """Return older resources on the same volume that have not ended."""
        if not plan.resource.spec.storage.claim_name:
            return []  # the PVC is its own
        peers = []
        for other in self._cache.on_volume(resource.volume):
            if other.created >= resource.created or other.ended or other.dispatched:
                continue
            use = self._volume_use(other)
            if use is None:
                continue
            done = {entry.name for entry in other.status.stages if entry.is_done}
            hashes = {name: h for name, h in use.hashes.items() if name not in done}
            peers.append(VolumePeer(use.name, use.run_folder, hashes))
        return peers

    def _volume_use(self, resource: Resource) -> VolumePeer | None:
        """Return what all stages of a resource do on its volume; None if they do nothing."""
        state, version = self._states[resource.key], (resource.uid, resource.generation)
        if state.volume_use is None or state.volume_use[0] != version:
            state.volume_use = (version, _peer(self._plan_of(resource.body)))
        return state.volume_use[1]


def needs_live_read(
    before: Status, decision: Decision, created: Callable[[Object], bool] = lambda manifest: False
) -> bool:
    """Whether ``decision`` would be wrong if the cache lacked a Job or pod, or its last change.

    That is so if it gives up an attempt, starts another or the same one again, or says that nothing
    runs. A Job that was ``created`` a moment ago is not created again.
    """
    if (after := decision.status) is not None:
        ends = after.phase in ("Failed", "Succeeded", "Suspended")
        if (ends and after.phase != before.phase) or after.restarts > before.restarts:
            return True
    running = {(e.name, str(e.attempt)) for e in before.stages if e.state == "Running"}
    labels = [
        a.manifest["metadata"]["labels"]
        for a in decision.actions
        if isinstance(a, Apply) and a.manifest["kind"] == "Job" and not created(a.manifest)
    ]
    started = {(its[STAGE_LABEL], its[ATTEMPT_LABEL]) for its in labels}
    return bool(started & running) or any(attempt != "1" for _, attempt in started)


def _peer(plan: Plan | InvalidResource) -> VolumePeer | None:
    if isinstance(plan, InvalidResource) or plan.resource.spec.suspend:
        return None
    hashes = {stage.name: stage.inputs_hash for stage in plan.stages}
    return VolumePeer(plan.name, run_folder(plan.resource), hashes)
