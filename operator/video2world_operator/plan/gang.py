"""Choose how all nodes of the training group start together, and build its PodGroup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from video2world_operator.api.conditions import Reason
from video2world_operator.api.constants import GPU
from video2world_operator.api.resource import Video2WorldPostTrain
from video2world_operator.plan.optional_apis import Capabilities, OptionalApi
from video2world_operator.plan.stage import Manifest

__all__ = ["POD_GROUPS", "WAYS", "Gang", "choose"]


WAYS = (Reason.GANG_NATIVE, Reason.GANG_VOLCANO, Reason.GANG_COSCHEDULING, Reason.GANG_KUEUE)
POD_GROUPS: Mapping[Reason, OptionalApi] = {
    Reason.GANG_NATIVE: OptionalApi.NATIVE_POD_GROUP,
    Reason.GANG_VOLCANO: OptionalApi.VOLCANO_POD_GROUP,
    Reason.GANG_COSCHEDULING: OptionalApi.COSCHEDULING_POD_GROUP,
}
VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"  # annotation of pods


@dataclass(frozen=True)
class Gang:
    """A way of gang scheduling: the reason for its condition, and its changes to manifests."""

    reason: Reason
    facts: Mapping[str, Any]
    version: str = ""  # API version of its PodGroup; empty without one

    @property
    def scheduled(self) -> bool | None:
        """Whether the group starts together (or is one node); None until its scheduler acts."""
        if self.reason in WAYS:
            return None
        return self.reason is Reason.GANG_NOT_NEEDED

    @property
    def scheduler(self) -> str:
        """Human-readable name of the scheduler that has to act on the group."""
        return _SCHEDULERS.get(self.reason, "")

    def apply(self, manifests: tuple[Manifest, ...]) -> tuple[Manifest, ...]:
        """Return ``manifests`` of an attempt with a PodGroup in front, and the pods in it."""
        make = _GROUPS.get(self.reason)
        if make is None:
            return manifests
        *others, job = manifests
        group, metadata, spec = make(job, self.version)
        template = job["spec"]["template"]
        template = {
            "metadata": template["metadata"]
            | {
                name: template["metadata"].get(name, {}) | values
                for name, values in metadata.items()
            },
            "spec": template["spec"] | spec,
        }
        return (group, *others, job | {"spec": job["spec"] | {"template": template}})


def choose(resource: Video2WorldPostTrain, cluster: Capabilities, nodes: int | None = None) -> Gang:
    """Choose how the training group of ``resource`` starts together on this cluster.

    ``nodes`` is the size of an elastic group, by default that of the spec.
    """
    scheduling, nodes = resource.spec.scheduling, nodes or resource.spec.nodes
    facts = {"nodes": nodes}
    if nodes == 1:
        return Gang(Reason.GANG_NOT_NEEDED, facts)
    if scheduling.gang == "None":
        return Gang(Reason.GANG_OFF, facts)
    if scheduling.queue_name and scheduling.gang == "Auto":
        return Gang(Reason.GANG_KUEUE, facts | {"queue": scheduling.queue_name})
    for reason, api in POD_GROUPS.items():
        version = cluster.api_version(api)
        if version and scheduling.gang in ("Auto", reason):
            return Gang(reason, facts | {"version": version}, version)
    problem = "This cluster serves no PodGroup: nodes start one by one and hold their GPUs idle "
    problem += "until the last one starts. Install Kueue, Volcano or coscheduling, or use "
    problem += "Kubernetes 1.37 with scheduling.k8s.io/v1beta1 served."
    if scheduling.gang != "Auto":
        problem = f"spec.scheduling.gang: {scheduling.gang} is not served by this cluster; nodes "
        problem += "start one by one. Use Auto, or install it."
    return Gang(Reason.GANG_UNAVAILABLE, facts | {"problem": problem})


def _meta(job: Manifest) -> Manifest:
    own = job["metadata"]
    kept = {k: v for k, v in own["labels"].items() if not k.startswith("kueue.x-k8s.io/")}
    return {"name": own["name"], "namespace": own["namespace"], "labels": kept}


GroupParts = tuple[Manifest, Mapping[str, Mapping[str, str]], Mapping[str, Any]]


def _native(job: Manifest, version: str) -> GroupParts:
    """Use KEP-4671: pods wait until the PodGroup and ``minCount`` of its pods exist."""
    policy = {"gang": {"minCount": job["spec"]["completions"]}}
    group = {"apiVersion": version, "kind": "PodGroup", "metadata": _meta(job)}
    group["spec"] = {"schedulingPolicy": policy}
    return group, {}, {"schedulingGroup": {"podGroupName": job["metadata"]["name"]}}


def _volcano(job: Manifest, version: str) -> GroupParts:
    """Put the pods into a PodGroup as Volcano itself makes one for pods that lack it.

    Queue and priority are read from the pods: the scheduler takes both from the PodGroup only.
    """
    name, nodes = job["metadata"]["name"], job["spec"]["completions"]
    template = job["spec"]["template"]
    group = {"apiVersion": version, "kind": "PodGroup"}
    container = template["spec"]["containers"][0]
    limits = (container.get("resources") or {}).get("limits") or {}  # a podTemplate may remove them
    spec: dict[str, Any] = {"minMember": nodes}
    if GPU in limits:
        spec["minResources"] = {GPU: str(int(limits[GPU]) * nodes)}
    if queue := (template["metadata"].get("annotations") or {}).get(VOLCANO_QUEUE):
        spec["queue"] = queue
    if priority := template["spec"].get("priorityClassName"):
        spec["priorityClassName"] = priority
    annotations = {"scheduling.k8s.io/group-name": name}
    made = group | {"metadata": _meta(job), "spec": spec}
    scheduler = template["spec"].get("schedulerName", "volcano")
    return made, {"annotations": annotations}, {"schedulerName": scheduler}


def _coscheduling(job: Manifest, version: str) -> GroupParts:
    group = {"apiVersion": version, "kind": "PodGroup"}
    spec = {"minMember": job["spec"]["completions"], "scheduleTimeoutSeconds": 60}
    labels = {"scheduling.x-k8s.io/pod-group": job["metadata"]["name"]}
    return group | {"metadata": _meta(job), "spec": spec}, {"labels": labels}, {}


_SCHEDULERS: Mapping[Reason, str] = {
    Reason.GANG_NATIVE: "a kube-scheduler with the feature gate GangScheduling",
    Reason.GANG_VOLCANO: "Volcano's scheduler",
    Reason.GANG_COSCHEDULING: "a scheduler with the coscheduling plugin, and its controller",
    Reason.GANG_KUEUE: "Kueue",
}
_GROUPS: Mapping[Reason, Callable[[Manifest, str], GroupParts]] = {
    Reason.GANG_NATIVE: _native,
    Reason.GANG_VOLCANO: _volcano,
    Reason.GANG_COSCHEDULING: _coscheduling,
}
