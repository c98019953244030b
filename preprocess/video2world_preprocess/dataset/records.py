"""Paths of a dataset folder's clips, and the record of the outcome of each source video.

A dataset folder has ``{train,val}/{videos,metas}`` with one video and one caption per clip, and
``.sources/<source>.json`` with one :class:`Record` per source video.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from video2world_common.files import read_json, write_json

__all__ = [
    "DERIVED",
    "SPLITS",
    "Clip",
    "Record",
    "actions_path",
    "caption_path",
    "is_complete",
    "leftover_folders",
    "read_record",
    "record_folder",
    "remove_clips",
    "remove_derived",
    "video_path",
    "write_record",
]

SPLITS = ("train", "val")
# files that belong to a clip: its actions, and what later stages add
DERIVED = {
    "actions": ".safetensors",
    "captions": ".json",
    "t5_xxl": ".pickle",
    "latents": ".safetensors",
}


def leftover_folders(folder: Path) -> list[Path]:
    """Return the folders in which a killed run may have left partial files."""
    kinds = [folder / split / kind for split in SPLITS for kind in ("videos", "metas", "actions")]
    return [folder, record_folder(folder), *kinds]


def video_path(folder: Path, split: str, clip: str) -> Path:
    """Return the path of a clip's video."""
    return folder / split / "videos" / f"{clip}.mp4"


def actions_path(folder: Path, split: str, clip: str) -> Path:
    """Return the path of a clip's actions."""
    return folder / split / "actions" / f"{clip}{DERIVED['actions']}"


def caption_path(folder: Path, split: str, clip: str) -> Path:
    """Return the path of a clip's caption."""
    return folder / split / "metas" / f"{clip}.txt"


def remove_derived(folder: Path, split: str, clip: str, kinds: Iterable[str] = DERIVED) -> None:
    """Remove what was made of a clip (``kinds`` of :data:`DERIVED`), as it is outdated."""
    for kind in kinds:
        (folder / split / kind / f"{clip}{DERIVED[kind]}").unlink(missing_ok=True)


def remove_clips(folder: Path, split: str, clips: Iterable[str]) -> int:
    """Remove all files of ``clips`` and return how many videos were among them."""
    removed = 0
    for clip in clips:
        video = video_path(folder, split, clip)
        removed += video.is_file()
        video.unlink(missing_ok=True)
        caption_path(folder, split, clip).unlink(missing_ok=True)
        remove_derived(folder, split, clip)
    return removed


class Clip(NamedTuple):
    """One clip of a source: frames ``start .. stop - 1`` under ``name``.

    ``size`` is the video's size in bytes, 0 while unknown; ``copied`` is whether its packets were
    copied instead of encoded again.
    """

    name: str
    start: int
    stop: int
    size: int
    copied: bool


@dataclass
class Record:
    """The outcome of processing a source video, as stored in JSON.

    ``cut_by`` is the digest of all that decides the clips, ``told_by`` of all that decides clips
    and captions; the latter is empty until the source is finished. ``dropped`` and ``notes`` hold
    :class:`~video2world_preprocess.stage_report.Problem` as objects. ``frames`` is the length of
    the source, 0 if unknown. ``actions_by`` is the digest of all that decides the actions, empty
    without actions, and ``moments`` their statistics (see :mod:`.window_actions`).
    """

    cut_by: str = ""
    told_by: str = ""
    split: str = "train"
    fps: float = 0.0
    source_bytes: int = 0
    clips: list[Clip] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)
    failed: bool = False  # for a reason that may be temporary: the next run tries again
    frames: int = 0
    actions_by: str = ""
    moments: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """The names of the clips."""
        return [clip.name for clip in self.clips]


def record_folder(folder: Path) -> Path:
    """Return the folder that holds the records."""
    return folder / ".sources"


def _record_path(folder: Path, source: str) -> Path:
    return record_folder(folder) / f"{source}.json"


def write_record(folder: Path, source: str, record: Record) -> None:
    """Write the record of the source named ``source``."""
    write_json(_record_path(folder, source), vars(record))


def read_record(folder: Path, source: str) -> Record:
    """Return the record of the source named ``source``; an empty one if it is missing or damaged.

    Its file is treated as untrusted: anyone who shares the volume may have written it.
    """
    try:
        record = Record(**(read_json(_record_path(folder, source)) or {}))
        record.clips = [Clip(*clip) for clip in record.clips]
        is_valid = record.split in SPLITS and all(map(_is_file_name, record.names))
    except (ValueError, TypeError):
        return Record()
    return record if is_valid else Record()


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name != "" and "/" not in name and "\0" not in name


def is_complete(folder: Path, record: Record) -> bool:
    """Whether all videos have the size that was recorded, and all captions exist."""
    try:
        return all(
            video_path(folder, record.split, clip.name).stat().st_size == clip.size
            and caption_path(folder, record.split, clip.name).is_file()
            for clip in record.clips
        )
    except OSError:
        return False
