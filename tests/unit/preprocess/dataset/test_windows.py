"""Tests for the guide's window rule, and that no window is too short."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video2world_preprocess.dataset.windows import (
    Window,
    cut_points,
    guide_windows,
    merge_short,
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
    kept, _ = merge_short(raw, min_frames)
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
    kept, _ = merge_short(guide_windows(15 * 20, Fraction(15)), 94)
    assert spans(kept) == [(0, 150), (150, 300)]


@pytest.mark.parametrize("seconds", [0, -1, 0.01])
def test_windows_without_a_frame_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="hold no frame"):
        guide_windows(100, Fraction(30), seconds)


@pytest.mark.parametrize(
    ("frames", "fps", "lengths", "names"),
    [
        # 2.002 s x 29.97...: 59.99999999999999
        (60, Fraction(30000, 1001), (5, 7.5), ["0-58"]),
        (60, Fraction(30000, 1001), (2, 2), ["0-58", "59-58"]),
        (150, Fraction(30000, 1001), (2, 3), ["0-58", "59-118", "119-149"]),
        (376, Fraction(30), (5, 7.5), ["0-149", "150-299", "300-374"]),  # 12.533333 s
        (40, Fraction(30), (5, 7.5), ["0-38"]),
        (41, Fraction(30), (5, 7.5), ["0-40"]),  # 1.366667 s
        (301, Fraction(25), (3.3, 4.4), ["0-81", "82-164", "165-246", "247-300"]),
        (375, Fraction(30), (5, 7.5), ["0-149", "150-374"]),
    ],
)
def test_names_are_those_of_the_guides_script(
    frames: int, fps: Fraction, lengths: tuple[float, float], names: list[str]
) -> None:
    """The expected names were computed with prepare_agibot_fisheye_data.py's own code."""
    windows = guide_windows(frames, fps, *lengths)
    assert [
        window_name("x", w).removeprefix(f"x_window_{w.index}_frame_") for w in windows
    ] == names
    assert windows[-1].stop == frames  # although the name may have one less


def test_a_merged_window_has_the_name_of_its_last_part() -> None:
    kept, _ = merge_short(guide_windows(376, Fraction(30)), 94)
    assert [window_name("x", w) for w in kept] == [
        "x_window_0_frame_0-149",
        "x_window_1_frame_150-374",
    ]
