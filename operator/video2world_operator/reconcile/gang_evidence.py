"""Judge whether a scheduler has acted on the pods of a gang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from video2world_operator.api.conditions import Reason
from video2world_operator.reconcile.observed_state import Job, Pod

__all__ = ["acts"]


def acts(way: str, pod_group: Mapping[str, Any] | None, job: Job, pods: Sequence[Pod]) -> bool:
    """Whether it shows that a scheduler has acted on the group in the way of the reason ``way``."""
    if way == Reason.GANG_KUEUE:
        return job.queued  # its webhook suspends the Job before anyone sees it
    if way == Reason.GANG_VOLCANO and any(pod.node or pod.unschedulable for pod in pods):
        return True  # the pods name Volcano as their scheduler
    status = (pod_group or {}).get("status") or {}
    return any(status.values())
