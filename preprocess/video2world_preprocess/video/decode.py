"""Open a video and decode all readable frames of it, in the way that ffmpeg does.

Fatal errors of FFmpeg are raised as a :class:`UserError` with the name of the file.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from video2world_common.exit_codes import UserError
from video2world_common.paths import on_volume

__all__ = ["VideoInfo", "decoded", "frame_rate", "is_even", "opened", "shown_times"]


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video: number of frames, frames per second, size in pixels."""

    frames: int
    fps: Fraction
    width: int
    height: int

    @property
    def seconds(self) -> float:
        """The duration in seconds at the nominal frame rate."""
        return float(self.frames / self.fps)


COVER = av.stream.Disposition.attached_pic
DEFAULT = av.stream.Disposition.default


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a container and the video stream of it that ffmpeg selects.

    Decoding is single-threaded: with more threads, not all damaged frames are marked as damaged.

    Raises:
        UserError: the file cannot be read, now or within the ``with`` block.
    """
    if not on_volume(path).is_file():
        raise UserError(f"{path}: there is no such video file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the video file is empty; copy or download it again")
    try:
        # without the prefix, a name such as http:x.mp4 would be a URL
        with av.open(f"file:{path}") as container:
            # an audio file's cover picture is a video stream, too
            streams = [s for s in container.streams.video if not s.disposition & COVER]
            if not streams:
                raise UserError(f"{path}: the file has no video stream; give a video")
            stream = max(streams, key=_preference)
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise UserError(
            f"{path}: the video is truncated or corrupt ({error.strerror}); "
            "copy or download it again"
        ) from error


def _preference(stream: Any) -> int:
    """Return a stream's rank as in ffmpeg: by picture size, with default streams first."""
    default = 5_000_000 if stream.disposition & DEFAULT else 0
    return int(stream.width or 0) * int(stream.height or 0) + default


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the stream's packets and a final empty one, or None where the file is truncated."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        yield None


def decoded(
    container: Any,
    stream: Any,
    failed: Callable[[Any], None] = lambda packet: None,
    before: Callable[[Any], None] = lambda packet: None,
) -> Iterator[Any]:
    """Yield the frames that can be decoded, continuing after damaged packets as ffmpeg does.

    Args:
        failed: called with each packet that cannot be decoded, and with None where the file is
            truncated.
        before: called with each packet before it is decoded.
    """
    for packet in _packets(container, stream):
        if packet is None:
            failed(None)
        else:
            before(packet)
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            failed(packet)
            continue
        yield from frames


def shown_times(container: Any, stream: Any) -> list[int]:
    """Return the sorted time stamps of all frames to show, by reading packets without decoding.

    Frames that an edit list hides are left out. A missing time stamp is -1.
    """
    return sorted(
        -1 if packet.pts is None else packet.pts
        for packet in _packets(container, stream)
        if packet is not None and packet.size and not packet.is_discard
    )


def frame_rate(stream: Any, path: Path, times: Sequence[int] = ()) -> Fraction:
    """Return the stream's frame rate: of those in the header, the closest to ``times``.

    Raises:
        UserError: the header has none.
    """
    rates = [Fraction(r) for r in (stream.average_rate, stream.base_rate, stream.guessed_rate) if r]
    if not rates:
        raise UserError(f"{path}: the video has no frame rate; re-encode it")
    if len(times) > 1 and times[-1] > times[0] >= 0:
        measured = (len(times) - 1) / ((times[-1] - times[0]) * stream.time_base)
        return min(rates, key=lambda rate: abs(rate - measured))
    return rates[0]


def is_even(times: Sequence[int], step: Fraction) -> bool:
    """Whether consecutive times are ``step`` apart, except for rounding."""
    return all(abs(after - before - step) <= 1 for before, after in itertools.pairwise(times))
