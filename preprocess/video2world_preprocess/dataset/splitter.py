"""Videos in, captioned windows out: {train,val}/{videos,metas}, many videos at once.

Every source video has a small record in ``.sources/`` of what became of it. The records make the
work repeatable (what is whole is kept, what other settings made is removed, what the user put
there is left alone), let several pods share it, and are what the report is merged from.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from fractions import Fraction
from pathlib import Path
from typing import Any

from video2world_common.events import Progress
from video2world_common.files import PARTIAL_PREFIX, write_json
from video2world_common.markers import Listings
from video2world_common.sharding import Share
from video2world_preprocess.dataset.clips import _caption, _split
from video2world_preprocess.dataset.records import (
    SPLITS,
    _is_whole,
    _meta,
    _read_record,
    _Record,
    _record_file,
    _remove,
    _video,
)
from video2world_preprocess.dataset.source import Rule, Source, Tally
from video2world_preprocess.dataset.windows import parse_name
from video2world_preprocess.item_faults import Crashed, is_unexpected, nothing_left, reason_for
from video2world_preprocess.stage_report import Problem, Report, write_report
from video2world_preprocess.worker_pool import Helpers

__all__ = ["Splitter", "finish", "split_all"]

MORE_MEMORY = "give the stage more memory (spec.stages.dataset.resources), or use fewer --workers"


# ---------------------------------------------------------------- all sources


def _guarded_split(folder: Path, rule: Rule, source: Source) -> Tally:
    """Publish ``source``; whatever is wrong with it ends in its record.

    Raises:
        OSError: the disk is full, or the like; finished clips stay, and the next run goes on.
    """
    try:
        return _split(folder, source, rule)
    except Exception as error:
        return _fail(folder, rule, source, reason_for(error, folder))


def _was_under_way(folder: Path, rule: Rule, source: Source) -> bool:
    """Whether an earlier run ended while it worked on ``source``; else record that one does now."""
    path = _record_file(folder, source.name)
    before, cut_by = _read_record(path), source.cut_by(rule)
    if not before.cut_by:
        write_json(path, vars(_Record(cut_by, split=source.split)))
    return before.cut_by == cut_by and not before.told_by


def _fail(folder: Path, rule: Rule, source: Source, reason: str) -> Tally:
    """Record why the work on ``source`` ended early; its windows that are finished are kept."""
    before, tally = _read_record(_record_file(folder, source.name)), Tally()
    record = _Record(source.cut_by(rule), source.told_by(rule), source.split)
    record.failed = is_unexpected(reason)
    if before.cut_by == record.cut_by:
        record.fps, record.source_bytes = before.fps, before.source_bytes
        for name, start, stop, _, copied in before.clips:
            if _is_finished(folder, source, name, before.fps):
                size = _video(folder, source.split, name).stat().st_size
                record.clips.append((name, start, stop, size, copied))
    tally.removed_windows = _remove(folder, before.split, set(before.names) - set(record.names))
    if record.clips:
        reason += f"; {len(record.clips)} of its {len(before.clips)} windows were finished"
    label = source.name if source.kind == "episode" else source.path.name
    record.dropped = [vars(Problem(source.kind, label, reason))]
    write_json(_record_file(folder, source.name), vars(record))
    if source.passing:
        source.path.unlink(missing_ok=True)
    return tally


def _is_finished(folder: Path, source: Source, name: str, fps: float) -> bool:
    """Whether the clip ``name`` is there; it gets its caption then."""
    parsed = parse_name(name)
    if parsed is None or not fps or not _video(folder, source.split, name).is_file():
        return False
    try:
        text = source.captions.text(name, parsed[1], Fraction(fps).limit_denominator(100_000))
    except Exception:
        return False
    if text is not None:
        _caption(folder, source.split, name, text)
    return text is not None


def _start(folder: Path, rule: Rule, device: str) -> Callable[[Source], Tally]:
    """Return what a helper process does with each source."""
    return functools.partial(_guarded_split, folder, rule)


class Splitter:
    """Publishes sources into ``folder``, ``workers`` at a time; a context manager."""

    def __init__(self, folder: Path, rule: Rule, workers: int) -> None:
        self.folder, self.rule, self.tally = folder, rule, Tally()
        self._workers = workers
        # bounds the videos that lie on the disk: those being cut, and the next
        self._room = threading.Semaphore(workers + 2)
        self._lock = threading.Lock()
        self._submitted: set[str] = set()
        self._futures: list[tuple[Source, Future[Tally]]] = []
        self._error: BaseException | None = None
        self._helpers: Helpers | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Splitter:
        for split in SPLITS:
            for kind in ("videos", "metas"):
                (self.folder / split / kind).mkdir(parents=True, exist_ok=True)
        if self._workers > 1:
            self._start_helpers()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)

    def _start_helpers(self) -> None:
        load = functools.partial(_start, self.folder, self.rule)
        self._helpers = self._stack.enter_context(Helpers(load, ["cpu"] * self._workers))

    def is_done(self, source: Source) -> bool:
        """Whether all that would be made of ``source`` is there."""
        record = _read_record(_record_file(self.folder, source.name))
        return record.told_by == source.told_by(self.rule) and _is_whole(self.folder, record)

    def needs(self, source: Source) -> bool:
        """Whether ``source`` is not done, or failed in an earlier run for another reason than it.

        In this run it fails once: :meth:`is_done` says that nothing more is to be expected.
        """
        failed = _read_record(_record_file(self.folder, source.name)).failed
        return source.name not in self._submitted and (failed or not self.is_done(source))

    def lacks(self, source: Source | None) -> bool:
        """Whether there is something to make of ``source`` that is not under way."""
        return source is not None and self.needs(source)

    def admit(self) -> None:
        """Wait until there is room for another video; to be followed by submit or dismiss."""
        self._room.acquire()

    def dismiss(self) -> None:
        """The video that was admitted does not come."""
        self._room.release()

    def submit(self, source: Source | None) -> None:
        """Publish ``source``, which was admitted, soon. Any thread may call.

        Raises:
            OSError: an earlier one could not be written.
        """
        with self._lock:
            if source is None or source.name in self._submitted:
                self._room.release()
                return
            self._submitted.add(source.name)
            if self._helpers is None and _was_under_way(self.folder, self.rule, source):
                self._start_helpers()  # an earlier run may have ended by it: it shall not end this
            if self._helpers is not None:
                if self._error is not None:
                    raise self._error  # no use in going on after a failure
                future = self._helpers.submit(source)
                future.add_done_callback(self._note_end)
                self._futures.append((source, future))
                return
            try:
                self._add(_guarded_split(self.folder, self.rule, source))
            finally:
                self._room.release()

    def _note_end(self, future: Future[Tally]) -> None:
        self._room.release()
        error = future.exception()
        if error is not None and not isinstance(error, Crashed):
            self._error = error

    def wait(self) -> None:
        """Until all that was submitted is published.

        Raises:
            OSError: one could not be written; finished clips stay.
        """
        for source, future in self._futures:
            try:
                self._add(future.result())
            except Crashed as crash:
                reason = f"{reason_for(crash, self.folder)}; {MORE_MEMORY}"
                self._add(_fail(self.folder, self.rule, source, reason))

    def _add(self, tally: Tally) -> None:
        self.tally.new_windows += tally.new_windows
        self.tally.removed_windows += tally.removed_windows


def split_all(
    folder: Path, sources: Sequence[Source], rule: Rule, workers: int, share: Share, report: Report
) -> tuple[Listings, dict[str, Any]] | None:
    """Publish this share of ``sources``, which are all there is.

    Returns what :func:`finish` does, or None while other shares are not done.

    Raises:
        UserError: nothing is left to train on.
        OSError: the disk is full, or the like; finished clips stay, and the next run goes on.
    """
    mine = share.of(sources)
    with Splitter(folder, rule, min(workers, max(len(mine), 1))) as splitter:
        progress = Progress(report.stage, len(mine), "videos")
        for source in mine:
            if splitter.needs(source):
                splitter.admit()
                splitter.submit(source)
            progress.advance()
        splitter.wait()
        if not all(splitter.is_done(source) for source in sources):
            return None
    return finish(folder, [source.name for source in sources], report, splitter.tally)


def finish(
    folder: Path, names: Iterable[str], report: Report, tally: Tally
) -> tuple[Listings, dict[str, Any]]:
    """Merge the records of the sources ``names`` into the report; remove all other sources' clips.

    Returns the files that are there now (see :attr:`.marks.Provenance.outputs`) and the report's
    summary.

    Raises:
        UserError: nothing is left to train on.
    """
    wanted, records = set(names), {}
    for path in sorted((folder / ".sources").glob("*.json")):
        if path.name.startswith(PARTIAL_PREFIX):
            continue
        record = _read_record(path)
        if path.stem in wanted:
            records[path.stem] = record
        else:
            tally.removed_windows += _remove(folder, record.split, record.names)
            path.unlink()
    clips = [(r, clip) for r in records.values() for clip in r.clips]
    frames = sum(clip[2] - clip[1] for _, clip in clips)
    for record in records.values():
        for problem in record.dropped:
            report.drop(**problem)
        for problem in record.notes:
            report.note(**problem)
    report.counts |= {
        "episodes": sum(bool(record.clips) for record in records.values()),
        "windows": len(clips),
        "new_windows": tally.new_windows,
        "train_windows": sum(record.split == "train" for record, _ in clips),
        "val_windows": sum(record.split == "val" for record, _ in clips),
        "copied_windows": sum(clip[4] for _, clip in clips),
        "removed_windows": tally.removed_windows,
        "frames": frames,
        "seconds": round(sum((c[2] - c[1]) / r.fps for r, c in clips), 3),
        "bytes_in": sum(record.source_bytes for record in records.values()),
        "bytes_kept": sum(clip[3] for _, clip in clips),
    }
    files = {s: sorted(c[0] for r, c in clips if r.split == s) for s in SPLITS}
    samples = [_video(folder, split, name) for split in SPLITS for name in files[split]]
    write_report(folder, report, samples, files=files)
    report.show()
    if not report.counts["train_windows"]:
        words = (
            f"{folder}: no window is left to train on ({len(report.dropped)} items dropped, "
            f"{report.counts['val_windows']} windows for validation); see {folder}/report.json for "
            "the reasons"
        )
        raise nothing_left(words, report)
    made: Listings = {str(folder): {"report.json": ""}}
    for record, (name, _, _, size, _) in clips:
        for path, stamp in (
            (_video(folder, record.split, name), str(size)),
            (_meta(folder, record.split, name), ""),  # a caption edited here is the user's
        ):
            made.setdefault(str(path.parent), {})[path.name] = stamp
    return made, report.summary()
