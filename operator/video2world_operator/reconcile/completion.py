"""End a resource that has succeeded or failed: clean up its Jobs, and delete it after its TTL."""

from __future__ import annotations

from datetime import timedelta

from video2world_operator.api.conditions import Reason, Type, find, finished
from video2world_operator.api.constants import KIND
from video2world_operator.api.timestamps import format_time, parse_time
from video2world_operator.plan.labels import ORIGIN_LABEL
from video2world_operator.reconcile.actions import Delete
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.teardown import (
    end_all_attempts,
    has_ended,
    report_remaining_pods,
)

__all__ = ["clean_up", "succeed"]


def succeed(draft: Draft) -> None:
    """Complete the resource once nothing of it runs any more."""
    if not end_all_attempts(draft):
        report_remaining_pods(draft)
        return
    if find(draft.status.conditions, Type.CONTENT):
        draft.set_condition(Type.CONTENT, True, Reason.CONTENT_KEPT)
    reason, facts = finished(draft.status)
    draft.set_condition(Type.PROGRESSING, False, reason, **facts)
    draft.set_condition(Type.SUCCEEDED, True, reason, **facts)
    draft.set_condition(Type.PODS_STARTED, False, Reason.NO_PODS)
    clean_up(draft)


def clean_up(draft: Draft) -> None:
    """Record the completion time, delete what is to be deleted, and nothing else."""
    status, spec = draft.status, draft.resource.spec
    ended = parse_time(status.completion_time)
    if ended is None or ended > draft.now:  # it was written when the clock was ahead
        ended = draft.now
        status.completion_time = format_time(ended)
    draft.actions[:] = [a for a in draft.actions if isinstance(a, Delete) and a.kind == "PodGroup"]
    failed = find(status.conditions, Type.FAILED)
    overdue = failed is not None and failed.reason == Reason.DEADLINE_EXCEEDED
    grace = timedelta(seconds=draft.policy.min_requeue)
    for job in draft.jobs:
        # The Job controller itself ends a Job whose pod has failed: leave it a moment to do so.
        ending = not overdue and not draft.is_due(ended + grace)
        if job.deleting or (ending and not has_ended(draft, job)):
            continue
        if spec.cleanup_policy == "All" or not has_ended(draft, job):
            draft.delete_job(job)
    ttl = spec.ttl_seconds_after_finished
    if ORIGIN_LABEL in draft.resource.metadata.labels:
        ttl = None  # MultiKueue deletes a copy once it has read the last status
    if ttl is not None and draft.is_due(ended + timedelta(seconds=ttl)):
        draft.actions.append(Delete(KIND, draft.resource.name, draft.uid))
