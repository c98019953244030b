"""Follow the pods of one attempt at a stage until all of them have ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from video2world_common.exit_codes import EXIT_USER_ERROR
from video2world_common.progress_events import Event, Failed, parse
from video2world_operator.local import pod_init
from video2world_operator.local.pods import LocalPod, PodGroup
from video2world_operator.local.stop_signal import StopSignal
from video2world_operator.terminal import Display

__all__ = ["Attempt", "Outcome"]

GROUP_SECONDS = 5.0  # that the other pods get to end by themselves after one has failed
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: its exit code (None: stopped on request), the log that shows why, and
    the worker's message."""

    code: int | None
    log: Path | None = None
    message: str = ""

    @property
    def reason(self) -> str:
        """The reason in the attempt's record, one CamelCase word."""
        known = {None: "Interrupted", 0: "Succeeded", EXIT_USER_ERROR: "UserError"}
        return known.get(self.code, "Crashed")

    @property
    def text(self) -> str:
        """The message in the attempt's record."""
        if self.code is None:
            return "stopped on request"
        if self.code == 0:
            return ""
        return f"exit code {self.code}" + (f": {self.message}" if self.message else "")

    @property
    def is_counted(self) -> bool:
        """Whether the end counts against spec.training.maxRestarts."""
        return self.reason == "Crashed"


class Attempt:
    """A started group of pods; the first failure or a stop signal ends all of them."""

    def __init__(
        self,
        group: PodGroup,
        stop: StopSignal,
        display: Display,
        on_event: Callable[[Event], None],
    ) -> None:
        self._group, self._stop, self._display, self._on_event = group, stop, display, on_event
        self._first_failed: LocalPod | None = None
        self._kill_at: float | None = None  # on the monotonic clock
        self._stopping = False
        self._message = ""  # of the first worker that reported a failure

    def wait(self, tick: Callable[[], None]) -> Outcome:
        """Follow the pods until the last one has ended, calling ``tick`` several times a second."""
        while self._group.running:
            tick()
            if (item := self._group.next_line(POLL_SECONDS)) is not None:
                pod, line = item
                if line is None:
                    self._note_end(pod)
                else:
                    self._read(pod, line)
            self._stop_or_kill()
        return self._outcome()

    def _note_end(self, pod: LocalPod) -> None:
        if pod.code and self._first_failed is None:
            self._first_failed = pod
            self._kill_at = time.monotonic() + GROUP_SECONDS

    def _read(self, pod: LocalPod, line: bytes) -> None:
        event = parse(line)
        if event is None:
            self._display.line(pod.name, line.decode("utf-8", "replace").rstrip())
            return
        if isinstance(event, Failed):
            self._message = self._message or event.message
        self._on_event(event)

    def _stop_or_kill(self) -> None:
        if self._stop.requested and not self._stopping:
            self._stopping = True
            self._display.say("stopping: workers save their work (interrupt again to kill them)")
            self._group.signal(pod_init.STOP)
        overdue = self._kill_at is not None and time.monotonic() > self._kill_at
        if self._stop.forced or (overdue and not self._stopping):
            self._group.signal(pod_init.KILL)
            self._kill_at = None

    def _outcome(self) -> Outcome:
        pods = self._group.pods
        if all(pod.code == 0 for pod in pods):
            return Outcome(0)
        if self._stop.requested:
            return Outcome(None)
        failed = self._first_failed or pods[0]
        shown = next((pod for pod in pods if pod.code == EXIT_USER_ERROR), failed)
        return Outcome(shown.code, shown.log, self._message)
