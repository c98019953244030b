"""Take the previous release out of the git history: its chart, and its operator to run."""

from __future__ import annotations

import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from . import ROOT

__all__ = ["V0_1_0", "Release", "Unreachable", "previous", "unpack"]

# What v0.1.0 means while no release is tagged: the last commit before the fields, stages and
# status fields that CHANGELOG.md lists as unreleased were added.
V0_1_0 = "2fc87cf1b1c5460bf153b5f08b1e29d68d4c15d4"
CHART = "charts/video2world-operator"
_PARTS = ("common", "operator", "charts", "manifests")  # those that a version has


class Unreachable(Exception):
    """The commit is not in this checkout's history."""


@dataclass(frozen=True)
class Release:
    """A release, unpacked: its commit or tag, its chart and the search path of its operator."""

    name: str
    folder: Path

    @property
    def chart(self) -> Path:
        return self.folder / CHART

    @property
    def python_path(self) -> str:
        """Value of PYTHONPATH; it precedes the packages that are installed in this environment."""
        return ":".join(str(self.folder / part) for part in ("operator", "common"))


def previous() -> str:
    """Return the newest tag ``v...`` before this commit, or the commit that v0.1.0 means."""
    tag = _git("describe", "--tags", "--match", "v*", "--abbrev=0", "HEAD^")
    return tag.stdout.decode().strip() if tag.returncode == 0 else V0_1_0


def unpack(name: str, folder: Path) -> Release:
    """Unpack the commit or tag ``name`` into ``folder``.

    Raises:
        Unreachable: the history of this checkout does not reach so far back.
    """
    listed = _git("ls-tree", "--name-only", name)
    if listed.returncode:
        raise Unreachable(
            f"{name} is not in this checkout: fetch its history with `git fetch --unshallow --tags`"
        )
    parts = [part for part in _PARTS if part in listed.stdout.decode().split()]
    archive = _git("archive", name, *parts)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return Release(name, folder)


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
