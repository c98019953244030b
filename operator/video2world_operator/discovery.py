"""What a cluster serves: its API groups, and which ways to schedule a gang they are."""

from __future__ import annotations

from .cluster import Cluster
from .observed import Capabilities

__all__ = ["discover"]

_POD_GROUP_VERSIONS = ("v1", "v1beta1", "v1alpha2")  # of scheduling.k8s.io, the best first


async def discover(cluster: Cluster) -> tuple[Capabilities, list[str]]:
    """What the cluster can schedule as a gang, and the names of all its API groups."""
    listing = await cluster.request("GET", "/apis")
    groups = {g["name"]: [v["version"] for v in g["versions"]] for g in listing["groups"]}
    native = ""
    for version in _POD_GROUP_VERSIONS:
        if not native and version in groups.get("scheduling.k8s.io", []):
            served = await cluster.get(f"/apis/scheduling.k8s.io/{version}") or {}
            if any(r["name"] == "podgroups" for r in served.get("resources", [])):
                native = version
    capabilities = Capabilities(
        native=native,
        volcano="scheduling.volcano.sh" in groups,
        coscheduling="scheduling.x-k8s.io" in groups,
    )
    return capabilities, list(groups)
