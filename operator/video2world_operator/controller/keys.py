"""Define the keys under which the controller caches resources and volumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from video2world_operator.reconcile.observed_state import Job, Pod

__all__ = ["Cache", "Key", "Volume", "volume_of"]

Key = tuple[str, str]  # namespace and name of a resource
Volume = tuple[str, str, str]  # namespace, claim and folder of it
Object = Mapping[str, Any]


class Cache(Protocol):
    """What is known of the cluster, kept up to date by watches."""

    def resource(self, key: Key) -> Object | None:
        """The resource as the API server gave it last."""

    def sharing(self, volume: Volume) -> Iterable[Object]:
        """The resources whose spec names this volume."""

    def known(self) -> Sequence[Key]:
        """Namespace and name of every resource."""

    def jobs(self, key: Key) -> Iterable[Job]:
        """The Jobs that bear the resource's label."""

    def pods(self, key: Key) -> Iterable[Pod]:
        """The pods that bear the resource's label."""


def volume_of(body: Object) -> Volume:
    """Namespace, claim and folder that the spec names; the claim is empty for one of its own."""
    storage = (body.get("spec") or {}).get("storage") or {}
    claim, folder = storage.get("claimName") or "", storage.get("subPath") or ""
    return (body["metadata"]["namespace"], claim, folder)
