"""Tests that truncated or foreign archives are reported, and that their content is used."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hub_server import HubServer, Repository, serving
from video2world_common.sharding import Shard
from video2world_preprocess.archives.archive import (
    Archive,
    find_archives,
    local_archive,
    remote_archive,
)
from video2world_preprocess.archives.extract import Extraction
from video2world_preprocess.hub.range_reader import Address, RemoteFile
from video2world_preprocess.stage_report import Report

CAMERA = "head_center_fisheye_color"
OTHER = "hand_left_color"


def packed(*episodes: int, camera: str = CAMERA, size: int = 700) -> tuple[bytes, dict[int, int]]:
    """Return a tar, and where the content of each of the camera's videos ends in it."""
    ends = {}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for episode in episodes:
            for name in (camera, OTHER):
                info = tarfile.TarInfo(f"{episode}/videos/{name}.mp4")
                info.size = size
                archive.addfile(info, io.BytesIO(bytes([episode]) * size))
                if name == CAMERA:
                    ends[episode] = archive.offset - 2 * 512 + size
    return stream.getvalue(), ends


def taken(archive: Archive, folder: Path, min_skip: int = 0) -> tuple[set[int], Report, Extraction]:
    """Return the episodes whose complete videos were extracted."""
    videos, report = folder / "videos", Report("dataset")
    run = Extraction(
        [replace(archive, min_skip=min_skip)],
        folder / "state",
        CAMERA,
        lambda m: videos / f"{m.episode}.mp4",
        lambda _, m: not (videos / f"{m.episode}.mp4").exists(),
        Shard(),
    )
    run.run("dataset")
    run.members(report)
    found = {int(p.stem) for p in videos.glob("[!.]*.mp4")}
    assert all((videos / f"{e}.mp4").read_bytes() == bytes([e]) * 700 for e in found)
    return found, report, run


DATA, ENDS = packed(1, 2, 3, 4)
MARK = max(ENDS.values()) - 700 + 1024 + 512 + 1024  # where the end mark begins


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with serving(HubServer({"a/b": Repository({"x.tar": b""})})) as server:
        yield server


@pytest.fixture
def opened(hub: HubServer, tmp_path: Path) -> Callable[[str, bytes], Archive]:
    """Return a function that puts an archive on the volume or on a server."""

    def make(kind: str, data: bytes) -> Archive:
        if kind == "remote":
            hub.repositories["a/b"].files["x.tar"] = data
            where = RemoteFile("x.tar", len(data), lambda: Address(f"{hub.cdn}/cdn/a/b/x.tar"))
            return remote_archive(where, "x.tar", str(len(data)))
        path = tmp_path / f"x.{kind}"
        path.write_bytes(data)
        return local_archive(path, path.name)

    return make


CUTS = sorted(
    {*range(100, MARK + 1100, 256), *ENDS.values()}
    | {e + d for e in ENDS.values() for d in (-1, 1)}
)


def test_the_truncations_hit_every_part_of_an_archive() -> None:
    assert DATA[MARK : MARK + 1024] == bytes(1024)
    assert any(DATA[MARK - 1024 : MARK])
    assert len(DATA) > MARK + 1100


@pytest.mark.parametrize("kind", ["tar", "remote"])
@pytest.mark.parametrize("piece", [1 << 30, 1500])
def test_a_tar_truncated_anywhere(
    opened: Callable[[str, bytes], Archive],
    kind: str,
    piece: int,
    tmp_path: Path,
) -> None:
    for kept in CUTS if kind == "tar" else CUTS[::4]:
        found, report, _ = taken(
            replace(opened(kind, DATA[:kept]), piece_size=piece), tmp_path / str(kept)
        )
        assert found == {episode for episode, end in ENDS.items() if end <= kept}, kept
        named = [p.reason for p in report.dropped if p.kind == "archive"]
        assert len(named) == (kept < MARK + 1024), (kept, report.dropped)
        assert len(report.dropped) == len(named)
        assert all(f"{len(found)} videos of {CAMERA} could be read" in reason for reason in named)
        assert all("truncated" in reason and "copy or download it" in reason for reason in named)


def test_a_compressed_tar_truncated_anywhere(
    opened: Callable[[str, bytes], Archive], tmp_path: Path
) -> None:
    whole = gzip.compress(DATA, 1)
    for kept in (*range(20, len(whole), 7), len(whole) - 1):
        found, report, _ = taken(opened("tar.gz", whole[:kept]), tmp_path / str(kept))
        assert found <= set(ENDS)
        assert len(report.dropped) == 1
        assert "truncated" in report.dropped[0].reason
    found, report, _ = taken(opened("tar.gz", whole), tmp_path / "whole")
    assert found == set(ENDS)
    assert not report.dropped
    for kept in CUTS:  # truncated before it was compressed
        data = gzip.compress(DATA[:kept], 1)
        found, report, _ = taken(opened("tgz", data), tmp_path / f"tgz {kept}")
        assert found == {episode for episode, end in ENDS.items() if end <= kept}
        assert len(report.dropped) == (kept < MARK + 1024)


