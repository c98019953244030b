"""Read the progress events that workers print from the logs of their pods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from video2world_common.progress_events import Event, Skipped, parse
from video2world_operator.api.timestamps import parse_time
from video2world_operator.controller.key_state import KeyState, LogPosition
from video2world_operator.controller.resource import Resource
from video2world_operator.kube.client import ApiClient
from video2world_operator.plan.stage import SAMPLING
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["WorkerLogs", "without_skipped"]

MAX_EVENTS = 1000  # kept of a worker while the status of its resource cannot be written
TAIL_LINES = "300"  # of a log that is read for the first time
_STARTED = ("Running", "Succeeded", "Failed")


class WorkerLogs:
    """Poll the logs of pods every ``interval()`` seconds, and once more at their end."""

    def __init__(self, api: ApiClient, interval: Callable[[], float]) -> None:
        self._api, self._interval = api, interval

    async def events(self, resource: Resource, state: KeyState, pods: Sequence[Pod]) -> list[Event]:
        """Return what the workers have reported since the status was last written."""
        name = resource.status.stage
        entry = resource.status.stage_status(name)
        if entry is None:
            return []
        attempts = (entry.attempt, entry.attempt - 1)
        uids = {pod.uid for pod in pods}
        state.logs = {uid: position for uid, position in state.logs.items() if uid in uids}
        for pod in sorted(pods, key=lambda p: p.attempt):
            is_current = pod.stage == name and pod.attempt in attempts
            if (is_current or pod.stage == SAMPLING) and _is_reporter(pod, pods):
                position = state.logs.setdefault(pod.uid, LogPosition())
                events = await self._read(resource.key[0], pod, position)
                if pod.attempt != attempts[0]:
                    events = without_skipped(events)
                state.events += events
        del state.events[:-MAX_EVENTS]
        return state.events

    async def _read(self, namespace: str, pod: Pod, position: LogPosition) -> list[Event]:
        now = time.monotonic()
        if position.final or pod.phase not in _STARTED:
            return []
        if not pod.over and now - position.read_at < self._interval():
            return []
        position.read_at, position.final = now, pod.over
        start = {"sinceTime": position.since} if position.since else {"tailLines": TAIL_LINES}
        text = await self._api.pod_log(
            namespace, pod.name, pod.container, timestamps="true", **start
        )
        return _new_events(text, position)


def _new_events(text: str, position: LogPosition) -> list[Event]:
    """Return the events in the lines after ``position``, and advance it."""
    events = []
    repeated = position.lines  # lines of the last timestamp that have been read before
    for line in text.splitlines():
        stamp, _, rest = line.partition(" ")
        if parse_time(stamp[:19] + "Z") is None or stamp < position.since:
            continue
        if stamp == position.since and repeated:
            repeated -= 1
            continue
        position.lines = position.lines + 1 if stamp == position.since else 1
        position.since = stamp
        if (event := parse(rest)) is not None:
            events.append(event)
    return events


def _is_reporter(pod: Pod, pods: Iterable[Pod]) -> bool:
    """Whether a pod's log is read: the first pod reports for its attempt.

    Pods that share the making of samples each report on all of them: the first one that has not
    ended is read, and every one that has.
    """
    if pod.container != "inference":
        return pod.index == 0
    if pod.over:
        return True
    running = [
        p.index for p in pods if (p.stage, p.attempt) == (pod.stage, pod.attempt) and not p.over
    ]
    return pod.index == min(running)


def without_skipped(events: Iterable[Event]) -> list[Event]:
    """Drop what an earlier attempt found done already: the volume may have changed since."""
    return [event for event in events if not isinstance(event, Skipped)]
