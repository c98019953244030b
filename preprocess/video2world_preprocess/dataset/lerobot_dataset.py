"""Find the episodes of a LeRobotDataset to cut, their files and their captions."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from video2world_common.exit_codes import UserError
from video2world_common.lerobot_cameras import Feature, choose_camera
from video2world_preprocess.dataset.held_out import choose_held_out
from video2world_preprocess.dataset.lerobot_captions import (
    CaptionKind,
    caption_of,
    read_caption_file,
)
from video2world_preprocess.dataset.lerobot_files import DatasetFiles, ListedFile, missing_info
from video2world_preprocess.dataset.lerobot_frames import Placement
from video2world_preprocess.dataset.lerobot_layout import (
    EPISODES_V2,
    INFO,
    Info,
    cameras_in,
    format_of,
    parse_info,
    path_candidates,
)
from video2world_preprocess.dataset.lerobot_metadata import (
    Episode,
    read_episodes,
    read_info,
    read_tasks,
)
from video2world_preprocess.dataset.source import Source
from video2world_preprocess.stage_report import Report

__all__ = ["EpisodeFile", "EpisodeNumbers", "LeRobotDataset", "Selection", "find_episodes"]

SHOWN = 20  # items to name in an error


@dataclass(frozen=True)
class EpisodeNumbers:
    """Episodes that the user names: numbers, and ranges whose ends belong to them."""

    flag: str
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, flag: str, values: Sequence[str]) -> EpisodeNumbers:
        """Parse values such as ``7`` and ``10-19``.

        Raises:
            UserError: one of them is neither.
        """
        ranges = []
        for value in values:
            first, dash, last = value.strip().partition("-")
            last = last if dash else first
            numbers = [p for p in (first, last) if p.isascii() and p.isdigit() and len(p) < 13]
            if len(numbers) < 2 or int(last) < int(first):
                raise UserError(f"{flag} {value}: give episode numbers, or ranges such as 0-99")
            ranges.append((int(first), int(last)))
        return cls(flag, tuple(ranges))

    def of(self, known: Collection[int]) -> set[int]:
        """Return the named ones of the ``known`` episodes.

        Raises:
            UserError: a number is not known, or nothing in a range is.
        """
        found: set[int] = set()
        ordered = sorted(known)
        for first, last in self.ranges:
            some = [number for number in ordered if first <= number <= last]
            if not some:
                name = str(first) if first == last else f"{first}-{last}"
                more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
                raise UserError(
                    f"{self.flag} {name}: not among the episodes, which are "
                    f"{', '.join(map(str, ordered[:SHOWN]))}{more}"
                )
            found.update(some)
        return found


@dataclass(frozen=True)
class Selection:
    """What to use of a dataset; the fields are flags of :mod:`video2world_preprocess.lerobot`."""

    name: str
    camera: str | None
    episodes: EpisodeNumbers
    val_episodes: EpisodeNumbers
    caption: CaptionKind
    caption_file: Path | None
    val_percent: int = 0


@dataclass
class EpisodeFile:
    """A file, all its episodes, and those to cut."""

    file: ListedFile
    placements: list[Placement] = field(default_factory=list)
    sources: dict[int, Source] = field(default_factory=dict)


@dataclass
class LeRobotDataset:
    """The episodes to cut, by file, and what the report says of the dataset."""

    version: str
    camera: str
    kind: str  # video or image
    info: Info
    files: list[EpisodeFile]


def find_episodes(files: DatasetFiles, wanted: Selection, report: Report) -> LeRobotDataset:
    """Read the metadata, and return the episodes to cut; report those that are left out.

    Raises:
        UserError: it is no LeRobotDataset, or it has no such camera or episodes.
    """
    meta = files.listed("meta")
    if INFO not in meta:
        raise missing_info(files, wanted.name)
    raw = read_info(files.local(meta[INFO]))
    info, faults = parse_info(raw)
    for fault in faults:
        report.note("metadata", INFO, fault)
    cameras: Mapping[str, Feature] = info.cameras or cameras_in(files.listed("videos"))
    camera = choose_camera(cameras, wanted.camera)
    kind = cameras[camera].kind
    version = _version(files, meta, info, camera, kind, report)
    episodes = _episodes(files, meta, version, camera, kind, report)
    if info.episodes is not None and info.episodes != len(episodes):
        counted = f"says {int(info.episodes)} episodes, but {len(episodes)} are usable"
        report.note("metadata", INFO, counted)
    val = wanted.val_episodes.of(episodes)
    chosen = wanted.episodes.of(episodes) | val if wanted.episodes.ranges else set(episodes)
    share = choose_held_out(map(_name, chosen), wanted.val_percent)
    val |= {number for number in chosen if _name(number) in share}
    by_path = _by_path(files, version, kind, info, camera, episodes, chosen, report)
    tasks: dict[int, str] = {}
    if any(isinstance(task, int) for number in chosen for task in episodes[number].tasks):
        named = (meta[n] for n in ("meta/tasks.jsonl", "meta/tasks.parquet") if n in meta)
        tasks = read_tasks([files.local(file) for file in named], report)
    by_user: dict[int, str] = {}
    if wanted.caption == "File":
        assert wanted.caption_file is not None
        by_user = read_caption_file(wanted.caption_file, report)
    for group in by_path.values():
        digest = hashlib.sha256(repr(group.placements).encode()).hexdigest()[:16]
        origin = f"{version}/{camera}/{group.file.path}/{group.file.identity}/{digest}"
        for placement in group.placements:
            number = placement.episode
            if number not in chosen:
                continue
            name, split = _name(number), "val" if number in val else "train"
            try:
                caption = caption_of(wanted.caption, episodes[number], tasks, by_user)
            except UserError as error:
                report.drop("episode", name, str(error))
                continue
            path = Path(group.file.path)
            group.sources[number] = Source(name, "episode", path, split, caption, origin)
    used = [group for group in by_path.values() if group.sources]
    if not used:
        reasons = "; ".join(f"{p.item}: {p.reason}" for p in report.dropped[:3])
        raise UserError(f"{wanted.name}: no episode of camera {camera} can be used ({reasons})")
    return LeRobotDataset(version, camera, kind, info, used)


def _name(episode: int) -> str:
    return f"episode_{episode:06d}"


def _version(
    files: DatasetFiles, meta: Collection[str], info: Info, camera: str, kind: str, report: Report
) -> str:
    """Return the version of the dataset by its files, and note what contradicts it."""
    version, is_mixed = format_of(meta)
    if is_mixed:
        folder = f"videos/{camera}" if kind == "video" else "data"
        suffix = ".mp4" if kind == "video" else ".parquet"
        names = (PurePosixPath(path).name for path in files.listed(folder))
        if not any(name.endswith(suffix) and not name.startswith("episode_") for name in names):
            version = format_of([name for name in meta if not name.startswith("meta/episodes/")])[0]
        report.note(
            "metadata", "meta", f"has the files of v2 and v3.0; those of {version} are used"
        )
    if info.label.lstrip("v") != version.lstrip("v"):
        said = info.label or "no version"
        report.note("metadata", INFO, f"says {said}, but the files are those of {version}")
    return version


def _episodes(
    files: DatasetFiles,
    meta: Mapping[str, ListedFile],
    version: str,
    camera: str,
    kind: str,
    report: Report,
) -> dict[int, Episode]:
    if version != "v3.0":
        return read_episodes([files.local(meta[EPISODES_V2])], None, kind == "video", report)
    paths = [
        files.local(file)
        for name, file in sorted(meta.items())
        if name.startswith("meta/episodes/") and name.endswith(".parquet")
    ]
    prefix = f"videos/{camera}" if kind == "video" else "data"
    return read_episodes(paths, prefix, kind == "video", report)


def _by_path(
    files: DatasetFiles,
    version: str,
    kind: str,
    info: Info,
    camera: str,
    episodes: Mapping[int, Episode],
    chosen: Collection[int],
    report: Report,
) -> dict[str, EpisodeFile]:
    """Return the files of the ``chosen`` episodes by path; report episodes without a file."""
    is_v3 = version == "v3.0"
    candidates: dict[int, dict[str, Any]] = {}
    for number, episode in episodes.items():
        place = {"episode_index": number}
        if is_v3:
            place = {"chunk_index": episode.chunk, "file_index": episode.file}
        candidates[number] = path_candidates(version, kind, info, camera, **place)
    listed: dict[str, ListedFile] = {}
    for folder in sorted({str(PurePosixPath(p).parent) for n in chosen for p in candidates[n]}):
        listed |= files.listed(folder)
    found: dict[str, EpisodeFile] = {}
    missing = set[int]()
    for number in sorted(episodes):
        path = next((path for path in candidates[number] if path in listed), None)
        if path is None:
            missing.add(number)
            continue
        episode = episodes[number]
        group = found.setdefault(path, EpisodeFile(listed[path]))
        group.placements.append(Placement(number, episode.length, episode.begin, episode.end))
    for number in sorted(missing & set(chosen)):
        what = "video" if kind == "video" else "data file"
        report.drop(
            "episode",
            _name(number),
            f"its {what} {' or '.join(candidates[number])} is missing; add it to the dataset, or "
            "exclude the episode",
        )
    return dict(sorted(found.items()))
