"""Report whether the model follows its actions, as the evaluation stage has measured it."""

from __future__ import annotations

from video2world_operator.api.conditions import Reason, Type, find, set_condition
from video2world_operator.api.evaluation_spec import EvaluationSpec
from video2world_operator.api.status import Status

__all__ = ["fails_the_run", "report_actions"]


def report_actions(status: Status, now: str, generation: int | None = None) -> None:
    """Set the condition ActionsFollowed from ``status.evaluation``, or remove it without one.

    ``now`` is RFC 3339; ``generation`` is that of the spec.
    """
    measured = status.evaluation and status.evaluation.actions
    if measured:
        reason = Reason.ACTIONS_FOLLOWED if measured.followed else Reason.ACTIONS_IGNORED
        status.conditions = set_condition(
            status.conditions,
            Type.ACTIONS,
            measured.followed,
            reason,
            now,
            generation=generation,
            message=measured.text,
        )
    elif find(status.conditions, Type.ACTIONS):
        status.conditions = [one for one in status.conditions if one.type != Type.ACTIONS]


def fails_the_run(status: Status, evaluation: EvaluationSpec | None) -> bool:
    """Return whether the evaluation stage failed because the model ignores its actions."""
    measured = status.evaluation and status.evaluation.actions
    asked = evaluation is not None and evaluation.fail_when_actions_ignored
    return bool(asked and measured and not measured.followed)
