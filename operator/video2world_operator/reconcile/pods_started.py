"""Set the condition PodsStarted: whether the pods of the current attempt run, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence

from video2world_operator.api.conditions import Reason, Type
from video2world_operator.plan.stage import Stage, container_of
from video2world_operator.reconcile import stuck_stages
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.known_errors import explain_error, remedy_facts
from video2world_operator.reconcile.observed_state import Job, Pod

__all__ = ["desired_pods", "facts_for", "report_pods", "report_stuck", "reset"]


def desired_pods(draft: Draft, stage: Stage) -> int:
    """Return how many pods the current attempt has."""
    if stage.name == "train":
        return draft.nodes
    return int(stage.job["spec"].get("completions", 1))


def reset(draft: Draft, stage: Stage) -> None:
    """Drop what was reported about the pods of an attempt that is over."""
    _set(draft, stage, ready=0)


def report_pods(draft: Draft, stage: Stage, job: Job | None, pods: Sequence[Pod]) -> None:
    """Report how many pods are ready, or the first reason why one is not."""
    for pod in pods:
        if pod.waits:
            error = explain_error([pod.waits], facts_for(draft, pod.stage, job) | {"pod": pod.name})
            todo = error.remedy if error else f"`kubectl describe pod {pod.name}` shows more"
            draft.set_condition(
                Type.PODS_STARTED,
                False,
                Reason.CONTAINER_WAITS,
                pod=pod.name,
                problem=pod.waits,
                todo=todo,
            )
            return
        if pod.unschedulable:
            workload, problem = draft.observed.workload, pod.unschedulable
            if workload is not None:
                problem = workload.explain_placement(problem)
            draft.set_condition(
                Type.PODS_STARTED, False, Reason.UNSCHEDULABLE, pod=pod.name, problem=problem
            )
            return
    desired = desired_pods(draft, stage)
    if job is not None and report_stuck(draft, Type.PODS_STARTED, job, pods, desired):
        return
    _set(draft, stage, ready=sum(pod.ready or pod.over for pod in pods))


def report_stuck(draft: Draft, kind: Type, job: Job, pods: Sequence[Pod], desired: int) -> bool:
    """Return whether a Job makes no progress; the condition ``kind`` then tells why, if known."""
    judged = stuck_stages.judge(
        job, pods, desired, draft.observed.kube_events, draft.now, draft.policy.stuck_after
    )
    if judged.check_at is not None:
        draft.is_due(judged.check_at)
    if not judged.findings:
        return False
    first = judged.findings[0]
    problem = stuck_stages.message(first, facts_for(draft, job.stage, job))
    draft.set_condition(kind, False, Reason.NO_PROGRESS, problem=problem)
    draft.stuck += judged.uids
    draft.requeue_rarely(first.since)
    return True


def _set(draft: Draft, stage: Stage, *, ready: int) -> None:
    desired = desired_pods(draft, stage)
    all_ready = ready >= desired
    draft.set_condition(
        Type.PODS_STARTED,
        all_ready,
        Reason.PODS_RUNNING if all_ready else Reason.PODS_STARTING,
        stage=stage.name,
        ready=ready,
        desired=desired,
    )


def facts_for(draft: Draft, stage: str, job: Job | None) -> dict[str, str]:
    """Return what remedies may name."""
    name = draft.resource.name
    return remedy_facts(
        name=name,
        namespace=draft.plan.namespace,
        claim=draft.resource.spec.storage.claim_name or f"{name}-data",
        stage=container_of(stage),
        job=job.name if job else "",
    )
