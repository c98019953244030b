"""Explain why a resource is stuck and how to fix it.

Kubernetes reports errors as free text. :mod:`video2world_operator.reconcile.known_errors` knows
the common ones; any other text is shown as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from video2world_common.progress_events import duration
from video2world_operator.api.conditions import STATUS_REFUSED, Reason, Type, find
from video2world_operator.api.status import Condition
from video2world_operator.api.timestamps import parse_time
from video2world_operator.cli import object_causes
from video2world_operator.cli.dispatched import dispatch_causes
from video2world_operator.cli.remedies import Cause, Remedies
from video2world_operator.cli.snapshot import ClusterObjects, Snapshot
from video2world_operator.preflight.dispatch import DispatchFacts
from video2world_operator.reconcile.known_errors import LOGS
from video2world_operator.reconcile.observed_state import KubeEvent
from video2world_operator.reconcile.reason_remedies import BY_REASON
from video2world_operator.reconcile.stuck_stages import BOUND, reports

__all__ = ["Cause", "explain"]

NEW_SECONDS = 10.0  # that an operator gets to write the first status of a resource
TAIL_LINES = 3  # of a failed pod's log

# Conditions that stop all work while they are False.
_PRECONDITIONS = (
    Type.DEFINITION,
    Type.AUTHORIZED,
    Type.ACCEPTED,
    Type.CHILDREN_APPLIED,
    Type.VOLUME_READY,
)
# Reasons of PodsStarted that the Job and its pods explain better, if the user may see them.
_BLOCKED = (
    Reason.NO_PROGRESS,
    Reason.JOB_SUSPENDED,
    Reason.EARLIER_PODS,
    Reason.PODS_ENDING,
    Reason.UNSCHEDULABLE,
    Reason.CONTAINER_WAITS,
)
_DIVERGED = (
    "Create another resource with a lower spec.training.learningRate or more warmupIterations; "
    "spec.training.stopWhenDiverged ends such a run automatically"
)


def explain(seen: Snapshot, objects: ClusterObjects, now: datetime) -> list[Cause]:
    """Return the causes, the decisive one first; none if the resource progresses or succeeded."""
    return Diagnosis(seen, objects, now).causes()


class Diagnosis:
    """The causes found in the status of one resource and in the objects around it."""

    def __init__(self, seen: Snapshot, objects: ClusterObjects, now: datetime) -> None:
        self._seen, self._objects, self._now = seen, objects, now
        self._status = status = seen.status
        failed = next((entry.name for entry in status.stages if entry.state == "Failed"), "")
        self._stage = status.stage or failed
        self._entry = status.stage_status(self._stage)
        attempt = self._entry.attempt if self._entry else 0
        self._job_name = f"{seen.name}-{self._stage}-{attempt}"
        self._pods = [p for p in seen.pods if (p.stage, p.attempt) == (self._stage, attempt)]
        if (workload := objects.workload) is not None:
            self._pods = [
                replace(p, unschedulable=workload.explain_placement(p.unschedulable))
                for p in self._pods
            ]
        self._events = [KubeEvent.of(event) for event in objects.events]
        uid = objects.metadata.get("uid")
        self._job = next(
            (
                job
                for job in objects.jobs or ()
                if job.name == self._job_name and (not uid or job.owner == uid)
            ),
            None,
        )
        self._remedies = Remedies(seen.name, self._stage, self._job_name, objects)

    def causes(self) -> list[Cause]:
        """Return the causes, the decisive one first."""
        if self._objects.dispatch is not None:
            return self._of_another_cluster(self._objects.dispatch)
        if self._status.is_empty:
            return [] if self._is_new() else [self._no_operator()]
        if self._if_true(Type.SUCCEEDED):
            return [*self._divergence(), *self._ignored_actions()]
        for kind in (Type.FAILED, Type.SUSPENDED):
            if (condition := self._if_true(kind)) is not None:
                return [self._of_condition(condition)]
        found = [self._of_condition(c) for kind in _PRECONDITIONS if (c := self._if_false(kind))]
        if self._seen.gone:
            found.append(Cause(self._seen.note, "Run the same `v2w run` command again"))
        if self._objects.pvc is not None and (not found or self._if_false(Type.VOLUME_READY)):
            reported = self._reason(Type.VOLUME_READY) == Reason.CLAIM_DELETED
            found += object_causes.pvc_causes(
                self._objects.pvc, self._events, self._remedies, deletion_reported=reported
            )
        found += [*self._waits(), *self._pod_causes(), *self._job_causes()]
        if not found or self._reason(Type.PODS_STARTED) == Reason.EARLIER_PODS:
            found += self._blocked_conditions()
        if not found and (self._is_outdated() or self._is_overdue()):
            found.append(self._no_operator())
        found += self._warnings()
        return list(dict.fromkeys([*found, *self._divergence()]))

    def _of_another_cluster(self, facts: DispatchFacts) -> list[Cause]:
        """Explain a resource that another cluster runs: all but its status is there."""
        if self._objects.spec.get("suspend") or self._if_true(Type.SUCCEEDED):
            return []
        if (failed := self._if_true(Type.FAILED)) is not None:
            return [self._of_condition(failed)]
        found = list(dispatch_causes(facts))
        if not found and facts.workload is None and not self._is_new():
            found.append(self._no_operator())
        found += [self._of_condition(c) for kind in _PRECONDITIONS if (c := self._if_false(kind))]
        return [*found, *self._waits(), *self._blocked_conditions(), *self._warnings()]

    # ------------------------------------------------------------------ the operator

    def _is_new(self) -> bool:
        created = parse_time(self._objects.metadata.get("creationTimestamp"))
        return created is not None and (self._now - created).total_seconds() <= NEW_SECONDS

    def _is_outdated(self) -> bool:
        """Whether the status is about an earlier generation of the spec."""
        generation = self._objects.metadata.get("generation")
        return bool(generation) and self._status.observed_generation != generation

    def _is_overdue(self) -> bool:
        """Whether the operator should have taken the next step by now."""
        state = self._entry.state if self._entry else "Pending"
        if self._objects.jobs is None or state not in ("Pending", "Running"):
            return False
        if self._reason(Type.PROGRESSING) in (Reason.WAITING_FOR_SAMPLES, Reason.SUSPENDING):
            return False
        if self._job is not None:
            times = [self._job.ended]
        else:
            times = [parse_time(c.last_transition_time) for c in self._status.conditions]
            times.append(parse_time(self._entry.start_time) if self._entry else None)
        newest = max((t for t in times if t is not None), default=None)
        return newest is not None and self._now - newest > timedelta(seconds=BOUND)

    def _no_operator(self) -> Cause:
        if self._objects.crd_problem:
            what, _, remedy = self._objects.crd_problem.rpartition(": ")
            return Cause(f"{what}.", f"{remedy[:1].upper()}{remedy[1:]}")
        for event in reports(self._events, self._objects.metadata.get("uid", "")):
            reason, _, message = event.text.partition(": ")
            if reason == STATUS_REFUSED:
                return Cause(
                    "The operator cannot write this resource's status.",
                    "Apply the manifests/crd.yaml of the operator's version, or upgrade the chart",
                    message,
                )
        return Cause(
            "No operator is managing this resource.",
            "Install it (helm install v2w charts/video2world-operator), or find out why it is not "
            "running: kubectl get pods -A -l app.kubernetes.io/name=video2world-operator; it may "
            "be restricted to other namespaces (watchNamespaces)",
        )

    # ------------------------------------------------------------------ conditions

    def _if_true(self, kind: Type) -> Condition | None:
        condition = find(self._status.conditions, kind)
        return condition if condition and condition.status == "True" else None

    def _if_false(self, kind: Type) -> Condition | None:
        condition = find(self._status.conditions, kind)
        return condition if condition and condition.status == "False" else None

    def _reason(self, kind: Type) -> str:
        condition = find(self._status.conditions, kind)
        return condition.reason if condition else ""

    def _of_condition(self, condition: Condition) -> Cause:
        message = condition.message
        tail = self._entry.log_tail if self._entry else ""
        if cause := self._remedies.known(message) or self._remedies.known(tail):
            return Cause(cause.what, cause.remedy, message)
        remedy = self._remedies.fill(BY_REASON.get(condition.reason, LOGS))
        return Cause(message, remedy, "\n".join(tail.strip().splitlines()[-TAIL_LINES:]))

    def _waits(self) -> Iterator[Cause]:
        """Explain waiting for another resource, in a queue, or for the next attempt."""
        progressing = find(self._status.conditions, Type.PROGRESSING)
        started = find(self._status.conditions, Type.PODS_STARTED)
        if progressing and progressing.reason == Reason.WAITING:
            yield self._of_condition(progressing)
        if started and started.reason == Reason.QUEUED and not self._pods:
            reported = object_causes.workload_reports(self._job_name, self._job, self._events)
            if (workload := self._objects.workload) is not None and workload.waits:
                reported = [workload.problem]
            remedy = self._remedies.fill(BY_REASON[Reason.QUEUED])
            yield self._remedies.known(*reported, started.message) or Cause(started.message, remedy)
        if self._entry and self._entry.state == "Restarting":
            yield self._restarting(self._entry.message)

    def _restarting(self, message: str) -> Cause:
        when = parse_time(self._status.next_attempt_time)
        left = (when - self._now).total_seconds() if when else 0
        delay = f"in {duration(left)}" if left > 0 else "once its last pods are gone"
        reason = message.partition(":")[0]
        if reason in (Reason.GROUP_SHRUNK, Reason.GROUP_GROWN):
            remedy = self._remedies.fill(BY_REASON[reason])
            return Cause(f"Stage {self._stage} resumes with another number of nodes.", remedy)
        known = self._remedies.known(message)
        remedy = known.remedy if known else self._remedies.fill("Wait; if it repeats: " + LOGS)
        return Cause(f"Stage {self._stage} failed and restarts {delay}.", remedy, message)

    def _blocked_conditions(self) -> Iterator[Cause]:
        """Explain what the conditions say about objects that the user may not see."""
        for kind in (Type.PODS_STARTED, Type.SAMPLES):
            condition = self._if_false(kind)
            explained = kind is Type.PODS_STARTED and self._job is not None
            if condition and condition.reason in _BLOCKED and not explained:
                yield self._of_condition(condition)

    def _warnings(self) -> Iterator[Cause]:
        """Explain what will need attention, though the resource may still progress."""
        gang = self._if_false(Type.GANG)
        if self._stage == "train" and gang and gang.reason == Reason.GANG_UNATTENDED:
            yield self._of_condition(gang)
        if self._stage == "train" and (fewer := self._if_false(Type.FULL_SIZE)):
            yield self._of_condition(fewer)
        if lost := self._if_false(Type.CONTENT):
            yield self._of_condition(lost)
        train = self._status.stage_status("train")
        if train and train.state == "Pending" and (failed := self._if_false(Type.PREFLIGHT)):
            yield self._of_condition(failed)

    def _divergence(self) -> Iterator[Cause]:
        if self._status.progress and self._status.progress.warning:
            yield Cause(self._status.progress.warning, _DIVERGED)

    def _ignored_actions(self) -> Iterator[Cause]:
        if (condition := self._if_false(Type.ACTIONS)) is not None:
            yield self._of_condition(condition)

    # ------------------------------------------------------------------ pods and the Job

    def _pod_causes(self) -> Iterator[Cause]:
        yield from object_causes.terminating_pods(self._seen.pods, self._now)
        group = object_causes.group_reports(self._job_name, self._job, self._events)
        yield from object_causes.blocked_pods(self._pods, self._remedies, group)

    def _job_causes(self) -> Iterator[Cause]:
        job, entry = self._job, self._entry
        if job is None or entry is None or entry.state != "Running":
            return
        yield from object_causes.suspended_job(job, self._events, self._remedies)
        # The operator has waited for BOUND seconds before it reports NoProgress.
        bound = 0.0 if self._reason(Type.PODS_STARTED) == Reason.NO_PROGRESS else BOUND
        desired = entry.desired or job.completions
        yield from object_causes.stuck_job(
            job, self._pods, desired, self._events, self._remedies, self._now, bound
        )
