"""What to do for a resource, given what there is: a pure function of resource, cluster and time.

Level-triggered: every call looks at the whole and decides anew, so that it does not matter which
event led to it, how often it is called, or whether the operator was restarted in between. What has
to be remembered (attempt numbers, restarts, times) is in the status, which is written before the
actions that follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast

from video2world_common.progress_events import Resumed, Skipped, VolumeSeen, with_warning
from video2world_operator.api.conditions import Reason, Type, find, is_true, phase_of, set_condition
from video2world_operator.api.constants import KIND
from video2world_operator.api.errors import InvalidResource
from video2world_operator.api.status import StageName, StageStatus, Status, parse_status
from video2world_operator.api.timestamps import format_time, parse_time
from video2world_operator.api.validation import parse
from video2world_operator.plan import gang
from video2world_operator.plan.commands import run_folder
from video2world_operator.plan.manifests import owned, pods_hash
from video2world_operator.plan.plan import Plan, make_plan, with_env
from video2world_operator.plan.stage import SAMPLING, Manifest, Stage, container_of
from video2world_operator.reconcile import checkpoint_samples, gang_evidence, gpu_time, stuck_stages
from video2world_operator.reconcile.actions import Action, Apply, Decision, Delete, Policy
from video2world_operator.reconcile.failures import Failure, diagnose
from video2world_operator.reconcile.known_errors import facts, known
from video2world_operator.reconcile.observed_state import Job, Observed, Pod
from video2world_operator.reconcile.progress import update_status
from video2world_operator.reconcile.sidecars import judge_by_workers
from video2world_operator.reconcile.stuck_pods import outlived
from video2world_operator.reconcile.summary import hold, invalid

__all__ = ["outdated", "plan_of", "reconcile"]

Object = Mapping[str, Any]


def reconcile(
    body: Object,
    plan: Plan | InvalidResource,
    observed: Observed,
    now: datetime,
    policy: Policy | None = None,
) -> Decision:
    """Decide for the resource ``body`` (as the API server gives it), whose ``plan`` is what
    :func:`plan_of` makes of it, at ``now`` (with time zone)."""
    metadata = body["metadata"]
    if metadata.get("deletionTimestamp"):
        return Decision(None)  # the garbage collector does the rest
    status = parse_status(body.get("status"))
    if isinstance(plan, InvalidResource):
        return Decision(invalid(status, plan, metadata.get("generation"), now))
    return _Round(plan, status, observed, now, policy or Policy()).decide()


def plan_of(body: Object) -> Plan | InvalidResource:
    """The plan of a resource as the API server gives it, or what is wrong with it.

    It follows from UID and generation: the status is ours to write, and may be an older version's.
    """
    try:
        return make_plan(parse({k: v for k, v in body.items() if k != "status"}))
    except InvalidResource as error:
        return error


def outdated(body: Object, problem: str, now: datetime) -> Status:
    """The status of ``body`` while the definition lacks fields of it: the operator does nothing."""
    return hold(body, Type.DEFINITION, Reason.OUTDATED, now, problem=problem)


class _Round:
    """One reconciliation at work: a copy of the status that is brought up to date."""

    def __init__(
        self,
        plan: Plan,
        status: Status,
        observed: Observed,
        now: datetime,
        policy: Policy,
    ) -> None:
        self.plan, self.resource = plan, plan.resource
        self.status, self.now, self.policy = status, now, policy
        metadata = self.resource.metadata
        self.uid, self.generation = metadata.uid or "", metadata.generation
        self.actions: list[Action] = []
        self.wake: datetime | None = None
        self._volumes: list[VolumeSeen] = []  # that workers have told of
        self.stuck: tuple[str, ...] = ()
        judged = judge_by_workers(observed.jobs, observed.pods, self.uid, now, policy.stuck_after)
        self.outlived, self.sidecars_end = judged.actions, judged.again
        self.seen = replace(observed, jobs=judged.jobs, pods=judged.pods)
        self.jobs = [job for job in judged.jobs if job.owner == self.uid]

    # ------------------------------------------------------------------ the outline

    def decide(self) -> Decision:
        self._accept()
        self._take_in_events()
        failed = self._failed_for_good()
        if not failed and (lost := self._loss()) is not None:
            failed = self._run_again(*lost)
        if failed:
            self._end()
        elif (stage := self._current()) is None:
            self._succeed()
        elif self.resource.spec.suspend:
            self._suspend(stage)
        else:
            self._resume()
            while stage is not None and self._advance(stage):
                stage = self._current()
            if stage is None:
                self._succeed()
            else:
                self._sample_checkpoints(stage)
        self._end_sidecars()
        self._force_out()
        self._summarise()
        return Decision(self.status, tuple(self.actions), self.wake, self.stuck)

    def _accept(self) -> None:
        """Make the status fit the spec: stages, hashes, the conditions that only look."""
        stages = []
        for stage in self.plan.stages:
            entry = self.status.stage_status(stage.name)
            if entry is None:
                entry = StageStatus(name=cast(StageName, stage.name), state="Pending")
            elif entry.inputs_hash not in ("", stage.inputs_hash):
                # its inputs changed: it starts again, its attempts are counted on
                if stage.name == "train":
                    self._close("SpecChanged", "", charged=False)
                entry = _afresh(entry)
            entry.inputs_hash = stage.inputs_hash
            stages.append(entry)
        self.status.stages = stages
        if self.status.start_time is None:
            self.status.start_time = format_time(self.now)
        if self.status.active_since is None:
            self.status.active_since = format_time(self.now)
        self.status.restarts += 0  # written from the start on
        accepted = find(self.status.conditions, Type.ACCEPTED)
        if accepted is None or accepted.reason != Reason.NAME_IN_USE:
            self._set(Type.ACCEPTED, True, Reason.VALID)
        if (found := self.seen.preflight) is not None:
            reason = Reason.CHECKS_FAILED if found else Reason.CHECKS_PASSED
            self._set(Type.PREFLIGHT, not found, reason, problem="; ".join(found))
        if find(self.status.conditions, Type.AUTHORIZED):
            self._set(Type.AUTHORIZED, True, Reason.ALLOWED)
        if find(self.status.conditions, Type.DEFINITION):
            self._set(Type.DEFINITION, True, Reason.CURRENT)

    def _take_in_events(self) -> None:
        for event in self.seen.events:
            update_status(self.status, event, format_time(self.now))
            if isinstance(event, Resumed):
                gpu_time.resumed(self.status, event.iteration, self.resource.spec.gpus)
            if isinstance(event, VolumeSeen):
                self._volumes.append(event)
            if isinstance(event, Skipped):
                entry = self.status.stage_status(event.stage)
                if entry and entry.state == "Pending" and event.inputs_hash == entry.inputs_hash:
                    note = f"; {event.message}" if event.message else ""
                    entry.state, entry.message = "Skipped", f"done before on this volume{note}"
        checkpoint_samples.take_in(self.status, self.jobs, self.seen.pods)

    def _current(self) -> Stage | None:
        """The first stage that is not done."""
        for stage in self.plan.stages:
            if not self._entry(stage.name).is_done:
                return stage
        return None

    # ------------------------------------------------------------------ the volume's content

    def _worked(self) -> bool:
        """Whether stages have left something on the volume."""
        return any(entry.is_done for entry in self.status.stages) or bool(self.status.volume_id)

    def _loss(self) -> tuple[str, str] | None:
        """Identity of the volume that is there now and why it is not the one of before, if so."""
        known = self.status.volume_id
        for event in self._volumes:
            if event.expected and event.expected == known != event.identity:
                return event.identity, f"its worker of stage {event.stage} found another"
        claim = self.seen.claim
        owns = not self.resource.spec.storage.claim_name
        if claim is not None and not claim.found and owns and self._worked():
            return "", f"claim {claim.name} was deleted"
        return None

    def _run_again(self, identity: str, why: str) -> bool:
        """Begin with the first stage again, as often as the trainer may crash; whether that is
        no use any more."""
        status = self.status
        del status.checkpoint, status.progress, status.samples, status.next_attempt_time
        del status.volume_id
        if identity:
            status.volume_id = identity
        self._close("VolumeLost", why, charged=True)
        status.stages = [_afresh(entry) for entry in status.stages]
        self._set(Type.CONTENT, False, Reason.CONTENT_LOST, why=why)
        limit = self.resource.spec.training.max_restarts
        if status.charged_restarts >= limit:
            self._give_up(status.stages[0], Reason.CONTENT_LOST_AGAIN, why=why, limit=limit)
            return True
        status.restarts += 1
        status.charged_restarts += 1
        return False

    # ------------------------------------------------------------------ one stage

    def _advance(self, stage: Stage) -> bool:
        """Bring ``stage`` forward; whether it is done and the next one's turn has come."""
        entry = self._entry(stage.name)
        if self._overdue():
            return False
        ready = self._volume_ready()
        if entry.state in ("Pending", "Suspended"):
            if not ready or self._blocked(stage):
                return False
            self._begin(stage, entry)
        if entry.state == "Restarting":
            self._progressing(stage, entry)
            if not self._others_gone(stage, entry):
                self._orphan()
                return False
            if not (self._may_restart() and ready):
                return False
            entry.state = "Running"
            del self.status.next_attempt_time
        self._set(
            Type.PROGRESSING, True, Reason.STAGE_RUNNING, stage=stage.name, attempt=entry.attempt
        )
        job = next(
            (j for j in self.jobs if (j.stage, j.attempt) == (stage.name, entry.attempt)), None
        )
        if job is None and not entry.job_uid:
            if self._others_gone(stage, entry) and not self._without_job(entry) and ready:
                self._apply(stage, entry)
            else:
                self._await_end((stage.name, entry.attempt), self._pods(entry))
            return False
        if job is not None:
            entry.job_uid = job.uid
        return self._follow(stage, entry, job)

    def _follow(self, stage: Stage, entry: StageStatus, job: Job | None) -> bool:
        """Watch the attempt that is under way; whether it has done the stage's work."""
        pods = self._pods(entry)
        self._count(stage, entry, pods)
        if stage.name == "train" and job is not None:
            self._watch_gang(job, pods)
        if job is not None and job.complete:
            self._finish(stage, entry)
            return True
        if job is not None and job.suspended:
            # by Kueue, which ends and starts its pods, or by hand
            reason = Reason.QUEUED if job.queue else Reason.JOB_SUSPENDED
            self._set(
                Type.PODS_STARTED,
                False,
                reason,
                stage=stage.name,
                queue=job.queue,
                job=job.name,
                namespace=self.plan.namespace,
            )
            return False
        failure = self._diagnose(stage, job, pods)
        if failure is not None:
            self._fail(stage, entry, failure)
            return False
        if job is not None and self._made_of_old_spec(stage, job, pods):
            why = "none of its pods had started, and the spec of its pods has changed"
            self._fail(stage, entry, Failure("SpecChanged", why))
            del self.status.next_attempt_time  # nothing was tried that could fail again
            return False
        self._pods_started(stage, job, pods)
        return False

    def _made_of_old_spec(self, stage: Stage, job: Job, pods: list[Pod]) -> bool:
        """Whether an attempt that does nothing yet is made of what the spec said before."""
        if not job.pods_hash or job.deleting or any(pod.phase != "Pending" for pod in pods):
            return False
        return job.pods_hash != pods_hash(self.resource, stage)

    def _begin(self, stage: Stage, entry: StageStatus) -> None:
        """Decide on a new attempt; its number is in the status before its Job exists.

        A stage that was taken out of the spec and is back has Jobs of which the status knows not.
        """
        numbers = [job.attempt for job in self.jobs if job.stage == stage.name]
        entry.state, entry.attempt = "Running", max([entry.attempt, *numbers]) + 1
        if entry.start_time is None:
            entry.start_time = format_time(self.now)
        self._none_started(stage)
        entry.clear_pods()
        del entry.completion_time, entry.log_tail, entry.message
        if stage.name == "train":
            self.status.attempt = entry.attempt
            gpu_time.open_attempt(self.status, entry.attempt)
        if stage.name == "inference":
            checkpoint_samples.abandon(self.status)

    def _apply(self, stage: Stage, entry: StageStatus) -> None:
        manifests = self.plan.manifests(stage.name, entry.attempt)
        if stage.name == "train":
            chosen = gang.choose(self.resource, self.seen.capabilities)
            manifests = chosen.apply(manifests)
            self._set(
                Type.GANG,
                chosen.scheduled,
                chosen.reason,
                **chosen.facts,
                evidence=f"It is not known yet whether {chosen.scheduler} runs.",
            )
        for manifest in (*self.plan.shared, *self._told_volume(manifests)):
            self.actions.append(Apply(owned(manifest, self.resource)))

    def _told_volume(self, manifests: tuple[Manifest, ...]) -> tuple[Manifest, ...]:
        """``manifests`` whose worker is told which volume it has to find."""
        identity = self.status.volume_id
        return with_env(manifests, V2W_VOLUME_ID=identity) if identity else manifests

    def _watch_gang(self, job: Job, pods: list[Pod]) -> None:
        """Say whether a scheduler acts on the train group: that an API is served is no sign."""
        before = find(self.status.conditions, Type.GANG)
        chosen = gang.choose(self.resource, self.seen.capabilities)
        waits = (chosen.reason, Reason.GANG_UNATTENDED)
        if chosen.reason not in gang.WAYS or before is None or before.status == "True":
            return
        if before.reason not in waits:
            return  # what was served when it was made is not served any more
        if gang_evidence.acts(chosen.reason, self.seen.pod_group, job, pods):
            self._set(
                Type.GANG,
                True,
                chosen.reason,
                **chosen.facts,
                evidence="Its scheduler has acted on them.",
            )
            return
        if before.status != "Unknown":
            return
        since = parse_time(before.last_transition_time) or self.now
        if self._reached(since + timedelta(seconds=self.policy.unattended)):
            what = f"PodGroup {job.name}" if chosen.version else f"Job {job.name}"
            bound = f"{self.policy.unattended:.0f}"
            facts = {"what": what, "seconds": bound, "scheduler": chosen.scheduler}
            self._set(Type.GANG, False, Reason.GANG_UNATTENDED, **facts)

    def _finish(self, stage: Stage, entry: StageStatus) -> None:
        skipped = [e for e in self.seen.events if isinstance(e, Skipped) and e.stage == stage.name]
        entry.state, entry.active = "Skipped" if skipped else "Succeeded", 0
        entry.completion_time = format_time(self.now)
        del entry.message
        if note := next((event.message for event in skipped if event.message), ""):
            entry.message = note
        if stage.name == "inference":
            checkpoint_samples.conclude(self.status)
        if stage.name == "train":
            self._close("Succeeded", "", charged=False)
            if (progress := self.status.progress) is not None:
                done = progress.iteration = progress.iterations
                progress.text, progress.eta_seconds, progress.eta = f"{done}/{done}", 0, "0s"

    def _diagnose(self, stage: Stage, job: Job | None, pods: list[Pod]) -> Failure | None:
        if stage.name == "train" or job is None or job.deleting:
            return diagnose(job, pods)
        if not job.failed:
            return None  # one pod more or less is the Job controller's affair
        found = diagnose(job, [p for p in pods if p.deleted is None])
        if found is None or found.reason == "UserError":
            return found
        # the Job controller has tried again as often as its backoffLimit says
        return Failure(
            found.reason, found.message, found.charged, True, found.exit_code, found.tail
        )

    # ------------------------------------------------------------------ failure and restart

    def _fail(self, stage: Stage, entry: StageStatus, failure: Failure) -> None:
        training = self.resource.spec.training
        limit, charged = training.max_restarts, self.status.charged_restarts
        entry.log_tail = failure.tail
        if stage.name == "train":
            self._close(failure.reason, failure.message, charged=failure.charged)
        if failure.final or (failure.charged and charged >= limit):
            facts = {"stage": stage.name, "message": failure.message, "restarts": charged}
            reason = Reason.RESTARTS_EXHAUSTED
            if failure.final:
                user = failure.reason == "UserError"
                reason = Reason.USER_ERROR if user else Reason.STAGE_FAILED
            self._give_up(entry, reason, code=failure.exit_code, **facts)
            return
        self.status.restarts += 1
        wait = float(training.restart_backoff_seconds) if self._short_lived(entry) else 0.0
        if failure.charged:
            self.status.charged_restarts = charged + 1
            wait = min(training.restart_backoff_seconds * 2.0**charged, self.policy.longest_backoff)
        entry.state, entry.attempt = "Restarting", entry.attempt + 1
        entry.message = f"{failure.reason}: {failure.message}"
        entry.clear_pods()
        self.status.next_attempt_time = format_time(self.now + timedelta(seconds=wait))
        if stage.name == "train":
            self.status.attempt = entry.attempt
            gpu_time.open_attempt(self.status, entry.attempt)
        self._progressing(stage, entry)
        self._none_started(stage)
        self._others_gone(stage, entry)

    def _may_restart(self) -> bool:
        """Whether the pause before the next attempt is over.

        A time further ahead than any pause may be was written when the clock was ahead.
        """
        ready = parse_time(self.status.next_attempt_time)
        if ready is None:
            return True
        pause = float(self.resource.spec.training.restart_backoff_seconds)
        charged = self.status.charged_restarts
        longest = max(pause, min(pause * 2.0 ** (charged - 1), self.policy.longest_backoff))
        if ready > self.now + timedelta(seconds=longest + 1):
            ready = self.now + timedelta(seconds=longest)
            self.status.next_attempt_time = format_time(ready)
        return self._reached(ready)

    def _short_lived(self, entry: StageStatus) -> bool:
        """Whether the attempt ended soon after its start: many such in a row must not spin."""
        started = [pod.started for pod in self._pods(entry) if pod.started]
        return not started or self.now - min(started) < timedelta(seconds=self.policy.short_life)

    def _progressing(self, stage: Stage, entry: StageStatus) -> None:
        self._set(
            Type.PROGRESSING,
            True,
            Reason.STOPPING,
            stage=stage.name,
            attempt=entry.attempt,
            message=entry.message,
        )

    def _give_up(self, entry: StageStatus, reason: Reason, **facts: Any) -> None:
        self._set(Type.FAILED, True, reason, **facts)
        self._set(Type.PROGRESSING, False, reason, **facts)
        entry.state, entry.active = "Failed", 0
        entry.completion_time = format_time(self.now)
        entry.message = reason.text(**facts)
        self._end()

    def _failed_for_good(self) -> bool:
        """Whether the resource has failed and nobody has changed the spec since."""
        failed = find(self.status.conditions, Type.FAILED)
        if failed is None or failed.status != "True":
            return False
        if failed.observed_generation == self.generation:
            return True
        self._set(Type.FAILED, False, Reason.RESUMED)
        del self.status.completion_time
        self.status.charged_restarts, self.status.active_since = 0, format_time(self.now)
        for entry in self.status.stages:
            if entry.state == "Failed":
                entry.state = "Pending"
        return False

    def _overdue(self) -> bool:
        """Fail the resource when it has worked for longer than it may."""
        seconds = self.resource.spec.active_deadline_seconds
        since = parse_time(self.status.active_since)
        if seconds is None or since is None:
            return False
        stage = self._current()
        if stage is None or not self._reached(since + timedelta(seconds=seconds)):
            return False
        if stage.name == "train":
            self._close("DeadlineExceeded", "", charged=False)
        self._give_up(self._entry(stage.name), Reason.DEADLINE_EXCEEDED, seconds=seconds)
        return True

    def _others_gone(self, stage: Stage, entry: StageStatus) -> bool:
        """End whatever runs beside the attempt that shall run; whether it has ended."""
        keep = (stage.name, entry.attempt)
        for job in self.jobs:
            if (job.stage, job.attempt) == keep or job.deleting or job.stage == SAMPLING:
                continue
            if not self._over(job) or job.stage == stage.name:
                self.actions.append(Delete("Job", job.name, job.uid))
        return not self._alive(keep)

    def _over(self, job: Job) -> bool:
        """Whether a Job has ended: it shows so, or it did when its stage was found done.

        After a watch was cut the cache may for a moment show a Job as it was before its end.
        """
        entry = self.status.stage_status(job.stage)
        recorded = entry is not None and entry.is_done and entry.attempt == job.attempt
        return job.finished or recorded

    def _alive(self, keep: tuple[str, int] | None = None) -> list[Pod]:
        """Pods that have not ended, but for the attempt ``keep`` and what goes on beside it."""
        left = [p for p in self.seen.pods if not p.over and (p.stage, p.attempt) != keep]
        if keep is not None:
            left = [p for p in left if p.stage != SAMPLING]
        return left

    def _without_job(self, entry: StageStatus) -> bool:
        """Whether pods of an attempt outlive its Job: one that was deleted before it was noted
        down, or one of an earlier resource of this name."""
        attempt = (entry.name, entry.attempt)
        there = any((job.stage, job.attempt) == attempt for job in self.seen.jobs)
        return bool(self._pods(entry)) and not there

    def _await_end(self, keep: tuple[str, int] | None = None, more: Sequence[Pod] = ()) -> None:
        """Report a pod that is waited for: one of ``more``, whose Job is gone, or any but those of
        ``keep``."""
        if self._orphan():
            return
        for pod in more:
            if pod.over and pod.deleted is None:
                self._set(
                    Type.PODS_STARTED,
                    False,
                    Reason.EARLIER_PODS,
                    pod=pod.name,
                    object=f"pod {pod.name}",
                    namespace=self.plan.namespace,
                )
                return
        if left := sorted(p.name for p in (*self._alive(keep), *more)):
            self._set(Type.PODS_STARTED, False, Reason.PODS_ENDING, pod=left[0])

    def _orphan(self) -> bool:
        """Report a pod that is waited for and that no one ends; whether there is one."""
        found = stuck_stages.orphan(self.seen.jobs, self.seen.pods, self.uid)
        if found is not None:
            self._set(
                Type.PODS_STARTED,
                False,
                Reason.EARLIER_PODS,
                pod=found.pod,
                object=found.object,
                namespace=self.plan.namespace,
            )
        return found is not None

    def _end_sidecars(self) -> None:
        """End pods and Jobs whose workers have ended while other containers run on."""
        gone = {action.uid for action in self.actions if isinstance(action, Delete)}
        self.actions += [action for action in self.outlived if action.uid not in gone]
        if self.sidecars_end is not None:
            self._reached(self.sidecars_end)

    def _force_out(self) -> None:
        """Take pods off nodes that do not answer: others wait for them, the Job controller too
        before it makes new ones."""
        forced, again = outlived(self.seen.pods, self.now, self.policy)
        self.actions += forced
        if again is not None:
            self._reached(again)
        told = {action.uid: action.why for action in forced}
        for pod in self.seen.pods:
            if pod.over or pod.deleted is None:
                continue
            if pod.stage != "train":
                if pod.uid in told:
                    self._replace(pod, told[pod.uid])
                continue
            if pod.disruption == "DeletionByTaintManager":
                told.setdefault(pod.uid, f"pod {pod.name} was on {pod.node}, which was lost")
            if pod.uid in told:
                gpu_time.restart_was_not_charged(self.status, "NodeLost", told[pod.uid])

    def _replace(self, pod: Pod, why: str) -> None:
        """Have another Job do the work of one whose pod was forced out: with its podFailurePolicy
        the Job controller waits for the pod to fail, and keeps it by a finalizer until then
        (https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-replacement-policy)."""
        stage = self._current()
        if stage is not None and stage.name == pod.stage:
            entry = self._entry(stage.name)
            here = (entry.state, entry.attempt) == ("Running", pod.attempt)
            if here and entry.job_uid:  # else the pod is one that the attempt still waits for
                self._fail(stage, entry, Failure("NodeLost", why))
        for job in self.jobs:
            gone = Delete("Job", job.name, job.uid)
            if (job.stage, job.attempt) == (pod.stage, pod.attempt) and not (
                job.finished or job.deleting or gone in self.actions
            ):
                self.actions.append(gone)

    # ------------------------------------------------------------------ suspend, resume, end

    def _suspend(self, stage: Stage) -> None:
        """End all pods (they save on SIGTERM); suspended once the last is gone."""
        entry = self._entry(stage.name)
        if is_true(self.status.conditions, Type.SUCCEEDED):  # the spec asks for more by now
            self._again(Type.SUCCEEDED)
        if entry.state in ("Running", "Restarting"):
            if stage.name == "train":
                self._close("Suspended", "", charged=False)
            entry.state = "Suspended"
            entry.clear_pods()
            del self.status.next_attempt_time
            self._none_started(stage)
        if self._nothing_left():
            self._set(Type.PROGRESSING, False, Reason.SUSPENDED, stage=stage.name)
            self._set(Type.SUSPENDED, True, Reason.SUSPENDED, stage=stage.name)
            self._set(Type.PODS_STARTED, False, Reason.NO_PODS)
        else:
            self._set(Type.PROGRESSING, True, Reason.SUSPENDING, stage=stage.name)

    def _nothing_left(self) -> bool:
        """End whatever runs; whether it has ended."""
        for job in self.jobs:
            if not self._over(job) and not job.deleting:
                self.actions.append(Delete("Job", job.name, job.uid))
        self._orphan()
        return not self._alive() and all(map(self._over, self.jobs))

    def _resume(self) -> None:
        for kind in (Type.SUSPENDED, Type.SUCCEEDED):
            if is_true(self.status.conditions, kind):
                self._again(kind)

    def _again(self, kind: Type) -> None:
        """There is work again: it is not suspended, or not at its end, any more."""
        self._set(kind, False, Reason.RESUMED)
        self.status.active_since = format_time(self.now)
        del self.status.completion_time

    def _succeed(self) -> None:
        if not self._nothing_left():
            self._await_end()
            return
        if find(self.status.conditions, Type.CONTENT):
            self._set(Type.CONTENT, True, Reason.CONTENT_KEPT)
        self._set(Type.PROGRESSING, False, Reason.FINISHED)
        self._set(Type.SUCCEEDED, True, Reason.FINISHED)
        self._set(Type.PODS_STARTED, False, Reason.NO_PODS)
        self._end()

    def _end(self) -> None:
        """At the end: the time of it, what is cleaned up, and when the resource itself goes."""
        spec = self.resource.spec
        ended = parse_time(self.status.completion_time)
        if ended is None or ended > self.now:  # written when the clock was ahead
            ended = self.now
            self.status.completion_time = format_time(ended)
        self.actions.clear()
        failed = find(self.status.conditions, Type.FAILED)
        overdue = failed is not None and failed.reason == Reason.DEADLINE_EXCEEDED
        for job in self.jobs:
            # one pod's failure ends its Job, by the Job controller: it gets a moment to do so
            dying = not overdue and not self._reached(
                ended + timedelta(seconds=self.policy.look_again)
            )
            if job.deleting or (dying and not self._over(job)):
                continue
            if spec.cleanup_policy == "All" or not self._over(job):
                self.actions.append(Delete("Job", job.name, job.uid))
        ttl = spec.ttl_seconds_after_finished
        if ttl is not None and self._reached(ended + timedelta(seconds=ttl)):
            self.actions.append(Delete(KIND, self.resource.name, self.uid))

    # ------------------------------------------------------------------ what holds a stage back

    def _blocked(self, stage: Stage) -> bool:
        """Whether the stage may not start yet; a condition then says why."""
        return self._peer_first(stage) or self._samples_first(stage)

    def _volume_ready(self) -> bool:
        claim, spec = self.seen.claim, self.resource.spec
        if claim is None:
            return True
        facts: dict[str, Any] = {"claim": claim.name}
        if not claim.found:
            if not spec.storage.claim_name:
                return True  # it is made with the first stage
            reason = Reason.CLAIM_MISSING
        elif claim.deleting:
            if not (spec.storage.claim_name or self._worked()):
                return True  # that of an earlier resource of this name
            reason = Reason.CLAIM_DELETED
        elif claim.lost:
            reason = Reason.CLAIM_LOST
        elif (
            spec.pods_sharing_volume > 1
            and "ReadWriteMany" not in claim.modes
            and spec.storage.access_mode != "ReadWriteOnce"  # all nodes are one machine's, then
        ):
            reason = Reason.CLAIM_NOT_SHARED
            facts |= {"modes": " and ".join(claim.modes), "nodes": spec.pods_sharing_volume}
        else:
            self._set(Type.VOLUME_READY, True, Reason.CLAIM_FOUND, **facts)
            return True
        self._set(Type.VOLUME_READY, False, reason, **facts)
        since = find(self.status.conditions, Type.VOLUME_READY)
        began = parse_time(since.last_transition_time) if since else None
        waited = self.now - (began or self.now)
        self._look_again(min(waited.total_seconds() / 10, self.policy.seldom))
        return False

    def _peer_first(self, stage: Stage) -> bool:
        """Whether an older resource on this volume does this stage's work, or owns its folder."""
        for peer in self.seen.peers:
            if peer.hashes.get(stage.name) == stage.inputs_hash:
                self._set(Type.PROGRESSING, True, Reason.WAITING, stage=stage.name, peer=peer.name)
                self._look_again()
                return True
            folder = run_folder(self.resource)
            if stage.name == "train" and "train" in peer.hashes and peer.run_folder == folder:
                problem = (
                    f"{peer.name} trains into {folder} on this volume: give this resource another "
                    "spec.training.jobName, or wait for the other's end."
                )
                self._set(Type.ACCEPTED, False, Reason.NAME_IN_USE, problem=problem)
                self._look_again()
                return True
        self._set(Type.ACCEPTED, True, Reason.VALID)
        return False

    # ------------------------------------------------------------------ samples beside training

    def _sample_checkpoints(self, stage: Stage) -> None:
        """Have samples made of the newest checkpoint while training goes on."""
        inference = self.resource.spec.inference
        if not inference.every_checkpoint and not self._sampling_jobs():
            return
        entry = self._entry(stage.name)
        training = stage.name == "train" and entry.state in ("Running", "Restarting")
        step = checkpoint_samples.decide(
            self.status,
            self.jobs,
            self.seen.pods,
            training=training and inference.every_checkpoint,
            total=len(inference.samples),
        )
        for job in step.delete:
            self.actions.append(Delete("Job", job.name, job.uid))
        if step.apply is not None:
            for manifest in self._told_volume(self.plan.sampling(step.apply)):
                self.actions.append(Apply(owned(manifest, self.resource)))
        if step.running is not None:
            if not self._samples_stuck(step.running):
                self._set(Type.SAMPLES, False, Reason.SAMPLING, iteration=step.running)
        elif step.failed is not None:
            iteration, message = step.failed
            self._set(
                Type.SAMPLES, False, Reason.SAMPLES_FAILED, iteration=iteration, message=message
            )
        else:
            self._set(Type.SAMPLES, True, Reason.SAMPLED)

    def _samples_stuck(self, iteration: int) -> bool:
        attempt = (SAMPLING, iteration)
        job = next((j for j in self.jobs if (j.stage, j.attempt) == attempt), None)
        pods = [p for p in self.seen.pods if (p.stage, p.attempt) == attempt]
        return job is not None and self._stuck(Type.SAMPLES, job, pods, job.completions)

    def _sampling_jobs(self) -> list[Job]:
        return [job for job in self.jobs if job.stage == SAMPLING and not job.finished]

    def _samples_first(self, stage: Stage) -> bool:
        """Whether samples begun beside training are still being made."""
        if stage.name != "inference" or not (jobs := self._sampling_jobs()):
            return False
        self._set(
            Type.PROGRESSING,
            True,
            Reason.WAITING_FOR_SAMPLES,
            stage=stage.name,
            iteration=jobs[0].attempt,
        )
        return True

    # ------------------------------------------------------------------ conditions and counts

    def _none_started(self, stage: Stage) -> None:
        """Forget what held up an attempt that is over."""
        self._set(
            Type.PODS_STARTED,
            False,
            Reason.PODS_STARTING,
            stage=stage.name,
            ready=0,
            desired=self._desired(stage),
        )

    def _pods_started(self, stage: Stage, job: Job | None, pods: list[Pod]) -> None:
        for pod in pods:
            if pod.waits:
                rule = known([pod.waits], self._facts(pod.stage, job) | {"pod": pod.name})
                todo = rule.remedy if rule else f"`kubectl describe pod {pod.name}` says more"
                self._set(
                    Type.PODS_STARTED,
                    False,
                    Reason.CONTAINER_WAITS,
                    pod=pod.name,
                    problem=pod.waits,
                    todo=todo,
                )
                return
            if pod.unschedulable:
                self._set(
                    Type.PODS_STARTED,
                    False,
                    Reason.UNSCHEDULABLE,
                    pod=pod.name,
                    problem=pod.unschedulable,
                )
                return
        desired = self._desired(stage)
        if job is not None and self._stuck(Type.PODS_STARTED, job, pods, desired):
            return
        ready = sum(p.ready or p.over for p in pods)
        reason = Reason.PODS_RUNNING if ready >= desired else Reason.PODS_STARTING
        self._set(
            Type.PODS_STARTED,
            ready >= desired,
            reason,
            stage=stage.name,
            ready=ready,
            desired=desired,
        )

    def _stuck(self, kind: Type, job: Job, pods: list[Pod], desired: int) -> bool:
        """Whether a Job makes no progress; the condition ``kind`` then says what is known of it."""
        judged = stuck_stages.judge(
            job, pods, desired, self.seen.kube_events, self.now, self.policy.stuck_after
        )
        if judged.again is not None:
            self._reached(judged.again)
        if not judged.findings:
            return False
        first = judged.findings[0]
        problem = stuck_stages.message(first, self._facts(job.stage, job))
        self._set(kind, False, Reason.NO_PROGRESS, problem=problem)
        self.stuck += judged.uids
        waited = (self.now - first.since).total_seconds()
        self._look_again(min(waited / 10, self.policy.seldom))
        return True

    def _facts(self, stage: str, job: Job | None) -> dict[str, str]:
        """What remedies may name."""
        claim = self.resource.spec.storage.claim_name or f"{self.resource.name}-data"
        return facts(
            name=self.resource.name,
            namespace=self.plan.namespace,
            claim=claim,
            stage=container_of(stage),
            job=job.name if job else "",
        )

    def _count(self, stage: Stage, entry: StageStatus, pods: list[Pod]) -> None:
        entry.desired = self._desired(stage)
        entry.active = sum(not p.over for p in pods)
        entry.ready = sum(p.ready for p in pods)
        entry.succeeded = sum(p.phase == "Succeeded" for p in pods)
        entry.failed = sum(p.phase == "Failed" for p in pods)
        if stage.name == "train":
            nodes = self.resource.spec.nodes
            gpu_time.observe(self.status, pods, self.resource.spec.gpus, nodes, self.now)

    def _summarise(self) -> None:
        """Phase, stage and message for people, and whether the API server took everything."""
        if self.seen.problems:
            problem = "; ".join(self.seen.problems)
            self._set(Type.CHILDREN_APPLIED, False, Reason.REFUSED, problem=problem)
        elif not any(isinstance(action, Apply) for action in self.actions):
            self._set(Type.CHILDREN_APPLIED, True, Reason.APPLIED)
        status, stage = self.status, self._current()
        status.observed_generation = self.generation or 0
        status.stage = stage.name if stage else ""
        status.phase = phase_of(status.conditions, status.stages)
        status.message = self._message()
        content = find(status.conditions, Type.CONTENT)
        if content and content.status == "False" and not is_true(status.conditions, Type.FAILED):
            status.message += f" {content.message}"
        warning = status.progress.warning if status.progress else ""
        status.message = with_warning(status.message, warning)

    def _message(self) -> str:
        """What people should know first."""
        conditions = self.status.conditions
        for kind in (Type.FAILED, Type.SUCCEEDED, Type.SUSPENDED):
            condition = find(conditions, kind)
            if condition is not None and condition.status == "True":
                return condition.message
        for kind in (
            Type.AUTHORIZED,
            Type.ACCEPTED,
            Type.CHILDREN_APPLIED,
            Type.VOLUME_READY,
        ):
            condition = find(conditions, kind)
            if condition is not None and condition.status != "True":
                return condition.message
        started, attended = find(conditions, Type.PODS_STARTED), find(conditions, Type.GANG)
        waits = started is not None and started.reason in (
            Reason.PODS_STARTING,
            Reason.NO_PROGRESS,
        )
        if waits and attended is not None and attended.reason == Reason.GANG_UNATTENDED:
            return attended.message
        if started is not None and started.reason in (
            Reason.UNSCHEDULABLE,
            Reason.CONTAINER_WAITS,
            Reason.QUEUED,
            Reason.NO_PROGRESS,
            Reason.JOB_SUSPENDED,
            Reason.EARLIER_PODS,
            Reason.PODS_ENDING,
        ):
            return started.message
        progressing = find(conditions, Type.PROGRESSING)
        return progressing.message if progressing else ""

    # ------------------------------------------------------------------ small things

    def _set(self, kind: Type, value: bool | None, reason: Reason, **facts: Any) -> None:
        self.status.conditions = set_condition(
            self.status.conditions,
            kind,
            value,
            reason,
            format_time(self.now),
            generation=self.generation,
            **facts,
        )

    def _entry(self, name: str) -> StageStatus:
        """The entry of a stage of the plan, which :meth:`_accept` has made."""
        return next(entry for entry in self.status.stages if entry.name == name)

    def _pods(self, entry: StageStatus) -> list[Pod]:
        key = (entry.name, entry.attempt)
        return sorted(
            (p for p in self.seen.pods if (p.stage, p.attempt) == key), key=lambda p: p.index
        )

    def _desired(self, stage: Stage) -> int:
        return int(stage.job["spec"].get("completions", 1))

    def _close(self, reason: str, message: str, *, charged: bool) -> None:
        gpu_time.close_attempt(
            self.status, self.resource.spec.gpus, self.now, reason, message, charged
        )

    def _reached(self, moment: datetime) -> bool:
        """Whether ``moment`` has come; if not, it is when to look again."""
        if moment <= self.now:
            return True
        self.wake = moment if self.wake is None else min(self.wake, moment)
        return False

    def _look_again(self, seconds: float = 0.0) -> None:
        wait = max(seconds, self.policy.look_again)
        self._reached(self.now + timedelta(seconds=wait))


def _afresh(entry: StageStatus) -> StageStatus:
    """The entry of a stage that begins again; its attempts are counted on."""
    new = StageStatus(name=entry.name, state="Pending")
    if entry.attempt:
        new.attempt = entry.attempt
    if entry.inputs_hash:
        new.inputs_hash = entry.inputs_hash
    return new
