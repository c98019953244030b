"""Define the API group and kind, the stages, and limits that several modules use."""

from __future__ import annotations

__all__ = [
    "API_VERSION",
    "CAPTIONS_MISSING",
    "CAPTIONS_PREPARED",
    "GPU",
    "GROUP",
    "KIND",
    "MAX_NAME",
    "MAX_PROMPTS",
    "MULTIKUEUE",
    "PLURAL",
    "QUEUE_MISSING",
    "RESERVED_ENV",
    "RESULTS_DELETED",
    "STAGES",
    "STAGES_WITHOUT_GPU",
    "UNKNOWN_ITERATION",
    "VERSION",
]

GROUP, VERSION = "video2world.dev", "v1alpha1"
API_VERSION, KIND, PLURAL = f"{GROUP}/{VERSION}", "Video2WorldPostTrain", "video2worldposttrains"
MULTIKUEUE = "kueue.x-k8s.io/multikueue"  # spec.managedBy of what Kueue sends to another cluster
STAGES = (
    "download",
    "dataset",
    "captions",
    "embeddings",
    "latents",
    "train",
    "inference",
    "evaluation",
)
STAGES_WITHOUT_GPU = ("download", "dataset", "captions")
GPU = "nvidia.com/gpu"  # as limits name it, which NVIDIA's device plugin serves
MAX_PROMPTS = 100_000  # characters of all prompts together, which an annotation of the pod holds
MAX_NAME = 40  # leaves room for "-embeddings", "-train-<attempt>-<index>" within 63 characters
CAPTIONS_MISSING = (
    "caption: Endpoint leaves the captions to dataset.captions; set its endpoint and model, or use "
    "Task"
)
CAPTIONS_PREPARED = (
    "a prepared dataset is not changed; remove captions, use videos instead of prepared, or run "
    "python -m video2world_preprocess.captions on the folder"
)
UNKNOWN_ITERATION = (
    "with training.checkpoint.everyIterations: Auto, only the last iteration is known to have a "
    "checkpoint; use latest, best, all or training.iterations, or set everyIterations to a number"
)
QUEUE_MISSING = "MultiKueue sends what waits in a queue; set the LocalQueue, or remove managedBy"
RESULTS_DELETED = (
    "with Delete the results would be lost: at the end MultiKueue deletes the resource in the "
    "cluster where it ran; use Keep, or remove managedBy"
)
# Environment variables that the operator or torchrun sets; a trailing _ marks a prefix.
RESERVED_ENV = ("PET_", "MASTER_", "V2W_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
