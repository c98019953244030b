"""Assemble the spec of a resource from its sections, and resolve its defaults.

The CRD is generated from these models (:mod:`video2world_operator.api.crd_schema`). Optional fields
without a default follow from the model size: read them through the properties of :class:`Spec`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from video2world_common import per_clip_actions
from video2world_common.model_sizes import SIZES
from video2world_operator.api.constants import MULTIKUEUE
from video2world_operator.api.dataset_spec import DatasetSpec
from video2world_operator.api.device_claims import ResourceClaimSpec
from video2world_operator.api.evaluation_spec import EvaluationSpec
from video2world_operator.api.fields import ApiModel, with_example
from video2world_operator.api.inference_spec import InferenceSpec
from video2world_operator.api.model_spec import ModelSpec
from video2world_operator.api.pods import (
    CredentialsSpec,
    ImagesSpec,
    SchedulingSpec,
    SecretKey,
    StagesSpec,
    StorageSpec,
)
from video2world_operator.api.training_spec import TrainingSpec

__all__ = ["MAX_ACCUMULATION", "Spec", "TrainingPhase"]

MAX_ACCUMULATION = 64  # times longer that an iteration of the smallest group takes, at most


class TrainingPhase(NamedTuple):
    """Part of a run that trains at one resolution.

    ``iterations`` are those of this phase alone; ``video_size`` is the height and width of one
    frame in pixels.
    """

    resolution: str
    iterations: int
    video_size: tuple[int, int]


class Spec(ApiModel):
    """Desired state of a post-training run."""

    model_config = with_example(
        {
            "model": {"size": "2B"},
            "dataset": {"agibot": {"taskIDs": [327]}},
            "training": {"iterations": 1000},
        }
    )

    model: ModelSpec = Field(description="The model to post-train.")
    dataset: DatasetSpec = Field(description="The training videos.")
    training: TrainingSpec = Field(description="How the model is trained.")
    inference: InferenceSpec = Field(
        default_factory=lambda: InferenceSpec(),
        description="Videos to generate from the post-trained model.",
    )
    evaluation: EvaluationSpec | None = Field(
        default=None,
        description="Comparison of checkpoints with the base weights on held-out windows; defaults "
        "to none.",
    )
    storage: StorageSpec = Field(default_factory=lambda: StorageSpec(), description="The volume.")
    credentials: CredentialsSpec = Field(
        default_factory=lambda: CredentialsSpec(), description="Secrets that stages read."
    )
    scheduling: SchedulingSpec = Field(
        default_factory=lambda: SchedulingSpec(), description="Queue, gang and placement."
    )
    images: ImagesSpec = Field(
        default_factory=lambda: ImagesSpec(), description="Container images."
    )
    stages: StagesSpec = Field(
        default_factory=lambda: StagesSpec(), description="Settings of individual stages."
    )
    managed_by: Literal["video2world.dev/operator", "kueue.x-k8s.io/multikueue"] | None = Field(
        default=None,
        description="Who runs this resource: the operator of this cluster (the default), or Kueue, "
        "which sends it to another cluster (MultiKueue). Cannot be changed.",
    )
    suspend: bool = Field(
        default=False,
        description="Save a checkpoint, delete all pods and wait until this is false again.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="Seconds of activity after which the resource fails, starting anew with each "
        "resume; defaults to no limit.",
    )
    cleanup_policy: Literal["Running", "All"] = Field(
        default="Running",
        description="Which Jobs are deleted at the end: only those still running (the logs of the "
        "others remain readable), or all.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="Seconds after which a finished resource is deleted; defaults to never.",
    )

    @property
    def dispatched(self) -> bool:
        """Whether MultiKueue runs this resource in another cluster."""
        return self.managed_by == MULTIKUEUE

    @property
    def tiny(self) -> bool:
        """Whether this is the demonstration model, whose frame and clip sizes are fixed."""
        return self.model.size == "Tiny"

    @property
    def iterations(self) -> int:
        """Total number of optimizer steps."""
        return self.training.iterations or sum(p.iterations or 0 for p in self.training.phases)

    @property
    def resolution(self) -> str:
        """Resolution at which the run ends."""
        if self.per_clip:
            return "480p"
        phases = self.training.phases
        return phases[-1].resolution if phases else self.model.resolution

    @property
    def phases(self) -> tuple[TrainingPhase, ...]:
        """The run's phases in order, whose iterations add up to those of the run."""
        sizes = SIZES[self.model.size].frame_sizes
        found, left = list[TrainingPhase](), self.iterations
        for phase in self.training.phases[:-1]:
            count = phase.iterations or 0
            found.append(TrainingPhase(phase.resolution, count, sizes[phase.resolution]))
            left -= count
        return (*found, TrainingPhase(self.resolution, left, self.video_size))

    @property
    def nodes(self) -> int:
        """Pods of the training group."""
        return self.training.nodes or SIZES[self.model.size].nodes

    @property
    def usable_nodes(self) -> tuple[int, ...]:
        """Node counts that an attempt may have, largest first."""
        least = self.training.min_nodes or self.nodes
        return tuple(count for count in self.nodes_keeping_batch if count >= least)

    @property
    def nodes_keeping_batch(self) -> tuple[int, ...]:
        """Node counts with which gradient accumulation keeps the global batch, largest first.

        They divide the nodes asked for, and hold whole context-parallel groups.
        """
        size, each = self.nodes, self.processes_per_node
        counts = (size // k for k in range(1, MAX_ACCUMULATION + 1) if size % k == 0)
        return tuple(count for count in counts if count * each % self.context_parallel == 0)

    @property
    def pods_sharing_volume(self) -> int:
        """Largest number of pods that use the volume at the same time."""
        samplers = self.inference.pods(1) if self.inference.every_checkpoint else 0
        inference = self.inference.pods(self.inference.count)
        return max(self.nodes + samplers, self.dataset.shards, inference)

    @property
    def processes_per_node(self) -> int:
        """Processes that torchrun starts on each node."""
        return self.training.gpus_per_node or SIZES[self.model.size].processes_per_node

    def resource_claims(self, stage: str) -> list[ResourceClaimSpec]:
        """Return the claims that a pod of ``stage`` gets its GPUs from; empty: a limit."""
        own: list[ResourceClaimSpec] = getattr(self.stages, stage).resource_claims
        return (self.training.resource_claims if stage == "train" else []) or own

    @property
    def context_parallel(self) -> int:
        """Processes that share one clip."""
        return self.training.context_parallel_size or SIZES[self.model.size].context_parallel_size

    @property
    def volume_size(self) -> str:
        """Size of the PVC to create."""
        return self.storage.size or SIZES[self.model.size].volume_size

    @property
    def device(self) -> str:
        """CPU or GPU."""
        chosen = self.training.device
        return SIZES[self.model.size].device if chosen == "Auto" else chosen

    @property
    def sparse(self) -> bool:
        """Whether self-attention is sparse."""
        return self.training.attention_pattern == "Sparse"

    @property
    def per_clip(self) -> bool:
        """Whether this is the published action-conditioned network, with its fixed clips."""
        conditioning = self.training.conditioning
        return conditioning is not None and conditioning.actions.variant == "PerClip"

    @property
    def guidance(self) -> float:
        """Weight of guidance, which a network without text has no use for."""
        return 0.0 if self.per_clip else self.inference.guidance

    def ranks_per_branch(self, gpus: int) -> int:
        """Return how many of a pod's ``gpus`` share a branch of guidance; they divide the heads."""
        return gpus // 2 if self.guidance and gpus % 2 == 0 else gpus

    @property
    def gpus(self) -> int:
        """GPUs of the training group."""
        return self.gpus_on(self.nodes)

    def gpus_on(self, nodes: int) -> int:
        """Return the GPUs of a training group of so many nodes."""
        return 0 if self.device == "CPU" else nodes * self.processes_per_node

    @property
    def token_secrets(self) -> list[SecretKey]:
        """The keys of Secrets that stages get as environment variables."""
        captions = self.dataset.captions
        tokens = (self.credentials.hugging_face_token_secret, captions and captions.token_secret)
        return [token for token in tokens if token]

    @property
    def rope_ratios(self) -> tuple[float, float, float]:
        """RoPE extrapolation ratios over height, width and time."""
        height, width, time = SIZES[self.model.size].rope_ratios
        ratio = self.model.rope_ratio
        return (height, width, time) if ratio is None else (ratio, ratio, time)

    @property
    def learning_rate(self) -> float:
        """Base learning rate of AdamW."""
        return self.training.learning_rate or SIZES[self.model.size].learning_rate

    @property
    def warmup_iterations(self) -> int:
        """Iterations over which the learning rate warms up."""
        own = self.training.warmup_iterations
        return SIZES[self.model.size].warmup_iterations if own is None else own

    @property
    def num_frames(self) -> int:
        """Pixel frames of one clip."""
        if self.per_clip:
            return per_clip_actions.FRAMES
        return SIZES[self.model.size].clip_frames[self.model.fps]

    @property
    def video_size(self) -> tuple[int, int]:
        """Height and width of one frame in pixels, at which the run ends."""
        if self.per_clip:
            return per_clip_actions.FRAME_SIZE
        return SIZES[self.model.size].frame_sizes[self.resolution]
