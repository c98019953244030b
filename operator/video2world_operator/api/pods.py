"""Define the sections of the spec that shape pods: storage, scheduling, images, stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from video2world_operator.api.device_claims import ResourceClaims
from video2world_operator.api.fields import (
    ApiModel,
    Count,
    DNSName,
    EnvVarName,
    FreeObject,
    LabelKey,
    Quantity,
    QueueName,
    SecretKeyName,
    Text,
    VolumePath,
    VolumeSize,
    with_example,
)

__all__ = [
    "CredentialsSpec",
    "ImagesSpec",
    "SchedulingSpec",
    "SecretKey",
    "StagePatch",
    "StagesSpec",
    "StorageSpec",
]


class SecretKey(ApiModel):
    """A key of a Secret in the resource's namespace."""

    model_config = with_example({"name": "hugging-face"})

    name: DNSName = Field(description="Name of the Secret.")
    key: SecretKeyName = Field(default="token", description="Key within the Secret.")


class CredentialsSpec(ApiModel):
    """Secrets that stages read."""

    hugging_face_token_secret: SecretKey | None = Field(
        default=None, description="Hugging Face token, for gated weights and datasets."
    )


class StorageSpec(ApiModel):
    """The volume that holds weights, data, checkpoints and results."""

    size: VolumeSize | None = Field(
        default=None,
        description="Size of the PVC to create, in bytes; defaults to 500Gi, for 14B to 2Ti, for "
        "Tiny to 20Gi.",
    )
    claim_name: DNSName | None = Field(
        default=None,
        description="An existing PVC to use; without it, <resource>-data is created.",
    )
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] | None = Field(
        default=None,
        description="Access mode of the PVC; defaults to ReadWriteMany if several pods use the "
        "volume at the same time, otherwise to ReadWriteOnce.",
    )
    storage_class_name: DNSName | None = Field(
        default=None, description="Storage class of the PVC; defaults to the cluster's."
    )
    sub_path: VolumePath | None = Field(
        default=None,
        description="Folder of the PVC that becomes the volume's root; defaults to the PVC's own.",
    )
    retention: Literal["Keep", "Delete"] = Field(
        default="Keep",
        description="What happens to a created PVC when the resource is deleted.",
    )


class SchedulingSpec(ApiModel):
    """How pods are queued and placed."""

    queue_name: QueueName | None = Field(
        default=None, description="Kueue LocalQueue for the GPU stages; defaults to none."
    )
    gang: Literal["Auto", "Native", "Volcano", "Coscheduling", "None"] = Field(
        default="Auto",
        description="Gang scheduling: start all nodes together or none. Auto uses the first that "
        "the cluster serves of Kubernetes' own PodGroup, Volcano and coscheduling; with a "
        "queueName, Kueue does it.",
    )
    priority_class_name: DNSName | None = Field(
        default=None, description="Priority class of all pods; defaults to the cluster's."
    )
    scheduler_name: DNSName | None = Field(
        default=None, description="Scheduler of all pods; defaults to the cluster's."
    )
    topology_key: LabelKey | None = Field(
        default=None,
        description="Node label for which the pods of the training group prefer to share one "
        "value; defaults to none.",
    )


class ImagesSpec(ApiModel):
    """Container images."""

    preprocess: Text = Field(
        default="ghcr.io/video2world/preprocess:0.1.0",
        description="Image of the stages download, dataset, captions, embeddings and latents.",
    )
    trainer: Text = Field(
        default="ghcr.io/video2world/trainer:0.1.0",
        description="Image of the stages train, inference and evaluation.",
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="Image pull policy."
    )
    pull_secrets: list[DNSName] = Field(
        default=[], max_length=16, description="Names of image pull Secrets."
    )


class ResourcesSpec(ApiModel):
    """Resources of one pod, as in Kubernetes."""

    requests: dict[str, Quantity | Count] = Field(
        default={}, max_length=32, description="Requests by resource name."
    )
    limits: dict[str, Quantity | Count] = Field(
        default={}, max_length=32, description="Limits by resource name."
    )


class EnvVar(ApiModel):
    """One environment variable."""

    model_config = with_example({"name": "NCCL_DEBUG", "value": "INFO"})

    name: EnvVarName = Field(
        description="Name of the variable; those that torchrun or the operator sets are refused."
    )
    value: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        default=None, description="Value of the variable; defaults to empty."
    )
    value_from: FreeObject | None = Field(
        default=None, description="Source of the value, as in Kubernetes (secretKeyRef and so on)."
    )


class StagePatch(ApiModel):
    """Changes to one stage's pods."""

    resources: ResourcesSpec | None = Field(
        default=None, description="Resources of each pod, merged over the stage's defaults."
    )
    resource_claims: ResourceClaims = Field(
        default=[],
        description="ResourceClaimTemplates of Dynamic Resource Allocation that each pod gets its "
        "GPUs from, instead of by a limit of nvidia.com/gpu; for the stage train, "
        "training.resourceClaims does the same. Defaults to the limit.",
    )
    node_selector: dict[str, Annotated[str, StringConstraints(max_length=63)]] = Field(
        default={}, max_length=32, description="Node labels that are required."
    )
    tolerations: list[FreeObject] = Field(
        default=[], max_length=32, description="Tolerations, as in Kubernetes."
    )
    affinity: FreeObject | None = Field(default=None, description="Affinity, as in Kubernetes.")
    env: list[EnvVar] = Field(
        default=[], max_length=64, description="Additional environment variables of the container."
    )
    image: Text | None = Field(
        default=None, description="Image of the stage; defaults to the one in spec.images."
    )
    pod_template: FreeObject | None = Field(
        default=None,
        description="Merge patch (RFC 7386) applied last to the pod template; lists of containers, "
        "volumes, mounts and env are merged by name.",
    )


class StagesSpec(ApiModel):
    """Settings of individual stages."""

    download: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Download the weights."
    )
    dataset: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Create the dataset."
    )
    captions: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Caption the windows."
    )
    embeddings: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Encode captions."
    )
    latents: StagePatch = Field(default_factory=lambda: StagePatch(), description="Encode videos.")
    train: StagePatch = Field(default_factory=lambda: StagePatch(), description="Train the model.")
    inference: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Generate samples."
    )
    evaluation: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Compare checkpoints with the base."
    )
