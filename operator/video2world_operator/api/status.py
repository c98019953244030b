"""Define the status of a resource as typed fields, and read and write it as JSON."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from video2world_operator.api.fields import ApiModel

__all__ = [
    "AttemptStatus",
    "CheckpointStatus",
    "Condition",
    "GPUSeconds",
    "Phase",
    "ProgressStatus",
    "SamplesStatus",
    "StageName",
    "StageStatus",
    "State",
    "Status",
    "dump_status",
    "parse_status",
]

StageName = Literal["download", "dataset", "embeddings", "latents", "train", "inference"]
State = Literal["Pending", "Running", "Restarting", "Succeeded", "Failed", "Skipped", "Suspended"]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Phase(StrEnum):
    """Summary of the conditions in one word."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class _StatusModel(ApiModel):
    """Base of all parts of a status.

    Only fields that have been set are written, as in the Kubernetes API; ``del status.field``
    resets a field to its default and leaves it out again. Assign lists, never append to them: a
    list that was only changed in place does not count as set. Fields that another version of the
    operator has written are kept as they are.
    """

    model_config = ConfigDict(extra="allow")

    def __delattr__(self, name: str) -> None:
        field = type(self).model_fields[name]
        self.__dict__[name] = field.get_default(call_default_factory=True)
        self.model_fields_set.discard(name)


class StageStatus(_StatusModel):
    """How far one stage is."""

    name: StageName = Field(description="Name of the stage.")
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

    @property
    def is_done(self) -> bool:
        """Whether the stage needs no further attempt."""
        return self.state in ("Succeeded", "Skipped")

    def clear_pods(self) -> None:
        """Reset the fields that describe the pods of one attempt."""
        del self.job_uid, self.active, self.ready, self.succeeded, self.failed


class AttemptStatus(_StatusModel):
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


class SamplesStatus(_StatusModel):
    """How far the samples of one checkpoint are."""

    checkpoint: str = Field(description="Name of the checkpoint, and of its folder of results.")
    iteration: int | None = Field(default=None, ge=0, description="Iteration of the checkpoint.")
    state: State = Field(default="Pending", description="Where its samples stand.")
    done: int = Field(default=0, ge=0, description="Samples that are made.")
    total: int = Field(default=0, ge=0, description="Samples to make.")
    message: str = Field(default="", description="For people: why some are not made.")


class ProgressStatus(_StatusModel):
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


class CheckpointStatus(_StatusModel):
    """The newest whole checkpoint."""

    iteration: int = Field(default=0, ge=0, description="Iteration at which it was saved.")
    path: str = Field(default="", description="Its model file, relative to the volume's root.")
    time: Time | None = Field(default=None, description="When it was saved.")


class GPUSeconds(_StatusModel):
    """What became of the GPU time, in GPU seconds."""

    useful: float = Field(default=0, ge=0, description="Spent on iterations that were kept.")
    lost: float = Field(default=0, ge=0, description="Spent on iterations that a restart repeated.")
    idle: float = Field(default=0, ge=0, description="Held without training.")


class Condition(_StatusModel):
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


class Status(_StatusModel):
    """What is."""

    phase: Phase = Field(
        default=Phase.PENDING, description="For people: a summary of the conditions."
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

    @property
    def is_empty(self) -> bool:
        """Whether no operator has written anything yet."""
        return not self.model_fields_set

    @property
    def tells_charged_restarts(self) -> bool:
        """Whether restarts are told apart by their cause; a local run does not do so."""
        return "charged_restarts" in self.model_fields_set

    def stage_status(self, name: str) -> StageStatus | None:
        """Return the entry of the stage ``name``, if there is one."""
        return next((entry for entry in self.stages if entry.name == name), None)


def parse_status(raw: Mapping[str, Any] | None) -> Status:
    """Read a status as it is in JSON; a missing one is empty.

    Another version of the operator may have written it: values that cannot be read are left out,
    each with as little around it as possible.
    """
    try:
        return Status.model_validate(raw or {})
    except ValidationError as error:
        readable = copy.deepcopy(raw)
        failure = error.errors(include_url=False)[-1]  # the last: it moves no other list entries
        location = failure["loc"][:-1] if failure["type"] == "missing" else failure["loc"]
        if not location:
            return Status()
        holder: Any = readable
        for step in location[:-1]:
            holder = holder[step]
        del holder[location[-1]]
        return parse_status(readable)


def dump_status(status: Status) -> dict[str, Any]:
    """Return the status as it is written in JSON: the fields that have been set."""
    return status.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
