"""Summarise a status: phase, message and the conditions of an invalid spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from video2world_operator.api.conditions import Reason, Type, phase_of, set_condition
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.status import Status, parse_status
from video2world_operator.api.timestamps import format_time

__all__ = ["hold", "invalid", "unauthorized"]

Object = Mapping[str, Any]


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
