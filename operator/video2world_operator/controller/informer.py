"""Keep Jobs and pods in the cache: list them, then watch from the listing's version.

kopf watches the resources, but not their children, which are ten times as many with ten times the
events: it takes more time for each than everything here, and does not say when its first listing
is complete or what was deleted while it did not watch.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import aclosing

from video2world_operator.controller.cache import WatchCache, Watched
from video2world_operator.controller.resource import Key, Object
from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.labels import RESOURCE_LABEL

__all__ = ["Informer", "pause_after"]

log = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds before a retry, doubled with each failure
RELIST = (401, 410)  # answers after which a watch cannot continue from its version


def pause_after(failures: int) -> float:
    """Return the seconds before the next try of a watch that has failed ``failures`` times."""
    return min(FIRST_PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE) * random.uniform(0.7, 1.3)


class Informer:
    """Watch one kind of children in one namespace, or in all of them.

    ``wake`` is called with the resource of every object that changed, but not for the first
    listing: :attr:`listed` is set once that is complete.
    """

    def __init__(
        self,
        api: ApiClient,
        cache: WatchCache,
        kind: Watched,
        namespace: str | None,
        wake: Callable[[Key], None],
    ) -> None:
        self._api, self._cache, self._kind = api, cache, kind
        self._namespace, self._wake = namespace, wake
        self._version = ""  # everything up to it is in the cache; empty: list again
        self.listed = asyncio.Event()

    async def run(self) -> None:
        """Watch until cancelled, however the API server behaves."""
        failures = 0
        while True:
            try:
                if not self._version:
                    await self._list()
                watch = self._api.watch(
                    self._kind.path(self._namespace),
                    resourceVersion=self._version,
                    labelSelector=RESOURCE_LABEL,
                )
                async with aclosing(watch) as events:
                    async for event in events:
                        self._take(event)
                        failures = 0
                continue  # the server ended it, as requested
            except ApiError as error:
                if error.code in RELIST:
                    self._version = ""
                log.info("watching %s: %s", self._kind.plural, error)
            except OSError as error:
                log.info("%s", error)
            await asyncio.sleep(pause_after(failures))
            failures += 1

    async def _list(self) -> None:
        """Bring the cache up to date; cached objects that are not in the listing were deleted."""
        known = {
            uid: key
            for uid, key in self._cache.uids(self._kind.kind).items()
            if self._namespace in (None, key[0])
        }
        listed, version = set(), ""
        path = self._kind.path(self._namespace)
        async for page in self._api.list_pages(path, labelSelector=RESOURCE_LABEL):
            for body in page["items"]:
                listed.add(body["metadata"]["uid"])
                self._put(body)
            version = page["metadata"]["resourceVersion"]
        deleted = known.keys() - listed
        self._cache.drop(deleted)
        for uid in deleted:
            self._wake(known[uid])
        self._version = version
        self.listed.set()

    def _take(self, event: Object) -> None:
        body = event["object"]
        if event["type"] == "DELETED":
            self._cache.drop([body["metadata"]["uid"]])
            self._wake(self._kind.key_of(body))
        elif event["type"] != "BOOKMARK":
            self._put(body)
        self._version = body["metadata"]["resourceVersion"]

    def _put(self, body: Object) -> None:
        try:
            key = self._kind.put_into(self._cache, body)
        except Exception:  # another program's object with our label must not stop the watch
            name = body["metadata"].get("name")
            log.exception("%s %s cannot be parsed", self._kind.kind, name)
            return
        if self.listed.is_set():
            self._wake(key)
