"""Run a plan on this machine: one stage after the other, with restarts of training."""

from __future__ import annotations

import contextlib
from pathlib import Path

from video2world_common.exit_codes import EXIT_FAILURE, EXIT_USER_ERROR
from video2world_common.progress_events import CheckpointSaved, Event, Resumed, evaluated
from video2world_operator.api.conditions import Reason
from video2world_operator.local.attempt import Attempt, Outcome
from video2world_operator.local.gpu_shares import visible_gpus
from video2world_operator.local.node_count import NodeCount
from video2world_operator.local.pod_environment import UnsupportedManifest, job_of, pod_count
from video2world_operator.local.pods import PodGroup
from video2world_operator.local.run_record import RunRecord
from video2world_operator.local.sampler import Sampler
from video2world_operator.local.stage_check import StageCheck, check_stages, volume_root
from video2world_operator.local.state import StateFolder, log_tail
from video2world_operator.local.stop_signal import StopSignal
from video2world_operator.plan.plan import Plan, with_env
from video2world_operator.plan.stage import Stage
from video2world_operator.terminal import Display

__all__ = ["LocalEngine"]


class _FewerStarted(Exception):
    """Not all nodes of an elastic training group could be started."""


class LocalEngine:
    """Runs one plan on one volume folder."""

    def __init__(self, plan: Plan, volume: Path, display: Display, source: Path) -> None:
        """``source`` is the file of the resource; it owns the resource's name on the volume."""
        self._plan, self._display = plan, display
        self._state = StateFolder(volume.resolve(), plan.name)
        self._stop = StopSignal()
        self._record = RunRecord(plan, self._state, source.resolve())
        self._sampler = Sampler(plan, self._record, self._stop, display)
        self._node_count = NodeCount(plan.resource.spec)
        self._checks: dict[str, StageCheck] = {}  # by stage; valid until the next stage has run

    def run(self) -> int:
        """Run every stage that is not done yet; returns the exit code of the command.

        Raises:
            RunRefused: the resource is already running, or its name belongs to another file.
            OSError: the state cannot be written to the volume.
        """
        self._state.volume.mkdir(parents=True, exist_ok=True)
        with self._state.locked(), self._stop.caught(), contextlib.ExitStack() as stack:
            stack.callback(self._sampler.stop)
            if not self._record.open():
                self._display.say(
                    f"{self._state.volume} is not the volume of the last run: starting over"
                )
            self._display.expect([stage.name for stage in self._plan.stages])
            for stage in self._plan.stages:
                if stage.name == "inference" and not self._sampler.finish(stage.name):
                    return self._interrupt(stage)
                check = self._check(stage)
                if check.done:
                    self._record.skip_stage(stage.name, check.note)
                    if (result := evaluated(stage.name, check.result)) is not None:
                        self._record.apply(result)
                    self._display.skip(stage.name, check.note)
                    continue
                if check.runs_again:
                    self._display.say(f"{stage.name:<11} run again: {check.why}")
                code = self._run_stage(stage)
                if code:
                    return code
                self._checks = {}
            self._record.complete()
        return 0

    def _check(self, stage: Stage) -> StageCheck:
        """Whether the stage is done on the volume as the last stage that ran has left it."""
        if stage.name not in self._checks:
            later = self._plan.stages[self._plan.stages.index(stage) :]
            self._checks = check_stages(volume_root(self._plan, self._state.volume), later)
        return self._checks[stage.name]

    def _run_stage(self, stage: Stage) -> int:
        """Run one stage, restarting it up to its limit; 0, or the exit code that ends the run."""
        limit = self._plan.resource.spec.training.max_restarts if stage.name == "train" else 0
        restarts = 0
        while True:
            nodes = self._choose_nodes(stage)
            attempt = self._record.start_attempt(stage.name, nodes, self._node_count.why)
            try:
                outcome = self._run_attempt(stage, attempt, nodes)
            except _FewerStarted as error:
                self._record.close_attempt(str(Reason.GROUP_SHRUNK), str(error), counted=False)
                self._display.say(f"{stage.name}: {error}; resuming on fewer nodes")
                continue
            except (UnsupportedManifest, OSError) as error:
                return self._fail(stage, Outcome(EXIT_FAILURE, message=str(error)), restarts)
            self._record.close_attempt(outcome.reason, outcome.text, counted=outcome.is_counted)
            if outcome.code == 0:
                self._record.complete_stage(stage.name)
                self._display.end(stage.name, "done")
                return 0
            if outcome.code is None:
                return self._interrupt(stage)
            if outcome.code == EXIT_USER_ERROR or restarts >= limit:
                return self._fail(stage, outcome, restarts)
            restarts += 1
            self._display.say(
                self._record.restart(
                    stage=stage.name,
                    code=outcome.code,
                    attempt=attempt + 1,
                    restart=restarts,
                    limit=limit,
                )
            )

    def _choose_nodes(self, stage: Stage) -> int:
        """Return the nodes of the training group, and say if these are not all."""
        count = self._node_count
        if stage.name != "train" or not count.is_elastic:
            return self._plan.resource.spec.nodes
        nodes = count.choose(visible_gpus())
        if count.why:
            asked = self._plan.resource.spec.nodes
            self._display.say(Reason.GROUP_SHRUNK.text(nodes=nodes, asked=asked, why=count.why))
        return nodes

    def _run_attempt(self, stage: Stage, attempt: int, nodes: int) -> Outcome:
        """Start the stage's pods and wait for all of them; nothing is left running.

        Raises:
            _FewerStarted: not all nodes of a training group could be started, but enough.
            UnsupportedManifest, OSError: the pods cannot be started.
        """
        manifests = self._plan.manifests(stage.name, attempt, nodes)
        if env := self._record.attempt_env(stage.name):
            manifests = with_env(manifests, **env)
        # a pod that is alone uses all GPUs that it finds
        gpus = visible_gpus() if pod_count(job_of(manifests)) > 1 else ()
        group = PodGroup(stage.name, attempt, manifests, self._state, gpus)
        self._display.start(stage.name, f"{group.size} pods" if group.size > 1 else "")

        def on_event(event: Event) -> None:
            self._display.event(event)
            self._record.apply(event)
            if isinstance(event, CheckpointSaved | Resumed):
                self._sampler.offer(event.iteration)
            self._record.save_progress(group)

        try:
            try:
                group.start()
            except OSError as error:
                started = len(group.pods)
                if stage.name != "train" or not self._node_count.note_failed_start(started):
                    raise
                raise _FewerStarted(
                    f"{started} of {nodes} nodes could be started: {error}"
                ) from error
            return Attempt(group, self._stop, self._display, on_event).wait(self._sampler.tick)
        finally:
            group.kill()

    def _interrupt(self, stage: Stage) -> int:
        self._display.say(self._record.interrupt(stage.name))
        return self._stop.exit_code

    def _fail(self, stage: Stage, outcome: Outcome, restarts: int) -> int:
        """Record and show why the stage failed; returns the exit code of the command."""
        user_error = outcome.code == EXIT_USER_ERROR
        reason = Reason.USER_ERROR if user_error else Reason.RESTARTS_EXHAUSTED
        if outcome.log is None:
            reason = Reason.ENGINE_ERROR
        if user_error and stage.name == "evaluation" and self._record.actions_ignored:
            reason = Reason.ACTIONS_IGNORED
        message = outcome.message or "see its log"
        self._record.fail(stage.name, reason, code=outcome.code, restarts=restarts, message=message)
        self._display.end(stage.name, f"failed (exit code {outcome.code})")
        if outcome.log is not None:
            self._display.say(f"last lines of {outcome.log}:")
            for line in log_tail(outcome.log):
                self._display.say(f"  {line}")
        if outcome.message:
            self._display.say(f"error: {outcome.message}")
        return EXIT_USER_ERROR if user_error else EXIT_FAILURE
