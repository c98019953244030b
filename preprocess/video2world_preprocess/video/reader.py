"""Read the properties and the frames of a video, as ffmpeg shows them."""

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
    """Return the number of frames that ffmpeg shows, their rate and size, without decoding them.

    Raises:
        UserError: the file is missing, empty or corrupt, or has no frames.
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
            # The header has no count (Matroska), or it includes frames that an edit list hides or
            # that are cut off.
            times = shown_times(container, stream)
            frames, rate = len(times), frame_rate(stream, path, times)
        if frames == 0:
            raise UserError(f"{path}: the video has no frames; copy or download it again")
        info = VideoInfo(frames, rate, stream.width, stream.height)
    return dataclasses.replace(info, frames=frames - _skipped_at_start(path))


def _skipped_at_start(path: Path) -> int:
    """Return the number of frames at the start that ffmpeg skips, as they depend on missing ones.

    A video that was cut without encoding may have such frames, with time stamps before the first
    key frame or without time stamps. Only then are frames decoded.
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
            except av.FFmpegError:  # a missing frame, not a skipped one
                shown += 1
        return max(0, expected - shown)


def frames_of(
    path: Path | str,
    start: int = 0,
    stop: int | None = None,
    wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[np.ndarray]:
    """Yield the frames ``start .. stop - 1`` (to the end without ``stop``), uint8 RGB [H, W, 3].

    They are upright and have the size of the first, as in ffmpeg. They are numbered as in
    :func:`survey`, which includes frames that cannot be decoded. Only frames whose number is
    ``wanted`` are converted and yielded.

    Raises:
        UserError: the file is unusable, or one of the frames is damaged.
    """
    path, errors, waiting = Path(path), list[Any](), list[int]()

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
        for place, frame in enumerate(decoded(container, stream, errors.append, before)):
            if known is None and (leaves_a_gap(frame) or errors or frame.is_corrupt):
                known = _checked_survey(path, start, stop)
            number = place if known is None else known.numbers[place]
            if known is not None and place and (number < 0 or number in known.faults):
                continue
            if stop is not None and number >= stop:
                return
            if place == 0 or (number >= start and wanted(number)):
                pixels = display.show(frame)  # always the first, which sets the size
                if number >= start and wanted(number):
                    yield np.asarray(pixels.to_ndarray())
        if errors and known is None:
            _checked_survey(path, start, stop)


def _checked_survey(path: Path, start: int, stop: int | None) -> Survey:
    """Survey the video, and check the frames ``start .. stop - 1`` as far as they exist.

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
    """Read ``count`` frames from ``start`` on (to the end without ``count``), uint8 [T, H, W, 3].

    ``change`` is applied to each frame before the next is read, for example to save memory.

    Raises:
        UserError: the file is unusable or too short, or one of the frames is damaged.
    """
    stop = None if count is None else start + count
    frames = [change(pixels) for pixels in frames_of(path, start, stop)]
    if not frames or (count is not None and len(frames) < count):
        wanted = "one frame" if count is None else f"{count} frames"
        raise UserError(
            f"{path}: {wanted} from frame {start} on requested, but it has {len(frames)}; "
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
    """Read frames as :func:`read_frames`, each resized to ``size`` = (H, W) by :func:`.resize.fit`.

    Raises:
        UserError: as :func:`read_frames`.
    """
    return read_frames(
        path, start, count, lambda pixels: np.asarray(fit(pixels[None], size, geometry)[0])
    )
