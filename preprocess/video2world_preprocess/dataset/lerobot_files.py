"""Provide the files of a LeRobotDataset: from the Hub, one by one, or from a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume
from video2world_preprocess.dataset.lerobot_layout import INFO
from video2world_preprocess.hub.client import Hub, NoSuchEntry, digest_of

__all__ = [
    "DatasetFiles",
    "FolderFiles",
    "HubFiles",
    "ListedFile",
    "check_subfolder",
    "missing_info",
]

DEEPEST = 4  # folders below the dataset's
ROOTS = 20  # to name in an error


@dataclass(frozen=True)
class ListedFile:
    """A file: its size in bytes, and an ``identity`` that changes with its content."""

    path: str
    size: int
    identity: str


def check_subfolder(subfolder: str) -> str:
    """Return ``subfolder`` without slashes around it.

    Raises:
        UserError: it leaves the repository.
    """
    path = PurePosixPath(subfolder.strip("/"))
    if ".." in path.parts or "\0" in subfolder:
        raise UserError(f"--subfolder {subfolder}: give a folder inside the dataset's repository")
    return "" if str(path) == "." else str(path)


class DatasetFiles(Protocol):
    """The files of a dataset; their paths are relative to its root, the folder of ``meta/``."""

    transferred: int  # bytes that were downloaded

    def listed(self, folder: str) -> dict[str, ListedFile]:
        """Return the files below ``folder`` by path; none if there is no such folder."""

    def local(self, file: ListedFile) -> Path:
        """Return the path of the file on the volume, to which it is downloaded if necessary."""

    def release(self, file: ListedFile) -> None:
        """Delete the file if it was downloaded."""

    def roots(self) -> list[str]:
        """Return the folders of the repository that are roots of datasets."""


def missing_info(files: DatasetFiles, name: str) -> UserError:
    """Return the error for a root without ``meta/info.json``."""
    roots = files.roots()
    if not roots:
        return UserError(f"{name}: there is no {INFO}, so it is not a LeRobotDataset")
    shown = ", ".join(roots[:ROOTS]) + (f" and {len(roots) - ROOTS} more" if roots[ROOTS:] else "")
    return UserError(
        f"{name}: there is no {INFO} at its root, but there are datasets in folders of it; give "
        f"one as dataset.lerobot.subfolder (--subfolder): {shown}"
    )


class FolderFiles:
    """A dataset in the folder ``root`` on the volume, which is never changed."""

    transferred = 0

    def __init__(self, top: Path, subfolder: str) -> None:
        self._top, self.root = top, top / subfolder

    def listed(self, folder: str) -> dict[str, ListedFile]:
        """See :meth:`DatasetFiles.listed`."""
        found = {}
        for path in _walk(self.root / folder, DEEPEST):
            try:
                status = path.stat()
            except OSError:  # a broken link
                continue
            name = str(path.relative_to(self.root))
            found[name] = ListedFile(name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")
        return found

    def local(self, file: ListedFile) -> Path:
        """Return the file's path.

        Raises:
            UserError: a link leads out of the volume.
        """
        return on_volume(self.root / file.path)

    def release(self, file: ListedFile) -> None:
        """Keep the file."""

    def roots(self) -> list[str]:
        """See :meth:`DatasetFiles.roots`."""
        found = (path for path in _walk(self._top, DEEPEST + 2) if path.name == "info.json")
        names = (path.parent for path in found if path.parent.name == "meta")
        return sorted(str(path.parent.relative_to(self._top)) for path in names)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the files below ``folder``, at most ``depth`` folders deep, as links may be cyclic."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth:
                yield from _walk(Path(entry.path), depth - 1)
        else:
            yield Path(entry.path)


class HubFiles:
    """A dataset on the Hub; files that are needed are downloaded to ``folder``. Thread-safe."""

    def __init__(self, repo_id: str, revision: str | None, subfolder: str, folder: Path) -> None:
        self._repo_id, self._revision, self._folder = repo_id, revision, folder
        self._inside = f"{subfolder}/" if subfolder else ""
        self._listed: dict[str, Any] = {}
        self.transferred = 0

    @cached_property
    def _hub(self) -> Hub:
        remedy = "download the dataset to the volume and set dataset.lerobot.path (--data_dir)"
        return Hub(self._repo_id, "dataset", self._revision, otherwise=remedy)

    @property
    def commit(self) -> str:
        """The commit that the revision names."""
        return self._hub.commit

    def listed(self, folder: str) -> dict[str, ListedFile]:
        """See :meth:`DatasetFiles.listed`."""
        try:
            files = self._hub.files(f"{self._inside}{folder}".rstrip("/"), recursive=True)
        except NoSuchEntry:
            return {}
        found = {}
        for file in files:
            name = file.path.removeprefix(self._inside)
            if ".." in PurePosixPath(name).parts:  # of a hostile mirror
                continue
            self._listed[name] = file
            found[name] = ListedFile(name, file.size, "-".join(digest_of(file)))
        return found

    def local(self, file: ListedFile) -> Path:
        """Download a listed file; see :meth:`.client.Hub.download`."""
        path = self._hub.download(self._listed[file.path], self._folder)
        self.transferred += file.size
        return path

    def release(self, file: ListedFile) -> None:
        """Delete the download."""
        (self._folder / self._inside / file.path).unlink(missing_ok=True)

    def roots(self) -> list[str]:
        """See :meth:`DatasetFiles.roots`."""
        try:
            files = self._hub.files(recursive=True)
        except NoSuchEntry:
            return []
        return sorted(
            file.path.removesuffix(f"/{INFO}") for file in files if file.path.endswith(f"/{INFO}")
        )
