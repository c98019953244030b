"""The local engine: carries out a plan's manifests as processes of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from video2world_common.exit_codes import EXIT_FAILURE, EXIT_USER_ERROR
from video2world_common.progress_events import (
    CheckpointSaved,
    Event,
    Failed,
    Lines,
    Resumed,
    SamplesMade,
    parse,
    with_warning,
)
from video2world_operator.api.conditions import Reason, Type, phase_of, set_condition
from video2world_operator.local import pod_init
from video2world_operator.local.pod_process import (
    Process,
    Surroundings,
    UnsupportedManifest,
    downward,
    process,
)
from video2world_operator.local.pods import _free_port, _Pod, _signal, _tail, _Told
from video2world_operator.local.sampler import Sampler
from video2world_operator.local.stage_check import Judgement, judge, root_of
from video2world_operator.local.state import RunRefused, StateFolder
from video2world_operator.plan.plan import Plan, with_env
from video2world_operator.plan.stage import SAMPLING, Stage
from video2world_operator.reconcile import checkpoint_samples, gpu_time
from video2world_operator.reconcile.observed_state import Pod
from video2world_operator.reconcile.progress import update_status
from video2world_operator.terminal import Display

__all__ = ["EXIT_FAILED", "EXIT_USER_ERROR", "LocalEngine"]

EXIT_FAILED = EXIT_FAILURE
_KEPT = (
    "volumeID",
    "progress",
    "checkpoint",
    "samples",
    "attempts",
    "gpuSeconds",
    "closedGPUSeconds",
)
DOWN_TOGETHER = 5.0  # seconds the rest of a group gets to end by itself after one pod failed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class _Outcome:
    """How an attempt ended: exit code (None: stopped on request), whose log tells, in words."""

    code: int | None
    log: Path | None = None
    message: str = ""

    @property
    def words(self) -> tuple[str, str, bool]:
        """Reason and message of the attempt's record, and whether its end counts as a restart."""
        if self.code is None:
            return "Interrupted", "stopped on request", False
        known = {0: "Succeeded", EXIT_USER_ERROR: "UserError"}
        reason = known.get(self.code, "Crashed")
        said = f"exit code {self.code}" + (f": {self.message}" if self.message else "")
        return reason, said if self.code else "", reason == "Crashed"


