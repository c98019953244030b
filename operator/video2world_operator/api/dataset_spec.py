"""Define spec.dataset: where the training videos come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from video2world_operator.api.captions_spec import CaptionsSpec
from video2world_operator.api.fields import (
    ApiModel,
    ClipName,
    EpisodeID,
    FolderName,
    RepoID,
    Revision,
    VolumePath,
    with_example,
)

__all__ = ["DatasetSpec"]


def _validation_percent(items: str) -> Any:
    return Field(
        default=0,
        ge=0,
        le=50,
        description=f"Share of the {items} to hold out too, at least one of them, chosen by a hash "
        "of the name: windows of one are never in both train/ and val/, and adding others changes "
        "nothing.",
    )


class AgiBotDataset(ApiModel):
    """Episodes of AgiBotWorld-Alpha, cut into windows with captions."""

    task_ids: list[Annotated[int, Field(ge=0, le=1_000_000)]] = Field(
        default=[327],
        alias="taskIDs",
        min_length=1,
        max_length=64,
        description="Numbers of the AgiBotWorld tasks to use.",
    )
    validation_episode_ids: list[EpisodeID] = Field(
        default=[],
        alias="validationEpisodeIDs",
        max_length=1024,
        description="Episodes held out of training, in val/.",
    )
    validation_percent: int = _validation_percent("episodes")
    window_seconds: float = Field(
        default=5,
        ge=0.5,
        le=60,
        description="Length of a window in seconds, at the source's 30 fps.",
    )
    camera: Literal[
        "head_center_fisheye_color",
        "head_color",
        "head_left_fisheye_color",
        "head_right_fisheye_color",
        "back_left_fisheye_color",
        "back_right_fisheye_color",
        "hand_left_color",
        "hand_right_color",
    ] = Field(
        default="head_center_fisheye_color",
        description="Camera whose videos are extracted.",
    )
    repo_id: RepoID = Field(
        default="agibot-world/AgiBotWorld-Alpha",
        alias="repoID",
        description="Dataset repository on the Hugging Face Hub.",
    )
    revision: Revision | None = Field(
        default=None,
        description="Commit, tag or branch of the repository; defaults to its newest state.",
    )
    caption_file: VolumePath | None = Field(
        default=None,
        description="JSON file with captions on the volume; defaults to captions composed from "
        "AgiBot's own task_info.",
        examples=["captions.json"],
    )
    path: VolumePath | None = Field(
        default=None,
        description="Folder on the volume that already holds the AgiBotWorld-Alpha tree; nothing "
        "is downloaded then, and its archives are left unchanged. Defaults to downloading.",
    )
    keep_archives: bool = Field(
        default=False, description="Keep downloaded archives after extracting their videos."
    )
    name: FolderName | None = Field(
        default=None,
        description="Folder of the result under datasets/; defaults to agibot_<camera>.",
    )

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out windows."""
        return bool(self.validation_episode_ids or self.validation_percent)


class PreparedDataset(ApiModel):
    """A dataset in the guide's layout that is already on the volume."""

    path: VolumePath = Field(
        description="Folder with train/{metas,videos} and val/{metas,videos}, relative to the "
        "volume's root, such as datasets/mine."
    )


class VideosDataset(ApiModel):
    """Your own videos, each with its caption alongside: clip.mp4 and clip.txt."""

    path: VolumePath = Field(
        description="Folder of videos and captions, relative to the volume's root."
    )
    validation_names: list[ClipName] = Field(
        default=[],
        max_length=1024,
        description="Videos held out of training, by file name without extension.",
    )
    validation_percent: int = _validation_percent("videos")
    window_seconds: float = Field(
        default=5,
        ge=0.5,
        le=60,
        description="Length in seconds of the windows that videos are cut into.",
    )
    name: FolderName | None = Field(
        default=None,
        description="Folder of the result under datasets/; defaults to the resource's name.",
    )

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out windows."""
        return bool(self.validation_names or self.validation_percent)


class DatasetSpec(ApiModel):
    """Source of the training videos: exactly one of agibot, prepared, videos."""

    model_config = with_example({"agibot": {"taskIDs": [327]}})

    agibot: AgiBotDataset | None = Field(default=None, description="Tasks of AgiBotWorld-Alpha.")
    prepared: PreparedDataset | None = Field(
        default=None, description="A folder in the guide's layout, already on the volume."
    )
    videos: VideosDataset | None = Field(default=None, description="A folder of your own videos.")
    captions: CaptionsSpec | None = Field(
        default=None,
        description="Captions by a vision-language model, in place of the dataset's own (not of "
        "a prepared one); defaults to none, and then no data is sent anywhere.",
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Pods that divide downloading and cutting between them; more than one need a "
        "volume with ReadWriteMany.",
    )
