"""Decide where a video is cut into windows (pure arithmetic on frame numbers).

The rule is that of ``scripts/prepare_agibot_fisheye_data.py`` in the cosmos-predict2 repository:
windows of ``window_seconds``, and one last window for the rest of the video as soon as the rest is
at most ``min_last_seconds`` long. In addition, no window is shorter than ``min_frames``.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Window", "cut_points", "guide_windows", "merge_short", "window_name"]


@dataclass(frozen=True)
class Window:
    """Frames ``start .. stop - 1`` of a video; ``index`` counts its windows from 0.

    ``named_stop`` is the ``stop`` that the guide's script computes and puts into the file name. At
    the end of a video it may be one less than ``stop`` (see :func:`guide_windows`).
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
    """Return the guide's windows of a video of ``frames`` frames, without gap or overlap.

    The guide's script computes in floating point from the duration that ffprobe prints, which is
    rounded to a microsecond: it takes the last of 60 frames at 30000/1001 frames/s to be number 58.
    Windows are cut and named the same way here, so that captions are found by name, except that the
    last window has all remaining frames.

    Raises:
        ValueError: a window would be shorter than one frame.
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


def merge_short(windows: list[Window], min_frames: int) -> tuple[list[Window], list[str]]:
    """Merge windows shorter than ``min_frames``; return the windows to keep and notes on merges.

    A short last window is merged into its predecessor; windows that are short because of a low
    frame rate are merged until they are long enough. A video with fewer than ``min_frames`` frames
    has no windows.
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
    """Return the windows of a video of ``frames`` frames, and notes on those that were merged.

    Combines :func:`guide_windows` and :func:`merge_short`.
    """
    return merge_short(guide_windows(frames, fps, window_seconds, min_last_seconds), min_frames)


def window_name(prefix: str, window: Window) -> str:
    """Return a window's file stem, with inclusive frame numbers as in the guide.

    ``task_327_episode_685393`` and the first window give
    ``task_327_episode_685393_window_0_frame_0-149``.
    """
    return f"{prefix}_window_{window.index}_frame_{window.start}-{window.named_stop - 1}"
