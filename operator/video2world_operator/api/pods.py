"""Define the spec fields that shape pods: storage, scheduling, images, stage patches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from video2world_operator.api.fields import (
    _KEY,
    _SIZE,
    _VARIABLE,
    Count,
    DNSName,
    FreeObject,
    LabelKey,
    Quantity,
    QueueName,
    Text,
    VolumePath,
    _by_example,
    _Model,
)

__all__ = ["StagePatch"]


class SecretKey(_Model):
    """A key of a Secret in the resource's namespace."""

    model_config = _by_example({"name": "hugging-face"})

    name: DNSName = Field(description="Name of the Secret.")
    key: Annotated[str, _KEY] = Field(default="token", description="Key within the Secret.")


class CredentialsSpec(_Model):
    """Secrets that stages read."""

    hugging_face_token_secret: SecretKey | None = Field(
        default=None, description="Hugging Face token, for gated weights and data sets."
    )


class StorageSpec(_Model):
    """The volume on which everything lies."""

    size: Annotated[str, _SIZE] | None = Field(
        default=None,
        description="Size of the claim that is made, in bytes; default 500Gi, for 14B 2Ti, for "
        "Tiny 20Gi.",
    )
    claim_name: DNSName | None = Field(
        default=None,
        description="An existing claim to use; without it <resource>-data is made.",
    )
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] | None = Field(
        default=None,
        description="Access mode of the claim; default ReadWriteMany for several nodes, else "
        "ReadWriteOnce.",
    )
    storage_class_name: DNSName | None = Field(
        default=None, description="Storage class of the claim; default the cluster's."
    )
    sub_path: VolumePath | None = Field(
        default=None,
        description="Folder of the claim that is the volume's root; default the whole claim.",
    )
    retention: Literal["Keep", "Delete"] = Field(
        default="Keep",
        description="What becomes of the claim that was made when the resource is deleted.",
    )


class SchedulingSpec(_Model):
    """How the train group is placed."""

    queue_name: QueueName | None = Field(
        default=None, description="Kueue's local queue for the GPU stages; default none."
    )
    gang: Literal["Auto", "Native", "Volcano", "Coscheduling", "None"] = Field(
        default="Auto",
        description="Start all nodes together or none. Auto takes the first that the cluster has "
        "of Kubernetes' own PodGroup, Volcano and coscheduling; with a queueName, Kueue does it.",
    )
    priority_class_name: DNSName | None = Field(
        default=None, description="Priority class of all pods; default the cluster's."
    )
    scheduler_name: DNSName | None = Field(
        default=None, description="Scheduler of all pods; default the cluster's."
    )
    topology_key: LabelKey | None = Field(
        default=None,
        description="Node label within one value of which the train group prefers to lie; default "
        "none.",
    )


class ImagesSpec(_Model):
    """Container images."""

    preprocess: Text = Field(
        default="ghcr.io/video2world/preprocess:0.1.0",
        description="Image of the stages download, dataset, embeddings and latents.",
    )
    trainer: Text = Field(
        default="ghcr.io/video2world/trainer:0.1.0",
        description="Image of the stages train and inference.",
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When images are pulled."
    )
    pull_secrets: list[DNSName] = Field(
        default=[], max_length=16, description="Names of Secrets to pull images with."
    )


class ResourcesSpec(_Model):
    """Resources of one pod, as in Kubernetes."""

    requests: dict[str, Quantity | Count] = Field(
        default={}, max_length=32, description="What is reserved, by resource name."
    )
    limits: dict[str, Quantity | Count] = Field(
        default={}, max_length=32, description="What may be used at most, by resource name."
    )


class EnvVar(_Model):
    """One environment variable."""

    model_config = _by_example({"name": "NCCL_DEBUG", "value": "INFO"})

    name: Annotated[str, _VARIABLE] = Field(
        description="Name of the variable; those of torchrun and of the plan are refused."
    )
    value: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        default=None, description="Value of the variable; default empty."
    )
    value_from: FreeObject | None = Field(
        default=None, description="Source of the value, as in Kubernetes (secretKeyRef and so on)."
    )


class StagePatch(_Model):
    """What one stage's pods get beside the plan's own."""

    resources: ResourcesSpec | None = Field(
        default=None, description="Resources of each pod, laid over the stage's defaults."
    )
    node_selector: dict[str, Annotated[str, StringConstraints(max_length=63)]] = Field(
        default={}, max_length=32, description="Node labels that are required."
    )
    tolerations: list[FreeObject] = Field(
        default=[], max_length=32, description="Tolerations, as in Kubernetes."
    )
    affinity: FreeObject | None = Field(default=None, description="Affinity, as in Kubernetes.")
    env: list[EnvVar] = Field(
        default=[], max_length=64, description="Further environment variables of the container."
    )
    image: Text | None = Field(
        default=None, description="Image of the stage; default that in spec.images."
    )
    pod_template: FreeObject | None = Field(
        default=None,
        description="Merge patch (RFC 7386) laid over the pod template last; lists of containers, "
        "volumes, mounts and env are merged by name.",
    )


class StagesSpec(_Model):
    """Settings of single stages."""

    download: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Fetching the weights."
    )
    dataset: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Making the data set."
    )
    embeddings: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Encoding captions."
    )
    latents: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Encoding videos."
    )
    train: StagePatch = Field(default_factory=lambda: StagePatch(), description="Training.")
    inference: StagePatch = Field(
        default_factory=lambda: StagePatch(), description="Generating samples."
    )
