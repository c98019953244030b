"""Follow an attempt whose Job is suspended: it waits in its queue, or was evicted from it.

Kueue starts and stops the pods of a Job in a queue by its ``spec.suspend``. An evicted Job stays,
and with it the place of its Workload in the queue: the attempt resumes when quota returns, and
nothing counts as a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from video2world_operator.api.conditions import Reason, Type, find
from video2world_operator.api.status import StageStatus
from video2world_operator.api.timestamps import parse_time
from video2world_operator.plan.stage import Stage
from video2world_operator.reconcile import gpu_time, pods_started
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.known_errors import explain_error
from video2world_operator.reconcile.observed_state import Job, Pod

__all__ = ["follow", "since_resumed"]

PREEMPTED = "Preempted"  # reason of a Workload's eviction in favour of another
EXPLAINED_AFTER = 2.0  # seconds in which Kueue usually judges a new Workload


def since_resumed(job: Job | None, pods: Sequence[Pod]) -> list[Pod]:
    """Return the pods without those of a queued Job from before Kueue stopped and resumed it.

    Kueue may resume a Job while they are still saving a checkpoint: their end is no failure.
    """
    if job is None or not job.queue or job.started is None:
        return list(pods)
    return [pod for pod in pods if pod.created is None or pod.created >= job.started]


def follow(draft: Draft, stage: Stage, entry: StageStatus, job: Job, pods: Sequence[Pod]) -> None:
    """Report why the Job is suspended; close the accounts of an attempt that was evicted."""
    facts = {"stage": stage.name, "job": job.name, "namespace": draft.plan.namespace}
    if not job.queue:
        draft.set_condition(Type.PODS_STARTED, False, Reason.JOB_SUSPENDED, **facts)
        return
    if stage.name == "train":
        _account_for_eviction(draft, entry, pods)
    workload = draft.observed.workload
    problem = workload.problem if workload else ""
    why = f": {problem.rstrip('. ')}." if problem else "."
    if error := explain_error([problem], pods_started.facts_for(draft, stage.name, job)):
        why += f" {error.remedy}."
    draft.set_condition(Type.PODS_STARTED, False, Reason.QUEUED, queue=job.queue, why=why, **facts)
    condition = find(draft.status.conditions, Type.PODS_STARTED)
    since = parse_time(condition.last_transition_time) if condition else None
    draft.requeue_rarely(since or draft.now)
    if not problem:
        draft.is_due(draft.now + timedelta(seconds=EXPLAINED_AFTER))


def _account_for_eviction(draft: Draft, entry: StageStatus, pods: Sequence[Pod]) -> None:
    """End the record of an attempt whose pods are gone, and begin the one of its resumption."""
    if not gpu_time.has_started(draft.status) or any(not pod.over for pod in pods):
        return
    workload = draft.observed.workload
    evicted = workload.evicted if workload else ""
    message = workload.eviction if workload else "its Job was suspended"
    draft.close_attempt("Preempted" if evicted == PREEMPTED else "Evicted", message)
    gpu_time.open_attempt(draft.status, entry.attempt, draft.nodes)
