"""Cut the files of a LeRobotDataset in parallel: download, cut, delete, and resume."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from video2world_common.events import ProgressReporter
from video2world_common.exit_codes import UserError
from video2world_common.markers import Listings
from video2world_common.sharding import Shard
from video2world_preprocess.daemon_threads import in_daemon_threads
from video2world_preprocess.dataset.clips import Tally, record_failure
from video2world_preprocess.dataset.lerobot_dataset import EpisodeFile, LeRobotDataset
from video2world_preprocess.dataset.lerobot_files import DatasetFiles
from video2world_preprocess.dataset.lerobot_jobs import Job, process_job
from video2world_preprocess.dataset.merge import merge_records
from video2world_preprocess.dataset.records import SPLITS, is_complete, read_record
from video2world_preprocess.dataset.source import CutSettings, Source
from video2world_preprocess.dataset.splitter import MORE_MEMORY
from video2world_preprocess.dataset.window_actions import (
    EpisodeActions,
    actions_done,
    needs_plan,
    write_actions,
)
from video2world_preprocess.item_faults import Crashed, reason_for
from video2world_preprocess.stage_report import Report
from video2world_preprocess.video.one_pass import timeline
from video2world_preprocess.worker_pool import WorkerPool

__all__ = ["cut_dataset"]

FILES_AHEAD = 2  # to download while all workers are busy
FRAMES_OF_A_JOB = 3000  # so that all workers are busy, also with a single file
FRAMES_OF_A_GROUP = 300  # longest group of pictures for which a file is divided


def _load(folder: Path, settings: CutSettings, device: str) -> Callable[[Job], Tally]:
    """Return the function that a worker process applies to each job."""
    return functools.partial(process_job, folder, settings)


def cut_dataset(
    data: LeRobotDataset,
    files: DatasetFiles,
    root: Path | None,
    folder: Path,
    settings: CutSettings,
    workers: int,
    shard: Shard,
    report: Report,
    actions: EpisodeActions | None = None,
) -> tuple[Listings, dict[str, Any]] | None:
    """Cut this process's shard of the episodes into ``folder``.

    Args:
        files: provides the dataset's files.
        root: its folder, if it is one on the volume.
        actions: those to write for every window, of which the sources have the digest.

    Returns:
        The result of :func:`.merge.merge_records`, or None while other shards are not finished.

    Raises:
        UserError: no window is left to train on.
        OSError: the volume or a download failed. Finished clips are kept.
    """
    for split in SPLITS:
        for kind in ("videos", "metas"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
    cutter = _Cutter(data, files, root, folder, settings, report)
    mine = _shard_of(data.files, shard)
    cutter.run(mine, workers)
    own = [source for file in mine for source in file.sources.values()]
    cutter.tally.removed_windows += write_actions(folder, own, actions, workers, report)
    sources = [source for file in data.files for source in file.sources.values()]
    if not all(cutter.is_done(source) and actions_done(folder, source) for source in sources):
        return None
    report.counts["transferred_bytes"] = files.transferred
    names = [source.name for source in sources]
    return merge_records(folder, names, report, cutter.tally, actions)


def _shard_of(files: Sequence[EpisodeFile], shard: Shard) -> list[EpisodeFile]:
    """Return the files with the episodes of this shard, which are neighbors."""
    episodes = [(place, number) for place, file in enumerate(files) for number in file.sources]
    mine: dict[int, dict[int, Source]] = {}
    for place, number in shard.of(episodes):
        mine.setdefault(place, {})[number] = files[place].sources[number]
    return [replace(files[place], sources=sources) for place, sources in mine.items()]


@dataclass
class _Cutter:
    data: LeRobotDataset
    files: DatasetFiles
    root: Path | None
    folder: Path
    settings: CutSettings
    report: Report

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._lock = threading.Lock()

    def is_done(self, source: Source) -> bool:
        """Whether nothing more is to be made of ``source``."""
        record = read_record(self.folder, source.name)
        is_current = record.told_by == source.result_digest(self.settings)
        return is_current and is_complete(self.folder, record)

    def _needs(self, source: Source) -> bool:
        failed = read_record(self.folder, source.name).failed
        return failed or not self.is_done(source) or needs_plan(self.folder, source)

    def run(self, files: Sequence[EpisodeFile], workers: int) -> None:
        """Cut what is not done of ``files``."""
        progress = ProgressReporter(
            self.report.stage, sum(len(file.sources) for file in files), "episodes"
        )
        waiting = []
        for file in files:
            needed = {n: source for n, source in file.sources.items() if self._needs(source)}
            if len(needed) < len(file.sources):
                progress.advance(len(file.sources) - len(needed))
            if needed:
                waiting.append(replace(file, sources=needed))
        if not waiting:
            return
        load = functools.partial(_load, self.folder, self.settings)
        # The number of threads bounds the number of files on disk: those being cut, and the next
        # ones.
        with WorkerPool(load, ["cpu"] * workers) as pool:

            def serve(file: EpisodeFile) -> None:
                self._cut_file(pool, file, progress)

            for _ in in_daemon_threads(serve, waiting, workers + FILES_AHEAD):
                pass

    def _cut_file(self, pool: WorkerPool, file: EpisodeFile, progress: ProgressReporter) -> None:
        """Download a file, cut its episodes, and delete it."""
        try:
            path = self.files.local(file.file)
        except UserError as error:  # a link that leads out of the volume
            self._fail(file.sources, str(error), progress)
            return
        try:
            jobs = self._jobs(path, file)
            futures = [(job, pool.submit(job)) for job in jobs]
            for job, future in futures:
                self._collect(pool, job, future, progress)
        finally:
            self.files.release(file.file)

    def _jobs(self, path: Path, file: EpisodeFile) -> list[Job]:
        """Divide the episodes of a file, so that each job decodes its own part."""
        is_video = self.data.kind == "video"
        whole = Job(
            path,
            "" if is_video else self.data.camera,
            self.data.info.fps,
            tuple(file.placements),
            file.sources,
            self.root,
        )
        if not is_video or len(file.sources) == 1:
            return [whole]
        try:
            known = timeline(path)
        except UserError:  # the worker reports it
            return [whole]
        if known.info.frames > FRAMES_OF_A_GROUP * max(known.keyframes, 1):
            return [whole]
        lengths = {p.episode: p.length or FRAMES_OF_A_JOB for p in file.placements}
        begins = {p.episode: p.begin for p in file.placements}
        jobs, frames = [dict[int, Source]()], 0
        for number in sorted(file.sources, key=lambda n: (begins[n], n)):
            if frames + lengths[number] > FRAMES_OF_A_JOB and jobs[-1]:
                jobs.append({})
                frames = 0
            jobs[-1][number] = file.sources[number]
            frames += lengths[number]
        return [replace(whole, sources=sources) for sources in jobs]

    def _collect(
        self, pool: WorkerPool, job: Job, future: Future[Tally], progress: ProgressReporter
    ) -> None:
        try:
            tally = future.result()
        except Crashed as crash:
            if len(job.sources) > 1:  # find out which of them it was
                for number, source in job.sources.items():
                    alone = replace(job, sources={number: source})
                    self._collect(pool, alone, pool.submit(alone), progress)
                return
            reason = f"{reason_for(crash, self.folder)}; {MORE_MEMORY}"
            self._fail(job.sources, reason, progress)
            return
        with self._lock:
            self.tally.add(tally)
            progress.advance(len(job.sources))

    def _fail(self, sources: Mapping[int, Source], reason: str, progress: ProgressReporter) -> None:
        for source in sources.values():
            tally = record_failure(self.folder, self.settings, source, reason)
            with self._lock:
                self.tally.add(tally)
                progress.advance()
