"""Fixtures that several folders of tests use."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests on one of several workers, and all that share clusters on another."""
    for item in items:
        path = item.path.relative_to(HERE)
        group = "cluster" if path.parts[0] == "cluster" else path.stem
        item.add_marker(pytest.mark.xdist_group(group))


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
