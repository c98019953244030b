"""Summarize a status for people: phase, stage and message."""

from __future__ import annotations

from collections.abc import Sequence

from video2world_common.progress_events import with_warning
from video2world_operator.api.conditions import (
    Reason,
    Type,
    find,
    is_true,
    phase_of,
)
from video2world_operator.api.status import Condition
from video2world_operator.api.timestamps import format_time
from video2world_operator.reconcile.actions import Apply
from video2world_operator.reconcile.actions_followed import report_actions
from video2world_operator.reconcile.draft import Draft

__all__ = ["summarize"]


_WAITING = (
    Reason.UNSCHEDULABLE,
    Reason.CONTAINER_WAITS,
    Reason.QUEUED,
    Reason.NO_PROGRESS,
    Reason.JOB_SUSPENDED,
    Reason.EARLIER_PODS,
    Reason.PODS_ENDING,
)


def summarize(draft: Draft) -> None:
    """Set phase, stage, message, and whether the API server accepted every object."""
    status, problems = draft.status, draft.observed.problems
    if problems:
        problem = "; ".join(problems)
        draft.set_condition(Type.CHILDREN_APPLIED, False, Reason.REFUSED, problem=problem)
    elif not any(isinstance(action, Apply) for action in draft.actions):
        draft.set_condition(Type.CHILDREN_APPLIED, True, Reason.APPLIED)
    report_actions(status, format_time(draft.now), draft.generation)
    stage = draft.current_stage()
    status.observed_generation = draft.generation or 0
    status.stage = stage.name if stage else ""
    status.phase = phase_of(status.conditions, status.stages)
    message = _message(status.conditions)
    content = find(status.conditions, Type.CONTENT)
    if content and content.status == "False" and not is_true(status.conditions, Type.FAILED):
        message += f" {content.message}"
    status.message = with_warning(message, status.progress.warning if status.progress else "")


def _message(conditions: Sequence[Condition]) -> str:
    """Return the message of the condition that matters most."""
    for kind in (Type.FAILED, Type.SUCCEEDED, Type.SUSPENDED):
        condition = find(conditions, kind)
        if condition is not None and condition.status == "True":
            return condition.message
    for kind in (Type.AUTHORIZED, Type.ACCEPTED, Type.CHILDREN_APPLIED, Type.VOLUME_READY):
        condition = find(conditions, kind)
        if condition is not None and condition.status != "True":
            return condition.message
    started, gang = find(conditions, Type.PODS_STARTED), find(conditions, Type.GANG)
    if started is not None:
        waits = started.reason in (Reason.PODS_STARTING, Reason.NO_PROGRESS)
        if waits and gang is not None and gang.reason == Reason.GANG_UNATTENDED:
            return gang.message
        if started.reason in _WAITING:
            return started.message
    progressing = find(conditions, Type.PROGRESSING)
    return progressing.message if progressing else ""
