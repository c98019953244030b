"""Keeps Jobs and pods in the cache: a listing, and the watch that goes on from its version.

kopf watches the resources. For their children, of which there are ten times as many with ten times
the events, its handling of each costs more than all that is done here, and it does not say when its
first listing has been brought, or what has gone while it did not watch.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

from video2world_operator.controller.cache import WatchCache, Watched
from video2world_operator.controller.keys import Key
from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.labels import RESOURCE_LABEL

__all__ = ["Informer", "pause_after"]

log = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds between two tries, doubled with each in a row
ANEW = (401, 410)  # answers after which a watch cannot go on where it was


def pause_after(failures: int) -> float:
    """Seconds until a watch is tried again that has failed at once so often before."""
    return min(FIRST_PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE) * random.uniform(0.7, 1.3)


class Informer:
    """Watches one kind of children in one namespace, or in all of them.

    ``wake`` is called with the resource of whatever changed; not for the first listing, which is
    through once :attr:`listed` is set.
    """

    def __init__(
        self,
        cluster: ApiClient,
        cache: WatchCache,
        kind: Watched,
        namespace: str | None,
        wake: Callable[[Key], None],
    ) -> None:
        self._cluster, self._cache, self._kind = cluster, cache, kind
        self._namespace, self._wake = namespace, wake
        self._version = ""  # up to which everything is in the cache; empty: list anew
        self.listed = asyncio.Event()

    async def run(self) -> None:
        """Watch until cancelled, whatever the API server does."""
        failures = 0
        while True:
            try:
                if not self._version:
                    await self._list()
                watch = self._cluster.watch(
                    self._kind.path(self._namespace),
                    resourceVersion=self._version,
                    labelSelector=RESOURCE_LABEL,
                )
                async with aclosing(watch) as events:
                    async for event in events:
                        self._take(event)
                        failures = 0
                continue  # it ended as was agreed
            except ApiError as error:
                if error.code in ANEW:
                    self._version = ""
                log.info("watching %s: %s", self._kind.plural, error)
            except OSError as error:
                log.info("%s", error)
            await asyncio.sleep(pause_after(failures))
            failures += 1

    async def _list(self) -> None:
        """Bring the cache up to date; what it has and the listing has not is gone."""
        known = {
            uid: key
            for uid, key in self._cache.uids(self._kind.kind).items()
            if self._namespace in (None, key[0])
        }
        there, version = set(), ""
        path = self._kind.path(self._namespace)
        async for page in self._cluster.list_pages(path, labelSelector=RESOURCE_LABEL):
            for body in page["items"]:
                there.add(body["metadata"]["uid"])
                self._put(body)
            version = page["metadata"]["resourceVersion"]
        gone = known.keys() - there
        self._cache.drop(gone)
        for uid in gone:
            self._wake(known[uid])
        self._version = version
        self.listed.set()

    def _take(self, event: Mapping[str, Any]) -> None:
        body = event["object"]
        if event["type"] == "DELETED":
            metadata = body["metadata"]
            self._cache.drop([metadata["uid"]])
            self._wake((metadata["namespace"], self._kind.key_of(body)))
        elif event["type"] != "BOOKMARK":
            self._put(body)
        self._version = body["metadata"]["resourceVersion"]

    def _put(self, body: Mapping[str, Any]) -> None:
        try:
            key = self._kind.put_into(self._cache, body)
        except Exception:  # of somebody else's with our label; the others must go on
            name = body["metadata"].get("name")
            log.exception("%s %s cannot be understood", self._kind.kind, name)
            return
        if self.listed.is_set():
            self._wake(key)
