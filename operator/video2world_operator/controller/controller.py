"""Reconcile resources: observe, decide, write the status, apply the actions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from video2world_operator.api.errors import InvalidResource
from video2world_operator.controller.applier import Applier, path_in, split_passive
from video2world_operator.controller.cache import WatchCache
from video2world_operator.controller.event_reader import EventReader
from video2world_operator.controller.event_recorder import EventRecorder
from video2world_operator.controller.key_state import KeyState
from video2world_operator.controller.multikueue import MultiKueue
from video2world_operator.controller.observer import Observer, needs_live_read
from video2world_operator.controller.resource import Key, Object, Resource
from video2world_operator.controller.status_writer import StatusWriter
from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.kube.resync import ResyncPacer
from video2world_operator.kube.workqueue import WorkQueue
from video2world_operator.plan.optional_apis import OptionalApi
from video2world_operator.plan.plan import Plan
from video2world_operator.preflight.cluster_room import ClusterRoom
from video2world_operator.preflight.crd_version import Definition, without
from video2world_operator.preflight.operator_preflight import NodePreflight
from video2world_operator.reconcile.actions import Decision, Policy
from video2world_operator.reconcile.blocked_status import outdated
from video2world_operator.reconcile.observed_state import Job, ObservedState, Pod
from video2world_operator.reconcile.reconciler import plan_of, reconcile
from video2world_operator.reconcile.stuck_pods import find_stuck_pods

__all__ = ["Controller", "is_high_priority"]

log = logging.getLogger(__name__)
RESYNCS_PER_SECOND = 10  # with more resources, each is resynced less often
SOON = 0.05  # seconds: the shortest delay of a wake-up at a given time


class Controller:
    """Reconcile every resource that :attr:`queue` names."""

    def __init__(
        self,
        api: ApiClient,
        cache: WatchCache,
        policy: Policy | None = None,
        *,
        poll_seconds: float = 10.0,
        workers: int = 16,
    ) -> None:
        self.api, self.cache, self.policy = api, cache, policy or Policy()
        self.poll_seconds = poll_seconds
        self.queue: WorkQueue[Key] = WorkQueue(
            self.work,
            workers=workers,
            expected=(ApiError, OSError),
            tenant=lambda key: key[0],
            per_tenant=max(1, workers // 4),
            urgent=self._is_urgent,
        )
        self.definition = Definition(api)
        self.preflight = NodePreflight(api)
        self.room = ClusterRoom(api)
        self._states: defaultdict[Key, KeyState] = defaultdict(KeyState)
        self._pacer: ResyncPacer[Key] = ResyncPacer(RESYNCS_PER_SECOND)
        recorder = EventRecorder(api)
        self.status_writer = StatusWriter(api, recorder, self.queue.add, self.interval)
        self._applier = Applier(api, recorder, self.queue.add)
        self.observer = Observer(api, cache, self._states, self._plan_of, self.interval)
        self._kube_events = EventReader(api)
        self._multikueue = MultiKueue(api)

    async def work(self, key: Key) -> None:
        """Reconcile the resource ``key`` once.

        Raises:
            ApiError, OSError: the API server refused or cannot be reached; retry.
        """
        resource = self._resource(key)
        if resource is None:
            self._forget(key)
            await self._force_delete_stuck_pods(key)
            return
        if resource.dispatched:
            await self._dispatch(resource)
            return
        state = self._states[key]
        just_accepted, state.just_accepted = state.just_accepted, False
        if self.definition.blocks:
            held = outdated(resource.body, self.definition.problem, self.api.clock.now())
            await self.status_writer.write_status(resource, state, Decision(held))
            return
        await self._applier.delete_orphaned_jobs(resource, self.cache.jobs(key))
        decision, observed = await self._decide(resource, state, just_accepted)
        # a resource's first status is written before anything else, as others wait for theirs
        passive, others = split_passive(decision.actions)
        if resource.status.is_empty:
            passive, others = [], list(decision.actions)
        outcomes, proceed = await asyncio.gather(
            self._applier.apply_together(resource, state, passive),
            self.status_writer.write_status(resource, state, decision),
            return_exceptions=True,
        )
        if isinstance(proceed, BaseException):
            raise proceed
        if isinstance(outcomes, BaseException):
            raise outcomes
        if not proceed:
            return
        await self._applier.apply_in_order(resource, state, others, outcomes)
        version = self.observer.capabilities.api_version(OptionalApi.WORKLOAD)
        if version and await self._multikueue.answer(resource, version):
            self.resync_later(key)
        if decision.wake is not None:
            self._wake_at(key, decision.wake)
        if any(not pod.over for pod in observed.pods):
            self.resync_later(key)

    async def _dispatch(self, resource: Resource) -> None:
        """Queue a resource that another cluster runs, whose status comes from there."""
        plan = self._plan_of(resource.body)
        version = self.observer.capabilities.api_version(OptionalApi.WORKLOAD)
        if version and isinstance(plan, Plan):
            await self._multikueue.dispatch(resource, plan, version)
            self.resync_later(resource.key)  # Workloads are not watched

    async def _decide(
        self, resource: Resource, state: KeyState, just_accepted: bool
    ) -> tuple[Decision, ObservedState]:
        """Decide by the cache, and again if the decision needs live Jobs and pods, or Events."""
        key, plan = resource.key, self._plan_of(resource.body)
        observed = await self.observer.observe(resource, plan)
        if isinstance(plan, Plan) and not resource.ended:
            claim, served = observed.claim, self.observer.capabilities
            found = await self.preflight.failures(key, plan, resource.body, claim, served)
            room = await self.room.count(key, plan, resource.status, served)
            observed = replace(observed, preflight=found, room=room)
        decision = self._reconcile(resource, plan, observed)

        def created(manifest: Object) -> bool:
            return state.created_recently(path_in(manifest))

        if not just_accepted and needs_live_read(resource.status, decision, created):
            observed = await self.observer.read_live(resource, observed)
            decision = self._reconcile(resource, plan, observed)
        if not decision.stuck:
            self._kube_events.forget(key)
            return decision, observed
        events, wait = await self._kube_events.read(key, decision.stuck)
        if wait:
            self.queue.add(key, wait)
        if events is not None:
            decision = self._reconcile(resource, plan, replace(observed, kube_events=events))
        return decision, observed

    def _reconcile(
        self, resource: Resource, plan: Plan | InvalidResource, observed: ObservedState
    ) -> Decision:
        return reconcile(resource.body, plan, observed, self.api.clock.now(), self.policy)

    def _resource(self, key: Key) -> Resource | None:
        """Return the resource as cached, or as we wrote it until the watch has caught up."""
        resource = self.cache.resource(key)
        if resource is None:
            return None
        last = self._states[key].last_write
        if last is not None and last.is_newer_than(resource):
            return last.resource
        self._states[key].last_write = None
        return resource

    def _plan_of(self, body: Object) -> Plan | InvalidResource:
        return plan_of(without(body, self.definition.added))

    def _is_urgent(self, key: Key) -> bool:
        resource = self._resource(key)
        if resource is None or self._states[key].just_accepted:
            return True
        return is_high_priority(resource, self.cache.jobs(key), self.cache.pods(key))

    def _forget(self, key: Key) -> None:
        self._states.pop(key, None)
        stores = (self._pacer, self.queue, self.preflight, self._kube_events, self._multikueue)
        for store in stores:
            store.forget(key)

    def definition_changed(self) -> None:
        """Reconcile everything again: the API server may accept what it refused."""
        for state in self._states.values():
            state.refused = None
        for key in self.cache.known():
            self.queue.add(key)

    def interval(self) -> float:
        """Return the seconds between two polls of a log, and two writes of mere progress."""
        return max(self.poll_seconds, len(self.cache.known()) / RESYNCS_PER_SECOND)

    def resync_later(self, key: Key) -> None:
        """Reconcile ``key`` later even if no event asks for it.

        Resyncs are paced: thousands of resources that started together would otherwise be resynced
        together, and hold up others.
        """
        now = time.monotonic()
        self.queue.add(key, self._pacer.next(key, now, self.interval()) - now)

    def _wake_at(self, key: Key, moment: datetime) -> None:
        delay = (moment - self.api.clock.now()).total_seconds()
        self.queue.add(key, max(delay, SOON))

    async def _force_delete_stuck_pods(self, key: Key) -> None:
        """Force-delete pods of a deleted resource on nodes that do not answer.

        Kubernetes itself waits for such a node forever.
        """
        forced, again = find_stuck_pods(self.cache.pods(key), self.api.clock.now(), self.policy)
        for action in forced:
            log.warning("%s/%s is gone; %s", *key, action.why)
            await self._applier.delete(key[0], action)
        if again is not None:
            self._wake_at(key, again)


def is_high_priority(resource: Resource, jobs: Iterable[Job], pods: Iterable[Pod]) -> bool:
    """Whether a user or a gang's GPUs wait for the operator alone.

    That is so if the resource is new, its stage has ended, or a pod of it has failed.
    """
    if not (resource.status.observed_generation or resource.dispatched):
        return True
    if resource.ended or resource.dispatched:
        return False
    running = {(e.name, e.attempt) for e in resource.status.stages if e.state == "Running"}
    stage_ended = any(job.finished and (job.stage, job.attempt) in running for job in jobs)
    return stage_ended or any(pod.phase == "Failed" for pod in pods)
