"""Write the status of a resource that cannot be reconciled at all, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from video2world_operator.api.conditions import Reason, Type, phase_of, set_condition
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.status import Status, parse_status
from video2world_operator.api.timestamps import format_time

__all__ = ["BLOCKING", "invalid", "outdated", "unauthorized"]

Object = Mapping[str, Any]

BLOCKING = (Type.ACCEPTED, Type.AUTHORIZED, Type.DEFINITION)  # conditions that these set


def invalid(
    status: Status, error: InvalidResource, generation: int | None, now: datetime
) -> Status:
    """Return ``status`` with the errors of the spec.

    Nothing is started, and nothing that runs is ended: it was started from a valid spec.
    """
    problem = "; ".join(map(str, error.problems))
    status.observed_generation = generation or 0
    return _blocked(status, Type.ACCEPTED, Reason.INVALID, generation, now, problem=problem)


def unauthorized(body: Object, missing: Sequence[str], now: datetime) -> Status:
    """Return the status of ``body`` while the operator lacks the permissions ``missing``."""
    status, generation = _read(body)
    lacking = ", ".join(missing)
    return _blocked(status, Type.AUTHORIZED, Reason.FORBIDDEN, generation, now, missing=lacking)


def outdated(body: Object, problem: str, now: datetime) -> Status:
    """Return the status of ``body`` while the CRD lacks fields that the operator writes."""
    status, generation = _read(body)
    return _blocked(status, Type.DEFINITION, Reason.OUTDATED, generation, now, problem=problem)


def _read(body: Object) -> tuple[Status, int | None]:
    return parse_status(body.get("status")), body["metadata"].get("generation")


def _blocked(
    status: Status,
    kind: Type,
    reason: Reason,
    generation: int | None,
    now: datetime,
    **facts: Any,
) -> Status:
    """Set the condition ``kind`` to False, and summarize it."""
    status.conditions = set_condition(
        status.conditions, kind, False, reason, format_time(now), generation=generation, **facts
    )
    status.message = reason.text(**facts)
    status.phase = phase_of(status.conditions, status.stages)
    return status
