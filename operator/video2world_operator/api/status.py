"""Define the status of a resource as typed fields, and convert it from and to JSON."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from video2world_operator.api.fields import ApiModel

__all__ = [
    "ActionsStatus",
    "AttemptStatus",
    "CheckpointStatus",
    "Condition",
    "EvaluationStatus",
    "EvictionCost",
    "FailureStatus",
    "GPUSeconds",
    "GroupSizeStatus",
    "Phase",
    "ProgressStatus",
    "SamplesStatus",
    "StageName",
    "StageStatus",
    "State",
    "Status",
    "ValidationStatus",
    "dump_status",
    "parse_status",
]

StageName = Literal[
    "download", "dataset", "captions", "embeddings", "latents", "train", "inference", "evaluation"
]
State = Literal["Pending", "Running", "Restarting", "Succeeded", "Failed", "Skipped", "Suspended"]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Phase(StrEnum):
    """Summary of the conditions."""

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
    """Progress of one stage."""

    name: StageName = Field(description="Name of the stage.")
    state: State = Field(default="Pending", description="State of the stage.")
    attempt: int = Field(default=0, ge=0, description="Number of the current or last attempt.")
    inputs_hash: str = Field(
        default="", description="Hash of everything the stage's result depends on."
    )
    start_time: Time | None = Field(default=None, description="Time at which it started.")
    completion_time: Time | None = Field(default=None, description="Time at which it ended.")
    desired: int = Field(default=0, ge=0, description="Number of pods the stage should have.")
    active: int = Field(default=0, ge=0, description="Number of pods that have not ended.")
    ready: int = Field(default=0, ge=0, description="Number of pods that are ready.")
    succeeded: int = Field(default=0, ge=0, description="Number of pods that succeeded.")
    failed: int = Field(default=0, ge=0, description="Number of pods that failed.")
    done: int | None = Field(default=None, ge=0, description="Number of items processed.")
    total: int | None = Field(default=None, ge=0, description="Number of items to process.")
    unit: str = Field(default="", description="Kind of the items: windows, captions, ...")
    message: str = Field(
        default="", description="Human-readable state, or the reason of a failure."
    )
    job_uid: str = Field(default="", alias="jobUID", description="UID of the attempt's Job.")
    log_tail: str = Field(
        default="", description="Last lines of the log of the first pod that failed."
    )

    @property
    def is_done(self) -> bool:
        """Whether the stage needs no further attempt."""
        return self.state in ("Succeeded", "Skipped")

    def clear_pods(self) -> None:
        """Reset the fields that describe the pods of one attempt."""
        del self.job_uid, self.active, self.ready, self.succeeded, self.failed


class AttemptStatus(_StatusModel):
    """One attempt at training, and why it ended."""

    number: int = Field(ge=1, description="Number of the attempt.")
    start_time: Time | None = Field(default=None, description="Time at which it started.")
    end_time: Time | None = Field(default=None, description="Time at which it ended.")
    reason: str = Field(default="", description="Reason of its end, in CamelCase.")
    message: str = Field(default="", description="Human-readable reason of its end.")
    charged: bool = Field(
        default=False, description="Whether its end counts against spec.training.maxRestarts."
    )
    start_iteration: int = Field(default=0, ge=0, description="Iteration it resumed from.")
    end_iteration: int = Field(default=0, ge=0, description="Last iteration it reached.")
    held_gpu_seconds: float = Field(
        default=0, ge=0, alias="heldGPUSeconds", description="GPU seconds its pods held."
    )
    nodes: int | None = Field(default=None, ge=1, description="Nodes of the training group.")


class GroupSizeStatus(_StatusModel):
    """How many nodes an elastic training group has, and why."""

    asked: int = Field(ge=1, description="Nodes that spec.training.nodes asks for.")
    running: int = Field(ge=1, description="Nodes of the current attempt.")
    text: str = Field(default="", description="Human-readable: running/asked.")
    usable: list[int] = Field(
        default=[],
        max_length=64,
        description="Node counts that an attempt may have, largest first: they keep the global "
        "batch and hold whole context-parallel groups.",
    )
    available: int | None = Field(
        default=None, ge=0, description="Nodes that could be had when last counted, if known."
    )
    message: str = Field(default="", description="Human-readable reason of the number of nodes.")
    last_change: Literal["", "Shrunk", "Grown"] = Field(default="", description="Its last change.")
    change_time: Time | None = Field(default=None, description="Time of its last change.")
    waiting_since: Time | None = Field(
        default=None, description="Time since when the current attempt has lacked nodes."
    )
    room_since: Time | None = Field(
        default=None, description="Time since when more nodes than running could be had."
    )
    failed_growths: int = Field(
        default=0,
        ge=0,
        description="Attempts in a row that were to grow the group and never started; each "
        "doubles the time until the next.",
    )


class SamplesStatus(_StatusModel):
    """Progress of the samples of one checkpoint."""

    checkpoint: str = Field(description="Name of the checkpoint, and of the folder of its samples.")
    iteration: int | None = Field(default=None, ge=0, description="Iteration of the checkpoint.")
    state: State = Field(default="Pending", description="State of its samples.")
    done: int = Field(default=0, ge=0, description="Number of samples made.")
    total: int = Field(default=0, ge=0, description="Number of samples to make.")
    message: str = Field(default="", description="Human-readable reason why samples are missing.")


class ProgressStatus(_StatusModel):
    """Progress of training."""

    iteration: int = Field(default=0, ge=0, description="Number of iterations done.")
    iterations: int = Field(default=0, ge=0, description="Number of iterations to do.")
    loss: float | None = Field(
        default=None, description="Training loss, averaged since the last report."
    )
    seconds_per_iteration: float | None = Field(
        default=None, ge=0, description="Seconds per iteration."
    )
    eta_seconds: float | None = Field(
        default=None, ge=0, description="Estimated seconds until training ends."
    )
    phase: str = Field(
        default="",
        description="Running phase of training.phases and its frame size, such as 1/2 at 432x768.",
    )
    checkpoint_interval: int | None = Field(
        default=None,
        ge=0,
        description="Iterations between two checkpoints, with checkpoint.everyIterations: Auto.",
    )
    checkpoint_interval_reason: str = Field(
        default="", description="Why it is that many: what a save costs, and how often runs fail."
    )
    warning: str = Field(
        default="", description="Warning that the loss has diverged, and since when."
    )
    text: str = Field(default="", description="Human-readable: iteration/iterations.")
    eta: str = Field(default="", description="Human-readable time until training ends.")


class ValidationStatus(_StatusModel):
    """The latest validation: losses on held-out clips at fixed noise."""

    iteration: int = Field(default=0, ge=0, description="Iteration that was validated.")
    loss: float | None = Field(default=None, description="Validation loss over all noise levels.")
    low_noise: float | None = Field(
        default=None, description="The same over the lowest third of noise levels."
    )
    middle_noise: float | None = Field(
        default=None, description="The same over the middle third of noise levels."
    )
    high_noise: float | None = Field(
        default=None, description="The same over the highest third of noise levels."
    )
    weights: str = Field(default="", description="Weights that were validated: Regular or EMA.")
    best_iteration: int | None = Field(
        default=None, ge=0, description="Iteration with the lowest validation loss so far."
    )
    best_loss: float | None = Field(default=None, description="Its validation loss.")
    base_loss: float | None = Field(
        default=None, description="Validation loss before the first iteration."
    )
    stopped: str = Field(
        default="", description="Why training ended before its last iteration, if it did."
    )


class CheckpointStatus(_StatusModel):
    """The latest complete checkpoint."""

    iteration: int = Field(default=0, ge=0, description="Iteration at which it was saved.")
    path: str = Field(
        default="", description="Path of its model file, relative to the volume's root."
    )
    time: Time | None = Field(default=None, description="Time at which it was saved.")


class ActionsStatus(_StatusModel):
    """Whether the model follows its actions: its losses with true and with shuffled ones."""

    followed: bool = Field(
        default=False,
        description="Whether the loss with the true actions is lower: the interval of lift is "
        "above 0.",
    )
    text: str = Field(default="", description="Human-readable answer with the figures.")
    clips: int = Field(default=0, ge=0, description="Number of held-out clips.")
    lift: float = Field(
        default=0,
        description="1 - loss with the true actions / loss with shuffled ones, at the same noise; "
        "0 if the model ignores them.",
    )
    low: float | None = Field(default=None, description="Lower end of lift's 95 % interval.")
    high: float | None = Field(default=None, description="Upper end of lift's 95 % interval.")


class EvaluationStatus(_StatusModel):
    """Whether post-training helped, by one metric on held-out clips."""

    verdict: Literal["Better", "Worse", "Unclear"] = Field(
        default="Unclear",
        description="Whether the checkpoint is better than the base weights; Unclear if the "
        "interval of the difference includes 0, or there are too few clips for one.",
    )
    text: str = Field(default="", description="Human-readable answer with the figures.")
    metric: str = Field(default="", description="The metric: psnr, ssim, lpips, ...")
    checkpoint: str = Field(default="", description="Name of the checkpoint.")
    iteration: int | None = Field(default=None, ge=0, description="Iteration of the checkpoint.")
    clips: int = Field(default=0, ge=0, description="Number of held-out clips.")
    base: float | None = Field(default=None, description="Value of the base weights.")
    value: float | None = Field(default=None, description="Value of the checkpoint.")
    difference: float | None = Field(
        default=None, description="Value of the checkpoint minus that of the base weights."
    )
    low: float | None = Field(
        default=None, description="Lower end of the difference's 95 % interval."
    )
    high: float | None = Field(
        default=None, description="Upper end of the difference's 95 % interval."
    )
    actions: ActionsStatus | None = Field(
        default=None,
        description="Whether the model follows its actions, if it is conditioned on them.",
    )


class GPUSeconds(_StatusModel):
    """Use of the GPU time, in GPU seconds."""

    useful: float = Field(default=0, ge=0, description="Spent on iterations that were kept.")
    lost: float = Field(default=0, ge=0, description="Spent on iterations that a restart repeated.")
    idle: float = Field(default=0, ge=0, description="Held without training.")


class EvictionCost(_StatusModel):
    """What ending the running attempt without a further checkpoint would lose."""

    gpu_seconds: float = Field(
        default=0,
        ge=0,
        description="GPU seconds since the last checkpoint when this was written; until the next "
        "one, every second adds gpus.",
    )
    gpus: int = Field(default=0, ge=0, description="Number of GPUs that the attempt holds.")
    since: Time | None = Field(
        default=None, description="Time of the last checkpoint, or of the start of the attempt."
    )


class FailureStatus(_StatusModel):
    """How often attempts at training have lost iterations, for the interval of checkpoints."""

    count: int = Field(
        default=0, ge=0, description="Number of attempts that ended and lost iterations."
    )
    device_seconds: float = Field(
        default=0,
        ge=0,
        description="Seconds that all attempts that have ended held their GPUs (or processes, "
        "without GPUs), times their number.",
    )
    attempt: int = Field(default=0, ge=0, description="Last attempt that is included.")
    lost_attempt: int = Field(
        default=0, ge=0, description="Last attempt that was counted as a loss; 0 if there is none."
    )
    expected_seconds: float = Field(
        default=0, ge=0, description="Expected seconds between two failures of this run."
    )


class Condition(_StatusModel):
    """A condition, like metav1.Condition."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)] = Field(
        description="Type of the condition."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Status of the condition.")
    reason: Annotated[
        str,
        StringConstraints(
            min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
        ),
    ] = Field(description="Reason of the status, in CamelCase.")
    message: Annotated[str, StringConstraints(max_length=32768)] = Field(
        default="", description="Human-readable details."
    )
    last_transition_time: Time = Field(description="Time at which the status last changed.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="Generation of the spec it refers to."
    )


