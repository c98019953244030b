"""Discover which optional APIs a cluster serves, and in which version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.gang import Capabilities

__all__ = ["discover"]


@dataclass(frozen=True)
class _Api:
    """A resource of an API group; ``known`` are the tested versions, best first.

    If no tested version is served, another one is used: a PodGroup is created with strict field
    validation, so the API server refuses fields that the version does not have.
    """

    group: str
    resource: str
    known: tuple[str, ...] = ()


_APIS = {
    "native": _Api("scheduling.k8s.io", "podgroups", ("v1", "v1beta1", "v1alpha2")),
    "volcano": _Api("scheduling.volcano.sh", "podgroups", ("v1beta1",)),
    "coscheduling": _Api("scheduling.x-k8s.io", "podgroups", ("v1alpha1",)),
    "kueue": _Api("kueue.x-k8s.io", "localqueues"),
}


async def discover(cluster: ApiClient) -> Capabilities:
    """Find the version of each optional API that the cluster serves with its resource.

    Raises:
        ApiError, OSError: the API server does not answer.
    """
    listing = await cluster.request("GET", "/apis")
    groups = {group["name"]: group for group in listing["groups"]}
    found = {name: await _version(cluster, api, groups) for name, api in _APIS.items()}
    return Capabilities(**found)


async def _version(cluster: ApiClient, api: _Api, groups: dict[str, Any]) -> str:
    """Return the version in which the resource is served; empty if it is not."""
    if (group := groups.get(api.group)) is None:
        return ""
    preferred = (group.get("preferredVersion") or {}).get("version")
    served: list[str] = [version["version"] for version in group["versions"]]
    served.sort(key=lambda version: version != preferred)  # otherwise in the server's order
    order = [version for version in api.known if version in served]
    for version in order + [version for version in served if version not in api.known]:
        try:
            listed = await cluster.get(f"/apis/{api.group}/{version}") or {}
        except ApiError:
            continue  # an aggregated API that is down
        if any(one["name"] == api.resource for one in listed.get("resources") or []):
            return version
    return ""
