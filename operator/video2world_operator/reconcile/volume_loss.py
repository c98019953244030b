"""Notice that the volume has lost the results of finished stages, and run all stages again."""

from __future__ import annotations

from video2world_common.progress_events import VolumeSeen
from video2world_operator.api.conditions import Reason, Type
from video2world_operator.api.status import StageStatus
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.failure_policy import fail_resource

__all__ = ["has_results", "reset_entry", "run_again_after_loss"]


def has_results(draft: Draft) -> bool:
    """Return whether stages have left something on the volume."""
    done = any(entry.is_done for entry in draft.status.stages)
    return done or bool(draft.status.volume_id)


def run_again_after_loss(draft: Draft) -> bool:
    """Start with the first stage again if the volume was lost.

    This counts against the backoff limit. Return whether the resource has failed because of it.
    """
    loss = _find_loss(draft)
    if loss is None:
        return False
    identity, why = loss
    status = draft.status
    del status.checkpoint, status.progress, status.samples, status.next_attempt_time
    del status.volume_id
    if identity:
        status.volume_id = identity
    draft.close_attempt("VolumeLost", why, counted=True)
    status.stages = [reset_entry(entry) for entry in status.stages]
    draft.set_condition(Type.CONTENT, False, Reason.CONTENT_LOST, why=why)
    limit = draft.resource.spec.training.max_restarts
    if status.charged_restarts >= limit:
        fail_resource(draft, status.stages[0], Reason.CONTENT_LOST_AGAIN, why=why, limit=limit)
        return True
    status.restarts += 1
    status.charged_restarts += 1
    return False


def reset_entry(entry: StageStatus) -> StageStatus:
    """Return the status of a stage that starts over; attempt numbers continue."""
    new = StageStatus(name=entry.name, state="Pending")
    if entry.attempt:
        new.attempt = entry.attempt
    if entry.inputs_hash:
        new.inputs_hash = entry.inputs_hash
    return new


def _find_loss(draft: Draft) -> tuple[str, str] | None:
    """Return the identity of the volume that has replaced the one of before, and why."""
    known = draft.status.volume_id
    for event in draft.observed.events:
        if not isinstance(event, VolumeSeen) or not event.expected:
            continue
        if event.expected == known != event.identity:
            return event.identity, f"its worker of stage {event.stage} found another"
    claim = draft.observed.claim
    is_own = not draft.resource.spec.storage.claim_name
    if claim is not None and not claim.found and is_own and has_results(draft):
        return "", f"claim {claim.name} was deleted"
    return None
