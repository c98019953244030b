"""Cache the resources, their Jobs and their pods, as watches and listings bring them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from video2world_operator.api.constants import GROUP, KIND, PLURAL, VERSION
from video2world_operator.controller.resource import Key, Object, Resource, Volume
from video2world_operator.kube.client import path_of
from video2world_operator.reconcile.observed_state import Job, Pod, resource_of

__all__ = ["CHILDREN", "RESOURCES", "WatchCache", "Watched"]

T = TypeVar("T")


class _Index(Generic[T]):
    """Objects by UID, grouped by the key under which they are looked up."""

    def __init__(self) -> None:
        self._found: dict[Hashable, dict[str, T]] = {}
        self.keys: dict[str, Any] = {}  # by UID

    def put(self, uid: str, key: Hashable, value: T) -> None:
        if self.keys.get(uid, key) != key:
            self.drop(uid)
        self.keys[uid] = key
        self._found.setdefault(key, {})[uid] = value

    def drop(self, uid: str) -> None:
        if uid not in self.keys:
            return
        key = self.keys.pop(uid)
        del self._found[key][uid]
        if not self._found[key]:
            del self._found[key]

    def of(self, key: Hashable) -> list[T]:
        return list(self._found.get(key, {}).values())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._found)


class WatchCache:
    """Objects by namespace and name of the resource that they belong to.

    kopf has indices too, but holds every object back until all of them are indexed, and wakes all
    that wait whenever one more is: over six minutes of CPU for 1,000 resources with their Jobs and
    pods.
    """

    def __init__(self) -> None:
        self._resources: _Index[Resource] = _Index()
        self._volumes: _Index[Key] = _Index()
        self._jobs: _Index[Job] = _Index()
        self._pods: _Index[Pod] = _Index()

    def put_resource(self, resource: Resource) -> None:
        """Add or replace a resource."""
        self._resources.put(resource.uid, resource.key, resource)
        self._volumes.put(resource.uid, resource.volume, resource.key)

    def put_job(self, key: Key, job: Job) -> None:
        """Add or replace a Job of the resource ``key``."""
        self._jobs.put(job.uid, key, job)

    def put_pod(self, key: Key, pod: Pod) -> None:
        """Add or replace a pod of the resource ``key``."""
        self._pods.put(pod.uid, key, pod)

    def drop(self, uids: Iterable[str]) -> None:
        """Remove objects that were deleted."""
        for uid in uids:
            for index in (self._resources, self._volumes, self._jobs, self._pods):
                index.drop(uid)

    def resource(self, key: Key) -> Resource | None:
        """Return the resource; the newest one while another of its name is being deleted."""
        return next(reversed(self._resources.of(key)), None)

    def resources(self) -> list[Resource]:
        """Return all resources."""
        return [found for key in self.known() if (found := self.resource(key)) is not None]

    def on_volume(self, volume: Volume) -> list[Resource]:
        """Return the resources whose spec names ``volume``."""
        found = map(self.resource, self._volumes.of(volume))
        return [resource for resource in found if resource is not None]

    def known(self) -> Sequence[Key]:
        """Return namespace and name of every resource."""
        return list(self._resources)

    def jobs(self, key: Key) -> list[Job]:
        """Return the Jobs with the resource's label."""
        return self._jobs.of(key)

    def pods(self, key: Key) -> list[Pod]:
        """Return the pods with the resource's label."""
        return self._pods.of(key)

    def uids(self, kind: str) -> dict[str, Key]:
        """Return the UIDs of all cached objects of a kind, with the resource of each."""
        kinds: dict[str, _Index[Any]] = {
            KIND: self._resources,
            "Job": self._jobs,
            "Pod": self._pods,
        }
        return dict(kinds[kind].keys)


def _name(body: Object) -> str:
    return str(body["metadata"]["name"])


def _trimmed(body: Object) -> dict[str, Any]:
    """Return the object without managedFields, which take most of the memory."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    return {**body, "metadata": metadata}


@dataclass(frozen=True)
class Watched:
    """A kind of object that is cached."""

    group: str
    version: str
    plural: str
    kind: str
    resource_of: Callable[[Object], str]  # the name of the resource that an object belongs to
    put: Callable[[WatchCache, Key, Object], None]

    def path(self, namespace: str | None) -> str:
        """Return the path of their listing; in all namespaces without a ``namespace``."""
        return path_of(f"{self.group}/{self.version}".lstrip("/"), self.kind, namespace)

    def key_of(self, body: Object) -> Key:
        """Return the key of the resource that the object belongs to."""
        return (str(body["metadata"]["namespace"]), self.resource_of(body))

    def put_into(self, cache: WatchCache, body: Object) -> Key:
        """Put the object into ``cache`` and return the key of its resource."""
        key = self.key_of(body)
        self.put(cache, key, body)
        return key


RESOURCES = Watched(
    GROUP,
    VERSION,
    PLURAL,
    KIND,
    _name,
    lambda cache, key, body: cache.put_resource(Resource(_trimmed(body))),
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
