"""Define a resource as the controller sees it: its object with the status typed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from video2world_operator.api.conditions import Type, is_true
from video2world_operator.api.status import Status, parse_status
from video2world_operator.plan.multikueue import is_dispatched

__all__ = ["Key", "Object", "Resource", "Volume"]

Key = tuple[str, str]  # namespace and name of a resource
Volume = tuple[str, str, str]  # namespace, PVC and folder in it
Object = Mapping[str, Any]


class Resource:
    """A Video2WorldPostTrain as the API server returned it; read-only.

    Its spec stays untyped here: it may be invalid, or of a newer version of the CRD.
    """

    def __init__(self, body: Object) -> None:
        self.body = body
        metadata = body["metadata"]
        self.uid, self.version = str(metadata["uid"]), str(metadata.get("resourceVersion", ""))
        self.key: Key = (str(metadata["namespace"]), str(metadata["name"]))

    @cached_property
    def status(self) -> Status:
        """Its status; empty while no operator has written one."""
        return parse_status(self.body.get("status"))

    @property
    def generation(self) -> int:
        """The number of its spec, which changes with every edit."""
        return int(self.body["metadata"].get("generation") or 0)

    @property
    def created(self) -> tuple[str, str]:
        """When it was created, with its UID to order resources of the same second."""
        return (self.body["metadata"]["creationTimestamp"], self.uid)

    @property
    def ended(self) -> bool:
        """Whether it has succeeded or failed."""
        conditions = self.status.conditions
        return is_true(conditions, Type.FAILED) or is_true(conditions, Type.SUCCEEDED)

    @property
    def dispatched(self) -> bool:
        """Whether another cluster runs it, whose operator writes its status."""
        return is_dispatched(self.body)

    @property
    def volume(self) -> Volume:
        """The volume that its spec names; the PVC is empty if the operator creates one for it."""
        storage = (self.body.get("spec") or {}).get("storage") or {}
        claim, folder = storage.get("claimName") or "", storage.get("subPath") or ""
        return (self.key[0], claim, folder)
