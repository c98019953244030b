"""Name the API group, its kind and the limits that several modules need."""

from __future__ import annotations

__all__ = ["API_VERSION", "GROUP", "KIND", "PLURAL", "STAGES"]

GROUP, VERSION = "video2world.dev", "v1alpha1"
API_VERSION, KIND, PLURAL = f"{GROUP}/{VERSION}", "Video2WorldPostTrain", "video2worldposttrains"
STAGES = ("download", "dataset", "embeddings", "latents", "train", "inference")
MAX_PROMPTS = 100_000  # characters of all samples: they travel in an annotation of the pod
MAX_NAME = 40  # leaves room for "-embeddings", "-train-<attempt>-<index>" within 63 characters
RESERVED_ENV = ("PET_", "MASTER_", "V2W_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
