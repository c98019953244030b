"""Describe the dataset to make of AgiBot tasks: its inputs, captions, sources and lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.folder_locks import owned_folder
from video2world_common.markers import Provenance, file_stamps
from video2world_common.sharding import Shard
from video2world_preprocess.actions.selection import ActionSelection
from video2world_preprocess.archives.archive import Archive
from video2world_preprocess.archives.tar_scan import Member
from video2world_preprocess.dataset.agibot_actions import AgiBotActions, find_agibot_actions
from video2world_preprocess.dataset.agibot_layout import AgiBotLayout, clip_prefix
from video2world_preprocess.dataset.agibot_repository import AgiBotRepository
from video2world_preprocess.dataset.captions import EpisodeCaptions
from video2world_preprocess.dataset.held_out import choose_held_out, is_held_out
from video2world_preprocess.dataset.records import leftover_folders
from video2world_preprocess.dataset.source import CutSettings, Source
from video2world_preprocess.stage_report import Report

__all__ = ["DEFAULT_CAMERA", "AgiBotDataset"]

DEFAULT_CAMERA = "head_center_fisheye_color"


@dataclass
class AgiBotDataset:
    """The windows of one camera's videos of AgiBot tasks, in ``folder``.

    ``shard`` is this process's part of the work. The other fields are flags of
    :mod:`video2world_preprocess.agibot`.
    """

    repository: AgiBotRepository
    task_ids: list[int]
    val_episode_ids: list[str]
    val_percent: int
    caption_file: Path | None
    folder: Path
    settings: CutSettings
    workers: int
    shard: Shard
    report: Report
    selection: ActionSelection | None = None

    @cached_property
    def actions(self) -> AgiBotActions | None:
        """The actions to write for every window.

        Raises:
            UserError: there are none, or no such fields.
        """
        if self.selection is None:
            return None
        return find_agibot_actions(self.selection, self.layout, self.task_ids)

    @property
    def layout(self) -> AgiBotLayout:
        """The paths of the data set's files."""
        return self.repository.layout

    @cached_property
    def captions(self) -> EpisodeCaptions:
        """The captions of all episodes, read when they are first needed."""
        path = self.caption_file
        if path is None and self.layout.default_caption_file.is_file():
            path = self.layout.default_caption_file
        if path is not None:
            return EpisodeCaptions.from_file(path, self.report)
        infos = {task: self.layout.task_info(task) for task in self.task_ids}
        return EpisodeCaptions.from_task_info(infos, self.report)

    @cached_property
    def _held_out(self) -> set[str]:
        """Numbers of the listed episodes that belong to the held-out share."""
        return choose_held_out(map(str, self.captions.episodes or ()), self.val_percent)

    def _split(self, episode: int) -> str:
        number = str(episode)
        if number in self.val_episode_ids or number in self._held_out:
            return "val"
        unlisted = self.captions.episodes is None
        return "val" if unlisted and is_held_out(number, self.val_percent) else "train"

    def inputs(self, *, from_hub: bool) -> Provenance:
        """Return the files on the volume that decide the result, as they are before the work."""
        if from_hub:
            made = Provenance()
        else:
            made = Provenance.of(*map(self.layout.observations, self.task_ids))
            made.files = file_stamps(map(self.layout.task_info, self.task_ids))
        made.files |= file_stamps([self.caption_file or self.layout.default_caption_file])
        if self.actions is not None:
            tasks = [self.layout.proprio(task, 0).parent.parent for task in self.task_ids]
            folders = (path.parent for top in tasks for path in top.glob("*/proprio_stats.h5"))
            made.inputs |= Provenance.of(*sorted(map(str, folders))).inputs
        return made

    def lock(self) -> contextlib.AbstractContextManager[dict[str, dict[str, Any]]]:
        """Lock the dataset's folder for this resource and these settings."""
        settings: dict[str, Any] = {
            "task_ids": self.task_ids,
            "camera": self.layout.camera,
            "repo_id": self.repository.repo_id,
            "revision": self.repository.revision,
            "val_episode_ids": self.val_episode_ids,
            "caption_file": str(self.caption_file or ""),
            **({"val_percent": self.val_percent} if self.val_percent else {}),
            **asdict(self.settings),
            **(self.selection.settings() if self.selection else {}),
        }
        if self.repository.local:
            settings["path"] = str(self.layout.data_dir)
        return owned_folder(
            self.folder,
            settings,
            "give another dataset.agibot.name (--dataset_dir)",
            leftovers=[*leftover_folders(self.folder), self.index_folder, self.temporary_folder],
            shared=self.shard.count > 1,
        )

    @property
    def index_folder(self) -> Path:
        """The folder of what is known about the archives."""
        return self.folder / ".archives"

    @property
    def temporary_folder(self) -> Path:
        """The folder in which this shard's extracted videos wait to be cut."""
        return self.folder / ".passing" / str(self.shard)

    def temporary_path(self, task: int, member: Member) -> Path:
        """Return where a video of an archive waits to be cut."""
        return self.temporary_folder / f"{clip_prefix(task, member.episode)}.mp4"

    def extracted_source(self, task: int, episode: int) -> Source | None:
        """Return an extracted episode as a source; None if it has no captions."""
        path = self.layout.video(task, episode)
        status = path.stat()
        origin = f"{status.st_size}-{status.st_mtime_ns}"
        return self._source(task, episode, path, origin, temporary=False)

    def archived_source(self, task: int, archive: Archive, member: Member) -> Source | None:
        """Return an episode in an archive as a source; None if it has no captions."""
        origin = f"{archive.name}/{archive.identity}/{member.episode}/{member.size}"
        if self.layout.camera != DEFAULT_CAMERA:
            origin += f"/{self.layout.camera}"
        path = self.temporary_path(task, member)
        return self._source(task, member.episode, path, origin, temporary=True)

    def _source(
        self, task: int, episode: int, path: Path, origin: str, *, temporary: bool
    ) -> Source | None:
        captions = self.captions.of(task, episode)
        if captions is None:
            return None
        name, split = clip_prefix(task, episode), self._split(episode)
        digest = self.actions.digest(task, episode) if self.actions else ""
        return Source(name, "episode", path, split, captions, origin, temporary, digest)

    def check_validation(self, known: set[int], without_camera: Iterable[int] = ()) -> None:
        """Check that all validation episodes are ``known``.

        Raises:
            UserError: they are not. ``without_camera`` are episodes to be named as such.
        """
        unknown = [episode for episode in self.val_episode_ids if int(episode) not in known]
        if not unknown:
            return
        listed = sorted(known)
        more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
        blind = [episode for episode in unknown if int(episode) in without_camera]
        camera = self.layout.camera
        why = f"; {', '.join(blind)}: no video of camera {camera}" if blind else ""
        raise UserError(
            f"--val_episode_ids {' '.join(unknown)}: not among the episodes, which are "
            f"{', '.join(map(str, listed[:20]))}{more}{why}"
        )

    def drop_episode(self, task: int, episode: int, reason: str) -> None:
        """Report that an episode is left out."""
        self.report.drop("episode", clip_prefix(task, episode), reason)

    def no_video_error(self, task: int, cameras: Iterable[str] = ()) -> UserError:
        """Return the error for a task that has no video of the camera, but those of ``cameras``."""
        found = f" (there are {', '.join(sorted(cameras))})" if cameras else ""
        reasons = [f"{p.kind} {p.item}: {p.reason}" for p in self.report.dropped[:3]]
        dropped = "; dropped: " + "; ".join(reasons) if reasons else ""
        return UserError(
            f"--task_ids {task}: there is no video of camera {self.layout.camera} for it in "
            f"{self.layout.observations(task)}; run with --prepare, or put archives there and add "
            f"--local; check --camera{found}{dropped}"
        )
