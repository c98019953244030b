"""Look up what a reported text means and how to fix it, with the facts of one resource."""

from __future__ import annotations

from dataclasses import dataclass

from video2world_operator.api.constants import GPU
from video2world_operator.cli.snapshot import ClusterObjects, KubeObject
from video2world_operator.plan.stage import container_of
from video2world_operator.reconcile.known_errors import (
    BUSY_DEVICES,
    BUSY_GPUS,
    explain_error,
    remedy_facts,
)
from video2world_operator.reconcile.observed_state import Pod

__all__ = ["Cause", "Remedies"]


@dataclass(frozen=True)
class Cause:
    """Something that keeps a resource from making progress: what it is, how to fix it, and the
    text that was reported of it."""

    what: str
    remedy: str
    evidence: str = ""


class Remedies:
    """The known errors, with the facts of one stage of a resource filled in."""

    def __init__(self, resource: str, stage: str, job: str, objects: ClusterObjects) -> None:
        metadata, storage = objects.metadata, objects.spec.get("storage") or {}
        self.namespace = str(metadata.get("namespace", "default"))
        self._facts = remedy_facts(
            name=resource,
            namespace=self.namespace,
            job=job,
            stage=container_of(stage),
            local=not metadata,
            claim=storage.get("claimName") or f"{resource}-data",
        )
        trouble, remedy = _gpu_shortage(stage, objects)
        self._facts |= {"gpu_trouble": trouble, "gpu_remedy": remedy}

    def known(self, *texts: str, pod: Pod | None = None) -> Cause | None:
        """Return the cause for the first of ``texts`` that is known, if one is."""
        if (error := explain_error(texts, self._facts_of(pod))) is None:
            return None
        return Cause(error.what, error.remedy, error.text)

    def fill(self, template: str, pod: Pod | None = None) -> str:
        """Fill the facts into a remedy."""
        return template.format_map(self._facts_of(pod))

    def _facts_of(self, pod: Pod | None) -> dict[str, str]:
        return self._facts | ({"pod": pod.name} if pod else {})


def _gpu_shortage(stage: str, objects: ClusterObjects) -> tuple[str, str]:
    """Tell GPUs that are in use from GPUs that the cluster does not have; what, and the remedy."""
    if _claims_devices(stage, objects.spec):
        return BUSY_DEVICES.what.format(stage=stage), BUSY_DEVICES.remedy
    counts = [_gpus_of(node) for node in objects.nodes or ()]
    wanted = objects.gpus_per_node if stage == "train" else 1
    if objects.nodes is not None and not any(counts):
        return (
            f"No node in the cluster has GPUs ({GPU}).",
            "Add GPU nodes with NVIDIA's device plugin, or use spec.model.size: Tiny",
        )
    if counts and (most := max(counts)) < wanted:
        return (
            f"Each training pod requests {wanted} GPUs, but the largest node has {most}.",
            f"Set spec.training.gpusPerNode to at most {most} and spec.training.nodes accordingly "
            "(in a new resource: they cannot be changed later)",
        )
    return BUSY_GPUS.what.format(stage=stage), BUSY_GPUS.remedy


def _claims_devices(stage: str, spec: KubeObject) -> bool:
    """Return whether the stage's pods claim devices instead of requesting GPUs."""
    own = (spec.get("stages") or {}).get(container_of(stage)) or {}
    group = spec.get("training") or {} if stage == "train" else {}
    return bool(own.get("resourceClaims") or group.get("resourceClaims"))


def _gpus_of(node: KubeObject) -> int:
    return int((node.get("status") or {}).get("allocatable", {}).get(GPU, 0))
