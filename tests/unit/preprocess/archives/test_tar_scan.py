"""Tests that only one camera's videos are extracted from any archive, damaged or hostile."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video2world_common.sharding import Shard
from video2world_preprocess.archives.archive import find_archives, local_archive
from video2world_preprocess.archives.extract import Extraction
from video2world_preprocess.archives.tar_scan import Member, Piece, misaligned_piece, walk
from video2world_preprocess.stage_report import Report

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


def read(archive: Path, **limits: int) -> tuple[Piece, dict[int, bytes]]:
    """Walk through ``archive``, or a part of it; return the piece and the videos."""
    found: dict[int, bytes] = {}

    def take(member: Member, content: Any) -> None:
        found[member.episode] = content.read()
        assert len(found[member.episode]) == member.size

    with local_archive(archive, archive.name).open() as stream:
        limits = {"start": 0, "stop": 1 << 60, "at": 0} | limits
        return walk(stream, camera=CAMERA, take=take, **limits), found


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")]
)
def test_only_the_camera_is_taken(tmp_path: Path, name: str, mode: str) -> None:
    archive = write_tar(tmp_path / name, episode("1") + episode("22"), mode)
    assert find_archives(tmp_path) == [archive]
    piece, found = read(archive)
    assert piece.last
    assert piece.damage is None
    assert piece.rejected == []
    assert found == {1: b"1" * 5000, 22: b"22" * 5000}


def test_hostile_members_are_reported_and_not_extracted(tmp_path: Path) -> None:
    wanted = f"videos/{CAMERA}.mp4"
    sparse = tarfile.TarInfo(f"9/{wanted}")
    sparse.type = tarfile.GNUTYPE_SPARSE
    hostile = [
        member(f"../../9/{wanted}", b"evil"),
        member(f"/tmp/v2w-evil/9/{wanted}", b"evil"),
        member(f"3/{wanted}", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member(f"4/{wanted}", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        member("5", kind=tarfile.SYMTYPE, link="/tmp"),
        member(f"6/{wanted}", kind=tarfile.CHRTYPE),
        member(f"seven/{wanted}", b"evil"),
        member(wanted, b"evil"),
        member(f"8/{wanted}", kind=tarfile.FIFOTYPE),
        member(f"{'9' * 20}/{wanted}", b"evil"),
        (sparse, io.BytesIO()),
    ]
    archive = write_tar(tmp_path / "a.tar", [*episode("1"), *hostile, *episode("2")])
    piece, found = read(archive)
    assert piece.last
    assert [name for name, _ in piece.rejected] == [info.name for info, _ in hostile]
    assert sorted(found) == [1, 2]


def whole_bytes(tmp_path: Path) -> bytes:
    return write_tar(tmp_path / "whole.tar", episode("1") + episode("2")).read_bytes()


@pytest.mark.parametrize("kept", [0, 300, 9 * 512 + 100, 12 * 1024 + 17])
def test_truncated_archive_keeps_the_members_before(tmp_path: Path, kept: int) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(whole_bytes(tmp_path)[:kept])
    piece, found = read(archive)
    assert piece.damage
    assert list(found) == ([1] if kept > 9000 else [])


def test_a_damaged_header_is_noticed_and_affects_only_its_neighborhood(tmp_path: Path) -> None:
    data = bytearray(whole_bytes(tmp_path))
    at = data.index(b"2/depth")
    data[at : at + 4] = os.urandom(4)
    (tmp_path / "a.tar").write_bytes(data)
    piece, found = read(tmp_path / "a.tar")
    assert "no complete member" in piece.damage
    assert list(found) == [1]
    rest, found = read(tmp_path / "a.tar", start=at + 1, at=None)
    assert rest.last
    assert list(found) == [2]
    assert (
        misaligned_piece([replace(piece, stop=at + 1), rest]) is None
    )  # after damage there is nothing to compare


def test_damaged_gzip(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    data = bytearray(gzip.compress(whole_bytes(tmp_path) + os.urandom(100_000)))
    for damaged in (data[: len(data) // 2], b"\x1f\x8b" + os.urandom(500)):
        archive.write_bytes(damaged)
        piece, _ = read(archive)
        assert piece.last or piece.damage
    assert piece.damage


SIZES = [(tarfile.XHDTYPE, 1 << 40), (tarfile.GNUTYPE_LONGNAME, 1 << 33), (tarfile.REGTYPE, -512)]


@pytest.mark.parametrize(("kind", "size"), SIZES)
def test_huge_and_negative_sizes_are_damage(tmp_path: Path, kind: bytes, size: int) -> None:
    info = tarfile.TarInfo("bomb")
    info.type, info.size = kind, size
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(4096))
    piece, found = read(tmp_path / "a.tar")
    assert piece.damage
    assert not found


def pieces(archive: Path, size: int) -> tuple[list[Piece], dict[int, bytes]]:
    """Read the archive in independent pieces of ``size`` bytes."""
    total, made, found = archive.stat().st_size, [], {}
    for start in range(0, total, size):
        stop = min(start + size, total)
        piece, videos = read(archive, start=start, stop=stop, at=None if start else 0)
        made.append(piece)
        found |= videos
    return made, found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pieces_find_what_one_walk_finds(tmp_path_factory: Any, data: Any) -> None:
    """From any position; long names and archives within archives do not mislead."""
    folder = tmp_path_factory.mktemp("archive")
    inner = write_tar(folder / "inner", episode("77", 300)).read_bytes()
    content = []
    for number in range(data.draw(st.integers(1, 4))):
        content += episode(str(number), data.draw(st.integers(1, 3000)))
        if data.draw(st.booleans()):
            content.append(member(f"{number}/inner.tar", inner))
        if data.draw(st.booleans()):
            content.append(
                member("long/" * 40 + str(number), b"x" * data.draw(st.integers(0, 999)))
            )
    with tarfile.open(
        folder / "a.tar",
        "w",
        format=data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])),
    ) as archive:
        for info, body in content:
            archive.addfile(info, body)
    whole, videos = read(folder / "a.tar")
    made, found = pieces(folder / "a.tar", data.draw(st.integers(500, 20_000)))
    while (wrong := misaligned_piece(made)) is not None:
        old = made[wrong[0]]
        again, more = read(folder / "a.tar", start=old.start, stop=old.stop, at=wrong[1])
        made[wrong[0]] = again
        found |= more
    assert [m for piece in made for m in piece.members] == whole.members
    assert {episode: found[episode] for episode in videos} == videos


def depth(number: str, images: range, pax: bool = False) -> list[tuple]:
    """Return depth images of an episode, all of different sizes."""
    made = [member(f"{number}/depth/{i:06d}.png", os.urandom(700 + 37 * i)) for i in images]
    for info, _ in made if pax else ():
        info.pax_headers = {
            "mtime": "1.5"
        }  # an extended header per member, as from tar --format=posix
    return made


def video(number: str) -> tuple:
    return member(f"{number}/videos/{CAMERA}.mp4", number.encode() * 3000)


class Counting(io.BufferedReader):
    """A file that counts the requested bytes."""

    asked = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.asked += len(data)
        return data


@settings(max_examples=40)
@given(
    images=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    least=st.integers(1, 40_000),
    piece=st.integers(5_000, 400_000),
    pax=st.booleans(),
)
def test_skipping_depth_images_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, images: list[int], least: int, piece: int, pax: bool
) -> None:
    path = tmp_path_factory.mktemp("skip") / "a.tar"
    write_tar(
        path,
        [
            each
            for n, count in enumerate(images)
            for each in (*depth(str(n), range(count), pax), video(str(n)))
        ],
    )
    size = path.stat().st_size
    for start in range(0, size, piece):
        limits = {"start": start, "stop": min(start + piece, size), "at": None if start else 0}
        plain, found = read(path, **limits)
        skipping, taken = read(path, **limits, min_skip=least)
        assert taken == found
        assert (skipping.first, skipping.end, skipping.last) == (plain.first, plain.end, plain.last)
        assert skipping.damage is None


@pytest.mark.parametrize("pax", [False, True])
def test_skipping_reads_little(tmp_path: Path, pax: bool) -> None:
    path = write_tar(tmp_path / "a.tar", [*depth("1", range(1000), pax), video("1")])
    size = path.stat().st_size
    found = []
    with Counting(path.open("rb", buffering=0)) as stream:
        piece = walk(
            stream, 0, size, CAMERA, lambda m, c: found.append((m.episode, c.read())), 0, 200_000
        )
        assert stream.asked < size / 8
    assert found == [(1, b"1" * 3000)]
    assert piece.skipped == [1]


def test_a_video_between_depth_images_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory is not in one piece, as skipping assumes."""
    members = [*depth("1", range(500)), video("1"), *depth("1", range(500, 1000))]
    path = write_tar(tmp_path / "a.tar", [*members, *depth("2", range(900)), video("2")])
    archive = replace(local_archive(path, "a.tar"), min_skip=20_000)
    there = tmp_path / "videos"
    fetch = Extraction(
        [archive],
        tmp_path / "state",
        CAMERA,
        lambda m: there / f"{m.episode}.mp4",
        lambda _, m: not (there / f"{m.episode}.mp4").exists(),
        Shard(),
    )
    fetch.run("dataset")
    assert not (there / "1.mp4").exists()
    members_found = fetch.members(Report("dataset"))
    assert [m.episode for _, m in members_found or ()] == [1, 2]
    assert (there / "1.mp4").read_bytes() == b"1" * 3000
    assert "a.tar: reading again from byte 0" in capsys.readouterr().out
    assert fetch.members(Report("dataset")) == members_found  # and not read a third time
    assert "again" not in capsys.readouterr().out
