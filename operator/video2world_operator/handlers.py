"""Wires kopf to the controller: it watches the resources; every change wakes the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import kopf

from .cache import RESOURCES, WatchCache
from .cluster import PAGE, Cluster, login
from .controller import Key

__all__ = ["fill", "register", "settings_for"]


class _NoStorage(kopf.AnnotationsDiffBaseStorage):
    """No last state to compare with: kopf would copy every object whole at every event for it."""

    def build(self, **_: Any) -> Any:
        """Nothing of the object."""
        return {}


def settings_for(operator: kopf.OperatorSettings) -> None:
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


def register(
    registry: kopf.OperatorRegistry, cache: WatchCache, wake: Callable[[Key], None]
) -> None:
    """Put handlers into ``registry`` that keep ``cache`` up to date and ``wake`` for every change
    of a resource."""

    @kopf.on.login(registry=registry)
    def _(**_: Any) -> kopf.ConnectionInfo:
        return login()

    @kopf.on.event(RESOURCES.group, RESOURCES.version, RESOURCES.plural, registry=registry)
    async def _(event: kopf.RawEvent, namespace: str | None, name: str | None, **_: Any) -> None:
        body = event["object"]
        if event["type"] == "DELETED":
            cache.drop([str(body["metadata"]["uid"])])
            wake((str(namespace), str(name)))
        else:
            wake(RESOURCES.take(cache, body))
