"""Read the events about objects that are stuck: seldom, and never many requests at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.errors import ApiError
from video2world_operator.reconcile.observed_state import KubeEvent

__all__ = ["Evidence"]

log = logging.getLogger(__name__)
AGAIN = 30.0  # seconds until the events of a resource are read again
PER_SECOND = 5.0  # objects whose events are read, of all resources
Key = tuple[str, str]


class Evidence:
    """The events about stuck objects, by resource."""

    def __init__(self, cluster: ApiClient) -> None:
        self._cluster = cluster
        self._known: dict[Key, tuple[tuple[str, ...], float, list[KubeEvent]]] = {}
        self._slots: dict[Key, float] = {}  # when a resource that waits has its turn
        self._free = 0.0  # when the next turn is free

    async def of(self, key: Key, uids: tuple[str, ...]) -> tuple[Sequence[KubeEvent] | None, float]:
        """The events about the objects with these UIDs, None while they have not been read, and
        the seconds until they can be, if that is to be waited for."""
        now = time.monotonic()
        of, read_at, events = self._known.get(key, ((), 0.0, []))
        if of == uids and now - read_at < AGAIN:
            return events, 0.0
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = max(now, self._free)
            self._free = slot + len(uids) / PER_SECOND
        if slot > now:
            return events if of == uids else None, slot - now
        del self._slots[key]
        try:
            events = [event for uid in uids for event in await self._read(key[0], uid)]
        except (ApiError, OSError) as error:  # not worth failing a reconciliation
            log.warning("no events of %s/%s: %s", *key, error)
            return None, AGAIN
        self._known[key] = uids, now, events
        return events, 0.0

    def forget(self, key: Key) -> None:
        """The resource is gone, or nothing of it is stuck."""
        self._known.pop(key, None)
        self._slots.pop(key, None)

    async def _read(self, namespace: str, uid: str) -> list[KubeEvent]:
        found = self._cluster.list_objects(
            path_of("v1", "Event", namespace), fieldSelector=f"involvedObject.uid={uid}"
        )
        return [KubeEvent.of(event) async for event in found]
