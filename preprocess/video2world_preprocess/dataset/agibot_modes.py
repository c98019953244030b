"""Process AgiBot tasks: cut videos while reading archives, cut extracted ones, or only extract."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from video2world_common.files import remove_leftovers
from video2world_common.markers import Listings, Provenance
from video2world_common.sharding import Shard
from video2world_preprocess.archives.archive import Archive, find_archives
from video2world_preprocess.archives.extract import Extraction
from video2world_preprocess.archives.tar_scan import Member
from video2world_preprocess.dataset.agibot_dataset import AgiBotDataset
from video2world_preprocess.dataset.agibot_layout import clip_prefix
from video2world_preprocess.dataset.merge import merge_records
from video2world_preprocess.dataset.source import Source
from video2world_preprocess.dataset.splitter import Splitter, split_all
from video2world_preprocess.dataset.window_actions import write_actions

__all__ = ["extract", "prepare", "split"]


def prepare(data: AgiBotDataset, made: Provenance) -> tuple[Listings, dict[str, Any]] | None:
    """Cut every video as soon as it has been read from its archive.

    Returns:
        The result of :func:`.merge.merge_records`, or None while other shards are not finished.

    Raises:
        UserError: no video of the camera, unknown validation episodes, or no training window.
    """
    archives: dict[int, list[Archive]] = {}
    for task in data.task_ids:
        archives[task] = data.repository.archives(task)
        if not archives[task]:
            raise data.no_video_error(task)
        data.repository.fetch_task_info(task)
    if (listed := data.captions.episodes) is not None:
        data.check_validation(listed)  # before the archives are read, which takes hours
    with (
        data.lock() as made.owned,
        Splitter(data.folder, data.settings, data.workers) as splitter,
    ):
        extractions = {
            task: _extraction(data, task, archives[task], splitter) for task in data.task_ids
        }
        for extraction in extractions.values():
            extraction.run(data.report.stage)
        found = {task: e.members(data.report) for task, e in extractions.items()}
        splitter.wait()
        episodes: set[int] = set()
        finished: list[Source] = []
        without_camera: set[int] = set()
        for task, members in found.items():
            if members is None:
                return None
            if not members:
                raise data.no_video_error(task, extractions[task].cameras)
            without_camera |= _drop_without_camera(data, task, extractions[task])
            episodes |= {member.episode for _, member in members}
            of_task = _finished_episodes(data, task, members, splitter)
            if of_task is None:
                return None
            finished += of_task
        splitter.tally.removed_windows += write_actions(
            data.folder, finished, data.actions, data.workers, data.report
        )
        data.check_validation(episodes, without_camera)
        shutil.rmtree(data.temporary_folder.parent, ignore_errors=True)
        data.report.counts["transferred_bytes"] = data.repository.transferred
        names = [source.name for source in finished]
        return merge_records(data.folder, names, data.report, splitter.tally, data.actions)


def _extraction(
    data: AgiBotDataset, task: int, archives: list[Archive], splitter: Splitter
) -> Extraction:
    """Return the extraction of a task's videos that hands each of them to ``splitter``."""
    return Extraction(
        archives,
        data.index_folder,
        data.layout.camera,
        target=lambda member: data.temporary_path(task, member),
        wanted=lambda archive, m: splitter.needs(data.archived_source(task, archive, m)),
        shard=data.shard,
        on_extracted=lambda archive, m: splitter.submit(data.archived_source(task, archive, m)),
        acquire_slot=splitter.acquire_slot,
        release_slot=splitter.release_slot,
    )


def _finished_episodes(
    data: AgiBotDataset, task: int, members: list[tuple[Archive, Member]], splitter: Splitter
) -> list[Source] | None:
    """Return a task's episodes that were cut; None while another shard cuts one."""
    found = []
    for episode in sorted({member.episode for _, member in members}):
        copies = [
            data.archived_source(task, archive, member)
            for archive, member in members
            if member.episode == episode
        ]
        if len(copies) > 1:
            reason = f"the archives have it {len(copies)} times; one copy is used"
            data.report.note("episode", clip_prefix(task, episode), reason)
        if copies[0] is None:
            data.drop_episode(task, episode, data.captions.why_missing(task))
        elif done := [copy for copy in copies if copy and splitter.is_done(copy)]:
            found.append(done[0])
        else:
            return None  # the shard that finishes it merges the records
    return found


def _drop_without_camera(data: AgiBotDataset, task: int, extraction: Extraction) -> set[int]:
    """Report and return the episodes that have no video of the camera in the archives."""
    for episode, archive in extraction.without_camera.items():
        reason = f"no video of camera {data.layout.camera} in {archive}"
        data.drop_episode(task, episode, reason)
    return set(extraction.without_camera)


def split(data: AgiBotDataset, made: Provenance) -> tuple[Listings, dict[str, Any]] | None:
    """Cut the episodes that are extracted in the data folder.

    Returns and raises as :func:`prepare`.
    """
    layout, known, videos = data.layout, set[int](), list[tuple[int, int]]()
    for task in data.task_ids:
        find_archives(layout.observations(task), data.report)  # reports other entries, too
        episodes = [int(folder.name) for folder in layout.episode_folders(task)]
        known |= set(episodes)
        with_video = [episode for episode in episodes if layout.video(task, episode).is_file()]
        for episode in episodes:
            if episode not in with_video:
                path = layout.video(task, episode)
                data.drop_episode(task, episode, f"no video of camera {layout.camera} ({path})")
        if not with_video:
            raise data.no_video_error(task)
        videos += [(task, episode) for episode in with_video]
    data.check_validation({episode for _, episode in videos}, known)
    sources = []
    for task, episode in videos:
        source = data.extracted_source(task, episode)
        if source is None:
            data.drop_episode(task, episode, data.captions.why_missing(task))
        else:
            sources.append(source)
    with data.lock() as made.owned:
        return split_all(
            data.folder,
            sources,
            data.settings,
            data.workers,
            data.shard,
            data.report,
            data.actions,
        )


def extract(data: AgiBotDataset) -> None:
    """Extract the camera's videos into the data folder, which is the guide's first step.

    Raises:
        UserError: there is no such video.
    """
    index_folder = data.layout.data_dir / ".archives"
    remove_leftovers(index_folder)
    for task in data.task_ids:
        data.repository.fetch_task_info(task)

        def target(member: Member, task: int = task) -> Path:
            return data.layout.video(task, member.episode)

        def wanted(archive: Archive, member: Member, task: int = task) -> bool:
            path = data.layout.video(task, member.episode)
            return not (path.is_file() and path.stat().st_size == member.size)

        archives = data.repository.archives(task)
        extraction = Extraction(
            archives, index_folder, data.layout.camera, target, wanted, shard=Shard()
        )
        extraction.run(data.report.stage)
        if not extraction.members(data.report):
            raise data.no_video_error(task, extraction.cameras)
        _drop_without_camera(data, task, extraction)
