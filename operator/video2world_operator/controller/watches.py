"""Wires kopf to the controller: it watches the resources; every change wakes the queue."""

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
from video2world_operator.controller.keys import Key
from video2world_operator.kube.auth import login
from video2world_operator.kube.client import PAGE, Cluster

__all__ = ["fill", "watch"]

log = logging.getLogger(__name__)
STEADY = 60.0  # seconds after which a watch that ends is no more taken for one that ended at once
STOPPING = 3.0  # seconds that kopf is given to end


class _NoStorage(kopf.AnnotationsDiffBaseStorage):
    """No last state to compare with: kopf would copy every object whole at every event for it."""

    def build(self, **_: Any) -> Any:
        """Nothing of the object."""
        return {}


def _settle(operator: kopf.OperatorSettings) -> None:
    """What of kopf is used: its watches alone. No finalizers, annotations, events or peering."""
    operator.posting.enabled = False
    operator.scanning.disabled = True  # no rights on CRDs and namespaces are needed
    operator.persistence.diffbase_storage = _NoStorage()
    # A watch that says nothing is renewed; kopf's own bookmarks tell a quiet one from a dead one.
    operator.watching.server_timeout = 300
    operator.watching.client_timeout = 330
    operator.watching.connect_timeout = 10
    operator.watching.chunk_size = PAGE
    operator.queueing.idle_timeout = 0.5  # every object of the first listing is held for so long
    operator.networking.enforce_retry_after = True


async def fill(cluster: Cluster, cache: WatchCache, namespaces: Sequence[str]) -> None:
    """Put all resources that are there into ``cache``: kopf does not say when it has brought them.

    Raises:
        ApiError, OSError: the API server does not answer.
    """
    for namespace in namespaces or (None,):
        async for body in cluster.listed(RESOURCES.path(namespace)):
            RESOURCES.take(cache, body)


def _register(registry: kopf.OperatorRegistry, take: Callable[[kopf.RawEvent], None]) -> None:
    """Put handlers into ``registry`` that hand every change of a resource to ``take``."""

    @kopf.on.login(registry=registry)
    def _(**_: Any) -> kopf.ConnectionInfo:
        return login()

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
    """Watch the resources until ``stop``, whatever the API server does.

    Of what its watch may meet kopf takes only some for passing, and ends with the rest (an answer
    it does not know, a line cut in the middle). That must not end a process which leads and has
    everything in its cache: what is missed meanwhile comes with kopf's next listing, and what has
    gone with the next look at all that is there. As it ends all tasks of the loop that it runs in,
    whoever's they are, it has a thread and a loop of its own.
    """
    ours, its, ended = asyncio.get_running_loop(), asyncio.new_event_loop(), asyncio.Event()

    def take(event: kopf.RawEvent) -> None:
        body = event["object"]
        if event["type"] == "DELETED":
            cache.drop([str(body["metadata"]["uid"])])
            wake((str(body["metadata"]["namespace"]), str(body["metadata"]["name"])))
        else:
            wake(RESOURCES.take(cache, body))

    def hand_over(event: kopf.RawEvent) -> None:
        ours.call_soon_threadsafe(take, event)

    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    _register(registry, hand_over)
    _settle(settings)

    async def again_and_again() -> None:
        failures = 0
        while not ended.is_set():
            began = time.monotonic()
            try:
                await kopf.operator(
                    registry=registry,
                    settings=settings,
                    # given, as kopf's own is made of the user's name, which an image need not have
                    identity=cast(Any, identity),
                    standalone=True,
                    clusterwide=not namespaces,
                    namespaces=namespaces,
                    stop_flag=ended,
                )
            except Exception as error:
                what = next(iter(error.args), "")  # kopf's hold the whole answer
                log.warning("watching resources: %s: %s; begun anew", type(error).__name__, what)
            failures = failures + 1 if time.monotonic() - began < STEADY else 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_after(failures)):
                    await ended.wait()

    def run() -> None:
        with contextlib.closing(its):
            its.run_until_complete(again_and_again())

    thread = threading.Thread(target=run, name="kopf", daemon=True)
    thread.start()
    try:
        await stop.wait()
    finally:
        its.call_soon_threadsafe(ended.set)
        await asyncio.to_thread(thread.join, STOPPING)
