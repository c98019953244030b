"""Health of the operator, judged by the age of its cache and its queue, and its HTTP port."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from video2world_operator.api.constants import KIND
from video2world_operator.controller.cache import RESOURCES, WatchCache
from video2world_operator.controller.keys import Key
from video2world_operator.controller.metrics import Metrics
from video2world_operator.kube.client import SMALL_PAGE, ApiClient

__all__ = ["Freshness", "Health", "serve"]

_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class Freshness:
    """For how long the resources in the cache have been behind the API server: zero on a healthy
    watch.

    An idle cluster has no events, so that their age says nothing. What is compared instead is the
    version of every resource in a listing of metadata with the one in the cache. What the cache
    has and the listing has not is gone without an event, and is dropped from the cache. Jobs and
    pods need none of this: their :class:`.informer.Informer` begins anew where it may have missed
    something, and ten times as many of them to list would be felt by those who wait.
    """

    def __init__(self, cluster: ApiClient, cache: WatchCache, namespaces: Sequence[str]) -> None:
        self._cluster, self._cache = cluster, cache
        self._namespaces: Sequence[str | None] = namespaces or (None,)
        self._behind: dict[tuple[str, str], float] = {}

    async def check(self) -> set[Key]:
        """Compare once; the resources that were dropped.

        Raises:
            ApiError, OSError: the API server does not answer.
        """
        now = time.monotonic()
        behind = {}
        known = self._cache.uids(KIND)  # before the listing: what comes later is in neither
        there: set[str] = set()
        for namespace in self._namespaces:
            path = RESOURCES.path(namespace)
            async for item in self._cluster.list_objects(path, accept=_METADATA, page=SMALL_PAGE):
                metadata = item["metadata"]
                there.add(metadata["uid"])
                body = self._cache.resource((metadata["namespace"], metadata["name"]))
                version = (body or {"metadata": {}})["metadata"].get("resourceVersion")
                if version != metadata["resourceVersion"]:
                    lag = (metadata["uid"], metadata["resourceVersion"])
                    behind[lag] = self._behind.get(lag, now)
        self._behind = behind
        gone = known.keys() - there
        self._cache.drop(gone)
        return {known[uid] for uid in gone}

    @property
    def age(self) -> float:
        """Seconds since the oldest change that the cache has not seen, as of the last check."""
        return time.monotonic() - min(self._behind.values()) if self._behind else 0.0


@dataclass
class Health:
    """What the probes answer. Bounds are in seconds."""

    queue_lag: Callable[[], float] = lambda: 0.0
    cache_age: Callable[[], float] = lambda: 0.0
    holds: Callable[[], bool] = lambda: True  # the lease, once it leads
    state: str = "starting"  # starting, unauthorized, waiting, leading
    missing: Sequence[str] = field(default=())
    definition: str = ""  # what is wrong with the CRD
    queue_bound: float = 120
    cache_bound: float = 90

    def problems(self) -> list[str]:
        """Why the process should be restarted; empty while it is well."""
        found = []
        if self.state == "leading" and not self.holds():
            found.append("it no longer holds the lease, and has not ended")
        if (lag := self.queue_lag()) > self.queue_bound:
            found.append(f"a resource has been waiting for {lag:.0f} s to be reconciled")
        if (age := self.cache_age()) > self.cache_bound:
            found.append(f"the watch is {age:.0f} s behind the API server")
        return found


async def serve(health: Health, metrics: Metrics, host: str, port: int) -> web.AppRunner:
    """Answer ``/healthz``, ``/readyz`` and ``/metrics``; the caller cleans the runner up.

    Ready is who leads or waits to lead; not who lacks rights, or fields in the definition.
    Raises OSError if the port is taken.
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

    async def figures(request: web.Request) -> web.Response:
        text, content_type = metrics.expose(request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", figures),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
