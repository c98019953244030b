"""Wires kopf to the controller: kopf watches and indexes; every event only wakes the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import kopf

from .cluster import login
from .controller import Key, Volume, volume_of
from .models import GROUP, PLURAL, VERSION
from .observed import Job, Pod, resource_of
from .plan import RESOURCE_LABEL

__all__ = ["KopfCache", "register", "settings_for"]

CHILDREN = (("batch", "v1", "jobs"), ("", "v1", "pods"))


class KopfCache:
    """The controller's view of kopf's indices, by namespace and name of the resource.

    kopf fills them before it calls any handler, so that what is not in them does not exist. What
    is in them may be gone: when a watch has to begin anew, nobody tells what went meanwhile.
    :meth:`drop` takes note of it.
    """

    def __init__(self) -> None:
        self._resources: Mapping[Key, Iterable[Any]] = {}
        self._jobs: Mapping[Key, Iterable[Any]] = {}
        self._pods: Mapping[Key, Iterable[Any]] = {}
        self._volumes: Mapping[Volume, Iterable[Key]] = {}
        self._gone: set[str] = set()  # UIDs, which never come back
        self.filled = False

    def attach(self, indices: Mapping[str, Mapping[Any, Iterable[Any]]]) -> None:
        """Take kopf's indices, which are the same live objects at every event."""
        self._resources, self._volumes = indices["resources"], indices["volumes"]
        self._jobs, self._pods = indices["jobs"], indices["pods"]
        self.filled = True

    def resource(self, key: Key) -> Mapping[str, Any] | None:
        """See :class:`.controller.Cache`."""
        return next((b for b in self._resources.get(key, ()) if self._lives(_uid(b))), None)

    def sharing(self, volume: Volume) -> Iterable[Mapping[str, Any]]:
        """See :class:`.controller.Cache`."""
        keys = self._volumes.get(volume, ())
        return [body for key in keys if (body := self.resource(key)) is not None]

    def known(self) -> Sequence[Key]:
        """See :class:`.controller.Cache`."""
        if not self._gone:
            return list(self._resources)
        return [key for key in self._resources if self.resource(key) is not None]

    def jobs(self, key: Key) -> Iterable[Job]:
        """See :class:`.controller.Cache`."""
        return [job for job in self._jobs.get(key, ()) if self._lives(job.uid)]

    def pods(self, key: Key) -> Iterable[Pod]:
        """See :class:`.controller.Cache`."""
        return [pod for pod in self._pods.get(key, ()) if self._lives(pod.uid)]

    def uids(self) -> dict[str, Key]:
        """Every object that is thought to be there, and the resource that it belongs to."""
        found = {_uid(b): key for key, bodies in self._resources.items() for b in bodies}
        for index in (self._jobs, self._pods):
            found |= {child.uid: key for key, children in index.items() for child in children}
        self._gone &= found.keys()  # kopf has dropped the others
        return {uid: key for uid, key in found.items() if self._lives(uid)}

    def drop(self, uids: Iterable[str]) -> None:
        """These objects are gone."""
        self._gone.update(uids)

    def _lives(self, uid: str) -> bool:
        return uid not in self._gone


def _uid(body: Mapping[str, Any]) -> str:
    return str(body["metadata"]["uid"])


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
    operator.watching.chunk_size = 200  # thousands of pods in one answer would take their memory
    operator.networking.enforce_retry_after = True
    for group, version, plural in CHILDREN:
        operator.watching.label_selectors[group, version, plural] = RESOURCE_LABEL


def _lean(body: Mapping[str, Any]) -> dict[str, Any]:
    """The object without what nobody here reads but takes most of the memory."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    return {**body, "metadata": metadata}


def register(
    registry: kopf.OperatorRegistry, cache: KopfCache, wake: Callable[[Key], None]
) -> None:
    """Put indices and event handlers into ``registry``; ``wake`` is called for every change."""

    @kopf.on.login(registry=registry)
    def _(**_: Any) -> kopf.ConnectionInfo:
        return login()

    @kopf.index(GROUP, VERSION, PLURAL, registry=registry, id="resources")
    async def _(body: kopf.Body, namespace: str | None, name: str, **_: Any) -> dict[Key, Any]:
        return {(str(namespace), name): _lean(body)}

    @kopf.index(GROUP, VERSION, PLURAL, registry=registry, id="volumes")
    async def _(body: kopf.Body, namespace: str | None, name: str, **_: Any) -> dict[Volume, Key]:
        return {volume_of(body): (str(namespace), name)}

    @kopf.index("batch", "v1", "jobs", registry=registry, id="jobs")
    async def _(body: kopf.Body, namespace: str | None, **_: Any) -> dict[Key, Any]:
        return {(str(namespace), resource_of(body)): Job.of(body)}

    @kopf.index("", "v1", "pods", registry=registry, id="pods")
    async def _(body: kopf.Body, namespace: str | None, **_: Any) -> dict[Key, Any]:
        return {(str(namespace), resource_of(body)): Pod.of(body)}

    def attach(indices: Mapping[str, Any]) -> None:
        if not cache.filled:
            cache.attach(indices)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def _(namespace: str | None, name: str, **indices: Any) -> None:
        attach(indices)
        wake((str(namespace), name))

    for group, version, plural in CHILDREN:

        @kopf.on.event(group, version, plural, registry=registry)
        async def _(body: kopf.Body, namespace: str | None, **indices: Any) -> None:
            attach(indices)
            wake((str(namespace), resource_of(body)))
