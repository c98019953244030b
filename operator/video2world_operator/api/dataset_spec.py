"""Define spec.dataset: where the training videos come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from video2world_operator.api.captions_spec import CaptionsSpec
from video2world_operator.api.fields import (
    ActionColumn,
    ActionName,
    ApiModel,
    ClipName,
    EpisodeID,
    EpisodeRange,
    FeatureKey,
    FolderName,
    RepoID,
    Revision,
    VolumePath,
    with_example,
)

__all__ = [
    "AGIBOT_REPOSITORIES",
    "SOURCES",
    "ActionsSpec",
    "AgiBotDataset",
    "BridgeDataset",
    "DatasetSpec",
    "LeRobotDataset",
]

SOURCES = ("agibot", "bridge", "lerobot", "prepared", "videos")
"""The fields of spec.dataset of which exactly one is set."""

AGIBOT_REPOSITORIES: Mapping[str, str] = {
    "Alpha": "agibot-world/AgiBotWorld-Alpha",
    "Beta": "agibot-world/AgiBotWorld-Beta",
}


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
    """Episodes of AgiBotWorld-Alpha or -Beta, cut into windows with captions."""

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
    release: Literal["Alpha", "Beta"] = Field(
        default="Alpha",
        description="Release of AgiBotWorld: Beta has more tasks, and many archives of each, in "
        "the same layout.",
    )
    repo_id: RepoID | None = Field(
        default=None,
        alias="repoID",
        description="Dataset repository on the Hugging Face Hub; defaults to that of the release.",
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
        description="Folder on the volume that already holds the AgiBotWorld tree; nothing "
        "is downloaded then, and its archives are left unchanged. Defaults to downloading.",
    )
    keep_archives: bool = Field(
        default=False, description="Keep downloaded archives after extracting their videos."
    )
    name: FolderName | None = Field(
        default=None,
        description="Folder of the result under datasets/; defaults to agibot_<camera>, for Beta "
        "to agibot_beta_<camera>.",
    )

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out windows."""
        return bool(self.validation_episode_ids or self.validation_percent)

    @property
    def repository(self) -> str:
        """Repository on the Hub."""
        return self.repo_id or AGIBOT_REPOSITORIES[self.release]

    @property
    def prefix(self) -> str:
        """Start of the names of folders below datasets/."""
        return "agibot" if self.release == "Alpha" else f"agibot_{self.release.lower()}"


