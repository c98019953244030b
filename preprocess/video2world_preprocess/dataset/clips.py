"""Cut one source video into captioned clips, and record what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from video2world_common.exit_codes import UserError
from video2world_common.files import NAME_BYTES, name_bytes, write_text
from video2world_preprocess.dataset.records import (
    DERIVED,
    Clip,
    Record,
    caption_path,
    read_record,
    remove_clips,
    remove_derived,
    video_path,
    write_record,
)
from video2world_preprocess.dataset.source import CutSettings, Source
from video2world_preprocess.dataset.windows import Window, cut_points, window_name
from video2world_preprocess.item_faults import is_unexpected, reason_for
from video2world_preprocess.stage_report import Problem
from video2world_preprocess.video.cut import cut
from video2world_preprocess.video.frame_survey import Survey, survey

__all__ = ["Tally", "process_source", "record_failure", "start_record"]


@dataclass
class Tally:
    """The windows that this run added and removed."""

    new_windows: int = 0
    removed_windows: int = 0

    def add(self, other: Tally) -> None:
        """Add the counts of ``other``."""
        self.new_windows += other.new_windows
        self.removed_windows += other.removed_windows


class _PlannedClip(NamedTuple):
    name: str
    window: Window
    caption: str


def process_source(folder: Path, settings: CutSettings, source: Source) -> Tally:
    """Publish the clips of ``source`` in ``folder``; put any error of the source on its record.

    Raises:
        OSError: the volume failed, for example because it is full. Finished clips are kept.
    """
    try:
        return _publish(folder, settings, source)
    except Exception as error:
        return record_failure(folder, settings, source, reason_for(error, folder))


def _publish(folder: Path, settings: CutSettings, source: Source) -> Tally:
    tally, before = Tally(), read_record(folder, source.name)
    record = Record(cut_by=source.clips_digest(settings), split=source.split)
    planned, surveyed = _plan(source, settings, record)
    is_same_cut = before.cut_by == record.cut_by
    stale = set(before.names) - ({clip.name for clip in planned} if is_same_cut else set())
    tally.removed_windows = remove_clips(folder, before.split, stale)

    # The clips are recorded before they exist, so that a killed run leaves no clip without an
    # owner. An existing clip with such a record is complete, whatever its size.
    known = {clip.name: clip for clip in before.clips if is_same_cut}
    record.clips = [
        known.get(p.name, Clip(p.name, p.window.start, p.window.stop, 0, False)) for p in planned
    ]
    write_record(folder, source.name, record)

    missing: dict[Path, _PlannedClip] = {}
    for clip, recorded in zip(planned, record.clips, strict=True):
        target = video_path(folder, source.split, clip.name)
        if not target.is_file() or recorded.size not in (0, target.stat().st_size):
            missing[target] = clip
            remove_derived(folder, source.split, clip.name, ["latents"])
    copied = {clip.name: clip.copied for clip in record.clips}
    try:
        parts = [(c.window.start, c.window.stop, target) for target, c in missing.items()]
        for target, is_copy in cut(source.path, parts, known=surveyed):
            copied[missing.pop(target).name] = is_copy
            tally.new_windows += 1
    except UserError as error:
        for clip in sorted(missing.values(), key=lambda clip: clip.window.start):
            record.dropped.append(vars(Problem("window", clip.name, str(error))))
    lost = {clip.name for clip in missing.values()}
    remove_clips(folder, source.split, lost)

    record.clips = []
    for name, window, caption in planned:
        if name not in lost:
            _write_caption(folder, source.split, name, caption)
            size = video_path(folder, source.split, name).stat().st_size
            record.clips.append(Clip(name, window.start, window.stop, size, copied[name]))
    record.told_by = source.result_digest(settings)
    write_record(folder, source.name, record)
    if source.temporary:
        source.path.unlink(missing_ok=True)
    return tally


def _plan(
    source: Source, settings: CutSettings, record: Record
) -> tuple[list[_PlannedClip], Survey | None]:
    """Return the clips to make; note in ``record`` what is left out, and the video's properties."""

    def drop(kind: str, item: str, reason: str) -> None:
        record.dropped.append(vars(Problem(kind, item, reason)))

    def note(reason: str) -> None:
        record.notes.append(vars(Problem(source.kind, source.label, reason)))

    try:
        surveyed = survey(source.path)
    except UserError as error:
        drop(source.kind, source.label, str(error))
        return [], None
    info = surveyed.info
    record.fps, record.source_bytes = float(info.fps), source.path.stat().st_size
    windows, merges = cut_points(
        info.frames,
        info.fps,
        window_seconds=settings.window_seconds,
        min_last_seconds=settings.min_last_seconds,
        min_frames=settings.min_frames,
    )
    if not windows:
        drop(
            source.kind,
            source.label,
            f"{source.path}: {info.frames} frames are shorter than one window "
            f"(--min_frames {settings.min_frames})",
        )
    names = [window_name(source.name, window) for window in windows]
    if (reason := _name_too_long(names)) is not None:
        drop(source.kind, source.label, reason)
        return [], surveyed
    for reason in (*merges, *surveyed.remarks):
        note(reason)
    for kind, suffix in DERIVED.items():
        if any(name_bytes(name + suffix) > NAME_BYTES for name in names):
            note(
                f"its name is too long for {suffix} files: the stage that writes {kind}/ will "
                "leave some of its windows out; shorten it"
            )
    planned = []
    for name, window in zip(names, windows, strict=True):
        caption = source.captions.text(name, window, info.fps)
        if caption is None:
            drop("window", name, source.captions.missing)
        elif fault := surveyed.fault(window.start, window.stop):
            drop("window", name, fault)
        else:
            planned.append(_PlannedClip(name, window, caption))
    return planned, surveyed


