"""Wires kopf to the controller: it watches; events are kept in a cache and wake the queue."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import kopf

from .cluster import PAGE, Cluster, login, path_of
from .controller import Key, Volume, volume_of
from .models import GROUP, KIND, PLURAL, VERSION
from .observed import Job, Pod, resource_of
from .plan import RESOURCE_LABEL

__all__ = ["WATCHED", "KopfCache", "Watched", "fill", "register", "settings_for"]

Body = Mapping[str, Any]
T = TypeVar("T")


class _Index(Generic[T]):
    """Objects by what they are looked up by; each is known by its UID."""

    def __init__(self) -> None:
        self._found: dict[Hashable, dict[str, T]] = {}
        self.places: dict[str, Any] = {}  # by UID

    def put(self, uid: str, place: Hashable, value: T) -> None:
        if self.places.get(uid, place) != place:
            self.drop(uid)
        self.places[uid] = place
        self._found.setdefault(place, {})[uid] = value

    def drop(self, uid: str) -> None:
        if uid not in self.places:
            return
        place = self.places.pop(uid)
        del self._found[place][uid]
        if not self._found[place]:
            del self._found[place]

    def of(self, place: Hashable) -> list[T]:
        return list(self._found.get(place, {}).values())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._found)


class KopfCache:
    """What :func:`fill` has found and kopf's watches have brought, by namespace and name of the
    resource.

    What is in it may be gone: when a watch has to begin anew, nobody tells what went meanwhile.
    :meth:`drop` takes note of it. These are not kopf's own indices: kopf holds back every object
    until all are in its indices, and wakes all those that wait whenever one more is, which took
    over six minutes of CPU for 1,000 resources with their Jobs and pods.
    """

    def __init__(self) -> None:
        self._resources: _Index[Body] = _Index()
        self._volumes: _Index[Key] = _Index()
        self._jobs: _Index[Job] = _Index()
        self._pods: _Index[Pod] = _Index()

    def put_resource(self, key: Key, body: Body) -> None:
        """The resource ``key`` is as ``body`` says."""
        self._resources.put(_uid(body), key, body)
        self._volumes.put(_uid(body), volume_of(body), key)

    def put_job(self, key: Key, job: Job) -> None:
        """A Job of the resource ``key``."""
        self._jobs.put(job.uid, key, job)

    def put_pod(self, key: Key, pod: Pod) -> None:
        """A pod of the resource ``key``."""
        self._pods.put(pod.uid, key, pod)

    def drop(self, uids: Iterable[str]) -> None:
        """These objects are gone."""
        for uid in uids:
            for index in (self._resources, self._volumes, self._jobs, self._pods):
                index.drop(uid)

    def resource(self, key: Key) -> Body | None:
        """See :class:`.controller.Cache`. The newest, while one of the same name is going."""
        return next(reversed(self._resources.of(key)), None)

    def sharing(self, volume: Volume) -> Iterable[Body]:
        """See :class:`.controller.Cache`."""
        found = map(self.resource, self._volumes.of(volume))
        return [body for body in found if body is not None]

    def known(self) -> Sequence[Key]:
        """See :class:`.controller.Cache`."""
        return list(self._resources)

    def jobs(self, key: Key) -> Iterable[Job]:
        """See :class:`.controller.Cache`."""
        return self._jobs.of(key)

    def pods(self, key: Key) -> Iterable[Pod]:
        """See :class:`.controller.Cache`."""
        return self._pods.of(key)

    def uids(self) -> dict[str, Key]:
        """Every object that is thought to be there, and the resource that it belongs to."""
        return self._resources.places | self._jobs.places | self._pods.places


def _name(body: Body) -> str:
    return str(body["metadata"]["name"])


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
    operator.watching.chunk_size = PAGE
    operator.queueing.idle_timeout = 0.5  # every object of the first listing is held for so long
    operator.networking.enforce_retry_after = True
    for one in WATCHED:
        if one.label:
            operator.watching.label_selectors[one.group, one.version, one.plural] = one.label


def _lean(body: Mapping[str, Any]) -> dict[str, Any]:
    """The object without what nobody here reads but takes most of the memory."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    return {**body, "metadata": metadata}


@dataclass(frozen=True)
class Watched:
    """A kind of object that is in the cache."""

    group: str
    version: str
    plural: str
    kind: str
    key_of: Callable[[Body], str]  # the name of the resource that it belongs to
    put: Callable[[KopfCache, Key, Body], None]
    label: str = RESOURCE_LABEL  # that they bear; empty: all of them

    def path(self, namespace: str | None) -> str:
        """Where they are listed; all of them without a ``namespace``."""
        return path_of(f"{self.group}/{self.version}".lstrip("/"), self.kind, namespace)

    @property
    def selector(self) -> dict[str, str]:
        """The listing's parameter that leaves out others."""
        return {"labelSelector": self.label} if self.label else {}


WATCHED = (
    Watched(GROUP, VERSION, PLURAL, KIND, _name, lambda cache, key, body:
            cache.put_resource(key, _lean(body)), label=""),
    Watched("batch", "v1", "jobs", "Job", resource_of, lambda cache, key, body:
            cache.put_job(key, Job.of(body))),
    Watched("", "v1", "pods", "Pod", resource_of, lambda cache, key, body:
            cache.put_pod(key, Pod.of(body))),
)  # fmt: skip


async def fill(cluster: Cluster, cache: KopfCache, namespaces: Sequence[str]) -> None:
    """Put all that is there into ``cache``, before the watches begin.

    Whether something is *not* there can be told from then on. kopf does not say when its first
    listing was all brought, and takes several times as long to bring it.

    Raises:
        ApiError, OSError: the API server does not answer.
    """
    for one in WATCHED:
        for namespace in namespaces or (None,):
            async for body in cluster.listed(one.path(namespace), **one.selector):
                one.put(cache, (body["metadata"]["namespace"], one.key_of(body)), body)


def register(
    registry: kopf.OperatorRegistry, cache: KopfCache, wake: Callable[[Key], None]
) -> None:
    """Put event handlers into ``registry`` that fill ``cache`` and ``wake`` for every change."""

    @kopf.on.login(registry=registry)
    def _(**_: Any) -> kopf.ConnectionInfo:
        return login()

    def watch(one: Watched) -> None:
        @kopf.on.event(one.group, one.version, one.plural, registry=registry)
        async def _(event: kopf.RawEvent, namespace: str | None, **_: Any) -> None:
            body = event["object"]
            key = (str(namespace), one.key_of(body))
            if event["type"] == "DELETED":
                cache.drop([_uid(body)])
            else:
                one.put(cache, key, body)
            wake(key)

    for one in WATCHED:
        watch(one)
