"""Only the wanted camera leaves an archive, whatever the archive says; damage costs only itself."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from video2world_preprocess.archives import extract_camera, find_archives
from video2world_preprocess.report import Report

CAMERA = "head_center_fisheye_color"


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, io.BytesIO(data)


def write_tar(path: Path, members: list[tuple], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, data in members:
            archive.addfile(info, data)
    return path


def episode(number: str, size: int = 5000) -> list[tuple]:
    content = number.encode() * size
    return [
        member(f"{number}/depth/0.png", b"depth"),
        member(f"{number}/videos/hand_left_color.mp4", b"hand"),
        member(f"{number}/videos/{CAMERA}.mp4", content),
    ]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")]
)
def test_only_the_camera_is_extracted(tmp_path: Path, name: str, mode: str) -> None:
    archive = write_tar(tmp_path / name, episode("1") + episode("22"), mode)
    assert find_archives(tmp_path) == [archive]
    report = Report("dataset")
    videos, whole = extract_camera(archive, tmp_path / "out", CAMERA, report)
    assert whole
    assert report.dropped == []
    assert files(tmp_path / "out") == [f"{e}/videos/{CAMERA}.mp4" for e in ("1", "22")]
    assert videos[1].read_bytes() == b"22" * 5000


def test_extracting_again_keeps_what_is_whole_and_mends_what_is_not(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", episode("1") + episode("2"))
    first, second = extract_camera(archive, tmp_path, CAMERA, Report("dataset"))[0]
    inode = first.stat().st_ino
    second.write_bytes(b"short")
    extract_camera(archive, tmp_path, CAMERA, Report("dataset"))
    assert first.stat().st_ino == inode
    assert second.read_bytes() == b"2" * 5000


def test_hostile_members_are_named_and_write_nothing(tmp_path: Path) -> None:
    wanted = f"videos/{CAMERA}.mp4"
    hostile = [
        member(f"../../9/{wanted}", b"evil"), member(f"/tmp/v2w-evil/9/{wanted}", b"evil"),
        member(f"3/{wanted}", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member(f"4/{wanted}", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        member("5", kind=tarfile.SYMTYPE, link="/tmp"), member(f"6/{wanted}", kind=tarfile.CHRTYPE),
        member(f"seven/{wanted}", b"evil"), member(wanted, b"evil"),
        member(f"8/{wanted}", kind=tarfile.FIFOTYPE),
    ]  # fmt: skip
    archive = write_tar(tmp_path / "a.tar", [*episode("1"), *hostile, *episode("2")])
    out = tmp_path / "data" / "observations" / "327"
    report = Report("dataset")
    _, whole = extract_camera(archive, out, CAMERA, report)
    assert whole
    assert [p.item.split(": ")[1] for p in report.dropped] == [i.name for i, _ in hostile]
    assert files(tmp_path) == ["a.tar", *(
        f"data/observations/327/{e}/{wanted}" for e in ("1", "2"))]  # fmt: skip
    assert not Path("/tmp/v2w-evil").exists()


def whole_bytes(tmp_path: Path) -> bytes:
    return write_tar(tmp_path / "whole.tar", episode("1") + episode("2")).read_bytes()


@pytest.mark.parametrize("kept", [0, 300, 9 * 512 + 100, 12 * 1024 + 17])
def test_truncated_archive_keeps_the_members_before(tmp_path: Path, kept: int) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(whole_bytes(tmp_path)[:kept])
    report = Report("dataset")
    videos, whole = extract_camera(archive, tmp_path / "out", CAMERA, report)
    assert not whole
    assert [(p.kind, p.item) for p in report.dropped] == [("archive", str(archive))]
    assert [v.parents[1].name for v in videos] == (["1"] if kept > 9000 else [])
    assert len(files(tmp_path / "out")) == len(videos)  # no partial file either


def test_damaged_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    data = bytearray(whole_bytes(tmp_path))
    at = data.index(b"2/depth")
    data[at : at + 4] = os.urandom(4)
    (tmp_path / "a.tar").write_bytes(data)
    report = Report("dataset")
    videos, whole = extract_camera(tmp_path / "a.tar", tmp_path / "out", CAMERA, report)
    assert not whole
    assert len(videos) == 1
    assert "no whole member" in report.dropped[0].reason


def test_damaged_gzip(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    data = bytearray(gzip.compress(whole_bytes(tmp_path) + os.urandom(100_000)))
    for damaged in (data[: len(data) // 2], b"\x1f\x8b" + os.urandom(500)):
        archive.write_bytes(damaged)
        report = Report("dataset")
        _, whole = extract_camera(archive, tmp_path / "out", CAMERA, report)
        assert whole or report.dropped[0].item == str(archive)
    assert not whole


def test_what_cannot_be_written_is_an_os_error_and_leaves_nothing_partial(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", episode("1", 50) + episode("2", 50))
    target = tmp_path / "out" / "2"
    target.mkdir(parents=True)
    (target / "videos").write_text("a file where a folder must be")
    with pytest.raises(OSError, match="videos"):
        extract_camera(archive, tmp_path / "out", CAMERA, Report("dataset"))
    assert files(tmp_path / "out") == [f"1/videos/{CAMERA}.mp4", "2/videos"]
