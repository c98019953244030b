"""Tests for dividing a file's frames among its episodes."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video2world_preprocess.dataset.lerobot_frames import Placement, spans_of

RATES = [Fraction(10), Fraction(15), Fraction(30), Fraction(50), Fraction(30000, 1001)]


def placed(lengths: list[int], fps: Fraction, drift: float = 0.0) -> list[Placement]:
    """Place episodes as LeRobot does: by a sum of floating-point durations."""
    found, begin = [], 0.0
    for number, length in enumerate(lengths):
        end = begin + length / float(fps) + drift
        found.append(Placement(number, length, begin, end))
        begin = end
    return found


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=60),
    st.sampled_from(RATES),
    st.floats(-2e-4, 2e-4),
    st.randoms(),
)
def test_a_complete_file_is_divided_without_gap_or_overlap(
    lengths: list[int], fps: Fraction, drift: float, random: object
) -> None:
    placements = placed(lengths, fps, drift)
    random.shuffle(placements)  # type: ignore[attr-defined]
    spans = spans_of(placements, sum(lengths), fps)
    ends = [0, *itertools.accumulate(lengths)]
    assert {n: (s.start, s.stop) for n, s in spans.items()} == dict(
        enumerate(itertools.pairwise(ends))
    )
    assert not any(span.fault for span in spans.values())


@given(
    st.lists(st.integers(20, 200), min_size=2, max_size=20),
    st.sampled_from(RATES),
    st.integers(0, 19),
    st.integers(-2, 2).filter(bool),
)
def test_an_episode_with_lost_or_repeated_frames_does_not_move_the_others(
    lengths: list[int], fps: Fraction, which: int, lost: int
) -> None:
    which %= len(lengths)
    real = [n - lost * (k == which) for k, n in enumerate(lengths)]
    placements = [
        Placement(p.episode, length, p.begin, p.end)
        for p, length in zip(placed(real, fps), lengths, strict=True)
    ]
    spans = spans_of(placements, sum(real), fps)
    starts = [0, *itertools.accumulate(real)]
    for number, span in spans.items():
        kept = min(real[number], lengths[number])
        assert (span.fault, span.start, span.stop) == ("", starts[number], starts[number] + kept)
        assert bool(span.remarks) == (number == which)


@pytest.mark.parametrize(
    ("placements", "frames", "expected"),
    [
        # one deleted episode whose frames are still in the file
        ([Placement(0, 10, 0.0, 1.0), Placement(2, 10, 3.0, 4.0)], 40, [(0, 10), (30, 40)]),
        ([Placement(0, 10, 0.0, None), Placement(2, 10, 3.0, None)], 40, ["30 frames", (30, 40)]),
        ([Placement(0, 10)], 13, ["the counts disagree: 10 rows, but 13 frames"]),
        ([Placement(0, 10)], 7, ["the counts disagree: 10 rows, but 7 frames"]),
        ([Placement(0, 10)], 8, [(0, 8)]),
        ([Placement(0, None)], 8, [(0, 8)]),
        ([Placement(0, 10, 0.0, 1.0), Placement(1, 10, 9.0, 10.0)], 11, [(0, 10), "ends after 11"]),
        ([Placement(0, 10, 5.0, 1.0), Placement(1, 10, 9.0, 10.0)], 100, ["no frame", (90, 100)]),
    ],
)
def test_files_whose_counts_disagree(
    placements: list[Placement], frames: int, expected: list[object]
) -> None:
    spans = spans_of(placements, frames, Fraction(10))
    for placement, wanted in zip(placements, expected, strict=True):
        span = spans[placement.episode]
        if isinstance(wanted, str):
            assert wanted in span.fault
        else:
            assert (span.start, span.stop, span.fault) == (*wanted, "")  # type: ignore[misc]
