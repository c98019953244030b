"""Read what a cluster has for the claims of a plan, as far as the user or the operator may."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from video2world_operator.api.constants import STAGES
from video2world_operator.api.spec import Spec
from video2world_operator.kube.client import SMALL_PAGE, ApiClient
from video2world_operator.kube.errors import ApiError
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi
from video2world_operator.preflight.facts import DeviceFacts, Object

__all__ = ["device_facts", "list_slices", "template_names"]

_FORBIDDEN = 403


def template_names(spec: Spec) -> list[str]:
    """Return the ResourceClaimTemplates that the stages name."""
    claims = (claim for stage in STAGES for claim in spec.resource_claims(stage))
    return sorted({claim.resource_claim_template_name for claim in claims})


async def list_slices(cluster: ApiClient, capabilities: Capabilities) -> Sequence[Object] | None:
    """Return the ResourceSlices; None if they may not be listed, or are not served."""
    return await _listed(cluster, capabilities.path(OptionalApi.RESOURCE_SLICE))


async def device_facts(
    cluster: ApiClient,
    capabilities: Capabilities,
    namespace: str,
    templates: Iterable[str],
    slices: Sequence[Object] | None,
) -> DeviceFacts:
    """Read these ResourceClaimTemplates and the DeviceClasses; ``slices`` are listed already."""
    if OptionalApi.RESOURCE_CLAIM_TEMPLATE not in capabilities.versions:
        return DeviceFacts(served=False)
    found, unreadable = dict[str, Object | None](), set[str]()
    for name in templates:
        path = capabilities.path(OptionalApi.RESOURCE_CLAIM_TEMPLATE, namespace, name)
        try:
            found[name] = await cluster.get(path)
        except ApiError as error:
            if error.code != _FORBIDDEN:
                raise
            unreadable.add(name)
    classes = await _listed(cluster, capabilities.path(OptionalApi.DEVICE_CLASS))
    by_name = None if classes is None else {one["metadata"]["name"]: one for one in classes}
    return DeviceFacts(True, slices, by_name, found, frozenset(unreadable))


async def _listed(cluster: ApiClient, path: str) -> list[Object] | None:
    """Return the objects at ``path``, without what no check reads; None if that is forbidden."""
    if not path:
        return None
    try:
        found = cluster.list_objects(path, page=SMALL_PAGE)
        return [
            {"metadata": {"name": one["metadata"]["name"]}, "spec": one["spec"]}
            async for one in found
        ]
    except ApiError as error:
        if error.code != _FORBIDDEN:
            raise
        return None
