"""Suspend and resume a resource."""

from __future__ import annotations

from video2world_operator.api.conditions import Reason, Type, is_true
from video2world_operator.api.timestamps import format_time
from video2world_operator.plan.stage import Stage
from video2world_operator.reconcile import pods_started
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.teardown import end_all_attempts

__all__ = ["resume", "suspend"]


def suspend(draft: Draft, stage: Stage) -> None:
    """End all pods, which save a checkpoint on SIGTERM; Suspended is true once they are gone."""
    status, entry = draft.status, draft.entry(stage.name)
    if is_true(status.conditions, Type.SUCCEEDED):  # the spec was extended since
        _restart_clock(draft, Type.SUCCEEDED)
    if entry.state in ("Running", "Restarting"):
        if stage.name == "train":
            draft.close_attempt("Suspended")
        entry.state = "Suspended"
        entry.clear_pods()
        del status.next_attempt_time
        pods_started.reset(draft, stage)
    if end_all_attempts(draft):
        draft.set_condition(Type.PROGRESSING, False, Reason.SUSPENDED, stage=stage.name)
        draft.set_condition(Type.SUSPENDED, True, Reason.SUSPENDED, stage=stage.name)
        draft.set_condition(Type.PODS_STARTED, False, Reason.NO_PODS)
    else:
        draft.set_condition(Type.PROGRESSING, True, Reason.SUSPENDING, stage=stage.name)


def resume(draft: Draft) -> None:
    """Continue a resource that was suspended, or had succeeded before its spec was extended."""
    for kind in (Type.SUSPENDED, Type.SUCCEEDED):
        if is_true(draft.status.conditions, kind):
            _restart_clock(draft, kind)


def _restart_clock(draft: Draft, kind: Type) -> None:
    """Set the condition ``kind`` to False, and start the active deadline again."""
    draft.set_condition(kind, False, Reason.RESUMED)
    draft.status.active_since = format_time(draft.now)
    del draft.status.completion_time
