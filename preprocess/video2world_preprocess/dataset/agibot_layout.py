"""Locate the files of AgiBotWorld-Alpha below a data folder.

The layout is that of https://huggingface.co/datasets/agibot-world/AgiBotWorld-Alpha.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from video2world_common.events import say

__all__ = ["AgiBotLayout", "clip_prefix"]


def clip_prefix(task: int, episode: int) -> str:
    """Return the prefix of an episode's clip names, as in the guide."""
    return f"task_{task}_episode_{episode}"


@dataclass(frozen=True)
class AgiBotLayout:
    """Paths below ``data_dir``; of the cameras only ``camera`` is used."""

    data_dir: Path
    camera: str

    def observations(self, task: int) -> Path:
        """Return the folder of a task's archives and extracted episodes."""
        return self.data_dir / "observations" / str(task)

    def video(self, task: int, episode: int) -> Path:
        """Return the path of an episode's extracted video."""
        return self.observations(task) / str(episode) / "videos" / f"{self.camera}.mp4"

    def task_info(self, task: int) -> Path:
        """Return the path of a task's descriptions of episodes."""
        return self.data_dir / "task_info" / f"task_{task}.json"

    def proprio(self, task: int, episode: int) -> Path:
        """Return the path of an episode's joint angles, poses and commands."""
        return self.data_dir / "proprio_stats" / str(task) / str(episode) / "proprio_stats.h5"

    @property
    def default_caption_file(self) -> Path:
        """The caption file that is used if it exists and no other is specified."""
        return self.data_dir.parent / f"agibot_{self.camera}.jsonl"

    def episode_folders(self, task: int) -> list[Path]:
        """Return the folders of a task's extracted episodes, in order of their numbers."""
        folder = self.observations(task)
        if not folder.is_dir():
            return []
        return sorted(
            (p for p in folder.iterdir() if p.is_dir() and p.name.isascii() and p.name.isdigit()),
            key=lambda p: int(p.name),
        )

    def clean(self, task: int) -> int:
        """Remove all of a task's extracted files but the camera's videos; return how many.

        As in the guide, these are all subfolders of an episode except ``videos/``, and all other
        mp4 files in ``videos/``. Links are removed, never followed.
        """
        removed = 0
        for episode in self.episode_folders(task):
            for entry in episode.iterdir():
                if entry.name != "videos" and entry.is_dir():
                    if entry.is_symlink():
                        entry.unlink()
                    else:
                        shutil.rmtree(entry)
                    removed += 1
            videos = episode / "videos"
            if videos.is_symlink() or not videos.is_dir():
                continue
            for video in videos.glob("*.mp4"):
                if video.name != f"{self.camera}.mp4":
                    video.unlink()
                    removed += 1
        if removed:
            say(
                f"task {task}: removed {removed} folders and videos that {self.camera} does not "
                "need"
            )
        return removed
