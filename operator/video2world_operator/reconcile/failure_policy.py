"""Decide what follows a failure: another attempt after a pause, or the end of the resource.

A restart counts against ``spec.training.maxRestarts``, the backoff limit, only if the trainer
itself caused it. Lost nodes, preemption and the like are not counted.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from video2world_operator.api.conditions import Reason, Type, find
from video2world_operator.api.status import StageStatus
from video2world_operator.api.timestamps import format_time, parse_time
from video2world_operator.plan.stage import Stage
from video2world_operator.reconcile import pods_started
from video2world_operator.reconcile.actions_followed import fails_the_run
from video2world_operator.reconcile.completion import clean_up
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.failures import Failure, diagnose
from video2world_operator.reconcile.observed_state import Job, Pod
from video2world_operator.reconcile.teardown import end_other_attempts

__all__ = [
    "enforce_deadline",
    "fail_attempt",
    "fail_resource",
    "find_failure",
    "may_restart",
    "report_restart",
    "stays_failed",
]


def find_failure(stage: Stage, job: Job | None, pods: list[Pod]) -> Failure | None:
    """Return why the attempt cannot continue; None while it can.

    Any pod's failure ends an attempt at training. In the other stages the Job controller replaces
    failed pods itself, up to the Job's backoffLimit.
    """
    if stage.name == "train" or job is None or job.deleting:
        return diagnose(job, pods)
    if not job.failed:
        return None
    failure = diagnose(job, [pod for pod in pods if pod.deleted is None])
    if failure is None or failure.reason == "UserError":
        return failure
    return replace(failure, final=True)


def fail_attempt(draft: Draft, stage: Stage, entry: StageStatus, failure: Failure) -> None:
    """End an attempt, and schedule the next one if the policy allows another."""
    status, training = draft.status, draft.resource.spec.training
    counted = status.charged_restarts
    entry.log_tail = failure.tail
    if stage.name == "train":
        draft.close_attempt(failure.reason, failure.message, counted=failure.counted)
    if failure.final or (failure.counted and counted >= training.max_restarts):
        reason = Reason.RESTARTS_EXHAUSTED
        if failure.final:
            user_error = failure.reason == "UserError"
            reason = Reason.USER_ERROR if user_error else Reason.STAGE_FAILED
            evaluation = draft.resource.spec.evaluation if stage.name == "evaluation" else None
            if user_error and fails_the_run(status, evaluation):
                reason = Reason.ACTIONS_IGNORED
        facts = {"stage": stage.name, "message": failure.message, "restarts": counted}
        fail_resource(draft, entry, reason, code=failure.exit_code, **facts)
        return
    pause = float(training.restart_backoff_seconds) if _is_short_lived(draft, entry) else 0.0
    if failure.counted:
        status.charged_restarts = counted + 1
        pause = _backoff(draft, counted)
    status.restarts += 1
    status.next_attempt_time = format_time(draft.now + timedelta(seconds=pause))
    entry.state, entry.message = "Restarting", f"{failure.reason}: {failure.message}"
    draft.begin_attempt(entry, entry.attempt + 1)
    report_restart(draft, stage, entry)
    pods_started.reset(draft, stage)
    end_other_attempts(draft, stage, entry)


def fail_resource(draft: Draft, entry: StageStatus, reason: Reason, **facts: Any) -> None:
    """Fail the resource in the stage of ``entry``; it needs attention."""
    draft.set_condition(Type.FAILED, True, reason, **facts)
    draft.set_condition(Type.PROGRESSING, False, reason, **facts)
    entry.state, entry.active = "Failed", 0
    entry.completion_time = format_time(draft.now)
    entry.message = reason.text(**facts)
    clean_up(draft)


def stays_failed(draft: Draft) -> bool:
    """Return whether the resource has failed; a change of its spec since then starts it again."""
    status = draft.status
    failed = find(status.conditions, Type.FAILED)
    if failed is None or failed.status != "True":
        return False
    if failed.observed_generation == draft.generation:
        return True
    draft.set_condition(Type.FAILED, False, Reason.RESUMED)
    del status.completion_time
    status.charged_restarts, status.active_since = 0, format_time(draft.now)
    for entry in status.stages:
        if entry.state == "Failed":
            entry.state = "Pending"
    return False


def enforce_deadline(draft: Draft, stage: Stage) -> bool:
    """Fail the resource once it exceeds its activeDeadlineSeconds; return whether it does."""
    seconds = draft.resource.spec.active_deadline_seconds
    since = parse_time(draft.status.active_since)
    if seconds is None or since is None:
        return False
    if not draft.is_due(since + timedelta(seconds=seconds)):
        return False
    if stage.name == "train":
        draft.close_attempt("DeadlineExceeded")
    fail_resource(draft, draft.entry(stage.name), Reason.DEADLINE_EXCEEDED, seconds=seconds)
    return True


def may_restart(draft: Draft) -> bool:
    """Return whether the pause before the next attempt is over.

    A time further ahead than the longest pause was written when the clock was ahead.
    """
    status = draft.status
    ready = parse_time(status.next_attempt_time)
    if ready is None:
        return True
    base = float(draft.resource.spec.training.restart_backoff_seconds)
    longest = max(base, _backoff(draft, status.charged_restarts - 1))
    if ready > draft.now + timedelta(seconds=longest + 1):
        ready = draft.now + timedelta(seconds=longest)
        status.next_attempt_time = format_time(ready)
    return draft.is_due(ready)


def report_restart(draft: Draft, stage: Stage, entry: StageStatus) -> None:
    """Report that the next attempt waits for the end of the previous one's pods."""
    draft.set_condition(
        Type.PROGRESSING,
        True,
        Reason.STOPPING,
        stage=stage.name,
        attempt=entry.attempt,
        message=entry.message,
    )


def _backoff(draft: Draft, counted: int) -> float:
    """Return the seconds before the next attempt after so many counted restarts."""
    base = draft.resource.spec.training.restart_backoff_seconds
    return min(base * 2.0**counted, draft.policy.max_backoff)


def _is_short_lived(draft: Draft, entry: StageStatus) -> bool:
    """Return whether the attempt ended soon after its start: many of them must not spin."""
    started = [pod.started for pod in draft.pods_of(entry) if pod.started]
    bound = timedelta(seconds=draft.policy.short_lived)
    return not started or draft.now - min(started) < bound
