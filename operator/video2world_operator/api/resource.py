"""Define the Video2WorldPostTrain resource: metadata, spec and status."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from video2world_operator.api.fields import (
    AnnotationKey,
    ApiModel,
    FreeObject,
    LabelKey,
    LabelValue,
    NamespaceName,
    ResourceName,
)
from video2world_operator.api.spec import Spec
from video2world_operator.api.status import Status

__all__ = ["Video2WorldPostTrain"]


class Metadata(BaseModel):
    """The object's metadata: name, labels and annotations are validated, the rest is kept as is."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", populate_by_name=True, defer_build=True
    )

    name: ResourceName
    namespace: NamespaceName | None = None
    uid: str | None = None
    generation: int | None = None
    labels: dict[LabelKey, LabelValue] = {}
    annotations: dict[AnnotationKey, str] = {}
    generate_name: str | None = None
    self_link: str | None = None
    resource_version: str | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    owner_references: list[FreeObject] = []
    finalizers: list[str] = []
    managed_fields: list[FreeObject] = []


class Video2WorldPostTrain(ApiModel):
    """Post-trains a Cosmos-Predict2 Video2World model and generates videos with it."""

    api_version: Literal["video2world.dev/v1alpha1"]
    kind: Literal["Video2WorldPostTrain"]
    metadata: Metadata
    spec: Spec
    status: Status | None = None

    @property
    def name(self) -> str:
        """Name of the resource."""
        return self.metadata.name

    @property
    def job_name(self) -> str:
        """Folder of the run under checkpoints/posttraining/video2world/ and results/."""
        return self.spec.training.job_name or self.name

    @property
    def dataset_dir(self) -> str:
        """Folder of the dataset, relative to the volume's root."""
        dataset = self.spec.dataset
        if dataset.prepared:
            return dataset.prepared.path.rstrip("/")
        if dataset.agibot:
            agibot = dataset.agibot
            return f"datasets/{agibot.name or f'{agibot.prefix}_{agibot.camera}'}"
        source = dataset.bridge or dataset.lerobot or dataset.videos
        return f"datasets/{(source and source.name) or self.name}"
