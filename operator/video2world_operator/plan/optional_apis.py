"""List the APIs that a cluster may or may not serve, and hold which version of each it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import quote

__all__ = ["Capabilities", "OptionalApi"]

_DEVICES = ("v1", "v1beta2", "v1beta1")  # of Dynamic Resource Allocation


class OptionalApi(Enum):
    """A kind of an API group, with the tested versions, best first.

    No version is ever assumed: where none of these is served, another one is used. What is created
    in it is validated strictly, so the API server refuses fields that the version does not have.
    """

    NATIVE_POD_GROUP = ("scheduling.k8s.io", "PodGroup", ("v1", "v1beta1", "v1alpha2"))
    VOLCANO_POD_GROUP = ("scheduling.volcano.sh", "PodGroup", ("v1beta1",))
    COSCHEDULING_POD_GROUP = ("scheduling.x-k8s.io", "PodGroup", ("v1alpha1",))
    LOCAL_QUEUE = ("kueue.x-k8s.io", "LocalQueue", ("v1beta2", "v1beta1"))
    WORKLOAD = ("kueue.x-k8s.io", "Workload", ("v1beta2", "v1beta1"))
    RESOURCE_CLAIM_TEMPLATE = ("resource.k8s.io", "ResourceClaimTemplate", _DEVICES)
    DEVICE_CLASS = ("resource.k8s.io", "DeviceClass", _DEVICES)
    RESOURCE_SLICE = ("resource.k8s.io", "ResourceSlice", _DEVICES)

    def __init__(self, group: str, kind: str, known: tuple[str, ...]) -> None:
        self.group, self.kind, self.known = group, kind, known

    @property
    def plural(self) -> str:
        """Name of the resource in URLs and RBAC rules."""
        name = self.kind.lower()
        return f"{name}es" if name.endswith("s") else f"{name}s"


@dataclass(frozen=True)
class Capabilities:
    """Version of each optional API that the cluster serves; those it does not serve are absent.

    That an API is served does not mean that a scheduler acts on its objects.
    """

    versions: Mapping[OptionalApi, str] = field(default_factory=dict)

    def api_version(self, api: OptionalApi) -> str:
        """Return ``group/version`` of the API's objects; empty if it is not served."""
        version = self.versions.get(api, "")
        return f"{api.group}/{version}" if version else ""

    def path(self, api: OptionalApi, namespace: str | None = None, name: str = "") -> str:
        """Return the URL path of an object, or of all of its kind; empty if it is not served."""
        if not (version := self.api_version(api)):
            return ""
        within = f"/namespaces/{quote(namespace)}" if namespace else ""
        return f"/apis/{version}{within}/{api.plural}" + (f"/{quote(name)}" if name else "")
