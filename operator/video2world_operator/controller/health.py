"""Judge the operator's health by the age of its cache and its queue, and serve its probes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from video2world_operator.api.constants import KIND
from video2world_operator.controller.cache import RESOURCES, WatchCache
from video2world_operator.controller.metrics import Metrics
from video2world_operator.controller.resource import Key
from video2world_operator.kube.client import SMALL_PAGE, ApiClient

__all__ = ["Freshness", "Health", "serve"]

_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class Freshness:
    """How long the cached resources have been behind the API server; zero for a healthy watch.

    An idle cluster has no events, so their age says nothing. Instead, the versions in a listing of
    metadata are compared with the cached ones. Cached resources that are not in the listing were
    deleted without an event, and are dropped. Jobs and pods need no such check: their
    :class:`.informer.Informer` lists again whenever it may have missed something, and listing ten
    times as many objects would slow down others.
    """

    def __init__(self, api: ApiClient, cache: WatchCache, namespaces: Sequence[str]) -> None:
        self._api, self._cache = api, cache
        self._namespaces: Sequence[str | None] = namespaces or (None,)
        self._behind: dict[tuple[str, str], float] = {}  # since when, by UID and version

    async def check(self) -> set[Key]:
        """Compare once, and return the resources that were dropped.

        Raises:
            ApiError, OSError: the API server does not answer.
        """
        now = time.monotonic()
        behind = {}
        known = self._cache.uids(KIND)  # before the listing: later resources are in neither
        listed: set[str] = set()
        for namespace in self._namespaces:
            path = RESOURCES.path(namespace)
            async for item in self._api.list_objects(path, accept=_METADATA, page=SMALL_PAGE):
                metadata = item["metadata"]
                listed.add(metadata["uid"])
                cached = self._cache.resource((metadata["namespace"], metadata["name"]))
                if cached is None or cached.version != metadata["resourceVersion"]:
                    change = (metadata["uid"], metadata["resourceVersion"])
                    behind[change] = self._behind.get(change, now)
        self._behind = behind
        deleted = known.keys() - listed
        self._cache.drop(deleted)
        return {known[uid] for uid in deleted}

    @property
    def age(self) -> float:
        """Seconds since the oldest change that the cache lacked at the last check."""
        return time.monotonic() - min(self._behind.values()) if self._behind else 0.0


@dataclass
class Health:
    """The answers of the probes. Bounds are in seconds."""

    queue_lag: Callable[[], float] = lambda: 0.0
    cache_age: Callable[[], float] = lambda: 0.0
    holds: Callable[[], bool] = lambda: True  # once it leads
    state: str = "starting"  # starting, unauthorized, waiting, leading
    missing: Sequence[str] = field(default=())  # rights
    definition: str = ""  # what is wrong with the CRD
    queue_bound: float = 120
    cache_bound: float = 90

    def problems(self) -> list[str]:
        """Return why the process should be restarted; empty while it is healthy."""
        found = []
        if self.state == "leading" and not self.holds():
            found.append("it no longer holds the lease, and has not ended")
        if (lag := self.queue_lag()) > self.queue_bound:
            found.append(f"a resource has been waiting for {lag:.0f} s to be reconciled")
        if (age := self.cache_age()) > self.cache_bound:
            found.append(f"the watch is {age:.0f} s behind the API server")
        return found


async def serve(health: Health, metrics: Metrics, host: str, port: int) -> web.AppRunner:
    """Serve ``/healthz``, ``/readyz`` and ``/metrics``; the caller cleans up the runner.

    An operator is ready if it leads or waits to lead, unless it lacks rights or the CRD lacks
    fields.

    Raises:
        OSError: the port is in use.
    """

    async def healthz(_: web.Request) -> web.Response:
        problems = health.problems()
        return web.Response(text="; ".join(problems) or "ok", status=503 if problems else 200)

    async def readyz(_: web.Request) -> web.Response:
        ready = health.state in ("waiting", "leading")
        text = f"{health.state}: may not {', '.join(health.missing)}" if health.missing else ""
        if health.definition:
            ready, text = False, text or f"{health.state}: {health.definition}"
        return web.Response(text=text or health.state, status=200 if ready else 503)

    async def expose_metrics(request: web.Request) -> web.Response:
        text, content_type = metrics.expose(request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", expose_metrics),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
