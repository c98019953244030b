"""Write the actions of every window next to its video, and their statistics.

Row k of a window's actions leads from its frame k to frame k + 1. The actions are written after the
windows were cut, so that other columns need no video again. An episode whose actions are unusable
is left out, with its windows.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from safetensors.numpy import save

from video2world_common.action_statistics import ACTIONS_FILE, ActionStatistics
from video2world_common.events import ProgressReporter
from video2world_common.exit_codes import UserError
from video2world_common.files import atomic_write, write_json
from video2world_preprocess.actions.layout import ActionLayout, Track
from video2world_preprocess.actions.moments import Moments, describe
from video2world_preprocess.daemon_threads import in_daemon_threads
from video2world_preprocess.dataset.records import (
    SPLITS,
    Record,
    actions_path,
    read_record,
    record_folder,
    remove_clips,
    remove_derived,
    write_record,
)
from video2world_preprocess.dataset.source import Source
from video2world_preprocess.item_faults import is_unexpected, reason_for
from video2world_preprocess.stage_report import Problem, Report

__all__ = ["EpisodeActions", "actions_done", "merge_actions", "needs_plan", "write_actions"]


class EpisodeActions(Protocol):
    """The actions of a data set's episodes."""

    @property
    def layout(self) -> ActionLayout:
        """Which values become the actions, and how."""

    @property
    def description(self) -> str:
        """Where they are from, for people."""

    def batches(self, sources: Sequence[Source]) -> Sequence[Sequence[Source]]:
        """Divide the sources into parts that are read together, such as those of one file."""

    def tracks(self, sources: Sequence[Source]) -> Iterator[tuple[Source, Track | str]]:
        """Yield the rows of each source of a part, or why they cannot be used."""


_Work = Callable[[Sequence[Source]], list[int]]


def write_actions(
    folder: Path,
    sources: Sequence[Source],
    actions: EpisodeActions | None,
    workers: int,
    report: Report,
) -> int:
    """Write the actions of the windows of ``sources``, all of which are cut.

    Without ``actions``, remove those of an earlier run. Returns how many windows were removed
    because their episode has no usable actions.

    Raises:
        OSError: the volume or a download failed. Finished files are kept.
    """
    waiting = [source for source in sources if not actions_done(folder, source)]
    if actions is None:
        for source in waiting:
            record = read_record(folder, source.name)
            for clip in record.names:
                remove_derived(folder, record.split, clip, ["actions"])
            record.actions_by, record.moments = "", None
            write_record(folder, source.name, record)
        return 0
    if not waiting:
        return 0
    for split in SPLITS:
        (folder / split / "actions").mkdir(parents=True, exist_ok=True)
    progress = ProgressReporter(report.stage, len(waiting), "episodes with actions")
    removed = 0
    batches = actions.batches(waiting)
    for counts in in_daemon_threads(_publisher(folder, actions), batches, workers):
        removed += sum(counts)
        progress.advance(len(counts))
    return removed


def _publisher(folder: Path, actions: EpisodeActions) -> _Work:
    """Return the function that writes the actions of a batch."""

    def publish(batch: Sequence[Source]) -> list[int]:
        cut = {s.name: s for s in batch if read_record(folder, s.name).clips}
        removed = [_finish(folder, s, None, actions) for s in batch if s.name not in cut]
        if cut:
            try:
                for source, track in actions.tracks(list(cut.values())):
                    removed.append(_finish(folder, source, track, actions))
                    del cut[source.name]
            except Exception as error:
                reason = reason_for(error, folder)
            else:
                reason = "it has no rows of actions"
            removed += [_finish(folder, source, reason, actions) for source in cut.values()]
        return removed

    return publish


def _finish(
    folder: Path, source: Source, track: Track | str | None, actions: EpisodeActions
) -> int:
    """Write the actions of a source's windows; return how many windows were removed."""
    record, removed = read_record(folder, source.name), 0
    record.moments = None
    try:
        if isinstance(track, str):
            raise UserError(track)
        if track is not None:
            frames = record.frames or max(clip.stop for clip in record.clips)
            steps = actions.layout.steps(track, frames, record.fps)
            record.moments = _write(folder, record, steps)
    except Exception as error:
        reason = f"its actions: {reason_for(error, folder)}"
        removed = remove_clips(folder, record.split, record.names)
        record.clips = []
        record.dropped.append(vars(Problem(source.kind, source.label, reason)))
        record.failed = is_unexpected(reason.removeprefix("its actions: "))
    record.actions_by = source.actions
    write_record(folder, source.name, record)
    return removed


def _write(folder: Path, record: Record, steps: np.ndarray) -> dict[str, Any] | None:
    """Write the actions of a record's windows; return their moments."""
    total: Moments | None = None
    for clip in record.clips:
        rows = np.ascontiguousarray(steps[clip.start : clip.stop - 1])
        if len(rows) != clip.stop - clip.start - 1:
            raise UserError(
                f"{len(steps)} actions for {clip.stop} frames: fewer actions than frames"
            )
        path, content = actions_path(folder, record.split, clip.name), save({"actions": rows})
        try:
            is_same = path.read_bytes() == content
        except FileNotFoundError:
            is_same = False
        if not is_same:
            atomic_write(path, functools.partial(_put, content))
        if len(rows):
            part = Moments.of(rows)
            total = part if total is None else total + part
    return None if total is None else vars(total)


def _put(content: bytes, stream: IO[bytes]) -> None:
    stream.write(content)


def actions_done(folder: Path, source: Source) -> bool:
    """Whether the actions of a source's windows are those of its digest."""
    record = read_record(folder, source.name)
    if record.actions_by != source.actions:
        return False
    clips = record.clips if source.actions else []
    return all(actions_path(folder, record.split, clip.name).is_file() for clip in clips)


def needs_plan(folder: Path, source: Source) -> bool:
    """Whether a source is to be planned again because its actions are others now.

    It has no windows, perhaps because of its earlier actions, or its record is of a version that
    did not record its length. Windows that exist are not cut again.
    """
    record = read_record(folder, source.name)
    return record.actions_by != source.actions and not (record.clips and record.frames)


def merge_actions(
    folder: Path, records: Sequence[Record], actions: EpisodeActions | None, report: Report
) -> Iterable[Path]:
    """Write ``actions.json`` from the records of all sources; return the paths of all files."""
    path = folder / ACTIONS_FILE
    if actions is None:
        path.unlink(missing_ok=True)
        return []
    dimension = len(actions.layout.names)
    train = [r for r in records if r.split == "train" and r.moments is not None]
    if not train:
        return []
    rates = Counter(record.fps for record in train)
    fps = max(sorted(rates), key=lambda rate: rates[rate])
    if len(rates) > 1:
        listed = ", ".join(f"{rate:g}" for rate in sorted(rates))
        report.note(
            "actions", ACTIONS_FILE, f"episodes have {listed} frames/s; {fps:g} is recorded"
        )
    try:
        parts = [Moments.from_json(record.moments, dimension) for record in train]
    except ValueError:
        raise UserError(
            f"{record_folder(folder)}: a record is damaged; delete this folder and run the stage "
            "again"
        ) from None
    found: ActionStatistics = describe(actions.layout, parts, fps, actions.description)
    write_json(path, found.to_json())
    report.counts |= {"action_dimension": dimension, "action_rows": found.rows}
    files = [actions_path(folder, r.split, clip.name) for r in records for clip in r.clips]
    return [path, *files]
