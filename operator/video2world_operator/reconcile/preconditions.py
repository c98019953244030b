"""Check what has to be true before a stage starts: its volume, other resources, its samples."""

from __future__ import annotations

from typing import Any

from video2world_operator.api.conditions import Reason, Type, find
from video2world_operator.api.timestamps import parse_time
from video2world_operator.plan.commands import run_folder
from video2world_operator.plan.stage import Stage
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.sampling_jobs import unfinished
from video2world_operator.reconcile.volume_loss import has_results

__all__ = ["is_blocked", "is_volume_ready"]


def is_blocked(draft: Draft, stage: Stage) -> bool:
    """Return whether the stage has to wait; a condition then tells what for."""
    return _waits_for_peer(draft, stage) or _waits_for_samples(draft, stage)


def is_volume_ready(draft: Draft) -> bool:
    """Return whether pods can use the claim; the condition VolumeReady tells why not."""
    claim, spec = draft.observed.claim, draft.resource.spec
    if claim is None:
        return True
    facts: dict[str, Any] = {"claim": claim.name}
    if not claim.found:
        if not spec.storage.claim_name:
            return True  # it is created with the first stage
        reason = Reason.CLAIM_MISSING
    elif claim.deleting:
        if not (spec.storage.claim_name or has_results(draft)):
            return True  # it is the claim of an earlier resource of this name
        reason = Reason.CLAIM_DELETED
    elif claim.lost:
        reason = Reason.CLAIM_LOST
    elif (
        spec.pods_sharing_volume > 1
        and "ReadWriteMany" not in claim.modes
        and spec.storage.access_mode != "ReadWriteOnce"  # all pods run on one node then
    ):
        reason = Reason.CLAIM_NOT_SHARED
        facts |= {"modes": " and ".join(claim.modes), "nodes": spec.pods_sharing_volume}
    else:
        draft.set_condition(Type.VOLUME_READY, True, Reason.CLAIM_FOUND, **facts)
        return True
    draft.set_condition(Type.VOLUME_READY, False, reason, **facts)
    condition = find(draft.status.conditions, Type.VOLUME_READY)
    since = parse_time(condition.last_transition_time) if condition else None
    draft.requeue_rarely(since or draft.now)
    return False


def _waits_for_peer(draft: Draft, stage: Stage) -> bool:
    """Return whether an older resource on this volume does the same work or owns the run folder."""
    for peer in draft.observed.peers:
        if peer.hashes.get(stage.name) == stage.inputs_hash:
            draft.set_condition(
                Type.PROGRESSING, True, Reason.WAITING, stage=stage.name, peer=peer.name
            )
            draft.requeue()
            return True
        folder = run_folder(draft.resource)
        if stage.name == "train" and "train" in peer.hashes and peer.run_folder == folder:
            problem = (
                f"{peer.name} trains into {folder} on this volume: give this resource another "
                "spec.training.jobName, or wait for the other's end."
            )
            draft.set_condition(Type.ACCEPTED, False, Reason.NAME_IN_USE, problem=problem)
            draft.requeue()
            return True
    draft.set_condition(Type.ACCEPTED, True, Reason.VALID)
    return False


def _waits_for_samples(draft: Draft, stage: Stage) -> bool:
    """Return whether samples that were begun alongside training are still being made."""
    if stage.name != "inference" or not (jobs := unfinished(draft)):
        return False
    draft.set_condition(
        Type.PROGRESSING,
        True,
        Reason.WAITING_FOR_SAMPLES,
        stage=stage.name,
        iteration=jobs[0].attempt,
    )
    return True
