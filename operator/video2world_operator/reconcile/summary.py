"""Summarize a status for people: phase, stage and message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from video2world_common.progress_events import with_warning
from video2world_operator.api.conditions import (
    Reason,
    Type,
    find,
    is_true,
    phase_of,
    set_condition,
)
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.status import Condition, Status, parse_status
from video2world_operator.api.timestamps import format_time
from video2world_operator.reconcile.actions import Apply
from video2world_operator.reconcile.draft import Draft

__all__ = ["hold", "invalid", "summarize", "unauthorized"]

Object = Mapping[str, Any]


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


def invalid(
    status: Status, error: InvalidResource, generation: int | None, now: datetime
) -> Status:
    """Return ``status`` with the errors of the spec.

    Nothing is started, and nothing that runs is ended: it was started from a valid spec.
    """
    problem = "; ".join(map(str, error.problems))
    status.observed_generation = generation or 0
    return _not_so(status, Type.ACCEPTED, Reason.INVALID, generation, now, problem=problem)


def unauthorized(body: Object, missing: Sequence[str], now: datetime) -> Status:
    """Return the status of ``body`` while the operator lacks the rights ``missing``."""
    return hold(body, Type.AUTHORIZED, Reason.FORBIDDEN, now, missing=", ".join(missing))


def hold(body: Object, kind: Type, reason: Reason, now: datetime, **facts: Any) -> Status:
    """Return the status of ``body`` while the operator leaves it alone; ``kind`` says why."""
    generation = body["metadata"].get("generation")
    return _not_so(parse_status(body.get("status")), kind, reason, generation, now, **facts)


def _not_so(
    status: Status,
    kind: Type,
    reason: Reason,
    generation: int | None,
    now: datetime,
    **facts: Any,
) -> Status:
    status.conditions = set_condition(
        status.conditions, kind, False, reason, format_time(now), generation=generation, **facts
    )
    status.message = reason.text(**facts)
    status.phase = phase_of(status.conditions, status.stages)
    return status
