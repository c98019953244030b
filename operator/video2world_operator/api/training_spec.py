"""Define spec.training: how the model is trained, and on how many GPUs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from video2world_operator.api.device_claims import ResourceClaims
from video2world_operator.api.fields import ApiModel, FolderName, Override, Text, with_example

__all__ = ["CheckpointSpec", "PhaseSpec", "TrainingSpec"]

MAX_PHASES = 8


class CheckpointSpec(ApiModel):
    """When checkpoints are saved and how many are kept."""

    every_iterations: Annotated[int, Field(ge=1, le=10_000_000, strict=True)] | Literal["Auto"] = (
        Field(
            default=500,
            description="Iterations between two checkpoints. Auto lets the trainer choose as many "
            "as lose least time, from what a save costs and how often runs fail "
            "(status.progress.checkpointInterval).",
        )
    )
    keep: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Number of newest checkpoints to keep; older ones are deleted.",
    )


class PhaseSpec(ApiModel):
    """Iterations at one resolution."""

    resolution: Literal["480p", "720p"] = Field(
        description="Frame size, as in model.resolution; its latents are computed once, before "
        "training."
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Optimizer steps of this phase. The last phase may leave them out, and takes "
        "the rest of training.iterations, which can then be raised later.",
    )


class ValidationSpec(ApiModel):
    """When the loss on held-out clips is measured, and on what."""

    every_iterations: int = Field(
        default=500,
        ge=1,
        le=10_000_000,
        description="Iterations between two validations; the base weights and the last iteration "
        "are validated too. Checkpoints of other iterations have no validation loss, so "
        "checkpoint.everyIterations should be a multiple of it.",
    )
    clips: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Held-out clips, chosen evenly from the windows in val/; defaults to 16, or to "
        "all if there are fewer.",
    )
    levels: int = Field(
        default=4,
        ge=3,
        le=64,
        description="Noise levels per clip. All clips together cover clips x levels equally "
        "probable levels of training's distribution.",
    )
    weights: Literal["Regular", "EMA"] = Field(
        default="Regular",
        description="Weights to validate: the trained ones, or their exponential moving average "
        "(training.ema).",
    )


class StopWhenSpec(ApiModel):
    """When training ends before its last iteration, successfully and with a checkpoint."""

    validation_loss_not_better_for: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="End training after this many validations in a row without a lower validation "
        "loss; defaults to never.",
        examples=[3],
    )


class ActionConditioningSpec(ApiModel):
    """How actions enter the network."""

    variant: Literal["PerFrame", "PerClip"] = Field(
        default="PerFrame",
        description="PerFrame embeds the actions of each latent frame: any number of numbers per "
        "action, any clip length, with text, starting from the base weights. PerClip is NVIDIA's "
        "published network: 2B, clips of 13 frames of 480x640 with 12 actions of seven numbers, "
        "without text and guidance, starting from Cosmos-Predict2-2B-Sample-Action-Conditioned.",
    )


class ConditioningSpec(ApiModel):
    """What the videos depend on besides frames and text."""

    model_config = with_example({"actions": {"variant": "PerFrame"}})

    actions: ActionConditioningSpec = Field(
        description="Condition the model on the dataset's actions."
    )


class LoRASpec(ApiModel):
    """Low-rank adapters, used if the architecture is LoRA."""

    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the adapters.")
    alpha: float = Field(
        default=16, ge=0.001, le=4096, description="Adapters are scaled by alpha / rank."
    )


class TrainingSpec(ApiModel):
    """How the model is trained."""

    model_config = with_example({"iterations": 1000})

    experiment: Text | None = Field(
        default=None,
        description="A named experiment of the guide, which sets model and training as the guide "
        "does; fields set here override it. Defaults to none.",
        examples=["predict2_video2world_training_2b_agibot_head_center_fisheye_color"],
    )
    overrides: list[Override] = Field(
        default=[],
        max_length=64,
        description="Overrides of the guide's command line, as name=value; each one sets the "
        "corresponding field of this resource, or a setting of the train command.",
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Total number of optimizer steps; raise it to train for longer. Required "
        "unless experiment sets it (100000), or phases add up to it.",
    )
    phases: list[PhaseSpec] = Field(
        default=[],
        max_length=MAX_PHASES,
        description="Resolutions to train at one after the other, such as many cheap iterations at "
        "480p and then some at 720p: one run with one learning-rate schedule and one batch size. "
        "Replaces model.resolution: base weights and inference are those of the last phase. "
        "Defaults to one phase.",
        examples=[
            [{"resolution": "480p", "iterations": 700}, {"resolution": "720p", "iterations": 300}]
        ],
    )
    nodes: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Pods of the training group; defaults to 1, for 14B to 4.",
    )
    min_nodes: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Fewest nodes to train on when fewer than nodes can be had for longer than "
        "the operator's elasticAfterSeconds: the next attempt resumes from the checkpoint on "
        "fewer nodes with the same global batch, and grows back at a checkpoint. Counts are used "
        "that divide nodes, at most by 64, and hold whole context-parallel groups. Defaults to "
        "nodes.",
        examples=[2],
    )
    gpus_per_node: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="Processes per node, with one GPU each (or none if the device is CPU); "
        "defaults to 8, for Tiny to 1.",
    )
    resource_claims: ResourceClaims = Field(
        default=[],
        description="ResourceClaimTemplates of Dynamic Resource Allocation that each pod of the "
        "training group gets its GPUs from, gpusPerNode in all, instead of by a limit of "
        "nvidia.com/gpu; defaults to the limit.",
    )
    device: Literal["Auto", "CPU", "GPU"] = Field(
        default="Auto",
        description="Device that the model runs on; Auto is CPU for Tiny and GPU for the others.",
    )
    context_parallel_size: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Processes that share one clip (context parallelism); defaults to 2, for 14B "
        "to 8, for Tiny to 1.",
    )
    conditioning: ConditioningSpec | None = Field(
        default=None,
        description="What the videos depend on besides frames and text; defaults to nothing.",
    )
    architecture: Literal["Base", "LoRA"] = Field(
        default="Base", description="Train all weights (Base) or low-rank adapters only (LoRA)."
    )
    lora: LoRASpec = Field(default_factory=lambda: LoRASpec(), description="Adapters of LoRA.")
    attention: Literal[
        "Auto",
        "FlashAttention4",
        "FlashAttention3",
        "FlashAttention2",
        "TransformerEngine",
        "Torch",
    ] = Field(
        default="Auto",
        description="Attention backend; Auto selects the fastest that the GPU supports.",
    )
    attention_pattern: Literal["Dense", "Sparse"] = Field(
        default="Dense",
        description="Dense self-attention between all tokens, or Sparse as in NVIDIA's -natten "
        "weights for 720p, from which training then starts. Checkpoints record it, and inference "
        "follows.",
    )
    batch_size: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Clips per micro-batch in each context-parallel group.",
    )
    gradient_accumulation: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Micro-batches per iteration, whose gradients are averaged. An iteration "
        "trains on batchSize x gradientAccumulation clips in each context-parallel group.",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Base learning rate of AdamW; defaults to 2^-15.5, for Tiny to 0.002.",
        examples=[1e-5],
    )
    warmup_iterations: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Iterations over which the learning rate warms up; defaults to 2000, for Tiny "
        "to 50.",
    )
    clips_per_window: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Clips encoded from each window, with different first frames.",
    )
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="Seed of noise, data order and clip positions."
    )
    ema: bool = Field(
        default=True,
        description="Keep an exponential moving average of the weights in checkpoints.",
    )
    checkpoint: CheckpointSpec = Field(
        default_factory=lambda: CheckpointSpec(),
        description="When checkpoints are saved and how many are kept.",
    )
    validation: ValidationSpec | None = Field(
        default=None,
        description="Measure the loss on held-out clips, at the same noise each time; defaults to "
        "not measuring it. An empty object uses the defaults.",
    )
    stop_when: StopWhenSpec = Field(
        default_factory=lambda: StopWhenSpec(),
        description="When training ends before its last iteration.",
    )
    max_restarts: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="Restarts after crashes of the trainer before the resource fails; lost nodes "
        "and preemption are not counted.",
    )
    restart_backoff_seconds: int = Field(
        default=10,
        ge=0,
        le=3600,
        description="Seconds before the first restart after a crash; doubled for each further one, "
        "up to ten minutes. Restarts that are not counted happen at once.",
    )
    hang_timeout_seconds: int = Field(
        default=1800,
        ge=30,
        le=86400,
        description="Seconds without an iteration after which the trainer logs the stacks of its "
        "threads and exits, so that a hung collective does not hold GPUs; the group restarts.",
    )
    gradient_clip_norm: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Norm to which gradients are clipped; defaults to no clipping, as in the "
        "original code.",
        examples=[1.0],
    )
    stop_when_diverged: bool = Field(
        default=False,
        description="Fail the run when its loss diverges (stays far above its minimum, or above "
        "that of predicting zero), keep the last checkpoint from before and delete later ones; "
        "otherwise status and results page only warn.",
    )
    interconnect: Literal["Auto", "Ethernet", "InfiniBand", "RoCE", "EFA"] = Field(
        default="Auto",
        description="Network that NCCL uses between nodes; Auto leaves the choice to NCCL. Device "
        "resources of the network (rdma/..., vpc.amazonaws.com/efa) go into "
        "stages.train.resources.",
    )
    rendezvous_port: int = Field(
        default=29500,
        ge=1024,
        le=65533,
        description="TCP port of the rendezvous between nodes; the next two are used too, the "
        "second of them for the trainer's Prometheus metrics.",
    )
    job_name: FolderName | None = Field(
        default=None,
        description="Folder of the run under checkpoints/posttraining/video2world/ and results/; "
        "defaults to the resource's name, with an experiment to the guide's.",
    )
