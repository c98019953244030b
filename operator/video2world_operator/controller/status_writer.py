"""Write the status of resources when it is time to, and put off what the API server refuses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from video2world_operator.api.conditions import STATUS_REFUSED, Type
from video2world_operator.api.status import Status, dump_status
from video2world_operator.controller.event_recorder import EventRecorder
from video2world_operator.controller.key_state import KeyState, RefusedStatus, StatusWrite
from video2world_operator.controller.resource import Key, Resource
from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.reconcile.actions import Decision

__all__ = ["StatusWriter"]

log = logging.getLogger(__name__)
REFUSED_PAUSES = 2.0, 300.0  # seconds, the first and the longest, between refused status writes
CONFLICT_PAUSE = 0.2  # seconds until a resource is reconciled again that someone else has written
_ALWAYS = (
    Type.ACCEPTED,
    Type.AUTHORIZED,
    Type.DEFINITION,
    Type.CONTENT,
    Type.FULL_SIZE,
    Type.PROGRESSING,
    Type.SUSPENDED,
    Type.SUCCEEDED,
    Type.FAILED,
)


class StatusWriter:
    """Write decided statuses. ``requeue`` takes a key and the seconds until its reconciliation.

    Changes that users or machines wait for are written at once, the others every ``interval()``
    seconds. :attr:`refused` is set when a status was refused: the CRD may be another version's.
    """

    def __init__(
        self,
        api: ApiClient,
        recorder: EventRecorder,
        requeue: Callable[[Key, float], None],
        interval: Callable[[], float],
    ) -> None:
        self._api, self._recorder = api, recorder
        self._requeue, self._interval = requeue, interval
        self.refused = asyncio.Event()

    async def write_status(self, resource: Resource, state: KeyState, decision: Decision) -> bool:
        """Write the new status if it is time to; return whether to apply the actions now."""
        before, after = resource.status, decision.status
        if after is None or (new := dump_status(after)) == (resource.body.get("status") or {}):
            state.events = []
            return True
        if not self._is_due(state, before, after):
            return True
        if state.refused and (left := state.refused.until - time.monotonic()) > 0:
            self._requeue(resource.key, left)
            return False
        try:
            written = await self._api.apply_status(dict(resource.body), new)
        except ApiError as error:
            if error.code == 404:
                return False  # it was deleted meanwhile
            if error.code == 409:  # someone else wrote first; the watch will bring that version
                self._requeue(resource.key, CONFLICT_PAUSE)
                return False
            if error.lasting:
                await self._put_off(resource, state, str(error))
                return False
            raise
        state.refused = None
        state.last_write = StatusWrite(resource.version, Resource(written))
        state.written_at = time.monotonic()
        state.events = []
        await self._recorder.record_events(resource, before, after)
        if before.is_empty and decision.actions:
            state.just_accepted = True
            self._requeue(resource.key, 0.0)
            return False
        return True

    async def _put_off(self, resource: Resource, state: KeyState, reason: str) -> None:
        """Retry with a growing pause; report the reason once."""
        last = state.refused
        first, longest = REFUSED_PAUSES
        pause = min(last.pause * 2, longest) if last else first
        state.refused = RefusedStatus(reason, pause, time.monotonic() + pause)
        self._requeue(resource.key, pause)
        self.refused.set()
        if last is None or last.reason != reason:
            log.error("the API server refuses the status of %s/%s: %s", *resource.key, reason)
            message = f"The API server refuses the status that the operator writes: {reason}"
            await self._recorder.record(resource, "Warning", STATUS_REFUSED, message, reason)

    def _is_due(self, state: KeyState, before: Status, after: Status) -> bool:
        if _written_at_once(before) != _written_at_once(after):
            return True
        return time.monotonic() - state.written_at >= self._interval()


def _of_group(status: Status) -> tuple[object, ...]:
    size = status.group_size
    return (size.running, size.waiting_since, size.room_since) if size else ()


def _written_at_once(status: Status) -> tuple[object, ...]:
    """Return the part of a status whose change is written at once; the rest is mere progress."""
    return (
        status.phase,
        status.stage,
        status.observed_generation,
        status.restarts,
        status.attempt,
        [(a.number, a.end_time) for a in status.attempts],
        status.checkpoint,
        _of_group(status),
        [(row.checkpoint, row.state) for row in status.samples],
        [(e.name, e.state, e.attempt, e.inputs_hash) for e in status.stages],
        [
            (c.type, c.status, c.reason, c.message)
            for c in status.conditions
            if c.type in _ALWAYS
            or (c.status == "False" and c.type in (Type.CHILDREN_APPLIED, Type.VOLUME_READY))
        ],
    )
