"""Cut many source videos in parallel, and resume where an earlier run stopped.

The record of each source (:mod:`.records`) makes the work repeatable: complete clips are kept,
clips made with other settings are removed, and files that the user put there are left alone.
Several pods can share the work.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from video2world_common.events import ProgressReporter
from video2world_common.markers import Listings
from video2world_common.sharding import Shard
from video2world_preprocess.dataset.clips import (
    Tally,
    process_source,
    record_failure,
    start_record,
)
from video2world_preprocess.dataset.merge import merge_records
from video2world_preprocess.dataset.records import SPLITS, is_complete, read_record
from video2world_preprocess.dataset.source import CutSettings, Source
from video2world_preprocess.dataset.window_actions import (
    EpisodeActions,
    actions_done,
    needs_plan,
    write_actions,
)
from video2world_preprocess.item_faults import Crashed, reason_for
from video2world_preprocess.stage_report import Report
from video2world_preprocess.worker_pool import WorkerPool

__all__ = ["Splitter", "split_all"]

MORE_MEMORY = "give the stage more memory (spec.stages.dataset.resources), or use fewer --workers"


def _load(folder: Path, settings: CutSettings, device: str) -> Callable[[Source], Tally]:
    """Return the function that a worker process applies to each source."""
    return functools.partial(process_source, folder, settings)


class Splitter:
    """Cuts sources into clips in ``folder``, ``workers`` at a time; a context manager."""

    def __init__(self, folder: Path, settings: CutSettings, workers: int) -> None:
        self.folder, self.settings, self.tally = folder, settings, Tally()
        self._workers = workers
        # bounds the number of videos on disk: those being cut, and the next ones
        self._slots = threading.Semaphore(workers + 2)
        self._lock = threading.Lock()
        self._submitted: set[str] = set()
        self._futures: list[tuple[Source, Future[Tally]]] = []
        self._error: BaseException | None = None
        self._pool: WorkerPool | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Splitter:
        for split in SPLITS:
            for kind in ("videos", "metas"):
                (self.folder / split / kind).mkdir(parents=True, exist_ok=True)
        if self._workers > 1:
            self._start_pool()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)

    def _start_pool(self) -> None:
        load = functools.partial(_load, self.folder, self.settings)
        self._pool = self._stack.enter_context(WorkerPool(load, ["cpu"] * self._workers))

    def is_done(self, source: Source) -> bool:
        """Whether nothing more is to be made of ``source``."""
        record = read_record(self.folder, source.name)
        is_current = record.told_by == source.result_digest(self.settings)
        return is_current and is_complete(self.folder, record)

    def needs(self, source: Source | None) -> bool:
        """Whether ``source`` is to be submitted: not yet submitted by this run, and not done.

        A source that failed in an earlier run for a possibly temporary reason is needed again. One
        that fails in this run is not: :meth:`is_done` is then true.
        """
        if source is None or source.name in self._submitted:
            return False
        failed = read_record(self.folder, source.name).failed
        return failed or not self.is_done(source) or needs_plan(self.folder, source)

    def acquire_slot(self) -> None:
        """Wait for a slot for one more video, to be used by submit() or returned."""
        self._slots.acquire()

    def release_slot(self) -> None:
        """Return a slot without having submitted a video."""
        self._slots.release()

    def submit(self, source: Source | None) -> None:
        """Schedule ``source``, for which a slot was acquired. Thread-safe.

        Raises:
            OSError: an earlier source could not be written.
        """
        with self._lock:
            if source is None or source.name in self._submitted:
                self._slots.release()
                return
            self._submitted.add(source.name)
            if self._pool is None and start_record(self.folder, self.settings, source):
                self._start_pool()  # the source may have killed the earlier run: isolate it
            if self._pool is not None:
                if self._error is not None:
                    raise self._error  # the stage has failed already
                future = self._pool.submit(source)
                future.add_done_callback(self._on_done)
                self._futures.append((source, future))
                return
            try:
                self.tally.add(process_source(self.folder, self.settings, source))
            finally:
                self._slots.release()

    def _on_done(self, future: Future[Tally]) -> None:
        self._slots.release()
        error = future.exception()
        if error is not None and not isinstance(error, Crashed):
            self._error = error

    def wait(self) -> None:
        """Wait until all submitted sources are processed.

        Raises:
            OSError: a source could not be written. Finished clips are kept.
        """
        for source, future in self._futures:
            try:
                self.tally.add(future.result())
            except Crashed as crash:
                reason = f"{reason_for(crash, self.folder)}; {MORE_MEMORY}"
                self.tally.add(record_failure(self.folder, self.settings, source, reason))


def split_all(
    folder: Path,
    sources: Sequence[Source],
    settings: CutSettings,
    workers: int,
    shard: Shard,
    report: Report,
    actions: EpisodeActions | None = None,
) -> tuple[Listings, dict[str, Any]] | None:
    """Cut this process's shard of ``sources``, which are all sources of the dataset.

    With ``actions``, write those of every window, too.

    Returns:
        The result of :func:`.merge.merge_records`, or None while other shards are not finished.

    Raises:
        UserError: no window is left to train on.
        OSError: the volume failed, for example because it is full. Finished clips are kept.
    """
    mine = shard.of(sources)
    with Splitter(folder, settings, min(workers, max(len(mine), 1))) as splitter:
        progress = ProgressReporter(report.stage, len(mine), "videos")
        for source in mine:
            if splitter.needs(source):
                splitter.acquire_slot()
                splitter.submit(source)
            progress.advance()
        splitter.wait()
        removed = write_actions(folder, mine, actions, workers, report)
        splitter.tally.removed_windows += removed
        if not all(splitter.is_done(source) and actions_done(folder, source) for source in sources):
            return None
    names = [source.name for source in sources]
    return merge_records(folder, names, report, splitter.tally, actions)
