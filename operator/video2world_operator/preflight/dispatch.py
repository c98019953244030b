"""Find out whether a controller manages a resource that MultiKueue sends to another cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from video2world_operator.api.constants import GROUP, KIND, MULTIKUEUE, VERSION
from video2world_operator.kube.client import ApiClient, path_of
from video2world_operator.kube.discovery import discover
from video2world_operator.plan.labels import RESOURCE_LABEL
from video2world_operator.plan.multikueue import own_workloads
from video2world_operator.plan.optional_apis import OptionalApi

__all__ = ["DispatchFacts", "Unmanaged", "read_dispatch", "why_unmanaged"]

Object = Mapping[str, Any]
ADAPTER = f"{KIND}.{VERSION}.{GROUP}"  # its name in Kueue's configuration
_SETUP = f"name {ADAPTER} under multiKueue.externalFrameworks in Kueue's configuration"


@dataclass(frozen=True)
class DispatchFacts:
    """What the cluster that sends a resource has for it; None: missing, or no permission.

    ``workload`` is the resource's own one, if there is one already.
    """

    queue: str
    served: bool = False
    local_queue: Object | None = None
    cluster_queue: Object | None = None
    checks: Sequence[Object] | None = None
    workload: Object | None = None

    @property
    def cluster(self) -> str:
        """The cluster that runs the resource; empty until there is one."""
        return str(self._status.get("clusterName") or "")

    @property
    def waits(self) -> str:
        """What Kueue says while the resource waits for a cluster; empty if it does not."""
        if self.workload is None or self.cluster or self.finished:
            return ""
        for check in self._status.get("admissionChecks") or ():
            if check.get("state") != "Ready" and check.get("message"):
                return str(check["message"])
        for one in self._status.get("conditions") or ():
            if one["type"] == "QuotaReserved" and one["status"] == "False":
                return str(one.get("message", ""))
        return "no cluster has admitted it yet"

    @property
    def finished(self) -> bool:
        """Whether it has ended, and its copy is deleted."""
        conditions = self._status.get("conditions") or ()
        return any((c["type"], c["status"]) == ("Finished", "True") for c in conditions)

    @property
    def rejection(self) -> str:
        """Why Kueue will never send it; empty if it may."""
        for check in self._status.get("admissionChecks") or ():
            if check.get("state") == "Rejected":
                return str(check.get("message", ""))
        if (self.workload or {}).get("spec", {}).get("active", True):
            return ""
        for one in self._status.get("conditions") or ():
            if one["type"] == "Evicted" and one["status"] == "True":
                return str(one.get("message", ""))
        return "its Workload is not active"

    @property
    def _status(self) -> Object:
        return (self.workload or {}).get("status") or {}


@dataclass(frozen=True)
class Unmanaged:
    """Why no controller manages a resource, and what to do about it."""

    what: str
    remedy: str


def why_unmanaged(facts: DispatchFacts) -> Unmanaged | None:
    """Return why no controller manages a resource of MultiKueue; None if one may."""
    if not facts.served:
        return Unmanaged(
            f"spec.managedBy is {MULTIKUEUE}, but this cluster serves no Kueue",
            f"install Kueue and {_SETUP}, or create the resource without managedBy",
        )
    if facts.local_queue is None:
        return Unmanaged(
            f"there is no LocalQueue {facts.queue} in this namespace, or you may not see it",
            "create it, or name another one in spec.scheduling.queueName while suspended",
        )
    if facts.cluster_queue is None:
        return None
    name = facts.cluster_queue["metadata"]["name"]
    used = _checks_of(facts.cluster_queue)
    sending = [
        check
        for check in facts.checks or ()
        if check["spec"].get("controllerName") == MULTIKUEUE and check["metadata"]["name"] in used
    ]
    if facts.checks is not None and not sending:
        return Unmanaged(
            f"ClusterQueue {name} has no admission check of MultiKueue: it would admit the "
            "resource in this cluster, where nothing runs it",
            f"add an AdmissionCheck with controllerName {MULTIKUEUE} to it, or name the queue of "
            "another one",
        )
    for check in sending:
        for one in (check.get("status") or {}).get("conditions") or ():
            if one["type"] == "Active" and one["status"] == "False":
                about = check["metadata"]["name"]
                return Unmanaged(
                    f"AdmissionCheck {about} is not active: {one.get('message', '')}",
                    f"kubectl describe admissioncheck {about}, and its MultiKueueClusters",
                )
    if rejection := facts.rejection:
        return Unmanaged(f"Kueue does not send it: {rejection}", f"{_SETUP}, and create it anew")
    return None


async def read_dispatch(client: ApiClient, body: Object, namespace: str) -> DispatchFacts:
    """Read what concerns a resource of MultiKueue, as far as the user may see it."""
    queue = str((body["spec"].get("scheduling") or {}).get("queueName") or "")
    version = (await discover(client)).api_version(OptionalApi.WORKLOAD)
    if not version:
        return DispatchFacts(queue)
    base = f"/apis/{version}"
    local = await client.get_if_allowed(f"{base}/namespaces/{namespace}/localqueues/{queue}")
    above = local and local["spec"].get("clusterQueue")
    cluster = await client.get_if_allowed(f"{base}/clusterqueues/{above}") if above else None
    checks = await client.get_if_allowed(f"{base}/admissionchecks")
    label = f"{RESOURCE_LABEL}={body['metadata']['name']}"
    path = path_of(version, "Workload", namespace)
    found = await client.get_if_allowed(path, labelSelector=label) or {}
    ours = own_workloads(body, found.get("items", ())) if "uid" in body["metadata"] else []
    newest = max(ours, key=lambda w: w["metadata"]["creationTimestamp"], default=None)
    return DispatchFacts(
        queue=queue,
        served=True,
        local_queue=local,
        cluster_queue=cluster,
        checks=None if checks is None else checks["items"],
        workload=newest,
    )


def _checks_of(cluster_queue: Object) -> set[str]:
    """Return the names of a ClusterQueue's admission checks."""
    spec = cluster_queue["spec"]
    strategy = (spec.get("admissionChecksStrategy") or {}).get("admissionChecks") or ()
    return {*(spec.get("admissionChecks") or ()), *(one["name"] for one in strategy)}
