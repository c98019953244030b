"""Cut a video into clips while it is decoded once from front to back.

For videos of any length that contain many clips: nothing is known before but the container's
index, and nothing is kept in memory but the current frame. At the first damage the cut ends: what
is damaged is for :mod:`.frame_survey` to find out.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from video2world_common.exit_codes import UserError
from video2world_preprocess.video.cut import CUTTER_OPTIONS, CUTTER_THREADS, Part
from video2world_preprocess.video.decode import (
    VideoInfo,
    decoded,
    frame_rate,
    is_even,
    opened,
    shown_times,
)
from video2world_preprocess.video.display import Display, display_filters, transposed
from video2world_preprocess.video.writer import Writer

__all__ = ["Damaged", "FrameSource", "Timeline", "VideoFrames", "cut_once", "timeline"]

WORTH_SEEKING = 64  # frames to skip, from which seeking is faster than decoding them


class Damaged(Exception):
    """The video does not decode to the frames that its index announces."""


@dataclass(frozen=True)
class Timeline:
    """The times at which a video's frames are shown, in the stream's time base.

    ``times`` is empty if the frames are ``step`` apart, beginning at ``start``.
    """

    path: Path
    info: VideoInfo
    start: int
    step: Fraction
    times: array[int]
    keyframes: int

    def time(self, number: int) -> int:
        """Return when a frame is shown."""
        return self.times[number] if self.times else self.start + round(number * self.step)

    def is_at(self, time: int | None, number: int) -> bool:
        """Whether ``time`` is that of frame ``number``."""
        return time is not None and 2 * abs(time - self.time(number)) <= max(self.step, Fraction(2))


def timeline(path: Path) -> Timeline:
    """Read the index of a video; without one, all its packets, but none is decoded.

    Raises:
        UserError: the file is missing, empty or corrupt, or has no frames.
    """
    with opened(path) as (container, stream):
        index = stream.index_entries
        keyframes = 0
        times = array("q")
        if stream.frames and stream.frames == len(index):
            for entry in index:
                if entry.is_discard:
                    times = array("q")
                    break
                times.append(entry.timestamp)
                keyframes += entry.is_keyframe
        is_complete = len(times) > 0
        if is_complete:  # decoding times, whose distances are those of the frames
            first = times[0]
            rate = frame_rate(stream, path, array("q", (time - first for time in times)))
            start = stream.start_time or 0
            even = is_even(times, 1 / (rate * stream.time_base))
        if not is_complete or not even:
            shown = shown_times(container, stream)
            if not shown or shown[0] == -1:
                raise UserError(
                    f"{path}: the video is truncated or corrupt (no time stamp); copy or "
                    "download it again"
                )
            times, start = array("q", shown), shown[0]
            rate = frame_rate(stream, path, shown)
            even = is_even(shown, 1 / (rate * stream.time_base))
        info = VideoInfo(len(times), rate, stream.width, stream.height)
        step = 1 / (rate * stream.time_base)
    return Timeline(path, info, start, step, array("q") if even else times, keyframes)


class FrameSource(Protocol):
    """Frames of a file, by number, in ascending order."""

    fps: Fraction
    aspect: Fraction | None

    def frames(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the frames ``start .. stop - 1`` as PyAV's; raise Damaged if that is impossible."""


class VideoFrames:
    """The frames of a video, which is decoded without going back; seeks over gaps."""

    def __init__(self, known: Timeline, container: Any, stream: Any) -> None:
        self.fps = known.info.fps
        self.aspect: Fraction | None = stream.sample_aspect_ratio
        self._known, self._container, self._stream = known, container, stream
        self._next = 0
        self._decoded = self._decode()

    def _decode(self) -> Iterator[Any]:
        def fail(packet: Any) -> None:
            raise Damaged(f"{self._known.path}: a packet cannot be decoded")

        return decoded(self._container, self._stream, fail)

    def frames(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the frames ``start .. stop - 1``.

        Raises:
            Damaged: one of them is damaged or missing.
        """
        if start < self._next:
            raise ValueError(f"{self._known.path}: frame {start} was passed already")
        first: Any = None
        if start - self._next > WORTH_SEEKING:
            first = self._seek(start)
        while self._next < stop:
            frame, first = first or next(self._decoded, None), None
            if frame is None:
                raise Damaged(f"{self._known.path}: it ends before frame {self._next}")
            if frame.is_corrupt or not self._known.is_at(frame.pts, self._next):
                raise Damaged(f"{self._known.path}: frame {self._next} is damaged or missing")
            self._next += 1
            if self._next > start:
                yield frame

    def _seek(self, start: int) -> Any:
        """Seek to the last keyframe shown before frame ``start``, and return that frame."""
        known, back = self._known, 0
        while True:
            place = max(start - back, 0)
            self._container.seek(known.time(place), stream=self._stream)
            self._decoded = self._decode()
            for frame in self._decoded:
                if frame.pts is None or frame.is_corrupt:
                    raise Damaged(f"{known.path}: a frame before {start} is damaged")
                if frame.pts > known.time(start) + known.step / 2:
                    break  # the keyframe is shown later than it is decoded
                if known.is_at(frame.pts, start):
                    self._next = start
                    return frame
            if not place:
                raise Damaged(f"{known.path}: frame {start} is damaged or missing")
            back = 2 * back + WORTH_SEEKING


def cut_once(source: FrameSource, parts: Sequence[Part], crf: int = 18) -> Iterator[Path]:
    """Encode ``parts`` (first frame, frame after the last, target), in ascending order.

    Parts must not overlap. Yields each target once it is complete.

    Raises:
        Damaged: a frame is damaged or missing; the targets before it have been yielded.
        OSError: a target cannot be written.
    """
    for (_, stop, _), (start, _, _) in itertools.pairwise(parts):
        if start < stop:
            raise ValueError(f"parts overlap at frame {start}")
    options = {"crf": crf, "threads": CUTTER_THREADS} | CUTTER_OPTIONS
    display = Display("yuv420p", even=True)
    for start, stop, target in parts:
        frames = source.frames(start, stop)
        frame = next(frames)
        shape = source.aspect
        if shape and transposed(display_filters(frame)):
            shape = 1 / shape
        first = display.show(frame)
        with Writer(target, source.fps, first.width, first.height, options) as writer:
            writer.like(first, shape)
            writer.add(first)
            for frame in frames:
                writer.add(display.show(frame))
        yield target