FOREIGN: dict[tuple[str, bytes], str] = {
    ("tar", gzip.compress(DATA)): "is compressed with gzip, although its name ends in .tar; rename",
    ("tar", bz2.compress(DATA)): "is compressed with bzip2",
    ("tar", lzma.compress(DATA)): "is compressed with xz",
    ("tar.gz", lzma.compress(DATA)): "is compressed with xz, although its name ends in .tar.gz",
    ("tar.gz", DATA): "is not compressed, although its name ends in .tar.gz; rename",
    ("tgz", DATA): "is not compressed, although its name ends in .tgz",
    ("tar", b"PK\x03\x04" + os.urandom(900)): "is a zip file",
    ("tar", b"<!doctype html><title>403</title>"): "is a web page",
    ("tar", b"version https://git-lfs.github.com/spec/v1\noid sha256:1"): "run git lfs pull",
    ("tar", b""): "is empty",
    ("tar", b"hello " * 300): "is not a tar archive, or its beginning is damaged",
}


@pytest.mark.parametrize("case", FOREIGN, ids=list(FOREIGN.values()))
def test_a_file_that_is_not_what_its_name_says(
    opened: Callable[[str, bytes], Archive], tmp_path: Path, case: tuple[str, bytes]
) -> None:
    found, report, _ = taken(opened(*case), tmp_path)
    assert not found
    (problem,) = report.dropped
    assert (problem.kind, problem.item) == ("archive", f"x.{case[0]}")
    assert problem.reason.startswith(FOREIGN[case]) or FOREIGN[case] in problem.reason
    assert "truncated" not in problem.reason
    assert not report.notes


def test_archives_joined_into_one_file_are_reported(
    opened: Callable[[str, bytes], Archive], tmp_path: Path
) -> None:
    more, _ = packed(5, 6)
    found, report, _ = taken(opened("tar", DATA + more), tmp_path)
    assert found == {1, 2, 3, 4}
    (problem,) = report.dropped
    assert f"data after the end mark at byte {MARK}" in problem.item
    assert "joined into one file" in problem.reason


def test_episodes_without_the_camera_are_known(
    opened: Callable[[str, bytes], Archive], tmp_path: Path
) -> None:
    blind, _ = packed(7, 8, camera="head_color")
    both = DATA[:MARK] + blind
    _, report, run = taken(opened("tar", both), tmp_path / "both")
    assert run.without_camera == {7: "x.tar", 8: "x.tar"}
    assert run.cameras == {CAMERA, OTHER, "head_color"}
    assert not report.dropped
    # in a truncated archive, the missing part may have had it
    _, report, run = taken(opened("tar", both[: MARK + 2048]), tmp_path / "cut")
    assert run.without_camera == {}
    assert "those of episodes 7 could not" in report.dropped[0].reason


def test_names_of_archives_that_an_index_cannot_have_or_glob(tmp_path: Path) -> None:
    """Each of two pods reads one archive; the second one uses the index of the first."""
    for name in ("y" * 251 + ".tar", "1-3[a]*.tar"):
        (tmp_path / name).write_bytes(DATA)
    archives = [local_archive(p, f"observations/327/{p.name}") for p in find_archives(tmp_path)]
    videos = tmp_path / "videos"
    for index in range(2):
        run = Extraction(
            archives,
            tmp_path / "state",
            CAMERA,
            lambda m: videos / f"{m.episode}.mp4",
            lambda *_: False,
            Shard(index, 2),
        )
        run.run("dataset")
        members = run.members(Report("dataset"))
        assert (members is None) == (index == 0)
    assert members is not None
    assert [m.episode for _, m in members] == [1, 2, 3, 4, 1, 2, 3, 4]


def test_other_files_than_archives_are_reported(tmp_path: Path) -> None:
    for name in ("a.tar", "b.TAR", "c.tar.xz", "d.zip", "e.tar.part", "notes.md", ".f.tar"):
        (tmp_path / name).write_bytes(DATA)
    (tmp_path / "101").mkdir()
    (tmp_path / "gone.tar").symlink_to("/nowhere")
    report = Report("dataset")
    assert find_archives(tmp_path, report) == [tmp_path / "a.tar"]
    assert {p.item for p in report.dropped} == {
        "b.TAR",
        "c.tar.xz",
        "d.zip",
        "e.tar.part",
        ".f.tar",
        "gone.tar",
    }
    assert {p.item for p in report.notes} == {"notes.md"}
