"""Open a video and decode it as ffmpeg does: its stream, its time stamps, all that can be read.

Errors of FFmpeg that end the reading become a :class:`UserError` that names the file.
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
    """What a video's header says: number of frames, frames per second, size in pixels."""

    frames: int
    fps: Fraction
    width: int
    height: int

    @property
    def seconds(self) -> float:
        """Length in seconds at the nominal frame rate."""
        return float(self.frames / self.fps)


COVER = av.stream.Disposition.attached_pic
DEFAULT = av.stream.Disposition.default


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open the container and the video stream of it that ffmpeg takes.

    Decoding runs in one thread: with more, not all damaged frames are marked as such.

    Raises:
        UserError: it cannot be read, here or within the ``with`` block.
    """
    if not on_volume(path).is_file():
        raise UserError(f"{path}: there is no such video file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the video file is empty; copy or download it again")
    try:
        # a name such as http:x.mp4 would be taken for an address
        with av.open(f"file:{path}") as container:
            # a song's cover picture is a video stream, too
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
    """Rank a stream as ffmpeg does: by its picture size, a default one first."""
    default = 5_000_000 if stream.disposition & DEFAULT else 0
    return int(stream.width or 0) * int(stream.height or 0) + default


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the stream's packets, at its end an empty one; None where the file is cut short."""
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
    """Yield the frames that can be decoded, as ffmpeg does, past damaged packets.

    ``before`` is called with each packet, and ``failed`` with one that cannot be decoded, both
    before its frames are yielded; ``failed`` with None where the file is cut short.
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
    """List when the frames that are to be shown are, in order; reads all, decodes nothing.

    What an edit list hides is not among them. (-1 where the container does not say.)
    """
    return sorted(
        -1 if packet.pts is None else packet.pts
        for packet in _packets(container, stream)
        if packet is not None and packet.size and not packet.is_discard
    )


def frame_rate(stream: Any, path: Path, times: Sequence[int] = ()) -> Fraction:
    """Return the stream's frames per second: of what the header says the nearest to ``times``.

    Raises:
        UserError: it states none.
    """
    rates = [Fraction(r) for r in (stream.average_rate, stream.base_rate, stream.guessed_rate) if r]
    if not rates:
        raise UserError(f"{path}: the video states no frame rate; re-encode it")
    if len(times) > 1 and times[-1] > times[0] >= 0:
        measured = (len(times) - 1) / ((times[-1] - times[0]) * stream.time_base)
        return min(rates, key=lambda rate: abs(rate - measured))
    return rates[0]


def is_even(times: Sequence[int], step: Fraction) -> bool:
    """Whether frames follow each other ``step`` apart, up to the rounding of their times."""
    return all(abs(after - before - step) <= 1 for before, after in itertools.pairwise(times))
