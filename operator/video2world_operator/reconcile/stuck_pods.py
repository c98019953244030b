"""Force-delete pods that outlive their grace period, and replace their work.

Kubernetes waits forever for a node that does not answer, and so does everything that waits for the
pods on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from video2world_operator.reconcile import gpu_time
from video2world_operator.reconcile.actions import Delete, Policy
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.failure_policy import fail_attempt
from video2world_operator.reconcile.failures import Failure
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["find_stuck_pods", "force_delete_stuck_pods"]


def find_stuck_pods(
    pods: Iterable[Pod], now: datetime, policy: Policy
) -> tuple[list[Delete], datetime | None]:
    """Return the deletions of pods that outlive their grace period, and when to check again.

    Pods that have ended are included: without their kubelet nothing else removes them.
    """
    bound = timedelta(seconds=policy.termination_bound)
    ends = [(pod.deleted + bound, pod) for pod in pods if pod.deleted is not None]
    deletions = []
    for end, pod in ends:
        if end <= now:
            why = (
                f"Pod {pod.name} outlived its grace period by {policy.termination_bound:.0f} s: "
                f"its node {pod.node} does not answer."
            )
            deletions.append(Delete("Pod", pod.name, pod.uid, force=True, why=why))
    return deletions, min((end for end, _ in ends if end > now), default=None)


def force_delete_stuck_pods(draft: Draft) -> None:
    """Force-delete stuck pods; a restart that their node has caused is not counted."""
    deletions, check_at = find_stuck_pods(draft.observed.pods, draft.now, draft.policy)
    draft.actions += deletions
    if check_at is not None:
        draft.is_due(check_at)
    reasons = {deletion.uid: deletion.why for deletion in deletions}
    for pod in draft.observed.pods:
        if pod.over or pod.deleted is None:
            continue
        if pod.stage != "train":
            if pod.uid in reasons:
                _replace(draft, pod, reasons[pod.uid])
            continue
        if pod.disruption == "DeletionByTaintManager":
            reasons.setdefault(pod.uid, f"pod {pod.name} was on {pod.node}, which was lost")
        if pod.uid in reasons:
            gpu_time.uncount_last_restart(draft.status, "NodeLost", reasons[pod.uid])


def _replace(draft: Draft, pod: Pod, why: str) -> None:
    """Have another Job do the work of the Job whose pod is force-deleted.

    With a podFailurePolicy the Job controller waits for the pod to fail, and keeps it by a
    finalizer until then
    (https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-replacement-policy).
    """
    stage = draft.current_stage()
    if stage is not None and stage.name == pod.stage:
        entry = draft.entry(stage.name)
        is_current = (entry.state, entry.attempt) == ("Running", pod.attempt)
        if is_current and entry.job_uid:  # without a Job the attempt is still waiting for the pod
            fail_attempt(draft, stage, entry, Failure("NodeLost", why))
    for job in draft.jobs:
        deletion = Delete("Job", job.name, job.uid)
        if (job.stage, job.attempt) == (pod.stage, pod.attempt) and not (
            job.finished or job.deleting or deletion in draft.actions
        ):
            draft.actions.append(deletion)
