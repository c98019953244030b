"""Define spec.inference: the videos to generate from checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from video2world_operator.api.fields import (
    ActionSequence,
    ApiModel,
    Checkpoint,
    CheckpointName,
    Iteration,
    OutputName,
    VolumePath,
    reject_boolean,
    with_example,
)

__all__ = ["MAX_GPUS", "InferenceSpec"]

MAX_GPUS = 16  # of one pod


NegativePrompt = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class SampleSpec(ApiModel):
    """One video to generate."""

    model_config = with_example({"input": "val/videos/x.mp4"})

    input: VolumePath = Field(
        description="Image or video to continue: a path on the volume, or in the dataset's folder "
        "if it starts with val/ or train/.",
        examples=["val/videos/x.mp4"],
    )
    prompt: Annotated[str, StringConstraints(max_length=4096)] = Field(
        default="",
        description="Caption of the video to generate; defaults to the caption of the input.",
    )
    negative_prompt: NegativePrompt | None = Field(
        default=None,
        description="Text that guidance steers away from; defaults to a description of low "
        "quality, for Tiny to no text.",
    )
    actions: ActionSequence | None = Field(
        default=None,
        description="File with the sequence of actions to follow, if the model is conditioned on "
        "actions: a path as that of input. Long sequences are generated clip after clip. Defaults "
        "to the actions of the input, which must be a window of a dataset then.",
    )
    output: OutputName | None = Field(
        default=None,
        description="File name of the result, ending in .mp4; defaults to sample-<number>.mp4.",
    )
    seed: Seed | None = Field(
        default=None, description="Seed of the initial noise; defaults to inference.seed."
    )


class InferenceSpec(ApiModel):
    """Videos to generate from the post-trained checkpoints; none without samples."""

    samples: list[SampleSpec] = Field(default=[], max_length=64, description="Videos to generate.")
    checkpoint: Checkpoint | None = Field(
        default=None,
        description="Checkpoint to generate from: latest (the default), best (the least validation "
        "loss), the number of an iteration, or a weights file on the volume.",
    )
    checkpoints: list[CheckpointName | Iteration] = Field(
        default=[],
        max_length=64,
        description="Several checkpoints, instead of checkpoint: each is latest, best (the least "
        "validation loss), all (every one on the volume), the number of an iteration, or a weights "
        "file on the volume, without .. in its path. Each checkpoint's samples then have their "
        "own folder, such as results/<job>/iter_000000500/.",
    )
    every_checkpoint: bool = Field(
        default=False,
        description="Also generate samples from each checkpoint during training, in a Job of its "
        "own: one at a time, newest checkpoint first; checkpoints that are superseded meanwhile "
        "are skipped.",
    )
    parallelism: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Pods that divide the samples between them; more than one need a volume with "
        "ReadWriteMany.",
    )
    gpus: int = Field(
        default=1,
        ge=1,
        le=MAX_GPUS,
        description="GPUs of each pod, which share each sample (processes, if the device is CPU). "
        "With guidance and an even number, half of them evaluate the prompt and half the negative "
        "prompt; within each half, latent frames and attention heads are divided.",
    )
    offload: bool = Field(
        default=False,
        description="Keep the network's weights in host memory, for small GPUs; on by itself where "
        "the network would not fit otherwise.",
    )
    weights: Literal["Regular", "EMA"] = Field(
        default="Regular",
        description="Which weights of a checkpoint to use: the trained ones, or their exponential "
        "moving average (training.ema).",
    )
    num_conditional_frames: Annotated[Literal[1, 5], BeforeValidator(reject_boolean)] = Field(
        default=1, description="Frames of the input that the video continues."
    )
    frames_from: Literal["First", "Last"] = Field(
        default="First",
        description="Continue the input's First frames, to compare with those that follow, or its "
        "Last, as the original does.",
    )
    guidance: float = Field(
        default=7,
        ge=0,
        le=100,
        description="Weight of classifier-free guidance; 0 turns it off, as PerClip does, which "
        "has no text.",
    )
    seed: Seed = Field(default=0, description="Seed of the initial noise.")
    steps: int = Field(default=35, ge=1, le=1000, description="Steps of the solver.")
    mode: Literal["Exact", "Approximate"] = Field(
        default="Exact",
        description="Exact computes every step; Approximate extrapolates most of them, which takes "
        "about 40% of the time and changes the video slightly (docs/inference.md).",
    )
    lora_alpha: float | None = Field(
        default=None,
        ge=0.001,
        le=4096,
        description="Alpha of the LoRA adapters in weights files that do not record it, as files "
        "of the original code; adapters are scaled by alpha / rank.",
    )

    @property
    def names(self) -> list[str]:
        """Checkpoints of the inference stage, as the spec names them."""
        return [str(name) for name in self.checkpoints] or [self.checkpoint or "latest"]

    @property
    def count(self) -> int | None:
        """Number of these checkpoints; None if it is not known yet."""
        return None if "all" in self.names else len(set(self.names))

    @property
    def by_checkpoint(self) -> bool:
        """Whether each checkpoint's samples have a folder of their own."""
        return self.every_checkpoint or self.count != 1

    def pods(self, checkpoints: int | None) -> int:
        """Return how many pods divide the samples of so many ``checkpoints`` (None: unknown)."""
        work = len(self.samples) * (checkpoints or self.parallelism)
        return max(1, min(self.parallelism, work))
