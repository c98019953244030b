"""Summarise a status: phase, message and the conditions of an invalid spec."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from video2world_operator.api.conditions import Reason, Type, phase_of, set_condition
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.timestamps import _text
from video2world_operator.reconcile.actions import Decision
from video2world_operator.reconcile.status_draft import Body

__all__ = ["unauthorized"]


def _invalid(
    status: dict[str, Any], error: InvalidResource, generation: int | None, now: datetime
) -> Decision:
    """Nothing is started, and nothing that runs is ended: the spec it runs by was valid."""
    problem = "; ".join(map(str, error.problems))
    conditions = set_condition(
        status.get("conditions", []),
        Type.ACCEPTED,
        False,
        Reason.INVALID,
        _text(now),
        generation=generation,
        problem=problem,
    )
    status |= {"conditions": conditions, "observedGeneration": generation or 0}
    status["message"] = Reason.INVALID.text(problem=problem)
    status["phase"] = str(phase_of(conditions, status.get("stages", [])))
    return Decision(status)


def unauthorized(body: Body, missing: Sequence[str], now: datetime) -> Mapping[str, Any]:
    """The status of ``body`` while the operator may not do what is ``missing``: it does nothing."""
    return _held(body, Type.AUTHORIZED, Reason.FORBIDDEN, now, missing=", ".join(missing))


def _held(body: Body, kind: Type, reason: Reason, now: datetime, **facts: Any) -> dict[str, Any]:
    status = copy.deepcopy(dict(body.get("status") or {}))
    status["conditions"] = set_condition(
        status.get("conditions", []),
        kind,
        False,
        reason,
        _text(now),
        generation=body["metadata"].get("generation"),
        **facts,
    )
    status["message"] = reason.text(**facts)
    status["phase"] = str(phase_of(status["conditions"], status.get("stages", [])))
    return status
