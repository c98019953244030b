"""Sample new checkpoints during training, in separate processes."""

from __future__ import annotations

from dataclasses import dataclass

from video2world_common.exit_codes import EXIT_FAILURE
from video2world_common.progress_events import SamplesMade, parse
from video2world_operator.api.conditions import Reason, Type
from video2world_operator.local import pod_init
from video2world_operator.local.gpu_shares import visible_gpus
from video2world_operator.local.pod_environment import UnsupportedManifest
from video2world_operator.local.pods import PodGroup
from video2world_operator.local.run_record import RunRecord
from video2world_operator.local.sample_queue import SampleQueue
from video2world_operator.local.stop_signal import StopSignal
from video2world_operator.plan.plan import Plan
from video2world_operator.plan.stage import SAMPLING
from video2world_operator.terminal import Display

__all__ = ["Sampler"]


class Sampler:
    """Starts the sampling Jobs of a plan, and records how they end."""

    def __init__(self, plan: Plan, record: RunRecord, stop: StopSignal, display: Display) -> None:
        self._plan, self._record, self._stop, self._display = plan, record, stop, display
        self._queue = SampleQueue(self._start, self._end)
        self._enabled = bool(plan.resource.spec.inference.every_checkpoint)

    def offer(self, iteration: int) -> None:
        """Queue a saved checkpoint, if the spec asks for it and it has not been sampled yet."""
        if self._enabled and not self._record.is_sampled(iteration):
            self._queue.offer(iteration)

    def tick(self) -> None:
        """Start and record what is due, unless the run is to stop; to be called often."""
        if not self._stop.requested:
            self._queue.tick()

    def finish(self, stage: str) -> bool:
        """Wait, before ``stage``, for the job that is running; False if asked to stop meanwhile."""
        if self._queue.iteration is not None:
            facts = {"stage": stage, "iteration": self._queue.iteration}
            self._record.set_condition(Type.PROGRESSING, True, Reason.WAITING_FOR_SAMPLES, **facts)
            self._display.say(Reason.WAITING_FOR_SAMPLES.text(**facts))
        self._queue.finish(lambda: self._stop.requested)
        return not self._stop.requested

    def stop(self) -> None:
        """End the job that is running."""
        self._queue.stop()

    def _start(self, iteration: int) -> _Job:
        self._record.begin_samples(iteration)
        manifests = self._plan.sampling(iteration)
        free = visible_gpus()[self._plan.resource.spec.gpus :]  # those that training does not use
        group = PodGroup(SAMPLING, iteration, manifests, self._record.folder, free)
        try:
            group.start()
        except (UnsupportedManifest, OSError) as error:
            self._display.say(f"samples of iteration {iteration}: {error}")
        self._display.say(f"sampling iteration {iteration} alongside training")
        return _Job(group, self._record)

    def _end(self, iteration: int, code: int | None) -> None:
        if code is None:
            self._record.begin_samples(iteration)
            why = "skipped: a newer checkpoint was saved first, or training ended"
            self._record.end_samples(iteration, "Skipped", why)
        elif code == 0:
            self._record.end_samples(iteration, "Succeeded")
            self._display.say(f"samples of iteration {iteration} are done")
        elif self._stop.requested:
            self._record.end_samples(iteration, "Skipped", "stopped on request")
        else:
            why = f"exit code {code}: see {self._record.folder.log(SAMPLING, iteration, 0)}"
            self._record.end_samples(iteration, "Failed", why)
            self._display.say(f"samples of iteration {iteration} failed ({why})")


@dataclass
class _Job:
    """The pods that sample one checkpoint (a :class:`.sample_queue.SamplingJob`)."""

    group: PodGroup
    record: RunRecord

    def poll(self) -> int | None:
        while (item := self.group.next_line(timeout=0)) is not None:
            _, line = item
            if line is not None and isinstance(event := parse(line), SamplesMade):
                self.record.apply(event)
                self.record.save()
        if self.group.running:
            return None
        if len(self.group.pods) < self.group.size:  # not all of them could be started
            return EXIT_FAILURE
        return next((pod.code for pod in self.group.pods if pod.code), 0)

    def stop(self, *, force: bool) -> None:
        self.group.signal(pod_init.KILL if force else pod_init.STOP)
