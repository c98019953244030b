"""Where an episode is cut: the guide's window rule, and no window too short to train on.

Pure arithmetic on frame numbers. The rule is that of upstream's prepare_agibot_fisheye_data.py
(facts sheet §4.1): windows of ``window_seconds``; what remains at the end becomes one last window
as soon as it is at most ``min_last_seconds`` long.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Window", "cut_points", "guide_windows", "parse_name", "trainable", "window_name"]


@dataclass(frozen=True)
class Window:
    """Frames ``start .. stop - 1`` of a video; ``index`` counts from 0 within it.

    ``named_stop`` is what the guide's script takes ``stop`` to be, whose names tell windows apart:
    it may be one less at the end of a video (see :func:`guide_windows`).
    """

    index: int
    start: int
    stop: int
    named_stop: int = -1

    def __post_init__(self) -> None:
        if self.named_stop < 0:
            object.__setattr__(self, "named_stop", self.stop)

    @property
    def frames(self) -> int:
        """Length in frames."""
        return self.stop - self.start


def guide_windows(
    frames: int, fps: Fraction, window_seconds: float = 5.0, min_last_seconds: float = 7.5
) -> list[Window]:
    """The guide's windows of a video of ``frames`` frames, without gap or overlap.

    The guide's script computes in floating point, from the duration that ffprobe prints, rounded to
    a microsecond: of 60 frames at 30000/1001 a second it takes the last to be number 58. Windows
    are cut and named as it does, so that captions are found by name, but the last one here holds
    all frames that are left.

    Raises:
        ValueError: a length that is not positive.
    """
    rate = float(fps)
    if window_seconds <= 0 or fps <= 0 or window_seconds * rate < 1:
        raise ValueError(f"windows of {window_seconds} s at {fps} frames/s hold no frame")
    duration = float(round(frames / Fraction(fps), 6))
    ends, begin = [], 0.0
    while duration - begin > window_seconds + min_last_seconds:
        begin += window_seconds
        ends.append(begin)
    if duration - begin > min_last_seconds and begin + window_seconds < duration:
        ends.append(begin + window_seconds)
    stops = [stop for stop in (int(end * rate) for end in ends) if stop < frames]
    windows = [Window(n, *span) for n, span in enumerate(itertools.pairwise([0, *stops, frames]))]
    windows[-1] = dataclasses.replace(windows[-1], named_stop=int(duration * rate))
    return windows


def trainable(windows: list[Window], min_frames: int) -> tuple[list[Window], list[str]]:
    """Merge windows shorter than ``min_frames``; returns those to keep and what was done.

    A short last window joins its predecessor; windows that are short because the frame rate is
    low are joined until they suffice. Nothing is kept of a video with fewer frames altogether.
    """
    if not windows or windows[-1].stop < min_frames:
        return [], []
    spans: list[list[int]] = []
    remarks = []
    for window in windows:
        if spans and spans[-1][1] - spans[-1][0] < min_frames:
            remarks.append(_merged(spans[-1], [window.start, window.stop], min_frames))
            spans[-1][1:] = [window.stop, window.named_stop]
        else:
            spans.append([window.start, window.stop, window.named_stop])
    if len(spans) > 1 and spans[-1][1] - spans[-1][0] < min_frames:
        last = spans.pop()
        remarks.append(_merged(last, spans[-1], min_frames))
        spans[-1][1:] = last[1:]
    return [Window(index, *span) for index, span in enumerate(spans)], remarks


def _merged(short: list[int], other: list[int], min_frames: int) -> str:
    return (
        f"frames {short[0]}-{short[1] - 1} ({short[1] - short[0]} of at least {min_frames}) "
        f"merged with {other[0]}-{other[1] - 1}"
    )


def cut_points(
    frames: int, fps: Fraction, *, window_seconds: float, min_last_seconds: float, min_frames: int
) -> tuple[list[Window], list[str]]:
    """:func:`guide_windows`, then :func:`trainable`."""
    return trainable(guide_windows(frames, fps, window_seconds, min_last_seconds), min_frames)


def window_name(prefix: str, window: Window) -> str:
    """A window's file stem, with inclusive frame numbers as the guide has them.

    ``task_327_episode_685393`` and the first window give
    ``task_327_episode_685393_window_0_frame_0-149``.
    """
    return f"{prefix}_window_{window.index}_frame_{window.start}-{window.named_stop - 1}"


def parse_name(stem: str) -> tuple[str, Window] | None:
    """The prefix and window of a file stem, or None for a stem of another form."""
    match = re.fullmatch(r"(.+)_window_(\d+)_frame_(\d+)-(\d+)", stem)
    if match is None:
        return None
    prefix, index, start, last = match[1], int(match[2]), int(match[3]), int(match[4])
    return prefix, Window(index, start, last + 1)
