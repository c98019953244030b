"""Define the status of a resource as typed fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from video2world_operator.api.fields import ApiModel

__all__ = ["Condition", "StageStatus", "Status"]

State = Literal["Pending", "Running", "Restarting", "Succeeded", "Failed", "Skipped", "Suspended"]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class StageStatus(ApiModel):
    """How far one stage is."""

    name: Literal["download", "dataset", "embeddings", "latents", "train", "inference"] = Field(
        description="Name of the stage."
    )
    state: State = Field(default="Pending", description="Where the stage stands.")
    attempt: int = Field(default=0, ge=0, description="Number of the running or last attempt.")
    inputs_hash: str = Field(default="", description="Hash of what the stage's result depends on.")
    start_time: Time | None = Field(default=None, description="When its first pod started.")
    completion_time: Time | None = Field(default=None, description="When it ended.")
    desired: int = Field(default=0, ge=0, description="Pods wanted.")
    active: int = Field(default=0, ge=0, description="Pods that run or start.")
    ready: int = Field(default=0, ge=0, description="Pods that are ready.")
    succeeded: int = Field(default=0, ge=0, description="Pods that ended well.")
    failed: int = Field(default=0, ge=0, description="Pods that failed.")
    done: int | None = Field(default=None, ge=0, description="Items worked off.")
    total: int | None = Field(default=None, ge=0, description="Items to work off.")
    unit: str = Field(default="", description="What is counted: windows, captions, steps, ...")
    message: str = Field(default="", description="For people: what is going on, or why it failed.")
    job_uid: str = Field(default="", alias="jobUID", description="UID of the attempt's Job.")
    log_tail: str = Field(
        default="", description="Last lines of the log of the pod that failed first."
    )


class AttemptStatus(ApiModel):
    """One attempt at training, for people who ask why it was restarted."""

    number: int = Field(ge=1, description="Number of the attempt.")
    start_time: Time | None = Field(default=None, description="When its first pod started.")
    end_time: Time | None = Field(default=None, description="When it ended.")
    reason: str = Field(default="", description="Why it ended, as one CamelCase word.")
    message: str = Field(default="", description="Why it ended, for people.")
    charged: bool = Field(
        default=False, description="Whether its end counts against spec.training.maxRestarts."
    )
    start_iteration: int = Field(default=0, ge=0, description="Iteration it went on from.")
    end_iteration: int = Field(default=0, ge=0, description="Iteration it came to.")
    held_gpu_seconds: float = Field(
        default=0, ge=0, alias="heldGPUSeconds", description="GPU seconds that its pods held."
    )


class SamplesStatus(ApiModel):
    """How far the samples of one checkpoint are."""

    checkpoint: str = Field(description="Name of the checkpoint, and of its folder of results.")
    iteration: int | None = Field(default=None, ge=0, description="Iteration of the checkpoint.")
    state: State = Field(default="Pending", description="Where its samples stand.")
    done: int = Field(default=0, ge=0, description="Samples that are made.")
    total: int = Field(default=0, ge=0, description="Samples to make.")
    message: str = Field(default="", description="For people: why some are not made.")


class ProgressStatus(ApiModel):
    """How far training is."""

    iteration: int = Field(default=0, ge=0, description="Iterations done.")
    iterations: int = Field(default=0, ge=0, description="Iterations wanted.")
    loss: float | None = Field(
        default=None, description="Training loss, the mean since the last report."
    )
    seconds_per_iteration: float | None = Field(
        default=None, ge=0, description="Seconds per iteration."
    )
    eta_seconds: float | None = Field(
        default=None, ge=0, description="Seconds until training ends."
    )
    warning: str = Field(
        default="", description="For people: that and since when the loss has diverged."
    )
    text: str = Field(default="", description="For people: iteration/iterations.")
    eta: str = Field(default="", description="For people: time until training ends.")


class CheckpointStatus(ApiModel):
    """The newest whole checkpoint."""

    iteration: int = Field(default=0, ge=0, description="Iteration at which it was saved.")
    path: str = Field(default="", description="Its model file, relative to the volume's root.")
    time: Time | None = Field(default=None, description="When it was saved.")


class GPUSeconds(ApiModel):
    """What became of the GPU time, in GPU seconds."""

    useful: float = Field(default=0, ge=0, description="Spent on iterations that were kept.")
    lost: float = Field(default=0, ge=0, description="Spent on iterations that a restart repeated.")
    idle: float = Field(default=0, ge=0, description="Held without training.")


class Condition(ApiModel):
    """A state as machines read it (metav1.Condition)."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)] = Field(
        description="Name of the condition."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[
        str,
        StringConstraints(
            min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
        ),
    ] = Field(description="Why, as one CamelCase word.")
    message: Annotated[str, StringConstraints(max_length=32768)] = Field(
        default="", description="Why, for people."
    )
    last_transition_time: Time = Field(description="When the status last changed.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="Generation of the spec that it speaks of."
    )


class Status(ApiModel):
    """What is."""

    phase: Literal["Pending", "Running", "Suspended", "Restarting", "Succeeded", "Failed"] = Field(
        default="Pending", description="For people: a summary of the conditions."
    )
    stage: str = Field(default="", description="The stage at work.")
    message: str = Field(default="", description="For people: what is going on, or why it failed.")
    observed_generation: int = Field(
        default=0, ge=0, description="Generation of the spec acted on."
    )
    conditions: list[Condition] = Field(
        default=[], max_length=32, description="States, for machines."
    )
    stages: list[StageStatus] = Field(default=[], max_length=16, description="Every stage.")
    progress: ProgressStatus | None = Field(default=None, description="How far training is.")
    checkpoint: CheckpointStatus | None = Field(default=None, description="The newest checkpoint.")
    samples: list[SamplesStatus] = Field(
        default=[], max_length=64, description="Samples by checkpoint, those of the newest last."
    )
    attempt: int = Field(default=0, ge=0, description="Number of the train group's attempt.")
    restarts: int = Field(default=0, ge=0, description="Restarts of the train group.")
    charged_restarts: int = Field(
        default=0, ge=0, description="Restarts that count against spec.training.maxRestarts."
    )
    attempts: list[AttemptStatus] = Field(
        default=[], max_length=16, description="The newest attempts at training, oldest first."
    )
    next_attempt_time: Time | None = Field(
        default=None, description="Before this time the next attempt does not start."
    )
    gpu_seconds: GPUSeconds | None = Field(
        default=None, alias="gpuSeconds", description="Where the GPU time of training went."
    )
    closed_gpu_seconds: GPUSeconds | None = Field(
        default=None,
        alias="closedGPUSeconds",
        description="The same of the attempts that have ended.",
    )
    volume_id: str = Field(
        default="",
        alias="volumeID",
        description="Identity of the volume, which its first worker wrote to "
        ".video2world/volume-id.",
    )
    start_time: Time | None = Field(default=None, description="When work began.")
    active_since: Time | None = Field(
        default=None, description="When work began or was last resumed."
    )
    completion_time: Time | None = Field(default=None, description="When all was done or failed.")
