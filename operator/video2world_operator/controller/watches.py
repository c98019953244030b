"""Watch the resources with kopf, and wake the reconciler for each that changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import kopf

from video2world_operator.controller.cache import RESOURCES, WatchCache
from video2world_operator.controller.informer import pause_after
from video2world_operator.controller.resource import Key
from video2world_operator.kube.auth import Connection, login
from video2world_operator.kube.client import PAGE, ApiClient

__all__ = ["fill", "watch"]

log = logging.getLogger(__name__)
STEADY = 60.0  # seconds: a watch that lasted longer did not fail at once
STOPPING = 3.0  # seconds within which kopf has to end


class _NoStorage(kopf.AnnotationsDiffBaseStorage):
    """Keep no last-seen state: kopf would copy every object at every event to compare with it."""

    def build(self, **_: Any) -> Any:
        """Return nothing of the object."""
        return {}


def _configure(operator: kopf.OperatorSettings) -> None:
    """Use nothing of kopf but its watches: no finalizers, annotations, events or peering."""
    operator.posting.enabled = False
    operator.scanning.disabled = True  # needs no rights on CRDs and namespaces
    operator.persistence.diffbase_storage = _NoStorage()
    # a silent watch is renewed; kopf requests bookmarks, so that a quiet one is not silent
    operator.watching.server_timeout = 300
    operator.watching.client_timeout = 330
    operator.watching.connect_timeout = 10
    operator.watching.chunk_size = PAGE
    operator.queueing.idle_timeout = 0.5  # every object of the first listing is held for so long
    operator.networking.enforce_retry_after = True


async def fill(api: ApiClient, cache: WatchCache, namespaces: Sequence[str]) -> None:
    """List all resources into ``cache``: kopf does not say when its first listing is complete.

    Raises:
        ApiError, OSError: the API server does not answer.
    """
    for namespace in namespaces or (None,):
        async for body in api.list_objects(RESOURCES.path(namespace)):
            RESOURCES.put_into(cache, body)


async def _credentials(connection: Connection) -> kopf.ConnectionInfo:
    """Return the same credentials for kopf, which opens connections of its own."""
    settings = connection.configuration
    header = await settings.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.partition(" ")
    return kopf.ConnectionInfo(
        server=settings.host,
        ca_path=settings.ssl_ca_cert,
        insecure=not settings.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=settings.cert_file,
        private_key_path=settings.key_file,
        default_namespace=connection.namespace,
        proxy_url=settings.proxy,
    )


def _register(registry: kopf.OperatorRegistry, take: Callable[[kopf.RawEvent], None]) -> None:
    """Register handlers that log in, and pass every change of a resource to ``take``."""

    @kopf.on.login(registry=registry)
    async def _(**_: Any) -> kopf.ConnectionInfo:
        return await _credentials(await login())

    @kopf.on.event(RESOURCES.group, RESOURCES.version, RESOURCES.plural, registry=registry)
    async def _(event: kopf.RawEvent, **_: Any) -> None:
        take(event)


async def watch(
    cache: WatchCache,
    wake: Callable[[Key], None],
    *,
    identity: str,
    namespaces: Sequence[str],
    stop: asyncio.Event,
) -> None:
    """Watch the resources until ``stop``, however the API server behaves.

    kopf retries only some of the errors that its watch may meet and ends at the others (an unknown
    answer, a truncated line). That must not end a process that leads and has everything in its
    cache: kopf's next listing brings changes that were missed, and the next check of the cache's
    freshness finds resources that were deleted. kopf has a thread and an event loop of its own
    because it cancels all tasks of its loop when it ends.
    """
    loop, kopf_loop, ended = asyncio.get_running_loop(), asyncio.new_event_loop(), asyncio.Event()

    def take(event: kopf.RawEvent) -> None:
        body = event["object"]
        if event["type"] == "DELETED":
            cache.drop([str(body["metadata"]["uid"])])
            wake((str(body["metadata"]["namespace"]), str(body["metadata"]["name"])))
        else:
            wake(RESOURCES.put_into(cache, body))

    def hand_over(event: kopf.RawEvent) -> None:
        loop.call_soon_threadsafe(take, event)

    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    _register(registry, hand_over)
    _configure(settings)

    async def watch_until_stopped() -> None:
        failures = 0
        while not ended.is_set():
            started = time.monotonic()
            try:
                await kopf.operator(
                    registry=registry,
                    settings=settings,
                    # kopf's default needs the user's name, which a container may not have
                    identity=cast(Any, identity),
                    standalone=True,
                    clusterwide=not namespaces,
                    namespaces=namespaces,
                    stop_flag=ended,
                )
            except Exception as error:
                summary = next(iter(error.args), "")  # kopf's other arguments hold the whole answer
                log.warning("watching resources: %s: %s; restarted", type(error).__name__, summary)
            failures = failures + 1 if time.monotonic() - started < STEADY else 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_after(failures)):
                    await ended.wait()

    def run() -> None:
        with contextlib.closing(kopf_loop):
            kopf_loop.run_until_complete(watch_until_stopped())

    thread = threading.Thread(target=run, name="kopf", daemon=True)
    thread.start()
    try:
        await stop.wait()
    finally:
        kopf_loop.call_soon_threadsafe(ended.set)
        await asyncio.to_thread(thread.join, STOPPING)
