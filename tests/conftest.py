"""Fixtures that several folders of tests use."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep a file's tests on one of several workers, and all that share clusters on another."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, _ = str(nodeid).partition("::")
            return "tests/cluster" if path.startswith("tests/cluster/") else path

    return ByFile(config, log)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(kib)`` mounts a real file system of that size; called again it resizes it."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = shutil.which("mount")
    mounted = False

    def give(kib: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={kib}k"
        if (
            os.geteuid() != 0
            or mount is None
            or subprocess.run(
                [mount, "-t", "tmpfs", "-o", options, "v2w-test", str(folder)],
                capture_output=True,
                check=False,
            ).returncode
        ):
            pytest.skip("mounting a tmpfs needs root; the tests of the file size limit run anyway")
        mounted = True
        return folder

    yield give
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
