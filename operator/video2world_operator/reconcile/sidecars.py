"""End what keeps a pod running after its worker has ended, such as a proxy that a webhook injects.

Kubernetes ends such a pod, and its Job, never. Here the worker's exit code counts as the pod's;
where the Job cannot judge by it, it is deleted, or its pod. Native sidecars (init containers that
restart always) are ended by the kubelet and are not seen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from video2world_common.exit_codes import EXIT_USER_ERROR
from video2world_operator.reconcile.actions import Delete
from video2world_operator.reconcile.observed_state import Job, Pod
from video2world_operator.reconcile.stuck_stages import injected, sidecar

__all__ = ["Judged", "judge_by_workers"]


@dataclass(frozen=True)
class Judged:
    """Jobs and pods as they would be without the containers that outlive the workers."""

    jobs: list[Job]
    pods: list[Pod]
    actions: list[Delete]
    again: datetime | None  # when the next such container has had its time


def judge_by_workers(
    jobs: Sequence[Job], pods: Sequence[Pod], owner: str, now: datetime, bound: float
) -> Judged:
    """Judge the Jobs of ``owner`` by their workers, ``bound`` seconds after these have ended, or
    at once where it is the user's error: until then other containers may finish what they do."""
    again: datetime | None = None
    outlived: dict[str, Pod] = {}
    for pod in pods:
        if pod.phase == "Failed" and pod.exit_code == 0:  # another of its containers failed
            outlived[pod.uid] = replace(pod, phase="Succeeded")
        if pod.over or pod.exit_code is None or not pod.still_running:
            continue
        due = (pod.ended or pod.not_ready or pod.created or now) + timedelta(seconds=bound)
        if due <= now or pod.exit_code == EXIT_USER_ERROR:
            phase = "Failed" if pod.exit_code else "Succeeded"
            outlived[pod.uid] = replace(pod, phase=phase)
        else:
            again = due if again is None else min(again, due)
    if not outlived:
        return Judged(list(jobs), list(pods), [], again)
    seen = [outlived.get(pod.uid, pod) for pod in pods]
    judged, actions = [], list[Delete]()
    for job in jobs:
        mine = [p for p in seen if (p.stage, p.attempt) == (job.stage, job.attempt)]
        ours = job.owner == owner and not job.complete and not job.deleting
        if ours and any(p.uid in outlived for p in mine):
            job, ends = _judge(job, mine, outlived)
            actions += ends
        judged.append(job)
    return Judged(judged, seen, actions, again)


def _judge(job: Job, pods: list[Pod], outlived: dict[str, Pod]) -> tuple[Job, list[Delete]]:
    beyond = [p for p in pods if p.uid in outlived]
    why = f"{sidecar(beyond[0])}: the worker's exit code counts. {injected(beyond[0])}."
    if len({p.index for p in pods if p.phase == "Succeeded"}) >= job.completions:
        gone = [] if job.failed else [Delete("Job", job.name, job.uid, why=why)]
        return replace(job, complete=True), gone
    if job.stage == "train" or job.failed:
        return job, []  # a failure ends the group, and its Job
    if any(p.exit_code == EXIT_USER_ERROR for p in beyond):
        job = replace(job, failed="PodFailurePolicy")
    failed = [p for p in beyond if p.exit_code and p.deleted is None]  # their Job judges them then
    return job, [Delete("Pod", p.name, p.uid, why=why) for p in failed]
