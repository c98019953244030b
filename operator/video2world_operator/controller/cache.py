"""What is known of the cluster, kept up to date by watches: resources, their Jobs and pods."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from video2world_operator.api.constants import GROUP, KIND, PLURAL, VERSION
from video2world_operator.controller.keys import Key, Volume, volume_of
from video2world_operator.kube.client import path_of
from video2world_operator.reconcile.observed_state import Job, Pod, resource_of

__all__ = ["CHILDREN", "RESOURCES", "WatchCache", "Watched"]

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


class WatchCache:
    """Objects by namespace and name of the resource that they belong to.

    These are not kopf's own indices: kopf holds back every object until all are in its indices, and
    wakes all those that wait whenever one more is, which took over six minutes of CPU for 1,000
    resources with their Jobs and pods.
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

    def uids(self, kind: str) -> dict[str, Key]:
        """Every object of a kind that is thought to be there, and the resource it belongs to."""
        kinds: dict[str, _Index[Any]] = {
            KIND: self._resources,
            "Job": self._jobs,
            "Pod": self._pods,
        }
        return dict(kinds[kind].places)


def _name(body: Body) -> str:
    return str(body["metadata"]["name"])


def _uid(body: Mapping[str, Any]) -> str:
    return str(body["metadata"]["uid"])


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
    put: Callable[[WatchCache, Key, Body], None]

    def path(self, namespace: str | None) -> str:
        """Where they are listed; all of them without a ``namespace``."""
        return path_of(f"{self.group}/{self.version}".lstrip("/"), self.kind, namespace)

    def put_into(self, cache: WatchCache, body: Body) -> Key:
        """Put the object into ``cache`` and return the resource that it belongs to."""
        key = str(body["metadata"]["namespace"]), self.key_of(body)
        self.put(cache, key, body)
        return key


RESOURCES = Watched(
    GROUP,
    VERSION,
    PLURAL,
    KIND,
    _name,
    lambda cache, key, body: cache.put_resource(key, _lean(body)),
)
CHILDREN = (
    Watched(
        "batch",
        "v1",
        "jobs",
        "Job",
        resource_of,
        lambda cache, key, body: cache.put_job(key, Job.of(body)),
    ),
    Watched(
        "",
        "v1",
        "pods",
        "Pod",
        resource_of,
        lambda cache, key, body: cache.put_pod(key, Pod.of(body)),
    ),
)
