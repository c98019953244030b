"""Every condition type, reason and message of a resource in one place; the phase comes from them.

Conditions have the form of Kubernetes' ``metav1.Condition``: machines wait on their ``type`` and
``reason``; people read ``message`` and the phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

__all__ = ["Phase", "Reason", "Type", "find", "is_true", "phase_of", "set_condition"]


class Type(StrEnum):
    """What can be true, false or unknown of a resource."""

    ACCEPTED = "Accepted"  # the spec is valid and the name is free on the volume
    PROGRESSING = "Progressing"  # a stage runs, or will without anybody's doing
    SUSPENDED = "Suspended"  # stopped on request; nothing is lost
    SUCCEEDED = "Succeeded"  # every stage is finished
    FAILED = "Failed"  # a stage gave up; somebody has to look


class Reason(StrEnum):
    """Why a condition has its status. The value is the API's word; ``text`` is for people."""

    VALID = "Valid"
    INVALID = "Invalid"
    NAME_IN_USE = "NameInUse"
    STAGE_RUNNING = "StageRunning"
    RESTARTING = "Restarting"
    WAITING = "Waiting"
    INTERRUPTED = "Interrupted"
    SUSPENDED = "Suspended"
    FINISHED = "Finished"
    USER_ERROR = "UserError"
    RESTARTS_EXHAUSTED = "RestartsExhausted"
    ENGINE_ERROR = "EngineError"

    def text(self, **facts: Any) -> str:
        """The message, with ``facts`` filled in."""
        return _MESSAGES[self].format(**facts)


_MESSAGES: dict[Reason, str] = {
    Reason.VALID: "The resource is valid.",
    Reason.INVALID: "{problem}",
    Reason.NAME_IN_USE: "{problem}",
    Reason.STAGE_RUNNING: "Stage {stage} runs (attempt {attempt}).",
    Reason.RESTARTING: "Stage {stage} failed (exit code {code}); attempt {attempt} follows "
    "(restart {restart} of {limit}).",
    Reason.WAITING: "Stage {stage} waits for another resource that does the same work.",
    Reason.INTERRUPTED: "Stopped in stage {stage}; run the same command to resume.",
    Reason.SUSPENDED: "Suspended in stage {stage}.",
    Reason.FINISHED: "All stages are finished.",
    Reason.USER_ERROR: "Stage {stage}: {message}",
    Reason.RESTARTS_EXHAUSTED: "Stage {stage} failed (exit code {code}) after {restarts} restarts: "
    "{message}",
    Reason.ENGINE_ERROR: "Stage {stage} could not be run: {message}",
}


class Phase(StrEnum):
    """One word for people."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


def find(conditions: Sequence[Mapping[str, Any]], kind: Type) -> Mapping[str, Any] | None:
    """The condition of type ``kind``, if there is one."""
    return next((c for c in conditions if c.get("type") == kind), None)


def is_true(conditions: Sequence[Mapping[str, Any]], kind: Type) -> bool:
    """Whether the condition ``kind`` is there and True."""
    condition = find(conditions, kind)
    return condition is not None and condition.get("status") == "True"


def set_condition(
    conditions: Sequence[Mapping[str, Any]],
    kind: Type,
    status: bool,
    reason: Reason,
    now: str,
    *,
    generation: int | None = None,
    **facts: Any,
) -> list[dict[str, Any]]:
    """``conditions`` with ``kind`` set; ``lastTransitionTime`` moves only when the status does.

    ``now`` is RFC 3339; ``facts`` fill the reason's message.
    """
    old = find(conditions, kind)
    value = "True" if status else "False"
    same = old is not None and old.get("status") == value
    new: dict[str, Any] = {
        "type": str(kind),
        "status": value,
        "reason": str(reason),
        "message": reason.text(**facts),
        "lastTransitionTime": old["lastTransitionTime"] if same and old is not None else now,
    }
    if generation is not None:
        new["observedGeneration"] = generation
    kept = [dict(c) for c in conditions if c.get("type") != kind]
    return sorted([*kept, new], key=lambda c: [str(t) for t in Type].index(c["type"]))


def phase_of(conditions: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]]) -> Phase:
    """The phase; the only place that derives it.

    An end (failed, succeeded, suspended) outweighs the stages; else the stage that runs gives it.
    """
    for kind, phase in (
        (Type.FAILED, Phase.FAILED),
        (Type.SUCCEEDED, Phase.SUCCEEDED),
        (Type.SUSPENDED, Phase.SUSPENDED),
    ):
        if is_true(conditions, kind):
            return phase
    progressing = find(conditions, Type.PROGRESSING)
    if progressing is not None and progressing.get("reason") == Reason.RESTARTING:
        return Phase.RESTARTING
    begun = any(stage.get("state", "Pending") != "Pending" for stage in stages)
    return Phase.RUNNING if begun else Phase.PENDING
