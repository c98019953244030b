"""Merge the records of all sources into the dataset's report and list of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from video2world_common.files import PARTIAL_PREFIX
from video2world_common.markers import Listings
from video2world_preprocess.dataset.clips import Tally
from video2world_preprocess.dataset.records import (
    SPLITS,
    Record,
    caption_path,
    read_record,
    record_folder,
    remove_clips,
    video_path,
)
from video2world_preprocess.dataset.window_actions import EpisodeActions, merge_actions
from video2world_preprocess.item_faults import nothing_left
from video2world_preprocess.stage_report import Report, write_report

__all__ = ["merge_records"]


def merge_records(
    folder: Path,
    sources: Iterable[str],
    report: Report,
    tally: Tally,
    actions: EpisodeActions | None = None,
) -> tuple[Listings, dict[str, Any]]:
    """Write the report of the dataset made of ``sources``; remove the clips of all other sources.

    ``actions`` are those that its windows have.

    Returns:
        The files that are there now (see :class:`video2world_common.markers.Provenance`), and the
        summary of the report.

    Raises:
        UserError: no window is left to train on.
    """
    records = _collect(folder, set(sources), tally)
    for record in records:
        for problem in record.dropped:
            report.drop(**problem)
        for problem in record.notes:
            report.note(**problem)
    report.counts |= _counts(records, tally)
    of_actions = merge_actions(folder, records, actions, report)
    clips = [(record, clip) for record in records for clip in record.clips]
    names = {s: sorted(clip.name for r, clip in clips if r.split == s) for s in SPLITS}
    samples = [video_path(folder, split, name) for split in SPLITS for name in names[split]]
    write_report(folder, report, samples, files=names)
    report.show()
    if not report.counts["train_windows"]:
        message = (
            f"{folder}: no window is left to train on ({len(report.dropped)} items dropped, "
            f"{report.counts['val_windows']} windows for validation); see {folder}/report.json for "
            "the reasons"
        )
        raise nothing_left(message, report)
    files: Listings = {str(folder): {"report.json": ""}}
    for record, clip in clips:
        for path, stamp in (
            (video_path(folder, record.split, clip.name), str(clip.size)),
            (caption_path(folder, record.split, clip.name), ""),  # users may edit captions
        ):
            files.setdefault(str(path.parent), {})[path.name] = stamp
    for path in of_actions:
        files.setdefault(str(path.parent), {})[path.name] = str(path.stat().st_size)
    return files, report.summary()


def _collect(folder: Path, sources: set[str], tally: Tally) -> list[Record]:
    """Return the records of ``sources``; remove all others, with their clips."""
    records = []
    for path in sorted(record_folder(folder).glob("*.json")):
        if path.name.startswith(PARTIAL_PREFIX):
            continue
        record = read_record(folder, path.stem)
        if path.stem in sources:
            records.append(record)
        else:
            tally.removed_windows += remove_clips(folder, record.split, record.names)
            path.unlink()
    return records


def _counts(records: list[Record], tally: Tally) -> dict[str, Any]:
    clips = [(record, clip) for record in records for clip in record.clips]
    return {
        "episodes": sum(bool(record.clips) for record in records),
        "windows": len(clips),
        "new_windows": tally.new_windows,
        "train_windows": sum(record.split == "train" for record, _ in clips),
        "val_windows": sum(record.split == "val" for record, _ in clips),
        "copied_windows": sum(clip.copied for _, clip in clips),
        "removed_windows": tally.removed_windows,
        "frames": sum(clip.stop - clip.start for _, clip in clips),
        "seconds": round(sum((c.stop - c.start) / r.fps for r, c in clips), 3),
        "bytes_in": sum(record.source_bytes for record in records),
        "bytes_kept": sum(clip.size for _, clip in clips),
    }
