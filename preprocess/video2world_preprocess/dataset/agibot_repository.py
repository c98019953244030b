"""Provide the archives and task descriptions of AgiBotWorld-Alpha, from the Hub or the volume."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from video2world_common.events import say
from video2world_common.exit_codes import UserError
from video2world_common.files import write_text
from video2world_preprocess.archives.archive import (
    ARCHIVE_SUFFIXES,
    Archive,
    find_archives,
    local_archive,
    remote_archive,
)
from video2world_preprocess.dataset.agibot_layout import AgiBotLayout
from video2world_preprocess.hub.client import Hub, NoSuchEntry, digest_of, digest_of_file, explained
from video2world_preprocess.hub.range_reader import RemoteFile
from video2world_preprocess.stage_report import Report

__all__ = ["AgiBotRepository"]


@dataclass
class AgiBotRepository:
    """The data set ``repo_id`` at ``revision`` on the Hub, or below ``layout.data_dir``.

    ``local``: only the files that are on the volume already are used. ``keep_tar``: archives are
    downloaded completely and kept, instead of being read by HTTP ranges.
    """

    layout: AgiBotLayout
    repo_id: str
    revision: str | None
    local: bool
    keep_tar: bool
    report: Report
    _remote_files: list[RemoteFile] = field(default_factory=list, init=False)

    @cached_property
    def _hub(self) -> Hub:
        remedy = (
            f"put the archives into {self.layout.data_dir}/observations/<task>/ and use --local"
        )
        return Hub(self.repo_id, "dataset", self.revision, otherwise=remedy)

    def archives(self, task: int) -> list[Archive]:
        """Return the archives of ``task``.

        Raises:
            UserError: the Hub has none.
        """
        if self.local:
            paths = find_archives(self.layout.observations(task), self.report)
            data_dir = self.layout.data_dir
            return [local_archive(path, str(path.relative_to(data_dir))) for path in paths]
        try:
            files = self._hub.files(f"observations/{task}")
        except NoSuchEntry:
            files = []
        files = sorted(
            (file for file in files if file.path.endswith(ARCHIVE_SUFFIXES)), key=lambda f: f.path
        )
        if not files:
            raise UserError(f"--task_ids {task}: {self.repo_id} has no archives of this task")
        if self.keep_tar:
            return [local_archive(self._download(file), file.path) for file in files]
        found = []
        for file in files:
            remote = self._hub.remote(file.path, file.size)
            self._remote_files.append(remote)
            found.append(remote_archive(remote, file.path, "-".join(digest_of(file))))
        return found

    @property
    def transferred(self) -> int:
        """Bytes of archives read over the network so far."""
        return sum(file.transferred for file in self._remote_files)

    def _download(self, file: Any) -> Path:
        """Download and verify a complete archive unless it exists; return its path."""
        from huggingface_hub import hf_hub_download

        path: Path = self.layout.data_dir / file.path
        if path.is_file() and path.stat().st_size == file.size:
            return path
        say(f"{file.path}: downloading {file.size / 2**30:.1f} GiB")
        with explained(self.repo_id, "dataset"):
            hf_hub_download(
                self.repo_id,
                file.path,
                repo_type="dataset",
                revision=self._hub.commit,
                local_dir=self.layout.data_dir,
            )
        kind, expected = digest_of(file)
        if digest_of_file(path, kind) != expected:
            path.unlink()
            raise ConnectionError(
                f"{file.path} was damaged during the download and has been removed; run it again"
            )
        return path

    def fetch_task_info(self, task: int) -> None:
        """Download the task's descriptions into the data folder, if the Hub has them."""
        if self.local:
            return
        path = self.layout.task_info(task)
        try:
            text = self._hub.read(f"task_info/task_{task}.json").decode()
        except NoSuchEntry:  # a caption file may be used instead
            return
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