class LocalEngine:
    """Runs one plan on one volume folder."""

    def __init__(self, plan: Plan, volume: Path, display: Display, source: Path) -> None:
        self.plan, self.volume, self.display = plan, volume.resolve(), display
        self.source = source.resolve()
        self.state = StateFolder(self.volume, plan.name)
        self._stop: int | None = None  # the signal that asks to end
        self._hard = False  # asked a second time
        self._kept: dict[str, Any] = {}
        self._sampler = Sampler(self._sample, self._sampled)
        self._judged: dict[str, Judgement] = {}  # of stages, since the last one ran

    # ------------------------------------------------------------------ the run

    def run(self) -> int:
        """Carry out every stage that is not done yet; returns the command's exit code.

        Raises:
            RunRefused: the resource runs already, or its name belongs to another file.
        """
        self.volume.mkdir(parents=True, exist_ok=True)
        with self.state.locked(), self._signals(), contextlib.ExitStack() as stack:
            stack.callback(self._sampler.stop)
            self._open()
            for stage in self.plan.stages:
                if stage.name == "inference" and not self._samples_first(stage):
                    return self._interrupted(stage)
                judged = self._judge(stage)
                if judged.done:
                    self._set_stage(
                        stage, "Skipped", **({"message": n} if (n := judged.note) else {})
                    )
                    self.display.skip(stage.name, judged.note)
                    continue
                if judged.again:
                    self.display.say(f"{stage.name:<11} run again: {judged.why}")
                code = self._carry_out(stage)
                if code:
                    return code
                self._judged = {}
            self._condition(Type.PROGRESSING, False, Reason.FINISHED)
            self._condition(Type.SUCCEEDED, True, Reason.FINISHED)
            message = with_warning(Reason.FINISHED.text(), self._kept["status"])
            self._save(completionTime=_now(), message=message)
        return 0

    def _judge(self, stage: Stage) -> Judgement:
        """Whether the stage is done, as the volume is after the last one that ran."""
        if stage.name not in self._judged:
            later = self.plan.stages[self.plan.stages.index(stage) :]
            self._judged = judge(root_of(self.plan, self.volume), later)
        return self._judged[stage.name]

    def _open(self) -> None:
        """Take over what the last run of the same resource left."""
        before = self.state.read()
        owner = before.get("source")
        if owner and owner != str(self.source) and Path(owner).exists():
            raise RunRefused(
                f"metadata.name: {self.plan.name} on {self.volume} belongs to {owner}; choose "
                "another name or another --volume"
            )
        status = before.get("status", {})
        if status.get("volumeID", "") not in ("", self.state.identity):
            self.display.say(f"{self.volume} is not the volume of the last run: it begins anew")
            status = {}
        self._kept = {
            "source": str(self.source),
            "attempts": before.get("attempts", {}),
            "status": {
                "restarts": status.get("restarts", 0),
                "startTime": status.get("startTime") or _now(),
                "conditions": [],
                "stages": [
                    {"name": stage.name, "state": "Pending", "inputsHash": stage.inputs_hash}
                    for stage in self.plan.stages
                ],
            }
            | {key: status[key] for key in _KEPT if key in status},
        }
        checkpoint_samples.abandon(self._kept["status"])
        self._close("Killed", "v2w run was killed", charged=False)  # if it did not end by itself
        self._condition(Type.ACCEPTED, True, Reason.VALID)
        self._save()

    def _carry_out(self, stage: Stage) -> int:
        """Run one stage, attempt after attempt; 0, or the exit code that ends the run."""
        limit = self.plan.resource.spec.training.max_restarts if stage.name == "train" else 0
        restarts = 0
        while True:
            attempts = self._kept["attempts"]
            attempt = attempts[stage.name] = int(attempts.get(stage.name, 0)) + 1
            self._condition(
                Type.PROGRESSING, True, Reason.STAGE_RUNNING, stage=stage.name, attempt=attempt
            )
            if stage.name == "train":
                gpu_time.open_attempt(self._kept["status"], attempt)
            self._set_stage(stage, "Running", attempt=attempt, startTime=_now())
            try:
                outcome = self._attempt(stage, attempt)
            except (UnsupportedManifest, OSError) as error:
                return self._fail(stage, _Outcome(EXIT_FAILED, message=str(error)), restarts)
            self._close(*outcome.words)
            if outcome.code == 0:
                self._set_stage(stage, "Succeeded", completionTime=_now())
                self.display.end(stage.name, "done")
                return 0
            if outcome.code is None:
                return self._interrupted(stage)
            if outcome.code == EXIT_USER_ERROR or restarts >= limit:
                return self._fail(stage, outcome, restarts)
            restarts += 1
            self._kept["status"]["restarts"] += 1
            facts = {"stage": stage.name, "code": outcome.code, "attempt": attempt + 1}
            facts |= {"restart": restarts, "limit": limit}
            self._condition(Type.PROGRESSING, True, Reason.RESTARTING, **facts)
            self._save(message=Reason.RESTARTING.text(**facts))
            self.display.say(Reason.RESTARTING.text(**facts))

    def _interrupted(self, stage: Stage) -> int:
        text = Reason.INTERRUPTED.text(stage=stage.name)
        self._condition(Type.PROGRESSING, False, Reason.INTERRUPTED, stage=stage.name)
        self._condition(Type.SUSPENDED, True, Reason.INTERRUPTED, stage=stage.name)
        self._set_stage(stage, "Pending", message=text)
        self.display.say(text)
        return 128 + (self._stop or signal.SIGTERM)

    def _fail(self, stage: Stage, outcome: _Outcome, restarts: int) -> int:
        """Keep and show why the stage failed."""
        user_error = outcome.code == EXIT_USER_ERROR
        reason = Reason.USER_ERROR if user_error else Reason.RESTARTS_EXHAUSTED
        if outcome.log is None:
            reason = Reason.ENGINE_ERROR
        facts = {"stage": stage.name, "code": outcome.code, "restarts": restarts}
        facts["message"] = outcome.message or "see its log"
        self._condition(Type.PROGRESSING, False, reason, **facts)
        self._condition(Type.FAILED, True, reason, **facts)
        text = reason.text(**facts)
        self._set_stage(stage, "Failed", completionTime=_now(), message=text)
        self._save(message=text)
        self.display.end(stage.name, f"failed (exit code {outcome.code})")
        if outcome.log is not None:
            self.display.say(f"last lines of {outcome.log}:")
            for line in _tail(outcome.log):
                self.display.say(f"  {line}")
        if outcome.message:
            self.display.say(f"error: {outcome.message}")
        return EXIT_USER_ERROR if user_error else EXIT_FAILED

    # ------------------------------------------------------------------ one attempt

    def _attempt(self, stage: Stage, attempt: int) -> _Outcome:
        """Start the stage's pods and wait for all of them."""
        manifests = self.plan.manifests(stage.name, attempt)
        if identity := self._kept["status"].get("volumeID"):
            manifests = with_env(manifests, V2W_VOLUME_ID=identity)
        job = next(m for m in manifests if m["kind"] == "Job")
        pod = job["spec"]["template"]["spec"]
        count = int(job["spec"].get("parallelism", 1))
        self.display.start(stage.name, f"{count} pods" if count > 1 else "")
        with contextlib.ExitStack() as stack:
            around = self._surroundings(stage.name, job, manifests, count)
            pods: list[_Pod] = []
            told: _Told = queue.SimpleQueue()
            stack.callback(self._end_all, pods)
            for index in range(count):
                what = process(pod, around, index=index)
                pods.append(self._start(stage.name, attempt, index, what, count, told))
            return self._watch(pods, told)

    def _surroundings(
        self, stage: str, job: Mapping[str, Any], manifests: tuple[Any, ...], count: int
    ) -> Surroundings:
        template = job["spec"]["template"]
        volumes: dict[str, Path] = {}
        for volume in template["spec"].get("volumes", []):
            if "persistentVolumeClaim" in volume:
                volumes[volume["name"]] = self.volume
            elif "downwardAPI" in volume:
                folder = self.state.folder / "config" / stage
                folder.mkdir(parents=True, exist_ok=True)
                for item in volume["downwardAPI"]["items"]:
                    text = downward(template["metadata"], item["fieldRef"]["fieldPath"])
                    (folder / item["path"]).write_text(text, encoding="utf-8")
                volumes[volume["name"]] = folder
            elif volume.get("emptyDir", {}).get("medium") != "Memory":
                folder = self.state.folder / "scratch" / stage
                folder.mkdir(parents=True, exist_ok=True)
                volumes[volume["name"]] = folder
        services = [m for m in manifests if m["kind"] == "Service"]
        ports = {str(p["port"]): str(_free_port()) for s in services for p in s["spec"]["ports"]}
        hosts = tuple(
            f"{job['metadata']['name']}-{index}.{service['metadata']['name']}"
            for service in services
            for index in range(count)
        )
        return Surroundings(volumes, os.environ, hosts, ports)

    def _start(
        self, stage: str, attempt: int, index: int, what: Process, count: int, told: _Told
    ) -> _Pod:
        env = dict(what.env)
        if count > 1:
            # the pods share this machine: without limits each would use all of its cores
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        what.cwd.mkdir(parents=True, exist_ok=True)
        log = self.state.log(stage, attempt, index)
        log.parent.mkdir(parents=True, exist_ok=True)
        init = [sys.executable, "-I", "-S", str(Path(pod_init.__file__))]
        child = subprocess.Popen(
            [*init, str(what.grace_seconds), str(os.getpid()), *what.argv],
            env=env,
            cwd=what.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        name = f"{stage}-{index}" if count > 1 else stage
        pod = _Pod(name, log, child, datetime.now(UTC), told)
        assert child.stdout is not None
        pod.reader = threading.Thread(target=self._read, args=(pod, child.stdout), daemon=True)
        pod.reader.start()
        return pod

    def _read(self, pod: _Pod, stream: IO[bytes]) -> None:
        """Copy a pod's output to its log and its queue, line by line (a thread of its own)."""
        lines = Lines()
        with pod.log.open("wb", buffering=0) as log:
            while data := os.read(stream.fileno(), 1 << 16):
                with contextlib.suppress(OSError):  # a full disk must not stop the worker
                    log.write(data)
                for line in lines.feed(data):
                    pod.told.put((pod, line))
        for line in lines.end():
            pod.told.put((pod, line))
        pod.told.put((pod, None))

    def _watch(self, pods: list[_Pod], told: _Told) -> _Outcome:
        """Follow the pods until all have ended; the first failure ends the group."""
        running, message = len(pods), ""
        failed: _Pod | None = None
        deadline: float | None = None
        asked = saved = 0.0
        while running:
            if self._stop is None:
                self._sampler.tick()
            with contextlib.suppress(queue.Empty):
                pod, line = told.get(timeout=0.2)
                if line is None:
                    running -= 1
                    pod.code = pod.child.wait()
                    if pod.code and failed is None:
                        failed, deadline = pod, time.monotonic() + DOWN_TOGETHER
                elif (event := parse(line)) is not None:
                    if isinstance(event, Failed):
                        message = message or event.message
                    saved = self._note(event, pods, saved)
                else:
                    self.display.line(pod.name, line.decode("utf-8", "replace").rstrip())
            if self._stop is not None and not asked:
                asked = time.monotonic()
                self.display.say("stopping: the work so far is being saved (again to force)")
                _signal(pods, pod_init.STOP)
            overdue = deadline is not None and time.monotonic() > deadline
            if self._hard or (overdue and not asked):
                _signal(pods, pod_init.KILL)
                deadline = None
        if all(pod.code == 0 for pod in pods):
            return _Outcome(0)
        if self._stop is not None:
            return _Outcome(None)
        codes = [pod.code for pod in pods]
        first = failed or pods[0]
        code = EXIT_USER_ERROR if EXIT_USER_ERROR in codes else first.code
        if code == EXIT_USER_ERROR:
            first = next(pod for pod in pods if pod.code == EXIT_USER_ERROR)
        return _Outcome(code, first.log, message)

    def _note(self, event: Event, pods: list[_Pod], saved: float) -> float:
        """Show an event and keep it in the status, on disk at most once a second."""
        self.display.event(event)
        self._kept["status"] = update_status(self._kept["status"], event, _now())
        if isinstance(event, CheckpointSaved | Resumed):
            every = self.plan.resource.spec.inference.every_checkpoint
            if every and not checkpoint_samples.made(self._kept["status"], event.iteration):
                self._sampler.offer(event.iteration)
        if time.monotonic() - saved < 1.0:
            return saved
        seen = [Pod(p.name, p.name, "train", 0, 0, "Running", started=p.started) for p in pods]
        gpu_time.observe(
            self._kept["status"], seen, self.plan.resource.spec.gpus, len(pods), datetime.now(UTC)
        )
        self._save()
        return time.monotonic()

    # ------------------------------------------------------------------ samples beside training

    def _sample(self, iteration: int) -> _Sampling:
        """Start making the samples of a checkpoint."""
        (job,) = self.plan.sampling(iteration)
        pod, count = job["spec"]["template"]["spec"], int(job["spec"].get("parallelism", 1))
        total = len(self.plan.resource.spec.inference.samples)
        checkpoint_samples.begin(self._kept["status"], iteration, total)
        self._save()
        told: _Told = queue.SimpleQueue()
        pods = []
        try:
            around = self._surroundings(SAMPLING, job, (job,), count)
            for index in range(count):
                what = process(pod, around, index=index)
                pods.append(self._start(SAMPLING, iteration, index, what, count, told))
        except (UnsupportedManifest, OSError) as error:
            self.display.say(f"samples of iteration {iteration}: {error}")
        self.display.say(f"samples of iteration {iteration} are being made beside training")
        return _Sampling(self, pods, told, wanted=count)

    def _sampled(self, iteration: int, code: int | None) -> None:
        """The samples of a checkpoint have ended, or were passed over (None)."""
        status, log = self._kept["status"], self.state.log(SAMPLING, iteration, 0)
        if code is None:
            checkpoint_samples.begin(
                status, iteration, len(self.plan.resource.spec.inference.samples)
            )
            checkpoint_samples.end(
                status,
                iteration,
                "Skipped",
                "passed over: a newer one was there, or the end of training",
            )
        elif code == 0:
            checkpoint_samples.end(status, iteration, "Succeeded")
            self.display.say(f"samples of iteration {iteration} are made")
        elif self._stop is not None:
            checkpoint_samples.end(status, iteration, "Skipped", "stopped on request")
        else:
            why = f"exit code {code}: see {log}"
            checkpoint_samples.end(status, iteration, "Failed", why)
            self.display.say(f"samples of iteration {iteration} could not be made ({why})")
        self._save()

    def _samples_first(self, stage: Stage) -> bool:
        """Wait for the samples begun beside training; False if asked to stop meanwhile."""
        if self._sampler.iteration is not None:
            facts = {"stage": stage.name, "iteration": self._sampler.iteration}
            self._condition(Type.PROGRESSING, True, Reason.WAITING_FOR_SAMPLES, **facts)
            self.display.say(Reason.WAITING_FOR_SAMPLES.text(**facts))
        self._sampler.finish(lambda: self._stop is not None)
        return self._stop is None

    def take_in(self, event: Event) -> None:
        """Put into the status what samples beside training tell of themselves."""
        self._kept["status"] = update_status(self._kept["status"], event, _now())
        self._save()

    # ------------------------------------------------------------------ records and ends

    def _close(self, reason: str, message: str, charged: bool) -> None:
        """End the record of the attempt at training, if one is open."""
        now = datetime.now(UTC)
        gpu_time.close_attempt(
            self._kept["status"], self.plan.resource.spec.gpus, now, reason, message, charged
        )

    def _end_all(self, pods: list[_Pod]) -> None:
        """Leave nothing running, whatever happened."""
        _signal(pods, pod_init.KILL)
        for pod in pods:
            pod.child.wait()
            pod.reader.join(timeout=5)

    # ------------------------------------------------------------------ signals and status

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """While the block runs, SIGINT and SIGTERM ask to stop; the second one insists."""

        def ask(number: int, frame: object) -> None:
            self._hard = self._stop is not None
            self._stop = number

        before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _condition(self, kind: Type, status: bool, reason: Reason, **facts: Any) -> None:
        kept = self._kept["status"]
        kept["conditions"] = set_condition(
            kept["conditions"], kind, status, reason, _now(), **facts
        )

    def _set_stage(self, stage: Stage, state: str, **fields: Any) -> None:
        status = self._kept["status"]
        status["stages"] = [
            entry | {"state": state} | fields if entry["name"] == stage.name else entry
            for entry in status["stages"]
        ]
        self._save(stage=stage.name)

    def _save(self, **fields: Any) -> None:
        status = self._kept["status"] | fields
        status["phase"] = str(phase_of(status["conditions"], status["stages"]))
        self._kept["status"] = status
        try:
            self.state.write(self._kept)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # The workers meet the full volume themselves, save what they can and say what to do.


class _Sampling:
    """The processes that make a checkpoint's samples (see :class:`.local_sampling.Group`)."""

    def __init__(self, engine: LocalEngine, pods: list[_Pod], told: _Told, *, wanted: int) -> None:
        self._engine, self._pods, self._told = engine, pods, told
        self._running, self._short = len(pods), len(pods) < wanted

    def poll(self) -> int | None:
        """See :meth:`.local_sampling.Group.poll`."""
        with contextlib.suppress(queue.Empty):
            while True:
                pod, line = self._told.get_nowait()
                if line is None:
                    self._running -= 1
                    pod.code = pod.child.wait()
                elif isinstance(event := parse(line), SamplesMade):
                    self._engine.take_in(event)
        if self._running:
            return None
        if self._short:  # not all of them could be started
            return EXIT_FAILED
        return next((pod.code for pod in self._pods if pod.code), 0)

    def stop(self, *, hard: bool) -> None:
        """See :meth:`.local_sampling.Group.stop`."""
        _signal(self._pods, pod_init.KILL if hard else pod_init.STOP)
