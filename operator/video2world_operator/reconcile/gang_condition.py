"""Set the condition GangScheduled: whether a scheduler starts the train group as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from video2world_operator.api.conditions import Reason, Type, find
from video2world_operator.api.timestamps import parse_time
from video2world_operator.plan import gang
from video2world_operator.plan.stage import Manifest
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.observed_state import Job, Pod

__all__ = ["as_gang", "watch_gang"]


def as_gang(draft: Draft, manifests: tuple[Manifest, ...]) -> tuple[Manifest, ...]:
    """Return the manifests of the train group as the cluster can schedule them together."""
    chosen = gang.choose(draft.resource, draft.observed.capabilities, draft.nodes)
    draft.set_condition(
        Type.GANG,
        chosen.scheduled,
        chosen.reason,
        **chosen.facts,
        evidence=f"It is not known yet whether {chosen.scheduler} runs.",
    )
    return chosen.apply(manifests)


def watch_gang(draft: Draft, job: Job, pods: Sequence[Pod]) -> None:
    """Report whether a scheduler has acted on the train group.

    That an API is served does not mean that anything acts on its objects.
    """
    condition = find(draft.status.conditions, Type.GANG)
    chosen = gang.choose(draft.resource, draft.observed.capabilities, draft.nodes)
    if chosen.reason not in gang.WAYS or condition is None or condition.status == "True":
        return
    if condition.reason not in (chosen.reason, Reason.GANG_UNATTENDED):
        return  # the API that the group was made for is no longer served
    if _has_acted(chosen.reason, draft.observed.pod_group, job, pods):
        evidence = "Its scheduler has acted on them."
        draft.set_condition(Type.GANG, True, chosen.reason, **chosen.facts, evidence=evidence)
        return
    if condition.status != "Unknown":
        return
    since = parse_time(condition.last_transition_time) or draft.now
    if draft.is_due(since + timedelta(seconds=draft.policy.gang_timeout)):
        draft.set_condition(
            Type.GANG,
            False,
            Reason.GANG_UNATTENDED,
            what=f"PodGroup {job.name}" if chosen.version else f"Job {job.name}",
            seconds=f"{draft.policy.gang_timeout:.0f}",
            scheduler=chosen.scheduler,
        )


def _has_acted(
    reason: Reason, pod_group: Mapping[str, Any] | None, job: Job, pods: Sequence[Pod]
) -> bool:
    """Return whether the scheduler that ``reason`` stands for has left a trace."""
    if reason == Reason.GANG_KUEUE:
        return job.queued  # Kueue's webhook suspends the Job on creation
    if reason == Reason.GANG_VOLCANO and any(pod.node or pod.unschedulable for pod in pods):
        return True  # the pods name Volcano as their scheduler
    status = (pod_group or {}).get("status") or {}
    return any(status.values())