def _name_too_long(clips: Sequence[str]) -> str | None:
    """Return why ``clips`` cannot be file names, or None if they can."""
    longest = max(clips, key=name_bytes, default="")
    excess = name_bytes(f"{longest}.mp4") - NAME_BYTES
    if excess <= 0:
        return None
    return (
        f"its name is too long for the names of its windows ({longest}.mp4); shorten it by at "
        f"least {excess} bytes"
    )


def _write_caption(folder: Path, split: str, clip: str, caption: str) -> None:
    """Write a clip's caption if it changed, and remove what was made of the previous one."""
    path = caption_path(folder, split, clip)
    try:
        is_same = path.read_text(encoding="utf-8") == caption
    except (FileNotFoundError, UnicodeDecodeError):
        is_same = False
    if not is_same:
        remove_derived(folder, split, clip, ["captions", "t5_xxl"])
        write_text(path, caption)


def start_record(folder: Path, settings: CutSettings, source: Source) -> bool:
    """Record that work on ``source`` starts; return whether an earlier run died during it."""
    before, cut_by = read_record(folder, source.name), source.clips_digest(settings)
    if not before.cut_by:
        write_record(folder, source.name, Record(cut_by, split=source.split))
    return before.cut_by == cut_by and not before.told_by


def record_failure(folder: Path, settings: CutSettings, source: Source, reason: str) -> Tally:
    """Record why work on ``source`` ended early; keep the windows that are finished."""
    before, tally = read_record(folder, source.name), Tally()
    record = Record(source.clips_digest(settings), source.result_digest(settings), source.split)
    record.failed = is_unexpected(reason)
    if before.cut_by == record.cut_by:
        record.fps, record.source_bytes = before.fps, before.source_bytes
        for clip in before.clips:
            if _finish_clip(folder, source, clip, before.fps):
                size = video_path(folder, source.split, clip.name).stat().st_size
                record.clips.append(clip._replace(size=size))
    tally.removed_windows = remove_clips(
        folder, before.split, set(before.names) - set(record.names)
    )
    if record.clips:
        reason += f"; {len(record.clips)} of its {len(before.clips)} windows were finished"
    record.dropped = [vars(Problem(source.kind, source.label, reason))]
    write_record(folder, source.name, record)
    if source.temporary:
        source.path.unlink(missing_ok=True)
    return tally


def _finish_clip(folder: Path, source: Source, clip: Clip, fps: float) -> bool:
    """Write the caption of ``clip`` if its video exists; return whether the clip is complete."""
    if not fps or not video_path(folder, source.split, clip.name).is_file():
        return False
    window = Window(0, clip.start, clip.stop)
    try:
        rate = Fraction(fps).limit_denominator(100_000)
        caption = source.captions.text(clip.name, window, rate)
    except Exception:
        return False
    if caption is not None:
        _write_caption(folder, source.split, clip.name, caption)
    return caption is not None
