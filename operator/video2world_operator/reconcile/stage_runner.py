"""Run one stage: start its attempts, follow them, and record how they end."""

from __future__ import annotations

from video2world_common.progress_events import Skipped
from video2world_operator.api.conditions import Reason, Type
from video2world_operator.api.status import StageStatus
from video2world_operator.api.timestamps import format_time
from video2world_operator.plan.labels import EVICTION_COST_ANNOTATION
from video2world_operator.plan.manifests import pods_hash
from video2world_operator.plan.plan import with_env
from video2world_operator.plan.stage import Stage
from video2world_operator.reconcile import (
    checkpoint_samples,
    eviction_cost,
    failure_policy,
    failure_rate,
    gpu_time,
    pods_started,
    queue_wait,
    teardown,
)
from video2world_operator.reconcile.actions import Annotate
from video2world_operator.reconcile.draft import Draft
from video2world_operator.reconcile.elastic_group import begin_group, resize
from video2world_operator.reconcile.failures import Failure
from video2world_operator.reconcile.gang_condition import as_gang, watch_gang
from video2world_operator.reconcile.observed_state import Job, Pod
from video2world_operator.reconcile.preconditions import is_blocked, is_volume_ready

__all__ = ["advance"]


def advance(draft: Draft, stage: Stage) -> bool:
    """Take the next step of ``stage``; return whether it is done, so that the next one follows."""
    entry = draft.entry(stage.name)
    if failure_policy.enforce_deadline(draft, stage):
        return False
    ready = is_volume_ready(draft)
    if entry.state in ("Pending", "Suspended"):
        if not ready or is_blocked(draft, stage):
            return False
        _begin(draft, stage, entry)
    if entry.state == "Restarting":
        failure_policy.report_restart(draft, stage, entry)
        if not teardown.end_other_attempts(draft, stage, entry):
            teardown.report_orphan(draft)
            return False
        if not (failure_policy.may_restart(draft) and ready):
            return False
        entry.state = "Running"
        del draft.status.next_attempt_time
    attempt = (stage.name, entry.attempt)
    draft.set_condition(
        Type.PROGRESSING, True, Reason.STAGE_RUNNING, stage=stage.name, attempt=entry.attempt
    )
    job = next((job for job in draft.jobs if (job.stage, job.attempt) == attempt), None)
    if job is None and not entry.job_uid:
        others_ended = teardown.end_other_attempts(draft, stage, entry)
        if others_ended and not teardown.outlive_their_job(draft, entry) and ready:
            _apply(draft, stage, entry)
        else:
            teardown.report_remaining_pods(draft, attempt, draft.pods_of(entry))
        return False
    if job is not None:
        entry.job_uid = job.uid
    return _follow(draft, stage, entry, job)


def _begin(draft: Draft, stage: Stage, entry: StageStatus) -> None:
    """Decide on a new attempt; its number is in the status before its Job exists.

    Jobs of a stage that was removed from the spec and added again are not in the status.
    """
    numbers = [job.attempt for job in draft.jobs if job.stage == stage.name]
    entry.state = "Running"
    if entry.start_time is None:
        entry.start_time = format_time(draft.now)
    pods_started.reset(draft, stage)
    del entry.completion_time, entry.log_tail, entry.message
    if stage.name == "train":
        begin_group(draft)
    draft.begin_attempt(entry, max([entry.attempt, *numbers]) + 1)
    if stage.name == "inference":
        checkpoint_samples.abandon(draft.status)
    if stage.name == "evaluation":
        del draft.status.evaluation


def _apply(draft: Draft, stage: Stage, entry: StageStatus) -> None:
    manifests = draft.plan.manifests(stage.name, entry.attempt, draft.nodes)
    if stage.name == "train":
        manifests = as_gang(draft, manifests)
        if env := failure_rate.expected_env(draft.status, draft.resource.spec):
            manifests = with_env(manifests, **env)
    draft.apply(draft.plan.shared)
    draft.apply_attempt(manifests)


def _follow(draft: Draft, stage: Stage, entry: StageStatus, job: Job | None) -> bool:
    """Follow the attempt that is under way; return whether it has completed the stage."""
    pods = draft.pods_of(entry)
    _count_pods(draft, stage, entry, pods)
    if job is not None:
        _announce_cost(draft, job)
    if stage.name == "train" and job is not None:
        watch_gang(draft, job, pods)
    if job is not None and job.complete:
        _finish(draft, stage, entry)
        return True
    is_suspended = job is not None and job.suspended and not job.finished
    started = queue_wait.since_resumed(job, pods)
    if not is_suspended:
        failure = failure_policy.find_failure(stage, job, started)
        if failure is not None:
            failure_policy.fail_attempt(draft, stage, entry, failure)
            return False
    if job is not None and _is_outdated(draft, stage, job, pods):
        why = "none of its pods had started, and the spec of its pods has changed"
        failure_policy.fail_attempt(draft, stage, entry, Failure("SpecChanged", why))
        del draft.status.next_attempt_time  # nothing has run that could fail again
        return False
    if job is not None and stage.name == "train" and resize(draft, stage, job, started):
        return False
    if job is not None and is_suspended:
        queue_wait.follow(draft, stage, entry, job, pods)
        return False
    pods_started.report_pods(draft, stage, job, pods)
    return False


def _is_outdated(draft: Draft, stage: Stage, job: Job, pods: list[Pod]) -> bool:
    """Return whether an attempt that has not started yet was made from an earlier spec."""
    if not job.pods_hash or job.deleting or any(pod.phase != "Pending" for pod in pods):
        return False
    return job.pods_hash != pods_hash(draft.resource, stage)


def _count_pods(draft: Draft, stage: Stage, entry: StageStatus, pods: list[Pod]) -> None:
    entry.desired = pods_started.desired_pods(draft, stage)
    entry.active = sum(not pod.over for pod in pods)
    entry.ready = sum(pod.ready for pod in pods)
    entry.succeeded = sum(pod.phase == "Succeeded" for pod in pods)
    entry.failed = sum(pod.phase == "Failed" for pod in pods)
    if stage.name == "train":
        spec = draft.resource.spec
        gpu_time.observe(draft.status, pods, spec, draft.now)
        eviction_cost.observe(draft.status, pods, spec.gpus, spec.nodes, draft.now)


def _announce_cost(draft: Draft, job: Job) -> None:
    """Annotate the train Job with what its eviction would cost, if that changed by a step."""
    cost = eviction_cost.announced(draft.status.eviction_cost) if job.stage == "train" else 0
    if cost != job.eviction_cost and not job.deleting:
        values = {EVICTION_COST_ANNOTATION: str(cost)}
        draft.actions.append(Annotate("Job", job.name, job.uid, values))


def _finish(draft: Draft, stage: Stage, entry: StageStatus) -> None:
    """Record that the stage is done."""
    status, events = draft.status, draft.observed.events
    skipped = [
        event for event in events if isinstance(event, Skipped) and event.stage == stage.name
    ]
    entry.state, entry.active = "Skipped" if skipped else "Succeeded", 0
    entry.completion_time = format_time(draft.now)
    del entry.message
    if note := next((event.message for event in skipped if event.message), ""):
        entry.message = note
    if stage.name == "inference":
        checkpoint_samples.conclude(status)
    if stage.name == "train":
        draft.close_attempt("Succeeded")
        if (progress := status.progress) is not None:
            done = progress.iteration = progress.iterations
            progress.text, progress.eta_seconds, progress.eta = f"{done}/{done}", 0, "0s"
