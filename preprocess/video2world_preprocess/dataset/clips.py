"""Plan the clips of one source video and cut them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from video2world_common.exit_codes import UserError
from video2world_common.files import NAME_BYTES, name_bytes, write_json, write_text
from video2world_preprocess.dataset.records import (
    DERIVED,
    _forget,
    _meta,
    _read_record,
    _Record,
    _record_file,
    _remove,
    _video,
)
from video2world_preprocess.dataset.source import Rule, Source, Tally
from video2world_preprocess.dataset.windows import Window, cut_points, window_name
from video2world_preprocess.stage_report import Problem
from video2world_preprocess.video.cut import cut
from video2world_preprocess.video.frame_survey import Survey, survey

# ---------------------------------------------------------------- one source


def _plan(
    source: Source, rule: Rule, record: _Record
) -> tuple[list[tuple[str, Window, str]], Survey | None]:
    """The clips to make, with their captions; what is left out goes into ``record``."""

    def drop(kind: str, item: str, reason: str) -> None:
        record.dropped.append(vars(Problem(kind, item, reason)))

    label = source.name if source.kind == "episode" else source.path.name
    try:
        known = survey(source.path)
    except UserError as error:
        drop(source.kind, label, str(error))
        return [], None
    info = known.info
    record.fps, record.source_bytes = float(info.fps), source.path.stat().st_size
    windows, remarks = cut_points(
        info.frames,
        info.fps,
        window_seconds=rule.window_seconds,
        min_last_seconds=rule.min_last_seconds,
        min_frames=rule.min_frames,
    )
    if not windows:
        drop(
            source.kind,
            label,
            f"{source.path}: {info.frames} frames are shorter than one window "
            f"(--min_frames {rule.min_frames})",
        )
    if (reason := _too_long([window_name(source.name, window) for window in windows])) is not None:
        drop(source.kind, label, reason)
        return [], known
    record.notes += [vars(Problem(source.kind, label, r)) for r in (*remarks, *known.remarks)]
    for subfolder, suffix in DERIVED:
        if any(name_bytes(window_name(source.name, w) + suffix) > NAME_BYTES for w in windows):
            reason = (
                f"its name is too long for {suffix} files: the stage that writes {subfolder}/ will "
                "leave some of its windows out; shorten it"
            )
            record.notes.append(vars(Problem(source.kind, label, reason)))
    clips = []
    for window in windows:
        name = window_name(source.name, window)
        text = source.captions.text(name, window, info.fps)
        if text is None:
            drop("window", name, source.captions.missing)
        elif reason := known.fault(window.start, window.stop):
            drop("window", name, reason)
        else:
            clips.append((name, window, text))
    return clips, known


def _too_long(names: Sequence[str]) -> str | None:
    """Say that the files of a video's windows cannot have their ``names``; None if they can."""
    longest = max(names, key=name_bytes, default="")
    excess = name_bytes(f"{longest}.mp4") - NAME_BYTES
    if excess <= 0:
        return None
    return (
        f"its name is too long for those of its windows ({longest}.mp4); shorten it by at least "
        f"{excess} bytes"
    )


def _split(folder: Path, source: Source, rule: Rule) -> Tally:
    """Publish the windows of ``source``; what was left out is in its record.

    Raises:
        OSError: the disk is full, or the like; finished clips stay, and the next run goes on.
    """
    path, tally = _record_file(folder, source.name), Tally()
    before = _read_record(path)
    record = _Record(cut_by=source.cut_by(rule), split=source.split)
    planned, surveyed = _plan(source, rule, record)
    names = {name for name, *_ in planned}
    stale = before.names if before.cut_by != record.cut_by else set(before.names) - names
    tally.removed_windows = _remove(folder, before.split, stale)
    known = {clip[0]: clip for clip in before.clips if before.cut_by == record.cut_by}
    # On record before anything is made: a run killed halfway leaves nothing unowned. A file that
    # is there under such a record is whole, whatever its size.
    record.clips = [known.get(n, (n, w.start, w.stop, 0, False)) for n, w, _ in planned]
    write_json(path, vars(record))

    missing, copied = {}, {clip[0]: clip[4] for clip in record.clips}
    for (name, window, _), (*_, size, _) in zip(planned, record.clips, strict=True):
        target = _video(folder, source.split, name)
        if not target.is_file() or size not in (0, target.stat().st_size):
            missing[target] = (name, window)
            _forget(folder, source.split, name, ("latents",))
    try:
        parts = [(w.start, w.stop, target) for target, (_, w) in missing.items()]
        for target, as_it_was in cut(source.path, parts, known=surveyed):
            copied[missing.pop(target)[0]] = as_it_was
            tally.new_windows += 1
    except UserError as error:
        for name, _ in sorted(missing.values(), key=lambda item: item[1].start):
            record.dropped.append(vars(Problem("window", name, str(error))))
    lost = {name for name, _ in missing.values()}
    _remove(folder, source.split, lost)
    record.clips = []
    for name, window, caption in planned:
        if name not in lost:
            _caption(folder, source.split, name, caption)
            size = _video(folder, source.split, name).stat().st_size
            record.clips.append((name, window.start, window.stop, size, copied[name]))
    record.told_by = source.told_by(rule)
    write_json(path, vars(record))
    if source.passing:
        source.path.unlink(missing_ok=True)
    return tally


def _caption(folder: Path, split: str, name: str, caption: str) -> None:
    meta = _meta(folder, split, name)
    try:
        same = meta.read_text(encoding="utf-8") == caption
    except (FileNotFoundError, UnicodeDecodeError):
        same = False
    if not same:
        _forget(folder, split, name, ("t5_xxl",))
        write_text(meta, caption)
