"""Read the AgiBotWorld repository: tasks, episodes, captions."""

from __future__ import annotations

import argparse
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.files import write_text
from video2world_preprocess.archives.extract import (
    Archive,
    find_archives,
    local_archive,
    remote_archive,
)
from video2world_preprocess.archives.tar_scan import ARCHIVE_SUFFIXES
from video2world_preprocess.dataset.captions import CaptionFile, EpisodeInfo, read_task_info
from video2world_preprocess.dataset.source import Captions
from video2world_preprocess.hub.client import Hub, NoSuchEntry, digest_of, digest_of_file, explained
from video2world_preprocess.hub.range_reader import RemoteFile
from video2world_preprocess.stage_report import Report

__all__ = ["clean"]


def _observations(args: argparse.Namespace, task: int) -> Path:
    return Path(args.data_dir) / "observations" / str(task)


def _extracted(args: argparse.Namespace, task: int, episode: int | str) -> Path:
    return _observations(args, task) / str(episode) / "videos" / f"{args.camera}.mp4"


# ---------------------------------------------------------------- where archives come from


class _Origin:
    """The archives and the task_info of tasks: in the data folder, or on the Hub."""

    def __init__(self, args: argparse.Namespace, report: Report) -> None:
        self._args, self._report = args, report
        self._remotes: list[RemoteFile] = []

    @cached_property
    def _hub(self) -> Hub:
        where = f"put the archives into {self._args.data_dir}/observations/<task>/ and use --local"
        return Hub(self._args.repo_id, "dataset", self._args.revision, otherwise=where)

    def archives(self, task: int) -> list[Archive]:
        """The archives of ``task``.

        Raises:
            UserError: the Hub has none.
        """
        if self._args.local:
            paths = find_archives(_observations(self._args, task), self._report)
            return [local_archive(path, self._name(path)) for path in paths]
        try:
            files = self._hub.files(f"observations/{task}")
        except NoSuchEntry:
            files = []
        files = sorted(
            (file for file in files if file.path.endswith(ARCHIVE_SUFFIXES)), key=lambda f: f.path
        )
        if not files:
            raise UserError(f"--task_ids {task}: {self._args.repo_id} has no archives of this task")
        if self._args.keep_tar:
            return [local_archive(self._download(file), file.path) for file in files]
        found = []
        for file in files:
            remote = self._hub.remote(file.path, file.size)
            self._remotes.append(remote)
            found.append(remote_archive(remote, file.path, "-".join(digest_of(file))))
        return found

    @property
    def transferred(self) -> int:
        """Bytes of archives that came over the network so far."""
        return sum(remote.transferred for remote in self._remotes)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._args.data_dir))

    def _download(self, file: Any) -> Path:
        """A whole archive, as the guide's script keeps it, checked once."""
        from huggingface_hub import hf_hub_download

        path: Path = self._args.data_dir / file.path
        if path.is_file() and path.stat().st_size == file.size:
            return path
        say(f"{file.path}: downloading {file.size / 2**30:.1f} GiB")
        with explained(self._args.repo_id, "dataset"):
            hf_hub_download(
                self._args.repo_id,
                file.path,
                repo_type="dataset",
                revision=self._hub.commit,
                local_dir=self._args.data_dir,
            )
        kind, expected = digest_of(file)
        if digest_of_file(path, kind) != expected:
            path.unlink()
            raise ConnectionError(f"{file.path}: arrived damaged and is removed; run it again")
        return path

    def fetch_task_info(self, task: int) -> None:
        """Bring the task's captions into the data folder, where the Hub has them."""
        if self._args.local:
            return
        path = _task_info(self._args, task)
        try:
            text = self._hub.read(f"task_info/task_{task}.json").decode()
        except NoSuchEntry:  # a caption file may do instead
            return
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)


# ---------------------------------------------------------------- captions


def _task_info(args: argparse.Namespace, task: int) -> Path:
    return Path(args.data_dir) / "task_info" / f"task_{task}.json"


def _usual_captions(args: argparse.Namespace) -> Path:
    return Path(args.data_dir).parent / f"agibot_{args.camera}.jsonl"


class _Words:
    """The captions of all episodes: of the caption file if there is one, else of task_info."""

    def __init__(self, args: argparse.Namespace, report: Report) -> None:
        self._file: CaptionFile | None = None
        self._infos: dict[int, dict[int, EpisodeInfo]] = {}
        path = args.caption_file
        if path is None:
            usual = _usual_captions(args)
            path = usual if usual.is_file() else None
        if path is not None:
            self._file = CaptionFile.read(path, report)
            return
        for task in args.task_ids:
            self._infos[task] = read_task_info(_task_info(args, task), report)

    def of(self, task: int, episode: int) -> Captions | None:
        """Those of one episode, or None."""
        if self._file is not None:
            return self._file.of(task, episode)
        return self._infos[task].get(episode)

    def episodes(self) -> set[int] | None:
        """All that task_info lists; None where a caption file is used instead."""
        return None if self._file else {e for infos in self._infos.values() for e in infos}

    def why_none(self, task: int) -> str:
        """Why an episode has none."""
        if self._file is not None:
            return "the caption file has no line for it"
        return (
            f"task_info/task_{task}.json does not have it, so there is no caption; give "
            "--caption_file or a newer task_info"
        )


def _episodes(args: argparse.Namespace, task: int) -> list[Path]:
    folder = _observations(args, task)
    if not folder.is_dir():
        return []
    return sorted(
        (p for p in folder.iterdir() if p.is_dir() and p.name.isascii() and p.name.isdigit()),
        key=lambda p: int(p.name),
    )


def clean(args: argparse.Namespace, task: int) -> int:
    """Remove all of the extracted episodes but the camera's video; returns how much was removed.

    As the guide has it: every sub-directory of an episode except ``videos/``, and every other
    mp4 in ``videos/``. Links are removed, never followed.
    """
    removed = 0
    for episode in _episodes(args, task):
        for entry in episode.iterdir():
            if entry.name != "videos" and entry.is_dir():
                if entry.is_symlink():
                    entry.unlink()
                else:
                    shutil.rmtree(entry)
                removed += 1
        videos = episode / "videos"
        if videos.is_symlink() or not videos.is_dir():
            continue
        for video in videos.glob("*.mp4"):
            if video.name != f"{args.camera}.mp4":
                video.unlink()
                removed += 1
    if removed:
        say(f"task {task}: removed {removed} folders and videos that {args.camera} does not need")
    return removed


# ---------------------------------------------------------------- the modes


def _name(task: int, episode: int) -> str:
    return f"task_{task}_episode_{episode}"
