"""Tests that paths made from templates stay in the dataset's folder."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video2world_preprocess.dataset.lerobot_layout import (
    Info,
    cameras_in,
    fill,
    parse_info,
    path_candidates,
)

VALUES = {"video_key": "cam", "episode_chunk": 1, "episode_index": 1002, "../x": 3}
PIECES = st.sampled_from(
    ["{video_key}", "{episode_index:06d}", "..", "/", "\\", "{", "}", "{0}", "{a.b}", "{../x}", "a"]
)


@given(st.lists(PIECES).map("".join))
def test_a_template_gives_a_path_inside_or_none(template: str) -> None:
    try:
        path = fill(template, VALUES)
    except ValueError:
        return
    assert not PurePosixPath(path).is_absolute()
    assert ".." not in PurePosixPath(path).parts
    assert "{" not in path


def test_the_datasets_template_comes_before_the_usual_one() -> None:
    info, _ = parse_info({"chunks_size": 10, "video_path": "v/{video_key}/{episode_index}.mp4"})
    assert list(path_candidates("v2.1", "video", info, "cam", episode_index=25)) == [
        "v/cam/25.mp4",
        "videos/chunk-002/cam/episode_000025.mp4",
        "videos/chunk-000/cam/episode_000025.mp4",
    ]
    v3 = path_candidates("v3.0", "video", info, "cam", chunk_index=1, file_index=2)
    assert list(v3) == ["videos/cam/chunk-001/file-002.mp4"]  # the other is of v2


def test_a_camera_that_leads_out_of_the_folder_has_no_files() -> None:
    assert not path_candidates("v2.0", "video", Info(), "../../x", episode_index=0)


@pytest.mark.parametrize(
    ("size", "expected"), [("100", 100), (100.0, 100), (0, 1000), (None, 1000), (1.5, 1000)]
)
def test_chunks_size_may_be_of_another_type(size: object, expected: int) -> None:
    assert parse_info({"chunks_size": size})[0].chunks_size == expected


def test_cameras_are_recognized_by_folders() -> None:
    paths = [
        "videos/chunk-000/top/episode_000000.mp4",
        "videos/wrist/chunk-000/file-000.mp4",
        "videos/readme.mp4",
    ]
    assert list(cameras_in(paths)) == ["top", "wrist"]
