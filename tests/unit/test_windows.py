"""The guide's window rule, and no window that is too short."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video2world_preprocess.windows import (
    Window,
    cut_points,
    guide_windows,
    parse_name,
    trainable,
    window_name,
)


def spans(windows: list[Window]) -> list[tuple[int, int]]:
    return [(w.start, w.stop) for w in windows]


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [(0, 1)]),
        (225, [(0, 225)]),  # 7.5 s: one window to the end
        (226, [(0, 150), (150, 226)]),
        (375, [(0, 150), (150, 375)]),  # 12.5 s: 5 s and the remaining 7.5 s
        (376, [(0, 150), (150, 300), (300, 376)]),
        (960, [(0, 150), (150, 300), (300, 450), (450, 600), (600, 750), (750, 960)]),  # 32 s
        (1377, [*[(150 * k, 150 * k + 150) for k in range(8)], (1200, 1377)]),
    ],
)
def test_rule_of_the_guide_at_30_frames_a_second(
    frames: int, expected: list[tuple[int, int]]
) -> None:
    assert spans(guide_windows(frames, Fraction(30))) == expected


def test_names_of_the_guide() -> None:
    window = guide_windows(960, Fraction(30))[0]
    name = window_name("task_327_episode_685393", window)
    assert name == "task_327_episode_685393_window_0_frame_0-149"
    assert parse_name(name) == ("task_327_episode_685393", window)
    assert parse_name("holiday") is None


@given(
    frames=st.integers(1, 5000),
    fps=st.sampled_from([Fraction(10), Fraction(30000, 1001), Fraction(30), Fraction(50)]),
    min_frames=st.integers(1, 400),
)
def test_windows_cover_the_video_without_gap_and_are_long_enough(
    frames: int, fps: Fraction, min_frames: int
) -> None:
    raw = guide_windows(frames, fps)
    assert raw[0].start == 0
    assert raw[-1].stop == frames
    assert all(a.stop == b.start for a, b in itertools.pairwise(raw))
    kept, _ = trainable(raw, min_frames)
    if frames < min_frames:
        assert kept == []
        return
    assert kept[0].start == 0
    assert kept[-1].stop == frames
    assert all(a.stop == b.start for a, b in itertools.pairwise(kept))
    assert all(w.frames >= min_frames for w in kept)
    assert [w.index for w in kept] == list(range(len(kept)))


def test_short_last_window_joins_its_predecessor_and_says_so() -> None:
    kept, remarks = cut_points(
        376, Fraction(30), window_seconds=5, min_last_seconds=7.5, min_frames=94
    )
    assert spans(kept) == [(0, 150), (150, 376)]
    assert remarks == ["frames 300-375 (76 of at least 94) merged with 150-299"]


def test_low_frame_rate_joins_windows_two_by_two() -> None:
    kept, _ = trainable(guide_windows(15 * 20, Fraction(15)), 94)
    assert spans(kept) == [(0, 150), (150, 300)]


@pytest.mark.parametrize("seconds", [0, -1, 0.01])
def test_windows_without_a_frame_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="hold no frame"):
        guide_windows(100, Fraction(30), seconds)
