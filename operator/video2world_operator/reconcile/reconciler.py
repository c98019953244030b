"""Decide what to do for a resource: a pure function of the resource, the cluster and the time.

It is level-triggered: every call considers the whole state anew, so that it does not matter which
event led to it, how often it is called, or whether the operator was restarted in between. What has
to be remembered (attempt numbers, restarts, times) is in the status, which is written before the
actions that follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from video2world_common.progress_events import Resumed, Skipped
from video2world_operator.api.conditions import Reason, Type, find
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.status import StageName, StageStatus, Status, parse_status
from video2world_operator.api.timestamps import format_time
from video2world_operator.api.validation import parse
from video2world_operator.plan.plan import Plan, make_plan
from video2world_operator.reconcile import (
    checkpoint_samples,
    completion,
    failure_policy,
    failure_rate,
    gpu_time,
    suspension,
    volume_loss,
)
from video2world_operator.reconcile.actions import Decision, Delete, Policy
from video2world_operator.reconcile.blocked_status import BLOCKING, invalid
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.elastic_group import accept_min_nodes
from video2world_operator.reconcile.observed_state import ObservedState
from video2world_operator.reconcile.progress import update_status
from video2world_operator.reconcile.sampling_jobs import run_sampling
from video2world_operator.reconcile.sidecars import judge_by_workers
from video2world_operator.reconcile.stage_runner import advance
from video2world_operator.reconcile.stuck_pods import force_delete_stuck_pods
from video2world_operator.reconcile.summary import summarize

__all__ = ["plan_of", "reconcile"]

Object = Mapping[str, Any]


def reconcile(
    body: Object,
    plan: Plan | InvalidResource,
    observed: ObservedState,
    now: datetime,
    policy: Policy | None = None,
) -> Decision:
    """Decide what to do for a resource.

    Args:
        body: the resource as the API server returns it.
        plan: the result of :func:`plan_of` for it.
        observed: its children and what else is known about the cluster.
        now: the time, with time zone.
        policy: the operator's bounds; default those of :class:`Policy`.
    """
    metadata = body["metadata"]
    if metadata.get("deletionTimestamp"):
        return Decision(None)  # the garbage collector deletes the children
    status = parse_status(body.get("status"))
    if isinstance(plan, InvalidResource):
        return Decision(invalid(status, plan, metadata.get("generation"), now))
    return Reconciler(plan, status, observed, now, policy or Policy()).decide()


def plan_of(body: Object) -> Plan | InvalidResource:
    """Return the plan of a resource as the API server returns it, or what is wrong with it.

    The status is left out: it is ours to write, and another version may have written it.
    """
    try:
        return make_plan(parse({k: v for k, v in body.items() if k != "status"}))
    except InvalidResource as error:
        return error


class Reconciler:
    """One reconciliation of a valid resource: its outline."""

    def __init__(
        self, plan: Plan, status: Status, observed: ObservedState, now: datetime, policy: Policy
    ) -> None:
        uid = plan.resource.metadata.uid or ""
        self._judged = judge_by_workers(observed.jobs, observed.pods, uid, now, policy.stuck_after)
        observed = replace(observed, jobs=self._judged.jobs, pods=self._judged.pods)
        self._draft = Draft(plan, status, observed, now, policy)

    def decide(self) -> Decision:
        """Return the new status and the actions that follow from it."""
        draft = self._draft
        self._accept_spec()
        self._apply_events()
        if failure_policy.stays_failed(draft) or volume_loss.run_again_after_loss(draft):
            completion.clean_up(draft)
        else:
            self._run_stages()
        self._end_sidecars()
        force_delete_stuck_pods(draft)
        summarize(draft)
        return draft.decision()

    def _accept_spec(self) -> None:
        """Make the status fit the spec: its stages, their input hashes, the first conditions."""
        draft, status = self._draft, self._draft.status
        edited = not self._is_accepted_spec()
        stages = []
        for stage in draft.plan.stages:
            entry = status.stage_status(stage.name)
            if entry is None:
                entry = StageStatus(name=cast(StageName, stage.name), state="Pending")
            elif edited and entry.inputs_hash not in ("", stage.inputs_hash):
                if stage.name == "train":
                    draft.close_attempt("SpecChanged")
                entry = volume_loss.reset_entry(entry)
            entry.inputs_hash = stage.inputs_hash
            stages.append(entry)
        status.stages = stages
        accept_min_nodes(draft)
        if status.stage_status("evaluation") is None:
            del status.evaluation
        status.start_time = status.start_time or format_time(draft.now)
        status.active_since = status.active_since or format_time(draft.now)
        status.restarts += 0  # written even if there are none
        accepted = find(status.conditions, Type.ACCEPTED)
        if accepted is None or accepted.reason != Reason.NAME_IN_USE:
            draft.set_condition(Type.ACCEPTED, True, Reason.VALID)
        if (found := draft.observed.preflight) is not None:
            reason = Reason.CHECKS_FAILED if found else Reason.CHECKS_PASSED
            draft.set_condition(Type.PREFLIGHT, not found, reason, problem="; ".join(found))
        if find(status.conditions, Type.AUTHORIZED):
            draft.set_condition(Type.AUTHORIZED, True, Reason.ALLOWED)
        if find(status.conditions, Type.DEFINITION):
            draft.set_condition(Type.DEFINITION, True, Reason.CURRENT)

    def _is_accepted_spec(self) -> bool:
        """Return whether the stages in the status are already those of this spec.

        A stage whose hash differs nevertheless was hashed by another version of the operator. Its
        result is still that of the spec, and an upgrade must not repeat it. Conditions that block
        a resource do not count: they are also set for a spec that is refused. An older operator
        refuses every spec for a moment, when the new CRD adds defaults that it does not know.
        """
        generation = self._draft.generation
        conditions = self._draft.status.conditions
        accepted = (c.observed_generation for c in conditions if c.type not in BLOCKING)
        return generation is not None and generation in accepted

    def _apply_events(self) -> None:
        """Bring the status up to date with what the workers have reported."""
        draft, status = self._draft, self._draft.status
        for event in draft.observed.events:
            update_status(status, event, format_time(draft.now))
            if isinstance(event, Resumed):
                failure_rate.correct(status, event.iteration)
                gpu_time.correct_start(status, event.iteration, draft.resource.spec)
            if isinstance(event, Skipped):
                entry = status.stage_status(event.stage)
                if entry and entry.state == "Pending" and event.inputs_hash == entry.inputs_hash:
                    note = f"; {event.message}" if event.message else ""
                    entry.state, entry.message = "Skipped", f"done before on this volume{note}"
        checkpoint_samples.record_ended_jobs(status, draft.jobs, draft.observed.pods)

    def _run_stages(self) -> None:
        draft = self._draft
        stage = draft.current_stage()
        if stage is not None and draft.resource.spec.suspend:
            suspension.suspend(draft, stage)
            return
        if stage is not None:
            suspension.resume(draft)
        while stage is not None and advance(draft, stage):
            stage = draft.current_stage()
        if stage is None:
            completion.succeed(draft)
        else:
            run_sampling(draft, stage)

    def _end_sidecars(self) -> None:
        """End pods and Jobs whose workers have ended while other containers still run."""
        draft = self._draft
        deleted = {action.uid for action in draft.actions if isinstance(action, Delete)}
        draft.actions += [action for action in self._judged.actions if action.uid not in deleted]
        if self._judged.check_at is not None:
            draft.is_due(self._judged.check_at)
