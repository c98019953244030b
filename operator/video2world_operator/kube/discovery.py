"""Discover which optional APIs a cluster serves, and in which version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from video2world_operator.kube.client import ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi

__all__ = ["discover"]


async def discover(cluster: ApiClient) -> Capabilities:
    """Find the version of each optional API that the cluster serves with its kind.

    Raises:
        ApiError, OSError: the API server does not answer.
    """
    listing = await cluster.request("GET", "/apis")
    groups = {group["name"]: group for group in listing["groups"]}
    kinds: dict[str, frozenset[str]] = {}  # by group and version, each of which is read once

    async def serves(version: str, kind: str) -> bool:
        if version not in kinds:
            kinds[version] = await _kinds(cluster, version)
        return kind in kinds[version]

    found: dict[OptionalApi, str] = {}
    for api in OptionalApi:
        for version in _by_preference(api, groups.get(api.group) or {}):
            if await serves(f"{api.group}/{version}", api.kind):
                found[api] = version
                break
    return Capabilities(found)


def _by_preference(api: OptionalApi, group: Mapping[str, Any]) -> list[str]:
    """Return the versions of a group: the tested ones, then in the server's order of preference."""
    preferred = (group.get("preferredVersion") or {}).get("version")
    served: list[str] = [version["version"] for version in group.get("versions") or []]
    served.sort(key=lambda version: version != preferred)
    tested = [version for version in api.known if version in served]
    return tested + [version for version in served if version not in api.known]


async def _kinds(cluster: ApiClient, version: str) -> frozenset[str]:
    """Return the kinds that are served in this version of a group."""
    try:
        listed = await cluster.get(f"/apis/{version}") or {}
    except ApiError:
        return frozenset()  # an aggregated API that is down
    # a subresource is listed with the kind of what it takes, not with its own
    resources = [one for one in listed.get("resources") or [] if "/" not in one["name"]]
    return frozenset(one["kind"] for one in resources)
