"""End pods and Jobs that must be gone before the next step, and report what is waited for."""

from __future__ import annotations

from collections.abc import Sequence

from video2world_operator.api.conditions import Reason, Type
from video2world_operator.api.status import StageStatus
from video2world_operator.plan.stage import SAMPLING, Stage
from video2world_operator.reconcile import stuck_stages
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.observed_state import Job, Pod

__all__ = [
    "end_all_attempts",
    "end_other_attempts",
    "has_ended",
    "outlive_their_job",
    "report_orphan",
    "report_remaining_pods",
]

Attempt = tuple[str, int]  # a stage and the number of the attempt


def end_other_attempts(draft: Draft, stage: Stage, entry: StageStatus) -> bool:
    """End every attempt but the stage's current one; return whether their pods have ended."""
    current = (stage.name, entry.attempt)
    for job in draft.jobs:
        if (job.stage, job.attempt) == current or job.deleting or job.stage == SAMPLING:
            continue
        if not has_ended(draft, job) or job.stage == stage.name:
            draft.delete_job(job)
    return not _live_pods(draft, current)


def end_all_attempts(draft: Draft) -> bool:
    """End every attempt; return whether all Jobs and pods have ended."""
    for job in draft.jobs:
        if not has_ended(draft, job) and not job.deleting:
            draft.delete_job(job)
    report_orphan(draft)
    return not _live_pods(draft) and all(has_ended(draft, job) for job in draft.jobs)


def has_ended(draft: Draft, job: Job) -> bool:
    """Return whether a Job has ended, by its own status or by that of its stage.

    The cache may briefly show an older state of a Job after a watch was interrupted.
    """
    entry = draft.status.stage_status(job.stage)
    recorded = entry is not None and entry.is_done and entry.attempt == job.attempt
    return job.finished or recorded


def outlive_their_job(draft: Draft, entry: StageStatus) -> bool:
    """Return whether the attempt has pods but no Job.

    The Job was deleted before its UID was recorded, or the pods are those of an earlier resource
    of the same name.
    """
    attempt = (entry.name, entry.attempt)
    exists = any((job.stage, job.attempt) == attempt for job in draft.observed.jobs)
    return bool(draft.pods_of(entry)) and not exists


def report_remaining_pods(
    draft: Draft, keep: Attempt | None = None, jobless: Sequence[Pod] = ()
) -> None:
    """Report a pod that has to end first: one without its Job, or any except those of ``keep``."""
    if report_orphan(draft):
        return
    for pod in jobless:
        if pod.over and pod.deleted is None:
            _report_earlier_pod(draft, pod.name, f"pod {pod.name}")
            return
    if left := sorted(pod.name for pod in (*_live_pods(draft, keep), *jobless)):
        draft.set_condition(Type.PODS_STARTED, False, Reason.PODS_ENDING, pod=left[0])


def report_orphan(draft: Draft) -> bool:
    """Report a pod that nothing will end, if there is one; return whether there is."""
    found = stuck_stages.find_orphan(draft.observed.jobs, draft.observed.pods, draft.uid)
    if found is not None:
        _report_earlier_pod(draft, found.pod, found.object)
    return found is not None


def _report_earlier_pod(draft: Draft, pod: str, to_delete: str) -> None:
    draft.set_condition(
        Type.PODS_STARTED,
        False,
        Reason.EARLIER_PODS,
        pod=pod,
        object=to_delete,
        namespace=draft.plan.namespace,
    )


def _live_pods(draft: Draft, keep: Attempt | None = None) -> list[Pod]:
    """Return the pods that have not ended, except those of ``keep`` and what runs alongside it."""
    left = [p for p in draft.observed.pods if not p.over and (p.stage, p.attempt) != keep]
    return left if keep is None else [pod for pod in left if pod.stage != SAMPLING]
