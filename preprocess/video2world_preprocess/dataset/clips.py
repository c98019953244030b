"""Cut one source video into captioned clips, and record what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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
from video2world_preprocess.video.cut import Part, cut
from video2world_preprocess.video.frame_survey import Survey, survey

__all__ = [
    "Outline",
    "Publication",
    "Tally",
    "process_source",
    "record_failure",
    "start_record",
]


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


@dataclass(frozen=True)
class Outline:
    """What is known of a source before it is cut; ``fault`` says why frames cannot be used."""

    frames: int
    fps: Fraction
    source_bytes: int
    remarks: Sequence[str] = ()
    fault: Callable[[int, int], str | None] = lambda start, stop: None

    @classmethod
    def of(cls, known: Survey) -> Outline:
        """Return the outline of a surveyed video."""
        size = known.path.stat().st_size
        return cls(known.info.frames, known.info.fps, size, known.remarks, known.fault)

    def limited(self, frames: int) -> Outline:
        """Return the outline of the first ``frames`` frames; of all, if there are fewer or 0."""
        if not 0 < frames < self.frames:
            return self
        remark = f"the first {frames} of its {self.frames} frames are used, as many as states"
        return replace(self, frames=frames, remarks=(*self.remarks, remark))


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
    publication = Publication(folder, settings, source)
    try:
        surveyed = survey(source.path)
    except UserError as error:
        publication.drop_source(str(error))
    else:
        publication.plan(Outline.of(surveyed).limited(source.most_frames))
        publication.cut(source.path, surveyed)
    tally = publication.finish()
    if source.temporary:
        source.path.unlink(missing_ok=True)
    return tally


class Publication:
    """Publishes the clips of one source, and records what became of them.

    Call :meth:`plan` (or :meth:`drop_source`), then :meth:`complete` for each of :attr:`parts`, or
    :meth:`fail`, and :meth:`finish`. Complete clips survive if the process is killed in between.
    """

    def __init__(self, folder: Path, settings: CutSettings, source: Source) -> None:
        self.source = source
        self._folder, self._settings = folder, settings
        self._before = read_record(folder, source.name)
        self._record = Record(cut_by=source.clips_digest(settings), split=source.split)
        self._planned: list[_PlannedClip] = []
        self._missing: dict[Path, _PlannedClip] = {}
        self._copied: dict[str, bool] = {}
        self._tally = Tally()

    @property
    def parts(self) -> list[Part]:
        """The clips to make: first frame, frame after the last, target."""
        return [(c.window.start, c.window.stop, target) for target, c in self._missing.items()]

    def _drop(self, kind: str, item: str, reason: str) -> None:
        self._record.dropped.append(vars(Problem(kind, item, reason)))

    def drop_source(self, reason: str) -> None:
        """Leave out the source, and remove its earlier clips."""
        self._drop(self.source.kind, self.source.label, reason)
        self._start()

    def plan(self, outline: Outline) -> None:
        """Decide on the clips, and remove earlier ones that are outdated."""
        self._planned = _plan(self.source, self._settings, outline, self._record)
        self._start()

    def _start(self) -> None:
        folder, source, record, before = self._folder, self.source, self._record, self._before
        is_same_cut = before.cut_by == record.cut_by
        names = {clip.name for clip in self._planned} if is_same_cut else set()
        self._tally.removed_windows = remove_clips(folder, before.split, set(before.names) - names)

        # The clips are recorded before they exist, so that a killed run leaves no clip without an
        # owner. An existing clip with such a record is complete, whatever its size.
        known = {clip.name: clip for clip in before.clips if is_same_cut}
        record.clips = [
            known.get(p.name, Clip(p.name, p.window.start, p.window.stop, 0, False))
            for p in self._planned
        ]
        write_record(folder, source.name, record)
        for clip, recorded in zip(self._planned, record.clips, strict=True):
            target = video_path(folder, source.split, clip.name)
            if not target.is_file() or recorded.size not in (0, target.stat().st_size):
                self._missing[target] = clip
                remove_derived(folder, source.split, clip.name, ["latents"])
        self._copied = {clip.name: clip.copied for clip in record.clips}

    def complete(self, target: Path, is_copy: bool) -> None:
        """Note that a clip exists, and whether its packets were copied."""
        self._copied[self._missing.pop(target).name] = is_copy
        self._tally.new_windows += 1

    def cut(self, path: Path, known: Survey, offset: int = 0) -> None:
        """Make the missing clips from a surveyed video, in which frame ``offset`` is the first."""
        parts = [(start + offset, stop + offset, target) for start, stop, target in self.parts]
        try:
            for target, is_copy in cut(path, parts, known=known):
                self.complete(target, is_copy)
        except UserError as error:
            self.fail(str(error), self._missing)

    def fail(self, reason: str, targets: Iterable[Path]) -> None:
        """Leave out those of the clips ``targets`` that are not complete."""
        clips = [self._missing[target] for target in targets if target in self._missing]
        for clip in sorted(clips, key=lambda clip: clip.window.start):
            self._drop("window", clip.name, reason)

    def finish(self) -> Tally:
        """Write the captions and the record; return what was added and removed."""
        folder, source, record = self._folder, self.source, self._record
        lost = {clip.name for clip in self._missing.values()}
        remove_clips(folder, source.split, lost)
        record.clips = []
        for name, window, caption in self._planned:
            if name not in lost:
                _write_caption(folder, source.split, name, caption)
                size = video_path(folder, source.split, name).stat().st_size
                record.clips.append(Clip(name, window.start, window.stop, size, self._copied[name]))
        record.told_by = source.result_digest(self._settings)
        write_record(folder, source.name, record)
        return self._tally


def _plan(
    source: Source, settings: CutSettings, outline: Outline, record: Record
) -> list[_PlannedClip]:
    """Return the clips to make; note in ``record`` what is left out, and the video's properties."""

    def drop(kind: str, item: str, reason: str) -> None:
        record.dropped.append(vars(Problem(kind, item, reason)))

    def note(reason: str) -> None:
        record.notes.append(vars(Problem(source.kind, source.label, reason)))

    record.fps, record.source_bytes = float(outline.fps), outline.source_bytes
    record.frames = outline.frames
    windows, merges = cut_points(
        outline.frames,
        outline.fps,
        window_seconds=settings.window_seconds,
        min_last_seconds=settings.min_last_seconds,
        min_frames=settings.min_frames,
    )
    if not windows:
        drop(
            source.kind,
            source.label,
            f"{source.path}: {outline.frames} frames are shorter than one window "
            f"(--min_frames {settings.min_frames})",
        )
    names = [window_name(source.name, window) for window in windows]
    if (reason := _name_too_long(names)) is not None:
        drop(source.kind, source.label, reason)
        return []
    for reason in (*merges, *outline.remarks):
        note(reason)
    for kind, suffix in DERIVED.items():
        if any(name_bytes(name + suffix) > NAME_BYTES for name in names):
            note(
                f"its name is too long for {suffix} files: the stage that writes {kind}/ will "
                "leave some of its windows out; shorten it"
            )
    planned = []
    for name, window in zip(names, windows, strict=True):
        caption = source.captions.text(name, window, outline.fps)
        if caption is None:
            drop("window", name, source.captions.missing)
        elif fault := outline.fault(window.start, window.stop):
            drop("window", name, fault)
        else:
            planned.append(_PlannedClip(name, window, caption))
    return planned


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
        record.frames = before.frames
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
