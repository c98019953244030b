"""Video files in and out: what is in one, its frames as they are shown, and a new one.

Everything goes through PyAV. A file that cannot be used raises :class:`UserError` naming it; the
writer works through a Python file, so that a full disk is an ``OSError`` instead of a short video.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from video2world_common.exit_codes import UserError
from video2world_preprocess.video.decode import VideoInfo, decoded, frame_rate, opened, shown_times
from video2world_preprocess.video.display import Display
from video2world_preprocess.video.frame_survey import Survey, survey
from video2world_preprocess.video.resize import Geometry, fit

__all__ = ["VideoInfo", "frames_of", "probe", "read_fitted", "read_frames"]


def probe(path: Path | str) -> VideoInfo:
    """Return how many frames the file shows and their rate and size, without decoding one.

    Raises:
        UserError: missing, empty, corrupt or frameless file.
    """
    path = Path(path)
    with opened(path) as (container, stream):
        index, length = stream.index_entries, path.stat().st_size
        if (
            stream.frames
            and stream.frames == len(index)
            and not any(entry.is_discard or entry.pos + entry.size > length for entry in index)
        ):
            frames, rate = stream.frames, frame_rate(stream, path)
        else:
            # The header does not say it all (Matroska), counts what an edit list hides, or counts
            # what is cut off.
            times = shown_times(container, stream)
            frames, rate = len(times), frame_rate(stream, path, times)
        if frames == 0:
            raise UserError(f"{path}: the video has no frames; copy or download it again")
        info = VideoInfo(frames, rate, stream.width, stream.height)
    return dataclasses.replace(info, frames=frames - _not_shown_at_start(path))


def _not_shown_at_start(path: Path) -> int:
    """Count the frames at the start that ffmpeg skips, as they need others before the key frame.

    A file that was cut from a longer one without encoding may have such, which are to be shown
    before the key frame, or at no time that the container can tell. Only then is anything decoded.
    """
    with opened(path) as (container, stream):
        packets = (packet for packet in container.demux(stream) if packet.size)
        start = list(itertools.islice(packets, 32))
        times = [packet.pts for packet in start]
        if times[0] is None or all(time is not None and time >= times[0] for time in times):
            return 0
        expected, shown = sum(not packet.is_discard for packet in start), 0
        for packet in [*start, None]:
            try:
                shown += len(stream.decode(packet))
            except av.FFmpegError:  # a frame that is missing, not one to be skipped
                shown += 1
        return max(0, expected - shown)


def frames_of(
    path: Path | str,
    start: int = 0,
    stop: int | None = None,
    wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[np.ndarray]:
    """Yield the frames ``start .. stop - 1`` (to the end without ``stop``), uint8 RGB [H, W, 3].

    They are upright and of one size, the first one's, as ffmpeg shows them. The numbers are those
    of :func:`survey`: a frame that cannot be decoded has one, too. Of the frames only those are
    yielded, and converted, whose numbers are ``wanted``.

    Raises:
        UserError: unusable file, or one of the frames is damaged.
    """
    path, trouble, waiting = Path(path), list[Any](), list[int]()

    def before(packet: Any) -> None:
        if packet.size and not packet.is_discard and packet.pts is not None:
            heapq.heappush(waiting, packet.pts)

    def leaves_a_gap(frame: Any) -> bool:
        passed = 0
        while waiting and frame.pts is not None and waiting[0] <= frame.pts:
            passed += heapq.heappop(waiting) < frame.pts
        return passed > 0

    display, known = Display("rgb24"), None
    with opened(path) as (container, stream):
        for place, frame in enumerate(decoded(container, stream, trouble.append, before)):
            if known is None and (leaves_a_gap(frame) or trouble or frame.is_corrupt):
                known = _without_fault(path, start, stop)
            number = place if known is None else known.numbers[place]
            if known is not None and place and (number < 0 or number in known.faults):
                continue
            if stop is not None and number >= stop:
                return
            if place == 0 or (number >= start and wanted(number)):
                pixels = display.show(frame)  # the first one always: the others have its size
                if number >= start and wanted(number):
                    yield np.asarray(pixels.to_ndarray())
        if trouble and known is None:
            _without_fault(path, start, stop)


def _without_fault(path: Path, start: int, stop: int | None) -> Survey:
    """Survey the video, whose frames ``start .. stop - 1`` are wanted, as far as there are any.

    Raises:
        UserError: one of these frames is damaged.
    """
    known = survey(path)
    if reason := known.fault(start, None if stop is None else min(stop, known.info.frames)):
        raise UserError(reason)
    return known


def read_frames(
    path: Path | str,
    start: int = 0,
    count: int | None = None,
    change: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> np.ndarray:
    """Read frames ``start .. start + count`` (to the end without ``count``) as uint8 [T, H, W, 3].

    Each is put through ``change`` on the way, to be made smaller, say, before the next is read.

    Raises:
        UserError: unusable file, one that ends before the last frame asked for, or a damaged frame.
    """
    stop = None if count is None else start + count
    frames = [change(pixels) for pixels in frames_of(path, start, stop)]
    if not frames or (count is not None and len(frames) < count):
        wanted = "one frame" if count is None else f"{count} frames"
        raise UserError(
            f"{path}: {wanted} from frame {start} on wanted, {len(frames)} are there; "
            "the video is too short or truncated"
        )
    return np.stack(frames)


def read_fitted(
    path: Path | str,
    size: tuple[int, int],
    geometry: Geometry,
    start: int = 0,
    count: int | None = None,
) -> np.ndarray:
    """As :func:`read_frames`, each frame brought to ``size`` (see :func:`fit`) as it is read.

    Raises:
        UserError: as :func:`read_frames`.
    """
    return read_frames(
        path, start, count, lambda pixels: np.asarray(fit(pixels[None], size, geometry)[0])
    )