class Status(_StatusModel):
    """Observed state of a resource."""

    phase: Phase = Field(default=Phase.PENDING, description="Summary of the conditions.")
    stage: str = Field(default="", description="Current stage.")
    message: str = Field(
        default="", description="Human-readable state, or the reason of a failure."
    )
    observed_generation: int = Field(
        default=0, ge=0, description="Generation of the spec that was last reconciled."
    )
    conditions: list[Condition] = Field(
        default=[], max_length=32, description="Conditions of the resource."
    )
    stages: list[StageStatus] = Field(
        default=[], max_length=16, description="State of every stage."
    )
    progress: ProgressStatus | None = Field(default=None, description="Progress of training.")
    validation: ValidationStatus | None = Field(
        default=None, description="Latest validation of the model in training."
    )
    checkpoint: CheckpointStatus | None = Field(
        default=None, description="Latest complete checkpoint."
    )
    samples: list[SamplesStatus] = Field(
        default=[], max_length=64, description="Samples by checkpoint, in order of iterations."
    )
    evaluation: EvaluationStatus | None = Field(
        default=None, description="Whether post-training helped."
    )
    attempt: int = Field(default=0, ge=0, description="Number of the current attempt at training.")
    group_size: GroupSizeStatus | None = Field(
        default=None, description="Number of nodes of a training group with minNodes."
    )
    restarts: int = Field(default=0, ge=0, description="Number of restarts.")
    charged_restarts: int = Field(
        default=0,
        ge=0,
        description="Number of restarts that count against spec.training.maxRestarts.",
    )
    attempts: list[AttemptStatus] = Field(
        default=[], max_length=16, description="Latest attempts at training, oldest first."
    )
    next_attempt_time: Time | None = Field(
        default=None, description="Earliest time at which the next attempt starts."
    )
    gpu_seconds: GPUSeconds | None = Field(
        default=None, alias="gpuSeconds", description="Use of the GPU time of training."
    )
    closed_gpu_seconds: GPUSeconds | None = Field(
        default=None,
        alias="closedGPUSeconds",
        description="Use of the GPU time of attempts that have ended.",
    )
    eviction_cost: EvictionCost | None = Field(
        default=None,
        description="What an eviction of the running attempt would lose, if it could not save a "
        "checkpoint within its grace period.",
    )
    failures: FailureStatus | None = Field(
        default=None, description="How often attempts at training have lost iterations."
    )
    volume_id: str = Field(
        default="",
        alias="volumeID",
        description="Identity of the volume: what its first worker wrote to "
        ".video2world/volume-id.",
    )
    start_time: Time | None = Field(default=None, description="Time at which work started.")
    active_since: Time | None = Field(
        default=None, description="Time at which work started or was last resumed."
    )
    completion_time: Time | None = Field(
        default=None, description="Time at which the resource succeeded or failed."
    )

    @property
    def is_empty(self) -> bool:
        """Whether no operator has written anything yet."""
        return not self.model_fields_set

    @property
    def records_charged_restarts(self) -> bool:
        """Whether counted restarts are recorded; a local run does not record them."""
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
