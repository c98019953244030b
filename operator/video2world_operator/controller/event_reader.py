"""Read the Events about objects that are stuck: seldom, and never many requests at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from video2world_operator.controller.resource import Key
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.errors import ApiError
from video2world_operator.reconcile.observed_state import KubeEvent

__all__ = ["EventReader"]

log = logging.getLogger(__name__)
RELOAD_SECONDS = 30.0  # until the Events of a resource are read again
PER_SECOND = 5.0  # objects, of all resources, whose Events are read


class EventReader:
    """The Events about stuck objects, by resource."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._known: dict[Key, tuple[tuple[str, ...], float, list[KubeEvent]]] = {}
        self._slots: dict[Key, float] = {}  # when a waiting resource may read
        self._free = 0.0  # when the next slot is free

    async def read(
        self, key: Key, uids: tuple[str, ...]
    ) -> tuple[Sequence[KubeEvent] | None, float]:
        """Return the Events about the objects ``uids``, and the seconds until the next read.

        The Events are None until they have been read; the seconds are 0 if there is nothing to wait
        for.
        """
        now = time.monotonic()
        known_uids, read_at, events = self._known.get(key, ((), 0.0, []))
        if known_uids == uids and now - read_at < RELOAD_SECONDS:
            return events, 0.0
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = max(now, self._free)
            self._free = slot + len(uids) / PER_SECOND
        if slot > now:
            return events if known_uids == uids else None, slot - now
        del self._slots[key]
        try:
            events = [event for uid in uids for event in await self._list(key[0], uid)]
        except (ApiError, OSError) as error:  # not worth failing a reconciliation
            log.warning("no events of %s/%s: %s", *key, error)
            return None, RELOAD_SECONDS
        self._known[key] = uids, now, events
        return events, 0.0

    def forget(self, key: Key) -> None:
        """Drop the Events of a resource that is gone, or no longer stuck."""
        self._known.pop(key, None)
        self._slots.pop(key, None)

    async def _list(self, namespace: str, uid: str) -> list[KubeEvent]:
        found = self._api.list_objects(
            path_of("v1", "Event", namespace), fieldSelector=f"involvedObject.uid={uid}"
        )
        return [KubeEvent.of(event) async for event in found]
