"""Name the labels and annotations of the objects that a plan creates."""

from __future__ import annotations

from video2world_operator.api.constants import GROUP

__all__ = [
    "ATTEMPT_LABEL",
    "EVICTION_COST_ANNOTATION",
    "HASH_ANNOTATION",
    "PODS_ANNOTATION",
    "RESOURCE_LABEL",
    "STAGE_LABEL",
]

RESOURCE_LABEL, STAGE_LABEL = f"{GROUP}/resource", f"{GROUP}/stage"
ATTEMPT_LABEL, HASH_ANNOTATION = f"{GROUP}/attempt", f"{GROUP}/inputs-hash"
PODS_ANNOTATION = f"{GROUP}/pods-hash"  # identifies the fields of the spec that shape the pods
# GPU seconds that an eviction of the train Job's pods would lose, in steps
EVICTION_COST_ANNOTATION = f"{GROUP}/eviction-cost-gpu-seconds"
SAMPLES_ANNOTATION = f"{GROUP}/samples"
ORIGIN_LABEL = "kueue.x-k8s.io/multikueue-origin"  # of a resource that MultiKueue has copied here
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
