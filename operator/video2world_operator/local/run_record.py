"""Keep the status of a local run, and write it to the state file after each change."""

from __future__ import annotations

import errno
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from video2world_common.progress_events import Event, with_warning
from video2world_operator.api.conditions import Reason, Type, finished, phase_of, set_condition
from video2world_operator.api.status import (
    GroupSizeStatus,
    StageName,
    StageStatus,
    State,
    Status,
    dump_status,
    parse_status,
)
from video2world_operator.api.timestamps import format_time
from video2world_operator.local.pods import PodGroup
from video2world_operator.local.state import RunRefused, StateFolder
from video2world_operator.plan.plan import Plan
from video2world_operator.reconcile import (
    checkpoint_samples,
    eviction_cost,
    failure_rate,
    gpu_time,
)
from video2world_operator.reconcile.actions_followed import fails_the_run, report_actions
from video2world_operator.reconcile.observed_state import Pod
from video2world_operator.reconcile.progress import update_status

__all__ = ["RunRecord"]

SAVE_SECONDS = 1.0  # between two writes of the state because of progress


def _now() -> str:
    return format_time(datetime.now(UTC))


class RunRecord:
    """The status of one run of a plan, and the number of attempts at each stage."""

    def __init__(self, plan: Plan, folder: StateFolder, source: Path) -> None:
        self.folder = folder
        self._plan, self._source = plan, source
        self._spec = plan.resource.spec
        self._attempts: dict[str, int] = {}
        self._status = Status()
        self._saved_at = 0.0  # on the monotonic clock

    @property
    def volume_id(self) -> str:
        """The identity of the volume, as the workers reported it; empty before they have."""
        return self._status.volume_id

    def open(self) -> bool:
        """Continue the record of the last run; returns False if that was on another volume.

        Raises:
            RunRefused: the name belongs to another file.
        """
        before = self.folder.read()
        owner = before.get("source")
        if owner and owner != str(self._source) and Path(owner).exists():
            raise RunRefused(
                f"metadata.name: {self._plan.name} on {self.folder.volume} belongs to {owner}; "
                "choose another name or another --volume"
            )
        status = parse_status(before.get("status"))
        same_volume = status.volume_id in ("", self.folder.volume_id)
        if not same_volume:
            status = Status()
        self._attempts = before.get("attempts", {})
        del status.phase, status.stage, status.message, status.completion_time
        status.restarts += 0  # written even if there are none
        status.start_time = status.start_time or _now()
        status.conditions = []
        status.stages = [
            StageStatus(
                name=cast(StageName, stage.name), state="Pending", inputs_hash=stage.inputs_hash
            )
            for stage in self._plan.stages
        ]
        self._status = status
        if status.stage_status("evaluation") is None:
            del status.evaluation
        checkpoint_samples.abandon(self._status)
        self.close_attempt("Killed", "v2w run was killed", counted=False)  # if one is still open
        self.set_condition(Type.ACCEPTED, True, Reason.VALID)
        self.save()
        return same_volume

    # ------------------------------------------------------------------ stages and attempts

    def start_attempt(self, stage: str, nodes: int, why: str) -> int:
        """Record that an attempt at a stage starts; returns its number, from 1.

        ``nodes`` are those of the training group; ``why`` tells why these are not all.
        """
        attempt = self._attempts[stage] = int(self._attempts.get(stage, 0)) + 1
        self.set_condition(
            Type.PROGRESSING, True, Reason.STAGE_RUNNING, stage=stage, attempt=attempt
        )
        if stage == "train":
            self._set_group_size(nodes, why)
            gpu_time.open_attempt(self._status, attempt, nodes)
        if stage == "evaluation":
            del self._status.evaluation
        self._set_stage(stage, "Running", attempt=attempt, start_time=_now())
        return attempt

    def attempt_env(self, stage: str) -> dict[str, str]:
        """Return the environment of an attempt that follows from the run so far."""
        env = {"V2W_VOLUME_ID": self.volume_id} if self.volume_id else {}
        if stage == "train":
            env |= failure_rate.expected_env(self._status, self._spec)
        return env

    def _set_group_size(self, nodes: int, why: str) -> None:
        asked, usable = self._spec.nodes, list(self._spec.usable_nodes)
        if len(usable) < 2:
            del self._status.group_size
            return
        size = GroupSizeStatus(asked=asked, running=nodes, usable=usable, text=f"{nodes}/{asked}")
        if why:
            size.message = why
        self._status.group_size = size
        complete = nodes == asked
        reason = Reason.GROUP_COMPLETE if complete else Reason.GROUP_SHRUNK
        self.set_condition(Type.FULL_SIZE, complete, reason, nodes=nodes, asked=asked, why=why)

    def close_attempt(self, reason: str, message: str, *, counted: bool) -> None:
        """End the record of the attempt at training, if one is open."""
        now = datetime.now(UTC)
        gpu_time.close_attempt(self._status, self._spec, now, reason, message, counted)

    def skip_stage(self, stage: str, note: str) -> None:
        """Record that a stage is already done; ``note`` is something the user should know."""
        self._set_stage(stage, "Skipped", message=note)

    def complete_stage(self, stage: str) -> None:
        """Record that a stage has succeeded."""
        self._set_stage(stage, "Succeeded", completion_time=_now())

    def fail(self, stage: str, reason: Reason, **facts: Any) -> None:
        """Record that the run failed in ``stage``; ``facts`` fill the message of ``reason``."""
        self.set_condition(Type.PROGRESSING, False, reason, stage=stage, **facts)
        self.set_condition(Type.FAILED, True, reason, stage=stage, **facts)
        text = reason.text(stage=stage, **facts)
        self._status.message = text
        self._set_stage(stage, "Failed", completion_time=_now(), message=text)

    def interrupt(self, stage: str) -> str:
        """Record that the run was stopped on request in ``stage``; returns the message."""
        text = Reason.INTERRUPTED.text(stage=stage)
        self.set_condition(Type.PROGRESSING, False, Reason.INTERRUPTED, stage=stage)
        self.set_condition(Type.SUSPENDED, True, Reason.INTERRUPTED, stage=stage)
        self._set_stage(stage, "Pending", message=text)
        return text

    def restart(self, **facts: Any) -> str:
        """Record that the train group restarts; returns the message."""
        self._status.restarts += 1
        self.set_condition(Type.PROGRESSING, True, Reason.RESTARTING, **facts)
        self._status.message = text = Reason.RESTARTING.text(**facts)
        self.save()
        return text

    def complete(self) -> None:
        """Record that all stages are done."""
        reason, facts = finished(self._status)
        self.set_condition(Type.PROGRESSING, False, reason, **facts)
        self.set_condition(Type.SUCCEEDED, True, reason, **facts)
        warning = self._status.progress.warning if self._status.progress else ""
        self._status.message = with_warning(reason.text(**facts), warning)
        self._status.completion_time = _now()
        self.save()

    # ------------------------------------------------------------------ events and samples

    def apply(self, event: Event) -> None:
        """Update the status from a worker's event; the caller saves it."""
        update_status(self._status, event, _now())

    @property
    def actions_ignored(self) -> bool:
        """Whether the evaluation stage failed because the model ignores its actions."""
        return fails_the_run(self._status, self._spec.evaluation)

    def save_progress(self, group: PodGroup) -> None:
        """Account for the GPU time of ``group`` and save, at most once a second."""
        if time.monotonic() - self._saved_at < SAVE_SECONDS:
            return
        self._saved_at = time.monotonic()
        pods = [
            Pod(p.name, p.name, "train", 0, 0, "Running", started=p.started) for p in group.pods
        ]
        now, spec = datetime.now(UTC), self._spec
        gpu_time.observe(self._status, pods, spec, now)
        eviction_cost.observe(self._status, pods, spec.gpus, spec.nodes, now)
        self.save()

    def is_sampled(self, iteration: int) -> bool:
        """Whether all samples of a checkpoint exist."""
        return checkpoint_samples.is_sampled(self._status, iteration)

    def begin_samples(self, iteration: int) -> None:
        """Record that a checkpoint is being sampled."""
        checkpoint_samples.begin(self._status, iteration, len(self._spec.inference.samples))
        self.save()

    def end_samples(self, iteration: int, state: State, message: str = "") -> None:
        """Record how the sampling of a checkpoint ended."""
        checkpoint_samples.end(self._status, iteration, state, message)
        self.save()

    # ------------------------------------------------------------------ status

    def set_condition(self, kind: Type, status: bool, reason: Reason, **facts: Any) -> None:
        """Set a condition; ``facts`` fill the message of ``reason``."""
        self._status.conditions = set_condition(
            self._status.conditions, kind, status, reason, _now(), **facts
        )

    def save(self) -> None:
        """Write the status to the state file."""
        status = self._status
        report_actions(status, _now())
        status.phase = phase_of(status.conditions, status.stages)
        state = {
            "source": str(self._source),
            "attempts": self._attempts,
            "status": dump_status(status),
        }
        try:
            self.folder.write(state)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # The workers notice the full volume too; they save what they can and report it.

    def _set_stage(
        self,
        name: str,
        state: State,
        *,
        attempt: int = 0,
        start_time: str = "",
        completion_time: str = "",
        message: str = "",
    ) -> None:
        """Set the state and the provided fields of a stage, and save."""
        entry = self._status.stage_status(name)
        assert entry is not None  # open() has added one for each stage
        entry.state = state
        if attempt:
            entry.attempt = attempt
        if start_time:
            entry.start_time = start_time
        if completion_time:
            entry.completion_time = completion_time
        if message:
            entry.message = message
        self._status.stage = name
        self.save()