class LeRobotDataset(ApiModel):
    """Episodes of a LeRobotDataset (v2.0, v2.1 or v3.0), cut into windows with captions."""

    model_config = with_example({"repoID": "lerobot/aloha_static_cups_open"})

    repo_id: RepoID | None = Field(
        default=None,
        alias="repoID",
        description="Dataset repository on the Hugging Face Hub, of which the files of the camera "
        "and the metadata are downloaded. Set this or path.",
        examples=["lerobot/aloha_static_cups_open"],
    )
    path: VolumePath | None = Field(
        default=None,
        description="Folder on the volume that holds the dataset (the one above meta/), which is "
        "left unchanged.",
        examples=["my-robot"],
    )
    revision: Revision | None = Field(
        default=None,
        description="Commit, tag or branch of the repository; defaults to the newest state of its "
        "main branch.",
    )
    subfolder: VolumePath | None = Field(
        default=None,
        description="Folder of the dataset inside the repository or path, if there are several.",
        examples=["success"],
    )
    camera: FeatureKey | None = Field(
        default=None,
        description="Camera whose videos are used: its key among the dataset's features, or the "
        "last part of it (top). Defaults to the only camera.",
    )
    episodes: list[EpisodeRange] = Field(
        default=[],
        max_length=1024,
        description="Episodes to use: numbers, or inclusive ranges such as 0-99. Defaults to all.",
    )
    validation_episodes: list[EpisodeRange] = Field(
        default=[],
        max_length=1024,
        description="Episodes held out of training, in val/: numbers, or inclusive ranges.",
    )
    validation_percent: int = _validation_percent("episodes")
    window_seconds: float = Field(
        default=5,
        ge=0.5,
        le=60,
        description="Length of a window in seconds, at the frame rate of the dataset.",
    )
    caption: Literal["Task", "File", "Endpoint"] = Field(
        default="Task",
        description="Source of the captions: the task of each episode, captionFile, or the model "
        "of dataset.captions, which gets the task as a hint if there is one.",
    )
    caption_file: VolumePath | None = Field(
        default=None,
        description="Captions by episode on the volume, for caption: File: JSON Lines with "
        "episode_index and caption, or CSV with these columns.",
        examples=["captions.csv"],
    )
    name: FolderName | None = Field(
        default=None,
        description="Folder of the result under datasets/; defaults to the resource's name.",
    )

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out windows."""
        return bool(self.validation_episodes or self.validation_percent)


class BridgeDataset(ApiModel):
    """Episodes with annotations as those of Bridge, which the published network was trained on.

    Each episode is one window. Its actions are relative poses derived from the annotated states.
    """

    path: VolumePath = Field(
        description="Folder on the volume that holds annotation/{train,val,test} and videos/; it "
        "is left unchanged. Episodes of val (of test, if there is no val) are held out.",
        examples=["datasets/bridge"],
    )
    camera_id: int = Field(
        default=0,
        ge=0,
        le=63,
        alias="cameraID",
        description="Index of the camera in an annotation's list of videos.",
    )
    name: FolderName | None = Field(
        default=None,
        description="Folder of the result under datasets/; defaults to the resource's name.",
    )


class ActionsSpec(ApiModel):
    """Rows of numbers, each of which leads from one frame to the next."""

    model_config = with_example({"columns": ["action"]})

    columns: list[ActionColumn] = Field(
        min_length=1,
        max_length=16,
        description="Where the actions are, joined in this order: features of a LeRobotDataset, "
        "such as action or observation.state; for AgiBotWorld fields of its proprio files, such as "
        "state/joint/position.",
    )
    names: list[ActionName] = Field(
        default=[],
        max_length=256,
        description="Names of the numbers to use, in this order; defaults to all of the columns.",
    )
    representation: Literal["Absolute", "RelativePose"] = Field(
        default="Absolute",
        description="Absolute uses the numbers as they are. RelativePose takes poses of an end "
        "effector at each frame, as in observation.state (x, y, z, then roll, pitch, yaw or a "
        "quaternion qx, qy, qz, qw, and last the gripper), and gives the motion from each frame to "
        "the next in seven numbers.",
    )
    normalization: Literal["Statistics", "Published"] = Field(
        default="Statistics",
        description="Statistics scales each number to mean 0 and standard deviation 1 over train/. "
        "Published scales relative poses as the published network does: times 20, the gripper "
        "times 1.",
    )


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
    """Source of the training videos: exactly one of agibot, bridge, lerobot, prepared, videos."""

    model_config = with_example({"agibot": {"taskIDs": [327]}})

    agibot: AgiBotDataset | None = Field(
        default=None, description="Tasks of AgiBotWorld-Alpha or -Beta."
    )
    bridge: BridgeDataset | None = Field(
        default=None, description="Episodes with annotations as those of Bridge, on the volume."
    )
    lerobot: LeRobotDataset | None = Field(
        default=None, description="Episodes of a LeRobotDataset, from the Hub or the volume."
    )
    prepared: PreparedDataset | None = Field(
        default=None, description="A folder in the guide's layout, already on the volume."
    )
    videos: VideosDataset | None = Field(default=None, description="A folder of your own videos.")
    actions: ActionsSpec | None = Field(
        default=None,
        description="Actions to read from agibot or lerobot (those of bridge are always read); "
        "defaults to none.",
    )
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

    @property
    def may_have_actions(self) -> bool:
        """Whether actions are read, or a prepared dataset may bring its own."""
        return bool(self.actions or self.bridge or self.prepared)

    @property
    def repository(self) -> str | None:
        """Repository on the Hub that the dataset stage downloads from; None if it does not."""
        if self.agibot and not self.agibot.path:
            return self.agibot.repository
        return self.lerobot.repo_id if self.lerobot else None
