"""Hold the decision of one reconciliation while it is being made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from video2world_operator.api.conditions import Reason, Type, find, set_condition
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.api.status import StageStatus, Status
from video2world_operator.api.timestamps import format_time
from video2world_operator.plan.manifests import owned
from video2world_operator.plan.optional_apis import OptionalApi
from video2world_operator.plan.plan import Plan, with_env
from video2world_operator.plan.stage import Manifest, Stage
from video2world_operator.reconcile import gpu_time
from video2world_operator.reconcile.actions import Action, Apply, Decision, Delete, Policy
from video2world_operator.reconcile.observed_state import Job, ObservedState, Pod

__all__ = ["Draft"]

_VOLCANO = (Reason.GANG_VOLCANO, Reason.GANG_UNATTENDED)  # reasons of groups that may be Volcano's


@dataclass
class Draft:
    """What a reconciliation knows, and the status and actions that it decides on."""

    plan: Plan
    status: Status
    observed: ObservedState
    now: datetime
    policy: Policy
    actions: list[Action] = field(default_factory=list)
    wake: datetime | None = None
    stuck: tuple[str, ...] = ()  # UIDs of objects that make no progress

    def decision(self) -> Decision:
        """Return the result."""
        return Decision(self.status, tuple(self.actions), self.wake, self.stuck)

    # ------------------------------------------------------------------ the resource

    @property
    def resource(self) -> Video2WorldPostTrain:
        """The resource that is reconciled."""
        return self.plan.resource

    @property
    def uid(self) -> str:
        """UID of the resource."""
        return self.resource.metadata.uid or ""

    @property
    def generation(self) -> int | None:
        """Generation of the resource's spec."""
        return self.resource.metadata.generation

    @cached_property
    def jobs(self) -> list[Job]:
        """The Jobs that the resource owns."""
        return [job for job in self.observed.jobs if job.owner == self.uid]

    @property
    def nodes(self) -> int:
        """Nodes of the current attempt at training."""
        size = self.status.group_size
        return size.running if size else self.resource.spec.nodes

    # ------------------------------------------------------------------ stages

    def current_stage(self) -> Stage | None:
        """Return the first stage that is not done."""
        for stage in self.plan.stages:
            if not self.entry(stage.name).is_done:
                return stage
        return None

    def entry(self, name: str) -> StageStatus:
        """Return the status of a stage of the plan."""
        return next(entry for entry in self.status.stages if entry.name == name)

    def pods_of(self, entry: StageStatus) -> list[Pod]:
        """Return the pods of a stage's current attempt, by index."""
        key = (entry.name, entry.attempt)
        pods = (pod for pod in self.observed.pods if (pod.stage, pod.attempt) == key)
        return sorted(pods, key=lambda pod: pod.index)

    def begin_attempt(self, entry: StageStatus, number: int) -> None:
        """Set the number of a stage's attempt, before its Job exists."""
        entry.attempt = number
        entry.clear_pods()
        if entry.name == "train":
            self.status.attempt = number
            gpu_time.open_attempt(self.status, number, self.nodes)

    def close_attempt(self, reason: str, message: str = "", *, counted: bool = False) -> None:
        """End the record of the attempt at training, if one is open."""
        if (group := self._reserving_group()) is not None:
            self.actions.append(group)
        spec = self.resource.spec
        gpu_time.close_attempt(self.status, spec, self.now, reason, message, counted)

    # ------------------------------------------------------------------ conditions and actions

    def set_condition(self, kind: Type, value: bool | None, reason: Reason, **facts: Any) -> None:
        """Set a condition; ``facts`` fill in the reason's message."""
        self.status.conditions = set_condition(
            self.status.conditions,
            kind,
            value,
            reason,
            format_time(self.now),
            generation=self.generation,
            **facts,
        )

    def apply(self, manifests: Iterable[Manifest]) -> None:
        """Create objects of the plan, owned by the resource."""
        self.actions += [Apply(owned(manifest, self.resource)) for manifest in manifests]

    def apply_attempt(self, manifests: tuple[Manifest, ...]) -> None:
        """Create the objects of an attempt, whose worker checks that the volume is still the same.

        A worker that finds another volume than ``V2W_VOLUME_ID`` says so and stops.
        """
        identity = self.status.volume_id
        self.apply(with_env(manifests, V2W_VOLUME_ID=identity) if identity else manifests)

    def delete_job(self, job: Job) -> None:
        """Delete a Job and its pods."""
        self.actions.append(Delete("Job", job.name, job.uid))

    def _reserving_group(self) -> Delete | None:
        """Return the deletion of the open attempt's PodGroup, if it keeps GPUs without its pods.

        Volcano queues a PodGroup without pods again, and keeps its ``minResources`` for it.
        """
        attempt = next((a.number for a in self.status.attempts[-1:] if not a.end_time), None)
        gang = find(self.status.conditions, Type.GANG)
        version = self.observed.capabilities.api_version(OptionalApi.VOLCANO_POD_GROUP)
        if attempt is None or gang is None or not version or gang.reason not in _VOLCANO:
            return None
        return Delete("PodGroup", f"{self.plan.name}-train-{attempt}", "", version=version)

    # ------------------------------------------------------------------ time

    def is_due(self, moment: datetime) -> bool:
        """Return whether ``moment`` has come; if not, reconcile again then."""
        if moment <= self.now:
            return True
        self.wake = moment if self.wake is None else min(self.wake, moment)
        return False

    def requeue(self, seconds: float = 0.0) -> None:
        """Reconcile again after ``seconds``, but not sooner than the policy allows."""
        self.is_due(self.now + timedelta(seconds=max(seconds, self.policy.min_requeue)))

    def requeue_rarely(self, since: datetime) -> None:
        """Reconcile again after a tenth of the time that has passed since then."""
        waited = (self.now - since).total_seconds()
        self.requeue(min(waited / 10, self.policy.max_requeue))
