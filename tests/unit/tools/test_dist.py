"""A release is complete, verifiable and reproducible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import images

DIST = images.ROOT / "tools" / "dist.py"


def made(folder: Path, umask: int, zone: str) -> dict[str, bytes]:
    done = subprocess.run(
        [sys.executable, DIST, f"--target={folder}"],
        capture_output=True,
        text=True,
        umask=umask,
        env={**os.environ, "TZ": zone, "LC_ALL": "C"},
        cwd=folder.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """A folder with a release, and the content of two built in different environments."""
    if not (images.ROOT / ".git").exists():
        pytest.skip("a release is made of a git checkout")
    work = tmp_path_factory.mktemp("dist")
    first = made(work / "first", 0o022, "UTC")
    return work / "first", first, made(work / "second", 0o077, "Asia/Tokyo")


def test_two_builds_are_identical(twice) -> None:
    _, first, second = twice
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_all_files_exist_and_match_their_checksums(twice) -> None:
    folder, first, _ = twice
    version = images.version()
    assert set(first) == {
        f"video2world-{version}.tar.gz",
        f"video2world-{version}-py3-none-any.whl",
        f"video2world-operator-{version}.tgz",
        f"video2world-{version}.cdx.json",
        "SHA256SUMS",
    }
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True
    )
    assert checked.returncode == 0
    assert len(checked.stdout.splitlines()) == len(first) - 1
    bill = json.loads(first[f"video2world-{version}.cdx.json"])
    listed = {part["name"]: part["version"] for part in bill["components"]}
    pins = (images.ROOT / "constraints.txt").read_text().splitlines()
    assert [p for p in pins if p[:1] != "#" and listed[p.split("==")[0]] != p.split("==")[1]] == []


def test_wheel_source_archive_and_chart_have_the_expected_files(twice) -> None:
    folder, _, _ = twice
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        inside = opened.namelist()
    for name in (
        "video2world_operator/plan/plan.py",
        "video2world_common/stage_runner.py",
        "video2world_trainer/train.py",
        "video2world_trainer/py.typed",
        "video2world_trainer/results/templates/page.html.jinja",
        "video2world_preprocess/templates/report.html.jinja",
    ):
        assert name in inside
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as tar:
        names = {one.name.partition("/")[2] for one in tar}
        assert {one.uname for one in tar} == {""}
    assert {"pyproject.toml", "LICENSE", "operator/video2world_operator/plan/plan.py"} <= names
    (chart,) = folder.glob("video2world-operator-*.tgz")
    with tarfile.open(chart) as tar:
        packed = {one.name for one in tar}
    root = images.ROOT / "charts"
    tracked = subprocess.run(
        ["git", "ls-files", "video2world-operator"], cwd=root, capture_output=True, text=True
    ).stdout.split()
    assert packed == set(tracked)
