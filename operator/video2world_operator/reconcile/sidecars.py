"""End pods whose sidecars run on after the worker has ended, such as an injected proxy.

Kubernetes never ends such a pod or its Job. Here the exit code of the worker counts as that of the
pod; where the Job cannot act on it, the Job or the pod is deleted. The kubelet ends native sidecars
(init containers with restartPolicy Always), which are not considered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from video2world_common.exit_codes import EXIT_USER_ERROR
from video2world_operator.reconcile.actions import Delete
from video2world_operator.reconcile.observed_state import Job, Pod
from video2world_operator.reconcile.stuck_stages import describe_sidecar, sidecar_remedy

__all__ = ["Judged", "judge_by_workers"]


@dataclass(frozen=True)
class Judged:
    """Jobs and pods as they would be without the sidecars that outlive the workers."""

    jobs: list[Job]
    pods: list[Pod]
    actions: list[Delete]
    check_at: datetime | None  # when the grace period of the next sidecar ends


def judge_by_workers(
    jobs: Sequence[Job], pods: Sequence[Pod], owner: str, now: datetime, bound: float
) -> Judged:
    """Judge the Jobs of ``owner`` by their workers, ``bound`` seconds after these have ended.

    Other containers may finish their work until then. A user error is acted on at once.
    """
    check_at: datetime | None = None
    ended: dict[str, Pod] = {}
    for pod in pods:
        if pod.phase == "Failed" and pod.exit_code == 0:  # another container of the pod failed
            ended[pod.uid] = replace(pod, phase="Succeeded")
        if pod.over or pod.exit_code is None or not pod.still_running:
            continue
        due = (pod.ended or pod.not_ready or pod.created or now) + timedelta(seconds=bound)
        if due <= now or pod.exit_code == EXIT_USER_ERROR:
            phase = "Failed" if pod.exit_code else "Succeeded"
            ended[pod.uid] = replace(pod, phase=phase)
        else:
            check_at = due if check_at is None else min(check_at, due)
    if not ended:
        return Judged(list(jobs), list(pods), [], check_at)
    all_pods = [ended.get(pod.uid, pod) for pod in pods]
    judged, actions = [], list[Delete]()
    for job in jobs:
        mine = [p for p in all_pods if (p.stage, p.attempt) == (job.stage, job.attempt)]
        ours = job.owner == owner and not job.complete and not job.deleting
        if ours and any(p.uid in ended for p in mine):
            job, ends = _judge(job, mine, ended)
            actions += ends
        judged.append(job)
    return Judged(judged, all_pods, actions, check_at)


def _judge(job: Job, pods: list[Pod], ended: dict[str, Pod]) -> tuple[Job, list[Delete]]:
    running_on = [p for p in pods if p.uid in ended]
    first = running_on[0]
    why = f"{describe_sidecar(first)}: the worker's exit code counts. {sidecar_remedy(first)}."
    if len({p.index for p in pods if p.phase == "Succeeded"}) >= job.completions:
        gone = [] if job.failed else [Delete("Job", job.name, job.uid, why=why)]
        return replace(job, complete=True), gone
    if job.stage == "train" or job.failed:
        return job, []  # a failure ends the group and its Job
    if any(p.exit_code == EXIT_USER_ERROR for p in running_on):
        job = replace(job, failed="PodFailurePolicy")
    # once these are deleted, the Job replaces them or fails
    failed = [p for p in running_on if p.exit_code and p.deleted is None]
    return job, [Delete("Pod", p.name, p.uid, why=why) for p in failed]
